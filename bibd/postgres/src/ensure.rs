//! Roles, settings and privileges as statements. Everything here runs as the superuser and is idempotent.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use secrecy::{ExposeSecret as _, SecretString};
use sqlx::postgres::PgConnection;
use sqlx::{AssertSqlSafe, Connection as _, Row as _};
use tokio::time::Instant;

use crate::error::Error;
use crate::glass;
use crate::random::Randomness;
use crate::role::{
    ADMIN, CHECK_SCHEMA, DATABASE, GroupRole, Letter, MIGRATE, OPERATOR, OPERATOR_REPLICA, OWNER, RoleLimits, SCHEMA,
};
use crate::scram;
use crate::secrets::DbSecrets;
use crate::version::Version;

/// Connections of the migrations' login.
pub(crate) const MIGRATE_CONNECTIONS: u32 = 2;

/// Every login of every pair: the active one with its password, the idle one without.
pub(crate) struct LoginPlan(Vec<(GroupRole, Letter, Option<SecretString>)>);

impl LoginPlan {
    /// From the sealed document.
    pub(crate) fn new(secrets: &DbSecrets) -> Result<Self, Error> {
        let mut plan = Vec::new();
        for group in GroupRole::ALL {
            let secret = secrets.role(group)?;
            plan.push((group, secret.active, Some(secret.secret.password.clone())));
            plan.push((group, secret.active.other(), None));
        }
        Ok(Self(plan))
    }

    /// The names of those that nobody uses.
    pub(crate) fn idle(&self) -> Vec<String> {
        let idle = self.0.iter().filter(|(_, _, password)| password.is_none());
        idle.map(|(group, letter, _)| group.login_name(*letter)).collect()
    }
}

/// The settings that stand on a login, as `pg_db_role_setting` spells them.
pub(crate) fn role_settings(limits: RoleLimits, version: Version) -> Vec<(&'static str, String)> {
    let seconds = |s: u32| if s == 0 { "0".to_owned() } else { format!("{s}s") };
    let mut settings = vec![
        // `pg_temp` last and named: it is searched first otherwise.
        ("search_path", format!("{SCHEMA}, pg_catalog, pg_temp")),
        ("statement_timeout", seconds(limits.statement_s)),
        ("lock_timeout", seconds(limits.lock_s)),
        ("idle_in_transaction_session_timeout", seconds(limits.idle_in_transaction_s)),
        ("temp_file_limit", format!("{}MB", limits.temp_mb)),
    ];
    if version.major >= 17 {
        settings.push(("transaction_timeout", seconds(limits.transaction_s)));
    }
    settings
}

/// What a migration may cost: no statement timeout, for it may rewrite a table, but it waits for no lock for long.
pub(crate) const MIGRATE_LIMITS: RoleLimits = RoleLimits {
    connections: MIGRATE_CONNECTIONS,
    statement_s: 0,
    lock_s: 10,
    idle_in_transaction_s: 600,
    transaction_s: 0,
    temp_mb: 16384,
};

/// Memberships, `(role, member)`: the golden list of the checklist's item 21. The pairs are members of their groups.
pub(crate) fn memberships() -> BTreeSet<(String, String)> {
    let mut all: BTreeSet<(String, String)> = GroupRole::ALL
        .into_iter()
        .flat_map(|group| Letter::ALL.map(|letter| (group.name().to_owned(), group.login_name(letter))))
        .collect();
    let fixed = [
        (OWNER, MIGRATE),
        // Server settings and statistics, without the scans and file listings of pg_monitor.
        ("pg_read_all_settings", GroupRole::Monitor.name()),
        ("pg_read_all_stats", GroupRole::Monitor.name()),
        // The clean stop's checkpoint; the superuser is not used for it.
        ("pg_checkpoint", GroupRole::Backup.name()),
        // Logical dumps: partitions, and tables of later migrations, have no grants of their own. Whoever may copy the
        // whole cluster (REPLICATION) learns nothing more by it.
        ("pg_read_all_data", GroupRole::Backup.name()),
    ];
    all.extend(fixed.map(|(role, member)| (role.to_owned(), member.to_owned())));
    all
}

