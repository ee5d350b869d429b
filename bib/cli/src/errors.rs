//! Errors at the person's boundary: a sentence, a hint, a stable code, an exit code. Nothing else writes errors.

use std::collections::BTreeMap;
use std::fmt;
use std::io::{self, Write};
use std::path::Path;

use bib_client::{Error, ErrorKind};
use bib_core::text::{scrub, scrub_lines};
use serde_json::{Value, json};

use crate::output::escape_json;

/// The result of a command.
pub(crate) type Result<T, E = Failure> = std::result::Result<T, E>;

/// How `bib` ends. The numbers are documented in `docs/cli.md` and never change their meaning.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum Exit {
    /// Something failed that the other codes do not name.
    Failed = 1,
    /// The command line or a value on it is wrong, or an answer is needed and nobody can be asked.
    Usage = 2,
    /// There is no such thing, or the caller may not see it.
    NotFound = 3,
    /// The caller may not do this, is not logged in, or the node is not trusted.
    Denied = 4,
    /// The node does not answer, answers too late, or has no room.
    Unavailable = 5,
    /// Somebody else changed the thing, or it exists already.
    Conflict = 6,
    /// Bytes, signatures or the audit log are not what they should be.
    Integrity = 7,
}

impl Exit {
    /// The word that stands in the JSON form of an error.
    pub(crate) const fn word(self) -> &'static str {
        match self {
            Self::Failed => "failed",
            Self::Usage => "usage",
            Self::NotFound => "not-found",
            Self::Denied => "denied",
            Self::Unavailable => "unavailable",
            Self::Conflict => "conflict",
            Self::Integrity => "integrity",
        }
    }

    const fn of(kind: ErrorKind) -> Self {
        match kind.exit_code() {
            2 => Self::Usage,
            3 => Self::NotFound,
            4 => Self::Denied,
            5 => Self::Unavailable,
            6 => Self::Conflict,
            7 => Self::Integrity,
            _ => Self::Failed,
        }
    }
}

/// Why a command did not do what it was asked for.
#[derive(Debug)]
pub(crate) struct Failure(Box<Inner>);

#[derive(Debug)]
struct Inner {
    exit: Exit,
    code: Option<String>,
    message: String,
    hint: Option<String>,
    details: BTreeMap<String, String>,
    request_id: Option<String>,
    /// Nothing is to be written: whoever read the output went away, or the output said it all.
    silent: bool,
}

impl Failure {
    /// A failure with a sentence: lower case, present tense, no full stop.
    pub(crate) fn new(exit: Exit, message: impl Into<String>) -> Self {
        Self(Box::new(Inner {
            exit,
            code: None,
            message: message.into(),
            hint: None,
            details: BTreeMap::new(),
            request_id: None,
            silent: false,
        }))
    }

    /// The command line or a value on it is wrong.
    pub(crate) fn usage(message: impl Into<String>) -> Self {
        Self::new(Exit::Usage, message)
    }

    /// A local failure.
    pub(crate) fn failed(message: impl Into<String>) -> Self {
        Self::new(Exit::Failed, message)
    }

    /// A local file: "read `path`: reason".
    pub(crate) fn file(action: &str, path: &Path, error: &dyn fmt::Display) -> Self {
        Self::failed(format!("{action} `{}`: {error}", path.display())).with_code(bib_client::error::code::LOCAL_FILE)
    }

    /// An exit code after everything has been said on standard output.
    pub(crate) fn said(exit: Exit) -> Self {
        let mut failure = Self::new(exit, "");
        failure.0.silent = true;
        failure
    }

    /// Adds what would help.
    pub(crate) fn with_hint(mut self, hint: impl Into<String>) -> Self {
        self.0.hint = Some(hint.into());
        self
    }

    /// Adds what would help, where something is known.
    pub(crate) fn with_hint_of(mut self, hint: Option<&str>) -> Self {
        self.0.hint = hint.map(str::to_owned).or(self.0.hint);
        self
    }

    /// Adds the stable code.
    pub(crate) fn with_code(mut self, code: impl Into<String>) -> Self {
        self.0.code = Some(code.into());
        self
    }

    /// How `bib` ends.
    pub(crate) fn exit(&self) -> Exit {
        self.0.exit
    }

    /// The sentence.
    #[cfg(test)]
    pub(crate) fn message(&self) -> &str {
        &self.0.message
    }

    /// Whether nothing is to be written about it.
    pub(crate) fn is_silent(&self) -> bool {
        self.0.silent
    }

