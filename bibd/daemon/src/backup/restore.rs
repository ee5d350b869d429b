//! `bibd restore`: a node out of a store, on a machine that has nothing of it but a key.
//!
//! The target is marked before anything else is written into it, and no daemon starts on it until the mark is gone,
//! which is the last step. A restore that was cut off is begun again over its own leavings and over nothing else.

use std::fs;
use std::io::Read as _;
use std::os::unix::fs::{DirBuilderExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};

use bib_core::{PeerId, Timestamp};
use bib_identity::recovery::{ParsedSheet, RecoverySheet};
use bib_identity::sealed_stream::Opener;
use bib_identity::{NodeKey, file};
use bibd_postgres::{Failpoints, Target};
use serde::{Deserialize, Serialize};
use zeroize::Zeroizing;

use super::document::Manifest;
use super::error::BackupError;
use super::landing::{Examined, Landing, stop_leftover};
use super::log::Chain;
use super::store::{Store, sync_dir};
use super::successor::{self, Succeeding, Successor};
use super::{Kind, Made, blocking, state};
use crate::clock::Entropy;
use crate::config::{Config, StoreLocation};
use crate::data_dir::RESTORING;
use crate::foundation;
use crate::s3::Keys;

/// What a restored node tells its audit log at its first start.
pub const RESTORED: &str = "RESTORED.json";
/// The longest key file, bytes.
const MAX_KEY_BYTES: u64 = 16 * 1024;

/// How far to go.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Choice {
    /// Everything that the store has.
    Newest,
    /// A backup, as it was when it ended.
    Backup(String),
    /// A moment.
    Time(Timestamp),
}

impl Choice {
    /// Which backup, with which log, up to where. Only a physical one leads on from its own moment.
    fn look(&self, store: &Store, node: &PeerId) -> Result<(Made, Option<Chain>, Target), BackupError> {
        if let Choice::Backup(id) = self {
            return Ok((Made::load(store, node, id)?, None, Target::Consistent));
        }
        let names = Manifest::names(store)?.into_iter().rev().filter(|(_, is_complete)| *is_complete);
        for (name, _) in names {
            let manifest = Manifest::load(store, node, &name)?;
            let Choice::Time(time) = self else {
                let chain = Chain::find(store, &manifest)?;
                if let Some(name) = chain.missing {
                    return Err(BackupError::NotReachable { reachable: chain.reachable, missing: Some(name) });
                }
                return Ok((Made::Base(Box::new(manifest)), Some(chain), Target::Latest));
            };
            if manifest.finished <= *time {
                let chain = Chain::find(store, &manifest)?;
                if *time > chain.reachable {
                    return Err(BackupError::NotReachable { reachable: chain.reachable, missing: chain.missing });
                }
                return Ok((Made::Base(Box::new(manifest)), Some(chain), Target::Time(time.to_string())));
            }
        }
        Err(self.nothing(store, node)?)
    }

    /// Why no physical backup will do, with the dump that would be the nearest to it.
    fn nothing(&self, store: &Store, node: &PeerId) -> Result<BackupError, BackupError> {
        let place = store.place("");
        let (when, wanted) = match self {
            Self::Time(time) => (format!(" from before {time}"), format!("from before {time}")),
            _ => (String::new(), format!("of node {node}")),
        };
        for (dump, _) in Kind::Logical.names(store)?.into_iter().rev().filter(|(_, is_complete)| *is_complete) {
            let made = Made::load_of(store, node, Kind::Logical, &dump)?;
            let is_late = matches!(self, Self::Time(time) if made.created() > *time);
            if !is_late {
                return Ok(BackupError::OnlyDumps { store: place, when, dump });
            }
        }
        Ok(BackupError::NothingFits { store: place, wanted })
    }
}

/// A restore.
#[derive(Debug)]
pub struct Restore {
    /// The store, as in `backup.store`.
    pub from: StoreLocation,
    /// What opens it when it is on a network.
    pub keys: Keys,
    /// The data directory to make.
    pub to: PathBuf,
    /// How far to go.
    pub choice: Choice,
    /// The recovery sheet or the node's key.
    pub identity: PathBuf,
    /// Whether the node goes on under a new identity, as its successor.
    pub new_identity: bool,
    /// The data directory of this machine's configuration: a lost identity must not be in it.
    pub own_data: PathBuf,
    /// Only says what would be restored.
    pub dry_run: bool,
    /// Sizes, user and programs of PostgreSQL.
    pub config: Config,
    /// Whether root runs it: then PostgreSQL's own user must pass through the directory.
    pub is_root: bool,
    /// For what needs randomness.
    pub entropy: Entropy,
    /// The time, in seconds since 1970.
    pub now_s: i64,
    /// Where a test ends the process.
    pub failpoints: Failpoints,
}

