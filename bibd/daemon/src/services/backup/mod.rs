//! Backups of this node: made, listed, verified, deleted; and the write-ahead log on its way to the store.
//!
//! A backup exists once its signed manifest does, which is written last. What a backup that was cut off left behind is
//! swept before the next one.

mod credentials;
mod keeping;
mod shipping;

use std::io::PipeReader;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use bib_core::access::Verb;
use bib_identity::Recipient;
use bib_identity::sealed_stream::Opener;
use bibd_audit::Outcome;
use bibd_catalog::{audit, chunks};
use bibd_postgres::{Database, GroupRole, Target, Wanted};
use prometheus::IntGauge;
use serde_json::json;
use tokio::sync::{Mutex, MutexGuard, mpsc};

pub use self::credentials::Accepted;
use super::base::{Base, allow_node};
use super::error::ServiceError;
use super::journal::Act;
use crate::actor::Call;
use crate::backup::document::{AuditHead, Chunks, MANIFEST_FORMAT, VERIFIED_FORMAT, Verified, name, sign};
use crate::backup::landing::{Examined, Landing, stop_leftover};
use crate::backup::log::{self, Chain};
use crate::backup::restore::{Note, RESTORED};
use crate::backup::{
    BackupError, Manifest, Object, Store, base_key, blocking, manifest_key, pack, state, state_key, verified_key,
};
use crate::errors::ErrorCode;
use crate::foundation::Foundation;
use crate::grpc::health::{Condition, HealthBoard};
use crate::s3::Keys;
use crate::secrets::Secrets;
use crate::services::{recovery, retention};

/// How the names of directories begin in which a backup is verified.
const SCRATCH: &str = "verify-";
/// How often whoever waits for a backup hears of it.
const TELL_EVERY: Duration = Duration::from_millis(500);

/// The use cases. Cheap to clone.
#[derive(Clone)]
pub struct BackupUseCases {
    base: Base,
    store: Option<Store>,
    /// What opens a store on a network.
    keys: Keys,
    sources: state::Sources,
    spool: PathBuf,
    foundation: Foundation,
    database: Arc<Database>,
    secrets: Secrets,
    health: HealthBoard,
    one_at_a_time: Arc<Mutex<()>>,
    /// `bibd_backup_log_waiting_bytes`.
    waiting: IntGauge,
    /// The received log has a gap, and no backup was made since.
    has_gap: Arc<AtomicBool>,
}

impl std::fmt::Debug for BackupUseCases {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("BackupUseCases").field("store", &self.store).finish_non_exhaustive()
    }
}

/// A backup as it is listed.
#[derive(Debug, Clone)]
pub struct Listed {
    /// Its name.
    pub id: String,
    /// Its manifest; `None` when it cannot be trusted.
    pub manifest: Option<Manifest>,
    /// `complete`, or what is wrong with it.
    pub state: String,
    /// The last moment that can be restored from it, when it is complete.
    pub reachable: Option<bib_core::Timestamp>,
    /// When it was last restored beside the node and found to be whole.
    pub verified: Option<bib_core::Timestamp>,
}

impl BackupUseCases {
    /// Over the node's server and store. A node that was restored says so in its log now.
    ///
    /// # Errors
    /// When the log cannot be written.
    pub async fn start(foundation: &Foundation, base: Base) -> Result<Self, ServiceError> {
        let (config, places) = (foundation.config(), &foundation.places);
        let sources = state::Sources {
            data: foundation.data.root().to_owned(),
            checkpoints: places.checkpoints.clone(),
            audit_archive: retention::archive_directory(foundation),
            configuration: foundation.loaded.file.clone(),
        };
        const WAITING: (&str, &str) = ("bibd_backup_log_waiting_bytes", "Log that PostgreSQL could not archive yet.");
        let waiting = IntGauge::new(WAITING.0, WAITING.1).map_err(ServiceError::internal)?;
        foundation.metrics.registry.register(Box::new(waiting.clone())).map_err(ServiceError::internal)?;
        let backup = &config.backup;
        let keys = credentials::keys(backup, &foundation.secrets)?;
        let open = |location| Store::of(location, &backup.s3, keys.clone(), &base.peer);
        let this = Self {
            waiting,
            store: backup.store.as_ref().map(open).transpose()?,
            keys,
            base,
            sources,
            spool: foundation.postgres.layout().spool.clone(),
            database: Arc::clone(&foundation.database),
            secrets: foundation.secrets.clone(),
            health: foundation.health.clone(),
            foundation: foundation.clone(),
            one_at_a_time: Arc::default(),
            has_gap: Arc::default(),
        };
        this.clear_verifications().await?;
        this.tell_restore().await?;
        Ok(this)
    }

