//! The signed descriptions: a backup's manifest, and the head of an archived piece of the log.
//!
//! Both are one line of JSON, signed as it stands, and a second line `signature <hex>`: Ed25519 by the node's key over
//! `bib-backup-v1`, a zero byte and the first line without its end.

use bib_core::signature::Purpose;
use bib_core::{Hash, PeerId, Timestamp};
use bib_identity::{NodeKey, node_key};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use super::Kind;
use super::error::BackupError;
use super::store::Store;

/// The format of a manifest.
pub const MANIFEST_FORMAT: &str = "bib-backup/1";
/// The format of the word that a backup was verified.
pub const VERIFIED_FORMAT: &str = "bib-backup-verified/1";
/// The format of a head.
pub const HEAD_FORMAT: &str = "bib-backup-wal/1";
/// The longest first line, bytes.
const MAX_LINE_BYTES: usize = 64 * 1024;
/// The longest document: a line, a signature.
pub const MAX_DOCUMENT_BYTES: usize = MAX_LINE_BYTES + 256;

/// An object that a manifest names.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Object {
    /// Its size in the store.
    pub bytes: u64,
    /// The hash of these bytes.
    pub sha256: Hash,
    /// The size of what is sealed in it.
    pub plain_bytes: u64,
}

/// Where the audit log stood when the backup began.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AuditHead {
    /// The epoch.
    pub epoch: u64,
    /// The number of the last sealed entry.
    pub seq: u64,
    /// The head after it.
    pub head: Hash,
}

/// The chunks that the catalog knows. They are not in the backup.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Chunks {
    /// How many.
    pub count: u64,
    /// Their bytes as stored.
    pub bytes: u64,
}

/// What a backup is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Manifest {
    /// [`MANIFEST_FORMAT`].
    pub format: String,
    /// Its name.
    pub id: String,
    /// The node.
    pub node: PeerId,
    /// The node's epoch.
    pub epoch: u64,
    /// When it was begun.
    pub created: Timestamp,
    /// When it was complete: from here on every moment can be restored that the archived log reaches.
    pub finished: Timestamp,
    /// The release that made it.
    pub bibd: String,
    /// PostgreSQL's major version.
    pub postgres: u32,
    /// PostgreSQL's name of the cluster; a string, because it is larger than JSON's safe integers.
    pub system_identifier: String,
    /// The timeline.
    pub timeline: u32,
    /// Where recovery begins.
    pub start_lsn: String,
    /// Where the backup is consistent.
    pub end_lsn: String,
    /// `state.tar.zst.age`.
    pub state: Object,
    /// `base.tar.zst.age`.
    pub base: Object,
    /// The audit log.
    pub audit: AuditHead,
    /// The chunks.
    pub chunks: Chunks,
    /// Who can open it: peer ids and age recipients.
    pub recipients: Vec<String>,
}

/// That a backup was restored beside the node and looked at.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Verified {
    /// [`VERIFIED_FORMAT`].
    pub format: String,
    /// The backup.
    pub id: String,
    /// The node.
    pub node: PeerId,
    /// When.
    pub time: Timestamp,
    /// What the audit log in it was found to be: `OK`, `TAMPERED` or `UNVERIFIED`.
    pub verdict: String,
}

impl Verified {
    /// The word about the backup `id` of this kind. One that cannot be read or believed is none: then the backup is looked at again.
    #[must_use]
    pub fn load(store: &Store, node: &PeerId, kind: Kind, id: &str) -> Option<Self> {
        let key = kind.verified_key(id);
        let bytes = read(store, &key).ok()??;
        let (verified, _): (Self, _) = verify(&bytes, node, &key).ok()?;
        let is_its = verified.format == VERIFIED_FORMAT && verified.id == id && verified.node == *node;
        is_its.then_some(verified)
    }
}

/// What an archived piece of the log is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Head {
    /// [`HEAD_FORMAT`].
    pub format: String,
    /// The name that PostgreSQL gave it.
    pub name: String,
    /// The node.
    pub node: PeerId,
    /// The node's epoch.
    pub epoch: u64,
    /// When it was last written to: every transaction in it was committed by then.
    pub time: Timestamp,
    /// Bytes that follow the head.
    pub bytes: u64,
    /// Their hash.
    pub sha256: Hash,
}

/// Signs a description.
///
/// # Errors
/// [`BackupError::Broken`] when it is larger than any can be.
pub fn sign(document: &impl Serialize, key: &NodeKey) -> Result<Vec<u8>, BackupError> {
    let mut line = serde_json::to_vec(document).map_err(|_| BackupError::Broken)?;
    if line.len() > MAX_LINE_BYTES {
        return Err(BackupError::Broken);
    }
    let signature = key.sign(Purpose::Backup, &line);
    line.extend_from_slice(format!("\nsignature {}\n", hex::encode(signature)).as_bytes());
    Ok(line)
}

