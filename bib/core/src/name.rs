//! Names of topics, datasets, tags and versions, and the one parser of references to them.
//!
//! A name belongs to its owner and may be freed and taken again; ids never are. Nothing here looks a name up: whether
//! `climate/era5` is a topic or a dataset, and whose, is the catalog's to say.

mod reference;

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::Hash;
use crate::text::clip;

pub use reference::{Owner, Reference, ReferenceError};

/// The longest segment, in bytes.
pub const MAX_SEGMENT_BYTES: usize = 128;

/// The most segments in the full name of a dataset; a topic has one less.
pub const MAX_SEGMENTS: usize = 8;

/// The longest tag, in bytes.
pub const MAX_TAG_BYTES: usize = 64;

/// The fewest hex digits that select a version.
pub const MIN_PREFIX_DIGITS: usize = 8;

/// Why a text is not a name.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NameError {
    /// No characters at all.
    #[error("the name is missing; it is segments between `/`, such as topic/dataset")]
    Missing,
    /// A segment without characters: `/` at an end or twice.
    #[error("`{0}` has an empty segment; segments stand between single `/`")]
    Empty(String),
    /// A segment with a character that is not allowed, or not at its beginning.
    #[error(
        "`{segment}` holds {found}; a segment is lower-case letters, digits, `.`, `_` and `-`, beginning with a letter or digit"
    )]
    Character {
        /// The segment, clipped.
        segment: String,
        /// The character, as shown to people.
        found: String,
    },
    /// A segment of more than [`MAX_SEGMENT_BYTES`].
    #[error("`{segment}` has {bytes} characters; a segment has at most {MAX_SEGMENT_BYTES}")]
    TooLong {
        /// The segment, clipped.
        segment: String,
        /// Its length.
        bytes: usize,
    },
    /// More segments than a name has.
    #[error("`{name}` has {segments} segments; a {kind} has at most {limit}")]
    TooDeep {
        /// The name, clipped.
        name: String,
        /// Its segments.
        segments: usize,
        /// What was asked for.
        kind: &'static str,
        /// The most that are allowed.
        limit: usize,
    },
    /// A dataset's name without a topic.
    #[error("`{0}` is no dataset: it needs a topic before it, as in `topic/{0}`")]
    NoTopic(String),
    /// Not a tag.
    #[error(
        "`{tag}` is no tag: {why}; a tag is a lower-case letter, then at most 63 lower-case letters, digits, `.`, `_` and `-`"
    )]
    Tag {
        /// The text, clipped.
        tag: String,
        /// What is wrong with it.
        why: &'static str,
    },
    /// Not `latest`, a tag, or 8 to 64 hex digits.
    #[error("`{version}` is no version: {why}; a version is `latest`, a tag, or 8 to 64 lower-case hex digits")]
    Version {
        /// The text, clipped.
        version: String,
        /// What is wrong with it.
        why: &'static str,
    },
}

/// One part of a name: `[a-z0-9][a-z0-9._-]{0,127}`.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Segment(Box<str>);

/// The full name of a topic: 1 to 7 segments joined by `/`.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct TopicName(Box<str>);

/// The full name of a dataset: its topic's name, `/`, its own segment.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct DatasetName {
    /// The topic that the dataset is in.
    pub topic: TopicName,
    /// Its name within the topic.
    pub name: Segment,
}

/// A full name of 1 to 8 segments that may be a topic's or a dataset's: one owner never has both.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct FullName(Box<str>);

/// A tag: `[a-z][a-z0-9._-]{0,63}`, neither `latest` nor eight or more hex digits alone.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct TagName(Box<str>);

/// 8 to 64 lower-case hex digits: the beginning of a version, or all of it.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct VersionPrefix(Box<str>);

/// Which version of a dataset.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum VersionSelector {
    /// The one the owner published last.
    Latest,
    /// The one a tag points to.
    Tag(TagName),
    /// The one whose hash begins so.
    Prefix(VersionPrefix),
}

impl Segment {
    /// Takes a segment.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn new(text: &str) -> Result<Self, NameError> {
        check_segment(text)?;
        Ok(Self(text.into()))
    }
}

