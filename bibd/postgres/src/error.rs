//! Everything that can go wrong with the managed PostgreSQL, and what a person can do about it.

use std::path::PathBuf;
use std::time::Duration;

use crate::kubernetes::Trouble;
use crate::secrets::SecretStoreError;
use crate::tcp::TlsError;
use crate::version::{NEWEST_MAJOR, OLDEST_MAJOR, Version};

/// An error of this room. Holds no secret: statements, passwords and verifiers are never part of it.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// No usable binaries.
    #[error("no PostgreSQL {OLDEST_MAJOR} to {NEWEST_MAJOR} found{}", .looked.iter().map(|line| format!("; {line}")).collect::<String>())]
    NoBinaries {
        /// Each place with the reason why it was passed over.
        looked: Vec<String>,
    },
    /// The binaries found cannot run this data directory.
    #[error("the data directory belongs to PostgreSQL {data}, the binaries in `{}` are {found}", bin_dir.display())]
    WrongMajor {
        /// The major version that made the data.
        data: u32,
        /// The binaries' version.
        found: Version,
        /// Where they are.
        bin_dir: PathBuf,
    },
    /// The daemon is root and there is nobody to run the server as.
    #[error("PostgreSQL does not run as root, and there is no user `bibd` or `postgres`")]
    NoAccount,
    /// The configured user does not exist or cannot be used.
    #[error("the server cannot run as `{user}`: {reason}")]
    BadAccount {
        /// The user as configured.
        user: String,
        /// Why.
        reason: String,
    },
    /// The server's user cannot reach a directory.
    #[error("user {uid} cannot pass through the directory `{}`", directory.display())]
    NotTraversable {
        /// The first directory in the way.
        directory: PathBuf,
        /// The server's user id.
        uid: u32,
    },
    /// The socket's path is too long for the operating system.
    #[error("the socket path `{}` has {bytes} bytes, at most {max} are possible", path.display())]
    SocketPathTooLong {
        /// The path.
        path: PathBuf,
        /// Its length.
        bytes: usize,
        /// The limit.
        max: usize,
    },
    /// PGDATA would lie on a network file system.
    #[error("`{}` lies on a network file system ({kind})", path.display())]
    NetworkFileSystem {
        /// The path.
        path: PathBuf,
        /// The file system's name.
        kind: String,
    },
    /// A directory of ours belongs to somebody else or is something else.
    #[error("`{}` {problem}", path.display())]
    UnsafePath {
        /// The path.
        path: PathBuf,
        /// What is wrong with it.
        problem: String,
    },
    /// `ready`, but PGDATA is gone.
    #[error("`{}` says that the database is ready, but `{}` does not exist", provisioner.display(), data.display())]
    DataMissing {
        /// The PROVISIONER file.
        provisioner: PathBuf,
        /// PGDATA.
        data: PathBuf,
    },
    /// `start` before `provision` succeeded.
    #[error("there is no database to start")]
    NotProvisioned,
    /// PGDATA without PROVISIONER.
    #[error("`{}` exists, but nothing says that BIB made it (no `{}`)", data.display(), provisioner.display())]
    DataUnknown {
        /// PGDATA.
        data: PathBuf,
        /// The PROVISIONER file.
        provisioner: PathBuf,
    },
    /// PGDATA is another cluster than the remembered one.
    #[error("`{}` is cluster {found}, expected {expected}", data.display())]
    OtherCluster {
        /// PGDATA, or the socket of a running server.
        data: PathBuf,
        /// The remembered system identifier.
        expected: u64,
        /// The one found.
        found: u64,
    },
    /// The PROVISIONER file is not understood.
    #[error("`{}` is damaged: {problem}", path.display())]
    ProvisionerDamaged {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        problem: String,
    },
    /// Another provisioner was chosen before.
    #[error("this database is run by the provisioner `{chosen}`, not `{wanted}`")]
    OtherProvisioner {
        /// The remembered choice.
        chosen: String,
        /// The one that was asked for.
        wanted: &'static str,
    },
    /// It is to be moved to where it is.
    #[error("this database is run by the provisioner `{choice}` already")]
    AlreadyThere {
        /// The provisioner.
        choice: &'static str,
    },
    /// The plan of a move is not understood.
    #[error("`{}` is damaged", path.display())]
    MoveDamaged {
        /// The file.
        path: PathBuf,
    },
    /// The plan of an upgrade is not understood.
    #[error("`{}` is damaged", path.display())]
    UpgradeDamaged {
        /// The file.
        path: PathBuf,
    },
    /// No programs of a newer version.
    #[error("the database is of PostgreSQL {from}, and no {} was found{}", newer(*to), .looked.iter().map(|line| format!("; {line}")).collect::<String>())]
    NoNewerMajor {
        /// The version that made the data.
        from: u32,
        /// The one that was asked for.
        to: Option<u32>,
        /// Each place with what is there.
        looked: Vec<String>,
    },
    /// An upgrade goes forward only.
    #[error("the database is of PostgreSQL {from}, which is not older than {to}")]
    NotNewer {
        /// The version that made the data.
        from: u32,
        /// The one that was asked for.
        to: u32,
    },
    /// The cluster that the last upgrade replaced is still there.
    #[error("`{}` is still there, from the last upgrade", path.display())]
    OldDataKept {
        /// The directory.
        path: PathBuf,
    },
    /// There is no cluster that an upgrade replaced.
    #[error("no former database is kept")]
    NothingKept,
    /// Dump and new cluster do not fit beside the old one.
    #[error(
        "an upgrade takes up to {} MiB beside the database, and {} MiB are to stay free: `{}` has {} MiB",
        needed_bytes.div_ceil(1 << 20), reserve_bytes >> 20, path.display(), free_bytes >> 20
    )]
    NoRoomToUpgrade {
        /// Where.
        path: PathBuf,
        /// What it takes at most.
        needed_bytes: u64,
        /// What must stay free.
        reserve_bytes: u64,
        /// What is free.
        free_bytes: u64,
    },
    /// The newer programs lack extensions.
    #[error("PostgreSQL {major} has not the extensions {}, which the database uses", names.join(", "))]
    ExtensionsMissing {
        /// Their names.
        names: Vec<String>,
        /// The newer version.
        major: u32,
    },
    /// What runs the server cannot upgrade it.
    #[error("a database that is run by the provisioner `{choice}` cannot be upgraded there")]
    UpgradeElsewhere {
        /// The provisioner.
        choice: &'static str,
    },
    /// A start died while it upgraded.
    #[error("the upgrade was interrupted before the new database was whole")]
    UpgradeInterrupted,
    /// Log that the archive has not, which an upgrade would leave behind.
    #[error("{segments} segments of the log are not archived yet")]
    LogWaits {
        /// How many.
        segments: usize,
    },
    /// The new database is not what the old one was.
    #[error("`{table}` is not the same in the new database: {what}")]
    ContentDiffers {
        /// The table or sequence.
        table: String,
        /// What it has in both.
        what: String,
    },
    /// Whoever looked at the new database refused it.
    #[error("the new database is refused: {0}")]
    NotAsItWas(String),
    /// `pg_control` is not one.
    #[error("`{}` is damaged", path.display())]
    ControlDamaged {
        /// The file.
        path: PathBuf,
    },
    /// No container engine that can run the server.
    #[error("no container engine{}", .looked.iter().map(|line| format!("; {line}")).collect::<String>())]
    NoEngine {
        /// Each socket with the reason why it was passed over.
        looked: Vec<String>,
    },
    /// The container engine refused.
    #[error("{what}: {engine} says: {reason}")]
    Engine {
        /// What was attempted.
        what: &'static str,
        /// Which engine.
        engine: String,
        /// Its words.
        reason: String,
    },
    /// The container engine does not answer.
    #[error("{what}: {engine} does not answer within {} s", deadline.as_secs())]
    EngineSilent {
        /// What was attempted.
        what: &'static str,
        /// Which engine.
        engine: String,
        /// How long it was waited for.
        deadline: Duration,
    },
    /// The image is not here.
    #[error("the image `{image}` is not here: {reason}")]
    ImageAbsent {
        /// The image.
        image: String,
        /// Why it was not fetched.
        reason: String,
    },
    /// The image is another one than the configured.
    #[error("the image `{image}` is {found}, not {expected}")]
    OtherDigest {
        /// The image.
        image: String,
        /// The configured digest.
        expected: String,
        /// Its digests.
        found: String,
    },
    /// The image cannot run the server.
    #[error("the image `{image}` cannot run the server: {reason}")]
    ImageUnusable {
        /// The image.
        image: String,
        /// Why.
        reason: String,
    },
    /// The container's name is taken.
    #[error("there is a container `{name}` that is not this node's: {reason}")]
    ForeignContainer {
        /// The container.
        name: String,
        /// Why.
        reason: String,
    },
    /// The engine's processes are not processes of this machine.
    #[error("the server runs in a container, but its process {pid} is not to be seen from here")]
    HiddenContainer {
        /// The process, as the engine counts.
        pid: i64,
    },
    /// Something of Kubernetes.
    #[error(transparent)]
    Kubernetes(Box<Trouble>),
    /// The database exists, its passwords do not.
    #[error("the database exists, but its sealed passwords (`db`) do not")]
    SecretsMissing,
    /// The sealed document is not readable.
    #[error("the sealed passwords (`db`) are damaged at line {line}, column {column}")]
    SecretsDamaged {
        /// Line.
        line: usize,
        /// Column.
        column: usize,
    },
    /// The sealed document is of another release.
    #[error("the sealed passwords (`db`) have a format that this release does not know")]
    SecretsUnknownFormat,
    /// A role has no password yet.
    #[error("there is no password for `{group}` yet")]
    SecretsIncomplete {
        /// The role.
        group: &'static str,
    },
    /// The sealed document of certificates is not readable.
    #[error("the sealed certificates (`db-tls`) are damaged at line {line}, column {column}")]
    CertificatesDamaged {
        /// Line.
        line: usize,
        /// Column.
        column: usize,
    },
    /// The sealed document of certificates is of another release.
    #[error("the sealed certificates (`db-tls`) have a format that this release does not know")]
    CertificatesUnknownFormat,
    /// No certificates were made yet.
    #[error("the database has no certificates yet")]
    CertificatesMissing,
    /// A certificate could not be made.
    #[error("{what}")]
    Certificate {
        /// What was attempted.
        what: &'static str,
        /// Why not.
        #[source]
        source: rcgen::Error,
    },
    /// There is no TLS with the server.
    #[error("look at the server's certificate")]
    Tls(#[source] Box<TlsError>),
    /// The server cannot be called so.
    #[error("`{name}` is neither a host name nor an address that a certificate can name")]
    BadServerName {
        /// The name.
        name: String,
    },
    /// The store of secrets failed.
    #[error("sealed passwords: {0}")]
    SecretStore(#[from] SecretStoreError),
    /// A tool of PostgreSQL failed.
    #[error("`{tool}` failed ({status}): {output}")]
    Tool {
        /// `initdb`, `pg_controldata`..
        tool: &'static str,
        /// How it ended.
        status: String,
        /// The end of what it printed.
        output: String,
    },
    /// A tool or the server took too long.
    #[error("{what} took longer than {} s", deadline.as_secs_f32())]
    Deadline {
        /// What was waited for.
        what: &'static str,
        /// How long.
        deadline: Duration,
    },
    /// The server did not come up.
    #[error("PostgreSQL did not start: {reason}{}", .log.iter().map(|line| format!("\n  {line}")).collect::<String>())]
    StartFailed {
        /// Why, in one sentence.
        reason: String,
        /// The last lines of its log.
        log: Vec<String>,
    },
    /// The server ended, but not cleanly.
    #[error("PostgreSQL stopped in the state `{state}`")]
    UncleanStop {
        /// The state in `pg_control`.
        state: String,
    },
    /// A server runs in PGDATA that does not look like ours.
    #[error("process {pid} uses the data directory, but is not our server: {reason}")]
    ForeignServer {
        /// The process.
        pid: u32,
        /// Why.
        reason: String,
    },
    /// The audit refused a privileged act.
    #[error("the superuser was not used for `{act}`: it could not be recorded")]
    NotRecorded {
        /// The act.
        act: &'static str,
        /// Why.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// An input or output error on a path.
    #[error("{what} `{}`", path.display())]
    Io {
        /// `open`, `write`, `rename`..
        what: &'static str,
        /// The path.
        path: PathBuf,
        /// The cause.
        #[source]
        source: std::io::Error,
    },
    /// A statement failed.
    #[error("database: {what}")]
    Sql {
        /// What was attempted.
        what: &'static str,
        /// The cause. Carries no statement text.
        #[source]
        source: sqlx::Error,
    },
}

impl Error {
    /// An [`Error::Io`] maker for `map_err`.
    pub(crate) fn io(what: &'static str, path: impl Into<PathBuf>) -> impl FnOnce(std::io::Error) -> Self {
        let path = path.into();
        move |source| Self::Io { what, path, source }
    }

    /// An [`Error::Sql`] maker for `map_err`.
    pub(crate) fn sql(what: &'static str) -> impl FnOnce(sqlx::Error) -> Self {
        move |source| Self::Sql { what, source }
    }

    /// What a person can do about it, in one or two lines; `None` when the sentence itself says it all.
    pub fn hint(&self) -> Option<String> {
        Some(match self {
            Self::NoBinaries { .. } => {
                "install it (Debian, Ubuntu: apt-get install postgresql; Fedora: dnf install postgresql-server) \
                 or set database.bin_dir"
                    .to_owned()
            }
            Self::WrongMajor { data, found, .. } if found.major > *data => {
                format!(
                    "install PostgreSQL {data} again, or set database.bin_dir to its directory; to go on with {}, keep \
                     both installed, start with {data}, and run `bib admin db upgrade`",
                    found.major
                )
            }
            Self::WrongMajor { data, .. } => {
                format!("install PostgreSQL {data} again or set database.bin_dir to its directory")
            }
            Self::NoAccount => "create one: useradd --system --no-create-home bibd; or set database.run_as".to_owned(),
            Self::BadAccount { .. } => "set database.run_as to an existing unprivileged user".to_owned(),
            Self::NotTraversable { directory, .. } => format!("chmod o+x {}", shell_quoted(directory)),
            Self::SocketPathTooLong { .. } => "set a shorter runtime directory".to_owned(),
            Self::NetworkFileSystem { .. } => {
                "move the data directory to a local disk, or set database.allow_network_fs if you know that it \
                 honours fsync and locks"
                    .to_owned()
            }
            Self::DataMissing { .. } => {
                "restore it from a backup, or mount the volume that holds it; BIB never starts empty over a \
                 database that existed"
                    .to_owned()
            }
            Self::DataUnknown { data, .. } => {
                format!(
                    "if it is not needed, move {} away; if it is, restore PROVISIONER from a backup",
                    shell_quoted(data)
                )
            }
            Self::OtherCluster { .. } => "put back the data directory that belongs to this node".to_owned(),
            Self::ProvisionerDamaged { .. } => "restore the file from a backup".to_owned(),
            Self::OtherProvisioner { .. } => "set database.provisioner to that one, or move the database: bib admin db move".to_owned(),
            Self::MoveDamaged { path } => format!("remove it: {}; the database stays where it is", shell_quoted(path)),
            Self::UpgradeDamaged { path } => {
                format!("remove it: {}; the database stays as it is", shell_quoted(path))
            }
            Self::NoNewerMajor { .. } => {
                "install one beside the version in use, or set database.upgrade_bin_dir to the directory of its programs \
                 and restart bibd"
                    .to_owned()
            }
            Self::NotNewer { .. } => {
                "an older version cannot read the data: restore a backup that it made, with its programs".to_owned()
            }
            Self::OldDataKept { .. } => {
                "when nothing is missing in the present database: bib admin db upgrade --remove-old".to_owned()
            }
            Self::NoRoomToUpgrade { .. } => "make room on that disk".to_owned(),
            Self::ExtensionsMissing { major, .. } => {
                format!("install them for PostgreSQL {major}, or drop them here")
            }
            Self::UpgradeElsewhere { .. } => {
                "hand it to a process first: bib admin db move --to process; and back when it is upgraded".to_owned()
            }
            Self::LogWaits { .. } => "see what health says of `backup`, mend it, and plan the upgrade again".to_owned(),
            Self::UpgradeInterrupted => {
                "plan it again, and give the start the time that it takes: bib admin db upgrade".to_owned()
            }
            Self::ControlDamaged { .. } => "restore the database from a backup".to_owned(),
            Self::NoEngine { .. } => {
                "start Docker or Podman (systemctl start docker), let the daemon's user reach its socket, or set \
                 database.container.socket"
                    .to_owned()
            }
            Self::Engine { .. } => "`bibd doctor` looks for the cause; the engine's own log knows more".to_owned(),
            Self::EngineSilent { .. } => "restart the engine: systemctl restart docker, or podman.socket".to_owned(),
            Self::ImageAbsent { .. } => {
                "bring it here (docker load), build one (cargo xtask image), or set database.container.image".to_owned()
            }
            Self::OtherDigest { .. } => {
                "set database.container.digest to the image that you trust, or pull that one".to_owned()
            }
            Self::ImageUnusable { .. } => {
                format!("set database.container.image to one with PostgreSQL {OLDEST_MAJOR} to {NEWEST_MAJOR}")
            }
            Self::ForeignContainer { name, .. } => {
                format!("look at it with `docker inspect {name}`, and remove it if it is not needed")
            }
            Self::HiddenContainer { .. } => {
                "run bibd on the machine of the engine, outside of a container, or set database.provisioner to process"
                    .to_owned()
            }
            Self::Kubernetes(trouble) => trouble.hint(),
            Self::SecretsMissing | Self::SecretsDamaged { .. } => {
                "restore secrets/db.age from a backup; it is never made anew over an existing database".to_owned()
            }
            Self::CertificatesDamaged { .. } => {
                "restore secrets/db-tls.age from a backup, or remove it: the next start makes new certificates".to_owned()
            }
            Self::CertificatesMissing | Self::Tls(_) => {
                "look at the server's log; certificates are made and renewed when the daemon starts".to_owned()
            }
            Self::BadServerName { .. } => "give the server a host name or an address".to_owned(),
            Self::SecretsUnknownFormat | Self::CertificatesUnknownFormat => "start the release that wrote it".to_owned(),
            Self::ForeignServer { pid, .. } => format!("look at process {pid} and stop it if it is not needed"),
            Self::Io { source, .. } if source.kind() == std::io::ErrorKind::ReadOnlyFilesystem => {
                "the file system is mounted read-only: look at the kernel's log for the cause (dmesg), then mount it to \
                 be written"
                    .to_owned()
            }
            Self::Io { source, .. } if source.kind() == std::io::ErrorKind::PermissionDenied => {
                "let the daemon's user write there, or name another data directory".to_owned()
            }
            Self::UncleanStop { .. } => "the next start recovers; look at the server's log for the cause".to_owned(),
            _ => return None,
        })
    }
}

/// What was looked for.
fn newer(to: Option<u32>) -> String {
    to.map_or_else(|| "newer one".to_owned(), |to| format!("PostgreSQL {to}"))
}

/// A path that can be pasted into a shell.
fn shell_quoted(path: &std::path::Path) -> String {
    let text = path.display().to_string();
    let plain = |c: char| c.is_ascii_alphanumeric() || "/._-+".contains(c);
    if text.chars().all(plain) { text } else { format!("'{}'", text.replace('\'', "'\\''")) }
}
