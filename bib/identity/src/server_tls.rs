//! The server's end of TLS: TLS 1.3 alone, *ring* by name, certificates that can be exchanged while it runs.
//!
//! A client may come without a certificate (then only Health and Auth answer). One that shows a certificate must show
//! a good one: signed by our CA, in date, for client authentication, not revoked. Sessions are never resumed, because a
//! resumed session skips those checks.

use std::fmt;
use std::sync::{Arc, PoisonError, RwLock};

use rustls::client::danger::HandshakeSignatureValid;
use rustls::crypto::{CryptoProvider, ring};
use rustls::pki_types::{CertificateDer, UnixTime};
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::server::{ClientHello, NoServerSessionStorage, ResolvesServerCert, ServerConfig, WebPkiClientVerifier};
use rustls::sign::CertifiedKey;
use rustls::{CertificateError as RustlsCertificate, DigitallySignedStruct, DistinguishedName, Error, RootCertStore};
use rustls::{OtherError, SignatureScheme};

use crate::certificate::{ClientIdentity, Fingerprint};
use crate::server_certificate::ServerCertificate;
use crate::time_source::TimeSource;

/// The protocol that both ends speak inside TLS.
pub const ALPN_H2: &[u8] = b"h2";

/// Why a server's TLS cannot be set up.
#[derive(Debug, thiserror::Error)]
pub enum ServerTlsError {
    /// A certificate or key that rustls does not take.
    #[error("set up TLS")]
    Rustls(#[from] Error),
    /// The CA certificate cannot verify clients.
    #[error("set up the verification of client certificates")]
    Clients(#[from] rustls::server::VerifierBuilderError),
}

/// What the table of certificates says about a serial number.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RevocationStatus {
    /// Issued and not revoked.
    Good,
    /// Revoked, or its user is suspended.
    Revoked,
    /// Not in the table, or the table could not be asked: unknown means deny.
    Unknown,
}

/// Answers at each handshake whether a certificate still counts. Called on the async threads: must not wait for IO,
/// so the daemon answers from a set in memory.
pub trait RevocationCheck: Send + Sync {
    /// The state of the certificate with this serial number (lower-case hex).
    fn status(&self, serial: &str) -> RevocationStatus;
}

impl<F: Fn(&str) -> RevocationStatus + Send + Sync> RevocationCheck for F {
    fn status(&self, serial: &str) -> RevocationStatus {
        self(serial)
    }
}

/// What the server shows, and whose clients it takes.
#[derive(Debug, Clone, Copy)]
pub struct ServerChain<'a> {
    /// The server's certificate and key.
    pub certificate: &'a ServerCertificate,
    /// The CA certificate that signed it, DER. Client certificates are verified against it.
    pub authority: &'a [u8],
    /// In a change of CA: the new CA's key certified by the old CA, DER. Sent after the CA certificate.
    pub cross: Option<&'a [u8]>,
    /// In a change of CA: the old CA certificate, DER, whose client certificates still count.
    pub previous: Option<&'a [u8]>,
}

struct State {
    key: Arc<CertifiedKey>,
    clients: Arc<dyn ClientCertVerifier>,
    leaf: Fingerprint,
    leaf_before: Option<Fingerprint>,
}

/// The exchangeable part of a server's TLS. Share one between the configuration and whoever renews.
pub struct ServerTls {
    state: RwLock<Arc<State>>,
}

impl ServerTls {
    /// Sets up what the server shows.
    ///
    /// # Errors
    /// [`ServerTlsError`] when a certificate or key is unusable.
    pub fn new(chain: ServerChain<'_>) -> Result<Arc<Self>, ServerTlsError> {
        Ok(Arc::new(Self { state: RwLock::new(Arc::new(State::build(chain, None)?)) }))
    }

    /// Exchanges what the server shows. Handshakes that begin after this see the new certificate.
    ///
    /// # Errors
    /// [`ServerTlsError`], and the old chain stays.
    pub fn replace(&self, chain: ServerChain<'_>) -> Result<(), ServerTlsError> {
        let state = Arc::new(State::build(chain, Some(self.current().leaf))?);
        *self.state.write().unwrap_or_else(PoisonError::into_inner) = state;
        Ok(())
    }

    /// SHA-256 of the leaf that new handshakes see.
    #[must_use]
    pub fn leaf_sha256(&self) -> Fingerprint {
        self.current().leaf
    }

    /// Whether a log-in bound to this leaf is bound to us: the current leaf or, for connections that began before a
    /// renewal, the one before it.
    #[must_use]
    pub fn is_our_leaf(&self, leaf: &Fingerprint) -> bool {
        let state = self.current();
        state.leaf == *leaf || state.leaf_before.as_ref() == Some(leaf)
    }

