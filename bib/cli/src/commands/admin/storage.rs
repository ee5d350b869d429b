//! `bib admin storage`: the stored chunks, on disk and in object storage.

use std::io::{IsTerminal as _, Write as _};

use bib_client::pb;
use clap::Subcommand;
use futures::TryStreamExt as _;

use super::credentials::{self, Credentials};
use crate::context::Context;
use crate::errors::{Exit, Failure, Result};
use crate::output::record;
use crate::units::format_bytes;

/// The stored chunks.
#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Collects chunks that nothing keeps alive; prints the first 1000
    Collect {
        /// Only say which, and why
        #[arg(long)]
        dry_run: bool,
    },
    /// Reads every chunk on disk again, and sees that object storage lists what lies there; exit 7 when one is corrupt or
    /// missing
    Scrub {
        /// Also read every object in object storage; the store may charge for that
        #[arg(long)]
        objects: bool,
    },
    /// Shows which chunks lie where, and how object storage is; exit 1 when it cannot be used
    Status,
    /// Moves chunks that nobody has read for long to object storage now, not with the next round
    Tier {
        /// Only say how many
        #[arg(long)]
        dry_run: bool,
    },
    /// Brings all chunks back from object storage to disk, and removes their objects
    Recall {
        /// Only say how many
        #[arg(long)]
        dry_run: bool,
    },
    /// The credentials of object storage
    #[command(subcommand)]
    Credentials(Credentials),
}

/// What the server calls the two places.
const TO_OBJECTS: &str = "objects";
const TO_DISK: &str = "disk";

record! {
    /// How object storage is.
    StatusRow {
        place: String = Text, sealed: bool = Text, after_days: u32 = Text,
        local_chunks: u64 = Text, local_bytes: u64 = Bytes, remote_chunks: u64 = Text,
        objects: u64 = Text, object_bytes: u64 = Bytes, cold_chunks: u64 = Text,
        cold_bytes: u64 = Bytes, store: String = Text
    }
}

record! {
    /// What a move did, or would do.
    MovedRow { chunks: u64 = Text, bytes: u64 = Bytes, skipped: u64 = Text }
}

record! {
    /// A chunk that nothing keeps alive.
    CollectRow { chunk: String = Text listed, bytes: u64 = Bytes listed, reason: String = Text listed }
}

record! {
    /// A finding of the scrubber.
    ScrubRow { kind: String = Text listed, chunk: String = Text listed, explanation: String = Text listed }
}

impl Command {
    /// Runs the command.
    pub(crate) async fn run(self, context: &Context) -> Result<()> {
        let admin = context.client().await?.admin();
        match self {
            Self::Collect { dry_run } => {
                if !dry_run {
                    context.asker.confirm("collect chunks that nothing keeps alive? `--dry-run` shows them first")?;
                }
                let answer = admin.collect_garbage(pb::CollectGarbageRequest { dry_run }).await?;
                let mut list = context.output.list();
                for chunk in answer.garbage {
                    list.push(&CollectRow { chunk: chunk.chunk, bytes: chunk.bytes, reason: chunk.reason })?;
                }
                list.finish("nothing to collect")?;
                let verb = if dry_run { "would be collected" } else { "collected" };
                context.output.note(&format!(
                    "{} chunks, {} and {} pages {verb}; {} left the trash",
                    answer.chunks,
                    format_bytes(answer.bytes),
                    answer.pages,
                    format_bytes(answer.trash_emptied_bytes)
                ));
                Ok(())
            }
            Self::Status => status(context).await,
            Self::Tier { dry_run } => {
                if !dry_run {
                    context.asker.confirm("move cold chunks to object storage? `--dry-run` counts them first")?;
                }
                move_chunks(context, TO_OBJECTS, dry_run).await
            }
            Self::Recall { dry_run } => {
                if !dry_run {
                    context.asker.confirm(
                        "bring all chunks back to disk and remove their objects? `--dry-run` says how many bytes",
                    )?;
                }
                move_chunks(context, TO_DISK, dry_run).await
            }
            Self::Credentials(Credentials::Set { file }) => {
                let text = credentials::read(file, "bib admin storage credentials set")?;
                let answer = admin.set_storage_credentials(&text).await?;
                credentials::say(context, answer.access_key_id, answer.problem, &answer.hint)
            }
            Self::Scrub { objects } => {
                let mut answers = admin.scrub(objects).await?;
                let mut list = context.output.list();
                let (mut harmful, mut last) = (false, pb::ScrubResponse::default());
                while let Some(answer) = answers.try_next().await? {
                    if !answer.kind.is_empty() {
                        harmful |= answer.kind != "orphan";
                        list.push(&ScrubRow {
                            kind: answer.kind.clone(),
                            chunk: answer.chunk.clone(),
                            explanation: answer.explanation.clone(),
                        })?;
                    }
                    last = answer;
                }
                list.finish("nothing is damaged")?;
                context.output.note(&format!("{} chunks, {} read", last.chunks_done, format_bytes(last.bytes_done)));
                if !last.finished {
                    return Err(Failure::new(Exit::Unavailable, "the node ended the scrub before it was done"));
                }
                if harmful { Err(Failure::said(Exit::Integrity)) } else { Ok(()) }
            }
        }
    }
}

