//! The interceptors, outermost first: arrival (request id, span, metrics), panic recovery, rate limit, authentication
//! with the note of what was refused, the refusal of what writes when the disk has no room, and the deadline.
//! [`layers`] is the one place where they are put together.
//!
//! Arrival is one layer and not three, because a call has one end, and its log line and its metrics are about that.

pub mod arrival;
pub mod auth;
pub mod deadline;
pub mod methods;
pub mod rate;
pub mod recovery;
pub mod space;
mod watched;

use std::sync::Arc;
use std::time::Duration;

use tokio_util::sync::CancellationToken;
use tower::ServiceBuilder;
use tower::layer::util::{Identity, Stack};

use crate::clock::Ids;
use crate::metrics::Metrics;
use crate::space::Space;

pub use auth::{Authenticator, Refusal, RefusalSink};
pub use rate::RateLimiter;

use arrival::ArrivalLayer;
use auth::AuthLayer;
use deadline::DeadlineLayer;
use rate::RateLayer;
use recovery::RecoveryLayer;
use space::SpaceLayer;

/// What the interceptors need.
#[derive(Clone)]
pub struct StackParts {
    /// Makes operation ids.
    pub ids: Ids,
    /// Counts.
    pub metrics: Arc<Metrics>,
    /// Limits.
    pub limiter: RateLimiter,
    /// Recognises.
    pub authenticator: Arc<dyn Authenticator>,
    /// Takes note of refusals.
    pub refusals: Arc<dyn RefusalSink>,
    /// Whether there is room for what writes.
    pub space: Space,
    /// Cancelled when the daemon begins to stop.
    pub draining: CancellationToken,
}

/// The stack as a type.
pub type Layers = Stack<
    DeadlineLayer,
    Stack<SpaceLayer, Stack<AuthLayer, Stack<RateLayer, Stack<RecoveryLayer, Stack<ArrivalLayer, Identity>>>>>,
>;

/// The stack, outermost first. A call may take `limit` until its answer begins.
#[must_use]
pub fn layers(parts: StackParts, limit: Duration) -> Layers {
    let StackParts { ids, metrics, limiter, authenticator, refusals, space, draining } = parts;
    let clock = Arc::clone(ids.clock());
    ServiceBuilder::new()
        .layer(ArrivalLayer::new(ids, Arc::clone(&metrics), draining))
        .layer(RecoveryLayer::new(Arc::clone(&metrics)))
        .layer(RateLayer::new(limiter, clock, metrics))
        .layer(AuthLayer::new(authenticator, refusals))
        .layer(SpaceLayer::new(space))
        .layer(DeadlineLayer::new(limit))
        .into_inner()
}
