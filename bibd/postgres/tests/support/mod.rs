//! A real server in a temporary directory, stopped when dropped.
#![allow(dead_code, unreachable_pub, reason = "each test binary uses its own part")]

use std::collections::BTreeMap;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use bibd_postgres::account::Account;
use bibd_postgres::tcp::{Clock, Listening, Tcp};
use bibd_postgres::{
    Act, Choice, ContainerPostgres, Database, GroupRole, Layout, ManagedPostgres, PrivilegedObserver, ProcessPostgres,
    Randomness, SecretStore, SecretStoreError, Settings, binaries,
};
use rand::SeedableRng as _;
use secrecy::{ExposeSecret as _, SecretString};
use sqlx::{AssertSqlSafe, Connection as _, PgConnection};

/// Secrets in memory: what the daemon keeps sealed on disk. The second field makes the disk full.
#[derive(Default)]
pub struct MemoryStore(Mutex<BTreeMap<String, String>>, pub std::sync::atomic::AtomicBool);

impl SecretStore for MemoryStore {
    fn read(&self, name: &str) -> Result<Option<SecretString>, SecretStoreError> {
        Ok(self.0.lock().unwrap().get(name).map(|text| SecretString::from(text.as_str())))
    }

    fn write(&self, name: &str, secret: &SecretString) -> Result<(), SecretStoreError> {
        if self.1.load(std::sync::atomic::Ordering::SeqCst) {
            return Err(SecretStoreError { message: "seal secrets/db.age".to_owned(), source: None });
        }
        self.0.lock().unwrap().insert(name.to_owned(), secret.expose_secret().to_owned());
        Ok(())
    }
}

impl MemoryStore {
    pub fn forget(&self) -> BTreeMap<String, String> {
        std::mem::take(&mut self.0.lock().unwrap())
    }

    pub fn put_back(&self, all: BTreeMap<String, String>) {
        *self.0.lock().unwrap() = all;
    }

    /// The bootstrap superuser's password: what a test needs to play the attacker.
    pub fn admin_password(&self) -> String {
        let text = self.0.lock().unwrap().get("db").unwrap().clone();
        let value: serde_json::Value = serde_json::from_str(&text).unwrap();
        value["admin"].as_str().unwrap().to_owned()
    }

    /// Every password there is.
    pub fn passwords(&self) -> Vec<String> {
        let text = self.0.lock().unwrap().get("db").unwrap().clone();
        let value: serde_json::Value = serde_json::from_str(&text).unwrap();
        let roles = value["roles"].as_object().unwrap().values();
        let mut all: Vec<String> = roles.map(|role| role["password"].as_str().unwrap().to_owned()).collect();
        all.push(value["admin"].as_str().unwrap().to_owned());
        all
    }
}

/// Remembers what the superuser was used for; refuses when told to.
#[derive(Default)]
pub struct Recorder {
    pub seen: Mutex<Vec<(Act, bool, Duration)>>,
    pub broken: std::sync::atomic::AtomicBool,
}

impl PrivilegedObserver for Recorder {
    fn opening(&self, _: Act) -> Result<(), Box<dyn std::error::Error + Send + Sync>> {
        if self.broken.load(std::sync::atomic::Ordering::SeqCst) { Err("the audit is full".into()) } else { Ok(()) }
    }

    fn closed(&self, act: Act, lived: Duration, succeeded: bool) {
        self.seen.lock().unwrap().push((act, succeeded, lived));
    }
}

/// The image that `cargo xtask image` builds, or another one by `BIB_TEST_IMAGE`.
pub fn test_image() -> String {
    std::env::var("BIB_TEST_IMAGE").unwrap_or_else(|_| "bibd-postgres:15".to_owned())
}

/// What the conformance tests run on: every provisioner, the container's on both engines.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ground {
    Process,
    /// A process with a pod's configuration, which clients reach over TCP with TLS and nothing else.
    Tcp,
    Docker,
    Podman,
}

impl Ground {
    pub fn choice(self) -> Choice {
        if self.is_container() { Choice::Container } else { Choice::Process }
    }

    pub fn is_container(self) -> bool {
        matches!(self, Self::Docker | Self::Podman)
    }

    /// The engine's socket; `cargo xtask ci` starts an engine behind each.
    pub fn socket(self) -> PathBuf {
        let (variable, usual) = match self {
            Self::Process | Self::Tcp => panic!("a process has no engine"),
            Self::Docker => ("BIB_TEST_DOCKER", "/run/docker.sock"),
            Self::Podman => ("BIB_TEST_PODMAN", "/run/podman/podman.sock"),
        };
        std::env::var_os(variable).map_or_else(|| PathBuf::from(usual), PathBuf::from)
    }

