//! Operator mode: a `Cluster` of CloudNativePG is made, brought up, waited for, brought down and given up.
//!
//! The operator makes pods, volumes and the database itself, and would make an empty one wherever it finds none: so what
//! is there is looked at before anything is applied, and a database that was is never asked for again without its
//! `Cluster` and volumes; what is applied then names that very object. Stopped, it is hibernated: the object and the
//! volumes stay, the pods go. Given up, it goes as a whole, because the volumes belong to the object.

use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use k8s_openapi::api::core::v1::Pod;
use kube::api::DynamicObject;
use secrecy::{ExposeSecret as _, SecretString};
use serde_json::Value;
use sqlx::postgres::PgConnection;
use sqlx::{Connection as _, Row as _};
use tokio::time::Instant;

use super::life::{ASK_DEADLINE, LOOK_EVERY, STEP, Server};
use super::why::{self, why};
use super::{KubernetesPostgres, trouble};
use crate::database::login_of;
use crate::error::Error;
use crate::kubernetes::cluster::{Cluster, ClusterError, Effect};
use crate::kubernetes::manifests::{Content, GROUP, Manifest, PASSWORD, admin_secret, database};
use crate::kubernetes::operated::Operated;
use crate::kubernetes::operations::Told;
use crate::kubernetes::settings::{InKubernetes, Mode};
use crate::kubernetes::trouble::Trouble;
use crate::probe::Answer;
use crate::provisioner::{ManagedPostgres as _, Started, Stop};
use crate::record::{Choice, Record};
use crate::role::{ADMIN, DATABASE, GroupRole, Login};
use crate::run::checkpoint;
use crate::scram;
use crate::secrets::DbSecrets;
use crate::settings::{Limits, Wal};
use crate::superuser::silent;
use crate::version::Version;

/// How long one login may take.
const LOGIN_DEADLINE: Duration = Duration::from_secs(5);
/// What the operator gives a pod beside the server's own time to stop, as its `Cluster` says.
const POD_S: u64 = 60;
/// Between two pods that are ended, the operator looks again after this, seconds.
const NEXT_POD_S: u64 = 10;

const OPERATOR_HINT: &str = "`kubectl get pods` in database.kubernetes.operator_namespace tells whether the operator runs; \
                             its log tells whether it watches this namespace";
const CLUSTER_HINT: &str = "`kubectl describe cluster` tells more; a start that takes its time needs \
                            database.start_timeout";

impl KubernetesPostgres {
    pub(super) fn is_operated(&self) -> bool {
        self.own.objects.mode == Mode::Operator
    }

    /// The `Cluster`, without a secret: to be asked about and removed.
    pub(super) fn object(&self) -> Manifest {
        self.only(&["Cluster"]).pop().expect("in operator mode there is a Cluster")
    }

    /// What is there of it.
    async fn found(&self) -> Result<Option<Value>, Error> {
        match self.cluster().await?.look_at_like(&self.object()).await {
            Ok(Told::Is(found, _)) => Ok(Some(as_value(&found))),
            Ok(_) => Ok(None),
            Err(ClusterError::Missing { .. }) => Err(trouble(Trouble::NoOperator { group: GROUP })),
            Err(error) => Err(error.into()),
        }
    }

    /// The same for what ends or goes: where the operator is gone, so is every `Cluster`.
    async fn left(&self) -> Result<Option<Value>, Error> {
        match self.found().await {
            Err(Error::Kubernetes(trouble)) if matches!(*trouble, Trouble::NoOperator { .. }) => Ok(None),
            other => other,
        }
    }

    async fn claims(&self) -> Result<Vec<String>, Error> {
        let cluster = self.cluster().await?;
        Ok(cluster.list_claims(self.namespace(), &self.own.objects.selector()).await?)
    }

    /// Pods that have not ended: the operator leaves those of its jobs for a while.
    async fn live_pods(&self) -> Result<Vec<Pod>, ClusterError> {
        let cluster = match self.cluster().await {
            Ok(cluster) => cluster,
            Err(error) => return Err(ClusterError::None { reason: error.to_string() }),
        };
        let mut pods = cluster.list_pods(self.namespace(), &self.own.objects.selector()).await?;
        let phase = |pod: &Pod| pod.status.as_ref().and_then(|status| status.phase.clone()).unwrap_or_default();
        pods.retain(|pod| !["Succeeded", "Failed"].contains(&phase(pod).as_str()));
        Ok(pods)
    }

