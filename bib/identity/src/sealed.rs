//! Secrets at rest: `age` files (<https://age-encryption.org/v1>) sealed to the node's key and to recovery keys.
//!
//! What is written here opens with the public tool: `age -d -i node_key secrets/NAME.age`. The library draws the file
//! key and nonces from the operating system itself; it offers no way to pass randomness in.

use std::fmt;
use std::io::{Read as _, Write as _};
use std::path::{Path, PathBuf};
use std::str::FromStr;

use bib_core::PeerId;
use secrecy::{ExposeSecret as _, SecretSlice};
use zeroize::Zeroizing;

use crate::file::{self, FileError};
use crate::node_key::{self, NodeKey};

/// The largest secret, in bytes.
pub const MAX_SECRET_BYTES: usize = 1024 * 1024;
/// The largest sealed file: the secret, the header and one tag for each 64 KiB.
const MAX_SEALED_BYTES: u64 = MAX_SECRET_BYTES as u64 + 64 * 1024;

/// Why a secret cannot be sealed or opened.
#[derive(Debug, thiserror::Error)]
pub enum SealError {
    /// The file is missing, empty, open to others, or cannot be read or written.
    #[error(transparent)]
    File(#[from] FileError),
    /// The name would not be a plain file name.
    #[error("`{0}` is not the name of a secret: lower-case letters, digits, `.`, `_` and `-`, at most 64")]
    Name(String),
    /// The text is not an age recipient (`age1...`).
    #[error("`{0}` is not an age recipient")]
    Recipient(String),
    /// Nobody was named who could open the file again.
    #[error("a secret needs at least one recipient")]
    NoRecipients,
    /// More than [`MAX_SECRET_BYTES`].
    #[error("a secret has at most {MAX_SECRET_BYTES} bytes")]
    TooLarge,
    /// The file is sealed to other keys.
    #[error("the secret is not sealed to this key")]
    WrongKey,
    /// The file is not an age file, or was changed.
    #[error("the sealed file is damaged")]
    Damaged,
    /// The key could not be handed to the library.
    #[error("use the key with age")]
    Key(#[source] std::io::Error),
}

impl SealError {
    /// What a person can do about it.
    #[must_use]
    pub fn hint(&self) -> Option<&'static str> {
        match self {
            Self::File(error) => error.hint(),
            Self::WrongKey => Some("restore the node key that sealed it, or open it with the recovery sheet's age key"),
            Self::Damaged => Some("restore the file from a backup"),
            _ => None,
        }
    }
}

/// Who can open a sealed secret.
#[derive(Clone)]
pub enum Recipient {
    /// A node, by its `ssh-ed25519` key.
    Node(PeerId),
    /// A recovery key that is not on the node.
    Recovery(age::x25519::Recipient),
}

impl Recipient {
    pub(crate) fn to_age(&self) -> Result<Box<dyn age::Recipient + Send>, SealError> {
        match self {
            Self::Recovery(recipient) => Ok(Box::new(recipient.clone())),
            Self::Node(peer) => {
                let error = || SealError::Recipient(peer.to_string());
                let line = node_key::public_openssh(peer).map_err(|_| error())?;
                Ok(Box::new(age::ssh::Recipient::from_str(&line).map_err(|_| error())?))
            }
        }
    }
}

impl FromStr for Recipient {
    type Err = SealError;

    /// Reads an age recipient (`age1...`) or a peer id.
    fn from_str(text: &str) -> Result<Self, SealError> {
        if let Ok(peer) = text.parse() {
            return Ok(Self::Node(peer));
        }
        text.parse().map(Self::Recovery).map_err(|_| SealError::Recipient(text.chars().take(80).collect()))
    }
}

impl fmt::Display for Recipient {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Node(peer) => peer.fmt(f),
            Self::Recovery(recipient) => recipient.fmt(f),
        }
    }
}

impl fmt::Debug for Recipient {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Recipient({self})")
    }
}

/// Seals `plaintext` so that each of `recipients` can open it alone.
///
/// # Errors
/// Without recipients, above [`MAX_SECRET_BYTES`], or for a peer id that is no usable key.
pub fn seal(plaintext: &[u8], recipients: &[Recipient]) -> Result<Vec<u8>, SealError> {
    if plaintext.len() > MAX_SECRET_BYTES {
        return Err(SealError::TooLarge);
    }
    let recipients = recipients.iter().map(Recipient::to_age).collect::<Result<Vec<_>, _>>()?;
    let encryptor = age::Encryptor::with_recipients(recipients.iter().map(|r| r.as_ref() as &dyn age::Recipient))
        .map_err(|_| SealError::NoRecipients)?;
    let mut sealed = Vec::with_capacity(plaintext.len() + 1024);
    let mut writer = encryptor.wrap_output(&mut sealed).map_err(SealError::Key)?;
    writer.write_all(plaintext).and_then(|()| writer.finish()).map_err(SealError::Key)?;
    Ok(sealed)
}

