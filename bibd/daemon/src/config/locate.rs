//! Where in a YAML or TOML file a key stands: for messages alone, so it may fail to find it and never fails otherwise.

/// The line (from 1) of the dotted `key`, or of the nearest parent that can be found.
pub(super) fn line_of(text: &str, key: &str, is_toml: bool) -> Option<usize> {
    let keys: Vec<&str> = key.split('.').collect();
    let found = if is_toml { toml(text) } else { yaml(text) };
    (1..=keys.len()).rev().find_map(|length| {
        let wanted = keys[..length].join(".");
        found.iter().find(|(path, _)| *path == wanted).map(|(_, line)| *line)
    })
}

/// The line (from 1) where item `at` of the list under `key` begins.
pub(super) fn line_of_item(text: &str, key: &str, at: usize, is_toml: bool) -> Option<usize> {
    if is_toml {
        let header = format!("[[{key}]]");
        return text.lines().enumerate().filter(|(_, line)| line.trim() == header).nth(at).map(|(n, _)| n + 1);
    }
    let (_, begin) = yaml(text).into_iter().find(|(path, _)| path == key)?;
    let indent = |line: &str| line.len() - line.trim_start().len();
    let of_key = text.lines().nth(begin - 1).map(indent)?;
    let mut depth = None;
    let mut items = Vec::new();
    for (number, line) in text.lines().enumerate().skip(begin) {
        let content = line.trim_start();
        if content.is_empty() || content.starts_with('#') {
            continue;
        }
        let is_item = content == "-" || content.starts_with("- ");
        if indent(line) < of_key || (indent(line) == of_key && !is_item) {
            break;
        }
        if is_item && *depth.get_or_insert(indent(line)) == indent(line) {
            items.push(number + 1);
        }
    }
    items.get(at).copied()
}

/// Keys of block-style YAML by indentation.
fn yaml(text: &str) -> Vec<(String, usize)> {
    let mut stack: Vec<(usize, String)> = Vec::new();
    let mut found = Vec::new();
    for (number, line) in text.lines().enumerate() {
        let content = line.trim_start();
        if content.is_empty() || content.starts_with(['#', '-']) {
            continue;
        }
        let Some((name, _)) = content.split_once(':') else { continue };
        let indent = line.len() - content.len();
        stack.retain(|(depth, _)| *depth < indent);
        stack.push((indent, name.trim_matches(['"', '\'', ' ']).to_owned()));
        found.push((path(&stack), number + 1));
    }
    found
}

fn path(stack: &[(usize, String)]) -> String {
    stack.iter().map(|(_, name)| name.as_str()).collect::<Vec<_>>().join(".")
}

/// Keys of TOML by table headers.
fn toml(text: &str) -> Vec<(String, usize)> {
    let mut table = String::new();
    let mut found = Vec::new();
    for (number, line) in text.lines().enumerate() {
        let content = line.trim();
        if let Some(name) = content.strip_prefix('[').and_then(|rest| rest.split(']').next()) {
            table = name.trim_matches('[').trim().to_owned();
            found.push((table.clone(), number + 1));
        } else if let Some((name, _)) = content.split_once('=') {
            let name = name.trim().trim_matches(['"', '\'']);
            let full = if table.is_empty() { name.to_owned() } else { format!("{table}.{name}") };
            found.push((full, number + 1));
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn finds_keys_in_both_formats() {
        let yaml = "# c\ngrpc:\n  listen: [\"a\"]\n  rate_limit:\n    burst: 3\nlog:\n  level: info\n";
        for (key, line) in [("grpc.listen", 3), ("grpc.rate_limit.burst", 5), ("log.level", 7), ("log.nothing", 6)] {
            assert_eq!(line_of(yaml, key, false), Some(line), "{key}");
        }
        let toml = "data_dir = \"x\"\n[grpc]\nreflection = true\n[grpc.rate_limit]\nburst = 3\n";
        for (key, line) in [("data_dir", 1), ("grpc.reflection", 3), ("grpc.rate_limit.burst", 5)] {
            assert_eq!(line_of(toml, key, true), Some(line), "{key}");
        }
        assert_eq!(line_of("", "a.b", false), None);
    }

    #[test]
    fn finds_items_of_lists_in_both_formats() {
        let nested =
            "audit:\n  export:\n    - name: a\n      to:\n        - x\n\n    # c\n    - name: b\n  other: 1\n    - c\n";
        let flat = "audit:\n  export:\n  - name: a\n  - name: b\n  other:\n  - c\n";
        let toml = "[[audit.export]]\nname = \"a\"\n[audit.export.to]\n[[audit.export]]\n";
        for (text, is_toml, lines) in [
            (nested, false, [Some(3), Some(8), None]),
            (flat, false, [Some(3), Some(4), None]),
            (toml, true, [Some(1), Some(4), None]),
            ("audit: {export: [{name: a}]}", false, [None; 3]),
        ] {
            for (at, line) in lines.into_iter().enumerate() {
                assert_eq!(line_of_item(text, "audit.export", at, is_toml), line, "{text}{at}");
            }
        }
    }
}
