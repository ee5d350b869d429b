//! A container engine behind its socket: Docker's API, which Podman serves too. Every call has a deadline; what the
//! engine says is part of the error, and is never interpreted.

use std::future::Future;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::time::Duration;

use bollard::exec::StartExecResults;
use bollard::models::{
    ContainerCreateBody, ContainerInspectResponse, ExecConfig, ExecInspectResponse, ImageInspect,
    SystemInfoCgroupVersionEnum,
};
use bollard::query_parameters::{
    AttachContainerOptionsBuilder, CreateContainerOptionsBuilder, CreateImageOptionsBuilder,
    RemoveContainerOptionsBuilder,
};
use bollard::{API_DEFAULT_VERSION, Docker};
use futures::{Stream, StreamExt as _, TryStreamExt as _};

use crate::error::Error;
use crate::host::Running;
use crate::postmaster;
use crate::run::STEP;

use super::describe;

/// A question that the engine answers from memory. On a machine with too much to do Podman, which runs other programs
/// to say its own version, was seen to need ten seconds.
pub(crate) const ASK_DEADLINE: Duration = Duration::from_secs(20);
/// Making, starting and removing a container: a busy disk may need its time.
const ACT_DEADLINE: Duration = Duration::from_secs(60);
/// What is kept of a tool's output, bytes.
const MAX_OUTPUT_BYTES: usize = 64 * 1024;
/// The least time between two lines of a pull's progress.
const PROGRESS_STEP: Duration = Duration::from_secs(3);

/// An engine that answers and can run the server.
#[derive(Debug, Clone)]
pub(crate) struct Engine {
    docker: Docker,
    socket: PathBuf,
    /// `Docker 28.2.2 on /run/docker.sock`.
    pub(crate) name: String,
    /// Whether our user must be kept in the container's user namespace: Podman without root.
    pub(crate) keep_id: bool,
    /// Whether it enforces limits on memory, processors and processes.
    pub(crate) limits: bool,
    /// Processors that it can give away.
    pub(crate) cpus: u32,
}

/// How a tool in a container ended.
#[derive(Debug)]
pub(crate) struct Outcome {
    pub(crate) code: i64,
    pub(crate) output: String,
}

/// The sockets to try: the configured one alone, else the user's own engine before the system's.
pub(crate) fn sockets(configured: Option<&Path>) -> Vec<PathBuf> {
    if let Some(socket) = configured {
        return vec![socket.to_path_buf()];
    }
    let uid = rustix::process::geteuid().as_raw();
    let system = ["/run/docker.sock", "/run/podman/podman.sock"].map(PathBuf::from);
    let own = ["podman/podman.sock", "docker.sock"].map(|name| PathBuf::from(format!("/run/user/{uid}/{name}")));
    if uid == 0 { system.to_vec() } else { own.into_iter().chain(system).collect() }
}

impl Engine {
    /// The first engine that answers within `deadline` and is fit.
    ///
    /// # Errors
    /// [`Error::NoEngine`], each socket with its reason.
    pub(crate) async fn find(configured: Option<&Path>, deadline: Duration) -> Result<Self, Error> {
        let mut looked = Vec::new();
        for socket in sockets(configured) {
            match Self::connect(&socket, deadline).await {
                Ok(engine) => return Ok(engine),
                Err(reason) => looked.push(format!("{}: {reason}", socket.display())),
            }
        }
        Err(Error::NoEngine { looked })
    }

