//! A store in a directory: temporary files, synced and renamed.

use std::fs::{self, File};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};

use tempfile::NamedTempFile;

use crate::backup::error::BackupError;

/// Where unfinished objects lie.
const TEMPORARY: &str = "tmp";

/// One node's part of a store. Cheap to clone.
#[derive(Debug, Clone)]
pub(super) struct Directory {
    root: PathBuf,
}

/// An object that is being written. Dropped, it was never there.
#[derive(Debug)]
pub(super) struct DirectoryDraft {
    file: NamedTempFile,
    target: PathBuf,
}

impl Directory {
    /// Nothing is made until something is written.
    pub(super) fn new(root: PathBuf) -> Self {
        Self { root }
    }

    /// Where it is.
    pub(super) fn root(&self) -> &Path {
        &self.root
    }

    /// Begins an object.
    pub(super) fn create(&self, key: &str) -> Result<DirectoryDraft, BackupError> {
        let (target, temporary) = (self.root.join(key), self.root.join(TEMPORARY));
        ensure_dir(&temporary)?;
        ensure_dir(target.parent().unwrap_or(&self.root))?;
        let family = key.split('/').next().unwrap_or_default();
        let file = tempfile::Builder::new()
            .prefix(&format!("{family}-"))
            .permissions(fs::Permissions::from_mode(0o600))
            .tempfile_in(&temporary)
            .map_err(BackupError::io("create a file in", &temporary))?;
        Ok(DirectoryDraft { file, target })
    }

    /// Writes a small object.
    pub(super) fn put(&self, key: &str, bytes: &[u8]) -> Result<(), BackupError> {
        let mut draft = self.create(key)?;
        draft.write_all(bytes).map_err(BackupError::io("write", &draft.target))?;
        draft.commit()
    }

    /// Takes a name that nobody had; whether it was free.
    pub(super) fn take(&self, key: &str) -> Result<bool, BackupError> {
        let path = self.root.join(key);
        let parent = path.parent().unwrap_or(&self.root);
        ensure_dir(parent)?;
        match File::create_new(&path) {
            Ok(file) => {
                file.sync_all().and_then(|()| sync_dir(parent)).map(|()| true).map_err(BackupError::io("write", &path))
            }
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(false),
            Err(error) => Err(BackupError::io("create", &path)(error)),
        }
    }

    /// Opens an object; `None` when there is none.
    pub(super) fn open(&self, key: &str) -> Result<Option<File>, BackupError> {
        let path = self.root.join(key);
        match File::open(&path) {
            Ok(file) => Ok(Some(file)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(BackupError::io("open", &path)(error)),
        }
    }

    /// The names right under `prefix` (`base/`), in order.
    pub(super) fn list(&self, prefix: &str) -> Result<Vec<String>, BackupError> {
        let path = self.root.join(prefix);
        let entries = match fs::read_dir(&path) {
            Ok(entries) => entries,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            Err(error) => return Err(BackupError::io("list", &path)(error)),
        };
        let mut names = Vec::new();
        for entry in entries {
            let name = entry.map_err(BackupError::io("list", &path))?.file_name();
            // Names of ours are plain; others are not ours.
            names.extend(name.into_string().ok());
        }
        names.sort();
        Ok(names)
    }

    /// Removes an object, and its directory with the last one. One that is gone is fine.
    pub(super) fn delete(&self, key: &str) -> Result<(), BackupError> {
        let path = self.root.join(key);
        match fs::remove_file(&path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                return Err(BackupError::io("remove", &path)(error));
            }
            _ => {}
        }
        let parent = path.parent().unwrap_or(&self.root);
        match fs::remove_dir(parent) {
            // Others are still in it, or it is gone.
            Err(_) => Ok(()),
            Ok(()) => sync_dir(parent.parent().unwrap_or(&self.root)).map_err(BackupError::io("sync", parent)),
        }
    }

    /// Removes what a process that died left of objects of this family (`base`, `wal`). Only for who writes it alone.
    pub(super) fn sweep(&self, family: &str) -> Result<(), BackupError> {
        let prefix = format!("{family}-");
        for name in self.list(TEMPORARY)?.into_iter().filter(|name| name.starts_with(&prefix)) {
            let path = self.root.join(TEMPORARY).join(name);
            fs::remove_file(&path).map_err(BackupError::io("remove", &path))?;
        }
        Ok(())
    }
}

impl DirectoryDraft {
    /// Makes the object exist, durably.
    pub(super) fn commit(self) -> Result<(), BackupError> {
        let Self { file, target } = self;
        file.as_file().sync_all().map_err(BackupError::io("sync", &target))?;
        file.persist(&target).map_err(|error| BackupError::io("rename to", &target)(error.error))?;
        let parent = target.parent().unwrap_or(Path::new("/"));
        sync_dir(parent).map_err(BackupError::io("sync", parent))
    }

    /// Where it will be.
    pub(super) fn target(&self) -> &Path {
        &self.target
    }
}

impl Write for DirectoryDraft {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.file.write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.file.flush()
    }
}

/// Makes a directory and its parents, for their owner alone, durably.
fn ensure_dir(path: &Path) -> Result<(), BackupError> {
    if path.is_dir() {
        return Ok(());
    }
    if let Some(parent) = path.parent() {
        ensure_dir(parent)?;
        match fs::DirBuilder::new().mode(0o700).create(path) {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => {
                return Err(BackupError::io("make", path)(error));
            }
            _ => {}
        }
        return sync_dir(parent).map_err(BackupError::io("sync", parent));
    }
    Ok(())
}

/// Makes the names in a directory durable.
pub(in crate::backup) fn sync_dir(path: &Path) -> io::Result<()> {
    File::open(path)?.sync_all()
}
