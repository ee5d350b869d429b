//! Every task of the daemon: what happens when it fails, and in which order tasks stop.
//!
//! A task is made by a factory, so that it can be made again. It is given a token and returns soon after that is
//! cancelled. Panics are caught, counted and treated as failures.

use std::collections::BTreeMap;
use std::error::Error;
use std::panic::AssertUnwindSafe;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use futures::FutureExt as _;
use tokio::sync::watch;
use tokio::task::AbortHandle;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::clock::{Clock, Entropy};
use crate::grpc::error::chain;
use crate::metrics::Metrics;

/// What a task may return.
pub type TaskResult = Result<(), Box<dyn Error + Send + Sync>>;

/// Which part of the daemon a task belongs to; parts stop in this order.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum TaskKind {
    /// Takes calls: listeners and the server. Stops first, draining.
    Edge,
    /// Works in the background on what is stored: sequencer, collector, scrubber, certificates.
    Background,
    /// Holds up what the others stand on: the database. Stops last.
    Foundation,
}

/// What happens when a task fails or panics. A task that returns `Ok` before it is told to stop has ended, except that
/// [`Policy::StopDaemon`] counts any end as a failure.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Policy {
    /// It is made again after a pause: 100 ms, doubling to 30 s, back to 100 ms after a minute of work.
    RestartWithBackoff,
    /// The daemon stops: without this task it would be wrong to go on.
    StopDaemon,
    /// It is logged, and that is all.
    OneShot,
}

/// How a task is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum TaskState {
    /// It runs.
    Running,
    /// It failed and will be made again.
    Waiting {
        /// Failures in a row.
        failures: u32,
        /// What the last one was.
        reason: String,
    },
    /// It ended as it should.
    Done,
    /// It failed for good.
    Failed {
        /// Why.
        reason: String,
    },
}

const FIRST_PAUSE: Duration = Duration::from_millis(100);
const LONGEST_PAUSE: Duration = Duration::from_secs(30);
/// A task that worked this long begins again with the first pause.
const HEALTHY_AFTER: Duration = Duration::from_secs(60);

struct Group {
    stop: CancellationToken,
    tracker: TaskTracker,
    aborts: Mutex<Vec<AbortHandle>>,
}

impl Group {
    fn new() -> Self {
        Self { stop: CancellationToken::new(), tracker: TaskTracker::new(), aborts: Mutex::default() }
    }
}

struct Inner {
    groups: [Group; 3],
    states: watch::Sender<BTreeMap<&'static str, TaskState>>,
    /// The first task that must not end and did.
    fatal: watch::Sender<Option<String>>,
    metrics: Arc<Metrics>,
    clock: Arc<dyn Clock>,
    entropy: Entropy,
}

/// Starts tasks and stops them. Cheap to clone.
#[derive(Clone)]
pub struct Supervisor(Arc<Inner>);

impl std::fmt::Debug for Supervisor {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("Supervisor").field(&*self.0.states.borrow()).finish()
    }
}

impl Supervisor {
    /// Without tasks yet. `entropy` jitters the pauses.
    #[must_use]
    pub fn new(metrics: Arc<Metrics>, clock: Arc<dyn Clock>, entropy: Entropy) -> Self {
        Self(Arc::new(Inner {
            groups: [Group::new(), Group::new(), Group::new()],
            states: watch::Sender::default(),
            fatal: watch::Sender::default(),
            metrics,
            clock,
            entropy,
        }))
    }

