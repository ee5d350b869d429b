//! Listeners and interceptors with real sockets.
#![allow(clippy::unwrap_used)]

use std::net::SocketAddr;
use std::os::unix::fs::PermissionsExt as _;
use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use bib_identity::server_tls::RevocationStatus;
use bib_identity::{NodeKey, TimeSource};
use bib_proto::v1::auth_service_client::AuthServiceClient;
use bib_proto::v1::health_service_client::HealthServiceClient;
use bib_proto::v1::health_service_server::HealthServiceServer;
use bib_proto::v1::{GetNodeInfoRequest, PingRequest, WhoAmIRequest};
use bibd::actor::Actor;
use bibd::certificates::{CertificateSettings, Certificates};
use bibd::clock::{Clock, Entropy, Ids, SystemClock};
use bibd::config::{Config, Mode, RateLimit};
use bibd::grpc::Peer;
use bibd::grpc::connections::{Caps, ConnectionRegistry};
use bibd::grpc::health::{Health, HealthBoard, NodeFacts};
use bibd::grpc::listen::{self, BindError, Intake, TlsIntake};
use bibd::grpc::server;
use bibd::grpc::stack::{Authenticator, RateLimiter, Refusal, RefusalSink, StackParts};
use bibd::metrics::Metrics;
use bibd::secrets::Secrets;
use bibd::services::ServiceError;
use bibd::supervisor::{Policy, Supervisor, TaskKind};
use http_body_util::BodyExt as _;
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpStream, UnixStream};
use tonic::service::Routes;
use tonic::transport::{Channel, Endpoint};
use tonic::{Code, Request};
use tonic_types::StatusExt as _;
use tower::{Service as _, ServiceExt as _};

/// Panics for `x-panic` callers, else says no; remembers who came.
#[derive(Default)]
struct Guard {
    peers: Mutex<Vec<Peer>>,
    refusals: Mutex<Vec<Refusal>>,
}

#[tonic::async_trait]
impl Authenticator for Guard {
    async fn authenticate(&self, peer: &Peer, bearer: Option<&str>, _: &str) -> Result<Actor, ServiceError> {
        self.peers.lock().unwrap().push(peer.clone());
        assert!(bearer != Some("panic"), "as asked");
        let code = bibd::errors::ErrorCode::UNAUTHENTICATED;
        Err(ServiceError::unauthenticated(code, "nobody is known here", "log in"))
    }
}

impl RefusalSink for Guard {
    fn refused(&self, refusal: Refusal) {
        self.refusals.lock().unwrap().push(refusal);
    }
}

struct Edge {
    _dir: tempfile::TempDir,
    socket: PathBuf,
    address: SocketAddr,
    metrics: Arc<Metrics>,
    connections: ConnectionRegistry,
    guard: Arc<Guard>,
    supervisor: Supervisor,
    limiter: RateLimiter,
}

