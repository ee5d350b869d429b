//! The use cases, one file each. A use case takes a [`crate::actor::Call`] first, decides by `bib_core::access`, does
//! its work in one transaction together with its audit entry, and returns domain types or a [`ServiceError`].
//!
//! Nothing here names tonic or contains SQL. `grpc/edge.rs` builds the services and puts their handlers together.

pub mod accounts;
pub mod activity;
pub mod alert_delivery;
pub mod alerts;
pub mod archive;
pub mod assemble;
pub mod audit;
mod audit_rows;
pub mod auth;
pub mod backup;
pub mod base;
pub mod bootstrap;
pub mod break_glass;
pub mod cache_node;
mod check;
pub mod checkpoints;
pub mod chunk_reader;
pub mod client_certificates;
pub mod collector;
pub mod commit;
pub mod configuration;
pub mod data;
pub mod database_audit;
pub mod dataset;
pub mod download;
pub mod error;
pub mod export;
pub mod export_board;
pub mod grant;
pub mod in_place;
pub mod journal;
pub mod list_files;
mod log_reader;
pub mod month;
pub mod moving;
pub mod node_info;
pub mod page_list;
pub mod prove;
mod publish_records;
pub mod receive;
pub mod receive_pages;
pub mod recovery;
pub mod recovery_check;
pub mod reference;
pub mod refusals;
pub mod retention;
pub mod rotation;
pub mod scrub;
pub mod sequencer;
pub mod sessions;
pub mod statistics;
mod store_errors;
pub mod tasks;
pub mod tier;
pub mod tokens;
pub mod topic;
mod tree;
pub mod updates;
pub mod upload;
pub mod users;
pub mod verifier;
pub mod verify_files;

pub use error::ServiceError;
