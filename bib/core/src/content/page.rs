//! A page that somebody else wrote, read with suspicion.

use super::order::PathOrder;
use super::{ContentError, Entry, MAX_PAGE_BYTES, MAX_PAGE_ENTRIES, PAGE_CUT_BITS};
use crate::Hash;

/// A page and its entries. Whether it ends where it must is known only with the page after it: [`super::TreeChecker`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Page {
    /// SHA-256 of the page's bytes.
    pub hash: Hash,
    /// Its entries, at least one, in path order.
    pub entries: Vec<Entry>,
    /// How many bytes it has.
    pub size_bytes: usize,
    /// How many bytes its first line has, with `\n`: what had no room in the page before.
    pub first_line_bytes: usize,
    /// SHA-256 of its last path, which decides where pages and index objects end.
    pub last_path_hash: Hash,
}

impl Page {
    /// Reads a page.
    ///
    /// # Errors
    /// When it is empty or past a limit, not UTF-8, does not end in `\n`, holds a line that is not the one spelling of
    /// an allowed entry, is out of order, or goes on after an entry that ends it.
    pub fn parse(bytes: &[u8]) -> Result<Self, ContentError> {
        if bytes.len() > MAX_PAGE_BYTES {
            return Err(ContentError::Page("more than 1 MiB"));
        }
        let text = std::str::from_utf8(bytes).map_err(|_| ContentError::Page("not UTF-8"))?;
        let body = text.strip_suffix('\n').ok_or(ContentError::Page("no line feed at the end"))?;
        let mut entries = Vec::new();
        let mut order = PathOrder::default();
        let mut last_path_hash = None;
        for (i, line) in body.split('\n').enumerate() {
            if i == MAX_PAGE_ENTRIES {
                return Err(ContentError::Page("more than 4,096 entries"));
            }
            if last_path_hash.is_some_and(|hash: Hash| hash.has_leading_zero_bits(PAGE_CUT_BITS)) {
                return Err(ContentError::Page("it goes on after an entry whose path ends a page"));
            }
            let entry = Entry::parse_line(line, i + 1)?;
            order.next(entry.path().as_str())?;
            last_path_hash = Some(Hash::of(entry.path().as_str().as_bytes()));
            entries.push(entry);
        }
        Ok(Self {
            hash: Hash::of(bytes),
            entries,
            size_bytes: bytes.len(),
            first_line_bytes: body.find('\n').unwrap_or(body.len()) + 1,
            last_path_hash: last_path_hash.ok_or(ContentError::Page("no entries"))?,
        })
    }
}
