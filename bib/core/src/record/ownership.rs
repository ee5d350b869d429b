//! What a node says about who owns an id, and about what must go: transfer, succession, withdrawal.

use serde::{Deserialize, Serialize};
use serde_json::Value;
use uuid::Uuid;

use super::{Header, optional_signature_hex};
use crate::canonical::{self, CanonicalError};
use crate::fields::{Extra, FieldError, Fields, check_paragraph, put, put_some};
use crate::record::Revision;
use crate::{DatasetId, Hash, PeerId, Timestamp};

/// The longest reason of a withdrawal, in bytes.
pub const MAX_REASON_BYTES: usize = 4096;

/// What a transfer hands over.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum TransferSubject {
    /// A topic.
    Topic,
    /// A dataset.
    Dataset,
}

/// An owner hands a topic or dataset to another node, which accepts. Signed by the owner.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Transfer {
    /// The record's revision: the last tenure of the old owner.
    pub revision: Revision,
    /// When it was signed, by the old owner's clock.
    pub time: Timestamp,
    /// What kind of thing goes over.
    pub subject: TransferSubject,
    /// Its id.
    pub id: Uuid,
    /// The owner until now, who signs the record.
    pub from: PeerId,
    /// The next owner.
    pub to: PeerId,
    /// The last revision of the old tenure that counts.
    pub last: Revision,
    /// The next owner's Ed25519 signature over `bib-transfer-v1\0` and [`Transfer::offer_bytes`]. Without it the
    /// transfer is an offer and changes nothing.
    pub acceptance: Option<[u8; 64]>,
    /// Members this version does not know.
    pub extra: Extra,
}

impl Transfer {
    /// What the next owner signs to accept: the canonical body without `acceptance`, `revision` and `time`, which the
    /// old owner sets when it signs the accepted transfer.
    ///
    /// # Errors
    /// When `extra` holds what canonical JSON cannot say.
    pub fn offer_bytes(&self) -> Result<Vec<u8>, CanonicalError> {
        let mut map = self.extra.clone();
        self.put(&mut map)?;
        map.remove("acceptance");
        put(&mut map, "format", "bib-transfer/1")?;
        put(&mut map, "kind", "transfer")?;
        put(&mut map, "id", &self.id)?;
        canonical::to_vec(&Value::Object(map))
    }

    pub(super) fn id(&self) -> String {
        self.id.to_string()
    }

    pub(super) fn check(&self) -> Result<(), FieldError> {
        if self.from == self.to {
            return Err(FieldError::new("to", "is the owner already"));
        }
        if self.last.tenure != self.revision.tenure {
            return Err(FieldError::new("last", "is of another tenure than the record"));
        }
        Ok(())
    }

    pub(super) fn put(&self, map: &mut Extra) -> Result<(), CanonicalError> {
        put(map, "subject", &self.subject)?;
        put(map, "from", &self.from)?;
        put(map, "to", &self.to)?;
        put(map, "last", &self.last)?;
        put_some(map, "acceptance", self.acceptance.map(hex::encode).as_ref())
    }

    pub(super) fn read(mut fields: Fields, header: &Header) -> Result<Self, FieldError> {
        Ok(Self {
            revision: header.revision,
            time: header.time,
            subject: fields.required("subject")?,
            id: header.id_as()?,
            from: fields.required("from")?,
            to: fields.required("to")?,
            last: fields.required("last")?,
            acceptance: optional_signature_hex(&mut fields, "acceptance")?,
            extra: fields.rest(),
        })
    }
}

/// Up to where records of an old node count, whatever their tenure.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LastMark {
    /// The last epoch.
    pub epoch: u64,
    /// The last number in it.
    pub n: u64,
}

impl LastMark {
    /// Whether a record of the old node with this revision still counts.
    #[must_use]
    pub fn covers(&self, revision: Revision) -> bool {
        (revision.epoch, revision.n) <= (self.epoch, self.n)
    }
}

