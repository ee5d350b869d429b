//! Export to log collectors (security.md, B-AUD 56): the real daemon, real sockets, collectors that misbehave.
#![allow(clippy::unwrap_used, clippy::print_stderr, clippy::disallowed_methods, reason = "tests spawn tasks")]

mod collectors;
mod faults;

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::time::Duration;

use bib_proto::v1::admin_service_client::AdminServiceClient;
use bib_proto::v1::{
    AuditSink, GetConfigRequest, GetMetricsRequest, ListAuditRequest, ListAuditSinksRequest, ServingStatus,
};
use collectors::http::{Collector, Mood};
use collectors::syslog::{self, Receiver};
use collectors::{Authority, Taken, assert_complete};
use faults::*;
use serde_json::Value;

/// What a collector must not see, and nobody else either.
const TOKEN: &str = "5up3r-53cr3t-t0k3n";

/// A machine under load has time.
const PATIENCE: Duration = Duration::from_secs(90);

fn secret(place: &Place) -> PathBuf {
    let path = place.dir.join("token");
    fs::write(&path, format!("{TOKEN}\n")).unwrap();
    fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
    path
}

fn elastic(collector: &Collector, token: &Path) -> String {
    format!(
        "{{name: elastic, timeout: 2s, max_pause: 1s, batch_bytes: 32KiB, \
         to: {{elastic: {{{}, login: {{api_key: {{file: '{}'}}}}}}}}}}",
        collector.place(),
        token.display()
    )
}

fn splunk(collector: &Collector, token: &Path) -> String {
    format!(
        "{{name: splunk, timeout: 2s, max_pause: 1s, batch_bytes: 32KiB, \
         to: {{splunk: {{{}, token: {{file: '{}'}}}}}}}}",
        collector.place(),
        token.display()
    )
}

fn syslog(receiver: &Receiver, authority: &Authority) -> String {
    format!(
        "{{name: syslog, timeout: 2s, max_pause: 1s, batch_bytes: 32KiB, to: {{syslog: {{address: 'localhost:{}', \
         max_message_bytes: 256KiB, tls: {{ca_file: '{}'}}}}}}}}",
        receiver.address.port(),
        authority.ca_file.display()
    )
}

fn file(path: &Path) -> String {
    format!(
        "{{name: lines, max_pause: 1s, to: {{file: {{path: '{}', rotate_bytes: 256KiB, keep: 0}}}}}}",
        path.display()
    )
}

fn configure(place: &Place, sinks: &[String]) {
    place.configure(&format!("audit:\n  export:\n    - {}\n", sinks.join("\n    - ")));
}

/// All lines of a file sink, oldest first.
fn lines(path: &Path) -> Vec<Value> {
    let numbered = |n: u32| PathBuf::from(format!("{}.{n}", path.display()));
    let mut files: Vec<PathBuf> = (1..).map(numbered).take_while(|path| path.exists()).collect();
    files.reverse();
    files.push(path.to_owned());
    let texts = files.iter().map(|path| fs::read_to_string(path).unwrap_or_default());
    texts.flat_map(|text| text.lines().map(|l| serde_json::from_str(l).unwrap()).collect::<Vec<_>>()).collect()
}

async fn sinks(node: &Node) -> Vec<AuditSink> {
    let answer = AdminServiceClient::new(node.channel().await).list_audit_sinks(ListAuditSinksRequest {}).await;
    answer.unwrap().into_inner().sinks
}

async fn sink(node: &Node, name: &str) -> AuditSink {
    sinks(node).await.into_iter().find(|sink| sink.name == name).unwrap()
}

/// Failed attempts of the three that are reached over a network.
async fn errors(node: &Node) -> [u64; 3] {
    let all = sinks(node).await;
    ["elastic", "splunk", "syslog"].map(|name| all.iter().find(|sink| sink.name == name).unwrap().errors)
}

async fn newest(place: &Place) -> u64 {
    let mut superuser = place.superuser().await;
    let newest: i64 =
        sqlx::query_scalar("SELECT max(seq) FROM bib.audit_seal").fetch_one(&mut superuser).await.unwrap();
    u64::try_from(newest).unwrap()
}

/// Acts that go on until told to stop, through deaths of the daemon.
struct Acts {
    stop: Arc<AtomicBool>,
    done: Arc<AtomicU32>,
    tasks: tokio::task::JoinSet<()>,
}

