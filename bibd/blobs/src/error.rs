//! What can go wrong, one variant per thing that a caller treats differently.

use std::fmt;
use std::io;
use std::path::PathBuf;

use bib_core::Hash;

use crate::chunk::MAX_CHUNK_BYTES;

/// Why a store does not open.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// Another version of BIB wrote this directory, or something else did.
    #[error("`{path}` says `{found}`: this program reads only `{expected}`")]
    Format {
        /// The FORMAT file.
        path: PathBuf,
        /// Its first 80 characters.
        found: String,
        /// What this program writes.
        expected: &'static str,
    },
    /// There are chunks but no FORMAT file: not ours to touch.
    #[error("`{path}` has a `blobs` directory but no FORMAT file")]
    FormatMissing {
        /// The store's root.
        path: PathBuf,
    },
    /// Another process has the store open.
    #[error("the blob store `{path}` is in use by another process")]
    Locked {
        /// The store's root.
        path: PathBuf,
    },
    /// The file system refused.
    #[error("{act} `{path}`")]
    Io {
        /// What was tried.
        act: &'static str,
        /// On which path.
        path: PathBuf,
        /// Why it failed.
        source: io::Error,
    },
}

/// Why something was not stored, moved or removed. Nothing is acknowledged by an error; chunks of the same call may
/// be stored, and are found again when the call is repeated.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// The bytes are not what the sender says.
    #[error("the bytes sent for chunk {hash} have another hash")]
    HashMismatch {
        /// The claimed hash.
        hash: Hash,
    },
    /// A chunk has 1 byte to 4 MiB.
    #[error("chunk {hash} has {bytes} bytes: 1 to {MAX_CHUNK_BYTES} are allowed")]
    Size {
        /// The claimed hash.
        hash: Hash,
        /// The claimed raw length.
        bytes: u64,
    },
    /// A frame does not decode to the length it states.
    #[error("a frame of chunk {hash} does not decode to its stated length")]
    Frame {
        /// The claimed hash.
        hash: Hash,
    },
    /// The disk or the quota is full. Reads go on, and so do writes once there is room.
    #[error("no space left for `{path}`")]
    NoSpace {
        /// What was being written.
        path: PathBuf,
    },
    /// A write-back failed earlier (or the file system turned read-only): the store takes no more writes until it
    /// is opened anew, because what the kernel still promises about earlier writes is unknown.
    #[error("the blob store is read-only: {reason}")]
    ReadOnly {
        /// The first failure.
        reason: String,
    },
    /// The file system refused.
    #[error("{act} `{path}`")]
    Io {
        /// What was tried.
        act: &'static str,
        /// On which path.
        path: PathBuf,
        /// Why it failed.
        source: io::Error,
    },
    /// The runtime is shutting down.
    #[error("the blob store is stopping")]
    Stopping,
}

/// How a stored chunk differs from what was put.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Damage {
    /// The file is shorter or longer than it was written.
    Length {
        /// Bytes as recorded.
        expected: u64,
        /// Bytes found.
        found: u64,
    },
    /// Right length, wrong bytes.
    Contents,
}

impl fmt::Display for Damage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Length { expected, found } => write!(f, "{found} bytes instead of {expected}"),
            Self::Contents => f.write_str("its bytes have another hash"),
        }
    }
}

/// Why a chunk could not be read.
#[derive(Debug, thiserror::Error)]
pub enum ReadError {
    /// No such file.
    #[error("chunk {hash} is missing")]
    Missing {
        /// The chunk.
        hash: Hash,
    },
    /// The stored file is damaged. It was moved to `quarantine/`, unless `quarantined` says that this failed too
    /// (a read-only disk) or the bytes lie in place, where nothing is ever moved.
    #[error("chunk {hash} is corrupt: {damage}")]
    Corrupt {
        /// The chunk.
        hash: Hash,
        /// In which way.
        damage: Damage,
        /// Whether the file is out of the way, so that a put can heal the chunk.
        quarantined: bool,
    },
    /// A file published in place was edited, replaced or removed.
    #[error("`{path}`, which holds chunk {hash}, changed since it was published: {what}")]
    Changed {
        /// The chunk.
        hash: Hash,
        /// The published file.
        path: PathBuf,
        /// What differs: `device`, `inode`, `size`, `mtime`, `ctime` or `removed`.
        what: &'static str,
    },
    /// The bytes are whole, but the caller's idea of their length is not.
    #[error("chunk {hash} has {found} bytes, not {stated}")]
    RawLength {
        /// The chunk.
        hash: Hash,
        /// The caller's figure.
        stated: u32,
        /// The true one.
        found: u32,
    },
    /// The file system refused.
    #[error("{act} `{path}`")]
    Io {
        /// What was tried.
        act: &'static str,
        /// On which path.
        path: PathBuf,
        /// Why it failed.
        source: io::Error,
    },
    /// The runtime is shutting down.
    #[error("the blob store is stopping")]
    Stopping,
}
