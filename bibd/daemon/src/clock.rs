//! Time, randomness and ids, made once in the composition root and passed in everywhere.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use bib_core::{Nonce, OperationId, SessionId, Timestamp, UserId};
use rand::rngs::StdRng;
use rand::{CryptoRng, RngCore, SeedableRng};
use uuid::Uuid;

/// Tells the time.
pub trait Clock: Send + Sync + 'static {
    /// Now, as the world counts: for people, certificates and logs. It may jump.
    fn now(&self) -> Timestamp;

    /// Now, on a scale that never jumps: for leases, deadlines and durations.
    fn monotonic(&self) -> Instant;
}

/// The operating system's clock.
#[derive(Debug, Clone, Copy, Default)]
pub struct SystemClock;

impl Clock for SystemClock {
    #[allow(clippy::disallowed_methods, reason = "this is the one place that asks the system")]
    fn now(&self) -> Timestamp {
        Timestamp::from(time::OffsetDateTime::now_utc())
    }

    fn monotonic(&self) -> Instant {
        Instant::now()
    }
}

/// A clock that moves only when told, for tests.
#[derive(Debug, Clone)]
pub struct ManualClock {
    state: Arc<Mutex<(Timestamp, Instant)>>,
}

impl ManualClock {
    /// A clock that stands at `now`.
    #[must_use]
    pub fn at(now: Timestamp) -> Self {
        Self { state: Arc::new(Mutex::new((now, Instant::now()))) }
    }

    /// Moves both scales on.
    pub fn advance(&self, by: Duration) {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let micros = i64::try_from(by.as_micros()).unwrap_or(i64::MAX);
        state.0 = Timestamp::from_micros(state.0.as_micros().saturating_add(micros));
        state.1 += by;
    }

    /// Sets the world's time, as an operator or a bad time server would; the monotonic scale stays.
    pub fn jump_to(&self, now: Timestamp) {
        self.state.lock().unwrap_or_else(PoisonError::into_inner).0 = now;
    }
}

impl Clock for ManualClock {
    fn now(&self) -> Timestamp {
        self.state.lock().unwrap_or_else(PoisonError::into_inner).0
    }

    fn monotonic(&self) -> Instant {
        self.state.lock().unwrap_or_else(PoisonError::into_inner).1
    }
}

/// The daemon's one random number generator (ChaCha, seeded by the operating system), shared by handle.
#[derive(Clone)]
pub struct Entropy(Arc<Mutex<StdRng>>);

impl std::fmt::Debug for Entropy {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Entropy")
    }
}

impl Entropy {
    /// Seeded by the operating system.
    #[must_use]
    pub fn from_system() -> Self {
        Self(Arc::new(Mutex::new(StdRng::from_entropy())))
    }

    /// The same numbers each time, for tests.
    #[must_use]
    pub fn seeded(seed: u64) -> Self {
        Self(Arc::new(Mutex::new(StdRng::seed_from_u64(seed))))
    }

    /// `N` random bytes.
    #[must_use]
    pub fn bytes<const N: usize>(&self) -> [u8; N] {
        let mut bytes = [0; N];
        self.lock().fill_bytes(&mut bytes);
        bytes
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, StdRng> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl RngCore for Entropy {
    fn next_u32(&mut self) -> u32 {
        self.lock().next_u32()
    }

    fn next_u64(&mut self) -> u64 {
        self.lock().next_u64()
    }

    fn fill_bytes(&mut self, dest: &mut [u8]) {
        self.lock().fill_bytes(dest);
    }

    fn try_fill_bytes(&mut self, dest: &mut [u8]) -> Result<(), rand::Error> {
        self.lock().try_fill_bytes(dest)
    }
}

impl CryptoRng for Entropy {}

/// Makes ids from the clock and the random number generator.
#[derive(Clone)]
pub struct Ids {
    clock: Arc<dyn Clock>,
    entropy: Entropy,
}

impl std::fmt::Debug for Ids {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Ids")
    }
}

impl Ids {
    /// Ids by this clock and generator.
    #[must_use]
    pub fn new(clock: Arc<dyn Clock>, entropy: Entropy) -> Self {
        Self { clock, entropy }
    }

    /// A UUIDv7 whose twelve bits after the version are the fraction of the millisecond (RFC 9562, method 3), so that
    /// ids of one daemon sort by time to about a microsecond.
    #[must_use]
    pub fn uuid(&self) -> Uuid {
        let micros = u64::try_from(self.clock.now().as_micros()).unwrap_or(0);
        let mut tail: [u8; 10] = self.entropy.bytes();
        // 0..1000 microseconds scaled to 0..4096; the lowest bits stay random.
        let fraction = (micros % 1_000) * 4 + u64::from(tail[1] & 3);
        tail[..2].copy_from_slice(&u16::try_from(fraction).unwrap_or(u16::MAX).to_be_bytes());
        uuid::Builder::from_unix_timestamp_millis(micros / 1_000, &tail).into_uuid()
    }

    /// A new operation.
    #[must_use]
    pub fn operation(&self) -> OperationId {
        OperationId::from_uuid(self.uuid())
    }

    /// A new session.
    #[must_use]
    pub fn session(&self) -> SessionId {
        SessionId::from_uuid(self.uuid())
    }

    /// A new user.
    #[must_use]
    pub fn user(&self) -> UserId {
        UserId::from_uuid(self.uuid())
    }

    /// The nonce of a new topic or dataset.
    #[must_use]
    pub fn nonce(&self) -> Nonce {
        Nonce::from_bytes(self.entropy.bytes())
    }

    /// The generator behind the ids.
    #[must_use]
    pub fn entropy(&self) -> &Entropy {
        &self.entropy
    }

    /// The clock behind the ids.
    #[must_use]
    pub fn clock(&self) -> &Arc<dyn Clock> {
        &self.clock
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_are_version_7_and_sort_by_time() {
        let clock = ManualClock::at(Timestamp::from_micros(1_763_665_260_000_007));
        let ids = Ids::new(Arc::new(clock.clone()), Entropy::seeded(1));
        let mut before = ids.uuid();
        assert_eq!(before.get_version_num(), 7);
        for _ in 0..2_000 {
            clock.advance(Duration::from_micros(1));
            let next = ids.uuid();
            assert!(next > before, "{next} after {before}");
            before = next;
        }
    }

    #[test]
    fn a_jump_of_the_clock_leaves_the_monotonic_scale_alone() {
        let clock = ManualClock::at(Timestamp::from_micros(1_000_000));
        let before = clock.monotonic();
        clock.jump_to(Timestamp::from_micros(0));
        assert_eq!(clock.monotonic(), before);
    }
}
