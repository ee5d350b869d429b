//! Many small files: none may cost in proportion to what already exists.

use std::fs;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context as _, ensure};

use super::transfer::{download, publish, same};
use super::{Bench, measure};
use crate::node::passable_directory;
use crate::random::{Random, write_file};
use crate::report::Bound;

/// Where files cost no disk.
const TMPFS: &str = "/dev/shm";
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
    let before = written_bytes(node.pid().context("the daemon has gone")?)?;
    let changed = measure(&mut publish(&node, &source, "bench/million"))?;
    let written = written_bytes(node.pid().context("the daemon has gone")?)?.saturating_sub(before);
    ensure!(changed.answer["created"] == true, "a changed file made no version");
    let after_walk = changed.took.saturating_sub(walk.took).max(Duration::ZERO);
    bench.seconds("publish one changed file of them, after the stat walk", after_walk, Some(1.0));
    let mib = written as f64 / f64::from(1 << 20);
    bench.figure(
        "written by the daemon for it (PostgreSQL's own writes not counted)",
        mib,
        "MiB",
        Some(Bound::AtMost(2.0)),
    );
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

/// Bytes that a process has caused to be written to storage.
fn written_bytes(pid: u32) -> anyhow::Result<u64> {
    let text = fs::read_to_string(format!("/proc/{pid}/io")).context("read the daemon's /proc/PID/io")?;
    let line = text.lines().find_map(|line| line.strip_prefix("write_bytes: "));
    line.and_then(|number| number.parse().ok()).context("find `write_bytes`")
}
