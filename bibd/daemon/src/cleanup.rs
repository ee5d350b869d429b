//! `bibd cleanup`: everything of a node goes, its database's container first.
//!
//! A directory in which this was cut off bears the mark [`REMOVING`]: no daemon starts on what is left, and the same
//! command goes on with it.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use bib_core::PeerId;
use bib_identity::NodeKey;
use bibd_postgres::choose::choose;
use bibd_postgres::{Choice, ManagedPostgres, Stop, Wanted};

use crate::clock::{Entropy, SystemClock};
use crate::config::places::Home;
use crate::config::{Config, Places, StoreLocation};
use crate::data_dir::{DataDir, DataDirError, REMOVING};
use crate::errors::ErrorCode;
use crate::foundation;
use crate::secrets::Secrets;

/// Removed last, in this order: what says whose the directory is stays as long as anything does.
const LAST: [&str; 4] = ["identity", "FORMAT", REMOVING, "lock"];
/// A file system's own.
const FOREIGN: &str = "lost+found";

/// Why a node cannot be removed.
#[derive(Debug, thiserror::Error)]
pub enum CleanupError {
    /// The directory.
    #[error(transparent)]
    Data(#[from] DataDirError),
    /// The server does not stop, or its container cannot be removed.
    #[error(transparent)]
    Postgres(#[from] bibd_postgres::Error),
    /// The directory is not a node's.
    #[error("`{}` is not the data directory of a node", .0.display())]
    NotANode(PathBuf),
    /// The name of a container is made from the key.
    #[error("the node's key `{}` cannot be read, and without it its database is not found", .0.display())]
    NoKey(PathBuf),
    /// The system refuses.
    #[error("{act} `{}`", path.display())]
    Io {
        /// What was tried.
        act: &'static str,
        /// Where.
        path: PathBuf,
        /// Why not.
        #[source]
        source: std::io::Error,
    },
}

impl CleanupError {
    /// The code.
    #[must_use]
    pub fn code(&self) -> ErrorCode {
        match self {
            Self::Data(DataDirError::Locked { .. }) => ErrorCode::DATA_DIR_LOCKED,
            Self::Postgres(_) => ErrorCode::POSTGRES_UNAVAILABLE,
            Self::NoKey(_) => ErrorCode::IDENTITY_UNUSABLE,
            Self::Data(_) | Self::NotANode(_) | Self::Io { .. } => ErrorCode::DATA_DIR_UNUSABLE,
        }
    }

    /// What a person can do about it.
    #[must_use]
    pub fn hint(&self) -> String {
        match self {
            Self::Data(error) => error.hint(),
            Self::Postgres(error) => error.hint().unwrap_or_else(|| "`bibd doctor` looks for the cause".to_owned()),
            Self::NotANode(_) => "name the right one with --data-dir; `bibd config show` prints it".to_owned(),
            Self::NoKey(path) => {
                let home = path.ancestors().nth(2).unwrap_or(path).join("postgres");
                format!(
                    "stop PostgreSQL in {0}, remove its container if `docker ps --all --filter label=bib.home={0}` \
                     names one, then remove the directory",
                    home.display()
                )
            }
            Self::Io { .. } => "mend that and run the same command again: it goes on where it ended".to_owned(),
        }
    }

    fn io(act: &'static str, path: &Path) -> impl FnOnce(std::io::Error) -> Self {
        let path = path.to_owned();
        move |source| Self::Io { act, path, source }
    }
}

/// One entry of the data directory.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Part {
    /// Where.
    pub path: PathBuf,
    /// Files in it, or one.
    pub files: u64,
    /// Their bytes.
    pub bytes: u64,
}

/// Everything of one node. While this lives no daemon starts there.
pub struct Cleanup {
    data: DataDir,
    /// Who the node is, when its key can be read.
    pub peer: Option<PeerId>,
    /// What runs its database; nothing when there is none.
    pub provisioner: Option<Choice>,
    /// What is removed, in the order of names.
    pub parts: Vec<Part>,
    /// Where its data lies beside that, which is removed too: a volume of Kubernetes.
    pub volume: Option<String>,
    /// What is the node's too and stays: the configuration, backups, checkpoints kept elsewhere.
    pub stays: Vec<PathBuf>,
    postgres: Option<Arc<dyn ManagedPostgres>>,
}

impl Cleanup {
    /// Looks at what there is, and keeps daemons out. Removes nothing.
    ///
    /// # Errors
    /// [`CleanupError`]: a daemon runs, it is no node's directory, or the engine of its container does not answer.
    pub async fn look(config: &Config, home: &Home, file: Option<&Path>) -> Result<Self, CleanupError> {
        let places = Places::of(config, home, None);
        let data = DataDir::open_to_remove(&places.data)?.ok_or_else(|| CleanupError::NotANode(places.data.clone()))?;
        let root = data.root().to_owned();
        let key_path = data.identity().join("node_key");
        let key = NodeKey::load(&key_path).ok();
        let peer = key.as_ref().map(NodeKey::peer_id);
        let postgres = match (key, root.join("postgres/PROVISIONER").exists()) {
            (_, false) => None,
            (Some(key), true) => Some(server(config, &places, key).await?),
            (None, true) => return Err(CleanupError::NoKey(key_path)),
        };
        let volume = match &postgres {
            Some(postgres) => postgres.data_elsewhere().await?,
            None => None,
        };
        let mut parts = Vec::new();
        let entries = fs::read_dir(&root).map_err(CleanupError::io("list", &root))?;
        for entry in entries {
            let path = entry.map_err(CleanupError::io("list", &root))?.path();
            if path.file_name().is_some_and(|name| name != FOREIGN) {
                let (files, bytes) = measure(&path).map_err(CleanupError::io("look at", &path))?;
                parts.push(Part { path, files, bytes });
            }
        }
        parts.sort_by(|one, other| one.path.cmp(&other.path));
        let outside = |path: &PathBuf| !path.starts_with(&root) && path.exists();
        let checkpoints = Some(places.checkpoints.clone());
        let store = match &config.backup.store {
            Some(StoreLocation::Directory(path)) => Some(path.clone()),
            _ => None,
        };
        let stays = [file.map(Path::to_owned), store, checkpoints].into_iter().flatten();
        Ok(Self {
            provisioner: postgres.as_ref().map(|postgres| postgres.choice()),
            stays: stays.filter(outside).collect(),
            data,
            peer,
            parts,
            volume,
            postgres,
        })
    }

