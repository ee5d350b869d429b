//! `cargo xtask test`: the README's test command.

use crate::process::{cargo, run, run_and_find};
use crate::{image, machine, newer, postgres};

/// Builds everything, runs every test and every example in the documentation; returns nextest's summary line.
///
/// # Errors
/// When PostgreSQL cannot be had, when something does not build, or when a test fails.
pub fn run_all(nextest: &[String]) -> anyhow::Result<Option<String>> {
    let postgres = postgres::ensure()?;
    println!("PostgreSQL: {}", postgres.display());
    image::prepare()?;
    let newer = newer::find()?;
    machine::ensure_nextest()?;
    // All targets at once: `bib` and `bibd` are then there for the tests that drive them, built with the same features
    // of the dependencies as the tests, so that nothing is compiled twice.
    run(cargo().args(["build", "--workspace", "--all-targets", "--locked"]))?;
    let mut tests = cargo();
    tests.args(["nextest", "run", "--workspace", "--locked"]).args(nextest);
    if let Some(newer) = newer {
        tests.env(newer::VARIABLE, newer);
    }
    if std::io::IsTerminal::is_terminal(&std::io::stderr()) {
        tests.args(["--color", "always"]);
    }
    let summary = run_and_find(&mut tests, "Summary [")?;
    // A chosen test is not followed by all examples.
    if nextest.is_empty() {
        run(cargo().args(["test", "--doc", "--workspace", "--locked", "--quiet"]))?;
    }
    Ok(summary)
}
