//! A daemon with a store, in this process; `bibd restore` in another.
#![allow(unreachable_pub, reason = "a module of one test binary")]

use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::process::ExitStatusExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use bib_proto::v1 as pb;
use bib_proto::v1::admin_service_client::AdminServiceClient;
use bib_proto::v1::topic_service_client::TopicServiceClient;
use bibd::app::{Daemon, Options};
use bibd::clock::{Clock, Entropy, SystemClock};
use bibd::config::places::Home;
use bibd::config::{self, Sources};
use bibd_catalog::{audit, topics};
use bibd_postgres::account::Account;
use bibd_postgres::binaries;
use bibd_postgres::tcp::{Listening, Tcp};
use futures::StreamExt as _;
use hyper_util::rt::TokioIo;
use tokio::net::UnixStream;
use tonic::Status;
use tonic::transport::{Channel, Endpoint};
use tonic_types::StatusExt as _;

/// Where everything of one test lies. Dropped, it ends servers that a failed test left in it.
pub struct Place {
    dir: tempfile::TempDir,
    /// The engine's socket and the image, where PostgreSQL runs in a container.
    container: Option<(PathBuf, String)>,
    provisioner: &'static str,
    /// `backup.store`; in the directory when there is none.
    bucket: Option<String>,
    /// Further settings.
    settings: Vec<(&'static str, String)>,
    /// `database.upgrade_bin_dir`.
    newer: Option<PathBuf>,
    /// Where the database is reached over TCP.
    port: Option<u16>,
}

/// The programs of a newer major version than those that are found by themselves: `BIB_TEST_NEWER_POSTGRES` names their
/// directory, which `cargo xtask test` fetches. Without them tests say so loudly; with CI=true they fail.
pub async fn newer_programs() -> Option<PathBuf> {
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
        Some(Self {
            dir,
            container: None,
            provisioner: "process",
            bucket: None,
            settings: Vec::new(),
            newer: None,
            port: None,
        })
    }

    /// The same, where the database is reached over TCP as in a pod: on a port that is free, below those that the system
    /// gives out.
    pub async fn over_tcp() -> Option<Self> {
        let mut place = Self::new().await?;
        let begin = std::process::id() % 12_000;
        let mut ports = (0..12_000).map(|step| u16::try_from(20_000 + (begin + step * 7) % 12_000).unwrap());
        place.port = ports.find(|port| std::net::TcpListener::bind(("127.0.0.1", *port)).is_ok());
        Some(place)
    }

    pub fn is_over_tcp(&self) -> bool {
        self.port.is_some()
    }

    /// What a pod's server is told; nothing where there is a socket.
    fn database_tcp(&self, clock: &Arc<dyn Clock>) -> Option<Tcp> {
        let clock = clock.clone();
        self.port.map(|port| Tcp {
            host: "127.0.0.1".to_owned(),
            names: vec!["127.0.0.1".to_owned()],
            listening: Listening::on_loopback(port, &self.path("tls")),
            clock: bibd_postgres::tcp::Clock::new(move || clock.now().as_seconds()),
        })
    }

    /// The same, with PostgreSQL in a container of the engine behind `socket`.
    pub async fn in_a_container(socket: &str) -> Option<Self> {
        let mut settings = bibd_postgres::Settings::new("/nonexistent", "/nonexistent");
        settings.container.socket = Some(PathBuf::from(socket));
        settings.container.image = std::env::var("BIB_TEST_IMAGE").unwrap_or_else(|_| "bibd-postgres:15".to_owned());
        let missing = match bibd_postgres::container::look(&settings).await {
            Ok(seen) if seen.has_image => None,
            Ok(seen) => Some(format!("{seen}; `cargo xtask image` builds it")),
            Err(error) => Some(error.to_string()),
        };
        if let Some(missing) = missing {
            assert!(std::env::var("CI").as_deref() != Ok("true"), "CI must have container engines: {missing}");
            eprintln!("\n==== SKIPPED, NOTHING TESTED: {missing}\n");
            return None;
        }
        let mut place = Self::new().await?;
        place.container = Some((PathBuf::from(socket), settings.container.image));
        place.wants("container");
        Some(place)
    }

