//! Backups on time: made, verified, and deleted when there are enough newer ones.

use std::time::Duration;

use bib_core::Timestamp;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use super::{BackupUseCases, Listed};
use crate::backup::BackupError;
use crate::errors::ErrorCode;
use crate::grpc::health::Condition;
use crate::services::error::ServiceError;
use crate::supervisor::TaskResult;

/// How often it is looked whether something is due.
const LOOK: Duration = Duration::from_secs(10);
/// How soon what failed is tried again; doubles.
const FIRST_PAUSE: Duration = Duration::from_secs(60);
const LONGEST_PAUSE: Duration = Duration::from_secs(3600);

/// What is to be done now.
#[derive(Debug, Default, PartialEq, Eq)]
struct Due {
    backup: bool,
    /// The backup to look at.
    verification: Option<String>,
    /// More than are to be kept, oldest first.
    spare: Vec<String>,
}

impl BackupUseCases {
    /// Keeps as many backups as the configuration says, as young and as well checked, until told to stop.
    ///
    /// # Errors
    /// Never: what fails shows in health and is tried again.
    pub async fn keeping(self, stop: CancellationToken) -> TaskResult {
        let is_wanted = !self.foundation.config().backup.every.0.is_zero();
        if self.store.is_none() || !is_wanted {
            return Ok(());
        }
        let (mut pause, mut wait, mut said) = (FIRST_PAUSE, Duration::ZERO, String::new());
        while stop.run_until_cancelled(tokio::time::sleep(wait)).await.is_some() {
            // Cancelled anywhere it is swept by the next backup.
            let Some(outcome) = stop.run_until_cancelled(self.keep()).await else { break };
            let Err(error) = outcome else {
                (pause, wait) = (FIRST_PAUSE, LOOK);
                continue;
            };
            let sentence = format!("backups are not kept: {error}");
            if sentence != said {
                tracing::warn!("{sentence}");
                said.clone_from(&sentence);
            }
            self.health.set("backup", Condition::Degraded(sentence));
            // A person can change that any moment; everything else takes its time.
            let is_told = matches!(error.code(), ErrorCode::UNMET_CONDITION | ErrorCode::BUSY);
            wait = if is_told { LOOK } else { pause };
            pause = if is_told { pause } else { (pause * 2).min(LONGEST_PAUSE) };
        }
        Ok(())
    }

    /// Does what is due, the most important first.
    async fn keep(&self) -> Result<(), ServiceError> {
        let call = self.base.internal_call("backup");
        // After an upgrade the server is another cluster, whose log continues no backup of the former one.
        let cluster = self.foundation.postgres.origin().await.map_err(BackupError::from)?.system_identifier.to_string();
        let due = self.due(&self.all().await?, &cluster);
        if due.backup {
            // Nobody watches.
            let (progress, watched) = mpsc::channel(1);
            drop(watched);
            self.perform(&call, progress).await?;
        }
        let due = self.due(&self.all().await?, &cluster);
        if let Some(id) = due.verification {
            self.check(&call, &id).await?;
        }
        // Last: while the newest is not what it should be, nothing older goes.
        for id in due.spare {
            self.discard(&call, &id, "enough newer ones").await?;
        }
        Ok(())
    }

    fn due(&self, listed: &[Listed], cluster: &str) -> Due {
        let backup = &self.foundation.config().backup;
        let times = Times {
            now: self.base.now(),
            every_s: seconds(backup.every.0),
            verify_every_s: seconds(backup.verify_every.0),
            keep: usize::try_from(backup.keep).unwrap_or(usize::MAX),
        };
        due(listed, self.base.epoch, cluster, &times)
    }
}

struct Times {
    now: Timestamp,
    every_s: i64,
    verify_every_s: i64,
    keep: usize,
}

fn seconds(duration: Duration) -> i64 {
    i64::try_from(duration.as_secs()).unwrap_or(i64::MAX)
}

