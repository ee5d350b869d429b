//! Paths and links inside a dataset: which there are, and which a file system could confuse.
//!
//! A path is a name, not a place: nothing here touches a file system. A downloader still opens every segment
//! relative to the directory before it.

use std::collections::HashMap;
use std::fmt;
use std::str::FromStr;

use caseless::Caseless as _;
use unicode_normalization::UnicodeNormalization as _;

use crate::Hash;
use crate::text::clip;

/// The longest path or link target, in bytes.
pub const MAX_PATH_BYTES: usize = 4096;

/// The longest segment of a path, in bytes.
pub const MAX_SEGMENT_BYTES: usize = 255;

/// Why a text is not a path inside a dataset, or not a link's target.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PathError {
    /// No characters at all.
    #[error("an empty path")]
    Empty,
    /// More than [`MAX_PATH_BYTES`].
    #[error("`{path}` has {bytes} bytes; a path has at most {MAX_PATH_BYTES}")]
    TooLong {
        /// The path, clipped.
        path: String,
        /// Its length.
        bytes: usize,
    },
    /// A segment of more than [`MAX_SEGMENT_BYTES`].
    #[error("a segment of `{path}` has {bytes} bytes; a segment has at most {MAX_SEGMENT_BYTES}")]
    SegmentTooLong {
        /// The path, clipped.
        path: String,
        /// The segment's length.
        bytes: usize,
    },
    /// Begins with `/`.
    #[error("`{0}` begins with `/`; paths and link targets are relative")]
    Absolute(String),
    /// `//`, or `/` at the end of a path.
    #[error("`{0}` has an empty segment")]
    EmptySegment(String),
    /// `.` or `..` as a segment of a path.
    #[error("`{0}` has `.` or `..` as a segment")]
    Dots(String),
    /// NUL, another control character of ASCII, or one of U+0080 to U+009F.
    #[error("`{0}` holds a control character")]
    Control(String),
    /// Not UTF-8.
    #[error("`{0}` is not UTF-8")]
    NotUtf8(String),
    /// A target with `..` after a name: through another link it could lead out of the tree.
    #[error("the link target `{0}` has `..` after a name; `..` may only stand at the beginning")]
    LateParent(String),
    /// A target above the dataset's root.
    #[error("the link target `{0}` leads out of the dataset")]
    Outside(String),
}

/// The path of an entry inside a dataset: 1 to 4,096 bytes of UTF-8, segments of 1 to 255 bytes between `/`, none of
/// them `.` or `..`, no control characters. Ordered by bytes.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct EntryPath(Box<str>);

impl EntryPath {
    /// Takes a path.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn new(path: impl Into<Box<str>>) -> Result<Self, PathError> {
        let path = path.into();
        check_path(&path)?;
        Ok(Self(path))
    }

    /// Takes a path as a file system gives it.
    ///
    /// # Errors
    /// What is wrong with it; above all, that it is not UTF-8.
    pub fn from_bytes(path: &[u8]) -> Result<Self, PathError> {
        match std::str::from_utf8(path) {
            Ok(text) => Self::new(text),
            Err(_) => Err(PathError::NotUtf8(clip(&String::from_utf8_lossy(path)))),
        }
    }

    /// The text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The segments, from the root.
    pub fn segments(&self) -> impl Iterator<Item = &str> {
        self.0.split('/')
    }

    /// How many directories lie above the entry: 0 at the root.
    #[must_use]
    pub fn depth(&self) -> usize {
        self.0.bytes().filter(|b| *b == b'/').count()
    }

    /// The last segment.
    #[must_use]
    pub fn file_name(&self) -> &str {
        self.0.rsplit_once('/').map_or(&self.0, |(_, name)| name)
    }

    /// The directory that holds the entry; `None` at the root.
    #[must_use]
    pub fn parent(&self) -> Option<&str> {
        self.0.rsplit_once('/').map(|(parent, _)| parent)
    }
}

/// Where a link points: relative, inside the tree. `..` may only stand before the first name, since after a name that
/// is itself a link it would lead elsewhere than it reads; `.` may stand anywhere, and one `/` at the end.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct LinkTarget(Box<str>);

