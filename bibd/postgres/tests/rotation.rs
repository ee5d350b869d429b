//! Rotation of credentials on a real server, interrupted at every step.
#![allow(clippy::unwrap_used, clippy::print_stderr, clippy::print_stdout)]

mod support;

use std::collections::BTreeSet;
use std::panic::AssertUnwindSafe;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use bibd_postgres::rotation::{Which, sessions, uptime};
use bibd_postgres::{Act, Error, Failpoints, GroupRole, Letter, Login, Stop};
use futures::FutureExt as _;
use secrecy::{ExposeSecret as _, SecretString};
use sqlx::{Connection as _, PgConnection};
use support::{Ground, TestServer, run, text};

on_every_provisioner!(every_login_and_the_superuser_get_new_passwords);

// What is stored, and what the server is told, is the same whatever runs it.
mod steps {
    crate::tests_on!(
        Process,
        a_death_at_any_step_is_gone_forward_from,
        what_cannot_be_stored_or_recorded_changes_nothing_and_is_finished_later
    );
}

async fn lets_in(server: &TestServer, login: &Login) -> bool {
    PgConnection::connect_with(&server.postgres.connect_options(login)).await.is_ok()
}

/// One login of each pair can log in, it is the one that is told, its password works, and nobody is in the other.
async fn is_whole(server: &TestServer) {
    let mut attacker = server.attacker().await;
    let open = text(
        &mut attacker,
        "SELECT string_agg(rolname, ' ' ORDER BY rolname) FROM pg_authid
         WHERE rolcanlogin AND rolpassword IS NOT NULL AND rolname LIKE 'bibd\\_%'",
    )
    .await;
    let told: BTreeSet<String> = server.database.credentials().unwrap().into_iter().map(|one| one.login).collect();
    assert_eq!(open.split(' ').map(str::to_owned).collect::<BTreeSet<_>>(), told);
    let left =
        text(&mut attacker, "SELECT count(*)::text FROM pg_authid WHERE NOT rolcanlogin AND rolpassword IS NOT NULL");
    assert_eq!(left.await, "0");
    let mut connections = Vec::new();
    for group in GroupRole::ALL {
        connections.push(server.connect(group).await);
    }
    let inside = sessions(&mut attacker).await.unwrap();
    assert!(inside.keys().all(|login| told.contains(login)), "{inside:?}");
}

fn passwords_of(server: &TestServer) -> BTreeSet<String> {
    server.store.passwords().into_iter().collect()
}

async fn every_login_and_the_superuser_get_new_passwords(ground: Ground) {
    let mut server = TestServer::started_on(ground).await;
    server.database.date_passwords(1_000).await.unwrap();
    let (before, old_admin) = (passwords_of(&server), server.store.admin_password());
    let old: Vec<Login> = GroupRole::ALL.map(|group| server.database.login(group).unwrap()).into();
    // Somebody stays in a former login whatever is said: the session is ended.
    let mut stays = server.connect(GroupRole::Backup).await;
    let mut told = Vec::new();
    let done = server
        .database
        .rotate(&Which::all(), 2_000, async |moved| {
            for one in moved {
                // In this moment both work: nobody is refused.
                let mut connection = PgConnection::connect_with(&one.options).await.unwrap();
                let name = text(&mut connection, "SELECT current_user::text").await;
                assert_ne!(name, one.former);
                told.push((one.group, one.former, name));
            }
            for login in &old {
                assert!(lets_in(&server, login).await, "{}", login.user);
            }
        })
        .await
        .unwrap();
    assert_eq!(done, Which::all());
    assert_eq!(told.len(), 9);
    assert!(told.iter().all(|(group, former, name)| {
        *former == group.login_name(Letter::A) && *name == group.login_name(Letter::B)
    }));
    for login in &old {
        assert!(!lets_in(&server, login).await, "{}", login.user);
    }
    assert!(run(&mut stays, "SELECT 1").await.is_err());
    let admin = Login { user: "bibd_admin".into(), database: "bib".into(), password: SecretString::from(old_admin) };
    assert!(!lets_in(&server, &admin).await);
    is_whole(&server).await;
    assert!(server.database.credentials().unwrap().iter().all(|one| one.since_s == Some(2_000)));
    let after = passwords_of(&server);
    assert!(before.is_disjoint(&after) && after.len() == 10 && after.iter().all(|password| password.len() == 64));

    // One alone, and back; the others stay as they are.
    let which = Which { groups: vec![GroupRole::Seal], superuser: false };
    for letter in [Letter::A, Letter::B, Letter::A] {
        assert_eq!(server.database.rotate(&which, 3_000, async |_| ()).await.unwrap(), which);
        assert_eq!(server.database.login(GroupRole::Seal).unwrap().user, GroupRole::Seal.login_name(letter));
    }
    is_whole(&server).await;
    assert_eq!(server.database.login(GroupRole::Query).unwrap().user, "bibd_query_b");
    assert!(uptime(&mut server.connect(GroupRole::Monitor).await).await.unwrap() < Duration::from_secs(600));

    // Another daemon finds all of it and changes nothing.
    let (documents, acts) = (passwords_of(&server), server.recorder.seen.lock().unwrap().clone());
    assert!(acts.iter().all(|(_, succeeded, lived)| *succeeded && *lived < Duration::from_secs(10)));
    let acts: Vec<Act> = acts.into_iter().map(|act| act.0).skip(2).collect();
    assert_eq!(acts, [[Act::OpenRotation, Act::CloseRotation]; 4].concat());
    server.another_daemon();
    server.database.ensure_roles().await.unwrap();
    assert_eq!(passwords_of(&server), documents);
    is_whole(&server).await;

    // Neither a password nor a verifier stands in the server's log, nor a password anywhere on the disk.
    server.postgres.stop(Stop::Clean).await.unwrap();
    assert!(!server.log().contains("SCRAM-SHA-256$"));
    let (mut files, mut searched) = (vec![server.here.path().to_path_buf()], 0);
    while let Some(path) = files.pop() {
        if path.is_dir() {
            files.extend(std::fs::read_dir(&path).unwrap().map(|entry| entry.unwrap().path()));
        } else if path.is_file() {
            let bytes = std::fs::read(&path).unwrap();
            let content = String::from_utf8_lossy(&bytes);
            assert!(!before.iter().chain(&documents).any(|password| content.contains(password)), "{}", path.display());
            searched += 1;
        }
    }
    assert!(searched > 900, "{searched}");
}

