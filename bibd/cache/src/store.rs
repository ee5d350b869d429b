//! The file: how it is opened, bounded, swept and, when it is damaged, replaced.

use std::fs::{self, DirBuilder, OpenOptions};
use std::io;
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use bib_core::{PeerId, Timestamp};
use sqlx::sqlite::{SqliteAutoVacuum, SqliteConnectOptions, SqliteJournalMode, SqlitePoolOptions, SqliteSynchronous};
use sqlx::{ConnectOptions as _, Connection as _, SqlitePool};
use tokio::sync::RwLock;

use crate::error::{Error, OpenError, is_damage};
use crate::schema::{self, Found};

/// The largest page (docs/formats.md).
pub const MAX_PAGE_BYTES: usize = 1 << 20;

const FILE: &str = "cache.sqlite";
/// What SQLite keeps beside the file: they belong to it and to no other.
const BESIDE: [&str; 2] = ["-wal", "-shm"];
const DAMAGED: &str = ".damaged";
/// WAL mode: readers wait for nobody, one writes at a time.
const CONNECTIONS: u32 = 4;
const BUSY: Duration = Duration::from_secs(5);
/// What the write-ahead log may keep on the disk when it is empty, in bytes.
const JOURNAL_BYTES: i64 = 4 << 20;
/// Rows that one transaction of a sweep deletes, so that it keeps no writer waiting.
const SWEEP_ROWS: i64 = 500;
/// Gives up to 4 MiB of the file that nothing uses back to the file system.
const VACUUM: &str = "PRAGMA incremental_vacuum(1024)";

/// How long things are kept, and how many.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Settings {
    /// How long what was fetched may be given out.
    pub ttl: Duration,
    /// Bytes of records and pages; when there are more, the oldest go.
    pub max_bytes: u64,
}

/// How much is kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Usage {
    /// Records, those that expired since the last sweep among them.
    pub records: u64,
    /// Pages.
    pub pages: u64,
    /// Their bytes.
    pub bytes: u64,
    /// The length of the file, without its write-ahead log.
    pub file_bytes: u64,
}

/// What a sweep removed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Swept {
    /// Records that were too old.
    pub records: u64,
    /// Pages that were too old.
    pub pages: u64,
}

/// A cache that was opened.
#[derive(Debug)]
pub struct Opened {
    /// It.
    pub cache: Cache,
    /// Where the damaged file of before lies now.
    pub set_aside: Option<PathBuf>,
}

/// A handle; clones share it. A call takes the time from its caller, whose clock is the node's.
#[derive(Debug, Clone)]
pub struct Cache {
    pub(crate) inner: Arc<Inner>,
}

#[derive(Debug)]
pub(crate) struct Inner {
    path: PathBuf,
    /// This node, whose own records have no place here.
    pub(crate) node: PeerId,
    pub(crate) settings: Settings,
    pool: RwLock<SqlitePool>,
}

impl Cache {
    /// Opens or makes the cache in `directory`, whose parent must exist. Reads none of its content. A damaged file is set
    /// aside.
    ///
    /// # Errors
    /// A database that is not ours or newer than we know; what the disk says.
    pub async fn open(directory: &Path, node: PeerId, settings: Settings) -> Result<Opened, OpenError> {
        let path = directory.join(FILE);
        prepare(directory, &path).map_err(|source| OpenError::Io { path: directory.to_owned(), source })?;
        let (pool, set_aside) = match connect(&path).await {
            Err(OpenError::Sqlite { source, .. }) if is_damage(&source) => {
                let aside = set_aside(&path).map_err(|source| OpenError::Io { path: path.clone(), source })?;
                (connect(&path).await?, Some(aside))
            }
            opened => (opened?, None),
        };
        let inner = Inner { path, node, settings, pool: RwLock::new(pool) };
        Ok(Opened { cache: Self { inner: Arc::new(inner) }, set_aside })
    }

    /// The version of SQLite that is compiled in.
    ///
    /// # Errors
    /// [`Error::Sqlite`].
    pub async fn version(&self) -> Result<String, Error> {
        self.run(async |pool| sqlx::query_scalar("SELECT sqlite_version()").fetch_one(pool).await).await
    }

