//! How bytes travel: frames of at most 1 MiB, each a piece of one chunk.
//!
//! These are the bounds and the header that every wire shares (gRPC and node to node). Compressing and decompressing
//! is the caller's; whoever decompresses stops at [`FrameHeader::raw_length`].

use crate::Hash;
use crate::chunk::MAX_CHUNK_BYTES;

/// The most bytes in a frame, raw and as sent.
pub const MAX_FRAME_BYTES: u32 = 1024 * 1024;

/// The most bytes in a message on any wire.
pub const MAX_MESSAGE_BYTES: usize = 4 * 1024 * 1024;

/// How a frame's bytes are written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Encoding {
    /// As they are.
    Raw,
    /// One zstd frame.
    Zstd,
}

/// What a frame says about its bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct FrameHeader {
    /// The chunk that the bytes are a piece of.
    pub chunk: Hash,
    /// Where in the chunk they begin, in bytes.
    pub offset: u32,
    /// How they are written.
    pub encoding: Encoding,
    /// How many bytes they are, decoded: 1 to [`MAX_FRAME_BYTES`].
    pub raw_length: u32,
}

/// A frame that breaks a bound.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum FrameError {
    /// No bytes, or too many.
    #[error("a frame of {0} bytes; 1 to {MAX_FRAME_BYTES} are allowed")]
    Length(u32),
    /// Reaches past the end of the largest chunk.
    #[error("a frame of {length} bytes at offset {offset} reaches past the {MAX_CHUNK_BYTES} bytes of a chunk")]
    PastChunk {
        /// Where it begins.
        offset: u32,
        /// Its raw length.
        length: u32,
    },
    /// A raw frame with another number of bytes than it says.
    #[error("a raw frame says {said} bytes and holds {found}")]
    RawLength {
        /// What the header says.
        said: u32,
        /// What is there.
        found: usize,
    },
    /// A compressed frame that is empty or no smaller than its bytes: it had to be sent raw.
    #[error("a compressed frame holds {found} bytes for {said} raw ones; send it raw")]
    NotSmaller {
        /// The raw length.
        said: u32,
        /// What is there.
        found: usize,
    },
}

impl FrameHeader {
    /// Checks every bound against the `payload_bytes` that came with the header, before anything is decompressed.
    ///
    /// # Errors
    /// The bound that is broken.
    pub fn check(&self, payload_bytes: usize) -> Result<(), FrameError> {
        let length = self.raw_length;
        if length == 0 || length > MAX_FRAME_BYTES {
            return Err(FrameError::Length(length));
        }
        if u64::from(self.offset) + u64::from(length) > u64::from(MAX_CHUNK_BYTES) {
            return Err(FrameError::PastChunk { offset: self.offset, length });
        }
        match self.encoding {
            Encoding::Raw if payload_bytes != length as usize => {
                Err(FrameError::RawLength { said: length, found: payload_bytes })
            }
            Encoding::Zstd if payload_bytes == 0 || payload_bytes >= length as usize => {
                Err(FrameError::NotSmaller { said: length, found: payload_bytes })
            }
            Encoding::Raw | Encoding::Zstd => Ok(()),
        }
    }
}

/// The pieces, as (offset, length), in which a chunk of `chunk_bytes` travels: all of [`MAX_FRAME_BYTES`] but the last.
pub fn pieces(chunk_bytes: u32) -> impl Iterator<Item = (u32, u32)> {
    (0..chunk_bytes)
        .step_by(MAX_FRAME_BYTES as usize)
        .map(move |offset| (offset, MAX_FRAME_BYTES.min(chunk_bytes - offset)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn header(offset: u32, encoding: Encoding, raw_length: u32) -> FrameHeader {
        FrameHeader { chunk: Hash::of(b""), offset, encoding, raw_length }
    }

    #[test]
    fn pieces_cover_a_chunk_and_pass_the_check() {
        for bytes in [0, 1, MAX_FRAME_BYTES, MAX_FRAME_BYTES + 1, MAX_CHUNK_BYTES - 1, MAX_CHUNK_BYTES] {
            let mut next = 0;
            for (offset, length) in pieces(bytes) {
                assert_eq!(offset, next);
                assert_eq!(header(offset, Encoding::Raw, length).check(length as usize), Ok(()));
                next += length;
            }
            assert_eq!(next, bytes);
        }
    }

    #[test]
    fn refuses_frames_that_break_a_bound() {
        let check = |h: FrameHeader, payload| h.check(payload).unwrap_err();
        assert_eq!(check(header(0, Encoding::Raw, 0), 0), FrameError::Length(0));
        assert!(matches!(check(header(0, Encoding::Raw, MAX_FRAME_BYTES + 1), 9), FrameError::Length(_)));
        assert!(matches!(check(header(u32::MAX, Encoding::Zstd, 2), 1), FrameError::PastChunk { .. }));
        assert!(matches!(check(header(0, Encoding::Raw, 5), 4), FrameError::RawLength { .. }));
        assert!(matches!(check(header(0, Encoding::Zstd, 5), 5), FrameError::NotSmaller { .. }));
        assert!(matches!(check(header(0, Encoding::Zstd, 5), 0), FrameError::NotSmaller { .. }));
        assert_eq!(header(0, Encoding::Zstd, 5).check(4), Ok(()));
    }
}
