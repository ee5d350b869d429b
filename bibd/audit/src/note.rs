//! Signed notes (<https://c2sp.org/signed-note>): a text, and lines of signatures under it.

use std::fmt;
use std::str::FromStr;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bib_core::Hasher;
use ed25519_dalek::{Signature, VerifyingKey};

/// The longest note that is read, in bytes.
pub const MAX_NOTE_BYTES: usize = 128 * 1024;
/// The most signatures on a note that is read.
pub const MAX_SIGNATURES: usize = 64;

/// Why a text is not a note, or a note is not to be believed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NoteError {
    /// Not spelled as a signed note.
    #[error("not a signed note: {0}")]
    Malformed(&'static str),
    /// Not spelled as a verifier key.
    #[error("not a verifier key (name+hash+key): {0}")]
    Key(&'static str),
    /// The key has not signed it.
    #[error("the note has no signature by {0}")]
    Unsigned(String),
    /// A line by the key does not verify.
    #[error("the signature by {0} is wrong")]
    BadSignature(String),
}

/// What a key signs with: its type byte.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum KeyKind {
    /// Ed25519 over the note's text: 0x01.
    Ed25519,
    /// Ed25519 cosignature with a time, <https://c2sp.org/tlog-cosignature>: 0x04.
    CosignatureV1,
}

impl KeyKind {
    const fn byte(self) -> u8 {
        match self {
            Self::Ed25519 => 0x01,
            Self::CosignatureV1 => 0x04,
        }
    }
}

/// A key that notes are verified with. Its text form is `name+<8 hex digits>+base64(type || key)`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VerifierKey {
    name: String,
    kind: KeyKind,
    key: [u8; 32],
}

/// One signature line.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NoteSignature {
    /// The key's name.
    pub name: String,
    /// The key's id: the first four bytes of SHA-256(name || 0x0A || type || public key).
    pub key_id: [u8; 4],
    /// What follows the id, as its type has it.
    pub bytes: Vec<u8>,
}

/// A text and its signatures. Lines by unknown keys are kept.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SignedNote {
    /// The text, with its last newline.
    pub text: String,
    /// The lines, in order.
    pub signatures: Vec<NoteSignature>,
}

fn is_name(name: &str) -> bool {
    !name.is_empty() && !name.contains(|c: char| c.is_whitespace() || c.is_control() || c == '+')
}

impl VerifierKey {
    /// A key.
    ///
    /// # Errors
    /// When the name is empty or has spaces or `+`.
    pub fn new(name: &str, kind: KeyKind, key: [u8; 32]) -> Result<Self, NoteError> {
        if !is_name(name) {
            return Err(NoteError::Key("the name is empty or has spaces or +"));
        }
        Ok(Self { name: name.to_owned(), kind, key })
    }

    /// The name.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The 32 bytes of the public key.
    #[must_use]
    pub const fn public_key(&self) -> &[u8; 32] {
        &self.key
    }

    /// The four bytes that, with the name, mark this key's lines.
    #[must_use]
    pub fn id(&self) -> [u8; 4] {
        let mut hasher = Hasher::new();
        hasher.update(self.name.as_bytes());
        hasher.update(&[b'\n', self.kind.byte()]);
        hasher.update(&self.key);
        let hash = hasher.finish();
        let [a, b, c, d, ..] = *hash.as_bytes();
        [a, b, c, d]
    }

    /// Verifies every line of `note` that this key claims. The time of a cosignature (Unix seconds) is returned.
    ///
    /// # Errors
    /// When there is no such line, or one of them is wrong.
    pub fn verify(&self, note: &SignedNote) -> Result<Option<u64>, NoteError> {
        let wrong = || NoteError::BadSignature(self.name.clone());
        let key = VerifyingKey::from_bytes(&self.key).map_err(|_| NoteError::Key("not a point of the curve"))?;
        let id = self.id();
        let mut found = None;
        for line in note.signatures.iter().filter(|line| line.name == self.name && line.key_id == id) {
            let (time, message, signature) = match self.kind {
                KeyKind::Ed25519 => (None, note.text.clone(), line.bytes.as_slice()),
                KeyKind::CosignatureV1 => {
                    let (time, signature) = line.bytes.split_first_chunk::<8>().ok_or_else(wrong)?;
                    let time = u64::from_be_bytes(*time);
                    (Some(time), cosigned_message(time, &note.text), signature)
                }
            };
            let signature = Signature::from_slice(signature).map_err(|_| wrong())?;
            key.verify_strict(message.as_bytes(), &signature).map_err(|_| wrong())?;
            found = Some(time);
        }
        found.ok_or_else(|| NoteError::Unsigned(self.name.clone()))
    }
}

/// What a witness signs: <https://c2sp.org/tlog-cosignature>.
#[must_use]
pub fn cosigned_message(time: u64, text: &str) -> String {
    format!("cosignature/v1\ntime {time}\n{text}")
}

impl fmt::Display for VerifierKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut bytes = vec![self.kind.byte()];
        bytes.extend_from_slice(&self.key);
        write!(f, "{}+{}+{}", self.name, hex::encode(self.id()), STANDARD.encode(bytes))
    }
}

