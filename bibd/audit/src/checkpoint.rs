//! A checkpoint: the node's signed word for how the log stood (<https://c2sp.org/tlog-checkpoint>).

use std::fmt;
use std::str::FromStr;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bib_core::{Hash, PeerId};

use crate::chain::ChainState;
use crate::note::{KeyKind, NoteError, NoteSignature, SignedNote, VerifierKey};

/// Why a text is not a checkpoint of ours.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CheckpointError {
    /// Not a signed note, or not signed by the key.
    #[error(transparent)]
    Note(#[from] NoteError),
    /// The text is not that of a checkpoint.
    #[error("not a checkpoint: {0}")]
    Malformed(&'static str),
    /// Of another log than the key's.
    #[error("the checkpoint is of {0}, a log of another node")]
    Origin(String),
}

/// The name of a log: `bib/<peer id>/<epoch>`. It is also the name of the key that signs its checkpoints.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Origin {
    /// The node.
    pub node: PeerId,
    /// Its epoch.
    pub epoch: u64,
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "bib/{}/{}", self.node, self.epoch)
    }
}

impl FromStr for Origin {
    type Err = CheckpointError;

    fn from_str(text: &str) -> Result<Self, CheckpointError> {
        let parse = || {
            let (node, epoch) = text.strip_prefix("bib/")?.split_once('/')?;
            Some(Self { node: node.parse().ok()?, epoch: decimal(epoch)? })
        };
        parse().ok_or(CheckpointError::Malformed("the origin is not bib/<peer id>/<epoch>"))
    }
}

/// A decimal number without leading zeros, below 2^53.
pub(crate) fn decimal(text: &str) -> Option<u64> {
    let number = text.parse::<u64>().ok()?;
    (number < crate::body::INTEGER_LIMIT && number.to_string() == text).then_some(number)
}

/// How a log stood at a size.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Checkpoint {
    /// Which log.
    pub origin: Origin,
    /// The highest sealed sequence number.
    pub size: u64,
    /// The Merkle root over the digests 1 to `size`.
    pub root: Hash,
    /// The chain's head at `size`.
    pub chain: Hash,
}

impl Checkpoint {
    /// How `state` stands in the log of `node`.
    #[must_use]
    pub fn of(node: PeerId, state: &ChainState) -> Self {
        let origin = Origin { node, epoch: state.epoch };
        Self { origin, size: state.seq, root: state.compact.root(), chain: state.head }
    }

    /// The text that is signed.
    #[must_use]
    pub fn text(&self) -> String {
        let root = STANDARD.encode(self.root.as_bytes());
        format!("{}\n{}\n{root}\nchain {}\n", self.origin, self.size, self.chain)
    }

    /// The signed note. `sign` makes an Ed25519 signature of exactly the given bytes with the node's key.
    #[must_use]
    pub fn sign(&self, sign: &dyn Fn(&[u8]) -> [u8; 64]) -> SignedNote {
        let (text, key) = (self.text(), self.origin.verifier_key());
        let bytes = sign(text.as_bytes()).to_vec();
        let line = NoteSignature { name: key.name().to_owned(), key_id: key.id(), bytes };
        SignedNote { text, signatures: vec![line] }
    }

    /// Reads the text of a note, without looking at its signatures.
    ///
    /// # Errors
    /// When it is not the text of a checkpoint of ours.
    pub fn parse_text(text: &str) -> Result<Self, CheckpointError> {
        let body = text.strip_suffix('\n').ok_or(CheckpointError::Malformed("no newline at the end"))?;
        let mut lines = body.split('\n');
        let mut next = || lines.next().filter(|l| !l.is_empty()).ok_or(CheckpointError::Malformed("four lines needed"));
        let (origin, size, root, chain) = (next()?, next()?, next()?, next()?);
        let root = STANDARD.decode(root).ok().and_then(|bytes| Hash::try_from(bytes.as_slice()).ok());
        let chain = chain.strip_prefix("chain ").and_then(|head| head.parse().ok());
        if lines.any(str::is_empty) {
            return Err(CheckpointError::Malformed("an empty line"));
        }
        Ok(Self {
            origin: origin.parse()?,
            size: decimal(size).ok_or(CheckpointError::Malformed("the size is not a number"))?,
            root: root.ok_or(CheckpointError::Malformed("the root is not a base64 hash"))?,
            chain: chain.ok_or(CheckpointError::Malformed("no line `chain <head>`"))?,
        })
    }

