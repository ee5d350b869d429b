//! Who the roles are, what they belong to and what stands on them: C.3, 19 to 21 and 27.

use std::collections::{BTreeMap, BTreeSet};

use sqlx::Row as _;
use sqlx::postgres::PgConnection;

use crate::ensure::{MIGRATE_LIMITS, memberships, role_settings};
use crate::error::Error;
use crate::glass::{self, GlassName};
use crate::role::{ADMIN, GroupRole, Letter, MIGRATE, OPERATOR, OPERATOR_REPLICA, OWNER, RoleLimits};
use crate::version::Version;

use super::Findings;

/// The items about roles.
pub(super) async fn check(
    connection: &mut PgConnection,
    version: Version,
    is_operated: bool,
    findings: &mut Findings,
) -> Result<(), Error> {
    attributes(connection, is_operated, findings).await?;
    members(connection, is_operated, findings).await?;
    limits(connection, version, findings).await
}

/// One column of text.
pub(super) async fn names(
    connection: &mut PgConnection,
    what: &'static str,
    sql: &'static str,
) -> Result<Vec<String>, Error> {
    sqlx::query_scalar(sql).fetch_all(connection).await.map_err(Error::sql(what))
}

/// Roles of an operator that makes the server's pods: its superuser, and its servers that follow.
const OPERATORS: [&str; 2] = [OPERATOR, OPERATOR_REPLICA];

async fn attributes(connection: &mut PgConnection, is_operated: bool, findings: &mut Findings) -> Result<(), Error> {
    let supers = names(
        connection,
        "list the superusers",
        "SELECT rolname::text FROM pg_roles WHERE rolsuper AND rolcanlogin ORDER BY 1",
    )
    .await?;
    let (wanted, expected): (&[&str], &str) =
        if is_operated { (&[ADMIN, OPERATOR], "bibd_admin, and the operator's postgres") } else { (&[ADMIN], ADMIN) };
    findings.check("C.3-19", "one superuser", supers == wanted, supers.join(", "), expected);
    let mut mighty = names(
        connection,
        "list the roles with attributes",
        "SELECT rolname || concat(CASE WHEN rolcreaterole THEN ' CREATEROLE' END,
                                  CASE WHEN rolcreatedb THEN ' CREATEDB' END,
                                  CASE WHEN rolbypassrls THEN ' BYPASSRLS' END,
                                  CASE WHEN rolreplication THEN ' REPLICATION' END)
         FROM pg_roles
         WHERE rolname <> 'bibd_admin'
           AND (rolcreaterole OR rolcreatedb OR rolbypassrls
                OR (rolreplication AND rolname NOT IN ('bibd_backup_a', 'bibd_backup_b')))
         ORDER BY 1",
    )
    .await?;
    let of_operator = |line: &String| OPERATORS.iter().any(|role| line.split(' ').next() == Some(role));
    mighty.retain(|line| !(is_operated && of_operator(line)));
    findings.none("C.3-20", "no mighty roles", mighty, "none, and REPLICATION on bibd_backup's logins alone");
    let mut open = names(
        connection,
        "list the owners who can log in",
        "SELECT rolname || ' can log in' FROM pg_roles
         WHERE rolcanlogin AND (rolname IN ('bibd_owner', 'bibd_migrate') OR rolname ~ '^bibd_[a-z_]+_b$')
         ORDER BY 1",
    )
    .await?;
    // The idle login of a pair may be `_a` after a rotation: what counts is that one of each can log in.
    let pairs = names(
        connection,
        "list the pairs",
        "SELECT rolname::text FROM pg_roles WHERE rolcanlogin AND rolname ~ '^bibd_[a-z_]+_[ab]$'",
    )
    .await?;
    open.retain(|line| {
        let name = line.trim_end_matches(" can log in");
        name == OWNER || name == MIGRATE || pairs.contains(&format!("{}_a", name.trim_end_matches("_b")))
    });
    findings.none(
        "C.3-23",
        "owners cannot log in",
        open,
        "bibd_owner and bibd_migrate NOLOGIN, one login of each pair",
    );
    Ok(())
}

