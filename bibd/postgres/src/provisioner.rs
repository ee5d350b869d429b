//! What every provisioner of PostgreSQL can do. The daemon knows only this.
//!
//! There are three provisioners: [`process`](crate::process), [`container`](crate::container) and
//! [`kubernetes`](crate::kubernetes).

use std::io::{PipeReader, Read};
use std::path::{Path, PathBuf};
use std::time::Duration;

use async_trait::async_trait;
use secrecy::SecretString;
use sqlx::postgres::PgConnectOptions;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::account::Account;
use crate::backup::{BaseBackup, Origin};
use crate::checklist::Facts;
use crate::dump::{Dump, LoadError};
use crate::error::Error;
use crate::receive::Programs;
use crate::record::Choice;
use crate::role::Login;
use crate::settings::Layout;
use crate::tcp::Endpoint;
use crate::version::Version;

/// One run of one of PostgreSQL's programs beside a server.
#[derive(Debug)]
pub struct Program<'a> {
    /// Its name.
    pub name: &'static str,
    /// What it is told. Nothing secret: other users of the machine can read it.
    pub arguments: &'a [String],
    /// Directories that it works in.
    pub places: &'a [PathBuf],
    /// A file in one of them that is its standard input.
    pub input: Option<&'a Path>,
    /// The server that it connects to, by its socket's directory, and as whom.
    pub server: Option<(&'a Path, &'a Login)>,
    /// How long it may take.
    pub deadline: Duration,
}

/// A PostgreSQL that BIB creates, starts and stops.
#[async_trait]
pub trait ManagedPostgres: Send + Sync {
    /// Which provisioner this is.
    fn choice(&self) -> Choice;

    /// Creates the server's files when there are none, and finishes what a crash interrupted. Never initialises over
    /// existing state. Idempotent; must precede [`start`](Self::start).
    ///
    /// # Errors
    /// Refuses with the reason when files, identity or secrets do not belong together; see [`Error::hint`].
    async fn provision(&self) -> Result<Provisioned, Error>;

    /// Starts the server, or adopts our own that is still running, and returns when it accepts connections.
    ///
    /// # Errors
    /// With the last lines of the server's log when it does not come up within its deadline.
    async fn start(&self) -> Result<Started, Error>;

    /// Stops the server and verifies how it ended. Stopping a stopped server succeeds.
    ///
    /// # Errors
    /// When it does not end within its deadline or did not shut down cleanly.
    async fn stop(&self, mode: Stop) -> Result<(), Error>;

    /// Asks the server now; waits at most two seconds.
    async fn health(&self) -> Health;

    /// How to connect as `login`. The options print their password under `Debug`: never print them.
    fn connect_options(&self, login: &Login) -> PgConnectOptions;

    /// Where the server is reached over TCP; nothing where it is through a socket.
    fn endpoint(&self) -> Option<&Endpoint> {
        None
    }

    /// This machine's programs for receiving the log of a server that is reached over TCP; nothing where the server puts
    /// it into the spool itself.
    ///
    /// # Errors
    /// When none are found.
    async fn log_programs(&self) -> Result<Option<Programs>, Error> {
        Ok(None)
    }

    /// Renews the certificates that are due and gives the server its files. Says whether any is another than before:
    /// then the server is to read them again. Nothing happens where there is no TLS. It is
    /// [`Database::renew_certificates`](crate::Database::renew_certificates) that is to be called.
    ///
    /// # Errors
    /// [`Error::SecretStore`], [`Error::Io`] and others of [`Authority::ensure`](crate::tcp::Authority::ensure).
    async fn renew_certificates(&self) -> Result<bool, Error> {
        Ok(false)
    }

    /// Gives the superuser its next password where somebody else than us keeps the role as it is, and would undo what is
    /// set over SQL. Says whether that was done: then nobody else is to do it, and it works. Until this returns either
    /// password may be the one that does.
    ///
    /// # Errors
    /// What a cluster says; [`Error::Kubernetes`] where it does not come to work in time: to be called again.
    async fn give_superuser(&self, _next: &SecretString) -> Result<bool, Error> {
        Ok(false)
    }

    /// The version of the server's binaries.
    ///
    /// # Errors
    /// When no usable binaries are found.
    async fn version(&self) -> Result<Version, Error>;

    /// Looks at the server's files, its process and its walls, for [`checklist::audit`](crate::checklist::audit).
    ///
    /// # Errors
    /// [`Error::Io`] when a place cannot be looked at; what a container engine says.
    async fn facts(&self) -> Result<Facts, Error>;

    /// Where everything of this server lies.
    fn layout(&self) -> &Layout;

    /// Which server this is.
    ///
    /// # Errors
    /// When there is no cluster or it cannot be read.
    async fn origin(&self) -> Result<Origin, Error>;

    /// Begins a backup as `login` (of `bibd_backup`). The second value is read to its end: one tar file with the whole
    /// cluster, the log that makes it consistent, and PostgreSQL's own list of it. Then [`BaseBackup::finish`].
    ///
    /// # Errors
    /// When the server does not answer, or the program cannot be run.
    async fn base_backup(&self, login: &Login, label: &str) -> Result<(BaseBackup, PipeReader), Error>;

    /// Begins a logical dump as `login` (of `bibd_backup`): everything of ours in its database, in one snapshot. The
    /// second value is read to its end: one file that `pg_restore` of this major version and every later one reads. Then
    /// [`Dump::finish`].
    ///
    /// # Errors
    /// When the server does not answer, a table stays locked, or the program cannot be run.
    async fn dump(&self, login: &Login) -> Result<(Dump, PipeReader), Error>;

