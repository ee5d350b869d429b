//! Reads files once: small ones in parallel into packs, large ones through the stages of [`super::cut`].
//!
//! A file's status is taken before and after it is read. One that changed in between is read once more; if it changes
//! again it is named, and the publish fails unless the caller allowed it.

use std::collections::{BTreeMap, HashMap};
use std::io::Read as _;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::sync::{Mutex, PoisonError};

use bib_core::Hash;
use bib_core::chunk::{Pack, Packer, SMALL_FILE};
use bytes::Bytes;

use super::cut;
use super::extents::Extents;
use super::pool::Pool;
use super::tree::{Stat, Tree};
use super::walk::{Folder, stat_of};
use crate::error::{Error, ErrorKind, Result, code};
use crate::progress::{Notice, Phase, Progress};

/// Small files that one thread reads at a time.
const BATCH_FILES: usize = 256;
/// Their bytes at most.
const BATCH_BYTES: u64 = 2 * 1024 * 1024;
/// Changed files that are told.
const MAX_TOLD: usize = 50;

/// A chunk on its way to the node.
#[derive(Debug)]
pub(crate) struct Chunk {
    pub(crate) hash: Hash,
    pub(crate) bytes: Bytes,
}

/// What happens to a small file once its hash is known.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Decision {
    /// It goes into a pack.
    Pack,
    /// Its bytes are kept until the parent's layout is known.
    Hold,
    /// The parent's layout has it.
    Skip,
}

/// Where the bytes go.
#[derive(Debug, Clone)]
pub(crate) enum Outlet {
    /// To the node, through the sender.
    Send(tokio::sync::mpsc::Sender<Chunk>),
    /// Nowhere: the files are published in place.
    InPlace,
}

/// Everything known about the folder while it is published.
pub(crate) struct Work {
    pub(crate) folder: Arc<Folder>,
    pub(crate) tree: Tree,
    pub(crate) extents: Extents,
    /// Bytes of small files that wait for a decision.
    pub(crate) held: HashMap<u32, Bytes>,
    /// Files that changed while they were read: their hash is not for the cache.
    pub(crate) unsettled: Vec<bool>,
    /// Files that were cut where they lie, and the node was not told about yet.
    pub(crate) placed: Vec<u32>,
    pub(crate) outlet: Outlet,
    pub(crate) allow_changing: bool,
    pub(crate) threads: usize,
    pub(crate) pool: Pool,
    pub(crate) progress: Arc<dyn Progress>,
}

/// A file to read.
#[derive(Debug)]
pub(crate) struct Item {
    pub(crate) file: u32,
    pub(crate) path: String,
}

/// How the reading of a file ended.
#[derive(Debug)]
pub(crate) enum Ending {
    /// It was the same before and after.
    Settled(Stat),
    /// It changed twice; this is what was read.
    Changed(Stat),
    /// It is gone, is no regular file any more, or cannot be read.
    Unreadable(std::io::Error),
}

/// The receiving end of the outlet is gone; its error says why.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Stopped;

impl From<Stopped> for Error {
    fn from(_: Stopped) -> Self {
        Self::new(ErrorKind::Cancelled, "the upload was stopped")
    }
}

impl Outlet {
    pub(crate) fn put(&self, hash: Hash, bytes: Bytes) -> Result<(), Stopped> {
        match self {
            Self::Send(sender) => sender.blocking_send(Chunk { hash, bytes }).map_err(|_| Stopped),
            Self::InPlace => Ok(()),
        }
    }
}

/// Files that could not be read in peace.
#[derive(Debug, Default)]
struct Troubles {
    changed: Vec<String>,
    unreadable: Vec<String>,
}

impl Work {
    /// Reads these files, in path order. Gives whether a hash that was known before turned out to be another.
    pub(crate) fn ingest(&mut self, files: &[u32], decide: &dyn Fn(&Hash) -> Decision) -> Result<bool> {
        let total = files.iter().map(|file| self.tree.stat(*file as usize).size).sum();
        self.progress.total(Phase::Read, Some(total));
        let in_place = matches!(self.outlet, Outlet::InPlace);
        let is_small = |file: &u32| !in_place && self.tree.stat(*file as usize).size < u64::from(SMALL_FILE);
        let (small, mut large): (Vec<u32>, Vec<u32>) = files.iter().partition(|file| is_small(file));
        let mut troubles = Troubles::default();
        let mut surprised = false;
        let grown = self.ingest_small(&small, decide, &mut troubles, &mut surprised)?;
        large.extend(grown);
        large.sort_unstable();
        surprised |= self.ingest_large(&large, &mut troubles)?;
        troubles.into_result(self.allow_changing, self.progress.as_ref())?;
        Ok(surprised)
    }

