//! Chunks in object storage, on a real S3-compatible server and everything that such a server may do.
#![allow(clippy::unwrap_used)]

#[path = "support/publish.rs"]
mod publish;
#[allow(dead_code, reason = "each test uses its own part")]
#[path = "s3/server.rs"]
mod server;
mod support;

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use bib_core::Hash;
use bib_core::access::NodeRole;
use bib_identity::sealed_stream::Opener;
use bib_identity::{NodeKey, Recipient};
use bibd::config::{S3, Span, StoreLocation};
use bibd::errors::ErrorCode;
use bibd::grpc::health::HealthBoard;
use bibd::s3::Bucket;
use bibd::services::ServiceError;
use bibd::services::base::Quotas;
use bibd::services::chunk_reader::ChunkReader;
use bibd::services::scrub::ScrubFinding;
use bibd::services::tier::moving::{Direction, Moved};
use bibd::services::tier::{Tier, TierParts, TierSettings, TierUseCases};
use bibd_blobs::Objects;
use prometheus::{IntCounter, Registry};
use publish::{Folder, describe, folder};
use server::{Fault, S3Server, SECRET};
use support::{Lab, Person};
use tokio::sync::mpsc;

const DAY: Duration = Duration::from_secs(86_400);

fn noise(seed: u64, bytes: usize) -> Vec<u8> {
    let block = |i: u64| *Hash::of(&[seed.to_le_bytes(), i.to_le_bytes()].concat()).as_bytes();
    (0..).flat_map(block).take(bytes).collect()
}

const SETTINGS: TierSettings =
    TierSettings { after_days: 10, is_sealed: true, back_per_day: 1 << 30, check_per_day: 1 << 30, min_free_bytes: 0 };

/// What opens the server's bucket for a node.
fn parts(server: &S3Server, settings: TierSettings) -> impl FnOnce(&NodeKey) -> TierParts + Send + use<> {
    let StoreLocation::Bucket { bucket, prefix } = server.location() else { panic!("the server has a bucket") };
    let s3 = S3 { timeout: Span(Duration::from_secs(1)), ..server.settings() };
    move |key| {
        let bucket = Bucket::open(&bucket, &prefix, &s3.settings(), S3Server::keys()).unwrap();
        let peer = key.peer_id();
        TierParts {
            objects: Objects::new(bucket, &[9; 32], Opener::of_node(key).unwrap()),
            keys: S3Server::keys(),
            recipients: Arc::new(move || Ok(vec![Recipient::Node(peer)])),
            settings,
        }
    }
}

async fn lab(server: &S3Server, settings: TierSettings) -> Option<Lab> {
    Lab::start_on(Quotas::default(), Some(Box::new(parts(server, settings)))).await
}

/// The tier of the same node after a start with other settings.
fn again(lab: &Lab, server: &S3Server, settings: TierSettings) -> (TierUseCases, ChunkReader) {
    let registry = Registry::new();
    let made = parts(server, settings)(&lab.base.key);
    let tier = Tier::new(lab.base.clone(), Some(made), HealthBoard::default(), &registry).unwrap();
    let damaged = IntCounter::new("damaged", "damaged").unwrap();
    let reader = ChunkReader::new(lab.base.clone(), tier.clone(), damaged);
    (TierUseCases::new(tier, reader.clone(), Default::default()), reader)
}

async fn moved(tier: &TierUseCases, who: &Person, direction: Direction, dry_run: bool) -> Result<Moved, ServiceError> {
    let (out, mut words) = mpsc::channel(64);
    tier.move_chunks(&who.call, direction, dry_run, out).await?;
    let mut last = Moved::default();
    while let Some(word) = words.recv().await {
        last = word?;
    }
    assert!(last.finished);
    Ok(last)
}

async fn out(lab: &Lab, who: &Person) -> Result<Moved, ServiceError> {
    moved(&lab.data.tier, who, Direction::Out, false).await
}

