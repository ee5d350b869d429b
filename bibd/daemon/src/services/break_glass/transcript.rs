//! What was said and answered, as lines of a recording. Pure: it keeps count and decides nothing.
//!
//! A line is durable when something is about to be run or to take effect: it must be on the disk and in the audit log
//! before the bytes are passed on. Everything else follows with the next line that is.

use std::collections::HashSet;

use bib_core::{Hash, Hasher};
use bibd_postgres::glass::backend::{Report, Told};
use bibd_postgres::glass::frontend::{Said, Value as Bound};
use bytes::Bytes;
use serde_json::{Map, Value, json};

use crate::config::AuditLevel;

/// Distinct nested statements of one statement that are told once each; those beyond are told each time.
const MAX_DISTINCT: usize = 1_000;

/// Statements that are recognised when the server tells of them; those before them would be told once more.
const MAX_OWN: usize = 10_000;

/// A line.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Line {
    /// Its members; the recorder adds number and time.
    pub(super) fields: Map<String, Value>,
    /// What was meant to be run, for the audit log.
    pub(super) is_durable: bool,
    /// What a terminal would have shown.
    pub(super) shown: String,
    /// What was typed.
    pub(super) typed: String,
}

/// A session as it goes on.
#[derive(Debug)]
pub(super) struct Transcript {
    level: AuditLevel,
    copied_in: Copied,
    copied_out: Copied,
    rows: u64,
    nested: u64,
    distinct: HashSet<String>,
    /// Hashes of what was said: what the server tells as running may be just that.
    own: HashSet<Hash>,
    state: char,
    statements: u64,
}

/// The bytes of a COPY.
#[derive(Debug, Default)]
struct Copied {
    bytes: u64,
    hash: Hasher,
}

impl Copied {
    fn take(&mut self, data: &[u8]) {
        self.bytes += data.len() as u64;
        self.hash.update(data);
    }

    fn line(&mut self, kind: &str) -> Map<String, Value> {
        let Self { bytes, hash } = std::mem::take(self);
        object(json!({ "kind": kind, "bytes": bytes, "sha256": hash.finish() }))
    }
}

impl Transcript {
    pub(super) fn new(level: AuditLevel) -> Self {
        Self {
            level,
            copied_in: Copied::default(),
            copied_out: Copied::default(),
            rows: 0,
            nested: 0,
            distinct: HashSet::new(),
            own: HashSet::new(),
            state: 'I',
            statements: 0,
        }
    }

    /// Statements that were passed on.
    pub(super) fn statements(&self) -> u64 {
        self.statements
    }

    /// Something comes from the person.
    pub(super) fn said(&mut self, said: &Said) -> Option<Line> {
        let is_paranoid = self.level == AuditLevel::Paranoid;
        let fields = match said {
            Said::Query(text) => {
                self.statements += 1;
                self.remember(text);
                let typed = String::from_utf8_lossy(text).into_owned();
                let shown = format!("{}{typed}\n", self.prompt());
                let fields = with(json!({ "kind": "query" }), "text", spell(text));
                return Some(Line { fields, is_durable: true, shown, typed });
            }
            Said::Parse { name, text } => {
                self.remember(text);
                let typed = String::from_utf8_lossy(text).into_owned();
                let shown = format!("{}{typed}\n", self.prompt());
                let fields = with(json!({ "kind": "parse", "name": spell(name) }), "text", spell(text));
                return Some(Line { fields, is_durable: true, shown, typed });
            }
            Said::Bind { portal, statement, values } => json!({
                "kind": "bind", "portal": spell(portal), "statement": spell(statement), "values": bound(values),
            }),
            Said::Execute { portal, rows } => {
                self.statements += 1;
                json!({ "kind": "execute", "portal": spell(portal), "rows": rows })
            }
            Said::Call { function, values } => {
                self.statements += 1;
                json!({ "kind": "call", "function": function, "values": bound(values) })
            }
            Said::CopyData(data) => {
                self.copied_in.take(data);
                let fields = json!({ "kind": "copy_in_data", "data": spell(data) });
                return is_paranoid.then(|| beside(object(fields), String::new()));
            }
            Said::CopyDone => {
                let mut fields = self.copied_in.line("copy_in");
                fields.insert("complete".to_owned(), Value::Bool(true));
                Value::Object(fields)
            }
            Said::CopyFail(reason) => {
                let mut fields = self.copied_in.line("copy_in");
                fields.insert("complete".to_owned(), Value::Bool(false));
                fields.insert("reason".to_owned(), spell(reason));
                Value::Object(fields)
            }
            Said::Terminate => return Some(beside(object(json!({ "kind": "terminate" })), String::new())),
            Said::Housekeeping => return None,
        };
        let shown = format!("-- {fields}\n");
        Some(Line { fields: object(fields), is_durable: true, shown, typed: String::new() })
    }

