//! A daemon in this process that may break glass, on a clock that stands still, and the real `psql` through it.
#![allow(unreachable_pub, reason = "a module of one test binary")]

use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Output, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use bib_client::api::Wish;
use bib_client::{Client, Options as ClientOptions, Random, Target};
use bib_core::access::GlassAccess;
use bib_core::glass::{GLASS_NAMESPACE, GlassStatement};
use bib_identity::TimeSource;
use bib_identity::ssh::{self, UserKey};
use bib_proto::v1 as pb;
use bib_proto::v1::break_glass_service_client::BreakGlassServiceClient;
use bibd::app::{Daemon, Options};
use bibd::clock::{Clock as _, Entropy, ManualClock, SystemClock};
use bibd::config::places::Home;
use bibd::config::{self, Sources};
use bibd::secrets::Secrets;
use bibd_catalog::audit;
use bibd_postgres::account::Account;
use bibd_postgres::tcp::{Listening, Tcp};
use bibd_postgres::{SecretStore as _, binaries};
use bytes::Bytes;
use futures::{StreamExt as _, TryStreamExt as _};
use hyper_util::rt::TokioIo;
use rand::RngCore as _;
use secrecy::ExposeSecret as _;
use serde_json::Value;
use sqlx::postgres::{PgConnectOptions, PgSslMode};
use sqlx::{Connection as _, PgConnection};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{UnixListener, UnixStream};
use tokio::process::{Child, ChildStdin, Command};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::{Channel, Endpoint};
use tonic_types::StatusExt as _;

/// How long anything may take here, on a machine that builds at the same time.
const PATIENCE: Duration = Duration::from_secs(60);

/// Where everything of one test lies. Dropped, it ends the server that a failed test left in it.
pub struct Place(tempfile::TempDir, Option<u16>);

impl Place {
    /// `None` when there is no PostgreSQL: said loudly, and a failure with CI=true.
    pub async fn new() -> Option<Self> {
        let found = match Account::choose(None, Path::new("/nonexistent")).await {
            Ok(account) => binaries::choose(None, None, account).await.map(drop),
            Err(error) => Err(error),
        };
        if let Err(error) = found {
            assert!(std::env::var("CI").as_deref() != Ok("true"), "CI must have PostgreSQL: {error}");
            eprintln!("\n==== SKIPPED, NOTHING TESTED: {error}\n==== {}\n", error.hint().unwrap_or_default());
            return None;
        }
        let dir = tempfile::tempdir().unwrap();
        // When root, PostgreSQL's user must pass through.
        std::fs::set_permissions(dir.path(), std::fs::Permissions::from_mode(0o711)).unwrap();
        Some(Self(dir, None))
    }

    /// The same, where the database is reached over TCP as in a pod: on a port that is free, below those that the system
    /// gives out.
    pub async fn over_tcp() -> Option<Self> {
        let begin = std::process::id() % 12_000;
        let mut ports = (0..12_000).map(|step| u16::try_from(20_000 + (begin + step * 7) % 12_000).unwrap());
        let free = ports.find(|port| std::net::TcpListener::bind(("127.0.0.1", *port)).is_ok());
        let mut place = Self::new().await?;
        place.1 = free;
        Some(place)
    }

