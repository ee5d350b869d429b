//! Alerts: the real daemon, a real HTTP server and real programs that are told.
#![allow(clippy::unwrap_used, clippy::print_stderr, clippy::disallowed_methods, reason = "tests spawn tasks")]

mod faults;

use std::fs;
use std::net::SocketAddr;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use axum::Router;
use axum::http::StatusCode;
use axum::routing::post;
use bib_identity::TimeSource;
use bib_identity::trust::{Expectation, FirstUse, ServerVerifier, client_config, server_name};
use bib_proto::v1::admin_service_client::AdminServiceClient;
use bib_proto::v1::auth_service_client::AuthServiceClient;
use bib_proto::v1::{
    AlertRule, AuditEntry, ListAlertRulesRequest, ListAuditRequest, ServingStatus, TestAlertRuleRequest,
    TestAlertRuleResponse, VerifyChallengeRequest,
};
use bibd::clock::{Clock as _, SystemClock};
use faults::*;
use hyper_util::rt::TokioIo;
use serde_json::Value;
use tokio_stream::StreamExt as _;
use tonic::transport::{Channel, Endpoint};

/// A machine under load has time.
const PATIENCE: Duration = Duration::from_secs(90);

/// A server that takes alerts, and how often it refuses one first.
async fn webhook(refusals: u32) -> (String, Arc<Mutex<Vec<(String, Value)>>>) {
    let taken: Arc<Mutex<Vec<(String, Value)>>> = Arc::default();
    let (there, left) = (Arc::clone(&taken), Arc::new(Mutex::new(refusals)));
    let answer = move |headers: axum::http::HeaderMap, body: String| async move {
        let mut left = left.lock().unwrap();
        if *left > 0 {
            *left -= 1;
            return StatusCode::SERVICE_UNAVAILABLE;
        }
        let authorization = headers.get("authorization").map_or("", |value| value.to_str().unwrap()).to_owned();
        there.lock().unwrap().push((authorization, serde_json::from_str(&body).unwrap()));
        StatusCode::NO_CONTENT
    };
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}/hooks/5up3r-53cr3t-path", listener.local_addr().unwrap());
    let router = Router::new().route("/hooks/5up3r-53cr3t-path", post(answer));
    tokio::spawn(async move { axum::serve(listener, router).await.unwrap() });
    (url, taken)
}

/// A program of this text.
fn program(place: &Place, name: &str, text: &str) -> PathBuf {
    let path = place.dir.join(name);
    fs::write(&path, format!("#!/bin/sh\n{text}\n")).unwrap();
    fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
    path
}

fn private(place: &Place, name: &str, text: &str) -> PathBuf {
    let path = place.dir.join(name);
    fs::write(&path, text).unwrap();
    fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
    path
}

/// A connection of somebody whom the node does not know.
async fn over_tls(address: SocketAddr) -> Channel {
    let verifier = ServerVerifier::new(Expectation::FirstUse(FirstUse::Accept { expected: None }));
    let config = client_config(verifier, None, TimeSource::new(|| SystemClock.now())).unwrap();
    let tls = tokio_rustls::TlsConnector::from(Arc::new(config));
    let connector = tower::service_fn(move |_| {
        let tls = tls.clone();
        async move {
            let tcp = tokio::net::TcpStream::connect(address).await?;
            tls.connect(server_name(), tcp).await.map(TokioIo::new)
        }
    });
    Endpoint::from_static("http://node.bib.invalid").connect_with_connector(connector).await.unwrap()
}

async fn alerts(node: &Node) -> Vec<AuditEntry> {
    let filter = ListAuditRequest { action: "audit.alert".to_owned(), ..ListAuditRequest::default() };
    let entries = AdminServiceClient::new(node.channel().await).list_audit(filter).await.unwrap().into_inner().entries;
    // The filter is a beginning: trying a rule is no alert.
    entries.into_iter().filter(|entry| entry.action == "audit.alert").collect()
}

async fn alerts_of(node: &Node, rule: &str) -> Vec<Value> {
    let of_rule = |entry: &AuditEntry| entry.target == format!("rule:{rule}");
    let details = |entry: AuditEntry| serde_json::from_str(&entry.details_json.unwrap()).unwrap();
    alerts(node).await.into_iter().filter(of_rule).map(details).collect()
}

