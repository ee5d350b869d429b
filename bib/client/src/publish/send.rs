//! Sends chunks: asks which are missing, streams those in frames, keeps each until the node says it is durable.
//!
//! A stream that breaks is opened again and what was not acknowledged is sent again. Over TLS a chunk is compressed
//! when a sample of it shrinks; over the Unix socket never, since the copy is cheaper than any compression and the
//! daemon compresses what it stores by itself.

use std::collections::{HashMap, HashSet, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use bib_core::Hash;
use bib_core::frame::MAX_FRAME_BYTES;
use bib_proto::v1 as pb;
use bytes::Bytes;
use futures::StreamExt as _;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};
use tokio::task::JoinSet;
use tokio_stream::wrappers::ReceiverStream;

use super::ingest::Chunk;
use crate::client::Client;
use crate::error::{Error, ErrorKind, Result};
use crate::progress::{Phase, Progress};

/// Chunks asked about at once.
const ASK_CHUNKS: usize = 64;
/// Their bytes, about: few enough that those that wait for the answer leave buffers to the reader.
const ASK_BYTES: usize = 16 * 1024 * 1024;
/// How long the next chunk is waited for before the question is asked.
const GATHER: Duration = Duration::from_millis(5);
/// Streams at once: one is read and written by one task at either end.
const LANES: usize = 2;
/// Chunks that wait for a lane.
const LANE_QUEUE: usize = 4;
/// Frames on their way into the connection, of 1 MiB.
const FRAME_QUEUE: usize = 4;
/// KiB sent and not acknowledged, at most.
const UNACKED_KIB: usize = 40 * 1024;
/// A node that acknowledges nothing for so long is given up.
const PATIENCE: Duration = Duration::from_secs(120);
/// Bytes of a chunk that are compressed to see whether it is worth it.
const SAMPLE_BYTES: usize = 64 * 1024;
/// The most raw bytes in a frame.
const FRAME_BYTES: usize = MAX_FRAME_BYTES as usize;
/// zstd's level for the wire: what keeps up with a fast network.
const ZSTD_LEVEL: i32 = 1;

/// What was sent.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Sent {
    pub(crate) chunks: u64,
    /// Of the chunks, before compression.
    pub(crate) bytes: u64,
}

/// What a sender remembers from one round to the next.
#[derive(Debug, Default)]
pub(crate) struct Offered(HashSet<Hash>);

impl Offered {
    /// Forgets chunks that have to be sent again.
    pub(crate) fn forget(&mut self, chunks: &HashSet<Hash>) {
        self.0.retain(|chunk| !chunks.contains(chunk));
    }
}

/// Sends everything that comes out of `chunks` and is missing, until the channel is closed and all is acknowledged.
pub(crate) async fn send_all(
    client: Client,
    session_id: String,
    mut chunks: mpsc::Receiver<Chunk>,
    mut offered: Offered,
    progress: Arc<dyn Progress>,
) -> Result<(Sent, Offered)> {
    let unacked = Arc::new(Semaphore::new(UNACKED_KIB));
    let mut lanes = Lanes::new(&client, &session_id, &progress);
    let mut sent = Sent::default();
    while let Some(first) = chunks.recv().await {
        let mut bytes = first.bytes.len();
        let mut batch = vec![first];
        while batch.len() < ASK_CHUNKS
            && bytes < ASK_BYTES
            && let Ok(Some(next)) = tokio::time::timeout(GATHER, chunks.recv()).await
        {
            bytes += next.bytes.len();
            batch.push(next);
        }
        batch.retain(|chunk| offered.0.insert(chunk.hash));
        if batch.is_empty() {
            continue;
        }
        let request = pb::FindMissingChunksRequest {
            session_id: session_id.clone(),
            chunks: batch.iter().map(|chunk| Bytes::copy_from_slice(chunk.hash.as_bytes())).collect(),
        };
        let missing: HashSet<u32> = client.datasets().find_missing_chunks(request).await?.into_iter().collect();
        for (position, chunk) in (0u32..).zip(batch) {
            if missing.contains(&position) {
                sent.chunks += 1;
                sent.bytes += chunk.bytes.len() as u64;
                let kib = u32::try_from(chunk.bytes.len().div_ceil(1024)).unwrap_or(1);
                // Closed only when a lane has failed; its error comes out of `push`.
                let permit = Arc::clone(&unacked).acquire_many_owned(kib).await;
                let permit = permit.map_err(|_| Error::new(ErrorKind::Internal, "the sender is closed"))?;
                lanes.push(Parcel { chunk, _permit: permit }).await?;
            }
        }
    }
    lanes.finish().await?;
    Ok((sent, offered))
}

