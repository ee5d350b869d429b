//! The write-ahead log of a server that is reached over TCP: PostgreSQL's own `pg_receivewal` streams it into a
//! directory beside the spool, and finished segments go over into the spool, from where they are shipped as everywhere.
//!
//! The server keeps the log from what the slot [`SLOT`] has confirmed on, so that a program that dies, a network that
//! breaks and a spool that is full lose nothing: what comes next is asked for again. What came last stays beside the
//! spool, so that the program goes on after it, also when the server has not heard of it yet. The server keeps no more than
//! `max_slot_wal_keep_size`; past that the log has a gap, which is said, and streaming begins anew after it.
//!
//! Doors: [`Receiver::run`] under the daemon's supervisor, [`Receiver::state`], [`retained`].

use std::convert::Infallible;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::Arc;
use std::time::Duration;

use sqlx::postgres::PgConnection;
use sqlx::{ConnectOptions as _, Connection as _, Row as _};
use tokio::io::AsyncReadExt as _;
use tokio::process::ChildStderr;
use tokio::sync::watch;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::account::Account;
use crate::database::Database;
use crate::error::Error;
use crate::file;
use crate::role::{GroupRole, Login};
use crate::settings::Wal;
use crate::tcp::{Endpoint, ToolFiles};
use crate::tool;
use crate::wal::Segment;

/// The replication slot that holds the log until it is here.
pub const SLOT: &str = "bibd_archive";
/// What its sessions are called in the server. A rotation ends them without waiting: they come back by themselves.
pub(crate) const APPLICATION: &str = "bibd receiver";
const TOOL: &str = "pg_receivewal";

/// Beside the program's files: the name of the last segment that is in the spool, or was.
const TAKEN: &str = "taken";
/// How often finished segments are looked for.
const STEP: Duration = Duration::from_millis(200);
/// How often it is looked whether the spool has room again.
const FULL_STEP: Duration = Duration::from_secs(1);
/// Who streamed for so long has recovered: the next end begins a new count.
const SETTLED: Duration = Duration::from_secs(60);
const FIRST_PAUSE: Duration = Duration::from_millis(250);
const LONGEST_PAUSE: Duration = Duration::from_secs(30);
/// How long the server may take to say how it is with the slot.
const SLOT_DEADLINE: Duration = Duration::from_secs(10);
/// Characters of what the program says that are kept.
const SAID_BYTES: u64 = 8192;

/// The programs of this machine that talk to a server on another one.
#[derive(Debug, Clone)]
pub struct Programs {
    /// Where they are.
    pub bin_dir: PathBuf,
    /// Who runs them: the owner of the spool.
    pub account: Account,
}

/// How it goes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Receiving {
    /// The log comes.
    Streaming,
    /// The spool has no room: the server keeps its log meanwhile.
    Full,
    /// It does not come; the next try comes after a pause.
    Broken {
        /// How many times in a row.
        attempt: u32,
        /// Why, in one sentence.
        reason: String,
    },
}

/// What is known of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Reception {
    /// How it goes.
    pub now: Receiving,
    /// How often the server had to let go of log that had not come: backups from before end there.
    pub gaps: u32,
}

/// Receives the log of one server.
pub struct Receiver {
    database: Arc<Database>,
    programs: Programs,
    endpoint: Endpoint,
    spool: PathBuf,
    /// Where the program's certificates are while it runs.
    tls: PathBuf,
    max_files: usize,
    reserve_kb: u64,
    state: watch::Sender<Reception>,
}

/// Why receiving ended.
enum End {
    Full,
    Error(Error),
}

impl From<Error> for End {
    fn from(error: Error) -> Self {
        Self::Error(error)
    }
}

impl Receiver {
    /// The receiver for `database`; nothing where its server hands out its log itself, or nobody wants it.
    ///
    /// # Errors
    /// When no programs are found.
    pub async fn of(database: &Arc<Database>, wal: &Wal) -> Result<Option<Self>, Error> {
        let server = &database.server;
        let (Some(endpoint), &Wal::Archive { max_files, reserve_kb, .. }) = (server.endpoint(), wal) else {
            return Ok(None);
        };
        let Some(programs) = server.log_programs().await? else { return Ok(None) };
        let now = Receiving::Broken { attempt: 0, reason: "it has not begun".to_owned() };
        Ok(Some(Self {
            database: database.clone(),
            programs,
            endpoint: endpoint.clone(),
            spool: server.layout().spool.clone(),
            tls: server.layout().socket_dir.join("receiver"),
            max_files: usize::try_from(max_files).unwrap_or(usize::MAX),
            reserve_kb,
            state: watch::Sender::new(Reception { now, gaps: 0 }),
        }))
    }

    /// How it goes, over time.
    pub fn state(&self) -> watch::Receiver<Reception> {
        self.state.subscribe()
    }

    /// Receives until `stop`. What ends by itself is begun again, with back-off.
    pub async fn run(&self, stop: CancellationToken) {
        stop.run_until_cancelled(self.run_for_ever()).await;
    }

