//! The role of break-glass: what it may, how it is entered, and that nothing of it stays.
#![allow(clippy::unwrap_used, clippy::print_stderr)]

mod support;

use std::time::Duration;

use bibd_postgres::glass::snapshot::changes;
use bibd_postgres::glass::{Access, DoorError, GlassName, leftover, sessions_of};
use bibd_postgres::{Act, GroupRole, checklist};
use bytes::BytesMut;
use postgres_protocol::message::frontend;
use secrecy::ExposeSecret as _;
use support::{Ground, TestServer, machine_has_postgres, run, text, wait_for};
use tokio::io::AsyncWriteExt as _;

const HOUR: Duration = Duration::from_secs(3_600);

mod process {
    crate::tests_on!(
        Process,
        a_role_is_made_entered_and_dropped_and_leaves_nothing,
        what_a_daemon_left_is_shut_at_the_next_start_and_what_does_not_listen_is_ended
    );
}

mod tcp {
    crate::tests_on!(
        Tcp,
        a_role_is_made_entered_and_dropped_and_leaves_nothing,
        what_a_daemon_left_is_shut_at_the_next_start_and_what_does_not_listen_is_ended
    );
}

async fn a_role_is_made_entered_and_dropped_and_leaves_nothing(ground: Ground) {
    let server = TestServer::started_on(ground).await;
    let name = GlassName::new(7);
    let opened = server.database.open_glass(&name, Access::Read, HOUR).await.unwrap();
    assert!(!format!("{:?}", opened.door).contains(opened.door.verifier().expose_secret()));
    let mut attacker = server.attacker().await;
    let of_role = "SELECT concat_ws(' ', rolsuper, rolcreaterole, rolcreatedb, rolreplication, rolbypassrls, rolcanlogin, rolconnlimit,
                   rolvaliduntil BETWEEN now() + interval '55 minutes' AND now() + interval '1 hour')
                   FROM pg_roles WHERE rolname = 'bibd_glass_00000007'";
    assert_eq!(text(&mut attacker, of_role).await, "f f f f f t 6 t");
    assert!(server.database.open_glass(&name, Access::Read, HOUR).await.is_err(), "there is one");

    let parameters = [("application_name".to_owned(), "x".to_owned())];
    let entered = opened.door.enter(&parameters).await.unwrap();
    assert!(entered.parameters.contains(&("application_name".to_owned(), "x".to_owned())));
    let mut monitor = server.connect(GroupRole::Monitor).await;
    assert_eq!(sessions_of(&mut monitor, &name).await.unwrap(), [entered.key.pid]);
    assert_eq!(leftover(&mut monitor).await.unwrap(), std::slice::from_ref(&name));
    // The checklist knows it for what it is.
    let facts = server.postgres.facts().await.unwrap();
    let findings = checklist::audit(&mut monitor, &facts, &checklist::Expected::default()).await.unwrap();
    let of = |item: &str| findings.iter().find(|finding| finding.item == item).unwrap().clone();
    for item in ["C.3-19", "C.3-20", "C.3-21", "C.3-23", "C.3-27"] {
        assert_eq!(of(item).status, checklist::Status::Pass, "{:?}", of(item));
    }
    run(&mut attacker, "ALTER ROLE bibd_glass_00000007 SET log_statement = 'none'").await.unwrap();
    let findings = checklist::audit(&mut monitor, &facts, &checklist::Expected::default()).await.unwrap();
    let bent = findings.iter().find(|finding| finding.item == "C.3-27").unwrap();
    assert_eq!(bent.status, checklist::Status::Fail, "{bent:?}");

    let closed = server.database.close_glass(&name, Some(opened.door.verifier())).await.unwrap();
    let after = closed.after.unwrap();
    let changed = changes(&opened.before, &after, name.as_str());
    assert_eq!(changed.len(), 1, "{changed:?}");
    assert_eq!((changed[0].kind.as_str(), closed.password_changed), ("role setting", false));
    assert!(
        leftover(&mut monitor).await.unwrap().is_empty() && sessions_of(&mut monitor, &name).await.unwrap().is_empty()
    );
    assert!(matches!(opened.door.enter(&[]).await, Err(DoorError::Refused { .. })));
    let again = server.database.close_glass(&name, None).await.unwrap();
    assert!(again.after.is_none(), "nothing is left to be closed");
    let acts: Vec<Act> = server.recorder.seen.lock().unwrap().iter().map(|seen| seen.0).collect();
    assert!(acts.ends_with(&[Act::OpenGlass, Act::OpenGlass, Act::CloseGlass, Act::CloseGlass]), "{acts:?}");
    let verifier = opened.door.verifier().expose_secret().to_owned();
    assert!(!server.log().contains(&verifier), "the server's log has the verifier");
}

async fn what_a_daemon_left_is_shut_at_the_next_start_and_what_does_not_listen_is_ended(ground: Ground) {
    let mut server = TestServer::started_on(ground).await;
    let name = GlassName::new(8);
    let door = server.database.open_glass(&name, Access::Write, HOUR).await.unwrap().door;
    let mut stubborn = door.enter(&[]).await.unwrap();
    let mut message = BytesMut::new();
    let loops =
        "DO $$ BEGIN LOOP BEGIN PERFORM pg_sleep(60); EXCEPTION WHEN query_canceled THEN NULL; END; END LOOP; END $$";
    frontend::query(loops, &mut message).unwrap();
    stubborn.stream.write_all(&message).await.unwrap();
    stubborn.stream.flush().await.unwrap();
    let mut attacker = server.attacker().await;
    let states =
        "SELECT coalesce(string_agg(state, ' '), '') FROM pg_stat_activity WHERE usename = 'bibd_glass_00000008'";
    wait_for("the loop", Duration::from_secs(60), async || text(&mut attacker, states).await == "active").await;
    door.cancel(stubborn.key).await.unwrap();
    tokio::time::sleep(Duration::from_millis(300)).await;
    assert_eq!(text(&mut attacker, states).await, "active", "a cancel request can be caught");
    door.terminate(stubborn.key.pid).await.unwrap();
    wait_for("its end", Duration::from_secs(10), async || text(&mut attacker, states).await.is_empty()).await;

    let idle = door.enter(&[]).await.unwrap();
    server.another_daemon();
    server.database.ensure_roles().await.unwrap();
    assert_eq!(text(&mut attacker, states).await, "", "a session outlived the start");
    let of_role =
        "SELECT rolcanlogin || ' ' || (rolpassword IS NULL) FROM pg_authid WHERE rolname = 'bibd_glass_00000008'";
    assert_eq!(text(&mut attacker, of_role).await, "false true");
    drop(idle);
    let closed = server.database.close_glass(&name, None).await.unwrap();
    assert!(closed.after.is_some() && leftover(&mut attacker).await.unwrap().is_empty());
}

#[tokio::test]
async fn without_a_record_of_it_no_role_is_made() {
    if !machine_has_postgres().await {
        return;
    }
    let server = TestServer::started().await;
    server.recorder.broken.store(true, std::sync::atomic::Ordering::SeqCst);
    let refused = server.database.open_glass(&GlassName::new(9), Access::Read, HOUR).await.err().unwrap();
    assert!(matches!(refused, bibd_postgres::Error::NotRecorded { .. }), "{refused:?}");
    assert!(leftover(&mut server.attacker().await).await.unwrap().is_empty());
}
