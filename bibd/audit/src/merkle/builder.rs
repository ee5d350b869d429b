//! Proofs from leaves that stream past once, in order.

use std::ops::Range;

use bib_core::Hash;

use super::{CompactRange, leaf_hash};

/// Why there is no such proof.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum ProofError {
    /// The leaf, or the older tree, does not lie in the tree.
    #[error("{part} does not lie in a tree of {size} leaves")]
    OutOfRange {
        /// The index or the older size.
        part: u64,
        /// The size of the tree.
        size: u64,
    },
    /// Not as many leaves were given as the tree has.
    #[error("{given} leaves were given, the tree has {size}")]
    Leaves {
        /// How many came.
        given: u64,
        /// How many were needed.
        size: u64,
    },
}

/// Builds a proof. Its nodes are roots of disjoint runs of leaves, each computed as its run streams past, so memory is
/// O(log² n) hashes for a tree of n leaves.
#[derive(Debug, Clone)]
pub struct ProofBuilder {
    size: u64,
    given: u64,
    /// In the order of the proof.
    nodes: Vec<Option<Hash>>,
    /// (run, its place in the proof), by start.
    runs: Vec<(Range<u64>, usize)>,
    current: usize,
    open: CompactRange,
}

impl ProofBuilder {
    /// A proof that the leaf at `index` (from 0) lies in the tree of `size` leaves: PATH of RFC 6962.
    ///
    /// # Errors
    /// When `index` is not below `size`.
    pub fn inclusion(index: u64, size: u64) -> Result<Self, ProofError> {
        if index >= size {
            return Err(ProofError::OutOfRange { part: index, size });
        }
        let mut runs = Vec::new();
        let (mut start, mut end) = (0, size);
        while end - start > 1 {
            let middle = start + split(end - start);
            if index < middle {
                runs.push(middle..end);
                end = middle;
            } else {
                runs.push(start..middle);
                start = middle;
            }
        }
        runs.reverse();
        Ok(Self::over(size, runs))
    }

    /// A proof that the tree of `old` leaves is the beginning of the tree of `size`: PROOF of RFC 6962.
    ///
    /// # Errors
    /// When `old` is 0 or above `size`.
    pub fn consistency(old: u64, size: u64) -> Result<Self, ProofError> {
        if old == 0 || old > size {
            return Err(ProofError::OutOfRange { part: old, size });
        }
        let mut runs = Vec::new();
        let (mut start, mut end) = (0, size);
        while end != old {
            let middle = start + split(end - start);
            if old <= middle {
                runs.push(middle..end);
                end = middle;
            } else {
                runs.push(start..middle);
                start = middle;
            }
        }
        // The old root itself is known to the verifier, so it is left out when the old tree is one perfect subtree.
        if start != 0 {
            runs.push(start..end);
        }
        runs.reverse();
        Ok(Self::over(size, runs))
    }

    fn over(size: u64, proof: Vec<Range<u64>>) -> Self {
        let nodes = vec![None; proof.len()];
        let mut runs: Vec<_> = proof.into_iter().enumerate().map(|(place, run)| (run, place)).collect();
        runs.sort_unstable_by_key(|(run, _)| run.start);
        Self { size, given: 0, nodes, runs, current: 0, open: CompactRange::new() }
    }

    /// Takes the data of the next leaf (for the log: the 32 bytes of a digest). Leaves past the end are counted only.
    pub fn push(&mut self, data: &[u8]) {
        let index = self.given;
        self.given += 1;
        let Some((run, place)) = self.runs.get(self.current) else { return };
        if !run.contains(&index) {
            return;
        }
        self.open.push(leaf_hash(data));
        if self.given == run.end {
            self.nodes[*place] = Some(std::mem::take(&mut self.open).root());
            self.current += 1;
        }
    }

    /// The proof, once all `size` leaves were given.
    ///
    /// # Errors
    /// When fewer or more leaves were given.
    pub fn finish(self) -> Result<Vec<Hash>, ProofError> {
        if self.given != self.size {
            return Err(ProofError::Leaves { given: self.given, size: self.size });
        }
        self.nodes.into_iter().collect::<Option<_>>().ok_or(ProofError::Leaves { given: self.given, size: self.size })
    }
}

/// The largest power of two below `size` (`size` is at least 2).
fn split(size: u64) -> u64 {
    1 << (u64::BITS - 1 - (size - 1).leading_zeros())
}
