//! Chunk files past the page cache (`O_DIRECT`).
//!
//! A chunk is written once and mostly read much later. Through the page cache its pages would push out what is needed
//! now, PostgreSQL's first, and every one of them would have to be found, filled and written back: on virtual machines
//! that return free memory to their host that is the greater part of a publish. So:
//!
//! ```text
//! write                       direct but for the last bytes, which are no whole block
//! scan (scrub, verify)        direct: nobody waits for the same bytes soon
//! serve, the first time       direct
//! serve, again soon           through the page cache, where what many ask for belongs
//! ```
//!
//! The last two lines are the idea of 2Q (Johnson and Shasha, VLDB 1994, <https://www.vldb.org/conf/1994/P439.PDF>).
//! Small files, and file systems that refuse `O_DIRECT`, go through the page cache always: nothing but speed depends on it.

use std::fs::File;
use std::io::{self, Read, Write};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use bib_core::Hash;
use bytes::Bytes;
use rustix::fs::{OFlags, fcntl_getfl, fcntl_setfl};
use rustix::io::Errno;

/// What addresses, lengths and offsets are multiples of. Devices ask for 512 or 4096.
const BLOCK: usize = 4096;

/// Shorter files are not worth the trouble.
const LEAST_BYTES: usize = 128 * 1024;

/// What is copied and written at once: it stays in a core's cache in between.
const WINDOW_BYTES: usize = 1 << 20;

/// Unused buffers are kept up to this many bytes together: the first write to fresh memory is slow.
const KEPT_BYTES: usize = 32 << 20;

/// Chunks whose last serving is remembered, at least most of the time: 16,384 of about 1 MiB.
const REMEMBERED: usize = 1 << 14;

/// Why a file is read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Purpose {
    /// To look at it.
    Scan,
    /// To hand it out.
    Serve,
}

/// Reads and writes chunk files.
pub(crate) struct Direct {
    buffers: Arc<Buffers>,
    /// One chunk in each place, named by eight bytes of its hash.
    served: Box<[AtomicU64]>,
}

impl Direct {
    pub(crate) fn new() -> Self {
        Self { buffers: Arc::default(), served: (0..REMEMBERED).map(|_| AtomicU64::new(0)).collect() }
    }

    /// Writes `parts` to a new file.
    pub(crate) fn write(&self, file: &File, parts: &[Bytes]) -> io::Result<()> {
        let mut out = Out { file, direct: false };
        if parts.iter().map(Bytes::len).sum::<usize>() < LEAST_BYTES {
            return parts.iter().try_for_each(|part| out.write(part));
        }
        out.direct = set_direct(file, true);
        let mut window = Buffers::take(&self.buffers, WINDOW_BYTES);
        let mut filled = 0;
        for part in parts {
            let mut rest = &part[..];
            while !rest.is_empty() {
                let (now, later) = rest.split_at(rest.len().min(WINDOW_BYTES - filled));
                window.as_mut()[filled..filled + now.len()].copy_from_slice(now);
                filled += now.len();
                rest = later;
                if filled == WINDOW_BYTES {
                    out.write(window.as_ref())?;
                    filled = 0;
                }
            }
        }
        let (blocks, tail) = window.as_ref()[..filled].split_at(filled - filled % BLOCK);
        out.write(blocks)?;
        out.leave_direct();
        out.write(tail)
    }

    /// Reads a file from its beginning: `length` bytes and, if there is more, one more.
    pub(crate) fn read(&self, file: &File, length: usize, hash: &Hash, purpose: Purpose) -> io::Result<Bytes> {
        if length < LEAST_BYTES || (purpose == Purpose::Serve && self.was_served(hash)) || !set_direct(file, true) {
            return read_cached(file, length);
        }
        let mut buffer = Buffers::take(&self.buffers, (length + 1).next_multiple_of(BLOCK));
        let mut filled = 0;
        loop {
            let mut file = file;
            match file.read(&mut buffer.as_mut()[filled..]) {
                // Not on a block's edge: the file has ended there.
                Ok(read) if read == 0 || (filled + read) % BLOCK != 0 || filled + read > length => {
                    return Ok(Bytes::from_owner(buffer).slice(..(filled + read).min(length + 1)));
                }
                Ok(read) => filled += read,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) if refused(&error) && filled == 0 => {
                    set_direct(file, false);
                    return read_cached(file, length);
                }
                Err(error) => return Err(error),
            }
        }
    }

    /// Whether the chunk was handed out not long ago. From now on it was.
    fn was_served(&self, hash: &Hash) -> bool {
        let bytes = hash.as_bytes();
        let name = u64::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3], bytes[4], bytes[5], bytes[6], bytes[7]]);
        let place = usize::from(u16::from_le_bytes([bytes[8], bytes[9]])) % REMEMBERED;
        self.served[place].swap(name, Ordering::Relaxed) == name
    }
}

/// A file being written, direct as long as that goes well.
struct Out<'f> {
    file: &'f File,
    direct: bool,
}

