//! Checking proofs, as RFC 9162 says in sections 2.1.3.2 and 2.1.4.2.

use bib_core::Hash;

use super::node_hash;

/// Whether `proof` shows that the leaf with hash `leaf` stands at `index` (from 0) in the tree with this size and root.
#[must_use]
pub fn verify_inclusion(leaf: Hash, index: u64, size: u64, root: &Hash, proof: &[Hash]) -> bool {
    if index >= size {
        return false;
    }
    let (mut at, mut last, mut node) = (index, size - 1, leaf);
    for sibling in proof {
        if last == 0 {
            return false;
        }
        if at & 1 == 1 || at == last {
            node = node_hash(sibling, &node);
            while at & 1 == 0 && at != 0 {
                at >>= 1;
                last >>= 1;
            }
        } else {
            node = node_hash(&node, sibling);
        }
        at >>= 1;
        last >>= 1;
    }
    last == 0 && node == *root
}

/// Whether `proof` shows that the tree `old` is the beginning of the tree `new`; each is (size, root).
#[must_use]
pub fn verify_consistency(old: (u64, &Hash), new: (u64, &Hash), proof: &[Hash]) -> bool {
    if old.0 == 0 || old.0 > new.0 {
        return false;
    }
    if old.0 == new.0 {
        return proof.is_empty() && old.1 == new.1;
    }
    let mut nodes = proof.iter();
    // An old tree that is one perfect subtree has its own root as the first node.
    let first = if old.0.is_power_of_two() { Some(old.1) } else { nodes.next() };
    let Some(first) = first else { return false };
    let (mut at, mut last) = (old.0 - 1, new.0 - 1);
    while at & 1 == 1 {
        at >>= 1;
        last >>= 1;
    }
    let (mut from_old, mut from_new) = (*first, *first);
    for node in nodes {
        if last == 0 {
            return false;
        }
        if at & 1 == 1 || at == last {
            from_old = node_hash(node, &from_old);
            from_new = node_hash(node, &from_new);
            while at & 1 == 0 && at != 0 {
                at >>= 1;
                last >>= 1;
            }
        } else {
            from_new = node_hash(&from_new, node);
        }
        at >>= 1;
        last >>= 1;
    }
    last == 0 && from_old == *old.1 && from_new == *new.1
}
