//! Moving cold chunks out, sealing them anew when that is configured otherwise, and bringing everything back.
//!
//! Each step is a slice with its own entry in the audit log; whatever is killed in between goes on with the next round.

use std::sync::Arc;
use std::time::Duration;

use bib_core::access::Verb;
use bibd_blobs::{Encoding, Location};
use bibd_catalog::chunks::StoredChunk;
use bibd_catalog::objects::{self, Cold, ObjectRow, Tiered, Tiers};
use futures::{StreamExt as _, TryStreamExt as _, stream};
use serde_json::json;
use tokio::sync::{Mutex, mpsc};
use tokio_util::sync::CancellationToken;

use super::Tier;
use crate::actor::Call;
use crate::services::activity::Activity;
use crate::services::base::allow_node;
use crate::services::chunk_reader::ChunkReader;
use crate::services::collector::system_time;
use crate::services::error::ServiceError;
use crate::services::journal::Act;
use crate::services::store_errors::{damage, not_read, not_stored};
use crate::supervisor::TaskResult;

/// How often reads are noted.
const NOTE_EVERY: Duration = Duration::from_secs(60);
/// Every so many notes the rest is done: moving, checking.
const NOTES_A_ROUND: u32 = 10;
/// Rounds in a day, among which the bytes that are read again are divided.
pub(super) const ROUNDS_A_DAY: u64 = 144;
/// Chunks that move in one transaction.
const SLICE: u32 = 64;
/// Chunks on their way at once; each takes three times its size in memory.
const AT_ONCE: usize = 4;

/// The use cases of tiering. Cheap to clone.
#[derive(Debug, Clone)]
pub struct TierUseCases {
    pub(super) tier: Tier,
    pub(super) reader: ChunkReader,
    pub(super) activity: Activity,
    /// One move at a time: two would meet in the same chunks.
    running: Arc<Mutex<()>>,
}

/// Which way chunks move.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Direction {
    /// To object storage, those that are cold.
    Out,
    /// To disk, all of them; their objects go.
    Back,
}

/// A word of a move under way.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Moved {
    /// Chunks moved, or that would be.
    pub chunks: u64,
    /// Their bytes on disk.
    pub bytes: u64,
    /// Chunks that could not be moved; each was noted as damaged, or changed meanwhile.
    pub skipped: u64,
    /// The last word.
    pub finished: bool,
}

/// How object storage is.
#[derive(Debug, Clone)]
pub struct TierState {
    /// Where; empty when there is none.
    pub place: String,
    /// Whether new objects are sealed.
    pub is_sealed: bool,
    /// Days until a chunk is cold.
    pub after_days: i32,
    /// What lies where.
    pub tiers: Tiers,
    /// Cold chunks on disk, and their bytes: what the next round moves.
    pub cold: (u64, u64),
    /// What is wrong with the store, and what to do.
    pub problem: Option<(String, String)>,
}

/// A chunk whose object is there, read back whole.
struct Copied {
    chunk: StoredChunk,
    object: ObjectRow,
    /// An object that it had before, under another name.
    old: Option<ObjectRow>,
}

impl TierUseCases {
    /// Over the tier; what turns out damaged is noted by `reader`.
    #[must_use]
    pub fn new(tier: Tier, reader: ChunkReader, activity: Activity) -> Self {
        Self { tier, reader, activity, running: Arc::default() }
    }

    /// Whether there is a place in a bucket.
    #[must_use]
    pub fn is_configured(&self) -> bool {
        self.tier.is_configured()
    }

    /// The background task: notes reads, and now and then moves and checks.
    ///
    /// # Errors
    /// When the database or the disk fails; the supervisor makes another. A store that is away shows in health.
    pub async fn run(self, stop: CancellationToken) -> TaskResult {
        if !self.tier.is_configured() {
            return self.warn_of_orphans().await;
        }
        let mut checking = super::checking::Cursor::default();
        let mut notes = 0;
        while stop.run_until_cancelled(tokio::time::sleep(NOTE_EVERY)).await.is_some() {
            self.tier.flush_reads().await?;
            notes = (notes + 1) % NOTES_A_ROUND;
            if notes != 0 {
                continue;
            }
            // Cancelled anywhere, the next start goes on.
            match stop.run_until_cancelled(self.round(&mut checking)).await {
                Some(Err(error @ (ServiceError::Unavailable { .. } | ServiceError::Conflict { .. }))) => {
                    tracing::debug!(error = &error as &dyn std::error::Error, "the next round tries again");
                }
                Some(outcome) => outcome?,
                None => break,
            }
        }
        self.tier.flush_reads().await?;
        if let Some(parts) = &self.tier.0.parts {
            parts.objects.close();
        }
        Ok(())
    }

