//! What everything of one database is called in Kubernetes, and where things lie inside of its pod.

use std::collections::BTreeMap;
use std::path::Path;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{LabelSelector, ObjectMeta};

use super::settings::{KubernetesSettings, Mode};
use crate::settings::Layout;

/// Who applied a field: what others set beside ours stays theirs.
pub const FIELD_MANAGER: &str = "bibd";
/// The one container, beside the one that makes the cluster.
pub const CONTAINER: &str = "postgres";
/// The container that makes the cluster in an empty volume.
pub const INIT: &str = "initdb";
/// The claim's name in the StatefulSet.
pub const VOLUME: &str = "data";

/// Where the volume is mounted: `postgres/` of a [`Layout`] under this.
const DATA_ROOT: &str = "/var/lib/bibd";
/// There is no socket; a layout needs a place for one.
const RUNTIME: &str = "/run/bibd";
/// The generated files.
pub(crate) const CONFIG: &str = "/etc/bibd/postgres";
/// The server's certificate, its key and the authority.
pub const TLS: &str = "/etc/bibd/tls";
/// The superuser's verifier, in the container that makes the cluster alone.
pub(crate) const FIRST: &str = "/etc/bibd/first";

/// The verifier's key in the Secret, and its file.
pub const VERIFIER: &str = "admin.verifier";
/// What the cluster is: `initialising`, or its identifier once there is one.
pub const CLUSTER: &str = "cluster";
/// What a [`CLUSTER`] file says before there is one.
pub const INITIALISING: &str = "initialising";

/// Where everything lies inside of the pod.
#[must_use]
pub fn layout() -> Layout {
    Layout::new(Path::new(DATA_ROOT), Path::new(RUNTIME))
}

impl KubernetesSettings {
    /// The pod's name in a StatefulSet.
    #[must_use]
    pub fn pod(&self) -> String {
        format!("{}-0", self.name)
    }

    /// The claim's name in a StatefulSet.
    #[must_use]
    pub fn claim(&self) -> String {
        format!("{VOLUME}-{}", self.pod())
    }

    /// The Service through which the cluster outside reaches the database.
    #[must_use]
    pub fn outside_service(&self) -> String {
        format!("{}-outside", self.name)
    }

    /// The host that the server's certificate is for and bibd connects to, inside of Kubernetes.
    #[must_use]
    pub fn host(&self) -> String {
        match self.mode {
            Mode::StatefulSet => format!("{}.{}.{}.svc", self.pod(), self.name, self.namespace),
            // The operator's own Service of the pod that writes.
            Mode::Operator => format!("{}-rw.{}.svc", self.name, self.namespace),
        }
    }

    /// The image, with its digest when there is one.
    #[must_use]
    pub fn pinned_image(&self) -> String {
        match &self.digest {
            Some(digest) if !self.image.contains('@') => format!("{}@{digest}", self.image),
            _ => self.image.clone(),
        }
    }

    /// The labels by which the database's pods are found.
    pub(crate) fn selector(&self) -> BTreeMap<String, String> {
        match self.mode {
            Mode::StatefulSet => {
                labels(&[("app.kubernetes.io/name", "bibd-postgres"), ("app.kubernetes.io/instance", &self.name)])
            }
            Mode::Operator => labels(&[("cnpg.io/cluster", &self.name)]),
        }
    }

    /// The labels of every object.
    pub(crate) fn labels(&self) -> BTreeMap<String, String> {
        let mut all = labels(&[
            ("app.kubernetes.io/name", "bibd-postgres"),
            ("app.kubernetes.io/instance", &self.name),
            ("app.kubernetes.io/component", "database"),
            ("app.kubernetes.io/part-of", "bib"),
            ("app.kubernetes.io/managed-by", FIELD_MANAGER),
        ]);
        all.extend(self.node.iter().map(|node| ("bib.node".to_owned(), node.clone())));
        all
    }

    /// The head of an object.
    pub(crate) fn meta(&self, name: &str) -> ObjectMeta {
        ObjectMeta {
            name: Some(name.to_owned()),
            namespace: Some(self.namespace.clone()),
            labels: Some(self.labels()),
            ..ObjectMeta::default()
        }
    }
}

/// Labels from pairs.
pub(crate) fn labels(pairs: &[(&str, &str)]) -> BTreeMap<String, String> {
    pairs.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect()
}

/// The selector of exactly these labels.
pub(crate) fn matching(labels: &BTreeMap<String, String>) -> LabelSelector {
    LabelSelector { match_labels: Some(labels.clone()), match_expressions: None }
}
