//! `database.kubernetes`: the objects that a database in Kubernetes is made of. `bibd kubernetes manifests` prints them,
//! and the provisioner applies them.

use std::collections::BTreeMap;
use std::path::PathBuf;

use bibd_postgres::kubernetes::{Access, KubernetesSettings, Mode, PodLimits, Toleration};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{Database, Provisioner, Size};

/// The longest name of the database: what is derived from it must be a name as well.
const MAX_NAME_BYTES: usize = 40;

/// PostgreSQL in Kubernetes.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Kubernetes {
    /// The file that names the cluster and says how to log in. Default: `KUBECONFIG`, then `~/.kube/config`, then the
    /// account of the pod that bibd is.
    pub kubeconfig: Option<PathBuf>,
    /// The namespace of bibd and its database. Give them one in which nothing else lies: who may create a StatefulSet
    /// there may run anything there.
    pub namespace: String,
    /// The name of the database's objects.
    pub name: String,
    /// What makes the pod.
    pub mode: KubernetesMode,
    /// Any image with PostgreSQL of `major` and a shell; in operator mode one that is made for CloudNativePG.
    pub image: String,
    /// `sha256:` and 64 hex digits: the image's digest in its registry.
    pub digest: Option<String>,
    /// The major version of PostgreSQL in the image, 15 to 18. The pod refuses an image with another one.
    pub major: u32,
    /// Names of Secrets with log-ins of the image's registry.
    pub registry_logins: Vec<String>,
    /// The number of the user and the group that PostgreSQL runs as, at least 1000.
    pub uid: u32,
    /// The storage class of the volume. Default: the cluster's.
    pub storage_class: Option<String>,
    /// The size of the volume, at least 1GiB.
    pub storage: Size,
    /// Memory of the pod, at least 256MiB more than `shared_buffers` and `shm` together.
    pub memory: Size,
    /// Thousandths of a processor that the pod is sure of, at least 1.
    pub cpu_request: u32,
    /// Thousandths of a processor that it never exceeds; 0 is all of its node.
    pub cpu_limit: u32,
    /// Shared memory for parallel queries, at least 16MiB. It counts as memory of the pod.
    pub shm: Size,
    /// The size of `/tmp`, at least 1MiB. It counts as memory of the pod.
    pub tmpfs: Size,
    /// Pods in operator mode, 1 to 9: one writes, the others follow it.
    pub instances: u32,
    /// The namespace of the operator CloudNativePG, in operator mode.
    pub operator_namespace: String,
    /// Labels, `KEY=VALUE` each, of the nodes that the pod may run on.
    pub node_selector: Vec<String>,
    /// Taints that it runs in spite of, as `kubectl taint` writes them: `KEY`, `KEY=VALUE` or `KEY=VALUE:EFFECT`.
    pub tolerations: Vec<String>,
    /// Its priority class.
    pub priority_class: Option<String>,
    /// Address ranges such as `192.0.2.0/24`, outside of the cluster, from which bibd reaches the database through a
    /// port of the nodes. None when bibd runs inside.
    pub outside: Vec<String>,
    /// The name or address under which that port is reached: of the machine that the pod runs on, or of what leads there.
    /// Needed with `outside`.
    pub outside_host: Option<String>,
    /// Labels, `KEY=VALUE` each, of bibd's own pods: nobody else reaches the database.
    pub clients: Vec<String>,
    /// The account of bibd's own pods, which gets the role that lets it make all this.
    pub service_account: String,
}

/// What makes the database's pod.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum KubernetesMode {
    /// A StatefulSet with one pod.
    StatefulSet,
    /// The operator CloudNativePG, which must be installed: replicas and failover.
    Operator,
}

impl Default for Kubernetes {
    fn default() -> Self {
        let usual = KubernetesSettings::default();
        Self {
            kubeconfig: None,
            namespace: usual.namespace,
            name: usual.name,
            mode: KubernetesMode::StatefulSet,
            image: usual.image,
            digest: usual.digest,
            major: usual.major,
            registry_logins: usual.pull_secrets,
            uid: usual.uid,
            storage_class: usual.storage_class,
            storage: Size(usual.storage_bytes),
            memory: Size(usual.limits.memory_bytes),
            cpu_request: usual.limits.cpu_request,
            cpu_limit: usual.limits.cpu_limit,
            shm: Size(usual.limits.shm_bytes),
            tmpfs: Size(usual.limits.tmpfs_bytes),
            instances: usual.instances,
            operator_namespace: usual.operator_namespace,
            node_selector: Vec::new(),
            tolerations: Vec::new(),
            priority_class: usual.priority_class,
            outside: usual.outside,
            outside_host: usual.outside_host,
            clients: usual.clients.iter().map(|(key, value)| format!("{key}={value}")).collect(),
            service_account: usual.service_account,
        }
    }
}

