//! Leases: a live row with a heartbeat keeps the chunks and pages of an upload, a transfer or a reader. And the quotas
//! that staging and storing are charged to.

use bib_core::{DatasetId, Hash, SessionId, Timestamp, UserId};
use sqlx::FromRow;
use time::OffsetDateTime;
use uuid::Uuid;

use crate::row::{hash, signed};
use crate::statement::{Class, Statement};
use crate::{Result, Session, Tx};

/// An upload session.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Upload {
    /// Its id.
    pub id: SessionId,
    /// Whose it is.
    pub user: UserId,
    /// What it publishes to.
    pub dataset: DatasetId,
    /// The latest version when it began.
    pub parent: Option<Hash>,
    /// Bytes charged to the user's staging quota.
    pub staged_bytes: u64,
    /// Until when its chunks are kept.
    pub expires_at: Timestamp,
}

/// A use of a quota that the limit does not allow.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct OverQuota {
    /// Bytes allowed.
    pub limit_bytes: u64,
    /// Bytes in use.
    pub used_bytes: u64,
}

static BEGIN: Statement = Statement::new(
    Class::Insert,
    "leases",
    "INSERT INTO bib.leases (id, kind, user_id, dataset_id, parent, created_at, heartbeat_at, expires_at)
     VALUES ($1, 'upload', $2, $3, $4, $5, $5, $6)",
);

static FIND: Statement = Statement::new(
    Class::Select,
    "leases",
    "SELECT id, user_id, dataset_id, parent, staged_bytes, expires_at
     FROM bib.leases WHERE id = $1 AND kind = 'upload' AND user_id = $2 AND expires_at > $3 AND dataset_id IS NOT NULL",
);

static TOUCH: Statement = Statement::new(
    Class::Update,
    "leases",
    "UPDATE bib.leases SET heartbeat_at = $2, expires_at = $3, staged_bytes = staged_bytes + $4 WHERE id = $1",
);

static SET_PARENT: Statement =
    Statement::new(Class::Update, "leases", "UPDATE bib.leases SET parent = $2 WHERE id = $1");

static END: Statement =
    Statement::new(Class::Delete, "leases", "DELETE FROM bib.leases WHERE id = $1 RETURNING user_id, staged_bytes");

static EXPIRED: Statement = Statement::new(
    Class::Select,
    "leases",
    "SELECT id FROM bib.leases WHERE expires_at <= $1 ORDER BY expires_at LIMIT $2",
);

// Admitted in the transaction that stores: the row is locked, so two uploads cannot both take the last byte.
static CHARGE: Statement = Statement::new(
    Class::Insert,
    "quotas",
    "INSERT INTO bib.quotas (subject, kind, limit_bytes, used_bytes, updated_at)
     VALUES ($1, $2, NULL, greatest($4, 0), $5)
     ON CONFLICT (subject, kind) DO UPDATE
     SET used_bytes = greatest(quotas.used_bytes + $4, 0), updated_at = excluded.updated_at
     RETURNING coalesce(limit_bytes, $3::bigint), used_bytes",
);

// $2: one version, or NULL for all of the dataset's. Each is given back once.
static GIVE_BACK: Statement = Statement::new(
    Class::Update,
    "quotas",
    "WITH charged AS (
         SELECT hash, published_by, charged_bytes FROM bib.versions
         WHERE dataset_id = $1 AND (hash = $2 OR $2 IS NULL) AND charged_bytes > 0
         FOR UPDATE
     ), settled AS (
         UPDATE bib.versions v SET charged_bytes = 0 FROM charged WHERE v.hash = charged.hash
     )
     UPDATE bib.quotas q SET used_bytes = greatest(q.used_bytes - share.bytes, 0), updated_at = $3
     FROM (SELECT published_by::text AS subject, sum(charged_bytes)::bigint AS bytes FROM charged GROUP BY 1) share
     WHERE q.kind = 'storage' AND q.subject = share.subject",
);

pub(crate) static STATEMENTS: &[&Statement] =
    &[&BEGIN, &FIND, &TOUCH, &SET_PARENT, &END, &EXPIRED, &CHARGE, &GIVE_BACK];

#[derive(FromRow)]
struct UploadRow {
    id: Uuid,
    user_id: Uuid,
    dataset_id: Uuid,
    parent: Option<Vec<u8>>,
    staged_bytes: i64,
    expires_at: OffsetDateTime,
}

