//! The objects: golden files, what admission says of every pod, and what must never stand in them.

use std::collections::{BTreeMap, BTreeSet};

use bibd_postgres::kubernetes::manifests::{KEPT_BY_OPERATOR, around, database, json, yaml};
use bibd_postgres::kubernetes::names::VERIFIER;
use bibd_postgres::kubernetes::{Content, Example, KubernetesSettings, Manifest, Mode, PodLimits, Toleration};
use bibd_postgres::{Limits, Wal};
use expect_test::expect_file;
use serde_json::Value;

use crate::restricted::violations;

/// Nothing as by default.
fn everything(mode: Mode) -> KubernetesSettings {
    KubernetesSettings {
        name: "records".to_owned(),
        node: Some("aB3xYz12".to_owned()),
        namespace: "archive".to_owned(),
        mode,
        image: "registry.example:5000/postgres:17".to_owned(),
        digest: Some(format!("sha256:{}", "a1".repeat(32))),
        major: 17,
        pull_secrets: vec!["registry".to_owned()],
        uid: 26,
        storage_class: Some("fast".to_owned()),
        storage_bytes: (100 << 30) + 1,
        instances: 2,
        operator_namespace: "operators".to_owned(),
        node_selector: BTreeMap::from([("disk".to_owned(), "nvme".to_owned())]),
        tolerations: vec![
            Toleration { key: Some("only".to_owned()), value: Some("bib".to_owned()), effect: None },
            Toleration { key: None, value: None, effect: Some("NoExecute".to_owned()) },
        ],
        priority_class: Some("data".to_owned()),
        outside: vec!["192.0.2.0/24".to_owned()],
        outside_host: Some("db.example".to_owned()),
        clients: BTreeMap::from([("app".to_owned(), "daemon".to_owned())]),
        service_account: "daemon".to_owned(),
        limits: PodLimits {
            memory_bytes: 3 << 29,
            cpu_request: 500,
            cpu_limit: 2000,
            shm_bytes: 64 << 20,
            tmpfs_bytes: 1000,
        },
        stop_deadline: std::time::Duration::from_secs(90),
    }
}

fn content(settings: &KubernetesSettings) -> Content {
    Content::new(&settings.config(&Limits::default(), &Wal::Recycle))
}

fn secret_content(settings: &KubernetesSettings) -> Content {
    let mut content = content(settings);
    let names = ["ca.crt", "server.crt", "server.key", "replication.crt", "replication.key", VERIFIER];
    content.secrets = names.map(|name| (name.to_owned(), format!("SECRET {name}").into_bytes())).into();
    content
}

fn find<'a>(all: &'a [Manifest], kind: &str) -> &'a Value {
    all.iter().find(|one| one.kind() == kind).unwrap_or_else(|| panic!("there is no {kind}")).value()
}

#[test]
fn the_objects_are_these() {
    let settings = everything(Mode::StatefulSet);
    let mut content = secret_content(&settings);
    content.cluster = Some(7_300_000_000_000_000_001);
    let all = database(&settings, &content);
    expect_file!["../../golden/kubernetes/statefulset.yaml"].assert_eq(&yaml(&all));
    let settings = everything(Mode::Operator);
    let mut content = secret_content(&settings);
    content.running = false;
    let all = database(&settings, &content);
    expect_file!["../../golden/kubernetes/operator.yaml"].assert_eq(&yaml(&all));
    for (mode, file) in [
        (Mode::StatefulSet, expect_file!["../../golden/kubernetes/around-statefulset.yaml"]),
        (Mode::Operator, expect_file!["../../golden/kubernetes/around-operator.yaml"]),
    ] {
        let example = Example { image: "registry.example:5000/bibd:1".to_owned(), storage_bytes: 1 << 40 };
        file.assert_eq(&yaml(&around(&everything(mode), &example, "log:\n  level: debug\n")));
    }
}

#[test]
fn both_notations_say_the_same() {
    let settings = KubernetesSettings::default();
    let all = database(&settings, &content(&settings));
    let parsed: Vec<Value> = serde_yaml_ng::Deserializer::from_str(&yaml(&all))
        .map(|document| serde::Deserialize::deserialize(document).unwrap())
        .collect();
    let list: Value = serde_json::from_str(&json(&all)).unwrap();
    assert_eq!(list["items"].as_array().unwrap(), &parsed);
    // `kubectl` reads YAML 1.1, where these words are no text.
    for word in ["on", "off", "yes", "no", "y", "n"] {
        let ends = format!(": {word}");
        assert!(!yaml(&all).lines().any(|line| line.ends_with(&ends)), "a bare {word}");
    }
    let operator = KubernetesSettings { mode: Mode::Operator, ..settings };
    let text = yaml(&database(&operator, &content(&operator)));
    assert!(!text.lines().any(|line| line.ends_with(": on") || line.ends_with(": off")), "a bare on or off");
}

