//! Reads chunks that a use case may read, and takes note of what turns out damaged.
//!
//! The store checks every byte it hands out and quarantines what is wrong. Here the catalog and the audit log hear of it:
//! the row is marked, so that the next publish of the same bytes sends them again and heals the chunk.

use bib_core::Hash;
use bibd_audit::Outcome;
use bibd_blobs::{Encoding, Fetched, FileGuard, Frame, Location, ReadError};
use bibd_catalog::chunks::{self, Located};
use bytes::Bytes;
use prometheus::IntCounter;
use serde_json::json;

use super::base::Base;
use super::error::ServiceError;
use super::journal::Act;
use super::store_errors::{damage, damaged, not_read};
use super::tier::Tier;
use super::tier::reading::Looked;
use crate::errors::ErrorCode;

/// Reads chunks. Cheap to clone.
#[derive(Debug, Clone)]
pub struct ChunkReader {
    base: Base,
    tier: Tier,
    damaged: IntCounter,
}

impl ChunkReader {
    /// Over the node and its object storage; `damaged` counts the chunks that were found damaged.
    #[must_use]
    pub fn new(base: Base, tier: Tier, damaged: IntCounter) -> Self {
        Self { base, tier, damaged }
    }

    /// The raw bytes of a chunk, checked.
    ///
    /// # Errors
    /// [`ServiceError::Integrity`] when it is damaged or missing.
    pub async fn read(&self, chunk: &Located) -> Result<Bytes, ServiceError> {
        let chunk = match self.begin(chunk).await? {
            Begun::Fetched(fetched) => return Ok(fetched.raw),
            Begun::OnDisk(chunk) => chunk,
        };
        match self.base.blobs.read(&location(&chunk), &chunk.chunk.hash, chunk.chunk.raw_length).await {
            Ok(bytes) => Ok(bytes),
            Err(error) => Ok(self.rescued(&chunk, error).await?.raw),
        }
    }

    /// The chunk as it lies in the store: zstd frames in a row, or pieces of its bytes.
    ///
    /// # Errors
    /// As [`ChunkReader::read`].
    pub async fn read_encoded(&self, chunk: &Located) -> Result<Vec<Frame>, ServiceError> {
        let chunk = match self.begin(chunk).await? {
            Begun::Fetched(fetched) => return Ok(fetched.frames()),
            Begun::OnDisk(chunk) => chunk,
        };
        match self.base.blobs.read_encoded(&location(&chunk), &chunk.chunk.hash, chunk.chunk.raw_length).await {
            Ok(frames) => Ok(frames),
            Err(error) => Ok(self.rescued(&chunk, error).await?.frames()),
        }
    }

    /// A chunk's file is missing or damaged, in these words: makes it whole from object storage, or takes note. Whether
    /// it is whole.
    ///
    /// # Errors
    /// When object storage does not answer, so that nobody knows; or the catalog or the log.
    pub async fn rescue_or_note(&self, chunk: &Hash, why: &str) -> Result<bool, ServiceError> {
        let mut session = self.base.db.read().await?;
        let located = chunks::locate(&mut session, &[*chunk]).await?.pop();
        drop(session);
        if let Some(located) = located
            && self.tier.rescue(&located).await?.is_some()
        {
            return Ok(true);
        }
        self.note_damage(chunk, why).await.map(|()| false)
    }

    /// What lies in object storage alone is fetched; anything else is on disk.
    async fn begin(&self, chunk: &Located) -> Result<Begun, ServiceError> {
        self.refuse_damaged(chunk)?;
        self.tier.note_read(chunk);
        if !chunk.is_moved_out {
            return Ok(Begun::OnDisk(Box::new(chunk.clone())));
        }
        match self.tier.fetch(chunk).await.map_err(not_told)? {
            Looked::Found(fetched) => Ok(Begun::Fetched(fetched)),
            Looked::OnDisk(now) => {
                self.refuse_damaged(&now)?;
                Ok(Begun::OnDisk(now))
            }
            Looked::No(why) => {
                let hash = chunk.chunk.hash;
                tracing::error!(chunk = %hash, why, "a chunk in object storage cannot be read");
                self.note(&hash, &why).await;
                Err(damaged(&hash, &why))
            }
        }
    }

    /// The chunk from object storage instead of its file that cannot be read; else the file's error.
    async fn rescued(&self, chunk: &Located, error: ReadError) -> Result<Fetched, ServiceError> {
        if damage(&error).is_some()
            && let Some(fetched) = self.tier.rescue(chunk).await.map_err(not_told)?
        {
            return Ok(fetched);
        }
        Err(self.report(error).await)
    }

    /// Takes note that a chunk is damaged: in its row, in the audit log and in the metrics. Says nothing twice.
    ///
    /// # Errors
    /// When the catalog or the log cannot be written.
    pub async fn note_damage(&self, chunk: &Hash, why: &str) -> Result<(), ServiceError> {
        let call = self.base.internal_call("reader");
        let mut tx = self.base.begin(&call, "reader").await?;
        if !chunks::set_damaged(&mut tx, chunk, self.base.now()).await? {
            return Ok(tx.rollback().await?);
        }
        self.damaged.inc();
        let touched = chunks::named_by(&mut tx, chunk).await?;
        let datasets: Vec<String> = touched.iter().take(32).map(ToString::to_string).collect();
        let act = Act::new("chunk.damaged", format!("chunk:{chunk}"), json!({"why": why, "datasets": datasets}));
        let outcome = Outcome::Failed(ErrorCode::INTEGRITY.to_string());
        self.base.journal.commit_with(tx, &call, act, outcome).await?;
        Ok(())
    }

    fn refuse_damaged(&self, chunk: &Located) -> Result<(), ServiceError> {
        if chunk.damaged { Err(damaged(&chunk.chunk.hash, "it was found damaged before")) } else { Ok(()) }
    }

    async fn report(&self, error: ReadError) -> ServiceError {
        let Some((chunk, why)) = damage(&error) else { return not_read(error) };
        tracing::error!(%chunk, error = &error as &dyn std::error::Error, "a chunk cannot be read");
        self.note(&chunk, &why).await;
        damaged(&chunk, &why)
    }

    async fn note(&self, chunk: &Hash, why: &str) {
        if let Err(error) = self.note_damage(chunk, why).await {
            tracing::error!(%chunk, error = &error as &dyn std::error::Error, "the damage could not be noted");
        }
    }
}

/// Whoever reads data is not told which bucket it is and what it said: that is for who runs the node.
fn not_told(error: ServiceError) -> ServiceError {
    match error {
        ServiceError::Unavailable { code: code @ ErrorCode::OBJECTS_UNAVAILABLE, retry_after, .. } => {
            let sentence = "a chunk lies in the node's object storage, which cannot be used at the moment".to_owned();
            ServiceError::Unavailable { code, sentence, retry_after }
        }
        other => other,
    }
}

/// How the reading of a chunk begins.
enum Begun {
    /// It came from object storage.
    Fetched(Box<Fetched>),
    /// It lies on disk, as this says.
    OnDisk(Box<Located>),
}

fn location(chunk: &Located) -> Location {
    match &chunk.place {
        None => Location::Store {
            encoding: if chunk.chunk.zstd { Encoding::Zstd } else { Encoding::Raw },
            stored_bytes: chunk.chunk.stored_bytes,
        },
        Some(place) => Location::InPlace {
            path: place.path.clone().into(),
            offset: place.byte_offset,
            guard: FileGuard {
                dev: place.device,
                ino: place.inode,
                size: place.file_size,
                mtime_ns: place.mtime_ns,
                ctime_ns: place.ctime_ns,
            },
        },
    }
}