    async fn connect(socket: &Path, deadline: Duration) -> Result<Self, String> {
        if !socket.exists() {
            return Err("there is no such socket".to_owned());
        }
        let asked = tokio::time::timeout(deadline, async {
            let version = describe::version(socket).await?;
            let common = version.common(API_DEFAULT_VERSION).ok_or("its version of the API is not one")?;
            // bollard's own limit, in seconds, lies above every one of ours, so that ours tell what was waited for.
            let docker = Docker::connect_with_unix(&socket.display().to_string(), 3600, &common);
            let docker = docker.map_err(|error| said(&error))?;
            let info = docker.info().await.map_err(|error| said(&error))?;
            Ok::<_, String>((docker, version, info))
        })
        .await;
        let (docker, version, info) = match asked {
            Err(_) => return Err(format!("it does not answer within {} s", deadline.as_secs())),
            Ok(Err(reason)) => return Err(reason),
            Ok(Ok(answer)) => answer,
        };
        let is_podman = version.is_podman();
        let options = info.security_options.unwrap_or_default();
        let has = |name: &str| options.iter().any(|option| option.split(',').any(|part| part == name));
        // Podman 4.3 does not say so; its socket belongs to whoever runs it.
        let owner = std::fs::metadata(socket).map(|meta| meta.uid()).unwrap_or_default();
        let rootless =
            has("name=rootless") || options.iter().any(|option| option == "rootless") || (is_podman && owner != 0);
        if !is_podman && (rootless || has("name=userns")) {
            return Err("Docker with mapped users cannot run a container as the owner of the data; Podman can".into());
        }
        let brand = if is_podman { "Podman" } else { "Docker" };
        Ok(Self {
            docker,
            socket: socket.to_owned(),
            name: format!("{brand} {} on {}", version.version, socket.display()),
            keep_id: is_podman && rootless,
            // There nobody but root may make control groups.
            limits: !(rootless && info.cgroup_version == Some(SystemInfoCgroupVersionEnum::_1)),
            cpus: info.ncpu.and_then(|cpus| u32::try_from(cpus).ok()).unwrap_or(1).max(1),
        })
    }

    async fn call<T>(
        &self,
        what: &'static str,
        deadline: Duration,
        work: impl Future<Output = Result<T, bollard::errors::Error>>,
    ) -> Result<T, Error> {
        match tokio::time::timeout(deadline, work).await {
            Err(_) => Err(Error::EngineSilent { what, engine: self.name.clone(), deadline }),
            Ok(Err(error)) => Err(Error::Engine { what, engine: self.name.clone(), reason: said(&error) }),
            Ok(Ok(value)) => Ok(value),
        }
    }

    /// The container of that name, if there is one.
    ///
    /// # Errors
    /// [`Error::Engine`], [`Error::EngineSilent`].
    pub(crate) async fn find_container(&self, name: &str) -> Result<Option<ContainerInspectResponse>, Error> {
        const WHAT: &str = "look at the container";
        let path = format!("/v{}/containers/{name}/json", self.docker.client_version());
        match tokio::time::timeout(ASK_DEADLINE, describe::container(&self.socket, &path)).await {
            Err(_) => Err(Error::EngineSilent { what: WHAT, engine: self.name.clone(), deadline: ASK_DEADLINE }),
            Ok(answer) => answer.map_err(|reason| Error::Engine { what: WHAT, engine: self.name.clone(), reason }),
        }
    }

    /// The image of that name, if it is here.
    ///
    /// # Errors
    /// [`Error::Engine`], [`Error::EngineSilent`].
    pub(crate) async fn find_image(&self, name: &str) -> Result<Option<ImageInspect>, Error> {
        let asked = async { absent(self.docker.inspect_image(name).await) };
        self.call("look at the image", ASK_DEADLINE, asked).await
    }

    /// Fetches an image, with a line of progress in the log every few seconds.
    ///
    /// # Errors
    /// [`Error::Engine`]; [`Error::EngineSilent`] when nothing moves for `stalled`.
    pub(crate) async fn pull(&self, image: &str, stalled: Duration) -> Result<(), Error> {
        const WHAT: &str = "pull the image";
        tracing::info!(image, engine = self.name, "the image is not here; pulling it");
        let options = CreateImageOptionsBuilder::new().from_image(image).build();
        let mut progress = Box::pin(self.docker.create_image(Some(options), None, None));
        let mut told = tokio::time::Instant::now();
        while let Some(step) = self.call(WHAT, stalled, progress.try_next()).await? {
            if let Some(message) = step.error_detail.and_then(|detail| detail.message) {
                return Err(Error::Engine { what: WHAT, engine: self.name.clone(), reason: message });
            }
            if told.elapsed() >= PROGRESS_STEP {
                told = tokio::time::Instant::now();
                let detail = step.progress_detail.unwrap_or_default();
                let (bytes, total) = (detail.current.unwrap_or_default(), detail.total.unwrap_or_default());
                let status = step.status.unwrap_or_default();
                tracing::info!(image, layer = step.id, bytes, total, "pulling: {status}");
            }
        }
        Ok(())
    }

