//! Refused calls and log-ins in the audit log, so bounded that a flood cannot fill it.
//!
//! Each source (an address, a uid, a user) has ten entries a minute, all sources together a hundred; what is beyond is
//! counted, and one entry at the end of the minute says how much and from where. Nothing waits for the database.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bibd_audit::Outcome;
use futures::future::BoxFuture;
use serde_json::{Map, Value, json};
use tokio::sync::{Mutex, mpsc};
use tokio_util::sync::CancellationToken;

use super::base::Base;
use super::journal::Act;
use crate::actor::{Call, Via};
use crate::supervisor::TaskResult;

/// Refusals between the callers and the writer.
const QUEUE: usize = 256;
/// How long a window is.
const WINDOW: Duration = Duration::from_secs(60);
/// Entries of one source in a window.
const PER_SOURCE: u32 = 10;
/// Entries in a window.
const PER_WINDOW: u32 = 100;
/// Sources that are counted by name in a window.
const MAX_SOURCES: usize = 1024;
/// Sources that a summary names.
const NAMED_SOURCES: usize = 16;

/// A refusal on its way into the log.
#[derive(Debug)]
struct Noted {
    call: Call,
    act: Act,
}

/// Takes note of refusals. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Refusals {
    sender: mpsc::Sender<Noted>,
    /// Refusals that came faster than the queue is emptied.
    overflow: Arc<AtomicU64>,
}

/// Writes what was noted. Run it under the supervisor.
#[derive(Debug, Clone)]
pub struct RefusalWriter {
    base: Base,
    // One writer at a time; when it fails, the next goes on with the same queue.
    receiver: Arc<Mutex<mpsc::Receiver<Noted>>>,
    overflow: Arc<AtomicU64>,
}

impl Refusals {
    /// A note pad and its writer.
    #[must_use]
    pub fn new(base: Base) -> (Self, RefusalWriter) {
        let (sender, receiver) = mpsc::channel(QUEUE); // refusals that the writer has not taken yet
        let overflow = Arc::new(AtomicU64::new(0));
        let writer = RefusalWriter { base, receiver: Arc::new(Mutex::new(receiver)), overflow: Arc::clone(&overflow) };
        (Self { sender, overflow }, writer)
    }

    /// Takes note and returns at once.
    pub fn note(&self, call: Call, act: Act) {
        if self.sender.try_send(Noted { call, act }).is_err() {
            self.overflow.fetch_add(1, Ordering::Relaxed);
        }
    }
}

impl RefusalWriter {
    /// The task.
    pub fn writing(&self) -> impl FnMut(CancellationToken) -> BoxFuture<'static, TaskResult> + Send + 'static + use<> {
        let writer = self.clone();
        move |stop| {
            let writer = writer.clone();
            Box::pin(async move { writer.run(stop).await })
        }
    }

    async fn run(&self, stop: CancellationToken) -> TaskResult {
        let mut receiver = self.receiver.lock().await;
        let mut window = Window::default();
        let mut tick = tokio::time::interval(WINDOW);
        tick.reset();
        loop {
            tokio::select! {
                noted = receiver.recv() => match noted {
                    Some(noted) => self.take(noted, &mut window).await?,
                    None => break,
                },
                _ = tick.tick() => self.close(&mut window).await?,
                () = stop.cancelled() => break,
            }
        }
        // What is still in the queue: calls have been drained before this task is told to stop.
        while let Ok(noted) = receiver.try_recv() {
            self.take(noted, &mut window).await?;
        }
        Ok(self.close(&mut window).await?)
    }

    async fn take(&self, noted: Noted, window: &mut Window) -> Result<(), super::ServiceError> {
        if window.admit(source(&noted.call)) {
            self.base.journal.record(&self.base.db, &noted.call, noted.act, Outcome::Denied).await?;
        }
        Ok(())
    }