    /// The pod that writes, if it is there.
    pub(super) async fn writer(&self, operated: &Operated) -> Result<Option<Pod>, ClusterError> {
        let pods = self.live_pods().await?;
        Ok(pods.into_iter().find(|pod| operated.primary.is_some() && pod.metadata.name == operated.primary))
    }

    /// The pod that writes; else one that there is, such as that of the job that makes the database.
    async fn pod_of(&self, operated: &Operated) -> Result<Option<Pod>, ClusterError> {
        let mut pods = self.live_pods().await?;
        let writes = pods.iter().position(|pod| pod.metadata.name == operated.primary);
        Ok(if pods.is_empty() { None } else { Some(pods.swap_remove(writes.unwrap_or_default())) })
    }

    /// The same, with what the operator says; nothing where there is no `Cluster`.
    pub(super) async fn look_at_operated(&self) -> Result<Option<(Operated, Option<Pod>)>, Error> {
        let Some(found) = self.left().await? else { return Ok(None) };
        let operated = Operated::of(&found);
        let pod = self.pod_of(&operated).await?;
        Ok(Some((operated, pod)))
    }

    /// What is not there by this node's doing, as far as it knows, is not touched.
    pub(super) async fn refuse_unknown_cluster(&self) -> Result<(), Error> {
        let provisioner = self.layout().provisioner.clone();
        if self.found().await?.is_some() {
            let name = self.own.objects.name.clone();
            return Err(trouble(Trouble::ClusterUnknown { name, provisioner }));
        }
        let claims = self.claims().await?;
        if !claims.is_empty() {
            return Err(trouble(Trouble::VolumeUnknown { claim: claims.join(" "), provisioner }));
        }
        Ok(())
    }

    /// The operator makes the database, its server, and the superuser; then it is known which it is.
    pub(super) async fn initialise_operated(&self, server: &mut Server) -> Result<u64, Error> {
        drop(DbSecrets::first(self.secrets.as_ref(), &self.random)?);
        let deadline = Instant::now() + self.place.settings.start_deadline;
        let found = self.bring_up_operated(None, deadline).await?;
        let identifier = self.identify(deadline).await?;
        let record = Record::ready(Choice::Kubernetes, self.own.objects.major, identifier).of_operator();
        record.write(&self.layout().provisioner)?;
        (server.is_up, server.found) = (true, Some(found));
        Ok(identifier)
    }

    /// Brings up the database `expected`, and nothing in its place.
    pub(super) async fn resume_operated(&self, expected: u64) -> Result<Started, Error> {
        let name = self.own.objects.name.clone();
        let lost = |what: String| trouble(Trouble::Lost { what, expected });
        let Some(object) = self.found().await? else { return Err(lost(format!("Cluster `{name}` is gone"))) };
        if self.claims().await?.is_empty() {
            return Err(lost(format!("the volumes of Cluster `{name}` are gone")));
        }
        let operated = Operated::of(&object);
        let pod = operated.primary.clone().unwrap_or(name);
        let other = |found: u64| trouble(Trouble::OtherCluster { pod: pod.clone(), expected, found });
        if let Some(found) = operated.system_id.filter(|found| *found != expected) {
            return Err(other(found));
        }
        let deadline = Instant::now() + self.place.settings.start_deadline;
        let started = match self.bring_up_operated(operated.uid.clone(), deadline).await {
            // It went in between: what was to be applied to it was refused.
            Err(_) if self.found().await?.is_none_or(|now| Operated::of(&now).uid != operated.uid) => {
                return Err(lost(format!("Cluster `{}` is gone", self.own.objects.name)));
            }
            other => other?,
        };
        match self.identify(deadline).await? {
            found if found != expected => Err(other(found)),
            _ => Ok(started),
        }
    }

