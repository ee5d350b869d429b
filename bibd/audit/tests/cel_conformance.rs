//! The part of CEL that rules of alerts use, against the conformance tests of the specification
//! (`cel/`, from <https://github.com/google/cel-spec>, Apache-2.0, as JSON).
//!
//! Left out are tests of protocol buffers, which entries do not have, of checking types before running, which the library
//! does not do, and of `matches`, which rules may not use. Every other test either passes or stands in the list below, so a change of the library shows.
#![allow(clippy::unwrap_used, clippy::print_stderr, reason = "says how much of it was run")]

use std::collections::BTreeSet;

use base64::Engine as _;
use cel::parser::PrattParser;
use cel::{Context, Value};
use serde_json::Value as Json;

const FILES: &[&str] =
    &["basic", "comparisons", "fields", "integer_math", "lists", "logic", "macros", "parse", "string"];

/// What the library does otherwise than the specification says. Rules are not hurt by any of it.
const KNOWN: &[&str] = &[
    // Members between back quotes: rules write `details["a-b"]`.
    "fields/quoted_map_fields/field_access_dash",
    "fields/quoted_map_fields/field_access_dot",
    "fields/quoted_map_fields/field_access_slash",
    "fields/quoted_map_fields/has_field_dash",
    "fields/quoted_map_fields/has_field_dot",
    "fields/quoted_map_fields/has_field_slash",
    // Bytes, which no entry has, with quotation marks between three of their kind.
    "parse/bytes_literals/triple_double_quoted_unescaped_punctuation",
    "parse/bytes_literals/triple_single_quoted_unescaped_punctuation",
];

fn value_of(json: &Json) -> Option<Value> {
    let (kind, value) = json.as_object()?.iter().next()?;
    Some(match kind.as_str() {
        "nullValue" => Value::Null,
        "boolValue" => Value::Bool(value.as_bool()?),
        "int64Value" => Value::Int(value.as_str()?.parse().ok()?),
        "uint64Value" => Value::UInt(value.as_str()?.parse().ok()?),
        "doubleValue" => Value::Float(value.as_f64().or_else(|| value.as_str()?.parse().ok())?),
        "stringValue" => Value::from(value.as_str()?.to_owned()),
        "bytesValue" => Value::Bytes(base64::engine::general_purpose::STANDARD.decode(value.as_str()?).ok()?.into()),
        "listValue" => {
            let items = value.get("values").and_then(Json::as_array).cloned().unwrap_or_default();
            Value::List(items.iter().map(value_of).collect::<Option<Vec<_>>>()?.into())
        }
        "mapValue" => {
            let entries = value.get("entries").and_then(Json::as_array).cloned().unwrap_or_default();
            let mut map = std::collections::HashMap::new();
            for entry in &entries {
                let key: cel::objects::Key = match value_of(&entry["key"])? {
                    Value::Int(n) => n.into(),
                    Value::UInt(n) => n.into(),
                    Value::Bool(b) => b.into(),
                    Value::String(text) => text.as_str().into(),
                    _ => return None,
                };
                map.insert(key, value_of(&entry["value"])?);
            }
            Value::Map(map.into())
        }
        _ => return None,
    })
}

/// Whether a test passed; `None` when it is about what rules do not have.
fn run(test: &Json) -> Option<bool> {
    let text = test["expr"].as_str()?;
    let foreign = ["TestAllTypes", "google.protobuf", "proto2", "proto3", "type(", "dyn(", "timestamp", "duration"];
    let all = test.to_string();
    let is_foreign = foreign.iter().any(|word| all.contains(word)) || text.contains("matches(");
    if test.get("container").is_some() || is_foreign {
        return None;
    }
    let mut context = Context::default();
    if let Some(bindings) = test.get("bindings").and_then(Json::as_object) {
        for (name, binding) in bindings {
            context.add_variable_from_value(name.as_str(), value_of(&binding["value"])?);
        }
    }
    let outcome = match PrattParser::new().parse(text) {
        Ok(expression) => Value::resolve(&expression, &context).map_err(|error| error.to_string()),
        Err(errors) => Err(errors.to_string()),
    };
    match test.get("value") {
        Some(expected) => {
            let expected = value_of(expected)?;
            Some(outcome.is_ok_and(|value| value == expected || (is_nan(&value) && is_nan(&expected))))
        }
        None => Some(outcome.is_err()),
    }
}

fn is_nan(value: &Value) -> bool {
    matches!(value, Value::Float(number) if number.is_nan())
}

#[test]
fn what_rules_use_is_as_the_specification_says() {
    let (mut passed, mut left_out, mut failed) = (0, 0, BTreeSet::new());
    for file in FILES {
        let path = format!("{}/tests/cel/{file}.json", env!("CARGO_MANIFEST_DIR"));
        let suite: Json = serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap();
        for section in suite["sections"].as_array().unwrap() {
            for test in section["tests"].as_array().unwrap() {
                let name = format!("{file}/{}/{}", section["name"].as_str().unwrap(), test["name"].as_str().unwrap());
                match run(test) {
                    None => left_out += 1,
                    Some(true) => passed += 1,
                    Some(false) => {
                        failed.insert(name);
                    }
                }
            }
        }
    }
    eprintln!("{passed} passed, {left_out} left out, {} differ", failed.len());
    let known: BTreeSet<String> = KNOWN.iter().map(|name| (*name).to_owned()).collect();
    assert_eq!(failed, known, "the list of differences is not what it was");
    assert!(passed > 500, "{passed}");
}
