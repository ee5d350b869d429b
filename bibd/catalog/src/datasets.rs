//! Datasets, and what a user is to the topic that each lies in.

use bib_core::access::{GrantLevel, Visibility};
use bib_core::{DatasetId, Hash, Nonce, PeerId, Timestamp, TopicId, UserId};
use serde_json::Value;
use sqlx::FromRow;
use time::OffsetDateTime;
use uuid::Uuid;

use crate::records::StoredRecord;
use crate::row::{hash, level, nonce, parsed, signed};
use crate::statement::{Class, Statement};
use crate::{Result, Session, Tx};

/// A dataset.
#[derive(Debug, Clone, PartialEq)]
pub struct Dataset {
    /// Bound to the origin and the nonce.
    pub id: DatasetId,
    /// The topic it lies in.
    pub topic: TopicId,
    /// Full name, topic and all.
    pub name: String,
    /// The node it belongs to.
    pub owner: PeerId,
    /// The node that made it: another one than the owner after a succession.
    pub origin: PeerId,
    /// The random part of its id.
    pub nonce: Nonce,
    /// Title of the latest version, or the default of the first.
    pub title: String,
    /// Likewise.
    pub description: String,
    /// Likewise: an SPDX expression, or empty.
    pub license: String,
    /// The DataCite core of the latest version.
    pub metadata: Value,
    /// The latest version.
    pub latest: Option<Hash>,
    /// Live versions.
    pub versions: u64,
    /// The number of the newest version ever.
    pub last_n: u64,
    /// Files of the latest version.
    pub files: u64,
    /// Their size in bytes.
    pub size_bytes: u64,
    /// The user who made it.
    pub created_by: Option<UserId>,
    /// When.
    pub created_at: Timestamp,
    /// Last change.
    pub updated_at: Timestamp,
}

/// A dataset with what the asking user is to its topic.
#[derive(Debug, Clone, PartialEq)]
pub struct SeenDataset {
    /// The dataset.
    pub dataset: Dataset,
    /// Full name of its topic.
    pub topic_name: String,
    /// Who may see the topic.
    pub visibility: Visibility,
    /// The topic's default licence.
    pub default_license: String,
    /// The highest grant of any of the user's keys.
    pub grant: Option<GrantLevel>,
    /// The user made the topic.
    pub is_creator: bool,
}

/// What a publish writes into the dataset's row: the core of the new latest version.
#[derive(Debug, Clone)]
pub struct Latest {
    /// The version.
    pub version: Hash,
    /// Its number.
    pub n: u64,
    /// Title.
    pub title: String,
    /// Description.
    pub description: String,
    /// SPDX expression.
    pub license: String,
    /// DataCite core as an object: `creators`, `keywords`, `funders` ... are copied into columns.
    pub metadata: Value,
    /// Files.
    pub files: u64,
    /// Bytes.
    pub size_bytes: u64,
}

macro_rules! select_dataset {
    ($($rest:literal)*) => {
        concat!(
            "SELECT d.id, d.topic_id, d.name, d.owner, coalesce(d.origin, d.owner) AS origin, d.nonce, d.title, d.description, d.license, d.metadata, d.latest,
                    d.versions, d.last_n, d.files, d.size_bytes, d.created_by, d.created_at, d.updated_at,
                    t.name AS topic_name, t.visibility, t.default_license,
                    coalesce(t.created_by = $1, false) AS is_creator,
                    (SELECT max(CASE g.level WHEN 'admin' THEN 3 WHEN 'write' THEN 2 ELSE 1 END)
                     FROM bib.topic_grants g
                     JOIN bib.user_keys k ON k.fingerprint = g.subject AND k.removed_at IS NULL
                     WHERE g.topic_id = t.id AND g.expires_at > $2 AND k.user_id = $1) AS grant_rank
             FROM bib.datasets d
             JOIN bib.topics t ON t.id = d.topic_id ",
            $($rest),*
        )
    };
}

static FIND_BY_NAME: Statement = Statement::new(
    Class::Select,
    "datasets",
    select_dataset!("WHERE d.name = $3 AND d.owner = $4 AND d.deleted_at IS NULL"),
);