/// Begins an upload session.
///
/// # Errors
/// When the dataset or the user is gone.
pub async fn begin(tx: &mut Tx, upload: &Upload, now: Timestamp) -> Result<()> {
    BEGIN
        .on(tx)
        .bind(upload.id.as_uuid())
        .bind(upload.user.as_uuid())
        .bind(upload.dataset.as_uuid())
        .bind(upload.parent.map(|hash| hash.as_bytes().to_vec()))
        .bind(now.to_offset())
        .bind(upload.expires_at.to_offset())
        .execute_one()
        .await
}

/// The user's live upload session with this id.
///
/// # Errors
/// When the database is gone.
pub async fn find(session: &mut impl Session, id: SessionId, user: UserId, now: Timestamp) -> Result<Option<Upload>> {
    let run = FIND.on(session).bind(id.as_uuid()).bind(user.as_uuid()).bind(now.to_offset());
    let row: Option<UploadRow> = run.optional().await?;
    row.map(|row| {
        Ok(Upload {
            id: SessionId::from_uuid(row.id),
            user: UserId::from_uuid(row.user_id),
            dataset: DatasetId::from_uuid(row.dataset_id),
            parent: row.parent.map(|bytes| hash("leases", "parent", row.id, &bytes)).transpose()?,
            staged_bytes: row.staged_bytes.unsigned_abs(),
            expires_at: row.expires_at.into(),
        })
    })
    .transpose()
}

/// A heartbeat: the session lives until `expires_at`, and holds so many more bytes.
///
/// # Errors
/// When the session is gone.
pub async fn touch(tx: &mut Tx, id: SessionId, added_bytes: u64, now: Timestamp, expires_at: Timestamp) -> Result<()> {
    let run = TOUCH.on(tx).bind(id.as_uuid()).bind(now.to_offset()).bind(expires_at.to_offset());
    run.bind(signed(added_bytes)?).execute_one().await
}

/// Sets the version that a resumed session now builds upon.
///
/// # Errors
/// When the session is gone.
pub async fn set_parent(tx: &mut Tx, id: SessionId, parent: Option<&Hash>) -> Result<()> {
    SET_PARENT.on(tx).bind(id.as_uuid()).bind(parent.map(|hash| hash.as_bytes().to_vec())).execute_one().await
}

/// Ends a session and gives its bytes back to the user's staging quota. False when it was gone.
///
/// # Errors
/// When the database is gone.
pub async fn end(tx: &mut Tx, id: SessionId, now: Timestamp) -> Result<bool> {
    let row: Option<(Uuid, i64)> = END.on(tx).bind(id.as_uuid()).optional().await?;
    let Some((user, staged)) = row else { return Ok(false) };
    if staged > 0 {
        charge(tx, &user.to_string(), "staging", None, -staged, now).await?;
    }
    Ok(true)
}

/// Sessions whose time is over.
///
/// # Errors
/// When the database is gone.
pub async fn expired(session: &mut impl Session, now: Timestamp, limit: u32) -> Result<Vec<SessionId>> {
    let rows: Vec<(Uuid,)> = EXPIRED.on(session).bind(now.to_offset()).bind(i64::from(limit)).all().await?;
    Ok(rows.into_iter().map(|(id,)| SessionId::from_uuid(id)).collect())
}

/// Charges bytes to a quota (or gives them back when negative). `default_limit` holds for subjects without their own.
/// An answer means that the limit would be passed: roll the transaction back.
///
/// # Errors
/// When the database is gone.
pub async fn charge(
    tx: &mut Tx,
    subject: &str,
    kind: &str,
    default_limit: Option<u64>,
    bytes: i64,
    now: Timestamp,
) -> Result<Option<OverQuota>> {
    let limit = default_limit.map(signed).transpose()?;
    let run = CHARGE.on(tx).bind(subject).bind(kind).bind(limit).bind(bytes).bind(now.to_offset());
    let (limit, used): (Option<i64>, i64) = run.one().await?;
    Ok(match limit {
        Some(limit) if bytes > 0 && used > limit => {
            Some(OverQuota { limit_bytes: limit.unsigned_abs(), used_bytes: (used - bytes).unsigned_abs() })
        }
        _ => None,
    })
}

/// Gives back what `version` of a dataset, or every version of it, was charged to the storage quota of who published it.
///
/// # Errors
/// When the database is gone.
pub async fn give_back(tx: &mut Tx, dataset: DatasetId, version: Option<&Hash>, now: Timestamp) -> Result<()> {
    let version = version.map(|hash| hash.as_bytes().to_vec());
    GIVE_BACK.on(tx).bind(dataset.as_uuid()).bind(version).bind(now.to_offset()).execute().await?;
    Ok(())
}
