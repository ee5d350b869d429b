//! The pod is made, brought up, waited for, and brought down. What differs under an operator is in
//! [`operator`](super::operator).
//!
//! Making it takes the same two durable steps as elsewhere: PROVISIONER says `initialising` before any object is there,
//! and which cluster it is once the pod has said so. Whatever dies in between, the next start applies the same objects
//! again and goes on.

use std::time::Duration;

use k8s_openapi::api::core::v1::Pod;
use secrecy::ExposeSecret as _;
use tokio::time::Instant;

use super::why::{self, why};
use super::{KubernetesPostgres, trouble};
use crate::error::Error;
use crate::kubernetes::cluster::Effect;
use crate::kubernetes::manifests::{Content, FINGERPRINT, Manifest, database};
use crate::kubernetes::names::{CONTAINER, INIT};
use crate::kubernetes::script::said;
use crate::kubernetes::trouble::Trouble;
use crate::probe::Answer;
use crate::provisioner::{ManagedPostgres as _, Provisioned, Started, State, Stop};
use crate::record::{Choice, Record, RecordState};
use crate::run::checkpoint;
use crate::scram;
use crate::secrets::DbSecrets;
use crate::version::Version;

/// The pod of this object.
#[derive(Default)]
pub(super) struct Server {
    /// Whether it should run: its end is then not a stop.
    pub(super) wanted: bool,
    /// How this object came by it, as long as nobody was told: provisioning leaves it running.
    pub(super) found: Option<Started>,
    /// Whether this object has seen it up.
    pub(super) is_up: bool,
}

pub(super) const ASK_DEADLINE: Duration = Duration::from_secs(1);
pub(super) const STEP: Duration = Duration::from_millis(200);
/// How often the cluster is asked while the server is waited for.
pub(super) const LOOK_EVERY: Duration = Duration::from_secs(1);
/// How long a pod that runs may take to answer before it is asked why.
const ADOPTED_DEADLINE: Duration = Duration::from_secs(15);
/// How long one that is ended at once may take to be gone.
const KILL_DEADLINE: Duration = Duration::from_secs(60);
/// What a kubelet may take beside the server's own time to stop.
const KUBELET_S: u64 = 30;

impl KubernetesPostgres {
    pub(super) async fn provision_locked(&self, server: &mut Server) -> Result<Provisioned, Error> {
        let objects = &self.own.objects;
        // Before anything is asked: where another provisioner was chosen, there is nothing to find here.
        let record = self.record()?;
        self.refuse_settings()?;
        if let Some(record) = &record {
            self.refuse_other_mode(record)?;
            if record.major != objects.major {
                return Err(trouble(Trouble::OtherMajor { data: record.major, configured: objects.major }));
            }
            if record.state == RecordState::Ready {
                DbSecrets::read(self.secrets.as_ref())?.ok_or(Error::SecretsMissing)?;
                let system_identifier = record.system_identifier.ok_or(Error::NotProvisioned)?;
                return Ok(Provisioned { created: false, version: self.version().await?, system_identifier });
            }
        }
        self.refuse_foreign().await?;
        if record.is_none() {
            self.refuse_unknown_data().await?;
            self.prepare_home()?;
            let record = Record::initialising(Choice::Kubernetes, objects.major);
            let record = if self.is_operated() { record.of_operator() } else { record };
            record.write(&self.layout().provisioner)?;
        }
        server.wanted = true;
        let system_identifier =
            if self.is_operated() { self.initialise_operated(server).await? } else { self.initialise(server).await? };
        Ok(Provisioned { created: true, version: self.version().await?, system_identifier })
    }

    /// Data that nothing here knows of is never taken for this node's.
    async fn refuse_unknown_data(&self) -> Result<(), Error> {
        if self.is_operated() {
            return self.refuse_unknown_cluster().await;
        }
        let claim = self.own.objects.claim();
        if self.cluster().await?.find_claim(self.namespace(), &claim).await?.is_some() {
            let provisioner = self.layout().provisioner.clone();
            return Err(trouble(Trouble::VolumeUnknown { claim, provisioner }));
        }
        Ok(())
    }

