//! The data directory: its layout, its lock, its format.
//!
//! ```text
//! FORMAT         bib-data/1
//! lock           held by the running daemon; contains its pid
//! identity/      FORMAT, node_key (OpenSSH, 0600), epoch
//! certs/         CA and server certificate
//! secrets/       *.age, sealed to the node key
//! blobs/         chunks (bibd-blobs)
//! postgres/      the managed PostgreSQL (bibd-postgres)
//! checkpoints    signed heads of the audit log, unless configured elsewhere
//! ready.json     while the daemon serves
//! successor/     what a restore under a new identity left for the first start ([`crate::inheritance`])
//! ```
//!
//! Which of these may be encrypted by the file system stands in [`crate::at_rest`].
//!
//! It never removes anything, and never makes a key in place of one that should be there.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read as _, Seek as _, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};

use bib_identity::NodeKey;
use bib_identity::file::{self, FileError};
use bib_identity::node_key::NodeKeyError;
use rand::{CryptoRng, RngCore};
use rustix::fs::FlockOperation;

/// The format of the directory as a whole.
const FORMAT: &str = "bib-data/1\n";
/// The format of `identity/`.
const IDENTITY_FORMAT: &str = "bib-identity/1\n";

/// The mark of a directory that `bibd restore` has not finished.
pub const RESTORING: &str = "RESTORING";

/// The mark of a directory that `bibd cleanup` has not finished.
pub const REMOVING: &str = "REMOVING";

