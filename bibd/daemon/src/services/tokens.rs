//! Tokens for scripts: narrower than their maker, never longer than 90 days, each with a certificate of its own.

use std::time::Duration;

use bib_core::Timestamp;
use bib_core::access::{NodeRole, Verb};
use bibd_catalog::access::{self, Token};
use serde_json::json;
use uuid::Uuid;

use super::accounts::{Accounts, COMPONENT, Order, id, label, need_full_scope, own_serial};
use super::base::allow_node;
use super::error::ServiceError;
use super::journal::Act;
use super::sessions::may_end;
use crate::actor::{Call, Scope, Scopes};
use crate::errors::ErrorCode;

/// The longest that a token may live.
pub const MAX_VALIDITY: Duration = Duration::from_secs(90 * 86_400);
/// Scopes of one token.
const MAX_SCOPES: usize = 64;

/// A token to be made.
#[derive(Debug, Clone)]
pub struct NewToken {
    /// For people.
    pub name: String,
    /// As in [`Scope`]; at least one.
    pub scopes: Vec<String>,
    /// From now, at most [`MAX_VALIDITY`].
    pub validity: Duration,
    /// PKCS#10, DER.
    pub csr: Vec<u8>,
}

/// A token that was made.
#[derive(Clone)]
pub struct MadeToken {
    /// Its id.
    pub id: Uuid,
    /// The token, shown this once.
    pub token: String,
    /// The certificate that must come with it.
    pub certificate_pem: String,
    /// The authority's certificate.
    pub authority_pem: String,
    /// When both end.
    pub expires_at: Timestamp,
}

/// The use cases about tokens.
#[derive(Debug, Clone)]
pub struct Tokens {
    accounts: Accounts,
}

impl Tokens {
    /// Tokens of these accounts.
    #[must_use]
    pub fn new(accounts: Accounts) -> Self {
        Self { accounts }
    }

    /// Makes a token.
    ///
    /// # Errors
    /// No scope, an unknown one or one wider than the caller's session; a validity of nothing or more than 90 days, or
    /// beyond the end of the token that asks; a certificate request that is none.
    pub async fn create(&self, call: &Call, new: NewToken) -> Result<MadeToken, ServiceError> {
        allow_node(call, Verb::SelfManage)?;
        let name = label("name", &new.name)?;
        if name.is_empty() {
            return Err(ServiceError::invalid("name", "a token needs a name"));
        }
        let scopes = narrower(call, &new.scopes)?;
        if new.validity.is_zero() || new.validity > MAX_VALIDITY {
            return Err(ServiceError::invalid("expires_in_seconds", "1 second to 90 days are allowed"));
        }
        let base = &self.accounts.base;
        let mut tx = base.begin(call, COMPONENT).await?;
        self.within_own_end(call, &mut tx, new.validity).await?;
        let key = self.accounts.vouching_key(&mut tx, call).await?;
        if !self.accounts.lock(&mut tx, call.actor.user, key.as_ref()).await? {
            return Err(gone());
        }
        let order = Order { csr: &new.csr, user: call.actor.user, key, name: &name, validity: new.validity };
        let issued = self.accounts.issue(&mut tx, order).await?;
        let (token, hash) = self.accounts.new_token();
        let row = Token {
            id: base.ids.uuid(),
            user: call.actor.user,
            name,
            token: hash,
            scopes: scopes.to_strings(),
            serial: issued.row.serial.clone(),
            created_at: base.now(),
            expires_at: issued.row.not_after,
            last_used_at: None,
            revoked_at: None,
        };
        access::insert_token(&mut tx, &row).await?;
        let details = json!({
            "name": row.name,
            "scopes": row.scopes,
            "certificate": row.serial,
            "expires_at": row.expires_at.to_string(),
        });
        base.journal.commit(tx, call, Act::new("token.create", row.id.to_string(), details)).await?;
        self.accounts.certificates.issued(&row.serial);
        Ok(MadeToken {
            id: row.id,
            token,
            certificate_pem: issued.signed.pem,
            authority_pem: self.accounts.authority_pem(),
            expires_at: row.expires_at,
        })
    }