    /// A daemon that died during a verification left a directory with everything that a backup has, and a server in it.
    async fn clear_verifications(&self) -> Result<(), BackupError> {
        let data = &self.sources.data;
        for entry in std::fs::read_dir(data).map_err(BackupError::io("list", data))? {
            let entry = entry.map_err(BackupError::io("list", data))?;
            if entry.file_name().to_string_lossy().starts_with(SCRATCH) {
                let path = entry.path();
                tracing::warn!(path = %path.display(), "a verification that was cut off is cleared away");
                stop_leftover(&path, self.foundation.config(), self.foundation.entropy()).await?;
                std::fs::remove_dir_all(&path).map_err(BackupError::io("remove", &path))?;
            }
        }
        Ok(())
    }

    /// The first start after a restore: an entry, and then the note goes.
    async fn tell_restore(&self) -> Result<(), ServiceError> {
        let path = self.sources.data.join(RESTORED);
        let Ok(bytes) = std::fs::read(&path) else { return Ok(()) };
        let note: Note = serde_json::from_slice(&bytes).map_err(ServiceError::internal)?;
        let details = json!({ "from_epoch": note.from_epoch, "target": note.target, "checkpoints": note.checkpoints });
        let act = Act::new("node.restore", format!("backup:{}", note.backup), details);
        self.base.journal.record(&self.base.db, &self.base.internal_call("restore"), act, Outcome::Ok).await?;
        std::fs::remove_file(&path).map_err(ServiceError::internal)
    }

    fn store(&self) -> Result<&Store, BackupError> {
        self.store.as_ref().ok_or(BackupError::NoStore)
    }

