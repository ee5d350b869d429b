//! The server's process: found through `postmaster.pid`, told from strangers, sent signals.
//!
//! Never signals a process that it has not recognised as the server of this data directory.

use std::path::{Path, PathBuf};

use rustix::process::{Pid, Signal, kill_process, test_kill_process};

use crate::error::Error;

/// What `postmaster.pid` says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct PidFile {
    /// The server's process.
    pub(crate) pid: u32,
    /// Its data directory.
    pub(crate) data: PathBuf,
    /// TCP addresses it listens on.
    pub(crate) listens: String,
    /// `starting`, `ready`, `stopping`, `standby`.
    pub(crate) status: String,
}

impl PidFile {
    /// Reads it from `data`; `None` when there is none or it is not complete yet.
    pub(crate) fn read(data: &Path) -> Option<Self> {
        Self::parse(&std::fs::read_to_string(data.join("postmaster.pid")).ok()?)
    }

    fn parse(text: &str) -> Option<Self> {
        let lines: Vec<&str> = text.lines().collect();
        let line = |index: usize| lines.get(index).map_or("", |line| line.trim());
        Some(Self {
            pid: line(0).parse().ok().filter(|pid| *pid > 1)?,
            data: PathBuf::from(line(1)),
            listens: line(5).to_owned(),
            status: line(7).to_owned(),
        })
    }
}

/// What stands behind a pid file.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Behind {
    /// No process: the file is left over.
    Nobody,
    /// The server of this data directory.
    Ours,
    /// A process that has nothing to do with it: its number was given out again.
    Stranger,
}

/// Tells what runs under `pid`. A server's working directory is its data directory; nobody else's is.
pub(crate) fn behind(pid: u32, data: &Path) -> Behind {
    if !is_alive(pid) {
        return Behind::Nobody;
    }
    match std::fs::read_link(format!("/proc/{pid}/cwd")) {
        Ok(directory) if same(&directory, data) => Behind::Ours,
        Ok(_) => Behind::Stranger,
        // Without /proc the system cannot say; the file is believed then, as pg_ctl does.
        Err(_) if !Path::new("/proc/self").exists() => Behind::Ours,
        // It ended between the two questions, or belongs to somebody whom we may not ask.
        Err(_) if !is_alive(pid) => Behind::Nobody,
        Err(_) => Behind::Stranger,
    }
}

/// Whether any process has `data` as its working directory: a server, or one of its children that outlives it.
pub(crate) fn in_use(data: &Path) -> Option<u32> {
    inside(data).first().copied()
}

/// The server in `data`, whoever started it: of those that work there the one whose parent does not.
pub(crate) fn server_in(data: &Path) -> Option<u32> {
    let all = inside(data);
    let parent = |pid: u32| stat_field(pid, 1)?.parse::<u32>().ok();
    all.iter().copied().find(|pid| parent(*pid).is_some_and(|parent| !all.contains(&parent)))
}

fn inside(data: &Path) -> Vec<u32> {
    let Ok(entries) = std::fs::read_dir("/proc") else { return Vec::new() };
    entries
        .filter_map(Result::ok)
        .filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok())
        .filter(|pid| std::fs::read_link(format!("/proc/{pid}/cwd")).is_ok_and(|directory| same(&directory, data)))
        .collect()
}

fn same(one: &Path, other: &Path) -> bool {
    one == other || std::fs::canonicalize(other).is_ok_and(|real| real == *one)
}

/// Whether the process exists and is not merely waiting for its parent to notice its end.
pub(crate) fn is_alive(pid: u32) -> bool {
    let Some(raw) = raw(pid) else { return false };
    match test_kill_process(raw) {
        Err(rustix::io::Errno::SRCH) => false,
        // PERM: it exists and is somebody else's.
        _ => !is_zombie(pid),
    }
}

fn is_zombie(pid: u32) -> bool {
    stat_field(pid, 0).is_some_and(|state| state == "Z")
}

/// When the process began, in ticks since the machine did: with the number, a name that is not given out again.
pub(crate) fn born(pid: u32) -> Option<u64> {
    stat_field(pid, 19)?.parse().ok()
}

/// A field of `/proc/PID/stat`, counted from the state. The state follows the command's name, which is in parentheses
/// and may contain anything.
fn stat_field(pid: u32, index: usize) -> Option<String> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    stat.rsplit(')').next()?.split_whitespace().nth(index).map(str::to_owned)
}

fn raw(pid: u32) -> Option<Pid> {
    i32::try_from(pid).ok().filter(|pid| *pid > 1).and_then(Pid::from_raw)
}

/// Sends a signal. A process that has ended in the meantime is not an error.
///
/// # Errors
/// [`Error::ForeignServer`] when we may not.
pub(crate) fn signal(pid: u32, signal: Signal) -> Result<(), Error> {
    let Some(raw) = raw(pid) else { return Ok(()) };
    match kill_process(raw, signal) {
        Ok(()) | Err(rustix::io::Errno::SRCH) => Ok(()),
        Err(error) => Err(Error::ForeignServer { pid, reason: error.to_string() }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_pid_files_and_ignores_half_written_ones() {
        let text = "4711\n/srv/bib/postgres/data\n1700000000\n5432\n/run/bibd/pg\n\n  5432001         3\nready   \n";
        let file = PidFile::parse(text).unwrap();
        assert_eq!((file.pid, file.status.as_str(), file.listens.as_str()), (4711, "ready", ""));
        assert_eq!(PidFile::parse("4711\n").map(|file| file.status), Some(String::new()));
        for nonsense in ["", "x\n", "0\n", "1\n", "-5\n"] {
            assert_eq!(PidFile::parse(nonsense), None, "{nonsense:?}");
        }
    }

    #[test]
    fn tells_its_own_process_from_a_server() {
        let here = tempfile::tempdir().unwrap();
        assert_eq!(behind(std::process::id(), here.path()), Behind::Stranger);
        assert_eq!(behind(u32::MAX, here.path()), Behind::Nobody);
        assert_eq!((in_use(here.path()), server_in(here.path())), (None, None));
        let mut shell = std::process::Command::new("/bin/sh");
        // The second one is its child and works there too.
        let mut child = shell.args(["-c", "sleep 60 & wait"]).current_dir(here.path()).spawn().unwrap();
        while inside(here.path()).len() < 2 {
            std::thread::yield_now();
        }
        let others: Vec<u32> = inside(here.path()).into_iter().filter(|pid| *pid != child.id()).collect();
        assert_eq!(server_in(here.path()), Some(child.id()));
        child.kill().unwrap();
        child.wait().unwrap();
        others.into_iter().for_each(|pid| signal(pid, Signal::KILL).unwrap());
        assert!(is_alive(std::process::id()));
        assert!(born(std::process::id()) > born(1) && born(u32::MAX).is_none());
    }
}
