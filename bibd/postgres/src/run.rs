//! Starting, adopting, watching and stopping the server's process.
//!
//! The server outlives the daemon on purpose: transactions end well, and the next daemon adopts it. It is recognised
//! by what its host says, its user, and by being the one who listens on our socket.

use std::path::Path;
use std::time::Duration;

use rustix::process::Signal;
use sqlx::postgres::PgConnectOptions;
use sqlx::{ConnectOptions as _, Connection as _};
use tokio::time::Instant;

use crate::cluster::{Control, SHUT_DOWN};
use crate::database::login_of;
use crate::error::Error;
use crate::host::{Host, Running, Tools};
use crate::managed::Managed;
use crate::postmaster;
use crate::probe::Answer;
use crate::provisioner::{Health, ManagedPostgres as _, Started, State, Stop};
use crate::record::{Record, RecordState};
use crate::role::{GroupRole, Login};
use crate::secrets::{DbSecrets, SecretStore};

/// The server of this object, if it has one.
#[derive(Default)]
pub(crate) struct Server {
    running: Option<Running>,
    /// Whether it should run: a crash is then not a stop.
    wanted: bool,
}

/// Polls while a server starts or ends: fine steps first, since usually it is a matter of milliseconds.
pub(crate) const STEP: Duration = Duration::from_millis(10);
const COARSE_STEP: Duration = Duration::from_millis(100);
/// How long one question to a starting server may take.
const ASK_DEADLINE: Duration = Duration::from_secs(1);
/// How often the watch looks whether the process exists.
const WATCH_STEP: Duration = Duration::from_millis(250);
/// How many of those steps lie between two questions to the server.
const STEPS_PER_QUESTION: u32 = 8;
/// A server that ran this long has recovered: the next crash begins a new count.
const SETTLED: Duration = Duration::from_secs(60);
const FIRST_PAUSE: Duration = Duration::from_millis(250);
const LONGEST_PAUSE: Duration = Duration::from_secs(30);
/// How long a checkpoint before a stop may take; the stop makes its own anyway.
const CHECKPOINT_DEADLINE: Duration = Duration::from_secs(20);
/// Lines of the server's log in an error.
const LOG_LINES: usize = 12;
/// What the server prints before its log collector runs.
pub(crate) const STARTUP_LOG: &str = "startup.log";

impl<H: Host> Managed<H> {
    pub(crate) async fn start_locked(&self, server: &mut Server) -> Result<Started, Error> {
        server.wanted = true;
        self.state.send_replace(State::Starting);
        let outcome = self.bring_up(server).await;
        match &outcome {
            Ok(_) => self.state.send_replace(State::Running),
            Err(error) => self.state.send_replace(State::Crashed { attempt: 1, reason: error.to_string() }),
        };
        outcome
    }

    async fn bring_up(&self, server: &mut Server) -> Result<Started, Error> {
        let tools = self.host.tools().await?;
        let deadline = Instant::now() + self.place.settings.start_deadline;
        if let Some(running) = server.running.as_mut().filter(|running| running.pid != 0)
            && running.is_alive()
        {
            self.wait_ready(running, tools, deadline).await?;
            return Ok(Started::AlreadyRunning);
        }
        server.running = None;
        self.check_identity()?;
        self.prepare_places(tools).await?;
        let config = self.config_of(tools.version);
        let renewed = self.write_certificates(tools.account)?;
        if let Some(running) = self.host.adopt(tools, deadline).await? {
            let running = server.running.insert(running);
            let changed = config.write(&self.layout().data, tools.account)?;
            // Certificates also when a former daemon wrote them and died before the server read them.
            if !changed.is_empty() || renewed || self.endpoint.is_some() {
                tracing::info!(files = ?changed, certificates = renewed, "the adopted server's configuration differed and was written anew");
                postmaster::signal(running.pid, Signal::HUP)?;
            }
            self.wait_ready(running, tools, deadline).await?;
            return Ok(Started::Adopted);
        }
        let changed = config.write(&self.layout().data, tools.account)?;
        if !changed.is_empty() {
            tracing::info!(files = ?changed, "the server's configuration differed and was written anew");
        }
        loop {
            let running = server.running.insert(self.host.spawn(tools).await?);
            match self.wait_ready(running, tools, deadline).await {
                Ok(()) => return Ok(Started::Spawned),
                // The children of a server that was killed need a moment to notice.
                Err(Error::StartFailed { log, .. }) if still_in_use(&log) && Instant::now() < deadline => {
                    server.running = None;
                    tokio::time::sleep(COARSE_STEP).await;
                }
                Err(error) => {
                    if !running.is_alive() {
                        server.running = None;
                    }
                    return Err(error);
                }
            }
        }
    }