    /// Runs the command line of Docker against this engine, whose API both speak: what a person would see.
    pub fn engine(self, arguments: &[&str]) -> (bool, String) {
        let mut command = std::process::Command::new("docker");
        let output = command.arg("--host").arg(format!("unix://{}", self.socket().display())).args(arguments).output();
        let output = output.unwrap();
        let text = [output.stdout, output.stderr].concat();
        (output.status.success(), String::from_utf8_lossy(&text).trim().to_owned())
    }
}

pub struct TestServer {
    pub ground: Ground,
    pub choice: Choice,
    pub postgres: Arc<dyn ManagedPostgres>,
    pub database: Database,
    pub store: Arc<MemoryStore>,
    pub recorder: Arc<Recorder>,
    pub settings: Settings,
    pub here: tempfile::TempDir,
}

/// Whether this machine can run the tests. Without PostgreSQL they say so loudly and pass; with CI=true they fail.
pub async fn machine_has_postgres() -> bool {
    let found = match Account::choose(None, Path::new("/nonexistent")).await {
        Ok(account) => binaries::choose(None, None, account).await.map(drop),
        Err(error) => Err(error),
    };
    let Err(error) = found else { return true };
    assert!(std::env::var("CI").as_deref() != Ok("true"), "CI must have PostgreSQL: {error}");
    eprintln!("\n==== SKIPPED, NOTHING TESTED: {error}\n==== {}\n", error.hint().unwrap_or_default());
    false
}

/// The programs of a newer major version than those that are found by themselves: `BIB_TEST_NEWER_POSTGRES` names their
/// directory, which `cargo xtask test` fetches. Without them tests say so loudly; with CI=true they fail.
pub async fn newer_programs() -> Option<PathBuf> {
    if !machine_has_postgres().await {
        return None;
    }
    let usual = || PathBuf::from("/var/cache/bib/newer-postgres/bin");
    let newer = std::env::var_os("BIB_TEST_NEWER_POSTGRES").map_or_else(usual, PathBuf::from);
    let account = Account::choose(None, Path::new("/nonexistent")).await.unwrap();
    let missing = match binaries::choose(Some(&newer), None, account).await {
        Ok(_) => return Some(newer),
        Err(error) => error,
    };
    assert!(std::env::var("CI").as_deref() != Ok("true"), "CI must have a newer PostgreSQL: {missing}");
    eprintln!("\n==== SKIPPED, NOTHING TESTED: {missing}; `cargo xtask test` fetches one\n");
    None
}

/// Whether this machine can run a server there; says so loudly where it cannot, and fails where CI=true.
pub async fn machine_has(ground: Ground) -> bool {
    if !ground.is_container() {
        return machine_has_postgres().await;
    }
    let mut settings = Settings::new("/nonexistent", "/nonexistent");
    settings.container.socket = Some(ground.socket());
    settings.container.image = test_image();
    let missing = match bibd_postgres::container::look(&settings).await {
        Ok(seen) if seen.has_image => return true,
        Ok(seen) => format!("{seen}; `cargo xtask image` builds it"),
        Err(error) => error.to_string(),
    };
    assert!(std::env::var("CI").as_deref() != Ok("true"), "CI must have {ground:?}: {missing}");
    eprintln!("\n==== SKIPPED, NOTHING TESTED: {missing}\n");
    false
}

/// The tests of that name, once for each provisioner.
#[macro_export]
macro_rules! on_every_provisioner {
    ($($name:ident),* $(,)?) => {
        mod process {
            $crate::tests_on!(Process, $($name),*);
        }
        mod tcp {
            $crate::tests_on!(Tcp, $($name),*);
        }
        $crate::on_every_engine!($($name),*);
    };
}

/// The tests of that name, once for each container engine.
#[macro_export]
macro_rules! on_every_engine {
    ($($name:ident),* $(,)?) => {
        mod docker {
            $crate::tests_on!(Docker, $($name),*);
        }
        mod podman {
            $crate::tests_on!(Podman, $($name),*);
        }
    };
}

/// The tests of that name there.
#[macro_export]
macro_rules! tests_on {
    ($ground:ident, $($name:ident),*) => {$(
        #[tokio::test(flavor = "multi_thread")]
        async fn $name() {
            if $crate::support::machine_has($crate::support::Ground::$ground).await {
                super::$name($crate::support::Ground::$ground).await;
            }
        }
    )*};
}

impl TestServer {
    /// A place for a server that runs as a process: nothing is made yet.
    pub fn new() -> Self {
        Self::on(Ground::Process)
    }

