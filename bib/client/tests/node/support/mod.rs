//! A dataset service in memory on a Unix socket, as strict about what it is sent as the daemon, and as hostile about
//! what it answers as a test wants. It stands in for a node that lies, which no real daemon does; everything else is
//! tested against the daemon in `bib/cli/tests`.

mod client;
mod service;

pub(crate) use client::{client, files_of, folder, key, name, noise};
pub(crate) use service::{Node, Store, Twist};
