//! A directory that is there already is copied into a new, encrypted one beside it; the two change places in one step;
//! then the old one goes. Cut off before that step nothing has changed, after it only the old one is left to remove.
//!
//! What was in the clear stays on the disk until its blocks are written over: no file system promises more.

use std::fs::{self, File, Metadata};
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::fs::{CWD, RenameFlags};

use super::AtRestError;
use super::fscrypt::{self, KeyId};

/// Added to the directory's name for the copy, and then for the old one.
const SUFFIX: &str = "sealing";
/// Room beside the copy itself for what the file system needs, a share of it.
const SLACK: u64 = 20;
/// How often a long copy is heard of.
const TELL_EVERY: Duration = Duration::from_secs(10);

fn beside(path: &Path) -> PathBuf {
    path.with_added_extension(SUFFIX)
}

/// Removes what an earlier conversion left.
///
/// # Errors
/// When it cannot be removed.
pub(super) fn sweep(path: &Path) -> Result<(), AtRestError> {
    let other = beside(path);
    match fs::remove_dir_all(&other) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(AtRestError::io("remove", &other)(error)),
        _ => Ok(()),
    }
}

/// Encrypts `path` with everything in it.
///
/// # Errors
/// [`AtRestError`]; then `path` is as it was.
pub(super) fn run(path: &Path, key: KeyId) -> Result<(), AtRestError> {
    sweep(path)?;
    if fs::read_dir(path).map_err(AtRestError::io("list", path))?.next().is_none() {
        return fscrypt::set_policy(path, key).map_err(AtRestError::io("encrypt", path));
    }
    let bytes = size(path)?;
    require_room(path, bytes)?;
    tracing::info!(path = %path.display(), bytes, "is copied into an encrypted directory");
    let other = beside(path);
    let outcome = copy_all(path, &other, key, bytes).and_then(|()| {
        let parent = path.parent().unwrap_or(Path::new("/"));
        rustix::fs::renameat_with(CWD, &other, CWD, path, RenameFlags::EXCHANGE)
            .map_err(|error| AtRestError::io("swap", path)(error.into()))?;
        File::open(parent).and_then(|parent| parent.sync_all()).map_err(AtRestError::io("sync", parent))
    });
    // The copy, when it failed; the old one, when it did not.
    let swept = sweep(path);
    outcome.and(swept)?;
    tracing::info!(path = %path.display(), "is encrypted");
    Ok(())
}

/// Bytes on disk of everything in `path`.
fn size(path: &Path) -> Result<u64, AtRestError> {
    let mut sum = 0;
    for entry in fs::read_dir(path).map_err(AtRestError::io("list", path))? {
        let entry = entry.map_err(AtRestError::io("list", path))?;
        let meta = entry.metadata().map_err(AtRestError::io("look at", &entry.path()))?;
        sum += meta.blocks() * 512 + if meta.is_dir() { size(&entry.path())? } else { 0 };
    }
    Ok(sum)
}

fn require_room(path: &Path, bytes: u64) -> Result<(), AtRestError> {
    let disk = rustix::fs::statvfs(path).map_err(|error| AtRestError::io("look at", path)(error.into()))?;
    let (free, needed) = (disk.f_bavail.saturating_mul(disk.f_frsize), bytes + bytes / SLACK);
    if free >= needed {
        return Ok(());
    }
    Err(AtRestError::NoRoom { path: path.to_owned(), needed_mib: needed >> 20, free_mib: free >> 20 })
}

fn copy_all(from: &Path, to: &Path, key: KeyId, bytes: u64) -> Result<(), AtRestError> {
    let meta = fs::metadata(from).map_err(AtRestError::io("look at", from))?;
    fs::DirBuilder::new().mode(0o700).create(to).map_err(AtRestError::io("make", to))?;
    fscrypt::set_policy(to, key).map_err(AtRestError::io("encrypt", to))?;
    let mut copy = Copy { done: 0, bytes, told: Instant::now() };
    copy.directory(from, to)?;
    like(to, &meta)?;
    // One call for everything that was written.
    let file = File::open(to).map_err(AtRestError::io("open", to))?;
    rustix::fs::syncfs(&file).map_err(|error| AtRestError::io("sync", to)(error.into()))
}

struct Copy {
    done: u64,
    bytes: u64,
    told: Instant,
}

impl Copy {
    fn directory(&mut self, from: &Path, to: &Path) -> Result<(), AtRestError> {
        for entry in fs::read_dir(from).map_err(AtRestError::io("list", from))? {
            let path = entry.map_err(AtRestError::io("list", from))?.path();
            let Some(name) = path.file_name() else { continue };
            let target = to.join(name);
            let meta = fs::symlink_metadata(&path).map_err(AtRestError::io("look at", &path))?;
            if meta.is_dir() {
                fs::DirBuilder::new().mode(0o700).create(&target).map_err(AtRestError::io("make", &target))?;
                self.directory(&path, &target)?;
                like(&target, &meta)?;
            } else if meta.is_file() {
                self.done += fs::copy(&path, &target).map_err(AtRestError::io("copy", &path))?;
                like(&target, &meta)?;
            } else if meta.is_symlink() {
                let leads = fs::read_link(&path).map_err(AtRestError::io("read", &path))?;
                std::os::unix::fs::symlink(leads, &target).map_err(AtRestError::io("link", &target))?;
                std::os::unix::fs::lchown(&target, Some(meta.uid()), Some(meta.gid()))
                    .map_err(AtRestError::io("give away", &target))?;
            }
            // Sockets and the like are made anew by whoever uses them.
        }
        if self.told.elapsed() >= TELL_EVERY {
            self.told = Instant::now();
            tracing::info!(done = self.done, of = self.bytes, "encrypting");
        }
        Ok(())
    }
}

/// Gives `path` the owner, the mode and the times of what it was copied from.
fn like(path: &Path, meta: &Metadata) -> Result<(), AtRestError> {
    let failed = |act| AtRestError::io(act, path);
    std::os::unix::fs::lchown(path, Some(meta.uid()), Some(meta.gid())).map_err(failed("give away"))?;
    fs::set_permissions(path, fs::Permissions::from_mode(meta.mode() & 0o7777)).map_err(failed("chmod"))?;
    let times = fs::FileTimes::new()
        .set_accessed(meta.accessed().map_err(failed("look at"))?)
        .set_modified(meta.modified().map_err(failed("look at"))?);
    File::open(path).and_then(|file| file.set_times(times)).map_err(failed("date"))
}
