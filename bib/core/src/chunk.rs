//! Where files are cut, and how small ones are packed.
//!
//! A file of 256 KiB or more is cut by FastCDC (Xia et al., 2020, <https://ieeexplore.ieee.org/document/9055082>), so
//! that an edit moves only the cuts near it. Smaller files lie one after another in packs. Chunks and packs are the
//! same to everything else: at most 4 MiB, named by their hash. Nothing here reads files.

use fastcdc::v2020;

use crate::Hash;
use crate::layout::Extent;

/// Name of these parameters in a layout.
pub const CHUNKING: &str = "fastcdc-v2020-256k-1m-4m-n1-s0";

/// The least bytes in a chunk, but for the last of a file. No cut is looked for before.
pub const MIN_CHUNK_BYTES: u32 = 256 * 1024;

/// Where cuts become likely: below, the strict mask decides, above, the relaxed one.
pub const AVERAGE_CHUNK_BYTES: u32 = 1024 * 1024;

/// The most bytes in a chunk or pack.
pub const MAX_CHUNK_BYTES: u32 = 4 * 1024 * 1024;

/// The most bytes in a pack.
pub const PACK_LIMIT: u32 = MAX_CHUNK_BYTES;

/// A file with fewer bytes is packed, one with as many or more is cut.
pub const SMALL_FILE: u32 = MIN_CHUNK_BYTES;

// The masks for 2^20 bytes at normalisation level 1: one bit more below the average, one bit less above.
const STRICT: u64 = v2020::MASKS[21];
const RELAXED: u64 = v2020::MASKS[19];

/// The length of the next chunk at the beginning of `window`, which must hold at least [`MAX_CHUNK_BYTES`] or all that
/// is left of the file. 0 only for an empty window.
#[must_use]
pub fn cut(window: &[u8]) -> usize {
    let (_, length) = v2020::cut(
        window,
        MIN_CHUNK_BYTES as usize,
        AVERAGE_CHUNK_BYTES as usize,
        MAX_CHUNK_BYTES as usize,
        STRICT,
        RELAXED,
        STRICT << 1,
        RELAXED << 1,
    );
    length
}

/// The chunks of a file that is in memory, in order.
pub fn chunks(file: &[u8]) -> impl Iterator<Item = &[u8]> {
    let mut rest = file;
    std::iter::from_fn(move || {
        let (chunk, after) = rest.split_at(cut(rest));
        rest = after;
        (!chunk.is_empty()).then_some(chunk)
    })
}

/// A file for a pack that is not small.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("a file of {0} bytes is not packed; packed files have fewer than {SMALL_FILE}")]
pub struct NotSmall(pub usize);

/// A finished pack and the files in it, each under the caller's key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pack<K> {
    /// SHA-256 of the bytes.
    pub hash: Hash,
    /// The files' bytes, one after another; at most [`PACK_LIMIT`].
    pub bytes: Vec<u8>,
    /// Where each file lies in it.
    pub files: Vec<(K, Extent)>,
}

/// Packs small files in the order they come, which is path order. A file that does not fit whole begins the next pack.
#[derive(Debug)]
pub struct Packer<K> {
    bytes: Vec<u8>,
    files: Vec<(K, u32, u32)>,
}

impl<K> Packer<K> {
    /// A packer without files. Memory: one pack.
    #[must_use]
    pub const fn new() -> Self {
        Self { bytes: Vec::new(), files: Vec::new() }
    }

    /// Adds a file; gives the pack before it, when that is full. An empty file has no extent and is not in any pack.
    ///
    /// # Errors
    /// When the file is not below [`SMALL_FILE`].
    pub fn push(&mut self, key: K, file: &[u8]) -> Result<Option<Pack<K>>, NotSmall> {
        let length = u32::try_from(file.len()).ok().filter(|n| *n < SMALL_FILE).ok_or(NotSmall(file.len()))?;
        if length == 0 {
            return Ok(None);
        }
        let full = if self.offset() + length > PACK_LIMIT { self.take() } else { None };
        self.files.push((key, self.offset(), length));
        self.bytes.extend_from_slice(file);
        Ok(full)
    }

    /// The last pack, when there are files left.
    #[must_use]
    pub fn finish(mut self) -> Option<Pack<K>> {
        self.take()
    }

    fn offset(&self) -> u32 {
        u32::try_from(self.bytes.len()).expect("a pack has at most PACK_LIMIT bytes")
    }

    fn take(&mut self) -> Option<Pack<K>> {
        if self.files.is_empty() {
            return None;
        }
        let bytes = std::mem::take(&mut self.bytes);
        let chunk = Hash::of(&bytes);
        let files = std::mem::take(&mut self.files);
        let files = files.into_iter().map(|(key, offset, length)| (key, Extent { chunk, offset, length })).collect();
        Some(Pack { hash: chunk, bytes, files })
    }
}

impl<K> Default for Packer<K> {
    fn default() -> Self {
        Self::new()
    }
}
