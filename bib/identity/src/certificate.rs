//! What a certificate says, read from bytes that may come from anyone.
//!
//! Fingerprints are SHA-256. A CA is pinned by the fingerprint of its public key (SPKI), so that a CA certificate can
//! be issued anew under the same key.

use std::fmt;
use std::str::FromStr;

use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD_NO_PAD, URL_SAFE_NO_PAD};
use bib_core::{Hash, KeyFingerprint, PeerId, Timestamp, UserId};
use serde::{Deserialize, Serialize};
use x509_parser::certificate::X509Certificate;
use x509_parser::extensions::GeneralName;
use x509_parser::prelude::FromDer as _;

/// The URI SAN of a server certificate is this and the peer id.
pub const PEER_URI: &str = "bib:";
/// One URI SAN of a client certificate is this and the user's UUID.
pub const USER_URI: &str = "bib-user:";
/// The other URI SAN of a client certificate is this and the SHA-256 of the SSH key in base64url.
pub const KEY_URI: &str = "bib-key:SHA256:";
/// The largest certificate that is looked at, in bytes.
pub const MAX_CERTIFICATE_BYTES: usize = 16 * 1024;
/// The most names that are listed of one certificate.
const MAX_NAMES: usize = 256;

/// Why bytes are not a certificate of ours.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CertificateError {
    /// Not an X.509 certificate, or bytes follow it, or it is larger than [`MAX_CERTIFICATE_BYTES`].
    #[error("the bytes are not an X.509 certificate")]
    Malformed,
    /// A valid certificate, but not one that BIB issues to people.
    #[error("the certificate is not a client certificate of BIB: {0}")]
    NotAClient(&'static str),
    /// The text is not a fingerprint.
    #[error("`{0}` is not a SHA-256 fingerprint: 64 hex digits are needed")]
    Fingerprint(String),
}

/// A SHA-256 fingerprint of a certificate or of its public key. Text: 64 lower-case hex digits.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Fingerprint(Hash);

impl Fingerprint {
    /// The fingerprint of these DER bytes.
    #[must_use]
    pub fn of(der: &[u8]) -> Self {
        Self(Hash::of(der))
    }

    /// The digest.
    #[must_use]
    pub const fn hash(&self) -> &Hash {
        &self.0
    }

    /// For eyes: eight groups of eight digits. [`FromStr`] reads it back.
    #[must_use]
    pub fn grouped(&self) -> String {
        let text = self.to_string();
        let groups: Vec<&str> = (0..64).step_by(8).map(|i| &text[i..i + 8]).collect();
        groups.join(" ")
    }
}

impl From<Hash> for Fingerprint {
    fn from(hash: Hash) -> Self {
        Self(hash)
    }
}

impl fmt::Display for Fingerprint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl FromStr for Fingerprint {
    type Err = CertificateError;

    /// Takes either case, with or without colons and spaces, with or without a leading `sha256:`.
    fn from_str(text: &str) -> Result<Self, CertificateError> {
        let error = || CertificateError::Fingerprint(text.chars().take(80).collect());
        if text.len() > 200 {
            return Err(error());
        }
        let lower = text.to_ascii_lowercase();
        let digits: String =
            lower.strip_prefix("sha256:").unwrap_or(&lower).chars().filter(|c| !matches!(c, ':' | ' ')).collect();
        digits.parse().map(Self).map_err(|_| error())
    }
}

/// What a certificate says, checked for form but not for trust.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct CertificateInfo {
    /// Who it is for, as a distinguished name.
    pub subject: String,
    /// Who signed it, as a distinguished name.
    pub issuer: String,
    /// The serial number in lower-case hex.
    pub serial: String,
    /// The first moment at which it counts.
    pub not_before: Timestamp,
    /// The last moment at which it counts.
    pub not_after: Timestamp,
    /// Whether it is a CA's (basic constraints).
    pub is_ca: bool,
    /// Whether its key may sign certificates (key usage; also when that is not stated).
    pub may_certify: bool,
    /// Whether it may stand for a server (extended key usage).
    pub server_auth: bool,
    /// Whether it may stand for a client (extended key usage).
    pub client_auth: bool,
    /// Whether it names an extended key usage besides these two, or any.
    pub other_usage: bool,
    /// DNS names, addresses and URIs, as text.
    pub names: Vec<String>,
    /// SHA-256 of the certificate.
    pub sha256: Fingerprint,
    /// SHA-256 of its public key (SPKI): what is pinned of a CA.
    pub spki_sha256: Fingerprint,
}

impl CertificateInfo {
    /// Whether it counts at `now`.
    #[must_use]
    pub fn is_valid_at(&self, now: Timestamp) -> bool {
        self.not_before <= now && now <= self.not_after
    }

    /// The peer id of a server certificate: exactly one `bib:` name, and well formed.
    #[must_use]
    pub fn peer_id(&self) -> Option<PeerId> {
        self.only(PEER_URI)?.parse().ok()
    }

    /// The user of a client certificate.
    #[must_use]
    pub fn user_id(&self) -> Option<UserId> {
        self.only(USER_URI)?.parse().ok()
    }

    /// The SSH key that a client certificate was issued for.
    #[must_use]
    pub fn key(&self) -> Option<KeyFingerprint> {
        key_from_uri(self.only(KEY_URI)?)
    }

    /// What follows `prefix` in the only name that begins with it.
    fn only(&self, prefix: &str) -> Option<&str> {
        let mut found = self.names.iter().filter_map(|n| n.strip_prefix("URI:")?.strip_prefix(prefix));
        let first = found.next()?;
        found.next().is_none().then_some(first)
    }
}

