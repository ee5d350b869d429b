//! The store in a process of its own: traced for the order of its system calls, and killed between any two steps.

#![allow(clippy::unwrap_used)]

mod support;

use std::collections::HashMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use bib_core::Hash;
use bibd_blobs::{BlobStore, Depth, Encoding, FileState, Location, ScrubBudget, Settings};
use rand::rngs::StdRng;
use rand::{Rng as _, SeedableRng as _};

/// `examples/put_lines.rs`, which cargo builds with the tests.
fn put_lines() -> PathBuf {
    let tests = std::env::current_exe().unwrap();
    let path = tests.parent().unwrap().parent().unwrap().join("examples/put_lines");
    assert!(path.exists(), "`{}` is missing: cargo build -p bibd-blobs --examples", path.display());
    path
}

/// The acknowledged chunks: where they lie, their raw length, and whether they were there before.
fn acknowledged(output: &Output) -> HashMap<Hash, (Location, u32, bool)> {
    let text = String::from_utf8(output.stdout.clone()).unwrap();
    let parse = |line: &str| {
        let [_, hash, encoding, stored_bytes, raw_len, known] = line.split(' ').collect::<Vec<_>>()[..] else {
            panic!("{line}")
        };
        let encoding = if encoding == "Raw" { Encoding::Raw } else { Encoding::Zstd };
        let location = Location::Store { encoding, stored_bytes: stored_bytes.parse().unwrap() };
        (hash.parse().unwrap(), (location, raw_len.parse().unwrap(), known == "known"))
    };
    text.lines().map(parse).collect()
}

#[tokio::test]
async fn a_kill_between_any_two_steps_loses_nothing_acknowledged() {
    const CHUNKS: usize = 40;
    let mut rng = StdRng::seed_from_u64(0xdead);
    let points = ["put.verified", "put.written", "put.synced", "put.renamed", "put.durable"];
    for round in 0..50 {
        let point = points[round % points.len()];
        let hits = if point == "put.durable" { CHUNKS / 8 } else { CHUNKS };
        let dir = support::memory_dir();
        let root = dir.path().join("store");
        let seed = round.to_string();
        let run = |kill: &[&str]| {
            let base = [root.to_str().unwrap(), &seed, &CHUNKS.to_string()].map(str::to_owned);
            Command::new(put_lines()).args(base).args(kill).output().unwrap()
        };
        let killed = run(&[point, &rng.gen_range(1..=hits).to_string()]);
        assert!(!killed.status.success(), "{point} was not hit");
        let before = acknowledged(&killed);

        let store = BlobStore::open(&root, Settings::default()).unwrap();
        assert_eq!(fs::read_dir(root.join("tmp")).unwrap().count(), 0, "{point}");
        for (hash, (location, raw_len, _)) in &before {
            store.read(location, hash, *raw_len).await.unwrap_or_else(|error| panic!("{point}: {error}"));
        }
        let budget = ScrubBudget { files: usize::MAX, bytes: u64::MAX };
        let page = store.scrub(None, Depth::Contents, budget).await.unwrap();
        assert!(page.files.iter().all(|file| matches!(file.state, FileState::Whole { .. })), "{point}: {page:?}");
        drop(store);

        let again = run(&[]);
        assert!(again.status.success(), "{point}: {}", String::from_utf8_lossy(&again.stderr));
        let after = acknowledged(&again);
        assert_eq!(after.len(), CHUNKS);
        let known = |hash: &Hash| after[hash].2;
        assert!(page.files.iter().all(|file| known(&file.hash)), "{point}: what was visible is not written again");
    }
}

/// A system call: the line it began on, the line it ended on, and its text.
struct Call {
    begin: usize,
    end: usize,
    text: String,
}

