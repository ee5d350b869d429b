//! Syslog over TLS (RFC 5425).
//!
//! The protocol has no acknowledgement: what was written may be lost with the connection, and the sender never hears of
//! it. So the connection is ended from time to time, in order, and counts when four things were seen: the receiver's
//! `close_notify` (RFC 5425, 4.4), the end of its stream, an acknowledgement of every byte of ours, and no reset. A
//! system resets a connection whose program closes it with bytes unread, and does not acknowledge what comes after; so
//! the receiver has read everything. If one is missing, everything since the last time is sent again.

use std::time::Duration;

use async_trait::async_trait;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio_rustls::client::TlsStream;

use super::tls::connect_tls;
use super::{Batch, SendError, Sent, Sink};
use crate::config::audit::{SyslogTarget, TlsTrust};

/// A receiver says nothing before the end; what comes nevertheless is read away up to this.
const MAX_CHATTER_BYTES: usize = 64 << 10;

/// Between two looks at a connection that is ending: an acknowledgement takes one way through the network.
const LOOK_AGAIN: Duration = Duration::from_millis(1);

/// Writes frames.
pub struct SyslogSink {
    host: String,
    port: u16,
    tls: TlsTrust,
    confirm: bool,
    timeout: Duration,
    open: Option<TlsStream<TcpStream>>,
}

impl SyslogSink {
    /// As configured. Nothing is opened yet.
    #[must_use]
    pub fn new(target: &SyslogTarget, timeout: Duration) -> Self {
        let (host, port) = target.address.rsplit_once(':').unwrap_or((&target.address, "6514"));
        Self {
            host: host.to_owned(),
            port: port.parse().unwrap_or(6514),
            tls: target.tls.clone(),
            confirm: target.confirm,
            timeout,
            open: None,
        }
    }

    fn failed(&self, why: impl std::fmt::Display) -> SendError {
        SendError::passing(format!("{}:{}: {why}", self.host, self.port))
    }
}

/// Writes everything, and notices meanwhile when the receiver ends the connection.
async fn write(stream: &mut TlsStream<TcpStream>, bytes: &[u8]) -> Result<(), String> {
    let (mut reader, mut writer) = tokio::io::split(stream);
    let writing = async {
        writer.write_all(bytes).await.map_err(|error| error.to_string())?;
        writer.flush().await.map_err(|error| error.to_string())
    };
    let listening = async {
        let mut chatter = [0; 1024];
        loop {
            match reader.read(&mut chatter).await {
                Ok(0) => return "the receiver ended the connection".to_owned(),
                Ok(_) => {}
                Err(error) => return error.to_string(),
            }
        }
    };
    tokio::select! {
        biased;
        why = listening => Err(why),
        written = writing => written,
    }
}

/// Ends the connection and waits until the receiver has said that it read everything.
async fn close(mut stream: TlsStream<TcpStream>) -> Result<(), &'static str> {
    const UNREAD: &str = "the receiver closed with bytes unread";
    const NOT_CLOSED: &str = "the receiver did not answer the end of the connection with a close_notify";
    stream.shutdown().await.map_err(|_| "the receiver reset the connection")?;
    let mut chatter = vec![0; MAX_CHATTER_BYTES];
    // Clean only with a close_notify: without one this is an error.
    while stream.read(&mut chatter).await.map_err(|_| NOT_CLOSED)? > 0 {}
    let (mut tcp, _) = stream.into_inner();
    while tcp.read(&mut chatter).await.map_err(|_| UNREAD)? > 0 {}
    // Both have ended their side: the socket has no peer any more as soon as all that was sent is acknowledged, or the
    // connection was reset, which its error then says. (Reading cannot tell: after the end it says the end for ever.)
    while tcp.peer_addr().is_ok() {
        tokio::time::sleep(LOOK_AGAIN).await;
    }
    match tcp.take_error() {
        Ok(None) => Ok(()),
        _ => Err(UNREAD),
    }
}

#[async_trait]
impl Sink for SyslogSink {
    async fn send(&mut self, batch: &Batch) -> Result<Sent, SendError> {
        let stream = match &mut self.open {
            Some(stream) => stream,
            closed => closed.insert(connect_tls(&self.host, self.port, &self.tls, self.timeout).await?),
        };
        match tokio::time::timeout(self.timeout, write(stream, &batch.bytes)).await {
            Ok(Ok(())) => Ok(if self.confirm { Sent::OnItsWay } else { Sent::Safe }),
            Ok(Err(why)) => Err(self.failed(why)),
            Err(_) => Err(self.failed(format!("it took no more bytes for {} s", self.timeout.as_secs()))),
        }
    }

    async fn confirm(&mut self) -> Result<(), SendError> {
        let Some(stream) = self.open.take() else { return Ok(()) };
        match tokio::time::timeout(self.timeout, close(stream)).await {
            Ok(Ok(())) => Ok(()),
            Ok(Err(why)) => Err(SendError {
                hint: Some("a receiver that never does needs `confirm: false`, and then may lose entries"),
                ..self.failed(why)
            }),
            Err(_) => Err(self.failed("the receiver does not end the connection")),
        }
    }

    fn reset(&mut self) {
        self.open = None;
    }
}
