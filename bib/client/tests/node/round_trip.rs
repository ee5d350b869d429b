//! A folder there and back, through a node in memory that checks everything it is sent.

use std::fs;
use std::os::unix::fs::{PermissionsExt as _, symlink};
use std::path::Path;
use std::sync::{Arc, Mutex};

use crate::support::{Node, Twist, client, files_of, folder, key, name, noise};
use bib_client::{Client, Download, ErrorKind, Notice, Phase, Progress, Publish, Published, Silent, Verify, pb};

/// A folder with every kind of entry, small and large files, equal files and empty ones.
fn everything() -> tempfile::TempDir {
    let dir = folder(&[
        ("a/one", b"1".to_vec()),
        ("a/empty", Vec::new()),
        ("a.txt", noise(1, 3000)),
        ("b/again", noise(1, 3000)),
        ("large.bin", noise(2, 9 << 20)),
        ("medium.bin", noise(3, 300_000)),
        ("zeros.bin", vec![0; 20 << 20]),
        ("run.sh", b"#!/bin/sh\n".to_vec()),
    ]);
    for i in 0..3000 {
        fs::create_dir_all(dir.path().join(format!("many/{}", i % 7))).unwrap();
        fs::write(dir.path().join(format!("many/{}/{i}", i % 7)), noise(1000 + i, 1024)).unwrap();
    }
    fs::set_permissions(dir.path().join("run.sh"), fs::Permissions::from_mode(0o755)).unwrap();
    symlink("../a.txt", dir.path().join("b/link")).unwrap();
    fs::create_dir(dir.path().join("void")).unwrap();
    dir
}

struct Home {
    node: Node,
    client: Client,
    dir: tempfile::TempDir,
    key: Arc<bib_identity::ssh::UserKey>,
}

impl Home {
    async fn start() -> Self {
        let node = Node::start().await;
        let dir = tempfile::tempdir().unwrap();
        let key = key(&node, &dir.path().join("keys"));
        let client = client(&node, dir.path());
        Self { node, client, dir, key }
    }

    fn publish(&self, path: &Path) -> Publish {
        Publish::new(path, name(), "a message").with_license("CC0-1.0").with_key(Arc::clone(&self.key))
    }

    async fn published(&self, path: &Path) -> Published {
        self.publish(path).run(&self.client, Arc::new(Silent)).await.unwrap()
    }

    fn target(&self) -> std::path::PathBuf {
        self.dir.path().join("target")
    }
}

#[derive(Default)]
struct Heard {
    notices: Mutex<Vec<Notice>>,
    read: Mutex<u64>,
}

