//! Chunks on their way in: frames to chunks to the disk to rows, and only then the acknowledgement.
//!
//! The order of each chunk is hash checked, fsync(file), rename, fsync(directory), COMMIT, acknowledgement. Receiving,
//! storing and committing overlap: while one batch is synced the next is received. A stream holds at most
//! `PIPELINE` batches and one more that is being filled; all streams together hold at most
//! [`BUDGET_BYTES`]. A sender that pauses does not hold up a batch.

use std::sync::Arc;
use std::time::Duration;

use bib_core::{Hash, SessionId};
use bibd_blobs::{Incoming, Restored, Stored};
use bibd_catalog::chunks::{self, StoredChunk};
use futures::stream::{self, BoxStream};
use futures::{Stream, StreamExt as _};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::activity::Activity;
use super::assemble::{Assembler, Piece};
use super::error::ServiceError;
use super::store_errors::not_stored;
use super::upload::UploadUseCases;
use crate::actor::Call;
use crate::errors::ErrorCode;

/// Raw bytes of a batch, about: a batch is one transaction, and its files are synced together.
const BATCH_BYTES: u64 = 8 << 20;

/// Chunks of a batch, at most.
const BATCH_CHUNKS: usize = 64;

/// Batches of one stream that are stored at once.
const PIPELINE: usize = 2;

/// Raw bytes of chunks in flight, over all streams.
pub const BUDGET_BYTES: usize = 96 << 20;

/// A sender that pauses this long gets what it sent stored.
const FLUSH_AFTER: Duration = Duration::from_millis(10);

/// A sender that pauses this long within a chunk is cut off: it holds memory that others wait for.
const STALL_LIMIT: Duration = Duration::from_secs(30);

/// The use case of sending chunks.
#[derive(Debug, Clone)]
pub struct ReceiveUseCases {
    uploads: UploadUseCases,
    budget: Arc<Semaphore>,
    activity: Activity,
}

/// Chunks that are stored together, with the memory that they were granted.
struct Batch {
    chunks: Vec<Incoming>,
    bytes: u64,
    _memory: Vec<OwnedSemaphorePermit>,
}

impl ReceiveUseCases {
    /// For upload sessions of `uploads`; `activity` hears that people wait.
    #[must_use]
    pub fn new(uploads: UploadUseCases, activity: Activity) -> Self {
        Self { uploads, budget: Arc::new(Semaphore::new(BUDGET_BYTES / 1024)), activity }
    }

    /// Takes the pieces of chunks and gives, batch by batch, the chunks that are durable. It ends after the first error;
    /// what was given before stands.
    pub fn receive<S>(
        self,
        call: Call,
        session: SessionId,
        pieces: S,
    ) -> BoxStream<'static, Result<Vec<Hash>, ServiceError>>
    where
        S: Stream<Item = Result<Piece, ServiceError>> + Send + Unpin + 'static,
    {
        let source = Source {
            pieces,
            assembler: Assembler::default(),
            budget: Arc::clone(&self.budget),
            waiting: None,
            memory: None,
            ended: false,
        };
        let batches = stream::unfold(source, |mut source| async move {
            if source.ended {
                return None;
            }
            let batch = source.next_batch().await;
            source.ended |= batch.is_err();
            match batch {
                Ok(None) => None,
                Ok(Some(batch)) => Some((Ok(batch), source)),
                Err(error) => Some((Err(error), source)),
            }
        });
        let busy = self.activity.begin();
        let stored = batches.map(move |batch| {
            let (this, call) = (self.clone(), call.clone());
            async move { this.store(&call, session, batch?).await }
        });
        let mut failed = false;
        let until_error = stored.buffered(PIPELINE).take_while(move |result| {
            let _busy = &busy;
            let go_on = !failed;
            failed |= result.is_err();
            futures::future::ready(go_on)
        });
        until_error.boxed()
    }

    /// Makes a batch durable: on disk, then in the catalog.
    async fn store(&self, call: &Call, session: SessionId, batch: Batch) -> Result<Vec<Hash>, ServiceError> {
        let base = &self.uploads.base;
        // Chunks are shared buffers: a copy of the list costs nothing.
        let stored = base.blobs.put_many(batch.chunks.clone()).await.map_err(not_stored)?;
        let rows: Vec<StoredChunk> = stored.iter().map(row).collect();
        let bytes: u64 = stored.iter().map(|chunk| u64::from(chunk.stored_bytes)).sum();
        let now = base.now();
        let mut tx = base.begin(call, "upload").await?;
        self.uploads.live(&mut tx, call, session).await?;
        chunks::put(&mut tx, session, &rows, now).await?;
        // The rows are locked now. A collection that had them doomed may have moved the files since they were stored.
        for chunk in batch.chunks {
            self.ensure_file(chunk).await?;
        }
        // Last, since every batch of the user waits for these two rows.
        self.uploads.charge(&mut tx, call, bytes, now).await?;
        self.uploads.beat(&mut tx, session, bytes, now).await?;
        tx.commit().await?;
        Ok(stored.into_iter().map(|chunk| chunk.hash).collect())
    }

