//! The write-ahead log on its way from the spool to the store, and into the spool where the database is on another
//! machine.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use bibd_postgres::receive::{Receiver, Receiving, Reception};
use bibd_postgres::wal::{self, SEGMENT_BYTES};
use tokio_util::sync::CancellationToken;

use super::BackupUseCases;
use crate::backup::{BackupError, Manifest, Store, blocking, log};
use crate::foundation::postgres_wal;
use crate::grpc::health::Condition;
use crate::supervisor::TaskResult;

/// How often the spool is looked at, and how soon again after a failure.
const LOOK_EVERY: Duration = Duration::from_secs(1);
const AFTER_FAILURE: Duration = Duration::from_secs(5);

impl BackupUseCases {
    /// Ships the log from the spool, in order, until told to stop. A store that cannot be written stops nothing: the
    /// spool fills, then the server keeps its log, and health says so.
    ///
    /// # Errors
    /// Never for the store's sake.
    pub async fn shipping(self, stop: CancellationToken) -> TaskResult {
        let Some(store) = self.store.clone() else { return Ok(()) };
        let (mut failing, mut is_swept) = (None, false);
        loop {
            let mut shipping = std::pin::pin!(async {
                if !is_swept {
                    let store = store.clone();
                    blocking(move || store.sweep("wal")).await?;
                    is_swept = true;
                }
                self.ship_all(&store).await
            });
            let shipped = tokio::select! {
                shipped = &mut shipping => shipped,
                () = stop.cancelled() => {
                    // What waits for a network would wait long; what was not shipped is still in the spool.
                    store.close();
                    shipping.await
                }
            };
            if stop.is_cancelled() {
                return Ok(());
            }
            let waiting = self.waiting_bytes().await;
            self.waiting.set(i64::try_from(waiting).unwrap_or(i64::MAX));
            let pause = match shipped {
                Ok(()) => {
                    if failing.take().is_some() {
                        tracing::info!("the store for backups takes the log again");
                        self.health.set("backup", Condition::Serving);
                    }
                    LOOK_EVERY
                }
                Err(error) => {
                    let cause = crate::grpc::error::chain(&error);
                    let sentence =
                        format!("the log cannot be archived ({} MiB wait in the database): {cause}", waiting >> 20);
                    if failing.is_none() {
                        tracing::error!(hint = error.hint(), "{sentence}");
                    }
                    self.health.set("backup", Condition::Degraded(sentence));
                    failing = Some(error);
                    AFTER_FAILURE
                }
            };
            if stop.run_until_cancelled(tokio::time::sleep(pause)).await.is_none() {
                return Ok(());
            }
        }
    }

    /// Has the log of a database that is reached over TCP come into the spool, until told to stop. Elsewhere the server
    /// puts it there itself.
    ///
    /// # Errors
    /// When there is no program for it; the supervisor tries again.
    pub async fn receiving(self, stop: CancellationToken) -> TaskResult {
        let wal = postgres_wal(self.foundation.config());
        let Some(receiver) = Receiver::of(&self.database, &wal).await? else { return Ok(()) };
        let mut state = receiver.state();
        let telling = async {
            let mut known = 0;
            while state.changed().await.is_ok() {
                let Reception { now, gaps } = state.borrow_and_update().clone();
                if gaps > known {
                    known = gaps;
                    self.has_gap.store(true, Ordering::SeqCst);
                }
                self.health.set("log", condition(now, self.has_gap.load(Ordering::SeqCst)));
            }
        };
        tokio::select! {
            () = receiver.run(stop) => {}
            () = telling => {}
        }
        Ok(())
    }

    /// Log that the database keeps because it has not left, bytes.
    async fn waiting_bytes(&self) -> u64 {
        if self.foundation.postgres.endpoint().is_none() {
            return wal::waiting(&self.foundation.postgres.layout().data) as u64 * SEGMENT_BYTES;
        }
        match self.foundation.pools.retained().await {
            Ok(kept) => kept.map_or(0, |kept| kept.bytes),
            Err(error) => {
                tracing::debug!(error.cause = %error, "the database does not say what it keeps of its log");
                u64::try_from(self.waiting.get()).unwrap_or_default()
            }
        }
    }

    async fn ship_all(&self, store: &Store) -> Result<(), BackupError> {
        let (store, spool) = (store.clone(), self.spool.clone());
        let (key, epoch) = (Arc::clone(&self.base.key), self.base.epoch);
        let is_making = self.is_making_base.load(Ordering::SeqCst);
        let recipients = self.recipients();
        blocking(move || {
            let names = wal::spooled(&spool)?;
            if names.is_empty() {
                return Ok(());
            }
            // A log with nothing that it continues is worth nothing: a node without a backup does not keep it.
            if !is_making && !has_backup(&store, &key.peer_id(), epoch)? {
                for name in names {
                    let path = spool.join(name);
                    std::fs::remove_file(&path).map_err(BackupError::io("remove", &path))?;
                }
                return Ok(());
            }
            let recipients = recipients?;
            names.iter().try_for_each(|name| log::ship(&store, &spool, name, epoch, &key, &recipients))
        })
        .await
    }
}

/// One that was cut off comes back at once, as after every rotation: that is not worth a word.
const ATTEMPTS_WITHOUT_A_WORD: u32 = 3;

fn condition(now: Receiving, has_gap: bool) -> Condition {
    match now {
        _ if has_gap => Condition::Degraded(
            "the log has a gap, since the database could not keep it for long enough: make a backup".to_owned(),
        ),
        Receiving::Full => Condition::Degraded("the spool of the log is full; the database keeps its log".to_owned()),
        Receiving::Broken { attempt, reason } if attempt >= ATTEMPTS_WITHOUT_A_WORD => {
            Condition::Degraded(format!("the log of the database does not come: {reason}"))
        }
        Receiving::Streaming | Receiving::Broken { .. } => Condition::Serving,
    }
}

fn has_backup(store: &Store, peer: &bib_core::PeerId, epoch: u64) -> Result<bool, BackupError> {
    for (name, is_complete) in Manifest::names(store)? {
        // One that cannot be read may be of this epoch: its log is kept.
        if is_complete && Manifest::load(store, peer, &name).map_or(true, |manifest| manifest.epoch == epoch) {
            return Ok(true);
        }
    }
    Ok(false)
}
