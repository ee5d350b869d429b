//! Large files: one thread reads, cuts and hashes chunks, each while it is in the core's cache, and another hashes
//! files. Each byte is read once and never copied but for the few that no cut was found behind.

use std::collections::HashMap;
use std::io::Read as _;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};

use bib_core::chunk::{MAX_CHUNK_BYTES, cut};
use bib_core::layout::Extent;
use bib_core::{Hash, Hasher};
use bytes::Bytes;

use super::ingest::{Ending, Item, Outlet, Stopped, open_regular};
use super::pool::Pool;
use super::tree::Stat;
use super::walk::{Folder, stat_of};
use crate::error::Result;
use crate::progress::{Phase, Progress};

/// Pieces that wait between two stages.
const QUEUE: usize = 8;

pub(crate) struct Context {
    pub(crate) folder: Arc<Folder>,
    pub(crate) pool: Pool,
    pub(crate) outlet: Outlet,
    pub(crate) progress: Arc<dyn Progress>,
}

/// A file that went through all stages.
#[derive(Debug)]
pub(crate) struct Done {
    pub(crate) file: u32,
    pub(crate) hash: Hash,
    pub(crate) extents: Vec<Extent>,
    pub(crate) ending: Ending,
}

/// What goes to the file hasher.
enum ToFile {
    Bytes(Bytes),
    /// The file ends. `None`: what was sent of it does not count.
    End(Option<u32>),
}

/// What the hashers say.
enum Said {
    /// `whole`: the file's hash, where there is no more than one chunk.
    Chunks {
        file: u32,
        extents: Vec<Extent>,
        ending: Ending,
        whole: Option<Hash>,
    },
    File {
        file: u32,
        hash: Hash,
    },
}

/// Runs the stages over `items` and hands each finished file to `take`.
pub(crate) fn run(context: &Context, items: Vec<Item>, mut take: impl FnMut(Done) -> Result<()>) -> Result<()> {
    let mut left = items.len();
    let (to_file, pieces) = sync_channel(QUEUE);
    let (said, hearing) = sync_channel(QUEUE);
    std::thread::scope(|scope| {
        let said_of_files = said.clone();
        scope.spawn(move || hash_files(&pieces, &said_of_files));
        scope.spawn(move || read_all(context, items, &to_file, &said));
        // Hung up on an early return, which ends the stages one after another.
        let hearing = hearing;
        let mut hashes = HashMap::new();
        let mut rest = HashMap::new();
        for said in &hearing {
            let file = match said {
                Said::Chunks { file, extents, ending, whole } => {
                    if let Some(hash) = whole {
                        hashes.insert(file, hash);
                    }
                    rest.insert(file, (extents, ending));
                    file
                }
                Said::File { file, hash } => {
                    hashes.insert(file, hash);
                    file
                }
            };
            if let (Some(hash), true) = (hashes.get(&file).copied(), rest.contains_key(&file)) {
                hashes.remove(&file);
                if let Some((extents, ending)) = rest.remove(&file) {
                    take(Done { file, hash, extents, ending })?;
                    left -= 1;
                }
            }
        }
        // A file that never came out: a stage has stopped, and the sender knows why.
        if left == 0 { Ok(()) } else { Err(Stopped.into()) }
    })
}

fn hash_files(pieces: &Receiver<ToFile>, said: &SyncSender<Said>) {
    let mut hasher = Hasher::new();
    for piece in pieces {
        match piece {
            ToFile::Bytes(bytes) => hasher.update(&bytes),
            ToFile::End(file) => {
                let hash = std::mem::replace(&mut hasher, Hasher::new()).finish();
                if let Some(file) = file
                    && said.send(Said::File { file, hash }).is_err()
                {
                    return;
                }
            }
        }
    }
}

fn read_all(context: &Context, items: Vec<Item>, pieces: &SyncSender<ToFile>, said: &SyncSender<Said>) {
    for item in items {
        let mut attempt = 0;
        loop {
            attempt += 1;
            let (ending, read) = match read_one(context, &item, pieces) {
                Ok(Ok((stat, settled, read))) => {
                    (if settled { Ending::Settled(stat) } else { Ending::Changed(stat) }, read)
                }
                Ok(Err(error)) => (Ending::Unreadable(error), Read { extents: Vec::new(), whole: Some(Hash::of(b"")) }),
                Err(Stopped) => return,
            };
            let again = attempt < 2 && !matches!(ending, Ending::Settled(_));
            // A file in one chunk has its hash from there; nothing of it went to the file hasher.
            let for_file = (!again && read.whole.is_none()).then_some(item.file);
            if pieces.send(ToFile::End(for_file)).is_err() {
                return;
            }
            if !again {
                let Read { extents, whole } = read;
                if said.send(Said::Chunks { file: item.file, extents, ending, whole }).is_err() {
                    return;
                }
                break;
            }
        }
    }
}

/// A file's chunks.
struct Read {
    extents: Vec<Extent>,
    /// The file's hash, where there is no more than one chunk.
    whole: Option<Hash>,
}

type OneRead = std::io::Result<(Stat, bool, Read)>;

/// Reads one file, cuts it and hashes its chunks.
fn read_one(context: &Context, item: &Item, pieces: &SyncSender<ToFile>) -> Result<OneRead, Stopped> {
    let (fd, before) = match open_regular(&context.folder, &item.path) {
        Ok(opened) => opened,
        Err(error) => return Ok(Err(error)),
    };
    let mut file = std::fs::File::from(fd);
    let mut extents: Vec<Extent> = Vec::new();
    let mut carried = Bytes::new();
    let mut total = 0u64;
    loop {
        let mut buffer = context.pool.take();
        let space = buffer.as_mut_slice();
        space[..carried.len()].copy_from_slice(&carried);
        let (filled, ended) = match fill(&mut file, space, carried.len()) {
            Ok(filled) => filled,
            Err(error) => return Ok(Err(error)),
        };
        let fresh = (filled - carried.len()) as u64;
        total += fresh;
        context.progress.advance(Phase::Read, fresh);
        let mut rest = buffer.freeze().slice(..filled);
        while !rest.is_empty() && (ended || rest.len() >= MAX_CHUNK_BYTES as usize) {
            let bytes = rest.split_to(cut(&rest));
            let whole = ended && rest.is_empty() && extents.is_empty();
            if !whole {
                pieces.send(ToFile::Bytes(bytes.clone())).map_err(|_| Stopped)?;
            }
            let chunk = Hash::of(&bytes);
            let length = u32::try_from(bytes.len()).unwrap_or(MAX_CHUNK_BYTES);
            extents.push(Extent { chunk, offset: 0, length });
            context.outlet.put(chunk, bytes)?;
        }
        if ended {
            let (after, _) = match stat_of(&file) {
                Ok(stat) => stat,
                Err(error) => return Ok(Err(error)),
            };
            let settled = before == after && total == after.size;
            let whole = match extents.as_slice() {
                [] => Some(Hash::of(b"")),
                [only] => Some(only.chunk),
                _ => None,
            };
            return Ok(Ok((Stat { size: total, ..after }, settled, Read { extents, whole })));
        }
        carried = rest;
    }
}

/// Reads until `space` is full or the file ends, and says which.
fn fill(file: &mut std::fs::File, space: &mut [u8], from: usize) -> std::io::Result<(usize, bool)> {
    let mut filled = from;
    while filled < space.len() {
        match file.read(&mut space[filled..]) {
            Ok(0) => return Ok((filled, true)),
            Ok(read) => filled += read,
            Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok((filled, false))
}
