//! What the file system and the kernel say about a server: modes, owners, files that differ, sockets, the log.
//!
//! Gathered by the provisioner, which knows where things lie; judged here. Holds no content of any file.

use std::os::unix::fs::MetadataExt as _;
use std::path::Path;

use crate::cluster::VERIFIER_FILE;
use crate::config::{AUTO_CONF, CONF, Config, HBA, IDENT};
use crate::error::Error;
use crate::kubernetes::manifests::KEPT_BY_OPERATOR;
use crate::settings::Layout;

use super::{ContainerItem, Finding, Findings, Status, tls};

/// What was found outside the server.
#[derive(Debug, Clone)]
pub struct Facts {
    /// The configuration as it should be.
    pub(crate) config: Config,
    /// Configuration files whose bytes are not the generated ones.
    pub(crate) config_differs: Vec<String>,
    /// What of the server's certificates others could open; nothing where there is no TLS.
    pub(crate) open_certificates: Vec<String>,
    /// Whether an operator makes the server's pods: what it keeps for itself is its own, and is not judged here.
    pub(crate) is_operated: bool,
    seen: Seen,
}

/// From where it was looked at.
#[derive(Debug, Clone)]
enum Seen {
    /// From this machine.
    Files(Box<Files>),
    /// Through somebody who says how it is.
    Told(Vec<Finding>),
}

/// What the file system and the kernel say. Lists name at most [`SHOWN`] files each.
#[derive(Debug, Clone)]
struct Files {
    /// The user that everything should belong to.
    uid: u32,
    data: Mode,
    socket_dir: Mode,
    /// Configuration files that are not 0600.
    config_modes: Vec<String>,
    /// Files in PGDATA and the log that others could open, or that belong to others.
    loose: Vec<String>,
    /// Names at the top of PGDATA that PostgreSQL does not make, and links anywhere in it.
    extra: Vec<String>,
    /// Whether the file that `initdb` read is still there.
    verifier_left: bool,
    /// `Umask` of the server's process; `None` where the system does not tell.
    umask: Option<String>,
    /// TCP ports that the server's process listens on.
    tcp_ports: Vec<String>,
    /// Log files with a password in them.
    logged_passwords: Vec<String>,
    /// How the server is confined; nothing for a process.
    confinement: Vec<ContainerItem>,
}

#[derive(Debug, Clone, Copy)]
struct Mode {
    mode: u32,
    uid: u32,
}

/// How many names a list shows.
const SHOWN: usize = 5;
/// How much of each log file is searched, from its end.
const LOG_BYTES: u64 = 8 * 1024 * 1024;
/// The search ends after so many files: far more than a server has whose tables are not in the millions.
const MAX_FILES: usize = 200_000;

/// What PostgreSQL 15 to 18 makes at the top of PGDATA.
const KNOWN: [&str; 26] = [
    "PG_VERSION",
    "base",
    "global",
    "pg_commit_ts",
    "pg_dynshmem",
    HBA,
    IDENT,
    "pg_logical",
    "pg_multixact",
    "pg_notify",
    "pg_replslot",
    "pg_serial",
    "pg_snapshots",
    "pg_stat",
    "pg_stat_tmp",
    "pg_subtrans",
    "pg_tblspc",
    "pg_twophase",
    "pg_wal",
    "pg_xact",
    AUTO_CONF,
    CONF,
    "postmaster.opts",
    "postmaster.pid",
    "current_logfiles",
    "current_logfiles.tmp",
];

impl Facts {
    /// Looks at the server's files and at its process, `pid` on this machine.
    ///
    /// # Errors
    /// [`Error::Io`] when a place cannot be looked at.
    pub(crate) fn gather(
        config: Config,
        layout: &Layout,
        uid: u32,
        pid: Option<u32>,
        confinement: Vec<ContainerItem>,
    ) -> Result<Self, Error> {
        let (mut config_modes, mut config_differs) = (Vec::new(), Vec::new());
        for (name, text) in config.files() {
            let path = layout.data.join(name);
            match std::fs::symlink_metadata(&path) {
                Err(error) => config_modes.push(format!("{name}: {error}")),
                Ok(meta) if meta.mode() & 0o7777 != 0o600 => {
                    config_modes.push(format!("{name} is {:04o}", meta.mode() & 0o7777));
                }
                Ok(_) => {}
            }
            if !std::fs::read(&path).is_ok_and(|bytes| bytes == text.as_bytes()) {
                config_differs.push(name.to_owned());
            }
        }
        let mut walk = Walk { uid, loose: Vec::new(), extra: Vec::new(), seen: 0 };
        walk.top(&layout.data)?;
        walk.directory(&layout.log, false)?;
        let open_certificates =
            config.listening.as_ref().map(|listening| tls::open_files(listening, uid)).unwrap_or_default();
        let files = Files {
            uid,
            data: mode_of(&layout.data)?,
            socket_dir: mode_of(&layout.socket_dir)?,
            config_modes,
            loose: walk.loose,
            extra: walk.extra,
            verifier_left: crate::file::exists(&layout.socket_dir.join(VERIFIER_FILE))?,
            umask: pid.and_then(umask_of),
            tcp_ports: pid.map(tcp_ports_of).unwrap_or_default(),
            logged_passwords: logged_passwords(&layout.log)?,
            confinement,
        };
        Ok(Self { config, config_differs, open_certificates, is_operated: false, seen: Seen::Files(Box::new(files)) })
    }

