//! A whole content that somebody else made, checked as its parts arrive.

use std::fmt;

use super::order::PathOrder;
use super::{
    ContentError, ContentRoot, INDEX_CUT_BITS, IndexObject, MAX_INDEX_PAGES, MAX_PAGE_BYTES, MAX_PAGE_ENTRIES,
    PAGE_CUT_BITS, Page,
};
use crate::Hash;

/// What a content holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Summary {
    /// Entries of all kinds.
    pub entries: u64,
    /// Regular files among them.
    pub files: u64,
    /// The sizes of the files in sum, in bytes.
    pub total_bytes: u64,
}

/// The part that a [`TreeChecker`] needs next, or that it was given.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Wanted {
    /// The index object with this hash.
    Index(Hash),
    /// The page with this hash.
    Page(Hash),
    /// Nothing more.
    Nothing,
}

/// Checks what no single page shows: that paths ascend across pages, that each page and index object ends where the
/// rule ends it, that none is missing or too many. Feed it what [`TreeChecker::wanted`] asks for.
///
/// Memory: the hashes of the root and of one index object.
#[derive(Debug)]
pub struct TreeChecker {
    indexes: std::vec::IntoIter<Hash>,
    pages: std::vec::IntoIter<Hash>,
    /// The index object whose pages are being fed; `None` in a content of one level.
    index: Option<OpenIndex>,
    order: PathOrder,
    before: Option<PageEnd>,
    page_count: usize,
    two_levels: bool,
    summary: Summary,
}

#[derive(Debug)]
struct OpenIndex {
    hash: Hash,
    length: usize,
    /// None of its pages was fed yet.
    fresh: bool,
}

/// What of the page before decides whether the next one may follow.
#[derive(Debug)]
struct PageEnd {
    hash: Hash,
    entries: usize,
    size_bytes: usize,
    last_path_hash: Hash,
}

impl TreeChecker {
    /// A checker for the content with this root.
    #[must_use]
    pub fn new(root: ContentRoot) -> Self {
        let (indexes, pages, two_levels) = match root {
            ContentRoot::Pages(pages) => (Vec::new(), pages, false),
            ContentRoot::Indexes(indexes) => (indexes, Vec::new(), true),
        };
        Self {
            indexes: indexes.into_iter(),
            pages: pages.into_iter(),
            index: None,
            order: PathOrder::default(),
            before: None,
            page_count: 0,
            two_levels,
            summary: Summary::default(),
        }
    }

    /// The part that is needed next.
    #[must_use]
    pub fn wanted(&self) -> Wanted {
        if let Some(page) = self.pages.as_slice().first() {
            return Wanted::Page(*page);
        }
        self.indexes.as_slice().first().map_or(Wanted::Nothing, |index| Wanted::Index(*index))
    }

    /// Takes the next index object; `hash` is of the bytes it was read from.
    ///
    /// # Errors
    /// When it is not the one wanted, or the one before ended too early.
    pub fn index(&mut self, hash: Hash, object: IndexObject) -> Result<(), ContentError> {
        self.is_wanted(Wanted::Index(hash))?;
        if let (Some(before), Some(page)) = (&self.index, &self.before) {
            let cut = page.last_path_hash.has_leading_zero_bits(INDEX_CUT_BITS);
            if !cut && before.length < MAX_INDEX_PAGES {
                let why = "ends before the rule ends it";
                return Err(ContentError::Cut { block: "index object", hash: before.hash, why });
            }
        }
        self.indexes.next();
        self.index = Some(OpenIndex { hash, length: object.pages.len(), fresh: true });
        self.pages = object.pages.into_iter();
        Ok(())
    }

    /// Takes the next page.
    ///
    /// # Errors
    /// When it is not the one wanted, its paths do not follow those before, or the page or index object before it
    /// ended in the wrong place.
    pub fn page(&mut self, page: &Page) -> Result<(), ContentError> {
        self.is_wanted(Wanted::Page(page.hash))?;
        if let Some(before) = &self.before {
            let cut = before.last_path_hash.has_leading_zero_bits(PAGE_CUT_BITS);
            let full = before.entries == MAX_PAGE_ENTRIES || before.size_bytes + page.first_line_bytes > MAX_PAGE_BYTES;
            if !cut && !full {
                let why = "ends before the rule ends it";
                return Err(ContentError::Cut { block: "page", hash: before.hash, why });
            }
            let index_cut = before.last_path_hash.has_leading_zero_bits(INDEX_CUT_BITS);
            if let Some(index) = self.index.as_ref().filter(|index| index_cut && !index.fresh) {
                let why = "goes on after a page that ends it";
                return Err(ContentError::Cut { block: "index object", hash: index.hash, why });
            }
        }
        for entry in &page.entries {
            self.order.next(entry.path().as_str())?;
            self.summary.add(entry)?;
        }
        self.pages.next();
        self.page_count += 1;
        if let Some(index) = &mut self.index {
            index.fresh = false;
        }
        self.before = Some(PageEnd {
            hash: page.hash,
            entries: page.entries.len(),
            size_bytes: page.size_bytes,
            last_path_hash: page.last_path_hash,
        });
        Ok(())
    }

    /// Ends the check: the content is whole and is what a builder would have made.
    ///
    /// # Errors
    /// When a part is still wanted, or there are two levels where one is enough.
    pub fn finish(self) -> Result<Summary, ContentError> {
        self.is_wanted(Wanted::Nothing)?;
        if self.two_levels && self.page_count <= MAX_INDEX_PAGES {
            return Err(ContentError::Object {
                object: "content root",
                expected: "one level for 4,096 pages or fewer",
            });
        }
        Ok(self.summary)
    }

    fn is_wanted(&self, found: Wanted) -> Result<(), ContentError> {
        let wanted = self.wanted();
        if wanted == found { Ok(()) } else { Err(ContentError::Unexpected { wanted, found }) }
    }
}

impl fmt::Display for Wanted {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Index(hash) => write!(f, "the index object {hash}"),
            Self::Page(hash) => write!(f, "the page {hash}"),
            Self::Nothing => f.write_str("nothing more"),
        }
    }
}