    /// Applies everything, to this very object where there is one, and waits for the server. Certificates that it does not
    /// have yet the operator brings it.
    async fn bring_up_operated(&self, uid: Option<String>, deadline: Instant) -> Result<Started, Error> {
        let wants_pods = self.found().await?.is_some_and(|found| !Operated::of(&found).is_hibernated);
        let has_pods = !self.live_pods().await?.is_empty();
        let secrets = DbSecrets::read(self.secrets.as_ref())?.ok_or(Error::SecretsMissing)?;
        let passwords: Vec<&SecretString> =
            [Some(secrets.admin()), secrets.admin_next()].into_iter().flatten().collect();
        let mut content = self.operated_content(&passwords).await?;
        drop(secrets);
        content.uid = uid;
        self.apply(&content).await?;
        self.wait_operated(deadline).await?;
        Ok(if wants_pods && has_pods { Started::Adopted } else { Started::Spawned })
    }

    /// Waits until the operator says that a pod writes, and the server takes connections.
    async fn wait_operated(&self, deadline: Instant) -> Result<(), Error> {
        loop {
            let answers = matches!(self.endpoint.ask(ASK_DEADLINE).await, Answer::Accepting | Answer::Refusing(_));
            let late = Instant::now() >= deadline;
            match self.look_at_operated().await {
                Ok(Some((operated, _))) if answers && operated.is_up() => return Ok(()),
                Ok(seen) => {
                    let (operated, pod) = seen.unwrap_or_default();
                    let hopeless = pod.as_ref().is_some_and(|pod| why(Some(pod), &[]).is_final);
                    if late || hopeless || operated.is_final() {
                        return Err(self.operated_not_up(&operated, pod.as_ref(), late).await);
                    }
                }
                Err(error) if late => return Err(error),
                // A cluster that fails for a moment fails nobody who waits.
                Err(_) => {}
            }
            tokio::time::sleep(LOOK_EVERY).await;
        }
    }

    /// The error of a server that does not come up, with all that anybody says about it.
    async fn operated_not_up(&self, operated: &Operated, pod: Option<&Pod>, late: bool) -> Error {
        let name = self.own.objects.name.clone();
        let pod_name = pod.and_then(|pod| pod.metadata.name.clone());
        let (mut warnings, mut log) = (Vec::new(), Vec::new());
        if let Ok(cluster) = self.cluster().await {
            for about in [Some(name.clone()), pod_name.clone()].into_iter().flatten() {
                // What cannot be told is not what failed.
                warnings.extend(cluster.warnings(self.namespace(), &about).await.unwrap_or_default());
            }
            if let (Some(pod_name), Some(container)) = (&pod_name, why(pod, &[]).log) {
                let lines = why::lines_of(pod, container);
                log = cluster.log(self.namespace(), pod_name, container, lines).await.unwrap_or_default();
            }
        }
        let mut reason = operated.said();
        let mut hint = if operated.phase.is_some() { CLUSTER_HINT } else { OPERATOR_HINT };
        if let Some(pod_name) = pod_name {
            let found = why(pod, &warnings);
            reason.push_str(&format!("; the pod `{pod_name}`: {}", found.reason));
            hint = found.hint;
        } else if let Some(warning) = warnings.last() {
            reason.push_str(&format!(" ({warning})"));
        }
        if late {
            reason = format!("after {} s {reason}", self.place.settings.start_deadline.as_secs());
        }
        trouble(Trouble::ClusterNotUp { name, reason, log, hint })
    }

    /// Which database answers, and of which version. Asked as who watches it; before that role is there, as the superuser,
    /// whom the operator makes after the server is up: so this is also the wait for it.
    pub(super) async fn identify(&self, deadline: Instant) -> Result<u64, Error> {
        let secrets = DbSecrets::read(self.secrets.as_ref())?.ok_or(Error::SecretsMissing)?;
        let admin = |password: &SecretString| superuser(password.clone());
        let mut logins = vec![login_of(&secrets, GroupRole::Monitor)?, admin(secrets.admin())];
        logins.extend(secrets.admin_next().map(admin));
        drop(secrets);
        loop {
            let mut refused = None;
            for login in &logins {
                match self.ask_as(login).await {
                    Ok((identifier, version)) => {
                        self.keep_version(version);
                        return Ok(identifier);
                    }
                    Err(error) => refused = Some(error),
                }
            }
            if Instant::now() >= deadline {
                let said = self.look_at_operated().await?.unwrap_or_default().0.said();
                let cause = refused.as_ref().and_then(std::error::Error::source).map(|cause| format!(": {cause}"));
                let seconds = self.place.settings.start_deadline.as_secs();
                let reason =
                    format!("after {seconds} s it does not let {ADMIN} in{}; {said}", cause.unwrap_or_default());
                let name = self.own.objects.name.clone();
                return Err(trouble(Trouble::ClusterNotUp { name, reason, log: Vec::new(), hint: CLUSTER_HINT }));
            }
            tokio::time::sleep(LOOK_EVERY).await;
        }
    }