    fn item(&self, file: u32) -> Item {
        Item { file, path: self.tree.file_path(file as usize) }
    }

    /// Gives the files that turned out not to be small.
    fn ingest_small(
        &mut self,
        files: &[u32],
        decide: &dyn Fn(&Hash) -> Decision,
        troubles: &mut Troubles,
        surprised: &mut bool,
    ) -> Result<Vec<u32>> {
        let mut packing = Packing::default();
        let mut grown = Vec::new();
        // What is held needs no reading; order among packs is the order of `files`.
        let window = self.threads.max(1) * 2;
        let (job_sender, job_receiver) = sync_channel::<(usize, Vec<Item>)>(window);
        let (sender, receiver) = sync_channel::<(usize, Batch)>(window);
        let jobs = Mutex::new(job_receiver);
        let folder = Arc::clone(&self.folder);
        let outlet = self.outlet.clone();
        std::thread::scope(|scope| -> Result<()> {
            for _ in 0..self.threads.max(1) {
                let (jobs, sender, folder) = (&jobs, sender.clone(), &folder);
                scope.spawn(move || read_batches(folder, jobs, &sender));
            }
            drop(sender);
            // Moved in, so that an early return hangs up and the threads end.
            let job_sender = job_sender;
            let mut waiting: BTreeMap<usize, Batch> = BTreeMap::new();
            let (mut sent, mut done) = (0, 0);
            let mut rest = files;
            while !rest.is_empty() || done < sent {
                while sent - done < window && !rest.is_empty() {
                    let (now, after) = rest.split_at(self.batch_length(rest));
                    rest = after;
                    let items = now.iter().filter(|f| !self.held.contains_key(f)).map(|f| self.item(*f)).collect();
                    job_sender.send((sent, items)).map_err(|_| Stopped)?;
                    waiting.insert(sent, Batch { files: now.to_vec(), ..Batch::default() });
                    sent += 1;
                }
                let (number, batch) = receiver.recv().map_err(|_| Stopped)?;
                if let Some(slot) = waiting.get_mut(&number) {
                    slot.read = batch.read;
                    slot.bytes = batch.bytes;
                    slot.is_back = true;
                }
                while waiting.get(&done).is_some_and(|batch| batch.is_back) {
                    let Some(batch) = waiting.remove(&done) else { break };
                    done += 1;
                    self.take_batch(batch, decide, &mut packing, &mut grown, troubles, surprised, &outlet)?;
                }
            }
            Ok(())
        })?;
        if let Some(pack) = std::mem::take(&mut packing.packer).finish() {
            self.take_pack(pack, &outlet)?;
        }
        for (file, like) in packing.copies {
            self.extents.copy(file as usize, like as usize);
        }
        Ok(grown)
    }

    fn batch_length(&self, files: &[u32]) -> usize {
        let mut bytes = 0;
        let fits = |file: &&u32| {
            bytes += self.tree.stat(**file as usize).size;
            bytes <= BATCH_BYTES
        };
        files.iter().take(BATCH_FILES).take_while(fits).count().max(1)
    }

    #[allow(clippy::too_many_arguments, reason = "the parts of one loop's state")]
    fn take_batch(
        &mut self,
        batch: Batch,
        decide: &dyn Fn(&Hash) -> Decision,
        packing: &mut Packing,
        grown: &mut Vec<u32>,
        troubles: &mut Troubles,
        surprised: &mut bool,
        outlet: &Outlet,
    ) -> Result<()> {
        let bytes = Bytes::from(batch.bytes);
        let mut read: HashMap<u32, Small> = batch.read.into_iter().map(|small| (small.file, small)).collect();
        for file in batch.files {
            let data = match (read.remove(&file), self.held.remove(&file)) {
                (_, Some(held)) => held,
                (Some(small), None) => {
                    if small.grown {
                        grown.push(file);
                        continue;
                    }
                    self.progress.advance(Phase::Read, small.length as u64);
                    if !self.take_ending(file, small.ending, troubles) {
                        continue;
                    }
                    *surprised |= self.take_hash(file, small.hash);
                    bytes.slice(small.start..small.start + small.length)
                }
                (None, None) => continue,
            };
            let Some(hash) = self.tree.hash(file as usize) else { continue };
            match decide(&hash) {
                Decision::Skip => {}
                Decision::Hold => {
                    // A copy, so that one held file does not hold its whole batch.
                    self.held.insert(file, Bytes::copy_from_slice(&data));
                }
                Decision::Pack if data.is_empty() => self.set_extents(file, &[])?,
                Decision::Pack => match packing.first_with(&hash, file, &self.tree) {
                    Some(like) => packing.copies.push((file, like)),
                    None => {
                        let full = packing.packer.push(file, &data).map_err(|error| {
                            Error::new(ErrorKind::Internal, "a small file is not small").with_source(error)
                        })?;
                        if let Some(pack) = full {
                            self.take_pack(pack, outlet)?;
                        }
                    }
                },
            }
        }
        Ok(())
    }

