//! What is on the disk and what is only in memory.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::ffi::{OsStr, OsString};
use std::time::{Duration, SystemTime};

use libc::{EEXIST, EINVAL, EIO, EISDIR, ENOENT, ENOTDIR, ENOTEMPTY};
use rand::Rng as _;
use rand::rngs::StdRng;

pub type Errno = i32;
type Names = BTreeMap<OsString, u64>;

pub const ROOT: u64 = 1;

/// What survives besides what was fsynced.
pub enum Memory<'a> {
    /// Nothing.
    Nothing,
    /// A random part, as with a real disk that happened to write some things early: names without bytes, the first half
    /// of a file, a removal but not the name it was replaced by.
    Some(&'a mut StdRng),
}

#[derive(Clone, PartialEq, Eq)]
pub struct FileState {
    pub data: Vec<u8>,
    pub mtime: SystemTime,
}

pub enum Kind {
    File { now: FileState, durable: FileState },
    Dir { now: Names, durable: Names },
}

pub struct Inode {
    pub kind: Kind,
    pub mode: u32,
}

pub struct State {
    pub inodes: HashMap<u64, Inode>,
    next: u64,
    pub operations: u64,
    pub operations_left: Option<u64>,
    pub file_syncs_fail: bool,
    pub dir_syncs_fail: bool,
    pub file_syncs: HashMap<u64, u64>,
}

impl State {
    pub fn new() -> Self {
        let root = Inode { kind: Kind::Dir { now: Names::new(), durable: Names::new() }, mode: 0o755 };
        Self {
            inodes: HashMap::from([(ROOT, root)]),
            next: ROOT + 1,
            operations: 0,
            operations_left: None,
            file_syncs_fail: false,
            dir_syncs_fail: false,
            file_syncs: HashMap::new(),
        }
    }

    /// Every call asks first; a dead disk answers nothing.
    pub fn alive(&self) -> Result<(), Errno> {
        if self.operations_left == Some(0) { Err(EIO) } else { Ok(()) }
    }

    /// Every change asks first: it may be the one at which the power fails.
    fn change(&mut self) -> Result<(), Errno> {
        self.alive()?;
        self.operations += 1;
        if let Some(left) = &mut self.operations_left {
            *left -= 1;
        }
        self.alive()
    }

    pub fn now(&self) -> SystemTime {
        SystemTime::UNIX_EPOCH + Duration::from_secs(1_700_000_000) + Duration::from_millis(self.operations)
    }

    pub fn inode(&self, ino: u64) -> Result<&Inode, Errno> {
        self.inodes.get(&ino).ok_or(ENOENT)
    }

    pub fn file(&mut self, ino: u64) -> Result<&mut FileState, Errno> {
        match &mut self.inodes.get_mut(&ino).ok_or(ENOENT)?.kind {
            Kind::File { now, .. } => Ok(now),
            Kind::Dir { .. } => Err(EISDIR),
        }
    }

    pub fn names(&mut self, ino: u64) -> Result<&mut Names, Errno> {
        match &mut self.inodes.get_mut(&ino).ok_or(ENOENT)?.kind {
            Kind::Dir { now, .. } => Ok(now),
            Kind::File { .. } => Err(ENOTDIR),
        }
    }

    pub fn find(&mut self, parent: u64, name: &OsStr) -> Result<u64, Errno> {
        self.alive()?;
        self.names(parent)?.get(name).copied().ok_or(ENOENT)
    }

    pub fn make(&mut self, parent: u64, name: &OsStr, mode: u32, dir: bool) -> Result<u64, Errno> {
        self.change()?;
        let now = FileState { data: Vec::new(), mtime: self.now() };
        let kind = match dir {
            true => Kind::Dir { now: Names::new(), durable: Names::new() },
            false => Kind::File { durable: now.clone(), now },
        };
        let ino = self.next;
        let names = self.names(parent)?;
        if names.contains_key(name) {
            return Err(EEXIST);
        }
        names.insert(name.to_owned(), ino);
        self.next += 1;
        self.inodes.insert(ino, Inode { kind, mode: mode & 0o7777 });
        Ok(ino)
    }

