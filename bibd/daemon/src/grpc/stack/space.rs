//! Refuses what writes while the disk has less room than the reserve, also in the middle of an upload.
//!
//! A call that frees space or only reads is never refused here.

use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::Bytes;
use futures::future::BoxFuture;
use http::{Request, Response};
use http_body::{Frame, SizeHint};
use tonic::Status;
use tonic::body::Body;
use tower::{Layer, Service};

use crate::errors::ErrorCode;
use crate::grpc::stack::methods;
use crate::services::ServiceError;
use crate::space::Space;

/// Refuses by what `Space` says.
#[derive(Clone)]
pub struct SpaceLayer(Space);

impl SpaceLayer {
    /// Refuses while `space` is low.
    #[must_use]
    pub fn new(space: Space) -> Self {
        Self(space)
    }
}

impl<S> Layer<S> for SpaceLayer {
    type Service = Spaced<S>;

    fn layer(&self, inner: S) -> Spaced<S> {
        Spaced { inner, space: self.0.clone() }
    }
}

/// See [`SpaceLayer`].
#[derive(Clone)]
pub struct Spaced<S> {
    inner: S,
    space: Space,
}

fn full() -> Status {
    ServiceError::unavailable(ErrorCode::DISK_FULL, "the node's disk is full up to its reserve").into()
}

impl<S> Service<Request<Body>> for Spaced<S>
where
    S: Service<Request<Body>, Response = Response<Body>>,
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
        if !methods::takes_space(request.uri().path()) {
            return Box::pin(self.inner.call(request));
        }
        if self.space.is_low() {
            return Box::pin(std::future::ready(Ok(full().into_http())));
        }
        let space = self.space.clone();
        Box::pin(self.inner.call(request.map(|body| Body::new(Upload { body, space }))))
    }
}

/// A request that ends with a refusal when the room ends.
struct Upload {
    body: Body,
    space: Space,
}

impl http_body::Body for Upload {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        if self.space.is_low() {
            return Poll::Ready(Some(Err(full())));
        }
        Pin::new(&mut self.body).poll_frame(cx)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}
