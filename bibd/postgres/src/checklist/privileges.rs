//! Who may do what to which object: C.3, 22 to 31.

use sqlx::Row as _;
use sqlx::postgres::PgConnection;

use crate::error::Error;
use crate::glass;
use crate::role::GroupRole;

use super::roles::names;
use super::{Expected, Finding, Findings, Status};

/// Every group role, those of break-glass too, against every table outside the system's schemas, partitions left out: one line
/// `schema.table role SIUDT`, a letter for each verb (SELECT, INSERT, UPDATE, DELETE, TRUNCATE) or `-`, sorted.
///
/// # Errors
/// [`Error::Sql`].
pub async fn matrix(connection: &mut PgConnection) -> Result<String, Error> {
    let glass = glass::Access::ALL.map(glass::Access::group);
    let roles: Vec<String> = GroupRole::ALL.map(GroupRole::name).into_iter().chain(glass).map(str::to_owned).collect();
    let rows: Vec<String> = sqlx::query_scalar(
        "SELECT n.nspname || '.' || c.relname || ' ' || r.role || ' '
                || CASE WHEN has_table_privilege(r.role, c.oid, 'SELECT') THEN 'S' ELSE '-' END
                || CASE WHEN has_table_privilege(r.role, c.oid, 'INSERT') THEN 'I' ELSE '-' END
                || CASE WHEN has_table_privilege(r.role, c.oid, 'UPDATE') THEN 'U' ELSE '-' END
                || CASE WHEN has_table_privilege(r.role, c.oid, 'DELETE') THEN 'D' ELSE '-' END
                || CASE WHEN has_table_privilege(r.role, c.oid, 'TRUNCATE') THEN 'T' ELSE '-' END
         FROM pg_class c
         JOIN pg_namespace n ON n.oid = c.relnamespace
         CROSS JOIN unnest($1::text[]) AS r (role)
         WHERE c.relkind IN ('r', 'p', 'v', 'm', 'f')
           AND NOT c.relispartition
           AND n.nspname !~ '^pg_'
           AND n.nspname <> 'information_schema'
         ORDER BY 1",
    )
    .bind(roles)
    .fetch_all(connection)
    .await
    .map_err(Error::sql("read the privileges on tables"))?;
    Ok(rows.into_iter().map(|row| row + "\n").collect())
}

/// The items about privileges and objects.
pub(super) async fn check(
    connection: &mut PgConnection,
    expected: &Expected,
    findings: &mut Findings,
) -> Result<(), Error> {
    tables(connection, expected, findings).await?;
    audit_tables_exist(connection, findings).await?;
    for (item, title, expected, what, sql) in LISTS {
        let problems = names(connection, what, sql).await?;
        findings.none(item, title, problems, expected);
    }
    Ok(())
}

async fn tables(connection: &mut PgConnection, expected: &Expected, findings: &mut Findings) -> Result<(), Error> {
    const ITEM: &str = "C.3-24";
    const TITLE: &str = "roles by tables by verbs";
    let found = matrix(&mut *connection).await?;
    let Some(golden) = &expected.matrix else {
        let (observed, expected) = ("no golden list was given".to_owned(), "the golden list".to_owned());
        findings.add(Finding { item: ITEM, title: TITLE, status: Status::Warn, observed, expected });
        return Ok(());
    };
    let lines = |text: &str| text.lines().map(str::to_owned).collect::<std::collections::BTreeSet<_>>();
    let (found, golden) = (lines(&found), lines(golden));
    let mut problems: Vec<String> = found.difference(&golden).map(|line| format!("has {line}")).collect();
    problems.extend(golden.difference(&found).map(|line| format!("lacks {line}")));
    findings.none(ITEM, TITLE, problems, "the golden list, every cell");
    Ok(())
}

