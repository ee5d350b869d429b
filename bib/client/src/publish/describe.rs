//! Makes content and layout of what was read. Pages that the parent has are recognised by hash, and neither sent nor
//! laid out again.

use std::collections::{HashMap, HashSet};

use bib_core::Hash;
use bib_core::content::{Block, Content, ContentBuilder, Entry};
use bib_core::layout::{Extent, FileLayout, Layout, LayoutBuilder};
use bib_proto::v1 as pb;

use super::ingest::Work;
use super::pages::PageOutlet;
use super::parent::{PageNumbers, Parent};
use super::tree::Tree;
use crate::error::{Error, ErrorKind, Result};

/// A content page and the entries in it.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Span {
    pub(crate) page: Hash,
    pub(crate) first: u32,
    pub(crate) end: u32,
    /// The parent has this very page.
    pub(crate) shared: bool,
}

/// A content and which entries lie in which page.
#[derive(Debug)]
pub(crate) struct Described {
    pub(crate) content: Content,
    pub(crate) spans: Vec<Span>,
}

/// Makes the content. Pages that the parent lacks go to `outlet`.
pub(crate) fn content(tree: &Tree, parent: Option<&PageNumbers>, outlet: &PageOutlet) -> Result<Described> {
    let mut builder = ContentBuilder::new();
    let mut spans: Vec<Span> = Vec::new();
    let mut first = 0;
    let mut take = |block: Block, end: u32| -> Result<()> {
        let shared = parent.is_some_and(|parent| parent.contains_key(&block.hash));
        spans.push(Span { page: block.hash, first, end, shared });
        first = end;
        if !shared {
            outlet.put(pb::PageKind::ContentPage, block)?;
        }
        Ok(())
    };
    let invalid = |error: &dyn std::fmt::Display| Error::new(ErrorKind::Invalid, error.to_string());
    for (number, index) in (0u32..).zip(0..tree.len()) {
        let entry: Entry = tree.entry(index).map_err(|error| invalid(&error))?;
        if let Some(block) = builder.push(&entry).map_err(|error| invalid(&error))? {
            take(block, number)?;
        }
    }
    let mut content = builder.finish().map_err(|error| invalid(&error))?;
    if let Some(block) = content.last_page.take() {
        let end = u32::try_from(tree.len()).map_err(|error| invalid(&error))?;
        take(block, end)?;
    }
    Ok(Described { content, spans })
}

/// The files that need extents: those in pages that the parent lacks.
pub(crate) fn files_to_lay_out(work: &Work, described: &Described) -> Vec<u32> {
    let mut files = Vec::new();
    for span in described.spans.iter().filter(|span| !span.shared) {
        for entry in span.first..span.end {
            if let Some(file) = work.tree.file_at(entry as usize)
                && !work.extents.has(file)
            {
                files.push(u32::try_from(file).unwrap_or(u32::MAX));
            }
        }
    }
    files
}

/// Takes extents for `files` from the parent's layout: from its pages that are gone now, and from the pages that are
/// shared and hold a file with the same bytes. Between them these hold every file of the parent.
pub(crate) async fn take_from_parent(
    work: &mut Work,
    described: &Described,
    parent: &Parent,
    files: &[u32],
) -> Result<()> {
    let mut wanted: HashMap<Hash, Vec<u32>> = HashMap::new();
    for file in files {
        if let Some(hash) = work.tree.hash(*file as usize) {
            wanted.entry(hash).or_default().push(*file);
        }
    }
    let mut shared: HashSet<usize> = HashSet::new();
    let mut useful: Vec<usize> = Vec::new();
    for span in described.spans.iter().filter(|span| span.shared) {
        let Some(number) = parent.number_of(&span.page) else { continue };
        shared.insert(number);
        let mut held = (span.first..span.end).filter_map(|entry| work.tree.file_at(entry as usize));
        if held.any(|file| work.tree.hash(file).is_some_and(|hash| wanted.contains_key(&hash))) {
            useful.push(number);
        }
    }
    useful.extend((0..parent.pages.len()).filter(|number| !shared.contains(number)));
    useful.sort_unstable();
    parent
        .layouts(&useful, |hash, extents| {
            let Some(files) = wanted.remove(&hash) else { return Ok(()) };
            for file in files {
                let size: u64 = extents.iter().map(|extent| u64::from(extent.length)).sum();
                // A layout that does not fit is passed over, and the file laid out anew.
                if size == work.tree.stat(file as usize).size {
                    set(work, file, extents)?;
                }
            }
            Ok(())
        })
        .await
}

fn set(work: &mut Work, file: u32, extents: &[Extent]) -> Result<()> {
    work.extents.set(file as usize, extents).map_err(|error| Error::new(ErrorKind::Invalid, error.to_string()))
}

/// The parent's layout pages for the pages that are shared with it, in order.
pub(crate) fn layouts_of_shared(described: &Described, parent: Option<&Parent>) -> Vec<Vec<Hash>> {
    let Some(parent) = parent else { return Vec::new() };
    let shared = described.spans.iter().filter(|span| span.shared);
    shared.filter_map(|span| parent.number_of(&span.page)).map(|number| parent.pages[number].pages.clone()).collect()
}

/// Makes the layout; `shared` comes from [`layouts_of_shared`]. Pages, indexes and roots of content and layout go to
/// `outlet`.
pub(crate) fn layout(
    work: &Work,
    described: &Described,
    shared: Vec<Vec<Hash>>,
    outlet: &PageOutlet,
) -> Result<Layout> {
    let mut builder = LayoutBuilder::new();
    let mut shared = shared.into_iter();
    let internal = |error: bib_core::layout::LayoutError| Error::new(ErrorKind::Internal, error.to_string());
    for span in &described.spans {
        if span.shared {
            let pages = shared.next().ok_or_else(|| Error::new(ErrorKind::Internal, "a shared page has no layout"))?;
            builder.reuse(span.page, pages);
            continue;
        }
        let mut files = Vec::new();
        for file in (span.first..span.end).filter_map(|entry| work.tree.file_at(entry as usize)) {
            let (Some(sha256), Some(extents)) = (work.tree.hash(file), work.extents.get(file)) else {
                let path = work.tree.file_path(file);
                return Err(Error::new(ErrorKind::Internal, format!("`{path}` was not laid out")));
            };
            files.push(FileLayout { sha256, extents });
        }
        for block in builder.page(span.page, &files).map_err(internal)? {
            outlet.put(pb::PageKind::LayoutPage, block)?;
        }
    }
    let layout = builder.finish(&described.content.index_lengths).map_err(internal)?;
    for block in &layout.index {
        outlet.put(pb::PageKind::LayoutIndex, block.clone())?;
    }
    for block in &described.content.index {
        outlet.put(pb::PageKind::ContentIndex, block.clone())?;
    }
    outlet.put(pb::PageKind::ContentRoot, described.content.root.clone())?;
    outlet.put(pb::PageKind::LayoutRoot, layout.root.clone())?;
    Ok(layout)
}
