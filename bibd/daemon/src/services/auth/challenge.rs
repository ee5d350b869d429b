//! Challenges that were given out and not yet answered, in memory: 60 seconds, single use, bounded in all and for each
//! address.
//!
//! Giving one out asks nobody whether the key is known, so that nothing can be learnt from the answer.

use std::collections::{HashMap, VecDeque};
use std::net::IpAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use bib_core::Timestamp;
use bib_identity::ssh::PublicKey;
use uuid::Uuid;

use crate::clock::Ids;
use crate::errors::ErrorCode;
use crate::services::ServiceError;

/// How long a challenge may be answered.
pub const VALID_FOR: Duration = Duration::from_secs(60);
/// Challenges that wait for an answer, in all. When there are more, the oldest is dropped: whoever logs in answers
/// within a second, whoever floods does not answer.
const MAX_WAITING: usize = 8192;
/// Challenges that wait for an answer, for one address.
const MAX_PER_ADDRESS: usize = 64;

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
#[derive(Debug)]
pub(super) struct Waiting {
    pub(super) bytes: [u8; 32],
    pub(super) key: PublicKey,
    address: IpAddr,
    until: Instant,
}

#[derive(Debug, Default)]
struct Table {
    waiting: HashMap<Uuid, Waiting>,
    /// In the order in which they were given out, which is the order in which they expire.
    order: VecDeque<Uuid>,
    by_address: HashMap<IpAddr, usize>,
}

/// See the module. Cheap to clone.
#[derive(Debug, Clone)]
pub(super) struct Challenges {
    table: Arc<Mutex<Table>>,
    ids: Ids,
}

impl Challenges {
    pub(super) fn new(ids: Ids) -> Self {
        Self { table: Arc::default(), ids }
    }

    /// A new challenge for this key.
    ///
    /// # Errors
    /// [`ServiceError::Exhausted`] when too many for this address are unanswered.
    pub(super) fn give(&self, key: PublicKey, address: IpAddr) -> Result<Challenge, ServiceError> {
        let (id, bytes) = (self.ids.uuid(), self.ids.entropy().bytes());
        let (now, moment) = (self.ids.clock().monotonic(), self.ids.clock().now());
        let mut table = self.lock();
        table.drop_expired(now);
        if table.by_address.get(&address).is_some_and(|count| *count >= MAX_PER_ADDRESS) {
            return Err(ServiceError::Exhausted {
                code: ErrorCode::RATE_LIMITED,
                sentence: "too many log-ins from this address were begun and not finished".to_owned(),
                hint: "wait a minute".to_owned(),
                retry_after: Some(VALID_FOR),
            });
        }
        if table.waiting.len() >= MAX_WAITING {
            table.drop_oldest();
        }
        table.waiting.insert(id, Waiting { bytes, key, address, until: now + VALID_FOR });
        table.order.push_back(id);
        *table.by_address.entry(address).or_default() += 1;
        let seconds = i64::try_from(VALID_FOR.as_secs()).unwrap_or(i64::MAX);
        Ok(Challenge { id, bytes, expires_at: moment.plus_seconds(seconds) })
    }

    /// Takes a challenge that is still valid. It is gone afterwards, whatever the answer was worth.
    pub(super) fn take(&self, id: Uuid) -> Option<Waiting> {
        let now = self.ids.clock().monotonic();
        let mut table = self.lock();
        let waiting = table.remove(id)?;
        (now < waiting.until).then_some(waiting)
    }

    fn lock(&self) -> MutexGuard<'_, Table> {
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Table {
    fn remove(&mut self, id: Uuid) -> Option<Waiting> {
        let waiting = self.waiting.remove(&id)?;
        if let Some(count) = self.by_address.get_mut(&waiting.address) {
            *count -= 1;
            if *count == 0 {
                self.by_address.remove(&waiting.address);
            }
        }
        Some(waiting)
    }

    fn drop_expired(&mut self, now: Instant) {
        while let Some(oldest) = self.order.front().copied() {
            // Ids of answered challenges stay in the order until their turn; there are never more than were given out
            // in a minute, which the rate limit bounds.
            if self.waiting.get(&oldest).is_some_and(|waiting| now < waiting.until) {
                return;
            }
            self.order.pop_front();
            self.remove(oldest);
        }
    }

    fn drop_oldest(&mut self) {
        while let Some(oldest) = self.order.pop_front() {
            if self.remove(oldest).is_some() {
                return;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::{Entropy, ManualClock};

    const LINE: &str = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIJ7jJiYqYaUbTnCWuQzYyJ1nAAKZQmGZ0bK5o2hHbUJE";

    fn challenges() -> (Challenges, ManualClock) {
        let clock = ManualClock::at(Timestamp::from_micros(1_763_665_260_000_000));
        (Challenges::new(Ids::new(Arc::new(clock.clone()), Entropy::seeded(3))), clock)
    }

    fn give(challenges: &Challenges, host: u32) -> Result<Challenge, ServiceError> {
        challenges.give(LINE.parse().unwrap(), IpAddr::from(host.to_be_bytes()))
    }

    #[test]
    fn is_answered_once_and_within_a_minute() {
        let (challenges, clock) = challenges();
        let first = give(&challenges, 1).unwrap();
        assert_eq!(challenges.take(first.id).unwrap().bytes, first.bytes);
        assert!(challenges.take(first.id).is_none());
        let late = give(&challenges, 1).unwrap();
        assert_ne!(late.bytes, first.bytes);
        clock.advance(VALID_FOR);
        assert!(challenges.take(late.id).is_none());
    }

    #[test]
    fn one_address_cannot_take_all_and_all_of_them_are_bounded() {
        let (challenges, clock) = challenges();
        let mine = give(&challenges, 1).unwrap();
        for _ in 1..MAX_PER_ADDRESS {
            give(&challenges, 1).unwrap();
        }
        assert!(matches!(give(&challenges, 1), Err(ServiceError::Exhausted { .. })));
        give(&challenges, 2).unwrap();
        assert!(challenges.take(mine.id).is_some());
        give(&challenges, 1).unwrap();
        for host in 0..20_000 {
            give(&challenges, host + 10).unwrap();
        }
        assert!(challenges.lock().waiting.len() <= MAX_WAITING);
        clock.advance(VALID_FOR);
        give(&challenges, 3).unwrap();
        let table = challenges.lock();
        assert_eq!((table.waiting.len(), table.order.len(), table.by_address.len()), (1, 1, 1));
    }
}
