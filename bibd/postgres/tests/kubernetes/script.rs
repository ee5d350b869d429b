//! The pod's script on this machine, with this machine's PostgreSQL: what the container that makes the cluster does in
//! each state of the volume, and that the server it starts is stopped in order.

use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::process::CommandExt as _;
use std::path::Path;
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use bibd_postgres::account::Account;
use bibd_postgres::kubernetes::KubernetesSettings;
use bibd_postgres::kubernetes::names::{CLUSTER, VERIFIER};
use bibd_postgres::kubernetes::script::{Inside, SCRIPT};
use bibd_postgres::{Layout, Limits, Wal, binaries};
use tempfile::TempDir;

/// Not a password of anybody: what PostgreSQL makes of `secret`.
const SOME_VERIFIER: &str = "SCRAM-SHA-256$4096:c2FsdHNhbHRzYWx0c2FsdA==$Wl3iDlC9Wk2YkK7p5sCk8cV8yH7F2J6y0V0m6Ww0q1A=:\
                             ZtHnq9WmVv0y0m6Ww0q1AWl3iDlC9Wk2YkK7p5sCk8c=";

struct Pod {
    directory: TempDir,
    inside: Inside,
    account: Account,
}

impl Pod {
    async fn new() -> Self {
        let directory = tempfile::Builder::new().prefix("pod").tempdir_in("/tmp").unwrap();
        let root = directory.path();
        std::fs::set_permissions(root, std::fs::Permissions::from_mode(0o755)).unwrap();
        let layout = Layout::new(&root.join("var"), &root.join("run"));
        let account = Account::choose(None, &layout.data).await.unwrap();
        let major = binaries::choose(None, None, account).await.unwrap().version.unwrap().major;
        let (config, first) = (root.join("config"), root.join("first"));
        let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        for place in [&layout.home, &config, &first] {
            std::fs::create_dir_all(place).unwrap();
            std::os::unix::fs::chown(place, Some(account.uid), Some(account.gid)).unwrap();
        }
        std::fs::write(first.join(VERIFIER), SOME_VERIFIER).unwrap();
        let pod = Self { directory, inside: Inside { layout, config, first, major, port, stop_s: 30 }, account };
        pod.configure();
        pod.expect("initialising");
        pod
    }

    /// The files of a pod, but for the port and TLS: the certificates have their own tests.
    fn configure(&self) {
        let settings = KubernetesSettings { major: self.inside.major, ..KubernetesSettings::default() };
        let mut config = settings.config(&Limits::default(), &Wal::Recycle);
        for (name, value) in &mut config.settings {
            match *name {
                "port" => *value = self.inside.port.to_string(),
                "ssl" => *value = "off".to_owned(),
                "listen_addresses" => *value = "127.0.0.1".to_owned(),
                _ => {}
            }
        }
        config.hba = config.hba.lines().filter(|line| !line.starts_with("hostssl")).map(|l| format!("{l}\n")).collect();
        for (name, text) in config.files() {
            std::fs::write(self.inside.config.join(name), text).unwrap();
        }
        std::fs::write(self.inside.config.join(SCRIPT), self.inside.script()).unwrap();
    }

    /// What bibd says must be in the volume.
    fn expect(&self, cluster: &str) {
        std::fs::write(self.inside.config.join(CLUSTER), format!("{cluster}\n")).unwrap();
    }

    fn command(&self, verb: &str) -> Command {
        let mut command = Command::new("/bin/sh");
        command.arg(self.inside.config.join(SCRIPT)).arg(verb).current_dir("/").env_clear();
        command.env("PATH", "/usr/bin:/bin").env("LC_ALL", "C").env("TZ", "UTC");
        if rustix::process::geteuid().is_root() {
            command.uid(self.account.uid).gid(self.account.gid);
        }
        command
    }

    fn run(&self, verb: &str) -> Output {
        self.command(verb).output().unwrap()
    }

    #[track_caller]
    fn succeeds(&self, verb: &str) {
        let output = self.run(verb);
        assert!(output.status.success(), "{verb}: {}", String::from_utf8_lossy(&output.stderr));
    }

    /// The last words of `verb`, which must fail.
    #[track_caller]
    fn refuses(&self, verb: &str) -> String {
        let output = self.run(verb);
        assert!(!output.status.success(), "{verb} succeeded");
        String::from_utf8_lossy(&output.stderr).lines().last().unwrap_or_default().to_owned()
    }

    fn data(&self) -> &Path {
        &self.inside.layout.data
    }

    fn system_identifier(&self) -> String {
        let control = std::fs::read(self.data().join("global/pg_control")).unwrap();
        u64::from_ne_bytes(control[..8].try_into().unwrap()).to_string()
    }
}

