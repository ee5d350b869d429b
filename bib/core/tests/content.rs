//! Content: the cutting rule, what the checker refuses, and that edits stay local.

#![allow(clippy::unwrap_used)]

use std::collections::BTreeMap;

use bib_core::Hash;
use bib_core::content::{
    self, Block, Content, ContentBuilder, ContentError, ContentRoot, Entry, IndexObject, MAX_INDEX_PAGES,
    MAX_PAGE_BYTES, MAX_PAGE_ENTRIES, Page, Summary, TreeChecker, Wanted,
};
use bib_core::path::{EntryPath, LinkTarget};
use proptest::prelude::*;

fn path(text: &str) -> EntryPath {
    EntryPath::new(text).unwrap()
}

fn file(name: &str, body: &str) -> Entry {
    Entry::File { path: path(name), exec: false, sha256: Hash::of(body.as_bytes()), size: body.len() as u64 }
}

/// Builds a content and keeps every block by hash.
fn build(entries: &[Entry]) -> Result<(Content, BTreeMap<Hash, Block>), ContentError> {
    let mut builder = ContentBuilder::new();
    let mut blocks = BTreeMap::new();
    let mut keep = |block: Block| blocks.insert(block.hash, block);
    for entry in entries {
        builder.push(entry)?.map(&mut keep);
    }
    let content = builder.finish()?;
    content.last_page.clone().into_iter().chain(content.index.clone()).chain([content.root.clone()]).for_each(
        |block| {
            keep(block);
        },
    );
    Ok((content, blocks))
}

/// Walks a tree as a stranger's, from its root's hash.
fn check(root: Hash, blocks: &BTreeMap<Hash, Block>) -> Result<(Summary, Vec<Entry>), ContentError> {
    let mut checker = TreeChecker::new(ContentRoot::parse(&blocks[&root].bytes)?);
    let mut entries = Vec::new();
    loop {
        match checker.wanted() {
            Wanted::Index(hash) => checker.index(hash, IndexObject::parse(&blocks[&hash].bytes)?)?,
            Wanted::Page(hash) => {
                let page = Page::parse(&blocks[&hash].bytes)?;
                checker.page(&page)?;
                entries.extend(page.entries);
            }
            Wanted::Nothing => return Ok((checker.finish()?, entries)),
        }
    }
}

fn numbered(count: usize) -> Vec<Entry> {
    (0..count).map(|i| file(&format!("d{:03}/f{i:07}", i / 1000), &i.to_string())).collect()
}

/// Names whose path ends a page, so that every page has one entry.
fn page_ending_names(count: usize) -> Vec<Entry> {
    let ends = |name: &String| Hash::of(name.as_bytes()).has_leading_zero_bits(content::PAGE_CUT_BITS);
    (0..10_000_000).map(|i| format!("f{i:07}")).filter(ends).take(count).map(|name| file(&name, "x")).collect()
}

