//! The store: its directories, its limits, its read-only latch.
//!
//! ```text
//! FORMAT                  "bib-blobs/1\n"; locked (flock) while a process has the store open
//! blobs/ab/cd/<sha256>    visible chunks: whole, checked, durable once acknowledged
//! trash/ab/<sha256>       collected chunks; mtime = when; a put takes them back
//! quarantine/<sha256>.<n> damaged chunks, kept for a person to look at
//! tmp/                    being written; emptied at start
//! ```

use std::collections::HashMap;
use std::fmt;
use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

use bib_core::Hash;
use rustix::io::Errno;
use tokio::sync::Semaphore;
use tokio::task::JoinSet;

use crate::disk::{self, DirSet, Disk};
use crate::error::{OpenError, StoreError};
use crate::failpoints::Failpoints;

const FORMAT: &str = "bib-blobs/1\n";
/// More stripes than threads that ever hold one; which chunks share a stripe does not matter.
const STRIPES: usize = 256;

/// Whether chunks that arrive bare are compressed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Compression {
    /// Stored as they come.
    Off,
    /// zstd level 1 where samples say that it helps.
    #[default]
    Auto,
}

/// How a store behaves. `Settings::default()` fits a node of one laboratory.
#[derive(Debug, Clone)]
pub struct Settings {
    /// Whether to compress.
    pub compression: Compression,
    /// Raw bytes being written or read at once, over all calls; at least 8 MiB. Callers' own buffers are not counted.
    pub in_flight_bytes: usize,
    /// Files open for writing at once, over all calls.
    pub open_files: usize,
    /// Hashing, compressing and reading at once. The default is twice the cores.
    pub workers: usize,
    /// fsyncs at once: they wait more than they work, and the file system joins those that wait together.
    pub syncs: usize,
    /// Where tests end the process.
    pub failpoints: Failpoints,
}

impl Default for Settings {
    fn default() -> Self {
        let cores = std::thread::available_parallelism().map_or(2, std::num::NonZero::get);
        Self {
            compression: Compression::Auto,
            in_flight_bytes: 32 << 20,
            open_files: 96,
            workers: cores * 2,
            syncs: 16,
            failpoints: Failpoints::default(),
        }
    }
}

/// How full the file system is, and whether the store takes writes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Usage {
    /// Bytes that this process could still write.
    pub free_bytes: u64,
    /// Size of the file system, in bytes.
    pub total_bytes: u64,
    /// Inodes left; a full table of inodes is a full disk too. `None` where the file system does not count them.
    pub free_inodes: Option<u64>,
    /// Why the store takes no more writes, if so.
    pub read_only: Option<String>,
}

/// A handle on the store; clones share it. All methods that touch the disk do so on blocking threads.
#[derive(Clone)]
pub struct BlobStore {
    pub(crate) inner: Arc<Inner>,
}

pub(crate) struct Inner {
    pub(crate) disk: Disk,
    pub(crate) compression: Compression,
    pub(crate) failpoints: Failpoints,
    pub(crate) batch: BatchLimits,
    /// In KiB of raw bytes.
    pub(crate) memory: Semaphore,
    pub(crate) files: Semaphore,
    pub(crate) workers: Arc<Semaphore>,
    pub(crate) syncs: Arc<Semaphore>,
    read_only: OnceLock<String>,
    stripes: Vec<Mutex<()>>,
    /// Holds the flock.
    _format: File,
}

/// The most that one round of write, fsync, rename, fsync takes: half of the limits, so that two rounds overlap.
#[derive(Clone, Copy)]
pub(crate) struct BatchLimits {
    pub(crate) files: usize,
    pub(crate) bytes: u64,
}

impl fmt::Debug for BlobStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("BlobStore").field("root", &self.root()).finish_non_exhaustive()
    }
}

