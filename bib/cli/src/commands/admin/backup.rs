//! `bib admin backup`: backups of the node. A node is restored where it is not: with `bibd restore`.

use std::io::{IsTerminal as _, Write as _};
use std::path::PathBuf;

use bib_client::pb;
use clap::Subcommand;
use futures::TryStreamExt as _;

use super::credentials::{self, Credentials};
use crate::commands::done::Done;
use crate::context::Context;
use crate::errors::{Exit, Failure, Result};
use crate::output::record;
use crate::units::format_bytes;

/// Backups of the node.
#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Makes a backup of the database, the identity, the secrets and the configuration; chunks are copied by themselves
    Create {
        /// As rows instead of files (`pg_dump`): for every PostgreSQL of the same or a later major version, and for no
        /// other moment than its own
        #[arg(long)]
        logical: bool,
    },
    /// Shows the backups in the node's store, newest first
    List,
    /// Shows a backup
    Show {
        /// Which, as `list` shows it
        id: String,
    },
    /// Restores a backup beside the node, looks at it and removes that again; exit 7 when it is not what it should be
    Verify {
        /// Which, as `list` shows it
        id: String,
    },
    /// Deletes a backup, and the archived log that no other backup needs
    Delete {
        /// Which, as `list` shows it
        id: String,
    },
    /// The credentials of the store, where it is a bucket
    #[command(subcommand)]
    Credentials(Credentials),
}

record! {
    /// A backup.
    BackupRow {
        backup: String = Text listed, kind: String = Text listed, state: String = Text listed, created: String = Time listed,
        finished: String = Time, reachable: String = Time listed, verified: String = Time listed, bytes: u64 = Bytes listed,
        plain_bytes: u64 = Bytes, rows: Option<u64> = Text, epoch: u64 = Text, postgres: u32 = Text listed,
        system_identifier: String = Text, timeline: Option<u32> = Text, start_lsn: String = Text, end_lsn: String = Text, audit: String = Text, audit_head: String = Hash, chunks: u64 = Text,
        chunk_bytes: u64 = Bytes, recipients: Vec<String> = Lined,
    }
}

record! {
    /// What was in a backup.
    CheckedRow {
        backup: String = Text, verdict: String = Text, explanation: String = Text, users: u64 = Text, topics: u64 = Text,
        datasets: u64 = Text, versions: u64 = Text, chunks: u64 = Text, audit_entries: u64 = Text,
    }
}

impl Command {
    /// Runs the command.
    pub(crate) async fn run(self, context: &Context) -> Result<()> {
        match self {
            Self::Create { logical } => create(context, if logical { "logical" } else { "physical" }).await,
            Self::List => {
                let mut list = context.output.list();
                for backup in context.client().await?.admin().backups().await? {
                    list.push(&BackupRow::from(backup))?;
                }
                list.finish("no backups: bib admin backup create makes one")?;
                Ok(())
            }
            Self::Show { id } => {
                let backup = context.client().await?.admin().backup(&id).await?;
                context.output.one(&BackupRow::from(backup))
            }
            Self::Verify { id } => verify(context, id).await,
            Self::Delete { id } => {
                context.asker.confirm(&format!("delete the backup {id}? nothing brings it back"))?;
                context.client().await?.admin().delete_backup(&id).await?;
                context.output.one(&Done::new("deleted", id))
            }
            Self::Credentials(Credentials::Set { file }) => set_credentials(context, file).await,
        }
    }
}

async fn create(context: &Context, kind: &str) -> Result<()> {
    let mut answers = context.client().await?.admin().create_backup(kind).await?;
    let mut terminal = std::io::stderr().is_terminal().then(std::io::stderr);
    let mut made = None;
    while let Some(answer) = answers.try_next().await? {
        if let Some(to) = &mut terminal {
            // Progress that cannot be written is no reason to stop.
            let _ = write!(to, "\r\u{1b}[Kbacking up: {}", format_bytes(answer.bytes_done));
        }
        made = answer.backup.or(made);
    }
    if let Some(to) = &mut terminal {
        let _ = writeln!(to);
    }
    let Some(backup) = made else {
        return Err(Failure::new(Exit::Unavailable, "the node ended the backup before it was done"));
    };
    context.output.one(&BackupRow::from(backup))?;
    context.output.note("chunks are not in it: copy the directory blobs/ of the node, for example with rsync");
    Ok(())
}

async fn set_credentials(context: &Context, file: Option<PathBuf>) -> Result<()> {
    let text = credentials::read(file, "bib admin backup credentials set")?;
    let answer = context.client().await?.admin().set_backup_credentials(&text).await?;
    credentials::say(context, answer.access_key_id, answer.problem, &answer.hint)
}

async fn verify(context: &Context, id: String) -> Result<()> {
    let answer = context.client().await?.admin().verify_backup(&id).await?;
    let rows = |what: &str| answer.counts.iter().find(|count| count.what == what).map_or(0, |count| count.rows);
    let is_good = answer.verdict == "OK";
    context.output.one(&CheckedRow {
        backup: id,
        users: rows("users"),
        topics: rows("topics"),
        datasets: rows("datasets"),
        versions: rows("versions"),
        chunks: rows("chunks"),
        audit_entries: rows("audit entries"),
        verdict: answer.verdict,
        explanation: answer.explanation,
    })?;
    if is_good { Ok(()) } else { Err(Failure::said(Exit::Integrity)) }
}

impl From<pb::Backup> for BackupRow {
    fn from(backup: pb::Backup) -> Self {
        Self {
            timeline: (backup.kind != "logical").then_some(backup.timeline),
            kind: backup.kind,
            rows: backup.rows,
            backup: backup.id,
            state: backup.state,
            created: backup.created,
            finished: backup.finished,
            reachable: backup.reachable,
            verified: backup.verified,
            bytes: backup.bytes,
            plain_bytes: backup.plain_bytes,
            epoch: backup.epoch,
            postgres: backup.postgres,
            system_identifier: backup.system_identifier,
            start_lsn: backup.start_lsn,
            end_lsn: backup.end_lsn,
            audit: backup.audit,
            audit_head: backup.audit_head,
            chunks: backup.chunks,
            chunk_bytes: backup.chunk_bytes,
            recipients: backup.recipients,
        }
    }
}
