//! What the provisioner has a cluster do: objects applied in earnest and removed, and what makes the server looked at
//! and watched.
//!
//! Everything that a rule of bibd's role names is asked for by its name, lists and watches too: the role allows no more.

use std::collections::BTreeMap;
use std::fmt::Debug;

use futures::StreamExt as _;
use futures::stream::BoxStream;
use k8s_openapi::api::authorization::v1::{ResourceAttributes, SelfSubjectAccessReview, SelfSubjectAccessReviewSpec};
use k8s_openapi::api::core::v1::{Event, PersistentVolumeClaim, Pod};
use kube::api::{
    Api, DeleteParams, DynamicObject, ListParams, LogParams, Patch, PatchParams, PostParams, PropagationPolicy,
    WatchEvent, WatchParams,
};
use kube::{Resource, ResourceExt as _};
use serde::de::DeserializeOwned;
use serde_json::Value;

use super::cluster::{Cluster, ClusterError, Effect};
use super::manifests::Manifest;
use super::names::FIELD_MANAGER;

/// How long one watch lasts before it is asked for anew, seconds: a connection that broke without a word is noticed then.
const WATCH_S: u32 = 240;
/// Lines of a container's log in an error.
const LOG_LINES: i64 = 12;
/// Of a container's log at most, bytes.
const LOG_BYTES: i64 = 64 * 1024;

/// What a watch tells.
#[derive(Debug)]
pub(crate) enum Told<K> {
    /// The object is this now, at this version of the list.
    Is(Box<K>, String),
    /// There is none, since this version.
    Gone(String),
    /// Nothing happened until this version.
    Nothing(String),
    /// The version that the watch began at is forgotten (410): the object is to be looked at again.
    TooOld,
}

/// What a watch tells over time.
pub(crate) type Telling<K> = BoxStream<'static, Result<Told<K>, ClusterError>>;

/// Which lines of a log.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Lines {
    /// The last of the container that runs, or ran last.
    Last,
    /// The last of the one before.
    Previous,
    /// As much as is searched.
    Many,
}

impl Cluster {
    /// Makes `manifest` so, by server-side apply with our field manager. What is so already is left alone, and keeps its
    /// version: nobody is woken by it.
    ///
    /// # Errors
    /// Why it fails; [`ClusterError::Conflict`] where somebody else set one of its fields, which is never taken away.
    pub async fn apply(&self, manifest: &Manifest) -> Result<Effect, ClusterError> {
        let (what, api) = self.place_of(manifest);
        let is = self.ask(&what, api.get_opt(manifest.name())).await?;
        let how = PatchParams::apply(FIELD_MANAGER);
        let now = self.ask(&what, api.patch(manifest.name(), &how, &Patch::Apply(manifest.value()))).await?;
        Ok(match is {
            None => Effect::Created,
            Some(is) if is.metadata.resource_version == now.metadata.resource_version => Effect::Same,
            Some(_) => Effect::Changed,
        })
    }

    /// What is there under the name of `manifest`.
    ///
    /// # Errors
    /// Why it cannot be told.
    pub(crate) async fn find_like(&self, manifest: &Manifest) -> Result<Option<Value>, ClusterError> {
        let (what, api) = self.place_of(manifest);
        let found: Option<DynamicObject> = self.ask(&what, api.get_opt(manifest.name())).await?;
        Ok(found.map(|found| serde_json::to_value(found).unwrap_or_default()))
    }

    /// Removes what is there under the name of `manifest`, with what belongs to it. Nothing there is well.
    ///
    /// # Errors
    /// Why it stays.
    pub(crate) async fn remove_like(&self, manifest: &Manifest) -> Result<(), ClusterError> {
        let (what, api) = self.place_of(manifest);
        let how = DeleteParams { propagation_policy: Some(PropagationPolicy::Background), ..DeleteParams::default() };
        absent_is_well(self.ask(&what, api.delete(manifest.name(), &how)).await.map(drop))
    }

    /// The pod.
    ///
    /// # Errors
    /// Why it cannot be told.
    pub(crate) async fn find_pod(&self, namespace: &str, name: &str) -> Result<Option<Pod>, ClusterError> {
        self.ask(&format!("Pod `{name}`"), self.pods(namespace).get_opt(name)).await
    }

    /// Ends the pod at once, whatever it does.
    ///
    /// # Errors
    /// Why not.
    pub(crate) async fn kill_pod(&self, namespace: &str, name: &str) -> Result<(), ClusterError> {
        let how = DeleteParams { grace_period_seconds: Some(0), ..DeleteParams::default() };
        let pods = self.pods(namespace);
        absent_is_well(self.ask(&format!("Pod `{name}`"), pods.delete(name, &how)).await.map(drop))
    }