#[test]
fn an_empty_folder_has_a_root_without_pages() {
    let (content, blocks) = build(&[]).unwrap();
    assert_eq!(content.root.bytes, br#"{"format":"bib-content/1","levels":1,"pages":[]}"#);
    assert_eq!(content.last_page, None);
    assert_eq!(check(content.root.hash, &blocks).unwrap(), (Summary::default(), vec![]));
}

#[test]
fn lines_are_canonical_json() {
    let link = path("d/l");
    let entries = [
        file("a\"b\\c ü", "x"),
        Entry::Dir { path: path("d/e") },
        Entry::Link { target: LinkTarget::new("../a", &link).unwrap(), path: link },
        Entry::File { path: path("z"), exec: true, sha256: Hash::of(b""), size: (1 << 53) - 1 },
    ];
    let (content, blocks) = build(&entries).unwrap();
    let page = content.last_page.clone().unwrap();
    for line in page.bytes.strip_suffix(b"\n").unwrap().split(|b| *b == b'\n') {
        bib_core::canonical::parse(line).unwrap();
    }
    bib_core::canonical::parse(&content.root.bytes).unwrap();
    let (summary, read) = check(content.root.hash, &blocks).unwrap();
    assert_eq!(read, entries);
    assert_eq!(summary, Summary { entries: 4, files: 2, total_bytes: 1 << 53 });
}

#[test]
fn one_changed_file_of_many_changes_one_page() {
    let mut entries = numbered(30_000);
    let (before, _) = build(&entries).unwrap();
    entries[15_000] = file("d015/f0015000", "changed");
    let (after, blocks) = build(&entries).unwrap();
    let diff = content::diff(&before.pages, &after.pages);
    assert_eq!((diff.removed.len(), diff.added.len()), (1, 1));
    entries.remove(20_000);
    let (shorter, _) = build(&entries).unwrap();
    let diff = content::diff(&after.pages, &shorter.pages);
    assert!(diff.removed.len() <= 2 && diff.added.len() <= 2, "{diff:?}");
    assert_eq!(check(after.root.hash, &blocks).unwrap().0.entries, 30_000);
}

#[test]
fn pages_end_before_4097_entries_or_a_mebibyte() {
    let plain = |name: &String| !Hash::of(name.as_bytes()).has_leading_zero_bits(content::PAGE_CUT_BITS);
    let short: Vec<_> =
        (0..20_000).map(|i| format!("{i:05}")).filter(plain).take(10_000).map(|n| file(&n, "")).collect();
    let (content, blocks) = build(&short).unwrap();
    assert_eq!(content.pages.len(), 3);
    assert_eq!(Page::parse(&blocks[&content.pages[0]].bytes).unwrap().entries.len(), MAX_PAGE_ENTRIES);
    check(content.root.hash, &blocks).unwrap();

    let deep = "x".repeat(250) + "/";
    let long: Vec<_> =
        (0..600).map(|i| format!("{}{i:05}", deep.repeat(16))).filter(plain).map(|n| file(&n, "")).collect();
    let (content, blocks) = build(&long).unwrap();
    let page = Page::parse(&blocks[&content.pages[0]].bytes).unwrap();
    assert!(page.size_bytes <= MAX_PAGE_BYTES && page.size_bytes + page.first_line_bytes > MAX_PAGE_BYTES);
    check(content.root.hash, &blocks).unwrap();
}

#[test]
fn past_4096_pages_there_are_two_levels() {
    let entries = page_ending_names(MAX_INDEX_PAGES + 1);
    let (one, blocks) = build(&entries[..MAX_INDEX_PAGES]).unwrap();
    assert!(one.index.is_empty());
    check(one.root.hash, &blocks).unwrap();

    let (two, mut blocks) = build(&entries).unwrap();
    assert_eq!(two.pages.len(), MAX_INDEX_PAGES + 1);
    assert!(two.index.len() >= 2);
    assert_eq!(two.index_lengths.iter().sum::<usize>(), two.pages.len());
    assert_eq!(check(two.root.hash, &blocks).unwrap().0.entries, entries.len() as u64);

    // The same pages under index objects that end elsewhere are refused.
    let mut put = |block: Block| (block.hash, blocks.insert(block.hash, block)).0;
    let halves = two.pages.split_at(100);
    let uneven =
        [halves.0, &halves.1[..3000], &halves.1[3000..]].map(|p| put(IndexObject { pages: p.to_vec() }.to_block()));
    let whole = two.pages.split_at(MAX_INDEX_PAGES);
    let merged = [whole.0, whole.1].map(|pages| put(IndexObject { pages: pages.to_vec() }.to_block()));
    let uneven = put(ContentRoot::Indexes(uneven.to_vec()).to_block());
    let merged = put(ContentRoot::Indexes(merged.to_vec()).to_block());
    let few = [&two.pages[..1], &two.pages[1..2]].map(|pages| put(IndexObject { pages: pages.to_vec() }.to_block()));
    let few = put(ContentRoot::Indexes(few.to_vec()).to_block());
    for root in [uneven, merged, few] {
        assert!(matches!(check(root, &blocks), Err(ContentError::Cut { block: "index object", .. })));
    }
}

#[test]
fn the_checker_refuses_trees_that_no_builder_makes() {
    let entries = numbered(20_000);
    let (content, mut blocks) = build(&entries).unwrap();
    let mut put = |block: Block| (block.hash, blocks.insert(block.hash, block)).0;
    let mut swapped = content.pages.clone();
    swapped.swap(1, 2);
    let swapped = put(ContentRoot::Pages(swapped).to_block());
    let mut lines = Vec::new();
    entries[0].write_line(&mut lines).unwrap();
    let early = put(Block::new(std::mem::take(&mut lines)));
    entries[1].write_line(&mut lines).unwrap();
    let late = put(Block::new(lines));
    let early = put(ContentRoot::Pages(vec![early, late]).to_block());
    let doubled = put(ContentRoot::Pages(vec![content.pages[0], content.pages[0]]).to_block());
    assert!(matches!(check(swapped, &blocks), Err(ContentError::Order { .. })));
    assert!(matches!(check(early, &blocks), Err(ContentError::Cut { block: "page", .. })));
    assert!(matches!(check(doubled, &blocks), Err(ContentError::Order { .. })));

    let mut checker = TreeChecker::new(ContentRoot::Pages(content.pages.clone()));
    let other = Page::parse(&blocks[&content.pages[1]].bytes).unwrap();
    assert!(matches!(checker.page(&other), Err(ContentError::Unexpected { .. })));
    assert!(matches!(checker.finish(), Err(ContentError::Unexpected { .. })));
}

#[test]
fn pages_that_are_not_canonical_are_refused() {
    let hash = Hash::of(b"");
    let good = format!("{{\"kind\":\"file\",\"path\":\"a\",\"sha256\":\"{hash}\",\"size\":0}}\n");
    assert!(Page::parse(good.as_bytes()).is_ok());
    let ending = page_ending_names(1).remove(0);
    let after = format!("{{\"kind\":\"dir\",\"path\":\"{}\"}}\n{{\"kind\":\"dir\",\"path\":\"z\"}}\n", ending.path());
    let bad = [
        String::new(),
        "\n".into(),
        good.trim_end().into(),
        good.clone() + "\n",
        good.repeat(2),
        good.replace('\n', "\r\n"),
        good.replace("\"size\":0", "\"size\":00"),
        good.replace("\"size\":0", "\"size\":-0"),
        good.replace("\"size\":0", "\"size\":9007199254740992"),
        good.replace("\"size\":0", "\"size\":0,\"x\":1"),
        good.replace("\"size\":0", "\"size\": 0"),
        good.replace(&hash.to_string(), &hash.to_string().to_uppercase()),
        good.replace("\"a\"", "\"\\u0061\""),
        good.replace("\"a\"", "\"a\\/b\""),
        good.replace("\"a\"", "\"../a\""),
        good.replace("\"a\"", "\"\u{9b}\""),
        good.replace("file", "socket"),
        good.clone() + "{\"kind\":\"dir\",\"path\":\"a/b\"}\n",
        "{\"kind\":\"link\",\"path\":\"a\",\"target\":\"../b\"}\n".into(),
        "{\"path\":\"a\",\"kind\":\"dir\"}\n".into(),
        after,
    ];
    for text in bad {
        assert!(Page::parse(text.as_bytes()).is_err(), "{text}");
    }
    assert!(Page::parse(&[b'{', 0xff, b'\n']).is_err());
    assert!(Page::parse(&vec![b'\n'; MAX_PAGE_BYTES + 1]).is_err());
}

#[test]
fn roots_that_are_not_canonical_are_refused() {
    let hash = Hash::of(b"");
    for text in [
        r#"{"format":"bib-content/2","levels":1,"pages":[]}"#,
        r#"{"format":"bib-content/1","levels":3,"pages":[]}"#,
        r#"{"format":"bib-content/1","levels":2,"pages":[]}"#,
        r#"{"format":"bib-content/1","levels":1,"pages":[],"x":1}"#,
        r#"{"format":"bib-content/1","levels":1,"pages":[]} "#,
        r#"{"format":"bib-content/1","levels":1,"pages":["00"]}"#,
        &format!(r#"{{"format":"bib-content/1","levels":1,"pages":["{hash}",]}}"#),
        &format!(r#"{{"format":"bib-content/1","levels":2,"pages":["{hash}"]}}"#),
    ] {
        assert!(ContentRoot::parse(text.as_bytes()).is_err(), "{text}");
    }
    let too_many = ContentRoot::Pages(vec![hash; MAX_INDEX_PAGES + 1]).to_block();
    assert!(ContentRoot::parse(&too_many.bytes).is_err());
    assert!(IndexObject::parse(br#"{"format":"bib-index/1","pages":[]}"#).is_err());
}

fn entry() -> impl Strategy<Value = Entry> {
    let segment = "[a-c.\"\\\\é -]{1,3}";
    let path = prop::collection::vec(segment, 1..4).prop_filter_map("path", |s| EntryPath::new(s.join("/")).ok());
    (path, any::<[u8; 32]>(), 0..(1_u64 << 40), 0..4).prop_map(|(path, hash, size, kind)| match kind {
        0 => Entry::Dir { path },
        1 => Entry::Link { target: LinkTarget::new("x", &path).unwrap(), path },
        kind => Entry::File { path, exec: kind == 2, sha256: Hash::from_bytes(hash), size },
    })
}

proptest! {
    #[test]
    fn the_checker_takes_what_the_builder_makes(entries in prop::collection::vec(entry(), 0..80)) {
        let sorted: BTreeMap<String, Entry> = entries.into_iter().map(|e| (e.path().to_string(), e)).collect();
        let is_parent = |path: &str| sorted.keys().any(|other| other.strip_prefix(path).is_some_and(|r| r.starts_with('/')));
        let all: Vec<Entry> = sorted.values().cloned().collect();
        let conflict = sorted.keys().any(|path| is_parent(path));
        prop_assert_eq!(matches!(build(&all), Err(ContentError::Parent { .. })), conflict);
        let kept: Vec<Entry> = all.iter().filter(|e| !is_parent(e.path().as_str())).cloned().collect();
        let (content, blocks) = build(&kept).unwrap();
        let (summary, read) = check(content.root.hash, &blocks).unwrap();
        prop_assert_eq!(summary, content.summary);
        prop_assert_eq!(read, kept);
    }

    #[test]
    fn no_bytes_panic(bytes in prop::collection::vec(any::<u8>(), 0..200), text in "[\\[\\]{}\":,a-f0-9\\\\\n]{0,120}") {
        for bytes in [&bytes[..], text.as_bytes()] {
            let _ = Page::parse(bytes);
            let _ = ContentRoot::parse(bytes);
            let _ = IndexObject::parse(bytes);
            prop_assert!(Entry::parse_line(&String::from_utf8_lossy(bytes), 1).is_err());
        }
    }

    #[test]
    fn damaged_pages_are_refused_or_spelled_back(entries in 1..40_usize, at in any::<prop::sample::Index>(), byte in any::<u8>()) {
        let (content, _) = build(&numbered(entries)).unwrap();
        let mut bytes = content.last_page.unwrap().bytes;
        let at = at.index(bytes.len());
        bytes[at] = byte;
        if let Ok(page) = Page::parse(&bytes) {
            let mut again = Vec::new();
            page.entries.iter().for_each(|entry| entry.write_line(&mut again).unwrap());
            prop_assert_eq!(again, bytes);
        }
    }
}
