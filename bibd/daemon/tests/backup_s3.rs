//! Backups in a bucket of a real S3-compatible server: a node's whole life with one, the credentials, a store that fails
//! and a daemon that dies in the middle of an upload.
#![allow(clippy::unwrap_used)]
#![allow(
    clippy::print_stderr,
    clippy::disallowed_methods,
    reason = "tests say what they could not do; the harness of faults spawns tasks"
)]

mod faults;
#[allow(dead_code, reason = "each test uses its own part")]
#[path = "backup/node.rs"]
mod node;
#[allow(dead_code, reason = "each test uses its own part")]
#[path = "s3/server.rs"]
mod server;

use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::time::Duration;

use bib_proto::v1 as pb;
use bib_proto::v1::admin_service_client::AdminServiceClient;
use bibd::clock::{Clock as _, SystemClock};
use bibd::grpc::health::Condition;
use futures::StreamExt as _;
use node::{Node, Place, wait_for};
use server::{ACCESS_KEY, BUCKET, Fault, S3Server, SECRET};
use tonic_types::StatusExt as _;

fn configured(server: &S3Server, more: &str) -> String {
    format!("s3:\n    endpoint: {}\n    timeout: 2s\n    part_size: 5MiB\n  {more}", server.endpoint)
}

async fn in_a_bucket(server: &S3Server) -> Option<Place> {
    let mut place = Place::new().await?;
    place.keeps_in(server.location().to_string());
    Some(place)
}

/// Whether a file below holds this text, the database's own aside.
fn holds(directory: &Path, text: &str) -> bool {
    let entries = std::fs::read_dir(directory).unwrap().map(|entry| entry.unwrap());
    entries.filter(|entry| entry.file_name() != "postgres").any(|entry| match entry.file_type().unwrap() {
        kind if kind.is_dir() => holds(&entry.path(), text),
        kind if kind.is_file() => {
            std::fs::read(entry.path()).unwrap().windows(text.len()).any(|window| window == text.as_bytes())
        }
        _ => false,
    })
}

