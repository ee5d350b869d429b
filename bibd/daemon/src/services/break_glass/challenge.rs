//! Requests for a grant that wait for their signature, in memory: a minute, once.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use bib_core::access::GlassAccess;
use bib_core::{Timestamp, UserId};
use uuid::Uuid;

use crate::clock::Ids;

/// How long a challenge may be answered.
const VALID_FOR: Duration = Duration::from_secs(60);
/// Requests that wait. Only admins make them; when there are more, the oldest is dropped.
const MAX_WAITING: usize = 64;

/// What is asked for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Wish {
    /// Why.
    pub reason: String,
    /// For how long.
    pub duration: Duration,
    /// What for.
    pub access: GlassAccess,
}

/// A challenge as the caller gets it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Challenge {
    /// Names it in the answer.
    pub id: Uuid,
    /// What must be signed.
    pub bytes: [u8; 32],
    /// Until when, by the node's clock.
    pub expires_at: Timestamp,
}

/// What an answer is compared with.
#[derive(Debug, Clone)]
pub(super) struct Waiting {
    pub(super) bytes: [u8; 32],
    pub(super) user: UserId,
    pub(super) wish: Wish,
    until: Instant,
}

/// See the module. Cheap to clone.
#[derive(Debug, Clone)]
pub(super) struct Challenges {
    waiting: Arc<Mutex<HashMap<Uuid, Waiting>>>,
    ids: Ids,
}

impl Challenges {
    pub(super) fn new(ids: Ids) -> Self {
        Self { waiting: Arc::default(), ids }
    }

    /// A challenge for this wish of this user.
    pub(super) fn give(&self, user: UserId, wish: Wish) -> Challenge {
        let (id, bytes, now) = (self.ids.uuid(), self.ids.entropy().bytes(), self.ids.clock().monotonic());
        let mut waiting = self.lock();
        waiting.retain(|_, one| now < one.until);
        while waiting.len() >= MAX_WAITING {
            // Ids sort by time.
            let oldest = waiting.keys().min().copied();
            oldest.and_then(|id| waiting.remove(&id));
        }
        waiting.insert(id, Waiting { bytes, user, wish, until: now + VALID_FOR });
        let seconds = i64::try_from(VALID_FOR.as_secs()).unwrap_or(i64::MAX);
        Challenge { id, bytes, expires_at: self.ids.clock().now().plus_seconds(seconds) }
    }

    /// Takes a challenge that is still valid. It is gone afterwards, whatever the answer was worth.
    pub(super) fn take(&self, id: Uuid) -> Option<Waiting> {
        let now = self.ids.clock().monotonic();
        self.lock().remove(&id).filter(|one| now < one.until)
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<Uuid, Waiting>> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::{Entropy, ManualClock};

    #[test]
    fn is_answered_once_within_a_minute_and_there_are_few() {
        let clock = ManualClock::at(Timestamp::from_micros(1_763_665_260_000_000));
        let challenges = Challenges::new(Ids::new(Arc::new(clock.clone()), Entropy::seeded(3)));
        let user = UserId::from_uuid(Uuid::from_u128(1));
        let wish = Wish { reason: "why".to_owned(), duration: Duration::from_secs(60), access: GlassAccess::ReadOnly };
        let first = challenges.give(user, wish.clone());
        assert_eq!(challenges.take(first.id).unwrap().bytes, first.bytes);
        assert!(challenges.take(first.id).is_none());
        let late = challenges.give(user, wish.clone());
        clock.advance(VALID_FOR);
        assert!(challenges.take(late.id).is_none());
        for _ in 0..1_000 {
            clock.advance(Duration::from_millis(1));
            challenges.give(user, wish.clone());
        }
        assert!(challenges.lock().len() <= MAX_WAITING);
    }
}
