//! The configuration: typed, checked at start, each value with its origin.
//!
//! [`Config`] is the effective configuration. [`load`](mod@load) makes it of defaults, the file, the environment and
//! flags, in this order; [`places`] finds the file and the directories. No secret ever stands in it: secrets are
//! sealed files.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

pub mod alerts;
pub mod audit;
mod break_glass;
mod cache;
mod container;
mod kubernetes;
pub mod load;
mod locate;
pub mod places;
pub mod store;
mod tier;
pub mod units;

pub use break_glass::{Access as GlassAccess, AllowedUser, AuditLevel, BreakGlass, Notification};
pub use cache::Cache;
pub use container::Container;
pub use kubernetes::{Kubernetes as KubernetesDatabase, KubernetesMode};
pub(crate) use kubernetes::{access as kubernetes_access, settings as kubernetes_settings};
pub use load::{Loaded, Origin, Problem, Sources, load};
pub use places::Places;
pub use store::{S3, StoreLocation};
pub use tier::{Seal, Tier};
pub use units::{Size, Span};

/// Keys that `AdminService.UpdateConfig` may change while the daemon runs.
pub const MUTABLE: &[&str] =
    &["log.level", "grpc.rate_limit.enabled", "grpc.rate_limit.per_second", "grpc.rate_limit.burst"];

/// Everything that can be configured.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema, Default)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// Where data lies. Default: `/var/lib/bibd` for root, else `bibd` in the XDG data directory.
    pub data_dir: Option<PathBuf>,
    /// Where sockets lie; best short and on tmpfs. Default: `/run/bibd` for root, else `bibd` in the XDG runtime directory.
    pub runtime_dir: Option<PathBuf>,
    /// What this node is.
    pub node: Node,
    /// The API.
    pub grpc: Grpc,
    /// How the node is found.
    pub discovery: Discovery,
    /// Certificates.
    pub tls: Tls,
    /// The managed PostgreSQL.
    pub database: Database,
    /// The chunk store.
    pub blobs: Blobs,
    /// The audit log.
    pub audit: Audit,
    /// Backups.
    pub backup: Backup,
    /// What is encrypted on the disk.
    pub encryption: Encryption,
    /// The daemon's own log.
    pub log: Log,
    /// Metrics for Prometheus.
    pub metrics: Metrics,
    /// Bounds of the daemon as a whole.
    pub limits: Limits,
}

/// What a node keeps.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema, Default)]
#[serde(rename_all = "lowercase")]
pub enum Mode {
    /// Everything of its own, in a managed PostgreSQL.
    #[default]
    Full,
    /// Only subscribed topics of others.
    Selective,
    /// A cache in front of others; never authoritative.
    Proxy,
}

impl Mode {
    /// The word in the configuration and on the wire.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Full => "full",
            Self::Selective => "selective",
            Self::Proxy => "proxy",
        }
    }
}

/// What this node is.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema, Default)]
#[serde(deny_unknown_fields, default)]
pub struct Node {
    /// `full`; or `proxy`, and `selective` with `database.backend: sqlite`: a cache of other nodes, which has nothing of its
    /// own. `selective` with PostgreSQL comes with the network and is refused in this version.
    pub mode: Mode,
}

/// Who may open the Unix socket's file; log-in there is by uid in any case.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema, Default)]
pub enum SocketMode {
    /// Only the daemon's user (and root).
    #[serde(rename = "0600")]
    #[default]
    Owner,
    /// Also the daemon's group.
    #[serde(rename = "0660")]
    Group,
    /// Everybody on the machine.
    #[serde(rename = "0666")]
    Everybody,
}

impl SocketMode {
    /// The permission bits.
    #[must_use]
    pub const fn bits(self) -> u32 {
        match self {
            Self::Owner => 0o600,
            Self::Group => 0o660,
            Self::Everybody => 0o666,
        }
    }
}

/// How far a node tells of itself by multicast DNS.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema, Default)]
#[serde(rename_all = "lowercase")]
pub enum Mdns {
    /// Nobody.
    Off,
    /// The networks whose addresses it listens on.
    #[default]
    Network,
    /// Also this machine, where it listens on a loopback address.
    Always,
}

/// How a node is found.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema, Default)]
#[serde(deny_unknown_fields, default)]
pub struct Discovery {
    /// Whom the node tells of itself (`_bib._tcp.local`): `off`, `network` or `always`. A node that listens on this
    /// machine alone, as it does by default, tells nobody.
    pub mdns: Mdns,
}

