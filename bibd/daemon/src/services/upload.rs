//! Upload sessions: everything of a publish before its commit.
//!
//! A session is a lease of 24 hours that each step prolongs. It keeps the chunks and pages it was told of or sent, and
//! is charged to its user's staging quota. Nothing here makes anything visible: that is [`super::commit`].
//!
//! What a session may learn: which chunks of its own uploads, or of versions that its user may read, are here. Whether
//! the node has any other chunk is never told, not even by the time an answer takes: such a chunk is asked for,
//! stored, and deduplicated behind the answer.

use bib_core::access::{Embargo, Verb};
use bib_core::name::DatasetName;
use bib_core::{Hash, KeyFingerprint, SessionId, Timestamp};
use bibd_catalog::datasets::{self, SeenDataset};
use bibd_catalog::leases::{self, Upload};
use bibd_catalog::versions::{self, Version};
use bibd_catalog::{Session, Tx, chunks, pages, users};
use serde_json::json;

use super::base::Base;
use super::dataset::{DatasetUseCases, NewDataset};
use super::error::ServiceError;
use super::journal::Act;
use super::reference;
use super::topic::TopicUseCases;
use crate::actor::{Call, Scope, Scopes};
use crate::errors::ErrorCode;

/// How long a session lives after its last step.
pub const LEASE_SECONDS: i64 = 24 * 60 * 60;

/// Questions prolong a session when it has lost so much of its time.
const PROLONG_SECONDS: i64 = 60;

/// Hashes in one question about what is missing.
pub const MAX_HASHES: usize = 16_384;

/// The use cases of upload sessions.
#[derive(Debug, Clone)]
pub struct UploadUseCases {
    pub(super) base: Base,
    datasets: DatasetUseCases,
    topics: TopicUseCases,
}

/// What a publish wants to write into.
#[derive(Debug, Clone)]
pub struct BeginUpload {
    /// Full name.
    pub dataset: DatasetName,
    /// Make what is missing.
    pub create: bool,
    /// What the client built upon.
    pub parent: Option<Hash>,
    /// A session to go on with.
    pub session: Option<SessionId>,
}

/// A session that stands.
#[derive(Debug, Clone)]
pub struct Begun {
    /// The session.
    pub upload: Upload,
    /// What it publishes into.
    pub seen: SeenDataset,
    /// The latest version now.
    pub latest: Option<Version>,
    /// One of these must sign.
    pub signing_keys: Vec<KeyFingerprint>,
    /// The topic was made.
    pub created_topic: bool,
    /// The dataset was made.
    pub created_dataset: bool,
}

impl UploadUseCases {
    /// Over the node.
    #[must_use]
    pub fn new(base: Base, datasets: DatasetUseCases, topics: TopicUseCases) -> Self {
        Self { base, datasets, topics }
    }

