//! The log of a server over TCP: it comes whole through deaths of either side, stops where there is no room, and a gap
//! is said. And a base backup by the same way.
#![allow(clippy::unwrap_used, clippy::print_stderr, clippy::print_stdout)]

mod support;

use std::io::Read as _;
use std::os::unix::fs::MetadataExt as _;
use std::os::unix::process::CommandExt as _;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use bibd_postgres::checklist::{self, Expected, Status};
use bibd_postgres::receive::{Receiver, Receiving, retained};
use bibd_postgres::rotation::{Which, sessions};
use bibd_postgres::wal::{SEGMENT_BYTES, Segment, spooled};
use bibd_postgres::{Database, GroupRole, Health, Stop, Wal};
use rustix::process::{Pid, Signal, kill_process};
use support::{Ground, TestServer, machine_has_postgres, run, text, wait_for};
use tokio_util::sync::CancellationToken;
use tokio_util::task::AbortOnDropHandle;

const PATIENCE: Duration = Duration::from_secs(60);

async fn archiving(max_files: u32) -> TestServer {
    let mut server = TestServer::on(Ground::Tcp);
    server.settings.wal = Wal::Archive { timeout_s: 60, max_files, reserve_kb: 1 };
    server.another_daemon();
    server.postgres.provision().await.unwrap();
    server.postgres.start().await.unwrap();
    server.database.ensure_roles().await.unwrap();
    run(&mut server.attacker().await, "CREATE SCHEMA x; CREATE TABLE x.t AS SELECT 0 AS x").await.unwrap();
    server
}

/// A receiver as the daemon has one. Dropped, it is gone as a daemon is that dies.
async fn receiver(server: &TestServer) -> (Arc<Receiver>, AbortOnDropHandle<()>) {
    let database: Arc<Database> = Arc::new(server.database.clone());
    let receiver = Arc::new(Receiver::of(&database, &server.settings.wal).await.unwrap().unwrap());
    let running = receiver.clone();
    #[allow(clippy::disallowed_methods, reason = "a test has no supervisor")]
    let task = tokio::spawn(async move { running.run(CancellationToken::new()).await });
    (receiver, AbortOnDropHandle::new(task))
}

async fn streams(receiver: &Receiver) {
    let mut state = receiver.state();
    let streaming = state.wait_for(|state| state.now == Receiving::Streaming);
    tokio::time::timeout(PATIENCE, streaming).await.unwrap().unwrap();
}

/// Fills a segment and begins the next.
async fn fill(server: &TestServer, segments: u32) {
    let mut attacker = server.attacker().await;
    for _ in 0..segments {
        run(&mut attacker, "INSERT INTO x.t SELECT generate_series(1, 1000); SELECT pg_switch_wal()").await.unwrap();
    }
}

fn spool(server: &TestServer) -> Vec<Segment> {
    spooled(&server.layout().spool).unwrap().iter().filter_map(|name| Segment::parse(name)).collect()
}

/// What is in the spool follows one another, and is what the server has written.
fn is_whole(server: &TestServer) {
    let all = spool(server);
    assert!(all.windows(2).all(|pair| pair[0].next() == pair[1]), "{all:?}");
    let mut compared = 0;
    for segment in all {
        let taken = std::fs::read(server.layout().spool.join(segment.name())).unwrap();
        assert_eq!(taken.len() as u64, SEGMENT_BYTES);
        if let Ok(written) = std::fs::read(server.layout().data.join("pg_wal").join(segment.name())) {
            assert!(taken == written, "{}", segment.name());
            compared += 1;
        }
    }
    assert!(compared > 0);
}

/// The receiving programs of this test.
fn programs(server: &TestServer) -> Vec<i32> {
    let ours = server.layout().spool.join("incoming").display().to_string();
    let ids = std::fs::read_dir("/proc").unwrap().filter_map(|entry| entry.unwrap().file_name().into_string().ok());
    let is_ours = |pid: &i32| {
        let line = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        let line = String::from_utf8_lossy(&line).into_owned();
        line.contains("pg_receivewal") && line.contains(&ours)
    };
    ids.filter_map(|id| id.parse().ok()).filter(is_ours).collect()
}

/// Files and arguments of a program like the one that runs, for one that nobody holds: [`left_again`].
fn prepare_one(server: &TestServer) {
    let layout = server.layout();
    let (from, to) = (layout.socket_dir.join("receiver"), layout.socket_dir.join("left"));
    assert!(std::process::Command::new("cp").arg("-a").args([&from, &to]).status().unwrap().success());
    let line = std::fs::read(format!("/proc/{}/cmdline", programs(server)[0])).unwrap();
    let line = String::from_utf8(line).unwrap().replace(from.to_str().unwrap(), to.to_str().unwrap());
    std::fs::write(server.here.path().join("left"), &line).unwrap();
}

