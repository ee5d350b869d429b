//! Chunks in a bucket: the place for those that nobody has read for long. Local disk is always where a chunk arrives.
//!
//! ```text
//! FORMAT                  {"format":"bib-objects/1","node":PEER ID}: whose this part of the bucket is
//! chunks/ab/cd/<sha256>   a chunk as it lay on disk: its bytes, or zstd frames
//! sealed/ab/cd/<name>     the same, sealed with age to the node and its recovery key; HMAC-SHA-256 of the chunk's name
//! ```
//!
//! Which of the two readings of a file it is, its hash decides, as on disk (`codec`). The names of sealed objects are
//! keyed, as a hash would let whoever keeps the store confirm that a node holds bytes that they know. What comes
//! back is believed only when it has the chunk's hash: a store that lies, loses or mixes up is found out with each read.
//!
//! This room moves bytes; which chunks lie where are rows of the catalog, which the daemon's tier keeps.

use std::fmt;
use std::io::{Read as _, Write as _};
use std::time::SystemTime;

use bib_core::{Hash, PeerId};
use bib_identity::Recipient;
use bib_identity::sealed::SealError;
use bib_identity::sealed_stream::{Opener, SealingWriter};
use bibd_s3::{Bucket, Problem, S3Error};
use bytes::Bytes;
use ring::hmac;
use serde::{Deserialize, Serialize};

use crate::chunk::{Encoding, Frame, MAX_CHUNK_BYTES};
use crate::codec;

/// The object that says whose the place is.
const FORMAT: &str = "FORMAT";
const WORD: &str = "bib-objects/1";
/// What sealing adds at most: a header with two recipients, and 16 bytes for each 64 KiB.
const SEAL_BYTES: u64 = 16 * 1024;
/// The longest object, in bytes: zstd frames that save nothing are never stored, so a chunk is the bound.
const MAX_OBJECT_BYTES: u64 = MAX_CHUNK_BYTES as u64 + SEAL_BYTES;

/// What FORMAT says.
#[derive(Debug, Serialize, Deserialize)]
struct Format {
    format: String,
    node: String,
}

/// Why the place in the bucket, or an object in it, cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ObjectError {
    /// The store does not do it.
    #[error(transparent)]
    Store(#[from] S3Error),
    /// Another node keeps its chunks there.
    #[error("`{place}` belongs to the node {node}")]
    Taken {
        /// FORMAT.
        place: String,
        /// By its peer id.
        node: String,
    },
    /// There are chunks in object storage, and this is not where.
    #[error("`{place}` is missing, though chunks of this node lie in object storage")]
    Elsewhere {
        /// FORMAT.
        place: String,
    },
    /// FORMAT is none of ours.
    #[error("`{place}` is not a FORMAT that this program reads")]
    Format {
        /// FORMAT.
        place: String,
    },
    /// There is no such object.
    #[error("the object of chunk {chunk} is missing")]
    Missing {
        /// The chunk.
        chunk: Hash,
    },
    /// Something else lies under the name.
    #[error("what lies under the name of chunk {chunk} is not it: {why}")]
    Wrong {
        /// The chunk.
        chunk: Hash,
        /// In which way.
        why: &'static str,
    },
    /// It cannot be sealed.
    #[error("seal a chunk")]
    Seal(#[source] SealError),
}

/// Where an object lies.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct ObjectName {
    /// Sealed, with a keyed name.
    pub sealed: bool,
    /// The chunk's hash, or its keyed name.
    pub name: Hash,
}

impl ObjectName {
    /// The directory of such objects.
    #[must_use]
    pub const fn directory(sealed: bool) -> &'static str {
        if sealed { "sealed" } else { "chunks" }
    }

    fn key(&self) -> String {
        let name = self.name.to_string();
        format!("{}/{}/{}/{name}", Self::directory(self.sealed), &name[..2], &name[2..4])
    }
}

/// A chunk as it came back, checked.
#[derive(Debug, Clone)]
pub struct Fetched {
    /// How it lay there.
    pub encoding: Encoding,
    /// As it lay there, or would on disk.
    pub stored: Bytes,
    /// Its bytes.
    pub raw: Bytes,
    /// Length of the object.
    pub object_bytes: u64,
}

impl Fetched {
    /// As [`crate::BlobStore::read_encoded`] gives it.
    #[must_use]
    pub fn frames(&self) -> Vec<Frame> {
        let frames = match self.encoding {
            Encoding::Zstd => codec::split_frames(&self.stored),
            Encoding::Raw => None,
        };
        frames.unwrap_or_else(|| codec::split_raw(&self.raw))
    }
}

