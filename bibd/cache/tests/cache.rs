//! The cache on a real file: what goes in is checked, what comes out is young enough, and whatever happens to the file is
//! survived.

#![allow(clippy::unwrap_used)]

use std::fs;
use std::io::{BufRead as _, BufReader, Write as _};
use std::os::unix::fs::{FileExt as _, PermissionsExt as _};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use bib_core::record::{Body, Kind, Node, Revision, SignedRecord};
use bib_core::signature::Purpose;
use bib_core::{Hash, PeerId, Timestamp};
use bib_identity::NodeKey;
use bibd_cache::{Cache, Error, Kept, OpenError, Settings, Swept};
use rand::rngs::OsRng;

/// The directory of the child in the test of a kill.
const CHILD: &str = "BIBD_CACHE_TEST_CHILD";
const DAY: i64 = 86_400;

fn settings() -> Settings {
    Settings { ttl: Duration::from_secs(3_600), max_bytes: 64 << 20 }
}

fn at(seconds: i64) -> Timestamp {
    Timestamp::from_micros(0).plus_seconds(1_000_000 * DAY / 100 + seconds)
}

fn key(dir: &Path, name: &str) -> NodeKey {
    NodeKey::create(&dir.join(name), &mut OsRng).unwrap()
}

async fn open(dir: &Path) -> Cache {
    let opened = Cache::open(&dir.join("cache"), PeerId::from_public_key([7; 32]), settings()).await.unwrap();
    assert_eq!(opened.set_aside, None);
    opened.cache
}

/// What a node says of itself.
fn record(key: &NodeKey, n: u64, name: &str) -> SignedRecord {
    let body = Body::Node(Node {
        revision: Revision { tenure: 0, epoch: 1, n },
        time: at(0),
        id: key.peer_id(),
        name: Some(name.to_owned()),
        recovery: None,
        ca: None,
        extra: Default::default(),
    });
    let body = body.to_bytes().unwrap();
    SignedRecord { sig: key.sign(Purpose::Record, &body), key: key.peer_id(), body }
}

#[tokio::test]
async fn a_record_is_given_until_its_time_is_over() {
    let dir = tempfile::tempdir().unwrap();
    let (cache, other) = (open(dir.path()).await, key(dir.path(), "other"));
    let (said, id) = (record(&other, 1, "first"), other.peer_id().to_string());
    assert_eq!(cache.keep_record(&said, at(0)).await.unwrap(), Kept::Now);
    let found = cache.record(Kind::Node, &id, at(3_599)).await.unwrap().unwrap();
    assert_eq!((found.record, found.kept_at), (said.clone(), at(0)));
    assert_eq!(cache.record(Kind::Node, &id, at(3_600)).await.unwrap(), None, "it is an hour old");
    assert_eq!(cache.record(Kind::Node, &id, at(-1)).await.unwrap(), None, "a clock set back prolongs nothing");
    assert_eq!(cache.record(Kind::Topic, &id, at(0)).await.unwrap(), None);
    assert_eq!(cache.keep_record(&said, at(3_000)).await.unwrap(), Kept::Again);
    assert!(cache.record(Kind::Node, &id, at(3_600)).await.unwrap().is_some(), "its time began again");
}

#[tokio::test]
async fn the_highest_revision_stays_and_what_is_not_signed_never_comes_in() {
    let dir = tempfile::tempdir().unwrap();
    let (cache, other) = (open(dir.path()).await, key(dir.path(), "other"));
    let id = other.peer_id().to_string();
    let (old, new) = (record(&other, 1, "old"), record(&other, 2, "new"));
    assert_eq!(cache.keep_record(&new, at(0)).await.unwrap(), Kept::Now);
    assert_eq!(cache.keep_record(&old, at(1)).await.unwrap(), Kept::Superseded);
    assert_eq!(cache.record(Kind::Node, &id, at(2)).await.unwrap().unwrap().record, new);
    assert_eq!(cache.keep_record(&record(&other, 3, "newest"), at(2)).await.unwrap(), Kept::Now);

    let mut forged = record(&other, 4, "forged");
    forged.sig[10] ^= 1;
    assert!(matches!(cache.keep_record(&forged, at(3)).await, Err(Error::Signature)));
    let stranger = SignedRecord { key: key(dir.path(), "stranger").peer_id(), ..record(&other, 5, "taken") };
    assert!(matches!(cache.keep_record(&stranger, at(3)).await, Err(Error::Signature)));
    for body in [&b""[..], b"{", b"{\"format\":\"bib-node/1\"}", &[0xff; 100]] {
        let rubbish = SignedRecord { body: body.to_vec(), ..forged.clone() };
        assert!(matches!(cache.keep_record(&rubbish, at(3)).await, Err(Error::Record(_))), "{body:?}");
    }
    let found = cache.record(Kind::Node, &id, at(4)).await.unwrap().unwrap();
    assert_eq!(found.record, record(&other, 3, "newest"));
    assert_eq!(cache.usage().await.unwrap().records, 1);
}

