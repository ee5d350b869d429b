//! The database carried over to a newer major version: `bib admin db upgrade`.
//!
//! Planned while the server runs, in a file beside PROVISIONER, and carried out before the next start, when nobody
//! writes ([`Upgrader::carry_out`]). What is carried out is a dump by the newer programs, loaded into a cluster that they
//! make beside the old one, compared row by row ([`content`]), and put in its place ([`carry`]). Until then the old
//! cluster is untouched: whatever fails, or is killed, leaves the node with the one or the other, whole. Afterwards the
//! old one stays as `data.before-<major>` until somebody says that it may go.
//!
//! Passwords go along: the new cluster's roles are made from the same sealed document as the old one's.

mod carry;
pub(crate) mod content;

use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde::{Deserialize, Serialize};
use sqlx::{ConnectOptions as _, Connection as _, Row as _};

use crate::account::Account;
use crate::binaries;
use crate::choose::under;
use crate::database::Database;
use crate::error::Error;
use crate::failpoints::Failpoints;
use crate::file;
use crate::host::Place;
use crate::kubernetes::Trouble;
use crate::moving::Ended;
use crate::provisioner::{ManagedPostgres, Stop};
use crate::random::Randomness;
use crate::record::{Choice, Record, RecordState};
use crate::role::GroupRole;
use crate::secrets::SecretStore;
use crate::settings::{Layout, RunAs, Settings, Wal};
use crate::superuser::{Act, PrivilegedObserver};
use crate::version::Version;

/// What a cluster has before anything is in it, bytes.
const EMPTY_BYTES: u64 = 64 << 20;
/// The cluster that is made, and the dump, below `postgres/`.
const BESIDE: &str = "upgrade";
/// Where its socket is, below the runtime directory: sockets must have short names.
const BESIDE_RUNTIME: &str = "up";

/// A planned or ended upgrade, as it is remembered until somebody was told how it ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Upgrade {
    /// The major version that made the data.
    pub from: u32,
    /// The one that is to run it.
    pub to: u32,
    /// Whether a start has begun to carry it out: if so, and nothing is built, that start was interrupted.
    #[serde(default)]
    begun: bool,
    /// PostgreSQL's name of the new cluster, once it is whole and only needs to be put in its place.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    built: Option<String>,
    /// How it ended; nothing while it is planned.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ended: Option<Ended>,
}

/// What an upgrade would do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Prospect {
    /// The version that runs now.
    pub from: Version,
    /// The one that would.
    pub to: Version,
    /// Where its programs are.
    pub bin_dir: PathBuf,
    /// What is in the database, bytes on the disk.
    pub database_bytes: u64,
    /// What the dump and the new cluster take beside it at most, bytes.
    pub needed_bytes: u64,
    /// What is free there, bytes.
    pub free_bytes: u64,
    /// Where the old cluster would be kept.
    pub kept: PathBuf,
}

/// Upgrades the database under these settings.
#[derive(Clone)]
pub struct Upgrader {
    settings: Settings,
    secrets: Arc<dyn SecretStore>,
    random: Randomness,
    observer: Arc<dyn PrivilegedObserver>,
    failpoints: Failpoints,
}

impl Upgrader {
    /// For the server under `settings`; touches nothing yet.
    pub fn new(
        settings: Settings,
        secrets: Arc<dyn SecretStore>,
        observer: Arc<dyn PrivilegedObserver>,
        random: Randomness,
    ) -> Self {
        Self { settings, secrets, random, observer, failpoints: Failpoints::default() }
    }

    /// With a hook between the steps, for tests.
    #[must_use]
    pub fn with_failpoints(self, failpoints: Failpoints) -> Self {
        Self { failpoints, ..self }
    }

    fn layout(&self) -> Layout {
        Place::new(self.settings.clone()).layout
    }

    fn plan_path(&self) -> PathBuf {
        self.layout().home.join("UPGRADE")
    }

    /// The upgrade that is planned, or whose end nobody was told yet.
    ///
    /// # Errors
    /// [`Error::UpgradeDamaged`], [`Error::Io`].
    pub fn read(&self) -> Result<Option<Upgrade>, Error> {
        let path = self.plan_path();
        match std::fs::read(&path) {
            Ok(bytes) => serde_json::from_slice(&bytes).map(Some).map_err(|_| Error::UpgradeDamaged { path }),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(Error::io("read", path)(error)),
        }
    }

