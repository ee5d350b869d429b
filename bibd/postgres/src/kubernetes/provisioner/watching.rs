//! What becomes of a pod that runs. Kubernetes itself begins it again: here is only seen and said what happened.
//!
//! The pod is looked at once, then watched from that version on. A watch that ends, as every one does after a while, is
//! begun again where it ended; one whose version is forgotten (410) begins with another look. Between events the server
//! itself is asked, so that a cluster that falls silent hides nothing.
//!
//! Under an operator it is the `Cluster` that is watched, which says which pod writes, and with each word of it that pod is
//! looked at: the server may move to another one, and the Service leads there.

use std::time::Duration;

use futures::{StreamExt as _, TryStreamExt as _};
use k8s_openapi::api::core::v1::Pod;
use kube::api::DynamicObject;
use tokio::time::Instant;

use super::KubernetesPostgres;
use super::operator::as_value;
use super::why::{self, why};
use crate::kubernetes::cluster::ClusterError;
use crate::kubernetes::names::CONTAINER;
use crate::kubernetes::operated::Operated;
use crate::kubernetes::operations::Told;
use crate::provisioner::{Health, ManagedPostgres as _, State};
use crate::run::backoff;

/// How often the server is asked.
const ASK_EVERY: Duration = Duration::from_secs(2);
/// A server that ran this long has recovered: the next crash begins a new count.
const SETTLED: Duration = Duration::from_secs(60);
/// A watch that held this long was a good one: the next pause is short again.
const GOOD_WATCH: Duration = Duration::from_secs(10);

/// What was seen of the pod last.
#[derive(Debug, Default)]
struct Seen {
    /// Which pod, and how often its server was begun again.
    last: Option<(String, i32)>,
    /// Ends in a row.
    ends: u32,
    since: Option<Instant>,
}

/// What an observation says.
#[derive(Debug, PartialEq, Eq)]
enum Change {
    /// Nothing that the server itself would not say better.
    None,
    /// The server ended by itself, in this way.
    Ended(String),
}

impl Seen {
    /// Takes note of the pod as it is now.
    fn note(&mut self, pod: Option<&Pod>) -> Change {
        let Some(pod) = pod else {
            // What is gone is said once.
            return self.last.take().map_or(Change::None, |_| Change::Ended("its pod is gone".to_owned()));
        };
        let uid = pod.metadata.uid.clone().unwrap_or_default();
        let status = why::container_of(pod, CONTAINER);
        let restarts = status.map_or(0, |status| status.restart_count);
        let ended = status.and_then(why::ended).is_some();
        // An end counts when it is seen, and once: the restart that follows has the next number.
        let now = (uid, restarts + i32::from(ended));
        let before = self.last.replace(now.clone());
        match before {
            Some((uid, count)) if uid == now.0 && now.1 > count => Change::Ended(how_it_ended(pod)),
            Some((uid, _)) if uid != now.0 => Change::Ended("its pod was replaced".to_owned()),
            _ => Change::None,
        }
    }

    /// Counts an end; how many there were in a row.
    fn count(&mut self) -> u32 {
        if self.since.is_some_and(|since| since.elapsed() >= SETTLED) {
            self.ends = 0;
        }
        self.since = Some(Instant::now());
        self.ends += 1;
        self.ends
    }
}

/// How the server ended that ran before.
fn how_it_ended(pod: &Pod) -> String {
    let status = why::container_of(pod, CONTAINER);
    let end = status.and_then(|status| why::ended(status).or_else(|| why::last_end(status)));
    let Some(end) = end else { return "nobody knows how".to_owned() };
    let words = [end.reason.as_deref().unwrap_or_default(), why::last_words(end)];
    let more: Vec<&str> = words.into_iter().filter(|word| !word.is_empty()).collect();
    if more.is_empty() {
        format!("exit code {}", end.exit_code)
    } else {
        format!("exit code {}: {}", end.exit_code, more.join(": "))
    }
}

/// What is watched.
enum Event {
    Pod(Told<Pod>),
    /// Of the operator's object.
    Cluster(Told<DynamicObject>),
}

impl KubernetesPostgres {
    /// Watches for ever; see [`supervise`](crate::ManagedPostgres::supervise).
    pub(super) async fn watch(&self) {
        let (mut seen, mut failures) = (Seen::default(), 0_u32);
        loop {
            let begun = Instant::now();
            let ended = Box::pin(self.watch_once(&mut seen)).await;
            failures = if begun.elapsed() >= GOOD_WATCH { 1 } else { failures + 1 };
            match ended {
                Ok(()) => tracing::debug!("the watch on the database's pod begins anew"),
                Err(error) => tracing::warn!(%error, "the database's pod is not watched for a moment"),
            }
            let pause = backoff(failures, self.random.jitter());
            let end = Instant::now() + pause;
            while Instant::now() < end {
                tokio::time::sleep(ASK_EVERY.min(pause)).await;
                self.report_health(None).await;
            }
        }
    }