    /// Reads a note and verifies the signature of the node with this public key.
    ///
    /// # Errors
    /// When it is not a checkpoint, of another node, or not validly signed.
    pub fn open(note: &str, public_key: &[u8; 32]) -> Result<Self, CheckpointError> {
        let note: SignedNote = note.parse()?;
        let checkpoint = Self::parse_text(&note.text)?;
        if checkpoint.origin.node.public_key() != public_key {
            return Err(CheckpointError::Origin(checkpoint.origin.to_string()));
        }
        checkpoint.origin.verifier_key().verify(&note)?;
        Ok(checkpoint)
    }
}

impl Origin {
    /// The key that checkpoints of this log verify with; its text form is what witnesses are configured with.
    #[must_use]
    pub fn verifier_key(&self) -> VerifierKey {
        VerifierKey::new(&self.to_string(), KeyKind::Ed25519, *self.node.public_key())
            .expect("an origin has neither spaces nor +")
    }
}

#[cfg(test)]
mod tests {
    use ed25519_dalek::{Signer as _, SigningKey};

    use super::*;

    fn signed() -> (SigningKey, Checkpoint, SignedNote) {
        let key = SigningKey::from_bytes(&[7; 32]);
        let mut state = ChainState::new(2);
        state.seal((0..5_u8).map(|i| (uuid::Uuid::nil(), Hash::of(&[i]))));
        let checkpoint = Checkpoint::of(PeerId::from_public_key(key.verifying_key().to_bytes()), &state);
        let note = checkpoint.sign(&|bytes| key.sign(bytes).to_bytes());
        (key, checkpoint, note)
    }

    #[test]
    fn a_signed_checkpoint_opens_with_its_key_alone() {
        let (key, checkpoint, note) = signed();
        let public = key.verifying_key().to_bytes();
        assert_eq!(Checkpoint::open(&note.to_string(), &public), Ok(checkpoint));
        assert!(matches!(Checkpoint::open(&note.to_string(), &[1; 32]), Err(CheckpointError::Origin(_))));
        let changed = note.to_string().replace("\n5\n", "\n6\n");
        assert!(matches!(Checkpoint::open(&changed, &public), Err(CheckpointError::Note(NoteError::BadSignature(_)))));
    }

    #[test]
    fn cosignatures_are_kept_and_verify() {
        let (key, checkpoint, mut note) = signed();
        let witness = SigningKey::from_bytes(&[9; 32]);
        let name = VerifierKey::new("witness.example/w1", KeyKind::CosignatureV1, witness.verifying_key().to_bytes());
        let name: VerifierKey = name.unwrap().to_string().parse().unwrap();
        let mut bytes = 1_763_665_260_u64.to_be_bytes().to_vec();
        let message = crate::note::cosigned_message(1_763_665_260, &note.text);
        bytes.extend_from_slice(&witness.sign(message.as_bytes()).to_bytes());
        note.signatures.push(NoteSignature { name: name.name().to_owned(), key_id: name.id(), bytes });
        let read: SignedNote = note.to_string().parse().unwrap();
        assert_eq!(name.verify(&read), Ok(Some(1_763_665_260)));
        assert_eq!(Checkpoint::open(&note.to_string(), &key.verifying_key().to_bytes()), Ok(checkpoint));
        note.signatures[1].bytes[7] ^= 1;
        assert!(matches!(name.verify(&note), Err(NoteError::BadSignature(_))));
    }

    #[test]
    fn refuses_texts_that_are_nearly_checkpoints() {
        let (_, checkpoint, _) = signed();
        let text = checkpoint.text();
        assert_eq!(Checkpoint::parse_text(&text), Ok(checkpoint));
        assert_eq!(Checkpoint::parse_text(&(text.clone() + "other extension\n")), Ok(checkpoint));
        for wrong in [text.replace("\n5\n", "\n05\n"), text.replace("chain ", "head "), text.replace("bib/", "bob/")] {
            assert!(Checkpoint::parse_text(&wrong).is_err(), "{wrong}");
        }
        assert!(Checkpoint::parse_text(text.trim_end()).is_err());
        assert!(Checkpoint::parse_text(&(text + "\n")).is_err());
    }
}
