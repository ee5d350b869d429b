//! The process provisioner: PostgreSQL's binaries of this machine, run beside the daemon as an unprivileged user.

use std::io::PipeReader;
use std::path::Path;
use std::process::Stdio;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use tokio::sync::OnceCell;
use tokio::time::Instant;

use crate::account::Account;
use crate::binaries;
use crate::checklist::ContainerItem;
use crate::error::Error;
use crate::file;
use crate::host::{Ended, Host, Piped, Place, Running, Tool, Tools};
use crate::managed::Managed;
use crate::postmaster::{self, Behind, PidFile};
use crate::provisioner::Contained;
use crate::record::{Choice, Record};
use crate::run::{STARTUP_LOG, STEP};
use crate::tool;

/// A PostgreSQL that runs as a process beside the daemon.
pub type ProcessPostgres = Managed<ProcessHost>;

/// This machine.
pub struct ProcessHost {
    place: Arc<Place>,
    tools: OnceCell<Tools>,
}

#[async_trait]
impl Host for ProcessHost {
    const CHOICE: Choice = Choice::Process;

    fn new(place: Arc<Place>) -> Self {
        Self { place, tools: OnceCell::new() }
    }

    async fn tools(&self) -> Result<&Tools, Error> {
        self.tools
            .get_or_try_init(|| async {
                let (settings, layout) = (&self.place.settings, &self.place.layout);
                let account = Account::choose(settings.run_as.as_ref(), &layout.data).await?;
                // Data that exists decides the major version.
                let major = Record::major_of(&layout.provisioner).or(settings.major);
                let found = match binaries::choose(settings.bin_dir.as_deref(), major, account).await {
                    // Data that an upgrade carried over.
                    Err(error) if major.is_some() && settings.upgrade_bin_dir.is_some() => {
                        let found = binaries::choose(settings.upgrade_bin_dir.as_deref(), major, account).await;
                        found.map_err(|_| error)?
                    }
                    other => other?,
                };
                let version = found.version.ok_or(Error::NoBinaries { looked: Vec::new() })?;
                Ok(Tools { account, bin_dir: found.bin_dir, version })
            })
            .await
    }

    async fn check_way(&self, tools: &Tools) -> Result<(), Error> {
        let layout = &self.place.layout;
        let needed = [layout.log.clone(), layout.socket_dir.clone(), tools.bin_dir.clone()];
        if tools.account.switch
            && let Some(directory) = tool::first_closed(&needed, tools.account).await?
        {
            return Err(Error::NotTraversable { directory, uid: tools.account.uid });
        }
        Ok(())
    }

    async fn locales(&self) -> String {
        let mut ask = tokio::process::Command::new("locale");
        ask.arg("-a").stdin(Stdio::null()).kill_on_drop(true);
        match tokio::time::timeout(Duration::from_secs(5), ask.output()).await {
            Ok(Ok(output)) => String::from_utf8_lossy(&output.stdout).into_owned(),
            // A system that cannot say has no Unicode locale that is worth relying on.
            _ => String::new(),
        }
    }

    async fn run(&self, tools: &Tools, tool: &Tool<'_>) -> Result<(), Error> {
        let (bin_dir, account) = (&tools.bin_dir, tools.account);
        tool::run_with_input(bin_dir, tool.name, account, tool.arguments, tool.input, tool.deadline).await.map(drop)
    }

    async fn pipe(
        &self,
        tools: &Tools,
        tool: &'static str,
        arguments: &[String],
        password: &Path,
    ) -> Result<(Piped, PipeReader), Error> {
        let program = tools.bin_dir.join(tool);
        let (reader, writer) = std::io::pipe().map_err(Error::io("open a pipe to", &program))?;
        let mut command = tool::command(&program, tools.account);
        command.env("PGPASSFILE", password).args(arguments);
        command.stdout(writer).stderr(Stdio::piped()).kill_on_drop(true);
        let child = command.spawn().map_err(Error::io("run", &program))?;
        // The command holds the other end of the pipe: without this its reader would never see the end.
        drop(command);
        let end = async move {
            let output = child.wait_with_output().await.map_err(Error::io("wait for", &program))?;
            let failure = (!output.status.success()).then(|| output.status.to_string());
            Ok(Ended { failure, said: String::from_utf8_lossy(&output.stderr).into_owned() })
        };
        Ok((Box::pin(end), reader))
    }

    async fn running(&self) -> Option<u32> {
        let data = &self.place.layout.data;
        let file = PidFile::read(data)?;
        (postmaster::behind(file.pid, data) == Behind::Ours).then_some(file.pid)
    }

    async fn adopt(&self, tools: &Tools, deadline: Instant) -> Result<Option<Running>, Error> {
        let data = &self.place.layout.data;
        loop {
            let Some(file) = PidFile::read(data) else { return Ok(None) };
            match postmaster::behind(file.pid, data) {
                // PostgreSQL itself clears what is left over.
                Behind::Nobody => return Ok(None),
                Behind::Stranger => {
                    // The number was given out again. PostgreSQL would refuse to start; that is only right while
                    // somebody is in the directory.
                    if let Some(pid) = postmaster::in_use(data) {
                        let reason = "it works in the data directory without being its server".to_owned();
                        return Err(Error::ForeignServer { pid, reason });
                    }
                    tracing::warn!(pid = file.pid, "postmaster.pid names a process that is no server; removed");
                    file::remove(&data.join("postmaster.pid"))?;
                    return Ok(None);
                }
                Behind::Ours => {
                    let owner = owner_of(file.pid);
                    if owner.is_some_and(|owner| owner != tools.account.uid) {
                        let reason = format!("it runs as user {}", owner.unwrap_or_default());
                        return Err(Error::ForeignServer { pid: file.pid, reason });
                    }
                    if file.status != "stopping" {
                        return Ok(Some(Running::of(file.pid)));
                    }
                    if Instant::now() >= deadline {
                        let deadline = self.place.settings.start_deadline;
                        return Err(Error::Deadline { what: "the end of the former server", deadline });
                    }
                    tokio::time::sleep(STEP).await;
                }
            }
        }
    }

    async fn spawn(&self, tools: &Tools) -> Result<Running, Error> {
        let layout = &self.place.layout;
        let program = tools.bin_dir.join("postgres");
        let log = file::fresh_log(&layout.log.join(STARTUP_LOG), Some(tools.account))?;
        let copy = log.try_clone().map_err(Error::io("open", &layout.log))?;
        let mut command = tool::command(&program, tools.account);
        command.arg("-D").arg(&layout.data).stdout(log).stderr(copy);
        Ok(Running::child(command.spawn().map_err(Error::io("run", &program))?))
    }

    async fn ending(&self) -> Option<String> {
        None
    }

    async fn confinement(&self) -> Result<Vec<ContainerItem>, Error> {
        Ok(Vec::new())
    }

    async fn container(&self) -> Result<Option<Contained>, Error> {
        Ok(None)
    }

    async fn dismantle(&self) -> Result<(), Error> {
        Ok(())
    }
}

fn owner_of(pid: u32) -> Option<u32> {
    use std::os::unix::fs::MetadataExt as _;
    std::fs::metadata(format!("/proc/{pid}")).ok().map(|meta| meta.uid())
}
