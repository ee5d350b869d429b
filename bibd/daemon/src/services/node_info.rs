//! What the node tells about itself, and stopping it.

use std::time::Duration;

use bib_core::Timestamp;
use bib_core::access::Verb;
use bibd_catalog::{Session as _, chunks, datasets, migrate, topics};
use bibd_postgres::Health;
use serde_json::json;

use super::base::{Base, allow_node};
use super::error::ServiceError;
use super::journal::Act;
use super::statistics;
use crate::actor::Call;
use crate::foundation::Foundation;

/// The longest that running calls may be given when the daemon stops.
const LONGEST_DRAIN: Duration = Duration::from_secs(3600);

/// The node at one moment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NodeState {
    /// When the daemon started.
    pub started_at: Timestamp,
    /// Topics that were not deleted.
    pub topics: u64,
    /// Datasets that were not deleted.
    pub datasets: u64,
    /// Their versions.
    pub versions: u64,
    /// The database.
    pub database: DatabaseState,
    /// The chunks.
    pub storage: StorageState,
}

/// The database at one moment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DatabaseState {
    /// `process`, `container` or `kubernetes`.
    pub provisioner: &'static str,
    /// Of PostgreSQL; empty when its binaries cannot be asked.
    pub version: String,
    /// The migration that it is at.
    pub schema: u32,
    /// Whether it accepts connections.
    pub healthy: bool,
}

/// The chunk store at one moment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StorageState {
    /// Chunks that the catalog knows.
    pub chunks: u64,
    /// Their length before compression.
    pub raw_bytes: u64,
    /// Their length on disk.
    pub stored_bytes: u64,
    /// What is free on the store's file system.
    pub disk_free_bytes: u64,
    /// Its size.
    pub disk_total_bytes: u64,
}

/// The use cases of the node as a whole. Cheap to clone.
#[derive(Clone)]
pub struct NodeUseCases {
    foundation: Foundation,
    base: Base,
}

impl std::fmt::Debug for NodeUseCases {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("NodeUseCases").field("node", &self.base.peer).finish_non_exhaustive()
    }
}

impl NodeUseCases {
    /// Over the node.
    #[must_use]
    pub fn new(foundation: Foundation, base: Base) -> Self {
        Self { foundation, base }
    }

    /// What the node stands on.
    #[must_use]
    pub fn foundation(&self) -> &Foundation {
        &self.foundation
    }

    /// How the node is, counted now.
    ///
    /// # Errors
    /// When the caller may not see the node, the database is gone or the store's disk does not answer.
    pub async fn state(&self, call: &Call) -> Result<NodeState, ServiceError> {
        allow_node(call, Verb::NodeRead)?;
        let mut session = self.base.db.read().await?;
        let topics = topics::count(&mut session).await?;
        let (datasets, versions) = datasets::count(&mut session).await?;
        let (chunks, raw_bytes, stored_bytes) = chunks::totals(&mut session).await?;
        let schema = migrate::current(session.connection()).await?;
        drop(session);
        let blobs = self.base.blobs.clone();
        let usage = tokio::task::spawn_blocking(move || blobs.usage()).await.map_err(ServiceError::internal)?;
        let usage = usage.map_err(ServiceError::internal)?;
        let postgres = &self.foundation.postgres;
        // A server whose binaries were taken away still runs; that is no reason to answer nothing at all.
        let version = postgres.version().await.map(|version| version.to_string()).unwrap_or_default();
        let clock = &self.foundation.clock;
        let age = clock.monotonic().saturating_duration_since(self.foundation.started);
        Ok(NodeState {
            started_at: clock.now().plus_seconds(-i64::try_from(age.as_secs()).unwrap_or(i64::MAX)),
            topics,
            datasets,
            versions,
            database: DatabaseState {
                provisioner: postgres.choice().name(),
                version,
                schema: u32::try_from(schema).unwrap_or_default(),
                healthy: postgres.health().await == Health::Ready,
            },
            storage: StorageState {
                chunks,
                raw_bytes,
                stored_bytes,
                disk_free_bytes: usage.free_bytes,
                disk_total_bytes: usage.total_bytes,
            },
        })
    }

    /// Stops the daemon after the entry about it is sealed and signed. Running calls, this one among them, are given
    /// `drain`.
    ///
    /// # Errors
    /// When the caller may not, or the entry is not sealed: then the daemon goes on.
    pub async fn shutdown(&self, call: &Call, drain: Duration) -> Result<(), ServiceError> {
        allow_node(call, Verb::Shutdown)?;
        if drain > LONGEST_DRAIN {
            return Err(ServiceError::invalid("drain_seconds", "is at most 3600"));
        }
        let tx = self.base.begin(call, "admin").await?;
        let details = json!({ "drain_seconds": drain.as_secs() });
        self.base.journal.commit(tx, call, Act::new("node.shutdown", self.base.peer.to_string(), details)).await?;
        self.foundation.shutdown.request(drain);
        Ok(())
    }

    /// The counters in the Prometheus text format.
    ///
    /// # Errors
    /// When the caller may not.
    pub async fn metrics(&self, call: &Call) -> Result<String, ServiceError> {
        allow_node(call, Verb::MetricsRead)?;
        Ok(statistics::render(&self.foundation.db, &self.foundation.metrics).await)
    }
}
