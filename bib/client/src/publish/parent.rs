//! The version that is published upon: which pages it has, and where its files lie. Layout pages are fetched only for
//! files that need them.

use std::collections::HashMap;
use std::sync::Arc;

use bib_core::Hash;
use bib_core::content::{ContentRoot, IndexObject};
use bib_core::layout::{Extent, LayoutIndex, LayoutPage, LayoutRoot, PageLayout};
use bib_proto::v1 as pb;

use crate::client::Client;
use crate::error::{Error, Result};
use crate::pages::{PageReader, Roots};

/// Layout pages asked for at once; they arrive one after another.
const ASK_PAGES: usize = 256;

/// Where each content page of the parent stands.
pub(crate) type PageNumbers = HashMap<Hash, u32>;

/// The pages of the parent.
#[derive(Debug)]
pub(crate) struct Parent {
    pub(crate) version: Hash,
    pub(crate) statement: bytes::Bytes,
    /// Its content pages with their layout pages, in order.
    pub(crate) pages: Vec<PageLayout>,
    /// Where each content page stands in `pages`.
    numbers: Arc<PageNumbers>,
    reader: PageReader,
}

impl Parent {
    /// Reads roots and index objects of `version`.
    pub(crate) async fn load(client: &Client, version: &pb::Version) -> Result<Self> {
        let hash: Hash = version.version.parse().map_err(|_| Error::bad_answer("a version without a hash"))?;
        let content: Hash = version.content.parse().map_err(|_| Error::bad_answer("a version without content"))?;
        let reader = PageReader::new(client, format!("{}@{hash}", version.dataset));
        let Roots { content, layout } = reader.roots(&content).await?;
        let pages = match (content, layout) {
            (ContentRoot::Pages(content), LayoutRoot::Pages(pages)) => {
                LayoutRoot::Pages(pages.clone())
                    .check_parallel(&content)
                    .map_err(|error| Error::damaged(error.to_string()))?;
                pages
            }
            (ContentRoot::Indexes(content), LayoutRoot::Indexes(layout)) if content.len() == layout.len() => {
                read_indexes(&reader, &content, &layout).await?
            }
            _ => return Err(Error::damaged("the parent's layout is not parallel to its content")),
        };
        let numbers = Arc::new((0u32..).zip(&pages).map(|(number, page)| (page.content_page, number)).collect());
        Ok(Self { version: hash, statement: version.statement.clone(), pages, numbers, reader })
    }

    /// Where its content pages stand, for another thread.
    pub(crate) fn numbers(&self) -> Arc<PageNumbers> {
        Arc::clone(&self.numbers)
    }

    /// Where the content page stands, if the parent has it.
    pub(crate) fn number_of(&self, content_page: &Hash) -> Option<usize> {
        self.numbers.get(content_page).map(|number| *number as usize)
    }

    /// The layout of the files in these content pages, file by file.
    pub(crate) async fn layouts(
        &self,
        numbers: &[usize],
        mut each: impl FnMut(Hash, &[Extent]) -> Result<()>,
    ) -> Result<()> {
        let mut wanted: Vec<Hash> = Vec::new();
        // Files go on from page to page, but never past the last layout page of their content page.
        for number in numbers {
            wanted.extend(&self.pages[*number].pages);
            if wanted.len() >= ASK_PAGES {
                self.read_layouts(std::mem::take(&mut wanted), &mut each).await?;
            }
        }
        self.read_layouts(wanted, &mut each).await
    }

    /// The layout of every file.
    pub(crate) async fn all_layouts(&self, each: impl FnMut(Hash, &[Extent]) -> Result<()>) -> Result<()> {
        let all: Vec<usize> = (0..self.pages.len()).collect();
        self.layouts(&all, each).await
    }

    async fn read_layouts(
        &self,
        wanted: Vec<Hash>,
        each: &mut impl FnMut(Hash, &[Extent]) -> Result<()>,
    ) -> Result<()> {
        let mut open: Option<(Hash, Vec<Extent>)> = None;
        let mut reading = self.reader.read(wanted);
        while let Some(bytes) = reading.next().await? {
            let page = LayoutPage::parse(&bytes).map_err(|error| Error::damaged(error.to_string()))?;
            for line in page.lines {
                match &mut open {
                    Some((file, extents)) if line.from > 0 && *file == line.sha256 => extents.extend(line.extents),
                    _ => {
                        if let Some((file, extents)) = open.replace((line.sha256, line.extents)) {
                            each(file, &extents)?;
                        }
                    }
                }
            }
        }
        match open {
            Some((file, extents)) => each(file, &extents),
            None => Ok(()),
        }
    }
}

async fn read_indexes(reader: &PageReader, content: &[Hash], layout: &[Hash]) -> Result<Vec<PageLayout>> {
    let mut pages = Vec::new();
    let mut contents = reader.read(content.to_vec());
    let mut layouts = reader.read(layout.to_vec());
    while let (Some(content), Some(layout)) = (contents.next().await?, layouts.next().await?) {
        let content = IndexObject::parse(&content).map_err(|error| Error::damaged(error.to_string()))?;
        let layout = LayoutIndex::parse(&layout).map_err(|error| Error::damaged(error.to_string()))?;
        layout.check_parallel(&content.pages).map_err(|error| Error::damaged(error.to_string()))?;
        pages.extend(layout.pages);
    }
    Ok(pages)
}
