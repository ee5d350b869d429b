//! The composition root: everything is built here, in order, and handed down; it stops in reverse.
//!
//! Start: lock the data directory, identity, bind ports, PostgreSQL, roles, migrations, pools, services, background
//! tasks, serve. Port and certificate problems show in the first second, before a database is touched.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use bib_identity::TimeSource;
use bib_identity::file::FileError;
use bib_identity::sealed::SealError;
use bib_identity::server_tls::ServerTlsError;
use bib_proto::v1::health_service_server::HealthServiceServer;
use bibd_catalog::migrate::MigrateError;
use bibd_postgres::choose::choose;
use bibd_postgres::{Failpoints, ManagedPostgres, OnNewDirectory, State, Stop, moving};
use tokio::net::{TcpListener, UnixListener};
use tokio::sync::mpsc;
use tonic::service::Routes;

use crate::announce::Announcement;
use crate::at_rest::{AtRest, AtRestError};
use crate::certificates::{CertificateSettings, Certificates, CertificatesError};
use crate::clock::{Clock, Entropy, Ids};
use crate::config::places::Home;
use crate::config::{Loaded, Places};
use crate::data_dir::{DataDir, DataDirError};
use crate::errors::ErrorCode;
use crate::foundation::{self, Foundation, Opened, Shutdown, SuperuserUses};
use crate::grpc::connections::{Caps, ConnectionRegistry};
use crate::grpc::edge::Edge;
use crate::grpc::health::{self, Condition, Health, HealthBoard, NodeFacts};
use crate::grpc::listen::{self, BindError, Intake, TlsIntake};
use crate::grpc::revocation::CertificateList;
use crate::grpc::server;
use crate::grpc::stack::{RateLimiter, StackParts};
use crate::logging::Logs;
use crate::metrics::{self, Metrics};
use crate::ready::{Ready, ReadyFile};
use crate::secrets::Secrets;
use crate::services::{recovery, statistics};
use crate::space::Space;
use crate::supervisor::{Policy, Supervisor, TaskKind};

/// Connections that wait between the listeners and the server.
const INCOMING: usize = 64;
/// How often connections are looked at for expiry and idleness: well below the five seconds promised.
const SWEEP_EVERY: Duration = Duration::from_secs(2);
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
            Self::DataDir(_) | Self::AtRest(_) | Self::Blobs(_) | Self::File(_) | Self::Runtime { .. } => {
                ErrorCode::DATA_DIR_UNUSABLE
            }
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
}

/// A daemon that serves.
pub struct Daemon {
    foundation: Foundation,
    ready: Ready,
    ready_file: ReadyFile,
    socket: PathBuf,
}

/// What is bound before anything else is touched.
struct Bound {
    tls: Vec<Arc<TcpListener>>,
    socket: Arc<UnixListener>,
    metrics: Option<TcpListener>,
    addresses: Vec<std::net::SocketAddr>,
}

