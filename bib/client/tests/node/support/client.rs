//! Clients, folders and bytes for tests.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use bib_client::{Client, Options, Random, Target};
use bib_core::name::DatasetName;
use bib_core::{Hash, Timestamp};
use bib_identity::TimeSource;
use bib_identity::ssh::{UserKey, generate};

use super::Node;

pub(crate) fn name() -> DatasetName {
    DatasetName::new("climate/hourly").unwrap()
}

/// A client of `node` whose directories lie in `home`. Its clock stands far in the future, so that every file has
/// settled for the stat cache.
pub(crate) fn client(node: &Node, home: &Path) -> Client {
    let counter = Arc::new(AtomicU64::new(1));
    let random = Random::new(move |bytes| {
        for chunk in bytes.chunks_mut(32) {
            let hash = Hash::of(&counter.fetch_add(1, Ordering::Relaxed).to_le_bytes());
            chunk.copy_from_slice(&hash.as_bytes()[..chunk.len()]);
        }
    });
    let clock = TimeSource::new(|| Timestamp::from_micros(4_000_000_000_000_000));
    let options = Options::new(clock, random, home.join("config"), home.join("cache"));
    Client::connect(Target::Socket(node.socket.clone()), options).unwrap()
}

/// A key that the node knows.
pub(crate) fn key(node: &Node, home: &Path) -> Arc<UserKey> {
    fs::create_dir_all(home).unwrap();
    let key = generate(&home.join("id"), "ada", &mut rand_core::OsRng).unwrap();
    node.store.lock().unwrap().keys.push(key.public().to_line());
    Arc::new(key)
}

/// Bytes that do not repeat.
pub(crate) fn noise(seed: u64, length: usize) -> Vec<u8> {
    let mut out = Vec::with_capacity(length + 32);
    let mut counter = 0u64;
    while out.len() < length {
        let block = Hash::of(&[seed.to_le_bytes(), counter.to_le_bytes()].concat());
        out.extend_from_slice(block.as_bytes());
        counter += 1;
    }
    out.truncate(length);
    out
}

/// Writes files into a new folder.
pub(crate) fn folder(files: &[(&str, Vec<u8>)]) -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    for (path, bytes) in files {
        let path = dir.path().join(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, bytes).unwrap();
    }
    dir
}

/// Every path below `dir` with what is there.
pub(crate) fn files_of(dir: &Path) -> BTreeMap<String, Vec<u8>> {
    let mut found = BTreeMap::new();
    let mut stack = vec![dir.to_owned()];
    while let Some(next) = stack.pop() {
        for entry in fs::read_dir(&next).unwrap() {
            let path = entry.unwrap().path();
            let key = path.strip_prefix(dir).unwrap().to_str().unwrap().to_owned();
            let kind = fs::symlink_metadata(&path).unwrap().file_type();
            if kind.is_symlink() {
                found.insert(key, fs::read_link(&path).unwrap().to_str().unwrap().as_bytes().to_vec());
            } else if kind.is_dir() {
                found.insert(format!("{key}/"), Vec::new());
                stack.push(path);
            } else {
                found.insert(key, fs::read(&path).unwrap());
            }
        }
    }
    found
}
