//! The tree against the published vectors of Certificate Transparency, and its proofs against each other.

use proptest::prelude::*;

use super::*;

/// The leaves and roots of the reference implementation's test data (`merkle_tree_test`).
const LEAVES: [&str; 8] =
    ["", "00", "10", "2021", "3031", "40414243", "5051525354555657", "606162636465666768696a6b6c6d6e6f"];
const ROOTS: [&str; 8] = [
    "6e340b9cffb37a989ca544e6bb780a2c78901d3fb33738768511a30617afa01d",
    "fac54203e7cc696cf0dfcb42c92a1d9dbaf70ad9e621f4bd8d98662f00e3c125",
    "aeb6bcfe274b70a14fb067a5e5578264db0fa9b51af5e0ba159158f329e06e77",
    "d37ee418976dd95753c1c73862b9398fa2a2cf9b4ff0fdfe8b30cd95209614b7",
    "4e3bbb1f7b478dcfe71fb631631519a3bca12c9aefca1612bfce4c13a86264d4",
    "76e67dadbcdf1e10e1b74ddc608abd2f98dfb16fbce75277b5232a127f2087ef",
    "ddb89be403809e325750d3d263cd78929c2942b7942a34b77e122c9594a74c8c",
    "5dc9da79a70659a9ad559cb701ded9a2ab9d823aad2f4960cfe370eff4604328",
];

fn vector_leaves() -> Vec<Vec<u8>> {
    LEAVES.iter().map(|leaf| hex::decode(leaf).unwrap()).collect()
}

fn root_of(leaves: &[Vec<u8>]) -> Hash {
    let mut range = CompactRange::new();
    leaves.iter().for_each(|leaf| range.push(leaf_hash(leaf)));
    assert!(range.is_well_formed());
    range.root()
}

fn built(mut builder: ProofBuilder, leaves: &[Vec<u8>]) -> Vec<Hash> {
    leaves.iter().for_each(|leaf| builder.push(leaf));
    builder.finish().unwrap()
}

fn hashes(texts: &[&str]) -> Vec<Hash> {
    texts.iter().map(|text| text.parse().unwrap()).collect()
}

#[test]
fn roots_are_those_of_certificate_transparency() {
    let leaves = vector_leaves();
    assert_eq!(root_of(&[]), Hash::of(b""));
    for size in 1..=8 {
        assert_eq!(root_of(&leaves[..size]).to_string(), ROOTS[size - 1], "size {size}");
    }
}

#[test]
fn proofs_are_those_of_certificate_transparency() {
    let leaves = vector_leaves();
    let path = built(ProofBuilder::inclusion(5, 8).unwrap(), &leaves);
    let published = [
        "bc1a0643b12e4d2d7c77918f44e0f4f79a838b6cf9ec5b5c283e1f4d88599e6b",
        "ca854ea128ed050b41b35ffc1b87b8eb2bde461e9e3b5596ece6b9d5975a0ae0",
        "d37ee418976dd95753c1c73862b9398fa2a2cf9b4ff0fdfe8b30cd95209614b7",
    ];
    assert_eq!(path, hashes(&published));
    let proof = built(ProofBuilder::consistency(6, 8).unwrap(), &leaves);
    let published = [
        "0ebc5d3437fbe2db158b9f126a1d118e308181031d0a949f8dededebc558ef6a",
        "ca854ea128ed050b41b35ffc1b87b8eb2bde461e9e3b5596ece6b9d5975a0ae0",
        "d37ee418976dd95753c1c73862b9398fa2a2cf9b4ff0fdfe8b30cd95209614b7",
    ];
    assert_eq!(proof, hashes(&published));
}

#[test]
fn every_proof_of_small_trees_verifies_and_no_other_place_does() {
    let leaves: Vec<Vec<u8>> = (0..40_u8).map(|i| vec![i; 32]).collect();
    for size in 1..=leaves.len() {
        let (tree, root, n) = (&leaves[..size], root_of(&leaves[..size]), size as u64);
        for part in 0..n {
            let leaf = leaf_hash(&tree[part as usize]);
            let path = built(ProofBuilder::inclusion(part, n).unwrap(), tree);
            assert!(verify_inclusion(leaf, part, n, &root, &path), "{part} in {n}");
            assert!(!verify_inclusion(leaf, (part + 1) % n, n, &root, &path) || n == 1);
            let old = part + 1;
            let old_root = root_of(&tree[..old as usize]);
            let proof = built(ProofBuilder::consistency(old, n).unwrap(), tree);
            assert!(verify_consistency((old, &old_root), (n, &root), &proof), "{old} to {n}");
            assert!(!verify_consistency((old, &root), (n, &old_root), &proof) || old == n);
        }
    }
}

#[test]
fn what_does_not_lie_in_the_tree_has_no_proof() {
    assert!(ProofBuilder::inclusion(3, 3).is_err());
    assert!(ProofBuilder::consistency(0, 3).is_err());
    assert!(ProofBuilder::consistency(4, 3).is_err());
    let builder = ProofBuilder::inclusion(0, 2).unwrap();
    assert_eq!(builder.finish(), Err(ProofError::Leaves { given: 0, size: 2 }));
}

proptest! {
    #[test]
    fn a_changed_proof_never_verifies(size in 2_u64..300, pick: u64, old: u64, node: usize, bit in 0_usize..256) {
        let leaves: Vec<Vec<u8>> = (0..size).map(|i| i.to_be_bytes().to_vec()).collect();
        let (index, old, root) = (pick % size, old % size + 1, root_of(&leaves));
        let old_root = root_of(&leaves[..old as usize]);
        let flip = |proof: &[Hash]| {
            let mut proof = proof.to_vec();
            let at = node % proof.len();
            let mut bytes = *proof[at].as_bytes();
            bytes[bit / 8] ^= 1 << (bit % 8);
            proof[at] = Hash::from_bytes(bytes);
            proof
        };
        let path = built(ProofBuilder::inclusion(index, size).unwrap(), &leaves);
        let leaf = leaf_hash(&leaves[index as usize]);
        prop_assert!(verify_inclusion(leaf, index, size, &root, &path));
        prop_assert!(!verify_inclusion(leaf, index, size, &root, &flip(&path)));
        prop_assert!(!verify_inclusion(leaf, index, size, &root, &path[1..]));
        let proof = built(ProofBuilder::consistency(old, size).unwrap(), &leaves);
        prop_assert!(verify_consistency((old, &old_root), (size, &root), &proof));
        if !proof.is_empty() {
            prop_assert!(!verify_consistency((old, &old_root), (size, &root), &flip(&proof)));
        }
    }
}
