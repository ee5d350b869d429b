//! The node's certificate authority: ten years, P-256, its key sealed to the node, vouching for the node's own server
//! certificate and for the clients that logged in.
//!
//! The CA's subject derives from its public key, so a certificate issued anew under the same key continues the old
//! one. *ring* draws private keys from the operating system; serial numbers come from the generator passed in.

use std::net::IpAddr;
use std::path::Path;
use std::str::FromStr;
use std::time::Duration;

use bib_core::{KeyFingerprint, PeerId, Timestamp, UserId};
use rand_core::CryptoRngCore;
use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose, PublicKeyData, SanType, SerialNumber,
};
use secrecy::{ExposeSecret as _, SecretSlice};

use crate::certificate::{self, CertificateError, CertificateInfo, Fingerprint};
use crate::file::{self, FileError};
use crate::pem::{self, PemError};
use crate::request::{self, RequestError};
use crate::sealed::{SealError, SealedDir};

const DAY: u64 = 86_400;
/// How long a CA counts: ten years.
pub const CA_VALIDITY: Duration = Duration::from_secs(3_652 * DAY);
/// How long a server certificate counts: one year.
pub const SERVER_VALIDITY: Duration = Duration::from_secs(365 * DAY);
/// How long a client certificate counts: 90 days.
pub const CLIENT_VALIDITY: Duration = Duration::from_secs(90 * DAY);
/// How long before its end a server certificate is renewed: 30 days.
pub const RENEW_BEFORE: Duration = Duration::from_secs(30 * DAY);
/// Certificates begin this long ago, because clocks differ: five minutes.
const BACKDATE: Duration = Duration::from_secs(300);
/// The CA's certificate, in the directory of certificates.
pub const CA_CERTIFICATE_FILE: &str = "ca.crt";
/// The name of the CA's sealed key.
pub const CA_KEY_SECRET: &str = "ca.key";

