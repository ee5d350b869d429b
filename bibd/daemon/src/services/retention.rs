//! How long entries stay in the database: whole months leave it, oldest first, into archives.
//!
//! A reconciler. A month goes when its last day is older than `audit.retention.keep`, every sink has it, and a
//! checkpoint outside covers it: its entries are written to an archive, then one transaction writes the entry
//! `audit.detach`, which names by the node's signature all that is gone, and detaches the partitions; they are dropped
//! once that entry is sealed. Killed anywhere, the next round goes on. The seals stay for ever.
//!
//! On a node with backups a month goes only once a backup has its archive: the log that is archived afterwards would
//! take the month from a restored database, and nobody would have it.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use bib_core::Timestamp;
use bib_core::signature::Purpose;
use bibd_audit::action::DETACH;
use bibd_audit::chain::epoch_target;
use bibd_audit::detach::{Detachment, Run};
use bibd_audit::export::Line;
use bibd_audit::{ChainState, Checkpoint, CheckpointFile};
use bibd_catalog::audit::{self, Place};
use bibd_catalog::{Context, Error as CatalogError, Tx};
use futures::future::BoxFuture;
use futures::{FutureExt as _, StreamExt as _};
use serde_json::json;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use super::archive::{self, Archive, ArchiveError, Written};
use super::audit_rows::as_sealed_line;
use super::backup::BackupUseCases;
use super::base::Base;
use super::error::ServiceError;
use super::journal::Act;
use super::log_reader::place_of;
use super::month::Month;
use crate::config::audit::Retention as Settings;
use crate::foundation::Foundation;
use crate::supervisor::{Policy, TaskKind, TaskResult};

/// How often months are looked at.
const ROUND: Duration = Duration::from_secs(60 * 60);
/// How long a month that could not be detached because the log was busy waits for its next attempt, and how often.
const BUSY_PAUSE: Duration = Duration::from_secs(1);
const BUSY_ATTEMPTS: u32 = 30;
/// Days that the clock must agree on before a month is taken out: nothing younger goes, whatever is configured.
const YOUNGEST: Duration = Duration::from_secs(24 * 60 * 60);

/// Takes months out of the log. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Retention {
    base: Base,
    settings: Settings,
    archive: Archive,
    checkpoints: CheckpointFile,
    /// Names of the readers that must have a month before it goes.
    readers: Vec<String>,
    backups: Option<NewestBackup>,
}

/// Tells when the newest backup that can be restored was begun. Cheap to clone.
#[derive(Clone)]
pub struct NewestBackup(Arc<Ask>);

type Ask = dyn Fn() -> BoxFuture<'static, Result<Option<Timestamp>, ServiceError>> + Send + Sync;

impl NewestBackup {
    /// By asking this.
    pub fn new(
        ask: impl Fn() -> BoxFuture<'static, Result<Option<Timestamp>, ServiceError>> + Send + Sync + 'static,
    ) -> Self {
        Self(Arc::new(ask))
    }
}

impl std::fmt::Debug for NewestBackup {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("NewestBackup")
    }
}

/// What became of a month.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Taken {
    /// It is out.
    Out(Written),
    /// It stays for now, and why.
    Stays(String),
}

/// A month's entries as they are written down.
#[derive(Debug, Default)]
struct Content {
    runs: Vec<Run>,
    last: Option<Place>,
    /// Epochs whose first entry is among them.
    begins: Vec<u64>,
}

/// Starts the reconciler.
pub fn start(foundation: &Foundation, base: &Base, backups: &BackupUseCases) {
    let retention = Retention::new(foundation, base.clone(), backups);
    foundation.supervisor.spawn(TaskKind::Background, Policy::RestartWithBackoff, "audit-retention", move |stop| {
        retention.clone().run(stop)
    });
}

/// Where archives lie.
#[must_use]
pub fn archive_directory(foundation: &Foundation) -> PathBuf {
    let configured = foundation.config().audit.retention.archive.clone();
    configured.unwrap_or_else(|| foundation.data.root().join(archive::DIRECTORY))
}

