//! bibd itself in Kubernetes, as an example to start from: what `deploy/kubernetes/` shows, and what the restricted
//! namespace admits.

use std::collections::BTreeMap;

use k8s_openapi::api::apps::v1::{StatefulSet, StatefulSetSpec, StatefulSetUpdateStrategy};
use k8s_openapi::api::core::v1::{
    ConfigMap, ConfigMapVolumeSource, Container, ContainerPort, EmptyDirVolumeSource, Namespace, PersistentVolumeClaim,
    PersistentVolumeClaimSpec, PodSecurityContext, PodSpec, PodTemplateSpec, Probe, ResourceRequirements, Service,
    ServicePort, ServiceSpec, TCPSocketAction, Volume, VolumeMount, VolumeResourceRequirements,
};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;

use super::pod::{bytes, confined, default_seccomp};
use super::rbac::own_meta;
use crate::kubernetes::names::{labels, matching};
use crate::kubernetes::settings::{Example, KubernetesSettings};

const NAME: &str = "bibd";
/// gRPC over TLS.
const GRPC_PORT: i32 = 4000;
/// The user of bibd's own pod.
const UID: i64 = 10_433;
/// bibd drains its calls and stops the database before it ends, seconds.
const GRACE_S: i64 = 180;

/// A namespace that admits no pod of another kind than ours.
pub(super) fn namespace(settings: &KubernetesSettings) -> Namespace {
    let level = |what: &str| (format!("pod-security.kubernetes.io/{what}"), "restricted".to_owned());
    Namespace {
        metadata: ObjectMeta {
            name: Some(settings.namespace.clone()),
            labels: Some(["enforce", "audit", "warn"].map(level).into_iter().collect()),
            ..ObjectMeta::default()
        },
        ..Namespace::default()
    }
}

/// bibd's configuration, as `config` in YAML.
pub(super) fn config(settings: &KubernetesSettings, text: &str) -> ConfigMap {
    ConfigMap {
        metadata: own_meta(settings, NAME.to_owned()),
        data: Some(BTreeMap::from([("config.yaml".to_owned(), text.to_owned())])),
        ..ConfigMap::default()
    }
}

/// Where clients of the cluster find bibd.
pub(super) fn service(settings: &KubernetesSettings) -> Service {
    Service {
        metadata: own_meta(settings, NAME.to_owned()),
        spec: Some(ServiceSpec {
            selector: Some(settings.clients.clone()),
            ports: Some(vec![ServicePort {
                name: Some("grpc".to_owned()),
                port: GRPC_PORT,
                target_port: Some(IntOrString::Int(GRPC_PORT)),
                protocol: Some("TCP".to_owned()),
                ..ServicePort::default()
            }]),
            ..ServiceSpec::default()
        }),
        status: None,
    }
}

/// One bibd with its own volume: identity, chunks, the spool.
pub(super) fn daemon(settings: &KubernetesSettings, example: &Example) -> StatefulSet {
    let mut pod_labels = labels(&[("app.kubernetes.io/name", NAME), ("app.kubernetes.io/part-of", "bib")]);
    pod_labels.extend(settings.clients.clone());
    StatefulSet {
        metadata: own_meta(settings, NAME.to_owned()),
        spec: Some(StatefulSetSpec {
            service_name: Some(NAME.to_owned()),
            replicas: Some(1),
            selector: matching(&settings.clients),
            update_strategy: Some(StatefulSetUpdateStrategy {
                type_: Some("RollingUpdate".to_owned()),
                rolling_update: None,
            }),
            template: PodTemplateSpec {
                metadata: Some(ObjectMeta { labels: Some(pod_labels), ..ObjectMeta::default() }),
                spec: Some(pod(settings, example)),
            },
            volume_claim_templates: Some(vec![claim("data", settings, example.storage_bytes)]),
            ..StatefulSetSpec::default()
        }),
        status: None,
    }
}

/// A claim of one pod for one volume.
pub(super) fn claim(name: &str, settings: &KubernetesSettings, size: u64) -> PersistentVolumeClaim {
    PersistentVolumeClaim {
        metadata: ObjectMeta { name: Some(name.to_owned()), ..ObjectMeta::default() },
        spec: Some(PersistentVolumeClaimSpec {
            access_modes: Some(vec!["ReadWriteOnce".to_owned()]),
            storage_class_name: settings.storage_class.clone(),
            resources: Some(VolumeResourceRequirements {
                requests: Some(BTreeMap::from([("storage".to_owned(), bytes(size))])),
                limits: None,
            }),
            volume_mode: Some("Filesystem".to_owned()),
            ..PersistentVolumeClaimSpec::default()
        }),
        status: None,
    }
}

fn pod(settings: &KubernetesSettings, example: &Example) -> PodSpec {
    let mount = |name: &str, path: &str, read_only| VolumeMount {
        name: name.to_owned(),
        mount_path: path.to_owned(),
        read_only: Some(read_only),
        ..VolumeMount::default()
    };
    let memory = |name: &str| Volume {
        name: name.to_owned(),
        empty_dir: Some(EmptyDirVolumeSource { medium: Some("Memory".to_owned()), size_limit: Some(bytes(64 << 20)) }),
        ..Volume::default()
    };
    let quantity = |pairs: [(&str, &str); 2]| {
        Some(pairs.map(|(name, value)| (name.to_owned(), Quantity(value.to_owned()))).into_iter().collect())
    };
    let command =
        ["bibd", "run", "--config-dir", "/etc/bibd", "--data-dir", "/var/lib/bibd", "--listen", "0.0.0.0:4000"];
    let daemon = Container {
        name: NAME.to_owned(),
        image: Some(example.image.clone()),
        command: Some(command.map(str::to_owned).to_vec()),
        ports: Some(vec![ContainerPort {
            name: Some("grpc".to_owned()),
            container_port: GRPC_PORT,
            protocol: Some("TCP".to_owned()),
            ..ContainerPort::default()
        }]),
        readiness_probe: Some(Probe {
            tcp_socket: Some(TCPSocketAction { port: IntOrString::Int(GRPC_PORT), host: None }),
            period_seconds: Some(10),
            ..Probe::default()
        }),
        resources: Some(ResourceRequirements {
            requests: quantity([("cpu", "250m"), ("memory", "512Mi")]),
            limits: Some(BTreeMap::from([("memory".to_owned(), Quantity("2Gi".to_owned()))])),
            ..ResourceRequirements::default()
        }),
        security_context: Some(confined()),
        volume_mounts: Some(vec![
            mount("data", "/var/lib/bibd", false),
            mount("config", "/etc/bibd", true),
            mount("tmp", "/tmp", false),
        ]),
        ..Container::default()
    };
    PodSpec {
        containers: vec![daemon],
        service_account_name: Some(settings.service_account.clone()),
        // It makes the database: here, and nowhere else, a token is needed.
        automount_service_account_token: Some(true),
        enable_service_links: Some(false),
        security_context: Some(PodSecurityContext {
            run_as_non_root: Some(true),
            run_as_user: Some(UID),
            run_as_group: Some(UID),
            fs_group: Some(UID),
            fs_group_change_policy: Some("OnRootMismatch".to_owned()),
            seccomp_profile: Some(default_seccomp()),
            ..PodSecurityContext::default()
        }),
        termination_grace_period_seconds: Some(GRACE_S),
        volumes: Some(vec![
            Volume {
                name: "config".to_owned(),
                config_map: Some(ConfigMapVolumeSource { name: NAME.to_owned(), ..ConfigMapVolumeSource::default() }),
                ..Volume::default()
            },
            memory("tmp"),
        ]),
        ..PodSpec::default()
    }
}