    /// Sets `database.provisioner` for the next start.
    pub fn wants(&mut self, provisioner: &'static str) {
        self.provisioner = provisioner;
    }

    /// Sets `database.upgrade_bin_dir` for the next start.
    pub fn has_newer(&mut self, programs: PathBuf) {
        self.newer = Some(programs);
    }

    /// Keeps backups there instead of in the directory.
    pub fn keeps_in(&mut self, bucket: String) {
        self.bucket = Some(bucket);
    }

    /// A setting for the next start.
    pub fn sets(&mut self, key: &'static str, value: impl ToString) {
        self.settings.push((key, value.to_string()));
    }

    /// `backup.store`.
    fn store(&self) -> PathBuf {
        self.bucket.as_ref().map_or_else(|| self.path("store"), PathBuf::from)
    }

    /// What runs PostgreSQL, as settings.
    pub fn database(&self) -> Vec<(&'static str, String)> {
        let mut settings = vec![("database.provisioner", self.provisioner.to_owned())];
        if let Some(newer) = &self.newer {
            settings.push(("database.upgrade_bin_dir", newer.display().to_string()));
        }
        if let Some((socket, image)) = &self.container {
            settings.push(("database.container.socket", socket.display().to_string()));
            settings.push(("database.container.image", image.clone()));
        }
        settings.extend(self.settings.iter().cloned());
        settings
    }

    /// Docker's command line against the engine.
    pub fn engine(&self, arguments: &[&str]) -> String {
        let (socket, _) = self.container.as_ref().unwrap();
        let mut command = Command::new("docker");
        let output = command.arg("--host").arg(format!("unix://{}", socket.display())).args(arguments).output();
        String::from_utf8(output.unwrap().stdout).unwrap()
    }

    /// The containers of this very place, by their labels.
    pub fn containers(&self) -> Vec<String> {
        let format = "{{.Names}} {{.Label \"bib.home\"}}";
        let all = self.engine(&["ps", "--all", "--filter", "label=bib.home", "--format", format]);
        let here = self.dir.path().display().to_string();
        let ours = all.lines().filter_map(|line| line.split_once(' ')).filter(|(_, home)| home.starts_with(&here));
        ours.map(|(name, _)| name.to_owned()).collect()
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    pub fn sheet(&self) -> PathBuf {
        self.path("sheet")
    }

    /// Names of archived segments of the first epoch.
    pub fn segments(&self, peer: &str) -> Vec<String> {
        let entries = std::fs::read_dir(self.path("store").join(peer).join("wal/1"));
        let mut names: Vec<String> =
            entries.into_iter().flatten().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
        names.retain(|name| name.len() == 24);
        names.sort();
        names
    }

    fn bibd(&self) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_bibd"));
        command.arg("--config-dir").arg(self.path("no-config")).stdin(Stdio::null());
        for (key, value) in self.database() {
            command.env(format!("BIBD__{}", key.to_uppercase().replace('.', "__")), value);
        }
        command
    }

    fn restoring(&self, store: &Path, to: &str, identity: &Path, arguments: &[&str]) -> Command {
        let mut command = self.bibd();
        command.arg("restore").arg("--from").arg(store).arg("--to").arg(self.path(to));
        command.arg("--identity").arg(identity).args(["--output", "json"]).args(arguments);
        command
    }

    pub fn restore(&self, to: &str, arguments: &[&str]) -> serde_json::Value {
        self.restore_from(&self.store(), to, arguments)
    }

    /// A restore that dies after that step, as by kill -9.
    pub fn killed_restore(&self, to: &str, point: &str) {
        self.killed_restore_with(to, point, &[]);
    }

    /// The same with more on the command line.
    pub fn killed_restore_with(&self, to: &str, point: &str, arguments: &[&str]) {
        let mut command = self.restoring(&self.store(), to, &self.sheet(), arguments);
        let output = command.env(bibd::failpoint::VARIABLE, point).output().unwrap();
        assert_eq!(output.status.signal(), Some(9), "{point}: {}", String::from_utf8_lossy(&output.stderr));
    }

