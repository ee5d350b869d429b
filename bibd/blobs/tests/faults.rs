//! Bad input, damaged files and races: each ends in a typed answer, and no wrong byte is ever returned.

#![allow(clippy::unwrap_used)]

mod support;

use std::fs::{self, OpenOptions};
use std::os::unix::fs::{FileExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use bib_core::Hash;
use bibd_blobs::{
    BlobStore, Compression, Damage, Depth, Encoding, Expected, FileGuard, Finding, Frame, Incoming, Location,
    MAX_CHUNK_BYTES, OpenError, ReadError, Restored, ScrubBudget, Settings, StoreError, Stored,
};
use bytes::Bytes;
use rand::rngs::StdRng;
use rand::{RngCore as _, SeedableRng as _};
use support::at;

struct Fixture {
    dir: tempfile::TempDir,
    store: BlobStore,
}

impl Fixture {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let store = BlobStore::open(&dir.path().join("store"), Settings::default()).unwrap();
        Self { dir, store }
    }

    async fn put(&self, raw: &Bytes) -> Stored {
        self.store.put_many(vec![Incoming::raw(Hash::of(raw), raw.clone())]).await.unwrap().remove(0)
    }

    fn file(&self, hash: &Hash) -> PathBuf {
        let text = hash.to_string();
        self.store.root().join("blobs").join(&text[..2]).join(&text[2..4]).join(&text)
    }

    fn quarantined(&self) -> usize {
        fs::read_dir(self.store.root().join("quarantine")).unwrap().count()
    }
}

impl Drop for Fixture {
    fn drop(&mut self) {
        if !std::thread::panicking() {
            assert_eq!(fs::read_dir(self.store.root().join("tmp")).unwrap().count(), 0, "a temporary file leaked");
        }
    }
}

fn random(seed: u64, len: usize) -> Bytes {
    let mut bytes = vec![0; len];
    StdRng::seed_from_u64(seed).fill_bytes(&mut bytes);
    bytes.into()
}

fn text(len: usize) -> Bytes {
    b"2024-03-01,station 17,12.5\n".iter().copied().cycle().take(len).collect::<Vec<u8>>().into()
}

fn zstd_frame(raw: &[u8]) -> Frame {
    let bytes = zstd::bulk::compress(raw, 3).unwrap().into();
    Frame { encoding: Encoding::Zstd, raw_len: raw.len() as u32, bytes }
}

/// Changes the file at `path` although it is read-only.
fn damage(path: &Path, change: impl FnOnce(&fs::File)) {
    fs::set_permissions(path, fs::Permissions::from_mode(0o600)).unwrap();
    change(&OpenOptions::new().read(true).write(true).open(path).unwrap());
}

#[tokio::test]
async fn what_is_put_is_read_back_in_either_encoding() {
    let fixture = Fixture::new();
    for (raw, encoding) in [
        (random(1, 1), Encoding::Raw),
        (random(2, 300_000), Encoding::Raw),
        (random(3, MAX_CHUNK_BYTES as usize), Encoding::Raw),
        (text(700_000), Encoding::Zstd),
        (text(MAX_CHUNK_BYTES as usize), Encoding::Zstd),
    ] {
        let stored = fixture.put(&raw).await;
        assert_eq!((stored.encoding, stored.already_there), (encoding, false));
        assert_eq!(fs::metadata(fixture.file(&stored.hash)).unwrap().len(), u64::from(stored.stored_bytes));
        assert_eq!(fixture.store.read(&at(&stored), &stored.hash, stored.raw_len).await.unwrap(), raw);
        let frames = fixture.store.read_encoded(&at(&stored), &stored.hash, stored.raw_len).await.unwrap();
        assert!(frames.iter().all(|frame| frame.raw_len <= 1 << 20 && frame.encoding == encoding));
        // What was read to be sent can be put elsewhere as it is, and lies there as it lay here.
        let other = Fixture::new();
        let copy = other.store.put_many(vec![Incoming { hash: stored.hash, frames }]).await.unwrap().remove(0);
        assert_eq!((copy.encoding, copy.stored_bytes), (stored.encoding, stored.stored_bytes));
        assert_eq!(fixture.put(&raw).await, Stored { already_there: true, ..stored });
    }
}

#[tokio::test]
async fn a_chunk_that_is_itself_a_zstd_file_is_no_riddle() {
    let fixture = Fixture::new();
    let raw = zstd_frame(&random(4, 50_000)).bytes;
    let stored = fixture.put(&raw).await;
    assert_eq!(stored.encoding, Encoding::Raw);
    assert_eq!(fixture.store.read(&at(&stored), &stored.hash, stored.raw_len).await.unwrap(), raw);
    assert_eq!(fixture.put(&raw).await.encoding, Encoding::Raw);
}

