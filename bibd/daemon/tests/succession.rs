//! A node whose identity is lost goes on under another one: out of the store and the recovery sheet alone, with real
//! daemons on a real PostgreSQL. What it owned it owns, a stranger can prove it by the records alone, the audit log goes on,
//! and whoever has the former key can sign nothing more.
#![allow(clippy::unwrap_used)]
#![allow(clippy::print_stderr, reason = "a test that cannot run says so loudly")]

#[allow(dead_code, reason = "each test uses its own part")]
#[path = "backup/node.rs"]
mod node;
#[allow(dead_code, unreachable_pub, reason = "each test uses its own part")]
#[path = "faults/publisher.rs"]
mod publisher;

use std::collections::BTreeMap;
use std::path::Path;
use std::process::Command;
use std::sync::Arc;

use bib_client::attest::{author_verdict, statement_of, voucher_verdict};
use bib_client::{Client, Download, Silent, Verify};
use bib_core::record::{
    Body, Kind, LastMark, Lineage, NotOwner, Revision, SignedRecord, StepProof, SuccessionError, Tag,
};
use bib_core::{DatasetId, PeerId, TopicId};
use bib_identity::recovery::RecoverySheet;
use bib_identity::{NodeKey, node_key};
use bib_proto::v1 as pb;
use bibd::clock::{Clock as _, Entropy, SystemClock};
use bibd::failpoint;
use bibd_catalog::records;
use futures::StreamExt as _;
use node::{Node, Place, copy_tree};
use publisher::{DATASET, Publisher};

const FORMER_KEY: &str = "stolen-key";

fn peer(text: &str) -> PeerId {
    text.parse().unwrap()
}

fn client(node: &Node, publisher: &Publisher) -> Client {
    publisher.client(&node.daemon.ready().socket)
}

async fn tag(client: &Client, reference: &str, tag: &str) {
    let request = pb::SetTagRequest { reference: reference.to_owned(), tag: tag.to_owned(), replace: true };
    client.datasets().set_tag(request).await.unwrap();
}

async fn grant(client: &Client, level: pb::GrantLevel) {
    let subject = format!("SHA256:{}", "A".repeat(43));
    let request =
        pb::GrantRequest { topic: "fault".to_owned(), subject, level: level.into(), expires_in_seconds: 86_400 };
    client.topics().grant(request).await.unwrap();
}

/// Every record of a node, as a stranger would get them.
async fn records(node: &Node) -> Vec<SignedRecord> {
    let mut session = node.daemon.foundation().db.read().await.unwrap();
    let mut all = Vec::new();
    for kind in Kind::ALL {
        let rows = records::list(&mut session, kind.as_str()).await.unwrap();
        all.extend(rows.iter().map(|row| row.signed().unwrap()));
    }
    all
}

/// A stranger's verifier: what it knows are these records, and nobody's word. Answers how many of each kind count, by
/// who signed them.
fn judge(all: &[SignedRecord]) -> Result<BTreeMap<(Kind, PeerId), usize>, String> {
    let bodies: Vec<(Body, &SignedRecord)> =
        all.iter().map(|record| (Body::parse(&record.body).unwrap(), record)).collect();
    let mut lineage = Lineage::default();
    let nodes: BTreeMap<PeerId, &SignedRecord> = bodies
        .iter()
        .filter_map(|(body, record)| if let Body::Node(node) = body { Some((node.id, *record)) } else { None })
        .collect();
    for (body, record) in &bodies {
        let Body::Succession(succession) = body else { continue };
        let node = nodes.get(&succession.from).ok_or("the former node's record is missing")?;
        let proof = StepProof { node: (*node).clone(), succession: (*record).clone() };
        lineage.add(proof.open(&node_key::holds).map_err(|error| error.to_string())?);
    }
    let mut topics: BTreeMap<TopicId, PeerId> = BTreeMap::new();
    let mut datasets: BTreeMap<DatasetId, PeerId> = BTreeMap::new();
    for (body, _) in &bodies {
        // A body whose id does not belong to its origin is not parsed.
        match body {
            Body::Topic(topic) => drop(topics.insert(topic.id, topic.origin)),
            Body::Dataset(dataset) => drop(datasets.insert(dataset.id, dataset.origin)),
            _ => {}
        }
    }
    let mut counts = BTreeMap::new();
    for (body, record) in &bodies {
        let (kind, signer, revision) = (body.kind().unwrap(), record.key, body.revision());
        if !node_key::holds(&signer, body.purpose(), &record.body, &record.sig) {
            return Err(format!("{kind:?}: the signature is not its key's"));
        }
        let refused = |error: NotOwner| format!("{kind:?}: {error}");
        match body {
            Body::Succession(_) => {}
            Body::Person(person) if person.node == signer => lineage.within(&signer, revision).map_err(refused)?,
            other => {
                let origin = match other {
                    Body::Node(node) => node.id,
                    Body::Topic(topic) => topic.origin,
                    Body::Dataset(dataset) => dataset.origin,
                    Body::Version(version) => datasets[&version.dataset],
                    Body::Tag(tag) => datasets[&tag.dataset],
                    Body::Withdrawal(withdrawal) => datasets[&withdrawal.dataset],
                    Body::Grant(grant) => topics[&grant.topic],
                    _ => return Err(format!("{kind:?} by a stranger")),
                };
                lineage.judge(&origin, &signer, revision).map_err(refused)?;
            }
        }
        *counts.entry((kind, signer)).or_default() += 1;
    }
    Ok(counts)
}

