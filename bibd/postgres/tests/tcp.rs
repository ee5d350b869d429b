//! A server that is reached over TCP: who is let in, whom we take for it, and its certificates while they change.
#![allow(clippy::unwrap_used, clippy::print_stderr, clippy::print_stdout)]

mod support;

use std::collections::BTreeSet;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicI64, AtomicU32, Ordering};
use std::time::Duration;

use bibd_postgres::checklist::{self, Expected, Status};
use bibd_postgres::rotation::{Moved, Which};
use bibd_postgres::tcp::{Authority, Clock, Endpoint, TlsError};
use bibd_postgres::{Act, GroupRole, Login, Randomness, Stop};
use rand::SeedableRng as _;
use secrecy::{ExposeSecret as _, SecretString};
use sqlx::postgres::{PgConnectOptions, PgSslMode};
use sqlx::{Connection as _, PgConnection};
use support::{Ground, MemoryStore, TestServer, machine_has_postgres, now_s, run, text, wait_for};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

const DAY: i64 = 86_400;

fn authority(store: &Arc<MemoryStore>, at_s: i64) -> Authority {
    let random = Randomness::new(rand::rngs::StdRng::seed_from_u64(at_s.unsigned_abs()));
    Authority::new(store.clone(), random, Clock::new(move || at_s))
}

fn port(server: &TestServer) -> u16 {
    server.settings.tcp.as_ref().unwrap().listening.port
}

fn names(server: &TestServer) -> Vec<String> {
    server.settings.tcp.as_ref().unwrap().names.clone()
}

/// What the server or the way to it says against these options: an SQLSTATE with the message, or `tls`.
async fn refusal(options: PgConnectOptions) -> String {
    match PgConnection::connect_with(&options).await {
        Ok(_) => "let in".to_owned(),
        Err(sqlx::Error::Database(error)) => format!("{} {}", error.code().unwrap_or_default(), error.message()),
        Err(error) => format!("tls {error}"),
    }
}

#[tokio::test]
async fn both_factors_of_one_role_are_needed() {
    if !machine_has_postgres().await {
        return;
    }
    let server = TestServer::started_on(Ground::Tcp).await;
    let login = server.database.login(GroupRole::Query).unwrap();
    let good = || server.postgres.connect_options(&login);
    let mut inside = PgConnection::connect_with(&good()).await.unwrap();
    let seen = "SELECT concat_ws(' ', version, client_dn, issuer_dn) FROM pg_stat_ssl WHERE pid = pg_backend_pid()";
    let seen = text(&mut inside, seen).await;
    assert!(seen.starts_with("TLSv1.3 /CN=bibd_query_a /CN=BIB database CA "), "{seen}");
    assert!(!server.layout().socket().exists() && server.postgres.endpoint().unwrap().port() == port(&server));

    let with = |options: PgConnectOptions, authority: &Authority, role: &str| {
        let client = authority.client(role).unwrap();
        let options = options.ssl_client_cert_from_pem(client.certificate);
        options.ssl_client_key_from_pem(client.key.expose_secret())
    };
    let own = authority(&server.store, now_s());
    assert_eq!(refusal(with(good(), &own, "bibd_query_a")).await, "let in");

    // No TLS; a certificate of another role, with the password of this one; no certificate.
    let plain = refusal(good().ssl_mode(PgSslMode::Disable)).await;
    assert!(plain.starts_with("28000") && plain.contains("no encryption"), "{plain}");
    for role in ["bibd_seal_a", "bibd_query_b", "bibd_query_a_", "bibd_admin"] {
        let other = refusal(with(good(), &own, role)).await;
        assert!(other.starts_with("28P01"), "{role}: {other}");
    }
    // The client is told no more than of a wrong password; the log has it.
    assert_eq!(
        server.log().matches("(clientcert=verify-full) failed for user \"bibd_query_a\": CN mismatch").count(),
        4
    );
    let bare = PgConnectOptions::new_without_pgpass().host("127.0.0.1").port(port(&server)).database("bib");
    let bare = bare.ssl_mode(PgSslMode::VerifyFull).ssl_root_cert_from_pem(own.client("x").unwrap().ca.into_bytes());
    let none = refusal(bare.username(&login.user).password(login.password.expose_secret())).await;
    assert!(none.starts_with("28000") && none.contains("valid client certificate"), "{none}");

    // Of another authority; one that has ended; one that has not begun; the server's own.
    let stranger = authority(&Arc::default(), now_s());
    stranger.ensure(&names(&server)).unwrap();
    let ended = authority(&server.store, now_s() - 101 * DAY);
    let coming = authority(&server.store, now_s() + DAY / 2);
    for (what, of) in [("another authority's", &stranger), ("ended", &ended), ("to come", &coming)] {
        let said = refusal(with(good(), of, "bibd_query_a")).await;
        assert!(said.starts_with("tls"), "{what}: {said}");
    }
    let files = own.server_files().unwrap();
    let servers = good().ssl_client_cert_from_pem(files.certificate).ssl_client_key_from_pem(files.key.expose_secret());
    let said = refusal(servers).await;
    assert!(said.starts_with("tls"), "the server's own: {said}");

    // The right certificate is half of it.
    let wrong = Login { password: SecretString::from("wrong"), ..login.clone() };
    assert!(refusal(server.postgres.connect_options(&wrong)).await.starts_with("28P01"));
    let mut monitor = server.connect(GroupRole::Monitor).await;
    assert_eq!(
        text(&mut monitor, "SELECT count(*)::text FROM pg_stat_activity WHERE usename LIKE 'bibd_query%'").await,
        "1"
    );
    server.postgres.stop(Stop::Clean).await.unwrap();
}

