//! Reading chunks: the length first, then the hash, always. What is damaged never leaves this file.

use std::fs::File;
use std::io;
use std::path::Path;
use std::sync::Arc;

use bib_core::Hash;
use bytes::Bytes;

use crate::chunk::{Encoding, Frame, Location, MAX_CHUNK_BYTES};
use crate::codec::{self, Whole};
use crate::direct::Purpose;
use crate::disk::Contents;
use crate::error::{Damage, ReadError};
use crate::in_place;
use crate::store::{BlobStore, Inner};

/// A chunk's file and what it decodes to.
struct Verified {
    file: Bytes,
    whole: Whole,
}

impl BlobStore {
    /// The raw bytes of a chunk, checked, to look at them.
    ///
    /// # Errors
    /// [`ReadError::Corrupt`] (the file is then in quarantine and can be put again), [`ReadError::Missing`],
    /// [`ReadError::Changed`] for a file published in place.
    pub async fn read(&self, location: &Location, hash: &Hash, raw_len: u32) -> Result<Bytes, ReadError> {
        Ok(self.read_verified(location, hash, raw_len, Purpose::Scan).await?.whole.raw)
    }

    /// The chunk as frames to send, checked but not encoded anew: its zstd frames where it is stored so, else slices of its
    /// bytes.
    ///
    /// # Errors
    /// As [`BlobStore::read`].
    pub async fn read_encoded(&self, location: &Location, hash: &Hash, raw_len: u32) -> Result<Vec<Frame>, ReadError> {
        let Verified { file, whole } = self.read_verified(location, hash, raw_len, Purpose::Serve).await?;
        let frames = match whole.encoding {
            Encoding::Zstd => codec::split_frames(&file),
            Encoding::Raw => None,
        };
        Ok(frames.unwrap_or_else(|| codec::split_raw(&whole.raw)))
    }

    /// A chunk as it lies on disk, checked: for who copies it elsewhere.
    ///
    /// # Errors
    /// As [`BlobStore::read`].
    pub async fn read_stored(&self, location: &Location, hash: &Hash, raw_len: u32) -> Result<Bytes, ReadError> {
        Ok(self.read_verified(location, hash, raw_len, Purpose::Scan).await?.file)
    }

    /// Whether a file of that name exists in the store; its contents are not looked at.
    ///
    /// # Errors
    /// [`ReadError::Io`] if the disk does not say.
    pub async fn exists(&self, hash: &Hash) -> Result<bool, ReadError> {
        let hash = *hash;
        self.blocking(0, move |inner| {
            let path = inner.disk.chunk(&hash);
            path.try_exists().map_err(|source| ReadError::Io { act: "look for", path, source })
        })
        .await
    }

    async fn read_verified(
        &self,
        location: &Location,
        hash: &Hash,
        raw_len: u32,
        why: Purpose,
    ) -> Result<Verified, ReadError> {
        if raw_len == 0 || raw_len > MAX_CHUNK_BYTES {
            return Err(ReadError::RawLength { hash: *hash, stated: raw_len, found: 0 });
        }
        let (hash, location) = (*hash, location.clone());
        self.blocking(raw_len, move |inner| match location {
            Location::Store { encoding, stored_bytes } => inner.read_file(&hash, encoding, stored_bytes, raw_len, why),
            Location::InPlace { path, offset, guard } => {
                let raw = in_place::read(&path, offset, &guard, &hash, raw_len)?;
                Ok(Verified { file: raw.clone(), whole: Whole { encoding: Encoding::Raw, raw } })
            }
        })
        .await
    }

