//! Chunks that nobody has read for long lie in object storage instead of on disk.
//!
//! ```text
//! arrives ──▶ file ──(not read for `blobs.tier.after`)──▶ object ──(read)──▶ file and object ──(cold again)──▶ object
//! ```
//!
//! A chunk is acknowledged when its file is durable, as without any of this. Out ([`moving`]): the object is written and
//! read back whole, its row is committed; then, under the chunk's lock, `location` changes and the file goes to the
//! trash. Back ([`reading`]): what came is checked, the file made durable, `location` changed; the object stays, so that
//! the next move out costs a read and no write. Killed anywhere, a chunk has a row that is true of a place where it is whole;
//! what is left over is an object without a row, which [`checking`] removes after a day, or a file too many, which the
//! scrubber moves to the trash. A read that finds no file where its row says so looks for the object too, also by its
//! name alone: so a node restored to a moment before a move finds its chunks.
//!
//! A store that is away makes reads of what lies there alone fail, at once after the first (`Away`), and nothing else.
//! [`Tier`] is the handle that reads and removals use; [`TierUseCases`] moves and checks.

pub mod checking;
pub mod moving;
pub mod opening;
pub mod reading;

use std::collections::HashMap;
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use bib_core::Hash;
use bib_identity::Recipient;
use bibd_blobs::{Fetched, ObjectError, ObjectName, Objects};
use bibd_catalog::objects::{self, ObjectRow};
use bytes::Bytes;
use prometheus::{IntCounter, IntCounterVec, Opts, Registry};
use tokio::sync::OnceCell;

pub use self::moving::TierUseCases;
use super::base::Base;
use super::error::ServiceError;
use crate::errors::ErrorCode;
use crate::grpc::error::chain;
use crate::grpc::health::{Condition, HealthBoard};
use crate::s3::Keys;

/// The component in health.
const COMPONENT: &str = "object-storage";
/// The pause after a store was away: the first, and the longest.
const FIRST_PAUSE: Duration = Duration::from_secs(1);
const LONGEST_PAUSE: Duration = Duration::from_secs(60);

/// To whom objects are sealed now: the node and its recovery key.
pub type Recipients = Arc<dyn Fn() -> Result<Vec<Recipient>, ServiceError> + Send + Sync>;

/// How chunks are tiered.
#[derive(Debug, Clone, Copy)]
pub struct TierSettings {
    /// Chunks that were not read for so many days move out.
    pub after_days: i32,
    /// Objects are sealed.
    pub is_sealed: bool,
    /// Bytes that reads bring back to disk in a day; 0 is none.
    pub back_per_day: u64,
    /// Bytes of objects that are read again in a day to see whether they are whole.
    pub check_per_day: u64,
    /// While the disk has less than this nothing is brought back.
    pub min_free_bytes: u64,
}

/// What a tier is made of.
pub struct TierParts {
    /// The place in the bucket.
    pub objects: Objects,
    /// What opens the bucket.
    pub keys: Keys,
    /// To whom objects are sealed.
    pub recipients: Recipients,
    /// How.
    pub settings: TierSettings,
}

/// The place of cold chunks, where there is one. Cheap to clone.
#[derive(Clone)]
pub struct Tier(Arc<Inner>);

struct Inner {
    base: Base,
    parts: Option<TierParts>,
    health: HealthBoard,
    metrics: TierMetrics,
    /// Done once FORMAT was seen to be ours.
    claimed: OnceCell<()>,
    away: Mutex<Option<Away>>,
    /// Read since the last note, and the day that they were.
    reads: Mutex<HashMap<Hash, i32>>,
    /// Bytes that reads brought back on this day.
    brought: Mutex<(i32, u64)>,
}

/// A store that could not be used, and until when nobody asks it again.
#[derive(Debug, Clone)]
struct Away {
    until: Instant,
    pause: Duration,
    sentence: String,
    hint: String,
}

#[derive(Debug, Clone)]
struct TierMetrics {
    /// `bibd_tier_chunks_total{to}`: `objects` or `disk`.
    chunks: IntCounterVec,
    /// `bibd_tier_bytes_total{to}`.
    bytes: IntCounterVec,
    /// `bibd_tier_failures_total`.
    failures: IntCounter,
}