#[tokio::test]
async fn what_this_node_signed_has_no_place_in_a_cache() {
    let dir = tempfile::tempdir().unwrap();
    let own = key(dir.path(), "own");
    let cache = Cache::open(&dir.path().join("cache"), own.peer_id(), settings()).await.unwrap().cache;
    assert!(matches!(cache.keep_record(&record(&own, 1, "own"), at(0)).await, Err(Error::Own)));
    assert_eq!(cache.usage().await.unwrap().records, 0);
}

#[tokio::test]
async fn records_are_listed_in_steps_without_what_is_too_old() {
    let dir = tempfile::tempdir().unwrap();
    let cache = open(dir.path()).await;
    let mut ids = Vec::new();
    for number in 0..5 {
        let node = key(dir.path(), &format!("node{number}"));
        cache.keep_record(&record(&node, 1, "n"), at(if number == 0 { -3_000 } else { 0 })).await.unwrap();
        ids.push(node.peer_id().to_string());
    }
    let expired = ids.remove(0);
    ids.sort_unstable();
    let (mut after, mut found) = (String::new(), Vec::new());
    loop {
        let step = cache.records(Kind::Node, &after, 2, at(1_000)).await.unwrap();
        found.extend(step.records.iter().map(|kept| kept.record.key.to_string()));
        match step.next {
            Some(next) => after = next,
            None => break,
        }
    }
    assert_eq!(found, ids, "without {expired}");
}

#[tokio::test]
async fn a_page_is_what_its_hash_says_or_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let cache = open(dir.path()).await;
    let (page, hash) = (b"{\"path\":\"a\"}\n".to_vec(), Hash::of(b"{\"path\":\"a\"}\n"));
    assert!(matches!(cache.keep_page(&Hash::of(b"other"), &page, at(0)).await, Err(Error::Hash)));
    let large = vec![0; (1 << 20) + 1];
    assert!(matches!(cache.keep_page(&Hash::of(&large), &large, at(0)).await, Err(Error::TooLarge(_))));
    for _ in 0..2 {
        cache.keep_page(&hash, &page, at(0)).await.unwrap();
    }
    assert_eq!(cache.usage().await.unwrap().pages, 1);
    assert_eq!(cache.page(&hash, at(10)).await.unwrap(), Some(page.clone()));
    assert_eq!(cache.page(&hash, at(3_600)).await.unwrap(), None);
    cache.close().await;

    // A bit that turned over where SQLite does not look.
    let path = dir.path().join("cache/cache.sqlite");
    let bytes = fs::read(&path).unwrap();
    let place = bytes.windows(page.len()).position(|window| window == page).unwrap();
    fs::OpenOptions::new().write(true).open(&path).unwrap().write_at(b"X", place as u64).unwrap();
    let cache = open(dir.path()).await;
    assert!(matches!(cache.page(&hash, at(10)).await, Err(Error::Hash)));
    assert_eq!(cache.page(&hash, at(10)).await.unwrap(), None, "it can be fetched again");
}

