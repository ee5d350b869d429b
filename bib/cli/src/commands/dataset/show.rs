//! `bib dataset show`.

use bib_client::pb;
use bib_core::citation;
use clap::Args;

use super::check_version_reference;
use super::citable::{citable, files};
use super::versions::author_of;
use crate::context::Context;
use crate::errors::Result;
use crate::output::{Format, record};

/// Shows one version: what it is, who made it, how large it is
///
/// `-o datacite`, `ro-crate`, `croissant` or `schema.org` writes it in that format.
#[derive(Debug, Args)]
pub(crate) struct Show {
    /// topic/name[@VERSION]
    reference: String,
}

record! {
    /// A version with what it is.
    ShowRow {
        dataset: String = Text, version: String = Text, content: String = Text, title: String = Text, label: String = Text,
        license: String = Text, message: String = Lines, time: String = Time, author: String = Person, author_kind: String = Text,
        author_key: String = Text, files: u64 = Text, bytes: u64 = Bytes, state: String = Text, withdrawal_reason: String = Text,
        tags: Vec<String> = Many, parents: Vec<String> = Many, creators: Vec<String> = Many, keywords: Vec<String> = Many,
        description: String = Lines, metadata: serde_json::Value = Text, dataset_id: String = Text, owner: String = Text,
    }
}

impl Show {
    /// Runs the command.
    pub(crate) async fn run(self, context: &Context) -> Result<()> {
        check_version_reference(&self.reference)?;
        let client = context.client().await?;
        let version = client.datasets().version(&self.reference).await?;
        let cited = citable(&version)?;
        let document = match context.output.format() {
            Format::Datacite => citation::datacite(&cited),
            Format::SchemaOrg => citation::schema_org(&cited),
            Format::RoCrate => citation::ro_crate(&cited, files(&client, &version).await?),
            Format::Croissant => citation::croissant(&cited, files(&client, &version).await?),
            _ => return context.output.one(&row(version, cited)),
        };
        context.output.document(&document)
    }
}

fn row(version: pb::Version, cited: citation::Citable) -> ShowRow {
    let metadata = cited.metadata;
    ShowRow {
        author: author_of(&version),
        dataset: version.dataset,
        version: version.version,
        content: version.content,
        label: cited.label.unwrap_or_default(),
        license: cited.license,
        message: cited.message,
        time: cited.time.to_string(),
        author_kind: version.author_kind,
        author_key: version.author_key,
        files: version.files,
        bytes: version.size_bytes,
        state: version.state,
        withdrawal_reason: version.withdrawal_reason,
        tags: version.tags,
        parents: version.parents,
        metadata: metadata.to_value().unwrap_or_default(),
        title: metadata.title.unwrap_or_default(),
        creators: metadata.creators.into_iter().map(|creator| creator.name).collect(),
        keywords: metadata.keywords,
        description: metadata.description.unwrap_or_default(),
        dataset_id: version.dataset_id,
        owner: version.owner,
    }
}
