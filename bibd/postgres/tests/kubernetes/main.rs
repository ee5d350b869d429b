//! PostgreSQL in Kubernetes without a cluster: the objects to the byte, what admission would say of them, the very
//! script of the pod run on this machine, the pod itself in Docker, and the provisioner over a double of the API with a
//! node behind it that runs the pod so, or a double of the operator.
#![allow(clippy::unwrap_used, clippy::print_stderr)]

mod api;
mod double;
mod faults;
mod instance;
mod kubelet;
mod life;
mod manifests;
mod node;
mod operated;
mod operator;
mod place;
mod pod;
mod restricted;
mod script;
mod server;
#[path = "../support/mod.rs"]
mod support;
