//! Encryption at rest on a disk of its own (ext4 with fscrypt): what a thief of the disk finds, what a kill leaves.
#![allow(
    clippy::unwrap_used,
    clippy::print_stderr,
    clippy::disallowed_methods,
    reason = "tests say what they skip and spawn tasks"
)]

mod faults;

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::time::Duration;

use bib_client::Client;
use bib_proto::v1::ServingStatus;
use faults::disk::SmallDisk;
use faults::publisher::{Publisher, audit_is_ok};
use faults::*;

/// What a person would not want to be found.
const MARK: &str = "the-mark-that-nobody-else-would-write";

fn configuration(at_rest: &str) -> String {
    format!(
        "database:\n  shared_buffers: 16MiB\n  max_wal: 64MiB\nblobs:\n  compression: off\n\
         limits:\n  min_free_bytes: 1MiB\nencryption:\n  at_rest: {at_rest}\n"
    )
}

fn client(publisher: &Publisher, node: &Node) -> Client {
    publisher.client(&node.ready().socket)
}

/// Publishes the mark as a file's content, which goes into `blobs/`, and as its name, which goes into the database too.
async fn publish_mark(publisher: &mut Publisher, node: &Node) {
    publisher.change();
    fs::write(publisher.folder().join(MARK), format!("{MARK}\n").repeat(4096)).unwrap();
    publisher.publish(&client(publisher, node)).await.unwrap();
}

/// The names in a directory, as they show without a key too.
fn names(path: &Path) -> Vec<String> {
    let entries = fs::read_dir(path).unwrap().flatten();
    entries.map(|entry| entry.file_name().to_string_lossy().into_owned()).collect()
}