    /// Starts a task. `name` is unique: it names the task in logs, metrics and health.
    pub fn spawn<F, Fut>(&self, kind: TaskKind, policy: Policy, name: &'static str, mut factory: F)
    where
        F: FnMut(CancellationToken) -> Fut + Send + 'static,
        Fut: Future<Output = TaskResult> + Send + 'static,
    {
        let group = &self.0.groups[kind as usize];
        let (inner, stop) = (Arc::clone(&self.0), group.stop.clone());
        let run = async move {
            let mut failures = 0_u32;
            let mut pause = FIRST_PAUSE;
            loop {
                inner.set(name, TaskState::Running);
                let since = inner.clock.monotonic();
                let outcome = AssertUnwindSafe(factory(stop.child_token())).catch_unwind().await;
                let reason = match outcome {
                    _ if stop.is_cancelled() => return inner.set(name, TaskState::Done),
                    Ok(Ok(())) if policy != Policy::StopDaemon => return inner.set(name, TaskState::Done),
                    Ok(Ok(())) => "it ended before it was told to".to_owned(),
                    Ok(Err(error)) => chain(error.as_ref()),
                    Err(panic) => format!("it panicked: {}", panic_text(panic.as_ref())),
                };
                inner.metrics.task_failures.with_label_values(&[name]).inc();
                tracing::error!(task = name, reason, "a background task failed");
                match policy {
                    Policy::OneShot => return inner.set(name, TaskState::Failed { reason }),
                    Policy::StopDaemon => {
                        inner.fatal.send_if_modified(|fatal| {
                            let first = fatal.is_none();
                            fatal.get_or_insert_with(|| format!("{name}: {reason}"));
                            first
                        });
                        return inner.set(name, TaskState::Failed { reason });
                    }
                    Policy::RestartWithBackoff => {}
                }
                if inner.clock.monotonic().saturating_duration_since(since) > HEALTHY_AFTER {
                    (failures, pause) = (0, FIRST_PAUSE);
                }
                failures += 1;
                inner.set(name, TaskState::Waiting { failures, reason });
                let jitter = u64::from(inner.entropy.bytes::<1>()[0]);
                let wait = pause + pause.mul_f64(0.25).mul_f64(f64::from(u8::try_from(jitter).unwrap_or(0)) / 255.0);
                pause = (pause * 2).min(LONGEST_PAUSE);
                if stop.run_until_cancelled(tokio::time::sleep(wait)).await.is_none() {
                    return inner.set(name, TaskState::Done);
                }
            }
        };
        let handle = group.tracker.spawn(run);
        let mut aborts = group.aborts.lock().unwrap_or_else(PoisonError::into_inner);
        aborts.retain(|abort| !abort.is_finished());
        aborts.push(handle.abort_handle());
    }

    /// Tells the tasks of a kind to stop and waits for them; those that have not ended by `deadline` are ended. Returns
    /// whether all ended by themselves.
    pub async fn stop(&self, kind: TaskKind, deadline: Duration) -> bool {
        let group = &self.0.groups[kind as usize];
        group.stop.cancel();
        group.tracker.close();
        if tokio::time::timeout(deadline, group.tracker.wait()).await.is_ok() {
            return true;
        }
        let aborts = std::mem::take(&mut *group.aborts.lock().unwrap_or_else(PoisonError::into_inner));
        let late = aborts.iter().filter(|abort| !abort.is_finished()).count();
        tracing::warn!(?kind, late, "tasks did not stop in time and are ended");
        aborts.iter().for_each(AbortHandle::abort);
        // What was aborted ends at its next await.
        let _ = tokio::time::timeout(Duration::from_secs(2), group.tracker.wait()).await;
        false
    }

    /// The token that tells tasks of this kind to stop.
    #[must_use]
    pub fn stop_token(&self, kind: TaskKind) -> CancellationToken {
        self.0.groups[kind as usize].stop.clone()
    }

    /// The states of all tasks, by name.
    #[must_use]
    pub fn states(&self) -> watch::Receiver<BTreeMap<&'static str, TaskState>> {
        self.0.states.subscribe()
    }

    /// Waits until a task that must not end has ended, and says which and why.
    pub async fn failed(&self) -> String {
        let mut fatal = self.0.fatal.subscribe();
        match fatal.wait_for(Option::is_some).await {
            Ok(reason) => reason.clone().unwrap_or_default(),
            Err(_) => std::future::pending().await,
        }
    }
}

impl Inner {
    fn set(&self, name: &'static str, state: TaskState) {
        self.states.send_modify(|states| {
            states.insert(name, state);
        });
    }
}

/// What a panic said.
pub(crate) fn panic_text(panic: &(dyn std::any::Any + Send)) -> String {
    let text = panic.downcast_ref::<&str>().map(|text| (*text).to_owned());
    text.or_else(|| panic.downcast_ref::<String>().cloned()).unwrap_or_else(|| "no message".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::SystemClock;
    use std::sync::atomic::{AtomicU32, Ordering};

    fn supervisor() -> Supervisor {
        Supervisor::new(Metrics::new().unwrap(), Arc::new(SystemClock), Entropy::seeded(1))
    }

    #[tokio::test]
    async fn a_task_that_panics_is_made_again() {
        let (supervisor, runs) = (supervisor(), Arc::new(AtomicU32::new(0)));
        let counter = Arc::clone(&runs);
        supervisor.spawn(TaskKind::Background, Policy::RestartWithBackoff, "shaky", move |stop| {
            let run = counter.fetch_add(1, Ordering::SeqCst);
            async move {
                assert!(run >= 2, "not yet");
                stop.cancelled().await;
                Ok(())
            }
        });
        let mut states = supervisor.states();
        let steady = states
            .wait_for(|states| states.get("shaky") == Some(&TaskState::Running) && runs.load(Ordering::SeqCst) == 3);
        tokio::time::timeout(Duration::from_secs(10), steady).await.unwrap().unwrap();
        assert!(supervisor.stop(TaskKind::Background, Duration::from_secs(1)).await);
        assert!(supervisor.0.metrics.render().contains(r#"bibd_tasks_failed_total{task="shaky"} 2"#));
    }

    #[tokio::test]
    async fn a_task_without_which_nothing_works_stops_the_daemon() {
        let supervisor = supervisor();
        supervisor.spawn(TaskKind::Edge, Policy::StopDaemon, "server", |_| async { Err("boom".into()) });
        let reason = tokio::time::timeout(Duration::from_secs(1), supervisor.failed()).await.unwrap();
        assert_eq!(reason, "server: boom");
    }

    #[tokio::test]
    async fn a_task_that_does_not_listen_is_ended_at_the_deadline() {
        let supervisor = supervisor();
        supervisor.spawn(TaskKind::Edge, Policy::OneShot, "deaf", |_| std::future::pending());
        assert!(!supervisor.stop(TaskKind::Edge, Duration::from_millis(50)).await);
    }
}