/// Why the authority cannot be made, read or used.
#[derive(Debug, thiserror::Error)]
pub enum CaError {
    /// The certificate's file.
    #[error(transparent)]
    File(#[from] FileError),
    /// The sealed key.
    #[error("the authority's sealed key: {0}")]
    Sealed(#[from] SealError),
    /// The certificate's text.
    #[error("the authority's certificate: {0}")]
    Pem(#[from] PemError),
    /// The certificate's content.
    #[error("the authority's certificate: {0}")]
    Certificate(#[from] CertificateError),
    /// There is a certificate but no key to it.
    #[error("the authority's certificate is there but its sealed key is gone")]
    KeyMissing,
    /// Key and certificate do not belong together, or the certificate is no CA's.
    #[error("the authority's key and certificate do not belong together")]
    Mismatch,
    /// The certificate request is refused.
    #[error(transparent)]
    Request(#[from] RequestError),
    /// The text is neither a host name nor an address.
    #[error("`{0}` is neither a host name nor an address")]
    Name(String),
    /// The library refused.
    #[error("issue a certificate")]
    Issue(#[source] rcgen::Error),
}

impl CaError {
    /// What a person can do about it.
    #[must_use]
    pub fn hint(&self) -> Option<&'static str> {
        match self {
            Self::File(error) => error.hint(),
            Self::Sealed(error) => error.hint(),
            Self::KeyMissing | Self::Mismatch => Some(
                "restore certs/ca.crt and secrets/ca.key.age from the same backup; BIB never makes a new CA over an old one",
            ),
            _ => None,
        }
    }
}

/// A name under which a server can be reached.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum SanName {
    /// A host name.
    Dns(String),
    /// An address.
    Ip(IpAddr),
}

impl FromStr for SanName {
    type Err = CaError;

    fn from_str(text: &str) -> Result<Self, CaError> {
        if let Ok(address) = text.parse() {
            return Ok(Self::Ip(address));
        }
        let plain = |label: &str| {
            (1..=63).contains(&label.len())
                && label.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_'))
                && !label.starts_with('-')
                && !label.ends_with('-')
        };
        if text.len() <= 253 && text.split('.').all(plain) {
            Ok(Self::Dns(text.to_ascii_lowercase()))
        } else {
            Err(CaError::Name(text.chars().take(80).collect()))
        }
    }
}

impl std::fmt::Display for SanName {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Dns(name) => f.write_str(name),
            Self::Ip(address) => address.fmt(f),
        }
    }
}

/// A certificate that the authority has just signed.
#[derive(Debug, Clone)]
pub struct IssuedCertificate {
    /// PEM text.
    pub pem: String,
    /// DER bytes.
    pub der: Vec<u8>,
    /// The serial number: 32 lower-case hex digits.
    pub serial: String,
    /// The first moment at which it counts.
    pub not_before: Timestamp,
    /// The last moment at which it counts.
    pub not_after: Timestamp,
    /// SHA-256 of the certificate.
    pub sha256: Fingerprint,
    /// SHA-256 of its public key.
    pub spki_sha256: Fingerprint,
}

/// The CA: its certificate and the key that signs.
pub struct CertificateAuthority {
    issuer: Issuer<'static, KeyPair>,
    der: Vec<u8>,
    info: CertificateInfo,
}

impl CertificateAuthority {
    /// Makes a new authority in memory.
    ///
    /// # Errors
    /// [`CaError::Issue`] when the operating system gives no randomness.
    pub fn create(rng: &mut impl CryptoRngCore, now: Timestamp, validity: Duration) -> Result<Self, CaError> {
        Self::self_sign(request::generate_key().map_err(CaError::Issue)?, rng, now, validity)
    }

    fn self_sign(
        key: KeyPair,
        rng: &mut impl CryptoRngCore,
        now: Timestamp,
        validity: Duration,
    ) -> Result<Self, CaError> {
        let params = authority_params(&key.subject_public_key_info(), rng, Period::from(now, validity));
        let der = params.self_signed(&key).map_err(CaError::Issue)?.der().to_vec();
        Self::assemble(der, key)
    }

    fn assemble(der: Vec<u8>, key: KeyPair) -> Result<Self, CaError> {
        let info = certificate::describe(&der)?;
        if !info.is_ca || !info.may_certify || info.spki_sha256 != Fingerprint::of(&key.subject_public_key_info()) {
            return Err(CaError::Mismatch);
        }
        let issuer = Issuer::from_ca_cert_der(&der.as_slice().into(), key).map_err(CaError::Issue)?;
        Ok(Self { issuer, der, info })
    }

    /// An authority from its certificate (PEM) and its private key (PKCS#8 DER).
    ///
    /// # Errors
    /// [`CaError::Mismatch`] when they do not belong together or the certificate is not a CA's.
    pub fn from_parts(certificate_pem: &[u8], key: &SecretSlice<u8>) -> Result<Self, CaError> {
        let der = pem::decode_one(certificate_pem, pem::CERTIFICATE)?;
        let key = request::key_from_der(key.expose_secret()).map_err(|_| CaError::Mismatch)?;
        Self::assemble(der.to_vec(), key)
    }

    /// The authority of this node: read from `certs_dir` and `sealed`, or made when neither holds a part of one.
    ///
    /// A key without a certificate is a first start that was cut off, or a lost certificate: the certificate is
    /// issued anew under that key, and every pin still holds.
    ///
    /// # Errors
    /// [`CaError::KeyMissing`] and [`CaError::Mismatch`]: a person must restore what is gone.
    pub fn ensure(
        certs_dir: &Path,
        sealed: &SealedDir<'_>,
        now: Timestamp,
        rng: &mut impl CryptoRngCore,
    ) -> Result<Self, CaError> {
        let path = certs_dir.join(CA_CERTIFICATE_FILE);
        let certificate = match file::read_public(&path, pem::MAX_BYTES as u64) {
            Ok(text) => Some(text),
            Err(FileError::Missing { .. }) => None,
            Err(error) => return Err(error.into()),
        };
        let authority = match (certificate, sealed.find(CA_KEY_SECRET)?) {
            (Some(text), Some(key)) => return Self::from_parts(&text, &key),
            (Some(_), None) => return Err(CaError::KeyMissing),
            (None, Some(key)) => {
                let key = request::key_from_der(key.expose_secret()).map_err(|_| CaError::Mismatch)?;
                Self::self_sign(key, rng, now, CA_VALIDITY)?
            }
            (None, None) => {
                let authority = Self::create(rng, now, CA_VALIDITY)?;
                // The key first: a certificate whose key was never stored would be a pin that nobody can serve.
                sealed.create(CA_KEY_SECRET, &authority.key_der())?;
                authority
            }
        };
        file::replace_public(&path, authority.certificate_pem().as_bytes())?;
        Ok(authority)
    }

    /// The private key as PKCS#8 DER, to be sealed at once.
    #[must_use]
    pub fn key_der(&self) -> SecretSlice<u8> {
        SecretSlice::from(self.issuer.key().serialized_der().to_vec())
    }

    /// The CA's certificate, DER.
    #[must_use]
    pub fn certificate_der(&self) -> &[u8] {
        &self.der
    }

    /// The CA's certificate, PEM.
    #[must_use]
    pub fn certificate_pem(&self) -> String {
        pem::encode(pem::CERTIFICATE, &self.der).to_string()
    }

    /// SHA-256 of the CA's public key: what clients pin, and what is shown at start.
    #[must_use]
    pub fn fingerprint(&self) -> Fingerprint {
        self.info.spki_sha256
    }

    /// What the CA's certificate says.
    #[must_use]
    pub fn info(&self) -> &CertificateInfo {
        &self.info
    }

    /// Issues a certificate for this node's server key. Usage: server authentication alone.
    ///
    /// # Errors
    /// [`CaError::Issue`] or, for a name that is no host name, [`CaError::Name`].
    pub fn issue_server(
        &self,
        key: &KeyPair,
        subject: &ServerSubject<'_>,
        now: Timestamp,
        rng: &mut impl CryptoRngCore,
    ) -> Result<IssuedCertificate, CaError> {
        let mut params = leaf_params(&subject.peer.to_string(), rng, self.period(now, subject.validity));
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        params.subject_alt_names.push(uri(&format!("{}{}", certificate::PEER_URI, subject.peer))?);
        for name in subject.names {
            params.subject_alt_names.push(match name {
                SanName::Ip(address) => SanType::IpAddress(*address),
                SanName::Dns(host) => {
                    SanType::DnsName(host.as_str().try_into().map_err(|_| CaError::Name(host.clone()))?)
                }
            });
        }
        self.sign(&params, key)
    }

    /// Issues a certificate for a client that logged in. Takes the public key from the request and nothing else.
    /// Usage: client authentication alone.
    ///
    /// # Errors
    /// [`CaError::Request`] when the request is refused.
    pub fn issue_client(
        &self,
        request_der: &[u8],
        subject: &ClientSubject,
        now: Timestamp,
        rng: &mut impl CryptoRngCore,
    ) -> Result<IssuedCertificate, CaError> {
        let key = request::public_key_of(request_der)?;
        let mut params = leaf_params(&subject.user.to_string(), rng, self.period(now, subject.validity));
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
        params.subject_alt_names = vec![
            uri(&format!("{}{}", certificate::USER_URI, subject.user))?,
            uri(&certificate::key_to_uri(&subject.key))?,
        ];
        self.sign(&params, &key)
    }

    /// Signs another authority's key with this one, so that clients that pinned this one follow to the other.
    ///
    /// # Errors
    /// [`CaError::Issue`] when the library refuses.
    pub fn cross_certify(
        &self,
        next: &Self,
        now: Timestamp,
        rng: &mut impl CryptoRngCore,
    ) -> Result<IssuedCertificate, CaError> {
        let key = next.issuer.key();
        let mut params = authority_params(&key.subject_public_key_info(), rng, self.period(now, CA_VALIDITY));
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        params.use_authority_key_identifier_extension = true;
        self.sign(&params, key)
    }

    fn sign(&self, params: &CertificateParams, key: &impl PublicKeyData) -> Result<IssuedCertificate, CaError> {
        let der = params.signed_by(key, &self.issuer).map_err(CaError::Issue)?.der().to_vec();
        let info = certificate::describe(&der)?;
        Ok(IssuedCertificate {
            pem: pem::encode(pem::CERTIFICATE, &der).to_string(),
            serial: info.serial,
            not_before: info.not_before,
            not_after: info.not_after,
            sha256: info.sha256,
            spki_sha256: info.spki_sha256,
            der,
        })
    }

    /// A leaf never outlives its CA.
    fn period(&self, now: Timestamp, validity: Duration) -> Period {
        let period = Period::from(now, validity);
        Period { begin: period.begin.max(self.info.not_before), end: period.end.min(self.info.not_after) }
    }
}

impl std::fmt::Debug for CertificateAuthority {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "CertificateAuthority({})", self.fingerprint())
    }
}

