//! A folder held against a version: are these the bytes, did the author sign, who vouches for the key.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::sync_channel;
use std::time::Duration;

use bib_core::Hash;
use bib_core::content::{ContentBuilder, Entry};

use crate::attest::{Verdict, author_verdict, statement_of, voucher_verdict};
use crate::client::Client;
use crate::download::{TreeReader, hash_file};
use crate::error::{Error, ErrorKind, Result};
use crate::progress::{Phase, Progress};
use crate::publish::{Folder, Tree, walk};

/// Differences that are told one by one.
const MAX_TOLD: usize = 1000;

/// Holds a local folder against a version.
///
/// ```no_run
/// use std::sync::Arc;
/// use bib_client::{Client, Silent, Verify};
///
/// # async fn example(client: Client) -> bib_client::Result<()> {
/// let verified = Verify::new("hourly", "climate/hourly@latest").run(&client, Arc::new(Silent)).await?;
/// assert!(verified.bytes.is_good() && verified.signature.is_good());
/// # Ok(())
/// # }
/// ```
#[derive(Debug, Clone)]
pub struct Verify {
    path: PathBuf,
    reference: String,
    threads: usize,
}

/// Three verdicts and what they rest on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Verified {
    /// The dataset's full name.
    pub dataset: String,
    /// The version.
    pub version: String,
    /// The version's content.
    pub content: String,
    /// The folder's content.
    pub found: String,
    /// Whether the folder holds exactly the version's names and bytes.
    pub bytes: Verdict,
    /// Whether the author signed the version.
    pub signature: Verdict,
    /// Who vouches that the key is the author's.
    pub voucher: Verdict,
    /// Where folder and version differ, in path order, the first thousand.
    pub differences: Vec<Difference>,
    /// How many differences there are.
    pub difference_count: u64,
    /// Regular files that were read.
    pub files: u64,
    /// Their bytes in sum.
    pub size_bytes: u64,
    /// How long it took.
    pub duration: Duration,
}

/// One difference between a folder and a version.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Difference {
    /// The version has it, the folder does not.
    Missing(String),
    /// The folder has it, the version does not.
    Extra(String),
    /// Both have it, with other bytes, another kind or another target.
    Changed(String),
}

impl Difference {
    /// The path.
    #[must_use]
    pub fn path(&self) -> &str {
        match self {
            Self::Missing(path) | Self::Extra(path) | Self::Changed(path) => path,
        }
    }

    /// One word: `missing`, `extra` or `changed`.
    #[must_use]
    pub fn word(&self) -> &'static str {
        match self {
            Self::Missing(_) => "missing",
            Self::Extra(_) => "extra",
            Self::Changed(_) => "changed",
        }
    }
}

impl Verify {
    /// Holds `path` against the version that `reference` names.
    pub fn new(path: impl Into<PathBuf>, reference: impl Into<String>) -> Self {
        Self { path: path.into(), reference: reference.into(), threads: 4 }
    }

    /// Threads that look and read. 4.
    #[must_use]
    pub fn with_threads(mut self, threads: usize) -> Self {
        self.threads = threads.clamp(1, 64);
        self
    }

    /// Reads every file of the folder and compares.
    ///
    /// # Errors
    /// When the folder cannot be read, or what the node sends about the version is damaged. A folder that differs is
    /// no error but a verdict.
    pub async fn run(&self, client: &Client, progress: Arc<dyn Progress>) -> Result<Verified> {
        let started = std::time::Instant::now();
        let version = client.datasets().version(&self.reference).await?;
        let statement = statement_of(&version)?;
        let (path, threads) = (self.path.clone(), self.threads);
        let work = move || read(&path, threads, progress.as_ref());
        let (tree, found, files, size_bytes) = tokio::task::spawn_blocking(work).await.map_err(Error::task)??;
        let mut differences = Differences::default();
        let bytes = if found == statement.content {
            Verdict::Good(format!("the folder has the content {found}"))
        } else {
            compare(client, &version.version, &statement.content, &tree, &mut differences).await?;
            Verdict::Bad(format!("{} entries differ", differences.count))
        };
        Ok(Verified {
            bytes,
            signature: author_verdict(&version, &statement),
            voucher: voucher_verdict(&version, &statement),
            dataset: version.dataset,
            version: version.version,
            content: version.content,
            found: found.to_string(),
            differences: differences.told,
            difference_count: differences.count,
            files,
            size_bytes,
            duration: started.elapsed(),
        })
    }
}

#[derive(Default)]
struct Differences {
    told: Vec<Difference>,
    count: u64,
}

impl Differences {
    fn add(&mut self, difference: Difference) {
        self.count += 1;
        if self.told.len() < MAX_TOLD {
            self.told.push(difference);
        }
    }
}