/// How the cluster is found.
pub(crate) fn access(database: &Database) -> Access {
    database.kubernetes.kubeconfig.clone().map_or(Access::Found, Access::File)
}

/// The settings of `bibd-postgres`.
pub(crate) fn settings(database: &Database) -> KubernetesSettings {
    let own = &database.kubernetes;
    KubernetesSettings {
        name: own.name.clone(),
        node: None,
        namespace: own.namespace.clone(),
        mode: match own.mode {
            KubernetesMode::StatefulSet => Mode::StatefulSet,
            KubernetesMode::Operator => Mode::Operator,
        },
        image: own.image.clone(),
        digest: own.digest.clone(),
        major: own.major,
        pull_secrets: own.registry_logins.clone(),
        uid: own.uid,
        storage_class: own.storage_class.clone(),
        storage_bytes: own.storage.0,
        instances: own.instances,
        operator_namespace: own.operator_namespace.clone(),
        node_selector: labels(&own.node_selector),
        tolerations: own.tolerations.iter().filter_map(|text| toleration(text)).collect(),
        priority_class: own.priority_class.clone(),
        outside: own.outside.clone(),
        outside_host: own.outside_host.clone(),
        clients: labels(&own.clients),
        service_account: own.service_account.clone(),
        limits: PodLimits {
            memory_bytes: own.memory.0,
            cpu_request: own.cpu_request,
            cpu_limit: own.cpu_limit,
            shm_bytes: own.shm.0,
            tmpfs_bytes: own.tmpfs.0,
        },
        stop_deadline: database.stop_timeout.0,
    }
}

