//! Break-glass in a whole daemon, driven by the real `psql`: recorded before it is passed on, cut in time, and nothing
//! left.
#![allow(
    clippy::unwrap_used,
    clippy::print_stderr,
    clippy::disallowed_methods,
    reason = "tests say what they measured and spawn tasks"
)]

#[allow(dead_code, reason = "shared with the other tests of break-glass")]
#[path = "break_glass/node.rs"]
mod node;

use std::time::Duration;

use bib_core::access::GlassAccess::{ReadOnly, ReadWrite};
use bib_core::glass::GLASS_NAMESPACE;
use bib_core::signature::LOGIN_NAMESPACE;
use bibd::clock::Clock as _;
use futures::TryStreamExt as _;
use node::*;
use serde_json::Value;
use sqlx::{Executor as _, Row as _};

/// How long a cut may take on a machine that does other things; `cargo xtask bench break-glass` holds what is promised.
const CUT_WITHIN: Duration = Duration::from_secs(60);

fn kinds(lines: &[Value], kind: &str) -> Vec<String> {
    let of_kind = lines.iter().filter(|line| line["kind"] == kind);
    of_kind.map(|line| line["text"].as_str().unwrap_or_default().to_owned()).collect()
}

#[tokio::test]
async fn a_grant_is_asked_for_by_who_may_confirmed_with_a_named_key_and_for_what_was_signed() {
    let Some(place) = Place::new().await else { return };
    let (key, other) = (place.key("key"), place.key("other"));
    let off = Node::start(&place, "").await;
    assert_eq!(code(&Attempt::begin(&off, &key).await.err().expect("off unless configured")), "BIB0600");
    assert!(!off.status().await.enabled);
    off.stop().await;

    let database = place.allowing(&key).replace("readwrite", "readonly").replace("false", "true");
    let node = Node::start(&place, &database).await;
    assert_eq!(code(&Attempt::of(&node, &key, 3_601, "readonly").await.err().unwrap()), "BIB0605");
    assert_eq!(code(&Attempt::of(&node, &key, 0, "readonly").await.err().unwrap()), "BIB0605");
    assert_eq!(code(&Attempt::of(&node, &key, 60, "readwrite").await.err().unwrap()), "BIB0606");

    // Whoever signs something else than what was asked for.
    type Bend = fn(&mut Attempt);
    let bends: [(&str, Bend); 7] = [
        ("BIB0602", |attempt| attempt.statement.challenge = [0; 32]),
        ("BIB0602", |attempt| attempt.statement.reason = "another".to_owned()),
        ("BIB0602", |attempt| attempt.statement.duration_s = 3_600),
        ("BIB0602", |attempt| attempt.statement.access = ReadWrite),
        ("BIB0602", |attempt| attempt.statement.user = "eve".to_owned()),
        ("BIB0604", |attempt| attempt.namespace = LOGIN_NAMESPACE),
        ("BIB0601", |attempt| attempt.challenge_id = uuid::Uuid::nil().to_string()),
    ];
    for (expected, bend) in bends {
        let mut attempt = Attempt::begin(&node, &key).await.unwrap();
        bend(&mut attempt);
        assert_eq!(attempt.refused(&node, &key).await, expected);
    }
    let mut elsewhere = Attempt::begin(&node, &key).await.unwrap();
    elsewhere.statement.node = bib_core::PeerId::from_public_key([7; 32]);
    assert_eq!(elsewhere.refused(&node, &key).await, "BIB0602");
    assert_eq!(Attempt::begin(&node, &other).await.unwrap().refused(&node, &other).await, "BIB0603");
    // It names the allowed key and is signed by another one.
    assert_eq!(Attempt::begin(&node, &key).await.unwrap().refused(&node, &other).await, "BIB0604");
    let late = Attempt::begin(&node, &key).await.unwrap();
    node.clock.advance(Duration::from_secs(60));
    assert_eq!(late.refused(&node, &key).await, "BIB0601");

    let attempt = Attempt::begin(&node, &key).await.unwrap();
    assert_eq!(attempt.namespace, GLASS_NAMESPACE);
    let signed = attempt.signed(&key);
    let grant = node.raw().await.enable(signed.clone()).await.unwrap().into_inner().grant.unwrap();
    assert_eq!(
        (grant.state.as_str(), grant.key_name.as_str(), grant.access.as_str()),
        ("open", "emergency", "readonly")
    );
    let again = node.raw().await.enable(signed).await.unwrap_err();
    assert_eq!(code(&again), "BIB0601", "a challenge is answered once");
    assert_eq!(code(&Attempt::begin(&node, &key).await.err().unwrap()), "BIB0607");

    node.client().break_glass().disable("").await.unwrap();
    assert_eq!(code(&Attempt::begin(&node, &key).await.err().unwrap()), "BIB0609", "the review comes first");
    assert_eq!(refused(node.client().break_glass().review(&grant.grant_id, " ").await), "BIB0003");
    let reviewed = node.client().break_glass().review("", "nothing odd").await.unwrap();
    assert_eq!((reviewed.grant_id, reviewed.review.as_str()), (grant.grant_id, "nothing odd"));
    assert_eq!(refused(node.client().break_glass().review("", "again").await), "BIB0010");
    Attempt::begin(&node, &key).await.unwrap();
    let all = node.entries("break_glass.").await;
    let of = |action: &str, result: &str| all.iter().filter(|e| e.0 == action && e.2 == result).count();
    assert_eq!([of("break_glass.enable", "intent"), of("break_glass.enable", "ok")], [1, 1]);
    assert_eq!([of("break_glass.end", "ok"), of("break_glass.review", "ok")], [1, 1]);
    assert!(all.iter().all(|entry| entry.3["break_glass"] == true), "{all:?}");
    assert!(left(&mut node.superuser().await).await.is_empty());
    node.stop().await;
}

