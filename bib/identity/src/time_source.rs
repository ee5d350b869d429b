//! The clock that TLS handshakes are judged by: the composition root's, not the system's behind its back.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use bib_core::Timestamp;
use rustls::pki_types::UnixTime;
use rustls::time_provider::TimeProvider;

/// A clock for rustls, made of a function that tells the time.
#[derive(Clone)]
pub struct TimeSource(Arc<dyn Fn() -> Timestamp + Send + Sync>);

impl TimeSource {
    /// A clock that asks `now` at every handshake.
    pub fn new(now: impl Fn() -> Timestamp + Send + Sync + 'static) -> Self {
        Self(Arc::new(now))
    }

    /// The time by this clock.
    #[must_use]
    pub fn now(&self) -> Timestamp {
        (self.0)()
    }
}

impl fmt::Debug for TimeSource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("TimeSource")
    }
}

impl TimeProvider for TimeSource {
    fn current_time(&self) -> Option<UnixTime> {
        // A clock before 1970 is no clock: rustls then fails the handshake.
        u64::try_from(self.now().as_seconds()).ok().map(|s| UnixTime::since_unix_epoch(Duration::from_secs(s)))
    }
}

/// What rustls hands to verifiers, as our type.
pub(crate) fn timestamp_of(now: UnixTime) -> Timestamp {
    Timestamp::from_micros(0).plus_seconds(i64::try_from(now.as_secs()).unwrap_or(i64::MAX))
}
