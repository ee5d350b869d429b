//! What can go wrong between the daemon and its database.

use std::borrow::Cow;

/// The result of a catalog call.
pub type Result<T> = std::result::Result<T, Error>;

/// Why a catalog call failed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The database does not answer, or no connection came free in time: try again.
    #[error("the database is unavailable")]
    Unavailable(#[source] sqlx::Error),
    /// A unique or foreign key said no: somebody else was first, or what is named is gone.
    #[error("the row conflicts with `{constraint}`")]
    Conflict {
        /// Name of the constraint or index.
        constraint: String,
    },
    /// Serialization failure or deadlock: the transaction may be tried again as a whole.
    #[error("the transaction collided with another one")]
    Collision,
    /// The disk under the database is full.
    #[error("the database has no space left")]
    Full,
    /// A check constraint or a length limit refused the value.
    #[error("the value breaks `{constraint}`")]
    Refused {
        /// Name of the constraint, or what the server said.
        constraint: String,
    },
    /// A row that no code of ours could have written.
    #[error("inconsistent {table}.{column} in row {row}: {reason}")]
    Inconsistent {
        /// The table.
        table: &'static str,
        /// The column.
        column: &'static str,
        /// Its key, as text.
        row: String,
        /// What is wrong with it.
        reason: Cow<'static, str>,
    },
    /// A statement changed another number of rows than it must.
    #[error("{table}: {affected} rows changed instead of {expected}")]
    Affected {
        /// The table.
        table: &'static str,
        /// What had to change.
        expected: u64,
        /// What did.
        affected: u64,
    },
    /// Anything else the database said.
    #[error("the database refused {statement}")]
    Database {
        /// Class and table of the statement.
        statement: String,
        /// What it said.
        #[source]
        source: sqlx::Error,
    },
}

impl Error {
    pub(crate) fn from_sqlx(statement: &str, error: sqlx::Error) -> Self {
        let Some(database) = error.as_database_error() else {
            return match error {
                sqlx::Error::PoolTimedOut | sqlx::Error::PoolClosed | sqlx::Error::Io(_) | sqlx::Error::Protocol(_) => {
                    Self::Unavailable(error)
                }
                other => Self::Database { statement: statement.to_owned(), source: other },
            };
        };
        let constraint = || database.constraint().map_or_else(|| database.message().to_owned(), str::to_owned);
        // https://www.postgresql.org/docs/current/errcodes-appendix.html
        match database.code().as_deref() {
            Some("23505" | "23503" | "23001" | "23P01") => Self::Conflict { constraint: constraint() },
            Some("23514" | "23502" | "22001" | "22003" | "22021") => Self::Refused { constraint: constraint() },
            Some("40001" | "40P01" | "55P03") => Self::Collision,
            Some("53100") => Self::Full,
            Some(code) if code.starts_with("08") || code.starts_with("57P") || code == "53300" || code == "25006" => {
                Self::Unavailable(error)
            }
            _ => Self::Database { statement: statement.to_owned(), source: error },
        }
    }

    /// Whether trying again later can help.
    #[must_use]
    pub fn is_transient(&self) -> bool {
        matches!(self, Self::Unavailable(_) | Self::Collision)
    }

    /// Whether this is a conflict on the named constraint or index.
    #[must_use]
    pub fn is_conflict_on(&self, name: &str) -> bool {
        matches!(self, Self::Conflict { constraint } if constraint == name)
    }
}
