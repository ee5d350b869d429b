//! Reading a version's pages and chunks, by reference and never by bare hash.
//!
//! Each call resolves its reference and asks the policy again; a page or chunk that the version does not hold is
//! answered as not there, whether or not the node has it. Withdrawn versions and bytes under embargo are refused.
//!
//! In the audit log a download is one entry `dataset.read` by user and version, written before the first bytes go out and
//! again after [`READ_ENTRY_SECONDS`] of reading on, not one for each of its many calls.

use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Mutex, PoisonError};

use bib_core::{Hash, Timestamp, UserId};
use bibd_audit::Outcome;
use bibd_blobs::{Encoding, MAX_FRAME_BYTES};
use bibd_catalog::chunks::{self, Located};
use bibd_catalog::pages::{self, Page};
use bibd_catalog::versions::Version;
use bytes::Bytes;
use futures::stream::{self, BoxStream};
use futures::{StreamExt as _, TryStreamExt as _};
use serde_json::json;

use super::activity::Activity;
use super::assemble::Piece;
use super::base::Base;
use super::chunk_reader::ChunkReader;
use super::error::ServiceError;
use super::journal::Act;
use super::reference::{self, Found};
use super::upload::MAX_HASHES;
use crate::actor::Call;

/// Pages read at once, of up to 4 MiB each.
const PAGE_SLICE: usize = 8;

/// Chunks looked up at once.
const LOCATE_SLICE: usize = 512;

/// Chunks of one stream that are read ahead, of up to 4 MiB each.
const READ_AHEAD: usize = 4;

/// Reading on for so long is another entry.
pub const READ_ENTRY_SECONDS: i64 = 15 * 60;

/// Readers that are remembered, so that each is not entered anew at every call.
const READERS: usize = 4096;

/// The use cases of downloads.
#[derive(Debug, Clone)]
pub struct DownloadUseCases {
    base: Base,
    reader: ChunkReader,
    activity: Activity,
    readers: Arc<Mutex<HashMap<(UserId, Hash), Timestamp>>>,
}

impl DownloadUseCases {
    /// Over the node; `activity` hears that people wait.
    #[must_use]
    pub fn new(base: Base, reader: ChunkReader, activity: Activity) -> Self {
        Self { base, reader, activity, readers: Arc::default() }
    }

