//! Reading what lies in object storage, and bringing it back to disk.

use std::collections::BTreeMap;

use bib_core::Hash;
use bibd_blobs::{Encoding, Fetched, Incoming, ObjectError, Restored};
use bibd_catalog::chunks::{self, Located, StoredChunk};
use bibd_catalog::objects::{self, ObjectRow};

use super::{Tier, lock};
use crate::services::error::ServiceError;
use crate::services::store_errors::{not_read, not_stored};

/// Reads that wait for their note; more are not waited for, which at worst moves a chunk out that was just read.
const MAX_READS: usize = 65_536;
/// Chunks noted in one statement.
const NOTE_SLICE: usize = 512;
/// The day of a chunk's last read is noted again when it is so many parts of the time until it is cold in the past.
const NOTES: i32 = 8;

/// What became of the look for an object.
#[derive(Debug)]
pub(in crate::services) enum Looked {
    /// Here it is.
    Found(Box<Fetched>),
    /// The row has changed since: it lies on disk now, as this says.
    OnDisk(Box<Located>),
    /// There is none, or it is not the chunk, in these words.
    No(String),
}

impl Tier {
    /// Takes note that a chunk is read, when that matters: no row is written for it here.
    pub(in crate::services) fn note_read(&self, chunk: &Located) {
        let Some(parts) = &self.0.parts else { return };
        let today = objects::day(self.0.base.now());
        if chunk.place.is_none() && chunk.read_day <= today - (parts.settings.after_days / NOTES).max(1) {
            let mut reads = lock(&self.0.reads);
            if reads.len() < MAX_READS {
                reads.insert(chunk.chunk.hash, today);
            }
        }
    }

    /// Writes down what was read since the last time: a row for each chunk, once in some days.
    ///
    /// # Errors
    /// When the database does not answer; then these reads are forgotten.
    pub(super) async fn flush_reads(&self) -> Result<(), ServiceError> {
        let mut days: BTreeMap<i32, Vec<Hash>> = BTreeMap::new();
        for (chunk, day) in std::mem::take(&mut *lock(&self.0.reads)) {
            days.entry(day).or_default().push(chunk);
        }
        let call = self.0.base.internal_call("tier");
        for (day, read) in days {
            for slice in read.chunks(NOTE_SLICE) {
                let mut tx = self.0.base.begin(&call, "tier").await?;
                objects::note_reads(&mut tx, slice, day).await?;
                tx.commit().await?;
            }
        }
        Ok(())
    }

    /// Reads a chunk that lies in object storage alone.
    ///
    /// # Errors
    /// When the store is away, or the database.
    pub(in crate::services) async fn fetch(&self, chunk: &Located) -> Result<Looked, ServiceError> {
        if !self.is_configured() {
            // The chunk is not damaged: somebody has taken the setting away.
            let sentence = "the chunk lies in object storage, and this node has none configured (`blobs.tier.store`)";
            return Err(super::unavailable(sentence, super::LONGEST_PAUSE));
        }
        let mut words = "its object is not known".to_owned();
        let mut seen = chunk.clone();
        // Once more where the row has changed since: brought back, moved out, sealed anew.
        for _ in 0..2 {
            if let Some(object) = seen.object {
                match self.get(&seen.chunk.hash, object.sealed).await? {
                    Ok(fetched) => {
                        self.bring_back(&seen, &fetched).await;
                        return Ok(Looked::Found(Box::new(fetched)));
                    }
                    Err(error) => words = fault(&error),
                }
            }
            let mut session = self.0.base.db.read().await?;
            let Some(now) = chunks::locate(&mut session, &[chunk.chunk.hash]).await?.pop() else { break };
            if !now.is_moved_out {
                return Ok(Looked::OnDisk(Box::new(now)));
            }
            if now.object == seen.object {
                break;
            }
            seen = now;
        }
        Ok(Looked::No(words))
    }

    /// Looks for an object of a chunk whose file is missing or damaged, although its row says that it lies on disk:
    /// the row was read a moment too early, or is one of a backup from before the move. Found, the chunk is made
    /// whole on disk again.
    ///
    /// # Errors
    /// When the store is away, so that nobody knows; or the database.
    pub(in crate::services) async fn rescue(&self, chunk: &Located) -> Result<Option<Fetched>, ServiceError> {
        let hash = chunk.chunk.hash;
        if !self.is_configured() || chunk.place.is_some() {
            return Ok(None);
        }
        let mut session = self.0.base.db.read().await?;
        let Some(now) = chunks::locate(&mut session, &[hash]).await?.pop() else { return Ok(None) };
        drop(session);
        if now.is_moved_out {
            return match self.fetch(&now).await? {
                Looked::Found(fetched) => Ok(Some(*fetched)),
                Looked::OnDisk(_) | Looked::No(_) => Ok(None),
            };
        }
        let kinds = now.object.map_or_else(|| vec![true, false], |object| vec![object.sealed]);
        for sealed in kinds {
            let Ok(fetched) = self.get(&hash, sealed).await? else { continue };
            tracing::warn!(chunk = %hash, "a chunk whose file is missing or damaged was found in object storage");
            let name = self.parts()?.objects.name(&hash, sealed).name;
            let object = ObjectRow { name, sealed, bytes: fetched.object_bytes };
            self.make_whole(&now, &fetched, &object).await?;
            return Ok(Some(fetched));
        }
        Ok(None)
    }

