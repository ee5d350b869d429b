//! Backups of a real node on a real PostgreSQL: made under writes, restored with the recovery key alone, refused when
//! they were touched, and nothing half made when somebody goes away. What a death leaves is in `backup_deaths.rs`.
#![allow(clippy::unwrap_used)]
#![allow(clippy::print_stderr, reason = "a test that cannot run says so loudly")]

#[allow(dead_code, reason = "each test uses its own part")]
#[path = "backup/node.rs"]
mod node;

use std::path::Path;
use std::time::Duration;

use bib_identity::NodeKey;
use bib_proto::v1 as pb;
use bibd::backup::Kind;
use bibd::backup::document::{self, Manifest};
use bibd::clock::{Clock as _, Entropy, SystemClock};
use bibd::grpc::health::Condition;
use node::{Node, Place, copy_tree, wait_for};
use rand::{Rng as _, SeedableRng as _};

/// A moment between two writes, and how many topics there were then.
type Moment = (bib_core::Timestamp, u64);

async fn write_topics(node: &Node, prefix: &str, count: u32) -> Vec<Moment> {
    let mut moments = Vec::new();
    for number in 0..count {
        node.make_topic(&format!("{prefix}{number}")).await;
        tokio::time::sleep(Duration::from_millis(15)).await;
        moments.push((SystemClock.now(), node.topics().await));
        tokio::time::sleep(Duration::from_millis(15)).await;
    }
    moments
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_in_docker_is_restored_into_docker() {
    in_a_container("/run/docker.sock").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_in_podman_is_restored_into_podman() {
    in_a_container("/run/podman/podman.sock").await;
}

/// The same way with every program of PostgreSQL in a container: the archive's and the recovery's two lines of `sh`,
/// `pg_basebackup` and `pg_verifybackup`.
async fn in_a_container(socket: &str) {
    let Some(place) = Place::in_a_container(socket).await else { return };
    let node = Node::start(&place, "data").await;
    node.export_recovery(&place.sheet()).await;
    let own = place.containers();
    assert_eq!(own.len(), 1, "{own:?}");
    node.abandon_backup(1).await;
    wait_for("no program is left in the container", Duration::from_secs(30), async || {
        !place.engine(&["top", &own[0]]).contains("pg_basebackup")
    })
    .await;
    wait_for("a backup can be made again", Duration::from_secs(30), async || node.can_make_backup().await).await;
    let moments = write_topics(&node, "after", 10).await;
    let (time, topics) = moments[4];
    let (last, total) = *moments.last().unwrap();
    wait_for("the log is in the store", Duration::from_secs(60), async || {
        node.rename_topic("after0").await;
        node.backups().await[0].reachable > last.to_string()
    })
    .await;
    let id = node.backups().await[0].id.clone();
    let checked = node.verify(&id).await;
    assert_eq!(checked.verdict, "OK", "{}", checked.explanation);
    assert_eq!(place.containers(), own, "the verification's container is gone");
    node.stop().await;
    std::fs::remove_dir_all(place.path("data")).unwrap();
    // The container of a node whose files are gone is in nobody's way: it does not run and names another directory.
    let restored = place.restore("moment", &["--time", &time.to_string()]);
    assert_eq!((&restored["rows"]["topics"], &restored["verdict"]), (&topics.into(), &"OK".into()), "{restored}");
    place.killed_restore("killed", "restore.unpacked");
    assert_eq!(place.containers(), own, "it died before the server started");
    place.killed_restore("killed", "restore.recovered");
    assert_eq!(place.containers().len(), 2, "its server is left");
    let restored = place.restore("killed", &[]);
    assert_eq!(restored["rows"]["topics"], total, "{restored}");
    assert_eq!(place.containers(), own, "no container of a restore is left");
    place.engine(&["rm", "--force", &own[0]]);
    let again = Node::start(&place, "killed").await;
    assert_eq!((again.topics().await, again.audit_verdict().await), (total, "OK".to_owned()));
    assert_eq!(place.containers(), own);
    again.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_is_restored_to_any_moment_with_the_recovery_key_alone() {
    let Some(place) = Place::new().await else { return };
    restored_to_any_moment(place, 5).await;
}

/// Its log was streamed.
#[tokio::test(flavor = "multi_thread")]
async fn a_node_whose_database_is_reached_over_tcp_is_restored_to_any_moment() {
    let Some(place) = Place::over_tcp().await else { return };
    restored_to_any_moment(place, 1).await;
}

async fn restored_to_any_moment(place: Place, rounds: u64) {
    let node = Node::start(&place, "data").await;
    assert_eq!(node.refused_backup().await, "BIB0010", "without a recovery key there is no backup");
    node.export_recovery(&place.sheet()).await;
    // A month that left the audit log lies nowhere else.
    let archive = |data: &str| place.path(data).join("audit-archive/2020-01.jsonl.zst");
    std::fs::create_dir(archive("data").parent().unwrap()).unwrap();
    std::fs::write(archive("data"), "a month").unwrap();
    let (backup, early) = tokio::join!(node.make_backup(), write_topics(&node, "during", 40));
    assert!(backup.state == "complete" && backup.recipients.len() == 2, "{backup:?}");
    let mut moments: Vec<Moment> = early.into_iter().filter(|(time, _)| time.to_string() > backup.finished).collect();
    moments.extend(write_topics(&node, "after", 30).await);
    // The backup has other passwords than the moments from here on, the superuser's too.
    node.rotate().await;
    let rotated = moments.len();
    moments.extend(write_topics(&node, "later", 30).await);
    let (last, total) = *moments.last().unwrap();
    wait_for("the log is in the store", Duration::from_secs(30), async || {
        // A later write closes the segment that the last moment is in.
        node.rename_topic("after0").await;
        node.backups().await[0].reachable > last.to_string()
    })
    .await;
    let checked = node.verify(&backup.id).await;
    assert_eq!(checked.verdict, "OK", "{}", checked.explanation);
    let peer = node.peer();
    node.stop().await;
    // Everything is gone but the store and the sheet.
    std::fs::remove_dir_all(place.path("data")).unwrap();

    let mut random = rand::rngs::StdRng::seed_from_u64(20_261_121);
    for round in 0..rounds {
        // The first of them past the rotation.
        let (time, topics) = moments[random.gen_range(if round == 0 { rotated } else { 0 }..moments.len())];
        let restored = place.restore(&format!("round{round}"), &["--time", &time.to_string()]);
        assert_eq!(restored["rows"]["topics"], topics, "at {time}: {restored}");
        assert_eq!((&restored["verdict"], &restored["epoch"]), (&"OK".into(), &(round + 2).into()), "{restored}");
    }
    let dry = place.restore("dry", &["--dry-run"]);
    assert!(dry["epoch"].is_null() && !place.path("dry").exists());
    let newest = place.restore("newest", &[]);
    assert_eq!(newest["rows"]["topics"], total, "{newest}");
    assert_eq!(std::fs::read(archive("newest")).unwrap(), b"a month");

    let again = Node::start(&place, "newest").await;
    let epoch = rounds + 2;
    assert_eq!((again.peer(), again.daemon.foundation().epoch, again.topics().await), (peer, epoch, total));
    assert_eq!(again.audit_verdict().await, "OK");
    assert_eq!((again.entries("node.restore").await, again.entries("audit.epoch").await), (1, 1));
    if place.is_over_tcp() {
        // Whoever receives the log needs a moment to begin.
        wait_for("the log", Duration::from_secs(30), async || again.failing_items().await.is_empty()).await;
    }
    assert_eq!(again.failing_items().await, []);
    let second = again.make_backup().await;
    assert_eq!((second.epoch, second.timeline), (epoch, 2), "{second:?}");
    again.delete_backup(&backup.id).await;
    let left: Vec<String> = again.backups().await.into_iter().map(|backup| backup.id).collect();
    assert_eq!(left, [second.id]);
    again.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn backups_are_made_verified_and_deleted_without_anybody() {
    let Some(place) = Place::new().await else { return };
    let node = Node::start_with(&place, "data", "keep: 1").await;
    let health = || node.daemon.foundation().health.condition("backup");
    wait_for(
        "health asks for a key",
        Duration::from_secs(30),
        async || matches!(health(), Some(Condition::Degraded(sentence)) if sentence.contains("no recovery key")),
    )
    .await;
    assert!(node.backups().await.is_empty());
    node.export_recovery(&place.sheet()).await;
    let is_verified = |backups: &[pb::Backup]| matches!(backups, [one] if !one.verified.is_empty());
    wait_for("a first backup", Duration::from_secs(120), async || is_verified(&node.backups().await)).await;
    let first = node.backups().await.remove(0);
    assert_eq!(health(), Some(Condition::Serving));

    wait_for("a second one", Duration::from_secs(60), async || node.can_make_backup().await).await;
    wait_for("the first goes", Duration::from_secs(60), async || {
        let left = node.backups().await;
        is_verified(&left) && left[0].id != first.id
    })
    .await;
    // Each with its intent but the verification, which changes nothing. The last entry follows what was seen above.
    let counts = async || {
        let mut counts = Vec::new();
        for act in ["backup.create", "backup.verify", "backup.delete"] {
            counts.push(node.entries(act).await);
        }
        counts
    };
    wait_for("the last entry", Duration::from_secs(30), async || counts().await.iter().sum::<usize>() == 8).await;
    assert_eq!(counts().await, [4, 2, 2]);
    node.stop().await;
    assert_eq!(place.restore("back", &[])["verdict"], "OK");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_touched_is_refused_by_name() {
    let Some(place) = Place::new().await else { return };
    let node = Node::start(&place, "data").await;
    node.export_recovery(&place.sheet()).await;
    let backup = node.make_backup().await;
    let (mark, before) = (SystemClock.now(), place.segments(&node.peer()).len());
    for round in 0..3 {
        node.make_topic(&format!("t{round}")).await;
        wait_for("a segment more", Duration::from_secs(30), async || {
            node.rename_topic(&format!("t{round}")).await;
            place.segments(&node.peer()).len() >= before + 2 * (round + 1)
        })
        .await;
    }
    let peer = node.peer();
    node.stop().await;
    let original = place.path("store");
    let part = |store: &Path| store.join(&peer);
    let object = |store: &Path, name: &str| part(store).join("base").join(&backup.id).join(name);
    let edit = |path: &Path, change: &dyn Fn(&mut Vec<u8>)| {
        let mut bytes = std::fs::read(path).unwrap();
        change(&mut bytes);
        std::fs::write(path, bytes).unwrap();
    };
    let refused = |name: &str, arguments: &[&str], touch: &dyn Fn(&Path)| {
        let store = place.path(&format!("store-{name}"));
        copy_tree(&original, &store);
        touch(&store);
        let (code, said) = place.refused_restore(&store, &format!("to-{name}"), arguments);
        assert!(code != 0, "{name}: {said}");
        assert!(!place.path(&format!("to-{name}")).join("identity/epoch").exists() || said.contains("wal/"), "{said}");
        (code, said)
    };
    for name in ["base.tar.zst.age", "state.tar.zst.age"] {
        let cut = refused(&format!("cut-{name}"), &[], &|store| {
            edit(&object(store, name), &|bytes| bytes.truncate(bytes.len() - 100));
        });
        assert!(cut.0 == 7 && cut.1.contains(name) && cut.1.contains("bytes"), "{cut:?}");
        let flipped = refused(&format!("flip-{name}"), &[], &|store| {
            edit(&object(store, name), &|bytes| {
                let middle = bytes.len() / 2;
                bytes[middle] ^= 1;
            });
        });
        assert!(flipped.0 == 7 && flipped.1.contains(name) && flipped.1.contains("hash"), "{flipped:?}");
    }
    let flipped = refused("flip-manifest", &[], &|store| edit(&object(store, "manifest"), &|bytes| bytes[30] ^= 1));
    assert!(flipped.0 == 7 && flipped.1.contains("manifest") && flipped.1.contains("not signed by"), "{flipped:?}");
    let stranger = NodeKey::create(&place.path("stranger"), &mut Entropy::seeded(9)).unwrap();
    let signed = refused("another", &[], &|store| {
        let path = object(store, "manifest");
        let bytes = std::fs::read(&path).unwrap();
        let (manifest, _): (Manifest, _) = document::verify(&bytes, &peer.parse().unwrap(), "manifest").unwrap();
        std::fs::write(&path, document::sign(&manifest, &stranger).unwrap()).unwrap();
    });
    assert!(
        signed.0 == 7
            && signed.1.contains(&Kind::Physical.manifest_key(&backup.id))
            && signed.1.contains("not signed by"),
        "{signed:?}"
    );

    let segments = place.segments(&peer);
    // One that came well after the mark, and is not the last.
    let late = segments[segments.len() - 2].clone();
    let wal = |store: &Path| part(store).join("wal/1").join(&late);
    let flipped = refused("flip-wal", &[], &|store| {
        edit(&wal(store), &|bytes| {
            let end = bytes.len() - 5;
            bytes[end] ^= 1;
        });
    });
    assert!(flipped.0 == 7 && flipped.1.contains(&late), "{flipped:?}");
    let missing = refused("no-wal", &[], &|store| std::fs::remove_file(wal(store)).unwrap());
    assert!(missing.1.contains(&late) && missing.1.contains("--time"), "{missing:?}");
    // Before the hole everything is there.
    let store = place.path("store-no-wal");
    let before = place.restore_from(&store, "before-the-hole", &["--time", &mark.to_string()]);
    assert_eq!((&before["verdict"], &before["rows"]["topics"]), (&"OK".into(), &0.into()), "{before}");

    // Another node's sheet opens nothing, and says whose backups it looked for.
    let other = Node::start(&place, "other").await;
    let own_sheet = place.path("other.sheet");
    other.export_recovery(&own_sheet).await;
    let own_peer = other.peer();
    other.stop().await;
    let (code, said) = place.refused_with(&original, "to-other", &own_sheet, &[]);
    assert!(code == 1 && said.contains(&own_peer) && said.contains("no backup"), "{said}");
}

#[tokio::test(flavor = "multi_thread")]
async fn who_asked_for_a_backup_may_go_away_at_any_moment() {
    let Some(place) = Place::new().await else { return };
    let node = Node::start(&place, "data").await;
    node.export_recovery(&place.sheet()).await;
    let full = node.make_backup().await;
    // After this many of the backup's answers: at once, and with bytes of the database under way.
    for answers in [0, 1] {
        node.abandon_backup(answers).await;
        let complete: Vec<pb::Backup> = node.backups().await.into_iter().filter(|b| b.state == "complete").collect();
        assert!(complete.iter().all(|backup| backup.id == full.id), "{complete:?}");
        wait_for("the server lets go", Duration::from_secs(60), async || node.can_make_backup().await).await;
        let listed = node.backups().await;
        assert!(listed.iter().all(|backup| backup.state == "complete"), "what was cut off is swept: {listed:?}");
        for backup in listed.into_iter().filter(|backup| backup.id != full.id) {
            node.delete_backup(&backup.id).await;
        }
    }
    node.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_store_that_cannot_be_written_stops_nothing_and_shows_in_health() {
    let Some(place) = Place::new().await else { return };
    let node = Node::start(&place, "data").await;
    node.export_recovery(&place.sheet()).await;
    node.make_backup().await;
    let (store, aside) = (place.path("store"), place.path("aside"));
    std::fs::rename(&store, &aside).unwrap();
    std::fs::write(&store, "no directory").unwrap();
    let health = || node.daemon.foundation().health.condition("backup");
    let mut number = 0;
    wait_for("health says so", Duration::from_secs(60), async || {
        number += 1;
        node.make_topic(&format!("meanwhile{number}")).await;
        matches!(health(), Some(Condition::Degraded(sentence)) if sentence.contains("cannot be archived"))
    })
    .await;
    assert_eq!(node.refused_backup().await, "BIB0306");
    let topics = node.topics().await;
    std::fs::remove_file(&store).unwrap();
    std::fs::rename(&aside, &store).unwrap();
    wait_for("health recovers", Duration::from_secs(60), async || health() == Some(Condition::Serving)).await;
    assert_eq!(node.topics().await, topics);
    node.stop().await;
    // Nothing of the log was lost meanwhile.
    let restored = place.restore("back", &[]);
    assert_eq!(restored["verdict"], "OK", "{restored}");
}
