//! One entry of a content, and its line.

use super::{ContentError, MAX_FILE_BYTES};
use crate::Hash;
use crate::lines::{Cursor, put_hash, put_integer, put_string};
use crate::path::{EntryPath, LinkTarget};

/// What lies at one path.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Entry {
    /// A regular file.
    File {
        /// Where it lies.
        path: EntryPath,
        /// Whether its owner may execute it.
        exec: bool,
        /// SHA-256 of its bytes.
        sha256: Hash,
        /// Its size in bytes, at most [`MAX_FILE_BYTES`].
        size: u64,
    },
    /// A directory with nothing in it. Others are not entries: they follow from the paths.
    Dir {
        /// Where it lies.
        path: EntryPath,
    },
    /// A symbolic link.
    Link {
        /// Where it lies.
        path: EntryPath,
        /// Where it points.
        target: LinkTarget,
    },
}

impl Entry {
    /// Where the entry lies.
    #[must_use]
    pub const fn path(&self) -> &EntryPath {
        match self {
            Self::File { path, .. } | Self::Dir { path } | Self::Link { path, .. } => path,
        }
    }

    /// The word for its kind in a line: `file`, `exec`, `dir` or `link`.
    #[must_use]
    pub const fn kind(&self) -> &'static str {
        match self {
            Self::File { exec: false, .. } => "file",
            Self::File { exec: true, .. } => "exec",
            Self::Dir { .. } => "dir",
            Self::Link { .. } => "link",
        }
    }

    /// Bytes of the file; 0 for directories and links.
    #[must_use]
    pub const fn size(&self) -> u64 {
        match self {
            Self::File { size, .. } => *size,
            Self::Dir { .. } | Self::Link { .. } => 0,
        }
    }

    /// Appends the entry's line, canonical JSON and `\n`.
    ///
    /// # Errors
    /// When the file is larger than [`MAX_FILE_BYTES`].
    pub fn write_line(&self, out: &mut Vec<u8>) -> Result<(), ContentError> {
        if self.size() > MAX_FILE_BYTES {
            return Err(ContentError::FileTooLarge {
                path: crate::text::clip(self.path().as_str()),
                size: self.size(),
            });
        }
        out.extend_from_slice(b"{\"kind\":\"");
        out.extend_from_slice(self.kind().as_bytes());
        out.extend_from_slice(b"\",\"path\":");
        put_string(self.path().as_str(), out);
        match self {
            Self::File { sha256, size, .. } => {
                out.extend_from_slice(b",\"sha256\":");
                put_hash(sha256, out);
                out.extend_from_slice(b",\"size\":");
                put_integer(*size, out);
            }
            Self::Dir { .. } => {}
            Self::Link { target, .. } => {
                out.extend_from_slice(b",\"target\":");
                put_string(target.as_str(), out);
            }
        }
        out.extend_from_slice(b"}\n");
        Ok(())
    }

    /// Reads a line without its `\n`; `line` is its number, for the error.
    ///
    /// # Errors
    /// When it is not the one spelling of an allowed entry.
    pub fn parse_line(text: &str, line: usize) -> Result<Self, ContentError> {
        let spelling = |expected| ContentError::Line { line, expected };
        let naming = |error| ContentError::Path { line, error };
        let mut cursor = Cursor::new(text);
        cursor.expect("{\"kind\":").map_err(spelling)?;
        let kind = cursor.string().map_err(spelling)?;
        cursor.expect(",\"path\":").map_err(spelling)?;
        let path = cursor.string().map_err(spelling)?;
        let path = EntryPath::new(path).map_err(naming)?;
        let entry = match &*kind {
            "file" | "exec" => {
                cursor.expect(",\"sha256\":").map_err(spelling)?;
                let sha256 = cursor.hash().map_err(spelling)?;
                cursor.expect(",\"size\":").map_err(spelling)?;
                let size = cursor.integer().map_err(spelling)?;
                Self::File { path, exec: kind == "exec", sha256, size }
            }
            "dir" => Self::Dir { path },
            "link" => {
                cursor.expect(",\"target\":").map_err(spelling)?;
                let target = cursor.string().map_err(spelling)?;
                let target = LinkTarget::new(target, &path).map_err(naming)?;
                Self::Link { path, target }
            }
            _ => return Err(spelling("the kind `file`, `exec`, `dir` or `link`")),
        };
        cursor.expect("}").and_then(|()| cursor.end()).map_err(spelling)?;
        Ok(entry)
    }
}