    /// The number of the file's schema.
    ///
    /// # Errors
    /// [`Error::Sqlite`], [`Error::Damaged`].
    pub async fn schema(&self) -> Result<u32, Error> {
        self.run(async |pool| sqlx::query_scalar("PRAGMA user_version").fetch_one(pool).await).await
    }

    /// The file.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.inner.path
    }

    /// How much is kept; costs the same however much that is.
    ///
    /// # Errors
    /// [`Error::Sqlite`], [`Error::Damaged`].
    pub async fn usage(&self) -> Result<Usage, Error> {
        let query = "SELECT records, pages, bytes FROM total";
        let (records, pages, bytes): (i64, i64, i64) =
            self.run(async |pool| sqlx::query_as(query).fetch_one(pool).await).await?;
        let file_bytes = fs::metadata(&self.inner.path).map(|found| found.len()).unwrap_or_default();
        let count = |number: i64| u64::try_from(number).unwrap_or_default();
        Ok(Usage { records: count(records), pages: count(pages), bytes: count(bytes), file_bytes })
    }

    /// Removes what is older than the time to live at `now`, in small steps, and gives the room back to the file system.
    ///
    /// # Errors
    /// [`Error::Sqlite`], [`Error::Damaged`].
    pub async fn sweep(&self, now: Timestamp) -> Result<Swept, Error> {
        const RECORDS: &str = "DELETE FROM record WHERE (kind, id) IN \
            (SELECT kind, id FROM record WHERE kept_us <= ?1 OR kept_us > ?2 LIMIT ?3)";
        const PAGES: &str = "DELETE FROM page WHERE rowid IN \
            (SELECT rowid FROM page WHERE kept_us <= ?1 OR kept_us > ?2 LIMIT ?3)";
        let window = self.window(now);
        let swept = Swept { records: self.remove(RECORDS, window).await?, pages: self.remove(PAGES, window).await? };
        if swept != Swept::default() {
            self.run(async |pool| sqlx::raw_sql(VACUUM).execute(pool).await).await?;
        }
        Ok(swept)
    }

    /// Deletes by a statement that takes the window and a limit, again and again until it finds nothing more.
    async fn remove(&self, statement: &'static str, window: Window) -> Result<u64, Error> {
        let mut removed = 0;
        loop {
            let delete = async |pool: &SqlitePool| {
                let query = sqlx::query(statement).bind(window.after).bind(window.until).bind(SWEEP_ROWS);
                query.execute(pool).await
            };
            let gone = self.run(delete).await?.rows_affected();
            removed += gone;
            if gone < SWEEP_ROWS.unsigned_abs() {
                return Ok(removed);
            }
        }
    }

    /// Writes everything into the file and closes it.
    pub async fn close(&self) {
        self.inner.pool.read().await.close().await;
    }

    /// What counts at `now`: kept after the first and not after the second, in microseconds. A clock that was set back does
    /// not make things live longer: what was kept in the future does not count.
    pub(crate) fn window(&self, now: Timestamp) -> Window {
        let ttl = i64::try_from(self.inner.settings.ttl.as_micros()).unwrap_or(i64::MAX);
        Window { after: now.as_micros().saturating_sub(ttl), until: now.as_micros() }
    }

    /// Runs `act` on the pool. When the file proves to be damaged an empty one takes its place.
    pub(crate) async fn run<T>(
        &self,
        act: impl AsyncFnOnce(&SqlitePool) -> Result<T, sqlx::Error>,
    ) -> Result<T, Error> {
        let pool = self.inner.pool.read().await.clone();
        match act(&pool).await {
            Ok(value) => Ok(value),
            Err(error) if is_damage(&error) => {
                self.begin_anew(&pool).await;
                Err(Error::Damaged)
            }
            Err(error) => Err(error.into()),
        }
    }

    /// Sets the damaged file aside, once for all who found it damaged.
    async fn begin_anew(&self, damaged: &SqlitePool) {
        let mut pool = self.inner.pool.write().await;
        // Who came first has closed it.
        if damaged.is_closed() {
            return;
        }
        damaged.close().await;
        let path = &self.inner.path;
        let replaced = match set_aside(path) {
            Ok(aside) => connect(path).await.map(|fresh| (fresh, aside)),
            Err(source) => Err(OpenError::Io { path: path.clone(), source }),
        };
        match replaced {
            Ok((fresh, aside)) => {
                tracing::warn!(path = %aside.display(), "the cache was damaged: it was set aside, and begins anew");
                *pool = fresh;
            }
            Err(error) => {
                tracing::error!(error = &error as &dyn std::error::Error, "the cache is damaged and cannot begin anew");
            }
        }
    }

    /// Makes room inside of the transaction that brought something in: the oldest pages go first, then the oldest records.
    pub(crate) async fn evict(&self, connection: &mut sqlx::SqliteConnection) -> Result<(), sqlx::Error> {
        const PAGES: &str = "DELETE FROM page WHERE rowid IN (SELECT rowid FROM page ORDER BY kept_us LIMIT 1)";
        const RECORDS: &str =
            "DELETE FROM record WHERE (kind, id) IN (SELECT kind, id FROM record ORDER BY kept_us LIMIT 1)";
        let most = i64::try_from(self.inner.settings.max_bytes).unwrap_or(i64::MAX);
        loop {
            let bytes: i64 = sqlx::query_scalar("SELECT bytes FROM total").fetch_one(&mut *connection).await?;
            if bytes <= most {
                return Ok(());
            }
            // One at a time: what came is the youngest, and must not go with the oldest.
            let mut gone = sqlx::query(PAGES).execute(&mut *connection).await?.rows_affected();
            if gone == 0 {
                gone = sqlx::query(RECORDS).execute(&mut *connection).await?.rows_affected();
            }
            if gone == 0 {
                return Ok(());
            }
        }
    }
}

