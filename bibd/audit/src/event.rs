//! A sealed entry as it is told to others: log collectors, and what acts on an alert.
//!
//! One JSON object of format `bib-audit-event/1`: the entry's body as it is, where it stands in the chain, and its
//! details. Whoever receives it can check it: the canonical JSON of `entry` is the body, `digest` its digest, and
//! `head` follows from the head before (`docs/audit.md`). It is written in ASCII, other characters as escapes, so that
//! nothing in a name, a control character or a line separator alike, can end a record or reach a terminal.

use std::io::Write as _;

use serde_json::Value;

use crate::body::EntryView;
use crate::verify::Row;

/// The `format` of events.
pub const FORMAT: &str = "bib-audit-event/1";

/// How much of actor and target stays in an event that had to be reduced, in bytes.
const REDUCED_TEXT_BYTES: usize = 160;

/// How the details of an entry are told.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DetailsForm {
    /// As a text that holds JSON. Members of one name that differ in type between entries are no trouble to anybody.
    Text,
    /// As JSON.
    Object,
    /// Not at all: what was not sent need not be erased elsewhere.
    Omit,
}

/// Writes events. It keeps buffers, for whoever writes a million of them.
#[derive(Debug)]
pub struct EventWriter {
    details: DetailsForm,
    buffer: Vec<u8>,
}

impl EventWriter {
    /// A writer that tells details in this form.
    #[must_use]
    pub const fn new(details: DetailsForm) -> Self {
        Self { details, buffer: Vec::new() }
    }

    /// Appends the event of a row. A seal whose entry has left the log is told without it.
    pub fn write(&mut self, row: &Row<'_>, out: &mut Vec<u8>) {
        self.write_form(row, self.details, false, out);
    }

    /// Appends the event of a row in at most `limit_bytes`, if need be without details, or with the most important
    /// members of the entry alone; `reduced` then says what is missing.
    pub fn write_within(&mut self, row: &Row<'_>, limit_bytes: usize, out: &mut Vec<u8>) {
        let begin = out.len();
        for (details, reduced) in [(self.details, false), (DetailsForm::Omit, false), (DetailsForm::Omit, true)] {
            out.truncate(begin);
            self.write_form(row, details, reduced, out);
            if out.len() - begin <= limit_bytes {
                return;
            }
        }
    }

    fn write_form(&mut self, row: &Row<'_>, details: DetailsForm, reduced: bool, out: &mut Vec<u8>) {
        // Members in the order of canonical JSON. Writing to a vector does not fail.
        out.push(b'{');
        let detail = row.detail.as_ref().filter(|_| details != DetailsForm::Omit);
        if let Some(detail) = detail {
            out.extend_from_slice(b"\"details\":");
            match std::str::from_utf8(detail.details) {
                Ok(text) if details == DetailsForm::Object && bib_core::canonical::parse(detail.details).is_ok() => {
                    push_ascii(text, out);
                }
                Ok(text) => self.push_text(text, out),
                Err(_) => self.push_text(&hex::encode(detail.details), out),
            }
            out.push(b',');
        }
        let _ = write!(out, "\"digest\":\"{}\",", hex::encode(row.seal.digest));
        if let Some(entry) = &row.entry {
            let view = EntryView::parse_with(entry.body, &mut self.buffer);
            match (&view, std::str::from_utf8(entry.body)) {
                (Ok(view), Ok(_)) if reduced => {
                    out.extend_from_slice(b"\"entry\":");
                    push_ascii(&reduce(view), out);
                }
                (Ok(_), Ok(text)) => {
                    out.extend_from_slice(b"\"entry\":");
                    push_ascii(text, out);
                }
                // Tampered with: the bytes as they are, for whoever looks into it.
                _ => {
                    let _ = write!(out, "\"damaged\":\"{}\"", hex::encode(entry.body));
                }
            }
            out.push(b',');
        }
        let _ = write!(out, "\"epoch\":{},\"format\":\"{FORMAT}\",", row.seal.epoch);
        let _ = write!(out, "\"head\":\"{}\",", hex::encode(row.seal.head));
        if self.details != details {
            let what = if reduced { "details, entry" } else { "details" };
            let _ = write!(out, "\"reduced\":\"{what}\",");
        }
        if let Some(detail) = detail {
            let _ = write!(out, "\"salt\":\"{}\",", hex::encode(detail.salt));
        }
        let _ = write!(out, "\"seq\":{}}}", row.seal.seq);
    }

    /// A JSON string.
    fn push_text(&mut self, text: &str, out: &mut Vec<u8>) {
        let quoted = Value::from(text).to_string();
        push_ascii(&quoted, out);
    }
}

/// The members of an entry that tell most, as canonical JSON.
fn reduce(view: &EntryView<'_>) -> String {
    let cut = |text: &str| text[..text.floor_char_boundary(REDUCED_TEXT_BYTES)].to_owned();
    let members = serde_json::json!({
        "action": view.action, "actor": cut(&view.actor), "id": view.id, "node": view.node,
        "operation": view.operation, "result": view.result, "target": cut(&view.target), "time": view.time,
        "via": view.via,
    });
    members.to_string()
}

/// Appends JSON text with every character that is not printable ASCII as an escape: the same value once parsed. Outside
/// of strings canonical JSON is ASCII, so only strings are changed.
pub fn push_ascii(json: &str, out: &mut Vec<u8>) {
    if json.bytes().all(|byte| byte < 0x7F) {
        out.extend_from_slice(json.as_bytes());
        return;
    }
    for c in json.chars() {
        if c < '\u{7f}' {
            out.push(c as u8);
            continue;
        }
        for unit in c.encode_utf16(&mut [0; 2]) {
            let _ = write!(out, "\\u{unit:04x}");
        }
    }
}
