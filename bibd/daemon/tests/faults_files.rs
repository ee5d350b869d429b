//! Damaged, foreign and lost files; a schema of another release (security.md, B-STO 18 and 24). Whatever is wrong, the
//! daemon says so in one sentence, names the file, and changes nothing on the disk.
#![allow(
    clippy::unwrap_used,
    clippy::print_stderr,
    clippy::disallowed_methods,
    reason = "tests say what they skip and spawn tasks"
)]

mod faults;

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

use faults::*;

/// Content and permissions of everything that a start must not repair behind somebody's back.
fn picture(place: &Place) -> BTreeMap<PathBuf, (u32, Vec<u8>)> {
    let mut files = BTreeMap::new();
    let data = place.data();
    for directory in
        [data.clone(), data.join("identity"), data.join("certs"), data.join("secrets"), data.join("postgres")]
    {
        for entry in fs::read_dir(directory).unwrap().flatten() {
            // The lock names the last who tried.
            if entry.file_type().unwrap().is_file() && entry.file_name() != "lock" {
                let mode = entry.metadata().unwrap().permissions().mode() & 0o7777;
                files.insert(entry.path(), (mode, fs::read(entry.path()).unwrap()));
            }
        }
    }
    files
}

fn put(path: &Path, file: &(u32, Vec<u8>)) {
    // Whoever reads next must find it as it was, not as the umask wants it.
    fs::write(path, &file.1).unwrap();
    fs::set_permissions(path, fs::Permissions::from_mode(file.0)).unwrap();
}

/// Damages one file in one way, tries to start, expects these words, and that nothing else happened.
fn refuses(place: &Place, name: &str, how: &str, damage: impl FnOnce(&Path), words: &[&str]) {
    let path = place.data().join(name);
    let before = picture(place);
    damage(&path);
    let damaged = picture(place);
    assert_ne!(before, damaged, "{name} {how}: no damage was done");
    let output = place.refused();
    let text = String::from_utf8_lossy(&output.stderr).into_owned();
    for word in words.iter().copied().chain(["error[", "hint: "]) {
        assert!(text.contains(word), "{name} {how}: no {word:?} in {text}");
    }
    assert!(!text.contains("panicked") && !text.contains("`bibd doctor` looks"), "{name} {how}: {text}");
    assert_eq!(picture(place), damaged, "{name} {how}: something was changed");
    assert_eq!(place.postmaster(), None, "{name} {how}: PostgreSQL was left running");
    for (path, file) in &before {
        put(path, file);
    }
}

fn empty(path: &Path) {
    fs::write(path, "").unwrap();
}

fn halved(path: &Path) {
    let bytes = fs::read(path).unwrap();
    fs::write(path, &bytes[..bytes.len() / 2]).unwrap();
}

fn shorter(path: &Path) {
    let bytes = fs::read(path).unwrap();
    fs::write(path, &bytes[..bytes.len() - 1]).unwrap();
}

fn opened(path: &Path) {
    fs::set_permissions(path, fs::Permissions::from_mode(0o644)).unwrap();
}

fn gone(path: &Path) {
    fs::remove_file(path).unwrap();
}

