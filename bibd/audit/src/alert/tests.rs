use std::collections::HashSet;
use std::time::Duration;

use bib_core::{Hash, OperationId, PeerId, Timestamp};
use serde_json::{Value, json};
use uuid::Uuid;

use super::*;
use crate::action::{Actor, Outcome as Ended, Via};
use crate::entry::{Entry, EntryDraft, StatementNote};
use crate::verify::Position;

/// An entry that was so many seconds after the first.
fn entry(second: i64, actor: &str, action: &str, result: Ended, details: Value) -> Entry {
    let id = Uuid::from_u128(7 << 76 | 2 << 62);
    let statement =
        StatementNote { class: "select".into(), table: "topics".into(), hash: Hash::of(b"known"), rows: 40, us: 7 };
    let draft = EntryDraft {
        id,
        time: Timestamp::from_micros(1_763_665_260_000_000 + second * 1_000_000),
        node: PeerId::from_public_key([7; 32]),
        actor: Actor::Anonymous(actor.to_owned()),
        via: Via::Tls,
        action: action.to_owned(),
        target: "x".to_owned(),
        result,
        operation: OperationId::from_uuid(id),
        job: None,
        origin: None,
        statements: vec![statement],
        details,
        salt: [9; 32],
    };
    draft.build().unwrap()
}

fn known() -> HashSet<String> {
    HashSet::from([Hash::of(b"known").to_string()])
}

fn facts(entry: &Entry, seq: u64) -> Facts<'_> {
    Facts::read(&entry.body, Some(&entry.detail.bytes), Position { epoch: 1, seq }, &known()).unwrap()
}

fn spec(when: &str) -> RuleSpec {
    RuleSpec {
        name: "r".into(),
        about: String::new(),
        action: String::new(),
        when: when.into(),
        count: 1,
        within: Duration::from_secs(60),
        per: Per::Node,
        pause: Duration::ZERO,
        severity: Severity::Low,
    }
}

#[test]
fn expressions_see_every_member_of_an_entry() {
    let entry =
        entry(0, "eve", "auth.login", Ended::Denied, json!({ "peer": "192.0.2.7:443", "n": 9, "list": [1, 2] }));
    for (when, counts) in [
        ("action == 'auth.login' && result == 'denied'", true),
        ("action.startsWith('auth.') && actor.endsWith('eve') && target.contains('x')", true),
        ("source == '192.0.2.7' && via == 'tls'", true),
        ("rows > 39 && rows < 41 && us == 7", true),
        ("details.n > 8 && details.list.exists(n, n == 2)", true),
        ("statements.all(s, s.class == 'select' && s.rows == 40)", true),
        ("statements.exists(s, s.table in ['topics', 'users'])", true),
        ("has(details.peer) && !has(details.nothing)", true),
        ("unknown_statements > 0 || job != ''", false),
        ("hour == 19 && time.startsWith('2025-11-20')", true),
        ("epoch == 1 && seq == 5 && size(statements) == 1", true),
    ] {
        let rule = Rule::compile(spec(when)).unwrap_or_else(|error| panic!("{when}: {error}"));
        assert_eq!(rule.counts(&facts(&entry, 5)), Ok(counts), "{when}");
    }
    // What an entry lacks makes the rule fail on it, and the entry does not count.
    let rule = Rule::compile(spec("details.nothing == 1")).unwrap();
    assert!(rule.counts(&facts(&entry, 1)).unwrap_err().to_string().contains("nothing"));
    let foreign = Facts::read(&entry.body, None, Position { epoch: 1, seq: 1 }, &HashSet::new()).unwrap();
    assert_eq!(Rule::compile(spec("unknown_statements == 1")).unwrap().counts(&foreign), Ok(true));
}

#[test]
fn a_bad_rule_is_refused_with_the_place_and_the_fix() {
    let deep = format!("{}true{} == []", "[".repeat(200), "]".repeat(200));
    let motif = "!!(".repeat(42);
    let nested = "statements.all(a, statements.all(b, statements.all(c, a == b && b == c)))";
    let long = format!("action in [{}'x']", "'abcdefgh', ".repeat(170));
    let list = format!("[{}0]", "0,".repeat(119));
    let slow = format!("{list}.all(a, {list}.all(b, size([{}a]) > 0))", "a,b,".repeat(60));
    let many = format!("1 == 1{}", " && 1 == 1".repeat(190));
    for (when, message, hint) in [
        ("action =", "line 1", "action ="),
        ("action == 'a' &&\n  rows >> 3", "line 2", "rows >> 3"),
        ("acton == 'a'", "there is no `acton`", "action"),
        ("action.matches('a+')", "there is no function `matches`", "startsWith"),
        ("rows", "of type int, not bool", "compare"),
        ("rows > 'a'", "no matching overload", "int(..)"),
        ("", "every entry", "`when`"),
        (deep.as_str(), "recur", "several"),
        (motif.as_str(), "", ""),
        (nested, "macros nest deeper than 2", "several"),
        (long.as_str(), "bytes, more than 2048", "several"),
        (many.as_str(), "", ""),
        (slow.as_str(), "longer than 50 ms", "loop"),
    ] {
        let error = Rule::compile(spec(when)).unwrap_err();
        assert!(error.message.contains(message) && error.hint.contains(hint), "{when}: {error:?}");
        assert!(!error.message.is_empty() && error.message.len() < 400 && !error.hint.is_empty(), "{error:?}");
    }
    assert!(Rule::compile(RuleSpec { count: 0, ..spec("true") }).is_err());
    // Brackets alone are no depth, nor is saying no to no; as many as fit cost no stack.
    for (many, end) in [("(", ")"), ("!", "")] {
        let text = format!("{}true{}", many.repeat(1_020), end.repeat(1_020));
        Rule::compile(spec(&text)).unwrap_or_else(|error| panic!("{text}: {error}"));
    }
}

