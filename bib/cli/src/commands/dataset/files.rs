//! `bib dataset files`.

use bib_client::pb;
use clap::Args;

use super::check_reference;
use crate::context::Context;
use crate::errors::Result;
use crate::output::record;

/// Lists the files of a version in path order
#[derive(Debug, Args)]
pub(crate) struct Files {
    /// topic/name[@VERSION]
    reference: String,
    /// Only paths that begin with this
    #[arg(long, default_value = "", hide_default_value = true)]
    prefix: String,
}

record! {
    /// An entry of a version.
    FileRow { kind: String = Text listed, size: u64 = Bytes listed, sha256: String = Hash listed, path: String = Text listed, target: String = Text }
}

impl Files {
    /// Runs the command.
    pub(crate) async fn run(self, context: &Context) -> Result<()> {
        let reference = check_reference(&self.reference)?;
        let prefix = reference.path.as_ref().map_or(self.prefix, ToString::to_string);
        let version = bib_core::name::Reference { path: None, ..reference }.to_string();
        let rows = context.client().await?.datasets().files(&version, &prefix);
        context.output.list().drain(rows, FileRow::from, "no files").await.map(|_| ())
    }
}

impl From<pb::FileEntry> for FileRow {
    fn from(entry: pb::FileEntry) -> Self {
        Self { kind: entry.kind, size: entry.size, sha256: entry.sha256, path: entry.path, target: entry.target }
    }
}
