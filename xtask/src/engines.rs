//! The container engines that the tests use: found, or started and left running.

use std::fs::File;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail};
use rustix::process::geteuid;

use crate::machine;
use crate::process::{capture, find_program};

/// How long an engine may take until it answers.
const DEADLINE: Duration = Duration::from_secs(60);
const STEP: Duration = Duration::from_millis(200);
/// Debian 12's Podman prefers a runtime that is not installed with it.
const PODMAN_CONFIGURATION: &str = "[engine]\nruntime = \"runc\"\n";

/// An engine with Docker's API on a socket.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Engine {
    Docker,
    Podman,
}

impl Engine {
    pub const ALL: [Self; 2] = [Self::Docker, Self::Podman];

    pub fn name(self) -> &'static str {
        match self {
            Self::Docker => "Docker",
            Self::Podman => "Podman",
        }
    }

    /// Where it listens; `bibd/postgres/tests/support` looks there.
    pub fn socket(self) -> &'static str {
        match self {
            Self::Docker => "/run/docker.sock",
            Self::Podman => "/run/podman/podman.sock",
        }
    }

    /// The program that serves the socket.
    fn server(self) -> &'static str {
        match self {
            Self::Docker => "dockerd",
            Self::Podman => "podman",
        }
    }

    /// Docker's command line, talking to this engine.
    pub fn command(self) -> Command {
        let mut command = Command::new("docker");
        command.arg("--host").arg(format!("unix://{}", self.socket()));
        command
    }

    /// What it says its version is.
    ///
    /// # Errors
    /// When it does not answer.
    pub fn version(self) -> anyhow::Result<String> {
        let said = capture(self.command().args(["version", "--format", "{{.Server.Version}}"]))?;
        Ok(format!("{} {}", self.name(), said.trim()))
    }

    /// Starts it when it does not answer; it stays when we end.
    ///
    /// # Errors
    /// When its program is missing, only root may start it, or it does not answer in time.
    pub fn ensure(self) -> anyhow::Result<()> {
        if let Ok(version) = self.version() {
            println!("container engine: {version}");
            return Ok(());
        }
        let Some(program) = find_program(self.server()) else { bail!("{} is not installed", self.name()) };
        if !geteuid().is_root() {
            bail!("{} does not answer, and only root can start it", self.name());
        }
        let log = std::env::temp_dir().join(format!("bib-{}.log", self.server()));
        println!("starting {} (its log: {})", program.display(), log.display());
        self.start(&program, &log)?;
        let end = Instant::now() + DEADLINE;
        loop {
            match self.version() {
                Ok(version) => {
                    println!("container engine: {version}");
                    return Ok(());
                }
                Err(error) if Instant::now() >= end => {
                    let message = format!("{} does not answer; its log is `{}`", self.name(), log.display());
                    return Err(error.context(message));
                }
                Err(_) => std::thread::sleep(STEP),
            }
        }
    }

    fn start(self, program: &Path, log: &Path) -> anyhow::Result<()> {
        let output = File::create(log).with_context(|| format!("create `{}`", log.display()))?;
        let errors = output.try_clone().context("share the log")?;
        let mut command = Command::new(program);
        if self == Self::Podman {
            let socket = PathBuf::from(self.socket());
            let directory = socket.parent().unwrap_or(&socket);
            std::fs::create_dir_all(directory).with_context(|| format!("make `{}`", directory.display()))?;
            command.args(["system", "service", "--time=0"]).arg(format!("unix://{}", socket.display()));
            if find_program("crun").is_none() {
                let configuration = log.with_extension("conf");
                std::fs::write(&configuration, PODMAN_CONFIGURATION)
                    .with_context(|| format!("write `{}`", configuration.display()))?;
                command.env("CONTAINERS_CONF", configuration);
            }
        }
        // Its own group: a Ctrl-C here is not meant for it.
        command.process_group(0).stdin(Stdio::null()).stdout(output).stderr(errors);
        command.spawn().with_context(|| format!("start `{}`", program.display()))?;
        Ok(())
    }
}

/// Installs and starts every engine.
///
/// # Errors
/// The first that cannot be had.
pub fn ensure_all() -> anyhow::Result<()> {
    machine::ensure_container_parts()?;
    Engine::ALL.into_iter().try_for_each(Engine::ensure)
}

/// The engines of this machine, started where that is possible; those that cannot be had are named with the reason.
pub fn present() -> Vec<Engine> {
    let usable = |engine: &Engine| match engine.ensure() {
        Ok(()) => true,
        Err(error) => {
            println!("==== {} IS NOT TESTED: {error:#}", engine.name());
            false
        }
    };
    Engine::ALL.into_iter().filter(usable).collect()
}
