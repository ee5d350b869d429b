//! Publishing, downloading, verifying, proving and collecting, in process, on a real PostgreSQL and a real store.
#![allow(clippy::unwrap_used)]

#[path = "support/publish.rs"]
mod publish;
mod support;

use std::time::Duration;

use bib_core::Hash;
use bib_core::access::NodeRole;
use bibd::errors::ErrorCode;
use bibd::services::ServiceError;
use bibd::services::commit::Committed;
use bibd_catalog::versions::VersionState;
use publish::{describe, folder};
use support::Lab;
use tokio_util::sync::CancellationToken;

fn noise(seed: u64, bytes: usize) -> Vec<u8> {
    let block = |i: u64| *Hash::of(&[seed.to_le_bytes(), i.to_le_bytes()].concat()).as_bytes();
    (0..).flat_map(block).take(bytes).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_folder_is_published_changed_and_comes_back_bit_for_bit() {
    let Some(lab) = Lab::start().await else { return };
    let ada = lab.person("ada", NodeRole::Writer).await;
    let mut files = folder(&[("a/empty", b""), ("a/text", b"hello\n"), ("b", b"b"), ("é/\"quoted\"", b"q")]);
    files.insert("big".to_owned(), noise(1, 9_000_000));
    files.insert("zeros".to_owned(), vec![0; 3_000_000]);

    let first = lab.publish(&ada, "climate/hourly", &files).await.unwrap();
    assert!(first.created() && first.chunks_sent > 5);
    let version = first.version().clone();
    assert_eq!((version.n, version.files, version.state), (1, 6, VersionState::Pending));
    assert_eq!(lab.download(&ada, "climate/hourly").await.unwrap(), files);
    assert_eq!(
        lab.download(&ada, &format!("climate/hourly@{}", &version.hash.to_string()[..12])).await.unwrap(),
        files
    );

    // Nothing changed: no version, nothing sent but the roots.
    let again = lab.publish(&ada, "climate/hourly", &files).await.unwrap();
    assert_eq!((again.created(), again.chunks_sent, again.version().hash), (false, 0, version.hash));

    // One file changed: its chunk alone is sent.
    files.insert("b".to_owned(), b"changed".to_vec());
    let second = lab.publish(&ada, "climate/hourly", &files).await.unwrap();
    assert_eq!((second.created(), second.chunks_sent, second.version().n), (true, 1, 2));
    assert_eq!(second.version().parents, [version.hash]);
    assert_eq!(lab.download(&ada, "climate/hourly").await.unwrap()["b"], b"changed");
    assert_eq!(lab.download(&ada, &version.hash.to_string()).await.unwrap()["b"], b"b");

    // The background task hashes every file and says so.
    Box::pin(lab.data.verify.round(&CancellationToken::new())).await.unwrap();
    assert_eq!(lab.number("SELECT count(*) FROM bib.versions WHERE state = 'verified'").await, 2);

    // One entry for all the reading, one for each publish.
    assert_eq!(lab.number("SELECT count(*) FROM bib.audit_entry WHERE action = 'dataset.read'").await, 2);
    assert_eq!(lab.number("SELECT count(*) FROM bib.audit_entry WHERE action = 'dataset.publish'").await, 2);
    assert_eq!(lab.number("SELECT count(*) FROM bib.leases").await, 0);
    lab.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_moved_latest_is_a_conflict_and_a_repeated_request_gets_the_first_answer() {
    let Some(lab) = Lab::start().await else { return };
    let ada = lab.person("ada", NodeRole::Writer).await;
    let one = lab.publish(&ada, "t/d", &folder(&[("x", b"1")])).await.unwrap();

    let described = describe(&folder(&[("x", b"2")]));
    let begun = lab.begin(&ada, "t/d").await.unwrap();
    lab.stage(&ada, begun.upload.id, &described).await.unwrap();
    let two = lab.publish(&ada, "t/d", &folder(&[("x", b"3")])).await.unwrap();

    // Built upon the first version, while the second is the latest.
    let stale = lab.statement(&ada, &begun, &described, vec![one.version().hash]);
    let wanted = lab.signed(&ada, begun.upload.id, &stale, described.layout_root.hash);
    let error = lab.data.commits.commit(&ada.call, wanted).await.unwrap_err();
    assert_eq!(error.code(), ErrorCode::LATEST_MOVED);
    let ServiceError::Conflict { values, .. } = error else { panic!("a conflict") };
    let expected = [("parent", one.version().hash.to_string()), ("latest", two.version().hash.to_string())];
    assert_eq!(values, expected);

    // The same session, rebased, with a key; asked twice.
    let fresh = lab.statement(&ada, &begun, &described, vec![two.version().hash]);
    let mut wanted = lab.signed(&ada, begun.upload.id, &fresh, described.layout_root.hash);
    wanted.idempotency_key = "once".to_owned();
    let mut answers = Vec::new();
    for _ in 0..2 {
        match lab.data.commits.commit(&ada.call, wanted.clone()).await.unwrap() {
            Committed::Version { version, created, .. } => answers.push((version.hash, created)),
            Committed::Resend(_) => panic!("nothing is missing"),
        }
    }
    assert_eq!(answers[0], answers[1]);
    assert!(answers[0].1);
    assert_eq!(lab.number("SELECT count(*) FROM bib.versions").await, 3);
    lab.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_interrupted_upload_sends_the_rest_and_what_went_away_is_asked_for_again() {
    let Some(lab) = Lab::start().await else { return };
    let ada = lab.person("ada", NodeRole::Writer).await;
    let mut files = folder(&[]);
    for i in 0..20_u64 {
        files.insert(format!("f{i}"), noise(i, 300_000));
    }
    let described = describe(&files);
    let begun = lab.begin(&ada, "t/d").await.unwrap();
    let session = begun.upload.id;
    let half: Vec<_> = described.chunks.iter().take(10).map(|(hash, bytes)| (*hash, bytes.clone())).collect();
    let gone = half[0].0;
    assert_eq!(lab.send_chunks(&ada, session, half).await.unwrap(), 10);
    let (sent, _) = lab.stage(&ada, session, &described).await.unwrap();
    assert_eq!(sent, described.chunks.len() - 10);

    // A chunk that a collection took although the session holds it, as a restore of the database could show.
    sqlx::query("UPDATE bib.chunks SET state = 2 WHERE hash = $1")
        .bind(&gone.as_bytes()[..])
        .execute(&lab.sql)
        .await
        .unwrap();
    let statement = lab.statement(&ada, &begun, &described, Vec::new());
    let wanted = lab.signed(&ada, session, &statement, described.layout_root.hash);
    match lab.data.commits.commit(&ada.call, wanted.clone()).await.unwrap() {
        Committed::Resend(chunks) => assert_eq!(chunks, [gone]),
        Committed::Version { .. } => panic!("a chunk is missing"),
    }
    assert_eq!(lab.number("SELECT count(*) FROM bib.versions").await, 0);
    lab.send_chunks(&ada, session, [(gone, described.chunks[&gone].clone())]).await.unwrap();
    assert!(matches!(
        lab.data.commits.commit(&ada.call, wanted).await.unwrap(),
        Committed::Version { created: true, .. }
    ));
    assert_eq!(lab.download(&ada, "t/d").await.unwrap(), files);

    // After a day a session that was left alone is over, and so is what only it held.
    let left = lab.begin(&ada, "t/d").await.unwrap();
    lab.send_chunks(&ada, left.upload.id, describe(&folder(&[("y", b"only here")])).chunks).await.unwrap();
    lab.advance(Duration::from_secs(25 * 60 * 60));
    let error = lab.data.uploads.missing_chunks(&ada.call, left.upload.id, &[]).await.unwrap_err();
    assert_eq!(error.code(), ErrorCode::UPLOAD_EXPIRED);
    let admin = lab.person("root", NodeRole::Admin).await;
    let dry = lab.data.collector.collect(&admin.call, true).await.unwrap();
    assert_eq!((dry.sessions, dry.chunks, dry.garbage[0].chunk), (1, 1, Hash::of(b"only here")));
    assert_eq!(
        lab.number("SELECT count(*) FROM bib.chunks WHERE state = 0").await,
        i64::try_from(described.chunks.len()).unwrap() + 1
    );
    assert_eq!(lab.data.collector.collect(&admin.call, false).await.unwrap().chunks, 1);
    assert_eq!(lab.number("SELECT count(*) FROM bib.chunks WHERE state = 2").await, 1);
    assert_eq!(
        lab.number("SELECT coalesce(sum(used_bytes), 0)::bigint FROM bib.quotas WHERE kind = 'staging'").await,
        0
    );
    assert_eq!(lab.download(&ada, "t/d").await.unwrap(), files);
    lab.stop().await;
}