#[tokio::test]
async fn a_cluster_is_made_once_and_never_over_another() {
    let pod = Pod::new().await;
    // An attempt that was cut off leaves what is removed.
    std::fs::create_dir(&pod.inside.layout.data_new).unwrap();
    std::fs::write(pod.inside.layout.data_new.join("half"), "made").unwrap();
    std::os::unix::fs::chown(&pod.inside.layout.data_new, Some(pod.account.uid), Some(pod.account.gid)).unwrap();
    pod.succeeds("init");
    assert!(!pod.inside.layout.data_new.exists() && !pod.data().join("half").exists());
    let first = pod.system_identifier();
    let mode = |path: &Path| std::fs::metadata(path).unwrap().permissions().mode() & 0o7777;
    assert_eq!(mode(pod.data()), 0o700);

    // The pod died before bibd heard of it: the same again, and the same cluster.
    pod.succeeds("init");
    pod.expect(&first);
    // What a kubelet does to a volume of the pod's group.
    std::fs::set_permissions(pod.data(), std::fs::Permissions::from_mode(0o2770)).unwrap();
    pod.succeeds("init");
    assert_eq!((pod.system_identifier(), mode(pod.data())), (first.clone(), 0o700));

    pod.expect("7300000000000000001");
    assert_eq!(pod.refuses("init"), format!("the volume holds cluster {first}, expected 7300000000000000001"));
    // The volume was lost: no empty database takes its place.
    pod.expect(&first);
    std::fs::rename(pod.data(), pod.directory.path().join("lost")).unwrap();
    assert_eq!(pod.refuses("init"), format!("the volume is empty, expected cluster {first}"));
    assert!(!pod.data().exists());
    std::fs::rename(pod.directory.path().join("lost"), pod.data()).unwrap();

    std::fs::write(pod.data().join("PG_VERSION"), "14\n").unwrap();
    let major = pod.inside.major;
    assert_eq!(pod.refuses("init"), format!("the data belongs to PostgreSQL 14, the configuration says {major}"));
}

#[tokio::test]
async fn an_image_without_this_version_and_a_missing_verifier_are_named() {
    let mut pod = Pod::new().await;
    assert!(pod.refuses("dance").ends_with("init|run|ready|alive|stop"));
    std::fs::remove_file(pod.inside.first.join(VERIFIER)).unwrap();
    assert_eq!(pod.refuses("init"), "there is no verifier of the superuser");
    assert_eq!(pod.refuses("run"), "there is no database in the volume");
    assert!(!pod.data().exists() && !pod.inside.layout.data_new.exists());
    pod.inside.major = 9;
    pod.configure();
    let refused = pod.refuses("init");
    assert!(refused.starts_with("the image has no PostgreSQL 9"), "{refused}");
}

/// Ended when dropped.
struct Server(Child);

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[tokio::test]
async fn the_server_answers_and_stops_in_order() {
    let pod = Pod::new().await;
    pod.succeeds("init");
    assert_eq!(pod.run("ready").status.code(), Some(2));
    assert_eq!(pod.run("alive").status.code(), Some(1));
    std::fs::write(pod.data().join("postgresql.auto.conf"), "port = 1\n").unwrap();
    let mut server = Server(pod.command("run").stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap());
    let begun = Instant::now();
    while !pod.run("ready").status.success() {
        assert!(begun.elapsed() < Duration::from_secs(30), "it does not answer");
        assert!(server.0.try_wait().unwrap().is_none(), "it has ended");
        std::thread::sleep(Duration::from_millis(50));
    }
    pod.succeeds("alive");
    // The shell became the server, so that signals reach it.
    let name = std::fs::read_to_string(format!("/proc/{}/comm", server.0.id())).unwrap();
    assert_eq!(name.trim(), "postgres");
    assert_eq!(std::fs::read(pod.data().join("postgresql.auto.conf")).unwrap(), b"");
    pod.succeeds("stop");
    assert!(server.0.wait().unwrap().success());
    assert_eq!(pod.run("alive").status.code(), Some(1));
    let mut said = String::new();
    std::io::Read::read_to_string(server.0.stderr.as_mut().unwrap(), &mut said).unwrap();
    assert!(said.contains("fast shutdown request") && said.contains("database system is shut down"), "{said}");
}

#[test]
fn its_last_words_are_the_cluster_and_the_programs() {
    use bibd_postgres::kubernetes::script::said;
    let words = said("7300000000000000001 postgres (PostgreSQL) 15.20 (Debian 15.20-0+deb12u1)\n").unwrap();
    assert_eq!((words.0, words.1.major, words.1.minor), (7_300_000_000_000_000_001, 15, 20));
    for nothing in ["", "initdb: error: no", "7 psql (PostgreSQL) 15.20", "x postgres (PostgreSQL) 15.20"] {
        assert_eq!(said(nothing), None, "{nothing}");
    }
}
