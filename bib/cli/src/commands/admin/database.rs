//! `bib admin db`: the managed PostgreSQL.

use bib_client::pb;
use bib_core::text::scrub;
use clap::{Args, Subcommand};

use crate::commands::done::Done;
use crate::context::Context;
use crate::errors::{Exit, Failure, Result};
use crate::output::{Format, record};
use crate::units::format_millis;

/// The managed PostgreSQL.
#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Runs the hardening checklist; exit 7 when an item fails. `-o markdown` writes a report
    Audit,
    /// Hands the database to another provisioner, with everything in it, when `bibd` starts next
    Move {
        /// `process` or `container`
        #[arg(long, value_name = "PROVISIONER", value_parser = ["process", "container"])]
        to: String,
        /// Only say whether it could be run there
        #[arg(long)]
        dry_run: bool,
    },
    /// Gives the database's logins new passwords now, while everybody goes on working
    Rotate {
        /// Only this role, as `status` names it; can be repeated
        #[arg(long = "role", value_name = "ROLE")]
        roles: Vec<String>,
    },
    /// Shows what runs the database, and every role with its login and the age of its password
    Status,
    /// Carries the database over to a newer major version of PostgreSQL when `bibd` starts next
    Upgrade(Upgrade),
}

/// An upgrade.
#[derive(Debug, Args)]
pub(crate) struct Upgrade {
    /// To this version; to the newest that the node has when absent
    #[arg(long, value_name = "MAJOR", value_parser = clap::value_parser!(u32).range(1..))]
    to_major: Option<u32>,
    /// Only tries the newer programs, and says what it would take
    #[arg(long)]
    dry_run: bool,
    /// Takes back what is planned
    #[arg(long, conflicts_with_all = ["to_major", "dry_run"])]
    cancel: bool,
    /// Removes the database that the last upgrade replaced: there is no way back then
    #[arg(long, conflicts_with_all = ["to_major", "dry_run", "cancel"])]
    remove_old: bool,
}

record! {
    /// An item of the checklist.
    FindingRow {
        item: String = Text listed, status: String = Text listed, title: String = Text listed, observed: String = Text listed,
        expected: String = Text, reason: String = Text,
    }
}

record! {
    /// What a rotation did.
    RotationRow { roles: Vec<String> = Many, left_out: Vec<String> = Many, duration_ms: u64 = Millis }
}

record! {
    /// A move of the database.
    MoveRow { from: String = Text, to: String = Text, version: String = Text, planned: bool = Text }
}

record! {
    /// An upgrade of the database.
    UpgradeRow {
        from: String = Text, to: String = Text, programs: String = Text, database_bytes: u64 = Bytes,
        needed_bytes: u64 = Bytes, free_bytes: u64 = Bytes, kept: String = Text, planned: bool = Text,
    }
}

record! {
    /// What the database that an upgrade replaced took.
    RemovedRow { removed_bytes: u64 = Bytes }
}

record! {
    /// A role of the database; what is the same for all of them is for programs.
    RoleRow {
        role: String = Text listed, login: String = Text listed, password_age_ms: u64 = Millis listed,
        connections: u64 = Text listed, provisioner: String = Text, version: String = Text, uptime_ms: u64 = Millis,
        rotated_every_ms: u64 = Millis, container: String = Text, engine: String = Text, image: String = Text,
        digest: String = Text,
    }
}

impl Command {
    /// Runs the command.
    pub(crate) async fn run(self, context: &Context) -> Result<()> {
        match self {
            Self::Audit => audit(context).await,
            Self::Move { to, dry_run } => relocate(context, &to, dry_run).await,
            Self::Rotate { roles } => rotate(context, &roles).await,
            Self::Status => status(context).await,
            Self::Upgrade(wanted) => upgrade(context, &wanted).await,
        }
    }
}

async fn audit(context: &Context) -> Result<()> {
    let answer = context.client().await?.admin().audit_database().await?;
    let failed = answer.failed;
    if context.output.format() == Format::Markdown {
        context.output.text(&report(&answer))?;
    } else {
        let summary = format!("{} passed, {} failed, {} do not apply", answer.passed, failed, answer.not_applicable);
        let mut list = context.output.list();
        for finding in answer.findings {
            list.push(&FindingRow::from(finding))?;
        }
        list.finish("no items")?;
        context.output.note(&summary);
    }
    if failed > 0 { Err(Failure::said(Exit::Integrity)) } else { Ok(()) }
}

