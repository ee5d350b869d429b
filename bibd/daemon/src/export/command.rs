//! A program that is told of alerts: by its path and arguments, without a shell, JSON on standard input.

use std::process::Stdio;
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process_group};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::process::Command;

use super::SendError;

/// How much of what the program complains about goes into the daemon's log.
const MAX_COMPLAINT_BYTES: u64 = 1024;

/// Where programs are looked for by the program itself.
const PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// A program and its arguments.
#[derive(Debug, Clone)]
pub struct CommandSink {
    argv: Vec<String>,
    timeout: Duration,
}

/// Ends a program with all that it started, however the wait for it ended.
struct Group(Option<Pid>);

impl Drop for Group {
    fn drop(&mut self) {
        if let Some(group) = self.0 {
            // It is gone when nothing of it was left.
            let _ = kill_process_group(group, Signal::KILL);
        }
    }
}

impl CommandSink {
    /// Nothing is started yet.
    #[must_use]
    pub fn new(argv: Vec<String>, timeout: Duration) -> Self {
        Self { argv, timeout }
    }

    /// Runs the program with `input`; whatever it leaves running is ended too.
    ///
    /// # Errors
    /// When it cannot be started, does not end in time, or fails.
    pub async fn run(&self, input: &[u8]) -> Result<(), SendError> {
        let Some((program, arguments)) = self.argv.split_first() else {
            return Err(SendError::lasting("no program is named", "name one: `argv`"));
        };
        let mut command = Command::new(program);
        command.args(arguments).env_clear().env("PATH", PATH).current_dir("/").process_group(0).kill_on_drop(true);
        command.stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::piped());
        let mut child = command.spawn().map_err(|error| {
            SendError::lasting(format!("start `{program}`: {error}"), "see whether the daemon's user can run it")
        })?;
        let _group = Group(child.id().and_then(|id| Pid::from_raw(i32::try_from(id).ok()?)));
        let (stdin, stderr) = (child.stdin.take(), child.stderr.take());
        let work = async {
            let writing = async {
                if let Some(mut stdin) = stdin {
                    // A program that does not read its input is no trouble: its exit code counts.
                    let _ = stdin.write_all(input).await;
                    let _ = stdin.shutdown().await;
                }
            };
            let reading = async {
                let mut complaint = Vec::new();
                if let Some(stderr) = stderr {
                    let mut bounded = stderr.take(MAX_COMPLAINT_BYTES);
                    let _ = bounded.read_to_end(&mut complaint).await;
                    // What is beyond is read away, so that the program does not wait for a reader.
                    let _ = tokio::io::copy(&mut bounded.into_inner(), &mut tokio::io::sink()).await;
                }
                complaint
            };
            let (_, complaint, status) = tokio::join!(writing, reading, child.wait());
            (status, complaint)
        };
        match tokio::time::timeout(self.timeout, work).await {
            Err(_) => Err(SendError::passing(format!("`{program}` did not end within {} s", self.timeout.as_secs()))),
            Ok((Ok(status), _)) if status.success() => Ok(()),
            Ok((Ok(status), complaint)) => {
                let said: String = String::from_utf8_lossy(&complaint).chars().filter(|c| !c.is_control()).collect();
                Err(SendError::passing(format!("`{program}` ended with {status}: {said}")))
            }
            Ok((Err(error), _)) => Err(SendError::passing(format!("wait for `{program}`: {error}"))),
        }
    }
}