fn private(path: &Path, text: &str) {
    std::fs::write(path, text).unwrap();
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o600)).unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_lives_with_a_bucket_and_comes_back_from_it_with_two_keys_alone() {
    let server = S3Server::start();
    let Some(place) = in_a_bucket(&server).await else { return };
    let node = Node::start_with(&place, "data", &configured(&server, "every: 0s")).await;
    node.export_recovery(&place.sheet()).await;
    assert_eq!(node.refused_backup().await, "BIB0306", "without credentials there is no backup");
    let refused = node.set_credentials("no credentials at all").await.unwrap_err();
    assert_eq!(refused.get_details_error_info().unwrap().reason, "BIB0003", "{refused:?}");
    let wrong = format!("aws_access_key_id={ACCESS_KEY}\naws_secret_access_key=wrong");
    let said = node.set_credentials(&wrong).await.unwrap();
    assert!(said.problem.contains("does not accept the credentials") && !said.hint.is_empty(), "{said:?}");
    let said = node.set_credentials(&S3Server::credentials()).await.unwrap();
    assert_eq!((said.access_key_id.as_str(), said.problem.as_str()), (ACCESS_KEY, ""));
    assert_eq!(node.entries("backup.credentials").await, 4, "two acts, each with its intent");

    let backup = node.make_backup().await;
    assert!(backup.state == "complete" && backup.recipients.len() == 2, "{backup:?}");
    for number in 0..5 {
        node.make_topic(&format!("t{number}")).await;
    }
    let (moment, topics) = (now(), node.topics().await);
    tokio::time::sleep(Duration::from_millis(20)).await;
    node.make_topic("later").await;
    wait_for("the log is in the store", Duration::from_secs(60), async || {
        node.rename_topic("t0").await;
        node.backups().await[0].reachable > moment
    })
    .await;
    let checked = node.verify(&backup.id).await;
    assert_eq!(checked.verdict, "OK", "{}", checked.explanation);
    let (peer, second) = (node.peer(), node.make_backup().await);
    assert_eq!(node.backups().await.len(), 2);
    node.stop().await;
    assert!(!holds(&place.path("data"), SECRET), "the credentials lie open");
    assert_eq!(server.unfinished_uploads(), 0);
    std::fs::remove_dir_all(place.path("data")).unwrap();

    // Nobody named any credentials, then the wrong ones.
    let endpoint = ["--s3-endpoint", server.endpoint.as_str()];
    let output = place.restoring_from_bucket("to").args(endpoint).output().unwrap();
    let said = String::from_utf8(output.stderr).unwrap();
    assert!(output.status.code() == Some(1) && said.contains("--s3-credentials"), "{said}");
    let file = place.path("credentials");
    std::fs::write(&file, S3Server::credentials()).unwrap();
    std::fs::set_permissions(&file, std::fs::Permissions::from_mode(0o644)).unwrap();
    let credentials = ["--s3-credentials", file.to_str().unwrap()];
    let output = place.restoring_from_bucket("to").args(endpoint).args(credentials).output().unwrap();
    let said = String::from_utf8(output.stderr).unwrap();
    assert!(!output.status.success() && said.contains("hint: chmod 600"), "{said}");
    private(&file, &S3Server::credentials());

    let arguments = [endpoint[0], endpoint[1], credentials[0], credentials[1], "--time", &moment];
    let restored = place.restore("moment", &arguments);
    assert_eq!((&restored["rows"]["topics"], &restored["verdict"]), (&topics.into(), &"OK".into()), "{restored}");
    // An answer that was lost takes no number twice and none away.
    server.misbehave("PUT", "epoch/", 1, Fault::NoAnswer);
    let mut command = place.restoring_from_bucket("newest");
    command.args(endpoint).env("AWS_ACCESS_KEY_ID", ACCESS_KEY).env("AWS_SECRET_ACCESS_KEY", SECRET);
    let output = command.output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let restored: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!((&restored["rows"]["topics"], &restored["epoch"]), (&(topics + 1).into(), &3.into()), "{restored}");

    // The sealed credentials came along.
    let again = Node::start_with(&place, "newest", &configured(&server, "every: 0s")).await;
    assert_eq!((again.peer(), again.audit_verdict().await), (peer.clone(), "OK".to_owned()));
    let third = again.make_backup().await;
    assert_eq!((third.epoch, third.timeline), (3, 2), "{third:?}");
    again.delete_backup(&backup.id).await;
    again.delete_backup(&second.id).await;
    let left: Vec<String> = again.backups().await.into_iter().map(|backup| backup.id).collect();
    assert_eq!(left, [third.id]);
    assert!(server.objects(&format!("bib/test/{peer}/wal/1")).is_empty(), "the log of the deleted is gone");
    again.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_dump_goes_into_a_bucket_and_comes_back_from_it() {
    let server = S3Server::start();
    let Some(place) = in_a_bucket(&server).await else { return };
    let node = Node::start_with(&place, "data", &configured(&server, "every: 0s")).await;
    node.export_recovery(&place.sheet()).await;
    node.set_credentials(&S3Server::credentials()).await.unwrap();
    node.make_topic("t").await;
    // A store that does not take the manifest has no dump; the next one sweeps what is there.
    server.misbehave("PUT", "/manifest", usize::MAX, Fault::error(507, "InsufficientStorage"));
    assert!(node.try_backup_of("logical").await.is_err());
    server.behave();
    let dump = node.make_dump().await;
    assert_eq!((node.verify(&dump.id).await.verdict.as_str(), node.backups().await.len()), ("OK", 1));
    let peer = node.peer();
    assert_eq!(server.objects(&format!("bib/test/{peer}/dump")).len(), 4, "state, dump, manifest, verified");
    node.stop().await;
    let file = place.path("credentials");
    private(&file, &S3Server::credentials());
    let arguments =
        ["--s3-endpoint", &server.endpoint, "--s3-credentials", file.to_str().unwrap(), "--backup", &dump.id];
    let restored = place.restore("back", &arguments);
    assert_eq!((&restored["rows"]["topics"], &restored["verdict"]), (&1.into(), &"OK".into()), "{restored}");
}

/// Now, as texts compare it.
fn now() -> String {
    SystemClock.now().to_string()
}

#[tokio::test(flavor = "multi_thread")]
async fn backups_are_made_and_deleted_in_a_bucket_that_fails_now_and_then() {
    let server = S3Server::start();
    let Some(place) = in_a_bucket(&server).await else { return };
    let file = place.path("credentials");
    private(&file, &S3Server::credentials());
    let configuration = configured(&server, &format!("  credentials_file: {}\n  keep: 1", file.display()));
    let node = Node::start_with(&place, "data", &configuration).await;
    node.export_recovery(&place.sheet()).await;
    let health = || node.daemon.foundation().health.condition("backup");
    let is_verified = |backups: &[pb::Backup]| matches!(backups, [one] if !one.verified.is_empty());
    wait_for("a first backup", Duration::from_secs(120), async || is_verified(&node.backups().await)).await;
    let first = node.backups().await.remove(0);
    // What passes is not even noticed.
    server.misbehave("PUT", "/base/", 1, Fault::error(503, "SlowDown"));
    server.misbehave("PUT", "/base/", 1, Fault::CutRequest);
    wait_for("a second one", Duration::from_secs(60), async || node.can_make_backup().await).await;
    wait_for("the first goes", Duration::from_secs(60), async || {
        let left = node.backups().await;
        is_verified(&left) && left[0].id != first.id
    })
    .await;
    let refused = node.set_credentials(&S3Server::credentials()).await.unwrap_err();
    assert_eq!(refused.get_details_error_info().unwrap().reason, "BIB0010", "the file is somebody else's");

    for (fault, word) in [(Fault::error(503, "SlowDown"), "too much to do"), (Fault::Silence, "said nothing for 2s")] {
        server.misbehave("PUT", "/wal/", usize::MAX, fault);
        let mut number = 0;
        wait_for("health says so", Duration::from_secs(60), async || {
            number += 1;
            node.make_topic(&format!("{}-{number}", &word[..3])).await;
            matches!(health(), Some(Condition::Degraded(sentence)) if sentence.contains(word))
        })
        .await;
        server.behave();
        wait_for("health recovers", Duration::from_secs(60), async || health() == Some(Condition::Serving)).await;
    }
    let topics = node.topics().await;
    // A store that is silent keeps nobody from stopping.
    server.misbehave("PUT", "/wal/", usize::MAX, Fault::Silence);
    let before = server.seen("PUT", "/wal/");
    wait_for("the log waits for the store", Duration::from_secs(60), async || {
        node.make_topic(&format!("last-{}", node.topics().await)).await;
        server.seen("PUT", "/wal/") > before
    })
    .await;
    let total = node.topics().await;
    node.stop().await;
    server.behave();
    // What could not be shipped then is shipped by the next start.
    let node = Node::start_with(&place, "data", &configuration).await;
    let moment = now();
    wait_for("the log is in the store", Duration::from_secs(60), async || {
        node.rename_topic("too-1").await;
        node.backups().await[0].reachable > moment
    })
    .await;
    node.stop().await;
    let credentials = ["--s3-endpoint", &server.endpoint, "--s3-credentials", file.to_str().unwrap()];
    let restored = place.restore("back", &credentials);
    assert_eq!((&restored["verdict"], &restored["rows"]["topics"]), (&"OK".into(), &total.into()), "{restored}");
    assert!(total > topics);
}

async fn make_backup(channel: &tonic::transport::Channel) -> Result<pb::Backup, tonic::Status> {
    let request = pb::CreateBackupRequest::default();
    let mut answers = AdminServiceClient::new(channel.clone()).create_backup(request).await?.into_inner();
    let mut made = None;
    while let Some(answer) = answers.next().await {
        made = answer?.backup;
    }
    Ok(made.expect("the last answer has the backup"))
}

#[tokio::test(flavor = "multi_thread")]
async fn a_daemon_that_dies_in_an_upload_leaves_nothing_that_counts() {
    let server = S3Server::start();
    let place = faults::Place::new();
    let file = place.dir.join("credentials");
    private(&file, &S3Server::credentials());
    place.configure(&format!(
        "log:\n  level: trace\nbackup:\n  store: s3://{BUCKET}/bib\n  every: 0s\n  archive_timeout: 1s\n  s3:\n    endpoint: {}\n    \
         part_size: 5MiB\n    credentials_file: {}\n",
        server.endpoint,
        file.display()
    ));
    let node = place.start().await;
    let channel = node.channel().await;
    let request = pb::ExportRecoveryRequest { replace: false };
    let sheet = AdminServiceClient::new(channel.clone()).export_recovery(request).await.unwrap().into_inner().sheet;
    private(&place.dir.join("sheet"), &sheet);
    // Enough that no compression makes one part of it.
    let ballast = "CREATE TABLE test.ballast AS SELECT decode(string_agg(md5(random()::text), ''), 'hex') AS noise \
                   FROM generate_series(1, 1000) AS row, generate_series(1, 1000) AS piece GROUP BY row";
    let mut superuser = place.superuser().await;
    sqlx::query("CREATE SCHEMA test").execute(&mut superuser).await.unwrap();
    sqlx::query(ballast).execute(&mut superuser).await.unwrap();
    drop(superuser);
    let first = make_backup(&channel).await.unwrap();
    assert!(first.bytes > 16 << 20 && server.seen("POST", "uploads") == 1, "{first:?}");
    let listed = async |channel: &tonic::transport::Channel| {
        let request = pb::ListBackupsRequest {};
        let answer = AdminServiceClient::new(channel.clone()).list_backups(request).await.unwrap().into_inner().backups;
        answer.iter().filter(|backup| backup.state == "complete").count()
    };

    let mut node = node;
    let mut expected = 1;
    for part in ["partNumber=1&", "partNumber=3&", "uploadId"] {
        let method = if part == "uploadId" { "POST" } else { "PUT" };
        let (before, begun) = (server.seen(method, part), server.seen("POST", "uploads"));
        server.misbehave(method, part, usize::MAX, Fault::Silence);
        let channel = node.channel().await;
        let making = tokio::spawn(async move { make_backup(&channel).await });
        wait_for("the upload is under way", Duration::from_secs(60), async || server.seen(method, part) > before).await;
        node.kill();
        assert!(making.await.unwrap().is_err());
        assert_eq!(server.seen("POST", "uploads"), begun + 1);
        assert!(server.unfinished_uploads() > 0, "{part}: there is something to clear away");
        server.behave();

        node = place.start().await;
        let channel = node.channel().await;
        assert_eq!(listed(&channel).await, expected, "{part}");
        let made = make_backup(&channel).await.unwrap();
        expected += 1;
        assert_eq!((listed(&channel).await, server.unfinished_uploads()), (expected, 0), "{part}");
        let request = pb::VerifyBackupRequest { id: made.id };
        let checked = AdminServiceClient::new(channel).verify_backup(request).await.unwrap().into_inner();
        assert_eq!(checked.verdict, "OK", "{part}");
    }
    let names = std::fs::read(format!("/proc/{}/cmdline", node.child.id())).unwrap();
    assert!(!String::from_utf8_lossy(&names).contains(SECRET));
    assert!(node.stop().success());
    assert!(!place.log().contains(SECRET) && place.log().contains("bibd::"), "the log has the secret, or nothing");
    assert!(!holds(&place.data(), SECRET));
}