    /// Forgets an upgrade, planned or ended.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn forget(&self) -> Result<(), Error> {
        file::remove(&self.plan_path())
    }

    fn write(&self, upgrade: &Upgrade) -> Result<(), Error> {
        let text = serde_json::to_vec(upgrade).expect("a plan of words and numbers serialises");
        file::replace(&self.plan_path(), &text, None)
    }

    /// Plans an upgrade for the next start.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn plan(&self, prospect: &Prospect) -> Result<(), Error> {
        let (from, to) = (prospect.from.major, prospect.to.major);
        self.write(&Upgrade { from, to, begun: false, built: None, ended: None })
    }

    /// The clusters that former upgrades replaced.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn kept(&self) -> Result<Vec<PathBuf>, Error> {
        let home = self.layout().home;
        let mut kept = Vec::new();
        for entry in std::fs::read_dir(&home).map_err(Error::io("list", &home))? {
            let entry = entry.map_err(Error::io("list", &home))?;
            if entry.file_name().to_string_lossy().starts_with("data.before-") {
                kept.push(entry.path());
            }
        }
        kept.sort();
        Ok(kept)
    }

    /// Removes the clusters that former upgrades replaced: there is no way back then. Returns what they took, bytes.
    ///
    /// # Errors
    /// [`Error::NothingKept`]; [`Error::Io`]: then what is left is removed by doing this again.
    pub fn remove_kept(&self) -> Result<u64, Error> {
        let (home, kept) = (self.layout().home, self.kept()?);
        if kept.is_empty() {
            return Err(Error::NothingKept);
        }
        let mut bytes = 0;
        for path in kept {
            bytes += carry::size_of(&path);
            std::fs::remove_dir_all(&path).map_err(Error::io("remove", &path))?;
            let major = path.to_string_lossy().rsplit('-').next().unwrap_or_default().to_owned();
            file::remove(&home.join(format!("PROVISIONER.before-{major}")))?;
        }
        file::sync_dir(&home)?;
        Ok(bytes)
    }

    /// Whether the data could be carried over to `to`, or else to the newest version that is here: there is room for it,
    /// and the programs work, which is tried with an empty cluster. `reserve_bytes` are to stay free.
    ///
    /// # Errors
    /// [`Error::NoNewerMajor`], [`Error::NotNewer`], [`Error::OldDataKept`], [`Error::NoRoomToUpgrade`],
    /// [`Error::ExtensionsMissing`], and why the programs do not work.
    pub async fn examine(&self, database: &Database, to: Option<u32>, reserve_bytes: u64) -> Result<Prospect, Error> {
        let layout = self.layout();
        let (choice, record) = self.record()?;
        if let Some(path) = self.kept()?.into_iter().next() {
            return Err(Error::OldDataKept { path });
        }
        let found = self.programs(choice, record.major, to).await?;
        let to = found.version.ok_or(Error::NoBinaries { looked: Vec::new() })?;
        let from = database.server.version().await?;
        let database_bytes = database_bytes(database).await?;
        let (needed_bytes, free_bytes) = (self.needed_bytes(database_bytes), free_bytes(&layout.home)?);
        if free_bytes < needed_bytes.saturating_add(reserve_bytes) {
            return Err(Error::NoRoomToUpgrade { path: layout.home, needed_bytes, reserve_bytes, free_bytes });
        }
        let wanted = content::Shape::of(database).await?.extensions;
        let beside = self.beside(choice, to.major, &found.bin_dir)?;
        let tried = self.try_out(&beside, &wanted, to.major).await;
        self.clear(choice).await?;
        tried?;
        let kept = kept_path(&layout, record.major);
        Ok(Prospect { from, to, bin_dir: found.bin_dir, database_bytes, needed_bytes, free_bytes, kept })
    }

    /// Makes an empty cluster with the newer programs, starts it, and asks it what it has.
    async fn try_out(&self, beside: &Arc<dyn ManagedPostgres>, wanted: &[String], major: u32) -> Result<(), Error> {
        beside.provision().await?;
        beside.start().await?;
        let database = self.database(beside);
        let available = database
            .superuser
            .act(Act::TryUpgrade, "postgres", |connection| Box::pin(content::available_extensions(connection)))
            .await?;
        content::require(wanted, &available, major)
    }

    /// What PROVISIONER says of data that is there.
    fn record(&self) -> Result<(Choice, Record), Error> {
        let record = Record::read(&self.layout().provisioner)?.ok_or(Error::NotProvisioned)?;
        let unknown =
            || Error::OtherProvisioner { chosen: record.choice.clone(), wanted: "one that this release knows" };
        let choice = Choice::find(&record.choice).ok_or_else(unknown)?;
        if record.state != RecordState::Ready {
            return Err(Error::NotProvisioned);
        }
        if choice == Choice::Kubernetes {
            return Err(Error::Kubernetes(Box::new(Trouble::UpgradeElsewhere)));
        }
        if choice != Choice::Process {
            return Err(Error::UpgradeElsewhere { choice: choice.name() });
        }
        Ok((choice, record))
    }

    /// The programs of `to`, or the newest that are newer than `from`.
    async fn programs(&self, choice: Choice, from: u32, to: Option<u32>) -> Result<binaries::Found, Error> {
        if to.is_some_and(|to| to <= from) {
            return Err(Error::NotNewer { from, to: to.unwrap_or_default() });
        }
        debug_assert_eq!(choice, Choice::Process, "`record` refuses others");
        let account = Account::choose(self.settings.run_as.as_ref(), &self.layout().data).await?;
        let place = self.settings.upgrade_bin_dir.as_deref().or(self.settings.bin_dir.as_deref());
        let all = binaries::survey(place, account).await;
        let fits = |found: &&binaries::Found| {
            let major = found.version.map_or(0, |version| version.major);
            found.unusable.is_none() && major > from && to.is_none_or(|to| to == major)
        };
        let best = all.iter().filter(fits).max_by_key(|found| found.version).cloned();
        best.ok_or_else(|| Error::NoNewerMajor {
            from,
            to,
            looked: all
                .iter()
                .map(|found| {
                    let version = found.version.map_or_else(|| "unknown".to_owned(), |version| version.to_string());
                    format!("{}: {}", found.bin_dir.display(), found.unusable.as_deref().unwrap_or(&version))
                })
                .collect(),
        })
    }

    /// Where the new cluster is made.
    fn beside_settings(&self) -> Settings {
        let layout = self.layout();
        let mut settings = self.settings.clone();
        settings.data_root = layout.home.join(BESIDE);
        settings.runtime_dir = self.settings.runtime_dir.join(BESIDE_RUNTIME);
        settings.wal = Wal::Recycle;
        let node = settings.container.node.clone();
        settings.beside_node(&node)
    }

    /// A server of `major` beside the node's own, as the same user.
    fn beside(&self, choice: Choice, major: u32, bin_dir: &Path) -> Result<Arc<dyn ManagedPostgres>, Error> {
        use std::os::unix::fs::MetadataExt as _;
        let data = self.layout().data;
        let mut settings = self.beside_settings();
        settings.bin_dir = Some(bin_dir.to_owned());
        settings.major = Some(major);
        let owner = std::fs::symlink_metadata(&data).map_err(Error::io("look at", &data))?;
        settings.run_as = Some(RunAs::Ids { uid: owner.uid(), gid: owner.gid() });
        let (own, group) = (rustix::process::geteuid().as_raw(), rustix::process::getegid().as_raw());
        for path in [&settings.data_root, &settings.runtime_dir] {
            // PostgreSQL's own user passes through when we are root; what is in them protects itself.
            file::ensure_dir(path, own, group, 0o711)?;
        }
        under(choice, &settings, &self.secrets, &self.random)
    }

    fn database(&self, server: &Arc<dyn ManagedPostgres>) -> Database {
        Database::new(server.clone(), self.secrets.clone(), self.observer.clone(), self.random.clone())
    }

    /// Ends what runs beside the node's server, and removes it.
    async fn clear(&self, choice: Choice) -> Result<(), Error> {
        let settings = self.beside_settings();
        if file::exists(&settings.data_root)? {
            let beside = under(choice, &settings, &self.secrets, &self.random)?;
            beside.stop(Stop::Immediate).await?;
            beside.dismantle().await?;
        }
        for path in [&settings.data_root, &settings.runtime_dir] {
            match std::fs::remove_dir_all(path) {
                Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                    return Err(Error::io("remove", path)(error));
                }
                _ => {}
            }
        }
        Ok(())
    }

    /// The dump is at most as large as the database, and so is the new cluster beside its log.
    fn needed_bytes(&self, database_bytes: u64) -> u64 {
        let log = u64::from(self.settings.limits.max_wal_mb) << 20;
        database_bytes.saturating_mul(2).saturating_add(log).saturating_add(EMPTY_BYTES)
    }
}