async fn scrubbed(lab: &Lab, who: &Person, objects: bool) -> Vec<ScrubFinding> {
    let (out, mut words) = mpsc::channel(64);
    lab.data.scrub.scrub(&who.call, objects, out).await.unwrap();
    let mut found = Vec::new();
    while let Some(word) = words.recv().await {
        found.extend(word.unwrap().finding);
    }
    found
}

/// Files of chunks that are not in the trash.
fn files(lab: &Lab) -> Vec<PathBuf> {
    fn walk(at: PathBuf, found: &mut Vec<PathBuf>) {
        for entry in std::fs::read_dir(at).into_iter().flatten().flatten() {
            if entry.path().is_dir() { walk(entry.path(), found) } else { found.push(entry.path()) }
        }
    }
    let mut found = Vec::new();
    walk(lab.path("store").join("blobs"), &mut found);
    found
}

fn objects(server: &S3Server) -> Vec<PathBuf> {
    // The server keeps what it knows of an object beside it, in files whose names begin with a dot.
    let all = server.objects("bib/test").into_iter();
    all.filter(|path| {
        let name = path.file_name().unwrap().to_string_lossy();
        !name.starts_with('.') && name != "FORMAT"
    })
    .collect()
}

async fn remote(lab: &Lab) -> i64 {
    lab.number("SELECT count(*) FROM bib.chunks WHERE location = 1").await
}

async fn published(lab: &Lab, who: &Person) -> Folder {
    // The last compresses well.
    let text = b"the same line again and again\n".repeat(20_000);
    let folder = folder(&[("a", &noise(1, 300_000)), ("b", &noise(2, 90_000)), ("c", &text)]);
    lab.publish(who, "t/d", &folder).await.unwrap();
    folder
}

