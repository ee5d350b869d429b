//! What a node says about topics, datasets, versions and tags.

use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::{Header, signature_hex};
use crate::access::Visibility;
use crate::canonical::CanonicalError;
use crate::fields::{Extra, FieldError, Fields, check_paragraph, put, put_some};
use crate::name::{DatasetName, TagName, TopicName};
use crate::record::Revision;
use crate::statement::{Author, MAX_STATEMENT_BYTES, Statement};
use crate::{DatasetId, Hash, KeyFingerprint, Nonce, PeerId, Timestamp, TopicId};

/// The longest title, in bytes.
pub const MAX_TITLE_BYTES: usize = 512;
/// The longest description, in bytes.
pub const MAX_DESCRIPTION_BYTES: usize = 8 * 1024;
/// The longest SSHSIG in PEM, in bytes: an RSA key of 16,384 bits fits.
const MAX_SSHSIG_BYTES: usize = 8 * 1024;

/// Whether a topic or dataset is there.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Life {
    /// In use.
    Live,
    /// Deleted: the name is free, the id is not.
    Deleted,
}

/// A topic.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Topic {
    /// The record's revision.
    pub revision: Revision,
    /// When it was signed, by the owner's clock.
    pub time: Timestamp,
    /// The id, derived from origin and nonce.
    pub id: TopicId,
    /// The node it comes from.
    pub origin: PeerId,
    /// What makes the id, with the origin.
    pub nonce: Nonce,
    /// The full name, such as `climate/stations`.
    pub name: TopicName,
    /// The topic above, of the same owner.
    pub parent: Option<TopicId>,
    /// Who can see it.
    pub visibility: Visibility,
    /// The licence of versions that name none: an SPDX expression.
    pub license: Option<String>,
    /// A title.
    pub title: Option<String>,
    /// A description, of one or more paragraphs.
    pub description: Option<String>,
    /// The key of the person who made it.
    pub creator: Option<KeyFingerprint>,
    /// Live or deleted.
    pub life: Life,
    /// Members this version does not know.
    pub extra: Extra,
}

impl Topic {
    pub(super) fn id(&self) -> String {
        self.id.to_string()
    }

    pub(super) fn check(&self) -> Result<(), FieldError> {
        if self.id != TopicId::derive(&self.origin, &self.nonce) {
            return Err(FieldError::new("id", "does not derive from origin and nonce"));
        }
        match &self.description {
            Some(text) => check_paragraph(text, MAX_DESCRIPTION_BYTES).map_err(|p| FieldError::new("description", p)),
            None => Ok(()),
        }
    }

    pub(super) fn put(&self, map: &mut Extra) -> Result<(), CanonicalError> {
        put(map, "origin", &self.origin)?;
        put(map, "nonce", &self.nonce)?;
        put(map, "name", &self.name)?;
        put_some(map, "parent", self.parent.as_ref())?;
        put(map, "visibility", &self.visibility)?;
        put_some(map, "license", self.license.as_ref())?;
        put_some(map, "title", self.title.as_ref())?;
        put_some(map, "description", self.description.as_ref())?;
        put_some(map, "creator", self.creator.as_ref())?;
        put(map, "life", &self.life)
    }

    pub(super) fn read(mut fields: Fields, header: &Header) -> Result<Self, FieldError> {
        Ok(Self {
            revision: header.revision,
            time: header.time,
            id: header.id_as()?,
            origin: fields.required("origin")?,
            nonce: fields.required("nonce")?,
            name: fields.required("name")?,
            parent: fields.optional("parent")?,
            visibility: fields.required("visibility")?,
            license: fields.optional_line("license", crate::metadata::license::MAX_LICENSE_BYTES)?,
            title: fields.optional_line("title", MAX_TITLE_BYTES)?,
            description: fields.optional("description")?,
            creator: fields.optional("creator")?,
            life: fields.required("life")?,
            extra: fields.rest(),
        })
    }
}

/// A dataset. Signed anew at each publish, because it names the latest version.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Dataset {
    /// The record's revision.
    pub revision: Revision,
    /// When it was signed, by the owner's clock.
    pub time: Timestamp,
    /// The id, derived from origin and nonce.
    pub id: DatasetId,
    /// The node it comes from.
    pub origin: PeerId,
    /// What makes the id, with the origin.
    pub nonce: Nonce,
    /// The full name, such as `climate/stations/hourly`.
    pub name: DatasetName,
    /// The topic it is in.
    pub topic: TopicId,
    /// The latest version; absent before the first publish.
    pub latest: Option<Hash>,
    /// Live or deleted.
    pub life: Life,
    /// Members this version does not know.
    pub extra: Extra,
}

impl Dataset {
    pub(super) fn id(&self) -> String {
        self.id.to_string()
    }

    pub(super) fn check(&self) -> Result<(), FieldError> {
        if self.id == DatasetId::derive(&self.origin, &self.nonce) {
            Ok(())
        } else {
            Err(FieldError::new("id", "does not derive from origin and nonce"))
        }
    }

    pub(super) fn put(&self, map: &mut Extra) -> Result<(), CanonicalError> {
        put(map, "origin", &self.origin)?;
        put(map, "nonce", &self.nonce)?;
        put(map, "name", &self.name)?;
        put(map, "topic", &self.topic)?;
        put_some(map, "latest", self.latest.as_ref())?;
        put(map, "life", &self.life)
    }

    pub(super) fn read(mut fields: Fields, header: &Header) -> Result<Self, FieldError> {
        Ok(Self {
            revision: header.revision,
            time: header.time,
            id: header.id_as()?,
            origin: fields.required("origin")?,
            nonce: fields.required("nonce")?,
            name: fields.required("name")?,
            topic: fields.required("topic")?,
            latest: fields.optional("latest")?,
            life: fields.required("life")?,
            extra: fields.rest(),
        })
    }
}

