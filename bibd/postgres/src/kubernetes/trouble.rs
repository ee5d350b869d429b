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
    #[error("bibd may not create a StatefulSet in the namespace `{namespace}`")]
    MayNot {
        /// Where.
        namespace: String,
    },
    /// The operator's objects are printed, not run.
    #[error("operator mode: bibd prints and tries the objects of CloudNativePG, and does not run on them")]
    OperatorMode,
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
    #[error("StatefulSet `{name}` is not this node's: its label bib.node says {found}, not {expected}")]
    Foreign {
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
    #[error("the pod `{pod}` does not come up: {reason}{}", .log.iter().map(|line| format!("\n  {line}")).collect::<String>())]
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
            Self::OperatorMode => {
                "set database.kubernetes.mode to statefulset; `bibd kubernetes manifests` prints the operator's objects"
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
