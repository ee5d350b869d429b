//! Who is told of a break-glass grant: by webhook and by mail, without anybody waiting for it, and with an entry when it
//! fails.
#![allow(
    clippy::unwrap_used,
    clippy::print_stderr,
    clippy::disallowed_methods,
    reason = "tests say what they measured and spawn tasks"
)]

#[allow(dead_code, reason = "shared with the tests of whole sessions")]
#[path = "break_glass/node.rs"]
mod node;

use std::os::unix::fs::PermissionsExt as _;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use bib_core::access::GlassAccess::ReadOnly;
use node::*;
use serde_json::Value;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};

/// A webhook that refuses its first calls and keeps what it is sent after that.
struct Webhook {
    address: std::net::SocketAddr,
    kept: Arc<Mutex<Vec<Value>>>,
    task: tokio::task::JoinHandle<()>,
}

impl Drop for Webhook {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Webhook {
    async fn new(refusals: usize) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let kept = Arc::new(Mutex::new(Vec::new()));
        let keeper = Arc::clone(&kept);
        let task = tokio::spawn(async move {
            let mut left = refusals;
            loop {
                let (stream, _) = listener.accept().await.unwrap();
                if left > 0 {
                    left -= 1;
                    answer(stream, "500 Internal Server Error").await;
                } else {
                    let (head, body) = answer(stream, "204 No Content").await;
                    assert!(head.starts_with("POST /hook HTTP/1.1\r\n") && head.contains("application/json"), "{head}");
                    keeper.lock().unwrap().push(serde_json::from_slice(&body).unwrap());
                }
            }
        });
        Self { address, kept, task }
    }

    fn events(&self) -> Vec<String> {
        self.kept.lock().unwrap().iter().map(|notice| notice["event"].as_str().unwrap().to_owned()).collect()
    }
}

/// Reads one request and answers it. Returns head and body.
async fn answer(mut stream: TcpStream, status: &str) -> (String, Vec<u8>) {
    let mut bytes = Vec::new();
    let (end, length) = loop {
        let mut part = [0; 4096];
        let read = stream.read(&mut part).await.unwrap();
        assert!(read > 0, "the request ended early");
        bytes.extend_from_slice(&part[..read]);
        let text = String::from_utf8_lossy(&bytes).to_ascii_lowercase();
        if let Some(end) = text.find("\r\n\r\n") {
            let length = text.lines().find_map(|line| line.strip_prefix("content-length: ")).unwrap();
            let length: usize = length.trim().parse().unwrap();
            if bytes.len() >= end + 4 + length {
                break (end, length);
            }
        }
    };
    let said = format!("HTTP/1.1 {status}\r\nconnection: close\r\n\r\n");
    stream.write_all(said.as_bytes()).await.unwrap();
    (String::from_utf8_lossy(&bytes[..end]).into_owned(), bytes[end + 4..end + 4 + length].to_vec())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_webhook_and_the_mail_hear_of_every_step_although_the_first_attempts_fail() {
    let Some(place) = Place::new().await else { return };
    let key = place.key("key");
    let webhook = Webhook::new(2).await;
    let (program, mails) = (place.path("sendmail"), place.path("mails"));
    // As `sendmail -t` reads one: whole, from its input.
    std::fs::write(&program, format!("#!/bin/sh\n(cat; echo ----) >> {}\n", mails.display())).unwrap();
    std::fs::set_permissions(&program, std::fs::Permissions::from_mode(0o755)).unwrap();
    let notification = format!(
        "    notification:\n      webhook: \"http://{}/hook\"\n      email: security@example.org\n      mail_command: [\"{}\", \"-t\"]\n",
        webhook.address,
        program.display()
    );
    let node = Node::start(&place, &(place.allowing(&key) + &notification)).await;
    node.open(key, ReadOnly, 600).await;
    assert_eq!(Bridge::new(node.client()).run("SELECT 1;").await.out, "1\n");
    node.client().break_glass().disable("").await.unwrap();
    let all = ["enabled", "connected", "ended"];
    wait_for("three notices", Duration::from_secs(60), async || webhook.events() == all).await;
    let kept = webhook.kept.lock().unwrap().clone();
    assert!(kept.iter().all(|notice| notice["reason"] == "a test" && notice["grant"] == kept[0]["grant"]), "{kept:?}");
    assert_eq!((kept[2]["end_reason"].as_str(), kept[2]["statements"].as_u64()), (Some("disabled"), Some(1)));
    let told = || std::fs::read_to_string(&mails).unwrap_or_default();
    wait_for("three mails", Duration::from_secs(60), async || told().matches("----").count() == 3).await;
    let first = told().split("----").next().unwrap().to_owned();
    assert!(first.starts_with("To: security@example.org\nSubject: BIB: break-glass enabled ("), "{first}");
    assert!(first.contains("\nreason: a test\n"), "{first}");
    wait_for("six entries", Duration::from_secs(30), async || node.entries("break_glass.notify").await.len() == 6)
        .await;
    assert!(node.entries("break_glass.notify").await.iter().all(|entry| entry.2 == "ok"));
    node.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nobody_waits_for_a_webhook_that_hangs_and_the_log_says_that_it_was_not_told() {
    let Some(place) = Place::new().await else { return };
    let key = place.key("key");
    // Takes connections and never answers.
    let silent = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}/hook", silent.local_addr().unwrap());
    let notification = format!("    notification:\n      webhook: \"{url}\"\n");
    let node = Node::start(&place, &(place.allowing(&key) + &notification)).await;
    let begun = Instant::now();
    node.open(key, ReadOnly, 600).await;
    node.client().break_glass().disable("").await.unwrap();
    eprintln!("opened and ended in {:?}, with a webhook that hangs", begun.elapsed());
    assert_eq!(node.entries("break_glass.notify").await.len(), 0, "nobody waited for it");
    // The stop does not wait for long either; what was not told by then is in the log.
    let clock = node.clock.clone();
    let database = place.allowing(&ssh_copy(&place)) + &notification;
    node.stop().await;
    let node = Node::start_at(&place, &database, &clock).await;
    let failed = node.entries("break_glass.notify").await;
    assert!(!failed.is_empty() && failed.iter().all(|entry| entry.2 == "failed:BIB0611"), "{failed:?}");
    assert!(
        failed.iter().all(|entry| entry.3["reason"].as_str().is_some_and(|reason| !reason.is_empty())),
        "{failed:?}"
    );
    // Whoever has the address may post to it.
    assert!(failed.iter().all(|entry| !entry.3.to_string().contains(&url)), "{failed:?}");
    let entries = node.daemon.foundation().loaded.entries();
    let webhook = entries.iter().find(|entry| entry.key.ends_with("notification.webhook")).unwrap();
    assert_eq!(webhook.value, "[redacted]");
    node.stop().await;
}

fn ssh_copy(place: &Place) -> bib_identity::ssh::UserKey {
    bib_identity::ssh::UserKey::load(&place.path("key"), &mut |_| None).unwrap()
}
