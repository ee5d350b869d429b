//! The binary: one daemon to a data directory, and the exit codes.
#![allow(clippy::unwrap_used)]

use std::process::Command;

use bibd::clock::Entropy;
use bibd::data_dir::DataDir;

fn bibd(dir: &std::path::Path) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_bibd"));
    command.arg("--config-dir").arg(dir.join("config")).arg("--data-dir").arg(dir.join("data"));
    command.args(["--listen", "127.0.0.1:0"]).env("BIBD__DATABASE__PROVISIONER", "process");
    command
}

#[test]
fn a_second_daemon_exits_naming_the_pid_of_the_first() {
    let dir = tempfile::tempdir().unwrap();
    let held = DataDir::open(&dir.path().join("data"), false).unwrap();
    held.identity_or_new(&mut Entropy::seeded(1)).unwrap();
    let output = bibd(dir.path()).arg("run").output().unwrap();
    let text = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(3), "{text}");
    assert!(text.contains(&format!("pid {}", std::process::id())) && text.contains("BIB0401"), "{text}");
}

#[test]
fn a_wrong_configuration_exits_with_2_and_says_where() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::create_dir(dir.path().join("config")).unwrap();
    std::fs::write(dir.path().join("config/config.yaml"), "log:\n  levle: info\n").unwrap();
    let output = bibd(dir.path()).args(["config", "check"]).output().unwrap();
    let text = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(2), "{text}");
    assert!(text.contains("config.yaml:2: log.levle") && text.contains("did you mean `log.level`?"), "{text}");
}

#[test]
fn an_empty_key_file_is_refused_and_not_replaced() {
    let dir = tempfile::tempdir().unwrap();
    {
        let data = DataDir::open(&dir.path().join("data"), false).unwrap();
        data.identity_or_new(&mut Entropy::seeded(1)).unwrap();
    }
    let key = dir.path().join("data/identity/node_key");
    std::fs::write(&key, "").unwrap();
    let output = bibd(dir.path()).arg("run").output().unwrap();
    let text = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(6), "{text}");
    assert!(text.contains("BIB0404") && text.contains("hint:"), "{text}");
    assert_eq!(std::fs::read(&key).unwrap(), b"");
}

#[test]
fn a_provisioner_that_is_gone_exits_with_5_and_makes_no_second_database() {
    for (made, other, variable, missing) in [
        ("container", "process", "BIBD__DATABASE__CONTAINER__SOCKET", "/nonexistent/engine.sock"),
        ("process", "container", "BIBD__DATABASE__BIN_DIR", "/nonexistent/bin"),
    ] {
        let dir = tempfile::tempdir().unwrap();
        let home = dir.path().join("data/postgres");
        let run = |wanted: &str| {
            let mut command = bibd(dir.path());
            command.arg("run").env(variable, missing).env("BIBD__DATABASE__PROVISIONER", wanted);
            let output = command.output().unwrap();
            (output.status.code(), String::from_utf8(output.stderr).unwrap())
        };
        // Before there is a database it is only said.
        let (code, text) = run(made);
        assert!(code == Some(5) && text.contains("BIB0405") && !home.exists(), "{text}");
        std::fs::create_dir(&home).unwrap();
        let record =
            format!("{{\"choice\":\"{made}\",\"major\":15,\"state\":\"ready\",\"system_identifier\":\"7\"}}\n");
        let path = home.join("PROVISIONER");
        std::fs::write(&path, &record).unwrap();
        for (wanted, sentence) in [("auto", ""), (other, "is run by the provisioner")] {
            let (code, text) = run(wanted);
            assert_eq!(code, Some(5), "{made}, {wanted}: {text}");
            assert!(text.contains("BIB0405") && text.contains(sentence) && text.contains("hint:"), "{text}");
            let names: Vec<_> = std::fs::read_dir(&home).unwrap().map(|entry| entry.unwrap().file_name()).collect();
            assert_eq!(names, ["PROVISIONER"], "{made}, {wanted}");
            assert_eq!(std::fs::read_to_string(&path).unwrap(), record);
        }
    }
}
