//! The statement of a version: what a person signs. Its hash is the version.
//!
//! This module owns the statement's bytes. It does not sign, does not know records, and does not judge whether the
//! licence is on the SPDX list (statements of later years must stay readable); [`crate::metadata::license`] does that
//! before a publish.

use serde::{Deserialize, Serialize};
use serde_json::Value;
use uuid::Uuid;

use crate::canonical::{self, CanonicalError};
use crate::fields::{Extra, FieldError, Fields, check_line, check_paragraph, put, put_some};
use crate::metadata::{Metadata, license::MAX_LICENSE_BYTES};
use crate::record::MAX_NAME_BYTES;
use crate::{DatasetId, Hash, KeyFingerprint, PeerId, Timestamp};

/// The `format` of a statement.
pub const STATEMENT_FORMAT: &str = "bib-version/1";
/// The largest statement, in bytes.
pub const MAX_STATEMENT_BYTES: usize = 32 * 1024;
/// The longest message, in bytes.
pub const MAX_MESSAGE_BYTES: usize = 4096;
/// The longest label, in bytes.
pub const MAX_LABEL_BYTES: usize = 128;
/// A version has at most this many parents.
pub const MAX_PARENTS: usize = 16;

/// Members that belong to records; refused here, so that no bytes are both a statement and a record's body.
const RESERVED: [&str; 3] = ["kind", "id", "revision"];

/// On whose behalf a service made a version.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ServiceKind {
    /// A job.
    Job,
    /// A query whose answer was kept.
    Query,
    /// A session without a key of the person's, such as the terminal UI over SSH.
    Session,
}

/// Who made a version.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Author {
    /// A person, who signs the statement with the key.
    Person {
        /// The key.
        key: KeyFingerprint,
        /// The person's name, as the person wants it shown.
        name: Option<String>,
    },
    /// A node, for a person; the node signs the statement.
    Service {
        /// The node.
        node: PeerId,
        /// The person's key.
        on_behalf_of: KeyFingerprint,
        /// By what the person asked for it.
        kind: ServiceKind,
        /// The id of the job, query or session: a UUIDv7.
        id: Uuid,
    },
}

/// A version's statement.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Statement {
    /// The dataset.
    pub dataset: DatasetId,
    /// The hash of the content root.
    pub content: Hash,
    /// The versions before: none for the first, one usually. At most [`MAX_PARENTS`], none twice.
    pub parents: Vec<Hash>,
    /// A short name for people, such as `2024 release`.
    pub label: Option<String>,
    /// What changed, of one or more lines.
    pub message: String,
    /// When it was made, by the author's clock. Never decides order.
    pub time: Timestamp,
    /// An SPDX licence expression.
    pub license: String,
    /// What the data is.
    pub metadata: Metadata,
    /// Who made it.
    pub author: Author,
    /// How it came to be: inputs' version hashes, expression, job. Canonical JSON.
    pub provenance: Option<Extra>,
    /// Members of `author` that this version does not know.
    pub author_extra: Extra,
    /// Members that this version does not know.
    pub extra: Extra,
}

