//! The formats of BIB: names, ids, hashes, content pages, layouts, statements, signed records.
//!
//! This room is pure. It does no input or output, is not async, reads no clock and draws no randomness: whoever
//! calls it passes those in. What is decided here to the byte is held by the golden files in `bib/core/golden/`
//! and described for strangers in `docs/formats.md`.
//!
//! Start reading at [`content`] (what a version contains) and [`record`] (what nodes say about it).

#![cfg_attr(test, allow(clippy::unwrap_used))]

pub mod access;
pub mod canonical;
pub mod chunk;
pub mod citation;
pub mod content;
pub mod fields;
pub mod fingerprint;
pub mod frame;
pub mod glass;
pub mod grant;
pub mod hash;
pub mod id;
pub mod layout;
mod lines;
pub mod metadata;
pub mod name;
pub mod path;
pub mod peer;
pub mod record;
pub mod signature;
pub mod statement;
pub mod text;
pub mod time;

pub use fingerprint::KeyFingerprint;
pub use hash::{Hash, Hasher};
pub use id::{DatasetId, Nonce, OperationId, SessionId, TopicId, UserId};
pub use peer::PeerId;
pub use time::Timestamp;