/// A chunk and its share of what may be unacknowledged.
struct Parcel {
    chunk: Chunk,
    _permit: OwnedSemaphorePermit,
}

/// The streams, opened when there is something to send.
struct Lanes {
    open: Vec<mpsc::Sender<Parcel>>,
    tasks: JoinSet<Result<()>>,
    next: usize,
    client: Client,
    session_id: String,
    progress: Arc<dyn Progress>,
}

impl Lanes {
    fn new(client: &Client, session_id: &str, progress: &Arc<dyn Progress>) -> Self {
        Self {
            open: Vec::new(),
            tasks: JoinSet::new(),
            next: 0,
            client: client.clone(),
            session_id: session_id.to_owned(),
            progress: Arc::clone(progress),
        }
    }

    async fn push(&mut self, parcel: Parcel) -> Result<()> {
        if self.open.len() < LANES {
            let (sender, parcels) = mpsc::channel(LANE_QUEUE); // one queue for each stream
            let lane = Lane {
                client: self.client.clone(),
                session_id: self.session_id.clone(),
                progress: Arc::clone(&self.progress),
                parcels,
                unacked: HashMap::new(),
                outgoing: VecDeque::new(),
                compress: !self.client.is_local(),
            };
            self.tasks.spawn(lane.run());
            self.open.push(sender);
        }
        self.next = (self.next + 1) % self.open.len();
        if self.open[self.next].send(parcel).await.is_err() {
            return Err(self.first_error().await);
        }
        Ok(())
    }

    async fn first_error(&mut self) -> Error {
        while let Some(ended) = self.tasks.join_next().await {
            match ended {
                Ok(Ok(())) => {}
                Ok(Err(error)) => return error,
                Err(error) => return Error::task(error),
            }
        }
        Error::new(ErrorKind::Internal, "an upload stream ended too early")
    }

    async fn finish(mut self) -> Result<()> {
        self.open.clear();
        while let Some(ended) = self.tasks.join_next().await {
            ended.map_err(Error::task)??;
        }
        Ok(())
    }
}

/// One stream of frames and what it has not heard back about.
struct Lane {
    client: Client,
    session_id: String,
    progress: Arc<dyn Progress>,
    parcels: mpsc::Receiver<Parcel>,
    unacked: HashMap<Hash, Parcel>,
    outgoing: VecDeque<pb::ChunkFrame>,
    compress: bool,
}

impl Lane {
    async fn run(mut self) -> Result<()> {
        let mut left = self.client.options().attempts.max(1);
        let mut pause = Duration::from_millis(100);
        loop {
            let before = self.unacked.len();
            match self.stream().await {
                Err(error) if error.is_transport() && left > 1 => {
                    // A stream that got somewhere before it broke starts over with the attempts.
                    left = if self.unacked.len() < before { self.client.options().attempts } else { left - 1 };
                    tracing::debug!(error = %error.chain(), chunks = self.unacked.len(), "sending again");
                    tokio::time::sleep(pause).await;
                    pause = (pause * 3).min(Duration::from_secs(5));
                }
                result => return result,
            }
        }
    }

