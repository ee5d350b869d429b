//! Collects what nothing keeps: ended upload sessions, pages of no version, chunks of no page.
//!
//! A reconciler in small steps, each its own transaction with its own audit entry: sessions end, dead pages go (and with
//! them what they name), dead chunks are doomed; in the next transaction, under the chunks' locks, their files move to
//! the trash; after 24 hours the trash is emptied. Whatever is killed in between is taken up by the next round. An
//! upload of a doomed or trashed chunk revives it. A chunk with an object in object storage leaves the trash with it.
//! Memory: one slice.

use std::collections::{BTreeSet, HashMap};
use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use bib_core::access::Verb;
use bib_core::layout::LayoutPage;
use bib_core::{Hash, Timestamp};
use bibd_catalog::chunks::{self, Named};
use bibd_catalog::objects::{self, ObjectRow};
use bibd_catalog::pages::{self, PageKind};
use bibd_catalog::{Read, Tx, leases};
use serde_json::json;
use tokio::sync::Mutex;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::activity::Activity;
use super::base::{Base, allow_node};
use super::error::ServiceError;
use super::journal::Act;
use super::page_list::{self, PageListError, ordered};
use super::reference;
use super::store_errors::not_stored;
use super::tier::Tier;
use crate::actor::Call;
use crate::errors::ErrorCode;
use crate::supervisor::TaskResult;

/// How often the background task looks.
const ROUND: Duration = Duration::from_secs(10 * 60);

/// Rows looked at in one statement.
const SLICE: u32 = 512;

/// Chunks moved to the trash in one transaction.
const TRASH_SLICE: u32 = 64;

/// The trash keeps chunks for so long.
const TRASH_SECONDS: i64 = 24 * 60 * 60;

/// Chunks whose objects are deleted in one transaction, at once: as long as that takes, an upload of one of them waits.
const OBJECT_SLICE: u32 = 16;

/// Chunks that are named in the answer to a person.
const NAMED: usize = 1000;

/// The use cases of collection. Cheap to clone.
#[derive(Debug, Clone)]
pub struct CollectorUseCases {
    base: Base,
    tier: Tier,
    activity: Activity,
    /// One collection at a time: two would only wait for each other.
    running: Arc<Mutex<()>>,
    /// Collections that somebody asked for. They go on when the caller goes away: a file that was moved wants its commit.
    asked: TaskTracker,
}

/// What a collection found or did.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Collected {
    /// The first thousand chunks that nothing keeps.
    pub garbage: Vec<Garbage>,
    /// How many there are.
    pub chunks: u64,
    /// Their bytes on disk.
    pub bytes: u64,
    /// Pages that nothing keeps.
    pub pages: u64,
    /// Upload sessions that had ended.
    pub sessions: u64,
    /// Bytes deleted from the trash.
    pub trash_emptied_bytes: u64,
}

/// A chunk that nothing keeps, and why.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Garbage {
    /// The chunk.
    pub chunk: Hash,
    /// On disk.
    pub bytes: u64,
    /// A sentence.
    pub reason: &'static str,
}

const REASON: &str = "no page of a kept version names it and no upload session holds it";

impl CollectorUseCases {
    /// Over the node.
    #[must_use]
    pub fn new(base: Base, tier: Tier, activity: Activity) -> Self {
        Self { base, tier, activity, running: Arc::default(), asked: TaskTracker::new() }
    }

    /// The background task.
    ///
    /// # Errors
    /// When the database or the store fails; the supervisor makes another.
    pub async fn run(self, stop: CancellationToken) -> TaskResult {
        while stop.run_until_cancelled(tokio::time::sleep(ROUND)).await.is_some() {
            self.activity.step_aside().await;
            let call = self.base.internal_call("collector");
            // Not cancelled half-way: a step is short, and a file that was moved wants its commit.
            self.collect_now(&call).await?;
        }
        self.asked.close();
        self.asked.wait().await;
        Ok(())
    }

    /// Collects now, or says what would be collected.
    ///
    /// # Errors
    /// When the caller may not, or the database or the store fails.
    pub async fn collect(&self, call: &Call, dry_run: bool) -> Result<Collected, ServiceError> {
        allow_node(call, Verb::Maintain)?;
        let (collector, call) = (self.clone(), call.clone());
        let work =
            async move { if dry_run { collector.dry_run(&call).await } else { collector.collect_now(&call).await } };
        self.to_the_end(work).await
    }

