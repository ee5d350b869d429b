//! Reading, verifying, proving, exporting and erasing the audit log.

use bib_core::access::Verb;
use bib_core::{Hash, PeerId};
use bibd_audit::export::{Bytes, DetailLine, EntryLine, FORMAT, Line, SealLine, SealedLine, write_line};
use bibd_audit::merkle::ProofBuilder;
use bibd_audit::note::SignedNote;
use bibd_audit::proof::EntryProof;
use bibd_audit::verify::{DetailRow, Doubt, EntryRow, Row, SealRow, TrustedInputs, Verdict, Verifier};
use bibd_audit::{Checkpoint, CheckpointFile, Outcome, action};
use bibd_catalog::Db;
use bibd_catalog::audit::{self, Filter, Listed, LoggedRow, UnsealedRow};
use futures::StreamExt as _;
use serde_json::json;
use tokio::sync::mpsc;
use uuid::Uuid;

use super::base::{Base, allow_node};
use super::error::ServiceError;
use super::journal::Act;
use crate::actor::Call;
use crate::errors::ErrorCode;

/// Rows between two words of progress.
const PROGRESS_EVERY: u64 = 50_000;

/// Digests read at once for an inclusion proof.
const PROOF_SLICE: u64 = 65_536;

/// Lines of an export gather to about this many bytes.
const EXPORT_BUFFER_BYTES: usize = 200 * 1024;

/// Findings beside the chain that are looked at.
const BESIDE: i64 = 10_000;

/// The use cases of the audit log.
#[derive(Debug, Clone)]
pub struct AuditService {
    base: Base,
    file: CheckpointFile,
}

/// How a verification ended.
#[derive(Debug)]
pub struct Verification {
    /// The verdict.
    pub verdict: Verdict,
    /// Sealed entries that were read.
    pub entries: u64,
    /// The newest checkpoint, as a note; empty when there is none.
    pub checkpoint: String,
}

impl Verification {
    /// The verdict in a word, and what it means in a sentence.
    #[must_use]
    pub fn words(&self) -> (&'static str, String) {
        match &self.verdict {
            Verdict::Ok(ok) => (
                "OK",
                format!(
                    "{} entries agree with the checkpoint at {}; {} came after it, {} had their details erased, {} wait",
                    ok.entries, ok.checkpoint, ok.after_checkpoint, ok.erased, ok.unsealed
                ),
            ),
            Verdict::Tampered(tamper) => ("TAMPERED", tamper.explanation.clone()),
            Verdict::Unverified { reason: Doubt::NoKey, .. } => {
                ("UNVERIFIED", "no public key was there to check with".to_owned())
            }
            Verdict::Unverified { reason: Doubt::NoCheckpoint, .. } => {
                ("UNVERIFIED", "no checkpoint kept outside the database covers this log".to_owned())
            }
        }
    }
}

impl AuditService {
    /// Over the node's log; `file` is the copy of the checkpoints on another path.
    #[must_use]
    pub fn new(base: Base, file: CheckpointFile) -> Self {
        Self { base, file }
    }

    /// A page of entries.
    ///
    /// # Errors
    /// When the caller may not read the log, or the database is gone.
    pub async fn list(&self, call: &Call, filter: &Filter) -> Result<Vec<Listed>, ServiceError> {
        allow_node(call, Verb::AuditRead)?;
        let mut session = self.base.db.read_audit().await?;
        Ok(audit::list(&mut session, filter).await?)
    }

    /// The entries of one operation or, while following, the one that was just sealed.
    ///
    /// # Errors
    /// When the database is gone.
    pub async fn sealed(&self, call: &Call, epoch: u64, seq: u64) -> Result<Option<LoggedRow>, ServiceError> {
        allow_node(call, Verb::AuditRead)?;
        let mut session = self.base.db.read_audit().await?;
        Ok(audit::find_sealed(&mut session, epoch, seq).await?)
    }

