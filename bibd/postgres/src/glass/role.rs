//! The acts of the superuser for break-glass: a role comes, a role goes.

use std::time::Duration;

use futures::FutureExt as _;
use secrecy::{ExposeSecret as _, SecretString};
use sqlx::Connection as _;
use sqlx::postgres::PgConnection;

use super::snapshot::{self, Snapshot};
use super::{Access, CONNECTIONS, Door, GlassName};
use crate::database::Database;
use crate::ensure::{Script, end_sessions};
use crate::error::Error;
use crate::role::{DATABASE, Login};
use crate::scram;
use crate::superuser::Act;

/// A role that can be used.
pub struct Opened {
    /// The way in.
    pub door: Door,
    /// The database as the person finds it.
    pub before: Snapshot,
    /// Nested statements are told.
    pub tells_nested: bool,
}

/// A role that is gone.
#[derive(Debug)]
pub struct Closed {
    /// The database after, while the role was still there; none when there was no such role.
    pub after: Option<Snapshot>,
    /// Its password was not the one it had been given: somebody who was in changed it.
    pub password_changed: bool,
}

impl Database {
    /// Makes the role `name` for so long, with a password that only the returned door knows.
    ///
    /// # Errors
    /// [`Error::NotRecorded`], [`Error::Sql`], [`Error::Deadline`]; call [`Database::close_glass`] then, for it may have
    /// been made before the failure was seen.
    pub async fn open_glass(&self, name: &GlassName, access: Access, lifetime: Duration) -> Result<Opened, Error> {
        let (password, random, version) = (self.random.password(), self.random.clone(), self.server.version().await?);
        let hashed = password.clone();
        let verifier = blocking_verifier(move || scram::verifier(&hashed, &random)).await;
        let (role, seconds) = (name.clone(), lifetime.as_secs().max(1));
        let kept = verifier.clone();
        let (before, tells_nested) = self
            .superuser
            .act(Act::OpenGlass, DATABASE, move |connection| {
                async move {
                    // A module of the server's own distribution; some leave it out.
                    let tells_nested = sqlx::raw_sql("LOAD 'auto_explain'").execute(&mut *connection).await.is_ok();
                    let settings = role_settings(access, tells_nested, version.major);
                    create(connection, &role, access, &verifier, seconds, &settings).await?;
                    // With the role: what is done to it counts too.
                    Ok((snapshot::take(connection).await?, tells_nested))
                }
                .boxed()
            })
            .await?;
        let login = Login { user: name.to_string(), database: DATABASE.to_owned(), password };
        let door = Door::new(self.server.as_ref(), login, kept);
        Ok(Opened { door, before, tells_nested })
    }

    /// Shuts the role `name` out, ends its sessions, looks at the database, and drops the role with all that it owns.
    /// Nothing when there is no such role. `verifier` is what [`Door::verifier`] said, where that is still known.
    ///
    /// # Errors
    /// [`Error::NotRecorded`], [`Error::Sql`], [`Error::Deadline`] when a session does not end: to be called again.
    pub async fn close_glass(&self, name: &GlassName, verifier: Option<&SecretString>) -> Result<Closed, Error> {
        let (role, verifier) = (name.clone(), verifier.cloned());
        self.superuser
            .act(Act::CloseGlass, DATABASE, move |connection| {
                async move { close(connection, &role, verifier.as_ref()).await }.boxed()
            })
            .await
    }
}

async fn create(
    connection: &mut PgConnection,
    role: &GlassName,
    access: Access,
    verifier: &SecretString,
    seconds: u64,
    settings: &[(&'static str, &'static str)],
) -> Result<(), Error> {
    const WHAT: &str = "make the role of break-glass";
    // The server's own clock decides, as it will when it is asked.
    let until: String = sqlx::query_scalar("SELECT (now() + make_interval(secs => $1))::text")
        .bind(f64::from(u32::try_from(seconds).unwrap_or(u32::MAX)))
        .fetch_one(&mut *connection)
        .await
        .map_err(Error::sql(WHAT))?;
    let mut sql = Script::default();
    sql.add(format!(
        "CREATE ROLE {role} WITH LOGIN NOSUPERUSER NOCREATEDB NOCREATEROLE NOREPLICATION NOBYPASSRLS INHERIT \
         CONNECTION LIMIT {CONNECTIONS} VALID UNTIL '{until}' PASSWORD '{}'",
        verifier.expose_secret()
    ));
    for (name, value) in settings {
        sql.add(format!("ALTER ROLE {role} SET {name} = {value}"));
    }
    sql.add(format!("GRANT {} TO {role}", access.group()));
    let mut transaction = connection.begin().await.map_err(Error::sql(WHAT))?;
    sql.run(&mut transaction, WHAT).await?;
    transaction.commit().await.map_err(Error::sql(WHAT))
}

