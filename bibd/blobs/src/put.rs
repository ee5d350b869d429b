//! Making chunks durable: check, write, fsync, rename, fsync the directory, acknowledge.
//!
//! Per round (at most half of the store's limits, two rounds overlap): every chunk is decoded, hashed and written to
//! `tmp/` on the workers; then all files are fsynced, many at once, since a journalling file system commits those that
//! wait together; then all are renamed; then every directory that got a name is fsynced once. Only then does
//! anything count as stored. A chunk that is already there is read and checked before it is acknowledged, and
//! its directory is fsynced all the same: that it is visible does not mean that an earlier, killed, process
//! got so far.

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use bib_core::{Hash, Hasher};
use bytes::Bytes;
use futures::{StreamExt as _, TryStreamExt as _};

use crate::chunk::{Encoding, Frame, Incoming, MAX_CHUNK_BYTES, Stored};
use crate::codec;
use crate::direct::Purpose;
use crate::disk::{Contents, DirSet, Temp};
use crate::error::StoreError;
use crate::store::{BlobStore, Compression, Inner, fan_out};

impl BlobStore {
    /// Stores chunks and returns, in the same order, when all of them are durable. A chunk in the trash is taken
    /// back; a damaged copy is quarantined and replaced. Batches of 8 to 32 MiB are best; any size is taken, at most
    /// [`Settings::in_flight_bytes`](crate::Settings::in_flight_bytes) is worked on at a time.
    ///
    /// Not cancel-safe in one respect: a future that is dropped may have stored some of the chunks. Nothing else is
    /// left behind.
    ///
    /// # Errors
    /// One bad chunk (wrong hash, wrong size, broken frame) fails the call. A full disk is [`StoreError::NoSpace`]
    /// and passes; a failed fsync latches the store read-only.
    pub async fn put_many(&self, chunks: Vec<Incoming>) -> Result<Vec<Stored>, StoreError> {
        self.inner.check_writable()?;
        chunks.iter().try_for_each(Incoming::check)?;
        let rounds = self.inner.rounds(chunks);
        let stored: Vec<Vec<Stored>> =
            futures::stream::iter(rounds.into_iter().map(|round| Arc::clone(&self.inner).put_round(round)))
                .buffered(2)
                .try_collect()
                .await?;
        Ok(stored.into_iter().flatten().collect())
    }
}

/// A chunk whose bytes were checked, on its way.
struct Prepared {
    chunk: Arc<Incoming>,
    stored: Stored,
    copy: Copy,
}

enum Copy {
    /// Written to `tmp/`.
    New(Temp),
    /// A whole copy was seen in the store or in the trash.
    Found,
}

/// What became of a chunk when names were given.
enum Placed {
    Visible(Stored, DirSet),
    /// The copy seen earlier is gone (quarantined, removed): to be written after all.
    Gone(Arc<Incoming>),
}

impl Inner {
    fn rounds(&self, chunks: Vec<Incoming>) -> Vec<Vec<Incoming>> {
        let mut rounds: Vec<Vec<Incoming>> = Vec::new();
        let mut bytes = 0;
        for chunk in chunks {
            let len = chunk.raw_len();
            match rounds.last_mut() {
                Some(round) if round.len() < self.batch.files && bytes + len <= self.batch.bytes => {
                    bytes += len;
                    round.push(chunk);
                }
                _ => {
                    bytes = len;
                    rounds.push(vec![chunk]);
                }
            }
        }
        rounds
    }

    async fn put_round(self: Arc<Self>, round: Vec<Incoming>) -> Result<Vec<Stored>, StoreError> {
        let bytes: u64 = round.iter().map(Incoming::raw_len).sum();
        let permits = |n: u64| u32::try_from(n).unwrap_or(u32::MAX);
        // Always in this order, each at once: nobody waits for one of the two while holding what another waits for.
        let _files = self.files.acquire_many(permits(round.len() as u64)).await.map_err(|_| StoreError::Stopping)?;
        let _memory =
            self.memory.acquire_many(permits(bytes.div_ceil(1024))).await.map_err(|_| StoreError::Stopping)?;
        let hashes: Vec<Hash> = round.iter().map(|chunk| chunk.hash).collect();
        let mut pending: Vec<Arc<Incoming>> = round.into_iter().map(Arc::new).collect();
        let mut stored = std::collections::HashMap::with_capacity(hashes.len());
        let mut dirs = DirSet::default();
        let mut look_first = true;
        while !pending.is_empty() {
            self.check_writable()?;
            for placed in self.write_and_place(std::mem::take(&mut pending), look_first).await? {
                match placed {
                    Placed::Visible(one, more) => {
                        dirs.merge(more);
                        stored.entry(one.hash).or_insert(one);
                    }
                    Placed::Gone(chunk) => pending.push(chunk),
                }
            }
            // Written without looking, the second time: that cannot find something that then goes away.
            look_first = false;
        }
        self.sync_dirs(dirs).await?;
        self.failpoints.hit("put.durable");
        Ok(hashes.iter().filter_map(|hash| stored.get(hash).cloned()).collect())
    }

