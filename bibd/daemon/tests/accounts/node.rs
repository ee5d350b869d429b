//! A whole daemon in this process, on a clock that stands still, and callers over its socket and over TLS.
#![allow(unreachable_pub, reason = "a module of one test binary")]
#![allow(clippy::print_stderr, reason = "a test that cannot run says so loudly")]

use std::net::SocketAddr;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use bib_core::signature::{LOGIN_NAMESPACE, LoginStatement};
use bib_core::{Hash, KeyFingerprint};
use bib_identity::credentials::{ClientCredentials, Loaded};
use bib_identity::request::CertificateRequest;
use bib_identity::ssh::{self, UserKey};
use bib_identity::token_file::TokenFile;
use bib_identity::trust::{Expectation, FirstUse, Presented, ServerVerifier, client_config, server_name};
use bib_identity::{TimeSource, pem};
use bib_proto::v1 as pb;
use bib_proto::v1::auth_service_client::AuthServiceClient;
use bib_proto::v1::health_service_client::HealthServiceClient;
use bib_proto::v1::user_service_client::UserServiceClient;
use bibd::app::{Daemon, Options};
use bibd::clock::{Clock as _, Entropy, ManualClock, SystemClock};
use bibd::config::places::Home;
use bibd::config::{self, Sources};
use bibd_catalog::audit;
use bibd_postgres::account::Account;
use bibd_postgres::binaries;
use hyper_util::rt::TokioIo;
use secrecy::{ExposeSecret as _, SecretString};
use tokio::net::{TcpStream, UnixStream};
use tokio_rustls::TlsConnector;
use tonic::metadata::MetadataValue;
use tonic::service::interceptor::InterceptedService;
use tonic::transport::{Channel, Endpoint};
use tonic::{Request, Status};
use tonic_types::StatusExt as _;

/// A daemon that serves.
pub struct Node {
    pub daemon: Daemon,
    pub clock: ManualClock,
    dir: Place,
}

/// The node's directory, and what a failed test leaves running in it.
struct Place(tempfile::TempDir);

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

impl Node {
    /// A new node whose first admin is who runs the test; `None` when there is no PostgreSQL.
    pub async fn start() -> Option<Self> {
        Self::start_with(None).await
    }

    pub async fn start_with(admin_key: Option<String>) -> Option<Self> {
        if !machine_has_postgres().await {
            return None;
        }
        let dir = tempfile::tempdir().unwrap();
        // When root, PostgreSQL's user must pass through.
        std::fs::set_permissions(dir.path(), std::fs::Permissions::from_mode(0o711)).unwrap();
        let clock = ManualClock::at(SystemClock.now());
        let daemon = daemon(dir.path(), &clock, admin_key).await;
        Some(Self { daemon, clock, dir: Place(dir) })
    }

    /// Stops the daemon and starts it again on the same data.
    pub async fn restart(self) -> Self {
        let Self { daemon, clock, dir } = self;
        daemon.stop(Duration::ZERO).await;
        let daemon = self::daemon(dir.0.path(), &clock, None).await;
        Self { daemon, clock, dir }
    }

    pub async fn stop(self) {
        self.daemon.stop(Duration::ZERO).await;
    }

    pub fn address(&self) -> SocketAddr {
        self.daemon.ready().addresses[0]
    }

    /// A caller over the socket: the admin who owns the node.
    pub async fn owner(&self) -> Caller {
        self.on_socket(None).await
    }

    pub async fn on_socket(&self, token: Option<&str>) -> Caller {
        let path = self.daemon.ready().socket.clone();
        let connector = tower::service_fn(move |_| {
            let path: PathBuf = path.clone();
            async move { UnixStream::connect(path).await.map(TokioIo::new) }
        });
        let endpoint = Endpoint::from_static("http://node.bib.invalid");
        let channel = endpoint.connect_with_connector(connector).await.unwrap();
        Caller { channel, token: token.map(str::to_owned), presented: None }
    }

    /// A caller over TLS, with or without credentials.
    pub async fn over_tls(&self, credentials: Option<Credentials>) -> Result<Caller, String> {
        self.over_tls_with(credentials.as_ref(), None).await
    }

    /// As [`Node::over_tls`], with the token of other credentials.
    pub async fn over_tls_with(
        &self,
        credentials: Option<&Credentials>,
        token: Option<&str>,
    ) -> Result<Caller, String> {
        let (address, clock) = (self.address(), self.clock.clone());
        let loaded = credentials.map(|credentials| credentials.load(&self.clock));
        let verifier = ServerVerifier::new(Expectation::FirstUse(FirstUse::Accept { expected: None }));
        let config = client_config(Arc::clone(&verifier), loaded.as_ref(), TimeSource::new(move || clock.now()));
        let tls = TlsConnector::from(Arc::new(config.unwrap()));
        let connector = tower::service_fn(move |_| {
            let tls = tls.clone();
            async move {
                let tcp = TcpStream::connect(address).await?;
                tls.connect(server_name(), tcp).await.map(TokioIo::new)
            }
        });
        let endpoint = Endpoint::from_static("http://node.bib.invalid");
        let channel = endpoint.connect_with_connector(connector).await.map_err(|error| format!("{error:?}"))?;
        let own = credentials.map(|credentials| credentials.token.clone());
        let token = token.map(str::to_owned).or(own);
        Ok(Caller { channel, token, presented: verifier.presented() })
    }