    pub fn unlink(&mut self, parent: u64, name: &OsStr) -> Result<(), Errno> {
        self.change()?;
        // The inode stays for those that have it open.
        self.names(parent)?.remove(name).map(drop).ok_or(ENOENT)
    }

    pub fn rmdir(&mut self, parent: u64, name: &OsStr) -> Result<(), Errno> {
        let ino = self.find(parent, name)?;
        if !self.names(ino)?.is_empty() {
            return Err(ENOTEMPTY);
        }
        self.unlink(parent, name)
    }

    pub fn rename(&mut self, from: (u64, &OsStr), to: (u64, &OsStr), flags: u32) -> Result<(), Errno> {
        if flags != 0 {
            return Err(EINVAL);
        }
        let ino = self.find(from.0, from.1)?;
        self.change()?;
        self.names(to.0)?.insert(to.1.to_owned(), ino);
        self.names(from.0)?.remove(from.1);
        Ok(())
    }

    pub fn write(&mut self, ino: u64, offset: usize, data: &[u8]) -> Result<(), Errno> {
        self.change()?;
        let now = self.now();
        let file = self.file(ino)?;
        file.data.resize(file.data.len().max(offset + data.len()), 0);
        file.data[offset..offset + data.len()].copy_from_slice(data);
        file.mtime = now;
        Ok(())
    }

    pub fn set(&mut self, ino: u64, size: Option<u64>, mtime: Option<SystemTime>) -> Result<(), Errno> {
        self.change()?;
        if let Some(size) = size {
            self.file(ino)?.data.resize(size as usize, 0);
        }
        if let (Some(mtime), Ok(file)) = (mtime, self.file(ino)) {
            file.mtime = mtime;
        }
        Ok(())
    }

    pub fn sync_file(&mut self, ino: u64) -> Result<(), Errno> {
        *self.file_syncs.entry(ino).or_default() += 1;
        self.change()?;
        if self.file_syncs_fail {
            return Err(EIO);
        }
        match &mut self.inodes.get_mut(&ino).ok_or(ENOENT)?.kind {
            Kind::File { now, durable } => now.clone_into(durable),
            Kind::Dir { .. } => return Err(EISDIR),
        }
        Ok(())
    }

    pub fn sync_dir(&mut self, ino: u64) -> Result<(), Errno> {
        self.change()?;
        if self.dir_syncs_fail {
            return Err(EIO);
        }
        match &mut self.inodes.get_mut(&ino).ok_or(ENOENT)?.kind {
            Kind::Dir { now, durable } => now.clone_into(durable),
            Kind::File { .. } => return Err(ENOTDIR),
        }
        Ok(())
    }

    pub fn forget(&mut self, mut memory: Memory<'_>) {
        for inode in self.inodes.values_mut() {
            match &mut inode.kind {
                Kind::File { now, durable } => {
                    if let Memory::Some(rng) = &mut memory
                        && now != durable
                    {
                        match rng.gen_range(0..3) {
                            0 => {}
                            1 => now.clone_into(durable),
                            _ => durable.data = now.data[..now.data.len() / 2].to_vec(),
                        }
                    }
                    durable.clone_into(now);
                }
                Kind::Dir { now, durable } => {
                    if let Memory::Some(rng) = &mut memory {
                        let names: BTreeSet<&OsString> = now.keys().chain(durable.keys()).collect();
                        let kept = names.into_iter().filter_map(|name| {
                            let side: &Names = if rng.gen_bool(0.5) { now } else { durable };
                            side.get(name).map(|ino| (name.clone(), *ino))
                        });
                        *durable = kept.collect();
                    }
                    durable.clone_into(now);
                }
            }
        }
        self.drop_unreachable();
        self.operations_left = None;
    }

    fn drop_unreachable(&mut self) {
        let mut seen = BTreeSet::new();
        let mut open = vec![ROOT];
        while let Some(ino) = open.pop() {
            if seen.insert(ino)
                && let Ok(names) = self.names(ino)
            {
                open.extend(names.values().copied());
            }
        }
        self.inodes.retain(|ino, _| seen.contains(ino));
    }
}
