//! Whether the node is well, and who it is. Answered without log-in.

use bib_proto::v1 as pb;
use bytes::Bytes;
use pb::health_service_client::HealthServiceClient;

use super::{call, stream};
use crate::client::{Answers, Client};
use crate::error::Result;

/// Whether the node is well, and who it is.
#[derive(Debug, Clone)]
pub struct Health {
    pub(super) client: Client,
}

impl Health {
    /// The state of one component, or of all when `component` is empty.
    pub async fn check(&self, component: &str) -> Result<pb::HealthCheckResponse> {
        let message = pb::HealthCheckRequest { component: component.to_owned() };
        call!(self, Yes, HealthServiceClient, check, message)
    }

    /// The same, again whenever it changes.
    pub async fn watch(&self, component: &str) -> Result<Answers<pb::HealthCheckResponse>> {
        let message = pb::HealthCheckRequest { component: component.to_owned() };
        stream!(self, HealthServiceClient, watch, message)
    }

    /// Identity, version and limits of the node.
    pub async fn node_info(&self) -> Result<pb::GetNodeInfoResponse> {
        call!(self, Yes, HealthServiceClient, get_node_info, pb::GetNodeInfoRequest {})
    }

    /// Sends at most 1 KiB there and back.
    pub async fn ping(&self, payload: Bytes) -> Result<Bytes> {
        let answer: Result<pb::PingResponse> =
            call!(self, Yes, HealthServiceClient, ping, pb::PingRequest { payload: payload.clone() });
        Ok(answer?.payload)
    }
}
