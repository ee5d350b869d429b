//! Backups: what is in a store, how it is sealed, signed and checked, and how a node is made of it again.
//!
//! A store is a directory, or a part of a bucket, with one part for each node, by its peer id:
//!
//! ```text
//! base/<id>/state.tar.zst.age   identity, certificates, secrets, configuration, checkpoints, archives of the audit log
//! base/<id>/base.tar.zst.age    what pg_basebackup gave
//! base/<id>/manifest            signed; written last: without it there is no backup
//! base/<id>/verified            signed; when it was last restored beside the node, and what was found
//! dump/<id>/...                 a logical dump: the same, with dump.zst.age, which pg_dump gave, in the place of the base
//! wal/<epoch>/<name>            a signed head and a sealed piece of the write-ahead log
//! epoch/<n>                     taken by a restore, so that no two restores have one epoch
//! succession/<peer id>          who follows the node, so that it gets one successor
//! ```
//!
//! The two kinds lie apart so that nothing that concerns the log, above all its deletion, ever meets a dump: a dump is the
//! beginning of no log.
//!
//! Nothing here serves a call: the use cases are in `services/backup.rs`, the command `bibd restore` in `cli.rs`. Start
//! reading at [`document`] and [`dump`], then [`restore`].

pub mod checkpoints;
pub mod document;
pub mod dump;
pub mod error;
pub mod landing;
mod loading;
pub mod log;
pub mod pack;
pub mod restore;
pub mod state;
pub mod store;
pub mod successor;

pub use document::{Manifest, Object};
pub use dump::{Dump, Made};
pub use error::BackupError;
pub use store::Store;

/// What a backup has of the database.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Its files: where the archived log begins.
    Physical,
    /// Its rows, for every PostgreSQL of the same or a later major version.
    Logical,
}

impl Kind {
    /// Both.
    pub const ALL: [Self; 2] = [Self::Physical, Self::Logical];

    /// As people and programs read it.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Physical => "physical",
            Self::Logical => "logical",
        }
    }

    /// Where in the store they lie.
    #[must_use]
    pub fn family(self) -> &'static str {
        match self {
            Self::Physical => "base",
            Self::Logical => "dump",
        }
    }

    fn key(self, id: &str, name: &str) -> String {
        format!("{}/{id}/{name}", self.family())
    }

    /// The object that makes a backup exist.
    #[must_use]
    pub fn manifest_key(self, id: &str) -> String {
        self.key(id, "manifest")
    }

    /// That it was verified.
    #[must_use]
    pub fn verified_key(self, id: &str) -> String {
        self.key(id, "verified")
    }

    /// What of the data directory is in a backup.
    #[must_use]
    pub fn state_key(self, id: &str) -> String {
        self.key(id, "state.tar.zst.age")
    }

    /// The database.
    #[must_use]
    pub fn database_key(self, id: &str) -> String {
        match self {
            Self::Physical => self.key(id, "base.tar.zst.age"),
            Self::Logical => self.key(id, "dump.zst.age"),
        }
    }

    /// Names of backups of this kind, oldest first, and whether each is complete. Names begin with their time.
    ///
    /// # Errors
    /// When the store cannot be read.
    pub fn names(self, store: &Store) -> Result<Vec<(String, bool)>, BackupError> {
        let names = store.list(&format!("{}/", self.family()))?.into_iter().filter(|name| document::is_id(name));
        names.map(|name| store.has(&self.manifest_key(&name)).map(|is_complete| (name, is_complete))).collect()
    }
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
