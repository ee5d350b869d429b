//! `bibd doctor`: what would keep the daemon from working, and how to repair it. It changes nothing.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use bibd_postgres::account::Account;
use bibd_postgres::choose::Survey;
use bibd_postgres::{Choice, network_kind};
use serde::Serialize;

use crate::at_rest::{self, AtRestError};
use crate::clock::{Clock as _, SystemClock};
use crate::config::places::{Home, MAX_SOCKET_PATH_BYTES};
use crate::config::{AtRestMode, Config, Places};
use crate::foundation;
use crate::grpc::error::chain;

/// How a check ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Status {
    /// As it should be.
    Ok,
    /// It works, but somebody should know.
    Warn,
    /// It must be repaired.
    Fail,
}

/// One check.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Check {
    /// What was looked at.
    pub name: &'static str,
    /// How it ended.
    pub status: Status,
    /// What was found.
    pub found: String,
    /// How to repair it; empty when there is nothing to repair.
    pub hint: String,
}

/// All checks.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Report {
    /// In the order in which they were made.
    pub checks: Vec<Check>,
}

impl Report {
    /// Is there nothing that must be repaired?
    #[must_use]
    pub fn is_healthy(&self) -> bool {
        self.checks.iter().all(|check| check.status != Status::Fail)
    }

    /// For eyes.
    #[must_use]
    pub fn to_text(&self) -> String {
        let mut text = String::new();
        for check in &self.checks {
            let word = match check.status {
                Status::Ok => "ok  ",
                Status::Warn => "warn",
                Status::Fail => "FAIL",
            };
            text.push_str(&format!("{word}  {:<22} {}\n", check.name, check.found));
            if !check.hint.is_empty() {
                text.push_str(&format!("      {:<22} hint: {}\n", "", check.hint));
            }
        }
        text
    }

    /// For programs.
    #[must_use]
    pub fn to_json(&self) -> String {
        format!("{:#}\n", serde_json::json!({ "healthy": self.is_healthy(), "checks": self.checks }))
    }

    fn ok(&mut self, name: &'static str, found: impl Into<String>) {
        self.checks.push(Check { name, status: Status::Ok, found: found.into(), hint: String::new() });
    }

    fn note(&mut self, name: &'static str, status: Status, found: impl Into<String>, hint: impl Into<String>) {
        self.checks.push(Check { name, status, found: found.into(), hint: hint.into() });
    }
}

/// Free space below which nothing should be begun, and below which somebody should know.
const LEAST_FREE: u64 = 1 << 30;
const LITTLE_FREE: u64 = 10 << 30;
/// Open files that a busy node needs.
const ENOUGH_FILES: u64 = 4_096;
/// 2025-01-01: a clock before that was never set.
const CLOCK_FLOOR_SECONDS: i64 = 1_735_689_600;

/// Makes every check.
pub async fn examine(config: &Config, home: &Home) -> Report {
    let places = Places::of(config, home, None);
    let mut report = Report { checks: Vec::new() };
    let is_running = running(&mut report, &places);
    match config.is_cache() {
        true => cache(&mut report, config, &places),
        false => postgres(&mut report, config, &places).await,
    }
    directories(&mut report, config, &places, home).await;
    encryption(&mut report, config, &places);
    sockets(&mut report, &places);
    clock(&mut report);
    limits(&mut report);
    if !is_running {
        let wanted = config.grpc.listen.iter().map(|a| ("grpc.listen", *a));
        for (key, address) in wanted.chain(config.metrics.listen.map(|a| ("metrics.listen", a))) {
            port(&mut report, key, address).await;
        }
    }
    report
}

/// Does a daemon run here already? Then its ports are its own.
fn running(report: &mut Report, places: &Places) -> bool {
    let path = places.data.join("lock");
    let Ok(file) = std::fs::File::open(&path) else {
        report.ok("daemon", "does not run here yet");
        return false;
    };
    let is_locked = matches!(
        rustix::fs::flock(&file, rustix::fs::FlockOperation::NonBlockingLockShared),
        Err(rustix::io::Errno::WOULDBLOCK)
    );
    let pid = std::fs::read_to_string(&path).unwrap_or_default();
    match is_locked {
        true => report.ok("daemon", format!("runs with pid {}", pid.trim())),
        false => report.ok("daemon", "does not run"),
    }
    is_locked
}