    /// One stream, from its opening until all parcels are acknowledged.
    async fn stream(&mut self) -> Result<()> {
        self.outgoing.clear();
        let again: Vec<Chunk> = self
            .unacked
            .values()
            .map(|parcel| Chunk { hash: parcel.chunk.hash, bytes: parcel.chunk.bytes.clone() })
            .collect();
        for chunk in again {
            self.outgoing.extend(frames(&chunk, self.compress).await?);
        }
        let (frames_in, frames_out) = mpsc::channel(FRAME_QUEUE); // 4 MiB on their way
        let mut frames_in = Some(frames_in);
        let datasets = self.client.datasets();
        let mut opening = Box::pin(datasets.put_chunks(ReceiverStream::new(frames_out)));
        let mut answers = None;
        let mut session_id = Some(self.session_id.clone());
        let mut drained = false;
        loop {
            if drained && self.outgoing.is_empty() {
                // Says that nothing more comes; the node answers what is left and ends.
                frames_in = None;
            }
            tokio::select! {
                opened = &mut opening, if answers.is_none() => answers = Some(opened?),
                answer = next(&mut answers), if answers.is_some() => match answer {
                    Some(answer) => self.take_answer(&answer?.durable),
                    None if frames_in.is_none() && self.unacked.is_empty() => return Ok(()),
                    None => return Err(Error::new(ErrorKind::Unavailable, "the node ended an upload stream").into_transport()),
                },
                slot = reserve(&frames_in), if !self.outgoing.is_empty() => {
                    if let (Some(slot), Some(frame)) = (slot, self.outgoing.pop_front()) {
                        slot.send(pb::PutChunksRequest { session_id: session_id.take().unwrap_or_default(), frame: Some(frame) });
                    } else {
                        return Err(Error::new(ErrorKind::Unavailable, "the node closed an upload stream").into_transport());
                    }
                },
                parcel = self.parcels.recv(), if !drained && self.outgoing.is_empty() => match parcel {
                    Some(parcel) => {
                        self.outgoing.extend(frames(&parcel.chunk, self.compress).await?);
                        self.unacked.insert(parcel.chunk.hash, parcel);
                    }
                    None => drained = true,
                },
                () = tokio::time::sleep(PATIENCE), if !self.unacked.is_empty() || drained => {
                    return Err(Error::new(ErrorKind::TimedOut, "the node acknowledges nothing any more"));
                }
            }
        }
    }

    fn take_answer(&mut self, durable: &[Bytes]) {
        for hash in durable {
            let parcel = Hash::try_from(hash.as_ref()).ok().and_then(|hash| self.unacked.remove(&hash));
            if let Some(parcel) = parcel {
                self.progress.advance(Phase::Send, parcel.chunk.bytes.len() as u64);
            }
        }
    }
}

async fn next(answers: &mut Option<tonic::Streaming<pb::PutChunksResponse>>) -> Option<Result<pb::PutChunksResponse>> {
    match answers {
        Some(answers) => answers.next().await.map(|answer| answer.map_err(Error::from)),
        None => std::future::pending().await,
    }
}

async fn reserve(
    frames: &Option<mpsc::Sender<pb::PutChunksRequest>>,
) -> Option<mpsc::Permit<'_, pb::PutChunksRequest>> {
    match frames {
        Some(frames) => frames.reserve().await.ok(),
        None => None,
    }
}

