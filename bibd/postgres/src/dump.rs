//! PostgreSQL's part of a logical dump: `pg_dump` as a stream in one snapshot, and `pg_restore` fed by one.
//!
//! A [`Dump`] is begun by [`ManagedPostgres::dump`] as `bibd_backup` and read to its end;
//! [`Database::load_dump`] writes one into an empty database as the owner of everything. In between it is bytes: nothing
//! here keeps them in memory or in a file, or knows of keys, stores or manifests of ours.

use std::collections::BTreeMap;
use std::io::{self, PipeReader, Read, Write as _};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use sqlx::postgres::PgConnection;
use sqlx::{AssertSqlSafe, ConnectOptions as _, Connection as _};

use crate::backup::Way;
use crate::database::Database;
use crate::error::Error;
use crate::host::{Host, Piped};
use crate::managed::Managed;
use crate::pipe::{self, Fifo};
use crate::provisioner::{ManagedPostgres, Program};
use crate::role::{DATABASE, GroupRole, Login, OWNER};
use crate::superuser::silent;
use crate::tool::tail;
use crate::upgrading::content;

const DUMP: &str = "pg_dump";
const LOAD: &str = "pg_restore";
/// How long `pg_dump` waits for a table that somebody changes.
const LOCK_WAIT: Duration = Duration::from_secs(60);
/// Loading the largest database that anybody would restore in this way.
const LOAD_DEADLINE: Duration = Duration::from_secs(7 * 24 * 60 * 60);
/// The pipe that `pg_restore` reads, in the private directory of the socket.
const FEED: &str = "load.pipe";
const BUFFER_BYTES: usize = 256 * 1024;
/// How often it is looked whether the program has opened the pipe.
const LOOK_EVERY: Duration = Duration::from_millis(20);

/// Rows by table; a partitioned table counts as one.
pub type Rows = BTreeMap<String, u64>;

/// A running `pg_dump`. Dropped, it is ended.
pub struct Dump {
    end: Piped,
    /// Holds the snapshot, and every table as it is, for as long as it lives.
    snapshot: PgConnection,
    tables: Vec<String>,
    _way: Way,
}

/// See [`ManagedPostgres::dump`].
pub(crate) async fn begin<H: Host>(
    postgres: &dyn ManagedPostgres,
    host: &H,
    login: &Login,
) -> Result<(Dump, PipeReader), Error> {
    let tools = host.tools().await?;
    let options = silent(postgres.connect_options(login));
    let opened = async {
        let mut connection = options.connect().await?;
        let shape = content::shape(&mut connection).await?;
        let tables = tables(&mut connection, &shape.schemas).await?;
        let name = hold(&mut connection, &tables).await?;
        Ok((connection, shape, tables, name))
    };
    let (snapshot, shape, tables, name) = opened.await.map_err(Error::sql("hold a snapshot for a dump"))?;
    let (way, mut arguments) = Way::to(postgres, login, tools.account, Some(DATABASE))?;
    arguments.extend([
        "--no-password".to_owned(),
        "--format=custom".to_owned(),
        // Whoever reads compresses.
        "--compress=0".to_owned(),
        format!("--snapshot={name}"),
        format!("--lock-wait-timeout={}", LOCK_WAIT.as_millis()),
    ]);
    arguments.extend(shape.selection());
    let (end, reader) = host.pipe(tools, DUMP, &arguments, &way.password()).await?;
    Ok((Dump { end, snapshot, tables, _way: way }, reader))
}

/// Tables of these schemas by their quoted names, partitions left out.
async fn tables(connection: &mut PgConnection, schemas: &[String]) -> Result<Vec<String>, sqlx::Error> {
    sqlx::query_scalar(
        "SELECT pg_catalog.format('%I.%I', n.nspname, c.relname)
         FROM pg_catalog.pg_class c
         JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
         WHERE c.relkind IN ('r', 'p') AND NOT c.relispartition AND n.nspname = ANY($1)
         ORDER BY 1",
    )
    .bind(schemas)
    .fetch_all(connection)
    .await
}

/// Begins a transaction that sees one moment and exports it. The tables are locked before the moment is taken: no
/// partition leaves in between, which a snapshot alone would not keep.
async fn hold(connection: &mut PgConnection, tables: &[String]) -> Result<String, sqlx::Error> {
    let begin = "SET idle_session_timeout = 0;
                 SET idle_in_transaction_session_timeout = 0;
                 BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY";
    sqlx::raw_sql(begin).execute(&mut *connection).await?;
    if !tables.is_empty() {
        // The names are quoted by the server.
        let lock = format!("LOCK TABLE {} IN ACCESS SHARE MODE", tables.join(", "));
        sqlx::raw_sql(AssertSqlSafe(lock)).execute(&mut *connection).await?;
    }
    sqlx::query_scalar("SELECT pg_catalog.pg_export_snapshot()").fetch_one(connection).await
}

async fn count(connection: &mut PgConnection, tables: Vec<String>) -> Result<Rows, sqlx::Error> {
    let mut rows = Rows::new();
    for table in tables {
        // The names are quoted by the server.
        let question = format!("SELECT pg_catalog.count(*) FROM {table}");
        let answer: i64 = sqlx::query_scalar(AssertSqlSafe(question)).fetch_one(&mut *connection).await?;
        rows.insert(table, u64::try_from(answer).unwrap_or_default());
    }
    Ok(rows)
}

