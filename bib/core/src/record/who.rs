//! What a node says about itself and about the people it knows.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;

use super::{Header, MAX_NAME_BYTES};
use crate::canonical::CanonicalError;
use crate::fields::{Extra, FieldError, Fields, put, put_some};
use crate::metadata::Orcid;
use crate::record::Revision;
use crate::{Hash, KeyFingerprint, PeerId, Timestamp};

/// The longest OpenSSH public key, in bytes: an RSA key of 16,384 bits fits.
const MAX_KEY_BYTES: usize = 4096;

/// A node, about itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Node {
    /// The record's revision.
    pub revision: Revision,
    /// When it was signed, by its own clock.
    pub time: Timestamp,
    /// The node.
    pub id: PeerId,
    /// A name for people; others may call it as they like.
    pub name: Option<String>,
    /// The offline Ed25519 recovery key, written as a peer id is. The first node record's counts for ever.
    pub recovery: Option<PeerId>,
    /// SHA-256 of the SPKI of the node's CA, which clients pin.
    pub ca: Option<Hash>,
    /// Members this version does not know.
    pub extra: Extra,
}

impl Node {
    pub(super) fn id(&self) -> String {
        self.id.to_string()
    }

    pub(super) fn check(&self) -> Result<(), FieldError> {
        Ok(())
    }

    pub(super) fn put(&self, map: &mut Extra) -> Result<(), CanonicalError> {
        put_some(map, "name", self.name.as_ref())?;
        put_some(map, "recovery", self.recovery.as_ref())?;
        put_some(map, "ca", self.ca.as_ref())
    }

    pub(super) fn read(mut fields: Fields, header: &Header) -> Result<Self, FieldError> {
        Ok(Self {
            revision: header.revision,
            time: header.time,
            id: header.id_as()?,
            name: fields.optional_line("name", MAX_NAME_BYTES)?,
            recovery: fields.optional("recovery")?,
            ca: fields.optional("ca")?,
            extra: fields.rest(),
        })
    }
}

/// A person's key, vouched for by the person's node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Person {
    /// The record's revision.
    pub revision: Revision,
    /// When it was signed, by the node's clock.
    pub time: Timestamp,
    /// The node that vouches, and signs.
    pub node: PeerId,
    /// The public key as OpenSSH writes it, type and base64, without a comment.
    pub key: String,
    /// The person's name.
    pub name: String,
    /// The person's ORCID iD.
    pub orcid: Option<Orcid>,
    /// The key signs for the person from this revision of this record on.
    pub valid_from: Revision,
    /// And until this one, when it was removed: earlier versions stay valid, later ones are refused.
    pub valid_until: Option<Revision>,
    /// Members this version does not know.
    pub extra: Extra,
}

impl Person {
    /// The key's fingerprint.
    ///
    /// # Errors
    /// When `key` is not an OpenSSH public key line.
    pub fn fingerprint(&self) -> Result<KeyFingerprint, FieldError> {
        let error = |problem: &str| FieldError::new("key", problem);
        let (kind, encoded) = self.key.split_once(' ').ok_or_else(|| error("type and base64 are needed"))?;
        let wire = STANDARD.decode(encoded).map_err(|_| error("is not base64"))?;
        // The wire form begins with the type, as a string with a four-byte length.
        let length = u32::try_from(kind.len()).unwrap_or(u32::MAX).to_be_bytes();
        match wire.strip_prefix(&length).and_then(|rest| rest.strip_prefix(kind.as_bytes())) {
            Some(rest) if !rest.is_empty() => Ok(KeyFingerprint::of_wire_key(&wire)),
            _ => Err(error("is of another type than it says")),
        }
    }

    pub(super) fn id(&self) -> String {
        self.fingerprint().map(|print| print.to_string()).unwrap_or_default()
    }

    pub(super) fn check(&self) -> Result<(), FieldError> {
        self.fingerprint()?;
        match self.valid_until {
            Some(until) if until < self.valid_from => Err(FieldError::new("valid_until", "lies before valid_from")),
            _ => Ok(()),
        }
    }

    pub(super) fn put(&self, map: &mut Extra) -> Result<(), CanonicalError> {
        put(map, "node", &self.node)?;
        put(map, "key", &self.key)?;
        put(map, "name", &self.name)?;
        put_some(map, "orcid", self.orcid.as_ref())?;
        put(map, "valid_from", &self.valid_from)?;
        put_some(map, "valid_until", self.valid_until.as_ref())
    }

    pub(super) fn read(mut fields: Fields, header: &Header) -> Result<Self, FieldError> {
        Ok(Self {
            revision: header.revision,
            time: header.time,
            node: fields.required("node")?,
            key: fields.line("key", MAX_KEY_BYTES)?,
            name: fields.line("name", MAX_NAME_BYTES)?,
            orcid: fields.optional("orcid")?,
            valid_from: fields.required("valid_from")?,
            valid_until: fields.optional("valid_until")?,
            extra: fields.rest(),
        })
    }
}
