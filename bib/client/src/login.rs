//! Logging in with an SSH key: challenge, signed statement, certificate and token (`docs/formats.md`, "Log-in").
//!
//! The statement is bound to the node, to the certificate that this connection saw and to the key that will be
//! certified, so that a relayed challenge is of no use to whoever relays it.

use std::sync::Arc;

use bib_core::signature::{LOGIN_NAMESPACE, LoginStatement};
use bib_core::{Hash, PeerId};
use bib_identity::credentials::ClientCredentials;
use bib_identity::pem;
use bib_identity::request::CertificateRequest;
use bib_identity::ssh::{SshError, UserKey};
use bib_identity::token_file::TokenFile;
use bib_proto::v1 as pb;
use secrecy::SecretString;

use crate::client::Client;
use crate::connect::token_file_error;
use crate::error::{Error, ErrorKind, Result, code};

/// A log-in that has succeeded.
#[derive(Debug, Clone)]
pub struct LoggedIn {
    /// The user's id on the node.
    pub user_id: String,
    /// The user's name on the node.
    pub name: String,
    /// What the user may do on the node as such.
    pub role: pb::NodeRole,
    /// The session.
    pub session_id: String,
    /// RFC 3339: until when the certificate counts. Calls after that log in again by themselves if they can.
    pub expires_at: String,
    /// The node.
    pub node: PeerId,
}

impl Client {
    /// Logs in with `key`, keeps certificate and token for the next time, and goes on with them.
    ///
    /// ```no_run
    /// # async fn example(client: bib_client::Client) -> bib_client::Result<()> {
    /// use std::sync::Arc;
    /// use bib_identity::ssh::{Discovery, UserKey};
    ///
    /// let keys = Discovery { home: Some("/home/ada".into()), ..Discovery::default() };
    /// let key = keys.best(&mut |_| None).map_err(bib_client::Error::from)?;
    /// let session = client.login(Arc::new(key)).await?;
    /// println!("logged in as {}", session.name);
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    /// [`ErrorKind::Invalid`] on the Unix socket, where nobody logs in; [`ErrorKind::Unauthenticated`] when the node
    /// does not take the key; [`ErrorKind::Untrusted`] when the node is not the trusted one.
    pub async fn login(&self, key: Arc<UserKey>) -> Result<LoggedIn> {
        if self.is_local() {
            return Err(Error::new(ErrorKind::Invalid, "on the Unix socket nobody logs in")
                .with_hint("the node knows you by your operating system user; `bib whoami` shows as whom"));
        }
        // A certificate that was revoked would close the door on the way to a new one.
        self.relink_anonymously()?;
        let session = self.prove(key).await;
        self.relink()?;
        session
    }

    /// Challenge, statement, certificate; on a link that shows none.
    async fn prove(&self, key: Arc<UserKey>) -> Result<LoggedIn> {
        let public = key.public();
        let line = public.to_line();
        let challenge = self.auth().challenge(&line).await?;
        let presented = self.presented().ok_or_else(|| Error::bad_answer("the node answered without TLS"))?;
        let node: PeerId = challenge.peer_id.parse().map_err(|_| Error::bad_answer("the challenge names no node"))?;
        if node != presented.peer_id {
            return Err(Error::new(
                ErrorKind::Untrusted,
                format!("the challenge is for node {node}, not {}", presented.peer_id),
            )
            .with_code(code::UNTRUSTED)
            .with_hint("somebody may be in between: ask the node's administrator"));
        }
        let request = CertificateRequest::generate().map_err(|error| {
            Error::new(ErrorKind::Local, "no key for the connection can be made").with_source(error)
        })?;
        let statement = LoginStatement {
            challenge: <[u8; 32]>::try_from(challenge.challenge.as_ref())
                .map_err(|_| Error::bad_answer("the challenge is not 32 bytes long"))?,
            node,
            server_certificate: Some(*presented.leaf_sha256.hash()),
            csr: Hash::of(&request.der),
            key: public.fingerprint(),
            time: self.options().clock.now(),
            extra: Default::default(),
        };
        let statement = statement
            .to_bytes()
            .map_err(|error| Error::new(ErrorKind::Internal, "no log-in statement can be made").with_source(error))?;
        let signature = sign(&key, LOGIN_NAMESPACE, statement.clone()).await?;
        let answer = self
            .auth()
            .verify_challenge(pb::VerifyChallengeRequest {
                challenge_id: challenge.challenge_id,
                statement: statement.into(),
                signature,
                csr: request.der.clone().into(),
            })
            .await?;
        self.keep_credentials(&node, &request.key_pem, &answer)?;
        let user = answer.user.unwrap_or_default();
        Ok(LoggedIn {
            role: user.role(),
            user_id: user.user_id,
            name: user.name,
            session_id: answer.session_id,
            expires_at: answer.expires_at,
            node,
        })
    }

