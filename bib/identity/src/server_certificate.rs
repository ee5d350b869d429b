//! The node's own server certificate and its key: kept on disk, issued anew when it is due.

use std::path::Path;

use bib_core::{PeerId, Timestamp};
use rand_core::CryptoRngCore;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};
use secrecy::{ExposeSecret as _, SecretSlice};

use crate::ca::{self, CaError, CertificateAuthority, SanName, ServerSubject};
use crate::certificate::{self, CertificateInfo, Fingerprint};
use crate::file;
use crate::pem;
use crate::request;
use crate::sealed::SealedDir;

/// The server's certificate, in the directory of certificates.
pub const SERVER_CERTIFICATE_FILE: &str = "server.crt";
/// The name of the server's sealed key.
pub const SERVER_KEY_SECRET: &str = "server.key";

/// A server certificate with its private key.
pub struct ServerCertificate {
    der: Vec<u8>,
    key: SecretSlice<u8>,
    info: CertificateInfo,
}

/// What [`ServerCertificate::ensure`] did.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Renewal {
    /// The one on disk is still good.
    Kept,
    /// A new one was issued and stored.
    Issued,
}

impl ServerCertificate {
    /// Makes a key and has the authority certify it, in memory.
    ///
    /// # Errors
    /// As [`CertificateAuthority::issue_server`].
    pub fn issue(
        authority: &CertificateAuthority,
        subject: &ServerSubject<'_>,
        now: Timestamp,
        rng: &mut impl CryptoRngCore,
    ) -> Result<Self, CaError> {
        let key = request::generate_key().map_err(CaError::Issue)?;
        let issued = authority.issue_server(&key, subject, now, rng)?;
        let info = certificate::describe(&issued.der)?;
        Ok(Self { der: issued.der, key: SecretSlice::from(key.serialized_der().to_vec()), info })
    }

    /// The certificate on disk, or a new one when it is due, damaged, of another authority, or lacks a name or peer.
    ///
    /// Unlike the node's key, a server key carries no identity: making a new one harms nobody.
    ///
    /// # Errors
    /// When files cannot be written or the authority refuses.
    pub fn ensure(
        authority: &CertificateAuthority,
        certs_dir: &Path,
        sealed: &SealedDir<'_>,
        subject: &ServerSubject<'_>,
        now: Timestamp,
        rng: &mut impl CryptoRngCore,
    ) -> Result<(Self, Renewal), CaError> {
        let path = certs_dir.join(SERVER_CERTIFICATE_FILE);
        if let Some(found) = Self::find(&path, sealed)
            && found.serves(authority, subject, now)
        {
            return Ok((found, Renewal::Kept));
        }
        let issued = Self::issue(authority, subject, now, rng)?;
        sealed.write(SERVER_KEY_SECRET, &issued.key)?;
        file::replace_public(&path, pem::encode(pem::CERTIFICATE, &issued.der).as_bytes())?;
        Ok((issued, Renewal::Issued))
    }

    /// What lies on disk, if it is whole. Anything else is treated as absent and logged, since it can be made anew.
    fn find(path: &Path, sealed: &SealedDir<'_>) -> Option<Self> {
        let text = file::read_public(path, pem::MAX_BYTES as u64).ok()?;
        let der = pem::decode_one(&text, pem::CERTIFICATE).ok()?.to_vec();
        let info = certificate::describe(&der).ok()?;
        let key = sealed
            .find(SERVER_KEY_SECRET)
            .inspect_err(|error| tracing::warn!(%error, "the server's sealed key is unusable; a new one is made"))
            .ok()??;
        let pair = request::key_from_der(key.expose_secret()).ok()?;
        let spki = rcgen::PublicKeyData::subject_public_key_info(&pair);
        (Fingerprint::of(&spki) == info.spki_sha256).then_some(Self { der, key, info })
    }

    fn serves(&self, authority: &CertificateAuthority, subject: &ServerSubject<'_>, now: Timestamp) -> bool {
        let names_present = subject.names.iter().all(|name| {
            let text = match name {
                SanName::Dns(host) => format!("DNS:{host}"),
                SanName::Ip(address) => format!("IP:{address}"),
            };
            self.info.names.contains(&text)
        });
        let signed = certificate::is_signed_by(&self.der, authority.certificate_der());
        signed && names_present && self.peer_id() == Some(subject.peer) && !ca::needs_renewal(&self.der, now)
    }

    /// What the certificate says.
    #[must_use]
    pub fn info(&self) -> &CertificateInfo {
        &self.info
    }

    /// The node that the certificate names.
    #[must_use]
    pub fn peer_id(&self) -> Option<PeerId> {
        self.info.peer_id()
    }

    /// The certificate, DER.
    #[must_use]
    pub fn certificate_der(&self) -> &[u8] {
        &self.der
    }

    pub(crate) fn to_rustls(&self) -> (CertificateDer<'static>, PrivateKeyDer<'static>) {
        let key = PrivatePkcs8KeyDer::from(self.key.expose_secret().to_vec());
        (CertificateDer::from(self.der.clone()), PrivateKeyDer::from(key))
    }
}

impl std::fmt::Debug for ServerCertificate {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "ServerCertificate({})", self.info.sha256)
    }
}
