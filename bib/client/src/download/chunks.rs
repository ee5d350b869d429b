//! Chunks as they arrive, in the order they were asked for, kept in the frames they came in.

use std::collections::VecDeque;

use bib_core::Hash;
use bib_core::chunk::MAX_CHUNK_BYTES;
use bib_core::frame::MAX_FRAME_BYTES;
use bib_proto::v1 as pb;
use bytes::{Bytes, BytesMut};
use futures::StreamExt as _;

use crate::client::{Answers, Client};
use crate::error::{Error, Result};

/// Chunks asked for in one call.
const ASK_CHUNKS: usize = 1024;

/// A chunk, in pieces that are not copied together.
#[derive(Debug, Clone, Default)]
pub(crate) struct ChunkData {
    pieces: Vec<Bytes>,
}

impl ChunkData {
    #[cfg(test)]
    pub(crate) fn of(pieces: Vec<Bytes>) -> Self {
        Self { pieces }
    }

    /// Calls `each` with the bytes from `offset` on, `length` of them, piece by piece. Gives whether there were so many.
    pub(crate) fn read(&self, offset: u32, length: u32, mut each: impl FnMut(&[u8]) -> Result<()>) -> Result<bool> {
        let (mut skip, mut left) = (offset as usize, length as usize);
        for piece in &self.pieces {
            if left == 0 {
                break;
            }
            if skip >= piece.len() {
                skip -= piece.len();
                continue;
            }
            let take = left.min(piece.len() - skip);
            each(&piece[skip..skip + take])?;
            skip = 0;
            left -= take;
        }
        Ok(left == 0)
    }
}

/// Fetches chunks of one version.
pub(crate) struct Fetch {
    client: Client,
    reference: String,
    rest: VecDeque<Hash>,
    asked: VecDeque<Hash>,
    answers: Option<Answers<pb::ChunkFrame>>,
}

impl Fetch {
    /// These chunks, in this order.
    pub(crate) fn new(client: &Client, reference: &str, chunks: Vec<Hash>) -> Self {
        Self {
            client: client.clone(),
            reference: reference.to_owned(),
            rest: chunks.into(),
            asked: VecDeque::new(),
            answers: None,
        }
    }

    /// The next chunk. Asks again, for what is left, when the connection breaks.
    pub(crate) async fn next(&mut self) -> Result<Option<ChunkData>> {
        let mut left = self.client.options().attempts.max(1);
        loop {
            left -= 1;
            match self.try_next().await {
                Err(error) if error.is_transport() && left > 0 => {
                    tracing::debug!(error = %error.chain(), "fetching again");
                    self.answers = None;
                    while let Some(chunk) = self.asked.pop_back() {
                        self.rest.push_front(chunk);
                    }
                    tokio::time::sleep(std::time::Duration::from_millis(200)).await;
                }
                result => return result,
            }
        }
    }

    async fn try_next(&mut self) -> Result<Option<ChunkData>> {
        if self.asked.is_empty() {
            let count = self.rest.len().min(ASK_CHUNKS);
            if count == 0 {
                return Ok(None);
            }
            self.asked = self.rest.drain(..count).collect();
            let request = pb::GetChunksRequest {
                reference: self.reference.clone(),
                chunks: self.asked.iter().map(|chunk| Bytes::copy_from_slice(chunk.as_bytes())).collect(),
                accept_zstd: !self.client.is_local(),
            };
            self.answers = Some(self.client.datasets().get_chunks(request).await?);
        }
        let (Some(answers), Some(wanted)) = (&mut self.answers, self.asked.front().copied()) else { return Ok(None) };
        let chunk = receive(answers, &wanted).await?;
        self.asked.pop_front();
        Ok(Some(chunk))
    }
}

/// Takes the frames of one chunk, checking every bound before anything is kept.
async fn receive(answers: &mut Answers<pb::ChunkFrame>, wanted: &Hash) -> Result<ChunkData> {
    let mut pieces: Vec<Bytes> = Vec::new();
    let mut received = 0u32;
    loop {
        let Some(frame) = answers.next().await else {
            return Err(Error::damaged(format!("the node does not send all of chunk {wanted}")));
        };
        let frame = frame?;
        let length = u32::try_from(frame.data.len()).unwrap_or(u32::MAX);
        let sound = frame.chunk.as_ref() == wanted.as_bytes()
            && frame.offset == received
            && (1..=MAX_FRAME_BYTES).contains(&length)
            && (1..=MAX_CHUNK_BYTES).contains(&frame.raw_length)
            && frame.encoded_length <= frame.raw_length
            && length <= frame.encoded_length.saturating_sub(received);
        if !sound {
            return Err(Error::bad_answer(format!("a frame that came is not the next one of chunk {wanted}")));
        }
        received += length;
        let (encoding, raw_length, encoded_length) = (frame.encoding(), frame.raw_length, frame.encoded_length);
        pieces.push(frame.data);
        if received < encoded_length {
            continue;
        }
        return match encoding {
            pb::Encoding::Raw if encoded_length == raw_length => Ok(ChunkData { pieces }),
            pb::Encoding::Raw => Err(Error::bad_answer("a raw chunk of another length than it says")),
            pb::Encoding::Zstd => unpack(pieces, encoded_length, raw_length, *wanted).await,
        };
    }
}

