//! The daemon: configuration, composition root, use cases and the gRPC edge.
//!
//! Start reading at [`app`], which builds everything in order and hands it down; a call then goes
//! [`grpc::listen`] -> [`grpc::stack`] -> `grpc/<service>.rs` -> `services/<service>.rs` -> catalog, blobs, audit.
//! Nothing here contains SQL, and only [`grpc`] names `tonic::Status`.

#![cfg_attr(test, allow(clippy::unwrap_used))]

pub mod actor;
pub mod announce;
pub mod app;
pub mod at_rest;
pub mod backup;
pub mod cache_node;
pub mod certificates;
pub mod cleanup;
pub mod cli;
pub mod clock;
pub mod config;
pub mod data_dir;
pub mod doctor;
pub mod errors;
pub mod export;
pub mod failpoint;
pub mod foundation;
mod front;
pub mod grpc;
pub mod inheritance;
pub mod logging;
pub mod metrics;
pub mod own_secret;
pub mod pools;
pub mod ready;
pub use bibd_s3 as s3;
pub mod secrets;
pub mod services;
pub mod space;
pub mod supervisor;