    /// The node's present epoch.
    #[must_use]
    pub fn epoch(&self) -> u64 {
        self.base.epoch
    }

    /// Reads the whole log again and judges it. `progress` is told (rows read, rows in all) now and then.
    ///
    /// # Errors
    /// When the caller may not, or the log cannot be read to its end. A broken log is a verdict, not an error.
    pub async fn verify(&self, call: &Call, progress: mpsc::Sender<(u64, u64)>) -> Result<Verification, ServiceError> {
        allow_node(call, Verb::AuditRead)?;
        let told = |read, total| {
            let progress = progress.clone();
            async move { progress.send((read, total)).await.is_ok() }
        };
        let verification = judge(&self.base.db, &self.base.peer, &self.file, told).await?;
        let (word, _) = verification.words();
        let details = json!({"verdict": word, "entries": verification.entries});
        let act = Act::new("audit.verify", "audit", details);
        self.base.journal.record(&self.base.db, call, act, Outcome::Ok).await?;
        Ok(verification)
    }

    /// The proof that entry `seq` of `epoch` (0: the present one) lies in the log, as canonical JSON.
    ///
    /// # Errors
    /// When there is no such entry, or no checkpoint covers it yet.
    pub async fn prove(&self, call: &Call, epoch: u64, seq: u64) -> Result<String, ServiceError> {
        allow_node(call, Verb::AuditRead)?;
        let proof = self.proof(epoch, seq).await?;
        let bytes = proof.to_bytes().map_err(ServiceError::internal)?;
        String::from_utf8(bytes).map_err(ServiceError::internal)
    }

    /// As [`AuditService::prove`] without asking whether the caller may: for proofs of versions that the caller reads.
    ///
    /// # Errors
    /// When there is no such entry, or no checkpoint covers it yet.
    pub async fn proof(&self, epoch: u64, seq: u64) -> Result<EntryProof, ServiceError> {
        let epoch = if epoch == 0 { self.base.epoch } else { epoch };
        let name = format!("{epoch}/{seq}");
        let mut session = self.base.db.read_audit().await?;
        let row = audit::find_sealed(&mut session, epoch, seq).await?;
        let row = row.ok_or_else(|| ServiceError::not_found("audit entry", &name))?;
        let body = row.body.ok_or_else(|| ServiceError::not_found("audit entry", &name))?;
        let (note, checkpoint) = self.checkpoint_for(epoch, seq).await?.ok_or_else(|| {
            ServiceError::conflict(
                ErrorCode::UNMET_CONDITION,
                format!("no checkpoint covers entry {name} yet"),
                "checkpoints are made every minute: try again then",
            )
        })?;
        let mut builder = ProofBuilder::inclusion(seq - 1, checkpoint.size).map_err(ServiceError::internal)?;
        let mut after = 0;
        while after < checkpoint.size {
            let upto = checkpoint.size.min(after + PROOF_SLICE);
            for digest in audit::digests(&mut session, epoch, after, upto).await? {
                builder.push(digest.as_bytes());
            }
            after = upto;
        }
        let path: Vec<Hash> = builder.finish().map_err(ServiceError::internal)?;
        let body = String::from_utf8(body).map_err(ServiceError::internal)?;
        let detail = row.salt.zip(row.details).map(|(salt, details)| DetailLine { salt, details: Bytes(details) });
        Ok(EntryProof::new(seq, body, detail, path, &note))
    }