/// What a server certificate says.
#[derive(Debug, Clone, Copy)]
pub struct ServerSubject<'a> {
    /// Host names and addresses, for tools that compare them; BIB's client does not.
    pub names: &'a [SanName],
    /// The node.
    pub peer: PeerId,
    /// How long it counts; usually [`SERVER_VALIDITY`].
    pub validity: Duration,
}

/// What a client certificate says.
#[derive(Debug, Clone, Copy)]
pub struct ClientSubject {
    /// The user who logged in.
    pub user: UserId,
    /// The SSH key that was used.
    pub key: KeyFingerprint,
    /// How long it counts; usually [`CLIENT_VALIDITY`].
    pub validity: Duration,
}

/// Whether a certificate is due for renewal: within [`RENEW_BEFORE`] of its end, or not a certificate at all.
#[must_use]
pub fn needs_renewal(certificate_der: &[u8], now: Timestamp) -> bool {
    certificate::describe(certificate_der)
        .map_or(true, |info| shifted(now, RENEW_BEFORE) >= info.not_after || now < info.not_before)
}

struct Period {
    begin: Timestamp,
    end: Timestamp,
}

impl Period {
    fn from(now: Timestamp, validity: Duration) -> Self {
        let begin = now.plus_seconds(-i64::try_from(BACKDATE.as_secs()).unwrap_or(0));
        Self { begin, end: shifted(now, validity) }
    }
}

