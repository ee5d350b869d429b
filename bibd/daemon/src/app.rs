//! The composition root: everything is built here, in order, and handed down; it stops in reverse.
//!
//! Start: the front (lock the data directory, identity, bind ports), PostgreSQL, roles, migrations, pools, services,
//! background tasks, serve. A node that is never authoritative is composed in [`cache_node`](crate::cache_node).

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use bib_identity::file::FileError;
use bib_identity::sealed::SealError;
use bib_identity::server_tls::ServerTlsError;
use bibd_catalog::migrate::MigrateError;
use bibd_postgres::choose::choose;
use bibd_postgres::{Failpoints, ManagedPostgres, OnNewDirectory, State, Stop, moving, upgrading::Upgrader};

use crate::at_rest::{AtRest, AtRestError};
use crate::certificates::CertificatesError;
use crate::clock::{Clock, Entropy};
use crate::config::Loaded;
use crate::config::places::Home;
use crate::data_dir::DataDirError;
use crate::errors::ErrorCode;
use crate::foundation::{self, Foundation, Opened, Shutdown, SuperuserUses};
use crate::front::{self, Begun, Behind, Bound, Front};
use crate::grpc::edge::Edge;
use crate::grpc::health::Condition;
use crate::grpc::listen::BindError;
use crate::logging::Logs;
use crate::ready::{Ready, ReadyFile};
use crate::services::{statistics, upgrading};
use crate::space::Space;
use crate::supervisor::{Policy, TaskKind};

/// How long background tasks may take to stop.
const BACKGROUND_DEADLINE: Duration = Duration::from_secs(15);

