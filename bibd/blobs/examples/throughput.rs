//! Measures the store beside the floor it cannot beat: hashing, one big write and its fsync.
//!
//! `cargo run -p bibd-blobs --example throughput -- DIR [MiB] [random|text] [chunk KiB]`. DIR is made and removed again.

#![allow(clippy::print_stdout)]

use std::fs::{self, File};
use std::io::{self, Write as _};
use std::path::Path;
use std::time::{Duration, Instant};

use bib_core::Hash;
use bibd_blobs::{BlobStore, Compression, Incoming, Location, Settings, Stored};
use bytes::Bytes;

const BATCH_BYTES: usize = 16 << 20;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut args = std::env::args().skip(1);
    let dir = args.next().ok_or("usage: throughput DIR [MiB] [random|text] [chunk KiB]")?;
    let mib: usize = args.next().map_or(Ok(2048), |text| text.parse())?;
    let text = args.next().is_some_and(|kind| kind == "text");
    let chunk_bytes: usize = args.next().map_or(Ok(1024), |text| text.parse::<usize>())? << 10;
    let chunks: Vec<Bytes> = (0..(mib << 20) / chunk_bytes).map(|n| contents(n as u64, chunk_bytes, text)).collect();

    let start = Instant::now();
    let hashes: Vec<Hash> = chunks.iter().map(|chunk| Hash::of(chunk)).collect();
    report("sha256, one thread", mib, start.elapsed());

    fs::create_dir(&dir)?;
    let dir = Path::new(&dir);
    report("one file, write + fsync", mib, floor(&dir.join("floor"), &chunks)?);
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    // The first round pays for fresh page cache: compare the later ones.
    for compression in [Compression::Off, Compression::Auto, Compression::Off, Compression::Auto] {
        let root = dir.join(format!("{compression:?}"));
        let store = BlobStore::open(&root, Settings { compression, ..Settings::default() })?;
        let start = Instant::now();
        let stored = runtime.block_on(put(&store, &hashes, &chunks))?;
        report(&format!("put_many, {compression:?}"), mib, start.elapsed());
        let bytes: u64 = stored.iter().map(|one| u64::from(one.stored_bytes)).sum();
        println!("{:>30} {:8} MiB on disk", "", bytes >> 20);
        let start = Instant::now();
        runtime.block_on(read(&store, &stored))?;
        report("read, 4 at once", mib, start.elapsed());
        drop(store);
        fs::remove_dir_all(&root)?;
    }
    fs::remove_dir_all(dir)?;
    Ok(())
}

async fn put(store: &BlobStore, hashes: &[Hash], chunks: &[Bytes]) -> Result<Vec<Stored>, bibd_blobs::StoreError> {
    use futures::{StreamExt as _, TryStreamExt as _};
    let per_batch = (BATCH_BYTES / chunks[0].len()).max(1);
    let batches = hashes.chunks(per_batch).zip(chunks.chunks(per_batch)).map(|(hashes, chunks)| {
        store.put_many(hashes.iter().zip(chunks).map(|(hash, chunk)| Incoming::raw(*hash, chunk.clone())).collect())
    });
    let stored: Vec<Vec<Stored>> = futures::stream::iter(batches).buffered(2).try_collect().await?;
    Ok(stored.into_iter().flatten().collect())
}

async fn read(store: &BlobStore, stored: &[Stored]) -> Result<(), bibd_blobs::ReadError> {
    use futures::{StreamExt as _, TryStreamExt as _};
    futures::stream::iter(stored.iter().map(|one| async move {
        let location = Location::Store { encoding: one.encoding, stored_bytes: one.stored_bytes };
        store.read(&location, &one.hash, one.raw_len).await.map(drop)
    }))
    .buffer_unordered(4)
    .try_collect()
    .await
}

fn floor(path: &Path, chunks: &[Bytes]) -> io::Result<Duration> {
    let start = Instant::now();
    let mut file = File::create(path)?;
    chunks.iter().try_for_each(|chunk| file.write_all(chunk))?;
    file.sync_all()?;
    let elapsed = start.elapsed();
    fs::remove_file(path)?;
    Ok(elapsed)
}

/// Seeded bytes that do not compress, or lines of a table that do.
fn contents(seed: u64, len: usize, text: bool) -> Bytes {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut next = move || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state
    };
    let mut bytes = Vec::with_capacity(len + 64);
    while bytes.len() < len {
        match text {
            true => bytes.extend_from_slice(format!("2024-03-{:02},{}\n", next() % 31, next() % 4000).as_bytes()),
            false => bytes.extend_from_slice(&next().to_le_bytes()),
        }
    }
    bytes.truncate(len);
    bytes.into()
}

fn report(what: &str, mib: usize, elapsed: Duration) {
    println!("{what:>30} {:8.0} MB/s", (mib << 20) as f64 / 1e6 / elapsed.as_secs_f64());
}
