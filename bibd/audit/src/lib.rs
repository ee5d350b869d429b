//! The audit log's pure core: entries, the hash chain, the Merkle tree, signed checkpoints, and their verification.
//!
//! This room owns what the bytes of the log mean. It contains no SQL (that is `bibd-catalog`), runs no task (the
//! sequencer's loop is the daemon's), reads no clock and draws no randomness. The one thing it does to a disk is the
//! append-only checkpoint file. The log is tamper-evident, never tamper-proof: a superuser can rewrite any table, and
//! then verification says so, as far as a checkpoint kept elsewhere lets it.
//!
//! Start reading at [`entry`] (what an act leaves behind), then [`chain`] (how it is sealed) and [`verify`] (how a
//! log is judged). `docs/formats.md`, section "Audit", says the same to a stranger; `python/verify_log.py` is a second
//! verifier that shares no code with this one.

#![cfg_attr(test, allow(clippy::unwrap_used))]

pub mod action;
pub mod alert;
pub mod body;
pub mod chain;
pub mod checkpoint;
pub mod checkpoint_file;
pub mod detach;
pub mod entry;
pub mod event;
pub mod export;
pub mod merkle;
pub mod note;
pub mod proof;
pub mod siem;
pub mod succession;
pub mod verify;

pub use action::{Actor, Outcome, Via, is_sensitive};
pub use body::EntryView;
pub use chain::{ChainState, Seal};
pub use checkpoint::{Checkpoint, Origin};
pub use checkpoint_file::CheckpointFile;
pub use entry::{Detail, Entry, EntryDraft, StatementNote};
pub use verify::{DetailRow, EntryRow, Former, Row, SealRow, Tamper, TamperClass, TrustedInputs, Verdict, Verifier};
