//! `bibd kubernetes manifests`, run as a person would: what `deploy/kubernetes` shows is what it prints.
#![allow(clippy::unwrap_used)]

use std::path::Path;
use std::process::{Command, Output};

use expect_test::{ExpectFile, expect_file};
use serde_json::Value;

fn run(directory: &Path, arguments: &[&str]) -> Output {
    bibd(directory, "manifests", arguments).output().unwrap()
}

fn bibd(directory: &Path, verb: &str, arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_bibd"));
    command.args(["--config-dir", directory.to_str().unwrap(), "kubernetes", verb]).args(arguments);
    command.env_clear().env("HOME", directory);
    command
}

fn printed(directory: &Path, arguments: &[&str]) -> String {
    let output = run(directory, arguments);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

#[test]
fn the_deployed_files_are_what_the_command_prints() {
    let empty = tempfile::tempdir().unwrap();
    let cases: [(&[&str], ExpectFile); 4] = [
        (&["--part", "around"], expect_file!["../../../deploy/kubernetes/bibd.yaml"]),
        (&["--part", "database"], expect_file!["../../../deploy/kubernetes/database.yaml"]),
        (&["--part", "around", "--mode", "operator"], expect_file!["../../../deploy/kubernetes/bibd-operator.yaml"]),
        (
            &["--part", "database", "--mode", "operator"],
            expect_file!["../../../deploy/kubernetes/database-operator.yaml"],
        ),
    ];
    for (arguments, file) in cases {
        file.assert_eq(&printed(empty.path(), arguments));
    }
    // All is both, in the order in which they are applied.
    let both = printed(empty.path(), &["--part", "around"]) + &printed(empty.path(), &["--part", "database"]);
    assert_eq!(printed(empty.path(), &[]), both);
}

#[test]
fn the_configuration_decides_and_reaches_the_example() {
    let home = tempfile::tempdir().unwrap();
    let text = "database:\n  kubernetes:\n    name: records\n    storage: 5GiB\n    node_selector: [disk=ssd]\n    \
                tolerations: ['only=db:NoSchedule']\n    outside: [192.0.2.0/24]\n  slow_statement: 7s\n";
    std::fs::write(home.path().join("config.yaml"), text).unwrap();
    let list: Value =
        serde_json::from_str(&printed(home.path(), &["--namespace", "archive", "-o", "json", "--bibd-image", "b:2"]))
            .unwrap();
    let items = list["items"].as_array().unwrap();
    let find = |kind: &str, name: &str| {
        let found = items.iter().find(|one| one["kind"] == kind && one["metadata"]["name"] == name);
        found.unwrap_or_else(|| panic!("no {kind} {name}"))
    };
    let server = &find("StatefulSet", "records")["spec"];
    assert_eq!(server["volumeClaimTemplates"][0]["spec"]["resources"]["requests"]["storage"], "5Gi");
    assert_eq!(server["template"]["spec"]["nodeSelector"]["disk"], "ssd");
    assert_eq!(server["template"]["spec"]["tolerations"][0]["effect"], "NoSchedule");
    let files = &find("ConfigMap", "records")["data"];
    assert!(files["postgresql.conf"].as_str().unwrap().contains("log_min_duration_statement = '7s'"));
    assert_eq!(find("Service", "records-outside")["spec"]["type"], "NodePort");
    assert_eq!(find("ConfigMap", "bibd")["data"]["config.yaml"], text);
    assert_eq!(find("StatefulSet", "bibd")["spec"]["template"]["spec"]["containers"][0]["image"], "b:2");
    let elsewhere = items.iter().filter(|one| one["kind"] != "Namespace");
    assert!(elsewhere.clone().count() > 10);
    assert!(elsewhere.clone().all(|one| one["metadata"]["namespace"] == "archive"));
    // Keys are made by bibd and shown nowhere.
    assert!(find("Secret", "records")["data"].is_null());
}

#[test]
fn what_kubernetes_would_refuse_is_refused_with_the_place() {
    let home = tempfile::tempdir().unwrap();
    std::fs::write(home.path().join("config.yaml"), "database:\n  kubernetes:\n    major: 9\n").unwrap();
    let output = run(home.path(), &["--namespace", "Not_A_Name"]);
    assert_eq!(output.status.code(), Some(2));
    let said = String::from_utf8(output.stderr).unwrap();
    for part in
        ["flag: database.kubernetes.namespace: must be", ":3: database.kubernetes.major: must be 15 to 18", "hint:"]
    {
        assert!(said.contains(part), "{said}");
    }
    assert!(output.stdout.is_empty());
}

#[test]
fn without_a_cluster_that_is_said_with_a_hint() {
    let home = tempfile::tempdir().unwrap();
    let check = |kubeconfig: &Path| {
        let output = bibd(home.path(), "check", &[]).env("KUBECONFIG", kubeconfig).output().unwrap();
        assert_eq!(output.status.code(), Some(1));
        assert!(output.stdout.is_empty());
        String::from_utf8(output.stderr).unwrap()
    };
    let said = check(&home.path().join("none"));
    assert!(said.contains("no Kubernetes: ") && said.contains("hint: set KUBECONFIG"), "{said}");

    // A port that was just given back: nobody listens there.
    let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let kubeconfig = home.path().join("kubeconfig");
    let text = format!(
        "apiVersion: v1\nkind: Config\ncurrent-context: c\nclusters:\n- name: c\n  cluster:\n    server: \
         http://127.0.0.1:{port}\nusers:\n- name: u\n  user: {{}}\ncontexts:\n- name: c\n  context: {{cluster: c, user: u}}\n"
    );
    std::fs::write(&kubeconfig, text).unwrap();
    let said = check(&kubeconfig);
    assert!(said.contains("cannot be reached") && said.contains("hint: "), "{said}");
}
