//! SSH key fingerprints: who a person is.

use std::fmt;
use std::str::FromStr;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD_NO_PAD;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::Hash;

/// The SHA-256 fingerprint of an SSH public key, written as OpenSSH writes it: `SHA256:` and 43 base64 characters.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct KeyFingerprint(Hash);

/// The text is not an OpenSSH SHA-256 fingerprint.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is not a key fingerprint such as SHA256:47DEQpj8HBSa+/TImW+5JCeuQeRkm5NMpJWZG3hSuFU")]
pub struct FingerprintError(String);

impl KeyFingerprint {
    /// The fingerprint of a public key in SSH wire format (the base64 part of an `authorized_keys` line, decoded).
    #[must_use]
    pub fn of_wire_key(key: &[u8]) -> Self {
        Self(Hash::of(key))
    }

    /// The SHA-256 digest behind the text.
    #[must_use]
    pub const fn digest(&self) -> &Hash {
        &self.0
    }
}

impl fmt::Display for KeyFingerprint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "SHA256:{}", STANDARD_NO_PAD.encode(self.0.as_bytes()))
    }
}

impl fmt::Debug for KeyFingerprint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "KeyFingerprint({self})")
    }
}

impl FromStr for KeyFingerprint {
    type Err = FingerprintError;

    fn from_str(text: &str) -> Result<Self, FingerprintError> {
        let error = || FingerprintError(text.chars().take(80).collect());
        let encoded = text.strip_prefix("SHA256:").filter(|rest| rest.len() == 43).ok_or_else(error)?;
        let bytes = STANDARD_NO_PAD.decode(encoded).map_err(|_| error())?;
        Hash::try_from(bytes.as_slice()).map(Self).map_err(|_| error())
    }
}

impl Serialize for KeyFingerprint {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for KeyFingerprint {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = std::borrow::Cow::<'de, str>::deserialize(deserializer)?;
        text.parse().map_err(serde::de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_back_what_it_writes_and_refuses_the_rest() {
        let print = KeyFingerprint::of_wire_key(b"");
        assert_eq!(print.to_string(), "SHA256:47DEQpj8HBSa+/TImW+5JCeuQeRkm5NMpJWZG3hSuFU");
        assert_eq!(print.to_string().parse::<KeyFingerprint>().unwrap(), print);
        for text in ["", "SHA256:", "MD5:00:11", "SHA256:47DEQpj8HBSa+/TImW+5JCeuQeRkm5NMpJWZG3hSuFU="] {
            assert!(text.parse::<KeyFingerprint>().is_err(), "{text}");
        }
    }
}
