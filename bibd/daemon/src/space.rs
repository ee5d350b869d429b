//! How much room the disks of the data directory have. What writes is refused while there is less than
//! `limits.min_free_bytes`, so that PostgreSQL, which cannot wait, never meets a full disk because of us.
//!
//! It looks and tells; `grpc/stack/space.rs` refuses. Reading, deleting and collecting always go on.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use tokio_util::sync::CancellationToken;

use crate::grpc::health::{Condition, HealthBoard};
use crate::supervisor::TaskResult;

/// How often the disks are looked at: in this time a fast disk takes less than the default reserve.
const LOOK_EVERY: Duration = Duration::from_millis(200);
/// Percent in use from which health says so.
const WARN_PERCENT: u64 = 85;
/// Percent in use from which it is urgent.
const URGENT_PERCENT: u64 = 95;

/// Whether there is room. Cheap to clone.
#[derive(Debug, Clone, Default)]
pub struct Space(Arc<AtomicBool>);

impl Space {
    /// Is there less free than `limits.min_free_bytes`?
    #[must_use]
    pub fn is_low(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }

    /// Looks at the disks of `directories` until `stop`, says `disk` on the board.
    ///
    /// # Errors
    /// Never by itself; the signature is the supervisor's.
    pub async fn watch(
        self,
        directories: Vec<PathBuf>,
        min_free_bytes: u64,
        board: HealthBoard,
        stop: CancellationToken,
    ) -> TaskResult {
        loop {
            self.look(&directories, min_free_bytes, &board);
            if stop.run_until_cancelled(tokio::time::sleep(LOOK_EVERY)).await.is_none() {
                return Ok(());
            }
        }
    }

    /// Looks once. A directory that does not answer is left to those who use it.
    pub fn look(&self, directories: &[PathBuf], min_free_bytes: u64, board: &HealthBoard) {
        let disks = directories.iter().filter_map(|path| rustix::fs::statvfs(path.as_path()).ok());
        let tightest = disks
            .map(|disk| {
                let free = disk.f_bavail.saturating_mul(disk.f_frsize);
                // What is kept for root counts as neither.
                let usable = (disk.f_blocks - disk.f_bfree).saturating_add(disk.f_bavail).max(1);
                (free, 100 - disk.f_bavail.saturating_mul(100) / usable)
            })
            .min();
        let Some((free, percent)) = tightest else { return };
        self.0.store(free < min_free_bytes, Ordering::Relaxed);
        board.set("disk", condition(free, percent, min_free_bytes));
    }
}

/// Sentences without figures that change all the time: each is a change that watchers are told of.
fn condition(free: u64, percent: u64, min_free_bytes: u64) -> Condition {
    if free < min_free_bytes {
        let mib = min_free_bytes >> 20;
        return Condition::Degraded(format!("less than {mib} MiB are free: nothing can be written, reading goes on"));
    }
    match percent {
        URGENT_PERCENT.. => {
            Condition::Degraded(format!("more than {URGENT_PERCENT} % of the disk are in use: make room now"))
        }
        WARN_PERCENT.. => Condition::Degraded(format!("more than {WARN_PERCENT} % of the disk are in use")),
        _ => Condition::Serving,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn alerts_come_at_85_and_95_percent_and_below_the_reserve() {
        let said = |free, percent| match condition(free, percent, 1 << 20) {
            Condition::Degraded(why) => why,
            Condition::Serving | Condition::Down(_) => String::new(),
        };
        assert_eq!(said(1 << 30, 84), "");
        assert!(said(1 << 30, 85).contains("85 %") && said(1 << 30, 96).contains("95 %"));
        assert!(said((1 << 20) - 1, 10).contains("less than 1 MiB"));
    }

    #[test]
    fn a_reserve_that_no_disk_has_is_low() {
        let (space, board) = (Space::default(), HealthBoard::default());
        space.look(&[std::env::temp_dir()], u64::MAX, &board);
        assert!(space.is_low() && matches!(board.condition("disk"), Some(Condition::Degraded(_))));
        space.look(&[std::env::temp_dir()], 0, &board);
        assert!(!space.is_low());
    }
}
