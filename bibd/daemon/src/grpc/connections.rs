//! Every live connection: counted, bounded, and dropped when its certificate no longer counts.
//!
//! A connection is cut by its [`CancellationToken`]: the next poll of its socket fails, and HTTP/2 ends with it.

use std::collections::HashMap;
use std::io;
use std::net::IpAddr;
use std::pin::Pin;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use bib_core::UserId;
use bytes::Bytes;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpStream, UnixStream};
use tokio_rustls::server::TlsStream;
use tokio_util::sync::{CancellationToken, WaitForCancellationFutureOwned};
use tonic::transport::server::Connected;

use crate::clock::Clock;
use crate::grpc::peer::Peer;
use crate::metrics::Metrics;

/// How many TLS connections there may be. The Unix socket is not counted: who floods from outside must not lock out
/// the owner.
#[derive(Debug, Clone, Copy)]
pub struct Caps {
    /// In all.
    pub total: u32,
    /// From one address.
    pub per_address: u32,
}

/// Why a connection is not taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Full {
    /// There are as many as there may be.
    Total,
    /// There are as many from this address as there may be.
    Address,
}

/// The calls of one connection.
#[derive(Debug)]
pub struct Activity {
    started: Instant,
    open_calls: AtomicU32,
    last_ms: AtomicU64,
}

impl Activity {
    fn new(now: Instant) -> Self {
        Self { started: now, open_calls: AtomicU32::new(0), last_ms: AtomicU64::new(0) }
    }

    /// A call began.
    pub fn begin(&self, now: Instant) {
        self.open_calls.fetch_add(1, Ordering::Relaxed);
        self.touch(now);
    }

    /// A call ended.
    pub fn end(&self, now: Instant) {
        self.open_calls.fetch_sub(1, Ordering::Relaxed);
        self.touch(now);
    }

    fn touch(&self, now: Instant) {
        let since = u64::try_from(now.saturating_duration_since(self.started).as_millis()).unwrap_or(u64::MAX);
        self.last_ms.fetch_max(since, Ordering::Relaxed);
    }

    fn idle_for(&self, now: Instant) -> Duration {
        if self.open_calls.load(Ordering::Relaxed) > 0 {
            return Duration::ZERO;
        }
        let last = self.started + Duration::from_millis(self.last_ms.load(Ordering::Relaxed));
        now.saturating_duration_since(last)
    }
}

struct Entry {
    peer: Arc<Peer>,
    cut: CancellationToken,
    activity: Arc<Activity>,
}

#[derive(Default)]
struct Table {
    next: u64,
    live: HashMap<u64, Entry>,
    /// TLS connections per address, from accept on: handshakes count too.
    by_address: HashMap<IpAddr, u32>,
    tls: u32,
}

/// The table of connections. Cheap to clone.
#[derive(Clone)]
pub struct ConnectionRegistry {
    table: Arc<Mutex<Table>>,
    caps: Caps,
    clock: Arc<dyn Clock>,
    metrics: Arc<Metrics>,
}

impl std::fmt::Debug for ConnectionRegistry {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ConnectionRegistry").field("caps", &self.caps).finish_non_exhaustive()
    }
}

/// A place among the TLS connections, taken at accept and given back when dropped.
pub struct Place {
    registry: ConnectionRegistry,
    address: IpAddr,
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut table = self.registry.lock();
        table.tls -= 1;
        if let Some(count) = table.by_address.get_mut(&self.address) {
            *count -= 1;
            if *count == 0 {
                table.by_address.remove(&self.address);
            }
        }
    }
}

impl ConnectionRegistry {
    /// An empty table.
    #[must_use]
    pub fn new(caps: Caps, clock: Arc<dyn Clock>, metrics: Arc<Metrics>) -> Self {
        Self { table: Arc::default(), caps, clock, metrics }
    }

    /// Takes a place for a TLS connection from `address`, before its handshake.
    ///
    /// # Errors
    /// [`Full`] when there is none.
    pub fn reserve(&self, address: IpAddr) -> Result<Place, Full> {
        let address = address.to_canonical();
        let mut table = self.lock();
        if table.tls >= self.caps.total {
            return Err(Full::Total);
        }
        if table.by_address.get(&address).is_some_and(|count| *count >= self.caps.per_address) {
            return Err(Full::Address);
        }
        table.tls += 1;
        *table.by_address.entry(address).or_default() += 1;
        drop(table);
        Ok(Place { registry: self.clone(), address })
    }

    /// Takes a connection into the table. `prefix` is what was read of it already.
    pub(crate) fn admit(&self, io: Io, peer: Peer, prefix: Bytes, place: Option<Place>) -> Connection {
        let cut = CancellationToken::new();
        let (peer, activity) = (Arc::new(peer), Arc::new(Activity::new(self.clock.monotonic())));
        let mut table = self.lock();
        let id = table.next;
        table.next += 1;
        let entry = Entry { peer: Arc::clone(&peer), cut: cut.clone(), activity: Arc::clone(&activity) };
        table.live.insert(id, entry);
        drop(table);
        let kind = if matches!(*peer, Peer::Socket { .. }) { "socket" } else { "tls" };
        self.metrics.connections.with_label_values(&[kind]).inc();
        Connection {
            io,
            prefix,
            cut: Box::pin(cut.clone().cancelled_owned()),
            is_cut: cut,
            info: ConnectionInfo { peer, activity },
            _membership: Membership { registry: self.clone(), id, kind, _place: place },
        }
    }

