//! The container provisioner: PostgreSQL in a container of Docker or Podman, without network and without rights.
//!
//! The server's container is `bibd-postgres-` and the node's short id; `initdb` and the look into the image run in one
//! that ends in `-tool`. The engine makes and removes them; the server's process is one of this machine's, and is
//! watched and signalled as such. Never touches a container whose labels do not name this node and this directory.

mod describe;
mod engine;
mod image;
mod inspect;
mod spec;

use std::collections::BTreeMap;
use std::io::PipeReader;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use bollard::models::ContainerInspectResponse;
use tokio::sync::OnceCell;
use tokio::time::Instant;
use tokio_util::task::AbortOnDropHandle;

use crate::account::Account;
use crate::checklist::ContainerItem;
use crate::error::Error;
use crate::file;
use crate::host::{Ended, Host, Piped, Place, Running, Tool, Tools};
use crate::managed::Managed;
use crate::pipe::Pipe;
use crate::postmaster;
use crate::provisioner::Contained;
use crate::record::{Choice, Record};
use crate::role::{DATABASE, GroupRole, Letter};
use crate::run::{STARTUP_LOG, STEP};
use crate::settings::{PORT, Recovery, Settings, Wal};
use crate::tool::tail;

use engine::{ASK_DEADLINE, Engine};
use image::{Image, SURVEY, Survey, read_survey};
use spec::Spec;

/// A PostgreSQL that runs in a container.
pub type ContainerPostgres = Managed<ContainerHost>;

/// How long [`Host::running`] waits for the engine: somebody asks for the server's health.
const RUNNING_DEADLINE: Duration = Duration::from_secs(1);
/// How long an engine may take to see that a container has ended.
const ENGINE_NOTICES: Duration = Duration::from_millis(500);
const SURVEY_DEADLINE: Duration = Duration::from_secs(60);
/// What a program in the container prints comes out here, in the socket's directory: past the engine, which would
/// copy every byte twice and cannot be told to wait.
const PIPE: &str = "backup.pipe";
/// Becomes the program, with its output in the pipe.
const PIPED: &str = "pipe=$1; shift; exec \"$@\" >\"$pipe\"";
/// Becomes the program, with a file as its input.
const FED: &str = "input=$1; shift; exec \"$@\" <\"$input\"";

/// A container engine of this machine.
pub struct ContainerHost {
    place: Arc<Place>,
    engine: OnceCell<Engine>,
    ready: OnceCell<Ready>,
    /// The server's process as it was last seen, so that an engine that hangs hides no server.
    seen: Mutex<Option<Running>>,
}

/// What a start needs, found once.
struct Ready {
    tools: Tools,
    image: Image,
    survey: Survey,
}

/// What `bibd doctor` sees of the engine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Look {
    /// The engine, its version, its socket.
    pub engine: String,
    /// The configured image.
    pub image: String,
    /// Whether the engine has it.
    pub has_image: bool,
}

impl std::fmt::Display for Look {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let is = if self.has_image { "is here" } else { "is not here and would be pulled" };
        write!(f, "{}; the image `{}` {is}", self.engine, self.image)
    }
}

/// Looks at the engine; nothing is pulled or run.
///
/// # Errors
/// As a start would fail: [`Error::NoEngine`], [`Error::OtherDigest`] and others.
pub async fn look(settings: &Settings) -> Result<Look, Error> {
    let engine = Engine::find(settings.container.socket.as_deref(), ASK_DEADLINE).await?;
    let has_image = image::find(&engine, &settings.container).await?.is_some();
    Ok(Look { engine: engine.name, image: settings.container.image.clone(), has_image })
}

impl ContainerHost {
    fn name(&self) -> String {
        format!("bibd-postgres-{}", self.place.settings.container.node)
    }

    fn tool_name(&self) -> String {
        format!("{}-tool", self.name())
    }

