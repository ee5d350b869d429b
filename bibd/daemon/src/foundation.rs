//! What services are built on: identity, secrets, database, blobs, and the frame around them, opened in the order that
//! a start needs. Nothing here serves a call.

use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use bib_core::PeerId;
use bib_identity::NodeKey;
use bibd_blobs::BlobStore;
use bibd_catalog::{Db, migrate};
use bibd_postgres::database::Database;
use bibd_postgres::settings::ContainerLimits;
use bibd_postgres::superuser::{Act, PrivilegedObserver};
use bibd_postgres::wal::SEGMENT_BYTES;
use bibd_postgres::{
    Choice, Failpoints, InKubernetes, Limits, ManagedPostgres, Randomness, RunAs, Settings, Wal, Wanted,
};
use sqlx::Connection as _;
use sqlx::postgres::PgConnectOptions;
use tokio::sync::watch;

use crate::app::StartError;
use crate::at_rest::AtRest;
use crate::certificates::Certificates;
use crate::clock::{Clock, Entropy, Ids};
use crate::config::{self, Compression, Config, Loaded, Places, Provisioner, kubernetes_access, kubernetes_settings};
use crate::data_dir::DataDir;
use crate::grpc::connections::ConnectionRegistry;
use crate::grpc::health::HealthBoard;
use crate::grpc::revocation::CertificateList;
use crate::grpc::stack::RateLimiter;
use crate::inheritance::Inheritance;
use crate::logging::Logs;
use crate::metrics::Metrics;
use crate::pools::RolePools;
use crate::secrets::Secrets;
use crate::supervisor::Supervisor;

/// Uses of the superuser that are remembered until the audit log takes them.
const MAX_USES: usize = 256;

/// Everything that services are built on. Cheap to clone.
#[derive(Clone)]
pub struct Foundation {
    /// The configuration with its origins.
    pub loaded: Arc<Loaded>,
    /// Where everything lies.
    pub places: Arc<Places>,
    /// The data directory, locked.
    pub data: Arc<DataDir>,
    /// The clock.
    pub clock: Arc<dyn Clock>,
    /// Makes ids; its generator is the one of the daemon.
    pub ids: Ids,
    /// The node's key.
    pub key: Arc<NodeKey>,
    /// Who this node is.
    pub peer_id: PeerId,
    /// Raised by every restore.
    pub epoch: u64,
    /// Whom this node follows.
    pub inheritance: Arc<Inheritance>,
    /// The sealed secrets.
    pub secrets: Secrets,
    /// Encryption of the directories that hold data.
    pub at_rest: AtRest,
    /// CA and TLS.
    pub certificates: Arc<Certificates>,
    /// Which client certificates count.
    pub certificate_list: CertificateList,
    /// Live connections.
    pub connections: ConnectionRegistry,
    /// The rate limit.
    pub limiter: RateLimiter,
    /// The managed PostgreSQL.
    pub postgres: Arc<dyn ManagedPostgres>,
    /// Its roles and logins.
    pub database: Arc<Database>,
    /// Uses of the superuser that the audit log has not taken yet.
    pub superuser_uses: Arc<SuperuserUses>,
    /// The pools of its roles, as a rotation moves them.
    pub pools: RolePools,
    /// The catalog, over these pools.
    pub db: Db,
    /// Migrations that this start ran, for the audit log.
    pub migrated: Arc<Vec<migrate::Applied>>,
    /// The chunks.
    pub blobs: BlobStore,
    /// Starts tasks.
    pub supervisor: Supervisor,
    /// Counts.
    pub metrics: Arc<Metrics>,
    /// Where components say how they are.
    pub health: HealthBoard,
    /// The daemon's log.
    pub logs: Logs,
    /// Asks the daemon to stop.
    pub shutdown: Shutdown,
    /// Where a test ends the process.
    pub failpoints: Failpoints,
    /// When the daemon started, on the monotonic scale.
    pub started: Instant,
    /// Where TLS is served.
    pub addresses: Arc<Vec<std::net::SocketAddr>>,
    /// The line of a public key that becomes an admin at the first start.
    pub admin_key: Option<Arc<str>>,
}

impl Foundation {
    /// The configuration's values.
    #[must_use]
    pub fn config(&self) -> &Config {
        &self.loaded.config
    }

    /// The daemon's random number generator.
    #[must_use]
    pub fn entropy(&self) -> &Entropy {
        self.ids.entropy()
    }
}

