//! The pod: what the Pod Security Standard `restricted` asks for and more, in one place.
//!
//! The server is the container's first process, as in [`container`](crate::container). Everything that is written lies
//! in the volume or in memory; what the kubelet mounts of ours is read-only.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::{
    Affinity, Capabilities, ConfigMapVolumeSource, Container, ContainerPort, EmptyDirVolumeSource, EnvVar, ExecAction,
    KeyToPath, Lifecycle, LifecycleHandler, LocalObjectReference, PodAffinityTerm, PodAntiAffinity, PodSecurityContext,
    PodSpec, Probe, ResourceRequirements, SeccompProfile, SecretVolumeSource, SecurityContext, Toleration, Volume,
    VolumeMount, WeightedPodAffinityTerm,
};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;

use crate::kubernetes::names::{CONFIG, CONTAINER, FIRST, INIT, TLS, VERIFIER, VOLUME, layout, matching};
use crate::kubernetes::script::{PASSWD, SCRIPT};
use crate::kubernetes::settings::KubernetesSettings;
use crate::settings::PORT;
use crate::tcp::{CA_FILE, CERTIFICATE_FILE, KEY_FILE};

const CONFIG_VOLUME: &str = "config";
const TLS_VOLUME: &str = "tls";
const FIRST_VOLUME: &str = "first";
const TMP_VOLUME: &str = "tmp";
const SHM_VOLUME: &str = "shm";

/// Nodes of this kind are kept apart from one another.
const TOPOLOGY: &str = "kubernetes.io/hostname";
/// What the kubelet may take beside the server's own time to stop, seconds.
const GRACE_S: u64 = 30;

/// The pod of `settings`.
pub(super) fn spec(settings: &KubernetesSettings) -> PodSpec {
    let init = Container {
        name: INIT.to_owned(),
        volume_mounts: Some(mounts(&[
            (VOLUME, &layout().home.display().to_string(), None, false),
            (CONFIG_VOLUME, CONFIG, None, true),
            (CONFIG_VOLUME, "/etc/passwd", Some(PASSWD), true),
            (FIRST_VOLUME, FIRST, None, true),
            (TMP_VOLUME, "/tmp", None, false),
            (SHM_VOLUME, "/dev/shm", None, false),
        ])),
        ..container(settings, "init")
    };
    let server = Container {
        name: CONTAINER.to_owned(),
        ports: Some(vec![ContainerPort {
            name: Some("postgres".to_owned()),
            container_port: i32::from(PORT),
            protocol: Some("TCP".to_owned()),
            ..ContainerPort::default()
        }]),
        // Not "ready": a server that recovers for an hour is not restarted, and bibd has its own deadline.
        startup_probe: Some(probe("alive", 5, 12)),
        liveness_probe: Some(probe("alive", 30, 4)),
        readiness_probe: Some(probe("ready", 10, 3)),
        // The kubelet's own signal would let the server wait for its clients.
        lifecycle: Some(Lifecycle {
            pre_stop: Some(LifecycleHandler { exec: Some(run("stop")), ..LifecycleHandler::default() }),
            ..Lifecycle::default()
        }),
        volume_mounts: Some(mounts(&[
            (VOLUME, &layout().home.display().to_string(), None, false),
            (CONFIG_VOLUME, CONFIG, None, true),
            (CONFIG_VOLUME, "/etc/passwd", Some(PASSWD), true),
            (TLS_VOLUME, TLS, None, true),
            (TMP_VOLUME, "/tmp", None, false),
            (SHM_VOLUME, "/dev/shm", None, false),
        ])),
        ..container(settings, "run")
    };
    PodSpec {
        init_containers: Some(vec![init]),
        containers: vec![server],
        service_account_name: Some(settings.name.clone()),
        automount_service_account_token: Some(false),
        // Their variables would tell of every Service in the namespace.
        enable_service_links: Some(false),
        security_context: Some(PodSecurityContext {
            run_as_non_root: Some(true),
            run_as_user: Some(i64::from(settings.uid)),
            run_as_group: Some(i64::from(settings.uid)),
            fs_group: Some(i64::from(settings.uid)),
            // Else every start would open PGDATA to the group again, file by file.
            fs_group_change_policy: Some("OnRootMismatch".to_owned()),
            seccomp_profile: Some(default_seccomp()),
            ..PodSecurityContext::default()
        }),
        affinity: Some(apart(settings)),
        node_selector: (!settings.node_selector.is_empty()).then(|| settings.node_selector.clone()),
        tolerations: (!settings.tolerations.is_empty()).then(|| tolerations(settings)),
        priority_class_name: settings.priority_class.clone(),
        image_pull_secrets: (!settings.pull_secrets.is_empty()).then(|| pull_secrets(settings)),
        termination_grace_period_seconds: i64::try_from(settings.stop_deadline.as_secs() + GRACE_S).ok(),
        volumes: Some(volumes(settings)),
        ..PodSpec::default()
    }
}

