//! Rotation of the database's passwords in a whole daemon: under load, interrupted at every step, and on time.
#![allow(
    clippy::unwrap_used,
    clippy::print_stderr,
    clippy::disallowed_methods,
    reason = "tests say what they measured and spawn tasks"
)]

#[allow(dead_code, reason = "shared with the tests of accounts")]
#[path = "accounts/node.rs"]
mod clocked;
mod faults;

use std::collections::BTreeSet;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::time::{Duration, Instant};

use bib_identity::NodeKey;
use bib_proto::v1 as pb;
use bib_proto::v1::admin_service_client::AdminServiceClient;
use bib_proto::v1::topic_service_client::TopicServiceClient;
use bibd::clock::Clock as _;
use bibd::secrets::Secrets;
use bibd_postgres::{Failpoints, SecretStore as _};
use faults::*;
use secrecy::ExposeSecret as _;
use sqlx::PgConnection;
use tokio::sync::Semaphore;
use tonic::transport::Channel;

/// Every password in the sealed document.
fn passwords(data: &Path) -> BTreeSet<String> {
    fn gather(value: &serde_json::Value, into: &mut BTreeSet<String>) {
        match value {
            serde_json::Value::String(text) if text.len() == 64 => drop(into.insert(text.clone())),
            serde_json::Value::Object(fields) => fields.values().for_each(|value| gather(value, into)),
            _ => {}
        }
    }
    let key = NodeKey::load(&data.join("identity/node_key")).unwrap();
    let text = Secrets::new(&data.join("secrets"), Arc::new(key), Vec::new()).read("db").unwrap().unwrap();
    let mut all = BTreeSet::new();
    gather(&serde_json::from_str(text.expose_secret()).unwrap(), &mut all);
    all
}

async fn rotate(channel: &Channel, roles: &[&str]) -> Result<pb::RotateDatabaseResponse, tonic::Status> {
    let roles = roles.iter().map(|role| (*role).to_owned()).collect();
    let answer = AdminServiceClient::new(channel.clone()).rotate_database(pb::RotateDatabaseRequest { roles }).await;
    answer.map(tonic::Response::into_inner)
}

async fn status(channel: &Channel) -> pb::GetDatabaseStatusResponse {
    let mut admin = AdminServiceClient::new(channel.clone());
    admin.get_database_status(pb::GetDatabaseStatusRequest {}).await.unwrap().into_inner()
}

async fn column(connection: &mut PgConnection, sql: &'static str) -> BTreeSet<String> {
    sqlx::query_scalar(sql).fetch_all(connection).await.unwrap().into_iter().collect()
}

/// One login of each pair is open, it is the one that the node names, and nobody is in another.
async fn is_whole(place: &Place, channel: &Channel) {
    let named: BTreeSet<String> = status(channel).await.roles.into_iter().map(|role| role.login).collect();
    assert_eq!(named.len(), 10);
    let mut superuser = place.superuser().await;
    let open = "SELECT rolname::text FROM pg_authid WHERE rolcanlogin AND rolpassword LIKE 'SCRAM-SHA-256$15000:%'";
    assert_eq!(column(&mut superuser, open).await, named);
    let odd = "SELECT rolname::text FROM pg_authid WHERE rolcanlogin <> (rolpassword IS NOT NULL)";
    assert_eq!(column(&mut superuser, odd).await, BTreeSet::new());
    let inside = column(&mut superuser, "SELECT usename::text FROM pg_stat_activity WHERE usename IS NOT NULL").await;
    assert!(inside.is_subset(&named), "{inside:?}");
}

/// Calls at once, of all callers together: fewer than the pool has connections, so that nobody is refused because the
/// machine has no time (64 at once on a busy machine time out without any rotation), and whoever is refused all the same
/// is refused by the rotation. What a node does when it is driven to its limits is the benchmark's.
const AT_ONCE: usize = 8;

/// Callers of every kind that go on until told to stop; not one call may fail.
struct Callers {
    stop: Arc<AtomicBool>,
    calls: Arc<AtomicU32>,
    tasks: tokio::task::JoinSet<()>,
}

impl Callers {
    async fn begin(node: &Node, count: u32) -> Self {
        let mut callers = Self { stop: Arc::default(), calls: Arc::default(), tasks: tokio::task::JoinSet::new() };
        let turns = Arc::new(Semaphore::new(AT_ONCE));
        for number in 0..count {
            let (channel, turns) = (node.channel().await, Arc::clone(&turns));
            let (stop, calls) = (callers.stop.clone(), callers.calls.clone());
            callers.tasks.spawn(async move {
                // The pool's first connections are made in calls: one on a busy machine may take too long.
                let mut tries = 0..20;
                while tries.next().is_some() {
                    let _turn = turns.acquire().await.unwrap();
                    if make_topic(&channel, &format!("load-{number}")).await.is_ok() {
                        break;
                    }
                }
                for n in 0_u32.. {
                    if stop.load(Ordering::SeqCst) {
                        return;
                    }
                    let turn = turns.acquire().await.unwrap();
                    let name = format!("load-{number}-{n}");
                    make_topic(&channel, &name).await.unwrap();
                    let request = pb::GetTopicRequest { topic: name };
                    TopicServiceClient::new(channel.clone()).get_topic(request).await.unwrap();
                    let page = Some(pb::PageRequest { limit: 1, ..Default::default() });
                    let request = pb::ListAuditRequest { descending: true, page, ..Default::default() };
                    AdminServiceClient::new(channel.clone()).list_audit(request).await.unwrap();
                    calls.fetch_add(3, Ordering::SeqCst);
                    drop(turn);
                    tokio::time::sleep(Duration::from_secs(1)).await;
                }
            });
        }
        callers
    }

