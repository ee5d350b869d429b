//! Who may do what: roles by tables by verbs, and functions, against golden lists that are themselves asserted.
#![allow(clippy::unwrap_used, clippy::print_stderr)]

mod support;

use std::collections::{BTreeMap, BTreeSet};

use bibd_postgres::{GroupRole, checklist};
use expect_test::expect_file;
use support::{machine_has_postgres, migrated, run, texts};

const ROLES: &str = include_str!("../golden/roles.txt");
const FUNCTIONS: &str = include_str!("../golden/functions.txt");

/// The tables whose rows are the log. The queue and the sequencer's state are not.
const LOG: [&str; 4] = ["bib.audit_checkpoint", "bib.audit_detail", "bib.audit_entry", "bib.audit_seal"];

/// The groups of break-glass.
const GLASS: [&str; 2] = ["bibd_glass_read", "bibd_glass_write"];

/// (table, role) to verbs.
fn golden() -> BTreeMap<(&'static str, &'static str), &'static str> {
    let cell = |line: &'static str| {
        let [table, role, verbs] = line.split(' ').collect::<Vec<_>>().try_into().unwrap();
        ((table, role), verbs)
    };
    ROLES.lines().map(cell).collect()
}

#[tokio::test]
async fn every_role_has_exactly_its_rights_and_no_way_around_them() {
    if !machine_has_postgres().await {
        return;
    }
    let server = migrated().await;
    let mut service = server.connect(GroupRole::Service).await;
    run(&mut service, "SELECT bib.audit_make_month(now()), bib.audit_make_block(1, 1)").await.unwrap();
    let matrix = checklist::matrix(&mut server.connect(GroupRole::Monitor).await).await.unwrap();
    expect_file!["../golden/roles.txt"].assert_eq(&matrix);

    let mut superuser = server.attacker().await;
    let functions = "
        SELECT p.oid::regprocedure::text || ' ' || CASE WHEN p.prosecdef THEN 'definer' ELSE 'invoker' END || ' '
               || coalesce((SELECT string_agg(r.rolname, ' ' ORDER BY r.rolname) FROM pg_roles r
                            WHERE r.rolname ~ '^bibd_' AND NOT r.rolsuper AND r.rolname <> 'bibd_owner'
                              AND r.rolname !~ '_[ab]$' AND has_function_privilege(r.oid, p.oid, 'EXECUTE')), 'nobody')
        FROM pg_proc p WHERE p.pronamespace IN (SELECT oid FROM pg_namespace WHERE nspname ~ '^bib(_meta)?$')
        ORDER BY 1";
    let functions = texts(&mut superuser, functions).await.join("\n") + "\n";
    expect_file!["../golden/functions.txt"].assert_eq(&functions);

    // (what must be nothing, the question)
    let none = [
        ("a login of a pair that may more or less than its group",
         "SELECT l.rolname || ' on ' || c.oid::regclass FROM pg_roles l JOIN pg_roles g ON l.rolname IN (g.rolname || '_a', g.rolname || '_b'),
          pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace, unnest(ARRAY['SELECT', 'INSERT', 'UPDATE', 'DELETE', 'TRUNCATE', 'REFERENCES', 'TRIGGER']) v
          WHERE n.nspname ~ '^bib' AND c.relkind IN ('r', 'p')
            AND has_table_privilege(l.oid, c.oid, v) <> has_table_privilege(g.oid, c.oid, v)"),
        ("the owner or the migrations' role that can log in",
         "SELECT rolname FROM pg_roles WHERE rolname IN ('bibd_owner', 'bibd_migrate') AND (rolcanlogin OR rolsuper)"),
        ("a group role that can log in", "SELECT rolname FROM pg_roles WHERE rolname ~ '^bibd_' AND rolname !~ '_[ab]$' AND rolname <> 'bibd_admin' AND rolcanlogin"),
        ("a right of the migrations' role without SET ROLE",
         "SELECT c.oid::regclass::text FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
          WHERE n.nspname ~ '^bib' AND c.relkind IN ('r', 'p') AND has_table_privilege('bibd_migrate', c.oid, 'SELECT, INSERT, UPDATE, DELETE')"),
        ("a member of the owner besides the migrations' role",
         "SELECT m.member::regrole::text FROM pg_auth_members m WHERE m.roleid = 'bibd_owner'::regrole AND m.member <> 'bibd_migrate'::regrole"),
        ("a right of PUBLIC on a table, sequence or view",
         "SELECT c.oid::regclass || ' ' || a.privilege_type FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace,
          aclexplode(c.relacl) a WHERE n.nspname ~ '^bib' AND a.grantee = 0"),
        ("a right of PUBLIC on a schema, the database or a function",
         "SELECT n.nspname || ' ' || a.privilege_type FROM pg_namespace n, aclexplode(coalesce(n.nspacl, acldefault('n', n.nspowner))) a
          WHERE n.nspname ~ '^bib' AND a.grantee = 0
          UNION ALL SELECT p.oid::regprocedure || ' EXECUTE' FROM pg_proc p JOIN pg_namespace n ON n.oid = p.pronamespace,
          aclexplode(coalesce(p.proacl, acldefault('f', p.proowner))) a WHERE n.nspname ~ '^bib' AND a.grantee = 0
          UNION ALL SELECT d.datname || ' ' || a.privilege_type FROM pg_database d, aclexplode(coalesce(d.datacl, acldefault('d', d.datdba))) a
          WHERE d.datname = 'bib' AND a.grantee = 0"),
        ("a right on a single column", "SELECT attrelid::regclass || '.' || attname FROM pg_attribute WHERE attacl IS NOT NULL AND attrelid::regclass::text ~ '^bib'"),
        ("a right on a partition, past its parent",
         "SELECT c.oid::regclass || ' ' || a.grantee::regrole FROM pg_class c, aclexplode(c.relacl) a
          WHERE c.relispartition AND c.relkind = 'r' AND a.grantee <> c.relowner"),
        ("a right on a sequence", "SELECT c.oid::regclass || ' ' || a.grantee::regrole FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace,
          aclexplode(c.relacl) a WHERE n.nspname ~ '^bib' AND c.relkind = 'S' AND a.grantee <> c.relowner"),
        ("a right that can be handed on", "SELECT c.oid::regclass || ' ' || a.grantee::regrole FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace,
          aclexplode(c.relacl) a WHERE n.nspname ~ '^bib' AND a.is_grantable AND a.grantee <> c.relowner"),
        ("a function with its owner's rights and no fixed search_path",
         "SELECT p.oid::regprocedure::text FROM pg_proc p JOIN pg_namespace n ON n.oid = p.pronamespace
          WHERE n.nspname ~ '^bib' AND p.prosecdef AND NOT coalesce(p.proconfig::text ~ 'search_path=[^,]*pg_catalog|search_path=bib, pg_catalog', false)"),
        ("a right to make things in a schema",
         "SELECT n.nspname || ' ' || r.rolname FROM pg_namespace n, pg_roles r WHERE n.nspname ~ '^(bib|public)'
          AND r.rolname ~ '^bibd_' AND NOT r.rolsuper AND r.rolname <> 'bibd_owner' AND has_schema_privilege(r.oid, n.oid, 'CREATE')"),
    ];
    for (what, sql) in none {
        assert_eq!(texts(&mut superuser, sql).await, Vec::<String>::new(), "{what}");
    }
}

#[test]
fn the_golden_matrix_is_whole() {
    let golden = golden();
    let tables: BTreeSet<_> = golden.keys().map(|(table, _)| *table).collect();
    let roles: BTreeSet<_> = golden.keys().map(|(_, role)| *role).collect();
    let groups = GroupRole::ALL.iter().map(|role| role.name()).chain(GLASS);
    assert_eq!(roles, groups.collect());
    assert_eq!(golden.len(), tables.len() * roles.len(), "every cell");
    assert!(LOG.iter().all(|table| tables.contains(table)) && tables.len() > 30);
    assert!(golden.values().all(|verbs| !verbs.contains('T')), "nobody may TRUNCATE anything");
}

#[test]
fn in_the_golden_matrix_nobody_changes_the_log() {
    for ((table, role), verbs) in golden() {
        if LOG.contains(&table) {
            assert!(!verbs.contains(['U', 'D', 'T']), "{table} {role} {verbs}");
        }
        let may_insert = verbs.contains('I');
        if ["bib.audit_seal", "bib.audit_checkpoint"].contains(&table) {
            assert_eq!(may_insert, role == "bibd_seal", "{table} {role}");
        }
        if ["bib.audit_head", "bib.audit_unsealed"].contains(&table) {
            assert!(role == "bibd_seal" || !verbs.contains(['I', 'U', 'D']), "{table} {role} {verbs}");
        }
        if ["bib.audit_entry", "bib.audit_detail"].contains(&table) {
            let reads_only = ["bibd_backup", "bibd_monitor"].contains(&role) || GLASS.contains(&role);
            assert_eq!(may_insert, !reads_only, "{table} {role}");
        }
        if ["bibd_backup", "bibd_monitor"].contains(&role) {
            assert!(!verbs.contains(['I', 'U', 'D']), "{table} {role} {verbs}");
        }
    }
}

#[test]
fn in_the_golden_matrix_a_person_reads_all_and_never_writes_the_log_or_the_record_of_break_glass() {
    let schema = |table: &str| table.starts_with("bib.");
    for ((table, role), verbs) in golden() {
        let is_record = table.starts_with("bib.audit_") || table.starts_with("bib.glass_");
        let wanted = match role {
            "bibd_glass_read" | "bibd_glass_write" if !schema(table) => "-----",
            "bibd_glass_read" => "S----",
            "bibd_glass_write" if is_record => "S----",
            "bibd_glass_write" => "SIUD-",
            _ => continue,
        };
        assert_eq!(verbs, wanted, "{table} {role}");
    }
}

#[test]
fn in_the_golden_matrix_jobs_differ_and_queries_read_named_tables() {
    let golden = golden();
    let of = |role: &str| -> BTreeSet<(&str, &str)> {
        golden.iter().filter(|((_, r), verbs)| *r == role && **verbs != "-----").map(|((t, _), v)| (*t, *v)).collect()
    };
    let jobs = ["bibd_scrape", "bibd_query", "bibd_transform", "bibd_admin_jobs"];
    for (i, one) in jobs.iter().enumerate() {
        assert!(!of(one).is_empty());
        assert!(jobs[i + 1..].iter().all(|other| of(one) != of(other)), "{one} is like another");
    }
    let mut expected: BTreeSet<_> =
        ["topics", "datasets", "versions", "version_roots", "pages", "page_chunks", "chunks", "tags"].into();
    for (table, verbs) in of("bibd_query") {
        let table = table.strip_prefix("bib.").unwrap();
        let wanted = if table.starts_with("audit_") { "-I---" } else { "S----" };
        assert_eq!(verbs, wanted, "{table}");
        assert!(expected.remove(table) || ["audit_entry", "audit_detail"].contains(&table), "{table}");
    }
    assert!(expected.is_empty(), "{expected:?}");
    let secret = ["users", "user_keys", "user_uids", "sessions", "tokens", "certificates"];
    for job in jobs {
        assert!(of(job).iter().all(|(table, _)| !secret.contains(&&table["bib.".len()..])), "{job}");
    }
}

#[test]
fn in_the_golden_list_functions_are_for_few() {
    let lines: BTreeMap<_, _> = FUNCTIONS.lines().map(|line| line.split_once(") ").unwrap()).collect();
    let who = |name: &str| {
        let found: Vec<_> = lines.iter().filter(|(f, _)| f.starts_with(&format!("bib.{name}("))).collect();
        assert_eq!(found.len(), 1, "{name}");
        *found[0].1
    };
    assert_eq!(who("audit_erase"), "definer bibd_service");
    assert_eq!(who("audit_make_month"), "definer bibd_service");
    assert_eq!(who("audit_make_block"), "definer bibd_seal bibd_service");
    assert_eq!(who("audit_detach_month"), "definer bibd_seal");
    assert_eq!(who("audit_drop_month"), "definer bibd_seal");
    assert_eq!(who("audit_months"), "definer bibd_audit bibd_seal");
    assert_eq!(who("audit_guard"), "definer nobody");
    assert_eq!(who("audit_enqueue"), "definer nobody");
    assert_eq!(who("audit_refuse"), "invoker nobody");
    assert!(lines.values().all(|who| !who.contains("query") && !who.contains("scrape")));
}
