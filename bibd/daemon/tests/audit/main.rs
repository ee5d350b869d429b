//! The audit log end to end on a real PostgreSQL: every act has its entry, every entry its seal, whatever dies.
#![allow(clippy::unwrap_used, clippy::print_stderr, clippy::print_stdout)]

mod node;
mod retention;
mod tampers;

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use bibd::services::journal::Act;
use bibd::services::sequencer::Sequencer;
use bibd_audit::chain::epoch_target;
use bibd_audit::{ChainState, Checkpoint};
use bibd_catalog::audit;
use futures::StreamExt as _;
use futures::stream;
use node::{Node, machine_has_postgres, number, run, text};
use rand::{Rng as _, SeedableRng as _};
use serde_json::json;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

/// Waits until the queue is empty.
async fn all_sealed(node: &Node) {
    let mut attacker = node.attacker().await;
    node::wait_for("an empty queue", Duration::from_secs(60), async || {
        number(&mut attacker, "SELECT count(*) FROM bib.audit_unsealed").await == 0
    })
    .await;
}

async fn is_ok(node: &Node, entries: u64) {
    let (rust, python) = node.verdicts(true).await;
    assert_eq!(rust["verdict"], "OK", "{rust}");
    assert_eq!(rust["entries"], entries, "{rust}");
    assert_eq!(rust, python);
}

/// Runs `work` beside the sequencer, then stops that as the daemon does.
async fn beside_the_sequencer<T>(node: &Node, work: impl Future<Output = T>) -> T {
    let stop = CancellationToken::new();
    // A test's work holds connections, and those are large.
    let work = Box::pin(async {
        let done = work.await;
        all_sealed(node).await;
        stop.cancel();
        done
    });
    futures::join!(node.sequence(stop.clone()), work).1
}

