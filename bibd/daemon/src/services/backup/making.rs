//! How a backup is made: what is not the database, the database as a stream, and last the signed manifest.

use std::io::{self, PipeReader};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bib_core::{Hash, Timestamp};
use bib_identity::Recipient;
use bibd_catalog::{audit, chunks};
use bibd_postgres::GroupRole;
use tokio::sync::mpsc;

use super::BackupUseCases;
use crate::backup::document::{AuditHead, Chunks, MANIFEST_FORMAT, sign};
use crate::backup::dump::DUMP_FORMAT;
use crate::backup::store::Draft;
use crate::backup::{BackupError, Dump, Kind, Made, Manifest, Object, Store, blocking, pack, state};

/// How often whoever waits for a backup hears of it.
const TELL_EVERY: Duration = Duration::from_millis(500);

/// A backup that is being made.
struct Making<'a> {
    store: &'a Store,
    kind: Kind,
    id: &'a str,
    recipients: Vec<Recipient>,
    /// Bytes of the node that are in it already, and who hears of them.
    watched: Arc<AtomicU64>,
    progress: mpsc::Sender<u64>,
}

/// What the catalog said when it began.
struct Begun {
    created: Timestamp,
    audit: AuditHead,
    chunks: Chunks,
}

impl BackupUseCases {
    /// Makes the backup `id`.
    pub(super) async fn make(
        &self,
        store: &Store,
        kind: Kind,
        id: &str,
        recipients: Vec<Recipient>,
        progress: mpsc::Sender<u64>,
    ) -> Result<Made, BackupError> {
        let making = Making { store, kind, id, recipients, watched: Arc::default(), progress };
        let begun = self.begin().await?;
        // Before the database: its checkpoints then speak of nothing that the database has not.
        let state = making.seal_state(self.sources.clone()).await?;
        self.foundation.failpoints.hit("backup.begun");
        let (made, line) = match kind {
            Kind::Physical => {
                let manifest = self.base(&making, begun, state).await?;
                let line = sign(&manifest, &self.base.key)?;
                (Made::Base(Box::new(manifest)), line)
            }
            Kind::Logical => {
                let dump = self.dump(&making, begun, state).await?;
                let line = sign(&dump, &self.base.key)?;
                (Made::Dump(Box::new(dump)), line)
            }
        };
        let (store, key) = (store.clone(), kind.manifest_key(id));
        blocking(move || store.put(&key, &line)).await?;
        self.foundation.failpoints.hit("backup.manifest");
        Ok(made)
    }

    async fn begin(&self) -> Result<Begun, BackupError> {
        let created = self.base.now();
        let unread = |error: bibd_catalog::Error| BackupError::Examine(Box::new(error));
        let mut session = self.base.db.read_audit().await.map_err(unread)?;
        let newest = audit::load_heads(&mut session).await.map_err(unread)?.into_iter().next_back();
        drop(session);
        let mut session = self.base.db.read().await.map_err(unread)?;
        let (count, _, bytes) = chunks::totals(&mut session).await.map_err(unread)?;
        let audit =
            newest.map_or(AuditHead { epoch: self.base.epoch, seq: 0, head: Hash::from_bytes([0; 32]) }, |state| {
                AuditHead { epoch: state.epoch, seq: state.seq, head: state.head }
            });
        Ok(Begun { created, audit, chunks: Chunks { count, bytes } })
    }

    async fn base(&self, making: &Making<'_>, begun: Begun, state: Object) -> Result<Manifest, BackupError> {
        let origin = self.foundation.postgres.origin().await?;
        let login = self.database.login(GroupRole::Backup)?;
        let (running, reader) = self.foundation.postgres.base_backup(&login, making.id).await?;
        let (draft, base) = making.seal_stream(reader).await?;
        // Only now it is known whether what was read is a backup.
        let range = running.finish().await?;
        blocking(move || draft.commit()).await?;
        self.foundation.failpoints.hit("backup.streamed");
        Ok(Manifest {
            format: MANIFEST_FORMAT.to_owned(),
            id: making.id.to_owned(),
            node: self.base.peer,
            epoch: self.base.epoch,
            created: begun.created,
            finished: self.base.now(),
            bibd: env!("CARGO_PKG_VERSION").to_owned(),
            postgres: origin.version.major,
            system_identifier: origin.system_identifier.to_string(),
            timeline: range.timeline,
            start_lsn: range.start_lsn,
            end_lsn: range.end_lsn,
            state,
            base,
            audit: begun.audit,
            chunks: begun.chunks,
            recipients: making.recipients.iter().map(ToString::to_string).collect(),
        })
    }

    async fn dump(&self, making: &Making<'_>, begun: Begun, state: Object) -> Result<Dump, BackupError> {
        let origin = self.foundation.postgres.origin().await?;
        let login = self.database.login(GroupRole::Backup)?;
        let (running, reader) = self.foundation.postgres.dump(&login).await?;
        let (draft, dump) = making.seal_stream(reader).await?;
        // Only now it is known whether what was read is a dump.
        let rows = running.finish().await?;
        blocking(move || draft.commit()).await?;
        self.foundation.failpoints.hit("backup.streamed");
        Ok(Dump {
            format: DUMP_FORMAT.to_owned(),
            id: making.id.to_owned(),
            node: self.base.peer,
            epoch: self.base.epoch,
            created: begun.created,
            finished: self.base.now(),
            bibd: env!("CARGO_PKG_VERSION").to_owned(),
            postgres: origin.version.major,
            system_identifier: origin.system_identifier.to_string(),
            state,
            dump,
            rows,
            audit: begun.audit,
            chunks: begun.chunks,
            recipients: making.recipients.iter().map(ToString::to_string).collect(),
        })
    }
}

impl Making<'_> {
    async fn seal_state(&self, sources: state::Sources) -> Result<Object, BackupError> {
        let (store, key) = (self.store.clone(), self.kind.state_key(self.id));
        let (recipients, watched) = (self.recipients.clone(), Arc::clone(&self.watched));
        blocking(move || {
            let fill = |to: &mut dyn io::Write| state::write(&sources, to);
            let (draft, object) = pack::seal(store.create(&key)?, &recipients, &watched, fill)?;
            draft.commit()?;
            Ok(object)
        })
        .await
    }

    /// Seals what a program prints, to its end, telling how far it is. The draft is worth nothing until the program says
    /// that it succeeded.
    async fn seal_stream(&self, mut reader: PipeReader) -> Result<(Draft, Object), BackupError> {
        let (store, key) = (self.store.clone(), self.kind.database_key(self.id));
        let (recipients, watched) = (self.recipients.clone(), Arc::clone(&self.watched));
        let mut sealing = Box::pin(blocking(move || {
            let draft = store.create(&key)?;
            pack::seal(draft, &recipients, &watched, |to| io::copy(&mut reader, to).map(drop))
        }));
        loop {
            tokio::select! {
                sealed = &mut sealing => return sealed,
                () = tokio::time::sleep(TELL_EVERY) => {
                    if self.progress.send(self.watched.load(Ordering::Relaxed)).await.is_err() {
                        tracing::debug!("nobody listens to the progress of the backup");
                    }
                }
            }
        }
    }
}
