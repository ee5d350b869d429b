//! What the provisioner has a cluster do: objects applied in earnest and removed, and the pod looked at and watched.
//!
//! Everything that a rule of bibd's role names is asked for by its name, lists and watches too: the role allows no more.

use futures::{Stream, StreamExt as _};
use k8s_openapi::api::authorization::v1::{ResourceAttributes, SelfSubjectAccessReview, SelfSubjectAccessReviewSpec};
use k8s_openapi::api::core::v1::{Event, PersistentVolumeClaim, Pod};
use kube::api::{
    Api, DeleteParams, DynamicObject, ListParams, LogParams, Patch, PatchParams, PostParams, PropagationPolicy,
    WatchEvent, WatchParams,
};
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
pub(crate) enum Told {
    /// The pod is this now, at this version of the list.
    Is(Box<Pod>, String),
    /// There is no pod, since this version.
    Gone(String),
    /// Nothing happened until this version.
    Nothing(String),
    /// The version that the watch began at is forgotten (410): the pod is to be looked at again.
    TooOld,
}

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

    /// Whether this account may create a StatefulSet there: the question that decides whether a database can be made.
    ///
    /// # Errors
    /// Why it cannot be told.
    pub(crate) async fn may_create_sets(&self, namespace: &str) -> Result<bool, ClusterError> {
        let review = SelfSubjectAccessReview {
            spec: SelfSubjectAccessReviewSpec {
                resource_attributes: Some(ResourceAttributes {
                    group: Some("apps".to_owned()),
                    namespace: Some(namespace.to_owned()),
                    resource: Some("statefulsets".to_owned()),
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

    /// The pod as it is now, and the version from which [`watch_pod`](Self::watch_pod) goes on.
    ///
    /// # Errors
    /// Why it cannot be told.
    pub(crate) async fn look_at_pod(&self, namespace: &str, name: &str) -> Result<Told, ClusterError> {
        let only = ListParams::default().fields(&format!("metadata.name={name}"));
        let listed = self.ask(&format!("Pod `{name}`"), self.pods(namespace).list(&only)).await?;
        let version = listed.metadata.resource_version.unwrap_or_default();
        let found = listed.items.into_iter().find(|pod| pod.metadata.name.as_deref() == Some(name));
        Ok(found.map_or(Told::Gone(version.clone()), |pod| Told::Is(Box::new(pod), version)))
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
    ) -> Result<impl Stream<Item = Result<Told, ClusterError>> + Send + use<>, ClusterError> {
        let what = format!("Pod `{name}`");
        let only = WatchParams::default().fields(&format!("metadata.name={name}")).timeout(WATCH_S);
        let pods = self.pods(namespace);
        let stream = match self.ask(&what, pods.watch(&only, version)).await {
            Err(ClusterError::Failed { code: 410, .. }) => return Ok(futures::stream::iter([Ok(Told::TooOld)]).boxed()),
            other => other?,
        };
        let server = self.server().to_owned();
        let told = move |event: kube::Result<WatchEvent<Pod>>| match event {
            Ok(WatchEvent::Added(pod) | WatchEvent::Modified(pod)) => {
                let version = pod.metadata.resource_version.clone().unwrap_or_default();
                Ok(Told::Is(Box::new(pod), version))
            }
            Ok(WatchEvent::Deleted(pod)) => Ok(Told::Gone(pod.metadata.resource_version.unwrap_or_default())),
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

fn absent_is_well(outcome: Result<(), ClusterError>) -> Result<(), ClusterError> {
    match outcome {
        Err(ClusterError::Missing { .. }) => Ok(()),
        other => other,
    }
}
