//! Publishes and downloads that are killed half-way go on where they stopped.

#![allow(clippy::unwrap_used)]

mod support;

use std::process::{Child, Stdio};

use support::{Bib, Node, listing, noise, wait_for, write};

const FILES: u64 = 48;
const FILE_BYTES: usize = 5 << 20;

#[test]
fn a_killed_publish_sends_the_rest_and_a_killed_download_gets_it() {
    let Some(node) = Node::start() else { return };
    let ada = node.person();
    for number in 0..FILES {
        write(&ada.path("data"), &format!("{number:02}.bin"), noise(number, FILE_BYTES));
    }
    let line = ["dataset", "publish", "data", "t/d", "-m", "first", "--yes", "--license", "CC0-1.0"];
    let mut child = start(&ada, &line);
    let there = wait_for("a quarter of the chunks", || {
        assert!(child.try_wait().unwrap().is_none(), "the publish ended before it could be killed");
        Some(node.chunks_on_disk()).filter(|there| *there >= 40)
    });
    child.kill().unwrap();
    child.wait().unwrap();
    assert!(ada.json(&["dataset", "versions", "t/d"]).as_array().unwrap().is_empty());

    let rest = ada.json(&line);
    let (chunks, sent) = (rest["chunks"].as_u64().unwrap(), rest["chunks_sent"].as_u64().unwrap());
    assert_eq!(rest["created"], true);
    // What was durable and acknowledged is not sent again; the batch that was under way may be.
    assert!(sent > 0 && sent <= chunks - there as u64 / 2, "{sent} of {chunks} sent again, {there} were there");

    let target = ada.path("back");
    let mut child = start(&ada, &["dataset", "download", "t/d", "back"]);
    wait_for("a quarter of the files", || {
        assert!(child.try_wait().unwrap().is_none(), "the download ended before it could be killed");
        let whole = |entry: &std::fs::DirEntry| entry.file_name().to_string_lossy().ends_with(".bin");
        let there = std::fs::read_dir(&target).ok()?.flatten().filter(whole).count();
        Some(there).filter(|there| *there as u64 >= FILES / 4)
    });
    child.kill().unwrap();
    child.wait().unwrap();
    let rest = ada.json(&["dataset", "download", "t/d", "back"]);
    let kept = rest["files_kept"].as_u64().unwrap();
    assert!(kept >= FILES / 8, "{rest}");
    assert!(
        rest["bytes_received"].as_u64().unwrap() <= rest["bytes"].as_u64().unwrap() - (kept - 1) * FILE_BYTES as u64,
        "{rest}"
    );
    assert_eq!(listing(&ada.path("data")), listing(&target));
}

fn start(bib: &Bib, line: &[&str]) -> Child {
    bib.command(line).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap()
}