impl Dump {
    /// Waits for the end of the program, whose output must have been read, and counts what it saw.
    ///
    /// # Errors
    /// [`Error::Tool`] with what it said; [`Error::Sql`]. Then nothing of what was read is worth anything.
    pub async fn finish(mut self) -> Result<Rows, Error> {
        let ended = self.end.await?;
        if let Some(status) = ended.failure {
            return Err(Error::Tool { tool: DUMP, status, output: tail(&ended.said) });
        }
        let counted = count(&mut self.snapshot, self.tables).await.map_err(Error::sql("count the rows of a dump"))?;
        // What was counted was counted: a failure to say goodbye changes nothing.
        let _ = self.snapshot.close().await;
        Ok(counted)
    }
}

/// Why a dump could not be loaded.
#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    /// The dump itself could not be read.
    #[error("read the dump")]
    Source(#[source] io::Error),
    /// PostgreSQL did not take it.
    #[error(transparent)]
    Postgres(#[from] Error),
}

impl Database {
    /// Rows of every table of ours.
    ///
    /// # Errors
    /// [`Error::Sql`]; as [`login`](Self::login).
    pub async fn count_rows(&self) -> Result<Rows, Error> {
        let options = silent(self.connect_options(GroupRole::Backup)?);
        let counted = async {
            let mut connection = options.connect().await?;
            let schemas = content::shape(&mut connection).await?.schemas;
            let tables = tables(&mut connection, &schemas).await?;
            let rows = count(&mut connection, tables).await?;
            // What was counted was counted: a failure to say goodbye changes nothing.
            let _ = connection.close().await;
            Ok(rows)
        };
        counted.await.map_err(Error::sql("count the rows"))
    }

    /// Loads a dump into the database, which has roles and nothing else; [`ensure_roles`](Self::ensure_roles) precedes and
    /// follows. `source` is read on a thread that may block.
    ///
    /// # Errors
    /// [`LoadError`]. What was loaded until then is worth nothing.
    pub async fn load_dump(&self, source: impl Read + Send + 'static) -> Result<(), LoadError> {
        let source = Box::new(source);
        let loaded = self.with_owner_login(|login| async move { self.server.load(&login, source).await });
        loaded.await?
    }
}

/// See [`ManagedPostgres::load`].
pub(crate) async fn load<H: Host>(
    postgres: &Managed<H>,
    login: &Login,
    source: Box<dyn Read + Send>,
) -> Result<(), LoadError> {
    let socket_dir = postgres.layout().socket_dir.clone();
    let path = socket_dir.join(FEED);
    let fifo = Fifo::make(&path, postgres.host.tools().await?.account)?;
    // Everything belongs to the owner, whoever made it there.
    let arguments = ["--exit-on-error".to_owned(), "--no-owner".to_owned(), format!("--role={OWNER}")];
    let program = Program {
        name: LOAD,
        arguments: &arguments,
        // The socket's directory, where the pipe is, comes with the server.
        places: &[],
        input: Some(fifo.path()),
        server: Some((&socket_dir, login)),
        deadline: LOAD_DEADLINE,
    };
    let over = Over(Arc::default());
    let is_over = Arc::clone(&over.0);
    let writing = tokio::task::spawn_blocking(move || write_into(&path, source, &is_over));
    let ran = postgres.run(program).await;
    drop(over);
    let lost = |error| LoadError::Source(io::Error::other(error));
    match writing.await.map_err(lost)? {
        // Also when the program succeeded: what it did not get it could not miss.
        Err(Stopped::Source(error)) => Err(LoadError::Source(error)),
        // Then the program says why.
        Err(Stopped::Target(_)) if ran.is_err() => Ok(ran?),
        Err(Stopped::Target(error)) => Err(error.into()),
        Ok(()) => Ok(ran?),
    }
}

/// Tells the thread that writes, when dropped, that nobody will read.
struct Over(Arc<AtomicBool>);

impl Drop for Over {
    fn drop(&mut self) {
        self.0.store(true, Ordering::SeqCst);
    }
}

/// Why the thread that writes stopped.
enum Stopped {
    Source(io::Error),
    Target(Error),
}

/// Waits for a reader, and writes everything to it.
fn write_into(path: &Path, mut source: impl Read, is_over: &AtomicBool) -> Result<(), Stopped> {
    let mut target = loop {
        // Asked before the look: a reader that is opening the pipe as the program is given up gets its end.
        let last = is_over.load(Ordering::SeqCst);
        match pipe::writer(path).map_err(Stopped::Target)? {
            Some(target) => break target,
            None if last => {
                let gone = io::Error::from(io::ErrorKind::BrokenPipe);
                return Err(Stopped::Target(Error::io("write to", path)(gone)));
            }
            None => std::thread::sleep(LOOK_EVERY),
        }
    };
    let mut buffer = vec![0; BUFFER_BYTES];
    loop {
        let read = match source.read(&mut buffer) {
            Ok(0) => return Ok(()),
            Ok(read) => read,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(error) => return Err(Stopped::Source(error)),
        };
        let written = target.write_all(&buffer[..read]);
        written.map_err(|error| Stopped::Target(Error::io("write to", path)(error)))?;
    }
}