    /// What a pod's server is told; nothing where there is a socket.
    fn database_tcp(&self, clock: &ManualClock) -> Option<Tcp> {
        let clock = clock.clone();
        self.1.map(|port| Tcp {
            host: "127.0.0.1".to_owned(),
            names: vec!["127.0.0.1".to_owned()],
            listening: Listening::on_loopback(port, &self.path("tls")),
            clock: bibd_postgres::tcp::Clock::new(move || clock.now().as_seconds()),
        })
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    /// Makes an SSH key.
    pub fn key(&self, name: &str) -> UserKey {
        ssh::generate(&self.path(name), name, &mut Entropy::from_system()).unwrap()
    }

    /// The section of the configuration that allows everything to who has `key`.
    pub fn allowing(&self, key: &UserKey) -> String {
        format!(
            "  break_glass:\n    enabled: true\n    access: readwrite\n    require_review: false\n    \
             recordings: {}\n    allowed_users:\n      - name: emergency\n        public_key: \"{}\"\n",
            self.path("recordings").display(),
            key.public().to_line()
        )
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        // Only the server of this very directory, found by its pid file.
        let data = self.path("data/postgres/data");
        let Ok(text) = std::fs::read_to_string(data.join("postmaster.pid")) else { return };
        let Some(pid) = text.lines().next().and_then(|line| line.parse::<i32>().ok()) else { return };
        if std::fs::read_link(format!("/proc/{pid}/cwd")).is_ok_and(|cwd| cwd == data)
            && let Some(pid) = rustix::process::Pid::from_raw(pid)
        {
            // Gone already is what is wanted.
            let _ = rustix::process::kill_process(pid, rustix::process::Signal::QUIT);
        }
    }
}

/// A daemon that serves.
pub struct Node {
    pub daemon: Daemon,
    pub clock: ManualClock,
    home: PathBuf,
}

impl Node {
    /// A node with `database` as that section of its configuration.
    pub async fn start(place: &Place, database: &str) -> Self {
        Self::start_at(place, database, &ManualClock::at(SystemClock.now())).await
    }

    pub async fn start_at(place: &Place, database: &str, clock: &ManualClock) -> Self {
        let text = format!(
            "data_dir: {}\ngrpc:\n  listen: [\"127.0.0.1:0\"]\n  rate_limit:\n    enabled: false\nlog:\n  level: warn\n\
             database:\n  provisioner: process\n  connections: 8\n{database}",
            place.path("data").display(),
        );
        let sources = Sources { file: Some((place.path("config.yaml"), text)), ..Default::default() };
        let loaded = config::load(&sources).unwrap();
        let shared: Arc<dyn bibd::clock::Clock> = Arc::new(clock.clone());
        let uid = rustix::process::geteuid();
        let home = Home {
            is_root: uid.is_root(),
            uid: uid.as_raw(),
            config: place.path("config"),
            data: place.path("home"),
            runtime: None,
        };
        let logs = bibd::logging::init(&loaded.config.log, Arc::clone(&shared)).unwrap();
        let options = Options {
            loaded,
            home,
            ready_file: None,
            admin_key: None,
            clock: shared,
            entropy: Entropy::from_system(),
            logs,
            failpoints: Default::default(),
            database_tcp: place.database_tcp(clock),
        };
        let daemon = Box::pin(Daemon::start(options)).await.unwrap();
        Self { daemon, clock: clock.clone(), home: place.path("client") }
    }

    pub async fn stop(self) {
        self.daemon.stop(Duration::ZERO).await;
    }

    pub fn socket(&self) -> PathBuf {
        self.daemon.ready().socket.clone()
    }

    /// A client over the socket: the admin who owns the node.
    pub fn client(&self) -> Client {
        client(Target::Socket(self.socket()), &self.home, None)
    }

    /// A client that signs with this key.
    pub fn client_with(&self, key: UserKey) -> Client {
        client(Target::Socket(self.socket()), &self.home, Some(key))
    }

    /// The service without anything between, for requests that no client would make.
    pub async fn raw(&self) -> BreakGlassServiceClient<Channel> {
        let path = self.socket();
        let connector = tower::service_fn(move |_| {
            let path = path.clone();
            async move { UnixStream::connect(path).await.map(TokioIo::new) }
        });
        let endpoint = Endpoint::from_static("http://node.bib.invalid");
        BreakGlassServiceClient::new(endpoint.connect_with_connector(connector).await.unwrap())
    }

    /// Opens the glass.
    pub async fn open(&self, key: UserKey, access: GlassAccess, seconds: u64) -> pb::BreakGlassGrant {
        let wish = Wish { reason: "a test".to_owned(), duration: Duration::from_secs(seconds), access };
        self.client_with(key).break_glass().enable(&wish).await.unwrap()
    }

    pub async fn status(&self) -> pb::GetBreakGlassStatusResponse {
        self.client().break_glass().status().await.unwrap()
    }

