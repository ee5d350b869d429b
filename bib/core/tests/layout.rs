//! Layout, chunks and packs: where bytes are cut, and what a layout may say about a content.

#![allow(clippy::unwrap_used)]

use std::collections::HashSet;

use bib_core::Hash;
use bib_core::chunk::{self, MAX_CHUNK_BYTES, MIN_CHUNK_BYTES, NotSmall, PACK_LIMIT, Packer, SMALL_FILE};
use bib_core::content::{ContentBuilder, Entry, Page};
use bib_core::layout::{
    Extent, FileLayout, LayoutBuilder, LayoutError, LayoutIndex, LayoutPage, LayoutRoot, LayoutWalk,
    MAX_LAYOUT_PAGE_BYTES, join,
};
use bib_core::path::EntryPath;
use proptest::prelude::*;

/// Bytes that look random and are the same everywhere: xorshift64.
fn noise(mut seed: u64, length: usize) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(length + 8);
    while bytes.len() < length {
        seed ^= seed << 13;
        seed ^= seed >> 7;
        seed ^= seed << 17;
        bytes.extend_from_slice(&seed.to_le_bytes());
    }
    bytes.truncate(length);
    bytes
}

fn extent(n: u32, length: u32) -> Extent {
    Extent { chunk: Hash::of(&n.to_le_bytes()), offset: 0, length }
}

fn layout(n: u32, extents: Vec<Extent>) -> FileLayout {
    FileLayout { sha256: Hash::of(&n.to_be_bytes()), extents }
}

/// A content page with a file for each layout, and a directory before them.
fn page_of(files: &[FileLayout]) -> Page {
    let mut builder = ContentBuilder::new();
    builder.push(&Entry::Dir { path: EntryPath::new("a").unwrap() }).unwrap();
    for (i, file) in files.iter().enumerate() {
        let path = EntryPath::new(format!("f{i:05}")).unwrap();
        let entry = Entry::File { path, exec: false, sha256: file.sha256, size: file.size() };
        assert!(builder.push(&entry).unwrap().is_none(), "one page was meant");
    }
    Page::parse(&builder.finish().unwrap().last_page.unwrap().bytes).unwrap()
}

fn lay_out(files: &[FileLayout]) -> Vec<LayoutPage> {
    let blocks = LayoutBuilder::new().page(Hash::of(b"page"), files).unwrap();
    blocks
        .iter()
        .map(|block| {
            for line in block.bytes.strip_suffix(b"\n").unwrap().split(|b| *b == b'\n') {
                bib_core::canonical::parse(line).unwrap();
            }
            LayoutPage::parse(&block.bytes).unwrap()
        })
        .collect()
}

#[test]
fn a_chunk_is_cut_the_same_from_a_window_and_by_the_librarys_iterator() {
    let data = noise(1, 24 << 20);
    let library = fastcdc::v2020::FastCDC::new(&data, MIN_CHUNK_BYTES as usize, 1 << 20, MAX_CHUNK_BYTES as usize);
    let library: Vec<usize> = library.map(|chunk| chunk.length).collect();
    let stream = fastcdc::v2020::StreamCDC::new(&data[..], MIN_CHUNK_BYTES as usize, 1 << 20, MAX_CHUNK_BYTES as usize);
    let stream: Vec<usize> = stream.map(|chunk| chunk.unwrap().length).collect();
    let mut ours = Vec::new();
    let mut rest = data.as_slice();
    while !rest.is_empty() {
        let window = &rest[..rest.len().min(MAX_CHUNK_BYTES as usize)];
        ours.push(chunk::cut(window));
        rest = &rest[ours[ours.len() - 1]..];
    }
    assert_eq!(ours, library);
    assert_eq!(ours, stream);
    let whole: Vec<usize> = chunk::chunks(&data).map(<[u8]>::len).collect();
    assert_eq!(ours, whole);
    let within = |length: &usize| (MIN_CHUNK_BYTES as usize..=MAX_CHUNK_BYTES as usize).contains(length);
    assert!(ours[..ours.len() - 1].iter().all(within), "{ours:?}");
}

#[test]
fn cuts_of_known_bytes_stay_where_they_are() {
    let cuts: Vec<usize> = chunk::chunks(&noise(42, 10 << 20)).map(<[u8]>::len).collect();
    expect_test::expect![
        "[309968, 571534, 1924302, 268362, 1223244, 1510411, 1135477, 1511374, 1350760, 538574, 141754]"
    ]
    .assert_eq(&format!("{cuts:?}"));
    assert_eq!(chunk::cut(&vec![0; 5 << 20]), MAX_CHUNK_BYTES as usize);
    assert_eq!(chunk::cut(&[0; 10]), 10);
    assert_eq!(chunk::cut(&[]), 0);
}