/// A cache takes the place of no database.
fn cache(report: &mut Report, config: &Config, places: &Places) {
    let database = places.data.join("postgres");
    let (mode, ttl) = (config.node.mode.as_str(), config.database.cache.ttl);
    match database.exists() {
        false => report.ok("cache", format!("`node.mode: {mode}`: nothing is kept for longer than {ttl}")),
        true => report.note(
            "cache",
            Status::Fail,
            format!("`{}` is the database of a full node", database.display()),
            "choose another directory with --data-dir, or set `node.mode: full`",
        ),
    }
}

async fn postgres(report: &mut Report, config: &Config, places: &Places) {
    let settings = foundation::postgres_settings(config, places, Arc::new(SystemClock));
    match Account::choose(settings.run_as.as_ref(), &places.data.join("postgres/data")).await {
        Ok(account) => report.ok("postgres.account", format!("uid {}, gid {}", account.uid, account.gid)),
        Err(error) => {
            let hint = error.hint().unwrap_or_default();
            return report.note("postgres.account", Status::Fail, chain(&error), hint);
        }
    }
    let wanted = foundation::wanted_provisioner(config);
    let survey = Survey::of(&settings, wanted).await;
    let (choice, why) = survey.choice(wanted);
    match &survey.kubernetes {
        Some(Ok(found)) => report.ok("postgres.kubernetes", found.clone()),
        Some(Err(error)) if choice == Choice::Kubernetes => {
            report.note("postgres.kubernetes", Status::Fail, chain(error), error.hint());
        }
        Some(Err(error)) => report.ok("postgres.kubernetes", format!("passed over: {}", chain(error))),
        None => {}
    }
    // What was not chosen need not work; why it was passed over is worth a line.
    for (name, found, own) in [
        ("postgres.container", survey.container.as_ref().map(ToString::to_string), Choice::Container),
        ("postgres.binaries", survey.process.as_ref().map(Clone::clone), Choice::Process),
    ] {
        match found {
            Ok(found) => report.ok(name, found),
            Err(error) if own == choice => {
                report.note(name, Status::Fail, chain(error), error.hint().unwrap_or_default());
            }
            Err(error) => report.ok(name, format!("passed over: {}", chain(error))),
        }
    }
    match survey.remembered {
        Ok(_) => report.ok("postgres.provisioner", format!("{}: it {why}", choice.name())),
        Err(error) => {
            report.note("postgres.provisioner", Status::Fail, chain(&error), error.hint().unwrap_or_default());
        }
    }
}

async fn directories(report: &mut Report, config: &Config, places: &Places, home: &Home) {
    let data = existing(&places.data);
    match rustix::fs::access(&data, rustix::fs::Access::WRITE_OK | rustix::fs::Access::EXEC_OK) {
        Ok(()) => report.ok("data.permissions", format!("`{}` can be written", data.display())),
        Err(errno) => report.note(
            "data.permissions",
            Status::Fail,
            format!("`{}` cannot be written: {errno}", data.display()),
            "give it to the daemon's user, or choose another with --data-dir",
        ),
    }
    if home.is_root {
        traversal(report, &places.data);
    }
    match network_kind(&data) {
        Ok(None) => report.ok("data.filesystem", "local"),
        Ok(Some(kind)) if config.database.allow_network_filesystem => {
            report.note(
                "data.filesystem",
                Status::Warn,
                format!("{kind}, a network file system; allowed by configuration"),
                "",
            );
        }
        Ok(Some(kind)) => report.note(
            "data.filesystem",
            Status::Fail,
            format!("{kind}, a network file system: what it does with fsync cannot be known"),
            "choose a local disk with --data-dir; `database.allow_network_filesystem` takes the risk",
        ),
        Err(error) => report.note("data.filesystem", Status::Warn, chain(&error), ""),
    }
    match rustix::fs::statvfs(&data) {
        Ok(stat) => {
            let free = stat.f_bavail.saturating_mul(stat.f_frsize);
            let found = format!("{} MiB free", free >> 20);
            match free {
                _ if free < LEAST_FREE => report.note("data.space", Status::Fail, found, "free at least 1 GiB"),
                _ if free < LITTLE_FREE => {
                    report.note("data.space", Status::Warn, found, "less than 10 GiB is soon full")
                }
                _ => report.ok("data.space", found),
            }
        }
        Err(errno) => report.note("data.space", Status::Warn, format!("cannot be measured: {errno}"), ""),
    }
}

