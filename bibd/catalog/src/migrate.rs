//! Migrations: up and down, each in one transaction with a checksum, under an advisory lock.
//!
//! They run as `bibd_migrate` (whose log-in `bibd-postgres` opens for just as long) with `SET ROLE bibd_owner`, so
//! that every object belongs to a role that nobody can log in as. A database with a newer schema, or one whose
//! migrations were edited after they ran, is refused untouched.

use std::time::Instant;

use bib_core::{Hash, Timestamp};
use sqlx::{AssertSqlSafe, Connection as _, PgConnection};

use crate::{Error, Result};

/// One migration, embedded in the binary.
#[derive(Debug)]
pub struct Migration {
    /// 1, 2, 3 ...
    pub version: i32,
    /// `verb_noun`.
    pub name: &'static str,
    up: &'static str,
    down: &'static str,
}

macro_rules! migrations {
    ($($version:literal $name:literal $file:literal),* $(,)?) => {
        /// Every migration in order.
        pub static MIGRATIONS: &[Migration] = &[$(Migration {
            version: $version,
            name: $name,
            up: include_str!(concat!("../../../migrations/postgres/", $file, ".up.sql")),
            down: include_str!(concat!("../../../migrations/postgres/", $file, ".down.sql")),
        }),*];
    };
}

migrations! {
    1 "create_accounts" "0001_create_accounts",
    2 "create_topics" "0002_create_topics",
    3 "create_versions" "0003_create_versions",
    4 "create_audit" "0004_create_audit",
    5 "grant_roles" "0005_grant_roles",
    6 "add_version_charges" "0006_add_version_charges",
    7 "create_glass" "0007_create_glass",
    8 "follow_audit" "0008_follow_audit",
    9 "add_origin" "0009_add_origin",
    10 "add_chunk_objects" "0010_add_chunk_objects",
}

/// Why migrating stopped. The database is as it was before the migration that failed.
#[derive(Debug, thiserror::Error)]
pub enum MigrateError {
    /// The database was written by a newer `bibd`.
    #[error("the database has schema {found}, this bibd knows up to {known}")]
    Newer {
        /// The version in the database.
        found: i32,
        /// The newest that this binary knows.
        known: i32,
    },
    /// A migration that ran is not the one in this binary.
    #[error("migration {version} ({name}) is not the one that ran here: checksum {found} instead of {expected}")]
    Checksum {
        /// Its number.
        version: i32,
        /// Its name.
        name: String,
        /// The checksum in the database.
        found: String,
        /// That of the embedded file.
        expected: String,
    },
    /// A migration failed and was rolled back.
    #[error("migration {version} ({name}) failed")]
    Failed {
        /// Its number.
        version: i32,
        /// Its name.
        name: &'static str,
        /// What the database said.
        #[source]
        source: sqlx::Error,
    },
    /// Another statement around the migrations failed.
    #[error(transparent)]
    Database(#[from] Error),
}

/// A migration that this call ran.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Applied {
    /// Its number.
    pub version: i32,
    /// Its name.
    pub name: &'static str,
    /// How long it took, in microseconds.
    pub us: u64,
}

/// The schema that this binary needs.
#[must_use]
pub fn newest() -> i32 {
    MIGRATIONS.last().map_or(0, |m| m.version)
}

impl Migration {
    /// Of both directions, so that neither can be edited after it ran.
    fn checksum(&self) -> String {
        Hash::of(format!("{}\0{}", self.up, self.down).as_bytes()).to_string()
    }
}

/// "bibd" and "sche" as a number: one migration at a time, whoever runs it.
const LOCK: i64 = 0x6269_6264_7363_6865;

/// Brings the schema to [`newest`].
///
/// # Errors
/// When the schema is newer, edited, or a migration fails; what ran before the failure stays.
pub async fn up(connection: &mut PgConnection, now: Timestamp) -> std::result::Result<Vec<Applied>, MigrateError> {
    up_told(connection, now, |_| ()).await
}

/// What [`up_told`] tells of each migration, in order: its statements ran, and are not committed; it is committed.
pub const STEPS: [&str; 2] = ["migrate.ran", "migrate.committed"];

