//! The schema on a real server: every statement fits it and its role, and migrations go up and down whatever happens.
#![allow(clippy::unwrap_used, clippy::print_stderr)]

mod support;

use std::time::Duration;

use bib_core::Hash;
use bibd_catalog::migrate::{self, MIGRATIONS, MigrateError};
use bibd_catalog::statements;
use bibd_postgres::GroupRole;
use rustix::process::{Pid, Signal, kill_process};
use sqlx::{Connection as _, PgConnection};
use support::{TestServer, as_migrator, code, machine_has_postgres, migrated, now, run, text, texts, up, wait_for};

/// Which roles run a statement: use cases as `bibd_service`, the sequencer as `bibd_seal`, readers of the log as
/// `bibd_audit` (`db.rs` has a pool for each).
fn roles_of(sql: &str) -> &'static [GroupRole] {
    use GroupRole::{Audit, Seal, Service};
    let writes = !sql.trim_start().starts_with("SELECT");
    match sql {
        sql if sql.contains("audit_make_block") => &[Service, Seal],
        sql if sql.contains("audit_detach_month") || sql.contains("audit_drop_month") => &[Seal],
        sql if sql.contains("audit_make_month") || sql.contains("audit_erase") => &[Service],
        sql if sql.contains("INTO bib.audit_entry") || sql.contains("INTO bib.audit_reader") => &[Service],
        sql if sql.contains("bib.audit_") && writes => &[Seal],
        sql if sql.contains("bib.audit_") => &[Audit],
        _ => &[Service],
    }
}

