//! Reading the log in its order: for verification, proofs and export.

use bib_core::Hash;
use futures::Stream;
use futures::StreamExt as _;
use sqlx::postgres::PgRow;
use sqlx::{FromRow, Row as _};
use time::OffsetDateTime;
use uuid::Uuid;

use crate::row::{hash, signed};
use crate::statement::{Class, Statement};
use crate::{Result, Session, Tx};

/// The columns of a [`LoggedRow`], of `bib.audit_seal s`, `bib.audit_entry e` and `bib.audit_detail d`.
macro_rules! select_logged {
    ($from:literal) => {
        concat!(
            "SELECT s.epoch, s.seq, s.entry_id, s.digest, s.head,
            e.id, e.time, e.body, e.node, e.actor, e.via, e.action, e.target, e.result, e.operation, e.job,
            d.salt, d.details
     ",
            $from
        )
    };
}
pub(super) use select_logged;

// Both outer joins: a seal whose entry is gone, and an entry that was never sealed, are both findings.
static ROWS: Statement = Statement::new(
    Class::Select,
    "audit_seal",
    select_logged!(
        "FROM bib.audit_seal s
     LEFT JOIN bib.audit_entry e ON e.id = s.entry_id AND e.time = s.entry_time
     LEFT JOIN bib.audit_detail d ON d.id = s.entry_id AND d.time = s.entry_time
     ORDER BY s.epoch, s.seq"
    ),
);

static FIND_SEALED: Statement = Statement::new(
    Class::Select,
    "audit_seal",
    select_logged!(
        "FROM bib.audit_seal s
     LEFT JOIN bib.audit_entry e ON e.id = s.entry_id AND e.time = s.entry_time
     LEFT JOIN bib.audit_detail d ON d.id = s.entry_id AND d.time = s.entry_time
     WHERE s.epoch = $1 AND s.seq = $2"
    ),
);

static UNSEALED: Statement = Statement::new(
    Class::Select,
    "audit_entry",
    "SELECT e.id, e.time, e.body, e.node, e.actor, e.via, e.action, e.target, e.result, e.operation, e.job,
            q.id IS NOT NULL AS queued
     FROM bib.audit_entry e
     LEFT JOIN bib.audit_seal s ON s.entry_id = e.id
     LEFT JOIN bib.audit_unsealed q ON q.id = e.id
     WHERE s.entry_id IS NULL
     ORDER BY e.time, e.id
     LIMIT $1",
);

static QUEUED_WITHOUT_ENTRY: Statement = Statement::new(
    Class::Select,
    "audit_unsealed",
    "SELECT q.id FROM bib.audit_unsealed q
     LEFT JOIN bib.audit_entry e ON e.id = q.id AND e.time = q.time
     WHERE e.id IS NULL ORDER BY q.n LIMIT $1",
);

static DIGESTS: Statement = Statement::new(
    Class::Select,
    "audit_seal",
    "SELECT digest FROM bib.audit_seal
     WHERE epoch = $1 AND seq > $2 AND seq <= $3
     ORDER BY seq",
);

static CHECKPOINTS: Statement =
    Statement::new(Class::Select, "audit_checkpoint", "SELECT note FROM bib.audit_checkpoint ORDER BY epoch, size");

static NEWEST_CHECKPOINT: Statement = Statement::new(
    Class::Select,
    "audit_checkpoint",
    "SELECT note FROM bib.audit_checkpoint ORDER BY epoch DESC, size DESC LIMIT 1",
);

static COUNT: Statement = Statement::new(
    Class::Select,
    "audit_seal",
    "SELECT count(*)::bigint, (SELECT count(*) FROM bib.audit_unsealed)::bigint FROM bib.audit_seal",
);

pub(super) static STATEMENTS: &[&Statement] =
    &[&ROWS, &FIND_SEALED, &UNSEALED, &QUEUED_WITHOUT_ENTRY, &DIGESTS, &CHECKPOINTS, &NEWEST_CHECKPOINT, &COUNT];

/// A seal with what it seals, as the tables hold them.
#[derive(Debug, Clone)]
pub struct LoggedRow {
    /// The epoch.
    pub epoch: i64,
    /// The number.
    pub seq: i64,
    /// The entry that the seal names.
    pub entry_id: Uuid,
    /// The digest that was sealed.
    pub digest: Vec<u8>,
    /// The head after it.
    pub head: Vec<u8>,
    /// The entry's id; `None` when the entry is gone.
    pub id: Option<Uuid>,
    /// Its time column.
    pub time: Option<OffsetDateTime>,
    /// Its body.
    pub body: Option<Vec<u8>>,
    /// Copy of the node.
    pub node: Option<String>,
    /// Copy of the actor.
    pub actor: Option<String>,
    /// Copy of the door.
    pub via: Option<String>,
    /// Copy of the action.
    pub action: Option<String>,
    /// Copy of the target.
    pub target: Option<String>,
    /// Copy of the result.
    pub result: Option<String>,
    /// Copy of the operation.
    pub operation: Option<Uuid>,
    /// Copy of the job.
    pub job: Option<Uuid>,
    /// Salt of the details; `None` when they are gone.
    pub salt: Option<Vec<u8>>,
    /// The details.
    pub details: Option<Vec<u8>>,
}