#[tokio::test]
async fn the_oldest_go_where_there_is_no_room() {
    let dir = tempfile::tempdir().unwrap();
    let limits = Settings { max_bytes: 4 << 20, ..settings() };
    let cache = Cache::open(&dir.path().join("cache"), PeerId::from_public_key([7; 32]), limits).await.unwrap().cache;
    let pages: Vec<Vec<u8>> = (0..6_u8).map(|number| vec![number; 1 << 20]).collect();
    for (second, page) in (0..).zip(&pages) {
        cache.keep_page(&Hash::of(page), page, at(second)).await.unwrap();
        assert!(cache.page(&Hash::of(page), at(second)).await.unwrap().is_some(), "what came last is there");
    }
    let usage = cache.usage().await.unwrap();
    assert_eq!((usage.pages, usage.bytes), (4, 4 << 20));
    assert_eq!(cache.page(&Hash::of(&pages[1]), at(10)).await.unwrap(), None);
    assert!(cache.page(&Hash::of(&pages[2]), at(10)).await.unwrap().is_some());
}

#[tokio::test]
async fn a_sweep_removes_what_is_too_old_and_gives_the_room_back() {
    let dir = tempfile::tempdir().unwrap();
    let (cache, other) = (open(dir.path()).await, key(dir.path(), "other"));
    cache.keep_record(&record(&other, 1, "old"), at(0)).await.unwrap();
    for number in 0..1_200_u32 {
        let mut page = vec![1; 16 << 10];
        page[..4].copy_from_slice(&number.to_be_bytes());
        cache.keep_page(&Hash::of(&page), &page, at(if number == 7 { 5_000 } else { 0 })).await.unwrap();
    }
    cache.close().await;
    let cache = open(dir.path()).await;
    let before = cache.usage().await.unwrap().file_bytes;
    assert_eq!(cache.sweep(at(1)).await.unwrap(), Swept { records: 0, pages: 1 }, "one was kept in the future");
    assert_eq!(cache.sweep(at(5_001)).await.unwrap(), Swept { records: 1, pages: 1_199 });
    assert_eq!(cache.sweep(at(5_001)).await.unwrap(), Swept::default());
    let usage = cache.usage().await.unwrap();
    assert_eq!((usage.records, usage.pages, usage.bytes), (0, 0, 0));
    cache.close().await;
    let after = fs::metadata(dir.path().join("cache/cache.sqlite")).unwrap().len();
    assert!(after + (4 << 20) <= before, "{before} bytes before, {after} after: 4 MiB go back at each sweep");
}

#[tokio::test]
async fn the_file_is_in_wal_mode_and_nobody_elses_to_read() {
    let dir = tempfile::tempdir().unwrap();
    let cache = open(dir.path()).await;
    let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
    assert_eq!(mode(&dir.path().join("cache")), 0o700);
    for name in ["cache.sqlite", "cache.sqlite-wal", "cache.sqlite-shm"] {
        assert_eq!(mode(&dir.path().join("cache").join(name)), 0o600, "{name}");
    }
    assert_eq!(cache.schema().await.unwrap(), 1);
    assert!(cache.version().await.unwrap().starts_with("3."));
    cache.close().await;
    let header = fs::read(cache.path()).unwrap();
    // https://www.sqlite.org/fileformat.html: read and write version 2 is WAL; incremental vacuum at 64; application id at 68.
    assert_eq!(header[18..20], [2, 2]);
    assert_eq!((&header[64..68], &header[68..72]), (&[0, 0, 0, 1][..], &b"BIBC"[..]));
}

#[tokio::test]
async fn a_damaged_file_is_set_aside_and_the_cache_begins_anew() {
    let dir = tempfile::tempdir().unwrap();
    let (path, page) = (dir.path().join("cache/cache.sqlite"), vec![3; 1 << 16]);
    let other = key(dir.path(), "other");
    for damage in ["rubbish", "truncated", "a hole in its middle"] {
        let cache = Cache::open(&dir.path().join("cache"), PeerId::from_public_key([7; 32]), settings()).await.unwrap();
        cache.cache.keep_page(&Hash::of(&page), &page, at(0)).await.unwrap();
        cache.cache.keep_record(&record(&other, 1, "n"), at(0)).await.unwrap();
        cache.cache.close().await;
        let whole = fs::read(&path).unwrap();
        match damage {
            "rubbish" => fs::write(&path, b"this is no database at all, and never was one".repeat(100)).unwrap(),
            "truncated" => fs::write(&path, &whole[..4_096]).unwrap(),
            _ => {
                let mut holed = whole.clone();
                holed[4_096..].fill(0xff);
                fs::write(&path, holed).unwrap();
            }
        }
        let opened =
            Cache::open(&dir.path().join("cache"), PeerId::from_public_key([7; 32]), settings()).await.unwrap();
        let mut was_damaged = opened.set_aside.is_some();
        let cache = opened.cache;
        // What the opening does not read is found by whoever reads it first.
        let given = cache.keep_page(&Hash::of(&page), &page, at(1)).await;
        was_damaged |= matches!(given, Err(Error::Damaged));
        assert!(was_damaged, "{damage}: {given:?}");
        cache.keep_page(&Hash::of(&page), &page, at(2)).await.unwrap();
        assert!(cache.page(&Hash::of(&page), at(3)).await.unwrap().as_ref() == Some(&page), "{damage}");
        assert_eq!(cache.usage().await.unwrap().records, 0, "{damage}: it began anew");
        assert!(dir.path().join("cache/cache.sqlite.damaged").exists(), "{damage}");
        cache.close().await;
    }
}

