//! Backups: what is in a store, how it is sealed, signed and checked, and how a node is made of it again.
//!
//! A store is a directory, or a part of a bucket, with one part for each node, by its peer id:
//!
//! ```text
//! base/<id>/state.tar.zst.age   identity, certificates, secrets, configuration, checkpoints, archives of the audit log
//! base/<id>/base.tar.zst.age    what pg_basebackup gave
//! base/<id>/manifest            signed; written last: without it there is no backup
//! base/<id>/verified            signed; when it was last restored beside the node, and what was found
//! wal/<epoch>/<name>            a signed head and a sealed piece of the write-ahead log
//! epoch/<n>                     taken by a restore, so that no two restores have one epoch
//! succession/<peer id>          who follows the node, so that it gets one successor
//! ```
//!
//! Nothing here serves a call: the use cases are in `services/backup.rs`, the command `bibd restore` in `cli.rs`. Start
//! reading at [`document`], then [`restore`].

pub mod checkpoints;
pub mod document;
pub mod error;
pub mod landing;
pub mod log;
pub mod pack;
pub mod restore;
pub mod state;
pub mod store;
pub mod successor;

pub use document::{Manifest, Object};
pub use error::BackupError;
pub use store::Store;

/// The object that makes a backup exist.
#[must_use]
pub fn manifest_key(id: &str) -> String {
    format!("base/{id}/manifest")
}

/// That it was verified.
#[must_use]
pub fn verified_key(id: &str) -> String {
    format!("base/{id}/verified")
}

/// What of the data directory is in a backup.
#[must_use]
pub fn state_key(id: &str) -> String {
    format!("base/{id}/state.tar.zst.age")
}

/// The database.
#[must_use]
pub fn base_key(id: &str) -> String {
    format!("base/{id}/base.tar.zst.age")
}

/// Runs what blocks where it may.
///
/// # Errors
/// What `work` returns; [`BackupError::Broken`] when it panicked.
pub async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, BackupError> + Send + 'static,
) -> Result<T, BackupError> {
    tokio::task::spawn_blocking(work).await.map_err(|_| BackupError::Broken)?
}
