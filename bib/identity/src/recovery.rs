//! The recovery sheet: two keys that are printed and kept off the node.
//!
//! The age key opens the node's backups and secrets; the Ed25519 key signs the succession that names a lost node's
//! next peer id. The node keeps the public halves ([`RecoveryPublic`]) and forgets the rest. On the sheet the public
//! halves also serve as checksums of what was typed in again.

use std::fmt;

use bib_core::signature::{Purpose, signed_bytes};
use bib_core::{Hash, PeerId, Timestamp};
use ed25519_dalek::{Signer as _, SigningKey};
use rand_core::CryptoRngCore;
use secrecy::{ExposeSecret as _, SecretSlice};
use serde::{Deserialize, Serialize};
use zeroize::Zeroizing;

use crate::node_key::{self, BadSignature};
use crate::sealed::{self, Recipient, SealError};

const FORMAT: &str = "bib-recovery/1";
/// The longest sheet that is parsed, in bytes.
const MAX_BYTES: usize = 16 * 1024;

/// Why a text is not a recovery sheet.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RecoveryError {
    /// Larger than a sheet can be, or not text.
    #[error("the text is not a recovery sheet")]
    NotASheet,
    /// A line is missing.
    #[error("the recovery sheet has no line `{0}:`")]
    Missing(&'static str),
    /// A line is there twice.
    #[error("the recovery sheet has the line `{0}:` more than once")]
    Twice(&'static str),
    /// A line does not hold what it should: a typing error.
    #[error("the recovery sheet's line `{0}:` is mistyped")]
    Mistyped(&'static str),
    /// A secret and its public half do not fit: a typing error in one of them.
    #[error("the recovery sheet's lines `{secret}:` and `{public}:` do not fit together")]
    Mismatch {
        /// The line of the secret.
        secret: &'static str,
        /// The line of the public half.
        public: &'static str,
    },
}

impl RecoveryError {
    /// What a person can do about it.
    #[must_use]
    pub fn hint(&self) -> Option<&'static str> {
        Some("type the sheet's lines exactly as printed; spaces inside keys do not matter")
    }
}

/// The public halves: what the node keeps.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RecoveryPublic {
    /// The age recipient, `age1...`.
    pub age_recipient: String,
    /// The Ed25519 public key: 64 hex digits.
    #[serde(with = "hex_key")]
    pub ed25519: [u8; 32],
}

/// 32 bytes as lower-case hex in JSON.
mod hex_key {
    use serde::{Deserialize as _, Deserializer, Serializer};

    pub(super) fn serialize<S: Serializer>(key: &[u8; 32], serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&hex::encode(key))
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<[u8; 32], D::Error> {
        let text = std::borrow::Cow::<'de, str>::deserialize(deserializer)?;
        let mut key = [0; 32];
        hex::decode_to_slice(text.as_bytes(), &mut key).map_err(serde::de::Error::custom)?;
        Ok(key)
    }
}

impl RecoveryPublic {
    /// To whom secrets and backups are also sealed.
    ///
    /// # Errors
    /// [`SealError::Recipient`] when the stored text is not a recipient.
    pub fn recipient(&self) -> Result<Recipient, SealError> {
        let error = || SealError::Recipient(self.age_recipient.chars().take(80).collect());
        self.age_recipient.parse().map(Recipient::Recovery).map_err(|_| error())
    }

    /// Checks a signature by the recovery key over `body` for `purpose`.
    ///
    /// # Errors
    /// [`BadSignature`].
    pub fn verify(&self, purpose: Purpose, body: &[u8], signature: &[u8]) -> Result<(), BadSignature> {
        node_key::verify_raw(&self.ed25519, &signed_bytes(purpose, body), signature)
    }
}

/// Both recovery keys with their secrets. Exists while the sheet is printed or used.
pub struct RecoverySheet {
    age: age::x25519::Identity,
    ed25519: SigningKey,
}

/// A sheet as it was typed in, with what else stands on it.
#[derive(Debug)]
pub struct ParsedSheet {
    /// The keys.
    pub sheet: RecoverySheet,
    /// The node that it is for.
    pub peer_id: PeerId,
    /// When it was made.
    pub created: Timestamp,
}

impl RecoverySheet {
    /// Makes both keys. The age library draws its own from the operating system; the Ed25519 key comes from `rng`.
    pub fn generate(rng: &mut impl CryptoRngCore) -> Self {
        Self { age: age::x25519::Identity::generate(), ed25519: SigningKey::generate(rng) }
    }

    /// The public halves.
    #[must_use]
    pub fn public(&self) -> RecoveryPublic {
        RecoveryPublic {
            age_recipient: self.age.to_public().to_string(),
            ed25519: self.ed25519.verifying_key().to_bytes(),
        }
    }

    /// Signs `body` for `purpose` as the recovery key: a succession.
    #[must_use]
    pub fn sign(&self, purpose: Purpose, body: &[u8]) -> [u8; 64] {
        self.ed25519.sign(&signed_bytes(purpose, body)).to_bytes()
    }