async fn verdicts(client: &Client, reference: &str) -> [bib_client::Verdict; 2] {
    let version = client.datasets().version(reference).await.unwrap();
    let statement = statement_of(&version).unwrap();
    [author_verdict(&version, &statement), voucher_verdict(&version, &statement)]
}

/// What the daemon says of its log, and what the verifier says that shares no code with it.
async fn audited(place: &Place, data: &str, node: &Node, client: &Client) -> (String, serde_json::Value) {
    let mut answers = client.admin().verify_audit().await.unwrap();
    let mut explanation = String::new();
    while let Some(answer) = answers.next().await {
        let answer = answer.unwrap();
        explanation = format!("{}: {}", answer.verdict, answer.explanation);
    }
    // Of one moment: a checkpoint that is signed meanwhile speaks of entries that the other has not, or is missing there.
    let (notes, file) = (place.path("checkpoints"), place.path(data).join("checkpoints"));
    let export = loop {
        std::fs::copy(&file, &notes).unwrap();
        let mut lines = client.admin().export_audit().await.unwrap();
        let mut export = Vec::new();
        while let Some(piece) = lines.next().await {
            export.extend_from_slice(&piece.unwrap().data);
        }
        if std::fs::read(&file).unwrap() == std::fs::read(&notes).unwrap() {
            break export;
        }
    };
    let path = place.path("log.jsonl");
    std::fs::write(&path, export).unwrap();
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("../audit/python/verify_log.py");
    let mut command = Command::new("python3");
    command.arg(script).arg(&path).arg(notes);
    let output = command.arg(hex::encode(peer(&node.peer()).public_key())).output().unwrap();
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    let error = String::from_utf8_lossy(&output.stderr).into_owned();
    (explanation, serde_json::from_str(&said).unwrap_or_else(|_| panic!("python said {said}{error}")))
}

/// The script of `docs/verify.md`, told whose the bundle should be.
fn stranger(place: &Place, bundle: &Path, folder: &Path, expected: &PeerId) -> (bool, String) {
    let page = std::fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/verify.md")).unwrap();
    let script = place.path("verify.py");
    std::fs::write(&script, page.split_once("```python\n").unwrap().1.split_once("```").unwrap().0).unwrap();
    let mut command = Command::new("python3");
    let output = command.arg(script).arg(bundle).arg(folder).arg(expected.to_string()).output().unwrap();
    let said = [output.stdout, output.stderr].concat();
    (output.status.success(), String::from_utf8_lossy(&said).into_owned())
}

