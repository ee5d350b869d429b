//! A statement as a value: its text, its class and the table it is about, so that each run can be counted, timed and
//! written into the audit entry of its act.

use std::collections::BTreeMap;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use bib_core::Hash;
use bibd_audit::entry::StatementNote;
use futures::{Stream, StreamExt as _};
use sqlx::postgres::{PgArguments, PgRow};
use sqlx::{Arguments as _, Encode, FromRow, Postgres, Type};

use crate::{Error, Result, Role, Session};

/// What a statement does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Class {
    /// Reads.
    Select,
    /// Adds rows.
    Insert,
    /// Changes rows.
    Update,
    /// Removes rows.
    Delete,
    /// Calls a function that writes.
    Call,
}

impl Class {
    /// As it stands in audit entries and metrics.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Select => "select",
            Self::Insert => "insert",
            Self::Update => "update",
            Self::Delete => "delete",
            Self::Call => "call",
        }
    }
}

/// One statement of the catalog. Values reach it as bind parameters alone.
#[derive(Debug)]
pub struct Statement {
    class: Class,
    table: &'static str,
    sql: &'static str,
    hash: OnceLock<Hash>,
    /// Runs by role, in the order of [`Role::ALL`].
    counts: [Count; 4],
}

/// Runs of one statement as one role since the process began.
#[derive(Debug)]
struct Count {
    calls: AtomicU64,
    rows: AtomicU64,
    us: AtomicU64,
}

impl Count {
    const fn new() -> Self {
        Self { calls: AtomicU64::new(0), rows: AtomicU64::new(0), us: AtomicU64::new(0) }
    }

    fn add(&self, calls: u64, rows: u64, us: u64) {
        // Independent counters that nothing is inferred from.
        self.calls.fetch_add(calls, Ordering::Relaxed);
        self.rows.fetch_add(rows, Ordering::Relaxed);
        self.us.fetch_add(us, Ordering::Relaxed);
    }
}

/// All runs of a class on a table as a role since the process began, whether an audit entry tells of them or not.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct StatementCount {
    /// Statements.
    pub calls: u64,
    /// Rows read or changed.
    pub rows: u64,
    /// Microseconds; results that are streamed are not timed.
    pub us: u64,
}

/// What ran, by (role, class, table).
#[must_use]
pub fn statement_counts() -> BTreeMap<(&'static str, &'static str, &'static str), StatementCount> {
    let mut found: BTreeMap<_, StatementCount> = BTreeMap::new();
    for statement in crate::statements() {
        for (role, count) in Role::ALL.into_iter().zip(&statement.counts) {
            let calls = count.calls.load(Ordering::Relaxed);
            if calls > 0 {
                let sum = found.entry((role.as_str(), statement.class.as_str(), statement.table)).or_default();
                sum.calls += calls;
                sum.rows += count.rows.load(Ordering::Relaxed);
                sum.us += count.us.load(Ordering::Relaxed);
            }
        }
    }
    found
}

impl Statement {
    pub(crate) const fn new(class: Class, table: &'static str, sql: &'static str) -> Self {
        Self { class, table, sql, hash: OnceLock::new(), counts: [const { Count::new() }; 4] }
    }

    /// The text, for tests that prepare every statement against the real schema.
    #[must_use]
    pub const fn sql(&self) -> &'static str {
        self.sql
    }

    /// SHA-256 of the text with its white space folded: the same statement, the same hash, however it is laid out.
    pub fn hash(&self) -> Hash {
        *self.hash.get_or_init(|| {
            let folded = self.sql.split_whitespace().collect::<Vec<_>>().join(" ");
            Hash::of(folded.as_bytes())
        })
    }

    /// Begins a run of this statement.
    pub(crate) fn on<'s, S: Session>(&'static self, session: &'s mut S) -> Run<'s, S> {
        Run { statement: self, session, arguments: PgArguments::default(), failure: None }
    }

    fn error(&self, source: sqlx::Error) -> Error {
        Error::from_sqlx(&format!("{} {}", self.class.as_str(), self.table), source)
    }

    /// Counts a run, and notes it for the act that it belongs to.
    fn ran(&self, session: &mut impl Session, rows: u64, since: Instant) {
        let us = u64::try_from(since.elapsed().as_micros()).unwrap_or(u64::MAX);
        self.counts[session.role() as usize].add(1, rows, us);
        let (class, table) = (self.class.as_str().into(), self.table.into());
        session.note(StatementNote { class, table, hash: self.hash(), rows, us });
    }
}

