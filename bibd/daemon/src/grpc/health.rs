//! How the daemon is: the standard `grpc.health.v1.Health` and our `HealthService`, both from one board.

use std::collections::BTreeMap;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Instant;

use bib_core::PeerId;
use bib_identity::Fingerprint;
use bib_identity::server_tls::ServerTls;
use bib_proto::v1::health_service_server::HealthService;
use bib_proto::v1::{
    ComponentHealth, GetNodeInfoRequest, GetNodeInfoResponse, HealthCheckRequest, HealthCheckResponse, PingRequest,
    PingResponse, ServingStatus,
};
use futures::Stream;
use tokio::sync::watch;
use tokio_stream::StreamExt as _;
use tokio_stream::wrappers::WatchStream;
use tokio_util::sync::CancellationToken;
use tonic::{Request, Response, Status};
use tonic_health::server::HealthReporter;

use crate::clock::Clock;
use crate::config::Mode;
use crate::grpc::call::arrival_of;
use crate::grpc::peer::Peer;
use crate::services::ServiceError;
use crate::supervisor::TaskResult;

/// How a component is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Condition {
    /// All is well.
    Serving,
    /// It works, but not as it should; with a sentence.
    Degraded(String),
    /// It does not work; with a sentence.
    Down(String),
}

type Components = BTreeMap<&'static str, Condition>;

/// Where components say how they are. Cheap to clone.
#[derive(Debug, Clone, Default)]
pub struct HealthBoard(Arc<watch::Sender<Components>>);

impl HealthBoard {
    /// A component says how it is. Names are fixed: `database`, `blobs`, `audit`, `audit-export`, `alerts`, `backup`,
    /// `certificates`, `disk`, `daemon`.
    pub fn set(&self, component: &'static str, condition: Condition) {
        self.0.send_if_modified(|components| {
            components.insert(component, condition.clone()).as_ref() != Some(&condition)
        });
    }

    /// How everything is, again at each change.
    #[must_use]
    pub fn subscribe(&self) -> watch::Receiver<Components> {
        self.0.subscribe()
    }

    /// How a component is.
    #[must_use]
    pub fn condition(&self, component: &str) -> Option<Condition> {
        self.0.borrow().get(component).cloned()
    }
}

/// What `GetNodeInfo` tells everybody.
pub struct NodeFacts {
    /// Who this node is.
    pub peer_id: PeerId,
    /// What it is.
    pub mode: Mode,
    /// Fingerprint of the CA's key.
    pub ca_fingerprint: Fingerprint,
    /// Shows which leaf is current.
    pub tls: Arc<ServerTls>,
    /// The largest message.
    pub max_message_bytes: u32,
    /// When it started.
    pub started: Instant,
}

/// Our health service.
pub struct Health {
    board: HealthBoard,
    facts: NodeFacts,
    clock: Arc<dyn Clock>,
}

impl Health {
    /// Reads `board`, tells `facts`.
    #[must_use]
    pub fn new(board: HealthBoard, facts: NodeFacts, clock: Arc<dyn Clock>) -> Self {
        Self { board, facts, clock }
    }
}

/// The answer about one component, or about all.
fn answer(components: &Components, wanted: &str) -> HealthCheckResponse {
    let chosen = components.iter().filter(|(name, _)| wanted.is_empty() || **name == wanted);
    let components: Vec<ComponentHealth> = chosen
        .map(|(name, condition)| {
            let (status, message) = match condition {
                Condition::Serving => (ServingStatus::Serving, String::new()),
                Condition::Degraded(why) => (ServingStatus::Degraded, why.clone()),
                Condition::Down(why) => (ServingStatus::NotServing, why.clone()),
            };
            ComponentHealth { name: (*name).to_owned(), status: status.into(), message }
        })
        .collect();
    let has = |status: ServingStatus| components.iter().any(|component| component.status == i32::from(status));
    let status = if has(ServingStatus::NotServing) {
        ServingStatus::NotServing
    } else if has(ServingStatus::Degraded) {
        ServingStatus::Degraded
    } else {
        ServingStatus::Serving
    };
    HealthCheckResponse { status: status.into(), components }
}