/// What of the data is encrypted, and whether it could be.
fn encryption(report: &mut Report, config: &Config, places: &Places) {
    const NAME: &str = "data.encryption";
    let is_on = config.encryption.at_rest == AtRestMode::Fscrypt;
    let looked = at_rest::states(&places.data).and_then(|all| Ok((all, at_rest::is_supported(&places.data)?)));
    let (states, is_supported) = match looked {
        Ok(looked) => looked,
        Err(error) => return report.note(NAME, Status::Warn, chain(&error), error.hint()),
    };
    let of = |wanted| states.iter().filter(|(_, state)| *state == wanted).count();
    let (plain, encrypted) = (of(at_rest::State::Plain), of(at_rest::State::Encrypted));
    match (is_on, is_supported) {
        (true, false) => {
            let error = AtRestError::Unsupported { path: places.data.clone() };
            report.note(NAME, Status::Fail, error.to_string(), error.hint());
        }
        (true, true) if plain > 0 => {
            let found = format!("{plain} of {} directories are not encrypted yet", plain + encrypted);
            report.note(
                NAME,
                Status::Warn,
                found,
                "stop and start bibd: they are converted before the database starts",
            );
        }
        (true, true) => report.ok(NAME, "fscrypt"),
        (false, _) if encrypted > 0 => {
            let found = format!("off, but {encrypted} directories are encrypted: they stay so and are unlocked");
            report.note(NAME, Status::Warn, found, "set `encryption.at_rest: fscrypt`");
        }
        (false, true) => report.ok(NAME, "off; this file system could: `encryption.at_rest: fscrypt`"),
        (false, false) => report.ok(NAME, "off; this file system has none"),
    }
}

/// The nearest directory that is there already.
fn existing(path: &Path) -> PathBuf {
    path.ancestors().find(|ancestor| ancestor.is_dir()).unwrap_or(Path::new("/")).to_owned()
}

/// PostgreSQL's own user must pass through every parent.
fn traversal(report: &mut Report, path: &Path) {
    use std::os::unix::fs::PermissionsExt as _;
    let is_closed = |directory: &&Path| {
        directory.metadata().is_ok_and(|found| found.is_dir() && found.permissions().mode() & 0o001 == 0)
    };
    match path.ancestors().filter(|ancestor| !ancestor.as_os_str().is_empty()).find(is_closed) {
        None => report.ok("data.traversal", "PostgreSQL's user can pass through every parent"),
        Some(closed) => report.note(
            "data.traversal",
            Status::Fail,
            format!("PostgreSQL's user cannot pass through `{}`", closed.display()),
            format!("chmod o+x {}, or choose another directory with --data-dir", closed.display()),
        ),
    }
}

fn sockets(report: &mut Report, places: &Places) {
    let postgres = places.runtime.join("pg/.s.PGSQL.5432");
    for (name, path) in [("socket.path", &places.socket), ("postgres.socket.path", &postgres)] {
        let length = path.as_os_str().len();
        let found = format!("`{}`, {length} bytes", path.display());
        if length <= MAX_SOCKET_PATH_BYTES {
            report.ok(name, found);
        } else {
            report.note(name, Status::Fail, found, "at most 100 bytes: set `runtime_dir` to a short directory");
        }
    }
}

fn clock(report: &mut Report) {
    let now = SystemClock.now();
    if now.as_seconds() < CLOCK_FLOOR_SECONDS {
        report.note("clock", Status::Fail, now.to_string(), "set the clock: certificates count by it");
    } else {
        report.ok("clock", now.to_string());
    }
}

fn limits(report: &mut Report) {
    let limit = rustix::process::getrlimit(rustix::process::Resource::Nofile);
    let found = limit.current.map_or_else(|| "no limit".to_owned(), |files| files.to_string());
    if limit.current.is_some_and(|files| files < ENOUGH_FILES) {
        let hint = format!("at least {ENOUGH_FILES}: `ulimit -n {ENOUGH_FILES}`, or LimitNOFILE= of the service");
        report.note("limits.open_files", Status::Warn, found, hint);
    } else {
        report.ok("limits.open_files", found);
    }
}

async fn port(report: &mut Report, key: &'static str, address: SocketAddr) {
    match tokio::net::TcpListener::bind(address).await {
        Ok(_) => report.ok(key, format!("{address} is free")),
        Err(error) => report.note(
            key,
            Status::Fail,
            format!("{address}: {error}"),
            "stop who uses it, or choose another: --listen, port 0 is any",
        ),
    }
}