async fn members(connection: &mut PgConnection, is_operated: bool, findings: &mut Findings) -> Result<(), Error> {
    let rows = sqlx::query(
        "SELECT r.rolname::text, m.rolname::text, a.admin_option
         FROM pg_auth_members a
         JOIN pg_roles r ON r.oid = a.roleid
         JOIN pg_roles m ON m.oid = a.member
         WHERE m.rolname !~ '^pg_'",
    )
    .fetch_all(&mut *connection)
    .await
    .map_err(Error::sql("list the memberships"))?;
    let golden = memberships();
    let found: BTreeSet<(String, String)> = rows.iter().map(|row| (row.get(0), row.get(1))).collect();
    let mut problems: Vec<String> = found
        .difference(&golden)
        .filter(|(role, member)| !is_glass_membership(role, member))
        .map(|(role, member)| format!("{member} is in {role}"))
        .collect();
    problems.extend(golden.difference(&found).map(|(role, member)| format!("{member} is not in {role}")));
    problems.extend(
        rows.iter()
            .filter(|row| row.get(2))
            .map(|row| format!("{} may give {} away", row.get::<String, _>(1), row.get::<String, _>(0))),
    );
    let known: BTreeSet<String> = GroupRole::ALL
        .into_iter()
        .flat_map(|group| [group.name().to_owned(), group.login_name(Letter::A), group.login_name(Letter::B)])
        .chain([OWNER, MIGRATE, ADMIN].map(str::to_owned))
        .chain(glass::Access::ALL.map(|access| access.group().to_owned()))
        .chain(OPERATORS.into_iter().filter(|_| is_operated).map(str::to_owned))
        .collect();
    let roles =
        names(connection, "list the roles", "SELECT rolname::text FROM pg_roles WHERE rolname !~ '^pg_' ORDER BY 1")
            .await?;
    problems.extend(
        roles
            .into_iter()
            .filter(|role| !known.contains(role) && GlassName::parse(role).is_none())
            .map(|role| format!("{role} is not one of BIB's")),
    );
    findings.none("C.3-21", "memberships", problems, "the golden list, and no role that is not BIB's");
    Ok(())
}

async fn limits(connection: &mut PgConnection, version: Version, findings: &mut Findings) -> Result<(), Error> {
    let rows = sqlx::query(
        "SELECT coalesce(r.rolname::text, 'ALL'), coalesce(d.datname::text, ''), unnest(s.setconfig)
         FROM pg_db_role_setting s
         LEFT JOIN pg_roles r ON r.oid = s.setrole
         LEFT JOIN pg_database d ON d.oid = s.setdatabase",
    )
    .fetch_all(&mut *connection)
    .await
    .map_err(Error::sql("list the settings of roles"))?;
    let found: BTreeSet<String> =
        rows.iter().map(|row| [0, 1, 2].map(|index| row.get::<String, _>(index)).join(" ")).collect();
    let logins: Vec<(String, RoleLimits)> = GroupRole::ALL
        .into_iter()
        .flat_map(|group| Letter::ALL.map(|letter| (group.login_name(letter), group.limits())))
        .chain([(MIGRATE.to_owned(), MIGRATE_LIMITS)])
        .collect();
    let golden: BTreeSet<String> = logins
        .iter()
        .flat_map(|(login, limits)| {
            role_settings(*limits, version).into_iter().map(move |(name, value)| format!("{login}  {name}={value}"))
        })
        .collect();
    let of_glass: BTreeSet<String> = glass::Access::ALL
        .into_iter()
        .flat_map(|access| glass::role_settings(access, true, version.major))
        .map(|(name, value)| format!("{name}={}", value.trim_matches('\'')))
        .collect();
    let is_of_glass = |line: &str| {
        line.split_once("  ").is_some_and(|(role, set)| GlassName::parse(role).is_some() && of_glass.contains(set))
    };
    let mut problems: Vec<String> =
        found.difference(&golden).filter(|line| !is_of_glass(line)).map(|line| format!("has {line}")).collect();
    problems.extend(golden.difference(&found).map(|line| format!("lacks {line}")));
    let connections: BTreeMap<String, i32> =
        sqlx::query("SELECT rolname::text, rolconnlimit FROM pg_roles WHERE rolname ~ '^bibd_'")
            .fetch_all(connection)
            .await
            .map_err(Error::sql("list the connection limits"))?
            .iter()
            .map(|row| (row.get(0), row.get(1)))
            .collect();
    for (login, limits) in logins {
        let found = connections.get(&login).copied().unwrap_or_default();
        if i64::from(found) != i64::from(limits.connections) {
            problems.push(format!("{login} has CONNECTION LIMIT {found}"));
        }
    }
    findings.none(
        "C.3-27",
        "limits on every login",
        problems,
        "timeouts, temp_file_limit, search_path, CONNECTION LIMIT",
    );
    Ok(())
}

/// A role of break-glass, while there is one, in one of the two groups that are for it.
fn is_glass_membership(role: &str, member: &str) -> bool {
    GlassName::parse(member).is_some() && glass::Access::ALL.into_iter().any(|access| access.group() == role)
}