    /// A start, as the last configuration says, that dies after that step.
    pub fn killed_start(&self, data: &str, point: &str) {
        let mut command = Command::new(env!("CARGO_BIN_EXE_bibd"));
        for (key, value) in self.database() {
            command.env(format!("BIBD__{}", key.to_uppercase().replace('.', "__")), value);
        }
        command.arg("--config").arg(self.path("config.yaml")).arg("--data-dir").arg(self.path(data)).arg("run");
        let output = command.env(bibd::failpoint::VARIABLE, point).output().unwrap();
        assert_eq!(output.status.signal(), Some(9), "{point}: {}", String::from_utf8_lossy(&output.stderr));
    }

    /// A restore on a machine whose own data directory is `data`.
    pub fn restore_here(&self, to: &str, data: &Path, arguments: &[&str]) -> (bool, String) {
        let mut command = self.restoring(&self.store(), to, &self.sheet(), arguments);
        let output = command.env("BIBD__DATA_DIR", data).output().unwrap();
        (output.status.success(), String::from_utf8(output.stderr).unwrap())
    }

    /// What a restore with `--identity -` says to this standard input.
    pub fn restore_typed(&self, to: &str, sheet: &[u8], arguments: &[&str]) -> (bool, String) {
        let mut command = self.restoring(&self.store(), to, Path::new("-"), arguments);
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        std::io::Write::write_all(child.stdin.as_mut().unwrap(), sheet).unwrap();
        let output = child.wait_with_output().unwrap();
        let said = if output.status.success() { output.stdout } else { output.stderr };
        (output.status.success(), String::from_utf8(said).unwrap())
    }

    /// The command line of a restore out of a bucket, for who adds credentials to it.
    pub fn restoring_from_bucket(&self, to: &str) -> Command {
        self.restoring(&self.store(), to, &self.sheet(), &[])
    }

    pub fn restore_from(&self, store: &Path, to: &str, arguments: &[&str]) -> serde_json::Value {
        let output = self.restoring(store, to, &self.sheet(), arguments).output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        serde_json::from_slice(&output.stdout).unwrap()
    }

    pub fn refused_restore(&self, store: &Path, to: &str, arguments: &[&str]) -> (i32, String) {
        self.refused_with(store, to, &self.sheet(), arguments)
    }

    pub fn refused_with(&self, store: &Path, to: &str, identity: &Path, arguments: &[&str]) -> (i32, String) {
        let output = self.restoring(store, to, identity, arguments).output().unwrap();
        let said = String::from_utf8(output.stderr).unwrap();
        assert!(said.contains("hint: ") || output.status.success(), "{said}");
        (output.status.code().unwrap(), said)
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        if self.container.is_some() {
            for name in self.containers() {
                self.engine(&["rm", "--force", "--volumes", &name]);
            }
        }
        // Only servers in this very directory, which the test started: found by their pid files.
        for entry in std::fs::read_dir(self.dir.path()).into_iter().flatten().flatten() {
            let data = entry.path().join("postgres/data");
            let Ok(text) = std::fs::read_to_string(data.join("postmaster.pid")) else { continue };
            let Some(pid) = text.lines().next().and_then(|line| line.parse::<i32>().ok()) else { continue };
            if std::fs::read_link(format!("/proc/{pid}/cwd")).is_ok_and(|cwd| cwd == data)
                && let Some(pid) = rustix::process::Pid::from_raw(pid)
            {
                // Gone already is what is wanted.
                let _ = rustix::process::kill_process(pid, rustix::process::Signal::QUIT);
            }
        }
    }
}

/// A daemon that serves its socket alone.
pub struct Node {
    pub daemon: Daemon,
}

impl Node {
    pub async fn start(place: &Place, data: &str) -> Self {
        Self::start_with(place, data, "every: 0s").await
    }

