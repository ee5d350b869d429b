//! Logical dumps of a real node on a real PostgreSQL: of one moment under writes, verified, restored with the recovery key
//! alone, refused when they were touched; nothing half made is offered, and no log depends on them. What a death leaves is
//! in `backup_deaths.rs`.
#![allow(clippy::unwrap_used)]
#![allow(clippy::print_stderr, reason = "a test that cannot run says so loudly")]

#[allow(dead_code, unreachable_pub, reason = "each test uses its own part")]
#[path = "faults/disk.rs"]
mod disk;
#[allow(dead_code, reason = "each test uses its own part")]
#[path = "backup/node.rs"]
mod node;

use std::path::Path;
use std::time::Duration;

use bib_proto::v1 as pb;
use bibd::backup::dump::{DUMP_FORMAT, Dump};
use bibd::backup::{Kind, document};
use bibd::grpc::health::Condition;
use bibd_postgres::{Login, SecretStore as _};
use disk::SmallDisk;
use futures::StreamExt as _;
use node::{Node, Place, copy_tree, wait_for};
use rustix::process::{Pid, Signal, kill_process};
use secrecy::{ExposeSecret as _, SecretString};
use sqlx::Connection as _;
use tonic::Status;
use tonic_types::StatusExt as _;

const PATIENCE: Duration = Duration::from_secs(90);

fn said(status: &Status) -> String {
    let code = status.get_details_error_info().map(|info| info.reason).unwrap_or_default();
    format!("{code} {}", status.message())
}

