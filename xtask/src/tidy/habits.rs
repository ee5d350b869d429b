//! Habits: length, names, places, purposes.

use std::collections::{BTreeMap, BTreeSet};

use super::{Finding, Tree, code_lines};

/// A file longer than this is not read in a sitting.
const MOST_LINES: usize = 600;
/// The top level is fixed.
const TOP_LEVEL: &[&str] = &["bib", "bibd", "proto", "migrations", "deploy", "docs", "xtask"];
/// Kinds of files in which a path of somebody's machine is a mistake.
const TEXT_ENDINGS: &[&str] = &[".rs", ".md", ".toml", ".yaml", ".yml", ".json", ".py", ".sh", ".sql", ".proto"];

/// No Rust file over 600 lines.
pub(super) fn file_length(tree: &Tree) -> Vec<Finding> {
    let long =
        tree.texts(".rs").map(|(path, text)| (path, text.lines().count())).filter(|(_, lines)| *lines > MOST_LINES);
    long.map(|(path, lines)| format!("{path} has {lines} lines, at most {MOST_LINES}: split it by what its parts own"))
        .collect()
}

/// No test is ignored: it runs, or it goes.
pub(super) fn no_ignored_tests(tree: &Tree) -> Vec<Finding> {
    let marker = concat!("#[", "ignore");
    let mut findings = Vec::new();
    for (path, text) in tree.texts(".rs") {
        for (number, line) in code_lines(text) {
            if line.trim_start().starts_with(marker) {
                findings
                    .push(format!("{path}:{number} ignores a test: make it run, or say loudly that a part is missing"));
            }
        }
    }
    findings
}

/// Only the fixed folders at the top, and those that begin with a dot.
pub(super) fn top_level_folders(tree: &Tree) -> Vec<Finding> {
    let folders: BTreeSet<&str> = tree.paths().filter_map(|path| path.split_once('/')).map(|(top, _)| top).collect();
    let odd = folders.into_iter().filter(|top| !top.starts_with('.') && !TOP_LEVEL.contains(top));
    odd.map(|top| format!("{top}/ is not a folder of the top level: put it into one of {}", TOP_LEVEL.join(", ")))
        .collect()
}

/// No path of the machine that something was written on.
pub(super) fn no_paths_of_a_machine(tree: &Tree) -> Vec<Finding> {
    // In two parts, or this file would be its own finding.
    let paths = [concat!("/wo", "rk/"), concat!("/ro", "ot/")];
    let mut findings = Vec::new();
    for ending in TEXT_ENDINGS {
        for (path, text) in tree.texts(ending) {
            for (at, line) in text.lines().enumerate() {
                if let Some(found) = paths.iter().find(|part| line.contains(**part)) {
                    findings.push(format!("{path}:{} holds `{found}`: nobody else has that path", at + 1));
                }
            }
        }
    }
    findings
}

/// Every dependency of the workspace says what it is for.
pub(super) fn dependencies_have_a_purpose(tree: &Tree) -> Vec<Finding> {
    let text = tree.text("Cargo.toml").unwrap_or_default();
    let mut inside = false;
    let mut findings = Vec::new();
    for (at, line) in text.lines().enumerate() {
        if line.starts_with('[') {
            inside = line == "[workspace.dependencies]";
        } else if inside && line.contains(" = ") && !line.starts_with('#') && !line.contains("path = ") {
            let purpose = line.rsplit_once(" # ").map_or("", |(_, purpose)| purpose);
            if purpose.is_empty() {
                let name = line.split(' ').next().unwrap_or_default();
                findings.push(format!(
                    "Cargo.toml:{} `{name}` has no purpose: end the line with `# what it is for`",
                    at + 1
                ));
            }
        }
    }
    findings
}

/// Every crate takes the lints of the workspace.
pub(super) fn crates_take_the_lints(tree: &Tree) -> Vec<Finding> {
    let members = tree.texts("Cargo.toml").filter(|(path, _)| *path != "Cargo.toml");
    members
        .filter(|(_, text)| !text.contains("[lints]\nworkspace = true"))
        .map(|(path, _)| format!("{path} does not take the lints: add `[lints]` with `workspace = true`"))
        .collect()
}

