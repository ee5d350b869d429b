//! Runs `strace` on a daemon, and reads what `strace -f -yy -xx` wrote: which step of what began and ended where in the
//! trace.

use std::collections::BTreeMap;
use std::io::{BufRead as _, BufReader};
use std::path::Path;
use std::process::{Child, Command, Stdio};

use rustix::process::Signal;

use super::Node;

/// A tracer of a daemon that runs.
pub struct Tracer(Child);

impl Tracer {
    /// Attaches; `None`, said loudly, where the machine has no strace or does not let us.
    pub fn attach(node: &Node, output: &Path, arguments: &[&str]) -> Option<Self> {
        let pid = node.pid().as_raw_nonzero().to_string();
        let mut command = Command::new("strace");
        command.args(["-f", "-p", &pid, "-o"]).arg(output).args(arguments);
        let spawned = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped()).spawn();
        let mut child = match spawned {
            Ok(child) => child,
            Err(error) => return skipped(&error.to_string()),
        };
        let mut said = String::new();
        let mut lines = BufReader::new(child.stderr.take().unwrap());
        while !said.contains("attached") {
            said.clear();
            if lines.read_line(&mut said).unwrap() == 0 {
                child.wait().unwrap();
                return skipped("strace may not attach");
            }
        }
        // It tells of each new thread: somebody must read, or it waits.
        std::thread::spawn(move || lines.lines().for_each(drop));
        Some(Self(child))
    }
}

impl Drop for Tracer {
    fn drop(&mut self) {
        let pid = rustix::process::Pid::from_child(&self.0);
        // INT lets it detach and write the rest; the traced daemon may have taken it along already.
        let _ = rustix::process::kill_process(pid, Signal::INT);
        let _ = self.0.wait();
    }
}

fn skipped(reason: &str) -> Option<Tracer> {
    assert!(std::env::var("CI").as_deref() != Ok("true"), "CI must have strace: {reason}");
    eprintln!("\n==== SKIPPED, NOTHING TESTED: {reason}\n");
    None
}

/// One call, with the lines of the trace where it began and ended.
#[derive(Debug)]
pub struct Traced {
    pub name: String,
    /// What `-yy` says that the first argument is: a path or a socket.
    pub on: String,
    /// The strings among the arguments, as they were.
    pub strings: Vec<Vec<u8>>,
    pub began: usize,
    pub ended: usize,
}

impl Traced {
    fn holds(&self, bytes: &[u8]) -> bool {
        self.strings.iter().any(|string| string.windows(bytes.len()).any(|window| window == bytes))
    }

    /// On a connection that the daemon took on its own socket. `-yy` names it by the path that it was bound to.
    fn is_to_client(&self) -> bool {
        self.on.starts_with("UNIX-STREAM") && self.strings.first().is_some_and(|path| path.ends_with(b"bibd.sock"))
    }

    /// On a connection that the daemon made: to its database, the only one on a Unix socket.
    fn is_to_database(&self) -> bool {
        self.on.starts_with("UNIX-STREAM") && !self.is_to_client()
    }

    fn is_write(&self) -> bool {
        matches!(self.name.as_str(), "write" | "writev" | "sendto" | "sendmsg")
    }

    fn is_read(&self) -> bool {
        matches!(self.name.as_str(), "read" | "readv" | "recvfrom" | "recvmsg")
    }
}

/// Where in the trace a chunk's steps ended; the later ones where they began.
#[derive(Debug)]
pub struct Order {
    pub synced: usize,
    pub renamed: (usize, usize),
    pub directory_synced: (usize, usize),
    pub commit_sent: usize,
    pub commit_replied: usize,
    pub acknowledged: usize,
}

/// Where in the trace what a person said was written down, and where it was passed on.
#[derive(Debug)]
pub struct Said {
    pub recorded: usize,
    pub synced: (usize, usize),
    pub logged: usize,
    pub passed_on: usize,
}

impl Said {
    /// The recording is written and synced, the log's entry is committed, and only then the server hears of it.
    pub fn is_right(&self) -> bool {
        self.recorded < self.synced.0 && self.synced.1 < self.passed_on && self.logged < self.passed_on
    }
}

impl Order {
    /// fsync(file), rename, fsync(directory), COMMIT, its reply, the acknowledgement: each begins after the one before
    /// has ended.
    pub fn is_right(&self) -> bool {
        self.synced < self.renamed.0
            && self.renamed.1 < self.directory_synced.0
            && self.directory_synced.1 < self.commit_sent
            && self.commit_sent < self.commit_replied
            && self.commit_replied < self.acknowledged
    }
}

/// All calls that ended, in the order in which they began.
pub fn read(text: &str) -> Vec<Traced> {
    let mut open: BTreeMap<&str, (usize, String)> = BTreeMap::new();
    let mut calls = Vec::new();
    for (number, line) in text.lines().enumerate() {
        let Some((pid, rest)) = line.split_once(' ') else { continue };
        let rest = rest.trim_start();
        if let Some(begun) = rest.strip_suffix("<unfinished ...>") {
            open.insert(pid, (number, begun.to_owned()));
        } else if rest.starts_with("<... ") {
            let (Some((began, head)), Some((_, tail))) = (open.remove(pid), rest.split_once("resumed>")) else {
                continue;
            };
            calls.extend(call(&format!("{head}{tail}"), began, number));
        } else {
            calls.extend(call(rest, number, number));
        }
    }
    calls.sort_by_key(|call| call.began);
    calls
}