impl Daemon {
    /// Starts everything and returns when calls are answered. What was begun is stopped again on failure.
    ///
    /// # Errors
    /// [`StartError`], with code and hint.
    pub async fn start(options: Options) -> Result<Self, StartError> {
        let started = options.clock.monotonic();
        let places = Places::of(&options.loaded.config, &options.home, options.ready_file.clone());
        let config = &options.loaded.config;
        let data = DataDir::open(&places.data, options.home.is_root)?;
        let places = Places { data: data.root().to_owned(), ..places };
        ReadyFile::clear(&places.ready)?;

        let identity = data.identity_or_new(&mut options.entropy.clone())?;
        let key = Arc::new(identity.key);
        let peer_id = key.peer_id();
        let secrets = Secrets::new(&data.secrets(), Arc::clone(&key), Vec::new());
        // Before anything is sealed: a certificate renewed by this very start is sealed to the recovery key too.
        if let Some(public) = recovery::find(&secrets)? {
            secrets.set_recovery(vec![public.recipient()?]);
        }
        data.require_authority()?;

        let bound = bind(config, &places, options.home.is_root).await?;
        let settings = CertificateSettings {
            directory: data.certs(),
            peer: peer_id,
            tls: &config.tls,
            addresses: &bound.addresses,
        };
        let certificates = Arc::new(Certificates::ensure(settings, &secrets, &options.clock, &options.entropy)?);
        let fingerprint = certificates.authority.fingerprint();
        tracing::info!(node.id = %peer_id, epoch = identity.epoch, ca.fingerprint = %fingerprint.grouped(), "this node is known by its fingerprint");

        let metrics = Metrics::new()?;
        #[allow(clippy::cast_precision_loss, reason = "seconds since 1970 fit")]
        metrics.started.set(options.clock.now().as_seconds() as f64);
        let supervisor = Supervisor::new(Arc::clone(&metrics), Arc::clone(&options.clock), options.entropy.clone());
        let health = HealthBoard::default();
        let caps = Caps { total: config.grpc.max_connections, per_address: config.grpc.max_connections_per_address };
        let connections = ConnectionRegistry::new(caps, Arc::clone(&options.clock), Arc::clone(&metrics));

        let (random, store) = (foundation::randomness(&options.entropy), Arc::new(secrets.clone()));
        let mut settings = foundation::postgres_settings(config, &places).of_node(&peer_id.short());
        let at_rest = AtRest::unlock(config.encryption.at_rest, &places, &secrets, &key).await?;
        let adopting = at_rest.clone();
        settings.on_new_directory = OnNewDirectory::new(move |path| adopting.adopt(path));
        let wanted = foundation::wanted_provisioner(config);
        moving::carry_out(wanted, &settings, store.clone(), random.clone()).await?;
        let postgres = choose(wanted, settings, store.clone(), random.clone()).await?;
        let superuser_uses = Arc::new(SuperuserUses::default());
        let database =
            bibd_postgres::Database::new(Arc::clone(&postgres), store, Arc::clone(&superuser_uses) as _, random);
        let database = Arc::new(database.with_failpoints(options.failpoints.clone()));
        let provisioned = postgres.provision().await?;
        let how = postgres.start().await?;
        tracing::info!(provisioner = postgres.choice().name(), postgres.version = %provisioned.version, created = provisioned.created, how = ?how, "PostgreSQL runs");
        let opened = foundation::open(config, &database, options.clock.as_ref(), &data).await;
        let Opened { db, pools, blobs, migrated } = match opened {
            Ok(opened) => opened,
            Err(error) => {
                stop_postgres(postgres.as_ref()).await;
                return Err(error);
            }
        };

        let owner = options.home.uid;
        let foundation = Foundation {
            ids: Ids::new(Arc::clone(&options.clock), options.entropy.clone()),
            limiter: RateLimiter::new(config.grpc.rate_limit.clone(), owner),
            certificate_list: CertificateList::new(connections.clone()),
            addresses: Arc::new(bound.addresses.clone()),
            admin_key: options.admin_key.map(Arc::from),
            loaded: Arc::new(options.loaded),
            places: Arc::new(places),
            data: Arc::new(data),
            clock: options.clock,
            epoch: identity.epoch,
            logs: options.logs,
            shutdown: Shutdown::default(),
            failpoints: options.failpoints,
            key,
            peer_id,
            secrets,
            at_rest,
            certificates,
            connections,
            postgres,
            database,
            superuser_uses,
            pools,
            db,
            migrated: Arc::new(migrated),
            blobs,
            supervisor,
            metrics,
            health,
            started,
        };
        match Box::pin(Self::serve(foundation.clone(), bound)).await {
            Ok(daemon) => Ok(daemon),
            Err(error) => {
                stop_all(&foundation, Duration::ZERO).await;
                Err(error)
            }
        }
    }

