//! Collected chunks: to the trash, back from it, and out of it for good.
//!
//! The time of trashing is the file's mtime, written and fsynced before the rename, so that it lasts as long as the
//! name does. When a chunk moves, its new directory is fsynced before the old one: after a power cut it may
//! lie in both, never in neither.

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::SystemTime;

use bib_core::Hash;

use crate::disk::DirSet;
use crate::error::StoreError;
use crate::store::{BlobStore, Inner, fan_out};

/// How many names one round of renames and fsyncs takes.
const ROUND: usize = 64;

/// What [`BlobStore::restore`] found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Restored {
    /// The chunk is back from the trash.
    FromTrash,
    /// It was in the store already.
    AlreadyThere,
    /// It is in neither.
    Missing,
}

impl BlobStore {
    /// Moves a chunk to the trash, durably, and writes down that this happened at `now`. `false` if there is no such chunk.
    /// The caller holds the chunk's row locked, so that nobody is just being told that it is there.
    ///
    /// # Errors
    /// A failing or read-only disk.
    pub async fn trash(&self, hash: &Hash, now: SystemTime) -> Result<bool, StoreError> {
        Ok(self.trash_many(&[*hash], now).await? == 1)
    }

    /// [`BlobStore::trash`] for many chunks, with fewer fsyncs. Returns how many there were.
    ///
    /// # Errors
    /// A failing or read-only disk; some of the chunks may have been moved.
    pub async fn trash_many(&self, hashes: &[Hash], now: SystemTime) -> Result<usize, StoreError> {
        self.inner.check_writable()?;
        let mut moved = 0;
        for round in hashes.chunks(ROUND) {
            let inner = Arc::clone(&self.inner);
            let results =
                fan_out(&self.inner.syncs, round.to_vec(), move |hash| inner.move_to_trash(&hash, now)).await?;
            moved += self.inner.settle(results.into_iter().flatten().collect(), "trash.durable").await?;
        }
        Ok(moved)
    }

    /// Takes a chunk back from the trash, durably.
    ///
    /// # Errors
    /// A failing, full or read-only disk.
    pub async fn restore(&self, hash: &Hash) -> Result<Restored, StoreError> {
        self.inner.check_writable()?;
        let inner = Arc::clone(&self.inner);
        let results = fan_out(&self.inner.syncs, vec![*hash], move |hash| inner.move_back(&hash)).await?;
        let Some((restored, moved)) = results.into_iter().next() else { return Ok(Restored::Missing) };
        self.inner.settle(vec![moved], "restore.durable").await?;
        Ok(restored)
    }

    /// Deletes what was trashed before `before`. Returns how many files and their bytes. Reads names only, one
    /// directory of 256 at a time.
    ///
    /// # Errors
    /// A failing or read-only disk; what was deleted until then stays deleted.
    pub async fn empty_trash(&self, before: SystemTime) -> Result<(u64, u64), StoreError> {
        self.inner.check_writable()?;
        let dirs: Vec<PathBuf> =
            (0..=u8::MAX).map(|byte| self.root().join("trash").join(format!("{byte:02x}"))).collect();
        let inner = Arc::clone(&self.inner);
        let emptied = fan_out(&self.inner.workers, dirs, move |dir| inner.empty_dir(&dir, before)).await?;
        Ok(emptied.iter().fold((0, 0), |(files, bytes), one| (files + one.0, bytes + one.1)))
    }

    /// Deletes every copy of a chunk at once: store, trash and quarantine. For a withdrawal, which may not wait
    /// for the trash. `false` if there was none.
    ///
    /// # Errors
    /// A failing or read-only disk.
    pub async fn remove(&self, hash: &Hash) -> Result<bool, StoreError> {
        self.inner.check_writable()?;
        let inner = Arc::clone(&self.inner);
        let removed = fan_out(&self.inner.syncs, vec![*hash], move |hash| inner.remove_copies(&hash)).await?;
        let mut dirs = DirSet::default();
        dirs.paths.extend(removed.into_iter().flatten());
        let any = !dirs.paths.is_empty();
        self.inner.sync_dirs(dirs).await?;
        Ok(any)
    }
}

/// The directories that a move touched.
struct Moved {
    to: DirSet,
    from: Option<PathBuf>,
}

