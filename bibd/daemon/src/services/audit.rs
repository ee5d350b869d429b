//! Reading, verifying, proving, exporting and erasing the audit log.

use bib_core::access::Verb;
use bib_core::{Hash, PeerId};
use bibd_audit::export::{Bytes, DetailLine, FORMAT, Line, write_line};
use bibd_audit::merkle::ProofBuilder;
use bibd_audit::note::SignedNote;
use bibd_audit::proof::EntryProof;
use bibd_audit::verify::{Doubt, TrustedInputs, Verdict, Verifier};
use bibd_audit::{Checkpoint, CheckpointFile, Outcome, action, body, succession};
use bibd_catalog::Db;
use bibd_catalog::audit::{self, Filter, Listed, LoggedRow};
use futures::StreamExt as _;
use serde_json::json;
use tokio::sync::mpsc;
use uuid::Uuid;

use super::archive::{Archive, ArchiveError};
use super::audit_rows::{as_row, as_sealed_line, as_unsealed, owned};
use super::base::{Base, allow_node};
use super::error::ServiceError;
use super::journal::Act;
use super::month::Month;
use crate::actor::Call;
use crate::errors::ErrorCode;
use crate::inheritance::Inheritance;

/// Rows between two words of progress.
const PROGRESS_EVERY: u64 = 50_000;

/// Digests read at once for an inclusion proof.
const PROOF_SLICE: u64 = 65_536;

/// Lines of an export gather to about this many bytes.
const EXPORT_BUFFER_BYTES: usize = 200 * 1024;

/// Findings beside the chain that are looked at.
const BESIDE: i64 = 10_000;

/// The body of an entry, and salt and details if they are there.
type Archived = (Vec<u8>, Option<(Vec<u8>, Vec<u8>)>);

