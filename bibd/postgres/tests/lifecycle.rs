//! A server from nothing to a clean stop, and what crashes in between leave behind.
#![allow(clippy::unwrap_used, clippy::print_stderr, clippy::print_stdout)]

mod support;

use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::time::{Duration, Instant};

use bibd_postgres::{Act, Error, GroupRole, Health, ManagedPostgres as _, Started, State, Stop};
use rustix::process::{Pid, Signal, kill_process};
use support::{TestServer, machine_has_postgres, run, text, wait_for};
use tokio_util::sync::CancellationToken;

fn kill(pid: u32, signal: Signal) {
    kill_process(Pid::from_raw(i32::try_from(pid).unwrap()).unwrap(), signal).unwrap();
}

#[tokio::test]
async fn from_nothing_to_a_clean_stop_and_again() {
    if !machine_has_postgres().await {
        return;
    }
    let server = TestServer::new();
    let begun = Instant::now();
    let provisioned = server.postgres.provision().await.unwrap();
    let initdb = begun.elapsed();
    assert!(provisioned.created);
    assert_eq!(server.postgres.start().await.unwrap(), Started::Spawned);
    server.database.ensure_roles().await.unwrap();
    println!("first start {:?}, of which initdb {initdb:?}", begun.elapsed());
    assert!(begun.elapsed() < Duration::from_secs(10));
    assert_eq!(server.postgres.health().await, Health::Ready);
    assert_eq!(server.postgres.start().await.unwrap(), Started::AlreadyRunning);

    // Every group's login in use works, with SCRAM, as itself.
    for group in GroupRole::ALL {
        let mut connection = server.connect(group).await;
        assert_eq!(text(&mut connection, "SELECT current_user::text").await, format!("{group}_a"));
    }
    let superuser: Vec<_> = server.recorder.seen.lock().unwrap().clone();
    assert_eq!(superuser.iter().map(|use_| use_.0).collect::<Vec<_>>(), [Act::EnsureRoles; 2]);
    assert!(superuser.iter().all(|(_, succeeded, lived)| *succeeded && *lived < Duration::from_secs(10)));

    // The process: not root, no groups beside its own, files for nobody else, no core dumps, its own group.
    let status = std::fs::read_to_string(format!("/proc/{}/status", server.pid())).unwrap();
    let field = |name: &str| status.lines().find_map(|line| line.strip_prefix(name)).unwrap_or_default().trim();
    assert!(!field("Uid:").split_whitespace().any(|uid| uid == "0"), "{status}");
    if rustix::process::geteuid().is_root() {
        assert_eq!(field("Groups:"), "");
    }
    assert_eq!(field("Umask:"), "0077");
    let limits = std::fs::read_to_string(format!("/proc/{}/limits", server.pid())).unwrap();
    assert!(limits.lines().any(|line| line.starts_with("Max core file size        0 ")), "{limits}");

    server.postgres.stop(Stop::Clean).await.unwrap();
    assert_eq!(server.postgres.health().await, Health::Stopped);
    server.postgres.stop(Stop::Clean).await.unwrap();

    let begun = Instant::now();
    assert!(!server.postgres.provision().await.unwrap().created);
    assert_eq!(server.postgres.start().await.unwrap(), Started::Spawned);
    let ready = begun.elapsed();
    server.database.ensure_roles().await.unwrap();
    println!("later start {ready:?} to accepting, {:?} with roles", begun.elapsed());
    assert!(begun.elapsed() < Duration::from_millis(1500), "{:?}", begun.elapsed());
    server.postgres.stop(Stop::Clean).await.unwrap();
}