    /// A place for a server: nothing is made yet.
    pub fn on(ground: Ground) -> Self {
        let choice = ground.choice();
        let here = tempfile::tempdir().unwrap();
        // When root, the server's user must pass through.
        std::fs::set_permissions(here.path(), std::fs::Permissions::from_mode(0o711)).unwrap();
        for name in ["d", "r"] {
            std::fs::create_dir(here.path().join(name)).unwrap();
            std::fs::set_permissions(here.path().join(name), std::fs::Permissions::from_mode(0o711)).unwrap();
        }
        let mut settings = Settings::new(here.path().join("d"), here.path().join("r"));
        settings.container.image = test_image();
        // Where every test is run at once, an engine that is there may need its time to say so.
        settings.container.passing_deadline = Duration::from_secs(60);
        settings.container.socket = ground.is_container().then(|| ground.socket());
        settings.tcp = (ground == Ground::Tcp).then(|| on_loopback(&settings));
        // Containers have names on the whole machine: the directory's own makes them one test's.
        let name = here.path().file_name().unwrap().to_str().unwrap().trim_start_matches('.');
        settings.container.node = format!("test-{name}");
        let (store, recorder) = (Arc::default(), Arc::default());
        let (postgres, database) = daemon(choice, &settings, &store, &recorder);
        Self { ground, choice, postgres, database, store, recorder, settings, here }
    }

    /// Where everything of the server lies.
    pub fn layout(&self) -> Layout {
        Layout::new(&self.settings.data_root, &self.settings.runtime_dir)
    }

    /// The server's user.
    pub async fn account(&self) -> Account {
        Account::choose(None, &self.layout().data).await.unwrap()
    }

    /// The server's container.
    pub fn container(&self) -> String {
        format!("bibd-postgres-{}", self.settings.container.node)
    }

    /// The daemon dies and another one comes: all its memory is gone, the server stays as it is.
    pub fn another_daemon(&mut self) {
        let (postgres, database) = daemon(self.choice, &self.settings, &self.store, &self.recorder);
        self.postgres = postgres;
        self.database = database;
    }

    /// The daemon dies at this step of its next rotation.
    pub fn dies_at(&mut self, point: &'static str) {
        let hook = move |hit: &'static str| assert_ne!(hit, point, "the daemon dies here");
        self.database = self.database.clone().with_failpoints(bibd_postgres::Failpoints::new(hook));
    }

    /// Provisioned, started, with roles.
    pub async fn started() -> Self {
        Self::started_on(Ground::Process).await
    }

    /// Provisioned, started, with roles.
    pub async fn started_on(ground: Ground) -> Self {
        let server = Self::on(ground);
        server.postgres.provision().await.unwrap();
        server.postgres.start().await.unwrap();
        server.database.ensure_roles().await.unwrap();
        server
    }

    pub async fn connect(&self, group: GroupRole) -> PgConnection {
        PgConnection::connect_with(&self.database.connect_options(group).unwrap()).await.unwrap()
    }

    /// As the superuser, as an attacker with the password would.
    pub async fn attacker(&self) -> PgConnection {
        self.attacker_in("bib").await
    }

    pub async fn attacker_in(&self, database: &str) -> PgConnection {
        let login = bibd_postgres::Login {
            user: "bibd_admin".to_owned(),
            database: database.to_owned(),
            password: SecretString::from(self.store.admin_password()),
        };
        PgConnection::connect_with(&self.postgres.connect_options(&login)).await.unwrap()
    }

    /// The process that listens on the socket, as this machine counts.
    pub fn pid(&self) -> u32 {
        if self.ground == Ground::Tcp {
            // There is no socket whose peer the system could name: the one whose working directory this is.
            let text = std::fs::read_to_string(self.layout().data.join("postmaster.pid")).unwrap();
            return text.lines().next().unwrap().parse().unwrap();
        }
        let stream = std::os::unix::net::UnixStream::connect(self.layout().socket()).unwrap();
        let peer = rustix::net::sockopt::socket_peercred(&stream).unwrap();
        u32::try_from(peer.pid.as_raw_nonzero().get()).unwrap()
    }

    /// The process of a session, which PostgreSQL counts as its container does.
    pub fn pid_of(&self, backend: &str) -> u32 {
        let data = self.layout().data;
        let ids = std::fs::read_dir("/proc").unwrap().filter_map(|entry| entry.unwrap().file_name().into_string().ok());
        let ours = |pid: &u32| {
            let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
            let inner = status.lines().find_map(|line| line.strip_prefix("NSpid:"));
            std::fs::read_link(format!("/proc/{pid}/cwd")).is_ok_and(|cwd| cwd == data)
                && inner.and_then(|ids| ids.split_whitespace().last()) == Some(backend)
        };
        ids.filter_map(|id| id.parse().ok()).find(ours).unwrap()
    }