    /// The claim to the volume.
    ///
    /// # Errors
    /// Why it cannot be told.
    pub(crate) async fn find_claim(
        &self,
        namespace: &str,
        name: &str,
    ) -> Result<Option<PersistentVolumeClaim>, ClusterError> {
        self.ask(&format!("PersistentVolumeClaim `{name}`"), self.claims(namespace).get_opt(name)).await
    }

    /// Gives the volume up, with everything in it.
    ///
    /// # Errors
    /// Why not.
    pub(crate) async fn remove_claim(&self, namespace: &str, name: &str) -> Result<(), ClusterError> {
        let what = format!("PersistentVolumeClaim `{name}`");
        let claims = self.claims(namespace);
        absent_is_well(self.ask(&what, claims.delete(name, &DeleteParams::default())).await.map(drop))
    }

    /// What was noted about the pod and was no success, the latest last: `FailedScheduling: 0/3 nodes are available`.
    ///
    /// # Errors
    /// Why it cannot be told.
    pub(crate) async fn warnings(&self, namespace: &str, pod: &str) -> Result<Vec<String>, ClusterError> {
        let events: Api<Event> = Api::namespaced(self.client(), namespace);
        let about = ListParams::default().fields(&format!("involvedObject.name={pod}")).limit(100);
        let listed = self.ask(&format!("the events of Pod `{pod}`"), events.list(&about)).await?;
        let mut all: Vec<Event> = listed.items;
        all.retain(|event| {
            event.type_.as_deref() == Some("Warning") && event.involved_object.name.as_deref() == Some(pod)
        });
        all.sort_by_key(|event| {
            let last = event.last_timestamp.as_ref().or(event.first_timestamp.as_ref());
            last.map(|time| time.0.to_string()).unwrap_or_default()
        });
        let said = |event: Event| {
            format!("{}: {}", event.reason.unwrap_or_default(), event.message.unwrap_or_default().trim())
        };
        Ok(all.into_iter().map(said).collect())
    }

    /// Lines of a container's log.
    ///
    /// # Errors
    /// Why there are none: also when the container never ran.
    pub(crate) async fn log(
        &self,
        namespace: &str,
        pod: &str,
        container: &str,
        lines: Lines,
    ) -> Result<Vec<String>, ClusterError> {
        let how = LogParams {
            container: Some(container.to_owned()),
            previous: matches!(lines, Lines::Previous),
            tail_lines: (!matches!(lines, Lines::Many)).then_some(LOG_LINES),
            limit_bytes: (!matches!(lines, Lines::Many)).then_some(LOG_BYTES),
            ..LogParams::default()
        };
        let pods = self.pods(namespace);
        let text = self.ask(&format!("the log of Pod `{pod}`"), pods.logs(pod, &how)).await?;
        Ok(text.lines().map(str::to_owned).collect())
    }

    /// Whether this account may create such objects there: the question that decides whether a database can be made.
    ///
    /// # Errors
    /// Why it cannot be told.
    pub(crate) async fn may_create(&self, namespace: &str, group: &str, resource: &str) -> Result<bool, ClusterError> {
        let review = SelfSubjectAccessReview {
            spec: SelfSubjectAccessReviewSpec {
                resource_attributes: Some(ResourceAttributes {
                    group: Some(group.to_owned()),
                    namespace: Some(namespace.to_owned()),
                    resource: Some(resource.to_owned()),
                    verb: Some("create".to_owned()),
                    ..ResourceAttributes::default()
                }),
                ..SelfSubjectAccessReviewSpec::default()
            },
            ..SelfSubjectAccessReview::default()
        };
        let reviews: Api<SelfSubjectAccessReview> = Api::all(self.client());
        let answer = self.ask("what bibd may do", reviews.create(&PostParams::default(), &review)).await?;
        Ok(answer.status.is_some_and(|status| status.allowed && status.denied != Some(true)))
    }

    /// The pods with these labels.
    ///
    /// # Errors
    /// Why it cannot be told.
    pub(crate) async fn list_pods(
        &self,
        namespace: &str,
        labels: &BTreeMap<String, String>,
    ) -> Result<Vec<Pod>, ClusterError> {
        let listed = self.ask("the database's pods", self.pods(namespace).list(&with(labels))).await?;
        Ok(listed.items)
    }

    /// The claims with these labels, by name.
    ///
    /// # Errors
    /// Why it cannot be told.
    pub(crate) async fn list_claims(
        &self,
        namespace: &str,
        labels: &BTreeMap<String, String>,
    ) -> Result<Vec<String>, ClusterError> {
        let listed = self.ask("the database's volumes", self.claims(namespace).list(&with(labels))).await?;
        Ok(listed.items.into_iter().filter_map(|claim| claim.metadata.name).collect())
    }

