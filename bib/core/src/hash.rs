//! SHA-256, the one hash of BIB: 64 lower-case hex digits in text, 32 bytes on the wire.

use std::fmt;
use std::str::FromStr;

use ring::digest::{self, Context, Digest, SHA256};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// A SHA-256 digest.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Hash([u8; 32]);

/// Why a text or a byte string is not a [`struct@Hash`].
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum HashError {
    /// The text is not 64 lower-case hex digits.
    #[error("`{0}` is not a SHA-256 hash: 64 lower-case hex digits are needed")]
    Text(String),
    /// The byte string has another length than 32.
    #[error("a SHA-256 hash has 32 bytes, not {0}")]
    Length(usize),
}

impl Hash {
    /// The hash of `bytes`.
    #[must_use]
    pub fn of(bytes: &[u8]) -> Self {
        Self::of_digest(digest::digest(&SHA256, bytes))
    }

    fn of_digest(digest: Digest) -> Self {
        let mut bytes = [0; 32];
        bytes.copy_from_slice(digest.as_ref());
        Self(bytes)
    }

    /// A hash from its 32 bytes.
    #[must_use]
    pub const fn from_bytes(bytes: [u8; 32]) -> Self {
        Self(bytes)
    }

    /// The 32 bytes.
    #[must_use]
    pub const fn as_bytes(&self) -> &[u8; 32] {
        &self.0
    }

    /// Whether the first `bits` bits are zero (`bits` up to 256). Pages are cut where this holds.
    #[must_use]
    pub fn has_leading_zero_bits(&self, bits: u32) -> bool {
        let mut zeros = 0;
        for byte in self.0 {
            zeros += byte.leading_zeros();
            if byte != 0 {
                break;
            }
        }
        zeros >= bits
    }
}

impl TryFrom<&[u8]> for Hash {
    type Error = HashError;

    fn try_from(bytes: &[u8]) -> Result<Self, HashError> {
        <[u8; 32]>::try_from(bytes).map(Self).map_err(|_| HashError::Length(bytes.len()))
    }
}

impl fmt::Display for Hash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut text = [0u8; 64];
        hex::encode_to_slice(self.0, &mut text).map_err(|_| fmt::Error)?;
        f.write_str(std::str::from_utf8(&text).map_err(|_| fmt::Error)?)
    }
}

impl fmt::Debug for Hash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Hash({self})")
    }
}

impl FromStr for Hash {
    type Err = HashError;

    fn from_str(text: &str) -> Result<Self, HashError> {
        let error = || HashError::Text(text.chars().take(80).collect());
        if text.len() != 64 || !text.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f')) {
            return Err(error());
        }
        let mut bytes = [0u8; 32];
        hex::decode_to_slice(text, &mut bytes).map_err(|_| error())?;
        Ok(Self(bytes))
    }
}

impl Serialize for Hash {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Hash {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = std::borrow::Cow::<'de, str>::deserialize(deserializer)?;
        text.parse().map_err(serde::de::Error::custom)
    }
}

/// Hashes bytes that arrive in pieces.
#[derive(Clone)]
pub struct Hasher(Context);

impl Default for Hasher {
    fn default() -> Self {
        Self(Context::new(&SHA256))
    }
}

impl Hasher {
    /// A hasher that has seen nothing.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Takes the next piece.
    pub fn update(&mut self, bytes: &[u8]) {
        self.0.update(bytes);
    }

    /// The hash of everything seen.
    #[must_use]
    pub fn finish(self) -> Hash {
        Hash::of_digest(self.0.finish())
    }
}

impl fmt::Debug for Hasher {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Hasher")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const EMPTY: &str = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";

    #[test]
    fn hashes_the_empty_string_as_published() {
        assert_eq!(Hash::of(b"").to_string(), EMPTY);
        assert_eq!(Hasher::new().finish(), EMPTY.parse().unwrap());
    }

    #[test]
    fn refuses_upper_case_and_short_texts() {
        assert!(EMPTY.to_uppercase().parse::<Hash>().is_err());
        assert!(EMPTY[1..].parse::<Hash>().is_err());
    }

    #[test]
    fn counts_leading_zero_bits_across_bytes() {
        let mut bytes = [0xff; 32];
        bytes[0] = 0;
        bytes[1] = 0b0011_1111;
        let hash = Hash::from_bytes(bytes);
        assert!(hash.has_leading_zero_bits(10));
        assert!(!hash.has_leading_zero_bits(11));
        assert!(Hash::from_bytes([0; 32]).has_leading_zero_bits(256));
    }
}
