//! Sealing what does not fit in memory: the same `age` files as [`crate::sealed`] makes, as a stream.
//!
//! `age -d -i FILE` opens what is written here, too.

use std::io::{self, Read, Write};

use age::stream::{StreamReader, StreamWriter};

use crate::node_key::NodeKey;
use crate::recovery::RecoverySheet;
use crate::sealed::{Recipient, SealError};

/// What opens sealed files: the node's own key, or the age key of the recovery sheet.
#[derive(Clone)]
pub enum Opener {
    /// The node's key, and those of nodes that it follows.
    Nodes(Vec<age::ssh::Identity>),
    /// The recovery sheet's age key.
    Recovery(age::x25519::Identity),
}

impl std::fmt::Debug for Opener {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Nodes(_) => "Opener(node key)",
            Self::Recovery(_) => "Opener(recovery key)",
        })
    }
}

impl Opener {
    /// The node's key.
    ///
    /// # Errors
    /// [`SealError::Key`] when the library does not take it.
    pub fn of_node(key: &NodeKey) -> Result<Self, SealError> {
        let text = key.to_openssh().map_err(|_| SealError::Key(io::ErrorKind::InvalidData.into()))?;
        identity(text.as_bytes()).map(|identity| Self::Nodes(vec![identity]))
    }

    /// Opens also what was sealed to another node, whose key is this text of OpenSSH.
    ///
    /// # Errors
    /// [`SealError::Key`] when it is none.
    pub fn and_node(self, text: &str) -> Result<Self, SealError> {
        let former = identity(text.as_bytes())?;
        Ok(match self {
            Self::Nodes(mut keys) => {
                keys.push(former);
                Self::Nodes(keys)
            }
            recovery @ Self::Recovery(_) => recovery,
        })
    }

    /// The recovery sheet's age key.
    #[must_use]
    pub fn of_recovery(sheet: &RecoverySheet) -> Self {
        Self::Recovery(sheet.age_identity().clone())
    }

    /// The plaintext of what `from` holds. Each 64 KiB are authenticated before they are returned; who sealed them is
    /// not: anybody can who knows the recipient.
    ///
    /// # Errors
    /// [`SealError::WrongKey`] or [`SealError::Damaged`].
    pub fn open<R: Read>(&self, from: R) -> Result<StreamReader<R>, SealError> {
        let identities: Vec<&dyn age::Identity> = match self {
            Self::Nodes(keys) => keys.iter().map(|key| key as &dyn age::Identity).collect(),
            Self::Recovery(identity) => vec![identity],
        };
        let decryptor = age::Decryptor::new(from).map_err(|_| SealError::Damaged)?;
        decryptor.decrypt(identities.into_iter()).map_err(|error| match error {
            age::DecryptError::NoMatchingKeys => SealError::WrongKey,
            _ => SealError::Damaged,
        })
    }
}

/// Seals what is written to it. Nothing is sealed until [`SealingWriter::finish`].
pub struct SealingWriter<W: Write>(StreamWriter<W>);

impl<W: Write> SealingWriter<W> {
    /// Seals to `to`, so that each of `recipients` can open it alone.
    ///
    /// # Errors
    /// Without recipients, for a peer id that is no usable key, or when `to` cannot be written.
    pub fn new(to: W, recipients: &[Recipient]) -> Result<Self, SealError> {
        let recipients = recipients.iter().map(Recipient::to_age).collect::<Result<Vec<_>, _>>()?;
        let encryptor = age::Encryptor::with_recipients(recipients.iter().map(|r| r.as_ref() as &dyn age::Recipient))
            .map_err(|_| SealError::NoRecipients)?;
        encryptor.wrap_output(to).map(Self).map_err(SealError::Key)
    }

    /// Writes the end and gives the writer back.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn finish(self) -> io::Result<W> {
        self.0.finish()
    }
}

impl<W: Write> Write for SealingWriter<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.0.flush()
    }
}

fn identity(text: &[u8]) -> Result<age::ssh::Identity, SealError> {
    age::ssh::Identity::from_buffer(text, None).map_err(SealError::Key)
}

#[cfg(test)]
mod tests {
    use super::*;
    use rand_core::OsRng;

    #[test]
    fn what_is_sealed_to_two_is_opened_by_each_and_by_no_third() {
        let dir = tempfile::tempdir().unwrap();
        let key = NodeKey::create(&dir.path().join("a"), &mut OsRng).unwrap();
        let other = NodeKey::create(&dir.path().join("b"), &mut OsRng).unwrap();
        let sheet = RecoverySheet::generate(&mut OsRng);
        let recipients = [Recipient::Node(key.peer_id()), sheet.public().recipient().unwrap()];
        let plain: Vec<u8> = (0..300_000_u32).flat_map(u32::to_le_bytes).collect();
        let mut writer = SealingWriter::new(Vec::new(), &recipients).unwrap();
        writer.write_all(&plain).unwrap();
        let sealed = writer.finish().unwrap();
        for opener in [Opener::of_node(&key).unwrap(), Opener::of_recovery(&sheet)] {
            let mut opened = Vec::new();
            opener.open(sealed.as_slice()).unwrap().read_to_end(&mut opened).unwrap();
            assert_eq!(opened, plain);
        }
        let refused = Opener::of_node(&other).unwrap().open(sealed.as_slice()).map(drop);
        assert!(matches!(refused, Err(SealError::WrongKey)));
        let successor = Opener::of_node(&other).unwrap().and_node(&key.to_openssh().unwrap()).unwrap();
        let mut opened = Vec::new();
        successor.open(sealed.as_slice()).unwrap().read_to_end(&mut opened).unwrap();
        assert_eq!(opened, plain, "a successor opens what was sealed to whom it follows");
        assert!(matches!(Opener::of_node(&other).unwrap().and_node("no key"), Err(SealError::Key(_))));
        let mut cut = Vec::new();
        let short = &sealed[..sealed.len() - 10];
        assert!(Opener::of_recovery(&sheet).open(short).unwrap().read_to_end(&mut cut).is_err());
    }
}
