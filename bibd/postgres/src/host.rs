//! Where PostgreSQL's programs run: on this machine, or in a container. What a provisioner is beyond that, the files,
//! the two steps of PROVISIONER, supervision, is the same for all and stands in [`managed`](crate::managed).
//!
//! The server's process is one of this machine's in either case: it is watched and signalled here, never through an
//! engine, so that an engine that hangs keeps nobody from stopping PostgreSQL.

use std::future::Future;
use std::io::PipeReader;
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use tokio::process::Child;
use tokio::time::Instant;

use crate::account::Account;
use crate::checklist::ContainerItem;
use crate::error::Error;
use crate::postmaster;
use crate::provisioner::Contained;
use crate::record::Choice;
use crate::settings::{Layout, Settings};
use crate::version::Version;

/// Who runs which programs; found once.
#[derive(Debug, Clone)]
pub struct Tools {
    /// The server's user.
    pub account: Account,
    /// Where the programs are, as the host sees them.
    pub bin_dir: PathBuf,
    /// Their version.
    pub version: Version,
}

/// What a host is made from.
#[derive(Debug, Clone)]
pub struct Place {
    /// What the composition root decided.
    pub settings: Settings,
    /// Where everything lies.
    pub layout: Layout,
}

impl Place {
    /// Relative paths would mean something else in the server's working directory.
    pub(crate) fn new(settings: Settings) -> Self {
        let absolute = |path: &PathBuf| std::path::absolute(path).unwrap_or_else(|_| path.clone());
        let layout = Layout::new(&absolute(&settings.data_root), &absolute(&settings.runtime_dir));
        Self { settings, layout }
    }
}

/// Where PostgreSQL's programs run.
#[async_trait]
pub trait Host: Sized + Send + Sync + 'static {
    /// What it is called in PROVISIONER.
    const CHOICE: Choice;

    /// A host for the server at `place`; touches nothing yet.
    fn new(place: Arc<Place>) -> Self;

    /// Who runs which programs.
    ///
    /// # Errors
    /// When there are none that can run this data, each place with its reason.
    async fn tools(&self) -> Result<&Tools, Error>;

    /// What stands in the server's way outside of its own directories, before anything is made.
    ///
    /// # Errors
    /// With what to repair.
    async fn check_way(&self, tools: &Tools) -> Result<(), Error>;

    /// The system's locales, as `locale -a` lists them where the programs run.
    async fn locales(&self) -> String;

    /// Runs one of PostgreSQL's programs to its end. It may write in `places`, and where the server's user may anyway.
    ///
    /// # Errors
    /// [`Error::Tool`] with what it said; [`Error::Deadline`].
    async fn run(&self, tools: &Tools, tool: &Tool<'_>) -> Result<(), Error>;

    /// Runs one of PostgreSQL's programs beside the server that runs; what it prints is read from the pipe to its end.
    /// `PGPASSFILE` is the file `password`. It is ended when what is returned is dropped.
    ///
    /// # Errors
    /// When it cannot be started.
    async fn pipe(
        &self,
        tools: &Tools,
        tool: &'static str,
        arguments: &[String],
        password: &Path,
    ) -> Result<(Piped, PipeReader), Error>;

    /// The process of our server, if there is one.
    async fn running(&self) -> Option<u32>;

    /// Our server that a former daemon left running, when it can be kept. One that is stopping is waited for.
    ///
    /// # Errors
    /// [`Error::ForeignServer`] when somebody else is in the data directory, and others.
    async fn adopt(&self, tools: &Tools, deadline: Instant) -> Result<Option<Running>, Error>;

    /// Starts the server, whose files are ready.
    ///
    /// # Errors
    /// When it cannot even be started; a server that ends at once is no error here.
    async fn spawn(&self, tools: &Tools) -> Result<Running, Error>;

    /// What the host knows about the end of a server that ended by itself.
    async fn ending(&self) -> Option<String>;

    /// How the server is confined, for the checklist; nothing when it is not.
    ///
    /// # Errors
    /// When the host does not answer.
    async fn confinement(&self) -> Result<Vec<ContainerItem>, Error>;

    /// What stands for the server outside of its directories; nothing when it is a process.
    ///
    /// # Errors
    /// When the host does not answer.
    async fn container(&self) -> Result<Option<Contained>, Error>;

    /// Removes what stands for the server outside of its directories. It must have been stopped.
    ///
    /// # Errors
    /// When the host does not answer.
    async fn dismantle(&self) -> Result<(), Error>;
}

/// One run of one of PostgreSQL's programs.
#[derive(Debug)]
pub struct Tool<'a> {
    /// Its name.
    pub name: &'static str,
    /// What it is told. Nothing secret: other users of the machine can read it.
    pub arguments: &'a [String],
    /// Directories that it works in.
    pub places: &'a [PathBuf],
    /// A file in one of them that is its standard input: where secrets may be.
    pub input: Option<&'a Path>,
    /// How long it may take.
    pub deadline: Duration,
}

/// The end of a program that is read through a pipe. Dropped, it ends the program.
pub(crate) type Piped = Pin<Box<dyn Future<Output = Result<Ended, Error>> + Send>>;

/// How a program ended.
#[derive(Debug)]
pub struct Ended {
    /// Nothing when it succeeded, else how it failed.
    pub failure: Option<String>,
    /// What it told beside its output.
    pub said: String,
}

/// A server's process. Its number alone would mean somebody else once it is given out again.
pub struct Running {
    /// Its number on this machine.
    pub pid: u32,
    /// When it began, in the kernel's ticks; absent where the system does not tell.
    born: Option<u64>,
    /// Our own child; absent when adopted or in a container.
    child: Option<Child>,
}

impl Running {
    /// The process `pid` of now.
    pub(crate) fn of(pid: u32) -> Self {
        Self { pid, born: postmaster::born(pid), child: None }
    }

    /// A child of this process.
    pub(crate) fn child(child: Child) -> Self {
        let pid = child.id().unwrap_or_default();
        Self { pid, born: postmaster::born(pid), child: Some(child) }
    }

    /// Whether it still runs; takes note of a child's end.
    pub(crate) fn is_alive(&mut self) -> bool {
        match self.child.as_mut().map(Child::try_wait) {
            Some(Ok(Some(_))) => false,
            _ => postmaster::is_alive(self.pid) && postmaster::born(self.pid) == self.born,
        }
    }
}
