//! Files that stay where they are: chunks are ranges of a file of the caller's, guarded by its identity.
//!
//! Only over the Unix socket, where the operating system vouches for the uid, and only for regular files that this uid
//! owns: a caller must not make the daemon, which may be able to read more, hash and hand out other people's files. The
//! bytes are hashed here and again at each read.

use std::collections::HashMap;
use std::fs::{File, OpenOptions};
use std::os::unix::fs::{FileExt as _, MetadataExt as _, OpenOptionsExt as _};
use std::path::{Component, PathBuf};

use bib_core::{Hash, SessionId};
use bibd_blobs::{FileGuard, Incoming, MAX_CHUNK_BYTES};
use bibd_catalog::chunks::{self, Place, StoredChunk};
use futures::{Stream, StreamExt as _};

use super::error::ServiceError;
use super::receive;
use super::store_errors::not_stored;
use super::upload::UploadUseCases;
use crate::actor::{Call, Via};

/// Extents in one message, at most.
const MAX_EXTENTS: usize = 16_384;

/// The longest path, in bytes.
const MAX_PATH_BYTES: usize = 4096;

/// The use case of publishing in place.
#[derive(Debug, Clone)]
pub struct InPlaceUseCases {
    uploads: UploadUseCases,
}

/// A range of a file that is a chunk.
#[derive(Debug, Clone, Copy)]
pub struct Extent {
    /// The chunk.
    pub chunk: Hash,
    /// Where in the file it begins.
    pub offset: u64,
    /// Its bytes, 1 to 4 MiB.
    pub length: u32,
}

/// A file, or a part of one, as it was sent.
#[derive(Debug, Clone)]
pub struct PlacedFile {
    /// Absolute.
    pub path: PathBuf,
    /// Its chunks.
    pub extents: Vec<Extent>,
}

impl InPlaceUseCases {
    /// For upload sessions of `uploads`.
    #[must_use]
    pub fn new(uploads: UploadUseCases) -> Self {
        Self { uploads }
    }

    /// Registers files for a session, a message in each transaction, and says how many messages and chunks.
    ///
    /// # Errors
    /// When the caller did not come over the socket, a file is not a regular file of the caller's, its bytes are not the
    /// chunks, or it changes while it is read.
    pub async fn put(
        &self,
        call: &Call,
        session: SessionId,
        mut files: impl Stream<Item = Result<PlacedFile, ServiceError>> + Send + Unpin,
    ) -> Result<(u64, u64), ServiceError> {
        let Via::Socket { uid } = call.actor.via else {
            return Err(ServiceError::denied(
                "files can stay in place only when they are published over the node's Unix socket",
                "publish without `--in-place`, or on the node's own machine",
            ));
        };
        let base = &self.uploads.base;
        let (mut seen, mut count) = (std::collections::HashSet::new(), 0);
        while let Some(file) = files.next().await {
            let file = file?;
            let path = check_path(&file)?;
            let extents = file.extents.clone();
            let read = tokio::task::spawn_blocking(move || hash_ranges(&file, uid));
            let guard = read.await.map_err(ServiceError::internal)??;
            let elsewhere = self.elsewhere(&path, uid, &extents).await?;
            let mut stored = Vec::new();
            for extent in extents.iter().filter(|extent| elsewhere.get(&extent.chunk) == Some(&Elsewhere::Anothers)) {
                stored.push(self.store(&path, extent).await?);
            }
            let now = base.now();
            let mut tx = base.begin(call, "in-place").await?;
            self.uploads.live(&mut tx, call, session).await?;
            for extent in &extents {
                let own = Place {
                    path: path.clone(),
                    byte_offset: extent.offset,
                    device: guard.dev,
                    inode: guard.ino,
                    file_size: guard.size,
                    mtime_ns: guard.mtime_ns,
                    ctime_ns: guard.ctime_ns,
                };
                let place = match elsewhere.get(&extent.chunk) {
                    Some(Elsewhere::Anothers) => continue,
                    Some(Elsewhere::Own(place)) => place,
                    None => &own,
                };
                chunks::put_in_place(&mut tx, &extent.chunk, extent.length, place, now).await?;
            }
            if !stored.is_empty() {
                let bytes: u64 = stored.iter().map(|chunk| u64::from(chunk.stored_bytes)).sum();
                chunks::put(&mut tx, session, &stored, now).await?;
                self.uploads.charge(&mut tx, call, bytes, now).await?;
                self.uploads.beat(&mut tx, session, bytes, now).await?;
            }
            let leased: Vec<Hash> = extents.iter().map(|extent| extent.chunk).collect();
            chunks::lease(&mut tx, session, &leased).await?;
            self.uploads.beat(&mut tx, session, 0, now).await?;
            tx.commit().await?;
            count += extents.len() as u64;
            seen.insert(path);
        }
        Ok((seen.len() as u64, count))
    }