    async fn write_and_place(
        self: &Arc<Self>,
        chunks: Vec<Arc<Incoming>>,
        look_first: bool,
    ) -> Result<Vec<Placed>, StoreError> {
        let inner = Arc::clone(self);
        let prepared = fan_out(&self.workers, chunks, move |chunk| inner.prepare(chunk, look_first)).await?;
        let inner = Arc::clone(self);
        let synced = fan_out(&self.syncs, prepared, move |prepared| inner.sync_file(prepared)).await?;
        let inner = Arc::clone(self);
        let place =
            move |all: Vec<Prepared>| all.into_iter().map(|one| inner.place(one)).collect::<Result<Vec<_>, _>>();
        Ok(fan_out(&self.syncs, vec![synced], place).await?.into_iter().flatten().collect())
    }

    /// Checks the hash and writes the bytes to `tmp/`, unless a whole copy exists.
    fn prepare(&self, chunk: Arc<Incoming>, look_first: bool) -> Result<Prepared, StoreError> {
        let hash = chunk.hash;
        // Before looking whether the chunk is there: who does not have the bytes must not learn that we do.
        let raw = decode_and_check(&chunk)?;
        self.failpoints.hit("put.verified");
        let raw_len = raw.iter().map(|part| part.len() as u32).sum();
        if look_first && let Some(stored) = self.find_whole(&hash)? {
            return Ok(Prepared { chunk, stored, copy: Copy::Found });
        }
        let (encoding, parts) = self.encode(&chunk, raw);
        let temp = self.disk.temp().map_err(|source| self.failed("create", &self.disk.root().join("tmp"), source))?;
        if let Some(file) = &temp.file {
            self.disk.direct.write(file, &parts).map_err(|source| self.failed("write", &temp.path, source))?;
        }
        self.failpoints.hit("put.written");
        let stored_bytes = parts.iter().map(|part| part.len() as u32).sum();
        let stored = Stored { hash, encoding, raw_len, stored_bytes, already_there: false };
        Ok(Prepared { chunk, stored, copy: Copy::New(temp) })
    }

    /// What to write: the compressed frames as they came, or our own compression, or the bytes themselves.
    fn encode(&self, chunk: &Incoming, raw: Vec<Bytes>) -> (Encoding, Vec<Bytes>) {
        let raw_len: usize = raw.iter().map(Bytes::len).sum();
        let sent: usize = chunk.frames.iter().map(|frame| frame.bytes.len()).sum();
        if codec::saves(raw_len, sent) && chunk.frames.iter().all(codec::is_single_frame) {
            return (Encoding::Zstd, chunk.frames.iter().map(|frame| frame.bytes.clone()).collect());
        }
        if self.compression == Compression::Auto {
            let joined = join(&raw);
            if let Some(row) = codec::compress(&joined) {
                return (Encoding::Zstd, vec![row.into()]);
            }
        }
        (Encoding::Raw, raw)
    }

    /// fsyncs a new file, once: after a failure it is removed and whoever sent the chunk sends it again.
    fn sync_file(&self, prepared: Prepared) -> Result<Prepared, StoreError> {
        if let Copy::New(Temp { path, file: Some(file), .. }) = &prepared.copy {
            file.sync_all().map_err(|source| self.sync_failed(path, source))?;
            self.failpoints.hit("put.synced");
        }
        Ok(prepared)
    }