/// The API.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Grpc {
    /// Addresses for TLS; port 0 takes a free one; an empty list means the Unix socket alone. The default is this
    /// machine alone: a node is opened to a network by somebody who means it, with `0.0.0.0:4000` or `[::]:4000`.
    pub listen: Vec<SocketAddr>,
    /// The Unix socket, at most 100 bytes long. Default: `bibd.sock` in the runtime directory.
    pub unix_socket: Option<PathBuf>,
    /// Permissions of the Unix socket.
    pub socket_mode: SocketMode,
    /// The largest message either way. Clients count on at least 4 MiB.
    pub max_message_bytes: Size,
    /// How often an idle connection is asked whether it lives.
    pub keepalive_interval: Span,
    /// How long the answer to that may take.
    pub keepalive_timeout: Span,
    /// Answers gRPC server reflection, to whoever is logged in.
    pub reflection: bool,
    /// TLS connections at once.
    pub max_connections: u32,
    /// TLS connections at once from one address.
    pub max_connections_per_address: u32,
    /// Calls at once on one connection.
    pub max_streams: u32,
    /// How long a TLS handshake and the first bytes of HTTP/2 may take.
    pub handshake_timeout: Span,
    /// How long a call may take until its answer begins; streams may last longer.
    pub request_timeout: Span,
    /// How long a connection without calls is kept; without log-in a quarter of it.
    pub idle_timeout: Span,
    /// Bytes in flight on one stream.
    pub stream_window: Size,
    /// Bytes in flight on one connection.
    pub connection_window: Size,
    /// Requests by cost.
    pub rate_limit: RateLimit,
}

impl Default for Grpc {
    fn default() -> Self {
        Self {
            listen: vec![SocketAddr::from(([127, 0, 0, 1], 4000))],
            unix_socket: None,
            socket_mode: SocketMode::default(),
            max_message_bytes: Size(4 << 20),
            keepalive_interval: Span(Duration::from_secs(20)),
            keepalive_timeout: Span(Duration::from_secs(10)),
            reflection: false,
            max_connections: 1_024,
            max_connections_per_address: 256,
            max_streams: 128,
            handshake_timeout: Span(Duration::from_secs(10)),
            request_timeout: Span(Duration::from_secs(60)),
            idle_timeout: Span(Duration::from_secs(15 * 60)),
            stream_window: Size(4 << 20),
            connection_window: Size(8 << 20),
            rate_limit: RateLimit::default(),
        }
    }
}

/// A token bucket per caller: per key where one is shown, else per address. The owner of the node on the Unix socket
/// has none.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct RateLimit {
    /// Whether there is a limit.
    pub enabled: bool,
    /// Tokens a second; a cheap call costs 1, a dear one up to 50.
    pub per_second: u32,
    /// Tokens that gather while nobody calls.
    pub burst: u32,
}

impl Default for RateLimit {
    fn default() -> Self {
        Self { enabled: true, per_second: 200, burst: 1_000 }
    }
}

/// Certificates.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Tls {
    /// How long a server certificate is valid, 31 to 825 days; renewed 30 days before its end.
    pub server_validity_days: u16,
    /// How long a client certificate is valid, 1 to 90 days.
    pub client_validity_days: u16,
    /// Further DNS names or addresses for the server certificate.
    pub names: Vec<String>,
}

impl Default for Tls {
    fn default() -> Self {
        Self { server_validity_days: 365, client_validity_days: 90, names: Vec::new() }
    }
}

/// What stores the catalog.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema, Default)]
#[serde(rename_all = "lowercase")]
pub enum Backend {
    /// A managed PostgreSQL.
    #[default]
    Postgres,
    /// One file; only for nodes that are never authoritative.
    Sqlite,
}

/// What runs PostgreSQL.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema, Default)]
#[serde(rename_all = "lowercase")]
pub enum Provisioner {
    /// A pod of Kubernetes where bibd is one that may make it, else a container where Docker or Podman has or can pull
    /// the image, else the binaries of this machine. Chosen at the first start and kept.
    #[default]
    Auto,
    /// The binaries found on this machine.
    Process,
    /// Docker or Podman.
    Container,
    /// A pod of Kubernetes, made and watched by bibd.
    Kubernetes,
}

