//! `bib`: what a person holds. One file per noun and verb in `commands/`; this file only starts and ends the program.
//!
//! A command parses its arguments, calls the client library and prints a record. It decides nothing about formats,
//! trust or transport; those are `bib-core`, `bib-identity` and `bib-client`.

#![cfg_attr(test, allow(clippy::unwrap_used))]

mod cli;
mod clock;
mod commands;
mod config;
mod confirm;
mod context;
mod discover;
mod errors;
mod keys;
mod output;
mod progress;
mod trusting;
mod units;

use std::io::Write as _;
use std::process::ExitCode;

use clap::Parser as _;

use crate::cli::Cli;
use crate::context::Variables;
use crate::errors::{Failure, Result};
use crate::output::{Colours, Format};

fn main() -> ExitCode {
    let variables: Variables = std::env::vars_os()
        .filter_map(|(name, value)| Some((name.into_string().ok()?, value.into_string().ok()?)))
        .collect();
    let colours = Colours::detect(|name| variables.get(name).cloned());
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => return refuse(&error, colours),
    };
    let format = cli.global.output;
    match run(cli, variables, colours) {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => end(&failure, format, colours),
    }
}

fn run(cli: Cli, variables: Variables, colours: Colours) -> Result<()> {
    cli.global.start_log();
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .map_err(|error| Failure::failed(format!("start: {error}")))?;
    let result = runtime.block_on(cli.run(variables, colours));
    // A question to a terminal or an agent may still be waited for on another thread; the process ends anyway.
    runtime.shutdown_background();
    result
}

/// Writes the failure where errors go and gives its exit code.
fn end(failure: &Failure, format: Format, colours: Colours) -> ExitCode {
    if !failure.is_silent() {
        let mut to = std::io::stderr().lock();
        // There is nobody to tell when standard error cannot be written; the exit code remains.
        let _ = match format {
            Format::Json => writeln!(to, "{}", failure.to_json()),
            _ => failure.write_text(&mut to, colours.stderr),
        };
    }
    ExitCode::from(failure.exit() as u8)
}

/// What clap found: help and version are no errors; the rest is exit 2, as JSON when that was asked for.
fn refuse(error: &clap::Error, colours: Colours) -> ExitCode {
    let wants_json = || {
        let arguments: Vec<_> = std::env::args().collect();
        arguments.windows(2).any(|pair| matches!(pair[0].as_str(), "-o" | "--output") && pair[1] == "json")
            || arguments.iter().any(|argument| matches!(argument.as_str(), "-ojson" | "-o=json" | "--output=json"))
    };
    if error.use_stderr() && wants_json() {
        let text = error.to_string();
        let sentence = text.lines().next().unwrap_or_default().trim_start_matches("error: ").to_owned();
        return end(&Failure::usage(sentence).with_hint("`bib help` shows the commands"), Format::Json, colours);
    }
    // As above.
    let _ = error.print();
    ExitCode::from(if error.use_stderr() { 2 } else { 0 })
}