    /// With a line of configuration for `backup`.
    pub async fn start_with(place: &Place, data: &str, backup: &str) -> Self {
        let text = format!(
            "data_dir: {}\ngrpc:\n  listen: []\n  rate_limit:\n    enabled: false\nlog:\n  level: warn\nbackup:\n  store: {}\n  \
             {backup}\n  archive_timeout: 1s\n",
            place.path(data).display(),
            place.store().display()
        );
        std::fs::write(place.path("config.yaml"), &text).unwrap();
        let sources =
            Sources { file: Some((place.path("config.yaml"), text)), flags: place.database(), ..Default::default() };
        let loaded = config::load(&sources).unwrap();
        let clock: Arc<dyn Clock> = Arc::new(SystemClock);
        let uid = rustix::process::geteuid();
        let home = Home {
            is_root: uid.is_root(),
            uid: uid.as_raw(),
            config: place.path("config"),
            data: place.path("home"),
            runtime: None,
        };
        let logs = bibd::logging::init(&loaded.config.log, Arc::clone(&clock)).unwrap();
        let entropy = Entropy::from_system();
        let database_tcp = place.database_tcp(&clock);
        let options = Options {
            loaded,
            home,
            ready_file: None,
            admin_key: None,
            clock,
            entropy,
            logs,
            failpoints: Default::default(),
            database_tcp,
        };
        Self { daemon: Box::pin(Daemon::start(options)).await.unwrap() }
    }

    pub async fn stop(self) {
        self.daemon.stop(Duration::ZERO).await;
    }

    pub fn peer(&self) -> String {
        self.daemon.ready().peer_id.clone()
    }

    async fn channel(&self) -> Channel {
        let path = self.daemon.ready().socket.clone();
        let connector = tower::service_fn(move |_| {
            let path: PathBuf = path.clone();
            async move { UnixStream::connect(path).await.map(TokioIo::new) }
        });
        Endpoint::from_static("http://node.bib.invalid").connect_with_connector(connector).await.unwrap()
    }

    pub async fn admin(&self) -> AdminServiceClient<Channel> {
        AdminServiceClient::new(self.channel().await)
    }

    pub async fn export_recovery(&self, to: &Path) {
        let request = pb::ExportRecoveryRequest { replace: false };
        let sheet = self.admin().await.export_recovery(request).await.unwrap().into_inner().sheet;
        std::fs::write(to, sheet).unwrap();
        std::fs::set_permissions(to, std::fs::Permissions::from_mode(0o600)).unwrap();
    }

    async fn try_backup(&self) -> Result<pb::Backup, Status> {
        self.try_backup_of("").await
    }

    /// A backup of this kind.
    pub async fn try_backup_of(&self, kind: &str) -> Result<pb::Backup, Status> {
        let request = pb::CreateBackupRequest { kind: kind.to_owned() };
        let mut answers = self.admin().await.create_backup(request).await?.into_inner();
        let mut made = None;
        while let Some(answer) = answers.next().await {
            made = answer?.backup;
        }
        Ok(made.expect("the last answer has the backup"))
    }

    pub async fn make_backup(&self) -> pb::Backup {
        self.try_backup().await.unwrap()
    }

    pub async fn make_dump(&self) -> pb::Backup {
        self.try_backup_of("logical").await.unwrap()
    }

    pub async fn can_make_backup(&self) -> bool {
        self.try_backup().await.is_ok()
    }

    /// The code with which a backup is refused.
    pub async fn refused_backup(&self) -> String {
        let status = self.try_backup().await.expect_err("this must be refused");
        status.get_details_error_info().map(|info| info.reason).unwrap_or_else(|| format!("{status:?}"))
    }

    /// Asks for a backup and goes away after so many answers.
    pub async fn abandon_backup(&self, answers: usize) {
        let backup = self.admin().await.create_backup(pb::CreateBackupRequest::default()).await.unwrap().into_inner();
        let seen: Vec<_> = backup.take(answers).collect().await;
        let is_unfinished =
            |answer: &Result<pb::CreateBackupResponse, Status>| answer.as_ref().unwrap().backup.is_none();
        assert!(seen.iter().all(is_unfinished), "done too soon: {seen:?}");
    }

