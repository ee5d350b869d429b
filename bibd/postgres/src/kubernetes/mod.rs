//! PostgreSQL in a pod of Kubernetes: the objects that make it, as a function of the settings.
//!
//! Start reading at [`manifests`] (every object, and how they are printed). [`settings`] says what may be configured,
//! [`names`] what everything is called, [`script`] what runs inside of the pod.
//!
//! Two ways to run it ([`Mode`]): a StatefulSet of ours with one pod, or a `Cluster` that the operator
//! CloudNativePG turns into pods. All of that is functions without IO; [`cluster`] alone asks Kubernetes, and changes
//! nothing there. Nothing here applies an object yet, and no provisioner runs on them.

pub mod cluster;
pub mod manifests;
pub mod names;
pub mod script;
pub mod settings;

use crate::config::Config;
use crate::settings::{Limits, PORT, Wal};
use crate::tcp::Listening;
use crate::version::Version;

pub use cluster::{Cluster, ClusterError, Effect};
pub use manifests::{Content, Manifest};
pub use settings::{Example, KubernetesSettings, Mode, PodLimits, Toleration};

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
