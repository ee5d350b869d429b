//! Publishing and downloading, with a real node, over its socket.

#![allow(clippy::unwrap_used)]

mod support;

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::{PermissionsExt as _, symlink};

use serde_json::json;
use support::{Node, listing, noise, write};

const LICENSE: [&str; 2] = ["--license", "CC-BY-4.0"];

#[test]
fn what_is_published_is_what_comes_back_and_can_be_proved() {
    let Some(node) = Node::start() else { return };
    let ada = node.person();
    let folder = ada.path("data");
    write(&folder, "readme.md", "# data\n");
    write(&folder, "year 2024/übersicht 数据.csv", "a,b\n1,2\n");
    write(&folder, "big.bin", noise(1, 6 << 20));
    write(&folder, "empty", "");
    write(&folder, "run.sh", "#!/bin/sh\n");
    std::fs::set_permissions(folder.join("run.sh"), std::fs::Permissions::from_mode(0o755)).unwrap();
    std::fs::create_dir(folder.join("hollow")).unwrap();
    symlink("readme.md", folder.join("link")).unwrap();
    write(&folder, "=cmd|' /C calc'!A0", "x");
    write(&folder, "ro\u{202e}tide.txt", "x");

    let first =
        ada.json(&["dataset", "publish", "data", "climate/hourly", "-m", "first", "--yes", LICENSE[0], LICENSE[1]]);
    assert_eq!((&first["created"], &first["files"]), (&json!(true), &json!(7)));
    assert_eq!(first["chunks"], first["chunks_sent"]);
    for field in [
        "dataset",
        "version",
        "content",
        "created",
        "files",
        "bytes",
        "chunks",
        "chunks_sent",
        "bytes_sent",
        "duration_ms",
    ] {
        assert!(!first[field].is_null(), "{field}: {first}");
    }

    let got = ada.json(&["dataset", "download", "climate/hourly", "back"]);
    assert_eq!(got["version"], first["version"]);
    assert_eq!(listing(&folder), listing(&ada.path("back")));
    let verdict = ada.json(&["dataset", "verify", "climate/hourly", "back"]);
    assert_eq!(
        (&verdict["bytes"], &verdict["signature"], &verdict["voucher"]),
        (&json!("good"), &json!("good"), &json!("good"))
    );
    assert_eq!(ada.json(&["dataset", "verify", "climate/hourly", "--on-node"])["ok"], true);
    write(&ada.path("back"), "readme.md", "# Data\n");
    let run = ada.run(&["dataset", "verify", "climate/hourly", "back", "-o", "json"]);
    assert_eq!(run.code, 7, "{run:?}");
    let verdict: serde_json::Value = serde_json::from_str(&run.stdout).unwrap();
    assert_eq!((&verdict["bytes"], &verdict["differences"]), (&json!("bad"), &json!(["changed: readme.md"])));

    // Hostile names: eyes see them written out, spreadsheets do not run them, programs get them as they are.
    let table = ada.ok(&["dataset", "files", "climate/hourly"]);
    assert!(table.contains(r"ro\u{202e}tide.txt") && !table.contains('\u{202e}'), "{table}");
    let csv = ada.ok(&["dataset", "files", "climate/hourly", "-o", "csv"]);
    assert!(csv.contains(",'=cmd|") && !csv.contains('\u{202e}'), "{csv}");
    assert!(ada.ok(&["dataset", "files", "climate/hourly", "-o", "csv", "--exact-csv"]).contains(",=cmd|"));
    let files = ada.json(&["dataset", "files", "climate/hourly"]);
    assert!(files.as_array().unwrap().iter().any(|file| file["path"] == "ro\u{202e}tide.txt"), "{files}");

    ada.ok(&["dataset", "prove", "climate/hourly", "--out", "bundle.tar"]);
    let piped = ada.command(&["dataset", "prove", "climate/hourly"]).output().unwrap();
    assert!(piped.status.success());
    assert_eq!(piped.stdout, std::fs::read(ada.path("bundle.tar")).unwrap());
    assert_eq!(ada.fails(6, &["dataset", "prove", "climate/hourly", "--out", "bundle.tar"])["kind"], "conflict");
    for format in ["datacite", "ro-crate", "croissant", "schema.org"] {
        let text = ada.ok(&["dataset", "show", "climate/hourly", "-o", format]);
        assert!(serde_json::from_str::<serde_json::Value>(&text).unwrap().is_object(), "{format}");
    }
    for (style, mark) in [("text", "climate/hourly"), ("bibtex", "@misc{"), ("cff", "cff-version: 1.2.0")] {
        assert!(ada.ok(&["dataset", "cite", "climate/hourly", "--format", style]).contains(mark), "{style}");
    }
}