#[tokio::test]
async fn b_aud_59_whatever_is_said_is_in_the_recording_and_in_the_log_however_it_is_hidden() {
    let Some(place) = Place::new().await else { return };
    whatever_is_said_is_recorded(place).await;
}

#[tokio::test]
async fn b_aud_59_the_same_over_tcp() {
    let Some(place) = Place::over_tcp().await else { return };
    whatever_is_said_is_recorded(place).await;
}

async fn whatever_is_said_is_recorded(place: Place) {
    let key = place.key("key");
    let node = Node::start(&place, &place.allowing(&key)).await;
    node.open(key, ReadWrite, 600).await;
    let bridge = Bridge::new(node.client());
    let secret = hex::encode("DELETE FROM bib.settings WHERE key = 'hidden'");
    let said = bridge
        .psql(&format!(
            "INSERT INTO bib.settings (key, value, updated_at) VALUES ('hidden', '1', now());\n\
             DO $x$ BEGIN EXECUTE convert_from(decode('{secret}', 'hex'), 'UTF8'); END $x$;\n\
             PREPARE p AS SELECT count(*) FROM bib.settings WHERE key = $1;\n\
             EXECUTE p('hidden');\n\
             \\copy bib.settings (key, value, updated_at) from stdin\n\
             copied\t{{\"a\": 7}}\tnow\n\
             \\.\n\
             \\copy (SELECT key FROM bib.settings WHERE key = 'copied') to stdout\n\
             SELECT 'half\n"
        ))
        .await;
    assert_eq!(
        said.out.lines().collect::<Vec<_>>(),
        ["INSERT 0 1", "DO", "PREPARE", "0", "COPY 1", "copied"],
        "{said:?}"
    );

    let mut connection = bridge.sqlx().await.unwrap();
    let row = connection.fetch_one(sqlx::query("SELECT $1::text || 'x', $2::int").bind("a bound value").bind(7)).await;
    assert_eq!(row.unwrap().get::<String, _>(0), "a bound valuex");
    sqlx::Connection::close(connection).await.unwrap();
    let sessions = async || node.client().break_glass().sessions("").try_collect::<Vec<_>>().await.unwrap();
    let is_over = async || sessions().await.iter().all(|session| !session.ended_at.is_empty());
    wait_for("their ends", Duration::from_secs(30), is_over).await;
    node.client().break_glass().disable("").await.unwrap();

    let lines = node.recorded().await;
    let queries = kinds(&lines, "query");
    assert!(queries.iter().any(|text| text.contains(&secret)), "{queries:?}");
    assert!(queries.iter().any(|text| text.contains("EXECUTE p('hidden')")), "{queries:?}");
    assert!(kinds(&lines, "nested").iter().any(|text| text.contains("DELETE FROM bib.settings")), "{lines:?}");
    let copied = "copied\t{\"a\": 7}\tnow\n";
    let copy_in = lines.iter().find(|line| line["kind"] == "copy_in").unwrap();
    // Some `psql` send the line that ends the data, too.
    let sent = [copied.to_owned(), format!("{copied}\\.\n")];
    let of = |data: &String| {
        copy_in["bytes"] == data.len() && copy_in["sha256"] == bib_core::Hash::of(data.as_bytes()).to_string()
    };
    assert!(sent.iter().any(of), "{copy_in}");
    let copy_out = lines.iter().find(|line| line["kind"] == "copy_out").unwrap();
    assert_eq!(copy_out["bytes"], "copied\n".len());
    assert!(lines.iter().any(|line| line["kind"] == "copy_in_data" && line["data"].to_string().contains("copied")));
    let bind = lines.iter().find(|line| line["kind"] == "bind").unwrap();
    assert!(
        bind["values"].to_string().contains("a bound value")
            || bind.to_string().contains(&hex::encode("a bound value"))
    );
    assert!(kinds(&lines, "parse").iter().any(|text| text.contains("$1::text")));
    assert!(lines.iter().any(|line| line["kind"] == "row" && line["values"].to_string().contains("a bound valuex")));

    // Each that was run is in the audit log, with the recording up to it.
    let logged = node.entries("break_glass.statement").await;
    let acts: Vec<&Value> = logged.iter().flat_map(|entry| entry.3["acts"].as_array().unwrap()).collect();
    for line in lines
        .iter()
        .filter(|line| matches!(line["kind"].as_str(), Some("query" | "parse" | "bind" | "execute" | "copy_in")))
    {
        let found =
            acts.iter().any(|act| act["kind"] == line["kind"] && act["n"] == line["n"] && act["text"] == line["text"]);
        assert!(found, "{line} is not in {acts:?}");
    }
    let sessions = sessions().await;
    assert!(sessions.len() >= 2 && sessions.iter().all(|session| session.end_reason == "left"), "{sessions:?}");
    for session in &sessions {
        let path = place.path("recordings").join(&session.grant_id).join(format!("{}.jsonl", session.session_id));
        let bytes = std::fs::read(path).unwrap();
        assert_eq!(session.recording_sha256, bib_core::Hash::of(&bytes).to_string());
        for (_, target, _, details) in logged.iter().filter(|entry| entry.1 == session.session_id) {
            let mark = usize::try_from(details["recording"]["lines"].as_u64().unwrap()).unwrap();
            let until = bytes.split_inclusive(|byte| *byte == b'\n').take(mark).map(<[u8]>::len).sum::<usize>();
            assert_eq!(details["recording"]["sha256"], bib_core::Hash::of(&bytes[..until]).to_string(), "{target}");
        }
    }
    let cast = std::fs::read_dir(place.path("recordings")).unwrap().count();
    assert_eq!(cast, 1, "one grant");
    node.stop().await;
}