impl BlobStore {
    /// Opens or makes the store in `root`, whose parent must exist, and removes what a killed process left in `tmp/`.
    /// Blocks: reads no chunk, and takes milliseconds whatever the store holds.
    ///
    /// # Errors
    /// A FORMAT that is unknown or missing beside existing chunks, a store that is open elsewhere, a failing disk.
    pub fn open(root: &Path, settings: Settings) -> Result<Self, OpenError> {
        let io = |act, path: &Path| {
            let path = path.to_owned();
            move |source| OpenError::Io { act, path, source }
        };
        disk::make_dir(root).map_err(io("create", root))?;
        if let Some(parent) = root.parent().filter(|parent| !parent.as_os_str().is_empty()) {
            disk::sync_dir(parent).map_err(io("fsync", parent))?;
        }
        let format = lock_format(root)?;
        let disk = Disk::new(root);
        disk.make_skeleton().map_err(io("make the directories of", root))?;
        let removed = disk.clear_temp().map_err(io("clear the temporary files of", root))?;
        if removed > 0 {
            tracing::info!(files = removed, "unfinished chunk files of an earlier run were removed");
        }
        let in_flight_kib = settings.in_flight_bytes.max(8 << 20) / 1024;
        let open_files = settings.open_files.max(2);
        let inner = Inner {
            disk,
            compression: settings.compression,
            failpoints: settings.failpoints,
            batch: BatchLimits { files: open_files / 2, bytes: in_flight_kib as u64 * 1024 / 2 },
            memory: Semaphore::new(in_flight_kib),
            files: Semaphore::new(open_files),
            workers: Arc::new(Semaphore::new(settings.workers.max(1))),
            syncs: Arc::new(Semaphore::new(settings.syncs.max(1))),
            read_only: OnceLock::new(),
            stripes: (0..STRIPES).map(|_| Mutex::new(())).collect(),
            _format: format,
        };
        Ok(Self { inner: Arc::new(inner) })
    }

    /// The directory that was opened.
    #[must_use]
    pub fn root(&self) -> &Path {
        self.inner.disk.root()
    }

    /// Why the store takes no writes, if so.
    #[must_use]
    pub fn read_only(&self) -> Option<&str> {
        self.inner.read_only.get().map(String::as_str)
    }

    /// How full the file system is. One system call; may block on a dead network disk.
    ///
    /// # Errors
    /// [`StoreError::Io`] if the file system does not answer.
    pub fn usage(&self) -> Result<Usage, StoreError> {
        let vfs = rustix::fs::statvfs(self.root()).map_err(|errno| StoreError::Io {
            act: "measure the file system of",
            path: self.root().to_owned(),
            source: errno.into(),
        })?;
        Ok(Usage {
            free_bytes: vfs.f_bavail.saturating_mul(vfs.f_frsize),
            total_bytes: vfs.f_blocks.saturating_mul(vfs.f_frsize),
            free_inodes: (vfs.f_files > 0).then_some(vfs.f_favail),
            read_only: self.read_only().map(str::to_owned),
        })
    }
}

impl Inner {
    pub(crate) fn check_writable(&self) -> Result<(), StoreError> {
        match self.read_only.get() {
            Some(reason) => Err(StoreError::ReadOnly { reason: reason.clone() }),
            None => Ok(()),
        }
    }

    /// No writes any more, for `reason`. The first reason stays.
    pub(crate) fn latch(&self, reason: String) {
        if self.read_only.set(reason).is_ok() {
            tracing::error!(reason = self.read_only.get(), "the blob store is read-only from now on");
        }
    }

    /// The error for a failed write-like call; what means a broken or read-only disk latches.
    pub(crate) fn failed(&self, act: &'static str, path: &Path, source: io::Error) -> StoreError {
        match Errno::from_io_error(&source) {
            Some(Errno::NOSPC | Errno::DQUOT) => return StoreError::NoSpace { path: path.to_owned() },
            Some(Errno::IO | Errno::ROFS) => self.latch(format!("{act} `{}`: {source}", path.display())),
            _ => {}
        }
        StoreError::Io { act, path: path.to_owned(), source }
    }

    /// The error for a failed fsync: the pages may be marked clean although they never reached the disk, so the same
    /// file is never tried again. A full disk found this late concerns this file alone; anything else latches.
    pub(crate) fn sync_failed(&self, path: &Path, source: io::Error) -> StoreError {
        let error = self.failed("fsync", path, source);
        if !matches!(error, StoreError::NoSpace { .. }) {
            self.latch(error_chain(&error));
        }
        error
    }

