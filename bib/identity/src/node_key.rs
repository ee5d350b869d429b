//! The node's own key: Ed25519 in OpenSSH format, from which the libp2p peer id derives.
//!
//! Made once, at a node's first start. A key file that is damaged, open to others or of another type is an error to
//! be solved by a person: this module never makes a new key in place of an old one, because whoever loses the key
//! loses the name that datasets were published under.

use std::fmt;
use std::path::{Path, PathBuf};

use bib_core::PeerId;
use bib_core::signature::{Purpose, signed_bytes};
use ed25519_dalek::{Signature, Signer as _, SigningKey, VerifyingKey};
use rand_core::CryptoRngCore;
use ssh_key::private::{Ed25519Keypair, KeypairData};
use ssh_key::{LineEnding, PrivateKey};
use zeroize::Zeroizing;

use crate::file::{self, FileError};

/// The largest key file that is read, in bytes. An OpenSSH Ed25519 key has about 400.
const MAX_FILE_BYTES: u64 = 16 * 1024;

/// Why the node's key cannot be made or used.
#[derive(Debug, thiserror::Error)]
pub enum NodeKeyError {
    /// The file is missing, empty, open to others, or cannot be read or written.
    #[error(transparent)]
    File(#[from] FileError),
    /// The file is not an OpenSSH private key.
    #[error("`{path}` is not an OpenSSH private key")]
    Damaged {
        /// The key file.
        path: PathBuf,
        /// Where parsing stopped.
        #[source]
        source: ssh_key::Error,
    },
    /// The key is RSA, ECDSA or another type.
    #[error("`{path}` holds a key of type {found}, not ssh-ed25519")]
    WrongType {
        /// The key file.
        path: PathBuf,
        /// The algorithm's name in the file.
        found: String,
    },
    /// The key is protected by a passphrase, which a daemon cannot type.
    #[error("`{path}` is protected by a passphrase")]
    Encrypted {
        /// The key file.
        path: PathBuf,
    },
    /// The text to be signed as a checkpoint does not begin with `bib/`.
    #[error("a checkpoint begins with its origin `bib/`")]
    NotACheckpoint,
    /// A key could not be written in OpenSSH format.
    #[error("encode the key")]
    Encode(#[source] ssh_key::Error),
}

impl NodeKeyError {
    /// What a person can do about it.
    #[must_use]
    pub fn hint(&self) -> Option<&'static str> {
        match self {
            Self::File(error) => error.hint(),
            Self::Damaged { .. } => Some("restore the key from a backup; BIB never makes a new one in its place"),
            Self::WrongType { .. } => Some("a node's key is Ed25519: restore the file that `bibd init` made"),
            Self::Encrypted { .. } => Some("remove the passphrase with: ssh-keygen -p -N '' -f FILE"),
            Self::NotACheckpoint | Self::Encode(_) => None,
        }
    }
}

/// A signature by a node is not valid for that peer, purpose and body.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the signature is not that node's over these bytes")]
pub struct BadSignature;

/// The node's Ed25519 key. Wiped from memory when dropped.
pub struct NodeKey {
    signing: SigningKey,
}

impl NodeKey {
    /// Makes a key and writes it to `path`, durably, readable by its owner alone.
    ///
    /// # Errors
    /// [`FileError::Exists`] when there is a file: a key is never overwritten.
    pub fn create(path: &Path, rng: &mut impl CryptoRngCore) -> Result<Self, NodeKeyError> {
        let key = Self { signing: SigningKey::generate(rng) };
        file::create_private(path, key.to_openssh()?.as_bytes())?;
        Ok(key)
    }

    /// Reads the key from `path`.
    ///
    /// # Errors
    /// One error for each thing that can be wrong with the file; nothing is ever repaired or regenerated.
    pub fn load(path: &Path) -> Result<Self, NodeKeyError> {
        let text = file::read_private(path, MAX_FILE_BYTES)?;
        let damaged = |source| NodeKeyError::Damaged { path: path.to_owned(), source };
        let key = PrivateKey::from_openssh(text.as_slice()).map_err(damaged)?;
        if key.is_encrypted() {
            return Err(NodeKeyError::Encrypted { path: path.to_owned() });
        }
        let KeypairData::Ed25519(pair) = key.key_data() else {
            return Err(NodeKeyError::WrongType { path: path.to_owned(), found: key.algorithm().to_string() });
        };
        // Fails when the public half is not that of the private half.
        let signing = SigningKey::try_from(pair).map_err(damaged)?;
        Ok(Self { signing })
    }

    /// The node's name in the network.
    #[must_use]
    pub fn peer_id(&self) -> PeerId {
        PeerId::from_public_key(self.signing.verifying_key().to_bytes())
    }

