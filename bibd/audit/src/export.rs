//! The whole log as JSON lines, for a verifier elsewhere.
//!
//! Lines, each canonical JSON with a `kind`: one `header`, a `succession` for each node that the log's node follows, the
//! table's `checkpoint`s, every sealed row (`entry`) in order, then entries without a seal (`unsealed`) and ids that wait without an entry (`queued`). Bodies and details
//! are strings, verbatim; bytes that are not UTF-8 (a tamper) are `{"hex": ..}`.

use std::io::{self, BufRead};

use bib_core::canonical::{self, CanonicalError};
use bib_core::{PeerId, Timestamp};
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use uuid::Uuid;

use crate::succession;
use crate::verify::{DetailRow, EntryRow, Row, SealRow, TrustedInputs, Verdict};

/// The `format` in the header.
pub const FORMAT: &str = "bib-audit-export/1";

/// The longest line that is read, in bytes.
pub const MAX_LINE_BYTES: u64 = 4 << 20;

/// Why an export cannot be written or read.
#[derive(Debug, thiserror::Error)]
pub enum ExportError {
    /// The reader failed.
    #[error("read the export")]
    Io(#[from] io::Error),
    /// A value has no canonical form.
    #[error(transparent)]
    Canonical(#[from] CanonicalError),
    /// A line is not one of an export, or stands where it may not.
    #[error("line {line} of the export: {reason}")]
    Line {
        /// The number, from 1.
        line: u64,
        /// Why.
        reason: String,
    },
}

/// Bytes that should be text.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Bytes(pub Vec<u8>);

/// How [`Bytes`] look in JSON.
#[derive(Serialize, Deserialize)]
#[serde(untagged)]
enum BytesForm {
    Text(String),
    Hex { hex: String },
}

impl Serialize for Bytes {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match std::str::from_utf8(&self.0) {
            Ok(text) => serializer.serialize_str(text),
            Err(_) => BytesForm::Hex { hex: hex::encode(&self.0) }.serialize(serializer),
        }
    }
}

impl<'de> Deserialize<'de> for Bytes {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        match BytesForm::deserialize(deserializer)? {
            BytesForm::Text(text) => Ok(Self(text.into_bytes())),
            BytesForm::Hex { hex } => hex::decode(hex).map(Self).map_err(serde::de::Error::custom),
        }
    }
}

/// Bytes in hex: hashes and salts as stored, of whatever length.
mod as_hex {
    use serde::{Deserialize as _, Deserializer, Serializer};

    pub(super) fn serialize<S: Serializer>(bytes: &[u8], serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&hex::encode(bytes))
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<u8>, D::Error> {
        hex::decode(String::deserialize(deserializer)?).map_err(serde::de::Error::custom)
    }
}

/// A line of an export.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "lowercase")]
pub enum Line {
    /// The first line.
    Header {
        /// [`FORMAT`].
        format: String,
        /// Whose log.
        node: PeerId,
    },
    /// A checkpoint of the table, as a note.
    Checkpoint {
        /// The note.
        note: String,
    },
    /// What proves that the log's node follows a former one: that node's record, and the succession.
    Succession {
        /// The former node's record of itself.
        node: RecordLine,
        /// The succession.
        succession: RecordLine,
    },
    /// A sealed row. Boxed: it is much larger than the others.
    Entry(Box<SealedLine>),
    /// An entry without a seal.
    Unsealed {
        /// The entry.
        entry: Box<EntryLine>,
        /// Whether it waits for its seal.
        queued: bool,
    },
    /// An id that waits for its seal and has no entry.
    Queued {
        /// The id.
        id: Uuid,
    },
}

/// A signed record, verbatim.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RecordLine {
    /// The body.
    pub body: Bytes,
    /// Who signed.
    pub key: PeerId,
    /// The signature.
    #[serde(with = "as_hex")]
    pub sig: Vec<u8>,
}

/// A seal with its entry and details, when they are there.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SealedLine {
    /// The seal.
    pub seal: SealLine,
    /// The entry.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub entry: Option<EntryLine>,
    /// The details.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub detail: Option<DetailLine>,
}

/// A row of `audit_seal`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[expect(missing_docs, reason = "the members are those of `SealRow`")]
pub struct SealLine {
    pub epoch: u64,
    pub seq: u64,
    pub entry: Uuid,
    #[serde(with = "as_hex")]
    pub digest: Vec<u8>,
    #[serde(with = "as_hex")]
    pub head: Vec<u8>,
}

/// A row of `audit_entry`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[expect(missing_docs, reason = "the members are those of `EntryRow`")]
pub struct EntryLine {
    pub id: Uuid,
    pub time: Timestamp,
    pub node: String,
    pub actor: String,
    pub via: String,
    pub action: String,
    pub target: String,
    pub result: String,
    pub operation: Uuid,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub job: Option<Uuid>,
    pub body: Bytes,
}

/// A row of `audit_detail`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[expect(missing_docs, reason = "the members are those of `DetailRow`")]
pub struct DetailLine {
    #[serde(with = "as_hex")]
    pub salt: Vec<u8>,
    pub details: Bytes,
}

