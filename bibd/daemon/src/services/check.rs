//! Whether the content and layout that a commit names are what the formats allow, reading only what is new.
//!
//! A page that the parent version holds is not read again: its summary serves for the rules between pages, and its
//! layout must be the parent's. A new page is read with its layout pages and held against them. All pages must have
//! been sent in this session or belong to the parent, or a commit would be a way to read other people's pages.

use std::collections::{BTreeSet, HashMap, HashSet};

use bib_core::Hash;
use bib_core::content::{ContentRoot, IndexObject, Page, TreeChecker};
use bib_core::layout::{LayoutPage, LayoutWalk};
use bibd_catalog::Session;
use bibd_catalog::leases::Upload;
use bibd_catalog::pages::{self, PageKind};
use bibd_catalog::versions::Version;

use super::error::ServiceError;
use super::page_list::{self, ContentPages, LayoutPages, ordered};
use super::tree::{Outline, Question};

/// Pages named in one statement, at most.
const SLICE: usize = 8192;

/// New content pages read at once, of up to 1 MiB each.
const READ_PAGES: usize = 8;

/// Layout pages read at once.
const READ_LAYOUTS: usize = 16;

/// What a check found.
#[derive(Debug)]
pub(super) struct Checked {
    pub(super) files: u64,
    pub(super) size_bytes: u64,
    /// Every page below the roots, each once.
    pub(super) pages: Vec<Hash>,
    /// Every chunk that new pages name, and how many of its bytes they reach for.
    pub(super) chunks: HashMap<Hash, u32>,
}

/// The roots that a commit names.
#[derive(Debug, Clone, Copy)]
pub(super) struct Roots {
    pub(super) content: Hash,
    pub(super) layout: Hash,
}

struct Parent {
    content: ContentPages,
    layouts: HashMap<Hash, Vec<Hash>>,
    members: HashSet<Hash>,
}

/// Checks everything about the pages of a version that is to follow `parent`.
///
/// # Errors
/// The first rule that is broken, with the page.
pub(super) async fn check(
    session: &mut impl Session,
    upload: &Upload,
    roots: Roots,
    parent: Option<&Version>,
) -> Result<Checked, ServiceError> {
    let own_parent = match parent {
        Some(version) => Some(read_parent(session, version).await?),
        None => None,
    };
    let old = own_parent.as_ref();
    let mut allowed: Vec<Hash> = vec![roots.content, roots.layout];
    if let Some(version) = parent {
        allowed.retain(|root| *root != version.content && *root != version.layout);
    }
    sent_or_held(session, upload, &allowed, old).await?;
    let content = page_list::content(session, &roots.content).await.map_err(|e| e.refused("content_root"))?;
    let layout = page_list::layout(session, &roots.layout).await.map_err(|e| e.refused("layout_root"))?;
    check_parallel(&content, &layout)?;
    let members: BTreeSet<Hash> = members(&content, &layout).collect();
    let members: Vec<Hash> = members.into_iter().collect();
    sent_or_held(session, upload, &members, old).await?;
    let fresh = fresh_pages(&content, &layout, old)?;

    let mut chunks = HashMap::new();
    let (files, size_bytes) = if fresh.len() == content.pages.len() {
        check_all(session, &content, &layout, roots, &mut chunks).await?
    } else {
        check_changed(session, &content, &layout, &fresh, old, &mut chunks).await?
    };
    Ok(Checked { files, size_bytes, pages: members, chunks })
}

async fn read_parent(session: &mut impl Session, version: &Version) -> Result<Parent, ServiceError> {
    let content = page_list::content(session, &version.content).await?;
    let layout = page_list::layout(session, &version.layout).await?;
    let members = members(&content, &layout).collect();
    let layouts = layout.pages.into_iter().map(|page| (page.content_page, page.pages)).collect();
    Ok(Parent { content, layouts, members })
}

fn members<'a>(content: &'a ContentPages, layout: &'a LayoutPages) -> impl Iterator<Item = Hash> + use<'a> {
    let own = content.indexes.iter().chain(&content.pages).chain(&layout.indexes);
    own.chain(layout.pages.iter().flat_map(|page| &page.pages)).copied()
}