    /// The whole log as JSON lines, a buffer at a time, as the verifiers read it.
    ///
    /// # Errors
    /// When the caller may not, or the log cannot be read to its end.
    pub async fn export(&self, call: &Call, out: mpsc::Sender<Vec<u8>>) -> Result<(), ServiceError> {
        allow_node(call, Verb::AuditRead)?;
        let act = Act::new("audit.export", "audit", json!({}));
        self.base.journal.record(&self.base.db, call, act, Outcome::Ok).await?;
        let mut tx = self.base.db.snapshot_audit().await?;
        let mut buffer = Vec::with_capacity(EXPORT_BUFFER_BYTES + 64 * 1024);
        let write = |line: &Line, buffer: &mut Vec<u8>| write_line(line, buffer).map_err(ServiceError::internal);
        write(&Line::Header { format: FORMAT.to_owned(), node: self.base.peer }, &mut buffer)?;
        for note in audit::checkpoints(&mut tx).await? {
            write(&Line::Checkpoint { note }, &mut buffer)?;
        }
        let mut rows = Box::pin(audit::rows(&mut tx));
        while let Some(row) = rows.next().await {
            write(&Line::Entry(Box::new(as_sealed_line(row?))), &mut buffer)?;
            if buffer.len() > EXPORT_BUFFER_BYTES && out.send(std::mem::take(&mut buffer)).await.is_err() {
                return Ok(());
            }
        }
        drop(rows);
        for row in audit::unsealed_entries(&mut tx, BESIDE).await? {
            let entry = Box::new(owned(&as_unsealed(&row)));
            write(&Line::Unsealed { entry, queued: row.queued }, &mut buffer)?;
        }
        for id in audit::queued_without_entry(&mut tx, BESIDE).await? {
            write(&Line::Queued { id }, &mut buffer)?;
        }
        tx.rollback().await?;
        if out.send(buffer).await.is_err() {
            tracing::debug!("the caller went away at the end of an export");
        }
        Ok(())
    }

    /// Erases the details of an entry, as the law may want. Entry, place and the erasure itself stay.
    ///
    /// # Errors
    /// When the caller may not, or there is nothing to erase.
    pub async fn erase(&self, call: &Call, entry: Uuid, reason: &str) -> Result<(), ServiceError> {
        allow_node(call, Verb::AuditErase)?;
        if reason.trim().is_empty() || reason.len() > 1024 {
            return Err(ServiceError::invalid("reason", "say in 1 to 1024 bytes why the details are erased"));
        }
        let mut tx = self.base.begin(call, "audit").await?;
        let act = Act::new(action::ERASE, entry.to_string(), json!({"reason": reason}));
        let erasure = self.base.journal.add(&mut tx, call, act).await?;
        if !audit::erase(&mut tx, entry).await? {
            tx.rollback().await?;
            return Err(ServiceError::not_found("audit detail", entry.to_string()));
        }
        self.base.journal.commit_added(tx, erasure, action::ERASE).await
    }

    /// The oldest checkpoint that covers the entry, from the file or else from the table.
    async fn checkpoint_for(&self, epoch: u64, seq: u64) -> Result<Option<(SignedNote, Checkpoint)>, ServiceError> {
        let (mut notes, _) = read_file(&self.file).await?;
        let mut session = self.base.db.read_audit().await?;
        notes.extend(audit::checkpoints(&mut session).await?);
        let opened = notes.iter().filter_map(|text| {
            let checkpoint = Checkpoint::open(text, self.base.peer.public_key()).ok()?;
            let covers = checkpoint.origin.epoch == epoch && checkpoint.size >= seq;
            Some((text.parse::<SignedNote>().ok()?, checkpoint)).filter(|_| covers)
        });
        Ok(opened.min_by_key(|(_, checkpoint)| checkpoint.size))
    }
}