/// Joins what strace splits when threads overlap.
fn parse_trace(trace: &str) -> Vec<Call> {
    let mut calls: Vec<Call> = Vec::new();
    let mut unfinished: HashMap<&str, usize> = HashMap::new();
    for (number, line) in trace.lines().enumerate() {
        let Some((pid, rest)) = line.split_once(' ') else { continue };
        let rest = rest.trim_start();
        if let Some(text) = rest.strip_suffix(" <unfinished ...>") {
            unfinished.insert(pid, calls.len());
            calls.push(Call { begin: number, end: usize::MAX, text: text.to_owned() });
        } else if rest.starts_with("<... ") {
            if let Some(index) = unfinished.remove(pid) {
                calls[index].end = number;
                calls[index].text.push_str(rest);
            }
        } else {
            calls.push(Call { begin: number, end: number, text: rest.to_owned() });
        }
    }
    calls
}

#[test]
fn each_chunk_is_written_synced_renamed_synced_then_acknowledged() {
    if Command::new("strace").arg("-V").output().is_err() {
        return support::skip("strace is not installed; the order of system calls was not checked");
    }
    let dir = tempfile::tempdir().unwrap();
    let (root, trace) = (dir.path().join("store"), dir.path().join("trace"));
    let calls_of_interest = "trace=openat,write,fsync,fdatasync,rename,renameat,renameat2";
    let output = Command::new("strace")
        .args(["-f", "-y", "-s", "256", "-e", calls_of_interest, "-o"])
        .args([&trace, &put_lines(), &root])
        .args(["1", "24"])
        .output()
        .unwrap();
    let stderr = String::from_utf8_lossy(&output.stderr);
    if !output.status.success() && stderr.contains("PTRACE") {
        return support::skip("strace may not trace here; the order of system calls was not checked");
    }
    assert!(output.status.success(), "{stderr}");
    let chunks = acknowledged(&output);
    assert_eq!(chunks.len(), 24);
    let trace = fs::read_to_string(&trace).unwrap();
    let calls = parse_trace(&trace);
    for hash in chunks.keys() {
        assert_order(&calls, &root, hash);
    }
}

fn assert_order(calls: &[Call], root: &Path, hash: &Hash) {
    let name = hash.to_string();
    let target = root.join("blobs").join(&name[..2]).join(&name[2..4]).join(&name);
    let fan = format!("<{}>", target.parent().unwrap().display());
    let upper = format!("<{}>", target.parent().unwrap().parent().unwrap().display());
    let find = |what: &str, fits: &dyn Fn(&Call) -> bool| -> Vec<&Call> {
        let found: Vec<&Call> = calls.iter().filter(|call| fits(call)).collect();
        assert!(!found.is_empty(), "no {what} for {name}");
        found
    };
    let synced = |call: &Call, file: &str| {
        (call.text.starts_with("fsync(") || call.text.starts_with("fdatasync("))
            && call.text.contains(file)
            && call.text.ends_with("= 0")
    };
    let target = format!("\"{}\"", target.display());
    let renames = find("rename", &|call| call.text.starts_with("rename") && call.text.contains(&target));
    assert_eq!(renames.len(), 1);
    let temp = renames[0].text.split('"').nth(1).unwrap();
    let temp = format!("<{temp}>");
    let writes = find("write", &|call| call.text.starts_with("write(") && call.text.contains(&temp));
    let file_syncs = find("fsync of the file", &|call| synced(call, &temp));
    let ack =
        find("answer", &|call| call.text.starts_with("write(1") && call.text.contains(&format!("acknowledged {name}")))
            [0];
    let between = |call: &Call, after: &Call, before: &Call| after.end < call.begin && call.end < before.begin;
    assert!(writes.iter().all(|write| write.end < file_syncs[0].begin), "{name}: fsync before the last write");
    assert!(file_syncs.iter().all(|sync| sync.end < renames[0].begin), "{name}: rename before the fsync ended");
    for dir in [&fan, &upper] {
        let ok = calls.iter().any(|call| synced(call, dir) && between(call, renames[0], ack));
        assert!(ok, "{name}: no fsync of {dir} between the rename and the answer");
    }
}
