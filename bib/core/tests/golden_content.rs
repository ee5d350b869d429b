//! Holds ids, content and layout to the byte against `golden/`, and against `python/check.py`, which shares no code.
//!
//! `UPDATE_GOLDEN=1` writes the files. Once two nodes exist, a change here needs an ADR.

#![allow(clippy::unwrap_used)]

use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use bib_core::chunk::{self, Packer, SMALL_FILE};
use bib_core::content::{Block, Content, ContentBuilder, Entry, PAGE_CUT_BITS, Page};
use bib_core::layout::{FileLayout, LayoutBuilder};
use bib_core::path::{EntryPath, LinkTarget};
use bib_core::{DatasetId, Hash, Nonce, PeerId, TopicId};

fn golden(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("golden").join(name)
}

fn compare(name: &str, bytes: &[u8]) {
    let path = golden(name);
    if std::env::var_os("UPDATE_GOLDEN").is_some_and(|value| value == "1") {
        std::fs::write(&path, bytes).unwrap();
    }
    let found = std::fs::read(&path).unwrap_or_else(|e| panic!("{name}: {e}"));
    assert_eq!(String::from_utf8_lossy(bytes), String::from_utf8_lossy(&found), "{name}");
}

/// The folder of `content/listing.txt`: kind, path, and the file's text or the link's target, between tabs. `\n` in a
/// text is a line feed. A text `TEXT*COUNT` is repeated.
fn listing() -> Vec<(Entry, Vec<u8>)> {
    let text = std::fs::read_to_string(golden("content/listing.txt")).unwrap();
    let rows = text.lines().filter(|row| !row.starts_with('#'));
    rows.map(|row| {
        let mut cells = row.split('\t');
        let (kind, path) = (cells.next().unwrap(), EntryPath::new(cells.next().unwrap()).unwrap());
        let text = cells.next().unwrap_or_default();
        if kind == "dir" {
            return (Entry::Dir { path }, Vec::new());
        }
        if kind == "link" {
            return (Entry::Link { target: LinkTarget::new(text, &path).unwrap(), path }, Vec::new());
        }
        let body = match text.rsplit_once('*') {
            Some((text, count)) => text.repeat(count.parse().unwrap()),
            None => text.to_owned(),
        };
        let body = body.replace("\\n", "\n").into_bytes();
        let size = body.len() as u64;
        (Entry::File { path, exec: kind == "exec", sha256: Hash::of(&body), size }, body)
    })
    .collect()
}

fn build<'a>(entries: impl IntoIterator<Item = &'a Entry>) -> (Content, Vec<Block>) {
    let mut builder = ContentBuilder::new();
    let mut pages: Vec<Block> = entries.into_iter().filter_map(|entry| builder.push(entry).unwrap()).collect();
    let content = builder.finish().unwrap();
    pages.extend(content.last_page.clone());
    (content, pages)
}

#[test]
fn a_folder_has_the_content_that_is_written_down() {
    let listing = listing();
    let (content, pages) = build(listing.iter().map(|(entry, _)| entry));
    assert!(pages.len() > 1, "the listing shows no cut");
    let bytes: Vec<u8> = pages.iter().flat_map(|page| page.bytes.clone()).collect();
    compare("content/pages.jsonl", &bytes);
    compare("content/root.json", &content.root.bytes);
    compare("content/root.sha256", format!("{}\n", content.root.hash).as_bytes());
}

#[test]
fn a_folder_has_the_layout_that_is_written_down() {
    let listing = listing();
    let (content, pages) = build(listing.iter().map(|(entry, _)| entry));
    let mut packer = Packer::new();
    let mut layouts: Vec<Option<FileLayout>> = vec![None; listing.len()];
    let mut packs = Vec::new();
    for (i, (entry, body)) in listing.iter().enumerate() {
        let Entry::File { sha256, .. } = entry else { continue };
        let mut extents = Vec::new();
        if body.len() < SMALL_FILE as usize {
            packs.extend(packer.push(i, body).unwrap());
        } else {
            extents.extend(chunk::chunks(body).map(|piece| bib_core::layout::Extent {
                chunk: Hash::of(piece),
                offset: 0,
                length: u32::try_from(piece.len()).unwrap(),
            }));
        }
        layouts[i] = Some(FileLayout { sha256: *sha256, extents });
    }
    packs.extend(packer.finish());
    for (i, extent) in packs.iter().flat_map(|pack| &pack.files) {
        layouts[*i].as_mut().unwrap().extents.push(*extent);
    }
    let mut builder = LayoutBuilder::new();
    let mut lines = Vec::new();
    let mut at = 0;
    for page in &pages {
        let entries = Page::parse(&page.bytes).unwrap().entries.len();
        let files: Vec<FileLayout> = layouts[at..at + entries].iter().flatten().cloned().collect();
        lines.extend(builder.page(page.hash, &files).unwrap().into_iter().flat_map(|block| block.bytes));
        at += entries;
    }
    let layout = builder.finish(&content.index_lengths).unwrap();
    compare("content/layout.jsonl", &lines);
    compare("content/layout-root.json", &layout.root.bytes);
}

/// `f0000000` up, those whose path ends a page: every page has one entry, so two levels need no million files.
#[test]
fn two_levels_have_the_root_that_is_written_down() {
    let names = (0..6_000_000).map(|i| format!("f{i:07}"));
    let names = names.filter(|name| Hash::of(name.as_bytes()).has_leading_zero_bits(PAGE_CUT_BITS));
    let sha256 = Hash::of(b"");
    let entry = |name| Entry::File { path: EntryPath::new(name).unwrap(), exec: false, sha256, size: 0 };
    let entries: Vec<Entry> = names.map(|name: String| entry(name)).collect();
    let (content, pages) = build(&entries);
    assert_eq!(pages.len(), entries.len());
    assert!(!content.index.is_empty());
    compare("content/two-levels-root.json", &content.root.bytes);
}

#[test]
fn ids_are_derived_as_written_down() {
    let mut table = String::from("# origin, nonce, topic id, dataset id\n");
    for n in 0..4_u8 {
        let origin = PeerId::from_public_key([n.wrapping_mul(85); 32]);
        let nonce = Nonce::from_bytes([n.wrapping_mul(51); 16]);
        let (topic, dataset) = (TopicId::derive(&origin, &nonce), DatasetId::derive(&origin, &nonce));
        writeln!(table, "{origin}\t{nonce}\t{topic}\t{dataset}").unwrap();
    }
    compare("ids.txt", table.as_bytes());
}

#[test]
fn a_verifier_that_shares_no_code_agrees() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let output = Command::new("python3").arg(root.join("python/check.py")).arg(root.join("golden")).output().unwrap();
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{text}{}", String::from_utf8_lossy(&output.stderr));
    for line in ["ids", "content", "two levels", "canonical JSON"] {
        assert!(text.contains(&format!("ok: {line}")), "{text}");
    }
}