/// Why the daemon does not start. The documentation of exit codes is in [`crate::cli`].
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The data directory.
    #[error(transparent)]
    DataDir(#[from] DataDirError),
    /// Secrets.
    #[error("the node's secrets")]
    Secrets(#[from] SealError),
    /// Certificates.
    #[error("the node's certificates")]
    Certificates(#[from] CertificatesError),
    /// TLS.
    #[error(transparent)]
    Tls(#[from] ServerTlsError),
    /// An address or socket.
    #[error(transparent)]
    Bind(#[from] BindError),
    /// `/metrics`.
    #[error("listen on {address} for metrics")]
    Metrics {
        /// Where.
        address: std::net::SocketAddr,
        /// Why not.
        #[source]
        source: std::io::Error,
    },
    /// The counters.
    #[error("register the metrics")]
    Registry(#[from] prometheus::Error),
    /// PostgreSQL.
    #[error(transparent)]
    Postgres(#[from] bibd_postgres::Error),
    /// The connection for migrations.
    #[error("connect for the migrations")]
    Connect(#[source] sqlx::Error),
    /// Migrations.
    #[error(transparent)]
    Migrate(MigrateError),
    /// The catalog.
    #[error(transparent)]
    Catalog(#[from] bibd_catalog::Error),
    /// Encryption at rest.
    #[error(transparent)]
    AtRest(#[from] AtRestError),
    /// The cache of a node that has nothing else.
    #[error(transparent)]
    Cache(#[from] bibd_cache::OpenError),
    /// A cache is to run in the data directory of a full node.
    #[error("`{path}` is the database of a full node: a cache does not take its place")]
    NotACache {
        /// Where it is.
        path: PathBuf,
    },
    /// The chunk store.
    #[error(transparent)]
    Blobs(#[from] bibd_blobs::OpenError),
    /// A file.
    #[error(transparent)]
    File(#[from] FileError),
    /// The system.
    #[error("make the runtime directory `{path}`")]
    Runtime {
        /// Which.
        path: PathBuf,
        /// Why not.
        #[source]
        source: std::io::Error,
    },
    /// A service.
    #[error("start the services")]
    Services(#[source] Box<dyn std::error::Error + Send + Sync>),
}

impl StartError {
    /// The stable code.
    #[must_use]
    pub fn code(&self) -> ErrorCode {
        match self {
            Self::DataDir(DataDirError::Locked { .. }) => ErrorCode::DATA_DIR_LOCKED,
            Self::DataDir(DataDirError::Restoring { .. }) => ErrorCode::RESTORE_UNFINISHED,
            Self::DataDir(DataDirError::Key(_) | DataDirError::Epoch { .. } | DataDirError::AuthorityLost { .. })
            | Self::Secrets(_)
            | Self::Postgres(
                bibd_postgres::Error::SecretStore(_)
                | bibd_postgres::Error::SecretsMissing
                | bibd_postgres::Error::SecretsDamaged { .. },
            )
            | Self::Certificates(_)
            | Self::Tls(_) => ErrorCode::IDENTITY_UNUSABLE,
            Self::AtRest(AtRestError::Sealed(_) | AtRestError::OtherKey { .. }) => ErrorCode::IDENTITY_UNUSABLE,
            Self::Cache(bibd_cache::OpenError::Newer { .. }) => ErrorCode::SCHEMA_NEWER,
            Self::DataDir(_)
            | Self::AtRest(_)
            | Self::Cache(_)
            | Self::NotACache { .. }
            | Self::Blobs(_)
            | Self::File(_)
            | Self::Runtime { .. } => ErrorCode::DATA_DIR_UNUSABLE,
            Self::Bind(_) | Self::Metrics { .. } => ErrorCode::ADDRESS_IN_USE,
            Self::Migrate(MigrateError::Newer { .. } | MigrateError::Checksum { .. }) => ErrorCode::SCHEMA_NEWER,
            Self::Postgres(_) | Self::Connect(_) | Self::Migrate(_) | Self::Catalog(_) => {
                ErrorCode::POSTGRES_UNAVAILABLE
            }
            Self::Registry(_) | Self::Services(_) => ErrorCode::INTERNAL,
        }
    }

    /// What a person can do about it.
    #[must_use]
    pub fn hint(&self) -> String {
        match self {
            Self::DataDir(error) => error.hint(),
            Self::AtRest(error) => error.hint().to_owned(),
            Self::Cache(error) => error.hint(),
            Self::NotACache { .. } => {
                "choose another directory with --data-dir, or set `node.mode: full`; nothing was changed here"
                    .to_owned()
            }
            Self::Postgres(bibd_postgres::Error::SecretStore(_)) => {
                "restore the file from a backup, or its permissions (chmod 600); it is never made anew over an \
                 existing database"
                    .to_owned()
            }
            Self::Postgres(error) => error.hint().unwrap_or_else(|| "`bibd doctor` looks for the cause".to_owned()),
            Self::Certificates(error) => error.hint().unwrap_or("`bibd doctor` looks for the cause").to_owned(),
            Self::Secrets(error) => error.hint().unwrap_or("`bibd doctor` looks for the cause").to_owned(),
            Self::File(error) => error.hint().unwrap_or("`bibd doctor` looks for the cause").to_owned(),
            Self::Bind(BindError::SocketPathTooLong { .. }) => "choose a shorter one: `grpc.unix_socket`".to_owned(),
            Self::Bind(BindError::NotASocket { .. }) => "move the file away, or choose another path".to_owned(),
            Self::Bind(_) | Self::Metrics { .. } => {
                "stop who uses it, or choose another: --listen, port 0 is any".to_owned()
            }
            Self::Migrate(MigrateError::Newer { .. }) => {
                "use the release of bibd that wrote it, or a newer one".to_owned()
            }
            Self::Migrate(MigrateError::Checksum { .. }) => {
                "use the release of bibd that made this database: a migration that ran is never edited".to_owned()
            }
            _ => "`bibd doctor` looks for the cause".to_owned(),
        }
    }
}

/// What a daemon is started with. The process makes these once.
pub struct Options {
    /// The configuration.
    pub loaded: Loaded,
    /// The user's directories.
    pub home: Home,
    /// Where the ready file goes, when not into the data directory.
    pub ready_file: Option<PathBuf>,
    /// A public key (one `authorized_keys` line) that becomes an admin at the first start.
    pub admin_key: Option<String>,
    /// The clock.
    pub clock: Arc<dyn Clock>,
    /// The random number generator.
    pub entropy: Entropy,
    /// The log of this process.
    pub logs: Logs,
    /// Where a test ends the process; nowhere otherwise.
    pub failpoints: Failpoints,
    /// Has the database reached over TCP as in a pod, where a test says so; no configuration does.
    pub database_tcp: Option<bibd_postgres::tcp::Tcp>,
}

/// A daemon that serves.
pub struct Daemon {
    foundation: Foundation,
    front: Front,
    ready: Ready,
    ready_file: ReadyFile,
}

impl Daemon {
    /// Starts everything and returns when calls are answered. What was begun is stopped again on failure.
    ///
    /// # Errors
    /// [`StartError`], with code and hint.
    pub async fn start(options: Options) -> Result<Self, StartError> {
        let Begun { front, data, key, epoch, secrets, bound } = front::begin(&options).await?;
        let (config, places) = (&front.loaded.config, &front.places);
        let (random, store) = (foundation::randomness(&options.entropy), Arc::new(secrets.clone()));
        let mut settings =
            foundation::postgres_settings(config, places, options.clock.clone()).of_node(&front.peer_id.short());
        let at_rest = AtRest::unlock(config.encryption.at_rest, places, &secrets, &key).await?;
        let adopting = at_rest.clone();
        settings.tcp = options.database_tcp;
        settings.on_new_directory = OnNewDirectory::new(move |path| adopting.adopt(path));
        let wanted = foundation::wanted_provisioner(config);
        let superuser_uses = Arc::new(SuperuserUses::default());
        let upgrader = Upgrader::new(settings.clone(), store.clone(), Arc::clone(&superuser_uses) as _, random.clone());
        upgrading::carry_out(upgrader, &options.failpoints, config, &front.peer_id, places).await?;
        moving::carry_out(wanted, &settings, store.clone(), random.clone(), &options.failpoints).await?;
        let postgres = choose(wanted, settings, store.clone(), random.clone()).await?;
        let database =
            bibd_postgres::Database::new(Arc::clone(&postgres), store, Arc::clone(&superuser_uses) as _, random);
        let database = Arc::new(database.with_failpoints(options.failpoints.clone()));
        let provisioned = postgres.provision().await?;
        let how = postgres.start().await?;
        tracing::info!(provisioner = postgres.choice().name(), postgres.version = %provisioned.version, created = provisioned.created, how = ?how, "PostgreSQL runs");
        let opened = foundation::open(config, &database, options.clock.as_ref(), &data, &options.failpoints).await;
        let Opened { db, pools, blobs, migrated, inheritance } = match opened {
            Ok(opened) => opened,
            Err(error) => {
                stop_postgres(postgres.as_ref()).await;
                return Err(error);
            }
        };

        let foundation = Foundation {
            ids: front.ids.clone(),
            limiter: front.limiter.clone(),
            certificate_list: front.certificate_list.clone(),
            addresses: Arc::clone(&front.addresses),
            admin_key: options.admin_key.map(Arc::from),
            loaded: Arc::clone(&front.loaded),
            places: Arc::clone(&front.places),
            data: Arc::new(data),
            clock: options.clock,
            peer_id: front.peer_id,
            epoch,
            inheritance,
            logs: options.logs,
            shutdown: Shutdown::default(),
            failpoints: options.failpoints,
            key,
            secrets,
            at_rest,
            certificates: Arc::clone(&front.certificates),
            connections: front.connections.clone(),
            postgres,
            database,
            superuser_uses,
            pools,
            db,
            migrated: Arc::new(migrated),
            blobs,
            supervisor: front.supervisor.clone(),
            metrics: Arc::clone(&front.metrics),
            health: front.health.clone(),
            started: front.started,
        };
        match Box::pin(Self::serve(foundation.clone(), front.clone(), bound)).await {
            Ok(daemon) => Ok(daemon),
            Err(error) => {
                stop_all(&foundation, &front, Duration::ZERO).await;
                Err(error)
            }
        }
    }

    /// Services, background tasks, listeners, ready file.
    async fn serve(foundation: Foundation, front: Front, bound: Bound) -> Result<Self, StartError> {
        let Edge { routes, authenticator, refusals } =
            Box::pin(Edge::build(&foundation)).await.map_err(StartError::Services)?;
        background(&foundation);
        let (db, metrics) = (foundation.db.clone(), Arc::clone(&foundation.metrics));
        let behind = Behind {
            routes,
            authenticator,
            refusals,
            space: watch_space(&foundation),
            render: Arc::new(move || {
                let (db, metrics) = (db.clone(), Arc::clone(&metrics));
                Box::pin(async move { statistics::render(&db, &metrics).await })
            }),
        };
        let ready = front.open(bound, behind)?;
        foundation.health.set("encryption", foundation.at_rest.condition());
        let ready_file = front.announce_ready(&ready)?;
        Ok(Self { foundation, front, ready, ready_file })
    }

    /// Where it serves.
    #[must_use]
    pub fn ready(&self) -> &Ready {
        &self.ready
    }

    /// What its services stand on.
    #[must_use]
    pub fn foundation(&self) -> &Foundation {
        &self.foundation
    }

    /// Waits until somebody asks for a stop through the API, or a task that all need has ended (then with the reason).
    pub async fn ended(&self) -> Result<Duration, String> {
        tokio::select! {
            drain = self.foundation.shutdown.requested() => Ok(drain),
            reason = self.foundation.supervisor.failed() => Err(reason),
        }
    }

    /// Stops everything in reverse. Running calls are given `drain`. What comes back is locked by the caller when all
    /// else of the daemon is dropped.
    pub async fn stop(self, drain: Duration) -> AtRest {
        drop(self.ready_file);
        stop_all(&self.foundation, &self.front, drain).await;
        self.front.remove_socket();
        tracing::info!("bibd has stopped");
        self.foundation.at_rest
    }
}

/// Tasks of the database; those of the services are started by [`Edge::build`], those of the listeners by [`Front::open`].
fn background(foundation: &Foundation) {
    let supervisor = &foundation.supervisor;
    let postgres = Arc::clone(&foundation.postgres);
    supervisor.spawn(TaskKind::Foundation, Policy::RestartWithBackoff, "postgres", move |stop| {
        let postgres = Arc::clone(&postgres);
        async move {
            postgres.supervise(stop).await;
            Ok(())
        }
    });
    let (state, board) = (foundation.postgres.state(), foundation.health.clone());
    supervisor.spawn(TaskKind::Background, Policy::RestartWithBackoff, "database-health", move |stop| {
        let (mut state, board) = (state.clone(), board.clone());
        async move {
            loop {
                let condition = condition_of(&state.borrow_and_update());
                board.set("database", condition);
                match stop.run_until_cancelled(state.changed()).await {
                    Some(Ok(())) => {}
                    Some(Err(_)) | None => return Ok(()),
                }
            }
        }
    });
}

/// Looks at the disks: the data directory's, and where somebody put a part of it on another.
fn watch_space(foundation: &Foundation) -> Space {
    let (space, board) = (Space::default(), foundation.health.clone());
    let data = foundation.data.root();
    let directories = vec![data.to_owned(), foundation.data.blobs(), data.join("postgres"), data.join("postgres/data")];
    let min_free_bytes = foundation.config().limits.min_free_bytes.0;
    let watched = space.clone();
    foundation.supervisor.spawn(TaskKind::Background, Policy::RestartWithBackoff, "disk", move |stop| {
        watched.clone().watch(directories.clone(), min_free_bytes, board.clone(), stop)
    });
    space
}

fn condition_of(state: &State) -> Condition {
    match state {
        State::Running => Condition::Serving,
        State::Starting => Condition::Down("the database is starting".to_owned()),
        State::Stopped => Condition::Down("the database is stopped".to_owned()),
        State::Degraded { .. } => Condition::Degraded("the database does not answer".to_owned()),
        State::Crashed { attempt, .. } => {
            Condition::Down(format!("the database crashed and is restarted (attempt {attempt})"))
        }
    }
}

/// Calls drain, background tasks end, pools close, PostgreSQL stops with a checkpoint.
async fn stop_all(foundation: &Foundation, front: &Front, drain: Duration) {
    front.close(drain).await;
    let supervisor = &foundation.supervisor;
    supervisor.stop(TaskKind::Background, BACKGROUND_DEADLINE).await;
    foundation.db.close().await;
    supervisor.stop(TaskKind::Foundation, BACKGROUND_DEADLINE).await;
    stop_postgres(foundation.postgres.as_ref()).await;
}

async fn stop_postgres(postgres: &dyn ManagedPostgres) {
    match postgres.stop(Stop::Clean).await {
        Ok(()) => tracing::info!("PostgreSQL has stopped cleanly"),
        Err(error) => {
            tracing::error!(error.cause = %crate::grpc::error::chain(&error), "PostgreSQL did not stop cleanly")
        }
    }
}
