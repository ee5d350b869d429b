//! From a request to the call behind it: the first line of every handler.

use std::sync::Arc;

use bib_core::{OperationId, Timestamp};
use bib_proto::v1::OperationMetadata;
use tonic::{Request, Status};

use crate::actor::Call;
use crate::grpc::peer::Peer;
use crate::services::ServiceError;

/// What is known of a request before anybody is recognised. The stack puts it on every request.
#[derive(Debug, Clone)]
pub struct Arrival {
    /// The operation that this request becomes.
    pub operation: OperationId,
    /// What the client sent as `x-request-id`, or what the stack made up.
    pub request_id: String,
    /// When it arrived.
    pub time: Timestamp,
    /// Who is at the other end.
    pub peer: Arc<Peer>,
}

/// The call behind a request to a method that needs an actor.
///
/// # Errors
/// `INTERNAL` when the stack did not authenticate the request: an anonymous method must use [`arrival_of`].
pub fn call_of<T>(request: &Request<T>) -> Result<Call, Status> {
    let call = request.extensions().get::<Call>().cloned();
    call.ok_or_else(|| ServiceError::internal("a handler asked for the actor of an anonymous method").into())
}

/// What is known of a request to an anonymous method.
///
/// # Errors
/// `INTERNAL` when the request did not come through the stack.
pub fn arrival_of<T>(request: &Request<T>) -> Result<Arrival, Status> {
    let arrival = request.extensions().get::<Arrival>().cloned();
    arrival.ok_or_else(|| ServiceError::internal("a request did not come through the stack").into())
}

/// The operation as responses carry it. `node` is the peer id of this node.
#[must_use]
pub fn metadata_of(call: &Call, node: &bib_core::PeerId) -> OperationMetadata {
    OperationMetadata {
        operation_id: call.operation.to_string(),
        request_id: call.request_id.clone(),
        node_id: node.to_string(),
        time: call.time.to_string(),
    }
}
