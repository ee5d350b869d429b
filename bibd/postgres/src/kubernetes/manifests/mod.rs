//! Every object of a database in Kubernetes, in the order in which they are applied, and how they are printed.
//!
//! [`database`] is what bibd applies itself, with its field manager. [`around`] is what a person applies before: the
//! namespace, bibd's account and role, and bibd as an example. Both are printed by `bibd kubernetes manifests`.
//!
//! Everything is a function of settings and content: whoever applies twice changes nothing the second time.

mod example;
mod network;
mod operator;
mod pod;
mod rbac;
mod yaml;

use std::collections::BTreeMap;

use k8s_openapi::ByteString;
use k8s_openapi::api::apps::v1::{
    StatefulSet, StatefulSetPersistentVolumeClaimRetentionPolicy, StatefulSetSpec, StatefulSetUpdateStrategy,
};
use k8s_openapi::api::core::v1::{ConfigMap, PodTemplateSpec, Secret};
use k8s_openapi::api::policy::v1::{PodDisruptionBudget, PodDisruptionBudgetSpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use serde::Serialize;
use serde_json::Value;
use sha2::{Digest as _, Sha256};

use super::names::{CLUSTER, INITIALISING, VOLUME, labels, matching};
use super::script::{Inside, PASSWD, SCRIPT, passwd};
use super::settings::{Example, KubernetesSettings, Mode};
use crate::config::{CONF, Config, HBA, IDENT};

pub(crate) use operator::{GROUP, HIBERNATION, PASSWORD, admin_secret};
pub use operator::{KEPT_BY_OPERATOR, REPLICATION_CERTIFICATE, REPLICATION_KEY};

/// What the pod was made from: another one is applied while the server stands still.
pub const FINGERPRINT: &str = "bib/fingerprint";

/// What the objects carry into the pod.
#[derive(Clone)]
pub struct Content {
    /// Each setting with its value.
    pub(crate) settings: Vec<(String, String)>,
    /// `postgresql.conf`, whole.
    conf: String,
    /// `pg_hba.conf`, whole.
    pub(crate) hba: String,
    /// `pg_ident.conf`, whole.
    ident: String,
    /// PostgreSQL's name of the cluster; none while it is to be made.
    pub cluster: Option<u64>,
    /// The operator's object that must be there, as Kubernetes numbers it: a new one is never made in its place.
    pub(crate) uid: Option<String>,
    /// Certificates, keys and the superuser's verifier by the names in [`names`](super::names). Empty where objects are
    /// only shown.
    pub secrets: BTreeMap<String, Vec<u8>>,
    /// Whether the server is to run.
    pub running: bool,
}

impl Content {
    /// The generated files, for a cluster that is to be made and to run.
    #[must_use]
    pub fn new(config: &Config) -> Self {
        Self {
            settings: config.settings.iter().map(|(name, value)| ((*name).to_owned(), value.clone())).collect(),
            conf: config.conf(),
            hba: config.hba.clone(),
            ident: config.ident.clone(),
            cluster: None,
            uid: None,
            secrets: BTreeMap::new(),
            running: true,
        }
    }
}

/// One object.
#[derive(Debug, Clone, PartialEq)]
pub struct Manifest(Value);

impl Manifest {
    fn of(object: impl Serialize) -> Self {
        Self(serde_json::to_value(object).unwrap_or_default())
    }

    /// As it is sent.
    #[must_use]
    pub fn value(&self) -> &Value {
        &self.0
    }

    /// `StatefulSet`, `Service`..
    #[must_use]
    pub fn kind(&self) -> &str {
        self.text("/kind")
    }

    /// `v1`, `apps/v1`..
    #[must_use]
    pub fn api_version(&self) -> &str {
        self.text("/apiVersion")
    }

    /// Its name.
    #[must_use]
    pub fn name(&self) -> &str {
        self.text("/metadata/name")
    }

    /// Its namespace; none when it is the cluster's.
    #[must_use]
    pub fn namespace(&self) -> Option<&str> {
        self.0.pointer("/metadata/namespace").and_then(Value::as_str)
    }

    fn text(&self, pointer: &str) -> &str {
        self.0.pointer(pointer).and_then(Value::as_str).unwrap_or_default()
    }
}

/// What bibd applies, what is needed first standing first: walls before the server.
#[must_use]
pub fn database(settings: &KubernetesSettings, content: &Content) -> Vec<Manifest> {
    let mut all = vec![Manifest::of(network::policy(settings))];
    match settings.mode {
        Mode::StatefulSet => all.extend([
            Manifest::of(rbac::account(settings)),
            Manifest::of(secret(settings, content)),
            Manifest::of(config_map(settings, content)),
            Manifest::of(network::headless(settings)),
            Manifest::of(budget(settings)),
            Manifest::of(stateful_set(settings, content)),
        ]),
        Mode::Operator => {
            all.extend(operator::secrets(settings, content).into_iter().map(Manifest::of));
            all.push(Manifest::of(operator::cluster(settings, content)));
        }
    }
    if !settings.outside.is_empty() {
        all.push(Manifest::of(network::outside(settings)));
    }
    all
}

/// What a person applies before: the namespace, bibd's account with its role, and bibd with `config` (YAML).
#[must_use]
pub fn around(settings: &KubernetesSettings, example: &Example, config: &str) -> Vec<Manifest> {
    vec![
        Manifest::of(example::namespace(settings)),
        Manifest::of(rbac::own_account(settings)),
        Manifest::of(rbac::role(settings)),
        Manifest::of(rbac::binding(settings)),
        Manifest::of(example::config(settings, config)),
        Manifest::of(example::service(settings)),
        Manifest::of(example::daemon(settings, example)),
    ]
}

/// One file for `kubectl apply -f`.
#[must_use]
pub fn yaml(all: &[Manifest]) -> String {
    all.iter().map(|one| yaml::document(&one.0)).collect()
}

/// One list object, for `kubectl apply -f` as well.
#[must_use]
pub fn json(all: &[Manifest]) -> String {
    let items: Vec<&Value> = all.iter().map(Manifest::value).collect();
    format!("{:#}\n", serde_json::json!({ "apiVersion": "v1", "kind": "List", "items": items }))
}

fn secret(settings: &KubernetesSettings, content: &Content) -> Secret {
    let data = content.secrets.iter().map(|(name, bytes)| (name.clone(), ByteString(bytes.clone())));
    Secret {
        metadata: settings.meta(&settings.name),
        type_: Some("Opaque".to_owned()),
        data: (!content.secrets.is_empty()).then(|| data.collect()),
        ..Secret::default()
    }
}

fn config_map(settings: &KubernetesSettings, content: &Content) -> ConfigMap {
    ConfigMap { metadata: settings.meta(&settings.name), data: Some(files(settings, content)), ..ConfigMap::default() }
}

/// The generated files by name.
fn files(settings: &KubernetesSettings, content: &Content) -> BTreeMap<String, String> {
    let cluster = content.cluster.map_or_else(|| INITIALISING.to_owned(), |id| id.to_string());
    let inside = Inside::of_pod(settings.major, settings.stop_deadline.as_secs());
    [
        (CONF, content.conf.clone()),
        (HBA, content.hba.clone()),
        (IDENT, content.ident.clone()),
        (CLUSTER, format!("{cluster}\n")),
        (PASSWD, passwd(settings.uid)),
        (SCRIPT, inside.script()),
    ]
    .map(|(name, text)| (name.to_owned(), text))
    .into_iter()
    .collect()
}

/// No voluntary disruption: who empties a machine stops bibd first, which stops its database in order.
fn budget(settings: &KubernetesSettings) -> PodDisruptionBudget {
    PodDisruptionBudget {
        metadata: settings.meta(&settings.name),
        spec: Some(PodDisruptionBudgetSpec {
            max_unavailable: Some(IntOrString::Int(0)),
            selector: Some(matching(&settings.selector())),
            // One that does not run anyway holds nobody up.
            unhealthy_pod_eviction_policy: Some("AlwaysAllow".to_owned()),
            ..PodDisruptionBudgetSpec::default()
        }),
        status: None,
    }
}

fn stateful_set(settings: &KubernetesSettings, content: &Content) -> StatefulSet {
    let mut pod_labels = settings.labels();
    pod_labels.extend(settings.selector());
    let spec = pod::spec(settings);
    let fingerprint = fingerprint(&spec, &files(settings, content));
    StatefulSet {
        metadata: settings.meta(&settings.name),
        spec: Some(StatefulSetSpec {
            service_name: Some(settings.name.clone()),
            replicas: Some(i32::from(content.running)),
            selector: matching(&settings.selector()),
            pod_management_policy: Some("OrderedReady".to_owned()),
            // bibd says when the server restarts: an object that is applied never does it.
            update_strategy: Some(StatefulSetUpdateStrategy {
                type_: Some("OnDelete".to_owned()),
                rolling_update: None,
            }),
            persistent_volume_claim_retention_policy: Some(StatefulSetPersistentVolumeClaimRetentionPolicy {
                when_deleted: Some("Retain".to_owned()),
                when_scaled: Some("Retain".to_owned()),
            }),
            revision_history_limit: Some(3),
            template: PodTemplateSpec {
                metadata: Some(ObjectMeta {
                    labels: Some(pod_labels),
                    annotations: Some(labels(&[(FINGERPRINT, &fingerprint)])),
                    ..ObjectMeta::default()
                }),
                spec: Some(spec),
            },
            volume_claim_templates: Some(vec![example::claim(VOLUME, settings, settings.storage_bytes)]),
            ..StatefulSetSpec::default()
        }),
        status: None,
    }
}

/// Equal for pods that are made alike. Which cluster they must find does not count: it is known only after the first.
fn fingerprint(spec: &impl Serialize, files: &BTreeMap<String, String>) -> String {
    let mut digest = Sha256::new();
    digest.update(serde_json::to_vec(spec).unwrap_or_default());
    for (name, text) in files.iter().filter(|(name, _)| *name != CLUSTER) {
        digest.update(name);
        digest.update([0]);
        digest.update(text);
        digest.update([0]);
    }
    hex::encode(&digest.finalize()[..16])
}