/// Roles and the database: what belongs to the whole cluster. Runs in `postgres`.
pub(crate) async fn cluster(
    connection: &mut PgConnection,
    version: Version,
    logins: &LoginPlan,
    admin_next: Option<&SecretString>,
    random: &Randomness,
) -> Result<(), Error> {
    const WHAT: &str = "create the roles";
    let stored: BTreeMap<String, Option<String>> =
        sqlx::query("SELECT rolname::text, rolpassword FROM pg_authid WHERE rolname LIKE 'bibd\\_%'")
            .fetch_all(&mut *connection)
            .await
            .map_err(Error::sql("list the roles"))?
            .into_iter()
            .map(|row| (row.get(0), row.get(1)))
            .collect();
    let exists = |name: &str| stored.contains_key(name);
    let mut sql = Script::default();

    const NOTHING: &str = "NOSUPERUSER NOCREATEDB NOCREATEROLE NOBYPASSRLS";
    let role = |sql: &mut Script, name: &str, rest: &str| {
        let verb = if exists(name) { "ALTER" } else { "CREATE" };
        sql.add(format!("{verb} ROLE {name} WITH {NOTHING} {rest}"));
    };
    role(&mut sql, OWNER, "NOLOGIN NOREPLICATION INHERIT PASSWORD NULL CONNECTION LIMIT 0");
    role(
        &mut sql,
        MIGRATE,
        &format!("NOLOGIN NOREPLICATION NOINHERIT PASSWORD NULL CONNECTION LIMIT {MIGRATE_CONNECTIONS}"),
    );
    for group in GroupRole::ALL {
        role(&mut sql, group.name(), "NOLOGIN NOREPLICATION INHERIT PASSWORD NULL CONNECTION LIMIT -1");
    }
    for (group, letter, password) in &logins.0 {
        let name = group.login_name(*letter);
        let limit = group.limits().connections;
        let replication = if *group == GroupRole::Backup { "REPLICATION" } else { "NOREPLICATION" };
        let entry = match password {
            None => "NOLOGIN PASSWORD NULL".to_owned(),
            Some(password) => {
                let known = stored.get(&name).and_then(Option::as_deref);
                if known.is_some_and(|known| scram::matches(known, password)) {
                    "LOGIN".to_owned()
                } else {
                    format!("LOGIN PASSWORD '{}'", scram::verifier(password, random).expose_secret())
                }
            }
        };
        role(
            &mut sql,
            &name,
            &format!("{entry} {replication} INHERIT VALID UNTIL 'infinity' CONNECTION LIMIT {limit}"),
        );
        settings_of(&mut sql, &name, group.limits(), version);
    }
    settings_of(&mut sql, MIGRATE, MIGRATE_LIMITS, version);
    glass::create_groups(&mut sql, exists);
    let mut shut = glass::shut_all(&mut sql, stored.keys());
    if let Some(password) = admin_next {
        let verifier = scram::verifier(password, random);
        sql.add(format!("ALTER ROLE {ADMIN} PASSWORD '{}'", verifier.expose_secret()));
    }
    for (role, member) in memberships() {
        // From 16 on the inheritance of a membership is its own, whatever the member's attribute says.
        let options = match (version.major >= 16, member.as_str()) {
            (true, MIGRATE) => " WITH INHERIT FALSE, SET TRUE, ADMIN FALSE",
            _ => "",
        };
        sql.add(format!("GRANT {role} TO {member}{options}"));
    }
    let mut transaction = connection.begin().await.map_err(Error::sql(WHAT))?;
    sql.run(&mut transaction, WHAT).await?;
    transaction.commit().await.map_err(Error::sql(WHAT))?;
    // What a rotation left that was interrupted. A session that does not end keeps no node from starting: it is older
    // than the node, and the next rotation tells it again.
    shut.extend(logins.idle());
    match end_sessions(connection, &shut).await {
        Err(Error::Deadline { .. }) => tracing::warn!("a session of a former login does not end"),
        other => other?,
    }

    // CREATE DATABASE cannot be part of a transaction; it is one step of its own, found done or not.
    let found = sqlx::query("SELECT 1 FROM pg_database WHERE datname = $1")
        .bind(DATABASE)
        .fetch_optional(&mut *connection)
        .await
        .map_err(Error::sql("look for the database"))?;
    if found.is_none() {
        let mut create = Script::default();
        create.add(format!("CREATE DATABASE {DATABASE} OWNER {OWNER} TEMPLATE template0"));
        create.run(connection, "create the database").await?;
    }
    let mut sql = Script::default();
    for database in [DATABASE, "postgres", "template1"] {
        sql.add(format!("REVOKE ALL ON DATABASE {database} FROM PUBLIC"));
    }
    let glass = glass::Access::ALL.map(glass::Access::group);
    for name in GroupRole::ALL.map(GroupRole::name).into_iter().chain([MIGRATE]).chain(glass) {
        sql.add(format!("GRANT CONNECT ON DATABASE {DATABASE} TO {name}"));
    }
    // An operator's other servers ask the one that writes for its slots there, and rewind over it.
    sql.add(format!(
        "DO $$ BEGIN
             IF EXISTS (SELECT FROM pg_roles WHERE rolname = '{OPERATOR_REPLICA}') THEN
                 GRANT CONNECT ON DATABASE postgres TO {OPERATOR_REPLICA};
             END IF;
         END $$"
    ));
    sql.run(connection, "close the databases to PUBLIC").await
}

