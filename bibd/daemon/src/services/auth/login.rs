//! Log-in with an SSH key: a signed statement for a certificate and a token.
//!
//! The statement binds the challenge, this node, the server certificate that the client saw and the key that will be
//! certified, so that nobody in between can use it (security.md, 47). Whatever is wrong with it, the answer is the
//! same; the audit log has the reason.

use std::net::IpAddr;
use std::sync::Arc;

use bib_core::signature::{LOGIN_NAMESPACE, LoginStatement};
use bib_core::{Hash, KeyFingerprint, SessionId, Timestamp};
use bib_identity::server_tls::ServerTls;
use bib_identity::ssh::{self, KeyKind, PublicKey};
use bibd_catalog::access::{self, LogIn};
use bibd_catalog::users::{self, User, UserState};
use serde_json::json;
use subtle::ConstantTimeEq as _;
use uuid::Uuid;

use super::authenticate::suspended;
use super::challenge::{Challenge, Challenges, Waiting};
use crate::actor::{Actor, Call, Scopes, Via};
use crate::errors::ErrorCode;
use crate::grpc::Arrival;
use crate::grpc::peer::Peer;
use crate::services::ServiceError;
use crate::services::accounts::{Accounts, COMPONENT, Order};
use crate::services::journal::Act;
use crate::services::refusals::Refusals;
use crate::services::users::parse_key;

/// The answer to a challenge.
#[derive(Debug, Clone)]
pub struct Answer {
    /// As [`Challenge::id`].
    pub challenge_id: String,
    /// Canonical JSON of a [`LoginStatement`].
    pub statement: Vec<u8>,
    /// SSHSIG over it, PEM.
    pub signature: String,
    /// PKCS#10, DER.
    pub csr: Vec<u8>,
}

/// What a log-in gives.
#[derive(Clone)]
pub struct LoggedIn {
    /// The client certificate.
    pub certificate_pem: String,
    /// The authority's certificate.
    pub authority_pem: String,
    /// The token, shown this once.
    pub token: String,
    /// The session.
    pub session: SessionId,
    /// When certificate and token end.
    pub expires_at: Timestamp,
    /// Who logged in.
    pub user: User,
}

/// What a public key is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KeyInfo {
    /// As OpenSSH prints it.
    pub fingerprint: KeyFingerprint,
    /// As OpenSSH names it.
    pub algorithm: &'static str,
    /// What its owner wrote after it, scrubbed.
    pub comment: String,
    /// Size of the key.
    pub bits: u32,
}

/// Logs people in.
#[derive(Debug, Clone)]
pub struct LogIns {
    accounts: Accounts,
    tls: Arc<ServerTls>,
    challenges: Challenges,
    refusals: Refusals,
}

/// Why a log-in is refused, for the audit log alone.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Fault {
    Challenge,
    Statement,
    OtherChallenge,
    OtherNode,
    OtherServer,
    OtherRequest,
    OtherKey,
    Signature,
    UnknownKey,
}

impl Fault {
    const fn as_str(self) -> &'static str {
        match self {
            Self::Challenge => "the challenge is unknown, expired or was answered before",
            Self::Statement => "the statement cannot be read",
            Self::OtherChallenge => "the statement is about another challenge",
            Self::OtherNode => "the statement is for another node",
            Self::OtherServer => "the statement is for another server certificate",
            Self::OtherRequest => "the statement is about another certificate request",
            Self::OtherKey => "the statement names another key",
            Self::Signature => "the signature is not valid",
            Self::UnknownKey => "the key is nobody's",
        }
    }
}

impl LogIns {
    /// `tls` is what this node's servers show.
    #[must_use]
    pub fn new(accounts: Accounts, tls: Arc<ServerTls>, refusals: Refusals) -> Self {
        let challenges = Challenges::new(accounts.base.ids.clone());
        Self { accounts, tls, challenges, refusals }
    }

    /// Who this node is.
    #[must_use]
    pub fn peer(&self) -> bib_core::PeerId {
        self.accounts.base.peer
    }

    /// A challenge for a public key, whether anybody has that key or not.
    ///
    /// # Errors
    /// Not a key that BIB takes; the socket, where nobody logs in; too many unanswered challenges.
    pub fn challenge(&self, arrival: &Arrival, line: &str) -> Result<Challenge, ServiceError> {
        let key = parse_key("public_key", line)?;
        self.challenges.give(key, remote(arrival)?)
    }