#[tokio::test(flavor = "multi_thread")]
async fn ten_thousand_calls_leave_ten_thousand_entries() {
    if !machine_has_postgres().await {
        return;
    }
    const CALLS: u64 = 10_000;
    let node = Node::new().await;
    node.seal().await;
    let begun = Instant::now();
    beside_the_sequencer(&node, async {
        let calls = stream::iter(0..CALLS).map(|n| {
            let node = &node;
            async move { node.act(&format!("topic:{n}")).await }
        });
        assert_eq!(calls.buffer_unordered(24).count().await as u64, CALLS);
        println!("{CALLS} acts in {:?}", begun.elapsed());
    })
    .await;
    let mut attacker = node.attacker().await;
    let targets = "SELECT count(DISTINCT target) FROM bib.audit_entry WHERE action = 'topic.create'";
    assert_eq!(number(&mut attacker, targets).await, CALLS);
    for table in ["audit_entry", "audit_detail", "audit_seal"] {
        assert_eq!(number(&mut attacker, &format!("SELECT count(*) FROM bib.{table}")).await, CALLS, "{table}");
    }
    is_ok(&node, CALLS).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn b_aud_53_two_hundred_writers_with_aborted_transactions_leave_no_gap_and_no_fork() {
    if !machine_has_postgres().await {
        return;
    }
    let node = Node::new().await;
    node.seal().await;
    let kept = AtomicU64::new(0);
    beside_the_sequencer(&node, async {
        let writers = (0..200_u64).map(|writer| {
            let (node, kept) = (&node, &kept);
            async move {
                let mut random = rand::rngs::StdRng::seed_from_u64(writer);
                for n in 0..5 {
                    let call = node.call();
                    let mut tx = node.base.begin(&call, "test").await.unwrap();
                    let act = Act::new("topic.create", format!("topic:{writer}/{n}"), json!({}));
                    let entry = node.base.journal.add(&mut tx, &call, act).await.unwrap();
                    match random.gen_range(0..3) {
                        0 => tx.rollback().await.unwrap(),
                        // As when the task of a call is dropped.
                        1 => drop(tx),
                        _ => {
                            node.base.journal.commit_added(tx, entry, "topic.create").await.unwrap();
                            kept.fetch_add(1, Ordering::Relaxed);
                        }
                    }
                }
            }
        });
        futures::future::join_all(writers).await;
    })
    .await;
    let kept = kept.into_inner();
    assert!((200..600).contains(&kept), "{kept}");
    let mut attacker = node.attacker().await;
    let shape = "SELECT count(*) || ' ' || min(seq) || ' ' || max(seq) || ' ' || count(DISTINCT entry_id) || ' ' || count(DISTINCT head) FROM bib.audit_seal";
    assert_eq!(text(&mut attacker, shape).await, format!("{kept} 1 {kept} {kept} {kept}"));
    is_ok(&node, kept).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_entry_is_sealed_soon_after_its_act_and_a_sensitive_act_waits_for_its_checkpoint() {
    if !machine_has_postgres().await {
        return;
    }
    let node = Node::new().await;
    node.seal().await;
    beside_the_sequencer(&node, async {
        let mut follow = node.base.journal.follow();
        let mut times = Vec::new();
        for n in 0..50 {
            let entry = node.act(&format!("topic:{n}")).await;
            let begun = Instant::now();
            while follow.recv().await.unwrap().entry != entry {}
            times.push(begun.elapsed());
        }
        times.sort_unstable();
        println!("sealed after {:?} in the middle, {:?} at most", times[25], times[49]);
        assert!(times[49] < Duration::from_secs(2), "{times:?}");

        let call = node.call();
        let tx = node.base.begin(&call, "test").await.unwrap();
        let act = Act::new("dataset.withdraw", "dataset:x", json!({}));
        let entry = node.base.journal.commit(tx, &call, act).await.unwrap();
        let mut attacker = node.attacker().await;
        let sealed = format!("SELECT count(*) FROM bib.audit_seal WHERE entry_id = '{entry}'");
        assert_eq!(number(&mut attacker, &sealed).await, 1, "sealed before it returned");
        let signed = "SELECT count(*) FROM bib.audit_checkpoint WHERE size = 51";
        node::wait_for("its checkpoint", Duration::from_secs(2), async || number(&mut attacker, signed).await == 1)
            .await;
    })
    .await;
    is_ok(&node, 51).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_sensitive_act_fails_closed_within_two_seconds_when_nothing_seals() {
    if !machine_has_postgres().await {
        return;
    }
    let node = Node::new().await;
    node.seal().await;
    let call = node.call();
    let tx = node.base.begin(&call, "test").await.unwrap();
    let begun = Instant::now();
    let act = Act::new("dataset.withdraw", "dataset:x", json!({}));
    let refused = node.base.journal.commit(tx, &call, act).await.unwrap_err();
    assert_eq!(refused.code().to_string(), "BIB0305");
    assert!(begun.elapsed() < Duration::from_secs(4), "{:?}", begun.elapsed());
    // And when the entry cannot be written at all, nothing of the act stands.
    let mut attacker = node.attacker().await;
    run(&mut attacker, "REVOKE INSERT ON bib.audit_entry FROM bibd_service").await.unwrap();
    let call = node.call();
    let mut tx = node.base.begin(&call, "test").await.unwrap();
    let (key, value) = ("test.key", json!("x"));
    bibd_catalog::node::set_setting(&mut tx, key, &value, None, node.base.now()).await.unwrap();
    let act = Act::new("config.test", key, json!({}));
    assert_eq!(node.base.journal.commit(tx, &call, act).await.unwrap_err().code().to_string(), "BIB0305");
    assert_eq!(number(&mut attacker, "SELECT count(*) FROM bib.settings").await, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_sequencer_killed_at_any_moment_loses_nothing_and_seals_nothing_twice() {
    if !machine_has_postgres().await {
        return;
    }
    let node = Node::new().await;
    node.seal().await;
    let (over, written, kills) = (AtomicBool::new(false), AtomicU64::new(0), AtomicU64::new(0));
    let writers = async {
        let writer = |writer: u64| {
            let (node, over, written) = (&node, &over, &written);
            async move {
                let mut n = 0;
                while !over.load(Ordering::Relaxed) {
                    node.act(&format!("topic:{writer}/{n}")).await;
                    n += 1;
                    written.fetch_add(1, Ordering::Relaxed);
                }
            }
        };
        futures::future::join_all((0..8).map(writer)).await;
    };
    let killer = async {
        let mut random = rand::rngs::StdRng::seed_from_u64(11);
        for _ in 0..60 {
            let life = Duration::from_micros(random.gen_range(0..60_000));
            // Dropped wherever it is: between two statements, in a commit, between file and table.
            let one = async {
                let every = Duration::from_millis(5);
                let sequencer = Sequencer::start(node.base.clone(), node.file.clone(), every).await?;
                sequencer.run(CancellationToken::new()).await
            };
            if tokio::time::timeout(life, one).await.is_err() {
                kills.fetch_add(1, Ordering::Relaxed);
            }
        }
        over.store(true, Ordering::Relaxed);
    };
    futures::join!(writers, killer);
    let kills = kills.into_inner();
    assert!(kills >= 40, "{kills} of 60 were killed, the others failed by themselves");
    let written = written.into_inner();
    beside_the_sequencer(&node, async {}).await;
    let mut attacker = node.attacker().await;
    let shape = "SELECT count(*) || ' ' || max(seq) || ' ' || count(DISTINCT entry_id) FROM bib.audit_seal";
    assert_eq!(text(&mut attacker, shape).await, format!("{written} {written} {written}"));
    is_ok(&node, written).await;
}

#[tokio::test]
async fn a_checkpoint_that_reached_one_place_only_reaches_the_other_at_the_next_start() {
    if !machine_has_postgres().await {
        return;
    }
    let node = Node::new().await;
    let mut attacker = node.attacker().await;
    let disarmed = "ALTER TABLE bib.audit_checkpoint DISABLE TRIGGER ALL";
    run(&mut attacker, disarmed).await.unwrap();
    node.seal().await;
    node.act("topic:1").await;
    node.seal().await;
    node.act("topic:2").await;
    node.act("topic:3").await;
    node.seal().await;
    let notes = node.file.read().unwrap().notes;
    assert_eq!(notes.len(), 2);
    let count = "SELECT count(*) FROM bib.audit_checkpoint";
    assert_eq!(number(&mut attacker, count).await, 2);

    // The process died before the table: two more acts come before the next start.
    run(&mut attacker, "DELETE FROM bib.audit_checkpoint WHERE size = 3").await.unwrap();
    is_ok(&node, 3).await;
    node.seal().await;
    assert_eq!(number(&mut attacker, &format!("{count} WHERE size = 3")).await, 1);
    let table: Vec<String> = sqlx::query_scalar("SELECT note FROM bib.audit_checkpoint ORDER BY size")
        .fetch_all(&mut attacker)
        .await
        .unwrap();
    assert_eq!(node.file.read().unwrap().notes, table, "both places are alike again");

    // The file lost its newest record (a disk restored from a snapshot, a torn write).
    let all = std::fs::read_to_string(node.file.path()).unwrap();
    let newest = format!("{}\n", table.last().unwrap());
    std::fs::write(node.file.path(), all.strip_suffix(&newest).unwrap()).unwrap();
    node.act("topic:4").await;
    node.seal().await;
    let table: Vec<String> = sqlx::query_scalar("SELECT note FROM bib.audit_checkpoint ORDER BY size")
        .fetch_all(&mut attacker)
        .await
        .unwrap();
    assert_eq!(node.file.read().unwrap().notes, table);

    // More than one missing is no crash: it stays as it is, and verification names it.
    let sealed = number(&mut attacker, "SELECT count(*) FROM bib.audit_seal").await;
    is_ok(&node, sealed).await;
    run(&mut attacker, "DELETE FROM bib.audit_checkpoint WHERE size IN (SELECT size FROM bib.audit_checkpoint ORDER BY size DESC LIMIT 2)")
        .await
        .unwrap();
    node.seal().await;
    let (rust, python) = node.verdicts(true).await;
    assert_eq!((&rust["verdict"], &rust["class"]), (&json!("TAMPERED"), &json!("checkpoint-missing")));
    assert_eq!(rust, python);
}

#[tokio::test]
async fn a_checkpoint_of_a_log_that_was_rolled_back_is_not_added_to_the_table() {
    if !machine_has_postgres().await {
        return;
    }
    let node = Node::new().await;
    for n in 0..4 {
        node.seal().await;
        node.act(&format!("topic:{n}")).await;
    }
    node.seal().await;
    let before = node.file.read().unwrap().notes;
    let newest = Checkpoint::open(before.last().unwrap(), node.base.peer.public_key()).unwrap();
    assert_eq!(newest.size, 4);
    // The database as it was at three entries.
    let mut attacker = node.attacker().await;
    let mut state = ChainState::new(1);
    let mut session = node.base.db.read_audit().await.unwrap();
    state.seal(audit::digests(&mut session, 1, 0, 3).await.unwrap().into_iter().map(|d| (Uuid::nil(), d)));
    let bytes = hex::encode(state.to_bytes().unwrap());
    let undo = "DELETE FROM bib.audit_entry WHERE target = 'topic:3'; DELETE FROM bib.audit_checkpoint WHERE size > 3;
                DELETE FROM bib.audit_seal WHERE seq > 3;";
    tampers::arm(&mut attacker, false).await;
    run(&mut attacker, &format!("{undo} UPDATE bib.audit_head SET state = decode('{bytes}', 'hex')")).await.unwrap();
    tampers::arm(&mut attacker, true).await;
    node.seal().await;
    assert_eq!(number(&mut attacker, "SELECT coalesce(max(size), 0) FROM bib.audit_checkpoint").await, 3);
    let (rust, python) = node.verdicts(true).await;
    assert_eq!((&rust["class"], &rust["first_bad"]), (&json!("rolled-back"), &json!([1, 4])));
    assert_eq!(rust, python);
}

#[tokio::test]
async fn a_raised_epoch_begins_with_an_entry_that_names_the_old_head() {
    if !machine_has_postgres().await {
        return;
    }
    let mut node = Node::new().await;
    node.seal().await;
    node.act("topic:0").await;
    node.seal().await;
    node.act("topic:1").await;
    node.act("topic:2").await;
    // Committed in epoch 1 and not sealed when the daemon stopped: it is sealed there.
    node.restart(3);
    node.seal().await;
    node.act("topic:after").await;
    node.seal().await;
    let mut session = node.base.db.read_audit().await.unwrap();
    let heads = audit::load_heads(&mut session).await.unwrap();
    assert_eq!(heads.iter().map(|head| (head.epoch, head.seq)).collect::<Vec<_>>(), [(1, 3), (3, 2)]);
    let first = audit::find_sealed(&mut session, 3, 1).await.unwrap().unwrap();
    assert_eq!(first.action.as_deref(), Some("audit.epoch"));
    assert_eq!(first.target.unwrap(), epoch_target(&heads[0]));
    let actions: HashMap<String, u64> =
        sqlx::query_as::<_, (String, i64)>("SELECT action, count(*) FROM bib.audit_entry GROUP BY 1")
            .fetch_all(&mut node.attacker().await)
            .await
            .unwrap()
            .into_iter()
            .map(|(action, n)| (action, n.unsigned_abs()))
            .collect();
    assert_eq!(actions["audit.epoch"], 1, "later starts add none");
    drop(session);
    is_ok(&node, 5).await;

    // An epoch below that of the log is refused: the node's directory is older than its database.
    node.restart(2);
    let refused = Sequencer::start(node.base.clone(), node.file.clone(), Duration::from_secs(60)).await.unwrap_err();
    assert!(refused.to_string().contains("in epoch 3, the node in 2"), "{refused}");
}