#[tokio::test]
async fn a_database_of_somebody_else_or_of_a_newer_release_is_left_alone() {
    let dir = tempfile::tempdir().unwrap();
    open(dir.path()).await.close().await;
    let path = dir.path().join("cache/cache.sqlite");
    let ours = fs::read(&path).unwrap();
    let change = |place: usize, bytes: &[u8]| {
        let mut changed = ours.clone();
        changed[place..place + bytes.len()].copy_from_slice(bytes);
        fs::write(&path, &changed).unwrap();
        changed
    };
    let node = PeerId::from_public_key([7; 32]);
    let foreign = change(68, b"GPKG");
    let refused = Cache::open(&dir.path().join("cache"), node, settings()).await.unwrap_err();
    assert!(matches!(refused, OpenError::Foreign { .. }) && refused.hint().contains("move"), "{refused}");
    assert!(fs::read(&path).unwrap() == foreign, "it was written into");
    change(60, &9_u32.to_be_bytes());
    let refused = Cache::open(&dir.path().join("cache"), node, settings()).await.unwrap_err();
    assert!(matches!(refused, OpenError::Newer { found: 9, known: 1 }), "{refused}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn many_write_and_read_at_once() {
    let dir = tempfile::tempdir().unwrap();
    let cache = open(dir.path()).await;
    let mut tasks = tokio::task::JoinSet::new();
    for writer in 0..8_u8 {
        let cache = cache.clone();
        tasks.spawn(async move {
            for number in 0..50_u8 {
                let page = vec![writer, number];
                cache.keep_page(&Hash::of(&page), &page, at(0)).await.unwrap();
                assert_eq!(cache.page(&Hash::of(&page), at(1)).await.unwrap(), Some(page));
            }
        });
    }
    while let Some(done) = tasks.join_next().await {
        done.unwrap();
    }
    assert_eq!(cache.usage().await.unwrap().pages, 400);
}

/// Not a test of its own: what the next one kills.
#[tokio::test]
async fn child_that_writes_until_it_is_killed() {
    let Some(dir) = std::env::var_os(CHILD) else { return };
    let cache = open(Path::new(&dir)).await;
    for number in 0_u32.. {
        let mut page = vec![5; 8 << 10];
        page[..4].copy_from_slice(&number.to_be_bytes());
        cache.keep_page(&Hash::of(&page), &page, at(0)).await.unwrap();
        let mut out = std::io::stdout().lock();
        writeln!(out, "kept {number}").and_then(|()| out.flush()).unwrap();
    }
}

#[tokio::test]
async fn what_was_kept_survives_a_kill_at_any_moment() {
    let dir = tempfile::tempdir().unwrap();
    for wanted in [1, 40, 300] {
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "child_that_writes_until_it_is_killed", "--nocapture"])
            .env(CHILD, dir.path())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let said = format!("kept {wanted}");
        assert!(lines.any(|line| line.unwrap().ends_with(&said)), "the child ended before it was killed");
        child.kill().unwrap();
        child.wait().unwrap();
        let cache = open(dir.path()).await;
        for number in 0..=wanted {
            let mut page = vec![5; 8 << 10];
            page[..4].copy_from_slice(&u32::to_be_bytes(number));
            assert!(cache.page(&Hash::of(&page), at(1)).await.unwrap() == Some(page), "{number} of {wanted}");
        }
        cache.close().await;
    }
}