    fn alone(&self) -> Result<MutexGuard<'_, ()>, BackupError> {
        self.one_at_a_time.try_lock().map_err(|_| BackupError::Busy)
    }

    /// To whom backups are sealed: the node, and at least one key that is not on it.
    fn recipients(&self) -> Result<Vec<Recipient>, BackupError> {
        let sealed = |source| BackupError::Sealed { object: "secrets/recovery.age".to_owned(), source };
        let public = recovery::find(&self.secrets).map_err(sealed)?.ok_or(BackupError::NoRecoveryKey)?;
        Ok(vec![Recipient::Node(self.base.peer), public.recipient().map_err(sealed)?])
    }

    /// Makes a backup, telling `progress` how many bytes of the node are in it already.
    ///
    /// # Errors
    /// When the caller may not, or it cannot be made: then nothing of it is left.
    pub async fn create(&self, call: &Call, progress: mpsc::Sender<u64>) -> Result<Manifest, ServiceError> {
        allow_node(call, Verb::Maintain)?;
        self.perform(call, progress).await
    }

    async fn perform(&self, call: &Call, progress: mpsc::Sender<u64>) -> Result<Manifest, ServiceError> {
        let store = self.store()?;
        let _alone = self.alone()?;
        let recipients = self.recipients()?;
        self.sweep(store).await?;
        let id = name(self.base.now(), self.base.ids.entropy().bytes());
        let target = format!("backup:{id}");
        let intent = Act::new("backup.create", target.clone(), json!({}));
        self.base.journal.record(&self.base.db, call, intent, Outcome::Intent).await?;
        match self.make(store, &id, recipients, progress).await {
            Ok(manifest) => {
                let details = json!({ "bytes": manifest.bytes(), "end_lsn": manifest.end_lsn, "recipients": manifest.recipients });
                let act = Act::new("backup.create", target, details);
                self.base.journal.record(&self.base.db, call, act, Outcome::Ok).await?;
                self.health.set("backup", Condition::Serving);
                if self.has_gap.swap(false, Ordering::SeqCst) {
                    self.health.set("log", Condition::Serving);
                }
                Ok(manifest)
            }
            Err(error) => {
                self.forget(store, &id).await;
                let failed = Outcome::Failed(error.code().to_string());
                let act = Act::new("backup.create", target, json!({}));
                self.base.journal.record(&self.base.db, call, act, failed).await?;
                self.health.set("backup", Condition::Degraded(format!("the last backup failed: {error}")));
                Err(error.into())
            }
        }
    }

    async fn make(
        &self,
        store: &Store,
        id: &str,
        recipients: Vec<Recipient>,
        progress: mpsc::Sender<u64>,
    ) -> Result<Manifest, BackupError> {
        let created = self.base.now();
        let unread = |error: bibd_catalog::Error| BackupError::Examine(Box::new(error));
        let mut session = self.base.db.read_audit().await.map_err(unread)?;
        let newest = audit::load_heads(&mut session).await.map_err(unread)?.into_iter().next_back();
        drop(session);
        let mut session = self.base.db.read().await.map_err(unread)?;
        let (count, _, bytes) = chunks::totals(&mut session).await.map_err(unread)?;
        drop(session);
        let watched = Arc::new(AtomicU64::new(0));
        // Before the database: its checkpoints then speak of nothing that the database has not.
        let state = self.seal_state(store, id, &recipients, &watched).await?;
        self.foundation.failpoints.hit("backup.begun");
        let origin = self.foundation.postgres.origin().await?;
        let login = self.database.login(GroupRole::Backup)?;
        let (running, reader) = self.foundation.postgres.base_backup(&login, id).await?;
        let mut sealing =
            Box::pin(seal_base(store.clone(), id.to_owned(), recipients.clone(), Arc::clone(&watched), reader));
        let (draft, base) = loop {
            tokio::select! {
                sealed = &mut sealing => break sealed?,
                () = tokio::time::sleep(TELL_EVERY) => {
                    if progress.send(watched.load(Ordering::Relaxed)).await.is_err() {
                        tracing::debug!("nobody listens to the progress of the backup");
                    }
                }
            }
        };
        // Only now it is known whether what was read is a backup.
        let range = running.finish().await?;
        blocking(move || draft.commit()).await?;
        self.foundation.failpoints.hit("backup.streamed");
        let manifest = Manifest {
            format: MANIFEST_FORMAT.to_owned(),
            id: id.to_owned(),
            node: self.base.peer,
            epoch: self.base.epoch,
            created,
            finished: self.base.now(),
            bibd: env!("CARGO_PKG_VERSION").to_owned(),
            postgres: origin.version.major,
            system_identifier: origin.system_identifier.to_string(),
            timeline: range.timeline,
            start_lsn: range.start_lsn,
            end_lsn: range.end_lsn,
            state,
            base,
            audit: newest.map_or(
                AuditHead { epoch: self.base.epoch, seq: 0, head: bib_core::Hash::from_bytes([0; 32]) },
                |state| AuditHead { epoch: state.epoch, seq: state.seq, head: state.head },
            ),
            chunks: Chunks { count, bytes },
            recipients: recipients.iter().map(ToString::to_string).collect(),
        };
        let (store, bytes, key) = (store.clone(), sign(&manifest, &self.base.key)?, manifest_key(id));
        blocking(move || store.put(&key, &bytes)).await?;
        self.foundation.failpoints.hit("backup.manifest");
        Ok(manifest)
    }

    async fn seal_state(
        &self,
        store: &Store,
        id: &str,
        recipients: &[Recipient],
        watched: &Arc<AtomicU64>,
    ) -> Result<Object, BackupError> {
        let (store, key, sources) = (store.clone(), state_key(id), self.sources.clone());
        let (recipients, watched) = (recipients.to_vec(), Arc::clone(watched));
        blocking(move || {
            let fill = |to: &mut dyn std::io::Write| state::write(&sources, to);
            let (draft, object) = pack::seal(store.create(&key)?, &recipients, &watched, fill)?;
            draft.commit()?;
            Ok(object)
        })
        .await
    }

    /// What backups that were cut off left.
    async fn sweep(&self, store: &Store) -> Result<(), BackupError> {
        let store = store.clone();
        blocking(move || {
            store.sweep("base")?;
            for (id, is_complete) in Manifest::names(&store)? {
                if !is_complete {
                    tracing::warn!(backup.id = %id, "a backup that was cut off is removed");
                    remove(&store, &id)?;
                }
            }
            Ok(())
        })
        .await
    }

    async fn forget(&self, store: &Store, id: &str) {
        let (store, id) = (store.clone(), id.to_owned());
        if let Err(error) = blocking(move || remove(&store, &id)).await {
            tracing::warn!(error.cause = %error, "a backup that failed is removed before the next one");
        }
    }

    /// Every backup, newest first.
    ///
    /// # Errors
    /// When the caller may not, or the store cannot be read.
    pub async fn list(&self, call: &Call) -> Result<Vec<Listed>, ServiceError> {
        allow_node(call, Verb::Maintain)?;
        Ok(self.all().await?)
    }

    async fn all(&self) -> Result<Vec<Listed>, BackupError> {
        let (store, peer) = (self.store()?.clone(), self.base.peer);
        let listed = blocking(move || {
            let names = Manifest::names(&store)?.into_iter().rev();
            Ok(names.map(|(id, is_complete)| describe(&store, &peer, id, is_complete)).collect())
        });
        listed.await
    }

    /// Whether this node has a store of backups.
    #[must_use]
    pub fn has_store(&self) -> bool {
        self.store.is_some()
    }

    /// When the newest backup that can be restored was begun: what of the node's files is older is in it.
    ///
    /// # Errors
    /// When the store cannot be read.
    pub async fn newest_begun(&self) -> Result<Option<bib_core::Timestamp>, ServiceError> {
        let complete = self.all().await?.into_iter().filter(|backup| backup.state == "complete");
        Ok(complete.filter_map(|backup| Some(backup.manifest?.created)).max())
    }

    /// One backup.
    ///
    /// # Errors
    /// When the caller may not, or there is no such backup that can be trusted.
    pub async fn show(&self, call: &Call, id: &str) -> Result<Listed, ServiceError> {
        allow_node(call, Verb::Maintain)?;
        let (store, peer, id) = (self.store()?.clone(), self.base.peer, id.to_owned());
        let found = blocking(move || {
            Manifest::load(&store, &peer, &id)?;
            Ok(describe(&store, &peer, id, true))
        });
        Ok(found.await?)
    }

    /// Restores a backup into a directory that is removed again, and says what was in it.
    ///
    /// # Errors
    /// When the caller may not, or the backup is not what it should be: naming what is not.
    pub async fn verify(&self, call: &Call, id: &str) -> Result<Examined, ServiceError> {
        allow_node(call, Verb::Maintain)?;
        self.check(call, id).await
    }

    async fn check(&self, call: &Call, id: &str) -> Result<Examined, ServiceError> {
        let store = self.store()?;
        let _alone = self.alone()?;
        let outcome = self.examine(store, id).await;
        if let Ok(examined) = &outcome {
            self.note(store, id, examined.verdict).await?;
        }
        let (result, details) = match &outcome {
            Ok(examined) => (Outcome::Ok, json!({ "verdict": examined.verdict })),
            Err(error) => (Outcome::Failed(error.code().to_string()), json!({})),
        };
        let shown: String = id.chars().take(80).collect();
        let act = Act::new("backup.verify", format!("backup:{shown}"), details);
        self.base.journal.record(&self.base.db, call, act, result).await?;
        Ok(outcome?)
    }

    /// Keeps in the store that a backup was looked at, so that it is known when the next is due.
    async fn note(&self, store: &Store, id: &str, verdict: &str) -> Result<(), BackupError> {
        let verified = Verified {
            format: VERIFIED_FORMAT.to_owned(),
            id: id.to_owned(),
            node: self.base.peer,
            time: self.base.now(),
            verdict: verdict.to_owned(),
        };
        let (store, bytes, key) = (store.clone(), sign(&verified, &self.base.key)?, verified_key(id));
        blocking(move || store.put(&key, &bytes)).await
    }

    async fn examine(&self, store: &Store, id: &str) -> Result<Examined, BackupError> {
        use std::os::unix::fs::PermissionsExt as _;
        let (from, peer, name) = (store.clone(), self.base.peer, id.to_owned());
        let manifest = blocking(move || Manifest::load(&from, &peer, &name)).await?;
        let opener = Opener::of_node(&self.base.key)
            .map_err(|source| BackupError::Sealed { object: "identity/node_key".to_owned(), source })?;
        let data = &self.sources.data;
        let scratch = tempfile::Builder::new().prefix(SCRATCH).tempdir_in(data).and_then(|scratch| {
            // PostgreSQL's own user passes through when we are root.
            std::fs::set_permissions(scratch.path(), std::fs::Permissions::from_mode(0o711))?;
            Ok(scratch)
        });
        let scratch = scratch.map_err(BackupError::io("make a directory in", data))?;
        self.foundation.at_rest.adopt(scratch.path()).map_err(BackupError::io("encrypt", scratch.path()))?;
        let landing = Landing {
            store,
            manifest: &manifest,
            opener: &opener,
            directory: scratch.path(),
            config: self.foundation.config(),
            wanted: Wanted::Exactly(self.foundation.postgres.choice()),
            entropy: self.foundation.entropy(),
            now_s: self.base.now().as_seconds(),
            failpoints: &self.foundation.failpoints,
        };
        Box::pin(landing.run(Target::Consistent, None, true)).await
    }

    /// Deletes a backup, and the log that no other needs. What a person deleted is in the audit log before it is gone.
    ///
    /// # Errors
    /// When the caller may not, there is no such backup, or the store cannot be written.
    pub async fn delete(&self, call: &Call, id: &str) -> Result<(), ServiceError> {
        allow_node(call, Verb::Maintain)?;
        self.discard(call, id, "asked").await
    }

    async fn discard(&self, call: &Call, id: &str, reason: &str) -> Result<(), ServiceError> {
        let store = self.store()?.clone();
        let _alone = self.alone()?;
        let from = store.clone();
        let names = blocking(move || Manifest::names(&from)).await?;
        if !names.iter().any(|(name, _)| name == id) {
            return Err(BackupError::NotFound(id.chars().take(80).collect()).into());
        }
        let target = format!("backup:{id}");
        let act = |details| Act::new("backup.delete", target.clone(), details);
        self.base.journal.record(&self.base.db, call, act(json!({ "reason": reason })), Outcome::Intent).await?;
        let (peer, id) = (self.base.peer, id.to_owned());
        let deleted = blocking(move || {
            remove(&store, &id)?;
            let kept: Vec<Manifest> = Manifest::names(&store)?
                .into_iter()
                .filter(|(_, is_complete)| *is_complete)
                .map(|(name, _)| Manifest::load(&store, &peer, &name))
                .collect::<Result<_, _>>()?;
            log::prune(&store, &kept)
        });
        let outcome = deleted.await;
        let result = outcome.as_ref().map_or_else(|error| Outcome::Failed(error.code().to_string()), |()| Outcome::Ok);
        self.base.journal.record(&self.base.db, call, act(json!({ "reason": reason })), result).await?;
        Ok(outcome?)
    }
}

