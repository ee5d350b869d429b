//! Names on disk, temporary files and directory syncs: the only file that knows paths.

use std::collections::BTreeSet;
use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io;
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use bib_core::Hash;
use bytes::Bytes;

use crate::direct::{Direct, Purpose};

/// The directories of a store, and which of them are known to survive a power cut.
pub(crate) struct Disk {
    root: PathBuf,
    next_temp: AtomicU64,
    /// One bit per `ab/cd`: set once this process has made it durable. Not remembered across processes, because a
    /// directory that is visible after a kill need not be on the disk.
    durable: Vec<AtomicU64>,
    pub(crate) direct: Direct,
}

/// Directories whose entries must reach the disk before anything is acknowledged.
#[derive(Default)]
pub(crate) struct DirSet {
    pub(crate) paths: BTreeSet<PathBuf>,
    /// `ab/cd` prefixes that are durable once `paths` are synced.
    prefixes: Vec<u16>,
}

impl DirSet {
    pub(crate) fn merge(&mut self, other: Self) {
        self.paths.extend(other.paths);
        self.prefixes.extend(other.prefixes);
    }
}

impl Disk {
    pub(crate) fn new(root: &Path) -> Self {
        let durable = (0..1024).map(|_| AtomicU64::new(0)).collect();
        Self { root: root.to_owned(), next_temp: AtomicU64::new(0), durable, direct: Direct::new() }
    }

    pub(crate) fn root(&self) -> &Path {
        &self.root
    }

    pub(crate) fn blobs(&self) -> PathBuf {
        self.root.join("blobs")
    }

    /// `blobs/ab/cd/<hash>`.
    pub(crate) fn chunk(&self, hash: &Hash) -> PathBuf {
        let text = hash.to_string();
        let mut path = self.blobs();
        path.extend([&text[..2], &text[2..4], &text]);
        path
    }

    /// `trash/ab/<hash>`.
    pub(crate) fn trashed(&self, hash: &Hash) -> PathBuf {
        let text = hash.to_string();
        let mut path = self.root.join("trash");
        path.extend([&text[..2], &text]);
        path
    }

    /// A free name in `quarantine/`: `<hash>.<n>`. Call it under the chunk's lock.
    pub(crate) fn quarantined(&self, hash: &Hash) -> PathBuf {
        let dir = self.root.join("quarantine");
        let name = |n: u32| dir.join(format!("{hash}.{n}"));
        (0..).map(name).find(|path| !path.exists()).unwrap_or_else(|| name(0))
    }

    /// Every copy of `hash` in `quarantine/`, a directory that is small where all is well.
    pub(crate) fn quarantine_copies(&self, hash: &Hash) -> io::Result<Vec<PathBuf>> {
        let prefix = format!("{hash}.");
        let mut copies = Vec::new();
        for entry in fs::read_dir(self.root.join("quarantine"))? {
            let entry = entry?;
            if entry.file_name().to_string_lossy().starts_with(&prefix) {
                copies.push(entry.path());
            }
        }
        Ok(copies)
    }

    /// Makes `blobs/ab/cd` if needed, and adds to `dirs` what must be synced for an entry in it to last.
    pub(crate) fn ensure_fan(&self, hash: &Hash, dirs: &mut DirSet) -> io::Result<()> {
        let path = self.chunk(hash);
        let (Some(fan), Some(above)) = (path.parent(), path.parent().and_then(Path::parent)) else { return Ok(()) };
        let prefix = u16::from_be_bytes([hash.as_bytes()[0], hash.as_bytes()[1]]);
        let known = self.durable[usize::from(prefix / 64)].load(Ordering::Acquire) & (1 << (prefix % 64)) != 0;
        if !known {
            make_dir(fan)?;
            dirs.paths.insert(above.to_owned());
            dirs.prefixes.push(prefix);
        }
        dirs.paths.insert(fan.to_owned());
        Ok(())
    }

    /// Remembers that everything in `prefixes` is durable.
    pub(crate) fn note_durable(&self, prefixes: &[u16]) {
        for prefix in prefixes {
            self.durable[usize::from(prefix / 64)].fetch_or(1 << (prefix % 64), Ordering::AcqRel);
        }
    }

