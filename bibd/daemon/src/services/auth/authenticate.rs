//! Who calls, from what the connection vouches for. Unknown means deny.
//!
//! On the socket the operating system vouches for a uid; a token sent there can only narrow the scope. Over TLS it
//! takes a certificate that counts and a token that was given out with that very certificate.

use bib_core::{Hash, Timestamp};
use bib_identity::ClientIdentity;
use bib_identity::server_tls::{RevocationCheck as _, RevocationStatus};
use bibd_catalog::access::{self, Bearer};
use bibd_catalog::users::{self, User, UserState};
use subtle::ConstantTimeEq as _;

use super::cache::{KnownBearer, KnownUser};
use crate::actor::{Actor, Scopes, Via};
use crate::errors::ErrorCode;
use crate::grpc::peer::Peer;
use crate::services::ServiceError;
use crate::services::accounts::Accounts;

/// A token's last use is written at most this often, in seconds.
const TOUCH_SECONDS: i64 = 60;

/// Recognises callers.
#[derive(Debug, Clone)]
pub struct Authentication {
    accounts: Accounts,
}

impl Authentication {
    /// Recognises the users of these accounts.
    #[must_use]
    pub fn new(accounts: Accounts) -> Self {
        Self { accounts }
    }

    /// The actor at the other end, who may have sent a token.
    ///
    /// # Errors
    /// [`ServiceError::Unauthenticated`] when nobody is recognised, [`ServiceError::Denied`] when the user is
    /// suspended, [`ServiceError::Unavailable`] when the database does not answer.
    pub async fn recognise(&self, peer: &Peer, bearer: Option<&str>) -> Result<Actor, ServiceError> {
        match peer {
            Peer::Socket { uid, .. } => self.on_socket(*uid, bearer).await,
            Peer::Tls { client, .. } => self.over_tls(client.as_ref(), bearer).await,
        }
    }

    async fn on_socket(&self, uid: u32, bearer: Option<&str>) -> Result<Actor, ServiceError> {
        let user = self.user_of(uid).await?;
        let scopes = match bearer {
            None => Scopes::All,
            Some(token) => {
                let known = self.bearer(token).await?;
                if known.user.id != user.id {
                    return Err(bad_token());
                }
                known.scopes
            }
        };
        Ok(Actor { user: user.id, name: user.name, role: user.role, via: Via::Socket { uid }, scopes })
    }

    async fn over_tls(&self, client: Option<&ClientIdentity>, bearer: Option<&str>) -> Result<Actor, ServiceError> {
        let (Some(client), Some(token)) = (client, bearer) else {
            return Err(ServiceError::unauthenticated(
                ErrorCode::UNAUTHENTICATED,
                "this call needs a log-in",
                "log in with `bib login`",
            ));
        };
        if client.not_after < self.accounts.base.now() {
            return Err(ServiceError::unauthenticated(
                ErrorCode::UNAUTHENTICATED,
                format!("the certificate expired at {}", client.not_after),
                "log in again with `bib login`",
            ));
        }
        // Asked at the handshake too, but connections live longer than that.
        if self.accounts.certificates.status(&client.serial) != RevocationStatus::Good {
            return Err(ServiceError::unauthenticated(
                ErrorCode::CERTIFICATE_REVOKED,
                "the certificate was revoked",
                "log in again with `bib login`",
            ));
        }
        let known = self.bearer(token).await?;
        let same_certificate = known.serial.as_bytes().ct_eq(client.serial.as_bytes());
        if !bool::from(same_certificate) || known.user.id != client.user_id {
            return Err(bad_token());
        }
        let via = Via::Tls { key: client.key, session: known.session, serial: known.serial };
        let KnownUser { id, name, role } = known.user;
        Ok(Actor { user: id, name, role, via, scopes: known.scopes })
    }

    async fn user_of(&self, uid: u32) -> Result<KnownUser, ServiceError> {
        let cache = &self.accounts.recognised;
        if let Some(user) = cache.user(uid) {
            return Ok(user);
        }
        let ticket = cache.ticket();
        let found = users::find_by_uid(&mut self.accounts.base.db.read().await?, uid).await?;
        let user = active(found.ok_or_else(|| unknown_uid(uid))?)?;
        cache.keep_user(ticket, uid, user.clone());
        Ok(user)
    }

    async fn bearer(&self, token: &str) -> Result<KnownBearer, ServiceError> {
        let hash = Hash::of(token.as_bytes());
        let cache = &self.accounts.recognised;
        if let Some(known) = cache.bearer(&hash) {
            return Ok(known);
        }
        let (ticket, now) = (cache.ticket(), self.accounts.base.now());
        let mut session = self.accounts.base.db.read().await?;
        let bearer = access::find_bearer(&mut session, &hash, now).await?.ok_or_else(bad_token)?;
        let user = users::find(&mut session, bearer.user).await?.ok_or_else(bad_token)?;
        let user = active(user)?;
        // A scope that cannot be read is not "no narrowing": nobody gets in with it.
        let scopes = match bearer.is_token {
            true if bearer.scopes.is_empty() => Scopes::Only(Vec::new()),
            true => Scopes::parse(&bearer.scopes).map_err(ServiceError::internal)?,
            false => Scopes::All,
        };
        // A full disk must not keep an admin out who comes to make room.
        if is_due(&bearer, now)
            && let Err(error) = access::touch(&mut session, &bearer, now).await
        {
            tracing::warn!(error = &error as &dyn std::error::Error, "a session's last use could not be written");
        }
        let known = KnownBearer { user, session: bearer.session, serial: bearer.serial, scopes };
        cache.keep_bearer(ticket, hash, known.clone());
        Ok(known)
    }
}

fn is_due(bearer: &Bearer, now: Timestamp) -> bool {
    bearer.last_seen_at.is_none_or(|seen| seen.plus_seconds(TOUCH_SECONDS) <= now)
}

fn active(user: User) -> Result<KnownUser, ServiceError> {
    match user.state {
        UserState::Active => Ok(KnownUser { id: user.id, name: user.name, role: user.role }),
        UserState::Suspended => Err(suspended(&user.name)),
        UserState::Removed => Err(bad_token()),
    }
}

/// The user is known and may not call at all.
pub(super) fn suspended(name: &str) -> ServiceError {
    ServiceError::Denied {
        code: ErrorCode::USER_SUSPENDED,
        sentence: format!("the user `{name}` is suspended on this node"),
        hint: "an admin lets you in again with `bib user resume`".to_owned(),
    }
}

fn unknown_uid(uid: u32) -> ServiceError {
    ServiceError::unauthenticated(
        ErrorCode::UNKNOWN_SOCKET_USER,
        format!("the operating system user {uid} is nobody on this node"),
        format!("an admin adds you with `bib user add NAME --uid {uid}`"),
    )
}

fn bad_token() -> ServiceError {
    ServiceError::unauthenticated(
        ErrorCode::BAD_TOKEN,
        "the token is unknown, expired or belongs to another certificate",
        "log in again with `bib login`, or make a new token with `bib token create`",
    )
}
