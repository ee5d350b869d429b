//! The body of an entry: canonical JSON, written once and read borrowed.
//!
//! Bodies are hashed as they are, so reading never re-encodes them; [`EntryView::parse`] checks that the bytes are the
//! canonical spelling, because a body with two readings would let two verifiers disagree.

use std::borrow::Cow;

use bib_core::canonical::{self, CanonicalError};
use bib_core::{Hash, Hasher};
use serde::{Deserialize, Serialize};

/// The `format` of entry bodies. It also fixes the hash: another algorithm is another format.
pub const FORMAT: &str = "bib-audit/1";

/// Integers of canonical JSON lie below this.
pub(crate) const INTEGER_LIMIT: u64 = 1 << 53;

/// Why bytes are not the body of an entry.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum BodyError {
    /// Not JSON, a member missing or of the wrong type.
    #[error("not an entry: {0}")]
    Malformed(String),
    /// Another format or version.
    #[error("the format `{0}` is not {FORMAT}")]
    Format(String),
    /// JSON, but not in its one canonical spelling, or too long.
    #[error(transparent)]
    Canonical(#[from] CanonicalError),
    /// More than 64 KiB.
    #[error("an entry's body of {0} bytes is longer than 65536")]
    TooLong(usize),
}

/// The members of an entry's body. Texts borrow from the bytes unless they hold escapes.
///
/// Declared in the order of canonical JSON, so that serialising in order gives the canonical bytes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct EntryView<'a> {
    /// The act, dotted lower case.
    #[serde(borrow)]
    pub action: Cow<'a, str>,
    /// Who acted, in text form.
    #[serde(borrow)]
    pub actor: Cow<'a, str>,
    /// The part of the daemon that acted; entries of the first version have none.
    #[serde(borrow, default, skip_serializing_if = "Option::is_none")]
    pub component: Option<Cow<'a, str>>,
    /// Hex of SHA-256(salt || canonical JSON of the details).
    #[serde(borrow)]
    pub details: Cow<'a, str>,
    /// [`FORMAT`].
    #[serde(borrow)]
    pub format: Cow<'a, str>,
    /// The entry's UUIDv7.
    #[serde(borrow)]
    pub id: Cow<'a, str>,
    /// The job, if one acted.
    #[serde(borrow, default, skip_serializing_if = "Option::is_none")]
    pub job: Option<Cow<'a, str>>,
    /// The node's peer id.
    #[serde(borrow)]
    pub node: Cow<'a, str>,
    /// The call or task that the act belongs to.
    #[serde(borrow)]
    pub operation: Cow<'a, str>,
    /// `ok`, `intent`, `denied` or `failed:<code>`.
    #[serde(borrow)]
    pub result: Cow<'a, str>,
    /// The database role that the act's transaction ran as; entries of the first version have none.
    #[serde(borrow, default, skip_serializing_if = "Option::is_none")]
    pub role: Option<Cow<'a, str>>,
    /// What the act did in the database, at most 32 notes.
    #[serde(borrow)]
    pub statements: Vec<StatementView<'a>>,
    /// What was acted upon.
    #[serde(borrow)]
    pub target: Cow<'a, str>,
    /// RFC 3339, UTC, microseconds.
    #[serde(borrow)]
    pub time: Cow<'a, str>,
    /// The door.
    #[serde(borrow)]
    pub via: Cow<'a, str>,
}

/// One statement, or several alike, of an act.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct StatementView<'a> {
    /// `select`, `insert`, and so on.
    #[serde(borrow)]
    pub class: Cow<'a, str>,
    /// SHA-256 of the statement's text, hex.
    #[serde(borrow)]
    pub hash: Cow<'a, str>,
    /// Rows read or changed.
    pub rows: u64,
    /// The main table.
    #[serde(borrow)]
    pub table: Cow<'a, str>,
    /// Microseconds.
    pub us: u64,
}

impl<'a> EntryView<'a> {
    /// Reads a body, strictly: known format, every member, canonical spelling. Unknown members are allowed.
    ///
    /// # Errors
    /// When the bytes are anything else.
    pub fn parse(body: &'a [u8]) -> Result<Self, BodyError> {
        Self::parse_with(body, &mut Vec::new())
    }

    /// [`Self::parse`] with a buffer to use again, for whoever reads a million of them.
    pub(crate) fn parse_with(body: &'a [u8], buffer: &mut Vec<u8>) -> Result<Self, BodyError> {
        if body.len() > canonical::MAX_BODY_BYTES {
            return Err(BodyError::TooLong(body.len()));
        }
        let view: Self = match serde_json::from_slice::<Self>(body) {
            Ok(view) if view.format == FORMAT => view,
            Ok(view) => return Err(BodyError::Format(view.format.chars().take(80).collect())),
            Err(error) => return Err(other_format(body).unwrap_or_else(|| BodyError::Malformed(error.to_string()))),
        };
        buffer.clear();
        view.write_to(buffer)?;
        if buffer.as_slice() != body || view.statements.iter().any(|s| s.rows.max(s.us) >= INTEGER_LIMIT) {
            // Members that this version does not know, or another spelling: only the slow way can tell.
            canonical::parse(body)?;
        }
        Ok(view)
    }

    /// Writes the canonical bytes. The struct's order is canonical, `serde_json` escapes as RFC 8785 does.
    pub(crate) fn write_to(&self, out: &mut Vec<u8>) -> Result<(), BodyError> {
        serde_json::to_writer(out, self).map_err(|e| BodyError::Malformed(e.to_string()))
    }
}

/// The format that `body` names, when it is JSON and that format is not ours.
fn other_format(body: &[u8]) -> Option<BodyError> {
    /// The one member that says how to read the rest.
    #[derive(Deserialize)]
    struct Named {
        format: String,
    }
    let named: Named = serde_json::from_slice(body).ok()?;
    (named.format != FORMAT).then(|| BodyError::Format(named.format.chars().take(80).collect()))
}

/// What the chain and the tree hold of an entry: SHA-256(`bib-audit-entry-v1\0` || body).
#[must_use]
pub fn digest(body: &[u8]) -> Hash {
    let mut hasher = Hasher::new();
    hasher.update(b"bib-audit-entry-v1\0");
    hasher.update(body);
    hasher.finish()
}

/// What a body says of its details: SHA-256(salt || canonical JSON of the details).
#[must_use]
pub fn details_hash(salt: &[u8], details: &[u8]) -> Hash {
    let mut hasher = Hasher::new();
    hasher.update(salt);
    hasher.update(details);
    hasher.finish()
}

/// The text of a member as its copied column holds it: PostgreSQL's `text` cannot hold NUL, so it shows as `␀`.
#[must_use]
pub fn column_text(text: &str) -> Cow<'_, str> {
    if text.contains('\0') { Cow::Owned(text.replace('\0', "\u{2400}")) } else { Cow::Borrowed(text) }
}
