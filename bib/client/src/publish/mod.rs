//! Publishing a folder: walk, read once, send what is missing, describe, sign, commit.
//!
//! [`mod@walk`] makes a [`tree`]; [`stat_cache`] knows the files that did not change; [`ingest`] and [`cut`] read the
//! others; [`send`] and [`pages`] bring chunks and pages to the node; [`describe`] makes content and layout; [`sign`]
//! makes the statement. Memory is bounded by the number of files (about 150 bytes each) and the buffers (about
//! 100 MiB), never by the size of the data.

mod cut;
mod describe;
mod extents;
mod ignore;
mod in_place;
mod ingest;
mod pages;
mod parent;
mod pool;
mod run;
mod send;
mod session;
mod sign;
mod stat_cache;
mod tree;
mod walk;

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use bib_core::Hash;
use bib_core::metadata::Metadata;
use bib_core::name::DatasetName;
use bib_identity::ssh::UserKey;

pub(crate) use session::cache_name;
pub(crate) use tree::{Stat, Tree};
pub(crate) use walk::{Folder, walk};

use crate::client::Client;
use crate::error::{Error, ErrorKind, Result};
use crate::progress::{Notice, Progress};

/// A publish with `--rebase` follows the latest version at most so often.
const MAX_REBASES: u32 = 5;

/// Publishes a folder, or a single file, as a new version of a dataset.
///
/// ```no_run
/// use std::sync::Arc;
/// use bib_client::{Client, Publish, Silent};
/// use bib_core::name::DatasetName;
///
/// # async fn example(client: Client) -> Result<(), Box<dyn std::error::Error>> {
/// let name = DatasetName::new("climate/hourly")?;
/// let published = Publish::new("measurements", name, "January")
///     .with_license("CC-BY-4.0")
///     .creating()
///     .run(&client, Arc::new(Silent))
///     .await?;
/// println!("{} chunks sent for {}", published.chunks_sent, published.version);
/// # Ok(())
/// # }
/// ```
#[derive(Clone)]
pub struct Publish {
    path: PathBuf,
    dataset: DatasetName,
    message: String,
    license: Option<String>,
    label: Option<String>,
    metadata: Option<Metadata>,
    parent: Option<Hash>,
    author_name: Option<String>,
    key: Option<Arc<UserKey>>,
    new_key_path: Option<PathBuf>,
    idempotency_key: Option<String>,
    create: bool,
    rebase: bool,
    in_place: bool,
    rehash: bool,
    allow_changing: bool,
    threads: usize,
}

/// What was published.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Published {
    /// The dataset's full name, `topic/name`.
    pub dataset: String,
    /// The dataset's id.
    pub dataset_id: String,
    /// The version: hash of its statement.
    pub version: String,
    /// The content: hash of its root. Equal folders have equal content.
    pub content: String,
    /// Whether this made a version. If not, nothing had changed and `version` is the one that was there.
    pub created: bool,
    /// Whether the dataset was made for it.
    pub created_dataset: bool,
    /// Regular files in the version.
    pub files: u64,
    /// Their bytes in sum.
    pub bytes: u64,
    /// Different chunks that this publish laid out: those of new and changed files.
    pub chunks: u64,
    /// Chunks that the node lacked.
    pub chunks_sent: u64,
    /// Their bytes, before compression.
    pub bytes_sent: u64,
    /// How long it took.
    pub duration: Duration,
}

impl Publish {
    /// Publishes `path` as a version of `dataset` with this message.
    pub fn new(path: impl Into<PathBuf>, dataset: DatasetName, message: impl Into<String>) -> Self {
        Self {
            path: path.into(),
            dataset,
            message: message.into(),
            license: None,
            label: None,
            metadata: None,
            parent: None,
            author_name: None,
            key: None,
            new_key_path: None,
            idempotency_key: None,
            create: false,
            rebase: false,
            in_place: false,
            rehash: false,
            allow_changing: false,
            threads: 4,
        }
    }

    /// An SPDX expression. Else what the folder's metadata file says, else the parent's, else the topic's default.
    #[must_use]
    pub fn with_license(mut self, license: impl Into<String>) -> Self {
        self.license = Some(license.into());
        self
    }

    /// A short name for people.
    #[must_use]
    pub fn with_label(mut self, label: impl Into<String>) -> Self {
        self.label = Some(label.into());
        self
    }

    /// What the data is. Else what a metadata file in the folder says, else the parent's.
    #[must_use]
    pub fn with_metadata(mut self, metadata: Metadata) -> Self {
        self.metadata = Some(metadata);
        self
    }

