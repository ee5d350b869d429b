//! What the fault tests share: the real binary on a directory of its own, and the means to hurt it.
//!
//! Only processes that a test started are ever signalled: the daemon is a child, PostgreSQL is recognised by its working
//! directory, its backends by their parent.
#![allow(dead_code, unreachable_pub, reason = "each test binary uses its own part")]

pub mod disk;
pub mod publisher;
pub mod trace;
pub mod wire;

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Output, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use bib_identity::NodeKey;
use bib_proto::v1::health_service_client::HealthServiceClient;
use bib_proto::v1::topic_service_client::TopicServiceClient;
use bib_proto::v1::{CreateTopicRequest, HealthCheckRequest, ServingStatus};
use bibd::ready::Ready;
use bibd::secrets::Secrets;
use bibd_postgres::SecretStore as _;
use hyper_util::rt::TokioIo;
use rustix::process::{Pid, Signal};
use secrecy::ExposeSecret as _;
use sqlx::postgres::{PgConnectOptions, PgSslMode};
use sqlx::{Connection as _, PgConnection};
use tokio::net::UnixStream;
use tonic::Status;
use tonic::transport::{Channel, Endpoint};

/// How long a start may take here, `initdb` included, on a machine that builds at the same time.
const START_DEADLINE: Duration = Duration::from_secs(90);

/// How often the heavy tests repeat: three times, or as the soak says.
pub fn rounds() -> u32 {
    std::env::var("BIB_SOAK_ROUNDS").ok().and_then(|text| text.parse().ok()).unwrap_or(3)
}

/// The seed of this run: new each time unless `BIB_SOAK_SEED` repeats one. It is printed, and a failure shows it.
pub fn seed() -> u64 {
    let given = std::env::var("BIB_SOAK_SEED").ok().and_then(|text| text.parse().ok());
    let seed = given.unwrap_or_else(|| u64::from(std::process::id()));
    eprintln!("BIB_SOAK_SEED={seed}");
    seed
}

/// Files below `directory` in which one of `secrets` stands.
pub fn files_with(directory: &Path, secrets: &BTreeSet<String>) -> (Vec<PathBuf>, usize) {
    let (mut left, mut found, mut searched) = (vec![directory.to_owned()], Vec::new(), 0);
    while let Some(path) = left.pop() {
        if path.is_dir() {
            left.extend(fs::read_dir(&path).unwrap().map(|entry| entry.unwrap().path()));
        } else if let Ok(bytes) = fs::read(&path) {
            searched += 1;
            let text = String::from_utf8_lossy(&bytes);
            if secrets.iter().any(|secret| text.contains(secret)) {
                found.push(path);
            }
        }
    }
    (found, searched)
}

/// What the arguments of every process of this machine say.
pub fn process_list() -> String {
    let mut text = String::new();
    for entry in fs::read_dir("/proc").unwrap().flatten() {
        for name in ["cmdline", "environ"] {
            if let Ok(bytes) = fs::read(entry.path().join(name)) {
                text.push_str(&String::from_utf8_lossy(&bytes));
            }
        }
    }
    text
}

