//! Every tamper of B-AUD, made with `psql`'s rights as superuser on a real log: the Rust and the Python verifier say the
//! same, with the checkpoint file and without it. `tampers.txt` is the list of verdicts.

use bib_identity::NodeKey;
use bibd::clock::Entropy;
use bibd_audit::body::digest;
use bibd_audit::chain::epoch_target;
use bibd_audit::{ChainState, Checkpoint};
use expect_test::expect_file;
use serde_json::Value;
use sqlx::{AssertSqlSafe, PgConnection};
use uuid::Uuid;

use super::node::{Node, machine_has_postgres, run, text};

/// An attacker's own key.
fn other_key() -> NodeKey {
    let folder = tempfile::tempdir().unwrap();
    NodeKey::create(&folder.path().join("key"), &mut Entropy::seeded(99)).unwrap()
}

/// What an attacker does.
enum Tamper {
    /// With SQL alone.
    Sql(&'static str),
    /// With SQL, then makes the chain fit again from the first row on.
    Rechain(&'static str),
    /// As before, and signs the newest checkpoint of the table anew with the node's key.
    RechainWithKey(&'static str),
    /// As before, and puts the new checkpoints into the file too: the attacker has everything.
    RechainWithKeyAndFile(&'static str),
    /// To the checkpoint file.
    File(fn(&[String]) -> Vec<String>),
    /// The file is gone.
    NoFile,
    /// Every note of the file signed by another key.
    ForeignFile,
    /// With SQL, before what waits is sealed and a checkpoint signed.
    BeforeSeal(&'static str),
}

use Tamper::{BeforeSeal, File, ForeignFile, NoFile, Rechain, RechainWithKey, RechainWithKeyAndFile, Sql};

/// `$(EPOCH/SEQ)` stands for the id of the entry sealed there.
const TAMPERS: &[(&str, Tamper)] = &[
    ("nothing", Sql("SELECT 1")),
    ("payload of the first row", Sql("UPDATE bib.audit_entry SET body = overlay(body PLACING 'X' FROM 20) WHERE id = $(1/1)")),
    ("payload of a middle row", Sql("UPDATE bib.audit_entry SET body = overlay(body PLACING 'X' FROM 20) WHERE id = $(1/7)")),
    ("payload of the last row", Sql("UPDATE bib.audit_entry SET body = overlay(body PLACING 'X' FROM 20) WHERE id = $(2/6)")),
    ("body that is not text", Sql(r"UPDATE bib.audit_entry SET body = '\xfffe' WHERE id = $(1/7)")),
    ("actor", Sql("UPDATE bib.audit_entry SET actor = 'user:mallory' WHERE id = $(1/7)")),
    ("target", Sql("UPDATE bib.audit_entry SET target = 'topic:other' WHERE id = $(1/7)")),
    ("result", Sql("UPDATE bib.audit_entry SET result = 'denied' WHERE id = $(1/7)")),
    ("time of the entry", Sql("UPDATE bib.audit_entry SET time = time + interval '1 s' WHERE id = $(1/7)")),
    ("time everywhere", Sql("UPDATE bib.audit_entry SET time = time + interval '1 s' WHERE id = $(1/7);
        UPDATE bib.audit_detail SET time = time + interval '1 s' WHERE id = $(1/7);
        UPDATE bib.audit_seal SET entry_time = entry_time + interval '1 s' WHERE entry_id = $(1/7)")),
    ("previous head", Sql("UPDATE bib.audit_seal SET head = set_byte(head, 3, get_byte(head, 3) # 1) WHERE (epoch, seq) = (1, 6)")),
    ("last head", Sql("UPDATE bib.audit_seal SET head = set_byte(head, 3, get_byte(head, 3) # 1) WHERE (epoch, seq) = (2, 6)")),
    ("digest", Sql("UPDATE bib.audit_seal SET digest = set_byte(digest, 3, get_byte(digest, 3) # 1) WHERE (epoch, seq) = (1, 6)")),
    ("payload and digest", Sql(r"UPDATE bib.audit_entry SET body = convert_to(replace(convert_from(body, 'UTF8'), 'topic:7', 'topic:0'), 'UTF8'), target = 'topic:0' WHERE id = $(1/7);
        UPDATE bib.audit_seal SET digest = sha256('\x6269622d61756469742d656e7472792d763100'::bytea || (SELECT body FROM bib.audit_entry WHERE id = $(1/7))) WHERE (epoch, seq) = (1, 7)")),
    ("gap in the numbers", Sql("UPDATE bib.audit_seal SET seq = seq + 1000 WHERE epoch = 2 AND seq >= 4")),
    ("two neighbours swapped", Sql("UPDATE bib.audit_seal SET seq = 9999 WHERE (epoch, seq) = (1, 6);
        UPDATE bib.audit_seal SET seq = 6 WHERE (epoch, seq) = (1, 7); UPDATE bib.audit_seal SET seq = 7 WHERE (epoch, seq) = (1, 9999)")),
    ("two far rows swapped", Sql("UPDATE bib.audit_seal SET seq = 9999 WHERE (epoch, seq) = (1, 4);
        UPDATE bib.audit_seal SET seq = 4 WHERE (epoch, seq) = (1, 10); UPDATE bib.audit_seal SET seq = 10 WHERE (epoch, seq) = (1, 9999)")),
    ("entries of two seals swapped", Sql("UPDATE bib.audit_seal a SET entry_id = b.entry_id, entry_time = b.entry_time FROM bib.audit_seal b
        WHERE a.epoch = 1 AND b.epoch = 1 AND (a.seq, b.seq) IN ((3, 8), (8, 3))")),
    ("duplicate row", Sql("ALTER TABLE bib.audit_seal DROP CONSTRAINT audit_seal_pkey;
        INSERT INTO bib.audit_seal SELECT * FROM bib.audit_seal WHERE (epoch, seq) = (1, 6)")),
    ("one row deleted", Sql("DELETE FROM bib.audit_seal WHERE (epoch, seq) = (1, 7); DELETE FROM bib.audit_entry WHERE id = $(1/7); DELETE FROM bib.audit_detail WHERE id = $(1/7)")),
    ("one entry deleted", Sql("DELETE FROM bib.audit_entry WHERE id = $(1/7)")),
    ("one seal deleted", Sql("DELETE FROM bib.audit_seal WHERE (epoch, seq) = (1, 7)")),
    ("one row deleted and the numbers closed up", Sql("DELETE FROM bib.audit_seal WHERE (epoch, seq) = (1, 7); DELETE FROM bib.audit_entry WHERE id = $(1/7); DELETE FROM bib.audit_detail WHERE id = $(1/7);
        UPDATE bib.audit_seal SET seq = seq + 1000 WHERE epoch = 1 AND seq > 7; UPDATE bib.audit_seal SET seq = seq - 1001 WHERE epoch = 1 AND seq > 1000")),
    ("first row deleted", Sql("DELETE FROM bib.audit_seal WHERE (epoch, seq) = (1, 1); DELETE FROM bib.audit_entry WHERE id = $(1/1); DELETE FROM bib.audit_detail WHERE id = $(1/1)")),
    ("range deleted", Sql("DELETE FROM bib.audit_entry WHERE id IN (SELECT entry_id FROM bib.audit_seal WHERE epoch = 1 AND seq BETWEEN 4 AND 8);
        DELETE FROM bib.audit_seal WHERE epoch = 1 AND seq BETWEEN 4 AND 8")),
    ("tail truncated", Sql("DELETE FROM bib.audit_entry WHERE id IN (SELECT entry_id FROM bib.audit_seal WHERE epoch = 2 AND seq > 3);
        DELETE FROM bib.audit_detail WHERE id IN (SELECT entry_id FROM bib.audit_seal WHERE epoch = 2 AND seq > 3);
        DELETE FROM bib.audit_seal WHERE epoch = 2 AND seq > 3")),
    ("tail of the first epoch truncated", Sql("DELETE FROM bib.audit_entry WHERE id IN (SELECT entry_id FROM bib.audit_seal WHERE epoch = 1 AND seq > 16);
        DELETE FROM bib.audit_seal WHERE epoch = 1 AND seq > 16")),
    ("everything truncated", Sql("TRUNCATE bib.audit_entry, bib.audit_detail, bib.audit_seal, bib.audit_unsealed")),
    ("everything truncated, checkpoints too", Sql("TRUNCATE bib.audit_entry, bib.audit_detail, bib.audit_seal, bib.audit_unsealed, bib.audit_checkpoint")),
    ("first epoch deleted", Sql("DELETE FROM bib.audit_entry WHERE id IN (SELECT entry_id FROM bib.audit_seal WHERE epoch = 1); DELETE FROM bib.audit_seal WHERE epoch = 1")),
    ("last epoch deleted", Sql("DELETE FROM bib.audit_entry WHERE id IN (SELECT entry_id FROM bib.audit_seal WHERE epoch = 2); DELETE FROM bib.audit_seal WHERE epoch = 2")),
    ("database rolled back to a snapshot", Sql("TRUNCATE bib.audit_entry, bib.audit_detail, bib.audit_seal, bib.audit_unsealed, bib.audit_checkpoint;
        INSERT INTO bib.audit_entry SELECT * FROM early.audit_entry; INSERT INTO bib.audit_detail SELECT * FROM early.audit_detail;
        INSERT INTO bib.audit_seal SELECT * FROM early.audit_seal; INSERT INTO bib.audit_checkpoint SELECT * FROM early.audit_checkpoint")),
    ("forged row inserted", Sql("UPDATE bib.audit_seal SET seq = seq + 1000 WHERE epoch = 1 AND seq > 6; UPDATE bib.audit_seal SET seq = seq - 999 WHERE epoch = 1 AND seq > 1000;
        INSERT INTO bib.audit_entry SELECT '00000000-0000-7000-8000-000000000001', time, convert_to(replace(convert_from(body, 'UTF8'), id::text, '00000000-0000-7000-8000-000000000001'), 'UTF8'), node, actor, via, action, target, result, operation, job FROM bib.audit_entry WHERE id = $(1/7);
        INSERT INTO bib.audit_seal SELECT 1, 7, id, time, sha256(body), sha256(body) FROM bib.audit_entry WHERE id = '00000000-0000-7000-8000-000000000001'")),
    ("forged entry beside the queue", Sql("INSERT INTO bib.audit_entry SELECT '00000000-0000-7000-8000-000000000001', time, convert_to(replace(convert_from(body, 'UTF8'), id::text, '00000000-0000-7000-8000-000000000001'), 'UTF8'), node, actor, via, action, target, result, operation, job FROM bib.audit_entry WHERE id = $(1/7)")),
    ("re-chained without the key", Rechain("UPDATE bib.audit_entry SET body = convert_to(replace(convert_from(body, 'UTF8'), 'topic:7', 'topic:0'), 'UTF8'), target = 'topic:0' WHERE id = $(1/7)")),
    ("re-chained with the key", RechainWithKey("UPDATE bib.audit_entry SET body = convert_to(replace(convert_from(body, 'UTF8'), 'topic:7', 'topic:0'), 'UTF8'), target = 'topic:0' WHERE id = $(1/7)")),
    ("re-chained with the key and the file (not detectable without a copy elsewhere)", RechainWithKeyAndFile("UPDATE bib.audit_entry SET body = convert_to(replace(convert_from(body, 'UTF8'), 'topic:7', 'topic:0'), 'UTF8'), target = 'topic:0' WHERE id = $(1/7)")),
    ("row of an older format, re-chained", Rechain("UPDATE bib.audit_entry SET body = convert_to(replace(convert_from(body, 'UTF8'), 'bib-audit/1', 'bib-audit/0'), 'UTF8') WHERE id = $(1/7)")),
    ("hash algorithm id", Sql("UPDATE bib.audit_entry SET body = convert_to(replace(convert_from(body, 'UTF8'), 'bib-audit/1', 'bib-audit/0'), 'UTF8') WHERE id = $(1/7)")),
    ("body that is no entry, re-chained", Rechain("UPDATE bib.audit_entry SET body = '{}' WHERE id = $(1/7)")),
    ("another spelling, re-chained", Rechain("UPDATE bib.audit_entry SET body = convert_to(replace(convert_from(body, 'UTF8'), '{\"action\"', '{ \"action\"'), 'UTF8') WHERE id = $(1/7)")),
    ("another end of the first epoch named, re-chained", Rechain("UPDATE bib.audit_entry SET body = convert_to(replace(convert_from(body, 'UTF8'), 'audit.epoch', 'audit.other'), 'UTF8'), action = 'audit.other' WHERE id = $(2/1)")),
    ("details deleted", Sql("DELETE FROM bib.audit_detail WHERE id = $(1/7)")),
    ("details changed", Sql("UPDATE bib.audit_detail SET details = '{\"title\":\"other\"}' WHERE id = $(1/7)")),
    ("salt changed", Sql("UPDATE bib.audit_detail SET salt = set_byte(salt, 0, get_byte(salt, 0) # 1) WHERE id = $(1/7)")),
    ("details deleted as audit_erase does", Sql("SET bib.erasing = $(1/7); DELETE FROM bib.audit_detail WHERE id = $(1/7); RESET bib.erasing")),
    ("partition of entries detached", Sql("ALTER TABLE bib.audit_entry DETACH PARTITION bib.audit_entry_2026_11")),
    ("partition of details detached", Sql("ALTER TABLE bib.audit_detail DETACH PARTITION bib.audit_detail_2026_11")),
    ("partition of seals detached", Sql("ALTER TABLE bib.audit_seal DETACH PARTITION bib.audit_seal_1_0")),
    ("queue row deleted", Sql("DELETE FROM bib.audit_unsealed WHERE id = (SELECT id FROM bib.audit_entry WHERE target = 'topic:waiting')")),
    ("waiting entry deleted", Sql("DELETE FROM bib.audit_entry WHERE target = 'topic:waiting'")),
    ("waiting entry's column changed", Sql("UPDATE bib.audit_entry SET actor = 'user:mallory' WHERE target = 'topic:waiting'")),
    (
        "waiting entry changed before its seal",
        BeforeSeal(
            "UPDATE bib.audit_entry SET body = convert_to(replace(convert_from(body, 'UTF8'), 'topic:waiting', 'topic:other'), 'UTF8'), target = 'topic:other' WHERE target = 'topic:waiting'",
        ),
    ),
    ("checkpoints deleted in the table", Sql("TRUNCATE bib.audit_checkpoint")),
    ("one checkpoint deleted in the table", Sql("DELETE FROM bib.audit_checkpoint WHERE (epoch, size) = (1, 10)")),
    ("a checkpoint's size changed in the table", Sql("UPDATE bib.audit_checkpoint SET note = replace(note, E'\\n10\\n', E'\\n9\\n') WHERE (epoch, size) = (1, 10)")),
    ("checkpoint file deleted", NoFile),
    ("one checkpoint deleted in the file", File(|notes| notes.iter().enumerate().filter(|(i, _)| *i != 1).map(|(_, n)| n.clone()).collect())),
    ("checkpoint file cut to its beginning", File(|notes| notes[..2].to_vec())),
    ("checkpoint file signed by another key", ForeignFile),
    ("rubbish in the checkpoint file", File(|notes| notes.iter().cloned().chain(["rubbish\n\nrubbish\n".to_owned()]).collect())),
];

/// Twenty acts over two months and a checkpoint after each fifth, an erasure, a second epoch, one entry that waits.
async fn golden() -> Node {
    let mut node = Node::new().await;
    node.seal().await;
    let mut ids = Vec::new();
    for n in 1..=10 {
        ids.push(node.act(&format!("topic:{n}")).await);
        if n % 5 == 0 {
            node.seal().await;
        }
    }
    let mut attacker = node.attacker().await;
    save(&mut attacker, "early").await;
    node.clock.advance(std::time::Duration::from_secs(7 * 24 * 3600));
    for n in 11..=17 {
        node.act(&format!("topic:{n}")).await;
        if n % 5 == 0 {
            node.seal().await;
        }
    }
    erase(&node, ids[2]).await;
    node.seal().await;
    node.restart(2);
    node.seal().await;
    for n in 18..=22 {
        node.act(&format!("topic:{n}")).await;
    }
    node.seal().await;
    node.act("topic:waiting").await;
    save(&mut attacker, "saved").await;
    node
}

/// As `AuditService::erase` does, without waiting for a sequencer that does not run here.
async fn erase(node: &Node, entry: Uuid) {
    let call = node.call();
    let mut tx = node.base.begin(&call, "test").await.unwrap();
    let act = bibd::services::journal::Act::new("audit.erase", entry.to_string(), serde_json::json!({"reason": "law"}));
    node.base.journal.add(&mut tx, &call, act).await.unwrap();
    assert!(bibd_catalog::audit::erase(&mut tx, entry).await.unwrap());
    tx.commit().await.unwrap();
}

const TABLES: [&str; 6] =
    ["audit_entry", "audit_detail", "audit_seal", "audit_checkpoint", "audit_unsealed", "audit_head"];

async fn save(attacker: &mut PgConnection, schema: &str) {
    run(attacker, &format!("CREATE SCHEMA {schema}")).await.unwrap();
    for table in TABLES {
        run(attacker, &format!("CREATE TABLE {schema}.{table} AS TABLE bib.{table}")).await.unwrap();
    }
}

/// Turns every trigger of the log off, or on again as the migrations had them.
pub(super) async fn arm(attacker: &mut PgConnection, is_armed: bool) {
    let tables = "SELECT string_agg(DISTINCT c.oid::regclass || ' ' || t.tgname, ',') FROM pg_trigger t JOIN pg_class c ON c.oid = t.tgrelid
                  JOIN pg_namespace n ON n.oid = c.relnamespace WHERE n.nspname = 'bib' AND c.relname ~ '^audit' AND NOT t.tgisinternal";
    let triggers = text(attacker, tables).await;
    for (table, trigger) in triggers.split(',').map(|one| one.split_once(' ').unwrap()) {
        let how = if is_armed { "ENABLE ALWAYS" } else { "DISABLE" };
        run(attacker, &format!("ALTER TABLE {table} {how} TRIGGER {trigger}")).await.unwrap();
    }
}

/// The log as it was saved, whatever was done to it.
async fn restore(attacker: &mut PgConnection) {
    arm(attacker, false).await;
    let sql = "
        DO $$ BEGIN
            IF NOT (SELECT relispartition FROM pg_class WHERE oid = 'bib.audit_entry_2026_11'::regclass) THEN
                ALTER TABLE bib.audit_entry ATTACH PARTITION bib.audit_entry_2026_11 FOR VALUES FROM ('2026-11-01 00:00+00') TO ('2026-12-01 00:00+00');
            END IF;
            IF NOT (SELECT relispartition FROM pg_class WHERE oid = 'bib.audit_detail_2026_11'::regclass) THEN
                ALTER TABLE bib.audit_detail ATTACH PARTITION bib.audit_detail_2026_11 FOR VALUES FROM ('2026-11-01 00:00+00') TO ('2026-12-01 00:00+00');
            END IF;
            IF NOT (SELECT relispartition FROM pg_class WHERE oid = 'bib.audit_seal_1_0'::regclass) THEN
                ALTER TABLE bib.audit_seal ATTACH PARTITION bib.audit_seal_1_0 FOR VALUES FROM (1, 1) TO (1, 10000001);
            END IF;
        END $$;
        TRUNCATE bib.audit_entry, bib.audit_detail, bib.audit_seal, bib.audit_checkpoint, bib.audit_unsealed, bib.audit_head;
        INSERT INTO bib.audit_head SELECT * FROM saved.audit_head;
        ALTER TABLE bib.audit_seal DROP CONSTRAINT IF EXISTS audit_seal_pkey;
        INSERT INTO bib.audit_entry SELECT * FROM saved.audit_entry;
        INSERT INTO bib.audit_detail SELECT * FROM saved.audit_detail;
        INSERT INTO bib.audit_seal SELECT * FROM saved.audit_seal;
        INSERT INTO bib.audit_checkpoint SELECT * FROM saved.audit_checkpoint;
        INSERT INTO bib.audit_unsealed (n, id, time, digest) OVERRIDING SYSTEM VALUE SELECT n, id, time, digest FROM saved.audit_unsealed;
        ALTER TABLE bib.audit_seal ADD CONSTRAINT audit_seal_pkey PRIMARY KEY (epoch, seq)";
    run(attacker, sql).await.unwrap();
    arm(attacker, true).await;
}

/// `$(EPOCH/SEQ)` replaced by ids.
async fn sql_of(attacker: &mut PgConnection, sql: &str) -> String {
    let mut out = sql.to_owned();
    while let Some((before, rest)) = out.split_once("$(") {
        let (place, after) = rest.split_once(')').unwrap();
        let (epoch, seq) = place.split_once('/').unwrap();
        let find = format!("SELECT entry_id::text FROM saved.audit_seal WHERE epoch = {epoch} AND seq = {seq}");
        out = format!("{before}'{}'{after}", text(attacker, &find).await);
    }
    out
}

/// Computes every digest and head anew, and lets the second epoch name the new end of the first. Returns the states at
/// which the table has checkpoints.
async fn rechain(attacker: &mut PgConnection) -> Vec<ChainState> {
    let rows: Vec<(i64, i64, Uuid, Vec<u8>)> = sqlx::query_as(
        "SELECT s.epoch, s.seq, s.entry_id, e.body FROM bib.audit_seal s JOIN bib.audit_entry e ON e.id = s.entry_id ORDER BY 1, 2",
    )
    .fetch_all(&mut *attacker)
    .await
    .unwrap();
    let sizes: Vec<(i64, i64)> =
        sqlx::query_as("SELECT epoch, size FROM bib.audit_checkpoint").fetch_all(&mut *attacker).await.unwrap();
    let old =
        text(attacker, "SELECT encode(head, 'hex') FROM saved.audit_seal WHERE epoch = 1 ORDER BY seq DESC LIMIT 1")
            .await;
    let (mut state, mut states) = (ChainState::new(1), Vec::new());
    for (epoch, seq, id, mut body) in rows {
        if state.epoch != epoch.unsigned_abs() {
            let target = epoch_target(&state);
            let new = target.rsplit('/').next().unwrap().to_owned();
            body = String::from_utf8(body).unwrap().replace(&old, &new).into_bytes();
            sqlx::query("UPDATE bib.audit_entry SET body = $1, target = $2 WHERE id = $3")
                .bind(&body)
                .bind(&target)
                .bind(id)
                .execute(&mut *attacker)
                .await
                .unwrap();
            state = ChainState::new(epoch.unsigned_abs());
        }
        let seal = state.seal([(id, digest(&body))]).remove(0);
        sqlx::query("UPDATE bib.audit_seal SET digest = $1, head = $2 WHERE epoch = $3 AND seq = $4")
            .bind(seal.digest.as_bytes().to_vec())
            .bind(seal.head.as_bytes().to_vec())
            .bind(epoch)
            .bind(seq)
            .execute(&mut *attacker)
            .await
            .unwrap();
        if sizes.contains(&(epoch, seq)) {
            states.push(state.clone());
        }
    }
    states
}

fn signed(node: &Node, state: &ChainState) -> String {
    let checkpoint = Checkpoint::of(node.base.peer, state);
    let signature = node.base.key.sign_checkpoint(checkpoint.text().as_bytes()).unwrap();
    checkpoint.sign(&|_| signature).to_string()
}

fn write_file(node: &Node, notes: &[String]) {
    let text: String = notes.iter().map(|note| format!("{note}\n")).collect();
    std::fs::write(node.file.path(), text).unwrap();
}

async fn tamper(node: &Node, attacker: &mut PgConnection, tamper: &Tamper, notes: &[String]) {
    match tamper {
        Sql(sql) | BeforeSeal(sql) | Rechain(sql) | RechainWithKey(sql) | RechainWithKeyAndFile(sql) => {
            arm(attacker, false).await;
            let sql = sql_of(attacker, sql).await;
            run(attacker, &sql).await.unwrap_or_else(|error| panic!("{error}: {sql}"));
        }
        File(change) => write_file(node, &change(notes)),
        NoFile => std::fs::remove_file(node.file.path()).unwrap(),
        ForeignFile => {
            let key = other_key();
            let foreign = |text: &String| {
                let checkpoint = Checkpoint::open(text, node.base.peer.public_key()).unwrap();
                let signature = key.sign_checkpoint(checkpoint.text().as_bytes()).unwrap();
                checkpoint.sign(&|_| signature).to_string()
            };
            write_file(node, &notes.iter().map(foreign).collect::<Vec<_>>());
        }
    }
    if !matches!(tamper, Rechain(_) | RechainWithKey(_) | RechainWithKeyAndFile(_)) {
        return;
    }
    let states = rechain(attacker).await;
    if matches!(tamper, Rechain(_)) {
        return;
    }
    for state in &states {
        let sql =
            format!("UPDATE bib.audit_checkpoint SET note = $1 WHERE epoch = {} AND size = {}", state.epoch, state.seq);
        sqlx::query(AssertSqlSafe(sql)).bind(signed(node, state)).execute(&mut *attacker).await.unwrap();
    }
    if matches!(tamper, RechainWithKeyAndFile(_)) {
        write_file(node, &states.iter().map(|state| signed(node, state)).collect::<Vec<_>>());
    }
}

fn line(verdict: &Value) -> String {
    match verdict["verdict"].as_str().unwrap() {
        "TAMPERED" => {
            let at = &verdict["first_bad"];
            format!("TAMPERED {} {}/{}", verdict["class"].as_str().unwrap(), at[0], at[1])
        }
        other => format!("{other} {}", verdict["entries"]),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn b_aud_50_every_tamper_on_a_real_server_is_judged_alike_by_both_verifiers() {
    if !machine_has_postgres().await {
        return;
    }
    let node = golden().await;
    let notes = node.file.read().unwrap().notes;
    let mut attacker = node.attacker().await;
    let (mut list, mut wrong) = (String::new(), Vec::new());
    for (name, what) in TAMPERS {
        restore(&mut attacker).await;
        write_file(&node, &notes);
        tamper(&node, &mut attacker, what, &notes).await;
        arm(&mut attacker, true).await;
        if matches!(what, BeforeSeal(_)) {
            node.seal().await;
        }
        list += &format!("{name}\n");
        for (with_file, word) in [(true, "with the checkpoint file"), (false, "without it")] {
            let (rust, python) = node.verdicts(with_file).await;
            if rust != python {
                wrong.push(format!("{name}, {word}\n  rust   {rust}\n  python {python}"));
            }
            list += &format!("  {word}: {}\n", line(&rust));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    expect_file!["tampers.txt"].assert_eq(&list);
}

#[test]
fn the_golden_list_finds_every_tamper_that_can_be_found() {
    let list = include_str!("tampers.txt");
    let records: Vec<Vec<&str>> = list.lines().collect::<Vec<_>>().chunks(3).map(<[&str]>::to_vec).collect();
    assert_eq!(records.len(), TAMPERS.len());
    for (record, (name, what)) in records.iter().zip(TAMPERS) {
        assert_eq!(record[0], *name);
        let (with, without) = (record[1].split_once(": ").unwrap().1, record[2].split_once(": ").unwrap().1);
        assert!(!without.starts_with("OK"), "{name}: never OK without a checkpoint from outside");
        let undetectable = matches!(what, RechainWithKeyAndFile(_)) || *name == "nothing";
        let expected = match what {
            NoFile => "UNVERIFIED",
            _ if undetectable => "OK",
            _ => "TAMPERED",
        };
        assert!(with.starts_with(expected), "{name}: {with}");
    }
}