/// By position, in the order of `ROWS`: a million rows are read this way, and a look-up by name for each of eighteen
/// columns is a third of the time.
impl<'r> FromRow<'r, PgRow> for LoggedRow {
    fn from_row(row: &'r PgRow) -> std::result::Result<Self, sqlx::Error> {
        Ok(Self {
            epoch: row.try_get(0)?,
            seq: row.try_get(1)?,
            entry_id: row.try_get(2)?,
            digest: row.try_get(3)?,
            head: row.try_get(4)?,
            id: row.try_get(5)?,
            time: row.try_get(6)?,
            body: row.try_get(7)?,
            node: row.try_get(8)?,
            actor: row.try_get(9)?,
            via: row.try_get(10)?,
            action: row.try_get(11)?,
            target: row.try_get(12)?,
            result: row.try_get(13)?,
            operation: row.try_get(14)?,
            job: row.try_get(15)?,
            salt: row.try_get(16)?,
            details: row.try_get(17)?,
        })
    }
}

/// How many entries are sealed, and how many wait.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Counted {
    /// Rows of `audit_seal`.
    pub sealed: u64,
    /// Rows of `audit_unsealed`.
    pub waiting: u64,
}

/// Every seal in order, one row at a time.
pub fn rows(tx: &mut Tx) -> impl Stream<Item = Result<LoggedRow>> + Send + '_ {
    ROWS.on(tx).stream()
}

/// One sealed entry.
///
/// # Errors
/// When the database is gone.
pub async fn find_sealed(session: &mut impl Session, epoch: u64, seq: u64) -> Result<Option<LoggedRow>> {
    FIND_SEALED.on(session).bind(signed(epoch)?).bind(signed(seq)?).optional().await
}

/// An entry without a seal.
#[derive(Debug, Clone, FromRow)]
pub struct UnsealedRow {
    /// Its id.
    pub id: Uuid,
    /// Its time column.
    pub time: OffsetDateTime,
    /// Its body.
    pub body: Vec<u8>,
    /// Copy of the node.
    pub node: String,
    /// Copy of the actor.
    pub actor: String,
    /// Copy of the door.
    pub via: String,
    /// Copy of the action.
    pub action: String,
    /// Copy of the target.
    pub target: String,
    /// Copy of the result.
    pub result: String,
    /// Copy of the operation.
    pub operation: Uuid,
    /// Copy of the job.
    pub job: Option<Uuid>,
    /// It stands in the queue. One that does not was smuggled in, or its queue row was taken away.
    pub queued: bool,
}

/// Entries without a seal.
///
/// # Errors
/// When the database is gone.
pub async fn unsealed_entries(session: &mut impl Session, limit: i64) -> Result<Vec<UnsealedRow>> {
    UNSEALED.on(session).bind(limit).all().await
}

/// Ids in the queue whose entry is gone.
///
/// # Errors
/// When the database is gone.
pub async fn queued_without_entry(session: &mut impl Session, limit: i64) -> Result<Vec<Uuid>> {
    let rows: Vec<(Uuid,)> = QUEUED_WITHOUT_ENTRY.on(session).bind(limit).all().await?;
    Ok(rows.into_iter().map(|(id,)| id).collect())
}

/// The sealed digests after number `after` up to number `upto`, in order.
///
/// # Errors
/// When the database is gone.
pub async fn digests(session: &mut impl Session, epoch: u64, after: u64, upto: u64) -> Result<Vec<Hash>> {
    let mut rows =
        std::pin::pin!(DIGESTS.on(session).bind(signed(epoch)?).bind(signed(after)?).bind(signed(upto)?).stream());
    let mut digests = Vec::new();
    while let Some(row) = rows.next().await {
        let (bytes,): (Vec<u8>,) = row?;
        digests.push(hash("audit_seal", "digest", epoch, &bytes)?);
    }
    Ok(digests)
}

/// Every checkpoint in the table, as signed notes, oldest first.
///
/// # Errors
/// When the database is gone.
pub async fn checkpoints(session: &mut impl Session) -> Result<Vec<String>> {
    let rows: Vec<(String,)> = CHECKPOINTS.on(session).all().await?;
    Ok(rows.into_iter().map(|(note,)| note).collect())
}

/// The newest checkpoint in the table.
///
/// # Errors
/// When the database is gone.
pub async fn newest_checkpoint(session: &mut impl Session) -> Result<Option<String>> {
    let row: Option<(String,)> = NEWEST_CHECKPOINT.on(session).optional().await?;
    Ok(row.map(|(note,)| note))
}

/// Counts the log. Costs a scan: for verification and export, which read it all anyway.
///
/// # Errors
/// When the database is gone.
pub async fn count(session: &mut impl Session) -> Result<Counted> {
    let (sealed, waiting): (i64, i64) = COUNT.on(session).one().await?;
    Ok(Counted { sealed: sealed.unsigned_abs(), waiting: waiting.unsigned_abs() })
}
