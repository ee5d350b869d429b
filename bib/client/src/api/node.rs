//! The node as its users see it.

use bib_proto::v1 as pb;
use pb::node_service_client::NodeServiceClient;

use super::call;
use crate::client::Client;
use crate::error::Result;

/// The node as its users see it.
#[derive(Debug, Clone)]
pub struct Node {
    pub(super) client: Client,
}

impl Node {
    /// Identity, addresses, storage and counts.
    pub async fn get_self(&self) -> Result<pb::GetSelfNodeResponse> {
        call!(self, Yes, NodeServiceClient, get_self_node, pb::GetSelfNodeRequest {})
    }
}
