//! A node that lies: nothing it sends is written outside of the target, and nothing wrong is kept.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;
use std::sync::Arc;

use crate::support::{Node, Store, client, files_of};
use bib_client::{Download, ErrorKind, Silent, pb};
use bib_core::content::{ContentBuilder, ContentRoot, Entry};
use bib_core::layout::{Extent, FileLayout, LayoutBuilder};
use bib_core::path::{EntryPath, LinkTarget};
use bib_core::statement::{Author, ServiceKind, Statement};
use bib_core::{Hash, PeerId, Timestamp};

fn statement(content: Hash) -> Vec<u8> {
    let node = PeerId::from_public_key([7; 32]);
    let statement = Statement {
        dataset: bib_core::DatasetId::derive(&node, &bib_core::Nonce::from_bytes([1; 16])),
        content,
        parents: Vec::new(),
        label: None,
        message: "planted".to_owned(),
        time: Timestamp::from_micros(0),
        license: "CC0-1.0".to_owned(),
        metadata: Default::default(),
        author: Author::Service {
            node,
            on_behalf_of: bib_core::KeyFingerprint::of_wire_key(b"key"),
            kind: ServiceKind::Job,
            id: uuid::Uuid::from_u128(0x0190_0000_0000_7000_8000_0000_0000_0001),
        },
        provenance: None,
        author_extra: Default::default(),
        extra: Default::default(),
    };
    statement.to_bytes().unwrap()
}

/// Plants pages as they are, with one layout page for each.
fn plant_pages(store: &mut Store, pages: &[(&str, Vec<FileLayout>)]) -> String {
    let mut layout = LayoutBuilder::new();
    let mut hashes = Vec::new();
    for (text, files) in pages {
        let hash = store.put_page(pb::PageKind::ContentPage, text.as_bytes());
        hashes.push(hash);
        for block in layout.page(hash, files).unwrap() {
            store.put_page(pb::PageKind::LayoutPage, &block.bytes);
        }
    }
    let root = ContentRoot::Pages(hashes).to_block();
    store.put_page(pb::PageKind::ContentRoot, &root.bytes);
    let layout = layout.finish(&[]).unwrap();
    let layout = store.put_page(pb::PageKind::LayoutRoot, &layout.root.bytes);
    store.plant(root.hash, layout, statement(root.hash))
}

fn file(store: &mut Store, bytes: &'static [u8]) -> FileLayout {
    let chunk = Hash::of(bytes);
    store.chunks.insert(chunk, bytes.into());
    let length = u32::try_from(bytes.len()).unwrap();
    FileLayout { sha256: chunk, extents: vec![Extent { chunk, offset: 0, length }] }
}

fn line(path: &str, bytes: &[u8]) -> String {
    format!("{{\"kind\":\"file\",\"path\":\"{path}\",\"sha256\":\"{}\",\"size\":{}}}\n", Hash::of(bytes), bytes.len())
}

async fn download(node: &Node, home: &Path, version: &str) -> bib_client::Result<bib_client::Downloaded> {
    Download::new(version, home.join("target")).run(&client(node, home), Arc::new(Silent)).await
}

