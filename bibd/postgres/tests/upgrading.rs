//! A database from one major version of PostgreSQL to a newer one: with everything in it, or not at all.
#![allow(clippy::unwrap_used, clippy::print_stderr)]

mod support;

use std::panic::AssertUnwindSafe;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use bibd_postgres::moving::Ended;
use bibd_postgres::upgrading::Upgrader;
use bibd_postgres::{Database, Error, Failpoints, GroupRole, Randomness, SecretStore, Started, Stop, Wal};
use futures::FutureExt as _;
use rand::SeedableRng as _;
use sqlx::Connection as _;
use support::{TestServer, newer_programs, run, text};

/// A server with the schema of the node and what is hard to carry over.
async fn furnished(newer: &Path) -> TestServer {
    let mut server = TestServer::new();
    server.settings.upgrade_bin_dir = Some(newer.to_owned());
    server.another_daemon();
    server.postgres.provision().await.unwrap();
    server.postgres.start().await.unwrap();
    server.database.ensure_roles().await.unwrap();
    let mut script = "SET ROLE bibd_owner; CREATE SCHEMA bib_meta;".to_owned();
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../migrations/postgres");
    let mut files: Vec<PathBuf> = std::fs::read_dir(directory).unwrap().map(|entry| entry.unwrap().path()).collect();
    files.retain(|path| path.to_string_lossy().ends_with(".up.sql"));
    files.sort();
    for file in files {
        script.push_str(&std::fs::read_to_string(file).unwrap());
    }
    script.push_str(
        "CREATE SCHEMA \"Odd \"\"one\"\"\";
         CREATE TABLE \"Odd \"\"one\"\"\".\"t*\" (
             n bigint GENERATED ALWAYS AS IDENTITY, at timestamptz NOT NULL, raw bytea, whole text COLLATE \"C\"
         ) PARTITION BY RANGE (at);
         CREATE TABLE \"Odd \"\"one\"\"\".p1 PARTITION OF \"Odd \"\"one\"\"\".\"t*\" FOR VALUES FROM ('2026-01-01') TO ('2026-02-01');
         CREATE TABLE \"Odd \"\"one\"\"\".p2 PARTITION OF \"Odd \"\"one\"\"\".\"t*\" DEFAULT;
         CREATE FUNCTION \"Odd \"\"one\"\"\".refuse() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER
             SET search_path = pg_catalog, pg_temp AS $$ BEGIN RAISE EXCEPTION 'no'; END $$;
         CREATE TRIGGER refuse BEFORE UPDATE ON \"Odd \"\"one\"\"\".\"t*\" FOR EACH ROW EXECUTE FUNCTION \"Odd \"\"one\"\"\".refuse();
         ALTER TABLE \"Odd \"\"one\"\"\".p1 ENABLE ALWAYS TRIGGER refuse;
         ALTER DEFAULT PRIVILEGES IN SCHEMA \"Odd \"\"one\"\"\" GRANT SELECT ON TABLES TO bibd_query;
         GRANT USAGE ON SCHEMA \"Odd \"\"one\"\"\" TO bibd_service;
         GRANT SELECT, INSERT (at, raw) ON \"Odd \"\"one\"\"\".\"t*\" TO bibd_service WITH GRANT OPTION;
         INSERT INTO \"Odd \"\"one\"\"\".\"t*\" (at, raw, whole)
         SELECT '2026-01-01'::timestamptz + n * interval '1 hour', sha256(n::text::bytea), repeat('x', (n % 50)::int)
         FROM generate_series(1, 3000) AS n;",
    );
    let migrated = server
        .database
        .with_migration_login(|options| async move {
            let mut connection = sqlx::PgConnection::connect_with(&options).await?;
            run(&mut connection, &script).await
        })
        .await
        .unwrap();
    migrated.unwrap();
    server
}

fn upgrader(server: &TestServer) -> Upgrader {
    let secrets: Arc<dyn SecretStore> = server.store.clone();
    let random = Randomness::new(rand::rngs::StdRng::seed_from_u64(12));
    Upgrader::new(server.settings.clone(), secrets, server.recorder.clone(), random)
}

async fn fine(_: Database) -> Result<(), String> {
    Ok(())
}

async fn plan(server: &TestServer) {
    let upgrader = upgrader(server);
    let prospect = upgrader.examine(&server.database, None, 0).await.unwrap();
    upgrader.plan(&prospect).unwrap();
}

/// The next start of a daemon, as far as the upgrade goes.
async fn carry_out(server: &TestServer) -> Ended {
    let upgrader = upgrader(server);
    upgrader.carry_out(fine).await.unwrap();
    let ended = upgrader.read().unwrap().unwrap().ended.unwrap();
    upgrader.forget().unwrap();
    ended
}

