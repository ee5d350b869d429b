//! Opens the byte stream below a channel: a Unix socket, or TCP and TLS with the node's pin checked and kept.

use std::future::Future;
use std::io;
use std::path::Path;
use std::pin::Pin as PinBox;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;

use bib_identity::trust::{
    Expectation, How, Pin, Presented, ServerVerifier, StoreError, TrustError, TrustStore, client_config, server_name,
};
use bib_identity::{ClientCredentials, TimeSource};
use http::Uri;
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

use super::ConnectFailure;
use crate::options::Options;
use crate::target::Target;

/// Any stream that HTTP/2 can be spoken on.
pub(crate) trait Stream: AsyncRead + AsyncWrite + Send + Unpin {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin> Stream for T {}

/// What a connector knows; one for each [`super::Link`].
pub(crate) struct Settings {
    pub(crate) target: Target,
    pub(crate) options: Options,
    pub(crate) expectation: Expectation,
    pub(crate) credentials: Option<ClientCredentials>,
    /// What the server showed when the last handshake ended well.
    pub(crate) presented: Mutex<Option<Presented>>,
}

/// Opens streams to one target, with back-off.
#[derive(Clone)]
pub(crate) struct Connector(pub(crate) Arc<Settings>);

impl tower::Service<Uri> for Connector {
    type Response = TokioIo<Box<dyn Stream>>;
    type Error = ConnectFailure;
    type Future = PinBox<Box<dyn Future<Output = Result<Self::Response, Self::Error>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, _: Uri) -> Self::Future {
        let settings = Arc::clone(&self.0);
        Box::pin(async move { settings.open_patiently().await.map(TokioIo::new) })
    }
}

impl Settings {
    async fn open_patiently(&self) -> Result<Box<dyn Stream>, ConnectFailure> {
        let mut pause = Duration::from_millis(50);
        let mut left = self.options.attempts.max(1);
        loop {
            left -= 1;
            match self.open().await {
                Err(failure) if failure.is_passing() && left > 0 => {
                    tracing::debug!(target.address = %self.target, error = %failure, "connecting again");
                    tokio::time::sleep(pause).await;
                    pause = (pause * 3).min(Duration::from_secs(5));
                }
                result => return result,
            }
        }
    }

    async fn open(&self) -> Result<Box<dyn Stream>, ConnectFailure> {
        let limit = self.options.connect_timeout;
        match tokio::time::timeout(limit, self.open_once()).await {
            Ok(result) => result,
            Err(_) => Err(self.unreachable(io::Error::from(io::ErrorKind::TimedOut))),
        }
    }

    async fn open_once(&self) -> Result<Box<dyn Stream>, ConnectFailure> {
        match &self.target {
            Target::Socket(path) => open_socket(path).await.map_err(|error| self.unreachable(error)),
            Target::Tls { host, port, .. } => {
                let tcp = TcpStream::connect((host.as_str(), *port)).await.map_err(|error| self.unreachable(error))?;
                // Frames of bulk data are large; answers are small and waited for.
                tcp.set_nodelay(true).map_err(|error| self.unreachable(error))?;
                self.secure(tcp).await
            }
        }
    }

    async fn secure(&self, tcp: TcpStream) -> Result<Box<dyn Stream>, ConnectFailure> {
        let address = self.target.address();
        let verifier = ServerVerifier::new(self.expectation.clone());
        let config = client_config(Arc::clone(&verifier), self.credentials.as_ref(), self.options.clock.clone())
            .map_err(|error| ConnectFailure::of_handshake(&address, io::Error::other(error)))?;
        let stream = TlsConnector::from(Arc::new(config))
            .connect(server_name(), tcp)
            .await
            .map_err(|error| ConnectFailure::of_handshake(&address, error))?;
        let presented =
            verifier.presented().ok_or_else(|| self.unreachable(io::Error::other("no certificate shown")))?;
        self.check_named_peer(&presented)?;
        if presented.how != How::Unverified {
            keep_pin(&self.options, &address, &presented)?;
        }
        *self.presented.lock().unwrap_or_else(PoisonError::into_inner) = Some(presented);
        Ok(Box::new(stream))
    }

    /// A person who named a peer id gets that node or none.
    fn check_named_peer(&self, presented: &Presented) -> Result<(), ConnectFailure> {
        match &self.target {
            Target::Tls { peer: Some(expected), .. } if *expected != presented.peer_id => {
                let source = TrustError::OtherNode { expected: *expected, found: presented.peer_id };
                Err(ConnectFailure::untrusted(&self.target.address(), source))
            }
            _ => Ok(()),
        }
    }

    fn unreachable(&self, error: io::Error) -> ConnectFailure {
        ConnectFailure::Unreachable { address: self.target.address(), source: Arc::new(error) }
    }
}

#[cfg(unix)]
async fn open_socket(path: &Path) -> io::Result<Box<dyn Stream>> {
    Ok(Box::new(tokio::net::UnixStream::connect(path).await?))
}

#[cfg(not(unix))]
async fn open_socket(_: &Path) -> io::Result<Box<dyn Stream>> {
    Err(io::Error::from(io::ErrorKind::Unsupported))
}

/// Notes what was shown, after the handshake has ended well: a new pin, a renewed CA, or one more address.
fn keep_pin(options: &Options, address: &str, presented: &Presented) -> Result<(), ConnectFailure> {
    let failed = |error: StoreError| ConnectFailure::Store(Arc::new(error));
    let store = TrustStore::open(&options.trust_dir()).map_err(failed)?;
    let now = options.clock.now();
    let Some(mut pin) = store.find(&presented.peer_id.to_string()).map_err(failed)? else {
        let pin = Pin {
            peer_id: presented.peer_id,
            alias: None,
            addresses: vec![address.to_owned()],
            ca_spki_sha256: presented.ca_spki_sha256,
            ca_certificate_pem: Some(presented.ca_certificate_pem.clone()),
            first_seen: now,
            last_seen: Some(now),
        };
        return store.add(&pin).map_err(failed);
    };
    if pin.ca_spki_sha256 != presented.ca_spki_sha256 && presented.how != How::CrossCertified {
        // Reached under a new address, so nothing was compared yet; the node is known with another key.
        let source =
            TrustError::CaChanged { peer_id: pin.peer_id, old: pin.ca_spki_sha256, new: presented.ca_spki_sha256 };
        return Err(ConnectFailure::untrusted(address, source));
    }
    let before = pin.clone();
    pin.ca_spki_sha256 = presented.ca_spki_sha256;
    pin.ca_certificate_pem = Some(presented.ca_certificate_pem.clone());
    if pin.addresses.first().map(String::as_str) != Some(address) {
        pin.addresses.retain(|known| known != address);
        pin.addresses.insert(0, address.to_owned());
        pin.addresses.truncate(16);
    }
    if pin == before && !is_stale(&before, &options.clock) {
        return Ok(());
    }
    pin.last_seen = Some(now);
    store.replace(&pin).map_err(failed)
}

/// Whether `last_seen` is a day old: it is not worth a write at each connection.
fn is_stale(pin: &Pin, clock: &TimeSource) -> bool {
    pin.last_seen.is_none_or(|seen| clock.now().as_seconds() - seen.as_seconds() > 86_400)
}
