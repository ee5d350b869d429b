//! Topics, and what a user is to each of them.

use bib_core::access::{GrantLevel, Visibility};
use bib_core::{Nonce, PeerId, Timestamp, TopicId, UserId};
use sqlx::FromRow;
use time::OffsetDateTime;
use uuid::Uuid;

use crate::records::StoredRecord;
use crate::row::{level, nonce, parsed};
use crate::statement::{Class, Statement};
use crate::{Result, Session, Tx};

/// A topic.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Topic {
    /// Bound to the origin and the nonce.
    pub id: TopicId,
    /// Full name.
    pub name: String,
    /// The topic above it.
    pub parent: Option<TopicId>,
    /// The node it belongs to.
    pub owner: PeerId,
    /// The node that made it: another one than the owner after a succession.
    pub origin: PeerId,
    /// The random part of its id.
    pub nonce: Nonce,
    /// For people.
    pub title: String,
    /// For people.
    pub description: String,
    /// Who may see it.
    pub visibility: Visibility,
    /// SPDX expression, or empty.
    pub default_license: String,
    /// The user who made it; `None` once that user is gone.
    pub created_by: Option<UserId>,
    /// When.
    pub created_at: Timestamp,
    /// Last change.
    pub updated_at: Timestamp,
}

/// A topic with what the asking user is to it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SeenTopic {
    /// The topic.
    pub topic: Topic,
    /// The highest grant of any of the user's keys that has not expired.
    pub grant: Option<GrantLevel>,
    /// The user made it.
    pub is_creator: bool,
    /// Live datasets directly in it.
    pub datasets: u64,
}

/// Changes to a topic; `None` leaves a field as it is.
#[derive(Debug, Clone, Default)]
pub struct TopicChange {
    /// For people.
    pub title: Option<String>,
    /// For people.
    pub description: Option<String>,
    /// Who may see it.
    pub visibility: Option<Visibility>,
    /// SPDX expression, or empty for none.
    pub default_license: Option<String>,
}

// The columns, and the caller's standing ($1 user, $2 now), stand in every reading statement.
macro_rules! select_topic {
    ($($rest:literal)*) => {
        concat!(
            "SELECT t.id, t.name, t.parent_id, t.owner, coalesce(t.origin, t.owner) AS origin, t.nonce, t.title, t.description, t.visibility,
                    t.default_license, t.created_by, t.created_at, t.updated_at,
                    coalesce(t.created_by = $1, false) AS is_creator,
                    (SELECT max(CASE g.level WHEN 'admin' THEN 3 WHEN 'write' THEN 2 ELSE 1 END)
                     FROM bib.topic_grants g
                     JOIN bib.user_keys k ON k.fingerprint = g.subject AND k.removed_at IS NULL
                     WHERE g.topic_id = t.id AND g.expires_at > $2 AND k.user_id = $1) AS grant_rank,
                    (SELECT count(*) FROM bib.datasets d WHERE d.topic_id = t.id AND d.deleted_at IS NULL) AS datasets
             FROM bib.topics t ",
            $($rest),*
        )
    };
}

static FIND_BY_NAME: Statement = Statement::new(
    Class::Select,
    "topics",
    select_topic!("WHERE t.name = $3 AND t.owner = $4 AND t.deleted_at IS NULL"),
);

static FIND_BY_ID: Statement =
    Statement::new(Class::Select, "topics", select_topic!("WHERE t.id = $3 AND t.deleted_at IS NULL"));

// $3: an admin sees every topic. $4, $5: below this one. $6: after this name.
static LIST: Statement = Statement::new(
    Class::Select,
    "topics",
    select_topic!(
        "WHERE t.deleted_at IS NULL
           AND ($3 OR t.visibility <> 'private' OR t.created_by = $1 OR EXISTS (
               SELECT 1 FROM bib.topic_grants g
               JOIN bib.user_keys k ON k.fingerprint = g.subject AND k.removed_at IS NULL
               WHERE g.topic_id = t.id AND g.expires_at > $2 AND k.user_id = $1))
           AND ($4 = '' OR (t.name >= $4 || '/' AND t.name < $4 || '0'))
           AND t.name > $5
         ORDER BY t.name
         LIMIT $6"
    ),
);