fn settings_of(sql: &mut Script, login: &str, limits: RoleLimits, version: Version) {
    for (name, value) in role_settings(limits, version) {
        // A list of schemas must not be quoted as one name.
        let value = if name == "search_path" { value } else { format!("'{value}'") };
        sql.add(format!("ALTER ROLE {login} SET {name} = {value}"));
    }
}

/// Privileges and the checking functions: what belongs to the database `bib`. Runs in it.
pub(crate) async fn database(connection: &mut PgConnection) -> Result<(), Error> {
    const WHAT: &str = "set the privileges of the database";
    let mut sql = Script::default();
    sql.add(format!("ALTER DATABASE {DATABASE} OWNER TO {OWNER}"));
    for creator in [OWNER, MIGRATE, ADMIN] {
        sql.add(format!("ALTER DEFAULT PRIVILEGES FOR ROLE {creator} REVOKE EXECUTE ON FUNCTIONS FROM PUBLIC"));
        sql.add(format!("ALTER DEFAULT PRIVILEGES FOR ROLE {creator} REVOKE USAGE ON TYPES FROM PUBLIC"));
    }
    let monitor = GroupRole::Monitor.name();
    sql.add(format!("CREATE SCHEMA IF NOT EXISTS {CHECK_SCHEMA} AUTHORIZATION {ADMIN}"));
    sql.add(format!("REVOKE ALL ON SCHEMA {CHECK_SCHEMA} FROM PUBLIC"));
    sql.add(format!("GRANT USAGE ON SCHEMA {CHECK_SCHEMA} TO {monitor}"));
    // Counts only: what bibd_monitor learns about passwords is how many are of which kind. Those of an operator come in
    // without one, and are nobody's anywhere else (C.3-21).
    sql.add(format!(
        "CREATE OR REPLACE FUNCTION {CHECK_SCHEMA}.passwords(
             OUT md5 bigint, OUT other bigint, OUT weakest bigint, OUT missing bigint)
         LANGUAGE sql STABLE SECURITY DEFINER SET search_path = pg_catalog, pg_temp
         AS $$
             SELECT count(*) FILTER (WHERE rolpassword LIKE 'md5%'),
                    count(*) FILTER (WHERE rolpassword NOT LIKE 'SCRAM-SHA-256$%'),
                    coalesce(min(CASE WHEN rolpassword LIKE 'SCRAM-SHA-256$%'
                                      THEN split_part(split_part(rolpassword, '$', 2), ':', 1)::bigint END), 0),
                    count(*) FILTER (WHERE rolpassword IS NULL AND rolcanlogin
                                           AND rolname NOT IN ('{OPERATOR}', '{OPERATOR_REPLICA}'))
             FROM pg_authid
         $$"
    ));
    sql.add(format!(
        "CREATE OR REPLACE FUNCTION {CHECK_SCHEMA}.file_settings(
             OUT errors bigint, OUT foreign_settings bigint)
         LANGUAGE sql STABLE SECURITY DEFINER SET search_path = pg_catalog, pg_temp
         AS $$
             SELECT count(*) FILTER (WHERE error IS NOT NULL),
                    count(*) FILTER (WHERE sourcefile <> current_setting('config_file'))
             FROM pg_file_settings
         $$"
    ));
    for function in ["passwords", "file_settings"] {
        sql.add(format!("REVOKE ALL ON FUNCTION {CHECK_SCHEMA}.{function}() FROM PUBLIC"));
        sql.add(format!("GRANT EXECUTE ON FUNCTION {CHECK_SCHEMA}.{function}() TO {monitor}"));
    }
    sql.add(format!("GRANT SELECT ON pg_hba_file_rules TO {monitor}"));
    sql.add(format!("GRANT EXECUTE ON FUNCTION pg_hba_file_rules() TO {monitor}"));
    let mut transaction = connection.begin().await.map_err(Error::sql(WHAT))?;
    sql.run(&mut transaction, WHAT).await?;
    transaction.commit().await.map_err(Error::sql(WHAT))?;
    drop_public(&mut *connection).await?;
    wake_checkpointer(connection).await
}