async fn health(node: &Node) -> (ServingStatus, String) {
    node.health("encryption").await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stolen_disk_shows_neither_data_nor_names() {
    let Some(disk) = SmallDisk::encrypting(512) else { return };
    let place = Place::within(&disk.path());
    place.configure(&configuration("fscrypt"));
    let mut publisher = Publisher::new(1);
    let mut node = place.start().await;
    publish_mark(&mut publisher, &node).await;
    assert_eq!(health(&node).await.0, ServingStatus::Serving);
    // A kill leaves PostgreSQL running, whose directories must not be locked under it.
    node.kill();
    let node = place.start().await;
    publisher.check(&client(&publisher, &node), true).await;
    publish_mark(&mut publisher, &node).await;
    assert!(node.stop().success());
    let log = place.log();
    assert!(log.contains("the encrypted directories are locked"), "{log}");

    assert!(!disk.holds(MARK), "the mark stands on the disk");
    for directory in ["blobs", "postgres/data", "postgres/log"] {
        let path = place.data().join(directory);
        let names = names(&path);
        assert!(!names.is_empty(), "{directory} is empty");
        let known = ["FORMAT", "blobs", "PG_VERSION", "base", "postgresql"];
        let seen = names.iter().find(|name| known.iter().any(|known| name.starts_with(known)));
        assert_eq!(seen, None, "{directory} shows its names");
        for file in names.iter().map(|name| path.join(name)).filter(|path| path.is_file()) {
            assert!(fs::read(&file).is_err(), "{} can be read", file.display());
        }
    }
    // What is needed to find the key stays readable.
    assert!(fs::read(place.data().join("postgres/PROVISIONER")).is_ok());

    let node = place.start().await;
    publisher.check(&client(&publisher, &node), true).await;
    audit_is_ok(&client(&publisher, &node)).await;
    assert!(node.stop().success());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn turned_on_later_everything_is_converted_and_nothing_is_lost() {
    let Some(disk) = SmallDisk::encrypting(768) else { return };
    let place = Place::within(&disk.path());
    place.configure(&configuration("off"));
    let mut publisher = Publisher::new(2);
    let mut node = place.start().await;
    publish_mark(&mut publisher, &node).await;
    // Without encryption the mark is found: the search can find.
    assert!(disk.holds(MARK));

    // PostgreSQL outlives the daemon: its directories wait for a start that finds it stopped, the chunks do not.
    place.configure(&configuration("fscrypt"));
    node.kill();
    let node = place.start().await;
    let (status, sentence) = health(&node).await;
    assert!(sentence.contains("postgres/data") && !sentence.contains("blobs"), "{status:?} {sentence}");
    publisher.check(&client(&publisher, &node), true).await;
    assert!(node.stop().success());

    // What a conversion that was cut off left, before the step that counts: begun again. (After it: swept.)
    let leftover = place.data().join("postgres/data.sealing");
    fs::create_dir(&leftover).unwrap();
    fs::write(leftover.join("PG_VERSION"), "half").unwrap();
    let swept = place.data().join("blobs.sealing");
    fs::create_dir(&swept).unwrap();
    let before = fs::metadata(place.data().join("postgres/data")).unwrap();
    let node = place.start().await;
    let after = fs::metadata(place.data().join("postgres/data")).unwrap();
    assert_eq!(health(&node).await.0, ServingStatus::Serving);
    assert!(!leftover.exists() && !swept.exists());
    use std::os::unix::fs::MetadataExt as _;
    assert_eq!((before.uid(), before.gid(), before.mode()), (after.uid(), after.gid(), after.mode()));
    publisher.check(&client(&publisher, &node), true).await;
    audit_is_ok(&client(&publisher, &node)).await;
    publish_mark(&mut publisher, &node).await;
    assert!(node.stop().success());

    // Off again: what is encrypted stays so and opens.
    place.configure(&configuration("off"));
    let node = place.start().await;
    publisher.check(&client(&publisher, &node), true).await;
    assert!(node.stop().success());
}

/// kill -9 at moments of a conversion that differ each time: a start finishes it, whatever was done.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn killed_while_converting_it_goes_on_at_the_next_start() {
    let Some(disk) = SmallDisk::encrypting(768) else { return };
    let place = Place::within(&disk.path());
    place.configure(&configuration("off"));
    let mut publisher = Publisher::new(3);
    let node = place.start().await;
    publish_mark(&mut publisher, &node).await;
    assert!(node.stop().success());
    place.configure(&configuration("fscrypt"));
    // Each copy that comes into sight is cut off once.
    for directory in ["blobs.sealing", "postgres/data.sealing"] {
        let copy = place.data().join(directory);
        let mut node = place.spawn(place.command());
        wait_for("the copy is begun", Duration::from_secs(60), async || copy.exists()).await;
        node.kill();
    }
    let node = place.start().await;
    assert_eq!(health(&node).await.0, ServingStatus::Serving);
    assert!(!place.data().join("blobs.sealing").exists() && !place.data().join("postgres/data.sealing").exists());
    publisher.check(&client(&publisher, &node), true).await;
    audit_is_ok(&client(&publisher, &node)).await;
    assert!(node.stop().success());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_disk_that_cannot_a_full_one_and_another_key_are_refused_with_nothing_half_made() {
    let Some(plain) = SmallDisk::new(256) else { return };
    let place = Place::within(&plain.path());
    place.configure(&configuration("fscrypt"));
    let refused = place.refused();
    let text = String::from_utf8_lossy(&refused.stderr).into_owned();
    let log = text + &place.log();
    assert!(log.contains("cannot encrypt") && log.contains("tune2fs"), "{log}");
    assert!(!place.data().join("postgres/data").exists());

    let Some(disk) = SmallDisk::encrypting(512) else { return };
    let place = Place::within(&disk.path());
    place.configure(&configuration("off"));
    let mut publisher = Publisher::new(4);
    let node = place.start().await;
    publish_mark(&mut publisher, &node).await;
    assert!(node.stop().success());
    place.configure(&configuration("fscrypt"));
    let filler = disk.fill(4 << 20);
    let refused = place.refused();
    let log = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert!(log.contains("needs") && log.contains("make room"), "{log}");
    fs::remove_file(filler).unwrap();
    let node = place.start().await;
    publisher.check(&client(&publisher, &node), true).await;
    assert!(node.stop().success());

    // The sealed key of another node, put in place of this one's: nothing is made over what it does not open.
    let key = place.data().join("secrets/disk_key.age");
    let kept = fs::read(&key).unwrap();
    let node_key = bib_identity::NodeKey::load(&place.data().join("identity/node_key")).unwrap();
    let secrets = bibd::secrets::Secrets::new(&place.data().join("secrets"), std::sync::Arc::new(node_key), Vec::new());
    let other = secrecy::SecretSlice::from("17".repeat(64).into_bytes());
    secrets.directory().unwrap().write("disk_key", &other).unwrap();
    let refused = place.refused();
    let log = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert!(log.contains("a key that is not this node's") && log.contains("disk_key.age"), "{log}");
    fs::write(&key, kept).unwrap();
    fs::set_permissions(&key, fs::Permissions::from_mode(0o600)).unwrap();
    let node = place.start().await;
    publisher.check(&client(&publisher, &node), true).await;
    assert!(node.stop().success());
}
