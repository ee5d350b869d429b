//! Certificate requests: a client makes its own key and asks for a certificate; the CA takes the public key, no more.

use rcgen::{CertificateParams, DistinguishedName, KeyPair, PKCS_ECDSA_P256_SHA256, SubjectPublicKeyInfo};
use rustls::pki_types::PrivatePkcs8KeyDer;
use secrecy::SecretString;
use x509_parser::certification_request::X509CertificationRequest;
use x509_parser::prelude::FromDer as _;

use crate::certificate::Fingerprint;
use crate::pem;

/// The largest request that is looked at, in bytes.
pub const MAX_REQUEST_BYTES: usize = 8 * 1024;

/// Why a certificate request cannot be made or is refused.
#[derive(Debug, thiserror::Error)]
pub enum RequestError {
    /// Not a PKCS#10 request, or bytes follow it, or it is larger than [`MAX_REQUEST_BYTES`].
    #[error("the bytes are not a certificate request of at most {MAX_REQUEST_BYTES} bytes")]
    Malformed,
    /// The request is not signed by the key that it names.
    #[error("the certificate request is not signed by its own key")]
    Signature,
    /// The key is not ECDSA P-256.
    #[error("the certificate request's key is not ECDSA P-256")]
    KeyType,
    /// The library failed to make a key or a request.
    #[error("make a certificate request")]
    Make(#[source] rcgen::Error),
}

/// A new key and the request for its certificate.
#[derive(Debug)]
pub struct CertificateRequest {
    /// The private key as PKCS#8 PEM. Stays with the client.
    pub key_pem: SecretString,
    /// The request to send, DER.
    pub der: Vec<u8>,
    /// SHA-256 of the public key, to find it again in the certificate.
    pub spki_sha256: Fingerprint,
}

impl CertificateRequest {
    /// Makes a P-256 key and a request signed by it. *ring* draws the key from the operating system's generator.
    ///
    /// # Errors
    /// [`RequestError::Make`] when the operating system gives no randomness.
    pub fn generate() -> Result<Self, RequestError> {
        let key = generate_key().map_err(RequestError::Make)?;
        let mut params = CertificateParams::default();
        // The CA takes nothing but the key, so a request says nothing about who asks.
        params.distinguished_name = DistinguishedName::new();
        let request = params.serialize_request(&key).map_err(RequestError::Make)?;
        Ok(Self {
            spki_sha256: Fingerprint::of(&rcgen::PublicKeyData::subject_public_key_info(&key)),
            key_pem: key_to_pem(&key),
            der: request.der().to_vec(),
        })
    }
}

/// The public key of a request, after its form, size, key type and own signature were checked. Names, usages and
/// extensions that the request asks for are not looked at.
///
/// # Errors
/// [`RequestError::Malformed`], [`RequestError::KeyType`] or [`RequestError::Signature`].
pub(crate) fn public_key_of(der: &[u8]) -> Result<SubjectPublicKeyInfo, RequestError> {
    if der.len() > MAX_REQUEST_BYTES {
        return Err(RequestError::Malformed);
    }
    let (rest, request) = X509CertificationRequest::from_der(der).map_err(|_| RequestError::Malformed)?;
    if !rest.is_empty() {
        return Err(RequestError::Malformed);
    }
    let key = &request.certification_request_info.subject_pki;
    let info = SubjectPublicKeyInfo::from_der(key.raw).map_err(|_| RequestError::KeyType)?;
    // An uncompressed point is what rcgen writes and ring reads; the algorithm alone would admit other encodings.
    let point = key.subject_public_key.data.as_ref();
    if *rcgen::PublicKeyData::algorithm(&info) != PKCS_ECDSA_P256_SHA256 || point.len() != 65 || point[0] != 4 {
        return Err(RequestError::KeyType);
    }
    request.verify_signature().map_err(|_| RequestError::Signature)?;
    Ok(info)
}

/// A new P-256 key.
pub(crate) fn generate_key() -> Result<KeyPair, rcgen::Error> {
    KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256)
}

pub(crate) fn key_to_pem(key: &KeyPair) -> SecretString {
    SecretString::from(pem::encode(pem::PRIVATE_KEY, key.serialized_der()).as_str())
}

/// Reads a P-256 key from PKCS#8 DER.
pub(crate) fn key_from_der(der: &[u8]) -> Result<KeyPair, rcgen::Error> {
    KeyPair::from_pkcs8_der_and_sign_algo(&PrivatePkcs8KeyDer::from(der), &PKCS_ECDSA_P256_SHA256)
}
