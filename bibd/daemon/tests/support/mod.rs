//! The services in this process, without the network: a real PostgreSQL, a real store, a clock that stands still.
#![allow(dead_code, unreachable_pub, reason = "each test binary uses its own part")]
#![allow(clippy::print_stderr, reason = "a test that cannot run says so loudly")]

use std::collections::BTreeMap;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use bib_core::access::NodeRole;
use bib_core::{PeerId, UserId};
use bib_identity::NodeKey;
use bib_identity::ssh::{self, UserKey};
use bibd::actor::{Actor, Call, Scopes, Via};
use bibd::clock::{Clock as _, Entropy, Ids, ManualClock, SystemClock};
use bibd::grpc::health::HealthBoard;
use bibd::metrics::Metrics;
use bibd::services::audit::AuditService;
use bibd::services::base::{Base, Quotas};
use bibd::services::data::DataUseCases;
use bibd::services::dataset::DatasetUseCases;
use bibd::services::journal::Journal;
use bibd::services::sequencer::Sequencer;
use bibd::services::tier::{Tier, TierParts};
use bibd::services::topic::TopicUseCases;
use bibd::services::updates::Updates;
use bibd_audit::CheckpointFile;
use bibd_blobs::BlobStore;
use bibd_catalog::users::{self, User, UserState};
use bibd_catalog::{Db, Pools, migrate, node};
use bibd_postgres::account::Account;
use bibd_postgres::{
    Act, Database, GroupRole, ManagedPostgres as _, PrivilegedObserver, ProcessPostgres, Randomness, SecretStore,
    SecretStoreError, Settings, binaries,
};
use rand::SeedableRng as _;
use secrecy::{ExposeSecret as _, SecretString};
use sqlx::postgres::PgPoolOptions;
use sqlx::{Connection as _, PgConnection, PgPool};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

/// Secrets in memory.
#[derive(Default)]
struct MemoryStore(Mutex<BTreeMap<String, String>>);

impl SecretStore for MemoryStore {
    fn read(&self, name: &str) -> Result<Option<SecretString>, SecretStoreError> {
        Ok(self.0.lock().unwrap().get(name).map(|text| SecretString::from(text.as_str())))
    }

    fn write(&self, name: &str, secret: &SecretString) -> Result<(), SecretStoreError> {
        self.0.lock().unwrap().insert(name.to_owned(), secret.expose_secret().to_owned());
        Ok(())
    }
}

struct Unobserved;

impl PrivilegedObserver for Unobserved {
    fn opening(&self, _: Act) -> Result<(), Box<dyn std::error::Error + Send + Sync>> {
        Ok(())
    }

    fn closed(&self, _: Act, _: Duration, _: bool) {}
}

/// Opens object storage for a node.
pub type OpenTier = Box<dyn FnOnce(&NodeKey) -> TierParts + Send>;

/// A node's services. Dropped, it stops the PostgreSQL that it started.
pub struct Lab {
    pub base: Base,
    pub data: DataUseCases,
    pub datasets: DatasetUseCases,
    pub topics: TopicUseCases,
    pub audit: AuditService,
    pub clock: ManualClock,
    pub metrics: Arc<Metrics>,
    /// For what no use case offers: looking into tables.
    pub sql: PgPool,
    sequencer: Option<(CancellationToken, JoinHandle<()>)>,
    postgres_data: PathBuf,
    place: tempfile::TempDir,
}

/// Somebody with a key.
pub struct Person {
    pub call: Call,
    pub key: UserKey,
}

/// Whether this machine can run the tests. Without PostgreSQL they say so loudly and pass; with CI=true they fail.
async fn machine_has_postgres() -> bool {
    let found = match Account::choose(None, Path::new("/nonexistent")).await {
        Ok(account) => binaries::choose(None, None, account).await.map(drop),
        Err(error) => Err(error),
    };
    let Err(error) = found else { return true };
    assert!(std::env::var("CI").as_deref() != Ok("true"), "CI must have PostgreSQL: {error}");
    eprintln!("\n==== SKIPPED, NOTHING TESTED: {error}\n==== {}\n", error.hint().unwrap_or_default());
    false
}

