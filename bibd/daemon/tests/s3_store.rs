//! The store in a bucket, against a real S3-compatible server and everything that such a server may do.
#![allow(clippy::unwrap_used)]

#[allow(dead_code, reason = "each test uses its own part")]
#[path = "s3/server.rs"]
mod server;

use std::io::{Read as _, Write as _};
use std::time::Duration;

use bib_core::PeerId;
use bibd::backup::{BackupError, Store};
use bibd::config::{S3, Size, Span, StoreLocation};
use bibd::s3::{AccessKey, Keys, Problem};
use server::{ACCESS_KEY, Fault, S3Server, SECRET};

const MIB: usize = 1 << 20;

fn peer() -> PeerId {
    PeerId::from_public_key([7; 32])
}

fn settings(server: &S3Server) -> S3 {
    S3 { timeout: Span(Duration::from_secs(1)), part_size: Size(5 << 20), ..server.settings() }
}

fn store(server: &S3Server) -> Store {
    Store::of(&server.location(), &settings(server), S3Server::keys(), &peer()).unwrap()
}

/// Stores block, so tests of them run where that is allowed.
async fn off<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> T {
    tokio::task::spawn_blocking(work).await.unwrap()
}

/// Bytes that no compression and no mistake repeats.
fn noise(length: usize) -> Vec<u8> {
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state.to_le_bytes()
    };
    (0..length.div_ceil(8)).flat_map(|_| next()).take(length).collect()
}

fn write(store: &Store, key: &str, bytes: &[u8]) -> Result<(), BackupError> {
    let mut draft = store.create(key)?;
    let failed = |error| BackupError::of_io("write", key.into(), error);
    // In pieces that fit no part.
    bytes.chunks(777_777).try_for_each(|piece| draft.write_all(piece)).map_err(failed)?;
    draft.commit()
}

fn read(store: &Store, key: &str) -> Result<Option<Vec<u8>>, BackupError> {
    let Some(mut object) = store.open(key)? else { return Ok(None) };
    let mut bytes = Vec::new();
    object.read_to_end(&mut bytes).map_err(|error| BackupError::of_io("read", key.into(), error))?;
    Ok(Some(bytes))
}

/// The whole sentence.
fn said(error: &BackupError) -> String {
    let causes = std::iter::successors(Some(error as &dyn std::error::Error), |error| (**error).source());
    causes.map(ToString::to_string).collect::<Vec<_>>().join(": ")
}

