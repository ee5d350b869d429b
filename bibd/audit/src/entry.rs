//! An entry: what one act leaves behind, written in the act's own transaction.
//!
//! Building never fails because of what a person wrote: texts that are too long are cut with their hash, details that
//! are too large are replaced by their hash, and control characters are data inside JSON strings. It fails only for
//! what our own code got wrong (an action not spelled as actions are).

use std::borrow::Cow;

use bib_core::canonical::{self, CanonicalError};
use bib_core::{Hash, Hasher, OperationId, PeerId, Timestamp};
use serde_json::{Map, Value};
use uuid::Uuid;

use crate::action::{Actor, Outcome, Via, is_action};
use crate::body::{BodyError, EntryView, FORMAT, INTEGER_LIMIT, StatementView, details_hash, digest};

/// The longest actor in an entry, in bytes.
pub const MAX_ACTOR_BYTES: usize = 512;
/// The longest target in an entry, in bytes.
pub const MAX_TARGET_BYTES: usize = 2048;
/// The most statement notes in an entry.
pub const MAX_STATEMENTS: usize = 32;
/// The longest details, as canonical JSON, in bytes.
pub const MAX_DETAILS_BYTES: usize = 32 * 1024;

/// Why a draft is not an entry. Each is a mistake of the calling code, none can be caused by a person's input.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum DraftError {
    /// The action is not dotted lower-case words.
    #[error("`{0}` is not an action such as topic.create")]
    Action(String),
    /// The code of a failure is not 1 to 64 letters, digits, `.`, `_` or `-`.
    #[error("`{0}` is not an error code such as BIB0007")]
    Code(String),
    /// The body cannot be written.
    #[error(transparent)]
    Body(#[from] BodyError),
    /// The details cannot be written.
    #[error(transparent)]
    Details(#[from] CanonicalError),
}

/// One statement of an act, as the database layer saw it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StatementNote {
    /// `select`, `insert`, and so on.
    pub class: Cow<'static, str>,
    /// The main table.
    pub table: Cow<'static, str>,
    /// SHA-256 of the statement's text with its placeholders; values are never in it.
    pub hash: Hash,
    /// Rows read or changed.
    pub rows: u64,
    /// How long it took, in microseconds.
    pub us: u64,
}

/// Which part of the daemon an act is of, and as which role its statements ran.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Origin {
    /// The part: `grpc`, `collector`.
    pub component: &'static str,
    /// The database role: `bibd_service`.
    pub role: &'static str,
}

/// Everything that is known of an act; time, id and salt are drawn by the caller.
#[derive(Debug, Clone)]
pub struct EntryDraft {
    /// A UUIDv7.
    pub id: Uuid,
    /// When, by the node's clock. It never decides order.
    pub time: Timestamp,
    /// Where.
    pub node: PeerId,
    /// Who. Cut at [`MAX_ACTOR_BYTES`].
    pub actor: Actor,
    /// By which door.
    pub via: Via,
    /// What: dotted lower case, such as `topic.create`.
    pub action: String,
    /// To what, such as `topic:<id>`. Cut at [`MAX_TARGET_BYTES`].
    pub target: String,
    /// How it ended.
    pub result: Outcome,
    /// The call or task it belongs to.
    pub operation: OperationId,
    /// The job, if one acted.
    pub job: Option<Uuid>,
    /// Part and role.
    pub origin: Option<Origin>,
    /// What it did in the database; merged and cut to [`MAX_STATEMENTS`].
    pub statements: Vec<StatementNote>,
    /// Anything else worth knowing, kept apart so that the law can have it erased. Never secrets.
    pub details: Value,
    /// 32 random bytes, so that erased details cannot be guessed from their hash.
    pub salt: [u8; 32],
}

/// An entry as it goes into the tables `audit_entry` and `audit_detail`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// The UUIDv7.
    pub id: Uuid,
    /// The time column.
    pub time: Timestamp,
    /// The columns that copy members of the body.
    pub columns: Columns,
    /// Canonical JSON, stored verbatim.
    pub body: Vec<u8>,
    /// What will be sealed: [`crate::body::digest`] of the body.
    pub digest: Hash,
    /// The details, erasable.
    pub detail: Detail,
}

/// The copies of an entry's members, as the columns hold them (NUL written as `␀`).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Columns {
    /// The node's peer id.
    pub node: String,
    /// Who.
    pub actor: String,
    /// By which door.
    pub via: &'static str,
    /// What.
    pub action: String,
    /// To what.
    pub target: String,
    /// How it ended.
    pub result: String,
    /// The operation.
    pub operation: Uuid,
    /// The job.
    pub job: Option<Uuid>,
}

/// The details of an entry and the salt of their hash.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Detail {
    /// 32 random bytes.
    pub salt: [u8; 32],
    /// Canonical JSON, at most [`MAX_DETAILS_BYTES`].
    pub bytes: Vec<u8>,
}