    /// The data directory must be the cluster that PROVISIONER names.
    fn check_identity(&self) -> Result<(), Error> {
        let record = Record::read_of(H::CHOICE, &self.layout().provisioner)?.ok_or(Error::NotProvisioned)?;
        let expected = match (record.state, record.system_identifier) {
            (RecordState::Ready, Some(expected)) => expected,
            _ => return Err(Error::NotProvisioned),
        };
        let found = Control::read(&self.layout().data)?.system_identifier;
        if found != expected {
            return Err(Error::OtherCluster { data: self.layout().data.clone(), expected, found });
        }
        Ok(())
    }

    /// Waits until the server accepts connections or has ended.
    async fn wait_ready(&self, running: &mut Running, tools: &Tools, deadline: Instant) -> Result<(), Error> {
        let begun = Instant::now();
        loop {
            if !running.is_alive() {
                let why = self.host.ending().await.map_or_else(String::new, |why| format!(": {why}"));
                return Err(self.start_failed(format!("the server ended{why}")));
            }
            match self.ask(tools.account, running.pid, ASK_DEADLINE).await {
                // Refusing: it is up, if busy; the pools will say what it says.
                Answer::Accepting | Answer::Refusing(_) => return Ok(()),
                // Until the socket is replaced, the former owner's may still be there.
                Answer::NotYet | Answer::Absent | Answer::Silent | Answer::Foreign(_) => {}
            }
            if Instant::now() >= deadline {
                let seconds = self.place.settings.start_deadline.as_secs();
                return Err(self.start_failed(format!("it does not accept connections after {seconds} s")));
            }
            tokio::time::sleep(if begun.elapsed() < Duration::from_secs(1) { STEP } else { COARSE_STEP }).await;
        }
    }

    fn start_failed(&self, reason: String) -> Error {
        Error::StartFailed { reason, log: last_lines(&self.layout().log) }
    }

    pub(crate) async fn stop_locked(&self, server: &mut Server, mode: Stop) -> Result<(), Error> {
        server.wanted = false;
        let mut running = match server.running.take() {
            Some(running) => running,
            None => match self.host.running().await {
                Some(pid) => Running::of(pid),
                None => {
                    self.state.send_replace(State::Stopped);
                    return Ok(());
                }
            },
        };
        let outcome = self.bring_down(&mut running, mode).await;
        if running.is_alive() {
            server.running = Some(running);
        } else {
            self.state.send_replace(State::Stopped);
        }
        outcome
    }

    async fn bring_down(&self, running: &mut Running, mode: Stop) -> Result<(), Error> {
        if running.is_alive() {
            if mode == Stop::Clean
                && let Err(error) = checkpoint(self.secrets.as_ref(), |login| self.connect_options(login)).await
            {
                tracing::warn!(%error, "no checkpoint before the stop; the server makes one while it stops");
            }
            postmaster::signal(running.pid, if mode == Stop::Clean { Signal::INT } else { Signal::QUIT })?;
        }
        let begun = Instant::now();
        while running.is_alive() {
            if begun.elapsed() >= self.place.settings.stop_deadline {
                return Err(Error::Deadline {
                    what: "stopping PostgreSQL",
                    deadline: self.place.settings.stop_deadline,
                });
            }
            tokio::time::sleep(STEP).await;
        }
        if mode == Stop::Clean {
            let state = Control::read(&self.layout().data)?.state;
            if state != SHUT_DOWN {
                return Err(Error::UncleanStop { state: state.to_owned() });
            }
        }
        Ok(())
    }

    /// Watches for ever; see [`supervise`](crate::ManagedPostgres::supervise).
    pub(crate) async fn watch(&self) {
        let mut crashes = 0_u32;
        let mut since = Instant::now();
        let mut steps = 0_u32;
        loop {
            tokio::time::sleep(WATCH_STEP).await;
            let dead = {
                let mut server = self.server.lock().await;
                match (server.wanted, server.running.as_mut()) {
                    (false, _) => continue,
                    (true, Some(running)) => !running.is_alive(),
                    (true, None) => true,
                }
            };
            if !dead {
                if crashes > 0 && since.elapsed() >= SETTLED {
                    crashes = 0;
                }
                steps = (steps + 1) % STEPS_PER_QUESTION;
                if steps == 0 {
                    self.report_health().await;
                }
                continue;
            }
            crashes += 1;
            let pause = backoff(crashes, self.random.jitter());
            let why = self.host.ending().await.map_or_else(String::new, |why| format!(": {why}"));
            let reason = format!("the server ended by itself{why}");
            tracing::error!(attempt = crashes, pause_ms = pause.as_millis(), %reason, "PostgreSQL ended by itself");
            self.state.send_replace(State::Crashed { attempt: crashes, reason });
            tokio::time::sleep(pause).await;
            let mut server = self.server.lock().await;
            // Stopped on purpose while this paused.
            if !server.wanted {
                continue;
            }
            match self.start_locked(&mut server).await {
                Ok(how) => tracing::info!(?how, attempt = crashes, "PostgreSQL runs again"),
                Err(error) => {
                    tracing::error!(%error, attempt = crashes, "PostgreSQL did not come up again");
                    self.state.send_replace(State::Crashed { attempt: crashes, reason: error.to_string() });
                }
            }
            since = Instant::now();
        }
    }