    /// Gives the chunk its name.
    fn place(&self, prepared: Prepared) -> Result<Placed, StoreError> {
        let Prepared { chunk, mut stored, copy } = prepared;
        let hash = stored.hash;
        let path = self.disk.chunk(&hash);
        let mut dirs = DirSet::default();
        self.disk.ensure_fan(&hash, &mut dirs).map_err(|source| self.failed("make the directory of", &path, source))?;
        let _lock = self.lock(&hash);
        match copy {
            Copy::New(temp) => match self.look_at(&path, &hash)? {
                // Somebody else put the same chunk meanwhile: his encoding is what others may have been told.
                Some(theirs) => stored = theirs,
                None => {
                    temp.keep_as(&path).map_err(|source| self.failed("rename to", &path, source))?;
                    self.failpoints.hit("put.renamed");
                }
            },
            Copy::Found if has_length(&path, stored.stored_bytes) => {}
            Copy::Found => {
                let trashed = self.disk.trashed(&hash);
                if !has_length(&trashed, stored.stored_bytes) {
                    return Ok(Placed::Gone(chunk));
                }
                fs::rename(&trashed, &path).map_err(|source| self.failed("take back", &trashed, source))?;
                // The trash's directory is not fsynced: a copy that comes back there after a power cut does no harm.
                self.failpoints.hit("put.renamed");
            }
        }
        Ok(Placed::Visible(stored, dirs))
    }

    /// A whole copy in the store or in the trash. What is damaged is quarantined on the way.
    fn find_whole(&self, hash: &Hash) -> Result<Option<Stored>, StoreError> {
        let paths = [self.disk.chunk(hash), self.disk.trashed(hash)];
        if !paths.iter().any(|path| path.exists()) {
            return Ok(None);
        }
        let _lock = self.lock(hash);
        for path in paths {
            if let Some(found) = self.look_at(&path, hash)? {
                return Ok(Some(found));
            }
        }
        Ok(None)
    }

    /// Reads and checks the file `path` as a copy of `hash`; quarantines it if it is not one. Under the lock.
    fn look_at(&self, path: &PathBuf, hash: &Hash) -> Result<Option<Stored>, StoreError> {
        let file = match File::open(path) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(source) => return Err(self.failed("open", path, source)),
        };
        let limit = u64::from(MAX_CHUNK_BYTES);
        let contents = self.disk.read_limited(&file, limit, hash, Purpose::Scan);
        let contents = contents.map_err(|source| self.failed("read", path, source))?;
        if let Contents::Bytes(bytes) = contents {
            let stored_bytes = bytes.len() as u32;
            if let Some(whole) = codec::recognise(bytes, hash) {
                let (encoding, raw_len) = (whole.encoding, whole.raw.len() as u32);
                return Ok(Some(Stored { hash: *hash, encoding, raw_len, stored_bytes, already_there: true }));
            }
        }
        self.quarantine(path, hash)?;
        Ok(None)
    }

    /// Moves a damaged file out of the way. Under the lock.
    pub(crate) fn quarantine(&self, path: &Path, hash: &Hash) -> Result<(), StoreError> {
        self.check_writable()?;
        let target = self.disk.quarantined(hash);
        fs::rename(path, &target).map_err(|source| self.failed("quarantine", path, source))?;
        tracing::error!(chunk = %hash, kept_as = %target.display(), "a damaged chunk was quarantined");
        // Not fsynced: if the move is lost in a power cut, the damage is found again.
        Ok(())
    }
}

fn has_length(path: &Path, bytes: u32) -> bool {
    fs::metadata(path).is_ok_and(|metadata| metadata.len() == u64::from(bytes))
}

/// The raw bytes in parts, hashed.
fn decode_and_check(chunk: &Incoming) -> Result<Vec<Bytes>, StoreError> {
    let mut hasher = Hasher::new();
    let mut parts = Vec::with_capacity(chunk.frames.len());
    for frame in &chunk.frames {
        let part = decode_frame(frame).ok_or(StoreError::Frame { hash: chunk.hash })?;
        hasher.update(&part);
        parts.push(part);
    }
    match hasher.finish() == chunk.hash {
        true => Ok(parts),
        false => Err(StoreError::HashMismatch { hash: chunk.hash }),
    }
}

fn decode_frame(frame: &Frame) -> Option<Bytes> {
    let raw = match frame.encoding {
        Encoding::Raw => frame.bytes.clone(),
        Encoding::Zstd => codec::decode(&frame.bytes, frame.raw_len)?.into(),
    };
    (raw.len() == frame.raw_len as usize).then_some(raw)
}

fn join(parts: &[Bytes]) -> Bytes {
    match parts {
        [one] => one.clone(),
        many => many.concat().into(),
    }
}