#[tokio::test]
async fn bad_input_is_refused_and_nothing_becomes_visible() {
    type Judge = fn(&StoreError) -> bool;
    let fixture = Fixture::new();
    let raw = text(100_000);
    let hash = Hash::of(&raw);
    let frames = |frames: Vec<Frame>| Incoming { hash, frames };
    let bomb = Frame { raw_len: 100_000, ..zstd_frame(&text(1 << 20)) };
    let cut = Frame { bytes: zstd_frame(&raw).bytes.slice(..20), ..zstd_frame(&raw) };
    let lying = Frame { encoding: Encoding::Raw, raw_len: 5, bytes: raw.clone() };
    let huge = Frame { encoding: Encoding::Raw, raw_len: u32::MAX, bytes: raw.clone() };
    let cases: Vec<(Incoming, Judge)> = vec![
        (Incoming::raw(hash, random(5, 100)), |error| matches!(error, StoreError::HashMismatch { .. })),
        (Incoming::raw(Hash::of(b""), Bytes::new()), |error| matches!(error, StoreError::Size { bytes: 0, .. })),
        (Incoming::raw(hash, random(6, MAX_CHUNK_BYTES as usize + 1)), |error| {
            matches!(error, StoreError::Size { .. })
        }),
        (frames(vec![huge.clone(), huge]), |error| matches!(error, StoreError::Size { .. })),
        (frames(vec![bomb]), |error| matches!(error, StoreError::Frame { .. })),
        (frames(vec![cut]), |error| matches!(error, StoreError::Frame { .. })),
        (frames(vec![lying]), |error| matches!(error, StoreError::Frame { .. })),
    ];
    for (number, (bad, expected)) in cases.into_iter().enumerate() {
        let good = Incoming::raw(Hash::of(b"good"), Bytes::from_static(b"good"));
        let error = fixture.store.put_many(vec![good, bad]).await.unwrap_err();
        assert!(expected(&error), "case {number}: {error}");
        assert!(!fixture.store.exists(&hash).await.unwrap(), "case {number}");
        assert!(!fixture.store.exists(&Hash::of(b"good")).await.unwrap(), "case {number}");
    }
}

#[tokio::test]
async fn damage_is_found_quarantined_and_healed_by_a_put() {
    let fixture = Fixture::new();
    type Change = fn(&fs::File);
    let flip: Change = |file| {
        let mut byte = [0];
        file.read_exact_at(&mut byte, 20).unwrap();
        file.write_all_at(&[byte[0] ^ 1], 20).unwrap();
    };
    let cut: Change = |file| file.set_len(file.metadata().unwrap().len() - 1).unwrap();
    let grow: Change = |file| file.write_all_at(b"x", file.metadata().unwrap().len()).unwrap();
    let empty: Change = |file| file.set_len(0).unwrap();
    let bomb: Change = |file| file.set_len(1 << 40).unwrap();
    let mut count = 0;
    for raw in [random(8, 200_000), text(200_000)] {
        for (is_length, change) in [(false, flip), (true, cut), (true, grow), (true, empty), (true, bomb)] {
            let stored = fixture.put(&raw).await;
            damage(&fixture.file(&stored.hash), change);
            count += 1;
            let error = fixture.store.read(&at(&stored), &stored.hash, stored.raw_len).await.unwrap_err();
            let ReadError::Corrupt { damage, quarantined: true, .. } = error else { panic!("{error}") };
            assert_eq!(matches!(damage, Damage::Length { .. }), is_length);
            assert_eq!(fixture.quarantined(), count);
            let gone = fixture.store.read(&at(&stored), &stored.hash, stored.raw_len).await.unwrap_err();
            assert!(matches!(gone, ReadError::Missing { .. }), "{gone}");
            assert!(!fixture.put(&raw).await.already_there);
            assert_eq!(fixture.store.read(&at(&stored), &stored.hash, stored.raw_len).await.unwrap(), raw);
            // Without a read in between, a put does not trust what lies there either.
            fixture_damage_then_put(&fixture, &stored, &raw, flip).await;
            count += 1;
        }
    }
}

async fn fixture_damage_then_put(fixture: &Fixture, stored: &Stored, raw: &Bytes, change: fn(&fs::File)) {
    damage(&fixture.file(&stored.hash), change);
    assert!(!fixture.put(raw).await.already_there);
    assert_eq!(fixture.store.read(&at(stored), &stored.hash, stored.raw_len).await.unwrap(), raw);
}

