//! What `cargo xtask bench` writes: JSON for programs, and the page that is generated from it for people.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use anyhow::Context as _;
use serde::{Deserialize, Serialize};

/// The time, RFC 3339.
///
/// # Errors
/// When the year has more than four digits.
#[allow(clippy::disallowed_methods, reason = "the tool is its own composition root")]
pub fn now() -> anyhow::Result<String> {
    time::OffsetDateTime::from(std::time::SystemTime::now())
        .format(&time::format_description::well_known::Rfc3339)
        .context("write the time")
}

/// The benchmarks, each as it was run last.
#[derive(Debug, Serialize, Deserialize)]
pub struct Report {
    /// The seed of all inputs.
    pub seed: u64,
    /// What they ran on.
    pub machine: Machine,
    /// Each benchmark's last run.
    pub runs: BTreeMap<String, Run>,
    /// The figures, in order.
    pub figures: Vec<Figure>,
}

/// One run of a benchmark.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Run {
    /// The commit that was measured; ends in `+` when files were changed.
    pub commit: String,
    /// When it was over, RFC 3339.
    pub time: String,
}

/// The machine of a run.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Machine {
    /// The processor's name.
    pub processor: String,
    /// How many threads it runs at once.
    pub threads: usize,
    /// Memory in MiB.
    pub memory_mib: u64,
    /// The kernel.
    pub kernel: String,
    /// Where data lay: path kind and file system.
    pub storage: String,
    /// PostgreSQL's version.
    pub postgres: String,
}

/// One figure.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Figure {
    /// The benchmark that it belongs to.
    pub benchmark: String,
    /// What was measured.
    pub what: String,
    /// The value, rounded.
    pub value: f64,
    /// Its unit.
    pub unit: String,
    /// What it must be, when a bound is promised.
    pub bound: Option<Bound>,
}

/// A promise.
#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
pub enum Bound {
    /// No more than this.
    #[serde(rename = "at_most")]
    AtMost(f64),
    /// No less than this.
    #[serde(rename = "at_least")]
    AtLeast(f64),
}

impl Figure {
    /// Whether the promise is held; `None` when there is none.
    #[must_use]
    pub fn holds(&self) -> Option<bool> {
        self.bound.map(|bound| match bound {
            Bound::AtMost(most) => self.value <= most,
            Bound::AtLeast(least) => self.value >= least,
        })
    }
}

/// The page of a report in JSON.
///
/// # Errors
/// When the JSON is not a report.
pub fn page_of(json: &str) -> anyhow::Result<String> {
    let report: Report = serde_json::from_str(json).context("read the report")?;
    Ok(report.page())
}

impl Report {
    /// One without figures.
    #[must_use]
    pub const fn on(machine: Machine, seed: u64) -> Self {
        Self { seed, machine, runs: BTreeMap::new(), figures: Vec::new() }
    }

    /// Puts the figures of a benchmark in the place of its former ones.
    pub fn take(&mut self, benchmark: &str, run: Run, figures: Vec<Figure>) {
        self.figures.retain(|figure| figure.benchmark != benchmark);
        self.figures.extend(figures);
        self.runs.insert(benchmark.to_owned(), run);
    }

    /// The page for people.
    #[must_use]
    pub fn page(&self) -> String {
        let machine = &self.machine;
        let mut page = format!(
            "# Benchmarks\n\n\
             Generated from `benchmarks.json` by `cargo xtask bench`; do not edit. Ratios are between things measured in\n\
             the same run. Inputs are seeded random bytes, no two files alike; every time includes the fsync of what is\n\
             acknowledged.\n\n\
             - seed {}\n- {}, {} threads, {} MiB, {}\n- data on {}\n- {}\n",
            self.seed,
            machine.processor,
            machine.threads,
            machine.memory_mib,
            machine.kernel,
            machine.storage,
            machine.postgres,
        );
        let mut benchmark = "";
        for figure in &self.figures {
            if figure.benchmark != benchmark {
                benchmark = &figure.benchmark;
                // Writing to a string cannot fail.
                let _ = write!(page, "\n## {benchmark}\n\n");
                if let Some(Run { commit, time }) = self.runs.get(benchmark) {
                    let _ = write!(page, "Commit {commit}, {time}.\n\n");
                }
                page.push_str("| figure | value | bound | |\n|---|---|---|---|\n");
            }
            let bound = match figure.bound {
                None => String::new(),
                Some(Bound::AtMost(most)) => format!("<= {most} {}", figure.unit),
                Some(Bound::AtLeast(least)) => format!(">= {least} {}", figure.unit),
            };
            let verdict = figure.holds().map_or("", |holds| if holds { "holds" } else { "**missed**" });
            let _ = writeln!(page, "| {} | {} {} | {bound} | {verdict} |", figure.what, figure.value, figure.unit);
        }
        page
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_page_says_what_is_held_and_what_is_missed() {
        let figure = |value, bound| Figure {
            benchmark: "start".to_owned(),
            what: "first start".to_owned(),
            value,
            unit: "s".to_owned(),
            bound: Some(bound),
        };
        let machine = Machine {
            processor: "p".to_owned(),
            threads: 2,
            memory_mib: 1,
            kernel: "k".to_owned(),
            storage: "ext4".to_owned(),
            postgres: "15".to_owned(),
        };
        let run = |commit: &str| Run { commit: commit.to_owned(), time: "2026-01-01T00:00:00Z".to_owned() };
        let mut report = Report::on(machine, 1);
        report.take("start", run("former"), vec![figure(7.0, Bound::AtMost(10.0))]);
        report.take("start", run("abc"), vec![figure(3.0, Bound::AtMost(10.0)), figure(3.0, Bound::AtLeast(10.0))]);
        let page = page_of(&serde_json::to_string(&report).unwrap()).unwrap();
        assert!(page.contains("| first start | 3 s | <= 10 s | holds |"), "{page}");
        assert!(page.contains("| first start | 3 s | >= 10 s | **missed** |"), "{page}");
        assert_eq!(page.matches("## start\n\nCommit abc, 2026-01-01T00:00:00Z.\n\n|").count(), 1);
    }
}
