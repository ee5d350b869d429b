//! The edge of a cache node: who is let in, and NodeService.

use bib_core::UserId;
use bib_core::access::NodeRole;
use bib_proto::v1::node_service_server::NodeService;
use bib_proto::v1::{self as pb, GetSelfNodeRequest, GetSelfNodeResponse};
use tonic::{Request, Response, Status};

use super::call_of;
use super::peer::Peer;
use super::stack::{Authenticator, Refusal, RefusalSink};
use crate::actor::{Actor, Scopes, Via};
use crate::config::Mode;
use crate::errors::ErrorCode;
use crate::front::Front;
use crate::services::ServiceError;
use crate::services::cache_node::{CacheNodeUseCases, allow};

/// Lets in who owns the daemon on its own machine. There are no users here, so nobody else can be known.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Doorkeeper {
    /// The uid of the daemon.
    owner: u32,
    mode: Mode,
}

impl Doorkeeper {
    pub(crate) fn new(owner: u32, mode: Mode) -> Self {
        Self { owner, mode }
    }
}

#[tonic::async_trait]
impl Authenticator for Doorkeeper {
    async fn authenticate(&self, peer: &Peer, bearer: Option<&str>, method: &str) -> Result<Actor, ServiceError> {
        let Peer::Socket { uid, .. } = peer else {
            return Err(ServiceError::unauthenticated(
                ErrorCode::UNAUTHENTICATED,
                "this node is a cache and has no users: nobody can log in",
                "log in at a full node; on this node's own machine `bib` needs no log-in",
            ));
        };
        if *uid != self.owner && *uid != 0 {
            return Err(ServiceError::unauthenticated(
                ErrorCode::UNKNOWN_SOCKET_USER,
                format!("the operating system user {uid} is nobody on this node: a cache knows only who runs it"),
                "ask as the user that runs bibd, or as root",
            ));
        }
        if bearer.is_some() {
            return Err(ServiceError::unauthenticated(
                ErrorCode::BAD_TOKEN,
                "this node is a cache and gave out no tokens",
                "leave the token out: on this node's own machine `bib` needs none",
            ));
        }
        allow(self.mode, method)?;
        Ok(Actor {
            user: UserId::from_uuid(uuid::Uuid::nil()),
            name: "owner".to_owned(),
            role: NodeRole::Admin,
            via: Via::Socket { uid: *uid },
            scopes: Scopes::All,
        })
    }
}

impl RefusalSink for Doorkeeper {
    /// Into the daemon's own log: a node that is never authoritative has no audit log.
    fn refused(&self, refusal: Refusal) {
        tracing::info!(rpc = refusal.method, peer = %refusal.arrival.peer, reason = refusal.reason, "a call was refused");
    }
}

/// The handler.
pub(crate) struct CacheNodeHandler {
    node: CacheNodeUseCases,
    front: Front,
}

impl CacheNodeHandler {
    /// Over the use cases of the node behind `front`.
    pub(crate) fn new(node: CacheNodeUseCases, front: Front) -> Self {
        Self { node, front }
    }
}

#[tonic::async_trait]
impl NodeService for CacheNodeHandler {
    async fn get_self_node(
        &self,
        request: Request<GetSelfNodeRequest>,
    ) -> Result<Response<GetSelfNodeResponse>, Status> {
        let state = self.node.state(&call_of(&request)?).await?;
        let front = &self.front;
        Ok(Response::new(GetSelfNodeResponse {
            peer_id: front.peer_id.to_string(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            mode: front.loaded.config.node.mode.as_str().to_owned(),
            started_at: state.started_at.to_string(),
            listen_addresses: front.addresses.iter().map(ToString::to_string).collect(),
            socket: front.places.socket.display().to_string(),
            epoch: state.epoch,
            database: Some(pb::DatabaseInfo {
                provisioner: "sqlite".to_owned(),
                version: state.version,
                schema: state.schema,
                healthy: true,
            }),
            storage: Some(pb::StorageInfo {
                path: state.path,
                // What is kept here belongs to others: of its own the node has nothing.
                chunks: 0,
                raw_bytes: state.kept_bytes,
                stored_bytes: state.file_bytes,
                disk_free_bytes: state.disk_free_bytes,
                disk_total_bytes: state.disk_total_bytes,
            }),
            topics: 0,
            datasets: 0,
            versions: 0,
            ca_fingerprint: front.certificates.authority.fingerprint().to_string(),
        }))
    }
}
