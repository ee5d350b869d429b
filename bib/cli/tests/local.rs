//! What `bib` does without a node.

#![allow(clippy::unwrap_used)]

mod support;

use support::Bib;

#[test]
fn a_wrong_command_line_is_exit_2() {
    let bib = Bib::alone();
    for line in [
        &["nonsense"][..],
        &["topic", "show"],
        &["status", "--timeout", "soon"],
        &["dataset", "list", "-o", "croissant"],
    ] {
        let run = bib.run(line);
        assert_eq!(run.code, 2, "{line:?}: {run:?}");
        assert!(run.stderr.starts_with("error:"), "{run:?}");
    }
    let error = bib.fails(2, &["nonsense"]);
    assert_eq!((error["kind"].as_str(), error["exit_code"].as_u64()), (Some("usage"), Some(2)));
}

#[test]
fn without_a_node_it_is_exit_5_with_code_and_hint() {
    let bib = Bib::alone();
    let error = bib.fails(5, &["topic", "list"]);
    assert_eq!(error["code"], "BIB0500");
    assert!(error["hint"].as_str().unwrap().contains("bibd run"), "{error}");
    // Port 1 refuses; nothing listens there on a test machine.
    let error = bib.fails(5, &["status", "--node", "127.0.0.1:1", "--timeout", "5s"]);
    assert_eq!(error["code"], "BIB0501");
    assert_eq!(bib.json(&["version"])["node"], serde_json::Value::Null);
}

#[test]
fn bad_names_are_refused_before_anything_is_sent() {
    let bib = Bib::alone();
    let long = "a/".to_owned() + &"b".repeat(4096);
    for name in [
        "../../etc",
        "a//b",
        "A/b",
        "a/CON",
        "a/b\u{202e}c",
        "a/\u{1b}[2J",
        "-a/b",
        "a/'; DROP TABLE x",
        "a",
        "a/e\u{301}",
        &long,
    ] {
        let run = bib.run(&["dataset", "publish", ".", "-m", "x", "--license", "CC0-1.0", "--", name]);
        assert_eq!(run.code, 2, "{name}: {run:?}");
        assert!(run.stderr.chars().all(|c| c == '\n' || !c.is_control() && c != '\u{202e}'), "{run:?}");
    }
    assert_eq!(
        bib.fails(2, &["dataset", "publish", ".", "a/b", "-m", "x", "--license", "CC-BY-4"])["hint"],
        "did you mean `CC-BY-4.0`?"
    );
    assert_eq!(bib.fails(1, &["dataset", "publish", "gone", "a/b", "-m", "x"])["code"], "BIB0504");
}

#[test]
fn what_cannot_be_taken_back_needs_a_yes() {
    let bib = Bib::alone();
    let id = "12D3KooWPjceQrSwdWXPyLLeABRXmuqt69Rg3sBYbU1Nft9HyQ6X";
    let fingerprint = "ab".repeat(32);
    bib.ok(&["trust", "add", id, "--fingerprint", &fingerprint, "--address", "lab.example.org", "--alias", "lab"]);
    assert_eq!(bib.fails(6, &["trust", "add", id, "--fingerprint", &fingerprint])["kind"], "conflict");
    let error = bib.fails(2, &["trust", "remove", "lab"]);
    assert!(error["hint"].as_str().unwrap().contains("--yes"), "{error}");
    assert_eq!(bib.json(&["trust", "list"])[0]["addresses"][0], "lab.example.org:4000");
    let other = "cd".repeat(32);
    bib.ok(&["trust", "replace", "lab", "--fingerprint", &other]);
    assert_eq!(bib.json(&["trust", "list"])[0]["ca_fingerprint"], other);
    bib.ok(&["trust", "remove", "lab", "--yes"]);
    assert_eq!(bib.json(&["trust", "list"]), serde_json::json!([]));
    assert_eq!(bib.fails(3, &["trust", "remove", "lab", "--yes"])["kind"], "not-found");
}

#[test]
fn configuration_goes_from_default_to_file_to_environment_to_flag() {
    let bib = Bib::alone();
    assert_eq!(bib.json(&["config", "get", "connection.timeout"])["origin"], "default");
    bib.ok(&["config", "set", "connection.timeout", "7s"]);
    assert_eq!(bib.json(&["config", "get", "connection.timeout"])["value"], "7s");
    let output = bib
        .command(&["config", "get", "connection.timeout", "-o", "json"])
        .env("BIB__CONNECTION__TIMEOUT", "9s")
        .output();
    let value: serde_json::Value = serde_json::from_slice(&output.unwrap().stdout).unwrap();
    assert_eq!((value["value"].as_str(), value["origin"].as_str()), (Some("9s"), Some("environment")));
    let error = bib.fails(2, &["config", "set", "connection.time_out", "9s"]);
    assert!(error["message"].as_str().unwrap().contains("did you mean `connection.timeout`"), "{error}");
}

#[test]
fn an_authority_is_made_and_described_and_never_overwritten() {
    let bib = Bib::alone();
    let made = bib.json(&["cert", "init", "ca"]);
    let info = bib.json(&["cert", "info", "ca/ca.crt"]);
    assert_eq!((&info["ca"], &info["valid_now"]), (&true.into(), &true.into()));
    assert_eq!(info["public_key_fingerprint"], made["fingerprint"]);
    assert_eq!(bib.fails(6, &["cert", "init", "ca"])["kind"], "conflict");
    assert_eq!(bib.fails(3, &["cert", "info", "gone.crt"])["kind"], "not-found");
    std::fs::write(bib.path("junk.crt"), b"junk").unwrap();
    bib.fails(1, &["cert", "info", "junk.crt"]);
}

#[test]
fn completions_are_printed_for_every_shell() {
    let bib = Bib::alone();
    for shell in ["bash", "zsh", "fish", "elvish", "powershell"] {
        assert!(bib.ok(&["completions", shell]).contains("dataset"), "{shell}");
    }
}