    /// Of a server whose files are not on this machine: `told` is what is to be said of them, part by part.
    pub(crate) fn told(
        config: Config,
        config_differs: Vec<String>,
        open_certificates: Vec<String>,
        told: Vec<Finding>,
    ) -> Self {
        Self { config, config_differs, open_certificates, is_operated: false, seen: Seen::Told(told) }
    }

    /// Of one whose pods an operator makes.
    pub(crate) fn of_operator(self) -> Self {
        Self { is_operated: true, ..self }
    }

    /// Whether a setting is the operator's.
    pub(super) fn is_kept(&self, setting: &str) -> bool {
        self.is_operated && KEPT_BY_OPERATOR.contains(&setting)
    }

    /// The items that are not for the server to answer.
    pub(crate) fn check(&self, findings: &mut Findings) {
        let differs: Vec<String> = self.config_differs.iter().filter(|name| *name == HBA).cloned().collect();
        let differs = differs.into_iter().map(|name| format!("{name} is not the generated one")).collect();
        let expected = if self.is_operated {
            "the operator was given our lines of pg_hba.conf and no others"
        } else {
            "pg_hba.conf is the generated one, byte for byte"
        };
        findings.none("C.1-5", "no trust, ever", differs, expected);
        match &self.seen {
            Seen::Files(files) => files.check(&self.config, findings),
            Seen::Told(told) => told.iter().for_each(|finding| findings.add(finding.clone())),
        }
    }
}

impl Files {
    fn check(&self, config: &Config, findings: &mut Findings) {
        let private = |place: Mode| place.mode == 0o700 && place.uid == self.uid;
        let spelled = |place: Mode| format!("{:04o} of user {}", place.mode, place.uid);
        let wanted = format!("0700 of user {}", self.uid);
        findings.check("C.1-3", "data directory private", private(self.data), spelled(self.data), &wanted);
        findings.check("C.1-4", "socket private", private(self.socket_dir), spelled(self.socket_dir), &wanted);
        findings.none("C.1-6", "configuration private", self.config_modes.clone(), "every file 0600");
        let mut open = shown(&self.loose);
        if let Some(umask) = self.umask.as_ref().filter(|umask| *umask != "0077") {
            open.push(format!("the server's umask is {umask}"));
        }
        findings.none("C.1-7", "files for nobody else", open, "umask 0077, no file for group or others");
        findings.none("C.1-8", "nothing strange in PGDATA", shown(&self.extra), "no extra files, no links");
        let left = if self.verifier_left { vec![format!("{VERIFIER_FILE} is still there")] } else { Vec::new() };
        findings.none("C.1-9", "password file gone", left, "held a verifier only, and is removed");
        match &config.listening {
            None => {
                findings.none(
                    "C.2-11",
                    "no TCP",
                    self.tcp_ports.clone(),
                    "the server's process listens on no TCP port",
                );
            }
            Some(listening) => {
                let wanted = format!("tcp port {}", listening.port);
                let others = self.tcp_ports.iter().filter(|port| **port != wanted).cloned().collect();
                findings.none("C.2-11", "no other TCP", others, "the server's process listens on its TCP port alone");
            }
        }
        findings.none(
            "C.4-35",
            "no password in the log",
            self.logged_passwords.clone(),
            "no PASSWORD '..' but verifiers",
        );
        for found in &self.confinement {
            let (good, expected) = (found.problems.is_empty(), found.expected.to_owned());
            let status = match (good, found.warn) {
                (true, _) => Status::Pass,
                (false, true) => Status::Warn,
                (false, false) => Status::Fail,
            };
            let observed = if good { expected.clone() } else { found.problems.join("; ") };
            findings.add(Finding { item: found.item, title: found.title, status, observed, expected });
        }
    }
}

fn shown(all: &[String]) -> Vec<String> {
    let mut list: Vec<String> = all.iter().take(SHOWN).cloned().collect();
    if all.len() > SHOWN {
        list.push(format!("and {} more", all.len() - SHOWN));
    }
    list
}

fn mode_of(path: &Path) -> Result<Mode, Error> {
    let meta = std::fs::symlink_metadata(path).map_err(Error::io("look at", path))?;
    Ok(Mode { mode: meta.mode() & 0o7777, uid: meta.uid() })
}

