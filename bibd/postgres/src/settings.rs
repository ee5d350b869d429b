//! What the composition root decides about the server: places, account, sizes. Data only.

use std::fmt;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use sha2::{Digest as _, Sha256};

use crate::error::Error;
use crate::kubernetes::InKubernetes;
use crate::tcp::Tcp;

/// Settings of a server, whatever runs it.
#[derive(Debug, Clone)]
pub struct Settings {
    /// The daemon's data directory; the server lives in `postgres/` below it. When the daemon is root and the server
    /// is not, it must be passable by the server's user (0711 is enough).
    pub data_root: PathBuf,
    /// A short directory for sockets, best on tmpfs; the server's own is `pg/` below it.
    pub runtime_dir: PathBuf,
    /// Where `postgres` and `initdb` are; found when absent.
    pub bin_dir: Option<PathBuf>,
    /// Where those of a newer major version are: for an upgrade, and for data that it carried over. `bin_dir` when absent.
    pub upgrade_bin_dir: Option<PathBuf>,
    /// The user the server runs as; only root may choose.
    pub run_as: Option<RunAs>,
    /// The major version to use where there is no data yet that says so: data that comes from elsewhere.
    pub major: Option<u32>,
    /// Sizes.
    pub limits: Limits,
    /// What becomes of the write-ahead log.
    pub wal: Wal,
    /// Whether PGDATA may lie on a network file system.
    pub allow_network_fs: bool,
    /// How long a start may take until connections are accepted.
    pub start_deadline: Duration,
    /// How long a clean stop may take.
    pub stop_deadline: Duration,
    /// What is done to each directory that will hold data, while it is empty.
    pub on_new_directory: OnNewDirectory,
    /// Set where the server is reached over TCP and not through its socket; nothing in a configuration sets it.
    pub tcp: Option<Tcp>,
    /// What the container provisioner needs beyond that.
    pub container: ContainerSettings,
    /// What the Kubernetes provisioner needs beyond that; nothing for a server that is never to run there.
    pub kubernetes: Option<InKubernetes>,
}

/// Something done to a directory before anything is put into it, such as turning on its encryption.
#[derive(Clone, Default)]
pub struct OnNewDirectory(Option<Arc<DirectoryAct>>);

type DirectoryAct = dyn Fn(&Path) -> io::Result<()> + Send + Sync;

impl OnNewDirectory {
    /// Calls `act` with each, more than once for those that stay.
    pub fn new(act: impl Fn(&Path) -> io::Result<()> + Send + Sync + 'static) -> Self {
        Self(Some(Arc::new(act)))
    }

    pub(crate) fn run(&self, path: &Path) -> Result<(), Error> {
        self.0.as_ref().map_or(Ok(()), |act| act(path)).map_err(Error::io("encrypt", path))
    }
}

impl fmt::Debug for OnNewDirectory {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("OnNewDirectory").field(&self.0.is_some()).finish()
    }
}

impl Settings {
    /// Settings with everything found or defaulted.
    pub fn new(data_root: impl Into<PathBuf>, runtime_dir: impl Into<PathBuf>) -> Self {
        Self {
            data_root: data_root.into(),
            runtime_dir: runtime_dir.into(),
            bin_dir: None,
            upgrade_bin_dir: None,
            run_as: None,
            major: None,
            limits: Limits::default(),
            wal: Wal::default(),
            allow_network_fs: false,
            start_deadline: Duration::from_secs(30),
            stop_deadline: Duration::from_secs(60),
            on_new_directory: OnNewDirectory::default(),
            tcp: None,
            container: ContainerSettings::default(),
            kubernetes: None,
        }
    }
}

impl Settings {
    /// The container's name is that of `node`'s own server, and objects in Kubernetes bear its label.
    #[must_use]
    pub fn of_node(mut self, node: &str) -> Self {
        node.clone_into(&mut self.container.node);
        if let Some(kubernetes) = &mut self.kubernetes {
            kubernetes.objects.node = Some(node.to_owned());
        }
        self
    }

    /// A server of `node` beside its own, in another directory: its container has another name, always the same for
    /// the same directory. It is never in Kubernetes, where a directory decides nothing.
    #[must_use]
    pub fn beside_node(mut self, node: &str) -> Self {
        let digest = Sha256::digest(self.data_root.as_os_str().as_encoded_bytes());
        let apart: String = digest.iter().take(4).map(|byte| format!("{byte:02x}")).collect();
        self.container.node = format!("{node}-{apart}");
        self.kubernetes = None;
        self
    }
}

/// The container and its engine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ContainerSettings {
    /// The node's short id: the container is `bibd-postgres-` and this.
    pub node: String,
    /// The engine's API socket; found when absent.
    pub socket: Option<PathBuf>,
    /// The image's name. Any image with PostgreSQL's programs and a shell will do.
    pub image: String,
    /// `sha256:..`: the digest in the registry or the id that the image must have.
    pub digest: Option<String>,
    /// How long an engine is waited for that need not be there: when nothing was chosen yet.
    pub passing_deadline: Duration,
    /// A pull in which nothing moves for this long has failed.
    pub pull_stalled: Duration,
    /// Whether the engine gives the mounted directories SELinux's label of this container alone.
    pub relabel: bool,
    /// Sizes.
    pub limits: ContainerLimits,
}