#[tokio::test]
async fn b_aud_58_no_statement_inside_of_another_hides_by_its_form_or_its_length() {
    let Some(place) = Place::new().await else { return };
    let key = place.key("key");
    let node = Node::start(&place, &place.allowing(&key)).await;
    node.open(key, ReadWrite, 600).await;
    let bridge = Bridge::new(node.client());
    // What a role may set for itself changes nothing of what the server tells.
    let said = bridge.run("ALTER ROLE CURRENT_USER RESET ALL;").await;
    assert_eq!(said.out, "ALTER ROLE\n", "{said:?}");
    let hidden = hex::encode("DELETE /*\nlike a plan  (cost=\n*/ FROM bib.settings WHERE key = 'by its form'");
    let said = bridge
        .psql(&format!(
            "RESET ALL; DISCARD ALL; SET client_min_messages = error;\n\
             DO $x$ BEGIN EXECUTE convert_from(decode('{hidden}', 'hex'), 'UTF8'); END $x$;\n\
             DO $x$ BEGIN EXECUTE '/*' || repeat('x', 3000000) || '*/ DELETE FROM bib.settings WHERE key = '\n\
                          || quote_literal('by its ' || 'length'); END $x$;\n"
        ))
        .await;
    assert_eq!(said.err, "", "{said:?}");
    let said = bridge
        .psql("DO $x$ BEGIN EXECUTE '/*' || repeat('x', 20000000) || '*/ DELETE FROM bib.settings'; END $x$;\n")
        .await;
    assert!(said.err.contains("cannot be recorded"), "{said:?}");
    assert_eq!(node.status().await.grant.unwrap().state, "open", "that session alone was cut");
    node.client().break_glass().disable("").await.unwrap();
    let nested = kinds(&node.recorded().await, "nested");
    for text in ["WHERE key = 'by its form'", "WHERE key = 'by its length'"] {
        assert!(nested.iter().any(|found| found.contains(text)), "{text}: {} were told", nested.len());
    }
    node.stop().await;
}

