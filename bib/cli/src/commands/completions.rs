//! `bib completions`: completions for a shell.

use clap::{Args, CommandFactory as _};
use clap_complete::Shell;

use crate::context::Context;
use crate::errors::Result;

/// Prints completions for a shell
///
/// For bash: `bib completions bash > ~/.local/share/bash-completion/completions/bib`
#[derive(Debug, Args)]
pub(crate) struct Completions {
    /// bash, zsh, fish, elvish or powershell
    shell: Shell,
}

impl Completions {
    /// Runs the command.
    pub(crate) fn run(self, context: &Context) -> Result<()> {
        let mut script = Vec::new();
        clap_complete::generate(self.shell, &mut crate::cli::Cli::command(), "bib", &mut script);
        context.output.bytes(&script)?;
        context.output.flush()
    }
}