    /// The version to build upon. Else the latest when the publish begins. If it is not the latest, that is a conflict.
    #[must_use]
    pub fn with_parent(mut self, parent: Hash) -> Self {
        self.parent = Some(parent);
        self
    }

    /// The author's name as it shall be shown.
    #[must_use]
    pub fn with_author_name(mut self, name: impl Into<String>) -> Self {
        self.author_name = Some(name.into());
        self
    }

    /// The key that signs. Else one that [`crate::Options::keys`] finds, else on the Unix socket a new one is made.
    #[must_use]
    pub fn with_key(mut self, key: Arc<UserKey>) -> Self {
        self.key = Some(key);
        self
    }

    /// Where a new key is made (0600) when there is none; `id_ed25519` in the configuration directory unless told.
    #[must_use]
    pub fn with_new_key_path(mut self, path: impl Into<PathBuf>) -> Self {
        self.new_key_path = Some(path.into());
        self
    }

    /// A key under which a repeated publish gets the first answer.
    #[must_use]
    pub fn with_idempotency_key(mut self, key: impl Into<String>) -> Self {
        self.idempotency_key = Some(key.into());
        self
    }

    /// Threads that look and read. 4.
    #[must_use]
    pub fn with_threads(mut self, threads: usize) -> Self {
        self.threads = threads.clamp(1, 64);
        self
    }

    /// Makes a missing topic (private) and dataset. Else a missing one is [`ErrorKind::NotFound`].
    #[must_use]
    pub fn creating(mut self) -> Self {
        self.create = true;
        self
    }

    /// When somebody else publishes in between, publishes on top of that. Else that is [`ErrorKind::Conflict`].
    #[must_use]
    pub fn rebasing(mut self) -> Self {
        self.rebase = true;
        self
    }

    /// Leaves the bytes where they are; the node reads them there. Only on the Unix socket.
    #[must_use]
    pub fn in_place(mut self) -> Self {
        self.in_place = true;
        self
    }

    /// Reads every file, whatever the stat cache says.
    #[must_use]
    pub fn rehashing(mut self) -> Self {
        self.rehash = true;
        self
    }

    /// Takes files that change while they are read as they were read. Else that is [`ErrorKind::Conflict`].
    #[must_use]
    pub fn allowing_changes(mut self) -> Self {
        self.allow_changing = true;
        self
    }

    /// Publishes.
    ///
    /// An interrupted publish that is run again sends only the rest. Dropping the future stops it.
    ///
    /// # Errors
    /// [`ErrorKind::NotFound`] when the dataset is missing and [`Publish::creating`] was not said;
    /// [`ErrorKind::Conflict`] with the details `latest` and `parent` when the latest version moved, or when files
    /// changed while they were read; [`ErrorKind::Invalid`] for names that cannot stand in a dataset, all at once, and
    /// for a missing licence; and whatever the node says.
    pub async fn run(&self, client: &Client, progress: Arc<dyn Progress>) -> Result<Published> {
        self.check(client)?;
        let started = std::time::Instant::now();
        let idempotency_key = self.idempotency_key.clone().unwrap_or_else(|| client.options().random.id());
        let mut rebases = 0;
        loop {
            match run::attempt(self, client, &idempotency_key, &progress).await {
                Ok(mut published) => {
                    published.duration = started.elapsed();
                    return Ok(published);
                }
                Err(error) if error.is_latest_moved() && self.rebase && rebases < MAX_REBASES => {
                    rebases += 1;
                    let parent = error.detail("latest").unwrap_or("the latest version").to_owned();
                    progress.notice(Notice::Rebased { parent });
                }
                Err(error) => return Err(error),
            }
        }
    }

    /// What can be said before anything is walked or sent.
    fn check(&self, client: &Client) -> Result<()> {
        let invalid = |error: bib_core::fields::FieldError| Error::new(ErrorKind::Invalid, error.to_string());
        bib_core::statement::check_message(&self.message).map_err(invalid)?;
        if let Some(label) = &self.label {
            bib_core::statement::check_label(label).map_err(invalid)?;
        }
        if let Some(metadata) = &self.metadata {
            metadata.check().map_err(|error| Error::new(ErrorKind::Invalid, error.to_string()))?;
        }
        if self.in_place && !client.is_local() {
            return Err(Error::new(ErrorKind::Invalid, "publishing in place works on the node's own machine alone")
                .with_hint("connect by the Unix socket, or publish without `--in-place`"));
        }
        Ok(())
    }
}