    async fn run_for_ever(&self) {
        let mut attempt = 0;
        loop {
            let begun = Instant::now();
            let Err(end) = self.receive().await;
            if begun.elapsed() >= SETTLED {
                attempt = 0;
            }
            match end {
                End::Full => {
                    tracing::warn!("the spool of the log is full; the server keeps its log meanwhile");
                    self.now(Receiving::Full);
                    while !self.has_room().unwrap_or(false) {
                        tokio::time::sleep(FULL_STEP).await;
                    }
                }
                End::Error(error) => {
                    attempt += 1;
                    let doubled = FIRST_PAUSE.saturating_mul(1 << (attempt - 1).min(16));
                    let pause = doubled.min(LONGEST_PAUSE).mul_f64(self.database.random.jitter());
                    let cause =
                        std::error::Error::source(&error).map_or_else(String::new, |cause| format!(": {cause}"));
                    let reason = format!("{error}{cause}");
                    tracing::warn!(attempt, pause_ms = pause.as_millis(), %reason, "the server's log does not come");
                    self.now(Receiving::Broken { attempt, reason });
                    tokio::time::sleep(pause).await;
                }
            }
        }
    }

    fn now(&self, now: Receiving) {
        self.state.send_if_modified(|state| {
            let changed = state.now != now;
            state.now = now;
            changed
        });
    }

    /// Streams until that ends. Dropped, the program is ended: what it did not finish is asked for again.
    async fn receive(&self) -> Result<Infallible, End> {
        let login = self.database.login(GroupRole::Backup)?;
        self.take_over()?;
        if !self.has_room()? {
            return Err(End::Full);
        }
        self.ensure_slot(&login).await?;
        let incoming = self.incoming();
        let account = self.programs.account;
        file::ensure_dir(&incoming, account.uid, account.gid, 0o700)?;
        self.drop_unfinished()?;
        let files = ToolFiles::write(self.tls.clone(), &self.endpoint, &login, account)?;
        let program = self.programs.bin_dir.join(TOOL);
        let mut command = tool::command(&program, account);
        command
            .arg("--directory")
            .arg(&incoming)
            .arg(format!("--slot={SLOT}"))
            .arg(format!("--dbname={} application_name='{APPLICATION}'", files.connection()))
            .args(["--no-password", "--no-loop", "--verbose"])
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .kill_on_drop(true);
        let mut child = command.spawn().map_err(Error::io("run", &program))?;
        let stderr = child.stderr.take();
        let mut said = std::pin::pin!(read_all(stderr));
        let mut words = None;
        loop {
            tokio::select! {
                text = &mut said, if words.is_none() => words = Some(text),
                ended = child.wait() => {
                    let status = ended.map_err(Error::io("wait for", &program))?.to_string();
                    // What was finished before the end is taken.
                    self.take_over()?;
                    let output = match words {
                        Some(words) => words,
                        None => said.await,
                    };
                    return Err(End::Error(Error::Tool { tool: TOOL, status, output: tool::tail(&output) }));
                }
                () = tokio::time::sleep(STEP) => {
                    if !self.take_over()? {
                        return Err(End::Full);
                    }
                    self.now(Receiving::Streaming);
                }
            }
        }
    }

    /// What was begun comes anew from the segment's begin, which the server keeps. The program would go on with it, but
    /// refuses one that it had not given its full size when it died.
    fn drop_unfinished(&self) -> Result<(), Error> {
        let incoming = self.incoming();
        for entry in std::fs::read_dir(&incoming).map_err(Error::io("list", &incoming))? {
            let path = entry.map_err(Error::io("list", &incoming))?.path();
            if path.extension().is_some_and(|extension| extension == "partial") {
                file::remove(&path)?;
            }
        }
        Ok(())
    }

    /// Makes the slot where there is none. One whose log the server had to let go of is made anew, and that is a gap. A
    /// session that a former daemon left on it is ended.
    async fn ensure_slot(&self, login: &Login) -> Result<(), Error> {
        const WHAT: &str = "look at the slot of the log";
        let options = self.endpoint.options(login).application_name(APPLICATION).disable_statement_logging();
        let look = async {
            let mut connection = PgConnection::connect_with(&options).await?;
            let row = sqlx::query(
                "SELECT coalesce(wal_status, ''), active_pid
                 FROM pg_catalog.pg_replication_slots
                 WHERE slot_name = $1",
            )
            .bind(SLOT)
            .fetch_optional(&mut connection)
            .await?;
            let status = row.as_ref().map(|row| row.get::<String, _>(0));
            if let Some(pid) = row.and_then(|row| row.get::<Option<i32>, _>(1)) {
                sqlx::query("SELECT pg_catalog.pg_terminate_backend($1, 5000)")
                    .bind(pid)
                    .execute(&mut connection)
                    .await?;
            }
            let is_lost = status.as_deref() == Some("lost");
            let is_new = is_lost || status.is_none();
            if is_lost {
                let sql = "SELECT pg_catalog.pg_drop_replication_slot($1)";
                sqlx::query(sql).bind(SLOT).execute(&mut connection).await?;
            }
            if is_new {
                let sql = "SELECT pg_catalog.pg_create_physical_replication_slot($1, true)";
                sqlx::query(sql).bind(SLOT).execute(&mut connection).await?;
            }
            connection.close().await?;
            Ok(is_new)
        };
        let is_new = tokio::time::timeout(SLOT_DEADLINE, look)
            .await
            .map_err(|_| Error::Deadline { what: WHAT, deadline: SLOT_DEADLINE })?
            .map_err(Error::sql(WHAT))?;
        if is_new && file::exists(&self.incoming())? {
            // What came before continues nothing.
            std::fs::remove_dir_all(self.incoming()).map_err(Error::io("remove", self.incoming()))?;
            tracing::error!("the server did not keep its log: it has a gap, and a new backup is needed");
            self.state.send_modify(|state| state.gaps += 1);
        }
        Ok(())
    }

