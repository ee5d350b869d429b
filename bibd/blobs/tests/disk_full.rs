//! A real ext4 of 16 MiB on a loop device, filled to the brim. Needs root.

#![allow(clippy::unwrap_used)]

mod support;

use std::fs;
use std::path::Path;
use std::process::Command;

use bib_core::Hash;
use bibd_blobs::{BlobStore, Compression, Incoming, Settings, StoreError};
use bytes::Bytes;
use rand::rngs::StdRng;
use rand::{RngCore as _, SeedableRng as _};
use support::{at, skip};

struct Loop(tempfile::TempDir);

impl Loop {
    fn mount() -> Option<Self> {
        let dir = tempfile::tempdir().unwrap();
        let (image, target) = (dir.path().join("image"), dir.path().join("disk"));
        fs::File::create(&image).unwrap().set_len(16 << 20).unwrap();
        fs::create_dir(&target).unwrap();
        let run =
            |name: &str, args: &[&Path]| Command::new(name).args(args).output().is_ok_and(|out| out.status.success());
        let done = run("mkfs.ext4", &[Path::new("-q"), &image])
            && run("mount", &[Path::new("-o"), Path::new("loop"), &image, &target]);
        if !done {
            skip("no loop mount of an ext4 here (root and mkfs.ext4 are needed); a full disk was not tested");
        }
        done.then_some(Self(dir))
    }
}

impl Drop for Loop {
    fn drop(&mut self) {
        let unmounted = Command::new("umount").arg(self.0.path().join("disk")).status().is_ok_and(|s| s.success());
        assert!(unmounted || std::thread::panicking(), "the loop device is still in use");
    }
}

#[tokio::test]
async fn a_full_disk_refuses_writes_keeps_reads_and_recovers() {
    let Some(disk) = Loop::mount() else { return };
    let root = disk.0.path().join("disk/store");
    let store = BlobStore::open(&root, Settings { compression: Compression::Off, ..Settings::default() }).unwrap();
    let mut rng = StdRng::seed_from_u64(12);
    let mut chunk = || {
        let mut bytes = vec![0; 1 << 20];
        rng.fill_bytes(&mut bytes);
        Bytes::from(bytes)
    };
    let put = |raw: Bytes| store.put_many(vec![Incoming::raw(Hash::of(&raw), raw)]);
    let mut kept = Vec::new();
    let refused = loop {
        assert!(kept.len() < 16, "the disk never filled up");
        let raw = chunk();
        match put(raw.clone()).await {
            Ok(stored) => kept.push((stored[0].clone(), raw)),
            Err(error) => {
                assert!(matches!(error, StoreError::NoSpace { .. }), "{error}");
                break raw;
            }
        }
    };
    assert!(kept.len() >= 4);
    assert!(!store.exists(&Hash::of(&refused)).await.unwrap());
    assert_eq!(fs::read_dir(root.join("tmp")).unwrap().count(), 0);
    assert_eq!(store.read_only(), None);
    assert!(store.usage().unwrap().free_bytes < 1 << 20);
    for (stored, raw) in &kept {
        assert_eq!(store.read(&at(stored), &stored.hash, stored.raw_len).await.unwrap(), raw);
    }
    // Room again: the refused chunk goes in, no manual step.
    for (stored, _) in kept.drain(..2) {
        assert!(store.remove(&stored.hash).await.unwrap());
    }
    let stored = put(refused.clone()).await.unwrap();
    assert_eq!(store.read(&at(&stored[0]), &stored[0].hash, stored[0].raw_len).await.unwrap(), refused);
    drop(store);
}

#[tokio::test]
async fn a_disk_remounted_read_only_latches_the_store() {
    let Some(disk) = Loop::mount() else { return };
    let mount = disk.0.path().join("disk");
    let store = BlobStore::open(&mount.join("store"), Settings::default()).unwrap();
    let raw = Bytes::from_static(b"before");
    let stored = store.put_many(vec![Incoming::raw(Hash::of(&raw), raw.clone())]).await.unwrap();
    let remounted = Command::new("mount").args(["-o", "remount,ro"]).arg(&mount).status().unwrap();
    assert!(remounted.success());
    let late = Bytes::from_static(b"after");
    store.put_many(vec![Incoming::raw(Hash::of(&late), late)]).await.unwrap_err();
    assert!(store.usage().unwrap().read_only.is_some());
    assert_eq!(store.read(&at(&stored[0]), &stored[0].hash, stored[0].raw_len).await.unwrap(), raw);
    drop(store);
}
