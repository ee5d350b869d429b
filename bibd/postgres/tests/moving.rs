//! A database from one provisioner to the other and back: with everything in it, or not at all.
#![allow(clippy::unwrap_used, clippy::print_stderr)]

mod support;

use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bibd_postgres::moving::{self, Ended};
use bibd_postgres::{Choice, Error, Failpoints, GroupRole, Randomness, SecretStore, Started, Stop, Wanted};
use futures::FutureExt as _;
use rand::SeedableRng as _;
use support::{Ground, TestServer, machine_has, run, text};

on_every_engine!(the_data_goes_along_and_what_cannot_be_moved_stays, a_death_at_any_step_is_gone_forward_from);

fn random() -> Randomness {
    Randomness::new(rand::rngs::StdRng::seed_from_u64(11))
}

async fn carry_out(server: &TestServer, wanted: Wanted) -> Option<Ended> {
    let secrets: Arc<dyn SecretStore> = server.store.clone();
    moving::carry_out(wanted, &server.settings, secrets, random(), &Failpoints::default()).await.unwrap();
    let ended = moving::read(&server.settings).unwrap().and_then(|planned| planned.ended);
    moving::forget(&server.settings).unwrap();
    ended
}

async fn count(server: &TestServer) -> String {
    text(&mut server.attacker().await, "SELECT count(*)::text FROM kept.kept").await
}

async fn the_data_goes_along_and_what_cannot_be_moved_stays(ground: Ground) {
    if !machine_has(Ground::Process).await {
        return;
    }
    let mut server = TestServer::started_on(ground).await;
    run(
        &mut server.attacker().await,
        "CREATE SCHEMA kept; CREATE TABLE kept.kept AS SELECT generate_series(1, 1000) AS n",
    )
    .await
    .unwrap();
    assert_eq!(carry_out(&server, Wanted::Auto).await, None, "nothing is planned");
    let secrets: Arc<dyn SecretStore> = server.store.clone();
    let examine =
        async |to, settings: &bibd_postgres::Settings| moving::examine(to, settings, secrets.clone(), random()).await;

    let refused = examine(Choice::Container, &server.settings).await.unwrap_err();
    assert!(matches!(refused, Error::AlreadyThere { .. }), "{refused}");
    let prospect = examine(Choice::Process, &server.settings).await.unwrap();
    assert_eq!((prospect.from, prospect.version.major), (Choice::Container, 15));
    assert_eq!(moving::read(&server.settings).unwrap(), None, "looking plans nothing");

    // Out of the container, whose server still runs, and which is gone then.
    moving::plan(Choice::Container, Choice::Process, &server.settings).unwrap();
    assert_eq!(carry_out(&server, Wanted::Auto).await, Some(Ended::Done));
    let left = ground.engine(&["ps", "--all", "--quiet", "--filter", &format!("name={}", server.container())]);
    assert_eq!(left, (true, String::new()));
    server.choice = Choice::Process;
    server.another_daemon();
    assert!(!server.postgres.provision().await.unwrap().created);
    assert_eq!(server.postgres.start().await.unwrap(), Started::Adopted);
    server.database.ensure_roles().await.unwrap();
    assert_eq!(count(&server).await, "1000");
    run(&mut server.attacker().await, "INSERT INTO kept.kept VALUES (1001)").await.unwrap();

    // The engine is gone: refused when it is asked for, given up when it is carried out, and the server as it was.
    let socket = server.settings.container.socket.replace(server.here.path().join("gone.sock"));
    let refused = examine(Choice::Container, &server.settings).await.unwrap_err();
    assert!(matches!(refused, Error::NoEngine { .. }) && refused.hint().is_some(), "{refused}");
    moving::plan(Choice::Process, Choice::Container, &server.settings).unwrap();
    let ended = carry_out(&server, Wanted::Auto).await.unwrap();
    assert!(matches!(&ended, Ended::GivenUp(why) if why.contains("no container engine")), "{ended:?}");
    assert_eq!(count(&server).await, "1001", "it did not even stop");
    server.settings.container.socket = socket;
    // The configuration names the other one.
    moving::plan(Choice::Process, Choice::Container, &server.settings).unwrap();
    let ended = carry_out(&server, Wanted::Exactly(Choice::Process)).await.unwrap();
    assert!(matches!(ended, Ended::GivenUp(_)), "{ended:?}");
    assert_eq!(count(&server).await, "1001");
    // The container does not come up: back.
    let usual = server.settings.container.limits.clone();
    server.settings.container.limits.memory_bytes = 6 << 20;
    moving::plan(Choice::Process, Choice::Container, &server.settings).unwrap();
    let ended = carry_out(&server, Wanted::Auto).await.unwrap();
    assert!(matches!(ended, Ended::GivenUp(_)), "{ended:?}");
    let left = ground.engine(&["ps", "--all", "--quiet", "--filter", &format!("name={}", server.container())]);
    assert_eq!(left, (true, String::new()));
    server.another_daemon();
    server.postgres.start().await.unwrap();
    assert_eq!(count(&server).await, "1001");
    server.settings.container.limits = usual;

    // Back into a container, cut off in the middle: PROVISIONER is written, and nobody was told.
    server.postgres.stop(Stop::Clean).await.unwrap();
    let path = server.layout().provisioner;
    let record = std::fs::read_to_string(&path).unwrap().replace("\"process\"", "\"container\"");
    std::fs::write(&path, record).unwrap();
    moving::plan(Choice::Process, Choice::Container, &server.settings).unwrap();
    assert_eq!(carry_out(&server, Wanted::Exactly(Choice::Container)).await, Some(Ended::Done));
    server.choice = Choice::Container;
    server.another_daemon();
    assert_eq!(server.postgres.start().await.unwrap(), Started::Spawned);
    server.database.ensure_roles().await.unwrap();
    assert_eq!(count(&server).await, "1001");
    server.connect(GroupRole::Service).await;
    // A plan that is no plan is said, and nothing is moved.
    std::fs::write(server.layout().home.join("MOVE"), "{").unwrap();
    let (secrets, failpoints) = (server.store.clone(), Failpoints::default());
    let refused = moving::carry_out(Wanted::Auto, &server.settings, secrets, random(), &failpoints).await.unwrap_err();
    assert!(matches!(refused, Error::MoveDamaged { .. }) && refused.hint().is_some(), "{refused}");
    server.postgres.stop(Stop::Clean).await.unwrap();
}