#[tokio::test]
async fn nothing_older_than_tls_1_3_is_spoken() {
    if !machine_has_postgres().await {
        return;
    }
    let server = TestServer::started_on(Ground::Tcp).await;
    let client = authority(&server.store, now_s()).client("bibd_query_a").unwrap();
    let handshake = async |version: &'static rustls::SupportedProtocolVersion| {
        use rustls_pki_types::pem::PemObject as _;
        let mut roots = rustls::RootCertStore::empty();
        roots.add(rustls_pki_types::CertificateDer::from_pem_slice(client.ca.as_bytes()).unwrap()).unwrap();
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let certificate = rustls_pki_types::CertificateDer::from_pem_slice(client.certificate.as_bytes()).unwrap();
        let key = rustls_pki_types::PrivateKeyDer::from_pem_slice(client.key.expose_secret().as_bytes()).unwrap();
        let config = rustls::ClientConfig::builder_with_provider(provider)
            .with_protocol_versions(&[version])
            .unwrap()
            .with_root_certificates(roots)
            .with_client_auth_cert(vec![certificate], key)
            .unwrap();
        let mut stream = tokio::net::TcpStream::connect(("127.0.0.1", port(&server))).await.unwrap();
        stream.write_all(&[0, 0, 0, 8, 0x04, 0xd2, 0x16, 0x2f]).await.unwrap();
        assert_eq!(stream.read_u8().await.unwrap(), b'S');
        let name = "127.0.0.1".try_into().unwrap();
        tokio_rustls::TlsConnector::from(Arc::new(config)).connect(name, stream).await.map(drop)
    };
    handshake(&rustls::version::TLS13).await.unwrap();
    let refused = handshake(&rustls::version::TLS12).await.unwrap_err();
    assert!(refused.to_string().contains("ProtocolVersion"), "{refused}");
    server.postgres.stop(Stop::Clean).await.unwrap();
}

#[tokio::test]
async fn only_the_server_with_our_certificate_and_its_name_is_taken_for_ours() {
    if !machine_has_postgres().await {
        return;
    }
    let server = TestServer::started_on(Ground::Tcp).await;
    let own = authority(&server.store, now_s());
    let login = server.database.login(GroupRole::Query).unwrap();
    let stranger = authority(&Arc::default(), now_s());
    stranger.ensure(&names(&server)).unwrap();
    let here = || Endpoint::new("127.0.0.1", port(&server), own.clone());
    assert!(here().presented().await.is_ok());
    for (what, endpoint) in [
        ("another name", Endpoint::new("localhost", port(&server), own.clone())),
        ("another authority", Endpoint::new("127.0.0.1", port(&server), stranger)),
    ] {
        let said = refusal(endpoint.options(&login)).await;
        assert!(said.starts_with("tls"), "{what}: {said}");
        assert!(matches!(endpoint.presented().await, Err(TlsError::Foreign(_))), "{what}");
        assert!(!format!("{endpoint:?}").contains("PRIVATE"));
    }
    // Somebody else has the port: no TLS, then silence.
    server.postgres.stop(Stop::Clean).await.unwrap();
    let listener = tokio::net::TcpListener::bind(("127.0.0.1", port(&server))).await.unwrap();
    let other = async {
        let (mut stream, _) = listener.accept().await.unwrap();
        stream.write_all(b"N").await.unwrap();
    };
    let endpoint = here();
    let (said, ()) = tokio::join!(endpoint.presented(), other);
    assert!(matches!(said, Err(TlsError::Refused)));
    drop(listener);
    let _taken = std::net::TcpListener::bind(("127.0.0.1", port(&server))).unwrap();
    // And a server does not start where it cannot listen.
    let refused = server.postgres.start().await.unwrap_err();
    assert!(refused.to_string().contains("Address already in use"), "{refused}");
}

