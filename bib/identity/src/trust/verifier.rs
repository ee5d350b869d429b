//! Holds a TLS server against a pin (`formats.md`, "TLS and log-in").
//!
//! In order: the server sends its leaf and its CA certificate; the CA's key must be the pinned one, or be certified by
//! it; the CA certificate and the leaf must be in date and chain; the leaf is for a server alone and is no CA; its
//! `bib:` name is the pinned peer id. Host names are not compared. Nothing here asks a person: it refuses with what
//! was shown, and the caller asks.

use std::error::Error as StdError;
use std::fmt;
use std::io;
use std::sync::{Arc, Mutex, PoisonError};

use bib_core::{PeerId, Timestamp};
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::{ClientConfig, Resumption, verify_server_cert_signed_by_trust_anchor};
use rustls::crypto::WebPkiSupportedAlgorithms;
use rustls::pki_types::{CertificateDer, DnsName, ServerName, UnixTime};
use rustls::server::ParsedCertificate;
use rustls::{DigitallySignedStruct, Error, OtherError, RootCertStore, SignatureScheme};

use super::store::Pin;
use crate::certificate::{self, CertificateInfo, Fingerprint};
use crate::credentials::ClientCredentials;
use crate::pem;
use crate::server_tls::{ALPN_H2, provider};
use crate::time_source::{TimeSource, timestamp_of};

/// The most certificates a server may send after its leaf: its CA and one cross-certificate.
const MAX_SENT: usize = 2;

/// Why a server is not believed. Reaches the caller inside the TLS error; [`TrustError::find`] takes it out.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TrustError {
    /// The server is not pinned and first use was not allowed. What it showed is consistent in itself.
    #[error("node {} is not trusted yet; its CA key is {}", .0.peer_id, .0.ca_spki_sha256)]
    NotPinned(Box<Presented>),
    /// At first use, the CA's key is not the one that the person named.
    #[error("the server's CA key is {found}, not {expected} as you said")]
    Unexpected {
        /// What the person gave.
        expected: Fingerprint,
        /// What the server showed.
        found: Fingerprint,
    },
    /// The CA's key is not the pinned one, and the pinned one does not vouch for it.
    #[error("the CA key of node {peer_id} has changed: trusted is {old}, shown is {new}")]
    CaChanged {
        /// The pinned node.
        peer_id: PeerId,
        /// The pinned CA key.
        old: Fingerprint,
        /// The CA key that the server showed.
        new: Fingerprint,
    },
    /// The certificate names another node.
    #[error("the server is node {found}, not {expected}")]
    OtherNode {
        /// The pinned node.
        expected: PeerId,
        /// The node that the certificate names.
        found: PeerId,
    },
    /// The server sent no CA certificate, or more than belongs there.
    #[error("the server sent {0} certificates; a leaf, its CA and at most one cross-certificate are expected")]
    Chain(usize),
    /// A certificate cannot be parsed, or is not signed as it says.
    #[error("the {which} certificate is not valid: {reason}")]
    Invalid {
        /// "server", "CA" or "cross".
        which: &'static str,
        /// What is wrong.
        reason: String,
    },
    /// A certificate's time is over.
    #[error("the {which} certificate expired at {not_after} (it is {now})")]
    Expired {
        /// "server", "CA" or "cross".
        which: &'static str,
        /// Its last moment.
        not_after: Timestamp,
        /// The client's clock.
        now: Timestamp,
    },
    /// A certificate's time has not come.
    #[error("the {which} certificate is valid from {not_before} (it is {now})")]
    NotYetValid {
        /// "server", "CA" or "cross".
        which: &'static str,
        /// Its first moment.
        not_before: Timestamp,
        /// The client's clock.
        now: Timestamp,
    },
}

