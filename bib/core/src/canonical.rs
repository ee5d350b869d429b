//! Canonical JSON: RFC 8785 restricted to objects, arrays, strings, booleans and integers below 2^53, ASCII keys.
//!
//! Python writes the same bytes with `json.dumps(x, sort_keys=True, separators=(",",":"), ensure_ascii=False)`.

use serde::Serialize;
use serde::de::{DeserializeSeed, Error as _, MapAccess, SeqAccess, Visitor};
use serde_json::{Map, Value};

/// The largest signed body, in bytes.
pub const MAX_BODY_BYTES: usize = 64 * 1024;

/// Arrays and objects nest at most this deep.
const MAX_DEPTH: usize = 64;

/// Integers lie strictly between the negative and the positive of this.
const INTEGER_LIMIT: u64 = 1 << 53;

/// Why a value has no canonical form, or bytes are not canonical.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CanonicalError {
    /// `null` has no place: leave the member out.
    #[error("null is not allowed in canonical JSON")]
    Null,
    /// A number that is not an integer below 2^53 in absolute value.
    #[error("`{0}` is not an integer below 2^53; write it as a string")]
    Number(String),
    /// An object key with characters beyond ASCII.
    #[error("the key `{0}` is not ASCII")]
    Key(String),
    /// Nested too deep.
    #[error("nested deeper than {MAX_DEPTH} levels")]
    Depth,
    /// Not JSON at all, or a key twice.
    #[error("not JSON: {0}")]
    Syntax(String),
    /// JSON, but not in its one canonical spelling.
    #[error("JSON that is not in canonical form")]
    NotCanonical,
}

/// The canonical bytes of `value`. Members that are `None` must be skipped by its `Serialize`.
///
/// # Errors
/// When the value holds something that canonical JSON cannot say.
pub fn to_vec<T: Serialize + ?Sized>(value: &T) -> Result<Vec<u8>, CanonicalError> {
    let value = serde_json::to_value(value).map_err(|e| CanonicalError::Syntax(e.to_string()))?;
    let mut out = Vec::with_capacity(256);
    write(&value, 0, &mut out)?;
    Ok(out)
}

/// Reads JSON that must already be in canonical form, as everything hashed or signed is.
///
/// # Errors
/// When the bytes are not JSON, repeat a key, nest too deep, or are spelled in another way.
pub fn parse(bytes: &[u8]) -> Result<Value, CanonicalError> {
    let value = parse_any(bytes)?;
    let mut again = Vec::with_capacity(bytes.len());
    write(&value, 0, &mut again)?;
    if again == bytes { Ok(value) } else { Err(CanonicalError::NotCanonical) }
}

/// Reads any JSON within the depth limit, refusing repeated keys; for metadata files that people write.
///
/// # Errors
/// When the bytes are not JSON, repeat a key or nest too deep.
pub fn parse_any(bytes: &[u8]) -> Result<Value, CanonicalError> {
    let mut reader = serde_json::Deserializer::from_slice(bytes);
    let value = Strict { depth: 0 }
        .deserialize(&mut reader)
        .and_then(|value| reader.end().map(|()| value))
        .map_err(|e| CanonicalError::Syntax(e.to_string()))?;
    Ok(value)
}

fn write(value: &Value, depth: usize, out: &mut Vec<u8>) -> Result<(), CanonicalError> {
    if depth > MAX_DEPTH {
        return Err(CanonicalError::Depth);
    }
    match value {
        Value::Null => return Err(CanonicalError::Null),
        Value::Bool(true) => out.extend_from_slice(b"true"),
        Value::Bool(false) => out.extend_from_slice(b"false"),
        Value::Number(number) => {
            let small = number.as_i64().is_some_and(|n| n.unsigned_abs() < INTEGER_LIMIT);
            if !small {
                return Err(CanonicalError::Number(number.to_string()));
            }
            out.extend_from_slice(number.to_string().as_bytes());
        }
        Value::String(text) => write_string(text, out)?,
        Value::Array(items) => {
            out.push(b'[');
            for (i, item) in items.iter().enumerate() {
                if i > 0 {
                    out.push(b',');
                }
                write(item, depth + 1, out)?;
            }
            out.push(b']');
        }
        Value::Object(map) => write_object(map, depth, out)?,
    }
    Ok(())
}

