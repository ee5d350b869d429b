//! `bib admin break-glass connect`: the person's own `psql`, on a socket that leads to the node.
//!
//! The socket lies in a directory that nobody else enters, never on an address. Each connection to it is one stream to
//! the node: the first is the session, others come when the person reconnects or presses Ctrl-C. `psql` is told where to
//! go by its environment, from which everything that could lead it elsewhere is taken.

use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::ExitStatus;

use bib_client::api::BreakGlass;
use bytes::Bytes;
use clap::Args;
use futures::stream::FuturesUnordered;
use futures::{StreamExt as _, TryStreamExt as _};
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::net::{UnixListener, UnixStream};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;

use super::prompt;
use crate::context::Context;
use crate::errors::{Exit, Failure, Result};

/// The name that `libpq` looks for in the directory.
const SOCKET: &str = ".s.PGSQL.5432";
/// What is read at once.
const READ_BYTES: usize = 64 << 10;
/// Pieces between the program and the node.
const PIECES: usize = 8;

/// How to connect.
#[derive(Debug, Args)]
pub(crate) struct Connect {
    /// The `psql` to run; found when missing
    #[arg(long, value_name = "FILE", conflicts_with = "builtin")]
    psql: Option<PathBuf>,
    /// The prompt of `bib`, also where there is a `psql`
    #[arg(long)]
    builtin: bool,
    /// Arguments for `psql`: `connect -- -c 'SELECT 1'`
    #[arg(last = true)]
    arguments: Vec<String>,
}

impl Connect {
    /// Runs the command.
    pub(super) async fn run(self, context: &Context, glass: &BreakGlass) -> Result<()> {
        let status = glass.status().await?;
        let Some(grant) = status.grant.filter(|grant| grant.state == "open") else {
            return Err(Failure::new(Exit::Conflict, "no break-glass grant is open")
                .with_code("BIB0608")
                .with_hint("bib admin break-glass enable --reason WHY --duration 1h"));
        };
        let psql = match (self.builtin, self.psql) {
            (true, _) => None,
            (false, Some(path)) => Some(path),
            (false, None) => find_psql(context.variables.get("PATH").map(String::as_str).unwrap_or_default()),
        };
        context.output.note(&format!(
            "{} until {}: everything you say is recorded, and what is answered{}",
            grant.access,
            grant.expires_at,
            if status.audit_level == "paranoid" { " too" } else { " is counted" },
        ));
        match psql {
            Some(psql) => through_psql(context, glass, &psql, &self.arguments).await,
            None if self.arguments.is_empty() => prompt::run(context, glass).await,
            None => Err(Failure::usage("there is no `psql` to give these arguments to")
                .with_hint("install the PostgreSQL client, name one with `--psql`, or leave the arguments away")),
        }
    }
}

/// The first `psql` of `PATH`, then the newest in the directories of distributions.
fn find_psql(path: &str) -> Option<PathBuf> {
    let listed = std::env::split_paths(path).map(|directory| directory.join("psql")).find(|file| file.is_file());
    listed.or_else(|| {
        let mut found: Vec<PathBuf> = ["/usr/lib/postgresql", "/usr/pgsql", "/opt/homebrew/opt", "/usr/local/opt"]
            .iter()
            .filter_map(|root| std::fs::read_dir(root).ok())
            .flatten()
            .flatten()
            .map(|entry| entry.path().join("bin/psql"))
            .filter(|file| file.is_file())
            .collect();
        found.sort();
        found.pop()
    })
}