/// The archives. In the data directory they are encrypted as the rest of it; elsewhere that is not ours to say.
#[must_use]
pub fn archive(foundation: &Foundation) -> Archive {
    let archive = Archive::new(&archive_directory(foundation), foundation.peer_id);
    match foundation.config().audit.retention.archive {
        None => archive.encrypted(foundation.at_rest.clone()),
        Some(_) => archive,
    }
}

impl Retention {
    /// As configured.
    #[must_use]
    pub fn new(foundation: &Foundation, base: Base, backups: &BackupUseCases) -> Self {
        let asked = backups.clone();
        let newest = NewestBackup::new(move || {
            let backups = asked.clone();
            async move { backups.newest_begun().await }.boxed()
        });
        let audit = &foundation.config().audit;
        Self {
            base,
            settings: audit.retention.clone(),
            archive: archive(foundation),
            checkpoints: CheckpointFile::new(&foundation.places.checkpoints),
            readers: audit.export.iter().map(|sink| sink.name.clone()).collect(),
            backups: backups.has_store().then_some(newest),
        }
    }

    /// In these places, for tests.
    #[must_use]
    pub fn of(base: Base, settings: Settings, archive: Archive, file: CheckpointFile, readers: Vec<String>) -> Self {
        Self { base, settings, archive, checkpoints: file, readers, backups: None }
    }

    /// The same on a node with backups, for tests.
    #[must_use]
    pub fn with_backups(self, backups: NewestBackup) -> Self {
        Self { backups: Some(backups), ..self }
    }

    async fn run(self, stop: CancellationToken) -> TaskResult {
        loop {
            self.round().await?;
            if stop.run_until_cancelled(tokio::time::sleep(ROUND)).await.is_none() {
                return Ok(());
            }
        }
    }

    /// Finishes what was begun, then takes out what is due.
    ///
    /// # Errors
    /// When the database or the disk fails; the next round goes on.
    pub async fn round(&self) -> Result<(), ServiceError> {
        let tables = audit::months(&mut self.base.db.read_audit().await?).await?;
        for table in tables.iter().filter(|table| !table.attached) {
            if let Some(month) = Month::parse(&table.month) {
                self.finish(month).await?;
            }
        }
        let Some(keep) = self.settings.keep else { return Ok(()) };
        let keep = i64::try_from(keep.0.max(YOUNGEST).as_secs()).unwrap_or(i64::MAX);
        for table in tables.iter().filter(|table| table.attached) {
            let Some(month) = Month::parse(&table.month) else { continue };
            if month.next().begin().plus_seconds(keep) > self.base.now() {
                break;
            }
            match self.take_out(month).await? {
                Taken::Out(written) => tracing::info!(%month, entries = written.entries, archive = written.name,
                    "a month has left the audit log"),
                Taken::Stays(why) => {
                    tracing::warn!(%month, why, "a month stays in the audit log");
                    break;
                }
            }
        }
        Ok(())
    }

    /// Takes one month out.
    ///
    /// # Errors
    /// When the database or the disk fails.
    pub async fn take_out(&self, month: Month) -> Result<Taken, ServiceError> {
        // Never again: the archive of a month that is out must not be written anew from what is not there.
        let tables = audit::months(&mut self.base.db.read_audit().await?).await?;
        if !tables.iter().any(|table| table.attached && table.month == month.to_string()) {
            return Ok(Taken::Stays("it is not part of the log".to_owned()));
        }
        if let Some(why) = self.in_the_way(month).await? {
            return Ok(Taken::Stays(why));
        }
        if let Some(why) = self.not_backed_up(month).await? {
            return Ok(Taken::Stays(why));
        }
        let (content, written) = Box::pin(self.write_down(month)).await?;
        let said = self.say(month, &content).await?;
        let Ok(target) = said.target(|body| self.base.key.sign(Purpose::Detach, body)) else {
            return Ok(Taken::Stays("its entries are scattered over the log: a clock jumped".to_owned()));
        };
        let details = json!({
            "archive": (!self.settings.discard).then_some(&written.name), "sha256": written.sha256,
            "bytes": written.bytes, "entries": written.entries,
        });
        for _ in 0..BUSY_ATTEMPTS {
            match self.detach(month, &target, &details).await {
                Ok(true) => {
                    self.finish(month).await?;
                    return Ok(Taken::Out(written));
                }
                Ok(false) => return Ok(Taken::Stays("it is not part of the log any more".to_owned())),
                Err(Detaching::Busy) => tokio::time::sleep(BUSY_PAUSE).await,
                Err(Detaching::Failed(error)) => return Err(error),
            }
        }
        Ok(Taken::Stays("the log was busy all the time".to_owned()))
    }

