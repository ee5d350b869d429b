//! Downloading a version, a folder of it or one file: pages, layout, chunks, each held against the hash that names it.
//!
//! The order of trust: the statement hashes to the version and is signed, the content root is the statement's, every
//! page is the root's, every file has the hash its page says. The layout and the chunks are believed by nobody: if they
//! are wrong the file's hash is. Everything is written below [`target::Target`], and when [`Download::run`] returns it
//! is durable: a few files each by `fsync`, many by one `syncfs` at the end. An interrupted download leaves whole files and temporary ones; both are hashed
//! before they are believed when it goes on, so that nothing depends on what reached the disk.

mod chunks;
mod plan;
mod target;
mod tree;
mod write;

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use bib_core::content::Entry;
use bib_core::name::Reference;
use bib_core::path::{LinkTarget, twins};
use futures::StreamExt as _;

pub(crate) use tree::TreeReader;
pub(crate) use write::hash_file;

use crate::attest::{Verdict, author_verdict, statement_of};
use crate::client::Client;
use crate::error::{Error, ErrorKind, Result, code};
use crate::progress::{Notice, Phase, Progress};
use crate::publish::cache_name;
use plan::Plan;
use target::{Sync, Target, There};
use write::Writers;

/// Up to so many files are synced one by one, more by one `syncfs`.
const FEW_FILES: u64 = 256;

/// Downloads a version, a folder of it, or one file.
///
/// ```no_run
/// use std::sync::Arc;
/// use bib_client::{Client, Download, Silent};
///
/// # async fn example(client: Client) -> bib_client::Result<()> {
/// let got = Download::new("climate/hourly@latest", "hourly").run(&client, Arc::new(Silent)).await?;
/// println!("{} files of {}", got.files, got.version);
/// Download::new("climate/hourly:2024/january.csv", "january.csv").run(&client, Arc::new(Silent)).await?;
/// # Ok(())
/// # }
/// ```
#[derive(Debug, Clone)]
pub struct Download {
    reference: String,
    target: PathBuf,
    force: bool,
    threads: usize,
}

/// What was downloaded.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Downloaded {
    /// The dataset's full name.
    pub dataset: String,
    /// The version.
    pub version: String,
    /// The version's content.
    pub content: String,
    /// Regular files that are now in the target.
    pub files: u64,
    /// Their bytes in sum.
    pub bytes: u64,
    /// Of the files, those that were there already and right.
    pub files_kept: u64,
    /// Bytes of chunks that came over the wire, decoded.
    pub bytes_received: u64,
    /// Who signed.
    pub signature: Verdict,
    /// How long it took.
    pub duration: Duration,
}

impl Download {
    /// Downloads what `reference` (`topic/name[@VERSION][:path]`) names into `target`.
    ///
    /// A folder is restored into `target`, which must be empty or hold an interrupted download of the same version. A
    /// single file becomes `target`, or goes into it when it is a folder.
    pub fn new(reference: impl Into<String>, target: impl Into<PathBuf>) -> Self {
        Self { reference: reference.into(), target: target.into(), force: false, threads: 4 }
    }

    /// Writes into a folder that is not empty. Files of the version replace files of the same name; others stay.
    #[must_use]
    pub fn forced(mut self) -> Self {
        self.force = true;
        self
    }

    /// Threads that write. 4.
    #[must_use]
    pub fn with_threads(mut self, threads: usize) -> Self {
        self.threads = threads.clamp(1, 64);
        self
    }