struct Walk {
    uid: u32,
    loose: Vec<String>,
    extra: Vec<String>,
    seen: usize,
}

impl Walk {
    fn top(&mut self, data: &Path) -> Result<(), Error> {
        for entry in std::fs::read_dir(data).map_err(Error::io("list", data))?.filter_map(Result::ok) {
            let name = entry.file_name();
            // A temporary file of `ALTER SYSTEM` or of ours lives for milliseconds.
            let passing = name.to_string_lossy().ends_with(".tmp") || name.to_string_lossy().starts_with(".bib-");
            if !passing && !KNOWN.iter().any(|known| name == *known) {
                self.extra.push(name.to_string_lossy().into_owned());
            }
        }
        self.directory(data, true)
    }

    fn directory(&mut self, directory: &Path, top: bool) -> Result<(), Error> {
        let entries = match std::fs::read_dir(directory) {
            Ok(entries) => entries,
            // A running server removes what it no longer needs.
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(()),
            Err(error) => return Err(Error::io("list", directory)(error)),
        };
        for entry in entries.filter_map(Result::ok) {
            self.seen += 1;
            if self.seen > MAX_FILES {
                return Ok(());
            }
            let Ok(meta) = entry.metadata() else { continue };
            let (path, name) = (entry.path(), entry.file_name());
            if meta.is_symlink() {
                self.extra.push(format!("{} is a link", path.display()));
                continue;
            }
            // The configuration's modes are an item of their own.
            let own_item = top && [CONF, HBA, IDENT, AUTO_CONF].iter().any(|known| name == *known);
            if !own_item && meta.mode() & 0o077 != 0 {
                self.loose.push(format!("{} is {:04o}", path.display(), meta.mode() & 0o7777));
            }
            if meta.uid() != self.uid {
                self.loose.push(format!("{} belongs to user {}", path.display(), meta.uid()));
            }
            if meta.is_dir() {
                self.directory(&path, false)?;
            }
        }
        Ok(())
    }
}

fn umask_of(pid: u32) -> Option<String> {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    Some(status.lines().find_map(|line| line.strip_prefix("Umask:"))?.trim().to_owned())
}

/// TCP sockets in the state LISTEN among the process's open files. Asking the kernel is exact, where a connection to
/// a port may reach another server of this machine.
fn tcp_ports_of(pid: u32) -> Vec<String> {
    let open: Vec<String> = std::fs::read_dir(format!("/proc/{pid}/fd"))
        .into_iter()
        .flatten()
        .filter_map(Result::ok)
        .filter_map(|entry| std::fs::read_link(entry.path()).ok())
        .filter_map(|link| Some(link.to_str()?.strip_prefix("socket:[")?.strip_suffix(']')?.to_owned()))
        .collect();
    let mut ports = Vec::new();
    for table in ["tcp", "tcp6"] {
        let text = std::fs::read_to_string(format!("/proc/{pid}/net/{table}")).unwrap_or_default();
        for line in text.lines().skip(1) {
            let fields: Vec<&str> = line.split_whitespace().collect();
            let (Some(local), Some(&"0A"), Some(inode)) = (fields.get(1), fields.get(3), fields.get(9)) else {
                continue;
            };
            if open.iter().any(|known| known == inode) {
                let port = local.rsplit(':').next().and_then(|hex| u16::from_str_radix(hex, 16).ok());
                ports.push(format!("{table} port {}", port.unwrap_or_default()));
            }
        }
    }
    ports
}

/// Log files with `PASSWORD '` followed by anything but a verifier.
fn logged_passwords(log: &Path) -> Result<Vec<String>, Error> {
    use std::io::{Read as _, Seek as _, SeekFrom};
    let mut found = Vec::new();
    for entry in std::fs::read_dir(log).map_err(Error::io("list", log))?.filter_map(Result::ok) {
        let path = entry.path();
        let mut file = std::fs::File::open(&path).map_err(Error::io("open", &path))?;
        let length = file.metadata().map_err(Error::io("look at", &path))?.len();
        file.seek(SeekFrom::Start(length.saturating_sub(LOG_BYTES))).map_err(Error::io("read", &path))?;
        let mut bytes = Vec::new();
        file.take(LOG_BYTES).read_to_end(&mut bytes).map_err(Error::io("read", &path))?;
        let hits = passwords_in(&String::from_utf8_lossy(&bytes));
        if hits > 0 {
            found.push(format!("{}: {hits} times", entry.file_name().display()));
        }
    }
    Ok(found)
}

/// How often a log says `PASSWORD '` and then anything but a verifier.
pub(crate) fn passwords_in(log: &str) -> usize {
    let text = log.to_ascii_lowercase();
    text.split("password '").skip(1).filter(|rest| !rest.starts_with("scram-sha-256$")).count()
}