    /// Somebody took the setting away while chunks lie there.
    async fn warn_of_orphans(&self) -> TaskResult {
        let mut session = self.tier.0.base.db.read().await?;
        if objects::any(&mut session).await? {
            let sentence = "chunks lie in object storage, and none is configured: they cannot be read";
            tracing::error!(hint = "set `blobs.tier.store` again", "{sentence}");
            let condition = crate::grpc::health::Condition::Degraded(sentence.to_owned());
            self.tier.0.health.set(super::COMPONENT, condition);
        }
        Ok(())
    }

    async fn round(&self, checking: &mut super::checking::Cursor) -> Result<(), ServiceError> {
        let call = self.tier.0.base.internal_call("tier");
        let (out, told) = mpsc::channel(1); // nobody watches
        drop(told);
        self.move_out(&call, &out).await?;
        self.convert(&call).await?;
        self.check_round(checking).await.map(|_| ())
    }

    /// How object storage is, asked now.
    ///
    /// # Errors
    /// When the caller may not, or the database does not answer. What the store says is no error.
    pub async fn state(&self, call: &Call) -> Result<TierState, ServiceError> {
        allow_node(call, Verb::Maintain)?;
        let base = &self.tier.0.base;
        let mut session = base.db.read().await?;
        let tiers = objects::totals(&mut session).await?;
        let Some(parts) = &self.tier.0.parts else {
            let (place, cold) = (String::new(), (0, 0));
            return Ok(TierState { place, is_sealed: false, after_days: 0, tiers, cold, problem: None });
        };
        let cold = objects::cold_totals(&mut session, self.coldest_day()).await?;
        drop(session);
        let problem = self
            .tier
            .ask()
            .await
            .err()
            .or_else(|| self.tier.recipients().err().map(|error| (error.to_string(), error.hint())));
        Ok(TierState {
            place: parts.objects.place(),
            is_sealed: parts.settings.is_sealed,
            after_days: parts.settings.after_days,
            tiers,
            cold,
            problem,
        })
    }

    /// Moves chunks now, telling `out`; or says how many would move.
    ///
    /// # Errors
    /// When the caller may not, the store is away, or the database or the disk fails. What was moved stays moved.
    pub async fn move_chunks(
        &self,
        call: &Call,
        direction: Direction,
        dry_run: bool,
        out: mpsc::Sender<Result<Moved, ServiceError>>,
    ) -> Result<(), ServiceError> {
        allow_node(call, Verb::Maintain)?;
        self.tier.flush_reads().await?;
        let mut moved = match (direction, dry_run) {
            (Direction::Out, false) => {
                let moved = self.move_out(call, &out).await?;
                self.convert(call).await?;
                moved
            }
            (Direction::Back, false) => self.move_back(call, &out).await?,
            (direction, true) => self.would_move(direction).await?,
        };
        moved.finished = true;
        if out.send(Ok(moved)).await.is_err() {
            tracing::debug!("the caller went away at the end of a move");
        }
        Ok(())
    }

    async fn would_move(&self, direction: Direction) -> Result<Moved, ServiceError> {
        self.tier.parts()?;
        let mut session = self.tier.0.base.db.read().await?;
        let (chunks, bytes) = match direction {
            Direction::Out => objects::cold_totals(&mut session, self.coldest_day()).await?,
            Direction::Back => {
                let tiers = objects::totals(&mut session).await?;
                (tiers.objects, tiers.object_bytes)
            }
        };
        Ok(Moved { chunks, bytes, ..Moved::default() })
    }

    /// Chunks whose last read is of this day or older are cold.
    fn coldest_day(&self) -> i32 {
        let after = self.tier.0.parts.as_ref().map_or(i32::MAX, |parts| parts.settings.after_days);
        objects::day(self.tier.0.base.now()).saturating_sub(after)
    }