/// Reads the whole log of a database again and judges it by the checkpoints in `file` and by `peer`'s key. `told` hears of
/// rows read and rows in all now and then, and says whether to go on.
///
/// # Errors
/// When the log cannot be read to its end, or nobody wants to know any more. A broken log is a verdict, not an error.
pub async fn judge<F: Future<Output = bool>>(
    db: &Db,
    peer: &PeerId,
    file: &CheckpointFile,
    told: impl Fn(u64, u64) -> F,
) -> Result<Verification, ServiceError> {
    let (external, torn) = read_file(file).await?;
    if torn > 0 {
        tracing::warn!(torn_bytes = torn, "the checkpoint file ends in a note that was not finished");
    }
    let mut tx = db.snapshot_audit().await?;
    let total = audit::count(&mut tx).await?.sealed;
    let trusted =
        TrustedInputs { public_key: Some(*peer.public_key()), external, table: audit::checkpoints(&mut tx).await? };
    let newest = trusted.external.last().or(trusted.table.last()).cloned().unwrap_or_default();
    let mut verifier = Verifier::new(&trusted);
    let mut entries = 0;
    let mut rows = Box::pin(audit::rows(&mut tx));
    while let Some(row) = rows.next().await {
        let row = row?;
        entries += 1;
        verifier.feed(&as_row(&row));
        if entries % PROGRESS_EVERY == 0 && !told(entries, total).await {
            return Err(ServiceError::conflict(
                ErrorCode::UNMET_CONDITION,
                "the caller went away during the verification",
                "run it again",
            ));
        }
    }
    drop(rows);
    for row in audit::unsealed_entries(&mut tx, BESIDE).await? {
        verifier.feed_unsealed(&as_unsealed(&row), row.queued);
    }
    for id in audit::queued_without_entry(&mut tx, BESIDE).await? {
        verifier.feed_queued_without_entry(id);
    }
    tx.rollback().await?;
    Ok(Verification { verdict: verifier.finish(), entries, checkpoint: newest })
}

async fn read_file(file: &CheckpointFile) -> Result<(Vec<String>, u64), ServiceError> {
    let file = file.clone();
    let read = tokio::task::spawn_blocking(move || file.read()).await.map_err(ServiceError::internal)?;
    let records = read.map_err(ServiceError::internal)?;
    Ok((records.notes, records.torn_bytes))
}

fn as_row(row: &LoggedRow) -> Row<'_> {
    Row {
        seal: SealRow {
            epoch: row.epoch.unsigned_abs(),
            seq: row.seq.unsigned_abs(),
            entry: row.entry_id,
            digest: &row.digest,
            head: &row.head,
        },
        entry: as_entry(row),
        detail: row.salt.as_deref().zip(row.details.as_deref()).map(|(salt, details)| DetailRow { salt, details }),
    }
}

/// The columns of an entry are there together or not at all.
fn as_entry(row: &LoggedRow) -> Option<EntryRow<'_>> {
    Some(EntryRow {
        id: row.id?,
        time: row.time?.into(),
        node: row.node.as_deref()?,
        actor: row.actor.as_deref()?,
        via: row.via.as_deref()?,
        action: row.action.as_deref()?,
        target: row.target.as_deref()?,
        result: row.result.as_deref()?,
        operation: row.operation?,
        job: row.job,
        body: row.body.as_deref()?,
    })
}

fn as_unsealed(row: &UnsealedRow) -> EntryRow<'_> {
    EntryRow {
        id: row.id,
        time: row.time.into(),
        node: &row.node,
        actor: &row.actor,
        via: &row.via,
        action: &row.action,
        target: &row.target,
        result: &row.result,
        operation: row.operation,
        job: row.job,
        body: &row.body,
    }
}

fn owned(entry: &EntryRow<'_>) -> EntryLine {
    EntryLine {
        id: entry.id,
        time: entry.time,
        node: entry.node.to_owned(),
        actor: entry.actor.to_owned(),
        via: entry.via.to_owned(),
        action: entry.action.to_owned(),
        target: entry.target.to_owned(),
        result: entry.result.to_owned(),
        operation: entry.operation,
        job: entry.job,
        body: Bytes(entry.body.to_vec()),
    }
}

fn as_sealed_line(row: LoggedRow) -> SealedLine {
    SealedLine {
        entry: as_entry(&row).as_ref().map(owned),
        seal: SealLine {
            epoch: row.epoch.unsigned_abs(),
            seq: row.seq.unsigned_abs(),
            entry: row.entry_id,
            digest: row.digest,
            head: row.head,
        },
        detail: row.salt.zip(row.details).map(|(salt, details)| DetailLine { salt, details: Bytes(details) }),
    }
}
