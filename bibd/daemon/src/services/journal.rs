//! The audit log as use cases write it: the entry goes into the act's own transaction, and acts that cannot be undone
//! wait for their seal.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bib_core::PeerId;
use bibd_audit::{Actor as AuditActor, Entry, EntryDraft, Outcome, Via as AuditVia, is_sensitive};
use bibd_catalog::audit::Place;
use bibd_catalog::{Db, Tx, audit};
use serde_json::Value;
use tokio::sync::{Notify, broadcast, oneshot, watch};
use uuid::Uuid;

use super::error::ServiceError;
use crate::actor::{Call, Via};
use crate::clock::Ids;
use crate::errors::ErrorCode;

/// How long an act that cannot be undone waits for its seal before it fails closed.
const SEAL_DEADLINE: Duration = Duration::from_secs(2);

/// Followers of the log may be this many seals behind.
const FOLLOWERS_BUFFER: usize = 4096;

/// What was done, for the log.
#[derive(Debug, Clone)]
pub struct Act {
    /// Dotted lower case: `topic.create`.
    pub action: &'static str,
    /// To what.
    pub target: String,
    /// Anything else worth knowing; never secrets.
    pub details: Value,
}

impl Act {
    /// An act with details.
    pub fn new(action: &'static str, target: impl Into<String>, details: Value) -> Self {
        Self { action, target: target.into(), details }
    }
}

/// A seal, told to followers after it was committed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Sealed {
    /// The entry.
    pub entry: Uuid,
    /// Its epoch.
    pub epoch: u64,
    /// Its number.
    pub seq: u64,
}

/// Writes entries. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Journal(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    peer: PeerId,
    ids: Ids,
    /// Wakes the sequencer.
    poke: Notify,
    /// Asks the sequencer for a checkpoint with its next batch.
    wants_checkpoint: AtomicBool,
    /// Acts that wait for their seal.
    waiting: Mutex<HashMap<Uuid, oneshot::Sender<Sealed>>>,
    followers: broadcast::Sender<Sealed>,
    /// How far the log is sealed, for those who read it by themselves.
    newest: watch::Sender<Place>,
}

impl Journal {
    /// A journal of this node.
    #[must_use]
    pub fn new(peer: PeerId, ids: Ids) -> Self {
        Self(Arc::new(Inner {
            peer,
            ids,
            poke: Notify::new(),
            wants_checkpoint: AtomicBool::new(false),
            waiting: Mutex::new(HashMap::new()),
            followers: broadcast::Sender::new(FOLLOWERS_BUFFER),
            newest: watch::Sender::default(),
        }))
    }

    /// Writes the entry of an act into its transaction and commits both. An act that cannot be undone comes back only
    /// once it is sealed.
    ///
    /// # Errors
    /// When the entry cannot be written: then nothing was committed. When the seal does not come within two seconds:
    /// then the act stands, and the caller is told that the log is in trouble.
    pub async fn commit(&self, tx: Tx, call: &Call, act: Act) -> Result<Uuid, ServiceError> {
        self.commit_with(tx, call, act, Outcome::Ok).await
    }

    /// As [`Journal::commit`] with another outcome, such as the intent of something that a transaction cannot undo.
    ///
    /// # Errors
    /// As [`Journal::commit`].
    pub async fn commit_with(&self, mut tx: Tx, call: &Call, act: Act, result: Outcome) -> Result<Uuid, ServiceError> {
        let action = act.action;
        let entry = self.entry(&mut tx, call, act, result)?;
        audit::append(&mut tx, &entry).await.map_err(refused)?;
        self.commit_added(tx, entry.id, action).await?;
        Ok(entry.id)
    }

    /// Commits a transaction whose entry [`Journal::add`] wrote, and waits for the seal if the act cannot be undone.
    ///
    /// # Errors
    /// As [`Journal::commit`].
    pub async fn commit_added(&self, tx: Tx, entry: Uuid, action: &str) -> Result<(), ServiceError> {
        let seal = is_sensitive(action).then(|| self.await_seal(entry));
        tx.commit().await?;
        let Some(seal) = seal else {
            self.0.poke.notify_one();
            return Ok(());
        };
        self.0.wants_checkpoint.store(true, Ordering::Release);
        self.0.poke.notify_one();
        let sealed = tokio::time::timeout(SEAL_DEADLINE, seal).await;
        if matches!(sealed, Ok(Ok(_))) {
            return Ok(());
        }
        self.waiting().remove(&entry);
        Err(ServiceError::unavailable(
            ErrorCode::AUDIT_UNAVAILABLE,
            "the act was done, but its audit entry was not sealed within two seconds",
        ))
    }

    /// Adds an entry to a transaction that goes on, for a use case that is more than one act.
    ///
    /// # Errors
    /// When the entry cannot be written.
    pub async fn add(&self, tx: &mut Tx, call: &Call, act: Act) -> Result<Uuid, ServiceError> {
        let entry = self.entry(tx, call, act, Outcome::Ok)?;
        audit::append(tx, &entry).await.map_err(refused)?;
        Ok(entry.id)
    }

