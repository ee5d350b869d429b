//! AuthService, and the stack's [`Authenticator`].

use std::time::Duration;

use bib_core::access::NodeRole;
use bib_proto::v1 as pb;
use bib_proto::v1::auth_service_server::AuthService;
use bibd_catalog::access::{Certificate, LogIn, Token};
use tonic::{Request, Response, Status, async_trait};
use uuid::Uuid;

use super::page::Page;
use super::peer::Peer;
use super::stack::Authenticator;
use super::{arrival_of, call_of};
use crate::actor::{Actor, Call, Via};
use crate::services::ServiceError;
use crate::services::accounts::Accounts;
use crate::services::auth::authenticate::Authentication;
use crate::services::auth::login::{Answer, LogIns};
use crate::services::client_certificates::{ClientCertificates, Standing, Whose};
use crate::services::sessions::{Me, Sessions};
use crate::services::tokens::{NewToken, Tokens};
use crate::services::users::Users;

#[async_trait]
impl Authenticator for Authentication {
    async fn authenticate(&self, peer: &Peer, bearer: Option<&str>, _: &str) -> Result<Actor, ServiceError> {
        self.recognise(peer, bearer).await
    }
}

/// The handler.
#[derive(Debug)]
pub struct AuthHandler {
    log_ins: LogIns,
    sessions: Sessions,
    tokens: Tokens,
    certificates: ClientCertificates,
    users: Users,
}

impl AuthHandler {
    /// Over the use cases of these accounts; `log_ins` needs more than they have.
    #[must_use]
    pub fn new(accounts: &Accounts, log_ins: LogIns) -> Self {
        Self {
            log_ins,
            sessions: Sessions::new(accounts.clone()),
            tokens: Tokens::new(accounts.clone()),
            certificates: ClientCertificates::new(accounts.clone()),
            users: Users::new(accounts.clone()),
        }
    }
}

#[async_trait]
impl AuthService for AuthHandler {
    async fn challenge(
        &self,
        request: Request<pb::ChallengeRequest>,
    ) -> Result<Response<pb::ChallengeResponse>, Status> {
        let arrival = arrival_of(&request)?;
        let challenge = self.log_ins.challenge(&arrival, &request.into_inner().public_key)?;
        Ok(Response::new(pb::ChallengeResponse {
            challenge_id: challenge.id.to_string(),
            challenge: challenge.bytes.to_vec().into(),
            expires_at: challenge.expires_at.to_string(),
            peer_id: self.log_ins.peer().to_string(),
        }))
    }

    async fn verify_challenge(
        &self,
        request: Request<pb::VerifyChallengeRequest>,
    ) -> Result<Response<pb::VerifyChallengeResponse>, Status> {
        let arrival = arrival_of(&request)?;
        let sent = request.into_inner();
        let answer = Answer {
            challenge_id: sent.challenge_id,
            statement: sent.statement.to_vec(),
            signature: sent.signature,
            csr: sent.csr.to_vec(),
        };
        let session = self.log_ins.verify(&arrival, answer).await?;
        Ok(Response::new(pb::VerifyChallengeResponse {
            certificate_pem: session.certificate_pem,
            ca_certificate_pem: session.authority_pem,
            token: session.token,
            session_id: session.session.to_string(),
            expires_at: session.expires_at.to_string(),
            user: Some(summary(session.user.id, session.user.name, session.user.role)),
        }))
    }

    async fn get_public_key_info(
        &self,
        request: Request<pb::GetPublicKeyInfoRequest>,
    ) -> Result<Response<pb::GetPublicKeyInfoResponse>, Status> {
        let info = self.log_ins.key_info(&request.into_inner().public_key)?;
        Ok(Response::new(pb::GetPublicKeyInfoResponse {
            fingerprint: info.fingerprint.to_string(),
            algorithm: info.algorithm.to_owned(),
            comment: info.comment,
            bits: info.bits,
        }))
    }

