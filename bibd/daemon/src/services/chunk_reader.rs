//! Reads chunks that a use case may read, and takes note of what turns out damaged.
//!
//! The store checks every byte it hands out and quarantines what is wrong. Here the catalog and the audit log hear of it:
//! the row is marked, so that the next publish of the same bytes sends them again and heals the chunk.

use bib_core::Hash;
use bibd_audit::Outcome;
use bibd_blobs::{Encoding, FileGuard, Frame, Location, ReadError};
use bibd_catalog::chunks::{self, Located};
use bytes::Bytes;
use prometheus::IntCounter;
use serde_json::json;

use super::base::Base;
use super::error::ServiceError;
use super::journal::Act;
use super::store_errors::{damage, damaged, not_read};

/// Reads chunks. Cheap to clone.
#[derive(Debug, Clone)]
pub struct ChunkReader {
    base: Base,
    damaged: IntCounter,
}

impl ChunkReader {
    /// Over the node; `damaged` counts the chunks that were found damaged.
    #[must_use]
    pub fn new(base: Base, damaged: IntCounter) -> Self {
        Self { base, damaged }
    }

    /// The raw bytes of a chunk, checked.
    ///
    /// # Errors
    /// [`ServiceError::Integrity`] when it is damaged or missing.
    pub async fn read(&self, chunk: &Located) -> Result<Bytes, ServiceError> {
        self.refuse_damaged(chunk)?;
        let read = self.base.blobs.read(&location(chunk), &chunk.chunk.hash, chunk.chunk.raw_length).await;
        match read {
            Ok(bytes) => Ok(bytes),
            Err(error) => Err(self.report(error).await),
        }
    }

    /// The chunk as it lies in the store: zstd frames in a row, or pieces of its bytes.
    ///
    /// # Errors
    /// As [`ChunkReader::read`].
    pub async fn read_encoded(&self, chunk: &Located) -> Result<Vec<Frame>, ServiceError> {
        self.refuse_damaged(chunk)?;
        let read = self.base.blobs.read_encoded(&location(chunk), &chunk.chunk.hash, chunk.chunk.raw_length).await;
        match read {
            Ok(frames) => Ok(frames),
            Err(error) => Err(self.report(error).await),
        }
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
        let outcome = Outcome::Failed(crate::errors::ErrorCode::INTEGRITY.to_string());
        self.base.journal.commit_with(tx, &call, act, outcome).await?;
        Ok(())
    }

    fn refuse_damaged(&self, chunk: &Located) -> Result<(), ServiceError> {
        if chunk.damaged { Err(damaged(&chunk.chunk.hash, "it was found damaged before")) } else { Ok(()) }
    }

    async fn report(&self, error: ReadError) -> ServiceError {
        let Some((chunk, why)) = damage(&error) else { return not_read(error) };
        tracing::error!(%chunk, error = &error as &dyn std::error::Error, "a chunk cannot be read");
        if let Err(error) = self.note_damage(&chunk, &why).await {
            tracing::error!(%chunk, error = &error as &dyn std::error::Error, "the damage could not be noted");
        }
        damaged(&chunk, &why)
    }
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