    /// Everything the server has logged.
    pub fn log(&self) -> String {
        let mut text = String::new();
        for entry in std::fs::read_dir(&self.layout().log).unwrap() {
            text.push_str(&String::from_utf8_lossy(&std::fs::read(entry.unwrap().path()).unwrap()));
        }
        text
    }
}

/// Seconds since 1970, as the machine counts them.
#[allow(clippy::disallowed_methods, reason = "a test has no clock of its own")]
pub fn now_s() -> i64 {
    i64::try_from(std::time::SystemTime::UNIX_EPOCH.elapsed().unwrap().as_secs()).unwrap()
}

/// What a pod's server is told, on a port of this machine that is free: below those that the system gives out.
pub fn on_loopback(settings: &Settings) -> Tcp {
    let begin = std::process::id() % 12_000;
    let ports = (0..12_000).map(|step| u16::try_from(20_000 + (begin + step * 7) % 12_000).unwrap());
    let free = |port: &u16| std::net::TcpListener::bind(("127.0.0.1", *port)).is_ok();
    let port = ports.into_iter().find(free).unwrap();
    let layout = Layout::new(&settings.data_root, &settings.runtime_dir);
    Tcp {
        host: "127.0.0.1".to_owned(),
        names: vec!["127.0.0.1".to_owned(), "bibd-postgres.test.svc".to_owned()],
        listening: Listening::on_loopback(port, &layout.tls()),
        clock: Clock::new(now_s),
    }
}

fn daemon(
    choice: Choice,
    settings: &Settings,
    store: &Arc<MemoryStore>,
    recorder: &Arc<Recorder>,
) -> (Arc<dyn ManagedPostgres>, Database) {
    // Another daemon draws other passwords.
    static SEED: std::sync::atomic::AtomicU64 = std::sync::atomic::AtomicU64::new(2);
    let seed = SEED.fetch_add(1, std::sync::atomic::Ordering::SeqCst);
    let random = Randomness::new(rand::rngs::StdRng::seed_from_u64(seed));
    let (settings, secrets) = (settings.clone(), store.clone());
    let postgres: Arc<dyn ManagedPostgres> = match choice {
        Choice::Process => Arc::new(ProcessPostgres::new(settings, secrets, random.clone())),
        Choice::Container => Arc::new(ContainerPostgres::new(settings, secrets, random.clone())),
        Choice::Kubernetes => panic!("tests/kubernetes has a place of its own"),
    };
    let database = Database::new(postgres.clone(), store.clone(), recorder.clone(), random);
    (postgres, database)
}

impl Drop for TestServer {
    fn drop(&mut self) {
        if self.ground.is_container() {
            // Only the containers of this very test, by their names.
            for name in [self.container(), format!("{}-tool", self.container())] {
                self.ground.engine(&["rm", "--force", "--volumes", &name]);
            }
            return;
        }
        // Only the servers of this very directory, which the test started: found through their pid files.
        let layout = self.layout();
        for data in [layout.data, layout.home.join("upgrade/postgres/data")] {
            let Ok(text) = std::fs::read_to_string(data.join("postmaster.pid")) else { continue };
            let Some(pid) = text.lines().next().and_then(|line| line.parse::<i32>().ok()) else { continue };
            let ours = || std::fs::read_link(format!("/proc/{pid}/cwd")).is_ok_and(|cwd| cwd == data);
            if ours() {
                let pid = rustix::process::Pid::from_raw(pid).unwrap();
                let _ = rustix::process::kill_process(pid, rustix::process::Signal::CONT);
                let _ = rustix::process::kill_process(pid, rustix::process::Signal::QUIT);
                let deadline = Instant::now() + Duration::from_secs(10);
                while ours() && Instant::now() < deadline {
                    std::thread::sleep(Duration::from_millis(5));
                }
            }
        }
    }
}

/// Waits for `condition`, or fails.
pub async fn wait_for(what: &str, deadline: Duration, mut condition: impl AsyncFnMut() -> bool) {
    let end = Instant::now() + deadline;
    while !condition().await {
        assert!(Instant::now() < end, "not within {deadline:?}: {what}");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

pub async fn run(connection: &mut PgConnection, sql: &str) -> Result<(), sqlx::Error> {
    sqlx::raw_sql(AssertSqlSafe(sql.to_owned())).execute(connection).await.map(drop)
}

pub async fn text(connection: &mut PgConnection, sql: &str) -> String {
    sqlx::query_scalar(AssertSqlSafe(sql.to_owned())).fetch_one(connection).await.unwrap()
}