impl TopicName {
    /// Takes a topic's full name.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn new(text: &str) -> Result<Self, NameError> {
        check_segments(text, "topic", MAX_SEGMENTS - 1)?;
        Ok(Self(text.into()))
    }

    /// The segments, from the top.
    pub fn segments(&self) -> impl Iterator<Item = &str> {
        self.0.split('/')
    }

    /// The topic above; `None` at the top.
    #[must_use]
    pub fn parent(&self) -> Option<Self> {
        self.0.rsplit_once('/').map(|(parent, _)| Self(parent.into()))
    }

    /// The topic's own segment.
    #[must_use]
    pub fn last(&self) -> Segment {
        Segment(self.0.rsplit_once('/').map_or(&*self.0, |(_, last)| last).into())
    }
}

impl DatasetName {
    /// Takes a dataset's full name.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn new(text: &str) -> Result<Self, NameError> {
        FullName::new(text)?.as_dataset()
    }
}

impl FullName {
    /// Takes a full name.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn new(text: &str) -> Result<Self, NameError> {
        check_segments(text, "full name", MAX_SEGMENTS)?;
        Ok(Self(text.into()))
    }

    /// The name, read as a topic's.
    ///
    /// # Errors
    /// When it has eight segments: only a dataset has so many.
    pub fn as_topic(&self) -> Result<TopicName, NameError> {
        TopicName::new(&self.0)
    }

    /// The name, read as a dataset's.
    ///
    /// # Errors
    /// When it has one segment: a dataset is always in a topic.
    pub fn as_dataset(&self) -> Result<DatasetName, NameError> {
        let (topic, name) = self.0.rsplit_once('/').ok_or_else(|| NameError::NoTopic(clip(&self.0)))?;
        Ok(DatasetName { topic: TopicName(topic.into()), name: Segment(name.into()) })
    }

    /// The segments, from the top.
    pub fn segments(&self) -> impl Iterator<Item = &str> {
        self.0.split('/')
    }
}

impl TagName {
    /// Takes a tag.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn new(text: &str) -> Result<Self, NameError> {
        let error = |why| Err(NameError::Tag { tag: clip(text), why });
        match text.bytes().next() {
            None => return error("it is empty"),
            Some(b'a'..=b'z') => {}
            Some(_) => return error("it does not begin with a lower-case letter"),
        }
        if !text.bytes().all(is_name_byte) {
            return error("it holds another character");
        }
        if text.len() > MAX_TAG_BYTES {
            return error("it is longer than 64 characters");
        }
        if text == "latest" {
            return error("`latest` always means the newest version");
        }
        if text.len() >= MIN_PREFIX_DIGITS && text.bytes().all(is_hex_digit) {
            return error("eight or more hex digits mean the version that begins so");
        }
        Ok(Self(text.into()))
    }
}

impl VersionPrefix {
    /// Takes 8 to 64 lower-case hex digits.
    ///
    /// # Errors
    /// What is wrong with them.
    pub fn new(text: &str) -> Result<Self, NameError> {
        let error = |why| Err(NameError::Version { version: clip(text), why });
        if !text.bytes().all(is_hex_digit) {
            return error("it holds something else than lower-case hex digits");
        }
        match text.len() {
            0..MIN_PREFIX_DIGITS => error("it has fewer than 8 digits"),
            MIN_PREFIX_DIGITS..=64 => Ok(Self(text.into())),
            _ => error("it has more than 64 digits"),
        }
    }

    /// The whole version, when all 64 digits are there.
    #[must_use]
    pub fn as_hash(&self) -> Option<Hash> {
        self.0.parse().ok()
    }

    /// Whether `version` begins so.
    #[must_use]
    pub fn matches(&self, version: &Hash) -> bool {
        version.to_string().starts_with(&*self.0)
    }
}