fn write_object(map: &Map<String, Value>, depth: usize, out: &mut Vec<u8>) -> Result<(), CanonicalError> {
    // Sorted here, because a dependency may switch serde_json's map to insertion order.
    let mut members: Vec<_> = map.iter().collect();
    members.sort_unstable_by(|a, b| a.0.as_bytes().cmp(b.0.as_bytes()));
    out.push(b'{');
    for (i, (key, item)) in members.into_iter().enumerate() {
        if !key.is_ascii() {
            return Err(CanonicalError::Key(key.clone()));
        }
        if i > 0 {
            out.push(b',');
        }
        write_string(key, out)?;
        out.push(b':');
        write(item, depth + 1, out)?;
    }
    out.push(b'}');
    Ok(())
}

fn write_string(text: &str, out: &mut Vec<u8>) -> Result<(), CanonicalError> {
    // serde_json escapes as RFC 8785 does: the two-character escapes, \u00xx in lower case for other controls.
    serde_json::to_writer(out, text).map_err(|e| CanonicalError::Syntax(e.to_string()))
}

/// Builds a `Value` while refusing repeated keys, which `serde_json` itself lets through.
struct Strict {
    depth: usize,
}

impl<'de> DeserializeSeed<'de> for Strict {
    type Value = Value;

    fn deserialize<D: serde::Deserializer<'de>>(self, deserializer: D) -> Result<Value, D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Strict {
    type Value = Value;

    fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("JSON")
    }

    fn visit_unit<E: serde::de::Error>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_bool<E: serde::de::Error>(self, value: bool) -> Result<Value, E> {
        Ok(Value::Bool(value))
    }

    fn visit_i64<E: serde::de::Error>(self, value: i64) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_u64<E: serde::de::Error>(self, value: u64) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_f64<E: serde::de::Error>(self, value: f64) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_str<E: serde::de::Error>(self, value: &str) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_string<E: serde::de::Error>(self, value: String) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Value, A::Error> {
        let depth = deeper::<A::Error>(self.depth)?;
        let mut items = Vec::new();
        while let Some(item) = seq.next_element_seed(Strict { depth })? {
            items.push(item);
        }
        Ok(Value::Array(items))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Value, A::Error> {
        let depth = deeper::<A::Error>(self.depth)?;
        let mut members = Map::new();
        while let Some(key) = map.next_key::<String>()? {
            let item = map.next_value_seed(Strict { depth })?;
            if members.contains_key(&key) {
                return Err(A::Error::custom(format_args!("the key `{key}` stands twice")));
            }
            members.insert(key, item);
        }
        Ok(Value::Object(members))
    }
}

fn deeper<E: serde::de::Error>(depth: usize) -> Result<usize, E> {
    if depth >= MAX_DEPTH {
        Err(E::custom(format_args!("nested deeper than {MAX_DEPTH} levels")))
    } else {
        Ok(depth + 1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn sorts_keys_and_escapes_as_rfc_8785() {
        let value = json!({"b": [1, -2, true], "a": "\u{8}\t\n\u{c}\r\"\\\u{1f}\u{7f}é\u{2028}"});
        let bytes = to_vec(&value).unwrap();
        let text = String::from_utf8(bytes).unwrap();
        assert_eq!(text, "{\"a\":\"\\b\\t\\n\\f\\r\\\"\\\\\\u001f\u{7f}é\u{2028}\",\"b\":[1,-2,true]}");
    }

    #[test]
    fn refuses_what_has_no_one_spelling() {
        assert_eq!(to_vec(&json!({"a": null})), Err(CanonicalError::Null));
        assert_eq!(to_vec(&json!(1.5)), Err(CanonicalError::Number("1.5".into())));
        assert_eq!(to_vec(&json!(1_u64 << 53)), Err(CanonicalError::Number("9007199254740992".into())));
        assert_eq!(to_vec(&json!((1_u64 << 53) - 1)).unwrap(), b"9007199254740991");
        assert_eq!(to_vec(&json!({"ä": 1})), Err(CanonicalError::Key("ä".into())));
    }

    #[test]
    fn reading_refuses_other_spellings() {
        for text in ["{\"b\":1,\"a\":2}", "{ }", "[1, 2]", "\"\\u0041\"", "01", "-0", "1e3", "{\"a\":1}\n"] {
            assert!(parse(text.as_bytes()).is_err(), "{text}");
        }
        assert!(matches!(parse(b"{\"a\":1,\"a\":1}"), Err(CanonicalError::Syntax(_))));
        assert!(parse(b"{\"a\":[\"x\",true]}").is_ok());
    }

    #[test]
    fn deep_nesting_is_an_error_and_not_a_crash() {
        let deep = "[".repeat(10_000) + &"]".repeat(10_000);
        assert!(parse(deep.as_bytes()).is_err());
        assert!(parse_any(deep.as_bytes()).is_err());
    }
}
