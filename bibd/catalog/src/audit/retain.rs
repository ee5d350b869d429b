//! Months of the log: which there are, what they hold, and taking one out.

use bib_core::{Hash, Timestamp};
use futures::Stream;
use sqlx::FromRow;
use uuid::Uuid;

use super::follow::Place;
use super::read::{LoggedRow, select_logged};
use crate::row::{hash, signed};
use crate::statement::{Class, Statement};
use crate::{Result, Session, Tx};

static MONTHS: Statement =
    Statement::new(Class::Call, "audit_entry", "SELECT month, attached FROM bib.audit_months() ORDER BY month");

static ROWS_BETWEEN: Statement = Statement::new(
    Class::Select,
    "audit_entry",
    select_logged!(
        "FROM bib.audit_entry e
     JOIN bib.audit_seal s ON s.entry_id = e.id AND s.entry_time = e.time
     LEFT JOIN bib.audit_detail d ON d.id = e.id AND d.time = e.time
     WHERE e.time >= $1 AND e.time < $2
     ORDER BY s.epoch, s.seq"
    ),
);

static LAST_BETWEEN: Statement = Statement::new(
    Class::Select,
    "audit_entry",
    "SELECT s.epoch, s.seq
     FROM bib.audit_entry e
     JOIN bib.audit_seal s ON s.entry_id = e.id AND s.entry_time = e.time
     WHERE e.time >= $1 AND e.time < $2
     ORDER BY s.epoch DESC, s.seq DESC
     LIMIT 1",
);

static END_BEFORE: Statement = Statement::new(
    Class::Select,
    "audit_seal",
    "SELECT epoch, seq, head FROM bib.audit_seal WHERE epoch < $1 ORDER BY epoch DESC, seq DESC LIMIT 1",
);

static DETACHMENTS: Statement = Statement::new(
    Class::Select,
    "audit_entry",
    "SELECT id, target FROM bib.audit_entry
     WHERE action = 'audit.detach' AND result = 'ok' AND starts_with(target, $1)
     ORDER BY id DESC
     LIMIT 1",
);

static DETACH: Statement = Statement::new(Class::Call, "audit_entry", "SELECT bib.audit_detach_month($1)");

static DROP: Statement = Statement::new(Class::Call, "audit_entry", "SELECT bib.audit_drop_month($1, $2)");

pub(super) static STATEMENTS: &[&Statement] =
    &[&MONTHS, &ROWS_BETWEEN, &LAST_BETWEEN, &END_BEFORE, &DETACHMENTS, &DETACH, &DROP];

/// A month that has a table.
#[derive(Debug, Clone, PartialEq, Eq, FromRow)]
pub struct MonthTable {
    /// `2026-05`.
    pub month: String,
    /// It is part of the log. One that is not was taken out and waits to be dropped.
    pub attached: bool,
}

/// The months that have tables, oldest first.
///
/// # Errors
/// When the database is gone.
pub async fn months(session: &mut impl Session) -> Result<Vec<MonthTable>> {
    MONTHS.on(session).all().await
}

/// The sealed entries of this time in the order of the log, one row at a time.
pub fn rows_between(tx: &mut Tx, from: Timestamp, until: Timestamp) -> impl Stream<Item = Result<LoggedRow>> + Send {
    ROWS_BETWEEN.on(tx).bind(from.to_offset()).bind(until.to_offset()).stream()
}

/// The last of them.
///
/// # Errors
/// When the database is gone.
pub async fn last_between(session: &mut impl Session, from: Timestamp, until: Timestamp) -> Result<Option<Place>> {
    let row: Option<(i64, i64)> =
        LAST_BETWEEN.on(session).bind(from.to_offset()).bind(until.to_offset()).optional().await?;
    Ok(row.map(|(epoch, seq)| Place { epoch: epoch.unsigned_abs(), seq: seq.unsigned_abs() }))
}

/// Where the epoch before this one ended, and its head there.
///
/// # Errors
/// When a head is none, or the database is gone.
pub async fn end_before(session: &mut impl Session, epoch: u64) -> Result<Option<(Place, Hash)>> {
    let row: Option<(i64, i64, Vec<u8>)> = END_BEFORE.on(session).bind(signed(epoch)?).optional().await?;
    let Some((epoch, seq, head)) = row else { return Ok(None) };
    let place = Place { epoch: epoch.unsigned_abs(), seq: seq.unsigned_abs() };
    Ok(Some((place, hash("audit_seal", "head", epoch, &head)?)))
}

/// The newest entry about a month that left the log whose target begins so: its id and target.
///
/// # Errors
/// When the database is gone.
pub async fn newest_detachment(session: &mut impl Session, prefix: &str) -> Result<Option<(Uuid, String)>> {
    DETACHMENTS.on(session).bind(prefix).optional().await
}

/// Takes the month of `moment` out of the log; the entry that says so must be in the same transaction already. Runs as
/// the sequencer. False when the month is not part of the log.
///
/// # Errors
/// `Collision` when others were busy with the log for too long: roll back and try again.
pub async fn detach_month(tx: &mut Tx, moment: Timestamp) -> Result<bool> {
    let (gone,): (bool,) = DETACH.on(tx).bind(moment.to_offset()).one().await?;
    Ok(gone)
}

/// Drops what was taken out of the log by the sealed entry `by`. False when nothing was there.
///
/// # Errors
/// When that entry is not sealed, or the database refuses.
pub async fn drop_month(tx: &mut Tx, moment: Timestamp, by: Uuid) -> Result<bool> {
    let (gone,): (bool,) = DROP.on(tx).bind(moment.to_offset()).bind(by).one().await?;
    Ok(gone)
}
