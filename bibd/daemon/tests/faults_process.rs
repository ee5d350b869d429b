//! Processes that die, hang or come twice (security.md, B-STO 1, 6, 9, 11).
#![allow(
    clippy::unwrap_used,
    clippy::print_stderr,
    clippy::disallowed_methods,
    reason = "tests say what they skip and spawn tasks"
)]

mod faults;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::time::{Duration, Instant};

use bib_proto::v1::ServingStatus;
use faults::*;
use rustix::process::Signal;
use tonic::Code;

/// How long a call may take, whatever happens to the database.
const CALL: Duration = Duration::from_secs(20);

/// What every session of the database does and waits for.
async fn sessions(place: &Place) -> String {
    let query = "SELECT format('%s %s %s %s/%s since %s, blocked by %s: %s', pid, usename, state, wait_event_type,
                               wait_event, now() - state_change, pg_blocking_pids(pid), query)
                 FROM pg_stat_activity ORDER BY backend_start";
    let lines: Vec<String> = sqlx::query_scalar(query).fetch_all(&mut place.superuser().await).await.unwrap();
    lines.join("\n")
}

/// Writers that go on until told to stop; a call either succeeds or is refused as passing, within a limit.
struct Load {
    stop: Arc<AtomicBool>,
    written: Arc<AtomicU32>,
    refused: Arc<AtomicU32>,
    writers: tokio::task::JoinSet<()>,
}

impl Load {
    async fn begin(place: &Arc<Place>, node: &Node, name: &'static str, writers: u32) -> Self {
        let (stop, written, refused) = (Arc::default(), Arc::default(), Arc::default());
        let mut load = Self { stop, written, refused, writers: tokio::task::JoinSet::new() };
        for writer in 0..writers {
            let channel = node.channel().await;
            let (stop, written, refused) = (load.stop.clone(), load.written.clone(), load.refused.clone());
            let place = place.clone();
            load.writers.spawn(async move {
                for n in 0_u32.. {
                    if stop.load(Ordering::SeqCst) {
                        return;
                    }
                    let topic = format!("{name}-{writer}-{n}");
                    let Ok(answer) = tokio::time::timeout(CALL, make_topic(&channel, &topic)).await else {
                        panic!("{topic} is not made within {CALL:?}:\n{}", sessions(&place).await);
                    };
                    match answer {
                        Ok(()) => written.fetch_add(1, Ordering::SeqCst),
                        Err(status) => {
                            let passing = [Code::Unavailable, Code::Aborted, Code::DeadlineExceeded];
                            assert!(passing.contains(&status.code()), "{status:?}");
                            refused.fetch_add(1, Ordering::SeqCst)
                        }
                    };
                }
            });
        }
        load
    }

    fn written(&self) -> u32 {
        self.written.load(Ordering::SeqCst)
    }

    fn refused(&self) -> u32 {
        self.refused.load(Ordering::SeqCst)
    }

    async fn end(mut self) {
        self.stop.store(true, Ordering::SeqCst);
        while let Some(writer) = self.writers.join_next().await {
            writer.unwrap();
        }
    }
}