#[test]
fn every_pod_is_admitted_to_a_restricted_namespace() {
    for settings in [KubernetesSettings::default(), everything(Mode::StatefulSet)] {
        let server = database(&settings, &secret_content(&settings));
        let own = around(&settings, &Example::default(), "");
        for all in [&server, &own] {
            let template = &find(all, "StatefulSet")["spec"]["template"];
            assert_eq!(violations(template), Vec::<String>::new());
            let containers = template["spec"]["containers"].as_array().unwrap();
            let init = template["spec"]["initContainers"].as_array().into_iter().flatten();
            for container in containers.iter().chain(init) {
                assert_eq!(container["securityContext"]["readOnlyRootFilesystem"], true);
                assert!(container["resources"]["limits"]["memory"].is_string());
            }
        }
        let namespace = find(&own, "Namespace");
        assert_eq!(namespace["metadata"]["labels"]["pod-security.kubernetes.io/enforce"], "restricted");
        let pod = &find(&server, "StatefulSet")["spec"]["template"]["spec"];
        assert_eq!(pod["automountServiceAccountToken"], false);
        assert_eq!(find(&server, "ServiceAccount")["automountServiceAccountToken"], false);
        assert_eq!(pod["securityContext"]["fsGroup"], settings.uid);
    }
}

#[test]
fn secrets_are_files_and_stand_in_secrets_alone() {
    for mode in [Mode::StatefulSet, Mode::Operator] {
        let settings = everything(mode);
        let all = database(&settings, &secret_content(&settings));
        // Base64 of "SECRET ".
        let holders: BTreeSet<&str> =
            all.iter().filter(|one| one.value().to_string().contains("U0VDUkVUI")).map(Manifest::kind).collect();
        assert_eq!(holders, BTreeSet::from(["Secret"]));
        assert!(all.iter().all(|one| !one.value().to_string().contains("SECRET")));
    }
    let settings = everything(Mode::StatefulSet);
    let all = database(&settings, &secret_content(&settings));
    let pod = &find(&all, "StatefulSet")["spec"]["template"]["spec"];
    let volumes = pod["volumes"].as_array().unwrap();
    let secrets: Vec<&Value> = volumes.iter().filter(|volume| volume["secret"].is_object()).collect();
    assert_eq!(secrets.len(), 2);
    for volume in secrets {
        assert_eq!(volume["secret"]["defaultMode"], 0o400);
        for item in volume["secret"]["items"].as_array().unwrap() {
            assert_eq!(item["mode"], 0o400);
        }
    }
    for container in pod["containers"].as_array().unwrap().iter().chain(pod["initContainers"].as_array().unwrap()) {
        assert!(container["envFrom"].is_null());
        for variable in container["env"].as_array().unwrap() {
            assert!(variable["valueFrom"].is_null() && ["LC_ALL", "TZ"].contains(&variable["name"].as_str().unwrap()));
        }
    }
    // The superuser's verifier is no business of the server.
    assert!(!pod["containers"].to_string().contains("/etc/bibd/first"));
}

#[test]
fn nobody_but_bibd_is_let_in_and_nothing_out() {
    let settings = KubernetesSettings::default();
    let all = database(&settings, &content(&settings));
    let policy = &find(&all, "NetworkPolicy")["spec"];
    assert_eq!(policy["policyTypes"], serde_json::json!(["Ingress", "Egress"]));
    assert_eq!(policy["egress"], serde_json::json!([]));
    assert_eq!(
        policy["ingress"],
        serde_json::json!([{
            "from": [{ "podSelector": { "matchLabels": { "app.kubernetes.io/name": "bibd" } } }],
            "ports": [{ "protocol": "TCP", "port": 5432 }],
        }])
    );
    // It stands before the server does, and is about that pod.
    assert_eq!(all[0].kind(), "NetworkPolicy");
    let labels = &find(&all, "StatefulSet")["spec"]["template"]["metadata"]["labels"];
    for (name, value) in policy["podSelector"]["matchLabels"].as_object().unwrap() {
        assert_eq!(&labels[name], value);
    }
    // Without address ranges there is no way in from outside.
    assert!(all.iter().all(|one| one.value()["spec"]["type"] != "NodePort"));
}