/// What was restored, or would be.
#[derive(Debug)]
pub struct Restored {
    /// From which backup.
    pub backup: Made,
    /// How far the store reaches.
    pub reachable: Timestamp,
    /// The node's new epoch; `None` after a dry run.
    pub epoch: Option<u64>,
    /// What is in it; `None` after a dry run.
    pub examined: Option<Examined>,
    /// The configuration file that the node had, where it lies now.
    pub configuration: Option<PathBuf>,
    /// Who goes on, when it is not the same node.
    pub successor: Option<Successor>,
}

/// What [`RESTORED`] says.
#[derive(Debug, Serialize, Deserialize)]
pub struct Note {
    /// The backup.
    pub backup: String,
    /// The epoch of the backup.
    pub from_epoch: u64,
    /// How far: `latest`, `backup`, `dump`, or a moment.
    pub target: String,
    /// Checkpoints that the file in the backup had not, and that were taken over from the database.
    pub checkpoints: usize,
}

/// What opens a node's backups.
struct Identity {
    opener: Opener,
    node: PeerId,
    /// What can also name a successor.
    sheet: Option<ParsedSheet>,
}

/// Reads the sheet or the node's key; `-` is a sheet on standard input.
fn read_identity(path: &Path) -> Result<Identity, BackupError> {
    let refused = |source| BackupError::Identity { path: path.to_owned(), source };
    let bytes = if path == Path::new("-") {
        read_input()?
    } else {
        file::read_private(path, MAX_KEY_BYTES).map_err(BackupError::Key)?
    };
    let text = std::str::from_utf8(&bytes).map_err(|_| refused(None))?;
    if text.contains("OPENSSH PRIVATE KEY") {
        let key = NodeKey::load(path).map_err(|_| refused(None))?;
        let opener = Opener::of_node(&key).map_err(|_| refused(None))?;
        return Ok(Identity { opener, node: key.peer_id(), sheet: None });
    }
    let parsed = RecoverySheet::parse(text).map_err(|error| refused(Some(error)))?;
    Ok(Identity { opener: Opener::of_recovery(&parsed.sheet), node: parsed.peer_id, sheet: Some(parsed) })
}

/// A sheet that is typed in or piped.
fn read_input() -> Result<Zeroizing<Vec<u8>>, BackupError> {
    // Room for all of it at once: growing would leave copies behind.
    let mut bytes = Zeroizing::new(Vec::with_capacity(usize::try_from(MAX_KEY_BYTES).unwrap_or_default()));
    let read = std::io::stdin().lock().take(MAX_KEY_BYTES).read_to_end(&mut bytes);
    read.map_err(BackupError::io("read", Path::new("-")))?;
    Ok(bytes)
}

impl Restore {
    /// Does it.
    ///
    /// # Errors
    /// [`BackupError`]; the target then bears the mark of an unfinished restore, or is as it was.
    pub async fn run(&self) -> Result<Restored, BackupError> {
        let Identity { opener, node, sheet } = read_identity(&self.identity)?;
        if self.new_identity {
            successor::require_lost(&self.own_data, &node)?;
        }
        let naming = match (self.new_identity, sheet) {
            (true, None) => return Err(BackupError::IdentityNotLost { node, path: self.identity.clone() }),
            (true, sheet) => sheet,
            (false, _) => None,
        };
        let store = Store::of(&self.from, &self.config.backup.s3, self.keys.clone(), &node)?;
        let (from, choice) = (store.clone(), self.choice.clone());
        let (backup, chain, target) = blocking(move || choice.look(&from, &node)).await?;
        let (at, left) = (store.clone(), naming.as_ref().and_then(|_| successor::key_left_in(&self.to)));
        let left = left.map(|key| key.peer_id());
        blocking(move || successor::require_unclaimed(&at, &node, left.as_ref())).await?;
        let reachable = chain.as_ref().map_or(backup.moment(), |chain| chain.reachable);
        if self.dry_run {
            return Ok(Restored {
                backup,
                reachable,
                epoch: None,
                examined: None,
                configuration: None,
                successor: None,
            });
        }
        self.mark().await?;
        let succeeding = naming.as_ref().map(|sheet| Succeeding {
            to: &self.to,
            store: &store,
            sheet,
            entropy: &self.entropy,
            now_s: self.now_s,
            failpoints: &self.failpoints,
        });
        let next = match succeeding {
            Some(succeeding) => Some((succeeding.key()?, succeeding)),
            None => None,
        };
        self.failpoints.hit("restore.claimed");
        let landing = Landing {
            store: &store,
            backup: &backup,
            opener: &opener,
            directory: &self.to,
            config: &self.config,
            wanted: foundation::beside(foundation::wanted_provisioner(&self.config)),
            entropy: &self.entropy,
            now_s: self.now_s,
            failpoints: &self.failpoints,
        };
        let examined = Box::pin(landing.run(target, chain.as_ref(), false)).await?;
        if examined.verdict == "TAMPERED" {
            return Err(BackupError::Differs(format!("the audit log is not whole: {}", examined.explanation)));
        }
        let entitled = next.as_ref().map(|(_, succeeding)| succeeding.entitled(&examined)).transpose()?;
        let (before, word, taking) = (backup.epoch(), self.entropy.bytes::<16>(), store.clone());
        let epoch = blocking(move || take_epoch(&taking, before, &hex::encode(word))).await?;
        let successor = match next.zip(entitled) {
            // Calls to the store block: no other task of this command waits meanwhile.
            Some(((key, succeeding), record)) => {
                Some(tokio::task::block_in_place(|| succeeding.install(&key, record, &examined, epoch))?)
            }
            None => None,
        };
        self.settle(&backup, epoch, examined.taken_over)?;
        let configuration = configuration_in(&self.to);
        Ok(Restored { backup, reachable, epoch: Some(epoch), examined: Some(examined), configuration, successor })
    }

