//! The use cases, one file each. A use case takes a [`crate::actor::Call`] first, decides by `bib_core::access`, does
//! its work in one transaction together with its audit entry, and returns domain types or a [`ServiceError`].
//!
//! Nothing here names tonic or contains SQL. `grpc/edge.rs` builds the services and puts their handlers together.

pub mod accounts;
pub mod audit;
pub mod auth;
pub mod base;
pub mod bootstrap;
pub mod client_certificates;
pub mod configuration;
pub mod database_audit;
pub mod dataset;
pub mod error;
pub mod grant;
pub mod journal;
pub mod node_info;
pub mod recovery;
pub mod reference;
pub mod refusals;
pub mod sequencer;
pub mod sessions;
pub mod tasks;
pub mod tokens;
pub mod topic;
pub mod updates;
pub mod users;

pub use error::ServiceError;
