//! A panic in a handler becomes `INTERNAL` with a code, is counted, and goes no further.

use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::task::{Context, Poll};

use futures::FutureExt as _;
use futures::future::BoxFuture;
use http::{Request, Response};
use tonic::Status;
use tonic::body::Body;
use tower::{Layer, Service};

use crate::metrics::Metrics;
use crate::services::ServiceError;
use crate::supervisor::panic_text;

/// What the layer needs.
#[derive(Clone)]
pub struct RecoveryLayer {
    metrics: Arc<Metrics>,
}

impl RecoveryLayer {
    /// Counts in `metrics`.
    #[must_use]
    pub fn new(metrics: Arc<Metrics>) -> Self {
        Self { metrics }
    }
}

impl<S> Layer<S> for RecoveryLayer {
    type Service = Recovery<S>;

    fn layer(&self, inner: S) -> Recovery<S> {
        Recovery { inner, metrics: Arc::clone(&self.metrics) }
    }
}

/// See [`RecoveryLayer`].
#[derive(Clone)]
pub struct Recovery<S> {
    inner: S,
    metrics: Arc<Metrics>,
}

impl<S> Service<Request<Body>> for Recovery<S>
where
    S: Service<Request<Body>, Response = Response<Body>> + Clone + Send + 'static,
    S::Future: Send + 'static,
    S::Error: Send + 'static,
{
    type Response = Response<Body>;
    type Error = S::Error;
    type Future = BoxFuture<'static, Result<Response<Body>, S::Error>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        let clone = self.inner.clone();
        let mut inner = std::mem::replace(&mut self.inner, clone);
        let metrics = Arc::clone(&self.metrics);
        Box::pin(async move {
            // The call itself may panic too, so it happens inside. What the handler held is dropped by the unwinding;
            // shared state stands behind locks that are taken over when poisoned.
            let outcome = AssertUnwindSafe(async { inner.call(request).await }).catch_unwind().await;
            outcome.unwrap_or_else(|panic| {
                metrics.panics.inc();
                let error = ServiceError::internal(format!("a handler panicked: {}", panic_text(panic.as_ref())));
                Ok(Status::from(error).into_http())
            })
        })
    }
}
