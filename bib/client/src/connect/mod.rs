//! Getting a channel to a node: the Unix socket, or TLS held against what is trusted.
//!
//! [`link`] is one channel with the credentials it was made for; [`connector`] opens the streams below it, again with
//! back-off whenever one breaks.

mod connector;
mod failure;
mod link;

pub(crate) use failure::ConnectFailure;
pub(crate) use link::{Link, token_file_error};

/// The header that names a call in the logs of both ends.
pub(crate) const REQUEST_ID: &str = "x-request-id";