#[test]
fn a_second_publish_sends_what_is_new_and_a_third_nothing() {
    let Some(node) = Node::start() else { return };
    let ada = node.person();
    for number in 0..8u64 {
        write(&ada.path("data"), &format!("{number}.bin"), noise(number, 5 << 20));
    }
    let publish = |message: &str, more: &[&str]| {
        let line =
            [&["dataset", "publish", "data", "t/d", "-m", message, "--yes", LICENSE[0], LICENSE[1]][..], more].concat();
        ada.json(&line)
    };
    let first = publish("first", &[]);
    let again = publish("again", &[]);
    assert_eq!((&again["created"], &again["version"]), (&json!(false), &first["version"]));
    assert_eq!((&again["chunks_sent"], &again["bytes_sent"]), (&json!(0), &json!(0)));

    write(&ada.path("data"), "3.bin", noise(99, 5 << 20));
    let changed = publish("changed", &["--label", "2026"]);
    assert_eq!(changed["created"], true);
    let sent = changed["bytes_sent"].as_u64().unwrap();
    assert!((5 << 20..8 << 20).contains(&sent), "{changed}");
    let versions = ada.json(&["dataset", "versions", "t/d"]);
    assert_eq!(versions.as_array().unwrap().len(), 2);
    assert_eq!(versions[0]["parents"][0], first["version"]);

    // The parent that was named is not the latest any more.
    write(&ada.path("data"), "4.bin", "mine");
    let stale = first["version"].as_str().unwrap();
    let line = ["dataset", "publish", "data", "t/d", "-m", "stale", "--parent", stale, LICENSE[0], LICENSE[1]];
    let conflict = ada.fails(6, &line);
    assert_eq!(
        (&conflict["details"]["latest"], &conflict["details"]["parent"]),
        (&changed["version"], &first["version"])
    );
    let rebased = publish("stale", &["--parent", stale, "--rebase"]);
    assert_eq!(rebased["created"], true);

    ada.ok(&["dataset", "tag", "t/d", "v1"]);
    ada.fails(6, &["dataset", "tag", &format!("t/d@{stale}"), "v1"]);
    assert_eq!(ada.json(&["dataset", "download", "t/d@v1", "back"])["version"], rebased["version"]);
    assert_eq!(listing(&ada.path("data")), listing(&ada.path("back")));
    assert_eq!(ada.fails(6, &["dataset", "download", &format!("t/d@{stale}"), "back"])["code"], "BIB0508");
}

#[test]
fn what_is_missing_is_asked_for_or_named() {
    let Some(node) = Node::start() else { return };
    let ada = node.person();
    write(&ada.path("data"), "a", "a");
    let line = ["dataset", "publish", "data", "no/where", "-m", "x", LICENSE[0], LICENSE[1]];
    let error = ada.fails(3, &line);
    assert!(error["hint"].as_str().unwrap().contains("--create"), "{error}");
    assert_eq!(ada.fails(2, &["dataset", "publish", "data", "no/where", "-m", "x", "--create"])["code"], "BIB0511");
    // Nor is anything left behind by a folder that cannot be published.
    write(&ada.path("refused"), "line\nend", "x");
    let refused = ["dataset", "publish", "refused", "no/where", "-m", "x", "--create", LICENSE[0], LICENSE[1]];
    assert_eq!(ada.fails(2, &refused)["code"], "BIB0505");
    ada.fails(3, &["topic", "show", "no"]);
    for reference in ["no/such", "no/such@v1", "no/such@abcdef01"] {
        ada.fails(3, &["dataset", "show", reference]);
        ada.fails(3, &["dataset", "download", reference]);
        assert!(!ada.path("such").exists());
    }
    ada.ok(&["topic", "create", "licensed", "--license", "CC0-1.0"]);
    ada.fails(2, &["topic", "delete", "licensed"]);
    ada.ok(&["dataset", "publish", "data", "licensed/d", "-m", "x", "--create"]);
    assert_eq!(ada.json(&["dataset", "show", "licensed/d"])["license"], "CC0-1.0");
    // A file that is no regular one is left out and named; twins are named.
    write(&ada.path("data"), "Twin", "1");
    write(&ada.path("data"), "twin", "2");
    let _socket = std::os::unix::net::UnixListener::bind(ada.path("data/sock")).unwrap();
    let run = ada.run(&["dataset", "publish", "data", "licensed/d", "-m", "twins"]);
    assert_eq!(run.code, 0, "{run:?}");
    assert!(run.stderr.contains("socket") && run.stderr.contains("`Twin`"), "{run:?}");
    let quiet = ada.run(&["dataset", "publish", "data", "licensed/d", "-m", "twins", "--quiet"]);
    assert_eq!((quiet.code, quiet.stderr.as_str()), (0, ""));
}

#[test]
fn names_that_a_dataset_cannot_hold_are_refused_all_at_once() {
    let Some(node) = Node::start() else { return };
    let ada = node.person();
    write(&ada.path("data"), "fine", "x");
    write(&ada.path("data"), "line\nend", "x");
    write(&ada.path("data"), "\u{1b}]52;c;ZXZpbA==\u{7}", "x");
    std::fs::write(ada.path("data").join(OsStr::from_bytes(b"latin\xe9")), "x").unwrap();
    let run = ada.run(&["dataset", "publish", "data", "t/d", "-m", "x", "--yes", LICENSE[0], LICENSE[1]]);
    assert_eq!(run.code, 2, "{run:?}");
    assert!(run.stderr.contains("BIB0505"), "{run:?}");
    for shown in [r"line\u{a}end", r"\u{1b}]52", "latin"] {
        assert!(run.stderr.contains(shown), "{shown}: {run:?}");
    }
    assert!(!run.stderr.contains('\u{1b}') && !run.stderr.contains('\u{7}'), "{run:?}");
    // A link that leads out of the folder.
    for name in ["line\nend", "\u{1b}]52;c;ZXZpbA==\u{7}"] {
        std::fs::remove_file(ada.path("data").join(name)).unwrap();
    }
    std::fs::remove_file(ada.path("data").join(OsStr::from_bytes(b"latin\xe9"))).unwrap();
    symlink("../../etc/passwd", ada.path("data/out")).unwrap();
    let error = ada.fails(2, &["dataset", "publish", "data", "t/d", "-m", "x", "--yes", LICENSE[0], LICENSE[1]]);
    assert_eq!(error["code"], "BIB0505");
}
