//! The Merkle tree of RFC 6962 (section 2.1) over the entries' digests, and its proofs.
//!
//! A [`CompactRange`] appends and gives the root in O(log n) space; [`ProofBuilder`] makes proofs from leaves that
//! stream past once, so a log of any length needs no tree in memory. Verification follows RFC 9162, section 2.1.

mod builder;
mod range;
mod verify;

pub use builder::{ProofBuilder, ProofError};
pub use range::CompactRange;
pub use verify::{verify_consistency, verify_inclusion};

use bib_core::{Hash, Hasher};

/// The hash of a leaf: SHA-256(0x00 || data). The log's data are the 32 bytes of a digest.
#[must_use]
pub fn leaf_hash(data: &[u8]) -> Hash {
    let mut hasher = Hasher::new();
    hasher.update(&[0]);
    hasher.update(data);
    hasher.finish()
}

/// The hash of an inner node: SHA-256(0x01 || left || right).
#[must_use]
pub fn node_hash(left: &Hash, right: &Hash) -> Hash {
    let mut hasher = Hasher::new();
    hasher.update(&[1]);
    hasher.update(left.as_bytes());
    hasher.update(right.as_bytes());
    hasher.finish()
}

#[cfg(test)]
mod tests;