#[tokio::test(flavor = "multi_thread")]
async fn paths_that_lead_out_are_refused() {
    for path in ["../evil", "/tmp/evil", "a/../../evil", "a//b", ".", "a/.", "nul\\u0000", ""] {
        let node = Node::start().await;
        let home = tempfile::tempdir().unwrap();
        let version = {
            let mut store = node.store.lock().unwrap();
            let evil = file(&mut store, b"evil");
            plant_pages(&mut store, &[(&line(path, b"evil"), vec![evil])])
        };
        let error = download(&node, home.path(), &version).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Integrity, "{path}: {error:?}");
        assert!(files_of(&home.path().join("target")).is_empty(), "{path}");
        assert!(!home.path().join("evil").exists());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_link_cannot_be_written_through() {
    for link in ["/etc", "..", "../../etc", "a/../../.."] {
        let node = Node::start().await;
        let home = tempfile::tempdir().unwrap();
        let version = {
            let mut store = node.store.lock().unwrap();
            let text = format!("{{\"kind\":\"link\",\"path\":\"a\",\"target\":\"{link}\"}}\n");
            plant_pages(&mut store, &[(&text, Vec::new())])
        };
        assert!(download(&node, home.path(), &version).await.is_err(), "{link}");
        assert!(files_of(&home.path().join("target")).is_empty(), "{link}");
    }
    // A link that is allowed, and an entry below it.
    let node = Node::start().await;
    let home = tempfile::tempdir().unwrap();
    let version = {
        let mut store = node.store.lock().unwrap();
        let evil = file(&mut store, b"evil");
        let text = format!("{}{}", "{\"kind\":\"link\",\"path\":\"a\",\"target\":\"b\"}\n", line("a/evil", b"evil"));
        plant_pages(&mut store, &[(&text, vec![evil])])
    };
    let error = download(&node, home.path(), &version).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Integrity);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_link_that_somebody_put_there_is_not_followed() {
    let node = Node::start().await;
    let home = tempfile::tempdir().unwrap();
    let outside = home.path().join("outside");
    fs::create_dir_all(&outside).unwrap();
    let target = home.path().join("target");
    fs::create_dir_all(&target).unwrap();
    symlink(&outside, target.join("d")).unwrap();
    symlink(outside.join("f"), target.join("e")).unwrap();
    let version = {
        let mut store = node.store.lock().unwrap();
        let bytes = file(&mut store, b"x");
        let text = format!("{}{}", line("d/x", b"x"), line("e", b"x"));
        plant_pages(&mut store, &[(&text, vec![bytes.clone(), bytes])])
    };
    let error = Download::new(version.as_str(), &target)
        .forced()
        .run(&client(&node, home.path()), Arc::new(Silent))
        .await
        .unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Conflict, "{error:?}");
    assert!(files_of(&outside).is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_page_that_ends_too_early_or_twice_is_refused() {
    let node = Node::start().await;
    let home = tempfile::tempdir().unwrap();
    let versions = {
        let mut store = node.store.lock().unwrap();
        let bytes = file(&mut store, b"x");
        // "a" and "b" belong on one page: neither name ends it.
        let early = plant_pages(
            &mut store,
            &[(&line("a", b"x"), vec![bytes.clone()]), (&line("b", b"x"), vec![bytes.clone()])],
        );
        let twice =
            plant_pages(&mut store, &[(&line("a", b"x"), vec![bytes.clone()]), (&line("a", b"x"), vec![bytes])]);
        [early, twice]
    };
    for version in versions {
        assert_eq!(download(&node, home.path(), &version).await.unwrap_err().kind(), ErrorKind::Integrity);
        let target = home.path().join("target");
        if target.exists() {
            fs::remove_dir_all(target).unwrap();
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_layout_that_names_other_bytes_is_found_out() {
    let node = Node::start().await;
    let home = tempfile::tempdir().unwrap();
    let version = {
        let mut store = node.store.lock().unwrap();
        let other = file(&mut store, b"other");
        let lie = FileLayout { sha256: Hash::of(b"right"), ..other };
        plant_pages(&mut store, &[(&line("a", b"right"), vec![lie])])
    };
    let error = download(&node, home.path(), &version).await.unwrap_err();
    assert_eq!((error.kind(), error.detail("path")), (ErrorKind::Integrity, Some("a")));
    assert!(files_of(&home.path().join("target")).is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_version_whose_signature_is_wrong_is_not_downloaded() {
    let node = Node::start().await;
    let home = tempfile::tempdir().unwrap();
    let mut builder = ContentBuilder::new();
    let path = EntryPath::new("l").unwrap();
    let target = LinkTarget::new("x", &path).unwrap();
    builder.push(&Entry::Link { path, target }).unwrap();
    let content = builder.finish().unwrap();
    let version = {
        let mut store = node.store.lock().unwrap();
        let page = content.last_page.unwrap();
        let text = String::from_utf8(page.bytes).unwrap();
        let version = plant_pages(&mut store, &[(&text, Vec::new())]);
        // The statement says that a node signed, and a record of another version comes along.
        let last = store.versions.last_mut().unwrap();
        last.owner = PeerId::from_public_key([7; 32]).to_string();
        last.record = Some(pb::SignedRecord { body: "{}".into(), key: vec![0; 38].into(), sig: vec![0; 64].into() });
        version
    };
    assert_eq!(download(&node, home.path(), &version).await.unwrap_err().kind(), ErrorKind::Integrity);
    node.store.lock().unwrap().versions.last_mut().unwrap().statement = "{}".into();
    assert_eq!(download(&node, home.path(), &version).await.unwrap_err().kind(), ErrorKind::Integrity);
}

#[tokio::test(flavor = "multi_thread")]
async fn another_version_than_the_one_whose_hash_was_asked_for_is_refused() {
    let node = Node::start().await;
    let home = tempfile::tempdir().unwrap();
    let (wanted, other) = {
        let mut store = node.store.lock().unwrap();
        let (right, wrong) = (file(&mut store, b"right"), file(&mut store, b"wrong"));
        let wanted = plant_pages(&mut store, &[(&line("a", b"right"), vec![right])]);
        let other = plant_pages(&mut store, &[(&line("a", b"wrong"), vec![wrong])]);
        store.answer_with = Some(other.clone());
        (wanted, other)
    };
    for reference in [wanted.clone(), format!("t/d@{}", &wanted[..12])] {
        let error = download(&node, home.path(), &reference).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Integrity, "{error:?}");
    }
    assert!(!home.path().join("target").exists());
    // It is whole and in order, only not what was asked for.
    download(&node, home.path(), &other).await.unwrap();
}