    async fn report_health(&self) {
        let state = match self.health().await {
            Health::Ready => State::Running,
            Health::Degraded { reason } => State::Degraded { reason },
            // Recovering after one of its children crashed; or gone, which the next step finds.
            Health::Starting | Health::Stopped => State::Starting,
        };
        self.state.send_if_modified(|current| {
            let changed = *current != state;
            *current = state;
            changed
        });
    }
}

/// Writes what is dirty while people can still work, so that the stop itself is short. As `bibd_backup`, which
/// may checkpoint: the superuser is not used for this. `options` says how to connect.
pub(crate) async fn checkpoint(
    secrets: &dyn SecretStore,
    options: impl FnOnce(&Login) -> PgConnectOptions,
) -> Result<(), Error> {
    let login = {
        let secrets = DbSecrets::read(secrets)?.ok_or(Error::SecretsMissing)?;
        login_of(&secrets, GroupRole::Backup)?
    };
    let options = options(&login).disable_statement_logging();
    tokio::time::timeout(CHECKPOINT_DEADLINE, async {
        let mut connection = sqlx::PgConnection::connect_with(&options).await?;
        sqlx::raw_sql("CHECKPOINT").execute(&mut connection).await?;
        connection.close().await
    })
    .await
    .map_err(|_| Error::Deadline { what: "the checkpoint", deadline: CHECKPOINT_DEADLINE })?
    .map_err(Error::sql("checkpoint"))
}

/// Doubling pauses with jitter, so that a server that cannot start does not fill the log.
pub(crate) fn backoff(crashes: u32, jitter: f64) -> Duration {
    let doubled = FIRST_PAUSE.saturating_mul(1 << crashes.saturating_sub(1).min(16));
    doubled.min(LONGEST_PAUSE).mul_f64(jitter)
}

/// PostgreSQL says so when children of a killed server still hold its shared memory, or the kernel its files.
fn still_in_use(log: &[String]) -> bool {
    log.iter().any(|line| line.contains("pre-existing shared memory block") || line.contains("lock file"))
}

/// The end of what the server printed: before its collector ran, else in its newest log.
fn last_lines(log: &Path) -> Vec<String> {
    let tail = |path: &Path| -> Vec<String> {
        let bytes = std::fs::read(path).unwrap_or_default();
        let start = bytes.len().saturating_sub(16 * 1024);
        let text = String::from_utf8_lossy(&bytes[start..]).into_owned();
        let lines: Vec<String> = text.lines().map(str::to_owned).collect();
        lines[lines.len().saturating_sub(LOG_LINES)..].to_vec()
    };
    let early = tail(&log.join(STARTUP_LOG));
    if !early.is_empty() && !early.iter().any(|line| line.contains("redirecting log output")) {
        return early;
    }
    let newest = std::fs::read_dir(log)
        .into_iter()
        .flatten()
        .filter_map(Result::ok)
        .filter(|entry| entry.file_name() != STARTUP_LOG)
        .filter_map(|entry| Some((entry.metadata().ok()?.modified().ok()?, entry.path())))
        .max();
    newest.map_or_else(Vec::new, |(_, path)| tail(&path))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_double_up_to_half_a_minute() {
        assert_eq!(backoff(1, 1.0), Duration::from_millis(250));
        assert_eq!(backoff(4, 1.0), Duration::from_secs(2));
        assert_eq!(backoff(50, 1.5), Duration::from_secs(45));
        assert_eq!(backoff(1, 0.5), Duration::from_millis(125));
    }

    #[test]
    fn shows_what_the_server_said_before_its_collector_ran() {
        let here = tempfile::tempdir().unwrap();
        std::fs::write(here.path().join(STARTUP_LOG), "FATAL:  no such setting\n").unwrap();
        std::fs::write(here.path().join("postgresql-Mon.log"), "one\ntwo\n").unwrap();
        assert_eq!(last_lines(here.path()), ["FATAL:  no such setting"]);
        std::fs::write(here.path().join(STARTUP_LOG), "LOG:  redirecting log output\n").unwrap();
        assert_eq!(last_lines(here.path()), ["one", "two"]);
    }
}
