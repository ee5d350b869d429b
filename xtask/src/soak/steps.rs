//! Deaths at named steps: the daemon, or a restore, kills itself right after a step of a work (`BIBD_DIE_AT`; the daemon
//! refuses a name that it does not know). Then it is started again, within ten seconds one valid state is found, and the
//! same work is done to its end.

use std::fs;
use std::os::unix::process::ExitStatusExt as _;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};
use serde_json::Value;

use super::glass;
use super::report::Found;
use crate::newer;
use crate::node::{DIE_AT, Node, Programs, passable_directory};
use crate::process::capture;
use crate::random::Random;

/// The works and their steps, as the daemon names them (`bibd/daemon/src/failpoint.rs`).
const WORKS: [(&str, &[&str]); 6] = [
    ("migrate", &["opened", "ran", "committed", "done"]),
    ("upgrade", &["begun", "made", "dumped", "loaded", "built", "aside", "placed", "recorded", "ended"]),
    ("rotate", &["intent", "opened", "stored", "moved", "closed"]),
    ("backup", &["begun", "streamed", "manifest"]),
    ("restore", &["claimed", "unpacked", "recovered", "examined", "settled"]),
    ("glass", &["intent", "opened", "open", "cut", "closed", "ended"]),
];
/// How long a node may take from its start until it writes again.
const RECOVERY_DEADLINE: Duration = Duration::from_secs(10);
const KILLED: Option<i32> = Some(9);

/// So many deaths in this work, at steps that follow one another from one that the seed chooses.
///
/// # Errors
/// When the node cannot be had. What did not hold is in `found`.
pub(super) fn run(programs: &Programs, work: &str, rounds: u64, seed: u64, found: &mut Found) -> anyhow::Result<()> {
    let names = WORKS.iter().find(|(name, _)| *name == work).context("the work has no steps")?.1;
    let newer = if work == "upgrade" { newer::find()? } else { None };
    let directory = passable_directory(None)?;
    let mut steps = Steps::of(programs, directory.path());
    // The others have a fresh node for each death.
    let needs_node = !matches!(work, "migrate" | "upgrade");
    if needs_node {
        steps.begin(work)?;
    }
    let first = Random::of(seed).below(names.len() as u64);
    for round in 0..rounds {
        let step = names[usize::try_from((first + round) % names.len() as u64)?];
        let point = format!("{work}.{step}");
        let began = Instant::now();
        let outcome = match work {
            "migrate" => steps.migration(&point),
            "upgrade" => steps.upgrade(&point, newer.as_deref().context("there is no newer PostgreSQL to upgrade to")?),
            "rotate" => steps.rotation(&point),
            "backup" => steps.backup(&point),
            // Each step in turn with a session and without one.
            "glass" => steps.glass(&point, (round + round / names.len() as u64).is_multiple_of(2)),
            _ => steps.restore(&point),
        };
        found.died(&format!("after `{point}`"));
        let took = began.elapsed().as_secs_f64();
        match outcome {
            Ok(()) => println!("death at {point}: one valid state; the round took {took:.1} s"),
            Err(error) => {
                println!("death at {point}: FAILED: {error:#}\n{}", steps.node.end_of_log());
                found.failures.push(format!("death at {point}: {error:#}"));
                steps.node.die_at(None);
                steps.node.kill()?;
                if needs_node {
                    steps.node.start().context("after a failed round the node does not start")?;
                }
            }
        }
    }
    found.slowest_s = (!steps.slowest.is_zero()).then_some(steps.slowest.as_secs_f64());
    steps.node.stop()
}

pub(super) struct Steps {
    programs: Programs,
    pub(super) node: Node,
    pub(super) home: PathBuf,
    /// Topics that were acknowledged.
    topics: u64,
    /// The newest backup, and the topics at the time.
    newest: (String, u64),
    slowest: Duration,
}

impl Steps {
    /// Starts the node, with a store, a recovery sheet, a key of break-glass and, to be restored, a backup.
    fn begin(&mut self, work: &str) -> anyhow::Result<()> {
        let config = self.home.join("config");
        fs::create_dir_all(&config).context("make the configuration's directory")?;
        let store = self.home.join("store");
        let store = format!("backup:\n  store: {}\n  every: 0s\n  archive_timeout: 1s\n", store.display());
        let text = format!("{store}{}", glass::configuration(&self.home)?);
        fs::write(config.join("config.yaml"), text).context("write the configuration")?;
        self.node.start()?;
        let sheet = self.home.join("sheet").display().to_string();
        self.node.ask(&["admin", "recovery", "export", "--out", &sheet])?;
        self.make_topic()?;
        if work == "restore" {
            self.make_backup()?;
        }
        Ok(())
    }

