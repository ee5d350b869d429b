//! What a connection needs to know beyond the target. The composition root (`bib`, a test, another program) fills it in.

use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use bib_core::{KeyFingerprint, PeerId};
use bib_identity::TimeSource;
use bib_identity::ssh::UserKey;
use bib_identity::trust::FirstUse;

use crate::error::Result;

/// Random bytes, passed in.
#[derive(Clone)]
pub struct Random(Arc<Fill>);

type Fill = dyn Fn(&mut [u8]) + Send + Sync;

impl Random {
    /// A source that fills slices with random bytes from a cryptographic generator: request ids and the signing key that
    /// a first publish makes come from it.
    pub fn new(fill: impl Fn(&mut [u8]) + Send + Sync + 'static) -> Self {
        Self(Arc::new(fill))
    }

    /// Fills `bytes`.
    pub(crate) fn fill(&self, bytes: &mut [u8]) {
        (self.0)(bytes);
    }

    /// 32 hex digits.
    pub(crate) fn id(&self) -> String {
        let mut bytes = [0; 16];
        (self.0)(&mut bytes);
        hex::encode(bytes)
    }
}

impl fmt::Debug for Random {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Random")
    }
}

/// Finds a key to log in or sign with, when one is needed: asks an agent, reads a file, asks for a passphrase.
///
/// The first argument lists the keys that would be of use, best first; empty means any. `Ok(None)`: there is none.
/// Called on a thread that may block.
pub type KeySource = Arc<dyn Fn(&[KeyFingerprint]) -> Result<Option<Arc<UserKey>>> + Send + Sync>;

/// Files in place of the trust store and the last log-in, for machines that are set up by others than their users.
#[derive(Debug, Clone, Default)]
pub struct TlsOptions {
    /// Believe whoever answers. Nothing is pinned then.
    pub skip_verify: bool,
    /// PEM: the CA certificate that a node must have which is not trusted yet.
    pub ca_file: Option<PathBuf>,
    /// PEM: the client certificate, and the file (0600) with its key and the token that goes with it.
    pub client: Option<(PathBuf, PathBuf)>,
}

/// How to connect.
#[derive(Clone)]
pub struct Options {
    /// The clock that certificates are judged by.
    pub clock: TimeSource,
    /// Random bytes for request ids and temporary names.
    pub random: Random,
    /// Where trust and credentials lie: `<config dir>/trust` and `<config dir>/credentials`, both 0700.
    pub config_dir: PathBuf,
    /// Where stat caches and interrupted uploads lie. Everything in it may be deleted at any time.
    pub cache_dir: PathBuf,
    /// How long a call without a stream may take. 30 s.
    pub timeout: Duration,
    /// How long getting a connection may take, TLS handshake included. 10 s.
    pub connect_timeout: Duration,
    /// How often a connection, or a call that only reads, is tried when the connection fails. 3.
    pub attempts: u32,
    /// What to do about a node that is not trusted yet: refuse and say what it showed (the default), or take it.
    pub first_use: FirstUse,
    /// A token file (`bib token create`) to use in place of a log-in.
    pub token_file: Option<PathBuf>,
    /// What else than the trust store and the last log-in decides about TLS.
    pub tls: TlsOptions,
    /// Finds a key for log-ins that have run out. Without it the caller logs in by hand.
    pub keys: Option<KeySource>,
    /// What this program is, such as `bib/0.1.0`.
    pub user_agent: String,
}

impl Options {
    /// The usual values.
    #[must_use]
    pub fn new(clock: TimeSource, random: Random, config_dir: PathBuf, cache_dir: PathBuf) -> Self {
        Self {
            clock,
            random,
            config_dir,
            cache_dir,
            timeout: Duration::from_secs(30),
            connect_timeout: Duration::from_secs(10),
            attempts: 3,
            first_use: FirstUse::Refuse,
            token_file: None,
            tls: TlsOptions::default(),
            keys: None,
            user_agent: concat!("bib-client/", env!("CARGO_PKG_VERSION")).to_owned(),
        }
    }

    /// The directory of the trust store.
    #[must_use]
    pub fn trust_dir(&self) -> PathBuf {
        self.config_dir.join("trust")
    }

    /// The file with the last log-in at this node.
    #[must_use]
    pub fn credentials_file(&self, node: &PeerId) -> PathBuf {
        self.credentials_dir().join(format!("{node}.pem"))
    }

    pub(crate) fn credentials_dir(&self) -> PathBuf {
        self.config_dir.join("credentials")
    }

    pub(crate) fn cache_file(&self, kind: &str, name: &str) -> PathBuf {
        Path::new(&self.cache_dir).join(kind).join(name)
    }
}

impl fmt::Debug for Options {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Options")
            .field("config_dir", &self.config_dir)
            .field("cache_dir", &self.cache_dir)
            .field("timeout", &self.timeout)
            .field("first_use", &self.first_use)
            .field("token_file", &self.token_file)
            .field("tls", &self.tls)
            .finish_non_exhaustive()
    }
}
