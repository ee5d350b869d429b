//! Where the configuration, the data and the sockets are: by flag, by configuration, or by what kind of user runs us.

use std::path::{Path, PathBuf};

use bib_core::Hash;

use super::Config;

/// The longest path of a Unix socket in bytes: `sun_path` has 108 on Linux and 104 on macOS, with a final zero, and
/// PostgreSQL's name beside it must fit too.
pub const MAX_SOCKET_PATH_BYTES: usize = 100;

/// PostgreSQL's socket in the runtime directory.
const POSTGRES_SOCKET: &str = "pg/.s.PGSQL.5432";
/// What it and a slash add to the directory's name.
const POSTGRES_SOCKET_BYTES: usize = POSTGRES_SOCKET.len() + 1;

/// The user's directories.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Home {
    /// Whether the daemon runs as root.
    pub is_root: bool,
    /// The effective uid.
    pub uid: u32,
    /// `XDG_CONFIG_HOME` or its default.
    pub config: PathBuf,
    /// `XDG_DATA_HOME` or its default.
    pub data: PathBuf,
    /// `XDG_RUNTIME_DIR`, when there is one.
    pub runtime: Option<PathBuf>,
}

/// There is no home directory.
#[derive(Debug, thiserror::Error)]
#[error("this user has no home directory")]
pub struct NoHome;

impl Home {
    /// The directories of the user that runs us.
    ///
    /// # Errors
    /// [`NoHome`] when neither `HOME` nor the user database names one.
    pub fn of_this_user() -> Result<Self, NoHome> {
        use etcetera::BaseStrategy as _;
        let uid = rustix::process::geteuid();
        let strategy = etcetera::choose_base_strategy();
        if uid.is_root() {
            let fallback = || (PathBuf::from("/etc"), PathBuf::from("/var/lib"));
            let (config, data) = fallback();
            return Ok(Self { is_root: true, uid: 0, config, data, runtime: Some(PathBuf::from("/run")) });
        }
        let strategy = strategy.map_err(|_| NoHome)?;
        Ok(Self {
            is_root: false,
            uid: uid.as_raw(),
            config: strategy.config_dir(),
            data: strategy.data_dir(),
            runtime: strategy.runtime_dir(),
        })
    }
}

/// Where everything of one daemon is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Places {
    /// The data directory.
    pub data: PathBuf,
    /// The directory of the sockets.
    pub runtime: PathBuf,
    /// The daemon's Unix socket.
    pub socket: PathBuf,
    /// The append-only file of checkpoints.
    pub checkpoints: PathBuf,
    /// The recordings of break-glass.
    pub glass: PathBuf,
    /// The ready file.
    pub ready: PathBuf,
}

impl Places {
    /// PostgreSQL's socket.
    #[must_use]
    pub fn postgres_socket(&self) -> PathBuf {
        self.runtime.join(POSTGRES_SOCKET)
    }

    /// The places under this configuration. A data directory that is not the usual one keeps its sockets to itself, so
    /// that two daemons of one user do not meet.
    #[must_use]
    pub fn of(config: &Config, home: &Home, ready_file: Option<PathBuf>) -> Self {
        let usual = home.data.join("bibd");
        let data = config.data_dir.clone().unwrap_or_else(|| usual.clone());
        let runtime = config.runtime_dir.clone().unwrap_or_else(|| {
            let shared = home.runtime.as_ref().map(|runtime| runtime.join("bibd"));
            match shared {
                Some(shared) if data == usual => shared,
                _ => own_runtime(&data, home),
            }
        });
        Self {
            socket: config.grpc.unix_socket.clone().unwrap_or_else(|| runtime.join("bibd.sock")),
            checkpoints: config.audit.checkpoint_path.clone().unwrap_or_else(|| data.join("checkpoints")),
            glass: config.database.break_glass.recordings.clone().unwrap_or_else(|| data.join("glass")),
            ready: ready_file.unwrap_or_else(|| data.join("ready.json")),
            runtime,
            data,
        }
    }
}

/// `run` in the data directory, or a short name made of its hash where that would be too long for a socket.
fn own_runtime(data: &Path, home: &Home) -> PathBuf {
    let inside = data.join("run");
    if inside.as_os_str().len() + POSTGRES_SOCKET_BYTES <= MAX_SOCKET_PATH_BYTES {
        return inside;
    }
    let base = home.runtime.clone().unwrap_or_else(std::env::temp_dir);
    let name = Hash::of(data.as_os_str().as_encoded_bytes()).to_string();
    base.join(format!("bibd-{}-{}", home.uid, &name[..12]))
}

/// The configuration file: as given, or the one in the configuration directory.
///
/// # Errors
/// When two files of different formats lie side by side: which one counts must not be a riddle.
pub fn find_config_file(directory: &Path) -> Result<Option<PathBuf>, AmbiguousConfig> {
    let found: Vec<PathBuf> = ["config.yaml", "config.yml", "config.toml"]
        .iter()
        .map(|name| directory.join(name))
        .filter(|path| path.is_file())
        .collect();
    match found.as_slice() {
        [] => Ok(None),
        [one] => Ok(Some(one.clone())),
        [first, second, ..] => Err(AmbiguousConfig { first: first.clone(), second: second.clone() }),
    }
}

/// Two configuration files lie side by side.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("there are two configuration files, `{first}` and `{second}`: remove one or name one with --config")]
pub struct AmbiguousConfig {
    /// One of them.
    pub first: PathBuf,
    /// Another.
    pub second: PathBuf,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn home() -> Home {
        Home {
            is_root: false,
            uid: 1000,
            config: "/home/ada/.config".into(),
            data: "/home/ada/.local/share".into(),
            runtime: Some("/run/user/1000".into()),
        }
    }

    #[test]
    fn the_usual_daemon_has_its_sockets_in_the_runtime_directory() {
        let places = Places::of(&Config::default(), &home(), None);
        assert_eq!(places.data, Path::new("/home/ada/.local/share/bibd"));
        assert_eq!(places.socket, Path::new("/run/user/1000/bibd/bibd.sock"));
        assert_eq!(places.ready, Path::new("/home/ada/.local/share/bibd/ready.json"));
    }

    #[test]
    fn another_data_directory_keeps_its_sockets_to_itself_and_short() {
        let mut config = Config { data_dir: Some("/data/b".into()), ..Config::default() };
        assert_eq!(Places::of(&config, &home(), None).socket, Path::new("/data/b/run/bibd.sock"));
        config.data_dir = Some(format!("/{}", "long/".repeat(20)).into());
        let places = Places::of(&config, &home(), None);
        assert!(places.runtime.starts_with("/run/user/1000"), "{places:?}");
        assert!(places.runtime.as_os_str().len() + POSTGRES_SOCKET_BYTES <= MAX_SOCKET_PATH_BYTES);
    }
}
