//! The Pod Security Standard `restricted`, as published with Kubernetes 1.34: every rule of `baseline` and its own. What
//! an admission controller would say of a pod; the rules' names are the standard's.

use serde_json::{Value, json};

/// Capabilities that `baseline` lets a container add; `restricted` the last alone.
const ADDABLE: &str = "NET_BIND_SERVICE";
const SYSCTLS: [&str; 9] = [
    "kernel.shm_rmid_forced",
    "net.ipv4.ip_local_port_range",
    "net.ipv4.ip_unprivileged_port_start",
    "net.ipv4.tcp_syncookies",
    "net.ipv4.ping_group_range",
    "net.ipv4.ip_local_reserved_ports",
    "net.ipv4.tcp_keepalive_time",
    "net.ipv4.tcp_fin_timeout",
    "net.ipv4.tcp_keepalive_intvl",
];
const VOLUMES: [&str; 8] =
    ["configMap", "csi", "downwardAPI", "emptyDir", "ephemeral", "persistentVolumeClaim", "projected", "secret"];
const SELINUX_TYPES: [&str; 5] = ["", "container_t", "container_init_t", "container_kvm_t", "container_engine_t"];

/// What a pod (`metadata` and `spec`, as in a template) breaks: `rule: where`. Nothing when it is admitted.
pub(crate) fn violations(pod: &Value) -> Vec<String> {
    let mut found = Vec::new();
    let mut broken = |rule: &str, place: &str, is: bool| {
        if is {
            found.push(format!("{rule}: {place}"));
        }
    };
    let (spec, own) = (&pod["spec"], &pod["spec"]["securityContext"]);
    for name in ["hostNetwork", "hostPID", "hostIPC"] {
        broken("Host Namespaces", name, spec[name] == json!(true));
    }
    for volume in list(&spec["volumes"]) {
        let kind = volume.as_object().unwrap().keys().find(|key| *key != "name").map_or("", String::as_str);
        broken("HostPath Volumes", kind, kind == "hostPath");
        broken("Volume Types", kind, !VOLUMES.contains(&kind));
    }
    for sysctl in list(&own["sysctls"]) {
        let name = sysctl["name"].as_str().unwrap_or_default();
        broken("Sysctls", name, !SYSCTLS.contains(&name));
    }
    for (key, value) in pod["metadata"]["annotations"].as_object().into_iter().flatten() {
        let profile = value.as_str().unwrap_or_default();
        let fine = profile == "runtime/default" || profile.starts_with("localhost/");
        broken("AppArmor", key, key.starts_with("container.apparmor.security.beta.kubernetes.io/") && !fine);
    }
    context(own, "pod", &mut broken);
    for kind in ["initContainers", "containers", "ephemeralContainers"] {
        for container in list(&spec[kind]) {
            let name = container["name"].as_str().unwrap_or_default();
            let security = &container["securityContext"];
            context(security, name, &mut broken);
            broken("Privileged Containers", name, security["privileged"] == json!(true));
            broken("Privilege Escalation", name, security["allowPrivilegeEscalation"] != json!(false));
            let dropped = list(&security["capabilities"]["drop"]);
            broken("Capabilities", name, !dropped.contains(&json!("ALL")));
            for added in list(&security["capabilities"]["add"]) {
                broken("Capabilities", name, added != json!(ADDABLE));
            }
            let proc = security["procMount"].as_str().unwrap_or("Default");
            broken("/proc Mount Type", name, proc != "Default");
            for port in list(&container["ports"]) {
                broken("Host Ports", name, port["hostPort"].as_i64().unwrap_or(0) != 0);
            }
            for way in ["livenessProbe", "readinessProbe", "startupProbe"] {
                broken("Host Probes / Lifecycle Hooks", way, names_host(&container[way]));
            }
            for way in ["preStop", "postStart"] {
                broken("Host Probes / Lifecycle Hooks", way, names_host(&container["lifecycle"][way]));
            }
            let non_root = security.get("runAsNonRoot").or(own.get("runAsNonRoot"));
            broken("Running as Non-root", name, non_root != Some(&json!(true)));
            let seccomp = security.get("seccompProfile").or(own.get("seccompProfile"));
            let seccomp = seccomp.map_or("", |profile| profile["type"].as_str().unwrap_or_default());
            broken("Seccomp", name, !["RuntimeDefault", "Localhost"].contains(&seccomp));
        }
    }
    found
}

/// What holds of the pod's own context and of each container's.
fn context(security: &Value, name: &str, broken: &mut impl FnMut(&str, &str, bool)) {
    broken("HostProcess", name, security["windowsOptions"]["hostProcess"] == json!(true));
    broken("Running as Non-root user", name, security["runAsUser"] == json!(0));
    broken("Running as Non-root", name, security["runAsNonRoot"] == json!(false));
    let seccomp = security["seccompProfile"]["type"].as_str();
    broken("Seccomp", name, seccomp.is_some_and(|kind| !["RuntimeDefault", "Localhost"].contains(&kind)));
    let armor = security["appArmorProfile"]["type"].as_str();
    broken("AppArmor", name, armor.is_some_and(|kind| !["RuntimeDefault", "Localhost"].contains(&kind)));
    let selinux = &security["seLinuxOptions"];
    let text = |key: &str| selinux[key].as_str().unwrap_or_default();
    broken(
        "SELinux",
        name,
        !SELINUX_TYPES.contains(&text("type")) || !text("user").is_empty() || !text("role").is_empty(),
    );
}

