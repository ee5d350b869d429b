//! Each item of the checklist is broken on a real server, and the audit names it.
#![allow(clippy::unwrap_used, clippy::print_stderr, clippy::print_stdout)]

mod support;

use std::collections::BTreeSet;
use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::process::CommandExt as _;
use std::path::Path;
use std::time::Duration;

use bibd_postgres::checklist::{self, Expected, Facts, Finding, NOT_APPLICABLE, Status};
use bibd_postgres::{GroupRole, Stop, Wal, binaries};
use sqlx::{Connection as _, PgConnection};
use support::{Ground, TestServer, machine_has_postgres, run, text, wait_for};

/// The log's tables in small, as the migrations make them.
const AUDIT_TABLES: &str = "
    SET ROLE bibd_owner;
    CREATE SCHEMA bib;
    GRANT USAGE ON SCHEMA bib TO bibd_service, bibd_query;
    CREATE TABLE bib.topics (id int PRIMARY KEY, name text);
    GRANT SELECT ON bib.topics TO bibd_query;
    CREATE FUNCTION bib.audit_refuse() RETURNS trigger LANGUAGE plpgsql SET search_path = bib, pg_temp AS
        $$ BEGIN RAISE EXCEPTION 'append only'; END $$;
    DO $$
    DECLARE name text;
    BEGIN
        FOREACH name IN ARRAY ARRAY['audit_entry', 'audit_detail', 'audit_seal'] LOOP
            EXECUTE format('CREATE TABLE bib.%I (id int PRIMARY KEY, topic int)', name);
            EXECUTE format('GRANT SELECT, INSERT ON bib.%I TO bibd_service', name);
            EXECUTE format('CREATE TRIGGER guard_row BEFORE UPDATE OR DELETE ON bib.%I
                FOR EACH ROW EXECUTE FUNCTION bib.audit_refuse()', name);
            EXECUTE format('CREATE TRIGGER guard_all BEFORE TRUNCATE ON bib.%I
                FOR EACH STATEMENT EXECUTE FUNCTION bib.audit_refuse()', name);
            EXECUTE format('ALTER TABLE bib.%I ENABLE ALWAYS TRIGGER guard_row', name);
            EXECUTE format('ALTER TABLE bib.%I ENABLE ALWAYS TRIGGER guard_all', name);
        END LOOP;
    END $$;";

async fn prepared() -> (TestServer, Expected) {
    prepared_on(Ground::Process).await
}

async fn prepared_on(ground: Ground) -> (TestServer, Expected) {
    let server = TestServer::started_on(ground).await;
    server
        .database
        .with_migration_login(async |options| {
            let mut connection = PgConnection::connect_with(&options).await?;
            run(&mut connection, AUDIT_TABLES).await?;
            connection.close().await
        })
        .await
        .unwrap()
        .unwrap();
    let matrix = checklist::matrix(&mut server.connect(GroupRole::Monitor).await).await.unwrap();
    (server, Expected { matrix: Some(matrix) })
}

async fn audit(server: &TestServer, expected: &Expected) -> Vec<Finding> {
    let facts = server.postgres.facts().await.unwrap();
    audit_with(server, &facts, expected).await
}

async fn audit_with(server: &TestServer, facts: &Facts, expected: &Expected) -> Vec<Finding> {
    let mut monitor = server.connect(GroupRole::Monitor).await;
    let findings = checklist::audit(&mut monitor, facts, expected).await.unwrap();
    monitor.close().await.unwrap();
    findings
}

fn failed(findings: &[Finding]) -> BTreeSet<&'static str> {
    findings.iter().filter(|finding| finding.status == Status::Fail).map(|finding| finding.item).collect()
}

fn items(list: &[&'static str]) -> BTreeSet<&'static str> {
    list.iter().copied().collect()
}

on_every_provisioner!(a_fresh_server_passes_every_item);

async fn a_fresh_server_passes_every_item(ground: Ground) {
    let (server, expected) = prepared_on(ground).await;
    let findings = audit(&server, &expected).await;
    let numbers: Vec<u32> =
        findings.iter().map(|finding| finding.item.rsplit('-').next().unwrap().parse().unwrap()).collect();
    // C.5 is about containers.
    let last = if ground.is_container() { 55 } else { 45 };
    assert_eq!(numbers, (1..=last).collect::<Vec<_>>(), "every item once, in order");
    let bad: Vec<&Finding> = findings.iter().filter(|finding| finding.status == Status::Fail).collect();
    assert!(bad.is_empty(), "{bad:#?}");
    let open: BTreeSet<_> = findings
        .iter()
        .filter(|finding| matches!(finding.status, Status::NotApplicable { .. }))
        .map(|finding| finding.item)
        .collect();
    // And the archive, which this server has not.
    let tls: &[_] = if ground == Ground::Tcp { &[] } else { &NOT_APPLICABLE };
    assert_eq!(open, tls.iter().map(|(item, _, _)| *item).chain(["C.4-38"]).collect());
    // This machine's minor release may be old, which is a warning and no more.
    let warned: Vec<_> =
        findings.iter().filter(|finding| finding.status == Status::Warn).map(|finding| finding.item).collect();
    assert!(warned.iter().all(|item| ["C.1-1", "C.5-46"].contains(item)), "{warned:?}");
    let without = audit(&server, &Expected::default()).await;
    assert_eq!(without.iter().find(|finding| finding.item == "C.3-24").unwrap().status, Status::Warn);
}

/// `(item, how it is broken, how it is mended, further items that the same break must name)`.
type Break = (&'static str, &'static str, &'static str, &'static [&'static str]);

const STATEMENTS: &[Break] = &[
    ("C.2-13", "SET password_encryption = 'md5'; ALTER ROLE bibd_query_a PASSWORD 'secret'", "", &["C.4-35"]),
    (
        "C.2-14",
        "SET log_statement = 'none'; ALTER ROLE bibd_query_a PASSWORD 'SCRAM-SHA-256$1000:W22ZaJ0SNY7soEsUEjb6gQ==$WG5d8oPm3OtcPnkdi4Uo7BkeZkBFzpcXkuLmtbsT4qY=:wfPLwcE6nTWhTAmQ7tl2KeoiWGPlZqQxSrmfPwDl2dU='",
        "",
        &[],
    ),
    ("C.3-19", "ALTER ROLE bibd_query_a SUPERUSER", "ALTER ROLE bibd_query_a NOSUPERUSER", &[]),
    ("C.3-20", "ALTER ROLE bibd_service_a CREATEDB", "ALTER ROLE bibd_service_a NOCREATEDB", &[]),
    ("C.3-20", "ALTER ROLE bibd_service_a REPLICATION", "ALTER ROLE bibd_service_a NOREPLICATION", &[]),
    (
        "C.3-21",
        "GRANT pg_execute_server_program TO bibd_service",
        "REVOKE pg_execute_server_program FROM bibd_service",
        &[],
    ),
    ("C.3-21", "CREATE ROLE mallory", "DROP ROLE mallory", &[]),
    ("C.3-22", "GRANT CONNECT ON DATABASE postgres TO PUBLIC", "REVOKE CONNECT ON DATABASE postgres FROM PUBLIC", &[]),
    ("C.3-22", "GRANT CREATE ON SCHEMA bib TO PUBLIC", "REVOKE CREATE ON SCHEMA bib FROM PUBLIC", &[]),
    ("C.3-23", "ALTER TABLE bib.topics OWNER TO bibd_service_a", "ALTER TABLE bib.topics OWNER TO bibd_owner", &[]),
    (
        "C.3-23",
        "ALTER ROLE bibd_migrate LOGIN PASSWORD 'SCRAM-SHA-256$15000:W22ZaJ0SNY7soEsUEjb6gQ==$WG5d8oPm3OtcPnkdi4Uo7BkeZkBFzpcXkuLmtbsT4qY=:wfPLwcE6nTWhTAmQ7tl2KeoiWGPlZqQxSrmfPwDl2dU='",
        "ALTER ROLE bibd_migrate NOLOGIN PASSWORD NULL",
        &[],
    ),
    ("C.3-24", "GRANT DELETE ON bib.topics TO bibd_query", "REVOKE DELETE ON bib.topics FROM bibd_query", &[]),
    ("C.3-24", "REVOKE SELECT ON bib.topics FROM bibd_query", "GRANT SELECT ON bib.topics TO bibd_query", &[]),
    (
        "C.3-25",
        "ALTER DEFAULT PRIVILEGES FOR ROLE bibd_owner GRANT EXECUTE ON FUNCTIONS TO PUBLIC",
        "ALTER DEFAULT PRIVILEGES FOR ROLE bibd_owner REVOKE EXECUTE ON FUNCTIONS FROM PUBLIC",
        &[],
    ),
    (
        "C.3-26",
        "GRANT EXECUTE ON FUNCTION bib.audit_refuse() TO PUBLIC",
        "REVOKE EXECUTE ON FUNCTION bib.audit_refuse() FROM PUBLIC",
        &[],
    ),
    (
        "C.3-26",
        "ALTER FUNCTION bib.audit_refuse() SECURITY DEFINER; ALTER FUNCTION bib.audit_refuse() RESET search_path",
        "ALTER FUNCTION bib.audit_refuse() SECURITY INVOKER",
        &[],
    ),
    ("C.3-27", "ALTER ROLE bibd_query_a SET statement_timeout = 0", "", &[]),
    ("C.3-27", "ALTER DATABASE bib SET work_mem = '1GB'", "ALTER DATABASE bib RESET work_mem", &["C.4-42"]),
    ("C.3-27", "ALTER ROLE bibd_query_a CONNECTION LIMIT -1", "", &[]),
    ("C.3-28", "CREATE EXTENSION dblink SCHEMA bibd_check", "DROP EXTENSION dblink", &["C.3-26"]),
    (
        "C.3-29",
        "CREATE LANGUAGE evil HANDLER plpgsql_call_handler; UPDATE pg_language SET lanpltrusted = false WHERE lanname = 'evil'",
        "DROP LANGUAGE evil",
        &[],
    ),
    (
        "C.3-30",
        "ALTER TABLE bib.audit_entry DISABLE TRIGGER guard_row",
        "ALTER TABLE bib.audit_entry ENABLE ALWAYS TRIGGER guard_row",
        &[],
    ),
    (
        "C.3-30",
        "ALTER TABLE bib.audit_seal ENABLE TRIGGER guard_all",
        "ALTER TABLE bib.audit_seal ENABLE ALWAYS TRIGGER guard_all",
        &[],
    ),
    (
        "C.3-30",
        "GRANT UPDATE ON bib.audit_seal TO bibd_service",
        "REVOKE UPDATE ON bib.audit_seal FROM bibd_service",
        &["C.3-24"],
    ),
    (
        "C.3-30",
        "ALTER TABLE bib.audit_entry ADD CONSTRAINT gone FOREIGN KEY (topic) REFERENCES bib.topics ON DELETE CASCADE",
        "ALTER TABLE bib.audit_entry DROP CONSTRAINT gone",
        &[],
    ),
    (
        "C.3-31",
        "ALTER TABLE bib.topics ENABLE ROW LEVEL SECURITY",
        "ALTER TABLE bib.topics DISABLE ROW LEVEL SECURITY",
        &[],
    ),
];

#[tokio::test]
async fn names_what_statements_break() {
    if !machine_has_postgres().await {
        return;
    }
    let (server, expected) = prepared().await;
    let facts = server.postgres.facts().await.unwrap();
    let mut attacker = server.attacker().await;
    for (item, broken, mended, also) in STATEMENTS {
        run(&mut attacker, broken).await.unwrap_or_else(|error| panic!("{item}: {error}"));
        let logged = also.contains(&"C.4-35");
        let facts = if logged { &server.postgres.facts().await.unwrap() } else { &facts };
        let findings = audit_with(&server, facts, &expected).await;
        let mut named = items(also);
        named.insert(item);
        assert_eq!(failed(&findings), named, "after {broken}");
        if mended.is_empty() {
            // What a start puts right by itself.
            server.database.ensure_roles().await.unwrap();
        } else {
            run(&mut attacker, mended).await.unwrap();
        }
        if logged {
            let directory = server.layout().log;
            for entry in std::fs::read_dir(directory).unwrap() {
                std::fs::OpenOptions::new().write(true).truncate(true).open(entry.unwrap().path()).unwrap();
            }
        }
    }
    assert_eq!(failed(&audit(&server, &expected).await), items(&[]));
}

/// Lines added to `postgresql.conf` that a reload takes in. All are drift, too (C.4-42).
const RELOADED: &[(&str, &str)] = &[
    ("C.2-13", "password_encryption = 'md5'"),
    ("C.2-15", "authentication_timeout = '60s'"),
    ("C.2-17", "krb_server_keyfile = '/etc/krb5.keytab'"),
    ("C.4-32", "log_connections = 'off'"),
    ("C.4-32", "log_disconnections = 'off'"),
    ("C.4-33", "log_line_prefix = '%m '"),
    ("C.4-33", "log_timezone = 'Europe/Paris'"),
    ("C.4-34", "log_statement = 'none'"),
    ("C.4-34", "log_parameter_max_length = '-1'"),
    ("C.4-36", "log_min_duration_statement = '-1'"),
    ("C.4-36", "log_file_mode = '0640'"),
    ("C.4-36", "log_hostname = 'on'"),
    ("C.4-36", "debug_print_plan = 'on'"),
    ("C.4-37", "synchronous_commit = 'off'"),
    ("C.4-37", "full_page_writes = 'off'"),
    ("C.4-39", "max_slot_wal_keep_size = '-1'"),
    ("C.4-40", "session_preload_libraries = 'auto_explain'"),
    ("C.4-41", "row_security = 'off'"),
    ("C.4-41", "zero_damaged_pages = 'on'"),
    ("C.4-41", "ignore_checksum_failure = 'on'"),
    ("C.4-41", "dynamic_library_path = '/tmp'"),
    ("C.4-42", "work_mem = '1GB'"),
    ("C.4-42", "no_such_setting = 'x'"),
    ("C.4-43", "idle_session_timeout = '0'"),
    ("C.4-43", "client_connection_check_interval = '0'"),
    ("C.4-44", "jit = 'on'"),
];

/// Rewrites a file of PGDATA in place: owner and mode stay.
fn append(path: &Path, line: &str) -> String {
    let before = std::fs::read_to_string(path).unwrap();
    std::fs::write(path, format!("{before}{line}\n")).unwrap();
    before
}

#[tokio::test]
async fn names_what_a_reload_breaks() {
    if !machine_has_postgres().await {
        return;
    }
    let (server, expected) = prepared().await;
    let conf = server.layout().data.join("postgresql.conf");
    // A session from before the break can still say when new ones see it.
    let mut attacker = server.attacker().await;
    for (item, line) in RELOADED {
        let before = append(&conf, line);
        run(&mut attacker, "SELECT pg_reload_conf()").await.unwrap();
        let (name, value) = line.split_once(" = ").unwrap();
        let value = value.trim_matches('\'').to_owned();
        if name != "no_such_setting" {
            wait_for(line, Duration::from_secs(60), async || {
                let mut monitor = server.connect(GroupRole::Monitor).await;
                let shown = text(&mut monitor, &format!("SELECT current_setting('{name}')")).await;
                let seconds = |text: &str| text.replace("60s", "1min");
                monitor.close().await.unwrap();
                seconds(&shown) == seconds(&value)
            })
            .await;
        }
        let findings = audit(&server, &expected).await;
        assert_eq!(failed(&findings), items(&[item, "C.4-42"]), "after {line}");
        std::fs::write(&conf, before).unwrap();
    }
    run(&mut attacker, "SELECT pg_reload_conf()").await.unwrap();
    wait_for("the mended configuration", Duration::from_secs(60), async || {
        failed(&audit(&server, &expected).await).is_empty()
    })
    .await;
    // With it no login of ours exists any more: asked through a session from before.
    if server.postgres.version().await.unwrap().major < 17 {
        let facts = server.postgres.facts().await.unwrap();
        let mut monitor = server.connect(GroupRole::Monitor).await;
        let before = append(&conf, "db_user_namespace = 'on'");
        run(&mut attacker, "SELECT pg_reload_conf()").await.unwrap();
        wait_for("db_user_namespace", Duration::from_secs(60), async || {
            text(&mut monitor, "SHOW db_user_namespace").await == "on"
        })
        .await;
        let findings = checklist::audit(&mut monitor, &facts, &expected).await.unwrap();
        assert_eq!(failed(&findings), items(&["C.2-18", "C.4-42"]));
        std::fs::write(&conf, before).unwrap();
        run(&mut attacker, "SELECT pg_reload_conf()").await.unwrap();
        wait_for("no db_user_namespace", Duration::from_secs(60), async || {
            text(&mut monitor, "SHOW db_user_namespace").await == "off"
        })
        .await;
    }
    // What ALTER SYSTEM leaves behind; from 17 on it is refused.
    if server.postgres.version().await.unwrap().major < 17 {
        run(&mut attacker, "ALTER SYSTEM SET work_mem = '64MB'").await.unwrap();
        assert_eq!(failed(&audit(&server, &expected).await), items(&["C.4-42"]));
    }
}

/// Lines that only a restart takes in: all at once, each named by its item.
const RESTARTED: &[(&str, &str)] = &[
    ("C.1-4", "unix_socket_permissions = '0777'"),
    ("C.2-17", "max_connections = '50'"),
    ("C.2-17", "superuser_reserved_connections = '1'"),
    ("C.4-37", "fsync = 'off'"),
    ("C.4-37", "wal_log_hints = 'off'"),
    ("C.4-40", "shared_preload_libraries = 'auto_explain'"),
    ("C.4-41", "allow_system_table_mods = 'on'"),
    ("C.4-41", "ignore_invalid_pages = 'on'"),
];

#[tokio::test]
async fn names_an_archive_that_waits_too_long() {
    if !machine_has_postgres().await {
        return;
    }
    let mut server = TestServer::on(Ground::Process);
    server.settings.wal = Wal::Archive { timeout_s: 60, max_files: 8, reserve_kb: 1024 };
    server.another_daemon();
    server.postgres.provision().await.unwrap();
    server.postgres.start().await.unwrap();
    server.database.ensure_roles().await.unwrap();
    let archive = async || {
        let findings = audit(&server, &Expected::default()).await;
        findings.into_iter().find(|finding| finding.item == "C.4-38").unwrap()
    };
    assert_eq!(archive().await.status, Status::Pass);
    append(&server.layout().data.join("postgresql.conf"), "archive_timeout = 61");
    run(&mut server.attacker().await, "SELECT pg_reload_conf()").await.unwrap();
    wait_for("the change is seen", Duration::from_secs(60), async || archive().await.status == Status::Fail).await;
    assert!(archive().await.observed.contains("archive_timeout"), "{:?}", archive().await);
    server.postgres.stop(Stop::Clean).await.unwrap();
}

#[tokio::test]
async fn names_what_a_restart_breaks() {
    if !machine_has_postgres().await {
        return;
    }
    let (server, expected) = prepared().await;
    server.postgres.stop(Stop::Clean).await.unwrap();
    let (data, account) = (server.layout().data, server.account().await);
    let found = binaries::choose(None, None, account).await.unwrap();
    let as_server = |program: &str| {
        let mut command = std::process::Command::new(found.bin_dir.join(program));
        command.current_dir("/").stdin(std::process::Stdio::null());
        if account.switch {
            command.uid(account.uid).gid(account.gid);
        }
        command
    };
    for (_, line) in RESTARTED {
        append(&data.join("postgresql.conf"), line);
    }
    // On a loopback address of its own: another server of this machine may have the usual one.
    let [high, low] = u16::try_from(std::process::id() % 65_000).unwrap().to_be_bytes();
    append(&data.join("postgresql.conf"), &format!("listen_addresses = '127.{high}.{low}.77'"));
    assert!(as_server("pg_checksums").args(["--disable", "-D"]).arg(&data).status().unwrap().success());
    let mut child = as_server("postgres")
        .arg("-D")
        .arg(&data)
        .args(["-c", "data_sync_retry=on"])
        .stdout(std::process::Stdio::null())
        .stderr(std::process::Stdio::null())
        .spawn()
        .unwrap();
    wait_for("the broken server", Duration::from_secs(60), async || {
        assert!(child.try_wait().unwrap().is_none(), "{}", server.log());
        server.postgres.health().await == bibd_postgres::Health::Ready
    })
    .await;
    let findings = audit(&server, &expected).await;
    let mut named: BTreeSet<_> = RESTARTED.iter().map(|(item, _)| *item).collect();
    named.extend(["C.1-2", "C.2-10", "C.2-11", "C.4-42"]);
    assert_eq!(failed(&findings), named, "{findings:#?}");
    let observed = |item| &findings.iter().find(|finding| finding.item == item).unwrap().observed;
    for (item, word) in [
        ("C.2-17", "max_connections = '50'"),
        ("C.2-17", "1 reserved"),
        ("C.4-37", "fsync = 'off'"),
        ("C.4-37", "wal_log_hints = 'off'"),
        ("C.4-41", "allow_system_table_mods = 'on'"),
        ("C.4-41", "ignore_invalid_pages = 'on'"),
        ("C.4-42", "data_sync_retry comes from the command line"),
    ] {
        assert!(observed(item).contains(word), "{item}: {}", observed(item));
    }
    let stopped = tokio::task::spawn_blocking(move || child.wait().map(drop));
    server.postgres.stop(Stop::Clean).await.unwrap();
    stopped.await.unwrap().unwrap();
}

#[tokio::test]
async fn names_what_files_break() {
    if !machine_has_postgres().await {
        return;
    }
    let (server, expected) = prepared().await;
    let layout = server.layout();
    let chmod = |path: &Path, mode| std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode)).unwrap();
    let check = async |named: &[&'static str], why: &str| {
        assert_eq!(failed(&audit(&server, &expected).await), items(named), "{why}");
    };
    chmod(&layout.data, 0o750);
    check(&["C.1-3"], "PGDATA for the group").await;
    chmod(&layout.data, 0o700);
    chmod(&layout.socket_dir, 0o755);
    check(&["C.1-4"], "socket directory for all").await;
    chmod(&layout.socket_dir, 0o700);

    let hba = layout.data.join("pg_hba.conf");
    let before = append(&hba, "# a remark");
    check(&["C.1-5", "C.4-42"], "pg_hba.conf edited").await;
    for line in
        ["local all all trust", "local all all peer", "host all all 127.0.0.1/32 scram-sha-256", "local all nonsense"]
    {
        std::fs::write(&hba, &before).unwrap();
        append(&hba, line);
        check(&["C.1-5", "C.2-12", "C.4-42"], line).await;
    }
    std::fs::write(&hba, &before).unwrap();

    chmod(&layout.data.join("pg_ident.conf"), 0o644);
    check(&["C.1-6"], "a configuration file for all").await;
    chmod(&layout.data.join("pg_ident.conf"), 0o600);
    chmod(&layout.data.join("PG_VERSION"), 0o644);
    check(&["C.1-7"], "a data file for all").await;
    chmod(&layout.data.join("PG_VERSION"), 0o600);
    std::os::unix::fs::symlink("/etc/passwd", layout.data.join("pg_tblspc/1")).unwrap();
    check(&["C.1-8"], "a link in PGDATA").await;
    std::fs::remove_file(layout.data.join("pg_tblspc/1")).unwrap();
    let account = server.account().await;
    let owned = |path: &Path, text: &str| {
        std::fs::write(path, text).unwrap();
        chmod(path, 0o600);
        std::os::unix::fs::chown(path, Some(account.uid), Some(account.gid)).unwrap();
    };
    owned(&layout.data.join("notes.txt"), "x");
    check(&["C.1-8"], "a stray file in PGDATA").await;
    std::fs::remove_file(layout.data.join("notes.txt")).unwrap();
    owned(&layout.socket_dir.join("initdb.verifier"), "x");
    check(&["C.1-9"], "initdb's file left").await;
    std::fs::remove_file(layout.socket_dir.join("initdb.verifier")).unwrap();
    owned(&layout.log.join("old.log"), "ALTER ROLE x PASSWORD 'hunter2'");
    check(&["C.4-35"], "a password in the log").await;
    std::fs::remove_file(layout.log.join("old.log")).unwrap();
    check(&[], "all mended").await;
}