    /// A node that was never started.
    fn of(programs: &Programs, home: &Path) -> Self {
        let (programs, node) = (programs.clone(), Node::new(programs.clone(), home));
        Self { programs, node, home: home.to_owned(), topics: 0, newest: Default::default(), slowest: Duration::ZERO }
    }

    /// Another node, in a directory of its own, which goes when `work` succeeds.
    fn beside(&mut self, work: impl FnOnce(&mut Self) -> anyhow::Result<()>) -> anyhow::Result<()> {
        let home = passable_directory(Some(&self.home))?;
        let mut other = Self::of(&self.programs, home.path());
        work(&mut other).with_context(|| format!("in `{}`\n{}", home.path().display(), other.node.end_of_log()))?;
        other.node.stop()?;
        self.slowest = self.slowest.max(other.slowest);
        Ok(())
    }

    /// The daemon dies at `point` of its start, and is started again.
    fn die_in_start(&mut self, point: &str) -> anyhow::Result<()> {
        self.node.die_at(Some(point));
        self.node.spawn()?;
        ensure!(self.node.wait_ended()?.signal() == KILLED, "the daemon did not die at {point}");
        self.node.die_at(None);
        self.recover(|_| Ok(true))
    }

    /// A new node's schema is whole at the second start, whatever of it was there, and what migrates is shut out.
    fn migration(&mut self, point: &str) -> anyhow::Result<()> {
        self.beside(|fresh| {
            fresh.die_in_start(point)?;
            // Every role against every table, and who may log in.
            fresh.node.ask(&["admin", "db", "audit"])?;
            fresh.check_log()
        })
    }

    /// The node goes on with the old PostgreSQL or with the new one, and has everything.
    fn upgrade(&mut self, point: &str, newer: &Path) -> anyhow::Result<()> {
        self.beside(|other| {
            other.node.has_newer(newer);
            other.node.start()?;
            other.make_topic()?;
            let planned = other.node.ask(&["admin", "db", "upgrade"])?;
            other.node.stop()?;
            other.die_in_start(point)?;
            let listed = other.node.ask(&["topic", "list"])?;
            let found = listed.as_array().map_or(0, Vec::len) as u64;
            ensure!(found == other.topics, "{found} topics, not {}", other.topics);
            let status = other.node.ask(&["admin", "db", "status"])?;
            let runs = status[0]["version"].as_str().unwrap_or_default().to_owned();
            let is_early = ["upgrade.begun", "upgrade.made", "upgrade.dumped", "upgrade.loaded"].contains(&point);
            let expected = &planned[if is_early { "from" } else { "to" }];
            ensure!(*expected == runs.as_str(), "PostgreSQL {runs} runs, not {expected}");
            ensure!(!other.node.data().join("postgres/upgrade").exists(), "what was made beside it is still there");
            other.node.ask(&["admin", "db", "audit"])?;
            other.check_log()
        })
    }

    fn make_topic(&mut self) -> anyhow::Result<()> {
        self.node.ask(&["topic", "create", &format!("t{}", self.topics)])?;
        self.topics += 1;
        Ok(())
    }

    fn make_backup(&mut self) -> anyhow::Result<()> {
        let made = self.node.ask(&["admin", "backup", "create"])?;
        let id = made["backup"].as_str().context("a backup has no name")?;
        self.newest = (id.to_owned(), self.topics);
        Ok(())
    }

    /// The daemon dies at `point` of what `arguments` ask for, and is started again.
    fn die(&mut self, point: &str, arguments: &[&str]) -> anyhow::Result<()> {
        self.restart_to_die(point)?;
        self.ask_and_die(point, arguments)?;
        self.recover(|_| Ok(true))
    }

    /// Starts a daemon that dies at `point`.
    pub(super) fn restart_to_die(&mut self, point: &str) -> anyhow::Result<()> {
        self.node.stop()?;
        self.node.die_at(Some(point));
        self.node.start().map(drop)
    }

    /// The daemon dies at `point` of what `arguments` ask for.
    pub(super) fn ask_and_die(&mut self, point: &str, arguments: &[&str]) -> anyhow::Result<()> {
        let mut asked = self.node.bib(arguments);
        asked.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        ensure!(!asked.status().context("run bib")?.success(), "`bib` says that it was done");
        ensure!(self.node.wait_ended()?.signal() == KILLED, "the daemon did not die at {point}");
        self.node.die_at(None);
        Ok(())
    }

