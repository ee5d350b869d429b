//! A node that is never authoritative (DB-002): it has an identity, certificates and listeners as every node, a
//! [cache](bibd_cache) instead of PostgreSQL, and nothing of its own. No users, topics, audit log or chunks: SQLite has no
//! roles that could keep them apart.
//!
//! It answers for its health, tells its own machine how it is, and refuses every other call with the reason
//! ([`services::cache_node`](crate::services::cache_node)).

use std::sync::Arc;
use std::time::Duration;

use bibd_cache::{Cache, OpenError, Opened, Settings};
use tokio_util::sync::CancellationToken;
use tonic::service::Routes;

use bib_proto::v1::node_service_server::NodeServiceServer;

use crate::app::{Options, StartError};
use crate::config::Config;
use crate::data_dir::DataDir;
use crate::front::{self, Begun, Behind, Front};
use crate::grpc::cache_node::{CacheNodeHandler, Doorkeeper};
use crate::grpc::connections::ConnectionRegistry;
use crate::grpc::health::Condition;
use crate::metrics::CacheMetrics;
use crate::ready::{Ready, ReadyFile};
use crate::services::cache_node::CacheNodeUseCases;
use crate::space::Space;
use crate::supervisor::{Policy, TaskKind, TaskResult};

/// How often what is too old is removed. It is not given out in the meantime either.
const SWEEP_EVERY: Duration = Duration::from_secs(60);
/// How long background tasks may take to stop.
const BACKGROUND_DEADLINE: Duration = Duration::from_secs(15);

/// A cache node that serves.
pub struct CacheNode {
    front: Front,
    cache: Cache,
    ready: Ready,
    ready_file: ReadyFile,
    /// Held to the end: it is locked.
    _data: DataDir,
}

impl CacheNode {
    /// Starts everything and returns when calls are answered.
    ///
    /// # Errors
    /// [`StartError`], with code and hint; [`StartError::NotACache`] in the data directory of a full node.
    pub async fn start(options: Options) -> Result<Self, StartError> {
        let owner = options.home.uid;
        let Begun { front, data, epoch, bound, .. } = front::begin(&options).await?;
        let database = data.root().join("postgres");
        if database.join("PROVISIONER").exists() || database.join("data").exists() {
            return Err(StartError::NotACache { path: database });
        }
        let cache = open_cache(&front, &data).await?;
        let registry = &front.metrics.registry;
        let gauges = Arc::new(CacheMetrics::register(registry)?);
        let limit = usize::try_from(front.loaded.config.grpc.max_message_bytes.0).unwrap_or(usize::MAX);
        let node = CacheNodeUseCases::new(&front, cache.clone(), epoch);
        let handler = CacheNodeHandler::new(node, front.clone());
        let (metrics, doorkeeper) = (Arc::clone(&front.metrics), Doorkeeper::new(owner, front.loaded.config.node.mode));
        let behind = Behind {
            routes: Routes::default().add_service(NodeServiceServer::new(handler).max_decoding_message_size(limit)),
            authenticator: Arc::new(doorkeeper),
            refusals: Arc::new(doorkeeper),
            space: watch_space(&front, &data),
            render: Arc::new(move || {
                let metrics = Arc::clone(&metrics);
                Box::pin(async move { metrics.render() })
            }),
        };
        let (sweeping, frame) = (cache.clone(), front.clone());
        front.supervisor.spawn(TaskKind::Background, Policy::RestartWithBackoff, "cache", move |stop| {
            sweep(sweeping.clone(), frame.clone(), Arc::clone(&gauges), stop)
        });
        let opened = front.open(bound, behind).and_then(|ready| Ok((front.announce_ready(&ready)?, ready)));
        match opened {
            Ok((ready_file, ready)) => Ok(Self { front, cache, ready, ready_file, _data: data }),
            Err(error) => {
                stop_all(&front, &cache, Duration::ZERO).await;
                Err(error)
            }
        }
    }

    /// Where it serves.
    #[must_use]
    pub fn ready(&self) -> &Ready {
        &self.ready
    }

    /// Live connections.
    #[must_use]
    pub fn connections(&self) -> ConnectionRegistry {
        self.front.connections.clone()
    }

    /// Waits until a task without which nothing works has ended; then with the reason.
    pub async fn ended(&self) -> String {
        self.front.supervisor.failed().await
    }

    /// Stops everything in reverse. Running calls are given `drain`.
    pub async fn stop(self, drain: Duration) {
        drop(self.ready_file);
        stop_all(&self.front, &self.cache, drain).await;
        self.front.remove_socket();
        tracing::info!("bibd has stopped");
    }
}

async fn stop_all(front: &Front, cache: &Cache, drain: Duration) {
    front.close(drain).await;
    front.supervisor.stop(TaskKind::Background, BACKGROUND_DEADLINE).await;
    cache.close().await;
}

fn settings(config: &Config) -> Settings {
    let cache = &config.database.cache;
    Settings { ttl: cache.ttl.0, max_bytes: cache.max_size.0 }
}

async fn open_cache(front: &Front, data: &DataDir) -> Result<Cache, OpenError> {
    let Opened { cache, set_aside } =
        Cache::open(&data.root().join("cache"), front.peer_id, settings(&front.loaded.config)).await?;
    if let Some(path) = set_aside {
        tracing::warn!(path = %path.display(), "the cache was damaged: it was set aside, and begins anew");
    }
    Ok(cache)
}

/// Removes what is too old, again and again until `stop`, and tells how much is kept.
async fn sweep(cache: Cache, front: Front, gauges: Arc<CacheMetrics>, stop: CancellationToken) -> TaskResult {
    loop {
        let swept = match cache.sweep(front.clock.now()).await {
            Ok(swept) => cache.usage().await.map(|usage| (swept, usage)),
            Err(error) => Err(error),
        };
        front.health.set(
            "cache",
            match swept {
                Ok((swept, usage)) => {
                    gauges.set(&usage, &swept);
                    Condition::Serving
                }
                Err(error) => {
                    tracing::warn!(error = &error as &dyn std::error::Error, "the cache cannot be swept");
                    Condition::Degraded(error.to_string())
                }
            },
        );
        if stop.run_until_cancelled(tokio::time::sleep(SWEEP_EVERY)).await.is_none() {
            return Ok(());
        }
    }
}

fn watch_space(front: &Front, data: &DataDir) -> Space {
    let (space, board) = (Space::default(), front.health.clone());
    let directories = vec![data.root().to_owned(), data.root().join("cache")];
    let min_free_bytes = front.loaded.config.limits.min_free_bytes.0;
    let watched = space.clone();
    front.supervisor.spawn(TaskKind::Background, Policy::RestartWithBackoff, "disk", move |stop| {
        watched.clone().watch(directories.clone(), min_free_bytes, board.clone(), stop)
    });
    space
}