/// A chunk in frames of at most 1 MiB. Compressed, each is a zstd frame of its own, which the daemon stores as it comes.
async fn frames(chunk: &Chunk, compress: bool) -> Result<Vec<pb::ChunkFrame>> {
    let packed = if compress { compressed(chunk.bytes.clone()).await? } else { None };
    let (encoding, parts) = match packed {
        Some(parts) => (pb::Encoding::Zstd, parts),
        None => {
            let whole = &chunk.bytes;
            let end = |start: usize| (start + FRAME_BYTES).min(whole.len());
            let starts = (0..whole.len()).step_by(FRAME_BYTES);
            (pb::Encoding::Raw, starts.map(|start| whole.slice(start..end(start))).collect())
        }
    };
    let length =
        |bytes: usize| u32::try_from(bytes).map_err(|_| Error::new(ErrorKind::Internal, "a chunk of more than 4 GiB"));
    let raw_length = length(chunk.bytes.len())?;
    let encoded_length = length(parts.iter().map(Bytes::len).sum())?;
    let name = Bytes::copy_from_slice(chunk.hash.as_bytes());
    let mut offset = 0;
    let mut frames = Vec::with_capacity(parts.len());
    for data in parts {
        let next = offset + length(data.len())?;
        frames.push(pb::ChunkFrame {
            chunk: name.clone(),
            offset,
            encoding: encoding.into(),
            raw_length,
            encoded_length,
            data,
        });
        offset = next;
    }
    Ok(frames)
}

/// The chunk's frames compressed, when its beginning shrinks by a tenth and the whole does too.
async fn compressed(bytes: Bytes) -> Result<Option<Vec<Bytes>>> {
    let work = move || {
        let shrinks = |raw: usize, packed: usize| packed < raw - raw / 10;
        let sample = &bytes[..bytes.len().min(SAMPLE_BYTES)];
        if !shrinks(sample.len(), zstd::bulk::compress(sample, ZSTD_LEVEL)?.len()) {
            return Ok(None);
        }
        let mut parts = Vec::new();
        let mut total = 0;
        for raw in bytes.chunks(FRAME_BYTES) {
            let packed = zstd::bulk::compress(raw, ZSTD_LEVEL)?;
            // A part that does not shrink could be larger than a frame may be.
            if packed.len() >= raw.len() {
                return Ok(None);
            }
            total += packed.len();
            parts.push(Bytes::from(packed));
        }
        Ok(shrinks(bytes.len(), total).then_some(parts))
    };
    let packed: std::io::Result<Option<Vec<Bytes>>> = tokio::task::spawn_blocking(work).await.map_err(Error::task)?;
    packed.map_err(|error| Error::new(ErrorKind::Internal, "a chunk cannot be compressed").with_source(error))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn chunk(bytes: Vec<u8>) -> Chunk {
        Chunk { hash: Hash::of(&bytes), bytes: bytes.into() }
    }

    #[tokio::test]
    async fn frames_put_together_are_the_chunk() {
        let bytes: Vec<u8> =
            (0..2_500_000u32).flat_map(|i| i.wrapping_mul(2_654_435_761).to_le_bytes()).take(2_500_000).collect();
        for compress in [false, true] {
            let chunk = chunk(bytes.clone());
            let frames = frames(&chunk, compress).await.unwrap();
            assert!(frames.iter().all(|frame| frame.data.len() <= MAX_FRAME_BYTES as usize));
            let mut whole = Vec::new();
            for frame in &frames {
                assert_eq!(frame.offset as usize, whole.len());
                whole.extend_from_slice(&frame.data);
            }
            assert_eq!(whole.len(), frames[0].encoded_length as usize);
            if frames[0].encoding() == pb::Encoding::Zstd {
                whole = zstd::bulk::decompress(&whole, frames[0].raw_length as usize).unwrap();
            }
            assert_eq!(whole, bytes);
        }
    }

    #[tokio::test]
    async fn only_what_shrinks_is_compressed() {
        let noise: Vec<u8> = (0..300_000u64)
            .map(|i| Hash::of(&(i / 32).to_le_bytes()).as_bytes()[usize::try_from(i % 32).unwrap()])
            .collect();
        let raw = frames(&chunk(noise), true).await.unwrap();
        assert_eq!(raw[0].encoding(), pb::Encoding::Raw);
        let text = frames(&chunk(b"temperature,12.5\n".repeat(20_000)), true).await.unwrap();
        assert_eq!(text[0].encoding(), pb::Encoding::Zstd);
        assert!(text[0].encoded_length < text[0].raw_length / 10);
    }
}