/// The managed PostgreSQL.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Database {
    /// `postgres`; or `sqlite` for nodes that are never authoritative. A `proxy` node always has SQLite.
    pub backend: Backend,
    /// `auto`, `process`, `container` or `kubernetes`. Once there is a database its own provisioner stays.
    pub provisioner: Provisioner,
    /// The container, where it is one.
    pub container: Container,
    /// The pod, where it is one; `bibd kubernetes manifests` prints its objects.
    pub kubernetes: KubernetesDatabase,
    /// Where `postgres` and `initdb` are. Default: PATH, then the distribution's directories.
    pub bin_dir: Option<PathBuf>,
    /// Where those of a newer major version are, for `bib admin db upgrade` and for the data that it carried over. Default:
    /// as `bin_dir`.
    pub upgrade_bin_dir: Option<PathBuf>,
    /// The user that PostgreSQL runs as when the daemon is root. Default: `bibd` where there is one, else `postgres`.
    pub run_as: Option<String>,
    /// `shared_buffers`.
    pub shared_buffers: Size,
    /// `max_wal_size`.
    pub max_wal: Size,
    /// Statements slower than this stand in PostgreSQL's log.
    pub slow_statement: Span,
    /// Connections of the use cases.
    pub connections: u32,
    /// Keep the database on a network file system, at your own risk.
    pub allow_network_filesystem: bool,
    /// How long PostgreSQL may take to start, with recovery.
    pub start_timeout: Span,
    /// How long PostgreSQL may take to stop, with its checkpoint.
    pub stop_timeout: Span,
    /// New passwords for its logins.
    pub rotation: Rotation,
    /// Opening it to a person for a while.
    pub break_glass: BreakGlass,
    /// The cache of a node that is never authoritative, instead of all of the above.
    pub cache: Cache,
}

/// New passwords for the database's logins.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Rotation {
    /// How old a password of the database becomes before it is replaced, 1 hour to 90 days.
    pub every: Span,
}

impl Default for Rotation {
    fn default() -> Self {
        Self { every: Span(Duration::from_secs(7 * 86_400)) }
    }
}

impl Default for Database {
    fn default() -> Self {
        Self {
            backend: Backend::default(),
            provisioner: Provisioner::default(),
            container: Container::default(),
            kubernetes: KubernetesDatabase::default(),
            bin_dir: None,
            upgrade_bin_dir: None,
            run_as: None,
            shared_buffers: Size(128 << 20),
            max_wal: Size(1 << 30),
            slow_statement: Span(Duration::from_secs(1)),
            connections: 16,
            allow_network_filesystem: false,
            start_timeout: Span(Duration::from_secs(120)),
            stop_timeout: Span(Duration::from_secs(60)),
            rotation: Rotation::default(),
            break_glass: BreakGlass::default(),
            cache: Cache::default(),
        }
    }
}

/// Whether chunks are compressed on disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema, Default)]
#[serde(rename_all = "lowercase")]
pub enum Compression {
    /// zstd where samples say that it helps.
    #[default]
    Auto,
    /// Never.
    Off,
}

/// The chunk store.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Blobs {
    /// Whether chunks are compressed on disk.
    pub compression: Compression,
    /// How long deleted chunks can be brought back, in hours; at least 24.
    pub trash_hours: u32,
    /// Stored bytes that the versions of one user may have brought; given back when they are withdrawn or deleted.
    /// Default: no limit but the disk.
    pub quota_bytes: Option<Size>,
    /// Raw bytes that one user's unfinished uploads may use.
    pub staging_quota_bytes: Size,
    /// Raw bytes being written or read at once.
    pub in_flight_bytes: Size,
    /// How often every stored chunk is read and checked. `0` means never.
    pub scrub_interval: Span,
    /// Object storage, for chunks that nobody has read for long.
    pub tier: Tier,
}

impl Default for Blobs {
    fn default() -> Self {
        Self {
            compression: Compression::default(),
            trash_hours: 24,
            quota_bytes: None,
            staging_quota_bytes: Size(1 << 40),
            in_flight_bytes: Size(64 << 20),
            scrub_interval: Span(Duration::from_secs(30 * 86_400)),
            tier: Tier::default(),
        }
    }
}

/// The audit log: where it is signed, sent, watched, and how long it stays.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Audit {
    /// Seconds between checkpoints while there are new entries, 1 to 3600.
    pub checkpoint_seconds: u32,
    /// The append-only file of checkpoints; best on another disk. Default: `checkpoints` beside the data directory's
    /// `postgres`.
    pub checkpoint_path: Option<PathBuf>,
    /// Where sealed entries are sent, in order: files, syslog, Elasticsearch, Splunk (`docs/audit.md`).
    pub export: Vec<audit::Sink>,
    /// Rules over the log, and where alerts go (`docs/audit.md`).
    pub alerts: alerts::Alerts,
    /// How long entries stay in the database.
    pub retention: audit::Retention,
}

