//! The one sequencer: seals committed entries into the chain in batches, and signs checkpoints.
//!
//! A task under the supervisor; what it knows is in the database, so it may be killed anywhere. Two of them would
//! collide on the key of `audit_seal` and one would fail: the data directory's lock keeps that from happening.

use std::time::Duration;

use bib_core::Timestamp;
use bibd_audit::action::EPOCH;
use bibd_audit::{ChainState, Checkpoint, CheckpointFile};
use bibd_catalog::{Context, audit};
use serde_json::json;
use tokio_util::sync::CancellationToken;

use super::base::Base;
use super::journal::Act;
use crate::supervisor::TaskResult;

/// Entries sealed in one transaction, at most.
const BATCH: i64 = 4096;

/// Entries gather for this long before they are sealed: well within the promised 100 ms, and long enough that a busy
/// node seals many in one commit.
const GATHER: Duration = Duration::from_millis(20);

/// Partitions for so many days ahead exist at any time.
const AHEAD_DAYS: i64 = 7;

/// The sequencer.
#[derive(Debug)]
pub struct Sequencer {
    base: Base,
    file: CheckpointFile,
    every: Duration,
    state: ChainState,
    checkpointed: (u64, u64),
}

impl Sequencer {
    /// Takes up the chain where the database says it stands, seals what was committed and not sealed, and begins the
    /// node's epoch if it is new. `every` is the time between checkpoints while there are new entries.
    ///
    /// # Errors
    /// When the database is gone, or the chain's state is not one.
    pub async fn start(
        base: Base,
        file: CheckpointFile,
        every: Duration,
    ) -> Result<Self, Box<dyn std::error::Error + Send + Sync>> {
        let mut session = base.db.read_audit().await?;
        let heads = audit::load_heads(&mut session).await?;
        drop(session);
        let newest = heads.into_iter().next_back();
        let state = newest.clone().unwrap_or_else(|| ChainState::new(base.epoch));
        let checkpointed = (state.epoch, 0);
        let mut sequencer = Self { base, file, every, state, checkpointed };
        sequencer.make_partitions().await?;
        if let Some(before) = newest {
            if before.epoch > sequencer.base.epoch {
                let message =
                    format!("the audit log is in epoch {}, the node in {}", before.epoch, sequencer.base.epoch);
                return Err(message.into());
            }
            // What is committed but unsealed belongs to the epoch that it was committed in.
            sequencer.seal_all().await?;
            if before.epoch < sequencer.base.epoch {
                sequencer.begin_epoch().await?;
            }
        }
        sequencer.seal_all().await?;
        sequencer.checkpoint().await?;
        Ok(sequencer)
    }

    /// Runs until told to stop; then seals what is left and signs a last checkpoint.
    ///
    /// # Errors
    /// When the database or the checkpoint file fails; the supervisor starts a new sequencer.
    pub async fn run(mut self, stop: CancellationToken) -> TaskResult {
        let mut due = tokio::time::interval(self.every);
        due.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let journal = self.base.journal.clone();
        loop {
            let by_time = tokio::select! {
                () = stop.cancelled() => break,
                () = journal.poked() => false,
                _ = due.tick() => true,
            };
            if !by_time {
                tokio::time::sleep(GATHER).await;
            }
            self.seal_all().await?;
            if by_time || journal.take_checkpoint_wish() {
                self.make_partitions().await?;
                self.checkpoint().await?;
            }
        }
        self.seal_all().await?;
        self.checkpoint().await?;
        Ok(())
    }

    async fn seal_all(&mut self) -> Result<(), bibd_catalog::Error> {
        loop {
            let mut state = self.state.clone();
            let mut tx = self.base.db.begin_seal(&self.context()).await?;
            // The batch must not run into a block that does not exist yet.
            audit::make_block(&mut tx, state.epoch, state.seq + BATCH.unsigned_abs()).await?;
            let seals = audit::seal_next(&mut tx, &mut state, BATCH, self.base.now()).await?;
            if seals.is_empty() {
                tx.rollback().await?;
                return Ok(());
            }
            tx.commit().await?;
            self.state = state;
            self.base.journal.sealed(&seals);
        }
    }

    /// Signs how the log stands, into the file on another path first and then into the table, unless nothing is new.
    async fn checkpoint(&mut self) -> TaskResult {
        if self.checkpointed == (self.state.epoch, self.state.seq) || self.state.seq == 0 {
            return Ok(());
        }
        let key = self.base.key.clone();
        let checkpoint = Checkpoint::of(self.base.peer, &self.state);
        let text = checkpoint.text();
        let signature = key.sign_checkpoint(text.as_bytes())?;
        let note = checkpoint.sign(&|_| signature);
        let file = self.file.clone();
        let for_file = note.clone();
        tokio::task::spawn_blocking(move || file.append(&for_file)).await??;
        let mut tx = self.base.db.begin_seal(&self.context()).await?;
        audit::insert_checkpoint(&mut tx, self.state.epoch, self.state.seq, &note.to_string(), self.base.now()).await?;
        tx.commit().await?;
        self.checkpointed = (self.state.epoch, self.state.seq);
        Ok(())
    }

    /// The first entry of an epoch names the last head of the one before.
    async fn begin_epoch(&mut self) -> TaskResult {
        self.checkpoint().await?;
        let (next, target) = self.state.begin_epoch(self.base.epoch)?;
        let call = self.base.internal_call("sequencer");
        let mut tx = self.base.begin(&call, "sequencer").await?;
        self.base.journal.add(&mut tx, &call, Act::new(EPOCH, target, json!({}))).await?;
        tx.commit().await?;
        self.state = next;
        self.seal_all().await?;
        Ok(())
    }

    async fn make_partitions(&self) -> Result<(), bibd_catalog::Error> {
        let now = self.base.now();
        let mut tx = self.base.db.begin(&self.context()).await?;
        for moment in [now, ahead(now)] {
            audit::make_month(&mut tx, moment).await?;
        }
        audit::make_block(&mut tx, self.state.epoch, self.state.seq + 1).await?;
        tx.commit().await
    }

    fn context(&self) -> Context {
        Context { operation: self.base.ids.operation(), user: None, component: "sequencer" }
    }
}

fn ahead(now: Timestamp) -> Timestamp {
    now.plus_seconds(AHEAD_DAYS * 24 * 60 * 60)
}