    /// From a look at the pod until the watch cannot go on.
    async fn watch_once(&self, seen: &mut Seen) -> Result<(), ClusterError> {
        let cluster = match self.cluster().await {
            Ok(cluster) => cluster,
            Err(error) => return Err(ClusterError::None { reason: error.to_string() }),
        };
        let (namespace, name, object) = (self.namespace(), self.pod(), self.only(&["Cluster"]).pop());
        let looked = match &object {
            Some(object) => Event::Cluster(cluster.look_at_like(object).await?),
            None => Event::Pod(cluster.look_at_pod(namespace, &name).await?),
        };
        let mut version = match self.pod_told(looked).await? {
            Told::Is(pod, version) => {
                self.report(seen, Some(&pod)).await;
                version
            }
            Told::Gone(version) | Told::Nothing(version) => {
                self.report(seen, None).await;
                version
            }
            Told::TooOld => return Ok(()),
        };
        loop {
            let (begun, mut told_any) = (Instant::now(), false);
            let mut stream = match &object {
                Some(object) => cluster.watch_like(object, &version).await?.map_ok(Event::Cluster).boxed(),
                None => cluster.watch_pod(namespace, &name, &version).await?.map_ok(Event::Pod).boxed(),
            };
            loop {
                match tokio::time::timeout(ASK_EVERY, stream.next()).await {
                    Err(_) => self.report_health(None).await,
                    Ok(None) => break,
                    Ok(Some(event)) => {
                        told_any = true;
                        match self.pod_told(event?).await? {
                            Told::Is(pod, now) => {
                                version = now;
                                self.report(seen, Some(&pod)).await;
                            }
                            Told::Gone(now) => {
                                version = now;
                                self.report(seen, None).await;
                            }
                            Told::Nothing(now) => version = now,
                            Told::TooOld => return Ok(()),
                        }
                    }
                }
            }
            // One that ends at once, again and again, is begun with a pause.
            if !told_any && begun.elapsed() < GOOD_WATCH {
                return Ok(());
            }
        }
    }

    /// What becomes of the pod: of a `Cluster`, of the one that it says writes.
    async fn pod_told(&self, event: Event) -> Result<Told<Pod>, ClusterError> {
        let told = match event {
            Event::Pod(told) => return Ok(told),
            Event::Cluster(told) => told,
        };
        Ok(match told {
            Told::Is(found, version) => match self.writer(&Operated::of(&as_value(&found))).await? {
                Some(pod) => Told::Is(Box::new(pod), version),
                None => Told::Gone(version),
            },
            Told::Gone(version) => Told::Gone(version),
            Told::Nothing(version) => Told::Nothing(version),
            Told::TooOld => Told::TooOld,
        })
    }

    /// Says what an observation means, while the server should run.
    async fn report(&self, seen: &mut Seen, pod: Option<&Pod>) {
        let change = seen.note(pod);
        if !self.is_wanted() {
            return;
        }
        match change {
            Change::Ended(how) => {
                let (attempt, reason) = (seen.count(), format!("the server ended by itself: {how}"));
                tracing::error!(attempt, %reason, "PostgreSQL ended by itself; Kubernetes begins it again");
                self.state.send_replace(State::Crashed { attempt, reason });
            }
            Change::None => self.report_health(pod).await,
        }
    }

    /// Says how the server is; `pod` is known where it was just seen.
    async fn report_health(&self, pod: Option<&Pod>) {
        if !self.is_wanted() {
            return;
        }
        let state = match (self.health().await, pod) {
            (Health::Ready, _) => State::Running,
            (Health::Starting, _) => State::Starting,
            (_, Some(pod)) => State::Degraded { reason: why(Some(pod), &[]).reason },
            (Health::Degraded { reason }, None) => State::Degraded { reason },
            (Health::Stopped, None) => State::Degraded { reason: "there is no pod".to_owned() },
        };
        if self.is_wanted() {
            self.state.send_if_modified(|current| {
                let changed = *current != state;
                *current = state;
                changed
            });
        }
    }

    /// Whether it should run and is not just being started or stopped, which say themselves how it goes.
    fn is_wanted(&self) -> bool {
        self.server.try_lock().is_ok_and(|server| server.wanted)
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn pod(uid: &str, restarts: i32, state: serde_json::Value) -> Pod {
        let last = json!({ "terminated": { "exitCode": 137, "reason": "OOMKilled" } });
        let status = json!({ "name": CONTAINER, "image": "i", "imageID": "", "ready": true, "restartCount": restarts,
                             "state": state, "lastState": last });
        serde_json::from_value(json!({ "metadata": { "uid": uid }, "status": { "containerStatuses": [status] } }))
            .unwrap()
    }

    #[test]
    fn each_end_counts_once() {
        let runs = || json!({ "running": {} });
        let ended = json!({ "terminated": { "exitCode": 2, "reason": "Error", "message": "a\nPANIC: no\n" } });
        let mut seen = Seen::default();
        assert_eq!(seen.note(Some(&pod("a", 0, runs()))), Change::None);
        assert_eq!(seen.note(Some(&pod("a", 0, ended.clone()))), Change::Ended("exit code 2: Error: PANIC: no".into()));
        assert_eq!(seen.note(Some(&pod("a", 0, ended))), Change::None);
        assert_eq!(seen.note(Some(&pod("a", 1, runs()))), Change::None);
        assert_eq!(seen.note(Some(&pod("a", 2, runs()))), Change::Ended("exit code 137: OOMKilled".into()));
        assert_eq!(seen.note(Some(&pod("b", 0, runs()))), Change::Ended("its pod was replaced".into()));
        assert_eq!(seen.note(None), Change::Ended("its pod is gone".into()));
        assert_eq!(seen.note(None), Change::None);
        assert_eq!(seen.note(Some(&pod("c", 0, runs()))), Change::None);
        assert_eq!((seen.count(), seen.count()), (1, 2));
    }
}
