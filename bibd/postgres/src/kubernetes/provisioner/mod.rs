//! The Kubernetes provisioner: a StatefulSet with one pod, or a `Cluster` of the operator CloudNativePG, made and watched
//! through the API, spoken to over TLS.
//!
//! What lies here is little: PROVISIONER, the sealed passwords, and the certificates of the database's own authority.
//! The server's files lie in its volume, which only the pod's own script opens ([`script`](super::script)). Kubernetes
//! starts a pod again that ended; this room says whether one is to run, waits for it, and tells what becomes of it.
//!
//! How the pod is brought up and down is in `life`, and under the operator in `operator`; what becomes of it in `watching`,
//! why it is not up in `why`, and what the checklist sees of it in `walls`. PostgreSQL's programs beside the server (`pg_basebackup`, `pg_receivewal`)
//! are this machine's, of the same major version.

mod life;
mod operator;
mod walls;
mod watching;
mod why;

use std::io::{PipeReader, Read};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex as Brief, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use k8s_openapi::api::core::v1::Pod;
use secrecy::{ExposeSecret as _, SecretString};
use sqlx::postgres::PgConnectOptions;
use tokio::sync::{Mutex, OnceCell, watch};
use tokio_util::sync::CancellationToken;

use super::cluster::{Cluster, ClusterError, Effect};
use super::manifests::{Content, GROUP, Manifest, REPLICATION_CERTIFICATE, REPLICATION_KEY, database};
use super::names::{CONTAINER, VERIFIER};
use super::settings::{Access, InKubernetes, Mode};
use super::trouble::Trouble;
use crate::account::Account;
use crate::backup::{self, BaseBackup, Origin};
use crate::checklist::Facts;
use crate::config::Config;
use crate::dump::{self, Dump, LoadError};
use crate::error::Error;
use crate::file;
use crate::host::{Host as _, Place, Tools};
use crate::probe::Answer;
use crate::process::ProcessHost;
use crate::provisioner::{Contained, Health, ManagedPostgres, Provisioned, Started, State, Stop};
use crate::random::Randomness;
use crate::receive::Programs;
use crate::record::{Choice, Record};
use crate::role::{Login, OPERATOR_REPLICA};
use crate::secrets::{DbSecrets, SecretStore};
use crate::settings::{Layout, PORT, Settings};
use crate::tcp::{Authority, CA_FILE, CERTIFICATE_FILE, Endpoint, KEY_FILE};
use crate::version::Version;

use life::Server;

/// How long [`ManagedPostgres::health`] waits for the server, and for the cluster once more.
const HEALTH_DEADLINE: Duration = Duration::from_secs(2);

/// A PostgreSQL in a pod.
pub struct KubernetesPostgres {
    place: Arc<Place>,
    own: InKubernetes,
    /// PostgreSQL's programs of this machine.
    programs: ProcessHost,
    secrets: Arc<dyn SecretStore>,
    random: Randomness,
    endpoint: Endpoint,
    cluster: OnceCell<Cluster>,
    /// One start, stop or provisioning at a time: the lock is meant to be held while they wait.
    server: Mutex<Server>,
    /// The version of the image's programs, once the pod has said it.
    version: Brief<Option<Version>>,
    state: watch::Sender<State>,
}

impl KubernetesPostgres {
    /// A server under `settings` in Kubernetes; touches nothing yet. Clients connect to the pod's own name, or to the
    /// port of a node where bibd is outside.
    pub fn new(mut settings: Settings, own: InKubernetes, secrets: Arc<dyn SecretStore>, random: Randomness) -> Self {
        // The programs of this machine must be of the image's version, also before there is data.
        settings.major = Some(own.objects.major);
        let place = Arc::new(Place::new(settings));
        let authority = Authority::new(secrets.clone(), random.clone(), own.clock.clone());
        let host = own.objects.outside_host.clone().unwrap_or_else(|| own.objects.host());
        Self {
            endpoint: Endpoint::new(host, PORT, authority),
            programs: ProcessHost::new(place.clone()),
            place,
            own,
            secrets,
            random,
            cluster: OnceCell::new(),
            server: Mutex::new(Server::default()),
            version: Brief::new(None),
            state: watch::Sender::new(State::Stopped),
        }
    }

    /// Whether a database could be made: this process is a pod, and its account may create what makes one.
    ///
    /// # Errors
    /// With what is in the way.
    pub(crate) async fn at_hand(own: &InKubernetes) -> Result<String, Trouble> {
        let cluster = match &own.access {
            Access::Found | Access::File(_) => Cluster::around()?,
            Access::Given(_) => Cluster::by(&own.access).await?,
        };
        Self::may_make(own, &cluster).await
    }