impl TrustError {
    /// Takes the reason out of a TLS, IO or transport error, however deep it lies.
    #[must_use]
    pub fn find<'a>(error: &'a (dyn StdError + 'static)) -> Option<&'a Self> {
        let mut next = Some(error);
        while let Some(error) = next {
            if let Some(found) = error.downcast_ref::<Self>() {
                return Some(found);
            }
            next = match (error.downcast_ref::<Error>(), error.downcast_ref::<io::Error>()) {
                (Some(Error::Other(OtherError(inner))), _) => Some(inner.as_ref()),
                // An IO error's source skips the error that it was made of.
                (_, Some(io)) => io.get_ref().map(|inner| inner as &(dyn StdError + 'static)),
                _ => error.source(),
            };
        }
        None
    }

    /// What a person can do about it.
    #[must_use]
    pub fn hint(&self) -> Option<&'static str> {
        match self {
            Self::NotPinned(_) => {
                Some("compare with what `bibd` prints at start, then: bib trust add NODE --fingerprint SHA256")
            }
            Self::Unexpected { .. } => {
                Some("ask the node's administrator for its fingerprint; somebody may be in between")
            }
            Self::CaChanged { .. } | Self::OtherNode { .. } => {
                Some("ask the node's administrator; only if the change is meant: bib trust replace")
            }
            Self::Expired { .. } => {
                Some("the node renews by itself when it runs: ask its administrator; check your clock")
            }
            Self::NotYetValid { .. } => Some("check this machine's clock"),
            Self::Chain(_) | Self::Invalid { .. } => Some("check that the address is that of a BIB node"),
        }
    }
}

impl From<TrustError> for Error {
    fn from(error: TrustError) -> Self {
        Self::Other(OtherError(Arc::new(error)))
    }
}

/// What the caller holds the server against.
#[derive(Debug, Clone)]
pub enum Expectation {
    /// A known node.
    Pinned(Box<Pin>),
    /// A node that is not pinned.
    FirstUse(FirstUse),
    /// Whoever answers: neither pin, chain nor dates are compared. The person has asked for it; nothing may be pinned.
    Nothing,
}

/// What to do about a node that is not pinned.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FirstUse {
    /// Refuse with [`TrustError::NotPinned`], so that the caller can show and ask.
    Refuse,
    /// Take it; if a fingerprint of the CA key is given, only with that one.
    Accept {
        /// What the person read elsewhere, or has just confirmed.
        expected: Option<Fingerprint>,
    },
}

/// How a server came to be believed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum How {
    /// Its CA's key is the pinned one.
    Pinned,
    /// It was not known before.
    FirstUse,
    /// Its CA is new and certified by the pinned one: the caller replaces the pin.
    CrossCertified,
    /// It is not believed; nobody asked.
    Unverified,
}

/// What a server showed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Presented {
    /// The node that its certificate names.
    pub peer_id: PeerId,
    /// SHA-256 of its CA's public key: what is pinned.
    pub ca_spki_sha256: Fingerprint,
    /// Its CA certificate, PEM.
    pub ca_certificate_pem: String,
    /// SHA-256 of its leaf: what a log-in is bound to.
    pub leaf_sha256: Fingerprint,
    /// The last moment of its leaf.
    pub not_after: Timestamp,
    /// How it came to be believed.
    pub how: How,
}

/// Verifies one connection's server. Make a new one for each connection.
pub struct ServerVerifier {
    expectation: Expectation,
    algorithms: WebPkiSupportedAlgorithms,
    presented: Mutex<Option<Presented>>,
}

impl ServerVerifier {
    /// A verifier that holds the server against `expectation`.
    #[must_use]
    pub fn new(expectation: Expectation) -> Arc<Self> {
        let algorithms = provider().signature_verification_algorithms;
        Arc::new(Self { expectation, algorithms, presented: Mutex::new(None) })
    }

