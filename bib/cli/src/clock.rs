//! The one clock and the one source of randomness of `bib`. Everything else is given them.

use bib_client::Random;
use bib_core::Timestamp;
use bib_identity::TimeSource;
use rand::RngCore as _;

/// The machine's clock.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Clock;

impl Clock {
    /// The time of day.
    #[allow(clippy::disallowed_methods, reason = "this is the clock that everything else takes")]
    pub(crate) fn now(self) -> Timestamp {
        Timestamp::from(time::OffsetDateTime::now_utc())
    }

    /// The same for TLS and the client.
    pub(crate) fn source(self) -> TimeSource {
        TimeSource::new(move || self.now())
    }
}

/// The operating system's randomness.
pub(crate) fn random() -> Random {
    Random::new(|bytes| rand::rngs::OsRng.fill_bytes(bytes))
}
