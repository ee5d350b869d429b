//! A statement as a value: its text, its class and the table it is about, so that each run can be counted, timed and
//! written into the audit entry of its act.

use std::sync::OnceLock;
use std::time::Instant;

use bib_core::Hash;
use bibd_audit::entry::StatementNote;
use futures::{Stream, StreamExt as _};
use sqlx::postgres::{PgArguments, PgRow};
use sqlx::{Arguments as _, Encode, FromRow, Postgres, Type};

use crate::{Error, Result, Session};

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
}

impl Statement {
    pub(crate) const fn new(class: Class, table: &'static str, sql: &'static str) -> Self {
        Self { class, table, sql, hash: OnceLock::new() }
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

    fn note(&self, rows: u64, since: Instant) -> StatementNote {
        StatementNote {
            class: self.class.as_str().to_owned(),
            table: self.table.to_owned(),
            hash: self.hash(),
            rows,
            us: u64::try_from(since.elapsed().as_micros()).unwrap_or(u64::MAX),
        }
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
        self.session.note(self.statement.note(rows, since));
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
        self.session.note(self.statement.note(rows.len() as u64, since));
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
        self.session.note(self.statement.note(u64::from(row.is_some()), since));
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
        let query = sqlx::query_as_with::<_, R, _>(statement.sql, self.arguments);
        query.fetch(self.session.connection()).map(move |row| row.map_err(|e| statement.error(e)))
    }

    fn check(&self) -> Result<()> {
        match &self.failure {
            None => Ok(()),
            // The cause is our own value; its text is enough.
            Some(error) => Err(Error::Refused { constraint: error.to_string() }),
        }
    }
}