    /// What the server showed, once its certificates were checked. Only after the handshake has ended well is it also
    /// known that the server holds the key to them: pin nothing before that.
    #[must_use]
    pub fn presented(&self) -> Option<Presented> {
        self.presented.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn check(&self, leaf: &CertificateDer<'_>, sent: &[CertificateDer<'_>], now: UnixTime) -> Result<(), Error> {
        let at = timestamp_of(now);
        let (authority, cross) = match sent {
            [authority] => (authority, None),
            [authority, cross] if sent.len() <= MAX_SENT => (authority, Some(cross)),
            _ => return Err(TrustError::Chain(sent.len() + 1).into()),
        };
        let leaf_info = describe("server", leaf)?;
        let authority_info = describe("CA", authority)?;
        if matches!(self.expectation, Expectation::Nothing) {
            let peer_id = leaf_info.peer_id().ok_or_else(|| invalid("server", "it does not name one node"))?;
            self.keep(peer_id, &leaf_info, &authority_info, authority, How::Unverified);
            return Ok(());
        }
        let how = self.check_authority(&authority_info, cross, at)?;
        check_dates("CA", &authority_info, at)?;
        // webpki looks at a trust anchor's key and name constraints alone.
        let certifies = authority_info.is_ca && authority_info.may_certify;
        if !certifies || !certificate::is_signed_by(authority, authority) {
            return Err(invalid("CA", "it is not a CA certificate signed by itself").into());
        }
        check_dates("server", &leaf_info, at)?;
        let peer_id = check_leaf(&leaf_info)?;
        self.check_chain(leaf, authority, now)?;
        if let Expectation::Pinned(pin) = &self.expectation
            && pin.peer_id != peer_id
        {
            return Err(TrustError::OtherNode { expected: pin.peer_id, found: peer_id }.into());
        }
        let presented = self.keep(peer_id, &leaf_info, &authority_info, authority, how);
        match &self.expectation {
            Expectation::FirstUse(FirstUse::Refuse) => Err(TrustError::NotPinned(Box::new(presented)).into()),
            _ => Ok(()),
        }
    }

    fn keep(
        &self,
        peer_id: PeerId,
        leaf: &CertificateInfo,
        authority: &CertificateInfo,
        authority_der: &CertificateDer<'_>,
        how: How,
    ) -> Presented {
        let presented = Presented {
            peer_id,
            ca_spki_sha256: authority.spki_sha256,
            ca_certificate_pem: pem::encode(pem::CERTIFICATE, authority_der).to_string(),
            leaf_sha256: leaf.sha256,
            not_after: leaf.not_after,
            how,
        };
        *self.presented.lock().unwrap_or_else(PoisonError::into_inner) = Some(presented.clone());
        presented
    }

    /// Whether the CA's key is the one expected. First of all checks, so that a changed CA is reported as such.
    fn check_authority(
        &self,
        authority: &CertificateInfo,
        cross: Option<&CertificateDer<'_>>,
        now: Timestamp,
    ) -> Result<How, TrustError> {
        let found = authority.spki_sha256;
        match &self.expectation {
            Expectation::FirstUse(FirstUse::Accept { expected: Some(expected) }) if *expected != found => {
                Err(TrustError::Unexpected { expected: *expected, found })
            }
            Expectation::FirstUse(_) => Ok(How::FirstUse),
            Expectation::Nothing => Ok(How::Unverified),
            Expectation::Pinned(pin) if pin.ca_spki_sha256 == found => Ok(How::Pinned),
            Expectation::Pinned(pin) => {
                let changed = TrustError::CaChanged { peer_id: pin.peer_id, old: pin.ca_spki_sha256, new: found };
                let cross = cross.ok_or_else(|| changed.clone())?;
                if !is_certified(pin, authority, cross) {
                    return Err(changed);
                }
                check_dates("cross", &describe("cross", cross)?, now)?;
                Ok(How::CrossCertified)
            }
        }
    }

    /// Signature, path length, key usage and name constraints, by webpki.
    fn check_chain(
        &self,
        leaf: &CertificateDer<'_>,
        authority: &CertificateDer<'_>,
        now: UnixTime,
    ) -> Result<(), TrustError> {
        let mut roots = RootCertStore::empty();
        roots.add(authority.clone().into_owned()).map_err(|e| invalid("CA", e))?;
        let parsed = ParsedCertificate::try_from(leaf).map_err(|e| invalid("server", e))?;
        verify_server_cert_signed_by_trust_anchor(&parsed, &roots, &[], now, self.algorithms.all)
            .map_err(|e| invalid("server", e))
    }
}