async fn status(context: &Context) -> Result<()> {
    let status = context.client().await?.admin().storage_status().await?;
    let store = match (status.place.is_empty(), status.problem.is_empty()) {
        (true, _) => "none",
        (false, true) => "answers",
        (false, false) => status.problem.as_str(),
    };
    context.output.one(&StatusRow {
        place: status.place.clone(),
        sealed: status.sealed,
        after_days: status.after_days,
        local_chunks: status.local_chunks,
        local_bytes: status.local_bytes,
        remote_chunks: status.remote_chunks,
        objects: status.objects,
        object_bytes: status.object_bytes,
        cold_chunks: status.cold_chunks,
        cold_bytes: status.cold_bytes,
        store: store.to_owned(),
    })?;
    if status.place.is_empty() && status.objects > 0 {
        context.output.note("chunks lie in object storage, and none is configured; hint: set `blobs.tier.store` again");
        return Err(Failure::said(Exit::Failed));
    }
    if status.problem.is_empty() {
        return Ok(());
    }
    context.output.note(&format!("hint: {}", status.hint));
    Err(Failure::said(Exit::Failed))
}

async fn move_chunks(context: &Context, to: &str, dry_run: bool) -> Result<()> {
    let request = pb::MoveChunksRequest { to: to.to_owned(), dry_run };
    let mut answers = context.client().await?.admin().move_chunks(request).await?;
    let mut terminal = std::io::stderr().is_terminal().then(std::io::stderr);
    let mut last = pb::MoveChunksResponse::default();
    while let Some(answer) = answers.try_next().await? {
        if let Some(to) = &mut terminal {
            // Progress that cannot be written is no reason to stop.
            let _ = write!(to, "\r\u{1b}[K{} chunks moved, {}", answer.chunks, format_bytes(answer.bytes));
        }
        last = answer;
    }
    if let Some(to) = &mut terminal {
        let _ = writeln!(to);
    }
    context.output.one(&MovedRow { chunks: last.chunks, bytes: last.bytes, skipped: last.skipped })?;
    if !last.finished {
        return Err(Failure::new(Exit::Unavailable, "the node ended the move before it was done")
            .with_hint("what was moved stays moved: run it again"));
    }
    let verb = if dry_run { "would be moved" } else { "moved" };
    let place = if to == TO_DISK { "to disk" } else { "to object storage" };
    context.output.note(&format!("{} chunks, {} {verb} {place}", last.chunks, format_bytes(last.bytes)));
    if last.skipped > 0 {
        let text = format!(
            "{} were skipped: damaged, or changed meanwhile; `bib admin storage scrub` says more",
            last.skipped
        );
        context.output.note(&text);
    }
    Ok(())
}
