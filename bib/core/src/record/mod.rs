//! Records: what nodes say to each other about topics, datasets, versions, people and themselves.
//!
//! A record's body is canonical JSON, signed by a node and kept and forwarded verbatim ([`SignedRecord`]). [`Body`]
//! reads it; [`merge`] decides between two about one id. Whether the signature holds is `bib-identity`'s to check,
//! whether the signer owns the id is the catalog's; nothing here trusts a body because it parses.

mod catalog;
mod lineage;
mod ownership;
mod revision;
mod who;

use std::str::FromStr;

use serde_json::Value;

pub use catalog::{Dataset, Life, MAX_DESCRIPTION_BYTES, MAX_TITLE_BYTES, Tag, Topic, Version, VersionSignature};
pub use lineage::{Authority, Lineage, NotOwner, Step, StepProof, SuccessionError, Verify};
pub use ownership::{LastMark, MAX_REASON_BYTES, Succession, Transfer, TransferSubject, Withdrawal, WithdrawalSubject};
pub use revision::{MAX_NUMBER, MAX_STEP, Merge, Rank, Revision, StepError, merge, supersedes};
pub use who::{Node, Person};

use crate::canonical::{self, CanonicalError, MAX_BODY_BYTES};
use crate::fields::{Extra, FieldError, Fields, put};
use crate::grant::Grant;
use crate::signature::Purpose;
use crate::{PeerId, Timestamp};

/// The longest name of a node or person, in bytes.
pub const MAX_NAME_BYTES: usize = 256;

/// The longest id of a record of an unknown kind, in bytes.
const MAX_ID_BYTES: usize = 256;

/// A record as it is stored and sent: the body verbatim, the key that signed it, the signature.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SignedRecord {
    /// Canonical JSON, at most [`MAX_BODY_BYTES`]. Never encoded again.
    pub body: Vec<u8>,
    /// The signer: a node's key, or a recovery key written in the same way.
    pub key: PeerId,
    /// Ed25519 over [`signed_bytes`](crate::signature::signed_bytes) of [`Body::purpose`] and the body.
    pub sig: [u8; 64],
}

/// The kinds of record that this version knows.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Kind {
    /// A node about itself.
    Node,
    /// A person's key.
    Person,
    /// A topic.
    Topic,
    /// A dataset.
    Dataset,
    /// A version of a dataset.
    Version,
    /// A name for a version.
    Tag,
    /// What somebody may do with a topic.
    Grant,
    /// A version or dataset that must go.
    Withdrawal,
    /// A topic or dataset that changes its owner.
    Transfer,
    /// A node that changes its key.
    Succession,
}

impl Kind {
    /// Every kind.
    pub const ALL: [Self; 10] = [
        Self::Node,
        Self::Person,
        Self::Topic,
        Self::Dataset,
        Self::Version,
        Self::Tag,
        Self::Grant,
        Self::Withdrawal,
        Self::Transfer,
        Self::Succession,
    ];

    /// The word in the body's `kind` and `format`.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Node => "node",
            Self::Person => "person",
            Self::Topic => "topic",
            Self::Dataset => "dataset",
            Self::Version => "version",
            Self::Tag => "tag",
            Self::Grant => "grant",
            Self::Withdrawal => "withdrawal",
            Self::Transfer => "transfer",
            Self::Succession => "succession",
        }
    }

    /// The kind with this word.
    #[must_use]
    pub fn find(word: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|kind| kind.as_str() == word)
    }
}

/// A body of a kind or minor version that this node does not know. Stored, forwarded, charged, not interpreted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Unknown {
    /// The kind's word.
    pub kind: String,
    /// The record's id.
    pub id: String,
    /// The record's revision.
    pub revision: Revision,
    /// The body, verbatim.
    pub bytes: Vec<u8>,
}

