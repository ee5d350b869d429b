//! NodeService.

use bib_proto::v1::node_service_server::NodeService;
use bib_proto::v1::{self as pb, GetSelfNodeRequest, GetSelfNodeResponse};
use tonic::{Request, Response, Status};

use super::call_of;
use crate::services::node_info::NodeUseCases;

/// The handler.
#[derive(Debug)]
pub struct NodeHandler {
    node: NodeUseCases,
}

impl NodeHandler {
    /// Over the use cases.
    #[must_use]
    pub fn new(node: NodeUseCases) -> Self {
        Self { node }
    }
}

#[tonic::async_trait]
impl NodeService for NodeHandler {
    async fn get_self_node(
        &self,
        request: Request<GetSelfNodeRequest>,
    ) -> Result<Response<GetSelfNodeResponse>, Status> {
        let call = call_of(&request)?;
        let state = self.node.state(&call).await?;
        let foundation = self.node.foundation();
        let (database, storage) = (state.database, state.storage);
        Ok(Response::new(GetSelfNodeResponse {
            peer_id: foundation.peer_id.to_string(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            mode: foundation.config().node.mode.as_str().to_owned(),
            started_at: state.started_at.to_string(),
            listen_addresses: foundation.addresses.iter().map(ToString::to_string).collect(),
            socket: foundation.places.socket.display().to_string(),
            epoch: foundation.epoch,
            database: Some(pb::DatabaseInfo {
                provisioner: database.provisioner.to_owned(),
                version: database.version,
                schema: database.schema,
                healthy: database.healthy,
            }),
            storage: Some(pb::StorageInfo {
                path: foundation.blobs.root().display().to_string(),
                chunks: storage.chunks,
                raw_bytes: storage.raw_bytes,
                stored_bytes: storage.stored_bytes,
                disk_free_bytes: storage.disk_free_bytes,
                disk_total_bytes: storage.disk_total_bytes,
            }),
            topics: state.topics,
            datasets: state.datasets,
            versions: state.versions,
            ca_fingerprint: foundation.certificates.authority.fingerprint().to_string(),
        }))
    }
}