#[tokio::test]
async fn b_aud_58_what_is_forbidden_stays_forbidden() {
    let Some(place) = Place::new().await else { return };
    let key = place.key("key");
    let node = Node::start(&place, &place.allowing(&key)).await;
    node.open(key, ReadWrite, 600).await;
    let bridge = Bridge::new(node.client());
    for sql in [
        "INSERT INTO bib.audit_entry SELECT * FROM bib.audit_entry LIMIT 1",
        "UPDATE bib.audit_detail SET salt = salt",
        "DELETE FROM bib.audit_seal",
        "TRUNCATE bib.audit_entry",
        "TRUNCATE bib.settings",
        "UPDATE bib.glass_grants SET reason = 'x'",
        "DELETE FROM bib.glass_sessions",
        "SELECT bib.audit_erase('00000000-0000-0000-0000-000000000000')",
        "CREATE ROLE eve LOGIN",
        "ALTER ROLE bibd_service_a LOGIN",
        "CREATE TABLE bib.eve (a int)",
        "CREATE TABLE eve (a int)",
        "CREATE TEMP TABLE eve (a int)",
        "CREATE FUNCTION bib.eve() RETURNS int LANGUAGE sql SECURITY DEFINER AS 'SELECT 1'",
        "CREATE TRIGGER eve BEFORE INSERT ON bib.settings FOR EACH ROW EXECUTE FUNCTION bib.audit_refuse()",
        "CREATE EVENT TRIGGER eve ON ddl_command_start EXECUTE FUNCTION bib.audit_refuse()",
        "CREATE SCHEMA eve",
        "CREATE EXTENSION dblink",
        "ALTER SYSTEM SET log_statement = 'none'",
        "SET log_statement = 'none'",
        "SET auto_explain.log_min_duration = -1",
        "SET session_preload_libraries = ''",
        "ALTER ROLE CURRENT_USER SET session_preload_libraries = ''",
        "ALTER ROLE CURRENT_USER RESET session_preload_libraries",
        "ALTER ROLE CURRENT_USER RESET auto_explain.log_min_duration",
        "ALTER ROLE CURRENT_USER VALID UNTIL 'infinity'",
        "ALTER ROLE CURRENT_USER CONNECTION LIMIT -1",
        "SET session_replication_role = replica",
        "SET temp_file_limit = -1",
        "SET ROLE bibd_owner",
        "SET ROLE bibd_glass_read",
        "SET SESSION AUTHORIZATION bibd_admin",
        "LOAD 'dblink'",
        "COPY bib.settings TO PROGRAM 'cat'",
        "COPY bib.settings TO '/tmp/eve'",
        "COPY bib.settings FROM '/etc/passwd'",
        "SELECT pg_read_file('postgresql.conf')",
        "SELECT lo_import('/etc/passwd')",
        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename = 'bibd_service_a'",
        "SELECT rolpassword FROM pg_authid",
        "SELECT pg_switch_wal()",
    ] {
        let said = bridge.run(&format!("{sql};")).await;
        assert!(said.err.contains("ERROR:") && said.out.is_empty(), "{sql}: {said:?}");
    }
    // Reading what was done is what an emergency needs.
    for sql in ["SELECT count(*) > 0 FROM bib.audit_entry", "SELECT count(*) = 1 FROM bib.glass_grants"] {
        assert_eq!(bridge.run(&format!("{sql};")).await.out, "t\n", "{sql}");
    }
    // Past the protocol: no replication, no options, no other user.
    for (name, value) in [("PGOPTIONS", "-c search_path=x"), ("PGREPLICATION", "")] {
        let parameter =
            if name == "PGOPTIONS" { format!("options='{value}'") } else { "replication=database".to_owned() };
        let said = bridge.psql(&format!("\\connect \"dbname=bib {parameter}\"\n")).await;
        assert!(said.err.contains("cannot be set in a break-glass session"), "{said:?}");
    }
    let said = bridge.psql("\\connect - bibd_admin\nSELECT current_user ~ '^bibd_glass_';\n").await;
    assert!(said.out.ends_with("t\n"), "{said:?}");
    node.stop().await;
}