    async fn engine(&self) -> Result<&Engine, Error> {
        self.engine
            .get_or_try_init(|| Engine::find(self.place.settings.container.socket.as_deref(), ASK_DEADLINE))
            .await
    }

    /// Whether a server could be made at once: an engine answers, has the image, and the image is fit.
    ///
    /// # Errors
    /// With what is in the way; [`Error::ImageAbsent`] when it is only the image.
    pub(crate) async fn at_hand(&self) -> Result<(), Error> {
        let settings = &self.place.settings.container;
        let engine =
            self.engine.get_or_try_init(|| Engine::find(settings.socket.as_deref(), settings.passing_deadline)).await?;
        if image::find(engine, settings).await?.is_none() {
            let reason = "nothing was pulled".to_owned();
            return Err(Error::ImageAbsent { image: settings.image.clone(), reason });
        }
        self.ready().await.map(drop)
    }

    /// The container `name`, which must be ours.
    async fn own(&self, name: &str) -> Result<Option<ContainerInspectResponse>, Error> {
        let Some(found) = self.engine().await?.find_container(name).await? else { return Ok(None) };
        for (label, expected) in self.owner() {
            let value = label_of(&found, label);
            if value != Some(&expected) {
                let value = value.map_or("nothing", String::as_str);
                let reason = format!("its label {label} says {value}, not {expected}");
                return Err(Error::ForeignContainer { name: name.to_owned(), reason });
            }
        }
        Ok(Some(found))
    }