    /// Makes an SSH key.
    pub fn key(&self, name: &str) -> UserKey {
        ssh::generate(&self.dir.0.path().join(name), name, &mut Entropy::from_system()).unwrap()
    }

    /// Adds a user with a key.
    pub async fn add(&self, name: &str, role: pb::NodeRole) -> UserKey {
        let key = self.key(name);
        let request = pb::CreateUserRequest {
            name: name.to_owned(),
            role: role.into(),
            public_keys: vec![key.public().to_line()],
            ..Default::default()
        };
        self.owner().await.users().create_user(request).await.unwrap();
        key
    }

    /// Logs in.
    pub async fn log_in(&self, key: &UserKey) -> Result<Credentials, Status> {
        let caller = self.over_tls(None).await.unwrap();
        let mut attempt = Attempt::begin(&caller, key).await?;
        attempt.sign(key);
        attempt.send(&caller).await
    }

    /// Entries of the audit log, oldest first, whose action begins with `action`: (actor, target, result, details).
    pub async fn entries(&self, action: &str) -> Vec<[String; 4]> {
        let mut session = self.daemon.foundation().db.read_audit().await.unwrap();
        let filter = audit::Filter { action: action.to_owned(), limit: 1000, ..Default::default() };
        let rows = audit::list(&mut session, &filter).await.unwrap();
        let text = |bytes: Option<Vec<u8>>| String::from_utf8(bytes.unwrap_or_default()).unwrap();
        rows.into_iter().map(|row| [row.actor, row.target, row.result, text(row.details)]).collect()
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        // A test that failed leaves a server behind: only the one of this very directory, found by its pid file.
        let data = self.0.path().join("data/postgres/data");
        let Ok(text) = std::fs::read_to_string(data.join("postmaster.pid")) else { return };
        let Some(pid) = text.lines().next().and_then(|line| line.parse::<i32>().ok()) else { return };
        if std::fs::read_link(format!("/proc/{pid}/cwd")).is_ok_and(|cwd| cwd == data) {
            let pid = rustix::process::Pid::from_raw(pid).unwrap();
            // Gone already is what is wanted.
            let _ = rustix::process::kill_process(pid, rustix::process::Signal::QUIT);
        }
    }
}

async fn daemon(dir: &Path, clock: &ManualClock, admin_key: Option<String>) -> Daemon {
    let data = dir.join("data");
    let text = format!(
        "data_dir: {}\ngrpc:\n  listen: [\"127.0.0.1:0\"]\n  rate_limit:\n    enabled: false\nlog:\n  level: warn\n\
         database:\n  provisioner: process\n",
        data.display()
    );
    let sources = Sources { file: Some((dir.join("config.yaml"), text)), ..Default::default() };
    let loaded = config::load(&sources).unwrap();
    let clock: Arc<dyn bibd::clock::Clock> = Arc::new(clock.clone());
    let uid = rustix::process::geteuid();
    let home = Home {
        is_root: uid.is_root(),
        uid: uid.as_raw(),
        config: dir.join("config"),
        data: dir.join("home"),
        runtime: None,
    };
    let logs = bibd::logging::init(&loaded.config.log, Arc::clone(&clock)).unwrap();
    let entropy = Entropy::from_system();
    let options = Options {
        loaded,
        home,
        ready_file: None,
        admin_key,
        clock,
        entropy,
        logs,
        failpoints: Default::default(),
        database_tcp: None,
    };
    Box::pin(Daemon::start(options)).await.unwrap()
}

/// What a log-in or a new token gave: private key, certificate, token.
#[derive(Clone)]
pub struct Credentials {
    key_pem: String,
    certificate_pem: String,
    pub token: String,
    pub id: String,
    pub user: Option<pb::UserSummary>,
}

impl Credentials {
    pub fn new(key: &CertificateRequest, certificate_pem: &str, token: &str, id: &str) -> Self {
        Self {
            key_pem: key.key_pem.expose_secret().to_owned(),
            certificate_pem: certificate_pem.to_owned(),
            token: token.to_owned(),
            id: id.to_owned(),
            user: None,
        }
    }

    fn file(&self) -> TokenFile {
        let der = pem::decode_one(self.certificate_pem.as_bytes(), pem::CERTIFICATE).unwrap();
        let key = SecretString::from(self.key_pem.as_str());
        TokenFile::new(&key, &der, SecretString::from(self.token.as_str())).unwrap()
    }

    /// The certificate's serial number.
    pub fn serial(&self) -> String {
        self.file().identity().serial.clone()
    }

    /// The SSH key that the certificate names.
    pub fn key(&self) -> KeyFingerprint {
        self.file().identity().key
    }

