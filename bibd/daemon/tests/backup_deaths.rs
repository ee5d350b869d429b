//! kill -9 at every step of a backup, a restore and a verification: nothing half made counts, and the next one succeeds.
#![allow(
    clippy::unwrap_used,
    clippy::print_stderr,
    clippy::disallowed_methods,
    reason = "tests say what they measured; the harness of faults spawns tasks"
)]

mod faults;

use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::process::ExitStatusExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus, Output};
use std::time::Instant;

use bib_proto::v1 as pb;
use bib_proto::v1::admin_service_client::AdminServiceClient;
use bibd::failpoint;
use faults::*;
use futures::StreamExt as _;
use tonic::Status;
use tonic::transport::Channel;

const KILLED: Option<i32> = Some(9);

fn configured() -> Place {
    let place = Place::new();
    let store = place.dir.join("store");
    place.configure(&format!("backup:\n  store: {}\n  every: 0s\n  archive_timeout: 1s\n", store.display()));
    place
}

fn dying_at(place: &Place, point: &str) -> Command {
    let mut command = place.command();
    command.env(failpoint::VARIABLE, point);
    command
}

async fn export_recovery(channel: &Channel, to: &Path) {
    let request = pb::ExportRecoveryRequest { replace: false };
    let sheet = AdminServiceClient::new(channel.clone()).export_recovery(request).await.unwrap().into_inner().sheet;
    std::fs::write(to, sheet).unwrap();
    std::fs::set_permissions(to, std::fs::Permissions::from_mode(0o600)).unwrap();
}

async fn make_backup(channel: &Channel, kind: &str) -> Result<pb::Backup, Status> {
    let request = pb::CreateBackupRequest { kind: kind.to_owned() };
    let mut answers = AdminServiceClient::new(channel.clone()).create_backup(request).await?.into_inner();
    let mut made = None;
    while let Some(answer) = answers.next().await {
        made = answer?.backup;
    }
    Ok(made.expect("the last answer has the backup"))
}

async fn verify(channel: &Channel, id: &str) -> Result<pb::VerifyBackupResponse, Status> {
    let request = pb::VerifyBackupRequest { id: id.to_owned() };
    AdminServiceClient::new(channel.clone()).verify_backup(request).await.map(tonic::Response::into_inner)
}

async fn complete(channel: &Channel) -> (usize, usize) {
    let request = pb::ListBackupsRequest {};
    let listed = AdminServiceClient::new(channel.clone()).list_backups(request).await.unwrap().into_inner().backups;
    (listed.iter().filter(|backup| backup.state == "complete").count(), listed.len())
}

/// `bibd restore`, dying at `point` when there is one.
fn restore(place: &Place, to: &Path, point: Option<&str>, which: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_bibd"));
    command.env("BIBD__DATABASE__PROVISIONER", "process");
    command.arg("--config-dir").arg(place.dir.join("none")).arg("restore").arg("--from").arg(place.dir.join("store"));
    command.arg("--to").arg(to).arg("--identity").arg(place.dir.join("sheet")).args(["--output", "json"]).args(which);
    if let Some(point) = point {
        command.env(failpoint::VARIABLE, point);
    }
    command.output().unwrap()
}

/// Postmasters of clusters below `directory`.
fn servers_below(directory: &Path) -> Vec<PathBuf> {
    let entries = std::fs::read_dir("/proc").unwrap().flatten();
    let served = entries.filter_map(|entry| {
        let is_server = std::fs::read(entry.path().join("comm")).is_ok_and(|name| name == b"postgres\n");
        is_server.then(|| std::fs::read_link(entry.path().join("cwd")).ok()).flatten()
    });
    let mut found: Vec<PathBuf> = served.filter(|cwd| cwd.starts_with(directory)).collect();
    found.sort();
    found.dedup();
    found
}

async fn dies(mut node: Node) -> ExitStatus {
    let status = node.ended().await;
    assert_eq!(status.signal(), KILLED);
    status
}

