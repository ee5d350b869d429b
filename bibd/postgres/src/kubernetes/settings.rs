//! What the composition root decides about a server in Kubernetes. Data only.

use std::collections::BTreeMap;
use std::fmt;
use std::path::PathBuf;
use std::time::Duration;

use crate::settings::DEFAULT_IMAGE;
use crate::tcp::Clock;
use crate::version::NEWEST_MAJOR;

/// What makes the pod.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mode {
    /// A StatefulSet of ours, with one pod.
    StatefulSet,
    /// A `Cluster` of the operator CloudNativePG: replicas and failover.
    Operator,
}

/// What the provisioner needs beyond the objects.
#[derive(Debug, Clone)]
pub struct InKubernetes {
    /// The objects.
    pub objects: KubernetesSettings,
    /// Tells when certificates begin and end.
    pub clock: Clock,
    /// The cluster.
    pub access: Access,
}

/// How the cluster is found.
#[derive(Clone, Default)]
pub enum Access {
    /// By the environment: a kubeconfig, else as the pod that this process is.
    #[default]
    Found,
    /// By this kubeconfig.
    File(PathBuf),
    /// This one, as if this process were a pod of it.
    Given(Box<kube::Config>),
}

impl fmt::Debug for Access {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // The library's configuration holds what one logs in with.
        match self {
            Self::Found => f.write_str("Found"),
            Self::File(path) => f.debug_tuple("File").field(path).finish(),
            Self::Given(_) => f.write_str("Given"),
        }
    }
}

/// A server in Kubernetes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KubernetesSettings {
    /// The name of every object that there is one of. Not the node's: bibd's role names it before there is a node.
    pub name: String,
    /// The node's short id, for a label, once there is a node.
    pub node: Option<String>,
    /// The namespace of the database; bibd runs in the same.
    pub namespace: String,
    /// What makes the pod.
    pub mode: Mode,
    /// The image's name. Any image with PostgreSQL's programs and a shell; in operator mode one that is made for it.
    pub image: String,
    /// `sha256:..`: the digest in the registry that the image must have.
    pub digest: Option<String>,
    /// The major version in the image. The pod refuses another one.
    pub major: u32,
    /// Secrets with the registry's credentials, by name.
    pub pull_secrets: Vec<String>,
    /// The user and the group that the server runs as.
    pub uid: u32,
    /// The storage class of the volume; the cluster's default when absent.
    pub storage_class: Option<String>,
    /// The size of the volume, bytes.
    pub storage_bytes: u64,
    /// Pods in operator mode: one writes, the others follow it.
    pub instances: u32,
    /// The namespace that the operator itself runs in, in operator mode.
    pub operator_namespace: String,
    /// The nodes that the pod may run on, by label.
    pub node_selector: BTreeMap<String, String>,
    /// Taints that it runs in spite of.
    pub tolerations: Vec<Toleration>,
    /// How much more important it is than other pods.
    pub priority_class: Option<String>,
    /// Address ranges outside of the cluster from which bibd connects through a port of the nodes. None: it runs inside.
    pub outside: Vec<String>,
    /// The name or address under which that port is reached from there.
    pub outside_host: Option<String>,
    /// The labels of bibd's pods: nobody else reaches the database.
    pub clients: BTreeMap<String, String>,
    /// The account that bibd's pods run under, for the role that lets it make all this.
    pub service_account: String,
    /// Sizes.
    pub limits: PodLimits,
    /// How long a clean stop may take.
    pub stop_deadline: Duration,
}

/// What the pod may use.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PodLimits {
    /// Memory, bytes: asked for and never exceeded. Shared memory and `/tmp` count.
    pub memory_bytes: u64,
    /// Thousandths of a processor that it is sure of.
    pub cpu_request: u32,
    /// Thousandths of a processor that it never exceeds; 0 for all of its node.
    pub cpu_limit: u32,
    /// `/dev/shm`, bytes.
    pub shm_bytes: u64,
    /// `/tmp`, bytes.
    pub tmpfs_bytes: u64,
}

/// A taint that the pod runs in spite of.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Toleration {
    /// The taint's key; every taint when absent.
    pub key: Option<String>,
    /// Its value; any when absent.
    pub value: Option<String>,
    /// `NoSchedule`, `PreferNoSchedule` or `NoExecute`; each of them when absent.
    pub effect: Option<String>,
}

/// How bibd itself is run by the printed example.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Example {
    /// An image with `bibd` and PostgreSQL, and a user of number 10433.
    pub image: String,
    /// The size of its volume, bytes.
    pub storage_bytes: u64,
}

impl Default for KubernetesSettings {
    fn default() -> Self {
        Self {
            name: "bibd-postgres".to_owned(),
            node: None,
            namespace: "bib".to_owned(),
            mode: Mode::StatefulSet,
            image: DEFAULT_IMAGE.to_owned(),
            digest: None,
            major: NEWEST_MAJOR,
            pull_secrets: Vec::new(),
            uid: 10_432,
            storage_class: None,
            storage_bytes: 20 << 30,
            instances: 3,
            operator_namespace: "cnpg-system".to_owned(),
            node_selector: BTreeMap::new(),
            tolerations: Vec::new(),
            priority_class: None,
            outside: Vec::new(),
            outside_host: None,
            clients: BTreeMap::from([("app.kubernetes.io/name".to_owned(), "bibd".to_owned())]),
            service_account: "bibd".to_owned(),
            limits: PodLimits::default(),
            stop_deadline: Duration::from_secs(60),
        }
    }
}

impl Default for PodLimits {
    fn default() -> Self {
        Self { memory_bytes: 2 << 30, cpu_request: 250, cpu_limit: 0, shm_bytes: 256 << 20, tmpfs_bytes: 64 << 20 }
    }
}

impl Default for Example {
    fn default() -> Self {
        Self { image: "bibd:0.1.0".to_owned(), storage_bytes: 50 << 30 }
    }
}