    /// What a public key is; tells nothing about users.
    ///
    /// # Errors
    /// Not a key that BIB takes.
    pub fn key_info(&self, line: &str) -> Result<KeyInfo, ServiceError> {
        let key = parse_key("public_key", line)?;
        Ok(KeyInfo {
            fingerprint: key.fingerprint(),
            algorithm: key.kind().as_str(),
            comment: bib_core::text::scrub(key.comment()).into_owned(),
            bits: bits(&key),
        })
    }

    /// Trades a signed statement for a certificate and a token.
    ///
    /// # Errors
    /// [`ErrorCode::LOGIN_REFUSED`] whatever is wrong with the answer; [`ErrorCode::USER_SUSPENDED`] for who has proved
    /// to be a suspended user; a certificate request that is none.
    pub async fn verify(&self, arrival: &Arrival, answer: Answer) -> Result<LoggedIn, ServiceError> {
        let address = remote(arrival)?;
        let id = Uuid::try_parse(&answer.challenge_id).ok();
        let Some(waiting) = id.and_then(|id| self.challenges.take(id)) else {
            return Err(self.refuse(arrival, None, Fault::Challenge));
        };
        let key = waiting.key.fingerprint();
        if let Err(fault) = self.check(arrival, &waiting, &answer) {
            return Err(self.refuse(arrival, Some(key), fault));
        }
        // From here on the caller has proved to hold the key.
        let found = users::find_by_key(&mut self.accounts.base.db.read().await?, &key).await?;
        let Some(user) = found else { return Err(self.refuse(arrival, Some(key), Fault::UnknownKey)) };
        if user.state == UserState::Suspended {
            let (call, name) = (call_of_stranger(arrival, Some(key)), user.name.clone());
            self.refusals.note(call, denied_act(Some(key), "the user is suspended", address));
            return Err(suspended(&name));
        }
        self.open(arrival, user, key, address, &answer.csr).await
    }

    /// Everything that can be checked without the catalog.
    fn check(&self, arrival: &Arrival, waiting: &Waiting, answer: &Answer) -> Result<(), Fault> {
        let statement = LoginStatement::parse(&answer.statement).map_err(|_| Fault::Statement)?;
        let same = |ours: &[u8], theirs: &[u8]| bool::from(ours.ct_eq(theirs));
        if !same(&waiting.bytes, &statement.challenge) {
            return Err(Fault::OtherChallenge);
        }
        if statement.node != self.accounts.base.peer {
            return Err(Fault::OtherNode);
        }
        // What this very connection showed, and what is ours: a relay shows a certificate of its own.
        let Peer::Tls { server_leaf, .. } = arrival.peer.as_ref() else { return Err(Fault::OtherServer) };
        let seen = statement.server_certificate.ok_or(Fault::OtherServer)?;
        if !same(server_leaf.hash().as_bytes(), seen.as_bytes()) || !self.tls.is_our_leaf(server_leaf) {
            return Err(Fault::OtherServer);
        }
        if !same(Hash::of(&answer.csr).as_bytes(), statement.csr.as_bytes()) {
            return Err(Fault::OtherRequest);
        }
        if statement.key != waiting.key.fingerprint() {
            return Err(Fault::OtherKey);
        }
        ssh::verify(&waiting.key, LOGIN_NAMESPACE, &answer.statement, &answer.signature).map_err(|_| Fault::Signature)
    }

    async fn open(
        &self,
        arrival: &Arrival,
        user: User,
        key: KeyFingerprint,
        address: IpAddr,
        csr: &[u8],
    ) -> Result<LoggedIn, ServiceError> {
        let base = &self.accounts.base;
        let session = base.ids.session();
        let mut call = call_of_stranger(arrival, Some(key));
        call.actor = Actor {
            user: user.id,
            name: user.name.clone(),
            role: user.role,
            via: Via::Tls { key, session, serial: String::new() },
            scopes: Scopes::All,
        };
        let mut tx = base.begin(&call, COMPONENT).await?;
        // Between the look-up and here the user may have been suspended or the key removed.
        if !self.accounts.lock(&mut tx, user.id, Some(&key)).await? {
            return Err(self.refuse(arrival, Some(key), Fault::UnknownKey));
        }
        let validity = self.accounts.client_validity;
        let order = Order { csr, user: user.id, key: Some(key), name: "log-in", validity };
        let issued = self.accounts.issue(&mut tx, order).await?;
        let (token, hash) = self.accounts.new_token();
        let now = base.now();
        let row = LogIn {
            id: session,
            user: user.id,
            token: hash,
            key_fingerprint: key.to_string(),
            serial: issued.row.serial.clone(),
            peer_address: address.to_string(),
            created_at: now,
            last_seen_at: now,
            expires_at: issued.row.not_after,
        };
        access::insert_session(&mut tx, &row).await?;
        let details = json!({
            "key": key.to_string(),
            "certificate": issued.row.serial,
            "address": row.peer_address,
            "expires_at": row.expires_at.to_string(),
        });
        base.journal.commit(tx, &call, Act::new("auth.login", session.to_string(), details)).await?;
        self.accounts.certificates.issued(&issued.row.serial);
        Ok(LoggedIn {
            certificate_pem: issued.signed.pem,
            authority_pem: self.accounts.authority_pem(),
            token,
            session,
            expires_at: row.expires_at,
            user,
        })
    }