    /// The pod makes the cluster and says which it is.
    async fn initialise(&self, server: &mut Server) -> Result<u64, Error> {
        let secrets = DbSecrets::first(self.secrets.as_ref(), &self.random)?;
        let verifier = scram::verifier(secrets.admin(), &self.random);
        drop(secrets);
        let content = self.content(None, Some(verifier.expose_secret()))?;
        // One that a former attempt left may run already: it is the same.
        let found = self.bring_up(content).await?;
        let identifier = self.identity().await?.ok_or_else(|| trouble(Trouble::NoIdentity { pod: self.pod() }))?;
        Record::ready(Choice::Kubernetes, self.own.objects.major, identifier).write(&self.layout().provisioner)?;
        // From now on the volume must hold this cluster, and the verifier is nowhere but in it.
        self.apply(&self.content(Some(identifier), None)?).await?;
        (server.is_up, server.found) = (true, Some(found));
        Ok(identifier)
    }

    pub(super) async fn start_locked(&self, server: &mut Server) -> Result<Started, Error> {
        server.wanted = true;
        self.state.send_replace(State::Starting);
        let outcome = self.begin(server).await;
        match &outcome {
            Ok(_) => self.state.send_replace(State::Running),
            Err(error) => self.state.send_replace(State::Crashed { attempt: 1, reason: error.to_string() }),
        };
        outcome
    }

    async fn begin(&self, server: &mut Server) -> Result<Started, Error> {
        self.refuse_settings()?;
        let record = self.record()?.ok_or(Error::NotProvisioned)?;
        let expected = match (record.state, record.system_identifier) {
            (RecordState::Ready, Some(expected)) => expected,
            _ => return Err(Error::NotProvisioned),
        };
        self.refuse_other_mode(&record)?;
        self.refuse_foreign().await?;
        let found =
            if self.is_operated() { self.resume_operated(expected).await? } else { self.resume(expected).await? };
        let was_up = std::mem::replace(&mut server.is_up, true);
        Ok(match server.found.take() {
            Some(how) => how,
            None if was_up && found == Started::Adopted => Started::AlreadyRunning,
            None => found,
        })
    }

    /// Brings up the cluster `expected`.
    async fn resume(&self, expected: u64) -> Result<Started, Error> {
        let started = self.bring_up(self.content(Some(expected), None)?).await?;
        match self.identity().await? {
            Some(found) if found != expected => {
                Err(trouble(Trouble::OtherCluster { pod: self.pod(), expected, found }))
            }
            // Its own script has seen to it.
            _ => Ok(started),
        }
    }

    /// Applies everything and waits for the server. A pod that was made from something else is ended first.
    async fn bring_up(&self, content: Content) -> Result<Started, Error> {
        let deadline = Instant::now() + self.place.settings.start_deadline;
        let wanted = fingerprint(&database(&self.own.objects, &content));
        let found = match self.look().await? {
            Some(pod) if pod.metadata.deletion_timestamp.is_some() => {
                self.wait_gone(KILL_DEADLINE.max(self.grace())).await?;
                Started::Spawned
            }
            Some(pod) if mark_of(&pod) == wanted => Started::Adopted,
            Some(_) => {
                tracing::info!(pod = self.pod(), "the database's pod was made from other settings, and is made anew");
                self.scale_down().await?;
                self.wait_gone(self.grace()).await?;
                Started::Spawned
            }
            None => Started::Spawned,
        };
        self.apply(&content).await?;
        if found == Started::Adopted && self.is_shut_out(deadline).await? {
            tracing::warn!(pod = self.pod(), "the database's pod takes none of our certificates, and is made anew");
            self.scale_down().await?;
            self.wait_gone(self.grace()).await?;
            self.apply(&content).await?;
            self.wait_ready(Instant::now() + self.place.settings.start_deadline).await?;
            return Ok(Started::Spawned);
        }
        self.wait_ready(deadline).await?;
        Ok(found)
    }

    /// Whether a pod that says itself that it is ready is not so for us: it has read certificates that nobody has any
    /// more, or that ended while no daemon was there, and only what logs in could have it read others.
    async fn is_shut_out(&self, deadline: Instant) -> Result<bool, Error> {
        let soon = deadline.min(Instant::now() + ADOPTED_DEADLINE);
        if self.wait_ready(soon).await.is_ok() {
            return Ok(false);
        }
        let pod = self.look().await?;
        let status = pod.as_ref().and_then(|pod| why::container_of(pod, CONTAINER));
        Ok(status.is_some_and(|status| status.ready))
    }

    /// Applies every object, and learns through which port the server is reached.
    pub(super) async fn apply(&self, content: &Content) -> Result<(), Error> {
        let cluster = self.cluster().await?;
        let mut changed = Vec::new();
        for manifest in database(&self.own.objects, content) {
            match cluster.apply(&manifest).await? {
                Effect::Same => {}
                effect => changed.push(format!("{} {effect:?}", manifest.kind())),
            }
        }
        if !changed.is_empty() {
            tracing::info!(objects = ?changed, "objects of the database were applied to Kubernetes");
        }
        if !self.own.objects.outside.is_empty() {
            self.endpoint.move_to(self.node_port().await?);
        }
        Ok(())
    }