/// What the container may use.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ContainerLimits {
    /// Memory, bytes; there is no swap beyond it.
    pub memory_bytes: u64,
    /// Processors; 0 for all of the machine.
    pub cpus: u32,
    /// Processes: one for each connection, and some ten of the server.
    pub pids: u32,
    /// `/dev/shm`, bytes: what parallel queries share.
    pub shm_bytes: u64,
    /// Each of `/tmp` and `/run/postgresql`, bytes.
    pub tmpfs_bytes: u64,
    /// Open files of each process.
    pub open_files: u32,
}

/// The image that is pulled when none is configured.
pub const DEFAULT_IMAGE: &str = "docker.io/library/postgres:18";

impl Default for ContainerSettings {
    fn default() -> Self {
        Self {
            node: "local".to_owned(),
            socket: None,
            image: DEFAULT_IMAGE.to_owned(),
            digest: None,
            passing_deadline: Duration::from_secs(3),
            pull_stalled: Duration::from_secs(60),
            relabel: false,
            limits: ContainerLimits::default(),
        }
    }
}

impl Default for ContainerLimits {
    fn default() -> Self {
        Self {
            memory_bytes: 2 << 30,
            cpus: 0,
            pids: 512,
            shm_bytes: 256 << 20,
            tmpfs_bytes: 64 << 20,
            open_files: 4096,
        }
    }
}

/// What becomes of the write-ahead log once the server itself does not need it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub enum Wal {
    /// It is recycled.
    #[default]
    Recycle,
    /// It is copied into `postgres/spool`, for somebody to take away.
    Archive {
        /// A segment is closed at least so often while anything is written, seconds.
        timeout_s: u32,
        /// Files that the spool may hold; then the server keeps its log until there is room.
        max_files: u32,
        /// What is left free on its disk, KiB.
        reserve_kb: u64,
    },
    /// It is read back: the server is being restored.
    Recover(Recovery),
}

/// How far a server that is being restored goes before it takes connections.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Recovery {
    /// Where it stops.
    pub target: Target,
    /// The directory through which it asks for archived log ([`crate::wal::Feed`]); none when the backup has all.
    pub feed: Option<PathBuf>,
}

/// Where recovery stops.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Target {
    /// As soon as the backup is consistent: the moment at which it ended.
    Consistent,
    /// At the end of the log.
    Latest,
    /// After the last transaction that was committed by then, in RFC 3339.
    Time(String),
}

/// The operating system's user for the server.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum RunAs {
    /// By name.
    User(String),
    /// By number.
    Ids {
        /// The user id.
        uid: u32,
        /// The group id.
        gid: u32,
    },
}

/// Sizes of the server. Defaults suit a laptop.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Limits {
    /// `shared_buffers`, mebibytes.
    pub shared_buffers_mb: u32,
    /// `max_wal_size`, mebibytes.
    pub max_wal_mb: u32,
    /// `log_min_duration_statement`, milliseconds.
    pub slow_statement_ms: u32,
}

impl Default for Limits {
    fn default() -> Self {
        Self { shared_buffers_mb: 128, max_wal_mb: 1024, slow_statement_ms: 1000 }
    }
}

/// `max_connections` of the server: the sum of all roles' limits and the superuser's share.
pub const MAX_CONNECTIONS: u32 = 100;
/// `superuser_reserved_connections`.
pub const RESERVED_CONNECTIONS: u32 = 3;

/// Where everything of the server lies.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Layout {
    /// `postgres/`.
    pub home: PathBuf,
    /// `postgres/data`, PGDATA.
    pub data: PathBuf,
    /// `postgres/data.new`, PGDATA while `initdb` works.
    pub data_new: PathBuf,
    /// `postgres/PROVISIONER`.
    pub provisioner: PathBuf,
    /// `postgres/log`.
    pub log: PathBuf,
    /// `postgres/spool`: archived log that was not taken away yet.
    pub spool: PathBuf,
    /// The socket's directory.
    pub socket_dir: PathBuf,
    /// `postgres/passwd`, the server's user as a container's `/etc/passwd`.
    pub passwd: PathBuf,
}

/// The port of a server that listens on no network: it only names the socket.
pub const PORT: u16 = 5432;
/// The longest socket path, bytes. `sun_path` has 108 on Linux and 104 on macOS, with a final zero.
pub const MAX_SOCKET_PATH_BYTES: usize = 100;

impl Layout {
    /// The layout under these settings.
    pub fn new(data_root: &Path, runtime_dir: &Path) -> Self {
        let home = data_root.join("postgres");
        Self {
            data: home.join("data"),
            data_new: home.join("data.new"),
            provisioner: home.join("PROVISIONER"),
            log: home.join("log"),
            spool: home.join("spool"),
            passwd: home.join("passwd"),
            socket_dir: runtime_dir.join("pg"),
            home,
        }
    }

    /// The server's certificates where it is reached over TCP: beside the socket, which nobody else enters.
    pub fn tls(&self) -> PathBuf {
        self.socket_dir.join("tls")
    }

    /// The socket itself.
    pub fn socket(&self) -> PathBuf {
        self.socket_dir.join(format!(".s.PGSQL.{PORT}"))
    }
}