#[tokio::test]
async fn a_reader_changes_nothing() {
    let Some(place) = Place::new().await else { return };
    let key = place.key("key");
    let node = Node::start(&place, &place.allowing(&key)).await;
    node.open(key, ReadOnly, 600).await;
    let bridge = Bridge::new(node.client());
    let said = bridge
        .psql(
            "SET default_transaction_read_only = off;\nDELETE FROM bib.settings;\nUPDATE bib.users SET name = 'x';\n\
             INSERT INTO bib.settings (key, value, updated_at) VALUES ('a', '1', now());\nSELECT count(*) > 0 FROM bib.users;\n",
        )
        .await;
    assert_eq!(said.out, "SET\nt\n", "{said:?}");
    assert_eq!(said.err.matches("permission denied").count(), 3, "{said:?}");
    node.stop().await;
}

/// Something that goes on for an hour, however the server is asked to stop it.
const STUBBORN: &str = "DO $$ BEGIN LOOP BEGIN PERFORM pg_sleep(3600);
                        EXCEPTION WHEN query_canceled THEN NULL; END; END LOOP; END $$;";

#[tokio::test]
async fn b_aud_57_a_session_is_cut_at_its_end_whatever_it_does() {
    let Some(place) = Place::new().await else { return };
    cut_at_its_end(place).await;
}

#[tokio::test]
async fn b_aud_57_a_session_over_tcp_is_cut_at_its_end() {
    let Some(place) = Place::over_tcp().await else { return };
    cut_at_its_end(place).await;
}

async fn cut_at_its_end(place: Place) {
    let keys: Vec<_> = ["a", "b"].iter().map(|name| place.key(name)).collect();
    let both = place.allowing(&keys[0]).replace(
        "allowed_users:\n",
        &format!("allowed_users:\n      - name: second\n        public_key: \"{}\"\n", keys[1].public().to_line()),
    );
    let node = Node::start(&place, &both).await;
    let mut keys = keys.into_iter();
    for backwards in [false, true] {
        node.open(keys.next().unwrap(), ReadWrite, 60).await;
        let bridge = Bridge::new(node.client());
        let idle = bridge.talk("SELECT 1;").await;
        let in_transaction = bridge.talk("BEGIN; DELETE FROM bib.settings;").await;
        let running = bridge.talk("SELECT pg_sleep(3600);").await;
        let stubborn = bridge.talk(STUBBORN).await;
        let mut superuser = node.superuser().await;
        let busy = "SELECT state::text FROM pg_stat_activity WHERE usename ~ '^bibd_glass_' ORDER BY 1";
        let wanted = ["active", "active", "idle", "idle in transaction"];
        wait_for("four sessions", Duration::from_secs(30), async || texts(&mut superuser, busy).await == wanted).await;
        let fifth = bridge.run("SELECT 1;").await;
        assert!(fifth.err.contains("at most 4 sessions"), "{fifth:?}");
        if backwards {
            // A clock that is set back changes nothing: the other one counts.
            let then = node.clock.now().plus_seconds(-86_400);
            node.make_month(then).await;
            node.clock.jump_to(then);
        }
        node.clock.advance(Duration::from_secs(59));
        tokio::time::sleep(Duration::from_secs(1)).await;
        assert_eq!(texts(&mut superuser, busy).await, wanted, "not before its time");
        node.clock.advance(Duration::from_secs(1));
        let took = wait_for("the cut", CUT_WITHIN, async || left(&mut superuser).await.is_empty()).await;
        eprintln!("four sessions were cut, and the role was gone, after {took:?}");
        const OVER: &str = "the time of this break-glass grant is over";
        for talk in [idle, in_transaction] {
            let said = talk.too_late().await;
            assert!(said.err.contains(OVER), "{said:?}");
        }
        for talk in [running, stubborn] {
            let said = talk.leave().await;
            assert!(said.err.contains(OVER), "{said:?}");
        }
        assert_eq!(node.ended().await, "expired");
    }
    node.stop().await;
}