async fn make_topics(node: &Node, prefix: &str, count: u32) {
    for number in 0..count {
        node.make_topic(&format!("{prefix}{number}")).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_in_docker_is_dumped_and_restored_into_docker() {
    in_a_container("/run/docker.sock").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_in_podman_is_dumped_and_restored_into_podman() {
    in_a_container("/run/podman/podman.sock").await;
}

async fn in_a_container(socket: &str) {
    let Some(place) = Place::in_a_container(socket).await else { return };
    let node = Node::start(&place, "data").await;
    node.export_recovery(&place.sheet()).await;
    make_topics(&node, "t", 5).await;
    let dump = node.make_dump().await;
    let own = place.containers();
    assert_eq!(own.len(), 1, "{own:?}");
    assert!(!place.engine(&["top", &own[0]]).contains("pg_dump"));
    let checked = node.verify(&dump.id).await;
    assert_eq!(checked.verdict, "OK", "{}", checked.explanation);
    assert_eq!(place.containers(), own, "the verification's containers are gone");
    node.stop().await;
    std::fs::remove_dir_all(place.path("data")).unwrap();
    let which = ["--backup", dump.id.as_str()];
    place.killed_restore_with("back", "restore.recovered", &which);
    assert_eq!(place.containers().len(), 2, "its server is left");
    let restored = place.restore("back", &which);
    assert_eq!((&restored["rows"]["topics"], &restored["verdict"]), (&5.into(), &"OK".into()), "{restored}");
    assert_eq!(place.containers(), own, "no container of a restore is left");
    place.engine(&["rm", "--force", &own[0]]);
    let again = Node::start(&place, "back").await;
    assert_eq!((again.topics().await, again.audit_verdict().await), (5, "OK".to_owned()));
    again.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_is_restored_from_a_dump_with_the_recovery_key_alone() {
    let Some(place) = Place::new().await else { return };
    restored_from_a_dump(place).await;
}

/// Its programs connect with certificates.
#[tokio::test(flavor = "multi_thread")]
async fn a_node_whose_database_is_reached_over_tcp_is_restored_from_a_dump() {
    let Some(place) = Place::over_tcp().await else { return };
    restored_from_a_dump(place).await;
}

async fn restored_from_a_dump(place: Place) {
    let node = Node::start(&place, "data").await;
    let refused = said(&node.try_backup_of("logical").await.unwrap_err());
    assert!(refused.starts_with("BIB0010 "), "without a recovery key there is none: {refused}");
    node.export_recovery(&place.sheet()).await;
    let refused = said(&node.try_backup_of("other").await.unwrap_err());
    assert!(refused.contains("physical or logical"), "{refused}");
    make_topics(&node, "before", 5).await;
    // Under writes: of one moment, so what refers to what is whole.
    let (dump, ()) = tokio::join!(node.make_dump(), make_topics(&node, "during", 30));
    assert_eq!(
        (dump.kind.as_str(), dump.state.as_str(), dump.recipients.len()),
        ("logical", "complete", 2),
        "{dump:?}"
    );
    assert!(dump.rows.unwrap() > 5 && dump.postgres > 0 && dump.start_lsn.is_empty(), "{dump:?}");
    let checked = node.verify(&dump.id).await;
    assert_eq!(checked.verdict, "OK", "{}", checked.explanation);
    let topics = checked.counts.iter().find(|count| count.what == "topics").unwrap().rows;
    assert!((5..=35).contains(&topics), "{topics}");
    let listed = node.backups().await;
    assert!(matches!(&listed[..], [one] if one.kind == "logical" && !one.verified.is_empty()), "{listed:?}");
    assert_eq!(node.failing_items().await, [], "the role that dumps is on the golden lists");
    assert_eq!((node.entries("backup.create").await, node.entries("backup.verify").await), (2, 1));
    let peer = node.peer();
    node.stop().await;
    std::fs::remove_dir_all(place.path("data")).unwrap();

    // A dump is the beginning of no log.
    for arguments in [vec![], vec!["--time", "2100-01-01T00:00:00Z"]] {
        let (code, said) = place.refused_restore(&place.path("store"), "to", &arguments);
        assert!(code == 1 && said.contains("only logical dumps") && said.contains(&dump.id), "{said}");
    }
    let which = ["--backup", dump.id.as_str()];
    let dry = place.restore("dry", &["--backup", &dump.id, "--dry-run"]);
    assert!(dry["epoch"].is_null() && dry["kind"] == "logical" && !place.path("dry").exists(), "{dry}");
    let restored = place.restore("back", &which);
    assert_eq!(restored["rows"]["topics"], topics, "{restored}");
    assert_eq!((&restored["verdict"], &restored["epoch"]), (&"OK".into(), &2.into()), "{restored}");

    let again = Node::start(&place, "back").await;
    assert_eq!((again.peer(), again.daemon.foundation().epoch, again.topics().await), (peer, 2, topics));
    assert_eq!(again.audit_verdict().await, "OK");
    assert_eq!((again.entries("node.restore").await, again.entries("audit.epoch").await), (1, 1));
    again.make_topic("afterwards").await;
    let backup = again.make_backup().await;
    assert_eq!((backup.kind.as_str(), backup.epoch, backup.timeline), ("physical", 2, 1), "{backup:?}");
    if place.is_over_tcp() {
        wait_for("the log", PATIENCE, async || again.failing_items().await.is_empty()).await;
    }
    assert_eq!(again.failing_items().await, []);
    again.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_dump_that_was_touched_is_refused_by_name() {
    let Some(place) = Place::new().await else { return };
    let node = Node::start(&place, "data").await;
    node.export_recovery(&place.sheet()).await;
    make_topics(&node, "t", 3).await;
    let dump = node.make_dump().await;
    let (peer, original) = (node.peer(), place.path("original"));
    copy_tree(&place.path("store"), &original);
    let object = |store: &Path, name: &str| store.join(&peer).join("dump").join(&dump.id).join(name);
    let edit = |path: &Path, change: &dyn Fn(&mut Vec<u8>)| {
        let mut bytes = std::fs::read(path).unwrap();
        change(&mut bytes);
        std::fs::write(path, bytes).unwrap();
    };
    let refused = async |touch: &dyn Fn(&Path)| {
        let store = place.path("store");
        std::fs::remove_dir_all(&store).unwrap();
        copy_tree(&original, &store);
        touch(&store);
        let verified = said(&node.try_verify(&dump.id).await.unwrap_err());
        let (code, restored) = place.refused_restore(&store, "to", &["--backup", &dump.id]);
        assert!(code == 7 && verified.starts_with("BIB0203 "), "{verified}; {restored}");
        // Refused before anything is there, or with the mark of what is not finished.
        if place.path("to").exists() {
            assert!(place.path("to/RESTORING").exists());
            std::fs::remove_dir_all(place.path("to")).unwrap();
        }
        (verified, restored)
    };
    let both = |(verified, restored): (String, String), words: &[&str]| {
        let has_all = |text: &str| words.iter().all(|word| text.contains(word));
        assert!(has_all(&verified) && has_all(&restored), "{words:?}: {verified}; {restored}");
    };
    for name in ["dump.zst.age", "state.tar.zst.age"] {
        let path = |store: &Path| object(store, name);
        both(refused(&|store| edit(&path(store), &|bytes| bytes.truncate(bytes.len() - 100))).await, &[name, "bytes"]);
        let flipped = refused(&|store| {
            edit(&path(store), &|bytes| {
                let middle = bytes.len() / 2;
                bytes[middle] ^= 1;
            });
        })
        .await;
        both(flipped, &[name, "hash"]);
        both(refused(&|store| std::fs::remove_file(path(store)).unwrap()).await, &[name, "missing"]);
    }
    let flipped = refused(&|store| edit(&object(store, "manifest"), &|bytes| bytes[30] ^= 1)).await;
    both(flipped, &["manifest", "not signed by"]);
    // Signed by the node itself, and of other rows.
    let key = &node.daemon.foundation().key;
    let lying = refused(&|store| {
        let path = object(store, "manifest");
        let bytes = std::fs::read(&path).unwrap();
        let (mut its, _): (Dump, _) = document::verify(&bytes, &peer.parse().unwrap(), "manifest").unwrap();
        assert_eq!(its.format, DUMP_FORMAT);
        *its.rows.get_mut("bib.topics").unwrap() += 1;
        std::fs::write(&path, document::sign(&its, key).unwrap()).unwrap();
    })
    .await;
    both(lying, &["bib.topics has 3 rows, and had 4"]);
    assert_eq!(Kind::Logical.manifest_key("x"), "dump/x/manifest");
    node.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn no_log_depends_on_a_dump() {
    let Some(place) = Place::new().await else { return };
    let node = Node::start(&place, "data").await;
    node.export_recovery(&place.sheet()).await;
    let peer = node.peer();
    let segments = || place.segments(&peer);
    let early = node.make_dump().await;
    assert_eq!(segments(), Vec::<String>::new(), "where there are dumps alone nobody needs the log");
    let base = node.make_backup().await;
    let mut number = 0;
    wait_for("log in the store", PATIENCE, async || {
        number += 1;
        node.make_topic(&format!("u{number}")).await;
        segments().len() >= 3
    })
    .await;
    let late = node.make_dump().await;
    let first = segments().remove(0);
    node.delete_backup(&early.id).await;
    assert_eq!(segments()[0], first, "a dump that goes takes no log with it");
    let restored = place.restore("newest", &[]);
    assert_eq!((&restored["backup"], &restored["kind"]), (&base.id.as_str().into(), &"physical".into()), "{restored}");
    node.delete_backup(&base.id).await;
    assert!(!segments().contains(&first), "a dump that stays keeps none");
    let left: Vec<String> = node.backups().await.into_iter().map(|backup| backup.id).collect();
    assert_eq!(left, [late.id]);
    node.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn dumps_are_made_verified_and_deleted_without_anybody() {
    let Some(place) = Place::new().await else { return };
    let node = Node::start_with(&place, "data", "every: 0s\n  logical_every: 1h\n  keep: 1").await;
    node.export_recovery(&place.sheet()).await;
    let is_verified =
        |backups: &[pb::Backup]| matches!(backups, [one] if !one.verified.is_empty() && one.kind == "logical");
    wait_for("a first dump", Duration::from_secs(180), async || is_verified(&node.backups().await)).await;
    let first = node.backups().await.remove(0);
    wait_for("a second one", PATIENCE, async || node.try_backup_of("logical").await.is_ok()).await;
    wait_for("the first goes", PATIENCE, async || {
        let left = node.backups().await;
        is_verified(&left) && left[0].id != first.id
    })
    .await;
    node.stop().await;
}

/// Processes of this very one with that name.
fn children(name: &str) -> Vec<Pid> {
    let own = std::process::id().to_string();
    let entries = std::fs::read_dir("/proc").unwrap().flatten();
    let found = entries.filter_map(|entry| {
        let status = std::fs::read_to_string(entry.path().join("status")).ok()?;
        let field = |field: &str| status.lines().find_map(|line| line.strip_prefix(field)).map(str::trim);
        let is_it = field("Name:") == Some(name) && field("PPid:") == Some(&own);
        is_it.then(|| Pid::from_raw(entry.file_name().to_str()?.parse().ok()?)).flatten()
    });
    found.collect()
}

/// Makes a dump that takes its time.
async fn grow(node: &Node) {
    let foundation = node.daemon.foundation();
    let secrets: serde_json::Value =
        serde_json::from_str(foundation.secrets.read("db").unwrap().unwrap().expose_secret()).unwrap();
    let password = SecretString::from(secrets["admin"].as_str().unwrap());
    let login = Login { user: "bibd_admin".to_owned(), database: "bib".to_owned(), password };
    let options = foundation.postgres.connect_options(&login);
    let mut superuser = sqlx::PgConnection::connect_with(&options).await.unwrap();
    let sql = "SET ROLE bibd_owner;
               CREATE TABLE bib.large AS SELECT n, md5(n::text) || md5((n + 1)::text) AS word FROM generate_series(1, 2000000) n";
    sqlx::raw_sql(sql).execute(&mut superuser).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_dump_whose_program_dies_half_way_is_none() {
    let Some(place) = Place::new().await else { return };
    let node = Node::start(&place, "data").await;
    node.export_recovery(&place.sheet()).await;
    grow(&node).await;
    let request = pb::CreateBackupRequest { kind: "logical".to_owned() };
    let mut answers = node.admin().await.create_backup(request).await.unwrap().into_inner();
    let mut failed = None;
    while let Some(answer) = answers.next().await {
        match answer {
            Ok(answer) => {
                assert!(answer.backup.is_none(), "done too soon");
                children("pg_dump").into_iter().for_each(|pid| kill_process(pid, Signal::KILL).unwrap());
            }
            Err(status) => failed = Some(said(&status)),
        }
    }
    let failed = failed.unwrap();
    assert!(failed.starts_with("BIB0306 ") && failed.contains("pg_dump"), "{failed}");
    assert!(node.backups().await.is_empty());
    let health = node.daemon.foundation().health.condition("backup");
    assert!(matches!(&health, Some(Condition::Degraded(sentence)) if sentence.contains("pg_dump")), "{health:?}");
    let objects = || std::fs::read_dir(place.path("store").join(node.peer()).join("dump")).map_or(0, Iterator::count);
    assert_eq!(objects(), 0, "nothing of it is left");

    // Who asked goes away: the program goes too, and the next dump sweeps.
    let request = pb::CreateBackupRequest { kind: "logical".to_owned() };
    let mut answers = node.admin().await.create_backup(request).await.unwrap().into_inner();
    answers.next().await.unwrap().unwrap();
    drop(answers);
    wait_for("no program is left", PATIENCE, async || children("pg_dump").is_empty()).await;
    wait_for("a dump", PATIENCE, async || node.try_backup_of("logical").await.is_ok()).await;
    let listed = node.backups().await;
    assert!(matches!(&listed[..], [one] if one.state == "complete"), "{listed:?}");
    node.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_store_that_is_away_or_full_gets_no_half_dump() {
    let Some(mut place) = Place::new().await else { return };
    let Some(disk) = SmallDisk::new(48) else { return };
    place.keeps_in(disk.path().join("store").display().to_string());
    let node = Node::start(&place, "data").await;
    node.export_recovery(&place.sheet()).await;
    grow(&node).await;
    let before = disk::free(&disk.path());
    let full = said(&node.try_backup_of("logical").await.unwrap_err());
    assert!(full.starts_with("BIB0306 "), "{full}");
    assert!(node.backups().await.is_empty());
    let left = disk::free(&disk.path());
    assert!(left + (1 << 20) > before, "what was written is gone: {left} of {before} bytes are free");
    let (store, aside) = (disk.path().join("store"), disk.path().join("aside"));
    std::fs::rename(&store, &aside).unwrap();
    std::fs::write(&store, "no directory").unwrap();
    let away = said(&node.try_backup_of("logical").await.unwrap_err());
    assert!(away.starts_with("BIB0306 "), "{away}");
    std::fs::remove_file(&store).unwrap();
    std::fs::rename(&aside, &store).unwrap();
    assert!(node.backups().await.is_empty());
    node.stop().await;
}
