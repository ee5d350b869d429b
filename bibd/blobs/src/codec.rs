//! Encoding of stored chunks: bare bytes or zstd frames.
//!
//! Compression costs CPU on the path of every upload, so it is level 1 and only tried where a few samples say that it
//! will save at least a tenth. A stored zstd chunk is a row of frames of at most 1 MiB raw, the unit that travels, so that
//! it can be sent as it lies.

use bib_core::Hash;
use bytes::Bytes;

use crate::chunk::{Encoding, Frame, MAX_CHUNK_BYTES, MAX_FRAME_BYTES};

const ZSTD_MAGIC: [u8; 4] = [0x28, 0xb5, 0x2f, 0xfd];
const LEVEL: i32 = 1;
/// Bytes per sample, and how many: 4 x 2 KiB are 0.8 % of a 1 MiB chunk.
const SAMPLE_BYTES: usize = 2048;
const SAMPLES: usize = 4;

/// A chunk whose bytes have been checked, as it lies on disk.
#[derive(Debug, Clone)]
pub(crate) struct Whole {
    pub(crate) encoding: Encoding,
    pub(crate) raw: Bytes,
}

/// Tells how `file` encodes the chunk `hash`, from nothing but the two; `None` if it does not.
pub(crate) fn recognise(file: Bytes, hash: &Hash) -> Option<Whole> {
    if Hash::of(&file) == *hash {
        return Some(Whole { encoding: Encoding::Raw, raw: file });
    }
    if !file.starts_with(&ZSTD_MAGIC) {
        return None;
    }
    let raw = decode(&file, MAX_CHUNK_BYTES)?;
    (Hash::of(&raw) == *hash).then(|| Whole { encoding: Encoding::Zstd, raw: raw.into() })
}

/// Decodes zstd frames to at most `limit` bytes; allocates no more than what the frames' headers state, nor than
/// `limit`. `None` if the frames are broken, state no length or would exceed it.
pub(crate) fn decode(frames: &[u8], limit: u32) -> Option<Vec<u8>> {
    let mut stated: u64 = 0;
    for frame in Frames(frames) {
        stated = stated.checked_add(u64::from(frame?.1))?;
        if stated > u64::from(limit) {
            return None;
        }
    }
    let raw = zstd::bulk::decompress(frames, usize::try_from(stated).ok()?).ok()?;
    (raw.len() as u64 == stated).then_some(raw)
}

/// Splits a zstd row into its frames without copying. `None` where it is broken.
pub(crate) fn split_frames(row: &Bytes) -> Option<Vec<Frame>> {
    Frames(row)
        .map(|frame| {
            frame.map(|(bytes, raw_len)| Frame { encoding: Encoding::Zstd, raw_len, bytes: row.slice_ref(bytes) })
        })
        .collect()
}

/// Splits bare bytes into frames without copying.
pub(crate) fn split_raw(raw: &Bytes) -> Vec<Frame> {
    let slices = raw.chunks(MAX_FRAME_BYTES as usize);
    slices
        .map(|part| Frame { encoding: Encoding::Raw, raw_len: part.len() as u32, bytes: raw.slice_ref(part) })
        .collect()
}

/// Whether `frame` is exactly one zstd frame of its stated raw length, hence fit to be kept as it came.
pub(crate) fn is_single_frame(frame: &Frame) -> bool {
    let mut frames = Frames(&frame.bytes);
    frame.encoding == Encoding::Zstd
        && matches!(frames.next(), Some(Some((_, raw_len))) if raw_len == frame.raw_len)
        && frames.next().is_none()
}

/// The chunk as zstd frames, or `None` where that would save less than a sixteenth.
pub(crate) fn compress(raw: &[u8]) -> Option<Vec<u8>> {
    if !samples_shrink(raw) {
        return None;
    }
    let mut compressor = zstd::bulk::Compressor::new(LEVEL).ok()?;
    let mut out = Vec::with_capacity(raw.len() / 2);
    for part in raw.chunks(MAX_FRAME_BYTES as usize) {
        let frame = compressor.compress(part).ok()?;
        out.extend_from_slice(&frame);
    }
    saves(raw.len(), out.len()).then_some(out)
}

/// Whether `stored` instead of `raw` bytes is worth a decompression at each read.
pub(crate) fn saves(raw: usize, stored: usize) -> bool {
    stored <= raw - raw / 16
}

/// Looks at a few places. Short chunks are simply tried.
fn samples_shrink(raw: &[u8]) -> bool {
    if raw.len() <= SAMPLE_BYTES * SAMPLES * 4 {
        return true;
    }
    let Ok(mut compressor) = zstd::bulk::Compressor::new(LEVEL) else { return false };
    let mut out = [0u8; SAMPLE_BYTES * 2];
    let stride = (raw.len() - SAMPLE_BYTES) / (SAMPLES - 1);
    let shrunk: usize = (0..SAMPLES)
        .map(|i| {
            let sample = &raw[i * stride..i * stride + SAMPLE_BYTES];
            compressor.compress_to_buffer(sample, &mut out[..]).unwrap_or(SAMPLE_BYTES)
        })
        .sum();
    shrunk * 10 <= SAMPLES * SAMPLE_BYTES * 9
}

/// Walks the frames of a zstd row: each with its raw length, or `None` at the first that is broken or states no
/// length within [`MAX_FRAME_BYTES`].
struct Frames<'a>(&'a [u8]);

impl<'a> Iterator for Frames<'a> {
    type Item = Option<(&'a [u8], u32)>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.0.is_empty() {
            return None;
        }
        let rest = std::mem::take(&mut self.0);
        let frame = first_frame(rest);
        if let Some((bytes, _)) = frame {
            self.0 = &rest[bytes.len()..];
        }
        Some(frame)
    }
}

fn first_frame(rest: &[u8]) -> Option<(&[u8], u32)> {
    if !rest.starts_with(&ZSTD_MAGIC) {
        return None; // a skippable frame would be room for anything
    }
    let len = zstd::zstd_safe::find_frame_compressed_size(rest).ok()?;
    let raw_len = zstd::zstd_safe::get_frame_content_size(rest).ok()??;
    let raw_len = u32::try_from(raw_len).ok().filter(|len| (1..=MAX_FRAME_BYTES).contains(len))?;
    Some((rest.get(..len)?, raw_len))
}