/// Asks the daemon to stop; the composition root listens. Cheap to clone.
#[derive(Debug, Clone, Default)]
pub struct Shutdown(Arc<watch::Sender<Option<Duration>>>);

impl Shutdown {
    /// Stop, and give running calls this long.
    pub fn request(&self, drain: Duration) {
        self.0.send_replace(Some(drain));
    }

    /// Waits until somebody asked.
    pub async fn requested(&self) -> Duration {
        let mut asked = self.0.subscribe();
        match asked.wait_for(Option::is_some).await {
            Ok(drain) => drain.unwrap_or_default(),
            Err(_) => std::future::pending().await,
        }
    }
}

/// One use of the superuser.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SuperuserUse {
    /// What for.
    pub act: Act,
    /// How long the connection lived.
    pub lived: Duration,
    /// Whether the act succeeded.
    pub succeeded: bool,
}

/// What the superuser was used for, kept until the audit log exists and takes it.
#[derive(Debug, Default)]
pub struct SuperuserUses(Mutex<Vec<SuperuserUse>>);

impl SuperuserUses {
    /// Takes what has gathered; the caller writes it into the audit log.
    #[must_use]
    pub fn take(&self) -> Vec<SuperuserUse> {
        std::mem::take(&mut *self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

impl PrivilegedObserver for SuperuserUses {
    fn opening(&self, act: Act) -> Result<(), Box<dyn std::error::Error + Send + Sync>> {
        let uses = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if uses.len() >= MAX_USES {
            return Err(format!("{} is refused: {MAX_USES} uses wait for the audit log", act.name()).into());
        }
        Ok(())
    }

    fn closed(&self, act: Act, lived: Duration, succeeded: bool) {
        let duration_ms = u64::try_from(lived.as_millis()).unwrap_or(u64::MAX);
        tracing::info!(act = act.name(), duration_ms, succeeded, "the database superuser was used");
        self.0.lock().unwrap_or_else(PoisonError::into_inner).push(SuperuserUse { act, lived, succeeded });
    }
}

/// The provisioner's settings. `clock` tells when certificates begin and end.
pub(crate) fn postgres_settings(config: &Config, places: &Places, clock: Arc<dyn Clock>) -> Settings {
    let mut settings = postgres_settings_at(config, &places.data, &places.runtime);
    settings.wal = postgres_wal(config);
    settings.kubernetes = Some(InKubernetes {
        objects: kubernetes_settings(&config.database),
        clock: bibd_postgres::tcp::Clock::new(move || clock.now().as_seconds()),
        access: kubernetes_access(&config.database),
    });
    settings
}

/// What becomes of the server's log: archived where there is a store of backups.
pub(crate) fn postgres_wal(config: &Config) -> Wal {
    let backup = &config.backup;
    if backup.store.is_none() {
        return Wal::default();
    }
    Wal::Archive {
        timeout_s: u32::try_from(backup.archive_timeout.0.as_secs()).unwrap_or(60),
        max_files: u32::try_from(backup.spool_bytes.0 / SEGMENT_BYTES).unwrap_or(u32::MAX).max(1),
        reserve_kb: config.limits.min_free_bytes.0 >> 10,
    }
}

/// The server's sizes.
pub(crate) fn postgres_limits(database: &config::Database) -> Limits {
    let mebibytes = |bytes: u64| u32::try_from(bytes >> 20).unwrap_or(u32::MAX);
    Limits {
        shared_buffers_mb: mebibytes(database.shared_buffers.0).max(1),
        max_wal_mb: mebibytes(database.max_wal.0).max(1),
        slow_statement_ms: u32::try_from(database.slow_statement.0.as_millis()).unwrap_or(u32::MAX),
    }
}

/// The same sizes, user and programs for a server somewhere else, whose log is not archived.
pub(crate) fn postgres_settings_at(config: &Config, data: &Path, runtime: &Path) -> Settings {
    let database = &config.database;
    let mut settings = Settings::new(data, runtime);
    settings.bin_dir.clone_from(&database.bin_dir);
    settings.upgrade_bin_dir.clone_from(&database.upgrade_bin_dir);
    settings.run_as = database.run_as.clone().map(RunAs::User);
    settings.limits = postgres_limits(database);
    settings.allow_network_fs = database.allow_network_filesystem;
    settings.start_deadline = database.start_timeout.0;
    settings.stop_deadline = database.stop_timeout.0;
    let (container, wanted) = (&mut settings.container, &database.container);
    container.socket.clone_from(&wanted.socket);
    container.image.clone_from(&wanted.image);
    container.digest.clone_from(&wanted.digest);
    container.pull_stalled = wanted.pull_timeout.0;
    container.relabel = wanted.selinux_relabel;
    container.limits = ContainerLimits {
        memory_bytes: wanted.memory.0,
        cpus: wanted.cpus,
        pids: wanted.pids,
        shm_bytes: wanted.shm.0,
        tmpfs_bytes: wanted.tmpfs.0,
        open_files: wanted.open_files,
    };
    settings
}

/// What the configuration asks for.
pub(crate) fn wanted_provisioner(config: &Config) -> Wanted {
    match config.database.provisioner {
        Provisioner::Auto => Wanted::Auto,
        Provisioner::Kubernetes => Wanted::Exactly(Choice::Kubernetes),
        Provisioner::Process => Wanted::Exactly(Choice::Process),
        Provisioner::Container => Wanted::Exactly(Choice::Container),
    }
}

/// The same for a server somewhere else, which is for a while and of this machine: a pod is nobody's second.
pub(crate) fn beside(wanted: Wanted) -> Wanted {
    match wanted {
        Wanted::Exactly(Choice::Kubernetes) => Wanted::Exactly(Choice::Process),
        other => other,
    }
}

/// A generator for `bibd-postgres`.
pub(crate) fn randomness(entropy: &Entropy) -> Randomness {
    Randomness::new(entropy.clone())
}

/// What a start opened of the data.
pub(crate) struct Opened {
    pub(crate) db: Db,
    pub(crate) pools: RolePools,
    pub(crate) blobs: BlobStore,
    /// Migrations that ran.
    pub(crate) migrated: Vec<migrate::Applied>,
    pub(crate) inheritance: Arc<Inheritance>,
}

/// Roles, migrations, then the pools with the least that each needs, and the chunk store.
pub(crate) async fn open(
    config: &Config,
    database: &Database,
    clock: &dyn Clock,
    data: &DataDir,
    failpoints: &Failpoints,
) -> Result<Opened, StartError> {
    database.ensure_roles().await?;
    let now = clock.now();
    let migrated = database
        .with_migration_login(|options: PgConnectOptions| async move {
            let mut connection = sqlx::PgConnection::connect_with(&options).await.map_err(StartError::Connect)?;
            failpoints.hit("migrate.opened");
            let told = |step| failpoints.hit(step);
            let applied = migrate::up_told(&mut connection, now, told).await.map_err(StartError::Migrate)?;
            failpoints.hit("migrate.done");
            // The work is committed: a failure to say goodbye changes nothing.
            let _ = connection.close().await;
            Ok::<_, StartError>(applied)
        })
        .await??;
    for applied in &migrated {
        tracing::info!(
            migration = applied.name,
            version = applied.version,
            duration_us = applied.us,
            "a migration ran"
        );
    }
    database.date_passwords(now.as_seconds()).await?;
    let (role_pools, pools) = RolePools::open(database, config.database.connections)?;
    let db = Db::new(pools);
    db.ping().await?;
    let inherited =
        Inheritance::load_with(&db, data.root()).await.map_err(|error| StartError::Services(error.into()))?;
    let inheritance = Arc::new(inherited);
    Ok(Opened { db, pools: role_pools, blobs: open_blobs(config, data)?, migrated, inheritance })
}

/// The pools of a database whose passwords nobody replaces, such as one that is looked at.
pub(crate) fn open_pools(config: &Config, database: &Database) -> Result<Db, StartError> {
    let (_, pools) = RolePools::open(database, config.database.connections)?;
    Ok(Db::new(pools))
}

/// Opens the chunk store.
fn open_blobs(config: &Config, data: &DataDir) -> Result<BlobStore, StartError> {
    let mut settings = bibd_blobs::Settings {
        compression: match config.blobs.compression {
            Compression::Auto => bibd_blobs::Compression::Auto,
            Compression::Off => bibd_blobs::Compression::Off,
        },
        ..bibd_blobs::Settings::default()
    };
    settings.in_flight_bytes = usize::try_from(config.blobs.in_flight_bytes.0).unwrap_or(usize::MAX);
    Ok(BlobStore::open(&data.blobs(), settings)?)
}