/// A statement with its values, about to run.
pub(crate) struct Run<'s, S> {
    statement: &'static Statement,
    session: &'s mut S,
    arguments: PgArguments,
    failure: Option<sqlx::Error>,
}

impl<'s, S: Session> Run<'s, S> {
    /// The next parameter.
    pub(crate) fn bind<'q, T: Encode<'q, Postgres> + Type<Postgres>>(mut self, value: T) -> Self {
        if let Err(error) = self.arguments.add(value) {
            self.failure.get_or_insert(sqlx::Error::Encode(error));
        }
        self
    }

    /// Runs it and says how many rows changed.
    pub(crate) async fn execute(self) -> Result<u64> {
        let since = Instant::now();
        self.check()?;
        let query = sqlx::query_with(self.statement.sql, self.arguments);
        let outcome = query.execute(self.session.connection()).await;
        let rows = outcome.map_err(|e| self.statement.error(e))?.rows_affected();
        self.statement.ran(self.session, rows, since);
        Ok(rows)
    }

    /// Runs it and insists that exactly one row changed.
    pub(crate) async fn execute_one(self) -> Result<()> {
        let table = self.statement.table;
        match self.execute().await? {
            1 => Ok(()),
            affected => Err(Error::Affected { table, expected: 1, affected }),
        }
    }

    /// All rows.
    pub(crate) async fn all<R>(self) -> Result<Vec<R>>
    where
        R: for<'r> FromRow<'r, PgRow> + Send + Unpin,
    {
        let since = Instant::now();
        self.check()?;
        let query = sqlx::query_as_with::<_, R, _>(self.statement.sql, self.arguments);
        let rows = query.fetch_all(self.session.connection()).await.map_err(|e| self.statement.error(e))?;
        self.statement.ran(self.session, rows.len() as u64, since);
        Ok(rows)
    }

    /// One row or none.
    pub(crate) async fn optional<R>(self) -> Result<Option<R>>
    where
        R: for<'r> FromRow<'r, PgRow> + Send + Unpin,
    {
        let since = Instant::now();
        self.check()?;
        let query = sqlx::query_as_with::<_, R, _>(self.statement.sql, self.arguments);
        let row = query.fetch_optional(self.session.connection()).await.map_err(|e| self.statement.error(e))?;
        self.statement.ran(self.session, u64::from(row.is_some()), since);
        Ok(row)
    }

    /// The one row that a statement always has (aggregates, function calls).
    pub(crate) async fn one<R>(self) -> Result<R>
    where
        R: for<'r> FromRow<'r, PgRow> + Send + Unpin,
    {
        let table = self.statement.table;
        self.optional().await?.ok_or(Error::Affected { table, expected: 1, affected: 0 })
    }

    /// Rows one after another, for results that do not fit in memory. Dropping it half-way costs the connection the
    /// rest of the result.
    pub(crate) fn stream<R>(self) -> impl Stream<Item = Result<R>> + Send + 's
    where
        R: for<'r> FromRow<'r, PgRow> + Send + Unpin + 's,
    {
        let statement = self.statement;
        let count = &statement.counts[self.session.role() as usize];
        count.add(1, 0, 0);
        let query = sqlx::query_as_with::<_, R, _>(statement.sql, self.arguments);
        query.fetch(self.session.connection()).map(move |row| {
            count.add(0, u64::from(row.is_ok()), 0);
            row.map_err(|e| statement.error(e))
        })
    }

    fn check(&self) -> Result<()> {
        match &self.failure {
            None => Ok(()),
            // The cause is our own value; its text is enough.
            Some(error) => Err(Error::Refused { constraint: error.to_string() }),
        }
    }
}
