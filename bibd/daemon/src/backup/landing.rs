//! A backup laid out into a data directory, recovered, looked at, and stopped again: what a restore and a verification
//! have in common. How the database comes out of a logical one is in the private module `loading`.

use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use bib_core::record::LastMark;
use bib_identity::NodeKey;
use bib_identity::sealed_stream::Opener;
use bibd_audit::CheckpointFile;
use bibd_catalog::records::StoredRecord;
use bibd_catalog::{Db, audit, chunks, datasets, records, topics, users};
use bibd_postgres::choose::choose;
use bibd_postgres::rotation::Which;
use bibd_postgres::wal::Feed;
use bibd_postgres::{Database, Failpoints, ManagedPostgres, Recovery, Stop, Target, Wal, Wanted};

use super::Made;
use super::checkpoints::take_over;
use super::document::Manifest;
use super::error::BackupError;
use super::log::Chain;
use super::store::Store;
use super::{blocking, pack};
use crate::clock::Entropy;
use crate::config::Config;
use crate::foundation::{self, SuperuserUses};
use crate::inheritance::Inheritance;
use crate::secrets::Secrets;
use crate::services::audit::judge;
use crate::services::recovery;

/// How long recovery may take: it reads all the log since the backup.
const RECOVERY_DEADLINE: Duration = Duration::from_secs(24 * 60 * 60);
/// What PostgreSQL says when nothing was committed after the wanted moment.
const ENDED_EARLY: &str = "recovery ended before configured recovery target was reached";

/// What is to be laid out, and where.
#[derive(Debug)]
pub struct Landing<'a> {
    /// The store.
    pub store: &'a Store,
    /// The backup.
    pub backup: &'a Made,
    /// The key.
    pub opener: &'a Opener,
    /// The data directory, which exists and is empty but for a marker.
    pub directory: &'a Path,
    /// Sizes, user and programs of PostgreSQL.
    pub config: &'a Config,
    /// What runs PostgreSQL.
    pub wanted: Wanted,
    /// For new passwords of the database.
    pub entropy: &'a Entropy,
    /// Their date, in seconds since 1970.
    pub now_s: i64,
    /// Where a test ends the process.
    pub failpoints: &'a Failpoints,
}

/// What was found in a recovered database.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Examined {
    /// Rows by what they are.
    pub rows: Vec<(&'static str, u64)>,
    /// `OK`, `TAMPERED` or `UNVERIFIED`: the audit log against its checkpoints.
    pub verdict: &'static str,
    /// What the verdict means, in a sentence.
    pub explanation: String,
    /// Checkpoints that were newer than the file in the backup.
    pub taken_over: usize,
    /// What the node says of itself, when it does: there its recovery key stands.
    pub node_record: Option<StoredRecord>,
    /// The last that the node signed about anything.
    pub last: LastMark,
}

/// Ends the server that a process which died left in `directory`, the data directory of a restore or a verification.
///
/// # Errors
/// When it runs and does not end.
pub async fn stop_leftover(directory: &Path, config: &Config, entropy: &Entropy) -> Result<(), BackupError> {
    // The key comes first and goes last: without it there was no server.
    let Ok(key) = NodeKey::load(&directory.join("identity/node_key")) else { return Ok(()) };
    let peer = key.peer_id();
    let secrets = Secrets::new(&directory.join("secrets"), Arc::new(key), Vec::new());
    let settings = foundation::postgres_settings_at(config, directory, &directory.join("run"));
    let settings = settings.beside_node(&peer.short());
    let wanted = foundation::beside(foundation::wanted_provisioner(config));
    let postgres = choose(wanted, settings, Arc::new(secrets), foundation::randomness(entropy)).await?;
    Ok(remove(postgres.as_ref()).await?)
}

/// A directory for sockets, which must have short names; gone when dropped.
pub(super) fn sockets() -> Result<tempfile::TempDir, BackupError> {
    let made = tempfile::Builder::new().prefix("bibd-restore-").tempdir().and_then(|directory| {
        // PostgreSQL's own user passes through when we are root; its socket has a private directory in it.
        std::fs::set_permissions(directory.path(), std::fs::Permissions::from_mode(0o711))?;
        Ok(directory)
    });
    made.map_err(BackupError::io("make a directory for sockets in", &std::env::temp_dir()))
}

/// Ends a server that nobody needs any more, with its container.
///
/// # Errors
/// When it does not end, or a container engine does not answer.
pub(super) async fn remove(postgres: &dyn ManagedPostgres) -> Result<(), bibd_postgres::Error> {
    postgres.stop(Stop::Immediate).await?;
    postgres.dismantle().await
}

