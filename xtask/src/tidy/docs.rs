//! Documents that must say what the code says.

use std::collections::BTreeMap;

use super::{Finding, Tree, has_word};

/// Where the daemon's codes are.
const DAEMON_CODES: &str = "bibd/daemon/src/errors.rs";
/// Where the client's codes are.
const CLIENT_CODES: &str = "bib/client/src/error.rs";
/// What every page of an error has, after its title.
const SECTIONS: [&str; 2] = ["## What happened", "## What to do"];

/// Every code has a page, every page a code, with the same title.
pub(super) fn error_codes_have_pages(tree: &Tree) -> Vec<Finding> {
    let codes = codes(tree);
    let mut findings = Vec::new();
    for (code, title) in &codes {
        let path = format!("docs/errors/{code}.md");
        let Some(page) = tree.text(&path) else {
            findings.push(format!("{code} has no page: write {path}"));
            continue;
        };
        let wanted = format!("# {code}: {title}");
        if page.lines().next() != Some(wanted.as_str()) {
            findings.push(format!("{path} does not begin with `{wanted}`"));
        }
        for section in SECTIONS {
            let filled = page
                .split_once(section)
                .is_some_and(|(_, rest)| rest.split("\n## ").next().is_some_and(|body| !body.trim().is_empty()));
            if !filled {
                findings.push(format!("{path} says nothing under `{section}`"));
            }
        }
    }
    for path in tree.paths() {
        let name = path.strip_prefix("docs/errors/").and_then(|file| file.strip_suffix(".md"));
        if let Some(name) = name.filter(|name| *name != "README" && !codes.contains_key(*name)) {
            findings.push(format!("{path}: there is no code {name}; a code that is gone keeps no page"));
        }
    }
    findings
}

/// Every code with its title, read from the two files that register them.
fn codes(tree: &Tree) -> BTreeMap<String, String> {
    let mut codes = BTreeMap::new();
    // Lines such as `NOT_FOUND = 2, "there is nothing of that name";`
    for line in tree.text(DAEMON_CODES).unwrap_or_default().lines() {
        let Some((name, rest)) = line.trim().split_once(" = ") else { continue };
        let Some((number, title)) = rest.split_once(", \"") else { continue };
        if let (Ok(number), Some(title)) = (number.parse::<u16>(), title.strip_suffix("\";"))
            && name.chars().all(|c| c.is_ascii_uppercase() || c == '_')
        {
            codes.insert(format!("BIB{number:04}"), title.to_owned());
        }
    }
    // Lines such as `pub const NO_NODE: &str = "BIB0500";` after a table of `(code::NO_NODE, "title"),`.
    let client = tree.text(CLIENT_CODES).unwrap_or_default();
    let mut titles = BTreeMap::new();
    for line in client.lines() {
        let line = line.trim();
        if let Some((name, title)) = line.strip_prefix("(code::").and_then(|rest| rest.split_once(", \"")) {
            titles.insert(name, title.trim_end_matches("\"),"));
        }
        let Some((name, code)) = line.strip_prefix("pub const ").and_then(|rest| rest.split_once(": &str = \"")) else {
            continue;
        };
        if let Some(title) = titles.get(name) {
            codes.insert(code.trim_end_matches("\";").to_owned(), (*title).to_owned());
        }
    }
    codes
}

/// `docs/benchmarks.md` is what `docs/benchmarks.json` says.
pub(super) fn benchmarks_are_generated(tree: &Tree) -> Vec<Finding> {
    let (json, page) = (tree.text("docs/benchmarks.json"), tree.text("docs/benchmarks.md"));
    match (json, page) {
        (None, None) => Vec::new(),
        (Some(json), Some(page)) => match crate::report::page_of(json) {
            Ok(expected) if expected == page => Vec::new(),
            Ok(_) => vec![
                "docs/benchmarks.md is not what docs/benchmarks.json says: run `cargo xtask bench --page`".to_owned(),
            ],
            Err(error) => vec![format!("docs/benchmarks.json cannot be read: {error:#}")],
        },
        _ => vec!["docs/benchmarks.json and docs/benchmarks.md belong together: run `cargo xtask bench`".to_owned()],
    }
}

/// The README shows the two commands.
pub(super) fn readme_shows_the_commands(tree: &Tree) -> Vec<Finding> {
    let readme = tree.text("README.md").unwrap_or_default();
    let missing = ["cargo xtask demo", "cargo xtask test"].into_iter().filter(|command| !readme.contains(command));
    missing.map(|command| format!("README.md does not show `{command}`")).collect()
}