fn problem<T: std::fmt::Debug>(outcome: Result<T, BackupError>) -> Problem {
    let error = outcome.unwrap_err();
    assert!(!error.hint().is_empty() && error.code().to_string() == "BIB0306", "{error:?}");
    let printed = format!("{error:?} {} {}", said(&error), error.hint());
    assert!(!printed.contains(SECRET), "{printed}");
    match error {
        BackupError::S3(error) => error.problem,
        other => panic!("{other:?}"),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn objects_of_every_size_come_back_as_they_were() {
    let server = S3Server::start();
    let store = store(&server);
    off(move || {
        assert!(store.list("base").unwrap().is_empty() && read(&store, "base/a/x").unwrap().is_none());
        for length in [0, 1, 5 * MIB - 1, 5 * MIB, 5 * MIB + 1, 17 * MIB] {
            let bytes = noise(length);
            write(&store, "base/a/x", &bytes).unwrap();
            assert!(read(&store, "base/a/x").unwrap().unwrap() == bytes, "{length}");
            assert_eq!(server.unfinished_uploads(), 0);
        }
        // One part or less is one request.
        assert_eq!(server.seen("POST", "uploads"), 2);
        store.put("base/b/x", b"small").unwrap();
        assert_eq!(store.list("base").unwrap(), ["a", "b"]);
        assert!(store.has("base/b/x").unwrap() && !store.has("base/c/x").unwrap());
        assert!(store.list("tmp").unwrap().is_empty(), "no note is left");
        store.delete(&["base/a/x".to_owned(), "base/b/x".to_owned(), "base/never".to_owned()]).unwrap();
        assert!(store.list("base").unwrap().is_empty());
        assert!(server.objects("").is_empty(), "{:?}", server.objects(""));
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_name_is_taken_once_whatever_happens_to_the_answers() {
    let server = S3Server::start();
    let store = store(&server);
    off(move || {
        assert!(store.take("epoch/2", b"one").unwrap());
        assert!(!store.take("epoch/2", b"two").unwrap());
        // It was heard, and nobody said so: the second time the name is known for one's own.
        server.misbehave("PUT", "epoch/3", 1, Fault::NoAnswer);
        assert!(store.take("epoch/3", b"three").unwrap());
        server.misbehave("PUT", "epoch/4", 2, Fault::CutRequest);
        assert!(store.take("epoch/4", b"four").unwrap());
        assert_eq!(store.list("epoch").unwrap(), ["2", "3", "4"]);
        // A store that says yes to everybody is found out.
        server.misbehave("PUT", "epoch/5", 9, Fault::Answer(200, String::new()));
        assert_eq!(problem(store.take("epoch/5", b"five")), Problem::NotExclusive);
        server.misbehave("PUT", "epoch/6", 9, Fault::error(501, "NotImplemented"));
        assert!(matches!(problem(store.take("epoch/6", b"six")), Problem::NotOffered(_)));
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_passes_is_survived_and_nothing_is_left_of_what_does_not() {
    let server = S3Server::start();
    let store = store(&server);
    off(move || {
        let bytes = noise(17 * MIB);
        for fault in [Fault::error(500, "InternalError"), Fault::error(503, "SlowDown"), Fault::CutRequest] {
            server.misbehave("POST", "base/a/x?uploads", 1, fault.clone());
            server.misbehave("PUT", "partNumber=2", 1, fault.clone());
            server.misbehave("PUT", "partNumber=4", 1, fault);
            write(&store, "base/a/x", &bytes).unwrap();
            server.behave();
        }
        // The upload was completed, and the answer was lost.
        store.delete(&["base/a/x".to_owned()]).unwrap();
        server.misbehave("POST", "uploadId", 1, Fault::NoAnswer);
        write(&store, "base/a/x", &bytes).unwrap();
        server.misbehave("GET", "base/a/x", 1, Fault::CutAnswer);
        server.misbehave("GET", "base/a/x", 1, Fault::error(503, "SlowDown"));
        assert!(read(&store, "base/a/x").unwrap().unwrap() == bytes);
        server.behave();

        for (method, part) in [("POST", "base/b/x?uploads"), ("PUT", "partNumber=3"), ("POST", "uploadId")] {
            server.misbehave(method, part, usize::MAX, Fault::error(500, "InternalError"));
            let failed = problem(write(&store, "base/b/x", &bytes));
            assert_eq!(failed, Problem::Server("InternalError: as told by the test".to_owned()), "{part}");
            server.behave();
            assert!(!store.has("base/b/x").unwrap(), "{part}");
        }
        // What was dropped is given up in the background.
        wait_until(|| server.unfinished_uploads() == 0 && store.list("tmp").unwrap().is_empty());
        // What a process leaves that is no more: an upload, its first part, the note.
        let mut left = store.create("base/c/x").unwrap();
        left.write_all(&bytes[..6 * MIB]).unwrap();
        wait_until(|| server.unfinished_uploads() == 2);
        std::mem::forget(left);
        store.sweep("wal").unwrap();
        assert_eq!((server.unfinished_uploads(), store.list("tmp").unwrap().len()), (2, 1), "that is another family's");
        store.sweep("base").unwrap();
        assert_eq!((server.unfinished_uploads(), store.list("tmp").unwrap().len()), (0, 0));
        // An upload that this store will not hear of stands in no backup's way.
        let note = br#"{"key":"base/c/x","upload":"6b5f3f0e-8a3c-4c56-9d0b-0a2f5c1d7e11"}"#;
        store.put("tmp/base-0", note).unwrap();
        store.put("tmp/base-1", b"no note").unwrap();
        store.sweep("base").unwrap();
        assert_eq!(store.list("tmp").unwrap(), ["base-0"]);
    })
    .await;
}

fn wait_until(mut is_so: impl FnMut() -> bool) {
    let begun = std::time::Instant::now();
    while !is_so() {
        assert!(begun.elapsed() < Duration::from_secs(60), "it never came to be");
        std::thread::sleep(Duration::from_millis(20));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn every_refusal_says_what_it_is_and_what_helps() {
    let server = S3Server::start();
    let own = settings(&server);
    let with = |settings: &S3, keys: Keys, location: &StoreLocation| {
        let store = Store::of(location, settings, keys, &peer()).unwrap();
        off(move || problem(store.list("base")))
    };
    let none = with(&own, Keys::held(None), &server.location()).await;
    assert!(matches!(none, Problem::NoCredentials(_)) && none.hint().contains("credentials set"), "{none:?}");
    let missing = with(&own, Keys::File("/nonexistent/key".into()), &server.location()).await;
    assert!(matches!(&missing, Problem::NoCredentials(said) if said.contains("/nonexistent/key")), "{missing:?}");
    for text in [
        format!("aws_access_key_id={ACCESS_KEY}\naws_secret_access_key=wrong"),
        format!("aws_access_key_id=AKIANOBODY\naws_secret_access_key={SECRET}"),
    ] {
        let keys = Keys::held(Some(AccessKey::parse(&text).unwrap()));
        let refused = with(&own, keys, &server.location()).await;
        assert!(matches!(refused, Problem::Credentials(_)), "{refused:?}");
    }
    let nowhere = with(&own, S3Server::keys(), &"s3://no-such-bucket/x".parse().unwrap()).await;
    assert_eq!(nowhere, Problem::NoBucket);

    let said = || "as told by the test".to_owned();
    let skew = "<Error><Code>RequestTimeTooSkewed</Code><ServerTime>2026-11-21T20:00:00Z</ServerTime></Error>";
    for (fault, expected) in [
        (Fault::error(403, "AccessDenied"), Problem::Forbidden(format!("AccessDenied: {}", said()))),
        (Fault::error(403, "ExpiredToken"), Problem::Credentials(format!("ExpiredToken: {}", said()))),
        (Fault::Answer(403, skew.to_owned()), Problem::Skew(Some("2026-11-21T20:00:00Z".to_owned()))),
        (Fault::error(404, "NoSuchBucket"), Problem::NoBucket),
        (Fault::error(301, "PermanentRedirect"), Problem::Region("a redirect".to_owned())),
        (
            Fault::error(400, "AuthorizationHeaderMalformed"),
            Problem::Region(format!("AuthorizationHeaderMalformed: {}", said())),
        ),
        (Fault::error(500, "InternalError"), Problem::Server(format!("InternalError: {}", said()))),
        (Fault::error(503, "SlowDown"), Problem::Busy(format!("SlowDown: {}", said()))),
        (Fault::Answer(502, "<html>\u{1b}[31mBad gateway".to_owned()), Problem::Server("HTTP 502".to_owned())),
        (Fault::error(418, "Teapot"), Problem::Refused(format!("Teapot: {}", said()))),
        (Fault::Silence, Problem::Silent(Duration::from_secs(1))),
    ] {
        server.misbehave("GET", "list-type", usize::MAX, fault);
        assert_eq!(with(&own, S3Server::keys(), &server.location()).await, expected);
        server.behave();
    }
    server.misbehave("GET", "list-type", usize::MAX, Fault::CutAnswer);
    let broken = with(&own, S3Server::keys(), &server.location()).await;
    assert!(matches!(broken, Problem::Broken(_)), "{broken:?}");
    let unreachable = S3 { endpoint: Some("http://127.0.0.1:1".to_owned()), ..own };
    let unreachable = with(&unreachable, S3Server::keys(), &server.location()).await;
    assert!(matches!(unreachable, Problem::Unreachable(_)), "{unreachable:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_store_that_is_silent_half_way_hangs_nobody() {
    let server = S3Server::start();
    let store = store(&server);
    off(move || {
        let bytes = noise(12 * MIB);
        write(&store, "base/a/x", &bytes).unwrap();
        let silent = Problem::Silent(Duration::from_secs(1));
        for (method, part) in [("PUT", "partNumber=2"), ("POST", "uploadId")] {
            server.misbehave(method, part, usize::MAX, Fault::Silence);
            assert_eq!(problem(write(&store, "base/b/x", &bytes)), silent);
            server.behave();
        }
        server.misbehave("GET", "base/a/x", usize::MAX, Fault::Silence);
        assert_eq!(problem(read(&store, "base/a/x")), silent);
        server.behave();
        // The daemon stops: nobody waits even for that.
        server.misbehave("PUT", "partNumber=1", usize::MAX, Fault::Silence);
        let closing = store.clone();
        let writing = std::thread::spawn(move || problem(write(&store, "base/c/x", &bytes)));
        wait_until(|| server.seen("PUT", "base/c/x?partNumber") > 0);
        closing.close();
        assert_eq!(writing.join().unwrap(), Problem::Stopping);
        assert_eq!(problem(closing.put("base/d/x", b"late")), Problem::Stopping);
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_object_that_is_written_over_while_it_is_read_is_noticed() {
    let server = S3Server::start();
    let store = store(&server);
    off(move || {
        write(&store, "base/a/x", &noise(30 * MIB)).unwrap();
        let mut object = store.open("base/a/x").unwrap().unwrap();
        let mut first = vec![0; MIB];
        object.read_exact(&mut first).unwrap();
        write(&store, "base/a/x", &noise(31 * MIB)[MIB..]).unwrap();
        let mut rest = Vec::new();
        let failed = object.read_to_end(&mut rest).map_err(|error| BackupError::of_io("read", "x".into(), error));
        assert_eq!(problem(failed), Problem::Changed);
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn tls_is_checked_against_the_named_authority() {
    let server = S3Server::with_tls();
    let trusting = store(&server);
    let stranger = S3 { ca_file: None, ..settings(&server) };
    let stranger = Store::of(&server.location(), &stranger, S3Server::keys(), &peer()).unwrap();
    off(move || {
        write(&trusting, "base/a/x", &noise(6 * MIB)).unwrap();
        assert_eq!(trusting.list("base").unwrap(), ["a"]);
        let refused = problem(stranger.list("base"));
        assert!(matches!(&refused, Problem::Tls(said) if said.contains("UnknownIssuer")), "{refused:?}");
        assert!(refused.hint().contains("ca_file"));
    })
    .await;
    let bad = S3 { ca_file: Some("/dev/null".into()), ..settings(&S3Server::start()) };
    let bad = Store::of(&server.location(), &bad, S3Server::keys(), &peer()).unwrap_err();
    assert!(said(&bad).contains("/dev/null"), "{bad}");
}
