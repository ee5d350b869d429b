//! The part of `docs/cli.md` that is made of the code: every command, its arguments, what it prints, how it ends.

use std::fmt::Write as _;

use clap::{Arg, Command};

use crate::commands::admin::rows as admin;
use crate::commands::dataset::rows as dataset;
use crate::commands::done::Done;
use crate::commands::{cert, config, connect, login, setup, status, token, topic, trust, user, version};
use crate::output::{Field, Kind, Record};

/// What a command prints.
enum Prints {
    /// One record.
    One(&'static [Field]),
    /// Many.
    Many(&'static [Field]),
    /// One of several, each with when.
    Either(&'static [(&'static str, &'static [Field])]),
    /// Something else, in words.
    Other(&'static str),
}

const fn one<R: Record>() -> Prints {
    Prints::One(R::FIELDS)
}

const fn many<R: Record>() -> Prints {
    Prints::Many(R::FIELDS)
}

/// What each command prints, and the exit codes that mean something special there.
fn prints(command: &str) -> (Prints, &'static str) {
    let integrity = "7 when something is not what it should be.";
    match command {
        "setup" => (one::<setup::SetupRow>(), "4 when the node is not trusted or does not know the key."),
        "connect" => (one::<connect::NodeRow>(), "4 when the node is not trusted."),
        "login" => (one::<login::LoginRow>(), "2 on the Unix socket, 4 when the node does not know the key."),
        "logout" => (one::<Done>(), ""),
        "whoami" => (one::<login::WhoRow>(), ""),
        "status" => (one::<status::StatusRow>(), "5 when the node does not answer or does not serve."),
        "version" => (one::<version::VersionRow>(), "Never fails for want of a node."),
        "completions" => (Prints::Other("The script."), ""),
        "config list" => (many::<config::SettingRow>(), ""),
        "config get" | "config set" => (one::<config::SettingRow>(), "3 or 2 for an unknown key."),
        "trust add" => {
            (one::<trust::TrustRow>(), "4 when the fingerprint is another, 6 when the node is trusted already.")
        }
        "trust list" => (many::<trust::TrustRow>(), ""),
        "trust remove" | "trust replace" => (one::<trust::TrustRow>(), ""),
        "cert init" | "cert generate" => (one::<cert::WrittenRow>(), "6 when the file exists."),
        "cert export" => (
            Prints::Either(&[("With `--out`:", cert::WrittenRow::FIELDS)]),
            "3 when nobody is logged in. Without `--out` the PEM text is printed.",
        ),
        "cert list" => (many::<cert::CertRow>(), ""),
        "cert info" => (one::<cert::InfoRow>(), ""),
        "cert revoke" => (one::<cert::CertRow>(), ""),
        "token create" => (one::<token::CreatedRow>(), "6 when the file exists."),
        "token list" => (many::<token::TokenRow>(), ""),
        "user list" => (many::<user::UserRow>(), ""),
        "user add" | "user show" | "user suspend" | "user resume" | "user key add" | "user key remove" => {
            (one::<user::UserRow>(), "")
        }
        "token revoke" | "user remove" | "topic delete" | "topic revoke" | "admin audit erase" => (one::<Done>(), ""),
        "topic list" => (many::<topic::TopicRow>(), ""),
        "topic create" | "topic show" | "topic update" => (one::<topic::TopicRow>(), ""),
        "topic grant" => (one::<topic::GrantRow>(), ""),
        "topic grants" => (many::<topic::GrantRow>(), ""),
        "dataset publish" => (
            one::<dataset::PublishRow>(),
            "2 when the licence is missing or unknown, 3 when the dataset is missing and nobody can be asked, 6 when somebody \
             published in between or a file changed while it was read.",
        ),
        "dataset list" => (many::<dataset::DatasetRow>(), ""),
        "dataset show" => (one::<dataset::ShowRow>(), integrity),
        "dataset versions" => (many::<dataset::VersionRow>(), ""),
        "dataset files" => (many::<dataset::FileRow>(), ""),
        "dataset tag" => (
            Prints::Either(&[
                ("With a tag:", dataset::TagRow::FIELDS),
                ("Without, many of the same; with `--remove`:", Done::FIELDS),
            ]),
            "6 when the tag names another version.",
        ),
        "dataset download" => (
            one::<dataset::DownloadRow>(),
            "6 when the target is in use or cannot hold two of the names, 7 when what came is not what was published.",
        ),
        "dataset verify" => (
            Prints::Either(&[
                ("With a folder:", dataset::VerdictRow::FIELDS),
                ("With `--on-node`:", dataset::NodeVerdictRow::FIELDS),
            ]),
            integrity,
        ),
        "dataset prove" => (
            Prints::Either(&[("With `--out`:", Done::FIELDS)]),
            "2 on a terminal, 6 when the file exists. Without `--out` the tar file is printed.",
        ),
        "dataset withdraw" => (one::<dataset::VersionRow>(), ""),
        "dataset delete" => (
            Prints::Either(&[
                ("What was deleted:", dataset::DeletedRow::FIELDS),
                ("With `--dry-run`:", dataset::DatasetRow::FIELDS),
            ]),
            "6 when another node has it.",
        ),
        "dataset cite" => (Prints::Other("The citation."), integrity),
        "admin audit list" | "admin audit tail" => (many::<admin::EntryRow>(), ""),
        "admin audit alerts list" => (many::<admin::AlertRuleRow>(), ""),
        "admin audit alerts test" => (many::<admin::AlertRow>(), ""),
        "admin audit sinks" => (many::<admin::SinkRow>(), ""),
        "admin audit verify" => {
            (one::<admin::VerdictRow>(), "7 when the verdict is TAMPERED, 1 when it is UNVERIFIED.")
        }
        "admin audit prove" => (Prints::Other("The proof, JSON whatever `-o` says."), ""),
        "admin audit export" => (
            Prints::Either(&[("With `--out`:", Done::FIELDS)]),
            "2 on a terminal. Without `--out` the log is printed as JSON lines.",
        ),
        "admin backup create" => (one::<admin::BackupRow>(), "6 when there is no store or no recovery key."),
        "admin backup list" => (many::<admin::BackupRow>(), ""),
        "admin backup show" => (one::<admin::BackupRow>(), integrity),
        "admin backup verify" => (one::<admin::CheckedRow>(), integrity),
        "admin backup delete" => (one::<Done>(), ""),
        "admin break-glass enable" => (
            one::<admin::GrantRow>(),
            "4 when the key or the signature is refused, 5 when nothing can be recorded, 6 when a grant is open or waits for \
             its review.",
        ),
        "admin break-glass connect" => {
            (Prints::Other("What `psql` prints."), "1 when `psql` ends with an error, 6 when no grant is open for you.")
        }
        "admin break-glass status" => (one::<admin::GlassStatusRow>(), ""),
        "admin break-glass disable" => (one::<admin::GrantRow>(), "6 when no grant is open."),
        "admin break-glass sessions" => (many::<admin::GlassSessionRow>(), ""),
        "admin break-glass show" => (Prints::Other("The recording, whatever `-o` says."), "3 when there is none."),
        "admin break-glass review" => (one::<admin::GrantRow>(), "6 when no grant waits for a review."),
        "admin break-glass report" => (
            Prints::Other(
                "A page in Markdown; with `-o json` or `-o yaml` the report itself, format `bib-break-glass-report/1`.",
            ),
            "3 when no grant has ended.",
        ),
        "admin backup credentials set" => (
            one::<admin::CredentialsRow>(),
            "1 when the store does not take them, 2 when they are none, 6 when the node's store needs none.",
        ),
        "admin config list" => (many::<admin::ConfigRow>(), ""),
        "admin config get" | "admin config set" => (one::<admin::ConfigRow>(), "3 for an unknown key."),
        "admin db audit" => (many::<admin::FindingRow>(), "7 when an item fails."),
        "admin db move" => (
            one::<admin::MoveRow>(),
            "6 when it is there already, or could not be run there. It is done with the next start of `bibd`.",
        ),
        "admin db rotate" => (one::<admin::RotationRow>(), "6 when the only role asked for is at work for long."),
        "admin db upgrade" => (
            Prints::Either(&[
                ("To plan it, and with `--dry-run`:", admin::UpgradeRow::FIELDS),
                ("With `--remove-old`:", admin::RemovedRow::FIELDS),
                ("With `--cancel`:", Done::FIELDS),
            ]),
            "6 when it could not be done, or there is nothing to take back or to remove. It is done with the next start of `bibd`.",
        ),
        "admin db status" => (many::<admin::RoleRow>(), ""),
        "admin logs" => (many::<admin::LogRow>(), ""),
        "admin metrics" => (Prints::Other("Prometheus' text format."), ""),
        "admin recovery export" => (
            Prints::Either(&[("With `--out`:", admin::RecoveryRow::FIELDS)]),
            "6 when keys were made before. Without `--out` the sheet is printed, whatever `-o` says.",
        ),
        "admin recovery verify" => (one::<admin::SheetRow>(), "6 when it is another sheet, 2 when it is none."),
        "admin storage collect" => (many::<admin::CollectRow>(), ""),
        "admin storage status" => (one::<admin::StatusRow>(), ""),
        "admin storage tier" | "admin storage recall" => (one::<admin::MovedRow>(), ""),
        "admin storage credentials set" => (one::<admin::CredentialsRow>(), ""),
        "admin storage scrub" => (many::<admin::ScrubRow>(), "7 when a chunk is corrupt or missing."),
        "admin shutdown" => (one::<Done>(), ""),
        other => panic!("say here what `bib {other}` prints"),
    }
}

/// Every command in the order of the help.
pub(super) fn reference(mut root: Command) -> String {
    root.build();
    let mut out = String::from("\n## Flags of every command\n\n");
    for argument in root.get_arguments().filter(|argument| argument.is_global_set()) {
        write_argument(&mut out, argument);
    }
    out.push_str("\n## Commands\n");
    for command in root.get_subcommands() {
        write_command(&mut out, "", command);
    }
    out
}

fn write_command(out: &mut String, above: &str, command: &Command) {
    if command.get_name() == "help" {
        return;
    }
    let name = format!("{above}{}", command.get_name());
    if command.has_subcommands() {
        for below in command.get_subcommands() {
            write_command(out, &format!("{name} "), below);
        }
        return;
    }
    let about = command.get_long_about().or_else(|| command.get_about()).map(ToString::to_string).unwrap_or_default();
    let _ = write!(out, "\n### `bib {name}`\n\n{}\n", about.trim_end_matches('.').to_owned() + ".");
    let aliases: Vec<_> = command.get_visible_aliases().map(|alias| format!("`{alias}`")).collect();
    if !aliases.is_empty() {
        let _ = write!(out, "\nAlso called {}.\n", aliases.join(", "));
    }
    let own: Vec<&Arg> = command
        .get_arguments()
        .filter(|argument| !argument.is_global_set() && !matches!(argument.get_id().as_str(), "help" | "version"))
        .collect();
    if !own.is_empty() {
        out.push('\n');
        own.iter().for_each(|argument| write_argument(out, argument));
    }
    let (prints, exits) = prints(&name);
    match prints {
        Prints::One(fields) => write_fields(out, "Prints:", fields),
        Prints::Many(fields) => write_fields(out, "Prints many of:", fields),
        Prints::Either(cases) => cases.iter().for_each(|(when, fields)| write_fields(out, when, fields)),
        Prints::Other(what) => {
            let _ = write!(out, "\nPrints: {what}\n");
        }
    }
    if !exits.is_empty() {
        let _ = write!(out, "\nExit: {exits}\n");
    }
}

fn write_argument(out: &mut String, argument: &Arg) {
    let value = argument.get_value_names().and_then(|names| names.first()).map(ToString::to_string);
    let takes_value = argument.get_action().takes_values();
    let spelled = match (argument.get_short(), argument.get_long()) {
        (Some(short), Some(long)) => format!("-{short}, --{long}"),
        (None, Some(long)) => format!("--{long}"),
        (Some(short), None) => format!("-{short}"),
        (None, None) => String::new(),
    };
    let spelled = match (spelled.as_str(), value.filter(|_| takes_value)) {
        ("", Some(value)) if argument.is_required_set() => format!("<{value}>"),
        ("", Some(value)) => format!("[{value}]"),
        (flag, Some(value)) => format!("{flag} <{value}>"),
        (flag, None) => flag.to_owned(),
    };
    let help = argument.get_help().map(ToString::to_string).unwrap_or_default();
    let _ = write!(out, "- `{spelled}`: {help}");
    let choices: Vec<String> =
        argument.get_possible_values().iter().map(|choice| format!("`{}`", choice.get_name())).collect();
    if takes_value && !choices.is_empty() && !argument.is_hide_possible_values_set() {
        let _ = write!(out, " ({})", choices.join(", "));
    }
    let defaults: Vec<_> = argument.get_default_values().iter().map(|value| value.to_string_lossy()).collect();
    if takes_value && defaults.iter().any(|value| !value.is_empty()) {
        let _ = write!(out, "; `{}` when missing", defaults.join(" "));
    }
    if let Some(variable) = argument.get_env() {
        let _ = write!(out, "; or the variable `{}`", variable.to_string_lossy());
    }
    out.push('\n');
}

fn write_fields(out: &mut String, title: &str, fields: &[Field]) {
    let names: Vec<String> = fields.iter().map(|field| format!("`{}`{}", field.name, unit(field.kind))).collect();
    let _ = write!(out, "\n{title} {}.\n", names.join(", "));
}

const fn unit(kind: Kind) -> &'static str {
    match kind {
        Kind::Bytes => " (bytes)",
        Kind::Time => " (RFC 3339)",
        Kind::Many | Kind::Lined => " (list)",
        Kind::Hash => " (hex)",
        // The name says it.
        Kind::Millis | Kind::Text | Kind::Person | Kind::Lines => "",
    }
}