    /// Something comes from the server.
    pub(super) fn told(&mut self, told: &Told) -> Option<Line> {
        let is_paranoid = self.level == AuditLevel::Paranoid;
        match told {
            Told::Columns(columns) => {
                let names: Vec<&str> = columns.iter().map(|(name, _)| name.as_str()).collect();
                let shown = format!("{}\n", names.join(" | "));
                is_paranoid.then(|| beside(object(json!({ "kind": "columns", "names": names })), shown))
            }
            Told::Row(values) => {
                self.rows += 1;
                is_paranoid.then(|| {
                    let text = |value: &Option<Bytes>| {
                        value.as_ref().map(|bytes| String::from_utf8_lossy(bytes).into_owned()).unwrap_or_default()
                    };
                    let shown = values.iter().map(text).collect::<Vec<_>>().join(" | ") + "\n";
                    let values: Vec<Value> =
                        values.iter().map(|value| value.as_ref().map_or(Value::Null, |bytes| spell(bytes))).collect();
                    beside(object(json!({ "kind": "row", "values": values })), shown)
                })
            }
            Told::Done(tag) => {
                let rows = std::mem::take(&mut self.rows);
                Some(beside(object(json!({ "kind": "done", "tag": tag, "rows": rows })), format!("{tag}\n")))
            }
            Told::Failed(report) => {
                self.rows = 0;
                Some(reported("failed", report))
            }
            Told::Notice(report) => Some(reported("notice", report)),
            Told::Nested(text) if self.own.contains(&Hash::of(text.as_bytes())) => None,
            Told::Nested(text) => {
                self.nested += 1;
                let is_new = self.distinct.len() >= MAX_DISTINCT || self.distinct.insert(text.clone());
                is_new
                    .then(|| beside(object(json!({ "kind": "nested", "text": text })), format!("-- nested: {text}\n")))
            }
            Told::CopyIn => Some(beside(object(json!({ "kind": "copy_in_begins" })), String::new())),
            Told::CopyOut => None,
            Told::CopyData(data) => {
                self.copied_out.take(data);
                let shown = String::from_utf8_lossy(data).into_owned();
                is_paranoid.then(|| beside(object(json!({ "kind": "copy_out_data", "data": spell(data) })), shown))
            }
            Told::CopyDone => Some(beside(self.copied_out.line("copy_out"), String::new())),
            Told::Returned(value) => {
                let value = value.as_ref().filter(|_| is_paranoid).map_or(Value::Null, |bytes| spell(bytes));
                Some(beside(object(json!({ "kind": "returned", "value": value })), String::new()))
            }
            Told::Ready(state) => self.ready(*state),
            Told::Other => None,
        }
    }

    /// A part of an answer that is too long to be looked at as a whole.
    pub(super) fn part(&mut self, tag: u8, bytes: u64, is_last: bool) -> Option<Line> {
        if tag == b'D' && is_last {
            self.rows += 1;
        }
        let fields = json!({ "kind": "long_answer", "message": char::from(tag).to_string(), "bytes": bytes });
        is_last.then(|| beside(object(fields), format!("({bytes} bytes)\n")))
    }

    fn ready(&mut self, state: char) -> Option<Line> {
        self.distinct.clear();
        let nested = std::mem::take(&mut self.nested);
        if state == self.state && nested == 0 {
            return None;
        }
        self.state = state;
        let state = match state {
            'I' => "idle",
            'T' => "in a transaction",
            _ => "in a failed transaction",
        };
        Some(beside(object(json!({ "kind": "ready", "state": state, "nested": nested })), String::new()))
    }

    fn remember(&mut self, text: &[u8]) {
        if self.own.len() >= MAX_OWN {
            self.own.clear();
        }
        self.own.insert(Hash::of(text));
    }

    fn prompt(&self) -> &'static str {
        match self.state {
            'I' => "bib=> ",
            'T' => "bib=*> ",
            _ => "bib=!> ",
        }
    }
}

fn beside(fields: Map<String, Value>, shown: String) -> Line {
    Line { fields, is_durable: false, shown, typed: String::new() }
}

fn reported(kind: &str, report: &Report) -> Line {
    let Report { severity, code, message } = report;
    let fields = json!({ "kind": kind, "severity": severity, "code": code, "message": message });
    beside(object(fields), format!("{severity}: {message}\n"))
}

fn bound(values: &[Bound]) -> Vec<Value> {
    values
        .iter()
        .map(|value| match &value.bytes {
            None => Value::Null,
            Some(bytes) if value.is_binary => json!({ "binary": hex::encode(bytes) }),
            Some(bytes) => spell(bytes),
        })
        .collect()
}

/// The bytes as text; as hex digits where they are none.
fn spell(bytes: &[u8]) -> Value {
    match std::str::from_utf8(bytes) {
        Ok(text) => Value::String(text.to_owned()),
        Err(_) => json!({ "hex": hex::encode(bytes) }),
    }
}

/// The members of a JSON object.
pub(super) fn object(value: Value) -> Map<String, Value> {
    match value {
        Value::Object(map) => map,
        other => Map::from_iter([("value".to_owned(), other)]),
    }
}

