//! The Rust SDK of BIB: connect to a node, log in, call it, publish a folder, get it back, verify it.
//!
//! This room owns the client's end of the wire: which node is meant, whether it is believed, how a log-in is renewed,
//! and how bytes move. It asks no questions and prints nothing: what a person must decide comes in by [`Options`] and
//! the builders, what a person should hear goes out by [`Progress`] and [`Error`]. Formats are `bib-core`'s, keys and
//! trust are `bib-identity`'s.
//!
//! Start reading at [`Client`], then [`Publish`] and [`Download`].
//!
//! ```no_run
//! use std::sync::Arc;
//!
//! use bib_client::{Client, Options, Places, Publish, Silent, Target};
//!
//! # async fn example(options: Options, name: bib_core::name::DatasetName) -> bib_client::Result<()> {
//! let client = Client::connect(Target::local(&Places::default())?, options)?;
//! let published = Publish::new("data", name, "first version")
//!     .with_license("CC-BY-4.0")
//!     .run(&client, Arc::new(Silent))
//!     .await?;
//! println!("{} {}", published.dataset, published.version);
//! # Ok(())
//! # }
//! ```

#![cfg_attr(test, allow(clippy::unwrap_used))]

pub mod api;
pub mod attest;
pub mod error;
pub mod options;
pub mod progress;
pub mod target;

mod client;
mod connect;
mod download;
mod login;
mod pages;
mod paging;
mod proof;
mod publish;
mod verify;

pub use attest::Verdict;
pub use client::{Answers, Client};
pub use download::{Download, Downloaded};
pub use error::{Error, ErrorKind, Result};
pub use login::LoggedIn;
pub use options::{KeySource, Options, Random, TlsOptions};
pub use progress::{Notice, Phase, Progress, Silent};
pub use proof::{Proof, write_proof};
pub use publish::{Publish, Published};
pub use target::{Places, Target};
pub use verify::{Difference, Verified, Verify};

/// The messages of the API.
pub use bib_proto::v1 as pb;
