//! References as people write them: `OWNER:topic/dataset@VERSION:path`.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

use super::{FullName, NameError, Segment, VersionSelector};
use crate::PeerId;
use crate::path::{EntryPath, PathError};
use crate::text::clip;

/// Whose topic or dataset is meant.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Owner {
    /// This node's word for another, set with `bib node alias`. Spelled like a segment.
    Alias(Segment),
    /// The node itself.
    Peer(PeerId),
}

/// A reference to a topic, a dataset, one of its versions, or an entry in one. Without an owner the own node is asked
/// first, then the only match. A version or a path makes it a dataset.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Reference {
    /// Whose it is, when said.
    pub owner: Option<Owner>,
    /// The full name.
    pub name: FullName,
    /// Which version, when said. Only of a dataset.
    pub version: Option<VersionSelector>,
    /// Which entry, when said. Only of a dataset.
    pub path: Option<EntryPath>,
}

/// Why a text is not a reference.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ReferenceError {
    /// Nothing was given.
    #[error("an empty reference; write OWNER:topic/dataset@VERSION:path, of which only the name is needed")]
    Empty,
    /// The owner is neither an alias nor a peer id.
    #[error("`{0}` is no owner: it is neither an alias (as set with `bib node alias`) nor a peer id (12D3KooW..)")]
    Owner(String),
    /// The name is wrong.
    #[error(transparent)]
    Name(NameError),
    /// The version is wrong.
    #[error(transparent)]
    Version(NameError),
    /// The path is wrong.
    #[error("the path after `:` is wrong: {0}")]
    Path(PathError),
    /// `@` or a path after a name of one segment.
    #[error("`{0}` has {1}, so it must be a dataset, and a dataset has a topic before it: `topic/{0}`")]
    NotADataset(String, &'static str),
}

impl FromStr for Reference {
    type Err = ReferenceError;

    /// Reads a reference. What stands before the first `:` is the owner when it holds neither `/` nor `@`: a path
    /// needs a dataset before it, and a dataset's name holds a `/`, so no text has two readings.
    fn from_str(text: &str) -> Result<Self, ReferenceError> {
        if text.is_empty() {
            return Err(ReferenceError::Empty);
        }
        let (owner, rest) = match text.split_once(':') {
            Some((owner, rest)) if !owner.contains(['/', '@']) => (Some(parse_owner(owner)?), rest),
            _ => (None, text),
        };
        let (target, path) = match rest.split_once(':') {
            Some((target, path)) => (target, Some(path)),
            None => (rest, None),
        };
        let (name, version) = match target.split_once('@') {
            Some((name, version)) => (name, Some(version)),
            None => (target, None),
        };
        let name = FullName::new(name).map_err(ReferenceError::Name)?;
        let version = version.map(VersionSelector::new).transpose().map_err(ReferenceError::Version)?;
        let path = path.map(EntryPath::new).transpose().map_err(ReferenceError::Path)?;
        let said = if version.is_some() { "a version" } else { "a path" };
        if (version.is_some() || path.is_some()) && name.as_dataset().is_err() {
            return Err(ReferenceError::NotADataset(name.to_string(), said));
        }
        Ok(Self { owner, name, version, path })
    }
}

fn parse_owner(text: &str) -> Result<Owner, ReferenceError> {
    if let Ok(peer) = text.parse() {
        return Ok(Owner::Peer(peer));
    }
    Segment::new(text).map(Owner::Alias).map_err(|_| ReferenceError::Owner(clip(text)))
}

impl FromStr for Owner {
    type Err = ReferenceError;

    fn from_str(text: &str) -> Result<Self, ReferenceError> {
        parse_owner(text)
    }
}

impl fmt::Display for Owner {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Alias(alias) => alias.fmt(f),
            Self::Peer(peer) => peer.fmt(f),
        }
    }
}

impl fmt::Display for Reference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(owner) = &self.owner {
            write!(f, "{owner}:")?;
        }
        self.name.fmt(f)?;
        if let Some(version) = &self.version {
            write!(f, "@{version}")?;
        }
        if let Some(path) = &self.path {
            write!(f, ":{path}")?;
        }
        Ok(())
    }
}

impl Serialize for Reference {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Reference {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = std::borrow::Cow::<'de, str>::deserialize(deserializer)?;
        text.parse().map_err(serde::de::Error::custom)
    }
}
