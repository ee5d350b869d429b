//! The file's schema: whose it is, and the migrations that bring it up to date.

use sqlx::{Connection as _, SqliteConnection};

/// `BIBC` in ASCII: in the file's header, so that `file` and we know whose it is.
const APPLICATION_ID: i64 = 0x4249_4243;

/// Every migration in order; its number is its place, from 1. Each sets both marks of the file itself.
const MIGRATIONS: &[&str] = &[include_str!("../../../migrations/sqlite/0001_create_cache.up.sql")];

/// What the file is.
pub(crate) enum Found {
    /// Ours, or new.
    Ours,
    /// Somebody else's.
    Foreign,
    /// Of a newer release: its schema, and the newest that is known here.
    Newer(i64, i64),
}

/// Looks at whose file it is; writes nothing into it.
pub(crate) async fn examine(connection: &mut SqliteConnection) -> Result<Found, sqlx::Error> {
    let application: i64 = sqlx::query_scalar("PRAGMA application_id").fetch_one(&mut *connection).await?;
    let version = version(connection).await?;
    let objects: i64 = sqlx::query_scalar("SELECT count(*) FROM sqlite_schema").fetch_one(&mut *connection).await?;
    let is_new = application == 0 && version == 0 && objects == 0;
    let known = MIGRATIONS.len() as i64;
    Ok(match version {
        _ if application != APPLICATION_ID && !is_new => Found::Foreign,
        newer if newer > known => Found::Newer(newer, known),
        _ => Found::Ours,
    })
}

/// Brings the schema up to date, each migration in one transaction with its marks.
pub(crate) async fn migrate(connection: &mut SqliteConnection) -> Result<(), sqlx::Error> {
    let version = version(connection).await?;
    for text in MIGRATIONS.iter().skip(usize::try_from(version).unwrap_or_default()) {
        let mut tx = connection.begin().await?;
        sqlx::raw_sql(*text).execute(&mut *tx).await?;
        tx.commit().await?;
    }
    Ok(())
}

async fn version(connection: &mut SqliteConnection) -> Result<i64, sqlx::Error> {
    sqlx::query_scalar("PRAGMA user_version").fetch_one(connection).await
}