static FIND_BY_ID: Statement =
    Statement::new(Class::Select, "datasets", select_dataset!("WHERE d.id = $3 AND d.deleted_at IS NULL"));

static LIST: Statement = Statement::new(
    Class::Select,
    "datasets",
    select_dataset!(
        "WHERE d.deleted_at IS NULL
           AND ($3 OR t.visibility <> 'private' OR t.created_by = $1 OR EXISTS (
               SELECT 1 FROM bib.topic_grants g
               JOIN bib.user_keys k ON k.fingerprint = g.subject AND k.removed_at IS NULL
               WHERE g.topic_id = t.id AND g.expires_at > $2 AND k.user_id = $1))
           AND ($4 = '' OR (d.name >= $4 || '/' AND d.name < $4 || '0'))
           AND ($5 = '' OR d.words @@ plainto_tsquery('simple', $5))
           AND d.name > $6
         ORDER BY d.name
         LIMIT $7"
    ),
);

static INSERT: Statement = Statement::new(
    Class::Insert,
    "datasets",
    "WITH claimed AS (
         INSERT INTO bib.names (owner, name, kind, id) VALUES ($2, $3, 'dataset', $1)
     ), made AS (
         INSERT INTO bib.datasets (id, owner, name, topic_id, nonce, title, description, license,
                                   created_by, created_at, updated_at)
         VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $10)
     )
     INSERT INTO bib.records (kind, id, tenure, epoch, n, body, key, sig, created_at)
     VALUES ('dataset', $1::text, $11, $12, $13, $14, $15, $16, $10)",
);

static UPDATE: Statement = Statement::new(
    Class::Update,
    "datasets",
    "UPDATE bib.datasets
     SET title = coalesce($2, title), description = coalesce($3, description), license = coalesce($4, license),
         updated_at = $5
     WHERE id = $1 AND deleted_at IS NULL",
);

// The one lock of a publish: versions of a dataset are committed one after another.
static LOCK: Statement = Statement::new(
    Class::Select,
    "datasets",
    "SELECT latest, last_n FROM bib.datasets WHERE id = $1 AND deleted_at IS NULL FOR UPDATE",
);

static SET_LATEST: Statement = Statement::new(
    Class::Update,
    "datasets",
    "UPDATE bib.datasets
     SET latest = $2, last_n = greatest(last_n, $3), versions = versions + $11, title = $4, description = $5,
         license = $6, metadata = $7,
         creators = coalesce($7::jsonb -> 'creators', '[]'), funders = coalesce($7 -> 'funders', '[]'),
         related = coalesce($7 -> 'related', '[]'),
         keywords = ARRAY(SELECT jsonb_array_elements_text(coalesce($7 -> 'keywords', '[]'))),
         publisher = coalesce($7 ->> 'publisher', ''), language = coalesce($7 ->> 'language', ''),
         identifier = coalesce($7 ->> 'identifier', ''),
         files = $8, size_bytes = $9, updated_at = $10
     WHERE id = $1 AND deleted_at IS NULL",
);

static CLEAR_LATEST: Statement = Statement::new(
    Class::Update,
    "datasets",
    "UPDATE bib.datasets SET latest = NULL, versions = 0, files = 0, size_bytes = 0, updated_at = $2
     WHERE id = $1 AND deleted_at IS NULL",
);

static DELETE: Statement = Statement::new(
    Class::Update,
    "datasets",
    "WITH freed AS (
         DELETE FROM bib.names WHERE kind = 'dataset' AND id = $1
     )
     UPDATE bib.datasets SET deleted_at = $2, updated_at = $2, latest = NULL, versions = 0
     WHERE id = $1 AND deleted_at IS NULL",
);

static COUNT: Statement = Statement::new(
    Class::Select,
    "datasets",
    "SELECT count(*), coalesce(sum(versions), 0)::bigint FROM bib.datasets WHERE deleted_at IS NULL",
);

pub(crate) static STATEMENTS: &[&Statement] =
    &[&FIND_BY_NAME, &FIND_BY_ID, &LIST, &INSERT, &UPDATE, &LOCK, &SET_LATEST, &CLEAR_LATEST, &DELETE, &COUNT];