    /// Serialises what changes the names of one chunk. Held on blocking threads, never across an await.
    pub(crate) fn lock(&self, hash: &Hash) -> MutexGuard<'_, ()> {
        let stripe = &self.stripes[usize::from(hash.as_bytes()[31]) % STRIPES];
        // The lock guards names on disk, not memory: a panic elsewhere leaves nothing half done in it.
        stripe.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// fsyncs every directory of `dirs`, several at once.
    pub(crate) async fn sync_dirs(self: &Arc<Self>, dirs: DirSet) -> Result<(), StoreError> {
        let (paths, prefixes) = dirs.into_parts();
        let inner = Arc::clone(self);
        fan_out(&self.syncs, paths, move |path: PathBuf| {
            disk::sync_dir(&path).map_err(|source| {
                let error = inner.sync_failed(&path, source);
                inner.latch(error_chain(&error));
                error
            })
        })
        .await?;
        self.disk.note_durable(&prefixes);
        Ok(())
    }
}

/// An error with its causes, on one line.
fn error_chain(error: &StoreError) -> String {
    match std::error::Error::source(error) {
        Some(source) => format!("{error}: {source}"),
        None => error.to_string(),
    }
}

/// Runs `job` on blocking threads for each item, at most as many at once as `pool` allows, and keeps the order.
/// Waits for all of them before it returns, so that an error leaves no temporary file behind.
pub(crate) async fn fan_out<T, R>(
    pool: &Arc<Semaphore>,
    items: Vec<T>,
    job: impl Fn(T) -> Result<R, StoreError> + Clone + Send + 'static,
) -> Result<Vec<R>, StoreError>
where
    T: Send + 'static,
    R: Send + 'static,
{
    let mut jobs = JoinSet::new();
    let count = items.len();
    for (index, item) in items.into_iter().enumerate() {
        let permit = Arc::clone(pool).acquire_owned().await.map_err(|_| StoreError::Stopping)?;
        let job = job.clone();
        jobs.spawn_blocking(move || {
            let result = job(item);
            drop(permit);
            (index, result)
        });
    }
    let mut done = HashMap::with_capacity(count);
    let mut failed = None;
    while let Some(joined) = jobs.join_next().await {
        match joined {
            Ok((index, Ok(result))) => {
                done.insert(index, result);
            }
            Ok((_, Err(error))) => failed = failed.or(Some(error)),
            Err(error) if error.is_panic() => std::panic::resume_unwind(error.into_panic()),
            Err(_) => failed = failed.or(Some(StoreError::Stopping)),
        }
    }
    match failed {
        Some(error) => Err(error),
        None => Ok((0..count).filter_map(|index| done.remove(&index)).collect()),
    }
}

fn lock_format(root: &Path) -> Result<File, OpenError> {
    let path = root.join("FORMAT");
    let io = |act| {
        let path = path.clone();
        move |source| OpenError::Io { act, path, source }
    };
    if !path.try_exists().map_err(io("look for"))? {
        // FORMAT is the first thing made, so a store without it is not one of ours.
        if root.join("blobs").try_exists().map_err(io("look beside"))? {
            return Err(OpenError::FormatMissing { path: root.to_owned() });
        }
        disk::write_durably(root, "FORMAT", FORMAT).map_err(io("write"))?;
    }
    let file = File::open(&path).map_err(io("open"))?;
    match file.try_lock() {
        Ok(()) => {}
        Err(fs::TryLockError::WouldBlock) => return Err(OpenError::Locked { path: root.to_owned() }),
        Err(fs::TryLockError::Error(source)) => return Err(io("lock")(source)),
    }
    let found = fs::read(&path).map_err(io("read"))?;
    if found != FORMAT.as_bytes() {
        let found = String::from_utf8_lossy(&found).trim_end().chars().take(80).collect();
        return Err(OpenError::Format { path, found, expected: FORMAT.trim_ascii_end() });
    }
    Ok(file)
}