impl Inner {
    /// Makes moves durable, the new names first.
    async fn settle(self: &Arc<Self>, moves: Vec<Moved>, point: &'static str) -> Result<usize, StoreError> {
        let (mut new, mut old) = (DirSet::default(), DirSet::default());
        let count = moves.len();
        for Moved { to, from } in moves {
            new.merge(to);
            old.paths.extend(from);
        }
        self.sync_dirs(new).await?;
        self.sync_dirs(old).await?;
        self.failpoints.hit(point);
        Ok(count)
    }

    fn move_to_trash(&self, hash: &Hash, now: SystemTime) -> Result<Option<Moved>, StoreError> {
        let (path, target) = (self.disk.chunk(hash), self.disk.trashed(hash));
        let _lock = self.lock(hash);
        let file = match File::open(&path) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(source) => return Err(self.failed("open", &path, source)),
        };
        file.set_modified(now).map_err(|source| self.failed("set the time of", &path, source))?;
        file.sync_all().map_err(|source| self.sync_failed(&path, source))?;
        self.failpoints.hit("trash.marked");
        fs::rename(&path, &target).map_err(|source| self.failed("move to the trash", &path, source))?;
        self.failpoints.hit("trash.renamed");
        let mut to = DirSet::default();
        to.paths.extend(target.parent().map(Path::to_owned));
        Ok(Some(Moved { to, from: path.parent().map(Path::to_owned) }))
    }

    fn move_back(&self, hash: &Hash) -> Result<(Restored, Moved), StoreError> {
        let (path, trashed) = (self.disk.chunk(hash), self.disk.trashed(hash));
        let mut to = DirSet::default();
        self.disk.ensure_fan(hash, &mut to).map_err(|source| self.failed("make the directory of", &path, source))?;
        let _lock = self.lock(hash);
        if path.try_exists().map_err(|source| self.failed("look for", &path, source))? {
            return Ok((Restored::AlreadyThere, Moved { to, from: None }));
        }
        match fs::rename(&trashed, &path) {
            Ok(()) => {}
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                return Ok((Restored::Missing, Moved { to: DirSet::default(), from: None }));
            }
            Err(source) => return Err(self.failed("take back", &trashed, source)),
        }
        self.failpoints.hit("restore.renamed");
        // As in a put: a copy that comes back in the trash after a power cut does no harm.
        Ok((Restored::FromTrash, Moved { to, from: None }))
    }

    fn empty_dir(&self, dir: &Path, before: SystemTime) -> Result<(u64, u64), StoreError> {
        let (mut files, mut bytes) = (0, 0);
        for entry in fs::read_dir(dir).map_err(|source| self.failed("list", dir, source))? {
            let path = entry.map_err(|source| self.failed("list", dir, source))?.path();
            // A name that is no hash is not ours; scrub reports it.
            let Some(hash) = path.file_name().and_then(|name| name.to_str()?.parse::<Hash>().ok()) else { continue };
            let _lock = self.lock(&hash);
            let Ok(metadata) = fs::metadata(&path) else { continue }; // a put took it back
            let trashed = metadata.modified().map_err(|source| self.failed("look at", &path, source))?;
            if trashed < before {
                fs::remove_file(&path).map_err(|source| self.failed("remove", &path, source))?;
                files += 1;
                bytes += metadata.len();
            }
        }
        Ok((files, bytes))
    }

    /// Unlinks all copies; the directories that lost a name.
    fn remove_copies(&self, hash: &Hash) -> Result<Vec<PathBuf>, StoreError> {
        let _lock = self.lock(hash);
        let mut paths = vec![self.disk.chunk(hash), self.disk.trashed(hash)];
        let quarantined = self.disk.quarantine_copies(hash);
        paths.extend(quarantined.map_err(|source| self.failed("list the quarantine of", self.disk.root(), source))?);
        let mut dirs = Vec::new();
        for path in paths {
            match fs::remove_file(&path) {
                Ok(()) => dirs.extend(path.parent().map(Path::to_owned)),
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(source) => return Err(self.failed("remove", &path, source)),
            }
        }
        self.failpoints.hit("remove.unlinked");
        Ok(dirs)
    }
}
