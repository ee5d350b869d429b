//! The scrubber: a walk over the store in hash order, a page at a time, and the comparison with what the catalog
//! expects.
//!
//! The caller owns pace and cursor: a page reads no more than its [`ScrubBudget`], so a task that asks for one page a
//! second with 16 MiB reads 16 MiB a second; the cursor is kept wherever it likes, and a walk resumes behind it.
//! Memory: the names of one `ab/cd` directory (1/65,536 of the store) and one chunk.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use bib_core::Hash;

use crate::chunk::{Encoding, MAX_CHUNK_BYTES};
use crate::codec;
use crate::direct::Purpose;
use crate::disk::Contents;
use crate::error::ReadError;
use crate::store::{BlobStore, Inner};

/// How closely to look.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Depth {
    /// Names and lengths: finds what is missing, cut or orphaned. Reads no chunk.
    Names,
    /// Every byte.
    Contents,
}

/// The most that one page may cost. A page always makes progress, by one file at least.
#[derive(Debug, Clone, Copy)]
pub struct ScrubBudget {
    /// Files looked at.
    pub files: usize,
    /// Bytes read (not counted at [`Depth::Names`]).
    pub bytes: u64,
}

/// A file found under a chunk's name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ScrubbedFile {
    /// The chunk.
    pub hash: Hash,
    /// Length of the file, in bytes.
    pub stored_bytes: u64,
    /// When it was written: an orphan is left alone for a while.
    pub modified: SystemTime,
    /// What a look at it showed.
    pub state: FileState,
}

/// What a look at a file showed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum FileState {
    /// Not read ([`Depth::Names`]).
    Unread,
    /// It is the chunk.
    Whole {
        /// How it is encoded.
        encoding: Encoding,
        /// Length after decoding, in bytes.
        raw_len: u32,
    },
    /// It is not.
    Corrupt {
        /// Whether it is in quarantine now.
        quarantined: bool,
    },
    /// The disk does not give it.
    Unreadable {
        /// The system's words.
        reason: String,
    },
}

/// A part of the walk: every file above `after` and not above `up_to`.
#[derive(Debug, Clone)]
pub struct ScrubPage {
    /// Where the page began (exclusive); `None`: at the start.
    pub after: Option<Hash>,
    /// Where it ended (inclusive): the cursor of the next page. `None`: the walk is complete.
    pub up_to: Option<Hash>,
    /// In hash order.
    pub files: Vec<ScrubbedFile>,
    /// Files that are not named as chunks are, or lie in the wrong directory. Nothing of ours; left alone. Where a
    /// directory falls into two pages, both may list them.
    pub strays: Vec<PathBuf>,
    /// Bytes read.
    pub bytes_read: u64,
}

/// A chunk that the catalog expects in the store.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Expected {
    /// The chunk.
    pub hash: Hash,
    /// Length of its file, in bytes.
    pub stored_bytes: u32,
}

/// Where store and catalog differ.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Finding {
    /// A row without a file.
    Missing {
        /// The chunk.
        hash: Hash,
    },
    /// A file that is not its chunk (also where the catalog knows nothing of it).
    Corrupt {
        /// The chunk.
        hash: Hash,
        /// Whether it is in quarantine now.
        quarantined: bool,
    },
    /// A file whose length is not the row's. At [`Depth::Contents`] the file is whole, and the row is wrong.
    Length {
        /// The chunk.
        hash: Hash,
        /// By the catalog.
        expected: u32,
        /// On disk.
        found: u64,
    },
    /// A file that could not be read.
    Unreadable {
        /// The chunk.
        hash: Hash,
        /// The system's words.
        reason: String,
    },
    /// A file without a row. Only a candidate: an upload may be about to commit the row, so leave it alone until it is
    /// older than any upload session, look for the row again, then trash it.
    Orphan {
        /// The chunk.
        hash: Hash,
        /// Length of the file, in bytes.
        stored_bytes: u64,
        /// When it was written.
        modified: SystemTime,
    },
}

impl BlobStore {
    /// Walks on behind `after`. A corrupt file is quarantined, as by a read.
    ///
    /// # Errors
    /// [`ReadError::Io`] if a directory cannot be listed. A file that cannot be read is part of the page instead.
    pub async fn scrub(&self, after: Option<Hash>, depth: Depth, budget: ScrubBudget) -> Result<ScrubPage, ReadError> {
        self.blocking(MAX_CHUNK_BYTES, move |inner| inner.scrub_page(after, depth, budget)).await
    }

    /// Compares a page with the catalog's rows of the same range (above `page.after`, up to `page.up_to`), in hash
    /// order, read after the page was. What seems missing is looked for once more, as it may have
    /// been put since.
    ///
    /// # Errors
    /// [`ReadError::Io`] if the disk does not say whether a file exists.
    pub async fn reconcile(&self, page: &ScrubPage, rows: &[Expected]) -> Result<Vec<Finding>, ReadError> {
        let mut findings = Vec::new();
        for finding in compare(page, rows) {
            match finding {
                Finding::Missing { hash } if self.exists(&hash).await? => {}
                other => findings.push(other),
            }
        }
        Ok(findings)
    }
}

/// Merges two lists that are both in hash order.
fn compare(page: &ScrubPage, rows: &[Expected]) -> Vec<Finding> {
    let mut findings = Vec::new();
    let mut rows = rows.iter().peekable();
    for file in &page.files {
        while let Some(row) = rows.next_if(|row| row.hash < file.hash) {
            findings.push(Finding::Missing { hash: row.hash });
        }
        let row = rows.next_if(|row| row.hash == file.hash);
        findings.extend(judge(file, row));
    }
    findings.extend(rows.map(|row| Finding::Missing { hash: row.hash }));
    findings
}

