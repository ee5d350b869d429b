//! A response body that carries the request id in its trailers and says with which code it ended.

use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use http::HeaderValue;
use http_body::{Body as HttpBody, Frame, SizeHint};
use tokio_util::sync::{CancellationToken, WaitForCancellationFutureOwned};
use tonic::body::Body;
use tonic::{Code, Status};

use crate::errors::ErrorCode;
use crate::grpc::stack::arrival::REQUEST_ID;
use crate::services::ServiceError;

/// See the module. Dropped before its end, `end` is dropped without a call.
pub(super) struct Watched<F: FnOnce(Code)> {
    inner: Body,
    request_id: HeaderValue,
    end: Option<F>,
    /// For a call without an end of its own: when it ends all the same.
    draining: Option<Pin<Box<WaitForCancellationFutureOwned>>>,
    is_cut: bool,
}

impl<F: FnOnce(Code)> Watched<F> {
    pub(super) fn new(inner: Body, request_id: HeaderValue, draining: Option<CancellationToken>, end: F) -> Self {
        let draining = draining.map(|token| Box::pin(token.cancelled_owned()));
        Self { inner, request_id, end: Some(end), draining, is_cut: false }
    }

    /// The trailers of a stream that ends because the daemon stops.
    fn cut(&mut self) -> Frame<Bytes> {
        self.is_cut = true;
        self.finish(Code::Unavailable);
        let error = ServiceError::unavailable(ErrorCode::SHUTTING_DOWN, "the daemon is stopping");
        let mut trailers = Status::from(error).into_http::<Body>().into_parts().0.headers;
        trailers.remove(http::header::CONTENT_TYPE);
        trailers.insert(REQUEST_ID, self.request_id.clone());
        Frame::trailers(trailers)
    }

    fn finish(&mut self, code: Code) {
        if let Some(end) = self.end.take() {
            end(code);
        }
    }
}

impl<F: FnOnce(Code) + Unpin> HttpBody for Watched<F> {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        if self.is_cut {
            return Poll::Ready(None);
        }
        if self.draining.as_mut().is_some_and(|draining| draining.as_mut().poll(cx).is_ready()) {
            return Poll::Ready(Some(Ok(self.cut())));
        }
        let frame = ready!(Pin::new(&mut self.inner).poll_frame(cx));
        Poll::Ready(match frame {
            Some(Ok(mut frame)) => {
                if let Some(trailers) = frame.trailers_mut() {
                    let code = trailers.get(Status::GRPC_STATUS).map(|value| Code::from_bytes(value.as_bytes()));
                    trailers.insert(REQUEST_ID, self.request_id.clone());
                    self.finish(code.unwrap_or(Code::Unknown));
                }
                Some(Ok(frame))
            }
            Some(Err(status)) => {
                self.finish(status.code());
                Some(Err(status))
            }
            None => {
                self.finish(Code::Unknown);
                None
            }
        })
    }

    fn is_end_stream(&self) -> bool {
        self.is_cut || self.inner.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.inner.size_hint()
    }
}