impl LinkTarget {
    /// Takes the target of the link at `link`.
    ///
    /// # Errors
    /// What is wrong with it; above all, that it leads out of the dataset.
    pub fn new(target: impl Into<Box<str>>, link: &EntryPath) -> Result<Self, PathError> {
        let target = target.into();
        check_text(&target)?;
        let mut ups = 0;
        let mut named = false;
        for segment in target.strip_suffix('/').unwrap_or(&target).split('/') {
            match segment {
                "" => return Err(PathError::EmptySegment(clip(&target))),
                "." => {}
                ".." if named => return Err(PathError::LateParent(clip(&target))),
                ".." => ups += 1,
                name => {
                    check_segment_length(&target, name)?;
                    named = true;
                }
            }
        }
        if ups > link.depth() {
            return Err(PathError::Outside(clip(&target)));
        }
        Ok(Self(target))
    }

    /// The text, as the link holds it.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

fn check_path(path: &str) -> Result<(), PathError> {
    check_text(path)?;
    for segment in path.split('/') {
        match segment {
            "" => return Err(PathError::EmptySegment(clip(path))),
            "." | ".." => return Err(PathError::Dots(clip(path))),
            name => check_segment_length(path, name)?,
        }
    }
    Ok(())
}

fn check_text(path: &str) -> Result<(), PathError> {
    if path.is_empty() {
        return Err(PathError::Empty);
    }
    if path.len() > MAX_PATH_BYTES {
        return Err(PathError::TooLong { path: clip(path), bytes: path.len() });
    }
    if path.starts_with('/') {
        return Err(PathError::Absolute(clip(path)));
    }
    if path.chars().any(char::is_control) {
        return Err(PathError::Control(clip(path)));
    }
    Ok(())
}

fn check_segment_length(path: &str, segment: &str) -> Result<(), PathError> {
    if segment.len() > MAX_SEGMENT_BYTES {
        return Err(PathError::SegmentTooLong { path: clip(path), bytes: segment.len() });
    }
    Ok(())
}

/// Two spellings that some file system takes for one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Twins<'a> {
    /// The one that came first.
    pub first: &'a str,
    /// The one that came later.
    pub second: &'a str,
}

/// The entries, and the directories above them, whose paths are equal once normalised (NFC) and case-folded (Unicode
/// full case folding): a file system that normalises or ignores case cannot hold both. Each later spelling is named
/// once, with the first.
///
/// Memory: about 50 bytes for each path and each directory.
pub fn twins<'a>(paths: impl IntoIterator<Item = &'a str>) -> Vec<Twins<'a>> {
    let mut seen: HashMap<[u8; 16], &'a str> = HashMap::new();
    let mut found: HashMap<&'a str, ()> = HashMap::new();
    let mut pairs = Vec::new();
    let mut previous = "";
    for path in paths {
        let ends = path.match_indices('/').map(|(end, _)| end).chain([path.len()]);
        for prefix in ends.map(|end| &path[..end]) {
            // In path order almost every directory was seen with the entry before.
            if previous.strip_prefix(prefix).is_some_and(|rest| rest.starts_with('/')) {
                continue;
            }
            let first = *seen.entry(folded_key(prefix)).or_insert(prefix);
            if first != prefix && found.insert(prefix, ()).is_none() {
                pairs.push(Twins { first, second: prefix });
            }
        }
        previous = path;
    }
    pairs
}

/// Half a SHA-256 of the folded path: equal only for twins, even when somebody looks for collisions.
fn folded_key(path: &str) -> [u8; 16] {
    let folded: String = if path.is_ascii() {
        path.to_ascii_lowercase()
    } else {
        // Folding can undo normalisation, and normalisation can bring forth what folds: Unicode 3.13, D145.
        path.nfd().default_case_fold().nfc().collect()
    };
    let mut key = [0; 16];
    key.copy_from_slice(&Hash::of(folded.as_bytes()).as_bytes()[..16]);
    key
}

impl FromStr for EntryPath {
    type Err = PathError;

    fn from_str(path: &str) -> Result<Self, PathError> {
        Self::new(path)
    }
}

