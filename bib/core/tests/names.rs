//! The one parser of references, against a table and against itself.

#![allow(clippy::unwrap_used)]

use std::fmt::Write as _;
use std::path::Path;

use bib_core::PeerId;
use bib_core::name::{DatasetName, FullName, Owner, Reference, Segment, TagName, TopicName, VersionSelector};
use bib_core::path::EntryPath;
use proptest::prelude::*;

/// The input of a row: `"text"`, `"text"*count`, or that with `@`, meaning `a/b@..`.
fn input(cell: &str) -> String {
    let end = cell.rfind('"').unwrap() + 1;
    let text: String = serde_json::from_str(&cell[..end]).unwrap();
    let (count, version) = match cell[end..].strip_suffix('@') {
        Some(count) => (count, true),
        None => (&cell[end..], false),
    };
    let text = text.repeat(count.strip_prefix('*').map_or(1, |count| count.parse().unwrap()));
    if version { format!("a/b@{text}") } else { text }
}

fn answer(text: &str) -> String {
    let reference: Reference = match text.parse() {
        Ok(reference) => reference,
        Err(error) => return format!("error: {error}"),
    };
    let mut out = String::from("ok");
    match &reference.owner {
        Some(Owner::Alias(alias)) => write!(out, " alias={alias}").unwrap(),
        Some(Owner::Peer(peer)) => write!(out, " peer={peer}").unwrap(),
        None => {}
    }
    write!(out, " name={}", reference.name).unwrap();
    match &reference.version {
        Some(VersionSelector::Latest) => out.push_str(" latest"),
        Some(VersionSelector::Tag(tag)) => write!(out, " tag={tag}").unwrap(),
        Some(VersionSelector::Prefix(prefix)) => write!(out, " prefix={prefix}").unwrap(),
        None => {}
    }
    if let Some(path) = &reference.path {
        write!(out, " path={path}").unwrap();
    }
    out
}

#[test]
fn references_are_read_as_the_table_says() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("golden/references.txt");
    let table = std::fs::read_to_string(&path).unwrap();
    let mut found = String::new();
    let mut rows = 0;
    for row in table.lines() {
        if row.starts_with('#') {
            writeln!(found, "{row}").unwrap();
            continue;
        }
        rows += 1;
        let (cell, _) = row.split_once('\t').unwrap();
        let answer = answer(&input(cell));
        assert!(answer.chars().all(|c| !c.is_control()), "{cell}: an answer that is not safe to print");
        writeln!(found, "{cell}\t{answer}").unwrap();
    }
    assert!(rows >= 100, "{rows} rows");
    if std::env::var_os("UPDATE_GOLDEN").is_some_and(|value| value == "1") {
        std::fs::write(&path, &found).unwrap();
        return;
    }
    for (found, golden) in found.lines().zip(table.lines()) {
        assert_eq!(found, golden);
    }
}

#[test]
fn a_full_name_is_a_topic_or_a_dataset_by_its_depth() {
    let name = |text: &str| FullName::new(text).unwrap();
    assert!(name("a").as_dataset().is_err());
    assert_eq!(name("a").as_topic().unwrap().parent(), None);
    let dataset = name("a/b/c").as_dataset().unwrap();
    assert_eq!((dataset.topic.as_str(), dataset.name.as_str()), ("a/b", "c"));
    assert_eq!(dataset.topic.parent().unwrap().as_str(), "a");
    assert_eq!(dataset.topic.last().as_str(), "b");
    assert!(name("a/b/c/d/e/f/g/h").as_topic().is_err());
    assert!(name("a/b/c/d/e/f/g/h").as_dataset().is_ok());
}

#[test]
fn names_read_back_from_json() {
    let name: DatasetName = serde_json::from_str("\"a/b\"").unwrap();
    assert_eq!(serde_json::to_string(&name).unwrap(), "\"a/b\"");
    assert!(serde_json::from_str::<TopicName>("\"A\"").is_err());
    assert!(serde_json::from_str::<TagName>("\"latest\"").is_err());
}

fn segment() -> impl Strategy<Value = String> {
    "[a-z0-9][a-z0-9._-]{0,12}"
}

fn owner() -> impl Strategy<Value = Owner> {
    prop_oneof![
        segment().prop_map(|text| Owner::Alias(Segment::new(&text).unwrap())),
        any::<[u8; 32]>().prop_map(|key| Owner::Peer(PeerId::from_public_key(key))),
    ]
}

fn version() -> impl Strategy<Value = VersionSelector> {
    prop_oneof![
        Just(VersionSelector::Latest),
        "[a-z][a-z0-9._-]{0,63}"
            .prop_filter_map("not a tag", |text| TagName::new(&text).ok())
            .prop_map(VersionSelector::Tag),
        "[0-9a-f]{8,64}".prop_map(|text| VersionSelector::new(&text).unwrap()),
    ]
}

fn path() -> impl Strategy<Value = EntryPath> {
    prop::collection::vec("[^/\\p{Cc}]{1,20}", 1..5)
        .prop_filter_map("not a path", |segments| EntryPath::new(segments.join("/")).ok())
}

prop_compose! {
    fn reference()(
        owner in prop::option::of(owner()),
        segments in prop::collection::vec(segment(), 1..=8),
        version in prop::option::of(version()),
        path in prop::option::of(path()),
    ) -> Reference {
        let is_dataset = segments.len() > 1;
        let name = FullName::new(&segments.join("/")).unwrap();
        Reference { owner, name, version: version.filter(|_| is_dataset), path: path.filter(|_| is_dataset) }
    }
}

proptest! {
    #[test]
    fn a_reference_reads_back_as_it_was_shown(reference in reference()) {
        prop_assert_eq!(reference.to_string().parse::<Reference>().unwrap(), reference);
    }

    #[test]
    fn no_text_panics_and_what_is_read_reads_the_same_again(text in "\\PC{0,40}|[a-f0-9/@:.]{0,40}") {
        if let Ok(reference) = text.parse::<Reference>() {
            prop_assert_eq!(reference.to_string(), text);
        }
    }
}