/// A node with a topic, a dataset of two versions, a tag, a grant, a withdrawn version and a backup; then everything is
/// gone but the store, the sheet, the chunks, and the key in a thief's hands. Answers the node, the publisher, and the
/// two versions that stand.
async fn lost(place: &Place) -> (PeerId, Publisher, Vec<String>) {
    let node = Node::start(place, "data").await;
    let mut publisher = Publisher::new(7);
    let client = client(&node, &publisher);
    node.export_recovery(&place.sheet()).await;
    let mut versions = Vec::new();
    for _ in 0..3 {
        publisher.change();
        versions.push(publisher.publish(&client).await.unwrap().version);
    }
    tag(&client, &format!("{DATASET}@{}", versions[0]), "first").await;
    grant(&client, pb::GrantLevel::Read).await;
    let withdrawn = versions.remove(1);
    client.datasets().withdraw(&format!("{DATASET}@{withdrawn}"), "a wrong sensor").await.unwrap();
    node.make_backup().await;
    let former = peer(&node.peer());
    node.stop().await;
    std::fs::copy(place.path("data/identity/node_key"), place.path(FORMER_KEY)).unwrap();
    copy_tree(&place.path("data/blobs"), &place.path("chunks"));
    std::fs::remove_dir_all(place.path("data")).unwrap();
    (former, publisher, versions)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_successor_owns_what_the_lost_node_owned_and_anybody_can_prove_it() {
    let Some(place) = Place::new().await else { return };
    let (former, mut publisher, versions) = lost(&place).await;
    let restored = place.restore("next", &["--new-identity"]);
    copy_tree(&place.path("chunks"), &place.path("next/blobs"));
    let node = Node::start(&place, "next").await;
    let next = peer(&node.peer());
    assert_eq!(restored["successor"]["node"], next.to_string(), "{restored}");
    assert!(next != former && node.daemon.foundation().epoch == 2, "{restored}");
    assert!(!place.path("next/successor").exists());
    let ca = node.daemon.foundation().certificates.authority.fingerprint().to_string();
    assert_eq!(restored["successor"]["ca_fingerprint"], ca);
    let client = client(&node, &publisher);
    assert_eq!(client.topics().get("fault").await.unwrap().owner, next.to_string());

    // What stands, as before: nothing was signed anew, and a stranger follows from the one node to the other.
    let before = judge(&records(&node).await).unwrap();
    assert_eq!(before.get(&(Kind::Version, former)), Some(&3));
    let proof = |all: &[SignedRecord]| StepProof {
        node: all.iter().find(|r| matches!(Body::parse(&r.body), Ok(Body::Node(n)) if n.id == former)).unwrap().clone(),
        succession: all.iter().find(|r| matches!(Body::parse(&r.body), Ok(Body::Succession(_)))).unwrap().clone(),
    };
    let step = proof(&records(&node).await).open(&node_key::holds).unwrap();
    assert!(step.accepted && step.succession.to == next && step.succession.last.epoch == 1);

    let [author, voucher] = verdicts(&client, &format!("{DATASET}@{}", versions[0])).await;
    assert!(author.is_good() && voucher.is_good(), "{author}; {voucher}");
    assert!(voucher.explanation().contains(&format!("node {former} vouches")), "{voucher}");
    assert!(voucher.explanation().contains(&format!("its proved successor is node {next}")), "{voucher}");

    // The successor goes on with it, in every way.
    publisher.change();
    let third = publisher.publish(&client).await.unwrap().version;
    tag(&client, &format!("{DATASET}@{third}"), "first").await;
    tag(&client, &format!("{DATASET}@{third}"), "second").await;
    grant(&client, pb::GrantLevel::Write).await;
    client.datasets().withdraw(&format!("{DATASET}@{}", versions[1]), "another wrong sensor").await.unwrap();
    let all = records(&node).await;
    let counts = judge(&all).unwrap();
    for (kind, count) in
        [(Kind::Dataset, 1), (Kind::Version, 1), (Kind::Tag, 2), (Kind::Grant, 1), (Kind::Withdrawal, 1)]
    {
        assert_eq!(counts.get(&(kind, next)), Some(&count), "{kind:?} {counts:?}");
    }
    assert_eq!(counts.get(&(Kind::Withdrawal, former)), Some(&1));
    assert!(!counts.contains_key(&(Kind::Dataset, former)), "{counts:?}");
    node.make_topic("new").await;

    // Somebody who reads: an old version and a new one, by either name of the node.
    for reference in [
        format!("{DATASET}@{}", versions[0]),
        format!("{DATASET}@{third}"),
        format!("{former}:{DATASET}@{}", versions[0]),
    ] {
        let [author, voucher] = verdicts(&client, &reference).await;
        assert!(author.is_good() && voucher.is_good(), "{reference}: {author}; {voucher}");
        // With its first publish the successor vouches for the author too.
        assert!(voucher.explanation().contains(&format!("node {next} vouches")), "{voucher}");
    }
    // And somebody who has OpenSSH, Python and a bundle: of a version of either node, known by either name.
    for (version, names) in [(&versions[0], vec![former, next]), (&third, vec![next])] {
        let bundle = place.path("bundle.tar");
        let folder = place.path(&format!("down-{version}"));
        let file = std::fs::File::create(&bundle).unwrap();
        Download::new(format!("{DATASET}@{version}"), &folder).run(&client, Arc::new(Silent)).await.unwrap();
        bib_client::write_proof(&client, &format!("{DATASET}@{version}"), file).await.unwrap();
        for name in names {
            let (good, said) = stranger(&place, &bundle, &folder, &name);
            assert!(good && said.contains("the entry is in the log that was signed"), "{said}");
        }
        let nobody = peer("12D3KooWPjceQrSwdWXPyLLeABRXmuqt69Rg3sBYbU1Nft9HyQ6X");
        let (good, said) = stranger(&place, &bundle, &folder, &nobody);
        assert!(!good && said.contains("BAD"), "{said}");
    }
    let folder = place.path(&format!("down-{}", versions[0]));
    let old = format!("{DATASET}@{}", versions[0]);
    let verified = Verify::new(&folder, old).run(&client, Arc::new(Silent)).await.unwrap();
    assert!(verified.bytes.is_good() && verified.signature.is_good() && verified.voucher.is_good(), "{verified:?}");
    // A node that says something else about whom it follows is not believed.
    let version = client.datasets().version(&format!("{DATASET}@{}", versions[0])).await.unwrap();
    let statement = statement_of(&version).unwrap();
    let mut forged = version.clone();
    forged.successions[0].succession = forged.successions[0].node.clone();
    assert!(voucher_verdict(&forged, &statement).is_bad());
    forged.successions.clear();
    assert!(voucher_verdict(&forged, &statement).is_bad());
    let thief = NodeKey::create(&place.path("thief"), &mut Entropy::seeded(3)).unwrap().peer_id();
    assert!(voucher_verdict(&pb::Version { owner: thief.to_string(), ..version }, &statement).is_bad());

    // Whoever has the former key signs on, and nobody listens.
    let stolen = NodeKey::load(&place.path(FORMER_KEY)).unwrap();
    assert_eq!(stolen.peer_id(), former);
    let dataset: DatasetId = client.datasets().get(DATASET).await.unwrap().dataset_id.parse().unwrap();
    let LastMark { epoch, n } = step.succession.last;
    let by_the_thief = |revision: Revision| {
        let body = Body::Tag(Tag {
            revision,
            time: SystemClock.now(),
            dataset,
            name: "stolen".parse().unwrap(),
            version: None,
            extra: Default::default(),
        });
        let bytes = body.to_bytes().unwrap();
        let mut all = all.clone();
        all.push(SignedRecord { sig: stolen.sign(body.purpose(), &bytes), key: former, body: bytes });
        judge(&all)
    };
    assert!(by_the_thief(Revision { tenure: 0, epoch, n }).is_ok(), "within its time it counts");
    for (revision, why) in [
        (Revision { tenure: 0, epoch, n: n + 1 }, "has a successor"),
        (Revision { tenure: 0, epoch: epoch + 1, n: 1 }, "has a successor"),
        (Revision { tenure: 1, epoch, n: 1 }, "not the owner in tenure 1"),
    ] {
        let refused = by_the_thief(revision).unwrap_err();
        assert!(refused.contains(why), "{revision:?}: {refused}");
    }
    // Nor does a succession count that another recovery key signed, or that is about another node.
    let forger = RecoverySheet::generate(&mut Entropy::seeded(5));
    let mut forged = proof(&all);
    forged.succession.key = PeerId::from_public_key(forger.public().ed25519);
    forged.succession.sig = forger.sign(bib_core::signature::Purpose::Succession, &forged.succession.body);
    assert!(matches!(forged.open(&node_key::holds), Err(SuccessionError::NotEntitled(_))));
    let mut replayed = proof(&all);
    let body = String::from_utf8(replayed.succession.body.clone()).unwrap();
    replayed.succession.body = body.replace(&former.to_string(), &thief.to_string()).into_bytes();
    assert!(matches!(replayed.open(&node_key::holds), Err(SuccessionError::Signature(_))));

    // The log goes on, and both verifiers say whose it was.
    let (said, python) = audited(&place, "next", &node, &client).await;
    assert!(
        said.starts_with("OK: ") && said.contains(&format!("epochs before 2 are those of node {former}")),
        "{said}"
    );
    assert_eq!(python["verdict"], "OK", "{python}");
    assert_eq!(python["former"], serde_json::json!([{"node": former.to_string(), "before": 2}]));
    assert_eq!((node.entries("node.succeed").await, node.entries("node.restore").await), (1, 1));
    // An entry of the former node is proved by the former node's key.
    let proof = client.admin().prove_audit(1, 1).await.unwrap();
    let proof = bibd_audit::proof::EntryProof::from_bytes(proof.as_bytes()).unwrap();
    assert!(proof.verify(former.public_key()).is_ok() && proof.verify(next.public_key()).is_err());

    // A sheet of its own, a backup of its own, and a restore of it; then even a second successor.
    assert_eq!(node.refused_backup().await, "BIB0010", "the former node's sheet is used up");
    std::fs::rename(place.sheet(), place.path("old-sheet")).unwrap();
    node.export_recovery(&place.sheet()).await;
    node.make_backup().await;
    node.stop().await;
    std::fs::remove_dir_all(place.path("next")).unwrap();
    let again = place.restore("again", &["--new-identity"]);
    copy_tree(&place.path("chunks"), &place.path("again/blobs"));
    let node = Node::start(&place, "again").await;
    let client = self::client(&node, &publisher);
    assert_eq!(again["successor"]["node"], node.peer(), "{again}");
    tag(&client, &format!("{DATASET}@{}", versions[0]), "third").await;
    let counts = judge(&records(&node).await).unwrap();
    assert_eq!(counts.get(&(Kind::Tag, peer(&node.peer()))), Some(&1), "{counts:?}");
    let [_, voucher] = verdicts(&client, &format!("{DATASET}@{}", versions[0])).await;
    assert!(voucher.is_good(), "{voucher}");
    let (said, python) = audited(&place, "again", &node, &client).await;
    assert!(said.starts_with("OK: ") && said.contains(&next.to_string()), "{said}");
    assert_eq!(python["former"].as_array().map(Vec::len), Some(2), "{python}");
    node.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_restore_that_dies_goes_on_under_the_same_new_name() {
    let Some(place) = Place::new().await else { return };
    let (_, publisher, versions) = lost(&place).await;
    let key = || NodeKey::load(&place.path("next/successor/node_key")).unwrap().peer_id();
    // The other steps of a restore are those of every restore: `backup_deaths.rs`.
    let steps = ["restore.claimed", "restore.recovered"].iter().chain(&failpoint::SUCCESSION[..3]);
    let mut seen = None;
    for point in steps {
        place.killed_restore_with("next", point, &["--new-identity"]);
        assert!(place.path("next/RESTORING").exists(), "{point}");
        assert_eq!(*seen.get_or_insert_with(key), key(), "{point}");
    }
    // Not somewhere else, once the store knows who follows, and not as the former node either.
    for arguments in [&["--new-identity"][..], &[]] {
        let (code, said) = place.refused_restore(&place.path("store"), "elsewhere", arguments);
        assert!(code == 1 && said.contains("has a successor already") && said.contains("succession/"), "{said}");
    }
    let restored = place.restore("next", &["--new-identity"]);
    copy_tree(&place.path("chunks"), &place.path("next/blobs"));
    place.killed_start("next", "succession.carried");
    assert!(place.path("next/successor/succession.json").exists());
    let node = Node::start(&place, "next").await;
    assert_eq!(
        (restored["successor"]["node"].as_str(), Some(seen.unwrap())),
        (Some(&*node.peer()), Some(peer(&node.peer())))
    );
    assert!(!place.path("next/successor").exists());
    assert_eq!(node.entries("node.succeed").await, 1);
    let client = client(&node, &publisher);
    tag(&client, &format!("{DATASET}@{}", versions[0]), "after").await;
    judge(&records(&node).await).unwrap();
    let (said, python) = audited(&place, "next", &node, &client).await;
    assert!(said.starts_with("OK: "), "{said}");
    assert_eq!(python["verdict"], "OK", "{python}");
    node.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_successor_is_refused_where_none_is_due() {
    let Some(place) = Place::new().await else { return };
    let node = Node::start(&place, "data").await;
    node.export_recovery(&place.sheet()).await;
    node.make_backup().await;
    let sheet = std::fs::read(place.sheet()).unwrap();
    node.stop().await;
    let store = place.path("store");
    let refused = |identity: &Path, more: &[&str]| {
        let arguments: Vec<&str> = ["--new-identity"].iter().chain(more).copied().collect();
        let (code, said) = place.refused_with(&store, "to", identity, &arguments);
        assert!(!place.path("to/identity").exists(), "{said}");
        (code, said)
    };
    // The identity is there: it is neither lost nor does its key name a successor.
    let (code, said) = refused(&place.path("data/identity/node_key"), &[]);
    assert!(code == 1 && said.contains("is not lost") && said.contains("move that data directory"), "{said}");
    let arguments = ["--new-identity"];
    let (good, said) = place.restore_here("to", &place.path("data"), &arguments);
    assert!(!good && said.contains("is not lost") && said.contains("data/identity/node_key"), "{said}");
    assert!(!place.path("to").exists());

    // No sheet, half a sheet, another node's.
    let (_, said) = refused(&place.path("nowhere"), &[]);
    assert!(said.contains("nowhere"), "{said}");
    let text = String::from_utf8(sheet.clone()).unwrap();
    let half: String =
        text.lines().filter(|line| !line.contains("ed25519-secret")).map(|line| format!("{line}\n")).collect();
    let (good, said) = place.restore_typed("to", half.as_bytes(), &arguments);
    assert!(!good && said.contains("ed25519-secret"), "{said}");
    let other = Node::start(&place, "other").await;
    other.export_recovery(&place.path("other.sheet")).await;
    other.stop().await;
    let (_, said) = refused(&place.path("other.sheet"), &[]);
    assert!(said.contains("no backup"), "{said}");

    // A sheet with the right age key and another Ed25519 key: it opens the backup and names nobody.
    let right = RecoverySheet::parse(&text).unwrap();
    let stranger = RecoverySheet::generate(&mut Entropy::seeded(4));
    let lines = |sheet: &str, names: [&str; 2]| -> Vec<String> {
        sheet.lines().filter(|line| names.iter().any(|name| line.starts_with(name))).map(str::to_owned).collect()
    };
    let wrong = stranger.to_text(&right.peer_id, right.created);
    let (ours, theirs) = (["ed25519-secret", "ed25519-public"], lines(&wrong, ["ed25519-secret", "ed25519-public"]));
    let mut mixed = text.clone();
    for (mine, their) in lines(&text, ours).iter().zip(&theirs) {
        mixed = mixed.replace(mine, their);
    }
    let public = bib_identity::recovery::RecoveryPublic {
        age_recipient: right.sheet.public().age_recipient,
        ed25519: stranger.public().ed25519,
    };
    let check = format!("{} {} {} {}", right.peer_id, right.created, public.age_recipient, hex::encode(public.ed25519));
    let old = lines(&text, ["check:", "check:"]).remove(0);
    mixed = mixed.replace(&old, &format!("check: {}", &bib_core::Hash::of(check.as_bytes()).to_string()[..8]));
    let (good, said) = place.restore_typed("to", mixed.as_bytes(), &arguments);
    assert!(!good && said.contains("does not name the Ed25519 key of this sheet"), "{said}");
    assert!(!store.join(right.peer_id.to_string()).join("succession").exists(), "nothing was claimed");
    // The right one goes on over what that left, typed in.
    let (good, said) = place.restore_typed("to", &sheet, &arguments);
    assert!(good, "{said}");
}