/// Every process of the node's PostgreSQL, stopped as one that hangs; they go on when this is dropped.
struct Hanging(Vec<rustix::process::Pid>);

impl Hanging {
    fn of(place: &Place) -> Self {
        let directory = place.path("data/postgres/data");
        let processes = std::fs::read_dir("/proc").unwrap().flatten().map(|process| process.path());
        let ours = processes.filter(|path| std::fs::read_link(path.join("cwd")).is_ok_and(|cwd| cwd == directory));
        let numbers = ours.filter_map(|path| path.file_name()?.to_str()?.parse().ok());
        let hanging = Self(numbers.filter_map(rustix::process::Pid::from_raw).collect());
        hanging.signal(rustix::process::Signal::STOP);
        hanging
    }

    fn signal(&self, signal: rustix::process::Signal) {
        for pid in &self.0 {
            // A session that ended meanwhile needs none.
            let _ = rustix::process::kill_process(*pid, signal);
        }
    }
}

impl Drop for Hanging {
    fn drop(&mut self) {
        self.signal(rustix::process::Signal::CONT);
    }
}

#[tokio::test]
async fn a_database_that_hangs_holds_back_no_end() {
    let Some(place) = Place::new().await else { return };
    let key = place.key("key");
    let node = Node::start(&place, &place.allowing(&key)).await;
    node.open(key, ReadWrite, 60).await;
    let bridge = Bridge::new(node.client());
    let running = bridge.talk("SELECT pg_sleep(3600);").await;
    let mut superuser = node.superuser().await;
    let busy = "SELECT state::text FROM pg_stat_activity WHERE usename ~ '^bibd_glass_'";
    wait_for("the statement", Duration::from_secs(30), async || texts(&mut superuser, busy).await == ["active"]).await;
    let hanging = Hanging::of(&place);
    assert!(hanging.0.len() > 4, "{:?}", hanging.0);
    // Not a wait for something: by then the daemon has asked the database who is in, which it does every second.
    tokio::time::sleep(Duration::from_millis(1_500)).await;
    node.clock.advance(Duration::from_secs(60));
    let said = running.leave().await;
    assert!(!said.err.is_empty() && said.code != Some(0), "{said:?}");
    drop(hanging);
    wait_for("the role is gone", CUT_WITHIN, async || left(&mut superuser).await.is_empty()).await;
    assert_eq!(node.ended().await, "expired");
    node.stop().await;
}