/// Reads the folder and makes its content.
fn read(path: &std::path::Path, threads: usize, progress: &dyn Progress) -> Result<(Tree, Hash, u64, u64)> {
    let folder = Folder::open(path)?;
    let mut tree = walk(&folder, threads, progress)?;
    let total = (0..tree.files()).map(|file| tree.stat(file).size).sum();
    progress.total(Phase::Verify, Some(total));
    hash_all(&folder, &mut tree, threads, progress)?;
    let invalid = |error: &dyn std::fmt::Display| Error::new(ErrorKind::Invalid, error.to_string());
    let mut builder = ContentBuilder::new();
    for entry in 0..tree.len() {
        let entry = tree.entry(entry).map_err(|error| invalid(&error))?;
        builder.push(&entry).map_err(|error| invalid(&error))?;
    }
    let content = builder.finish().map_err(|error| invalid(&error))?;
    Ok((tree, content.root.hash, content.summary.files, content.summary.total_bytes))
}

fn hash_all(folder: &Folder, tree: &mut Tree, threads: usize, progress: &dyn Progress) -> Result<()> {
    let next = AtomicUsize::new(0);
    let count = tree.files();
    // Hashes come back in any order; they are noted after the threads have ended, since those read the tree.
    let mut hashes = vec![None; count];
    {
        let tree = &*tree;
        std::thread::scope(|scope| -> Result<()> {
            let (sender, receiver) = sync_channel(1024);
            for _ in 0..threads.max(1) {
                let (sender, next) = (sender.clone(), &next);
                scope.spawn(move || {
                    loop {
                        let file = next.fetch_add(1, Ordering::Relaxed);
                        if file >= count {
                            return;
                        }
                        let path = tree.file_path(file);
                        let hashed = folder.open_file(&path).and_then(|fd| {
                            let file = std::fs::File::from(fd);
                            Ok((hash_file(&file)?, file.metadata()?.len()))
                        });
                        if sender.send((file, path, hashed)).is_err() {
                            return;
                        }
                    }
                });
            }
            drop(sender);
            for (file, path, hashed) in receiver {
                let (hash, size) = hashed.map_err(|error| Error::local("read", std::path::Path::new(&path), error))?;
                progress.advance(Phase::Verify, size);
                hashes[file] = Some((hash, size));
            }
            Ok(())
        })?;
    }
    for (file, hashed) in hashes.into_iter().enumerate() {
        if let Some((hash, size)) = hashed {
            tree.set_hash(file, hash);
            tree.set_stat(file, crate::publish::Stat { size, ..*tree.stat(file) });
        }
    }
    Ok(())
}

/// Walks version and folder side by side, both in path order.
async fn compare(
    client: &Client,
    version: &str,
    content: &Hash,
    tree: &Tree,
    differences: &mut Differences,
) -> Result<()> {
    let mut reader = TreeReader::open(client, version, content).await?;
    let mut ours = (0..tree.len()).map(|entry| tree.entry(entry)).peekable();
    let unreadable = |error: bib_core::path::PathError| Error::new(ErrorKind::Invalid, error.to_string());
    while let Some(leaf) = reader.next().await? {
        for theirs in &leaf.page.entries {
            loop {
                let next = match ours.peek() {
                    Some(Ok(entry)) => entry,
                    Some(Err(error)) => return Err(unreadable(error.clone())),
                    None => {
                        differences.add(Difference::Missing(path_of(theirs)));
                        break;
                    }
                };
                match next.path().cmp(theirs.path()) {
                    std::cmp::Ordering::Less => differences.add(Difference::Extra(path_of(next))),
                    std::cmp::Ordering::Equal => {
                        if next != theirs {
                            differences.add(Difference::Changed(path_of(theirs)));
                        }
                        ours.next();
                        break;
                    }
                    std::cmp::Ordering::Greater => {
                        differences.add(Difference::Missing(path_of(theirs)));
                        break;
                    }
                }
                ours.next();
            }
        }
    }
    for entry in ours {
        differences.add(Difference::Extra(path_of(&entry.map_err(unreadable)?)));
    }
    Ok(())
}

fn path_of(entry: &Entry) -> String {
    entry.path().as_str().to_owned()
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;
    use crate::progress::Silent;

    #[test]
    fn equal_folders_have_equal_content_and_one_byte_changes_it() {
        let make = |byte: &str| {
            let dir = tempfile::tempdir().unwrap();
            fs::create_dir(dir.path().join("d")).unwrap();
            fs::write(dir.path().join("d/a"), byte).unwrap();
            fs::write(dir.path().join("b"), "same").unwrap();
            let (_, content, files, bytes) = read(dir.path(), 2, &Silent).unwrap();
            assert_eq!((files, bytes), (2, 5));
            content
        };
        assert_eq!(make("x"), make("x"));
        assert_ne!(make("x"), make("y"));
    }
}