#[tokio::test]
async fn a_stale_location_is_not_taken_for_damage() {
    let fixture = Fixture::new();
    let raw = text(200_000);
    let stored = fixture.put(&raw).await;
    let stale = Location::Store { encoding: Encoding::Raw, stored_bytes: stored.raw_len };
    assert_eq!(fixture.store.read(&stale, &stored.hash, stored.raw_len).await.unwrap(), raw);
    let error = fixture.store.read(&at(&stored), &stored.hash, 17).await.unwrap_err();
    assert!(matches!(error, ReadError::RawLength { stated: 17, found: 200_000, .. }), "{error}");
    assert_eq!(fixture.quarantined(), 0);
}

#[tokio::test]
async fn a_file_published_in_place_is_watched() {
    let fixture = Fixture::new();
    let path = fixture.dir.path().join("data.csv");
    let raw = text(1000);
    fs::write(&path, &raw).unwrap();
    let guard = FileGuard::of(&fs::metadata(&path).unwrap());
    let part = raw.slice(100..400);
    let hash = Hash::of(&part);
    let location = Location::InPlace { path: path.clone(), offset: 100, guard };
    assert_eq!(fixture.store.read(&location, &hash, 300).await.unwrap(), part);

    // Same size, restored mtime: the ctime gives it away.
    let mtime = fs::metadata(&path).unwrap().modified().unwrap();
    let file = OpenOptions::new().write(true).open(&path).unwrap();
    file.write_all_at(b"X", 150).unwrap();
    file.set_modified(mtime).unwrap();
    let error = fixture.store.read(&location, &hash, 300).await.unwrap_err();
    assert!(matches!(error, ReadError::Changed { what: "ctime", .. }), "{error}");
    // Should the guard be fooled after all, the hash is not.
    let fooled = FileGuard::of(&fs::metadata(&path).unwrap());
    let location = Location::InPlace { path: path.clone(), offset: 100, guard: fooled };
    let error = fixture.store.read(&location, &hash, 300).await.unwrap_err();
    assert!(matches!(error, ReadError::Corrupt { quarantined: false, .. }), "{error}");
    assert!(path.exists());

    file.set_len(10).unwrap();
    let error = fixture.store.read(&location, &hash, 300).await.unwrap_err();
    assert!(matches!(error, ReadError::Changed { what: "size", .. }), "{error}");
    fs::remove_file(&path).unwrap();
    let error = fixture.store.read(&location, &hash, 300).await.unwrap_err();
    assert!(matches!(error, ReadError::Changed { what: "removed", .. }), "{error}");
}

