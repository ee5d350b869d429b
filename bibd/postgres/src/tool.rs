//! Runs PostgreSQL's programs: as the server's user, with an empty environment, no core dumps and umask 0077.
//!
//! Nothing secret is ever an argument or an environment variable here; other users of the machine can read both.

use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use tokio::process::Command;

use crate::account::Account;
use crate::error::Error;

/// Sets what Rust's `Command` cannot without unsafe code, then becomes the program: same process, same pid.
const PRELUDE: &str = "umask 077 && ulimit -c 0 && exec \"$@\"";
/// How much of a failed program's output an error shows, characters from its end.
const SHOWN_CHARS: usize = 2000;

/// A command that will run `program` as `account`, in its own process group, so that a Ctrl-C on the daemon's
/// terminal does not reach it. Rust clears the supplementary groups whenever root sets a uid.
pub(crate) fn command(program: &Path, account: Account) -> Command {
    let mut command = Command::new("/bin/sh");
    command
        .args(["-c", PRELUDE, "sh"])
        .arg(program)
        .env_clear()
        .env("PATH", "/usr/local/bin:/usr/bin:/bin")
        .env("LC_ALL", "C")
        .env("TZ", "UTC")
        .current_dir("/")
        .stdin(Stdio::null())
        .process_group(0);
    if account.switch {
        command.gid(account.gid).uid(account.uid);
    }
    command
}

/// Runs one of PostgreSQL's tools to its end and returns what it printed.
///
/// # Errors
/// [`Error::Tool`] with the end of its output; [`Error::Deadline`], after which it is killed.
pub(crate) async fn run<S: AsRef<OsStr>>(
    bin_dir: &Path,
    tool: &'static str,
    account: Account,
    arguments: impl IntoIterator<Item = S>,
    deadline: Duration,
) -> Result<String, Error> {
    run_with_input(bin_dir, tool, account, arguments, None, deadline).await
}

/// The same with a file on its standard input: where secrets may be.
///
/// # Errors
/// As [`run`]; [`Error::Io`] when there is no such file.
pub(crate) async fn run_with_input<S: AsRef<OsStr>>(
    bin_dir: &Path,
    tool: &'static str,
    account: Account,
    arguments: impl IntoIterator<Item = S>,
    input: Option<&Path>,
    deadline: Duration,
) -> Result<String, Error> {
    let program: PathBuf = bin_dir.join(tool);
    let mut command = command(&program, account);
    command.args(arguments).stdout(Stdio::piped()).stderr(Stdio::piped()).kill_on_drop(true);
    if let Some(input) = input {
        // A named pipe opens once somebody writes: not on this thread.
        let input = tokio::fs::File::open(input).await.map_err(Error::io("open", input))?;
        command.stdin(input.into_std().await);
    }
    let output = tokio::time::timeout(deadline, command.output())
        .await
        .map_err(|_| Error::Deadline { what: tool, deadline })?
        .map_err(Error::io("run", &program))?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    if output.status.success() {
        return Ok(text);
    }
    let all = format!("{text}{}", String::from_utf8_lossy(&output.stderr));
    Err(Error::Tool { tool, status: output.status.to_string(), output: tail(&all) })
}

/// The end of what a failed program said, which is what an error shows.
pub(crate) fn tail(text: &str) -> String {
    let text = text.trim();
    let skip = text.chars().count().saturating_sub(SHOWN_CHARS);
    text.chars().skip(skip).collect()
}

/// The first of `directories` that `account` cannot enter, parents first; `None` when it can enter all.
///
/// Asks the system as that user instead of reading mode bits, so that ACLs count too.
///
/// # Errors
/// [`Error::Io`] when the shell cannot be run.
pub(crate) async fn first_closed(directories: &[PathBuf], account: Account) -> Result<Option<PathBuf>, Error> {
    let mut all: Vec<&Path> = directories.iter().flat_map(|directory| directory.ancestors()).collect();
    all.sort_by_key(|path| path.components().count());
    all.dedup();
    let mut command = command(Path::new("/bin/sh"), account);
    command
        .args(["-c", "n=0; for d in \"$@\"; do [ -x \"$d\" ] || { echo $n; exit 0; }; n=$((n+1)); done", "sh"])
        .args(&all)
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .kill_on_drop(true);
    let output = command.output().await.map_err(Error::io("run", "/bin/sh"))?;
    let index = String::from_utf8_lossy(&output.stdout).trim().parse::<usize>().ok();
    Ok(index.and_then(|index| all.get(index)).map(|path| path.to_path_buf()))
}