impl std::fmt::Debug for Upgrader {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Upgrader").field("settings", &self.settings).finish_non_exhaustive()
    }
}

fn kept_path(layout: &Layout, major: u32) -> PathBuf {
    layout.home.join(format!("data.before-{major}"))
}

fn kept_record(layout: &Layout, major: u32) -> PathBuf {
    layout.home.join(format!("PROVISIONER.before-{major}"))
}

fn free_bytes(path: &Path) -> Result<u64, Error> {
    let disk = rustix::fs::statvfs(path).map_err(|error| Error::io("look at the disk of", path)(error.into()))?;
    Ok(disk.f_bavail.saturating_mul(disk.f_frsize))
}

async fn database_bytes(database: &Database) -> Result<u64, Error> {
    const WHAT: &str = "ask how large the database is";
    let options = database.connect_options(GroupRole::Monitor)?.disable_statement_logging();
    let mut connection = sqlx::PgConnection::connect_with(&options).await.map_err(Error::sql(WHAT))?;
    let row = sqlx::query("SELECT pg_catalog.pg_database_size(pg_catalog.current_database())")
        .fetch_one(&mut connection)
        .await
        .map_err(Error::sql(WHAT))?;
    // What was asked was answered: a failure to say goodbye changes nothing.
    let _ = connection.close().await;
    Ok(u64::try_from(row.get::<i64, _>(0)).unwrap_or_default())
}