impl VersionSelector {
    /// Takes what stands after `@`.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn new(text: &str) -> Result<Self, NameError> {
        let error = |why| Err(NameError::Version { version: clip(text), why });
        if text == "latest" {
            return Ok(Self::Latest);
        }
        if text.is_empty() {
            return error("nothing stands after `@`");
        }
        if text.len() >= MIN_PREFIX_DIGITS && text.bytes().all(|b| b.is_ascii_hexdigit()) {
            return VersionPrefix::new(text).map(Self::Prefix);
        }
        match TagName::new(text) {
            Ok(tag) => Ok(Self::Tag(tag)),
            Err(NameError::Tag { .. }) if text.bytes().all(is_hex_digit) => error("it has fewer than 8 hex digits"),
            Err(NameError::Tag { why, .. }) => error(why),
            Err(other) => Err(other),
        }
    }
}

impl From<Hash> for VersionPrefix {
    fn from(version: Hash) -> Self {
        Self(version.to_string().into())
    }
}

impl From<Hash> for VersionSelector {
    fn from(version: Hash) -> Self {
        Self::Prefix(version.into())
    }
}

impl From<&TopicName> for FullName {
    fn from(name: &TopicName) -> Self {
        Self(name.0.clone())
    }
}

impl From<&DatasetName> for FullName {
    fn from(name: &DatasetName) -> Self {
        Self(name.to_string().into())
    }
}

const fn is_name_byte(b: u8) -> bool {
    matches!(b, b'a'..=b'z' | b'0'..=b'9' | b'.' | b'_' | b'-')
}

const fn is_hex_digit(b: u8) -> bool {
    matches!(b, b'0'..=b'9' | b'a'..=b'f')
}

fn check_segment(text: &str) -> Result<(), NameError> {
    let first_is_wrong = match text.bytes().next() {
        None => return Err(NameError::Missing),
        Some(first) => matches!(first, b'.' | b'_' | b'-'),
    };
    let wrong = text.chars().find(|c| !u8::try_from(*c).is_ok_and(is_name_byte));
    if let Some(c) = wrong {
        return Err(NameError::Character {
            segment: clip(text),
            found: format!("`{}`", clip(c.encode_utf8(&mut [0; 4]))),
        });
    }
    if first_is_wrong {
        let found = format!("`{}` at its beginning", &text[..1]);
        return Err(NameError::Character { segment: clip(text), found });
    }
    if text.len() > MAX_SEGMENT_BYTES {
        return Err(NameError::TooLong { segment: clip(text), bytes: text.len() });
    }
    Ok(())
}

fn check_segments(name: &str, kind: &'static str, limit: usize) -> Result<(), NameError> {
    if name.is_empty() {
        return Err(NameError::Missing);
    }
    let mut segments = 0;
    for segment in name.split('/') {
        if segment.is_empty() {
            return Err(NameError::Empty(clip(name)));
        }
        check_segment(segment)?;
        segments += 1;
    }
    if segments > limit {
        return Err(NameError::TooDeep { name: clip(name), segments, kind, limit });
    }
    Ok(())
}

impl fmt::Display for DatasetName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.topic, self.name)
    }
}

impl fmt::Display for VersionSelector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Latest => "latest",
            Self::Tag(tag) => tag.as_str(),
            Self::Prefix(prefix) => prefix.as_str(),
        })
    }
}

macro_rules! holds_text {
    ($($name:ident),+) => {$(
        impl $name {
            /// The text.
            #[must_use]
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "{}({})", stringify!($name), self.0)
            }
        }
    )+};
}

macro_rules! reads_as_text {
    ($($name:ident),+) => {$(
        impl FromStr for $name {
            type Err = NameError;

            fn from_str(text: &str) -> Result<Self, NameError> {
                Self::new(text)
            }
        }

        impl Serialize for $name {
            fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.collect_str(self)
            }
        }

        impl<'de> Deserialize<'de> for $name {
            fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                let text = std::borrow::Cow::<'de, str>::deserialize(deserializer)?;
                Self::new(&text).map_err(serde::de::Error::custom)
            }
        }
    )+};
}

holds_text!(Segment, TopicName, FullName, TagName, VersionPrefix);
reads_as_text!(Segment, TopicName, FullName, TagName, VersionPrefix, DatasetName, VersionSelector);

impl fmt::Debug for DatasetName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "DatasetName({self})")
    }
}