#[test]
fn bibd_may_do_what_it_does_and_no_more() {
    for mode in [Mode::StatefulSet, Mode::Operator] {
        let settings = everything(mode);
        let own = around(&settings, &Example::default(), "");
        let rules = find(&own, "Role")["rules"].as_array().unwrap().clone();
        let may = |resource: &str, group: &str, verb: &str, name: Option<&str>| {
            rules.iter().any(|rule| {
                let has = |key: &str, word: &str| rule[key].as_array().unwrap().contains(&word.into());
                let named = match (rule["resourceNames"].as_array(), name) {
                    (None, _) => true,
                    (Some(names), Some(name)) => names.contains(&name.into()),
                    (Some(_), None) => false,
                };
                has("apiGroups", group) && has("resources", resource) && has("verbs", verb) && named
            })
        };
        for object in database(&settings, &content(&settings)) {
            let group = object.api_version().rsplit_once('/').map_or("", |(group, _)| group);
            let resource = match object.kind() {
                "NetworkPolicy" => "networkpolicies".to_owned(),
                kind => format!("{}s", kind.to_ascii_lowercase()),
            };
            assert!(may(&resource, group, "create", None), "create {resource}");
            for verb in ["get", "patch", "delete"] {
                assert!(may(&resource, group, verb, Some(object.name())), "{verb} {resource}/{}", object.name());
                assert!(!may(&resource, group, verb, Some("other")), "{verb} any of {resource}");
            }
        }
        for rule in &rules {
            assert!(!rule.to_string().contains('*'), "{rule}");
            let create = rule["verbs"] == serde_json::json!(["create"]);
            let reads = ["list", "get", "watch"];
            let only_reads =
                rule["verbs"].as_array().unwrap().iter().all(|verb| reads.contains(&verb.as_str().unwrap()));
            assert!(rule["resourceNames"].is_array() || create || only_reads, "{rule}");
            let secrets = rule["resources"].as_array().unwrap().contains(&"secrets".into());
            assert!(!secrets || create || rule["resourceNames"].is_array(), "{rule}");
        }
        assert!(!may("secrets", "", "list", Some("other")) && !may("pods/exec", "", "create", None));
        // Pods and volumes that the operator names are looked at, and ended by it alone.
        for (resource, verbs) in [("pods", ["get", "list"]), ("persistentvolumeclaims", ["list", "list"])] {
            let any = verbs.iter().all(|verb| may(resource, "", verb, Some("any")));
            assert_eq!(any, mode == Mode::Operator, "{resource}");
            assert!(!may(resource, "", "delete", Some("any")), "{resource}");
        }
    }
}

#[test]
fn the_operator_is_given_what_it_takes() {
    for major in 15..=18 {
        let settings = KubernetesSettings { mode: Mode::Operator, major, ..KubernetesSettings::default() };
        let all = database(&settings, &content(&settings));
        let spec = &find(&all, "Cluster")["spec"];
        let given = spec["postgresql"]["parameters"].as_object().unwrap();
        assert!(given.keys().all(|name| !KEPT_BY_OPERATOR.contains(&name.as_str())));
        assert!(given.values().all(Value::is_string));
        for name in ["password_encryption", "fsync", "ssl_min_protocol_version", "log_statement", "row_security"] {
            assert!(given.contains_key(name), "{name}");
        }
        let hba: Vec<&str> =
            spec["postgresql"]["pg_hba"].as_array().unwrap().iter().map(|l| l.as_str().unwrap()).collect();
        let (logins, rejects): (Vec<&str>, Vec<&str>) =
            hba.iter().copied().partition(|line| line.starts_with("hostssl"));
        assert!(!logins.is_empty() && logins.iter().all(|line| line.ends_with("scram-sha-256 clientcert=verify-full")));
        assert_eq!(rejects, ["host all all all reject", "host replication all all reject"]);
        // Every Secret that it is told of is there.
        let secrets: BTreeSet<&str> = all.iter().filter(|one| one.kind() == "Secret").map(Manifest::name).collect();
        let certificates = spec["certificates"].as_object().unwrap();
        let told =
            certificates.iter().filter(|(key, _)| key.ends_with("Secret")).map(|(_, name)| name.as_str().unwrap());
        let role = spec["managed"]["roles"][0]["passwordSecret"]["name"].as_str().unwrap();
        assert_eq!(told.chain([role]).collect::<BTreeSet<_>>(), secrets);
        // Names beside a certificate of ours it refuses; the owner, which it makes with a login, it closes.
        assert!(certificates.keys().all(|key| key.ends_with("Secret")), "{certificates:?}");
        let owner = &spec["managed"]["roles"][1];
        assert_eq!(
            (&owner["name"], &owner["login"], &owner["disablePassword"]),
            (&"bibd_owner".into(), &false.into(), &true.into())
        );
    }
}

#[test]
fn what_changes_the_server_changes_the_pod_and_nothing_else_does() {
    let settings = KubernetesSettings::default();
    let fingerprint = |settings: &KubernetesSettings, content: &Content| {
        let all = database(settings, content);
        find(&all, "StatefulSet")["spec"]["template"]["metadata"]["annotations"]["bib/fingerprint"].clone()
    };
    let usual = content(&settings);
    let first = fingerprint(&settings, &usual);
    let mut stopped = secret_content(&settings);
    (stopped.cluster, stopped.running) = (Some(5), false);
    assert_eq!(fingerprint(&settings, &stopped), first);
    let image = KubernetesSettings { image: "other".to_owned(), ..settings.clone() };
    assert_ne!(fingerprint(&image, &content(&image)), first);
    let slow = Limits { slow_statement_ms: 5, ..Limits::default() };
    assert_ne!(fingerprint(&settings, &Content::new(&settings.config(&slow, &Wal::Recycle))), first);
}