fn call(text: &str, began: usize, ended: usize) -> Option<Traced> {
    let (name, arguments) = text.split_once('(')?;
    // What failed is no step.
    if arguments.contains(") = -1 ") {
        return None;
    }
    let on = arguments.split_once('<').map_or("", |(_, rest)| rest);
    // The arrow of a pair of sockets is not the end.
    let end = on.match_indices('>').map(|(end, _)| end).find(|end| !on[..*end].ends_with('-'));
    let on = end.map_or("", |end| &on[..end]);
    // Strings are hexadecimal, so a quote is always the end of one. Paths behind descriptors may be quoted in plain.
    let strings = arguments.split('"').skip(1).step_by(2).filter_map(unescape).collect();
    Some(Traced { name: name.to_owned(), on: plain(on), strings, began, ended })
}

fn unescape(text: &str) -> Option<Vec<u8>> {
    text.strip_prefix("\\x")?.split("\\x").map(|pair| u8::from_str_radix(pair, 16).ok()).collect()
}

/// A path behind a descriptor, which `-xx` may have escaped too.
fn plain(text: &str) -> String {
    unescape(text).map_or_else(|| text.to_owned(), |bytes| String::from_utf8_lossy(&bytes).into_owned())
}

/// The order of each chunk's steps, or which step was never seen.
pub fn orders(calls: &[Traced]) -> BTreeMap<String, Result<Order, &'static str>> {
    let mut found = BTreeMap::new();
    for rename in calls.iter().filter(|call| call.name.starts_with("rename")) {
        let paths: Vec<String> = rename.strings.iter().map(|path| String::from_utf8_lossy(path).into_owned()).collect();
        let [from, to] = paths.as_slice() else { continue };
        if let Some((directory, hash)) = to.rsplit_once('/')
            && directory.contains("/blobs/")
            && hash.len() == 64
        {
            found.insert(hash.to_owned(), order(calls, rename, from, directory, hash));
        }
    }
    found
}

fn order(calls: &[Traced], rename: &Traced, from: &str, directory: &str, hash: &str) -> Result<Order, &'static str> {
    let bytes = hex::decode(hash).map_err(|_| "no hash")?;
    let is_sync = |call: &Traced, path: &str| matches!(call.name.as_str(), "fsync" | "fdatasync") && call.on == path;
    let synced = calls.iter().rev().find(|call| call.began < rename.began && is_sync(call, from));
    let directory_synced = calls.iter().find(|call| call.began > rename.ended && is_sync(call, directory));
    let answers = |call: &&Traced| call.is_write() && call.is_to_client() && call.holds(&bytes);
    let acknowledged = calls.iter().find(answers).ok_or("it was never acknowledged")?;
    // The rows go over one connection of the pool; its COMMIT is the next on the same connection.
    let rows = |call: &&Traced| call.is_write() && call.is_to_database() && call.holds(&bytes);
    let last =
        calls.iter().rev().filter(|call| call.began < acknowledged.began).find(rows).ok_or("no row was written")?;
    let same = |call: &&Traced| call.on == last.on && call.began > last.began && call.holds(b"COMMIT");
    let commit_sent = calls.iter().filter(|call| call.is_write()).find(same).ok_or("no COMMIT followed")?;
    let commit_replied =
        calls.iter().filter(|call| call.is_read() && call.ended > commit_sent.began).find(same).ok_or("no reply")?;
    Ok(Order {
        synced: synced.ok_or("its file was not synced before the rename")?.ended,
        renamed: (rename.began, rename.ended),
        directory_synced: directory_synced
            .map(|call| (call.began, call.ended))
            .ok_or("its directory was not synced")?,
        commit_sent: commit_sent.began,
        commit_replied: commit_replied.ended,
        acknowledged: acknowledged.began,
    })
}

/// The order of what was done with a statement of a break-glass session that holds `text`, said as a simple query.
pub fn said(calls: &[Traced], text: &str) -> Result<Said, &'static str> {
    let text = text.as_bytes();
    let to_database = |call: &&Traced| call.is_write() && call.is_to_database() && call.holds(text);
    // A simple query is the one message that begins with a Q; the entry's details are the value of a prepared statement.
    let is_query = |call: &&Traced| call.strings.iter().any(|string| string.first() == Some(&b'Q'));
    let passed_on = calls.iter().filter(to_database).find(is_query).ok_or("it was never passed on")?;
    let recorded = calls
        .iter()
        .find(|call| call.is_write() && call.on.ends_with(".jsonl") && call.holds(text))
        .ok_or("it was never recorded")?;
    let synced = calls
        .iter()
        .find(|call| call.name == "fdatasync" && call.on == recorded.on && call.began > recorded.ended)
        .ok_or("the recording was never synced")?;
    let entry = calls.iter().filter(to_database).find(|call| !is_query(call)).ok_or("it is not in the log")?;
    let commits = |call: &&Traced| call.on == entry.on && call.began >= entry.began && call.holds(b"COMMIT");
    let sent = calls.iter().filter(|call| call.is_write()).find(commits).ok_or("the entry was not committed")?;
    let replied =
        calls.iter().filter(|call| call.is_read() && call.ended > sent.began).find(commits).ok_or("no reply")?;
    Ok(Said {
        recorded: recorded.ended,
        synced: (synced.began, synced.ended),
        logged: replied.ended,
        passed_on: passed_on.began,
    })
}
