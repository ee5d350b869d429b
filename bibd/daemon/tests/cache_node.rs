//! A cache node, as a person meets it: the binary, its socket, its listener.
#![allow(clippy::unwrap_used)]

use std::fs;
use std::io::{Read as _, Write as _};
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use bib_client::{Client, ErrorKind, Options, Random, Target, pb};
use bib_core::record::{Body, Kind, Node as NodeBody, Revision, SignedRecord};
use bib_core::signature::Purpose;
use bib_core::{PeerId, Timestamp};
use bib_identity::{NodeKey, TimeSource};
use bibd::clock::{Clock as _, SystemClock};
use bibd_cache::{Cache, Settings};
use rand::RngCore as _;
use rand::rngs::OsRng;

fn bibd(dir: &Path) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_bibd"));
    command.arg("--config-dir").arg(dir.join("config")).arg("--data-dir").arg(dir.join("data"));
    command.args(["--listen", "127.0.0.1:0"]).env("BIBD__NODE__MODE", "proxy");
    // No PostgreSQL can be found, by any of the ways.
    command.env("PATH", "/nonexistent").env("BIBD__DATABASE__BIN_DIR", "/nonexistent");
    command.env("BIBD__DATABASE__CONTAINER__SOCKET", "/nonexistent/engine.sock");
    command
}

struct Running {
    child: Child,
    socket: String,
    metrics: String,
}

impl Running {
    fn start(dir: &Path) -> Self {
        let mut command = bibd(dir);
        command.arg("run").env("BIBD__METRICS__LISTEN", "127.0.0.1:0").stdout(Stdio::null()).stderr(Stdio::null());
        let mut child = command.spawn().unwrap();
        let (ready, began) = (dir.join("data/ready.json"), Instant::now());
        while !ready.exists() {
            assert!(child.try_wait().unwrap().is_none(), "bibd ended: {:?}", output(bibd(dir).arg("run")));
            assert!(began.elapsed() < Duration::from_secs(20), "bibd does not become ready");
            std::thread::sleep(Duration::from_millis(20));
        }
        let ready: serde_json::Value = serde_json::from_slice(&fs::read(ready).unwrap()).unwrap();
        let text = |key: &str| ready[key].as_str().unwrap().to_owned();
        Self { child, socket: text("socket"), metrics: text("metrics") }
    }

    fn stop(mut self) {
        let pid = rustix::process::Pid::from_child(&self.child);
        rustix::process::kill_process(pid, rustix::process::Signal::TERM).unwrap();
        assert!(self.child.wait().unwrap().success());
    }

    fn metrics(&self) -> String {
        let mut text = String::new();
        let mut stream = std::net::TcpStream::connect(&self.metrics).unwrap();
        stream.write_all(b"GET /metrics HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n").unwrap();
        stream.read_to_string(&mut text).unwrap();
        text
    }

    fn client(&self, dir: &Path) -> Client {
        let clock = TimeSource::new(|| SystemClock.now());
        let random = Random::new(|bytes| OsRng.fill_bytes(bytes));
        let options = Options::new(clock, random, dir.join("client"), dir.join("client-cache"));
        Client::connect(Target::Socket(PathBuf::from(&self.socket)), options).unwrap()
    }
}

impl Drop for Running {
    /// What a failed test leaves; one that was stopped has ended already.
    fn drop(&mut self) {
        let _ = self.child.kill().and_then(|()| self.child.wait());
    }
}

