//! `bibd cleanup`: the command line of [`crate::cleanup`].

use std::fmt::Write as _;
use std::io::{BufRead as _, IsTerminal as _};
use std::path::Path;

use super::{Failure, print};
use crate::cleanup::Cleanup;
use crate::config::Config;
use crate::config::places::Home;

/// What `bibd cleanup` is told.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// Only say what would be removed.
    #[arg(long, conflicts_with = "yes")]
    dry_run: bool,
    /// Ask nothing.
    #[arg(long)]
    yes: bool,
}

impl Args {
    /// Says what is there, asks, and removes it.
    pub(super) async fn run(self, config: Config, home: &Home, file: Option<&Path>) -> Result<(), Failure> {
        let cleanup = Cleanup::look(&config, home, file).await?;
        print(&text(&cleanup))?;
        if self.dry_run {
            return print("\nNothing was removed: this was a dry run.\n");
        }
        if !self.yes {
            confirm(&cleanup.word())?;
        }
        cleanup.remove().await?;
        print("\nIt is removed.\n")
    }
}

fn confirm(word: &str) -> Result<(), Failure> {
    let declined = |message: &str| Failure::Usage {
        message: message.to_owned(),
        hint: "nothing was removed; `--yes` asks nothing".to_owned(),
    };
    if !std::io::stdin().is_terminal() {
        return Err(declined("there is nobody to ask"));
    }
    print(&format!("\nThere is no way back. Type {word} to remove all of this: "))?;
    let mut answer = String::new();
    let read = std::io::stdin().lock().read_line(&mut answer);
    read.map_err(|source| Failure::Io { act: "read the answer".to_owned(), source })?;
    if answer.trim() == word { Ok(()) } else { Err(declined("that is not the word")) }
}

fn text(cleanup: &Cleanup) -> String {
    let mut out = String::new();
    let mut line = |name: &str, value: String| {
        // Writing to a string does not fail.
        let _ = writeln!(out, "{name:<12} {value}");
    };
    line("node", cleanup.peer.map_or_else(|| "its key cannot be read".to_owned(), |peer| peer.to_string()));
    line("data", cleanup.root().display().to_string());
    line("database", cleanup.provisioner.map_or("none", |choice| choice.name()).to_owned());
    for part in &cleanup.parts {
        let name = part.path.file_name().unwrap_or_default().to_string_lossy();
        let files = if part.files == 1 { "file" } else { "files" };
        line("removes", format!("{name}: {} {files}, {} bytes", part.files, part.bytes));
    }
    if let Some(volume) = &cleanup.volume {
        line("removes", volume.clone());
    }
    for path in &cleanup.stays {
        line("stays", path.display().to_string());
    }
    out
}
