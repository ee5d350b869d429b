//! PostgreSQL in Kubernetes without a cluster: the objects to the byte, what admission would say of them, the very
//! script of the pod run on this machine, and the pod itself in Docker.
#![allow(clippy::unwrap_used, clippy::print_stderr)]

mod api;
mod manifests;
mod pod;
mod restricted;
mod script;
mod server;
#[path = "../support/mod.rs"]
mod support;
