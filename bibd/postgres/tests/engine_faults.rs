//! An engine that hangs, a disk that cannot be written, an image that is not there: a sentence, a hint, nothing half
//! made, and nobody waits for ever.
#![allow(clippy::unwrap_used, clippy::print_stderr)]

mod support;

use std::future::Future;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use bibd_postgres::choose::choose;
use bibd_postgres::{Choice, Error, GroupRole, Health, Randomness, Started, Stop, Wanted};
use rand::SeedableRng as _;
use support::{Ground, MemoryStore, TestServer, machine_has, test_image};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, UnixListener, UnixStream};
use tokio::sync::watch;

on_every_engine!(an_engine_that_hangs_hides_no_server_and_nobody_waits_for_it, auto_waits_for_no_image);

mod disk {
    crate::on_every_provisioner!(a_data_directory_that_cannot_be_written_is_said_and_nothing_is_made);
    use super::a_data_directory_that_cannot_be_written_is_said_and_nothing_is_made;
}

/// Far above every deadline of ours: who takes longer hangs.
async fn in_time<T>(work: impl Future<Output = T>) -> T {
    tokio::time::timeout(Duration::from_secs(300), work).await.expect("this hangs")
}

/// The engine's socket once more, which can stop to move anything.
struct Freezer {
    socket: PathBuf,
    frozen: watch::Sender<bool>,
}

impl Freezer {
    #[allow(clippy::disallowed_methods, reason = "a test has no supervisor")]
    fn before(engine: &Path, socket: PathBuf) -> Self {
        let frozen = watch::Sender::new(false);
        let (listener, engine) = (UnixListener::bind(&socket).unwrap(), engine.to_owned());
        let watched = frozen.subscribe();
        tokio::spawn(async move {
            while let Ok((ours, _)) = listener.accept().await {
                let Ok(theirs) = UnixStream::connect(&engine).await else { continue };
                let ((from, to), (back_from, back_to)) = (ours.into_split(), theirs.into_split());
                tokio::spawn(carry(from, back_to, watched.clone()));
                tokio::spawn(carry(back_from, to, watched.clone()));
            }
        });
        Self { socket, frozen }
    }
}

async fn carry(
    mut from: tokio::net::unix::OwnedReadHalf,
    mut to: tokio::net::unix::OwnedWriteHalf,
    mut frozen: watch::Receiver<bool>,
) {
    let mut buffer = vec![0; 64 * 1024];
    while let Ok(length @ 1..) = from.read(&mut buffer).await {
        if frozen.wait_for(|frozen| !frozen).await.is_err() || to.write_all(&buffer[..length]).await.is_err() {
            return;
        }
    }
}

async fn an_engine_that_hangs_hides_no_server_and_nobody_waits_for_it(ground: Ground) {
    let mut server = TestServer::on(ground);
    let engine = Freezer::before(&ground.socket(), server.here.path().join("engine.sock"));
    server.settings.container.socket = Some(engine.socket.clone());
    server.another_daemon();
    server.postgres.provision().await.unwrap();
    server.postgres.start().await.unwrap();
    server.database.ensure_roles().await.unwrap();

    // It hangs: the server is there, answers, and can be stopped.
    engine.frozen.send_replace(true);
    assert_eq!(in_time(server.postgres.health()).await, Health::Ready);
    server.connect(GroupRole::Query).await;
    let facts = in_time(server.postgres.facts()).await.map(drop).unwrap_err();
    assert!(matches!(facts, Error::EngineSilent { .. }) && facts.hint().is_some(), "{facts}");
    let login = server.database.login(GroupRole::Backup).unwrap();
    let backup = in_time(server.postgres.base_backup(&login, "b")).await.map(drop).unwrap_err();
    assert!(matches!(backup, Error::EngineSilent { .. }) && backup.hint().is_some(), "{backup}");
    in_time(server.postgres.stop(Stop::Clean)).await.unwrap();
    let refused = in_time(server.postgres.start()).await.unwrap_err();
    assert!(matches!(refused, Error::EngineSilent { .. }) && refused.hint().is_some(), "{refused}");
    engine.frozen.send_replace(false);
    assert_eq!(server.postgres.start().await.unwrap(), Started::Spawned);

    // It hangs, and the daemon is a new one: it makes nothing, and still stops the server that it finds.
    engine.frozen.send_replace(true);
    server.another_daemon();
    let refused = in_time(server.postgres.start()).await.unwrap_err();
    assert!(matches!(refused, Error::NoEngine { .. }) && refused.hint().is_some(), "{refused}");
    server.connect(GroupRole::Query).await;
    in_time(server.postgres.stop(Stop::Clean)).await.unwrap();
    engine.frozen.send_replace(false);
    server.another_daemon();
    assert_eq!(server.postgres.health().await, Health::Stopped);
    assert_eq!(server.postgres.start().await.unwrap(), Started::Spawned);
}