async fn through_psql(context: &Context, glass: &BreakGlass, psql: &Path, arguments: &[String]) -> Result<()> {
    // Made 0700; once more, in case the system has other ideas of a temporary directory.
    let directory = private_directory(context)?;
    let listener = UnixListener::bind(directory.path().join(SOCKET))
        .map_err(|error| Failure::file("listen in", directory.path(), &error))?;
    let mut command = tokio::process::Command::new(psql);
    command.args(arguments).kill_on_drop(true);
    for name in context.variables.keys().filter(|name| name.starts_with("PG")) {
        command.env_remove(name);
    }
    command.env("PGHOST", directory.path()).env("PGPORT", "5432").env("PGDATABASE", "bib").env("PGUSER", "break-glass");
    command.env("PGSSLMODE", "disable").env("PGGSSENCMODE", "disable").env("PGPASSFILE", directory.path().join("none"));
    // Ctrl-C is for psql, which asks the node to cancel; `bib` must live on to carry that.
    let mut interrupts =
        signal(SignalKind::interrupt()).map_err(|error| Failure::failed(format!("watch for signals: {error}")))?;
    let mut child = command.spawn().map_err(|error| Failure::file("run", psql, &error))?;
    let mut pipes = FuturesUnordered::new();
    let status: ExitStatus = loop {
        tokio::select! {
            status = child.wait() => {
                break status.map_err(|error| Failure::failed(format!("wait for psql: {error}")))?;
            }
            accepted = listener.accept() => {
                let (stream, _) = accepted.map_err(|error| Failure::failed(format!("accept psql: {error}")))?;
                if is_own(&stream) {
                    pipes.push(pipe(glass.clone(), stream));
                }
            }
            Some(outcome) = pipes.next() => {
                if let Err(error) = outcome {
                    // psql shows that the connection is gone; here is why.
                    context.output.say(&format!("bib: {}", error.message()));
                }
            }
            _ = interrupts.recv() => {}
        }
    };
    // What psql said last, its goodbye among it, still goes to the node; one that does not take it keeps nobody here.
    let rest = async { while pipes.next().await.is_some() {} };
    let _ = tokio::time::timeout(std::time::Duration::from_secs(2), rest).await;
    if status.success() { Ok(()) } else { Err(Failure::said(Exit::Failed)) }
}

fn private_directory(context: &Context) -> Result<tempfile::TempDir> {
    let runtime = context.variables.get("XDG_RUNTIME_DIR").map(PathBuf::from).filter(|path| path.is_dir());
    let parent = runtime.unwrap_or_else(std::env::temp_dir);
    let failed = |error: std::io::Error| Failure::file("make a directory in", &parent, &error);
    let directory = tempfile::Builder::new().prefix("bib-glass-").tempdir_in(&parent).map_err(failed)?;
    std::fs::set_permissions(directory.path(), std::fs::Permissions::from_mode(0o700)).map_err(failed)?;
    Ok(directory)
}

/// Only this user's programs, whatever the directory lets through (root enters any).
fn is_own(stream: &UnixStream) -> bool {
    stream.peer_cred().is_ok_and(|peer| peer.uid() == rustix::process::geteuid().as_raw())
}

/// Carries one connection to the node and back until either side ends.
pub(super) async fn pipe(
    glass: BreakGlass,
    stream: impl AsyncRead + AsyncWrite + Unpin,
) -> Result<(), bib_client::Error> {
    let (mut reader, mut writer) = tokio::io::split(stream);
    let (send, said) = mpsc::channel::<Bytes>(PIECES); // pieces that the node has not taken yet
    let mut answers = glass.session(ReceiverStream::new(said)).await?;
    let upward = async {
        loop {
            let mut bytes = bytes::BytesMut::with_capacity(READ_BYTES);
            match reader.read_buf(&mut bytes).await {
                Ok(0) | Err(_) => break,
                Ok(_) => {}
            }
            if send.send(bytes.freeze()).await.is_err() {
                break;
            }
        }
        drop(send);
    };
    let downward = async {
        while let Some(bytes) = answers.try_next().await? {
            if writer.write_all(&bytes).await.is_err() {
                break;
            }
        }
        // The program hears that it is over; one that has ended by itself knows.
        let _ = writer.shutdown().await;
        Ok(())
    };
    tokio::pin!(upward, downward);
    tokio::select! {
        outcome = &mut downward => outcome,
        () = &mut upward => downward.await,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_psql_of_the_path_is_taken() {
        let dir = tempfile::tempdir().unwrap();
        for name in ["a", "b"] {
            std::fs::create_dir(dir.path().join(name)).unwrap();
            std::fs::write(dir.path().join(name).join("psql"), "").unwrap();
        }
        let path = std::env::join_paths(["none", "b", "a"].map(|name| dir.path().join(name))).unwrap();
        assert_eq!(find_psql(path.to_str().unwrap()), Some(dir.path().join("b/psql")));
    }
}