#[test]
fn packs_are_filled_in_order_and_cut_between_files() {
    let size = SMALL_FILE as usize - 1;
    let mut packer = Packer::new();
    let mut packs = Vec::new();
    for key in 0..40_u32 {
        packs.extend(packer.push(key, &noise(u64::from(key) + 1, size)).unwrap());
    }
    packs.extend(packer.push(40, b"").unwrap());
    packs.extend(packer.finish());
    let keys: Vec<u32> = packs.iter().flat_map(|pack| pack.files.iter().map(|(key, _)| *key)).collect();
    assert_eq!(keys, (0..40).collect::<Vec<_>>());
    for pack in &packs {
        assert!(pack.bytes.len() <= PACK_LIMIT as usize);
        assert_eq!(pack.hash, Hash::of(&pack.bytes));
        for (key, extent) in &pack.files {
            let bytes = &pack.bytes[extent.offset as usize..(extent.offset + extent.length) as usize];
            assert_eq!(bytes, noise(u64::from(*key) + 1, size));
            assert!(extent.is_within_bounds() && extent.chunk == pack.hash);
        }
    }
    assert_eq!(packs.iter().map(|pack| pack.files.len()).collect::<Vec<_>>(), [16, 16, 8]);
    assert_eq!(Packer::new().push((), &vec![0; SMALL_FILE as usize]), Err(NotSmall(SMALL_FILE as usize)));
    assert_eq!(Packer::<()>::new().finish(), None);
}

#[test]
fn a_file_of_many_extents_continues_on_the_next_page() {
    let large: Vec<Extent> = (0..30_000).map(|n| extent(n, MAX_CHUNK_BYTES - n)).collect();
    let files = [layout(1, vec![extent(1, 5)]), layout(2, large), layout(3, vec![]), layout(4, vec![extent(2, 6)])];
    let blocks = LayoutBuilder::new().page(Hash::of(b""), &files).unwrap();
    assert!(blocks.len() > 2);
    for block in &blocks[..blocks.len() - 1] {
        assert!(block.bytes.len() <= MAX_LAYOUT_PAGE_BYTES && block.bytes.len() + 100 > MAX_LAYOUT_PAGE_BYTES);
    }
    let page = page_of(&files);
    let pages = lay_out(&files);
    let joined = join(&page, &pages).unwrap();
    assert_eq!(joined.len(), files.len());
    for ((_, extents), file) in joined.iter().zip(&files) {
        assert_eq!(extents, &file.extents);
    }
    let mut walk = LayoutWalk::new(&page);
    walk.page(&pages[0], |_, _, _| {}).unwrap();
    assert!(matches!(walk.page(&pages[2], |_, _, _| {}), Err(LayoutError::File { .. })), "a page was left out");
    assert!(join(&page, &pages[..1]).is_err(), "the last pages are missing");
}

#[test]
fn a_layout_that_does_not_fit_its_content_is_refused() {
    let files = [layout(1, vec![extent(1, 5), extent(2, 6)]), layout(2, vec![]), layout(3, vec![extent(3, 1)])];
    let page = page_of(&files);
    assert!(join(&page, &lay_out(&files)).is_ok());
    let mut short = files.clone();
    short[0].extents.pop();
    let mut long = files.clone();
    long[2].extents.push(extent(4, 1));
    let mut filled = files.clone();
    filled[1].extents.push(extent(4, 1));
    let swapped = [files[1].clone(), files[0].clone(), files[2].clone()];
    for wrong in [&short[..], &long, &filled, &swapped, &files[..2], &files[1..]] {
        assert!(matches!(join(&page, &lay_out(wrong)), Err(LayoutError::File { .. })), "{wrong:?}");
    }
    assert!(join(&page, &[]).is_err());
    let empty = page_of(&[]);
    assert!(join(&empty, &[]).unwrap().is_empty());
}

#[test]
fn extents_stay_within_a_chunk() {
    let one = |offset, length| [layout(1, vec![Extent { chunk: Hash::of(b""), offset, length }])];
    for (offset, length) in [(0, 0), (MAX_CHUNK_BYTES, 1), (1, MAX_CHUNK_BYTES), (u32::MAX, u32::MAX)] {
        let built = LayoutBuilder::new().page(Hash::of(b""), &one(offset, length));
        assert_eq!(built, Err(LayoutError::Extent { offset, length }));
        let hash = Hash::of(b"");
        let line = format!("{{\"chunks\":[[\"{hash}\",{offset},{length}]],\"sha256\":\"{hash}\"}}\n");
        assert!(LayoutPage::parse(line.as_bytes()).is_err(), "{line}");
    }
    assert!(LayoutBuilder::new().page(Hash::of(b""), &one(MAX_CHUNK_BYTES - 1, 1)).is_ok());
}