    /// What keeps a month from going: a sink that does not have it, or no checkpoint that covers it.
    async fn in_the_way(&self, month: Month) -> Result<Option<String>, ServiceError> {
        let mut session = self.base.db.read_audit().await?;
        let last = audit::last_between(&mut session, month.begin(), month.next().begin()).await?;
        let Some(last) = last else { return Ok(None) };
        if !self.settings.drop_unexported {
            for reader in &self.readers {
                let place = audit::find_reader(&mut session, reader).await?.unwrap_or_default();
                if place < last {
                    let why = format!("the sink `{reader}` does not have it yet (`bib admin audit sinks`)");
                    return Ok(Some(why));
                }
            }
        }
        drop(session);
        let file = self.checkpoints.clone();
        let notes = tokio::task::spawn_blocking(move || file.read()).await.map_err(ServiceError::internal)?;
        let notes = notes.map_err(ServiceError::internal)?.notes;
        let opened = |note: &String| {
            let inheritance = &self.base.inheritance;
            let former = inheritance.former(&self.base.peer).into_iter().map(|former| former.node);
            let mut signers = std::iter::once(self.base.peer).chain(former);
            signers.find_map(|signer| {
                let found = Checkpoint::open(note, signer.public_key()).ok()?;
                (inheritance.signer(&self.base.peer, found.origin.epoch) == signer).then_some(found)
            })
        };
        let covered = notes.iter().filter_map(opened).any(|checkpoint| {
            let Place { epoch, seq } = last;
            checkpoint.origin.epoch > epoch || (checkpoint.origin.epoch == epoch && checkpoint.size >= seq)
        });
        Ok((!covered).then(|| "no checkpoint in the file covers it".to_owned()))
    }

    /// Why a month waits for a backup, which then has its archive.
    async fn not_backed_up(&self, month: Month) -> Result<Option<String>, ServiceError> {
        let Some(backups) = self.backups.as_ref().filter(|_| !self.settings.discard) else { return Ok(None) };
        let archive = self.archive.clone();
        let looking = tokio::task::spawn_blocking(move || archive.written_at(&month.to_string()));
        let written = looking.await.map_err(ServiceError::internal)?.map_err(ServiceError::internal)?;
        match written {
            Some(written) if (backups.0)().await?.is_some_and(|begun| begun > written) => return Ok(None),
            Some(_) => {}
            None => {
                Box::pin(self.write_down(month)).await?;
            }
        }
        Ok(Some("its archive is written, and goes with the next backup first (`bib admin backup create`)".to_owned()))
    }

    /// Writes a month's entries to its archive. With `discard` they are only looked at.
    async fn write_down(&self, month: Month) -> Result<(Content, Written), ServiceError> {
        let (archive, name, discard) = (self.archive.clone(), month.to_string(), self.settings.discard);
        let (lines, mut taken) = mpsc::channel::<Line>(256); // entries between the database and the disk
        let writing = tokio::task::spawn_blocking(move || {
            if discard {
                let mut entries = 0;
                while taken.blocking_recv().is_some() {
                    entries += 1;
                }
                let name = String::new();
                return Ok(Written { name, sha256: bib_core::Hash::of(b""), bytes: 0, entries });
            }
            let mut writer = archive.begin(&name)?;
            while let Some(line) = taken.blocking_recv() {
                writer.push(&line)?;
            }
            writer.finish()
        });
        let content = self.read_month(month, lines).await?;
        let written: Result<Written, ArchiveError> = writing.await.map_err(ServiceError::internal)?;
        Ok((content, written.map_err(ServiceError::internal)?))
    }