    /// A page of the caller's tokens, oldest first, the revoked ones too.
    ///
    /// # Errors
    /// When the database does not answer.
    pub async fn list(&self, call: &Call, after: Option<Uuid>, limit: u32) -> Result<Vec<Token>, ServiceError> {
        allow_node(call, Verb::SelfManage)?;
        let mut session = self.accounts.base.db.read().await?;
        Ok(access::list_tokens(&mut session, call.actor.user, after.unwrap_or_default(), limit).await?)
    }

    /// Revokes a token of the caller's, or for an admin anybody's, with its certificate. Doing it twice is no error.
    ///
    /// # Errors
    /// Not found, also for a token of somebody else's when the caller is no admin.
    pub async fn revoke(&self, call: &Call, token: &str) -> Result<(), ServiceError> {
        allow_node(call, Verb::SelfManage)?;
        let wanted = id("token_id", token)?;
        let mut tx = self.accounts.base.begin(call, COMPONENT).await?;
        let found = access::find_token(&mut tx, wanted).await?;
        let Some(found) = found.filter(|row| may_end(call, row.user)) else {
            return Err(ServiceError::not_found("token", wanted.to_string()));
        };
        // A narrow token may end itself and nothing else.
        if own_serial(call) != Some(found.serial.as_str()) {
            need_full_scope(call)?;
        }
        if found.revoked_at.is_some() {
            return Ok(());
        }
        let now = self.accounts.base.now();
        access::revoke_certificate(&mut tx, &found.serial, "token revoked", now).await?;
        let details =
            json!({ "name": found.name, "user": found.user.to_string(), "certificate": found.serial.clone() });
        let act = Act::new("token.revoke", found.id.to_string(), details);
        self.accounts.commit_revoking(tx, call, act, &[found.serial]).await
    }

    /// A token that makes tokens must not live on in them.
    async fn within_own_end(
        &self,
        call: &Call,
        tx: &mut bibd_catalog::Tx,
        validity: Duration,
    ) -> Result<(), ServiceError> {
        let (Scopes::Only(_), Some(serial)) = (&call.actor.scopes, own_serial(call)) else { return Ok(()) };
        let own = access::find_certificate(tx, serial).await?.ok_or_else(gone)?;
        let wanted = self.accounts.base.now().plus_seconds(i64::try_from(validity.as_secs()).unwrap_or(i64::MAX));
        if wanted > own.not_after {
            return Err(ServiceError::invalid(
                "expires_in_seconds",
                format!("a token cannot make one that outlives it ({})", own.not_after),
            ));
        }
        Ok(())
    }
}

/// The scopes of a new token, which the caller's session contains.
fn narrower(call: &Call, wanted: &[String]) -> Result<Scopes, ServiceError> {
    if wanted.is_empty() || wanted.len() > MAX_SCOPES {
        return Err(ServiceError::invalid("scopes", format!("1 to {MAX_SCOPES} scopes are needed")));
    }
    let scopes = Scopes::parse(wanted).map_err(|error| ServiceError::invalid("scopes", error.to_string()))?;
    let Scopes::Only(list) = &scopes else {
        return Err(ServiceError::invalid("scopes", "at least one scope is needed"));
    };
    // The scope would lie dormant and wake when its user is made an admin.
    if list.contains(&Scope::Admin) && call.actor.role != NodeRole::Admin {
        return Err(ServiceError::denied("the scope admin needs the role admin", "leave it out"));
    }
    if !call.actor.scopes.contain(&scopes) {
        return Err(ServiceError::Denied {
            code: ErrorCode::SCOPE_TOO_NARROW,
            sentence: "a token cannot be wider than the session that makes it".to_owned(),
            hint: "`bib whoami` shows the session's scopes; log in with an SSH key for all of them".to_owned(),
        });
    }
    Ok(scopes)
}

/// The caller's user, key or certificate ended while the call ran.
pub(super) fn gone() -> ServiceError {
    ServiceError::unauthenticated(
        ErrorCode::UNAUTHENTICATED,
        "the session ended while the call ran",
        "log in again with `bib login`",
    )
}