/// Why bytes are not a record's body.
#[derive(Debug, thiserror::Error)]
pub enum RecordError {
    /// More than [`MAX_BODY_BYTES`].
    #[error("a record of {0} bytes, at most {MAX_BODY_BYTES} are allowed")]
    TooLong(usize),
    /// Not canonical JSON.
    #[error("the record: {0}")]
    Canonical(#[from] CanonicalError),
    /// A member is missing or wrong.
    #[error("the record's {0}")]
    Field(#[from] FieldError),
    /// A major version that this node does not speak.
    #[error("a record of the unknown format `{0}`")]
    Format(String),
}

/// What every body says.
pub(crate) struct Header {
    pub(crate) id: String,
    pub(crate) revision: Revision,
    pub(crate) time: Timestamp,
}

impl Header {
    fn id_as<T: FromStr>(&self) -> Result<T, FieldError>
    where
        T::Err: std::fmt::Display,
    {
        self.id.parse().map_err(|e: T::Err| FieldError::new("id", e.to_string()))
    }
}

fn signature_hex(fields: &mut Fields, name: &str) -> Result<[u8; 64], FieldError> {
    optional_signature_hex(fields, name)?.ok_or_else(|| fields.error(name, "missing"))
}

fn optional_signature_hex(fields: &mut Fields, name: &str) -> Result<Option<[u8; 64]>, FieldError> {
    let Some(text) = fields.optional::<String>(name)? else { return Ok(None) };
    let mut bytes = [0; 64];
    hex::decode_to_slice(&text, &mut bytes).map_err(|_| fields.error(name, "128 hex digits are needed"))?;
    Ok(Some(bytes))
}

macro_rules! bodies {
    ($($(#[$doc:meta])* $kind:ident,)+) => {
        /// A record's body, read.
        #[derive(Debug, Clone, PartialEq, Eq)]
        pub enum Body {
            $($(#[$doc])* $kind($kind),)+
            /// Of a kind or minor version that this node does not know.
            Unknown(Unknown),
        }

        $(impl From<$kind> for Body {
            fn from(body: $kind) -> Self {
                Self::$kind(body)
            }
        })+

        impl Body {
            /// The kind; `None` for one that this node does not know.
            #[must_use]
            pub const fn kind(&self) -> Option<Kind> {
                match self {
                    $(Self::$kind(_) => Some(Kind::$kind),)+
                    Self::Unknown(_) => None,
                }
            }

            /// The id, which with the kind says what the record is about.
            #[must_use]
            pub fn id(&self) -> String {
                match self {
                    $(Self::$kind(body) => body.id(),)+
                    Self::Unknown(body) => body.id.clone(),
                }
            }

            /// The revision.
            #[must_use]
            pub const fn revision(&self) -> Revision {
                match self {
                    $(Self::$kind(body) => body.revision,)+
                    Self::Unknown(body) => body.revision,
                }
            }

            fn check(&self) -> Result<(), FieldError> {
                match self {
                    $(Self::$kind(body) => body.check(),)+
                    Self::Unknown(_) => Ok(()),
                }
            }

            pub(crate) fn encode(&self) -> Result<Vec<u8>, CanonicalError> {
                let (kind, time, map) = match self {
                    $(Self::$kind(body) => {
                        let mut map = body.extra.clone();
                        body.put(&mut map)?;
                        (Kind::$kind, body.time, map)
                    })+
                    Self::Unknown(body) => return Ok(body.bytes.clone()),
                };
                let mut map: Extra = map;
                put(&mut map, "format", &format!("bib-{}/1", kind.as_str()))?;
                put(&mut map, "kind", kind.as_str())?;
                put(&mut map, "id", &self.id())?;
                put(&mut map, "revision", &self.revision())?;
                put(&mut map, "time", &time)?;
                canonical::to_vec(&Value::Object(map))
            }

            fn read(kind: Kind, fields: Fields, header: &Header) -> Result<Self, FieldError> {
                match kind {
                    $(Kind::$kind => $kind::read(fields, header).map(Self::$kind),)+
                }
            }
        }
    };
}

bodies! {
    /// A node about itself.
    Node,
    /// A person's key.
    Person,
    /// A topic.
    Topic,
    /// A dataset.
    Dataset,
    /// A version of a dataset.
    Version,
    /// A name for a version.
    Tag,
    /// What somebody may do with a topic.
    Grant,
    /// A version or dataset that must go.
    Withdrawal,
    /// A topic or dataset that changes its owner.
    Transfer,
    /// A node that changes its key.
    Succession,
}

impl Body {
    /// The word of the kind, known or not.
    #[must_use]
    pub fn kind_word(&self) -> &str {
        match (self, self.kind()) {
            (Self::Unknown(body), _) => &body.kind,
            (_, kind) => kind.map_or("", Kind::as_str),
        }
    }

    /// The purpose for which the owner's node signs this body.
    #[must_use]
    pub const fn purpose(&self) -> Purpose {
        match self.kind() {
            Some(Kind::Grant) => Purpose::Grant,
            Some(Kind::Succession) => Purpose::Succession,
            _ => Purpose::Record,
        }
    }

    /// The bytes to sign: canonical JSON that [`Body::parse`] reads back to the same body.
    ///
    /// # Errors
    /// When a member is out of its bounds, or the whole is longer than [`MAX_BODY_BYTES`].
    pub fn to_bytes(&self) -> Result<Vec<u8>, RecordError> {
        let bytes = self.encode()?;
        Self::parse(&bytes)?;
        Ok(bytes)
    }

    /// Reads a body.
    ///
    /// # Errors
    /// When the bytes are not the one spelling of a body, a member is missing or out of its bounds, an id does not
    /// belong to what it names, or the major version is unknown.
    pub fn parse(bytes: &[u8]) -> Result<Self, RecordError> {
        if bytes.len() > MAX_BODY_BYTES {
            return Err(RecordError::TooLong(bytes.len()));
        }
        let mut fields = Fields::of(canonical::parse(bytes)?, "")?;
        let format = fields.line("format", MAX_NAME_BYTES)?;
        let word = fields.line("kind", MAX_NAME_BYTES)?;
        if !word.bytes().all(|b| b.is_ascii_lowercase()) {
            return Err(fields.error("kind", "lower-case letters are needed").into());
        }
        let id = fields.line("id", MAX_ID_BYTES)?;
        let revision: Revision = fields.required("revision")?;
        revision.check_range().map_err(|e| fields.error("revision", e.to_string()))?;
        let version = format.strip_prefix("bib-").and_then(|rest| rest.strip_prefix(word.as_str()));
        let known_minor = match version {
            Some("/1") => true,
            Some(minor) if minor.strip_prefix("/1.").is_some_and(is_number) => false,
            Some(_) | None => return Err(RecordError::Format(format)),
        };
        let Some(kind) = Kind::find(&word).filter(|_| known_minor) else {
            return Ok(Self::Unknown(Unknown { kind: word, id, revision, bytes: bytes.to_vec() }));
        };
        let header = Header { id, revision, time: fields.required("time")? };
        let body = Self::read(kind, fields, &header)?;
        body.check()?;
        if body.id() != header.id {
            return Err(FieldError::new("id", "is not the id of what the record is about").into());
        }
        // Catches second spellings of times, ids and keys, and unknown members where none may be.
        if body.encode()? == bytes { Ok(body) } else { Err(CanonicalError::NotCanonical.into()) }
    }
}

fn is_number(text: &str) -> bool {
    !text.is_empty() && text.len() <= 4 && text.bytes().all(|b| b.is_ascii_digit())
}