    /// Logs in with a key that the options' source finds.
    pub(crate) async fn login_with_source(&self) -> Result<LoggedIn> {
        let key = self.find_key(&[]).await?.ok_or_else(no_key)?;
        self.login(key).await
    }

    /// Asks the options' source for a key.
    pub(crate) async fn find_key(&self, wanted: &[bib_core::KeyFingerprint]) -> Result<Option<Arc<UserKey>>> {
        let Some(source) = self.options().keys.clone() else { return Ok(None) };
        let wanted = wanted.to_vec();
        tokio::task::spawn_blocking(move || source(&wanted)).await.map_err(Error::task)?
    }

    /// Ends the session on the node and forgets its certificate and token here, even when the node does not answer.
    ///
    /// # Errors
    /// When the node is reached and refuses, or the stored credentials cannot be removed.
    pub async fn logout(&self) -> Result<()> {
        let told = if self.is_logged_in() { self.auth().logout().await } else { Ok(()) };
        if let Some(node) = self.pinned_peer()? {
            let path = self.options().credentials_file(&node);
            bib_identity::file::remove(&path).map_err(|error| {
                Error::new(ErrorKind::Local, "the stored log-in cannot be removed")
                    .with_code(code::LOCAL_FILE)
                    .with_source(error)
            })?;
        }
        self.relink()?;
        match told {
            Err(error) if !matches!(error.kind(), ErrorKind::Unauthenticated | ErrorKind::Unavailable) => Err(error),
            _ => Ok(()),
        }
    }

    /// The peer id that is pinned for the target.
    fn pinned_peer(&self) -> Result<Option<PeerId>> {
        let store = bib_identity::trust::TrustStore::open(&self.options().trust_dir());
        let pin = store
            .and_then(|store| store.find(&self.target().address()))
            .map_err(|error| Error::new(ErrorKind::Local, error.to_string()).with_code(code::LOCAL_FILE))?;
        Ok(pin.map(|pin| pin.peer_id))
    }

    fn keep_credentials(&self, node: &PeerId, key: &SecretString, answer: &pb::VerifyChallengeResponse) -> Result<()> {
        let certificate = pem::decode_one(answer.certificate_pem.as_bytes(), pem::CERTIFICATE)
            .map_err(|error| Error::bad_answer("the node sent no certificate").with_source(error))?;
        let file = TokenFile::new(key, &certificate, SecretString::from(answer.token.clone()))
            .map_err(|error| Error::bad_answer("the node's certificate is not for this key").with_source(error))?;
        let directory = self.options().credentials_dir();
        bib_identity::file::ensure_private_dir(&directory).map_err(|error| {
            Error::new(ErrorKind::Local, format!("`{}` cannot be used", directory.display()))
                .with_code(code::LOCAL_FILE)
                .with_source(error)
        })?;
        ClientCredentials::store(&self.options().credentials_file(node), &file).map_err(token_file_error)
    }
}

/// Signs away from the async threads: an agent may wait for a person.
pub(crate) async fn sign(key: &Arc<UserKey>, namespace: &'static str, message: Vec<u8>) -> Result<String> {
    let key = Arc::clone(key);
    let signed = tokio::task::spawn_blocking(move || key.sign(namespace, &message)).await.map_err(Error::task)?;
    Ok(signed?.into_string())
}

/// There is no key.
pub(crate) fn no_key() -> Error {
    Error::new(ErrorKind::Unauthenticated, "there is no SSH key to log in or sign with")
        .with_code(code::NO_KEY)
        .with_hint("name one with `--key`, add one to your ssh-agent, or make one with `ssh-keygen -t ed25519`")
}

impl From<SshError> for Error {
    fn from(error: SshError) -> Self {
        let hint = error.hint();
        let told = Self::new(ErrorKind::Local, "the SSH key cannot be used").with_code(code::NO_KEY).with_source(error);
        match hint {
            Some(hint) => told.with_hint(hint),
            None => told,
        }
    }
}