    /// A new empty file in `tmp/`, removed again unless it is renamed away.
    pub(crate) fn temp(&self) -> io::Result<Temp> {
        let path = self.root.join("tmp").join(format!("{:016x}", self.next_temp.fetch_add(1, Ordering::Relaxed)));
        // Owner may read only: nothing ever writes to a chunk again.
        let file = OpenOptions::new().write(true).create_new(true).mode(0o400).open(&path)?;
        Ok(Temp { path, file: Some(file), kept: false })
    }

    /// Reads the file of `hash`, which must have `expected` bytes; its length is compared before anything is read.
    pub(crate) fn read_exact(&self, file: &File, expected: u64, hash: &Hash, why: Purpose) -> io::Result<Contents> {
        let found = file.metadata()?.len();
        if found != expected {
            return Ok(Contents::Length(found));
        }
        self.read_limited(file, expected, hash, why)
    }

    /// Reads the file of `hash`, of at most `limit` bytes.
    pub(crate) fn read_limited(&self, file: &File, limit: u64, hash: &Hash, why: Purpose) -> io::Result<Contents> {
        let found = file.metadata()?.len();
        if found == 0 || found > limit {
            return Ok(Contents::Length(found));
        }
        let bytes = self.direct.read(file, usize::try_from(found).map_err(io::Error::other)?, hash, why)?;
        match bytes.len() as u64 == found {
            true => Ok(Contents::Bytes(bytes)),
            false => Ok(Contents::Length(bytes.len() as u64)),
        }
    }

    /// Makes the fixed directories, durably.
    pub(crate) fn make_skeleton(&self) -> io::Result<()> {
        for name in ["blobs", "trash", "quarantine", "tmp"] {
            make_dir(&self.root.join(name))?;
        }
        for parent in ["blobs", "trash"] {
            let parent = self.root.join(parent);
            for byte in 0..=u8::MAX {
                make_dir(&parent.join(format!("{byte:02x}")))?;
            }
            sync_dir(&parent)?;
        }
        sync_dir(&self.root)
    }

    /// Removes what a killed process left in `tmp/`; returns how many files.
    pub(crate) fn clear_temp(&self) -> io::Result<usize> {
        let mut removed = 0;
        for entry in fs::read_dir(self.root.join("tmp"))? {
            fs::remove_file(entry?.path())?;
            removed += 1;
        }
        Ok(removed)
    }
}

impl DirSet {
    pub(crate) fn into_parts(self) -> (Vec<PathBuf>, Vec<u16>) {
        (self.paths.into_iter().collect(), self.prefixes)
    }
}

/// A file in `tmp/`.
pub(crate) struct Temp {
    pub(crate) path: PathBuf,
    pub(crate) file: Option<File>,
    kept: bool,
}

impl Temp {
    /// Renames the file to `target` and closes it.
    pub(crate) fn keep_as(mut self, target: &Path) -> io::Result<()> {
        fs::rename(&self.path, target)?;
        self.kept = true;
        Ok(())
    }
}

impl Drop for Temp {
    fn drop(&mut self) {
        if !self.kept {
            // What cannot be removed now (a read-only disk) is removed at the next start.
            let _ = fs::remove_file(&self.path);
        }
    }
}

/// `mkdir` with mode 0700 that takes an existing directory.
pub(crate) fn make_dir(path: &Path) -> io::Result<()> {
    match DirBuilder::new().mode(0o700).create(path) {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(()),
        other => other,
    }
}

/// fsync of a directory: its entries are durable afterwards.
pub(crate) fn sync_dir(path: &Path) -> io::Result<()> {
    File::open(path)?.sync_all()
}

/// A small file with `contents`, complete or absent after a power cut.
pub(crate) fn write_durably(dir: &Path, name: &str, contents: &str) -> io::Result<()> {
    use std::io::Write as _;
    let temp = dir.join(format!("{name}.new"));
    let mut file = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&temp)?;
    file.write_all(contents.as_bytes())?;
    file.sync_all()?;
    fs::rename(&temp, dir.join(name))?;
    sync_dir(dir)
}

/// What a look at a file brought.
pub(crate) enum Contents {
    Bytes(Bytes),
    /// Not read, because the length is already wrong.
    Length(u64),
}
