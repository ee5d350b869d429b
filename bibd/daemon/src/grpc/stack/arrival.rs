//! The outermost layer: gives a request its id, operation and span; afterwards says how it went, once.
//!
//! Never logs a payload. What a client sends as id is taken only when it is harmless.

use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Instant;

use futures::future::BoxFuture;
use http::{HeaderName, HeaderValue, Request, Response};
use tokio_util::sync::CancellationToken;
use tonic::body::Body;
use tonic::{Code, Status};
use tower::{Layer, Service};
use tracing::Instrument as _;

use crate::clock::{Clock, Ids};
use crate::errors::ErrorCode;
use crate::grpc::call::Arrival;
use crate::grpc::connections::{Activity, ConnectionInfo};
use crate::grpc::error::status;
use crate::grpc::stack::methods;
use crate::grpc::stack::watched::Watched;
use crate::metrics::Metrics;

/// The header and trailer of request ids.
pub const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");

/// What the layer needs.
#[derive(Clone)]
pub struct ArrivalLayer {
    ids: Ids,
    metrics: Arc<Metrics>,
    draining: CancellationToken,
}

impl ArrivalLayer {
    /// Makes ids by `ids` and counts in `metrics`; ends calls without an end of their own on `draining`.
    #[must_use]
    pub fn new(ids: Ids, metrics: Arc<Metrics>, draining: CancellationToken) -> Self {
        Self { ids, metrics, draining }
    }
}

impl<S> Layer<S> for ArrivalLayer {
    type Service = Arrivals<S>;

    fn layer(&self, inner: S) -> Arrivals<S> {
        Arrivals { inner, layer: self.clone() }
    }
}

/// See [`ArrivalLayer`].
#[derive(Clone)]
pub struct Arrivals<S> {
    inner: S,
    layer: ArrivalLayer,
}

impl<S> Service<Request<Body>> for Arrivals<S>
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

    fn call(&mut self, mut request: Request<Body>) -> Self::Future {
        let Some(info) = request.extensions().get::<ConnectionInfo>().cloned() else {
            // Only a mistake in the composition gets here; it must not become an open door.
            let status = status(Code::Internal, ErrorCode::INTERNAL, "the connection is not known", "");
            return Box::pin(std::future::ready(Ok(status.into_http())));
        };
        let ids = &self.layer.ids;
        let operation = ids.operation();
        let request_id = accepted_id(&request).unwrap_or_else(|| operation.to_string());
        let draining = methods::is_endless(request.uri().path()).then(|| self.layer.draining.clone());
        let method = methods::find(request.uri().path()).map_or("unknown", |method| method.name());
        let span = tracing::info_span!("call", rpc = method, request.id = %request_id, operation.id = %operation, peer = %info.peer, actor = tracing::field::Empty);
        // Valid: it was checked, or is a UUID.
        let header = HeaderValue::from_str(&request_id).unwrap_or_else(|_| HeaderValue::from_static("invalid"));
        request.extensions_mut().insert(Arrival { operation, request_id, time: ids.clock().now(), peer: info.peer });
        let end = End::begin(&self.layer, method, info.activity, span.clone());
        let clone = self.inner.clone();
        let mut inner = std::mem::replace(&mut self.inner, clone);
        let answer = async move {
            let mut response = inner.call(request).await?;
            response.headers_mut().insert(REQUEST_ID, header.clone());
            let code = response.headers().get(Status::GRPC_STATUS).map(|value| Code::from_bytes(value.as_bytes()));
            Ok(match code {
                // Decided before a body: there will be no trailers.
                Some(code) => {
                    end.finish(code);
                    response
                }
                None => {
                    response.map(|body| Body::new(Watched::new(body, header, draining, move |code| end.finish(code))))
                }
            })
        };
        Box::pin(answer.instrument(span))
    }
}

/// 1 to 64 letters, digits, `-`, `_`, `.` or `:`, and only one such header.
fn accepted_id(request: &Request<Body>) -> Option<String> {
    let mut values = request.headers().get_all(REQUEST_ID).iter();
    let text = values.next()?.to_str().ok()?;
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.' | b':');
    let good = (1..=64).contains(&text.len()) && text.bytes().all(plain) && values.next().is_none();
    good.then(|| text.to_owned())
}

/// Counts and logs the end of a call, whichever way it ends; a call that is dropped was cancelled.
struct End {
    method: &'static str,
    since: Instant,
    clock: Arc<dyn Clock>,
    metrics: Arc<Metrics>,
    activity: Arc<Activity>,
    span: tracing::Span,
    code: Option<Code>,
}

impl End {
    fn begin(layer: &ArrivalLayer, method: &'static str, activity: Arc<Activity>, span: tracing::Span) -> Self {
        let clock = Arc::clone(layer.ids.clock());
        let since = clock.monotonic();
        activity.begin(since);
        layer.metrics.in_flight.inc();
        Self { method, since, clock, metrics: Arc::clone(&layer.metrics), activity, span, code: None }
    }

    fn finish(mut self, code: Code) {
        self.code = Some(code);
    }
}

impl Drop for End {
    fn drop(&mut self) {
        let now = self.clock.monotonic();
        let taken = now.saturating_duration_since(self.since);
        let code = self.code.unwrap_or(Code::Cancelled);
        self.activity.end(now);
        self.metrics.in_flight.dec();
        self.metrics.requests.with_label_values(&[self.method, word(code)]).inc();
        self.metrics.request_seconds.with_label_values(&[self.method]).observe(taken.as_secs_f64());
        let duration_ms = u64::try_from(taken.as_millis()).unwrap_or(u64::MAX);
        let _entered = self.span.enter();
        match code {
            Code::Ok => tracing::debug!(code = word(code), duration_ms, "a call was answered"),
            _ => tracing::info!(code = word(code), duration_ms, "a call was not answered with a result"),
        }
    }
}

/// The code's name as gRPC writes it.
fn word(code: Code) -> &'static str {
    match code {
        Code::Ok => "OK",
        Code::Cancelled => "CANCELLED",
        Code::Unknown => "UNKNOWN",
        Code::InvalidArgument => "INVALID_ARGUMENT",
        Code::DeadlineExceeded => "DEADLINE_EXCEEDED",
        Code::NotFound => "NOT_FOUND",
        Code::AlreadyExists => "ALREADY_EXISTS",
        Code::PermissionDenied => "PERMISSION_DENIED",
        Code::ResourceExhausted => "RESOURCE_EXHAUSTED",
        Code::FailedPrecondition => "FAILED_PRECONDITION",
        Code::Aborted => "ABORTED",
        Code::OutOfRange => "OUT_OF_RANGE",
        Code::Unimplemented => "UNIMPLEMENTED",
        Code::Internal => "INTERNAL",
        Code::Unavailable => "UNAVAILABLE",
        Code::DataLoss => "DATA_LOSS",
        Code::Unauthenticated => "UNAUTHENTICATED",
    }
}
