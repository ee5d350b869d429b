//! The server certificate is renewed 30 days before its end without a restart (security.md, B-NET 43 and 46), by a clock
//! that moves when told.
#![allow(
    clippy::unwrap_used,
    clippy::print_stderr,
    clippy::disallowed_methods,
    reason = "tests say what they skip and spawn tasks"
)]

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use bib_core::Timestamp;
use bib_identity::server_tls::RevocationStatus;
use bib_identity::trust::{Expectation, FirstUse, ServerVerifier, client_config, server_name};
use bib_identity::{Fingerprint, NodeKey, TimeSource};
use bibd::certificates::{CertificateSettings, Certificates};
use bibd::clock::{Clock, Entropy, ManualClock};
use bibd::config::Config;
use bibd::grpc::health::{Condition, HealthBoard};
use bibd::secrets::Secrets;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::{TlsAcceptor, TlsConnector, client::TlsStream};
use tokio_util::sync::CancellationToken;

const DAY: Duration = Duration::from_secs(86_400);

/// A handshake with whoever has this CA; the stream and the leaf that was shown.
async fn connect(
    address: SocketAddr,
    ca: Fingerprint,
    clock: &ManualClock,
) -> Result<(TlsStream<TcpStream>, Fingerprint), String> {
    let verifier = ServerVerifier::new(Expectation::FirstUse(FirstUse::Accept { expected: Some(ca) }));
    let time = clock.clone();
    let config = client_config(Arc::clone(&verifier), None, TimeSource::new(move || time.now())).unwrap();
    let tcp = TcpStream::connect(address).await.unwrap();
    let stream = TlsConnector::from(Arc::new(config)).connect(server_name(), tcp).await;
    let stream = stream.map_err(|error| format!("{error:?}"))?;
    Ok((stream, verifier.presented().unwrap().leaf_sha256))
}

async fn echoes(stream: &mut TlsStream<TcpStream>) {
    stream.write_all(b"x").await.unwrap();
    assert_eq!(stream.read_u8().await.unwrap(), b'x');
}

#[tokio::test]
async fn a_certificate_is_renewed_while_connections_live_on_and_every_pin_holds() {
    let dir = tempfile::tempdir().unwrap();
    let manual = ManualClock::at(Timestamp::from_micros(1_763_665_260_000_000));
    let (clock, entropy): (Arc<dyn Clock>, _) = (Arc::new(manual.clone()), Entropy::seeded(3));
    let key = Arc::new(NodeKey::create(&dir.path().join("node_key"), &mut entropy.clone()).unwrap());
    let secrets = Secrets::new(&dir.path().join("secrets"), Arc::clone(&key), Vec::new());
    let config = Config::default();
    let settings = || CertificateSettings {
        directory: dir.path().join("certs"),
        peer: key.peer_id(),
        tls: &config.tls,
        addresses: &[],
    };
    let certificates = Certificates::ensure(settings(), &secrets, &clock, &entropy).unwrap();
    let ca = certificates.authority.fingerprint();

    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let time = manual.clone();
    let nobody = Arc::new(|_: &str| RevocationStatus::Unknown);
    let tls = certificates.tls.config(nobody, TimeSource::new(move || time.now())).unwrap();
    tokio::spawn(async move {
        while let Ok((tcp, _)) = listener.accept().await {
            let acceptor = TlsAcceptor::from(Arc::clone(&tls));
            tokio::spawn(async move {
                // A client that refuses us ends the handshake: nothing to serve.
                let Ok(stream) = acceptor.accept(tcp).await else { return };
                let (mut read, mut write) = tokio::io::split(stream);
                let _ = tokio::io::copy(&mut read, &mut write).await;
            });
        }
    });

    let board = HealthBoard::default();
    let mut look = certificates.renewing(board.clone());
    // Told to stop already, the task looks once and ends.
    let told = CancellationToken::new();
    told.cancel();

    let (mut old, first) = connect(address, ca, &manual).await.unwrap();
    manual.advance(334 * DAY);
    look(told.clone()).await.unwrap();
    assert_eq!(connect(address, ca, &manual).await.unwrap().1, first, "31 days before the end it is too early");

    manual.advance(2 * DAY);
    look(told.clone()).await.unwrap();
    let (mut new, second) = connect(address, ca, &manual).await.unwrap();
    assert_ne!(second, first, "29 days before the end it is due");
    assert!(certificates.tls.is_our_leaf(&first), "a log-in begun before is still bound to us");
    echoes(&mut old).await;
    echoes(&mut new).await;
    assert_eq!(board.condition("certificates"), Some(Condition::Serving));

    // Past the end of the first one: the second serves, and a restart takes it as it is.
    manual.advance(40 * DAY);
    connect(address, ca, &manual).await.unwrap();
    let again = Certificates::ensure(settings(), &secrets, &clock, &entropy).unwrap();
    assert_eq!(again.tls.leaf_sha256(), second);

    // Nobody looked for a year: the client says no. Then somebody looks.
    manual.advance(400 * DAY);
    let refused = connect(address, ca, &manual).await.unwrap_err();
    assert!(refused.to_lowercase().contains("expired"), "{refused}");
    look(told.clone()).await.unwrap();
    connect(address, ca, &manual).await.unwrap();

    // When it cannot be renewed, health says so, and what is there goes on being served.
    let path = dir.path().join("secrets");
    std::fs::rename(&path, dir.path().join("elsewhere")).unwrap();
    std::fs::write(&path, "in the way").unwrap();
    manual.advance(340 * DAY);
    look(told).await.unwrap();
    assert!(matches!(board.condition("certificates"), Some(Condition::Degraded(_))), "{board:?}");
    connect(address, ca, &manual).await.unwrap();
}
