//! A disk that fills up (security.md, B-STO 12), on a small one of its own.
#![allow(
    clippy::unwrap_used,
    clippy::print_stderr,
    clippy::disallowed_methods,
    reason = "tests say what they skip and spawn tasks"
)]

mod faults;

use std::fs;
use std::time::Duration;

use bib_client::Client;
use bib_proto::v1::ServingStatus;
use faults::disk::SmallDisk;
use faults::publisher::{Publisher, audit_is_ok};
use faults::*;

/// Small enough for the disk; the reserve is set by each test.
fn configuration(min_free: &str) -> String {
    format!("database:\n  shared_buffers: 16MiB\n  max_wal: 64MiB\nlimits:\n  min_free_bytes: {min_free}\n")
}

fn client(publisher: &Publisher, node: &Node) -> Client {
    publisher.client(&node.ready().socket)
}

/// The reserve keeps PostgreSQL from ever seeing a full disk.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn below_the_reserve_writing_is_refused_and_reading_goes_on() {
    let Some(disk) = SmallDisk::new(512) else { return };
    let place = Place::within(&disk.path());
    place.configure(&configuration("64MiB"));
    let node = place.start().await;
    let mut publisher = Publisher::new(1);
    publisher.change();
    publisher.publish(&client(&publisher, &node)).await.unwrap();
    assert_ne!(node.health("disk").await.0, ServingStatus::Unspecified);

    let filler = disk.fill(48 << 20);
    let low = async || node.health("disk").await.1.contains("less than 64 MiB");
    wait_for("health says so", Duration::from_secs(5), low).await;
    publisher.change();
    let error = publisher.publish(&client(&publisher, &node)).await.unwrap_err();
    assert_eq!(error.code(), Some("BIB0303"), "{}", error.chain());
    let status = make_topic(&node.channel().await, "refused").await.unwrap_err();
    assert_eq!(code(&status), "BIB0303", "{status}");
    publisher.check(&client(&publisher, &node), true).await;
    audit_is_ok(&client(&publisher, &node)).await;

    fs::remove_file(filler).unwrap();
    wait_for("room again", Duration::from_secs(5), async || !low().await).await;
    publisher.publish(&client(&publisher, &node)).await.unwrap();
    publisher.check(&client(&publisher, &node), true).await;
    assert!(node.stop().success());
}

/// Without a reserve, and with somebody else filling the disk to the last block: blobs, PGDATA and WAL alike.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_full_disk_loses_nothing_and_is_taken_up_again_by_itself() {
    let Some(disk) = SmallDisk::new(512) else { return };
    let place = Place::within(&disk.path());
    place.configure(&configuration("0"));
    let node = place.start().await;
    let mut publisher = Publisher::new(2);
    publisher.change();
    publisher.publish(&client(&publisher, &node)).await.unwrap();

    let filler = disk.fill(2 << 20);
    publisher.change();
    let error = publisher.publish(&client(&publisher, &node)).await.unwrap_err();
    assert_eq!(error.code(), Some("BIB0303"), "{}", error.chain());
    publisher.check(&client(&publisher, &node), false).await;

    // Now the database itself: PostgreSQL may stop over its WAL, and the calls say that it is not there.
    disk.fill(0);
    let channel = node.channel().await;
    let mut refused = None;
    for n in 0..20_000 {
        if let Err(status) = make_topic(&channel, &format!("topic-{n}-{}", "x".repeat(90))).await {
            refused = Some(status);
            break;
        }
    }
    let refused = refused.expect("a full disk takes no topics");
    assert!(["BIB0303", "BIB0301"].contains(&code(&refused).as_str()), "{refused:?}");

    fs::remove_file(filler).unwrap();
    let mut n = 0;
    wait_for("writing again, without a manual step", Duration::from_secs(60), async || {
        n += 1;
        make_topic(&channel, &format!("again-{n}")).await.is_ok()
    })
    .await;
    let serving = async || node.health("database").await.0 == ServingStatus::Serving;
    wait_for("health", Duration::from_secs(15), serving).await;
    publisher.publish(&client(&publisher, &node)).await.unwrap();
    publisher.check(&client(&publisher, &node), true).await;
    audit_is_ok(&client(&publisher, &node)).await;
    assert!(node.stop().success());
}
