//! A real server with the catalog's schema.
#![allow(dead_code, unreachable_pub, unused_imports, reason = "each test binary uses its own part")]

#[path = "../../../postgres/tests/support/mod.rs"]
mod server;

use bib_core::Timestamp;
use bibd_catalog::migrate::{self, Applied, MigrateError};
use bibd_postgres::GroupRole;
pub use server::{TestServer, machine_has_postgres, run, text, wait_for};
use sqlx::{AssertSqlSafe, Connection as _, PgConnection};

/// 2026-11-20T19:01:00Z.
pub const NOW_US: i64 = 1_795_201_260_000_000;

pub fn now() -> Timestamp {
    Timestamp::from_micros(NOW_US)
}

/// Runs `work` with the migrations' login.
pub async fn as_migrator<T>(server: &TestServer, work: impl AsyncFnOnce(&mut PgConnection) -> T) -> T {
    let outcome = server.database.with_migration_login(async |options| {
        let mut connection = PgConnection::connect_with(&options).await?;
        let outcome = work(&mut connection).await;
        // A connection that was killed cannot say goodbye.
        let _ = connection.close().await;
        Ok::<_, sqlx::Error>(outcome)
    });
    outcome.await.unwrap().unwrap()
}

pub async fn up(server: &TestServer) -> Result<Vec<Applied>, MigrateError> {
    as_migrator(server, async |connection| migrate::up(connection, now()).await).await
}

/// A started server with roles and the newest schema.
pub async fn migrated() -> TestServer {
    let server = TestServer::started().await;
    up(&server).await.unwrap();
    server
}

/// One text column, all rows.
pub async fn texts(connection: &mut PgConnection, sql: &str) -> Vec<String> {
    sqlx::query_scalar(AssertSqlSafe(sql.to_owned())).fetch_all(connection).await.unwrap()
}

/// What the server says when it refuses `sql`: the code, or `done`.
pub async fn code(connection: &mut PgConnection, sql: &str) -> String {
    match run(connection, sql).await {
        Ok(()) => "done".to_owned(),
        Err(error) => match error.as_database_error() {
            Some(database) => database.code().unwrap_or_default().into_owned(),
            None => error.to_string(),
        },
    }
}

pub fn all_roles() -> [GroupRole; 9] {
    GroupRole::ALL
}