    /// Begins a session, or goes on with one.
    ///
    /// # Errors
    /// When the caller may not publish there, the dataset is missing and not to be made, or the session is over or
    /// another's.
    pub async fn begin(&self, call: &Call, wanted: &BeginUpload) -> Result<Begun, ServiceError> {
        let mut tx = self.base.begin(call, "upload").await?;
        let now = self.base.now();
        let name = wanted.dataset.to_string();
        let found = datasets::find_by_name(&mut tx, call.actor.user, now, &name, &self.base.peer).await?;
        // What is hidden from the caller is refused in the words for what is not there, also where it would be made.
        let may_see = |seen: &SeenDataset| {
            reference::allow(call, seen, Verb::DatasetShow, Embargo::Over, ("dataset", &name)).is_ok()
        };
        let found = found.filter(may_see);
        let mut made = Vec::new();
        let created_dataset = found.is_none();
        let seen = match found {
            Some(seen) => seen,
            None if wanted.create => {
                let new = NewDataset { create_topic: true, ..NewDataset::default() };
                let (id, topics) = self.datasets.create_in(&mut tx, call, &wanted.dataset, &new).await?;
                made = topics;
                let act = Act::new("dataset.create", format!("dataset:{id}"), json!({"name": name}));
                self.base.journal.add(&mut tx, call, act).await?;
                let seen = datasets::find(&mut tx, call.actor.user, now, id).await?;
                seen.ok_or_else(|| ServiceError::internal("a dataset that was just made is not there"))?
            }
            None => return Err(ServiceError::not_found("dataset", &name)),
        };
        reference::allow(call, &seen, Verb::DatasetPublish, Embargo::Over, ("dataset", &name))?;
        let upload = match wanted.session {
            Some(session) => self.resume(&mut tx, call, session, &seen, wanted.parent).await?,
            None => {
                let upload = Upload {
                    id: self.base.ids.session(),
                    user: call.actor.user,
                    dataset: seen.dataset.id,
                    parent: wanted.parent,
                    staged_bytes: 0,
                    expires_at: now.plus_seconds(LEASE_SECONDS),
                };
                leases::begin(&mut tx, &upload, now).await?;
                upload
            }
        };
        let latest = match &seen.dataset.latest {
            Some(latest) => versions::find(&mut tx, latest).await?,
            None => None,
        };
        let keys = users::list_keys(&mut tx, &[call.actor.user], false).await?;
        if created_dataset {
            let details = json!({"session": upload.id.to_string()});
            let act = Act::new("dataset.upload", format!("dataset:{}", seen.dataset.id), details);
            self.base.journal.commit(tx, call, act).await?;
        } else {
            // What is staged is nobody's yet and visible to nobody: the publish is the act, and it has an entry.
            tx.commit().await?;
        }
        self.topics.tell_made(&made);
        if created_dataset {
            self.datasets.tell("dataset.created", &seen, "");
        }
        Ok(Begun {
            upload,
            seen,
            latest,
            signing_keys: keys.into_iter().map(|key| key.fingerprint).collect(),
            created_topic: !made.is_empty(),
            created_dataset,
        })
    }

    /// Which of `wanted` the session has to send, as positions. The others are leased to it from now on.
    ///
    /// # Errors
    /// When the session is over, or there are too many hashes.
    pub async fn missing_chunks(
        &self,
        call: &Call,
        session: SessionId,
        wanted: &[Hash],
    ) -> Result<Vec<u32>, ServiceError> {
        check_count("chunks", wanted)?;
        let mut tx = self.base.begin(call, "upload").await?;
        let upload = self.live(&mut tx, call, session).await?;
        let now = self.base.now();
        let topics = readable_topics(call);
        let known = chunks::known(&mut tx, call.actor.user, topics.as_deref(), wanted, now).await?;
        if !known.is_empty() {
            chunks::lease(&mut tx, session, &known).await?;
        }
        self.prolong(&mut tx, &upload, now).await?;
        tx.commit().await?;
        Ok(missing(wanted, known))
    }

    /// Which of `wanted` pages the session has to send, as positions. The others it sent before, or the dataset's latest
    /// version holds them. Those are not leased, as a publish may not write a row per page there is: should they go in
    /// between, the commit says so.
    ///
    /// # Errors
    /// As [`UploadUseCases::missing_chunks`].
    pub async fn missing_pages(
        &self,
        call: &Call,
        session: SessionId,
        wanted: &[Hash],
    ) -> Result<Vec<u32>, ServiceError> {
        check_count("pages", wanted)?;
        let mut tx = self.base.begin(call, "upload").await?;
        let upload = self.live(&mut tx, call, session).await?;
        let known = pages::known(&mut tx, session, upload.dataset, wanted).await?;
        self.prolong(&mut tx, &upload, self.base.now()).await?;
        tx.commit().await?;
        Ok(missing(wanted, known))
    }

    /// Ends a session. What only it kept goes with the next collection.
    ///
    /// # Errors
    /// When the session is over or another's.
    pub async fn abort(&self, call: &Call, session: SessionId) -> Result<(), ServiceError> {
        let mut tx = self.base.begin(call, "upload").await?;
        let upload = self.live(&mut tx, call, session).await?;
        leases::end(&mut tx, session, self.base.now()).await?;
        let details = json!({"session": session.to_string()});
        let act = Act::new("dataset.upload_abort", format!("dataset:{}", upload.dataset), details);
        self.base.journal.commit(tx, call, act).await?;
        Ok(())
    }

