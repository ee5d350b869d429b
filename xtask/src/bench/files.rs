//! Many small files: none may cost in proportion to what already exists.

use std::fs;
use std::path::Path;
use std::thread;
use std::time::Duration;

use anyhow::{Context as _, ensure};

use super::transfer::{download, publish, same};
use super::{Bench, measure};
use crate::node::{Node, passable_directory};
use crate::process::capture;
use crate::random::{Random, write_file};
use crate::report::Bound;

/// Where files cost no disk.
const TMPFS: &str = "/dev/shm";
/// A connection of PostgreSQL tells its statistics at most ten seconds late.
const STATISTICS_DELAY: Duration = Duration::from_secs(11);
/// Files of a folder.
const FILES_PER_FOLDER: u64 = 1_000;

/// Publishes, publishes again and downloads 100,000 files of 1 KiB.
pub(super) fn many_files(bench: &mut Bench) -> anyhow::Result<()> {
    let directory = passable_directory(None)?;
    let memory = passable_directory(Some(Path::new(TMPFS)))?;
    let source = memory.path().join("source");
    write_files(&source, 100_000, &mut bench.random())?;
    let mut node = bench.node(directory.path());
    node.start()?;
    let first = measure(&mut publish(&node, &source, "bench/many"))?;
    bench.seconds("publish 100,000 files of 1 KiB", first.took, Some(15.0));
    let again = measure(&mut publish(&node, &source, "bench/many"))?;
    ensure!(again.answer["created"] == false, "an unchanged folder made a version");
    bench.seconds("publish them again, unchanged", again.took, Some(3.0));
    let target = memory.path().join("target");
    let back = measure(&mut download(&node, "bench/many", &target))?;
    bench.seconds("download them", back.took, Some(15.0));
    same(&source, &target)?;
    bench.memory(first.peak_mib.max(again.peak_mib).max(back.peak_mib), &node)?;
    node.stop()
}

/// Changes one file of 1,000,000.
pub(super) fn one_of_a_million(bench: &mut Bench) -> anyhow::Result<()> {
    let directory = passable_directory(None)?;
    let memory = passable_directory(Some(Path::new(TMPFS)))?;
    let source = memory.path().join("source");
    let mut random = bench.random();
    write_files(&source, 1_000_000, &mut random)?;
    let mut node = bench.node(directory.path());
    node.start()?;
    let first = measure(&mut publish(&node, &source, "bench/million"))?;
    bench.seconds("publish 1,000,000 files of 1 KiB", first.took, None);
    // The walk and the comparison of a million stats, and nothing to send.
    let walk = measure(&mut publish(&node, &source, "bench/million"))?;
    bench.seconds("publish them again, unchanged: the stat walk", walk.took, None);
    write_file(&source.join("0500/0500"), 1_024, &mut random)?;
    thread::sleep(STATISTICS_DELAY);
    let before = Written::by(&node)?;
    let changed = measure(&mut publish(&node, &source, "bench/million"))?;
    let bytes = Written::by(&node)?.bytes - before.bytes;
    thread::sleep(STATISTICS_DELAY);
    let rows = Written::by(&node)?.rows - before.rows;
    ensure!(changed.answer["created"] == true, "a changed file made no version");
    let after_walk = changed.took.saturating_sub(walk.took).max(Duration::ZERO);
    bench.seconds("publish one changed file of them, after the stat walk", after_walk, Some(1.0));
    bench.figure("rows written for it", rows, "rows", Some(Bound::AtMost(64.0)));
    let mib = bytes / f64::from(1 << 20);
    bench.figure("written by the daemon and to PostgreSQL's log for it", mib, "MiB", Some(Bound::AtMost(2.0)));
    bench.memory(first.peak_mib.max(walk.peak_mib).max(changed.peak_mib), &node)?;
    node.stop()
}

fn write_files(folder: &Path, count: u64, random: &mut Random) -> anyhow::Result<()> {
    for number in 0..count {
        let inner = folder.join(format!("{:04}", number / FILES_PER_FOLDER));
        if number % FILES_PER_FOLDER == 0 {
            fs::create_dir_all(&inner).context("make a folder")?;
        }
        write_file(&inner.join(format!("{:04}", number % FILES_PER_FOLDER)), 1_024, random)?;
    }
    Ok(())
}

/// What a node has written since it was made.
struct Written {
    /// To storage by the daemon, and to the write-ahead log by PostgreSQL.
    bytes: f64,
    /// Of the catalog's tables, the audit log's among them.
    rows: f64,
}

impl Written {
    fn by(node: &Node) -> anyhow::Result<Self> {
        let metrics = capture(&mut node.bib(["admin", "metrics"]))?;
        let sum = |name: &str| -> f64 {
            let lines = metrics.lines().filter(|line| line.starts_with(name));
            lines.filter_map(|line| line.rsplit(' ').next()?.parse::<f64>().ok()).sum()
        };
        let log = sum("bibd_postgres_wal_bytes_total");
        ensure!(log > 0.0, "the node's metrics say nothing of PostgreSQL");
        let daemon = written_bytes(node.pid().context("the daemon has gone")?)?;
        Ok(Self { bytes: log + daemon as f64, rows: sum("bibd_postgres_rows_written_total") })
    }
}

/// Bytes that a process has caused to be written to storage.
fn written_bytes(pid: u32) -> anyhow::Result<u64> {
    let text = fs::read_to_string(format!("/proc/{pid}/io")).context("read the daemon's /proc/PID/io")?;
    let line = text.lines().find_map(|line| line.strip_prefix("write_bytes: "));
    line.and_then(|number| number.parse().ok()).context("find `write_bytes`")
}