    /// Loads a dump as `login`, which is a member of the owner. It is
    /// [`Database::load_dump`](crate::Database::load_dump) that is to be called.
    ///
    /// # Errors
    /// [`LoadError`].
    async fn load(&self, login: &Login, dump: Box<dyn Read + Send>) -> Result<(), LoadError>;

    /// Looks at the files of an unpacked backup as PostgreSQL itself does: each against its list, and the log.
    ///
    /// # Errors
    /// [`Error::Tool`] naming the first files that are not what they should be.
    async fn verify_files(&self, data: &Path) -> Result<(), Error>;

    /// Prepares the place of a cluster that comes from a backup made by `major`: the first of two durable steps. The
    /// cluster is unpacked into the returned directory, for the returned user.
    ///
    /// # Errors
    /// When there is a cluster already, or no programs of that version.
    async fn begin_restore(&self, major: u32) -> Result<(PathBuf, Account), Error>;

    /// Puts the unpacked cluster in its place, to be recovered by the next start: the second step.
    ///
    /// # Errors
    /// When it is another cluster than the backup said.
    async fn finish_restore(&self, expected: u64) -> Result<(), Error>;

    /// Makes a cluster that was recovered and stopped an ordinary one: what recovery left goes, and the superuser gets
    /// a new password past every login, since recovery may have led beyond a rotation whose passwords the backup does
    /// not know. `now_s` is in seconds since 1970. The other logins get theirs by
    /// [`Database::rotate`](crate::Database::rotate) as soon as the server runs.
    ///
    /// # Errors
    /// [`Error::Tool`], [`Error::SecretsMissing`], [`Error::SecretStore`], [`Error::Io`].
    async fn settle_restore(&self, now_s: i64) -> Result<(), Error>;

    /// The server's container, as its engine knows it now; nothing when it is a process.
    ///
    /// # Errors
    /// What a container engine says.
    async fn container(&self) -> Result<Option<Contained>, Error>;

    /// Removes what stands for the server outside of its directories: its container. It must have been stopped.
    ///
    /// # Errors
    /// What a container engine says.
    async fn dismantle(&self) -> Result<(), Error>;

    /// Where the server's data lies when it is not in its directories, for whoever is asked whether it may go. Nothing
    /// where there is none.
    ///
    /// # Errors
    /// What a cluster says.
    async fn data_elsewhere(&self) -> Result<Option<String>, Error> {
        Ok(None)
    }

    /// Removes that data, for ever. The server must have been dismantled.
    ///
    /// # Errors
    /// What a cluster says.
    async fn remove_data(&self) -> Result<(), Error> {
        Ok(())
    }

    /// Runs one of PostgreSQL's programs of this server's version, as its user, to its end. This server need not run.
    ///
    /// # Errors
    /// [`Error::Tool`] with what it said; [`Error::Deadline`]; [`Error::UpgradeElsewhere`] where programs cannot be run
    /// beside the server.
    async fn run(&self, program: Program<'_>) -> Result<(), Error> {
        tracing::debug!(program = program.name, "there is nowhere to run it");
        Err(Error::UpgradeElsewhere { choice: self.choice().name() })
    }

    /// The state as supervision sees it; see [`supervise`](Self::supervise).
    fn state(&self) -> watch::Receiver<State>;

    /// Watches a started server until `cancel`: restarts it after a crash, with back-off and jitter, and reports
    /// each change on [`state`](Self::state). Does not stop the server when cancelled.
    async fn supervise(&self, cancel: CancellationToken);
}

/// A server's container, or its pod.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Contained {
    /// Its name.
    pub name: String,
    /// The engine, its version, its socket.
    pub engine: String,
    /// The image's name, as configured.
    pub image: String,
    /// The image's digest in its registry; its id where it never was in one. Empty when there is no container.
    pub digest: String,
}

/// What [`ManagedPostgres::provision`] found or did.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Provisioned {
    /// Whether the server's files were created by this call.
    pub created: bool,
    /// The version of the binaries in use.
    pub version: Version,
    /// PostgreSQL's name of this cluster.
    pub system_identifier: u64,
}

/// How [`ManagedPostgres::start`] came by a running server.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Started {
    /// A new server process.
    Spawned,
    /// Our own server, left running by a daemon that died.
    Adopted,
    /// It was started before by this same object.
    AlreadyRunning,
}

/// How to stop.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stop {
    /// Checkpoint, then fast shutdown: transactions in flight are aborted, everything is on disk.
    Clean,
    /// At once, without a checkpoint: the next start recovers from the log.
    Immediate,
}

/// The server's health at one moment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Health {
    /// Accepts connections.
    Ready,
    /// Runs, but is starting up, recovering or shutting down.
    Starting,
    /// The process exists but does not answer, or refuses everybody.
    Degraded {
        /// Why, in one sentence.
        reason: String,
    },
    /// No server runs.
    Stopped,
}

/// The server's state over time, as supervision sees it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum State {
    /// Not started, or stopped on purpose.
    Stopped,
    /// Being started.
    Starting,
    /// Accepts connections.
    Running,
    /// Runs but does not answer.
    Degraded {
        /// Why, in one sentence.
        reason: String,
    },
    /// Ended by itself; the next start comes after a pause.
    Crashed {
        /// How many times in a row.
        attempt: u32,
        /// Why, in one sentence.
        reason: String,
    },
}
