//! kill -9 at each step of a publish and at random moments (security.md, B-STO 1 to 3), and the order of the steps.
//!
//! `strace` kills the daemon at its own system calls: before the fsync of a chunk's file, before its rename, before the
//! fsync of its directory, before COMMIT and the acknowledgement are sent. So the binary under test is the one that is
//! shipped, without a switch for tests.
#![allow(
    clippy::unwrap_used,
    clippy::print_stderr,
    clippy::disallowed_methods,
    reason = "tests say what they skip and spawn tasks"
)]

mod faults;

use std::fs;
use std::time::{Duration, Instant};

use bib_client::Client;
use faults::publisher::{Publisher, audit_is_ok};
use faults::trace::Tracer;
use faults::*;
use rustix::process::Signal;

/// Rows of chunks: what was made durable and recorded.
async fn recorded(place: &Place) -> i64 {
    let mut superuser = place.superuser().await;
    sqlx::query_scalar("SELECT count(*) FROM bib.chunks").fetch_one(&mut superuser).await.unwrap()
}

/// What is promised after a kill: the acknowledged is there, nothing is half visible, and a rerun sends only the rest.
async fn comes_back(place: &Place, publisher: &mut Publisher, what: &str) -> Node {
    let node = place.start().await;
    let client = publisher.client(&node.ready().socket);
    publisher.check(&client, false).await;
    let before = recorded(place).await;
    let again = publisher.publish(&client).await.unwrap_or_else(|error| panic!("{what}: {}", error.chain()));
    let rest = recorded(place).await - before;
    let sent = i64::try_from(again.chunks_sent).unwrap();
    assert!(sent <= rest, "{what}: {sent} chunks were sent again, {rest} were missing");
    publisher.check(&client, false).await;
    audit_is_ok(&client).await;
    node
}

/// At the end: garbage goes, and nothing else.
async fn settles(publisher: &Publisher, client: &Client) {
    client.admin().collect_garbage(Default::default()).await.unwrap();
    publisher.check(client, true).await;
    audit_is_ok(client).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn killed_at_each_step_of_a_publish_nothing_acknowledged_is_lost() {
    let seed = seed();
    let (place, mut publisher) = (Place::new(), Publisher::new(seed));
    let mut node = place.start().await;
    publisher.change();
    publisher.publish(&publisher_client(&publisher, &node)).await.unwrap();
    // The step before which the daemon dies; each thread counts its own calls.
    let steps = ["fsync", "rename", "openat", "write", "sendto", "recvfrom", "writev", "unlink"];
    let trace = place.dir.join("trace");
    let mut kills = 0;
    for round in 0..rounds() * 2 {
        let step = steps[round as usize % steps.len()];
        let nth = 1 + publisher.below(if step == "fsync" || step == "rename" { 3 } else { 40 });
        let what = format!("killed before {step} number {nth} (seed {seed}, round {round})");
        publisher.change();
        let client = publisher_client(&publisher, &node);
        let (calls, kill) = (format!("trace={step}"), format!("inject={step}:signal=SIGKILL:when={nth}"));
        let Some(tracer) = Tracer::attach(&node, &trace, &["-e", &calls, "-e", &kill]) else { return };
        let outcome = publisher.publish(&client).await;
        // Its connections break a moment before it is gone.
        let end = Instant::now() + Duration::from_secs(if outcome.is_ok() { 0 } else { 10 });
        let mut survived = node.child.try_wait().unwrap().is_none();
        while survived && Instant::now() < end {
            tokio::time::sleep(Duration::from_millis(20)).await;
            survived = node.child.try_wait().unwrap().is_none();
        }
        drop(tracer);
        eprintln!("{what}: {}", if survived { "it never came to that" } else { "dead" });
        kills += u32::from(!survived);
        assert!(outcome.is_ok() || !survived, "{what}: {}", outcome.unwrap_err().chain());
        if survived {
            node.kill();
        }
        drop(node);
        node = comes_back(&place, &mut publisher, &what).await;
    }
    assert!(kills > 0, "no round killed anything");
    settles(&publisher, &publisher_client(&publisher, &node)).await;
    assert!(node.stop().success());
}

fn publisher_client(publisher: &Publisher, node: &Node) -> Client {
    publisher.client(&node.ready().socket)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn killed_at_random_moments_of_a_publish_nothing_acknowledged_is_lost() {
    let seed = seed();
    let (place, mut publisher) = (Place::new(), Publisher::new(seed));
    let mut node = place.start().await;
    for round in 0..rounds() {
        publisher.change();
        let moment = Duration::from_millis(publisher.below(500));
        let kills_database = publisher.below(3) == 0;
        let what = format!("killed after {moment:?} (seed {seed}, round {round})");
        let client = publisher_client(&publisher, &node);
        let (daemon, database) = (node.pid(), place.postmaster().filter(|_| kills_database));
        let killer = std::thread::spawn(move || {
            // Not a wait for something: the moment itself is what is tried.
            std::thread::sleep(moment);
            let _ = rustix::process::kill_process(daemon, Signal::KILL);
            database.map(|pid| rustix::process::kill_process(pid, Signal::KILL))
        });
        let outcome = publisher.publish(&client).await;
        killer.join().unwrap();
        node.child.wait().unwrap();
        eprintln!("{what}: {}", if outcome.is_ok() { "acknowledged before" } else { "interrupted" });
        drop(node);
        node = comes_back(&place, &mut publisher, &what).await;
    }
    settles(&publisher, &publisher_client(&publisher, &node)).await;
    assert!(node.stop().success());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn each_chunk_is_durable_then_committed_then_acknowledged() {
    let (place, mut publisher) = (Place::new(), Publisher::new(7));
    let node = place.start().await;
    // The dataset and its fan of directories exist: the trace is about chunks.
    publisher.change();
    publisher.publish(&publisher_client(&publisher, &node)).await.unwrap();
    publisher.change();
    let trace = place.dir.join("trace");
    let calls = "trace=fsync,fdatasync,rename,renameat,renameat2,sendto,recvfrom,write,writev,sendmsg,recvmsg,read";
    let arguments = ["-xx", "-yy", "-s", "8192", "-e", calls];
    let Some(tracer) = Tracer::attach(&node, &trace, &arguments) else { return };
    let published = publisher.publish(&publisher_client(&publisher, &node)).await.unwrap();
    drop(tracer);
    let orders = trace::orders(&trace::read(&fs::read_to_string(&trace).unwrap()));
    assert_eq!(orders.len() as u64, published.chunks_sent, "each chunk that was sent was traced");
    assert!(orders.len() >= 4, "a folder of several chunks");
    for (hash, order) in &orders {
        assert!(order.as_ref().is_ok_and(trace::Order::is_right), "{hash}: {order:?}");
    }
    assert!(node.stop().success());
}
