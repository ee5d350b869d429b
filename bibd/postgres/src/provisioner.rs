//! What every provisioner of PostgreSQL can do. The daemon knows only this.
//!
//! Three provisioners are foreseen: [`process`](crate::process), container and kubernetes.

use async_trait::async_trait;
use sqlx::postgres::PgConnectOptions;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::error::Error;
use crate::role::Login;
use crate::version::Version;

/// A PostgreSQL that BIB creates, starts and stops.
#[async_trait]
pub trait ManagedPostgres: Send + Sync {
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

    /// The version of the server's binaries.
    ///
    /// # Errors
    /// When no usable binaries are found.
    async fn version(&self) -> Result<Version, Error>;

    /// The state as supervision sees it; see [`supervise`](Self::supervise).
    fn state(&self) -> watch::Receiver<State>;

    /// Watches a started server until `cancel`: restarts it after a crash, with back-off and jitter, and reports
    /// each change on [`state`](Self::state). Does not stop the server when cancelled.
    async fn supervise(&self, cancel: CancellationToken);
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
