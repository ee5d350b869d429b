//! Credentials of a bucket, of backups or of chunks: read from a pipe or a file, never from the command line.

use std::io::{IsTerminal as _, Read as _};
use std::path::PathBuf;

use clap::Subcommand;
use zeroize::Zeroizing;

use crate::context::Context;
use crate::errors::{Exit, Failure, Result};
use crate::output::record;

/// The longest text with credentials, bytes.
const MAX_BYTES: u64 = 16 * 1024;

/// The credentials of the store.
#[derive(Debug, Subcommand)]
pub(crate) enum Credentials {
    /// Seals them on the node, in the place of those before, and asks the store whether it takes them. They are read
    /// from standard input or a file, never from the command line
    Set {
        /// Two or three lines as in ~/.aws/credentials: aws_access_key_id = …, aws_secret_access_key = …,
        /// aws_session_token = …
        #[arg(long, value_name = "FILE")]
        file: Option<PathBuf>,
    },
}

record! {
    /// Credentials that are sealed now.
    CredentialsRow { access_key_id: String = Text, store: String = Text }
}

/// Reads them; `command` is how they are given.
pub(super) fn read(file: Option<PathBuf>, command: &str) -> Result<Zeroizing<String>> {
    let mut text = Zeroizing::new(String::new());
    let read = match &file {
        Some(path) => std::fs::File::open(path).and_then(|file| file.take(MAX_BYTES).read_to_string(&mut text)),
        None if std::io::stdin().is_terminal() => {
            return Err(Failure::new(Exit::Usage, "the credentials are read from a pipe or a file")
                .with_hint(format!("{command} < FILE")));
        }
        None => std::io::stdin().lock().take(MAX_BYTES).read_to_string(&mut text),
    };
    let place = file.as_ref().map_or("standard input".to_owned(), |path| format!("`{}`", path.display()));
    match read {
        Ok(_) => Ok(text),
        Err(error) => Err(Failure::new(Exit::Usage, format!("read the credentials in {place}: {error}"))),
    }
}

/// Says what the store said to them.
pub(super) fn say(context: &Context, access_key_id: String, problem: String, hint: &str) -> Result<()> {
    let is_taken = problem.is_empty();
    let store = if is_taken { "takes them".to_owned() } else { problem };
    context.output.one(&CredentialsRow { access_key_id, store })?;
    if is_taken {
        return Ok(());
    }
    context.output.note(&format!("they are sealed all the same; hint: {hint}"));
    Err(Failure::said(Exit::Failed))
}
