//! Who was recognised in the last two seconds, so that a busy caller does not read the database with every call.
//!
//! What is kept is forgotten at once when anybody's rights change. A row that was read before a change and arrives
//! after it is not kept: each change moves the generation on, and a row is kept only in the generation it was read in.

use std::collections::HashMap;
use std::hash::Hash as StdHash;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use bib_core::access::NodeRole;
use bib_core::{Hash, SessionId, UserId};

use crate::actor::Scopes;
use crate::clock::Clock;

/// How long somebody stays recognised.
const KEEP: Duration = Duration::from_secs(2);
/// How many are kept of each kind.
const MAX_ENTRIES: usize = 4096;

/// An active user.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(in crate::services) struct KnownUser {
    pub(in crate::services) id: UserId,
    pub(in crate::services) name: String,
    pub(in crate::services) role: NodeRole,
}

/// A token that is valid, and its user.
#[derive(Debug, Clone)]
pub(in crate::services) struct KnownBearer {
    pub(in crate::services) user: KnownUser,
    pub(in crate::services) session: SessionId,
    pub(in crate::services) serial: String,
    pub(in crate::services) scopes: Scopes,
}

/// The generation in which a row was read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::services) struct Ticket(u64);

#[derive(Debug, Default)]
struct Table {
    generation: u64,
    users: HashMap<u32, (Instant, KnownUser)>,
    bearers: HashMap<Hash, (Instant, KnownBearer)>,
}

/// See the module. Cheap to clone.
#[derive(Clone)]
pub(in crate::services) struct Recognised {
    table: Arc<Mutex<Table>>,
    clock: Arc<dyn Clock>,
}

impl std::fmt::Debug for Recognised {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Recognised")
    }
}

impl Recognised {
    pub(in crate::services) fn new(clock: Arc<dyn Clock>) -> Self {
        Self { table: Arc::default(), clock }
    }

    /// To be taken before a row is read.
    pub(in crate::services) fn ticket(&self) -> Ticket {
        Ticket(self.lock().generation)
    }

    pub(in crate::services) fn user(&self, uid: u32) -> Option<KnownUser> {
        fresh(&self.lock().users, &uid, self.clock.monotonic())
    }

    pub(in crate::services) fn bearer(&self, token: &Hash) -> Option<KnownBearer> {
        fresh(&self.lock().bearers, token, self.clock.monotonic())
    }

    pub(in crate::services) fn keep_user(&self, ticket: Ticket, uid: u32, user: KnownUser) {
        let mut table = self.lock();
        if table.generation == ticket.0 {
            keep(&mut table.users, uid, user, self.clock.monotonic());
        }
    }

    pub(in crate::services) fn keep_bearer(&self, ticket: Ticket, token: Hash, bearer: KnownBearer) {
        let mut table = self.lock();
        if table.generation == ticket.0 {
            keep(&mut table.bearers, token, bearer, self.clock.monotonic());
        }
    }

    /// Recognises everybody anew.
    pub(in crate::services) fn forget(&self) {
        let mut table = self.lock();
        table.generation += 1;
        table.users.clear();
        table.bearers.clear();
    }

    /// Forgets when the guard is dropped: also when a call is cut off in the middle of a commit.
    pub(in crate::services) fn forget_when_dropped(&self) -> Forget {
        Forget(self.clone())
    }

    fn lock(&self) -> MutexGuard<'_, Table> {
        // Each use is whole when a panic could strike, and forgetting is always safe.
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// See [`Recognised::forget_when_dropped`].
pub(in crate::services) struct Forget(Recognised);

impl Drop for Forget {
    fn drop(&mut self) {
        self.0.forget();
    }
}

fn fresh<K: Eq + StdHash, V: Clone>(map: &HashMap<K, (Instant, V)>, key: &K, now: Instant) -> Option<V> {
    map.get(key).filter(|(since, _)| now.saturating_duration_since(*since) < KEEP).map(|(_, value)| value.clone())
}

fn keep<K: Eq + StdHash, V>(map: &mut HashMap<K, (Instant, V)>, key: K, value: V, now: Instant) {
    if map.len() >= MAX_ENTRIES {
        map.retain(|_, (since, _)| now.saturating_duration_since(*since) < KEEP);
        if map.len() >= MAX_ENTRIES {
            map.clear();
        }
    }
    map.insert(key, (now, value));
}

#[cfg(test)]
mod tests {
    use bib_core::Timestamp;

    use super::*;
    use crate::clock::ManualClock;

    fn ada() -> KnownUser {
        KnownUser { id: UserId::from_uuid(uuid::Uuid::nil()), name: "ada".to_owned(), role: NodeRole::Admin }
    }

    #[test]
    fn keeps_for_two_seconds_and_forgets_at_once_when_told() {
        let clock = ManualClock::at(Timestamp::from_micros(0));
        let cache = Recognised::new(Arc::new(clock.clone()));
        cache.keep_user(cache.ticket(), 7, ada());
        assert_eq!(cache.user(7), Some(ada()));
        clock.advance(Duration::from_secs(2));
        assert_eq!(cache.user(7), None);
        cache.keep_user(cache.ticket(), 7, ada());
        drop(cache.forget_when_dropped());
        assert_eq!(cache.user(7), None);
    }

    #[test]
    fn a_row_read_before_a_change_is_not_kept_after_it() {
        let cache = Recognised::new(Arc::new(ManualClock::at(Timestamp::from_micros(0))));
        let before = cache.ticket();
        cache.forget();
        cache.keep_user(before, 7, ada());
        assert_eq!(cache.user(7), None);
    }

    #[test]
    fn is_bounded() {
        let cache = Recognised::new(Arc::new(ManualClock::at(Timestamp::from_micros(0))));
        for uid in 0..10_000 {
            cache.keep_user(cache.ticket(), uid, ada());
        }
        assert!(cache.lock().users.len() <= MAX_ENTRIES);
        assert!(cache.user(9_999).is_some());
    }
}