    fn owner(&self) -> BTreeMap<&'static str, String> {
        let home = self.place.layout.home.display().to_string();
        BTreeMap::from([(spec::NODE, self.place.settings.container.node.clone()), (spec::HOME, home)])
    }

    async fn ready(&self) -> Result<&Ready, Error> {
        self.ready
            .get_or_try_init(|| async {
                let (settings, layout) = (&self.place.settings, &self.place.layout);
                let account = Account::choose(settings.run_as.as_ref(), &layout.data).await?;
                let major = Record::major_of(&layout.provisioner).or(settings.major);
                let engine = self.engine().await?;
                let image = image::ensure(engine, &settings.container).await?;
                let survey = match self.known_survey(&image, major).await? {
                    Some(survey) => survey,
                    None => self.survey(account, &image, major).await?,
                };
                tracing::info!(
                    engine = engine.name,
                    image = settings.container.image,
                    image.id = image.id,
                    postgres = survey.banner,
                    "PostgreSQL runs in a container"
                );
                let tools = Tools { account, bin_dir: survey.bin_dir.clone(), version: survey.version };
                Ok(Ready { tools, image, survey })
            })
            .await
    }

    /// What the last container's labels say about this same image, so that a later start does not look again. Only
    /// once there is data: before, the image's locales count too.
    async fn known_survey(&self, image: &Image, major: Option<u32>) -> Result<Option<Survey>, Error> {
        if !file::exists(&self.place.layout.data)? {
            return Ok(None);
        }
        let Some(found) = self.own(&self.name()).await?.filter(|found| found.image.as_ref() == Some(&image.id)) else {
            return Ok(None);
        };
        let (Some(bin_dir), Some(banner)) = (label_of(&found, spec::BIN_DIR), label_of(&found, spec::BANNER)) else {
            return Ok(None);
        };
        let line = format!("bin {bin_dir} {banner}\n");
        Ok(read_survey(&self.place.settings.container.image, &line, major).ok())
    }

    async fn survey(&self, account: Account, image: &Image, major: Option<u32>) -> Result<Survey, Error> {
        let name = &self.place.settings.container.image;
        let command = ["/bin/sh", "-c", SURVEY].map(str::to_owned).to_vec();
        let spec = self.tool_spec(account, image, Vec::new(), command).await?;
        let outcome = match self.run_tool(spec, "looking through the image", SURVEY_DEADLINE).await {
            // The engine is fine: the image has no shell, or is for another machine.
            Err(Error::Engine { reason, .. }) if reason.contains("/bin/sh") || reason.contains("exec format") => {
                Err(Error::ImageUnusable { image: name.clone(), reason })
            }
            other => other,
        }?;
        read_survey(name, &outcome.output, major)
    }

    async fn run_tool(&self, spec: Spec, what: &'static str, deadline: Duration) -> Result<engine::Outcome, Error> {
        let (engine, name) = (self.engine().await?, self.tool_name());
        // A daemon that died in the middle left it.
        if self.own(&name).await?.is_some() {
            engine.remove(&name).await?;
        }
        engine.run(&name, spec.body(), what, deadline).await
    }

    async fn tool_spec(
        &self,
        account: Account,
        image: &Image,
        writable: Vec<PathBuf>,
        command: Vec<String>,
    ) -> Result<Spec, Error> {
        let (settings, layout, engine) = (&self.place.settings, &self.place.layout, self.engine().await?);
        // `postgres/` may not be there yet when the image is looked through.
        let has_home = file::exists(&layout.home)?;
        if has_home {
            let line = format!("postgres:x:{}:{}::/:/bin/false\n", account.uid, account.gid);
            if !std::fs::read(&layout.passwd).is_ok_and(|bytes| bytes == line.as_bytes()) {
                file::replace(&layout.passwd, line.as_bytes(), Some(account))?;
            }
        }
        Ok(Spec {
            image: image.id.clone(),
            account,
            limits: settings.container.limits.clone(),
            cpus: engine.cpus,
            keep_id: engine.keep_id,
            writable,
            relabel: settings.container.relabel,
            passwd: has_home.then(|| layout.passwd.clone()),
            volumes: image.volumes.clone(),
            command,
            log: None,
            health: Vec::new(),
            stop_deadline: settings.stop_deadline,
            labels: self.owner(),
        })
    }

    async fn server_spec(&self) -> Result<Spec, Error> {
        let (ready, layout) = (self.ready().await?, &self.place.layout);
        let program = |name: &str| ready.tools.bin_dir.join(name).display().to_string();
        let mut writable =
            vec![layout.data.clone(), layout.log.clone(), layout.spool.clone(), layout.socket_dir.clone()];
        // Through it the server asks for the log that it recovers from.
        if let Wal::Recover(Recovery { feed: Some(feed), .. }) = &self.place.settings.wal {
            writable.push(feed.clone());
        }
        let command = vec![program("postgres"), "-D".to_owned(), layout.data.display().to_string()];
        let mut spec = self.tool_spec(ready.tools.account, &ready.image, writable, command).await?;
        spec.log = Some(layout.log.join(STARTUP_LOG));
        spec.health = vec![
            program("pg_isready"),
            format!("--host={}", layout.socket_dir.display()),
            format!("--port={PORT}"),
            format!("--username={}", GroupRole::Monitor.login_name(Letter::A)),
            format!("--dbname={DATABASE}"),
            "--quiet".to_owned(),
        ];
        spec.labels.insert(spec::BIN_DIR, ready.survey.bin_dir.display().to_string());
        spec.labels.insert(spec::BANNER, ready.survey.banner.clone());
        Ok(spec)
    }

    /// The server's process, from the engine: `None` when there is no container or nothing runs in it.
    async fn process(&self) -> Result<Option<Running>, Error> {
        let mut hidden = None;
        loop {
            let state = self.own(&self.name()).await?.and_then(|found| found.state);
            let Some(state) = state.filter(|state| state.running == Some(true)) else { return Ok(None) };
            let number = state.pid.unwrap_or_default();
            let pid = u32::try_from(number).unwrap_or_default();
            if postmaster::is_alive(pid) {
                *self.seen.lock().unwrap_or_else(PoisonError::into_inner) = Some(Running::of(pid));
                return Ok(Some(Running::of(pid)));
            }
            // It may have ended between the two questions, which the engine notices soon.
            if hidden == Some(number) {
                return Err(Error::HiddenContainer { pid: number });
            }
            hidden = Some(number);
            tokio::time::sleep(ENGINE_NOTICES).await;
        }
    }
}