    async fn move_out(
        &self,
        call: &Call,
        out: &mpsc::Sender<Result<Moved, ServiceError>>,
    ) -> Result<Moved, ServiceError> {
        let _running = self.running.lock().await;
        let base = &self.tier.0.base;
        let recipients = self.tier.recipients()?;
        let (day, mut after, mut moved) = (self.coldest_day(), None, Moved::default());
        loop {
            self.activity.step_aside().await;
            let mut session = base.db.read().await?;
            let cold = objects::cold(&mut session, day, after, SLICE).await?;
            drop(session);
            let Some(last) = cold.last() else { return Ok(moved) };
            after = Some((last.day, last.chunk.hash));
            let count = cold.len() as u64;
            let copies = stream::iter(cold).map(|cold| self.copy(cold, &recipients)).buffer_unordered(AT_ONCE);
            let copied: Vec<Option<Copied>> = copies.try_collect().await?;
            let done = self.settle(call, copied.into_iter().flatten().collect(), day).await?;
            moved.chunks += done.0;
            moved.bytes += done.1;
            moved.skipped += count - done.0;
            // Who does not listen any more is told nothing; the work goes on.
            let _ = out.send(Ok(moved)).await;
        }
    }

    /// Sees that a chunk has a whole object. `None` when its file is not whole, which was noted.
    async fn copy(&self, cold: Cold, recipients: &[bib_identity::Recipient]) -> Result<Option<Copied>, ServiceError> {
        let (chunk, hash) = (cold.chunk, cold.chunk.hash);
        if let Some(object) = cold.object.filter(|object| object.sealed != recipients.is_empty())
            && self.tier.get(&hash, object.sealed).await?.is_ok()
        {
            return Ok(Some(Copied { chunk, object, old: None }));
        }
        let encoding = if chunk.zstd { Encoding::Zstd } else { Encoding::Raw };
        let location = Location::Store { encoding, stored_bytes: chunk.stored_bytes };
        let stored = match self.tier.0.base.blobs.read_stored(&location, &hash, chunk.raw_length).await {
            Ok(stored) => stored,
            Err(error) => match damage(&error) {
                Some((_, why)) => return self.reader.rescue_or_note(&hash, &why).await.map(|_| None),
                None => return Err(not_read(error)),
            },
        };
        let object = self.tier.put(&hash, stored, recipients).await?;
        let old = cold.object.filter(|old| old.name != object.name);
        Ok(Some(Copied { chunk, object, old }))
    }

    /// Enters the objects; then gives up the files, and the objects of before. How many chunks, and their bytes.
    async fn settle(&self, call: &Call, mut copied: Vec<Copied>, day: i32) -> Result<(u64, u64), ServiceError> {
        let base = &self.tier.0.base;
        let now = base.now();
        // Rows are locked in the order in which uploads lock them.
        copied.sort_unstable_by_key(|one| one.chunk.hash);
        let mut tx = base.begin(call, "tier").await?;
        for one in &copied {
            objects::record(&mut tx, &one.chunk.hash, &one.object, now).await?;
        }
        tx.commit().await?;
        let mut tx = base.begin(call, "tier").await?;
        let (mut moved, mut bytes) = (Vec::new(), 0);
        for one in &copied {
            if objects::move_out(&mut tx, &one.chunk.hash, day, now).await? {
                moved.push(one.chunk.hash);
                bytes += u64::from(one.chunk.stored_bytes);
            }
        }
        let chunks = moved.len() as u64;
        if chunks == 0 {
            tx.rollback().await?;
        } else {
            base.blobs.trash_many(&moved, system_time(now)).await.map_err(not_stored)?;
            let act = Act::new("storage.tier", "out", json!({"chunks": chunks, "bytes": bytes}));
            base.journal.commit(tx, call, act).await?;
            self.tier.count("objects", chunks, bytes);
        }
        for old in copied.iter().filter_map(|one| one.old) {
            // What stays is an object without a row, which the check of the listing removes.
            let _ = self.tier.remove(&old).await;
        }
        Ok((chunks, bytes))
    }