    async fn ask_as(&self, login: &Login) -> Result<(u64, Version), Error> {
        const WHAT: &str = "ask which database it is";
        let options = silent(self.connect_options(login));
        let asked = async {
            let mut connection = PgConnection::connect_with(&options).await?;
            let row = sqlx::query(
                "SELECT system_identifier, current_setting('server_version_num')
                 FROM pg_catalog.pg_control_system()",
            )
            .fetch_one(&mut connection)
            .await?;
            // It was answered: a failure to say goodbye changes nothing.
            let _ = connection.close().await;
            // PostgreSQL counts without a sign and shows with one.
            let identifier = u64::from_ne_bytes(row.get::<i64, _>(0).to_ne_bytes());
            let number = row.get::<String, _>(1).parse().unwrap_or_default();
            Ok::<_, sqlx::Error>((identifier, Version::from_number(number)))
        };
        let answer = tokio::time::timeout(LOGIN_DEADLINE, asked).await;
        answer.map_err(|_| Error::Deadline { what: WHAT, deadline: LOGIN_DEADLINE })?.map_err(Error::sql(WHAT))
    }

    /// What the objects carry. The superuser's verifier stays in its Secret: it is that of one of `passwords`, and the one
    /// that is there already where it fits, since the operator sets every other one anew.
    pub(super) async fn operated_content(&self, passwords: &[&SecretString]) -> Result<Content, Error> {
        let kept = self.kept_verifier().await?.filter(|kept| passwords.iter().any(|one| scram::matches(kept, one)));
        let verifier = match (kept, passwords.first()) {
            (Some(kept), _) => SecretString::from(kept),
            (None, Some(password)) => scram::verifier(password, &self.random),
            (None, None) => return Err(Error::SecretsMissing),
        };
        self.content(None, Some(verifier.expose_secret()))
    }

    /// The verifier that the operator is told of at the moment.
    async fn kept_verifier(&self) -> Result<Option<String>, Error> {
        let name = admin_secret(&self.own.objects);
        let manifest = self.only(&["Secret"]).into_iter().find(|manifest| manifest.name() == name);
        let manifest = manifest.expect("in operator mode there is the superuser's Secret");
        let found = self.cluster().await?.find_like(&manifest).await?.unwrap_or_default();
        let bytes = found["data"][PASSWORD].as_str().and_then(|text| BASE64.decode(text).ok());
        Ok(bytes.and_then(|bytes| String::from_utf8(bytes).ok()))
    }

    /// Makes the Secrets say what they should, with the superuser's verifier of one of `passwords`. Says whether any said
    /// something else.
    pub(super) async fn apply_secrets(&self, passwords: &[&SecretString]) -> Result<bool, Error> {
        let content = self.operated_content(passwords).await?;
        let mut changed = false;
        for manifest in database(&self.own.objects, &content) {
            if manifest.kind() == "Secret" {
                changed |= self.cluster().await?.apply(&manifest).await? != Effect::Same;
            }
        }
        Ok(changed)
    }

    /// Has the operator give the superuser this password, and waits until it is let in with it. Over SQL it would not
    /// last: the operator sets what its Secret says.
    pub(super) async fn have_superuser_given(&self, next: &SecretString) -> Result<(), Error> {
        self.apply_secrets(&[next]).await?;
        let login = superuser(next.clone());
        let begun = Instant::now();
        loop {
            if self.ask_as(&login).await.is_ok() {
                return Ok(());
            }
            let deadline = self.place.settings.start_deadline;
            if begun.elapsed() >= deadline {
                let seen = self.look_at_operated().await?.unwrap_or_default().0;
                let (seconds, reason) = (deadline.as_secs(), seen.superuser);
                return Err(trouble(Trouble::PasswordNotGiven { seconds, reason }));
            }
            tokio::time::sleep(LOOK_EVERY).await;
        }
    }