/// Waits for `condition`, or fails.
pub async fn wait_for(what: &str, deadline: Duration, mut condition: impl AsyncFnMut() -> bool) -> Duration {
    let begun = Instant::now();
    while !condition().await {
        assert!(begun.elapsed() < deadline, "not within {deadline:?}: {what}");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    begun.elapsed()
}

/// Directories for a node. What runs in them is ended when this is dropped.
pub struct Place {
    pub dir: PathBuf,
    _own: Option<tempfile::TempDir>,
}

impl Place {
    pub fn new() -> Self {
        let own = tempfile::tempdir().unwrap();
        Self { dir: own.path().to_owned(), _own: Some(own) }.prepared()
    }

    /// In a directory of somebody else, such as the mount point of a small disk.
    pub fn within(dir: &Path) -> Self {
        Self { dir: dir.to_owned(), _own: None }.prepared()
    }

    /// When root, PostgreSQL's user must pass through.
    fn prepared(self) -> Self {
        fs::set_permissions(&self.dir, fs::Permissions::from_mode(0o711)).unwrap();
        fs::create_dir_all(self.dir.join("config")).unwrap();
        self
    }

    pub fn data(&self) -> PathBuf {
        self.dir.join("data")
    }

    /// Writes the whole configuration file.
    pub fn configure(&self, yaml: &str) {
        fs::write(self.dir.join("config/config.yaml"), yaml).unwrap();
    }

    /// `bibd` on this place, without a subcommand yet.
    pub fn command(&self) -> Command {
        self.wrapped(&[])
    }

    /// The same below another program, such as `strace -f`.
    pub fn wrapped(&self, wrapper: &[&str]) -> Command {
        let bibd = env!("CARGO_BIN_EXE_bibd");
        let mut command = match wrapper {
            [] => Command::new(bibd),
            [program, rest @ ..] => {
                let mut command = Command::new(program);
                command.args(rest).arg(bibd);
                command
            }
        };
        command.arg("--config-dir").arg(self.dir.join("config")).arg("--data-dir").arg(self.data());
        command.args(["--listen", "127.0.0.1:0"]).stdin(Stdio::null());
        command.env_remove("BIBD_DATA_DIR").env_remove("BIBD_CONFIG_DIR");
        command.env("BIBD__DATABASE__PROVISIONER", "process");
        command
    }

    /// Starts and expects a refusal.
    pub fn refused(&self) -> Output {
        let output = self.command().arg("run").output().unwrap();
        assert!(!output.status.success(), "it started: {}", String::from_utf8_lossy(&output.stderr));
        output
    }

    pub async fn start(&self) -> Node {
        self.start_as(self.command()).await
    }

    /// Starts what `command` says and waits until it is ready.
    pub async fn start_as(&self, command: Command) -> Node {
        let mut node = self.spawn(command);
        let begun = Instant::now();
        loop {
            if let Some(status) = node.child.try_wait().unwrap() {
                panic!("bibd ended with {status}: {}", self.log());
            }
            if let Ok(text) = fs::read(self.ready_path())
                && let Ok(ready) = serde_json::from_slice(&text)
            {
                node.ready = Some(ready);
                return node;
            }
            assert!(begun.elapsed() < START_DEADLINE, "not ready: {}", self.log());
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }

    /// Starts and does not wait.
    pub fn spawn(&self, mut command: Command) -> Node {
        // A daemon that was killed could not remove its file, and the next one has not yet.
        let _ = fs::remove_file(self.ready_path());
        let log = File::options().create(true).append(true).open(self.dir.join("log")).unwrap();
        command.arg("run").arg("--ready-file").arg(self.ready_path()).stdout(Stdio::null()).stderr(log);
        Node { child: command.spawn().unwrap(), ready: None }
    }

    fn ready_path(&self) -> PathBuf {
        self.dir.join("ready.json")
    }

    pub fn log(&self) -> String {
        fs::read_to_string(self.dir.join("log")).unwrap_or_default()
    }

    /// The postmaster of this place, if it runs.
    pub fn postmaster(&self) -> Option<Pid> {
        let data = self.data().join("postgres/data").canonicalize().ok()?;
        let text = fs::read_to_string(data.join("postmaster.pid")).ok()?;
        let pid: i32 = text.lines().next()?.parse().ok()?;
        let ours = fs::read_link(format!("/proc/{pid}/cwd")).is_ok_and(|cwd| cwd == data);
        ours.then(|| Pid::from_raw(pid)).flatten()
    }

    /// Children of the postmaster with what they say they are.
    pub fn backends(&self) -> Vec<(Pid, String)> {
        let Some(postmaster) = self.postmaster() else { return Vec::new() };
        let parent = format!("PPid:\t{}\n", postmaster.as_raw_nonzero());
        let mut found = Vec::new();
        for entry in fs::read_dir("/proc").unwrap().flatten() {
            let Some(pid) = entry.file_name().to_str().and_then(|name| name.parse().ok()) else { continue };
            let is_child = fs::read_to_string(entry.path().join("status")).is_ok_and(|text| text.contains(&parent));
            if is_child && let Ok(title) = fs::read(entry.path().join("cmdline")) {
                found.extend(Pid::from_raw(pid).map(|pid| (pid, String::from_utf8_lossy(&title).into_owned())));
            }
        }
        found
    }

    /// A connection as the database's superuser: what an attacker with the node's key could make.
    pub async fn superuser(&self) -> PgConnection {
        let key = NodeKey::load(&self.data().join("identity/node_key")).unwrap();
        let secrets = Secrets::new(&self.data().join("secrets"), Arc::new(key), Vec::new());
        let text = secrets.read("db").unwrap().unwrap();
        let value: serde_json::Value = serde_json::from_str(text.expose_secret()).unwrap();
        let runtime = fs::read_to_string(self.data().join("postgres/data/postmaster.pid")).unwrap();
        let socket = runtime.lines().nth(4).unwrap().to_owned();
        let options = PgConnectOptions::new_without_pgpass()
            .socket(socket)
            .port(5432)
            .ssl_mode(PgSslMode::Disable)
            .username("bibd_admin")
            .password(value["admin"].as_str().unwrap())
            .database("bib");
        PgConnection::connect_with(&options).await.unwrap()
    }

    /// Ends PostgreSQL without ceremony.
    pub fn end_postgres(&self) {
        let Some(pid) = self.postmaster() else { return };
        // It may have been stopped; and it may be gone by now.
        let _ = rustix::process::kill_process(pid, Signal::CONT);
        let _ = rustix::process::kill_process(pid, Signal::QUIT);
        let deadline = Instant::now() + Duration::from_secs(20);
        while self.postmaster() == Some(pid) && Instant::now() < deadline {
            std::thread::sleep(Duration::from_millis(5));
        }
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.end_postgres();
        if std::thread::panicking() {
            let log = self.log();
            let lines: Vec<&str> = log.lines().collect();
            eprintln!("---- end of the daemon's log\n{}", lines[lines.len().saturating_sub(60)..].join("\n"));
        }
    }
}

/// A daemon. Killed when dropped.
pub struct Node {
    pub child: Child,
    ready: Option<Ready>,
}

impl Node {
    pub fn ready(&self) -> &Ready {
        self.ready.as_ref().unwrap()
    }

    /// The daemon's own process; below a wrapper not the child.
    pub fn pid(&self) -> Pid {
        let pid = self.ready.as_ref().map_or(self.child.id(), |ready| ready.pid);
        Pid::from_raw(i32::try_from(pid).unwrap()).unwrap()
    }

    pub fn signal(&self, signal: Signal) {
        rustix::process::kill_process(self.pid(), signal).unwrap();
    }

    /// kill -9 of the daemon alone.
    pub fn kill(&mut self) -> ExitStatus {
        self.signal(Signal::KILL);
        self.child.wait().unwrap()
    }

    /// A stop in order.
    pub fn stop(mut self) -> ExitStatus {
        self.signal(Signal::TERM);
        self.child.wait().unwrap()
    }

    /// Waits until it ends by itself; says how.
    pub async fn ended(&mut self) -> ExitStatus {
        wait_for("the end of the daemon", START_DEADLINE, async || self.child.try_wait().unwrap().is_some()).await;
        self.child.wait().unwrap()
    }

    /// A connection over the socket.
    pub async fn channel(&self) -> Channel {
        channel(&self.ready().socket).await
    }

    /// How a component is, and the sentence.
    pub async fn health(&self, component: &str) -> (ServingStatus, String) {
        let request = HealthCheckRequest { component: component.to_owned() };
        let answer = HealthServiceClient::new(self.channel().await).check(request).await.unwrap().into_inner();
        let message = answer.components.into_iter().map(|component| component.message).collect();
        (ServingStatus::try_from(answer.status).unwrap(), message)
    }

    /// A number of `/proc/<pid>/status`, such as `Threads` or `VmRSS` (in KiB).
    pub fn status(&self, name: &str) -> u64 {
        let text = fs::read_to_string(format!("/proc/{}/status", self.pid().as_raw_nonzero())).unwrap();
        let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':')).unwrap();
        line.split_whitespace().next().unwrap().parse().unwrap()
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        // It may have ended already. Its own pid first: below a wrapper the child is another.
        if let Ok(None) = self.child.try_wait() {
            let _ = rustix::process::kill_process(self.pid(), Signal::KILL);
        }
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A connection to a socket, made when it is first used.
pub async fn channel(socket: &Path) -> Channel {
    let socket = socket.to_owned();
    let connect = tower::service_fn(move |_| {
        let socket = socket.clone();
        async move { Ok::<_, std::io::Error>(TokioIo::new(UnixStream::connect(socket).await?)) }
    });
    Endpoint::from_static("http://bibd").connect_with_connector_lazy(connect)
}

/// One audited act with a commit: what stands for "the node can write".
pub async fn make_topic(channel: &Channel, name: &str) -> Result<(), Status> {
    let request = CreateTopicRequest { name: name.to_owned(), ..CreateTopicRequest::default() };
    TopicServiceClient::new(channel.clone()).create_topic(request).await.map(drop)
}

/// The stable code of a refusal.
pub fn code(status: &Status) -> String {
    use tonic_types::StatusExt as _;
    status.get_details_error_info().map(|info| info.reason).unwrap_or_default()
}
