//! `bib dataset list`.

use bib_client::pb;
use clap::Args;

use crate::context::Context;
use crate::errors::Result;
use crate::output::record;

/// Lists the datasets that you may see, by name
#[derive(Debug, Args)]
pub(crate) struct List {
    /// Only in this topic and below
    #[arg(long, default_value = "", hide_default_value = true)]
    topic: String,
    /// Only with these words in name, title, description or keywords
    #[arg(long, default_value = "", hide_default_value = true)]
    text: String,
}

record! {
    /// A dataset.
    DatasetRow {
        name: String = Text listed, title: String = Text listed, latest: String = Hash listed,
        versions: u64 = Text listed, files: u64 = Text listed, bytes: u64 = Bytes listed, updated_at: String = Time listed,
        license: String = Text, tags: Vec<String> = Many, topic: String = Text, dataset_id: String = Text, owner: String = Text,
        created_at: String = Time, description: String = Lines,
    }
}

impl List {
    /// Runs the command.
    pub(crate) async fn run(self, context: &Context) -> Result<()> {
        let rows = context.client().await?.datasets().list(&self.topic, &self.text);
        context.output.list().drain(rows, DatasetRow::from, "no datasets that you may see").await.map(|_| ())
    }
}

impl From<pb::Dataset> for DatasetRow {
    fn from(dataset: pb::Dataset) -> Self {
        Self {
            name: dataset.name,
            title: dataset.title,
            latest: dataset.latest,
            versions: dataset.versions,
            files: dataset.files,
            bytes: dataset.size_bytes,
            updated_at: dataset.updated_at,
            license: dataset.license,
            tags: dataset.tags,
            topic: dataset.topic,
            dataset_id: dataset.dataset_id,
            owner: dataset.owner,
            created_at: dataset.created_at,
            description: dataset.description,
        }
    }
}