impl Edge {
    async fn start(change: impl FnOnce(&mut Config)) -> Self {
        let mut config = Config::default();
        config.grpc.handshake_timeout.0 = Duration::from_millis(300);
        change(&mut config);
        let dir = tempfile::tempdir().unwrap();
        let (clock, entropy): (Arc<dyn Clock>, _) = (Arc::new(SystemClock), Entropy::seeded(7));
        let key = Arc::new(NodeKey::create(&dir.path().join("node_key"), &mut entropy.clone()).unwrap());
        let secrets = Secrets::new(&dir.path().join("secrets"), Arc::clone(&key), Vec::new());
        let settings = CertificateSettings {
            directory: dir.path().join("certs"),
            peer: key.peer_id(),
            tls: &config.tls,
            addresses: &[],
        };
        let certificates = Certificates::ensure(settings, &secrets, &clock, &entropy).unwrap();
        let metrics = Metrics::new().unwrap();
        let supervisor = Supervisor::new(Arc::clone(&metrics), Arc::clone(&clock), entropy.clone());
        let caps = Caps { total: config.grpc.max_connections, per_address: config.grpc.max_connections_per_address };
        let connections = ConnectionRegistry::new(caps, Arc::clone(&clock), Arc::clone(&metrics));
        let socket = dir.path().join("bibd.sock");
        let unix = Arc::new(listen::bind_socket(&socket, 0o600).await.unwrap());
        let tcp = listen::bind_tcp(&["127.0.0.1:0".parse().unwrap()]).await.unwrap().remove(0);
        let address = tcp.local_addr().unwrap();
        let (sender, incoming) = tokio::sync::mpsc::channel(4);
        let intake = Intake {
            sender,
            connections: connections.clone(),
            metrics: Arc::clone(&metrics),
            handshake_timeout: config.grpc.handshake_timeout.0,
        };
        let time = Arc::clone(&clock);
        let nobody = Arc::new(|_: &str| RevocationStatus::Unknown);
        let tls = TlsIntake {
            config: certificates.tls.config(nobody, TimeSource::new(move || time.now())).unwrap(),
            tls: Arc::clone(&certificates.tls),
        };
        let board = HealthBoard::default();
        let facts = NodeFacts {
            peer_id: key.peer_id(),
            mode: Mode::Full,
            ca_fingerprint: certificates.authority.fingerprint(),
            tls: Arc::clone(&certificates.tls),
            max_message_bytes: 4 << 20,
            started: clock.monotonic(),
        };
        let guard = Arc::new(Guard::default());
        // Nobody in these tests is the owner, so that the limit counts.
        let limiter = RateLimiter::new(config.grpc.rate_limit.clone(), u32::MAX);
        let parts = StackParts {
            ids: Ids::new(Arc::clone(&clock), entropy),
            metrics: Arc::clone(&metrics),
            limiter: limiter.clone(),
            authenticator: guard.clone(),
            refusals: guard.clone(),
            space: bibd::space::Space::default(),
            draining: supervisor.stop_token(TaskKind::Edge),
        };
        let routes = Routes::new(HealthServiceServer::new(Health::new(board, facts, clock)));
        let mut once = Some((incoming, routes));
        let grpc = config.grpc.clone();
        supervisor.spawn(TaskKind::Edge, Policy::StopDaemon, "grpc", move |stop| {
            let (grpc, parts, (incoming, routes)) = (grpc.clone(), parts.clone(), once.take().unwrap());
            async move { server::serve(&grpc, parts, routes, incoming, stop).await }
        });
        let (tcp, tls_intake) = (Arc::new(tcp), intake.clone());
        supervisor.spawn(TaskKind::Edge, Policy::OneShot, "tls", move |stop| {
            listen::accept_tls(Arc::clone(&tcp), tls_intake.clone(), tls.clone(), stop)
        });
        supervisor.spawn(TaskKind::Edge, Policy::OneShot, "socket", move |stop| {
            listen::accept_socket(Arc::clone(&unix), intake.clone(), stop)
        });
        Self { _dir: dir, socket, address, metrics, connections, guard, supervisor, limiter }
    }

    async fn channel(&self) -> Channel {
        let socket = self.socket.clone();
        let connect = tower::service_fn(move |_| {
            let socket = socket.clone();
            async move { Ok::<_, std::io::Error>(TokioIo::new(UnixStream::connect(socket).await?)) }
        });
        Endpoint::from_static("http://bibd").connect_with_connector(connect).await.unwrap()
    }

    fn count(&self, line: &str) -> bool {
        self.metrics.render().contains(line)
    }
}

