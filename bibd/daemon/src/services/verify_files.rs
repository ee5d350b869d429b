//! Hashes the files of a version through their chunks, in path order.
//!
//! Memory: a content page, its layout pages a few at a time, and a handful of chunks. Small files lie together in packs,
//! so the chunk that was read last is kept for the next file.

use std::collections::HashSet;

use bib_core::content::{Entry, Page};
use bib_core::layout::{self, Extent, LayoutPage};
use bib_core::{Hash, Hasher};
use bibd_catalog::Db;
use bibd_catalog::chunks;
use bibd_catalog::pages::PageKind;
use bibd_catalog::versions::Version;
use bytes::Bytes;

use super::activity::Activity;
use super::chunk_reader::ChunkReader;
use super::error::ServiceError;
use super::page_list::{self, ContentPages, LayoutPages, ordered};

/// Layout pages read at once.
const READ_LAYOUTS: usize = 16;

/// Raw bytes hashed before progress is told.
const TELL_BYTES: u64 = 16 << 20;

/// What has been done so far.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Progress {
    /// Bytes hashed.
    pub bytes: u64,
    /// Files hashed.
    pub files: u64,
}

/// Word of a verification under way.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Word {
    /// So much is done.
    Progress(Progress),
    /// A file whose bytes are missing or wrong.
    Damaged(String),
}

/// Hears words of a verification.
pub trait Listener: Send {
    /// Takes a word; false stops the verification.
    fn tell(&mut self, word: Word) -> impl Future<Output = bool> + Send;
}

/// Reads a version's files.
#[derive(Debug)]
pub struct FileVerifier<'a> {
    db: &'a Db,
    reader: &'a ChunkReader,
    /// Steps aside for transfers when given.
    aside: Option<&'a Activity>,
    /// The chunk that was read last.
    held: Option<(Hash, Bytes)>,
    done: Progress,
    told: u64,
}

/// A file that is being hashed.
struct Open<'p> {
    entry: &'p Entry,
    hasher: Hasher,
    bytes: u64,
    whole: bool,
}

impl<'a> FileVerifier<'a> {
    /// Reads through `reader`; in the background it steps aside for transfers.
    #[must_use]
    pub fn new(db: &'a Db, reader: &'a ChunkReader, aside: Option<&'a Activity>) -> Self {
        Self { db, reader, aside, held: None, done: Progress::default(), told: 0 }
    }

    /// Hashes the files on the pages of `version` but those in `known`, and says how many were damaged.
    ///
    /// # Errors
    /// When the catalog or the store does not answer. A damaged file is no error.
    pub async fn run(
        &mut self,
        version: &Version,
        known: &HashSet<Hash>,
        listener: &mut impl Listener,
    ) -> Result<u64, ServiceError> {
        let mut session = self.db.read().await?;
        let content: ContentPages = page_list::content(&mut session, &version.content).await?;
        let layout: LayoutPages = page_list::layout(&mut session, &version.layout).await?;
        drop(session);
        let mut damaged = 0;
        for (hash, lines) in content.pages.iter().zip(&layout.pages) {
            if known.contains(hash) {
                continue;
            }
            let (page, lines) = self.read_page(hash, &lines.pages).await?;
            let files = layout::join(&page, &lines).map_err(ServiceError::internal)?;
            for (entry, extents) in files {
                let whole = self.hash_file(entry, &extents, listener).await?;
                let Some(whole) = whole else { return Ok(damaged) };
                self.done.files += 1;
                if !whole {
                    damaged += 1;
                    if !listener.tell(Word::Damaged(entry.path().to_string())).await {
                        return Ok(damaged);
                    }
                }
            }
        }
        listener.tell(Word::Progress(self.done)).await;
        Ok(damaged)
    }

    async fn read_page(&self, content: &Hash, layout: &[Hash]) -> Result<(Page, Vec<LayoutPage>), ServiceError> {
        let mut session = self.db.read().await?;
        let body = ordered(&mut session, std::slice::from_ref(content), PageKind::ContentPage).await?;
        let body = body.into_iter().next().map(|page| page.body).unwrap_or_default();
        let page = Page::parse(&body).map_err(ServiceError::internal)?;
        let mut lines = Vec::with_capacity(layout.len());
        for slice in layout.chunks(READ_LAYOUTS) {
            for found in ordered(&mut session, slice, PageKind::LayoutPage).await? {
                lines.push(LayoutPage::parse(&found.body).map_err(ServiceError::internal)?);
            }
        }
        Ok((page, lines))
    }

    /// Whether the file's bytes are what the content says; `None` when told to stop.
    async fn hash_file(
        &mut self,
        entry: &Entry,
        extents: &[Extent],
        listener: &mut impl Listener,
    ) -> Result<Option<bool>, ServiceError> {
        let mut open = Open { entry, hasher: Hasher::new(), bytes: 0, whole: true };
        for extent in extents {
            match self.chunk(&extent.chunk).await {
                Ok(bytes) => open.take(extent, bytes).await?,
                // Noted by the reader. Go on: the next chunks may be damaged too, and are to be noted.
                Err(ServiceError::Integrity { .. }) => open.whole = false,
                Err(error) => return Err(error),
            }
            self.done.bytes += u64::from(extent.length);
            if self.done.bytes - self.told >= TELL_BYTES {
                self.told = self.done.bytes;
                if !listener.tell(Word::Progress(self.done)).await {
                    return Ok(None);
                }
            }
        }
        Ok(Some(open.finish()))
    }

    async fn chunk(&mut self, hash: &Hash) -> Result<Bytes, ServiceError> {
        if let Some((held, bytes)) = &self.held
            && held == hash
        {
            return Ok(bytes.clone());
        }
        if let Some(activity) = self.aside {
            activity.step_aside().await;
        }
        let mut session = self.db.read().await?;
        let located = chunks::locate(&mut session, std::slice::from_ref(hash)).await?.into_iter().next();
        drop(session);
        let bytes = match located {
            Some(located) => self.reader.read(&located).await?,
            None => return Err(super::store_errors::damaged(hash, "the node has lost it")),
        };
        self.held = Some((*hash, bytes.clone()));
        Ok(bytes)
    }
}

impl Open<'_> {
    async fn take(&mut self, extent: &Extent, chunk: Bytes) -> Result<(), ServiceError> {
        let (from, to) = (extent.offset as usize, extent.offset as usize + extent.length as usize);
        if to > chunk.len() {
            self.whole = false;
            return Ok(());
        }
        self.bytes += u64::from(extent.length);
        let part = chunk.slice(from..to);
        if part.len() < 64 * 1024 {
            self.hasher.update(&part);
            return Ok(());
        }
        let mut hasher = std::mem::take(&mut self.hasher);
        let hashed = tokio::task::spawn_blocking(move || {
            hasher.update(&part);
            hasher
        });
        self.hasher = hashed.await.map_err(ServiceError::internal)?;
        Ok(())
    }

    fn finish(self) -> bool {
        match self.entry {
            Entry::File { sha256, size, .. } => self.whole && self.bytes == *size && self.hasher.finish() == *sha256,
            Entry::Dir { .. } | Entry::Link { .. } => true,
        }
    }
}
