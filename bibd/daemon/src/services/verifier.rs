//! Whether the files of versions are what their contents say: in the background for each new version, and on demand.
//!
//! A reconciler: it looks for pending versions, oldest first, hashes their files at low priority, and writes down how it
//! ended. Pages that a verified parent holds are not read again, so that a small change costs a small check.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;

use bib_core::Hash;
use bibd_audit::Outcome;
use bibd_catalog::versions::{self, Version, VersionState};
use serde_json::json;
use tokio::sync::{Notify, mpsc};
use tokio_util::sync::CancellationToken;

use super::activity::Activity;
use super::base::Base;
use super::chunk_reader::ChunkReader;
use super::download::DownloadUseCases;
use super::error::ServiceError;
use super::journal::Act;
use super::page_list;
use super::reference;
use super::verify_files::{FileVerifier, Listener, Progress, Word};
use crate::actor::Call;
use crate::errors::ErrorCode;
use crate::supervisor::TaskResult;

/// How often the background task looks when nobody pokes it.
const ROUND: Duration = Duration::from_secs(60);

/// Versions looked at in one round.
const SLICE: u32 = 16;

/// Damaged files that are named in the audit log.
const NAMED: usize = 32;

/// Wakes the background task. Cheap to clone.
#[derive(Debug, Clone, Default)]
pub struct VerifierPoke(Arc<Notify>);

impl VerifierPoke {
    /// There may be something to verify.
    pub fn poke(&self) {
        self.0.notify_one();
    }
}

/// The use cases of verification.
#[derive(Debug, Clone)]
pub struct VerifyUseCases {
    base: Base,
    reader: ChunkReader,
    downloads: DownloadUseCases,
    activity: Activity,
    poke: VerifierPoke,
}

/// A word to who asked for a verification.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Told {
    /// What has been done.
    pub done: Progress,
    /// What there is to do.
    pub total: Progress,
    /// Files found damaged since the last word.
    pub damaged: Vec<String>,
    /// The last word.
    pub finished: bool,
}

impl VerifyUseCases {
    /// Over the node.
    #[must_use]
    pub fn new(
        base: Base,
        reader: ChunkReader,
        downloads: DownloadUseCases,
        activity: Activity,
        poke: VerifierPoke,
    ) -> Self {
        Self { base, reader, downloads, activity, poke }
    }

    /// The background task.
    ///
    /// # Errors
    /// When the database is gone; the supervisor makes another.
    pub async fn run(self, stop: CancellationToken) -> TaskResult {
        loop {
            Box::pin(self.round(&stop)).await?;
            let wait = async {
                tokio::select! {
                    () = self.poke.0.notified() => {}
                    () = tokio::time::sleep(ROUND) => {}
                }
            };
            if stop.run_until_cancelled(wait).await.is_none() {
                return Ok(());
            }
        }
    }

    /// Verifies what is pending.
    ///
    /// # Errors
    /// When the database or the store does not answer.
    pub async fn round(&self, stop: &CancellationToken) -> Result<(), ServiceError> {
        loop {
            let mut session = self.base.db.read().await?;
            let pending = versions::pending(&mut session, SLICE).await?;
            drop(session);
            if pending.is_empty() {
                return Ok(());
            }
            for version in pending {
                let checked = self.verify_pending(&version);
                match stop.run_until_cancelled(checked).await {
                    None => return Ok(()),
                    Some(result) => result?,
                }
            }
        }
    }

    /// Reads every file of a version that the caller may read, telling `out`.
    ///
    /// # Errors
    /// When there is no such version for the caller, or catalog or store do not answer.
    pub async fn verify(
        &self,
        call: &Call,
        reference: &str,
        out: mpsc::Sender<Result<Told, ServiceError>>,
    ) -> Result<(), ServiceError> {
        let mut session = self.base.db.read().await?;
        let found = reference::readable(&self.base, call, &mut session, reference).await?;
        drop(session);
        let version = found.version;
        self.downloads.enter(call, &version).await?;
        let total = Progress { bytes: version.size_bytes, files: version.files };
        let mut asker = Asker { out, done: Progress::default(), total, damaged: Vec::new() };
        let mut verifier = FileVerifier::new(&self.base.db, &self.reader, None);
        let count = verifier.run(&version, &HashSet::new(), &mut asker).await?;
        let Asker { out, damaged, .. } = asker;
        if out.is_closed() {
            // Whoever asked went away before the end: nothing was found out.
            return Ok(());
        }
        self.settle(call, &version, count, &damaged).await?;
        let last = Told { done: total, total, damaged: Vec::new(), finished: true };
        if out.send(Ok(last)).await.is_err() {
            tracing::debug!("the caller went away at the end of a verification");
        }
        Ok(())
    }

