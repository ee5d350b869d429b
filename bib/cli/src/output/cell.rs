//! One value in a table, in a list of details, in CSV.

use std::io::Write;

use bib_core::text::{scrub, scrub_lines};
use serde_json::Value;

use super::{Field, Kind};
use crate::errors::Result;
use crate::units::{format_bytes, format_millis};

/// What stands for a missing value in a table.
const NOTHING: &str = "-";

/// A value for eyes, in one line.
pub(super) fn in_table(field: &Field, value: &Value) -> String {
    match (field.kind, value) {
        (Kind::Hash, Value::String(hash)) => or_nothing(scrub(hash.get(..12).unwrap_or(hash)).into_owned()),
        (Kind::Person, Value::String(who)) if who.starts_with("SHA256:") => {
            let short: String = who.chars().take(16).collect();
            format!("{}…", scrub(&short))
        }
        (Kind::Lines, Value::String(text)) => {
            let first = text.lines().next().unwrap_or_default();
            let cut: String = first.chars().take(60).collect();
            let more = if cut.len() < text.len() { "…" } else { "" };
            or_nothing(format!("{}{more}", scrub(&cut)))
        }
        _ => in_details(field, value).replace('\n', " "),
    }
}

/// A value for eyes, whole.
pub(super) fn in_details(field: &Field, value: &Value) -> String {
    match (field.kind, value) {
        (_, Value::Null) => NOTHING.to_owned(),
        (Kind::Bytes, Value::Number(bytes)) => bytes.as_u64().map_or_else(|| bytes.to_string(), format_bytes),
        (Kind::Millis, Value::Number(ms)) => ms.as_u64().map_or_else(|| ms.to_string(), format_millis),
        (Kind::Time, Value::String(time)) => or_nothing(scrub(&without_fraction(time)).into_owned()),
        (Kind::Lines, Value::String(text)) => or_nothing(scrub_lines(text).into_owned()),
        (_, Value::String(text)) => or_nothing(scrub(text).into_owned()),
        (_, Value::Bool(true)) => "yes".to_owned(),
        (_, Value::Bool(false)) => "no".to_owned(),
        (Kind::Lined, Value::Array(items)) => {
            let items: Vec<String> = items.iter().map(|item| scrub(&plain(item)).into_owned()).collect();
            or_nothing(items.join("\n"))
        }
        (_, Value::Array(items)) => {
            let items: Vec<String> = items.iter().map(plain).collect();
            or_nothing(scrub(&items.join(", ")).into_owned())
        }
        (_, other) => scrub(&plain(other)).into_owned(),
    }
}

fn or_nothing(text: String) -> String {
    if text.is_empty() { NOTHING.to_owned() } else { text }
}

fn plain(value: &Value) -> String {
    match value {
        Value::Null => String::new(),
        Value::String(text) => text.clone(),
        Value::Array(items) => items.iter().map(plain).collect::<Vec<_>>().join(" "),
        other => other.to_string(),
    }
}

/// `2026-01-02T03:04:05.123456Z` without the part that only machines read.
fn without_fraction(time: &str) -> String {
    match (time.split_once('.'), time.ends_with('Z')) {
        (Some((seconds, _)), true) => format!("{seconds}Z"),
        _ => time.to_owned(),
    }
}

/// A field's name for eyes: the unit stands with the value.
pub(super) fn title(field: &Field) -> String {
    let name = match field.kind {
        Kind::Bytes => field.name.strip_suffix("_bytes").unwrap_or(field.name),
        Kind::Millis => field.name.strip_suffix("_ms").unwrap_or(field.name),
        _ => field.name,
    };
    name.replace('_', " ")
}

/// Whether there is nothing to see: a program still gets the field.
fn is_nothing(value: &Value) -> bool {
    match value {
        Value::Null => true,
        Value::String(text) => text.is_empty(),
        Value::Array(items) => items.is_empty(),
        Value::Object(fields) => fields.is_empty(),
        Value::Bool(_) | Value::Number(_) => false,
    }
}

/// `name  value` lines for what has a value; a value of several lines follows below, indented.
pub(super) fn write_details(to: &mut dyn Write, fields: &[Field], value: &Value, colours: bool) -> Result<()> {
    let (dim, reset) = if colours { ("\x1b[2m", "\x1b[0m") } else { ("", "") };
    let value_of = |field: &Field| value.get(field.name).unwrap_or(&Value::Null);
    let shown: Vec<&Field> = fields.iter().filter(|field| !is_nothing(value_of(field))).collect();
    let width = shown.iter().map(|field| title(field).len()).max().unwrap_or(0);
    for field in shown {
        let title = title(field);
        let text = in_details(field, value_of(field));
        let text = text.trim_end().replace('\n', &format!("\n{:width$}  ", ""));
        writeln!(to, "{dim}{title:width$}{reset}  {text}")?;
    }
    Ok(())
}

/// The names of the fields.
pub(super) fn write_csv_header<W: Write>(csv: &mut csv::Writer<W>, fields: &[Field]) -> Result<()> {
    csv.write_record(fields.iter().map(|field| field.name)).map_err(csv_error)
}

/// The values. Unless `exact`, they are safe to print and no spreadsheet takes one for a formula.
pub(super) fn write_csv_row<W: Write>(
    csv: &mut csv::Writer<W>,
    fields: &[Field],
    value: &Value,
    exact: bool,
) -> Result<()> {
    let cells = fields.iter().map(|field| {
        let value = value.get(field.name).unwrap_or(&Value::Null);
        let text = match value {
            Value::Array(items) if !exact => items.iter().map(plain).collect::<Vec<_>>().join(" "),
            Value::Array(_) => value.to_string(),
            other => plain(other),
        };
        if exact || value.is_number() { text } else { spreadsheet_safe(&text) }
    });
    csv.write_record(cells).map_err(csv_error)
}

/// A leading `'` keeps a spreadsheet from reading the cell as a formula.
fn spreadsheet_safe(text: &str) -> String {
    let safe = scrub(text);
    match text.chars().next() {
        Some('=' | '+' | '-' | '@' | '\t' | '\r' | '\n' | '\u{ff1d}' | '\u{ff0b}' | '\u{ff0d}' | '\u{ff20}') => {
            format!("'{safe}")
        }
        _ => safe.into_owned(),
    }
}

fn csv_error(error: csv::Error) -> crate::errors::Failure {
    match error.into_kind() {
        csv::ErrorKind::Io(error) => error.into(),
        other => crate::errors::Failure::failed(format!("write CSV: {other:?}")),
    }
}