/// What types alone cannot say: key, problem, fix.
pub(super) fn check(database: &Database) -> Vec<(&'static str, String, String)> {
    let own = &database.kubernetes;
    let mut found = Vec::new();
    let mut refuse = |key, is_wrong, message: &str, hint: &str| {
        if is_wrong {
            found.push((key, message.to_owned(), hint.to_owned()));
        }
    };
    let usual = "remove it to use the default";
    let name = "must be lower-case letters, digits and `-`";
    refuse("database.kubernetes.namespace", !is_name(&own.namespace, 63), name, usual);
    refuse(
        "database.kubernetes.name",
        !is_name(&own.name, MAX_NAME_BYTES),
        "must be at most 40 lower-case letters, digits and `-`",
        usual,
    );
    refuse("database.kubernetes.service_account", !is_name(&own.service_account, 63), name, usual);
    refuse("database.kubernetes.operator_namespace", !is_name(&own.operator_namespace, 63), name, usual);
    let logins = own.registry_logins.iter().all(|one| is_name(one, 253));
    refuse(
        "database.kubernetes.registry_logins",
        !logins,
        "must be names of Secrets",
        "`kubectl get secrets` lists them",
    );
    let class = own.storage_class.iter().all(|one| is_name(one, 253));
    refuse("database.kubernetes.storage_class", !class, name, "`kubectl get storageclass` lists them");
    let priority = own.priority_class.iter().all(|one| is_name(one, 253));
    refuse("database.kubernetes.priority_class", !priority, name, "`kubectl get priorityclass` lists them");
    let image = own.image.is_empty() || own.image.contains(char::is_whitespace);
    refuse("database.kubernetes.image", image, "must name an image", usual);
    let is_digest = |text: &String| {
        text.strip_prefix("sha256:")
            .is_some_and(|hex| hex.len() == 64 && hex.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f')))
    };
    let message = "must be `sha256:` and 64 hex digits";
    refuse("database.kubernetes.digest", !own.digest.iter().all(is_digest), message, "the registry shows an image's");
    refuse("database.kubernetes.major", !(15..=18).contains(&own.major), "must be 15 to 18", usual);
    refuse("database.kubernetes.uid", own.uid < 1000, "must be at least 1000", usual);
    refuse("database.kubernetes.storage", own.storage.0 < 1 << 30, "must be at least 1GiB", usual);
    refuse("database.kubernetes.shm", own.shm.0 < 16 << 20, "must be at least 16MiB", usual);
    refuse("database.kubernetes.tmpfs", own.tmpfs.0 < 1 << 20, "must be at least 1MiB", usual);
    let least = database.shared_buffers.0.saturating_add(own.shm.0).saturating_add(256 << 20);
    let message = "must be at least 256MiB more than `database.shared_buffers` and `shm` together";
    refuse("database.kubernetes.memory", own.memory.0 < least, message, "2GiB is usual");
    refuse(
        "database.kubernetes.cpu_request",
        own.cpu_request == 0,
        "must be at least 1",
        "250 is a quarter of a processor",
    );
    let less = own.cpu_limit != 0 && own.cpu_limit < own.cpu_request;
    refuse("database.kubernetes.cpu_limit", less, "must be 0 or at least `cpu_request`", usual);
    refuse("database.kubernetes.instances", !(1..=9).contains(&own.instances), "must be 1 to 9", usual);
    let are_labels = |all: &[String]| all.iter().all(|text| label(text).is_some());
    let message = "must be labels such as `disk=ssd`";
    refuse(
        "database.kubernetes.node_selector",
        !are_labels(&own.node_selector),
        message,
        "`kubectl get nodes --show-labels` lists them",
    );
    let hint = "the labels of bibd's pods, such as `app.kubernetes.io/name=bibd`";
    let clients = own.clients.is_empty() || !are_labels(&own.clients);
    refuse("database.kubernetes.clients", clients, "must be at least one label `KEY=VALUE`", hint);
    let tolerations = own.tolerations.iter().all(|text| toleration(text).is_some());
    let message = "must be taints such as `only=database:NoSchedule`";
    refuse("database.kubernetes.tolerations", !tolerations, message, "`kubectl describe node` shows a node's");
    let ranges = own.outside.iter().all(|text| is_range(text));
    refuse("database.kubernetes.outside", !ranges, "must be address ranges", "such as 192.0.2.0/24 or 2001:db8::/64");
    let is_host = |text: &String| !text.is_empty() && text.len() <= 253 && text.bytes().all(|b| b.is_ascii_graphic());
    let hint = "set `outside_host` to a node's name or address, or to what leads there";
    let wrong = !own.outside_host.iter().all(is_host);
    refuse("database.kubernetes.outside_host", wrong, "must name a host or an address", hint);
    let lacks = database.provisioner == Provisioner::Kubernetes && own.outside_host.is_none();
    refuse("database.kubernetes.outside", lacks && !own.outside.is_empty(), "needs `outside_host` beside it", hint);
    found
}

fn is_name(text: &str, longest: usize) -> bool {
    let inner = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-';
    let edge = |c: Option<char>| c.is_some_and(|c| c.is_ascii_lowercase() || c.is_ascii_digit());
    text.len() <= longest && text.chars().all(inner) && edge(text.chars().next()) && edge(text.chars().last())
}

/// A label's key or value: a word of at most 63 characters; a key may have a DNS name and `/` before it.
fn is_word(text: &str) -> bool {
    let inner = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
    let edge = |c: Option<char>| c.is_some_and(|c| c.is_ascii_alphanumeric());
    text.len() <= 63 && text.chars().all(inner) && edge(text.chars().next()) && edge(text.chars().last())
}

fn is_key(text: &str) -> bool {
    match text.split_once('/') {
        Some((domain, word)) => domain.len() <= 253 && domain.split('.').all(|part| is_name(part, 63)) && is_word(word),
        None => is_word(text),
    }
}

fn label(text: &str) -> Option<(String, String)> {
    let (key, value) = text.split_once('=')?;
    (is_key(key) && (value.is_empty() || is_word(value))).then(|| (key.to_owned(), value.to_owned()))
}

fn labels(all: &[String]) -> BTreeMap<String, String> {
    all.iter().filter_map(|text| label(text)).collect()
}

fn toleration(text: &str) -> Option<Toleration> {
    let (taint, effect) = match text.split_once(':') {
        Some((taint, effect)) => (taint, Some(effect)),
        None => (text, None),
    };
    let (key, value) = match taint.split_once('=') {
        Some((key, value)) => (key, Some(value)),
        None => (taint, None),
    };
    let known = ["NoSchedule", "PreferNoSchedule", "NoExecute"];
    let fits = is_key(key)
        && value.is_none_or(|value| value.is_empty() || is_word(value))
        && effect.is_none_or(|effect| known.contains(&effect));
    fits.then(|| Toleration {
        key: Some(key.to_owned()),
        value: value.map(str::to_owned),
        effect: effect.map(str::to_owned),
    })
}

fn is_range(text: &str) -> bool {
    let Some((address, bits)) = text.split_once('/') else { return false };
    let (Ok(address), Ok(bits)) = (address.parse::<std::net::IpAddr>(), bits.parse::<u32>()) else { return false };
    bits <= if address.is_ipv4() { 32 } else { 128 }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn found(change: impl FnOnce(&mut Kubernetes)) -> Vec<&'static str> {
        let mut database = Database::default();
        change(&mut database.kubernetes);
        check(&database).into_iter().map(|(key, ..)| key.rsplit('.').next().unwrap()).collect()
    }

    #[test]
    fn what_kubernetes_would_refuse_is_refused_here_with_its_key() {
        assert!(found(|_| {}).is_empty());
        assert_eq!(found(|own| own.namespace = "Bib".into()), ["namespace"]);
        assert_eq!(found(|own| own.name = "a".repeat(41)), ["name"]);
        assert_eq!(found(|own| own.name = "-a".into()), ["name"]);
        assert_eq!(found(|own| own.service_account = String::new()), ["service_account"]);
        assert_eq!(found(|own| own.operator_namespace = "a.b".into()), ["operator_namespace"]);
        assert_eq!(found(|own| own.registry_logins = vec!["A".into()]), ["registry_logins"]);
        assert_eq!(found(|own| own.storage_class = Some("a b".into())), ["storage_class"]);
        assert_eq!(found(|own| own.priority_class = Some("".into())), ["priority_class"]);
        assert_eq!(found(|own| own.image = "a b".into()), ["image"]);
        assert_eq!(found(|own| own.digest = Some("sha256:12".into())), ["digest"]);
        assert_eq!(found(|own| own.major = 14), ["major"]);
        assert_eq!(found(|own| own.uid = 0), ["uid"]);
        assert_eq!(found(|own| own.storage = Size(1 << 20)), ["storage"]);
        assert_eq!(found(|own| own.shm = Size(1 << 20)), ["shm"]);
        assert_eq!(found(|own| own.tmpfs = Size(0)), ["tmpfs"]);
        assert_eq!(found(|own| own.memory = Size(600 << 20)), ["memory"]);
        assert_eq!(found(|own| own.cpu_request = 0), ["cpu_request"]);
        assert_eq!(found(|own| own.cpu_limit = 10), ["cpu_limit"]);
        assert_eq!(found(|own| own.instances = 10), ["instances"]);
        for wrong in ["disk", "=ssd", "disk=a b", "a/b/c=d", "Dom.ain/x=y"] {
            assert_eq!(found(|own| own.node_selector = vec![wrong.into()]), ["node_selector"], "{wrong}");
            assert_eq!(found(|own| own.clients = vec![wrong.into()]), ["clients"], "{wrong}");
        }
        assert_eq!(found(|own| own.clients = Vec::new()), ["clients"]);
        for wrong in ["", ":NoSchedule", "a=b:Never", "a b"] {
            assert_eq!(found(|own| own.tolerations = vec![wrong.into()]), ["tolerations"], "{wrong}");
        }
        for wrong in ["192.0.2.1", "192.0.2.0/33", "host/8", "::/129"] {
            assert_eq!(found(|own| own.outside = vec![wrong.into()]), ["outside"], "{wrong}");
        }
        assert_eq!(found(|own| own.outside_host = Some("a b".into())), ["outside_host"]);
    }

    #[test]
    fn taints_and_labels_are_read_as_kubectl_writes_them() {
        let read = |text: &str| toleration(text).map(|one| (one.key.unwrap(), one.value, one.effect));
        let some = |text: &str| Some(text.to_owned());
        assert_eq!(read("only=bib:NoExecute"), Some(("only".to_owned(), some("bib"), some("NoExecute"))));
        assert_eq!(read("example.org/x"), Some(("example.org/x".to_owned(), None, None)));
        assert_eq!(read("a=:NoSchedule"), Some(("a".to_owned(), some(""), some("NoSchedule"))));
        assert_eq!(label("kubernetes.io/os=linux"), Some(("kubernetes.io/os".to_owned(), "linux".to_owned())));
        assert_eq!(labels(&["a=".to_owned()]), BTreeMap::from([("a".to_owned(), String::new())]));
    }
}
