//! What a cache node tells of itself, and why it does nothing else.

use bib_core::Timestamp;
use bib_core::access::Verb;
use bibd_cache::Cache;

use super::base::allow_node;
use super::error::ServiceError;
use crate::actor::Call;
use crate::config::Mode;
use crate::errors::ErrorCode;
use crate::front::Front;

/// The calls that need nothing of a node's own. Those that anybody may make never get here.
const ANSWERED: [&str; 2] = ["NodeService/GetSelfNode", "grpc.reflection.v1.ServerReflection/ServerReflectionInfo"];

/// Lets a call through that a node without anything of its own can answer.
///
/// # Errors
/// [`ErrorCode::NOT_AUTHORITATIVE`] with what the node is.
pub fn allow(mode: Mode, method: &str) -> Result<(), ServiceError> {
    if ANSWERED.contains(&method) {
        return Ok(());
    }
    let mode = mode.as_str();
    Err(ServiceError::conflict(
        ErrorCode::NOT_AUTHORITATIVE,
        format!("this node is a cache (`node.mode: {mode}`) and has nothing of its own: it does not answer {method}"),
        "ask a full node: `bib --node ADDRESS ...`; to make this one a full node, set `node.mode: full` on another data \
         directory",
    ))
}

/// A cache node at one moment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CacheNodeState {
    /// When the daemon started.
    pub started_at: Timestamp,
    /// Raised by every restore.
    pub epoch: u64,
    /// The version of SQLite.
    pub version: String,
    /// The migration that the cache is at.
    pub schema: u32,
    /// The file.
    pub path: String,
    /// Bytes that are kept.
    pub kept_bytes: u64,
    /// The length of the file.
    pub file_bytes: u64,
    /// What is free on its file system.
    pub disk_free_bytes: u64,
    /// The size of that.
    pub disk_total_bytes: u64,
}

/// The use cases. Cheap to clone.
#[derive(Clone)]
pub struct CacheNodeUseCases {
    cache: Cache,
    started_at: Timestamp,
    epoch: u64,
}

impl CacheNodeUseCases {
    /// Over the cache of the node behind `front`.
    #[must_use]
    pub(crate) fn new(front: &Front, cache: Cache, epoch: u64) -> Self {
        Self { cache, started_at: front.clock.now(), epoch }
    }

    /// How the node is.
    ///
    /// # Errors
    /// When the caller may not see it; [`ErrorCode::STORE_UNAVAILABLE`] when the cache does not answer.
    pub async fn state(&self, call: &Call) -> Result<CacheNodeState, ServiceError> {
        allow_node(call, Verb::NodeRead)?;
        let gone = |error: bibd_cache::Error| {
            tracing::warn!(error = &error as &dyn std::error::Error, "the cache does not answer");
            ServiceError::unavailable(ErrorCode::STORE_UNAVAILABLE, "the cache does not answer")
        };
        let usage = self.cache.usage().await.map_err(gone)?;
        let disk = rustix::fs::statvfs(self.cache.path()).map_err(ServiceError::internal)?;
        Ok(CacheNodeState {
            started_at: self.started_at,
            epoch: self.epoch,
            version: self.cache.version().await.map_err(gone)?,
            schema: self.cache.schema().await.map_err(gone)?,
            path: self.cache.path().display().to_string(),
            kept_bytes: usage.bytes,
            file_bytes: usage.file_bytes,
            disk_free_bytes: disk.f_bavail.saturating_mul(disk.f_frsize),
            disk_total_bytes: disk.f_blocks.saturating_mul(disk.f_frsize),
        })
    }
}
