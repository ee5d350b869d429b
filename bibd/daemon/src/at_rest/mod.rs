//! Encryption at rest: the directories that hold data are encrypted by the file system, with a key that comes from the
//! node's identity.
//!
//! | outside | encrypted |
//! |---|---|
//! | `lock`, `FORMAT`, `identity/`, `certs/`, `secrets/`, `postgres/PROVISIONER`, `checkpoints` | `postgres/data`, `postgres/log`, `postgres/spool`, `blobs/`, `audit-archive/` |
//!
//! What stands outside is needed to find the key, or is signed or sealed on its own. The key is derived from the
//! identity once and lies in `secrets/disk_key.age` from then on, sealed to the node and to the recovery sheet: the
//! sheet and the disk are enough to read it. So this protects a disk that is lost without `identity/`: one that is sent
//! in for repair while `identity/` is on another file system. `docs/security.md` says it plainly.
//!
//! Directories are encrypted when they are made ([`AtRest::adopt`]); those that are there already are copied into new
//! ones and swapped at a start ([`convert`]). [`fscrypt`] speaks to the kernel.

mod convert;
mod fscrypt;

use std::io;
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use bib_identity::NodeKey;
use bib_identity::sealed::SealError;
use secrecy::{ExposeSecret as _, SecretSlice};
use zeroize::Zeroizing;

use self::fscrypt::{KEY_BYTES, KeyId, Policy};
use crate::config::{AtRestMode, Places};
use crate::grpc::error::chain;
use crate::grpc::health::Condition;
use crate::secrets::Secrets;
use crate::services::archive;

/// The sealed file that keeps the key.
pub const NAME: &str = "disk_key";
/// What the key is derived for.
const PURPOSE: &str = "at-rest";

/// Why data cannot be encrypted or unlocked.
#[derive(Debug, thiserror::Error)]
pub enum AtRestError {
    /// The file system has no encryption, or it is not turned on.
    #[error("the file system of `{path}` cannot encrypt")]
    Unsupported {
        /// The directory.
        path: PathBuf,
    },
    /// Encrypted by somebody else.
    #[error("`{path}` is encrypted with a key that is not this node's")]
    OtherKey {
        /// The directory.
        path: PathBuf,
    },
    /// The copy needs room that is not there.
    #[error("encrypting `{path}` needs {needed_mib} MiB beside it, {free_mib} MiB are free")]
    NoRoom {
        /// The directory.
        path: PathBuf,
        /// What it needs.
        needed_mib: u64,
        /// What there is.
        free_mib: u64,
    },
    /// The sealed key.
    #[error("the key of the encrypted directories")]
    Sealed(#[from] SealError),
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

impl AtRestError {
    /// What a person can do about it.
    #[must_use]
    pub fn hint(&self) -> &'static str {
        match self {
            Self::Unsupported { .. } => {
                "ext4: `tune2fs -O encrypt DEVICE` turns it on; f2fs has it too; elsewhere use LUKS below the file \
                 system and leave `encryption.at_rest: off` (docs/security.md)"
            }
            Self::OtherKey { .. } => {
                "restore `identity/` or `secrets/disk_key.age` of the node that encrypted it, or restore a backup into \
                 an empty directory"
            }
            Self::NoRoom { .. } => "make room, or set `encryption.at_rest: off` until there is: nothing was changed",
            Self::Sealed(_) => "restore `secrets/disk_key.age` from a backup; the recovery sheet opens it too",
            Self::Io { .. } => "`bibd doctor` checks permissions and space",
        }
    }

    fn io(act: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Self {
        let path = path.to_owned();
        move |source| Self::Io { act, path, source }
    }
}

/// How a directory is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum State {
    /// Not there yet.
    Missing,
    /// Readable by whoever has the disk.
    Plain,
    /// Encrypted, and open while the node runs.
    Encrypted,
}

/// The key and what it is for. Cheap to clone.
#[derive(Clone)]
pub struct AtRest {
    root: PathBuf,
    is_on: bool,
    /// `None`: nothing is encrypted, and nothing shall be.
    key: Option<Arc<Zeroizing<[u8; KEY_BYTES]>>>,
}

impl std::fmt::Debug for AtRest {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("AtRest").field("root", &self.root).field("is_on", &self.is_on).finish_non_exhaustive()
    }
}