/// The files that a project has.
pub(super) fn project_files_are_there(tree: &Tree) -> Vec<Finding> {
    let files = [
        "README.md",
        "CHANGELOG.md",
        "LICENSE-APACHE",
        "LICENSE-MIT",
        "Cargo.lock",
        "deny.toml",
        "clippy.toml",
        "rustfmt.toml",
        ".ci/run",
        "docs/ARCHITECTURE.md",
    ];
    files.into_iter().filter(|file| !tree.has(file)).map(|file| format!("{file} is missing")).collect()
}

/// `docs/cli.md`, once it is there, names every command of `bib`.
pub(super) fn cli_page_names_every_command(tree: &Tree) -> Vec<Finding> {
    let Some(page) = tree.text("docs/cli.md") else { return Vec::new() };
    let mut findings = Vec::new();
    for (path, text) in tree.texts(".rs").filter(|(path, _)| path.starts_with("bib/cli/src/")) {
        for command in subcommands(text) {
            if !has_word(page, &command) {
                findings.push(format!("{path} has the command `{command}`, docs/cli.md does not name it"));
            }
        }
    }
    findings
}

/// The names of the variants of every enum that derives clap's `Subcommand`, as clap names them.
fn subcommands(text: &str) -> Vec<String> {
    let mut names = Vec::new();
    let (mut derived, mut inside) = (false, false);
    for line in text.lines() {
        if line.starts_with("#[derive(") {
            derived = has_word(line, "Subcommand");
        } else if line.contains("enum ") && line.ends_with('{') {
            inside = derived;
            derived = false;
        } else if line.starts_with('}') {
            inside = false;
        } else if inside && line.starts_with("    ") && line[4..].starts_with(|c: char| c.is_ascii_uppercase()) {
            let variant: String = line[4..].chars().take_while(char::is_ascii_alphanumeric).collect();
            names.push(kebab(&variant));
        }
    }
    names
}

/// `DeepClean` is `deep-clean`.
fn kebab(name: &str) -> String {
    let mut text = String::new();
    for c in name.chars() {
        if c.is_ascii_uppercase() && !text.is_empty() {
            text.push('-');
        }
        text.push(c.to_ascii_lowercase());
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    const PAGE: &str = "# BIB0002: nothing there\n\n## What happened\n\nX.\n\n## What to do\n\nY.\n";

    #[test]
    fn codes_and_pages_belong_together() {
        let daemon = (DAEMON_CODES, "codes! {\n    NOT_FOUND = 2, \"nothing there\";\n}\n");
        let client = (
            CLIENT_CODES,
            "    (code::NO_NODE, \"no node\"),\n    pub const NO_NODE: &str = \"BIB0500\";\n    pub const OTHER: &str = \"BIB0200\";\n",
        );
        let good = ("docs/errors/BIB0002.md", PAGE);
        let found = error_codes_have_pages(&Tree::of(&[daemon, client, good, ("docs/errors/BIB0009.md", "")]));
        assert_eq!(found.len(), 2, "{found:?}");
        assert!(found[0].starts_with("BIB0500 has no page"), "{found:?}");
        assert!(found[1].contains("there is no code BIB0009"), "{found:?}");
        let empty = PAGE.replace("Y.", "");
        let found = error_codes_have_pages(&Tree::of(&[daemon, ("docs/errors/BIB0002.md", &empty)]));
        assert_eq!(found, ["docs/errors/BIB0002.md says nothing under `## What to do`"]);
    }

    #[test]
    fn the_readme_shows_both_commands() {
        assert_eq!(readme_shows_the_commands(&Tree::of(&[("README.md", "cargo xtask demo")])).len(), 1);
    }

    #[test]
    fn every_command_has_its_place_on_the_page() {
        let code = "#[derive(Debug, Subcommand)]\nenum C {\n    /// Doc.\n    Publish(Args),\n    DeepClean {\n        field: u8,\n    },\n}\n";
        assert_eq!(subcommands(code), ["publish", "deep-clean"]);
        let tree = Tree::of(&[("bib/cli/src/a.rs", code), ("docs/cli.md", "`bib dataset publish`")]);
        assert_eq!(cli_page_names_every_command(&tree).len(), 1);
    }
}