async fn a_death_at_any_step_is_gone_forward_from(ground: Ground) {
    let mut server = TestServer::started_on(ground).await;
    for point in Failpoints::ROTATION {
        for by_restart in [true, false] {
            let before = passwords_of(&server);
            let mut stays = server.connect(GroupRole::Service).await;
            server.dies_at(point);
            let all = Which::all();
            let rotation = server.database.rotate(&all, 5_000, async |_| ());
            assert!(AssertUnwindSafe(rotation).catch_unwind().await.is_err(), "{point} was not hit");
            server.another_daemon();
            let begun = Instant::now();
            if by_restart {
                server.database.ensure_roles().await.unwrap();
            } else if point == "rotate.closed" {
                server.database.rotate(&Which::default(), 6_000, async |_| panic!("nothing is left")).await.unwrap();
            } else {
                server.database.rotate(&Which::default(), 6_000, async |_| ()).await.unwrap();
            }
            assert!(begun.elapsed() < Duration::from_secs(10), "{point}: {:?}", begun.elapsed());
            is_whole(&server).await;
            assert!(run(&mut stays, "SELECT 1").await.is_err(), "{point}: a session on a former login");
            assert!(before.is_disjoint(&passwords_of(&server)), "{point}: it went back");
            assert!(server.database.credentials().unwrap().iter().all(|one| one.since_s == Some(5_000)), "{point}");
        }
    }
}

async fn what_cannot_be_stored_or_recorded_changes_nothing_and_is_finished_later(ground: Ground) {
    let mut server = TestServer::started_on(ground).await;
    let store = server.store.clone();
    let before = passwords_of(&server);

    // Nothing can be sealed: the server hears of nothing.
    store.1.store(true, Ordering::SeqCst);
    let error = server.database.rotate(&Which::all(), 1, async |_| panic!("too early")).await.unwrap_err();
    assert!(matches!(error, Error::SecretStore(_)), "{error}");
    assert_eq!(passwords_of(&server), before);
    store.1.store(false, Ordering::SeqCst);
    is_whole(&server).await;

    // The superuser cannot be used: both logins' passwords are known, the former ones work.
    server.recorder.broken.store(true, Ordering::SeqCst);
    let error = server.database.rotate(&Which::all(), 2, async |_| panic!("too early")).await.unwrap_err();
    assert!(matches!(error, Error::NotRecorded { .. }), "{error}");
    server.recorder.broken.store(false, Ordering::SeqCst);
    for group in GroupRole::ALL {
        server.connect(group).await;
    }

    // The disk is full when the new ones should become those in use: the former ones work, and the superuser's too.
    let full = store.clone();
    let hook = move |point: &str| full.1.store(point == "rotate.opened", Ordering::SeqCst);
    server.database = server.database.clone().with_failpoints(Failpoints::new(hook));
    let error = server.database.rotate(&Which::all(), 3, async |_| panic!("too early")).await.unwrap_err();
    assert!(matches!(error, Error::SecretStore(_)), "{error}");
    assert!(!format!("{error} {error:?}").contains("SCRAM-SHA-256"));
    for group in GroupRole::ALL {
        server.connect(group).await;
    }
    store.1.store(false, Ordering::SeqCst);
    server.another_daemon();
    let done = server.database.rotate(&Which::default(), 4, async |moved| assert_eq!(moved.len(), 9)).await.unwrap();
    assert_eq!(done, Which::all());
    is_whole(&server).await;
    assert!(before.is_disjoint(&passwords_of(&server)));
    let login = server.database.login(GroupRole::Service).unwrap();
    assert!(!format!("{login:?}").contains(login.password.expose_secret()));
}