    /// The error for a person: `error: ...`, `hint: ...`, `code: ...`. What came from outside is made safe to print.
    pub(crate) fn write_text(&self, to: &mut dyn Write, colours: bool) -> io::Result<()> {
        let (red, cyan, reset) = if colours { ("\x1b[1;31m", "\x1b[36m", "\x1b[0m") } else { ("", "", "") };
        writeln!(to, "{red}error:{reset} {}", scrub_lines(&self.0.message))?;
        if let Some(hint) = &self.0.hint {
            writeln!(to, "{cyan}hint:{reset} {}", scrub_lines(hint))?;
        }
        for (name, value) in self.0.details.iter().filter(|(name, _)| is_for_people(name)) {
            // A fingerprint is compared by eye.
            let grouped = value.parse::<bib_identity::Fingerprint>().ok().filter(|_| is_fingerprint(name));
            let shown = grouped.map_or_else(|| value.clone(), |fingerprint| fingerprint.grouped());
            writeln!(to, "  {}: {}", scrub(name), scrub(&shown))?;
        }
        match (&self.0.code, &self.0.request_id) {
            (Some(code), Some(request)) => writeln!(to, "code: {} (request {})", scrub(code), scrub(request)),
            (Some(code), None) => writeln!(to, "code: {}", scrub(code)),
            (None, _) => Ok(()),
        }
    }

    /// The error for a program: one line of JSON.
    pub(crate) fn to_json(&self) -> String {
        let value = json!({"error": {
            "kind": self.0.exit.word(),
            "exit_code": self.0.exit as u8,
            "code": self.0.code,
            "message": self.0.message,
            "hint": self.0.hint,
            "details": self.0.details,
            "request_id": self.0.request_id.as_deref().map_or(Value::Null, Value::from),
        }});
        escape_json(&value.to_string())
    }
}

/// Details that say more than the sentence does; the others repeat it for programs.
fn is_for_people(name: &str) -> bool {
    matches!(name, "trusted" | "ca_fingerprint" | "peer_id" | "latest" | "parent")
}

fn is_fingerprint(name: &str) -> bool {
    matches!(name, "trusted" | "ca_fingerprint")
}

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        Self(Box::new(Inner {
            exit: Exit::of(error.kind()),
            code: error.code().map(str::to_owned),
            message: error.chain(),
            hint: error.hint().map(str::to_owned),
            details: error.details().clone(),
            request_id: error.request_id().map(str::to_owned),
            silent: false,
        }))
    }
}

impl From<io::Error> for Failure {
    /// Only for writing to standard output: every other place names its file.
    fn from(error: io::Error) -> Self {
        let mut failure = Self::failed(format!("write the output: {error}"));
        failure.0.silent = error.kind() == io::ErrorKind::BrokenPipe;
        failure
    }
}

impl From<bib_identity::trust::StoreError> for Failure {
    fn from(error: bib_identity::trust::StoreError) -> Self {
        use bib_identity::trust::StoreError;
        let exit = match &error {
            StoreError::Pinned { .. } => Exit::Conflict,
            StoreError::NotFound(_) => Exit::NotFound,
            _ => Exit::Failed,
        };
        Self::new(exit, error.to_string()).with_hint_of(error.hint())
    }
}

impl From<bib_identity::FileError> for Failure {
    fn from(error: bib_identity::FileError) -> Self {
        let exit = match &error {
            bib_identity::FileError::Exists { .. } => Exit::Conflict,
            bib_identity::FileError::Missing { .. } => Exit::NotFound,
            _ => Exit::Failed,
        };
        Self::new(exit, error.to_string()).with_hint_of(error.hint()).with_code(bib_client::error::code::LOCAL_FILE)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_kind_has_its_documented_exit_code() {
        for (kind, exit) in [
            (ErrorKind::Invalid, 2),
            (ErrorKind::NotFound, 3),
            (ErrorKind::Denied, 4),
            (ErrorKind::Unauthenticated, 4),
            (ErrorKind::Untrusted, 4),
            (ErrorKind::Unavailable, 5),
            (ErrorKind::TimedOut, 5),
            (ErrorKind::Exhausted, 5),
            (ErrorKind::Conflict, 6),
            (ErrorKind::Integrity, 7),
            (ErrorKind::Local, 1),
            (ErrorKind::Cancelled, 1),
            (ErrorKind::Internal, 1),
        ] {
            assert_eq!(Failure::from(Error::new(kind, "x")).exit() as u8, exit, "{kind:?}");
        }
    }

    #[test]
    fn what_a_node_says_cannot_move_the_cursor() {
        let error =
            Error::new(ErrorKind::NotFound, "no \u{1b}]52;c;x\u{7} here").with_hint("\u{9b}2J").with_code("BIB0100");
        let failure = Failure::from(error);
        let mut text = Vec::new();
        failure.write_text(&mut text, false).unwrap();
        let text = String::from_utf8(text).unwrap();
        assert_eq!(text, "error: no \\u{1b}]52;c;x\\u{7} here\nhint: \\u{9b}2J\ncode: BIB0100\n");
        let json = failure.to_json();
        assert!(json.is_ascii(), "{json}");
        let value: Value = serde_json::from_str(&json).unwrap();
        assert_eq!(value["error"]["hint"], "\u{9b}2J");
        assert_eq!(value["error"]["exit_code"], 3);
    }
}
