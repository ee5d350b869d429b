//! `cargo xtask hardening`: `docs/hardening.md`, the checklist of `bib admin db audit` on every provisioner, each item
//! with the test that breaks exactly it.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;

use anyhow::{Context as _, bail, ensure};

use crate::engines::Engine;
use crate::image;
use crate::node::{Node, Programs, passable_directory};
use crate::process::{capture, cargo, root, run};

/// Where the tests are that break one item each, whatever runs the server.
const TESTS: &[&str] = &["bibd/postgres/tests/checklist.rs", "bibd/postgres/src/checklist/server.rs"];
/// Those of a process and of containers.
const TESTS_HERE: &[&str] = &["bibd/postgres/tests/walls.rs"];
/// Those of a pod, which is spoken to over TCP.
const TESTS_OF_PODS: &[&str] = &["bibd/postgres/tests/kubernetes/life.rs", "bibd/postgres/tests/tcp.rs"];
/// The test of a whole node on a pod: there is no cluster here but the double of one, which is the tests'.
const NODE_ON_A_POD: &str = "binary(kubernetes_node) & test(=a_node_lives_on_a_pod)";
/// It looks at whole servers: an item in it is not broken there.
const POSITIVE: &str = "a_fresh_server_passes_every_item";
const HEAD: &str = "# Hardening of the managed PostgreSQL\n\n\
    Made by `cargo xtask hardening`, never edited: what `bib admin db audit -o markdown` prints on a fresh node of each\n\
    provisioner, and for each item the test that breaks it and sees that exactly it is named. `cargo xtask ci` makes all\n\
    of it again and fails when an item fails or has no such test.\n";

/// Makes the page.
///
/// # Errors
/// When an engine cannot be had, an item fails, or has no test.
pub fn write(programs: &Programs) -> anyhow::Result<()> {
    let page = page(programs)?;
    fs::write(root().join("docs/hardening.md"), page).context("write docs/hardening.md")
}

/// Looks at every provisioner, and writes nothing.
///
/// # Errors
/// As [`write`].
pub fn check(programs: &Programs) -> anyhow::Result<()> {
    page(programs).map(drop)
}

fn page(programs: &Programs) -> anyhow::Result<String> {
    image::ensure()?;
    let tests = negative_tests(&[TESTS, TESTS_HERE].concat())?;
    let mut page = HEAD.to_owned();
    let grounds = [None].into_iter().chain(Engine::ALL.map(Some));
    for engine in grounds {
        let (title, findings) = audit(programs, engine)?;
        page.push_str(&format!("\n## {title}\n\n"));
        page.push_str(&with_tests(&findings, &tests)?);
    }
    let (title, findings) = audit_pod(programs)?;
    page.push_str(&format!("\n## {title}\n\n"));
    page.push_str(&with_tests(&findings, &negative_tests(&[TESTS, TESTS_OF_PODS].concat())?)?);
    Ok(page)
}

/// The same from a node whose database is a pod, over the tests' double of a cluster.
fn audit_pod(programs: &Programs) -> anyhow::Result<(String, String)> {
    let directory = passable_directory(None)?;
    let out = directory.path().join("checklist");
    let mut test = cargo();
    test.args(["nextest", "run", "--workspace", "--locked", "--filterset", NODE_ON_A_POD]);
    run(test.env("BIB_TEST_BIB", &programs.bib).env("BIB_TEST_CHECKLIST", &out))?;
    let text = fs::read_to_string(&out).context("read what the test of a pod wrote")?;
    let (title, said) = text.split_once('\n').context("the test of a pod wrote no title")?;
    Ok((format!("{title}, over a double of the API (docs/not-here.md)"), said.to_owned()))
}

/// The command's own table, from a node that was just made.
fn audit(programs: &Programs, engine: Option<Engine>) -> anyhow::Result<(String, String)> {
    let directory = passable_directory(None)?;
    let mut node = Node::new(programs.clone(), directory.path());
    if let Some(engine) = engine {
        node.in_a_container(engine.socket(), image::IMAGE);
    }
    node.start()?;
    let status = node.ask(&["admin", "db", "status"])?;
    let of = |name: &str| status[0][name].as_str().map(str::to_owned).unwrap_or_default();
    let title = match engine {
        None => format!("PostgreSQL {}, a process", of("version")),
        Some(engine) => {
            let version = engine.version()?;
            format!("PostgreSQL {}, a container of {version}", of("version"))
        }
    };
    let said = capture(&mut node.bib(["admin", "db", "audit", "-o", "markdown"]))?;
    node.stop()?;
    if engine.is_some() {
        // With its container, which is nobody's when the directory is gone.
        capture(&mut node.cleanup())?;
    }
    Ok((title, said))
}