/// The settings that stand on a role of this kind, as SQL spells their values. The first ones the person can change for a
/// session, and the proxy holds what must hold; `temp_file_limit` and those of `auto_explain` only a superuser changes.
pub(crate) fn role_settings(access: Access, tells_nested: bool, major: u32) -> Vec<(&'static str, &'static str)> {
    let mut settings = vec![
        ("search_path", "bib, pg_catalog, pg_temp"),
        ("statement_timeout", "'15min'"),
        ("lock_timeout", "'10s'"),
        ("idle_in_transaction_session_timeout", "'10min'"),
        ("temp_file_limit", "'4096MB'"),
    ];
    if major >= 17 {
        settings.push(("transaction_timeout", "'30min'"));
    }
    if access == Access::Read {
        settings.push(("default_transaction_read_only", "on"));
    }
    if tells_nested {
        settings.extend([
            ("session_preload_libraries", "auto_explain"),
            ("auto_explain.log_min_duration", "'0'"),
            ("auto_explain.log_nested_statements", "on"),
            ("auto_explain.log_level", "info"),
            ("auto_explain.log_analyze", "off"),
            ("auto_explain.log_format", "text"),
            ("auto_explain.sample_rate", "'1'"),
        ]);
    }
    settings
}

async fn close(
    connection: &mut PgConnection,
    role: &GlassName,
    verifier: Option<&SecretString>,
) -> Result<Closed, Error> {
    const WHAT: &str = "end the role of break-glass";
    let stored: Option<(Option<String>,)> = sqlx::query_as("SELECT rolpassword FROM pg_authid WHERE rolname = $1")
        .bind(role.as_str())
        .fetch_optional(&mut *connection)
        .await
        .map_err(Error::sql(WHAT))?;
    let Some((stored,)) = stored else { return Ok(Closed { after: None, password_changed: false }) };
    let password_changed = match (verifier, &stored) {
        (Some(ours), Some(stored)) => ours.expose_secret() != stored,
        // Shut by a start before this.
        _ => false,
    };
    let mut shut = Script::default();
    shut.add(format!("ALTER ROLE {role} NOLOGIN PASSWORD NULL"));
    shut.run(connection, WHAT).await?;
    end_sessions(connection, &[role.to_string()]).await?;
    // Before what it owns goes: that must stand in the report.
    let after = snapshot::take(connection).await?;
    let mut drop = Script::default();
    drop.add(format!("DROP OWNED BY {role}"));
    drop.add(format!("DROP ROLE {role}"));
    let mut transaction = connection.begin().await.map_err(Error::sql(WHAT))?;
    drop.run(&mut transaction, WHAT).await?;
    transaction.commit().await.map_err(Error::sql(WHAT))?;
    Ok(Closed { after: Some(after), password_changed })
}

/// For the start of a daemon: the group roles, which nobody logs in as.
pub(crate) fn create_groups(sql: &mut Script, exists: impl Fn(&str) -> bool) {
    for group in Access::ALL.map(Access::group) {
        let verb = if exists(group) { "ALTER" } else { "CREATE" };
        sql.add(format!(
            "{verb} ROLE {group} WITH NOSUPERUSER NOCREATEDB NOCREATEROLE NOBYPASSRLS NOLOGIN NOREPLICATION INHERIT \
             PASSWORD NULL CONNECTION LIMIT 0"
        ));
    }
}

/// For the start of a daemon: shuts every role of this kind among `roles`. Returns their names, whose sessions are to be
/// ended; the roles themselves are dropped by whoever knows their grants ([`Database::close_glass`]).
pub(crate) fn shut_all<'r>(sql: &mut Script, roles: impl Iterator<Item = &'r String>) -> Vec<String> {
    let ours: Vec<String> = roles.filter(|role| GlassName::parse(role).is_some()).cloned().collect();
    for role in &ours {
        sql.add(format!("ALTER ROLE {role} NOLOGIN PASSWORD NULL"));
    }
    ours
}

/// Roles of this kind that there are, asked as anybody.
///
/// # Errors
/// [`Error::Sql`].
pub async fn leftover(connection: &mut PgConnection) -> Result<Vec<GlassName>, Error> {
    let names: Vec<String> =
        sqlx::query_scalar("SELECT rolname::text FROM pg_roles WHERE rolname ~ '^bibd_glass_[0-9a-f]{8}$' ORDER BY 1")
            .fetch_all(connection)
            .await
            .map_err(Error::sql("look for roles of break-glass"))?;
    Ok(names.iter().filter_map(|name| GlassName::parse(name)).collect())
}

/// The backends of this role's sessions, asked as `bibd_monitor`.
///
/// # Errors
/// [`Error::Sql`].
pub async fn sessions_of(monitor: &mut PgConnection, name: &GlassName) -> Result<Vec<i32>, Error> {
    sqlx::query_scalar("SELECT pid FROM pg_stat_activity WHERE usename = $1")
        .bind(name.as_str())
        .fetch_all(monitor)
        .await
        .map_err(Error::sql("look for sessions of break-glass"))
}

/// Some milliseconds of hashing, away from the asynchronous threads.
async fn blocking_verifier(work: impl FnOnce() -> SecretString + Send + 'static) -> SecretString {
    match tokio::task::spawn_blocking(work).await {
        Ok(verifier) => verifier,
        Err(error) => match error.try_into_panic() {
            Ok(panic) => std::panic::resume_unwind(panic),
            // Cancelled before it began: the runtime ends, and this future with it.
            Err(_) => std::future::pending().await,
        },
    }
}