    async fn read_month(&self, month: Month, lines: mpsc::Sender<Line>) -> Result<Content, ServiceError> {
        let mut content = Content::default();
        let mut tx = self.base.db.snapshot_audit().await?;
        let mut rows = Box::pin(audit::rows_between(&mut tx, month.begin(), month.next().begin()));
        while let Some(row) = rows.next().await {
            let row = row?;
            let Place { epoch, seq } = place_of(&row);
            content.last = Some(Place { epoch, seq });
            if seq == 1 {
                content.begins.push(epoch);
            }
            match content.runs.last_mut() {
                Some(run) if run.epoch == epoch && run.last + 1 == seq => run.last = seq,
                _ => content.runs.push(Run { epoch, first: seq, last: seq }),
            }
            // When the writer has failed, it says why.
            if lines.send(Line::Entry(Box::new(as_sealed_line(row)))).await.is_err() {
                break;
            }
        }
        drop(rows);
        tx.rollback().await?;
        Ok(content)
    }

    /// All that is gone once this month is.
    async fn say(&self, month: Month, content: &Content) -> Result<Detachment, ServiceError> {
        let mut session = self.base.db.read_audit().await?;
        let before = audit::newest_detachment(&mut session, "").await?;
        let mut said = before.and_then(|(_, target)| Detachment::read(&target)).unwrap_or_default();
        said.month = month.to_string();
        content.runs.iter().for_each(|run| said.runs.add(*run));
        for epoch in &content.begins {
            if let Some((place, head)) = audit::end_before(&mut session, *epoch).await? {
                let end = ChainState { epoch: place.epoch, seq: place.seq, head, ..ChainState::new(place.epoch) };
                said.ends.insert(epoch_target(&end));
            }
        }
        Ok(said)
    }

    async fn detach(&self, month: Month, target: &str, details: &serde_json::Value) -> Result<bool, Detaching> {
        let call = self.base.internal_call("retention");
        let mut tx = self.begin_seal().await?;
        let act = Act::new(DETACH, target, details.clone());
        let entry = self.base.journal.add(&mut tx, &call, act).await?;
        if !audit::detach_month(&mut tx, month.begin()).await? {
            tx.rollback().await?;
            return Ok(false);
        }
        self.base.journal.commit_added(tx, entry, DETACH).await?;
        Ok(true)
    }

    /// Drops the tables of a month that is out, once the entry that says so is sealed.
    async fn finish(&self, month: Month) -> Result<(), ServiceError> {
        let found = {
            let mut session = self.base.db.read_audit().await?;
            audit::newest_detachment(&mut session, &format!("{month} ")).await?
        };
        let Some((by, _)) = found else {
            tracing::error!(%month, "a month is out of the audit log and no entry says so: it is left as it is");
            return Ok(());
        };
        self.drop_tables(month, by).await
    }

    async fn drop_tables(&self, month: Month, by: Uuid) -> Result<(), ServiceError> {
        let mut tx = self.begin_seal().await?;
        audit::drop_month(&mut tx, month.begin(), by).await?;
        Ok(tx.commit().await?)
    }

    async fn begin_seal(&self) -> Result<Tx, CatalogError> {
        let context = Context { operation: self.base.ids.operation(), user: None, component: "retention" };
        self.base.db.begin_seal(&context).await
    }
}

/// Why a month was not detached.
enum Detaching {
    /// Others were busy with the log.
    Busy,
    Failed(ServiceError),
}

impl From<ServiceError> for Detaching {
    fn from(error: ServiceError) -> Self {
        Self::Failed(error)
    }
}

impl From<CatalogError> for Detaching {
    fn from(error: CatalogError) -> Self {
        match error {
            CatalogError::Collision => Self::Busy,
            other => Self::Failed(other.into()),
        }
    }
}
