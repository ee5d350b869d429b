//! How far a long act is: what the library tells and a program draws.

use std::fmt;

/// The parts of a publish, download or verification, in the order in which they begin.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Phase {
    /// Looking through the folder. Counts entries.
    Walk,
    /// Reading, cutting and hashing files. Counts bytes.
    Read,
    /// Sending chunks that the node lacks. Counts bytes.
    Send,
    /// Describing the version: pages, statement, signature. Counts pages.
    Describe,
    /// Waiting for the node to make the version visible.
    Commit,
    /// Receiving chunks. Counts bytes.
    Receive,
    /// Checking files against their hashes. Counts bytes.
    Verify,
}

impl Phase {
    /// Whether [`Progress::advance`] counts bytes in this phase; else it counts things.
    #[must_use]
    pub const fn counts_bytes(self) -> bool {
        matches!(self, Self::Read | Self::Send | Self::Receive | Self::Verify)
    }
}

impl fmt::Display for Phase {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Walk => "looking",
            Self::Read => "reading",
            Self::Send => "sending",
            Self::Describe => "describing",
            Self::Commit => "committing",
            Self::Receive => "receiving",
            Self::Verify => "verifying",
        })
    }
}

/// Something worth saying that is no failure.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum Notice {
    /// Sockets, devices and pipes have no place in a dataset and were left out.
    Skipped {
        /// Path inside the folder.
        path: String,
        /// "socket", "device" or "pipe".
        what: &'static str,
    },
    /// Paths that some file systems cannot hold side by side: equal under NFC and case folding.
    Twins {
        /// One path.
        first: String,
        /// The other.
        second: String,
    },
    /// An entry of the version was not restored.
    LeftOut {
        /// Path inside the target.
        path: String,
        /// Why.
        reason: String,
    },
    /// A file changed while it was read; `allow_changing` took what was read.
    Changed {
        /// Path inside the folder.
        path: String,
    },
    /// A file of metadata could not be used.
    MetadataIgnored {
        /// Path inside the folder.
        path: String,
        /// Why.
        reason: String,
    },
    /// A signing key was made and registered.
    KeyMade {
        /// Where it lies.
        path: std::path::PathBuf,
        /// Its fingerprint.
        fingerprint: String,
    },
    /// An earlier, interrupted upload goes on.
    Resumed,
    /// Chunks went away on the node in between and are sent once more.
    SentAgain {
        /// How many.
        chunks: usize,
    },
    /// The latest version moved; publishing on top of it.
    Rebased {
        /// The new parent.
        parent: String,
    },
}

impl fmt::Display for Notice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Skipped { path, what } => write!(f, "`{path}` is a {what} and is left out"),
            Self::Twins { first, second } => {
                write!(f, "`{first}` and `{second}` cannot lie side by side on every file system")
            }
            Self::LeftOut { path, reason } => write!(f, "`{path}` is left out: {reason}"),
            Self::Changed { path } => write!(f, "`{path}` changed while it was read"),
            Self::MetadataIgnored { path, reason } => write!(f, "`{path}` is not used as metadata: {reason}"),
            Self::KeyMade { path, fingerprint } => {
                write!(f, "made the signing key {fingerprint} at `{}` and registered it", path.display())
            }
            Self::Resumed => f.write_str("going on with an interrupted upload"),
            Self::SentAgain { chunks } => write!(f, "{chunks} chunks are sent once more"),
            Self::Rebased { parent } => write!(f, "publishing on top of {parent}"),
        }
    }
}

/// Watches a long act. Called from several threads, often: an implementation must be quick and must not block.
pub trait Progress: Send + Sync {
    /// A phase begins, or its total becomes known. Phases overlap: sending begins while reading goes on.
    fn total(&self, phase: Phase, total: Option<u64>);

    /// So much more of a phase is done.
    fn advance(&self, phase: Phase, by: u64);

    /// Something worth saying happened.
    fn notice(&self, notice: Notice);
}

/// Watches nothing.
#[derive(Debug, Clone, Copy, Default)]
pub struct Silent;

impl Progress for Silent {
    fn total(&self, _: Phase, _: Option<u64>) {}
    fn advance(&self, _: Phase, _: u64) {}
    fn notice(&self, _: Notice) {}
}