fn output(command: &mut Command) -> (Option<i32>, String) {
    let Output { status, stderr, .. } = command.output().unwrap();
    (status.code(), String::from_utf8(stderr).unwrap())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_proxy_starts_without_postgresql_says_how_it_is_and_refuses_the_rest_with_the_reason() {
    let dir = tempfile::tempdir().unwrap();
    let node = Running::start(dir.path());
    let client = node.client(dir.path());
    assert_eq!(client.health().check("").await.unwrap().status(), pb::ServingStatus::Serving);
    assert_eq!(client.health().node_info().await.unwrap().mode, "proxy");
    let told = client.node().get_self().await.unwrap();
    assert_eq!((told.mode.as_str(), told.topics, told.versions), ("proxy", 0, 0));
    let (database, storage) = (told.database.unwrap(), told.storage.unwrap());
    assert_eq!((database.provisioner.as_str(), database.schema), ("sqlite", 1));
    assert!(storage.path.ends_with("data/cache/cache.sqlite") && storage.stored_bytes > 0, "{storage:?}");

    let refused = client.topics().list_page(Default::default()).await.unwrap_err();
    assert_eq!((refused.code(), refused.kind()), (Some("BIB0308"), ErrorKind::Conflict), "{refused}");
    assert!(refused.to_string().contains("`node.mode: proxy`"), "{refused}");
    assert!(refused.hint().unwrap().contains("full node"), "{refused}");

    let text = node.metrics();
    assert!(text.contains("\nbibd_cache_records 0\n"), "{text}");
    node.stop();

    let names: Vec<_> =
        fs::read_dir(dir.path().join("data")).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert!(!names.iter().any(|name| name == "postgres" || name == "blobs"), "{names:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_cached_is_there_after_a_restart_and_goes_when_its_time_is_over() {
    let dir = tempfile::tempdir().unwrap();
    Running::start(dir.path()).stop();
    let path = dir.path().join("data/cache");
    // As the network puts it there: one record that is too old, and one that is not.
    let settings = Settings { ttl: Duration::from_secs(86_400), max_bytes: 1 << 30 };
    let cache = Cache::open(&path, PeerId::from_public_key([7; 32]), settings).await.unwrap().cache;
    let (now, mut ids) = (SystemClock.now(), Vec::new());
    for kept in [now.plus_seconds(-2 * 86_400), now] {
        let key = NodeKey::create(&dir.path().join(format!("key{}", ids.len())), &mut OsRng).unwrap();
        cache.keep_record(&said_by(&key, now), kept).await.unwrap();
        ids.push(key.peer_id().to_string());
    }
    cache.close().await;

    let node = Running::start(dir.path());
    let began = Instant::now();
    while !node.metrics().contains("\nbibd_cache_expired_total 1\n") {
        assert!(began.elapsed() < Duration::from_secs(20), "nothing was swept: {}", node.metrics());
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    assert!(node.metrics().contains("\nbibd_cache_records 1\n"), "{}", node.metrics());
    node.stop();
    let cache = Cache::open(&path, PeerId::from_public_key([7; 32]), settings).await.unwrap().cache;
    assert!(cache.record(Kind::Node, &ids[1], now).await.unwrap().is_some());
    cache.close().await;
}

/// What a node says of itself.
fn said_by(key: &NodeKey, time: Timestamp) -> SignedRecord {
    let revision = Revision { tenure: 0, epoch: 1, n: 1 };
    let (name, recovery, ca, extra) = (None, None, None, Default::default());
    let body =
        Body::Node(NodeBody { revision, time, id: key.peer_id(), name, recovery, ca, extra }).to_bytes().unwrap();
    SignedRecord { sig: key.sign(Purpose::Record, &body), key: key.peer_id(), body }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_damaged_cache_costs_a_cache_and_no_start() {
    let dir = tempfile::tempdir().unwrap();
    let node = Running::start(dir.path());
    let who = node.client(dir.path()).health().node_info().await.unwrap().peer_id;
    node.stop();
    let file = dir.path().join("data/cache/cache.sqlite");
    fs::OpenOptions::new().write(true).open(&file).unwrap().write_at(&[0xff; 4_096], 0).unwrap();
    let node = Running::start(dir.path());
    assert_eq!(node.client(dir.path()).health().node_info().await.unwrap().peer_id, who, "it is the same node");
    assert!(file.with_extension("sqlite.damaged").exists());
    node.stop();
}

#[test]
fn sqlite_is_for_nodes_that_are_never_authoritative_and_those_have_nothing_to_back_up() {
    let dir = tempfile::tempdir().unwrap();
    for (variables, key, sentence) in [
        (
            &[("NODE__MODE", "full"), ("DATABASE__BACKEND", "sqlite")][..],
            "database.backend",
            "a full node needs the managed",
        ),
        (&[("NODE__MODE", "selective")], "node.mode", "`database.backend: sqlite` for a cache"),
        (&[("BACKUP__STORE", "/mnt/backups")], "backup.store", "nothing of its own to keep"),
        (&[("ENCRYPTION__AT_REST", "fscrypt")], "encryption.at_rest", "nothing of its own to keep"),
        (&[("DATABASE__BREAK_GLASS__ENABLED", "true")], "database.break_glass.enabled", "nothing of its own"),
        (&[("DATABASE__CACHE__TTL", "1s")], "database.cache.ttl", "must be 1m to 30d"),
        (&[("DATABASE__CACHE__MAX_SIZE", "1MiB")], "database.cache.max_size", "at least 16MiB"),
    ] {
        let mut command = bibd(dir.path());
        command.args(["config", "check"]).envs(variables.iter().map(|(k, v)| (format!("BIBD__{k}"), v)));
        let (code, text) = output(&mut command);
        assert_eq!(code, Some(2), "{variables:?}: {text}");
        assert!(text.contains(key) && text.contains(sentence) && text.contains("hint:"), "{variables:?}: {text}");
    }
    let mut command = bibd(dir.path());
    command.args(["config", "check"]).env("BIBD__NODE__MODE", "selective").env("BIBD__DATABASE__BACKEND", "sqlite");
    assert_eq!(output(&mut command), (Some(0), String::new()));
    let (code, text) = output(bibd(dir.path()).args([
        "run",
        "--admin-key",
        "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIIJ6QB1wtVQ4q9lS5pQ5Qp0XFQm9u6Zz9kz8o6Y3l0Ds",
    ]));
    assert!(code == Some(2) && text.contains("a cache has none"), "{text}");
}

#[test]
fn the_data_directory_of_a_full_node_is_left_alone() {
    let dir = tempfile::tempdir().unwrap();
    Running::start(dir.path()).stop();
    let home = dir.path().join("data/postgres");
    fs::create_dir(&home).unwrap();
    fs::write(home.join("PROVISIONER"), "{}").unwrap();
    let (code, text) = output(bibd(dir.path()).arg("run"));
    assert!(code == Some(1) && text.contains("BIB0402") && text.contains("--data-dir"), "{code:?} {text}");
    let said = String::from_utf8(bibd(dir.path()).arg("doctor").output().unwrap().stdout).unwrap();
    assert!(said.contains("FAIL  cache"), "{said}");
}
