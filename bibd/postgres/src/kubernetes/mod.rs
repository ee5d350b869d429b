//! PostgreSQL in a pod of Kubernetes: the objects that make it, as a function of the settings.
//!
//! Start reading at [`manifests`] (every object, and how they are printed). [`settings`] says what may be configured,
//! [`names`] what everything is called, [`script`] what runs inside of the pod.
//!
//! Two ways to run it ([`Mode`]): a StatefulSet of ours with one pod, or a `Cluster` that the operator
//! CloudNativePG turns into pods. All of that is functions without IO; [`cluster`] asks Kubernetes. The provisioner
//! ([`KubernetesPostgres`], in [`provisioner`]) makes and runs either.

pub mod cluster;
pub mod manifests;
pub mod names;
mod operated;
mod operations;
pub mod provisioner;
pub mod script;
pub mod settings;
mod trouble;

use crate::config::Config;
use crate::settings::{Limits, PORT, Wal};
use crate::tcp::Listening;
use crate::version::Version;

pub use cluster::{Cluster, ClusterError, Effect};
pub use manifests::{Content, Manifest};
pub use provisioner::KubernetesPostgres;
pub use settings::{Access, Example, InKubernetes, KubernetesSettings, Mode, PodLimits, Toleration};
pub use trouble::Trouble;

impl KubernetesSettings {
    /// The server's files in the pod: those of any server over TCP, but that its log is the pod's.
    #[must_use]
    pub fn config(&self, limits: &Limits, wal: &Wal) -> Config {
        let listening = Listening {
            addresses: "*".to_owned(),
            port: PORT,
            // Who comes from where is the network policy's: pods have no addresses of their own for long.
            from: "all".to_owned(),
            files: names::TLS.into(),
        };
        let version = Version { major: self.major, minor: 0 };
        let mut config = Config::over_tcp(version, &names::layout(), limits, wal, &listening);
        for (name, value) in &mut config.settings {
            if *name == "logging_collector" {
                // Kubernetes keeps, rotates and shows it.
                "off".clone_into(value);
            }
        }
        config
    }
}