    /// Makes a container; nothing runs.
    ///
    /// # Errors
    /// [`Error::Engine`], [`Error::EngineSilent`].
    pub(crate) async fn create(&self, name: &str, body: ContainerCreateBody) -> Result<(), Error> {
        let options = CreateContainerOptionsBuilder::new().name(name).build();
        let work = self.docker.create_container(Some(options), body);
        self.call("create the container", ACT_DEADLINE, work).await.map(drop)
    }

    /// Starts a container.
    ///
    /// # Errors
    /// [`Error::Engine`], [`Error::EngineSilent`].
    pub(crate) async fn start(&self, name: &str) -> Result<(), Error> {
        self.call("start the container", ACT_DEADLINE, self.docker.start_container(name, None)).await
    }

    /// Removes a container, running or not, with its anonymous volumes; one that does not exist is fine.
    ///
    /// # Errors
    /// [`Error::Engine`], [`Error::EngineSilent`].
    pub(crate) async fn remove(&self, name: &str) -> Result<(), Error> {
        let options = RemoveContainerOptionsBuilder::new().force(true).v(true).build();
        let work = async { absent(self.docker.remove_container(name, Some(options)).await) };
        self.call("remove the container", ACT_DEADLINE, work).await.map(drop)
    }

    /// Runs a container to its end and removes it, whatever happened.
    ///
    /// # Errors
    /// [`Error::Engine`], [`Error::EngineSilent`]; [`Error::Deadline`] of `what`.
    pub(crate) async fn run(
        &self,
        name: &str,
        body: ContainerCreateBody,
        what: &'static str,
        deadline: Duration,
    ) -> Result<Outcome, Error> {
        self.create(name, body).await?;
        let outcome = self.attend(name, what, deadline).await;
        match (outcome, self.remove(name).await) {
            (Ok(outcome), Ok(())) => Ok(outcome),
            (Err(error), _) | (Ok(_), Err(error)) => Err(error),
        }
    }

    /// Starts a command in a running container and listens to what it says.
    ///
    /// # Errors
    /// [`Error::Engine`], [`Error::EngineSilent`].
    pub(crate) async fn begin_exec(
        &self,
        name: &str,
        command: Vec<String>,
        environment: Vec<String>,
    ) -> Result<Exec, Error> {
        const WHAT: &str = "run a program in the container";
        let options = ExecConfig {
            attach_stderr: Some(true),
            attach_stdout: Some(true),
            cmd: Some(command),
            env: Some(environment),
            ..ExecConfig::default()
        };
        let id = self.call(WHAT, ASK_DEADLINE, self.docker.create_exec(name, options)).await?.id;
        match self.call(WHAT, ACT_DEADLINE, self.docker.start_exec(&id, None)).await? {
            StartExecResults::Attached { output, .. } => {
                let (engine, running) = (self.clone(), self.exec_state(&id).await?.pid.and_then(process));
                Ok(Exec { engine, id, output, running })
            }
            StartExecResults::Detached => {
                Err(Error::Engine { what: WHAT, engine: self.name.clone(), reason: "it is detached".to_owned() })
            }
        }
    }

    async fn exec_state(&self, id: &str) -> Result<ExecInspectResponse, Error> {
        self.call("look at the program in the container", ASK_DEADLINE, self.docker.inspect_exec(id)).await
    }

    async fn attend(&self, name: &str, what: &'static str, deadline: Duration) -> Result<Outcome, Error> {
        let options = AttachContainerOptionsBuilder::new().stream(true).stdout(true).stderr(true).build();
        let attached = self.docker.attach_container(name, Some(options));
        let attached = self.call("listen to the container", ACT_DEADLINE, attached).await?;
        self.start(name).await?;
        let listen = async {
            let output = gather(attached.output).await;
            let code = self.call("wait for the container", deadline, self.ended(name)).await?;
            Ok(Outcome { code, output })
        };
        tokio::time::timeout(deadline, listen).await.unwrap_or(Err(Error::Deadline { what, deadline }))
    }

