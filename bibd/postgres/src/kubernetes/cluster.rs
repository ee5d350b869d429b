//! A cluster that is asked: how it is found, why it does not answer, and what an apply would do.
//!
//! Objects are tried by server-side apply with our field manager and `dryRun`: the cluster does all that it would do,
//! defaults, admission, rights, conflicts, and keeps nothing. Every question has a deadline. What is asked in earnest
//! is in the private module `operations`.

use std::future::Future;
use std::time::Duration;

use kube::api::{Api, ApiResource, DynamicObject, GroupVersionKind, Patch, PatchParams};
use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::{Client, Config};
use serde_json::Value;

use super::manifests::Manifest;
use super::names::FIELD_MANAGER;
use super::settings::Access;

/// How long a cluster may take for one answer.
pub const ANSWER_DEADLINE: Duration = Duration::from_secs(10);

/// Why a cluster does not do what it is asked for.
#[derive(Debug, thiserror::Error)]
pub enum ClusterError {
    /// Nothing says where one is.
    #[error("no Kubernetes: {reason}")]
    None {
        /// Where was looked, and what was there.
        reason: String,
    },
    /// It cannot be spoken to.
    #[error("Kubernetes at {server} cannot be reached: {reason}")]
    Unreachable {
        /// Its address.
        server: String,
        /// Why.
        reason: String,
    },
    /// It says nothing.
    #[error("Kubernetes at {server} does not answer within {} s", deadline.as_secs_f32())]
    Silent {
        /// Its address.
        server: String,
        /// How long it was waited for.
        deadline: Duration,
    },
    /// This account may not (401, 403).
    #[error("{what} is not allowed: {reason}")]
    Forbidden {
        /// The object.
        what: String,
        /// Its words.
        reason: String,
    },
    /// The namespace or the kind is not there (404).
    #[error("{what} has no place: {reason}")]
    Missing {
        /// The object.
        what: String,
        /// Its words.
        reason: String,
    },
    /// Somebody else manages the same fields (409).
    #[error("{what} is also somebody else's: {reason}")]
    Conflict {
        /// The object.
        what: String,
        /// Its words.
        reason: String,
    },
    /// The object is refused as it is (400, 422).
    #[error("{what} is refused: {reason}")]
    Invalid {
        /// The object.
        what: String,
        /// Its words.
        reason: String,
    },
    /// The cluster failed.
    #[error("{what}: Kubernetes fails with {code}: {reason}")]
    Failed {
        /// The object.
        what: String,
        /// The status.
        code: u16,
        /// Its words.
        reason: String,
    },
}

impl ClusterError {
    /// What a person can do about it.
    #[must_use]
    pub fn hint(&self) -> &'static str {
        match self {
            Self::None { .. } => {
                "set KUBECONFIG or database.kubernetes.kubeconfig to a file that names one, or run in a pod whose account has a token"
            }
            Self::Unreachable { .. } => "look at the address and the certificate in the kubeconfig: `kubectl version`",
            Self::Silent { .. } => "look at the network between here and the API server",
            Self::Forbidden { .. } => {
                "let an administrator apply the account and its role: bibd kubernetes manifests --part around"
            }
            Self::Missing { .. } => {
                "make the namespace first (bibd kubernetes manifests --part around); in operator mode install \
                 CloudNativePG"
            }
            Self::Conflict { .. } => {
                "set database.kubernetes.name to a free one, or let the other manager give the fields up (`kubectl get \
                 -o yaml --show-managed-fields` names it)"
            }
            Self::Invalid { .. } => "the cluster's own policies may forbid it; see database.kubernetes",
            Self::Failed { .. } => "try again; the log of the API server knows more",
        }
    }
}

/// What an apply would do to an object.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Effect {
    /// It would be made.
    Created,
    /// It would be another than it is.
    Changed,
    /// It is so already.
    Same,
}

/// A cluster, as one account.
pub struct Cluster {
    client: Client,
    server: String,
    deadline: Duration,
}

impl Cluster {
    /// The one that the environment names: by a kubeconfig (`KUBECONFIG`, else the one in the home directory), or the
    /// one that this process is a pod of. Asks it nothing yet.
    ///
    /// # Errors
    /// [`ClusterError::None`], [`ClusterError::Unreachable`].
    pub async fn find() -> Result<Self, ClusterError> {
        let config = Config::infer().await.map_err(|error| ClusterError::None { reason: error.to_string() })?;
        Self::of(config, ANSWER_DEADLINE)
    }

    /// The one that `access` names. Asks it nothing yet.
    ///
    /// # Errors
    /// As [`find`](Self::find).
    pub async fn by(access: &Access) -> Result<Self, ClusterError> {
        match access {
            Access::Found => Self::find().await,
            Access::Given(config) => Self::of((**config).clone(), ANSWER_DEADLINE),
            Access::File(path) => {
                let none = |error: &dyn std::error::Error| ClusterError::None {
                    reason: format!("`{}`: {}", path.display(), said(error)),
                };
                let file = Kubeconfig::read_from(path).map_err(|error| none(&error))?;
                let config = Config::from_custom_kubeconfig(file, &KubeConfigOptions::default()).await;
                Self::of(config.map_err(|error| none(&error))?, ANSWER_DEADLINE)
            }
        }
    }

