//! Why a backup cannot be made, read or restored.

use std::path::{Path, PathBuf};

use bib_core::{PeerId, Timestamp};
use bib_identity::file::FileError;
use bib_identity::recovery::RecoveryError;
use bib_identity::sealed::SealError;

use super::store::said_by_store;
use crate::errors::ErrorCode;
use crate::s3::{KeyError, OpenError, S3Error};

/// What opens backups.
const KEY: &str = "it is the file of `bib admin recovery export --out`, or identity/node_key of the node";

/// Why a backup cannot be made, read or restored.
#[derive(Debug, thiserror::Error)]
pub enum BackupError {
    /// There is no `backup.store`.
    #[error("this node has no store for backups")]
    NoStore,
    /// A backup that only the node could open would die with it.
    #[error("there is no recovery key, and a backup that only this node can open dies with it")]
    NoRecoveryKey,
    /// Another backup or verification runs.
    #[error("another backup or verification is running")]
    Busy,
    /// No such backup.
    #[error("there is no backup `{0}`")]
    NotFound(String),
    /// The store has no backup that would do.
    #[error("the store `{store}` has no backup {wanted}")]
    NothingFits {
        /// The store.
        store: PathBuf,
        /// What was wanted.
        wanted: String,
    },
    /// Only a physical backup leads to a moment, or as far as the log goes.
    #[error("the store `{store}` has no backup that the log continues{when}, only logical dumps")]
    OnlyDumps {
        /// The store.
        store: PathBuf,
        /// ` from before TIME`, or nothing.
        when: String,
        /// The newest dump that would do.
        dump: String,
    },
    /// A dump is read by its own version of PostgreSQL and later ones.
    #[error("the dump is of PostgreSQL {dump}, and the one here is {here}")]
    OlderPostgres {
        /// The dump's major version.
        dump: u32,
        /// What is here.
        here: bibd_postgres::Version,
    },
    /// An object is not what its signed description says.
    #[error("`{object}` is damaged: {problem}")]
    Damaged {
        /// Which.
        object: String,
        /// What is wrong.
        problem: String,
    },
    /// Signed by somebody else, or not at all.
    #[error("`{object}` is not signed by node {node}")]
    NotSigned {
        /// Which.
        object: String,
        /// Who should have.
        node: PeerId,
    },
    /// The archived log has a hole before the wanted moment.
    #[error("the archived log ends at {reachable}{}", .missing.as_ref().map(|name| format!(": `{name}` is missing")).unwrap_or_default())]
    NotReachable {
        /// The last moment that can be restored.
        reachable: Timestamp,
        /// The first missing segment, when later ones are there.
        missing: Option<String>,
    },
    /// The key cannot open it.
    #[error("open `{object}`")]
    Sealed {
        /// Which.
        object: String,
        /// Why not.
        #[source]
        source: SealError,
    },
    /// The file given with `--identity` cannot be read.
    #[error("read the key")]
    Key(#[source] FileError),
    /// The file given with `--identity` is something else.
    #[error("`{path}` is neither a recovery sheet nor a node key")]
    Identity {
        /// The file.
        path: PathBuf,
        /// What is wrong with the sheet, when it looks like one.
        #[source]
        source: Option<RecoveryError>,
    },
    /// A successor is for a node whose identity is gone.
    #[error("the identity of node {node} is not lost: its key is `{path}`")]
    IdentityNotLost {
        /// The node.
        node: PeerId,
        /// The key.
        path: PathBuf,
    },
    /// The sheet opens the backup, and its Ed25519 key is not the one that names a successor.
    #[error(
        "the record of node {node} does not name the Ed25519 key of this sheet, so the sheet cannot name a successor"
    )]
    OtherSheet {
        /// The node.
        node: PeerId,
    },
    /// Somebody follows the node already.
    #[error("node {node} has a successor already: {by}")]
    Succeeded {
        /// The node.
        node: PeerId,
        /// Its successor.
        by: PeerId,
        /// Where the store says so.
        place: PathBuf,
    },
    /// There is something where the node should be restored to.
    #[error("`{0}` is not empty: a restore never writes over what is there")]
    NotEmpty(PathBuf),
    /// PostgreSQL.
    #[error(transparent)]
    Postgres(#[from] bibd_postgres::Error),
    /// The restored node is not what the backup says.
    #[error("what was restored is not what the backup says: {0}")]
    Differs(String),
    /// A file of the store or of the node.
    #[error("{act} `{path}`")]
    Io {
        /// What was tried.
        act: &'static str,
        /// On what.
        path: PathBuf,
        /// Why not.
        #[source]
        source: std::io::Error,
    },
    /// A store on a network.
    #[error(transparent)]
    S3(#[from] S3Error),
    /// The settings of such a store.
    #[error(transparent)]
    Open(#[from] OpenError),
    /// What should be credentials of such a store.
    #[error("these are no credentials of a store")]
    Credentials(#[from] KeyError),
    /// The file given with `--s3-credentials` cannot be read.
    #[error("read the credentials")]
    CredentialsFile(#[source] FileError),
    /// The node's store needs none.
    #[error("this node's store is no bucket with sealed credentials")]
    NoCredentialsWanted,
    /// A part of the daemon that the restore needs.
    #[error("look into the restored database")]
    Examine(#[source] Box<dyn std::error::Error + Send + Sync>),
    /// A thread panicked.
    #[error("something broke; the log has it")]
    Broken,
}

impl BackupError {
    /// An [`BackupError::Io`] maker.
    pub fn io(act: &'static str, path: &Path) -> impl FnOnce(std::io::Error) -> Self {
        let path = path.to_owned();
        move |source| Self::of_io(act, path, source)
    }

    /// What happened to a file, or to an object of a store on a network that was written or read like one.
    pub fn of_io(act: &'static str, path: PathBuf, source: std::io::Error) -> Self {
        said_by_store(&source).map_or(Self::Io { act, path, source }, Self::S3)
    }

    /// What is wrong with an object whose bytes could not be understood, unless it was the store that failed.
    pub fn damaged(object: &str, error: &std::io::Error) -> Self {
        let damaged = || Self::Damaged { object: object.to_owned(), problem: error.to_string() };
        said_by_store(error).map_or_else(damaged, Self::S3)
    }

    /// The stable code.
    #[must_use]
    pub fn code(&self) -> ErrorCode {
        match self {
            Self::NoStore
            | Self::NoRecoveryKey
            | Self::NotReachable { .. }
            | Self::NotEmpty(_)
            | Self::IdentityNotLost { .. }
            | Self::OtherSheet { .. }
            | Self::Succeeded { .. }
            | Self::OlderPostgres { .. }
            | Self::NoCredentialsWanted => ErrorCode::UNMET_CONDITION,
            Self::Credentials(_) => ErrorCode::INVALID,
            Self::Busy => ErrorCode::BUSY,
            Self::NotFound(_) | Self::NothingFits { .. } | Self::OnlyDumps { .. } => ErrorCode::NOT_FOUND,
            Self::Damaged { .. } | Self::NotSigned { .. } | Self::Differs(_) => ErrorCode::INTEGRITY,
            Self::Sealed { .. } | Self::Key(_) | Self::Identity { .. } => ErrorCode::IDENTITY_UNUSABLE,
            Self::Postgres(_) | Self::Io { .. } | Self::S3(_) | Self::Open(_) | Self::CredentialsFile(_) => {
                ErrorCode::BACKUP_FAILED
            }
            Self::Examine(_) | Self::Broken => ErrorCode::INTERNAL,
        }
    }

    /// What a person can do about it.
    #[must_use]
    pub fn hint(&self) -> String {
        match self {
            Self::NoStore => {
                "set `backup.store` to a directory on another disk or a bucket, and start bibd again".to_owned()
            }
            Self::NoRecoveryKey => {
                "make one and keep its sheet away from the node: bib admin recovery export".to_owned()
            }
            Self::Busy => "try again when it is done".to_owned(),
            Self::NotFound(_) => "`bib admin backup list` shows what there is".to_owned(),
            Self::NothingFits { .. } => "look for another store, or choose another time".to_owned(),
            Self::OnlyDumps { dump, .. } => format!("restore a dump as it is, without --time: --backup {dump}"),
            Self::OlderPostgres { dump, .. } => {
                format!("install PostgreSQL {dump} or later, or name its programs with `database.bin_dir`")
            }
            Self::Damaged { .. } | Self::NotSigned { .. } => {
                "restore another backup: `bib admin backup list` shows what there is".to_owned()
            }
            // Also after an upgrade to another major version, until the first backup of what it made.
            Self::NotReachable { reachable, .. } => format!("restore to that moment: --time {reachable}"),
            Self::Sealed { source, .. } => {
                source.hint().unwrap_or("give the recovery sheet: --identity FILE").to_owned()
            }
            Self::Key(FileError::TooOpen { path, .. }) | Self::CredentialsFile(FileError::TooOpen { path, .. }) => {
                format!("chmod 600 {}", path.display())
            }
            Self::Key(_) => KEY.to_owned(),
            Self::Identity { source, .. } => source.as_ref().and_then(RecoveryError::hint).unwrap_or(KEY).to_owned(),
            Self::IdentityNotLost { .. } => {
                "restore without --new-identity to go on as the same node; if its key was stolen, move that data directory \
                 away first and give the recovery sheet: --identity FILE"
                    .to_owned()
            }
            Self::OtherSheet { .. } => {
                "find the newest sheet: `bib admin recovery export --replace` made another one after this".to_owned()
            }
            Self::Succeeded { place, .. } => format!(
                "restore the successor from its own backups with its own sheet; if it never served anybody and its \
                 directory is gone, remove `{}` from the store and run this again",
                place.display()
            ),
            Self::NotEmpty(_) => "name a directory that does not exist yet: --to DIR".to_owned(),
            Self::Postgres(error) => error.hint().unwrap_or_else(|| "the log says more".to_owned()),
            Self::Differs(_) => "restore another backup, and keep this one for whoever looks for the cause".to_owned(),
            Self::Io { source, .. } if source.raw_os_error() == Some(rustix::io::Errno::NOSPC.raw_os_error()) => {
                "make room there: `bib admin backup delete` removes an old backup and the log that only it needs"
                    .to_owned()
            }
            Self::Io { .. } => "see that the directory is there, mounted and writable".to_owned(),
            Self::S3(error) => error.problem.hint().to_owned(),
            Self::Open(_) => "correct it in the configuration".to_owned(),
            Self::Credentials(_) | Self::CredentialsFile(_) => {
                "give two lines, aws_access_key_id=… and aws_secret_access_key=…, as in ~/.aws/credentials".to_owned()
            }
            Self::NoCredentialsWanted => {
                "set `backup.store` to s3://bucket/prefix, without `backup.s3.credentials_file`, and start bibd again"
                    .to_owned()
            }
            Self::Examine(_) | Self::Broken => "the daemon's log has the cause".to_owned(),
        }
    }
}