/// Whether the pinned CA has signed the new CA's key.
fn is_certified(pin: &Pin, authority: &CertificateInfo, cross: &CertificateDer<'_>) -> bool {
    let Some(pinned) =
        pin.ca_certificate_pem.as_ref().and_then(|p| pem::decode_one(p.as_bytes(), pem::CERTIFICATE).ok())
    else {
        return false;
    };
    // The certificate beside the pin is only as good as the pin.
    let same_key =
        certificate::describe(&pinned).is_ok_and(|info| info.spki_sha256 == pin.ca_spki_sha256 && info.is_ca);
    let cross_info = certificate::describe(cross);
    let same_subject = cross_info.is_ok_and(|c| c.is_ca && c.spki_sha256 == authority.spki_sha256);
    same_key && same_subject && certificate::is_signed_by(cross, &pinned)
}

fn describe(which: &'static str, der: &CertificateDer<'_>) -> Result<CertificateInfo, TrustError> {
    certificate::describe(der).map_err(|e| invalid(which, e))
}

fn invalid(which: &'static str, reason: impl fmt::Display) -> TrustError {
    TrustError::Invalid { which, reason: reason.to_string() }
}

fn check_dates(which: &'static str, info: &CertificateInfo, now: Timestamp) -> Result<(), TrustError> {
    if now > info.not_after {
        return Err(TrustError::Expired { which, not_after: info.not_after, now });
    }
    if now < info.not_before {
        return Err(TrustError::NotYetValid { which, not_before: info.not_before, now });
    }
    Ok(())
}

fn check_leaf(info: &CertificateInfo) -> Result<PeerId, TrustError> {
    if info.is_ca {
        return Err(invalid("server", "it is a CA certificate"));
    }
    if !info.server_auth || info.client_auth || info.other_usage {
        return Err(invalid("server", "its usage is not server authentication alone"));
    }
    info.peer_id().ok_or_else(|| invalid("server", "it does not name one node"))
}

impl fmt::Debug for ServerVerifier {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ServerVerifier").field("expectation", &self.expectation).finish_non_exhaustive()
    }
}

impl ServerCertVerifier for ServerVerifier {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        self.check(end_entity, intermediates, now)?;
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        rustls::crypto::verify_tls12_signature(message, cert, dss, &self.algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        rustls::crypto::verify_tls13_signature(message, cert, dss, &self.algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.algorithms.supported_schemes()
    }
}

/// The client's TLS: TLS 1.3 alone, no resumption (each connection verifies), no server name sent.
///
/// # Errors
/// rustls's, when key and certificate of the credentials do not fit.
pub fn client_config(
    verifier: Arc<ServerVerifier>,
    credentials: Option<&ClientCredentials>,
    clock: TimeSource,
) -> Result<ClientConfig, Error> {
    let builder = ClientConfig::builder_with_details(provider(), Arc::new(clock))
        .with_protocol_versions(&[&rustls::version::TLS13])?
        .dangerous()
        .with_custom_certificate_verifier(verifier);
    let mut config = match credentials {
        Some(credentials) => {
            let (certificate, key) = credentials.to_rustls();
            builder.with_client_auth_cert(vec![certificate], key)?
        }
        None => builder.with_no_client_auth(),
    };
    config.alpn_protocols = vec![ALPN_H2.to_vec()];
    config.resumption = Resumption::disabled();
    config.enable_sni = false;
    Ok(config)
}

/// The name to give rustls, which demands one. It is neither sent nor compared.
#[must_use]
pub fn server_name() -> ServerName<'static> {
    DnsName::try_from("node.bib.invalid")
        .map_or(ServerName::IpAddress(std::net::Ipv4Addr::LOCALHOST.into()), ServerName::DnsName)
}