async fn audit_tables_exist(connection: &mut PgConnection, findings: &mut Findings) -> Result<(), Error> {
    // A table of the log that does not exist cannot be protected.
    let row = sqlx::query(
        "SELECT array_agg(t) FROM unnest(ARRAY['audit_entry', 'audit_detail', 'audit_seal']) t
         WHERE NOT EXISTS (SELECT 1 FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
                           WHERE n.nspname = 'bib' AND c.relname = t)",
    )
    .fetch_one(connection)
    .await
    .map_err(Error::sql("look for the audit tables"))?;
    let missing: Option<Vec<String>> = row.get(0);
    let missing = missing.unwrap_or_default().into_iter().map(|table| format!("{table} does not exist")).collect();
    findings.none("C.3-30", "the audit log is append-only", missing, "its tables exist");
    Ok(())
}

/// `(item, title, expected, what, query)`: each query lists what is wrong.
type List = (&'static str, &'static str, &'static str, &'static str, &'static str);

const LISTS: [List; 10] = [
    (
        "C.3-22",
        "nothing for PUBLIC",
        "no database and no schema is open to PUBLIC",
        "list what PUBLIC may",
        "SELECT 'PUBLIC has ' || a.privilege_type || ' on database ' || d.datname
         FROM pg_database d, aclexplode(coalesce(d.datacl, acldefault('d', d.datdba))) a
         WHERE a.grantee = 0 AND d.datallowconn
         UNION ALL
         SELECT 'PUBLIC has ' || a.privilege_type || ' on schema ' || n.nspname
         FROM pg_namespace n, aclexplode(coalesce(n.nspacl, acldefault('n', n.nspowner))) a
         WHERE a.grantee = 0 AND n.nspname !~ '^pg_' AND n.nspname <> 'information_schema'",
    ),
    (
        "C.3-23",
        "owners cannot log in",
        "everything belongs to bibd_owner",
        "list who owns what",
        "WITH own AS (SELECT oid FROM pg_roles WHERE rolname = 'bibd_owner'),
              there AS (SELECT oid, nspname, nspowner FROM pg_namespace
                        WHERE nspname !~ '^pg_' AND nspname NOT IN ('information_schema', 'bibd_check'))
         SELECT 'schema ' || nspname || ' belongs to ' || pg_get_userbyid(nspowner)
         FROM there WHERE nspowner NOT IN (SELECT oid FROM own) AND nspname <> 'public'
         UNION ALL
         SELECT nspname || '.' || relname || ' belongs to ' || pg_get_userbyid(relowner)
         FROM pg_class JOIN there ON there.oid = relnamespace
         WHERE relowner NOT IN (SELECT oid FROM own)
         UNION ALL
         SELECT 'function ' || nspname || '.' || proname || ' belongs to ' || pg_get_userbyid(proowner)
         FROM pg_proc JOIN there ON there.oid = pronamespace
         WHERE proowner NOT IN (SELECT oid FROM own)
         UNION ALL
         SELECT 'type ' || nspname || '.' || typname || ' belongs to ' || pg_get_userbyid(typowner)
         FROM pg_type JOIN there ON there.oid = typnamespace
         WHERE typowner NOT IN (SELECT oid FROM own)
         UNION ALL
         SELECT 'database ' || datname || ' belongs to ' || pg_get_userbyid(datdba)
         FROM pg_database WHERE datname = current_database() AND datdba NOT IN (SELECT oid FROM own)",
    ),
    (
        "C.3-25",
        "future objects closed",
        "new functions and types are for nobody until granted",
        "list the default privileges",
        "SELECT 'what ' || r.rolname || ' makes (' || k.kind::text || ') is open to PUBLIC'
         FROM pg_roles r CROSS JOIN (VALUES ('f'::\"char\"), ('T'::\"char\")) k (kind)
         WHERE r.rolname IN ('bibd_owner', 'bibd_migrate', 'bibd_admin')
           AND NOT EXISTS (
               SELECT 1 FROM pg_default_acl d
               WHERE d.defaclrole = r.oid AND d.defaclnamespace = 0 AND d.defaclobjtype = k.kind
                 AND NOT EXISTS (SELECT 1 FROM aclexplode(d.defaclacl) a WHERE a.grantee = 0))
         UNION ALL
         SELECT 'a schema opens future objects to ' || CASE a.grantee WHEN 0 THEN 'PUBLIC' ELSE pg_get_userbyid(a.grantee)::text END
         FROM pg_default_acl d, aclexplode(d.defaclacl) a
         WHERE a.grantee = 0",
    ),
    (
        "C.3-26",
        "functions closed, search_path fixed",
        "SECURITY DEFINER with search_path; no EXECUTE for PUBLIC",
        "list the functions",
        "SELECT n.nspname || '.' || p.proname || ' has no fixed search_path'
         FROM pg_proc p JOIN pg_namespace n ON n.oid = p.pronamespace
         WHERE p.prosecdef AND n.nspname NOT IN ('pg_catalog', 'information_schema')
           AND NOT coalesce(p.proconfig::text LIKE '%search_path%', false)
         UNION ALL
         SELECT 'PUBLIC may execute ' || n.nspname || '.' || p.proname
         FROM pg_proc p JOIN pg_namespace n ON n.oid = p.pronamespace,
              aclexplode(coalesce(p.proacl, acldefault('f', p.proowner))) a
         WHERE a.grantee = 0 AND n.nspname NOT IN ('pg_catalog', 'information_schema')",
    ),
    (
        "C.3-28",
        "extensions",
        "plpgsql alone",
        "list the extensions",
        "SELECT extname::text FROM pg_extension WHERE extname NOT IN ('plpgsql')",
    ),
    (
        "C.3-29",
        "no untrusted languages",
        "none but the server's own",
        "list the languages",
        "SELECT lanname::text FROM pg_language WHERE NOT lanpltrusted AND lanname NOT IN ('internal', 'c')",
    ),
    (
        "C.3-30",
        "the audit log is append-only",
        "INSERT and SELECT for applications, nothing else",
        "list the privileges on the audit log",
        "SELECT CASE a.grantee WHEN 0 THEN 'PUBLIC' ELSE pg_get_userbyid(a.grantee)::text END
                || ' has ' || a.privilege_type || ' on ' || c.relname
         FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace,
              aclexplode(coalesce(c.relacl, acldefault('r', c.relowner))) a
         WHERE n.nspname = 'bib' AND c.relkind IN ('r', 'p')
           AND c.relname ~ '^audit_(entry|detail|seal|checkpoint)(_|$)'
           AND a.grantee <> c.relowner AND a.privilege_type NOT IN ('SELECT', 'INSERT')",
    ),
    (
        "C.3-30",
        "the audit log is append-only",
        "triggers against UPDATE, DELETE and TRUNCATE on each part, ALWAYS",
        "list the triggers of the audit log",
        // Bits of tgtype: 1 row, 2 before, 8 delete, 16 update, 32 truncate.
        "SELECT c.relname || ' lacks its trigger against ' || v.verb
         FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
              CROSS JOIN (VALUES ('DELETE', 1 | 2 | 8), ('UPDATE', 1 | 2 | 16), ('TRUNCATE', 2 | 32)) v (verb, bits)
         WHERE n.nspname = 'bib' AND c.relkind = 'r'
           AND c.relname ~ '^audit_(entry|detail|seal|checkpoint)(_|$)'
           AND NOT EXISTS (SELECT 1 FROM pg_trigger t
                           WHERE t.tgrelid = c.oid AND t.tgenabled = 'A' AND t.tgtype & v.bits = v.bits)",
    ),
    (
        "C.3-30",
        "the audit log is append-only",
        "no foreign key removes its rows",
        "list the foreign keys of the audit log",
        "SELECT k.conname || ' on ' || c.relname || ' cascades'
         FROM pg_constraint k JOIN pg_class c ON c.oid = k.conrelid JOIN pg_namespace n ON n.oid = c.relnamespace
         WHERE k.contype = 'f' AND n.nspname = 'bib' AND (k.confdeltype IN ('c', 'n', 'd') OR k.confupdtype IN ('c', 'n', 'd'))
           AND c.relname ~ '^audit_(entry|detail|seal|checkpoint)(_|$)'",
    ),
    (
        "C.3-31",
        "row security is forced where it is claimed",
        "no table with row security that its owner escapes",
        "list the tables with row security",
        "SELECT n.nspname || '.' || c.relname FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
         WHERE c.relrowsecurity AND NOT c.relforcerowsecurity AND n.nspname !~ '^pg_'",
    ),
];
