//! The entries of a version with where their bytes lie, page by page, checked against the content's root.

use std::collections::VecDeque;

use bib_core::Hash;
use bib_core::content::{ContentRoot, Entry, IndexObject, Page, TreeChecker, Wanted};
use bib_core::layout::{Extent, LayoutIndex, LayoutPage, LayoutRoot, PageLayout, join};

use crate::client::Client;
use crate::error::{Error, Result};
use crate::pages::{PageReader, Reading, Roots};

/// Content pages fetched ahead in one call.
const AHEAD: usize = 16;

/// A content page, whole and checked.
#[derive(Debug)]
pub(crate) struct Leaf {
    pub(crate) page: Page,
    layout: Vec<Hash>,
}

/// Reads the tree of a version from its first to its last page.
pub(crate) struct TreeReader {
    reader: PageReader,
    checker: TreeChecker,
    /// Layouts of the index objects that were not read yet.
    layout_indexes: VecDeque<Hash>,
    /// Layouts of the content pages that were not read yet.
    layouts: VecDeque<PageLayout>,
    fetching: Option<Reading>,
    fetched: usize,
}

fn damaged(error: impl std::fmt::Display) -> Error {
    Error::damaged(error.to_string())
}

impl TreeReader {
    /// Begins with the roots of the version; the content root must hash to `content`.
    pub(crate) async fn open(client: &Client, reference: &str, content: &Hash) -> Result<Self> {
        let reader = PageReader::new(client, reference.to_owned());
        let Roots { content, layout } = reader.roots(content).await?;
        let (layout_indexes, layouts) = match (&content, layout) {
            (ContentRoot::Pages(pages), layout @ LayoutRoot::Pages(_)) => {
                layout.check_parallel(pages).map_err(damaged)?;
                let LayoutRoot::Pages(layouts) = layout else { return Err(damaged("a layout of two levels")) };
                (VecDeque::new(), layouts.into())
            }
            (ContentRoot::Indexes(indexes), LayoutRoot::Indexes(layouts)) if indexes.len() == layouts.len() => {
                (layouts.into(), VecDeque::new())
            }
            _ => return Err(damaged("the layout is not parallel to the content")),
        };
        let checker = TreeChecker::new(content);
        Ok(Self { reader, checker, layout_indexes, layouts, fetching: None, fetched: 0 })
    }

    /// The next content page; `None` after the last, once the whole tree is known to be the one that the root names.
    pub(crate) async fn next(&mut self) -> Result<Option<Leaf>> {
        loop {
            match self.checker.wanted() {
                Wanted::Nothing => {
                    let checker =
                        std::mem::replace(&mut self.checker, TreeChecker::new(ContentRoot::Pages(Vec::new())));
                    checker.finish().map_err(damaged)?;
                    return Ok(None);
                }
                Wanted::Index(hash) => self.read_index(hash).await?,
                Wanted::Page(hash) => return self.read_page(hash).await.map(Some),
            }
        }
    }

    async fn read_index(&mut self, hash: Hash) -> Result<()> {
        let layout = self.layout_indexes.pop_front().ok_or_else(|| damaged("an index object has no layout"))?;
        let mut reading = self.reader.read(vec![hash, layout]);
        let (Some(content), Some(layout)) = (reading.next().await?, reading.next().await?) else {
            return Err(damaged("an index object is missing"));
        };
        let object = IndexObject::parse(&content).map_err(damaged)?;
        let layout = LayoutIndex::parse(&layout).map_err(damaged)?;
        layout.check_parallel(&object.pages).map_err(damaged)?;
        self.layouts = layout.pages.into();
        self.checker.index(hash, object).map_err(damaged)
    }

    async fn read_page(&mut self, hash: Hash) -> Result<Leaf> {
        if self.fetched == 0 {
            let ahead: Vec<Hash> = self.layouts.iter().take(AHEAD).map(|layout| layout.content_page).collect();
            self.fetched = ahead.len();
            self.fetching = Some(self.reader.read(ahead));
        }
        let layout = self.layouts.pop_front().ok_or_else(|| damaged("a content page has no layout"))?;
        let bytes = match &mut self.fetching {
            Some(fetching) => fetching.next().await?,
            None => None,
        };
        self.fetched = self.fetched.saturating_sub(1);
        let bytes = bytes.ok_or_else(|| damaged(format!("the page {hash} is missing")))?;
        let page = Page::parse(&bytes).map_err(damaged)?;
        self.checker.page(&page).map_err(damaged)?;
        Ok(Leaf { page, layout: layout.pages })
    }

    /// The files of a page with their extents.
    pub(crate) async fn extents<'a>(&self, leaf: &'a Leaf) -> Result<Vec<(&'a Entry, Vec<Extent>)>> {
        let mut reading = self.reader.read(leaf.layout.clone());
        let mut pages = Vec::with_capacity(leaf.layout.len());
        while let Some(bytes) = reading.next().await? {
            pages.push(LayoutPage::parse(&bytes).map_err(damaged)?);
        }
        join(&leaf.page, &pages).map_err(damaged)
    }
}
