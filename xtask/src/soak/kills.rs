//! The daemon and PostgreSQL are killed with signal 9, again and again, and what was lost is looked for.
//!
//! A round changes a folder and publishes it; while that runs, or while a daemon starts, something is killed. The moments
//! are spread evenly over the measured duration of a publish or a start, shuffled by the seed, so that many rounds meet
//! every step. After each round: everything acknowledged is there, the audit log verifies, the publish run again sends only
//! the rest, and what is downloaded is the folder bit for bit.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail, ensure};
use serde_json::Value;
use sha2::{Digest as _, Sha256};

use super::report::Found;
use crate::node::{Node, Programs, passable_directory};
use crate::random::{Random, write_file};

/// The dataset that every round publishes into.
const DATASET: &str = "soak/data";
/// How long a publish may hang on after what it needs was killed.
const PUBLISH_DEADLINE: Duration = Duration::from_secs(120);
/// How long a node may take to be well again after its PostgreSQL was killed (fault 9 of the fault list).
const RECOVERY_DEADLINE: Duration = Duration::from_secs(15);
/// Chunks that may be on their way, and so be sent twice, at the moment of a kill: what the client holds and what the
/// daemon gathers for one transaction. A publish of a round has about twice as many.
const IN_FLIGHT_CHUNKS: u64 = 40;
const CUT: &str = "publishes cut before they were acknowledged";
const IN_TIME: &str = "publishes acknowledged although something was killed";
const TWICE: &str = "chunks sent twice, because they were on their way at the kill";

/// What dies, and during what.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Kill {
    DaemonInPublish,
    PostgresInPublish,
    BothInPublish,
    DaemonInStart,
    PostgresInStart,
    PostgresInRotation,
}

impl Kill {
    const ALL: [Self; 6] = [
        Self::DaemonInPublish,
        Self::PostgresInPublish,
        Self::DaemonInStart,
        Self::BothInPublish,
        Self::PostgresInStart,
        Self::PostgresInRotation,
    ];

    const fn words(self) -> &'static str {
        match self {
            Self::DaemonInPublish => "the daemon, during a publish",
            Self::PostgresInPublish => "PostgreSQL, during a publish",
            Self::BothInPublish => "both, during a publish",
            Self::DaemonInStart => "the daemon, during its start",
            Self::PostgresInStart => "PostgreSQL, during the daemon's start",
            Self::PostgresInRotation => "PostgreSQL, during a rotation of passwords",
        }
    }

    const fn is_in_start(self) -> bool {
        matches!(self, Self::DaemonInStart | Self::PostgresInStart)
    }
}

/// Runs so many rounds.
///
/// # Errors
/// When the node cannot be had. What did not hold is in what is returned.
pub(super) fn run(programs: &Programs, rounds: u64, seed: u64, found: &mut Found) -> anyhow::Result<()> {
    let directory = passable_directory(None)?;
    let mut soak = Soak::begin(Node::new(programs.clone(), directory.path()), directory.path(), seed)?;
    for what in [CUT, IN_TIME, TWICE] {
        found.counts.insert(what.to_owned(), 0);
    }
    let mut order: Vec<u64> = (0..rounds).collect();
    for at in (1..order.len()).rev() {
        order.swap(at, usize::try_from(soak.random.below(at as u64 + 1))?);
    }
    for (round, place) in order.into_iter().enumerate() {
        let kill = Kill::ALL[round % Kill::ALL.len()];
        let fraction = (place as f64 + 0.5) / rounds as f64;
        found.died(kill.words());
        let what = format!("round {}, {}, at {:.0} %", round + 1, kill.words(), fraction * 100.0);
        match soak.round(kill, fraction, found) {
            Ok(said) => println!("{what}: {said}"),
            Err(error) => {
                println!("{what}: FAILED: {error:#}");
                found.failures.push(format!("{what}: {error:#}"));
                // The next round begins with a node that runs, if there can be one.
                soak.ensure_running().context("after a failed round the node does not start")?;
            }
        }
    }
    soak.node.stop()?;
    if !found.failures.is_empty() {
        println!("the node's directory is kept: `{}`", directory.keep().display());
    }
    Ok(())
}