/// The days before now at which a node looked at its certificates, the last while its server is started; and how many
/// authorities are trusted then and after the next look, which is now.
const CHANGES: [(&str, &[i64], usize, usize); 4] = [
    ("the server's certificate", &[75], 1, 1),
    ("a second authority comes", &[735, 25], 1, 2),
    ("the second one signs", &[831, 101, 25], 2, 2),
    ("the first one goes", &[931, 201, 101, 25], 2, 1),
];

#[tokio::test(flavor = "multi_thread")]
async fn certificates_change_and_nobody_is_refused() {
    if !machine_has_postgres().await {
        return;
    }
    for (what, looks, before, after) in CHANGES {
        let mut server = TestServer::on(Ground::Tcp);
        let back = Arc::new(AtomicI64::new(0));
        for days in looks {
            back.store(*days, Ordering::SeqCst);
            authority(&server.store, now_s() - days * DAY).ensure(&names(&server)).unwrap();
        }
        let clock = back.clone();
        server.settings.tcp.as_mut().unwrap().clock = Clock::new(move || now_s() - clock.load(Ordering::SeqCst) * DAY);
        server.another_daemon();
        server.postgres.provision().await.unwrap();
        server.postgres.start().await.unwrap();
        // From here on it is now, but nobody has looked.
        back.store(0, Ordering::SeqCst);
        server.database.ensure_roles().await.unwrap();
        let trusted = || {
            let files = &server.settings.tcp.as_ref().unwrap().listening.files;
            std::fs::read_to_string(files.join("ca.crt")).unwrap().matches("BEGIN").count()
        };
        let shown = async || server.postgres.endpoint().unwrap().presented().await.unwrap();
        assert_eq!(trusted(), before, "{what}");
        let (first, mut stays) = (shown().await, server.connect(GroupRole::Query).await);
        let old = server.database.connect_options(GroupRole::Service).unwrap();

        let (done, tries) = (AtomicBool::new(false), AtomicU32::new(0));
        let visitor = async |options: Option<&PgConnectOptions>| {
            while !done.load(Ordering::SeqCst) {
                let options =
                    options.cloned().unwrap_or_else(|| server.database.connect_options(GroupRole::Service).unwrap());
                let mut connection =
                    PgConnection::connect_with(&options).await.unwrap_or_else(|e| panic!("{what}: {e:?}"));
                assert_eq!(text(&mut connection, "SELECT 'x'").await, "x");
                connection.close().await.unwrap();
                tries.fetch_add(1, Ordering::SeqCst);
            }
        };
        let change = async {
            let enough = async |more: u32| {
                let target = tries.load(Ordering::SeqCst) + more;
                wait_for("visitors", Duration::from_secs(30), async || tries.load(Ordering::SeqCst) >= target).await;
            };
            enough(8).await;
            assert!(server.database.renew_certificates().await.unwrap(), "{what}");
            assert!(!server.database.renew_certificates().await.unwrap(), "{what}: once");
            enough(16).await;
            done.store(true, Ordering::SeqCst);
        };
        tokio::join!(visitor(None), visitor(None), visitor(Some(&old)), visitor(Some(&old)), change);
        assert_eq!(trusted(), after, "{what}");
        assert_eq!(text(&mut stays, "SELECT 'still'").await, "still");
        let is_another = shown().await != first;
        assert_eq!(is_another, ["the server's certificate", "the second one signs"].contains(&what), "{what}");
        let acts: Vec<Act> = server.recorder.seen.lock().unwrap().iter().map(|seen| seen.0).collect();
        assert_eq!(acts, [Act::EnsureRoles, Act::EnsureRoles, Act::ReloadCertificates]);
        server.postgres.stop(Stop::Clean).await.unwrap();
    }
}

