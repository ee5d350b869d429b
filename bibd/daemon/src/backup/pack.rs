//! Packing and unpacking: tar, zstd, age, and the hash of what lies in the store.

use std::fs::{self, File};
use std::io::{self, BufRead as _, BufReader, BufWriter, Read, Write};
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::{Component, Path};
use std::sync::atomic::{AtomicU64, Ordering};

use bib_core::hash::Hasher;
use bib_identity::Recipient;
use bib_identity::sealed::SealError;
use bib_identity::sealed_stream::{Opener, SealingWriter};

use super::document::Object;
use super::error::BackupError;
use super::store::{Draft, Store};

/// zstd's fastest: the database is the bottleneck, not the store.
const LEVEL: i32 = 1;
const BUFFER_BYTES: usize = 256 * 1024;

/// Counts and hashes what goes through it.
struct Metered<W> {
    inner: W,
    hasher: Hasher,
    bytes: u64,
}

impl<W: Write> Write for Metered<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let written = self.inner.write(bytes)?;
        self.hasher.update(&bytes[..written]);
        self.bytes += written as u64;
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.inner.flush()
    }
}

/// Counts what is sealed, for whoever watches.
struct Counted<'c, W> {
    inner: W,
    bytes: u64,
    watched: &'c AtomicU64,
}

impl<W: Write> Write for Counted<'_, W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let written = self.inner.write(bytes)?;
        self.bytes += written as u64;
        self.watched.fetch_add(written as u64, Ordering::Relaxed);
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.inner.flush()
    }
}

/// Writes what `fill` writes, compressed and sealed to `recipients`, into `draft`, which is not committed yet. `watched`
/// counts the plain bytes.
///
/// # Errors
/// When it cannot be read, sealed or written.
pub fn seal(
    draft: Draft,
    recipients: &[Recipient],
    watched: &AtomicU64,
    fill: impl FnOnce(&mut dyn Write) -> io::Result<()>,
) -> Result<(Draft, Object), BackupError> {
    let target = draft.target();
    let failed = |source| BackupError::of_io("write", target.clone(), source);
    let metered = Metered { inner: BufWriter::with_capacity(BUFFER_BYTES, draft), hasher: Hasher::new(), bytes: 0 };
    let sealing = SealingWriter::new(metered, recipients)
        .map_err(|source| BackupError::Sealed { object: target.display().to_string(), source })?;
    let encoder = zstd::Encoder::new(sealing, LEVEL).map_err(failed)?;
    let mut counted = Counted { inner: encoder, bytes: 0, watched };
    fill(&mut counted).map_err(failed)?;
    let Counted { inner, bytes: plain_bytes, .. } = counted;
    let metered = inner.finish().and_then(SealingWriter::finish).map_err(failed)?;
    let Metered { inner, hasher, bytes } = metered;
    let draft = inner.into_inner().map_err(|error| failed(error.into_error()))?;
    Ok((draft, Object { bytes, sha256: hasher.finish(), plain_bytes }))
}

/// Whether the object is what its manifest says, to the byte.
///
/// # Errors
/// [`BackupError::Damaged`] naming it.
pub fn check(store: &Store, key: &str, expected: &Object) -> Result<(), BackupError> {
    let damaged = |problem: String| BackupError::Damaged { object: key.to_owned(), problem };
    let mut object = store.open(key)?.ok_or_else(|| damaged("it is missing".to_owned()))?;
    let (mut hasher, mut bytes, mut buffer) = (Hasher::new(), 0, vec![0; BUFFER_BYTES]);
    loop {
        let read = object.read(&mut buffer).map_err(BackupError::io("read", &store.place(key)))?;
        if read == 0 {
            break;
        }
        hasher.update(&buffer[..read]);
        bytes += read as u64;
    }
    if bytes != expected.bytes {
        return Err(damaged(format!("it has {bytes} bytes, the manifest says {}", expected.bytes)));
    }
    if hasher.finish() != expected.sha256 {
        return Err(damaged("its hash is not the one in the manifest".to_owned()));
    }
    Ok(())
}

/// Opens a sealed object.
///
/// # Errors
/// When it is missing, sealed to other keys, or damaged.
pub fn open(store: &Store, key: &str, opener: &Opener) -> Result<impl Read + use<>, BackupError> {
    let missing = || BackupError::Damaged { object: key.to_owned(), problem: "it is missing".to_owned() };
    let object = store.open(key)?.ok_or_else(missing)?;
    let mut object = BufReader::with_capacity(BUFFER_BYTES, object);
    // The store's own failure first: what cannot be read is not damaged.
    object.fill_buf().map_err(BackupError::io("read", &store.place(key)))?;
    opened(object, key, opener)
}

/// Opens sealed bytes.
///
/// # Errors
/// When they are sealed to other keys, or damaged.
pub fn opened<R: Read>(from: R, key: &str, opener: &Opener) -> Result<impl Read + use<R>, BackupError> {
    let sealed = |source: SealError| BackupError::Sealed { object: key.to_owned(), source };
    let plain = opener.open(from).map_err(sealed)?;
    zstd::Decoder::new(plain).map_err(|error| BackupError::damaged(key, &error))
}

/// Unpacks a tar of plain files and directories into a directory that exists. Nothing is written outside it, over
/// anything or through a link; files are 0600 and directories 0700, whatever the tar says.
///
/// # Errors
/// [`BackupError::Damaged`] for anything else in it; [`BackupError::Io`].
pub fn unpack(from: impl Read, into: &Path, key: &str) -> Result<(), BackupError> {
    let damaged = |problem: String| BackupError::Damaged { object: key.to_owned(), problem };
    let mut archive = tar::Archive::new(from);
    let entries = archive.entries().map_err(|error| BackupError::damaged(key, &error))?;
    for entry in entries {
        let mut entry = entry.map_err(|error| BackupError::damaged(key, &error))?;
        let path = entry.path().map_err(|error| damaged(error.to_string()))?.into_owned();
        let plain = path.components().all(|part| matches!(part, Component::Normal(_) | Component::CurDir));
        if !plain {
            return Err(damaged(format!("it holds the path {path:?}")));
        }
        let target = into.join(&path);
        let kind = entry.header().entry_type();
        if kind.is_dir() {
            make_dirs(&target)?;
        } else if kind.is_file() {
            make_dirs(target.parent().unwrap_or(into))?;
            let mut file: File = fs::OpenOptions::new()
                .write(true)
                .create_new(true)
                .mode(0o600)
                .open(&target)
                .map_err(BackupError::io("create", &target))?;
            let expected = entry.size();
            let written = io::copy(&mut entry, &mut file).map_err(BackupError::io("write", &target))?;
            if written != expected {
                return Err(damaged(format!("{path:?} is cut short")));
            }
        } else {
            return Err(damaged(format!("{path:?} is neither a file nor a directory")));
        }
    }
    Ok(())
}

fn make_dirs(path: &Path) -> Result<(), BackupError> {
    fs::DirBuilder::new().recursive(true).mode(0o700).create(path).map_err(BackupError::io("make", path))
}
