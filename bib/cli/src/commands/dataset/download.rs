//! `bib dataset download`.

use std::path::PathBuf;

use bib_core::name::Reference;
use bib_core::path::EntryPath;
use clap::Args;

use super::check_reference;
use crate::context::Context;
use crate::errors::{Failure, Result};
use crate::output::{Format, record};

/// Gets a version's files
///
/// Every file is checked against its hash, and an interrupted download that is run again gets the rest. Nothing is ever
/// written outside of the target.
#[derive(Debug, Args)]
pub(crate) struct Download {
    /// topic/name[@VERSION][:path]
    reference: String,
    /// The folder to make or to bring up to date; else one named as the dataset
    target: Option<PathBuf>,
    /// Only this file, or what is below this folder
    #[arg(long, value_name = "PATH")]
    path: Option<String>,
    /// Write into a folder that holds something else
    #[arg(long)]
    force: bool,
}

record! {
    /// A version that was downloaded.
    DownloadRow {
        dataset: String = Text, version: String = Text, content: String = Text, target: String = Text, files: u64 = Text,
        files_kept: u64 = Text, bytes: u64 = Bytes, bytes_received: u64 = Bytes, duration_ms: u64 = Millis,
        signature: String = Text,
    }
}

impl Download {
    /// Runs the command.
    pub(crate) async fn run(self, context: &Context) -> Result<()> {
        let reference = self.wanted()?;
        let name = match &reference.path {
            Some(path) => path.to_string().rsplit('/').next().unwrap_or_default().to_owned(),
            None => reference.name.segments().last().unwrap_or_default().to_owned(),
        };
        let target = self.target.unwrap_or_else(|| PathBuf::from(name));
        let mut request = bib_client::Download::new(reference.to_string(), &target);
        if self.force {
            request = request.forced();
        }
        let client = context.client().await?;
        let done = request.run(&client, context.progress()).await?;
        let row = DownloadRow {
            dataset: done.dataset,
            version: done.version,
            content: done.content,
            signature: done.signature.word().to_owned(),
            target: target.display().to_string(),
            files: done.files,
            files_kept: done.files_kept,
            bytes: done.bytes,
            bytes_received: done.bytes_received,
            duration_ms: u64::try_from(done.duration.as_millis()).unwrap_or(u64::MAX),
        };
        context.output.one(&row)?;
        if context.output.format() == Format::Table {
            context.output.note(&format!("next: bib dataset verify {}@{} {}", row.dataset, &row.version, row.target));
        }
        Ok(())
    }
    /// The reference with the path that `--path` names.
    fn wanted(&self) -> Result<Reference> {
        let reference = check_reference(&self.reference)?;
        let Some(path) = &self.path else { return Ok(reference) };
        if reference.path.is_some() {
            return Err(Failure::usage("the path is named twice").with_hint("write it in the reference or in `--path`"));
        }
        let path = EntryPath::new(path.trim_end_matches('/')).map_err(|error| Failure::usage(error.to_string()))?;
        Ok(Reference { path: Some(path), ..reference })
    }
}
