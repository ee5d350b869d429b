//! Layout: in which chunks a content's bytes lie. Parallel to the content's pages, never part of a version.
//!
//! A node may lay the same content out anew at any time, so nothing here is signed by a person and nothing may depend
//! on a particular layout. It says where bytes should be; whether they are is shown by hashing them. See
//! `docs/formats.md`, "Layout".
//!
//! Writers use [`LayoutBuilder`]. Readers of what strangers wrote use [`LayoutPage::parse`], [`LayoutRoot::parse`] and
//! a [`LayoutWalk`], which holds layout pages against the content page they belong to.

mod build;
mod page;
mod root;
mod walk;

use crate::chunk::MAX_CHUNK_BYTES;
use crate::content::MAX_FILE_BYTES;
use crate::lines::Expected;
use crate::{Hash, content};

pub use build::{Layout, LayoutBuilder};
pub use page::{LayoutLine, LayoutPage};
pub use root::{LayoutIndex, LayoutRoot, PageLayout};
pub use walk::{LayoutWalk, join};

/// The most bytes in a layout page.
pub const MAX_LAYOUT_PAGE_BYTES: usize = content::MAX_PAGE_BYTES;

/// The most bytes in a layout root or layout index object: they travel in one message, with room for its envelope.
pub const MAX_LAYOUT_OBJECT_BYTES: usize = 3 * 1024 * 1024;

/// A run of bytes in a chunk or pack.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Extent {
    /// The chunk.
    pub chunk: Hash,
    /// Where in it the run begins, in bytes.
    pub offset: u32,
    /// How many bytes it has, at least one. Offset and length stay within [`MAX_CHUNK_BYTES`].
    pub length: u32,
}

impl Extent {
    /// Whether the run has bytes and stays within the largest chunk.
    #[must_use]
    pub const fn is_within_bounds(&self) -> bool {
        self.length > 0 && self.offset < MAX_CHUNK_BYTES && self.length <= MAX_CHUNK_BYTES - self.offset
    }
}

/// Where one regular file's bytes lie.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FileLayout {
    /// SHA-256 of the file.
    pub sha256: Hash,
    /// Its bytes, in order; none for an empty file.
    pub extents: Vec<Extent>,
}

impl FileLayout {
    /// The file's size by its extents, in bytes.
    #[must_use]
    pub fn size(&self) -> u64 {
        size_of_extents(&self.extents)
    }
}

pub(crate) fn size_of_extents(extents: &[Extent]) -> u64 {
    extents.iter().map(|extent| u64::from(extent.length)).sum()
}

/// Why layouts cannot be written, or bytes are not a part of a layout.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum LayoutError {
    /// An extent without bytes or past the end of the largest chunk.
    #[error("{length} bytes at offset {offset} of a chunk; an extent has a byte or more, within {MAX_CHUNK_BYTES}")]
    Extent {
        /// Where it begins.
        offset: u32,
        /// Its length.
        length: u32,
    },
    /// A file larger than a content can say.
    #[error("the extents of file {0} have more than {MAX_FILE_BYTES} bytes")]
    FileTooLarge(Hash),
    /// A page out of its bounds.
    #[error("not a layout page: {0}")]
    Page(&'static str),
    /// A line that is not in its one spelling.
    #[error("line {line} of the layout page: {expected} expected")]
    Line {
        /// Its number, from 1.
        line: usize,
        /// What was expected.
        expected: Expected,
    },
    /// A root or index object that is not in its one spelling, or too large.
    #[error("the {object}: {expected} expected")]
    Object {
        /// What it should be.
        object: &'static str,
        /// What was expected.
        expected: Expected,
    },
    /// Another format or major version.
    #[error("the unknown format `{0}`; a newer version of bib may read it")]
    Format(String),
    /// Other chunking parameters than these.
    #[error("the unknown chunking `{0}`; a newer version of bib may read it")]
    Chunking(String),
    /// A layout that does not list the content's pages, in the content's order.
    #[error("the layout is not of this content: {0}")]
    NotParallel(&'static str),
    /// A layout page that does not fit its content page.
    #[error("the layout of file {file}: {why}")]
    File {
        /// SHA-256 of the file as the layout or the content names it.
        file: Hash,
        /// What is wrong.
        why: &'static str,
    },
}
