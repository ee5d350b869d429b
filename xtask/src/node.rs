//! A node in a temporary directory, driven from outside as a person would: the real `bibd`, the real `bib`.
//!
//! Nothing of the user's is touched: configuration, keys, trust and data all lie in the directory.

use std::fs::{self, File, Permissions};
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, anyhow, bail};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;

use crate::process::{capture, cargo, run, shown};

/// How long a start may take, `initdb` and recovery included.
const START_DEADLINE: Duration = Duration::from_secs(120);
/// The variable that names the step after which `bibd` kills itself.
pub const DIE_AT: &str = "BIBD_DIE_AT";
/// How long a clean stop may take.
const STOP_DEADLINE: Duration = Duration::from_secs(90);

/// How the programs are built.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Profile {
    /// Quick to build; hashing, chunking and compression are optimised in it all the same (root `Cargo.toml`).
    Dev,
    /// For figures.
    Release,
}

/// The two programs.
#[derive(Debug, Clone)]
pub struct Programs {
    /// `bib`.
    pub bib: PathBuf,
    /// `bibd`.
    pub bibd: PathBuf,
}

impl Programs {
    /// Builds both.
    ///
    /// # Errors
    /// When they do not build.
    pub fn build(profile: Profile) -> anyhow::Result<Self> {
        let mut build = cargo();
        build.args(["build", "--locked", "--package", "bib", "--package", "bibd"]);
        if profile == Profile::Release {
            build.arg("--release");
        }
        run(&mut build)?;
        Self::built(profile)
    }

    /// Where they are once they are built.
    ///
    /// # Errors
    /// When cargo does not say where it builds.
    pub fn built(profile: Profile) -> anyhow::Result<Self> {
        let folder = if profile == Profile::Release { "release" } else { "debug" };
        let metadata = capture(cargo().args(["metadata", "--format-version", "1", "--no-deps", "--locked"]))?;
        let metadata: Value = serde_json::from_str(&metadata).context("read cargo's metadata")?;
        let target = metadata["target_directory"].as_str().context("cargo names no target directory")?;
        let directory = Path::new(target).join(folder);
        Ok(Self { bib: directory.join("bib"), bibd: directory.join("bibd") })
    }
}

/// A directory that any user may pass through, since PostgreSQL runs as another user when the daemon is root.
///
/// # Errors
/// When none can be made.
pub fn passable_directory(parent: Option<&Path>) -> anyhow::Result<tempfile::TempDir> {
    let usual = std::env::temp_dir();
    let places = [usual.as_path(), Path::new("/tmp"), Path::new("/var/tmp")];
    let parent = match parent {
        Some(parent) => parent,
        None => places
            .into_iter()
            .find(|place| is_passable(place))
            .context("no temporary directory can be passed through")?,
    };
    let directory = tempfile::Builder::new().prefix("bib-").tempdir_in(parent).context("make a temporary directory")?;
    fs::set_permissions(directory.path(), Permissions::from_mode(0o711)).context("open the temporary directory")?;
    Ok(directory)
}

/// Whether every directory on the way lets everybody pass.
fn is_passable(place: &Path) -> bool {
    let passes = |path: &Path| fs::metadata(path).is_ok_and(|data| data.permissions().mode() & 0o001 != 0);
    place.canonicalize().is_ok_and(|real| real.ancestors().all(passes))
}

/// What the daemon's ready file says.
#[derive(Debug, Clone)]
pub struct Ready {
    /// The Unix socket.
    pub socket: PathBuf,
    /// Where TLS is served.
    pub address: String,
    /// What a client pins.
    pub fingerprint: String,
    /// Who the node is.
    pub peer_id: String,
}

/// A node and its directory.
#[derive(Debug)]
pub struct Node {
    programs: Programs,
    home: PathBuf,
    die_at: Option<String>,
    child: Option<Child>,
    ready: Option<Ready>,
    /// Variables that say what runs PostgreSQL.
    database: Vec<(&'static str, String)>,
}

impl Node {
    /// A node that lives in `home`; nothing is started.
    #[must_use]
    pub fn new(programs: Programs, home: &Path) -> Self {
        // Binaries that are here start in a second; an image might have to be pulled first.
        let database = vec![("BIBD__DATABASE__PROVISIONER", "process".to_owned())];
        Self { programs, home: home.to_owned(), die_at: None, child: None, ready: None, database }
    }

    /// From the next start on PostgreSQL runs in a container of the engine behind `socket`.
    pub fn in_a_container(&mut self, socket: &str, image: &str) {
        self.database = vec![
            ("BIBD__DATABASE__PROVISIONER", "container".to_owned()),
            ("BIBD__DATABASE__CONTAINER__SOCKET", socket.to_owned()),
            ("BIBD__DATABASE__CONTAINER__IMAGE", image.to_owned()),
        ];
    }

    /// From the next start on it finds PostgreSQL of a newer major version there.
    pub fn has_newer(&mut self, programs: &Path) {
        self.database.push(("BIBD__DATABASE__UPGRADE_BIN_DIR", programs.display().to_string()));
    }