    pub async fn set_credentials(&self, text: &str) -> Result<pb::SetBackupCredentialsResponse, Status> {
        let request = pb::SetBackupCredentialsRequest { credentials: text.to_owned() };
        self.admin().await.set_backup_credentials(request).await.map(tonic::Response::into_inner)
    }

    pub async fn backups(&self) -> Vec<pb::Backup> {
        self.admin().await.list_backups(pb::ListBackupsRequest {}).await.unwrap().into_inner().backups
    }

    pub async fn verify(&self, id: &str) -> pb::VerifyBackupResponse {
        self.try_verify(id).await.unwrap()
    }

    pub async fn try_verify(&self, id: &str) -> Result<pb::VerifyBackupResponse, Status> {
        let request = pb::VerifyBackupRequest { id: id.to_owned() };
        self.admin().await.verify_backup(request).await.map(tonic::Response::into_inner)
    }

    /// Items of the checklist that fail.
    pub async fn failing_items(&self) -> Vec<pb::Finding> {
        let findings =
            self.admin().await.audit_database(pb::AuditDatabaseRequest {}).await.unwrap().into_inner().findings;
        findings.into_iter().filter(|finding| finding.status == "fail").collect()
    }

    pub async fn rotate(&self) {
        let done = self.admin().await.rotate_database(pb::RotateDatabaseRequest::default()).await.unwrap().into_inner();
        assert_eq!(done.roles.len(), 10, "{done:?}");
    }

    pub async fn delete_backup(&self, id: &str) {
        self.admin().await.delete_backup(pb::DeleteBackupRequest { id: id.to_owned() }).await.unwrap();
    }

    pub async fn audit_verdict(&self) -> String {
        let answers = self.admin().await.verify_audit(pb::VerifyAuditRequest {}).await.unwrap().into_inner();
        let all: Vec<_> = answers.collect().await;
        all.into_iter().next_back().unwrap().unwrap().verdict
    }

    pub async fn make_topic(&self, name: &str) {
        let request = pb::CreateTopicRequest { name: name.to_owned(), ..Default::default() };
        TopicServiceClient::new(self.channel().await).create_topic(request).await.unwrap();
    }

    /// A write that makes no row.
    pub async fn rename_topic(&self, name: &str) {
        let request = pb::UpdateTopicRequest {
            topic: name.to_owned(),
            title: Some(format!("{name} at {}", SystemClock.now())),
            ..Default::default()
        };
        TopicServiceClient::new(self.channel().await).update_topic(request).await.unwrap();
        tokio::time::sleep(Duration::from_millis(200)).await;
    }

    pub async fn topics(&self) -> u64 {
        let mut session = self.daemon.foundation().db.read().await.unwrap();
        topics::count(&mut session).await.unwrap()
    }

    /// Entries of the audit log whose action begins so.
    pub async fn entries(&self, action: &str) -> usize {
        let mut session = self.daemon.foundation().db.read_audit().await.unwrap();
        let filter = audit::Filter { action: action.to_owned(), limit: 1000, ..Default::default() };
        audit::list(&mut session, &filter).await.unwrap().len()
    }
}

pub fn copy_tree(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).unwrap();
    for entry in std::fs::read_dir(from).unwrap() {
        let (entry, target) = (entry.as_ref().unwrap(), to.join(entry.as_ref().unwrap().file_name()));
        if entry.file_type().unwrap().is_dir() {
            copy_tree(&entry.path(), &target);
        } else {
            std::fs::copy(entry.path(), target).unwrap();
        }
    }
}

/// Waits for `condition`, or fails.
pub async fn wait_for(what: &str, deadline: Duration, mut condition: impl AsyncFnMut() -> bool) {
    let end = Instant::now() + deadline;
    while !condition().await {
        assert!(Instant::now() < end, "not within {deadline:?}: {what}");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}
