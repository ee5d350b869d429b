//! The audit log's rows: entries with their acts, seals by the one sequencer, checkpoints, reading and erasing.
//!
//! What the bytes mean is `bibd-audit`'s. Here they are stored and fetched, never interpreted.

mod follow;
mod list;
mod read;
mod retain;
mod seal;

pub use follow::{PAGE_ROWS, Place, alerts, find_reader, page, save_reader};
pub use list::{Filter, Listed, Position, list};
pub use read::{
    Counted, LoggedRow, UnsealedRow, checkpoints, count, digests, find_sealed, newest_checkpoint, queued_without_entry,
    rows, unsealed_entries,
};
pub use retain::{
    MonthTable, detach_month, drop_month, end_before, last_between, months, newest_detachment, rows_between,
};
pub use seal::{insert_checkpoint, load_heads, make_block, seal_next};

use bib_core::Timestamp;
use bibd_audit::entry::Entry;
use uuid::Uuid;

use crate::statement::{Class, Statement};
use crate::{Result, Tx};

// One round trip for both rows: the act waits for this.
static APPEND: Statement = Statement::new(
    Class::Insert,
    "audit_entry",
    "WITH entry AS (
         INSERT INTO bib.audit_entry (id, time, body, node, actor, via, action, target, result, operation, job)
         VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11)
     )
     INSERT INTO bib.audit_detail (id, time, salt, details) VALUES ($1, $2, $12, $13)",
);

static MAKE_MONTH: Statement = Statement::new(Class::Call, "audit_entry", "SELECT bib.audit_make_month($1)");

static ERASE: Statement = Statement::new(Class::Call, "audit_detail", "SELECT bib.audit_erase($1)");

pub(crate) fn statements() -> Vec<&'static Statement> {
    [
        &[&APPEND, &MAKE_MONTH, &ERASE][..],
        follow::STATEMENTS,
        list::STATEMENTS,
        read::STATEMENTS,
        retain::STATEMENTS,
        seal::STATEMENTS,
    ]
    .concat()
}

/// Writes the entry of an act into the act's transaction.
///
/// # Errors
/// When the database refuses; then the act must not commit either.
pub async fn append(tx: &mut Tx, entry: &Entry) -> Result<()> {
    let columns = &entry.columns;
    APPEND
        .on(tx)
        .bind(entry.id)
        .bind(entry.time.to_offset())
        .bind(&entry.body)
        .bind(&columns.node)
        .bind(&columns.actor)
        .bind(columns.via)
        .bind(&columns.action)
        .bind(&columns.target)
        .bind(&columns.result)
        .bind(columns.operation)
        .bind(columns.job)
        .bind(&entry.detail.salt[..])
        .bind(&entry.detail.bytes)
        .execute_one()
        .await
}

/// Makes the partitions of the month that `moment` lies in. True when there were none.
///
/// # Errors
/// When the database refuses.
pub async fn make_month(tx: &mut Tx, moment: Timestamp) -> Result<bool> {
    let (made,): (bool,) = MAKE_MONTH.on(tx).bind(moment.to_offset()).one().await?;
    Ok(made)
}

/// Erases the details of an entry. The entry `audit.erase` about it must be in the same transaction already.
/// False when there were no details (any more).
///
/// # Errors
/// When that entry is missing, or the database refuses.
pub async fn erase(tx: &mut Tx, entry: Uuid) -> Result<bool> {
    let (gone,): (bool,) = ERASE.on(tx).bind(entry).one().await?;
    Ok(gone)
}
