//! One channel and the credentials that it was made with.

use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bib_identity::credentials::Loaded;
use bib_identity::token_file::{TokenFile, TokenFileError};
use bib_identity::trust::{Expectation, FirstUse, Pin, Presented, StoreError, TrustStore};
use bib_identity::{ClientCredentials, Fingerprint, certificate, file, pem};
use secrecy::ExposeSecret as _;
use tonic::metadata::{Ascii, MetadataValue};
use tonic::transport::{Channel, Endpoint};

use super::connector::{Connector, Settings};
use super::{ConnectFailure, REQUEST_ID};
use crate::error::{Error, ErrorKind, Result, code};
use crate::options::{Options, TlsOptions};
use crate::target::Target;

/// Bytes in flight on one stream: enough that a bulk stream never waits for an acknowledgement of a fast reader.
const STREAM_WINDOW_BYTES: u32 = 4 * 1024 * 1024;
/// Bytes in flight on one connection.
const CONNECTION_WINDOW_BYTES: u32 = 16 * 1024 * 1024;
/// The largest HTTP/2 frame that is taken: each costs a round through the stack at either end. The usual is 16 KiB.
const FRAME_BYTES: u32 = 256 * 1024;
/// The largest file with a CA certificate that is read, in bytes.
const MAX_CA_BYTES: u64 = 64 * 1024;
/// An idle connection with calls under way is asked this often whether it lives.
const KEEPALIVE: Duration = Duration::from_secs(20);

/// One channel and the credentials that it was made with. The channel connects when it is first used, and again
/// whenever the connection breaks.
pub(crate) struct Link {
    pub(crate) channel: Channel,
    settings: Arc<Settings>,
    bearer: Option<MetadataValue<Ascii>>,
}

impl Link {
    /// Reads what is trusted and what is left of the last log-in, and makes the channel. Connects to nothing.
    pub(crate) fn make(target: &Target, options: &Options) -> Result<Self> {
        let (expectation, credentials) = match target {
            Target::Socket(_) => (Expectation::FirstUse(options.first_use), None),
            Target::Tls { .. } => expectation_and_credentials(target, options)?,
        };
        Self::with(target, options, expectation, credentials)
    }

    /// The same, showing neither certificate nor token: the way in for somebody whose certificate was revoked.
    pub(crate) fn anonymous(target: &Target, options: &Options) -> Result<Self> {
        let tls = TlsOptions { client: None, ..options.tls.clone() };
        let options = Options { token_file: None, tls, ..options.clone() };
        let expectation = match target {
            Target::Socket(_) => Expectation::FirstUse(options.first_use),
            Target::Tls { .. } => expectation_of(pin_of(target, &options)?, &options)?,
        };
        Self::with(target, &options, expectation, None)
    }

    fn with(
        target: &Target,
        options: &Options,
        expectation: Expectation,
        credentials: Option<ClientCredentials>,
    ) -> Result<Self> {
        // On the socket the peer's uid counts; a token sent there can only narrow what one may do.
        let token = match target {
            Target::Socket(_) => token_of_file(options)?,
            Target::Tls { .. } => credentials.as_ref().map(|c| c.token().expose_secret().to_owned()),
        };
        let bearer = token.map(|token| bearer(&token)).transpose()?;
        let settings = Arc::new(Settings {
            target: target.clone(),
            options: options.clone(),
            expectation,
            credentials,
            presented: Mutex::new(None),
        });
        let channel = endpoint(options)?.connect_with_connector_lazy(Connector(Arc::clone(&settings)));
        Ok(Self { channel, settings, bearer })
    }

    /// Whether this link shows a certificate or runs on the socket.
    pub(crate) fn is_logged_in(&self) -> bool {
        matches!(self.settings.target, Target::Socket(_)) || self.settings.credentials.is_some()
    }

