//! Following the log: pages of sealed entries after a position, and how far each reader has come.

use bib_core::Timestamp;
use sqlx::FromRow;

use super::read::{LoggedRow, select_logged};
use crate::row::signed;
use crate::statement::{Class, Statement};
use crate::{Result, Session, Tx};

// The limit is part of the text and the joins are lateral (OFFSET 0 keeps them so): a plan for any values must look up
// two thousand entries, never join the log as a whole. The window counts bytes without fetching what is stored out of
// line, so that a page of large entries ends early instead of filling the memory; its first row is always there.
static PAGE: Statement = Statement::new(
    Class::Select,
    "audit_seal",
    "SELECT epoch, seq, entry_id, digest, head,
            id, time, body, node, actor, via, action, target, result, operation, job,
            salt, details
     FROM (
         SELECT s.epoch, s.seq, s.entry_id, s.digest, s.head,
                e.id, e.time, e.body, e.node, e.actor, e.via, e.action, e.target, e.result, e.operation, e.job,
                d.salt, d.details,
                row_number() OVER in_order AS place,
                sum(coalesce(octet_length(e.body), 0) + coalesce(octet_length(d.details), 0)) OVER in_order AS bytes
         FROM (
             SELECT epoch, seq, entry_id, entry_time, digest, head
             FROM bib.audit_seal
             WHERE (epoch, seq) > ($1, $2)
             ORDER BY epoch, seq
             LIMIT 2000
         ) s
         LEFT JOIN LATERAL (
             SELECT id, time, body, node, actor, via, action, target, result, operation, job
             FROM bib.audit_entry
             WHERE id = s.entry_id AND time = s.entry_time
             OFFSET 0
         ) e ON true
         LEFT JOIN LATERAL (
             SELECT salt, details
             FROM bib.audit_detail
             WHERE id = s.entry_id AND time = s.entry_time
             OFFSET 0
         ) d ON true
         WINDOW in_order AS (ORDER BY s.epoch, s.seq ROWS UNBOUNDED PRECEDING)
     ) page
     WHERE bytes <= $3 OR place = 1
     ORDER BY epoch, seq",
);

// By the index of alerts alone.
static ALERTS: Statement = Statement::new(
    Class::Select,
    "audit_entry",
    select_logged!(
        "FROM bib.audit_entry e
     JOIN bib.audit_seal s ON s.entry_id = e.id AND s.entry_time = e.time
     LEFT JOIN bib.audit_detail d ON d.id = e.id AND d.time = e.time
     WHERE e.action = 'audit.alert' AND (s.epoch, s.seq) > ($1, $2)
     ORDER BY s.epoch, s.seq
     LIMIT 100"
    ),
);

static FIND_READER: Statement =
    Statement::new(Class::Select, "audit_reader", "SELECT epoch, seq FROM bib.audit_reader WHERE name = $1");

static SAVE_READER: Statement = Statement::new(
    Class::Insert,
    "audit_reader",
    "INSERT INTO bib.audit_reader (name, epoch, seq, created_at, updated_at) VALUES ($1, $2, $3, $4, $4)
     ON CONFLICT (name) DO UPDATE SET epoch = excluded.epoch, seq = excluded.seq, updated_at = excluded.updated_at",
);

pub(super) static STATEMENTS: &[&Statement] = &[&PAGE, &ALERTS, &FIND_READER, &SAVE_READER];

/// The most entries of a page, as its statement says.
pub const PAGE_ROWS: usize = 2000;

/// A place in the log: after the entry with this number. The beginning is `(0, 0)`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Place {
    /// The epoch.
    pub epoch: u64,
    /// The number of the last entry that was read.
    pub seq: u64,
}

/// The sealed entries after `after` in order: at most [`PAGE_ROWS`], and `bytes` of bodies and details unless the first
/// entry alone is larger.
///
/// # Errors
/// When the database is gone.
pub async fn page(session: &mut impl Session, after: Place, bytes: u64) -> Result<Vec<LoggedRow>> {
    let run = PAGE.on(session).bind(signed(after.epoch)?).bind(signed(after.seq)?);
    run.bind(signed(bytes)?).all().await
}

/// The next sealed alerts after `after`, in order, at most 100.
///
/// # Errors
/// When the database is gone.
pub async fn alerts(session: &mut impl Session, after: Place) -> Result<Vec<LoggedRow>> {
    ALERTS.on(session).bind(signed(after.epoch)?).bind(signed(after.seq)?).all().await
}

#[derive(FromRow)]
struct PlaceRow {
    epoch: i64,
    seq: i64,
}

/// How far this reader has come.
///
/// # Errors
/// When the database is gone.
pub async fn find_reader(session: &mut impl Session, name: &str) -> Result<Option<Place>> {
    let row: Option<PlaceRow> = FIND_READER.on(session).bind(name).optional().await?;
    Ok(row.map(|row| Place { epoch: row.epoch.unsigned_abs(), seq: row.seq.unsigned_abs() }))
}

/// Remembers how far a reader has come.
///
/// # Errors
/// When the database refuses.
pub async fn save_reader(tx: &mut Tx, name: &str, place: Place, now: Timestamp) -> Result<()> {
    let run = SAVE_READER.on(tx).bind(name).bind(signed(place.epoch)?).bind(signed(place.seq)?);
    run.bind(now.to_offset()).execute_one().await
}
