//! Creates topics from many clients at once, each on its own connection, for a given time, and prints JSON with the
//! number per second and the latencies. `cargo xtask bench` measures audited commits with it.
//!
//! `topic_storm SOCKET CLIENTS SECONDS PREFIX`: names are `PREFIX-<client>-<n>`, so give each run its own prefix. With
//! `-` for the seconds it goes on until its standard input ends.

#![allow(clippy::print_stdout, reason = "its output is its purpose")]

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use bib_client::{Client, Options, Random, Target, pb};
use bib_identity::TimeSource;

#[tokio::main]
#[allow(clippy::disallowed_methods, reason = "an example is its own composition root")]
async fn main() -> Result<(), Box<dyn std::error::Error + Send + Sync>> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [socket, clients, seconds, prefix] = arguments.as_slice() else {
        return Err("usage: topic_storm SOCKET CLIENTS SECONDS PREFIX".into());
    };
    let clients: usize = clients.parse()?;
    let scratch = tempfile::tempdir()?;
    let counter = Arc::new(AtomicU64::new(0));
    let began = Instant::now();
    let is_over = Arc::new(AtomicBool::new(false));
    let ending = Arc::clone(&is_over);
    let limit = if seconds == "-" { None } else { Some(Duration::from_secs(seconds.parse()?)) };
    std::thread::spawn(move || {
        match limit {
            Some(limit) => std::thread::sleep(limit),
            // Whatever comes, and whatever breaks: that is the end.
            None => drop(std::io::copy(&mut std::io::stdin(), &mut std::io::sink())),
        }
        ending.store(true, Ordering::Relaxed);
    });
    let mut tasks = tokio::task::JoinSet::new();
    for number in 0..clients {
        let counter = Arc::clone(&counter);
        // Request ids need to differ, not to be secret.
        let random = Random::new(move |bytes| {
            for chunk in bytes.chunks_mut(8) {
                let value = counter.fetch_add(1, Ordering::Relaxed).to_le_bytes();
                chunk.copy_from_slice(&value[..chunk.len()]);
            }
        });
        let clock = TimeSource::new(|| time::OffsetDateTime::now_utc().into());
        let options = Options::new(clock, random, scratch.path().join("config"), scratch.path().join("cache"));
        let client = Client::connect(Target::Socket(socket.into()), options)?;
        let (prefix, is_over) = (prefix.clone(), Arc::clone(&is_over));
        tasks.spawn(async move {
            let topics = client.topics();
            let mut latencies = Vec::new();
            while !is_over.load(Ordering::Relaxed) {
                let since = Instant::now();
                let name = format!("{prefix}-{number}-{}", latencies.len());
                topics.create(pb::CreateTopicRequest { name, ..Default::default() }).await?;
                latencies.push(since.elapsed());
            }
            Ok::<_, bib_client::Error>(latencies)
        });
    }
    let mut latencies = Vec::new();
    while let Some(done) = tasks.join_next().await {
        latencies.extend(done??);
    }
    let took = began.elapsed().as_secs_f64();
    latencies.sort_unstable();
    let at = |share: usize| latencies.get(latencies.len() * share / 100).map_or(0, Duration::as_micros);
    #[allow(clippy::cast_precision_loss, reason = "counts of a few seconds fit")]
    let rate = latencies.len() as f64 / took;
    println!(
        r#"{{"created":{},"seconds":{took:.3},"per_second":{rate:.1},"p50_us":{},"p99_us":{}}}"#,
        latencies.len(),
        at(50),
        at(99)
    );
    Ok(())
}
