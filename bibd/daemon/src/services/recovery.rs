//! The recovery sheet: two keys made once, handed to the caller, and forgotten. The node keeps the public halves.
//!
//! The public halves lie sealed beside the other secrets (so that a start knows to whom to seal) and in the settings;
//! the node's signed record names the Ed25519 key. The sheet itself is never logged, stored or put into an entry.

use std::sync::Arc;

use bib_core::access::Verb;
use bib_core::fields::Extra;
use bib_core::record::{Body, Kind, Node};
use bib_core::{Hash, PeerId};
use bib_identity::recovery::{RecoveryPublic, RecoverySheet};
use bib_identity::sealed::SealError;
use bibd_catalog::{node, records};
use secrecy::{ExposeSecret as _, SecretSlice};
use serde_json::json;
use tokio::sync::Mutex;
use zeroize::Zeroizing;

use super::base::{About, Base, allow_node};
use super::error::ServiceError;
use super::journal::Act;
use crate::actor::Call;
use crate::errors::ErrorCode;
use crate::foundation::Foundation;
use crate::secrets::Secrets;

/// The sealed file, and the setting, that hold the public halves.
pub const NAME: &str = "recovery";

/// The act in the audit log.
const EXPORT: &str = "recovery.export";

/// What an export hands out.
pub struct Exported {
    /// The text to print. Wiped when dropped.
    pub sheet: Zeroizing<String>,
    /// The public halves.
    pub public: RecoveryPublic,
    /// The name of the Ed25519 key in the node's record.
    pub key: PeerId,
}

impl std::fmt::Debug for Exported {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Exported").field("public", &self.public).finish_non_exhaustive()
    }
}

/// The use case of the recovery sheet. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Recovery {
    base: Base,
    secrets: Secrets,
    /// What clients pin: it stands in the node's record.
    ca: Hash,
    one_at_a_time: Arc<Mutex<()>>,
}

impl Recovery {
    /// Over the node's secrets. What is sealed from now on is sealed to the recovery key too, where there is one.
    ///
    /// # Errors
    /// When the sealed public halves cannot be read.
    pub fn start(foundation: &Foundation, base: Base) -> Result<Self, ServiceError> {
        let secrets = foundation.secrets.clone();
        let ca = *foundation.certificates.authority.fingerprint().hash();
        if let Some(public) = find(&secrets).map_err(ServiceError::internal)? {
            secrets.set_recovery(vec![public.recipient().map_err(ServiceError::internal)?]);
        }
        Ok(Self { base, secrets, ca, one_at_a_time: Arc::default() })
    }

    /// Makes the keys and hands out the sheet. With `replace`, also when there are keys already: what was sealed to
    /// the old ones before stays sealed to them, and other nodes go on honouring the Ed25519 key of the first node
    /// record that they saw.
    ///
    /// # Errors
    /// When the caller may not, or there are keys and `replace` is false. When a secret cannot be sealed anew the keys
    /// count already but the sheet is lost: `replace` makes the next.
    pub async fn export(&self, call: &Call, replace: bool) -> Result<Exported, ServiceError> {
        allow_node(call, Verb::RecoveryExport)?;
        let _alone = self.one_at_a_time.lock().await;
        let secrets = self.secrets.clone();
        let before = blocking(move || find(&secrets)).await?;
        let mut tx = self.base.begin(call, "admin").await?;
        let is_known = node::settings(&mut tx).await?.iter().any(|(key, _)| key == NAME);
        if (before.is_some() || is_known) && !replace {
            return Err(ServiceError::conflict(
                ErrorCode::ALREADY_EXISTS,
                "the recovery sheet was exported before, and its secrets were not kept",
                "find the sheet, or make new keys with `bib admin recovery export --replace`",
            ));
        }
        let now = self.base.now();
        let sheet = RecoverySheet::generate(&mut self.base.ids.entropy().clone());
        let public = sheet.public();
        let key = PeerId::from_public_key(public.ed25519);
        let id = self.base.peer.to_string();
        let record = self
            .base
            .sign_next(&mut tx, About { kind: Kind::Node, id: &id, origin: self.base.peer }, |revision| {
                Body::Node(Node {
                    revision,
                    time: now,
                    id: self.base.peer,
                    name: None,
                    recovery: Some(key),
                    ca: Some(self.ca),
                    extra: Extra::default(),
                })
            })
            .await?;
        records::put(&mut tx, "node", &id, &record, now).await?;
        let value = serde_json::to_value(&public).map_err(ServiceError::internal)?;
        let user = call.actor.user;
        let by = (!user.as_uuid().is_nil()).then_some(user);
        node::set_setting(&mut tx, NAME, &value, by, now).await?;
        let details = json!({
            "age": public.age_recipient, "ed25519": key.to_string(), "replaced": before.map(|old| old.age_recipient),
        });
        self.base.journal.commit(tx, call, Act::new(EXPORT, id, details)).await?;
        // After the commit: a secret sealed to keys that nobody has would be worse than one not sealed to them yet.
        let (secrets, kept) = (self.secrets.clone(), public.clone());
        let resealed = blocking(move || keep(&secrets, &kept)).await?;
        tracing::info!(secrets = resealed, recovery = %public.age_recipient, "secrets are sealed to the recovery key too");
        Ok(Exported { sheet: sheet.to_text(&self.base.peer, now), public, key })
    }
}

/// The public halves, where a sheet was exported.
///
/// # Errors
/// When the sealed file is there and cannot be read.
pub fn find(secrets: &Secrets) -> Result<Option<RecoveryPublic>, SealError> {
    let Some(bytes) = secrets.directory()?.find(NAME)? else { return Ok(None) };
    serde_json::from_slice(bytes.expose_secret()).map(Some).map_err(|_| SealError::Damaged)
}

/// Keeps the public halves and seals every secret anew.
fn keep(secrets: &Secrets, public: &RecoveryPublic) -> Result<usize, SealError> {
    let bytes = serde_json::to_vec(public).map_err(|_| SealError::Damaged)?;
    secrets.set_recovery(vec![public.recipient()?]);
    secrets.directory()?.write(NAME, &SecretSlice::from(bytes))?;
    secrets.reseal()
}

async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, SealError> + Send + 'static,
) -> Result<T, ServiceError> {
    tokio::task::spawn_blocking(work).await.map_err(ServiceError::internal)?.map_err(ServiceError::internal)
}