/// What both containers have in common; `verb` is the script's.
fn container(settings: &KubernetesSettings, verb: &str) -> Container {
    Container {
        image: Some(settings.pinned_image()),
        image_pull_policy: Some("IfNotPresent".to_owned()),
        command: run(verb).command,
        // Nothing secret, ever: everybody who may read the pod reads it.
        env: Some(
            [("LC_ALL", "C"), ("TZ", "UTC")]
                .map(|(name, value)| EnvVar {
                    name: name.to_owned(),
                    value: Some(value.to_owned()),
                    ..EnvVar::default()
                })
                .to_vec(),
        ),
        working_dir: Some("/".to_owned()),
        resources: Some(resources(settings)),
        security_context: Some(confined()),
        // The last lines of a container that failed are what bibd shows.
        termination_message_policy: Some("FallbackToLogsOnError".to_owned()),
        ..Container::default()
    }
}

/// A container that can do nothing but run.
pub(super) fn confined() -> SecurityContext {
    SecurityContext {
        allow_privilege_escalation: Some(false),
        privileged: Some(false),
        read_only_root_filesystem: Some(true),
        run_as_non_root: Some(true),
        capabilities: Some(Capabilities { drop: Some(vec!["ALL".to_owned()]), add: None }),
        seccomp_profile: Some(default_seccomp()),
        ..SecurityContext::default()
    }
}

/// The runtime's own filter of system calls.
pub(super) fn default_seccomp() -> SeccompProfile {
    SeccompProfile { type_: "RuntimeDefault".to_owned(), localhost_profile: None }
}

/// As much as it asks for and no more: a database is not where memory is saved.
pub(super) fn resources(settings: &KubernetesSettings) -> ResourceRequirements {
    let limits = &settings.limits;
    let memory = ("memory".to_owned(), bytes(limits.memory_bytes));
    let cpu = |milli: u32| ("cpu".to_owned(), Quantity(format!("{milli}m")));
    let mut upper = BTreeMap::from([memory.clone()]);
    if limits.cpu_limit > 0 {
        upper.extend([cpu(limits.cpu_limit)]);
    }
    ResourceRequirements {
        requests: Some(BTreeMap::from([memory, cpu(limits.cpu_request)])),
        limits: Some(upper),
        ..ResourceRequirements::default()
    }
}

/// Bytes as Kubernetes writes them: the largest unit that is exact.
pub(super) fn bytes(count: u64) -> Quantity {
    for (shift, unit) in [(30, "Gi"), (20, "Mi"), (10, "Ki")] {
        if count > 0 && count.is_multiple_of(1 << shift) {
            return Quantity(format!("{}{unit}", count >> shift));
        }
    }
    Quantity(count.to_string())
}