    /// Whether a database could be made in the cluster that is named.
    ///
    /// # Errors
    /// With what is in the way.
    pub(crate) async fn reached(own: &InKubernetes) -> Result<String, Trouble> {
        Self::may_make(own, &Cluster::by(&own.access).await?).await
    }

    async fn may_make(own: &InKubernetes, cluster: &Cluster) -> Result<String, Trouble> {
        let namespace = own.objects.namespace.clone();
        let (kind, group, resource) = match own.objects.mode {
            Mode::StatefulSet => ("StatefulSet", "apps", "statefulsets"),
            Mode::Operator => ("Cluster", GROUP, "clusters"),
        };
        if !cluster.may_create(&namespace, group, resource).await? {
            return Err(Trouble::MayNot { kind, namespace });
        }
        // A role may name a kind that the cluster does not know.
        if own.objects.mode == Mode::Operator {
            operator::refuse_absence(own, cluster).await?;
        }
        Ok(format!("Kubernetes at {}, namespace `{namespace}`", cluster.server()))
    }

    async fn cluster(&self) -> Result<&Cluster, Error> {
        self.cluster.get_or_try_init(|| Cluster::by(&self.own.access)).await.map_err(trouble)
    }

    fn pod(&self) -> String {
        self.own.objects.pod()
    }

    fn namespace(&self) -> &str {
        &self.own.objects.namespace
    }

    /// The configuration files as they should be.
    fn config(&self) -> Config {
        self.own.objects.config(&self.place.settings.limits, &self.place.settings.wal)
    }

    /// What the objects carry, without a secret: enough for all but the Secret.
    fn bare_content(&self, cluster: Option<u64>, running: bool) -> Content {
        let mut content = Content::new(&self.config());
        (content.cluster, content.running) = (cluster, running);
        content
    }

    /// What the objects carry. `verifier` is the superuser's, where one is to be known there.
    fn content(&self, cluster: Option<u64>, verifier: Option<&str>) -> Result<Content, Error> {
        let objects = &self.own.objects;
        let names: Vec<String> = [objects.host()].into_iter().chain(objects.outside_host.clone()).collect();
        let files = self.endpoint.authority().ensure(&names)?;
        let mut content = self.bare_content(cluster, true);
        content.secrets = [
            (CA_FILE, files.ca.as_bytes()),
            (CERTIFICATE_FILE, files.certificate.as_bytes()),
            (KEY_FILE, files.key.expose_secret().as_bytes()),
        ]
        .into_iter()
        .chain(verifier.map(|text| (VERIFIER, text.as_bytes())))
        .map(|(name, bytes)| (name.to_owned(), bytes.to_vec()))
        .collect();
        if self.is_operated() {
            let replica = self.endpoint.authority().ensure_replica(OPERATOR_REPLICA)?;
            let key = replica.key.expose_secret().as_bytes();
            for (name, bytes) in [(REPLICATION_CERTIFICATE, replica.certificate.as_bytes()), (REPLICATION_KEY, key)] {
                content.secrets.insert(name.to_owned(), bytes.to_vec());
            }
        }
        Ok(content)
    }

    /// The objects of `kinds` of what is applied, for what is only asked about or removed.
    fn only(&self, kinds: &[&str]) -> Vec<Manifest> {
        let mut all = database(&self.own.objects, &self.bare_content(None, true));
        all.retain(|manifest| kinds.is_empty() || kinds.contains(&manifest.kind()));
        all
    }

    /// The name of the pod that is looked at; where there is none, of the one to come, or of the `Cluster`.
    fn name_of(&self, pod: Option<&Pod>) -> String {
        let otherwise = || if self.is_operated() { self.own.objects.name.clone() } else { self.pod() };
        pod.and_then(|pod| pod.metadata.name.clone()).unwrap_or_else(otherwise)
    }

    /// PROVISIONER, if it is of this provisioner.
    fn record(&self) -> Result<Option<Record>, Error> {
        Record::read_of(Choice::Kubernetes, &self.layout().provisioner)
    }

    /// This machine's programs, with the directories that they work in.
    async fn programs(&self) -> Result<&Tools, Error> {
        let tools = self.programs.tools().await?;
        let layout = self.layout();
        for directory in [&layout.spool, &layout.socket_dir] {
            file::ensure_dir(directory, tools.account.uid, tools.account.gid, 0o700)?;
        }
        self.place.settings.on_new_directory.run(&layout.spool)?;
        Ok(tools)
    }