/// What is due. `listed` is newest first. A time that lies further in the future than the step is a wrong clock's: it
/// counts as old, once.
fn due(listed: &[Listed], epoch: u64, cluster: &str, times: &Times) -> Due {
    let is_old =
        |time: Timestamp, every_s: i64| times.now.as_seconds().abs_diff(time.as_seconds()) >= every_s.unsigned_abs();
    let whole: Vec<&Listed> = listed.iter().filter(|one| one.manifest.is_some()).collect();
    let manifests = || whole.iter().filter_map(|one| one.manifest.as_ref());
    // A restored node's own log continues none of the backups before its epoch.
    let own = || manifests().filter(|manifest| manifest.epoch == epoch && manifest.system_identifier == cluster);
    let is_unchecked = whole.iter().filter_map(|one| one.verified).all(|time| is_old(time, times.verify_every_s));
    Due {
        backup: own().all(|manifest| is_old(manifest.created, times.every_s)),
        verification: own().next().filter(|_| is_unchecked).map(|manifest| manifest.id.clone()),
        spare: whole.iter().skip(times.keep).rev().map(|one| one.id.clone()).collect(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::backup::Manifest;

    const DAY: i64 = 86_400;

    fn one(id: &str, epoch: u64, created_s: i64, verified_s: Option<i64>) -> Listed {
        let manifest = Manifest::sample(id, epoch, at(created_s));
        let verified = verified_s.map(at);
        Listed { id: id.to_owned(), manifest: Some(manifest), state: "complete".to_owned(), reachable: None, verified }
    }

    fn at(seconds: i64) -> Timestamp {
        Timestamp::from_micros(seconds * 1_000_000)
    }

    fn due_at(now_s: i64, listed: &[Listed]) -> Due {
        due(listed, 2, "1", &Times { now: at(now_s), every_s: DAY, verify_every_s: 7 * DAY, keep: 2 })
    }

    #[test]
    fn a_node_without_a_backup_of_its_epoch_makes_one_at_once() {
        assert!(due_at(100 * DAY, &[]).backup);
        let former = one("a", 1, 100 * DAY, None);
        assert!(due_at(100 * DAY, &[former]).backup);
        let mut upgraded = one("a", 2, 100 * DAY, None);
        upgraded.manifest.as_mut().unwrap().system_identifier = "7".to_owned();
        assert_eq!(due_at(100 * DAY, &[upgraded]), Due { backup: true, ..Due::default() });
    }

    #[test]
    fn each_is_due_on_its_time_whatever_the_clock_does() {
        let now = 100 * DAY;
        let young = [one("b", 2, now - DAY + 1, Some(now - 7 * DAY + 1))];
        assert_eq!(due_at(now, &young), Due::default());
        let old = [one("b", 2, now - DAY, Some(now - 7 * DAY))];
        assert_eq!(due_at(now, &old), Due { backup: true, verification: Some("b".to_owned()), spare: vec![] });
        let mut wrong = vec![one("b", 2, now + 3650 * DAY, Some(now + 3650 * DAY))];
        assert_eq!(due_at(now, &wrong), Due { backup: true, verification: Some("b".to_owned()), spare: vec![] });
        // Once: the next has the time of now.
        wrong.push(one("a", 2, now, Some(now)));
        assert_eq!(due_at(now, &wrong), Due::default());
    }

    #[test]
    fn the_oldest_go_when_there_are_enough_and_what_cannot_be_read_is_left_alone() {
        let now = 100 * DAY;
        let mut listed: Vec<Listed> = (0..4).map(|n| one(&format!("b{n}"), 2, now - n * 60, Some(now))).collect();
        listed.push(Listed {
            id: "x".to_owned(),
            manifest: None,
            state: "damaged".to_owned(),
            reachable: None,
            verified: None,
        });
        assert_eq!(due_at(now, &listed).spare, ["b3", "b2"]);
    }
}
