//! Objects as YAML that old and new readers understand alike: `kubectl` reads YAML 1.1, where `on` and `no` are no text,
//! and libraries for 1.2 leave them bare.

use serde_json::Value;

/// One document, which begins with `---`.
pub(super) fn document(value: &Value) -> String {
    let mut text = "---\n".to_owned();
    write(&mut text, value, 0, false);
    text
}

/// The fields or items of `value`, each on its line. The first is on the dash's when this is an item.
fn write(text: &mut String, value: &Value, depth: usize, in_list: bool) {
    let indent = "  ".repeat(depth);
    match value {
        Value::Object(fields) => {
            for (n, (name, value)) in fields.iter().enumerate() {
                // The first field of an item stands on the line of its dash.
                if n > 0 || !in_list {
                    text.push_str(&indent);
                }
                text.push_str(&scalar(name));
                text.push(':');
                below(text, value, depth);
            }
        }
        Value::Array(items) => {
            for item in items {
                text.push_str(&indent);
                text.push('-');
                match item {
                    Value::Object(fields) if !fields.is_empty() => {
                        text.push(' ');
                        write(text, item, depth + 1, true);
                    }
                    Value::Array(inner) if !inner.is_empty() => {
                        text.push('\n');
                        write(text, item, depth + 1, false);
                    }
                    _ => below(text, item, depth),
                }
            }
        }
        _ => {}
    }
}

/// What follows `key:` or `-`, with the end of the line.
fn below(text: &mut String, value: &Value, depth: usize) {
    match value {
        Value::Object(fields) if !fields.is_empty() => {
            text.push('\n');
            write(text, value, depth + 1, false);
        }
        Value::Array(items) if !items.is_empty() => {
            text.push('\n');
            write(text, value, depth, false);
        }
        Value::String(string) if is_block(string) => {
            text.push_str(" |\n");
            for line in string.lines() {
                if !line.is_empty() {
                    text.push_str(&"  ".repeat(depth + 1));
                    text.push_str(line);
                }
                text.push('\n');
            }
        }
        Value::String(string) => {
            text.push(' ');
            text.push_str(&scalar(string));
            text.push('\n');
        }
        other => {
            text.push_str(&format!(" {other}\n"));
        }
    }
}

/// Whether a block keeps the string to the byte.
fn is_block(string: &str) -> bool {
    let printable = string.chars().all(|c| c == '\n' || (' '..='~').contains(&c));
    printable && string.ends_with('\n') && !string.ends_with("\n\n") && !string.starts_with([' ', '\n'])
}

/// Bare where no reader can take it for anything but text, else in double quotes.
fn scalar(string: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '/' | '-');
    let word = ["y", "n", "yes", "no", "on", "off", "true", "false", "null"];
    let bare = string.starts_with(|c: char| c.is_ascii_alphabetic())
        && string.chars().all(plain)
        && !word.contains(&string.to_ascii_lowercase().as_str());
    if bare {
        return string.to_owned();
    }
    let escaped: String = string
        .chars()
        .map(|c| match c {
            '"' | '\\' => format!("\\{c}"),
            '\n' => "\\n".to_owned(),
            ' '..='~' => c.to_string(),
            c if u32::from(c) <= 0xffff => format!("\\u{:04x}", u32::from(c)),
            c => format!("\\U{:08x}", u32::from(c)),
        })
        .collect();
    format!("\"{escaped}\"")
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;

    #[test]
    fn reads_like_what_people_write() {
        let value = json!({
            "kind": "Thing",
            "on": "on",
            "list": [{ "a": 1, "b": ["x", "no"] }, "plain", 5, [], {}],
            "text": "one\n  two\n\nthree\n",
            "odd": " leads\n",
            "none": {},
            "deep": { "er": { "still": true } },
        });
        expect_test::expect![[r#"
            ---
            deep:
              er:
                still: true
            kind: Thing
            list:
            - a: 1
              b:
              - x
              - "no"
            - plain
            - 5
            - []
            - {}
            none: {}
            odd: " leads\n"
            "on": "on"
            text: |
              one
                two

              three
        "#]]
        .assert_eq(&document(&value));
    }

    fn values() -> impl Strategy<Value = Value> {
        let leaf = prop_oneof![
            Just(Value::Null),
            any::<bool>().prop_map(Value::from),
            any::<i64>().prop_map(Value::from),
            "[a-zA-Z0-9 :#'\"\n\t.|>-]{0,20}".prop_map(Value::from),
            any::<String>().prop_map(Value::from),
        ];
        leaf.prop_recursive(4, 40, 5, |inner| {
            prop_oneof![
                prop::collection::vec(inner.clone(), 0..5).prop_map(Value::from),
                prop::collection::btree_map("[a-z: \n-]{0,6}", inner, 0..5).prop_map(|map| map.into_iter().collect()),
            ]
        })
    }

    proptest! {
        #[test]
        fn is_read_back_as_it_was(value in prop::collection::btree_map("[a-z]{1,5}", values(), 1..5)) {
            let value: Value = value.into_iter().collect();
            let read: Value = serde_yaml_ng::from_str(&document(&value)).unwrap();
            prop_assert_eq!(read, value);
        }
    }
}