#[tokio::test]
async fn trash_keeps_its_time_and_a_put_takes_back() {
    let fixture = Fixture::new();
    let day = Duration::from_secs(86_400);
    let now = SystemTime::UNIX_EPOCH + 20_000 * day;
    let stored = fixture.put(&text(5000)).await;
    assert!(fixture.store.trash(&stored.hash, now).await.unwrap());
    assert!(!fixture.store.trash(&stored.hash, now).await.unwrap());
    assert!(!fixture.store.exists(&stored.hash).await.unwrap());
    assert_eq!(fixture.store.empty_trash(now).await.unwrap(), (0, 0));
    assert_eq!(fixture.store.restore(&stored.hash).await.unwrap(), Restored::FromTrash);
    assert_eq!(fixture.store.restore(&stored.hash).await.unwrap(), Restored::AlreadyThere);
    fixture.store.trash(&stored.hash, now).await.unwrap();
    assert!(fixture.put(&text(5000)).await.already_there, "revived, not written again");
    fixture.store.trash(&stored.hash, now).await.unwrap();
    assert_eq!(fixture.store.empty_trash(now + day).await.unwrap(), (1, u64::from(stored.stored_bytes)));
    assert_eq!(fixture.store.restore(&stored.hash).await.unwrap(), Restored::Missing);
    assert!(!fixture.put(&text(5000)).await.already_there);
    assert!(fixture.store.remove(&stored.hash).await.unwrap());
    assert!(!fixture.store.remove(&stored.hash).await.unwrap());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn puts_and_trashing_of_one_chunk_may_race() {
    let fixture = Fixture::new();
    let raw = random(9, 100_000);
    let hash = Hash::of(&raw);
    for _ in 0..40 {
        let put = || fixture.store.put_many(vec![Incoming::raw(hash, raw.clone()), Incoming::raw(hash, raw.clone())]);
        let (a, b, trashed) = tokio::join!(put(), put(), fixture.store.trash(&hash, SystemTime::UNIX_EPOCH));
        let (a, b) = (a.unwrap(), b.unwrap());
        trashed.unwrap();
        assert_eq!((a.len(), b.len()), (2, 2));
        // Whoever was last, one whole copy is left, and a put brings it into view.
        let stored = fixture.put(&raw).await;
        assert!(stored.already_there);
        assert_eq!(fixture.store.read(&at(&stored), &hash, stored.raw_len).await.unwrap(), raw);
    }
}

#[tokio::test]
async fn the_scrub_finds_what_differs_and_resumes() {
    let fixture = Fixture::new();
    let mut rows = Vec::new();
    for seed in 0..60 {
        let stored = fixture.put(&random(100 + seed, 3000)).await;
        rows.push(Expected { hash: stored.hash, stored_bytes: stored.stored_bytes });
    }
    rows.sort_by_key(|row| row.hash);
    fs::remove_file(fixture.file(&rows[7].hash)).unwrap();
    damage(&fixture.file(&rows[20].hash), |file| file.write_all_at(b"??", 9).unwrap());
    let orphan = rows.remove(33).hash;
    fs::write(fixture.file(&rows[40].hash).with_file_name("notes.txt"), "mine").unwrap();

    let (mut after, mut findings, mut strays, mut pages) = (None, Vec::new(), Vec::new(), 0);
    loop {
        let budget = ScrubBudget { files: 7, bytes: 10_000 };
        let page = fixture.store.scrub(after, Depth::Contents, budget).await.unwrap();
        assert!(page.files.len() <= 7 && page.bytes_read <= 13_000);
        let in_page = |row: &&Expected| {
            page.after.is_none_or(|after| row.hash > after) && page.up_to.is_none_or(|up_to| row.hash <= up_to)
        };
        let expected: Vec<Expected> = rows.iter().filter(in_page).copied().collect();
        findings.extend(fixture.store.reconcile(&page, &expected).await.unwrap());
        strays.extend(page.strays);
        pages += 1;
        after = page.up_to;
        if after.is_none() {
            break;
        }
    }
    assert!(pages >= 14, "{pages}");
    strays.dedup();
    assert!(matches!(&strays[..], [one] if one.ends_with("notes.txt")));
    assert_eq!(findings.len(), 3, "{findings:?}");
    assert_eq!(findings[0], Finding::Missing { hash: rows[7].hash });
    assert_eq!(findings[1], Finding::Corrupt { hash: rows[20].hash, quarantined: true });
    assert!(matches!(findings[2], Finding::Orphan { hash, stored_bytes: 3000, .. } if hash == orphan));

    let budget = ScrubBudget { files: 1000, bytes: 0 };
    let page = fixture.store.scrub(None, Depth::Names, budget).await.unwrap();
    assert_eq!((page.files.len(), page.bytes_read, page.up_to), (58, 0, None));
}

#[test]
fn a_directory_that_is_not_ours_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let open = || BlobStore::open(dir.path(), Settings::default());
    let store = open().unwrap();
    assert!(matches!(open().unwrap_err(), OpenError::Locked { .. }));
    drop(store);
    fs::write(dir.path().join("tmp/0000000000000007"), "half").unwrap();
    drop(open().unwrap());
    assert_eq!(fs::read_dir(dir.path().join("tmp")).unwrap().count(), 0);
    for strange in ["bib-blobs/2\n", ""] {
        fs::write(dir.path().join("FORMAT"), strange).unwrap();
        assert!(matches!(open().unwrap_err(), OpenError::Format { found, .. } if found == strange.trim_end()));
    }
    fs::remove_file(dir.path().join("FORMAT")).unwrap();
    assert!(matches!(open().unwrap_err(), OpenError::FormatMissing { .. }));
}

#[tokio::test]
async fn small_limits_slow_down_and_nothing_more() {
    let dir = tempfile::tempdir().unwrap();
    let settings = Settings {
        compression: Compression::Off,
        in_flight_bytes: 0,
        open_files: 0,
        workers: 1,
        syncs: 1,
        ..Settings::default()
    };
    let store = BlobStore::open(dir.path(), settings).unwrap();
    let chunks: Vec<Bytes> = (0..12).map(|seed| random(seed, MAX_CHUNK_BYTES as usize)).collect();
    let incoming = || chunks.iter().map(|raw| Incoming::raw(Hash::of(raw), raw.clone())).collect();
    let (a, b) = tokio::join!(store.put_many(incoming()), store.put_many(incoming()));
    for (stored, raw) in a.unwrap().iter().chain(&b.unwrap()).zip(chunks.iter().cycle()) {
        assert_eq!(store.read(&at(stored), &stored.hash, stored.raw_len).await.unwrap(), raw);
    }
}
