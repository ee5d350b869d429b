//! HTTP/2 by hand: what no honest client sends (RFC 9113 for the frames, RFC 7541 for the headers).

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::UnixStream;
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};

pub const DATA: u8 = 0;
pub const HEADERS: u8 = 1;
pub const RST_STREAM: u8 = 3;
pub const SETTINGS: u8 = 4;
pub const PING: u8 = 6;
const GOAWAY: u8 = 7;
pub const CONTINUATION: u8 = 9;
pub const END_HEADERS: u8 = 4;

/// A frame.
pub fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let mut bytes = u32::try_from(payload.len()).unwrap().to_be_bytes()[1..].to_vec();
    bytes.extend([kind, flags]);
    bytes.extend(stream.to_be_bytes());
    bytes.extend(payload);
    bytes
}

/// A header block of literals that nothing remembers, for a gRPC call of `path`.
pub fn headers(path: &str) -> Vec<u8> {
    let mut block = Vec::new();
    let fields = [
        (":method", "POST"),
        (":scheme", "http"),
        (":authority", "bibd"),
        (":path", path),
        ("content-type", "application/grpc"),
        ("te", "trailers"),
    ];
    for (name, value) in fields {
        block.extend(literal(name, value));
    }
    block
}

pub fn literal(name: &str, value: &str) -> Vec<u8> {
    let mut bytes = vec![0];
    for text in [name, value] {
        // Below 127 a length is one byte.
        bytes.push(u8::try_from(text.len()).unwrap());
        bytes.extend(text.as_bytes());
    }
    bytes
}

/// A raw connection past the preface.
pub struct Raw {
    write: OwnedWriteHalf,
    reader: Option<OwnedReadHalf>,
    ended: Arc<AtomicBool>,
}

impl Raw {
    /// Connects and reads all that comes.
    pub async fn connect(socket: &Path) -> Self {
        let mut raw = Self::deaf(socket).await;
        let (mut read, ended) = (raw.reader.take().unwrap(), raw.ended.clone());
        tokio::spawn(async move {
            let mut head = [0; 9];
            while read.read_exact(&mut head).await.is_ok() && head[3] != GOAWAY {
                let length = u32::from_be_bytes([0, head[0], head[1], head[2]]);
                let mut payload = vec![0; length as usize];
                if read.read_exact(&mut payload).await.is_err() {
                    break;
                }
            }
            ended.store(true, Ordering::SeqCst);
        });
        raw
    }

    /// Connects and never reads.
    pub async fn deaf(socket: &Path) -> Self {
        let (reader, mut write) = UnixStream::connect(socket).await.unwrap().into_split();
        write.write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n").await.unwrap();
        write.write_all(&frame(SETTINGS, 0, 0, &[])).await.unwrap();
        Self { write, reader: Some(reader), ended: Arc::default() }
    }

    /// Whether the daemon said good-bye or closed.
    pub fn has_ended(&self) -> bool {
        self.ended.load(Ordering::SeqCst)
    }

    /// Sends; false when the daemon has closed, or takes nothing any more for half a second.
    pub async fn send(&mut self, bytes: &[u8]) -> bool {
        let sent = tokio::time::timeout(Duration::from_millis(500), self.write.write_all(bytes)).await;
        matches!(sent, Ok(Ok(()))) && !self.has_ended()
    }
}