/// See [`Cache::window`].
#[derive(Debug, Clone, Copy)]
pub(crate) struct Window {
    pub(crate) after: i64,
    pub(crate) until: i64,
}

/// The directory and the file, closed to others before SQLite makes anything in them.
fn prepare(directory: &Path, path: &Path) -> io::Result<()> {
    match DirBuilder::new().mode(0o700).create(directory) {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists && directory.is_dir() => {
            fs::set_permissions(directory, fs::Permissions::from_mode(0o700))?;
        }
        made => made?,
    }
    OpenOptions::new().create(true).truncate(false).write(true).mode(0o600).open(path)?;
    Ok(())
}

async fn connect(path: &Path) -> Result<SqlitePool, OpenError> {
    let failed = |source| OpenError::Sqlite { path: path.to_owned(), source };
    // Before anything is set that would stand in the file: it may be somebody else's.
    let mut first = SqliteConnectOptions::new().filename(path).connect().await.map_err(failed)?;
    let found = schema::examine(&mut first).await.map_err(failed)?;
    first.close().await.map_err(failed)?;
    match found {
        Found::Ours => {}
        Found::Foreign => return Err(OpenError::Foreign { path: path.to_owned() }),
        Found::Newer(found, known) => return Err(OpenError::Newer { found, known }),
    }
    let options = SqliteConnectOptions::new()
        .filename(path)
        // Before the first table: the file remembers it.
        .auto_vacuum(SqliteAutoVacuum::Incremental)
        .journal_mode(SqliteJournalMode::Wal)
        // A power cut may take the last transactions and never the file; they can be fetched again.
        .synchronous(SqliteSynchronous::Normal)
        .busy_timeout(BUSY)
        .pragma("journal_size_limit", JOURNAL_BYTES.to_string())
        // What stands in the file is data of others: no function runs because its schema says so.
        .pragma("trusted_schema", "OFF")
        .pragma("cell_size_check", "ON");
    let pool = SqlitePoolOptions::new().max_connections(CONNECTIONS).connect_with(options).await.map_err(failed)?;
    let migrated = match pool.acquire().await {
        Ok(mut connection) => schema::migrate(&mut connection).await,
        Err(error) => Err(error),
    };
    if let Err(source) = migrated {
        pool.close().await;
        return Err(failed(source));
    }
    Ok(pool)
}

/// Moves the file away, over what was set aside before; what SQLite kept beside it goes.
fn set_aside(path: &Path) -> io::Result<PathBuf> {
    let with = |suffix: &str| {
        let mut name = path.as_os_str().to_owned();
        name.push(suffix);
        PathBuf::from(name)
    };
    let aside = with(DAMAGED);
    fs::rename(path, &aside)?;
    for suffix in BESIDE {
        match fs::remove_file(with(suffix)) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
    }
    OpenOptions::new().create(true).truncate(false).write(true).mode(0o600).open(path)?;
    Ok(aside)
}