#[derive(FromRow)]
struct DatasetRow {
    id: Uuid,
    topic_id: Uuid,
    name: String,
    owner: String,
    origin: String,
    nonce: Vec<u8>,
    title: String,
    description: String,
    license: String,
    metadata: Value,
    latest: Option<Vec<u8>>,
    versions: i64,
    last_n: i64,
    files: i64,
    size_bytes: i64,
    created_by: Option<Uuid>,
    created_at: OffsetDateTime,
    updated_at: OffsetDateTime,
    topic_name: String,
    visibility: String,
    default_license: String,
    is_creator: bool,
    grant_rank: Option<i32>,
}

impl DatasetRow {
    fn into_seen(self) -> Result<SeenDataset> {
        let id = self.id;
        Ok(SeenDataset {
            topic_name: self.topic_name,
            visibility: parsed("topics", "visibility", self.topic_id, &self.visibility)?,
            default_license: self.default_license,
            grant: level(self.grant_rank),
            is_creator: self.is_creator,
            dataset: Dataset {
                id: DatasetId::from_uuid(id),
                topic: TopicId::from_uuid(self.topic_id),
                name: self.name,
                owner: parsed("datasets", "owner", id, &self.owner)?,
                origin: parsed("datasets", "origin", id, &self.origin)?,
                nonce: nonce("datasets", id, &self.nonce)?,
                title: self.title,
                description: self.description,
                license: self.license,
                metadata: self.metadata,
                latest: self.latest.map(|bytes| hash("datasets", "latest", id, &bytes)).transpose()?,
                versions: self.versions.unsigned_abs(),
                last_n: self.last_n.unsigned_abs(),
                files: self.files.unsigned_abs(),
                size_bytes: self.size_bytes.unsigned_abs(),
                created_by: self.created_by.map(UserId::from_uuid),
                created_at: self.created_at.into(),
                updated_at: self.updated_at.into(),
            },
        })
    }
}

/// The live dataset of this full name that `owner` has.
///
/// # Errors
/// When the database is gone or the row is nonsense.
pub async fn find_by_name(
    session: &mut impl Session,
    user: UserId,
    now: Timestamp,
    name: &str,
    owner: &PeerId,
) -> Result<Option<SeenDataset>> {
    let run = FIND_BY_NAME.on(session).bind(user.as_uuid()).bind(now.to_offset()).bind(name).bind(owner.to_string());
    run.optional::<DatasetRow>().await?.map(DatasetRow::into_seen).transpose()
}

/// The live dataset with this id.
///
/// # Errors
/// When the database is gone or the row is nonsense.
pub async fn find(
    session: &mut impl Session,
    user: UserId,
    now: Timestamp,
    id: DatasetId,
) -> Result<Option<SeenDataset>> {
    let run = FIND_BY_ID.on(session).bind(user.as_uuid()).bind(now.to_offset()).bind(id.as_uuid());
    run.optional::<DatasetRow>().await?.map(DatasetRow::into_seen).transpose()
}

/// Which datasets to list.
#[derive(Debug, Clone, Default)]
pub struct DatasetFilter {
    /// Every dataset, whoever may see it: for admins of the node.
    pub all: bool,
    /// Only in this topic and below; empty for all.
    pub topic: String,
    /// Words that must all occur; empty for all.
    pub text: String,
    /// Names after this one.
    pub after: String,
    /// Rows, at most.
    pub limit: u32,
}

/// A page of the datasets that the user may see, by name.
///
/// # Errors
/// When the database is gone or a row is nonsense.
pub async fn list(
    session: &mut impl Session,
    user: UserId,
    now: Timestamp,
    filter: &DatasetFilter,
) -> Result<Vec<SeenDataset>> {
    let run = LIST.on(session).bind(user.as_uuid()).bind(now.to_offset()).bind(filter.all).bind(&filter.topic);
    let rows: Vec<DatasetRow> = run.bind(&filter.text).bind(&filter.after).bind(i64::from(filter.limit)).all().await?;
    rows.into_iter().map(DatasetRow::into_seen).collect()
}