    /// Runs what must not be cancelled half-way when the caller goes away.
    async fn to_the_end<T: Send + 'static>(
        &self,
        work: impl Future<Output = Result<T, ServiceError>> + Send + 'static,
    ) -> Result<T, ServiceError> {
        self.asked.spawn(work).await.map_err(ServiceError::internal)?
    }

    async fn collect_now(&self, call: &Call) -> Result<Collected, ServiceError> {
        let _running = self.running.lock().await;
        let mut collected = Collected::default();
        self.end_sessions(call, &mut collected).await?;
        self.collect_pages(call, &mut collected).await?;
        self.doom(call, &mut collected).await?;
        self.trash(call).await?;
        self.empty_trash(call, &mut collected).await?;
        match self.delete_objects(call).await {
            // They wait in the trash until the store is back.
            Err(error @ (ServiceError::Unavailable { .. } | ServiceError::Conflict { .. })) => {
                tracing::warn!(
                    error = &error as &dyn std::error::Error,
                    "objects of collected chunks are not deleted yet"
                );
            }
            outcome => outcome?,
        }
        Ok(collected)
    }

    /// Chunks that have an object leave the trash with it: the row is locked, the object goes, the row goes.
    async fn delete_objects(&self, call: &Call) -> Result<(), ServiceError> {
        let before = self.base.now().plus_seconds(-TRASH_SECONDS);
        loop {
            let mut tx = self.base.begin(call, "collector").await?;
            let mut gone = Vec::new();
            for (chunk, object) in objects::trashed(&mut tx, before, OBJECT_SLICE).await? {
                if chunks::forget(&mut tx, &chunk, before).await? {
                    gone.push(object);
                }
            }
            if gone.is_empty() {
                return Ok(tx.rollback().await?);
            }
            // Dropped with an error, the transaction leaves the rows as they were.
            futures::future::try_join_all(gone.iter().map(|object| self.tier.remove(object))).await?;
            let bytes: u64 = gone.iter().map(|object| object.bytes).sum();
            self.commit(tx, call, "objects", json!({"chunks": gone.len(), "bytes": bytes})).await?;
        }
    }

    /// Everything that a collection would remove: it is removed in a transaction that is then undone.
    async fn dry_run(&self, call: &Call) -> Result<Collected, ServiceError> {
        let _running = self.running.lock().await;
        let now = self.base.now();
        let mut collected = Collected::default();
        let mut tx = self.base.begin(call, "collector").await?;
        for session in leases::expired(&mut tx, now, u32::MAX >> 1).await? {
            leases::end(&mut tx, session, now).await?;
            collected.sessions += 1;
        }
        let mut after = None;
        loop {
            let (last, dead) = pages::collect(&mut tx, after.as_ref(), SLICE, at_once(now), true).await?;
            collected.pages += dead;
            after = last;
            if after.is_none() {
                break;
            }
        }
        while let (Some(last), dead) = chunks::doom(&mut tx, after.as_ref(), SLICE, at_once(now), now, false).await? {
            collected.take(&dead);
            after = Some(last);
        }
        tx.rollback().await?;
        Ok(collected)
    }

    async fn end_sessions(&self, call: &Call, collected: &mut Collected) -> Result<(), ServiceError> {
        loop {
            let now = self.base.now();
            let mut tx = self.base.begin(call, "collector").await?;
            let expired = leases::expired(&mut tx, now, SLICE).await?;
            let mut ended: u64 = 0;
            for session in &expired {
                ended += u64::from(leases::end(&mut tx, *session, now).await?);
            }
            if ended == 0 {
                return Ok(tx.rollback().await?);
            }
            collected.sessions += ended;
            self.commit(tx, call, "sessions", json!({"sessions": ended})).await?;
        }
    }

    async fn collect_pages(&self, call: &Call, collected: &mut Collected) -> Result<(), ServiceError> {
        let before = at_once(self.base.now());
        let mut after: Option<Hash> = None;
        loop {
            let mut tx = self.base.begin(call, "collector").await?;
            let (last, dead) = pages::collect(&mut tx, after.as_ref(), SLICE, before, true).await?;
            if dead > 0 {
                collected.pages += dead;
                self.commit(tx, call, "pages", json!({"pages": dead})).await?;
            } else {
                tx.rollback().await?;
            }
            after = last;
            if after.is_none() {
                return Ok(());
            }
        }
    }

    async fn doom(&self, call: &Call, collected: &mut Collected) -> Result<(), ServiceError> {
        let mut after: Option<Hash> = None;
        loop {
            let now = self.base.now();
            let mut tx = self.base.begin(call, "collector").await?;
            let (last, dead) = chunks::doom(&mut tx, after.as_ref(), SLICE, at_once(now), now, true).await?;
            if dead.is_empty() {
                tx.rollback().await?;
            } else {
                collected.take(&dead);
                let bytes: u64 = dead.iter().map(|chunk| u64::from(chunk.stored_bytes)).sum();
                self.commit(tx, call, "chunks", json!({"chunks": dead.len(), "bytes": bytes})).await?;
            }
            after = last;
            if after.is_none() {
                return Ok(());
            }
        }
    }

    /// Moves doomed chunks to the trash. The rows stay locked while the files move: an upload of such a chunk waits,
    /// and then takes the file back.
    async fn trash(&self, call: &Call) -> Result<(), ServiceError> {
        loop {
            let now = self.base.now();
            let mut tx = self.base.begin(call, "collector").await?;
            let doomed = chunks::doomed(&mut tx, TRASH_SLICE).await?;
            let mut moved = Vec::new();
            let mut done: u64 = 0;
            for (chunk, in_place) in &doomed {
                // What became wanted since it was doomed keeps its file; an upload makes it live again.
                if chunks::trash(&mut tx, &chunk.hash, now).await? {
                    done += 1;
                    moved.extend((!in_place).then_some(chunk.hash));
                }
            }
            if done == 0 {
                return Ok(tx.rollback().await?);
            }
            self.base.blobs.trash_many(&moved, system_time(now)).await.map_err(not_stored)?;
            self.commit(tx, call, "trash", json!({"chunks": done})).await?;
        }
    }

    async fn empty_trash(&self, call: &Call, collected: &mut Collected) -> Result<(), ServiceError> {
        let before = self.base.now().plus_seconds(-TRASH_SECONDS);
        let (files, bytes) = self.base.blobs.empty_trash(system_time(before)).await.map_err(not_stored)?;
        collected.trash_emptied_bytes = bytes;
        loop {
            let mut tx = self.base.begin(call, "collector").await?;
            let trashed = chunks::trashed(&mut tx, before, SLICE).await?;
            let mut forgotten: u64 = 0;
            for (chunk, _) in &trashed {
                forgotten += u64::from(chunks::forget(&mut tx, &chunk.hash, before).await?);
            }
            if forgotten == 0 {
                return Ok(tx.rollback().await?);
            }
            let details = json!({"chunks": forgotten, "files": files, "bytes": bytes});
            self.commit(tx, call, "emptied", details).await?;
        }
    }

    /// The chunks that the layout of a version names, for [`CollectorUseCases::purge`] after its withdrawal. None when
    /// there is no such version for the caller: the withdrawal will say so. Those on a damaged page are left out, since a
    /// version must go even then; the next collection takes them, through the trash.
    ///
    /// # Errors
    /// When the database does not answer.
    pub async fn named_chunks(&self, call: &Call, text: &str) -> Result<Vec<Hash>, ServiceError> {
        let mut session = self.base.db.read().await?;
        let Ok(found) = reference::version(&self.base, call, &mut session, text, Verb::DatasetWithdraw).await else {
            return Ok(Vec::new());
        };
        if found.version.state == bibd_catalog::versions::VersionState::Withdrawn {
            return Ok(Vec::new());
        }
        let mut named = BTreeSet::new();
        match collect_named(&mut session, &found.version.layout, &mut named).await {
            Ok(()) => {}
            Err(error) if !error.is_damage() => return Err(error.into()),
            Err(damage) => {
                tracing::warn!(version = %found.version.hash, error = &damage as &dyn std::error::Error,
                    "a withdrawn version's layout is damaged: its chunks go with the next collection");
            }
        }
        Ok(named.into_iter().collect())
    }

    /// Removes those of these chunks that nothing keeps any more at once, past the trash: the bytes of a withdrawn version.
    /// Chunks that other versions name stay.
    ///
    /// # Errors
    /// When the database or the store fails; then the next collection takes what is left, through the trash.
    pub async fn purge(&self, call: &Call, named: Vec<Hash>) -> Result<(), ServiceError> {
        let (collector, call) = (self.clone(), call.clone());
        self.to_the_end(async move { collector.purge_now(&call, named).await }).await
    }

    async fn purge_now(&self, call: &Call, named: Vec<Hash>) -> Result<(), ServiceError> {
        let _running = self.running.lock().await;
        let mut collected = Collected::default();
        self.collect_pages(call, &mut collected).await?;
        let mut left: u64 = 0;
        for slice in named.chunks(TRASH_SLICE as usize) {
            let now = self.base.now();
            let mut tx = self.base.begin(call, "collector").await?;
            let dead = chunks::doom_these(&mut tx, slice, now).await?;
            let names: Vec<Hash> = dead.iter().map(|(chunk, _)| chunk.hash).collect();
            let objects: HashMap<Hash, ObjectRow> = objects::of(&mut tx, &names).await?.into_iter().collect();
            let (mut removed, mut kept): (u64, u64) = (0, 0);
            for (chunk, in_place) in &dead {
                let object = objects.get(&chunk.hash);
                // Where the object cannot be removed now, the chunk has been in the trash for long enough already: the
                // very next collection tries again.
                let since = object.map_or(now, |_| now.plus_seconds(-TRASH_SECONDS - 1));
                if !chunks::trash(&mut tx, &chunk.hash, since).await? {
                    continue;
                }
                if !in_place {
                    self.base.blobs.remove(&chunk.hash).await.map_err(not_stored)?;
                }
                let is_gone = match object {
                    Some(object) => self.tier.remove(object).await.is_ok(),
                    None => true,
                };
                if is_gone {
                    chunks::forget(&mut tx, &chunk.hash, at_once(now)).await?;
                    removed += 1;
                } else {
                    kept += 1;
                }
            }
            if removed + kept == 0 {
                tx.rollback().await?;
            } else {
                let details = json!({"chunks": removed, "objects_left": kept});
                self.commit(tx, call, "withdrawn", details).await?;
            }
            left += kept;
        }
        if left == 0 {
            return Ok(());
        }
        Err(ServiceError::unavailable(
            ErrorCode::OBJECTS_UNAVAILABLE,
            format!(
                "the version is withdrawn, but {left} of its chunks still lie in object storage, which does not answer; \
                     they are removed as soon as it does"
            ),
        ))
    }

    async fn commit(&self, tx: Tx, call: &Call, what: &str, details: serde_json::Value) -> Result<(), ServiceError> {
        let act = Act::new("garbage.collect", what.to_owned(), details);
        self.base.journal.commit(tx, call, act).await.map(|_| ())
    }
}