#[async_trait]
impl Host for ContainerHost {
    const CHOICE: Choice = Choice::Container;

    fn new(place: Arc<Place>) -> Self {
        Self { place, engine: OnceCell::new(), ready: OnceCell::new(), seen: Mutex::new(None) }
    }

    async fn tools(&self) -> Result<&Tools, Error> {
        Ok(&self.ready().await?.tools)
    }

    /// The engine mounts the directories: the server's user needs no way to them.
    async fn check_way(&self, _: &Tools) -> Result<(), Error> {
        Ok(())
    }

    async fn locales(&self) -> String {
        self.ready.get().map_or_else(String::new, |ready| ready.survey.locales.clone())
    }

    async fn run(&self, tools: &Tools, tool: &Tool<'_>) -> Result<(), Error> {
        let ready = self.ready().await?;
        let mut command = program(tools, tool.name, tool.arguments);
        if let Some(input) = tool.input {
            command = in_shell(FED, input, command);
        }
        let spec = self.tool_spec(tools.account, &ready.image, tool.places.to_vec(), command).await?;
        let outcome = self.run_tool(spec, tool.name, tool.deadline).await?;
        if outcome.code != 0 {
            let output = tail(&outcome.output);
            return Err(Error::Tool { tool: tool.name, status: format!("exit code {}", outcome.code), output });
        }
        Ok(())
    }