    /// Waits until the grant has ended and says why.
    pub async fn ended(&self) -> String {
        wait_for("the end of the grant", PATIENCE, async || self.status().await.grant.is_none()).await;
        let report: Value = serde_json::from_str(&self.client().break_glass().report("").await.unwrap()).unwrap();
        report["end_reason"].as_str().unwrap().to_owned()
    }

    /// For a clock that is set back: the log has a partition for each month.
    pub async fn make_month(&self, moment: bib_core::Timestamp) {
        let base = bibd::services::base::Base::of(self.daemon.foundation());
        let mut tx = base.begin(&base.internal_call("test"), "test").await.unwrap();
        audit::make_month(&mut tx, moment).await.unwrap();
        tx.commit().await.unwrap();
    }

    /// Entries of the audit log whose action begins so, oldest first: (action, target, result, details).
    pub async fn entries(&self, action: &str) -> Vec<(String, String, String, Value)> {
        let mut session = self.daemon.foundation().db.read_audit().await.unwrap();
        let filter = audit::Filter { action: action.to_owned(), limit: 1000, ..Default::default() };
        let rows = audit::list(&mut session, &filter).await.unwrap();
        rows.into_iter()
            .map(|row| {
                let details = serde_json::from_slice(&row.details.unwrap_or_default()).unwrap_or_default();
                (row.action, row.target, row.result, details)
            })
            .collect()
    }

    /// Lines of all recordings, in order.
    pub async fn recorded(&self) -> Vec<Value> {
        let glass = self.client().break_glass();
        let sessions: Vec<_> = glass.sessions("").try_collect().await.unwrap();
        let mut lines = Vec::new();
        for session in sessions.iter().rev() {
            let mut pieces = glass.show(&session.session_id, "jsonl").await.unwrap();
            let mut text = Vec::new();
            while let Some(piece) = pieces.try_next().await.unwrap() {
                text.extend_from_slice(&piece.data);
            }
            lines.extend(
                text.split(|byte| *byte == b'\n')
                    .filter(|line| !line.is_empty())
                    .map(|line| serde_json::from_slice::<Value>(line).unwrap()),
            );
        }
        lines
    }

    /// What an attacker with the node's key could ask.
    pub async fn superuser(&self) -> PgConnection {
        let foundation = self.daemon.foundation();
        if foundation.postgres.endpoint().is_none() {
            return superuser(&foundation.places.data).await;
        }
        let text = foundation.secrets.read("db").unwrap().unwrap();
        let value: Value = serde_json::from_str(text.expose_secret()).unwrap();
        let login = bibd_postgres::Login {
            user: "bibd_admin".to_owned(),
            database: "bib".to_owned(),
            password: value["admin"].as_str().unwrap().into(),
        };
        PgConnection::connect_with(&foundation.postgres.connect_options(&login)).await.unwrap()
    }
}

/// A connection as the database's superuser.
pub async fn superuser(data: &Path) -> PgConnection {
    let key = bib_identity::NodeKey::load(&data.join("identity/node_key")).unwrap();
    let secrets = Secrets::new(&data.join("secrets"), Arc::new(key), Vec::new());
    let text = secrets.read("db").unwrap().unwrap();
    let value: Value = serde_json::from_str(text.expose_secret()).unwrap();
    let lock = std::fs::read_to_string(data.join("postgres/data/postmaster.pid")).unwrap();
    let options = PgConnectOptions::new_without_pgpass()
        .socket(lock.lines().nth(4).unwrap())
        .port(5432)
        .ssl_mode(PgSslMode::Disable)
        .username("bibd_admin")
        .password(value["admin"].as_str().unwrap())
        .database("bib");
    PgConnection::connect_with(&options).await.unwrap()
}

/// Rows of one column of text.
pub async fn texts(connection: &mut PgConnection, sql: &'static str) -> Vec<String> {
    sqlx::query_scalar(sql).fetch_all(connection).await.unwrap()
}

/// Roles of break-glass that there are, and sessions of them.
pub async fn left(connection: &mut PgConnection) -> Vec<String> {
    let roles = "SELECT rolname::text || CASE WHEN rolcanlogin THEN ' LOGIN' ELSE '' END FROM pg_roles
                 WHERE rolname ~ '^bibd_glass_[0-9a-f]{8}$'
                 UNION ALL SELECT 'session ' || usename FROM pg_stat_activity WHERE usename ~ '^bibd_glass_'";
    texts(connection, roles).await
}

pub fn client(target: Target, home: &Path, key: Option<UserKey>) -> Client {
    let random = Random::new(|bytes| rand::rngs::OsRng.fill_bytes(bytes));
    let clock = TimeSource::new(|| SystemClock.now());
    let mut options = ClientOptions::new(clock, random, home.join("config"), home.join("cache"));
    if let Some(key) = key {
        let key = Arc::new(key);
        options.keys = Some(Arc::new(move |_| Ok(Some(Arc::clone(&key)))));
    }
    Client::connect(target, options).unwrap()
}

/// A socket in a directory of its own that leads to the recording proxy, as `bib` makes one.
pub struct Bridge {
    dir: tempfile::TempDir,
    task: tokio::task::JoinHandle<()>,
}

impl Drop for Bridge {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Bridge {
    pub fn new(client: Client) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let listener = UnixListener::bind(dir.path().join(".s.PGSQL.5432")).unwrap();
        let task = tokio::spawn(async move {
            let mut pipes = tokio::task::JoinSet::new();
            loop {
                let (stream, _) = listener.accept().await.unwrap();
                pipes.spawn(carry(client.clone(), stream));
            }
        });
        Self { dir, task }
    }