/// Path and SHA-256 of every file.
type Listing = BTreeMap<PathBuf, [u8; 32]>;

struct Soak {
    node: Node,
    home: PathBuf,
    folder: PathBuf,
    random: Random,
    /// Every acknowledged version with what it holds.
    acknowledged: Vec<(String, Listing)>,
    publish_takes: Duration,
    start_takes: Duration,
    rotation_takes: Duration,
    serial: u64,
}

impl Soak {
    /// A node with one version, and how long a publish and a start take.
    fn begin(mut node: Node, home: &Path, seed: u64) -> anyhow::Result<Self> {
        node.start()?;
        let folder = home.join("folder");
        fs::create_dir(&folder).context("make the folder")?;
        let mut soak = Self {
            node,
            home: home.to_owned(),
            folder,
            random: Random::of(seed),
            acknowledged: Vec::new(),
            publish_takes: Duration::ZERO,
            start_takes: Duration::ZERO,
            rotation_takes: Duration::ZERO,
            serial: 0,
        };
        for _ in 0..2 {
            soak.change_folder()?;
            let began = Instant::now();
            soak.publish_to_the_end()?;
            soak.publish_takes = began.elapsed();
        }
        soak.node.stop()?;
        soak.start_takes = soak.node.start()?;
        let began = Instant::now();
        soak.node.ask(&["admin", "db", "rotate"])?;
        soak.rotation_takes = began.elapsed();
        println!(
            "a publish takes {:.2} s, a start {:.2} s, a rotation {:.2} s",
            soak.publish_takes.as_secs_f64(),
            soak.start_takes.as_secs_f64(),
            soak.rotation_takes.as_secs_f64()
        );
        Ok(soak)
    }

    fn round(&mut self, kill: Kill, fraction: f64, found: &mut Found) -> anyhow::Result<String> {
        self.change_folder()?;
        let before = self.stored_chunks()?;
        if kill.is_in_start() {
            self.kill_in_start(kill, fraction)?;
        } else if kill == Kill::PostgresInRotation {
            self.kill_in_rotation(fraction)?;
        } else if self.kill_in_publish(kill, fraction)? {
            found.count(IN_TIME, 1);
        } else {
            found.count(CUT, 1);
        }
        let after_kill = self.stored_chunks()?;
        self.ensure_running()?;
        self.check_acknowledged()?;
        let published = self.publish_to_the_end().context("publish again")?;
        let sent = published["chunks_sent"].as_u64().context("publish says no `chunks_sent`")?;
        let rest = self.stored_chunks()?.saturating_sub(after_kill);
        ensure!(
            sent <= rest + IN_FLIGHT_CHUNKS,
            "{sent} chunks were sent again, though only {rest} were missing ({before} before, {after_kill} at the kill)"
        );
        found.count(TWICE, sent.saturating_sub(rest));
        self.check_download()?;
        let verdict = self.node.ask(&["admin", "audit", "verify"])?;
        ensure!(verdict["verdict"] == "OK", "the audit log: {verdict}");
        Ok(format!("{} chunks were there, {sent} sent", after_kill - before.min(after_kill)))
    }

    /// Kills while a publish runs; returns whether the publish was acknowledged all the same.
    fn kill_in_publish(&mut self, kill: Kill, fraction: f64) -> anyhow::Result<bool> {
        let mut publish = self.node.bib(["dataset", "publish"]);
        publish.arg(&self.folder).args([DATASET, "-m", "a round", "--license", "CC0-1.0", "--yes", "-o", "json"]);
        publish.stdout(Stdio::piped()).stderr(Stdio::null()).stdin(Stdio::null());
        let child = publish.spawn().context("start bib")?;
        std::thread::sleep(self.publish_takes.mul_f64(fraction));
        if kill != Kill::PostgresInPublish {
            self.node.kill()?;
        }
        if kill != Kill::DaemonInPublish {
            self.node.kill_postgres()?;
        }
        let Some(answer) = wait_for_json(child)? else { return Ok(false) };
        self.remember(&answer)?;
        Ok(true)
    }