/// The table with one column more.
fn with_tests(said: &str, tests: &BTreeMap<String, BTreeSet<String>>) -> anyhow::Result<String> {
    let mut out = String::new();
    for line in said.lines().filter(|line| !line.starts_with("# ")) {
        let cells: Vec<&str> = line.split(" | ").collect();
        let first = cells.first().map(|cell| cell.trim_start_matches("| ")).unwrap_or_default();
        let more = if line.starts_with("| item") {
            " negative test |".to_owned()
        } else if line.starts_with("|---") {
            "---|".to_owned()
        } else if first.starts_with("C.") {
            ensure!(cells.get(1) != Some(&"fail"), "an item fails: {line}");
            let applies = cells.get(1) != Some(&"not-applicable");
            match tests.get(first) {
                Some(names) => {
                    let names: Vec<String> = names.iter().map(|name| format!("`{name}`")).collect();
                    format!(" {} |", names.join(", "))
                }
                None if applies => bail!("no test breaks {first}"),
                None => "  |".to_owned(),
            }
        } else {
            String::new()
        };
        out.push_str(line);
        out.push_str(&more);
        out.push('\n');
    }
    Ok(format!("{}\n", out.trim()))
}

/// For each item the tests that name it: in their own lines, or in those of a table that they walk through.
fn negative_tests(paths: &[&str]) -> anyhow::Result<BTreeMap<String, BTreeSet<String>>> {
    let mut all: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
    for path in paths {
        let text = fs::read_to_string(root().join(path)).with_context(|| format!("read {path}"))?;
        for (item, tests) in named_in(&text) {
            all.entry(item).or_default().extend(tests);
        }
    }
    Ok(all)
}

fn named_in(text: &str) -> BTreeMap<String, BTreeSet<String>> {
    // Blocks that begin at the left margin: each a test, a table, or something else.
    let mut blocks: Vec<(String, String)> = Vec::new();
    for line in text.lines() {
        let words = line.trim_start_matches("async ");
        let outer = ["fn ", "const "].iter().find_map(|word| words.strip_prefix(word));
        // A unit test stands in a module.
        let name = outer.or_else(|| words.trim_start().strip_prefix("fn ").filter(|name| name.starts_with("names_")));
        if let Some(name) = name {
            let end = name.find(|c: char| !c.is_ascii_alphanumeric() && c != '_').unwrap_or(name.len());
            blocks.push((name[..end].to_owned(), String::new()));
        }
        if let Some((_, body)) = blocks.last_mut() {
            body.push_str(line);
            body.push('\n');
        }
    }
    let is_test = |name: &str| name.starts_with("names_") && name != POSITIVE;
    let mut all: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
    for (name, body) in blocks.iter().filter(|(name, _)| is_test(name)) {
        let walked = blocks.iter().filter(|(table, _)| !is_test(table) && mentions(body, table)).map(|(_, rows)| rows);
        for item in [body].into_iter().chain(walked).flat_map(|text| items(text)) {
            all.entry(item).or_default().insert(name.clone());
        }
    }
    all
}

fn mentions(body: &str, table: &str) -> bool {
    table.chars().all(|c| c.is_ascii_uppercase() || c == '_') && body.contains(table)
}

/// Items such as `C.2-13`, in quotes.
fn items(text: &str) -> Vec<String> {
    let quoted = text.split('"').filter(|word| word.starts_with("C."));
    quoted.filter(|word| word.len() < 8 && word.contains('-')).map(str::to_owned).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_item_is_found_in_the_test_or_in_the_table_that_it_walks() {
        let text = "const ROWS: &[(&str, &str)] = &[\n    (\"C.2-13\", \"x\"),\n];\n\nasync fn names_a() {\n    for row in ROWS {}\n}\n\
                    fn names_b() {\n    check(&[\"C.1-3\"]);\n}\nfn a_fresh_server_passes_every_item() {\n    \"C.1-1\";\n}\n";
        let found = named_in(text);
        let keys: Vec<(&str, Vec<&str>)> =
            found.iter().map(|(item, tests)| (item.as_str(), tests.iter().map(String::as_str).collect())).collect();
        assert_eq!(keys, [("C.1-3", vec!["names_b"]), ("C.2-13", vec!["names_a"])]);
    }

    #[test]
    fn a_failed_item_and_one_without_a_test_are_refused() {
        let tests = BTreeMap::from([("C.1-3".to_owned(), BTreeSet::from(["names_b".to_owned()]))]);
        let table = "# x\n\n| item | status | what |\n|---|---|---|\n| C.1-3 | pass | y |\n";
        let page = with_tests(table, &tests).unwrap();
        assert!(page.ends_with("| C.1-3 | pass | y | `names_b` |\n"), "{page}");
        assert!(with_tests(&table.replace("pass", "fail"), &tests).is_err());
        assert!(with_tests(table, &BTreeMap::new()).is_err());
        assert!(with_tests(&table.replace("pass", "not-applicable"), &BTreeMap::new()).is_ok());
    }
}
