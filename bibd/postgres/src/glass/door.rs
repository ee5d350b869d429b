//! The way in to a role of break-glass: SCRAM with a password that only this knows, over the server's socket, or over TLS
//! with a certificate of that role.

use std::fmt;
use std::io;
use std::path::PathBuf;
use std::time::Duration;

use bytes::BytesMut;
use fallible_iterator::FallibleIterator as _;
use postgres_protocol::authentication::sasl::{ChannelBinding, SCRAM_SHA_256, SCRAM_SHA_256_PLUS, ScramSha256};
use postgres_protocol::message::backend::{ErrorResponseBody, Message};
use postgres_protocol::message::frontend;
use secrecy::{ExposeSecret as _, SecretString};
use sha2::{Digest as _, Sha256};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpStream, UnixStream};
use tokio_rustls::client::TlsStream;
use tokio_util::either::Either;

use crate::provisioner::ManagedPostgres;
use crate::role::Login;
use crate::tcp::{Endpoint, TlsError};

/// How long the server may take to let somebody in, or to hear that something is to end.
const DEADLINE: Duration = Duration::from_secs(5);
/// What is read at once.
const READ_BYTES: usize = 8192;

/// Names a session to the server, for a cancel request.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct BackendKey {
    /// The backend's process id.
    pub pid: i32,
    /// What a cancel request must know.
    pub secret: i32,
}

