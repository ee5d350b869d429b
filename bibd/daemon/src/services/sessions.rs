//! Sessions: who the caller is, what sessions the caller has, and their end.
//!
//! A session ends together with its certificate, so that its live connections end too.

use bib_core::access::{NodeRole, Verb};
use bib_core::{KeyFingerprint, SessionId, Timestamp, UserId};
use bibd_catalog::access::{self, LogIn};
use bibd_catalog::users;
use serde_json::json;
use uuid::Uuid;

use super::accounts::{Accounts, COMPONENT, id, need_full_scope, own_serial};
use super::base::allow_node;
use super::error::ServiceError;
use super::journal::Act;
use crate::actor::{Call, Via};
use crate::errors::ErrorCode;

/// Who the caller is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Me {
    /// The user.
    pub user: UserId,
    /// The user's name.
    pub name: String,
    /// What the user may do on the node as such.
    pub role: NodeRole,
    /// How the caller came.
    pub via: Via,
    /// The SSH key behind the session, when one was used.
    pub key: Option<KeyFingerprint>,
    /// When the certificate ends, over TLS.
    pub certificate_expires_at: Option<Timestamp>,
    /// What the session is narrowed to; empty when it is not.
    pub scopes: Vec<String>,
    /// Keys that are registered for the user.
    pub keys: Vec<KeyFingerprint>,
}

/// The use cases about sessions.
#[derive(Debug, Clone)]
pub struct Sessions {
    accounts: Accounts,
}

impl Sessions {
    /// Sessions of these accounts.
    #[must_use]
    pub fn new(accounts: Accounts) -> Self {
        Self { accounts }
    }

    /// Who the caller is.
    ///
    /// # Errors
    /// When the database does not answer.
    pub async fn who_am_i(&self, call: &Call) -> Result<Me, ServiceError> {
        allow_node(call, Verb::NodeRead)?;
        let actor = &call.actor;
        let mut session = self.accounts.base.db.read().await?;
        let keys = users::list_keys(&mut session, &[actor.user], false).await?;
        let certificate = match own_serial(call) {
            Some(serial) => access::find_certificate(&mut session, serial).await?,
            None => None,
        };
        Ok(Me {
            user: actor.user,
            name: actor.name.clone(),
            role: actor.role,
            via: actor.via.clone(),
            key: certificate.as_ref().and_then(|row| row.key_fingerprint.parse().ok()),
            certificate_expires_at: certificate.map(|row| row.not_after),
            scopes: actor.scopes.to_strings(),
            keys: keys.into_iter().map(|key| key.fingerprint).collect(),
        })
    }

    /// Ends the caller's session and its certificate. The connection is closed a moment later.
    ///
    /// # Errors
    /// On the socket, where nobody logs in; for a script's token, which is revoked instead.
    pub async fn log_out(&self, call: &Call) -> Result<(), ServiceError> {
        let Via::Tls { session, .. } = &call.actor.via else {
            return Err(ServiceError::conflict(
                ErrorCode::UNMET_CONDITION,
                "on the Unix socket nobody logs out",
                "the node knows you by your operating system user",
            ));
        };
        let now = self.accounts.base.now();
        let mut tx = self.accounts.base.begin(call, COMPONENT).await?;
        let Some(found) = access::find_session(&mut tx, *session, now).await? else {
            return Err(ServiceError::conflict(
                ErrorCode::UNMET_CONDITION,
                "a token for scripts has no session to log out of",
                "`bib token revoke` ends it",
            ));
        };
        access::end_session(&mut tx, found.id, Some(call.actor.user), "logged out", now).await?;
        access::revoke_certificate(&mut tx, &found.serial, "logged out", now).await?;
        let details = json!({ "certificate": found.serial, "key": found.key_fingerprint });
        let act = Act::new("auth.logout", found.id.to_string(), details);
        self.accounts.commit_revoking(tx, call, act, &[found.serial]).await
    }

    /// A page of the caller's live sessions, oldest first.
    ///
    /// # Errors
    /// When the database does not answer.
    pub async fn list(&self, call: &Call, after: Option<Uuid>, limit: u32) -> Result<Vec<LogIn>, ServiceError> {
        allow_node(call, Verb::SelfManage)?;
        let mut session = self.accounts.base.db.read().await?;
        let after = SessionId::from_uuid(after.unwrap_or_default());
        let now = self.accounts.base.now();
        Ok(access::list_sessions(&mut session, call.actor.user, now, after, limit).await?)
    }

    /// Ends a session of the caller's, or for an admin anybody's.
    ///
    /// # Errors
    /// Not found, also for a session of somebody else's when the caller is no admin.
    pub async fn revoke(&self, call: &Call, session: &str) -> Result<(), ServiceError> {
        allow_node(call, Verb::SelfManage)?;
        need_full_scope(call)?;
        let wanted = SessionId::from_uuid(id("session_id", session)?);
        let now = self.accounts.base.now();
        let mut tx = self.accounts.base.begin(call, COMPONENT).await?;
        let found = access::find_session(&mut tx, wanted, now).await?;
        let Some(found) = found.filter(|row| may_end(call, row.user)) else {
            return Err(ServiceError::not_found("session", wanted.to_string()));
        };
        access::end_session(&mut tx, found.id, None, "revoked", now).await?;
        access::revoke_certificate(&mut tx, &found.serial, "session revoked", now).await?;
        let details = json!({ "user": found.user.to_string(), "certificate": found.serial, "why": "revoked" });
        let act = Act::new("auth.logout", found.id.to_string(), details);
        self.accounts.commit_revoking(tx, call, act, &[found.serial]).await
    }
}

/// One's own, or anybody's for an admin.
pub(super) fn may_end(call: &Call, owner: UserId) -> bool {
    owner == call.actor.user || allow_node(call, Verb::UserManage).is_ok()
}