// One round trip: the name is claimed, the topic made and its record kept, or nothing is.
static INSERT: Statement = Statement::new(
    Class::Insert,
    "topics",
    "WITH claimed AS (
         INSERT INTO bib.names (owner, name, kind, id) VALUES ($2, $3, 'topic', $1)
     ), made AS (
         INSERT INTO bib.topics (id, owner, name, parent_id, nonce, title, description, visibility, default_license,
                                 created_by, created_at, updated_at)
         VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $11)
     )
     INSERT INTO bib.records (kind, id, tenure, epoch, n, body, key, sig, created_at)
     VALUES ('topic', $1::text, $12, $13, $14, $15, $16, $17, $11)",
);

static UPDATE: Statement = Statement::new(
    Class::Update,
    "topics",
    "UPDATE bib.topics
     SET title = coalesce($2, title), description = coalesce($3, description), visibility = coalesce($4, visibility),
         default_license = coalesce($5, default_license), updated_at = $6
     WHERE id = $1 AND deleted_at IS NULL",
);

static LOCK: Statement = Statement::new(
    Class::Select,
    "topics",
    "SELECT id FROM bib.topics WHERE id = $1 AND deleted_at IS NULL FOR UPDATE",
);

static ORIGIN: Statement =
    Statement::new(Class::Select, "topics", "SELECT coalesce(origin, owner) FROM bib.topics WHERE id = $1");

static IN_USE: Statement = Statement::new(
    Class::Select,
    "topics",
    "SELECT (SELECT count(*) FROM bib.datasets WHERE topic_id = $1 AND deleted_at IS NULL),
            (SELECT count(*) FROM bib.topics WHERE parent_id = $1 AND deleted_at IS NULL)",
);

static DELETE: Statement = Statement::new(
    Class::Update,
    "topics",
    "WITH freed AS (
         DELETE FROM bib.names WHERE kind = 'topic' AND id = $1
     ), closed AS (
         DELETE FROM bib.topic_grants WHERE topic_id = $1
     )
     UPDATE bib.topics SET deleted_at = $2, updated_at = $2 WHERE id = $1 AND deleted_at IS NULL",
);

static COUNT: Statement =
    Statement::new(Class::Select, "topics", "SELECT count(*) FROM bib.topics WHERE deleted_at IS NULL");

pub(crate) static STATEMENTS: &[&Statement] =
    &[&FIND_BY_NAME, &FIND_BY_ID, &LIST, &INSERT, &UPDATE, &LOCK, &ORIGIN, &IN_USE, &DELETE, &COUNT];

#[derive(FromRow)]
struct TopicRow {
    id: Uuid,
    name: String,
    parent_id: Option<Uuid>,
    owner: String,
    origin: String,
    nonce: Vec<u8>,
    title: String,
    description: String,
    visibility: String,
    default_license: String,
    created_by: Option<Uuid>,
    created_at: OffsetDateTime,
    updated_at: OffsetDateTime,
    is_creator: bool,
    grant_rank: Option<i32>,
    datasets: i64,
}

impl TopicRow {
    fn into_seen(self) -> Result<SeenTopic> {
        let id = self.id;
        Ok(SeenTopic {
            topic: Topic {
                id: TopicId::from_uuid(id),
                name: self.name,
                parent: self.parent_id.map(TopicId::from_uuid),
                owner: parsed("topics", "owner", id, &self.owner)?,
                origin: parsed("topics", "origin", id, &self.origin)?,
                nonce: nonce("topics", id, &self.nonce)?,
                title: self.title,
                description: self.description,
                visibility: parsed("topics", "visibility", id, &self.visibility)?,
                default_license: self.default_license,
                created_by: self.created_by.map(UserId::from_uuid),
                created_at: self.created_at.into(),
                updated_at: self.updated_at.into(),
            },
            grant: level(self.grant_rank),
            is_creator: self.is_creator,
            datasets: self.datasets.unsigned_abs(),
        })
    }
}

/// The live topic of this full name that `owner` has, with what `user` is to it.
///
/// # Errors
/// When the database is gone or the row is nonsense.
pub async fn find_by_name(
    session: &mut impl Session,
    user: UserId,
    now: Timestamp,
    name: &str,
    owner: &PeerId,
) -> Result<Option<SeenTopic>> {
    let run = FIND_BY_NAME.on(session).bind(user.as_uuid()).bind(now.to_offset()).bind(name).bind(owner.to_string());
    run.optional::<TopicRow>().await?.map(TopicRow::into_seen).transpose()
}

