//! The report of a grant: JSON as the node has it, or a page for people.

use serde_json::Value;

use super::super::database::escape_markdown;
use crate::context::Context;
use crate::errors::{Failure, Result};
use crate::output::Format;

/// Prints the report: Markdown for eyes, the document itself for programs.
pub(super) fn print(context: &Context, text: &str) -> Result<()> {
    let report: Value =
        serde_json::from_str(text).map_err(|error| Failure::failed(format!("the report cannot be read: {error}")))?;
    match context.output.format() {
        Format::Json | Format::Yaml | Format::Csv => context.output.document(&report),
        _ => context.output.text(&page(&report)),
    }
}

fn page(report: &Value) -> String {
    let mut page = format!("# Break-glass {}\n\n| | |\n|---|---|\n", cell(&report["grant"]));
    for (title, name) in [
        ("who", "user"),
        ("why", "reason"),
        ("what for", "access"),
        ("confirmed by", "key_name"),
        ("with the key", "key"),
        ("from", "created_at"),
        ("until at the latest", "expires_at"),
        ("ended", "ended_at"),
        ("because", "end_reason"),
        ("statements", "statements"),
    ] {
        page.push_str(&format!("| {title} | {} |\n", cell(&report[name])));
    }
    page.push_str("\n## What is not as it was\n\n");
    let changes = report["changes"].as_array().map(Vec::as_slice).unwrap_or_default();
    if report["changes_known"] == Value::Bool(false) {
        page.push_str("Not known: the state before was not kept.\n");
    } else if changes.is_empty() {
        page.push_str("Nothing among roles, rights, functions, triggers, settings and other objects.\n");
    } else {
        page.push_str("| kind | name | before | after |\n|---|---|---|---|\n");
        for change in changes {
            let cells = ["kind", "name", "before", "after"].map(|name| cell(&change[name]));
            page.push_str(&format!("| {} |\n", cells.join(" | ")));
        }
    }
    if report["password_changed"] == Value::Bool(true) {
        page.push_str("\nThe password of the role was changed from inside of a session.\n");
    }
    for session in report["sessions"].as_array().into_iter().flatten() {
        page.push_str(&format!(
            "\n## Session {}\n\n{} from {} to {}, ended: {}; recording SHA-256 {}\n\n| n | what | text |\n|---|---|---|\n",
            cell(&session["session"]),
            cell(&session["application"]),
            cell(&session["started_at"]),
            cell(&session["ended_at"]),
            cell(&session["end_reason"]),
            cell(&session["recording_sha256"]),
        ));
        for line in session["lines"].as_array().into_iter().flatten() {
            page.push_str(&format!("| {} | {} | {} |\n", cell(&line["n"]), cell(&line["kind"]), cell(&rest(line))));
        }
        if session["lines_left_out"].as_u64() != Some(0) {
            page.push_str(&format!("\n{} more lines are in the recording.\n", cell(&session["lines_left_out"])));
        }
    }
    page
}

/// What a line says: its text where that is all.
fn rest(line: &Value) -> Value {
    if let Some(text) = line["text"].as_str() {
        return Value::from(text);
    }
    let mut rest = line.clone();
    if let Some(members) = rest.as_object_mut() {
        members.retain(|name, _| !matches!(name.as_str(), "n" | "us" | "kind"));
    }
    rest
}

fn cell(value: &Value) -> String {
    match value {
        Value::Null => String::new(),
        Value::String(text) => escape_markdown(text),
        other => escape_markdown(&other.to_string()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn a_page_is_a_table_whatever_was_said() {
        let report = json!({
            "grant": "g", "user": "ada", "reason": "a | b", "changes_known": true, "statements": 2,
            "changes": [{ "kind": "function", "name": "bib.f()", "after": "text <x>" }],
            "sessions": [{ "session": "s", "lines_left_out": 3, "lines": [
                { "n": 2, "us": 1, "kind": "query", "text": "SELECT '|'\n;" },
                { "n": 3, "us": 1, "kind": "done", "tag": "SELECT 1", "rows": 1 },
            ] }],
        });
        let page = page(&report);
        assert!(page.contains(r"| why | a \| b |"), "{page}");
        assert!(page.contains("| function | bib.f() |  | text &lt;x&gt; |"), "{page}");
        assert!(page.contains(r"| 2 | query | SELECT '\|'\\u{a}; |"), "{page}");
        assert!(page.contains(r#"| 3 | done | {"rows":1,"tag":"SELECT 1"} |"#), "{page}");
        assert!(page.contains("3 more lines are in the recording."), "{page}");
    }
}