/// The directories that hold data, below the data directory.
fn directories(root: &Path) -> [PathBuf; 5] {
    ["blobs", archive::DIRECTORY, "postgres/data", "postgres/log", "postgres/spool"].map(|name| root.join(name))
}

/// How each directory with data is: for `bibd doctor` and for health.
///
/// # Errors
/// When one cannot be looked at.
pub fn states(root: &Path) -> Result<Vec<(PathBuf, State)>, AtRestError> {
    let state = |path: PathBuf| {
        let state = match is_there(&path)? {
            false => State::Missing,
            true => match look(&path)? {
                Policy::None | Policy::Unsupported => State::Plain,
                Policy::Key(_) | Policy::Foreign => State::Encrypted,
            },
        };
        Ok((path, state))
    };
    directories(root).into_iter().map(state).collect()
}

/// Can the file system that will hold `root` encrypt? Looks at the nearest directory that is there.
///
/// # Errors
/// When it cannot be looked at.
pub fn is_supported(root: &Path) -> Result<bool, AtRestError> {
    let found = root.ancestors().find(|path| path.is_dir()).unwrap_or(Path::new("/"));
    Ok(look(found)? != Policy::Unsupported)
}

impl AtRest {
    /// As [`AtRest::open`], before the database and the chunks of `places` are opened.
    ///
    /// # Errors
    /// As [`AtRest::open`].
    pub async fn unlock(
        mode: AtRestMode,
        places: &Places,
        secrets: &Secrets,
        node: &Arc<NodeKey>,
    ) -> Result<Self, AtRestError> {
        // The directories must not be taken away under a server that outlived its daemon.
        let is_running = tokio::net::UnixStream::connect(places.postgres_socket()).await.is_ok();
        let (root, secrets, node) = (places.data.clone(), secrets.clone(), Arc::clone(node));
        let opening = move || Self::open(mode, &root, is_running, &secrets, &node);
        let broken = |error| AtRestError::io("unlock", &places.data)(io::Error::other(error));
        tokio::task::spawn_blocking(opening).await.map_err(broken)?
    }

    /// How it is, for health.
    #[must_use]
    pub fn condition(&self) -> Condition {
        match self.plain() {
            Ok(plain) if plain.is_empty() => Condition::Serving,
            Ok(plain) => {
                let names: Vec<String> = plain.iter().map(|path| format!("`{}`", path.display())).collect();
                Condition::Degraded(format!("not encrypted yet: {}; stop and start bibd", names.join(", ")))
            }
            Err(error) => Condition::Degraded(chain(&error)),
        }
    }

    /// Unlocks what is encrypted in the data directory `root` and, when `mode` says so, encrypts what is not. While
    /// `is_server_running`, the server's directories are left for another start. Blocks for as long as copying takes.
    ///
    /// # Errors
    /// [`AtRestError`]. What was being converted is as it was.
    pub fn open(
        mode: AtRestMode,
        root: &Path,
        is_server_running: bool,
        secrets: &Secrets,
        node: &NodeKey,
    ) -> Result<Self, AtRestError> {
        let is_on = mode == AtRestMode::Fscrypt;
        let encrypted = states(root)?.iter().any(|(_, state)| *state == State::Encrypted);
        if !is_on && !encrypted {
            return Ok(Self { root: root.to_owned(), is_on, key: None });
        }
        let this = Self { root: root.to_owned(), is_on, key: Some(Arc::new(find_or_derive(secrets, node)?)) };
        if is_on {
            make(&root.join("blobs"))?;
        }
        for path in directories(root) {
            if is_there(&path)? {
                this.open_directory(&path, is_server_running && path.starts_with(root.join("postgres")))?;
            }
        }
        Ok(this)
    }

    fn open_directory(&self, path: &Path, is_in_use: bool) -> Result<(), AtRestError> {
        let Some(id) = self.give_key(path)? else { return Ok(()) };
        match look(path)? {
            Policy::Key(found) if found == id => convert::sweep(path),
            Policy::Key(_) | Policy::Foreign => Err(AtRestError::OtherKey { path: path.to_owned() }),
            Policy::None | Policy::Unsupported if !self.is_on => Ok(()),
            Policy::None | Policy::Unsupported if is_in_use => {
                tracing::warn!(path = %path.display(), "is encrypted at a start that finds the database stopped");
                Ok(())
            }
            Policy::None | Policy::Unsupported => convert::run(path, id),
        }
    }

