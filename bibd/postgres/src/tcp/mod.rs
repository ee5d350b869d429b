//! The managed PostgreSQL where no Unix socket reaches it: over TCP, with TLS 1.3 in both directions.
//!
//! Doors of this module: [`Authority`] makes the certificates of one database and renews them, [`Endpoint`] connects
//! with them, [`Listening`] is what the server is told (`config.rs` writes it into the files). Who connects shows two
//! things: a certificate whose name is its login role (`clientcert=verify-full`), and the role's password (SCRAM).
//! Either alone opens nothing.
//!
//! The authority is the database's own. It vouches for one server and the logins of one node, is trusted by nobody
//! else, and has nothing to do with the node's certificates of `bib-identity`. Private keys of clients are made for
//! one set of connection options and are written nowhere; the authority's and the server's are in the sealed document.
//!
//! What runs over TCP is the Kubernetes provisioner's server. A process can be told to, too: by
//! [`Settings::tcp`](crate::Settings), which no configuration sets, so that the whole conformance suite runs over the
//! very files and connections of a pod.

mod authority;
mod document;
mod endpoint;
mod files;

use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

pub use authority::{Authority, Client, ServerFiles};
pub use document::{CA_DAYS, CLIENT_DAYS, DOCUMENT_NAME, PASSING_DAYS, SERVER_DAYS};
pub use endpoint::{Endpoint, TlsError};
pub use files::ToolFiles;

/// Tells the time, in seconds since 1970: certificates begin and end.
#[derive(Clone)]
pub struct Clock(Arc<dyn Fn() -> i64 + Send + Sync>);

impl Clock {
    /// Asks `now`.
    pub fn new(now: impl Fn() -> i64 + Send + Sync + 'static) -> Self {
        Self(Arc::new(now))
    }

    fn now_s(&self) -> i64 {
        (self.0)()
    }
}

impl fmt::Debug for Clock {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Clock")
    }
}

/// A server that is reached over TCP.
#[derive(Debug, Clone)]
pub struct Tcp {
    /// Where clients connect to. The server's certificate must name it: it is one of `names`.
    pub host: String,
    /// Host names and addresses of the server's certificate.
    pub names: Vec<String>,
    /// What the server is told.
    pub listening: Listening,
    /// Tells when certificates begin and end.
    pub clock: Clock,
}

/// What a server that listens on TCP is told.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Listening {
    /// `listen_addresses`.
    pub addresses: String,
    /// `port`.
    pub port: u16,
    /// From where clients come, as `pg_hba.conf` spells it: `all`, or an address with its mask.
    pub from: String,
    /// The directory with [`CA_FILE`], [`CERTIFICATE_FILE`] and [`KEY_FILE`], as the server sees it.
    pub files: PathBuf,
}

/// Certificates that the server trusts: two while one authority follows another.
pub const CA_FILE: &str = "ca.crt";
/// The server's certificate.
pub const CERTIFICATE_FILE: &str = "server.crt";
/// The server's private key: 0600 of the server's user, or 0640 of root.
pub const KEY_FILE: &str = "server.key";

impl Listening {
    /// A server of this machine that only this machine reaches.
    pub fn on_loopback(port: u16, files: &Path) -> Self {
        Self { addresses: "127.0.0.1".to_owned(), port, from: "127.0.0.1/32".to_owned(), files: files.to_owned() }
    }

    /// `name`, as the server sees it.
    pub(crate) fn file(&self, name: &str) -> String {
        self.files.join(name).display().to_string()
    }
}