/// Who signed a version's statement, and how.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum VersionSignature {
    /// The person: an SSHSIG (PEM) in the namespace `bib-version-v1`.
    Person {
        /// The armoured signature, as `ssh-keygen -Y sign` writes it.
        sshsig: String,
    },
    /// The node, for a job, query or session of a person: Ed25519 over `bib-version-v1\0` and the statement.
    Service {
        /// The node that signed.
        node: PeerId,
        /// Its signature.
        signature: [u8; 64],
    },
}

/// A version: the statement verbatim, its signature, and where its bytes lie.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Version {
    /// The record's revision. A higher one names a newer layout; the statement stays.
    pub revision: Revision,
    /// When it was signed, by the owner's clock.
    pub time: Timestamp,
    /// The dataset.
    pub dataset: DatasetId,
    /// The statement's bytes, verbatim: the version is their hash.
    pub statement: Vec<u8>,
    /// The signature over the statement.
    pub signature: VersionSignature,
    /// The hash of the layout root.
    pub layout: Hash,
    /// Regular files in it.
    pub files: u64,
    /// Their bytes in all.
    pub size_bytes: u64,
    /// Members this version does not know.
    pub extra: Extra,
}

impl Version {
    /// The version: the hash of the statement.
    #[must_use]
    pub fn version(&self) -> Hash {
        Hash::of(&self.statement)
    }

    pub(super) fn id(&self) -> String {
        self.version().to_string()
    }

    pub(super) fn check(&self) -> Result<(), FieldError> {
        let statement = Statement::parse(&self.statement).map_err(|e| FieldError::new("statement", e.to_string()))?;
        if statement.dataset != self.dataset {
            return Err(FieldError::new("dataset", "is not the statement's"));
        }
        match (&statement.author, &self.signature) {
            (Author::Person { .. }, VersionSignature::Person { sshsig }) => {
                check_paragraph(sshsig, MAX_SSHSIG_BYTES).map_err(|p| FieldError::new("signature.sshsig", p))
            }
            (Author::Service { node: author, .. }, VersionSignature::Service { node, .. }) if author == node => Ok(()),
            (Author::Person { .. }, VersionSignature::Service { .. })
            | (Author::Service { .. }, VersionSignature::Person { .. } | VersionSignature::Service { .. }) => {
                Err(FieldError::new("signature", "is not by the statement's author"))
            }
        }
    }

    pub(super) fn put(&self, map: &mut Extra) -> Result<(), CanonicalError> {
        let statement = std::str::from_utf8(&self.statement).map_err(|e| CanonicalError::Syntax(e.to_string()))?;
        let mut signature = Extra::new();
        match &self.signature {
            VersionSignature::Person { sshsig } => {
                put(&mut signature, "kind", "person")?;
                put(&mut signature, "sshsig", sshsig)?;
            }
            VersionSignature::Service { node, signature: bytes } => {
                put(&mut signature, "kind", "service")?;
                put(&mut signature, "node", node)?;
                put(&mut signature, "signature", &hex::encode(bytes))?;
            }
        }
        put(map, "dataset", &self.dataset)?;
        put(map, "statement", statement)?;
        put(map, "signature", &Value::Object(signature))?;
        put(map, "layout", &self.layout)?;
        put(map, "files", &self.files)?;
        put(map, "size_bytes", &self.size_bytes)
    }

    pub(super) fn read(mut fields: Fields, header: &Header) -> Result<Self, FieldError> {
        let statement: String = fields.required("statement")?;
        if statement.len() > MAX_STATEMENT_BYTES {
            return Err(fields.error("statement", format!("more than {MAX_STATEMENT_BYTES} bytes")));
        }
        let mut signature = fields.object("signature")?;
        let kind: String = signature.required("kind")?;
        let signature = match kind.as_str() {
            "person" => VersionSignature::Person { sshsig: signature.required("sshsig")? },
            "service" => VersionSignature::Service {
                node: signature.required("node")?,
                signature: signature_hex(&mut signature, "signature")?,
            },
            _ => return Err(signature.error("kind", "neither person nor service")),
        };
        Ok(Self {
            revision: header.revision,
            time: header.time,
            dataset: fields.required("dataset")?,
            statement: statement.into_bytes(),
            signature,
            layout: fields.required("layout")?,
            files: fields.required("files")?,
            size_bytes: fields.required("size_bytes")?,
            extra: fields.rest(),
        })
    }
}

/// A tag: a name for a version of a dataset.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Tag {
    /// The record's revision.
    pub revision: Revision,
    /// When it was signed, by the owner's clock.
    pub time: Timestamp,
    /// The dataset.
    pub dataset: DatasetId,
    /// The tag's name.
    pub name: TagName,
    /// The version it names; absent when the tag was removed.
    pub version: Option<Hash>,
    /// Members this version does not know.
    pub extra: Extra,
}

impl Tag {
    pub(super) fn id(&self) -> String {
        format!("{}@{}", self.dataset, self.name)
    }

    pub(super) fn check(&self) -> Result<(), FieldError> {
        Ok(())
    }

    pub(super) fn put(&self, map: &mut Extra) -> Result<(), CanonicalError> {
        put(map, "dataset", &self.dataset)?;
        put(map, "name", &self.name)?;
        put_some(map, "version", self.version.as_ref())
    }

    pub(super) fn read(mut fields: Fields, header: &Header) -> Result<Self, FieldError> {
        Ok(Self {
            revision: header.revision,
            time: header.time,
            dataset: fields.required("dataset")?,
            name: fields.required("name")?,
            version: fields.optional("version")?,
            extra: fields.rest(),
        })
    }
}