fn names_host(handler: &Value) -> bool {
    ["httpGet", "tcpSocket"].iter().any(|kind| handler[kind]["host"].as_str().is_some_and(|host| !host.is_empty()))
}

fn list(value: &Value) -> Vec<Value> {
    value.as_array().cloned().unwrap_or_default()
}

fn admitted() -> Value {
    json!({
        "metadata": { "annotations": {} },
        "spec": {
            "securityContext": { "runAsNonRoot": true, "seccompProfile": { "type": "RuntimeDefault" } },
            "volumes": [{ "name": "v", "emptyDir": {} }],
            "containers": [{
                "name": "c",
                "ports": [{ "containerPort": 80 }],
                "livenessProbe": { "tcpSocket": { "port": 80 } },
                "securityContext": { "allowPrivilegeEscalation": false, "capabilities": { "drop": ["ALL"] } },
            }],
        },
    })
}

#[test]
fn each_rule_is_found_broken_once() {
    assert_eq!(violations(&admitted()), Vec::<String>::new());
    let container = "/spec/containers/0";
    let cases = [
        ("/spec", "hostNetwork", json!(true), "Host Namespaces"),
        ("/spec", "hostPID", json!(true), "Host Namespaces"),
        ("/spec", "hostIPC", json!(true), "Host Namespaces"),
        ("/spec/volumes/0", "hostPath", json!({ "path": "/" }), "HostPath Volumes"),
        ("/spec/volumes/0", "nfs", json!({ "path": "/", "server": "s" }), "Volume Types"),
        ("/spec/securityContext", "sysctls", json!([{ "name": "kernel.msgmax", "value": "1" }]), "Sysctls"),
        ("/spec/securityContext", "runAsNonRoot", json!(false), "Running as Non-root"),
        ("/spec/securityContext", "runAsUser", json!(0), "Running as Non-root user"),
        ("/spec/securityContext", "seccompProfile", json!({ "type": "Unconfined" }), "Seccomp"),
        ("/spec/securityContext", "seccompProfile", json!({}), "Seccomp"),
        ("/spec/securityContext", "windowsOptions", json!({ "hostProcess": true }), "HostProcess"),
        ("/spec/securityContext", "appArmorProfile", json!({ "type": "Unconfined" }), "AppArmor"),
        ("/spec/securityContext", "seLinuxOptions", json!({ "type": "spc_t" }), "SELinux"),
        ("/spec/securityContext", "seLinuxOptions", json!({ "user": "system_u" }), "SELinux"),
        ("/spec/securityContext", "seLinuxOptions", json!({ "role": "system_r" }), "SELinux"),
        ("/metadata/annotations", "container.apparmor.security.beta.kubernetes.io/c", json!("unconfined"), "AppArmor"),
        (container, "ports", json!([{ "containerPort": 80, "hostPort": 80 }]), "Host Ports"),
        (container, "livenessProbe", json!({ "httpGet": { "host": "h" } }), "Host Probes / Lifecycle Hooks"),
        (
            container,
            "lifecycle",
            json!({ "preStop": { "tcpSocket": { "host": "h" } } }),
            "Host Probes / Lifecycle Hooks",
        ),
        ("/spec/containers/0/securityContext", "privileged", json!(true), "Privileged Containers"),
        ("/spec/containers/0/securityContext", "allowPrivilegeEscalation", json!(true), "Privilege Escalation"),
        ("/spec/containers/0/securityContext", "allowPrivilegeEscalation", Value::Null, "Privilege Escalation"),
        ("/spec/containers/0/securityContext", "capabilities", json!({ "drop": ["NET_RAW"] }), "Capabilities"),
        (
            "/spec/containers/0/securityContext",
            "capabilities",
            json!({ "drop": ["ALL"], "add": ["SYS_ADMIN"] }),
            "Capabilities",
        ),
        ("/spec/containers/0/securityContext", "procMount", json!("Unmasked"), "/proc Mount Type"),
        ("/spec/containers/0/securityContext", "runAsUser", json!(0), "Running as Non-root user"),
        ("/spec/containers/0/securityContext", "runAsNonRoot", json!(false), "Running as Non-root"),
        ("/spec/containers/0/securityContext", "seccompProfile", json!({ "type": "Unconfined" }), "Seccomp"),
    ];
    for (place, key, value, rule) in cases {
        let mut pod = admitted();
        let target = pod.pointer_mut(place).unwrap().as_object_mut().unwrap();
        if place == "/spec/volumes/0" {
            target.remove("emptyDir");
        }
        target.insert(key.to_owned(), value);
        let found = violations(&pod);
        assert!(found.iter().any(|line| line.starts_with(&format!("{rule}: "))), "{place}/{key}: {found:?}");
    }
    // A container that is not among the first is looked at as well.
    let mut pod = admitted();
    pod["spec"]["initContainers"] = json!([{ "name": "i" }]);
    assert!(violations(&pod).contains(&"Privilege Escalation: i".to_owned()));
}
