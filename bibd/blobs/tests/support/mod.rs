//! What the tests of this crate share.

#![allow(dead_code, unreachable_pub)]

use bibd_blobs::{Location, Stored};
use bytes::Bytes;
use rand::Rng as _;
use rand::rngs::StdRng;

/// Where the catalog would say that a chunk lies.
pub fn at(stored: &Stored) -> Location {
    Location::Store { encoding: stored.encoding, stored_bytes: stored.stored_bytes }
}

/// 1 to `most` bytes: random ones, or a repetition that compresses.
pub fn random_chunk(rng: &mut StdRng, most: usize) -> Bytes {
    let len = rng.gen_range(1..=most);
    let mut bytes = vec![0; len];
    rng.fill(&mut bytes[..]);
    if rng.gen_bool(0.5) {
        let unit = bytes[..len.min(40)].to_vec();
        bytes = unit.into_iter().cycle().take(len).collect();
    }
    bytes.into()
}

/// A directory for tests that need no disk: in memory, where the machine has such a place.
pub fn memory_dir() -> tempfile::TempDir {
    tempfile::tempdir_in("/dev/shm").or_else(|_| tempfile::tempdir()).unwrap()
}

/// Says that a test passes without having tested anything; in CI it fails instead.
pub fn skip(why: &str) {
    assert!(std::env::var_os("CI").is_none(), "needed in CI: {why}");
    let notice = format!("SKIPPED: {why}\n");
    std::io::Write::write_all(&mut std::io::stderr(), notice.as_bytes()).unwrap();
}