    fn incoming(&self) -> PathBuf {
        self.spool.join("incoming")
    }

    /// Puts finished segments into the spool, in order, each once. Says whether all found room. The last of them stays
    /// where it is, too: there the program sees what comes next.
    fn take_over(&self) -> Result<bool, Error> {
        let incoming = self.incoming();
        let taken_path = incoming.join(TAKEN);
        let mut taken = std::fs::read_to_string(&taken_path).unwrap_or_default();
        let names = finished(&incoming)?;
        let last = names.iter().rfind(|name| Segment::parse(name).is_some());
        for name in &names {
            let (from, to) = (incoming.join(name), self.spool.join(name));
            let is_segment = Segment::parse(name).is_some();
            if !is_segment || *name > taken {
                if !self.has_room()? {
                    return Ok(false);
                }
                // The program has synced the file and its name. One that is there was put there before a death.
                match std::fs::hard_link(&from, &to) {
                    Err(error) if error.kind() != std::io::ErrorKind::AlreadyExists => {
                        return Err(Error::io("link to", &to)(error));
                    }
                    _ => file::sync_dir(&self.spool)?,
                }
            }
            if is_segment && *name > taken {
                taken.clone_from(name);
                file::replace(&taken_path, taken.as_bytes(), Some(self.programs.account))?;
            }
            if Some(name) != last {
                file::remove(&from)?;
            }
        }
        Ok(true)
    }

    /// As `wal::archive_command` counts: so many files, and a reserve of the disk, but one file always.
    fn has_room(&self) -> Result<bool, Error> {
        let files = finished(&self.spool)?.len();
        if files == 0 {
            return Ok(true);
        }
        let room = rustix::fs::statvfs(&self.spool).map_err(|error| Error::io("look at", &self.spool)(error.into()))?;
        Ok(files < self.max_files && room.f_bavail.saturating_mul(room.f_frsize) >> 10 >= self.reserve_kb)
    }
}

/// Segments and histories in `directory` that are complete, in order.
fn finished(directory: &Path) -> Result<Vec<String>, Error> {
    let mut names = crate::wal::spooled(directory)?;
    names.retain(|name| Segment::parse(name).is_some() || name.ends_with(".history"));
    Ok(names)
}

/// The end of what a program says, read all the while so that it never waits for a reader.
async fn read_all(stderr: Option<ChildStderr>) -> String {
    let Some(mut stderr) = stderr else { return String::new() };
    let (mut kept, mut buffer) = (Vec::new(), [0_u8; 1024]);
    while let Ok(count @ 1..) = stderr.read(&mut buffer).await {
        kept.extend_from_slice(&buffer[..count]);
        let surplus = kept.len().saturating_sub(usize::try_from(SAID_BYTES).unwrap_or(usize::MAX));
        kept.drain(..surplus);
    }
    String::from_utf8_lossy(&kept).into_owned()
}

/// What the server keeps for the slot.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Retained {
    /// Somebody streams.
    pub is_active: bool,
    /// `reserved`, `extended`, `unreserved`, `lost`.
    pub status: String,
    /// Log that has not come, bytes.
    pub bytes: u64,
}

/// What the server keeps for the slot, asked as `bibd_monitor`; nothing where there is none.
///
/// # Errors
/// [`Error::Sql`].
pub async fn retained(monitor: &mut PgConnection) -> Result<Option<Retained>, Error> {
    let row = sqlx::query(
        "SELECT active,
                coalesce(wal_status, ''),
                coalesce(pg_catalog.pg_wal_lsn_diff(pg_catalog.pg_current_wal_lsn(), restart_lsn), 0)::bigint
         FROM pg_catalog.pg_replication_slots
         WHERE slot_name = $1",
    )
    .bind(SLOT)
    .fetch_optional(monitor)
    .await
    .map_err(Error::sql("ask what is kept of the log"))?;
    Ok(row.map(|row| Retained {
        is_active: row.get(0),
        status: row.get(1),
        bytes: u64::try_from(row.get::<i64, _>(2)).unwrap_or_default(),
    }))
}
