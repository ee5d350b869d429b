//! What a container of ours may be: the flags of the security design, C.5, in one place. Pure.
//!
//! The server's and the tools' containers differ in command and mounts alone. Paths inside are those of the host, so
//! that the generated files and what PostgreSQL reports mean the same on both sides.

use std::collections::{BTreeMap, HashMap};
use std::path::{Path, PathBuf};
use std::time::Duration;

use bollard::models::{
    ContainerCreateBody, HealthConfig, HostConfig, HostConfigLogConfig, Mount, MountType, ResourcesUlimits,
    RestartPolicy, RestartPolicyNameEnum,
};
use sha2::{Digest as _, Sha256};

use crate::account::Account;
use crate::settings::ContainerLimits;

/// Whose container it is: the node.
pub(crate) const NODE: &str = "bib.node";
/// Whose container it is: the data directory.
pub(crate) const HOME: &str = "bib.home";
/// What the container was made from; another one is replaced.
pub(crate) const FINGERPRINT: &str = "bib.fingerprint";
/// Where the programs are in the image.
pub(crate) const BIN_DIR: &str = "bib.bin-dir";
/// What they say their version is.
pub(crate) const BANNER: &str = "bib.banner";

/// No core dumps, files for nobody else, then the program: same process, so that the server is the container's first.
const PRELUDE: &str = "umask 077 && ulimit -c 0 && exec \"$@\"";
/// The same, with what the program prints in a file: the engine keeps no log of the server.
const PRELUDE_LOGGED: &str = "log=$1; shift; umask 077 && ulimit -c 0 && exec \"$@\" >\"$log\" 2>&1";
/// Ours, whatever the image's volumes are: an anonymous volume would be a place that nobody looks after.
const EMPTY: &str = "ro,noexec,nosuid,nodev,size=64k";

/// The kernel counts a user's processes on the whole machine, other servers' too; `pids` counts the container's.
const LEAST_PROCESSES: u64 = 4096;

/// A container, as far as ours differ from one another. Its `Debug` text names it: see [`Spec::fingerprint`].
#[derive(Debug, Clone)]
pub(crate) struct Spec {
    /// The image's id: a name could mean another image tomorrow.
    pub(crate) image: String,
    pub(crate) account: Account,
    pub(crate) limits: ContainerLimits,
    /// Processors of the machine: the engine refuses to promise more.
    pub(crate) cpus: u32,
    pub(crate) keep_id: bool,
    /// Host directories, writable at the same path.
    pub(crate) writable: Vec<PathBuf>,
    /// A file with one line, the server's user: `initdb` looks its own name up. Its own list, when absent.
    pub(crate) passwd: Option<PathBuf>,
    /// Whether the engine labels them for SELinux.
    pub(crate) relabel: bool,
    /// Volumes that the image declares.
    pub(crate) volumes: Vec<String>,
    pub(crate) command: Vec<String>,
    /// Where the command's output goes; to whoever is attached when absent.
    pub(crate) log: Option<PathBuf>,
    /// `pg_isready` with its arguments, for the server's container.
    pub(crate) health: Vec<String>,
    pub(crate) stop_deadline: Duration,
    pub(crate) labels: BTreeMap<&'static str, String>,
}

impl Spec {
    /// Equal for containers that are made alike, by this release.
    pub(crate) fn fingerprint(&self) -> String {
        let digest = Sha256::digest(format!("{self:?}"));
        digest.iter().take(16).map(|byte| format!("{byte:02x}")).collect()
    }

    /// What the engine is asked for.
    pub(crate) fn body(&self) -> ContainerCreateBody {
        let mut labels: HashMap<String, String> =
            self.labels.iter().map(|(name, value)| ((*name).to_owned(), value.clone())).collect();
        labels.insert(FINGERPRINT.to_owned(), self.fingerprint());
        let mut command = vec!["-c".to_owned()];
        match &self.log {
            None => command.extend([PRELUDE.to_owned(), "sh".to_owned()]),
            Some(log) => {
                command.extend([PRELUDE_LOGGED.to_owned(), "sh".to_owned(), log.display().to_string()]);
            }
        }
        command.extend(self.command.iter().cloned());
        ContainerCreateBody {
            image: Some(self.image.clone()),
            user: Some(format!("{}:{}", self.account.uid, self.account.gid)),
            hostname: Some("bibd-postgres".to_owned()),
            working_dir: Some("/".to_owned()),
            entrypoint: Some(vec!["/bin/sh".to_owned()]),
            cmd: Some(command),
            env: Some(environment()),
            labels: Some(labels),
            network_disabled: Some(true),
            attach_stdout: Some(self.log.is_none()),
            attach_stderr: Some(self.log.is_none()),
            stop_signal: Some("SIGINT".to_owned()),
            stop_timeout: i64::try_from(self.stop_deadline.as_secs().max(60)).ok(),
            healthcheck: Some(self.healthcheck()),
            host_config: Some(self.host_config()),
            ..ContainerCreateBody::default()
        }
    }

