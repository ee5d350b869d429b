//! Roots and index objects of a layout.

use super::{LayoutError, MAX_LAYOUT_OBJECT_BYTES};
use crate::Hash;
use crate::chunk::CHUNKING;
use crate::content::{Block, MAX_INDEX_PAGES, MAX_INDEXES};
use crate::lines::{Cursor, Expected, put_hash, put_hashes};
use crate::text::clip;

/// The `format` of a layout root.
const ROOT_FORMAT: &str = "bib-layout/1";

/// The `format` of a layout index object.
const INDEX_FORMAT: &str = "bib-layout-index/1";

/// The layout pages of one content page.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PageLayout {
    /// The content page.
    pub content_page: Hash,
    /// Its layout pages, in order; none when the content page has no regular files.
    pub pages: Vec<Hash>,
}

/// The top of a layout. It has as many levels as the content's root.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum LayoutRoot {
    /// One level: every content page, in the content's order.
    Pages(Vec<PageLayout>),
    /// Two levels: the hashes of the layout index objects, parallel to the content's.
    Indexes(Vec<Hash>),
}

impl LayoutRoot {
    /// The root's bytes and hash.
    ///
    /// # Errors
    /// When it is larger than [`MAX_LAYOUT_OBJECT_BYTES`].
    pub fn to_block(&self) -> Result<Block, LayoutError> {
        let mut bytes = format!("{{\"chunking\":\"{CHUNKING}\",\"format\":\"{ROOT_FORMAT}\",\"levels\":").into_bytes();
        match self {
            Self::Pages(pages) => {
                bytes.extend_from_slice(b"1,\"pages\":");
                put_pages(pages, &mut bytes);
            }
            Self::Indexes(indexes) => {
                bytes.extend_from_slice(b"2,\"pages\":");
                put_hashes(indexes, &mut bytes);
            }
        }
        bytes.push(b'}');
        bounded(bytes, "layout root")
    }

    /// Reads a layout root.
    ///
    /// # Errors
    /// When the bytes are not the one spelling of a layout root, list too much, or name other chunking parameters.
    pub fn parse(bytes: &[u8]) -> Result<Self, LayoutError> {
        let error = |expected| LayoutError::Object { object: "layout root", expected };
        let mut cursor = open(bytes, "layout root")?;
        cursor.expect("{\"chunking\":").map_err(error)?;
        let chunking = cursor.string().map_err(error)?;
        if chunking != CHUNKING {
            return Err(LayoutError::Chunking(clip(&chunking)));
        }
        cursor.expect(",\"format\":").map_err(error)?;
        take_format(&mut cursor, "layout root", ROOT_FORMAT)?;
        cursor.expect(",\"levels\":").map_err(error)?;
        let levels = cursor.integer().map_err(error)?;
        cursor.expect(",\"pages\":").map_err(error)?;
        let root = match levels {
            1 => Self::Pages(cursor.array(MAX_INDEX_PAGES, page_layout).map_err(error)?),
            2 => Self::Indexes(cursor.array(MAX_INDEXES, Cursor::hash).map_err(error)?),
            _ => return Err(error("1 or 2 levels")),
        };
        cursor.expect("}").and_then(|()| cursor.end()).map_err(error)?;
        match &root {
            Self::Indexes(indexes) if indexes.len() < 2 => Err(error("two index objects or more")),
            Self::Indexes(_) | Self::Pages(_) => Ok(root),
        }
    }

    /// The layout pages of a content page; `None` when this root does not list it, as with two levels, where a
    /// [`LayoutIndex`] does. Looks through the list.
    #[must_use]
    pub fn pages_for(&self, content_page: &Hash) -> Option<&[Hash]> {
        match self {
            Self::Pages(pages) => find(pages, content_page),
            Self::Indexes(_) => None,
        }
    }

    /// Checks that a root of one level lists exactly these content pages, in order.
    ///
    /// # Errors
    /// When it does not, or has two levels.
    pub fn check_parallel(&self, content_pages: &[Hash]) -> Result<(), LayoutError> {
        match self {
            Self::Pages(pages) => check_parallel(pages, content_pages),
            Self::Indexes(_) => Err(LayoutError::NotParallel("it has two levels, the content one")),
        }
    }
}

