//! The archived write-ahead log: shipped out of the spool, looked through, and fed to a server that recovers.

use std::io::Read as _;
use std::path::Path;
use std::time::{Duration, UNIX_EPOCH};

use bib_core::{Hash, PeerId, Timestamp};
use bib_identity::sealed_stream::Opener;
use bib_identity::{NodeKey, Recipient};
use bibd_postgres::wal::{Feed, SEGMENT_BYTES, Segment};

use super::document::{HEAD_FORMAT, Head, MAX_DOCUMENT_BYTES, Manifest, sign, verify};
use super::error::BackupError;
use super::store::Store;
use super::{blocking, pack};

/// What a sealed segment may have beyond its own bytes: zstd's and age's overhead, and the head.
const MAX_PIECE_BYTES: u64 = SEGMENT_BYTES + (1 << 20);
/// How often a recovering server is looked after.
const LOOK_EVERY: Duration = Duration::from_millis(20);

fn key_of(epoch: u64, name: &str) -> String {
    format!("wal/{epoch}/{name}")
}

/// Seals and stores one file of the spool, and removes it there once the store has it.
///
/// # Errors
/// When it cannot be read or stored: then it is still in the spool.
pub fn ship(
    store: &Store,
    spool: &Path,
    name: &str,
    epoch: u64,
    key: &NodeKey,
    recipients: &[Recipient],
) -> Result<(), BackupError> {
    let path = spool.join(name);
    let failed = |act| BackupError::io(act, &path);
    let plain = std::fs::read(&path).map_err(failed("read"))?;
    let changed = std::fs::metadata(&path).and_then(|meta| meta.modified()).map_err(failed("look at"))?;
    let micros = changed.duration_since(UNIX_EPOCH).map_or(0, |since| since.as_micros());
    let sealed = sealed(&plain, recipients, name)?;
    let head = Head {
        format: HEAD_FORMAT.to_owned(),
        name: name.to_owned(),
        node: key.peer_id(),
        epoch,
        time: Timestamp::from_micros(i64::try_from(micros).unwrap_or(0)),
        bytes: sealed.len() as u64,
        sha256: Hash::of(&sealed),
    };
    let mut bytes = sign(&head, key)?;
    bytes.extend_from_slice(&sealed);
    store.put(&key_of(epoch, name), &bytes)?;
    std::fs::remove_file(&path).map_err(failed("remove"))
}

fn sealed(plain: &[u8], recipients: &[Recipient], name: &str) -> Result<Vec<u8>, BackupError> {
    use std::io::Write as _;
    let failed = |source| BackupError::Io { act: "seal", path: name.into(), source };
    let squeezed = zstd::encode_all(plain, 1).map_err(failed)?;
    let mut writer = bib_identity::sealed_stream::SealingWriter::new(Vec::new(), recipients)
        .map_err(|source| BackupError::Sealed { object: name.to_owned(), source })?;
    writer.write_all(&squeezed).and_then(|()| writer.finish()).map_err(failed)
}

/// The log that continues a backup, as far as it is whole.
#[derive(Debug, Clone)]
pub struct Chain {
    node: PeerId,
    epoch: u64,
    timeline: u32,
    /// The last segment that can be reached from the backup, when there is any.
    last: Option<Segment>,
    /// Everything that was committed by then can be restored.
    pub reachable: Timestamp,
    /// The first segment that is missing while later ones are there.
    pub missing: Option<String>,
}

impl Chain {
    /// Looks at what continues `manifest`: names and signed heads. Without any, what was committed when the backup began
    /// is all that is surely in it.
    ///
    /// # Errors
    /// When the store cannot be read, or a head is damaged or not the node's.
    pub fn find(store: &Store, manifest: &Manifest) -> Result<Self, BackupError> {
        let (node, epoch, timeline) = (manifest.node, manifest.epoch, manifest.timeline);
        let unknown =
            || BackupError::Damaged { object: manifest.id.clone(), problem: "its end is no place".to_owned() };
        let first = Segment::at(timeline, &manifest.end_lsn).ok_or_else(unknown)?;
        let names = store.list(&format!("wal/{epoch}"))?;
        let segments = names.iter().filter_map(|name| Segment::parse(name));
        let (mut last, mut next, mut missing) = (None, first, None);
        // In the order of their names, which is that of their numbers.
        for segment in segments.filter(|segment| segment.timeline == timeline && segment.number >= first.number) {
            if segment != next {
                missing = Some(next.name());
                break;
            }
            (last, next) = (Some(segment), segment.next());
        }
        let mut chain = Self { node, epoch, timeline, last, reachable: manifest.created, missing };
        if let Some(last) = last {
            let (head, _) = chain.read(store, &last.name())?.ok_or_else(unknown)?;
            chain.reachable = chain.reachable.max(head.time);
        }
        Ok(chain)
    }