    /// Services, background tasks, listeners, ready file.
    async fn serve(foundation: Foundation, bound: Bound) -> Result<Self, StartError> {
        let edge = Box::pin(Edge::build(&foundation)).await.map_err(StartError::Services)?;
        background(&foundation);

        let (reporter, standard_health) = tonic_health::server::health_reporter();
        let board = foundation.health.clone();
        foundation.supervisor.spawn(TaskKind::Background, Policy::RestartWithBackoff, "health", move |stop| {
            health::report(board.clone(), reporter.clone(), stop)
        });
        let mut routes = edge.routes;
        routes = routes.add_service(standard_health).add_service(HealthServiceServer::new(our_health(&foundation)));
        if foundation.config().grpc.reflection {
            routes = with_reflection(routes)?;
        }
        let stack = StackParts {
            ids: foundation.ids.clone(),
            metrics: Arc::clone(&foundation.metrics),
            limiter: foundation.limiter.clone(),
            authenticator: edge.authenticator,
            refusals: edge.refusals,
            space: watch_space(&foundation),
            draining: foundation.supervisor.stop_token(TaskKind::Edge),
        };
        let ready = ready(&foundation, &bound);
        listen(&foundation, bound, stack, routes)?;
        foundation.health.set("daemon", Condition::Serving);
        foundation.health.set("encryption", foundation.at_rest.condition());
        let ready_file = ReadyFile::write(&foundation.places.ready, &ready)?;
        let duration_ms = foundation.clock.monotonic().saturating_duration_since(foundation.started).as_millis();
        tracing::info!(socket = %ready.socket.display(), addresses = ?ready.addresses, %duration_ms, "bibd serves");
        let socket = foundation.places.socket.clone();
        Ok(Self { foundation, ready, ready_file, socket })
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

    /// Waits until somebody asks for a stop through the API, or a task without which nothing works has ended (then
    /// with the reason).
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
        stop_all(&self.foundation, drain).await;
        if let Err(error) = std::fs::remove_file(&self.socket) {
            tracing::debug!(error.cause = %error, "the socket's file was gone already");
        }
        tracing::info!("bibd has stopped");
        self.foundation.at_rest
    }
}

async fn bind(config: &crate::config::Config, places: &Places, is_root: bool) -> Result<Bound, StartError> {
    make_runtime(places, is_root)?;
    let tls = listen::bind_tcp(&config.grpc.listen).await?;
    let socket = listen::bind_socket(&places.socket, config.grpc.socket_mode.bits()).await?;
    let metrics = match config.metrics.listen {
        Some(address) => Some(metrics::bind(address).await.map_err(|source| StartError::Metrics { address, source })?),
        None => None,
    };
    let addresses = tls.iter().filter_map(|listener| listener.local_addr().ok()).collect();
    Ok(Bound { tls: tls.into_iter().map(Arc::new).collect(), socket: Arc::new(socket), metrics, addresses })
}

/// The directories of the sockets. PostgreSQL's user and the socket's group pass through; the sockets protect themselves.
fn make_runtime(places: &Places, is_root: bool) -> Result<(), StartError> {
    use std::os::unix::fs::{DirBuilderExt as _, PermissionsExt as _};
    let directories = [Some(places.runtime.as_path()), places.socket.parent()];
    for path in directories.into_iter().flatten().filter(|path| !path.as_os_str().is_empty()) {
        let failed = |source| StartError::Runtime { path: path.to_owned(), source };
        if !path.is_dir() {
            std::fs::DirBuilder::new().recursive(true).mode(0o711).create(path).map_err(failed)?;
            let mode = if is_root || path == places.runtime { 0o711 } else { 0o700 };
            std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode)).map_err(failed)?;
        }
    }
    Ok(())
}

