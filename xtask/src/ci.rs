//! `cargo xtask ci`: exactly what CI runs, on a machine that has nothing but Rust.
//!
//! Each step is printed with its time; the first that fails ends the run.

use std::process::Command;
use std::time::{Duration, Instant};

use crate::node::{Profile, Programs};
use crate::process::{capture, cargo, root, run};
use crate::soak::Plan;
use crate::{hardening, image, kubernetes, machine, newer, postgres, soak, test, tidy};

/// What is run of the soak. Deaths in an upgrade and restores to random moments are among the tests.
const SOAK_WORKS: [&str; 6] = ["migrate", "rotate", "backup", "restore", "glass", "kills"];
/// Enough to meet each kind of kill once, and three steps of each work that has named ones. The same every time: CI looks
/// for what changed.
const SOAK: Plan = Plan { kills: 6, deaths: 3, moments: 1, seed: 1 };

/// Runs every step in order, cheap ones first.
///
/// # Errors
/// The first step that fails.
pub fn run_all() -> anyhow::Result<()> {
    let mut steps = Steps::default();
    steps.step("machine", || {
        machine::ensure_parts()?;
        postgres::ensure()?;
        newer::ensure()?;
        machine::ensure_nextest()
    })?;
    steps.step("container engines and image", image::ensure)?;
    steps.step("format", || run(cargo().args(["fmt", "--all", "--check"])))?;
    steps.step("tidy", tidy::run)?;
    steps.step("licences, bans, sources", || {
        machine::ensure_deny()?;
        run(cargo().args(["deny", "--locked", "check", "bans", "licenses", "sources"]))
    })?;
    steps.step("advisories, where their database is reached", advisories)?;
    steps.step("objects for Kubernetes", kubernetes::check)?;
    steps.step("clippy", || {
        let lint = ["clippy", "--workspace", "--all-targets", "--locked", "--quiet", "--", "-D", "warnings"];
        run(cargo().args(lint))
    })?;
    steps.step("documentation", || {
        let mut doc = cargo();
        // Libraries alone: in a program doc comments are help texts, with brackets that are no links.
        doc.env("RUSTDOCFLAGS", "-D warnings -A rustdoc::private_intra_doc_links");
        run(doc.args(["doc", "--workspace", "--lib", "--no-deps", "--locked", "--quiet", "--keep-going"]))
    })?;
    let summary = steps.step("tests", || test::run_all(&[]))?;
    steps.step("checklist on every provisioner", || hardening::check(&Programs::built(Profile::Dev)?))?;
    // The tests have built the programs; another selection of packages would build their dependencies again.
    steps.step("soak", || soak::run(&Programs::built(Profile::Dev)?, &SOAK_WORKS.map(str::to_owned), SOAK, false))?;
    steps.print();
    println!("{}", summary.unwrap_or_default());
    Ok(())
}

/// The database of advisories lies behind a network that CI may not have: then that is said, loudly, and nothing is
/// claimed (`docs/not-here.md`).
fn advisories() -> anyhow::Result<()> {
    let mut fetch = Command::new("timeout");
    fetch.current_dir(root()).args(["60", "cargo", "deny", "--locked", "fetch", "db"]);
    if let Err(error) = capture(&mut fetch) {
        println!("==== NOT CHECKED: the advisory database cannot be reached from here (docs/not-here.md)");
        println!("{error}");
        return Ok(());
    }
    run(cargo().args(["deny", "--locked", "check", "--disable-fetch", "advisories"]))
}

/// The steps that were run and how long each took.
#[derive(Default)]
struct Steps(Vec<(&'static str, Duration)>);

impl Steps {
    fn step<T>(&mut self, name: &'static str, work: impl FnOnce() -> anyhow::Result<T>) -> anyhow::Result<T> {
        println!("\n==== {name}");
        let began = Instant::now();
        let outcome = work();
        let took = began.elapsed();
        self.0.push((name, took));
        let word = if outcome.is_ok() { "ok" } else { "FAILED" };
        println!("==== {name}: {word} in {:.1} s", took.as_secs_f64());
        if outcome.is_err() {
            self.print();
        }
        outcome
    }

    fn print(&self) {
        println!();
        for (name, took) in &self.0 {
            println!("{:>8.1} s  {name}", took.as_secs_f64());
        }
        let all: Duration = self.0.iter().map(|(_, took)| *took).sum();
        println!("{:>8.1} s  in all", all.as_secs_f64());
    }
}
