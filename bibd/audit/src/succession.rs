//! Whose log it was before: the nodes that the log's present node follows, as successions prove.
//!
//! A node whose identity was lost or stolen goes on under another key: its log goes on in the next epoch, signed by the
//! next node. Checkpoints of the epochs before are then the former node's, and count only when a succession says that
//! the one follows the other: signed by the former node's recovery key (or its own), and accepted by the next node, so
//! that it holds for somebody who knows the next node's key and nothing else.

use bib_core::PeerId;
use bib_core::record::{Lineage, SignedRecord, StepProof};
use bib_core::signature::{Purpose, signed_bytes};
use ed25519_dalek::{Signature, VerifyingKey};

use crate::export::{Bytes, Line, RecordLine};
use crate::verify::{Former, TrustedInputs, Verifier};

/// The nodes that `node` follows, the last one first. Proofs that do not hold prove nothing.
#[must_use]
pub fn former(node: &PeerId, lineage: &Lineage) -> Vec<Former> {
    lineage.former(node).into_iter().map(|(node, before)| Former { node, before }).collect()
}

/// The line of an export.
#[must_use]
pub fn line(proof: &StepProof) -> Line {
    let record = |record: &SignedRecord| RecordLine {
        body: Bytes(record.body.clone()),
        key: record.key,
        sig: record.sig.to_vec(),
    };
    Line::Succession { node: record(&proof.node), succession: record(&proof.succession) }
}

/// The proof in such a line; `None` when it is another line.
#[must_use]
pub fn proof_of(line: &Line) -> Option<StepProof> {
    match line {
        Line::Succession { node, succession } => proof(node, succession),
        _ => None,
    }
}

/// The proof that a line of an export holds, if it has the shape of one.
pub(crate) fn proof(node: &RecordLine, succession: &RecordLine) -> Option<StepProof> {
    let record = |line: &RecordLine| {
        let sig = line.sig.as_slice().try_into().ok()?;
        Some(SignedRecord { body: line.body.0.clone(), key: line.key, sig })
    };
    Some(StepProof { node: record(node)?, succession: record(succession)? })
}

/// A verifier that trusts what these prove to whoever has the key, and nobody's word for it.
pub(crate) fn verifier(trusted: &mut TrustedInputs, proofs: &[StepProof]) -> Verifier {
    let mut lineage = Lineage::default();
    for step in proofs.iter().filter_map(|proof| proof.open(&holds).ok()) {
        lineage.add(step);
    }
    let node = trusted.public_key.map(PeerId::from_public_key);
    trusted.former = node.map(|node| former(&node, &lineage)).unwrap_or_default();
    Verifier::new(trusted)
}

fn holds(key: &PeerId, purpose: Purpose, body: &[u8], signature: &[u8; 64]) -> bool {
    let Ok(key) = VerifyingKey::from_bytes(key.public_key()) else { return false };
    key.verify_strict(&signed_bytes(purpose, body), &Signature::from_bytes(signature)).is_ok()
}
