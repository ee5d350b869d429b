//! The right-hand edge of a tree: the roots of its perfect subtrees.

use bib_core::Hash;
use serde::{Deserialize, Serialize};

use super::node_hash;

/// The perfect subtrees of a tree of `size` leaves, largest first: one node per one bit of `size`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct CompactRange {
    size: u64,
    nodes: Vec<Hash>,
}

impl CompactRange {
    /// The empty tree.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// How many leaves.
    #[must_use]
    pub const fn size(&self) -> u64 {
        self.size
    }

    /// The subtree roots, largest subtree first.
    #[must_use]
    pub fn nodes(&self) -> &[Hash] {
        &self.nodes
    }

    /// Whether there are as many nodes as the size has one bits.
    #[must_use]
    pub fn is_well_formed(&self) -> bool {
        u32::try_from(self.nodes.len()) == Ok(self.size.count_ones())
    }

    /// Appends a leaf, given its [`super::leaf_hash`].
    pub fn push(&mut self, leaf: Hash) {
        let mut node = leaf;
        for _ in 0..self.size.trailing_ones() {
            let Some(left) = self.nodes.pop() else { break };
            node = node_hash(&left, &node);
        }
        self.nodes.push(node);
        self.size += 1;
    }

    /// The root; that of the empty tree is SHA-256 of nothing.
    #[must_use]
    pub fn root(&self) -> Hash {
        let mut nodes = self.nodes.iter().rev();
        let Some(last) = nodes.next() else { return Hash::of(b"") };
        nodes.fold(*last, |right, left| node_hash(left, &right))
    }
}
