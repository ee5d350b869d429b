//! Months leave the log: what stays verifies, what left can be proven and erased, and nobody else can make the log
//! forget.

use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bib_core::Timestamp;
use bibd::config::Span;
use bibd::config::audit::Retention as Settings;
use bibd::services::archive::Archive;
use bibd::services::audit::AuditService;
use bibd::services::journal::Act;
use bibd::services::month::Month;
use bibd::services::retention::{NewestBackup, Retention, Taken};
use bibd_audit::verify::Verdict;
use bibd_catalog::{Context, audit};
use bibd_postgres::GroupRole;
use serde_json::json;
use uuid::Uuid;

use crate::beside_the_sequencer;
use crate::node::{Node, machine_has_postgres, number, run, text};

const DAY: Duration = Duration::from_secs(86_400);

struct Lab {
    node: Node,
    folder: tempfile::TempDir,
    entries: Vec<Uuid>,
}

impl Lab {
    /// Acts in November, December (across a restore) and March; what was said in the first entry is erased.
    async fn new() -> Self {
        let mut node = Node::new().await;
        let mut entries = Vec::new();
        for (pause, epoch) in [(Duration::ZERO, 1), (31 * DAY, 1), (Duration::from_secs(60), 2), (90 * DAY, 2)] {
            node.clock.advance(pause);
            node.restart(epoch);
            node.seal().await;
            for _ in 0..3 {
                entries.push(node.act("topic:climate").await);
            }
            node.seal().await;
        }
        Self { node, folder: tempfile::tempdir().unwrap(), entries }
    }

    fn archive(&self) -> Archive {
        Archive::new(&self.folder.path().join("archive"), self.node.base.peer)
    }

    fn file(&self, month: &str) -> PathBuf {
        self.folder.path().join(format!("archive/{month}.jsonl.zst"))
    }

    fn retention(&self, settings: Settings, readers: &[&str]) -> Retention {
        let readers = readers.iter().map(|reader| (*reader).to_owned()).collect();
        Retention::of(self.node.base.clone(), settings, self.archive(), self.node.file.clone(), readers)
    }

    fn audit(&self) -> AuditService {
        AuditService::new(self.node.base.clone(), self.node.file.clone()).with_archive(self.archive())
    }

    async fn months(&self) -> Vec<String> {
        let mut session = self.node.base.db.read_audit().await.unwrap();
        let tables = audit::months(&mut session).await.unwrap();
        tables.into_iter().map(|t| if t.attached { t.month } else { format!("({})", t.month) }).collect()
    }

    async fn round(&self, settings: Settings, readers: &[&str]) {
        let retention = self.retention(settings, readers);
        beside_the_sequencer(&self.node, async { Box::pin(retention.round()).await.unwrap() }).await;
        self.node.seal().await;
    }
}

fn thirty_days() -> Settings {
    Settings { keep: Some(Span(30 * DAY)), ..Settings::default() }
}