/// Reads a description that `node` must have signed; what follows it comes back too. `object` names it in errors.
///
/// # Errors
/// [`BackupError::Damaged`], [`BackupError::NotSigned`].
pub fn verify<'b, T: DeserializeOwned>(
    bytes: &'b [u8],
    node: &PeerId,
    object: &str,
) -> Result<(T, &'b [u8]), BackupError> {
    let damaged = |problem: &str| BackupError::Damaged { object: object.to_owned(), problem: problem.to_owned() };
    let end_of = |bytes: &[u8]| bytes.iter().take(MAX_LINE_BYTES + 1).position(|byte| *byte == b'\n');
    let end = end_of(bytes).ok_or_else(|| damaged("it has no description"))?;
    let (line, rest) = (&bytes[..end], &bytes[end + 1..]);
    let end = end_of(rest).ok_or_else(|| damaged("its description has no signature"))?;
    let signature = rest[..end].strip_prefix(b"signature ").and_then(|text| hex::decode(text).ok());
    let signature = signature.ok_or_else(|| damaged("its description has no signature"))?;
    // First whose it is: nothing of a stranger's is even parsed.
    node_key::verify(node, Purpose::Backup, line, &signature)
        .map_err(|_| BackupError::NotSigned { object: object.to_owned(), node: *node })?;
    let document = serde_json::from_slice(line).map_err(|_| damaged("this release does not know its description"))?;
    Ok((document, &rest[end + 1..]))
}

/// The object of this name, as far as a document may be long; `None` when there is none.
fn read(store: &Store, key: &str) -> Result<Option<Vec<u8>>, BackupError> {
    use std::io::Read as _;
    let Some(object) = store.open(key)? else { return Ok(None) };
    let mut bytes = Vec::new();
    object
        .take(MAX_DOCUMENT_BYTES as u64)
        .read_to_end(&mut bytes)
        .map_err(BackupError::io("read", &store.place(key)))?;
    Ok(Some(bytes))
}

/// What makes a backup of its kind exist.
pub(super) trait Described: DeserializeOwned {
    /// The kind.
    const KIND: Kind;
    /// The format that this release knows.
    const FORMAT: &'static str;

    /// Its format, its name and its node, as it says.
    fn named(&self) -> (&str, &str, PeerId);
}

impl Described for Manifest {
    const KIND: Kind = Kind::Physical;
    const FORMAT: &'static str = MANIFEST_FORMAT;

    fn named(&self) -> (&str, &str, PeerId) {
        (&self.format, &self.id, self.node)
    }
}

/// Reads what makes the backup `id` exist.
///
/// # Errors
/// [`BackupError::NotFound`], and as [`verify`].
pub(super) fn load<T: Described>(store: &Store, node: &PeerId, id: &str) -> Result<T, BackupError> {
    if !is_id(id) {
        return Err(BackupError::NotFound(id.chars().take(80).collect()));
    }
    let key = T::KIND.manifest_key(id);
    let bytes = read(store, &key)?.ok_or_else(|| BackupError::NotFound(id.to_owned()))?;
    let (manifest, rest): (T, _) = verify(&bytes, node, &key)?;
    let wrong = |problem: &str| BackupError::Damaged { object: key.clone(), problem: problem.to_owned() };
    let (its_format, its_id, its_node) = manifest.named();
    if its_format != T::FORMAT {
        return Err(wrong("this release does not know its format"));
    }
    if its_id != id || its_node != *node || !rest.is_empty() {
        return Err(wrong("it is the manifest of another backup"));
    }
    Ok(manifest)
}

impl Manifest {
    /// Reads the manifest of `id`.
    ///
    /// # Errors
    /// [`BackupError::NotFound`], and as [`verify`].
    pub fn load(store: &Store, node: &PeerId, id: &str) -> Result<Self, BackupError> {
        load(store, node, id)
    }

    /// As [`Kind::names`].
    ///
    /// # Errors
    /// When the store cannot be read.
    pub fn names(store: &Store) -> Result<Vec<(String, bool)>, BackupError> {
        Kind::Physical.names(store)
    }

    /// The sum of its objects, bytes.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.state.bytes + self.base.bytes
    }
}

/// Whether a text could be a backup's name: `20261121T140930Z-1f0e`, made by [`name`].
pub(super) fn is_id(text: &str) -> bool {
    text.len() == 21 && text.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-')
}

/// The name of a backup that begins at `time`; `random` keeps two of one second apart.
#[must_use]
pub fn name(time: Timestamp, random: [u8; 2]) -> String {
    let digits: String = time.to_string().chars().filter(|c| c.is_ascii_digit() || *c == 'T').take(15).collect();
    format!("{digits}Z-{}", hex::encode(random))
}

#[cfg(test)]
impl Manifest {
    /// A manifest with nothing in it, for tests.
    pub(crate) fn sample(id: &str, epoch: u64, created: Timestamp) -> Self {
        let object = Object { bytes: 1, sha256: Hash::of(b""), plain_bytes: 1 };
        Self {
            format: MANIFEST_FORMAT.to_owned(),
            id: id.to_owned(),
            node: PeerId::from_public_key([7; 32]),
            epoch,
            created,
            finished: created,
            bibd: String::new(),
            postgres: 15,
            system_identifier: "1".to_owned(),
            timeline: 1,
            start_lsn: "0/1".to_owned(),
            end_lsn: "0/2".to_owned(),
            state: object.clone(),
            base: object,
            audit: AuditHead { epoch, seq: 0, head: Hash::of(b"") },
            chunks: Chunks { count: 0, bytes: 0 },
            recipients: Vec::new(),
        }
    }
}