    fn command(&self) -> Command {
        let mut command = Command::new("psql");
        command
            .args(["-X", "-A", "-t", "-v", "ON_ERROR_STOP=0"])
            .env_clear()
            .env("PATH", std::env::var("PATH").unwrap());
        command.env("PGHOST", self.dir.path()).env("PGPORT", "5432").env("PGDATABASE", "bib").env("PGUSER", "me");
        command.env("PGSSLMODE", "disable").env("PGGSSENCMODE", "disable").kill_on_drop(true);
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        command
    }

    /// Runs `psql` to its end with this as its input.
    pub async fn psql(&self, input: &str) -> Said {
        let mut child = self.command().spawn().unwrap();
        child.stdin.take().unwrap().write_all(input.as_bytes()).await.unwrap();
        Said::of(&tokio::time::timeout(PATIENCE, child.wait_with_output()).await.expect("psql hangs").unwrap())
    }

    /// Runs one command.
    pub async fn run(&self, sql: &str) -> Said {
        self.psql(&format!("{sql}\n")).await
    }

    /// `psql` with its input open, after it has said `sql` and what the server answers to the last of it is there.
    pub async fn talk(&self, sql: &str) -> Talk {
        let mut child = self.command().spawn().unwrap();
        let mut input = child.stdin.take().unwrap();
        input.write_all(format!("{sql}\n").as_bytes()).await.unwrap();
        Talk { child, input: Some(input) }
    }

    /// A connection of sqlx, which speaks the extended protocol and binary values.
    pub async fn sqlx(&self) -> Result<PgConnection, sqlx::Error> {
        let options = PgConnectOptions::new_without_pgpass().socket(self.dir.path()).port(5432).username("me");
        PgConnection::connect_with(&options.database("bib").ssl_mode(PgSslMode::Disable)).await
    }
}

async fn carry(client: Client, stream: UnixStream) {
    let (mut reader, mut writer) = stream.into_split();
    let (send, said) = mpsc::channel::<Bytes>(4);
    let Ok(mut answers) = client.break_glass().session(ReceiverStream::new(said)).await else { return };
    let upward = async {
        let mut bytes = vec![0; 8192];
        while let Ok(length) = reader.read(&mut bytes).await {
            if length == 0 || send.send(Bytes::copy_from_slice(&bytes[..length])).await.is_err() {
                break;
            }
        }
        drop(send);
    };
    let downward = async {
        while let Some(Ok(bytes)) = answers.next().await {
            if writer.write_all(&bytes).await.is_err() {
                break;
            }
        }
        let _ = writer.shutdown().await;
    };
    tokio::pin!(upward, downward);
    tokio::select! {
        () = &mut downward => {}
        () = &mut upward => downward.await,
    }
}

/// What `psql` said.
#[derive(Debug)]
pub struct Said {
    pub out: String,
    pub err: String,
    pub code: Option<i32>,
}

impl Said {
    fn of(output: &Output) -> Self {
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        Self { out: text(&output.stdout), err: text(&output.stderr), code: output.status.code() }
    }
}

/// A `psql` that goes on.
pub struct Talk {
    child: Child,
    input: Option<ChildStdin>,
}

impl Talk {
    pub async fn say(&mut self, sql: &str) {
        // A psql that is gone hears nothing; its end says more.
        let _ = self.input.as_mut().unwrap().write_all(format!("{sql}\n").as_bytes()).await;
    }

