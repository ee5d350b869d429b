//! A node whose cold chunks lie in a bucket: credentials, moves, and a restore that brings no chunk along.
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

use std::path::Path;

use bib_proto::v1 as pb;
use bibd::clock::{Clock as _, SystemClock};
use faults::publisher::{Publisher, audit_is_ok};
use futures::StreamExt as _;
use node::{Node, Place};
use server::{ACCESS_KEY, S3Server, SECRET};

async fn moved(node: &Node, to: &str) -> pb::MoveChunksResponse {
    let request = pb::MoveChunksRequest { to: to.to_owned(), dry_run: false };
    let mut answers = node.admin().await.move_chunks(request).await.unwrap().into_inner();
    let mut last = pb::MoveChunksResponse::default();
    while let Some(answer) = answers.next().await {
        last = answer.unwrap();
    }
    assert!(last.finished);
    last
}

async fn status(node: &Node) -> pb::GetStorageStatusResponse {
    node.admin().await.get_storage_status(pb::GetStorageStatusRequest {}).await.unwrap().into_inner()
}

async fn set(node: &Node, text: &str) -> pb::SetStorageCredentialsResponse {
    let request = pb::SetStorageCredentialsRequest { credentials: text.to_owned() };
    node.admin().await.set_storage_credentials(request).await.unwrap().into_inner()
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

#[tokio::test(flavor = "multi_thread")]
async fn a_node_is_restored_without_a_chunk_and_finds_them_in_its_bucket() {
    let server = S3Server::start();
    let Some(mut place) = Place::new().await else { return };
    place.sets("blobs.tier.store", server.location());
    place.sets("blobs.tier.s3.endpoint", &server.endpoint);
    place.sets("blobs.tier.s3.timeout", "2s");
    place.sets("blobs.tier.after", "0s");
    place.sets("blobs.tier.back_per_day", "0");
    let node = Node::start(&place, "data").await;
    let mut publisher = Publisher::new(11);
    let client = |node: &Node, publisher: &Publisher| publisher.client(&node.daemon.ready().socket);
    publisher.change();
    publisher.publish(&client(&node, &publisher)).await.unwrap();

    // What is missing is said with what helps, one after the other.
    let said = status(&node).await;
    assert!(said.problem.contains("no credentials") && said.hint.contains("bib admin storage credentials"), "{said:?}");
    let said = set(&node, &format!("aws_access_key_id={ACCESS_KEY}\naws_secret_access_key=wrong")).await;
    assert!(said.problem.contains("does not accept the credentials") && !said.hint.contains("backup"), "{said:?}");
    let said = set(&node, &S3Server::credentials()).await;
    assert_eq!((said.access_key_id.as_str(), said.problem.as_str()), (ACCESS_KEY, ""));
    let said = status(&node).await;
    assert!(said.problem.contains("recovery key") && said.hint.contains("recovery export"), "{said:?}");
    node.export_recovery(&place.sheet()).await;
    let before = status(&node).await;
    assert_eq!(
        (before.problem.as_str(), before.cold_chunks, before.objects),
        ("", before.local_chunks, 0),
        "{before:?}"
    );
    node.make_backup().await;
    let moment = SystemClock.now().to_string();
    // Not a wait for something: the move begins after the moment, by any clock.
    tokio::time::sleep(std::time::Duration::from_millis(20)).await;

    let done = moved(&node, "objects").await;
    assert_eq!((done.chunks, done.skipped), (before.local_chunks, 0));
    let after = status(&node).await;
    assert_eq!((after.local_chunks, after.remote_chunks, after.objects), (0, done.chunks, done.chunks), "{after:?}");
    assert!(after.object_bytes > before.local_bytes && after.object_bytes < before.local_bytes * 11 / 10);
    let whole = client(&node, &publisher);
    publisher.check(&whole, true).await;
    audit_is_ok(&whole).await;
    assert_eq!(node.entries("storage.credentials").await, 4, "two acts, each with its intent");
    assert!(node.entries("storage.tier").await >= 1);
    node.make_backup().await;
    node.stop().await;
    assert!(!holds(&place.path("data"), SECRET), "the credentials lie open");
    std::fs::remove_dir_all(place.path("data")).unwrap();

    // Before the move, and after it, and under a new identity. No chunk is copied, and nobody gives it credentials.
    for (to, arguments) in
        [("before", vec!["--time", &moment]), ("newest", vec![]), ("successor", vec!["--new-identity"])]
    {
        place.restore(to, &arguments);
        let node = Node::start(&place, to).await;
        if to == "successor" {
            // It reads what was sealed to whom it follows, and seals nothing before it has a sheet of its own.
            let said = status(&node).await.problem;
            assert!(said.contains("recovery key"), "{said}");
            node.export_recovery(&place.path("sheet.new")).await;
        }
        let now = status(&node).await;
        assert_eq!(now.problem, "", "{to}");
        assert_eq!(now.objects, if to == "before" { 0 } else { done.chunks }, "{to}");
        let client = client(&node, &publisher);
        publisher.check(&client, true).await;
        audit_is_ok(&client).await;
        if to == "before" {
            let now = status(&node).await;
            assert_eq!((now.local_chunks, now.objects), (done.chunks, done.chunks), "whole on disk, objects known");
        } else if to == "successor" {
            let back = moved(&node, "disk").await;
            assert_eq!((back.chunks, back.skipped, status(&node).await.objects), (done.chunks, 0, 0));
            publisher.check(&client, true).await;
        }
        node.stop().await;
    }
}