#[tokio::test(flavor = "multi_thread")]
async fn months_leave_behind_signatures_and_the_rest_verifies() {
    if !machine_has_postgres().await {
        return;
    }
    let lab = Lab::new().await;
    assert_eq!(lab.months().await[..2], ["2026-11", "2026-12"]);
    // A sink that has nothing yet keeps them where they are.
    lab.round(thirty_days(), &["siem"]).await;
    assert_eq!(lab.months().await[..2], ["2026-11", "2026-12"]);
    lab.round(thirty_days(), &[]).await;
    assert!(lab.months().await.iter().all(|month| month.as_str() >= "2027-01"), "{:?}", lab.months().await);
    assert!(lab.file("2026-11").exists() && lab.file("2026-12").exists());

    let (rust, python) = lab.node.verdicts(true).await;
    assert_eq!((&rust["verdict"], &rust), (&json!("OK"), &python));
    let (progress, _told) = tokio::sync::mpsc::channel(64);
    let verification = lab.audit().verify(&lab.node.call(), progress).await.unwrap();
    let Verdict::Ok(ok) = verification.verdict else { panic!("{:?}", verification.verdict) };
    let runs: Vec<String> = ok.detached.iter().map(ToString::to_string).collect();
    // Epoch 1 is gone whole; of epoch 2 what was in December, its first entry included.
    assert_eq!(runs, ["1/1-6", "2/1-4"]);
    // Without a checkpoint nobody can say.
    assert_eq!(lab.node.verdicts(false).await.0["verdict"], "UNVERIFIED");

    // What left can still be proven.
    let proof = lab.audit().proof(1, 2).await.unwrap();
    let proven = proof.verify(lab.node.base.peer.public_key()).unwrap();
    assert_eq!(proven.entry.id, lab.entries[1].to_string());
    assert!(proof.to_bytes().is_ok_and(|bytes| String::from_utf8(bytes).unwrap().contains("about topic:climate")));

    // And what it said erased, as the law asks; a second time there is nothing.
    let call = lab.node.call();
    let audit = lab.audit();
    beside_the_sequencer(&lab.node, async {
        audit.erase(&call, lab.entries[1], "she asked for it").await.unwrap();
        audit.erase(&call, lab.entries[1], "again").await.unwrap_err();
        audit.erase(&call, Uuid::nil(), "never there").await.unwrap_err();
        // In the database as ever.
        audit.erase(&call, lab.entries[11], "she asked for it").await.unwrap();
    })
    .await;
    let line = lab.archive().find("2026-11", 1, 2).unwrap().unwrap();
    assert!(line.detail.is_none() && line.entry.is_some());
    assert!(lab.archive().find("2026-11", 1, 1).unwrap().unwrap().detail.is_some());
    let proof = lab.audit().proof(1, 2).await.unwrap();
    proof.verify(lab.node.base.peer.public_key()).unwrap();
    assert!(!String::from_utf8(proof.to_bytes().unwrap()).unwrap().contains("about topic:climate"));
    lab.node.seal().await;
    let (rust, python) = lab.node.verdicts(true).await;
    assert_eq!((&rust["verdict"], &rust), (&json!("OK"), &python));

    // A file that says something else than what was sealed proves nothing.
    std::fs::copy(lab.file("2026-12"), lab.file("2026-11")).unwrap();
    lab.audit().proof(1, 2).await.unwrap_err();
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_gone_beyond_what_was_signed_is_found() {
    if !machine_has_postgres().await {
        return;
    }
    let lab = Lab::new().await;
    lab.round(thirty_days(), &[]).await;
    let mut attacker = lab.node.attacker().await;
    run(&mut attacker, "ALTER TABLE bib.audit_entry_2027_03 DISABLE TRIGGER ALL").await.unwrap();
    run(&mut attacker, &format!("DELETE FROM bib.audit_entry WHERE id = '{}'", lab.entries[9])).await.unwrap();
    let (rust, python) = lab.node.verdicts(true).await;
    assert_eq!((&rust["class"], &rust), (&json!("entry-missing"), &python));
    // An entry that says so, by somebody who has the database and not the node's key, excuses nothing.
    let call = lab.node.call();
    let mut tx = lab.node.base.begin(&call, "test").await.unwrap();
    let place = rust["first_bad"].as_array().unwrap().clone();
    let target = format!("2027-03 {0}/{1}-{1} sig {2}", place[0], place[1], "A".repeat(86) + "==");
    lab.node.base.journal.add(&mut tx, &call, Act::new("audit.detach", target, json!({}))).await.unwrap();
    tx.commit().await.unwrap();
    lab.node.seal().await;
    assert_eq!(lab.node.verdicts(true).await.0["class"], "entry-missing");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_month_goes_only_with_its_entry_and_a_process_that_dies_leaves_nothing_half_done() {
    if !machine_has_postgres().await {
        return;
    }
    let lab = Lab::new().await;
    let november: Timestamp = Month::parse("2026-11").unwrap().begin();
    let mut attacker = lab.node.attacker().await;
    // Neither the use cases' role nor the sequencer's takes a month without saying so.
    for role in [GroupRole::Service, GroupRole::Audit, GroupRole::Seal] {
        let mut connection = lab.node.server.connect(role).await;
        let refused =
            run(&mut connection, "SELECT bib.audit_detach_month('2026-11-15Z')").await.unwrap_err().to_string();
        assert!(refused.contains("permission denied") || refused.contains("no entry audit.detach"), "{refused}");
        let drop = format!("SELECT bib.audit_drop_month('2026-11-15Z', '{}')", lab.entries[0]);
        let refused = run(&mut connection, &drop).await.unwrap_err().to_string();
        assert!(refused.contains("permission denied") || refused.contains("is not a sealed entry"), "{refused}");
    }
    let context = Context { operation: lab.node.base.ids.operation(), user: None, component: "test" };
    let call = lab.node.call();
    let mut tx = lab.node.base.db.begin_seal(&context).await.unwrap();
    lab.node.base.journal.add(&mut tx, &call, Act::new("audit.detach", "2026-11 x", json!({}))).await.unwrap();
    assert!(audit::detach_month(&mut tx, november).await.unwrap());
    tx.rollback().await.unwrap();
    assert_eq!(lab.months().await[0], "2026-11", "rolled back, all is as it was");
    let taken = beside_the_sequencer(&lab.node, async {
        Box::pin(lab.retention(thirty_days(), &[]).take_out(Month::parse("2026-11").unwrap())).await.unwrap()
    })
    .await;
    assert!(matches!(taken, Taken::Out(ref written) if written.entries == 3), "{taken:?}");
    let again = lab.retention(thirty_days(), &[]);
    let again =
        beside_the_sequencer(&lab.node, async { Box::pin(again.take_out(Month::parse("2026-11").unwrap())).await })
            .await;
    assert!(matches!(again.unwrap(), Taken::Stays(_)));

    // A transaction that is open in the log: the month stays, and acts go on.
    let mut tx = lab.node.base.begin(&call, "test").await.unwrap();
    lab.node.base.journal.add(&mut tx, &call, Act::new("topic.create", "x", json!({}))).await.unwrap();
    let mut other = lab.node.base.db.begin_seal(&context).await.unwrap();
    lab.node.base.journal.add(&mut other, &call, Act::new("audit.detach", "2026-12 x", json!({}))).await.unwrap();
    let december = Month::parse("2026-12").unwrap().begin();
    assert!(matches!(audit::detach_month(&mut other, december).await, Err(bibd_catalog::Error::Collision)));
    other.rollback().await.unwrap();
    tx.commit().await.unwrap();
    lab.node.act("topic:y").await;

    // On a node with backups it is written down, and stays until a backup that was begun later has its archive; what is
    // erased meanwhile is erased there too.
    let begun = Arc::new(Mutex::new(None));
    let asked = Arc::clone(&begun);
    let newest = NewestBackup::new(move || {
        let begun = *asked.lock().unwrap();
        Box::pin(async move { Ok(begun) })
    });
    let december_month = Month::parse("2026-12").unwrap();
    let take_out = async || {
        let retention = lab.retention(thirty_days(), &[]).with_backups(newest.clone());
        beside_the_sequencer(&lab.node, async { Box::pin(retention.take_out(december_month)).await.unwrap() }).await
    };
    assert!(matches!(take_out().await, Taken::Stays(why) if why.contains("next backup")));
    let written = lab.archive().written_at("2026-12").unwrap().unwrap();
    *begun.lock().unwrap() = Some(written.plus_seconds(-1));
    assert!(matches!(take_out().await, Taken::Stays(_)));
    assert_eq!(lab.archive().written_at("2026-12").unwrap(), Some(written), "it is not written anew");
    let has_detail = || lab.archive().find_id("2026-12", lab.entries[3]).unwrap().unwrap().detail.is_some();
    assert!(has_detail());
    let audit = lab.audit();
    beside_the_sequencer(&lab.node, async { audit.erase(&call, lab.entries[3], "she asked for it").await.unwrap() })
        .await;
    assert!(!has_detail());
    assert!(lab.months().await.contains(&"2026-12".to_owned()));

    // Died between detaching and dropping.
    let mut tx = lab.node.base.db.begin_seal(&context).await.unwrap();
    lab.node.base.journal.add(&mut tx, &call, Act::new("audit.detach", "2026-12 x", json!({}))).await.unwrap();
    assert!(audit::detach_month(&mut tx, december).await.unwrap());
    tx.commit().await.unwrap();
    assert!(lab.months().await.contains(&"(2026-12)".to_owned()));
    lab.node.seal().await;
    lab.round(Settings { keep: None, ..Settings::default() }, &[]).await;
    assert!(lab.months().await.iter().all(|month| month.as_str() >= "2027"), "{:?}", lab.months().await);
    let left = "SELECT count(*) FROM pg_class WHERE relname LIKE 'audit_%_2026_1%'";
    assert_eq!(number(&mut attacker, left).await, 0);
    assert_eq!(text(&mut attacker, "SELECT count(*)::text FROM bib.audit_seal WHERE epoch = 1").await, "6");
}