#[test]
fn expansion_and_strings_stay_within_bounds() {
    // Two loops over the longest list that an entry can hold are cut off, in whatever shape, and a third of a list is
    // looked at to its end.
    let list: Vec<u32> = (0..5_000).map(|n| n % 10).chain([10]).collect();
    let entry = entry(0, "a", "x.y", Ended::Ok, json!({ "list": list, "text": "x".repeat(8_000) }));
    for when in [
        "details.list.exists(a, details.list.exists(b, a + b < 0))",
        "details.list.all(a, details.list.all(b, a + b >= 0))",
        "details.list.all(a, !details.list.all(b, a + b >= 0) || true)",
        "details.list.exists_one(a, details.list.exists_one(b, a + b < 0))",
        "details.list.filter(a, size(details.list.filter(b, a + b < 0)) > 0) == []",
        "size(details.list.map(a, details.list.map(b, a + b))) == 1",
        "size(details.list.map(a, details.list)) > 1 && details.list.all(a, details.list.all(b, true))",
        "details.list.map(a, details.list.map(b, details.text + details.text)) == []",
        "details.list.exists(a, details.list.exists(b, false)) || true",
    ] {
        let rule = Rule::compile(spec(when)).unwrap_or_else(|error| panic!("{when}: {error}"));
        assert_eq!(rule.counts(&facts(&entry, 1)), Err(RuleFailure::TooSlow), "{when}");
    }
    for when in [
        "details.list.exists(a, a == 10) && !details.list.all(a, a < 10)",
        "details.list.exists_one(a, a == 10) && size(details.list.filter(a, a == 10)) == 1",
        "details.list.map(a, a + 1).exists(a, a == 11) && [1, 2].map(a, [a, a]) == [[1, 1], [2, 2]]",
    ] {
        let rule = Rule::compile(spec(when)).unwrap_or_else(|error| panic!("{when}: {error}"));
        assert_eq!(rule.counts(&facts(&entry, 1)), Ok(true), "{when}");
    }
}

#[test]
fn a_loop_that_is_watched_ends_as_another_does() {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/cel/macros.json");
    let suite: Value = serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap();
    let tests = suite["sections"].as_array().unwrap().iter().flat_map(|section| section["tests"].as_array().unwrap());
    let mut loops = 0;
    for text in tests.filter_map(|test| test["expr"].as_str()) {
        let Ok(plain) = cel::parser::PrattParser::new().parse(text) else { continue };
        let mut watched = plain.clone();
        budget::watch_loops(&mut watched);
        loops += u32::from(watched != plain);
        let sample = Facts::sample();
        let timed = budget::Timed::new(&sample);
        let mut context = cel::Context::default();
        context.set_variable_resolver(&timed);
        let [plain, watched] = [plain, watched].map(|e| cel::Value::resolve(&e, &context).map_err(|e| e.to_string()));
        assert_eq!(watched, plain, "{text}");
    }
    assert!(loops >= 30, "{loops}");
}

#[test]
fn a_rule_that_takes_too_long_is_turned_off_and_the_others_go_on() {
    let slow = RuleSpec { name: "slow".into(), ..spec("details.list.all(a, details.list.all(b, a + b >= 0))") };
    let quick = RuleSpec { name: "quick".into(), ..spec("true") };
    let mut engine = Engine::new([slow, quick].map(|spec| Rule::compile(spec).unwrap()).into());
    let list: Vec<u32> = (0..5_000).map(|n| n % 10).collect();
    let (long, short) = (json!({ "list": list }), json!({ "list": [1] }));
    for (seq, details, failed, off) in [
        (1, &long, true, false),
        (2, &long, true, false),
        (3, &short, false, false),
        (4, &long, true, true),
        (5, &long, false, false),
        (6, &short, false, false),
    ] {
        let entry = entry(0, "a", "x.y", Ended::Ok, details.clone());
        let outcome = engine.look(&facts(&entry, seq));
        let expected = failed.then(|| ("slow".to_owned(), RuleFailure::TooSlow));
        assert_eq!(outcome.failed, Vec::from_iter(expected), "{seq}");
        assert_eq!(outcome.turned_off, Vec::from_iter(off.then(|| "slow".to_owned())), "{seq}");
        let alerts: Vec<&str> = outcome.alerts.iter().map(|alert| alert.rule.as_str()).collect();
        assert_eq!(alerts, if seq == 3 { vec!["slow", "quick"] } else { vec!["quick"] }, "{seq}");
    }
}