impl Progress for Heard {
    fn total(&self, _: Phase, _: Option<u64>) {}
    fn advance(&self, phase: Phase, by: u64) {
        if phase == Phase::Read {
            *self.read.lock().unwrap() += by;
        }
    }
    fn notice(&self, notice: Notice) {
        self.notices.lock().unwrap().push(notice);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_folder_comes_back_bit_for_bit() {
    let home = Home::start().await;
    let source = everything();
    let published = home.published(source.path()).await;
    assert!(published.created);
    assert_eq!(published.files, 3008);
    assert_eq!(published.chunks, published.chunks_sent);
    let got = Download::new("climate/hourly", home.target()).run(&home.client, Arc::new(Silent)).await.unwrap();
    assert!(got.signature.is_good());
    assert_eq!((got.files, got.bytes, got.content), (published.files, published.bytes, published.content));
    assert_eq!(files_of(source.path()), files_of(&home.target()));
    let mode = |path: &str| fs::metadata(home.target().join(path)).unwrap().permissions().mode() & 0o111;
    assert_eq!((mode("run.sh") & 0o100, mode("a.txt")), (0o100, 0));
    let verified = Verify::new(home.target(), "climate/hourly").run(&home.client, Arc::new(Silent)).await.unwrap();
    assert!(verified.bytes.is_good() && verified.signature.is_good());
}

#[tokio::test(flavor = "multi_thread")]
async fn an_unchanged_folder_is_not_read_and_makes_no_version() {
    let home = Home::start().await;
    let source = everything();
    let first = home.published(source.path()).await;
    let pages = home.node.store.lock().unwrap().pages.len();
    let heard = Arc::new(Heard::default());
    let again = home.publish(source.path()).run(&home.client, heard.clone()).await.unwrap();
    assert!(!again.created);
    assert_eq!((again.version, again.chunks_sent), (first.version, 0));
    assert_eq!(*heard.read.lock().unwrap(), 0);
    assert_eq!(home.node.store.lock().unwrap().pages.len(), pages);
}

#[tokio::test(flavor = "multi_thread")]
async fn one_changed_file_sends_one_chunk_and_a_few_pages() {
    let home = Home::start().await;
    let source = everything();
    home.published(source.path()).await;
    home.node.store.lock().unwrap().pages_received.clear();
    fs::write(source.path().join("many/3/10"), b"changed").unwrap();
    let heard = Arc::new(Heard::default());
    let second = home.publish(source.path()).run(&home.client, heard.clone()).await.unwrap();
    assert!(second.created);
    assert_eq!((second.chunks_sent, second.bytes_sent, *heard.read.lock().unwrap()), (1, 7, 7));
    let received = home.node.store.lock().unwrap().pages_received.clone();
    let of = |kind: pb::PageKind| received.get(&i32::from(kind)).copied().unwrap_or(0);
    assert_eq!((of(pb::PageKind::ContentPage), of(pb::PageKind::LayoutPage)), (1, 1));
    let got = Download::new("climate/hourly", home.target()).run(&home.client, Arc::new(Silent)).await.unwrap();
    assert_eq!(got.version, second.version);
    assert_eq!(files_of(source.path()), files_of(&home.target()));
}

#[tokio::test(flavor = "multi_thread")]
async fn moved_and_copied_files_are_not_sent_again() {
    let home = Home::start().await;
    let source = everything();
    home.published(source.path()).await;
    fs::rename(source.path().join("many"), source.path().join("moved")).unwrap();
    fs::copy(source.path().join("large.bin"), source.path().join("copy.bin")).unwrap();
    fs::copy(source.path().join("a.txt"), source.path().join("copy.txt")).unwrap();
    let second = home.published(source.path()).await;
    assert!(second.created);
    assert_eq!(second.chunks_sent, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn with_the_cache_lost_everything_is_read_and_nothing_sent() {
    let home = Home::start().await;
    let source = everything();
    for i in 0..130 {
        fs::write(source.path().join(format!("bulk-{i}")), noise(90_000 + i, 250_000)).unwrap();
    }
    let first = home.published(source.path()).await;
    fs::remove_dir_all(home.dir.path().join("cache")).unwrap();
    fs::write(source.path().join("a.txt"), noise(77, 3000)).unwrap();
    let heard = Arc::new(Heard::default());
    let second = home.publish(source.path()).run(&home.client, heard.clone()).await.unwrap();
    assert_eq!(*heard.read.lock().unwrap(), first.bytes);
    assert_eq!((second.chunks_sent, second.bytes_sent), (1, 3000));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_same_size_edit_with_restored_mtime_is_noticed() {
    let home = Home::start().await;
    let source = everything();
    home.published(source.path()).await;
    let path = source.path().join("a/one");
    let before = fs::metadata(&path).unwrap().modified().unwrap();
    fs::write(&path, b"2").unwrap();
    fs::File::options().write(true).open(&path).unwrap().set_modified(before).unwrap();
    assert!(home.published(source.path()).await.created);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_broken_stream_is_resumed_and_what_was_lost_is_sent_again() {
    let home = Home::start().await;
    let source = everything();
    home.node.twist(Twist { break_after_chunks: Some(3), lose_chunks_at_commit: true, ..Twist::default() });
    let heard = Arc::new(Heard::default());
    // The broken stream is an answer of the node, not a broken connection: the run fails, and the next goes on.
    let error = home.publish(source.path()).run(&home.client, heard.clone()).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unavailable);
    let kept = home.node.store.lock().unwrap().chunks.len() as u64;
    assert!(kept >= 3);
    let published = home.publish(source.path()).run(&home.client, heard.clone()).await.unwrap();
    // Each once more for what was lost, and before that at most what the first run had not brought; the node may have
    // kept more of it after the run had failed.
    let sent = published.chunks_sent;
    assert!((published.chunks..=2 * published.chunks - kept).contains(&sent), "{sent} sent, {kept} kept");
    let notices = heard.notices.lock().unwrap();
    assert!(notices.contains(&Notice::Resumed));
    assert!(notices.iter().any(|notice| matches!(notice, Notice::SentAgain { .. })));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_moved_latest_is_a_conflict_or_the_new_parent() {
    let home = Home::start().await;
    let source = folder(&[("a", b"1".to_vec())]);
    let first = home.published(source.path()).await;
    fs::write(source.path().join("a"), b"22").unwrap();
    home.node.twist(Twist { move_latest_at_commit: true, ..Twist::default() });
    let error = home.publish(source.path()).run(&home.client, Arc::new(Silent)).await.unwrap_err();
    assert_eq!((error.kind(), error.kind().exit_code()), (ErrorKind::Conflict, 6));
    assert_eq!(error.detail("parent"), Some(first.version.as_str()));
    assert!(error.detail("latest").is_some_and(|latest| latest != first.version));
    home.node.twist(Twist { move_latest_at_commit: true, ..Twist::default() });
    let heard = Arc::new(Heard::default());
    let second = home.publish(source.path()).rebasing().run(&home.client, heard.clone()).await.unwrap();
    assert!(second.created);
    assert!(heard.notices.lock().unwrap().iter().any(|notice| matches!(notice, Notice::Rebased { .. })));
}

#[tokio::test(flavor = "multi_thread")]
async fn an_interrupted_download_keeps_what_is_right() {
    let home = Home::start().await;
    let source = everything();
    home.published(source.path()).await;
    home.node.twist(Twist { corrupt_chunks: 1, ..Twist::default() });
    let download = Download::new("climate/hourly", home.target());
    let error = download.run(&home.client, Arc::new(Silent)).await.unwrap_err();
    assert_eq!(error.kind().exit_code(), 7, "{error:?}");
    let got = download.run(&home.client, Arc::new(Silent)).await.unwrap();
    assert_eq!(files_of(source.path()), files_of(&home.target()));
    assert_eq!(got.files, 3008);
    // Complete now, so it is no interrupted download any more.
    let error = download.run(&home.client, Arc::new(Silent)).await.unwrap_err();
    assert_eq!(error.code(), Some("BIB0508"));
    fs::remove_file(home.target().join("a/one")).unwrap();
    fs::write(home.target().join("a.txt"), b"other").unwrap();
    let got = download.clone().forced().run(&home.client, Arc::new(Silent)).await.unwrap();
    assert_eq!((got.files_kept, files_of(&home.target())), (3006, files_of(source.path())));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_partly_written_large_file_goes_on() {
    let home = Home::start().await;
    let source = folder(&[("large", noise(5, 12 << 20))]);
    home.published(source.path()).await;
    home.node.twist(Twist { corrupt_chunks: 100, ..Twist::default() });
    let download = Download::new("climate/hourly", home.target());
    download.run(&home.client, Arc::new(Silent)).await.unwrap_err();
    home.node.twist(Twist::default());
    // As an earlier run would have left it: the first half under the temporary name.
    let part = format!(".bib-{}.part", &bib_core::Hash::of(b"large").to_string()[..24]);
    fs::write(home.target().join(part), &noise(5, 12 << 20)[..8 << 20]).unwrap();
    let got = download.run(&home.client, Arc::new(Silent)).await.unwrap();
    assert!(got.bytes_received < 9 << 20, "{}", got.bytes_received);
    assert_eq!(files_of(source.path()), files_of(&home.target()));
}

#[tokio::test(flavor = "multi_thread")]
async fn one_file_and_one_folder_can_be_had_alone() {
    let home = Home::start().await;
    let source = everything();
    home.published(source.path()).await;
    let target = home.target();
    let one = Download::new("climate/hourly:many/3/10", target.join("ten"))
        .run(&home.client, Arc::new(Silent))
        .await
        .unwrap();
    assert_eq!((one.files, fs::read(target.join("ten")).unwrap()), (1, noise(1010, 1024)));
    let some = Download::new("climate/hourly:b", target.join("b")).run(&home.client, Arc::new(Silent)).await.unwrap();
    assert_eq!(some.files, 1);
    // Its link pointed out of the folder.
    assert!(!target.join("b/link").exists());
    let none = Download::new("climate/hourly:nothing", target.join("n")).run(&home.client, Arc::new(Silent)).await;
    assert_eq!(none.unwrap_err().kind(), ErrorKind::NotFound);
}

#[tokio::test(flavor = "multi_thread")]
async fn verify_names_what_differs() {
    let home = Home::start().await;
    let source = everything();
    home.published(source.path()).await;
    fs::write(source.path().join("a/one"), b"9").unwrap();
    fs::remove_file(source.path().join("run.sh")).unwrap();
    fs::write(source.path().join("new"), b"").unwrap();
    let verified = Verify::new(source.path(), "climate/hourly").run(&home.client, Arc::new(Silent)).await.unwrap();
    assert!(verified.bytes.is_bad() && verified.signature.is_good());
    let found: Vec<_> = verified.differences.iter().map(|d| (d.word(), d.path())).collect();
    assert_eq!(found, [("changed", "a/one"), ("extra", "new"), ("missing", "run.sh")]);
}