/// A run of content pages in a layout of two levels, the same run as in the content's index object at that place.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LayoutIndex {
    /// The content pages, 1 to [`MAX_INDEX_PAGES`], in the content's order.
    pub pages: Vec<PageLayout>,
}

impl LayoutIndex {
    /// The object's bytes and hash.
    ///
    /// # Errors
    /// When it is larger than [`MAX_LAYOUT_OBJECT_BYTES`].
    pub fn to_block(&self) -> Result<Block, LayoutError> {
        let mut bytes = format!("{{\"format\":\"{INDEX_FORMAT}\",\"pages\":").into_bytes();
        put_pages(&self.pages, &mut bytes);
        bytes.push(b'}');
        bounded(bytes, "layout index object")
    }

    /// Reads a layout index object.
    ///
    /// # Errors
    /// When the bytes are not the one spelling of a layout index object, or list nothing or too much.
    pub fn parse(bytes: &[u8]) -> Result<Self, LayoutError> {
        let error = |expected| LayoutError::Object { object: "layout index object", expected };
        let mut cursor = open(bytes, "layout index object")?;
        cursor.expect("{\"format\":").map_err(error)?;
        take_format(&mut cursor, "layout index object", INDEX_FORMAT)?;
        cursor.expect(",\"pages\":").map_err(error)?;
        let pages = cursor.array(MAX_INDEX_PAGES, page_layout).map_err(error)?;
        cursor.expect("}").and_then(|()| cursor.end()).map_err(error)?;
        if pages.is_empty() { Err(error("a page or more")) } else { Ok(Self { pages }) }
    }

    /// The layout pages of a content page; `None` when this object does not list it. Looks through the list.
    #[must_use]
    pub fn pages_for(&self, content_page: &Hash) -> Option<&[Hash]> {
        find(&self.pages, content_page)
    }

    /// Checks that the object lists exactly these content pages, in order.
    ///
    /// # Errors
    /// When it does not.
    pub fn check_parallel(&self, content_pages: &[Hash]) -> Result<(), LayoutError> {
        check_parallel(&self.pages, content_pages)
    }
}

fn find<'a>(pages: &'a [PageLayout], content_page: &Hash) -> Option<&'a [Hash]> {
    pages.iter().find(|page| page.content_page == *content_page).map(|page| page.pages.as_slice())
}

fn check_parallel(pages: &[PageLayout], content_pages: &[Hash]) -> Result<(), LayoutError> {
    if pages.iter().map(|page| &page.content_page).eq(content_pages) {
        Ok(())
    } else {
        Err(LayoutError::NotParallel("it lists other pages, or in another order"))
    }
}

fn put_pages(pages: &[PageLayout], out: &mut Vec<u8>) {
    out.push(b'[');
    for (i, page) in pages.iter().enumerate() {
        if i > 0 {
            out.push(b',');
        }
        out.push(b'[');
        put_hash(&page.content_page, out);
        out.push(b',');
        put_hashes(&page.pages, out);
        out.push(b']');
    }
    out.push(b']');
}

fn page_layout(cursor: &mut Cursor<'_>) -> Result<PageLayout, Expected> {
    cursor.expect("[")?;
    let content_page = cursor.hash()?;
    cursor.expect(",")?;
    // The object's size bounds the array.
    let pages = cursor.array(usize::MAX, Cursor::hash)?;
    cursor.expect("]")?;
    Ok(PageLayout { content_page, pages })
}

fn open<'a>(bytes: &'a [u8], object: &'static str) -> Result<Cursor<'a>, LayoutError> {
    let error = |expected| LayoutError::Object { object, expected };
    if bytes.len() > MAX_LAYOUT_OBJECT_BYTES {
        return Err(error("3 MiB or less"));
    }
    std::str::from_utf8(bytes).map(Cursor::new).map_err(|_| error("UTF-8"))
}

fn take_format(cursor: &mut Cursor<'_>, object: &'static str, format: &str) -> Result<(), LayoutError> {
    let found = cursor.string().map_err(|expected| LayoutError::Object { object, expected })?;
    if found == format { Ok(()) } else { Err(LayoutError::Format(clip(&found))) }
}

fn bounded(bytes: Vec<u8>, object: &'static str) -> Result<Block, LayoutError> {
    if bytes.len() > MAX_LAYOUT_OBJECT_BYTES {
        return Err(LayoutError::Object { object, expected: "3 MiB or less" });
    }
    Ok(Block::new(bytes))
}