impl Out<'_> {
    fn write(&mut self, mut bytes: &[u8]) -> io::Result<()> {
        while !bytes.is_empty() {
            let mut file = self.file;
            match file.write(bytes) {
                Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
                Ok(written) => bytes = &bytes[written..],
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                // Also after a write that stopped within a block.
                Err(error) if refused(&error) && self.direct => self.leave_direct(),
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    fn leave_direct(&mut self) {
        if self.direct {
            set_direct(self.file, false);
            self.direct = false;
        }
    }
}

/// Whether it was done: file systems without `O_DIRECT` refuse.
fn set_direct(file: &File, direct: bool) -> bool {
    fcntl_getfl(file)
        .and_then(|flags| fcntl_setfl(file, if direct { flags | OFlags::DIRECT } else { flags - OFlags::DIRECT }))
        .is_ok()
}

/// Whether the system did not like the alignment, rather than the disk the bytes.
fn refused(error: &io::Error) -> bool {
    Errno::from_io_error(error) == Some(Errno::INVAL)
}

fn read_cached(file: &File, length: usize) -> io::Result<Bytes> {
    // One byte over, so that the last read sees the end and the buffer need not grow.
    let mut bytes = Vec::with_capacity(length + 1);
    file.take(length as u64 + 1).read_to_end(&mut bytes)?;
    Ok(bytes.into())
}

/// Buffers that are used again.
#[derive(Default)]
struct Buffers(Mutex<Vec<Vec<u8>>>);

/// Memory that begins on a block's edge and goes back where it came from.
struct Buffer {
    memory: Vec<u8>,
    start: usize,
    length: usize,
    home: Arc<Buffers>,
}

impl Buffers {
    /// `length` bytes with old content.
    fn take(home: &Arc<Self>, length: usize) -> Buffer {
        // In powers of two, so that few sizes are around and none holds more than twice what is asked for. A block on
        // top for a file's end, so that the longest chunk fits its power, and one for the alignment.
        let size = length.saturating_sub(BLOCK).next_power_of_two() + 2 * BLOCK;
        let mut free = home.0.lock().unwrap_or_else(PoisonError::into_inner);
        let found = free.iter().rposition(|memory| memory.len() == size).map(|at| free.swap_remove(at));
        drop(free);
        let memory = found.unwrap_or_else(|| vec![0; size]);
        let start = memory.as_ptr().align_offset(BLOCK);
        Buffer { memory, start, length, home: Arc::clone(home) }
    }
}

impl AsRef<[u8]> for Buffer {
    fn as_ref(&self) -> &[u8] {
        &self.memory[self.start..self.start + self.length]
    }
}

impl AsMut<[u8]> for Buffer {
    fn as_mut(&mut self) -> &mut [u8] {
        &mut self.memory[self.start..self.start + self.length]
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        let mut free = self.home.0.lock().unwrap_or_else(PoisonError::into_inner);
        if free.iter().map(Vec::len).sum::<usize>() + self.memory.len() <= KEPT_BYTES {
            free.push(std::mem::take(&mut self.memory));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Lengths around blocks, windows and the least.
    const LENGTHS: [usize; 11] = [
        1,
        BLOCK,
        LEAST_BYTES - 1,
        LEAST_BYTES,
        LEAST_BYTES + 1,
        WINDOW_BYTES - 1,
        WINDOW_BYTES,
        WINDOW_BYTES + BLOCK,
        WINDOW_BYTES * 2 + 5,
        (4 << 20) - 1,
        4 << 20,
    ];

    fn noise(length: usize) -> Bytes {
        (0..length as u64).map(|i| (i.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 56) as u8).collect()
    }

    fn round_trip(dir: &std::path::Path) {
        let direct = Direct::new();
        for length in LENGTHS {
            let bytes = noise(length);
            let (one, two) = (bytes.slice(..length / 3), bytes.slice(length / 3..));
            let path = dir.join(length.to_string());
            direct.write(&File::create(&path).unwrap(), &[one, two]).unwrap();
            assert_eq!(std::fs::read(&path).unwrap(), bytes, "{length} bytes written");
            let hash = Hash::of(&bytes);
            for purpose in [Purpose::Scan, Purpose::Serve, Purpose::Serve] {
                let read = |length| direct.read(&File::open(&path).unwrap(), length, &hash, purpose).unwrap();
                assert_eq!(read(length), bytes, "{length} bytes, {purpose:?}");
                assert_eq!(read(length + LEAST_BYTES), bytes, "a file that is shorter than thought");
                assert_eq!(read(length - 1), bytes, "a file that is longer, by the byte that tells");
                assert_eq!(read(length / 2).len(), length / 2 + 1, "by more");
            }
        }
    }

    #[test]
    fn what_was_written_is_read() {
        round_trip(tempfile::tempdir().unwrap().path());
    }

    #[test]
    fn also_where_there_is_nothing_but_memory() {
        round_trip(tempfile::tempdir_in("/dev/shm").unwrap().path());
    }

    #[test]
    fn what_is_asked_for_again_goes_through_the_cache() {
        let direct = Direct::new();
        let (one, two) = (Hash::of(b"one"), Hash::of(b"two"));
        assert!(!direct.was_served(&one));
        assert!(!direct.was_served(&two));
        assert!(direct.was_served(&one));
        assert!(direct.was_served(&two));
    }

    #[test]
    fn buffers_begin_on_a_block_and_come_back() {
        let buffers = Arc::new(Buffers::default());
        let first = Buffers::take(&buffers, 3 * BLOCK);
        assert_eq!((first.as_ref().as_ptr().addr() % BLOCK, first.as_ref().len()), (0, 3 * BLOCK));
        let memory = first.memory.as_ptr();
        drop(Bytes::from_owner(first).slice(7..9));
        assert_eq!(Buffers::take(&buffers, 2 * BLOCK + 1).memory.as_ptr(), memory, "the same size once rounded up");
        assert_eq!(Buffers::take(&buffers, (4 << 20) + BLOCK).memory.len(), (4 << 20) + 2 * BLOCK);
    }
}