    /// The pod as it is now, and the version from which [`watch_pod`](Self::watch_pod) goes on.
    ///
    /// # Errors
    /// Why it cannot be told.
    pub(crate) async fn look_at_pod(&self, namespace: &str, name: &str) -> Result<Told<Pod>, ClusterError> {
        self.look_at(&format!("Pod `{name}`"), &self.pods(namespace), name).await
    }

    /// What becomes of the pod after `version`. Ends when the cluster ends it, which it does every few minutes.
    ///
    /// # Errors
    /// Why it cannot be watched; each item too, and then the watch is over.
    pub(crate) async fn watch_pod(
        &self,
        namespace: &str,
        name: &str,
        version: &str,
    ) -> Result<Telling<Pod>, ClusterError> {
        self.watch(format!("Pod `{name}`"), self.pods(namespace), name, version).await
    }

    /// What is there under the name of `manifest` now, and the version from which [`watch_like`](Self::watch_like) goes on.
    /// In contrast to [`find_like`](Self::find_like) a kind that the cluster does not know is an error.
    ///
    /// # Errors
    /// Why it cannot be told; [`ClusterError::Missing`] where there is no such kind.
    pub(crate) async fn look_at_like(&self, manifest: &Manifest) -> Result<Told<DynamicObject>, ClusterError> {
        let (what, api) = self.place_of(manifest);
        self.look_at(&what, &api, manifest.name()).await
    }

    /// What becomes of it after `version`; see [`watch_pod`](Self::watch_pod).
    ///
    /// # Errors
    /// As there.
    pub(crate) async fn watch_like(
        &self,
        manifest: &Manifest,
        version: &str,
    ) -> Result<Telling<DynamicObject>, ClusterError> {
        let (what, api) = self.place_of(manifest);
        self.watch(what, api, manifest.name(), version).await
    }

    async fn look_at<K>(&self, what: &str, api: &Api<K>, name: &str) -> Result<Told<K>, ClusterError>
    where
        K: Resource + Clone + DeserializeOwned + Debug,
    {
        let only = ListParams::default().fields(&format!("metadata.name={name}"));
        let listed = self.ask(what, api.list(&only)).await?;
        let version = listed.metadata.resource_version.unwrap_or_default();
        let found = listed.items.into_iter().find(|one| one.meta().name.as_deref() == Some(name));
        Ok(found.map_or(Told::Gone(version.clone()), |one| Told::Is(Box::new(one), version)))
    }

    async fn watch<K>(&self, what: String, api: Api<K>, name: &str, version: &str) -> Result<Telling<K>, ClusterError>
    where
        K: Resource + Clone + DeserializeOwned + Debug + Send + 'static,
    {
        let only = WatchParams::default().fields(&format!("metadata.name={name}")).timeout(WATCH_S);
        let stream = match self.ask(&what, api.watch(&only, version)).await {
            Err(ClusterError::Failed { code: 410, .. }) => return Ok(futures::stream::iter([Ok(Told::TooOld)]).boxed()),
            other => other?,
        };
        let server = self.server().to_owned();
        let told = move |event: kube::Result<WatchEvent<K>>| match event {
            Ok(WatchEvent::Added(one) | WatchEvent::Modified(one)) => {
                let version = one.resource_version().unwrap_or_default();
                Ok(Told::Is(Box::new(one), version))
            }
            Ok(WatchEvent::Deleted(one)) => Ok(Told::Gone(one.resource_version().unwrap_or_default())),
            Ok(WatchEvent::Bookmark(mark)) => Ok(Told::Nothing(mark.metadata.resource_version)),
            Ok(WatchEvent::Error(status)) if status.code == 410 => Ok(Told::TooOld),
            Ok(WatchEvent::Error(status)) => {
                Err(ClusterError::Failed { what: what.clone(), code: status.code, reason: status.message })
            }
            Err(error) => Err(ClusterError::Unreachable { server: server.clone(), reason: error.to_string() }),
        };
        Ok(stream.map(told).boxed())
    }

    fn pods(&self, namespace: &str) -> Api<Pod> {
        Api::namespaced(self.client(), namespace)
    }

    fn claims(&self, namespace: &str) -> Api<PersistentVolumeClaim> {
        Api::namespaced(self.client(), namespace)
    }
}

/// Those with all of these labels.
fn with(labels: &BTreeMap<String, String>) -> ListParams {
    let pairs: Vec<String> = labels.iter().map(|(name, value)| format!("{name}={value}")).collect();
    ListParams::default().labels(&pairs.join(","))
}

fn absent_is_well(outcome: Result<(), ClusterError>) -> Result<(), ClusterError> {
    match outcome {
        Err(ClusterError::Missing { .. }) => Ok(()),
        other => other,
    }
}