    async fn verify_pending(&self, version: &Version) -> Result<(), ServiceError> {
        let known = self.verified_pages(version).await?;
        let mut noted = Noted::default();
        let mut verifier = FileVerifier::new(&self.base.db, &self.reader, Some(&self.activity));
        let count = match verifier.run(version, &known, &mut noted).await {
            Ok(count) => count,
            Err(error) if self.is_gone(version).await? => {
                tracing::debug!(version = %version.hash, %error, "a version went away while it was verified");
                return Ok(());
            }
            Err(error) => return Err(error),
        };
        let call = self.base.internal_call("verifier");
        self.settle(&call, version, count, &noted.0).await
    }

    /// Withdrawn or deleted meanwhile.
    async fn is_gone(&self, version: &Version) -> Result<bool, ServiceError> {
        let mut session = self.base.db.read().await?;
        let now = versions::find(&mut session, &version.hash).await?;
        Ok(now.is_none_or(|now| now.state == VersionState::Withdrawn))
    }

    /// Pages of parents that were verified.
    async fn verified_pages(&self, version: &Version) -> Result<HashSet<Hash>, ServiceError> {
        let mut session = self.base.db.read().await?;
        let mut known = HashSet::new();
        for parent in &version.parents {
            if let Some(parent) = versions::find(&mut session, parent).await?
                && parent.state == VersionState::Verified
            {
                known.extend(page_list::content(&mut session, &parent.content).await?.pages);
            }
        }
        Ok(known)
    }

    /// Writes down how a verification ended.
    async fn settle(&self, call: &Call, version: &Version, damaged: u64, named: &[String]) -> Result<(), ServiceError> {
        let (state, outcome) = if damaged == 0 {
            (VersionState::Verified, Outcome::Ok)
        } else {
            tracing::error!(version = %version.hash, damaged, "a version has damaged files");
            (VersionState::Damaged, Outcome::Failed(ErrorCode::INTEGRITY.to_string()))
        };
        let mut tx = self.base.begin(call, "verifier").await?;
        versions::set_state(&mut tx, &version.hash, state).await?;
        let details = json!({
            "files": version.files, "bytes": version.size_bytes, "damaged": damaged, "first": named,
        });
        let act = Act::new("dataset.verify", format!("version:{}", version.hash), details);
        self.base.journal.commit_with(tx, call, act, outcome).await?;
        Ok(())
    }
}

/// The first damaged files, for the audit log.
#[derive(Debug, Default)]
struct Noted(Vec<String>);

impl Listener for Noted {
    async fn tell(&mut self, word: Word) -> bool {
        if let Word::Damaged(path) = word
            && self.0.len() < NAMED
        {
            self.0.push(path);
        }
        true
    }
}

/// Somebody who asked for a verification and waits.
#[derive(Debug)]
struct Asker {
    out: mpsc::Sender<Result<Told, ServiceError>>,
    done: Progress,
    total: Progress,
    damaged: Vec<String>,
}

impl Listener for Asker {
    async fn tell(&mut self, word: Word) -> bool {
        let mut damaged = Vec::new();
        match word {
            Word::Progress(now) => self.done = now,
            Word::Damaged(path) => {
                if self.damaged.len() < NAMED {
                    self.damaged.push(path.clone());
                }
                damaged.push(path);
            }
        }
        let told = Told { done: self.done, total: self.total, damaged, finished: false };
        self.out.send(Ok(told)).await.is_ok()
    }
}