    /// Starts the daemon that follows one that died; within the time that is promised it writes, and `is_well`.
    pub(super) fn recover(&mut self, is_well: impl Fn(&Node) -> anyhow::Result<bool>) -> anyhow::Result<()> {
        let began = Instant::now();
        self.node.start()?;
        self.make_topic()?;
        while !is_well(&self.node)? && began.elapsed() <= RECOVERY_DEADLINE {
            std::thread::sleep(Duration::from_millis(100));
        }
        let took = began.elapsed();
        self.slowest = self.slowest.max(took);
        ensure!(took <= RECOVERY_DEADLINE, "well again only after {:.1} s", took.as_secs_f64());
        Ok(())
    }

    /// One login of each pair is open, which the checklist counts, and the next rotation goes through.
    fn rotation(&mut self, point: &str) -> anyhow::Result<()> {
        self.die(point, &["admin", "db", "rotate"])?;
        self.node.ask(&["admin", "db", "audit"])?;
        let done = self.node.ask(&["admin", "db", "rotate"])?;
        ensure!(done["roles"].as_array().is_some_and(|roles| roles.len() == 10), "a rotation did less: {done}");
        self.node.ask(&["admin", "db", "audit"])?;
        self.check_log()
    }

    /// A backup is there whole or not at all, and the next one sweeps away what the other left.
    fn backup(&mut self, point: &str) -> anyhow::Result<()> {
        let before = self.complete()?.len();
        self.die(point, &["admin", "backup", "create"])?;
        let after = self.complete()?;
        let expected = before + usize::from(point == "backup.manifest");
        ensure!(after.len() == expected, "{} backups are complete, not {expected}", after.len());
        self.make_backup()?;
        let listed = self.node.ask(&["admin", "backup", "list"])?;
        let listed = listed.as_array().context("`backup list` is no list")?;
        ensure!(listed.len() == expected + 1, "what was cut off is still there: {listed:?}");
        let verdict = self.node.ask(&["admin", "backup", "verify", &self.newest.0])?;
        ensure!(verdict["verdict"] == "OK" && verdict["topics"] == self.topics, "the backup holds {verdict}");
        for id in after {
            self.node.ask(&["admin", "backup", "delete", &id, "--yes"])?;
        }
        self.check_log()
    }

    /// No daemon starts on what the restore left, and the same restore again makes the node.
    fn restore(&mut self, point: &str) -> anyhow::Result<()> {
        let back = self.home.join("back");
        let mut dying = self.restoring(&back);
        dying.env(DIE_AT, point).stdout(Stdio::null()).stderr(Stdio::null());
        ensure!(dying.status().context("run bibd")?.signal() == KILLED, "the restore did not die at {point}");
        let mut refused = self.node.bibd(["--data-dir".as_ref(), back.as_os_str(), "run".as_ref()]);
        let said = refused.output().context("run bibd")?;
        ensure!(String::from_utf8_lossy(&said.stderr).contains("BIB0407"), "a daemon started on it: {said:?}");
        let restored: Value = serde_json::from_str(&capture(&mut self.restoring(&back))?).context("read the answer")?;
        let is_exact = restored["verdict"] == "OK" && restored["rows"]["topics"] == self.newest.1;
        ensure!(is_exact && restored["epoch"].as_u64() > restored["from_epoch"].as_u64(), "restored: {restored}");
        ensure!(!back.join("RESTORING").exists(), "the mark is still there");
        fs::remove_dir_all(&back).context("remove what was restored")
    }

    fn restoring(&self, back: &Path) -> std::process::Command {
        let (store, sheet) = (self.home.join("store"), self.home.join("sheet"));
        let mut command = self.node.bibd(["restore", "--output", "json", "--backup", &self.newest.0]);
        command.arg("--from").arg(store).arg("--to").arg(back).arg("--identity").arg(sheet);
        command
    }

    /// Names of the backups that are offered.
    fn complete(&self) -> anyhow::Result<Vec<String>> {
        let listed = self.node.ask(&["admin", "backup", "list"])?;
        let rows = listed.as_array().context("`backup list` is no list")?.iter();
        let complete = rows.filter(|row| row["state"] == "complete");
        complete.map(|row| Ok(row["backup"].as_str().context("a backup has no name")?.to_owned())).collect()
    }

    pub(super) fn check_log(&self) -> anyhow::Result<()> {
        let verdict = self.node.ask(&["admin", "audit", "verify"])?;
        ensure!(verdict["verdict"] == "OK", "the audit log: {verdict}");
        Ok(())
    }
}