impl Default for Audit {
    fn default() -> Self {
        Self {
            checkpoint_seconds: 60,
            checkpoint_path: None,
            export: Vec::new(),
            alerts: alerts::Alerts::default(),
            retention: audit::Retention::default(),
        }
    }
}

/// Backups.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Backup {
    /// The directory of the store, best on another machine's disk; or `s3://bucket/prefix`. Default: none, and no
    /// backups.
    pub store: Option<StoreLocation>,
    /// How an `s3://` store is reached.
    pub s3: S3,
    /// How often a backup is made, 1 hour to 30 days; 0s: only when somebody asks.
    pub every: Span,
    /// How often a logical dump is made beside, 1 hour to 30 days; 0s: only when somebody asks. It reads the whole
    /// database again and leads to no moment but its own; what it is for is another version of PostgreSQL.
    pub logical_every: Span,
    /// How many backups of each kind that is made on time are kept; older ones go with the log that only they need, 1 to
    /// 1000.
    pub keep: u32,
    /// How often the newest backup of each kind that is made on time is restored beside the node and looked at, 1 hour to
    /// 90 days.
    pub verify_every: Span,
    /// How much of the write-ahead log may wait for a store that cannot be reached; then PostgreSQL keeps it.
    pub spool_bytes: Size,
    /// How much of what was just written may be missing after a disaster, 1 s to 60 s.
    pub archive_timeout: Span,
}

impl Default for Backup {
    fn default() -> Self {
        Self {
            store: None,
            s3: S3::default(),
            every: Span(Duration::from_secs(86_400)),
            logical_every: Span(Duration::ZERO),
            keep: 7,
            verify_every: Span(Duration::from_secs(7 * 86_400)),
            spool_bytes: Size(1 << 30),
            archive_timeout: Span(Duration::from_secs(60)),
        }
    }
}

/// How data is encrypted on the disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema, Default)]
#[serde(rename_all = "lowercase")]
pub enum AtRestMode {
    /// Nothing new is encrypted. What was encrypted before stays so, and is unlocked.
    #[default]
    Off,
    /// By the file system (fscrypt), with a key that is derived from the node's identity. What is there already is
    /// converted at the next start.
    Fscrypt,
}

/// What is encrypted on the disk.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema, Default)]
#[serde(deny_unknown_fields, default)]
pub struct Encryption {
    /// The chunks, and the database with its log. It protects a disk that is lost without `identity/`.
    pub at_rest: AtRestMode,
}

/// How much is logged.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema, Default)]
#[serde(rename_all = "lowercase")]
pub enum Level {
    /// Somebody must look.
    Error,
    /// Something is odd.
    Warn,
    /// What a node does.
    #[default]
    Info,
    /// How it does it.
    Debug,
    /// Everything.
    Trace,
}

impl Level {
    /// The word.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Error => "error",
            Self::Warn => "warn",
            Self::Info => "info",
            Self::Debug => "debug",
            Self::Trace => "trace",
        }
    }
}

/// How log lines look.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema, Default)]
#[serde(rename_all = "lowercase")]
pub enum LogFormat {
    /// For eyes.
    #[default]
    Text,
    /// One JSON object a line.
    Json,
}

/// The daemon's own log.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema, Default)]
#[serde(deny_unknown_fields, default)]
pub struct Log {
    /// How much.
    pub level: Level,
    /// How it looks.
    pub format: LogFormat,
    /// A file that lines are appended to. Default: standard error.
    pub file: Option<PathBuf>,
}

/// Metrics for Prometheus.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema, Default)]
#[serde(deny_unknown_fields, default)]
pub struct Metrics {
    /// Where `/metrics` is served, in clear and to anybody. Default: nowhere; `bib admin metrics` always works.
    pub listen: Option<SocketAddr>,
}

/// Bounds of the daemon as a whole.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Limits {
    /// How long running calls are given when the daemon stops.
    pub drain_timeout: Span,
    /// Refuse uploads when less than this is free on the data directory's disk.
    pub min_free_bytes: Size,
}

impl Default for Limits {
    fn default() -> Self {
        Self { drain_timeout: Span(Duration::from_secs(30)), min_free_bytes: Size(256 << 20) }
    }
}

impl Config {
    /// Is this a node with a cache instead of a database of its own?
    #[must_use]
    pub fn is_cache(&self) -> bool {
        match self.node.mode {
            Mode::Full => false,
            Mode::Selective => self.database.backend == Backend::Sqlite,
            Mode::Proxy => true,
        }
    }

    /// The JSON schema of the configuration file.
    #[must_use]
    pub fn schema() -> serde_json::Value {
        schemars::schema_for!(Config).to_value()
    }
}
