//! One file per noun and verb. A command parses, calls, prints; it holds no rules of its own.

pub(crate) mod admin;
pub(crate) mod cert;
pub(crate) mod completions;
pub(crate) mod config;
pub(crate) mod connect;
pub(crate) mod dataset;
pub(crate) mod done;
pub(crate) mod login;
pub(crate) mod setup;
pub(crate) mod status;
pub(crate) mod token;
pub(crate) mod topic;
pub(crate) mod trust;
pub(crate) mod user;
pub(crate) mod version;