impl Collected {
    fn take(&mut self, dead: &[Named]) {
        self.chunks += dead.len() as u64;
        self.bytes += dead.iter().map(|chunk| u64::from(chunk.stored_bytes)).sum::<u64>();
        let room = NAMED.saturating_sub(self.garbage.len());
        let named = dead.iter().take(room);
        self.garbage.extend(named.map(|chunk| Garbage {
            chunk: chunk.hash,
            bytes: u64::from(chunk.stored_bytes),
            reason: REASON,
        }));
    }
}

/// Adds the chunks that the pages of `layout` name, of as many pages as can be read.
async fn collect_named(session: &mut Read, layout: &Hash, named: &mut BTreeSet<Hash>) -> Result<(), PageListError> {
    let layout = page_list::layout(session, layout).await?;
    let mut outcome = Ok(());
    for page in layout.pages.iter().flat_map(|page| &page.pages) {
        let parsed = match ordered(session, std::slice::from_ref(page), PageKind::LayoutPage).await {
            Ok(found) => found.iter().map(|found| LayoutPage::parse(&found.body)).collect::<Result<Vec<_>, _>>(),
            Err(error) if !error.is_damage() => return Err(error),
            Err(damage) => {
                outcome = Err(damage);
                continue;
            }
        };
        match parsed {
            Ok(pages) => {
                let lines = pages.iter().flat_map(|page| &page.lines);
                named.extend(lines.flat_map(|line| &line.extents).map(|extent| extent.chunk));
            }
            Err(error) => outcome = Err(PageListError::Wrong { hash: *page, reason: error.to_string() }),
        }
    }
    outcome
}

/// Rows are collected however young they are: whoever writes one leases it in the same transaction.
fn at_once(now: Timestamp) -> Timestamp {
    now.plus_seconds(1)
}

/// The catalog's time as a file's.
pub(super) fn system_time(time: Timestamp) -> std::time::SystemTime {
    time.to_offset().into()
}