    /// The exit code, once the container has ended.
    async fn ended(&self, name: &str) -> Result<i64, bollard::errors::Error> {
        match Box::pin(self.docker.wait_container(name, None)).next().await {
            Some(Ok(answer)) => Ok(answer.status_code),
            // bollard makes an error of every code but zero.
            Some(Err(bollard::errors::Error::DockerContainerWaitError { code, .. })) => Ok(code),
            Some(Err(error)) => Err(error),
            None => Err(bollard::errors::Error::RequestTimeoutError),
        }
    }
}

/// A process of this machine, where the engine's number is one.
fn process(pid: i64) -> Option<Running> {
    u32::try_from(pid).ok().filter(|pid| *pid > 1).map(Running::of)
}

/// A program that runs in a container. Dropped, it is ended.
pub(crate) struct Exec {
    engine: Engine,
    id: String,
    output: Pin<Box<dyn Stream<Item = Result<bollard::container::LogOutput, bollard::errors::Error>> + Send>>,
    running: Option<Running>,
}

impl Exec {
    /// Waits for its end, which the engine may see a moment after its output's.
    ///
    /// # Errors
    /// [`Error::Engine`], [`Error::EngineSilent`].
    pub(crate) async fn end(mut self) -> Result<Outcome, Error> {
        let output = gather(&mut self.output).await;
        let begun = tokio::time::Instant::now();
        loop {
            if let Some(code) = self.engine.exec_state(&self.id).await?.exit_code {
                return Ok(Outcome { code, output });
            }
            if begun.elapsed() >= ACT_DEADLINE {
                let (what, engine) = ("wait for the program in the container", self.engine.name.clone());
                return Err(Error::EngineSilent { what, engine, deadline: ACT_DEADLINE });
            }
            tokio::time::sleep(STEP).await;
        }
    }
}

impl Drop for Exec {
    fn drop(&mut self) {
        // As a process of this machine: closing the engine's connection ends nothing.
        if let Some(running) = self.running.as_mut()
            && running.is_alive()
            && let Err(error) = postmaster::signal(running.pid, rustix::process::Signal::KILL)
        {
            tracing::warn!(%error, "a program in the container could not be ended");
        }
    }
}

async fn gather(
    mut output: impl Stream<Item = Result<bollard::container::LogOutput, bollard::errors::Error>> + Unpin,
) -> String {
    let mut bytes = Vec::new();
    // The end of the stream is the end of the tool, however it comes.
    while let Some(Ok(part)) = output.next().await {
        let room = MAX_OUTPUT_BYTES - bytes.len();
        bytes.extend_from_slice(&part.as_ref()[..part.as_ref().len().min(room)]);
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

/// Not found is an answer.
fn absent<T>(answer: Result<T, bollard::errors::Error>) -> Result<Option<T>, bollard::errors::Error> {
    match answer {
        Ok(value) => Ok(Some(value)),
        Err(bollard::errors::Error::DockerResponseServerError { status_code: 404, .. }) => Ok(None),
        Err(error) => Err(error),
    }
}

/// What the engine said, without the library's frame around it.
fn said(error: &bollard::errors::Error) -> String {
    match error {
        bollard::errors::Error::DockerResponseServerError { status_code, message } => {
            format!("{} (status {status_code})", message.trim())
        }
        bollard::errors::Error::DockerStreamError { error } => error.clone(),
        other => {
            let mut text = other.to_string();
            let mut cause = std::error::Error::source(other);
            while let Some(inner) = cause {
                let more = inner.to_string();
                if !text.contains(&more) {
                    text = format!("{text}: {more}");
                }
                cause = inner.source();
            }
            text
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_socket_that_hangs_is_told_within_seconds() {
        let here = tempfile::tempdir().unwrap();
        let socket = here.path().join("engine.sock");
        let nobody = Engine::find(Some(&socket), ASK_DEADLINE).await.unwrap_err();
        assert!(nobody.to_string().contains("there is no such socket") && nobody.hint().is_some(), "{nobody}");
        // Connections are taken by the kernel, and nobody ever answers.
        let _listens = std::os::unix::net::UnixListener::bind(&socket).unwrap();
        let silent = Engine::find(Some(&socket), Duration::from_secs(1)).await.unwrap_err();
        assert!(silent.to_string().contains("does not answer within 1 s"), "{silent}");
    }
}
