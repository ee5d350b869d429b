//! Grants: what a topic's owner lets a node or a person do.
//!
//! A grant is a record, so that every node that holds the topic can check it; see [`crate::record`] for how records
//! are merged. Revoking is a higher revision that says so.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::access::GrantLevel;
use crate::canonical::CanonicalError;
use crate::fields::{Extra, FieldError, Fields, put};
use crate::record::{Header, Revision};
use crate::{KeyFingerprint, PeerId, Timestamp, TopicId};

/// A grant lasts at most this many seconds: 90 days. The owner's daemon renews it.
pub const MAX_GRANT_SECONDS: i64 = 90 * 24 * 60 * 60;

/// Whom a grant is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Subject {
    /// A node, and by it that node's users.
    Node(PeerId),
    /// A person, by key fingerprint.
    Person(KeyFingerprint),
}

/// The text is neither a peer id nor a key fingerprint.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is neither a peer id (12D3KooW..) nor a key fingerprint (SHA256:..)")]
pub struct SubjectError(String);

impl fmt::Display for Subject {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Node(peer) => peer.fmt(f),
            Self::Person(key) => key.fmt(f),
        }
    }
}

impl FromStr for Subject {
    type Err = SubjectError;

    fn from_str(text: &str) -> Result<Self, SubjectError> {
        let error = || SubjectError(text.chars().take(80).collect());
        if text.starts_with("SHA256:") {
            text.parse().map(Self::Person).map_err(|_| error())
        } else {
            text.parse().map(Self::Node).map_err(|_| error())
        }
    }
}

impl Serialize for Subject {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Subject {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = std::borrow::Cow::<'de, str>::deserialize(deserializer)?;
        text.parse().map_err(serde::de::Error::custom)
    }
}

/// Whether a grant counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum GrantState {
    /// Counts until it expires.
    Active,
    /// Taken back. Stops new bytes, never takes back old ones.
    Revoked,
}

/// A grant, as its record's body says it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Grant {
    /// The record's revision.
    pub revision: Revision,
    /// When it was given or renewed, by the owner's clock.
    pub time: Timestamp,
    /// The topic it opens.
    pub topic: TopicId,
    /// Whom it is for.
    pub subject: Subject,
    /// What it allows.
    pub level: GrantLevel,
    /// When it ends: at most [`MAX_GRANT_SECONDS`] after `time`.
    pub expires: Timestamp,
    /// Active or revoked.
    pub state: GrantState,
    /// Members this version does not know.
    pub extra: Extra,
}

impl Grant {
    /// The record's id: topic, `@`, subject.
    #[must_use]
    pub fn id(&self) -> String {
        format!("{}@{}", self.topic, self.subject)
    }

    /// What the grant allows at `now`, by the clock of whoever checks.
    #[must_use]
    pub fn level_at(&self, now: Timestamp) -> Option<GrantLevel> {
        (self.state == GrantState::Active && now < self.expires).then_some(self.level)
    }

    pub(crate) fn check(&self) -> Result<(), FieldError> {
        if self.expires <= self.time {
            return Err(FieldError::new("expires", "not after `time`"));
        }
        if self.expires > self.time.plus_seconds(MAX_GRANT_SECONDS) {
            return Err(FieldError::new("expires", "more than 90 days after `time`"));
        }
        Ok(())
    }

    pub(crate) fn put(&self, map: &mut Extra) -> Result<(), CanonicalError> {
        put(map, "topic", &self.topic)?;
        put(map, "subject", &self.subject)?;
        put(map, "level", &self.level)?;
        put(map, "expires", &self.expires)?;
        put(map, "state", &self.state)
    }

    pub(crate) fn read(mut fields: Fields, header: &Header) -> Result<Self, FieldError> {
        Ok(Self {
            revision: header.revision,
            time: header.time,
            topic: fields.required("topic")?,
            subject: fields.required("subject")?,
            level: fields.required("level")?,
            expires: fields.required("expires")?,
            state: fields.required("state")?,
            extra: fields.rest(),
        })
    }
}
