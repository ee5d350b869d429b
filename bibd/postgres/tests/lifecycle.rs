//! A server from nothing to a clean stop, and what crashes in between leave behind.
#![allow(clippy::unwrap_used, clippy::print_stderr, clippy::print_stdout)]

mod support;

use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::time::{Duration, Instant};

use bibd_postgres::{Act, Error, GroupRole, Health, Started, State, Stop};
use rustix::process::{Pid, Signal, kill_process};
use support::{Ground, TestServer, run, text, wait_for};
use tokio_util::sync::CancellationToken;

on_every_provisioner!(
    from_nothing_to_a_clean_stop_and_again,
    a_new_daemon_adopts_the_running_server,
    a_killed_server_comes_back_and_a_stopped_one_does_not,
    every_crash_point_of_provisioning_resumes_or_refuses,
    refuses_places_where_the_server_cannot_live,
);

fn kill(pid: u32, signal: Signal) {
    kill_process(Pid::from_raw(i32::try_from(pid).unwrap()).unwrap(), signal).unwrap();
}

async fn from_nothing_to_a_clean_stop_and_again(ground: Ground) {
    let server = TestServer::on(ground);
    assert!(server.postgres.provision().await.unwrap().created);
    assert_eq!(server.postgres.start().await.unwrap(), Started::Spawned);
    server.database.ensure_roles().await.unwrap();
    assert_eq!(server.postgres.health().await, Health::Ready);
    assert_eq!(server.postgres.start().await.unwrap(), Started::AlreadyRunning);

    // Every group's login in use works, with SCRAM, as itself.
    for group in GroupRole::ALL {
        let mut connection = server.connect(group).await;
        assert_eq!(text(&mut connection, "SELECT current_user::text").await, format!("{group}_a"));
    }
    let superuser: Vec<_> = server.recorder.seen.lock().unwrap().clone();
    assert_eq!(superuser.iter().map(|use_| use_.0).collect::<Vec<_>>(), [Act::EnsureRoles; 2]);
    assert!(superuser.iter().all(|(_, succeeded, lived)| *succeeded && *lived < Duration::from_secs(10)));

    // The process: not root, no groups beside its own, files for nobody else, no core dumps, its own group.
    let status = std::fs::read_to_string(format!("/proc/{}/status", server.pid())).unwrap();
    let field = |name: &str| status.lines().find_map(|line| line.strip_prefix(name)).unwrap_or_default().trim();
    assert!(!field("Uid:").split_whitespace().any(|uid| uid == "0"), "{status}");
    if rustix::process::geteuid().is_root() {
        // An engine names the user's own group once more.
        let own = if !ground.is_container() { String::new() } else { server.account().await.gid.to_string() };
        assert_eq!(field("Groups:"), own);
    }
    assert_eq!(field("Umask:"), "0077");
    let limits = std::fs::read_to_string(format!("/proc/{}/limits", server.pid())).unwrap();
    assert!(limits.lines().any(|line| line.starts_with("Max core file size        0 ")), "{limits}");

    server.postgres.stop(Stop::Clean).await.unwrap();
    assert_eq!(server.postgres.health().await, Health::Stopped);
    server.postgres.stop(Stop::Clean).await.unwrap();

    assert!(!server.postgres.provision().await.unwrap().created);
    assert_eq!(server.postgres.start().await.unwrap(), Started::Spawned);
    server.database.ensure_roles().await.unwrap();
    server.postgres.stop(Stop::Clean).await.unwrap();
}

async fn a_new_daemon_adopts_the_running_server(ground: Ground) {
    let mut server = TestServer::started_on(ground).await;
    let pid = server.pid();
    let mut session = server.connect(GroupRole::Service).await;
    server.another_daemon();
    server.postgres.provision().await.unwrap();
    assert_eq!(server.postgres.start().await.unwrap(), Started::Adopted);
    server.database.ensure_roles().await.unwrap();
    assert_eq!(server.pid(), pid, "the same server");
    assert_eq!(text(&mut session, "SELECT 'alive'").await, "alive");
    // An adopted server is stopped and verified like any other; a third daemon finds nothing to adopt.
    server.postgres.stop(Stop::Clean).await.unwrap();
    server.another_daemon();
    assert_eq!(server.postgres.health().await, Health::Stopped);
    assert_eq!(server.postgres.start().await.unwrap(), Started::Spawned);
    server.postgres.stop(Stop::Clean).await.unwrap();

    // A pid file left by a power cut whose number now belongs to somebody else.
    let stale = format!("{}\n{}\n1\n5432\n\n\n\nready\n", std::process::id(), server.layout().data.display());
    std::fs::write(server.layout().data.join("postmaster.pid"), stale).unwrap();
    server.another_daemon();
    assert_eq!(server.postgres.start().await.unwrap(), Started::Spawned);
    server.postgres.stop(Stop::Clean).await.unwrap();
}