#[tokio::test(flavor = "multi_thread")]
async fn cold_chunks_move_out_sealed_and_come_back_when_they_are_read() {
    let server = S3Server::start();
    let Some(lab) = lab(&server, SETTINGS).await else { return };
    let ada = lab.person("ada", NodeRole::Admin).await;
    let folder = published(&lab, &ada).await;
    let chunks = files(&lab).len() as u64;
    assert!(chunks >= 3);

    lab.advance(9 * DAY);
    assert_eq!(out(&lab, &ada).await.unwrap().chunks, 0, "nothing is cold yet");
    // One file is read, and stays.
    let described = describe(&folder_of("b", &folder));
    let hash = *described.chunks.keys().next().unwrap();
    lab.chunk(&ada, "t/d", hash).await.unwrap();
    lab.advance(2 * DAY);
    let dry = moved(&lab.data.tier, &ada, Direction::Out, true).await.unwrap();
    assert_eq!((dry.chunks, remote(&lab).await), (chunks - 1, 0), "the read was noted, and a dry run moves nothing");
    let done = out(&lab, &ada).await.unwrap();
    assert_eq!((done.chunks, done.skipped, remote(&lab).await), (chunks - 1, 0, chunks as i64 - 1));
    assert_eq!((files(&lab).len(), objects(&server).len() as u64), (1, chunks - 1));

    // The store learns neither bytes nor hashes.
    let hashes: Vec<String> = describe(&folder).chunks.keys().map(ToString::to_string).collect();
    let plain = noise(1, 300_000)[64..80].to_vec();
    for object in objects(&server) {
        assert!(object.to_string_lossy().contains("/sealed/"), "{object:?}");
        let bytes = std::fs::read(&object).unwrap();
        assert!(bytes.starts_with(b"age-encryption.org/v1"));
        assert!(!hashes.iter().any(|hash| object.ends_with(hash)), "{object:?}");
        assert!(!bytes.windows(16).any(|window| window == plain));
    }
    let format = std::fs::read_to_string(server.bucket().join("bib/test/FORMAT")).unwrap();
    assert_eq!(format, format!(r#"{{"format":"bib-objects/1","node":"{}"}}"#, lab.base.peer));

    // Read, it is what it was, and lies on disk again; its object stays.
    assert_eq!(lab.download(&ada, "t/d").await.unwrap(), folder);
    assert_eq!((remote(&lab).await, files(&lab).len() as u64), (0, chunks));
    let (asked, written) = (server.seen("GET", "sealed/"), server.seen("PUT", "sealed/"));
    assert_eq!(lab.download(&ada, "t/d").await.unwrap(), folder);
    assert_eq!(server.seen("GET", "sealed/"), asked, "now it is read from disk");
    // Cold again, what is there is not written a second time.
    lab.advance(21 * DAY);
    assert_eq!(out(&lab, &ada).await.unwrap().chunks, chunks);
    assert_eq!(server.seen("PUT", "sealed/"), written + 1, "all but one were there");
    assert!(files(&lab).is_empty());
    assert!(scrubbed(&lab, &ada, true).await.is_empty());
    // Publishing the same bytes brings nothing into disorder, nor does a publish beside it.
    lab.publish(&ada, "t/other", &folder).await.unwrap();
    assert_eq!(lab.download(&ada, "t/other").await.unwrap(), folder);
    let entries = "SELECT count(*) FROM bib.audit_entry WHERE action = 'storage.tier'";
    assert_eq!(lab.number(entries).await, 2);

    // Back to disk for good.
    lab.advance(11 * DAY);
    out(&lab, &ada).await.unwrap();
    let back = moved(&lab.data.tier, &ada, Direction::Back, false).await.unwrap();
    assert_eq!((back.chunks, remote(&lab).await, objects(&server).len()), (chunks, 0, 0));
    assert_eq!(lab.number("SELECT count(*) FROM bib.chunk_objects").await, 0);
    assert_eq!(lab.download(&ada, "t/d").await.unwrap(), folder);
    lab.stop().await;
}

fn folder_of(name: &str, of: &Folder) -> Folder {
    folder(&[(name, &of[name])])
}

#[tokio::test(flavor = "multi_thread")]
async fn a_store_that_is_away_costs_nothing_but_what_lies_there_alone() {
    let server = S3Server::start();
    let Some(lab) = lab(&server, TierSettings { back_per_day: 0, ..SETTINGS }).await else { return };
    let ada = lab.person("ada", NodeRole::Admin).await;
    let cold = published(&lab, &ada).await;
    lab.advance(11 * DAY);
    out(&lab, &ada).await.unwrap();
    let warm = folder(&[("w", &noise(7, 50_000))]);
    for fault in [Fault::Silence, Fault::error(503, "SlowDown"), Fault::error(403, "AccessDenied"), Fault::CutAnswer] {
        for method in ["GET", "PUT", "DELETE"] {
            server.misbehave(method, "", usize::MAX, fault.clone());
        }
        let begun = std::time::Instant::now();
        let refused = lab.download(&ada, "t/d").await.unwrap_err();
        assert_eq!(refused.code(), ErrorCode::OBJECTS_UNAVAILABLE, "{refused}");
        assert!(matches!(refused, ServiceError::Unavailable { .. }) && refused.hint().contains("storage status"));
        assert!(!refused.to_string().contains("s3://"), "who reads is not told where it lies: {refused}");
        assert!(begun.elapsed() < Duration::from_secs(20), "{:?}", begun.elapsed());
        // Nobody asks it again for a while.
        let asked = server.seen("GET", "sealed/");
        assert_eq!(lab.download(&ada, "t/d").await.unwrap_err().code(), ErrorCode::OBJECTS_UNAVAILABLE);
        assert_eq!(server.seen("GET", "sealed/"), asked);
        // Writes and everything on disk go on.
        lab.publish(&ada, "t/warm", &warm).await.unwrap();
        assert_eq!(lab.download(&ada, "t/warm").await.unwrap(), warm);
        let state = lab.data.tier.state(&ada.call).await.unwrap();
        let (sentence, hint) = state.problem.expect("the store is away");
        assert!(!hint.is_empty() && !hint.contains("`backup.") && !sentence.contains(SECRET), "{sentence}; {hint}");
        server.behave();
        lab.advance(Duration::from_secs(121));
        assert_eq!(lab.download(&ada, "t/d").await.unwrap(), cold, "it is back");
    }
    assert_eq!(lab.number("SELECT count(*) FROM bib.chunks WHERE state <> 0").await, 0, "nothing counts as damaged");
    assert!(files(&lab).len() == 1 && remote(&lab).await > 2, "without a budget nothing comes back");
    lab.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_store_that_lies_gets_nothing_and_is_believed_nothing() {
    let server = S3Server::start();
    let Some(lab) = lab(&server, TierSettings { is_sealed: false, ..SETTINGS }).await else { return };
    let ada = lab.person("ada", NodeRole::Admin).await;
    let folder = published(&lab, &ada).await;
    lab.advance(11 * DAY);
    // It says yes and keeps something else.
    let chunks = files(&lab).len();
    server.misbehave("GET", "chunks/", usize::MAX, Fault::Answer(200, "something else".to_owned()));
    let refused = out(&lab, &ada).await.unwrap_err();
    assert!(refused.to_string().contains("is not it") && refused.code() == ErrorCode::OBJECTS_UNAVAILABLE, "{refused}");
    assert_eq!((files(&lab).len(), remote(&lab).await), (chunks, 0));
    // Or nothing at all.
    server.behave();
    server.misbehave("PUT", "chunks/", usize::MAX, Fault::Answer(200, String::new()));
    for object in objects(&server) {
        std::fs::remove_file(object).unwrap();
    }
    lab.advance(Duration::from_secs(121));
    let refused = out(&lab, &ada).await.unwrap_err();
    assert!(refused.to_string().contains("is missing"), "{refused}");
    assert_eq!((files(&lab).len(), remote(&lab).await), (chunks, 0));
    server.behave();
    lab.advance(Duration::from_secs(121));
    out(&lab, &ada).await.unwrap();

    // Later an object is another one, one is gone, one is too long: found by the scrubber and by reads.
    let mut victims = objects(&server);
    assert_eq!(victims.len(), chunks);
    let name = |path: &PathBuf| path.file_name().unwrap().to_str().unwrap().parse::<Hash>().unwrap();
    let (gone, wrong) = (victims.remove(0), victims.remove(0));
    std::fs::remove_file(&gone).unwrap();
    std::fs::write(&wrong, noise(3, 500)).unwrap();
    let mut found: Vec<(&str, Hash)> =
        scrubbed(&lab, &ada, false).await.into_iter().map(|one| (one.kind, one.chunk)).collect();
    found.sort();
    let mut expected = vec![("missing", name(&gone)), ("corrupt", name(&wrong))];
    expected.sort();
    assert_eq!(found, expected, "the listing alone shows both");
    let long = victims.remove(0);
    std::fs::write(&long, noise(4, 6 << 20)).unwrap();
    let refused = lab.chunk(&ada, "t/d", name(&long)).await.unwrap_err();
    assert!(refused.code() == ErrorCode::INTEGRITY && refused.to_string().contains("longer than any"), "{refused}");
    assert_eq!(lab.number("SELECT count(*) FROM bib.chunks WHERE state = 3").await, 3);
    let entries = "SELECT count(*) FROM bib.audit_entry WHERE action = 'chunk.damaged'";
    assert_eq!(lab.number(entries).await, 3);
    // A publish of the same bytes heals it.
    lab.publish(&ada, "t/again", &folder).await.unwrap();
    assert_eq!(lab.download(&ada, "t/d").await.unwrap(), folder);
    lab.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn wherever_a_move_is_cut_off_every_chunk_is_readable_and_the_rest_is_cleared_away() {
    let server = S3Server::start();
    let Some(lab) = lab(&server, TierSettings { back_per_day: 0, ..SETTINGS }).await else { return };
    let ada = lab.person("ada", NodeRole::Admin).await;
    let folder = published(&lab, &ada).await;
    let copy = lab.path("copy");
    let copied = std::process::Command::new("cp").arg("-a").arg(lab.path("store/blobs")).arg(&copy).status().unwrap();
    assert!(copied.success());
    lab.advance(11 * DAY);
    out(&lab, &ada).await.unwrap();
    let chunks = remote(&lab).await;

    // The files went, and the rows never said so: with the object's row and without, as after a restore to a moment
    // before the move.
    lab.number("WITH back AS (UPDATE bib.chunks SET location = 0 RETURNING 1) SELECT count(*) FROM back").await;
    lab.number(
        "WITH gone AS (DELETE FROM bib.chunk_objects WHERE chunk IN (SELECT min(hash::text)::bytea FROM bib.chunks)
             OR chunk IN (SELECT chunk FROM bib.chunk_objects ORDER BY chunk LIMIT 1) RETURNING 1)
         SELECT count(*) FROM gone",
    )
    .await;
    assert_eq!(lab.download(&ada, "t/d").await.unwrap(), folder);
    assert_eq!((files(&lab).len() as i64, remote(&lab).await), (chunks, 0), "they are whole on disk again");
    let rows = "SELECT count(*) FROM bib.chunk_objects";
    assert_eq!(lab.number(rows).await, chunks, "and their objects are known again");

    // The rows say so, and the files did not go.
    lab.advance(11 * DAY);
    out(&lab, &ada).await.unwrap();
    let copied = std::process::Command::new("cp").arg("-a").arg(copy.join(".")).arg(lab.path("store/blobs")).status();
    assert!(copied.unwrap().success());
    assert_eq!((files(&lab).len() as i64, remote(&lab).await), (chunks, chunks));
    assert_eq!(lab.download(&ada, "t/d").await.unwrap(), folder);
    let found = scrubbed(&lab, &ada, false).await;
    assert!(found.iter().all(|one| one.kind == "orphan" && one.explanation.contains("one too many")), "{found:?}");
    assert_eq!((found.len() as i64, files(&lab).len()), (chunks, 0));
    assert_eq!(lab.download(&ada, "t/d").await.unwrap(), folder);

    // An object was written, and nobody remembers.
    let stray = server.bucket().join(format!("bib/test/chunks/ab/cd/abcd{}", "0".repeat(60)));
    std::fs::create_dir_all(stray.parent().unwrap()).unwrap();
    std::fs::write(&stray, b"left over").unwrap();
    let theirs = server.bucket().join("bib/test/chunks/README");
    std::fs::write(&theirs, b"not ours").unwrap();
    let found = scrubbed(&lab, &ada, false).await;
    assert!(found.len() == 1 && found[0].kind == "orphan" && !stray.exists(), "{found:?}");
    assert!(theirs.exists());
    assert_eq!(lab.download(&ada, "t/d").await.unwrap(), folder);
    lab.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_withdrawn_or_collected_leaves_the_bucket_too() {
    let server = S3Server::start();
    let Some(lab) = lab(&server, SETTINGS).await else { return };
    let ada = lab.person("ada", NodeRole::Admin).await;
    published(&lab, &ada).await;
    // Staged and never committed.
    let staged = describe(&folder(&[("s", &noise(5, 70_000))]));
    let begun = lab.begin(&ada, "t/never").await.unwrap();
    lab.stage(&ada, begun.upload.id, &staged).await.unwrap();
    lab.advance(11 * DAY);
    out(&lab, &ada).await.unwrap();
    let all = objects(&server).len();

    let withdraw = async |store_is_away: bool| {
        let reference = "t/d";
        let named = lab.data.collector.named_chunks(&ada.call, reference).await.unwrap();
        let mut session = lab.base.db.read().await.unwrap();
        let verb = bib_core::access::Verb::DatasetWithdraw;
        let found =
            bibd::services::reference::version(&lab.base, &ada.call, &mut session, reference, verb).await.unwrap();
        drop(session);
        lab.datasets.withdraw(&ada.call, &found.seen, &found.version, "a name in it").await.unwrap();
        let purged = lab.data.collector.purge(&ada.call, named).await;
        assert_eq!(purged.is_err(), store_is_away, "{purged:?}");
    };
    server.misbehave("DELETE", "", usize::MAX, Fault::error(500, "InternalError"));
    withdraw(true).await;
    assert_eq!(objects(&server).len(), all);
    lab.data.collector.collect(&ada.call, false).await.unwrap();
    assert_eq!(objects(&server).len(), all, "it is still away, and the collection goes on");
    server.behave();
    lab.advance(Duration::from_secs(121));
    lab.data.collector.collect(&ada.call, false).await.unwrap();
    assert_eq!(objects(&server).len(), 1, "the withdrawn ones went at once; the staged one is in the trash");
    lab.advance(2 * DAY);
    lab.data.collector.collect(&ada.call, false).await.unwrap();
    assert_eq!(objects(&server).len(), 0);
    assert_eq!(lab.number("SELECT count(*) FROM bib.chunks").await, 0);
    assert_eq!(lab.number("SELECT count(*) FROM bib.chunk_objects").await, 0);

    published(&lab, &ada).await;
    lab.advance(11 * DAY);
    out(&lab, &ada).await.unwrap();
    assert!(!objects(&server).is_empty());
    withdraw(false).await;
    assert!(objects(&server).is_empty(), "at once");
    lab.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn another_setting_seals_what_is_there_and_another_place_is_refused() {
    let server = S3Server::start();
    let Some(lab) = lab(&server, TierSettings { is_sealed: false, back_per_day: 0, ..SETTINGS }).await else { return };
    let ada = lab.person("ada", NodeRole::Admin).await;
    let folder = published(&lab, &ada).await;
    lab.advance(11 * DAY);
    let chunks = out(&lab, &ada).await.unwrap().chunks as usize;
    let in_place = |kind: &str| objects(&server).iter().filter(|path| path.to_string_lossy().contains(kind)).count();
    assert_eq!((in_place("/chunks/"), in_place("/sealed/")), (chunks, 0));

    let (sealing, _) = again(&lab, &server, TierSettings { back_per_day: 0, ..SETTINGS });
    // Cut off half-way, the next goes on.
    server.misbehave("PUT", "sealed/", 1, Fault::error(403, "AccessDenied"));
    moved(&sealing, &ada, Direction::Out, false).await.unwrap_err();
    lab.advance(Duration::from_secs(121));
    moved(&sealing, &ada, Direction::Out, false).await.unwrap();
    assert_eq!((in_place("/chunks/"), in_place("/sealed/")), (0, chunks));
    assert_eq!(lab.download(&ada, "t/d").await.unwrap(), folder, "also by a reader that was here before");
    let (opening, _) = again(&lab, &server, TierSettings { is_sealed: false, back_per_day: 0, ..SETTINGS });
    moved(&opening, &ada, Direction::Out, false).await.unwrap();
    assert_eq!((in_place("/chunks/"), in_place("/sealed/")), (chunks, 0));

    // FORMAT is lost, or another node's.
    let format = server.bucket().join("bib/test/FORMAT");
    let ours = std::fs::read(&format).unwrap();
    std::fs::remove_file(&format).unwrap();
    let (lost, _) = again(&lab, &server, SETTINGS);
    let refused = moved(&lost, &ada, Direction::Back, false).await.unwrap_err();
    assert!(refused.to_string().contains("FORMAT") && refused.to_string().contains("missing"), "{refused}");
    let text = String::from_utf8(ours).unwrap().replace(&lab.base.peer.to_string(), "somebody");
    std::fs::write(&format, text).unwrap();
    let (taken, reader) = again(&lab, &server, SETTINGS);
    let refused = moved(&taken, &ada, Direction::Back, false).await.unwrap_err();
    assert!(refused.to_string().contains("belongs to the node somebody"), "{refused}");
    let hash = *describe(&folder).chunks.keys().next().unwrap();
    let mut session = lab.base.db.read().await.unwrap();
    let located = bibd_catalog::chunks::locate(&mut session, &[hash]).await.unwrap().remove(0);
    drop(session);
    let refused = reader.read(&located).await.unwrap_err();
    assert_eq!(refused.code(), ErrorCode::OBJECTS_UNAVAILABLE, "and nothing counts as damaged: {refused}");
    assert_eq!(lab.number("SELECT count(*) FROM bib.chunks WHERE state <> 0").await, 0);
    lab.stop().await;
}