    /// What the server showed; absent before the first connection and on the socket.
    pub(crate) fn presented(&self) -> Option<Presented> {
        self.settings.presented.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// A request with its id, the token and a deadline.
    pub(crate) fn request<T>(&self, message: T, timeout: Option<Duration>) -> tonic::Request<T> {
        let mut request = tonic::Request::new(message);
        if let Ok(id) = self.settings.options.random.id().parse() {
            request.metadata_mut().insert(REQUEST_ID, id);
        }
        if let Some(bearer) = &self.bearer {
            request.metadata_mut().insert("authorization", bearer.clone());
        }
        if let Some(timeout) = timeout {
            request.set_timeout(timeout);
        }
        request
    }
}

fn endpoint(options: &Options) -> Result<Endpoint> {
    // The address is the connector's business; HTTP/2 wants some authority.
    Endpoint::from_static("http://node.bib.invalid")
        .initial_stream_window_size(STREAM_WINDOW_BYTES)
        .initial_connection_window_size(CONNECTION_WINDOW_BYTES)
        .max_frame_size(FRAME_BYTES)
        .http2_keep_alive_interval(KEEPALIVE)
        .keep_alive_timeout(KEEPALIVE)
        .user_agent(options.user_agent.clone())
        .map_err(|error| Error::new(ErrorKind::Invalid, "this user agent is no header value").with_source(error))
}

fn expectation_and_credentials(target: &Target, options: &Options) -> Result<(Expectation, Option<ClientCredentials>)> {
    let pin = pin_of(target, options)?;
    let now = options.clock.now();
    let given = match (&options.token_file, &options.tls.client) {
        (Some(path), _) => Some(TokenFile::load(path).map_err(token_file_error)?),
        (None, Some((certificate, key))) => Some(TokenFile::load_pair(certificate, key).map_err(token_file_error)?),
        (None, None) => None,
    };
    let is_given = given.is_some();
    let loaded = match (given, &pin) {
        (Some(file), _) => ClientCredentials::judge(file, now),
        (None, Some(pin)) => {
            ClientCredentials::load(&options.credentials_file(&pin.peer_id), now).map_err(token_file_error)?
        }
        (None, None) => Loaded::Absent,
    };
    let credentials = match loaded {
        Loaded::Valid(credentials) => Some(credentials),
        Loaded::Absent => None,
        Loaded::Expired { not_after } if is_given => {
            return Err(Error::new(ErrorKind::Unauthenticated, format!("the token file expired at {not_after}"))
                .with_hint("make a new one with `bib token create`"));
        }
        // Left out: the client logs in again by itself.
        Loaded::Expired { .. } => None,
        Loaded::NotYetValid { not_before } => {
            return Err(Error::new(ErrorKind::Unauthenticated, format!("the certificate is valid from {not_before}"))
                .with_hint("check this machine's clock"));
        }
    };
    Ok((expectation_of(pin, options)?, credentials))
}

fn pin_of(target: &Target, options: &Options) -> Result<Option<Pin>> {
    let failed = |error: StoreError| ConnectFailure::Store(Arc::new(error)).to_error();
    let name = match target {
        Target::Tls { peer: Some(peer), .. } => peer.to_string(),
        _ => target.address(),
    };
    TrustStore::open(&options.trust_dir()).and_then(|store| store.find(&name)).map_err(failed)
}

fn expectation_of(pin: Option<Pin>, options: &Options) -> Result<Expectation> {
    if options.tls.skip_verify {
        return Ok(Expectation::Nothing);
    }
    Ok(match (pin, &options.tls.ca_file) {
        (Some(pin), _) => Expectation::Pinned(Box::new(pin)),
        (None, Some(path)) => Expectation::FirstUse(FirstUse::Accept { expected: Some(ca_key(path)?) }),
        (None, None) => Expectation::FirstUse(options.first_use),
    })
}

/// SHA-256 of the key in a CA certificate.
fn ca_key(path: &Path) -> Result<Fingerprint> {
    let failed = |error: Box<dyn std::error::Error + Send + Sync>| {
        Error::new(ErrorKind::Local, format!("`{}` is no CA certificate", path.display()))
            .with_code(code::LOCAL_FILE)
            .with_hint("`bib cert export --ca` writes out that of a node which is trusted already")
            .with_source(error)
    };
    let text = file::read_public(path, MAX_CA_BYTES).map_err(|error| failed(error.into()))?;
    let der = pem::decode_one(&text, pem::CERTIFICATE).map_err(|error| failed(error.into()))?;
    let info = certificate::describe(&der).map_err(|error| failed(error.into()))?;
    if !info.is_ca {
        return Err(failed("it is the certificate of a server or a client".into()));
    }
    Ok(info.spki_sha256)
}

fn token_of_file(options: &Options) -> Result<Option<String>> {
    let Some(path) = &options.token_file else { return Ok(None) };
    let file = TokenFile::load(path).map_err(token_file_error)?;
    Ok(Some(file.token().expose_secret().to_owned()))
}

pub(crate) fn token_file_error(error: TokenFileError) -> Error {
    let hint = error.hint().unwrap_or("log in again");
    Error::new(ErrorKind::Local, "the stored log-in cannot be used")
        .with_code(code::LOCAL_FILE)
        .with_hint(hint)
        .with_source(error)
}

fn bearer(token: &str) -> Result<MetadataValue<Ascii>> {
    let mut value: MetadataValue<Ascii> = format!("Bearer {token}")
        .parse()
        .map_err(|_| Error::new(ErrorKind::Local, "the stored token is no header value").with_code(code::LOCAL_FILE))?;
    value.set_sensitive(true);
    Ok(value)
}