    /// For who looks with `docker ps`; what we go by is our own probe. The image's own check is never run.
    fn healthcheck(&self) -> HealthConfig {
        if self.health.is_empty() {
            return HealthConfig { test: Some(vec!["NONE".to_owned()]), ..HealthConfig::default() };
        }
        let test = std::iter::once("CMD".to_owned()).chain(self.health.iter().cloned()).collect();
        let nanoseconds = |seconds: i64| Some(seconds * 1_000_000_000);
        HealthConfig {
            test: Some(test),
            interval: nanoseconds(30),
            timeout: nanoseconds(5),
            retries: Some(3),
            start_period: nanoseconds(60),
            start_interval: None,
        }
    }

    fn host_config(&self) -> HostConfig {
        let limits = &self.limits;
        let signed = |bytes: u64| i64::try_from(bytes).unwrap_or(i64::MAX);
        let cpus = if limits.cpus == 0 { self.cpus } else { limits.cpus.min(self.cpus) };
        let ulimit = |name: &str, value: u64| ResourcesUlimits {
            name: Some(name.to_owned()),
            soft: Some(signed(value)),
            hard: Some(signed(value)),
        };
        let tmpfs = format!("rw,noexec,nosuid,nodev,size={}", limits.tmpfs_bytes);
        let mut places: HashMap<String, String> =
            self.volumes.iter().map(|volume| (volume.clone(), EMPTY.to_owned())).collect();
        places.extend(["/tmp", "/run/postgresql"].map(|path| (path.to_owned(), tmpfs.clone())));
        let own = self.writable.iter().map(|path| (path.as_path(), path.as_path(), false));
        let passwd = self.passwd.iter().map(|file| (file.as_path(), Path::new("/etc/passwd"), true));
        let places_of_ours: Vec<_> = own.chain(passwd).collect();
        let mounts = places_of_ours.iter().map(|(source, target, read_only)| bind(source, target, *read_only));
        // Labels can only be asked for in the engines' older notation, in which a path has no colon.
        let labelled = places_of_ours.iter().map(|(source, target, read_only)| {
            format!("{}:{}:{}Z", source.display(), target.display(), if *read_only { "ro," } else { "" })
        });
        HostConfig {
            network_mode: Some("none".to_owned()),
            readonly_rootfs: Some(true),
            cap_drop: Some(vec!["ALL".to_owned()]),
            security_opt: Some(vec!["no-new-privileges".to_owned()]),
            privileged: Some(false),
            ipc_mode: Some("private".to_owned()),
            userns_mode: self.keep_id.then(|| "keep-id".to_owned()),
            mounts: (!self.relabel).then(|| mounts.collect()),
            binds: self.relabel.then(|| labelled.collect()),
            tmpfs: Some(places),
            memory: Some(signed(limits.memory_bytes)),
            // The same: a database that swaps is slower than one that is told that there is no more.
            memory_swap: Some(signed(limits.memory_bytes)),
            nano_cpus: Some(i64::from(cpus) * 1_000_000_000),
            pids_limit: Some(i64::from(limits.pids)),
            shm_size: Some(signed(limits.shm_bytes)),
            oom_score_adj: Some(0),
            // All of them: what an engine would choose itself may be more than it can give.
            ulimits: Some(vec![
                ulimit("core", 0),
                ulimit("nofile", u64::from(limits.open_files)),
                ulimit("nproc", u64::from(limits.pids).saturating_mul(4).max(LEAST_PROCESSES)),
            ]),
            log_config: self.log.is_some().then(|| HostConfigLogConfig { typ: Some("none".to_owned()), config: None }),
            // We restart it ourselves, with pauses, and only while it should run.
            restart_policy: Some(RestartPolicy { name: Some(RestartPolicyNameEnum::NO), maximum_retry_count: None }),
            ..HostConfig::default()
        }
    }
}

/// Nothing secret, ever: everybody who may ask the engine reads it. The last two make the kernel, when the container
/// has no memory left, end one session instead of the server.
fn environment() -> Vec<String> {
    ["LC_ALL=C", "TZ=UTC", "PG_OOM_ADJUST_FILE=/proc/self/oom_score_adj", "PG_OOM_ADJUST_VALUE=200"]
        .map(str::to_owned)
        .to_vec()
}

fn bind(source: &Path, target: &Path, read_only: bool) -> Mount {
    Mount {
        typ: Some(MountType::BIND),
        source: Some(source.display().to_string()),
        target: Some(target.display().to_string()),
        read_only: Some(read_only),
        ..Mount::default()
    }
}
