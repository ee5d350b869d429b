//! SSH keys of users. A key is one person's at a time; removing it ends whatever was opened with it.

use bib_core::access::Verb;
use bib_core::{KeyFingerprint, Timestamp, UserId};
use bib_identity::ssh::PublicKey;
use bibd_catalog::users::{self, UserKey};
use bibd_catalog::{Tx, access};
use serde_json::json;

use super::{Profile, Users, reload, taken_key, unmet};
use crate::actor::{Call, Via};
use crate::services::ServiceError;
use crate::services::accounts::{COMPONENT, need_full_scope};
use crate::services::base::allow_node;
use crate::services::journal::Act;

/// Keys that a user may have at a time.
const MAX_KEYS: usize = 64;
/// The longest comment that is kept, in characters.
const MAX_COMMENT_CHARS: usize = 256;

/// A key that the caller has registered.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AddedKey {
    /// Its fingerprint.
    pub fingerprint: KeyFingerprint,
    /// False when the caller had it already.
    pub added: bool,
}

impl Users {
    /// Gives a user one more key: oneself, or for an admin anybody.
    ///
    /// # Errors
    /// Denied; not a key that BIB takes; a key that is registered already; more than 64 keys.
    pub async fn add_key(&self, call: &Call, name: &str, line: &str) -> Result<Profile, ServiceError> {
        allow_node(call, Verb::SelfManage)?;
        let key = parse_key("public_key", line)?;
        let mut tx = self.accounts.base.begin(call, COMPONENT).await?;
        let user = self.load_for(call, &mut tx, name, false).await?;
        insert_key(&mut tx, user.id, &key, self.accounts.base.now()).await?;
        let profile = reload(&mut tx, user.id).await?;
        self.accounts.commit(tx, call, added(&key, user.id, &user.name)).await?;
        Ok(profile)
    }

    /// Registers a key for the caller, over the socket alone: there the operating system vouches for the caller, so
    /// that a stolen token cannot let a second key in.
    ///
    /// # Errors
    /// Denied over TLS; not a key that BIB takes; a key that is somebody else's.
    pub async fn register_mine(&self, call: &Call, line: &str) -> Result<AddedKey, ServiceError> {
        allow_node(call, Verb::SelfManage)?;
        need_full_scope(call)?;
        if !matches!(call.actor.via, Via::Socket { .. }) {
            return Err(ServiceError::denied(
                "one's own key is registered over the node's socket alone",
                "call it on the node's machine, or `bib user key add`",
            ));
        }
        let key = parse_key("public_key", line)?;
        let fingerprint = key.fingerprint();
        let mut tx = self.accounts.base.begin(call, COMPONENT).await?;
        if users::find_key(&mut tx, &fingerprint).await?.is_some_and(|known| known.user == call.actor.user) {
            return Ok(AddedKey { fingerprint, added: false });
        }
        insert_key(&mut tx, call.actor.user, &key, self.accounts.base.now()).await?;
        self.accounts.commit(tx, call, added(&key, call.actor.user, &call.actor.name)).await?;
        Ok(AddedKey { fingerprint, added: true })
    }

    /// Takes a key from a user and ends what was opened with it. Versions that were signed with it stay valid.
    ///
    /// # Errors
    /// Denied; a key that the user does not have.
    pub async fn remove_key(&self, call: &Call, name: &str, key: &KeyFingerprint) -> Result<Profile, ServiceError> {
        allow_node(call, Verb::SelfManage)?;
        let now = self.accounts.base.now();
        let mut tx = self.accounts.base.begin(call, COMPONENT).await?;
        let user = self.load_for(call, &mut tx, name, false).await?;
        if !users::remove_key(&mut tx, user.id, key, now).await? {
            return Err(ServiceError::not_found("key", key.to_string()));
        }
        let serials = access::revoke_key(&mut tx, &key.to_string(), "key removed", now).await?;
        let profile = reload(&mut tx, user.id).await?;
        let details = json!({ "user": user.id.to_string(), "name": user.name, "certificates": serials.len() });
        self.accounts.commit_revoking(tx, call, Act::new("key.remove", key.to_string(), details), &serials).await?;
        Ok(profile)
    }
}

fn added(key: &PublicKey, user: UserId, name: &str) -> Act {
    let details = json!({ "user": user.to_string(), "name": name, "type": key.kind().as_str() });
    Act::new("key.add", key.fingerprint().to_string(), details)
}

async fn insert_key(tx: &mut Tx, user: UserId, key: &PublicKey, now: Timestamp) -> Result<(), ServiceError> {
    if users::list_keys(tx, &[user], false).await?.len() >= MAX_KEYS {
        return Err(unmet(format!("a user has at most {MAX_KEYS} keys"), "remove one: `bib user key remove`"));
    }
    users::add_key(tx, &key_row(user, key, now)).await.map_err(|error| taken_key(error, key))
}

/// A public key in a request.
pub(in crate::services) fn parse_key(field: &str, line: &str) -> Result<PublicKey, ServiceError> {
    line.parse::<PublicKey>().map_err(|error| ServiceError::invalid(field, error.to_string()))
}

/// The row of a key. Its comment is a stranger's text: scrubbed and cut.
pub(in crate::services) fn key_row(user: UserId, key: &PublicKey, now: Timestamp) -> UserKey {
    UserKey {
        fingerprint: key.fingerprint(),
        user,
        public_key: key.to_line(),
        comment: bib_core::text::scrub(key.comment()).chars().take(MAX_COMMENT_CHARS).collect(),
        added_at: now,
        removed_at: None,
    }
}

/// A key's fingerprint in a request.
pub(crate) fn parse_fingerprint(field: &str, text: &str) -> Result<KeyFingerprint, ServiceError> {
    text.parse()
        .map_err(|error: bib_core::fingerprint::FingerprintError| ServiceError::invalid(field, error.to_string()))
}
