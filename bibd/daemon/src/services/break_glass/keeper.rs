//! The background task: a grant ends in time by two clocks, whoever goes on without the right or without the proxy is
//! ended, and what was not finished is.

use std::collections::HashSet;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use bib_core::access::NodeRole;
use bibd_catalog::users::{self, UserState};
use bibd_postgres::glass::sessions_of;
use tokio_util::sync::CancellationToken;

use super::{BreakGlass, Cut, Open};
use crate::services::ServiceError;
use crate::supervisor::{Policy, TaskKind, TaskResult};

/// How often the clocks are looked at: well below the five seconds that are promised.
const LOOK: Duration = Duration::from_millis(200);
/// How often the database is asked who is in, and whether the holder still may.
const ASK: Duration = Duration::from_secs(1);
/// How long an answer is waited for: a database that hangs must not hold back the end of a grant.
const ASK_DEADLINE: Duration = Duration::from_secs(2);
/// How often it is tried to finish what a former daemon left, until it is done.
const SETTLE: Duration = Duration::from_secs(1);

impl BreakGlass {
    pub(super) fn keep(&self) {
        let glass = self.clone();
        let supervisor = &self.0.foundation.supervisor;
        supervisor.spawn(TaskKind::Background, Policy::RestartWithBackoff, "break-glass", move |stop| {
            glass.clone().keeping(stop)
        });
    }

    async fn keeping(self, stop: CancellationToken) -> TaskResult {
        let is_settled = &self.0.is_settled;
        let mut next_ask = Instant::now();
        let mut strangers = HashSet::new();
        let mut watched = None;
        loop {
            match self.open() {
                Some(open) => {
                    if watched != Some(open.granted.id) {
                        (watched, strangers) = (Some(open.granted.id), HashSet::new());
                    }
                    self.look(&open);
                    if open.cut.borrow().is_none() && Instant::now() >= next_ask {
                        next_ask = Instant::now() + ASK;
                        // A database that does not answer lets nobody in either.
                        match tokio::time::timeout(ASK_DEADLINE, self.ask(&open, &mut strangers)).await {
                            Ok(Ok(())) => {}
                            Ok(Err(error)) => {
                                tracing::warn!(%error, "the sessions of break-glass could not be looked at");
                            }
                            Err(_) => tracing::warn!("the database does not say who is in by break-glass"),
                        }
                    }
                    let is_cut = open.cut.borrow().is_some();
                    if is_cut {
                        let call = self.0.base.internal_call("break-glass");
                        if let Err(error) = self.end(&open, &call).await {
                            tracing::warn!(%error, grant = %open.granted.id, "break-glass is not closed yet; it is tried again");
                        }
                    }
                }
                None if !is_settled.load(Ordering::SeqCst) => match self.settle().await {
                    Ok(()) => is_settled.store(true, Ordering::SeqCst),
                    Err(error) => {
                        tracing::warn!(%error, "what is left of break-glass is not closed yet; it is tried again");
                        stop.run_until_cancelled(tokio::time::sleep(SETTLE)).await;
                    }
                },
                None => {}
            }
            if stop.run_until_cancelled(tokio::time::sleep(LOOK)).await.is_none() {
                break;
            }
        }
        if let Some(open) = self.open() {
            open.cut(Cut::Stopping);
            let call = self.0.base.internal_call("break-glass");
            self.end(&open, &call).await?;
        }
        self.0.asked.close();
        self.0.asked.wait().await;
        Ok(())
    }

    /// The clock that nobody can set is what counts. The other one ends it earlier when the machine slept, which the first
    /// one does not notice; set back, it changes nothing.
    fn look(&self, open: &Open) {
        let clock = self.0.base.ids.clock();
        if self.0.stopping.is_cancelled() {
            open.cut(Cut::Stopping);
        } else if clock.monotonic() >= open.deadline || clock.now() >= open.granted.expires_at {
            open.cut(Cut::Expired);
        }
    }

    async fn ask(&self, open: &Arc<Open>, strangers: &mut HashSet<i32>) -> Result<(), ServiceError> {
        let base = &self.0.base;
        let holder = users::find(&mut base.db.read().await?, open.granted.user).await?;
        let may = holder.is_some_and(|user| user.state == UserState::Active && user.role == NodeRole::Admin);
        if !may {
            open.cut(Cut::Holder);
            return Ok(());
        }
        // Before the question: who enters after it is not in the answer.
        let is_entering = open.entering.load(Ordering::SeqCst) > 0;
        let known: HashSet<i32> = open.live().values().map(|live| live.backend.pid).collect();
        let mut monitor = base.db.monitor().acquire().await.map_err(ServiceError::internal)?;
        let inside = sessions_of(&mut monitor, &open.name).await.map_err(ServiceError::internal)?;
        let unknown: HashSet<i32> = inside.into_iter().filter(|pid| !known.contains(pid)).collect();
        // One that was seen twice: a session that was just cut needs a moment to go.
        if !is_entering && unknown.iter().any(|pid| strangers.contains(pid)) {
            tracing::error!(grant = %open.granted.id, "a session of break-glass that is not the proxy's was found");
            open.cut(Cut::Stray);
        }
        *strangers = unknown;
        Ok(())
    }
}