async fn a_killed_server_comes_back_and_a_stopped_one_does_not(ground: Ground) {
    let server = TestServer::started_on(ground).await;
    let mut state = server.postgres.state();
    let cancel = CancellationToken::new();
    let watching = server.postgres.clone();
    let token = cancel.clone();
    #[allow(clippy::disallowed_methods, reason = "a test has no supervisor")]
    let watch = tokio::spawn(async move { watching.supervise(token).await });

    let first = server.pid();
    let mut session = server.connect(GroupRole::Service).await;
    let begun = Instant::now();
    kill(first, Signal::KILL);
    state.wait_for(|state| matches!(state, State::Crashed { attempt: 1, .. })).await.unwrap();
    state.wait_for(|state| *state == State::Running).await.unwrap();
    println!("back after {:?}", begun.elapsed());
    assert!(begun.elapsed() < Duration::from_secs(15));
    assert_ne!(server.pid(), first);
    assert!(run(&mut session, "SELECT 1").await.is_err(), "the former session is gone");
    server.connect(GroupRole::Service).await;

    // One backend killed: the server recovers by itself, the same process.
    let second = server.pid();
    let mut session = server.connect(GroupRole::Service).await;
    let backend = server.pid_of(&text(&mut session, "SELECT pg_backend_pid()::text").await);
    kill(backend, Signal::KILL);
    wait_for("recovery", Duration::from_secs(15), async || {
        let options = server.database.connect_options(GroupRole::Service).unwrap();
        sqlx::Connection::ping(&mut match <sqlx::PgConnection as sqlx::Connection>::connect_with(&options).await {
            Ok(connection) => connection,
            Err(_) => return false,
        })
        .await
        .is_ok()
    })
    .await;
    assert_eq!(server.pid(), second);

    // A server that hangs is reported, not killed.
    kill(second, Signal::STOP);
    assert!(matches!(server.postgres.health().await, Health::Degraded { .. }));
    state.wait_for(|state| matches!(state, State::Degraded { .. })).await.unwrap();
    kill(second, Signal::CONT);
    state.wait_for(|state| *state == State::Running).await.unwrap();

    server.postgres.stop(Stop::Clean).await.unwrap();
    tokio::time::sleep(Duration::from_millis(700)).await;
    assert_eq!((server.postgres.health().await, state.borrow().clone()), (Health::Stopped, State::Stopped));
    cancel.cancel();
    watch.await.unwrap();
}

