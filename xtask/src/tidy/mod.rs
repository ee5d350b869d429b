//! `cargo xtask tidy`: the rules that the compiler cannot check, each a small function over the tree of files.
//!
//! A rule takes [`Tree`] and returns what it found, each finding with how to repair it. Nothing here changes a file.

use std::collections::BTreeMap;
use std::process::Command;

use anyhow::{Context as _, bail};

use crate::process::{capture, root};

mod docs;
mod doors;
mod habits;

/// Every file that is committed or about to be: path from the root, text (`None` when it is not UTF-8).
#[derive(Debug, Default)]
pub struct Tree(BTreeMap<String, Option<String>>);

impl Tree {
    /// The repository's files, without what git ignores.
    ///
    /// # Errors
    /// When git does not answer or a file cannot be read.
    pub fn of_repository() -> anyhow::Result<Self> {
        let root = root();
        let list = ["ls-files", "-z", "--cached", "--others", "--exclude-standard"];
        let names = capture(Command::new("git").current_dir(&root).args(list))?;
        let mut files = BTreeMap::new();
        for name in names.split('\0').filter(|name| !name.is_empty()) {
            let path = root.join(name);
            // Deleted but not yet committed so, or a link.
            if !path.symlink_metadata().is_ok_and(|data| data.is_file()) {
                continue;
            }
            let bytes = std::fs::read(&path).with_context(|| format!("read `{name}`"))?;
            files.insert(name.to_owned(), String::from_utf8(bytes).ok());
        }
        Ok(Self(files))
    }

    /// Whether there is a file of this path.
    #[must_use]
    pub fn has(&self, path: &str) -> bool {
        self.0.contains_key(path)
    }

    /// The text of a file, when it is there and text.
    #[must_use]
    pub fn text(&self, path: &str) -> Option<&str> {
        self.0.get(path)?.as_deref()
    }

    /// All paths, in order.
    pub fn paths(&self) -> impl Iterator<Item = &str> {
        self.0.keys().map(String::as_str)
    }

    /// Path and text of every text file whose path ends so.
    pub fn texts<'a>(&'a self, ending: &'a str) -> impl Iterator<Item = (&'a str, &'a str)> {
        self.0
            .iter()
            .filter(move |(path, _)| path.ends_with(ending))
            .filter_map(|(path, text)| Some((path.as_str(), text.as_deref()?)))
    }

    #[cfg(test)]
    fn of(files: &[(&str, &str)]) -> Self {
        Self(files.iter().map(|(path, text)| ((*path).to_owned(), Some((*text).to_owned()))).collect())
    }
}

/// Where, what, and how to repair it, in one line.
pub type Finding = String;

/// A rule.
type Rule = fn(&Tree) -> Vec<Finding>;

/// Every rule with its name.
const RULES: &[(&str, Rule)] = &[
    ("sql-at-home", doors::sql_at_home),
    ("assert-sql-safe", doors::assert_sql_safe_in_listed_places),
    ("status-at-the-edge", doors::status_at_the_edge),
    ("libraries-in-their-rooms", doors::libraries_in_their_rooms),
    ("bib-without-bibd", doors::bib_without_bibd),
    ("file-length", habits::file_length),
    ("ignored-tests", habits::no_ignored_tests),
    ("top-level", habits::top_level_folders),
    ("paths-of-a-machine", habits::no_paths_of_a_machine),
    ("purposes", habits::dependencies_have_a_purpose),
    ("lints", habits::crates_take_the_lints),
    ("migrations", habits::migrations_are_pairs),
    ("error-pages", docs::error_codes_have_pages),
    ("benchmarks", docs::benchmarks_are_generated),
    ("two-commands", docs::readme_shows_the_commands),
    ("project-files", docs::project_files_are_there),
    ("cli-page", docs::cli_page_names_every_command),
];

/// Checks every rule.
///
/// # Errors
/// When one found something: all findings are printed first.
pub fn run() -> anyhow::Result<()> {
    let tree = Tree::of_repository()?;
    let mut count = 0;
    for (name, rule) in RULES {
        for finding in rule(&tree) {
            println!("{name}: {finding}");
            count += 1;
        }
    }
    if count > 0 {
        bail!("tidy found {count} things to repair");
    }
    println!("tidy: {} rules hold for {} files", RULES.len(), tree.0.len());
    Ok(())
}

/// Whether `word` occurs in `text` with no letter, digit or underscore on either side.
fn has_word(text: &str, word: &str) -> bool {
    let part = |c: char| c.is_alphanumeric() || c == '_';
    text.match_indices(word).any(|(at, _)| {
        let before = text[..at].chars().next_back();
        let after = text[at + word.len()..].chars().next();
        !before.is_some_and(part) && !after.is_some_and(part)
    })
}

/// The lines of Rust code with their numbers from 1: comments are left out, so that prose may name what code may not.
fn code_lines(text: &str) -> impl Iterator<Item = (usize, &str)> {
    text.lines().enumerate().filter(|(_, line)| !line.trim_start().starts_with("//")).map(|(at, line)| (at + 1, line))
}

/// Whether a path is a test's: tests may reach behind the doors to play the attacker.
fn is_test(path: &str) -> bool {
    path.contains("/tests/") || path.starts_with("xtask/")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_have_edges() {
        assert!(has_word("use tonic::{Code, Status};", "Status"));
        assert!(!has_word("StatusCode", "Status"));
        assert!(!has_word("my_Status", "Status"));
    }

    #[test]
    fn prose_is_not_code() {
        let lines: Vec<_> = code_lines("//! sqlx::x\nlet a = 1;\n  // sqlx::y\n").collect();
        assert_eq!(lines, [(2, "let a = 1;")]);
    }
}