impl Lab {
    /// `None` when there is no PostgreSQL.
    pub async fn start() -> Option<Self> {
        Self::start_with(Quotas::default()).await
    }

    pub async fn start_with(quotas: Quotas) -> Option<Self> {
        Self::start_on(quotas, None).await
    }

    /// With object storage, which `bucket` opens for the node's key.
    pub async fn start_on(quotas: Quotas, bucket: Option<OpenTier>) -> Option<Self> {
        if !machine_has_postgres().await {
            return None;
        }
        // Shown with a test that fails.
        let _ = tracing_subscriber::fmt().with_test_writer().with_max_level(tracing::Level::WARN).try_init();
        let place = tempfile::tempdir().unwrap();
        for name in ["", "d", "r"] {
            let path = place.path().join(name);
            std::fs::create_dir_all(&path).unwrap();
            // When root, the server's user must pass through.
            std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o711)).unwrap();
        }
        let settings = Settings::new(place.path().join("d"), place.path().join("r"));
        let (secrets, random) =
            (Arc::new(MemoryStore::default()), Randomness::new(rand::rngs::StdRng::seed_from_u64(2)));
        let postgres = Arc::new(ProcessPostgres::new(settings, secrets.clone(), random.clone()));
        postgres.provision().await.unwrap();
        postgres.start().await.unwrap();
        let database = Database::new(postgres.clone(), secrets, Arc::new(Unobserved), random);
        let clock = ManualClock::at(SystemClock.now());
        let (db, sql) = open(&database, &clock).await;
        let ids = Ids::new(Arc::new(clock.clone()), Entropy::seeded(7));
        let key = Arc::new(NodeKey::create(&place.path().join("node"), &mut ids.entropy().clone()).unwrap());
        let peer: PeerId = key.peer_id();
        let base = Base {
            db,
            blobs: BlobStore::open(&place.path().join("store"), bibd_blobs::Settings::default()).unwrap(),
            key: Arc::clone(&key),
            peer,
            epoch: 1,
            inheritance: Arc::default(),
            journal: Journal::new(peer, ids.clone()),
            ids,
            updates: Updates::default(),
            quotas,
        };
        let mut tx = base.begin(&base.internal_call("test"), "test").await.unwrap();
        node::put_self(&mut tx, &peer, "0", base.now()).await.unwrap();
        // For clocks that are moved on: the sequencer makes the log's partitions only some days ahead.
        for months in 0..12 {
            let moment = base.now().plus_seconds(months * 28 * 24 * 60 * 60);
            bibd_catalog::audit::make_month(&mut tx, moment).await.unwrap();
        }
        tx.commit().await.unwrap();
        let file = CheckpointFile::new(&place.path().join("checkpoints"));
        let sequencer = Sequencer::start(base.clone(), file.clone(), Duration::from_secs(60)).await.unwrap();
        let stop = CancellationToken::new();
        let running = sequencer.run(stop.clone());
        #[allow(clippy::disallowed_methods, reason = "there is no supervisor here")]
        let handle = tokio::spawn(async move { running.await.unwrap() });
        let topics = TopicUseCases::new(base.clone());
        let datasets = DatasetUseCases::new(base.clone(), topics.clone());
        let audit = AuditService::new(base.clone(), file);
        let metrics = Metrics::new().unwrap();
        let tier = Tier::new(base.clone(), bucket.map(|open| open(&key)), HealthBoard::default(), &metrics.registry);
        let data = DataUseCases::new(
            base.clone(),
            datasets.clone(),
            topics.clone(),
            audit.clone(),
            tier.unwrap(),
            &metrics.registry,
        )
        .unwrap();
        Some(Self {
            base,
            data,
            datasets,
            topics,
            audit,
            clock,
            metrics,
            sql,
            sequencer: Some((stop, handle)),
            postgres_data: postgres.layout().data.clone(),
            place,
        })
    }

    /// A user with a key, on the socket.
    pub async fn person(&self, name: &str, role: NodeRole) -> Person {
        let mut rng = self.base.ids.entropy().clone();
        let key = ssh::generate(&self.place.path().join(name), name, &mut rng).unwrap();
        let (id, now) = (self.base.ids.user(), self.base.now());
        let mut tx = self.base.begin(&self.base.internal_call("test"), "test").await.unwrap();
        let user = User {
            id,
            name: name.to_owned(),
            display_name: String::new(),
            orcid: String::new(),
            role,
            state: UserState::Active,
            uids: Vec::new(),
            created_at: now,
        };
        users::insert(&mut tx, &user).await.unwrap();
        let own = users::UserKey {
            fingerprint: key.public().fingerprint(),
            user: id,
            public_key: key.public().to_string(),
            comment: name.to_owned(),
            added_at: now,
            removed_at: None,
        };
        users::add_key(&mut tx, &own).await.unwrap();
        tx.commit().await.unwrap();
        Person { call: self.call(id, name, role), key }
    }

    pub fn call(&self, user: UserId, name: &str, role: NodeRole) -> Call {
        let uid = rustix::process::geteuid().as_raw();
        let actor = Actor { user, name: name.to_owned(), role, via: Via::Socket { uid }, scopes: Scopes::All };
        let operation = self.base.ids.operation();
        Call { operation, request_id: operation.to_string(), actor, time: self.base.now() }
    }

    /// Moves the clock on.
    pub fn advance(&self, by: Duration) {
        self.clock.advance(by);
    }

    /// Where files of the store and of the test lie.
    pub fn path(&self, name: &str) -> PathBuf {
        self.place.path().join(name)
    }

    /// One number out of a table.
    pub async fn number(&self, sql: &'static str) -> i64 {
        sqlx::query_scalar(sql).fetch_one(&self.sql).await.unwrap()
    }

    /// Ends the sequencer as a daemon that stops does.
    pub async fn stop(mut self) {
        if let Some((stop, handle)) = self.sequencer.take() {
            stop.cancel();
            handle.await.unwrap();
        }
        self.base.db.close().await;
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        // Only the server of this very directory, which the test started: found through its pid file.
        let Ok(text) = std::fs::read_to_string(self.postgres_data.join("postmaster.pid")) else { return };
        let Some(pid) = text.lines().next().and_then(|line| line.parse::<i32>().ok()) else { return };
        let ours = || std::fs::read_link(format!("/proc/{pid}/cwd")).is_ok_and(|cwd| cwd == self.postgres_data);
        if ours()
            && let Some(id) = rustix::process::Pid::from_raw(pid)
        {
            let _ = rustix::process::kill_process(id, rustix::process::Signal::QUIT);
            let deadline = Instant::now() + Duration::from_secs(10);
            while ours() && Instant::now() < deadline {
                std::thread::sleep(Duration::from_millis(5));
            }
        }
    }
}

async fn open(database: &Database, clock: &ManualClock) -> (Db, PgPool) {
    database.ensure_roles().await.unwrap();
    let now = clock.now();
    let migrated = database.with_migration_login(|options| async move {
        let mut connection = PgConnection::connect_with(&options).await.unwrap();
        migrate::up(&mut connection, now).await.map(drop)
    });
    migrated.await.unwrap().unwrap();
    let pool = |group, size| {
        let options = database.connect_options(group).unwrap();
        PgPoolOptions::new().max_connections(size).acquire_timeout(Duration::from_secs(10)).connect_lazy_with(options)
    };
    let service = pool(GroupRole::Service, 16);
    let pools = Pools {
        service: service.clone(),
        seal: pool(GroupRole::Seal, 2),
        audit: pool(GroupRole::Audit, 2),
        monitor: pool(GroupRole::Monitor, 1),
    };
    (Db::new(pools), service)
}