    async fn who_am_i(&self, request: Request<pb::WhoAmIRequest>) -> Result<Response<pb::WhoAmIResponse>, Status> {
        let call = call_of(&request)?;
        Ok(Response::new(who(self.sessions.who_am_i(&call).await?)))
    }

    async fn logout(&self, request: Request<pb::LogoutRequest>) -> Result<Response<pb::LogoutResponse>, Status> {
        let call = call_of(&request)?;
        self.sessions.log_out(&call).await?;
        Ok(Response::new(pb::LogoutResponse {}))
    }

    async fn list_my_sessions(
        &self,
        request: Request<pb::ListMySessionsRequest>,
    ) -> Result<Response<pb::ListMySessionsResponse>, Status> {
        let call = call_of(&request)?;
        let page = Page::of(request.into_inner().page)?;
        let list = self.sessions.list(&call, page.after_as::<Uuid>()?, page.limit).await?;
        let info = page.info(list.len(), list.last().map(|row| row.id.to_string()));
        let sessions = list.into_iter().map(|row| session(row, &call)).collect();
        Ok(Response::new(pb::ListMySessionsResponse { sessions, page: Some(info) }))
    }

    async fn revoke_session(
        &self,
        request: Request<pb::RevokeSessionRequest>,
    ) -> Result<Response<pb::RevokeSessionResponse>, Status> {
        let call = call_of(&request)?;
        self.sessions.revoke(&call, &request.into_inner().session_id).await?;
        Ok(Response::new(pb::RevokeSessionResponse {}))
    }

    async fn register_my_key(
        &self,
        request: Request<pb::RegisterMyKeyRequest>,
    ) -> Result<Response<pb::RegisterMyKeyResponse>, Status> {
        let call = call_of(&request)?;
        let key = self.users.register_mine(&call, &request.into_inner().public_key).await?;
        Ok(Response::new(pb::RegisterMyKeyResponse { fingerprint: key.fingerprint.to_string(), added: key.added }))
    }

    async fn create_token(
        &self,
        request: Request<pb::CreateTokenRequest>,
    ) -> Result<Response<pb::CreateTokenResponse>, Status> {
        let call = call_of(&request)?;
        let wanted = request.into_inner();
        let new = NewToken {
            name: wanted.name,
            scopes: wanted.scopes,
            validity: Duration::from_secs(wanted.expires_in_seconds),
            csr: wanted.csr.to_vec(),
        };
        let made = self.tokens.create(&call, new).await?;
        Ok(Response::new(pb::CreateTokenResponse {
            token_id: made.id.to_string(),
            token: made.token,
            certificate_pem: made.certificate_pem,
            ca_certificate_pem: made.authority_pem,
            expires_at: made.expires_at.to_string(),
        }))
    }

    async fn list_tokens(
        &self,
        request: Request<pb::ListTokensRequest>,
    ) -> Result<Response<pb::ListTokensResponse>, Status> {
        let call = call_of(&request)?;
        let page = Page::of(request.into_inner().page)?;
        let list = self.tokens.list(&call, page.after_as::<Uuid>()?, page.limit).await?;
        let info = page.info(list.len(), list.last().map(|row| row.id.to_string()));
        let tokens = list.into_iter().map(token).collect();
        Ok(Response::new(pb::ListTokensResponse { tokens, page: Some(info) }))
    }

    async fn revoke_token(
        &self,
        request: Request<pb::RevokeTokenRequest>,
    ) -> Result<Response<pb::RevokeTokenResponse>, Status> {
        let call = call_of(&request)?;
        self.tokens.revoke(&call, &request.into_inner().token_id).await?;
        Ok(Response::new(pb::RevokeTokenResponse {}))
    }

    async fn issue_certificate(
        &self,
        request: Request<pb::IssueCertificateRequest>,
    ) -> Result<Response<pb::IssueCertificateResponse>, Status> {
        let call = call_of(&request)?;
        let wanted = request.into_inner();
        let issued = self.certificates.issue(&call, &wanted.csr, &wanted.name).await?;
        Ok(Response::new(pb::IssueCertificateResponse {
            certificate_pem: issued.pem,
            ca_certificate_pem: issued.authority_pem,
            certificate: Some(certificate((issued.certificate, Standing::Valid))),
        }))
    }