fn shifted(now: Timestamp, by: Duration) -> Timestamp {
    now.plus_seconds(i64::try_from(by.as_secs()).unwrap_or(i64::MAX))
}

fn authority_params(spki: &[u8], rng: &mut impl CryptoRngCore, period: Period) -> CertificateParams {
    let name = format!("BIB CA {}", &Fingerprint::of(spki).to_string()[..16]);
    let mut params = base_params(&name, rng, period);
    // One authority below this one: what `cross_certify` makes.
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(1));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    params
}

fn leaf_params(name: &str, rng: &mut impl CryptoRngCore, period: Period) -> CertificateParams {
    let mut params = base_params(name, rng, period);
    params.is_ca = IsCa::ExplicitNoCa;
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.use_authority_key_identifier_extension = true;
    params
}

fn base_params(name: &str, rng: &mut impl CryptoRngCore, period: Period) -> CertificateParams {
    let mut serial = [0u8; 16];
    rng.fill_bytes(&mut serial);
    // Positive and of one length, so that its hex is the same wherever it is written: 126 random bits remain.
    serial[0] = (serial[0] & 0x3f) | 0x40;
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, name);
    params.serial_number = Some(SerialNumber::from_slice(&serial));
    params.not_before = period.begin.to_offset();
    params.not_after = period.end.to_offset();
    params
}

fn uri(text: &str) -> Result<SanType, CaError> {
    text.try_into().map(SanType::URI).map_err(CaError::Issue)
}
