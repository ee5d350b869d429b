//! Backups of this node: made, listed, verified, deleted; and the write-ahead log on its way to the store.
//!
//! A backup exists once its signed manifest does, which is written last. What a backup that was cut off left behind is
//! swept before the next one. How one is made is in `making`, what is told of it in `listing`, what happens on time in
//! `keeping`, the way of the log in `shipping`.

mod credentials;
mod keeping;
mod listing;
mod making;
mod shipping;

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use bib_core::access::Verb;
use bib_identity::Recipient;
use bib_identity::sealed_stream::Opener;
use bibd_audit::Outcome;
use bibd_postgres::{Database, Target, Wanted};
use prometheus::IntGauge;
use serde_json::json;
use tokio::sync::{Mutex, MutexGuard, mpsc};

pub use self::credentials::Accepted;
pub use self::listing::Listed;
use super::base::{Base, allow_node};
use super::error::ServiceError;
use super::journal::Act;
use crate::actor::Call;
use crate::backup::document::{VERIFIED_FORMAT, Verified, name, sign};
use crate::backup::landing::{Examined, Landing, stop_leftover};
use crate::backup::log;
use crate::backup::restore::{Note, RESTORED};
use crate::backup::{BackupError, Kind, Made, Manifest, Store, blocking, state};
use crate::errors::ErrorCode;
use crate::foundation::Foundation;
use crate::grpc::health::{Condition, HealthBoard};
use crate::s3::Keys;
use crate::secrets::Secrets;
use crate::services::{recovery, retention};

/// How the names of directories begin in which a backup is verified.
const SCRATCH: &str = "verify-";

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
    /// A physical backup is being made: its log counts already.
    is_making_base: Arc<AtomicBool>,
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

/// Says, as long as it lives, that the log counts.
struct LogCounts<'a>(&'a AtomicBool);

impl<'a> LogCounts<'a> {
    fn set(flag: &'a AtomicBool) -> Self {
        flag.store(true, Ordering::SeqCst);
        Self(flag)
    }
}

