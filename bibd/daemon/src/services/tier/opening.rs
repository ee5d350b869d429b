//! The place in the bucket as the configuration has it, and the credentials that open it.

use std::sync::Arc;

use bib_core::access::Verb;
use bib_identity::Recipient;
use bib_identity::sealed_stream::Opener;
use bibd_audit::Outcome;
use bibd_blobs::Objects;
use bibd_postgres::SecretStore as _;
use secrecy::{ExposeSecret as _, SecretString};
use serde_json::json;

use super::{Recipients, Tier, TierParts, TierSettings, TierUseCases};
use crate::actor::Call;
use crate::config::{Seal, StoreLocation};
use crate::errors::ErrorCode;
use crate::foundation::Foundation;
use crate::inheritance::{FORMER_KEYS, KEY_END};
use crate::s3::{AccessKey, Bucket, Keys};
use crate::secrets::Secrets;
use crate::services::base::{Base, allow_node};
use crate::services::error::ServiceError;
use crate::services::journal::Act;
use crate::services::recovery;

/// The sealed credentials.
const CREDENTIALS: &str = "blobs_s3";
/// The sealed key of the names of sealed objects. It is in every backup, as all secrets are.
const NAMES: &str = "blobs_names";
const DAY_SECONDS: u64 = 86_400;

/// Credentials that are sealed now.
#[derive(Debug, Clone)]
pub struct Accepted {
    /// Their public name.
    pub access_key_id: String,
    /// What the store said to them, and what to do, when it was not yes.
    pub problem: Option<(String, String)>,
}

impl Tier {
    /// As the node's configuration says.
    ///
    /// # Errors
    /// When a secret or the settings of the bucket cannot be used.
    pub fn open(foundation: &Foundation, base: Base) -> Result<Self, ServiceError> {
        let config = foundation.config();
        let wanted = &config.blobs.tier;
        let parts = match &wanted.store {
            // Loading the configuration refuses a directory.
            None | Some(StoreLocation::Directory(_)) => None,
            Some(StoreLocation::Bucket { bucket, prefix }) => {
                let keys = keys(foundation)?;
                let bucket = Bucket::open(bucket, prefix, &wanted.s3.settings(), keys.clone());
                let opener = opener(foundation)?;
                let names = names(foundation)?;
                Some(TierParts {
                    objects: Objects::new(bucket.map_err(ServiceError::internal)?, &names, opener),
                    keys,
                    recipients: recipients(&base, &foundation.secrets),
                    settings: TierSettings {
                        after_days: i32::try_from(wanted.after.0.as_secs() / DAY_SECONDS).unwrap_or(i32::MAX),
                        is_sealed: wanted.seal == Seal::Age,
                        back_per_day: wanted.back_per_day.0,
                        check_per_day: wanted.check_per_day.0,
                        min_free_bytes: config.limits.min_free_bytes.0,
                    },
                })
            }
        };
        let (health, registry) = (foundation.health.clone(), &foundation.metrics.registry);
        Self::new(base, parts, health, registry).map_err(ServiceError::internal)
    }
}

fn keys(foundation: &Foundation) -> Result<Keys, ServiceError> {
    if let Some(path) = &foundation.config().blobs.tier.s3.credentials_file {
        return Ok(Keys::File(path.clone()));
    }
    let sealed = foundation.secrets.read(CREDENTIALS).map_err(ServiceError::internal)?;
    let key = sealed.map(|text| AccessKey::parse(text.expose_secret())).transpose().map_err(ServiceError::internal)?;
    Ok(Keys::held(key))
}

/// Opens what was sealed to this node, and to those that it follows.
fn opener(foundation: &Foundation) -> Result<Opener, ServiceError> {
    let own = Opener::of_node(&foundation.key).map_err(ServiceError::internal)?;
    let former = foundation.secrets.read(FORMER_KEYS).map_err(ServiceError::internal)?;
    let former = former.as_ref().map_or("", |keys| keys.expose_secret());
    former.split_inclusive(KEY_END).try_fold(own, Opener::and_node).map_err(ServiceError::internal)
}

/// Made once. Lost, sealed objects are still opened by the node and the recovery key, but found by nobody.
fn names(foundation: &Foundation) -> Result<[u8; 32], ServiceError> {
    let secrets = &foundation.secrets;
    if let Some(text) = secrets.read(NAMES).map_err(ServiceError::internal)? {
        let mut key = [0; 32];
        hex::decode_to_slice(text.expose_secret(), &mut key).map_err(ServiceError::internal)?;
        return Ok(key);
    }
    let key: [u8; 32] = foundation.entropy().bytes();
    secrets.write(NAMES, &SecretString::from(hex::encode(key))).map_err(ServiceError::internal)?;
    Ok(key)
}

fn recipients(base: &Base, secrets: &Secrets) -> Recipients {
    let (node, secrets) = (base.peer, secrets.clone());
    Arc::new(move || {
        let public = recovery::find(&secrets).map_err(ServiceError::internal)?.ok_or_else(|| {
            ServiceError::conflict(
                ErrorCode::UNMET_CONDITION,
                "chunks are sealed to a recovery key too, and this node has none",
                "bib admin recovery export makes it and its sheet; or set `blobs.tier.seal` to off",
            )
        })?;
        Ok(vec![Recipient::Node(node), public.recipient().map_err(ServiceError::internal)?])
    })
}

impl TierUseCases {
    /// Seals credentials of the store, in the place of those before, and asks the store whether it takes them.
    ///
    /// # Errors
    /// When the caller may not, `text` is none, or the node's store needs none. What the store says is no error.
    pub async fn set_credentials(&self, call: &Call, secrets: &Secrets, text: &str) -> Result<Accepted, ServiceError> {
        allow_node(call, Verb::Maintain)?;
        let (base, parts) = (&self.tier.0.base, self.tier.parts()?);
        if matches!(parts.keys, Keys::File(_)) {
            return Err(ServiceError::conflict(
                ErrorCode::UNMET_CONDITION,
                "the credentials of this store are read from a file",
                "change that file, or remove `blobs.tier.s3.credentials_file`",
            ));
        }
        let key = AccessKey::parse(text).map_err(|error| ServiceError::invalid("credentials", error.to_string()))?;
        let access_key_id = key.id.clone();
        let act = || Act::new("storage.credentials", format!("key:{access_key_id}"), json!({}));
        base.journal.record(&base.db, call, act(), Outcome::Intent).await?;
        let (secrets, sealed) = (secrets.clone(), key.to_text());
        let written = tokio::task::spawn_blocking(move || secrets.write(CREDENTIALS, &sealed)).await;
        let written = written.map_err(ServiceError::internal)?;
        let outcome = written.as_ref().map_or_else(|error| Outcome::Failed(error.to_string()), |()| Outcome::Ok);
        base.journal.record(&base.db, call, act(), outcome).await?;
        written.map_err(ServiceError::internal)?;
        parts.keys.replace(key);
        let problem = self.tier.ask().await.err();
        Ok(Accepted { access_key_id, problem })
    }
}
