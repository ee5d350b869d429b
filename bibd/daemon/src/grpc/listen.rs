//! The listeners: bound early, accepting late; each connection is bounded before anything of it is believed.
//!
//! The Unix socket vouches by peer credentials, TLS by the handshake of `bib-identity`. Both hand their connections to
//! one bounded channel, which is what tonic serves.

use std::io;
use std::net::SocketAddr;
use std::os::unix::fs::{FileTypeExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use bib_identity::server_tls::{ServerTls, client_identity};
use bytes::{Bytes, BytesMut};
use rustls::ServerConfig;
use tokio::io::{AsyncRead, AsyncReadExt as _};
use tokio::net::{TcpListener, TcpStream, UnixListener, UnixStream};
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;

use crate::grpc::connections::{Connection, ConnectionRegistry, Full, Io, Place};
use crate::grpc::peer::Peer;
use crate::metrics::Metrics;
use crate::supervisor::TaskResult;

/// What an HTTP/2 client says first (RFC 9113, 3.4).
const PREFACE_BYTES: usize = 24;
/// Connections whose handshake is under way, per listener.
const MAX_HANDSHAKES: usize = 256;
/// Pauses after the system refused to accept.
const FIRST_PAUSE: Duration = Duration::from_millis(20);
const LONGEST_PAUSE: Duration = Duration::from_secs(1);

/// An address or socket cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum BindError {
    /// The address is in use or not ours.
    #[error("listen on {address}")]
    Tcp {
        /// Which.
        address: SocketAddr,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// Somebody answers on the socket.
    #[error("another process answers on `{path}`")]
    SocketInUse {
        /// Which.
        path: PathBuf,
    },
    /// Something that is not a socket lies there.
    #[error("`{path}` is not a socket")]
    NotASocket {
        /// Which.
        path: PathBuf,
    },
    /// The path does not fit.
    #[error("the socket path `{path}` is longer than {} bytes", crate::config::places::MAX_SOCKET_PATH_BYTES)]
    SocketPathTooLong {
        /// Which.
        path: PathBuf,
    },
    /// The system refuses.
    #[error("make the socket `{path}`")]
    Socket {
        /// Which.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
}

/// Binds every address.
///
/// # Errors
/// [`BindError::Tcp`] with the first address that cannot be used.
pub async fn bind_tcp(addresses: &[SocketAddr]) -> Result<Vec<TcpListener>, BindError> {
    let mut listeners = Vec::with_capacity(addresses.len());
    for &address in addresses {
        let listener = TcpListener::bind(address).await.map_err(|source| BindError::Tcp { address, source })?;
        listeners.push(listener);
    }
    Ok(listeners)
}

/// Binds the Unix socket with these permissions. A file left by a daemon that died is removed, but only when nobody
/// answers on it.
///
/// # Errors
/// [`BindError`].
pub async fn bind_socket(path: &Path, mode: u32) -> Result<UnixListener, BindError> {
    let failed = |source| BindError::Socket { path: path.to_owned(), source };
    if path.as_os_str().len() > crate::config::places::MAX_SOCKET_PATH_BYTES {
        return Err(BindError::SocketPathTooLong { path: path.to_owned() });
    }
    match std::fs::symlink_metadata(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => return Err(failed(error)),
        Ok(found) if !found.file_type().is_socket() => return Err(BindError::NotASocket { path: path.to_owned() }),
        Ok(_) => match UnixStream::connect(path).await {
            Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => {
                std::fs::remove_file(path).map_err(failed)?;
            }
            Ok(_) => return Err(BindError::SocketInUse { path: path.to_owned() }),
            Err(error) => return Err(failed(error)),
        },
    }
    // The umask of the daemon is 077, so nobody slips in between these two lines.
    let listener = UnixListener::bind(path).map_err(failed)?;
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode)).map_err(failed)?;
    Ok(listener)
}

/// What the accept loops share.
#[derive(Clone)]
pub struct Intake {
    /// Where connections go.
    pub sender: mpsc::Sender<Connection>,
    /// Where they are counted.
    pub connections: ConnectionRegistry,
    /// Where refusals are counted.
    pub metrics: Arc<Metrics>,
    /// How long handshake and first bytes may take, each.
    pub handshake_timeout: Duration,
}

/// What TLS needs.
#[derive(Clone)]
pub struct TlsIntake {
    /// The configuration for handshakes.
    pub config: Arc<ServerConfig>,
    /// Which leaf they show.
    pub tls: Arc<ServerTls>,
}

/// Accepts from the Unix socket until `stop`.
///
/// # Errors
/// Never by itself; the signature is the supervisor's.
pub async fn accept_socket(listener: Arc<UnixListener>, intake: Intake, stop: CancellationToken) -> TaskResult {
    let mut handshakes = JoinSet::new();
    let mut pause = FIRST_PAUSE;
    loop {
        while handshakes.len() >= MAX_HANDSHAKES {
            handshakes.join_next().await;
        }
        tokio::select! {
            () = stop.cancelled() => return Ok(()),
            Some(_) = handshakes.join_next() => {}
            accepted = listener.accept() => match accepted {
                Ok((stream, _)) => {
                    pause = FIRST_PAUSE;
                    handshakes.spawn(take_socket(stream, intake.clone()));
                }
                Err(error) => after_refusal(&error, &mut pause, &intake, &stop).await,
            },
        }
    }
}

