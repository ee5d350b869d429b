//! What a grant came to: who, why, when, what was run, and what is not as it was. Put together from the recordings as they
//! lie on the disk, so that the sessions of a daemon that died are in it too.

use std::fs::File;
use std::io::{self, BufRead as _, BufReader, Read as _};

use bib_core::{Hash, Timestamp};
use bibd_catalog::glass::{GlassSession, Granted};
use bibd_postgres::glass::Closed;
use bibd_postgres::glass::snapshot::{Snapshot, changes};
use serde_json::{Value, json};
use uuid::Uuid;

use super::recorder::{Form, Shelf};

/// Lines of a session that a report repeats; the recording has all.
const MAX_LINES: usize = 2_000;
/// Bytes of a line that a report repeats.
const MAX_LINE_BYTES: usize = 2_000;
/// Changes that a report repeats.
const MAX_CHANGES: usize = 1_000;
/// Bytes of a report; with all of these bounds it stays far below what the catalog takes.
const MAX_REPORT_BYTES: usize = 12 << 20;
/// The longest line that is read back: a message, spelled as JSON.
const MAX_READ_BYTES: u64 = 128 << 20;

/// What is known when a grant ends.
pub(super) struct Evidence {
    pub(super) granted: Granted,
    pub(super) role: String,
    pub(super) node: String,
    pub(super) ended_at: Timestamp,
    pub(super) reason: &'static str,
    pub(super) sessions: Vec<GlassSession>,
    pub(super) before: Option<Snapshot>,
    pub(super) closed: Closed,
}

/// A report.
pub(super) struct Report {
    pub(super) bytes: String,
    pub(super) hash: Hash,
    pub(super) changes: usize,
    pub(super) statements: u64,
}

/// Makes the report. Reads files: away from the asynchronous threads.
///
/// # Errors
/// When a recording that is there cannot be read.
pub(super) fn make(evidence: &Evidence, shelf: &Shelf) -> io::Result<Report> {
    let Evidence { granted, closed, .. } = evidence;
    let changed = match (&evidence.before, &closed.after) {
        (Some(before), Some(after)) => Some(changes(before, after, &evidence.role)),
        _ => None,
    };
    let mut statements = 0;
    let mut sessions = Vec::new();
    for id in shelf.sessions() {
        let read = read(shelf, id)?;
        statements += read.statements;
        let row = evidence.sessions.iter().find(|row| row.id == id);
        sessions.push(json!({
            "session": id.to_string(),
            "application": row.map(|row| row.application.clone()),
            "started_at": row.map(|row| row.started_at.to_string()),
            "ended_at": row.and_then(|row| row.ended_at).map(|at| at.to_string()),
            "end_reason": row.filter(|row| row.ended_at.is_some()).map(|row| row.end_reason.clone()),
            "statements": read.statements,
            "recording_sha256": read.hash.to_string(),
            "lines": read.lines,
            "lines_left_out": read.left_out,
        }));
    }
    let count = changed.as_ref().map_or(0, Vec::len);
    let mut report = json!({
        "format": "bib-break-glass-report/1",
        "node": evidence.node,
        "grant": granted.id.to_string(),
        "user": granted.user_name,
        "reason": granted.reason,
        "access": granted.access.as_str(),
        "key_name": granted.key_name,
        "key": granted.key_fingerprint,
        "signed_statement": String::from_utf8_lossy(&granted.statement),
        "signature": granted.signature,
        "created_at": granted.created_at.to_string(),
        "expires_at": granted.expires_at.to_string(),
        "ended_at": evidence.ended_at.to_string(),
        "end_reason": evidence.reason,
        "statements": statements,
        "sessions": sessions,
        "password_changed": closed.password_changed,
        "changes_known": changed.is_some(),
        "changes": changed.unwrap_or_default().into_iter().take(MAX_CHANGES).collect::<Vec<_>>(),
        "changes_left_out": count.saturating_sub(MAX_CHANGES),
    });
    let mut bytes = report.to_string();
    if bytes.len() > MAX_REPORT_BYTES {
        // The recordings are the evidence; the report names them by their hashes all the same.
        for session in report["sessions"].as_array_mut().into_iter().flatten() {
            let lines = session["lines"].as_array().map_or(0, Vec::len) as u64;
            let left_out = session["lines_left_out"].as_u64().unwrap_or_default() + lines;
            (session["lines"], session["lines_left_out"]) = (json!([]), json!(left_out));
        }
        bytes = report.to_string();
    }
    Ok(Report { hash: Hash::of(bytes.as_bytes()), bytes, changes: count, statements })
}

/// A recording as it is read back.
struct Recording {
    hash: Hash,
    statements: u64,
    lines: Vec<Value>,
    left_out: u64,
}

fn read(shelf: &Shelf, session: Uuid) -> io::Result<Recording> {
    let mut hasher = bib_core::Hasher::new();
    let (mut statements, mut lines, mut left_out) = (0, Vec::new(), 0);
    let mut file = BufReader::new(File::open(shelf.recording(session, Form::Lines))?);
    let mut text = Vec::new();
    loop {
        text.clear();
        if file.by_ref().take(MAX_READ_BYTES).read_until(b'\n', &mut text)? == 0 {
            break;
        }
        hasher.update(&text);
        // The last line of a daemon that died may be half there; it is in the hash.
        let Ok(line) = serde_json::from_slice::<Value>(&text) else { continue };
        let kind = line["kind"].as_str().unwrap_or_default();
        statements += u64::from(matches!(kind, "query" | "execute" | "call"));
        if !is_told(kind) {
            continue;
        }
        if lines.len() < MAX_LINES {
            lines.push(shortened(line, &text));
        } else {
            left_out += 1;
        }
    }
    Ok(Recording { hash: hasher.finish(), statements, lines, left_out })
}

/// What a reviewer wants to see first: what was run and what became of it, not the data.
fn is_told(kind: &str) -> bool {
    const LEFT_OUT: [&str; 9] =
        ["", "begin", "terminate", "row", "columns", "copy_in_data", "copy_out_data", "alive", "ready"];
    !LEFT_OUT.contains(&kind)
}

fn shortened(line: Value, text: &[u8]) -> Value {
    if text.len() <= MAX_LINE_BYTES {
        return line;
    }
    let start: String = String::from_utf8_lossy(&text[..MAX_LINE_BYTES]).into_owned();
    json!({ "n": line["n"], "kind": line["kind"], "shortened": start, "bytes": text.len() })
}