    /// A piece with its checked head; the bytes are still sealed. `None` when there is none.
    fn read(&self, store: &Store, name: &str) -> Result<Option<(Head, Vec<u8>)>, BackupError> {
        let key = key_of(self.epoch, name);
        let Some(object) = store.open(&key)? else { return Ok(None) };
        let damaged = |problem: &str| BackupError::Damaged { object: key.clone(), problem: problem.to_owned() };
        let mut bytes = Vec::new();
        let limit = MAX_PIECE_BYTES + MAX_DOCUMENT_BYTES as u64;
        object.take(limit).read_to_end(&mut bytes).map_err(BackupError::io("read", &store.place(&key)))?;
        let (head, sealed): (Head, _) = verify(&bytes, &self.node, &key)?;
        if head.format != HEAD_FORMAT || head.name != name || head.node != self.node || head.epoch != self.epoch {
            return Err(damaged("its head is another piece's"));
        }
        if head.bytes != sealed.len() as u64 {
            return Err(damaged(&format!("it has {} bytes, its head says {}", sealed.len(), head.bytes)));
        }
        if Hash::of(sealed) != head.sha256 {
            return Err(damaged("its hash is not the one in its head"));
        }
        let sealed = sealed.to_vec();
        Ok(Some((head, sealed)))
    }

    /// Whether recovery may have this file: not beyond the last whole segment.
    fn has(&self, name: &str) -> bool {
        Segment::parse(name)
            .is_none_or(|segment| segment.timeline == self.timeline && self.last.is_some_and(|last| segment <= last))
    }

    /// The opened piece; `None` when recovery ends before it.
    fn open(&self, store: &Store, name: &str, opener: &Opener) -> Result<Option<Vec<u8>>, BackupError> {
        if !self.has(name) {
            return Ok(None);
        }
        let Some((_, sealed)) = self.read(store, name)? else { return Ok(None) };
        let key = key_of(self.epoch, name);
        let mut plain = Vec::new();
        let reading = pack::opened(sealed.as_slice(), &key, opener)?;
        let read = reading.take(SEGMENT_BYTES + 1).read_to_end(&mut plain);
        match read {
            Ok(bytes) if bytes as u64 <= SEGMENT_BYTES => Ok(Some(plain)),
            Ok(_) => Err(BackupError::Damaged { object: key, problem: "it is larger than a segment".to_owned() }),
            Err(error) => Err(BackupError::Damaged { object: key, problem: error.to_string() }),
        }
    }

    /// Gives a recovering server what it asks for, until this future is dropped.
    ///
    /// # Errors
    /// With the piece that is damaged: recovery must then be given up.
    pub async fn feed(&self, store: &Store, opener: &Opener, feed: &Feed) -> BackupError {
        loop {
            match self.feed_one(store, opener, feed).await {
                Ok(true) => {}
                Ok(false) => tokio::time::sleep(LOOK_EVERY).await,
                Err(error) => return error,
            }
        }
    }

    async fn feed_one(&self, store: &Store, opener: &Opener, feed: &Feed) -> Result<bool, BackupError> {
        let (chain, store, opener, feed) = (self.clone(), store.clone(), opener.clone(), feed.clone());
        blocking(move || {
            let Some(name) = feed.wanted()? else { return Ok(false) };
            match chain.open(&store, &name, &opener)? {
                Some(bytes) => feed.give(&name, &bytes)?,
                None => feed.deny(&name)?,
            }
            Ok(true)
        })
        .await
    }
}

/// Removes the log that no backup needs any more.
///
/// # Errors
/// When the store cannot be read or written.
pub fn prune(store: &Store, kept: &[Manifest]) -> Result<(), BackupError> {
    for epoch in store.list("wal")? {
        let of_epoch = kept.iter().filter(|manifest| manifest.epoch.to_string() == epoch);
        let needed = of_epoch.filter_map(|manifest| Segment::at(manifest.timeline, &manifest.start_lsn)).min();
        let mut older = Vec::new();
        for name in store.list(&format!("wal/{epoch}"))? {
            let base = name.split('.').next().unwrap_or_default();
            let is_older = match (Segment::parse(base), needed) {
                (_, None) => true,
                (Some(segment), Some(needed)) => segment < needed,
                // A history: small, and somebody may want to read it.
                (None, Some(_)) => false,
            };
            if is_older {
                older.push(format!("wal/{epoch}/{name}"));
            }
        }
        store.delete(&older)?;
    }
    Ok(())
}
