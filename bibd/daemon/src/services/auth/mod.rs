//! Who somebody is: the challenge and log-in with an SSH key, and recognising callers afterwards.

pub mod authenticate;
pub(in crate::services) mod cache;