    async fn ensure_file(&self, chunk: Incoming) -> Result<(), ServiceError> {
        let blobs = &self.uploads.base.blobs;
        if blobs.exists(&chunk.hash).await.map_err(ServiceError::internal)? {
            return Ok(());
        }
        if blobs.restore(&chunk.hash).await.map_err(not_stored)? == Restored::Missing {
            blobs.put_many(vec![chunk]).await.map_err(not_stored)?;
        }
        Ok(())
    }
}

pub(super) fn row(stored: &Stored) -> StoredChunk {
    StoredChunk {
        hash: stored.hash,
        raw_length: stored.raw_len,
        stored_bytes: stored.stored_bytes,
        zstd: stored.encoding == bibd_blobs::Encoding::Zstd,
    }
}

/// Where batches come from.
struct Source<S> {
    pieces: S,
    assembler: Assembler,
    budget: Arc<Semaphore>,
    /// A first piece for whose chunk there was no memory without giving away the batch.
    waiting: Option<Piece>,
    /// What the unfinished chunk was granted.
    memory: Option<OwnedSemaphorePermit>,
    ended: bool,
}

impl<S> Source<S>
where
    S: Stream<Item = Result<Piece, ServiceError>> + Send + Unpin,
{
    /// The next batch; `None` when the sender is done.
    async fn next_batch(&mut self) -> Result<Option<Batch>, ServiceError> {
        let mut batch = Batch { chunks: Vec::new(), bytes: 0, _memory: Vec::new() };
        while batch.bytes < BATCH_BYTES && batch.chunks.len() < BATCH_CHUNKS {
            let piece = match self.waiting.take() {
                Some(piece) => piece,
                None => match self.next_piece(!batch.chunks.is_empty()).await? {
                    Next::Piece(piece) => piece,
                    Next::Pause => break,
                    Next::End => {
                        self.ended = true;
                        std::mem::take(&mut self.assembler).finish()?;
                        break;
                    }
                },
            };
            if !self.assembler.is_open() && self.memory.is_none() {
                match grant(&self.budget, piece.raw_length, !batch.chunks.is_empty()).await? {
                    Some(memory) => self.memory = Some(memory),
                    None => {
                        self.waiting = Some(piece);
                        break;
                    }
                }
            }
            if let Some(chunk) = self.assembler.push(piece)? {
                batch.bytes += chunk.raw_len();
                batch.chunks.push(chunk);
                batch._memory.extend(self.memory.take());
            }
        }
        Ok((!batch.chunks.is_empty()).then_some(batch))
    }

    async fn next_piece(&mut self, has_batch: bool) -> Result<Next, ServiceError> {
        let limit = match (has_batch, self.assembler.is_open()) {
            (true, _) => FLUSH_AFTER,
            (false, true) => STALL_LIMIT,
            (false, false) => Duration::MAX,
        };
        match tokio::time::timeout(limit, self.pieces.next()).await {
            Ok(Some(piece)) => piece.map(Next::Piece),
            Ok(None) => Ok(Next::End),
            Err(_) if has_batch => Ok(Next::Pause),
            Err(_) => Err(ServiceError::TimedOut { limit: STALL_LIMIT }),
        }
    }
}

/// Memory for a chunk of `raw_length` bytes. `None` when there is none at the moment and the batch at hand has to go
/// first, so that nobody waits for memory while holding some that is not being worked on.
async fn grant(
    budget: &Arc<Semaphore>,
    raw_length: u32,
    has_batch: bool,
) -> Result<Option<OwnedSemaphorePermit>, ServiceError> {
    // A length out of bounds is refused by the assembler; here it only must not ask for more than there is.
    let kib = raw_length.div_ceil(1024).clamp(1, bibd_blobs::MAX_CHUNK_BYTES / 1024);
    match Arc::clone(budget).try_acquire_many_owned(kib) {
        Ok(memory) => return Ok(Some(memory)),
        Err(_) if has_batch => return Ok(None),
        Err(_) => {}
    }
    let memory = Arc::clone(budget).acquire_many_owned(kib).await;
    let memory = memory.map_err(|_| ServiceError::unavailable(ErrorCode::SHUTTING_DOWN, "the node is stopping"))?;
    Ok(Some(memory))
}

enum Next {
    Piece(Piece),
    /// Nothing came for a moment.
    Pause,
    End,
}
