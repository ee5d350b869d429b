//! Backups on time: made, verified, and deleted when there are enough newer ones.

use std::time::Duration;

use bib_core::Timestamp;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use super::{BackupUseCases, Listed};
use crate::backup::{BackupError, Kind, Made};
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
    /// Kinds of which there is none young enough.
    backups: Vec<Kind>,
    /// The backups to look at.
    verifications: Vec<String>,
    /// More than are to be kept, oldest first.
    spare: Vec<String>,
}

impl BackupUseCases {
    /// Keeps as many backups as the configuration says, as young and as well checked, until told to stop.
    ///
    /// # Errors
    /// Never: what fails shows in health and is tried again.
    pub async fn keeping(self, stop: CancellationToken) -> TaskResult {
        let backup = &self.foundation.config().backup;
        let is_wanted = !backup.every.0.is_zero() || !backup.logical_every.0.is_zero();
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
        for kind in due.backups {
            // Nobody watches.
            let (progress, watched) = mpsc::channel(1);
            drop(watched);
            Box::pin(self.perform(&call, kind, progress)).await?;
        }
        let due = self.due(&self.all().await?, &cluster);
        for id in due.verifications {
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
            logical_every_s: seconds(backup.logical_every.0),
            verify_every_s: seconds(backup.verify_every.0),
            keep: usize::try_from(backup.keep).unwrap_or(usize::MAX),
        };
        due(listed, self.base.epoch, cluster, &times)
    }
}

struct Times {
    now: Timestamp,
    /// Never when 0, as the next.
    every_s: i64,
    logical_every_s: i64,
    verify_every_s: i64,
    keep: usize,
}

fn seconds(duration: Duration) -> i64 {
    i64::try_from(duration.as_secs()).unwrap_or(i64::MAX)
}

/// What is due. `listed` is newest first. Each kind is looked at by itself, and one that nothing is to make by itself is
/// left to whoever makes it.
fn due(listed: &[Listed], epoch: u64, cluster: &str, times: &Times) -> Due {
    let mut due = Due::default();
    for (kind, every_s) in [(Kind::Physical, times.every_s), (Kind::Logical, times.logical_every_s)] {
        if every_s == 0 {
            continue;
        }
        let whole: Vec<&Listed> = listed.iter().filter(|one| one.kind == kind && one.made.is_some()).collect();
        // A restored node's own log continues none of the backups before its epoch. A dump is continued by none, and what
        // another cluster had is not what this one has.
        let is_own = |made: &&Made| made.epoch() == epoch && made.system_identifier() == cluster;
        let own = || whole.iter().filter_map(|one| one.made.as_ref()).filter(is_own);
        if own().all(|made| times.is_old(made.created(), every_s)) {
            due.backups.push(kind);
        }
        if whole.iter().filter_map(|one| one.verified).all(|time| times.is_old(time, times.verify_every_s)) {
            due.verifications.extend(own().next().map(|made| made.id().to_owned()));
        }
        due.spare.extend(whole.iter().skip(times.keep).rev().map(|one| one.id.clone()));
    }
    due
}

impl Times {
    /// A time that lies further in the future than the step is a wrong clock's: it counts as old, once.
    fn is_old(&self, time: Timestamp, every_s: i64) -> bool {
        self.now.as_seconds().abs_diff(time.as_seconds()) >= every_s.unsigned_abs()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::backup::{Dump, Manifest};

    const DAY: i64 = 86_400;

    fn one(id: &str, epoch: u64, created_s: i64, verified_s: Option<i64>) -> Listed {
        let made = Made::Base(Box::new(Manifest::sample(id, epoch, at(created_s))));
        Listed { verified: verified_s.map(at), ..Listed::fresh(made) }
    }

    fn dump(id: &str, epoch: u64, created_s: i64, verified_s: Option<i64>) -> Listed {
        let made = Made::Dump(Box::new(Dump::sample(id, epoch, at(created_s))));
        Listed { verified: verified_s.map(at), ..Listed::fresh(made) }
    }

    fn at(seconds: i64) -> Timestamp {
        Timestamp::from_micros(seconds * 1_000_000)
    }

    fn times(now_s: i64) -> Times {
        Times { now: at(now_s), every_s: DAY, logical_every_s: 0, verify_every_s: 7 * DAY, keep: 2 }
    }

    fn due_at(now_s: i64, listed: &[Listed]) -> Due {
        due(listed, 2, "1", &times(now_s))
    }

    fn backup_due() -> Due {
        Due { backups: vec![Kind::Physical], ..Due::default() }
    }

    #[test]
    fn a_node_without_a_backup_of_its_epoch_makes_one_at_once() {
        assert_eq!(due_at(100 * DAY, &[]), backup_due());
        let former = one("a", 1, 100 * DAY, None);
        assert_eq!(due_at(100 * DAY, &[former]), backup_due());
        let mut upgraded = Manifest::sample("a", 2, at(100 * DAY));
        upgraded.system_identifier = "7".to_owned();
        let upgraded = Listed::fresh(Made::Base(Box::new(upgraded)));
        assert_eq!(due_at(100 * DAY, &[upgraded]), backup_due());
    }

    #[test]
    fn each_is_due_on_its_time_whatever_the_clock_does() {
        let now = 100 * DAY;
        let young = [one("b", 2, now - DAY + 1, Some(now - 7 * DAY + 1))];
        assert_eq!(due_at(now, &young), Due::default());
        let old = [one("b", 2, now - DAY, Some(now - 7 * DAY))];
        assert_eq!(due_at(now, &old), Due { verifications: vec!["b".to_owned()], ..backup_due() });
        let mut wrong = vec![one("b", 2, now + 3650 * DAY, Some(now + 3650 * DAY))];
        assert_eq!(due_at(now, &wrong), Due { verifications: vec!["b".to_owned()], ..backup_due() });
        // Once: the next has the time of now.
        wrong.push(one("a", 2, now, Some(now)));
        assert_eq!(due_at(now, &wrong), Due::default());
    }

    #[test]
    fn the_oldest_go_when_there_are_enough_and_what_cannot_be_read_is_left_alone() {
        let now = 100 * DAY;
        let mut listed: Vec<Listed> = (0..4).map(|n| one(&format!("b{n}"), 2, now - n * 60, Some(now))).collect();
        listed.push(Listed { made: None, ..one("x", 2, now, None) });
        assert_eq!(due_at(now, &listed).spare, ["b3", "b2"]);
    }

    #[test]
    fn each_kind_is_due_by_itself() {
        let now = 100 * DAY;
        let listed = [dump("d", 2, now - 60, None), one("b", 2, now - 60, Some(now))];
        // Nobody asked for dumps on time: one that a person made is neither looked at nor deleted.
        assert_eq!(due_at(now, &listed), Due::default());
        assert_eq!(due_at(now, &listed[..1]), backup_due(), "a dump is no physical backup");
        let both = Times { logical_every_s: DAY, ..times(now) };
        let looked_at = Due { verifications: vec!["d".to_owned()], ..Due::default() };
        assert_eq!(due(&listed, 2, "1", &both), looked_at);
        assert_eq!(due(&listed[1..], 2, "1", &both).backups, [Kind::Logical], "nor the other way round");
        let dumps_alone = Times { every_s: 0, ..both };
        let many: Vec<Listed> = (0..4).map(|n| dump(&format!("d{n}"), 2, now - n, Some(now))).collect();
        assert_eq!(due(&many, 2, "1", &dumps_alone).spare, ["d3", "d2"]);
        assert_eq!(due(&[], 2, "1", &dumps_alone).backups, [Kind::Logical]);
    }
}
