//! A real server in a temporary directory, stopped when dropped.
#![allow(dead_code, unreachable_pub, reason = "each test binary uses its own part")]

use std::collections::BTreeMap;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use bibd_postgres::account::Account;
use bibd_postgres::{
    Act, Database, GroupRole, ManagedPostgres as _, PrivilegedObserver, ProcessPostgres, Randomness, SecretStore,
    SecretStoreError, Settings, binaries,
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

pub struct TestServer {
    pub postgres: Arc<ProcessPostgres>,
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

impl TestServer {
    /// A place for a server: nothing is made yet.
    pub fn new() -> Self {
        let here = tempfile::tempdir().unwrap();
        // When root, the server's user must pass through.
        std::fs::set_permissions(here.path(), std::fs::Permissions::from_mode(0o711)).unwrap();
        for name in ["d", "r"] {
            std::fs::create_dir(here.path().join(name)).unwrap();
            std::fs::set_permissions(here.path().join(name), std::fs::Permissions::from_mode(0o711)).unwrap();
        }
        let settings = Settings::new(here.path().join("d"), here.path().join("r"));
        Self::at(here, settings, Arc::default())
    }

    fn at(here: tempfile::TempDir, settings: Settings, store: Arc<MemoryStore>) -> Self {
        let recorder = Arc::new(Recorder::default());
        let (postgres, database) = daemon(&settings, &store, &recorder);
        Self { postgres, database, store, recorder, settings, here }
    }

    /// The daemon dies and another one comes: all its memory is gone, the server stays as it is.
    pub fn another_daemon(&mut self) {
        let (postgres, database) = daemon(&self.settings, &self.store, &self.recorder);
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
        let server = Self::new();
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

    pub fn pid(&self) -> u32 {
        let path = self.postgres.layout().data.join("postmaster.pid");
        std::fs::read_to_string(path).unwrap().lines().next().unwrap().parse().unwrap()
    }

    /// Everything the server has logged.
    pub fn log(&self) -> String {
        let mut text = String::new();
        for entry in std::fs::read_dir(&self.postgres.layout().log).unwrap() {
            text.push_str(&String::from_utf8_lossy(&std::fs::read(entry.unwrap().path()).unwrap()));
        }
        text
    }
}

fn daemon(settings: &Settings, store: &Arc<MemoryStore>, recorder: &Arc<Recorder>) -> (Arc<ProcessPostgres>, Database) {
    // Another daemon draws other passwords.
    static SEED: std::sync::atomic::AtomicU64 = std::sync::atomic::AtomicU64::new(2);
    let seed = SEED.fetch_add(1, std::sync::atomic::Ordering::SeqCst);
    let random = Randomness::new(rand::rngs::StdRng::seed_from_u64(seed));
    let postgres = Arc::new(ProcessPostgres::new(settings.clone(), store.clone(), random.clone()));
    let database = Database::new(postgres.clone(), store.clone(), recorder.clone(), random);
    (postgres, database)
}

impl Drop for TestServer {
    fn drop(&mut self) {
        // Only the server of this very directory, which the test started: found through its pid file.
        let data = &self.postgres.layout().data;
        let Ok(text) = std::fs::read_to_string(data.join("postmaster.pid")) else { return };
        let Some(pid) = text.lines().next().and_then(|line| line.parse::<i32>().ok()) else { return };
        let ours = || std::fs::read_link(format!("/proc/{pid}/cwd")).is_ok_and(|cwd| cwd == *data);
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
