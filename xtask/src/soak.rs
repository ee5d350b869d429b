//! `cargo xtask soak`: kills with signal 9, again and again, and looks for what was lost.
//!
//! It consists of works that stand for themselves: deaths at the named steps of a work of the daemon ([`steps`]), restores
//! to random moments ([`moments`]), and kills at any moment of a publish or a start ([`kills`]). What a work found is
//! written down as soon as it has ended ([`report`]), so that a run that is cut off loses one work, and the works of a
//! hundred rounds may be run one after the other.

use std::process::Command;
use std::time::Instant;

use anyhow::{Context as _, bail};

use crate::node::{Profile, Programs};
use crate::postgres;
use crate::process::{capture, root};

mod glass;
mod kills;
mod moments;
mod report;
mod steps;

use report::{Found, Report};

/// The works, in order.
const WORKS: [&str; 8] = ["migrate", "upgrade", "rotate", "backup", "restore", "glass", "moments", "kills"];

/// How much of it.
#[derive(Debug, Clone, Copy)]
pub struct Plan {
    /// Kills at any moment.
    pub kills: u64,
    /// Deaths at the steps of each work that has named ones.
    pub deaths: u64,
    /// Random moments that a node is restored to.
    pub moments: u64,
    /// Makes inputs and moments the same again.
    pub seed: u64,
}

impl Plan {
    /// So many rounds of everything, and a moment for each five of them.
    #[must_use]
    pub const fn of(rounds: u64, seed: u64) -> Self {
        Self { kills: rounds, deaths: rounds, moments: rounds / 5, seed }
    }

    fn rounds_of(&self, work: &str) -> u64 {
        match work {
            "kills" => self.kills,
            "moments" => self.moments,
            _ => self.deaths,
        }
    }
}

/// Builds the programs and runs these works, or all when none is named; `write` puts what they found into
/// `docs/soak.json` and the page made of it.
///
/// # Errors
/// As [`run`], and when the programs do not build.
pub fn run_built(works: &[String], plan: Plan, write: bool) -> anyhow::Result<()> {
    postgres::ensure()?;
    run(&Programs::build(Profile::Dev)?, works, plan, write)
}

/// Runs the works with these programs.
///
/// # Errors
/// When a work is unknown or a node cannot be had, or when anything that was promised did not hold.
pub fn run(programs: &Programs, works: &[String], plan: Plan, write: bool) -> anyhow::Result<()> {
    if let Some(unknown) = works.iter().find(|work| !WORKS.contains(&work.as_str())) {
        bail!("there is no work `{unknown}`; there are {}", WORKS.join(", "));
    }
    let commit = commit()?;
    let mut failures = 0;
    for work in WORKS.into_iter().filter(|work| works.is_empty() || works.iter().any(|wanted| wanted == work)) {
        let rounds = plan.rounds_of(work);
        if rounds == 0 {
            continue;
        }
        println!("\n==== {work}");
        let began = Instant::now();
        let mut found = Found::begin(work, &commit, rounds, plan.seed)?;
        let outcome = match work {
            "kills" => kills::run(programs, rounds, plan.seed, &mut found),
            "moments" => moments::run(programs, rounds, plan.seed, &mut found),
            _ => steps::run(programs, work, rounds, plan.seed, &mut found),
        };
        if let Err(error) = outcome.with_context(|| format!("the work `{work}`")) {
            println!("{error:#}");
            found.failures.push(format!("{error:#}"));
        }
        println!("{work}: {rounds} rounds, {} failures, {:.0} s", found.failures.len(), began.elapsed().as_secs_f64());
        failures += found.failures.len();
        if write {
            Report::add(found)?;
        }
    }
    if failures > 0 {
        bail!("{failures} rounds failed");
    }
    println!("seed {}: nothing acknowledged was lost", plan.seed);
    Ok(())
}

/// The commit that is checked out; ends in `+` when files were changed.
///
/// # Errors
/// When git does not answer.
pub fn commit() -> anyhow::Result<String> {
    let git = |arguments: &[&str]| capture(Command::new("git").current_dir(root()).args(arguments));
    // What was found before is no change of what is looked at.
    let found = [":!docs/soak.json", ":!docs/soak.md", ":!docs/benchmarks.json", ":!docs/benchmarks.md"];
    let status = ["status", "--porcelain", "--untracked-files=no", "--", "."];
    let changed = !git(&[&status[..], &found[..]].concat())?.trim().is_empty();
    Ok(format!("{}{}", git(&["rev-parse", "--short=12", "HEAD"])?.trim(), if changed { "+" } else { "" }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_unknown_work_is_refused_with_the_list() {
        let programs = Programs { bib: "bib".into(), bibd: "bibd".into() };
        let error = run(&programs, &["nonsense".to_owned()], Plan::of(1, 1), false).unwrap_err().to_string();
        assert!(error.contains("rotate") && error.contains("moments"), "{error}");
    }

    #[test]
    fn every_work_is_described() {
        for work in WORKS {
            assert!(report::about(work).ends_with('.'), "{work}");
        }
    }
}