#[tokio::test]
async fn a_rotation_brings_a_certificate_of_its_own() {
    if !machine_has_postgres().await {
        return;
    }
    let server = TestServer::started_on(Ground::Tcp).await;
    let seen = "SELECT client_dn || ' ' || client_serial FROM pg_stat_ssl WHERE pid = pg_backend_pid()";
    let former = server.database.connect_options(GroupRole::Query).unwrap();
    let before = text(&mut PgConnection::connect_with(&former).await.unwrap(), seen).await;
    let again = text(&mut PgConnection::connect_with(&former).await.unwrap(), seen).await;
    assert_eq!(before, again, "one set of options has one certificate");
    let which = Which { groups: vec![GroupRole::Query], superuser: true };
    let mut after = String::new();
    let move_over = async |moved: Vec<Moved>| {
        after = text(&mut PgConnection::connect_with(&moved[0].options).await.unwrap(), seen).await;
    };
    server.database.rotate(&which, now_s(), move_over).await.unwrap();
    let serial = |shown: &str| shown.split(' ').nth(1).unwrap().to_owned();
    assert!(before.starts_with("/CN=bibd_query_a ") && after.starts_with("/CN=bibd_query_b "), "{before} {after}");
    assert_ne!(serial(&before), serial(&after));
    // The former certificate still counts, and opens nothing.
    assert!(refusal(former).await.starts_with("28"));
    server.postgres.stop(Stop::Clean).await.unwrap();
}

#[tokio::test]
async fn names_a_hole_in_the_tls() {
    if !machine_has_postgres().await {
        return;
    }
    let server = TestServer::started_on(Ground::Tcp).await;
    let failed = async || -> BTreeSet<&'static str> {
        let facts = server.postgres.facts().await.unwrap();
        let mut monitor = server.connect(GroupRole::Monitor).await;
        let findings = checklist::audit(&mut monitor, &facts, &Expected::default()).await.unwrap();
        findings.iter().filter(|finding| finding.status == Status::Fail).map(|finding| finding.item).collect()
    };
    let mut attacker = server.attacker().await;
    let whole = failed().await;
    assert!(["C.2-10", "C.2-11", "C.2-12", "C.2-16", "C.4-42", "C.4-45"].iter().all(|item| !whole.contains(item)));
    let mut named = async |more: &[&'static str], why: &str| {
        run(&mut attacker, "SELECT pg_reload_conf()").await.unwrap();
        let wanted: BTreeSet<_> = whole.iter().copied().chain(more.iter().copied()).collect();
        wait_for(why, Duration::from_secs(60), async || failed().await == wanted).await;
    };
    let key = server.settings.tcp.as_ref().unwrap().listening.files.join("server.key");
    let chmod = |path: &Path, mode| std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode)).unwrap();
    chmod(&key, 0o640);
    named(&["C.2-16"], "a key for the group").await;
    chmod(&key, 0o600);

    let (conf, hba) = (server.layout().data.join("postgresql.conf"), server.layout().data.join("pg_hba.conf"));
    let (settings, rules) = (std::fs::read_to_string(&conf).unwrap(), std::fs::read_to_string(&hba).unwrap());
    std::fs::write(&conf, format!("{settings}ssl_min_protocol_version = 'TLSv1.2'\n")).unwrap();
    named(&["C.2-16", "C.4-42"], "TLS 1.2").await;
    std::fs::write(&conf, settings).unwrap();

    // Without a certificate, then without TLS, and somebody comes so.
    let login = server.database.login(GroupRole::Query).unwrap();
    std::fs::write(&hba, format!("hostssl bib bibd_query_a 127.0.0.1/32 scram-sha-256\n{rules}")).unwrap();
    named(&["C.1-5", "C.2-16", "C.4-42"], "no certificate asked for").await;
    std::fs::write(&hba, format!("host bib bibd_query_a 127.0.0.1/32 scram-sha-256\n{rules}")).unwrap();
    named(&["C.1-5", "C.2-12", "C.2-16", "C.4-42"], "no TLS asked for").await;
    let plain = server.postgres.connect_options(&login).ssl_mode(PgSslMode::Disable);
    let visitor = PgConnection::connect_with(&plain).await.unwrap();
    named(&["C.1-5", "C.2-12", "C.2-16", "C.4-42", "C.4-45"], "a session without TLS").await;
    visitor.close().await.unwrap();
    std::fs::write(&hba, rules).unwrap();
    named(&[], "all mended").await;
    server.postgres.stop(Stop::Clean).await.unwrap();
}