/// A checkpointer that was started while the server recovered sleeps until its next checkpoint and minds
/// `archive_timeout` only from then on: for a quarter of an hour nothing that was written would leave the node. The
/// signal of a reload wakes it.
async fn wake_checkpointer(connection: &mut PgConnection) -> Result<(), Error> {
    let woken = sqlx::query("SELECT pg_reload_conf()").execute(connection).await;
    woken.map(drop).map_err(Error::sql("wake the checkpointer"))
}

/// Drops the schema `public` when nothing is in it. Kept, closed, when somebody put something there.
async fn drop_public(connection: &mut PgConnection) -> Result<(), Error> {
    const WHAT: &str = "close the schema public";
    const DEPENDENT_OBJECTS_STILL_EXIST: &str = "2BP01";
    let found = sqlx::query("SELECT 1 FROM pg_namespace WHERE nspname = 'public'")
        .fetch_optional(&mut *connection)
        .await
        .map_err(Error::sql(WHAT))?;
    if found.is_none() {
        return Ok(());
    }
    let mut close = Script::default();
    close.add("REVOKE ALL ON SCHEMA public FROM PUBLIC");
    close.run(connection, WHAT).await?;
    let mut drop = Script::default();
    drop.add("DROP SCHEMA public RESTRICT");
    match drop.run(connection, WHAT).await {
        Err(Error::Sql { source, .. })
            if source
                .as_database_error()
                .is_some_and(|e| e.code().as_deref() == Some(DEPENDENT_OBJECTS_STILL_EXIST)) =>
        {
            tracing::warn!("the schema public of the database is not empty; it stays, closed to everybody");
            Ok(())
        }
        other => other,
    }
}

/// Lets the migrations in, for an hour at most.
pub(crate) async fn open_migration(connection: &mut PgConnection, verifier: &str) -> Result<(), Error> {
    const WHAT: &str = "open the migrations' login";
    // The server's own clock decides when it expires, as it will when it is asked.
    let until: String = sqlx::query_scalar("SELECT (now() + interval '1 hour')::text")
        .fetch_one(&mut *connection)
        .await
        .map_err(Error::sql(WHAT))?;
    let mut sql = Script::default();
    sql.add(format!("ALTER ROLE {MIGRATE} LOGIN PASSWORD '{verifier}' VALID UNTIL '{until}'"));
    sql.run(connection, WHAT).await
}

