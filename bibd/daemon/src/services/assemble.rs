//! From frames to chunks: every bound is checked before anything is kept. Pure.

use bib_core::Hash;
use bibd_blobs::{Encoding, Frame, Incoming, MAX_CHUNK_BYTES, MAX_FRAME_BYTES};
use bytes::{Bytes, BytesMut};

use super::error::ServiceError;

/// The most pieces of one chunk: a sender of tiny ones would make us keep more bookkeeping than bytes.
const MAX_PIECES: usize = 16;

/// A piece of one chunk, as it arrived.
#[derive(Debug, Clone)]
pub struct Piece {
    /// The chunk.
    pub chunk: Hash,
    /// Where in the encoded bytes it begins.
    pub offset: u32,
    /// How the chunk's bytes are written: bare, or as zstd frames in a row.
    pub encoding: Encoding,
    /// Length of the chunk before encoding, in bytes.
    pub raw_length: u32,
    /// Length of all encoded bytes of the chunk.
    pub encoded_length: u32,
    /// 1 byte to 1 MiB.
    pub data: Bytes,
}

/// Puts the pieces of one chunk after another together. Memory: one chunk.
#[derive(Debug, Default)]
pub struct Assembler {
    open: Option<Open>,
}

#[derive(Debug)]
struct Open {
    chunk: Hash,
    encoding: Encoding,
    raw_length: u32,
    encoded_length: u32,
    received: u32,
    pieces: Vec<Bytes>,
}

impl Assembler {
    /// Whether a chunk is unfinished.
    #[must_use]
    pub fn is_open(&self) -> bool {
        self.open.is_some()
    }

    /// Takes the next piece; gives the chunk when it is complete. Its bytes are not hashed here.
    ///
    /// # Errors
    /// When a bound is broken, or the piece does not go on where the one before ended.
    pub fn push(&mut self, piece: Piece) -> Result<Option<Incoming>, ServiceError> {
        let mut open = match self.open.take() {
            Some(open) => open,
            None => Open::begin(&piece)?,
        };
        open.push(piece)?;
        if open.received < open.encoded_length {
            self.open = Some(open);
            return Ok(None);
        }
        open.finish().map(Some)
    }

    /// Says that no more pieces come.
    ///
    /// # Errors
    /// When a chunk is unfinished.
    pub fn finish(self) -> Result<(), ServiceError> {
        match self.open {
            None => Ok(()),
            Some(open) => Err(wrong(format!(
                "chunk {} ends after {} of {} bytes",
                open.chunk, open.received, open.encoded_length
            ))),
        }
    }
}

impl Open {
    fn begin(piece: &Piece) -> Result<Self, ServiceError> {
        let (raw, encoded) = (piece.raw_length, piece.encoded_length);
        if raw == 0 || raw > MAX_CHUNK_BYTES {
            return Err(wrong(format!("a chunk of {raw} bytes; 1 to {MAX_CHUNK_BYTES} are allowed")));
        }
        let fits = match piece.encoding {
            Encoding::Raw => encoded == raw,
            Encoding::Zstd => encoded > 0 && encoded < raw,
        };
        if !fits {
            return Err(wrong(format!(
                "{encoded} encoded bytes for {raw}: bare bytes are as many, zstd ones are fewer"
            )));
        }
        Ok(Self {
            chunk: piece.chunk,
            encoding: piece.encoding,
            raw_length: raw,
            encoded_length: encoded,
            received: 0,
            pieces: Vec::with_capacity(4),
        })
    }

