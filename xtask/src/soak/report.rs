//! What the works found: `docs/soak.json` for programs, and the page that is made of it for people.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs;

use anyhow::Context as _;
use serde::{Deserialize, Serialize};

use super::WORKS;
use crate::process::root;
use crate::report::now;

/// What one work found.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct Found {
    work: String,
    /// The commit; ends in `+` when files were changed.
    commit: String,
    /// When it began, RFC 3339.
    time: String,
    rounds: u64,
    seed: u64,
    /// What died, or after which step, and how often.
    deaths: BTreeMap<String, u64>,
    /// What else was counted.
    pub(super) counts: BTreeMap<String, u64>,
    /// The longest that a node took until it was well again, in seconds.
    pub(super) slowest_s: Option<f64>,
    pub(super) failures: Vec<String>,
}

impl Found {
    /// Nothing yet.
    pub(super) fn begin(work: &str, commit: &str, rounds: u64, seed: u64) -> anyhow::Result<Self> {
        Ok(Self {
            work: work.to_owned(),
            commit: commit.to_owned(),
            time: now()?,
            rounds,
            seed,
            deaths: BTreeMap::new(),
            counts: BTreeMap::new(),
            slowest_s: None,
            failures: Vec::new(),
        })
    }

    /// It died there once more.
    pub(super) fn died(&mut self, where_: &str) {
        *self.deaths.entry(where_.to_owned()).or_default() += 1;
    }

    /// So many more of that.
    pub(super) fn count(&mut self, what: &str, more: u64) {
        *self.counts.entry(what.to_owned()).or_default() += more;
    }
}

/// Every work's last run.
#[derive(Debug, Default, Serialize, Deserialize)]
pub(super) struct Report {
    works: Vec<Found>,
}

impl Report {
    /// Writes what a work found into the file and the page, in place of what it found before.
    pub(super) fn add(found: Found) -> anyhow::Result<()> {
        let path = root().join("docs/soak.json");
        let report: Self = match fs::read_to_string(&path) {
            Ok(json) => serde_json::from_str(&json).context("read docs/soak.json")?,
            Err(_) => Self::default(),
        };
        let report = report.with(found);
        let json = serde_json::to_string_pretty(&report).context("write the report")?;
        fs::write(path, format!("{json}\n")).context("write docs/soak.json")?;
        fs::write(root().join("docs/soak.md"), report.page()).context("write docs/soak.md")
    }

    fn with(mut self, found: Found) -> Self {
        self.works.retain(|other| other.work != found.work);
        self.works.push(found);
        self.works.sort_by_key(|found| WORKS.iter().position(|work| *work == found.work));
        self
    }

    fn page(&self) -> String {
        let mut page = String::from(
            "# Soak\n\n\
             Generated from `soak.json` by `cargo xtask soak`; do not edit. Everything that dies here dies by signal 9.\n",
        );
        for found in &self.works {
            let (work, about) = (&found.work, about(&found.work));
            let (rounds, seed, commit) = (found.rounds, found.seed, &found.commit);
            let day = found.time.split('T').next().unwrap_or_default();
            // Writing to a string cannot fail.
            let _ = write!(
                page,
                "\n## {work}\n\n{about}\n\n`cargo xtask soak {work} --rounds {}`, {rounds} rounds, seed {seed}, commit \
                 {commit}, {day}: **{} failures**.\n",
                if work == "moments" { rounds * 5 } else { rounds },
                found.failures.len()
            );
            for failure in &found.failures {
                let _ = writeln!(page, "- {}", failure.lines().next().unwrap_or_default());
            }
            if !found.deaths.is_empty() {
                page.push_str("\n| died | times |\n|---|---|\n");
            }
            for (point, count) in &found.deaths {
                let _ = writeln!(page, "| {point} | {count} |");
            }
            page.push('\n');
            for (what, count) in &found.counts {
                let _ = writeln!(page, "- {what}: {count}");
            }
            if let Some(slowest) = found.slowest_s {
                let _ = writeln!(page, "- the longest until it was well again: {slowest:.1} s");
            }
        }
        page
    }
}

/// What a work does, for the page.
pub(super) fn about(work: &str) -> &'static str {
    match work {
        "migrate" => {
            "The daemon dies right after a step of the migration of a new node's schema. Started again it writes within ten \
             seconds, every role has its rights on every table, and what migrates is shut out."
        }
        "upgrade" => {
            "The daemon dies right after a step of an upgrade of PostgreSQL to the next major version. Started again it \
             writes within ten seconds, on the old PostgreSQL or on the new one, with everything in it."
        }
        "rotate" => {
            "The daemon dies right after a step of a rotation of all passwords. Started again it writes within ten seconds, \
             one login of each pair is open, and the next rotation goes through."
        }
        "backup" => {
            "The daemon dies right after a step of a backup. Started again it writes within ten seconds; the backup is \
             whole or not offered, and the next one sweeps away what was left and verifies."
        }
        "restore" => {
            "`bibd restore` dies right after a step. No daemon starts on what it left, and the same restore again makes the \
             node, with every row and a new epoch."
        }
        "glass" => {
            "The daemon dies right after a step of a grant of break-glass, half of the times with a session of `psql` in the \
             middle of a statement. Started again it writes within ten seconds, neither role nor session is left, and the \
             report has what was said."
        }
        "moments" => {
            "A node with a backup goes on writing and rotates its passwords; then everything is gone but the store and the \
             recovery sheet. It is restored on an empty directory to random moments: the rows are those of the moment, the \
             audit log verifies, the epoch is raised each time; the last one is started and goes on."
        }
        _ => {
            "Each round changes a folder and publishes it, and something is killed on the way; the moments are spread evenly \
             over the time that a publish, a start or a rotation of passwords takes. Then everything that was acknowledged \
             is there, the audit log verifies, the publish run again sends only the rest, and the latest and a random \
             earlier version come back bit for bit."
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_work_takes_the_place_of_its_last_run_and_every_failure_is_named() {
        let mut kills = Found::begin("kills", "abc", 2, 7).unwrap();
        kills.died("the daemon, during a publish");
        kills.died("the daemon, during a publish");
        kills.count("chunks", 3);
        kills.failures.push("round 1: lost\nmore".to_owned());
        let older = Found::begin("rotate", "0ther", 1, 7).unwrap();
        let mut rotate = Found::begin("rotate", "abc", 2, 7).unwrap();
        rotate.slowest_s = Some(1.25);
        let report = Report::default().with(kills).with(older).with(rotate);
        let read: Report = serde_json::from_str(&serde_json::to_string(&report).unwrap()).unwrap();
        let page = read.page();
        assert!(page.contains("| the daemon, during a publish | 2 |\n\n- chunks: 3\n"), "{page}");
        assert!(page.contains("**1 failures**.\n- round 1: lost\n\n"), "{page}");
        assert!(page.contains("was well again: 1.2 s") && !page.contains("0ther"), "{page}");
        assert!(page.find("## rotate") < page.find("## kills"), "{page}");
    }
}
