//! Grants on topics: who may read, write or administer, for at most 90 days at a time; the daemon renews those that
//! were given for the longest time.

use bib_core::access::{GrantLevel, Verb};
use bib_core::grant::{Grant, GrantState, MAX_GRANT_SECONDS, Subject};
use bib_core::record::{Body, Kind};
use bibd_catalog::grants::{self, TopicGrant};
use bibd_catalog::topics::SeenTopic;
use bibd_catalog::{Tx, records, topics, users};
use serde_json::json;

use super::base::{About, Base};
use super::error::ServiceError;
use super::journal::Act;
use super::topic::TopicUseCases;
use crate::actor::Call;

/// Grants that end within this many seconds are renewed.
const RENEW_BEFORE_SECONDS: i64 = 14 * 24 * 60 * 60;

/// Grants renewed in one round.
const RENEW_AT_ONCE: u32 = 256;

/// The use cases of grants.
#[derive(Debug, Clone)]
pub struct GrantUseCases {
    base: Base,
    topics: TopicUseCases,
}

impl GrantUseCases {
    /// Over the node.
    #[must_use]
    pub fn new(base: Base, topics: TopicUseCases) -> Self {
        Self { base, topics }
    }

    /// Gives a grant, or replaces the one there is. A user's name stands for each of the user's keys; the answer is
    /// the grant of the first.
    ///
    /// # Errors
    /// When the caller may not, or nobody is meant.
    pub async fn grant(
        &self,
        call: &Call,
        topic: &str,
        subject: &str,
        level: GrantLevel,
        seconds: u64,
    ) -> Result<TopicGrant, ServiceError> {
        let seconds = match i64::try_from(seconds) {
            Ok(0) => MAX_GRANT_SECONDS,
            Ok(seconds) if seconds <= MAX_GRANT_SECONDS => seconds,
            _ => return Err(ServiceError::invalid("expires_in_seconds", "a grant lasts at most 90 days")),
        };
        let mut tx = self.base.begin(call, "grant").await?;
        let seen = self.topics.load(&mut tx, call, topic, Verb::GrantChange).await?;
        let subjects = self.subjects(&mut tx, subject).await?;
        let now = self.base.now();
        let mut given = Vec::new();
        for who in &subjects {
            let grant = TopicGrant {
                topic: seen.topic.id,
                subject: who.to_string(),
                user: String::new(),
                level,
                granted_by: call.actor.name.clone(),
                created_at: now,
                expires_at: now.plus_seconds(seconds),
            };
            self.put(&mut tx, &grant, GrantState::Active).await?;
            given.push(grant);
        }
        let details = json!({"topic": seen.topic.name, "subject": subject, "level": level, "keys": given.len()});
        let act = Act::new("grant.set", format!("topic:{}", seen.topic.id), details);
        self.base.journal.commit(tx, call, act).await?;
        given.into_iter().next().ok_or_else(|| ServiceError::not_found("user", subject))
    }

    /// Takes a grant back. What was read before stays where it was copied to.
    ///
    /// # Errors
    /// When there is no such grant, or the caller may not.
    pub async fn revoke(&self, call: &Call, topic: &str, subject: &str) -> Result<(), ServiceError> {
        let mut tx = self.base.begin(call, "grant").await?;
        let seen = self.topics.load(&mut tx, call, topic, Verb::GrantChange).await?;
        let mut revoked = 0;
        for who in self.subjects(&mut tx, subject).await? {
            if !grants::delete(&mut tx, seen.topic.id, &who.to_string()).await? {
                continue;
            }
            let now = self.base.now();
            let grant = TopicGrant {
                topic: seen.topic.id,
                subject: who.to_string(),
                user: String::new(),
                level: GrantLevel::Read,
                granted_by: call.actor.name.clone(),
                created_at: now,
                // The format wants an end after the record's time; the state says that nothing is granted until then.
                expires_at: now.plus_seconds(1),
            };
            self.sign(&mut tx, &grant, GrantState::Revoked).await?;
            revoked += 1;
        }
        if revoked == 0 {
            return Err(ServiceError::not_found("grant", format!("{} on {}", subject, seen.topic.name)));
        }
        let details = json!({"topic": seen.topic.name, "subject": subject});
        let act = Act::new("grant.remove", format!("topic:{}", seen.topic.id), details);
        self.base.journal.commit(tx, call, act).await?;
        Ok(())
    }

