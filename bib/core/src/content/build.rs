//! Entries in, pages out: the one place that makes content.

use super::order::PathOrder;
use super::{
    Block, ContentError, ContentRoot, Entry, INDEX_CUT_BITS, IndexObject, MAX_INDEX_PAGES, MAX_INDEXES, MAX_PAGE_BYTES,
    MAX_PAGE_ENTRIES, MAX_TOTAL_BYTES, PAGE_CUT_BITS, Summary,
};
use crate::Hash;

/// Makes content from entries that come in path order. Memory: one page, and 40 bytes for each page before it.
#[derive(Debug, Default)]
pub struct ContentBuilder {
    order: PathOrder,
    /// The lines of the page that is being made.
    page: Vec<u8>,
    page_entries: usize,
    last_path_hash: Option<Hash>,
    pages: Vec<Hash>,
    /// How many pages are in each index object that is finished, were there two levels.
    index_lengths: Vec<usize>,
    indexed: usize,
    line: Vec<u8>,
    summary: Summary,
}

/// A finished content.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Content {
    /// The root; its hash is the `content` of a version.
    pub root: Block,
    /// The index objects, none when there is one level.
    pub index: Vec<Block>,
    /// How many pages each index object lists; empty when there is one level.
    pub index_lengths: Vec<usize>,
    /// Every page, in path order.
    pub pages: Vec<Hash>,
    /// The last page, which no push gave out; `None` for an empty folder.
    pub last_page: Option<Block>,
    /// What is in it.
    pub summary: Summary,
}

impl ContentBuilder {
    /// A content without entries.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Takes the next entry; gives the page before it, when the entry begins a new one. After an error the builder is
    /// of no more use.
    ///
    /// # Errors
    /// When the entry is not after the one before, lies below an entry, or is too large.
    pub fn push(&mut self, entry: &Entry) -> Result<Option<Block>, ContentError> {
        let path = entry.path().as_str();
        self.order.next(path)?;
        self.summary.add(entry)?;
        self.line.clear();
        entry.write_line(&mut self.line)?;
        let ended = self.last_path_hash.is_some_and(|hash| hash.has_leading_zero_bits(PAGE_CUT_BITS));
        let full = self.page_entries == MAX_PAGE_ENTRIES || self.page.len() + self.line.len() > MAX_PAGE_BYTES;
        let page = if ended || full { self.take_page() } else { None };
        self.page.extend_from_slice(&self.line);
        self.page_entries += 1;
        self.last_path_hash = Some(Hash::of(path.as_bytes()));
        Ok(page)
    }

    /// Ends the content.
    ///
    /// # Errors
    /// When there are more pages than a root can list.
    pub fn finish(mut self) -> Result<Content, ContentError> {
        let last_page = self.take_page();
        if self.pages.len() <= MAX_INDEX_PAGES {
            let root = ContentRoot::Pages(self.pages.clone()).to_block();
            let (index, index_lengths) = (Vec::new(), Vec::new());
            return Ok(Content { root, index, index_lengths, pages: self.pages, last_page, summary: self.summary });
        }
        self.end_index();
        if self.index_lengths.len() > MAX_INDEXES {
            return Err(ContentError::TooManyIndexes);
        }
        let mut rest = self.pages.as_slice();
        let mut index = Vec::with_capacity(self.index_lengths.len());
        for length in &self.index_lengths {
            let (pages, after) = rest.split_at(*length);
            index.push(IndexObject { pages: pages.to_vec() }.to_block());
            rest = after;
        }
        let root = ContentRoot::Indexes(index.iter().map(|block| block.hash).collect()).to_block();
        let index_lengths = self.index_lengths;
        Ok(Content { root, index, index_lengths, pages: self.pages, last_page, summary: self.summary })
    }

    fn take_page(&mut self) -> Option<Block> {
        let last_path_hash = self.last_path_hash.take()?;
        let block = Block::new(std::mem::take(&mut self.page));
        self.page_entries = 0;
        self.pages.push(block.hash);
        let in_index = self.pages.len() - self.indexed;
        if in_index == MAX_INDEX_PAGES || last_path_hash.has_leading_zero_bits(INDEX_CUT_BITS) {
            self.end_index();
        }
        Some(block)
    }

    fn end_index(&mut self) {
        let length = self.pages.len() - self.indexed;
        if length > 0 {
            self.index_lengths.push(length);
            self.indexed = self.pages.len();
        }
    }
}

impl Summary {
    /// Counts an entry.
    pub(super) fn add(&mut self, entry: &Entry) -> Result<(), ContentError> {
        let total = self.total_bytes.checked_add(entry.size()).filter(|total| *total < MAX_TOTAL_BYTES);
        self.total_bytes = total.ok_or(ContentError::TotalTooLarge)?;
        self.entries += 1;
        self.files += u64::from(matches!(entry, Entry::File { .. }));
        Ok(())
    }
}
