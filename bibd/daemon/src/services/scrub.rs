//! The scrubber: reads stored chunks again and compares the store with the catalog.
//!
//! What is damaged or missing is noted as by a read. A file without a row may belong to an upload that is about to commit,
//! so it is left alone until it is older than any upload session; then it goes to the trash.

use std::time::Duration;

use bib_core::Hash;
use bib_core::access::Verb;
use bibd_audit::Outcome;
use bibd_blobs::{Depth, Expected, Finding, ScrubBudget};
use bibd_catalog::{chunks, objects};
use serde_json::json;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use super::activity::Activity;
use super::base::{Base, allow_node};
use super::chunk_reader::ChunkReader;
use super::collector::system_time;
use super::error::ServiceError;
use super::journal::Act;
use super::store_errors::{not_read, not_stored};
use super::tier::TierUseCases;
use super::tier::checking::Cursor;
use crate::actor::Call;
use crate::supervisor::TaskResult;

/// What one step reads, at most.
const BUDGET: ScrubBudget = ScrubBudget { files: 256, bytes: 16 << 20 };

/// Rows compared in one statement.
const ROWS: u32 = 4096;

/// The background task makes a step this often: 1.6 MB/s, a terabyte in a week.
const STEP: Duration = Duration::from_secs(10);

/// An orphan is left alone for so long: longer than an upload session lives.
const ORPHAN_SECONDS: i64 = 25 * 60 * 60;

/// The use cases of scrubbing. Cheap to clone.
#[derive(Debug, Clone)]
pub struct ScrubUseCases {
    base: Base,
    reader: ChunkReader,
    tier: TierUseCases,
    activity: Activity,
}

/// A word of a scrub under way.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ScrubWord {
    /// Chunks read.
    pub chunks: u64,
    /// Bytes read.
    pub bytes: u64,
    /// What was found, when something was.
    pub finding: Option<ScrubFinding>,
    /// The last word.
    pub finished: bool,
}

/// A difference between store and catalog.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ScrubFinding {
    /// `corrupt`, `missing` or `orphan`.
    pub kind: &'static str,
    /// The chunk.
    pub chunk: Hash,
    /// A sentence.
    pub explanation: String,
}

/// What is said of a file that nobody needs.
const SPARE: &str = "the chunk lies in object storage; its file was one too many and was moved to the trash";

/// Where a walk over object storage is.
#[derive(Clone, Copy)]
enum Walk {
    Objects(Option<Hash>),
    Listing(Cursor),
}

impl Walk {
    fn listing() -> Self {
        Self::Listing(Cursor::default())
    }
}

impl ScrubUseCases {
    /// Over the node.
    #[must_use]
    pub fn new(base: Base, reader: ChunkReader, tier: TierUseCases, activity: Activity) -> Self {
        Self { base, reader, tier, activity }
    }

    /// The background task: a step now and then, round and round.
    ///
    /// # Errors
    /// When the database or the store fails; the supervisor makes another.
    pub async fn run(self, stop: CancellationToken) -> TaskResult {
        let mut after = None;
        while stop.run_until_cancelled(tokio::time::sleep(STEP)).await.is_some() {
            self.activity.step_aside().await;
            (after, _, _) = self.step(after).await?;
        }
        Ok(())
    }

    /// Reads every chunk on disk again, telling `out`, and sees that object storage lists every chunk that lies there;
    /// with `objects` it reads those too, which such stores charge for.
    ///
    /// # Errors
    /// When the caller may not, or the database or the store fails.
    pub async fn scrub(
        &self,
        call: &Call,
        objects: bool,
        out: mpsc::Sender<Result<ScrubWord, ServiceError>>,
    ) -> Result<(), ServiceError> {
        allow_node(call, Verb::Maintain)?;
        let (mut after, mut found) = (None, 0_u64);
        let mut word = ScrubWord { chunks: 0, bytes: 0, finding: None, finished: false };
        loop {
            let (next, read, findings) = self.step(after).await?;
            word.chunks += read.0;
            word.bytes += read.1;
            found += findings.len() as u64;
            for finding in findings {
                if out.send(Ok(ScrubWord { finding: Some(finding), ..word.clone() })).await.is_err() {
                    return Ok(());
                }
            }
            if out.send(Ok(word.clone())).await.is_err() {
                return Ok(());
            }
            after = next;
            if after.is_none() {
                break;
            }
        }
        let mut walk = self.tier.is_configured().then_some(if objects { Walk::Objects(None) } else { Walk::listing() });
        while let Some(at) = walk {
            let (next, checked) = match at {
                Walk::Objects(after) => {
                    let (next, checked) = self.tier.read_slice(after).await?;
                    (Some(next.map_or_else(Walk::listing, |after| Walk::Objects(Some(after)))), checked)
                }
                Walk::Listing(cursor) => {
                    let checked = self.tier.check_page(cursor).await?;
                    (checked.next.map(Walk::Listing), checked)
                }
            };
            if matches!(at, Walk::Objects(_)) {
                word.chunks += checked.objects;
                word.bytes += checked.bytes;
            }
            found += checked.findings.len() as u64;
            for finding in checked.findings {
                if out.send(Ok(ScrubWord { finding: Some(finding), ..word.clone() })).await.is_err() {
                    return Ok(());
                }
            }
            if out.send(Ok(word.clone())).await.is_err() {
                return Ok(());
            }
            walk = next;
        }
        let details = json!({"chunks": word.chunks, "bytes": word.bytes, "findings": found});
        let act = Act::new("store.scrub", "store", details);
        self.base.journal.record(&self.base.db, call, act, Outcome::Ok).await?;
        if out.send(Ok(ScrubWord { finished: true, ..word })).await.is_err() {
            tracing::debug!("the caller went away at the end of a scrub");
        }
        Ok(())
    }