/// Shuts the migrations out and ends what they left running.
pub(crate) async fn close_migration(connection: &mut PgConnection) -> Result<(), Error> {
    const WHAT: &str = "close the migrations' login";
    let mut sql = Script::default();
    sql.add(format!("ALTER ROLE {MIGRATE} NOLOGIN PASSWORD NULL"));
    sql.run(connection, WHAT).await?;
    sqlx::query("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename = $1")
        .bind(MIGRATE)
        .execute(connection)
        .await
        .map_err(Error::sql(WHAT))?;
    Ok(())
}

/// Gives these roles their passwords, as verifiers, and lets them in; together or not at all.
pub(crate) async fn open_logins(
    connection: &mut PgConnection,
    verifiers: &[(String, SecretString)],
) -> Result<(), Error> {
    const WHAT: &str = "open the next logins";
    let mut sql = Script::default();
    for (name, verifier) in verifiers {
        sql.add(format!("ALTER ROLE {name} LOGIN PASSWORD '{}'", verifier.expose_secret()));
    }
    let mut transaction = connection.begin().await.map_err(Error::sql(WHAT))?;
    sql.run(&mut transaction, WHAT).await?;
    transaction.commit().await.map_err(Error::sql(WHAT))
}

/// Shuts these logins out and ends their sessions.
pub(crate) async fn close_logins(connection: &mut PgConnection, logins: &[String]) -> Result<(), Error> {
    const WHAT: &str = "close the former logins";
    let mut sql = Script::default();
    for name in logins {
        sql.add(format!("ALTER ROLE {name} NOLOGIN PASSWORD NULL"));
    }
    let mut transaction = connection.begin().await.map_err(Error::sql(WHAT))?;
    sql.run(&mut transaction, WHAT).await?;
    transaction.commit().await.map_err(Error::sql(WHAT))?;
    end_sessions(connection, logins).await
}

/// How long the server may take to end sessions that it was told to end.
const SESSION_END_DEADLINE: Duration = Duration::from_secs(5);

/// Ends every session of these logins and waits until they are gone.
pub(crate) async fn end_sessions(connection: &mut PgConnection, logins: &[String]) -> Result<(), Error> {
    const WHAT: &str = "end the sessions of former logins";
    let begun = Instant::now();
    loop {
        // Asked again: one that was let in an instant before its login was closed may have shown itself only now.
        let told: i64 =
            sqlx::query_scalar("SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity WHERE usename = ANY($1)")
                .bind(logins)
                .fetch_one(&mut *connection)
                .await
                .map_err(Error::sql(WHAT))?;
        if told == 0 {
            return Ok(());
        }
        if begun.elapsed() >= SESSION_END_DEADLINE {
            return Err(Error::Deadline {
                what: "the end of sessions on former logins",
                deadline: SESSION_END_DEADLINE,
            });
        }
        tokio::time::sleep(SESSION_END_STEP).await;
    }
}

const SESSION_END_STEP: Duration = Duration::from_millis(20);

/// Statements to run in order. Built from constants of this crate, numbers and verifiers: never from outside.
#[derive(Default)]
pub(crate) struct Script(String);

impl Script {
    pub(crate) fn add(&mut self, statement: impl AsRef<str>) {
        self.0.push_str(statement.as_ref());
        self.0.push_str(";\n");
    }

    pub(crate) async fn run(self, connection: &mut PgConnection, what: &'static str) -> Result<(), Error> {
        // The text holds verifiers: wiped afterwards by whoever holds it last, which is us.
        let text = zeroize::Zeroizing::new(self.0);
        sqlx::raw_sql(AssertSqlSafe(text.as_str())).execute(connection).await.map_err(Error::sql(what))?;
        Ok(())
    }
}
