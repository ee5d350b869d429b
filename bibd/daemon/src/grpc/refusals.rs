//! Refused calls on their way into the daemon's log and the audit log.

use serde_json::json;

use super::stack::{Refusal, RefusalSink};
use crate::actor::Call;
use crate::services::auth::login::call_of_stranger;
use crate::services::journal::Act;
use crate::services::refusals::Refusals;

/// A log-in that was refused has its own entry, with the reason and the key.
const LOG_IN: &str = "AuthService/VerifyChallenge";

impl RefusalSink for Refusals {
    fn refused(&self, refusal: Refusal) {
        let Refusal { arrival, actor, method, grpc_code, reason } = refusal;
        tracing::warn!(rpc = method, peer = %arrival.peer, reason, "a call was refused");
        if method == LOG_IN {
            return;
        }
        let details = json!({ "reason": reason, "code": format!("{grpc_code:?}"), "peer": arrival.peer.to_string() });
        let call = match actor {
            Some(actor) => {
                Call { operation: arrival.operation, request_id: arrival.request_id, actor, time: arrival.time }
            }
            None => call_of_stranger(&arrival, None),
        };
        self.note(call, Act::new("call.refused", method, details));
    }
}
