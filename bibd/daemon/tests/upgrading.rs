//! `bib admin db upgrade`: planned on a node that runs, carried out by its next start, in the audit log, and minded by
//! backups.
#![allow(clippy::unwrap_used)]
#![allow(clippy::print_stderr, reason = "a test that cannot run says so loudly")]

#[allow(dead_code, reason = "each test uses its own part")]
#[path = "backup/node.rs"]
mod node;

use std::path::PathBuf;
use std::time::Duration;

use bib_proto::v1 as pb;
use node::{Node, Place, wait_for};
use tonic::Status;

async fn upgrade(node: &Node, act: pb::DatabaseUpgrade) -> Result<pb::UpgradeDatabaseResponse, Status> {
    let request = pb::UpgradeDatabaseRequest { act: act.into(), to_major: 0 };
    node.admin().await.upgrade_database(request).await.map(tonic::Response::into_inner)
}

async fn version(node: &Node) -> String {
    let request = pb::GetDatabaseStatusRequest {};
    let status = node.admin().await.get_database_status(request).await.unwrap().into_inner();
    status.version.split('.').next().unwrap().to_owned()
}

/// Items that fail, but for the one that each version answers for itself: its last minor release.
async fn failing(node: &Node) -> Vec<String> {
    let failing = node.failing_items().await.into_iter().filter(|found| !found.title.contains("minor"));
    failing.map(|found| format!("{}: {}", found.item, found.observed)).collect()
}

async fn wait_for_segments(place: &Place, peer: &str, more_than: usize) {
    let what = "the log is archived";
    wait_for(what, Duration::from_secs(60), async || place.segments(peer).len() > more_than).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_goes_on_with_a_newer_postgres_and_its_backups_do_too() {
    let Some(mut place) = Place::new().await else { return };
    let Some(newer) = node::newer_programs().await else { return };
    place.has_newer(newer.clone());
    let node = Node::start(&place, "data").await;
    let peer = node.peer();
    node.export_recovery(&place.sheet()).await;
    node.make_topic("first").await;
    let before_items = failing(&node).await;
    let former = node.make_backup().await;
    node.make_topic("second").await;
    wait_for_segments(&place, &peer, 1).await;

    for (act, word) in [
        (pb::DatabaseUpgrade::Unspecified, "says nothing"),
        (pb::DatabaseUpgrade::Cancel, "no upgrade is planned"),
        (pb::DatabaseUpgrade::RemoveOld, "no former database"),
    ] {
        let refused = upgrade(&node, act).await.unwrap_err();
        assert!(refused.message().contains(word), "{refused:?}");
    }
    let dry = upgrade(&node, pb::DatabaseUpgrade::Examine).await.unwrap();
    assert!(dry.from.starts_with("15.") && !dry.to.starts_with("15."), "{dry:?}");
    assert_eq!((PathBuf::from(&dry.programs), dry.needed_bytes < dry.free_bytes), (newer, true));
    assert_eq!(node.entries("database.upgrade").await, 0);
    upgrade(&node, pb::DatabaseUpgrade::Plan).await.unwrap();
    upgrade(&node, pb::DatabaseUpgrade::Cancel).await.unwrap();
    node.stop().await;
    let node = Node::start(&place, "data").await;
    assert_eq!((version(&node).await.as_str(), node.entries("database.upgrade").await), ("15", 2));

    upgrade(&node, pb::DatabaseUpgrade::Plan).await.unwrap();
    assert_eq!(version(&node).await, "15", "not before the next start");
    node.stop().await;
    let node = Node::start(&place, "data").await;
    assert_eq!(version(&node).await, dry.to.split('.').next().unwrap());
    assert_eq!((node.topics().await, node.audit_verdict().await), (2, "OK".to_owned()));
    assert_eq!(node.entries("database.upgrade").await, 4, "planned, taken back, planned, done");
    assert_eq!(failing(&node).await, before_items);
    node.rotate().await;

    // What was backed up before ends before.
    node.make_topic("third").await;
    wait_for_segments(&place, &peer, place.segments(&peer).len()).await;
    let store = place.path("store");
    let (code, said) = place.refused_restore(&store, "newest", &[]);
    assert!(code == 1 && said.contains("the archived log ends at"), "{code} {said}");
    place.restore("former", &["--backup", &former.id]);
    let latest = node.make_backup().await;
    assert_ne!(latest.system_identifier, former.system_identifier);
    node.make_topic("fourth").await;
    let segments = place.segments(&peer).len();
    wait_for_segments(&place, &peer, segments).await;
    assert_eq!(node.verify(&latest.id).await.verdict, "OK");
    assert_eq!(node.verify(&former.id).await.verdict, "OK", "by the programs of its own version");

    let removed = upgrade(&node, pb::DatabaseUpgrade::RemoveOld).await.unwrap();
    assert!(removed.removed_bytes > 1 << 20 && !PathBuf::from(&dry.kept).exists(), "{removed:?}");
    node.stop().await;

    for (name, topics) in [("former", 1), ("newest", 4)] {
        if name == "newest" {
            place.restore(name, &[]);
        }
        let node = Node::start(&place, name).await;
        assert_eq!((node.topics().await, node.audit_verdict().await), (topics, "OK".to_owned()), "{name}");
        node.stop().await;
    }
}