/// Starts it as it is always started: without what another one had begun, which it refuses when that died before the file
/// had its full size.
fn left_again(server: &TestServer) -> std::process::Child {
    for entry in std::fs::read_dir(server.layout().spool.join("incoming")).unwrap() {
        let path = entry.unwrap().path();
        if path.extension().is_some_and(|extension| extension == "partial") {
            std::fs::remove_file(path).unwrap();
        }
    }
    let line = std::fs::read_to_string(server.here.path().join("left")).unwrap();
    let words: Vec<&str> = line.split_terminator('\0').collect();
    let owner = std::fs::metadata(server.layout().data).unwrap();
    let mut command = std::process::Command::new(words[0]);
    if rustix::process::geteuid().is_root() {
        command.uid(owner.uid()).gid(owner.gid());
    }
    command.args(&words[1..]).current_dir("/").stderr(std::process::Stdio::null()).spawn().unwrap()
}

fn kill(pid: i32, signal: Signal) {
    let _ = kill_process(Pid::from_raw(pid).unwrap(), signal);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_log_comes_whole_through_deaths_of_either_side() {
    if !machine_has_postgres().await {
        return;
    }
    let mut server = archiving(1000).await;
    let (receiving, mut task) = receiver(&server).await;
    streams(&receiving).await;
    // Neither the arguments nor the environment of the program know a secret.
    let program = programs(&server)[0];
    let seen = ["cmdline", "environ"].map(|file| std::fs::read(format!("/proc/{program}/{file}")).unwrap()).concat();
    let seen = String::from_utf8_lossy(&seen).into_owned();
    assert!(seen.contains("sslmode='verify-full'") && !seen.contains("PRIVATE KEY"), "{seen}");
    assert!(!server.store.passwords().iter().any(|password| seen.contains(password)));
    fill(&server, 2).await;
    wait_for("two segments", PATIENCE, async || spool(&server).len() >= 2).await;
    let first = spool(&server)[0];

    // The program dies, again and again, while segments are written.
    for _ in 0..3 {
        fill(&server, 1).await;
        programs(&server).into_iter().for_each(|pid| kill(pid, Signal::KILL));
        fill(&server, 1).await;
        wait_for("another program", PATIENCE, async || !programs(&server).is_empty()).await;
    }
    // The server dies.
    kill(i32::try_from(server.pid()).unwrap(), Signal::KILL);
    wait_for("its end", PATIENCE, async || server.postgres.health().await == Health::Stopped).await;
    server.postgres.start().await.unwrap();
    fill(&server, 2).await;
    // The daemon dies and its program does not: the next one ends it, and goes on.
    streams(&receiving).await;
    prepare_one(&server);
    drop(task);
    wait_for("its program's end", PATIENCE, async || programs(&server).is_empty()).await;
    let mut left = left_again(&server);
    let is_left = |left: &mut std::process::Child| left.try_wait().unwrap().is_none();
    wait_for("one that is left", PATIENCE, async || {
        let begun = retained(&mut server.attacker().await).await.unwrap().is_some_and(|kept| kept.is_active);
        if !begun && !is_left(&mut left) {
            left = left_again(&server);
        }
        begun && is_left(&mut left)
    })
    .await;
    fill(&server, 1).await;
    server.another_daemon();
    server.postgres.start().await.unwrap();
    let (again, next) = receiver(&server).await;
    task = next;
    streams(&again).await;
    wait_for("the end of what was left", PATIENCE, async || !is_left(&mut left)).await;
    // A rotation ends the session without waiting for it.
    let which = Which { groups: vec![GroupRole::Backup], superuser: false };
    let mut monitor = server.connect(GroupRole::Monitor).await;
    streams(&again).await;
    assert!(!sessions(&mut monitor).await.unwrap().keys().any(|login| login.starts_with("bibd_backup")));
    server.database.rotate(&which, 1, async |_| ()).await.unwrap();
    fill(&server, 2).await;
    wait_for("all of it", PATIENCE, async || spool(&server).len() >= 13).await;
    is_whole(&server);
    assert_eq!(spool(&server)[0], first);
    assert_eq!(again.state().borrow().gaps, 0);
    let seen = "SELECT string_agg(usename, ' ') FROM pg_stat_replication";
    wait_for("the next login", PATIENCE, async || text(&mut monitor, seen).await == "bibd_backup_b").await;
    let kept = retained(&mut monitor).await.unwrap().unwrap();
    assert!(kept.is_active && kept.status == "reserved" && kept.bytes < 8 * SEGMENT_BYTES, "{kept:?}");

    // Where the log goes is asked of the server; without anybody who takes it that item fails.
    let archive = async |server: &TestServer| {
        let facts = server.postgres.facts().await.unwrap();
        let mut monitor = server.connect(GroupRole::Monitor).await;
        let findings = checklist::audit(&mut monitor, &facts, &Expected::default()).await.unwrap();
        findings.into_iter().find(|finding| finding.item == "C.4-38").unwrap()
    };
    let found = archive(&server).await;
    assert_eq!(found.status, Status::Pass, "{found:?}");
    drop(task);
    wait_for("its end", PATIENCE, async || archive(&server).await.status == Status::Fail).await;
    assert!(!server.layout().socket_dir.join("receiver").exists(), "keys are left");
    server.postgres.stop(Stop::Clean).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_spool_loses_nothing_and_a_gap_is_said() {
    if !machine_has_postgres().await {
        return;
    }
    let server = archiving(3).await;
    let (receiving, task) = receiver(&server).await;
    streams(&receiving).await;
    fill(&server, 8).await;
    let full = receiving.state();
    wait_for("a full spool", PATIENCE, async || full.borrow().now == Receiving::Full).await;
    wait_for("the program's end", PATIENCE, async || programs(&server).is_empty()).await;
    let mut taken = Vec::new();
    wait_for("all of it", PATIENCE, async || {
        // As who ships it does.
        for segment in spool(&server) {
            std::fs::remove_file(server.layout().spool.join(segment.name())).unwrap();
            taken.push(segment);
        }
        taken.len() >= 8
    })
    .await;
    // Each once: what was taken is not asked for again.
    assert!(taken.windows(2).all(|pair| pair[0].next() == pair[1]), "{taken:?}");

    // Nobody takes it, and the server may keep no more.
    drop(task);
    wait_for("the program's end", PATIENCE, async || programs(&server).is_empty()).await;
    let mut attacker = server.attacker().await;
    let conf = server.layout().data.join("postgresql.conf");
    let settings = std::fs::read_to_string(&conf).unwrap();
    std::fs::write(&conf, format!("{settings}max_slot_wal_keep_size = '16MB'\nmax_wal_size = '32MB'\n")).unwrap();
    run(&mut attacker, "SELECT pg_reload_conf()").await.unwrap();
    wait_for("the loss", PATIENCE, async || {
        fill(&server, 2).await;
        run(&mut attacker, "CHECKPOINT").await.unwrap();
        retained(&mut attacker).await.unwrap().is_some_and(|kept| kept.status == "lost")
    })
    .await;
    let (again, _task) = receiver(&server).await;
    streams(&again).await;
    assert_eq!(again.state().borrow().gaps, 1);
    fill(&server, 1).await;
    wait_for("what comes after", PATIENCE, async || !spool(&server).is_empty()).await;
    assert!(spool(&server)[0].number > taken.last().unwrap().number + 1);
    server.postgres.stop(Stop::Clean).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_base_backup_comes_over_tcp_and_leaves_no_key() {
    if !machine_has_postgres().await {
        return;
    }
    let server = TestServer::started_on(Ground::Tcp).await;
    let login = server.database.login(GroupRole::Backup).unwrap();
    let (backup, mut reader) = server.postgres.base_backup(&login, "a test").await.unwrap();
    let keys = server.layout().socket_dir.join("backup");
    assert!(keys.join("client.key").exists());
    let read = tokio::task::spawn_blocking(move || {
        let mut bytes = Vec::new();
        reader.read_to_end(&mut bytes).map(|_| bytes)
    });
    let (bytes, range) = (read.await.unwrap().unwrap(), backup.finish().await.unwrap());
    assert!(Segment::at(range.timeline, &range.end_lsn).is_some() && !Path::new(&keys).exists());
    let data = server.here.path().join("unpacked");
    std::fs::create_dir(&data).unwrap();
    std::fs::write(server.here.path().join("base.tar"), &bytes).unwrap();
    let unpacked = std::process::Command::new("tar")
        .args(["-xf", "base.tar", "-C", "unpacked"])
        .current_dir(server.here.path())
        .status();
    assert!(unpacked.unwrap().success());
    bibd_postgres::backup::give_tree(&data, server.account().await).unwrap();
    server.postgres.verify_files(&data).await.unwrap();
    server.postgres.stop(Stop::Clean).await.unwrap();
}