impl Drop for LogCounts<'_> {
    fn drop(&mut self) {
        self.0.store(false, Ordering::SeqCst);
    }
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
            is_making_base: Arc::default(),
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
                Box::pin(stop_leftover(&path, self.foundation.config(), self.foundation.entropy())).await?;
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
    pub async fn create(&self, call: &Call, kind: Kind, progress: mpsc::Sender<u64>) -> Result<Made, ServiceError> {
        allow_node(call, Verb::Maintain)?;
        self.perform(call, kind, progress).await
    }

    async fn perform(&self, call: &Call, kind: Kind, progress: mpsc::Sender<u64>) -> Result<Made, ServiceError> {
        let store = self.store()?;
        let _alone = self.alone()?;
        let recipients = self.recipients()?;
        let _log_counts = (kind == Kind::Physical).then(|| LogCounts::set(&self.is_making_base));
        self.sweep(store).await?;
        let id = name(self.base.now(), self.base.ids.entropy().bytes());
        let target = format!("backup:{id}");
        let intent = Act::new("backup.create", target.clone(), json!({ "kind": kind.name() }));
        self.base.journal.record(&self.base.db, call, intent, Outcome::Intent).await?;
        match self.make(store, kind, &id, recipients, progress).await {
            Ok(made) => {
                let details = match &made {
                    Made::Base(manifest) => json!({
                        "kind": kind.name(), "bytes": made.bytes(), "end_lsn": manifest.end_lsn,
                        "recipients": made.recipients(),
                    }),
                    Made::Dump(dump) => json!({
                        "kind": kind.name(), "bytes": made.bytes(), "rows": dump.rows(), "recipients": made.recipients(),
                    }),
                };
                let act = Act::new("backup.create", target, details);
                self.base.journal.record(&self.base.db, call, act, Outcome::Ok).await?;
                self.health.set("backup", Condition::Serving);
                // No dump closes a gap: the log leads on from files alone.
                if kind == Kind::Physical && self.has_gap.swap(false, Ordering::SeqCst) {
                    self.health.set("log", Condition::Serving);
                }
                Ok(made)
            }
            Err(error) => {
                self.forget(store, kind, &id).await;
                let failed = Outcome::Failed(error.code().to_string());
                let act = Act::new("backup.create", target, json!({ "kind": kind.name() }));
                self.base.journal.record(&self.base.db, call, act, failed).await?;
                self.health.set("backup", Condition::Degraded(format!("the last backup failed: {error}")));
                Err(error.into())
            }
        }
    }

    /// What backups that were cut off left.
    async fn sweep(&self, store: &Store) -> Result<(), BackupError> {
        let store = store.clone();
        blocking(move || {
            for kind in Kind::ALL {
                store.sweep(kind.family())?;
                for (id, is_complete) in kind.names(&store)? {
                    if !is_complete {
                        tracing::warn!(backup.id = %id, "a backup that was cut off is removed");
                        remove(&store, kind, &id)?;
                    }
                }
            }
            Ok(())
        })
        .await
    }

    async fn forget(&self, store: &Store, kind: Kind, id: &str) {
        let (store, id) = (store.clone(), id.to_owned());
        if let Err(error) = blocking(move || remove(&store, kind, &id)).await {
            tracing::warn!(error.cause = %error, "a backup that failed is removed before the next one");
        }
    }

    /// Whether this node has a store of backups.
    #[must_use]
    pub fn has_store(&self) -> bool {
        self.store.is_some()
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
        if let Ok((kind, examined)) = &outcome {
            self.note(store, *kind, id, examined.verdict).await?;
        }
        let (result, details) = match &outcome {
            Ok((kind, examined)) => (Outcome::Ok, json!({ "kind": kind.name(), "verdict": examined.verdict })),
            Err(error) => (Outcome::Failed(error.code().to_string()), json!({})),
        };
        let shown: String = id.chars().take(80).collect();
        let act = Act::new("backup.verify", format!("backup:{shown}"), details);
        self.base.journal.record(&self.base.db, call, act, result).await?;
        Ok(outcome?.1)
    }

    /// Keeps in the store that a backup was looked at, so that it is known when the next is due.
    async fn note(&self, store: &Store, kind: Kind, id: &str, verdict: &str) -> Result<(), BackupError> {
        let verified = Verified {
            format: VERIFIED_FORMAT.to_owned(),
            id: id.to_owned(),
            node: self.base.peer,
            time: self.base.now(),
            verdict: verdict.to_owned(),
        };
        let (store, bytes, key) = (store.clone(), sign(&verified, &self.base.key)?, kind.verified_key(id));
        blocking(move || store.put(&key, &bytes)).await
    }

    async fn examine(&self, store: &Store, id: &str) -> Result<(Kind, Examined), BackupError> {
        use std::os::unix::fs::PermissionsExt as _;
        let (from, peer, name) = (store.clone(), self.base.peer, id.to_owned());
        let backup = blocking(move || Made::load(&from, &peer, &name)).await?;
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
            backup: &backup,
            opener: &opener,
            directory: scratch.path(),
            config: self.foundation.config(),
            wanted: crate::foundation::beside(Wanted::Exactly(self.foundation.postgres.choice())),
            entropy: self.foundation.entropy(),
            now_s: self.base.now().as_seconds(),
            failpoints: &self.foundation.failpoints,
        };
        Ok((backup.kind(), Box::pin(landing.run(Target::Consistent, None, true)).await?))
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
        let (from, name) = (store.clone(), id.to_owned());
        let found = blocking(move || {
            for kind in Kind::ALL {
                if kind.names(&from)?.iter().any(|(its, _)| *its == name) {
                    return Ok(Some(kind));
                }
            }
            Ok(None)
        });
        let kind = found.await?.ok_or_else(|| BackupError::NotFound(id.chars().take(80).collect()))?;
        let target = format!("backup:{id}");
        let act = || Act::new("backup.delete", target.clone(), json!({ "kind": kind.name(), "reason": reason }));
        self.base.journal.record(&self.base.db, call, act(), Outcome::Intent).await?;
        let (peer, id) = (self.base.peer, id.to_owned());
        let deleted = blocking(move || {
            remove(&store, kind, &id)?;
            // The log is kept for physical backups; a dump that goes frees none of it.
            if kind == Kind::Logical {
                return Ok(());
            }
            let kept: Vec<Manifest> = Manifest::names(&store)?
                .into_iter()
                .filter(|(_, is_complete)| *is_complete)
                .map(|(name, _)| Manifest::load(&store, &peer, &name))
                .collect::<Result<_, _>>()?;
            log::prune(&store, &kept)
        });
        let outcome = deleted.await;
        let result = outcome.as_ref().map_or_else(|error| Outcome::Failed(error.code().to_string()), |()| Outcome::Ok);
        self.base.journal.record(&self.base.db, call, act(), result).await?;
        Ok(outcome?)
    }
}

/// The manifest first: without it nobody takes the rest for a backup.
fn remove(store: &Store, kind: Kind, id: &str) -> Result<(), BackupError> {
    store.delete(&[kind.manifest_key(id)])?;
    store.delete(&[kind.state_key(id), kind.database_key(id), kind.verified_key(id)])
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