/// The URI SAN for an SSH key: base64 with `+` and `/` is not a URI, base64url is.
pub(crate) fn key_to_uri(key: &KeyFingerprint) -> String {
    format!("{KEY_URI}{}", URL_SAFE_NO_PAD.encode(key.digest().as_bytes()))
}

fn key_from_uri(encoded: &str) -> Option<KeyFingerprint> {
    let digest = URL_SAFE_NO_PAD.decode(encoded).ok().filter(|d| d.len() == 32)?;
    format!("SHA256:{}", STANDARD_NO_PAD.encode(digest)).parse().ok()
}

/// Who is on the other end of a TLS connection, from the client certificate that the handshake has verified.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ClientIdentity {
    /// The user.
    pub user_id: UserId,
    /// The SSH key that logged in.
    pub key: KeyFingerprint,
    /// The serial number in lower-case hex: the key into the table `certificates`.
    pub serial: String,
    /// SHA-256 of the certificate.
    pub certificate_sha256: Fingerprint,
    /// SHA-256 of the certificate's public key: what a token is bound to.
    pub spki_sha256: Fingerprint,
    /// The last moment at which it counts: a live stream ends then.
    pub not_after: Timestamp,
}

impl ClientIdentity {
    /// Reads the identity out of a client certificate. Says nothing about who signed it.
    ///
    /// # Errors
    /// [`CertificateError::Malformed`], or [`CertificateError::NotAClient`] with what is missing.
    pub fn from_der(der: &[u8]) -> Result<Self, CertificateError> {
        let info = describe(der)?;
        if info.is_ca {
            return Err(CertificateError::NotAClient("it is a CA certificate"));
        }
        if !info.client_auth || info.server_auth || info.other_usage {
            return Err(CertificateError::NotAClient("its usage is not client authentication alone"));
        }
        let user_id = info.user_id().ok_or(CertificateError::NotAClient("it names no user"))?;
        let key = info.key().ok_or(CertificateError::NotAClient("it names no SSH key"))?;
        Ok(Self {
            user_id,
            key,
            certificate_sha256: info.sha256,
            spki_sha256: info.spki_sha256,
            not_after: info.not_after,
            serial: info.serial,
        })
    }
}

/// Parses DER of at most [`MAX_CERTIFICATE_BYTES`] with nothing after it.
pub(crate) fn parse(der: &[u8]) -> Result<X509Certificate<'_>, CertificateError> {
    if der.len() > MAX_CERTIFICATE_BYTES {
        return Err(CertificateError::Malformed);
    }
    match X509Certificate::from_der(der) {
        Ok(([], certificate)) => Ok(certificate),
        _ => Err(CertificateError::Malformed),
    }
}

/// What this certificate says, for `bib cert info` and for the checks of both ends.
///
/// # Errors
/// [`CertificateError::Malformed`] for anything but one DER certificate with well-formed extensions.
pub fn describe(der: &[u8]) -> Result<CertificateInfo, CertificateError> {
    let certificate = parse(der)?;
    let malformed = |_| CertificateError::Malformed;
    let usage = certificate.extended_key_usage().map_err(malformed)?.map(|e| e.value);
    let is_ca = certificate.basic_constraints().map_err(malformed)?.is_some_and(|e| e.value.ca);
    let may_certify = certificate.key_usage().map_err(malformed)?.is_none_or(|e| e.value.key_cert_sign());
    let names = match certificate.subject_alternative_name().map_err(malformed)? {
        Some(extension) if extension.value.general_names.len() > MAX_NAMES => return Err(CertificateError::Malformed),
        Some(extension) => extension.value.general_names.iter().filter_map(name_text).collect(),
        None => Vec::new(),
    };
    let moment = |t: x509_parser::time::ASN1Time| Timestamp::from_micros(0).plus_seconds(t.timestamp());
    let (server_auth, client_auth) = usage.map_or((false, false), |u| (u.server_auth, u.client_auth));
    let other_usage = usage.is_some_and(|u| {
        u.any || u.code_signing || u.email_protection || u.time_stamping || u.ocsp_signing || !u.other.is_empty()
    });
    Ok(CertificateInfo {
        subject: certificate.subject().to_string(),
        issuer: certificate.issuer().to_string(),
        serial: hex::encode(certificate.raw_serial()),
        not_before: moment(certificate.validity().not_before),
        not_after: moment(certificate.validity().not_after),
        is_ca,
        may_certify,
        server_auth,
        client_auth,
        other_usage,
        names,
        sha256: Fingerprint::of(der),
        spki_sha256: Fingerprint::of(certificate.public_key().raw),
    })
}

fn name_text(name: &GeneralName<'_>) -> Option<String> {
    match name {
        GeneralName::DNSName(name) => Some(format!("DNS:{name}")),
        GeneralName::URI(uri) => Some(format!("URI:{uri}")),
        GeneralName::RFC822Name(mail) => Some(format!("email:{mail}")),
        GeneralName::IPAddress(bytes) => match **bytes {
            [a, b, c, d] => Some(format!("IP:{}", std::net::Ipv4Addr::new(a, b, c, d))),
            _ => <[u8; 16]>::try_from(*bytes).ok().map(|b| format!("IP:{}", std::net::Ipv6Addr::from(b))),
        },
        _ => None,
    }
}

/// Whether `issuer` names itself as the issuer of `der` and its key signed it. Dates and usages are not looked at.
#[must_use]
pub fn is_signed_by(der: &[u8], issuer: &[u8]) -> bool {
    let (Ok(certificate), Ok(issuer)) = (parse(der), parse(issuer)) else { return false };
    certificate.issuer().as_raw() == issuer.subject().as_raw()
        && certificate.verify_signature(Some(issuer.public_key())).is_ok()
}
