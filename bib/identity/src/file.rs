//! Key files on disk: read with checks, written so that a crash leaves the old file or the new one.
//!
//! A private file is a regular file that only its owner may read (0600). On systems without Unix permissions the
//! permission check does not exist and says nothing.

use std::fs::{self, File};
use std::io::{self, Read as _, Write as _};
use std::path::{Path, PathBuf};

use zeroize::Zeroizing;

/// Why a key, certificate or credential file cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum FileError {
    /// There is no such file.
    #[error("`{path}` does not exist")]
    Missing {
        /// The file.
        path: PathBuf,
    },
    /// The file has no bytes: a copy or a write was cut off.
    #[error("`{path}` is empty")]
    Empty {
        /// The file.
        path: PathBuf,
    },
    /// Others than the owner may read or write a private file or directory.
    #[error("`{path}` is open to others (mode {mode:04o})")]
    TooOpen {
        /// The file or directory.
        path: PathBuf,
        /// Its permission bits.
        mode: u32,
    },
    /// A directory, device or socket stands where a file should.
    #[error("`{path}` is not a regular file")]
    NotAFile {
        /// What was found.
        path: PathBuf,
    },
    /// The file is larger than anything that belongs here.
    #[error("`{path}` is larger than {limit_bytes} bytes")]
    TooLarge {
        /// The file.
        path: PathBuf,
        /// The largest size that is read, in bytes.
        limit_bytes: u64,
    },
    /// A file that must be new is already there.
    #[error("`{path}` exists already")]
    Exists {
        /// The file.
        path: PathBuf,
    },
    /// The operating system refused.
    #[error("{action} `{path}`")]
    Io {
        /// What was tried: "open", "write", "rename".
        action: &'static str,
        /// The file or directory.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: io::Error,
    },
}

impl FileError {
    /// What a person can do about it.
    #[must_use]
    pub fn hint(&self) -> Option<&'static str> {
        match self {
            Self::Missing { .. } => Some("check the path, or restore the file from a backup"),
            Self::Empty { .. } => {
                Some("restore the file from a backup; BIB never makes a new key in place of an old one")
            }
            Self::TooOpen { .. } => Some("chmod 600 the file (700 a directory), and consider who may have read it"),
            Self::NotAFile { .. } | Self::TooLarge { .. } => Some("check that the path names the right file"),
            Self::Exists { .. } => Some("BIB never overwrites a key: move the old file away first"),
            Self::Io { .. } => None,
        }
    }

    fn io(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Self {
        let path = path.to_owned();
        move |source| match source.kind() {
            io::ErrorKind::NotFound if action == "open" => Self::Missing { path },
            io::ErrorKind::AlreadyExists => Self::Exists { path },
            _ => Self::Io { action, path, source },
        }
    }
}

/// Reads a private file of at most `limit_bytes`.
///
/// # Errors
/// When it is missing, empty, open to others, not a regular file, too large, or cannot be read.
pub fn read_private(path: &Path, limit_bytes: u64) -> Result<Zeroizing<Vec<u8>>, FileError> {
    let file = open_regular(path)?;
    check_private(&file, path)?;
    read_bounded(file, path, limit_bytes)
}

/// Reads a public file (a certificate) of at most `limit_bytes`.
///
/// # Errors
/// As [`read_private`], without the permission check.
pub fn read_public(path: &Path, limit_bytes: u64) -> Result<Vec<u8>, FileError> {
    let bytes = read_bounded(open_regular(path)?, path, limit_bytes)?;
    Ok(bytes.to_vec())
}

fn open_regular(path: &Path) -> Result<File, FileError> {
    // Looked at before it is opened: opening a fifo would wait for a writer.
    let metadata = fs::metadata(path).map_err(FileError::io("open", path))?;
    if !metadata.is_file() {
        return Err(FileError::NotAFile { path: path.to_owned() });
    }
    File::open(path).map_err(FileError::io("open", path))
}

fn read_bounded(file: File, path: &Path, limit_bytes: u64) -> Result<Zeroizing<Vec<u8>>, FileError> {
    // One allocation of the stated size: a vector that grows leaves copies of a key behind.
    let expected = file.metadata().map_err(FileError::io("inspect", path))?.len();
    if expected > limit_bytes {
        return Err(FileError::TooLarge { path: path.to_owned(), limit_bytes });
    }
    let mut bytes = Zeroizing::new(Vec::with_capacity(usize::try_from(expected).unwrap_or(0) + 1));
    file.take(limit_bytes + 1).read_to_end(&mut bytes).map_err(FileError::io("read", path))?;
    if bytes.is_empty() {
        return Err(FileError::Empty { path: path.to_owned() });
    }
    if bytes.len() as u64 > limit_bytes {
        return Err(FileError::TooLarge { path: path.to_owned(), limit_bytes });
    }
    Ok(bytes)
}

