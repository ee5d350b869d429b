//! SSH public keys that BIB accepts, and signatures by them. Everything here may come from strangers.

use std::fmt;
use std::str::FromStr;

use bib_core::KeyFingerprint;
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use ssh_key::public::KeyData;
use ssh_key::{Algorithm, EcdsaCurve, HashAlg, SshSig};

use super::{SignatureError, SshError};

/// The longest public key line, in bytes: an RSA key of 8192 bits has about 1,500, and comments vary.
pub const MAX_LINE_BYTES: usize = 8 * 1024;
/// The longest SSHSIG text, in bytes: two RSA-sized numbers in base64.
pub const MAX_SIGNATURE_BYTES: usize = 16 * 1024;
/// The longest comment that is kept, in characters.
const MAX_COMMENT_CHARS: usize = 256;
/// RSA sizes in bits: below is weak, above is a way to keep a verifier busy.
const RSA_BITS: std::ops::RangeInclusive<usize> = 2048..=4096;

/// The types of key that BIB accepts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum KeyKind {
    /// `ssh-ed25519`.
    Ed25519,
    /// `ecdsa-sha2-nistp256`.
    EcdsaP256,
    /// `ssh-rsa` of 2048 to 4096 bits; signs with SHA-2 through an agent.
    Rsa,
}

impl KeyKind {
    /// The name that OpenSSH writes.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Ed25519 => "ssh-ed25519",
            Self::EcdsaP256 => "ecdsa-sha2-nistp256",
            Self::Rsa => "ssh-rsa",
        }
    }
}

/// An SSH public key of a type that BIB accepts.
#[derive(Clone)]
pub struct PublicKey {
    key: ssh_key::PublicKey,
    kind: KeyKind,
    wire: Vec<u8>,
}

impl PublicKey {
    /// Reads a key in SSH wire format, as agents send it.
    ///
    /// # Errors
    /// [`SshError::PublicKey`] or [`SshError::Unsupported`].
    pub fn from_wire(bytes: &[u8]) -> Result<Self, SshError> {
        if bytes.len() > MAX_LINE_BYTES {
            return Err(SshError::PublicKey);
        }
        Self::from_library(ssh_key::PublicKey::from_bytes(bytes).map_err(|_| SshError::PublicKey)?)
    }

    pub(crate) fn from_library(mut key: ssh_key::PublicKey) -> Result<Self, SshError> {
        let kind = kind_of(key.key_data())?;
        let wire = key.to_bytes().map_err(SshError::Key)?;
        key.set_comment(printable(key.comment()));
        Ok(Self { key, kind, wire })
    }

    pub(crate) fn with_comment(mut self, comment: &str) -> Self {
        self.key.set_comment(printable(comment));
        self
    }

    /// The SHA-256 fingerprint, as `ssh-keygen -l` prints it: who a person is.
    #[must_use]
    pub fn fingerprint(&self) -> KeyFingerprint {
        KeyFingerprint::of_wire_key(&self.wire)
    }

    /// The type of key.
    #[must_use]
    pub const fn kind(&self) -> KeyKind {
        self.kind
    }

    /// The key in SSH wire format.
    #[must_use]
    pub fn wire(&self) -> &[u8] {
        &self.wire
    }

    /// What the owner wrote after the key. Printable, but not to be believed.
    #[must_use]
    pub fn comment(&self) -> &str {
        self.key.comment()
    }

    /// The line without its comment: the canonical text of the key.
    #[must_use]
    pub fn to_line(&self) -> String {
        use base64::Engine as _;
        format!("{} {}", self.kind.as_str(), base64::engine::general_purpose::STANDARD.encode(&self.wire))
    }

    pub(crate) fn key_data(&self) -> &KeyData {
        self.key.key_data()
    }
}