    fn push(&mut self, piece: Piece) -> Result<(), ServiceError> {
        let same = (self.chunk, self.encoding, self.raw_length, self.encoded_length)
            == (piece.chunk, piece.encoding, piece.raw_length, piece.encoded_length);
        if !same || piece.offset != self.received {
            return Err(wrong(format!(
                "a piece of chunk {} at {} where chunk {} goes on at {}",
                piece.chunk, piece.offset, self.chunk, self.received
            )));
        }
        if piece.data.is_empty() || piece.data.len() > MAX_FRAME_BYTES as usize {
            return Err(wrong(format!("a piece of {} bytes; 1 to {MAX_FRAME_BYTES} are allowed", piece.data.len())));
        }
        // At most 1 MiB, as was just checked.
        let length = u32::try_from(piece.data.len()).unwrap_or(u32::MAX);
        if length > self.encoded_length - self.received || self.pieces.len() == MAX_PIECES {
            return Err(wrong(format!("chunk {} has more bytes or pieces than it may", self.chunk)));
        }
        self.received += length;
        self.pieces.push(piece.data);
        Ok(())
    }

    fn finish(self) -> Result<Incoming, ServiceError> {
        let frames = match self.encoding {
            Encoding::Raw => self
                .pieces
                .into_iter()
                .map(|bytes| Frame { encoding: Encoding::Raw, raw_len: u32::try_from(bytes.len()).unwrap_or(0), bytes })
                .collect(),
            Encoding::Zstd => zstd_frames(self.chunk, self.pieces, self.raw_length)?,
        };
        let incoming = Incoming { hash: self.chunk, frames };
        if incoming.raw_len() != u64::from(self.raw_length) {
            return Err(wrong(format!("the frames of chunk {} do not say {} bytes", self.chunk, self.raw_length)));
        }
        Ok(incoming)
    }
}

/// The zstd frames of a chunk, each of at most 1 MiB raw so that it can be stored and sent as it came. One that is
/// larger, or does not say its length, is unpacked here, to at most `raw_length` bytes.
fn zstd_frames(chunk: Hash, pieces: Vec<Bytes>, raw_length: u32) -> Result<Vec<Frame>, ServiceError> {
    // Senders that cut at frames, as ours do, save the copy.
    if let Some(frames) = pieces.iter().map(single_frame).collect::<Option<Vec<Frame>>>() {
        return Ok(frames);
    }
    let mut row = BytesMut::with_capacity(pieces.iter().map(Bytes::len).sum());
    pieces.iter().for_each(|piece| row.extend_from_slice(piece));
    let row = row.freeze();
    if let Some(frames) = split(row.clone()) {
        return Ok(frames);
    }
    let raw = zstd::bulk::decompress(&row, raw_length as usize)
        .map_err(|_| wrong(format!("the zstd frames of chunk {chunk} do not unpack to {raw_length} bytes")))?;
    Ok(Incoming::raw(chunk, raw.into()).frames)
}

fn split(mut row: Bytes) -> Option<Vec<Frame>> {
    let mut frames = Vec::with_capacity(4);
    while !row.is_empty() {
        let length = zstd::zstd_safe::find_frame_compressed_size(&row).ok()?;
        if length > row.len() || frames.len() == MAX_PIECES {
            return None;
        }
        frames.push(single_frame(&row.split_to(length))?);
    }
    Some(frames)
}

fn single_frame(bytes: &Bytes) -> Option<Frame> {
    let length = zstd::zstd_safe::find_frame_compressed_size(bytes).ok()?;
    let raw_len = zstd::zstd_safe::get_frame_content_size(bytes).ok()??;
    let raw_len = u32::try_from(raw_len).ok().filter(|raw| (1..=MAX_FRAME_BYTES).contains(raw))?;
    (length == bytes.len()).then(|| Frame { encoding: Encoding::Zstd, raw_len, bytes: bytes.clone() })
}

