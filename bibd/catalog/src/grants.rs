//! Grants on topics, as they stand now. Their history is in the records and the audit log.

use bib_core::access::GrantLevel;
use bib_core::{Timestamp, TopicId, UserId};
use sqlx::FromRow;
use time::OffsetDateTime;
use uuid::Uuid;

use crate::row::parsed;
use crate::statement::{Class, Statement};
use crate::{Result, Session, Tx};

static PUT: Statement = Statement::new(
    Class::Insert,
    "topic_grants",
    "INSERT INTO bib.topic_grants (topic_id, subject, level, granted_by, created_at, expires_at)
     VALUES ($1, $2, $3, $4, $5, $6)
     ON CONFLICT (topic_id, subject) DO UPDATE
     SET level = excluded.level, granted_by = excluded.granted_by, created_at = excluded.created_at,
         expires_at = excluded.expires_at",
);

static DELETE: Statement =
    Statement::new(Class::Delete, "topic_grants", "DELETE FROM bib.topic_grants WHERE topic_id = $1 AND subject = $2");

static LIST: Statement = Statement::new(
    Class::Select,
    "topic_grants",
    "SELECT g.topic_id, g.subject, coalesce(u.name, '') AS user_name, g.level, g.granted_by, g.created_at, g.expires_at
     FROM bib.topic_grants g
     LEFT JOIN bib.user_keys k ON k.fingerprint = g.subject AND k.removed_at IS NULL
     LEFT JOIN bib.users u ON u.id = k.user_id
     WHERE g.topic_id = $1 AND g.subject > $2
     ORDER BY g.subject
     LIMIT $3",
);

// What the owner's daemon renews: grants that end soon and were not given for a shorter time on purpose.
static EXPIRING: Statement = Statement::new(
    Class::Select,
    "topic_grants",
    "SELECT g.topic_id, g.subject, '' AS user_name, g.level, g.granted_by, g.created_at, g.expires_at
     FROM bib.topic_grants g
     WHERE g.expires_at < $1 AND g.expires_at - g.created_at >= interval '89 days'
     ORDER BY g.expires_at
     LIMIT $2",
);

// Only the very grant that was found to end soon: one that was taken back or changed meanwhile stays so.
static RENEW: Statement = Statement::new(
    Class::Update,
    "topic_grants",
    "UPDATE bib.topic_grants SET created_at = $3, expires_at = $4
     WHERE topic_id = $1 AND subject = $2 AND level = $5 AND created_at = $6 AND expires_at = $7",
);

static HOLDERS: Statement = Statement::new(
    Class::Select,
    "topic_grants",
    "SELECT DISTINCT k.user_id FROM bib.topic_grants g
     JOIN bib.user_keys k ON k.fingerprint = g.subject AND k.removed_at IS NULL
     WHERE g.topic_id = $1 AND g.expires_at > $2",
);

pub(crate) static STATEMENTS: &[&Statement] = &[&PUT, &DELETE, &LIST, &EXPIRING, &RENEW, &HOLDERS];

/// A grant.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TopicGrant {
    /// On this topic.
    pub topic: TopicId,
    /// A key fingerprint or peer id.
    pub subject: String,
    /// The user whose key it is; empty when nobody's here.
    pub user: String,
    /// What it allows.
    pub level: GrantLevel,
    /// Name of the user who gave it.
    pub granted_by: String,
    /// When.
    pub created_at: Timestamp,
    /// Until when.
    pub expires_at: Timestamp,
}

#[derive(FromRow)]
struct GrantRow {
    topic_id: Uuid,
    subject: String,
    user_name: String,
    level: String,
    granted_by: String,
    created_at: OffsetDateTime,
    expires_at: OffsetDateTime,
}

impl GrantRow {
    fn into_grant(self) -> Result<TopicGrant> {
        Ok(TopicGrant {
            topic: TopicId::from_uuid(self.topic_id),
            level: parsed("topic_grants", "level", &self.subject, &self.level)?,
            subject: self.subject,
            user: self.user_name,
            granted_by: self.granted_by,
            created_at: self.created_at.into(),
            expires_at: self.expires_at.into(),
        })
    }
}

/// Gives or replaces a grant.
///
/// # Errors
/// When the topic is gone or the time is longer than 90 days.
pub async fn put(tx: &mut Tx, grant: &TopicGrant) -> Result<()> {
    let run = PUT.on(tx).bind(grant.topic.as_uuid()).bind(&grant.subject).bind(grant.level.as_str());
    run.bind(&grant.granted_by)
        .bind(grant.created_at.to_offset())
        .bind(grant.expires_at.to_offset())
        .execute_one()
        .await
}

/// Prolongs `before` from `now` until `expires_at`. False when it is no longer there as it was.
///
/// # Errors
/// When the time is longer than 90 days.
pub async fn renew(tx: &mut Tx, before: &TopicGrant, now: Timestamp, expires_at: Timestamp) -> Result<bool> {
    let run = RENEW.on(tx).bind(before.topic.as_uuid()).bind(&before.subject);
    let run = run.bind(now.to_offset()).bind(expires_at.to_offset()).bind(before.level.as_str());
    let rows = run.bind(before.created_at.to_offset()).bind(before.expires_at.to_offset()).execute().await?;
    Ok(rows == 1)
}

/// Takes a grant back. False when there was none.
///
/// # Errors
/// When the database refuses.
pub async fn delete(tx: &mut Tx, topic: TopicId, subject: &str) -> Result<bool> {
    Ok(DELETE.on(tx).bind(topic.as_uuid()).bind(subject).execute().await? == 1)
}

/// The users who hold a grant on a topic.
///
/// # Errors
/// When the database is gone.
pub async fn holders(session: &mut impl Session, topic: TopicId, now: Timestamp) -> Result<Vec<UserId>> {
    let rows: Vec<(Uuid,)> = HOLDERS.on(session).bind(topic.as_uuid()).bind(now.to_offset()).all().await?;
    Ok(rows.into_iter().map(|(user,)| UserId::from_uuid(user)).collect())
}

/// A page of a topic's grants, by subject.
///
/// # Errors
/// When the database is gone.
pub async fn list(session: &mut impl Session, topic: TopicId, after: &str, limit: u32) -> Result<Vec<TopicGrant>> {
    let rows: Vec<GrantRow> = LIST.on(session).bind(topic.as_uuid()).bind(after).bind(i64::from(limit)).all().await?;
    rows.into_iter().map(GrantRow::into_grant).collect()
}

/// Grants that end before `before` and that the daemon renews.
///
/// # Errors
/// When the database is gone.
pub async fn expiring(session: &mut impl Session, before: Timestamp, limit: u32) -> Result<Vec<TopicGrant>> {
    let rows: Vec<GrantRow> = EXPIRING.on(session).bind(before.to_offset()).bind(i64::from(limit)).all().await?;
    rows.into_iter().map(GrantRow::into_grant).collect()
}
