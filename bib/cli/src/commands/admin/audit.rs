//! `bib admin audit`: who did what, and whether the log is untouched.

use std::io::Write as _;
use std::path::PathBuf;

use bib_client::{Client, pb};
use clap::{Args, Subcommand};
use futures::TryStreamExt as _;

use super::alerts;
use crate::commands::done::Done;
use crate::context::Context;
use crate::errors::{Exit, Failure, Result};
use crate::output::{escape_json, record};

/// The audit log.
#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Entries that the filters take, oldest first
    List(List),
    /// Entries as they are sealed, until you stop it
    Tail {
        /// Entries from the past to begin with, at most 1000
        #[arg(short = 'n', long, default_value_t = 10, value_parser = clap::value_parser!(u32).range(..=1000))]
        lines: u32,
    },
    /// Checks chain, tree and checkpoints: OK, TAMPERED (exit 7) or UNVERIFIED (exit 1)
    Verify,
    /// An entry with its inclusion proof and checkpoint, as JSON
    Prove {
        /// SEQ, or EPOCH/SEQ
        entry: String,
    },
    /// The whole log as JSON lines that the verifiers read
    Export {
        /// The file; standard output when missing
        #[arg(long, value_name = "FILE")]
        out: Option<PathBuf>,
    },
    /// Where sealed entries are sent (`audit.export`), and how far each place has come
    Sinks,
    /// Rules over the log: which there are, and what they would have found
    #[command(subcommand)]
    Alerts(alerts::Command),
    /// Erases the details of an entry; the entry, its place and the erasure stay
    Erase {
        /// The entry's id
        entry: String,
        /// Why; stays in the log
        #[arg(long)]
        reason: String,
    },
}

/// Filters; without any, every entry.
#[derive(Debug, Args)]
pub(crate) struct List {
    /// Who did it: a user's name or id
    #[arg(long, default_value = "", hide_default_value = true)]
    actor: String,
    /// What was done; a beginning such as `version.` is enough
    #[arg(long, default_value = "", hide_default_value = true)]
    action: String,
    /// What it was done to; a beginning is enough
    #[arg(long, default_value = "", hide_default_value = true)]
    target: String,
    /// From this time on, RFC 3339
    #[arg(long, default_value = "", hide_default_value = true, value_name = "TIME")]
    since: String,
    /// Before this time, RFC 3339
    #[arg(long, default_value = "", hide_default_value = true, value_name = "TIME")]
    until: String,
    /// The id of one operation
    #[arg(long, default_value = "", hide_default_value = true)]
    operation: String,
    /// Newest first
    #[arg(long)]
    newest_first: bool,
    /// At most so many
    #[arg(long, value_name = "N")]
    limit: Option<usize>,
}

record! {
    /// An entry of the audit log. `seq` is 0 while it is not sealed; `details` is null once erased.
    EntryRow {
        seq: u64 = Text listed, time: String = Time listed, actor: String = Text listed, via: String = Text listed,
        action: String = Text listed, target: String = Text listed, result: String = Text listed, epoch: u64 = Text, id: String = Text,
        operation: String = Text, job: String = Text, digest: String = Hash, head: String = Hash, details: Option<String> = Text,
    }
}

record! {
    /// A place that sealed entries are sent to. `seq` is the last entry that it has.
    SinkRow {
        name: String = Text listed, kind: String = Text listed, target: String = Text listed, epoch: u64 = Text listed,
        seq: u64 = Text listed, behind: u64 = Text listed, sent: u64 = Text, errors: u64 = Text,
        trouble: String = Lines listed, hint: String = Lines,
    }
}

record! {
    /// What a verification found.
    VerdictRow {
        verdict: String = Text, entries: u64 = Text, first_bad: Option<u64> = Text, first_bad_epoch: Option<u64> = Text,
        class: String = Text, explanation: String = Lines, checkpoint: String = Lines, duration_ms: u64 = Millis,
    }
}

impl Command {
    /// Runs the command.
    pub(crate) async fn run(self, context: &Context) -> Result<()> {
        let client = context.client().await?;
        match self {
            Self::List(list) => list.run(context, &client).await,
            Self::Tail { lines } => tail(context, &client, lines).await,
            Self::Verify => verify(context, &client).await,
            Self::Prove { entry } => {
                let (epoch, seq) = parse_place(&entry)?;
                let proof = client.admin().prove_audit(epoch, seq).await?;
                // Escapes change no value; the verifiers read it the same.
                context.output.bytes(escape_json(proof.trim_end()).as_bytes())?;
                context.output.bytes(b"\n")?;
                context.output.flush()
            }
            Self::Export { out } => export(context, &client, out).await,
            Self::Sinks => {
                let mut list = context.output.list();
                for sink in client.admin().audit_sinks().await? {
                    list.push(&SinkRow::from(sink))?;
                }
                list.finish("no sinks: `audit.export` of the node's configuration names them").map(|_| ())
            }
            Self::Alerts(command) => command.run(context, &client).await,
            Self::Erase { entry, reason } => {
                context.asker.confirm(&format!("erase the details of entry {entry}? this cannot be taken back"))?;
                client.admin().erase_audit(&entry, &reason).await?;
                context.output.one(&Done::new("erased", entry))
            }
        }
    }
}

