//! Content: what a version contains, as a tree of names and hashes, and nothing about where, when or by whom.
//!
//! Entries in path order are cut into pages by their own names, so that equal folders have equal pages and an edit
//! changes the pages it touches. A root lists the pages; past 4,096 pages it lists index objects, which do. The hash
//! of the root is the `content` of a version. See `docs/formats.md`, "Content".
//!
//! Writers use [`ContentBuilder`]. Readers of what strangers wrote use [`Page::parse`] for each page and a
//! [`TreeChecker`] across them: together they take exactly the trees that a `ContentBuilder` makes.

mod build;
mod check;
mod entry;
mod order;
mod page;
mod root;

use std::collections::HashSet;

use crate::Hash;
use crate::path::PathError;

pub use build::{Content, ContentBuilder};
pub use check::{Summary, TreeChecker, Wanted};
pub use entry::Entry;
pub use page::Page;
pub use root::{ContentRoot, IndexObject};

/// The most bytes in a page.
pub const MAX_PAGE_BYTES: usize = 1024 * 1024;

/// The most entries in a page.
pub const MAX_PAGE_ENTRIES: usize = 4096;

/// A page ends after an entry the SHA-256 of whose path has so many leading zero bits.
pub const PAGE_CUT_BITS: u32 = 10;

/// The most pages in an index object, and in a root of one level.
pub const MAX_INDEX_PAGES: usize = 4096;

/// An index object ends after a page the SHA-256 of whose last path has so many leading zero bits.
pub const INDEX_CUT_BITS: u32 = 18;

/// The most index objects in a root: about a thousand million entries.
pub const MAX_INDEXES: usize = 4096;

/// The sizes of a content's files stay below 2^63 bytes in sum, and each below 2^53.
pub const MAX_TOTAL_BYTES: u64 = 1 << 63;

/// The largest file, in bytes: what canonical JSON can say.
pub const MAX_FILE_BYTES: u64 = (1 << 53) - 1;

/// Bytes and their SHA-256: a page, an index object or a root, as it is stored and sent.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Block {
    /// SHA-256 of the bytes.
    pub hash: Hash,
    /// The bytes.
    pub bytes: Vec<u8>,
}

impl Block {
    /// A block of these bytes.
    #[must_use]
    pub fn new(bytes: Vec<u8>) -> Self {
        Self { hash: Hash::of(&bytes), bytes }
    }
}

/// Why entries make no content, or bytes are not a part of one.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ContentError {
    /// Entries out of order, or one twice.
    #[error("`{path}` comes after `{previous}`; entries are in strictly ascending order of their paths' bytes")]
    Order {
        /// The entry before.
        previous: String,
        /// The entry.
        path: String,
    },
    /// An entry below something that is an entry itself.
    #[error("`{parent}` is an entry and also the directory of `{path}`")]
    Parent {
        /// The entry that would be a directory.
        parent: String,
        /// The entry below it.
        path: String,
    },
    /// A file too large to say.
    #[error("`{path}` has {size} bytes; a file has at most {MAX_FILE_BYTES}")]
    FileTooLarge {
        /// The file.
        path: String,
        /// Its size in bytes.
        size: u64,
    },
    /// All files together are too large.
    #[error("the files have 2^63 bytes or more in sum")]
    TotalTooLarge,
    /// More entries than a root can list.
    #[error("more than {MAX_INDEXES} index objects; split the dataset")]
    TooManyIndexes,
    /// A page out of its bounds.
    #[error("not a page: {0}")]
    Page(&'static str),
    /// A line of a page that is not in the one spelling of an entry.
    #[error("line {line} of the page: {expected} expected")]
    Line {
        /// Its number, from 1.
        line: usize,
        /// What was expected.
        expected: &'static str,
    },
    /// A line of a page with a path or target that is not allowed.
    #[error("line {line} of the page: {error}")]
    Path {
        /// Its number, from 1.
        line: usize,
        /// What is wrong.
        error: PathError,
    },
    /// Bytes that are not a root or index object in canonical form.
    #[error("the {object}: {expected} expected")]
    Object {
        /// What it should be.
        object: &'static str,
        /// What was expected.
        expected: &'static str,
    },
    /// Another format or major version.
    #[error("the unknown format `{0}`; a newer version of bib may read it")]
    Format(String),
    /// Another block than the tree asks for.
    #[error("the tree asks for {wanted}, not for {found}")]
    Unexpected {
        /// What is asked for.
        wanted: Wanted,
        /// What was given.
        found: Wanted,
    },
    /// A page or index object that ends where the rule does not end it, or goes on where it does.
    #[error("{block} {hash} {why}")]
    Cut {
        /// `page` or `index object`.
        block: &'static str,
        /// Its hash.
        hash: Hash,
        /// What is wrong.
        why: &'static str,
    },
}

/// What two lists of pages do not share.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct PageDiff {
    /// Pages of the old content alone, in its order.
    pub removed: Vec<Hash>,
    /// Pages of the new content alone, in its order.
    pub added: Vec<Hash>,
}

/// Compares the pages of two contents, in any order. Only these pages need to be read to list what changed.
#[must_use]
pub fn diff(old: &[Hash], new: &[Hash]) -> PageDiff {
    let only = |these: &[Hash], those: &[Hash]| {
        let those: HashSet<&Hash> = those.iter().collect();
        these.iter().filter(|page| !those.contains(page)).copied().collect()
    };
    PageDiff { removed: only(old, new), added: only(new, old) }
}
