//! What a verifier is fed: rows as they are stored, borrowed, and the few things it must be told by somebody trusted.

use bib_core::{PeerId, Timestamp};
use serde::Serialize;
use uuid::Uuid;

/// What does not come out of the database under suspicion.
#[derive(Debug, Clone, Default)]
pub struct TrustedInputs {
    /// The node's Ed25519 public key, from a place that the database's administrator does not write. Without it the
    /// verdict is never OK.
    pub public_key: Option<[u8; 32]>,
    /// The nodes that this one follows, as proved successions say ([`crate::succession`]).
    pub former: Vec<Former>,
    /// Checkpoint notes kept outside the database (the append-only file, a peer). Without one the verdict is never OK.
    pub external: Vec<String>,
    /// Checkpoint notes of the table `audit_checkpoint`. They are believed for their signatures alone.
    pub table: Vec<String>,
}

/// A node that kept the log before the present one, which is its proved successor.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct Former {
    /// Who it was.
    pub node: PeerId,
    /// Epochs before this one are its own.
    pub before: u64,
}

impl TrustedInputs {
    /// The key that signs for `epoch`.
    pub(super) fn key_of(&self, epoch: u64) -> Option<[u8; 32]> {
        let former = self.former.iter().filter(|former| epoch < former.before).min_by_key(|former| former.before);
        self.public_key.map(|key| former.map_or(key, |former| *former.node.public_key()))
    }
}

/// A row of `audit_seal`. Hashes are as stored, of whatever length they now have.
#[derive(Debug, Clone, Copy)]
pub struct SealRow<'a> {
    /// The epoch.
    pub epoch: u64,
    /// The sequence number.
    pub seq: u64,
    /// The entry's id.
    pub entry: Uuid,
    /// The stored digest.
    pub digest: &'a [u8],
    /// The stored head.
    pub head: &'a [u8],
}

/// A row of `audit_entry`: the body and the columns that copy its members.
#[derive(Debug, Clone, Copy)]
pub struct EntryRow<'a> {
    /// The id.
    pub id: Uuid,
    /// The time.
    pub time: Timestamp,
    /// The node's peer id.
    pub node: &'a str,
    /// Who.
    pub actor: &'a str,
    /// By which door.
    pub via: &'a str,
    /// What.
    pub action: &'a str,
    /// To what.
    pub target: &'a str,
    /// How it ended.
    pub result: &'a str,
    /// The operation.
    pub operation: Uuid,
    /// The job.
    pub job: Option<Uuid>,
    /// The body, verbatim.
    pub body: &'a [u8],
}

/// A row of `audit_detail`.
#[derive(Debug, Clone, Copy)]
pub struct DetailRow<'a> {
    /// The salt.
    pub salt: &'a [u8],
    /// Canonical JSON.
    pub details: &'a [u8],
}

/// A seal, and what a left join finds for it. `ORDER BY epoch, seq`.
#[derive(Debug, Clone, Copy)]
pub struct Row<'a> {
    /// The seal.
    pub seal: SealRow<'a>,
    /// The entry that the seal names.
    pub entry: Option<EntryRow<'a>>,
    /// The entry's details.
    pub detail: Option<DetailRow<'a>>,
}
