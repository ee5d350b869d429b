//! What a developer runs: `cargo xtask demo | test | bench | soak | image | kubernetes | hardening | ci | tidy`.
//!
//! Links none of the product: it drives the built programs as a user would, so a change of the product never keeps the
//! tool that checks it from compiling. Start with [`ci`] for what must hold, with [`demo`] for what BIB does.
#![allow(clippy::print_stdout, clippy::print_stderr, reason = "a command line tool talks on its standard streams")]
#![allow(unreachable_pub, reason = "in a binary `pub` marks what a module shows to its siblings")]
#![cfg_attr(test, allow(clippy::unwrap_used))]

use std::process::ExitCode;

use clap::{Parser, Subcommand};

mod bench;
mod ci;
mod demo;
mod engines;
mod hardening;
mod image;
mod kubernetes;
mod machine;
mod newer;
mod node;
mod offline;
mod postgres;
mod process;
mod random;
mod report;
mod soak;
mod test;
mod tidy;

/// The developer's commands.
#[derive(Debug, Parser)]
#[command(name = "cargo xtask", about = "The developer's commands of BIB.")]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// The main job as a user sees it: a node, publish, change, download, verify, prove, the audit log.
    Demo {
        /// Leave the node running.
        #[arg(long)]
        keep: bool,
    },
    /// Builds everything and runs every test; finds or installs PostgreSQL.
    Test {
        /// Arguments for `cargo nextest run`, such as a test's name.
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        nextest: Vec<String>,
    },
    /// The promised figures: release build, seeded inputs; writes docs/benchmarks.json and docs/benchmarks.md.
    Bench {
        /// Only these benchmarks; all when none is named.
        names: Vec<String>,
        /// Only make the page again from the JSON.
        #[arg(long, conflicts_with = "names")]
        page: bool,
    },
    /// Kills the daemon and PostgreSQL again and again and looks for what was lost; writes docs/soak.json and docs/soak.md.
    Soak {
        /// Only these works: migrate, upgrade, rotate, backup, restore, glass, moments, kills; all when none is named.
        works: Vec<String>,
        /// How many deaths in each work; a fifth as many moments.
        #[arg(long, default_value_t = 100)]
        rounds: u64,
        /// Makes inputs and moments the same again.
        #[arg(long, default_value_t = 1)]
        seed: u64,
        /// Leave docs/soak.json and docs/soak.md as they are.
        #[arg(long)]
        no_page: bool,
    },
    /// Builds PostgreSQL's container image from the distribution's packages, where none can be pulled.
    Image,
    /// Checks the objects for Kubernetes against the schemas that Kubernetes publishes.
    Kubernetes,
    /// Makes docs/hardening.md: the checklist of the managed PostgreSQL on every provisioner.
    Hardening,
    /// Exactly what CI runs: format, clippy, documentation, tidy, licences, tests, a short soak.
    Ci,
    /// Checks the rules that the compiler cannot.
    Tidy,
}

fn main() -> ExitCode {
    let outcome = match Cli::parse().command {
        Command::Demo { keep } => demo::run(keep),
        Command::Test { nextest } => test::run_all(&nextest).map(drop),
        Command::Bench { page: true, .. } => bench::write_page(),
        Command::Bench { names, .. } => bench::run(&names),
        Command::Soak { works, rounds, seed, no_page } => {
            soak::run_built(&works, soak::Plan::of(rounds, seed), !no_page)
        }
        Command::Image => image::build(),
        Command::Kubernetes => kubernetes::check(),
        Command::Hardening => {
            node::Programs::build(node::Profile::Dev).and_then(|programs| hardening::write(&programs))
        }
        Command::Ci => ci::run_all(),
        Command::Tidy => tidy::run(),
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}
