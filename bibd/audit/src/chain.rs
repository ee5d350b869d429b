//! The hash chain: the place of each entry, given by the one sequencer when it seals.
//!
//! Numbers are never taken from a SEQUENCE (rolled-back transactions would leave gaps, which are alarms here) and
//! order is never inferred from ids or times. [`ChainState`] is stored with the newest seal, in its transaction.

use bib_core::canonical::{self, CanonicalError};
use bib_core::{Hash, Hasher};
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::merkle::{CompactRange, leaf_hash};

/// The head before the first entry of an epoch.
pub const HEAD_0: Hash = Hash::from_bytes([0; 32]);

/// Why stored bytes are not the state of a chain.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ChainError {
    /// Not canonical JSON.
    #[error(transparent)]
    Canonical(#[from] CanonicalError),
    /// A member is missing, or of the wrong type.
    #[error("not a chain state: {0}")]
    Malformed(String),
    /// The compact range does not fit the size.
    #[error("a compact range of {nodes} nodes does not fit {seq} entries")]
    Range {
        /// The number of entries.
        seq: u64,
        /// The number of nodes found.
        nodes: usize,
    },
    /// The next epoch is not greater.
    #[error("epoch {next} does not follow epoch {now}")]
    Epoch {
        /// The epoch of this state.
        now: u64,
        /// The epoch asked for.
        next: u64,
    },
}

/// Where a chain stands: all that sealing the next entry needs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ChainState {
    /// The node's epoch.
    pub epoch: u64,
    /// The number of the last sealed entry; 0 before the first.
    pub seq: u64,
    /// `head_seq`.
    pub head: Hash,
    /// The Merkle tree over the digests 1 to `seq`.
    pub compact: CompactRange,
}

/// The place of one entry: a row of `audit_seal`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Seal {
    /// The epoch.
    pub epoch: u64,
    /// From 1 without gaps in each epoch.
    pub seq: u64,
    /// The entry.
    pub entry: Uuid,
    /// The entry's digest.
    pub digest: Hash,
    /// The chain's head after this entry.
    pub head: Hash,
}

/// `head_n = SHA-256("bib-audit-v1\0" || head_{n-1} || digest_n)`.
#[must_use]
pub fn next_head(head: &Hash, digest: &Hash) -> Hash {
    let mut hasher = Hasher::new();
    hasher.update(b"bib-audit-v1\0");
    hasher.update(head.as_bytes());
    hasher.update(digest.as_bytes());
    hasher.finish()
}

/// The target of an epoch's first entry (action [`crate::action::EPOCH`]): the last head of the epoch before, as
/// `<epoch>/<seq>/<head in hex>`.
#[must_use]
pub fn epoch_target(before: &ChainState) -> String {
    format!("{}/{}/{}", before.epoch, before.seq, before.head)
}

/// Reads an [`epoch_target`]: epoch, sequence number and head.
#[must_use]
pub fn parse_epoch_target(target: &str) -> Option<(u64, u64, Hash)> {
    let mut parts = target.split('/');
    let number = |text: &str| text.parse::<u64>().ok().filter(|n| n.to_string() == text);
    let parsed = (number(parts.next()?)?, number(parts.next()?)?, parts.next()?.parse().ok()?);
    parts.next().is_none().then_some(parsed)
}

impl ChainState {
    /// The empty chain of an epoch.
    #[must_use]
    pub fn new(epoch: u64) -> Self {
        Self { epoch, seq: 0, head: HEAD_0, compact: CompactRange::new() }
    }

    /// Seals entries, given as (id, digest) in the order of the queue. Store seals and state in one transaction.
    pub fn seal<I: IntoIterator<Item = (Uuid, Hash)>>(&mut self, entries: I) -> Vec<Seal> {
        entries.into_iter().map(|(entry, digest)| self.seal_one(entry, digest)).collect()
    }

    pub(crate) fn seal_one(&mut self, entry: Uuid, digest: Hash) -> Seal {
        self.seq += 1;
        self.head = next_head(&self.head, &digest);
        self.compact.push(leaf_hash(digest.as_bytes()));
        Seal { epoch: self.epoch, seq: self.seq, entry, digest, head: self.head }
    }

    /// The empty chain of a later epoch, and the target of its first entry (action [`crate::action::EPOCH`]). Whatever
    /// is committed and unsealed is sealed into this epoch before; the new epoch's first seal must be that entry's.
    ///
    /// # Errors
    /// When `next` is not greater than this epoch.
    pub fn begin_epoch(&self, next: u64) -> Result<(Self, String), ChainError> {
        if next <= self.epoch {
            return Err(ChainError::Epoch { now: self.epoch, next });
        }
        Ok((Self::new(next), epoch_target(self)))
    }

    /// The canonical JSON to store beside the newest seal.
    ///
    /// # Errors
    /// When a number has reached 2^53.
    pub fn to_bytes(&self) -> Result<Vec<u8>, ChainError> {
        Ok(canonical::to_vec(self)?)
    }

    /// Reads [`Self::to_bytes`].
    ///
    /// # Errors
    /// When the bytes are not canonical JSON of a state, or the compact range does not fit its size.
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, ChainError> {
        let state: Self =
            serde_json::from_value(canonical::parse(bytes)?).map_err(|e| ChainError::Malformed(e.to_string()))?;
        if state.compact.size() != state.seq || !state.compact.is_well_formed() {
            return Err(ChainError::Range { seq: state.seq, nodes: state.compact.nodes().len() });
        }
        Ok(state)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entries(n: u8) -> impl Iterator<Item = (Uuid, Hash)> {
        (0..n).map(|i| (Uuid::from_u128(u128::from(i)), Hash::of(&[i])))
    }

    #[test]
    fn seals_number_from_one_and_chain() {
        let mut state = ChainState::new(3);
        let seals = state.seal(entries(5));
        let mut head = HEAD_0;
        for (seal, seq) in seals.iter().zip(1..) {
            head = next_head(&head, &seal.digest);
            assert_eq!((seal.epoch, seal.seq, seal.head), (3, seq, head));
        }
        assert_eq!((state.seq, state.head, state.compact.size()), (5, head, 5));
    }

    #[test]
    fn batches_and_restarts_do_not_matter() {
        let mut once = ChainState::new(1);
        once.seal(entries(7));
        let mut twice = ChainState::new(1);
        twice.seal(entries(7).take(3));
        let mut twice = ChainState::from_bytes(&twice.to_bytes().unwrap()).unwrap();
        twice.seal(entries(7).skip(3));
        assert_eq!(once, twice);
    }

    #[test]
    fn a_state_whose_range_does_not_fit_is_refused() {
        let mut state = ChainState::new(1);
        state.seal(entries(3));
        state.seq = 4;
        assert!(matches!(ChainState::from_bytes(&state.to_bytes().unwrap()), Err(ChainError::Range { .. })));
        assert!(ChainState::from_bytes(b"{}").is_err());
    }

    #[test]
    fn a_later_epoch_names_the_last_head() {
        let mut state = ChainState::new(1);
        state.seal(entries(2));
        let (next, target) = state.begin_epoch(4).unwrap();
        assert_eq!((next.epoch, next.seq, next.head), (4, 0, HEAD_0));
        assert_eq!(parse_epoch_target(&target), Some((1, 2, state.head)));
        assert!(state.begin_epoch(1).is_err());
        for wrong in ["", "1/2", "01/2/00", &(target.clone() + "/")] {
            assert_eq!(parse_epoch_target(wrong), None, "{wrong}");
        }
    }
}