async fn wait_for(what: &str, mut condition: impl FnMut() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(10);
    while !condition() {
        assert!(Instant::now() < deadline, "{what}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

#[tokio::test]
async fn the_socket_answers_with_the_request_id_in_header_and_trailer() {
    let edge = Edge::start(|_| {}).await;
    let mut health = HealthServiceClient::new(edge.channel().await);
    // By hand, because tonic's client merges trailers into headers. The body is one empty message.
    let request = http::Request::post("http://bibd/bib.v1.HealthService/Ping")
        .header("content-type", "application/grpc")
        .header("te", "trailers")
        .header("x-request-id", "ada-1")
        .body(tonic::body::Body::new(http_body_util::Full::new(bytes::Bytes::from_static(&[0; 5]))))
        .unwrap();
    let mut channel = edge.channel().await;
    let response = channel.ready().await.unwrap().call(request).await.unwrap();
    assert_eq!(response.headers()["x-request-id"], "ada-1");
    let trailers = response.into_body().collect().await.unwrap().trailers().cloned().unwrap();
    assert_eq!(
        (&trailers["grpc-status"], &trailers["x-request-id"]),
        (&"0".parse().unwrap(), &"ada-1".parse().unwrap())
    );
    // Not harmless, so the daemon makes its own.
    let mut request = Request::new(PingRequest::default());
    request.metadata_mut().insert("x-request-id", "a b;c".parse().unwrap());
    let response = health.ping(request).await.unwrap();
    let made = response.metadata().get("x-request-id").unwrap().to_str().unwrap().to_owned();
    assert_eq!(uuid::Uuid::parse_str(&made).unwrap().get_version_num(), 7);
    let info = health.get_node_info(GetNodeInfoRequest {}).await.unwrap().into_inner();
    assert!(info.peer_id.starts_with("12D3KooW") && info.server_certificate_fingerprint.len() == 64);
    wait_for("metrics", || edge.count(r#"bibd_grpc_requests_total{code="OK",method="HealthService/Ping"} 2"#)).await;
    assert!(edge.supervisor.stop(TaskKind::Edge, Duration::from_secs(5)).await, "drains by itself");
}

#[tokio::test]
async fn who_is_not_known_is_refused_and_noted_with_peer_credentials() {
    let edge = Edge::start(|_| {}).await;
    let mut auth = AuthServiceClient::new(edge.channel().await);
    let status = auth.who_am_i(WhoAmIRequest {}).await.unwrap_err();
    assert_eq!(status.code(), Code::Unauthenticated);
    assert_eq!(status.get_details_error_info().unwrap().reason, "BIB0100");
    let refusals = edge.guard.refusals.lock().unwrap();
    assert_eq!((refusals.len(), refusals[0].method), (1, "AuthService/WhoAmI"));
    let me = rustix::process::geteuid().as_raw();
    assert!(matches!(edge.guard.peers.lock().unwrap()[0], Peer::Socket { uid, pid: Some(_), .. } if uid == me));
}

#[tokio::test]
async fn a_panic_becomes_internal_and_the_connection_lives_on() {
    let edge = Edge::start(|_| {}).await;
    let channel = edge.channel().await;
    let mut request = Request::new(WhoAmIRequest {});
    request.metadata_mut().insert("authorization", "Bearer panic".parse().unwrap());
    let status = AuthServiceClient::new(channel.clone()).who_am_i(request).await.unwrap_err();
    assert_eq!(status.code(), Code::Internal);
    assert_eq!(status.get_details_error_info().unwrap().reason, "BIB0001");
    assert!(!status.message().contains("as asked"), "{status}");
    HealthServiceClient::new(channel).ping(PingRequest::default()).await.unwrap();
    assert!(edge.count("bibd_grpc_panics_total 1"));
}

#[tokio::test]
async fn too_many_requests_are_refused_with_the_time_to_wait() {
    let edge = Edge::start(|_| {}).await;
    edge.limiter.set(RateLimit { enabled: true, per_second: 1, burst: 50 });
    let mut health = HealthServiceClient::new(edge.channel().await);
    let me = rustix::process::geteuid().as_raw();
    let mut refused = None;
    for _ in 0..60 {
        if let Err(status) = health.ping(PingRequest::default()).await {
            refused = Some(status);
            break;
        }
    }
    if me == 0 {
        return assert!(refused.is_none(), "root has no limit on the socket");
    }
    let status = refused.unwrap();
    assert_eq!(status.code(), Code::ResourceExhausted);
    assert!(status.get_details_retry_info().unwrap().retry_delay.unwrap() > Duration::ZERO);
}

#[tokio::test]
async fn a_large_request_without_log_in_is_refused() {
    let edge = Edge::start(|_| {}).await;
    let mut health = HealthServiceClient::new(edge.channel().await);
    let status = health.ping(PingRequest { payload: vec![0; 100 << 10].into() }).await.unwrap_err();
    assert_eq!(status.code(), Code::ResourceExhausted, "{status}");
}

#[tokio::test]
async fn a_handshake_that_does_not_end_is_ended_and_others_are_served() {
    let edge = Edge::start(|config| config.grpc.max_connections = 2).await;
    let mut slow = TcpStream::connect(edge.address).await.unwrap();
    slow.write_all(&[0x16]).await.unwrap();
    let mut dumb = UnixStream::connect(&edge.socket).await.unwrap();
    dumb.write_all(b"PRI * HTTP").await.unwrap();
    HealthServiceClient::new(edge.channel().await).ping(PingRequest::default()).await.unwrap();
    let mut buffer = [0; 64];
    let ended = tokio::time::timeout(Duration::from_secs(5), slow.read(&mut buffer)).await.unwrap();
    assert!(matches!(ended, Ok(0) | Err(_)), "{ended:?}");
    let ended = tokio::time::timeout(Duration::from_secs(5), dumb.read(&mut buffer)).await.unwrap();
    assert!(matches!(ended, Ok(0) | Err(_)), "{ended:?}");
    wait_for("counted", || edge.count(r#"refused_total{reason="handshake_timeout"} 1"#)).await;
}

#[tokio::test]
async fn connections_beyond_the_cap_are_closed_and_the_socket_still_answers() {
    let edge = Edge::start(|config| {
        config.grpc.max_connections = 2;
        config.grpc.handshake_timeout.0 = Duration::from_secs(30);
    })
    .await;
    let _first = TcpStream::connect(edge.address).await.unwrap();
    let _second = TcpStream::connect(edge.address).await.unwrap();
    let mut third = TcpStream::connect(edge.address).await.unwrap();
    let ended = tokio::time::timeout(Duration::from_secs(5), third.read(&mut [0; 8])).await.unwrap();
    assert!(matches!(ended, Ok(0) | Err(_)), "{ended:?}");
    assert!(edge.count(r#"refused_total{reason="total"} 1"#));
    HealthServiceClient::new(edge.channel().await).ping(PingRequest::default()).await.unwrap();
}

#[tokio::test]
async fn a_cut_connection_ends_at_once_even_when_idle() {
    let edge = Edge::start(|_| {}).await;
    let mut health = HealthServiceClient::new(edge.channel().await);
    let mut watch = health.watch(bib_proto::v1::HealthCheckRequest::default()).await.unwrap().into_inner();
    assert!(watch.message().await.unwrap().is_some());
    assert_eq!(edge.connections.drop_all(), 1);
    let ended = tokio::time::timeout(Duration::from_secs(5), watch.message()).await.unwrap();
    assert!(ended.is_err(), "{ended:?}");
    wait_for("gone", || edge.connections.is_empty()).await;
}

#[tokio::test]
async fn a_stale_socket_is_replaced_and_a_live_one_is_not() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("s");
    drop(listen::bind_socket(&path, 0o660).await.unwrap());
    assert!(path.exists());
    let _live = listen::bind_socket(&path, 0o660).await.unwrap();
    assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o660);
    assert!(matches!(listen::bind_socket(&path, 0o600).await, Err(BindError::SocketInUse { .. })));
    let file = dir.path().join("file");
    std::fs::write(&file, "precious").unwrap();
    assert!(matches!(listen::bind_socket(&file, 0o600).await, Err(BindError::NotASocket { .. })));
    let long = dir.path().join("x".repeat(120));
    assert!(matches!(listen::bind_socket(&long, 0o600).await, Err(BindError::SocketPathTooLong { .. })));
}

#[tokio::test]
async fn a_stop_ends_onlookers_at_once_and_says_why() {
    let edge = Edge::start(|_| {}).await;
    let mut health = HealthServiceClient::new(edge.channel().await);
    let mut watch = health.watch(bib_proto::v1::HealthCheckRequest::default()).await.unwrap().into_inner();
    assert!(watch.message().await.unwrap().is_some());
    drop(health);
    let (stopped, ended) =
        tokio::join!(edge.supervisor.stop(TaskKind::Edge, Duration::from_secs(10)), async { watch.message().await });
    assert!(stopped, "nothing had to be ended by force");
    let status = ended.unwrap_err();
    assert_eq!(
        (status.code(), status.get_details_error_info().unwrap().reason.as_str()),
        (Code::Unavailable, "BIB0304")
    );
}