/// Everything that `pg_dump` of the newer version says about the database, with nothing that depends on the version.
async fn dumped(server: &TestServer, newer: &Path) -> Vec<String> {
    let file = server.here.path().join("pgpass");
    std::fs::write(&file, format!("*:*:*:*:{}\n", server.store.admin_password())).unwrap();
    std::fs::set_permissions(&file, std::os::unix::fs::PermissionsExt::from_mode(0o600)).unwrap();
    let mut command = std::process::Command::new(newer.join("pg_dump"));
    command.arg("--host").arg(server.layout().socket_dir).args(["--username=bibd_admin", "bib"]);
    let output = command.env("PGPASSFILE", &file).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let text = String::from_utf8(output.stdout).unwrap();
    // What is asked of a function of PostgreSQL's own names its results, which each major has its own of.
    let said = |line: &&str| {
        !line.starts_with("--")
            && !line.starts_with('\\')
            && !line.contains(" ON FUNCTION pg_catalog.pg_hba_file_rules(")
    };
    text.lines().filter(said).map(str::to_owned).collect()
}

/// The first lines that differ, with what is before them.
fn is_same(before: &[String], after: &[String], when: &str) {
    if let Some(at) = (0..before.len().max(after.len())).find(|at| before.get(*at) != after.get(*at)) {
        let shown =
            |lines: &[String]| lines[at.saturating_sub(3).min(lines.len())..(at + 6).min(lines.len())].join("\n");
        panic!("{when}, at line {at}\n-- before:\n{}\n-- after:\n{}", shown(before), shown(after));
    }
}

async fn version(server: &TestServer) -> String {
    text(&mut server.connect(GroupRole::Monitor).await, "SHOW server_version_num").await[..2].to_owned()
}

async fn rows(server: &TestServer) -> String {
    text(&mut server.attacker().await, "SELECT count(*)::text FROM \"Odd \"\"one\"\"\".\"t*\"").await
}

/// What a person does who wants the former cluster back: docs/operations.md.
async fn go_back(server: &mut TestServer) {
    server.postgres.stop(Stop::Clean).await.unwrap();
    let home = server.layout().home;
    std::fs::remove_dir_all(home.join("data")).unwrap();
    std::fs::rename(home.join("data.before-15"), home.join("data")).unwrap();
    std::fs::rename(home.join("PROVISIONER.before-15"), home.join("PROVISIONER")).unwrap();
    server.another_daemon();
    server.postgres.provision().await.unwrap();
    server.postgres.start().await.unwrap();
    server.database.ensure_roles().await.unwrap();
}

/// Nothing of an upgrade but what is to stay.
fn is_tidy(server: &TestServer) {
    let (home, runtime) = (server.layout().home, &server.settings.runtime_dir);
    assert!(!home.join("upgrade").exists() && !runtime.join("up").exists());
}

#[tokio::test(flavor = "multi_thread")]
async fn everything_comes_along_and_the_former_cluster_stays() {
    let Some(newer) = newer_programs().await else { return };
    let mut server = furnished(&newer).await;
    let before = dumped(&server, &newer).await;
    let log_at = "SELECT pg_walfile_name(pg_current_wal_lsn())";
    let former_log = text(&mut server.attacker().await, log_at).await;

    let upgrader = upgrader(&server);
    let prospect = upgrader.examine(&server.database, None, 0).await.unwrap();
    assert!(prospect.from.major == 15 && prospect.to.major > 15, "{prospect:?}");
    assert!(prospect.needed_bytes > 2 * prospect.database_bytes && prospect.free_bytes > 0, "{prospect:?}");
    assert_eq!((upgrader.read().unwrap(), version(&server).await.as_str()), (None, "15"), "it was only looked");
    is_tidy(&server);
    upgrader.plan(&prospect).unwrap();
    server.postgres.stop(Stop::Clean).await.unwrap();

    assert_eq!(carry_out(&server).await, Ended::Done);
    is_tidy(&server);
    server.another_daemon();
    server.postgres.provision().await.unwrap();
    assert_eq!(server.postgres.start().await.unwrap(), Started::Adopted);
    // With the passwords that it had.
    assert_eq!(version(&server).await, prospect.to.major.to_string());
    server.database.ensure_roles().await.unwrap();
    let after = dumped(&server, &newer).await;
    assert!(before.len() > 4000 && before.iter().any(|line| line.contains("ENABLE ALWAYS TRIGGER")));
    is_same(&before, &after, "upgraded");
    for group in GroupRole::ALL {
        server.connect(group).await;
    }
    let open = text(
        &mut server.attacker().await,
        "SELECT count(*)::text FROM pg_roles WHERE rolname = 'bibd_migrate' AND rolcanlogin",
    )
    .await;
    assert_eq!(open, "0");
    // The log of both has one row of names, with a gap between them.
    let log = text(&mut server.attacker().await, log_at).await;
    assert!(log > former_log && log[..8] == former_log[..8], "{former_log} {log}");

    let refused = upgrader.examine(&server.database, None, 0).await.unwrap_err();
    assert!(matches!(refused, Error::OldDataKept { .. }) && refused.hint().is_some(), "{refused}");
    // Everything until then is still in the former cluster.
    run(&mut server.attacker().await, "INSERT INTO \"Odd \"\"one\"\"\".\"t*\" (at) VALUES (now())").await.unwrap();
    assert_eq!(rows(&server).await, "3001");
    go_back(&mut server).await;
    assert_eq!((version(&server).await.as_str(), rows(&server).await.as_str()), ("15", "3000"));
    is_same(&before, &dumped(&server, &newer).await, "gone back");

    plan(&server).await;
    server.postgres.stop(Stop::Clean).await.unwrap();
    assert_eq!(carry_out(&server).await, Ended::Done);
    assert!(upgrader.remove_kept().unwrap() > 1 << 20);
    assert!(matches!(upgrader.remove_kept(), Err(Error::NothingKept)));
    let left = std::fs::read_dir(server.layout().home).unwrap().map(|entry| entry.unwrap().file_name());
    assert!(left.into_iter().all(|name| !name.to_string_lossy().contains("before")));
    // There is nothing newer, and nothing leads back.
    server.another_daemon();
    server.postgres.start().await.unwrap();
    let refused = upgrader.examine(&server.database, Some(15), 0).await.unwrap_err();
    assert!(matches!(refused, Error::NotNewer { to: 15, .. }) && refused.hint().is_some(), "{refused}");
    let refused = upgrader.examine(&server.database, None, 0).await.unwrap_err();
    assert!(matches!(refused, Error::NoNewerMajor { .. }), "{refused}");
    server.postgres.stop(Stop::Clean).await.unwrap();
}

