//! What stays of a version that was withdrawn: a tombstone, and nothing of what it said about itself.
#![allow(clippy::unwrap_used)]

#[path = "support/publish.rs"]
mod publish;
mod support;

use bib_core::Hash;
use bib_core::access::{NodeRole, Verb};
use bib_core::metadata::Metadata;
use bibd::services::commit::Committed;
use bibd_catalog::datasets::Dataset;
use bibd_catalog::versions::{Version, VersionState};
use publish::{describe, folder};
use support::{Lab, Person};

/// Publishes one file under a title.
async fn titled(lab: &Lab, who: &Person, title: Option<&str>, text: &[u8]) -> Version {
    let described = describe(&folder(&[("file", text)]));
    let begun = lab.begin(who, "t/d").await.unwrap();
    let session = begun.upload.id;
    lab.stage(who, session, &described).await.unwrap();
    let parents = begun.latest.iter().map(|version| version.hash).collect();
    let mut statement = lab.statement(who, &begun, &described, parents);
    statement.metadata = Metadata { title: title.map(str::to_owned), ..Metadata::default() };
    let wanted = lab.signed(who, session, &statement, described.layout_root.hash);
    match lab.data.commits.commit(&who.call, wanted).await.unwrap() {
        Committed::Version { version, .. } => *version,
        Committed::Resend(chunks) => panic!("{} chunks are missing", chunks.len()),
    }
}

async fn withdraw(lab: &Lab, who: &Person, version: &Hash) {
    let reference = version.to_string();
    let named = lab.data.collector.named_chunks(&who.call, &reference).await.unwrap();
    let mut session = lab.base.db.read().await.unwrap();
    let verb = Verb::DatasetWithdraw;
    let found = bibd::services::reference::version(&lab.base, &who.call, &mut session, &reference, verb).await.unwrap();
    drop(session);
    lab.datasets.withdraw(&who.call, &found.seen, &found.version, "a name in it").await.unwrap();
    lab.data.collector.purge(&who.call, named).await.unwrap();
}

async fn dataset(lab: &Lab, who: &Person) -> Dataset {
    lab.datasets.get(&who.call, "t/d").await.unwrap().dataset
}

#[tokio::test(flavor = "multi_thread")]
async fn the_dataset_says_what_its_latest_version_says() {
    let Some(lab) = Lab::start().await else { return };
    let ada = lab.person("ada", NodeRole::Writer).await;
    let first = titled(&lab, &ada, Some("Soil, 2025"), b"1").await;
    let second = titled(&lab, &ada, Some("Soil of the patient Jane Roe"), b"twelve bytes").await;
    let third = titled(&lab, &ada, None, b"333").await;
    assert_eq!(dataset(&lab, &ada).await.title, "Soil of the patient Jane Roe", "a title stays until another is given");

    // Not the latest, but its title is not to be seen any more.
    withdraw(&lab, &ada, &second.hash).await;
    let left = dataset(&lab, &ada).await;
    assert_eq!((left.latest, left.title.as_str(), left.size_bytes), (Some(third.hash), "", 3));
    withdraw(&lab, &ada, &third.hash).await;
    let left = dataset(&lab, &ada).await;
    assert_eq!((left.latest, left.title.as_str(), left.size_bytes), (Some(first.hash), "Soil, 2025", 1));
    assert_eq!((left.files, left.versions), (1, 1));

    // None is left: a tombstone keeps its title, but claims no bytes.
    withdraw(&lab, &ada, &first.hash).await;
    let left = dataset(&lab, &ada).await;
    assert_eq!((left.latest, left.title.as_str(), left.files, left.size_bytes), (None, "Soil, 2025", 0, 0));
    lab.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_version_whose_layout_is_damaged_can_be_withdrawn() {
    let Some(lab) = Lab::start().await else { return };
    let ada = lab.person("ada", NodeRole::Writer).await;
    let version = titled(&lab, &ada, None, b"bytes").await;
    lab.number(
        "WITH rotten AS (UPDATE bib.pages SET body = 'rot' WHERE kind = (SELECT max(kind) FROM bib.pages) RETURNING 1)
         SELECT count(*) FROM rotten",
    )
    .await;
    withdraw(&lab, &ada, &version.hash).await;
    let (_, versions) = lab.datasets.versions(&ada.call, "t/d", 0, 10).await.unwrap();
    assert_eq!(versions[0].state, VersionState::Withdrawn);
    lab.stop().await;
}