/// A page that was neither sent in this session nor belongs to the dataset's latest version is refused as not sent,
/// whether or not the node has it.
async fn sent_or_held(
    session: &mut impl Session,
    upload: &Upload,
    wanted: &[Hash],
    parent: Option<&Parent>,
) -> Result<(), ServiceError> {
    let wanted: Vec<Hash> =
        wanted.iter().filter(|page| !parent.is_some_and(|parent| parent.members.contains(*page))).copied().collect();
    for slice in wanted.chunks(SLICE) {
        let known: HashSet<Hash> = pages::known(session, upload.id, upload.dataset, slice).await?.into_iter().collect();
        if let Some(absent) = slice.iter().find(|page| !known.contains(*page)) {
            return Err(ServiceError::invalid(
                "content_root",
                format!("the page {absent} was not sent in this session"),
            ));
        }
    }
    Ok(())
}

fn check_parallel(content: &ContentPages, layout: &LayoutPages) -> Result<(), ServiceError> {
    let same_pages = layout.pages.iter().map(|page| &page.content_page).eq(&content.pages);
    let same_levels = content.indexes.is_empty() == layout.indexes.is_empty() && content.lengths == layout.lengths;
    if same_pages && same_levels {
        return Ok(());
    }
    Err(ServiceError::invalid("layout_root", "the layout does not list the content's pages in the content's order"))
}

/// The positions of the pages that the parent does not hold. The others must keep their layout.
fn fresh_pages(
    content: &ContentPages,
    layout: &LayoutPages,
    parent: Option<&Parent>,
) -> Result<Vec<usize>, ServiceError> {
    let Some(parent) = parent else { return Ok((0..content.pages.len()).collect()) };
    let mut fresh = Vec::new();
    for (i, page) in layout.pages.iter().enumerate() {
        match parent.layouts.get(&page.content_page) {
            None => fresh.push(i),
            Some(kept) if *kept == page.pages => {}
            Some(_) => {
                return Err(ServiceError::invalid(
                    "layout_root",
                    format!("content page {} is unchanged and keeps the layout it has", page.content_page),
                ));
            }
        }
    }
    Ok(fresh)
}

/// Every page is new: the checker of the formats reads them all, in order.
async fn check_all(
    session: &mut impl Session,
    content: &ContentPages,
    layout: &LayoutPages,
    roots: Roots,
    chunks: &mut HashMap<Hash, u32>,
) -> Result<(u64, u64), ServiceError> {
    let wrong = |e: bib_core::content::ContentError| ServiceError::invalid("content_root", e.to_string());
    let mut checker = TreeChecker::new(if content.indexes.is_empty() {
        ContentRoot::Pages(content.pages.clone())
    } else {
        ContentRoot::Indexes(content.indexes.clone())
    });
    let mut begins: HashMap<usize, (Hash, Vec<Hash>)> = HashMap::new();
    let mut at = 0;
    for (index, length) in content.indexes.iter().zip(&content.lengths) {
        begins.insert(at, (*index, content.pages[at..at + length].to_vec()));
        at += length;
    }
    let all: Vec<usize> = (0..content.pages.len()).collect();
    for slice in all.chunks(READ_PAGES) {
        for (i, page) in slice.iter().zip(read_fresh(session, content, layout, slice, chunks).await?) {
            if let Some((hash, pages)) = begins.remove(i) {
                checker.index(hash, IndexObject { pages }).map_err(wrong)?;
            }
            checker.page(&page).map_err(wrong)?;
        }
    }
    let summary = checker.finish().map_err(wrong)?;
    tracing::debug!(content = %roots.content, entries = summary.entries, "a whole content was checked");
    Ok((summary.files, summary.total_bytes))
}

/// Some pages are the parent's: summaries serve for those.
async fn check_changed(
    session: &mut impl Session,
    content: &ContentPages,
    layout: &LayoutPages,
    fresh: &[usize],
    parent: Option<&Parent>,
    chunks: &mut HashMap<Hash, u32>,
) -> Result<(u64, u64), ServiceError> {
    let wrong = |reason: String| ServiceError::invalid("content_root", reason);
    let outline = outline(session, content).await?;
    let neighbours: HashSet<(Hash, Hash)> = parent
        .map(|parent| parent.content.pages.windows(2).map(|pair| (pair[0], pair[1])).collect())
        .unwrap_or_default();
    let kept = |i: usize| neighbours.contains(&(content.pages[i], content.pages[i + 1]));
    let mut questions = Vec::new();
    outline.check(kept, &mut questions).map_err(wrong)?;
    for slice in fresh.chunks(READ_PAGES) {
        for (i, page) in slice.iter().zip(read_fresh(session, content, layout, slice, chunks).await?) {
            outline.check_parents(*i, &page, &mut questions).map_err(wrong)?;
        }
        answer(session, &outline, &mut questions).await?;
    }
    answer(session, &outline, &mut questions).await?;
    let mut sum = (0_u64, 0_u64);
    for (_, page) in &outline.pages {
        sum.0 += page.files;
        let total = sum.1.checked_add(page.size_bytes).filter(|total| *total < bib_core::content::MAX_TOTAL_BYTES);
        sum.1 = total.ok_or_else(|| wrong("the files have 2^63 bytes or more in sum".to_owned()))?;
    }
    Ok(sum)
}

