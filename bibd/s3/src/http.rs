//! HTTP to a store: hyper, rustls and ring as everywhere, and a limit on its silence.

use std::error::Error as StdError;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use hyper::body::{Body, Frame, Incoming, SizeHint};
use hyper_rustls::{HttpsConnector, HttpsConnectorBuilder};
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector as Tcp;
use hyper_util::rt::TokioExecutor;
use object_store::ClientOptions;
use object_store::client::{
    HttpClient, HttpConnector, HttpError, HttpErrorKind, HttpRequest, HttpRequestBody, HttpResponse, HttpResponseBody,
    HttpService,
};
use rustls::{ClientConfig, RootCertStore};
use tokio::time::{Instant, Sleep};

use super::error::causes;

/// How long a TCP connection may take.
const CONNECT: Duration = Duration::from_secs(10);

/// Why no answer came.
#[derive(Debug, thiserror::Error)]
pub(super) enum TransportError {
    #[error("silent for {0:?}")]
    Silent(Duration),
    #[error("{0}")]
    Tls(String),
    #[error("{0}")]
    Unreachable(String),
    #[error("{0}")]
    Broken(String),
}

/// Requests to one store. Cheap to clone.
#[derive(Clone)]
pub(super) struct Transport {
    client: Client<HttpsConnector<Tcp>, Sending>,
    silence: Duration,
}

impl std::fmt::Debug for Transport {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Transport").field("silence", &self.silence).finish_non_exhaustive()
    }
}

impl Transport {
    /// With these authorities; a store that says and takes nothing for `silence` is given up.
    pub(super) fn new(authorities: RootCertStore, silence: Duration) -> Result<Self, rustls::Error> {
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let tls = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()?
            .with_root_certificates(authorities)
            .with_no_client_auth();
        let mut tcp = Tcp::new();
        tcp.enforce_http(false);
        tcp.set_nodelay(true);
        tcp.set_connect_timeout(Some(CONNECT));
        let connector =
            HttpsConnectorBuilder::new().with_tls_config(tls).https_or_http().enable_http1().wrap_connector(tcp);
        let client = Client::builder(TokioExecutor::new()).pool_max_idle_per_host(4).build(connector);
        Ok(Self { client, silence })
    }
}

impl HttpConnector for Transport {
    fn connect(&self, _: &ClientOptions) -> object_store::Result<HttpClient> {
        Ok(HttpClient::new(self.clone()))
    }
}

#[async_trait]
impl HttpService for Transport {
    async fn call(&self, request: HttpRequest) -> Result<HttpResponse, HttpError> {
        let taken = Arc::new(AtomicU64::new(0));
        let request = request.map(|inner| Sending { inner, taken: Arc::clone(&taken) });
        let mut answer = std::pin::pin!(self.client.request(request));
        let response = loop {
            let before = taken.load(Ordering::Relaxed);
            match tokio::time::timeout(self.silence, &mut answer).await {
                Ok(response) => break response.map_err(|error| failed(&error, error.is_connect()))?,
                // A large body on a slow line: as long as it moves, it is not silent.
                Err(_) if taken.load(Ordering::Relaxed) != before => {}
                Err(_) => return Err(silent(self.silence)),
            }
        };
        let (parts, inner) = response.into_parts();
        let deadline = Box::pin(tokio::time::sleep(self.silence));
        let body = Receiving { inner, deadline, silence: self.silence };
        Ok(HttpResponse::from_parts(parts, HttpResponseBody::new(body)))
    }
}

fn silent(silence: Duration) -> HttpError {
    HttpError::new(HttpErrorKind::Timeout, TransportError::Silent(silence))
}

/// What went wrong, in words without the request, and whether it may be asked again.
fn failed(error: &(dyn StdError + 'static), is_connect: bool) -> HttpError {
    let tls = causes(error).find_map(|cause| cause.downcast_ref::<rustls::Error>()).map(ToString::to_string);
    let words = causes(error).last().map(ToString::to_string).unwrap_or_default();
    match tls {
        // The same certificate is there the next time.
        Some(tls) => HttpError::new(HttpErrorKind::Unknown, TransportError::Tls(tls)),
        None if is_connect => HttpError::new(HttpErrorKind::Connect, TransportError::Unreachable(words)),
        None => HttpError::new(HttpErrorKind::Interrupted, TransportError::Broken(words)),
    }
}

/// A body on its way out, which counts its pieces.
pub(super) struct Sending {
    inner: HttpRequestBody,
    taken: Arc<AtomicU64>,
}

impl Body for Sending {
    type Data = Bytes;
    type Error = HttpError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, HttpError>>> {
        let frame = ready!(Pin::new(&mut self.inner).poll_frame(context));
        self.taken.fetch_add(1, Ordering::Relaxed);
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        self.inner.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.inner.size_hint()
    }
}

/// A body on its way in, which may not pause for long.
struct Receiving {
    inner: Incoming,
    deadline: Pin<Box<Sleep>>,
    silence: Duration,
}

impl Body for Receiving {
    type Data = Bytes;
    type Error = HttpError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, HttpError>>> {
        let this = &mut *self;
        if let Poll::Ready(frame) = Pin::new(&mut this.inner).poll_frame(context) {
            this.deadline.as_mut().reset(Instant::now() + this.silence);
            return Poll::Ready(frame.map(|frame| frame.map_err(|error| failed(&error, false))));
        }
        ready!(this.deadline.as_mut().poll(context));
        Poll::Ready(Some(Err(silent(this.silence))))
    }

    fn is_end_stream(&self) -> bool {
        self.inner.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.inner.size_hint()
    }
}