    /// The port of the nodes that leads to the server.
    async fn node_port(&self) -> Result<u16, Error> {
        let service = self.own.objects.outside_service();
        for manifest in self.only(&["Service"]).iter().filter(|one| one.name() == service) {
            let found = self.cluster().await?.find_like(manifest).await?.unwrap_or_default();
            let port = found.pointer("/spec/ports/0/nodePort").and_then(serde_json::Value::as_u64);
            if let Some(port) = port.and_then(|port| u16::try_from(port).ok()) {
                return Ok(port);
            }
        }
        Err(trouble(Trouble::NoNodePort { service }))
    }

    /// Waits until the server takes connections.
    async fn wait_ready(&self, deadline: Instant) -> Result<(), Error> {
        let mut looked = Instant::now();
        loop {
            match self.endpoint.ask(ASK_DEADLINE).await {
                // Refusing: it is up, if busy; the pools will say what it says.
                Answer::Accepting | Answer::Refusing(_) => return Ok(()),
                Answer::NotYet | Answer::Absent | Answer::Silent | Answer::Foreign(_) => {}
            }
            let late = Instant::now() >= deadline;
            if late || looked.elapsed() >= LOOK_EVERY {
                looked = Instant::now();
                match self.look().await {
                    Ok(pod) if late || why(pod.as_ref(), &[]).is_final => {
                        return Err(self.not_up(pod.as_ref(), late).await);
                    }
                    Err(error) if late => return Err(error),
                    // A cluster that fails for a moment fails nobody who waits.
                    Ok(_) | Err(_) => {}
                }
            }
            tokio::time::sleep(STEP).await;
        }
    }

    /// The error of a pod that does not come up, with all that the cluster says about it.
    async fn not_up(&self, pod: Option<&Pod>, late: bool) -> Error {
        let mut warnings = Vec::new();
        if let Ok(cluster) = self.cluster().await {
            for about in [self.own.objects.name.clone(), self.pod()] {
                // What cannot be told is not what failed.
                warnings.extend(cluster.warnings(self.namespace(), &about).await.unwrap_or_default());
            }
        }
        let mut found = why(pod, &warnings);
        let mut log = Vec::new();
        if let (Some(container), Ok(cluster)) = (found.log, self.cluster().await) {
            let lines = why::lines_of(pod, container);
            log = cluster.log(self.namespace(), &self.pod(), container, lines).await.unwrap_or_default();
        }
        if late {
            let seconds = self.place.settings.start_deadline.as_secs();
            found.reason = format!("after {seconds} s {}", found.reason);
        }
        trouble(Trouble::NotUp { pod: self.pod(), reason: found.reason, log, hint: found.hint })
    }

    pub(super) async fn stop_locked(&self, server: &mut Server, mode: Stop) -> Result<(), Error> {
        server.wanted = false;
        let outcome = self.bring_down(mode).await;
        if outcome.is_ok() {
            *server = Server::default();
            self.state.send_replace(State::Stopped);
        }
        outcome
    }

    async fn bring_down(&self, mode: Stop) -> Result<(), Error> {
        self.refuse_foreign().await?;
        if self.is_operated() {
            return self.bring_down_operated(mode).await;
        }
        let Some(pod) = self.look().await? else {
            // It may be about to be made.
            return self.scale_down().await;
        };
        if mode == Stop::Clean && self.endpoint.ask(ASK_DEADLINE).await == Answer::Accepting {
            let options = |login: &_| self.connect_options(login);
            if let Err(error) = checkpoint(self.secrets.as_ref(), options).await {
                tracing::warn!(%error, "no checkpoint before the stop; the server makes one while it stops");
            }
        }
        self.scale_down().await?;
        let was_ready = why::container_of(&pod, CONTAINER).is_some_and(|status| status.ready);
        let end = match mode {
            Stop::Clean => self.wait_gone(self.grace()).await?,
            Stop::Immediate => {
                self.cluster().await?.kill_pod(self.namespace(), &self.pod()).await?;
                self.wait_gone(KILL_DEADLINE).await?
            }
        };
        match end {
            // One that was never up had nothing to end in order.
            Some(code) if code != 0 && mode == Stop::Clean && was_ready => {
                Err(Error::UncleanStop { state: format!("exit code {code}") })
            }
            None if mode == Stop::Clean => {
                tracing::debug!("the pod was gone before its end could be seen");
                Ok(())
            }
            _ => Ok(()),
        }
    }