    /// Downloads.
    ///
    /// # Errors
    /// [`ErrorKind::Integrity`] when anything that came does not hash to what names it or the signature is wrong: what
    /// was wrong is not kept. [`ErrorKind::Conflict`] when the target is not empty or cannot hold two names of the
    /// version. Whatever the node says.
    pub async fn run(&self, client: &Client, progress: Arc<dyn Progress>) -> Result<Downloaded> {
        let started = std::time::Instant::now();
        let (reference, path) = split(&self.reference);
        let version = client.datasets().version(&reference).await?;
        let statement = statement_of(&version)?;
        let signature = author_verdict(&version, &statement);
        if signature.is_bad() {
            return Err(Error::damaged(format!("the version's signature: {}", signature.explanation())));
        }
        let place = self.place(client, &version.version, path.as_deref()).await?;
        let target = blocking_open(&place.folder).await?;
        let marker = Marker::of(client, &place, &version.version);
        let resuming = self.admit(&target, &place, &marker)?;
        let unique = &client.options().random.id()[..8];
        let confuses = target.confuses_names(unique).map_err(|error| Error::local("probe", &place.folder, error))?;
        if confuses {
            refuse_twins(client, &version.version, &statement.content).await?;
        }
        progress.total(Phase::Receive, path.is_none().then_some(version.size_bytes));

        let mut tree = TreeReader::open(client, &version.version, &statement.content).await?;
        let few = version.files <= FEW_FILES || matches!(place.selection, Selection::One { .. });
        let sync = if few { Sync::Each } else { Sync::AtEnd };
        let mut writers = Writers::start(&target, self.threads, sync, &progress);
        let mut plan = Plan::new(client, &version.version, &target, resuming || self.force, &progress);
        let mut links = Vec::new();
        let mut dirs = Vec::new();
        while let Some(leaf) = tree.next().await? {
            let wanted = |entry: &Entry| place.of(entry.path().as_str());
            for entry in &leaf.page.entries {
                let Some(path) = wanted(entry) else { continue };
                match entry {
                    Entry::Dir { .. } => dirs.push(path),
                    Entry::Link { target, .. } if place.keeps_inside(&path, target.as_str()) => {
                        links.push((path, target.as_str().to_owned()));
                    }
                    Entry::Link { .. } => {
                        let reason = "it points out of the folder that is downloaded".to_owned();
                        progress.notice(Notice::LeftOut { path, reason });
                    }
                    Entry::File { .. } => {}
                }
            }
            if leaf.page.entries.iter().any(|entry| matches!(entry, Entry::File { .. }) && wanted(entry).is_some()) {
                let files = tree.extents(&leaf).await?;
                plan.add(files, wanted, &mut writers).await?;
            }
        }
        plan.flush(&mut writers).await?;
        writers.finish().await?;
        let replace = if self.force || resuming { Replace::Yes } else { Replace::No };
        let counted = plan.counted();
        if counted.files == 0 && links.is_empty() && dirs.is_empty() && path.is_some() {
            return Err(Error::new(ErrorKind::NotFound, format!("the version has no `{}`", path.unwrap_or_default())));
        }
        finish(target, place.folder.clone(), dirs, links, replace, sync).await?;
        marker.remove();
        Ok(Downloaded {
            dataset: version.dataset,
            version: version.version,
            content: version.content,
            files: counted.files,
            bytes: counted.bytes,
            files_kept: counted.kept,
            bytes_received: counted.received,
            signature,
            duration: started.elapsed(),
        })
    }

    /// Which entries go where.
    async fn place(&self, client: &Client, version: &str, path: Option<&str>) -> Result<Place> {
        let target = std::path::absolute(&self.target).map_err(|error| Error::local("find", &self.target, error))?;
        let Some(path) = path else {
            return Ok(Place { folder: target, selection: Selection::All });
        };
        // Only a hint: what is written is what the checked pages say.
        let first = client.datasets().files(version, path).next().await.transpose()?;
        let is_entry = first.is_some_and(|entry| entry.path == path && entry.kind != "dir");
        if !is_entry {
            return Ok(Place { folder: target, selection: Selection::Under(path.to_owned()) });
        }
        let own_name = path.rsplit_once('/').map_or(path, |(_, name)| name);
        let (folder, name) = if target.is_dir() {
            (target, own_name.to_owned())
        } else {
            let name = target.file_name().and_then(|name| name.to_str()).unwrap_or(own_name).to_owned();
            (target.parent().map(Path::to_owned).unwrap_or(target), name)
        };
        Ok(Place { folder, selection: Selection::One { path: path.to_owned(), name } })
    }

    /// Whether the target may be written into; gives whether an earlier download goes on.
    fn admit(&self, target: &Target, place: &Place, marker: &Marker) -> Result<bool> {
        let failed = |error| Error::local("list", &place.folder, error);
        let resuming = marker.is_ours();
        if let Selection::One { name, .. } = &place.selection {
            match target.cursor().look(name)? {
                There::Nothing => {}
                There::File { .. } | There::Link if self.force => {}
                _ => return Err(target::in_use(name)),
            }
        } else if !resuming && !self.force && !target.is_empty().map_err(failed)? {
            return Err(Error::new(ErrorKind::Conflict, format!("`{}` is not empty", place.folder.display()))
                .with_code(code::TARGET_IN_USE)
                .with_hint("name another folder, or write into this one with `--force`"));
        }
        marker.write();
        Ok(resuming)
    }
}

/// The part that names a version, and the path in it.
fn split(reference: &str) -> (String, Option<String>) {
    match reference.parse::<Reference>() {
        Ok(mut parsed) => {
            let path = parsed.path.take().map(|path| path.as_str().to_owned());
            (parsed.to_string(), path)
        }
        // A dataset id or a version hash; the node says what is wrong if it is neither.
        Err(_) => match reference.split_once(':') {
            Some((head, path)) if !path.is_empty() => (head.to_owned(), Some(path.trim_end_matches('/').to_owned())),
            _ => (reference.to_owned(), None),
        },
    }
}

/// Where entries go.
#[derive(Debug)]
struct Place {
    folder: PathBuf,
    selection: Selection,
}

#[derive(Debug)]
enum Selection {
    All,
    /// A folder of the version, without its own path.
    Under(String),
    /// One file.
    One {
        path: String,
        name: String,
    },
}