#[cfg(unix)]
fn check_private(file: &File, path: &Path) -> Result<(), FileError> {
    use std::os::unix::fs::PermissionsExt as _;
    let mode = file.metadata().map_err(FileError::io("inspect", path))?.permissions().mode() & 0o7777;
    if mode & 0o077 != 0 {
        return Err(FileError::TooOpen { path: path.to_owned(), mode });
    }
    Ok(())
}

#[cfg(not(unix))]
fn check_private(_: &File, _: &Path) -> Result<(), FileError> {
    Ok(())
}

/// Writes a private file (0600) that must not exist yet: temporary file, fsync, rename, fsync of the directory.
///
/// # Errors
/// [`FileError::Exists`] when there is one; [`FileError::Io`] when the system refuses.
pub fn create_private(path: &Path, bytes: &[u8]) -> Result<(), FileError> {
    stage(path, bytes)?.persist_noclobber(path).map_err(|e| FileError::io("rename to", path)(e.error))?;
    sync_parent(path)
}

/// Writes or replaces a private file (0600) atomically and durably.
///
/// # Errors
/// [`FileError::Io`] when the system refuses.
pub fn replace_private(path: &Path, bytes: &[u8]) -> Result<(), FileError> {
    stage(path, bytes)?.persist(path).map_err(|e| FileError::io("rename to", path)(e.error))?;
    sync_parent(path)
}

/// Writes or replaces a public file (0644) atomically and durably.
///
/// # Errors
/// [`FileError::Io`] when the system refuses.
pub fn replace_public(path: &Path, bytes: &[u8]) -> Result<(), FileError> {
    let staged = stage(path, bytes)?;
    #[cfg(unix)]
    {
        use std::os::unix::fs::PermissionsExt as _;
        staged
            .as_file()
            .set_permissions(fs::Permissions::from_mode(0o644))
            .map_err(FileError::io("set permissions of", path))?;
    }
    staged.persist(path).map_err(|e| FileError::io("rename to", path)(e.error))?;
    sync_parent(path)
}

/// A temporary file beside `path` (0600 on Unix, from its first moment), written and fsynced.
fn stage(path: &Path, bytes: &[u8]) -> Result<tempfile::NamedTempFile, FileError> {
    let directory = parent(path);
    let mut staged = tempfile::Builder::new()
        .prefix(".bib-")
        .tempfile_in(directory)
        .map_err(FileError::io("create a file in", directory))?;
    staged.write_all(bytes).map_err(FileError::io("write", path))?;
    staged.as_file().sync_all().map_err(FileError::io("sync", path))?;
    Ok(staged)
}

fn parent(path: &Path) -> &Path {
    path.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or_else(|| Path::new("."))
}

fn sync_parent(path: &Path) -> Result<(), FileError> {
    sync_directory(parent(path))
}

#[cfg(unix)]
fn sync_directory(directory: &Path) -> Result<(), FileError> {
    File::open(directory).and_then(|d| d.sync_all()).map_err(FileError::io("sync", directory))
}

#[cfg(not(unix))]
fn sync_directory(_: &Path) -> Result<(), FileError> {
    // Other systems cannot open a directory as a file; their rename is journalled.
    Ok(())
}

/// Removes a file durably. A file that is not there counts as removed.
///
/// # Errors
/// [`FileError::Io`] when the system refuses.
pub fn remove(path: &Path) -> Result<bool, FileError> {
    match fs::remove_file(path) {
        Ok(()) => sync_parent(path).map(|()| true),
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(source) => Err(FileError::Io { action: "remove", path: path.to_owned(), source }),
    }
}

/// Makes `path` a directory that only its owner may enter (0700), with parents, or checks that it is one.
///
/// # Errors
/// [`FileError::TooOpen`] when it exists and others may enter; [`FileError::NotAFile`] when something else is there.
pub fn ensure_private_dir(path: &Path) -> Result<(), FileError> {
    if path.exists() {
        return check_private_dir(path);
    }
    let mut builder = fs::DirBuilder::new();
    builder.recursive(true);
    #[cfg(unix)]
    {
        use std::os::unix::fs::DirBuilderExt as _;
        builder.mode(0o700);
    }
    builder.create(path).map_err(FileError::io("create directory", path))?;
    sync_parent(path)
}

fn check_private_dir(path: &Path) -> Result<(), FileError> {
    let metadata = fs::metadata(path).map_err(FileError::io("inspect", path))?;
    if !metadata.is_dir() {
        return Err(FileError::NotAFile { path: path.to_owned() });
    }
    #[cfg(unix)]
    {
        use std::os::unix::fs::PermissionsExt as _;
        let mode = metadata.permissions().mode() & 0o7777;
        if mode & 0o077 != 0 {
            return Err(FileError::TooOpen { path: path.to_owned(), mode });
        }
    }
    Ok(())
}