#[tokio::test(flavor = "multi_thread")]
async fn a_daemon_that_dies_in_a_backup_leaves_none_or_a_whole_one() {
    dies_in_a_backup("physical").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_daemon_that_dies_in_a_dump_leaves_none_or_a_whole_one() {
    dies_in_a_backup("logical").await;
}

async fn dies_in_a_backup(kind: &str) {
    let place = configured();
    let node = place.start().await;
    let channel = node.channel().await;
    export_recovery(&channel, &place.dir.join("sheet")).await;
    make_backup(&channel, kind).await.unwrap();
    let mut expected = 1;
    assert!(node.stop().success());
    for point in failpoint::BACKUP {
        let node = place.start_as(dying_at(&place, point)).await;
        make_backup(&node.channel().await, kind).await.unwrap_err();
        dies(node).await;

        let begun = Instant::now();
        let node = place.start().await;
        let channel = node.channel().await;
        make_topic(&channel, &format!("after-{}", point.replace('.', "-"))).await.unwrap();
        eprintln!("killed at {point}: well again after {:?}", begun.elapsed());
        // The manifest makes a backup: with it the whole is there, without it nothing is offered.
        expected += usize::from(point == "backup.manifest");
        assert_eq!(complete(&channel).await.0, expected, "{point}");
        let made = make_backup(&channel, kind).await.unwrap();
        expected += 1;
        assert_eq!(complete(&channel).await, (expected, expected), "{point}: what was cut off is swept");
        assert_eq!(verify(&channel, &made.id).await.unwrap().verdict, "OK", "{point}");
        let mut superuser = place.superuser().await;
        let slots: i64 =
            sqlx::query_scalar("SELECT count(*) FROM pg_replication_slots").fetch_one(&mut superuser).await.unwrap();
        assert_eq!(slots, 0, "{point}: somebody still holds the log");
        drop(superuser);
        assert!(node.stop().success());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_restore_that_dies_is_begun_again_and_no_daemon_starts_on_what_it_left() {
    dies_in_a_restore("physical").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_restore_of_a_dump_that_dies_is_begun_again_and_no_daemon_starts_on_what_it_left() {
    dies_in_a_restore("logical").await;
}

async fn dies_in_a_restore(kind: &str) {
    let place = configured();
    let node = place.start().await;
    let channel = node.channel().await;
    export_recovery(&channel, &place.dir.join("sheet")).await;
    for number in 0..5 {
        make_topic(&channel, &format!("t{number}")).await.unwrap();
    }
    let backup = make_backup(&channel, kind).await.unwrap();
    // A dump is restored by its name alone.
    let which = if kind == "logical" { vec!["--backup", backup.id.as_str()] } else { Vec::new() };
    assert!(node.stop().success());
    let store = std::fs::read(place.dir.join("store").join(manifest_of(&place, kind, &backup.id))).unwrap();

    let to = place.dir.join("back");
    for point in failpoint::RESTORE {
        assert_eq!(restore(&place, &to, Some(point), &which).status.signal(), KILLED, "{point}");
        assert!(to.join("RESTORING").exists(), "{point}");
        let mut command = Command::new(env!("CARGO_BIN_EXE_bibd"));
        command.arg("--config-dir").arg(place.dir.join("none")).arg("--data-dir").arg(&to).arg("run");
        let refused = command.output().unwrap();
        let said = String::from_utf8_lossy(&refused.stderr).into_owned();
        assert!(refused.status.code() == Some(1) && said.contains("BIB0407"), "{point}: {said}");
        assert_eq!(servers_below(&to).is_empty(), point != "restore.recovered", "{point}");
    }
    // Once more into what the last one left, to the end.
    let restored = restore(&place, &to, None, &which);
    assert!(restored.status.success(), "{}", String::from_utf8_lossy(&restored.stderr));
    let answer: serde_json::Value = serde_json::from_slice(&restored.stdout).unwrap();
    assert_eq!((&answer["verdict"], &answer["rows"]["topics"]), (&"OK".into(), &5.into()), "{answer}");
    assert!(!to.join("RESTORING").exists() && servers_below(&to).is_empty());
    let untouched = std::fs::read(place.dir.join("store").join(manifest_of(&place, kind, &backup.id))).unwrap();
    assert_eq!(store, untouched, "the source is only read");
}

fn manifest_of(place: &Place, kind: &str, id: &str) -> PathBuf {
    let family = if kind == "logical" { "dump" } else { "base" };
    let peer = std::fs::read_dir(place.dir.join("store")).unwrap().next().unwrap().unwrap().file_name();
    PathBuf::from(peer).join(family).join(id).join("manifest")
}

#[tokio::test(flavor = "multi_thread")]
async fn a_daemon_that_dies_in_a_verification_clears_it_away() {
    dies_in_a_verification("physical").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_daemon_that_dies_in_the_verification_of_a_dump_clears_it_away() {
    dies_in_a_verification("logical").await;
}

async fn dies_in_a_verification(kind: &str) {
    let place = configured();
    let node = place.start().await;
    let channel = node.channel().await;
    export_recovery(&channel, &place.dir.join("sheet")).await;
    let backup = make_backup(&channel, kind).await.unwrap();
    assert!(node.stop().success());
    let scratches = || {
        let entries = std::fs::read_dir(place.data()).unwrap().flatten();
        entries.filter(|entry| entry.file_name().to_string_lossy().starts_with("verify-")).count()
    };
    for point in ["restore.unpacked", "restore.recovered", "restore.examined"] {
        let node = place.start_as(dying_at(&place, point)).await;
        verify(&node.channel().await, &backup.id).await.unwrap_err();
        dies(node).await;
        assert_eq!(scratches(), 1, "{point}");
        let own = usize::from(place.postmaster().is_some());
        assert_eq!(servers_below(&place.data()).len() - own, usize::from(point == "restore.recovered"), "{point}");

        let node = place.start().await;
        // The unpacked keys are gone, and so is the server that ran on them.
        assert_eq!((scratches(), servers_below(&place.data()).len()), (0, 1), "{point}");
        assert_eq!(verify(&node.channel().await, &backup.id).await.unwrap().verdict, "OK", "{point}");
        assert!(node.stop().success());
    }
}