/// Accepts TLS until `stop`.
///
/// # Errors
/// Never by itself; the signature is the supervisor's.
pub async fn accept_tls(
    listener: Arc<TcpListener>,
    intake: Intake,
    tls: TlsIntake,
    stop: CancellationToken,
) -> TaskResult {
    let mut handshakes = JoinSet::new();
    let mut pause = FIRST_PAUSE;
    loop {
        while handshakes.len() >= MAX_HANDSHAKES {
            handshakes.join_next().await;
        }
        tokio::select! {
            () = stop.cancelled() => return Ok(()),
            Some(_) = handshakes.join_next() => {}
            accepted = listener.accept() => match accepted {
                Ok((stream, remote)) => {
                    pause = FIRST_PAUSE;
                    match intake.connections.reserve(remote.ip()) {
                        Ok(place) => {
                            handshakes.spawn(take_tls(stream, remote, place, intake.clone(), tls.clone()));
                        }
                        Err(full) => intake.refused(match full {
                            Full::Total => "total",
                            Full::Address => "address",
                        }),
                    }
                }
                Err(error) => after_refusal(&error, &mut pause, &intake, &stop).await,
            },
        }
    }
}

/// Out of descriptors or memory: waits, longer each time. A connection that was reset before it was accepted: goes on.
async fn after_refusal(error: &io::Error, pause: &mut Duration, intake: &Intake, stop: &CancellationToken) {
    let starved = [libc::EMFILE, libc::ENFILE, libc::ENOBUFS, libc::ENOMEM];
    if !error.raw_os_error().is_some_and(|code| starved.contains(&code)) {
        tracing::debug!(error.cause = %error, "a connection was gone before it was accepted");
        return;
    }
    intake.refused("descriptors");
    if *pause == FIRST_PAUSE {
        tracing::error!(error.cause = %error, "no connection can be accepted; raise the limit of open files (ulimit -n)");
    }
    let _ = stop.run_until_cancelled(tokio::time::sleep(*pause)).await;
    *pause = (*pause * 2).min(LONGEST_PAUSE);
}

async fn take_socket(mut stream: UnixStream, intake: Intake) {
    let Ok(credentials) = stream.peer_cred() else { return intake.refused("credentials") };
    let peer = Peer::Socket { uid: credentials.uid(), gid: credentials.gid(), pid: credentials.pid() };
    let Some(prefix) = first_bytes(&mut stream, intake.handshake_timeout).await else {
        return intake.refused("preface");
    };
    let connection = intake.connections.admit(Io::Socket(stream), peer, prefix, None);
    // The channel closes when the server stops: then the connection is dropped, as it should be.
    let _ = intake.sender.send(connection).await;
}

async fn take_tls(stream: TcpStream, remote: SocketAddr, place: Place, intake: Intake, tls: TlsIntake) {
    if stream.set_nodelay(true).is_err() {
        return intake.refused("reset");
    }
    let leaf = tls.tls.leaf_sha256();
    let handshake = TlsAcceptor::from(tls.config).accept(stream);
    let mut stream = match tokio::time::timeout(intake.handshake_timeout, handshake).await {
        Ok(Ok(stream)) => stream,
        Ok(Err(error)) => {
            tracing::debug!(peer = %remote, error.cause = %error, "a TLS handshake failed");
            return intake.refused("handshake");
        }
        Err(_) => return intake.refused("handshake_timeout"),
    };
    // Renewed in the middle of the handshake: which leaf was shown is unknown, and a log-in is bound to it.
    if tls.tls.leaf_sha256() != leaf {
        return intake.refused("renewal");
    }
    let Ok(client) = client_identity(stream.get_ref().1.peer_certificates()) else {
        return intake.refused("certificate");
    };
    let Some(prefix) = first_bytes(&mut stream, intake.handshake_timeout).await else {
        return intake.refused("preface");
    };
    let peer = Peer::Tls { remote, client, server_leaf: leaf };
    let connection = intake.connections.admit(Io::Tls(Box::new(stream)), peer, prefix, Some(place));
    let _ = intake.sender.send(connection).await;
}

/// The first bytes of HTTP/2. hyper would wait for them without a limit.
async fn first_bytes(stream: &mut (impl AsyncRead + Unpin), limit: Duration) -> Option<Bytes> {
    let mut bytes = BytesMut::with_capacity(PREFACE_BYTES);
    let read = async {
        while bytes.len() < PREFACE_BYTES {
            if stream.read_buf(&mut bytes).await? == 0 {
                return Err(io::Error::from(io::ErrorKind::UnexpectedEof));
            }
        }
        Ok(())
    };
    tokio::time::timeout(limit, read).await.ok()?.ok()?;
    bytes.starts_with(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n").then(|| bytes.freeze())
}

impl Intake {
    fn refused(&self, reason: &'static str) {
        self.metrics.connections_refused.with_label_values(&[reason]).inc();
    }
}