/// An object that a listing showed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FoundObject {
    /// Its name.
    pub name: Hash,
    /// Its length.
    pub bytes: u64,
    /// When it was written, by the store's clock.
    pub modified: SystemTime,
}

/// A part of a bucket that holds chunks of one node. Cheap to clone.
#[derive(Clone)]
pub struct Objects {
    bucket: Bucket,
    names: hmac::Key,
    opener: Opener,
}

impl fmt::Debug for Objects {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Objects").field(&self.bucket).finish()
    }
}

impl Objects {
    /// In `bucket`; `names` keys the names of sealed objects, and `opener` opens them. Nothing is asked yet.
    #[must_use]
    pub fn new(bucket: Bucket, names: &[u8; 32], opener: Opener) -> Self {
        Self { bucket, names: hmac::Key::new(hmac::HMAC_SHA256, names), opener }
    }

    /// Where it is, for people.
    #[must_use]
    pub fn place(&self) -> String {
        self.bucket.location("")
    }

    /// Ends every request that waits, and refuses others.
    pub fn close(&self) {
        self.bucket.close();
    }

    /// Sees that the place is `node`'s, and takes it when it is nobody's and `may_take`. It goes over from a node that
    /// `follows` names: one whose successor `node` is.
    ///
    /// # Errors
    /// When it is another's, or the store does not say; [`ObjectError::Elsewhere`] when it is nobody's and must not be.
    pub async fn claim(
        &self,
        node: &PeerId,
        follows: impl Fn(&PeerId) -> bool,
        may_take: bool,
    ) -> Result<(), ObjectError> {
        let place = || self.bucket.location(FORMAT);
        let ours = Format { format: WORD.to_owned(), node: node.to_string() };
        let text = serde_json::to_vec(&ours).map_err(|_| ObjectError::Format { place: place() })?;
        let found = match self.bucket.get_object(FORMAT, MAX_OBJECT_BYTES).await? {
            Some(found) => found,
            None if !may_take => return Err(ObjectError::Elsewhere { place: place() }),
            None => {
                let (bucket, word) = (self.bucket.clone(), text.clone());
                let taken = tokio::task::spawn_blocking(move || bucket.take(FORMAT, &word)).await;
                let stopping = || S3Error { act: "take", object: place(), problem: Problem::Stopping };
                if taken.map_err(|_| stopping())?? {
                    return Ok(());
                }
                // Somebody was faster.
                self.bucket.get_object(FORMAT, MAX_OBJECT_BYTES).await?.unwrap_or_default()
            }
        };
        let found: Format = serde_json::from_slice(&found).map_err(|_| ObjectError::Format { place: place() })?;
        match found {
            Format { format, .. } if format != WORD => Err(ObjectError::Format { place: place() }),
            Format { node, .. } if node != ours.node && node.parse().is_ok_and(|node| follows(&node)) => {
                Ok(self.bucket.put_object(FORMAT, text.into()).await?)
            }
            Format { node, .. } if node != ours.node => Err(ObjectError::Taken { place: place(), node }),
            _ => Ok(()),
        }
    }

    /// The name of a chunk's object.
    #[must_use]
    pub fn name(&self, chunk: &Hash, sealed: bool) -> ObjectName {
        if !sealed {
            return ObjectName { sealed, name: *chunk };
        }
        let tag = hmac::sign(&self.names, chunk.as_bytes());
        // HMAC-SHA-256 has 32 bytes.
        ObjectName { sealed, name: Hash::try_from(tag.as_ref()).unwrap_or(*chunk) }
    }

    /// Writes a chunk as it lies on disk, sealed when there are recipients, and reads it back: what this returns is
    /// there, whole. Returns the object's length.
    ///
    /// # Errors
    /// When the store does not take it, or gives back something else.
    pub async fn put(&self, chunk: &Hash, stored: Bytes, recipients: &[Recipient]) -> Result<u64, ObjectError> {
        let name = self.name(chunk, !recipients.is_empty());
        let object = if name.sealed {
            let recipients = recipients.to_vec();
            let sealing = tokio::task::spawn_blocking(move || seal(&stored, &recipients));
            sealing.await.map_err(|_| self.stopping(&name))?.map_err(ObjectError::Seal)?
        } else {
            stored
        };
        self.bucket.put_object(&name.key(), object).await?;
        Ok(self.get(chunk, name.sealed).await?.object_bytes)
    }