    /// Writes the file again where the row says that it is, and enters the object.
    async fn make_whole(&self, chunk: &Located, fetched: &Fetched, object: &ObjectRow) -> Result<(), ServiceError> {
        let base = &self.0.base;
        self.store(&chunk.chunk.hash, fetched).await?;
        let mut tx = base.begin(&base.internal_call("tier"), "tier").await?;
        objects::record(&mut tx, &chunk.chunk.hash, object, base.now()).await?;
        Ok(tx.commit().await?)
    }

    /// Puts a chunk that was read back on disk, within the day's budget and while there is room. A failure costs
    /// nothing but that.
    async fn bring_back(&self, chunk: &Located, fetched: &Fetched) {
        let bytes = fetched.stored.len() as u64;
        if !self.take_budget(bytes) || !self.has_room(bytes).await {
            return;
        }
        match self.restore(&chunk.chunk.hash, fetched).await {
            Ok(true) => self.count("disk", 1, bytes),
            Ok(false) => {}
            Err(error) => {
                tracing::warn!(chunk = %chunk.chunk.hash, error = &error as &dyn std::error::Error,
                    "a chunk could not be brought back from object storage to disk");
            }
        }
    }

    /// Makes a chunk's file durable and then says so in its row. False when it does not lie in object storage alone.
    pub(super) async fn restore(&self, hash: &Hash, fetched: &Fetched) -> Result<bool, ServiceError> {
        let base = &self.0.base;
        let stored = self.store(hash, fetched).await?;
        let mut tx = base.begin(&base.internal_call("tier"), "tier").await?;
        if !objects::bring_back(&mut tx, &stored, base.now()).await? {
            tx.rollback().await?;
            return Ok(false);
        }
        // The row is locked now; the scrubber may have taken the file for one too many since it was stored.
        let is_there = base.blobs.exists(hash).await.map_err(not_read)?
            || base.blobs.restore(hash).await.map_err(not_stored)? != Restored::Missing;
        if !is_there {
            tx.rollback().await?;
            return Ok(false);
        }
        tx.commit().await?;
        Ok(true)
    }

    async fn store(&self, hash: &Hash, fetched: &Fetched) -> Result<StoredChunk, ServiceError> {
        let incoming = Incoming { hash: *hash, frames: fetched.frames() };
        let stored = self.0.base.blobs.put_many(vec![incoming]).await.map_err(not_stored)?;
        let stored = stored.first().ok_or_else(|| ServiceError::internal("a chunk was stored and is not told of"))?;
        Ok(StoredChunk {
            hash: stored.hash,
            raw_length: stored.raw_len,
            stored_bytes: stored.stored_bytes,
            zstd: stored.encoding == Encoding::Zstd,
        })
    }

    fn take_budget(&self, bytes: u64) -> bool {
        let Some(parts) = &self.0.parts else { return false };
        let today = objects::day(self.0.base.now());
        let mut brought = lock(&self.0.brought);
        if brought.0 != today {
            *brought = (today, 0);
        }
        let is_within = brought.1 + bytes <= parts.settings.back_per_day;
        if is_within {
            brought.1 += bytes;
        }
        is_within
    }

    async fn has_room(&self, bytes: u64) -> bool {
        let Some(parts) = &self.0.parts else { return false };
        let (blobs, min_free_bytes) = (self.0.base.blobs.clone(), parts.settings.min_free_bytes);
        let usage = tokio::task::spawn_blocking(move || blobs.usage()).await;
        matches!(usage, Ok(Ok(usage)) if usage.read_only.is_none() && usage.free_bytes > min_free_bytes + bytes)
    }
}

/// Why an object is not the chunk, without its name.
pub(super) fn fault(error: &ObjectError) -> String {
    match error {
        ObjectError::Missing { .. } => "its object is missing".to_owned(),
        ObjectError::Wrong { why, .. } => format!("what lies in object storage is not it: {why}"),
        other => other.to_string(),
    }
}
