//! `bib admin db`: the managed PostgreSQL.

use bib_client::pb;
use bib_core::text::scrub;
use clap::Subcommand;

use crate::context::Context;
use crate::errors::{Exit, Failure, Result};
use crate::output::{Format, record};

/// The managed PostgreSQL.
#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Runs the hardening checklist; exit 7 when an item fails. `-o markdown` writes a report
    Audit,
}

record! {
    /// An item of the checklist.
    FindingRow {
        item: String = Text listed, status: String = Text listed, title: String = Text listed, observed: String = Text listed,
        expected: String = Text, reason: String = Text,
    }
}

impl Command {
    /// Runs the command.
    pub(crate) async fn run(self, context: &Context) -> Result<()> {
        let answer = context.client().await?.admin().audit_database().await?;
        let failed = answer.failed;
        if context.output.format() == Format::Markdown {
            context.output.text(&report(&answer))?;
        } else {
            let summary =
                format!("{} passed, {} failed, {} do not apply", answer.passed, failed, answer.not_applicable);
            let mut list = context.output.list();
            for finding in answer.findings {
                list.push(&FindingRow::from(finding))?;
            }
            list.finish("no items")?;
            context.output.note(&summary);
        }
        if failed > 0 { Err(Failure::said(Exit::Integrity)) } else { Ok(()) }
    }
}

fn report(answer: &pb::AuditDatabaseResponse) -> String {
    let mut text = format!(
        "# PostgreSQL checklist\n\n{} passed, {} failed, {} do not apply.\n\n| item | status | what | observed | expected | reason |\n|---|---|---|---|---|---|\n",
        answer.passed, answer.failed, answer.not_applicable
    );
    for finding in &answer.findings {
        let cells =
            [&finding.item, &finding.status, &finding.title, &finding.observed, &finding.expected, &finding.reason];
        let row: Vec<String> = cells.into_iter().map(|cell| escape_markdown(cell)).collect();
        text.push_str(&format!("| {} |\n", row.join(" | ")));
    }
    text
}

/// A cell can neither end the row nor start markup or HTML.
fn escape_markdown(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in scrub(text).chars() {
        match c {
            '|' | '\\' | '`' | '*' | '_' | '[' | ']' => out.extend(['\\', c]),
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '&' => out.push_str("&amp;"),
            _ => out.push(c),
        }
    }
    out
}

impl From<pb::Finding> for FindingRow {
    fn from(finding: pb::Finding) -> Self {
        Self {
            item: finding.item,
            status: finding.status,
            title: finding.title,
            observed: finding.observed,
            expected: finding.expected,
            reason: finding.reason,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_report_is_a_table_whatever_was_observed() {
        let finding = pb::Finding {
            item: "C.1-1".into(),
            title: "a | b".into(),
            status: "fail".into(),
            observed: "<script>\n".into(),
            ..Default::default()
        };
        let answer = pb::AuditDatabaseResponse { findings: vec![finding], passed: 0, failed: 1, not_applicable: 0 };
        let text = report(&answer);
        let row = text.lines().last().unwrap();
        assert_eq!(row, r"| C.1-1 | fail | a \| b | &lt;script&gt;\\u{a} |  |  |");
    }
}
