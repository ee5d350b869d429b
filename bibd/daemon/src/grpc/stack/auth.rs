//! Who calls: turns what the connection vouches for into a [`Call`], or refuses. Unknown means deny.
//!
//! It never reads a request's body, and never decides what a recognised actor may do: the use cases ask the policy.

use std::sync::Arc;
use std::task::{Context, Poll};

use futures::future::BoxFuture;
use http::{Request, Response, header};
use http_body_util::BodyExt as _;
use tonic::body::Body;
use tonic::{Code, Status};
use tower::{Layer, Service};

use crate::actor::{Actor, Call};
use crate::errors::ErrorCode;
use crate::grpc::call::Arrival;
use crate::grpc::error::status;
use crate::grpc::peer::Peer;
use crate::grpc::stack::methods::{self, Access, Method};
use crate::services::ServiceError;

/// The largest body of an anonymous request, in bytes: keys, challenges and certificate requests are far smaller.
const MAX_ANONYMOUS_BODY_BYTES: usize = 64 * 1024;

/// Recognises who calls.
#[async_trait::async_trait]
pub trait Authenticator: Send + Sync + 'static {
    /// The actor behind a request. `bearer` is the token after `authorization: Bearer`, at most 512 bytes; `method` is
    /// such as `TopicService/GetTopic`.
    ///
    /// # Errors
    /// [`ServiceError::Unauthenticated`] when nobody is recognised, [`ServiceError::Denied`] when the somebody may not
    /// call at all (suspended), [`ServiceError::Unavailable`] when it cannot be found out at the moment.
    async fn authenticate(&self, peer: &Peer, bearer: Option<&str>, method: &str) -> Result<Actor, ServiceError>;
}

/// A request that was refused.
#[derive(Debug, Clone)]
pub struct Refusal {
    /// When, by which request, from where.
    pub arrival: Arrival,
    /// Who, when that was found out.
    pub actor: Option<Actor>,
    /// What was asked for, such as `AdminService/Shutdown`; `unknown` for a method that does not exist.
    pub method: &'static str,
    /// `UNAUTHENTICATED` or `PERMISSION_DENIED`.
    pub grpc_code: Code,
    /// The reason, as the caller was told.
    pub reason: String,
}

/// Takes note of refused calls; writes them into the audit log. Must return at once: it may drop what it cannot keep
/// up with, and then counts it.
pub trait RefusalSink: Send + Sync + 'static {
    /// A call was refused.
    fn refused(&self, refusal: Refusal);
}

/// What the layer needs.
#[derive(Clone)]
pub struct AuthLayer {
    authenticator: Arc<dyn Authenticator>,
    refusals: Arc<dyn RefusalSink>,
}

impl AuthLayer {
    /// Asks `authenticator` and tells `refusals`.
    pub fn new(authenticator: Arc<dyn Authenticator>, refusals: Arc<dyn RefusalSink>) -> Self {
        Self { authenticator, refusals }
    }
}

impl<S> Layer<S> for AuthLayer {
    type Service = Auth<S>;

    fn layer(&self, inner: S) -> Auth<S> {
        Auth { inner, layer: self.clone() }
    }
}

/// See [`AuthLayer`].
#[derive(Clone)]
pub struct Auth<S> {
    inner: S,
    layer: AuthLayer,
}

impl<S> Service<Request<Body>> for Auth<S>
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
        let layer = self.layer.clone();
        Box::pin(async move {
            match layer.admit(request).await {
                Ok(Admitted { request, arrival, method, actor }) => {
                    let response = inner.call(request).await?;
                    // A use case that says no: the same note as for who did not get that far.
                    if let Some(code) = refused_code(&response) {
                        layer.note(arrival, actor, method.name(), code, reason(&response));
                    }
                    Ok(response)
                }
                Err(status) => Ok(status.into_http()),
            }
        })
    }
}