    /// The one that this process is a pod of. Asks it nothing yet.
    ///
    /// # Errors
    /// [`ClusterError::None`], [`ClusterError::Unreachable`].
    pub(crate) fn around() -> Result<Self, ClusterError> {
        let none = |error: kube::config::InClusterError| ClusterError::None { reason: said(&error) };
        Self::of(Config::incluster().map_err(none)?, ANSWER_DEADLINE)
    }

    /// The one of `config`.
    ///
    /// # Errors
    /// [`ClusterError::Unreachable`].
    pub fn of(mut config: Config, deadline: Duration) -> Result<Self, ClusterError> {
        let server = config.cluster_url.to_string();
        config.connect_timeout = Some(deadline);
        // A question that failed is not asked again behind our back: the deadline is for the whole of it.
        config.default_retry = false;
        let client = Client::try_from(config)
            .map_err(|error| ClusterError::Unreachable { server: server.clone(), reason: said(&error) })?;
        Ok(Self { client, server, deadline })
    }

    /// The address.
    #[must_use]
    pub fn server(&self) -> &str {
        &self.server
    }

    /// What an apply of `manifest` would do. Nothing is changed.
    ///
    /// # Errors
    /// Why it would fail.
    pub async fn try_apply(&self, manifest: &Manifest) -> Result<Effect, ClusterError> {
        let (what, api) = self.place_of(manifest);
        let is = self.ask(&what, api.get_opt(manifest.name())).await?;
        let how = PatchParams::apply(FIELD_MANAGER).dry_run();
        let would = self.ask(&what, api.patch(manifest.name(), &how, &Patch::Apply(manifest.value()))).await?;
        Ok(match is {
            None => Effect::Created,
            Some(is) if content(&is) == content(&would) => Effect::Same,
            Some(_) => Effect::Changed,
        })
    }

    /// What it is called in a sentence, and where the API has it.
    pub(super) fn place_of(&self, manifest: &Manifest) -> (String, Api<DynamicObject>) {
        let (group, version) = manifest.api_version().split_once('/').unwrap_or(("", manifest.api_version()));
        let kind = GroupVersionKind::gvk(group, version, manifest.kind());
        let resource = ApiResource::from_gvk(&kind);
        let api: Api<DynamicObject> = match manifest.namespace() {
            Some(namespace) => Api::namespaced_with(self.client(), namespace, &resource),
            None => Api::all_with(self.client(), &resource),
        };
        (format!("{} `{}`", manifest.kind(), manifest.name()), api)
    }

    /// Cheap to clone.
    pub(super) fn client(&self) -> Client {
        self.client.clone()
    }

    pub(super) async fn ask<T>(
        &self,
        what: &str,
        question: impl Future<Output = kube::Result<T>>,
    ) -> Result<T, ClusterError> {
        match tokio::time::timeout(self.deadline, question).await {
            Err(_) => Err(ClusterError::Silent { server: self.server.clone(), deadline: self.deadline }),
            Ok(answer) => answer.map_err(|error| self.explained(what, &error)),
        }
    }

    fn explained(&self, what: &str, error: &kube::Error) -> ClusterError {
        let kube::Error::Api(status) = error else {
            return ClusterError::Unreachable { server: self.server.clone(), reason: said(error) };
        };
        let what = what.to_owned();
        let reason = if status.message.is_empty() { status.reason.clone() } else { status.message.clone() };
        match status.code {
            401 | 403 => ClusterError::Forbidden { what, reason },
            404 => ClusterError::Missing { what, reason },
            409 => ClusterError::Conflict { what, reason },
            400 | 422 => ClusterError::Invalid { what, reason },
            code => ClusterError::Failed { what, code, reason },
        }
    }
}

/// What two states of an object have in common when nobody changed it.
fn content(object: &DynamicObject) -> Value {
    let mut value = serde_json::to_value(object).unwrap_or_default();
    if let Some(metadata) = value.get_mut("metadata").and_then(Value::as_object_mut) {
        for passing in ["managedFields", "resourceVersion", "generation", "creationTimestamp", "uid"] {
            metadata.remove(passing);
        }
    }
    value
}

/// The error and its causes: the library's own text is often only the outermost.
fn said(error: &dyn std::error::Error) -> String {
    let mut texts: Vec<String> = Vec::new();
    let mut next = Some(error);
    while let Some(error) = next {
        let text = error.to_string();
        // An outer text often ends with its cause's.
        if !texts.iter().any(|known| known.contains(&text)) {
            texts.push(text);
        }
        next = error.source();
    }
    texts.join(": ")
}
