//! Ids of topics, datasets, users, sessions and operations.
//!
//! Topic and dataset ids are bound to the node they come from: UUIDv8 made of a hash over origin and nonce, so that
//! anyone who sees both can check that the id belongs to that origin. The rest are UUIDv7, made by the caller.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::{Hasher, PeerId};

/// The sixteen random bytes that, with the origin, make a topic or dataset id. 32 hex digits in text.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Nonce([u8; 16]);

/// The text is not 32 lower-case hex digits.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("a nonce is 32 lower-case hex digits")]
pub struct NonceError;

impl Nonce {
    /// A nonce from random bytes that the caller drew.
    #[must_use]
    pub const fn from_bytes(bytes: [u8; 16]) -> Self {
        Self(bytes)
    }

    /// The sixteen bytes.
    #[must_use]
    pub const fn as_bytes(&self) -> &[u8; 16] {
        &self.0
    }
}

impl fmt::Display for Nonce {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&hex::encode(self.0))
    }
}

impl FromStr for Nonce {
    type Err = NonceError;

    fn from_str(text: &str) -> Result<Self, NonceError> {
        if text.len() != 32 || text.bytes().any(|b| b.is_ascii_uppercase()) {
            return Err(NonceError);
        }
        let mut bytes = [0; 16];
        hex::decode_to_slice(text, &mut bytes).map_err(|_| NonceError)?;
        Ok(Self(bytes))
    }
}

impl Serialize for Nonce {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Nonce {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = std::borrow::Cow::<'de, str>::deserialize(deserializer)?;
        text.parse().map_err(serde::de::Error::custom)
    }
}

/// UUIDv8: the first 16 bytes of SHA-256(`bib-id-v1\0` || kind || origin as multihash || nonce), version and variant set.
fn derive(kind: &[u8], origin: &PeerId, nonce: &Nonce) -> Uuid {
    let mut hasher = Hasher::new();
    hasher.update(b"bib-id-v1\0");
    hasher.update(kind);
    hasher.update(&origin.to_multihash());
    hasher.update(nonce.as_bytes());
    let digest = hasher.finish();
    let mut bytes = [0; 16];
    bytes.copy_from_slice(&digest.as_bytes()[..16]);
    bytes[6] = (bytes[6] & 0x0f) | 0x80;
    bytes[8] = (bytes[8] & 0x3f) | 0x80;
    Uuid::from_bytes(bytes)
}

macro_rules! uuid_newtype {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        #[serde(transparent)]
        pub struct $name(Uuid);

        impl $name {
            /// The id with this UUID.
            #[must_use]
            pub const fn from_uuid(uuid: Uuid) -> Self {
                Self(uuid)
            }

            /// The UUID.
            #[must_use]
            pub const fn as_uuid(&self) -> Uuid {
                self.0
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.fmt(f)
            }
        }

        impl FromStr for $name {
            type Err = uuid::Error;

            fn from_str(text: &str) -> Result<Self, uuid::Error> {
                Uuid::try_parse(text).map(Self)
            }
        }
    };
}

uuid_newtype! {
    /// A topic, bound to the node it came from.
    TopicId
}
uuid_newtype! {
    /// A dataset, bound to the node it came from.
    DatasetId
}
uuid_newtype! {
    /// A person or program known to this node. UUIDv7.
    UserId
}
uuid_newtype! {
    /// A log-in or an upload session. UUIDv7.
    SessionId
}
uuid_newtype! {
    /// One call, from its first statement to its audit entry. UUIDv7.
    OperationId
}

impl TopicId {
    /// The id of the topic that `origin` made with `nonce`.
    #[must_use]
    pub fn derive(origin: &PeerId, nonce: &Nonce) -> Self {
        Self(derive(b"topic\0", origin, nonce))
    }
}

impl DatasetId {
    /// The id of the dataset that `origin` made with `nonce`.
    #[must_use]
    pub fn derive(origin: &PeerId, nonce: &Nonce) -> Self {
        Self(derive(b"dataset\0", origin, nonce))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn derived_ids_are_version_8_and_differ_by_kind() {
        let (origin, nonce) = (PeerId::from_public_key([1; 32]), Nonce::from_bytes([2; 16]));
        let topic = TopicId::derive(&origin, &nonce).as_uuid();
        let dataset = DatasetId::derive(&origin, &nonce).as_uuid();
        assert_eq!(topic.get_version_num(), 8);
        assert_eq!(topic.get_variant(), uuid::Variant::RFC4122);
        assert_ne!(topic, dataset);
    }
}
