//! The pins on disk: a directory (0700), one JSON file for each node, named by its peer id, replaced atomically.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use bib_core::{PeerId, Timestamp};
use serde::{Deserialize, Serialize};

use crate::certificate::Fingerprint;
use crate::file::{self, FileError};

/// The largest pin file that is read, in bytes.
const MAX_PIN_BYTES: u64 = 64 * 1024;
/// The most pins that a store lists.
const MAX_PINS: usize = 4096;
const FORMAT: &str = "bib-pin/1";

/// What a client remembers about a node.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Pin {
    /// The node.
    pub peer_id: PeerId,
    /// The person's own name for it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub alias: Option<String>,
    /// Where it was reached, `host:port`, latest first.
    #[serde(default)]
    pub addresses: Vec<String>,
    /// SHA-256 of its CA's public key.
    pub ca_spki_sha256: Fingerprint,
    /// Its CA certificate as last seen; absent in a pin made by hand until the first connection. A change of CA can
    /// only be followed with it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ca_certificate_pem: Option<String>,
    /// When it was pinned.
    pub first_seen: Timestamp,
    /// When it was last reached.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_seen: Option<Timestamp>,
}

impl Pin {
    /// Whether a person means this node by `text`: peer id, alias or address.
    #[must_use]
    pub fn is_called(&self, text: &str) -> bool {
        self.alias.as_deref() == Some(text)
            || self.addresses.iter().any(|a| a == text)
            || text.parse() == Ok(self.peer_id)
    }
}

#[derive(Serialize, Deserialize)]
struct PinFile {
    format: String,
    #[serde(flatten)]
    pin: Pin,
}

/// Why the trust store cannot be read or changed.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// The directory or a file in it.
    #[error(transparent)]
    File(#[from] FileError),
    /// A file is not a pin, or is named for another node.
    #[error("`{path}` is not a pin: {reason}")]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        reason: String,
    },
    /// More pins than a store holds.
    #[error("`{path}` holds more than {MAX_PINS} pins")]
    TooMany {
        /// The directory.
        path: PathBuf,
    },
    /// The node is pinned already.
    #[error("node {peer_id} is trusted already, with the CA key {ca_spki_sha256}")]
    Pinned {
        /// The node.
        peer_id: PeerId,
        /// Its pinned CA key.
        ca_spki_sha256: Fingerprint,
    },
    /// The alias or address belongs to another node's pin.
    #[error("`{name}` is the name of node {peer_id}")]
    NameTaken {
        /// The alias or address.
        name: String,
        /// The node that has it.
        peer_id: PeerId,
    },
    /// Nothing is pinned under that name.
    #[error("no trusted node is called `{0}`")]
    NotFound(String),
}

impl StoreError {
    /// What a person can do about it.
    #[must_use]
    pub fn hint(&self) -> Option<&'static str> {
        match self {
            Self::File(error) => error.hint(),
            Self::Damaged { .. } => {
                Some("remove the file and trust the node again, with the fingerprint it shows at start")
            }
            Self::Pinned { .. } => Some("`bib trust replace` changes what is trusted of a node"),
            Self::NameTaken { .. } => Some("`bib trust remove` the other node first, or choose another alias"),
            Self::NotFound(_) => Some("`bib trust list` shows the trusted nodes"),
            Self::TooMany { .. } => None,
        }
    }
}

/// The directory of pins.
#[derive(Debug, Clone)]
pub struct TrustStore {
    directory: PathBuf,
}

impl TrustStore {
    /// Opens the store, making the directory when it is not there.
    ///
    /// # Errors
    /// [`StoreError::File`] when others may enter the directory, since whoever writes there decides whom we trust.
    pub fn open(directory: &Path) -> Result<Self, StoreError> {
        file::ensure_private_dir(directory)?;
        Ok(Self { directory: directory.to_owned() })
    }