impl Acts {
    fn begin(socket: &Path, writers: u32) -> Self {
        let mut acts = Self { stop: Arc::default(), done: Arc::default(), tasks: tokio::task::JoinSet::new() };
        for writer in 0..writers {
            let (stop, done, socket) = (acts.stop.clone(), acts.done.clone(), socket.to_owned());
            acts.tasks.spawn(async move {
                for n in 0_u32.. {
                    if stop.load(Ordering::SeqCst) {
                        return;
                    }
                    let channel = channel(&socket).await;
                    match make_topic(&channel, &format!("topic-{writer}-{n}")).await {
                        Ok(()) => done.fetch_add(1, Ordering::SeqCst),
                        Err(_) => {
                            tokio::time::sleep(Duration::from_millis(20)).await;
                            continue;
                        }
                    };
                }
            });
        }
        acts
    }

    fn done(&self) -> u32 {
        self.done.load(Ordering::SeqCst)
    }

    async fn more(&self, count: u32) {
        let upto = self.done() + count;
        wait_for("acts go on", PATIENCE, async || self.done() >= upto).await;
    }

    async fn end(mut self) -> u32 {
        self.stop.store(true, Ordering::SeqCst);
        while let Some(task) = self.tasks.join_next().await {
            task.unwrap();
        }
        self.done()
    }
}