/// The same, and `told` hears of each of [`STEPS`] that was just finished.
///
/// # Errors
/// As [`up`].
pub async fn up_told(
    connection: &mut PgConnection,
    now: Timestamp,
    told: impl Fn(&'static str),
) -> std::result::Result<Vec<Applied>, MigrateError> {
    prepare(connection).await?;
    let outcome = run_up(connection, now, told).await;
    release(connection).await?;
    outcome
}

/// Takes the newest `steps` migrations down again. Tables move to the schema `bib_removed`; nothing is dropped.
///
/// # Errors
/// As [`up`]; the audit log refuses to be taken down.
pub async fn down(connection: &mut PgConnection, steps: usize) -> std::result::Result<Vec<Applied>, MigrateError> {
    prepare(connection).await?;
    let outcome = run_down(connection, steps).await;
    release(connection).await?;
    outcome
}

/// The version of the schema in the database, 0 when it is empty.
///
/// # Errors
/// When the database is gone.
pub async fn current(connection: &mut PgConnection) -> Result<i32> {
    let exists: Option<String> = sqlx::query_scalar("SELECT to_regclass('bib_meta.schema_migrations')::text")
        .fetch_one(&mut *connection)
        .await
        .map_err(|e| Error::from_sqlx("select schema_migrations", e))?;
    if exists.is_none() {
        return Ok(0);
    }
    sqlx::query_scalar("SELECT coalesce(max(version), 0) FROM bib_meta.schema_migrations")
        .fetch_one(connection)
        .await
        .map_err(|e| Error::from_sqlx("select schema_migrations", e))
}

async fn prepare(connection: &mut PgConnection) -> Result<()> {
    let error = |e| Error::from_sqlx("prepare migrations", e);
    sqlx::raw_sql("SET ROLE bibd_owner; SET lock_timeout = '30s'; SET statement_timeout = 0")
        .execute(&mut *connection)
        .await
        .map_err(error)?;
    sqlx::query("SELECT pg_advisory_lock($1)").bind(LOCK).execute(&mut *connection).await.map_err(error)?;
    // The table of migrations has a schema of its own: taking the first migration down must not take it along.
    sqlx::raw_sql(
        "CREATE SCHEMA IF NOT EXISTS bib_meta;
         CREATE TABLE IF NOT EXISTS bib_meta.schema_migrations (
             version    integer PRIMARY KEY,
             name       text NOT NULL,
             checksum   text NOT NULL,
             applied_at timestamptz NOT NULL,
             applied_us bigint NOT NULL
         );
         GRANT USAGE ON SCHEMA bib_meta TO bibd_service, bibd_monitor, bibd_backup;
         GRANT SELECT ON bib_meta.schema_migrations TO bibd_service, bibd_monitor, bibd_backup",
    )
    .execute(connection)
    .await
    .map(|_| ())
    .map_err(error)
}

async fn release(connection: &mut PgConnection) -> Result<()> {
    sqlx::query("SELECT pg_advisory_unlock($1)")
        .bind(LOCK)
        .execute(connection)
        .await
        .map(|_| ())
        .map_err(|e| Error::from_sqlx("unlock migrations", e))
}

async fn run_up(
    connection: &mut PgConnection,
    now: Timestamp,
    told: impl Fn(&'static str),
) -> std::result::Result<Vec<Applied>, MigrateError> {
    let done = checked(connection).await?;
    let mut applied = Vec::new();
    for migration in MIGRATIONS.iter().filter(|m| m.version > done) {
        let record = "INSERT INTO bib_meta.schema_migrations (version, name, checksum, applied_at, applied_us) \
                      VALUES ($1, $2, $3, $4, $5)";
        let since = Instant::now();
        let failed = |source| MigrateError::Failed { version: migration.version, name: migration.name, source };
        let mut tx = connection.begin().await.map_err(failed)?;
        sqlx::raw_sql(migration.up).execute(&mut *tx).await.map_err(failed)?;
        let us = i64::try_from(since.elapsed().as_micros()).unwrap_or(i64::MAX);
        sqlx::query(record)
            .bind(migration.version)
            .bind(migration.name)
            .bind(migration.checksum())
            .bind(now.to_offset())
            .bind(us)
            .execute(&mut *tx)
            .await
            .map_err(failed)?;
        told(STEPS[0]);
        tx.commit().await.map_err(failed)?;
        told(STEPS[1]);
        applied.push(Applied { version: migration.version, name: migration.name, us: us.unsigned_abs() });
    }
    Ok(applied)
}

async fn run_down(connection: &mut PgConnection, steps: usize) -> std::result::Result<Vec<Applied>, MigrateError> {
    let done = checked(connection).await?;
    let mut undone = Vec::new();
    for migration in MIGRATIONS.iter().rev().filter(|m| m.version <= done).take(steps) {
        let since = Instant::now();
        let failed = |source| MigrateError::Failed { version: migration.version, name: migration.name, source };
        let mut tx = connection.begin().await.map_err(failed)?;
        sqlx::raw_sql(migration.down).execute(&mut *tx).await.map_err(failed)?;
        sqlx::query("DELETE FROM bib_meta.schema_migrations WHERE version = $1")
            .bind(migration.version)
            .execute(&mut *tx)
            .await
            .map_err(failed)?;
        tx.commit().await.map_err(failed)?;
        let us = u64::try_from(since.elapsed().as_micros()).unwrap_or(u64::MAX);
        undone.push(Applied { version: migration.version, name: migration.name, us });
    }
    Ok(undone)
}

/// The version reached, after checking that what ran is what this binary holds.
async fn checked(connection: &mut PgConnection) -> std::result::Result<i32, MigrateError> {
    let rows: Vec<(i32, String, String)> =
        sqlx::query_as("SELECT version, name, checksum FROM bib_meta.schema_migrations ORDER BY version")
            .fetch_all(connection)
            .await
            .map_err(|e| Error::from_sqlx("select schema_migrations", e))?;
    let found = rows.last().map_or(0, |row| row.0);
    if found > newest() {
        return Err(MigrateError::Newer { found, known: newest() });
    }
    for (version, name, checksum) in rows {
        let expected = MIGRATIONS.iter().find(|m| m.version == version).map(Migration::checksum).unwrap_or_default();
        if checksum != expected {
            return Err(MigrateError::Checksum { version, name, found: checksum, expected });
        }
    }
    Ok(found)
}

/// The statement that a test runs to see that every embedded statement fits the schema.
#[doc(hidden)]
pub async fn prepares(connection: &mut PgConnection, sql: &'static str) -> std::result::Result<(), sqlx::Error> {
    sqlx::raw_sql(AssertSqlSafe(format!("PREPARE try_it AS {sql}"))).execute(&mut *connection).await?;
    sqlx::raw_sql("DEALLOCATE try_it").execute(connection).await.map(|_| ())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn embeds_every_file_of_the_folder_in_order() {
        let folder = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../../migrations/postgres");
        let mut files: Vec<_> =
            std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
        files.sort();
        let expected: Vec<_> = MIGRATIONS
            .iter()
            .flat_map(|m| ["down", "up"].map(|way| format!("{:04}_{}.{way}.sql", m.version, m.name)))
            .collect();
        assert_eq!(files, expected);
        assert!(MIGRATIONS.is_sorted_by(|one, next| one.version < next.version));
    }
}