fn judge(file: &ScrubbedFile, row: Option<&Expected>) -> Option<Finding> {
    let hash = file.hash;
    match (&file.state, row) {
        (FileState::Corrupt { quarantined }, _) => Some(Finding::Corrupt { hash, quarantined: *quarantined }),
        (FileState::Unreadable { reason }, _) => Some(Finding::Unreadable { hash, reason: reason.clone() }),
        (_, None) => Some(Finding::Orphan { hash, stored_bytes: file.stored_bytes, modified: file.modified }),
        (_, Some(row)) if u64::from(row.stored_bytes) != file.stored_bytes => {
            Some(Finding::Length { hash, expected: row.stored_bytes, found: file.stored_bytes })
        }
        (_, Some(_)) => None,
    }
}

impl Inner {
    fn scrub_page(&self, after: Option<Hash>, depth: Depth, budget: ScrubBudget) -> Result<ScrubPage, ReadError> {
        let mut page = ScrubPage { after, up_to: None, files: Vec::new(), strays: Vec::new(), bytes_read: 0 };
        let first = after.map_or([0, 0], |hash| [hash.as_bytes()[0], hash.as_bytes()[1]]);
        for high in first[0]..=u8::MAX {
            let upper = self.disk.blobs().join(format!("{high:02x}"));
            for name in names(&upper)? {
                let Some(low) = parse_byte(&name) else {
                    page.strays.push(upper.join(name));
                    continue;
                };
                if [high, low] >= first && !self.scrub_dir([high, low], after, depth, budget, &mut page)? {
                    page.up_to = page.files.last().map(|file| file.hash);
                    return Ok(page);
                }
            }
        }
        Ok(page)
    }

    /// Adds the files of `ab/cd` to the page; `false` if the budget is spent.
    fn scrub_dir(
        &self,
        prefix: [u8; 2],
        after: Option<Hash>,
        depth: Depth,
        budget: ScrubBudget,
        page: &mut ScrubPage,
    ) -> Result<bool, ReadError> {
        let dir = self.disk.blobs().join(format!("{:02x}", prefix[0])).join(format!("{:02x}", prefix[1]));
        for name in names(&dir)? {
            let hash = match name.parse::<Hash>() {
                Ok(hash) if hash.as_bytes().starts_with(&prefix) => hash,
                _ => {
                    page.strays.push(dir.join(name));
                    continue;
                }
            };
            if after.is_some_and(|after| hash <= after) {
                continue;
            }
            let spent =
                page.files.len() >= budget.files || (depth == Depth::Contents && page.bytes_read >= budget.bytes);
            if spent && !page.files.is_empty() {
                return Ok(false);
            }
            page.files.extend(self.scrub_file(hash, depth, &mut page.bytes_read));
        }
        Ok(true)
    }

    /// `None` if the file went away meanwhile, which is not ours to judge.
    fn scrub_file(&self, hash: Hash, depth: Depth, bytes_read: &mut u64) -> Option<ScrubbedFile> {
        let path = self.disk.chunk(&hash);
        let look = || -> io::Result<(u64, SystemTime, Option<Contents>)> {
            let file = fs::File::open(&path)?;
            let metadata = file.metadata()?;
            let contents = match depth {
                Depth::Names => None,
                Depth::Contents => {
                    Some(self.disk.read_limited(&file, u64::from(MAX_CHUNK_BYTES), &hash, Purpose::Scan)?)
                }
            };
            Ok((metadata.len(), metadata.modified()?, contents))
        };
        let (stored_bytes, modified, contents) = match look() {
            Ok(found) => found,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return None,
            Err(error) => {
                let state = FileState::Unreadable { reason: error.to_string() };
                return Some(ScrubbedFile { hash, stored_bytes: 0, modified: SystemTime::UNIX_EPOCH, state });
            }
        };
        let state = match contents {
            None => FileState::Unread,
            Some(Contents::Length(_)) => FileState::Corrupt { quarantined: self.set_aside(&path, &hash) },
            Some(Contents::Bytes(bytes)) => {
                *bytes_read += bytes.len() as u64;
                match codec::recognise(bytes, &hash) {
                    Some(whole) => FileState::Whole { encoding: whole.encoding, raw_len: whole.raw.len() as u32 },
                    None => FileState::Corrupt { quarantined: self.set_aside(&path, &hash) },
                }
            }
        };
        Some(ScrubbedFile { hash, stored_bytes, modified, state })
    }
}

/// A directory's name: two lower-case hex digits.
fn parse_byte(name: &str) -> Option<u8> {
    let byte = u8::from_str_radix(name, 16).ok()?;
    (format!("{byte:02x}") == name).then_some(byte)
}

/// The names in a directory, sorted; none if it does not exist.
fn names(dir: &Path) -> Result<Vec<String>, ReadError> {
    let failed = |source| ReadError::Io { act: "list", path: dir.to_owned(), source };
    let entries = match fs::read_dir(dir) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(source) => return Err(failed(source)),
    };
    let mut names = Vec::new();
    for entry in entries {
        names.push(entry.map_err(failed)?.file_name().to_string_lossy().into_owned());
    }
    names.sort_unstable();
    Ok(names)
}
