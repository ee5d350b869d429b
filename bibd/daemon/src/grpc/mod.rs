//! The gRPC edge: listeners, the interceptor stack, and one file per service that does four things: who, parse, call,
//! convert. Only this folder names `tonic::Status`. It never contains a rule of the domain.

pub mod admin;
pub mod auth;
pub mod break_glass;
pub(crate) mod cache_node;
pub mod call;
pub mod connections;
pub mod dataset;
pub mod dataset_catalog;
pub mod edge;
pub mod error;
pub mod health;
pub mod listen;
pub mod node;
pub mod page;
pub mod peer;
pub mod refusals;
pub mod revocation;
pub mod server;
pub mod stack;
pub mod topic;
pub mod user;

pub use call::{Arrival, arrival_of, call_of, metadata_of};
pub use peer::Peer;