#[test]
fn details_larger_than_an_entry_can_have_are_not_looked_at() {
    let entry = entry(0, "a", "x.y", Ended::Ok, json!({}));
    let large = json!({ "peer": "192.0.2.7", "text": "x".repeat(crate::entry::MAX_DETAILS_BYTES) }).to_string();
    let facts = Facts::read(&entry.body, Some(large.as_bytes()), Position { epoch: 1, seq: 1 }, &known()).unwrap();
    assert_eq!(facts.source(), facts.actor());
    assert_eq!(Rule::compile(spec("has(details.peer)")).unwrap().counts(&facts), Ok(false));
}

#[test]
fn every_built_in_rule_compiles_and_names_differ() {
    let names: HashSet<String> =
        builtin().into_iter().map(|spec| Rule::compile(spec).unwrap().spec().name.clone()).collect();
    assert_eq!(names.len(), builtin().len());
}

#[test]
fn five_refused_log_ins_of_one_address_in_a_minute_make_one_alert() {
    let rules = builtin().into_iter().filter(|spec| spec.name == "failed-log-ins");
    let mut engine = Engine::new(rules.map(|spec| Rule::compile(spec).unwrap()).collect());
    assert_eq!(engine.memory(), Duration::from_secs(600));
    let mut alerts = Vec::new();
    let mut seq = 0;
    let mut look = |second: i64, peer: &str, result: Ended| {
        seq += 1;
        let entry = entry(second, "eve", "auth.login", result, json!({ "peer": peer }));
        let outcome = engine.look(&facts(&entry, seq));
        assert!(outcome.failed.is_empty());
        alerts.extend(outcome.alerts);
        alerts.len()
    };
    for second in 0..4 {
        assert_eq!(look(second, "192.0.2.7:1000", Ended::Denied), 0);
        assert_eq!(look(second, "192.0.2.8:1000", Ended::Denied), 0);
        assert_eq!(look(second, "192.0.2.7:1000", Ended::Ok), 0);
    }
    assert_eq!(look(59, "192.0.2.7:2000", Ended::Denied), 1, "the fifth, from another port");
    assert_eq!(look(63, "192.0.2.8:2000", Ended::Denied), 1, "the fifth, but the first was too long ago");
    for second in 70..90 {
        assert_eq!(look(second, "192.0.2.7:1000", Ended::Denied), 1, "silence");
    }
    for second in 700..704 {
        look(second, "192.0.2.7:1000", Ended::Denied);
    }
    assert_eq!(look(704, "192.0.2.7:1000", Ended::Denied), 2, "and again after ten minutes");
    let alert = &alerts[0];
    assert_eq!((alert.key.as_str(), alert.count, alert.severity), ("192.0.2.7", 5, Severity::High));
    assert_eq!((alert.first.seq, alert.last.seq), (1, 13));
    let details = alert.details();
    assert_eq!((&details["first"], &details["source"]), (&json!("1/1"), &json!("192.0.2.7")));
}

#[test]
fn alerts_never_alert_on_alerts() {
    let mut engine = Engine::new(vec![Rule::compile(spec("true")).unwrap()]);
    let alert = entry(0, "alerts", crate::action::ALERT, Ended::Ok, json!({}));
    assert!(engine.look(&facts(&alert, 1)).alerts.is_empty());
    let other = entry(0, "a", "topic.create", Ended::Ok, json!({}));
    assert_eq!(engine.look(&facts(&other, 2)).alerts.len(), 1);
}

#[test]
fn a_flood_of_names_does_not_fill_the_memory_and_a_clock_that_jumps_back_makes_no_alert_late() {
    let mut engine = Engine::new(vec![Rule::compile(RuleSpec { count: 2, per: Per::Actor, ..spec("true") }).unwrap()]);
    let mut alerts = 0;
    for n in 0..30_000_u64 {
        let entry = entry(i64::try_from(n).unwrap(), &format!("name {n}"), "topic.create", Ended::Ok, json!({}));
        alerts += engine.look(&facts(&entry, n)).alerts.len();
    }
    assert_eq!(alerts, 0);
    let again = entry(-1_000_000, "name 29999", "topic.create", Ended::Ok, json!({}));
    assert_eq!(engine.look(&facts(&again, 30_000)).alerts.len(), 1);
}