    /// Which of these chunks lie in another file that is still as it was. A place is never taken from a file that is
    /// whole, or whoever has the same bytes could move somebody else's chunk into a file of their own and remove it.
    async fn elsewhere(
        &self,
        path: &str,
        uid: u32,
        extents: &[Extent],
    ) -> Result<HashMap<Hash, Elsewhere>, ServiceError> {
        let hashes: Vec<Hash> = extents.iter().map(|extent| extent.chunk).collect();
        let mut session = self.uploads.base.db.read().await?;
        let located = chunks::locate(&mut session, &hashes).await?;
        drop(session);
        let places: Vec<(Hash, Place)> = located
            .into_iter()
            .filter(|located| !located.damaged)
            .filter_map(|located| Some((located.chunk.hash, located.place?)))
            .filter(|(_, place)| place.path != path)
            .collect();
        let look = move || {
            let whole = places.into_iter().filter_map(|(chunk, place)| {
                let owner = owner_if_whole(&place)?;
                Some((chunk, if owner == uid { Elsewhere::Own(place) } else { Elsewhere::Anothers }))
            });
            whole.collect()
        };
        tokio::task::spawn_blocking(look).await.map_err(ServiceError::internal)
    }

    /// Copies a chunk into the store: nobody's version depends on a file of somebody else's.
    async fn store(&self, path: &str, extent: &Extent) -> Result<StoredChunk, ServiceError> {
        let (path, wanted) = (PathBuf::from(path), *extent);
        let read = move || -> std::io::Result<Vec<u8>> {
            let mut bytes = vec![0; wanted.length as usize];
            File::open(path)?.read_exact_at(&mut bytes, wanted.offset)?;
            Ok(bytes)
        };
        let changed = || ServiceError::invalid("path", "changed while it was read");
        let bytes = tokio::task::spawn_blocking(read).await.map_err(ServiceError::internal)?.map_err(|_| changed())?;
        if Hash::of(&bytes) != extent.chunk {
            return Err(changed());
        }
        let incoming = Incoming::raw(extent.chunk, bytes.into());
        let stored = self.uploads.base.blobs.put_many(vec![incoming]).await.map_err(not_stored)?;
        stored.first().map(receive::row).ok_or_else(|| ServiceError::internal("a chunk was stored and is not told of"))
    }
}

/// Where a chunk lies that is to be registered in another file.
#[derive(Debug, PartialEq, Eq)]
enum Elsewhere {
    /// In another file of the caller's, which keeps it.
    Own(Place),
    /// In a file of somebody else's.
    Anothers,
}

/// Who owns the file of a place, if it is the file that was registered. Blocks.
fn owner_if_whole(place: &Place) -> Option<u32> {
    let metadata = std::fs::metadata(&place.path).ok()?;
    let now = FileGuard::of(&metadata);
    let same = (now.dev, now.ino, now.size, now.mtime_ns, now.ctime_ns)
        == (place.device, place.inode, place.file_size, place.mtime_ns, place.ctime_ns);
    same.then(|| metadata.uid())
}

fn check_path(file: &PlacedFile) -> Result<String, ServiceError> {
    let invalid = |reason: &str| ServiceError::invalid("path", reason);
    if file.extents.len() > MAX_EXTENTS {
        return Err(ServiceError::invalid("extents", format!("at most {MAX_EXTENTS} in one message")));
    }
    let path = file.path.to_str().ok_or_else(|| invalid("is not UTF-8"))?;
    let plain = file.path.components().all(|part| matches!(part, Component::RootDir | Component::Normal(_)));
    if path.len() > MAX_PATH_BYTES || !file.path.is_absolute() || !plain || path.contains('\0') {
        return Err(invalid("is no absolute path of at most 4096 bytes without `..`"));
    }
    Ok(path.to_owned())
}

/// Hashes every range of a regular file that `uid` owns. Blocks.
fn hash_ranges(wanted: &PlacedFile, uid: u32) -> Result<FileGuard, ServiceError> {
    let invalid = |reason: String| ServiceError::invalid("path", format!("`{}` {reason}", wanted.path.display()));
    // Without following a link in the last place, and without waiting for who writes into a named pipe.
    let flags = rustix::fs::OFlags::NOFOLLOW | rustix::fs::OFlags::NONBLOCK | rustix::fs::OFlags::NOCTTY;
    let opened = OpenOptions::new().read(true).custom_flags(flags.bits().cast_signed()).open(&wanted.path);
    // Who does not own a file does not learn from here whether it is there.
    let refused = || invalid("is no regular file of yours that the node can read".to_owned());
    let file = opened.map_err(|_| refused())?;
    let look = |file: &File| file.metadata().map_err(|_| refused());
    let metadata = look(&file)?;
    if !metadata.is_file() || metadata.uid() != uid {
        return Err(refused());
    }
    let guard = FileGuard::of(&metadata);
    let mut buffer = Vec::new();
    for extent in &wanted.extents {
        let end = extent.offset.checked_add(u64::from(extent.length));
        if extent.length == 0 || extent.length > MAX_CHUNK_BYTES || end.is_none_or(|end| end > guard.size) {
            return Err(ServiceError::invalid("extents", "a range is empty, longer than 4 MiB or past the file's end"));
        }
        buffer.resize(extent.length as usize, 0);
        file.read_exact_at(&mut buffer, extent.offset).map_err(|_| invalid("changed while it was read".to_owned()))?;
        if Hash::of(&buffer) != extent.chunk {
            return Err(invalid(format!("does not hold chunk {} at {}", extent.chunk, extent.offset)));
        }
    }
    match guard.difference(&FileGuard::of(&look(&file)?)) {
        None => Ok(guard),
        Some(_) => Err(invalid("changed while it was read".to_owned())),
    }
}