async fn a_death_at_any_step_is_gone_forward_from(ground: Ground) {
    if !machine_has(Ground::Process).await {
        return;
    }
    let mut server = TestServer::started_on(ground).await;
    run(&mut server.attacker().await, "CREATE SCHEMA kept; CREATE TABLE kept.kept AS SELECT 1 AS n").await.unwrap();
    for point in Failpoints::MOVE {
        // There, and back again.
        for (from, to) in [(Choice::Container, Choice::Process), (Choice::Process, Choice::Container)] {
            moving::plan(from, to, &server.settings).unwrap();
            let dying = Failpoints::new(move |hit| assert_ne!(hit, point, "the daemon dies here"));
            let secrets: Arc<dyn SecretStore> = server.store.clone();
            let moving = moving::carry_out(Wanted::Auto, &server.settings, secrets, random(), &dying);
            assert!(AssertUnwindSafe(moving).catch_unwind().await.is_err(), "{point} was not hit");
            let begun = Instant::now();
            assert_eq!(carry_out(&server, Wanted::Auto).await, Some(Ended::Done), "{point}");
            server.choice = to;
            server.another_daemon();
            assert!(!server.postgres.provision().await.unwrap().created);
            server.postgres.start().await.unwrap();
            server.database.ensure_roles().await.unwrap();
            assert!(begun.elapsed() < Duration::from_secs(10), "{point}: {:?}", begun.elapsed());
            assert_eq!(count(&server).await, "1", "{point}");
            let left = ground.engine(&["ps", "--all", "--quiet", "--filter", &format!("name={}", server.container())]);
            assert_eq!(left.1.is_empty(), to == Choice::Process, "{point}: {left:?}");
        }
    }
    server.postgres.stop(Stop::Clean).await.unwrap();
}