    /// One step of the walk: where the next begins, what was read, what was found.
    #[allow(clippy::type_complexity, reason = "three answers that only the two callers above take apart")]
    async fn step(&self, after: Option<Hash>) -> Result<(Option<Hash>, (u64, u64), Vec<ScrubFinding>), ServiceError> {
        let page = self.base.blobs.scrub(after, Depth::Contents, BUDGET).await.map_err(not_read)?;
        let rows = self.rows(after, page.up_to).await?;
        let mut found = Vec::new();
        for finding in self.base.blobs.reconcile(&page, &rows).await.map_err(not_read)? {
            found.extend(self.settle(finding).await?);
        }
        Ok((page.up_to, (page.files.len() as u64, page.bytes_read), found))
    }

    /// The rows of the page's range, read after the page was.
    async fn rows(&self, after: Option<Hash>, up_to: Option<Hash>) -> Result<Vec<Expected>, ServiceError> {
        let mut session = self.base.db.read().await?;
        let (mut rows, mut at) = (Vec::new(), after);
        loop {
            let slice = chunks::expected(&mut session, at.as_ref(), up_to.as_ref(), ROWS).await?;
            let is_last = slice.len() < ROWS as usize;
            at = slice.last().map(|chunk| chunk.hash);
            rows.extend(slice.iter().map(|chunk| Expected { hash: chunk.hash, stored_bytes: chunk.stored_bytes }));
            if is_last {
                return Ok(rows);
            }
        }
    }

    /// A file beside an object that the row calls all there is: left by a move that was cut off.
    async fn trash_spare(&self, hash: &Hash) -> Result<bool, ServiceError> {
        let (call, now) = (self.base.internal_call("scrubber"), self.base.now());
        let mut tx = self.base.begin(&call, "scrubber").await?;
        let is_spare = objects::lock_moved_out(&mut tx, hash).await?;
        if is_spare {
            self.base.blobs.trash(hash, system_time(now)).await.map_err(not_stored)?;
        }
        tx.rollback().await?;
        Ok(is_spare)
    }

    async fn settle(&self, finding: Finding) -> Result<Option<ScrubFinding>, ServiceError> {
        let word = |kind, chunk, explanation: &str| {
            Ok(Some(ScrubFinding { kind, chunk, explanation: explanation.to_owned() }))
        };
        match finding {
            Finding::Missing { hash } => {
                // A collection may have taken it since the rows were read.
                let mut session = self.base.db.read().await?;
                if chunks::locate(&mut session, &[hash]).await?.is_empty() {
                    return Ok(None);
                }
                drop(session);
                if self.reader.rescue_or_note(&hash, "its file is missing").await? {
                    return word("missing", hash, "its file was missing; it was fetched from object storage");
                }
                word("missing", hash, "its file is missing")
            }
            Finding::Corrupt { hash, quarantined } => {
                let why = if quarantined {
                    "its bytes have another hash; the file is in quarantine"
                } else {
                    "its bytes have another hash"
                };
                if self.reader.rescue_or_note(&hash, why).await? {
                    return word("corrupt", hash, "its bytes had another hash; it was fetched from object storage");
                }
                word("corrupt", hash, why)
            }
            Finding::Length { hash, expected, found } => {
                // The file is whole, so the next read tolerates it and the next upload corrects the row.
                word("corrupt", hash, &format!("the catalog expects {expected} bytes of file, not {found}"))
            }
            Finding::Unreadable { hash, reason } => {
                tracing::error!(chunk = %hash, reason, "a chunk cannot be read");
                word("corrupt", hash, "the disk does not give its file")
            }
            Finding::Orphan { hash, modified, .. } => {
                let before = system_time(self.base.now().plus_seconds(-ORPHAN_SECONDS));
                if modified >= before {
                    return word("orphan", hash, "no row names it; it may belong to an upload and is kept for now");
                }
                let mut session = self.base.db.read().await?;
                let is_known = !chunks::existing(&mut session, &[hash]).await?.is_empty();
                drop(session);
                if is_known {
                    let is_spare = self.trash_spare(&hash).await?;
                    return if is_spare { word("orphan", hash, SPARE) } else { Ok(None) };
                }
                // An upload that found this very file waits until it was moved, and then takes it back.
                let (call, now) = (self.base.internal_call("scrubber"), self.base.now());
                let mut tx = self.base.begin(&call, "scrubber").await?;
                if !chunks::claim_orphan(&mut tx, &hash, now).await? {
                    return Ok(None);
                }
                self.base.blobs.trash(&hash, system_time(now)).await.map_err(not_stored)?;
                tx.rollback().await?;
                word("orphan", hash, "no row names it; it was moved to the trash")
            }
        }
    }
}