impl EntryDraft {
    /// Writes the entry.
    ///
    /// # Errors
    /// When the action or an error code is misspelled by the calling code.
    pub fn build(self) -> Result<Entry, DraftError> {
        if !is_action(&self.action) {
            return Err(DraftError::Action(clip(&self.action, 80)));
        }
        if let Outcome::Failed(code) = &self.result
            && !is_code(code)
        {
            return Err(DraftError::Code(clip(code, 80)));
        }
        let detail = Detail { salt: self.salt, bytes: details_bytes(&self.details)? };
        let (node, actor) = (self.node.to_string(), cut(self.actor.to_string(), MAX_ACTOR_BYTES));
        let (target, result) = (cut(self.target, MAX_TARGET_BYTES), self.result.to_string());
        let statements: Vec<_> = fold_statements(&self.statements);
        let view = EntryView {
            action: Cow::Borrowed(&self.action),
            actor: Cow::Borrowed(&actor),
            component: self.origin.map(|origin| origin.component.into()),
            details: details_hash(&detail.salt, &detail.bytes).to_string().into(),
            format: FORMAT.into(),
            id: self.id.to_string().into(),
            job: self.job.map(|job| job.to_string().into()),
            node: Cow::Borrowed(&node),
            operation: self.operation.to_string().into(),
            result: Cow::Borrowed(&result),
            role: self.origin.map(|origin| origin.role.into()),
            statements: statements.iter().map(as_view).collect(),
            target: Cow::Borrowed(&target),
            time: self.time.to_string().into(),
            via: self.via.as_str().into(),
        };
        let mut body = Vec::with_capacity(640 + 160 * statements.len());
        view.write_to(&mut body)?;
        let column = |text: &str| crate::body::column_text(text).into_owned();
        let columns = Columns {
            actor: column(&actor),
            via: self.via.as_str(),
            target: column(&target),
            operation: self.operation.as_uuid(),
            job: self.job,
            node,
            result,
            action: self.action,
        };
        Ok(Entry { id: self.id, time: self.time, columns, digest: digest(&body), body, detail })
    }
}

fn is_code(code: &str) -> bool {
    matches!(code.len(), 1..=64) && code.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'_' | b'-'))
}

/// At most `bytes` bytes of `text`, whole characters.
fn clip(text: &str, bytes: usize) -> String {
    text[..text.floor_char_boundary(bytes)].to_owned()
}

fn clip_note(text: Cow<'static, str>, bytes: usize) -> Cow<'static, str> {
    if text.len() <= bytes { text } else { clip(&text, bytes).into() }
}

/// `text`, or when longer than `limit` its beginning, its length and its hash.
fn cut(text: String, limit: usize) -> String {
    if text.len() <= limit {
        return text;
    }
    let note = format!("...[{} bytes, sha256 {}]", text.len(), Hash::of(text.as_bytes()));
    clip(&text, limit.saturating_sub(note.len())) + &note
}

/// Canonical JSON of the details; what canonical JSON cannot say becomes text, what is too large becomes its hash.
fn details_bytes(details: &Value) -> Result<Vec<u8>, CanonicalError> {
    let note = |reason: &str, text: &[u8]| {
        canonical::to_vec(&serde_json::json!({
            "replaced": reason, "bytes": text.len(), "sha256": Hash::of(text),
        }))
    };
    match canonical::to_vec(&tame(details)) {
        Ok(bytes) if bytes.len() <= MAX_DETAILS_BYTES => Ok(bytes),
        Ok(bytes) => note("too long", &bytes),
        Err(error) => note(&error.to_string(), details.to_string().as_bytes()),
    }
}

/// `null` members are dropped, other nulls and unsafe numbers become strings, as metadata does it.
fn tame(value: &Value) -> Value {
    match value {
        Value::Null => Value::String("null".into()),
        Value::Number(n) if n.as_i64().is_none_or(|n| n.unsigned_abs() >= INTEGER_LIMIT) => n.to_string().into(),
        Value::Array(items) => items.iter().map(tame).collect(),
        Value::Object(map) => {
            let kept = map.iter().filter(|(_, item)| !item.is_null());
            Value::Object(kept.map(|(key, item)| (key.clone(), tame(item))).collect::<Map<_, _>>())
        }
        other => other.clone(),
    }
}

/// Merges notes alike in (class, table, hash); beyond 32, one last note sums up the rest.
fn fold_statements(notes: &[StatementNote]) -> Vec<StatementNote> {
    if notes.len() <= MAX_STATEMENTS {
        return notes.iter().map(bounded).collect();
    }
    let mut merged: Vec<StatementNote> = Vec::new();
    let mut place = std::collections::HashMap::new();
    for note in notes.iter().map(bounded) {
        let at = *place.entry((note.class.clone(), note.table.clone(), note.hash)).or_insert(merged.len());
        match merged.get_mut(at) {
            Some(same) => add(same, &note),
            None => merged.push(note),
        }
    }
    if merged.len() > MAX_STATEMENTS {
        let rest = merged.split_off(MAX_STATEMENTS - 1);
        let mut hasher = Hasher::new();
        rest.iter().for_each(|note| hasher.update(note.hash.as_bytes()));
        let table = format!("({} more)", rest.len()).into();
        let mut sum = StatementNote { class: "rest".into(), table, hash: hasher.finish(), rows: 0, us: 0 };
        rest.iter().for_each(|note| add(&mut sum, note));
        merged.push(sum);
    }
    merged
}

fn add(sum: &mut StatementNote, note: &StatementNote) {
    sum.rows = sum.rows.saturating_add(note.rows).min(INTEGER_LIMIT - 1);
    sum.us = sum.us.saturating_add(note.us).min(INTEGER_LIMIT - 1);
}

/// Names as long as PostgreSQL's (63 bytes), numbers below 2^53.
fn bounded(note: &StatementNote) -> StatementNote {
    StatementNote {
        class: clip_note(note.class.clone(), 32),
        table: clip_note(note.table.clone(), 63),
        hash: note.hash,
        rows: note.rows.min(INTEGER_LIMIT - 1),
        us: note.us.min(INTEGER_LIMIT - 1),
    }
}

fn as_view(note: &StatementNote) -> StatementView<'_> {
    StatementView {
        class: Cow::Borrowed(&note.class),
        hash: note.hash.to_string().into(),
        rows: note.rows,
        table: Cow::Borrowed(&note.table),
        us: note.us,
    }
}
