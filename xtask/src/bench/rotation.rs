//! New passwords for the database's logins while 64 clients go on writing.

use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};

use anyhow::{Context as _, ensure};
use serde_json::Value;

use super::Bench;
use crate::node::passable_directory;
use crate::process::cargo;
use crate::report::Bound;

/// Clients at once.
const CLIENTS: &str = "64";
/// Rotations of everything.
const ROTATIONS: usize = 100;
/// Connections that are wanted. What the rotations of everything lack is made up by rotations of the login that has most
/// of them, the one that answers calls.
const CONNECTIONS: usize = 10_000;
const BUSIEST: &str = "service";
/// How many of these there are between two looks at the log, which grows.
const BETWEEN: usize = 20;

/// Rotates everything again and again; a single call that fails ends the benchmark.
pub(super) fn rotation(bench: &mut Bench) -> anyhow::Result<()> {
    let build = ["build", "--release", "--locked", "--package", "bib-client", "--example", "topic_storm"];
    crate::process::run(cargo().args(build))?;
    let storm = bench.programs.bib.with_file_name("examples").join("topic_storm");
    let directory = passable_directory(None)?;
    let mut node = bench.node(directory.path());
    node.start()?;
    let socket = node.ready()?.socket.display().to_string();
    let mut storm = Command::new(storm);
    storm.args([&socket, CLIENTS, "-", "storm"]).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::inherit());
    let mut storm = storm.spawn().context("start topic_storm")?;

    let log = node.data().join("postgres/log");
    let before = log_ins(&log)?;
    let mut took = Vec::new();
    let mut rotate = |which: &[&str], roles: usize| -> anyhow::Result<f64> {
        let done = node.ask(&[&["admin", "db", "rotate"], which].concat())?;
        ensure!(done["roles"].as_array().is_some_and(|done| done.len() == roles), "a rotation did less: {done}");
        ensure!(storm.try_wait().context("look at topic_storm")?.is_none(), "a call failed during a rotation");
        done["duration_ms"].as_f64().context("a rotation says no `duration_ms`")
    };
    for _ in 0..ROTATIONS {
        took.push(rotate(&[], 10)?);
    }
    let (mut connections, mut more) = (log_ins(&log)?.saturating_sub(before), 0);
    while connections < CONNECTIONS {
        for _ in 0..BETWEEN {
            rotate(&["--role", BUSIEST], 1)?;
        }
        more += BETWEEN;
        connections = log_ins(&log)?.saturating_sub(before);
    }
    drop(storm.stdin.take());
    let output = storm.wait_with_output().context("wait for topic_storm")?;
    ensure!(output.status.success(), "a call failed");
    let said: Value = serde_json::from_slice(&output.stdout).context("read what topic_storm said")?;
    let calls = said["created"].as_f64().context("topic_storm says no `created`")?;
    let slowest = said["p99_us"].as_f64().context("topic_storm says no `p99_us`")? / 1_000.0;
    let verdict = node.ask(&["admin", "audit", "verify"])?;
    ensure!(verdict["verdict"] == "OK", "the audit log: {verdict}");
    node.stop()?;

    took.sort_by(f64::total_cmp);
    #[allow(clippy::cast_precision_loss, reason = "counts of some minutes fit")]
    let count = |number: usize| number as f64;
    bench.figure("rotations of all ten passwords under 64 clients", count(took.len()), "", Some(Bound::AtLeast(100.0)));
    bench.figure("further ones of the login that answers calls", count(more), "", None);
    bench.figure("new database connections meanwhile", count(connections), "", Some(Bound::AtLeast(10_000.0)));
    bench.figure("calls meanwhile", calls, "", None);
    // The first call that fails ends this benchmark without figures.
    bench.figure("calls that failed", 0.0, "", Some(Bound::AtMost(0.0)));
    bench.figure("a rotation (median)", took[took.len() / 2], "ms", None);
    bench.figure("a call meanwhile (99 % take less)", slowest, "ms", None);
    Ok(())
}

/// Connections that PostgreSQL's log says were let in.
fn log_ins(log: &Path) -> anyhow::Result<usize> {
    let mut count = 0;
    for entry in fs::read_dir(log).context("read the directory of PostgreSQL's log")? {
        let bytes = fs::read(entry.context("read a directory")?.path()).context("read PostgreSQL's log")?;
        count += String::from_utf8_lossy(&bytes).matches("connection authorized: ").count();
    }
    Ok(count)
}
