//! What goes wrong with a database in Kubernetes and nowhere else.

use std::path::PathBuf;

use super::cluster::ClusterError;

/// Why there is no database in Kubernetes, or none that does what it is asked for.
#[derive(Debug, thiserror::Error)]
pub enum Trouble {
    /// The cluster.
    #[error(transparent)]
    Cluster(#[from] ClusterError),
    /// Nothing of Kubernetes was configured where a server is wanted there.
    #[error("a database beside the node's own does not run in Kubernetes")]
    NotHere,
    /// bibd is no pod, so nobody asked for a database in Kubernetes.
    #[error("bibd may not create a {kind} in the namespace `{namespace}`")]
    MayNot {
        /// What would make the pod.
        kind: &'static str,
        /// Where.
        namespace: String,
    },
    /// The kind of object that the operator brings is not there.
    #[error("Kubernetes knows no kind Cluster of {group}: the operator CloudNativePG is not installed")]
    NoOperator {
        /// Its API.
        group: &'static str,
    },
    /// The database was made in the other mode.
    #[error("the database was made with database.kubernetes.mode {made}, which is {configured} now")]
    OtherMode {
        /// How it was made.
        made: &'static str,
        /// What is configured.
        configured: &'static str,
    },
    /// A `Cluster` that nothing here knows of.
    #[error(
        "Cluster `{name}` is there, but nothing says that this node made it (no `{}`)",
        provisioner.display()
    )]
    ClusterUnknown {
        /// Its name.
        name: String,
        /// The PROVISIONER file.
        provisioner: PathBuf,
    },
    /// A database that was is gone: the operator would make an empty one in its place.
    #[error("{what}, expected cluster {expected}")]
    Lost {
        /// What is not there.
        what: String,
        /// The remembered identifier.
        expected: u64,
    },
    /// The operator's server does not come up.
    #[error("Cluster `{name}` does not come up: {reason}{}", lines(.log))]
    ClusterNotUp {
        /// Its name.
        name: String,
        /// Why, as far as anybody says.
        reason: String,
        /// The last lines of its pod's log.
        log: Vec<String>,
        /// What a person can do about it.
        hint: &'static str,
    },
    /// Its pods do not go.
    #[error("Cluster `{name}` still has pods after {seconds} s: {reason}")]
    NotHibernated {
        /// Its name.
        name: String,
        /// How long it was waited for.
        seconds: u64,
        /// How it is.
        reason: String,
    },
    /// Its volumes do not go.
    #[error("volumes of Cluster `{name}` stay: {}", claims.join(", "))]
    ClaimsStay {
        /// Its name.
        name: String,
        /// The claims to them.
        claims: Vec<String>,
    },
    /// The operator does not give the superuser its next password.
    #[error("the operator did not give the superuser its next password within {seconds} s{}", reason.as_ref().map(|said| format!(": {said}")).unwrap_or_default())]
    PasswordNotGiven {
        /// How long it was waited for.
        seconds: u64,
        /// What it says about the role.
        reason: Option<String>,
    },
    /// From outside, and nobody said where to.
    #[error("bibd is outside of the cluster, and nothing says under which name a port of its nodes is reached")]
    NoOutsideHost,
    /// The Service has no port of the nodes.
    #[error("Service `{service}` has no port of the nodes")]
    NoNodePort {
        /// Its name.
        service: String,
    },
    /// A volume that nothing here knows of.
    #[error(
        "the volume of PersistentVolumeClaim `{claim}` is there, but nothing says that this node made it (no `{}`)",
        provisioner.display()
    )]
    VolumeUnknown {
        /// The claim.
        claim: String,
        /// The PROVISIONER file.
        provisioner: PathBuf,
    },
    /// Somebody else's database.
    #[error("{kind} `{name}` is not this node's: its label bib.node says {found}, not {expected}")]
    Foreign {
        /// `StatefulSet` or `Cluster`.
        kind: String,
        /// Its name.
        name: String,
        /// Whose it is.
        found: String,
        /// Who this is.
        expected: String,
    },
    /// The configuration names another version than made the data.
    #[error("the database was made by PostgreSQL {data}, database.kubernetes.major says {configured}")]
    OtherMajor {
        /// What made it.
        data: u32,
        /// What is configured.
        configured: u32,
    },
    /// The pod runs another cluster.
    #[error("the pod `{pod}` holds cluster {found}, expected {expected}")]
    OtherCluster {
        /// The pod.
        pod: String,
        /// The remembered identifier.
        expected: u64,
        /// Its own.
        found: u64,
    },
    /// The pod did not say what it holds.
    #[error("the pod `{pod}` does not say which cluster it holds")]
    NoIdentity {
        /// The pod.
        pod: String,
    },
    /// The pod does not come up.
    #[error("the pod `{pod}` does not come up: {reason}{}", lines(.log))]
    NotUp {
        /// The pod.
        pod: String,
        /// Why, as far as the cluster says.
        reason: String,
        /// The last lines of its log.
        log: Vec<String>,
        /// What a person can do about it.
        hint: &'static str,
    },
    /// The pod does not go.
    #[error("the pod `{pod}` is still there after {seconds} s: {reason}")]
    NotGone {
        /// The pod.
        pod: String,
        /// How long it was waited for.
        seconds: u64,
        /// How it is.
        reason: String,
    },
    /// A cluster from a backup is not put into a volume.
    #[error("a backup cannot be restored into a volume of Kubernetes")]
    RestoreElsewhere,
    /// Nor is what is in one dumped and loaded beside it.
    #[error("a database in Kubernetes cannot be upgraded to another major version there")]
    UpgradeElsewhere,
    /// A volume is no directory of this machine.
    #[error("a database in Kubernetes cannot be handed over to or from another provisioner")]
    MoveElsewhere,
}

