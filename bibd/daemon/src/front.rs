//! What stands in front of the services, the same for every kind of node: identity, certificates, listeners, and what the
//! interceptors need. Port and certificate problems show in the first second, before a database is touched.
//!
//! [`begin`] opens it, [`Front::open`] lets callers in to what is [`Behind`] it, [`Front::close`] drains.

use std::sync::Arc;
use std::time::{Duration, Instant};

use bib_core::PeerId;
use bib_identity::{NodeKey, TimeSource};
use bib_proto::v1::health_service_server::HealthServiceServer;
use futures::future::BoxFuture;
use tokio::net::{TcpListener, UnixListener};
use tokio::sync::mpsc;
use tonic::service::Routes;

use crate::announce::Announcement;
use crate::app::{Options, StartError};
use crate::certificates::{CertificateSettings, Certificates};
use crate::clock::{Clock, Ids};
use crate::config::{Config, Loaded, Places};
use crate::data_dir::DataDir;
use crate::grpc::connections::{Caps, ConnectionRegistry};
use crate::grpc::health::{self, Condition, Health, HealthBoard, NodeFacts};
use crate::grpc::listen::{self, Intake, TlsIntake};
use crate::grpc::revocation::CertificateList;
use crate::grpc::server;
use crate::grpc::stack::{Authenticator, RateLimiter, RefusalSink, StackParts};
use crate::metrics::{self, Metrics};
use crate::ready::{Ready, ReadyFile};
use crate::secrets::Secrets;
use crate::services::recovery;
use crate::space::Space;
use crate::supervisor::{Policy, Supervisor, TaskKind};

/// Connections that wait between the listeners and the server.
const INCOMING: usize = 64;
/// How often connections are looked at for expiry and idleness: well below the five seconds promised.
const SWEEP_EVERY: Duration = Duration::from_secs(2);

/// What every kind of node has. Cheap to clone.
#[derive(Clone)]
pub(crate) struct Front {
    pub(crate) loaded: Arc<Loaded>,
    pub(crate) places: Arc<Places>,
    pub(crate) clock: Arc<dyn Clock>,
    pub(crate) ids: Ids,
    pub(crate) peer_id: PeerId,
    pub(crate) certificates: Arc<Certificates>,
    pub(crate) certificate_list: CertificateList,
    pub(crate) connections: ConnectionRegistry,
    pub(crate) limiter: RateLimiter,
    pub(crate) supervisor: Supervisor,
    pub(crate) metrics: Arc<Metrics>,
    pub(crate) health: HealthBoard,
    /// Where TLS is served, with the ports that were taken.
    pub(crate) addresses: Arc<Vec<std::net::SocketAddr>>,
    pub(crate) started: Instant,
}

/// A node that has begun to start: known, bound, and not serving yet.
pub(crate) struct Begun {
    pub(crate) front: Front,
    /// Locked.
    pub(crate) data: DataDir,
    pub(crate) key: Arc<NodeKey>,
    pub(crate) epoch: u64,
    pub(crate) secrets: Secrets,
    pub(crate) bound: Bound,
}

/// What is bound before anything else is touched.
pub(crate) struct Bound {
    tls: Vec<Arc<TcpListener>>,
    socket: Arc<UnixListener>,
    metrics: Option<TcpListener>,
    pub(crate) addresses: Vec<std::net::SocketAddr>,
}

/// What callers find behind the front.
pub(crate) struct Behind {
    /// The services; health is added.
    pub(crate) routes: Routes,
    pub(crate) authenticator: Arc<dyn Authenticator>,
    pub(crate) refusals: Arc<dyn RefusalSink>,
    pub(crate) space: Space,
    pub(crate) render: Render,
}

/// Makes the text of `/metrics`.
pub(crate) type Render = Arc<dyn Fn() -> BoxFuture<'static, String> + Send + Sync>;

