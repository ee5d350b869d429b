//! Restores to random moments, with everything gone but the store and the recovery sheet.

use std::fs;
use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};
use serde_json::Value;

use super::report::Found;
use crate::node::{Node, Programs, passable_directory};
use crate::process::capture;
use crate::random::Random;
use crate::report::now;

/// Topics that are made after the backup, half of them after a rotation of passwords.
const TOPICS: u64 = 60;
/// How long the log may take to be in the store.
const SHIPPED: Duration = Duration::from_secs(120);

/// Makes a node, destroys it and restores it to so many moments.
///
/// # Errors
/// When the node cannot be had. What did not hold is in `found`.
pub(super) fn run(programs: &Programs, rounds: u64, seed: u64, found: &mut Found) -> anyhow::Result<()> {
    let directory = passable_directory(None)?;
    let home = directory.path();
    let (store, sheet, config) = (home.join("store"), home.join("sheet").display().to_string(), home.join("config"));
    fs::create_dir_all(&config).context("make the configuration's directory")?;
    let text = format!("backup:\n  store: {}\n  every: 0s\n  archive_timeout: 1s\n", store.display());
    fs::write(config.join("config.yaml"), text).context("write the configuration")?;
    let mut node = Node::new(programs.clone(), home);
    node.start()?;
    node.ask(&["admin", "recovery", "export", "--out", &sheet])?;
    node.ask(&["admin", "backup", "create"])?;
    let moments = write(&node)?;
    node.stop()?;
    fs::remove_dir_all(node.data()).context("remove the node")?;

    let mut random = Random::of(seed);
    let mut epoch = 1;
    for round in 1..=rounds {
        let (moment, topics) = &moments[usize::try_from(random.below(moments.len() as u64))?];
        // The last is the newest, in the node's own place.
        let back = if round == rounds { node.data() } else { home.join("back") };
        let mut restore = node.bibd(["restore", "--output", "json", "--time", moment, "--identity", &sheet]);
        restore.arg("--from").arg(&store).arg("--to").arg(&back);
        let began = Instant::now();
        let restored: Value = serde_json::from_str(&capture(&mut restore)?).context("read what restore said")?;
        let took = began.elapsed().as_secs_f64();
        found.slowest_s = Some(found.slowest_s.unwrap_or_default().max(took));
        found.count("moments", 1);
        let is_exact = restored["verdict"] == "OK" && restored["rows"]["topics"] == *topics;
        if !is_exact || restored["epoch"].as_u64() <= Some(epoch) {
            found.failures.push(format!("{moment}, {topics} topics: {restored}"));
        }
        epoch = restored["epoch"].as_u64().unwrap_or(epoch);
        println!("restored to {moment} with {topics} topics, epoch {epoch}, in {took:.1} s");
        if round < rounds {
            fs::remove_dir_all(&back).context("remove what was restored")?;
        }
    }
    node.start()?;
    node.ask(&["topic", "create", "after"])?;
    let verdict = node.ask(&["admin", "audit", "verify"])?;
    ensure!(verdict["verdict"] == "OK", "the audit log: {verdict}");
    node.stop()
}

/// Makes topics, and says when there were how many; returns once the last of these moments is in the store.
fn write(node: &Node) -> anyhow::Result<Vec<(String, u64)>> {
    let mut moments = Vec::new();
    for topics in 1..=TOPICS {
        node.ask(&["topic", "create", &format!("t{topics}")])?;
        moments.push((now()?, topics));
        if topics == TOPICS / 2 {
            node.ask(&["admin", "db", "rotate"])?;
        }
    }
    let last = &moments.last().context("nothing was written")?.0;
    let began = Instant::now();
    loop {
        // A later write closes the segment that the last moment is in.
        node.ask(&["topic", "create", &format!("later{}", began.elapsed().as_millis())])?;
        let listed = node.ask(&["admin", "backup", "list"])?;
        if listed[0]["reachable"].as_str().is_some_and(|reachable| reachable > last.as_str()) {
            return Ok(moments);
        }
        ensure!(began.elapsed() < SHIPPED, "the log is not in the store: {listed}");
        std::thread::sleep(Duration::from_millis(500));
    }
}
