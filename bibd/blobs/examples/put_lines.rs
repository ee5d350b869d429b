//! Puts seeded chunks and prints one line per acknowledged chunk; for the tests that trace or kill it.
//!
//! `put_lines ROOT SEED CHUNKS [FAILPOINT N]`: with a failpoint, the process kills itself (SIGKILL) at its N-th hit.
//! Lines are `acknowledged HASH ENCODING STORED_BYTES RAW_LEN new|known`.

use std::io::Write as _;
use std::path::Path;
use std::sync::atomic::{AtomicU32, Ordering};

use bib_core::Hash;
use bibd_blobs::{BlobStore, Failpoints, Incoming, Settings};
use rand::rngs::StdRng;
use rand::{Rng as _, SeedableRng as _};

const BATCH: usize = 8;

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let [root, seed, count, kill @ ..] = &args[..] else {
        return Err("usage: put_lines ROOT SEED CHUNKS [FAILPOINT N]".into());
    };
    let failpoints = match kill {
        [name, at] => kill_at(name.clone(), at.parse()?),
        _ => Failpoints::default(),
    };
    let store = BlobStore::open(Path::new(root), Settings { failpoints, ..Settings::default() })?;
    let mut rng = StdRng::seed_from_u64(seed.parse()?);
    let mut left: usize = count.parse()?;
    while left > 0 {
        let batch: Vec<Incoming> = (0..left.min(BATCH)).map(|_| chunk(&mut rng)).collect();
        left -= batch.len();
        for one in store.put_many(batch).await? {
            let known = if one.already_there { "known" } else { "new" };
            let encoding = format!("{:?}", one.encoding);
            let line = format!("acknowledged {} {encoding} {} {} {known}\n", one.hash, one.stored_bytes, one.raw_len);
            std::io::stdout().write_all(line.as_bytes())?;
        }
    }
    Ok(())
}

fn kill_at(name: String, at: u32) -> Failpoints {
    let hits = AtomicU32::new(0);
    Failpoints::new(move |point| {
        if point == name && hits.fetch_add(1, Ordering::SeqCst) + 1 == at {
            // SIGKILL, as `kill -9` would: nothing is flushed, no destructor runs.
            if rustix::process::kill_process(rustix::process::getpid(), rustix::process::Signal::KILL).is_err() {
                std::process::abort();
            }
        }
    })
}

fn chunk(rng: &mut StdRng) -> Incoming {
    let mut bytes = vec![0; rng.gen_range(1..50_000)];
    rng.fill(&mut bytes[..]);
    if rng.gen_bool(0.5) {
        bytes.iter_mut().for_each(|byte| *byte &= 3); // compresses
    }
    Incoming::raw(Hash::of(&bytes), bytes.into())
}
