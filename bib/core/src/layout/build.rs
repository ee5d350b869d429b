//! Extents in, layout pages out: the one place that makes layouts.

use super::{
    FileLayout, LayoutError, LayoutIndex, LayoutLine, LayoutRoot, MAX_LAYOUT_PAGE_BYTES, PageLayout, size_of_extents,
};
use crate::Hash;
use crate::content::{Block, MAX_FILE_BYTES, MAX_INDEX_PAGES};

/// Makes a layout, content page by content page, in the content's order. Memory: the hashes.
#[derive(Debug, Default)]
pub struct LayoutBuilder {
    pages: Vec<PageLayout>,
}

/// The top of a finished layout; its pages were given out before.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Layout {
    /// The root.
    pub root: Block,
    /// The index objects, none when there is one level.
    pub index: Vec<Block>,
}

impl LayoutBuilder {
    /// A layout of nothing.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Lays out the next content page: `files` are its regular files, in its order. Gives the layout pages.
    ///
    /// # Errors
    /// When an extent is out of bounds or a file too large.
    pub fn page(&mut self, content_page: Hash, files: &[FileLayout]) -> Result<Vec<Block>, LayoutError> {
        let mut blocks = Vec::new();
        let mut page = Vec::new();
        for file in files {
            check(file)?;
            let (mut from, mut rest) = (0, file.extents.as_slice());
            loop {
                let room = MAX_LAYOUT_PAGE_BYTES - page.len();
                let written = LayoutLine::write(&file.sha256, from, rest, room, &mut page);
                if written == Some(rest.len()) {
                    break;
                }
                let (done, left) = rest.split_at(written.unwrap_or(0));
                from += size_of_extents(done);
                rest = left;
                blocks.push(Block::new(std::mem::take(&mut page)));
            }
        }
        if !page.is_empty() {
            blocks.push(Block::new(page));
        }
        self.pages.push(PageLayout { content_page, pages: blocks.iter().map(|block| block.hash).collect() });
        Ok(blocks)
    }

    /// Keeps the layout pages that the next content page has in an earlier layout.
    pub fn reuse(&mut self, content_page: Hash, pages: Vec<Hash>) {
        self.pages.push(PageLayout { content_page, pages });
    }

    /// Ends the layout. `index_lengths` are the content's ([`crate::content::Content::index_lengths`]): how many pages
    /// each of its index objects lists; empty when it has one level.
    ///
    /// # Errors
    /// When there were not as many content pages as that, or a list of layout pages is too long.
    pub fn finish(self, index_lengths: &[usize]) -> Result<Layout, LayoutError> {
        if index_lengths.is_empty() {
            if self.pages.len() > MAX_INDEX_PAGES {
                return Err(LayoutError::NotParallel("more pages than a root of one level has"));
            }
            return Ok(Layout { root: LayoutRoot::Pages(self.pages).to_block()?, index: Vec::new() });
        }
        let mut rest = self.pages.as_slice();
        let mut index = Vec::with_capacity(index_lengths.len());
        for length in index_lengths {
            let Some((pages, after)) = rest.split_at_checked(*length) else {
                return Err(LayoutError::NotParallel("fewer pages than the content has"));
            };
            index.push(LayoutIndex { pages: pages.to_vec() }.to_block()?);
            rest = after;
        }
        if !rest.is_empty() {
            return Err(LayoutError::NotParallel("more pages than the content has"));
        }
        let root = LayoutRoot::Indexes(index.iter().map(|block| block.hash).collect()).to_block()?;
        Ok(Layout { root, index })
    }
}

fn check(file: &FileLayout) -> Result<(), LayoutError> {
    for extent in &file.extents {
        if !extent.is_within_bounds() {
            return Err(LayoutError::Extent { offset: extent.offset, length: extent.length });
        }
    }
    if file.size() > MAX_FILE_BYTES { Err(LayoutError::FileTooLarge(file.sha256)) } else { Ok(()) }
}
