//! `bib dataset versions`.

use bib_client::{attest, pb};
use clap::Args;

use super::check_reference;
use crate::context::Context;
use crate::errors::Result;
use crate::output::record;

/// Lists the versions of a dataset, newest first
#[derive(Debug, Args)]
pub(crate) struct Versions {
    /// topic/name
    dataset: String,
}

record! {
    /// A version.
    VersionRow {
        version: String = Hash listed, time: String = Time listed, label: String = Text listed, tags: Vec<String> = Many listed,
        author: String = Person listed, files: u64 = Text listed, bytes: u64 = Bytes listed, state: String = Text listed,
        message: String = Lines listed, content: String = Hash, parents: Vec<String> = Many, license: String = Text,
    }
}

impl Versions {
    /// Runs the command.
    pub(crate) async fn run(self, context: &Context) -> Result<()> {
        check_reference(&self.dataset)?;
        let rows = context.client().await?.datasets().versions(&self.dataset);
        context.output.list().drain(rows, VersionRow::from, "no versions yet").await.map(|_| ())
    }
}

/// The name that the author gave, else the one that the node vouches for (a single version brings it along), else the
/// key.
pub(super) fn author_of(version: &pb::Version) -> String {
    if !version.author_name.is_empty() {
        return version.author_name.clone();
    }
    let statement = version.person_record.as_ref().and_then(|_| attest::statement_of(version).ok());
    let vouched = statement.and_then(|statement| attest::vouched_name(version, &statement));
    vouched.filter(|name| !name.is_empty()).unwrap_or_else(|| version.author_key.clone())
}

impl From<pb::Version> for VersionRow {
    fn from(version: pb::Version) -> Self {
        Self {
            author: author_of(&version),
            version: version.version,
            time: version.time,
            label: version.label,
            tags: version.tags,
            files: version.files,
            bytes: version.size_bytes,
            state: version.state,
            message: version.message,
            content: version.content,
            parents: version.parents,
            license: version.license,
        }
    }
}