impl fmt::Debug for Tier {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Tier").field(&self.0.parts.as_ref().map(|parts| &parts.objects)).finish()
    }
}

impl Tier {
    /// Over the node, with a place in a bucket or without.
    ///
    /// # Errors
    /// When a counter is registered twice, which is a mistake in the program.
    pub fn new(
        base: Base,
        parts: Option<TierParts>,
        health: HealthBoard,
        registry: &Registry,
    ) -> Result<Self, prometheus::Error> {
        let moved = |name: &str, help: &str| {
            let counter = IntCounterVec::new(Opts::new(name, help), &["to"])?;
            registry.register(Box::new(counter.clone()))?;
            Ok::<_, prometheus::Error>(counter)
        };
        let failures = IntCounter::new("bibd_tier_failures_total", "Times that object storage could not be used.")?;
        registry.register(Box::new(failures.clone()))?;
        let metrics = TierMetrics {
            chunks: moved("bibd_tier_chunks_total", "Chunks moved to object storage, or back to disk.")?,
            bytes: moved("bibd_tier_bytes_total", "Their bytes.")?,
            failures,
        };
        Ok(Self(Arc::new(Inner {
            base,
            parts,
            health,
            metrics,
            claimed: OnceCell::new(),
            away: Mutex::default(),
            reads: Mutex::default(),
            brought: Mutex::default(),
        })))
    }

    /// Whether there is a place in a bucket.
    #[must_use]
    pub fn is_configured(&self) -> bool {
        self.0.parts.is_some()
    }

    fn parts(&self) -> Result<&TierParts, ServiceError> {
        self.0.parts.as_ref().ok_or_else(|| {
            ServiceError::conflict(
                ErrorCode::UNMET_CONDITION,
                "this node has no object storage",
                "set `blobs.tier.store` to s3://bucket/prefix and start the daemon again",
            )
        })
    }

    /// The place, when it is this node's and was not away a moment ago.
    async fn ready(&self) -> Result<&TierParts, ServiceError> {
        let parts = self.parts()?;
        let now = self.monotonic();
        if let Some(away) = lock(&self.0.away).as_ref().filter(|away| now < away.until) {
            let retry_after = away.until.saturating_duration_since(now);
            return Err(unavailable(&away.sentence, retry_after));
        }
        let claim = || async {
            let mut session = self.0.base.db.read().await?;
            let has_objects = objects::any(&mut session).await?;
            drop(session);
            let base = &self.0.base;
            let claimed = parts.objects.claim(&base.peer, |node| base.is_own(node), !has_objects).await;
            claimed.map_err(|error| self.failed(&error))
        };
        self.0.claimed.get_or_try_init(claim).await?;
        Ok(parts)
    }

    /// Asks the store now, also during a pause: what is wrong with it, and what to do.
    async fn ask(&self) -> Result<(), (String, String)> {
        let said = |error: ServiceError| match lock(&self.0.away).clone() {
            Some(away) => (away.sentence, away.hint),
            None => (error.to_string(), error.hint()),
        };
        let parts = self.parts().map_err(said)?;
        let asked = parts.objects.page(parts.settings.is_sealed, None, 1).await;
        self.judge(asked).map_err(said)?.map(drop).map_err(|error| (chain(&error), hint(&error)))?;
        self.ready().await.map(drop).map_err(said)
    }

    /// Reads an object, and checks it. `Err` with `Ok` inside: the store answered, and the object is at fault.
    async fn get(&self, chunk: &Hash, sealed: bool) -> Result<Result<Fetched, ObjectError>, ServiceError> {
        let parts = self.ready().await?;
        self.judge(parts.objects.get(chunk, sealed).await)
    }

    /// Writes an object and reads it back.
    async fn put(&self, chunk: &Hash, stored: Bytes, recipients: &[Recipient]) -> Result<ObjectRow, ServiceError> {
        let parts = self.ready().await?;
        let put = self.judge(parts.objects.put(chunk, stored, recipients).await)?;
        // What was written a moment ago and is not there now: this store keeps nothing.
        let bytes = put.map_err(|error| self.failed(&error))?;
        let ObjectName { sealed, name } = parts.objects.name(chunk, !recipients.is_empty());
        Ok(ObjectRow { name, sealed, bytes })
    }