#[tokio::test]
async fn every_statement_prepares_and_may_be_run_by_its_role() {
    if !machine_has_postgres().await {
        return;
    }
    let server = migrated().await;
    let mut superuser = server.attacker().await;
    let mut wrong = Vec::new();
    let mut tried = 0;
    for role in [GroupRole::Service, GroupRole::Seal, GroupRole::Audit] {
        let mut connection = server.connect(role).await;
        // A plan for any values: the server then checks every privilege, and runs nothing.
        run(&mut connection, "SET plan_cache_mode = force_generic_plan").await.unwrap();
        for statement in statements() {
            if let Err(error) = migrate::prepares(&mut superuser, statement.sql()).await {
                wrong.push(format!("{error}\n{}", statement.sql()));
                continue;
            }
            if !roles_of(statement.sql()).contains(&role) {
                continue;
            }
            tried += 1;
            run(&mut connection, &format!("PREPARE try_it AS {}", statement.sql())).await.unwrap();
            let count = "SELECT cardinality(parameter_types)::text FROM pg_prepared_statements WHERE name = 'try_it'";
            let count: usize = text(&mut connection, count).await.parse().unwrap();
            let arguments = vec!["NULL"; count].join(", ");
            let call = if count == 0 { String::new() } else { format!("({arguments})") };
            if let Err(error) = run(&mut connection, &format!("EXPLAIN EXECUTE try_it{call}")).await {
                wrong.push(format!("as {role}: {error}\n{}", statement.sql()));
            }
            run(&mut connection, "DEALLOCATE try_it").await.unwrap();
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n\n"));
    assert!(tried > statements().count(), "every statement has a role, one has two: {tried}");
    // The check itself: a role without the right is caught by it.
    let mut query = server.connect(GroupRole::Query).await;
    run(&mut query, "SET plan_cache_mode = force_generic_plan").await.unwrap();
    run(&mut query, "PREPARE try_it AS DELETE FROM bib.topics WHERE id = $1").await.unwrap();
    assert_eq!(code(&mut query, "EXPLAIN EXECUTE try_it(NULL)").await, "42501");
    assert_eq!(code(&mut query, "EXPLAIN SELECT bib.audit_make_month(NULL)").await, "42501");
}

async fn version(server: &TestServer) -> i32 {
    migrate::current(&mut server.attacker().await).await.unwrap()
}

#[tokio::test]
async fn up_is_repeatable_and_down_stops_before_the_audit_log() {
    if !machine_has_postgres().await {
        return;
    }
    let server = TestServer::started().await;
    assert_eq!(version(&server).await, 0);
    let applied = up(&server).await.unwrap();
    let versions: Vec<i32> = MIGRATIONS.iter().map(|m| m.version).collect();
    assert_eq!(applied.iter().map(|a| a.version).collect::<Vec<_>>(), versions);
    assert_eq!(up(&server).await.unwrap(), []);
    assert_eq!(version(&server).await, migrate::newest());

    let (kept, taken) = versions.split_at(versions.iter().position(|version| *version == 5).unwrap());
    let undone = as_migrator(&server, async |c| migrate::down(c, taken.len()).await).await.unwrap();
    assert!(undone.iter().map(|a| a.version).eq(taken.iter().rev().copied()), "{undone:?} after {kept:?}");
    let mut service = server.connect(GroupRole::Service).await;
    assert_eq!(code(&mut service, "SELECT 1 FROM bib.topics").await, "42501", "the rights went with migration 5");
    let refused = as_migrator(&server, async |c| migrate::down(c, 4).await).await.unwrap_err();
    assert!(matches!(&refused, MigrateError::Failed { version: 4, .. }), "{refused:?}");
    assert_eq!(version(&server).await, 4);
    let mut superuser = server.attacker().await;
    assert_eq!(text(&mut superuser, "SELECT count(*)::text FROM bib.audit_entry").await, "0", "the log is there");
    assert_eq!(up(&server).await.unwrap().iter().map(|a| a.version).collect::<Vec<_>>(), taken);
    assert_eq!(code(&mut service, "SELECT 1 FROM bib.topics").await, "done");
}

/// The texts of a migration, as the repository has them.
fn files(version: i32) -> (String, String) {
    let folder = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../../migrations/postgres");
    let name = MIGRATIONS.iter().find(|m| m.version == version).unwrap().name;
    let read = |way: &str| std::fs::read_to_string(folder.join(format!("{version:04}_{name}.{way}.sql"))).unwrap();
    (read("up"), read("down"))
}

#[tokio::test]
async fn migrations_before_the_audit_log_go_down_one_by_one_and_keep_every_row() {
    if !machine_has_postgres().await {
        return;
    }
    let server = TestServer::started().await;
    // A schema as an earlier release left it: migrations 1 to 3.
    as_migrator(&server, async |c| {
        migrate::down(c, 1).await.unwrap();
        for version in 1..=3 {
            let (up, down) = files(version);
            let checksum = Hash::of(format!("{up}\0{down}").as_bytes());
            run(c, &format!("BEGIN; {up}; COMMIT")).await.unwrap();
            run(c, &format!("INSERT INTO bib_meta.schema_migrations VALUES ({version}, 'x', '{checksum}', now(), 1)"))
                .await
                .unwrap();
        }
        run(c, "INSERT INTO bib.nodes (peer_id, created_at, updated_at) VALUES (repeat('a', 52), now(), now())")
            .await
            .unwrap();
    })
    .await;
    let tables =
        "SELECT relname::text FROM pg_class WHERE relkind = 'r' AND relnamespace = to_regnamespace('bib')::oid";
    let before = texts(&mut server.attacker().await, tables).await.len();
    assert!(before > 25, "{before}");
    for version in [3, 2, 1] {
        let undone = as_migrator(&server, async |c| migrate::down(c, 1).await).await.unwrap();
        assert_eq!(undone.iter().map(|a| a.version).collect::<Vec<_>>(), [version]);
    }
    let mut superuser = server.attacker().await;
    assert_eq!(texts(&mut superuser, tables).await, Vec::<String>::new());
    let moved = tables.replace("'bib'", "'bib_removed'");
    assert_eq!(texts(&mut superuser, &moved).await.len(), before);
    assert_eq!(text(&mut superuser, "SELECT count(*)::text FROM bib_removed.nodes").await, "1");
    let mut service = server.connect(GroupRole::Service).await;
    assert_eq!(code(&mut service, "SELECT 1 FROM bib_removed.nodes").await, "42501");
}

#[tokio::test]
async fn a_newer_schema_and_an_edited_migration_are_refused_untouched() {
    if !machine_has_postgres().await {
        return;
    }
    let server = migrated().await;
    let mut superuser = server.attacker().await;
    let rows = "SELECT version || ' ' || checksum FROM bib_meta.schema_migrations ORDER BY version";
    let kept = texts(&mut superuser, rows).await;

    run(&mut superuser, "UPDATE bib_meta.schema_migrations SET checksum = 'edited' WHERE version = 2").await.unwrap();
    let edited = up(&server).await.unwrap_err();
    assert!(matches!(&edited, MigrateError::Checksum { version: 2, found, .. } if found == "edited"), "{edited:?}");
    let edited = as_migrator(&server, async |c| migrate::down(c, 1).await).await.unwrap_err();
    assert!(matches!(edited, MigrateError::Checksum { version: 2, .. }), "{edited:?}");
    let repair = format!(
        "UPDATE bib_meta.schema_migrations SET checksum = '{}' WHERE version = 2",
        kept[1].split_once(' ').unwrap().1
    );
    run(&mut superuser, &repair).await.unwrap();

    run(&mut superuser, "INSERT INTO bib_meta.schema_migrations VALUES (99, 'future', '', now(), 1)").await.unwrap();
    let newer = up(&server).await.unwrap_err();
    let known = migrate::newest();
    assert!(matches!(newer, MigrateError::Newer { found: 99, known: k } if k == known), "{newer:?}");
    let newer = as_migrator(&server, async |c| migrate::down(c, 1).await).await.unwrap_err();
    assert!(matches!(newer, MigrateError::Newer { .. }), "{newer:?}");
    run(&mut superuser, "DELETE FROM bib_meta.schema_migrations WHERE version = 99").await.unwrap();
    assert_eq!(texts(&mut superuser, rows).await, kept);
    assert_eq!(up(&server).await.unwrap(), []);
}

#[tokio::test]
async fn two_migrators_at_once_do_the_work_once() {
    if !machine_has_postgres().await {
        return;
    }
    let server = TestServer::started().await;
    // The login takes one connection at a time; whoever comes around that meets the lock.
    let mut superuser = server.attacker().await;
    let (first, second) = server
        .database
        .with_migration_login(async |options| {
            run(&mut superuser, "ALTER ROLE bibd_migrate CONNECTION LIMIT 2").await?;
            let mut one = PgConnection::connect_with(&options).await?;
            let mut two = PgConnection::connect_with(&options).await?;
            let (one, two) =
                (async { migrate::up(&mut one, now()).await }, async { migrate::up(&mut two, now()).await });
            Ok::<_, sqlx::Error>(futures::join!(one, two))
        })
        .await
        .unwrap()
        .unwrap();
    let mut counts = [first.unwrap().len(), second.unwrap().len()];
    counts.sort_unstable();
    assert_eq!(counts, [0, MIGRATIONS.len()]);
    let rows = "SELECT count(*)::text FROM bib_meta.schema_migrations";
    assert_eq!(text(&mut superuser, rows).await, MIGRATIONS.len().to_string());
}

#[tokio::test]
async fn b_sto_5_a_migration_killed_in_the_middle_leaves_nothing_behind() {
    if !machine_has_postgres().await {
        return;
    }
    let server = TestServer::started().await;
    as_migrator(&server, async |c| migrate::down(c, 1).await.unwrap()).await;
    // The last statement of each migration waits for this: all its tables are made, and nothing is committed.
    let mut blocker = server.attacker().await;
    run(&mut blocker, "BEGIN; LOCK TABLE bib_meta.schema_migrations IN SHARE MODE").await.unwrap();
    let killer = async {
        let mut superuser = server.attacker().await;
        let waiting = "SELECT coalesce(max(pid), 0)::text FROM pg_stat_activity
                       WHERE usename = 'bibd_migrate' AND wait_event_type = 'Lock' AND query LIKE 'INSERT%'";
        let mut pid = 0;
        wait_for("the migration at its last statement", Duration::from_secs(60), async || {
            pid = text(&mut superuser, waiting).await.parse().unwrap();
            pid != 0
        })
        .await;
        kill_process(Pid::from_raw(pid).unwrap(), Signal::KILL).unwrap();
    };
    let (outcome, ()) = futures::join!(
        server.database.with_migration_login(async |options| {
            let mut connection = PgConnection::connect_with(&options).await?;
            Ok::<_, sqlx::Error>(migrate::up(&mut connection, now()).await)
        }),
        killer
    );
    // The server ended every session to recover, so closing the login may have failed with it.
    assert!(!matches!(outcome, Ok(Ok(Ok(_)))), "the migration cannot have succeeded");
    wait_for("recovery", Duration::from_secs(30), async || {
        let options = server.database.connect_options(GroupRole::Service).unwrap();
        PgConnection::connect_with(&options).await.is_ok()
    })
    .await;
    assert_eq!(version(&server).await, 0);
    let left = "SELECT count(*)::text FROM pg_namespace WHERE nspname = 'bib'";
    assert_eq!(text(&mut server.attacker().await, left).await, "0");
    assert_eq!(up(&server).await.unwrap().len(), MIGRATIONS.len());
    assert_eq!(version(&server).await, migrate::newest());
}