    /// Reads a chunk, and checks it.
    ///
    /// # Errors
    /// When the store does not give it; [`ObjectError::Missing`] and [`ObjectError::Wrong`] are the object's fault alone.
    pub async fn get(&self, chunk: &Hash, sealed: bool) -> Result<Fetched, ObjectError> {
        let name = self.name(chunk, sealed);
        let wrong = |why| ObjectError::Wrong { chunk: *chunk, why };
        let object = match self.bucket.get_object(&name.key(), MAX_OBJECT_BYTES).await {
            Ok(Some(object)) => object,
            Ok(None) => return Err(ObjectError::Missing { chunk: *chunk }),
            Err(S3Error { problem: Problem::Oversized(_), .. }) => return Err(wrong("it is longer than any chunk")),
            Err(error) => return Err(error.into()),
        };
        let (hash, opener, object_bytes) = (*chunk, self.opener.clone(), object.len() as u64);
        let checking = tokio::task::spawn_blocking(move || {
            let stored = if sealed { open(&opener, &object)? } else { object };
            let whole = codec::recognise(stored.clone(), &hash).ok_or("its bytes have another hash")?;
            Ok(Fetched { encoding: whole.encoding, stored, raw: whole.raw, object_bytes })
        });
        checking.await.map_err(|_| self.stopping(&name))?.map_err(wrong)
    }

    /// Removes an object. One that is gone is fine.
    ///
    /// # Errors
    /// When the store does not remove it.
    pub async fn remove(&self, name: &ObjectName) -> Result<(), ObjectError> {
        Ok(self.bucket.remove_object(&name.key()).await?)
    }

    /// Up to `limit` objects after `after`, in the order of their names; and how many things of others lie between.
    ///
    /// # Errors
    /// When the store does not say.
    pub async fn page(
        &self,
        sealed: bool,
        after: Option<Hash>,
        limit: usize,
    ) -> Result<(Vec<FoundObject>, usize), ObjectError> {
        let after = after.map(|name| ObjectName { sealed, name }.key());
        let listed = self.bucket.page(ObjectName::directory(sealed), after.as_deref(), limit).await?;
        let count = listed.len();
        let found: Vec<FoundObject> = listed
            .into_iter()
            .filter_map(|one| {
                let name: Hash = one.key.rsplit('/').next()?.parse().ok()?;
                let is_ours = ObjectName { sealed, name }.key() == one.key;
                is_ours.then_some(FoundObject { name, bytes: one.bytes, modified: one.modified })
            })
            .collect();
        let strays = count - found.len();
        Ok((found, strays))
    }

    fn stopping(&self, name: &ObjectName) -> S3Error {
        S3Error { act: "check", object: self.bucket.location(&name.key()), problem: Problem::Stopping }
    }
}

fn seal(plain: &[u8], recipients: &[Recipient]) -> Result<Bytes, SealError> {
    let sealed = Vec::with_capacity(plain.len() + SEAL_BYTES as usize);
    let mut writer = SealingWriter::new(sealed, recipients)?;
    writer.write_all(plain).and_then(|()| writer.finish()).map(Bytes::from).map_err(SealError::Key)
}

fn open(opener: &Opener, sealed: &[u8]) -> Result<Bytes, &'static str> {
    let reader = opener.open(sealed).map_err(|error| match error {
        SealError::WrongKey => "it is sealed to other keys",
        _ => "its seal is broken",
    })?;
    let mut plain = Vec::with_capacity(sealed.len());
    let read = reader.take(u64::from(MAX_CHUNK_BYTES) + 1).read_to_end(&mut plain);
    read.map(|_| plain.into()).map_err(|_| "its seal is broken")
}

#[cfg(test)]
mod tests {
    use bib_identity::NodeKey;
    use rand::SeedableRng as _;

    use super::*;

    #[test]
    fn what_is_sealed_opens_and_what_was_changed_does_not() {
        let directory = tempfile::tempdir().unwrap();
        let mut rng = rand::rngs::StdRng::seed_from_u64(1);
        let key = NodeKey::create(&directory.path().join("node"), &mut rng).unwrap();
        let stranger = NodeKey::create(&directory.path().join("other"), &mut rng).unwrap();
        let opener = Opener::of_node(&key).unwrap();
        let plain = vec![7; 3 << 20];
        let sealed = seal(&plain, &[Recipient::Node(key.peer_id())]).unwrap();
        assert!(sealed.len() as u64 <= plain.len() as u64 + SEAL_BYTES);
        assert_eq!(open(&opener, &sealed).unwrap(), plain);
        let mut flipped = sealed.to_vec();
        flipped[2 << 20] ^= 1;
        assert_eq!(open(&opener, &flipped), Err("its seal is broken"));
        assert_eq!(open(&opener, &sealed[..sealed.len() - 1]), Err("its seal is broken"));
        assert_eq!(open(&Opener::of_node(&stranger).unwrap(), &sealed), Err("it is sealed to other keys"));
    }
}