    /// Seals what is not, or opens what is, as it is configured now. Who changes the setting has all objects go through
    /// this node once.
    async fn convert(&self, call: &Call) -> Result<(), ServiceError> {
        let _running = self.running.lock().await;
        let base = &self.tier.0.base;
        let recipients = self.tier.recipients()?;
        let (mut after, mut converted) = (None, 0_u64);
        loop {
            self.activity.step_aside().await;
            let mut session = base.db.read().await?;
            let others = objects::of_kind(&mut session, recipients.is_empty(), after.as_ref(), SLICE).await?;
            drop(session);
            let Some(last) = others.last() else { break };
            after = Some(last.object.name);
            for one in others {
                converted += u64::from(self.convert_one(call, &one, &recipients).await?);
            }
        }
        if converted > 0 {
            let details = json!({"objects": converted, "sealed": !recipients.is_empty()});
            let act = Act::new("storage.seal", "objects", details);
            base.journal.record(&base.db, call, act, bibd_audit::Outcome::Ok).await?;
        }
        Ok(())
    }

    async fn convert_one(
        &self,
        call: &Call,
        one: &Tiered,
        recipients: &[bib_identity::Recipient],
    ) -> Result<bool, ServiceError> {
        let (base, hash) = (&self.tier.0.base, one.chunk.hash);
        let fetched = match self.tier.get(&hash, one.object.sealed).await? {
            Ok(fetched) => fetched,
            Err(error) => return self.lost(one, &super::reading::fault(&error)).await.map(|()| false),
        };
        let object = self.tier.put(&hash, fetched.stored, recipients).await?;
        let mut tx = base.begin(call, "tier").await?;
        let is_wanted = objects::record(&mut tx, &hash, &object, base.now()).await?;
        tx.commit().await?;
        self.tier.remove(if is_wanted { &one.object } else { &object }).await?;
        Ok(is_wanted)
    }

    /// An object is gone or is not the chunk: where there is a file only its row goes, else the chunk is damaged.
    pub(super) async fn lost(&self, one: &Tiered, why: &str) -> Result<(), ServiceError> {
        let base = &self.tier.0.base;
        if one.is_only {
            return self.reader.note_damage(&one.chunk.hash, why).await;
        }
        tracing::warn!(chunk = %one.chunk.hash, why, "an object is not what it should be; the chunk lies on disk too");
        let mut tx = base.begin(&base.internal_call("tier"), "tier").await?;
        objects::forget(&mut tx, &one.chunk.hash).await?;
        Ok(tx.commit().await?)
    }

    async fn move_back(
        &self,
        call: &Call,
        out: &mpsc::Sender<Result<Moved, ServiceError>>,
    ) -> Result<Moved, ServiceError> {
        let _running = self.running.lock().await;
        let base = &self.tier.0.base;
        let (mut after, mut moved) = (None, Moved::default());
        loop {
            self.activity.step_aside().await;
            let mut session = base.db.read().await?;
            let tiered = objects::list(&mut session, after.as_ref(), SLICE).await?;
            drop(session);
            let Some(last) = tiered.last() else { return Ok(moved) };
            after = Some(last.chunk.hash);
            let fetches = stream::iter(tiered).map(|one| async move {
                let is_back = !one.is_only || self.restore(&one).await?;
                Ok::<_, ServiceError>((one, is_back))
            });
            let fetched: Vec<(Tiered, bool)> = fetches.buffer_unordered(AT_ONCE).try_collect().await?;
            let (back, kept): (Vec<_>, Vec<_>) = fetched.into_iter().partition(|(_, is_back)| *is_back);
            let mut tx = base.begin(call, "tier").await?;
            for (one, _) in &back {
                objects::forget(&mut tx, &one.chunk.hash).await?;
            }
            let bytes: u64 = back.iter().map(|(one, _)| one.object.bytes).sum();
            let chunks = back.len() as u64;
            let act = Act::new("storage.tier", "back", json!({"chunks": chunks, "bytes": bytes}));
            base.journal.commit(tx, call, act).await?;
            for (one, _) in &back {
                self.tier.remove(&one.object).await?;
            }
            self.tier.count("disk", chunks, bytes);
            moved.chunks += chunks;
            moved.bytes += bytes;
            moved.skipped += kept.len() as u64;
            let _ = out.send(Ok(moved)).await; // as in `move_out`
        }
    }

    /// False when the chunk cannot be brought back, which was noted.
    async fn restore(&self, one: &Tiered) -> Result<bool, ServiceError> {
        match self.tier.get(&one.chunk.hash, one.object.sealed).await? {
            Ok(fetched) => self.tier.restore(&one.chunk.hash, &fetched).await,
            Err(error) => self.lost(one, &super::reading::fault(&error)).await.map(|()| false),
        }
    }
}