/// Locks the data directory, opens or makes the identity, binds the addresses, opens or makes the certificates.
///
/// # Errors
/// [`StartError`], with code and hint.
pub(crate) async fn begin(options: &Options) -> Result<Begun, StartError> {
    let started = options.clock.monotonic();
    let config = &options.loaded.config;
    let places = Places::of(config, &options.home, options.ready_file.clone());
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
    let settings =
        CertificateSettings { directory: data.certs(), peer: peer_id, tls: &config.tls, addresses: &bound.addresses };
    let certificates = Arc::new(Certificates::ensure(settings, &secrets, &options.clock, &options.entropy)?);
    let fingerprint = certificates.authority.fingerprint();
    tracing::info!(node.id = %peer_id, epoch = identity.epoch, ca.fingerprint = %fingerprint.grouped(), "this node is known by its fingerprint");

    let metrics = Metrics::new()?;
    #[allow(clippy::cast_precision_loss, reason = "seconds since 1970 fit")]
    metrics.started.set(options.clock.now().as_seconds() as f64);
    let caps = Caps { total: config.grpc.max_connections, per_address: config.grpc.max_connections_per_address };
    let connections = ConnectionRegistry::new(caps, Arc::clone(&options.clock), Arc::clone(&metrics));
    let front = Front {
        loaded: Arc::new(options.loaded.clone()),
        places: Arc::new(places),
        clock: Arc::clone(&options.clock),
        ids: Ids::new(Arc::clone(&options.clock), options.entropy.clone()),
        peer_id,
        certificates,
        certificate_list: CertificateList::new(connections.clone()),
        connections,
        limiter: RateLimiter::new(config.grpc.rate_limit.clone(), options.home.uid),
        supervisor: Supervisor::new(Arc::clone(&metrics), Arc::clone(&options.clock), options.entropy.clone()),
        metrics,
        health: HealthBoard::default(),
        addresses: Arc::new(bound.addresses.clone()),
        started,
    };
    Ok(Begun { front, data, key, epoch: identity.epoch, secrets, bound })
}