/// Migrations are `NNNN_verb_noun.{up,down}.sql`, in pairs, numbered without a gap.
pub(super) fn migrations_are_pairs(tree: &Tree) -> Vec<Finding> {
    let mut findings = Vec::new();
    let mut directions: BTreeMap<(&str, &str), BTreeSet<&str>> = BTreeMap::new();
    for path in tree.paths().filter(|path| path.starts_with("migrations/") && path.ends_with(".sql")) {
        let (folder, file) = path.rsplit_once('/').unwrap_or(("", path));
        match file.trim_end_matches(".sql").rsplit_once('.') {
            Some((name, direction @ ("up" | "down"))) if is_migration_name(name) => {
                directions.entry((folder, name)).or_default().insert(direction);
            }
            _ => findings.push(format!("{path} is not named NNNN_verb_noun.up.sql or .down.sql")),
        }
    }
    let mut next: BTreeMap<&str, u32> = BTreeMap::new();
    for ((folder, name), found) in directions {
        if found.len() != 2 {
            findings.push(format!("{folder}/{name} goes one way: write both .up.sql and .down.sql"));
        }
        let expected = next.entry(folder).or_insert(1);
        if name[..4].parse() != Ok(*expected) {
            findings.push(format!("{folder}/{name} has the wrong number: {expected:04} comes next"));
        }
        *expected += 1;
    }
    findings
}

fn is_migration_name(name: &str) -> bool {
    let (number, words) = name.split_at_checked(4).unwrap_or((name, ""));
    let word = |word: &str| !word.is_empty() && word.chars().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit());
    number.chars().all(|c| c.is_ascii_digit())
        && words.strip_prefix('_').is_some_and(|words| words.contains('_') && words.split('_').all(word))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn long_files_and_ignored_tests_are_found() {
        let long = "x\n".repeat(MOST_LINES + 1);
        let ignored = format!("{}ore]\n", concat!("    #[", "ign"));
        let tree = Tree::of(&[("a/long.rs", &long), ("a/ok.rs", "x\n"), ("a/tests/t.rs", &ignored)]);
        assert_eq!(file_length(&tree).len(), 1);
        assert_eq!(no_ignored_tests(&tree).len(), 1);
    }

    #[test]
    fn the_top_level_is_fixed() {
        let tree = Tree::of(&[("bib/a", ""), (".ci/run", ""), ("README.md", ""), ("scripts/a.sh", "")]);
        assert_eq!(top_level_folders(&tree).len(), 1);
    }

    #[test]
    fn paths_of_a_machine_are_found() {
        let line = format!("see {}main\n", concat!("/wo", "rk/"));
        let tree = Tree::of(&[("docs/a.md", &line), ("docs/b.md", "https://w3id.org/ro/terms/workflow-run\n")]);
        assert_eq!(no_paths_of_a_machine(&tree).len(), 1);
    }

    #[test]
    fn a_dependency_without_a_purpose_is_found() {
        let text = "[workspace.dependencies]\nbib-core = { path = \"bib/core\" }\nhex = \"1\" # text\nrand = \"1\"\n[profile]\nx = 1\n";
        let found = dependencies_have_a_purpose(&Tree::of(&[("Cargo.toml", text)]));
        assert_eq!(found.len(), 1, "{found:?}");
        assert!(found[0].starts_with("Cargo.toml:4 `rand`"), "{found:?}");
    }

    #[test]
    fn a_crate_without_the_lints_is_found() {
        let tree = Tree::of(&[("a/Cargo.toml", "[lints]\nworkspace = true\n"), ("b/Cargo.toml", "[package]\n")]);
        assert_eq!(crates_take_the_lints(&tree).len(), 1);
    }

    #[test]
    fn migrations_go_both_ways_and_are_numbered() {
        let good = [
            ("migrations/postgres/0001_create_users.up.sql", ""),
            ("migrations/postgres/0001_create_users.down.sql", ""),
        ];
        assert!(migrations_are_pairs(&Tree::of(&good)).is_empty());
        for bad in
            ["0001_create.up.sql", "1_create_users.up.sql", "0003_create_users.up.sql", "0001_Create_users.up.sql"]
        {
            let path = format!("migrations/postgres/{bad}");
            assert!(!migrations_are_pairs(&Tree::of(&[(&path, "")])).is_empty(), "{bad}");
        }
    }
}
