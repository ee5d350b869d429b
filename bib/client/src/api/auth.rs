//! Sessions, certificates and tokens. Logging in as a whole is [`Client::login`].

use bib_proto::v1 as pb;
use futures::stream::BoxStream;
use pb::auth_service_client::AuthServiceClient;

use super::{call, rows};
use crate::client::Client;
use crate::error::Result;

/// Sessions, certificates and tokens.
#[derive(Debug, Clone)]
pub struct Auth {
    pub(super) client: Client,
}

impl Auth {
    /// A challenge for a public key. Part of [`Client::login`].
    pub async fn challenge(&self, public_key: &str) -> Result<pb::ChallengeResponse> {
        call!(self, Never, AuthServiceClient, challenge, pb::ChallengeRequest { public_key: public_key.to_owned() })
    }

    /// Trades a signed log-in statement for certificate and token. Part of [`Client::login`].
    pub async fn verify_challenge(&self, request: pb::VerifyChallengeRequest) -> Result<pb::VerifyChallengeResponse> {
        call!(self, Never, AuthServiceClient, verify_challenge, request)
    }

    /// What a public key is.
    pub async fn public_key_info(&self, public_key: &str) -> Result<pb::GetPublicKeyInfoResponse> {
        let message = pb::GetPublicKeyInfoRequest { public_key: public_key.to_owned() };
        call!(self, Yes, AuthServiceClient, get_public_key_info, message)
    }

    /// Who the caller is, by which way, with which rights.
    pub async fn who_am_i(&self) -> Result<pb::WhoAmIResponse> {
        call!(self, Yes, AuthServiceClient, who_am_i, pb::WhoAmIRequest {})
    }

    /// Ends the session on the node. [`Client::logout`] also forgets it here.
    pub async fn logout(&self) -> Result<()> {
        let answer: Result<pb::LogoutResponse> = call!(self, Never, AuthServiceClient, logout, pb::LogoutRequest {});
        answer.map(|_| ())
    }

    /// The caller's sessions.
    #[must_use]
    pub fn sessions(&self) -> BoxStream<'static, Result<pb::Session>> {
        rows!(self, AuthServiceClient, list_my_sessions, sessions, |page| pb::ListMySessionsRequest {
            page: Some(page)
        })
    }

    /// Ends a session.
    pub async fn revoke_session(&self, session_id: &str) -> Result<()> {
        let message = pb::RevokeSessionRequest { session_id: session_id.to_owned() };
        let answer: Result<pb::RevokeSessionResponse> = call!(self, No, AuthServiceClient, revoke_session, message);
        answer.map(|_| ())
    }

    /// Registers a public key for the caller. Only over the Unix socket.
    pub async fn register_my_key(&self, public_key: &str) -> Result<pb::RegisterMyKeyResponse> {
        let message = pb::RegisterMyKeyRequest { public_key: public_key.to_owned() };
        call!(self, Yes, AuthServiceClient, register_my_key, message)
    }

    /// Makes a token for a script, with a certificate for the key in the request.
    pub async fn create_token(&self, request: pb::CreateTokenRequest) -> Result<pb::CreateTokenResponse> {
        call!(self, No, AuthServiceClient, create_token, request)
    }

    /// The caller's tokens.
    #[must_use]
    pub fn tokens(&self) -> BoxStream<'static, Result<pb::Token>> {
        rows!(self, AuthServiceClient, list_tokens, tokens, |page| pb::ListTokensRequest { page: Some(page) })
    }

    /// Revokes a token.
    pub async fn revoke_token(&self, token_id: &str) -> Result<()> {
        let message = pb::RevokeTokenRequest { token_id: token_id.to_owned() };
        let answer: Result<pb::RevokeTokenResponse> = call!(self, No, AuthServiceClient, revoke_token, message);
        answer.map(|_| ())
    }

    /// A client certificate for the key in a certificate request.
    pub async fn issue_certificate(&self, csr: Vec<u8>, name: &str) -> Result<pb::IssueCertificateResponse> {
        let message = pb::IssueCertificateRequest { csr: csr.clone().into(), name: name.to_owned() };
        call!(self, No, AuthServiceClient, issue_certificate, message)
    }

    /// The caller's certificates, or everybody's for an admin.
    #[must_use]
    pub fn certificates(&self, of: Whose) -> BoxStream<'static, Result<pb::Certificate>> {
        rows!(self, AuthServiceClient, list_certificates, certificates, |page| pb::ListCertificatesRequest {
            page: Some(page),
            all: of == Whose::Everybodys
        })
    }

    /// Revokes a certificate, named by serial number or SHA-256 fingerprint.
    pub async fn revoke_certificate(&self, certificate: &str, reason: &str) -> Result<pb::RevokeCertificateResponse> {
        let message =
            pb::RevokeCertificateRequest { serial_or_fingerprint: certificate.to_owned(), reason: reason.to_owned() };
        call!(self, No, AuthServiceClient, revoke_certificate, message)
    }
}

/// Whose certificates are listed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Whose {
    /// The caller's.
    Mine,
    /// Everybody's; for admins.
    Everybodys,
}