    /// Cuts every connection that was opened with this client certificate. Returns how many there were.
    pub fn drop_serial(&self, serial: &str) -> usize {
        self.cut(|entry| entry.peer.client().is_some_and(|client| client.serial == serial))
    }

    /// Cuts every connection of a user: over TLS by the certificate, on the socket by `uids`. For whoever may less than
    /// before: their streams were opened with the rights that they had. Returns how many there were.
    pub fn drop_user(&self, user: UserId, uids: &[u32]) -> usize {
        self.cut(|entry| match entry.peer.as_ref() {
            Peer::Socket { uid, .. } => uids.contains(uid),
            Peer::Tls { client, .. } => client.as_ref().is_some_and(|client| client.user_id == user),
        })
    }

    /// Cuts every connection; for a stop that does not wait any longer.
    pub fn drop_all(&self) -> usize {
        self.cut(|_| true)
    }

    /// Cuts connections whose certificate has expired, and those without a call for longer than `idle` (TLS without
    /// log-in: a quarter of that). Returns how many. Called every few seconds by a background task.
    pub fn sweep(&self, idle: Duration) -> usize {
        let (now, moment) = (self.clock.monotonic(), self.clock.now());
        self.cut(|entry| match entry.peer.as_ref() {
            Peer::Socket { .. } => false,
            Peer::Tls { client: None, .. } => entry.activity.idle_for(now) > idle / 4,
            Peer::Tls { client: Some(client), .. } => client.not_after < moment || entry.activity.idle_for(now) > idle,
        })
    }

    /// Connections at this moment.
    #[must_use]
    pub fn len(&self) -> usize {
        self.lock().live.len()
    }

    /// Is there no connection?
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    fn cut(&self, which: impl Fn(&Entry) -> bool) -> usize {
        let table = self.lock();
        let chosen: Vec<_> = table.live.values().filter(|entry| which(entry)).map(|entry| entry.cut.clone()).collect();
        drop(table);
        chosen.iter().for_each(CancellationToken::cancel);
        chosen.len()
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Table> {
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

struct Membership {
    registry: ConnectionRegistry,
    id: u64,
    kind: &'static str,
    _place: Option<Place>,
}

impl Drop for Membership {
    fn drop(&mut self) {
        self.registry.lock().live.remove(&self.id);
        self.registry.metrics.connections.with_label_values(&[self.kind]).dec();
    }
}

/// What tonic puts on each request of a connection.
#[derive(Debug, Clone)]
pub struct ConnectionInfo {
    /// Who is at the other end.
    pub peer: Arc<Peer>,
    /// The connection's calls.
    pub activity: Arc<Activity>,
}

/// The bytes below HTTP/2.
#[derive(Debug)]
pub(crate) enum Io {
    /// From the Unix socket.
    Socket(UnixStream),
    /// Inside TLS.
    Tls(Box<TlsStream<TcpStream>>),
}

/// A connection on its way through tonic.
pub struct Connection {
    io: Io,
    prefix: Bytes,
    cut: Pin<Box<WaitForCancellationFutureOwned>>,
    is_cut: CancellationToken,
    info: ConnectionInfo,
    _membership: Membership,
}

impl std::fmt::Debug for Connection {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Connection({})", self.info.peer)
    }
}

impl Connected for Connection {
    type ConnectInfo = ConnectionInfo;

    fn connect_info(&self) -> ConnectionInfo {
        self.info.clone()
    }
}

fn cut_error() -> io::Error {
    io::Error::new(io::ErrorKind::ConnectionAborted, "the connection was cut")
}

macro_rules! with_io {
    ($self:ident, $io:ident => $act:expr) => {
        match &mut $self.io {
            Io::Socket(stream) => {
                let $io = Pin::new(stream);
                $act
            }
            Io::Tls(stream) => {
                let $io = Pin::new(stream.as_mut());
                $act
            }
        }
    };
}

impl AsyncRead for Connection {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        // HTTP/2 always waits for the next frame, so this poll is what wakes a cut connection.
        if self.cut.as_mut().poll(cx).is_ready() {
            return Poll::Ready(Err(cut_error()));
        }
        if !self.prefix.is_empty() {
            let length = self.prefix.len().min(buf.remaining());
            let head = self.prefix.split_to(length);
            buf.put_slice(&head);
            return Poll::Ready(Ok(()));
        }
        with_io!(self, io => io.poll_read(cx, buf))
    }
}

impl AsyncWrite for Connection {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        if self.is_cut.is_cancelled() {
            return Poll::Ready(Err(cut_error()));
        }
        with_io!(self, io => io.poll_write(cx, buf))
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        if self.is_cut.is_cancelled() {
            return Poll::Ready(Err(cut_error()));
        }
        with_io!(self, io => io.poll_write_vectored(cx, bufs))
    }

    fn is_write_vectored(&self) -> bool {
        match &self.io {
            Io::Socket(stream) => stream.is_write_vectored(),
            Io::Tls(stream) => stream.is_write_vectored(),
        }
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        with_io!(self, io => io.poll_flush(cx))
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if self.is_cut.is_cancelled() {
            return Poll::Ready(Ok(()));
        }
        with_io!(self, io => io.poll_shutdown(cx))
    }
}