struct Admitted {
    request: Request<Body>,
    arrival: Arrival,
    method: &'static Method,
    actor: Option<Actor>,
}

impl AuthLayer {
    async fn admit(&self, mut request: Request<Body>) -> Result<Admitted, Box<Status>> {
        let Some(arrival) = request.extensions().get::<Arrival>().cloned() else {
            return Err(Box::new(
                ServiceError::internal("the authentication layer is not below the arrival layer").into(),
            ));
        };
        let Some(method) = methods::find(request.uri().path()) else {
            let sentence = "the daemon does not know this call";
            let hint = "compare the versions of `bib` and `bibd`: `bib version`";
            return Err(Box::new(status(Code::Unimplemented, ErrorCode::UNKNOWN_METHOD, sentence, hint)));
        };
        if method.access == Access::Anonymous {
            let request = request.map(limit_body);
            return Ok(Admitted { request, arrival, method, actor: None });
        }
        let bearer = bearer(&request).map_err(|error| self.refuse(&arrival, method, error))?;
        let found = self.authenticator.authenticate(&arrival.peer, bearer.as_deref(), method.name()).await;
        let actor = found.map_err(|error| self.refuse(&arrival, method, error))?;
        tracing::Span::current().record("actor", tracing::field::display(&actor.name));
        request.extensions_mut().insert(Call {
            operation: arrival.operation,
            request_id: arrival.request_id.clone(),
            actor: actor.clone(),
            time: arrival.time,
        });
        Ok(Admitted { request, arrival, method, actor: Some(actor) })
    }

    fn refuse(&self, arrival: &Arrival, method: &Method, error: ServiceError) -> Box<Status> {
        let status = Status::from(error);
        if matches!(status.code(), Code::Unauthenticated | Code::PermissionDenied) {
            self.note(arrival.clone(), None, method.name(), status.code(), status.message().to_owned());
        }
        Box::new(status)
    }

    fn note(&self, arrival: Arrival, actor: Option<Actor>, method: &'static str, grpc_code: Code, reason: String) {
        self.refusals.refused(Refusal { arrival, actor, method, grpc_code, reason });
    }
}

/// The token of `authorization: Bearer <token>`.
fn bearer(request: &Request<Body>) -> Result<Option<String>, ServiceError> {
    let mut values = request.headers().get_all(header::AUTHORIZATION).iter();
    let Some(value) = values.next() else { return Ok(None) };
    let text = value.to_str().ok().filter(|text| text.len() <= 519 && values.next().is_none());
    let token = text
        .and_then(|text| text.split_once(' '))
        .filter(|(scheme, token)| scheme.eq_ignore_ascii_case("bearer") && !token.is_empty());
    let unusable = || {
        ServiceError::unauthenticated(
            ErrorCode::BAD_TOKEN,
            "the authorization header is not `Bearer` and a token",
            "log in again: `bib login`",
        )
    };
    token.map(|(_, token)| Some(token.trim().to_owned())).ok_or_else(unusable)
}

fn limit_body(body: Body) -> Body {
    let limited = http_body_util::Limited::new(body, MAX_ANONYMOUS_BODY_BYTES);
    Body::new(limited.map_err(|error| match error.downcast::<Status>() {
        Ok(status) => *status,
        Err(_) => status(
            Code::ResourceExhausted,
            ErrorCode::TOO_LARGE,
            "a request without log-in has at most 64 KiB",
            "log in first: `bib login`",
        ),
    }))
}

/// The status code, when the response is a refusal that was decided before anything was sent.
fn refused_code(response: &Response<Body>) -> Option<Code> {
    let value = response.headers().get(Status::GRPC_STATUS)?;
    let code = Code::from_bytes(value.as_bytes());
    matches!(code, Code::Unauthenticated | Code::PermissionDenied).then_some(code)
}

fn reason(response: &Response<Body>) -> String {
    Status::from_header_map(response.headers()).map(|status| status.message().to_owned()).unwrap_or_default()
}