    /// Opens what was sealed to the age recovery key.
    ///
    /// # Errors
    /// [`SealError::WrongKey`] or [`SealError::Damaged`].
    pub fn open(&self, sealed: &[u8]) -> Result<SecretSlice<u8>, SealError> {
        sealed::open_with(sealed, &self.age)
    }

    /// The age key, for [`crate::sealed_stream::Opener`].
    pub(crate) fn age_identity(&self) -> &age::x25519::Identity {
        &self.age
    }

    /// The sheet to print, once.
    #[must_use]
    pub fn to_text(&self, peer: &PeerId, created: Timestamp) -> Zeroizing<String> {
        let public = self.public();
        let seed = Zeroizing::new(hex::encode(Zeroizing::new(self.ed25519.to_bytes()).as_slice()));
        let age_secret = self.age.to_string();
        Zeroizing::new(format!(
            "BIB RECOVERY SHEET\n\
             \n\
             Print this, keep it where the node is not, and delete the file.\n\
             Whoever has it can read the node's backups and take over its name.\n\
             Each line counts; spaces inside keys do not.\n\
             \n\
             format: {FORMAT}\n\
             node: {peer}\n\
             created: {created}\n\
             \n\
             opens backups and secrets, also with: age -d -i FILE (FILE holds this key alone)\n\
             age-secret: {age}\n\
             age-public: {recipient}\n\
             \n\
             names this node's successor\n\
             ed25519-secret: {seed}\n\
             ed25519-public: {ed25519}\n\
             \n\
             check: {check}\n",
            age = age_secret.expose_secret(),
            recipient = public.age_recipient,
            seed = grouped(&seed).as_str(),
            ed25519 = grouped(&hex::encode(public.ed25519)).as_str(),
            check = checksum(peer, created, &public),
        ))
    }

    /// Reads a sheet, as printed or as typed in again.
    ///
    /// # Errors
    /// [`RecoveryError`] naming the line that is wrong.
    pub fn parse(text: &str) -> Result<ParsedSheet, RecoveryError> {
        if text.len() > MAX_BYTES {
            return Err(RecoveryError::NotASheet);
        }
        if &**line(text, "format")? != FORMAT {
            return Err(RecoveryError::Mistyped("format"));
        }
        let peer_id = line(text, "node")?.parse().map_err(|_| RecoveryError::Mistyped("node"))?;
        let created = line(text, "created")?.parse().map_err(|_| RecoveryError::Mistyped("created"))?;
        let age_secret = Zeroizing::new(line(text, "age-secret")?.to_ascii_uppercase());
        let age: age::x25519::Identity = age_secret.parse().map_err(|_| RecoveryError::Mistyped("age-secret"))?;
        let mut seed = Zeroizing::new([0; 32]);
        hex::decode_to_slice(line(text, "ed25519-secret")?.as_bytes(), seed.as_mut_slice())
            .map_err(|_| RecoveryError::Mistyped("ed25519-secret"))?;
        let sheet = Self { age, ed25519: SigningKey::from_bytes(&seed) };
        let public = sheet.public();
        if *line(text, "age-public")?.to_ascii_lowercase() != public.age_recipient {
            return Err(RecoveryError::Mismatch { secret: "age-secret", public: "age-public" });
        }
        if *line(text, "ed25519-public")?.to_ascii_lowercase() != hex::encode(public.ed25519) {
            return Err(RecoveryError::Mismatch { secret: "ed25519-secret", public: "ed25519-public" });
        }
        if *line(text, "check")?.to_ascii_lowercase() != checksum(&peer_id, created, &public) {
            return Err(RecoveryError::Mistyped("check"));
        }
        Ok(ParsedSheet { sheet, peer_id, created })
    }
}

impl fmt::Debug for RecoverySheet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RecoverySheet").field("public", &self.public()).finish_non_exhaustive()
    }
}

/// What follows `name:` on the only line that begins so, without any white space.
fn line(text: &str, name: &'static str) -> Result<Zeroizing<String>, RecoveryError> {
    let mut found = text.lines().filter_map(|l| l.trim_start().strip_prefix(name)?.trim_start().strip_prefix(':'));
    let value = found.next().ok_or(RecoveryError::Missing(name))?;
    if found.next().is_some() {
        return Err(RecoveryError::Twice(name));
    }
    Ok(Zeroizing::new(value.chars().filter(|c| !c.is_whitespace()).collect()))
}

/// Finds a typing error in the peer id, which has no checksum of its own, and in the date.
fn checksum(peer: &PeerId, created: Timestamp, public: &RecoveryPublic) -> String {
    let text = format!("{peer} {created} {} {}", public.age_recipient, hex::encode(public.ed25519));
    Hash::of(text.as_bytes()).to_string()[..8].to_owned()
}

/// Groups of eight, to be read aloud and typed.
fn grouped(text: &str) -> Zeroizing<String> {
    let mut out = Zeroizing::new(String::with_capacity(text.len() + text.len() / 8 + 1));
    for (i, c) in text.chars().enumerate() {
        if i > 0 && i % 8 == 0 {
            out.push(' ');
        }
        out.push(c);
    }
    out
}