    /// Hibernates it and waits until no pod is left. How its servers end is the operator's, also at once.
    pub(super) async fn bring_down_operated(&self, mode: Stop) -> Result<(), Error> {
        let Some(found) = self.left().await? else { return Ok(()) };
        let pods = self.live_pods().await?.len();
        if mode == Stop::Clean && pods > 0 && self.endpoint.ask(ASK_DEADLINE).await == Answer::Accepting {
            let options = |login: &_| self.connect_options(login);
            if let Err(error) = checkpoint(self.secrets.as_ref(), options).await {
                tracing::warn!(%error, "no checkpoint before the stop; the server makes one while it stops");
            }
        }
        let mut content = self.bare_content(None, false);
        content.uid = Operated::of(&found).uid;
        for manifest in database(&self.own.objects, &content) {
            if manifest.kind() == "Cluster" {
                self.cluster().await?.apply(&manifest).await?;
            }
        }
        let whole = self.grace()
            + Duration::from_secs(POD_S)
            + Duration::from_secs(NEXT_POD_S * u64::from(self.own.objects.instances));
        let (begun, mut is_ending) = (Instant::now(), false);
        loop {
            let left = self.live_pods().await;
            if left.as_ref().is_ok_and(Vec::is_empty) {
                return Ok(());
            }
            let ends = |pod: &Pod| pod.metadata.deletion_timestamp.is_some();
            is_ending |= left.as_ref().is_ok_and(|left| left.len() < pods || left.iter().any(ends));
            // An operator that does not even begin is not waited for so long.
            let deadline = if is_ending { whole } else { whole.min(self.place.settings.start_deadline) };
            if begun.elapsed() >= deadline {
                let names = left?.into_iter().filter_map(|pod| pod.metadata.name).collect::<Vec<_>>().join(", ");
                let said = self.look_at_operated().await?.unwrap_or_default().0.said();
                let reason = format!("{names}; {said}, and it hibernates what is in a healthy state alone");
                let (name, seconds) = (self.own.objects.name.clone(), deadline.as_secs());
                return Err(trouble(Trouble::NotHibernated { name, seconds, reason }));
            }
            tokio::time::sleep(STEP).await;
        }
    }

    /// Where the data lies.
    pub(super) async fn operated_data(&self) -> Result<Option<String>, Error> {
        let (claims, found) = (self.claims().await?, self.left().await?);
        let name = &self.own.objects.name;
        Ok(match (claims.is_empty(), found) {
            (true, None) => None,
            (true, Some(_)) => Some(format!("Cluster `{name}` in the namespace `{}`", self.namespace())),
            (false, _) => {
                let claims = claims.iter().map(|claim| format!("`{claim}`")).collect::<Vec<_>>().join(", ");
                Some(format!(
                    "PersistentVolumeClaim {claims} of Cluster `{name}` in the namespace `{}`",
                    self.namespace()
                ))
            }
        })
    }

    /// Gives everything up. The volumes belong to the `Cluster`: Kubernetes itself removes them with it.
    pub(super) async fn remove_operated(&self) -> Result<(), Error> {
        let cluster = self.cluster().await?;
        cluster.remove_like(&self.object()).await?;
        let begun = Instant::now();
        loop {
            let claims = self.claims().await?;
            if claims.is_empty() {
                break;
            }
            if begun.elapsed() >= self.place.settings.start_deadline {
                return Err(trouble(Trouble::ClaimsStay { name: self.own.objects.name.clone(), claims }));
            }
            tokio::time::sleep(STEP).await;
        }
        for manifest in self.only(&[]).iter().rev() {
            cluster.remove_like(manifest).await?;
        }
        Ok(())
    }
}

/// Where nobody installed the operator, its kind of object is not known.
pub(super) async fn refuse_absence(own: &InKubernetes, cluster: &Cluster) -> Result<(), Trouble> {
    let content = Content::new(&own.objects.config(&Limits::default(), &Wal::default()));
    for manifest in database(&own.objects, &content).iter().filter(|manifest| manifest.kind() == "Cluster") {
        match cluster.look_at_like(manifest).await {
            Err(ClusterError::Missing { .. }) => return Err(Trouble::NoOperator { group: GROUP }),
            other => drop(other?),
        }
    }
    Ok(())
}

/// An object as the API has it.
pub(super) fn as_value(object: &DynamicObject) -> Value {
    serde_json::to_value(object).unwrap_or_default()
}

fn superuser(password: SecretString) -> Login {
    Login { user: ADMIN.to_owned(), database: DATABASE.to_owned(), password }
}