async fn auto_waits_for_no_image(ground: Ground) {
    if !machine_has(Ground::Process).await {
        return;
    }
    let mut server = TestServer::on(ground);
    let pick = async |settings: &bibd_postgres::Settings| {
        let random = Randomness::new(rand::rngs::StdRng::seed_from_u64(3));
        let choosing = choose(Wanted::Auto, settings.clone(), Arc::new(MemoryStore::default()), random);
        Box::pin(in_time(choosing)).await
    };
    assert_eq!(pick(&server.settings).await.unwrap().choice(), Choice::Container);
    // A registry that takes connections and says nothing: the worst network.
    let registry = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let (port, calls) = (registry.local_addr().unwrap().port(), Arc::new(AtomicUsize::new(0)));
    let counted = calls.clone();
    #[allow(clippy::disallowed_methods, reason = "a test has no supervisor")]
    tokio::spawn(async move {
        let mut held = Vec::new();
        while let Ok((connection, _)) = registry.accept().await {
            counted.fetch_add(1, Ordering::SeqCst);
            held.push(connection);
        }
    });
    server.settings.container.image = format!("127.0.0.1:{port}/nobody/nothing:1");
    assert_eq!(pick(&server.settings).await.unwrap().choice(), Choice::Process);
    assert_eq!(calls.load(Ordering::SeqCst), 0, "nobody asks a registry while there are binaries");
    // An engine that hangs.
    let silent = server.here.path().join("silent.sock");
    let _listens = std::os::unix::net::UnixListener::bind(&silent).unwrap();
    server.settings.container.socket = Some(silent);
    server.settings.container.passing_deadline = Duration::from_secs(3);
    assert_eq!(pick(&server.settings).await.unwrap().choice(), Choice::Process);
    // Without binaries the image is fetched after all; and when that fails, every place is named with its reason.
    server.settings.container.socket = Some(ground.socket());
    server.settings.container.passing_deadline = Duration::from_secs(60);
    server.settings.container.pull_stalled = Duration::from_secs(5);
    server.settings.bin_dir = Some(server.here.path().join("gone"));
    let refused = pick(&server.settings).await.err().unwrap();
    assert!(matches!(refused, Error::NoBinaries { .. }) && refused.hint().is_some(), "{refused}");
    let said = refused.to_string();
    assert!(said.contains("in a container: the image `127.0.0.1") && said.contains("cannot be pulled"), "{said}");
    server.settings.container.image = test_image();
    assert_eq!(pick(&server.settings).await.unwrap().choice(), Choice::Container);
    assert!(!server.layout().home.exists(), "looking makes nothing");
}

/// A small file system that can be made read-only; root reads and writes through every mode.
struct Disk(PathBuf);

impl Disk {
    fn at(path: PathBuf) -> Self {
        let disk = Self(path);
        disk.mount(&["-t", "tmpfs", "-o", "mode=711,size=400m", "tmpfs"]);
        disk
    }

    fn can_be_written(&self, yes: bool) {
        self.mount(&["-o", if yes { "remount,rw" } else { "remount,ro" }]);
    }

    fn mount(&self, arguments: &[&str]) {
        let status = std::process::Command::new("mount").args(arguments).arg(&self.0).status().unwrap();
        assert!(status.success(), "mount {arguments:?}");
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        let _ = std::process::Command::new("umount").arg("--lazy").arg(&self.0).status();
    }
}

async fn a_data_directory_that_cannot_be_written_is_said_and_nothing_is_made(ground: Ground) {
    if !rustix::process::geteuid().is_root() {
        assert!(std::env::var("CI").as_deref() != Ok("true"), "CI must run as root");
        eprintln!("\n==== SKIPPED, NOTHING TESTED: only root can mount a file system\n");
        return;
    }
    let server = TestServer::on(ground);
    let (disk, layout) = (Disk::at(server.settings.data_root.clone()), server.layout());
    let no_container = || {
        if ground.is_container() {
            let left = ground.engine(&["ps", "--all", "--quiet", "--filter", &format!("name={}", server.container())]);
            assert_eq!(left, (true, String::new()));
        }
    };
    disk.can_be_written(false);
    let refused = server.postgres.provision().await.unwrap_err();
    let cause = std::error::Error::source(&refused).map(ToString::to_string).unwrap_or_default();
    assert!(cause.contains("Read-only file system") && refused.hint().unwrap().contains("read-only"), "{refused:?}");
    assert!(!layout.home.exists());
    no_container();
    disk.can_be_written(true);
    server.postgres.provision().await.unwrap();
    server.postgres.start().await.unwrap();
    server.postgres.stop(Stop::Clean).await.unwrap();
    server.postgres.dismantle().await.unwrap();
    disk.can_be_written(false);
    let refused = server.postgres.start().await.unwrap_err();
    assert!(refused.hint().is_some_and(|hint| hint.contains("read-only")), "{refused:?}");
    assert_eq!(server.postgres.health().await, Health::Stopped);
    no_container();
    disk.can_be_written(true);
    assert_eq!(server.postgres.start().await.unwrap(), Started::Spawned);
    server.postgres.stop(Stop::Clean).await.unwrap();
}
