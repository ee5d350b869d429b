//! The way to a server over TCP: connection options with both factors, and TLS streams for what speaks the protocol
//! itself.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU16, Ordering};
use std::time::Duration;

use rustls::{ClientConfig, RootCertStore};
use rustls_pki_types::pem::PemObject as _;
use rustls_pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use secrecy::ExposeSecret as _;
use sqlx::postgres::{PgConnectOptions, PgSslMode};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use super::{Authority, Client};
use crate::error::Error;
use crate::probe::{self, Answer};
use crate::role::{GroupRole, Letter, Login};

/// How long a handshake may take.
const PRESENTED_DEADLINE: Duration = Duration::from_secs(5);
/// PostgreSQL's SSLRequest: its length, and a number that is no version.
const SSL_REQUEST: [u8; 8] = [0, 0, 0, 8, 0x04, 0xd2, 0x16, 0x2f];

/// Why there is no TLS with the server.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// Nobody is there, or the connection broke: also when the server refuses our certificate.
    #[error("connect to PostgreSQL over TLS")]
    Io(#[from] io::Error),
    /// It does not do TLS.
    #[error("what listens there has no TLS, and is not this node's database")]
    Refused,
    /// It is not the server that it should be.
    #[error("what listens there does not show the certificate of this node's database")]
    Foreign(#[source] io::Error),
    /// No certificate of ours.
    #[error(transparent)]
    Own(#[from] Box<Error>),
}

/// Where a server listens, and what is shown to it. Cheap to clone; printing it shows no key.
#[derive(Debug, Clone)]
pub struct Endpoint {
    host: String,
    /// Shared by clones: a cluster gives out another one with another Service.
    port: Arc<AtomicU16>,
    authority: Authority,
}

impl Endpoint {
    /// The server at `host`, which its certificate must name, and `port`.
    pub fn new(host: impl Into<String>, port: u16, authority: Authority) -> Self {
        Self { host: host.into(), port: Arc::new(AtomicU16::new(port)), authority }
    }

    /// Who makes the certificates.
    pub fn authority(&self) -> &Authority {
        &self.authority
    }

    /// The host, as its certificate names it.
    pub fn host(&self) -> &str {
        &self.host
    }

    /// The port.
    pub fn port(&self) -> u16 {
        self.port.load(Ordering::SeqCst)
    }

    /// It is reached through another port from now on.
    pub(crate) fn move_to(&self, port: u16) {
        self.port.store(port, Ordering::SeqCst);
    }

    /// How to connect as `login`, with a certificate made now. The options print password and key under `Debug`: never
    /// print them.
    ///
    /// sqlx trusts the public authorities beside ours. None of them vouches for a name inside of a cluster or for the
    /// loopback; and whoever pretended to be the server could neither pass our certificate on nor know the verifier
    /// without which SCRAM does not end well.
    pub fn options(&self, login: &Login) -> PgConnectOptions {
        let options = PgConnectOptions::new_without_pgpass()
            .host(&self.host)
            .port(self.port())
            .ssl_mode(PgSslMode::VerifyFull)
            .username(&login.user)
            .password(login.password.expose_secret())
            .database(&login.database)
            .application_name("bibd");
        match self.authority.client(&login.user) {
            Ok(client) => options
                .ssl_root_cert_from_pem(client.ca.into_bytes())
                .ssl_client_cert_from_pem(client.certificate)
                .ssl_client_key_from_pem(client.key.expose_secret()),
            Err(error) => {
                // Without it the server lets nobody in.
                tracing::error!(%error, "no certificate for a login of the database");
                options
            }
        }
    }

    /// TLS 1.3 with the server, which has shown a certificate of ours, as `role`. What comes next is the start-up
    /// message.
    ///
    /// # Errors
    /// [`TlsError`]. Under TLS 1.3 a server that refuses our certificate is heard of with the first answer.
    pub async fn stream(&self, role: &str) -> Result<TlsStream<TcpStream>, TlsError> {
        let config = client_config(&self.authority.client(role).map_err(Box::new)?)?;
        self.stream_with(config).await
    }

    /// The certificate that the server shows at the moment, DER.
    ///
    /// # Errors
    /// [`TlsError`].
    pub async fn presented(&self) -> Result<Vec<u8>, TlsError> {
        let stream = self.stream(&asking_role()).await?;
        let shown = stream.get_ref().1.peer_certificates().and_then(|all| all.first());
        Ok(shown.map(|one| one.as_ref().to_vec()).unwrap_or_default())
    }

    /// Whether the server shows the certificate that was made last.
    pub(crate) async fn shows_its_own(&self) -> Result<bool, Error> {
        let own = self.authority.server_files()?.certificate;
        let own = CertificateDer::from_pem_slice(own.as_bytes())
            .map_err(|_| Error::CertificatesDamaged { line: 1, column: 0 })?;
        let shown = tokio::time::timeout(PRESENTED_DEADLINE, self.presented())
            .await
            .map_err(|_| Error::Deadline { what: "the server's certificate", deadline: PRESENTED_DEADLINE })?;
        Ok(shown.map_err(|error| Error::Tls(Box::new(error)))? == own.as_ref())
    }

    /// Asks the server whether it takes connections, without logging in. Who answers has shown its certificate.
    pub(crate) async fn ask(&self, deadline: Duration) -> Answer {
        let exchange = async {
            match self.stream(&asking_role()).await {
                Ok(mut stream) => probe::ask_stream(&mut stream).await,
                Err(TlsError::Io(_)) => Answer::Absent,
                Err(error @ (TlsError::Refused | TlsError::Foreign(_))) => Answer::Foreign(error.to_string()),
                Err(TlsError::Own(error)) => Answer::Refusing(error.to_string()),
            }
        };
        tokio::time::timeout(deadline, exchange).await.unwrap_or(Answer::Silent)
    }

    async fn stream_with(&self, config: ClientConfig) -> Result<TlsStream<TcpStream>, TlsError> {
        let name = ServerName::try_from(self.host.clone())
            .map_err(|_| Box::new(Error::BadServerName { name: self.host.clone() }))?;
        let mut stream = TcpStream::connect((self.host.as_str(), self.port())).await?;
        stream.set_nodelay(true)?;
        stream.write_all(&SSL_REQUEST).await?;
        // One byte and no more: what came with it would be outside of TLS (CVE-2021-23222).
        let mut answer = [0_u8; 1];
        stream.read_exact(&mut answer).await?;
        if answer[0] != b'S' {
            return Err(TlsError::Refused);
        }
        TlsConnector::from(Arc::new(config)).connect(name, stream).await.map_err(|error| {
            let cause = error.get_ref().and_then(|inner| inner.downcast_ref::<rustls::Error>());
            match cause {
                Some(rustls::Error::InvalidCertificate(_)) => TlsError::Foreign(error),
                _ => TlsError::Io(error),
            }
        })
    }
}

/// The login that asks without logging in.
fn asking_role() -> String {
    GroupRole::Monitor.login_name(Letter::A)
}

/// TLS 1.3 and nothing else; our authorities and no other.
fn client_config(client: &Client) -> Result<ClientConfig, TlsError> {
    let damaged = |_| TlsError::Own(Box::new(Error::CertificatesDamaged { line: 1, column: 0 }));
    let mut roots = RootCertStore::empty();
    for certificate in CertificateDer::pem_slice_iter(client.ca.as_bytes()) {
        roots.add(certificate.map_err(damaged)?).map_err(io::Error::other)?;
    }
    let certificate = CertificateDer::from_pem_slice(client.certificate.as_bytes()).map_err(damaged)?;
    let key = PrivateKeyDer::from_pem_slice(client.key.expose_secret().as_bytes()).map_err(damaged)?;
    let config = ClientConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
        .with_protocol_versions(&[&rustls::version::TLS13])
        .map_err(io::Error::other)?
        .with_root_certificates(roots)
        .with_client_auth_cert(vec![certificate], key)
        .map_err(io::Error::other)?;
    Ok(config)
}
