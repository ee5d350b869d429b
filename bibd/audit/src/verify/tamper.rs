//! What a verification may find.

use std::fmt;

use bib_core::Hash;
use serde::Serialize;

use super::input::Former;
use crate::detach::Run;

/// A place in the log. Ordered as the log is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub struct Position {
    /// The epoch.
    pub epoch: u64,
    /// The sequence number.
    pub seq: u64,
}

impl fmt::Display for Position {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.epoch, self.seq)
    }
}

macro_rules! tamper_classes {
    ($($(#[$doc:meta])* $name:ident = $text:literal,)*) => {
        /// The kinds of tamper. The list is closed and the names in text are stable; the Python verifier uses the same.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
        pub enum TamperClass {
            $($(#[$doc])* $name,)*
        }

        impl TamperClass {
            /// Every class.
            pub const ALL: &[Self] = &[$(Self::$name),*];

            /// The stable name.
            #[must_use]
            pub const fn as_str(self) -> &'static str {
                match self { $(Self::$name => $text,)* }
            }
        }
    };
}

tamper_classes! {
    /// A body is not what was sealed; digest and head are.
    BodyChanged = "body-changed",
    /// The stored digest alone is wrong.
    DigestChanged = "digest-changed",
    /// The stored head alone is wrong.
    HeadChanged = "head-changed",
    /// The stored head does not follow from the one before, and the chain goes on from it: a row before it was taken
    /// out, or its entry replaced together with the digest.
    ChainBroken = "chain-broken",
    /// A column that copies a member of the body says something else.
    ColumnDiffers = "column-differs",
    /// Sequence numbers are missing.
    SequenceGap = "sequence-gap",
    /// A sequence number stands twice.
    SequenceDuplicate = "sequence-duplicate",
    /// Two rows, or two references to entries, have changed places.
    RowsSwapped = "rows-swapped",
    /// A row stands between two that follow from each other.
    RowInserted = "row-inserted",
    /// A seal's entry is gone.
    EntryMissing = "entry-missing",
    /// The entries of several seals in a row are gone: deleted, or a partition detached.
    PartitionMissing = "partition-missing",
    /// An entry names a format, and so a hash, that is not this one's.
    FormatUnknown = "format-unknown",
    /// A sealed body is not an entry.
    EntryMalformed = "entry-malformed",
    /// Details are gone without a sealed erasure.
    DetailMissing = "detail-missing",
    /// Details are not those whose hash the entry has.
    DetailChanged = "detail-changed",
    /// The first entry of an epoch does not name the last head before it.
    EpochLinkBroken = "epoch-link-broken",
    /// An epoch that a checkpoint or an epoch's first entry names is gone.
    EpochMissing = "epoch-missing",
    /// The chain is whole but is not the one that a checkpoint signed.
    Rechained = "re-chained",
    /// A checkpoint signed more entries than there are.
    TailTruncated = "tail-truncated",
    /// As before, and the checkpoints in the table end there too: the database is an older one.
    RolledBack = "rolled-back",
    /// Checkpoints signed entries and there are none.
    LogTruncated = "log-truncated",
    /// A checkpoint is not one of ours or not signed by the key.
    CheckpointInvalid = "checkpoint-invalid",
    /// A checkpoint stands in one of the two places only.
    CheckpointMissing = "checkpoint-missing",
    /// An entry is neither sealed nor waiting for it.
    EntryUnsealed = "entry-unsealed",
    /// An entry waits for its seal and is gone.
    QueuedEntryMissing = "queued-entry-missing",
}

impl TamperClass {
    /// Whether the end of the log, or of an epoch, is gone.
    pub(super) const fn is_cut(self) -> bool {
        matches!(self, Self::TailTruncated | Self::RolledBack | Self::LogTruncated | Self::EpochMissing)
    }
}

impl fmt::Display for TamperClass {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl Serialize for TamperClass {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.as_str())
    }
}

/// A tamper: where it begins, of which kind, and a sentence for a person.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Tamper {
    /// The first place that is not what it was. For `re-chained` the first that no checkpoint vouches for.
    pub first_bad: Position,
    /// The kind.
    pub class: TamperClass,
    /// A sentence.
    pub explanation: String,
}

/// Entries that checkpoints signed and a declared restore left behind.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct Lost {
    /// The first of them.
    pub first: Position,
    /// The highest sequence number that a checkpoint signed.
    pub last_seq: u64,
}

/// A log that is what it was.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Verified {
    /// How many entries were verified, over all epochs.
    pub entries: u64,
    /// The last place.
    pub last: Position,
    /// The head there.
    pub head: Hash,
    /// The newest external checkpoint, which this log agrees with.
    pub checkpoint: Position,
    /// Entries after that checkpoint: linked to it by an unkeyed chain, vouched for by the next checkpoint only.
    pub after_checkpoint: u64,
    /// Entries whose details were erased, each by a sealed `audit.erase`.
    pub erased: u64,
    /// Entries that wait for their seal.
    pub unsealed: u64,
    /// What a restore left behind, by the word of the next epoch's first entry.
    pub lost: Vec<Lost>,
    /// Entries that left the log with their months, by the node's signature. Their seals are among `entries`.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub detached: Vec<Run>,
    /// The nodes that signed for earlier epochs, each followed by the next one as a succession proves.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub former: Vec<Former>,
}

/// Why a log that shows no tamper is not OK either.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Doubt {
    /// No public key was given.
    NoKey,
    /// No checkpoint kept outside the database was given.
    NoCheckpoint,
}

/// The verdict. `Unverified` is not a lesser OK: cut tails, re-chaining and rollback cannot be seen without key and
/// checkpoint.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(tag = "verdict", rename_all = "UPPERCASE")]
pub enum Verdict {
    /// Everything agrees, key and external checkpoint included.
    Ok(Verified),
    /// Something was changed.
    Tampered(Tamper),
    /// No change is visible, and nothing trusted was there to compare with.
    Unverified {
        /// What was missing.
        reason: Doubt,
        /// How many entries hang together.
        entries: u64,
    },
}
