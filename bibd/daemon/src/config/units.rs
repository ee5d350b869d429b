//! Durations and sizes as people write them: `30s`, `24h`, `256MiB`.

use std::borrow::Cow;
use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

/// A duration such as `500ms`, `30s`, `15m`, `24h` or `90d`. A bare number is seconds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Span(pub Duration);

/// A size such as `4MiB` or `2GB`. A bare number is bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Size(pub u64);

/// The text is not a duration or size.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum UnitError {
    /// Not a duration.
    #[error("`{0}` is not a duration such as 30s, 15m, 24h or 90d")]
    Span(String),
    /// Not a size.
    #[error("`{0}` is not a size such as 4MiB or 2GB")]
    Size(String),
}

const SPANS: [(&str, u64); 5] = [("ms", 1), ("s", 1_000), ("m", 60_000), ("h", 3_600_000), ("d", 86_400_000)];
const SIZES: [(&str, u64); 9] = [
    ("B", 1),
    ("KiB", 1 << 10),
    ("MiB", 1 << 20),
    ("GiB", 1 << 30),
    ("TiB", 1 << 40),
    ("kB", 1_000),
    ("MB", 1_000_000),
    ("GB", 1_000_000_000),
    ("TB", 1_000_000_000_000),
];

/// Splits `30s` into 30 and the factor of `s`.
fn split(text: &str, units: &[(&str, u64)], bare: u64) -> Option<u64> {
    let text = text.trim();
    let digits = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let number: u64 = text[..digits].parse().ok()?;
    let unit = text[digits..].trim_start();
    let factor = if unit.is_empty() { bare } else { units.iter().find(|(name, _)| name.eq_ignore_ascii_case(unit))?.1 };
    number.checked_mul(factor)
}

/// The largest unit that divides it.
fn join(value: u64, units: &[(&str, u64)], f: &mut fmt::Formatter<'_>) -> fmt::Result {
    let best = units.iter().filter(|(_, factor)| value.is_multiple_of(*factor)).max_by_key(|(_, factor)| *factor);
    match best {
        Some((name, factor)) if value != 0 => write!(f, "{}{name}", value / factor),
        _ => write!(f, "0{}", units[0].0),
    }
}

impl FromStr for Span {
    type Err = UnitError;

    fn from_str(text: &str) -> Result<Self, UnitError> {
        let millis = split(text, &SPANS, 1_000).ok_or_else(|| UnitError::Span(text.chars().take(40).collect()))?;
        Ok(Self(Duration::from_millis(millis)))
    }
}

impl FromStr for Size {
    type Err = UnitError;

    fn from_str(text: &str) -> Result<Self, UnitError> {
        split(text, &SIZES, 1).map(Self).ok_or_else(|| UnitError::Size(text.chars().take(40).collect()))
    }
}

impl fmt::Display for Span {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        join(u64::try_from(self.0.as_millis()).unwrap_or(u64::MAX), &SPANS, f)
    }
}

impl fmt::Display for Size {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Binary units first: 4MiB stays 4MiB.
        join(self.0, &SIZES[..5], f)
    }
}

struct TextOrNumber;

impl de::Visitor<'_> for TextOrNumber {
    type Value = String;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a number with a unit")
    }

    fn visit_str<E: de::Error>(self, text: &str) -> Result<String, E> {
        Ok(text.to_owned())
    }

    fn visit_u64<E: de::Error>(self, number: u64) -> Result<String, E> {
        Ok(number.to_string())
    }
}

macro_rules! as_text {
    ($name:ident, $schema:literal, $example:literal, $pattern:literal) => {
        impl Serialize for $name {
            fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.collect_str(self)
            }
        }

        impl<'de> Deserialize<'de> for $name {
            fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                deserializer.deserialize_any(TextOrNumber)?.parse().map_err(de::Error::custom)
            }
        }

        impl JsonSchema for $name {
            fn schema_name() -> Cow<'static, str> {
                $schema.into()
            }

            fn json_schema(_: &mut SchemaGenerator) -> Schema {
                json_schema!({ "type": ["string", "integer"], "minimum": 0, "pattern": $pattern, "examples": [$example] })
            }
        }
    };
}

as_text!(Span, "Duration", "30s", "^[0-9]+ *(ms|s|m|h|d)?$");
as_text!(Size, "Size", "4MiB", "^[0-9]+ *([kKMGT]i?B|B)?$");

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_and_writes_durations() {
        for (text, millis, back) in [
            ("30s", 30_000, "30s"),
            ("90", 90_000, "90s"),
            ("500ms", 500, "500ms"),
            ("24h", 86_400_000, "1d"),
            ("0", 0, "0ms"),
        ] {
            let span: Span = text.parse().unwrap();
            assert_eq!(span.0, Duration::from_millis(millis), "{text}");
            assert_eq!(span.to_string(), back);
        }
        for text in ["", "s", "-1s", "1y", "99999999999999999999d", "18446744073709551615d", "1.5h"] {
            assert!(text.parse::<Span>().is_err(), "{text}");
        }
    }

    #[test]
    fn reads_and_writes_sizes() {
        for (text, bytes, back) in [
            ("4MiB", 4 << 20, "4MiB"),
            ("4 mib", 4 << 20, "4MiB"),
            ("2GB", 2_000_000_000, "1953125KiB"),
            ("7", 7, "7B"),
        ] {
            let size: Size = text.parse().unwrap();
            assert_eq!((size.0, size.to_string().as_str()), (bytes, back), "{text}");
        }
        assert!("4 PiB".parse::<Size>().is_err());
    }
}