/// Makes a dataset, claims its name and keeps its record.
///
/// # Errors
/// `Conflict` on `names_pkey` when a topic or dataset has that name.
pub async fn insert(tx: &mut Tx, dataset: &Dataset, record: &StoredRecord) -> Result<()> {
    INSERT
        .on(tx)
        .bind(dataset.id.as_uuid())
        .bind(dataset.owner.to_string())
        .bind(&dataset.name)
        .bind(dataset.topic.as_uuid())
        .bind(&dataset.nonce.as_bytes()[..])
        .bind(&dataset.title)
        .bind(&dataset.description)
        .bind(&dataset.license)
        .bind(dataset.created_by.map(|user| user.as_uuid()))
        .bind(dataset.created_at.to_offset())
        .bind(record.tenure)
        .bind(record.epoch)
        .bind(record.n)
        .bind(&record.body)
        .bind(&record.key)
        .bind(&record.sig)
        .execute_one()
        .await
}

/// Changes the defaults of the next publish; `None` leaves a field as it is.
///
/// # Errors
/// When the dataset is gone.
pub async fn update(
    tx: &mut Tx,
    id: DatasetId,
    title: Option<&str>,
    description: Option<&str>,
    license: Option<&str>,
    now: Timestamp,
) -> Result<()> {
    let run = UPDATE.on(tx).bind(id.as_uuid()).bind(title).bind(description).bind(license);
    run.bind(now.to_offset()).execute_one().await
}

/// Locks a dataset until the transaction ends and says its latest version and last number; `None` when it is gone.
///
/// # Errors
/// When the database is gone.
pub async fn lock(tx: &mut Tx, id: DatasetId) -> Result<Option<(Option<Hash>, u64)>> {
    let row: Option<(Option<Vec<u8>>, i64)> = LOCK.on(tx).bind(id.as_uuid()).optional().await?;
    row.map(|(latest, n)| {
        let latest = latest.map(|bytes| hash("datasets", "latest", id, &bytes)).transpose()?;
        Ok((latest, n.unsigned_abs()))
    })
    .transpose()
}

/// Makes a new version the latest.
///
/// # Errors
/// When the dataset is gone.
pub async fn set_latest(tx: &mut Tx, id: DatasetId, latest: &Latest, now: Timestamp) -> Result<()> {
    put_latest(tx, id, latest, 1, now).await
}

/// Describes a dataset by what is the latest now that a version was withdrawn.
///
/// # Errors
/// When the dataset is gone.
pub async fn fall_back(tx: &mut Tx, id: DatasetId, latest: &Latest, now: Timestamp) -> Result<()> {
    put_latest(tx, id, latest, -1, now).await
}

async fn put_latest(tx: &mut Tx, id: DatasetId, latest: &Latest, added: i64, now: Timestamp) -> Result<()> {
    SET_LATEST
        .on(tx)
        .bind(id.as_uuid())
        .bind(&latest.version.as_bytes()[..])
        .bind(signed(latest.n)?)
        .bind(&latest.title)
        .bind(&latest.description)
        .bind(&latest.license)
        .bind(&latest.metadata)
        .bind(signed(latest.files)?)
        .bind(signed(latest.size_bytes)?)
        .bind(now.to_offset())
        .bind(added)
        .execute_one()
        .await
}

/// No version is left to be the latest. Title and description stay: they are the tombstone's.
///
/// # Errors
/// When the dataset is gone.
pub async fn clear_latest(tx: &mut Tx, id: DatasetId, now: Timestamp) -> Result<()> {
    CLEAR_LATEST.on(tx).bind(id.as_uuid()).bind(now.to_offset()).execute_one().await
}

/// Hides a dataset and frees its name.
///
/// # Errors
/// When it is gone already.
pub async fn delete(tx: &mut Tx, id: DatasetId, now: Timestamp) -> Result<()> {
    DELETE.on(tx).bind(id.as_uuid()).bind(now.to_offset()).execute_one().await
}

/// Live datasets and their versions, counted.
///
/// # Errors
/// When the database is gone.
pub async fn count(session: &mut impl Session) -> Result<(u64, u64)> {
    let (datasets, versions): (i64, i64) = COUNT.on(session).one().await?;
    Ok((datasets.unsigned_abs(), versions.unsigned_abs()))
}