impl List {
    async fn run(self, context: &Context, client: &Client) -> Result<()> {
        for (flag, time) in [("--since", &self.since), ("--until", &self.until)] {
            if !time.is_empty() && time.parse::<bib_core::Timestamp>().is_err() {
                return Err(
                    Failure::usage(format!("`{flag} {time}` is no time")).with_hint("such as 2026-01-31T12:00:00Z")
                );
            }
        }
        let filter = pb::ListAuditRequest {
            page: None,
            actor: self.actor,
            action: self.action,
            target: self.target,
            since: self.since,
            until: self.until,
            operation: self.operation,
            descending: self.newest_first,
        };
        let entries = futures::StreamExt::take(client.admin().audit(filter), self.limit.unwrap_or(usize::MAX));
        context.output.list().drain(entries, EntryRow::from, "no entries").await.map(|_| ())
    }
}

async fn tail(context: &Context, client: &Client, lines: u32) -> Result<()> {
    let mut entries = client.admin().tail_audit(lines).await?;
    let mut list = context.output.list();
    while let Some(entry) = entries.try_next().await? {
        list.push(&EntryRow::from(entry))?;
        list.flush()?;
    }
    list.finish("the node ended the stream").map(|_| ())
}

async fn verify(context: &Context, client: &Client) -> Result<()> {
    let mut answers = client.admin().verify_audit().await?;
    let mut last = None;
    while let Some(answer) = answers.try_next().await? {
        last = Some(answer);
    }
    let verdict = last.filter(|answer| !answer.verdict.is_empty()).ok_or_else(|| {
        Failure::new(Exit::Unavailable, "the verification ended without a verdict").with_hint("try again")
    })?;
    let exit = match verdict.verdict.as_str() {
        "OK" => None,
        "TAMPERED" => Some(Exit::Integrity),
        _ => Some(Exit::Failed),
    };
    context.output.one(&VerdictRow {
        entries: verdict.entries,
        first_bad: verdict.first_bad,
        first_bad_epoch: verdict.first_bad_epoch,
        class: verdict.tamper_class,
        explanation: verdict.explanation,
        checkpoint: verdict.checkpoint,
        duration_ms: verdict.duration_ms,
        verdict: verdict.verdict,
    })?;
    exit.map_or(Ok(()), |exit| Err(Failure::said(exit)))
}

async fn export(context: &Context, client: &Client, out: Option<PathBuf>) -> Result<()> {
    let Some(path) = out else {
        context
            .output
            .refuse_terminal("the audit log", "write it to a file with `--out`, or send it through a pipe")?;
        let mut pieces = client.admin().export_audit().await?;
        while let Some(piece) = pieces.try_next().await? {
            context.output.bytes(&piece.data)?;
        }
        return context.output.flush();
    };
    let failed = |error: std::io::Error| Failure::file("write", &path, &error);
    let directory = path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(std::path::Path::new("."));
    // Complete or not there: a log that was cut off would read as tampered with.
    let mut file = tempfile::NamedTempFile::new_in(directory).map_err(failed)?;
    let mut pieces = client.admin().export_audit().await?;
    while let Some(piece) = pieces.try_next().await? {
        file.write_all(&piece.data).map_err(failed)?;
    }
    file.as_file().sync_all().map_err(failed)?;
    file.persist_noclobber(&path).map_err(|error| failed(error.error))?;
    context.output.one(&Done::new("written", path.display().to_string()))
}

/// `SEQ` in the present epoch, or `EPOCH/SEQ`.
fn parse_place(text: &str) -> Result<(u64, u64)> {
    let (epoch, seq) = text.split_once('/').unwrap_or(("0", text));
    match (epoch.parse(), seq.parse()) {
        (Ok(epoch), Ok(seq)) if seq > 0 => Ok((epoch, seq)),
        _ => Err(Failure::usage(format!("`{text}` is no place in the log"))
            .with_hint("write SEQ or EPOCH/SEQ, such as 17 or 2/17")),
    }
}

impl From<pb::AuditEntry> for EntryRow {
    fn from(entry: pb::AuditEntry) -> Self {
        Self {
            seq: entry.seq,
            time: entry.time,
            actor: entry.actor,
            via: entry.via,
            action: entry.action,
            target: entry.target,
            result: entry.result,
            epoch: entry.epoch,
            id: entry.id,
            operation: entry.operation,
            job: entry.job,
            digest: entry.digest,
            head: entry.head,
            details: entry.details_json,
        }
    }
}

impl From<pb::AuditSink> for SinkRow {
    fn from(sink: pb::AuditSink) -> Self {
        let pb::AuditSink { name, kind, target, epoch, seq, behind, sent, errors, trouble, hint } = sink;
        Self { name, kind, target, epoch, seq, behind, sent, errors, trouble, hint }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_are_read() {
        assert_eq!(parse_place("17").unwrap(), (0, 17));
        assert_eq!(parse_place("2/17").unwrap(), (2, 17));
        for text in ["", "0", "2/0", "a", "1/2/3", "-1"] {
            assert_eq!(parse_place(text).unwrap_err().exit(), Exit::Usage, "{text}");
        }
    }
}