    pub fn interrupt(&self) {
        let pid = i32::try_from(self.child.id().unwrap()).unwrap();
        rustix::process::kill_process(rustix::process::Pid::from_raw(pid).unwrap(), rustix::process::Signal::INT)
            .unwrap();
    }

    /// After a cut: `psql` does not look at its connection while nobody says anything. What is said now is not run.
    pub async fn too_late(mut self) -> Said {
        self.say("SELECT 'it was not cut';").await;
        let said = self.leave().await;
        assert!(!said.out.contains("it was not cut"), "{said:?}");
        said
    }

    /// Closes its input and waits for its end.
    pub async fn leave(mut self) -> Said {
        drop(self.input.take());
        Said::of(&tokio::time::timeout(PATIENCE, self.child.wait_with_output()).await.expect("psql hangs").unwrap())
    }
}

/// The stable code of a refusal.
pub fn code(status: &tonic::Status) -> String {
    status.get_details_error_info().map(|info| info.reason).unwrap_or_else(|| format!("{status:?}"))
}

/// The code with which a client's call was refused.
pub fn refused<T>(outcome: Result<T, bib_client::Error>) -> String {
    outcome.err().expect("this must be refused").code().unwrap_or("no code").to_owned()
}

/// A request on its way, to be bent before it is sent.
pub struct Attempt {
    pub challenge_id: String,
    pub statement: GlassStatement,
    pub namespace: &'static str,
}

impl Attempt {
    pub async fn begin(node: &Node, key: &UserKey) -> Result<Self, tonic::Status> {
        Self::of(node, key, 60, "readonly").await
    }

    pub async fn of(node: &Node, key: &UserKey, seconds: u64, access: &str) -> Result<Self, tonic::Status> {
        let request = pb::BreakGlassChallengeRequest {
            reason: "a test".to_owned(),
            duration_seconds: seconds,
            access: access.to_owned(),
        };
        let challenge = node.raw().await.challenge(request).await?.into_inner();
        let statement = GlassStatement {
            challenge: challenge.challenge.as_ref().try_into().unwrap(),
            node: challenge.peer_id.parse().unwrap(),
            user: challenge.user,
            reason: challenge.reason,
            duration_s: seconds,
            access: access.parse().unwrap(),
            key: key.public().fingerprint(),
            time: SystemClock.now(),
            extra: Default::default(),
        };
        Ok(Self { challenge_id: challenge.challenge_id, statement, namespace: GLASS_NAMESPACE })
    }

    pub fn signed(&self, key: &UserKey) -> pb::EnableBreakGlassRequest {
        let statement = self.statement.to_bytes().unwrap();
        let signature = key.sign(self.namespace, &statement).unwrap().into_string();
        pb::EnableBreakGlassRequest { challenge_id: self.challenge_id.clone(), statement: statement.into(), signature }
    }

    /// The code with which the node refuses it.
    pub async fn refused(&self, node: &Node, key: &UserKey) -> String {
        let answer = node.raw().await.enable(self.signed(key)).await;
        code(&answer.expect_err("this must be refused"))
    }
}

/// Waits for `condition`, or fails. Returns how long it took.
pub async fn wait_for(what: &str, deadline: Duration, mut condition: impl AsyncFnMut() -> bool) -> Duration {
    let begun = Instant::now();
    while !condition().await {
        assert!(begun.elapsed() < deadline, "not within {deadline:?}: {what}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    begun.elapsed()
}