    /// Makes the target and marks it. What an earlier restore left there goes, its server included.
    async fn mark(&self) -> Result<(), BackupError> {
        let (to, mark) = (&self.to, self.to.join(RESTORING));
        if !to.is_dir() {
            if let Some(parent) = to.parent().filter(|parent| !parent.as_os_str().is_empty()) {
                let mut builder = fs::DirBuilder::new();
                builder.recursive(true).mode(0o755).create(parent).map_err(BackupError::io("make", parent))?;
            }
            fs::DirBuilder::new().mode(0o700).create(to).map_err(BackupError::io("make", to))?;
        }
        let names = || -> Result<Vec<PathBuf>, BackupError> {
            let entries = fs::read_dir(to).map_err(BackupError::io("list", to))?;
            entries.map(|entry| Ok(entry.map_err(BackupError::io("list", to))?.path())).collect()
        };
        if mark.exists() {
            // A restore that was killed may have left its server running.
            Box::pin(stop_leftover(to, &self.config, &self.entropy)).await?;
            let is_kept = |path: &Path| self.new_identity && successor::is_kept(to, path);
            for path in names()?.into_iter().filter(|path| *path != mark && !is_kept(path)) {
                let removed = if path.is_dir() { fs::remove_dir_all(&path) } else { fs::remove_file(&path) };
                removed.map_err(BackupError::io("remove", &path))?;
            }
        } else if !names()?.is_empty() {
            return Err(BackupError::NotEmpty(to.clone()));
        }
        let mode = if self.is_root { 0o711 } else { 0o700 };
        fs::set_permissions(to, fs::Permissions::from_mode(mode)).map_err(BackupError::io("chmod", to))?;
        let text = format!("a restore from {} is not finished\n", self.from);
        file::replace_private(&mark, text.as_bytes())
            .map_err(|error| BackupError::io("mark", &mark)(std::io::Error::other(error)))
    }

    /// The last steps: the epoch, a word for the audit log, everything durable, and then the mark goes.
    fn settle(&self, made: &Made, epoch: u64, checkpoints: usize) -> Result<(), BackupError> {
        let write = |name: &str, bytes: &[u8]| {
            let path = self.to.join(name);
            file::replace_private(&path, bytes)
                .map_err(|error| BackupError::io("write", &path)(std::io::Error::other(error)))
        };
        write("identity/epoch", format!("{epoch}\n").as_bytes())?;
        let target = match &self.choice {
            Choice::Newest => "latest".to_owned(),
            Choice::Backup(_) if made.kind() == Kind::Logical => "dump".to_owned(),
            Choice::Backup(_) => "backup".to_owned(),
            Choice::Time(time) => time.to_string(),
        };
        let note = Note { backup: made.id().to_owned(), from_epoch: made.epoch(), target, checkpoints };
        write(RESTORED, &serde_json::to_vec(&note).map_err(|_| BackupError::Broken)?)?;
        // One call for the many files that were unpacked.
        rustix::fs::sync();
        self.failpoints.hit("restore.settled");
        let mark = self.to.join(RESTORING);
        fs::remove_file(&mark).and_then(|()| sync_dir(&self.to)).map_err(BackupError::io("unmark", &mark))
    }
}

/// A number above that of the backup which no other restore from this store has.
fn take_epoch(store: &Store, before: u64, word: &str) -> Result<u64, BackupError> {
    // A restored node that stored anything has its own number here: the restore took it first.
    let number = |name: String| name.parse::<u64>().ok();
    let taken = store.list("epoch")?.into_iter().filter_map(number).max();
    let mut epoch = taken.unwrap_or(0).max(before) + 1;
    while !store.take(&format!("epoch/{epoch}"), word.as_bytes())? {
        epoch += 1;
    }
    Ok(epoch)
}

fn configuration_in(directory: &Path) -> Option<PathBuf> {
    let entries = fs::read_dir(directory.join(state::CONFIGURATION)).ok()?;
    entries.flatten().map(|entry| entry.path()).next()
}