async fn relocate(context: &Context, to: &str, dry_run: bool) -> Result<()> {
    let answer = context.client().await?.admin().move_database(to, dry_run).await?;
    let row = MoveRow { from: answer.from, to: answer.to, version: answer.version, planned: !dry_run };
    context.output.one(&row)?;
    if !dry_run {
        context.output.note("it moves when bibd starts next; restart it");
    }
    if !answer.is_allowed {
        context
            .output
            .note(&format!("the node's database.provisioner names another one: set it to auto or {to} first"));
    }
    Ok(())
}

async fn upgrade(context: &Context, wanted: &Upgrade) -> Result<()> {
    let admin = context.client().await?.admin();
    if wanted.cancel {
        admin.upgrade_database(pb::DatabaseUpgrade::Cancel, 0).await?;
        return context.output.one(&Done::new("cancelled", "upgrade"));
    }
    if wanted.remove_old {
        context.asker.confirm("remove the database that the last upgrade replaced? there is no way back to it then")?;
        let answer = admin.upgrade_database(pb::DatabaseUpgrade::RemoveOld, 0).await?;
        return context.output.one(&RemovedRow { removed_bytes: answer.removed_bytes });
    }
    let act = if wanted.dry_run { pb::DatabaseUpgrade::Examine } else { pb::DatabaseUpgrade::Plan };
    let answer = admin.upgrade_database(act, wanted.to_major.unwrap_or_default()).await?;
    context.output.one(&UpgradeRow {
        from: answer.from,
        to: answer.to,
        programs: answer.programs,
        database_bytes: answer.database_bytes,
        needed_bytes: answer.needed_bytes,
        free_bytes: answer.free_bytes,
        kept: answer.kept,
        planned: !wanted.dry_run,
    })?;
    if !wanted.dry_run {
        context
            .output
            .note("it is upgraded when bibd starts next, which takes as long as a dump and loading it; restart it");
    }
    Ok(())
}

async fn rotate(context: &Context, roles: &[String]) -> Result<()> {
    let answer = context.client().await?.admin().rotate_database(roles).await?;
    let left_out = answer.left_out.join(", ");
    let row = RotationRow { roles: answer.roles, left_out: answer.left_out, duration_ms: answer.duration_ms };
    context.output.one(&row)?;
    if !left_out.is_empty() {
        context.output.note(&format!("at work and left for later: {left_out}"));
    }
    Ok(())
}

async fn status(context: &Context) -> Result<()> {
    let answer = context.client().await?.admin().database_status().await?;
    let (uptime_ms, every_ms) =
        (answer.uptime_seconds.saturating_mul(1_000), answer.rotated_every_seconds.saturating_mul(1_000));
    let container = answer.container.unwrap_or_default();
    let mut list = context.output.list();
    for role in answer.roles {
        list.push(&RoleRow {
            role: role.role,
            login: role.login,
            password_age_ms: role.password_age_seconds.saturating_mul(1_000),
            connections: role.connections,
            provisioner: answer.provisioner.clone(),
            version: answer.version.clone(),
            uptime_ms,
            rotated_every_ms: every_ms,
            container: container.name.clone(),
            engine: container.engine.clone(),
            image: container.image.clone(),
            digest: container.digest.clone(),
        })?;
    }
    list.finish("no roles")?;
    if !container.name.is_empty() {
        let [name, engine, image, digest] =
            [&container.name, &container.engine, &container.image, &container.digest].map(|text| scrub(text));
        context.output.note(&format!("container {name} of {engine}; image {image}, {digest}"));
    }
    context.output.note(&format!(
        "PostgreSQL {} ({}), up for {}; a password is replaced after {}",
        scrub(&answer.version),
        scrub(&answer.provisioner),
        format_millis(uptime_ms),
        format_millis(every_ms)
    ));
    Ok(())
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
pub(super) fn escape_markdown(text: &str) -> String {
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
