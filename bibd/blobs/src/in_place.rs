//! Chunks that lie in a file of a published folder.

use std::fs::{File, Metadata, OpenOptions};
use std::io;
use std::os::unix::fs::{FileExt as _, MetadataExt as _, OpenOptionsExt as _};
use std::path::Path;

use bib_core::Hash;
use bytes::Bytes;
use serde::{Deserialize, Serialize};

use crate::error::{Damage, ReadError};

/// What identifies a file's state without reading it. Equal guards do not prove equal bytes (a clock can be set back),
/// which is why the bytes are hashed at each read all the same.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct FileGuard {
    /// Device number.
    pub dev: u64,
    /// Inode number.
    pub ino: u64,
    /// Length in bytes.
    pub size: u64,
    /// Last change of the contents, nanoseconds since 1970.
    pub mtime_ns: i64,
    /// Last change of contents, name or rights, nanoseconds since 1970; not settable by a program.
    pub ctime_ns: i64,
}

impl FileGuard {
    /// The guard of a file as it is now.
    #[must_use]
    pub fn of(metadata: &Metadata) -> Self {
        let ns = |seconds: i64, nanos: i64| seconds.saturating_mul(1_000_000_000).saturating_add(nanos);
        Self {
            dev: metadata.dev(),
            ino: metadata.ino(),
            size: metadata.size(),
            mtime_ns: ns(metadata.mtime(), metadata.mtime_nsec()),
            ctime_ns: ns(metadata.ctime(), metadata.ctime_nsec()),
        }
    }

    /// The first field that differs, by name.
    #[must_use]
    pub fn difference(&self, now: &Self) -> Option<&'static str> {
        let fields = [
            ("device", self.dev == now.dev),
            ("inode", self.ino == now.ino),
            ("size", self.size == now.size),
            ("mtime", self.mtime_ns == now.mtime_ns),
            ("ctime", self.ctime_ns == now.ctime_ns),
        ];
        fields.into_iter().find(|(_, same)| !same).map(|(name, _)| name)
    }
}

/// Reads and checks `raw_len` bytes at `offset`. Blocks.
pub(crate) fn read(path: &Path, offset: u64, guard: &FileGuard, hash: &Hash, raw_len: u32) -> Result<Bytes, ReadError> {
    let changed = |what| ReadError::Changed { hash: *hash, path: path.to_owned(), what };
    let failed = |act| move |source| ReadError::Io { act, path: path.to_owned(), source };
    // Without blocking: somebody may have put a named pipe in the file's place.
    let flags = rustix::fs::OFlags::NONBLOCK | rustix::fs::OFlags::NOCTTY;
    let file = match OpenOptions::new().read(true).custom_flags(flags.bits().cast_signed()).open(path) {
        Ok(file) => file,
        Err(error) if is_gone(&error) => return Err(changed("removed")),
        Err(error) => return Err(failed("open")(error)),
    };
    let check = |file: &File| -> Result<(), ReadError> {
        let now = FileGuard::of(&file.metadata().map_err(failed("look at"))?);
        guard.difference(&now).map_or(Ok(()), |what| Err(changed(what)))
    };
    check(&file)?;
    let end = offset.checked_add(u64::from(raw_len));
    if end.is_none_or(|end| end > guard.size) {
        let damage = Damage::Length { expected: end.unwrap_or(u64::MAX), found: guard.size };
        return Err(ReadError::Corrupt { hash: *hash, damage, quarantined: false });
    }
    let mut bytes = vec![0; raw_len as usize];
    match file.read_exact_at(&mut bytes, offset) {
        Ok(()) => {}
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Err(changed("size")),
        Err(error) => return Err(failed("read")(error)),
    }
    if Hash::of(&bytes) != *hash {
        // An edit while we read explains it better than a bad disk does.
        check(&file)?;
        return Err(ReadError::Corrupt { hash: *hash, damage: Damage::Contents, quarantined: false });
    }
    Ok(bytes.into())
}

fn is_gone(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory)
}