    /// A page of a topic's grants, by subject.
    ///
    /// # Errors
    /// When the caller may not see them.
    pub async fn list(
        &self,
        call: &Call,
        topic: &str,
        after: &str,
        limit: u32,
    ) -> Result<(SeenTopic, Vec<TopicGrant>), ServiceError> {
        let mut session = self.base.db.read().await?;
        let seen = self.topics.load(&mut session, call, topic, Verb::GrantRead).await?;
        let list = grants::list(&mut session, seen.topic.id, after, limit).await?;
        Ok((seen, list))
    }

    /// Renews the grants that were given for the longest time and end soon. A reconciler: run it as often as you like.
    ///
    /// # Errors
    /// When the database is gone.
    pub async fn renew(&self) -> Result<usize, ServiceError> {
        let call = self.base.internal_call("grants");
        let now = self.base.now();
        let mut session = self.base.db.read().await?;
        let due = grants::expiring(&mut session, now.plus_seconds(RENEW_BEFORE_SECONDS), RENEW_AT_ONCE).await?;
        drop(session);
        let mut renewed = 0;
        for mut grant in due.into_iter().filter(|grant| grant.expires_at > now) {
            let mut tx = self.base.begin(&call, "grants").await?;
            if !topics::lock(&mut tx, grant.topic).await? {
                continue;
            }
            let expires_at = now.plus_seconds(MAX_GRANT_SECONDS);
            // It may have been revoked since it was looked up, and must not come back.
            if !grants::renew(&mut tx, &grant, now, expires_at).await? {
                continue;
            }
            (grant.created_at, grant.expires_at) = (now, expires_at);
            self.sign(&mut tx, &grant, GrantState::Active).await?;
            let details = json!({"subject": grant.subject, "level": grant.level});
            let act = Act::new("grant.renew", format!("topic:{}", grant.topic), details);
            self.base.journal.commit(tx, &call, act).await?;
            renewed += 1;
        }
        Ok(renewed)
    }

    async fn put(&self, tx: &mut Tx, grant: &TopicGrant, state: GrantState) -> Result<(), ServiceError> {
        grants::put(tx, grant).await?;
        self.sign(tx, grant, state).await
    }

    /// The signed grant that travels with the topic.
    async fn sign(&self, tx: &mut Tx, grant: &TopicGrant, state: GrantState) -> Result<(), ServiceError> {
        let subject: Subject = grant.subject.parse().map_err(ServiceError::internal)?;
        let id = format!("{}@{}", grant.topic, grant.subject);
        let make = |revision| {
            Body::Grant(Grant {
                revision,
                time: grant.created_at,
                topic: grant.topic,
                subject,
                level: grant.level,
                expires: grant.expires_at,
                state,
                extra: Default::default(),
            })
        };
        let origin = topics::load_origin(tx, grant.topic).await?;
        let about = About { kind: Kind::Grant, id: &id, origin };
        let record = self.base.sign_next(tx, about, make).await?;
        records::put(tx, "grant", &id, &record, self.base.now()).await?;
        Ok(())
    }

    /// Whom a name, a fingerprint or a peer id means.
    async fn subjects(&self, tx: &mut Tx, subject: &str) -> Result<Vec<Subject>, ServiceError> {
        if let Ok(one) = subject.parse::<Subject>() {
            return Ok(vec![one]);
        }
        let user = users::find_by_name(tx, subject).await?;
        let user = user.ok_or_else(|| ServiceError::not_found("user", subject))?;
        let keys = users::list_keys(tx, &[user.id], false).await?;
        if keys.is_empty() {
            return Err(ServiceError::invalid(
                "subject",
                format!("{subject} has no key yet, and a grant is for a key: `bib user key add {subject} FILE`"),
            ));
        }
        Ok(keys.into_iter().map(|key| Subject::Person(key.fingerprint)).collect())
    }
}