    /// Pages of a version in the order asked for; the two roots when none are asked for.
    ///
    /// # Errors
    /// When there is no such version for the caller, or it does not hold one of the pages.
    pub async fn pages(
        &self,
        call: &Call,
        reference: &str,
        wanted: Vec<Hash>,
    ) -> Result<BoxStream<'static, Result<Page, ServiceError>>, ServiceError> {
        check_count("pages", &wanted)?;
        let found = self.open(call, reference).await?;
        let version = &found.version;
        let roots = [version.content, version.layout];
        let wanted = if wanted.is_empty() { roots.to_vec() } else { wanted };
        let mut session = self.base.db.read().await?;
        let held: HashSet<Hash> =
            pages::in_version(&mut session, version.dataset, version.n, &wanted).await?.into_iter().collect();
        let held = |page: &Hash| roots.contains(page) || held.contains(page);
        if let Some(absent) = wanted.iter().find(|page| !held(page)) {
            return Err(ServiceError::not_found("page", absent.to_string()));
        }
        let (db, busy) = (self.base.db.clone(), self.activity.begin());
        let slices: Vec<Vec<Hash>> = wanted.chunks(PAGE_SLICE).map(<[Hash]>::to_vec).collect();
        let read = stream::iter(slices).then(move |slice| {
            let db = db.clone();
            let _busy = &busy;
            async move {
                let mut session = db.read().await?;
                let by_hash: HashMap<Hash, Page> =
                    pages::get(&mut session, &slice).await?.into_iter().map(|page| (page.hash, page)).collect();
                let ordered = slice.iter().map(|hash| {
                    by_hash.get(hash).cloned().ok_or_else(|| ServiceError::internal(format!("the page {hash} is gone")))
                });
                Ok::<_, ServiceError>(stream::iter(ordered.collect::<Vec<_>>()))
            }
        });
        Ok(read.try_flatten().boxed())
    }

    /// Chunks of a version in the order asked for, each in pieces of at most 1 MiB. Those that are stored as zstd frames
    /// go out as such when the caller takes them.
    ///
    /// # Errors
    /// When there is no such version for the caller, or it does not hold one of the chunks; in the stream
    /// [`ServiceError::Integrity`] for a chunk that is damaged.
    pub async fn chunks(
        &self,
        call: &Call,
        reference: &str,
        wanted: Vec<Hash>,
        accept_zstd: bool,
    ) -> Result<BoxStream<'static, Result<Piece, ServiceError>>, ServiceError> {
        check_count("chunks", &wanted)?;
        let found = self.open(call, reference).await?;
        let version = &found.version;
        let mut session = self.base.db.read().await?;
        let held: HashSet<Hash> =
            pages::chunks_in_version(&mut session, version.dataset, version.n, &wanted).await?.into_iter().collect();
        if let Some(absent) = wanted.iter().find(|chunk| !held.contains(*chunk)) {
            return Err(ServiceError::not_found("chunk", absent.to_string()));
        }
        drop(session);
        let (db, reader, busy) = (self.base.db.clone(), self.reader.clone(), self.activity.begin());
        let slices: Vec<Vec<Hash>> = wanted.chunks(LOCATE_SLICE).map(<[Hash]>::to_vec).collect();
        let located = stream::iter(slices).then(move |slice| {
            let db = db.clone();
            async move {
                let mut session = db.read().await?;
                let by_hash = chunks::locate(&mut session, &slice).await?;
                let by_hash: HashMap<Hash, Located> =
                    by_hash.into_iter().map(|located| (located.chunk.hash, located)).collect();
                let ordered = slice.iter().map(|hash| {
                    let located = by_hash.get(hash).cloned();
                    located.ok_or_else(|| super::store_errors::damaged(hash, "the node has lost it"))
                });
                Ok::<_, ServiceError>(stream::iter(ordered.collect::<Vec<_>>()))
            }
        });
        let pieces = located.try_flatten().map(move |located| {
            let reader = reader.clone();
            async move { pieces_of(&reader, &located?, accept_zstd).await }
        });
        let pieces = pieces.buffered(READ_AHEAD).map_ok(move |pieces| {
            let _busy = &busy;
            stream::iter(pieces.into_iter().map(Ok))
        });
        Ok(pieces.try_flatten().boxed())
    }

    /// The version of a reference whose bytes the caller may read, with the entry in the audit log.
    async fn open(&self, call: &Call, reference: &str) -> Result<Found, ServiceError> {
        let mut session = self.base.db.read().await?;
        let found = reference::readable(&self.base, call, &mut session, reference).await?;
        drop(session);
        self.enter(call, &found.version).await?;
        Ok(found)
    }

    pub(super) async fn enter(&self, call: &Call, version: &Version) -> Result<(), ServiceError> {
        let (key, now) = ((call.actor.user, version.hash), self.base.now());
        let is_recent = |since: &Timestamp| *since <= now && now < since.plus_seconds(READ_ENTRY_SECONDS);
        if self.readers().get(&key).is_some_and(is_recent) {
            return Ok(());
        }
        let details = json!({"dataset": version.dataset.to_string(), "n": version.n});
        let act = Act::new("dataset.read", format!("version:{}", version.hash), details);
        self.base.journal.record(&self.base.db, call, act, Outcome::Ok).await?;
        let mut readers = self.readers();
        if readers.len() >= READERS {
            readers.retain(|_, since| is_recent(since));
        }
        if readers.len() >= READERS {
            readers.clear();
        }
        readers.insert(key, now);
        Ok(())
    }

    fn readers(&self) -> std::sync::MutexGuard<'_, HashMap<(UserId, Hash), Timestamp>> {
        // A panic while the map is held leaves it whole: every use is one look or one change.
        self.readers.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

async fn pieces_of(reader: &ChunkReader, located: &Located, accept_zstd: bool) -> Result<Vec<Piece>, ServiceError> {
    let stored = &located.chunk;
    let (encoding, parts): (Encoding, Vec<Bytes>) = if accept_zstd {
        let frames = reader.read_encoded(located).await?;
        let encoding = frames.first().map_or(Encoding::Raw, |frame| frame.encoding);
        (encoding, frames.into_iter().map(|frame| frame.bytes).collect())
    } else {
        (Encoding::Raw, vec![reader.read(located).await?])
    };
    // At most 4 MiB and a little, so 32 bits hold every sum.
    let length = |bytes: &Bytes| u32::try_from(bytes.len()).unwrap_or(u32::MAX);
    let encoded_length = parts.iter().map(length).sum();
    let mut pieces = Vec::with_capacity(8);
    let mut offset = 0;
    for part in parts {
        let mut rest = part;
        while !rest.is_empty() {
            let data = rest.split_to(rest.len().min(MAX_FRAME_BYTES as usize));
            let taken = length(&data);
            pieces.push(Piece {
                chunk: stored.hash,
                offset,
                encoding,
                raw_length: stored.raw_length,
                encoded_length,
                data,
            });
            offset += taken;
        }
    }
    Ok(pieces)
}

fn check_count(field: &str, wanted: &[Hash]) -> Result<(), ServiceError> {
    match wanted.len() {
        0..=MAX_HASHES => Ok(()),
        many => Err(ServiceError::invalid(field, format!("{many} hashes; ask for at most {MAX_HASHES} at once"))),
    }
}
