//! A disk that forgets what was not fsynced loses power at random points; nothing acknowledged may be lost, and nothing
//! half written may pass for a chunk.

#![allow(clippy::unwrap_used)]

mod forgetful;
mod support;

use std::collections::HashMap;
use std::fs::{self, File};
use std::io::Write as _;

use bib_core::Hash;
use bibd_blobs::{BlobStore, Depth, FileState, Incoming, ScrubBudget, Settings, StoreError, Stored};
use forgetful::{Forgetful, Memory};
use rand::rngs::StdRng;
use rand::{Rng as _, SeedableRng as _};
use support::{at, random_chunk};

const ROUNDS: u64 = 20;
const WHOLE: ScrubBudget = ScrubBudget { files: usize::MAX, bytes: u64::MAX };

#[tokio::test]
async fn acknowledged_chunks_survive_twenty_power_cuts() {
    let disk = Forgetful::new();
    let mut rng = StdRng::seed_from_u64(0xb1b);
    let mut acknowledged: HashMap<Hash, (Stored, bytes::Bytes)> = HashMap::new();
    let mut cut_short = 0;
    for round in 0..ROUNDS {
        let Some(mounted) = disk.mount() else { return };
        disk.cut_power_after(rng.gen_range(1..400) + if round == 0 { 600 } else { 0 });
        cut_short += u32::from(!work_until_it_fails(&mounted, &mut rng, &mut acknowledged).await);
        drop(mounted);
        match round % 2 {
            0 => disk.forget(Memory::Nothing),
            _ => disk.forget(Memory::Some(&mut rng)),
        }
        let mounted = disk.mount().unwrap();
        let store = BlobStore::open(&mounted.path().join("store"), Settings::default()).unwrap();
        for (hash, (stored, raw)) in &acknowledged {
            let read = store.read(&at(stored), hash, stored.raw_len).await;
            assert_eq!(read.unwrap_or_else(|error| panic!("round {round}: {error}")), raw, "round {round}");
        }
        let page = store.scrub(None, Depth::Contents, WHOLE).await.unwrap();
        assert!(page.files.len() >= acknowledged.len());
        for file in &page.files {
            assert!(matches!(file.state, FileState::Whole { .. }), "round {round}: {file:?}");
        }
        assert_eq!(fs::read_dir(store.root().join("tmp")).unwrap().count(), 0, "round {round}");
    }
    assert!(acknowledged.len() > 50, "too few chunks were acknowledged: {}", acknowledged.len());
    assert!(u64::from(cut_short) == ROUNDS, "every round must end in a power cut, {cut_short} did");
}

/// Puts batches, some of chunks that are there already, until the disk dies. `false`, as it always should.
async fn work_until_it_fails(
    mounted: &forgetful::Mounted,
    rng: &mut StdRng,
    acknowledged: &mut HashMap<Hash, (Stored, bytes::Bytes)>,
) -> bool {
    let Ok(store) = BlobStore::open(&mounted.path().join("store"), Settings::default()) else { return false };
    for _ in 0..1000 {
        let mut chunks: Vec<bytes::Bytes> = (0..rng.gen_range(1..12)).map(|_| random_chunk(rng, 20_000)).collect();
        chunks.extend(acknowledged.values().take(1).map(|(_, raw)| raw.clone()));
        let incoming = chunks.iter().map(|raw| Incoming::raw(Hash::of(raw), raw.clone())).collect();
        match store.put_many(incoming).await {
            Ok(stored) => {
                assert_eq!(stored.len(), chunks.len());
                acknowledged.extend(stored.into_iter().zip(chunks).map(|(one, raw)| (one.hash, (one, raw))));
            }
            Err(_) => return false,
        }
    }
    true
}