macro_rules! shows_its_text {
    ($($name:ident),+) => {$(
        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "{}({:?})", stringify!($name), self.0)
            }
        }

        impl AsRef<str> for $name {
            fn as_ref(&self) -> &str {
                &self.0
            }
        }
    )+};
}

shows_its_text!(EntryPath, LinkTarget);

#[cfg(test)]
mod tests {
    use super::*;

    fn path(text: &str) -> EntryPath {
        EntryPath::new(text).unwrap()
    }

    #[test]
    fn takes_names_as_they_are_found() {
        for text in ["a", "a/b/c", "...", ".hidden", "a b", "-x", "ä/数", "a:b@c", "quote'\"\\", "CON"] {
            assert_eq!(path(text).as_str(), text);
        }
        assert!(EntryPath::new("x".repeat(255)).is_ok());
        assert!(EntryPath::new(format!("{}y", "x/".repeat(2047))).is_ok());
        assert_eq!((path("a/b/c").depth(), path("a/b/c").file_name(), path("a/b").parent()), (2, "c", Some("a")));
    }

    #[test]
    fn refuses_what_is_no_path() {
        for text in ["/a", "/"] {
            assert!(matches!(EntryPath::new(text), Err(PathError::Absolute(_))), "{text}");
        }
        for text in ["a//b", "a/"] {
            assert!(matches!(EntryPath::new(text), Err(PathError::EmptySegment(_))), "{text}");
        }
        for text in [".", "..", "a/..", "../a", "a/./b"] {
            assert!(matches!(EntryPath::new(text), Err(PathError::Dots(_))), "{text}");
        }
        for text in ["a\0", "a\nb", "\u{1b}", "\u{7f}", "x\u{9b}y"] {
            assert!(matches!(EntryPath::new(text), Err(PathError::Control(_))), "{text:?}");
        }
        assert_eq!(EntryPath::new(""), Err(PathError::Empty));
        assert!(matches!(EntryPath::new("x".repeat(256)), Err(PathError::SegmentTooLong { bytes: 256, .. })));
        assert!(matches!(EntryPath::new("x/".repeat(2048) + "y"), Err(PathError::TooLong { bytes: 4097, .. })));
        assert!(matches!(EntryPath::from_bytes(b"a\xff"), Err(PathError::NotUtf8(_))));
    }

    #[test]
    fn links_stay_inside_the_tree() {
        let link = path("d/e/link");
        for target in ["x", "../x", "../../x", "..", "../..", ".", "./x", "../f/", "x/./y", "....", "a b"] {
            assert_eq!(LinkTarget::new(target, &link).unwrap().as_str(), target);
        }
        for target in ["../../../x", "../../..", ".././../../x"] {
            assert!(matches!(LinkTarget::new(target, &link), Err(PathError::Outside(_))), "{target}");
        }
        assert!(matches!(LinkTarget::new("x/../y", &link), Err(PathError::LateParent(_))));
        assert!(matches!(LinkTarget::new("/etc/passwd", &link), Err(PathError::Absolute(_))));
        assert!(matches!(LinkTarget::new("x//y", &link), Err(PathError::EmptySegment(_))));
        assert!(matches!(LinkTarget::new("x\0", &link), Err(PathError::Control(_))));
        assert_eq!(LinkTarget::new("", &link), Err(PathError::Empty));
        assert!(matches!(LinkTarget::new("../x", &path("top")), Err(PathError::Outside(_))));
    }

    #[test]
    fn finds_twins_by_case_normalisation_and_directory() {
        let pair = |first, second| Twins { first, second };
        assert_eq!(twins(["README", "Readme", "readme.txt"]), [pair("README", "Readme")]);
        assert_eq!(twins(["caf\u{e9}", "cafe\u{301}"]), [pair("caf\u{e9}", "cafe\u{301}")]);
        assert_eq!(twins(["STRASSE", "straße"]), [pair("STRASSE", "straße")]);
        assert_eq!(twins(["A/x", "A/y", "a/z", "a/zz"]), [pair("A", "a")]);
        assert_eq!(twins(["A/x", "a/x"]), [pair("A", "a"), pair("A/x", "a/x")]);
        assert_eq!(twins(["a/x", "b/x", "a-b"]), []);
    }
}