    async fn list_certificates(
        &self,
        request: Request<pb::ListCertificatesRequest>,
    ) -> Result<Response<pb::ListCertificatesResponse>, Status> {
        let call = call_of(&request)?;
        let wanted = request.into_inner();
        let page = Page::of(wanted.page)?;
        let whose = if wanted.all { Whose::Everybodys } else { Whose::Mine };
        let list = self.certificates.list(&call, whose, &page.after, page.limit).await?;
        let info = page.info(list.len(), list.last().map(|(row, _)| row.serial.clone()));
        let certificates = list.into_iter().map(certificate).collect();
        Ok(Response::new(pb::ListCertificatesResponse { certificates, page: Some(info) }))
    }

    async fn revoke_certificate(
        &self,
        request: Request<pb::RevokeCertificateRequest>,
    ) -> Result<Response<pb::RevokeCertificateResponse>, Status> {
        let call = call_of(&request)?;
        let wanted = request.into_inner();
        let revoked = self.certificates.revoke(&call, &wanted.serial_or_fingerprint, &wanted.reason).await?;
        Ok(Response::new(pb::RevokeCertificateResponse { certificate: Some(certificate(revoked)) }))
    }
}

/// A role on the wire.
pub(super) fn role_to_wire(role: NodeRole) -> pb::NodeRole {
    match role {
        NodeRole::Reader => pb::NodeRole::Reader,
        NodeRole::Writer => pb::NodeRole::Writer,
        NodeRole::Admin => pb::NodeRole::Admin,
    }
}

fn summary(id: bib_core::UserId, name: String, role: NodeRole) -> pb::UserSummary {
    pb::UserSummary { user_id: id.to_string(), name, role: role_to_wire(role).into() }
}

fn who(me: Me) -> pb::WhoAmIResponse {
    let (via, session_id, uid) = match &me.via {
        Via::Socket { uid } => ("socket", None, Some(*uid)),
        Via::Tls { session, .. } => ("tls", Some(session.to_string()), None),
        Via::Internal { component } => (*component, None, None),
    };
    pb::WhoAmIResponse {
        user: Some(summary(me.user, me.name, me.role)),
        via: via.to_owned(),
        key_fingerprint: me.key.map(|key| key.to_string()),
        session_id,
        certificate_expires_at: me.certificate_expires_at.map(|time| time.to_string()),
        scopes: me.scopes,
        uid,
        keys: me.keys.iter().map(ToString::to_string).collect(),
    }
}

fn session(row: LogIn, call: &Call) -> pb::Session {
    let current = matches!(&call.actor.via, Via::Tls { session, .. } if *session == row.id);
    pb::Session {
        session_id: row.id.to_string(),
        user_id: row.user.to_string(),
        created_at: row.created_at.to_string(),
        last_seen_at: row.last_seen_at.to_string(),
        expires_at: row.expires_at.to_string(),
        key_fingerprint: row.key_fingerprint,
        peer_address: row.peer_address,
        current,
    }
}

fn token(row: Token) -> pb::Token {
    pb::Token {
        token_id: row.id.to_string(),
        name: row.name,
        user_id: row.user.to_string(),
        scopes: row.scopes,
        created_at: row.created_at.to_string(),
        expires_at: row.expires_at.to_string(),
        last_used_at: row.last_used_at.map(|time| time.to_string()),
        revoked: row.revoked_at.is_some(),
        certificate_serial: row.serial,
    }
}

fn certificate((row, standing): (Certificate, Standing)) -> pb::Certificate {
    pb::Certificate {
        serial: row.serial,
        user_id: row.user.to_string(),
        name: row.name,
        key_fingerprint: row.key_fingerprint,
        fingerprint: row.fingerprint.to_string(),
        not_before: row.not_before.to_string(),
        not_after: row.not_after.to_string(),
        state: standing.as_str().to_owned(),
    }
}