    /// The caller's session, if it still lives.
    ///
    /// # Errors
    /// [`ErrorCode::UPLOAD_EXPIRED`] when it does not, or is another's: the two are not told apart.
    pub async fn live(&self, session: &mut impl Session, call: &Call, id: SessionId) -> Result<Upload, ServiceError> {
        let found = leases::find(session, id, call.actor.user, self.base.now()).await?;
        found.ok_or_else(|| {
            ServiceError::conflict(
                ErrorCode::UPLOAD_EXPIRED,
                format!("the upload session {id} has ended"),
                "publish again: what was sent and is still here is not sent twice",
            )
        })
    }

    /// Prolongs a session for a question, once a minute at most: a question that writes nothing commits without waiting
    /// for the disk, and for nobody who holds the session's row.
    async fn prolong(&self, tx: &mut Tx, upload: &Upload, now: Timestamp) -> Result<(), ServiceError> {
        if upload.expires_at < now.plus_seconds(LEASE_SECONDS - PROLONG_SECONDS) {
            self.beat(tx, upload.id, 0, now).await?;
        }
        Ok(())
    }

    /// Prolongs a session, and charges what it holds more to its user's staging quota.
    pub(super) async fn beat(
        &self,
        tx: &mut Tx,
        session: SessionId,
        bytes: u64,
        now: Timestamp,
    ) -> Result<(), ServiceError> {
        leases::touch(tx, session, bytes, now, now.plus_seconds(LEASE_SECONDS)).await?;
        Ok(())
    }

    /// Admits `bytes` to the user's staging quota in the transaction that stores them.
    pub(super) async fn charge(
        &self,
        tx: &mut Tx,
        call: &Call,
        bytes: u64,
        now: Timestamp,
    ) -> Result<(), ServiceError> {
        let subject = call.actor.user.to_string();
        let amount = i64::try_from(bytes).unwrap_or(i64::MAX);
        let limit = self.base.quotas.staging_bytes;
        match leases::charge(tx, &subject, "staging", limit, amount, now).await? {
            None => Ok(()),
            Some(over) => Err(over_quota("staged by uploads", over)),
        }
    }

    async fn resume(
        &self,
        tx: &mut Tx,
        call: &Call,
        session: SessionId,
        seen: &SeenDataset,
        parent: Option<Hash>,
    ) -> Result<Upload, ServiceError> {
        let mut upload = self.live(tx, call, session).await?;
        if upload.dataset != seen.dataset.id {
            return Err(ServiceError::invalid("session_id", "this session publishes into another dataset"));
        }
        let now = self.base.now();
        leases::set_parent(tx, session, parent.as_ref()).await?;
        self.beat(tx, session, 0, now).await?;
        (upload.parent, upload.expires_at) = (parent, now.plus_seconds(LEASE_SECONDS));
        Ok(upload)
    }
}

/// The refusal of what a quota does not admit.
pub(super) fn over_quota(what: &str, over: leases::OverQuota) -> ServiceError {
    ServiceError::Exhausted {
        code: ErrorCode::QUOTA_EXCEEDED,
        sentence: format!("{} of {} bytes {what} are used, so this does not fit", over.used_bytes, over.limit_bytes),
        hint: "delete what is no longer needed, or ask an admin of this node for a larger quota".to_owned(),
        retry_after: None,
    }
}

/// The topics, with what lies below each, that a narrowed session reaches; `None` when it reaches all that its user
/// may read.
fn readable_topics(call: &Call) -> Option<Vec<String>> {
    let Scopes::Only(scopes) = &call.actor.scopes else { return None };
    let mut topics = Vec::with_capacity(scopes.len());
    for scope in scopes {
        match scope {
            Scope::Read | Scope::Publish | Scope::Admin => return None,
            Scope::TopicRead(name) | Scope::TopicWrite(name) => topics.push(name.clone()),
        }
    }
    Some(topics)
}

fn check_count(field: &str, hashes: &[Hash]) -> Result<(), ServiceError> {
    match hashes.len() {
        0..=MAX_HASHES => Ok(()),
        many => Err(ServiceError::invalid(field, format!("{many} hashes; ask for at most {MAX_HASHES} at once"))),
    }
}

fn missing(wanted: &[Hash], known: Vec<Hash>) -> Vec<u32> {
    let known: std::collections::HashSet<Hash> = known.into_iter().collect();
    let positions = (0_u32..).zip(wanted).filter(|(_, hash)| !known.contains(hash));
    positions.map(|(position, _)| position).collect()
}