fn with(value: Value, name: &str, member: Value) -> Map<String, Value> {
    let mut map = object(value);
    map.insert(name.to_owned(), member);
    map
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lines(level: AuditLevel, said: &[Said], told: &[Told]) -> Vec<(String, bool)> {
        let mut transcript = Transcript::new(level);
        let said = said.iter().filter_map(|said| transcript.said(said)).collect::<Vec<_>>();
        let told = told.iter().filter_map(|told| transcript.told(told)).collect::<Vec<_>>();
        said.into_iter().chain(told).map(|line| (Value::Object(line.fields).to_string(), line.is_durable)).collect()
    }

    fn text(bytes: &'static [u8]) -> Bytes {
        Bytes::from_static(bytes)
    }

    #[test]
    fn whatever_is_run_is_durable_with_its_values() {
        let value = |is_binary, bytes: Option<&'static [u8]>| Bound { is_binary, bytes: bytes.map(text) };
        let said = [
            Said::Query(text(b"SELECT 'a'")),
            Said::Query(text(b"SELECT '\xff'")),
            Said::Parse { name: text(b"s"), text: text(b"DELETE FROM t WHERE id = $1") },
            Said::Bind {
                portal: text(b""),
                statement: text(b"s"),
                values: vec![value(false, Some(b"7")), value(true, Some(b"\0\x07")), value(false, None)],
            },
            Said::Execute { portal: text(b""), rows: 0 },
            Said::Call { function: 957, values: vec![] },
            Said::CopyDone,
            Said::Housekeeping,
        ];
        let found = lines(AuditLevel::Statements, &said, &[]);
        assert!(found.iter().all(|(_, is_durable)| *is_durable));
        let found: Vec<&str> = found.iter().map(|(line, _)| line.as_str()).collect();
        assert_eq!(
            found,
            [
                r#"{"kind":"query","text":"SELECT 'a'"}"#,
                r#"{"kind":"query","text":{"hex":"53454c4543542027ff27"}}"#,
                r#"{"kind":"parse","name":"s","text":"DELETE FROM t WHERE id = $1"}"#,
                r#"{"kind":"bind","portal":"","statement":"s","values":["7",{"binary":"0007"},null]}"#,
                r#"{"kind":"execute","portal":"","rows":0}"#,
                r#"{"function":957,"kind":"call","values":[]}"#,
                r#"{"bytes":0,"complete":true,"kind":"copy_in","sha256":"e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"}"#,
            ]
        );
    }

    #[test]
    fn a_copy_is_counted_and_hashed_and_its_data_kept_only_when_paranoid() {
        let said = [Said::CopyData(text(b"1\n")), Said::CopyData(text(b"2\n")), Said::CopyDone];
        let told = [Told::CopyOut, Told::CopyData(text(b"1\n2\n")), Told::CopyDone];
        let sum = Hash::of(b"1\n2\n").to_string();
        let few = lines(AuditLevel::Statements, &said, &told);
        assert_eq!(few.len(), 2);
        assert!(few.iter().all(|(line, _)| line.contains(&sum) && line.contains(r#""bytes":4"#)), "{few:?}");
        let all = lines(AuditLevel::Paranoid, &said, &told);
        assert_eq!(all.len(), 5);
        assert!(all[0].0.contains(r#""data":"1\n""#) && !all[0].1, "{all:?}");
    }

    #[test]
    fn rows_are_kept_only_when_paranoid_and_always_counted() {
        let told = [
            Told::Columns(vec![("a".to_owned(), false)]),
            Told::Row(vec![Some(text(b"1")), None]),
            Told::Done("SELECT 1".to_owned()),
            Told::Ready('I'),
        ];
        let done = r#"{"kind":"done","rows":1,"tag":"SELECT 1"}"#;
        assert_eq!(lines(AuditLevel::Statements, &[], &told), [(done.to_owned(), false)]);
        let all = lines(AuditLevel::Paranoid, &[], &told);
        assert_eq!((all.len(), all[1].0.as_str()), (3, r#"{"kind":"row","values":["1",null]}"#));
    }

    #[test]
    fn a_nested_statement_is_told_once_and_counted() {
        let nested = || Told::Nested("DELETE FROM t".to_owned());
        let own = Told::Nested("DO 1".to_owned());
        let told = [own, nested(), nested(), nested(), Told::Ready('I'), nested(), Told::Ready('T')];
        let found = lines(AuditLevel::Statements, &[Said::Query(text(b"DO 1"))], &told);
        let found: Vec<&str> = found.iter().map(|(line, _)| line.as_str()).collect();
        assert_eq!(
            found,
            [
                r#"{"kind":"query","text":"DO 1"}"#,
                r#"{"kind":"nested","text":"DELETE FROM t"}"#,
                r#"{"kind":"ready","nested":3,"state":"idle"}"#,
                r#"{"kind":"nested","text":"DELETE FROM t"}"#,
                r#"{"kind":"ready","nested":1,"state":"in a transaction"}"#,
            ]
        );
    }
}
