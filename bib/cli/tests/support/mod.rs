//! The real `bibd` and the real `bib` in temporary directories. Nothing here is a stand-in.

#![allow(dead_code, reason = "each test file uses a part")]
#![allow(clippy::print_stderr, reason = "a test says why it tested nothing, and what the node logged")]

use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use tempfile::TempDir;

/// How long anything may take on a slow, busy machine.
const PATIENCE: Duration = Duration::from_secs(120);

/// Waits until `what` gives something.
pub(crate) fn wait_for<T>(sentence: &str, mut what: impl FnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + PATIENCE;
    loop {
        if let Some(found) = what() {
            return found;
        }
        assert!(Instant::now() < deadline, "waited in vain for {sentence}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// The daemon: `BIBD_BIN`, or what lies beside `bib`. Without one the tests that need it say so; in CI they fail.
fn bibd() -> Option<PathBuf> {
    let beside = Path::new(env!("CARGO_BIN_EXE_bib")).with_file_name("bibd");
    let path = std::env::var_os("BIBD_BIN").map_or(beside, PathBuf::from);
    if path.exists() {
        return Some(path);
    }
    let sentence = format!("NOT TESTED: there is no daemon at {}; build it with `cargo build -p bibd`", path.display());
    assert!(std::env::var("CI").as_deref() != Ok("true"), "{sentence}");
    eprintln!("{sentence}");
    None
}

/// A temporary directory that PostgreSQL's user may pass through when the tests run as root.
pub(crate) fn temporary() -> TempDir {
    use std::os::unix::fs::PermissionsExt as _;
    let dir = tempfile::Builder::new().prefix("bib").tempdir().unwrap();
    std::fs::set_permissions(dir.path(), std::fs::Permissions::from_mode(0o755)).unwrap();
    dir
}

/// A running node.
pub(crate) struct Node {
    dir: TempDir,
    child: Child,
    pub(crate) address: String,
    pub(crate) fingerprint: String,
    pub(crate) peer_id: String,
}

impl Node {
    /// Starts one with a data directory of its own.
    pub(crate) fn start() -> Option<Self> {
        Self::start_at(temporary(), "127.0.0.1:0", "off")
    }

    /// Starts one on this address.
    pub(crate) fn start_on(address: &str) -> Option<Self> {
        Self::start_at(temporary(), address, "off")
    }

    /// Starts one that tells this machine of itself.
    pub(crate) fn start_announced() -> Option<Self> {
        Self::start_at(temporary(), "127.0.0.1:0", "always")
    }

    /// Starts one with this configuration file.
    pub(crate) fn start_with(config: &str) -> Option<Self> {
        let dir = temporary();
        write(dir.path(), "config/config.yaml", config);
        Self::start_at(dir, "127.0.0.1:0", "off")
    }

    fn start_at(dir: TempDir, listen: &str, mdns: &str) -> Option<Self> {
        let bibd = bibd()?;
        let (data, ready) = (dir.path().join("data"), dir.path().join("ready.json"));
        let log = std::fs::File::create(dir.path().join("bibd.log")).unwrap();
        let mut child = Command::new(bibd)
            .env("BIBD__DISCOVERY__MDNS", mdns)
            .args(["run", "--listen", listen, "--data-dir"])
            .arg(&data)
            .arg("--config-dir")
            .arg(dir.path().join("config"))
            .arg("--ready-file")
            .arg(&ready)
            .env("BIBD__DATABASE__PROVISIONER", "process")
            .stdin(Stdio::null())
            .stdout(log.try_clone().unwrap())
            .stderr(log)
            .spawn()
            .unwrap();
        let facts: serde_json::Value = wait_for("the node to be ready", || {
            let ended = child.try_wait().unwrap();
            let log = || std::fs::read_to_string(dir.path().join("bibd.log")).unwrap_or_default();
            assert!(ended.is_none(), "bibd ended: {}", log());
            serde_json::from_slice(&std::fs::read(&ready).ok()?).ok()
        });
        let text = |value: &serde_json::Value| value.as_str().unwrap().to_owned();
        Some(Self {
            child,
            address: text(&facts["addresses"][0]),
            fingerprint: text(&facts["fingerprint"]),
            peer_id: text(&facts["peer_id"]),
            dir,
        })
    }

    /// Its data directory.
    pub(crate) fn data(&self) -> PathBuf {
        self.dir.path().join("data")
    }

    /// Chunks that lie in their final place.
    pub(crate) fn chunks_on_disk(&self) -> usize {
        fn count(dir: &Path) -> usize {
            let entries = std::fs::read_dir(dir).into_iter().flatten().flatten();
            entries
                .map(|entry| match entry.file_type() {
                    Ok(kind) if kind.is_dir() => count(&entry.path()),
                    // 64 hex digits: neither temporary nor a marker.
                    Ok(_) => usize::from(entry.file_name().len() == 64),
                    Err(_) => 0,
                })
                .sum()
        }
        count(&self.data().join("blobs"))
    }

    /// A person on this machine, with a home of their own.
    pub(crate) fn person(&self) -> Bib {
        Bib { home: temporary(), data: Some(self.data()), flags: Vec::new() }
    }

    /// A person elsewhere: over TLS, trusting this node by its fingerprint, not logged in.
    pub(crate) fn stranger(&self) -> Bib {
        let person = Bib { home: temporary(), data: None, flags: vec!["--node".into(), self.address.clone()] };
        person.ok(&["connect", &self.address, "--fingerprint", &self.fingerprint]);
        person
    }

    /// Stops it and waits.
    pub(crate) fn stop(mut self) {
        self.end();
    }

    fn end(&mut self) {
        let pid = Pid::from_child(&self.child);
        if self.child.try_wait().is_ok_and(|ended| ended.is_none()) {
            // It may have ended in between.
            let _ = kill_process(pid, Signal::TERM);
        }
        let deadline = Instant::now() + PATIENCE;
        while self.child.try_wait().is_ok_and(|ended| ended.is_none()) {
            if Instant::now() > deadline {
                let _ = self.child.kill();
                let _ = self.child.wait();
                self.end_postgres();
                return;
            }
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    /// A PostgreSQL that outlives its daemon is ours to end.
    fn end_postgres(&self) {
        let file = self.data().join("postgres/data/postmaster.pid");
        let pid = std::fs::read_to_string(file).ok().and_then(|text| text.lines().next()?.parse().ok());
        if let Some(pid) = pid.and_then(Pid::from_raw) {
            let _ = kill_process(pid, Signal::QUIT);
        }
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        self.end();
        if std::thread::panicking() {
            let log = std::fs::read_to_string(self.dir.path().join("bibd.log")).unwrap_or_default();
            let tail: Vec<&str> = log.lines().rev().take(40).collect();
            eprintln!("the node's log:\n{}", tail.into_iter().rev().collect::<Vec<_>>().join("\n"));
        }
    }
}

/// A person with `bib` and a home directory.
pub(crate) struct Bib {
    home: TempDir,
    data: Option<PathBuf>,
    flags: Vec<String>,
}

/// How a run of `bib` ended.
#[derive(Debug)]
pub(crate) struct Run {
    pub(crate) code: i32,
    pub(crate) stdout: String,
    pub(crate) stderr: String,
}

impl Bib {
    /// A person on a machine without a node.
    pub(crate) fn alone() -> Self {
        let home = temporary();
        let data = Some(home.path().join("no-node"));
        Self { home, data, flags: Vec::new() }
    }

    /// A path in the home directory.
    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.home.path().join(name)
    }

    /// The command, ready to run: no terminal, nothing of the environment but what is set here.
    pub(crate) fn command(&self, arguments: &[impl AsRef<OsStr>]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_bib"));
        command.env_clear().env("HOME", self.home.path()).current_dir(self.home.path()).stdin(Stdio::null());
        if let Some(data) = &self.data {
            command.env("BIBD_DATA_DIR", data);
        }
        command.args(arguments).args(&self.flags);
        command
    }

    /// Runs to the end.
    pub(crate) fn run(&self, arguments: &[impl AsRef<OsStr>]) -> Run {
        let Output { status, stdout, stderr } = self.command(arguments).output().unwrap();
        let text = |bytes| String::from_utf8(bytes).unwrap();
        Run { code: status.code().unwrap_or(-1), stdout: text(stdout), stderr: text(stderr) }
    }

    /// Runs what must succeed, and gives what it printed.
    pub(crate) fn ok(&self, arguments: &[&str]) -> String {
        let run = self.run(arguments);
        assert_eq!(run.code, 0, "{arguments:?}: {run:?}");
        run.stdout
    }

    /// Runs what must succeed, as JSON.
    pub(crate) fn json(&self, arguments: &[&str]) -> serde_json::Value {
        let text = self.ok(&[arguments, &["-o", "json"]].concat());
        serde_json::from_str(&text).unwrap_or_else(|error| panic!("{error}: {text}"))
    }

    /// Runs what must fail with this exit code, and gives the error.
    pub(crate) fn fails(&self, code: i32, arguments: &[&str]) -> serde_json::Value {
        let run = self.run(&[arguments, &["-o", "json"]].concat());
        assert_eq!(run.code, code, "{arguments:?}: {run:?}");
        let line = run.stderr.lines().find(|line| line.starts_with("{\"error\"")).unwrap_or_else(|| panic!("{run:?}"));
        serde_json::from_str::<serde_json::Value>(line).unwrap()["error"].take()
    }

    /// Makes an SSH key where `bib` looks for one, and gives its public line.
    pub(crate) fn make_key(&self) -> String {
        let path = self.path(".ssh/id_ed25519");
        if !path.exists() {
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            bib_identity::ssh::generate(&path, "test", &mut rand::rngs::OsRng).unwrap();
        }
        std::fs::read_to_string(path.with_extension("pub")).unwrap().trim().to_owned()
    }
}

/// Writes a file below `dir`, with the folders above it.
pub(crate) fn write(dir: &Path, name: &str, bytes: impl AsRef<[u8]>) {
    let path = dir.join(name);
    std::fs::create_dir_all(path.parent().unwrap()).unwrap();
    std::fs::write(path, bytes).unwrap();
}

/// Bytes that no compression helps with, the same for the same seed.
pub(crate) fn noise(seed: u64, length: usize) -> Vec<u8> {
    use rand::{RngCore as _, SeedableRng as _};
    let mut bytes = vec![0; length];
    rand::rngs::StdRng::seed_from_u64(seed).fill_bytes(&mut bytes);
    bytes
}

/// Every path below `dir` with its kind and bytes or target.
pub(crate) fn listing(dir: &Path) -> Vec<(PathBuf, String, Vec<u8>)> {
    use std::os::unix::ffi::OsStrExt as _;
    use std::os::unix::fs::PermissionsExt as _;
    fn walk(root: &Path, dir: &Path, found: &mut Vec<(PathBuf, String, Vec<u8>)>) {
        for entry in std::fs::read_dir(dir).unwrap() {
            let path = entry.unwrap().path();
            let name = path.strip_prefix(root).unwrap().to_owned();
            let metadata = path.symlink_metadata().unwrap();
            if metadata.is_symlink() {
                let target = std::fs::read_link(&path).unwrap();
                found.push((name, "link".into(), target.as_os_str().as_bytes().to_vec()));
            } else if metadata.is_dir() {
                found.push((name, "dir".into(), Vec::new()));
                walk(root, &path, found);
            } else {
                let exec = metadata.permissions().mode() & 0o100 != 0;
                let kind = if exec { "exec" } else { "file" };
                found.push((name, kind.into(), std::fs::read(&path).unwrap()));
            }
        }
    }
    let mut found = Vec::new();
    walk(dir, dir, &mut found);
    found.sort();
    found
}
