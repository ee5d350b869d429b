//! `bib dataset tag`.

use bib_client::pb;
use bib_core::name::TagName;
use clap::Args;

use super::check_version_reference;
use crate::commands::done::Done;
use crate::context::Context;
use crate::errors::{Failure, Result};
use crate::output::record;

/// Names a version, lists the names, or takes one away
///
/// `tag REF TAG` names a version, `tag DATASET` lists the names, `tag DATASET TAG --remove` takes one away.
#[derive(Debug, Args)]
pub(crate) struct Tag {
    /// topic/name[@VERSION]
    reference: String,
    /// Such as v1 or 2024
    tag: Option<String>,
    /// Move a tag that names another version
    #[arg(long, requires = "tag")]
    replace: bool,
    /// Take the tag away
    #[arg(long, requires = "tag", conflicts_with = "replace")]
    remove: bool,
}

record! {
    /// A tag.
    TagRow { tag: String = Text listed, version: String = Hash listed, set_at: String = Time listed, dataset: String = Text }
}

impl Tag {
    /// Runs the command.
    pub(crate) async fn run(self, context: &Context) -> Result<()> {
        check_version_reference(&self.reference)?;
        let Some(tag) = self.tag else {
            let rows = context.client().await?.datasets().tags(&self.reference);
            return context.output.list().drain(rows, TagRow::from, "no tags").await.map(|_| ());
        };
        TagName::new(&tag).map_err(|error| Failure::usage(error.to_string()))?;
        let datasets = context.client().await?.datasets();
        if self.remove {
            context.asker.confirm(&format!("take the tag `{tag}` from `{}`?", self.reference))?;
            datasets.remove_tag(&self.reference, &tag).await?;
            return context.output.one(&Done::new("removed", format!("{}@{tag}", self.reference)));
        }
        let request = pb::SetTagRequest { reference: self.reference, tag, replace: self.replace };
        context.output.one(&TagRow::from(datasets.set_tag(request).await?))
    }
}

impl From<pb::Tag> for TagRow {
    fn from(tag: pb::Tag) -> Self {
        Self { tag: tag.tag, version: tag.version, set_at: tag.set_at, dataset: tag.dataset }
    }
}
