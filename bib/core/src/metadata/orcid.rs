//! ORCID iDs.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// An ORCID iD with a right check digit: `0000-0002-1825-0097`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Orcid(String);

/// The text is not an ORCID iD.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum OrcidError {
    /// Not four groups of four digits.
    #[error("`{0}` is not an ORCID iD such as 0000-0002-1825-0097")]
    Shape(String),
    /// The last digit does not fit the others: a digit was mistyped.
    #[error("`{0}` has a wrong check digit, a digit is mistyped")]
    Checksum(String),
}

impl Orcid {
    /// The sixteen digits with hyphens.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The address, as other formats want it.
    #[must_use]
    pub fn to_url(&self) -> String {
        format!("https://orcid.org/{}", self.0)
    }

    /// The iD in `text`, which may also be its address.
    ///
    /// # Errors
    /// As [`Orcid::from_str`].
    pub fn from_any(text: &str) -> Result<Self, OrcidError> {
        let text = text.trim().trim_end_matches('/');
        let bare = ["https://orcid.org/", "http://orcid.org/", "https://www.orcid.org/", "orcid.org/"]
            .into_iter()
            .find_map(|prefix| text.strip_prefix(prefix));
        bare.unwrap_or(text).parse()
    }
}

impl FromStr for Orcid {
    type Err = OrcidError;

    fn from_str(text: &str) -> Result<Self, OrcidError> {
        let shown = || text.chars().take(40).collect::<String>();
        let bytes = text.as_bytes();
        let shaped = bytes.len() == 19
            && bytes.iter().enumerate().all(|(i, b)| match i {
                4 | 9 | 14 => *b == b'-',
                18 => b.is_ascii_digit() || *b == b'X',
                _ => b.is_ascii_digit(),
            });
        if !shaped {
            return Err(OrcidError::Shape(shown()));
        }
        // ISO 7064 mod 11-2 over the first fifteen digits.
        let total = bytes[..18].iter().filter(|b| **b != b'-').fold(0, |sum, b| (sum + u32::from(b - b'0')) * 2);
        let expected = match (12 - total % 11) % 11 {
            10 => b'X',
            digit => b"0123456789"[digit as usize],
        };
        if bytes[18] == expected { Ok(Self(text.to_owned())) } else { Err(OrcidError::Checksum(shown())) }
    }
}

impl fmt::Display for Orcid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl Serialize for Orcid {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&self.0)
    }
}

impl<'de> Deserialize<'de> for Orcid {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = std::borrow::Cow::<'de, str>::deserialize(deserializer)?;
        text.parse().map_err(serde::de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn checks_the_digit_of_published_examples() {
        for good in ["0000-0002-1825-0097", "0000-0001-5109-3700", "0000-0002-1694-233X"] {
            assert_eq!(good.parse::<Orcid>().unwrap().as_str(), good);
            assert_eq!(Orcid::from_any(&format!("https://orcid.org/{good}")).unwrap().as_str(), good);
        }
        assert!(matches!("0000-0002-1825-0098".parse::<Orcid>(), Err(OrcidError::Checksum(_))));
        assert!(matches!("0000-0020-1825-0097".parse::<Orcid>(), Err(OrcidError::Checksum(_))));
        for bad in ["", "0000000218250097", "0000-0002-1825-009x", "0000-0002-1825-00977", "äääääääää0"] {
            assert!(matches!(bad.parse::<Orcid>(), Err(OrcidError::Shape(_))), "{bad}");
        }
    }
}
