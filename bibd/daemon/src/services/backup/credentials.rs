//! The credentials of a store on a network: sealed among the node's secrets, used from the next request on.

use bib_core::access::Verb;
use bibd_audit::Outcome;
use bibd_postgres::SecretStore as _;
use secrecy::ExposeSecret as _;
use serde_json::json;

use super::BackupUseCases;
use crate::actor::Call;
use crate::backup::{BackupError, blocking};
use crate::config::{Backup, StoreLocation};
use crate::grpc::error::chain;
use crate::s3::{AccessKey, Keys};
use crate::secrets::Secrets;
use crate::services::base::allow_node;
use crate::services::error::ServiceError;
use crate::services::journal::Act;

/// The name of the sealed file.
const SEALED: &str = "backup_s3";

/// Credentials that are sealed now.
#[derive(Debug, Clone)]
pub struct Accepted {
    /// Their public name.
    pub access_key_id: String,
    /// What the store said to them when it was asked, and what to do, when it was not yes.
    pub problem: Option<(String, String)>,
}

/// What the configuration says opens the store.
pub(super) fn keys(backup: &Backup, secrets: &Secrets) -> Result<Keys, ServiceError> {
    if let Some(path) = &backup.s3.credentials_file {
        return Ok(Keys::File(path.clone()));
    }
    if !matches!(backup.store, Some(StoreLocation::Bucket { .. })) {
        return Ok(Keys::held(None));
    }
    let sealed = secrets.read(SEALED).map_err(ServiceError::internal)?;
    let key = sealed.map(|text| AccessKey::parse(text.expose_secret())).transpose().map_err(ServiceError::internal)?;
    Ok(Keys::held(key))
}

impl BackupUseCases {
    /// Seals credentials of the store, in the place of those before, and asks the store whether it takes them.
    ///
    /// # Errors
    /// When the caller may not, `text` is none, or the node's store needs none. What the store says is no error.
    pub async fn set_credentials(&self, call: &Call, text: &str) -> Result<Accepted, ServiceError> {
        allow_node(call, Verb::Maintain)?;
        let store = self.store()?.clone();
        let backup = &self.foundation.config().backup;
        if !matches!((&backup.store, &self.keys), (Some(StoreLocation::Bucket { .. }), Keys::Held(_))) {
            return Err(BackupError::NoCredentialsWanted.into());
        }
        let key = AccessKey::parse(text).map_err(BackupError::from)?;
        let access_key_id = key.id.clone();
        let act = |details| Act::new("backup.credentials", format!("key:{access_key_id}"), details);
        self.base.journal.record(&self.base.db, call, act(json!({})), Outcome::Intent).await?;
        let (secrets, sealed) = (self.secrets.clone(), key.to_text());
        let written = tokio::task::spawn_blocking(move || secrets.write(SEALED, &sealed)).await;
        let written = written.map_err(ServiceError::internal)?;
        let outcome = written.as_ref().map_or_else(|error| Outcome::Failed(error.to_string()), |()| Outcome::Ok);
        self.base.journal.record(&self.base.db, call, act(json!({})), outcome).await?;
        written.map_err(ServiceError::internal)?;
        self.keys.replace(key);
        let asked = blocking(move || store.list("base/")).await;
        let problem = asked.err().map(|error| (chain(&error), error.hint()));
        Ok(Accepted { access_key_id, problem })
    }
}