    fn calls(&self) -> u32 {
        self.calls.load(Ordering::SeqCst)
    }

    async fn end(mut self) -> u32 {
        self.stop.store(true, Ordering::SeqCst);
        while let Some(task) = self.tasks.join_next().await {
            task.expect("no call may fail");
        }
        self.calls()
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nobody_notices_a_rotation_and_no_password_is_anywhere() {
    let place = Place::new();
    let node = place.start().await;
    let channel = node.channel().await;
    let mut secrets = passwords(&place.data());
    assert_eq!(secrets.len(), 10);
    let first = status(&channel).await;
    assert_eq!((first.provisioner.as_str(), first.rotated_every_seconds), ("process", 7 * 86_400));
    assert!(!first.version.is_empty() && first.roles.iter().all(|role| role.password_age_seconds < 120));

    let callers = Callers::begin(&node, 64).await;
    let mut processes = String::new();
    for round in 1..=rounds().max(3) {
        let before = callers.calls();
        wait_for("calls", Duration::from_secs(60), async || callers.calls() > before + 64).await;
        let done = rotate(&channel, &[]).await.unwrap();
        assert_eq!(done.roles.len(), 10, "{done:?}");
        processes.push_str(&process_list());
        eprintln!("rotation {round}: {} ms, {} calls meanwhile", done.duration_ms, callers.calls() - before);
        let fresh = passwords(&place.data());
        assert!(fresh.len() == 10 && fresh.is_disjoint(&secrets));
        secrets.extend(fresh);
        is_whole(&place, &channel).await;
    }
    let one = rotate(&channel, &["seal"]).await.unwrap();
    assert_eq!((one.roles, one.left_out), (vec!["seal".to_owned()], Vec::new()));
    let refused = rotate(&channel, &["nobody"]).await.unwrap_err();
    assert_eq!(code(&refused), "BIB0003");
    secrets.extend(passwords(&place.data()));
    let calls = callers.end().await;
    eprintln!("{calls} calls, none failed");

    // A backup may take hours: it is neither waited for nor cut off.
    let mut superuser = place.superuser().await;
    let backup = status(&channel).await.roles.into_iter().find(|role| role.role == "backup").unwrap().login;
    let held = hold(&place, &backup).await;
    let done = rotate(&channel, &[]).await.unwrap();
    assert_eq!(done.left_out, ["backup"]);
    assert_eq!(code(&rotate(&channel, &["backup"]).await.unwrap_err()), "BIB0010");
    let still = column(&mut superuser, "SELECT usename::text FROM pg_stat_activity WHERE usename IS NOT NULL").await;
    assert!(still.contains(&backup), "{still:?}");
    drop(held);
    secrets.extend(passwords(&place.data()));

    let mut admin = AdminServiceClient::new(channel.clone());
    let checklist = admin.audit_database(pb::AuditDatabaseRequest {}).await.unwrap().into_inner();
    assert_eq!(checklist.failed, 0, "{checklist:#?}");
    let filter = pb::ListAuditRequest { action: "database.rotate".to_owned(), ..Default::default() };
    let entries = admin.list_audit(filter).await.unwrap().into_inner().entries;
    let results: Vec<&str> = entries.iter().map(|entry| entry.result.as_str()).collect();
    assert_eq!(results, ["intent", "ok"].repeat(results.len() / 2));
    assert!(results.len() >= 10, "{results:?}");
    let by_a_person = |entry: &pb::AuditEntry| entry.seq > 0 && entry.actor.starts_with("user:");
    assert!(entries.iter().all(by_a_person), "{entries:#?}");

    assert!(node.stop().success());
    assert!(!secrets.iter().any(|secret| processes.contains(secret)), "in the process list");
    let (found, searched) = files_with(&place.dir, &secrets);
    assert!(found.is_empty() && searched > 900, "{searched}: {found:?}");
    let (verifiers, _) = files_with(&place.data().join("postgres/log"), &BTreeSet::from(["SCRAM-SHA-256$".to_owned()]));
    assert!(verifiers.is_empty() && !place.log().contains("SCRAM-SHA-256$"), "{verifiers:?}");
    assert!(place.log().contains("passwords of the database were rotated"));
}

/// A connection on a login, made with the password in the sealed document.
async fn hold(place: &Place, login: &str) -> PgConnection {
    use sqlx::Connection as _;
    let key = NodeKey::load(&place.data().join("identity/node_key")).unwrap();
    let text = Secrets::new(&place.data().join("secrets"), Arc::new(key), Vec::new()).read("db").unwrap().unwrap();
    let value: serde_json::Value = serde_json::from_str(text.expose_secret()).unwrap();
    let pid_file = std::fs::read_to_string(place.data().join("postgres/data/postmaster.pid")).unwrap();
    let role = login.strip_prefix("bibd_").unwrap().trim_end_matches("_a").trim_end_matches("_b");
    let options = sqlx::postgres::PgConnectOptions::new_without_pgpass()
        .socket(pid_file.lines().nth(4).unwrap())
        .port(5432)
        .ssl_mode(sqlx::postgres::PgSslMode::Disable)
        .username(login)
        .password(value["roles"][role]["password"].as_str().unwrap())
        .database("bib");
    PgConnection::connect_with(&options).await.unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_daemon_that_is_killed_at_any_step_is_well_again_within_ten_seconds() {
    let place = Place::new();
    place.start().await.stop();
    for round in 0..rounds().div_ceil(3) {
        for point in Failpoints::ROTATION {
            let before = passwords(&place.data());
            let mut command = place.command();
            command.env(bibd::failpoint::VARIABLE, point);
            let mut dying = place.start_as(command).await;
            let channel = dying.channel().await;
            make_topic(&channel, &format!("before-{round}-{}", point.replace('.', "-"))).await.unwrap();
            rotate(&channel, &[]).await.unwrap_err();
            assert_eq!(std::os::unix::process::ExitStatusExt::signal(&dying.ended().await), Some(9), "{point}");

            // The dead daemon's PostgreSQL still runs, with whatever it was told last.
            assert!(place.postmaster().is_some());
            let begun = Instant::now();
            let node = place.start().await;
            let channel = node.channel().await;
            make_topic(&channel, &format!("after-{round}-{}", point.replace('.', "-"))).await.unwrap();
            let taken = begun.elapsed();
            eprintln!("killed at {point}: well again after {taken:?}");
            assert!(taken < Duration::from_secs(10), "{point}: {taken:?}");
            is_whole(&place, &channel).await;
            assert!(passwords(&place.data()).is_disjoint(&before), "{point}: it went back");
            let done = rotate(&channel, &[]).await.unwrap();
            assert_eq!(done.roles.len(), 10, "{point}");
            assert!(node.stop().success());
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn passwords_come_of_age_whatever_the_clock_does_and_across_restarts() {
    let Some(node) = clocked::Node::start().await else { return };
    const WEEK: Duration = Duration::from_secs(7 * 86_400);
    let mut tx = {
        let foundation = node.daemon.foundation();
        let base = bibd::services::base::Base::of(foundation);
        base.begin(&base.internal_call("test"), "test").await.unwrap()
    };
    // For a clock that is moved on: the sequencer makes the log's partitions only some days ahead.
    for months in 0..3 {
        let moment = node.clock.now().plus_seconds(months * 28 * 86_400);
        bibd_catalog::audit::make_month(&mut tx, moment).await.unwrap();
    }
    tx.commit().await.unwrap();
    let outcomes = async |node: &clocked::Node| {
        let entries = node.entries("database.rotate").await;
        entries.into_iter().filter(|[_, _, result, _]| result == "ok").count()
    };
    let settle = async || tokio::time::sleep(Duration::from_millis(2_500)).await;
    settle().await;
    assert_eq!(outcomes(&node).await, 0);

    // Not a second too early; and the time of the last one survives a restart.
    node.clock.advance(WEEK - Duration::from_secs(600));
    settle().await;
    assert_eq!(outcomes(&node).await, 0);
    let node = node.restart().await;
    node.clock.advance(Duration::from_secs(601));
    clocked::wait_for("a rotation", Duration::from_secs(60), async || outcomes(&node).await == 1).await;
    let [actor, _, _, details] = node.entries("database.rotate").await.pop().unwrap();
    assert!(actor == "system:rotation" && details.contains("\"scheduled\""), "{actor} {details}");
    settle().await;
    assert_eq!(outcomes(&node).await, 1, "once");
    let node = node.restart().await;
    settle().await;
    assert_eq!(outcomes(&node).await, 1, "once, also after a restart");

    // The world's clock goes wrong by a month, and is set right: once each, and never in a loop.
    let right = node.clock.now();
    node.clock.jump_to(right.plus_seconds(30 * 86_400));
    clocked::wait_for("a rotation", Duration::from_secs(60), async || outcomes(&node).await == 2).await;
    node.clock.jump_to(right);
    clocked::wait_for("a rotation", Duration::from_secs(60), async || outcomes(&node).await == 3).await;
    settle().await;
    assert_eq!(outcomes(&node).await, 3);
    node.stop().await;
}