#[tokio::test]
async fn a_statement_that_cannot_be_recorded_is_not_run_and_the_session_is_cut() {
    let Some(place) = Place::new().await else { return };
    let key = place.key("key");
    let again = ssh_copy(&place, "key");
    let node = Node::start(&place, &place.allowing(&key)).await;
    let grant = node.open(key, ReadWrite, 600).await;
    let bridge = Bridge::new(node.client());

    // Somebody removes the recording: nothing is said, and the session ends all the same.
    let idle = bridge.talk("SELECT 1;").await;
    let directory = place.path("recordings").join(&grant.grant_id);
    let recording = || {
        std::fs::read_dir(&directory).unwrap().flatten().find(|e| e.path().extension().is_some_and(|x| x == "jsonl"))
    };
    wait_for("a recording", Duration::from_secs(30), async || recording().is_some()).await;
    let mut superuser = node.superuser().await;
    let inside = "SELECT pid::text FROM pg_stat_activity WHERE usename ~ '^bibd_glass_'";
    wait_for("the session", Duration::from_secs(30), async || texts(&mut superuser, inside).await.len() == 1).await;
    std::fs::remove_file(recording().unwrap().path()).unwrap();
    let took = wait_for("the cut", CUT_WITHIN, async || texts(&mut superuser, inside).await.is_empty()).await;
    eprintln!("a session without a recorder was cut after {took:?}");
    let said = idle.too_late().await;
    assert!(said.err.contains("the recording of this session cannot be written"), "{said:?}");
    assert_eq!(node.ended().await, "recorder");

    // The audit log takes nothing any more: what is said next is not run.
    node.open(again, ReadWrite, 600).await;
    let mut talk = bridge.talk("SELECT 1;").await;
    wait_for("the session", Duration::from_secs(30), async || texts(&mut superuser, inside).await.len() == 1).await;
    superuser.execute("REVOKE INSERT ON bib.audit_entry FROM bibd_service").await.unwrap();
    talk.say("INSERT INTO bib.settings (key, value, updated_at) VALUES ('unrecorded', '1', now());").await;
    wait_for("the cut", CUT_WITHIN, async || texts(&mut superuser, inside).await.is_empty()).await;
    superuser.execute("GRANT INSERT ON bib.audit_entry TO bibd_service").await.unwrap();
    let said = talk.leave().await;
    assert!(said.err.contains("cannot be written") && !said.out.contains("INSERT"), "{said:?}");
    let unrecorded = "SELECT key FROM bib.settings WHERE key = 'unrecorded'";
    assert_eq!(texts(&mut superuser, unrecorded).await, Vec::<String>::new(), "it was run");
    assert_eq!(node.ended().await, "recorder");
    node.stop().await;
}

/// A key once more, from its file: a client takes it along.
fn ssh_copy(place: &Place, name: &str) -> bib_identity::ssh::UserKey {
    bib_identity::ssh::UserKey::load(&place.path(name), &mut |_| None).unwrap()
}

#[tokio::test]
async fn a_recording_that_is_as_large_as_it_may_be_ends_the_session() {
    let Some(place) = Place::new().await else { return };
    let key = place.key("key");
    let database = place.allowing(&key).replace("    recordings", "    max_recording: 1MiB\n    recordings");
    let node = Node::start(&place, &database).await;
    node.open(key, ReadWrite, 600).await;
    let bridge = Bridge::new(node.client());
    let said = bridge.run("SELECT repeat('x', 1000) FROM generate_series(1, 100000);").await;
    assert!(said.err.contains("the recording of this session cannot be written"), "{}", said.err);
    assert_eq!(node.ended().await, "recorder");
    node.stop().await;
}