/// The live topic with this id.
///
/// # Errors
/// When the database is gone or the row is nonsense.
pub async fn find(session: &mut impl Session, user: UserId, now: Timestamp, id: TopicId) -> Result<Option<SeenTopic>> {
    let run = FIND_BY_ID.on(session).bind(user.as_uuid()).bind(now.to_offset()).bind(id.as_uuid());
    run.optional::<TopicRow>().await?.map(TopicRow::into_seen).transpose()
}

/// Which topics to list.
#[derive(Debug, Clone, Default)]
pub struct TopicFilter {
    /// Every topic, whoever may see it: for admins of the node.
    pub all: bool,
    /// Only topics below this one; empty for all.
    pub under: String,
    /// Names after this one.
    pub after: String,
    /// Rows, at most.
    pub limit: u32,
}

/// A page of the topics that the user may see, by name.
///
/// # Errors
/// When the database is gone or a row is nonsense.
pub async fn list(
    session: &mut impl Session,
    user: UserId,
    now: Timestamp,
    filter: &TopicFilter,
) -> Result<Vec<SeenTopic>> {
    let run = LIST.on(session).bind(user.as_uuid()).bind(now.to_offset()).bind(filter.all);
    let rows: Vec<TopicRow> = run.bind(&filter.under).bind(&filter.after).bind(i64::from(filter.limit)).all().await?;
    rows.into_iter().map(TopicRow::into_seen).collect()
}

/// Makes a topic, claims its name and keeps its record.
///
/// # Errors
/// `Conflict` on `names_pkey` when a topic or dataset has that name.
pub async fn insert(tx: &mut Tx, topic: &Topic, record: &StoredRecord) -> Result<()> {
    INSERT
        .on(tx)
        .bind(topic.id.as_uuid())
        .bind(topic.owner.to_string())
        .bind(&topic.name)
        .bind(topic.parent.map(|parent| parent.as_uuid()))
        .bind(&topic.nonce.as_bytes()[..])
        .bind(&topic.title)
        .bind(&topic.description)
        .bind(topic.visibility.as_str())
        .bind(&topic.default_license)
        .bind(topic.created_by.map(|user| user.as_uuid()))
        .bind(topic.created_at.to_offset())
        .bind(record.tenure)
        .bind(record.epoch)
        .bind(record.n)
        .bind(&record.body)
        .bind(&record.key)
        .bind(&record.sig)
        .execute_one()
        .await
}

/// Changes a topic.
///
/// # Errors
/// When it is gone.
pub async fn update(tx: &mut Tx, id: TopicId, change: &TopicChange, now: Timestamp) -> Result<()> {
    UPDATE
        .on(tx)
        .bind(id.as_uuid())
        .bind(&change.title)
        .bind(&change.description)
        .bind(change.visibility.map(|v| v.as_str()))
        .bind(&change.default_license)
        .bind(now.to_offset())
        .execute_one()
        .await
}

/// The node that made a topic, deleted or not.
///
/// # Errors
/// When there is no such topic, the database is gone or the row is nonsense.
pub async fn load_origin(session: &mut impl Session, id: TopicId) -> Result<PeerId> {
    let (origin,): (String,) = ORIGIN.on(session).bind(id.as_uuid()).one().await?;
    parsed("topics", "origin", id.as_uuid(), &origin)
}

/// Locks a topic until the transaction ends, against changes and deletion. False when it is gone.
///
/// # Errors
/// When the database is gone.
pub async fn lock(tx: &mut Tx, id: TopicId) -> Result<bool> {
    let row: Option<(Uuid,)> = LOCK.on(tx).bind(id.as_uuid()).optional().await?;
    Ok(row.is_some())
}

/// How many live datasets and topics lie directly in it.
///
/// # Errors
/// When the database is gone.
pub async fn in_use(tx: &mut Tx, id: TopicId) -> Result<(u64, u64)> {
    let (datasets, topics): (i64, i64) = IN_USE.on(tx).bind(id.as_uuid()).one().await?;
    Ok((datasets.unsigned_abs(), topics.unsigned_abs()))
}

/// Hides a topic, frees its name and ends its grants.
///
/// # Errors
/// When it is gone already.
pub async fn delete(tx: &mut Tx, id: TopicId, now: Timestamp) -> Result<()> {
    DELETE.on(tx).bind(id.as_uuid()).bind(now.to_offset()).execute_one().await
}

/// Live topics, counted.
///
/// # Errors
/// When the database is gone.
pub async fn count(session: &mut impl Session) -> Result<u64> {
    let (count,): (i64,) = COUNT.on(session).one().await?;
    Ok(count.unsigned_abs())
}
