//! `database.container`: the engine that runs PostgreSQL, its image and what it may use.

use std::path::PathBuf;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{Size, Span};

/// PostgreSQL's container and the engine that runs it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Container {
    /// The engine's API socket. Default: Podman's of the daemon's user, Docker's, Podman's of the system.
    pub socket: Option<PathBuf>,
    /// Any image with PostgreSQL 15 to 18 and a shell; pulled when it is not here.
    pub image: String,
    /// `sha256:` and 64 hex digits: the image's digest in its registry, or its id. Another image is refused.
    pub digest: Option<String>,
    /// A pull in which nothing moves for this long has failed.
    pub pull_timeout: Span,
    /// Where SELinux is in force: the engine labels the database's directories for this container alone.
    pub selinux_relabel: bool,
    /// Memory, at least 256MiB more than `shared_buffers`. There is no swap beyond it.
    pub memory: Size,
    /// Processors; 0 is all of the machine.
    pub cpus: u32,
    /// Processes, at least 150: one for each connection, and those of the server itself.
    pub pids: u32,
    /// Shared memory for parallel queries, at least 16MiB.
    pub shm: Size,
    /// The size of `/tmp` and of `/run/postgresql` each, at least 1MiB.
    pub tmpfs: Size,
    /// Open files of each process, at least 1024.
    pub open_files: u32,
}

impl Default for Container {
    fn default() -> Self {
        let usual = bibd_postgres::ContainerSettings::default();
        Self {
            socket: usual.socket,
            image: usual.image,
            digest: usual.digest,
            pull_timeout: Span(usual.pull_stalled),
            selinux_relabel: usual.relabel,
            memory: Size(usual.limits.memory_bytes),
            cpus: usual.limits.cpus,
            pids: usual.limits.pids,
            shm: Size(usual.limits.shm_bytes),
            tmpfs: Size(usual.limits.tmpfs_bytes),
            open_files: usual.limits.open_files,
        }
    }
}