/// The manifest first: without it nobody takes the rest for a backup.
fn remove(store: &Store, id: &str) -> Result<(), BackupError> {
    store.delete(&[manifest_key(id)])?;
    store.delete(&[state_key(id), base_key(id), verified_key(id)])
}

fn describe(store: &Store, peer: &bib_core::PeerId, id: String, is_complete: bool) -> Listed {
    let unusable = |id, state| Listed { id, manifest: None, state, reachable: None, verified: None };
    if !is_complete {
        return unusable(id, "incomplete: it was cut off, or is being made".to_owned());
    }
    let manifest = match Manifest::load(store, peer, &id) {
        Ok(manifest) => manifest,
        Err(error) => return unusable(id, error.to_string()),
    };
    let verified = Verified::load(store, peer, &id).filter(|one| one.verdict == "OK").map(|one| one.time);
    let (state, reachable) = match Chain::find(store, &manifest) {
        Ok(chain) => ("complete".to_owned(), chain.reachable),
        Err(error) => (error.to_string(), manifest.created),
    };
    Listed { id, manifest: Some(manifest), state, reachable: Some(reachable), verified }
}

async fn seal_base(
    store: Store,
    id: String,
    recipients: Vec<Recipient>,
    watched: Arc<AtomicU64>,
    mut reader: PipeReader,
) -> Result<(crate::backup::store::Draft, Object), BackupError> {
    blocking(move || {
        let draft = store.create(&base_key(&id))?;
        pack::seal(draft, &recipients, &watched, |to| std::io::copy(&mut reader, to).map(drop))
    })
    .await
}

impl From<BackupError> for ServiceError {
    fn from(error: BackupError) -> Self {
        let (code, sentence, hint) = (error.code(), crate::grpc::error::chain(&error), error.hint());
        match error {
            BackupError::Examine(_) | BackupError::Broken => Self::internal(error),
            BackupError::Busy => Self::unavailable(ErrorCode::BUSY, sentence),
            BackupError::NotFound(id) => Self::not_found("backup", id),
            BackupError::Credentials(problem) => Self::invalid("credentials", problem.to_string()),
            _ => Self::conflict(code, sentence, hint),
        }
    }
}