    /// Ends a window: says what was left out.
    async fn close(&self, window: &mut Window) -> Result<(), super::ServiceError> {
        let overflow = self.overflow.swap(0, Ordering::Relaxed);
        let window = std::mem::take(window);
        let Some(details) = window.summary(overflow) else { return Ok(()) };
        let call = self.base.internal_call("refusals");
        let act = Act::new("call.refusals", "left out of the log", details);
        self.base.journal.record(&self.base.db, &call, act, Outcome::Denied).await.map(|_| ())
    }
}

/// Who is held to account: an address without its port, a uid, a user.
fn source(call: &Call) -> String {
    match &call.actor.via {
        _ if !call.actor.user.as_uuid().is_nil() => call.actor.name.clone(),
        Via::Socket { uid } => format!("uid {uid}"),
        _ => match call.actor.name.parse::<std::net::SocketAddr>() {
            Ok(address) => address.ip().to_canonical().to_string(),
            Err(_) => call.actor.name.clone(),
        },
    }
}

#[derive(Debug, Default)]
struct Window {
    written: u32,
    left_out: u64,
    sources: HashMap<String, Source>,
}

#[derive(Debug, Default)]
struct Source {
    written: u32,
    left_out: u64,
}

impl Window {
    /// Whether the next refusal of this source is written; otherwise it is counted.
    fn admit(&mut self, name: String) -> bool {
        let room = self.sources.len() < MAX_SOURCES;
        let source = match self.sources.get_mut(&name) {
            Some(source) => Some(source),
            None if room => Some(self.sources.entry(name).or_default()),
            None => None,
        };
        let allowed = self.written < PER_WINDOW && source.as_ref().is_some_and(|source| source.written < PER_SOURCE);
        match (allowed, source) {
            (true, Some(source)) => {
                source.written += 1;
                self.written += 1;
            }
            (_, source) => {
                self.left_out += 1;
                if let Some(source) = source {
                    source.left_out += 1;
                }
            }
        }
        allowed
    }

    fn summary(self, overflow: u64) -> Option<Value> {
        let total = self.left_out + overflow;
        if total == 0 {
            return None;
        }
        let mut named: Vec<(String, u64)> =
            self.sources.into_iter().map(|(name, source)| (name, source.left_out)).filter(|(_, n)| *n > 0).collect();
        named.sort_by(|a, b| b.1.cmp(&a.1).then_with(|| a.0.cmp(&b.0)));
        let named: Map<String, Value> =
            named.into_iter().take(NAMED_SOURCES).map(|(name, count)| (ascii(&name), json!(count))).collect();
        Some(json!({ "left_out": total, "too_fast_to_count_by_source": overflow, "sources": named }))
    }
}

/// Canonical JSON wants keys in ASCII; names of users are, and so are addresses.
fn ascii(name: &str) -> String {
    name.chars().map(|c| if c.is_ascii_graphic() || c == ' ' { c } else { '?' }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_source_is_cut_off_and_counted_while_others_are_written() {
        let mut window = Window::default();
        let written = (0..1000).filter(|_| window.admit("192.0.2.7".to_owned())).count();
        assert_eq!(written, 10);
        assert!(window.admit("uid 1000".to_owned()));
        let summary = window.summary(5).unwrap();
        assert_eq!(summary["left_out"], 995);
        assert_eq!(summary["sources"], json!({ "192.0.2.7": 990 }));
    }

    #[test]
    fn many_sources_are_bounded_too() {
        let mut window = Window::default();
        let written = (0..100_000).filter(|n| window.admit(format!("source {n}"))).count();
        assert_eq!(written, 100);
        assert!(window.sources.len() <= MAX_SOURCES);
        let summary = window.summary(0).unwrap();
        assert_eq!(summary["left_out"], 99_900);
        assert!(summary["sources"].as_object().unwrap().len() <= NAMED_SOURCES);
    }

    #[test]
    fn nothing_left_out_is_nothing_said() {
        let mut window = Window::default();
        assert!(window.admit("a".to_owned()));
        assert_eq!(window.summary(0), None);
    }
}
