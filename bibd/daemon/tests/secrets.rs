//! A whole start and stop: nothing of what is sealed ever stands in a log, an answer or an argument.
#![allow(clippy::unwrap_used)]

use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use bib_identity::{NodeKey, SealedDir};
use secrecy::ExposeSecret as _;

#[test]
fn no_secret_appears_in_any_log_or_output_and_a_signal_stops_cleanly() {
    use std::os::unix::fs::PermissionsExt as _;
    let dir = tempfile::tempdir().unwrap();
    // PostgreSQL's own user passes through when the test runs as root.
    std::fs::set_permissions(dir.path(), std::fs::Permissions::from_mode(0o711)).unwrap();
    let data = dir.path().join("data");
    let (out, log) = (dir.path().join("out"), dir.path().join("log"));
    let mut daemon = Command::new(env!("CARGO_BIN_EXE_bibd"))
        .arg("--config-dir")
        .arg(dir.path().join("config"))
        .arg("--data-dir")
        .arg(&data)
        .args(["--listen", "127.0.0.1:0", "run"])
        .env("BIBD__LOG__LEVEL", "trace")
        .env("BIBD__DATABASE__PROVISIONER", "process")
        .stdout(std::fs::File::create(&out).unwrap())
        .stderr(std::fs::File::create(&log).unwrap())
        .stdin(Stdio::null())
        .spawn()
        .unwrap();
    let deadline = Instant::now() + Duration::from_secs(60);
    while !data.join("ready.json").exists() {
        let text = || std::fs::read_to_string(&log).unwrap();
        assert!(daemon.try_wait().unwrap().is_none(), "{}", text());
        assert!(Instant::now() < deadline, "{}", text());
        std::thread::sleep(Duration::from_millis(20));
    }
    let pid = rustix::process::Pid::from_child(&daemon);
    rustix::process::kill_process(pid, rustix::process::Signal::TERM).unwrap();
    assert_eq!(daemon.wait().unwrap().code(), Some(0));
    assert!(!data.join("ready.json").exists() && !data.join("run/bibd.sock").exists());

    let key = NodeKey::load(&data.join("identity/node_key")).unwrap();
    let sealed = SealedDir::open(&data.join("secrets"), &key, Vec::new()).unwrap();
    let database = sealed.read("db").unwrap();
    let document: serde_json::Value = serde_json::from_slice(database.expose_secret()).unwrap();
    let mut passwords = vec![document["admin"].as_str().unwrap().to_owned()];
    passwords
        .extend(document["roles"].as_object().unwrap().values().map(|r| r["password"].as_str().unwrap().to_owned()));
    assert!(passwords.len() == 10 && passwords.iter().all(|password| password.len() == 64));

    let mut texts = vec![std::fs::read_to_string(&log).unwrap(), std::fs::read_to_string(&out).unwrap()];
    for entry in std::fs::read_dir(data.join("postgres/log")).unwrap().flatten() {
        texts.push(String::from_utf8_lossy(&std::fs::read(entry.path()).unwrap()).into_owned());
    }
    assert!(texts.len() >= 3 && texts[0].contains("bibd serves") && texts[0].contains("has stopped cleanly"));
    let node_key = std::fs::read_to_string(data.join("identity/node_key")).unwrap();
    passwords.extend(node_key.lines().filter(|line| !line.starts_with("---")).map(str::to_owned));
    for text in &texts {
        assert!(passwords.iter().all(|secret| !text.contains(secret.as_str())), "a secret stands in a log");
    }
}