impl From<&EntryRow<'_>> for EntryLine {
    fn from(row: &EntryRow<'_>) -> Self {
        Self {
            id: row.id,
            time: row.time,
            node: row.node.to_owned(),
            actor: row.actor.to_owned(),
            via: row.via.to_owned(),
            action: row.action.to_owned(),
            target: row.target.to_owned(),
            result: row.result.to_owned(),
            operation: row.operation,
            job: row.job,
            body: Bytes(row.body.to_vec()),
        }
    }
}

impl EntryLine {
    /// The row that the line tells.
    #[must_use]
    pub fn as_row(&self) -> EntryRow<'_> {
        EntryRow {
            id: self.id,
            time: self.time,
            node: &self.node,
            actor: &self.actor,
            via: &self.via,
            action: &self.action,
            target: &self.target,
            result: &self.result,
            operation: self.operation,
            job: self.job,
            body: &self.body.0,
        }
    }
}

impl From<&Row<'_>> for SealedLine {
    fn from(row: &Row<'_>) -> Self {
        let SealRow { epoch, seq, entry, digest, head } = row.seal;
        let seal = SealLine { epoch, seq, entry, digest: digest.to_vec(), head: head.to_vec() };
        let detail = |d: &DetailRow<'_>| DetailLine { salt: d.salt.to_vec(), details: Bytes(d.details.to_vec()) };
        Self { seal, entry: row.entry.as_ref().map(Into::into), detail: row.detail.as_ref().map(detail) }
    }
}

impl SealedLine {
    /// The row that the line tells.
    #[must_use]
    pub fn as_row(&self) -> Row<'_> {
        let SealLine { epoch, seq, entry, digest, head } = &self.seal;
        Row {
            seal: SealRow { epoch: *epoch, seq: *seq, entry: *entry, digest, head },
            entry: self.entry.as_ref().map(EntryLine::as_row),
            detail: self.detail.as_ref().map(|d| DetailRow { salt: &d.salt, details: &d.details.0 }),
        }
    }
}

/// Appends a line, with its newline.
///
/// # Errors
/// When a number is 2^53 or more.
pub fn write_line(line: &Line, out: &mut Vec<u8>) -> Result<(), ExportError> {
    out.extend_from_slice(&canonical::to_vec(line)?);
    out.push(b'\n');
    Ok(())
}

/// The lines of an export, one after the other.
#[derive(Debug)]
pub struct Lines<R> {
    reader: R,
    number: u64,
}

/// Reads an export, a line at a time.
pub const fn read<R: BufRead>(reader: R) -> Lines<R> {
    Lines { reader, number: 0 }
}

impl<R: BufRead> Lines<R> {
    fn next_line(&mut self) -> Result<Option<Line>, ExportError> {
        let mut text = Vec::new();
        if io::Read::take(&mut self.reader, MAX_LINE_BYTES).read_until(b'\n', &mut text)? == 0 {
            return Ok(None);
        }
        self.number += 1;
        if text.last() != Some(&b'\n') {
            return Err(self.error("has no end, or is longer than 4 MiB"));
        }
        let line: Line = serde_json::from_slice(&text).map_err(|e| self.error(&e.to_string()))?;
        match (&line, self.number) {
            (Line::Header { format, .. }, 1) if format == FORMAT => Ok(Some(line)),
            (Line::Header { .. }, _) | (_, 1) => Err(self.error("one header of format bib-audit-export/1 comes first")),
            _ => Ok(Some(line)),
        }
    }

    fn error(&self, reason: &str) -> ExportError {
        ExportError::Line { line: self.number, reason: reason.to_owned() }
    }
}

impl<R: BufRead> Iterator for Lines<R> {
    type Item = Result<Line, ExportError>;

    fn next(&mut self) -> Option<Self::Item> {
        self.next_line().transpose()
    }
}

/// Verifies an export as the log itself is verified. The checkpoints among its lines are taken as the table's. The
/// successions are believed for their signatures alone: `former` of what is trusted is what they prove.
///
/// # Errors
/// When the bytes are not an export.
pub fn verify<R: BufRead>(reader: R, mut trusted: TrustedInputs) -> Result<Verdict, ExportError> {
    let mut lines = read(reader);
    let mut verifier = None;
    let mut proofs = Vec::new();
    while let Some(line) = lines.next_line()? {
        if let (Line::Checkpoint { note }, None) = (&line, &verifier) {
            trusted.table.push(note.clone());
            continue;
        }
        if matches!(line, Line::Header { .. }) {
            continue;
        }
        if let (Line::Succession { node, succession }, None) = (&line, &verifier) {
            proofs.extend(succession::proof(node, succession));
            continue;
        }
        let verifier = verifier.get_or_insert_with(|| succession::verifier(&mut trusted, &proofs));
        match &line {
            Line::Entry(sealed) => verifier.feed(&sealed.as_row()),
            Line::Unsealed { entry, queued } => verifier.feed_unsealed(&entry.as_row(), *queued),
            Line::Queued { id } => verifier.feed_queued_without_entry(*id),
            Line::Checkpoint { .. } | Line::Succession { .. } | Line::Header { .. } => {
                return Err(lines.error("checkpoints and successions stand before the entries"));
            }
        }
    }
    Ok(verifier.unwrap_or_else(|| succession::verifier(&mut trusted, &proofs)).finish())
}
