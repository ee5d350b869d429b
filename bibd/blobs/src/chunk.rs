//! What goes in and out: chunks, their frames and where they lie.

use std::path::PathBuf;

use bib_core::Hash;
use bytes::Bytes;
use serde::{Deserialize, Serialize};

use crate::error::StoreError;
use crate::in_place::FileGuard;

/// The longest chunk, in raw bytes: 4 MiB. The shortest is one byte.
pub const MAX_CHUNK_BYTES: u32 = 4 << 20;

/// The longest frame, in raw bytes: 1 MiB, which is also the longest on any wire.
pub const MAX_FRAME_BYTES: u32 = 1 << 20;

/// How bytes are written down.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Encoding {
    /// The bytes themselves.
    Raw,
    /// zstd frames of at most [`MAX_FRAME_BYTES`] raw bytes each, every one with its content size in its header.
    Zstd,
}

/// A piece of a chunk, as it travels. The raw bytes of a chunk are those of its frames, in order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Frame {
    /// How `bytes` is written.
    pub encoding: Encoding,
    /// Length after decoding, 1 to [`MAX_FRAME_BYTES`]; for [`Encoding::Raw`] up to [`MAX_CHUNK_BYTES`].
    pub raw_len: u32,
    /// The encoded bytes.
    pub bytes: Bytes,
}

/// A chunk to store: what the sender claims, not yet believed.
#[derive(Debug, Clone)]
pub struct Incoming {
    /// The SHA-256 that the raw bytes must have.
    pub hash: Hash,
    /// The chunk's frames in order. Frames that arrived compressed are kept as they are where that saves space.
    pub frames: Vec<Frame>,
}

impl Incoming {
    /// A chunk whose raw bytes are at hand.
    #[must_use]
    pub fn raw(hash: Hash, bytes: Bytes) -> Self {
        let raw_len = u32::try_from(bytes.len()).unwrap_or(u32::MAX);
        Self { hash, frames: vec![Frame { encoding: Encoding::Raw, raw_len, bytes }] }
    }

    /// The raw length that the frames claim, in bytes.
    #[must_use]
    pub fn raw_len(&self) -> u64 {
        self.frames.iter().map(|frame| u64::from(frame.raw_len)).sum()
    }

    /// Refuses what is too long, empty or contradicts itself, before anything is allocated for it.
    pub(crate) fn check(&self) -> Result<(), StoreError> {
        let raw_len = self.raw_len();
        if raw_len == 0 || raw_len > u64::from(MAX_CHUNK_BYTES) {
            return Err(StoreError::Size { hash: self.hash, bytes: raw_len });
        }
        let fits = |frame: &Frame| match frame.encoding {
            Encoding::Raw => frame.raw_len as usize == frame.bytes.len(),
            // Bounds what a sender can make us hold: incompressible data grows by less than 1/128 under zstd.
            Encoding::Zstd => {
                (1..=MAX_FRAME_BYTES).contains(&frame.raw_len) && frame.bytes.len() <= MAX_FRAME_BYTES as usize * 2
            }
        };
        match self.frames.iter().all(fits) {
            true => Ok(()),
            false => Err(StoreError::Frame { hash: self.hash }),
        }
    }
}

/// A chunk that is durable under its hash.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Stored {
    /// Its SHA-256.
    pub hash: Hash,
    /// How the file is encoded.
    pub encoding: Encoding,
    /// Length after decoding, in bytes.
    pub raw_len: u32,
    /// Length of the file, in bytes.
    pub stored_bytes: u32,
    /// Whether a whole copy was found (in the store or in the trash, from where it was taken back).
    pub already_there: bool,
}

/// Where a chunk's bytes lie, as the catalog remembers it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Location {
    /// A file of this store.
    Store {
        /// How the file is encoded.
        encoding: Encoding,
        /// Length of the file, in bytes.
        stored_bytes: u32,
    },
    /// A range of a file of a published folder, which somebody may change at any time.
    InPlace {
        /// Absolute path of the file.
        path: PathBuf,
        /// First byte of the chunk in the file.
        offset: u64,
        /// The file's identity when it was published. A chunk there is `raw_len` bytes long.
        guard: FileGuard,
    },
}