/// Opens what was sealed to this node.
///
/// # Errors
/// [`SealError::WrongKey`] or [`SealError::Damaged`].
pub fn open(sealed: &[u8], key: &NodeKey) -> Result<SecretSlice<u8>, SealError> {
    let text = key.to_openssh().map_err(|_| SealError::Key(std::io::ErrorKind::InvalidData.into()))?;
    let identity = age::ssh::Identity::from_buffer(text.as_bytes(), None).map_err(SealError::Key)?;
    open_with(sealed, &identity)
}

/// Opens with any age identity, as the recovery sheet does.
pub(crate) fn open_with(sealed: &[u8], identity: &dyn age::Identity) -> Result<SecretSlice<u8>, SealError> {
    if sealed.len() as u64 > MAX_SEALED_BYTES {
        return Err(SealError::TooLarge);
    }
    let decryptor = age::Decryptor::new(sealed).map_err(|_| SealError::Damaged)?;
    let reader = decryptor.decrypt(std::iter::once(identity)).map_err(|error| match error {
        age::DecryptError::NoMatchingKeys => SealError::WrongKey,
        _ => SealError::Damaged,
    })?;
    // The plaintext is shorter than the file; reserved at once so that no reallocation leaves a copy behind.
    let mut plaintext = Zeroizing::new(Vec::with_capacity(sealed.len()));
    reader.take(MAX_SECRET_BYTES as u64 + 1).read_to_end(&mut plaintext).map_err(|_| SealError::Damaged)?;
    if plaintext.len() > MAX_SECRET_BYTES {
        return Err(SealError::TooLarge);
    }
    Ok(SecretSlice::from(std::mem::take(&mut *plaintext)))
}

/// A directory (0700) of sealed secrets, one file `NAME.age` (0600) each.
pub struct SealedDir<'a> {
    directory: PathBuf,
    key: &'a NodeKey,
    recovery: Vec<Recipient>,
}

impl<'a> SealedDir<'a> {
    /// Opens or makes the directory. Secrets written are sealed to `key` and to each of `recovery`.
    ///
    /// # Errors
    /// [`SealError::File`] when others may enter the directory or it cannot be made.
    pub fn open(directory: &Path, key: &'a NodeKey, recovery: Vec<Recipient>) -> Result<Self, SealError> {
        file::ensure_private_dir(directory)?;
        Ok(Self { directory: directory.to_owned(), key, recovery })
    }

    /// Seals `secret` under `name`, replacing what was there, durably.
    ///
    /// # Errors
    /// When the name is not plain or the system refuses.
    pub fn write(&self, name: &str, secret: &SecretSlice<u8>) -> Result<(), SealError> {
        let path = self.path(name)?;
        Ok(file::replace_private(&path, &self.seal(secret)?)?)
    }

    /// Seals `secret` under a `name` that must be new.
    ///
    /// # Errors
    /// [`FileError::Exists`] when there is one: keys are never overwritten.
    pub fn create(&self, name: &str, secret: &SecretSlice<u8>) -> Result<(), SealError> {
        let path = self.path(name)?;
        Ok(file::create_private(&path, &self.seal(secret)?)?)
    }

    /// Opens the secret of this name.
    ///
    /// # Errors
    /// [`FileError::Missing`] when there is none; [`SealError::WrongKey`] or [`SealError::Damaged`].
    pub fn read(&self, name: &str) -> Result<SecretSlice<u8>, SealError> {
        open(&file::read_private(&self.path(name)?, MAX_SEALED_BYTES)?, self.key)
    }

    /// Opens the secret of this name; `None` when there is none.
    ///
    /// # Errors
    /// As [`Self::read`].
    pub fn find(&self, name: &str) -> Result<Option<SecretSlice<u8>>, SealError> {
        match self.read(name) {
            Ok(secret) => Ok(Some(secret)),
            Err(SealError::File(FileError::Missing { .. })) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Removes a secret; whether there was one.
    ///
    /// # Errors
    /// When the name is not plain or the system refuses.
    pub fn remove(&self, name: &str) -> Result<bool, SealError> {
        Ok(file::remove(&self.path(name)?)?)
    }

    /// Where the secret of this name lies, for `age -d -i node_key`.
    ///
    /// # Errors
    /// [`SealError::Name`] when the name is not plain.
    pub fn path(&self, name: &str) -> Result<PathBuf, SealError> {
        let plain = |b: u8| matches!(b, b'a'..=b'z' | b'0'..=b'9' | b'.' | b'_' | b'-');
        if name.is_empty() || name.len() > 64 || name.starts_with('.') || !name.bytes().all(plain) {
            return Err(SealError::Name(name.chars().take(80).collect()));
        }
        Ok(self.directory.join(format!("{name}.age")))
    }

    fn seal(&self, secret: &SecretSlice<u8>) -> Result<Vec<u8>, SealError> {
        let mut recipients = vec![Recipient::Node(self.key.peer_id())];
        recipients.extend(self.recovery.iter().cloned());
        seal(secret.expose_secret(), &recipients)
    }
}

impl fmt::Debug for SealedDir<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SealedDir").field("directory", &self.directory).finish_non_exhaustive()
    }
}