    fn load(&self, clock: &ManualClock) -> ClientCredentials {
        // As a client does that does not look at dates: the server must.
        let at = match ClientCredentials::judge(self.file(), clock.now()) {
            Loaded::Valid(credentials) => return credentials,
            _ => self.file().info().not_before,
        };
        let Loaded::Valid(credentials) = ClientCredentials::judge(self.file(), at) else { panic!("never valid") };
        credentials
    }
}

type Authorized = InterceptedService<Channel, Bearer>;

/// Adds the token to each call.
#[derive(Clone)]
pub struct Bearer(Option<String>);

impl tonic::service::Interceptor for Bearer {
    fn call(&mut self, mut request: Request<()>) -> Result<Request<()>, Status> {
        if let Some(token) = &self.0 {
            let value: MetadataValue<_> = format!("Bearer {token}").parse().unwrap();
            request.metadata_mut().insert("authorization", value);
        }
        Ok(request)
    }
}

/// Somebody with a connection.
pub struct Caller {
    channel: Channel,
    token: Option<String>,
    pub presented: Option<Presented>,
}

impl Caller {
    pub fn auth(&self) -> AuthServiceClient<Authorized> {
        AuthServiceClient::with_interceptor(self.channel.clone(), Bearer(self.token.clone()))
    }

    pub fn users(&self) -> UserServiceClient<Authorized> {
        UserServiceClient::with_interceptor(self.channel.clone(), Bearer(self.token.clone()))
    }

    pub fn health(&self) -> HealthServiceClient<Authorized> {
        HealthServiceClient::with_interceptor(self.channel.clone(), Bearer(self.token.clone()))
    }

    pub async fn who(&self) -> Result<pb::WhoAmIResponse, Status> {
        self.auth().who_am_i(pb::WhoAmIRequest {}).await.map(tonic::Response::into_inner)
    }

    /// Makes a token with a key of its own.
    pub async fn make_token(&self, scopes: &[&str], seconds: u64) -> Result<Credentials, Status> {
        let key = CertificateRequest::generate().unwrap();
        let request = pb::CreateTokenRequest {
            name: "script".to_owned(),
            scopes: scopes.iter().map(|scope| (*scope).to_owned()).collect(),
            expires_in_seconds: seconds,
            csr: key.der.clone().into(),
        };
        let made = self.auth().create_token(request).await?.into_inner();
        Ok(Credentials::new(&key, &made.certificate_pem, &made.token, &made.token_id))
    }
}

/// A log-in on its way, to be bent before it is sent.
pub struct Attempt {
    pub challenge_id: String,
    pub statement: LoginStatement,
    pub namespace: &'static str,
    pub key: CertificateRequest,
    pub csr: Vec<u8>,
    pub bytes: Vec<u8>,
    pub signature: String,
}

impl Attempt {
    pub async fn begin(caller: &Caller, key: &UserKey) -> Result<Self, Status> {
        let request = pb::ChallengeRequest { public_key: key.public().to_line() };
        let challenge = caller.auth().challenge(request).await?.into_inner();
        let request = CertificateRequest::generate().unwrap();
        let presented = caller.presented.as_ref().unwrap();
        let statement = LoginStatement {
            challenge: challenge.challenge.as_ref().try_into().unwrap(),
            node: challenge.peer_id.parse().unwrap(),
            server_certificate: Some(*presented.leaf_sha256.hash()),
            csr: Hash::of(&request.der),
            key: key.public().fingerprint(),
            time: SystemClock.now(),
            extra: Default::default(),
        };
        Ok(Self {
            challenge_id: challenge.challenge_id,
            statement,
            namespace: LOGIN_NAMESPACE,
            csr: request.der.clone(),
            key: request,
            bytes: Vec::new(),
            signature: String::new(),
        })
    }

    pub fn sign(&mut self, key: &UserKey) {
        self.bytes = self.statement.to_bytes().unwrap();
        self.signature = key.sign(self.namespace, &self.bytes).unwrap().into_string();
    }

    pub async fn send(&self, caller: &Caller) -> Result<Credentials, Status> {
        let request = pb::VerifyChallengeRequest {
            challenge_id: self.challenge_id.clone(),
            statement: self.bytes.clone().into(),
            signature: self.signature.clone(),
            csr: self.csr.clone().into(),
        };
        let answer = caller.auth().verify_challenge(request).await?.into_inner();
        let mut made = Credentials::new(&self.key, &answer.certificate_pem, &answer.token, &answer.session_id);
        made.user = answer.user;
        Ok(made)
    }
}

/// The stable code of a refusal.
pub fn code(status: &Status) -> String {
    status.get_details_error_info().map(|info| info.reason).unwrap_or_else(|| format!("{status:?}"))
}

/// The code of what must have failed.
pub fn refused<T>(result: Result<T, Status>) -> String {
    code(&result.err().expect("this must be refused"))
}

/// Waits for `condition`, or fails.
pub async fn wait_for(what: &str, deadline: Duration, mut condition: impl AsyncFnMut() -> bool) {
    let end = Instant::now() + deadline;
    while !condition().await {
        assert!(Instant::now() < end, "not within {deadline:?}: {what}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}