#[test]
fn layout_pages_that_are_not_canonical_are_refused() {
    let hash = Hash::of(b"");
    let good = format!("{{\"chunks\":[[\"{hash}\",0,1]],\"from\":7,\"sha256\":\"{hash}\"}}\n");
    assert_eq!(LayoutPage::parse(good.as_bytes()).unwrap().lines[0].from, 7);
    for bad in [
        String::new(),
        "\n".into(),
        good.trim_end().into(),
        good.repeat(2),
        good.replace(":7", ":0"),
        good.replace(":7", ":07"),
        good.replace(":7", ":9007199254740991"),
        good.replace("0,1", "0,1.0"),
        good.replace(",0,1]", ",0,1],"),
        good.replace(&format!("[\"{hash}\",0,1]"), ""),
        good.replace("\"from\"", "\"size\""),
    ] {
        assert!(LayoutPage::parse(bad.as_bytes()).is_err(), "{bad}");
    }
}

#[test]
fn roots_list_the_pages_of_one_or_two_levels() {
    let hash = |n: u8| Hash::of(&[n]);
    let build = || {
        let mut builder = LayoutBuilder::new();
        builder.page(hash(1), &[layout(1, vec![extent(1, 5)])]).unwrap();
        builder.page(hash(2), &[]).unwrap();
        builder.reuse(hash(3), vec![hash(8), hash(9)]);
        builder
    };
    let one = build().finish(&[]).unwrap();
    bib_core::canonical::parse(&one.root.bytes).unwrap();
    let root = LayoutRoot::parse(&one.root.bytes).unwrap();
    assert_eq!(root.to_block().unwrap(), one.root);
    assert_eq!(root.pages_for(&hash(1)).unwrap().len(), 1);
    assert_eq!(root.pages_for(&hash(2)), Some(&[][..]));
    assert_eq!(root.pages_for(&hash(3)), Some(&[hash(8), hash(9)][..]));
    assert_eq!(root.pages_for(&hash(4)), None);
    assert_eq!(root.check_parallel(&[hash(1), hash(2), hash(3)]), Ok(()));
    assert!(root.check_parallel(&[hash(1), hash(3), hash(2)]).is_err());

    let two = build().finish(&[2, 1]).unwrap();
    bib_core::canonical::parse(&two.root.bytes).unwrap();
    let LayoutRoot::Indexes(indexes) = LayoutRoot::parse(&two.root.bytes).unwrap() else { panic!("two levels") };
    assert_eq!(indexes, two.index.iter().map(|block| block.hash).collect::<Vec<_>>());
    let index = LayoutIndex::parse(&two.index[0].bytes).unwrap();
    assert_eq!(index.check_parallel(&[hash(1), hash(2)]), Ok(()));
    assert_eq!(index.to_block().unwrap(), two.index[0]);
    assert!(build().finish(&[2]).is_err() && build().finish(&[2, 2]).is_err());

    let text = String::from_utf8(one.root.bytes).unwrap();
    assert!(matches!(LayoutRoot::parse(text.replace("n1-s0", "n1-s1").as_bytes()), Err(LayoutError::Chunking(_))));
    assert!(matches!(LayoutRoot::parse(text.replace("layout/1", "layout/2").as_bytes()), Err(LayoutError::Format(_))));
    assert!(LayoutRoot::parse((text.clone() + " ").as_bytes()).is_err());
    assert!(LayoutRoot::parse(text.replace("\"levels\":1", "\"levels\":2").as_bytes()).is_err());
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(12))]
    #[test]
    fn an_edit_moves_only_the_cuts_near_it(seed in 1_u64.., at in 0..(16_usize << 20), insert in 1..5_000_usize) {
        let before = noise(seed, 16 << 20);
        let mut after = before.clone();
        after.splice(at..at, noise(seed ^ 0xffff, insert));
        let hashes = |data: &[u8]| chunk::chunks(data).map(Hash::of).collect::<HashSet<_>>();
        let (before, after) = (hashes(&before), hashes(&after));
        prop_assert!(after.difference(&before).count() <= 5, "{} of {} chunks changed", after.difference(&before).count(), after.len());
    }
}

proptest! {
    #[test]
    fn what_is_laid_out_joins_again(sizes in prop::collection::vec(prop::collection::vec(1..=MAX_CHUNK_BYTES, 0..6), 0..60)) {
        let files: Vec<FileLayout> = sizes.iter().enumerate().map(|(i, lengths)| {
            let n = u32::try_from(i).unwrap();
            layout(n, lengths.iter().map(|length| extent(n, *length)).collect())
        }).collect();
        let page = page_of(&files);
        let pages = lay_out(&files);
        let joined = join(&page, &pages).unwrap();
        prop_assert!(joined.iter().map(|(_, extents)| extents).eq(files.iter().map(|file| &file.extents)));
    }

    #[test]
    fn no_bytes_panic(bytes in prop::collection::vec(any::<u8>(), 0..200), text in "[\\[\\]{}\":,a-f0-9\\\\\n]{0,120}") {
        for bytes in [&bytes[..], text.as_bytes()] {
            prop_assert!(LayoutPage::parse(bytes).is_err());
            prop_assert!(LayoutRoot::parse(bytes).is_err());
            prop_assert!(LayoutIndex::parse(bytes).is_err());
        }
    }
}
