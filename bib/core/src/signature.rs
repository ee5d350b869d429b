//! What signatures are made over, and the log-in statement.
//!
//! Nothing here signs or verifies: keys live in `bib-identity`. This module only says which bytes are signed, so that
//! a signature made for one purpose can never be shown for another.

use serde_json::Value;

use crate::canonical::{self, CanonicalError};
use crate::fields::{Extra, FieldError, Fields, put, put_some};
use crate::{Hash, KeyFingerprint, PeerId, Timestamp};

/// The SSHSIG namespace in which a person signs a version's statement.
pub const VERSION_NAMESPACE: &str = "bib-version-v1";

/// The SSHSIG namespace in which a person signs a log-in statement.
pub const LOGIN_NAMESPACE: &str = "bib-login-v1";

/// The `format` of a log-in statement.
pub const LOGIN_FORMAT: &str = "bib-login/1";

/// The largest log-in statement, in bytes.
pub const MAX_LOGIN_BYTES: usize = 4096;

/// What a node's Ed25519 signature is for. Part of the signed bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Purpose {
    /// A record, other than a grant or a succession.
    Record,
    /// A grant record.
    Grant,
    /// A gossip message.
    Gossip,
    /// A node's answer in a log-in.
    Login,
    /// A succession record, signed by the node key or the recovery key.
    Succession,
    /// The next owner's acceptance of a transfer.
    Transfer,
    /// A version's statement whose author is a service.
    Version,
    /// A backup's manifest, and the head of an archived piece of the write-ahead log.
    Backup,
    /// The answer of whoever holds the recovery sheet, signed by the recovery key.
    Recovery,
    /// What left the audit log.
    Detach,
}

impl Purpose {
    /// The word that stands in the signed bytes.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Record => "record",
            Self::Grant => "grant",
            Self::Gossip => "gossip",
            Self::Login => "login",
            Self::Succession => "succession",
            Self::Transfer => "transfer",
            Self::Version => "version",
            Self::Backup => "backup",
            Self::Recovery => "recovery",
            Self::Detach => "detach",
        }
    }
}

/// The bytes that a node key signs for `body`: `bib-<purpose>-v1`, a zero byte, the body.
#[must_use]
pub fn signed_bytes(purpose: Purpose, body: &[u8]) -> Vec<u8> {
    [b"bib-", purpose.as_str().as_bytes(), b"-v1\0", body].concat()
}

/// What a person signs to log in: the server's challenge, bound to the server and to the key that will be certified.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LoginStatement {
    /// The server's challenge, 32 random bytes.
    pub challenge: [u8; 32],
    /// The node that asked.
    pub node: PeerId,
    /// SHA-256 of the server's leaf certificate (DER) as the client saw it; absent on a Unix socket.
    pub server_certificate: Option<Hash>,
    /// SHA-256 of the certificate signing request (DER).
    pub csr: Hash,
    /// The key that signs.
    pub key: KeyFingerprint,
    /// When it was signed, by the client's clock.
    pub time: Timestamp,
    /// Members this version does not know.
    pub extra: Extra,
}

/// Why bytes are not a log-in statement.
#[derive(Debug, thiserror::Error)]
pub enum LoginError {
    /// More than [`MAX_LOGIN_BYTES`].
    #[error("a log-in statement of {0} bytes, at most {MAX_LOGIN_BYTES} are allowed")]
    TooLong(usize),
    /// Not canonical JSON.
    #[error("the log-in statement: {0}")]
    Canonical(#[from] CanonicalError),
    /// A member is missing or wrong.
    #[error("the log-in statement's {0}")]
    Field(#[from] FieldError),
    /// Another format or major version.
    #[error("a log-in statement of the unknown format `{0}`")]
    Format(String),
}

impl LoginStatement {
    /// The canonical bytes that are signed in the namespace [`LOGIN_NAMESPACE`].
    ///
    /// # Errors
    /// When `extra` holds what canonical JSON cannot say.
    pub fn to_bytes(&self) -> Result<Vec<u8>, CanonicalError> {
        let mut map = self.extra.clone();
        put(&mut map, "format", LOGIN_FORMAT)?;
        put(&mut map, "challenge", &hex::encode(self.challenge))?;
        put(&mut map, "node", &self.node)?;
        put_some(&mut map, "server_certificate", self.server_certificate.as_ref())?;
        put(&mut map, "csr", &self.csr)?;
        put(&mut map, "key", &self.key)?;
        put(&mut map, "time", &self.time)?;
        canonical::to_vec(&Value::Object(map))
    }

    /// Reads the bytes that were signed. Whether they answer this connection's challenge is the caller's to compare.
    ///
    /// # Errors
    /// When the bytes are not the one spelling of a log-in statement.
    pub fn parse(bytes: &[u8]) -> Result<Self, LoginError> {
        if bytes.len() > MAX_LOGIN_BYTES {
            return Err(LoginError::TooLong(bytes.len()));
        }
        let mut fields = Fields::of(canonical::parse(bytes)?, "")?;
        let format: String = fields.required("format")?;
        if format != LOGIN_FORMAT {
            return Err(LoginError::Format(format.chars().take(80).collect()));
        }
        let statement = Self {
            challenge: challenge(&mut fields)?,
            node: fields.required("node")?,
            server_certificate: fields.optional("server_certificate")?,
            csr: fields.required("csr")?,
            key: fields.required("key")?,
            time: fields.required("time")?,
            extra: fields.rest(),
        };
        if statement.to_bytes()? == bytes { Ok(statement) } else { Err(CanonicalError::NotCanonical.into()) }
    }
}

/// The member `challenge` of a statement: 32 bytes as hex digits.
pub(crate) fn challenge(fields: &mut Fields) -> Result<[u8; 32], FieldError> {
    let text: String = fields.required("challenge")?;
    let mut bytes = [0; 32];
    hex::decode_to_slice(&text, &mut bytes).map_err(|_| fields.error("challenge", "64 hex digits are needed"))?;
    Ok(bytes)
}