    /// Kills PostgreSQL while all passwords of the database change; afterwards one login of each pair must be open.
    fn kill_in_rotation(&mut self, fraction: f64) -> anyhow::Result<()> {
        let mut rotate = self.node.bib(["admin", "db", "rotate", "-o", "json"]);
        rotate.stdout(Stdio::piped()).stderr(Stdio::null()).stdin(Stdio::null());
        let child = rotate.spawn().context("start bib")?;
        std::thread::sleep(self.rotation_takes.mul_f64(fraction));
        self.node.kill_postgres()?;
        wait_for_json(child)?;
        self.ensure_running()?;
        let deadline = Instant::now() + RECOVERY_DEADLINE;
        // The checklist counts the logins; it fails until what was interrupted is finished.
        while let Err(error) = self.node.ask(&["admin", "db", "audit"]) {
            ensure!(Instant::now() < deadline, "the logins are not whole again: {error:#}");
            std::thread::sleep(Duration::from_millis(100));
        }
        Ok(())
    }

    fn kill_in_start(&mut self, kill: Kill, fraction: f64) -> anyhow::Result<()> {
        // Half of the starts follow a clean stop, half a crash: these adopt a server or recover one.
        if self.random.below(2) == 0 {
            self.node.stop()?;
        } else {
            self.node.kill()?;
        }
        self.node.spawn()?;
        std::thread::sleep(self.start_takes.mul_f64(fraction));
        if kill == Kill::DaemonInStart {
            return self.node.kill();
        }
        self.node.kill_postgres()?;
        // A start that loses its server may give up or go on; it may not hang or lie.
        if self.node.wait_ready().is_err() {
            self.node.kill()?;
        }
        Ok(())
    }

    /// The daemon runs, and answers.
    fn ensure_running(&mut self) -> anyhow::Result<()> {
        if self.node.pid().is_none() {
            self.node.start()?;
        }
        let deadline = Instant::now() + RECOVERY_DEADLINE;
        loop {
            match self.node.ask(&["topic", "list"]) {
                Ok(_) => return Ok(()),
                Err(error) if Instant::now() > deadline => return Err(error).context("the node is not well again"),
                Err(_) => std::thread::sleep(Duration::from_millis(100)),
            }
        }
    }

    fn publish_to_the_end(&mut self) -> anyhow::Result<Value> {
        let folder = self.folder.display().to_string();
        let arguments = ["dataset", "publish", &folder, DATASET, "-m", "a round", "--license", "CC0-1.0", "--yes"];
        let answer = self.node.ask(&arguments)?;
        self.remember(&answer)?;
        Ok(answer)
    }

    fn remember(&mut self, answer: &Value) -> anyhow::Result<()> {
        let version = answer["version"].as_str().context("publish says no `version`")?.to_owned();
        if self.acknowledged.iter().all(|(known, _)| *known != version) {
            self.acknowledged.push((version, listing(&self.folder)?));
        }
        Ok(())
    }

    /// Every acknowledged version is listed.
    fn check_acknowledged(&self) -> anyhow::Result<()> {
        let text = self.node.ask(&["dataset", "versions", DATASET])?.to_string();
        for (version, _) in &self.acknowledged {
            // A long list comes in pages; a version that is not on the first is asked for by itself.
            if !text.contains(version.as_str()) {
                let reference = format!("{DATASET}@{version}");
                self.node.ask(&["dataset", "show", &reference]).with_context(|| format!("{version} was lost"))?;
            }
        }
        Ok(())
    }

