//! Questions to a person. Nobody is asked when nobody can answer: then the command says which flag answers.

use std::io::IsTerminal as _;
use std::path::Path;

use bib_core::text::scrub_lines;
use dialoguer::theme::{ColorfulTheme, SimpleTheme, Theme};
use secrecy::SecretString;

use crate::errors::{Exit, Failure, Result};

/// Whether and how a person can be asked.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Asker {
    /// Standard input and standard error are a terminal.
    interactive: bool,
    /// `--yes` was given.
    yes: bool,
    colours: bool,
}

impl Asker {
    /// Looks at the terminal.
    pub(crate) fn new(yes: bool, colours: bool) -> Self {
        let interactive = std::io::stdin().is_terminal() && std::io::stderr().is_terminal();
        Self { interactive, yes, colours }
    }

    /// One that cannot ask anybody.
    #[cfg(test)]
    pub(crate) fn nobody(yes: bool) -> Self {
        Self { interactive: false, yes, colours: false }
    }

    /// Whether somebody can answer.
    pub(crate) fn is_interactive(self) -> bool {
        self.interactive
    }

    /// Whether `--yes` was given.
    pub(crate) fn says_yes(self) -> bool {
        self.yes
    }

    /// Asks before something that cannot be taken back, or is not wanted by accident. `--yes` answers.
    ///
    /// # Errors
    /// Exit 2 when nobody can be asked, exit 1 when the answer is no.
    pub(crate) fn confirm(self, question: &str) -> Result<()> {
        if self.yes {
            return Ok(());
        }
        if !self.interactive {
            return Err(Failure::usage(format!("this needs a yes: {question}"))
                .with_hint("add `--yes`; there is no terminal to ask on"));
        }
        self.insist(question)
    }

    /// Asks a question that `--yes` does not answer. Only for callers that know of a terminal.
    ///
    /// # Errors
    /// Exit 1 when the answer is no.
    pub(crate) fn insist(self, question: &str) -> Result<()> {
        let theme = self.theme();
        let prompt = scrub_lines(question).into_owned();
        let answer = dialoguer::Confirm::with_theme(&*theme).with_prompt(prompt).default(false).interact();
        match answer {
            Ok(true) => Ok(()),
            Ok(false) => Err(Failure::new(Exit::Failed, "stopped; nothing was changed")),
            Err(error) => Err(unanswered(&error)),
        }
    }

    /// Asks for a line of text; `check` says what is wrong with an answer.
    ///
    /// # Errors
    /// When the terminal goes away.
    pub(crate) fn ask(self, question: &str, check: impl Fn(&str) -> Result<(), String>) -> Result<String> {
        let theme = self.theme();
        dialoguer::Input::<String>::with_theme(&*theme)
            .with_prompt(scrub_lines(question).into_owned())
            .validate_with(|text: &String| check(text.trim()))
            .interact_text()
            .map(|text| text.trim().to_owned())
            .map_err(|error| unanswered(&error))
    }

    /// Asks for a key file's passphrase; nothing when nobody can be asked.
    pub(crate) fn passphrase(self, path: &Path) -> Option<SecretString> {
        if !self.interactive {
            return None;
        }
        let theme = self.theme();
        let prompt = format!("passphrase of `{}`", scrub_lines(&path.display().to_string()));
        let answer = dialoguer::Password::with_theme(&*theme).with_prompt(prompt).allow_empty_password(true).interact();
        answer.ok().map(SecretString::from)
    }

    fn theme(self) -> Box<dyn Theme> {
        if self.colours { Box::new(ColorfulTheme::default()) } else { Box::new(SimpleTheme) }
    }
}

fn unanswered(error: &dialoguer::Error) -> Failure {
    Failure::failed(format!("the question was not answered: {error}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn without_a_terminal_a_yes_is_demanded() {
        let refused = Asker::nobody(false).confirm("delete `a/b`?").unwrap_err();
        assert_eq!(refused.exit(), Exit::Usage);
        assert!(Asker::nobody(true).confirm("delete `a/b`?").is_ok());
        assert!(Asker::nobody(true).passphrase(Path::new("/key")).is_none());
    }
}