/// Why the way in is closed.
#[derive(Debug, thiserror::Error)]
pub enum DoorError {
    /// The socket, or the connection.
    #[error("connect to PostgreSQL")]
    Io(#[from] io::Error),
    /// There is no TLS with the server, or it is not ours.
    #[error(transparent)]
    Tls(#[from] TlsError),
    /// The server says no.
    #[error("PostgreSQL refuses ({code}): {message}")]
    Refused {
        /// SQLSTATE.
        code: String,
        /// What it says.
        message: String,
    },
    /// The server says something else than what it should.
    #[error("PostgreSQL answers with {0}")]
    Protocol(&'static str),
    /// It takes too long.
    #[error("PostgreSQL does not answer within {DEADLINE:?}")]
    Deadline,
}

/// The way in. Cheap enough to clone; printing it shows no password.
#[derive(Clone)]
pub struct Door {
    way: Way,
    login: Login,
    verifier: SecretString,
}

#[derive(Clone)]
enum Way {
    /// The socket itself.
    Socket(PathBuf),
    /// TLS, with a certificate made for each connection.
    Tls(Endpoint),
}

/// A connection with the server, which is known to be ours.
pub type Stream = Either<UnixStream, Box<TlsStream<TcpStream>>>;

impl fmt::Debug for Door {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Door").field("user", &self.login.user).finish_non_exhaustive()
    }
}

/// A session that the server let in.
pub struct Entered {
    /// The connection; what comes next on it is the answer to the first statement.
    pub stream: Stream,
    /// What was read past the greeting.
    pub rest: BytesMut,
    /// The server's settings that a client is told, in order.
    pub parameters: Vec<(String, String)>,
    /// For cancel requests.
    pub key: BackendKey,
}

impl Door {
    pub(super) fn new(server: &dyn ManagedPostgres, login: Login, verifier: SecretString) -> Self {
        let way = match server.endpoint() {
            Some(endpoint) => Way::Tls(endpoint.clone()),
            None => Way::Socket(server.layout().socket()),
        };
        Self { way, login, verifier }
    }

    /// The role.
    pub fn role(&self) -> &str {
        &self.login.user
    }

    /// What the server was given as the password's verifier.
    pub fn verifier(&self) -> &SecretString {
        &self.verifier
    }

    /// Logs in. `parameters` are what the client would like to be set, such as `application_name`; who it is and where
    /// it goes is not the client's to say.
    ///
    /// # Errors
    /// [`DoorError`].
    pub async fn enter(&self, parameters: &[(String, String)]) -> Result<Entered, DoorError> {
        tokio::time::timeout(DEADLINE, self.enter_at_last(parameters)).await.map_err(|_| DoorError::Deadline)?
    }

    /// Asks the server to cancel what a session does. Like every cancel request, it has no answer.
    ///
    /// # Errors
    /// [`DoorError`].
    pub async fn cancel(&self, key: BackendKey) -> Result<(), DoorError> {
        let ask = async {
            let mut stream = self.stream().await?;
            let mut message = BytesMut::new();
            frontend::cancel_request(key.pid, key.secret, &mut message);
            send(&mut stream, &message).await?;
            // The server closes when it has told the session.
            match stream.read_to_end(&mut Vec::new()).await {
                // It hangs up without saying goodbye, which TLS takes for a broken connection.
                Err(error) if error.kind() != io::ErrorKind::UnexpectedEof => return Err(error.into()),
                _ => {}
            }
            Ok(())
        };
        tokio::time::timeout(DEADLINE, ask).await.map_err(|_| DoorError::Deadline)?
    }

    /// Ends a session of this role, whatever it does: a cancel request can be caught by what runs, this cannot. Through
    /// the role's own right to end its sessions; no superuser is needed.
    ///
    /// # Errors
    /// [`DoorError`].
    pub async fn terminate(&self, pid: i32) -> Result<(), DoorError> {
        let ask = async {
            let mut entered = self.enter_at_last(&[]).await?;
            let mut message = BytesMut::new();
            let sql = format!("SELECT pg_catalog.pg_terminate_backend({pid})");
            frontend::query(&sql, &mut message)?;
            send(&mut entered.stream, &message).await?;
            loop {
                match next(&mut entered.stream, &mut entered.rest).await? {
                    Message::ReadyForQuery(_) => return Ok(()),
                    Message::ErrorResponse(error) => return Err(refused(&error)),
                    _ => {}
                }
            }
        };
        tokio::time::timeout(DEADLINE, ask).await.map_err(|_| DoorError::Deadline)?
    }

    async fn stream(&self) -> Result<Stream, DoorError> {
        Ok(match &self.way {
            Way::Socket(path) => Either::Left(UnixStream::connect(path).await?),
            Way::Tls(endpoint) => Either::Right(Box::new(endpoint.stream(&self.login.user).await?)),
        })
    }

    async fn enter_at_last(&self, parameters: &[(String, String)]) -> Result<Entered, DoorError> {
        let mut stream = self.stream().await?;
        let (mut message, mut buffer) = (BytesMut::new(), BytesMut::new());
        let own = [("user", self.login.user.as_str()), ("database", self.login.database.as_str())];
        let all = own.into_iter().chain(parameters.iter().map(|(name, value)| (name.as_str(), value.as_str())));
        frontend::startup_message(all, &mut message)?;
        send(&mut stream, &message).await?;
        self.authenticate(&mut stream, &mut buffer).await?;

        let (mut told, mut key) = (Vec::new(), None);
        loop {
            match next(&mut stream, &mut buffer).await? {
                Message::ParameterStatus(body) => told.push((body.name()?.to_owned(), body.value()?.to_owned())),
                Message::BackendKeyData(body) => {
                    key = Some(BackendKey { pid: body.process_id(), secret: body.secret_key() });
                }
                Message::NoticeResponse(_) => {}
                Message::ErrorResponse(error) => return Err(refused(&error)),
                Message::ReadyForQuery(_) => break,
                _ => return Err(DoorError::Protocol("something else than a greeting")),
            }
        }
        let key = key.ok_or(DoorError::Protocol("a greeting without its number"))?;
        Ok(Entered { stream, rest: buffer, parameters: told, key })
    }

    async fn authenticate(&self, stream: &mut Stream, buffer: &mut BytesMut) -> Result<(), DoorError> {
        const NO_SCRAM: DoorError = DoorError::Protocol("something else than SCRAM-SHA-256");
        let mechanisms = match next(stream, buffer).await? {
            Message::AuthenticationSasl(body) => body.mechanisms().collect::<Vec<_>>()?.join(" "),
            Message::ErrorResponse(error) => return Err(refused(&error)),
            // Also when it asks for nothing: then it is not the server that we configured.
            _ => return Err(NO_SCRAM),
        };
        let (mechanism, binding) = match server_end_point(stream) {
            None => (SCRAM_SHA_256, ChannelBinding::unsupported()),
            // Bound to this very connection: whoever stood in between could pass nothing on.
            Some(hash) => (SCRAM_SHA_256_PLUS, ChannelBinding::tls_server_end_point(hash)),
        };
        if !mechanisms.split(' ').any(|offered| offered == mechanism) {
            return Err(NO_SCRAM);
        }
        let mut scram = ScramSha256::new(self.login.password.expose_secret().as_bytes(), binding);
        let mut message = BytesMut::new();
        frontend::sasl_initial_response(mechanism, scram.message(), &mut message)?;
        send(stream, &message).await?;
        match next(stream, buffer).await? {
            Message::AuthenticationSaslContinue(body) => scram.update(body.data())?,
            Message::ErrorResponse(error) => return Err(refused(&error)),
            _ => return Err(NO_SCRAM),
        }
        message.clear();
        frontend::sasl_response(scram.message(), &mut message)?;
        send(stream, &message).await?;
        match next(stream, buffer).await? {
            Message::AuthenticationSaslFinal(body) => scram.finish(body.data())?,
            Message::ErrorResponse(error) => return Err(refused(&error)),
            _ => return Err(NO_SCRAM),
        }
        match next(stream, buffer).await? {
            Message::AuthenticationOk => Ok(()),
            Message::ErrorResponse(error) => Err(refused(&error)),
            _ => Err(NO_SCRAM),
        }
    }
}

/// What SCRAM calls `tls-server-end-point`: the hash of the server's certificate, which is signed with SHA-256.
fn server_end_point(stream: &Stream) -> Option<Vec<u8>> {
    let Either::Right(stream) = stream else { return None };
    let certificate = stream.get_ref().1.peer_certificates()?.first()?;
    Some(Sha256::digest(certificate).to_vec())
}

/// TLS may keep what it was given until it is told.
async fn send(stream: &mut Stream, message: &[u8]) -> io::Result<()> {
    stream.write_all(message).await?;
    stream.flush().await
}

async fn next(stream: &mut Stream, buffer: &mut BytesMut) -> Result<Message, DoorError> {
    loop {
        if let Some(message) = Message::parse(buffer)? {
            return Ok(message);
        }
        buffer.reserve(READ_BYTES);
        if stream.read_buf(buffer).await? == 0 {
            return Err(DoorError::Io(io::ErrorKind::UnexpectedEof.into()));
        }
    }
}

fn refused(error: &ErrorResponseBody) -> DoorError {
    let (mut code, mut message) = (String::new(), String::new());
    let mut fields = error.fields();
    while let Ok(Some(field)) = fields.next() {
        let text = || String::from_utf8_lossy(field.value_bytes()).into_owned();
        match field.type_() {
            b'C' => code = text(),
            b'M' => message = text(),
            _ => {}
        }
    }
    DoorError::Refused { code, message }
}
