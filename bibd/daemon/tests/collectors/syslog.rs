//! A syslog receiver over TLS that counts frames as RFC 5425 says.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use serde_json::Value;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::AbortHandle;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;

use super::{Authority, Taken};

/// What the receiver does with connections.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mood {
    Good,
    /// Resets a connection once it has read this many bytes; what it read so far counts, what it did not is lost.
    ResetsAfter(usize),
    /// Ends a connection in order, without reading on, after this many bytes.
    ClosesAfter(usize),
    /// Reads everything and ends without a `close_notify`.
    Rude,
    /// Reads this many bytes and then no more.
    Stalls(usize),
}

#[derive(Clone)]
pub struct Receiver {
    pub taken: Taken,
    mood: Arc<Mutex<Mood>>,
    server: Arc<Mutex<Option<AbortHandle>>>,
    tls: Arc<Mutex<TlsAcceptor>>,
    pub connections: Arc<Mutex<u32>>,
    pub address: SocketAddr,
}

impl Receiver {
    pub async fn start(authority: &Authority) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let receiver = Self {
            taken: Taken::default(),
            mood: Arc::new(Mutex::new(Mood::Good)),
            server: Arc::default(),
            tls: Arc::new(Mutex::new(TlsAcceptor::from(authority.server()))),
            connections: Arc::default(),
            address: listener.local_addr().unwrap(),
        };
        receiver.serve(listener);
        receiver
    }

    /// From the next connection on its certificate is from another authority.
    pub fn changes_certificate(&self, authority: &Authority) {
        *self.tls.lock().unwrap() = TlsAcceptor::from(authority.server());
    }

    pub fn mood(&self, mood: Mood) {
        *self.mood.lock().unwrap() = mood;
    }

    fn serve(&self, listener: TcpListener) {
        let receiver = self.clone();
        let task = tokio::spawn(async move {
            loop {
                let (stream, _) = listener.accept().await.unwrap();
                *receiver.connections.lock().unwrap() += 1;
                // One after the other: the order of connections is the order of entries.
                receiver.read(stream).await;
            }
        });
        *self.server.lock().unwrap() = Some(task.abort_handle());
    }

    async fn read(&self, stream: TcpStream) {
        let tls = self.tls.lock().unwrap().clone();
        let Ok(Ok(mut stream)) = tokio::time::timeout(Duration::from_secs(10), tls.accept(stream)).await else {
            return;
        };
        let mut buffer = Vec::new();
        let mut read = 0;
        loop {
            let mut piece = [0; 4096];
            let got = match stream.read(&mut piece).await {
                Ok(0) => return self.end(stream).await,
                Ok(got) => got,
                Err(_) => return,
            };
            buffer.extend_from_slice(&piece[..got]);
            read += got;
            self.take(&mut buffer);
            let mood = *self.mood.lock().unwrap();
            match mood {
                Mood::ResetsAfter(limit) if read >= limit => {
                    return stream.get_ref().0.set_zero_linger().unwrap();
                }
                Mood::ClosesAfter(limit) if read >= limit => {
                    let _ = stream.shutdown().await;
                    return;
                }
                Mood::Stalls(limit) if read >= limit => return std::future::pending().await,
                _ => {}
            }
        }
    }

    async fn end(&self, mut stream: TlsStream<TcpStream>) {
        if *self.mood.lock().unwrap() == Mood::Rude {
            // The end of the stream alone.
            let _ = stream.get_mut().0.shutdown().await;
        } else {
            let _ = stream.shutdown().await;
        }
    }

    /// Takes whole frames out of the buffer.
    fn take(&self, buffer: &mut Vec<u8>) {
        while let Some(space) = buffer.iter().position(|byte| *byte == b' ') {
            let length: usize = std::str::from_utf8(&buffer[..space]).unwrap().parse().unwrap();
            if buffer.len() < space + 1 + length {
                return;
            }
            let frame: Vec<u8> = buffer.drain(..space + 1 + length).skip(space + 1).collect();
            self.taken.add([event(std::str::from_utf8(&frame).unwrap())]);
        }
    }

    /// Nobody listens any more; a connection that is open ends with the program.
    pub fn goes_away(&self) {
        if let Some(server) = self.server.lock().unwrap().take() {
            server.abort();
        }
    }

    pub async fn comes_back(&self) {
        let listener = loop {
            match TcpListener::bind(self.address).await {
                Ok(listener) => break listener,
                Err(_) => tokio::time::sleep(Duration::from_millis(20)).await,
            }
        };
        self.serve(listener);
    }
}

/// RFC 5424: `<PRI>1 TIME HOST APP PROCID MSGID [SD] MSG`.
fn event(message: &str) -> Value {
    let parts: Vec<&str> = message.splitn(7, ' ').collect();
    assert!(parts[0].starts_with('<') && parts[0].ends_with(">1"), "{message}");
    let priority: u32 = parts[0][1..parts[0].len() - 2].parse().unwrap();
    assert_eq!(priority / 8, 13, "log audit");
    assert!(parts[1].ends_with('Z') && parts[3] == "bibd" && parts[4] == "-", "{message}");
    let (data, text) = parts[6].split_once("] ").unwrap();
    assert!(data.starts_with("[origin software=\"bibd\""), "{message}");
    let event: Value = serde_json::from_str(text).unwrap();
    assert_eq!(parts[5], event["entry"]["action"].as_str().unwrap());
    event
}
