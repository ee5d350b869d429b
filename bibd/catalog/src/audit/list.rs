//! Listing entries for people: filters, and pages by key.

use bib_core::Timestamp;
use sqlx::FromRow;
use time::OffsetDateTime;
use uuid::Uuid;

use crate::statement::{Class, Statement};
use crate::{Result, Session};

// Two statements instead of one built from parts: the planner sees constants, and no SQL is put together.
// An empty filter parameter matches everything.
static ASCENDING: Statement = Statement::new(
    Class::Select,
    "audit_entry",
    "SELECT e.id, e.time, e.actor, e.via, e.action, e.target, e.result, e.operation, e.job,
            s.epoch, s.seq, s.digest, s.head, d.details
     FROM bib.audit_entry e
     LEFT JOIN bib.audit_seal s ON s.entry_id = e.id
     LEFT JOIN bib.audit_detail d ON d.id = e.id AND d.time = e.time
     WHERE e.time >= $1 AND e.time < $2
       AND ($3::timestamptz IS NULL OR (e.time, e.id) > ($3, $4))
       AND ($5 = '' OR e.actor LIKE '%' || $5 || '%')
       AND ($6 = '' OR starts_with(e.action, $6))
       AND ($7 = '' OR starts_with(e.target, $7))
       AND ($8::uuid IS NULL OR e.operation = $8)
     ORDER BY e.time, e.id
     LIMIT $9",
);

static DESCENDING: Statement = Statement::new(
    Class::Select,
    "audit_entry",
    "SELECT e.id, e.time, e.actor, e.via, e.action, e.target, e.result, e.operation, e.job,
            s.epoch, s.seq, s.digest, s.head, d.details
     FROM bib.audit_entry e
     LEFT JOIN bib.audit_seal s ON s.entry_id = e.id
     LEFT JOIN bib.audit_detail d ON d.id = e.id AND d.time = e.time
     WHERE e.time >= $1 AND e.time < $2
       AND ($3::timestamptz IS NULL OR (e.time, e.id) < ($3, $4))
       AND ($5 = '' OR e.actor LIKE '%' || $5 || '%')
       AND ($6 = '' OR starts_with(e.action, $6))
       AND ($7 = '' OR starts_with(e.target, $7))
       AND ($8::uuid IS NULL OR e.operation = $8)
     ORDER BY e.time DESC, e.id DESC
     LIMIT $9",
);

pub(super) static STATEMENTS: &[&Statement] = &[&ASCENDING, &DESCENDING];

/// Where a page ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Position {
    /// Time of the last entry.
    pub time: Timestamp,
    /// Its id.
    pub id: Uuid,
}

/// Which entries.
#[derive(Debug, Clone)]
pub struct Filter {
    /// From this moment.
    pub since: Timestamp,
    /// Up to before this moment.
    pub until: Timestamp,
    /// A part of the actor; empty for all.
    pub actor: String,
    /// How the action begins; empty for all.
    pub action: String,
    /// How the target begins; empty for all.
    pub target: String,
    /// One operation.
    pub operation: Option<Uuid>,
    /// Newest first.
    pub descending: bool,
    /// Where the page before ended.
    pub after: Option<Position>,
    /// Rows, at most.
    pub limit: u32,
}

impl Default for Filter {
    fn default() -> Self {
        Self {
            since: Timestamp::from_micros(i64::MIN),
            until: Timestamp::from_micros(i64::MAX),
            actor: String::new(),
            action: String::new(),
            target: String::new(),
            operation: None,
            descending: false,
            after: None,
            limit: 100,
        }
    }
}

/// An entry as it is listed.
#[derive(Debug, Clone, FromRow)]
pub struct Listed {
    /// Its id.
    pub id: Uuid,
    /// Its time.
    pub time: OffsetDateTime,
    /// Who.
    pub actor: String,
    /// By which door.
    pub via: String,
    /// What.
    pub action: String,
    /// To what.
    pub target: String,
    /// How it ended.
    pub result: String,
    /// The call.
    pub operation: Uuid,
    /// The job.
    pub job: Option<Uuid>,
    /// The epoch, once sealed.
    pub epoch: Option<i64>,
    /// The number, once sealed.
    pub seq: Option<i64>,
    /// The digest, once sealed.
    pub digest: Option<Vec<u8>>,
    /// The head, once sealed.
    pub head: Option<Vec<u8>>,
    /// The details, unless erased.
    pub details: Option<Vec<u8>>,
}

/// A page of entries in the order of their times.
///
/// # Errors
/// When the database is gone.
pub async fn list(session: &mut impl Session, filter: &Filter) -> Result<Vec<Listed>> {
    let statement = if filter.descending { &DESCENDING } else { &ASCENDING };
    statement
        .on(session)
        .bind(filter.since.to_offset())
        .bind(filter.until.to_offset())
        .bind(filter.after.map(|p| p.time.to_offset()))
        .bind(filter.after.map(|p| p.id))
        .bind(&filter.actor)
        .bind(&filter.action)
        .bind(&filter.target)
        .bind(filter.operation)
        .bind(i64::from(filter.limit))
        .all()
        .await
}