    fn take_pack(&mut self, pack: Pack<u32>, outlet: &Outlet) -> Result<()> {
        for (file, extent) in &pack.files {
            self.set_extents(*file, &[*extent])?;
        }
        outlet.put(pack.hash, Bytes::from(pack.bytes))?;
        Ok(())
    }

    fn set_extents(&mut self, file: u32, extents: &[bib_core::layout::Extent]) -> Result<()> {
        self.extents.set(file as usize, extents).map_err(|error| Error::new(ErrorKind::Invalid, error.to_string()))
    }

    /// Notes a hash; gives whether another was known before.
    fn take_hash(&mut self, file: u32, hash: Hash) -> bool {
        let before = self.tree.hash(file as usize);
        self.tree.set_hash(file as usize, hash);
        before.is_some_and(|before| before != hash)
    }

    /// Notes a status; gives whether there are bytes to go on with.
    fn take_ending(&mut self, file: u32, ending: Ending, troubles: &mut Troubles) -> bool {
        match ending {
            Ending::Settled(stat) => {
                self.tree.set_stat(file as usize, stat);
                self.unsettled[file as usize] = false;
            }
            Ending::Changed(stat) => {
                self.tree.set_stat(file as usize, stat);
                self.unsettled[file as usize] = true;
                troubles.changed.push(self.tree.file_path(file as usize));
            }
            Ending::Unreadable(error) => {
                troubles.unreadable.push(format!("{}: {error}", self.tree.file_path(file as usize)));
                return false;
            }
        }
        true
    }

    fn ingest_large(&mut self, files: &[u32], troubles: &mut Troubles) -> Result<bool> {
        if files.is_empty() {
            return Ok(false);
        }
        let items: Vec<Item> = files.iter().map(|file| self.item(*file)).collect();
        let context = cut::Context {
            folder: Arc::clone(&self.folder),
            pool: self.pool.clone(),
            outlet: self.outlet.clone(),
            progress: Arc::clone(&self.progress),
        };
        let in_place = matches!(self.outlet, Outlet::InPlace);
        let mut surprised = false;
        cut::run(&context, items, |done| {
            if self.take_ending(done.file, done.ending, troubles) {
                surprised |= self.take_hash(done.file, done.hash);
                self.set_extents(done.file, &done.extents)?;
                if in_place {
                    self.placed.push(done.file);
                }
            }
            Ok(())
        })?;
        Ok(surprised)
    }
}

/// Packs that are being filled, and files that have the bytes of one before.
#[derive(Default)]
struct Packing {
    packer: Packer<u32>,
    /// First file by the first eight bytes of its hash.
    firsts: HashMap<u64, u32>,
    copies: Vec<(u32, u32)>,
}

impl Packing {
    /// The file before with the same bytes. The first of its kind is noted.
    fn first_with(&mut self, hash: &Hash, file: u32, tree: &Tree) -> Option<u32> {
        let mut key = [0; 8];
        key.copy_from_slice(&hash.as_bytes()[..8]);
        let first = *self.firsts.entry(u64::from_le_bytes(key)).or_insert(file);
        (first != file && tree.hash(first as usize) == Some(*hash)).then_some(first)
    }
}

