//! Makes JSON of any origin canonical: what canonical JSON cannot say is turned into what it can, by fixed rules.

use serde_json::{Map, Value};

use crate::canonical::{self, CanonicalError};

/// Why JSON cannot be normalised.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NormaliseError {
    /// Not JSON, a key twice, or nested too deep.
    #[error(transparent)]
    Json(#[from] CanonicalError),
    /// Keys with characters beyond ASCII.
    #[error("keys must be ASCII, these are not: {}", .0.join(", "))]
    Keys(Vec<String>),
}

/// At most so many keys are named in an error.
const MAX_NAMED_KEYS: usize = 20;

/// Reads JSON of any spelling. Numbers that are not integers below 2^53 become strings, spelled as in the source; nulls
/// are dropped from objects and lists.
///
/// # Errors
/// When the bytes are not JSON, repeat a key, nest too deep, or hold keys beyond ASCII (all are named).
pub fn normalise(bytes: &[u8]) -> Result<Value, NormaliseError> {
    let mut value = canonical::parse_any(&quote_numbers(bytes))?;
    let mut keys = Vec::new();
    clean(&mut value, &mut keys);
    if keys.is_empty() { Ok(value) } else { Err(NormaliseError::Keys(keys)) }
}

/// Puts quotes around numbers that are not small integers. Done on the bytes, because a parser that makes an `f64` of
/// `1.10` has already lost how it was spelled.
fn quote_numbers(bytes: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(bytes.len() + 16);
    let mut rest = bytes;
    while let Some(&first) = rest.first() {
        let length = match first {
            b'"' => string_length(rest),
            b'-' | b'0'..=b'9' => {
                rest.iter().take_while(|b| matches!(b, b'0'..=b'9' | b'+' | b'-' | b'.' | b'e' | b'E')).count()
            }
            _ => 1,
        };
        let (token, after) = rest.split_at(length);
        // A number before a colon would be made a key by quotes: it is left for the parser to refuse.
        let is_key = after.trim_ascii_start().starts_with(b":");
        if is_number(token) && !is_small_integer(token) && !is_key {
            out.push(b'"');
            out.extend_from_slice(token);
            out.push(b'"');
        } else {
            // What is no JSON stays as it is: the parser names it.
            out.extend_from_slice(token);
        }
        rest = after;
    }
    out
}

/// The length of the string that `bytes` begins with, quotes included; all of it when it has no end.
fn string_length(bytes: &[u8]) -> usize {
    let mut at = 1;
    while let Some(byte) = bytes.get(at) {
        match byte {
            b'"' => return at + 1,
            b'\\' => at += 2,
            _ => at += 1,
        }
    }
    bytes.len()
}

/// The grammar of RFC 8259: `-? (0 | [1-9][0-9]*) (. [0-9]+)? ([eE] [+-]? [0-9]+)?`.
fn is_number(token: &[u8]) -> bool {
    fn digits(bytes: &[u8]) -> (usize, &[u8]) {
        let count = bytes.iter().take_while(|b| b.is_ascii_digit()).count();
        (count, &bytes[count..])
    }
    let token = token.strip_prefix(b"-").unwrap_or(token);
    let leading_zero = token.first() == Some(&b'0');
    let (whole, mut rest) = digits(token);
    if whole == 0 || (leading_zero && whole > 1) {
        return false;
    }
    if let Some(fraction) = rest.strip_prefix(b".") {
        let (count, after) = digits(fraction);
        if count == 0 {
            return false;
        }
        rest = after;
    }
    match rest {
        [b'e' | b'E', exponent @ ..] => {
            let exponent = match exponent {
                [b'+' | b'-', unsigned @ ..] => unsigned,
                unsigned => unsigned,
            };
            let (count, after) = digits(exponent);
            count > 0 && after.is_empty()
        }
        _ => rest.is_empty(),
    }
}

fn is_small_integer(token: &[u8]) -> bool {
    let number = std::str::from_utf8(token).ok().and_then(|text| text.parse::<i64>().ok());
    number.is_some_and(|n| n.unsigned_abs() < 1 << 53) && token != b"-0"
}

fn clean(value: &mut Value, keys: &mut Vec<String>) {
    match value {
        Value::Array(items) => {
            items.retain(|item| !item.is_null());
            items.iter_mut().for_each(|item| clean(item, keys));
        }
        Value::Object(members) => {
            let kept = std::mem::take(members).into_iter().filter(|(_, item)| !item.is_null());
            *members = kept.collect::<Map<_, _>>();
            for (key, item) in members.iter_mut() {
                if !key.is_ascii() && keys.len() < MAX_NAMED_KEYS {
                    keys.push(key.chars().take(80).collect());
                }
                clean(item, keys);
            }
        }
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => {}
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;

    #[test]
    fn numbers_keep_their_spelling() {
        let text = br#"{"a":1.10,"b":[1e400,-0,0,-5,9007199254740991,9007199254740992,-1E+2],"c":"1.5 \" 2.5"}"#;
        let expected = json!({
            "a": "1.10",
            "b": ["1e400", "-0", 0, -5, 9_007_199_254_740_991_u64, "9007199254740992", "-1E+2"],
            "c": "1.5 \" 2.5",
        });
        assert_eq!(normalise(text).unwrap(), expected);
    }

    #[test]
    fn nulls_are_dropped() {
        assert_eq!(normalise(br#"{"a":null,"b":{"c":null},"d":[null,1]}"#).unwrap(), json!({"b": {}, "d": [1]}));
    }

    #[test]
    fn all_keys_beyond_ascii_are_named() {
        let error = normalise(r#"{"größe":1,"x":[{"naïve":2}]}"#.as_bytes()).unwrap_err();
        let NormaliseError::Keys(mut keys) = error else { panic!("{error}") };
        keys.sort();
        assert_eq!(keys, ["größe", "naïve"]);
    }

    #[test]
    fn what_is_not_json_stays_an_error() {
        for text in [
            "01",
            "1.",
            ".5",
            "+1",
            "1e",
            "--1",
            "1-1",
            "{\"a\":1,\"a\":2}",
            "\"\\",
            "NaN",
            "[1 2]",
            "{1.5:2}",
            "{1.5 :2}",
        ] {
            assert!(normalise(text.as_bytes()).is_err(), "{text}");
        }
    }

    proptest! {
        #[test]
        fn arbitrary_bytes_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _outcome = normalise(&bytes);
        }

        #[test]
        fn what_comes_out_has_a_canonical_form(text in "[\\[\\]{}:,\"a-c0-9.eE+\\- ]{0,60}") {
            if let Ok(value) = normalise(text.as_bytes()) {
                prop_assert!(canonical::to_vec(&value).is_ok());
            }
        }
    }
}