/// Why a data directory cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum DataDirError {
    /// Another daemon holds it.
    #[error("another bibd (pid {pid}) uses `{path}`")]
    Locked {
        /// The directory.
        path: PathBuf,
        /// The other daemon's process id, 0 when it could not be read.
        pid: u32,
    },
    /// A restore was cut off.
    #[error("`{path}` says that a restore into this directory was not finished")]
    Restoring {
        /// The mark.
        path: PathBuf,
    },
    /// A removal was cut off.
    #[error("`{path}` says that the node in this directory is being removed")]
    Removing {
        /// The mark.
        path: PathBuf,
    },
    /// Written by a release that this one does not know.
    #[error("`{path}` says {found:?}, this bibd knows {known:?}")]
    Format {
        /// The FORMAT file.
        path: PathBuf,
        /// What it says.
        found: String,
        /// What is known.
        known: &'static str,
    },
    /// The number beside the identity is missing or damaged.
    #[error("the epoch in `{path}` is missing or damaged")]
    Epoch {
        /// The file.
        path: PathBuf,
    },
    /// There is a database but no certificate authority: both of its files are gone.
    #[error("`{certificate}` and `{key}` are gone, and this node was used before")]
    AuthorityLost {
        /// Where the certificate was.
        certificate: PathBuf,
        /// Where the sealed key was.
        key: PathBuf,
    },
    /// The key file.
    #[error(transparent)]
    Key(#[from] NodeKeyError),
    /// A private file.
    #[error(transparent)]
    File(#[from] FileError),
    /// The system refuses.
    #[error("{act} `{path}`")]
    Io {
        /// What was tried.
        act: &'static str,
        /// Where.
        path: PathBuf,
        /// Why not.
        #[source]
        source: io::Error,
    },
}

impl DataDirError {
    /// What a person can do about it.
    #[must_use]
    pub fn hint(&self) -> String {
        match self {
            Self::Locked { .. } => "stop it first, or choose another directory with --data-dir".to_owned(),
            Self::Removing { .. } => "run `bibd cleanup` again: nothing of this node can be used any more".to_owned(),
            Self::Restoring { .. } => "run the same `bibd restore` again, or remove the directory".to_owned(),
            Self::Format { .. } => "use the release of bibd that wrote it, or a newer one".to_owned(),
            Self::Epoch { .. } => "restore identity/epoch from the same backup as the key: a wrong number could make \
                                   this node contradict itself"
                .to_owned(),
            Self::AuthorityLost { .. } => {
                "restore both from the same backup; BIB never makes a new CA over an old one, \
                                           because every client has pinned it"
                    .to_owned()
            }
            Self::Key(error) => error.hint().unwrap_or("see `bibd doctor`").to_owned(),
            Self::File(error) => error.hint().unwrap_or("see `bibd doctor`").to_owned(),
            Self::Io { .. } => "`bibd doctor` checks permissions and space".to_owned(),
        }
    }

    fn io(act: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Self {
        let path = path.to_owned();
        move |source| Self::Io { act, path, source }
    }
}

/// A data directory that is ours until this is dropped.
#[derive(Debug)]
pub struct DataDir {
    root: PathBuf,
    _lock: File,
}

/// Who this node is.
#[derive(Debug)]
pub struct Identity {
    /// The key.
    pub key: NodeKey,
    /// Raised by every restore.
    pub epoch: u64,
    /// Made by this call.
    pub is_new: bool,
}

impl DataDir {
    /// Makes the directory where it is missing, checks its format and locks it. `is_shared` gives it 0711, so that
    /// PostgreSQL's own user can pass through; otherwise 0700.
    ///
    /// # Errors
    /// [`DataDirError`].
    pub fn open(root: &Path, is_shared: bool) -> Result<Self, DataDirError> {
        let mode = if is_shared { 0o711 } else { 0o700 };
        if !root.is_dir() {
            // Parents as anybody makes them: only the last one is ours.
            if let Some(parent) = root.parent() {
                let mut builder = fs::DirBuilder::new();
                builder.recursive(true).mode(0o755).create(parent).map_err(DataDirError::io("make", parent))?;
            }
            fs::DirBuilder::new().mode(mode).create(root).map_err(DataDirError::io("make", root))?;
            fs::set_permissions(root, fs::Permissions::from_mode(mode)).map_err(DataDirError::io("open up", root))?;
        }
        let root = root.canonicalize().map_err(DataDirError::io("find", root))?;
        let lock = lock(&root)?;
        let mark = root.join(RESTORING);
        if mark.exists() {
            return Err(DataDirError::Restoring { path: mark });
        }
        let mark = root.join(REMOVING);
        if mark.exists() {
            return Err(DataDirError::Removing { path: mark });
        }
        ensure_format(&root.join("FORMAT"), FORMAT, "bib-data/1")?;
        Ok(Self { root, _lock: lock })
    }

    /// Locks a directory whose node is to be removed, half restored or half removed ones too; `None` when it is not a
    /// node's. Makes nothing but the lock.
    ///
    /// # Errors
    /// [`DataDirError`]: a daemon uses it, or the system refuses.
    pub fn open_to_remove(root: &Path) -> Result<Option<Self>, DataDirError> {
        if !["FORMAT", RESTORING, REMOVING].iter().any(|name| root.join(name).is_file()) {
            return Ok(None);
        }
        let root = root.canonicalize().map_err(DataDirError::io("find", root))?;
        let lock = lock(&root)?;
        Ok(Some(Self { root, _lock: lock }))
    }

    /// The directory.
    #[must_use]
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// `certs/`.
    #[must_use]
    pub fn certs(&self) -> PathBuf {
        self.root.join("certs")
    }

    /// `secrets/`.
    #[must_use]
    pub fn secrets(&self) -> PathBuf {
        self.root.join("secrets")
    }

    /// `blobs/`.
    #[must_use]
    pub fn blobs(&self) -> PathBuf {
        self.root.join("blobs")
    }

    /// `identity/`.
    #[must_use]
    pub fn identity(&self) -> PathBuf {
        self.root.join("identity")
    }

    /// Before a certificate authority is made: a node that has a database had one.
    ///
    /// # Errors
    /// [`DataDirError::AuthorityLost`].
    pub fn require_authority(&self) -> Result<(), DataDirError> {
        let (certificate, key) = (self.certs().join("ca.crt"), self.secrets().join("ca.key.age"));
        if self.root.join("postgres").exists() && !certificate.exists() && !key.exists() {
            return Err(DataDirError::AuthorityLost { certificate, key });
        }
        Ok(())
    }

    /// Reads who this node is; a directory without an identity gets one. The epoch is written before the key, so a key
    /// without an epoch is damage and not a first start that was cut off; so is a key that is gone where a database is.
    ///
    /// # Errors
    /// [`DataDirError`]; never makes a key where something says that there was one.
    pub fn identity_or_new(&self, rng: &mut (impl RngCore + CryptoRng)) -> Result<Identity, DataDirError> {
        let directory = self.identity();
        file::ensure_private_dir(&directory)?;
        ensure_format(&directory.join("FORMAT"), IDENTITY_FORMAT, "bib-identity/1")?;
        let (key_path, epoch_path) = (directory.join("node_key"), directory.join("epoch"));
        let has_key = key_path.exists();
        let was_used = self.secrets().join("ca.key.age").exists() || self.root.join("postgres").exists();
        if has_key || was_used {
            let key = NodeKey::load(&key_path)?;
            return Ok(Identity { key, epoch: read_epoch(&epoch_path)?, is_new: false });
        }
        file::replace_private(&epoch_path, b"1\n")?;
        let key = NodeKey::create(&key_path, rng)?;
        Ok(Identity { key, epoch: 1, is_new: true })
    }
}

fn lock(root: &Path) -> Result<File, DataDirError> {
    let path = root.join("lock");
    let mut options = OpenOptions::new();
    options.read(true).write(true).create(true).truncate(false).mode(0o600);
    let mut file = options.open(&path).map_err(DataDirError::io("open", &path))?;
    match rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => {}
        Err(rustix::io::Errno::WOULDBLOCK) => {
            let mut text = String::new();
            // What cannot be read is said as 0.
            let _ = (&file).take(20).read_to_string(&mut text);
            return Err(DataDirError::Locked { path: root.to_owned(), pid: text.trim().parse().unwrap_or(0) });
        }
        Err(errno) => return Err(DataDirError::io("lock", &path)(errno.into())),
    }
    let written = file.set_len(0).and_then(|()| file.rewind()).and_then(|()| writeln!(file, "{}", std::process::id()));
    written.map_err(DataDirError::io("write", &path))?;
    Ok(file)
}

fn ensure_format(path: &Path, content: &str, known: &'static str) -> Result<(), DataDirError> {
    match fs::read_to_string(path) {
        Ok(found) if found == content => Ok(()),
        Ok(found) => {
            let found = found.chars().take(80).collect::<String>().trim().to_owned();
            Err(DataDirError::Format { path: path.to_owned(), found, known })
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            file::replace_public(path, content.as_bytes()).map_err(DataDirError::File)
        }
        Err(error) => Err(DataDirError::io("read", path)(error)),
    }
}

fn read_epoch(path: &Path) -> Result<u64, DataDirError> {
    let damaged = || DataDirError::Epoch { path: path.to_owned() };
    let text = file::read_private(path, 32).map_err(|error| match error {
        FileError::Missing { .. } | FileError::Empty { .. } => damaged(),
        other => DataDirError::File(other),
    })?;
    // The end of the line is part of it: of `12\n` cut short, `1` would be left, and this node would contradict itself.
    let digits = std::str::from_utf8(&text).ok().and_then(|text| text.strip_suffix('\n')).ok_or_else(damaged)?;
    digits.parse().ok().filter(|epoch| *epoch > 0 && *digits == format!("{epoch}")).ok_or_else(damaged)
}

/// What the process as a whole is set to before anything is written: files for their owner alone, no core dumps (they
/// would hold keys).
///
/// # Errors
/// When the system refuses the limit.
pub fn harden_process() -> io::Result<()> {
    rustix::process::umask(rustix::fs::Mode::from_raw_mode(0o077));
    let none = rustix::process::Rlimit { current: Some(0), maximum: Some(0) };
    rustix::process::setrlimit(rustix::process::Resource::Core, none).map_err(io::Error::from)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::Entropy;

    #[test]
    fn the_identity_is_made_once_and_read_back() {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path().join("a/data");
        let peer = {
            let data = DataDir::open(&root, false).unwrap();
            let identity = data.identity_or_new(&mut Entropy::seeded(1)).unwrap();
            assert!(identity.is_new && identity.epoch == 1);
            identity.key.peer_id()
        };
        let data = DataDir::open(&root, false).unwrap();
        let again = data.identity_or_new(&mut Entropy::seeded(2)).unwrap();
        assert!(!again.is_new);
        assert_eq!(again.key.peer_id(), peer);
    }

    #[test]
    fn a_lost_key_or_epoch_is_never_made_anew() {
        let dir = tempfile::tempdir().unwrap();
        let data = DataDir::open(dir.path(), false).unwrap();
        data.identity_or_new(&mut Entropy::seeded(1)).unwrap();
        fs::remove_file(data.identity().join("epoch")).unwrap();
        let error = data.identity_or_new(&mut Entropy::seeded(1)).unwrap_err();
        assert!(matches!(error, DataDirError::Epoch { .. }), "{error}");
        fs::write(data.identity().join("epoch"), "1\n").unwrap();
        fs::set_permissions(data.identity().join("epoch"), fs::Permissions::from_mode(0o600)).unwrap();
        fs::remove_file(data.identity().join("node_key")).unwrap();
        fs::create_dir(data.root().join("postgres")).unwrap();
        assert!(matches!(data.identity_or_new(&mut Entropy::seeded(1)), Err(DataDirError::Key(_))));
        assert!(!data.identity().join("node_key").exists());
    }

    #[test]
    fn a_directory_of_another_format_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("FORMAT"), "bib-data/9\n").unwrap();
        let error = DataDir::open(dir.path(), false).unwrap_err();
        assert!(matches!(&error, DataDirError::Format { found, .. } if found == "bib-data/9"), "{error}");
    }
}