impl FromStr for VerifierKey {
    type Err = NoteError;

    fn from_str(text: &str) -> Result<Self, NoteError> {
        let (name, rest) = text.split_once('+').ok_or(NoteError::Key("two + are needed"))?;
        let (id, key) = rest.split_once('+').ok_or(NoteError::Key("two + are needed"))?;
        let bytes = STANDARD.decode(key).map_err(|_| NoteError::Key("the key is not base64"))?;
        let (kind, key) = match bytes.split_first() {
            Some((0x01, key)) => (KeyKind::Ed25519, key),
            Some((0x04, key)) => (KeyKind::CosignatureV1, key),
            _ => return Err(NoteError::Key("the type of the key is not known")),
        };
        let key = key.try_into().map_err(|_| NoteError::Key("an Ed25519 key has 32 bytes"))?;
        let key = Self::new(name, kind, key)?;
        if hex::encode(key.id()) == id { Ok(key) } else { Err(NoteError::Key("hash and key do not fit")) }
    }
}

impl fmt::Display for SignedNote {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{}", self.text)?;
        for line in &self.signatures {
            let bytes = [line.key_id.as_slice(), &line.bytes].concat();
            writeln!(f, "\u{2014} {} {}", line.name, STANDARD.encode(bytes))?;
        }
        Ok(())
    }
}

impl FromStr for SignedNote {
    type Err = NoteError;

    fn from_str(note: &str) -> Result<Self, NoteError> {
        if note.len() > MAX_NOTE_BYTES {
            return Err(NoteError::Malformed("longer than 128 KiB"));
        }
        if note.bytes().any(|b| b < 0x20 && b != b'\n') {
            return Err(NoteError::Malformed("control characters"));
        }
        // The text may hold empty lines: the last one separates.
        let end = note.rfind("\n\n").ok_or(NoteError::Malformed("no empty line before the signatures"))?;
        let (text, lines) = (&note[..=end], &note[end + 2..]);
        let lines = lines.strip_suffix('\n').ok_or(NoteError::Malformed("no newline at the end"))?;
        let signatures = lines.split('\n').map(parse_line).collect::<Result<Vec<_>, _>>()?;
        if signatures.len() > MAX_SIGNATURES {
            return Err(NoteError::Malformed("more than 64 signatures"));
        }
        Ok(Self { text: text.to_owned(), signatures })
    }
}

fn parse_line(line: &str) -> Result<NoteSignature, NoteError> {
    let wrong = NoteError::Malformed("a signature line is not `\u{2014} name base64`");
    let rest = line.strip_prefix("\u{2014} ").ok_or_else(|| wrong.clone())?;
    let (name, code) = rest.split_once(' ').filter(|(name, _)| is_name(name)).ok_or_else(|| wrong.clone())?;
    let bytes = STANDARD.decode(code).map_err(|_| wrong.clone())?;
    let (key_id, bytes) = bytes.split_first_chunk::<4>().filter(|(_, rest)| !rest.is_empty()).ok_or(wrong)?;
    Ok(NoteSignature { name: name.to_owned(), key_id: *key_id, bytes: bytes.to_vec() })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The example of the Go package that the format comes from.
    const NOTE: &str = "If you think cryptography is the answer to your problem,\n\
        then you don't know what your problem is.\n\n\
        \u{2014} PeterNeumann x08go/ZJkuBS9UG/SffcvIAQxVBtiFupLLr8pAcElZInNIuGUgYN1FFYC2pZSNXgKvqfqdngotpRZb6KE6RyyBwJnAM=\n";
    const KEY: &str = "PeterNeumann+c74f20a3+ARpc2QcUPDhMQegwxbzhKqiBfsVkmqq/LDE4izWy10TW";

    #[test]
    fn verifies_the_published_example() {
        let (note, key): (SignedNote, VerifierKey) = (NOTE.parse().unwrap(), KEY.parse().unwrap());
        assert_eq!(key.verify(&note), Ok(None));
        assert_eq!((note.to_string(), key.to_string()), (NOTE.to_owned(), KEY.to_owned()));
        let changed: SignedNote = NOTE.replace("answer", "question").parse().unwrap();
        assert_eq!(key.verify(&changed), Err(NoteError::BadSignature("PeterNeumann".into())));
        let other = VerifierKey::new("PeterNeumann", KeyKind::Ed25519, [7; 32]).unwrap();
        assert!(other.verify(&note).is_err());
    }

    #[test]
    fn refuses_what_is_not_a_note() {
        let tab = NOTE.replacen(' ', "\t", 1);
        let hyphen = NOTE.replace('\u{2014}', "--");
        for text in ["", "a\n", "a\n\n", "a\n\nb\n", NOTE.trim_end(), tab.as_str(), hyphen.as_str()] {
            assert!(text.parse::<SignedNote>().is_err(), "{text:?}");
        }
        assert!(KEY.replace("c74f20a3", "c74f20a4").parse::<VerifierKey>().is_err());
    }
}