    /// The latest version and one of the earlier ones come back bit for bit.
    fn check_download(&mut self) -> anyhow::Result<()> {
        let earlier = usize::try_from(self.random.below(self.acknowledged.len() as u64))?;
        for at in [self.acknowledged.len() - 1, earlier] {
            let (version, wanted) = &self.acknowledged[at];
            let target = self.home.join("restored");
            let reference = format!("{DATASET}@{version}");
            self.node.ask(&["dataset", "download", &reference, &target.display().to_string()])?;
            ensure!(listing(&target)? == *wanted, "{reference} came back different");
            fs::remove_dir_all(&target).context("remove the download")?;
        }
        Ok(())
    }

    /// Adds a file of 80 MiB, one of 1 MiB and 20 small ones, and takes away those of the round before the last.
    fn change_folder(&mut self) -> anyhow::Result<()> {
        for size in [1 << 20, 80 << 20] {
            let bytes = size + self.random.below(1 << 20);
            self.add_file(bytes)?;
        }
        for _ in 0..20 {
            let bytes = self.random.below(8 << 10);
            self.add_file(bytes)?;
        }
        let old = self.serial.saturating_sub(44);
        for serial in old.saturating_sub(22)..old {
            fs::remove_file(self.folder.join(format!("f{serial:06}"))).context("remove an old file")?;
        }
        Ok(())
    }

    fn add_file(&mut self, bytes: u64) -> anyhow::Result<()> {
        let path = self.folder.join(format!("f{:06}", self.serial));
        self.serial += 1;
        write_file(&path, bytes, &mut self.random)
    }

    /// Chunk files in the store.
    fn stored_chunks(&self) -> anyhow::Result<u64> {
        count_files(&self.node.data().join("blobs"), 64)
    }
}

/// The JSON that a child printed, when it ended well; kills it when it hangs.
fn wait_for_json(mut child: Child) -> anyhow::Result<Option<Value>> {
    let deadline = Instant::now() + PUBLISH_DEADLINE;
    while child.try_wait().context("wait for bib")?.is_none() {
        if Instant::now() > deadline {
            child.kill().context("kill bib")?;
            bail!("bib hung for {} s after the kill", PUBLISH_DEADLINE.as_secs());
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    let output = child.wait_with_output().context("read what bib said")?;
    if !output.status.success() {
        return Ok(None);
    }
    Ok(Some(serde_json::from_slice(&output.stdout).context("read the JSON of publish")?))
}

/// Regular files below `directory` whose names have so many characters.
fn count_files(directory: &Path, name_length: usize) -> anyhow::Result<u64> {
    let mut count = 0;
    for entry in fs::read_dir(directory).with_context(|| format!("read `{}`", directory.display()))? {
        let entry = entry.context("read a directory")?;
        if entry.file_type().context("look at a file")?.is_dir() {
            count += count_files(&entry.path(), name_length)?;
        } else if entry.file_name().len() == name_length {
            count += 1;
        }
    }
    Ok(count)
}

fn listing(folder: &Path) -> anyhow::Result<Listing> {
    let mut all = Listing::new();
    for entry in fs::read_dir(folder).with_context(|| format!("read `{}`", folder.display()))? {
        let path = entry.context("read a folder")?.path();
        let bytes = fs::read(&path).with_context(|| format!("read `{}`", path.display()))?;
        all.insert(path.file_name().map(PathBuf::from).unwrap_or_default(), Sha256::digest(&bytes).into());
    }
    Ok(all)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_hashed_folder_shows_every_difference() {
        let here = tempfile::tempdir().unwrap();
        fs::write(here.path().join("a"), "1").unwrap();
        let one = listing(here.path()).unwrap();
        fs::write(here.path().join("a"), "2").unwrap();
        assert_ne!(one, listing(here.path()).unwrap());
        assert_eq!(count_files(here.path(), 1).unwrap(), 1);
    }
}
