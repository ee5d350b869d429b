//! The entries of a version in path order, a page at a time, beginning inside the right page of the tree: a listing
//! costs what it shows, not what there is.

use bib_core::Hash;
use bib_core::content::{ContentRoot, Entry, IndexObject, Page};
use bibd_catalog::Read;
use bibd_catalog::pages::{self, PageKind};

use super::base::Base;
use super::error::ServiceError;
use super::page_list::ordered;
use super::reference::{self, Found};
use crate::actor::Call;

/// Which entries.
#[derive(Debug, Clone, Default)]
pub struct FileFilter {
    /// Only entries whose path begins with this.
    pub prefix: String,
    /// Paths after this one.
    pub after: String,
    /// Rows, at most.
    pub limit: usize,
}

/// Entries of a version that the caller may read.
///
/// # Errors
/// When there is no such version for the caller, it was withdrawn, or it is under embargo.
pub async fn list_files(
    base: &Base,
    call: &Call,
    reference: &str,
    filter: &FileFilter,
) -> Result<(Found, Vec<Entry>), ServiceError> {
    let mut session = base.db.read().await?;
    let found = reference::readable(base, call, &mut session, reference).await?;
    let start = if filter.after > filter.prefix { &filter.after } else { &filter.prefix };
    let mut entries = Vec::new();
    let mut walk = Walk::begin(&mut session, &found.version.content, start).await?;
    while let Some(page) = walk.next(&mut session).await? {
        for entry in page.entries {
            let path = entry.path().as_str();
            if path <= filter.after.as_str() || (path < filter.prefix.as_str()) {
                continue;
            }
            if !path.starts_with(&filter.prefix) || entries.len() == filter.limit {
                return Ok((found, entries));
            }
            entries.push(entry);
        }
    }
    Ok((found, entries))
}

/// Content pages from the one that holds the first path wanted.
struct Walk {
    /// Index objects that come after the one whose pages are being walked.
    indexes: std::vec::IntoIter<Hash>,
    pages: std::vec::IntoIter<Hash>,
}

impl Walk {
    async fn begin(session: &mut Read, root: &Hash, start: &str) -> Result<Self, ServiceError> {
        let body = body_of(session, root, PageKind::ContentRoot).await?;
        let (indexes, pages) = match ContentRoot::parse(&body).map_err(ServiceError::internal)? {
            ContentRoot::Pages(pages) => (Vec::new(), pages),
            ContentRoot::Indexes(indexes) => {
                let at = last_at_or_before(session, &indexes, start, PageKind::ContentIndex).await?;
                let body = body_of(session, &indexes[at], PageKind::ContentIndex).await?;
                let object = IndexObject::parse(&body).map_err(ServiceError::internal)?;
                (indexes[at + 1..].to_vec(), object.pages)
            }
        };
        let mut pages = pages;
        let at =
            if pages.is_empty() { 0 } else { last_at_or_before(session, &pages, start, PageKind::ContentPage).await? };
        pages.drain(..at);
        Ok(Self { indexes: indexes.into_iter(), pages: pages.into_iter() })
    }

    async fn next(&mut self, session: &mut Read) -> Result<Option<Page>, ServiceError> {
        if self.pages.as_slice().is_empty()
            && let Some(index) = self.indexes.next()
        {
            let body = body_of(session, &index, PageKind::ContentIndex).await?;
            self.pages = IndexObject::parse(&body).map_err(ServiceError::internal)?.pages.into_iter();
        }
        let Some(page) = self.pages.next() else { return Ok(None) };
        let body = body_of(session, &page, PageKind::ContentPage).await?;
        Page::parse(&body).map(Some).map_err(ServiceError::internal)
    }
}

/// The position of the last of these (in path order) whose first path is not after `start`; 0 when all are after it. A
/// binary search: one question each for the first path of a few.
async fn last_at_or_before(
    session: &mut Read,
    hashes: &[Hash],
    start: &str,
    kind: PageKind,
) -> Result<usize, ServiceError> {
    let (mut low, mut high) = (0, hashes.len());
    while high - low > 1 {
        let middle = low + (high - low) / 2;
        if first_path(session, &hashes[middle], kind).await?.as_str() <= start {
            low = middle;
        } else {
            high = middle;
        }
    }
    Ok(low)
}

async fn first_path(session: &mut Read, hash: &Hash, kind: PageKind) -> Result<String, ServiceError> {
    let page = match kind {
        PageKind::ContentIndex => {
            let body = body_of(session, hash, kind).await?;
            let object = IndexObject::parse(&body).map_err(ServiceError::internal)?;
            object.pages.first().copied().ok_or_else(|| ServiceError::internal("an empty index object"))?
        }
        _ => *hash,
    };
    let summary = pages::summaries(session, &[page]).await?.into_iter().next();
    summary
        .map(|(_, summary)| summary.first_path)
        .ok_or_else(|| ServiceError::internal(format!("no summary of {page}")))
}

async fn body_of(session: &mut Read, hash: &Hash, kind: PageKind) -> Result<Vec<u8>, ServiceError> {
    let found = ordered(session, std::slice::from_ref(hash), kind).await?;
    found.into_iter().next().map(|page| page.body).ok_or_else(|| ServiceError::internal(format!("no page {hash}")))
}