fn wrong(reason: String) -> ServiceError {
    ServiceError::invalid("frame", reason)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn piece(bytes: &[u8], offset: u32, data: &[u8]) -> Piece {
        let length = u32::try_from(bytes.len()).unwrap();
        Piece {
            chunk: Hash::of(bytes),
            offset,
            encoding: Encoding::Raw,
            raw_length: length,
            encoded_length: length,
            data: Bytes::copy_from_slice(data),
        }
    }

    fn zstd_piece(raw: &[u8], row: &[u8], offset: usize, upto: usize) -> Piece {
        Piece {
            chunk: Hash::of(raw),
            offset: u32::try_from(offset).unwrap(),
            encoding: Encoding::Zstd,
            raw_length: u32::try_from(raw.len()).unwrap(),
            encoded_length: u32::try_from(row.len()).unwrap(),
            data: Bytes::copy_from_slice(&row[offset..upto]),
        }
    }

    #[test]
    fn pieces_make_a_chunk() {
        let mut assembler = Assembler::default();
        assert!(assembler.push(piece(b"abcdef", 0, b"abc")).unwrap().is_none());
        assert!(assembler.is_open());
        let chunk = assembler.push(piece(b"abcdef", 3, b"def")).unwrap().unwrap();
        assert_eq!((chunk.hash, chunk.frames.len(), chunk.raw_len()), (Hash::of(b"abcdef"), 2, 6));
        assembler.finish().unwrap();
    }

    #[test]
    fn what_breaks_a_bound_is_refused() {
        let refused = |pieces: &[Piece]| {
            let mut assembler = Assembler::default();
            pieces.iter().any(|piece| assembler.push(piece.clone()).is_err()) || assembler.finish().is_err()
        };
        let whole = piece(b"abc", 0, b"abc");
        assert!(!refused(std::slice::from_ref(&whole)));
        assert!(refused(&[piece(b"abc", 0, b"")]), "empty");
        assert!(refused(&[piece(b"abc", 1, b"bc")]), "begins late");
        assert!(refused(&[piece(b"abc", 0, b"abcd")]), "too much");
        assert!(refused(&[piece(b"abc", 0, b"a")]), "cut off");
        assert!(refused(&[piece(b"abc", 0, b"ab"), piece(b"abc", 1, b"c")]), "overlap");
        assert!(refused(&[piece(b"abc", 0, b"ab"), piece(b"xyz", 2, b"c")]), "another chunk");
        for (raw, encoded) in [(0, 0), (MAX_CHUNK_BYTES + 1, MAX_CHUNK_BYTES + 1), (u32::MAX, u32::MAX), (3, 4)] {
            assert!(refused(&[Piece { raw_length: raw, encoded_length: encoded, ..whole.clone() }]), "{raw} {encoded}");
        }
        let long = vec![0; MAX_FRAME_BYTES as usize + 1];
        assert!(refused(&[piece(&long, 0, &long)]), "a piece past 1 MiB");
        let many = [0; 40];
        let pieces: Vec<Piece> = (0..40).map(|at| piece(&many, at, &many[..1])).collect();
        assert!(refused(&pieces), "crumbs");
    }

    #[test]
    fn zstd_is_taken_however_it_is_cut_and_unpacked_only_as_far_as_it_says() {
        let raw = vec![7; 3 << 20];
        let row: Vec<u8> = raw.chunks(1 << 20).flat_map(|part| zstd::bulk::compress(part, 1).unwrap()).collect();
        let mut assembler = Assembler::default();
        assert!(assembler.push(zstd_piece(&raw, &row, 0, 5)).unwrap().is_none());
        let chunk = assembler.push(zstd_piece(&raw, &row, 5, row.len())).unwrap().unwrap();
        assert_eq!(chunk.frames.iter().map(|frame| frame.raw_len).collect::<Vec<_>>(), [1 << 20; 3]);

        let one = zstd::bulk::compress(&raw, 1).unwrap();
        let chunk = Assembler::default().push(zstd_piece(&raw, &one, 0, one.len())).unwrap().unwrap();
        assert_eq!((chunk.frames[0].encoding, chunk.raw_len()), (Encoding::Raw, 3 << 20));

        let mut bomb = zstd_piece(&raw, &one, 0, one.len());
        bomb.raw_length = 1 << 20;
        assert!(Assembler::default().push(bomb).is_err());
    }
}