    /// `postgres/`, for PROVISIONER and what comes of the log. Its user passes through to the spool.
    fn prepare_home(&self) -> Result<(), Error> {
        let (own, group) = (rustix::process::geteuid().as_raw(), rustix::process::getegid().as_raw());
        file::ensure_dir(&self.layout().home, own, group, if own == 0 { 0o711 } else { 0o700 })
    }

    fn keep_version(&self, version: Version) {
        *self.version.lock().unwrap_or_else(PoisonError::into_inner) = Some(version);
    }

    /// Why it does not answer, as far as the cluster says; nothing where nothing of it runs.
    async fn described(&self) -> Result<Option<String>, Error> {
        if !self.is_operated() {
            return Ok(self.look().await?.map(|pod| why::why(Some(&pod), &[]).reason));
        }
        let seen = self.look_at_operated().await?;
        Ok(seen.and_then(|(operated, pod)| {
            let pod = pod.map(|pod| why::why(Some(&pod), &[]).reason);
            match (pod, operated.is_hibernated) {
                (None, true) => None,
                (None, false) => Some(operated.said()),
                (Some(reason), _) => Some(format!("{}; {reason}", operated.said())),
            }
        }))
    }

    fn known_version(&self) -> Option<Version> {
        *self.version.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn trouble(error: impl Into<Trouble>) -> Error {
    Error::Kubernetes(Box::new(error.into()))
}

#[async_trait]
impl ManagedPostgres for KubernetesPostgres {
    fn choice(&self) -> Choice {
        Choice::Kubernetes
    }

    async fn provision(&self) -> Result<Provisioned, Error> {
        let mut server = self.server.lock().await;
        self.provision_locked(&mut server).await
    }

    async fn start(&self) -> Result<Started, Error> {
        let mut server = self.server.lock().await;
        self.start_locked(&mut server).await
    }

    async fn stop(&self, mode: Stop) -> Result<(), Error> {
        let mut server = self.server.lock().await;
        self.stop_locked(&mut server, mode).await
    }

    async fn health(&self) -> Health {
        match self.endpoint.ask(HEALTH_DEADLINE).await {
            Answer::Accepting => Health::Ready,
            Answer::NotYet => Health::Starting,
            Answer::Foreign(reason) => Health::Degraded { reason },
            Answer::Absent | Answer::Silent | Answer::Refusing(_) => {
                let looked = tokio::time::timeout(HEALTH_DEADLINE, self.described()).await;
                match looked {
                    Ok(Ok(None)) => Health::Stopped,
                    Ok(Ok(Some(reason))) => Health::Degraded { reason },
                    Ok(Err(error)) => Health::Degraded { reason: error.to_string() },
                    Err(_) => Health::Degraded { reason: "neither the server nor Kubernetes answers".to_owned() },
                }
            }
        }
    }

    fn connect_options(&self, login: &Login) -> PgConnectOptions {
        self.endpoint.options(login)
    }

    fn endpoint(&self) -> Option<&Endpoint> {
        Some(&self.endpoint)
    }

    async fn log_programs(&self) -> Result<Option<Programs>, Error> {
        let tools = self.programs().await?;
        Ok(Some(Programs { bin_dir: tools.bin_dir.clone(), account: tools.account }))
    }

    async fn renew_certificates(&self) -> Result<bool, Error> {
        let _one_at_a_time = self.server.lock().await;
        let cluster = self.record()?.and_then(|record| record.system_identifier).ok_or(Error::NotProvisioned)?;
        if self.is_operated() {
            let secrets = DbSecrets::read(self.secrets.as_ref())?.ok_or(Error::SecretsMissing)?;
            let passwords = [Some(secrets.admin()), secrets.admin_next()];
            return self.apply_secrets(&passwords.into_iter().flatten().collect::<Vec<_>>()).await;
        }
        let content = self.content(Some(cluster), None)?;
        let mut changed = false;
        for manifest in database(&self.own.objects, &content) {
            if manifest.kind() == "Secret" {
                changed |= self.cluster().await?.apply(&manifest).await.map_err(trouble)? != Effect::Same;
            }
        }
        Ok(changed)
    }

    async fn give_superuser(&self, next: &SecretString) -> Result<bool, Error> {
        if !self.is_operated() {
            return Ok(false);
        }
        let _one_at_a_time = self.server.lock().await;
        self.have_superuser_given(next).await.map(|()| true)
    }

    async fn version(&self) -> Result<Version, Error> {
        if let Some(version) = self.known_version() {
            return Ok(version);
        }
        if self.is_operated() {
            if self.endpoint.ask(HEALTH_DEADLINE).await == Answer::Accepting {
                // What it does not say now is said with the next start.
                let _ = self.identify(tokio::time::Instant::now()).await;
            }
        } else if let Ok(Some(pod)) = self.look().await {
            self.note_version(&pod);
        }
        // What it must be, when nobody can be asked.
        Ok(self.known_version().unwrap_or(Version { major: self.own.objects.major, minor: 0 }))
    }

    async fn facts(&self) -> Result<Facts, Error> {
        self.look_at_walls().await
    }

    fn layout(&self) -> &Layout {
        &self.place.layout
    }

    async fn origin(&self) -> Result<Origin, Error> {
        let identifier = self.record()?.and_then(|record| record.system_identifier);
        let system_identifier = identifier.ok_or(Error::NotProvisioned)?;
        Ok(Origin { system_identifier, version: self.version().await? })
    }

    async fn base_backup(&self, login: &Login, label: &str) -> Result<(BaseBackup, PipeReader), Error> {
        self.programs().await?;
        backup::begin(self, &self.programs, login, label).await
    }

    async fn dump(&self, login: &Login) -> Result<(Dump, PipeReader), Error> {
        self.programs().await?;
        dump::begin(self, &self.programs, login).await
    }

    async fn load(&self, _: &Login, _: Box<dyn Read + Send>) -> Result<(), LoadError> {
        Err(trouble(Trouble::RestoreElsewhere).into())
    }

    async fn verify_files(&self, data: &Path) -> Result<(), Error> {
        backup::verify_files(&self.programs, data).await
    }

    async fn begin_restore(&self, _: u32) -> Result<(PathBuf, Account), Error> {
        Err(trouble(Trouble::RestoreElsewhere))
    }

    async fn finish_restore(&self, _: u64) -> Result<(), Error> {
        Err(trouble(Trouble::RestoreElsewhere))
    }

    async fn settle_restore(&self, _: i64) -> Result<(), Error> {
        Err(trouble(Trouble::RestoreElsewhere))
    }

    async fn container(&self) -> Result<Option<Contained>, Error> {
        let pod = self.look().await?;
        let status = pod.as_ref().and_then(|pod| why::container_of(pod, CONTAINER));
        Ok(Some(Contained {
            name: format!("{}/{}", self.namespace(), self.name_of(pod.as_ref())),
            engine: format!("Kubernetes at {}", self.cluster().await?.server()),
            image: self.own.objects.pinned_image(),
            digest: status.map(|status| status.image_id.clone()).unwrap_or_default(),
        }))
    }

    async fn dismantle(&self) -> Result<(), Error> {
        let _one_at_a_time = self.server.lock().await;
        self.refuse_foreign().await?;
        if self.is_operated() {
            // Nothing but the object keeps the volumes: it goes with the data.
            return Ok(());
        }
        let cluster = self.cluster().await?;
        // What runs it goes first, its walls last.
        for manifest in self.only(&[]).iter().rev() {
            cluster.remove_like(manifest).await.map_err(trouble)?;
        }
        Ok(())
    }

    async fn remove_data(&self) -> Result<(), Error> {
        if self.is_operated() {
            self.refuse_foreign().await?;
            return self.remove_operated().await;
        }
        let cluster = self.cluster().await?;
        cluster.remove_claim(self.namespace(), &self.own.objects.claim()).await.map_err(trouble)
    }

    async fn data_elsewhere(&self) -> Result<Option<String>, Error> {
        if self.is_operated() {
            return self.operated_data().await;
        }
        let claim = self.own.objects.claim();
        let found = self.cluster().await?.find_claim(self.namespace(), &claim).await.map_err(trouble)?;
        Ok(found.map(|_| format!("PersistentVolumeClaim `{claim}` in the namespace `{}`", self.namespace())))
    }

    fn state(&self) -> watch::Receiver<State> {
        self.state.subscribe()
    }

    async fn supervise(&self, cancel: CancellationToken) {
        cancel.run_until_cancelled(self.watch()).await;
    }
}

impl From<ClusterError> for Error {
    fn from(error: ClusterError) -> Self {
        trouble(error)
    }
}
