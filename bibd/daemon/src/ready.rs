//! The ready file: written when the daemon serves, removed when it stops. For scripts, tests and `bib`.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use bib_identity::file::{self, FileError};
use serde::{Deserialize, Serialize};

/// What the file says.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ready {
    /// The daemon's process id.
    pub pid: u32,
    /// The Unix socket.
    pub socket: PathBuf,
    /// Where TLS is served, with the ports that were taken.
    pub addresses: Vec<SocketAddr>,
    /// SHA-256 of the CA's key, 64 hex digits: what a client pins.
    pub fingerprint: String,
    /// Who the node is.
    pub peer_id: String,
    /// Where `/metrics` is served, when it is.
    pub metrics: Option<SocketAddr>,
}

/// The file on disk; removed when this is dropped.
#[derive(Debug)]
pub struct ReadyFile(PathBuf);

impl ReadyFile {
    /// Writes the file atomically.
    ///
    /// # Errors
    /// When the system refuses.
    pub fn write(path: &Path, ready: &Ready) -> Result<Self, FileError> {
        let text = serde_json::to_string_pretty(ready).expect("plain data serialises");
        file::replace_public(path, format!("{text}\n").as_bytes())?;
        Ok(Self(path.to_owned()))
    }

    /// Removes what a daemon that died left behind, before this one begins to start.
    ///
    /// # Errors
    /// When the system refuses.
    pub fn clear(path: &Path) -> Result<(), FileError> {
        file::remove(path).map(|_| ())
    }
}

impl Drop for ReadyFile {
    fn drop(&mut self) {
        if let Err(error) = file::remove(&self.0) {
            tracing::warn!(error.cause = %error, "the ready file cannot be removed");
        }
    }
}