/// What makes a daemon give up before it serves, in one place: the dear part is making the two nodes.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn damaged_foreign_and_lost_files_are_refused_and_left_as_they_are() {
    let (place, other) = (Place::new(), Place::new());
    for place in [&place, &other] {
        assert!(place.start().await.stop().success());
    }
    let foreign = |name: &str| {
        let from = other.data().join(name);
        move |path: &Path| fs::write(path, fs::read(from).unwrap()).unwrap()
    };
    let healthy = picture(&place);

    let key = "identity/node_key";
    refuses(&place, key, "empty", empty, &["BIB0404", "node_key` is empty"]);
    refuses(&place, key, "halved", halved, &["BIB0404", "node_key` is not an OpenSSH private key"]);
    refuses(&place, key, "open to others", opened, &["BIB0404", "mode 0644", "chmod 600"]);
    refuses(&place, key, "gone", gone, &["BIB0404", "node_key` does not exist"]);
    refuses(
        &place,
        key,
        "of another node",
        foreign(key),
        &["BIB0404", "not sealed to this key", "restore the node key"],
    );

    let epoch = "identity/epoch";
    refuses(&place, epoch, "empty", empty, &["BIB0404", "epoch"]);
    refuses(&place, epoch, "cut short", shorter, &["BIB0404", "epoch"]);
    refuses(&place, epoch, "gone", gone, &["BIB0404", "epoch"]);
    refuses(&place, epoch, "open to others", opened, &["epoch", "mode 0644", "chmod 600"]);

    for (name, words) in [("secrets/ca.key.age", "ca.key.age"), ("secrets/db.age", "db.age")] {
        refuses(&place, name, "empty", empty, &["BIB0404", words, "is empty"]);
        refuses(&place, name, "halved", halved, &["BIB0404", "damaged", "restore"]);
        refuses(&place, name, "open to others", opened, &["BIB0404", words, "mode 0644", "chmod 600"]);
        refuses(&place, name, "of another node", foreign(name), &["BIB0404", "not sealed to this key"]);
        refuses(&place, name, "gone", gone, &["BIB0404", "restore", words]);
    }
    let certificate = "certs/ca.crt";
    refuses(&place, certificate, "empty", empty, &["BIB0404", "ca.crt` is empty"]);
    refuses(&place, certificate, "of another node", foreign(certificate), &["BIB0404", "ca.crt"]);
    let both = |path: &Path| {
        gone(path);
        gone(&place.data().join("secrets/ca.key.age"));
    };
    refuses(&place, certificate, "gone with its key", both, &["BIB0404", "ca.crt", "never makes a new CA"]);

    refuses(&place, "FORMAT", "of a later release", |path| fs::write(path, "bib-data/2\n").unwrap(), &["bib-data/2"]);
    let provisioner = "postgres/PROVISIONER";
    refuses(&place, provisioner, "empty", empty, &["BIB0405", "PROVISIONER"]);
    refuses(&place, provisioner, "halved", halved, &["BIB0405", "PROVISIONER"]);
    refuses(&place, provisioner, "gone", gone, &["BIB0405", "PROVISIONER"]);
    refuses(&place, provisioner, "of another cluster", foreign(provisioner), &["BIB0405", "is cluster"]);

    place.configure("grpc:\n  max_conections: 3\n");
    let text = String::from_utf8(place.refused().stderr).unwrap();
    assert!(text.contains("config.yaml:2: grpc.max_conections") && text.contains("did you mean"), "{text}");
    place.configure("");
    assert_eq!(picture(&place), healthy);
    assert!(place.start().await.stop().success(), "all put back, it is the same node");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_newer_and_an_edited_schema_are_refused_and_left_as_they_are() {
    let place = Place::new();
    let mut node = place.start().await;
    make_topic(&node.channel().await, "kept").await.unwrap();
    let migrations = "SELECT string_agg(version || ' ' || name || ' ' || checksum, ', ' ORDER BY version) \
                      FROM bib_meta.schema_migrations";
    let newer = "INSERT INTO bib_meta.schema_migrations SELECT 999, 'of_the_future', checksum, applied_at, applied_us \
                 FROM bib_meta.schema_migrations WHERE version = 1";
    let edited = "UPDATE bib_meta.schema_migrations SET checksum = repeat('0', 64) WHERE version = 2";
    let back = "DELETE FROM bib_meta.schema_migrations WHERE version = 999; \
                UPDATE bib_meta.schema_migrations SET checksum = $saved WHERE version = 2";
    let mut superuser = place.superuser().await;
    let saved: String = sqlx::query_scalar("SELECT checksum FROM bib_meta.schema_migrations WHERE version = 2")
        .fetch_one(&mut superuser)
        .await
        .unwrap();
    let back = back.replace("$saved", &format!("'{saved}'"));

    for (change, words) in [(newer, ["BIB0406", "999"]), (edited, ["BIB0406", "migration 2"])] {
        // The daemon dies, its server lives: an older binary comes and adopts it.
        node.kill();
        sqlx::raw_sql(change).execute(&mut superuser).await.unwrap();
        let before: String = sqlx::query_scalar(migrations).fetch_one(&mut superuser).await.unwrap();
        let text = String::from_utf8(place.refused().stderr).unwrap();
        for word in words.into_iter().chain(["hint: use the release of bibd"]) {
            assert!(text.contains(word), "no {word:?} in {text}");
        }
        assert_eq!(place.postmaster(), None, "what it adopted it stops");

        // Without the daemon nobody starts the server: mended through one that is told nothing.
        drop(superuser);
        superuser = mended(&place, &back, migrations, &before).await;
        node = place.start().await;
        let again = make_topic(&node.channel().await, "kept").await.unwrap_err();
        assert_eq!(code(&again), "BIB0009", "data untouched: {again}");
        drop(superuser);
        superuser = place.superuser().await;
    }
    assert!(node.stop().success());
}

/// Starts the server alone, checks that the refused daemon left the table as it was, and puts it right.
async fn mended(place: &Place, back: &str, migrations: &str, before: &str) -> sqlx::PgConnection {
    use bibd_postgres::ManagedPostgres as _;
    let key = bib_identity::NodeKey::load(&place.data().join("identity/node_key")).unwrap();
    let secrets = bibd::secrets::Secrets::new(&place.data().join("secrets"), std::sync::Arc::new(key), Vec::new());
    let settings = bibd_postgres::Settings::new(place.data(), place.data().join("run"));
    let random = bibd_postgres::Randomness::new(bibd::clock::Entropy::seeded(1));
    let postgres = bibd_postgres::ProcessPostgres::new(settings, std::sync::Arc::new(secrets), random);
    postgres.provision().await.unwrap();
    postgres.start().await.unwrap();
    let mut superuser = place.superuser().await;
    let after: String = sqlx::query_scalar(sqlx::AssertSqlSafe(migrations)).fetch_one(&mut superuser).await.unwrap();
    assert_eq!(after, before, "the refused daemon changed nothing");
    sqlx::raw_sql(sqlx::AssertSqlSafe(back)).execute(&mut superuser).await.unwrap();
    // Now an orphan of this test, which the next daemon adopts.
    std::mem::forget(postgres);
    superuser
}