    /// The command that removes all of the node once it has stopped.
    #[must_use]
    pub fn cleanup(&self) -> Command {
        let mut command = self.bibd(["cleanup", "--yes"]);
        self.at_home(&mut command);
        command
    }

    /// The data directory.
    #[must_use]
    pub fn data(&self) -> PathBuf {
        self.home.join("data")
    }

    /// Where the daemon's output goes.
    #[must_use]
    pub fn log(&self) -> PathBuf {
        self.home.join("bibd.log")
    }

    /// What the ready file said at the last start.
    ///
    /// # Errors
    /// When the node was never ready.
    pub fn ready(&self) -> anyhow::Result<&Ready> {
        self.ready.as_ref().context("the node is not running")
    }

    /// The command that starts the daemon.
    #[must_use]
    pub fn daemon(&self) -> Command {
        let mut command = self.bibd(["run"]);
        command.envs(self.die_at.as_ref().map(|point| (DIE_AT, point)));
        self.at_home(&mut command);
        command.args(["--ready-file".as_ref(), self.ready_file().as_os_str()]);
        command.args(["--listen", "127.0.0.1:0"]);
        command
    }

    fn at_home(&self, command: &mut Command) {
        command.args(["--data-dir".as_ref(), self.data().as_os_str()]);
        command.args(["--config-dir".as_ref(), self.home.join("config").as_os_str()]);
    }

    /// `bibd` with these arguments.
    #[must_use]
    pub fn bibd<I: AsRef<std::ffi::OsStr>>(&self, arguments: impl IntoIterator<Item = I>) -> Command {
        let mut command = Command::new(&self.programs.bibd);
        command.args(arguments).stdin(Stdio::null());
        self.private(&mut command);
        command.envs(self.database.iter().map(|(name, value)| (name, value)));
        command
    }

    /// The daemon that is started next dies after this step.
    pub fn die_at(&mut self, point: Option<&str>) {
        self.die_at = point.map(str::to_owned);
    }

    /// `bib` with these arguments, speaking to this node over its socket.
    #[must_use]
    pub fn bib<I: AsRef<std::ffi::OsStr>>(&self, arguments: impl IntoIterator<Item = I>) -> Command {
        let mut command = Command::new(&self.programs.bib);
        command.args(arguments).current_dir(&self.home);
        self.private(&mut command);
        if let Some(ready) = &self.ready {
            command.env("BIB_NODE", format!("unix:{}", ready.socket.display()));
        }
        command
    }

    /// What `bib ... -o json` answers.
    ///
    /// # Errors
    /// When it fails or answers no JSON.
    pub fn ask(&self, arguments: &[&str]) -> anyhow::Result<Value> {
        let mut command = self.bib(arguments.iter().copied().chain(["-o", "json"]));
        let answer = capture(&mut command)?;
        serde_json::from_str(&answer).with_context(|| format!("read the JSON of `{}`: {answer}", shown(&command)))
    }

    /// Nothing of the user's: no home, no agent, no variables that point elsewhere.
    fn private(&self, command: &mut Command) {
        for (name, _) in std::env::vars_os() {
            let text = name.to_string_lossy();
            if text.starts_with("BIB_") || text.starts_with("BIBD_") || text.starts_with("XDG_") {
                command.env_remove(&name);
            }
        }
        command.env_remove("SSH_AUTH_SOCK").env("HOME", self.home.join("home"));
    }

    fn ready_file(&self) -> PathBuf {
        self.home.join("ready.json")
    }

