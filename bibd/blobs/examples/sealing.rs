//! How fast chunks are sealed with age to two recipients, and opened, in time of one processor, so that it may be busy:
//! `cargo run --release -p bibd-blobs --example sealing`. What it found is in ADR 7.
#![allow(clippy::print_stdout, clippy::unwrap_used, reason = "a measurement says what it found")]

use std::io::{Read as _, Write as _};
use std::time::Duration;

use bib_identity::sealed_stream::{Opener, SealingWriter};
use bib_identity::{NodeKey, Recipient};
use rand::SeedableRng as _;

const ROUNDS: usize = 500;

/// What this thread has used of a processor.
fn cpu() -> Duration {
    let text = std::fs::read_to_string("/proc/thread-self/schedstat").unwrap();
    Duration::from_nanos(text.split(' ').next().unwrap().parse().unwrap())
}

fn main() {
    let directory = tempfile::tempdir().unwrap();
    let mut rng = rand::rngs::StdRng::seed_from_u64(1);
    let keys = ["node", "recovery"].map(|name| NodeKey::create(&directory.path().join(name), &mut rng).unwrap());
    let recipients: Vec<Recipient> = keys.iter().map(|key| Recipient::Node(key.peer_id())).collect();
    let opener = Opener::of_node(&keys[0]).unwrap();
    for bytes in [64 << 10, 1 << 20, 4 << 20] {
        let plain = vec![7; bytes];
        let mut sealed = Vec::new();
        let begun = cpu();
        for _ in 0..ROUNDS {
            let mut writer = SealingWriter::new(Vec::with_capacity(bytes + 16_384), &recipients).unwrap();
            writer.write_all(&plain).unwrap();
            sealed = writer.finish().unwrap();
        }
        let sealing = cpu() - begun;
        let begun = cpu();
        for _ in 0..ROUNDS {
            let mut back = Vec::with_capacity(bytes);
            opener.open(sealed.as_slice()).unwrap().read_to_end(&mut back).unwrap();
        }
        let opening = cpu() - begun;
        let rate = |took: Duration| (bytes * ROUNDS) as f64 / took.as_secs_f64() / 1e6;
        println!("{bytes} bytes: sealed at {:.0} MB/s, opened at {:.0} MB/s", rate(sealing), rate(opening));
    }
}
