//! Whether people wait for the disk and the processors, so that background work can step aside.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use tokio::sync::Notify;

/// How long background work waits at most before its next step, however busy the node is: it is slow, never starved.
const LONGEST_WAIT: Duration = Duration::from_millis(500);

/// Counts the transfers that run. Cheap to clone.
#[derive(Debug, Clone, Default)]
pub struct Activity(Arc<Inner>);

#[derive(Debug, Default)]
struct Inner {
    running: AtomicUsize,
    idle: Notify,
}

/// A transfer that runs until this is dropped.
#[derive(Debug)]
pub struct Busy(Arc<Inner>);

impl Activity {
    /// Says that a transfer begins.
    #[must_use]
    pub fn begin(&self) -> Busy {
        self.0.running.fetch_add(1, Ordering::AcqRel);
        Busy(Arc::clone(&self.0))
    }

    /// Waits until no transfer runs, or half a second.
    pub async fn step_aside(&self) {
        let idle = self.0.idle.notified();
        if self.0.running.load(Ordering::Acquire) > 0 && tokio::time::timeout(LONGEST_WAIT, idle).await.is_err() {
            tracing::trace!("background work goes on beside transfers");
        }
    }
}

impl Drop for Busy {
    fn drop(&mut self) {
        if self.0.running.fetch_sub(1, Ordering::AcqRel) == 1 {
            self.0.idle.notify_waiters();
        }
    }
}