#[tokio::test]
async fn b_aud_58_whoever_ends_it_everybody_is_out_and_the_report_says_what_is_not_as_it_was() {
    let Some(place) = Place::new().await else { return };
    let key = place.key("key");
    let node = Node::start(&place, &place.allowing(&key)).await;
    let grant = node.open(key, ReadWrite, 600).await;
    let bridge = Bridge::new(node.client());
    let stays = bridge.talk("SELECT 1;").await;
    let said = bridge.psql("SELECT lo_create(4242);\nALTER ROLE CURRENT_USER SET search_path = pg_temp;\nALTER ROLE CURRENT_USER PASSWORD 'mine';\n").await;
    assert_eq!(said.err, "", "{said:?}");
    let mut superuser = node.superuser().await;
    superuser.execute("CREATE FUNCTION bib.odd() RETURNS int LANGUAGE sql AS 'SELECT 1'").await.unwrap();
    let ended = node.client().break_glass().disable(&grant.grant_id).await.unwrap();
    assert_eq!((ended.state.as_str(), ended.end_reason.as_str(), ended.sessions), ("ended", "disabled", 2));
    assert!(left(&mut superuser).await.is_empty());
    assert!(stays.too_late().await.err.contains("break-glass was disabled"));
    assert_eq!(refused(node.client().break_glass().disable("").await), "BIB0608");
    let gone = bridge.run("SELECT 1;").await;
    assert!(gone.code == Some(2), "{gone:?}");

    let report: Value =
        serde_json::from_str(&node.client().break_glass().report(&grant.grant_id).await.unwrap()).unwrap();
    let changes: Vec<(&str, &str)> = report["changes"]
        .as_array()
        .unwrap()
        .iter()
        .map(|change| (change["kind"].as_str().unwrap(), change["name"].as_str().unwrap()))
        .collect();
    assert!(changes.contains(&("function", "bib.odd()")) && changes.contains(&("large object", "4242")), "{changes:?}");
    assert!(changes.iter().any(|(kind, _)| *kind == "role setting") && changes.len() == 3, "{changes:?}");
    assert_eq!(
        (report["password_changed"].as_bool(), report["statements"].as_u64()),
        (Some(true), Some(4)),
        "{report}"
    );
    assert_eq!(report["sessions"].as_array().unwrap().len(), 2);
    assert!(report.to_string().contains("SELECT lo_create(4242)"));
    // The signed statement is in it, and ssh-keygen would take it: here the library does.
    let statement = report["signed_statement"].as_str().unwrap();
    let public = ssh_copy(&place, "key").public().clone();
    bib_identity::ssh::verify(&public, GLASS_NAMESPACE, statement.as_bytes(), report["signature"].as_str().unwrap())
        .unwrap();
    assert_eq!(texts(&mut superuser, "SELECT oid::text FROM pg_largeobject_metadata").await, Vec::<String>::new());
    node.stop().await;
}

#[tokio::test]
async fn a_session_that_does_not_come_through_the_proxy_ends_the_grant() {
    let Some(place) = Place::new().await else { return };
    let key = place.key("key");
    let node = Node::start(&place, &place.allowing(&key)).await;
    node.open(key, ReadWrite, 600).await;
    let bridge = Bridge::new(node.client());
    // What root could do: give itself the role's password, and go to the server's own socket.
    let said = bridge.psql("ALTER ROLE CURRENT_USER PASSWORD 'mine';\nSELECT current_user;\n").await;
    let role = said.out.lines().nth(1).unwrap().to_owned();
    let lock = std::fs::read_to_string(place.path("data/postgres/data/postmaster.pid")).unwrap();
    let options =
        sqlx::postgres::PgConnectOptions::new_without_pgpass().socket(lock.lines().nth(4).unwrap()).port(5432);
    let options = options.username(&role).password("mine").database("bib").ssl_mode(sqlx::postgres::PgSslMode::Disable);
    let mut stray = <sqlx::PgConnection as sqlx::Connection>::connect_with(&options).await.unwrap();
    let mut superuser = node.superuser().await;
    wait_for("the end of it", CUT_WITHIN, async || left(&mut superuser).await.is_empty()).await;
    assert!(stray.execute("SELECT 1").await.is_err());
    assert_eq!(node.ended().await, "stray");
    node.stop().await;
}

#[tokio::test]
async fn a_stop_of_the_daemon_ends_the_grant_and_the_next_start_finds_nothing() {
    let Some(place) = Place::new().await else { return };
    let key = place.key("key");
    let database = place.allowing(&key);
    let node = Node::start(&place, &database).await;
    node.open(key, ReadWrite, 600).await;
    let bridge = Bridge::new(node.client());
    let idle = bridge.talk("SELECT 1;").await;
    let clock = node.clock.clone();
    wait_for("the session", Duration::from_secs(30), async || !left(&mut node.superuser().await).await.is_empty())
        .await;
    node.stop().await;
    assert_ne!(idle.too_late().await.err, "");
    let node = Node::start_at(&place, &database, &clock).await;
    assert!(left(&mut node.superuser().await).await.is_empty());
    assert_eq!(node.ended().await, "stopping");
    node.stop().await;
}
