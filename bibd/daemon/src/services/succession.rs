//! The first start of a successor: what the former node owned becomes this node's, in one transaction with its entry.
//!
//! The restore left the proof in the data directory (`bibd/daemon/src/backup/successor.rs`), since the database may be of
//! an older schema until this start has migrated it. Cut off before the commit, the next start does it again; after it,
//! nothing is left to do but to remove the directory.

use bib_core::record::{Kind, StepProof};
use bib_identity::node_key;
use bibd_catalog::records::{self, StoredRecord};
use bibd_catalog::{node, successions};
use serde_json::json;

use super::base::Base;
use super::error::ServiceError;
use super::journal::Act;
use super::recovery;
use crate::foundation::Foundation;
use crate::inheritance::DIRECTORY;

/// The act in the audit log; its target is the former node.
const SUCCEED: &str = "node.succeed";

/// Carries out what the restore left, if it left anything.
///
/// # Errors
/// When the database does not answer, or is that of a third node.
pub async fn carry_over(foundation: &Foundation, base: &Base) -> Result<(), ServiceError> {
    let Some(proof) = &foundation.inheritance.pending else { return Ok(()) };
    take_over(base, proof).await?;
    foundation.failpoints.hit("succession.carried");
    let directory = foundation.data.root().join(DIRECTORY);
    std::fs::remove_dir_all(&directory).map_err(ServiceError::internal)
}

async fn take_over(base: &Base, proof: &StepProof) -> Result<(), ServiceError> {
    let step = proof.open(&node_key::holds).map_err(ServiceError::internal)?;
    if step.succession.to != base.peer || !step.accepted {
        return Err(ServiceError::internal(format!("the succession that waits is that of {}", step.succession.to)));
    }
    let (from, now) = (step.succession.from, base.now());
    let id = from.to_string();
    let call = base.internal_call("succession");
    let mut tx = base.begin(&call, "succession").await?;
    let kind = Kind::Succession.as_str();
    let kept = records::find(&mut tx, kind, &id).await?;
    if kept.is_some_and(|kept| kept.body == proof.succession.body) {
        return Ok(tx.rollback().await?);
    }
    // The node record is the proof's other half: it stays as it was when the succession was signed.
    let row = StoredRecord::new(&proof.succession, step.succession.revision)?;
    records::put(&mut tx, kind, &id, &row, now).await?;
    successions::resign(&mut tx, &from, now).await?;
    node::put_self(&mut tx, &base.peer, env!("CARGO_PKG_VERSION"), now).await?;
    let moved = successions::carry_over(&mut tx, &from, &base.peer).await?;
    // The sheet was the former node's: this one has no recovery keys until its own sheet is made.
    successions::forget_setting(&mut tx, recovery::NAME).await?;
    let details = json!({
        "to": base.peer.to_string(), "signed_by": proof.succession.key.to_string(),
        "last": { "epoch": step.succession.last.epoch, "n": step.succession.last.n },
        "topics": moved.topics, "datasets": moved.datasets,
    });
    base.journal.commit(tx, &call, Act::new(SUCCEED, id.clone(), details)).await?;
    tracing::warn!(node.former = %id, topics = moved.topics, datasets = moved.datasets, "this node is the successor of another one and owns what that one owned");
    Ok(())
}