    /// Runs `job` on a blocking thread, within the limits of memory (`bytes` raw) and workers.
    pub(crate) async fn blocking<R: Send + 'static>(
        &self,
        bytes: u32,
        job: impl FnOnce(&Inner) -> Result<R, ReadError> + Send + 'static,
    ) -> Result<R, ReadError> {
        let _memory = self.inner.memory.acquire_many(bytes.div_ceil(1024)).await.map_err(|_| ReadError::Stopping)?;
        let worker = Arc::clone(&self.inner.workers).acquire_owned().await.map_err(|_| ReadError::Stopping)?;
        let inner = Arc::clone(&self.inner);
        let joined = tokio::task::spawn_blocking(move || {
            let result = job(&inner);
            drop(worker);
            result
        });
        match joined.await {
            Ok(result) => result,
            Err(error) if error.is_panic() => std::panic::resume_unwind(error.into_panic()),
            Err(_) => Err(ReadError::Stopping),
        }
    }
}

impl Inner {
    fn read_file(
        &self,
        hash: &Hash,
        encoding: Encoding,
        stored_bytes: u32,
        raw_len: u32,
        why: Purpose,
    ) -> Result<Verified, ReadError> {
        let path = self.disk.chunk(hash);
        let file = open(&path, hash)?;
        let contents = self.disk.read_exact(&file, u64::from(stored_bytes), hash, why);
        let contents = contents.map_err(failed("read", &path))?;
        if let Contents::Bytes(bytes) = &contents
            && let Some(whole) = decode_as(encoding, bytes, raw_len)
            && Hash::of(&whole.raw) == *hash
        {
            return check_length(hash, raw_len, Verified { file: bytes.clone(), whole });
        }
        let damage = match contents {
            Contents::Bytes(_) => Damage::Contents,
            Contents::Length(found) => Damage::Length { expected: u64::from(stored_bytes), found },
        };
        drop(file);
        match self.second_look(&path, hash)? {
            Some(verified) => {
                tracing::warn!(chunk = %hash, "a chunk is whole but not encoded as the catalog says");
                check_length(hash, raw_len, verified)
            }
            None => Err(ReadError::Corrupt { hash: *hash, damage, quarantined: self.set_aside(&path, hash) }),
        }
    }

    /// Before a file is called corrupt: is it a whole copy in another encoding? So it is when a put has healed
    /// the chunk between the caller's look into the catalog and our read, or when the catalog is an older one.
    fn second_look(&self, path: &Path, hash: &Hash) -> Result<Option<Verified>, ReadError> {
        let file = open(path, hash)?;
        let contents = self.disk.read_limited(&file, u64::from(MAX_CHUNK_BYTES), hash, Purpose::Scan);
        let contents = contents.map_err(failed("read", path))?;
        let Contents::Bytes(bytes) = contents else { return Ok(None) };
        Ok(codec::recognise(bytes.clone(), hash).map(|whole| Verified { file: bytes, whole }))
    }

    /// Quarantines `path` if it is still damaged under the lock; whether it is out of the way.
    pub(crate) fn set_aside(&self, path: &Path, hash: &Hash) -> bool {
        let _lock = self.lock(hash);
        match self.second_look(path, hash) {
            Ok(Some(_)) | Err(ReadError::Missing { .. }) => true,
            Ok(None) => self.quarantine(path, hash).is_ok(),
            Err(_) => false,
        }
    }
}

fn open(path: &Path, hash: &Hash) -> Result<File, ReadError> {
    File::open(path).map_err(|source| match source.kind() {
        io::ErrorKind::NotFound => ReadError::Missing { hash: *hash },
        _ => ReadError::Io { act: "open", path: path.to_owned(), source },
    })
}

fn failed<'a>(act: &'static str, path: &'a Path) -> impl FnOnce(io::Error) -> ReadError + 'a {
    move |source| ReadError::Io { act, path: path.to_owned(), source }
}

fn decode_as(encoding: Encoding, bytes: &Bytes, raw_len: u32) -> Option<Whole> {
    let raw = match encoding {
        Encoding::Raw => bytes.clone(),
        Encoding::Zstd => codec::decode(bytes, raw_len)?.into(),
    };
    Some(Whole { encoding, raw })
}

fn check_length(hash: &Hash, stated: u32, verified: Verified) -> Result<Verified, ReadError> {
    let found = verified.whole.raw.len() as u32;
    if found != stated {
        return Err(ReadError::RawLength { hash: *hash, stated, found });
    }
    Ok(verified)
}
