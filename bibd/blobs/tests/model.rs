//! Random puts, reads, trashing, restoring, emptying and reopening, beside a model that is two maps.

#![allow(clippy::unwrap_used)]

mod support;

use std::collections::BTreeMap;
use std::time::{Duration, SystemTime};

use bib_core::Hash;
use bibd_blobs::{BlobStore, Depth, Incoming, ReadError, Restored, ScrubBudget, Settings, Stored};
use bytes::Bytes;
use proptest::prelude::*;
use support::at;

#[derive(Debug, Clone)]
enum Act {
    Put(Vec<u8>),
    Read(u8),
    Trash(u8),
    Restore(u8),
    Remove(u8),
    /// Time passes; everything trashed more than this many seconds ago is emptied.
    Empty(u8),
    Reopen,
}

fn act() -> impl Strategy<Value = Act> {
    let chunk = 0u8..12;
    prop_oneof![
        4 => prop::collection::vec(chunk.clone(), 1..6).prop_map(Act::Put),
        3 => chunk.clone().prop_map(Act::Read),
        3 => chunk.clone().prop_map(Act::Trash),
        2 => chunk.clone().prop_map(Act::Restore),
        1 => chunk.prop_map(Act::Remove),
        1 => (0u8..8).prop_map(Act::Empty),
        1 => Just(Act::Reopen),
    ]
}

/// Chunk `n`: even ones compress.
fn raw(n: u8) -> Bytes {
    let len = 1 + usize::from(n) * 777;
    (0..len)
        .map(|i| if n.is_multiple_of(2) { n } else { (i * 31 % 251) as u8 ^ (i / 7) as u8 ^ n })
        .collect::<Vec<u8>>()
        .into()
}

#[derive(Default)]
struct Model {
    visible: BTreeMap<Hash, Stored>,
    trashed: BTreeMap<Hash, (Stored, u64)>,
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, failure_persistence: None, rng_seed: prop::test_runner::RngSeed::Fixed(20), ..ProptestConfig::default() })]
    #[test]
    fn the_store_does_what_two_maps_do(acts in prop::collection::vec(act(), 1..60)) {
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        runtime.block_on(run(acts));
    }
}

async fn run(acts: Vec<Act>) {
    let dir = support::memory_dir();
    let open = || BlobStore::open(&dir.path().join("store"), Settings::default()).unwrap();
    let (mut store, mut model, mut clock) = (open(), Model::default(), 1_000u64);
    let time = |seconds| SystemTime::UNIX_EPOCH + Duration::from_secs(seconds);
    for act in acts {
        clock += 1;
        match act {
            Act::Put(chunks) => {
                let incoming = chunks.iter().map(|n| Incoming::raw(Hash::of(&raw(*n)), raw(*n))).collect();
                for stored in store.put_many(incoming).await.unwrap() {
                    let hash = stored.hash;
                    let visible = model.visible.contains_key(&hash);
                    let revived = !visible && model.trashed.remove(&hash).is_some();
                    // A chunk twice in one batch is new for one of them and may be known to the other.
                    assert!(stored.already_there || !revived && !visible || chunks.len() > 1);
                    assert!(!stored.already_there || revived || visible || chunks.len() > 1);
                    model.visible.insert(hash, stored);
                }
            }
            Act::Read(n) => read(&store, &model, n).await,
            Act::Trash(n) => {
                let hash = Hash::of(&raw(n));
                let there = model.visible.remove(&hash);
                assert_eq!(store.trash(&hash, time(clock)).await.unwrap(), there.is_some());
                if let Some(stored) = there {
                    model.trashed.insert(hash, (stored, clock));
                }
            }
            Act::Restore(n) => {
                let hash = Hash::of(&raw(n));
                let expected = match (model.visible.contains_key(&hash), model.trashed.contains_key(&hash)) {
                    (true, _) => Restored::AlreadyThere,
                    (false, true) => Restored::FromTrash,
                    (false, false) => Restored::Missing,
                };
                assert_eq!(store.restore(&hash).await.unwrap(), expected);
                if expected == Restored::FromTrash {
                    let (stored, _) = model.trashed.remove(&hash).unwrap();
                    model.visible.insert(hash, stored);
                }
            }
            Act::Remove(n) => {
                let hash = Hash::of(&raw(n));
                let visible = model.visible.remove(&hash).is_some();
                let trashed = model.trashed.remove(&hash).is_some();
                assert_eq!(store.remove(&hash).await.unwrap(), visible || trashed);
            }
            Act::Empty(age) => {
                let before = clock - u64::from(age);
                let count = model.trashed.len();
                model.trashed.retain(|_, (_, when)| *when >= before);
                let (files, _) = store.empty_trash(time(before)).await.unwrap();
                assert_eq!(files as usize, count - model.trashed.len());
            }
            Act::Reopen => {
                drop(store);
                store = open();
            }
        }
    }
    for n in 0..12 {
        read(&store, &model, n).await;
    }
    let budget = ScrubBudget { files: usize::MAX, bytes: u64::MAX };
    let page = store.scrub(None, Depth::Contents, budget).await.unwrap();
    let found: Vec<Hash> = page.files.iter().map(|file| file.hash).collect();
    assert_eq!(found, model.visible.keys().copied().collect::<Vec<_>>());
}

async fn read(store: &BlobStore, model: &Model, n: u8) {
    let hash = Hash::of(&raw(n));
    match model.visible.get(&hash) {
        Some(stored) => assert_eq!(store.read(&at(stored), &hash, stored.raw_len).await.unwrap(), raw(n)),
        None => {
            let location = bibd_blobs::Location::Store { encoding: bibd_blobs::Encoding::Raw, stored_bytes: 1 };
            let error = store.read(&location, &hash, 1).await.unwrap_err();
            assert!(matches!(error, ReadError::Missing { .. }), "{error}");
        }
    }
}