    /// The configuration for tokio-rustls.
    ///
    /// # Errors
    /// [`ServerTlsError::Rustls`] when the provider cannot do TLS 1.3.
    pub fn config(
        self: &Arc<Self>,
        revocation: Arc<dyn RevocationCheck>,
        clock: TimeSource,
    ) -> Result<Arc<ServerConfig>, ServerTlsError> {
        let verifier = ClientVerifier { tls: Arc::clone(self), revocation };
        let mut config = ServerConfig::builder_with_details(provider(), Arc::new(clock))
            .with_protocol_versions(&[&rustls::version::TLS13])?
            .with_client_cert_verifier(Arc::new(verifier))
            .with_cert_resolver(Arc::new(Resolver(Arc::clone(self))));
        config.alpn_protocols = vec![ALPN_H2.to_vec()];
        config.session_storage = Arc::new(NoServerSessionStorage {});
        config.send_tls13_tickets = 0;
        Ok(Arc::new(config))
    }

    fn current(&self) -> Arc<State> {
        Arc::clone(&self.state.read().unwrap_or_else(PoisonError::into_inner))
    }
}

impl State {
    fn build(chain: ServerChain<'_>, leaf_before: Option<Fingerprint>) -> Result<Self, ServerTlsError> {
        let (leaf, key) = chain.certificate.to_rustls();
        let shown: Vec<CertificateDer<'static>> = std::iter::once(leaf)
            .chain([Some(chain.authority), chain.cross].into_iter().flatten().map(|der| der.to_vec().into()))
            .collect();
        let certified = CertifiedKey::new(shown, ring::sign::any_supported_type(&key)?);
        certified.keys_match()?;
        let mut roots = RootCertStore::empty();
        for der in [Some(chain.authority), chain.previous].into_iter().flatten() {
            roots.add(der.to_vec().into())?;
        }
        let clients =
            WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider()).allow_unauthenticated().build()?;
        Ok(Self { key: Arc::new(certified), clients, leaf: chain.certificate.info().sha256, leaf_before })
    }
}

impl fmt::Debug for ServerTls {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "ServerTls({})", self.leaf_sha256())
    }
}

/// The one crypto provider, named, so that no feature of another crate can change it.
pub(crate) fn provider() -> Arc<CryptoProvider> {
    Arc::new(ring::default_provider())
}

#[derive(Debug)]
struct Resolver(Arc<ServerTls>);

impl ResolvesServerCert for Resolver {
    fn resolve(&self, _: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(Arc::clone(&self.0.current().key))
    }
}

struct ClientVerifier {
    tls: Arc<ServerTls>,
    revocation: Arc<dyn RevocationCheck>,
}

impl fmt::Debug for ClientVerifier {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("ClientVerifier")
    }
}

impl ClientCertVerifier for ClientVerifier {
    fn client_auth_mandatory(&self) -> bool {
        false
    }

    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        // None: a client knows by the pin which certificate is for us, and CAs change while we run.
        &[]
    }

    fn verify_client_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        _intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, Error> {
        // Our CA signs clients directly: what a client sends besides its certificate is not looked at.
        let verified = self.tls.current().clients.verify_client_cert(end_entity, &[], now)?;
        let identity = ClientIdentity::from_der(end_entity)
            .map_err(|e| Error::InvalidCertificate(RustlsCertificate::Other(OtherError(Arc::new(e)))))?;
        match self.revocation.status(&identity.serial) {
            RevocationStatus::Good => Ok(verified),
            RevocationStatus::Revoked => Err(Error::InvalidCertificate(RustlsCertificate::Revoked)),
            RevocationStatus::Unknown => Err(Error::InvalidCertificate(RustlsCertificate::UnknownRevocationStatus)),
        }
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.tls.current().clients.verify_tls12_signature(message, cert, dss)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.tls.current().clients.verify_tls13_signature(message, cert, dss)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.tls.current().clients.supported_verify_schemes()
    }
}

/// The identity that the handshake has verified, from what rustls kept of the client's certificates. `None` on an
/// anonymous connection.
///
/// # Errors
/// [`crate::certificate::CertificateError`], which a handshake verified by this module does not leave behind.
pub fn client_identity(
    peer_certificates: Option<&[CertificateDer<'_>]>,
) -> Result<Option<ClientIdentity>, crate::certificate::CertificateError> {
    peer_certificates.and_then(<[_]>::first).map(|leaf| ClientIdentity::from_der(leaf)).transpose()
}