/// The use cases of the audit log.
#[derive(Debug, Clone)]
pub struct AuditService {
    base: Base,
    file: CheckpointFile,
    /// Months that left the database.
    archive: Option<Archive>,
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
            Verdict::Ok(ok) => {
                let mut said = format!(
                    "{} entries agree with the checkpoint at {}; {} came after it, {} had their details erased, {} wait",
                    ok.entries, ok.checkpoint, ok.after_checkpoint, ok.erased, ok.unsealed
                );
                if !ok.detached.is_empty() {
                    let gone: u64 = ok.detached.iter().map(|run| run.last - run.first + 1).sum();
                    let runs: Vec<String> = ok.detached.iter().map(ToString::to_string).collect();
                    said.push_str(&format!(
                        "; {gone} left the log with their months, by the node's signature, and only their seals were \
                         verified: {}",
                        runs.join(", ")
                    ));
                }
                for former in &ok.former {
                    said.push_str(&format!(
                        "; epochs before {} are those of node {}, which has a proved successor",
                        former.before, former.node
                    ));
                }
                ("OK", said)
            }
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
        Self { base, file, archive: None }
    }

    /// The same, which finds what left the database in archives.
    #[must_use]
    pub fn with_archive(self, archive: Archive) -> Self {
        Self { archive: Some(archive), ..self }
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
        let verification = judge(&self.base.db, &self.base.peer, &self.base.inheritance, &self.file, told).await?;
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
        let (body, detail) = match row.body {
            Some(body) => (body, row.salt.zip(row.details)),
            None => {
                let line = self.archived(row.entry_id, row.digest).await?;
                let line = line.ok_or_else(|| ServiceError::not_found("audit entry", &name))?;
                (line.0, line.1)
            }
        };
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
        let detail = detail.map(|(salt, details)| DetailLine { salt, details: Bytes(details) });
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
        for proof in self.base.inheritance.proofs() {
            write(&succession::line(proof), &mut buffer)?;
        }
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
            return self.erase_archived(call, entry, reason).await;
        }
        self.base.journal.commit_added(tx, erasure, action::ERASE).await?;
        self.erase_written_down(entry).await
    }

    /// An archive may be there of a month that is still in the database: it waits for a backup, or for a quiet moment.
    async fn erase_written_down(&self, entry: Uuid) -> Result<(), ServiceError> {
        let Some(archive) = self.archive.clone() else { return Ok(()) };
        let erasing = tokio::task::spawn_blocking(move || {
            months_of(entry).iter().try_for_each(|month| archive.erase(month, entry).map(drop))
        });
        erasing.await.map_err(ServiceError::internal)?.map_err(ServiceError::internal)
    }

    /// Erases details in an archive: a file and not a transaction, so the intent is sealed before and the outcome after.
    async fn erase_archived(&self, call: &Call, entry: Uuid, reason: &str) -> Result<(), ServiceError> {
        let missing = || ServiceError::not_found("audit detail", entry.to_string());
        let Some(archive) = self.archive.clone() else { return Err(missing()) };
        let looked = {
            let archive = archive.clone();
            tokio::task::spawn_blocking(move || {
                for month in months_of(entry) {
                    if archive.find_id(&month, entry)?.is_some_and(|line| line.detail.is_some()) {
                        return Ok(Some(month));
                    }
                }
                Ok::<_, ArchiveError>(None)
            })
        };
        let found = looked.await.map_err(ServiceError::internal)?.map_err(ServiceError::internal)?;
        let month = found.ok_or_else(missing)?;
        let act = || Act::new(action::ERASE, entry.to_string(), json!({"reason": reason, "archive": month}));
        self.base.journal.record(&self.base.db, call, act(), Outcome::Intent).await?;
        let name = month.clone();
        let erasing = tokio::task::spawn_blocking(move || archive.erase(&name, entry));
        erasing.await.map_err(ServiceError::internal)?.map_err(ServiceError::internal)?;
        self.base.journal.record(&self.base.db, call, act(), Outcome::Ok).await.map(|_| ())
    }

    /// Body and details of an entry that left the database; what does not have the sealed digest is not it.
    async fn archived(&self, entry: Uuid, digest: Vec<u8>) -> Result<Option<Archived>, ServiceError> {
        let Some(archive) = self.archive.clone() else { return Ok(None) };
        let looking = tokio::task::spawn_blocking(move || {
            for month in months_of(entry) {
                let Some(line) = archive.find_id(&month, entry)? else { continue };
                let Some(found) = line.entry.filter(|e| body::digest(&e.body.0).as_bytes() == &digest[..]) else {
                    continue;
                };
                return Ok(Some((found.body.0, line.detail.map(|detail| (detail.salt, detail.details.0)))));
            }
            Ok::<_, ArchiveError>(None)
        });
        looking.await.map_err(ServiceError::internal)?.map_err(ServiceError::internal)
    }

    /// The oldest checkpoint that covers the entry, from the file or else from the table.
    async fn checkpoint_for(&self, epoch: u64, seq: u64) -> Result<Option<(SignedNote, Checkpoint)>, ServiceError> {
        let (mut notes, _) = read_file(&self.file).await?;
        let mut session = self.base.db.read_audit().await?;
        notes.extend(audit::checkpoints(&mut session).await?);
        let signer = self.base.inheritance.signer(&self.base.peer, epoch);
        let opened = notes.iter().filter_map(|text| {
            let checkpoint = Checkpoint::open(text, signer.public_key()).ok()?;
            let covers = checkpoint.origin.epoch == epoch && checkpoint.size >= seq;
            Some((text.parse::<SignedNote>().ok()?, checkpoint)).filter(|_| covers)
        });
        Ok(opened.min_by_key(|(_, checkpoint)| checkpoint.size))
    }
}

/// Reads the whole log of a database again and judges it by the checkpoints in `file`, by `peer`'s key and, for the epochs
/// before, by the keys of those that it follows. `told` hears of
/// rows read and rows in all now and then, and says whether to go on.
///
/// # Errors
/// When the log cannot be read to its end, or nobody wants to know any more. A broken log is a verdict, not an error.
pub async fn judge<F: Future<Output = bool>>(
    db: &Db,
    peer: &PeerId,
    inheritance: &Inheritance,
    file: &CheckpointFile,
    told: impl Fn(u64, u64) -> F,
) -> Result<Verification, ServiceError> {
    let (external, torn) = read_file(file).await?;
    if torn > 0 {
        tracing::warn!(torn_bytes = torn, "the checkpoint file ends in a note that was not finished");
    }
    let mut tx = db.snapshot_audit().await?;
    let total = audit::count(&mut tx).await?.sealed;
    let trusted = TrustedInputs {
        public_key: Some(*peer.public_key()),
        former: inheritance.former(peer),
        external,
        table: audit::checkpoints(&mut tx).await?,
    };
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

/// The months whose archives may have an entry: its id was made a moment before or after its time was read.
fn months_of(entry: Uuid) -> Vec<String> {
    let Some(month) = Month::of_id(entry) else { return Vec::new() };
    [month, month.before(), month.next()].map(|month| month.to_string()).to_vec()
}