/// Steps before the new cluster is whole: a start that dies there is not tried again.
const EARLY: usize = 4;

#[tokio::test(flavor = "multi_thread")]
async fn a_death_before_the_new_cluster_is_whole_leaves_the_old_one() {
    deaths(&Failpoints::UPGRADE[..EARLY]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_death_after_that_is_gone_forward_from() {
    deaths(&Failpoints::UPGRADE[EARLY..]).await;
}

async fn deaths(points: &'static [&'static str]) {
    let Some(newer) = newer_programs().await else { return };
    let mut server = furnished(&newer).await;
    let before = dumped(&server, &newer).await;
    let prospect = upgrader(&server).examine(&server.database, None, 0).await.unwrap();
    for &point in points {
        upgrader(&server).plan(&prospect).unwrap();
        server.postgres.stop(Stop::Clean).await.unwrap();
        let hook = move |hit: &'static str| assert_ne!(hit, point, "the daemon dies here");
        let dying = upgrader(&server).with_failpoints(Failpoints::new(hook));
        assert!(AssertUnwindSafe(dying.carry_out(fine)).catch_unwind().await.is_err(), "{point} was not hit");

        let begun = Instant::now();
        let ended = carry_out(&server).await;
        server.another_daemon();
        server.postgres.provision().await.unwrap();
        server.postgres.start().await.unwrap();
        server.database.ensure_roles().await.unwrap();
        assert!(begun.elapsed() < Duration::from_secs(10), "{point}: {:?}", begun.elapsed());
        is_tidy(&server);
        is_same(&before, &dumped(&server, &newer).await, point);
        if Failpoints::UPGRADE[..EARLY].contains(&point) {
            assert!(matches!(&ended, Ended::GivenUp(why) if why.contains("interrupted")), "{point}: {ended:?}");
            assert_eq!(version(&server).await, "15", "{point}");
        } else {
            assert_eq!((ended, version(&server).await == "15"), (Ended::Done, false), "{point}");
            go_back(&mut server).await;
        }
    }
    server.postgres.stop(Stop::Clean).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn what_cannot_be_upgraded_stays() {
    let Some(newer) = newer_programs().await else { return };
    let mut server = furnished(&newer).await;
    let before = dumped(&server, &newer).await;

    let examine = async |server: &TestServer, to, reserve| {
        let refused = upgrader(server).examine(&server.database, to, reserve).await.unwrap_err();
        assert!(refused.hint().is_some(), "{refused}");
        is_tidy(server);
        refused
    };
    let refused = examine(&server, Some(14), 0).await;
    assert!(matches!(refused, Error::NotNewer { from: 15, to: 14 }), "{refused}");
    let refused = examine(&server, Some(99), 0).await;
    assert!(refused.to_string().starts_with("the database is of PostgreSQL 15, and no PostgreSQL 99 was found; "));
    let refused = examine(&server, None, 1 << 60).await;
    assert!(matches!(refused, Error::NoRoomToUpgrade { .. }), "{refused}");
    server.settings.upgrade_bin_dir = None;
    let refused = examine(&server, None, 0).await;
    assert!(matches!(refused, Error::NoNewerMajor { .. }), "{refused}");
    // Programs that are there and do not work.
    let broken = server.here.path().join("broken");
    std::fs::create_dir(&broken).unwrap();
    for (name, script) in [("postgres", "echo 'postgres (PostgreSQL) 18.9'"), ("initdb", "echo no library; exit 1")] {
        std::fs::write(broken.join(name), format!("#!/bin/sh\n{script}\n")).unwrap();
        std::fs::set_permissions(broken.join(name), std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    }
    server.settings.upgrade_bin_dir = Some(broken);
    let refused = upgrader(&server).examine(&server.database, None, 0).await.unwrap_err();
    assert!(refused.to_string().contains("no library"), "{refused}");
    is_tidy(&server);

    // Planned, and gone by the next start; what runs meanwhile is none of a plan's business.
    server.settings.upgrade_bin_dir = Some(newer.clone());
    plan(&server).await;
    server.settings.upgrade_bin_dir = None;
    server.postgres.stop(Stop::Clean).await.unwrap();
    assert!(matches!(carry_out(&server).await, Ended::GivenUp(why) if why.contains("was found")));
    server.settings.upgrade_bin_dir = Some(newer.clone());

    // Whoever looks at the new database does not like it.
    server.postgres.start().await.unwrap();
    plan(&server).await;
    let one = upgrader(&server);
    one.carry_out(|database| async move {
        let options = database.connect_options(GroupRole::Monitor).unwrap();
        let mut connection = sqlx::PgConnection::connect_with(&options).await.unwrap();
        let version = text(&mut connection, "SHOW server_version_num").await;
        assert!(version.as_str() > "160000", "{version}");
        Err("the log is TAMPERED".to_owned())
    })
    .await
    .unwrap();
    let ended = one.read().unwrap().unwrap().ended;
    assert_eq!(ended, Some(Ended::GivenUp("the new database is refused: the log is TAMPERED".to_owned())));
    one.forget().unwrap();
    is_tidy(&server);

    // Log that the archive has not.
    server.postgres.start().await.unwrap();
    plan(&server).await;
    server.postgres.stop(Stop::Clean).await.unwrap();
    let ready = server.layout().data.join("pg_wal/archive_status/000000010000000000000001.ready");
    server.settings.wal = Wal::Archive { timeout_s: 60, max_files: 0, reserve_kb: 0 };
    std::fs::write(&ready, "").unwrap();
    let account = server.account().await;
    std::os::unix::fs::chown(&ready, Some(account.uid), Some(account.gid)).unwrap();
    let ended = carry_out(&server).await;
    assert!(matches!(&ended, Ended::GivenUp(why) if why.contains("not archived")), "{ended:?}");
    server.settings.wal = Wal::Recycle;

    // It does not start in its place: the old one is put back before anybody saw it.
    server.another_daemon();
    server.postgres.start().await.unwrap();
    plan(&server).await;
    server.postgres.stop(Stop::Clean).await.unwrap();
    let data = server.layout().data;
    let hook = move |hit: &'static str| {
        if hit == "upgrade.recorded" {
            std::fs::remove_file(data.join("PG_VERSION")).unwrap();
        }
    };
    let one = upgrader(&server).with_failpoints(Failpoints::new(hook));
    one.carry_out(fine).await.unwrap();
    let ended = one.read().unwrap().unwrap().ended;
    assert!(matches!(&ended, Some(Ended::GivenUp(why)) if why.contains("did not start")), "{ended:?}");
    one.forget().unwrap();
    is_tidy(&server);
    server.another_daemon();
    server.postgres.provision().await.unwrap();
    server.postgres.start().await.unwrap();
    assert_eq!(version(&server).await, "15");
    is_same(&before, &dumped(&server, &newer).await, "put back");
    assert!(one.kept().unwrap().is_empty());

    // A plan that is no plan is said, and nothing is touched.
    server.postgres.stop(Stop::Clean).await.unwrap();
    std::fs::write(server.layout().home.join("UPGRADE"), "{").unwrap();
    let refused = one.carry_out(fine).await.unwrap_err();
    assert!(matches!(refused, Error::UpgradeDamaged { .. }) && refused.hint().is_some(), "{refused}");

    // Only the newer programs are there: refused with the way.
    server.settings.bin_dir = Some(newer);
    server.settings.upgrade_bin_dir = None;
    server.another_daemon();
    let refused = server.postgres.provision().await.unwrap_err();
    assert!(matches!(refused, Error::WrongMajor { data: 15, .. }), "{refused}");
    assert!(refused.hint().unwrap().contains("bib admin db upgrade"));
}