/// Away from bibd and from other databases of BIB where there is a choice: one machine that fails takes one of them.
fn apart(settings: &KubernetesSettings) -> Affinity {
    let away = |labels: &BTreeMap<String, String>, weight| WeightedPodAffinityTerm {
        weight,
        pod_affinity_term: PodAffinityTerm {
            label_selector: Some(matching(labels)),
            topology_key: TOPOLOGY.to_owned(),
            ..PodAffinityTerm::default()
        },
    };
    let kin = BTreeMap::from([("app.kubernetes.io/name".to_owned(), "bibd-postgres".to_owned())]);
    let terms = vec![away(&settings.clients, 100), away(&kin, 50)];
    Affinity {
        pod_anti_affinity: Some(PodAntiAffinity {
            preferred_during_scheduling_ignored_during_execution: Some(terms),
            required_during_scheduling_ignored_during_execution: None,
        }),
        ..Affinity::default()
    }
}

/// The taints of the settings.
pub(super) fn tolerations(settings: &KubernetesSettings) -> Vec<Toleration> {
    let one = |own: &crate::kubernetes::settings::Toleration| Toleration {
        key: own.key.clone(),
        operator: Some(if own.value.is_some() { "Equal" } else { "Exists" }.to_owned()),
        value: own.value.clone(),
        effect: own.effect.clone(),
        toleration_seconds: None,
    };
    settings.tolerations.iter().map(one).collect()
}

/// References to the Secrets of the registry.
pub(super) fn pull_secrets(settings: &KubernetesSettings) -> Vec<LocalObjectReference> {
    settings.pull_secrets.iter().map(|name| LocalObjectReference { name: name.clone() }).collect()
}

fn run(verb: &str) -> ExecAction {
    ExecAction { command: Some(vec!["/bin/sh".to_owned(), format!("{CONFIG}/{SCRIPT}"), verb.to_owned()]) }
}

fn probe(verb: &str, period_seconds: i32, failure_threshold: i32) -> Probe {
    Probe {
        exec: Some(run(verb)),
        period_seconds: Some(period_seconds),
        timeout_seconds: Some(5),
        failure_threshold: Some(failure_threshold),
        success_threshold: Some(1),
        ..Probe::default()
    }
}

/// (volume, path, one key of it, read-only).
fn mounts(all: &[(&str, &str, Option<&str>, bool)]) -> Vec<VolumeMount> {
    all.iter()
        .map(|(name, path, key, read_only)| VolumeMount {
            name: (*name).to_owned(),
            mount_path: (*path).to_owned(),
            sub_path: key.map(str::to_owned),
            read_only: Some(*read_only),
            ..VolumeMount::default()
        })
        .collect()
}

fn volumes(settings: &KubernetesSettings) -> Vec<Volume> {
    let memory = |name: &str, size| Volume {
        name: name.to_owned(),
        empty_dir: Some(EmptyDirVolumeSource { medium: Some("Memory".to_owned()), size_limit: Some(bytes(size)) }),
        ..Volume::default()
    };
    let secret = |name: &str, keys: &[&str], optional| Volume {
        name: name.to_owned(),
        secret: Some(SecretVolumeSource {
            secret_name: Some(settings.name.clone()),
            default_mode: Some(0o400),
            items: Some(
                keys.iter()
                    .map(|key| KeyToPath { key: (*key).to_owned(), path: (*key).to_owned(), mode: Some(0o400) })
                    .collect(),
            ),
            optional: Some(optional),
        }),
        ..Volume::default()
    };
    vec![
        Volume {
            name: CONFIG_VOLUME.to_owned(),
            config_map: Some(ConfigMapVolumeSource {
                name: settings.name.clone(),
                default_mode: Some(0o444),
                ..ConfigMapVolumeSource::default()
            }),
            ..Volume::default()
        },
        secret(TLS_VOLUME, &[CA_FILE, CERTIFICATE_FILE, KEY_FILE], false),
        // Gone from the Secret once there is a cluster.
        secret(FIRST_VOLUME, &[VERIFIER], true),
        memory(TMP_VOLUME, settings.limits.tmpfs_bytes),
        memory(SHM_VOLUME, settings.limits.shm_bytes),
    ]
}