impl Place {
    /// The path inside the target for an entry, if it is wanted.
    fn of(&self, path: &str) -> Option<String> {
        match &self.selection {
            Selection::All => Some(path.to_owned()),
            Selection::Under(prefix) => {
                let rest = path.strip_prefix(prefix.as_str())?.strip_prefix('/')?;
                Some(rest.to_owned())
            }
            Selection::One { path: only, name } => (path == only).then(|| name.clone()),
        }
    }

    /// Whether a link stays inside what is downloaded, now that it lies at `path`.
    fn keeps_inside(&self, path: &str, link: &str) -> bool {
        match &self.selection {
            Selection::All => true,
            Selection::Under(_) | Selection::One { .. } => {
                bib_core::path::EntryPath::new(path).is_ok_and(|path| LinkTarget::new(link, &path).is_ok())
            }
        }
    }
}

/// Says, in the cache, with which version a place is being filled.
#[derive(Debug)]
struct Marker {
    file: PathBuf,
    version: String,
}

impl Marker {
    fn of(client: &Client, place: &Place, version: &str) -> Self {
        let part = match &place.selection {
            Selection::All => "",
            Selection::Under(path) => path,
            Selection::One { name, .. } => name,
        };
        let name = cache_name(&[&place.folder.to_string_lossy(), part]);
        Self { file: client.options().cache_file("downloads", &name), version: version.to_owned() }
    }

    fn is_ours(&self) -> bool {
        std::fs::read_to_string(&self.file).is_ok_and(|text| text == self.version)
    }

    /// A cache that cannot be written only means that an interrupted download starts over.
    fn write(&self) {
        let made = self.file.parent().map_or(Ok(()), std::fs::create_dir_all);
        if let Err(error) = made.and_then(|()| std::fs::write(&self.file, &self.version)) {
            tracing::debug!(path = %self.file.display(), %error, "a download is not remembered");
        }
    }

    fn remove(&self) {
        if let Err(error) = std::fs::remove_file(&self.file)
            && error.kind() != std::io::ErrorKind::NotFound
        {
            tracing::debug!(path = %self.file.display(), %error, "a download stays remembered");
        }
    }
}

async fn blocking_open(folder: &Path) -> Result<Target> {
    let folder = folder.to_owned();
    tokio::task::spawn_blocking(move || Target::open(&folder)).await.map_err(Error::task)?
}

/// Looks through all names before anything is written, for a file system that takes some for one.
async fn refuse_twins(client: &Client, version: &str, content: &bib_core::Hash) -> Result<()> {
    let mut tree = TreeReader::open(client, version, content).await?;
    let mut names: Vec<String> = Vec::new();
    while let Some(leaf) = tree.next().await? {
        names.extend(leaf.page.entries.iter().map(|entry| entry.path().as_str().to_owned()));
    }
    let found = twins(names.iter().map(String::as_str));
    match found.first() {
        None => Ok(()),
        Some(pair) => Err(Error::new(
            ErrorKind::Conflict,
            format!(
                "this file system cannot hold `{}` beside `{}` ({} such pairs)",
                pair.first,
                pair.second,
                found.len()
            ),
        )
        .with_code(code::TWINS)
        .with_hint("download onto a file system that tells upper from lower case, or only a part with `REF:path`")),
    }
}

/// Whether a link that points elsewhere is replaced.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Replace {
    Yes,
    No,
}

/// Empty directories and links, which come last so that nothing was ever written through one; then everything is made
/// durable.
async fn finish(
    target: Target,
    folder: PathBuf,
    dirs: Vec<String>,
    links: Vec<(String, String)>,
    replace: Replace,
    sync: Sync,
) -> Result<()> {
    let work = move || {
        let mut cursor = target.cursor();
        dirs.iter().try_for_each(|dir| cursor.make_dir(dir))?;
        links.iter().try_for_each(|(path, link)| cursor.make_link(path, link, replace == Replace::Yes))?;
        if sync == Sync::AtEnd || !dirs.is_empty() || !links.is_empty() {
            target.sync().map_err(|error| Error::local("sync", &folder, error))?;
        }
        Ok(())
    };
    tokio::task::spawn_blocking(work).await.map_err(Error::task)?
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn splits_references() {
        let cases = [("a/b", "a/b", None), ("a/b@v1:x/y", "a/b@v1", Some("x/y")), ("a/b:x", "a/b", Some("x"))];
        for (text, head, path) in cases {
            assert_eq!(split(text), (head.to_owned(), path.map(str::to_owned)), "{text}");
        }
    }

    #[test]
    fn a_folder_of_a_version_loses_its_own_path() {
        let place = Place { folder: PathBuf::new(), selection: Selection::Under("a/b".to_owned()) };
        assert_eq!(place.of("a/b/c/d").as_deref(), Some("c/d"));
        assert_eq!((place.of("a/bc"), place.of("a/b"), place.of("a")), (None, None, None));
        assert!(place.keeps_inside("c/d", "../x") && !place.keeps_inside("c/d", "../../x"));
    }
}
