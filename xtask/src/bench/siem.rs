//! How fast the audit log is exported to a log collector.

use std::fs;
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{TcpListener, TcpStream};
use std::process::Command;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail};

use super::Bench;
use crate::node::{Node, passable_directory};
use crate::process::{capture, cargo};
use crate::report::Bound;

/// Entries that the log has at least before it is exported.
const ENTRIES: u64 = 100_000;
/// How long topics are made at once; then it is seen whether there are enough entries.
const STORM_SECONDS: &str = "20";
/// How long an export may take.
const DEADLINE: Duration = Duration::from_secs(120);

/// Makes entries by acts, then exports all of them to an HTTP collector in this process, and to a file.
pub(super) fn export(bench: &mut Bench) -> anyhow::Result<()> {
    let build = ["build", "--release", "--locked", "--package", "bib-client", "--example", "topic_storm"];
    crate::process::run(cargo().args(build))?;
    let storm = bench.programs.bib.with_file_name("examples").join("topic_storm");
    let directory = passable_directory(None)?;
    let config = directory.path().join("config");
    fs::create_dir_all(&config).context("make the configuration directory")?;
    let mut node = bench.node(directory.path());
    node.start()?;
    for round in 0_u32.. {
        let name = format!("storm{round}");
        capture(Command::new(&storm).args([&node.ready()?.socket.display().to_string(), "64", STORM_SECONDS, &name]))?;
        let made = node.ask(&["admin", "audit", "list", "--newest-first", "--limit", "1"])?;
        if made[0]["seq"].as_u64().context("the newest entry has no number")? >= ENTRIES {
            break;
        }
    }
    node.stop()?;
    let collector = Collector::start()?;
    let file = directory.path().join("audit.jsonl");
    let bulk = format!("elastic: {{url: 'http://{}'}}", collector.address);
    let rate = measure(&mut node, &config, "http", &bulk)?;
    if collector.entries.load(Ordering::SeqCst) < ENTRIES {
        bail!("the collector has {} entries", collector.entries.load(Ordering::SeqCst));
    }
    let took = collector.took.lock().unwrap_or_else(PoisonError::into_inner).context("the collector has nothing")?;
    println!("the collector saw {} MiB in {:.2} s", collector.bytes.load(Ordering::SeqCst) >> 20, took.as_secs_f64());
    bench.figure("audit entries to an HTTP collector", rate, "entries/s", Some(Bound::AtLeast(20_000.0)));
    let rate = measure(&mut node, &config, "file", &format!("file: {{path: '{}'}}", file.display()))?;
    bench.figure("audit entries to a file, synced", rate, "entries/s", Some(Bound::AtLeast(20_000.0)));
    Ok(())
}

/// Entries a second, from the start of the daemon until the sink has all.
fn measure(node: &mut Node, config: &std::path::Path, name: &str, target: &str) -> anyhow::Result<f64> {
    let yaml = format!("audit:\n  export:\n    - name: {name}\n      to: {{{target}}}\n");
    fs::write(config.join("config.yaml"), yaml).context("write the configuration")?;
    // The start counts too: the export begins before the node serves.
    let began = Instant::now();
    node.start()?;
    let sink = loop {
        let sinks = node.ask(&["admin", "audit", "sinks"])?;
        let number = |field: &str| sinks[0][field].as_u64().with_context(|| format!("the sink has no `{field}`"));
        if number("behind")? == 0 && number("sent")? >= ENTRIES {
            break sinks[0].clone();
        }
        if began.elapsed() > DEADLINE {
            bail!("not exported within {} s: {sinks}", DEADLINE.as_secs());
        }
        std::thread::sleep(Duration::from_millis(100));
    };
    let took = began.elapsed();
    node.stop()?;
    let sent = sink["sent"].as_f64().context("the sink has no `sent`")?;
    Ok(sent / took.as_secs_f64())
}

/// Answers `_bulk` requests as an index does that takes everything.
struct Collector {
    address: std::net::SocketAddr,
    entries: Arc<AtomicU64>,
    bytes: Arc<AtomicU64>,
    /// From the first request to the last.
    took: Arc<Mutex<Option<Duration>>>,
}

impl Collector {
    fn start() -> anyhow::Result<Self> {
        let listener = TcpListener::bind("127.0.0.1:0").context("listen")?;
        let collector = Self {
            address: listener.local_addr().context("the collector's address")?,
            entries: Arc::default(),
            bytes: Arc::default(),
            took: Arc::default(),
        };
        let (entries, bytes, took) =
            (Arc::clone(&collector.entries), Arc::clone(&collector.bytes), Arc::clone(&collector.took));
        // It ends with this process.
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                if let Err(error) = answer(stream, &entries, &bytes, &took) {
                    eprintln!("the collector: {error:#}");
                }
            }
        });
        Ok(collector)
    }
}

fn answer(
    stream: TcpStream,
    entries: &AtomicU64,
    bytes: &AtomicU64,
    took: &Mutex<Option<Duration>>,
) -> anyhow::Result<()> {
    stream.set_nodelay(true).context("set TCP_NODELAY")?;
    let mut writer = stream.try_clone().context("share the connection")?;
    let mut reader = BufReader::with_capacity(1 << 20, stream);
    let (mut first, mut body, mut line) = (None, Vec::new(), String::new());
    loop {
        let mut length = 0;
        loop {
            line.clear();
            if reader.read_line(&mut line).context("read a header")? == 0 {
                return Ok(());
            }
            let header = line.trim_end().to_ascii_lowercase();
            if header.is_empty() {
                break;
            }
            if let Some(value) = header.strip_prefix("content-length:") {
                length = value.trim().parse().context("read the length")?;
            }
        }
        let began = *first.get_or_insert_with(Instant::now);
        body.resize(length, 0);
        reader.read_exact(&mut body).context("read a body")?;
        let lines = body.iter().filter(|byte| **byte == b'\n').count();
        entries.fetch_add(lines as u64 / 2, Ordering::SeqCst);
        bytes.fetch_add(length as u64, Ordering::SeqCst);
        let text = "{\"errors\":false}";
        write!(
            writer,
            "HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\r\n{text}",
            text.len()
        )
        .context("answer")?;
        *took.lock().unwrap_or_else(PoisonError::into_inner) = Some(began.elapsed());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_collector_counts_what_it_is_sent() {
        let collector = Collector::start().unwrap();
        let mut stream = TcpStream::connect(collector.address).unwrap();
        let body = "{\"create\":{}}\n{}\n{\"create\":{}}\n{}\n";
        write!(stream, "POST /x/_bulk HTTP/1.1\r\nHost: x\r\nContent-Length: {}\r\n\r\n{body}", body.len()).unwrap();
        let mut answer = [0; 64];
        assert!(stream.read(&mut answer).unwrap() > 0);
        assert!(answer.starts_with(b"HTTP/1.1 200"));
        assert_eq!(collector.entries.load(Ordering::SeqCst), 2);
    }
}
