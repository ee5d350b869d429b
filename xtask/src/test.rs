//! `cargo xtask test`: the README's test command.

use crate::process::{cargo, run, run_and_find};
use crate::{image, machine, newer, postgres};

/// How nextest is told how many tests run at once.
const THREADS: &str = "NEXTEST_TEST_THREADS";

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
    if std::env::var_os(THREADS).is_none() {
        tests.env(THREADS, at_once(std::thread::available_parallelism()?.get()).to_string());
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

/// Tests at once: of its time a test of a whole node spends a third waiting, for a disk, a start or a deadline.
fn at_once(processors: usize) -> usize {
    processors + processors.div_ceil(2)
}

#[cfg(test)]
mod tests {
    #[test]
    fn more_tests_than_processors() {
        assert_eq!([1, 2, 8].map(super::at_once), [2, 3, 12]);
    }
}
