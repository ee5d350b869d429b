//! Roots and index objects: the lists above the pages.

use super::{Block, ContentError, MAX_INDEX_PAGES, MAX_INDEXES};
use crate::Hash;
use crate::lines::{Cursor, Expected, put_hashes};
use crate::text::clip;

/// The `format` of a root.
const ROOT_FORMAT: &str = "bib-content/1";

/// The `format` of an index object.
const INDEX_FORMAT: &str = "bib-index/1";

/// The top of a content. Its hash is the `content` of a version.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ContentRoot {
    /// One level: the pages, up to [`MAX_INDEX_PAGES`]; none for an empty folder.
    Pages(Vec<Hash>),
    /// Two levels: the index objects, 2 to [`MAX_INDEXES`].
    Indexes(Vec<Hash>),
}

impl ContentRoot {
    /// The root's bytes and hash.
    #[must_use]
    pub fn to_block(&self) -> Block {
        let (levels, hashes) = match self {
            Self::Pages(hashes) => ("1", hashes),
            Self::Indexes(hashes) => ("2", hashes),
        };
        let mut bytes = Vec::with_capacity(64 + hashes.len() * 67);
        bytes.extend_from_slice(b"{\"format\":\"bib-content/1\",\"levels\":");
        bytes.extend_from_slice(levels.as_bytes());
        bytes.extend_from_slice(b",\"pages\":");
        put_hashes(hashes, &mut bytes);
        bytes.push(b'}');
        Block::new(bytes)
    }

    /// Reads a root.
    ///
    /// # Errors
    /// When the bytes are not the one spelling of a root, or list too much.
    pub fn parse(bytes: &[u8]) -> Result<Self, ContentError> {
        let mut cursor = open(bytes, "content root", ROOT_FORMAT)?;
        let error = |expected| ContentError::Object { object: "content root", expected };
        cursor.expect(",\"levels\":").map_err(error)?;
        let levels = cursor.integer().map_err(error)?;
        match levels {
            1 => Ok(Self::Pages(hashes(cursor, MAX_INDEX_PAGES).map_err(error)?)),
            2 => {
                let indexes = hashes(cursor, MAX_INDEXES).map_err(error)?;
                // One index object holds at most as many pages as a root of one level, which it then must be.
                if indexes.len() < 2 { Err(error("two index objects or more")) } else { Ok(Self::Indexes(indexes)) }
            }
            _ => Err(error("1 or 2 levels")),
        }
    }
}

/// A run of pages in a content of two levels.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct IndexObject {
    /// The pages, 1 to [`MAX_INDEX_PAGES`], in path order.
    pub pages: Vec<Hash>,
}

impl IndexObject {
    /// The object's bytes and hash.
    #[must_use]
    pub fn to_block(&self) -> Block {
        let mut bytes = Vec::with_capacity(64 + self.pages.len() * 67);
        bytes.extend_from_slice(b"{\"format\":\"bib-index/1\",\"pages\":");
        put_hashes(&self.pages, &mut bytes);
        bytes.push(b'}');
        Block::new(bytes)
    }

    /// Reads an index object.
    ///
    /// # Errors
    /// When the bytes are not the one spelling of an index object, or list nothing or too much.
    pub fn parse(bytes: &[u8]) -> Result<Self, ContentError> {
        let cursor = open(bytes, "index object", INDEX_FORMAT)?;
        let error = |expected| ContentError::Object { object: "index object", expected };
        let pages = hashes(cursor, MAX_INDEX_PAGES).map_err(error)?;
        if pages.is_empty() { Err(error("a page or more")) } else { Ok(Self { pages }) }
    }
}

/// Reads `{"format":FORMAT`.
fn open<'a>(bytes: &'a [u8], object: &'static str, format: &str) -> Result<Cursor<'a>, ContentError> {
    let error = |expected| ContentError::Object { object, expected };
    let text = std::str::from_utf8(bytes).map_err(|_| error("UTF-8"))?;
    let mut cursor = Cursor::new(text);
    cursor.expect("{\"format\":").map_err(error)?;
    let found = cursor.string().map_err(error)?;
    if found == format { Ok(cursor) } else { Err(ContentError::Format(clip(&found))) }
}

/// Reads `,"pages":[..]}` and the end.
fn hashes(mut cursor: Cursor<'_>, limit: usize) -> Result<Vec<Hash>, Expected> {
    cursor.expect(",\"pages\":")?;
    let pages = cursor.array(limit, Cursor::hash)?;
    cursor.expect("}")?;
    cursor.end()?;
    Ok(pages)
}
