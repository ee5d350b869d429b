//! Whom a client trusts: one pin for each node, taken at first use or by hand.
//!
//! A pin is the node's peer id and the SHA-256 of its CA's public key. Host names are not part of it: a node is
//! reached by many. [`store`] keeps the pins, [`verifier`] holds a TLS server against one.

pub mod store;
pub mod verifier;

pub use store::{Pin, StoreError, TrustStore};
pub use verifier::{Expectation, FirstUse, How, Presented, ServerVerifier, TrustError, client_config, server_name};