    /// The StatefulSet makes no pod any more. One that is not there is not made for it.
    async fn scale_down(&self) -> Result<(), Error> {
        let cluster = self.cluster().await?;
        for manifest in database(&self.own.objects, &self.bare_content(None, false)) {
            if manifest.kind() == "StatefulSet" && cluster.find_like(&manifest).await?.is_some() {
                cluster.apply(&manifest).await?;
            }
        }
        Ok(())
    }

    /// Waits until there is no pod; how its server ended, where that was to be seen.
    async fn wait_gone(&self, deadline: Duration) -> Result<Option<i32>, Error> {
        let (begun, mut code) = (Instant::now(), None);
        loop {
            let is = match self.look().await {
                Ok(None) => return Ok(code),
                Ok(Some(pod)) => {
                    let end = why::container_of(&pod, CONTAINER).and_then(why::ended).map(|end| end.exit_code);
                    code = end.or(code);
                    Ok(why(Some(&pod), &[]).reason)
                }
                Err(error) => Err(error),
            };
            if begun.elapsed() >= deadline {
                let (pod, seconds) = (self.pod(), deadline.as_secs());
                return Err(trouble(Trouble::NotGone { pod, seconds, reason: is? }));
            }
            tokio::time::sleep(STEP).await;
        }
    }

    /// How long a clean stop may take.
    pub(super) fn grace(&self) -> Duration {
        self.own.objects.stop_deadline + Duration::from_secs(KUBELET_S)
    }

    /// The pod as it is now.
    pub(super) async fn look(&self) -> Result<Option<Pod>, Error> {
        if self.is_operated() {
            return Ok(self.look_at_operated().await?.and_then(|(_, pod)| pod));
        }
        Ok(self.cluster().await?.find_pod(self.namespace(), &self.pod()).await?)
    }

    /// Which cluster the pod that runs has found or made, as its first container said.
    async fn identity(&self) -> Result<Option<u64>, Error> {
        Ok(self.look().await?.and_then(|pod| self.note_version(&pod)).map(|(identifier, _)| identifier))
    }

    /// Keeps the version that the pod's first container named.
    pub(super) fn note_version(&self, pod: &Pod) -> Option<(u64, Version)> {
        let end = why::container_of(pod, INIT).and_then(why::ended)?;
        let told = said(why::last_words(end))?;
        self.keep_version(told.1);
        Some(told)
    }

    /// What no cluster needs to be asked for.
    fn refuse_settings(&self) -> Result<(), Error> {
        let objects = &self.own.objects;
        if !objects.outside.is_empty() && objects.outside_host.is_none() {
            return Err(trouble(Trouble::NoOutsideHost));
        }
        Ok(())
    }

    /// A database made in one mode is not taken up in the other: its volume is not found there.
    fn refuse_other_mode(&self, record: &Record) -> Result<(), Error> {
        let name = |operator| if operator { "operator" } else { "statefulset" };
        if record.operator == self.is_operated() {
            return Ok(());
        }
        let (made, configured) = (name(record.operator), name(self.is_operated()));
        Err(trouble(Trouble::OtherMode { made, configured }))
    }

    /// Whose the StatefulSet or the `Cluster` is that has our name.
    pub(super) async fn refuse_foreign(&self) -> Result<(), Error> {
        let Some(own) = &self.own.objects.node else { return Ok(()) };
        for manifest in self.only(&["StatefulSet", "Cluster"]) {
            let Some(found) = self.cluster().await?.find_like(&manifest).await? else { continue };
            let node = found.pointer("/metadata/labels/bib.node").and_then(serde_json::Value::as_str);
            if node != Some(own) {
                let (kind, name) = (manifest.kind().to_owned(), manifest.name().to_owned());
                let found = node.unwrap_or("nothing").to_owned();
                return Err(trouble(Trouble::Foreign { kind, name, found, expected: own.clone() }));
            }
        }
        Ok(())
    }
}

/// What a pod of these objects would be made from.
fn fingerprint(all: &[Manifest]) -> Option<String> {
    let set = all.iter().find(|manifest| manifest.kind() == "StatefulSet")?;
    let marks = set.value().pointer("/spec/template/metadata/annotations")?;
    marks.get(FINGERPRINT)?.as_str().map(str::to_owned)
}

/// What this pod was made from.
fn mark_of(pod: &Pod) -> Option<String> {
    pod.metadata.annotations.as_ref()?.get(FINGERPRINT).cloned()
}