    /// Gives the key to the file system of `path`; `None` when nothing is encrypted.
    fn give_key(&self, path: &Path) -> Result<Option<KeyId>, AtRestError> {
        let Some(key) = &self.key else { return Ok(None) };
        match fscrypt::add_key(path, key) {
            Ok(id) => Ok(Some(id)),
            Err(error) if is_unsupported(&error) && self.is_on => {
                Err(AtRestError::Unsupported { path: path.to_owned() })
            }
            // A directory on another file system than those that are encrypted.
            Err(error) if is_unsupported(&error) => Ok(None),
            Err(error) => Err(AtRestError::io("unlock", path)(error)),
        }
    }

    /// Encrypts what will be put into a new directory. One that has something in it stays as it is.
    ///
    /// # Errors
    /// When the file system refuses.
    pub fn adopt(&self, path: &Path) -> io::Result<()> {
        let Some(key) = self.key.as_ref().filter(|_| self.is_on) else { return Ok(()) };
        match fscrypt::policy(path)? {
            Policy::None if std::fs::read_dir(path)?.next().is_none() => {
                fscrypt::set_policy(path, fscrypt::add_key(path, key)?)
            }
            _ => Ok(()),
        }
    }

    /// Directories that hold data in the clear although they shall not.
    ///
    /// # Errors
    /// When one cannot be looked at.
    fn plain(&self) -> Result<Vec<PathBuf>, AtRestError> {
        let plain = states(&self.root)?.into_iter().filter(|(_, state)| self.is_on && *state == State::Plain);
        Ok(plain.map(|(path, _)| path).collect())
    }

    /// Takes the key from the kernel again: until the next start nobody reads the directories, not even root. Called when
    /// everything that had files open has ended.
    pub fn lock(&self) {
        let mut locked = Vec::new();
        for path in directories(&self.root) {
            let (Ok(Policy::Key(id)), Ok(meta)) = (fscrypt::policy(&path), std::fs::metadata(&path)) else { continue };
            if locked.contains(&meta.dev()) {
                continue;
            }
            locked.push(meta.dev());
            // The key is the file system's. Asked through the directory itself it would be in use: by the question.
            let outside = path.parent().filter(|parent| parent.metadata().is_ok_and(|other| other.dev() == meta.dev()));
            match fscrypt::remove_key(outside.unwrap_or(&path), id) {
                Ok(true) => tracing::info!(path = %path.display(), "the encrypted directories are locked"),
                Ok(false) => {
                    tracing::warn!(path = %path.display(), "files in the encrypted directories are open: those stay readable");
                }
                Err(error) => tracing::warn!(path = %path.display(), error.cause = %error, "could not be locked"),
            }
        }
    }
}

/// The key as it was kept, or derived and kept now.
fn find_or_derive(secrets: &Secrets, node: &NodeKey) -> Result<Zeroizing<[u8; KEY_BYTES]>, AtRestError> {
    let directory = secrets.directory()?;
    if let Some(kept) = directory.find(NAME)? {
        let mut key = Zeroizing::new([0; KEY_BYTES]);
        hex::decode_to_slice(kept.expose_secret().trim_ascii(), key.as_mut_slice()).map_err(|_| SealError::Damaged)?;
        return Ok(key);
    }
    let key = node.derive::<KEY_BYTES>(PURPOSE);
    let text = Zeroizing::new(hex::encode(key.as_slice()));
    // Before anything is encrypted with it.
    directory.write(NAME, &SecretSlice::from(text.as_bytes().to_vec()))?;
    Ok(key)
}

fn make(path: &Path) -> Result<(), AtRestError> {
    match std::fs::DirBuilder::new().mode(0o700).create(path) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => Err(AtRestError::io("make", path)(error)),
        _ => Ok(()),
    }
}

fn is_there(path: &Path) -> Result<bool, AtRestError> {
    path.try_exists().map_err(AtRestError::io("look at", path))
}

fn look(path: &Path) -> Result<Policy, AtRestError> {
    fscrypt::policy(path).map_err(AtRestError::io("look at", path))
}

fn is_unsupported(error: &io::Error) -> bool {
    let errno = rustix::io::Errno::from_io_error(error);
    matches!(errno, Some(rustix::io::Errno::NOTTY | rustix::io::Errno::OPNOTSUPP))
}
