//! Why the cache cannot be opened, and why it does not do what it was asked.

use std::io;
use std::path::PathBuf;

use bib_core::record::RecordError;

/// Why there is no cache.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// The directory or the file.
    #[error("make the cache in `{path}`")]
    Io {
        /// Where.
        path: PathBuf,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// The file is a database of somebody else.
    #[error("`{path}` is a database, but not a cache of bibd")]
    Foreign {
        /// Which.
        path: PathBuf,
    },
    /// A newer `bibd` made it.
    #[error("the cache has schema {found}, this bibd knows up to {known}")]
    Newer {
        /// In the file.
        found: i64,
        /// The newest of this binary.
        known: i64,
    },
    /// SQLite.
    #[error("open the cache `{path}`")]
    Sqlite {
        /// Which.
        path: PathBuf,
        /// What it said.
        #[source]
        source: sqlx::Error,
    },
}

impl OpenError {
    /// What a person can do.
    #[must_use]
    pub fn hint(&self) -> String {
        match self {
            Self::Io { .. } => "make the directory writable for the daemon's user, or free some space".to_owned(),
            Self::Foreign { path } => {
                format!("move `{}` away: bibd deletes nothing that it did not make", path.display())
            }
            Self::Newer { .. } => {
                "use that release of bibd, or remove the cache: it holds nothing of its own".to_owned()
            }
            Self::Sqlite { path, .. } => {
                format!("nothing but a cache is lost when `{}` is moved away", path.display())
            }
        }
    }
}

/// Why the cache does not take or give something.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// This node signed it.
    #[error("a cache keeps what other nodes said: this record was signed by this node")]
    Own,
    /// The signature does not hold.
    #[error("the record is not signed by who it says")]
    Signature,
    /// Not a record.
    #[error(transparent)]
    Record(#[from] RecordError),
    /// The bytes are not what they are called.
    #[error("the page is not the one with this hash")]
    Hash,
    /// Larger than a page may be.
    #[error("a page of {0} bytes, at most 1 MiB are allowed")]
    TooLarge(usize),
    /// The file is damaged. It was set aside; the next call meets an empty cache.
    #[error("the cache was damaged and begins anew")]
    Damaged,
    /// No room.
    #[error("the disk with the cache is full")]
    Full,
    /// SQLite.
    #[error("the cache")]
    Sqlite(#[source] sqlx::Error),
}

/// What SQLite says about a file that is not a whole database.
const SQLITE_CORRUPT: u32 = 11;
const SQLITE_NOTADB: u32 = 26;
const SQLITE_FULL: u32 = 13;

/// The primary result code (<https://www.sqlite.org/rescode.html>): the low byte of an extended one.
fn primary_code(error: &sqlx::Error) -> Option<u32> {
    let code = error.as_database_error()?.code()?;
    code.parse::<u32>().ok().map(|code| code & 0xff)
}

/// Does SQLite say that the file is damaged?
pub(crate) fn is_damage(error: &sqlx::Error) -> bool {
    matches!(primary_code(error), Some(SQLITE_CORRUPT | SQLITE_NOTADB))
}

impl From<sqlx::Error> for Error {
    fn from(error: sqlx::Error) -> Self {
        match primary_code(&error) {
            Some(SQLITE_CORRUPT | SQLITE_NOTADB) => Self::Damaged,
            Some(SQLITE_FULL) => Self::Full,
            _ => Self::Sqlite(error),
        }
    }
}