    /// One answer for every fault.
    fn refuse(&self, arrival: &Arrival, key: Option<KeyFingerprint>, fault: Fault) -> ServiceError {
        let act = Act::new(
            "auth.login",
            key.map(|key| key.to_string()).unwrap_or_default(),
            json!({ "reason": fault.as_str(), "peer": arrival.peer.to_string() }),
        );
        self.refusals.note(call_of_stranger(arrival, key), act);
        ServiceError::unauthenticated(
            ErrorCode::LOGIN_REFUSED,
            "the log-in was refused",
            "an admin sees by `bib user show` whether your key is registered; then log in again",
        )
    }
}

fn denied_act(key: Option<KeyFingerprint>, reason: &str, address: IpAddr) -> Act {
    let target = key.map(|key| key.to_string()).unwrap_or_default();
    Act::new("auth.login", target, json!({ "reason": reason, "peer": address.to_string() }))
}

fn remote(arrival: &Arrival) -> Result<IpAddr, ServiceError> {
    arrival.peer.remote_ip().ok_or_else(|| {
        ServiceError::conflict(
            ErrorCode::UNMET_CONDITION,
            "on the Unix socket nobody logs in",
            "the node knows you by your operating system user; `bib whoami` shows as whom",
        )
    })
}

/// The call of somebody who has not proved anything, for the audit log.
pub(crate) fn call_of_stranger(arrival: &Arrival, key: Option<KeyFingerprint>) -> Call {
    // A door is needed, and a door has a key: without one it is the fingerprint of nothing.
    let key = key.unwrap_or_else(|| KeyFingerprint::of_wire_key(&[]));
    let via = match arrival.peer.as_ref() {
        Peer::Socket { uid, .. } => Via::Socket { uid: *uid },
        Peer::Tls { .. } => Via::Tls { key, session: SessionId::from_uuid(Uuid::nil()), serial: String::new() },
    };
    let actor = Actor {
        user: bib_core::UserId::from_uuid(Uuid::nil()),
        name: arrival.peer.to_string(),
        role: bib_core::access::NodeRole::Reader,
        via,
        scopes: Scopes::Only(Vec::new()),
    };
    Call { operation: arrival.operation, request_id: arrival.request_id.clone(), actor, time: arrival.time }
}

/// The size of a key: of an RSA key, the bits of its modulus.
fn bits(key: &PublicKey) -> u32 {
    match key.kind() {
        KeyKind::Ed25519 | KeyKind::EcdsaP256 => 256,
        KeyKind::Rsa => modulus_bits(key.wire()).unwrap_or(0),
    }
}

/// `ssh-rsa`, the exponent, the modulus: each a length and bytes (RFC 4253, 6.6).
fn modulus_bits(wire: &[u8]) -> Option<u32> {
    let mut rest = wire;
    let mut last: &[u8] = &[];
    for _ in 0..3 {
        let (length, tail) = rest.split_first_chunk::<4>()?;
        (last, rest) = tail.split_at_checked(usize::try_from(u32::from_be_bytes(*length)).ok()?)?;
    }
    let number = &last[last.iter().position(|byte| *byte != 0)?..];
    Some(u32::try_from(number.len()).ok()? * 8 - number.first()?.leading_zeros())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_the_bits_of_a_modulus() {
        let mut wire = Vec::new();
        let mut modulus = vec![0_u8; 257];
        modulus[1] = 0x80;
        for part in [&b"ssh-rsa"[..], &[1, 0, 1], &modulus] {
            wire.extend(u32::try_from(part.len()).unwrap().to_be_bytes());
            wire.extend(part);
        }
        assert_eq!(modulus_bits(&wire), Some(2048));
        assert_eq!(modulus_bits(&wire[..200]), None);
    }
}
