//! The one sequencer: seals committed entries into the chain in batches, and signs checkpoints.
//!
//! A task under the supervisor; what it knows is in the database, so it may be killed anywhere. Two of them would
//! collide on the key of `audit_seal` and one would fail: the data directory's lock keeps that from happening.

use std::time::Duration;

use bib_core::Timestamp;
use bibd_audit::action::EPOCH;
use bibd_audit::{ChainState, CheckpointFile};
use bibd_catalog::{Context, audit};
use serde_json::json;
use tokio_util::sync::CancellationToken;

use super::base::Base;
use super::checkpoints::Checkpoints;
use super::journal::Act;
use crate::supervisor::TaskResult;

/// Entries sealed in one transaction, at most.
const BATCH: i64 = 4096;

/// Seals in one partition, as `audit_make_block` cuts them.
const BLOCK: u64 = 10_000_000;

/// Entries gather for this long before they are sealed: well within the promised 100 ms, and long enough that a busy
/// node seals many in one commit.
const GATHER: Duration = Duration::from_millis(20);

/// Partitions for so many days ahead exist at any time.
const AHEAD_DAYS: i64 = 7;

/// The sequencer.
#[derive(Debug)]
pub struct Sequencer {
    base: Base,
    checkpoints: Checkpoints,
    every: Duration,
    state: ChainState,
    checkpointed: (u64, u64),
    /// The newest block of seals that is known to exist: epoch and number.
    block: (u64, u64),
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
        let checkpoints = Checkpoints::new(base.clone(), file);
        let (checkpointed, block) = ((state.epoch, 0), block_of(state.epoch, state.seq + 1));
        let mut sequencer = Self { base, checkpoints, every, state, checkpointed, block };
        sequencer.make_partitions().await?;
        if let Some(before) = newest {
            if sequencer.checkpoints.settle(&before).await? {
                sequencer.checkpointed = (before.epoch, before.seq);
            }
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
            let block = block_of(state.epoch, state.seq + BATCH.unsigned_abs());
            if block != self.block {
                audit::make_block(&mut tx, state.epoch, state.seq + BATCH.unsigned_abs()).await?;
            }
            let seals = audit::seal_next(&mut tx, &mut state, BATCH, self.base.now()).await?;
            if seals.is_empty() {
                return tx.rollback().await;
            }
            tx.commit().await?;
            (self.state, self.block) = (state, block);
            self.base.journal.sealed(&seals);
            // What was committed while this batch was sealed wakes the sequencer again.
            if u64::try_from(seals.len()).unwrap_or(u64::MAX) < BATCH.unsigned_abs() {
                return Ok(());
            }
        }
    }

    /// Signs how the log stands, unless nothing is new.
    async fn checkpoint(&mut self) -> TaskResult {
        let is_new = self.checkpointed != (self.state.epoch, self.state.seq) && self.state.seq > 0;
        // What a former node left unsigned is vouched for by the chain: the next epoch's first entry names its end.
        if !is_new || !self.checkpoints.is_ours(self.state.epoch) {
            return Ok(());
        }
        self.checkpoints.sign(&self.state).await?;
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

/// The block that a seal falls in.
fn block_of(epoch: u64, seq: u64) -> (u64, u64) {
    (epoch, (seq - 1) / BLOCK)
}

fn ahead(now: Timestamp) -> Timestamp {
    now.plus_seconds(AHEAD_DAYS * 24 * 60 * 60)
}