fn known(components: &Components, wanted: &str) -> Result<(), ServiceError> {
    if wanted.is_empty() || components.contains_key(wanted) {
        return Ok(());
    }
    let names: Vec<&str> = components.keys().copied().collect();
    Err(ServiceError::invalid("component", format!("components are {}", names.join(", "))))
}

#[tonic::async_trait]
impl HealthService for Health {
    type WatchStream = Pin<Box<dyn Stream<Item = Result<HealthCheckResponse, Status>> + Send>>;

    async fn check(&self, request: Request<HealthCheckRequest>) -> Result<Response<HealthCheckResponse>, Status> {
        let wanted = request.into_inner().component;
        let components = self.board.subscribe().borrow().clone();
        known(&components, &wanted)?;
        Ok(Response::new(answer(&components, &wanted)))
    }

    async fn watch(&self, request: Request<HealthCheckRequest>) -> Result<Response<Self::WatchStream>, Status> {
        let wanted = request.into_inner().component;
        let board = self.board.subscribe();
        known(&board.borrow(), &wanted)?;
        let mut last = None;
        let changes = WatchStream::new(board).filter_map(move |components| {
            let fresh = answer(&components, &wanted);
            (last.as_ref() != Some(&fresh)).then(|| {
                last = Some(fresh.clone());
                Ok(fresh)
            })
        });
        Ok(Response::new(Box::pin(changes)))
    }

    async fn get_node_info(
        &self,
        request: Request<GetNodeInfoRequest>,
    ) -> Result<Response<GetNodeInfoResponse>, Status> {
        let arrival = arrival_of(&request)?;
        let facts = &self.facts;
        let uptime = self.clock.monotonic().saturating_duration_since(facts.started);
        // Over TLS the leaf of this very connection; on the socket the one that the next handshake shows.
        let leaf = match arrival.peer.as_ref() {
            Peer::Tls { server_leaf, .. } => *server_leaf,
            Peer::Socket { .. } => facts.tls.leaf_sha256(),
        };
        Ok(Response::new(GetNodeInfoResponse {
            peer_id: facts.peer_id.to_string(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            mode: facts.mode.as_str().to_owned(),
            uptime_ms: u64::try_from(uptime.as_millis()).unwrap_or(u64::MAX),
            ca_fingerprint: facts.ca_fingerprint.to_string(),
            server_certificate_fingerprint: leaf.to_string(),
            max_message_bytes: facts.max_message_bytes,
            time: self.clock.now().to_string(),
        }))
    }

    async fn ping(&self, request: Request<PingRequest>) -> Result<Response<PingResponse>, Status> {
        let payload = request.into_inner().payload;
        if payload.len() > 1_024 {
            return Err(ServiceError::invalid("payload", "at most 1024 bytes").into());
        }
        Ok(Response::new(PingResponse { payload }))
    }
}

/// Keeps the standard health service as our board says, until `stop`.
///
/// # Errors
/// Never by itself; the signature is the supervisor's.
pub async fn report(board: HealthBoard, reporter: HealthReporter, stop: CancellationToken) -> TaskResult {
    let mut changes = board.subscribe();
    loop {
        let down = changes.borrow_and_update().values().any(|condition| matches!(condition, Condition::Down(_)));
        let status = if down { tonic_health::ServingStatus::NotServing } else { tonic_health::ServingStatus::Serving };
        set(&reporter, "", status).await;
        set(&reporter, "bib.v1.HealthService", status).await;
        match stop.run_until_cancelled(changes.changed()).await {
            Some(Ok(())) => {}
            Some(Err(_)) | None => break,
        }
    }
    set(&reporter, "", tonic_health::ServingStatus::NotServing).await;
    Ok(())
}

/// Boxed, because the compiler cannot see that the reporter's generic future is `Send` for every lifetime.
fn set(
    reporter: &HealthReporter,
    service: &'static str,
    status: tonic_health::ServingStatus,
) -> futures::future::BoxFuture<'static, ()> {
    let reporter = reporter.clone();
    Box::pin(async move { reporter.set_service_status(service.to_owned(), status).await })
}