    /// Writes an entry about something that changed no row: a refusal, a log-in that failed, a download.
    ///
    /// # Errors
    /// When the entry cannot be written.
    pub async fn record(&self, db: &Db, call: &Call, act: Act, result: Outcome) -> Result<Uuid, ServiceError> {
        let tx = db.begin(&context(call)).await?;
        self.commit_with(tx, call, act, result).await
    }

    /// Writes an entry about something that is about to happen in the database and must not happen without it. Comes back
    /// once it is committed and before it is on the disk: whatever happens then comes after it in the server's log.
    ///
    /// # Errors
    /// When the entry cannot be written.
    pub async fn record_ahead(&self, db: &Db, call: &Call, act: Act) -> Result<Uuid, ServiceError> {
        let tx = db.begin_ahead(&context(call)).await?;
        self.commit_with(tx, call, act, Outcome::Ok).await
    }

    /// Seals as they are committed, from now on.
    #[must_use]
    pub fn follow(&self) -> broadcast::Receiver<Sealed> {
        self.0.followers.subscribe()
    }

    /// How far the log is sealed, again at each change.
    #[must_use]
    pub fn newest(&self) -> watch::Receiver<Place> {
        self.0.newest.subscribe()
    }

    /// Asks for a checkpoint now rather than within the minute, for somebody who waits for a proof.
    pub(super) fn ask_for_checkpoint(&self) {
        self.0.wants_checkpoint.store(true, Ordering::Release);
        self.0.poke.notify_one();
    }

    /// Waits until somebody committed an entry.
    pub(super) async fn poked(&self) {
        self.0.poke.notified().await;
    }

    /// Whether an act asked for a checkpoint since the last time this was asked.
    pub(super) fn take_checkpoint_wish(&self) -> bool {
        self.0.wants_checkpoint.swap(false, Ordering::AcqRel)
    }

    /// Tells those who wait, and followers, that these entries are sealed.
    pub(super) fn sealed(&self, seals: &[bibd_audit::Seal]) {
        let mut waiting = self.waiting();
        for seal in seals {
            let sealed = Sealed { entry: seal.entry, epoch: seal.epoch, seq: seal.seq };
            if let Some(waiter) = waiting.remove(&seal.entry)
                && waiter.send(sealed).is_err()
            {
                tracing::debug!(entry.id = %seal.entry, "the caller did not wait for the seal");
            }
            if self.0.followers.send(sealed).is_err() {
                // Nobody follows the log at the moment.
                tracing::trace!(entry.id = %seal.entry, "sealed");
            }
        }
        if let Some(last) = seals.last() {
            self.0.newest.send_replace(Place { epoch: last.epoch, seq: last.seq });
        }
    }

    fn await_seal(&self, entry: Uuid) -> oneshot::Receiver<Sealed> {
        let (sender, receiver) = oneshot::channel();
        self.waiting().insert(entry, sender);
        receiver
    }

    fn waiting(&self) -> std::sync::MutexGuard<'_, HashMap<Uuid, oneshot::Sender<Sealed>>> {
        // A panic while the map is held leaves it whole: every use is one insert or remove.
        self.0.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn entry(&self, tx: &mut Tx, call: &Call, act: Act, result: Outcome) -> Result<Entry, ServiceError> {
        let draft = EntryDraft {
            id: self.0.ids.uuid(),
            time: self.0.ids.clock().now(),
            node: self.0.peer,
            actor: actor(call),
            via: via(&call.actor.via),
            action: act.action.to_owned(),
            target: act.target,
            result,
            operation: call.operation,
            job: None,
            origin: Some(tx.origin()),
            statements: tx.take_notes(),
            details: act.details,
            salt: self.0.ids.entropy().bytes(),
        };
        draft.build().map_err(ServiceError::internal)
    }
}

fn context(call: &Call) -> bibd_catalog::Context {
    let user = call.actor.user.as_uuid();
    let user = (!user.is_nil()).then_some(user);
    let component = match call.actor.via {
        Via::Internal { component } => component,
        Via::Socket { .. } | Via::Tls { .. } => "grpc",
    };
    bibd_catalog::Context { operation: call.operation, user, component }
}

fn actor(call: &Call) -> AuditActor {
    match &call.actor.via {
        Via::Internal { component } => AuditActor::System((*component).to_owned()),
        _ if call.actor.user.as_uuid().is_nil() => AuditActor::Anonymous(call.actor.name.clone()),
        _ => AuditActor::User { id: call.actor.user, name: call.actor.name.clone() },
    }
}

fn via(via: &Via) -> AuditVia {
    match via {
        Via::Socket { .. } => AuditVia::Socket,
        Via::Tls { .. } => AuditVia::Tls,
        Via::Internal { .. } => AuditVia::Internal,
    }
}

/// An act whose entry cannot be written does not happen.
fn refused(error: bibd_catalog::Error) -> ServiceError {
    tracing::error!(error = &error as &dyn std::error::Error, "an audit entry could not be written");
    match error {
        bibd_catalog::Error::Full => ServiceError::unavailable(ErrorCode::DISK_FULL, "the database has no space left"),
        _ => ServiceError::unavailable(ErrorCode::AUDIT_UNAVAILABLE, "the audit log cannot be written"),
    }
}
