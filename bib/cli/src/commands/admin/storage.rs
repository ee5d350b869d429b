//! `bib admin storage`: the stored chunks.

use bib_client::pb;
use clap::Subcommand;
use futures::TryStreamExt as _;

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
    /// Reads every stored chunk again; exit 7 when one is corrupt or missing
    Scrub,
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
            Self::Scrub => {
                let mut answers = admin.scrub().await?;
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
