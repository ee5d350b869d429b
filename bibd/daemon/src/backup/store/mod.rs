//! The store: objects by name, each written whole or not at all, never changed. A directory, or a part of a bucket: what
//! both offer is what a backup needs.
//!
//! Everything here may block: on a disk, or on a network.

mod directory;

use std::io::{self, Read, Write};
use std::path::PathBuf;

use bib_core::PeerId;

pub(super) use self::directory::sync_dir;
use self::directory::{Directory, DirectoryDraft};
use super::error::BackupError;
use crate::config::{S3, StoreLocation};
use crate::s3::{Bucket, Keys, S3Error, Upload, causes};

/// One node's part of a store. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Store(Kind);

#[derive(Debug, Clone)]
enum Kind {
    Directory(Directory),
    Bucket(Bucket),
}

/// An object that is being written. Dropped, it was never there.
#[derive(Debug)]
pub struct Draft(DraftKind);

#[derive(Debug)]
enum DraftKind {
    File(DirectoryDraft),
    // A buffer and what is under way.
    Upload(Box<Upload>),
}

/// An object that is read.
pub type Reader = Box<dyn Read + Send>;

impl Store {
    /// The part of `peer`. Nothing is made until something is written. Within a runtime.
    ///
    /// # Errors
    /// When the settings of a bucket cannot be used.
    pub fn of(location: &StoreLocation, s3: &S3, keys: Keys, peer: &PeerId) -> Result<Self, BackupError> {
        Ok(Self(match location {
            StoreLocation::Directory(root) => Kind::Directory(Directory::new(root.join(peer.to_string()))),
            StoreLocation::Bucket { bucket, prefix } => {
                Kind::Bucket(Bucket::open(bucket, prefix, &s3.settings(), keys)?.below(&peer.to_string()))
            }
        }))
    }

    /// Where an object is or would be, for people; with an empty key the store itself.
    #[must_use]
    pub fn place(&self, key: &str) -> PathBuf {
        match &self.0 {
            Kind::Directory(directory) => directory.root().join(key),
            Kind::Bucket(bucket) => bucket.location(key).into(),
        }
    }

    /// Ends what waits for a store that is on a network.
    pub fn close(&self) {
        if let Kind::Bucket(bucket) = &self.0 {
            bucket.close();
        }
    }

    /// Begins an object.
    ///
    /// # Errors
    /// When the store cannot be written.
    pub fn create(&self, key: &str) -> Result<Draft, BackupError> {
        Ok(Draft(match &self.0 {
            Kind::Directory(directory) => DraftKind::File(directory.create(key)?),
            Kind::Bucket(bucket) => DraftKind::Upload(Box::new(bucket.upload(key))),
        }))
    }

    /// Writes a small object.
    ///
    /// # Errors
    /// When the store cannot be written.
    pub fn put(&self, key: &str, bytes: &[u8]) -> Result<(), BackupError> {
        match &self.0 {
            Kind::Directory(directory) => directory.put(key, bytes),
            Kind::Bucket(bucket) => Ok(bucket.put(key, bytes)?),
        }
    }

    /// Takes a name that nobody had; whether it was free. `word` is one that nobody else says.
    ///
    /// # Errors
    /// When the store cannot be written, or does not keep two apart who take one name.
    pub fn take(&self, key: &str, word: &[u8]) -> Result<bool, BackupError> {
        match &self.0 {
            // A file system says who was first.
            Kind::Directory(directory) => directory.take(key),
            Kind::Bucket(bucket) => Ok(bucket.take(key, word)?),
        }
    }

    /// Whether there is an object.
    ///
    /// # Errors
    /// When the store cannot be read.
    pub fn has(&self, key: &str) -> Result<bool, BackupError> {
        match &self.0 {
            Kind::Directory(directory) => Ok(directory.open(key)?.is_some()),
            Kind::Bucket(bucket) => Ok(bucket.has(key)?),
        }
    }

    /// Opens an object; `None` when there is none.
    ///
    /// # Errors
    /// When it cannot be read.
    pub fn open(&self, key: &str) -> Result<Option<Reader>, BackupError> {
        Ok(match &self.0 {
            Kind::Directory(directory) => directory.open(key)?.map(|file| Box::new(file) as Reader),
            Kind::Bucket(bucket) => bucket.read(key)?.map(|reader| Box::new(reader) as Reader),
        })
    }

    /// The names right under `prefix` (`base/`), in order.
    ///
    /// # Errors
    /// When the store cannot be read.
    pub fn list(&self, prefix: &str) -> Result<Vec<String>, BackupError> {
        match &self.0 {
            Kind::Directory(directory) => directory.list(prefix),
            Kind::Bucket(bucket) => Ok(bucket.list(prefix)?),
        }
    }

    /// Removes objects, in any order. One that is gone is fine.
    ///
    /// # Errors
    /// When the store cannot be written.
    pub fn delete(&self, keys: &[String]) -> Result<(), BackupError> {
        match &self.0 {
            Kind::Directory(directory) => keys.iter().try_for_each(|key| directory.delete(key)),
            Kind::Bucket(bucket) => Ok(bucket.delete(keys)?),
        }
    }

    /// Removes what a process that died left of objects of this family (`base`, `wal`). Only for who writes it alone.
    ///
    /// # Errors
    /// When the store cannot be written.
    pub fn sweep(&self, family: &str) -> Result<(), BackupError> {
        match &self.0 {
            Kind::Directory(directory) => directory.sweep(family),
            Kind::Bucket(bucket) => Ok(bucket.sweep(family)?),
        }
    }
}

impl Draft {
    /// Makes the object exist, durably.
    ///
    /// # Errors
    /// When it cannot be: then it does not exist.
    pub fn commit(self) -> Result<(), BackupError> {
        match self.0 {
            DraftKind::File(draft) => draft.commit(),
            DraftKind::Upload(upload) => Ok(upload.commit()?),
        }
    }

    /// Where it will be.
    #[must_use]
    pub fn target(&self) -> PathBuf {
        match &self.0 {
            DraftKind::File(draft) => draft.target().to_owned(),
            DraftKind::Upload(upload) => upload.location().into(),
        }
    }
}

impl Write for Draft {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match &mut self.0 {
            DraftKind::File(draft) => draft.write(bytes),
            DraftKind::Upload(upload) => upload.write(bytes),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        match &mut self.0 {
            DraftKind::File(draft) => draft.flush(),
            DraftKind::Upload(upload) => upload.flush(),
        }
    }
}

/// What a store on a network said, where it comes wrapped through a reader or a writer.
pub(super) fn said_by_store(error: &io::Error) -> Option<S3Error> {
    causes(error).find_map(|cause| cause.downcast_ref::<S3Error>()).cloned()
}
