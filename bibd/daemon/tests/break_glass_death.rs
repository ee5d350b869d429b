//! Break-glass in a daemon that is a process of its own: in which order it records and passes on, as the kernel sees it; and
//! when it dies at any step of a grant or in the middle of a session, nothing of it is left when the next one serves.
#![allow(
    clippy::unwrap_used,
    clippy::print_stderr,
    clippy::disallowed_methods,
    reason = "tests say what they measured and spawn tasks"
)]

mod faults;
#[allow(dead_code, reason = "shared with the tests of whole sessions")]
#[path = "break_glass/node.rs"]
mod node;

use std::time::{Duration, Instant};

use bib_client::Target;
use bib_client::api::Wish;
use bib_core::access::GlassAccess;
use bib_identity::ssh::UserKey;
use bibd_postgres::Failpoints;
use faults::trace::{self, Tracer};
use faults::{Place, files_with, process_list, rounds};
use node::{Bridge, client, left, superuser, wait_for};
use serde_json::Value;

/// How long it may take on a machine that does other things; the soak holds what is promised.
const WELL_WITHIN: Duration = Duration::from_secs(60);
/// Sessions in the middle of a statement that does not end.
const RUNNING: &str = "SELECT 'x' FROM pg_stat_activity
                       WHERE usename ~ '^bibd_glass_' AND state = 'active' AND query ~ 'pg_sleep'";

fn key(place: &Place) -> UserKey {
    let path = place.dir.join("key");
    if !path.exists() {
        bib_identity::ssh::generate(&path, "key", &mut bibd::clock::Entropy::from_system()).unwrap();
    }
    UserKey::load(&path, &mut |_| None).unwrap()
}

fn configured() -> Place {
    let place = Place::new();
    place.configure(&format!(
        "database:\n  break_glass:\n    enabled: true\n    access: readwrite\n    require_review: false\n    \
         allowed_users:\n      - name: emergency\n        public_key: \"{}\"\n",
        key(&place).public().to_line()
    ));
    place
}