async fn bind(config: &Config, places: &Places, is_root: bool) -> Result<Bound, StartError> {
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

impl Front {
    /// Lets callers in.
    ///
    /// # Errors
    /// [`StartError::Tls`], [`StartError::Services`].
    pub(crate) fn open(&self, bound: Bound, behind: Behind) -> Result<Ready, StartError> {
        let (reporter, standard_health) = tonic_health::server::health_reporter();
        let board = self.health.clone();
        self.supervisor.spawn(TaskKind::Background, Policy::RestartWithBackoff, "health", move |stop| {
            health::report(board.clone(), reporter.clone(), stop)
        });
        let ours = HealthServiceServer::new(self.our_health());
        let mut routes = behind.routes.add_service(standard_health).add_service(ours);
        if self.loaded.config.grpc.reflection {
            routes = with_reflection(routes)?;
        }
        let stack = StackParts {
            ids: self.ids.clone(),
            metrics: Arc::clone(&self.metrics),
            limiter: self.limiter.clone(),
            authenticator: behind.authenticator,
            refusals: behind.refusals,
            space: behind.space,
            draining: self.supervisor.stop_token(TaskKind::Edge),
        };
        let ready = self.ready(&bound);
        self.keep();
        self.listen(bound, stack, routes, behind.render)?;
        self.health.set("daemon", Condition::Serving);
        Ok(ready)
    }

    /// Tells scripts and people that calls are answered; the file goes when what is returned is dropped.
    ///
    /// # Errors
    /// When the file cannot be written.
    pub(crate) fn announce_ready(&self, ready: &Ready) -> Result<ReadyFile, StartError> {
        let file = ReadyFile::write(&self.places.ready, ready)?;
        let duration_ms = self.clock.monotonic().saturating_duration_since(self.started).as_millis();
        tracing::info!(socket = %ready.socket.display(), addresses = ?ready.addresses, %duration_ms, "bibd serves");
        Ok(file)
    }

    /// Lets nobody in any more; running calls are given `drain`.
    pub(crate) async fn close(&self, drain: Duration) {
        self.health.set("daemon", Condition::Down("the daemon is stopping".to_owned()));
        tracing::info!(drain_ms = u64::try_from(drain.as_millis()).unwrap_or(u64::MAX), "bibd stops");
        if !self.supervisor.stop(TaskKind::Edge, drain.max(server::SHORTEST_DRAIN)).await {
            let cut = self.connections.drop_all();
            tracing::warn!(cut, "connections were cut: their calls did not end in time");
        }
    }

    /// Removes the socket's file, when nobody listens any more.
    pub(crate) fn remove_socket(&self) {
        if let Err(error) = std::fs::remove_file(&self.places.socket) {
            tracing::debug!(error.cause = %error, "the socket's file was gone already");
        }
    }

    /// Certificates are renewed, connections that expired or idle are closed.
    fn keep(&self) {
        let renewing = self.certificates.renewing(self.health.clone());
        self.supervisor.spawn(TaskKind::Background, Policy::RestartWithBackoff, "certificates", renewing);
        let (connections, idle) = (self.connections.clone(), self.loaded.config.grpc.idle_timeout.0);
        self.supervisor.spawn(TaskKind::Edge, Policy::RestartWithBackoff, "connections", move |stop| {
            let connections = connections.clone();
            async move {
                while stop.run_until_cancelled(tokio::time::sleep(SWEEP_EVERY)).await.is_some() {
                    connections.sweep(idle);
                }
                Ok(())
            }
        });
    }

    fn our_health(&self) -> Health {
        let facts = NodeFacts {
            peer_id: self.peer_id,
            mode: self.loaded.config.node.mode,
            ca_fingerprint: self.certificates.authority.fingerprint(),
            tls: Arc::clone(&self.certificates.tls),
            max_message_bytes: u32::try_from(self.loaded.config.grpc.max_message_bytes.0).unwrap_or(u32::MAX),
            started: self.started,
        };
        Health::new(self.health.clone(), facts, Arc::clone(&self.clock))
    }

    fn ready(&self, bound: &Bound) -> Ready {
        Ready {
            pid: std::process::id(),
            socket: self.places.socket.clone(),
            addresses: bound.addresses.clone(),
            fingerprint: self.certificates.authority.fingerprint().to_string(),
            peer_id: self.peer_id.to_string(),
            metrics: bound.metrics.as_ref().and_then(|listener| listener.local_addr().ok()),
        }
    }

    fn listen(&self, bound: Bound, stack: StackParts, routes: Routes, render: Render) -> Result<(), StartError> {
        let (sender, incoming) = mpsc::channel(INCOMING); // connections whose handshake is done and that nobody took yet
        let supervisor = &self.supervisor;
        let grpc = self.loaded.config.grpc.clone();
        let intake = Intake {
            sender,
            connections: self.connections.clone(),
            metrics: Arc::clone(&self.metrics),
            handshake_timeout: grpc.handshake_timeout.0,
        };
        let clock = Arc::clone(&self.clock);
        let tls = TlsIntake {
            config: self
                .certificates
                .tls
                .config(Arc::new(self.certificate_list.clone()), TimeSource::new(move || clock.now()))?,
            tls: Arc::clone(&self.certificates.tls),
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
            peer_id: self.peer_id,
            ca: self.certificates.authority.fingerprint(),
            listens: bound.addresses,
            mdns: self.loaded.config.discovery.mdns,
        };
        if announcement.is_wanted() {
            supervisor.spawn(TaskKind::Edge, Policy::RestartWithBackoff, "announce", move |stop| {
                announcement.clone().run(stop)
            });
        }
        if let Some(listener) = bound.metrics {
            let mut listener = Some(listener);
            supervisor.spawn(TaskKind::Edge, Policy::OneShot, "metrics", move |stop| {
                let (listener, render) = (listener.take(), Arc::clone(&render));
                async move {
                    let listener = listener.ok_or("the metrics were started twice")?;
                    Ok(metrics::serve(listener, move || render(), stop).await?)
                }
            });
        }
        Ok(())
    }
}

fn with_reflection(routes: Routes) -> Result<Routes, StartError> {
    let service = tonic_reflection::server::Builder::configure()
        .register_encoded_file_descriptor_set(bib_proto::v1::FILE_DESCRIPTOR_SET)
        .build_v1()
        .map_err(|error| StartError::Services(Box::new(error)))?;
    Ok(routes.add_service(service))
}
