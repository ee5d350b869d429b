//! What an admin signs to open the database to a person for a while (break-glass).
//!
//! Nothing here signs or verifies. The statement binds the node, its challenge, who asks, why, for how long and what for,
//! so that a signature is worth nothing elsewhere, later, or for more.

use serde_json::Value;

use crate::access::GlassAccess;
use crate::canonical::{self, CanonicalError};
use crate::fields::{Extra, FieldError, Fields, put};
use crate::signature::challenge;
use crate::{KeyFingerprint, PeerId, Timestamp};

/// The SSHSIG namespace in which an admin signs a break-glass statement.
pub const GLASS_NAMESPACE: &str = "bib-break-glass-v1";

/// The `format` of a break-glass statement.
pub const GLASS_FORMAT: &str = "bib-break-glass/1";

/// The largest break-glass statement, in bytes.
pub const MAX_GLASS_BYTES: usize = 8192;

/// The longest reason, in bytes.
pub const MAX_REASON_BYTES: usize = 1024;

/// What an admin signs to open the database to a person for a while.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GlassStatement {
    /// The node's challenge, 32 random bytes.
    pub challenge: [u8; 32],
    /// The node whose database is opened.
    pub node: PeerId,
    /// The name of the node's user to whom it is opened.
    pub user: String,
    /// Why, in one line.
    pub reason: String,
    /// For how long, in seconds.
    pub duration_s: u64,
    /// What for.
    pub access: GlassAccess,
    /// The key that signs.
    pub key: KeyFingerprint,
    /// When it was signed, by the client's clock.
    pub time: Timestamp,
    /// Members this version does not know.
    pub extra: Extra,
}

/// Why bytes are not a break-glass statement.
#[derive(Debug, thiserror::Error)]
pub enum GlassError {
    /// More than [`MAX_GLASS_BYTES`].
    #[error("a break-glass statement of {0} bytes, at most {MAX_GLASS_BYTES} are allowed")]
    TooLong(usize),
    /// Not canonical JSON.
    #[error("the break-glass statement: {0}")]
    Canonical(#[from] CanonicalError),
    /// A member is missing or wrong.
    #[error("the break-glass statement's {0}")]
    Field(#[from] FieldError),
    /// Another format or major version.
    #[error("a break-glass statement of the unknown format `{0}`")]
    Format(String),
}

impl GlassStatement {
    /// The canonical bytes that are signed in the namespace [`GLASS_NAMESPACE`].
    ///
    /// # Errors
    /// When a member holds what canonical JSON cannot say.
    pub fn to_bytes(&self) -> Result<Vec<u8>, CanonicalError> {
        let mut map = self.extra.clone();
        put(&mut map, "format", GLASS_FORMAT)?;
        put(&mut map, "challenge", &hex::encode(self.challenge))?;
        put(&mut map, "node", &self.node)?;
        put(&mut map, "user", &self.user)?;
        put(&mut map, "reason", &self.reason)?;
        put(&mut map, "duration_s", &self.duration_s)?;
        put(&mut map, "access", &self.access)?;
        put(&mut map, "key", &self.key)?;
        put(&mut map, "time", &self.time)?;
        canonical::to_vec(&Value::Object(map))
    }

    /// Reads the bytes that were signed. Whether they answer a challenge that was given is the caller's to compare.
    ///
    /// # Errors
    /// When the bytes are not the one spelling of a break-glass statement.
    pub fn parse(bytes: &[u8]) -> Result<Self, GlassError> {
        if bytes.len() > MAX_GLASS_BYTES {
            return Err(GlassError::TooLong(bytes.len()));
        }
        let mut fields = Fields::of(canonical::parse(bytes)?, "")?;
        let format: String = fields.required("format")?;
        if format != GLASS_FORMAT {
            return Err(GlassError::Format(format.chars().take(80).collect()));
        }
        let statement = Self {
            challenge: challenge(&mut fields)?,
            node: fields.required("node")?,
            user: fields.line("user", 256)?,
            reason: fields.line("reason", MAX_REASON_BYTES)?,
            duration_s: fields.required("duration_s")?,
            access: fields.required("access")?,
            key: fields.required("key")?,
            time: fields.required("time")?,
            extra: fields.rest(),
        };
        if statement.to_bytes()? == bytes { Ok(statement) } else { Err(CanonicalError::NotCanonical.into()) }
    }
}