    /// Removes an object.
    ///
    /// # Errors
    /// When the store is away.
    pub(super) async fn remove(&self, object: &ObjectRow) -> Result<(), ServiceError> {
        let parts = self.ready().await?;
        let name = ObjectName { sealed: object.sealed, name: object.name };
        self.judge(parts.objects.remove(&name).await)?.map_err(|error| self.failed(&error))
    }

    /// To whom objects are to be sealed now; nobody when they are not.
    fn recipients(&self) -> Result<Vec<Recipient>, ServiceError> {
        let parts = self.parts()?;
        if !parts.settings.is_sealed {
            return Ok(Vec::new());
        }
        (parts.recipients)().inspect_err(|error| {
            self.0.health.set(COMPONENT, Condition::Degraded(format!("no chunk moves to object storage: {error}")));
        })
    }

    /// Takes note of how the store is; what is an object's own fault is passed on.
    fn judge<T>(&self, outcome: Result<T, ObjectError>) -> Result<Result<T, ObjectError>, ServiceError> {
        match outcome {
            Err(error @ (ObjectError::Missing { .. } | ObjectError::Wrong { .. })) => {
                self.answered();
                Ok(Err(error))
            }
            Err(error) => Err(self.failed(&error)),
            Ok(answer) => {
                self.answered();
                Ok(Ok(answer))
            }
        }
    }

    fn answered(&self) {
        if lock(&self.0.away).take().is_some() {
            tracing::info!("object storage answers again");
        }
        self.0.health.set(COMPONENT, Condition::Serving);
    }

    /// Nobody asks again for a while, longer each time.
    fn failed(&self, error: &ObjectError) -> ServiceError {
        self.0.metrics.failures.inc();
        let sentence = format!("object storage cannot be used: {}", chain(error));
        let hint = hint(error);
        let mut away = lock(&self.0.away);
        let now = self.monotonic();
        let pause = match &*away {
            // Those that were under way with the first fail together: one step.
            Some(away) if now < away.until => away.pause,
            Some(away) => (away.pause * 2).min(LONGEST_PAUSE),
            None => FIRST_PAUSE,
        };
        if away.as_ref().is_none_or(|away| away.sentence != sentence) {
            tracing::warn!(hint, "{sentence}");
        }
        *away = Some(Away { until: now + pause, pause, sentence: sentence.clone(), hint });
        drop(away);
        self.0.health.set(COMPONENT, Condition::Degraded(sentence.clone()));
        unavailable(&sentence, pause)
    }

    fn monotonic(&self) -> Instant {
        self.0.base.ids.clock().monotonic()
    }

    fn count(&self, to: &str, chunks: u64, bytes: u64) {
        self.0.metrics.chunks.with_label_values(&[to]).inc_by(chunks);
        self.0.metrics.bytes.with_label_values(&[to]).inc_by(bytes);
    }
}

/// What a person can do about it.
fn hint(error: &ObjectError) -> String {
    match error {
        ObjectError::Store(error) => error.problem.hint_for("blobs.tier", "bib admin storage"),
        ObjectError::Taken { .. } => "choose another prefix in `blobs.tier.store`: each node has its own".to_owned(),
        ObjectError::Elsewhere { .. } => {
            "correct `blobs.tier.store`; where FORMAT was lost, write it again as docs/formats.md says".to_owned()
        }
        ObjectError::Format { .. } => "choose an empty prefix in `blobs.tier.store`".to_owned(),
        ObjectError::Missing { .. } | ObjectError::Wrong { .. } => {
            "use a store that gives back what it took; nothing was moved there".to_owned()
        }
        ObjectError::Seal(_) => "`bibd doctor` looks for the cause".to_owned(),
    }
}

fn unavailable(sentence: &str, retry_after: Duration) -> ServiceError {
    ServiceError::Unavailable {
        code: ErrorCode::OBJECTS_UNAVAILABLE,
        sentence: sentence.to_owned(),
        retry_after: retry_after.max(FIRST_PAUSE),
    }
}

/// What is held is whole after every use.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
