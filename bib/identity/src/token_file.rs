//! The token file: private key, certificate and token as one PEM text (0600), for scripts and for the client itself.
//!
//! Three blocks in any order: `PRIVATE KEY` (PKCS#8, P-256), `CERTIFICATE` (a client certificate to that key) and
//! `BIB TOKEN` (the token's ASCII text). The token counts only on a connection with that key.

use std::fmt;
use std::path::Path;

use secrecy::{ExposeSecret as _, SecretSlice, SecretString};
use zeroize::Zeroizing;

use crate::certificate::{self, CertificateError, CertificateInfo, ClientIdentity, Fingerprint};
use crate::file::{self, FileError};
use crate::pem::{self, PemError};
use crate::request;

/// The largest token file that is read, in bytes.
pub const MAX_BYTES: u64 = 64 * 1024;
/// The longest token, in characters.
pub const MAX_TOKEN_CHARS: usize = 512;
const TOKEN: &str = "BIB TOKEN";

/// Why a text is not a token file.
#[derive(Debug, thiserror::Error)]
pub enum TokenFileError {
    /// The file is missing, empty, open to others, or cannot be read or written.
    #[error(transparent)]
    File(#[from] FileError),
    /// The blocks are not as they should be.
    #[error("the token file: {0}")]
    Pem(#[from] PemError),
    /// The certificate is not a client certificate of BIB.
    #[error("the token file: {0}")]
    Certificate(#[from] CertificateError),
    /// The key is not P-256, or belongs to another certificate.
    #[error("the token file's key and certificate do not belong together")]
    Mismatch,
    /// The token is empty, too long or not printable ASCII.
    #[error("the token file's token is not one")]
    Token,
}

impl TokenFileError {
    /// What a person can do about it.
    #[must_use]
    pub fn hint(&self) -> Option<&'static str> {
        match self {
            Self::File(error) => error.hint(),
            _ => Some("log in again, or make a new token file with `bib token create`"),
        }
    }
}

/// A key, the certificate to it, and a token bound to it.
pub struct TokenFile {
    key: SecretSlice<u8>,
    certificate: Vec<u8>,
    token: SecretString,
    info: CertificateInfo,
    identity: ClientIdentity,
}

impl TokenFile {
    /// Puts together what a log-in or `token create` returned.
    ///
    /// # Errors
    /// [`TokenFileError`] when the parts do not belong together.
    pub fn new(key_pem: &SecretString, certificate_der: &[u8], token: SecretString) -> Result<Self, TokenFileError> {
        let key = pem::decode_one(key_pem.expose_secret().as_bytes(), pem::PRIVATE_KEY)?;
        Self::assemble(key, certificate_der.to_vec(), token)
    }

    fn assemble(
        mut key: Zeroizing<Vec<u8>>,
        certificate: Vec<u8>,
        token: SecretString,
    ) -> Result<Self, TokenFileError> {
        let info = certificate::describe(&certificate)?;
        let identity = ClientIdentity::from_der(&certificate)?;
        let pair = request::key_from_der(&key).map_err(|_| TokenFileError::Mismatch)?;
        if Fingerprint::of(&rcgen::PublicKeyData::subject_public_key_info(&pair)) != info.spki_sha256 {
            return Err(TokenFileError::Mismatch);
        }
        let text = token.expose_secret();
        if text.is_empty() || text.len() > MAX_TOKEN_CHARS || !text.bytes().all(|b| b.is_ascii_graphic()) {
            return Err(TokenFileError::Token);
        }
        Ok(Self { key: SecretSlice::from(std::mem::take(&mut *key)), certificate, token, info, identity })
    }

    /// Reads the text of a token file.
    ///
    /// # Errors
    /// [`TokenFileError`] for any text that is not exactly one key, its certificate and one token.
    pub fn parse(text: &[u8]) -> Result<Self, TokenFileError> {
        let mut blocks = pem::decode(text)?;
        let key = pem::take_one(&mut blocks, pem::PRIVATE_KEY)?;
        let certificate = pem::take_one(&mut blocks, pem::CERTIFICATE)?;
        let token = pem::take_one(&mut blocks, TOKEN)?;
        let token = std::str::from_utf8(&token).map_err(|_| TokenFileError::Token)?;
        Self::assemble(key, certificate.to_vec(), SecretString::from(token))
    }

    /// Reads a token file, which must be readable by its owner alone.
    ///
    /// # Errors
    /// As [`Self::parse`], and [`TokenFileError::File`].
    pub fn load(path: &Path) -> Result<Self, TokenFileError> {
        Self::parse(&file::read_private(path, MAX_BYTES)?)
    }

    /// Reads a token file that lies in two: `key`, which must be readable by its owner alone, and `certificate`. Which
    /// block lies in which does not matter, but for the key and the token, which are secret.
    ///
    /// # Errors
    /// As [`Self::load`].
    pub fn load_pair(certificate: &Path, key: &Path) -> Result<Self, TokenFileError> {
        let mut text = file::read_private(key, MAX_BYTES)?;
        if certificate != key {
            text.push(b'\n');
            text.extend_from_slice(&file::read_public(certificate, MAX_BYTES)?);
        }
        Self::parse(&text)
    }

    /// Writes a token file that must not exist yet (0600).
    ///
    /// # Errors
    /// [`FileError::Exists`] when there is one.
    pub fn create(&self, path: &Path) -> Result<(), TokenFileError> {
        Ok(file::create_private(path, self.to_text().as_bytes())?)
    }

    /// The text of the file. Wiped when dropped.
    #[must_use]
    pub fn to_text(&self) -> Zeroizing<String> {
        let blocks = [
            pem::encode(pem::PRIVATE_KEY, self.key.expose_secret()),
            pem::encode(pem::CERTIFICATE, &self.certificate),
            pem::encode(TOKEN, self.token.expose_secret().as_bytes()),
        ];
        let mut text = Zeroizing::new(String::with_capacity(blocks.iter().map(|b| b.len()).sum()));
        blocks.iter().for_each(|block| text.push_str(block));
        text
    }

    /// What the certificate says.
    #[must_use]
    pub fn info(&self) -> &CertificateInfo {
        &self.info
    }

    /// Who the certificate stands for.
    #[must_use]
    pub fn identity(&self) -> &ClientIdentity {
        &self.identity
    }

    /// The certificate, DER.
    #[must_use]
    pub fn certificate_der(&self) -> &[u8] {
        &self.certificate
    }

    /// The private key, PKCS#8 DER.
    #[must_use]
    pub fn key_der(&self) -> &SecretSlice<u8> {
        &self.key
    }

    /// The token.
    #[must_use]
    pub fn token(&self) -> &SecretString {
        &self.token
    }
}

impl fmt::Debug for TokenFile {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TokenFile").field("identity", &self.identity).finish_non_exhaustive()
    }
}
