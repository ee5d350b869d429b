//! The pages of a version in order: roots and index objects read into flat lists.
//!
//! Memory: 32 bytes for each page, at most 16 MiB for each list. Page bodies are never held here.

use bib_core::Hash;
use bib_core::content::{ContentRoot, IndexObject};
use bib_core::layout::{LayoutIndex, LayoutRoot, PageLayout};
use bibd_catalog::Session;
use bibd_catalog::pages::{self, Page, PageKind};

use super::error::ServiceError;

/// Content pages of a version, at most: about 500 million entries.
const MAX_PAGES: usize = 1 << 19;

/// Index objects read at once, of up to 3 MiB each.
const SLICE: usize = 8;

/// The pages of a content.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ContentPages {
    /// The index objects; none when there is one level.
    pub indexes: Vec<Hash>,
    /// How many pages each index object lists; one number for all when there is one level.
    pub lengths: Vec<usize>,
    /// Every page, in path order.
    pub pages: Vec<Hash>,
}

/// The pages of a layout.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LayoutPages {
    /// The index objects; none when there is one level.
    pub indexes: Vec<Hash>,
    /// How many content pages each index object lists; one number for all when there is one level.
    pub lengths: Vec<usize>,
    /// The layout pages of each content page, in path order.
    pub pages: Vec<PageLayout>,
}

/// Why the list of pages cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum PageListError {
    /// A page is not here.
    #[error("the page {0} is not here")]
    Missing(Hash),
    /// A page is something else than it should be.
    #[error("the page {hash}: {reason}")]
    Wrong {
        /// The page.
        hash: Hash,
        /// What is wrong with it.
        reason: String,
    },
    /// More pages than this node takes.
    #[error("more than {MAX_PAGES} pages; split the dataset")]
    TooMany,
    /// The catalog.
    #[error(transparent)]
    Catalog(#[from] bibd_catalog::Error),
}

impl PageListError {
    /// Whether pages are missing or wrong, rather than the catalog silent.
    pub(super) const fn is_damage(&self) -> bool {
        !matches!(self, Self::Catalog(error) if !matches!(error, bibd_catalog::Error::Inconsistent { .. }))
    }

    /// As the refusal of what a client sent.
    pub(super) fn refused(self, field: &'static str) -> ServiceError {
        match self {
            Self::Catalog(error) => error.into(),
            other => ServiceError::invalid(field, other.to_string()),
        }
    }
}

impl From<PageListError> for ServiceError {
    /// Of a version that was committed: its pages must be here and whole.
    fn from(error: PageListError) -> Self {
        match error {
            PageListError::Catalog(error) => error.into(),
            other => Self::internal(other),
        }
    }
}

/// Reads the list of a content's pages.
///
/// # Errors
/// When a root or index object is missing or wrong, or there are too many pages.
pub async fn content(session: &mut impl Session, root: &Hash) -> Result<ContentPages, PageListError> {
    let body = one(session, root, PageKind::ContentRoot).await?;
    match ContentRoot::parse(&body).map_err(|e| wrong(root, e))? {
        ContentRoot::Pages(pages) => Ok(ContentPages { indexes: Vec::new(), lengths: vec![pages.len()], pages }),
        ContentRoot::Indexes(indexes) => {
            let (mut lengths, mut all) = (Vec::with_capacity(indexes.len()), Vec::new());
            for slice in indexes.chunks(SLICE) {
                for page in ordered(session, slice, PageKind::ContentIndex).await? {
                    let object = IndexObject::parse(&page.body).map_err(|e| wrong(&page.hash, e))?;
                    lengths.push(object.pages.len());
                    all.extend(object.pages);
                }
                if all.len() > MAX_PAGES {
                    return Err(PageListError::TooMany);
                }
            }
            Ok(ContentPages { indexes, lengths, pages: all })
        }
    }
}

/// Reads the list of a layout's pages.
///
/// # Errors
/// As [`content`].
pub async fn layout(session: &mut impl Session, root: &Hash) -> Result<LayoutPages, PageListError> {
    let body = one(session, root, PageKind::LayoutRoot).await?;
    match LayoutRoot::parse(&body).map_err(|e| wrong(root, e))? {
        LayoutRoot::Pages(pages) => Ok(LayoutPages { indexes: Vec::new(), lengths: vec![pages.len()], pages }),
        LayoutRoot::Indexes(indexes) => {
            let (mut lengths, mut all, mut held) = (Vec::with_capacity(indexes.len()), Vec::new(), 0);
            for slice in indexes.chunks(SLICE) {
                for page in ordered(session, slice, PageKind::LayoutIndex).await? {
                    let object = LayoutIndex::parse(&page.body).map_err(|e| wrong(&page.hash, e))?;
                    lengths.push(object.pages.len());
                    held += object.pages.iter().map(|page| 1 + page.pages.len()).sum::<usize>();
                    all.extend(object.pages);
                }
                if held > 2 * MAX_PAGES {
                    return Err(PageListError::TooMany);
                }
            }
            Ok(LayoutPages { indexes, lengths, pages: all })
        }
    }
}

/// These pages in this order; each must be here and of this kind.
///
/// # Errors
/// When one is not.
pub async fn ordered(session: &mut impl Session, wanted: &[Hash], kind: PageKind) -> Result<Vec<Page>, PageListError> {
    let mut found: std::collections::HashMap<Hash, Page> =
        pages::get(session, wanted).await?.into_iter().map(|page| (page.hash, page)).collect();
    let mut ordered: Vec<Page> = Vec::with_capacity(wanted.len());
    for hash in wanted {
        let page = match found.remove(hash) {
            Some(page) => page,
            // The same layout page may stand twice.
            None => match ordered.iter().find(|page| page.hash == *hash) {
                Some(page) => page.clone(),
                None => return Err(PageListError::Missing(*hash)),
            },
        };
        if page.kind != kind {
            return Err(wrong(hash, format!("it is a {:?}, not a {kind:?}", page.kind)));
        }
        ordered.push(page);
    }
    Ok(ordered)
}

async fn one(session: &mut impl Session, hash: &Hash, kind: PageKind) -> Result<Vec<u8>, PageListError> {
    let mut pages = ordered(session, std::slice::from_ref(hash), kind).await?;
    pages.pop().map(|page| page.body).ok_or(PageListError::Missing(*hash))
}

fn wrong(hash: &Hash, reason: impl ToString) -> PageListError {
    PageListError::Wrong { hash: *hash, reason: reason.to_string() }
}
