//! `bib admin db move`: planned on a node that runs, carried out by its next start, and in the audit log.
#![allow(clippy::unwrap_used)]
#![allow(clippy::print_stderr, reason = "a test that cannot run says so loudly")]

#[allow(dead_code, reason = "each test uses its own part")]
#[path = "backup/node.rs"]
mod node;

use std::path::PathBuf;

use bib_proto::v1 as pb;
use bib_proto::v1::admin_service_client::AdminServiceClient;
use hyper_util::rt::TokioIo;
use node::{Node, Place};
use tokio::net::UnixStream;
use tonic::transport::{Channel, Endpoint};

async fn calls(node: &Node) -> AdminServiceClient<Channel> {
    let path = node.daemon.ready().socket.clone();
    let connector = tower::service_fn(move |_| {
        let path: PathBuf = path.clone();
        async move { UnixStream::connect(path).await.map(TokioIo::new) }
    });
    let endpoint = Endpoint::from_static("http://node.bib.invalid");
    AdminServiceClient::new(endpoint.connect_with_connector(connector).await.unwrap())
}

fn wanted(to: &str, dry_run: bool) -> pb::MoveDatabaseRequest {
    pb::MoveDatabaseRequest { to: to.to_owned(), dry_run }
}

async fn provisioner(node: &Node) -> pb::GetDatabaseStatusResponse {
    calls(node).await.get_database_status(pb::GetDatabaseStatusRequest {}).await.unwrap().into_inner()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_database_moves_with_the_next_start_and_comes_back() {
    let Some(mut place) = Place::in_a_container("/run/docker.sock").await else { return };
    place.wants("auto");
    // The image is here, so that is what `auto` takes.
    let node = Node::start(&place, "data").await;
    node.make_topic("kept").await;
    let status = provisioner(&node).await;
    let container = status.container.unwrap();
    assert_eq!((status.provisioner.as_str(), &container.name), ("container", &place.containers()[0]));
    assert!(container.engine.starts_with("Docker ") && container.digest.starts_with("sha256:"), "{container:?}");
    for (refused, word) in [(wanted("container", false), "already"), (wanted("nowhere", true), "no provisioner")] {
        let status = calls(&node).await.move_database(refused).await.unwrap_err();
        assert!(status.message().contains(word), "{status:?}");
    }
    let dry = calls(&node).await.move_database(wanted("process", true)).await.unwrap().into_inner();
    assert_eq!((dry.from.as_str(), dry.to.as_str(), dry.is_allowed), ("container", "process", true));
    assert_eq!(node.entries("database.move").await, 0);
    calls(&node).await.move_database(wanted("process", false)).await.unwrap();
    assert_eq!(provisioner(&node).await.provisioner, "container", "not before the next start");
    node.stop().await;

    let node = Node::start(&place, "data").await;
    let status = provisioner(&node).await;
    assert_eq!((status.provisioner.as_str(), status.container), ("process", None));
    assert!(place.containers().is_empty());
    assert_eq!((node.topics().await, node.entries("database.move").await), (1, 2), "planned and done");
    calls(&node).await.move_database(wanted("container", false)).await.unwrap();
    node.stop().await;
    // The configuration says otherwise by now: given up, said, and the node starts as it did.
    place.wants("process");
    let node = Node::start(&place, "data").await;
    assert_eq!(provisioner(&node).await.provisioner, "process");
    let back = calls(&node).await.move_database(wanted("container", false)).await.unwrap().into_inner();
    assert!(!back.is_allowed);
    node.stop().await;
    place.wants("auto");
    let node = Node::start(&place, "data").await;
    assert_eq!(provisioner(&node).await.provisioner, "container");
    assert_eq!((node.topics().await, node.audit_verdict().await), (1, "OK".to_owned()));
    assert_eq!(node.entries("database.move").await, 6);
    node.stop().await;
}
