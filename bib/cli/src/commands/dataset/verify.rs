//! `bib dataset verify`: a folder against a version, or the node's own copy.

use std::path::{Path, PathBuf};

use bib_client::Verdict;
use clap::Args;
use futures::TryStreamExt as _;

use super::check_version_reference;
use crate::context::Context;
use crate::errors::{Exit, Failure, Result};
use crate::output::record;

/// Checks a folder against a version
///
/// Three verdicts: the bytes, the author's signature, and who vouches for the author's key.
#[derive(Debug, Args)]
pub(crate) struct Verify {
    /// topic/name[@VERSION]
    reference: String,
    /// The folder
    #[arg(required_unless_present = "on_node")]
    path: Option<PathBuf>,
    /// Have the node read every chunk of its own copy again
    #[arg(long, conflicts_with = "path")]
    on_node: bool,
}

record! {
    /// What a check of a folder found.
    VerdictRow {
        bytes: String = Text, signature: String = Text, voucher: String = Text, explanations: Vec<String> = Lined, version: String = Text, content: String = Text,
        found_content: String = Text, files: u64 = Text, size_bytes: u64 = Bytes, difference_count: u64 = Text,
        differences: Vec<String> = Lined, dataset: String = Text, duration_ms: u64 = Millis,
    }
}

record! {
    /// What a check on the node found.
    NodeVerdictRow { ok: bool = Text, files: u64 = Text, bytes: u64 = Bytes, damaged: Vec<String> = Lined }
}

impl Verify {
    /// Runs the command.
    pub(crate) async fn run(self, context: &Context) -> Result<()> {
        check_version_reference(&self.reference)?;
        match &self.path {
            Some(path) => self.check_folder(context, path).await,
            None => self.check_node(context).await,
        }
    }

    async fn check_folder(&self, context: &Context, path: &Path) -> Result<()> {
        let client = context.client().await?;
        let found = bib_client::Verify::new(path, &self.reference).run(&client, context.progress()).await?;
        let is_bad = [&found.bytes, &found.signature, &found.voucher].into_iter().any(Verdict::is_bad);
        context.output.one(&VerdictRow {
            bytes: found.bytes.word().to_owned(),
            signature: found.signature.word().to_owned(),
            voucher: found.voucher.word().to_owned(),
            explanations: [&found.bytes, &found.signature, &found.voucher].map(|v| v.explanation().to_owned()).into(),
            version: found.version,
            content: found.content,
            found_content: found.found,
            files: found.files,
            size_bytes: found.size_bytes,
            difference_count: found.difference_count,
            differences: found.differences.iter().map(|one| format!("{}: {}", one.word(), one.path())).collect(),
            dataset: found.dataset,
            duration_ms: u64::try_from(found.duration.as_millis()).unwrap_or(u64::MAX),
        })?;
        if is_bad { Err(Failure::said(Exit::Integrity)) } else { Ok(()) }
    }

    async fn check_node(&self, context: &Context) -> Result<()> {
        let mut answers = context.client().await?.datasets().verify_on_node(&self.reference).await?;
        let mut row = NodeVerdictRow::default();
        let mut finished = false;
        while let Some(answer) = answers.try_next().await? {
            row.files = answer.files_done;
            row.bytes = answer.bytes_done;
            row.damaged.extend(answer.damaged);
            finished |= answer.finished;
        }
        if !finished {
            return Err(
                Failure::new(Exit::Unavailable, "the node ended the check before it was done").with_hint("try again")
            );
        }
        row.ok = row.damaged.is_empty();
        context.output.one(&row)?;
        if row.ok { Ok(()) } else { Err(Failure::said(Exit::Integrity)) }
    }
}