/// Objects that a program appended to a file.
fn told(path: &Path) -> Vec<Value> {
    let text = fs::read_to_string(path).unwrap_or_default();
    text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

async fn try_rule(node: &Node, request: TestAlertRuleRequest) -> Vec<TestAlertRuleResponse> {
    let answers = AdminServiceClient::new(node.channel().await).test_alert_rule(request).await.unwrap().into_inner();
    answers.map(|answer| answer.unwrap()).collect().await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn alerts_reach_the_log_a_webhook_and_a_program_and_outlive_kill_9() {
    let place = Place::new();
    let (url, taken) = webhook(2).await;
    let (url_file, token) = (private(&place, "url", &url), private(&place, "bearer", "b34r3r\n"));
    let (notes, late) = (place.dir.join("notes"), place.dir.join("late"));
    // One writes down what it is told, with its arguments as they are and an environment of nothing but PATH.
    let writes = program(
        &place,
        "writes",
        "[ \"$1\" = 'a b; $(false)' ] || exit 3\n[ -z \"$HOME$BIB_NODE\" ] || exit 4\ncat >> \"$2\"",
    );
    // One never ends, and leaves a child.
    let hangs = program(&place, "hangs", &format!("echo started >> '{}'\nsleep 600 & sleep 600", late.display()));
    place.configure(&format!(
        "audit:
  alerts:
    rules:
      - {{name: three-topics, action: topic.create, when: \"result == 'ok' && !target.contains('zzz')\", count: 3, within: 1h, pause: 0s}}
      - name: bulk-read
        action: dataset.read
        count: 7
    sinks:
      - name: hook
        to: {{webhook: {{secret_url: {{file: '{}'}}, bearer: {{file: '{}'}}}}}}
      - name: writes
        to: {{command: {{argv: ['{}', 'a b; $(false)', '{}']}}}}
      - {{name: hangs, timeout: 1s, to: {{command: {{argv: ['{}']}}}}}}
      - {{name: severe, at_least: high, timeout: 1s, to: {{command: {{argv: ['{}', 'a b; $(false)', '{}']}}}}}}
",
        url_file.display(),
        token.display(),
        writes.display(),
        notes.display(),
        hangs.display(),
        writes.display(),
        place.dir.join("severe").display(),
    ));
    let mut node = place.start().await;
    let rules = AdminServiceClient::new(node.channel().await).list_alert_rules(ListAlertRulesRequest {}).await.unwrap();
    let rules = rules.into_inner().rules;
    let bulk: Vec<_> = rules.iter().filter(|rule| rule.name == "bulk-read").collect();
    assert!(bulk.len() == 1 && bulk[0].count == 7 && !bulk[0].builtin, "{bulk:?}");
    assert!(rules.iter().any(|rule| rule.builtin && rule.name == "failed-log-ins"));

    for n in 0..7 {
        make_topic(&node.channel().await, &format!("topic-{n}")).await.unwrap();
    }
    wait_for("two alerts", PATIENCE, async || alerts_of(&node, "three-topics").await.len() == 2).await;
    let first = &alerts_of(&node, "three-topics").await[0];
    assert_eq!((&first["count"], &first["action"]), (&Value::from(3), &Value::from("topic.create")), "{first}");

    // One more makes seven: two thirds of the way. It is killed, and counts on where it was.
    node.kill();
    // Nobody but its user is left to end what a killed daemon was running.
    for leader in processes_of(&hangs) {
        std::process::Command::new("kill").args(["-KILL", "--", &format!("-{leader}")]).status().unwrap();
    }
    let node = place.start().await;
    make_topic(&node.channel().await, "topic-7").await.unwrap();
    assert_eq!(alerts_of(&node, "three-topics").await.len(), 2);
    make_topic(&node.channel().await, "topic-8").await.unwrap();
    wait_for("the third alert", PATIENCE, async || alerts_of(&node, "three-topics").await.len() == 3).await;

    let stranger = over_tls(node.ready().addresses[0]).await;
    for _ in 0..5 {
        let request = VerifyChallengeRequest { challenge_id: "none".to_owned(), ..VerifyChallengeRequest::default() };
        AuthServiceClient::new(stranger.clone()).verify_challenge(request).await.unwrap_err();
    }
    wait_for("failed log-ins", PATIENCE, async || alerts_of(&node, "failed-log-ins").await.len() == 1).await;

    assert_eq!(alerts_of(&node, "failed-log-ins").await[0]["key"], "127.0.0.1");

    let about = |event: &Value| event["details"]["rule"].as_str().unwrap_or_default().to_owned();
    let wanted = ["three-topics", "three-topics", "three-topics", "failed-log-ins"];
    // At least once: what was told when the daemon died, and was not yet noted as told, comes again.
    let mine = |mut events: Vec<Value>| -> Vec<String> {
        events.dedup_by_key(|event| event["digest"].clone());
        events.iter().map(about).filter(|rule| wanted.contains(&rule.as_str())).collect()
    };
    wait_for("the program", PATIENCE, async || mine(told(&notes)) == wanted).await;
    let hooked = || -> Vec<Value> { taken.lock().unwrap().iter().map(|(_, event)| event.clone()).collect() };
    wait_for("the webhook", PATIENCE, async || mine(hooked()) == wanted).await;
    assert!(taken.lock().unwrap().iter().all(|(authorization, _)| authorization == "Bearer b34r3r"));
    let event = &told(&notes)[0];
    assert_eq!((&event["format"], &event["entry"]["action"]), (&"bib-audit-event/1".into(), &"audit.alert".into()));
    wait_for("the severe one", PATIENCE, async || mine(told(&place.dir.join("severe"))) == ["failed-log-ins"]).await;
    // The one that hangs is ended with its child, tried again, and keeps nobody else waiting.
    wait_for("again", PATIENCE, async || fs::read_to_string(&late).is_ok_and(|text| text.lines().count() >= 2)).await;
    wait_for("it is ended", PATIENCE, async || place.log().contains("did not end within 1 s")).await;
    assert!(node.stop().success());
    wait_for("nothing is left", PATIENCE, async || processes_of(&hangs).is_empty()).await;
    for secret in ["5up3r-53cr3t-path", "b34r3r"] {
        assert!(!place.log().contains(secret), "the log tells {secret}");
    }
}

/// Processes that run this program.
fn processes_of(program: &Path) -> Vec<String> {
    let runs_it = |entry: &fs::DirEntry| {
        let command = fs::read(entry.path().join("cmdline")).unwrap_or_default();
        String::from_utf8_lossy(&command).contains(program.to_str().unwrap())
    };
    let processes = fs::read_dir("/proc").unwrap().flatten().filter(runs_it);
    processes.map(|entry| entry.file_name().into_string().unwrap()).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_rule_that_takes_too_long_is_turned_off_and_holds_back_nobody() {
    let place = Place::new();
    let list = format!("[{}0]", "0,".repeat(119));
    let loops = format!("{list}.all(a, {list}.all(b, size([{}a]) > 0))", "a,b,".repeat(60));
    let sent = place.dir.join("sent");
    place.configure(&format!(
        "audit:
  export:
    - {{name: lines, to: {{file: {{path: '{}'}}}}}}
  alerts:
    rules:
      - {{name: slow, pause: 0s, when: \"seq > 1 && {loops}\"}}
      - {{name: quick, action: topic.create, when: \"result == 'ok'\", pause: 0s}}
",
        sent.display()
    ));
    let node = place.start().await;
    assert_eq!(node.health("alerts").await.0, ServingStatus::Serving);
    for n in 0..5 {
        make_topic(&node.channel().await, &format!("topic-{n}")).await.unwrap();
    }
    wait_for("degraded", PATIENCE, async || node.health("alerts").await.0 == ServingStatus::Degraded).await;
    let (_, sentence) = node.health("alerts").await;
    assert!(sentence.contains("slow") && !sentence.contains("quick"), "{sentence}");
    wait_for("its entry", PATIENCE, async || alerts_of(&node, "slow").await.len() == 1).await;
    let told = &alerts_of(&node, "slow").await[0];
    assert!(told["severity"] == "high" && told["about"].as_str().unwrap().contains("longer than 50 ms"), "{told}");
    // The other rule has seen every act, and every entry, those about the rule included, has gone where it should.
    wait_for("the quick one", PATIENCE, async || alerts_of(&node, "quick").await.len() == 5).await;
    let rules = AdminServiceClient::new(node.channel().await).list_alert_rules(ListAlertRulesRequest {}).await.unwrap();
    let off = |rule: &AlertRule| rule.off.then(|| (rule.name.clone(), rule.failures, rule.alerts));
    let off: Vec<_> = rules.into_inner().rules.iter().filter_map(off).collect();
    // Entries from before the rules began count against it, and among its failures they do not stand.
    assert!(matches!(&off[..], [(name, 0..=3, 0)] if name == "slow"), "{off:?}");
    wait_for("the export", PATIENCE, async || {
        let text = fs::read_to_string(&sent).unwrap_or_default();
        text.matches("\"action\":\"audit.alert\"").count() >= 6
    })
    .await;
    assert!(place.log().contains("it is off until the daemon is started again"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_rule_is_tried_on_the_past_and_a_bad_one_keeps_the_daemon_from_starting() {
    let place = Place::new();
    place.configure(
        "audit:\n  alerts:\n    rules:\n      - name: good\n        when: rows >= 0\n      - name: bad\n        when: >\n          \
         action == 'topic.create' && ros > 1\n",
    );
    let refused = place.refused();
    let said = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert_eq!(refused.status.code(), Some(2), "{said}");
    for part in ["config.yaml:6: audit.alerts.rules: rule `bad`: there is no `ros`", "hint: there are action, actor"] {
        assert!(said.contains(part), "{said}");
    }
    assert!(!place.data().join("postgres").exists(), "nothing was begun");

    place.configure("audit:\n  alerts:\n    without: [all]\n");
    let node = place.start().await;
    for n in 0..12 {
        make_topic(&node.channel().await, &format!("topic-{n}")).await.unwrap();
    }
    let of_expression = |when: &str| TestAlertRuleRequest { when: when.to_owned(), ..TestAlertRuleRequest::default() };
    let mut superuser = place.superuser().await;
    wait_for("everything is sealed", PATIENCE, async || {
        let waiting = sqlx::query_scalar::<_, i64>("SELECT count(*) FROM bib.audit_unsealed");
        waiting.fetch_one(&mut superuser).await.unwrap() == 0
    })
    .await;
    let tried = try_rule(&node, of_expression("action == 'topic.create' && result == 'ok'")).await;
    let end = tried.last().unwrap();
    assert!(end.finished && end.alerts == 12 && end.looked > 12 && end.failed == 0, "{end:?}");
    assert_eq!(tried.iter().filter(|word| word.alert.is_some()).count(), 12);
    let failing = try_rule(&node, of_expression("details.nothing == 1")).await;
    assert!(failing.last().unwrap().failed > 0);
    let known = TestAlertRuleRequest { name: "schema-change".to_owned(), ..TestAlertRuleRequest::default() };
    let tried = try_rule(&node, known.clone()).await;
    assert_eq!(tried.last().unwrap().alerts, 0, "a new database is no change");
    let changed = TestAlertRuleRequest { when: "details.from == 0".to_owned(), ..known };
    assert_eq!(try_rule(&node, changed).await.last().unwrap().alerts, 1);
    let late = TestAlertRuleRequest { since: "2999-01-01T00:00:00Z".to_owned(), ..of_expression("true") };
    assert_eq!(try_rule(&node, late).await.last().unwrap().looked, 0);
    let mut admin = AdminServiceClient::new(node.channel().await);
    for (request, part) in [
        (of_expression("action ="), "line 1"),
        (of_expression("nobody == 1"), "there is no `nobody`"),
        (TestAlertRuleRequest { name: "unheard-of".to_owned(), ..TestAlertRuleRequest::default() }, "unheard-of"),
    ] {
        let refused = match admin.test_alert_rule(request).await {
            Err(status) => status,
            Ok(answers) => answers.into_inner().next().await.unwrap().unwrap_err(),
        };
        assert!(refused.message().contains(part), "{refused:?}");
    }
    assert_eq!(alerts(&node).await.len(), 0, "trying alerts nobody");
    assert!(admin.list_alert_rules(ListAlertRulesRequest {}).await.unwrap().into_inner().rules.is_empty());
}