    /// The data directory.
    #[must_use]
    pub fn root(&self) -> &Path {
        self.data.root()
    }

    /// What must be typed to have it done: the node's short name.
    #[must_use]
    pub fn word(&self) -> String {
        self.peer.map_or_else(|| "remove".to_owned(), |peer| peer.short())
    }

    /// Does it. The server and its container go before any file does: what cannot be ended is not robbed of its data.
    ///
    /// # Errors
    /// [`CleanupError`]; with the mark in the directory the same command goes on.
    pub async fn remove(self) -> Result<(), CleanupError> {
        if let Some(postgres) = &self.postgres {
            // Nobody needs the data any more: a clean stop would only take its time.
            postgres.stop(Stop::Immediate).await?;
            postgres.dismantle().await?;
            postgres.remove_data().await?;
        }
        let root = self.data.root().to_owned();
        let mark = root.join(REMOVING);
        fs::write(&mark, "").map_err(CleanupError::io("mark", &mark))?;
        let name = |part: &&Part| part.path.file_name().and_then(|name| name.to_str()).map(str::to_owned);
        let is_last = |part: &&Part| name(part).is_some_and(|name| LAST.contains(&name.as_str()));
        for part in self.parts.iter().filter(|part| !is_last(part)) {
            remove(&part.path)?;
        }
        for last in LAST {
            remove(&root.join(last))?;
        }
        match fs::remove_dir(&root) {
            // A mount point stays, and what a file system has of its own.
            Err(error) if error.kind() == std::io::ErrorKind::ResourceBusy => Ok(()),
            Err(error) if error.kind() == std::io::ErrorKind::DirectoryNotEmpty => Ok(()),
            other => other.map_err(CleanupError::io("remove", &root)),
        }
    }
}

/// The server that is remembered there, whether or not it runs.
async fn server(config: &Config, places: &Places, key: NodeKey) -> Result<Arc<dyn ManagedPostgres>, CleanupError> {
    let settings = foundation::postgres_settings(config, places, Arc::new(SystemClock)).of_node(&key.peer_id().short());
    let secrets = Arc::new(Secrets::new(&places.data.join("secrets"), Arc::new(key), Vec::new()));
    let random = foundation::randomness(&Entropy::from_system());
    let postgres = choose(Wanted::Auto, settings, secrets, random).await?;
    // An engine that does not answer is said now, not when half is gone.
    postgres.container().await?;
    Ok(postgres)
}

/// Files and bytes; links are not followed.
fn measure(path: &Path) -> std::io::Result<(u64, u64)> {
    let meta = fs::symlink_metadata(path)?;
    if !meta.is_dir() {
        return Ok((1, meta.len()));
    }
    let (mut files, mut bytes) = (0, 0);
    for entry in fs::read_dir(path)? {
        let (inner_files, inner_bytes) = measure(&entry?.path())?;
        files += inner_files;
        bytes += inner_bytes;
    }
    Ok((files, bytes))
}

fn remove(path: &Path) -> Result<(), CleanupError> {
    let is_dir = fs::symlink_metadata(path).is_ok_and(|meta| meta.is_dir());
    let removed = if is_dir { fs::remove_dir_all(path) } else { fs::remove_file(path) };
    match removed {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(CleanupError::io("remove", path)(error)),
        _ => Ok(()),
    }
}
