//! Asks a server whether it accepts connections, without logging in: the first message of the protocol, the first
//! byte of the answer. What `pg_isready` does, in process and without a password.

use std::path::Path;
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::net::UnixStream;

use crate::role::{DATABASE, GroupRole, Letter};

/// What the server answered.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Answer {
    /// It asks for a password: it accepts connections.
    Accepting,
    /// It says that it is starting up, recovering or shutting down.
    NotYet,
    /// It refuses for another reason: the SQLSTATE and the message.
    Refusing(String),
    /// Nobody listens.
    Absent,
    /// Somebody listens and says nothing in time.
    Silent,
    /// Another process listens on our socket.
    Foreign(String),
}

/// An error answer is a few hundred bytes; anything longer is not PostgreSQL.
const MAX_ANSWER_BYTES: usize = 8192;
/// SQLSTATE cannot_connect_now.
const NOT_YET: &str = "57P03";

/// Asks the server behind `socket`, which must be process `pid` of user `uid`: who listens on a Unix socket is told
/// by the system, so a stranger who got hold of our path is not taken for our server.
pub(crate) async fn ask(socket: &Path, uid: u32, pid: u32, deadline: Duration) -> Answer {
    tokio::time::timeout(deadline, exchange(socket, uid, pid)).await.unwrap_or(Answer::Silent)
}

async fn exchange(socket: &Path, uid: u32, pid: u32) -> Answer {
    let Ok(mut stream) = UnixStream::connect(socket).await else { return Answer::Absent };
    match stream.peer_cred() {
        Ok(peer) if peer.uid() != uid => return Answer::Foreign(format!("user {}", peer.uid())),
        // Not every system tells the pid.
        Ok(peer) if peer.pid().is_some_and(|peer| u32::try_from(peer) != Ok(pid)) => {
            return Answer::Foreign(format!("process {}", peer.pid().unwrap_or_default()));
        }
        Ok(_) => {}
        Err(_) => return Answer::Absent,
    }
    ask_stream(&mut stream).await
}

/// Asks whoever is at the other end, which is known to be our server. Waits for ever.
pub(crate) async fn ask_stream(stream: &mut (impl AsyncRead + AsyncWrite + Unpin)) -> Answer {
    if stream.write_all(&startup_message()).await.is_err() {
        return Answer::Absent;
    }
    let mut kind = [0_u8; 5];
    if stream.read_exact(&mut kind).await.is_err() {
        return Answer::NotYet;
    }
    if kind[0] == b'R' {
        return Answer::Accepting;
    }
    let length = u32::from_be_bytes([kind[1], kind[2], kind[3], kind[4]]) as usize;
    if kind[0] != b'E' || !(4..=MAX_ANSWER_BYTES).contains(&length) {
        return Answer::Refusing("it does not speak PostgreSQL's protocol".to_owned());
    }
    let mut body = vec![0_u8; length - 4];
    if stream.read_exact(&mut body).await.is_err() {
        return Answer::NotYet;
    }
    let field = |wanted: u8| {
        body.split(|byte| *byte == 0)
            .find(|field| field.first() == Some(&wanted))
            .map(|field| String::from_utf8_lossy(&field[1..]).into_owned())
            .unwrap_or_default()
    };
    if field(b'C') == NOT_YET { Answer::NotYet } else { Answer::Refusing(format!("{} ({})", field(b'M'), field(b'C'))) }
}

/// Protocol 3.0 with a user that the server knows by configuration.
fn startup_message() -> Vec<u8> {
    let mut body = 196_608_u32.to_be_bytes().to_vec();
    let user = GroupRole::Monitor.login_name(Letter::A);
    for text in ["user", user.as_str(), "database", DATABASE, "application_name", "bibd probe", ""] {
        body.extend_from_slice(text.as_bytes());
        body.push(0);
    }
    let length = u32::try_from(body.len() + 4).expect("the message is some 80 bytes");
    let mut message = length.to_be_bytes().to_vec();
    message.append(&mut body);
    message
}