fn kind_of(key: &KeyData) -> Result<KeyKind, SshError> {
    match key {
        KeyData::Ed25519(_) => Ok(KeyKind::Ed25519),
        KeyData::Ecdsa(key) if key.curve() == EcdsaCurve::NistP256 => Ok(KeyKind::EcdsaP256),
        KeyData::Rsa(rsa) => {
            let bits = rsa.n.as_positive_bytes().map_or(0, |n| n.len() * 8 - leading_zero_bits(n));
            if RSA_BITS.contains(&bits) {
                Ok(KeyKind::Rsa)
            } else {
                Err(SshError::Unsupported(format!("ssh-rsa with {bits} bits")))
            }
        }
        other => Err(SshError::Unsupported(other.algorithm().to_string())),
    }
}

fn printable(comment: &str) -> String {
    comment.chars().filter(|c| !c.is_control()).take(MAX_COMMENT_CHARS).collect()
}

fn leading_zero_bits(bytes: &[u8]) -> usize {
    bytes.first().map_or(0, |b| b.leading_zeros() as usize)
}

impl FromStr for PublicKey {
    type Err = SshError;

    /// Reads a line of `authorized_keys` without options, or the content of a `.pub` file.
    fn from_str(line: &str) -> Result<Self, SshError> {
        let line = line.trim();
        if line.len() > MAX_LINE_BYTES || line.contains('\n') {
            return Err(SshError::PublicKey);
        }
        Self::from_library(ssh_key::PublicKey::from_openssh(line).map_err(|_| SshError::PublicKey)?)
    }
}

impl fmt::Display for PublicKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.to_line())
    }
}

impl fmt::Debug for PublicKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "PublicKey({} {})", self.kind.as_str(), self.fingerprint())
    }
}

impl PartialEq for PublicKey {
    fn eq(&self, other: &Self) -> bool {
        self.wire == other.wire
    }
}

impl Eq for PublicKey {}

impl Serialize for PublicKey {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for PublicKey {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = std::borrow::Cow::<'de, str>::deserialize(deserializer)?;
        text.parse().map_err(serde::de::Error::custom)
    }
}

/// An SSHSIG as PEM text, as `ssh-keygen -Y sign` writes it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SshSignature(String);

impl SshSignature {
    pub(crate) fn from_pem(pem: String) -> Self {
        Self(pem)
    }

    /// The text, from `-----BEGIN SSH SIGNATURE-----` on.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The text.
    #[must_use]
    pub fn into_string(self) -> String {
        self.0
    }
}

impl fmt::Display for SshSignature {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Checks an SSHSIG by `key` over `message` in `namespace`.
///
/// # Errors
/// [`SignatureError`]: another key, namespace or message; SHA-1 or DSA; anything that is not an SSHSIG.
pub fn verify(key: &PublicKey, namespace: &str, message: &[u8], pem: &str) -> Result<(), SignatureError> {
    if pem.len() > MAX_SIGNATURE_BYTES {
        return Err(SignatureError::TooLong);
    }
    let signature = SshSig::from_pem(pem.trim()).map_err(|_| SignatureError::Malformed)?;
    if signature.version() != SshSig::VERSION || !signature.reserved().is_empty() {
        return Err(SignatureError::Malformed);
    }
    if signature.namespace() != namespace {
        return Err(SignatureError::OtherNamespace(signature.namespace().chars().take(80).collect()));
    }
    if signature.public_key() != key.key_data() {
        return Err(SignatureError::OtherKey);
    }
    check_algorithm(key.kind, &signature.algorithm())?;
    key.key.verify(namespace, message, &signature).map_err(|_| SignatureError::Wrong)
}

/// RSA with SHA-1 is `ssh-rsa` without a hash; the library would also refuse it, but this must not depend on that.
pub(crate) fn check_algorithm(kind: KeyKind, algorithm: &Algorithm) -> Result<(), SignatureError> {
    let fits = match (kind, algorithm) {
        (KeyKind::Ed25519, Algorithm::Ed25519) => true,
        (KeyKind::EcdsaP256, Algorithm::Ecdsa { curve }) => *curve == EcdsaCurve::NistP256,
        (KeyKind::Rsa, Algorithm::Rsa { hash }) => matches!(hash, Some(HashAlg::Sha256 | HashAlg::Sha512)),
        _ => false,
    };
    if fits { Ok(()) } else { Err(SignatureError::Algorithm(algorithm.to_string())) }
}