/// The negative control: the same disk loses what a careless writer thought safe.
#[test]
fn the_disk_does_forget_what_was_not_fsynced() {
    let disk = Forgetful::new();
    let Some(mounted) = disk.mount() else { return };
    let write = |name: &str, sync: bool| {
        let temp = mounted.path().join(format!("{name}.tmp"));
        let mut file = File::create(&temp).unwrap();
        file.write_all(b"precious").unwrap();
        if sync {
            file.sync_all().unwrap();
        }
        fs::rename(&temp, mounted.path().join(name)).unwrap();
    };
    write("no-file-sync", false);
    write("careful", true);
    File::open(mounted.path()).unwrap().sync_all().unwrap();
    write("no-dir-sync", true);
    assert_eq!(fs::read(mounted.path().join("no-dir-sync")).unwrap(), b"precious");
    drop(mounted);
    disk.forget(Memory::Nothing);

    let mounted = disk.mount().unwrap();
    assert_eq!(fs::read(mounted.path().join("careful")).unwrap(), b"precious");
    assert_eq!(fs::read(mounted.path().join("no-file-sync")).unwrap(), b"");
    assert!(!mounted.path().join("no-dir-sync").exists());
}

/// After a failed fsync the kernel may call the pages clean: trying again would succeed and mean nothing.
#[tokio::test]
async fn a_failed_fsync_is_fatal_for_the_file_and_latches_the_store() {
    let disk = Forgetful::new();
    let Some(mounted) = disk.mount() else { return };
    let store = BlobStore::open(&mounted.path().join("store"), Settings::default()).unwrap();
    let mut rng = StdRng::seed_from_u64(7);
    let (good, bad) = (random_chunk(&mut rng, 10_000), random_chunk(&mut rng, 10_000));
    let stored = store.put_many(vec![Incoming::raw(Hash::of(&good), good.clone())]).await.unwrap();

    disk.break_file_syncs(true);
    let error = store.put_many(vec![Incoming::raw(Hash::of(&bad), bad.clone())]).await.unwrap_err();
    assert!(matches!(error, StoreError::Io { act: "fsync", .. }), "{error}");
    disk.break_file_syncs(false);
    assert_eq!(disk.most_syncs_of_one_file(), 1);
    assert!(!store.exists(&Hash::of(&bad)).await.unwrap());
    assert_eq!(fs::read_dir(store.root().join("tmp")).unwrap().count(), 0);

    assert!(store.usage().unwrap().read_only.unwrap().contains("fsync"));
    let refused = store.put_many(vec![Incoming::raw(Hash::of(&bad), bad.clone())]).await.unwrap_err();
    assert!(matches!(refused, StoreError::ReadOnly { .. }), "{refused}");
    assert_eq!(store.read(&at(&stored[0]), &stored[0].hash, stored[0].raw_len).await.unwrap(), good);
}

#[tokio::test]
async fn a_failed_fsync_of_a_directory_acknowledges_nothing_and_latches() {
    let disk = Forgetful::new();
    let Some(mounted) = disk.mount() else { return };
    let root = mounted.path().join("store");
    let store = BlobStore::open(&root, Settings::default()).unwrap();
    let raw = random_chunk(&mut StdRng::seed_from_u64(8), 10_000);
    disk.break_dir_syncs(true);
    store.put_many(vec![Incoming::raw(Hash::of(&raw), raw.clone())]).await.unwrap_err();
    assert!(store.read_only().is_some());
    disk.break_dir_syncs(false);
    drop(store);

    // Opened anew, the same put finds a visible chunk and must still make its name durable.
    let store = BlobStore::open(&root, Settings::default()).unwrap();
    let stored = store.put_many(vec![Incoming::raw(Hash::of(&raw), raw.clone())]).await.unwrap();
    assert!(stored[0].already_there);
    drop(store);
    drop(mounted);
    disk.forget(Memory::Nothing);
    let mounted = disk.mount().unwrap();
    let store = BlobStore::open(&mounted.path().join("store"), Settings::default()).unwrap();
    assert_eq!(store.read(&at(&stored[0]), &stored[0].hash, stored[0].raw_len).await.unwrap(), raw);
}