    /// All pins, by peer id.
    ///
    /// # Errors
    /// [`StoreError::Damaged`] names the first file that is not a pin: unknown means deny, so none is skipped.
    pub fn list(&self) -> Result<Vec<Pin>, StoreError> {
        let read = |source| FileError::Io { action: "list", path: self.directory.clone(), source };
        let mut paths = Vec::new();
        for entry in fs::read_dir(&self.directory).map_err(read)? {
            let path = entry.map_err(read)?.path();
            // Editors and interrupted writes leave files that begin with a dot.
            let hidden = path.file_name().is_some_and(|n| n.as_encoded_bytes().starts_with(b"."));
            if !hidden && path.extension().is_some_and(|e| e == "json") {
                paths.push(path);
            }
            if paths.len() > MAX_PINS {
                return Err(StoreError::TooMany { path: self.directory.clone() });
            }
        }
        paths.sort();
        paths.iter().map(|path| self.read(path)).collect()
    }

    /// The pin of the node with this peer id, alias or address.
    ///
    /// # Errors
    /// As [`Self::list`].
    pub fn find(&self, name: &str) -> Result<Option<Pin>, StoreError> {
        if let Ok(peer) = name.parse() {
            return match self.read(&self.path(&peer)) {
                Err(StoreError::File(FileError::Missing { .. })) => Ok(None),
                other => other.map(Some),
            };
        }
        Ok(self.list()?.into_iter().find(|pin| pin.is_called(name)))
    }

    /// Pins a node that was not pinned.
    ///
    /// # Errors
    /// [`StoreError::Pinned`] or [`StoreError::NameTaken`]; an existing pin is never changed by this.
    pub fn add(&self, pin: &Pin) -> Result<(), StoreError> {
        if let Some(old) = self.find(&pin.peer_id.to_string())? {
            return Err(StoreError::Pinned { peer_id: old.peer_id, ca_spki_sha256: old.ca_spki_sha256 });
        }
        self.check_names(pin)?;
        Ok(file::create_private(&self.path(&pin.peer_id), &encode(pin, &self.directory)?)?)
    }

    /// Writes the pin of a node in place of its old one: after a renewal under a cross-certificate, to note an
    /// address, or because a person said `bib trust replace`.
    ///
    /// # Errors
    /// [`StoreError::NotFound`] when the node is not pinned; [`StoreError::NameTaken`].
    pub fn replace(&self, pin: &Pin) -> Result<(), StoreError> {
        if self.find(&pin.peer_id.to_string())?.is_none() {
            return Err(StoreError::NotFound(pin.peer_id.to_string()));
        }
        self.check_names(pin)?;
        Ok(file::replace_private(&self.path(&pin.peer_id), &encode(pin, &self.directory)?)?)
    }

    /// Forgets the node with this peer id, alias or address, and returns what was known of it.
    ///
    /// # Errors
    /// [`StoreError::NotFound`] when there is none.
    pub fn remove(&self, name: &str) -> Result<Pin, StoreError> {
        let pin = self.find(name)?.ok_or_else(|| StoreError::NotFound(name.chars().take(80).collect()))?;
        file::remove(&self.path(&pin.peer_id))?;
        Ok(pin)
    }

    fn check_names(&self, pin: &Pin) -> Result<(), StoreError> {
        for other in self.list()?.iter().filter(|other| other.peer_id != pin.peer_id) {
            let taken = pin.alias.iter().chain(&pin.addresses).find(|name| other.is_called(name));
            if let Some(name) = taken {
                return Err(StoreError::NameTaken { name: name.clone(), peer_id: other.peer_id });
            }
        }
        Ok(())
    }

    fn path(&self, peer: &PeerId) -> PathBuf {
        self.directory.join(format!("{peer}.json"))
    }

    fn read(&self, path: &Path) -> Result<Pin, StoreError> {
        let damaged = |reason: String| StoreError::Damaged { path: path.to_owned(), reason };
        let bytes = file::read_private(path, MAX_PIN_BYTES)?;
        let file: PinFile = serde_json::from_slice(&bytes).map_err(|e| damaged(e.to_string()))?;
        if file.format != FORMAT {
            return Err(damaged(format!("its format is not {FORMAT}")));
        }
        if self.path(&file.pin.peer_id) != path {
            return Err(damaged("it is named for another node".to_owned()));
        }
        Ok(file.pin)
    }
}

fn encode(pin: &Pin, directory: &Path) -> Result<Vec<u8>, StoreError> {
    let file = PinFile { format: FORMAT.to_owned(), pin: pin.clone() };
    serde_json::to_vec_pretty(&file).map_err(|e| {
        FileError::Io { action: "encode a pin for", path: directory.to_owned(), source: io::Error::other(e) }.into()
    })
}
