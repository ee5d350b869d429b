//! What is in a database, so that two can be compared: schemas, extensions, and for every table how many rows it has and
//! the sum of their hashes, as text. The hash is PostgreSQL's own, which all majors share; a sum does not depend on order.

use std::collections::BTreeMap;

use futures::FutureExt as _;
use futures::future::BoxFuture;
use sqlx::postgres::PgConnection;
use sqlx::{AssertSqlSafe, Connection as _, Row as _};

use crate::database::Database;
use crate::error::Error;
use crate::role::{CHECK_SCHEMA, OWNER};
use crate::superuser::silent;

/// What a database is made of.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Shape {
    /// Schemas that are not PostgreSQL's own and not made by each start.
    pub(crate) schemas: Vec<String>,
    /// Extensions that not every database has.
    pub(crate) extensions: Vec<String>,
}

/// Tables and sequences by their quoted names, with what tells one content from another.
pub(super) type Content = BTreeMap<String, String>;

const WHAT: &str = "read what is in the database";

impl Shape {
    /// Of this database.
    pub(super) async fn of(database: &Database) -> Result<Self, Error> {
        as_owner(database, |connection| shape(connection).boxed()).await
    }

    /// As arguments of `pg_dump`.
    pub(crate) fn selection(&self) -> impl Iterator<Item = String> {
        let schemas = self.schemas.iter().map(|name| format!("--schema={}", pattern(name)));
        schemas.chain(self.extensions.iter().map(|name| format!("--extension={}", pattern(name))))
    }
}

/// A name as a pattern that matches it alone.
fn pattern(name: &str) -> String {
    format!("\"{}\"", name.replace('"', "\"\""))
}

/// Everything in these schemas.
pub(super) async fn read(database: &Database, schemas: &[String]) -> Result<Content, Error> {
    let schemas = schemas.to_vec();
    as_owner(database, |connection| content(connection, schemas).boxed()).await
}

/// The first that is not the same in both, with what it has here and there.
pub(super) fn difference(before: &Content, after: &Content) -> Option<(String, String)> {
    let names = before.keys().chain(after.keys());
    let shown = |content: &Content, name: &String| content.get(name).cloned().unwrap_or_else(|| "nothing".to_owned());
    let mut differing = names.filter(|name| before.get(*name) != after.get(*name));
    let name = differing.next()?;
    Some((name.clone(), format!("{} before, {} after", shown(before, name), shown(after, name))))
}

/// Extensions that this server's programs have.
pub(super) async fn available_extensions(connection: &mut PgConnection) -> Result<Vec<String>, Error> {
    sqlx::query_scalar("SELECT name::text FROM pg_catalog.pg_available_extensions")
        .fetch_all(connection)
        .await
        .map_err(Error::sql("list the extensions that are there"))
}

/// Refuses where one is not there.
pub(super) fn require(wanted: &[String], available: &[String], major: u32) -> Result<(), Error> {
    let missing: Vec<String> = wanted.iter().filter(|name| !available.contains(name)).cloned().collect();
    if missing.is_empty() { Ok(()) } else { Err(Error::ExtensionsMissing { names: missing, major }) }
}

async fn as_owner<T>(
    database: &Database,
    work: impl for<'c> FnOnce(&'c mut PgConnection) -> BoxFuture<'c, Result<T, sqlx::Error>> + Send,
) -> Result<T, Error> {
    let read = database.with_owner_login(|login| async move {
        let options = silent(database.server.connect_options(&login));
        let mut connection = PgConnection::connect_with(&options).await?;
        // A constant of this crate.
        sqlx::raw_sql(AssertSqlSafe(format!("SET ROLE {OWNER}"))).execute(&mut connection).await?;
        let read = work(&mut connection).await;
        // What was read was read: a failure to say goodbye changes nothing.
        let _ = connection.close().await;
        read
    });
    read.await?.map_err(Error::sql(WHAT))
}

/// The same over any connection to the database.
pub(crate) async fn shape(connection: &mut PgConnection) -> Result<Shape, sqlx::Error> {
    let schemas = sqlx::query_scalar(
        "SELECT nspname::text
         FROM pg_catalog.pg_namespace
         WHERE nspname !~ '^pg_' AND nspname NOT IN ('information_schema', $1)
         ORDER BY oid",
    )
    .bind(CHECK_SCHEMA)
    .fetch_all(&mut *connection)
    .await?;
    let extensions =
        sqlx::query_scalar("SELECT extname::text FROM pg_catalog.pg_extension WHERE extname <> 'plpgsql' ORDER BY oid")
            .fetch_all(connection)
            .await?;
    Ok(Shape { schemas, extensions })
}

async fn content(connection: &mut PgConnection, schemas: Vec<String>) -> Result<Content, sqlx::Error> {
    let tables = sqlx::query(
        "SELECT pg_catalog.format('%I.%I', n.nspname, c.relname), c.relkind = 'S'
         FROM pg_catalog.pg_class c
         JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
         WHERE c.relkind IN ('r', 'S') AND n.nspname = ANY($1)",
    )
    .bind(schemas)
    .fetch_all(&mut *connection)
    .await?;
    let mut content = Content::new();
    for table in tables {
        let (name, is_sequence): (String, bool) = (table.get(0), table.get(1));
        // The names are quoted by the server.
        let question = if is_sequence {
            format!("SELECT pg_catalog.format('%s %s', last_value, is_called) FROM {name}")
        } else {
            format!(
                "SELECT pg_catalog.format('%s rows of sum %s', pg_catalog.count(*),
                        coalesce(pg_catalog.sum(pg_catalog.hashtextextended(\"the row\"::text, 0)), 0))
                 FROM {name} AS \"the row\""
            )
        };
        let answer = sqlx::query_scalar(AssertSqlSafe(question)).fetch_one(&mut *connection).await?;
        content.insert(name, answer);
    }
    Ok(content)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn content(rows: &[(&str, &str)]) -> Content {
        rows.iter().map(|(name, what)| ((*name).to_owned(), (*what).to_owned())).collect()
    }

    #[test]
    fn a_name_matches_itself_alone() {
        assert_eq!(pattern("bib"), "\"bib\"");
        assert_eq!(pattern("a\"b*"), "\"a\"\"b*\"");
    }

    #[test]
    fn what_differs_is_named() {
        let before = content(&[("bib.a", "1 rows of sum 7"), ("bib.b", "0 rows of sum 0")]);
        assert_eq!(difference(&before, &before), None);
        let after = content(&[("bib.a", "1 rows of sum 8"), ("bib.b", "0 rows of sum 0")]);
        let (name, what) = difference(&before, &after).unwrap();
        assert_eq!((name.as_str(), what.as_str()), ("bib.a", "1 rows of sum 7 before, 1 rows of sum 8 after"));
        let (name, what) = difference(&content(&[("bib.b", "0 rows of sum 0")]), &before).unwrap();
        assert_eq!((name.as_str(), what.as_str()), ("bib.a", "nothing before, 1 rows of sum 7 after"));
    }

    #[test]
    fn extensions_that_are_not_there_are_named() {
        let names = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect::<Vec<_>>();
        assert!(require(&names(&["vector"]), &names(&["vector", "pgcrypto"]), 16).is_ok());
        let error = require(&names(&["vector", "postgis"]), &names(&["pgcrypto"]), 16).unwrap_err();
        assert_eq!(error.to_string(), "PostgreSQL 16 has not the extensions vector, postgis, which the database uses");
    }
}