/// Unpacks zstd frames in a row, to exactly `raw_length` bytes.
async fn unpack(pieces: Vec<Bytes>, encoded_length: u32, raw_length: u32, chunk: Hash) -> Result<ChunkData> {
    let work = move || {
        let mut row = BytesMut::with_capacity(encoded_length as usize);
        pieces.iter().for_each(|piece| row.extend_from_slice(piece));
        zstd::bulk::decompress(&row, raw_length as usize).ok().filter(|raw| raw.len() == raw_length as usize)
    };
    let raw = tokio::task::spawn_blocking(work).await.map_err(Error::task)?;
    let raw = raw.ok_or_else(|| Error::damaged(format!("chunk {chunk} does not unpack to {raw_length} bytes")))?;
    Ok(ChunkData { pieces: vec![raw.into()] })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn frame(chunk: &[u8], offset: u32, data: &[u8]) -> pb::ChunkFrame {
        let length = u32::try_from(chunk.len()).unwrap();
        pb::ChunkFrame {
            chunk: Bytes::copy_from_slice(Hash::of(chunk).as_bytes()),
            offset,
            encoding: pb::Encoding::Raw.into(),
            raw_length: length,
            encoded_length: length,
            data: Bytes::copy_from_slice(data),
        }
    }

    async fn received(wanted: &[u8], frames: Vec<pb::ChunkFrame>) -> Result<Vec<u8>> {
        let mut answers = futures::stream::iter(frames.into_iter().map(Ok)).boxed();
        let data = receive(&mut answers, &Hash::of(wanted)).await?;
        let mut whole = Vec::new();
        assert!(data.read(0, u32::try_from(wanted.len()).unwrap(), |piece| {
            whole.extend_from_slice(piece);
            Ok(())
        })?);
        Ok(whole)
    }

    #[tokio::test]
    async fn puts_frames_together() {
        let frames = vec![frame(b"abcdef", 0, b"abcd"), frame(b"abcdef", 4, b"ef")];
        assert_eq!(received(b"abcdef", frames).await.unwrap(), b"abcdef");
    }

    #[tokio::test]
    async fn refuses_frames_out_of_place_or_bounds() {
        for frames in [
            vec![frame(b"abc", 1, b"bc")],
            vec![frame(b"abc", 0, b"ab"), frame(b"abc", 0, b"ab")],
            vec![frame(b"abc", 0, b"abcd")],
            vec![frame(b"xyz", 0, b"xyz")],
            vec![frame(b"abc", 0, b"")],
            vec![frame(b"abc", 0, b"ab")],
            vec![pb::ChunkFrame { raw_length: u32::MAX, ..frame(b"abc", 0, b"abc") }],
            vec![pb::ChunkFrame { raw_length: 4, ..frame(b"abc", 0, b"abc") }],
        ] {
            assert!(received(b"abc", frames).await.is_err());
        }
    }

    #[tokio::test]
    async fn a_bomb_is_unpacked_only_as_far_as_it_says() {
        let raw = vec![0; 1 << 20];
        let packed = zstd::bulk::compress(&raw, 1).unwrap();
        let said = pb::ChunkFrame {
            encoding: pb::Encoding::Zstd.into(),
            raw_length: 100_000,
            encoded_length: u32::try_from(packed.len()).unwrap(),
            ..frame(b"abc", 0, &packed)
        };
        assert!(received(b"abc", vec![said.clone()]).await.is_err());
        let honest = pb::ChunkFrame { raw_length: 1 << 20, ..said };
        let mut answers = futures::stream::iter([Ok(honest)]).boxed();
        let data = receive(&mut answers, &Hash::of(b"abc")).await.unwrap();
        assert!(data.read(0, 1 << 20, |_| Ok(())).unwrap());
    }

    #[test]
    fn reads_across_pieces_and_not_past_the_end() {
        let data = ChunkData::of(vec![Bytes::from_static(b"abc"), Bytes::from_static(b"def")]);
        let mut out = Vec::new();
        let whole = data.read(2, 3, |piece| {
            out.extend_from_slice(piece);
            Ok(())
        });
        assert!(whole.unwrap() && out == b"cde");
        assert!(!data.read(5, 2, |_| Ok(())).unwrap());
    }
}