fn wish() -> Wish {
    Wish { reason: "a test".to_owned(), duration: Duration::from_secs(600), access: GlassAccess::ReadWrite }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_statement_is_on_the_disk_and_in_the_log_before_the_server_hears_of_it() {
    let place = configured();
    let node = place.start().await;
    let home = place.dir.join("client");
    let target = || Target::Socket(place.data().join("run/bibd.sock"));
    client(target(), &home, Some(key(&place))).break_glass().enable(&wish()).await.unwrap();
    let bridge = Bridge::new(client(target(), &home, None));
    let mut talk = bridge.talk("SELECT 'before the trace';").await;
    let mut superuser = superuser(&place.data()).await;
    let idle = "SELECT state::text FROM pg_stat_activity WHERE usename ~ '^bibd_glass_' AND query ~ 'before the trace'";
    wait_for("the session", Duration::from_secs(30), async || node::texts(&mut superuser, idle).await == ["idle"])
        .await;
    let trace = place.dir.join("trace");
    let calls = "trace=fdatasync,sendto,recvfrom,write,writev,sendmsg,recvmsg,read";
    let Some(tracer) = Tracer::attach(&node, &trace, &["-xx", "-yy", "-s", "65536", "-e", calls]) else { return };
    let said: Vec<String> = (0..8).map(|number| format!("statement {number} of eight")).collect();
    for text in &said {
        talk.say(&format!("SELECT '{text}';")).await;
    }
    let verifier =
        node::texts(&mut superuser, "SELECT rolpassword FROM pg_authid WHERE rolname ~ '^bibd_glass_[0-9a-f]{8}$'")
            .await;
    let processes = process_list();
    let out = talk.leave().await.out;
    drop(tracer);
    assert!(said.iter().all(|text| out.contains(text)), "{out}");
    let calls = trace::read(&std::fs::read_to_string(&trace).unwrap());
    for text in &said {
        let order = trace::said(&calls, text);
        assert!(order.as_ref().is_ok_and(trace::Said::is_right), "{text}: {order:?}");
    }
    assert!(node.stop().success());
    // The password itself is nowhere but in the daemon that has ended.
    assert!(verifier.len() == 1 && verifier[0].starts_with("SCRAM-SHA-256$"), "{verifier:?}");
    assert!(!processes.contains("SCRAM-SHA-256$") && !place.log().contains("SCRAM-SHA-256$"));
    for directory in ["postgres/log", "glass"] {
        let (found, searched) = files_with(&place.data().join(directory), &verifier.iter().cloned().collect());
        assert!(found.is_empty() && searched > 0, "{searched}: {found:?}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_daemon_that_is_killed_at_any_step_of_a_grant_leaves_none() {
    let place = configured();
    place.start().await.stop();
    for _ in 0..rounds().div_ceil(3) {
        for point in Failpoints::GLASS {
            let mut command = place.command();
            command.env(bibd::failpoint::VARIABLE, point);
            let mut dying = place.start_as(command).await;
            let socket = dying.ready().socket.clone();
            let home = place.dir.join("client");
            let glass = client(Target::Socket(socket.clone()), &home, Some(key(&place))).break_glass();
            let opened = glass.enable(&wish()).await;
            let is_before_open = ["glass.intent", "glass.opened", "glass.open"].contains(&point);
            assert_eq!(opened.is_ok(), !is_before_open, "{point}: {opened:?}");
            let bridge = Bridge::new(client(Target::Socket(socket), &home, None));
            let mut talk = None;
            if !is_before_open {
                talk = Some(bridge.talk("SELECT pg_sleep(3600);").await);
                let mut superuser = superuser(&place.data()).await;
                // A session that has only logged in has not said anything yet.
                wait_for("the session", WELL_WITHIN, async || node::texts(&mut superuser, RUNNING).await.len() == 1)
                    .await;
                glass.disable("").await.unwrap_err();
            }
            assert_eq!(std::os::unix::process::ExitStatusExt::signal(&dying.ended().await), Some(9), "{point}");
            drop(talk);

            assert!(place.postmaster().is_some(), "the dead daemon's PostgreSQL still runs");
            let begun = Instant::now();
            let node = place.start().await;
            let mut superuser = superuser(&place.data()).await;
            // Before anything is served nobody can be in; a moment later nothing is left of it.
            let inside = left(&mut superuser).await;
            assert!(
                inside.iter().all(|line| !line.ends_with("LOGIN") && !line.starts_with("session")),
                "{point}: {inside:?}"
            );
            let glass = client(Target::Socket(node.ready().socket.clone()), &home, Some(key(&place))).break_glass();
            wait_for("the end of it", WELL_WITHIN, async || {
                left(&mut superuser).await.is_empty() && glass.status().await.unwrap().grant.is_none()
            })
            .await;
            eprintln!("killed at {point}: nothing was left after {:?}", begun.elapsed());
            let report: Value = serde_json::from_str(&glass.report("").await.unwrap()).unwrap();
            let reason = if point == "glass.ended" { "disabled" } else { "restart" };
            assert_eq!(report["end_reason"], reason, "{point}");
            if !is_before_open {
                assert!(report.to_string().contains("SELECT pg_sleep(3600)"), "{point}: {report}");
            }
            // And it can be opened again.
            glass.enable(&wish()).await.unwrap();
            glass.disable("").await.unwrap();
            assert!(node.stop().success());
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn b_aud_57_a_daemon_that_is_killed_in_a_session_cuts_it_when_it_is_back() {
    let place = configured();
    let mut node = place.start().await;
    let home = place.dir.join("client");
    let target = || Target::Socket(place.data().join("run/bibd.sock"));
    let glass = client(target(), &home, Some(key(&place))).break_glass();
    glass.enable(&wish()).await.unwrap();
    let bridge = Bridge::new(client(target(), &home, None));
    // Whoever wants to outlive the daemon has the server not look whether anybody listens.
    let talk = bridge.talk("SET client_connection_check_interval = 0; SELECT pg_sleep(3600);").await;
    let mut attacker = superuser(&place.data()).await;
    wait_for("the session", WELL_WITHIN, async || node::texts(&mut attacker, RUNNING).await.len() == 1).await;
    node.kill();
    drop(talk);
    assert_eq!(node::texts(&mut attacker, RUNNING).await.len(), 1, "it goes on without the daemon");
    let begun = Instant::now();
    let node = place.start().await;
    let still = node::texts(&mut attacker, RUNNING).await;
    assert_eq!(still, Vec::<String>::new(), "the next daemon serves, and it goes on");
    eprintln!("the session was gone when the next daemon served, after {:?}", begun.elapsed());
    let glass = client(target(), &home, None).break_glass();
    wait_for("the end of it", WELL_WITHIN, async || glass.status().await.unwrap().grant.is_none()).await;
    let sessions: Vec<_> = futures::TryStreamExt::try_collect(glass.sessions("")).await.unwrap();
    assert_eq!(sessions.len(), 1);
    assert_eq!((sessions[0].end_reason.as_str(), sessions[0].ended_at.is_empty()), ("restart", false));
    assert!(node.stop().success());
}
