//! Roles, their logins, the migrations' door, and that no password is anywhere it should not be.
#![allow(clippy::unwrap_used, clippy::print_stderr, clippy::print_stdout)]

mod support;

use std::sync::atomic::Ordering;

use bibd_postgres::{Act, Error, GroupRole, Letter, Stop};
use secrecy::ExposeSecret as _;
use sqlx::{Connection as _, PgConnection};
use support::{Ground, TestServer, run, text};

on_every_provisioner!(
    the_idle_login_is_shut_and_passwords_are_never_plain,
    migrations_are_let_in_for_one_time_and_shut_out_in_every_case,
    what_cannot_be_recorded_does_not_happen,
);

async fn the_idle_login_is_shut_and_passwords_are_never_plain(ground: Ground) {
    let server = TestServer::started_on(ground).await;
    // The idle one of the pair, with the password of the active one; and the active one with a wrong password.
    let login = server.database.login(GroupRole::Query).unwrap();
    assert_eq!(login.password.expose_secret().chars().count(), 64);
    assert!(!format!("{login:?}").contains(login.password.expose_secret()), "{login:?}");
    let mut idle = login.clone();
    idle.user = GroupRole::Query.login_name(Letter::B);
    let mut wrong = login.clone();
    wrong.password = secrecy::SecretString::from("wrong");
    let mut owner = login.clone();
    owner.user = "bibd_owner".to_owned();
    for refused in [idle, wrong, owner] {
        let error = PgConnection::connect_with(&server.postgres.connect_options(&refused)).await.unwrap_err();
        assert!(!error.to_string().contains(refused.password.expose_secret()) || refused.user == "bibd_owner");
    }
    let mut query = server.connect(GroupRole::Query).await;
    for forbidden in [
        "CREATE SCHEMA mine",
        "CREATE TEMP TABLE mine (x int)",
        "SET ROLE bibd_service",
        "SELECT rolpassword FROM pg_authid",
        "SELECT * FROM bibd_check.passwords()",
        "SELECT pg_read_file('PG_VERSION')",
        "SET temp_file_limit = -1",
        "ALTER ROLE bibd_query_a PASSWORD 'x' CREATEDB",
    ] {
        assert!(run(&mut query, forbidden).await.is_err(), "{forbidden}");
    }
    assert_eq!(text(&mut query, "SHOW statement_timeout").await, "1min");
    assert_eq!(text(&mut query, "SHOW search_path").await, "bib, pg_catalog, pg_temp");
    assert_eq!(
        text(
            &mut query,
            "SELECT datcollate || ' ' || pg_encoding_to_char(encoding) FROM pg_database WHERE datname = 'bib'"
        )
        .await,
        "C UTF8"
    );

    // Idempotent: again, and the same password still works; and what was bent is straight again.
    run(
        &mut server.attacker().await,
        "ALTER ROLE bibd_query_a PASSWORD NULL; ALTER ROLE bibd_query_a CREATEDB; ALTER ROLE bibd_migrate LOGIN",
    )
    .await
    .unwrap();
    server.database.ensure_roles().await.unwrap();
    let mut again = server.connect(GroupRole::Query).await;
    assert_eq!(text(&mut again, "SELECT rolcreatedb::text FROM pg_roles WHERE rolname = current_user").await, "false");
    assert_eq!(
        text(&mut again, "SELECT rolcanlogin::text FROM pg_roles WHERE rolname = 'bibd_migrate'").await,
        "false"
    );

    server.postgres.stop(Stop::Clean).await.unwrap();
    // Nowhere on disk: not in the log, not in the data, not in PROVISIONER.
    let passwords = server.store.passwords();
    assert_eq!(passwords.len(), 10);
    let mut files = vec![server.here.path().to_path_buf()];
    let mut searched = 0;
    while let Some(path) = files.pop() {
        if path.is_dir() {
            files.extend(std::fs::read_dir(&path).unwrap().map(|entry| entry.unwrap().path()));
        } else if path.is_file() {
            let bytes = std::fs::read(&path).unwrap();
            searched += 1;
            let text = String::from_utf8_lossy(&bytes);
            assert!(!passwords.iter().any(|password| text.contains(password)), "{}", path.display());
        }
    }
    assert!(searched > 900, "{searched}");
    // Nor are verifiers in the log.
    assert!(!server.log().contains("SCRAM-SHA-256$"));
}

async fn migrations_are_let_in_for_one_time_and_shut_out_in_every_case(ground: Ground) {
    let server = TestServer::started_on(ground).await;
    let may_log_in = async || {
        let mut monitor = server.connect(GroupRole::Monitor).await;
        text(&mut monitor, "SELECT rolcanlogin::text FROM pg_roles WHERE rolname = 'bibd_migrate'").await
    };
    let options = server
        .database
        .with_migration_login(async |options| {
            let mut connection = PgConnection::connect_with(&options).await?;
            // The login itself may nothing; the owner may.
            assert!(run(&mut connection, "CREATE SCHEMA bib").await.is_err());
            run(&mut connection, "SET ROLE bibd_owner; CREATE SCHEMA bib; CREATE TABLE bib.t (x int)").await?;
            Ok::<_, sqlx::Error>(options)
        })
        .await
        .unwrap()
        .unwrap();
    assert_eq!(may_log_in().await, "false");
    assert!(PgConnection::connect_with(&options).await.is_err(), "the password was for one time");

    // It fails, with a session left open: that session ends too.
    let mut left = None;
    let failure = server
        .database
        .with_migration_login(async |options| {
            left = Some(PgConnection::connect_with(&options).await.unwrap());
            Err::<(), _>("no such column")
        })
        .await
        .unwrap();
    assert_eq!(failure, Err("no such column"));
    assert_eq!(may_log_in().await, "false");
    assert!(run(&mut left.unwrap(), "SELECT 1").await.is_err());

    // It panics.
    let panicked = futures::FutureExt::catch_unwind(std::panic::AssertUnwindSafe(
        server.database.with_migration_login(async |_| -> Result<(), ()> { panic!("a bug in a migration") }),
    ))
    .await;
    assert!(panicked.is_err());
    assert_eq!(may_log_in().await, "false");

    let acts: Vec<Act> = server.recorder.seen.lock().unwrap().iter().map(|seen| seen.0).collect();
    let pair = [Act::OpenMigration, Act::CloseMigration];
    assert_eq!(acts, [[Act::EnsureRoles; 2], pair, pair, pair].concat());
}

async fn what_cannot_be_recorded_does_not_happen(ground: Ground) {
    let server = TestServer::on(ground);
    server.postgres.provision().await.unwrap();
    server.postgres.start().await.unwrap();
    server.recorder.broken.store(true, Ordering::SeqCst);
    let refused = server.database.ensure_roles().await.unwrap_err();
    assert!(matches!(refused, Error::NotRecorded { .. }), "{refused}");
    let mut attacker = server.attacker_in("postgres").await;
    assert_eq!(text(&mut attacker, "SELECT count(*)::text FROM pg_roles WHERE rolname = 'bibd_owner'").await, "0");
    server.recorder.broken.store(false, Ordering::SeqCst);
    server.database.ensure_roles().await.unwrap();
}
