//! Peer ids: who a node is.
//!
//! A libp2p peer id of an Ed25519 key is the identity multihash of the protobuf `PublicKey` message
//! (<https://github.com/libp2p/specs/blob/master/peer-ids/peer-ids.md>): six fixed bytes, then the key. So the key
//! can be read back from the id, and a signature needs no other lookup.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// Identity multihash (0x00), length 36, then protobuf: type Ed25519 (0x08 0x01), data of 32 bytes (0x12 0x20).
const PREFIX: [u8; 6] = [0x00, 0x24, 0x08, 0x01, 0x12, 0x20];

/// The libp2p peer id of a node's Ed25519 public key.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PeerId([u8; 32]);

/// The text is not the peer id of an Ed25519 key.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is not the peer id of an Ed25519 key (they begin with 12D3KooW)")]
pub struct PeerIdError(String);

impl PeerId {
    /// The id of the node with this Ed25519 public key.
    #[must_use]
    pub const fn from_public_key(key: [u8; 32]) -> Self {
        Self(key)
    }

    /// The Ed25519 public key that the id carries.
    #[must_use]
    pub const fn public_key(&self) -> &[u8; 32] {
        &self.0
    }

    /// The id as multihash bytes, as ids and libp2p use it.
    #[must_use]
    pub fn to_multihash(&self) -> [u8; 38] {
        let mut bytes = [0u8; 38];
        bytes[..6].copy_from_slice(&PREFIX);
        bytes[6..].copy_from_slice(&self.0);
        bytes
    }

    /// The last eight characters: enough to tell the nodes of a laboratory apart.
    #[must_use]
    pub fn short(&self) -> String {
        let text = self.to_string();
        text[text.len() - 8..].to_owned()
    }
}

impl fmt::Display for PeerId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&bs58::encode(self.to_multihash()).into_string())
    }
}

impl fmt::Debug for PeerId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "PeerId({self})")
    }
}

impl FromStr for PeerId {
    type Err = PeerIdError;

    fn from_str(text: &str) -> Result<Self, PeerIdError> {
        let error = || PeerIdError(text.chars().take(80).collect());
        if text.len() > 64 {
            return Err(error());
        }
        let bytes = bs58::decode(text).into_vec().map_err(|_| error())?;
        let key = bytes.strip_prefix(&PREFIX).ok_or_else(error)?;
        <[u8; 32]>::try_from(key).map(Self).map_err(|_| error())
    }
}

impl Serialize for PeerId {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for PeerId {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = std::borrow::Cow::<'de, str>::deserialize(deserializer)?;
        text.parse().map_err(serde::de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_begins_as_ed25519_ids_do_and_reads_back() {
        let id = PeerId::from_public_key([7; 32]);
        let text = id.to_string();
        assert!(text.starts_with("12D3KooW"), "{text}");
        assert_eq!(text.parse::<PeerId>().unwrap(), id);
    }

    #[test]
    fn refuses_other_key_types_and_rubbish() {
        for text in ["", "QmYyQSo1c1Ym7orWxLYvCrM2EmxFTANf8wXmmE7DWjhx5N", "12D3KooW", "0OIl"] {
            assert!(text.parse::<PeerId>().is_err(), "{text}");
        }
    }
}