/// Everything that was sealed arrives: `upto` at the least, with every act.
async fn arrives(what: &str, taken: &Taken, upto: u64, acts: u32) {
    wait_for(&format!("{what} has {upto}"), PATIENCE, async || taken.upto() >= upto).await;
    let all = taken.all();
    let repeated = assert_complete(&all, upto);
    let created: BTreeSet<String> = all
        .iter()
        .filter(|event| event["entry"]["action"] == "topic.create" && event["entry"]["result"] == "ok")
        .map(|event| event["entry"]["id"].to_string())
        .collect();
    assert!(created.len() >= acts as usize, "{what}: {} of {acts} acts", created.len());
    eprintln!("{what}: {} entries, {repeated} of them repeated", all.len());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn b_aud_56_everything_arrives_in_order_over_kill_9_and_whatever_collectors_do() {
    let place = Place::new();
    let authority = Authority::new(&place.dir, "authority");
    let (bulk, hec) = (Collector::start().await, Collector::start_tls(&authority).await);
    let receiver = Receiver::start(&authority).await;
    let (token, path) = (secret(&place), place.dir.join("audit.jsonl"));
    configure(&place, &[elastic(&bulk, &token), splunk(&hec, &token), syslog(&receiver, &authority), file(&path)]);
    let mut node = place.start().await;
    let acts = Acts::begin(&node.ready().socket, 4);
    acts.more(50).await;
    let moods = [
        (Mood::Status(500, None), syslog::Mood::ResetsAfter(20_000)),
        (Mood::Status(429, Some(1)), syslog::Mood::ClosesAfter(9_000)),
        (Mood::Resets, syslog::Mood::Stalls(4_096)),
        (Mood::TakesAndFails, syslog::Mood::ResetsAfter(1)),
        (Mood::TakesHalf, syslog::Mood::Rude),
        (Mood::Slow(Duration::from_secs(3)), syslog::Mood::ClosesAfter(1)),
    ];
    for (round, (http, tls)) in moods.into_iter().enumerate() {
        eprintln!("round {round}: {http:?}, {tls:?}");
        bulk.mood(http.clone());
        hec.mood(if http == Mood::TakesHalf { Mood::Status(503, None) } else { http });
        receiver.mood(tls);
        let mut before = errors(&node).await;
        acts.more(40).await;
        if round % 2 == 0 {
            node.kill();
            node = place.start().await;
            before = [0; 3];
        }
        wait_for("every collector has been in the way", PATIENCE, async || {
            errors(&node).await.iter().zip(before).all(|(now, before)| *now > before)
        })
        .await;
        bulk.mood(Mood::Good);
        hec.mood(Mood::Good);
        receiver.mood(syslog::Mood::Good);
        // A connection that is stalled is let go of by nobody but the sender; a receiver that went away is back.
        receiver.goes_away();
        bulk.goes_away();
        acts.more(20).await;
        receiver.comes_back().await;
        bulk.comes_back().await;
    }
    let acts = acts.end().await;
    let upto = newest(&place).await;
    arrives("elastic", &bulk.taken, upto, acts).await;
    arrives("splunk", &hec.taken, upto, acts).await;
    arrives("syslog", &receiver.taken, upto, acts).await;
    let in_file = Taken::default();
    wait_for("the file", PATIENCE, async || lines(&path).len() as u64 >= upto).await;
    in_file.add(lines(&path));
    arrives("file", &in_file, upto, acts).await;
    assert!(path.with_extension("jsonl.1").exists(), "it was set aside");
    assert_eq!(bulk.authorization.lock().unwrap().as_deref(), Some(&*format!("ApiKey {TOKEN}")));
    assert_eq!(hec.authorization.lock().unwrap().as_deref(), Some(&*format!("Splunk {TOKEN}")));
    // All is well again, and what was wrong stands in the log once for each time.
    wait_for("health", PATIENCE, async || node.health("audit-export").await.0 == ServingStatus::Serving).await;
    wait_for("nobody is behind", PATIENCE, async || sinks(&node).await.iter().all(|sink| sink.behind == 0)).await;
    let mut admin = AdminServiceClient::new(node.channel().await);
    let metrics = admin.get_metrics(GetMetricsRequest {}).await.unwrap().into_inner().text;
    assert!(metrics.contains(r#"bibd_audit_export_sent_total{sink="syslog"}"#), "{metrics}");
    let config = format!("{:?}", admin.get_config(GetConfigRequest {}).await.unwrap().into_inner());
    assert!(config.contains("audit.export") && config.contains("splunk"), "{config}");
    for (what, text) in [("the log", place.log()), ("the metrics", metrics), ("the configuration", config)] {
        assert!(!text.contains(TOKEN), "{what} tells the token");
    }
    let all = format!("{:?}", hec.taken.all());
    assert!(!all.contains(TOKEN), "the audit log tells the token");
    drop(node);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_person_must_repair_is_said_at_once_and_nothing_is_lost_meanwhile() {
    let place = Place::new();
    let (one, other) = (Authority::new(&place.dir, "one"), Authority::new(&place.dir, "other"));
    let (bulk, hec, receiver) = (Collector::start().await, Collector::start().await, Receiver::start(&one).await);
    let token = secret(&place);
    fs::set_permissions(&token, fs::Permissions::from_mode(0o644)).unwrap();
    receiver.changes_certificate(&other);
    bulk.mood(Mood::Refuses);
    let third = Collector::start().await;
    let sealed = splunk(&third, &token).replace("name: splunk", "name: sealed");
    let sealed = sealed.replace(&format!("{{file: '{}'}}", token.display()), "{sealed: hec}");
    let gone = file(Path::new("/nonexistent/audit.jsonl"));
    let elastic = elastic(&bulk, &token).replace(&format!(", login: {{api_key: {{file: '{}'}}}}", token.display()), "");
    configure(&place, &[elastic, splunk(&hec, &token), syslog(&receiver, &one), gone, sealed]);
    let node = place.start().await;
    let expected = [
        ("elastic", "document_parsing_exception", "mapping"),
        ("splunk", "is open to others", "chmod 600"),
        ("syslog", "certificate", "nothing was sent"),
        ("lines", "/nonexistent/audit.jsonl", "make the directory"),
        ("sealed", "there is no sealed secret `hec`", "bibd secret set"),
    ];
    for (name, trouble, hint) in expected {
        wait_for(name, PATIENCE, async || {
            let sink = sink(&node, name).await;
            sink.trouble.contains(trouble) && sink.hint.contains(hint) && sink.behind > 0
        })
        .await;
    }
    // On a busy machine an attempt may run into its time in between, which time alone may repair.
    wait_for("the health", PATIENCE, async || {
        let (status, sentence) = node.health("audit-export").await;
        status == ServingStatus::Degraded && expected.iter().all(|(name, ..)| sentence.contains(name))
    })
    .await;
    assert_eq!(receiver.taken.all(), Vec::<Value>::new(), "nothing goes to a stranger");
    // Acts wait for nobody.
    make_topic(&node.channel().await, "meanwhile").await.unwrap();
    let mut admin = AdminServiceClient::new(node.channel().await);
    wait_for("each is in the log", PATIENCE, async || {
        let filter = ListAuditRequest { action: "export.degraded".to_owned(), ..ListAuditRequest::default() };
        let told = admin.list_audit(filter).await.unwrap().into_inner().entries;
        let told: BTreeSet<String> = told.into_iter().map(|entry| entry.target).collect();
        told.len() == expected.len()
    })
    .await;
    // Repaired while the node runs.
    assert_eq!(own_secret(&place, &["list"], ""), "");
    assert_eq!(own_secret(&place, &["set", "hec"], &format!("{TOKEN}\n")), "");
    assert_eq!(own_secret(&place, &["list"], ""), "hec\n");
    assert!(
        !fs::read(place.data().join("secrets/own.hec.age")).unwrap().windows(5).any(|w| w == &TOKEN.as_bytes()[..5])
    );
    fs::set_permissions(&token, fs::Permissions::from_mode(0o600)).unwrap();
    receiver.changes_certificate(&one);
    bulk.mood(Mood::Good);
    let upto = newest(&place).await;
    let all = [("elastic", &bulk.taken), ("splunk", &hec.taken), ("syslog", &receiver.taken), ("sealed", &third.taken)];
    for (name, taken) in all {
        arrives(name, taken, upto, 1).await;
        wait_for(name, PATIENCE, async || sink(&node, name).await.trouble.is_empty()).await;
    }
    assert_eq!(third.authorization.lock().unwrap().as_deref(), Some(&*format!("Splunk {TOKEN}")));
    assert_eq!(own_secret(&place, &["remove", "hec"], ""), "");
    assert!(place.log().contains("a sink of the audit log does not take entries"));
    assert!(!place.log().contains(TOKEN));
}

/// `bibd secret ...` with this on standard input.
fn own_secret(place: &Place, arguments: &[&str], input: &str) -> String {
    use std::io::Write as _;
    use std::process::Stdio;
    let mut command = place.command();
    command.arg("secret").args(arguments).stdin(Stdio::piped()).stdout(Stdio::piped());
    let mut child = command.spawn().unwrap();
    child.stdin.take().unwrap().write_all(input.as_bytes()).unwrap();
    let output = child.wait_with_output().unwrap();
    assert!(output.status.success(), "{output:?}");
    String::from_utf8(output.stdout).unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_sink_that_is_away_is_behind_and_begins_where_it_was() {
    let place = Place::new();
    let hec = Collector::start().await;
    let token = secret(&place);
    let behind = splunk(&hec, &token).replace("name: splunk,", "name: splunk, max_behind: 20,");
    let new =
        "{name: new, start: now, to: {file: {path: 'NEW'}}}".replace("NEW", place.dir.join("new").to_str().unwrap());
    configure(&place, std::slice::from_ref(&behind));
    let node = place.start().await;
    let acts = Acts::begin(&node.ready().socket, 2);
    acts.more(5).await;
    wait_for("the first", PATIENCE, async || hec.taken.upto() > 4).await;
    hec.goes_away();
    acts.more(40).await;
    wait_for("degraded", PATIENCE, async || node.health("audit-export").await.0 == ServingStatus::Degraded).await;
    let done = acts.end().await;
    wait_for("an attempt that fails", PATIENCE, async || sink(&node, "splunk").await.errors > 0).await;
    let there = sink(&node, "splunk").await;
    assert!(there.behind > 20 && there.seq > 0, "{there:?}");
    node.stop();
    // It is still away when the node is back, with another sink that begins now.
    configure(&place, &[behind, new]);
    let node = place.start().await;
    let upto = newest(&place).await;
    hec.comes_back().await;
    arrives("splunk", &hec.taken, upto, done).await;
    make_topic(&node.channel().await, "after").await.unwrap();
    let of_new = || lines(&place.dir.join("new"));
    wait_for("the new one", PATIENCE, async || of_new().iter().any(|e| e["entry"]["action"] == "topic.create")).await;
    let first = collectors::seq(&of_new()[0]);
    assert!(first > u64::from(done), "it begins with what is new: {first}");
    let created = of_new().iter().filter(|event| event["entry"]["action"] == "topic.create").count();
    assert_eq!(created, 1);
    drop(node);
}