    async fn pipe(
        &self,
        tools: &Tools,
        tool: &'static str,
        arguments: &[String],
        password: &Path,
    ) -> Result<(Piped, PipeReader), Error> {
        let path = self.place.layout.socket_dir.join(PIPE);
        let pipe = Pipe::make(&path, tools.account)?;
        let reader = pipe.reader()?;
        let command = in_shell(PIPED, &path, program(tools, tool, arguments));
        let engine = self.engine().await?.clone();
        let environment = format!("PGPASSFILE={}", password.display());
        let exec = engine.begin_exec(&self.name(), command, vec![environment]).await?;
        let end = async move {
            let outcome = exec.end().await;
            // Only now the reader sees the end.
            drop(pipe);
            let outcome = outcome?;
            let failure = (outcome.code != 0).then(|| format!("exit code {}", outcome.code));
            Ok(Ended { failure, said: outcome.output })
        };
        // Whoever reads may do so before asking for the end.
        #[allow(
            clippy::disallowed_methods,
            reason = "it ends with the value that holds it; this crate knows no supervisor"
        )]
        let running = AbortOnDropHandle::new(tokio::spawn(end));
        let lost = Error::io("wait for", tool);
        let end = async move { running.await.unwrap_or_else(|error| Err(lost(std::io::Error::other(error)))) };
        Ok((Box::pin(end), reader))
    }

    async fn running(&self) -> Option<u32> {
        if let Some(seen) = self.seen.lock().unwrap_or_else(PoisonError::into_inner).as_mut()
            && seen.is_alive()
        {
            return Some(seen.pid);
        }
        match tokio::time::timeout(RUNNING_DEADLINE, self.process()).await {
            Ok(Ok(found)) => found.map(|running| running.pid),
            // An engine that hangs or is gone hides no server.
            _ => postmaster::server_in(&self.place.layout.data),
        }
    }

    async fn adopt(&self, _: &Tools, deadline: Instant) -> Result<Option<Running>, Error> {
        let Some(found) = self.own(&self.name()).await? else { return Ok(None) };
        let Some(mut running) = self.process().await? else { return Ok(None) };
        if label_of(&found, spec::FINGERPRINT) == Some(&self.server_spec().await?.fingerprint()) {
            return Ok(Some(running));
        }
        tracing::info!(
            container = self.name(),
            "the running container was made from another image or other limits; \
            it is stopped and replaced"
        );
        postmaster::signal(running.pid, rustix::process::Signal::INT)?;
        while running.is_alive() {
            if Instant::now() >= deadline {
                let deadline = self.place.settings.start_deadline;
                return Err(Error::Deadline { what: "the end of the former server", deadline });
            }
            tokio::time::sleep(STEP).await;
        }
        Ok(None)
    }

    async fn spawn(&self, _: &Tools) -> Result<Running, Error> {
        let (engine, name, spec) = (self.engine().await?, self.name(), self.server_spec().await?);
        // PostgreSQL's own lock does not see through the walls of a container.
        if let Some(pid) = postmaster::in_use(&self.place.layout.data) {
            let reason = "it works in the data directory without being its server".to_owned();
            return Err(Error::ForeignServer { pid, reason });
        }
        if self.own(&name).await?.is_some() {
            engine.remove(&name).await?;
        }
        // Made here and not by the container's shell, whose complaint nobody would hear.
        file::fresh_log(&self.place.layout.log.join(STARTUP_LOG), Some(spec.account))?;
        engine.create(&name, spec.body()).await?;
        if let Err(error) = engine.start(&name).await {
            if let Err(left) = engine.remove(&name).await {
                tracing::warn!(error = %left, container = name, "a container that did not start is left over");
            }
            return Err(error);
        }
        // One that has ended already: who waits for it says so, with its log.
        Ok(self.process().await?.unwrap_or_else(|| Running::of(0)))
    }

    async fn ending(&self) -> Option<String> {
        let state = self.own(&self.name()).await.ok()??.state?;
        let code = state.exit_code.unwrap_or_default();
        let memory = match state.oom_killed {
            Some(true) => ", no memory left: raise database.container.memory",
            _ => "",
        };
        Some(format!("the container's exit code is {code}{memory}"))
    }

    async fn confinement(&self) -> Result<Vec<ContainerItem>, Error> {
        let Some(found) = self.own(&self.name()).await? else { return Ok(Vec::new()) };
        let (spec, limits) = (self.server_spec().await?, self.engine().await?.limits);
        Ok(inspect::judge(&found, &spec, self.place.settings.container.digest.is_some(), limits))
    }

    async fn container(&self) -> Result<Option<Contained>, Error> {
        let (engine, name) = (self.engine().await?, self.name());
        let id = self.own(&name).await?.and_then(|found| found.image);
        let digest = match id {
            Some(id) => image::digest(engine, &id).await?,
            None => String::new(),
        };
        let (engine, image) = (engine.name.clone(), self.place.settings.container.image.clone());
        Ok(Some(Contained { name, engine, image, digest }))
    }

    async fn dismantle(&self) -> Result<(), Error> {
        for name in [self.tool_name(), self.name()] {
            if self.own(&name).await?.is_some() {
                self.engine().await?.remove(&name).await?;
            }
        }
        *self.seen.lock().unwrap_or_else(PoisonError::into_inner) = None;
        Ok(())
    }
}

/// One of PostgreSQL's programs with its arguments.
fn program(tools: &Tools, name: &str, arguments: &[String]) -> Vec<String> {
    let path = tools.bin_dir.join(name).display().to_string();
    std::iter::once(path).chain(arguments.iter().cloned()).collect()
}

/// `script` with `path` as its first argument and the words of a command as the others.
fn in_shell(script: &str, path: &Path, words: Vec<String>) -> Vec<String> {
    let path = path.display().to_string();
    ["/bin/sh", "-c", script, "sh", &path].map(str::to_owned).into_iter().chain(words).collect()
}

fn label_of<'a>(found: &'a ContainerInspectResponse, label: &str) -> Option<&'a String> {
    found.config.as_ref()?.labels.as_ref()?.get(label)
}
