//! How much the database holds and has written, as its own statistics say.

use crate::Result;
use crate::db::Read;
use crate::statement::{Class, Statement};

/// Counters of the database since it was made. A connection reports its part at most ten seconds late.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Statistics {
    /// Rows of our tables that were inserted.
    pub rows_inserted: u64,
    /// Rows that were updated.
    pub rows_updated: u64,
    /// Rows that were deleted.
    pub rows_deleted: u64,
    /// Where the write-ahead log ends, in bytes from its beginning; differences are what was written.
    pub wal_bytes: u64,
    /// Size of the database on disk, in bytes.
    pub database_bytes: u64,
}

// Only our tables: the system's own are written by ANALYZE and the like.
static READ: Statement = Statement::new(
    Class::Select,
    "pg_stat_user_tables",
    "SELECT coalesce(sum(n_tup_ins), 0)::bigint, coalesce(sum(n_tup_upd), 0)::bigint,
            coalesce(sum(n_tup_del), 0)::bigint, (pg_current_wal_lsn() - '0/0')::bigint,
            pg_database_size(current_database())
     FROM pg_stat_user_tables",
);

pub(crate) static STATEMENTS: &[&Statement] = &[&READ];

/// Reads them, as `bibd_monitor`.
///
/// # Errors
/// When the database is gone.
pub async fn read(session: &mut Read) -> Result<Statistics> {
    let (inserted, updated, deleted, wal, size): (i64, i64, i64, i64, i64) = READ.on(session).one().await?;
    Ok(Statistics {
        rows_inserted: inserted.unsigned_abs(),
        rows_updated: updated.unsigned_abs(),
        rows_deleted: deleted.unsigned_abs(),
        wal_bytes: wal.unsigned_abs(),
        database_bytes: size.unsigned_abs(),
    })
}
