//! The StatefulSet's own pod, run by Docker as a kubelet would run it. No cluster is needed to see PostgreSQL come up
//! behind TLS on a read-only root, and go down in order.

use std::collections::BTreeMap;
use std::sync::Arc;

use bibd_postgres::kubernetes::manifests::database;
use bibd_postgres::kubernetes::names::VERIFIER;
use bibd_postgres::kubernetes::{Content, KubernetesSettings};
use bibd_postgres::tcp::{Authority, Clock, Endpoint};
use bibd_postgres::{Limits, Login, Randomness, Wal};
use rand::SeedableRng as _;
use secrecy::{ExposeSecret as _, SecretString};
use serde_json::Value;
use sqlx::{ConnectOptions as _, Connection as _, PgConnection};

use crate::kubelet::Kubelet;
use crate::support::{Ground, MemoryStore, machine_has, test_image};

const PASSWORD: &str = "correct horse battery staple";

fn objects(settings: &KubernetesSettings, content: &Content) -> Vec<Value> {
    database(settings, content).iter().map(|manifest| manifest.value().clone()).collect()
}

fn login(user: &str, password: &str) -> Login {
    Login { user: user.to_owned(), database: "postgres".to_owned(), password: SecretString::from(password) }
}

async fn number(connection: &mut PgConnection, statement: &'static str) -> i64 {
    sqlx::query_scalar(statement).fetch_one(connection).await.unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pod_comes_up_behind_tls_and_goes_down_in_order() {
    if !machine_has(Ground::Docker).await {
        return;
    }
    assert!(
        rustix::process::geteuid().is_root() || std::env::var("CI").as_deref() != Ok("true"),
        "CI must run as root"
    );
    if !rustix::process::geteuid().is_root() {
        eprintln!("\n==== SKIPPED, NOTHING TESTED: only root can give files to the pod's group\n");
        return;
    }
    let settings = KubernetesSettings { image: test_image(), major: 15, ..KubernetesSettings::default() };
    let now = || i64::try_from(std::time::SystemTime::UNIX_EPOCH.elapsed().unwrap().as_secs()).unwrap();
    let random = Randomness::new(rand::rngs::StdRng::seed_from_u64(5));
    let authority = Authority::new(Arc::new(MemoryStore::default()), random, Clock::new(now));
    let files = authority.ensure(&[settings.host(), "127.0.0.1".to_owned()]).unwrap();
    let verifier = postgres_protocol::password::scram_sha_256(PASSWORD.as_bytes());
    let mut content = Content::new(&settings.config(&Limits::default(), &Wal::Recycle));
    content.secrets = BTreeMap::from([
        ("ca.crt".to_owned(), files.ca.into_bytes()),
        ("server.crt".to_owned(), files.certificate.into_bytes()),
        ("server.key".to_owned(), files.key.expose_secret().as_bytes().to_vec()),
        (VERIFIER.to_owned(), verifier.into_bytes()),
    ]);

    let kubelet = Kubelet::new();
    let all = objects(&settings, &content);
    let endpoint = Endpoint::new("127.0.0.1", kubelet.start(&all), authority.clone());
    let admin = endpoint.options(&login("bibd_admin", PASSWORD));
    let mut connection = admin.connect().await.unwrap();
    assert_eq!(
        number(
            &mut connection,
            "select count(*) from pg_stat_ssl where pid = pg_backend_pid() and ssl and version = 'TLSv1.3'"
        )
        .await,
        1
    );
    let cluster = number(&mut connection, "select system_identifier from pg_control_system()").await;
    sqlx::query("create table kept (n int)").execute(&mut connection).await.unwrap();
    // The files in the pod are the server's effective settings, without an error and without one that waits.
    assert_eq!(number(&mut connection, "select count(*) from pg_file_settings where error is not null").await, 0);
    assert_eq!(number(&mut connection, "select count(*) from pg_hba_file_rules where error is not null").await, 0);
    connection.close().await.unwrap();

    // Either factor alone opens nothing, and a certificate of another role is none.
    let wrong = endpoint.options(&login("bibd_admin", "wrong")).connect().await.unwrap_err().to_string();
    assert!(wrong.contains("password authentication failed"), "{wrong}");
    let service = authority.client("bibd_service_a").unwrap();
    let others = admin
        .clone()
        .ssl_client_cert_from_pem(service.certificate)
        .ssl_client_key_from_pem(service.key.expose_secret());
    let refused = others.connect().await.unwrap_err().to_string();
    assert!(refused.contains("certificate") || refused.contains("authentication failed"), "{refused}");
    let plain = admin.clone().ssl_mode(sqlx::postgres::PgSslMode::Disable).connect().await.unwrap_err().to_string();
    assert!(plain.contains("pg_hba.conf rejects connection"), "{plain}");

    let said = kubelet.stop(&all);
    assert!(said.contains("fast shutdown request") && said.contains("database system is shut down"), "{said}");
    assert!(!said.contains(PASSWORD));

    // Once there is a cluster the verifier goes, and the pod must find that very cluster.
    content.secrets.remove(VERIFIER);
    content.cluster = u64::try_from(cluster).ok();
    let all = objects(&settings, &content);
    let endpoint = Endpoint::new("127.0.0.1", kubelet.start(&all), authority);
    let mut connection = endpoint.options(&login("bibd_admin", PASSWORD)).connect().await.unwrap();
    assert_eq!(number(&mut connection, "select count(*) from kept").await, 0);
    connection.close().await.unwrap();
    kubelet.stop(&all);

    content.cluster = Some(5);
    let (status, reason) = kubelet.initialise(&objects(&settings, &content));
    assert_eq!((status.as_str(), reason), ("1", format!("the volume holds cluster {cluster}, expected 5")));
}
