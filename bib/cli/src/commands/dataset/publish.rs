//! `bib dataset publish`: a folder becomes a version.

use std::path::PathBuf;
use std::sync::Arc;

use bib_client::error::code;
use bib_client::{Client, ErrorKind, Progress, Published};
use bib_core::Hash;
use bib_core::metadata::Metadata;
use bib_core::name::DatasetName;
use clap::Args;

use super::license;
use crate::context::Context;
use crate::errors::{Exit, Failure, Result};
use crate::output::{Format, record};

/// Publishes a folder (or a file) as a new version
///
/// What the node has already is not sent; an interrupted publish that is run again sends the rest. `.bibignore` files
/// name what is left out. `ro-crate-metadata.json`, `datacite.json` and `CITATION.cff` are read when they are there.
#[derive(Debug, Args)]
pub(crate) struct Publish {
    /// The folder or file
    path: PathBuf,
    /// topic/name
    dataset: String,
    /// What changed
    #[arg(short, long)]
    message: String,
    /// The licence, an SPDX expression; else the folder's metadata, the version before or the topic names it
    #[arg(long, value_name = "SPDX")]
    license: Option<String>,
    /// A short name for people, such as "2024 release"
    #[arg(long)]
    label: Option<String>,
    /// A JSON file with title, description, creators ..., in place of what the folder's own files say
    #[arg(long, value_name = "FILE")]
    metadata: Option<PathBuf>,
    /// The version that this one is made from, when it is not the latest; another latest is then exit 6
    #[arg(long, value_name = "VERSION")]
    parent: Option<String>,
    /// When somebody published in between, publish on top of that
    #[arg(long)]
    rebase: bool,
    /// Make a missing topic (private) and dataset without asking
    #[arg(long)]
    create: bool,
    /// Leave the bytes where they are; the node reads them there (its own machine alone)
    #[arg(long)]
    in_place: bool,
    /// Read every file, whatever is remembered of it
    #[arg(long)]
    rehash: bool,
    /// Take files that change while they are read as they were read last
    #[arg(long)]
    allow_changing: bool,
    /// Your name as it stands in the version; else `identity.name`
    #[arg(long, value_name = "NAME")]
    author: Option<String>,
    /// A request that is repeated with the same text gets the first answer
    #[arg(long, value_name = "TEXT")]
    idempotency_key: Option<String>,
}

record! {
    /// A version that was published, or found unchanged (`created` is false).
    PublishRow {
        dataset: String = Text, version: String = Text, content: String = Text, created: bool = Text, files: u64 = Text,
        bytes: u64 = Bytes, chunks: u64 = Text, chunks_sent: u64 = Text, bytes_sent: u64 = Bytes, duration_ms: u64 = Millis,
        dataset_id: String = Text,
    }
}

impl Publish {
    /// Runs the command.
    pub(crate) async fn run(self, context: &Context) -> Result<()> {
        let request = self.request(context)?;
        let client = context.client().await?;
        let published = ask_and_run(context, &client, request, &self.dataset).await?;
        let row = PublishRow::from(published);
        context.output.one(&row)?;
        if context.output.format() == Format::Table {
            let short = row.version.get(..12).unwrap_or(&row.version);
            context.output.note(&match row.created {
                true => format!("published {}@{short}; next: bib dataset show {}", row.dataset, row.dataset),
                false => format!("nothing has changed since {}@{short}", row.dataset),
            });
        }
        Ok(())
    }

    /// Everything that can be wrong with the command line is said before anything is walked or sent.
    fn request(&self, context: &Context) -> Result<bib_client::Publish> {
        let dataset = DatasetName::new(&self.dataset)
            .map_err(|error| Failure::usage(error.to_string()).with_hint("a dataset is named topic/name"))?;
        if let Err(error) = self.path.metadata() {
            return Err(Failure::file("open", &self.path, &error));
        }
        let mut request = bib_client::Publish::new(&self.path, dataset, &self.message)
            .with_new_key_path(context.directories.config.join("id_ed25519"));
        if let Some(text) = &self.license {
            license::check(text)?;
            request = request.with_license(text);
        }
        if let Some(label) = &self.label {
            request = request.with_label(label);
        }
        if let Some(path) = &self.metadata {
            request = request.with_metadata(read_metadata(path)?);
        }
        if let Some(text) = &self.parent {
            request = request.with_parent(parse_parent(text)?);
        }
        if let Some(name) = self.author.as_deref().or_else(|| context.config.given("identity.name")) {
            request = request.with_author_name(name);
        }
        if let Some(key) = &self.idempotency_key {
            request = request.with_idempotency_key(key);
        }
        type Flag = fn(bib_client::Publish) -> bib_client::Publish;
        let flags: [(bool, Flag); 5] = [
            (self.rebase, bib_client::Publish::rebasing),
            (self.create || context.asker.says_yes(), bib_client::Publish::creating),
            (self.in_place, bib_client::Publish::in_place),
            (self.rehash, bib_client::Publish::rehashing),
            (self.allow_changing, bib_client::Publish::allowing_changes),
        ];
        Ok(flags.into_iter().filter(|(given, _)| *given).fold(request, |request, (_, set)| set(request)))
    }
}

/// Publishes; asks what is missing, each thing once: whether a dataset is made, and under which licence.
async fn ask_and_run(
    context: &Context,
    client: &Client,
    mut request: bib_client::Publish,
    dataset: &str,
) -> Result<Published> {
    let (mut may_create, mut may_license) = (true, true);
    loop {
        let progress: Arc<dyn Progress> = context.progress();
        let error = match request.run(client, progress).await {
            Ok(published) => return Ok(published),
            Err(error) => error,
        };
        let interactive = context.asker.is_interactive();
        if error.kind() == ErrorKind::NotFound && may_create {
            may_create = false;
            if !interactive {
                let failure = Failure::from(error);
                return Err(failure.with_hint(format!("add `--create` (or `--yes`) to make `{dataset}`, private")));
            }
            context.asker.insist(&format!("`{dataset}` does not exist; make it (private)?"))?;
            request = request.creating();
        } else if error.code() == Some(code::LICENSE_NEEDED) && may_license && interactive {
            may_license = false;
            let answer = context.asker.ask("Licence (an SPDX expression such as CC-BY-4.0)", license::check_answer)?;
            request = request.with_license(answer);
        } else {
            return Err(error.into());
        }
    }
}

fn read_metadata(path: &std::path::Path) -> Result<Metadata> {
    let bytes = bib_identity::file::read_public(path, bib_core::metadata::MAX_FILE_BYTES as u64)?;
    Metadata::from_json(&bytes).map_err(|error| Failure::usage(format!("`{}`: {error}", path.display())))
}

fn parse_parent(text: &str) -> Result<Hash> {
    let hash = text.rsplit_once('@').map_or(text, |(_, version)| version);
    hash.parse().map_err(|_| {
        Failure::new(Exit::Usage, format!("`--parent {text}` is no version"))
            .with_hint("write all 64 digits, as `bib dataset versions -o json` shows them")
    })
}

impl From<Published> for PublishRow {
    fn from(published: Published) -> Self {
        Self {
            dataset: published.dataset,
            version: published.version,
            content: published.content,
            created: published.created,
            files: published.files,
            bytes: published.bytes,
            chunks: published.chunks,
            chunks_sent: published.chunks_sent,
            bytes_sent: published.bytes_sent,
            duration_ms: u64::try_from(published.duration.as_millis()).unwrap_or(u64::MAX),
            dataset_id: published.dataset_id,
        }
    }
}