/// A node's identity goes over to another key, which owns all that the old one owned. Signed by the node key or by the
/// recovery key that its first node record named.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Succession {
    /// The record's revision.
    pub revision: Revision,
    /// When it was signed.
    pub time: Timestamp,
    /// The node until now: the record's id.
    pub from: PeerId,
    /// The next node.
    pub to: PeerId,
    /// The last of the old node's records that count.
    pub last: LastMark,
    /// The next node's Ed25519 signature over `bib-transfer-v1\0` and [`Succession::offer_bytes`]: who knows the next
    /// node alone learns by it whom it follows. Without it the succession holds for who knows the old node.
    pub acceptance: Option<[u8; 64]>,
    /// Members this version does not know.
    pub extra: Extra,
}

impl Succession {
    /// What the next node signs to accept: the canonical body without `acceptance`.
    ///
    /// # Errors
    /// When `extra` holds what canonical JSON cannot say.
    pub fn offer_bytes(&self) -> Result<Vec<u8>, CanonicalError> {
        let offer = Self { acceptance: None, ..self.clone() };
        crate::record::Body::Succession(offer).encode()
    }

    pub(super) fn id(&self) -> String {
        self.from.to_string()
    }

    pub(super) fn check(&self) -> Result<(), FieldError> {
        if self.from == self.to { Err(FieldError::new("to", "is the node itself")) } else { Ok(()) }
    }

    pub(super) fn put(&self, map: &mut Extra) -> Result<(), CanonicalError> {
        put(map, "to", &self.to)?;
        put(map, "last", &self.last)?;
        put_some(map, "acceptance", self.acceptance.map(hex::encode).as_ref())
    }

    pub(super) fn read(mut fields: Fields, header: &Header) -> Result<Self, FieldError> {
        Ok(Self {
            revision: header.revision,
            time: header.time,
            from: header.id_as()?,
            to: fields.required("to")?,
            last: fields.required("last")?,
            acceptance: optional_signature_hex(&mut fields, "acceptance")?,
            extra: fields.rest(),
        })
    }
}

/// What is withdrawn.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum WithdrawalSubject {
    /// A dataset with all its versions.
    Dataset,
    /// One version.
    Version(Hash),
}

/// A version or dataset is withdrawn: its metadata stays as a tombstone, its bytes go.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Withdrawal {
    /// The record's revision.
    pub revision: Revision,
    /// When it was signed, by the owner's clock.
    pub time: Timestamp,
    /// The dataset, or the dataset of the version.
    pub dataset: DatasetId,
    /// What of it goes.
    pub subject: WithdrawalSubject,
    /// Why, for the tombstone page.
    pub reason: String,
    /// Members this version does not know.
    pub extra: Extra,
}

impl Withdrawal {
    pub(super) fn id(&self) -> String {
        match self.subject {
            WithdrawalSubject::Dataset => self.dataset.to_string(),
            WithdrawalSubject::Version(version) => version.to_string(),
        }
    }

    pub(super) fn check(&self) -> Result<(), FieldError> {
        check_paragraph(&self.reason, MAX_REASON_BYTES).map_err(|p| FieldError::new("reason", p))
    }

    pub(super) fn put(&self, map: &mut Extra) -> Result<(), CanonicalError> {
        let subject = match self.subject {
            WithdrawalSubject::Dataset => "dataset",
            WithdrawalSubject::Version(_) => "version",
        };
        put(map, "subject", subject)?;
        put(map, "dataset", &self.dataset)?;
        put(map, "reason", &self.reason)
    }

    pub(super) fn read(mut fields: Fields, header: &Header) -> Result<Self, FieldError> {
        let subject: String = fields.required("subject")?;
        let subject = match subject.as_str() {
            "dataset" => WithdrawalSubject::Dataset,
            "version" => WithdrawalSubject::Version(header.id_as()?),
            _ => return Err(fields.error("subject", "neither dataset nor version")),
        };
        Ok(Self {
            revision: header.revision,
            time: header.time,
            dataset: fields.required("dataset")?,
            subject,
            reason: fields.required("reason")?,
            extra: fields.rest(),
        })
    }
}