    /// Starts the daemon without waiting for it.
    ///
    /// # Errors
    /// When it cannot be started.
    pub fn spawn(&mut self) -> anyhow::Result<()> {
        fs::create_dir_all(self.home.join("home")).context("make the home directory")?;
        match fs::remove_file(self.ready_file()) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                return Err(error).context("remove the ready file");
            }
            _ => {}
        }
        let log = File::options().create(true).append(true).open(self.log()).context("open the daemon's log")?;
        let mut command = self.daemon();
        command.stdin(Stdio::null()).stdout(log.try_clone().context("share the log")?).stderr(log);
        self.child = Some(command.spawn().with_context(|| format!("start `{}`", shown(&command)))?);
        Ok(())
    }

    /// Waits until the daemon says that it is ready.
    ///
    /// # Errors
    /// When it ends before, with the end of its log, or takes too long.
    pub fn wait_ready(&mut self) -> anyhow::Result<()> {
        let deadline = Instant::now() + START_DEADLINE;
        loop {
            if let Ok(text) = fs::read_to_string(self.ready_file()) {
                self.ready = Some(parse_ready(&text)?);
                return Ok(());
            }
            let child = self.child.as_mut().context("the node was not started")?;
            if let Some(status) = child.try_wait().context("look at the daemon")? {
                self.child = None;
                bail!("bibd ended before it was ready: {status}\n{}", self.end_of_log());
            }
            if Instant::now() > deadline {
                bail!("bibd is not ready after {} s\n{}", START_DEADLINE.as_secs(), self.end_of_log());
            }
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    /// Starts the daemon and waits until it is ready.
    ///
    /// # Errors
    /// As [`Node::spawn`] and [`Node::wait_ready`].
    pub fn start(&mut self) -> anyhow::Result<Duration> {
        let began = Instant::now();
        self.spawn()?;
        self.wait_ready()?;
        Ok(began.elapsed())
    }

    /// Asks the daemon to stop and waits for it.
    ///
    /// # Errors
    /// When it does not stop in time or ends with failure.
    pub fn stop(&mut self) -> anyhow::Result<()> {
        let Some(mut child) = self.child.take() else { return Ok(()) };
        signal(child.id(), Signal::TERM)?;
        let deadline = Instant::now() + STOP_DEADLINE;
        while Instant::now() < deadline {
            if let Some(status) = child.try_wait().context("wait for the daemon")? {
                if !status.success() {
                    bail!("bibd did not stop cleanly: {status}\n{}", self.end_of_log());
                }
                return Ok(());
            }
            std::thread::sleep(Duration::from_millis(5));
        }
        child.kill().context("kill the daemon")?;
        bail!("bibd did not stop within {} s\n{}", STOP_DEADLINE.as_secs(), self.end_of_log());
    }

    /// Kills the daemon with signal 9; its PostgreSQL lives on.
    ///
    /// # Errors
    /// When the system refuses.
    pub fn kill(&mut self) -> anyhow::Result<()> {
        if let Some(mut child) = self.child.take() {
            child.kill().context("kill the daemon")?;
            child.wait().context("wait for the daemon")?;
        }
        Ok(())
    }

    /// Waits for a daemon that ends by itself, and says how it did.
    ///
    /// # Errors
    /// When it goes on.
    pub fn wait_ended(&mut self) -> anyhow::Result<ExitStatus> {
        let child = self.child.as_mut().context("the node was not started")?;
        let deadline = Instant::now() + STOP_DEADLINE;
        while Instant::now() < deadline {
            if let Some(status) = child.try_wait().context("wait for the daemon")? {
                self.child = None;
                return Ok(status);
            }
            std::thread::sleep(Duration::from_millis(5));
        }
        bail!("bibd goes on\n{}", self.end_of_log())
    }

    /// Kills PostgreSQL's first process with signal 9. Returns whether there was one.
    ///
    /// # Errors
    /// When the system refuses.
    pub fn kill_postgres(&self) -> anyhow::Result<bool> {
        let Ok(text) = fs::read_to_string(self.data().join("postgres/data/postmaster.pid")) else { return Ok(false) };
        let Some(pid) = text.lines().next().and_then(|line| line.trim().parse().ok()) else { return Ok(false) };
        Ok(signal(pid, Signal::KILL).is_ok())
    }

    /// Leaves the daemon running when this value goes.
    #[must_use]
    pub fn keep(mut self) -> Option<u32> {
        self.child.take().map(|child| child.id())
    }

    /// The daemon's process id while it runs.
    #[must_use]
    pub fn pid(&self) -> Option<u32> {
        self.child.as_ref().map(Child::id)
    }

    /// The last lines of the daemon's log.
    #[must_use]
    pub fn end_of_log(&self) -> String {
        let text = fs::read_to_string(self.log()).unwrap_or_default();
        let lines: Vec<&str> = text.lines().collect();
        lines[lines.len().saturating_sub(20)..].join("\n")
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        if let Err(error) = self.stop() {
            eprintln!("{error:#}");
        }
    }
}

fn signal(pid: u32, signal: Signal) -> anyhow::Result<()> {
    let pid = i32::try_from(pid).ok().and_then(Pid::from_raw).ok_or_else(|| anyhow!("{pid} is no process id"))?;
    kill_process(pid, signal).with_context(|| format!("send a signal to process {pid:?}"))
}

fn parse_ready(text: &str) -> anyhow::Result<Ready> {
    let value: Value = serde_json::from_str(text).context("read the ready file")?;
    let text =
        |name: &str| value[name].as_str().map(str::to_owned).with_context(|| format!("the ready file has no `{name}`"));
    Ok(Ready {
        socket: text("socket")?.into(),
        address: value["addresses"][0].as_str().context("the ready file has no address")?.to_owned(),
        fingerprint: text("fingerprint")?,
        peer_id: text("peer_id")?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_what_a_daemon_writes() {
        let text = r#"{"pid":7,"socket":"/run/x.sock","addresses":["127.0.0.1:4000"],"fingerprint":"ab","peer_id":"12D","metrics":null}"#;
        let ready = parse_ready(text).unwrap();
        assert_eq!(ready.address, "127.0.0.1:4000");
        assert!(parse_ready("{}").is_err());
    }

    #[test]
    fn a_temporary_directory_can_be_passed_through() {
        let directory = passable_directory(None).unwrap();
        assert!(is_passable(directory.path()));
        let closed = directory.path().join("closed");
        fs::create_dir(&closed).unwrap();
        fs::set_permissions(&closed, Permissions::from_mode(0o700)).unwrap();
        assert!(!is_passable(&closed));
    }
}