/// Tasks of the frame; those of the services are started by [`Edge::build`].
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
    let renewing = foundation.certificates.renewing(foundation.health.clone());
    supervisor.spawn(TaskKind::Background, Policy::RestartWithBackoff, "certificates", renewing);
    let (connections, idle) = (foundation.connections.clone(), foundation.config().grpc.idle_timeout.0);
    supervisor.spawn(TaskKind::Edge, Policy::RestartWithBackoff, "connections", move |stop| {
        let connections = connections.clone();
        async move {
            while stop.run_until_cancelled(tokio::time::sleep(SWEEP_EVERY)).await.is_some() {
                connections.sweep(idle);
            }
            Ok(())
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

fn our_health(foundation: &Foundation) -> Health {
    let facts = NodeFacts {
        peer_id: foundation.peer_id,
        mode: foundation.config().node.mode,
        ca_fingerprint: foundation.certificates.authority.fingerprint(),
        tls: Arc::clone(&foundation.certificates.tls),
        max_message_bytes: u32::try_from(foundation.config().grpc.max_message_bytes.0).unwrap_or(u32::MAX),
        started: foundation.started,
    };
    Health::new(foundation.health.clone(), facts, Arc::clone(&foundation.clock))
}

fn with_reflection(routes: Routes) -> Result<Routes, StartError> {
    let service = tonic_reflection::server::Builder::configure()
        .register_encoded_file_descriptor_set(bib_proto::v1::FILE_DESCRIPTOR_SET)
        .build_v1()
        .map_err(|error| StartError::Services(Box::new(error)))?;
    Ok(routes.add_service(service))
}

fn ready(foundation: &Foundation, bound: &Bound) -> Ready {
    Ready {
        pid: std::process::id(),
        socket: foundation.places.socket.clone(),
        addresses: bound.addresses.clone(),
        fingerprint: foundation.certificates.authority.fingerprint().to_string(),
        peer_id: foundation.peer_id.to_string(),
        metrics: bound.metrics.as_ref().and_then(|listener| listener.local_addr().ok()),
    }
}

fn listen(foundation: &Foundation, bound: Bound, stack: StackParts, routes: Routes) -> Result<(), StartError> {
    let (sender, incoming) = mpsc::channel(INCOMING); // connections whose handshake is done and that nobody took yet
    let supervisor = &foundation.supervisor;
    let grpc = foundation.config().grpc.clone();
    let intake = Intake {
        sender,
        connections: foundation.connections.clone(),
        metrics: Arc::clone(&foundation.metrics),
        handshake_timeout: grpc.handshake_timeout.0,
    };
    let clock = Arc::clone(&foundation.clock);
    let tls = TlsIntake {
        config: foundation
            .certificates
            .tls
            .config(Arc::new(foundation.certificate_list.clone()), TimeSource::new(move || clock.now()))?,
        tls: Arc::clone(&foundation.certificates.tls),
    };
    let mut once = Some((incoming, routes));
    supervisor.spawn(TaskKind::Edge, Policy::StopDaemon, "grpc", move |stop| {
        let (grpc, stack, once) = (grpc.clone(), stack.clone(), once.take());
        async move {
            let (incoming, routes) = once.ok_or("the server was started twice")?;
            server::serve(&grpc, stack, routes, incoming, stop).await
        }
    });
    let (socket, socket_intake) = (bound.socket, intake.clone());
    supervisor.spawn(TaskKind::Edge, Policy::RestartWithBackoff, "listen-socket", move |stop| {
        listen::accept_socket(Arc::clone(&socket), socket_intake.clone(), stop)
    });
    for listener in bound.tls {
        let (intake, tls) = (intake.clone(), tls.clone());
        supervisor.spawn(TaskKind::Edge, Policy::RestartWithBackoff, "listen-tls", move |stop| {
            listen::accept_tls(Arc::clone(&listener), intake.clone(), tls.clone(), stop)
        });
    }
    let announcement = Announcement {
        peer_id: foundation.peer_id,
        ca: foundation.certificates.authority.fingerprint(),
        listens: bound.addresses,
        mdns: foundation.config().discovery.mdns,
    };
    if announcement.is_wanted() {
        supervisor
            .spawn(TaskKind::Edge, Policy::RestartWithBackoff, "announce", move |stop| announcement.clone().run(stop));
    }
    if let Some(listener) = bound.metrics {
        let (db, metrics, mut listener) = (foundation.db.clone(), Arc::clone(&foundation.metrics), Some(listener));
        supervisor.spawn(TaskKind::Edge, Policy::OneShot, "metrics", move |stop| {
            let (db, metrics, listener) = (db.clone(), Arc::clone(&metrics), listener.take());
            async move {
                let listener = listener.ok_or("the metrics were started twice")?;
                let render = move || {
                    let (db, metrics) = (db.clone(), Arc::clone(&metrics));
                    async move { statistics::render(&db, &metrics).await }
                };
                Ok(metrics::serve(listener, render, stop).await?)
            }
        });
    }
    Ok(())
}

/// Calls drain, background tasks end, pools close, PostgreSQL stops with a checkpoint.
async fn stop_all(foundation: &Foundation, drain: Duration) {
    foundation.health.set("daemon", Condition::Down("the daemon is stopping".to_owned()));
    let supervisor = &foundation.supervisor;
    tracing::info!(drain_ms = u64::try_from(drain.as_millis()).unwrap_or(u64::MAX), "bibd stops");
    if !supervisor.stop(TaskKind::Edge, drain.max(server::SHORTEST_DRAIN)).await {
        let cut = foundation.connections.drop_all();
        tracing::warn!(cut, "connections were cut: their calls did not end in time");
    }
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