    /// Signs `body` for `purpose`: Ed25519 over `bib-<purpose>-v1\0` || body.
    #[must_use]
    pub fn sign(&self, purpose: Purpose, body: &[u8]) -> [u8; 64] {
        self.signing.sign(&signed_bytes(purpose, body)).to_bytes()
    }

    /// Signs the text of a checkpoint (a C2SP signed note) as it stands, without a prefix of ours.
    ///
    /// # Errors
    /// [`NodeKeyError::NotACheckpoint`] unless the text begins with `bib/`, which no other signed body does.
    pub fn sign_checkpoint(&self, note_text: &[u8]) -> Result<[u8; 64], NodeKeyError> {
        if !note_text.starts_with(b"bib/") {
            return Err(NodeKeyError::NotACheckpoint);
        }
        Ok(self.signing.sign(note_text).to_bytes())
    }

    /// A secret that only this key gives: HKDF-SHA256 (RFC 5869) of the private half, without a salt, for `purpose`. Not
    /// for signatures, and never the private half itself.
    #[must_use]
    pub fn derive<const BYTES: usize>(&self, purpose: &str) -> Zeroizing<[u8; BYTES]> {
        let private = Zeroizing::new(self.signing.to_bytes());
        let mut secret = Zeroizing::new([0; BYTES]);
        hkdf::Hkdf::<sha2::Sha256>::new(None, private.as_slice())
            .expand(format!("bib-{purpose}-v1").as_bytes(), secret.as_mut_slice())
            .expect("fewer bytes than 255 hashes");
        secret
    }

    /// The public half as a line for `authorized_keys` and `age -R`, without a line end.
    ///
    /// # Errors
    /// [`NodeKeyError::Encode`], which an Ed25519 key does not cause.
    pub fn public_openssh(&self) -> Result<String, NodeKeyError> {
        public_openssh(&self.peer_id())
    }

    /// The private key as an OpenSSH file.
    pub(crate) fn to_openssh(&self) -> Result<Zeroizing<String>, NodeKeyError> {
        let pair = Ed25519Keypair::from(&self.signing);
        let comment = format!("bib node {}", self.peer_id());
        let key = PrivateKey::new(KeypairData::Ed25519(pair), comment).map_err(NodeKeyError::Encode)?;
        key.to_openssh(LineEnding::LF).map_err(NodeKeyError::Encode)
    }
}

impl fmt::Debug for NodeKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "NodeKey({})", self.peer_id())
    }
}

/// A node's public key as an OpenSSH line, from its peer id alone.
///
/// # Errors
/// [`NodeKeyError::Encode`], which an Ed25519 key does not cause.
pub fn public_openssh(peer: &PeerId) -> Result<String, NodeKeyError> {
    let key = ssh_key::public::Ed25519PublicKey(*peer.public_key());
    ssh_key::PublicKey::from(key).to_openssh().map_err(NodeKeyError::Encode)
}

/// Checks a node's signature over `body` for `purpose`, strictly (RFC 8032, no small-order keys).
///
/// # Errors
/// [`BadSignature`] for another node, purpose or body, and for a key that is no point on the curve.
pub fn verify(peer: &PeerId, purpose: Purpose, body: &[u8], signature: &[u8]) -> Result<(), BadSignature> {
    verify_raw(peer.public_key(), &signed_bytes(purpose, body), signature)
}

/// Whether a node's or a recovery key's signature holds, as [`bib_core::record::Verify`] asks.
#[must_use]
pub fn holds(key: &PeerId, purpose: Purpose, body: &[u8], signature: &[u8; 64]) -> bool {
    verify(key, purpose, body, signature).is_ok()
}

/// Checks a node's signature over the text of a checkpoint.
///
/// # Errors
/// [`BadSignature`] as [`verify`], and for text that does not begin with `bib/`.
pub fn verify_checkpoint(peer: &PeerId, note_text: &[u8], signature: &[u8]) -> Result<(), BadSignature> {
    if !note_text.starts_with(b"bib/") {
        return Err(BadSignature);
    }
    verify_raw(peer.public_key(), note_text, signature)
}

/// Strict Ed25519 over bytes that already carry their prefix.
pub(crate) fn verify_raw(key: &[u8; 32], message: &[u8], signature: &[u8]) -> Result<(), BadSignature> {
    let key = VerifyingKey::from_bytes(key).map_err(|_| BadSignature)?;
    let signature = Signature::from_slice(signature).map_err(|_| BadSignature)?;
    key.verify_strict(message, &signature).map_err(|_| BadSignature)
}
