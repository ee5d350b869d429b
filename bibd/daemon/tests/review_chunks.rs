//! Chunks that others could take away: places of other people's files, damage that is none, orphans that are none.
#![allow(clippy::unwrap_used)]

#[path = "support/publish.rs"]
mod publish;
mod support;

use std::time::Duration;

use bib_core::Hash;
use bib_core::access::NodeRole;
use bibd::actor::Via;
use bibd::services::commit::Committed;
use bibd::services::in_place::{Extent, PlacedFile};
use bibd_catalog::chunks;
use bytes::Bytes;
use futures::stream;
use publish::{describe, folder};
use support::{Lab, Person};

fn noise(seed: u64, bytes: usize) -> Vec<u8> {
    let block = |i: u64| *Hash::of(&[seed.to_le_bytes(), i.to_le_bytes()].concat()).as_bytes();
    (0..).flat_map(block).take(bytes).collect()
}

fn extents(bytes: &[u8]) -> Vec<Extent> {
    let mut offset = 0;
    let mut extents = Vec::new();
    for part in bib_core::chunk::chunks(bytes) {
        let length = u32::try_from(part.len()).unwrap();
        extents.push(Extent { chunk: Hash::of(part), offset, length });
        offset += u64::from(length);
    }
    extents
}

/// Publishes a file where it lies.
async fn place(lab: &Lab, who: &Person, dataset: &str, path: &std::path::Path, bytes: &[u8]) {
    std::fs::write(path, bytes).unwrap();
    let described = describe(&folder(&[("f", bytes)]));
    let begun = lab.begin(who, dataset).await.unwrap();
    let session = begun.upload.id;
    let file = PlacedFile { path: path.to_owned(), extents: extents(bytes) };
    lab.data.in_place.put(&who.call, session, stream::iter([Ok(file)])).await.unwrap();
    lab.send_pages(who, session, &described.pages).await.unwrap();
    let statement = lab.statement(who, &begun, &described, Vec::new());
    let wanted = lab.signed(who, session, &statement, described.layout_root.hash);
    let committed = lab.data.commits.commit(&who.call, wanted).await.unwrap();
    assert!(matches!(committed, Committed::Version { created: true, .. }));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_chunk_in_place_stays_where_it_is_when_another_file_has_the_same_bytes() {
    let Some(lab) = Lab::start().await else { return };
    let ada = lab.person("ada", NodeRole::Writer).await;
    let ben = lab.person("ben", NodeRole::Writer).await;
    let bytes = noise(1, 600_000);
    let (first, second) = (lab.path("first"), lab.path("second"));
    place(&lab, &ada, "ada/d", &first, &bytes).await;
    place(&lab, &ben, "ben/d", &second, &bytes).await;
    // The second file goes; the version that stands on the first is whole.
    std::fs::remove_file(&second).unwrap();
    assert_eq!(lab.download(&ada, "ada/d").await.unwrap()["f"], bytes);
    // A place whose file is gone is given to one that is there.
    std::fs::remove_file(&first).unwrap();
    let third = lab.path("third");
    place(&lab, &ben, "ben/e", &third, &bytes).await;
    assert_eq!(lab.download(&ada, "ada/d").await.unwrap()["f"], bytes);
    lab.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn nobodys_version_stands_on_a_file_of_another_owner() {
    let Some(lab) = Lab::start().await else { return };
    if !rustix::process::geteuid().is_root() {
        return; // Only root can make files of two owners.
    }
    let ada = lab.person("ada", NodeRole::Writer).await;
    let mut ben = lab.person("ben", NodeRole::Writer).await;
    let bytes = noise(2, 600_000);
    let (first, second) = (lab.path("first"), lab.path("second"));
    place(&lab, &ada, "ada/d", &first, &bytes).await;
    ben.call.actor.via = Via::Socket { uid: 4711 };
    std::fs::write(&second, &bytes).unwrap();
    std::os::unix::fs::chown(&second, Some(4711), None).unwrap();
    place(&lab, &ben, "ben/d", &second, &bytes).await;
    assert_eq!(lab.number("SELECT count(*) FROM bib.chunks WHERE location = 2").await, 0);
    std::fs::remove_file(&first).unwrap();
    std::fs::remove_file(&second).unwrap();
    assert_eq!(lab.download(&ada, "ada/d").await.unwrap()["f"], bytes);
    assert_eq!(lab.download(&ben, "ben/d").await.unwrap()["f"], bytes);
    lab.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_collected_chunk_is_not_damaged_and_wanted_ones_do_not_hold_up_a_collection() {
    let Some(lab) = Lab::start().await else { return };
    let ada = lab.person("ada", NodeRole::Writer).await;
    let begun = lab.begin(&ada, "t/d").await.unwrap();
    let (kept, dead) = (noise(3, 1000), noise(4, 1000));
    let row = async |bytes: &[u8], state: i16| {
        let chunk = Hash::of(bytes);
        lab.send_chunks(&ada, begun.upload.id, [(chunk, Bytes::copy_from_slice(bytes))]).await.unwrap();
        let set = sqlx::query("UPDATE bib.chunks SET state = $2 WHERE hash = $1");
        set.bind(&chunk.as_bytes()[..]).bind(state).execute(&lab.sql).await.unwrap();
        chunk
    };
    // A reader that located a chunk before it was collected finds no file.
    let trashed = row(&dead, 2).await;
    let mut tx = lab.base.begin(&ada.call, "test").await.unwrap();
    assert!(!chunks::set_damaged(&mut tx, &trashed, lab.base.now()).await.unwrap());
    // Doomed, and leased since.
    row(&kept, 1).await;
    assert!(chunks::doomed(&mut tx, 1).await.unwrap().is_empty());
    tx.rollback().await.unwrap();
    lab.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_upload_that_finds_an_orphan_waits_for_the_scrubber_and_takes_it_back() {
    let Some(lab) = Lab::start().await else { return };
    let ada = lab.person("ada", NodeRole::Writer).await;
    let begun = lab.begin(&ada, "t/d").await.unwrap();
    let bytes = Bytes::from(noise(5, 400_000));
    let chunk = Hash::of(&bytes);
    lab.base.blobs.put_many(vec![bibd_blobs::Incoming::raw(chunk, bytes.clone())]).await.unwrap();

    // The scrubber has claimed the orphan and not moved it yet: the upload finds the file, and waits.
    let mut tx = lab.base.begin(&ada.call, "test").await.unwrap();
    assert!(chunks::claim_orphan(&mut tx, &chunk, lab.base.now()).await.unwrap());
    let mut upload = Box::pin(lab.send_chunks(&ada, begun.upload.id, [(chunk, bytes)]));
    let waiting = tokio::time::timeout(Duration::from_millis(300), &mut upload).await;
    assert!(waiting.is_err(), "the upload was acknowledged although the file is about to go");
    assert!(lab.base.blobs.trash(&chunk, std::time::SystemTime::UNIX_EPOCH).await.unwrap());
    tx.rollback().await.unwrap();
    assert_eq!((&mut upload).await.unwrap(), 1);
    drop(upload);
    assert!(lab.base.blobs.exists(&chunk).await.unwrap());

    // What has a row is no orphan.
    let mut tx = lab.base.begin(&ada.call, "test").await.unwrap();
    assert!(!chunks::claim_orphan(&mut tx, &chunk, lab.base.now()).await.unwrap());
    tx.rollback().await.unwrap();
    lab.stop().await;
}