/// Passes on what came of a server; where it failed, none is left behind.
async fn or_remove<T>(outcome: Result<T, BackupError>, postgres: &dyn ManagedPostgres) -> Result<T, BackupError> {
    if outcome.is_err()
        && let Err(error) = remove(postgres).await
    {
        tracing::warn!(error.cause = %error, "a server that could not be recovered could not be stopped either");
    }
    outcome
}

impl Landing<'_> {
    /// Lays everything out, recovers up to `target` and says what is there. `chain` is read for what the backup itself
    /// does not have. With `list`, PostgreSQL compares every file with its own list first. A logical backup has one moment,
    /// no files, and no log that continues it: there the rows are counted.
    ///
    /// # Errors
    /// With the object that is not what it should be, by its name. Nothing in the directory is worth anything then.
    pub async fn run(&self, target: Target, chain: Option<&Chain>, list: bool) -> Result<Examined, BackupError> {
        self.check().await?;
        let key = self.unpack_state().await?;
        match self.backup {
            Made::Base(manifest) => Box::pin(self.recover(manifest, key, target, chain, list)).await,
            Made::Dump(dump) => Box::pin(self.load(dump, key)).await,
        }
    }

    async fn recover(
        &self,
        manifest: &Manifest,
        key: NodeKey,
        target: Target,
        chain: Option<&Chain>,
        list: bool,
    ) -> Result<Examined, BackupError> {
        let runtime = sockets()?;
        let feed_directory = chain.map(|_| runtime.path().join("feed"));
        let recover = |target| Wal::Recover(Recovery { target, feed: feed_directory.clone() });
        let secrets = Arc::new(self.secrets(key)?);
        let server = |wal| {
            let mut settings = foundation::postgres_settings_at(self.config, self.directory, runtime.path());
            settings.wal = wal;
            settings.major = Some(manifest.postgres);
            settings.start_deadline = RECOVERY_DEADLINE;
            let settings = settings.beside_node(&manifest.node.short());
            choose(self.wanted, settings, secrets.clone(), foundation::randomness(self.entropy))
        };
        let mut postgres = server(recover(target.clone())).await?;
        let (data, account) = postgres.begin_restore(manifest.postgres).await?;
        self.unpack_base(&data).await?;
        blocking(move || Ok(bibd_postgres::backup::give_tree(&data, account)?)).await?;
        if list {
            postgres.verify_files(&postgres.layout().data_new.clone()).await?;
        }
        let identifier = manifest.system_identifier.parse().unwrap_or_default();
        postgres.finish_restore(identifier).await?;
        self.failpoints.hit("restore.unpacked");
        let feed = feed_directory.as_deref().map(|path| Feed::create(path, account)).transpose()?;
        let fed = chain.zip(feed.as_ref());
        match self.start(postgres.as_ref(), fed).await {
            Ok(()) => {}
            // Nothing was committed between the wanted moment and the end of the log, which lies after it: the state
            // of that moment is the one at the end.
            Err(BackupError::Postgres(error)) if error.to_string().contains(ENDED_EARLY) => {
                postgres = server(recover(Target::Latest)).await?;
                self.start(postgres.as_ref(), fed).await?;
            }
            Err(error) => return Err(error),
        }
        self.failpoints.hit("restore.recovered");
        postgres.stop(Stop::Clean).await?;
        // What the backup knows are the passwords of its own time, and the log may go past a rotation.
        postgres.settle_restore(self.now_s).await?;
        let postgres = server(Wal::Recycle).await?;
        self.start(postgres.as_ref(), None).await?;
        let examined = self.examine(&self.database(&postgres, &secrets)).await;
        let examined = or_remove(examined, postgres.as_ref()).await?;
        let stopped = postgres.stop(Stop::Clean).await.map_err(BackupError::from);
        or_remove(stopped, postgres.as_ref()).await?;
        postgres.dismantle().await?;
        self.failpoints.hit("restore.examined");
        Ok(examined)
    }

    /// Every byte against the manifest, before any is used.
    async fn check(&self) -> Result<(), BackupError> {
        let (store, backup) = (self.store.clone(), self.backup.clone());
        let kind = backup.kind();
        blocking(move || {
            pack::check(&store, &kind.state_key(backup.id()), backup.state())?;
            pack::check(&store, &kind.database_key(backup.id()), backup.database())
        })
        .await
    }

    async fn unpack_state(&self) -> Result<NodeKey, BackupError> {
        let (store, opener) = (self.store.clone(), self.opener.clone());
        let key = self.backup.kind().state_key(self.backup.id());
        let directory = self.directory.to_owned();
        let node = self.backup.node();
        blocking(move || {
            pack::unpack(pack::open(&store, &key, &opener)?, &directory, &key)?;
            let found = NodeKey::load(&directory.join("identity/node_key"));
            match found {
                Ok(found) if found.peer_id() == node => Ok(found),
                Ok(found) => Err(BackupError::Differs(format!("its key is that of {}", found.peer_id()))),
                Err(error) => Err(BackupError::Damaged { object: key, problem: error.to_string() }),
            }
        })
        .await
    }

    /// Where the database lies.
    pub(super) fn database_key(&self) -> String {
        self.backup.kind().database_key(self.backup.id())
    }

    /// The unpacked secrets; what is written is sealed to the recovery key too, as the node did.
    pub(super) fn secrets(&self, key: NodeKey) -> Result<Secrets, BackupError> {
        let secrets = Secrets::new(&self.directory.join("secrets"), Arc::new(key), Vec::new());
        let sealed = |source| BackupError::Sealed { object: "secrets/recovery.age".to_owned(), source };
        if let Some(public) = recovery::find(&secrets).map_err(sealed)? {
            secrets.set_recovery(vec![public.recipient().map_err(sealed)?]);
        }
        Ok(secrets)
    }

    async fn unpack_base(&self, into: &Path) -> Result<(), BackupError> {
        let (store, opener, key) = (self.store.clone(), self.opener.clone(), self.database_key());
        let into: PathBuf = into.to_owned();
        blocking(move || pack::unpack(pack::open(&store, &key, &opener)?, &into, &key)).await
    }

    /// Starts the server and feeds it until it takes connections. What ends early leaves no server behind.
    pub(super) async fn start(
        &self,
        postgres: &dyn ManagedPostgres,
        fed: Option<(&Chain, &Feed)>,
    ) -> Result<(), BackupError> {
        let feeding = async {
            match fed {
                Some((chain, feed)) => chain.feed(self.store, self.opener, feed).await,
                None => std::future::pending().await,
            }
        };
        let outcome = tokio::select! {
            started = postgres.start() => started.map(drop).map_err(BackupError::from),
            damaged = feeding => Err(damaged),
        };
        or_remove(outcome, postgres).await
    }

    /// The database on the server that was laid out.
    pub(super) fn database(&self, postgres: &Arc<dyn ManagedPostgres>, secrets: &Arc<Secrets>) -> Database {
        let (uses, random) = (Arc::new(SuperuserUses::default()), foundation::randomness(self.entropy));
        Database::new(postgres.clone(), secrets.clone(), uses, random)
    }

    /// Gives every login a new password and says what is there.
    pub(super) async fn examine(&self, database: &Database) -> Result<Examined, BackupError> {
        database.rotate(&Which::all(), self.now_s, |_| std::future::ready(())).await?;
        let db =
            foundation::open_pools(self.config, database).map_err(|error| BackupError::Examine(Box::new(error)))?;
        let examined = self.look(&db).await;
        db.close().await;
        examined
    }

    async fn look(&self, db: &Db) -> Result<Examined, BackupError> {
        let failed = |error: bibd_catalog::Error| BackupError::Examine(Box::new(error));
        let mut session = db.read().await.map_err(failed)?;
        let (datasets, versions) = datasets::count(&mut session).await.map_err(failed)?;
        let mut rows = vec![
            ("users", users::count(&mut session).await.map_err(failed)?),
            ("topics", topics::count(&mut session).await.map_err(failed)?),
            ("datasets", datasets),
            ("versions", versions),
            ("chunks", chunks::totals(&mut session).await.map_err(failed)?.0),
        ];
        drop(session);
        let head = self.backup.audit();
        if head.seq > 0 {
            let mut session = db.read_audit().await.map_err(failed)?;
            let row = audit::find_sealed(&mut session, head.epoch, head.seq).await.map_err(failed)?;
            if row.is_none_or(|row| row.head != head.head.as_bytes()) {
                let problem = format!("entry {}/{} of the audit log is another", head.epoch, head.seq);
                return Err(BackupError::Differs(problem));
            }
        }
        let file = CheckpointFile::new(&self.directory.join("checkpoints"));
        let node = &self.backup.node();
        let taken_over = take_over(db, node, &file).await?;
        let inheritance = Inheritance::load(db).await.map_err(failed)?;
        let judged = judge(db, node, &inheritance, &file, |_, _| async { true }).await;
        let judged = judged.map_err(|error| BackupError::Examine(Box::new(error)))?;
        rows.push(("audit entries", judged.entries));
        let (verdict, mut explanation) = judged.words();
        if taken_over > 0 {
            explanation.push_str(&format!("; {taken_over} checkpoints were made after the backup began"));
        }
        let mut session = db.read().await.map_err(failed)?;
        let node_record = records::find(&mut session, "node", &node.to_string()).await.map_err(failed)?;
        let last = records::last_of(&mut session, node).await.map_err(failed)?;
        Ok(Examined { rows, verdict, explanation, taken_over, node_record, last })
    }
}
