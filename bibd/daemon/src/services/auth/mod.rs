//! Who somebody is: the challenge and log-in with an SSH key, and recognising callers afterwards.
//!
//! Start reading at [`login`]; what a log-in gives is checked with every call by [`authenticate`].

pub mod authenticate;
pub(in crate::services) mod cache;
pub mod challenge;
pub mod login;