/// One node for what leaves it alive, because its first start is the dear part.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_outlives_a_second_daemon_and_its_own_death() {
    let place = Place::new();
    let mut node = place.start().await;
    make_topic(&node.channel().await, "before").await.unwrap();

    let second = place.refused();
    let text = String::from_utf8_lossy(&second.stderr).into_owned();
    assert_eq!(second.status.code(), Some(3), "{text}");
    assert!(text.contains(&format!("pid {}", node.pid().as_raw_nonzero())) && text.contains("BIB0401"), "{text}");
    make_topic(&node.channel().await, "beside").await.unwrap();

    let mut postmaster = place.postmaster().unwrap();
    for round in 0..rounds() {
        node.kill();
        assert_eq!(place.postmaster(), Some(postmaster), "PostgreSQL outlives the daemon");
        // The lock of the dead does not count, though its file names a pid; PostgreSQL is taken over as it is.
        node = place.start().await;
        assert_eq!(place.postmaster(), Some(postmaster), "adopted, not restarted");
        let error = make_topic(&node.channel().await, "before").await.unwrap_err();
        assert_eq!((error.code(), code(&error).as_str()), (Code::AlreadyExists, "BIB0009"), "{error}");
        make_topic(&node.channel().await, &format!("after-{round}")).await.unwrap();
    }

    // Both die: the cluster recovers by itself.
    node.kill();
    rustix::process::kill_process(postmaster, Signal::KILL).unwrap();
    node = place.start().await;
    let fresh = place.postmaster().unwrap();
    assert_ne!(std::mem::replace(&mut postmaster, fresh), fresh);
    assert_eq!(make_topic(&node.channel().await, "before").await.unwrap_err().code(), Code::AlreadyExists);
    assert!(node.stop().success());
    assert_eq!(place.postmaster(), None, "an adopted or started server is stopped with the daemon");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_killed_database_comes_back_without_a_restart_of_the_daemon() {
    let place = Arc::new(Place::new());
    let node = place.start().await;
    let load = Load::begin(&place, &node, "load", 8).await;
    wait_for("work", Duration::from_secs(60), async || load.written() > 20).await;
    for round in 0..rounds() {
        let is_backend = round % 2 == 1;
        let victim = if is_backend {
            let backends = place.backends();
            backends.iter().find(|(_, title)| title.contains("bibd_service")).unwrap().0
        } else {
            place.postmaster().unwrap()
        };
        let refused = load.refused();
        rustix::process::kill_process(victim, Signal::KILL).unwrap();
        let gone = format!("/proc/{}", victim.as_raw_nonzero());
        wait_for("its end", Duration::from_secs(5), async || !std::path::Path::new(&gone).exists()).await;
        wait_for("failed calls", Duration::from_secs(10), async || load.refused() > refused).await;
        let written = load.written();
        // New connections too, not only those that held on.
        let channel = node.channel().await;
        let name = format!("again-{round}");
        let taken = wait_for("recovery", Duration::from_secs(15), async || {
            load.written() > written + 8
                && match make_topic(&channel, &name).await {
                    Ok(()) => true,
                    Err(status) => status.code() == Code::AlreadyExists,
                }
        })
        .await;
        eprintln!(
            "round {round}: {} killed, back after {taken:?}",
            if is_backend { "a backend" } else { "postmaster" }
        );
        wait_for("health", Duration::from_secs(15), async || node.health("database").await.0 == ServingStatus::Serving)
            .await;
    }
    load.end().await;
    assert!(node.stop().success());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_hanging_database_is_waited_for_in_bounds_and_taken_up_again() {
    let place = Arc::new(Place::new());
    let node = place.start().await;
    let load = Load::begin(&place, &node, "load", 16).await;
    wait_for("work", Duration::from_secs(60), async || load.written() > 20).await;
    let threads = node.status("Threads");
    // The first process before the others: it makes no new ones while they are found.
    let mut stopped: Vec<_> = place.postmaster().into_iter().collect();
    rustix::process::kill_process(stopped[0], Signal::STOP).unwrap();
    for (pid, _) in place.backends() {
        // It may have ended in between.
        let _ = rustix::process::kill_process(pid, Signal::STOP);
        stopped.push(pid);
    }
    // Connections in use hang with their calls; who waits for one is told after five seconds.
    let mut waiting = tokio::task::JoinSet::new();
    for n in 0..64 {
        let channel = node.channel().await;
        waiting.spawn(async move {
            let begun = Instant::now();
            (make_topic(&channel, &format!("waiting-{n}")).await, begun.elapsed())
        });
    }
    let degraded = async || node.health("database").await.0 != ServingStatus::Serving;
    wait_for("degraded", Duration::from_secs(10), degraded).await;
    while let Some(outcome) = waiting.join_next().await {
        let (outcome, taken) = outcome.unwrap();
        let status = outcome.unwrap_err();
        assert_eq!((status.code(), code(&status).as_str()), (Code::Unavailable, "BIB0301"), "{status}");
        assert!(taken < Duration::from_secs(8), "{taken:?}");
    }
    assert!(node.status("Threads") <= threads + 8, "{} threads, {threads} before", node.status("Threads"));
    for pid in &stopped {
        let _ = rustix::process::kill_process(*pid, Signal::CONT);
    }
    let written = load.written();
    wait_for("recovery", Duration::from_secs(15), async || load.written() > written + 16).await;
    wait_for("health", Duration::from_secs(15), async || node.health("database").await.0 == ServingStatus::Serving)
        .await;
    load.end().await;
    assert!(node.stop().success());
}