async fn outline(session: &mut impl Session, content: &ContentPages) -> Result<Outline, ServiceError> {
    let mut facts = HashMap::with_capacity(content.pages.len());
    for slice in content.pages.chunks(SLICE) {
        facts.extend(pages::summaries(session, slice).await?);
    }
    let mut pages = Vec::with_capacity(content.pages.len());
    for hash in &content.pages {
        // Twice the same page would be paths twice.
        let summary = facts.remove(hash);
        let summary = summary
            .ok_or_else(|| ServiceError::invalid("content_root", format!("{hash} is not a page, or stands twice")))?;
        pages.push((*hash, summary));
    }
    let index_lengths = if content.indexes.is_empty() { Vec::new() } else { content.lengths.clone() };
    Ok(Outline { pages, index_lengths })
}

async fn answer(
    session: &mut impl Session,
    outline: &Outline,
    questions: &mut Vec<Question>,
) -> Result<(), ServiceError> {
    questions.sort_by_key(Question::page);
    let mut held: Option<(usize, Page)> = None;
    for question in questions.drain(..) {
        let at = question.page();
        let page = match held.take() {
            Some((i, page)) if i == at => page,
            _ => {
                let hash = outline.pages[at].0;
                let found = ordered(session, &[hash], PageKind::ContentPage).await?;
                let body = found.into_iter().next().map(|page| page.body).unwrap_or_default();
                Page::parse(&body).map_err(ServiceError::internal)?
            }
        };
        outline.answer(&question, &page).map_err(|reason| ServiceError::invalid("content_root", reason))?;
        held = Some((at, page));
    }
    Ok(())
}

/// Reads new content pages with their layout pages, holds one against the other, and gathers the chunks.
async fn read_fresh(
    session: &mut impl Session,
    content: &ContentPages,
    layout: &LayoutPages,
    slice: &[usize],
    chunks: &mut HashMap<Hash, u32>,
) -> Result<Vec<Page>, ServiceError> {
    let hashes: Vec<Hash> = slice.iter().map(|i| content.pages[*i]).collect();
    let bodies =
        ordered(session, &hashes, PageKind::ContentPage).await.map_err(|error| error.refused("content_root"))?;
    let parsed = tokio::task::spawn_blocking(move || {
        bodies.iter().map(|page| Page::parse(&page.body)).collect::<Result<Vec<Page>, _>>()
    });
    let parsed = parsed.await.map_err(ServiceError::internal)?.map_err(ServiceError::internal)?;
    for (i, page) in slice.iter().zip(&parsed) {
        let mut walk = LayoutWalk::new(page);
        for wanted in layout.pages[*i].pages.chunks(READ_LAYOUTS) {
            for lines in read_layouts(session, wanted).await? {
                walk.page(&lines, |_, _, extents| {
                    for extent in extents {
                        let reach = chunks.entry(extent.chunk).or_insert(0);
                        *reach = (*reach).max(extent.offset + extent.length);
                    }
                })
                .map_err(|e| ServiceError::invalid("layout_root", e.to_string()))?;
            }
        }
        walk.finish().map_err(|e| ServiceError::invalid("layout_root", e.to_string()))?;
    }
    Ok(parsed)
}

async fn read_layouts(session: &mut impl Session, wanted: &[Hash]) -> Result<Vec<LayoutPage>, ServiceError> {
    let bodies = ordered(session, wanted, PageKind::LayoutPage).await.map_err(|error| error.refused("layout_root"))?;
    let parsed = tokio::task::spawn_blocking(move || {
        bodies.iter().map(|page| LayoutPage::parse(&page.body)).collect::<Result<Vec<_>, _>>()
    });
    parsed.await.map_err(ServiceError::internal)?.map_err(ServiceError::internal)
}