async fn every_crash_point_of_provisioning_resumes_or_refuses(ground: Ground) {
    let mut server = TestServer::on(ground);
    let layout = server.layout();
    let write = |text: &str| std::fs::write(&layout.provisioner, text).unwrap();
    let major = server.postgres.version().await.unwrap().major;
    let choice = ground.choice().name();
    let early = format!("{{\"choice\":\"{choice}\",\"major\":{major},\"state\":\"initialising\"}}\n");

    // Crashed in `initdb`: half a directory, which is removed.
    std::fs::create_dir(&layout.home).unwrap();
    std::fs::create_dir(&layout.data_new).unwrap();
    std::fs::write(layout.data_new.join("half"), "x").unwrap();
    let refused = server.postgres.provision().await.unwrap_err();
    assert!(matches!(&refused, Error::DataUnknown { data, .. } if *data == layout.data_new), "{refused}");
    write(&early);
    let made = server.postgres.provision().await.unwrap();
    assert!(made.created && !layout.data_new.exists() && !layout.data.join("half").exists());
    let ready = std::fs::read_to_string(&layout.provisioner).unwrap();
    assert_eq!(
        ready,
        format!(
            "{{\"choice\":\"{choice}\",\"major\":{major},\"state\":\"ready\",\"system_identifier\":\"{}\"}}\n",
            made.system_identifier
        )
    );
    assert_eq!(std::fs::metadata(&layout.provisioner).unwrap().mode() & 0o777, 0o600);

    // Crashed between the rename and the second step.
    write(&early);
    let finished = server.postgres.provision().await.unwrap();
    assert_eq!((finished.created, finished.system_identifier), (false, made.system_identifier));
    assert_eq!(std::fs::read_to_string(&layout.provisioner).unwrap(), ready);

    // Data, and nothing that says whose.
    std::fs::remove_file(&layout.provisioner).unwrap();
    let refused = server.postgres.provision().await.unwrap_err();
    assert!(matches!(refused, Error::DataUnknown { .. }) && refused.hint().is_some(), "{refused}");
    write(&ready);

    // Another cluster in its place: neither provision nor start takes it.
    write(&ready.replace(&made.system_identifier.to_string(), "42"));
    for refused in
        [server.postgres.provision().await.map(drop).unwrap_err(), server.postgres.start().await.map(drop).unwrap_err()]
    {
        assert!(matches!(refused, Error::OtherCluster { expected: 42, .. }), "{refused}");
    }
    // Nonsense is not taken for absence.
    write("");
    assert!(matches!(server.postgres.provision().await.unwrap_err(), Error::ProvisionerDamaged { .. }));
    write(&ready);

    // The passwords are gone: never made anew over a database.
    let secrets = server.store.forget();
    for text in [&ready, &early] {
        write(text);
        assert!(matches!(server.postgres.provision().await.unwrap_err(), Error::SecretsMissing));
    }
    server.store.put_back(secrets);
    write(&ready);

    // `ready`, and the volume is not mounted.
    std::fs::rename(&layout.data, layout.home.join("elsewhere")).unwrap();
    let refused = server.postgres.provision().await.unwrap_err();
    assert!(matches!(refused, Error::DataMissing { .. }) && refused.hint().is_some(), "{refused}");
    std::fs::rename(layout.home.join("elsewhere"), &layout.data).unwrap();

    // And all of it still starts.
    server.another_daemon();
    assert!(!server.postgres.provision().await.unwrap().created);
    server.postgres.start().await.unwrap();
    server.database.ensure_roles().await.unwrap();
}

async fn refuses_places_where_the_server_cannot_live(ground: Ground) {
    let mut server = TestServer::on(ground);
    let layout = server.layout();
    server.settings.runtime_dir = server.here.path().join("x".repeat(90));
    server.another_daemon();
    let refused = server.postgres.provision().await.unwrap_err();
    assert!(matches!(refused, Error::SocketPathTooLong { bytes, max: 100, .. } if bytes > 100), "{refused}");
    server.settings.runtime_dir = server.here.path().join("r");

    // The engine needs no way to what it mounts.
    if rustix::process::geteuid().is_root() && !ground.is_container() {
        let closed = server.here.path().join("d");
        std::fs::set_permissions(&closed, std::fs::Permissions::from_mode(0o700)).unwrap();
        server.another_daemon();
        let refused = server.postgres.provision().await.unwrap_err();
        assert!(matches!(&refused, Error::NotTraversable { directory, .. } if *directory == closed), "{refused}");
        assert_eq!(refused.hint().unwrap(), format!("chmod o+x {}", closed.display()));
        assert!(!layout.data_new.exists() && !layout.provisioner.exists(), "said before initdb");
        std::fs::set_permissions(&closed, std::fs::Permissions::from_mode(0o711)).unwrap();
    }
    // A start before there is anything to start.
    server.another_daemon();
    assert!(matches!(server.postgres.start().await.unwrap_err(), Error::NotProvisioned));
    server.postgres.provision().await.unwrap();
    // A server that cannot start says why, with its own words.
    std::fs::write(layout.data.join("PG_VERSION"), "14\n").unwrap();
    let refused = server.postgres.start().await.unwrap_err();
    assert!(matches!(&refused, Error::StartFailed { log, .. } if !log.is_empty()), "{refused}");
    assert!(refused.to_string().contains("initialized by PostgreSQL version 14"), "{refused}");
}