fn lines(log: &[String]) -> String {
    log.iter().map(|line| format!("\n  {line}")).collect()
}

impl Trouble {
    /// What a person can do about it.
    #[must_use]
    pub fn hint(&self) -> String {
        match self {
            Self::Cluster(error) => error.hint().to_owned(),
            Self::NotHere => "set database.provisioner to process or container".to_owned(),
            Self::MayNot { .. } => {
                "let an administrator apply the account and its role: bibd kubernetes manifests --part around"
                    .to_owned()
            }
            Self::NoOperator { .. } => {
                "install CloudNativePG, or set database.kubernetes.mode to statefulset".to_owned()
            }
            Self::OtherMode { made, .. } => format!(
                "set database.kubernetes.mode back to {made}; to change it, restore a backup under the other: \
                 docs/operations.md, \"Kubernetes\""
            ),
            Self::ClusterUnknown { name, .. } => format!(
                "if it is not needed: kubectl delete cluster {name}; if it is, restore PROVISIONER from a backup, or set \
                 database.kubernetes.name to a free one"
            ),
            Self::Lost { .. } => {
                "give the database its volumes back, or restore a backup; BIB never starts empty over a \
                                  database that existed"
                    .to_owned()
            }
            Self::ClusterNotUp { hint, .. } => (*hint).to_owned(),
            Self::NotHibernated { name, .. } => format!(
                "`kubectl describe cluster {name}` tells why; to give the database up with its data: kubectl delete \
                 cluster {name}"
            ),
            Self::ClaimsStay { name, .. } => format!(
                "Kubernetes removes them with their Cluster; if they are its no more: kubectl delete pvc -l \
                 cnpg.io/cluster={name}"
            ),
            Self::PasswordNotGiven { .. } => {
                "rotate again: it goes on where it ended; `kubectl describe cluster` tells what holds the operator up"
                    .to_owned()
            }
            Self::NoOutsideHost => {
                "set database.kubernetes.outside_host to a node's name or address, or run bibd inside and remove \
                 database.kubernetes.outside"
                    .to_owned()
            }
            Self::NoNodePort { service } => format!("`kubectl describe service {service}` tells why"),
            Self::VolumeUnknown { claim, .. } => format!(
                "if it is not needed: kubectl delete pvc {claim}; if it is, restore PROVISIONER from a backup, or set \
                 database.kubernetes.name to a free one"
            ),
            Self::Foreign { .. } => "set database.kubernetes.name or namespace to one of this node's own".to_owned(),
            Self::OtherMajor { data, .. } => format!(
                "set database.kubernetes.major back to {data}; to go on with a newer one, restore a backup as a process \
                 and upgrade it there: docs/operations.md, \"Kubernetes\""
            ),
            Self::OtherCluster { .. } => "give the pod the volume that belongs to this node".to_owned(),
            Self::NoIdentity { pod } => format!("look at its first container: kubectl logs {pod} -c initdb"),
            Self::NotUp { hint, .. } => (*hint).to_owned(),
            Self::NotGone { pod, .. } => format!(
                "`kubectl describe pod {pod}` tells why; where its machine is gone: kubectl delete pod {pod} --force"
            ),
            Self::RestoreElsewhere => {
                "restore it as a process: bibd restore with database.provisioner set to process, also inside of a pod"
                    .to_owned()
            }
            Self::UpgradeElsewhere => {
                "restore a backup as a process, upgrade it there, and go on so: docs/operations.md, \"Kubernetes\""
                    .to_owned()
            }
            Self::MoveElsewhere => {
                "make a backup, and restore it under the other provisioner: docs/operations.md, \"Kubernetes\""
                    .to_owned()
            }
        }
    }
}