/// Why bytes are not a statement, or a statement has no bytes.
#[derive(Debug, thiserror::Error)]
pub enum StatementError {
    /// More than [`MAX_STATEMENT_BYTES`].
    #[error("a statement of {0} bytes, at most {MAX_STATEMENT_BYTES} are allowed")]
    TooLong(usize),
    /// Not canonical JSON.
    #[error("the statement: {0}")]
    Canonical(#[from] CanonicalError),
    /// A member is missing or out of its bounds.
    #[error("the statement's {0}")]
    Field(#[from] FieldError),
    /// Another format or major version.
    #[error("a statement of the unknown format `{0}`")]
    Format(String),
}

impl Statement {
    /// The bytes to sign and to hash: canonical JSON that [`Statement::parse`] reads back to the same statement.
    ///
    /// # Errors
    /// When a member is out of its bounds, or the whole is longer than [`MAX_STATEMENT_BYTES`].
    pub fn to_bytes(&self) -> Result<Vec<u8>, StatementError> {
        let bytes = self.encode()?;
        Self::parse(&bytes)?;
        Ok(bytes)
    }

    /// The version: the hash of [`Statement::to_bytes`].
    ///
    /// # Errors
    /// As [`Statement::to_bytes`].
    pub fn version(&self) -> Result<Hash, StatementError> {
        self.to_bytes().map(|bytes| Hash::of(&bytes))
    }

    /// Reads a statement.
    ///
    /// # Errors
    /// When the bytes are not the one spelling of a statement, a member is missing or out of its bounds, or the major
    /// version is unknown.
    pub fn parse(bytes: &[u8]) -> Result<Self, StatementError> {
        if bytes.len() > MAX_STATEMENT_BYTES {
            return Err(StatementError::TooLong(bytes.len()));
        }
        let mut fields = Fields::of(canonical::parse(bytes)?, "")?;
        let format = fields.line("format", MAX_NAME_BYTES)?;
        if format != STATEMENT_FORMAT {
            return Err(StatementError::Format(format));
        }
        for name in RESERVED {
            if fields.take(name).is_some() {
                return Err(fields.error(name, "belongs to records").into());
            }
        }
        let (author, author_extra) = read_author(fields.object("author")?)?;
        let metadata = fields.take("metadata").ok_or_else(|| fields.error("metadata", "missing"))?;
        let statement = Self {
            dataset: fields.required("dataset")?,
            content: fields.required("content")?,
            parents: fields.required("parents")?,
            label: fields.optional_line("label", MAX_LABEL_BYTES)?,
            message: fields.required("message")?,
            time: fields.required("time")?,
            license: fields.line("license", MAX_LICENSE_BYTES)?,
            metadata: Metadata::read(metadata, "metadata")?,
            author,
            provenance: fields.optional("provenance")?,
            author_extra,
            extra: fields.rest(),
        };
        statement.check()?;
        // Catches second spellings of times, ids and empty lists.
        if statement.encode()? == bytes { Ok(statement) } else { Err(CanonicalError::NotCanonical.into()) }
    }

    fn check(&self) -> Result<(), FieldError> {
        check_paragraph(&self.message, MAX_MESSAGE_BYTES).map_err(|p| FieldError::new("message", p))?;
        if self.parents.len() > MAX_PARENTS {
            return Err(FieldError::new("parents", format!("more than {MAX_PARENTS}")));
        }
        let twice = self.parents.iter().enumerate().find(|(i, parent)| self.parents[..*i].contains(parent));
        match twice {
            Some((i, _)) => Err(FieldError::new(format!("parents[{i}]"), "stands twice")),
            None => Ok(()),
        }
    }

    fn encode(&self) -> Result<Vec<u8>, CanonicalError> {
        let mut map = self.extra.clone();
        put(&mut map, "format", STATEMENT_FORMAT)?;
        put(&mut map, "dataset", &self.dataset)?;
        put(&mut map, "content", &self.content)?;
        put(&mut map, "parents", &self.parents)?;
        put_some(&mut map, "label", self.label.as_ref())?;
        put(&mut map, "message", &self.message)?;
        put(&mut map, "time", &self.time)?;
        put(&mut map, "license", &self.license)?;
        put(&mut map, "metadata", &self.metadata.to_value()?)?;
        put(&mut map, "author", &self.author_value()?)?;
        put_some(&mut map, "provenance", self.provenance.as_ref())?;
        canonical::to_vec(&Value::Object(map))
    }

    fn author_value(&self) -> Result<Value, CanonicalError> {
        let mut map = self.author_extra.clone();
        match &self.author {
            Author::Person { key, name } => {
                put(&mut map, "kind", "person")?;
                put(&mut map, "key", key)?;
                put_some(&mut map, "name", name.as_ref())?;
            }
            Author::Service { node, on_behalf_of, kind, id } => {
                put(&mut map, "kind", "service")?;
                put(&mut map, "node", node)?;
                put(&mut map, "on_behalf_of", on_behalf_of)?;
                put(&mut map, "by", kind)?;
                put(&mut map, "id", id)?;
            }
        }
        Ok(Value::Object(map))
    }
}

fn read_author(mut fields: Fields) -> Result<(Author, Extra), FieldError> {
    let kind: String = fields.required("kind")?;
    let author = match kind.as_str() {
        "person" => {
            Author::Person { key: fields.required("key")?, name: fields.optional_line("name", MAX_NAME_BYTES)? }
        }
        "service" => Author::Service {
            node: fields.required("node")?,
            on_behalf_of: fields.required("on_behalf_of")?,
            kind: fields.required("by")?,
            id: fields.required("id")?,
        },
        _ => return Err(fields.error("kind", "neither person nor service")),
    };
    Ok((author, fields.rest()))
}

/// Checks a message before anything is walked or sent, so that a person hears of it early.
///
/// # Errors
/// When it is empty, longer than [`MAX_MESSAGE_BYTES`], or holds control characters other than newline.
pub fn check_message(message: &str) -> Result<(), FieldError> {
    check_paragraph(message, MAX_MESSAGE_BYTES).map_err(|p| FieldError::new("message", p))
}

/// Checks a label before anything is walked or sent.
///
/// # Errors
/// When it is empty, longer than [`MAX_LABEL_BYTES`], or holds control characters.
pub fn check_label(label: &str) -> Result<(), FieldError> {
    check_line(label, MAX_LABEL_BYTES).map_err(|p| FieldError::new("label", p))
}
