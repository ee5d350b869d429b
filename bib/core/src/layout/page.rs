//! Lines and pages of a layout.

use super::{Extent, LayoutError, MAX_LAYOUT_PAGE_BYTES, size_of_extents};
use crate::Hash;
use crate::content::MAX_FILE_BYTES;
use crate::lines::{Cursor, Expected, put_hash, put_integer};

/// A line: a file's extents, or a run of them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LayoutLine {
    /// SHA-256 of the whole file.
    pub sha256: Hash,
    /// Where in the file the first extent begins: 0, but for a line that continues one on the page before.
    pub from: u64,
    /// The extents.
    pub extents: Vec<Extent>,
}

/// The most bytes of a line besides its extents: everything around them with the longest `from`.
const FRAME_BYTES: usize = 120;

impl LayoutLine {
    /// Appends a line that has at most `room` bytes: of `extents` as many as fit, but at least one. Gives how many
    /// went in; `None`, with nothing written, when not even that fits.
    pub(super) fn write(sha256: &Hash, from: u64, extents: &[Extent], room: usize, out: &mut Vec<u8>) -> Option<usize> {
        let start = out.len();
        let mut tail = Vec::with_capacity(FRAME_BYTES);
        tail.push(b']');
        if from > 0 {
            tail.extend_from_slice(b",\"from\":");
            put_integer(from, &mut tail);
        }
        tail.extend_from_slice(b",\"sha256\":");
        put_hash(sha256, &mut tail);
        tail.extend_from_slice(b"}\n");
        out.extend_from_slice(b"{\"chunks\":[");
        let mut written = 0;
        for extent in extents {
            let before = out.len();
            if written > 0 {
                out.push(b',');
            }
            out.push(b'[');
            put_hash(&extent.chunk, out);
            out.push(b',');
            put_integer(extent.offset.into(), out);
            out.push(b',');
            put_integer(extent.length.into(), out);
            out.push(b']');
            if out.len() - start + tail.len() > room {
                out.truncate(before);
                break;
            }
            written += 1;
        }
        if (written == 0 && !extents.is_empty()) || out.len() - start + tail.len() > room {
            out.truncate(start);
            return None;
        }
        out.extend_from_slice(&tail);
        Some(written)
    }

    fn parse(text: &str) -> Result<Self, Expected> {
        let mut cursor = Cursor::new(text);
        cursor.expect("{\"chunks\":")?;
        let extents = cursor.array(usize::MAX, parse_extent)?;
        let from = match cursor.take(",\"from\":").then(|| cursor.integer()).transpose()? {
            Some(0) => return Err("`from` left out where it is 0"),
            from => from.unwrap_or(0),
        };
        cursor.expect(",\"sha256\":")?;
        let sha256 = cursor.hash()?;
        cursor.expect("}")?;
        cursor.end()?;
        if from > 0 && extents.is_empty() {
            return Err("an extent in a line that continues a file");
        }
        if from.saturating_add(size_of_extents(&extents)) > MAX_FILE_BYTES {
            return Err("a file below 2^53 bytes");
        }
        Ok(Self { sha256, from, extents })
    }
}

fn parse_extent(cursor: &mut Cursor<'_>) -> Result<Extent, Expected> {
    cursor.expect("[")?;
    let chunk = cursor.hash()?;
    cursor.expect(",")?;
    let offset = cursor.integer_u32()?;
    cursor.expect(",")?;
    let length = cursor.integer_u32()?;
    cursor.expect("]")?;
    let extent = Extent { chunk, offset, length };
    if extent.is_within_bounds() { Ok(extent) } else { Err("an extent of a byte or more within 4 MiB") }
}

/// A layout page that was read. Whether it fits its content page is a [`super::LayoutWalk`]'s to say.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LayoutPage {
    /// SHA-256 of the page's bytes.
    pub hash: Hash,
    /// Its lines, at least one.
    pub lines: Vec<LayoutLine>,
}

impl LayoutPage {
    /// Reads a layout page.
    ///
    /// # Errors
    /// When it is empty or past 1 MiB, not UTF-8, does not end in `\n`, holds a line that is not in its one spelling
    /// or out of bounds, or continues a file anywhere but at its beginning.
    pub fn parse(bytes: &[u8]) -> Result<Self, LayoutError> {
        if bytes.len() > MAX_LAYOUT_PAGE_BYTES {
            return Err(LayoutError::Page("more than 1 MiB"));
        }
        let text = std::str::from_utf8(bytes).map_err(|_| LayoutError::Page("not UTF-8"))?;
        let body = text.strip_suffix('\n').ok_or(LayoutError::Page("no line feed at the end"))?;
        let mut lines = Vec::new();
        for (i, text) in body.split('\n').enumerate() {
            let line = LayoutLine::parse(text).map_err(|expected| LayoutError::Line { line: i + 1, expected })?;
            if i > 0 && line.from > 0 {
                return Err(LayoutError::Line { line: i + 1, expected: "`from` in the first line alone" });
            }
            lines.push(line);
        }
        Ok(Self { hash: Hash::of(bytes), lines })
    }
}