impl Troubles {
    fn into_result(self, allow_changing: bool, progress: &dyn Progress) -> Result<()> {
        if !self.unreadable.is_empty() {
            return Err(Error::new(
                ErrorKind::Local,
                format!("{} files cannot be read: {}", self.unreadable.len(), listed(&self.unreadable)),
            )
            .with_code(code::LOCAL_FILE)
            .with_hint("check permissions, or leave them out with a `.bibignore`"));
        }
        if self.changed.is_empty() {
            return Ok(());
        }
        if !allow_changing {
            return Err(Error::new(
                ErrorKind::Conflict,
                format!("{} files changed while they were read: {}", self.changed.len(), listed(&self.changed)),
            )
            .with_code(code::CHANGED_WHILE_READ)
            .with_hint(
                "stop what writes them and publish again, or take them as they were read with `--allow-changing`",
            ));
        }
        for path in self.changed {
            progress.notice(Notice::Changed { path });
        }
        Ok(())
    }
}

fn listed(names: &[String]) -> String {
    let mut text = names
        .iter()
        .take(MAX_TOLD)
        .map(|name| format!("`{}`", bib_core::text::scrub(name)))
        .collect::<Vec<_>>()
        .join(", ");
    if names.len() > MAX_TOLD {
        text.push_str(" ...");
    }
    text
}

/// Small files that were read together.
#[derive(Debug, Default)]
struct Batch {
    /// All files of the batch, those that were held too.
    files: Vec<u32>,
    bytes: Vec<u8>,
    read: Vec<Small>,
    is_back: bool,
}

#[derive(Debug)]
struct Small {
    file: u32,
    start: usize,
    length: usize,
    hash: Hash,
    ending: Ending,
    /// It is no small file any more.
    grown: bool,
}

fn read_batches(folder: &Folder, jobs: &Mutex<Receiver<(usize, Vec<Item>)>>, results: &SyncSender<(usize, Batch)>) {
    loop {
        let job = jobs.lock().unwrap_or_else(PoisonError::into_inner).recv();
        let Ok((number, items)) = job else { return };
        let mut batch = Batch::default();
        for item in items {
            let small = read_small(folder, &item, &mut batch.bytes);
            batch.read.push(small);
        }
        if results.send((number, batch)).is_err() {
            return;
        }
    }
}

/// Reads one small file onto the end of `bytes`, again when it changed meanwhile.
fn read_small(folder: &Folder, item: &Item, bytes: &mut Vec<u8>) -> Small {
    let start = bytes.len();
    let mut small = Small {
        file: item.file,
        start,
        length: 0,
        hash: Hash::from_bytes([0; 32]),
        ending: Ending::Settled(Stat::default()),
        grown: false,
    };
    for attempt in 0..2 {
        bytes.truncate(start);
        match read_once(folder, &item.path, bytes) {
            Ok(None) => {
                bytes.truncate(start);
                small.grown = true;
                return small;
            }
            Ok(Some((stat, settled))) => {
                small.length = bytes.len() - start;
                small.hash = Hash::of(&bytes[start..]);
                let stat = Stat { size: small.length as u64, ..stat };
                small.ending = if settled { Ending::Settled(stat) } else { Ending::Changed(stat) };
                if settled {
                    return small;
                }
            }
            Err(error) if attempt > 0 => {
                bytes.truncate(start);
                small.ending = Ending::Unreadable(error);
            }
            Err(_) => {}
        }
    }
    small
}

/// The status after reading and whether it is the one before; `None` when the file is not small.
fn read_once(folder: &Folder, path: &str, bytes: &mut Vec<u8>) -> std::io::Result<Option<(Stat, bool)>> {
    let start = bytes.len();
    let (fd, before) = open_regular(folder, path)?;
    if before.size >= u64::from(SMALL_FILE) {
        return Ok(None);
    }
    let file = std::fs::File::from(fd);
    // One byte more than there should be shows a file that grows.
    (&file).take(u64::from(SMALL_FILE)).read_to_end(bytes)?;
    let read = bytes.len() - start;
    if read >= SMALL_FILE as usize {
        return Ok(None);
    }
    let (after, _) = stat_of(&file)?;
    Ok(Some((after, before == after && read as u64 == after.size)))
}

/// Opens a file that must still be a regular one.
pub(crate) fn open_regular(folder: &Folder, path: &str) -> std::io::Result<(OwnedFd, Stat)> {
    let fd = folder.open_file(path)?;
    let (stat, regular) = stat_of(&fd)?;
    if !regular {
        return Err(std::io::Error::other("it is no regular file any more"));
    }
    Ok((fd, stat))
}
