//! What the API says of the pod's walls and of what it was made from, for the checklist: items of C.1 to C.5.
//!
//! Nobody enters the pod: bibd's role has no right to. So what only a look into the volume or at the process would tell is
//! not checked, and says so; the pod's script is what keeps it. What differs where an operator makes the pods is in
//! `operated`.

mod operated;

use std::net::SocketAddr;
use std::time::Duration;

use serde_json::{Value, json};
use tokio::net::TcpStream;

use super::KubernetesPostgres;
use crate::checklist::{Facts, Finding, Status, passwords_in};
use crate::config::AUTO_CONF;
use crate::error::Error;
use crate::kubernetes::manifests::{Manifest, database};
use crate::kubernetes::names::{CONTAINER, VERIFIER};
use crate::kubernetes::operations::Lines;
use crate::kubernetes::settings::Access;
use crate::secrets::DbSecrets;

/// How long a packet that the network lets through would take for its answer, many times over.
const PROBE_DEADLINE: Duration = Duration::from_secs(3);
/// A port that nobody listens on and the policy closes.
const CLOSED_PORT: u16 = 1;
const UNSEEN: &str =
    "not checked: nobody but the server enters its pod, whose script sets umask 077 and lets nobody else in";
const UNSEEN_PORTS: &str =
    "not checked: the sockets of a pod are to be seen from inside alone; its policy lets in one port";

/// The item of what is around the pod.
const CLOSED: (&str, &str) = ("C.5-56", "closed in the cluster");

/// What the network does with a packet that the policy forbids.
#[derive(Debug, PartialEq, Eq)]
enum Enforcement {
    /// Nothing comes back.
    Dropped,
    /// The pod's machine answers for a port that nobody may reach.
    Answered(String),
    /// bibd does not come from where the policy counts.
    Unknown(&'static str),
}

impl KubernetesPostgres {
    pub(super) async fn look_at_walls(&self) -> Result<Facts, Error> {
        if self.is_operated() {
            return self.look_at_operated_walls().await;
        }
        let record = self.record()?.ok_or(Error::NotProvisioned)?;
        let pod = serde_json::to_value(self.look().await?).unwrap_or_default();
        let live = self.live_objects(record.system_identifier).await?;
        let config = self.config();
        let files = live.iter().find(|(manifest, _)| manifest.kind() == "ConfigMap");
        let told = |name: &str| files.and_then(|(_, found)| found["data"][name].as_str().map(str::to_owned));
        // What `ALTER SYSTEM` writes lies in the volume; the pod empties it with each start.
        let files = config.files().into_iter().filter(|(name, _)| *name != AUTO_CONF);
        let differs = files.filter(|(name, text)| told(name).as_deref() != Some(text.as_str()));
        let config_differs = differs.map(|(name, _)| name.to_owned()).collect();
        let secret = live.iter().find(|(manifest, _)| manifest.kind() == "Secret").map(|(_, found)| found.clone());
        let mut findings = Findings::default();
        findings.unseen("C.1-7", "files for nobody else", UNSEEN);
        findings.unseen("C.1-8", "nothing strange in PGDATA", UNSEEN);
        findings.unseen("C.2-11", "no other TCP", UNSEEN_PORTS);
        let left = secret.unwrap_or_default()["data"].get(VERIFIER).is_some();
        let left = if left { vec![format!("{VERIFIER} is still in the Secret")] } else { Vec::new() };
        findings.none("C.1-9", "password file gone", left, "held a verifier only, and is removed");
        self.of_log(&self.pod(), &mut findings).await?;
        of_config(&pod, &mut findings);
        of_container(&pod, true, &mut findings);
        findings.none("C.5-54", "no secret outside", self.secrets_in(&pod)?, "nothing secret in the pod's object");
        self.of_cluster(&pod, &live, &mut findings).await;
        Ok(Facts::told(config, config_differs, open_certificates(&pod), findings.0))
    }

    /// What is applied, with what is there of it.
    async fn live_objects(&self, cluster: Option<u64>) -> Result<Vec<(Manifest, Value)>, Error> {
        let mut live = Vec::new();
        for manifest in database(&self.own.objects, &self.bare_content(cluster, true)) {
            let found = self.cluster().await?.find_like(&manifest).await?.unwrap_or_default();
            live.push((manifest, found));
        }
        Ok(live)
    }

    /// C.4-35.
    async fn of_log(&self, pod: &str, findings: &mut Findings) -> Result<(), Error> {
        let (item, title) = ("C.4-35", "no password in the log");
        match self.cluster().await?.log(self.namespace(), pod, CONTAINER, Lines::Many).await {
            Ok(lines) => {
                let hits = passwords_in(&lines.join("\n"));
                let found = if hits > 0 { vec![format!("the pod's log: {hits} times")] } else { Vec::new() };
                findings.none(item, title, found, "no PASSWORD '..' but verifiers");
            }
            Err(_) => findings.unseen(item, title, "not checked: the cluster does not show the pod's log"),
        }
        Ok(())
    }

    /// Passwords of ours that the pod's object holds, which everybody reads who may read pods.
    fn secrets_in(&self, pod: &Value) -> Result<Vec<String>, Error> {
        let secrets = DbSecrets::read(self.secrets.as_ref())?.ok_or(Error::SecretsMissing)?;
        let text = pod.to_string();
        let found = secrets.passwords().into_iter().filter(|password| {
            use secrecy::ExposeSecret as _;
            text.contains(password.expose_secret())
        });
        Ok(found.map(|_| "the pod's object holds a password".to_owned()).collect())
    }

    /// C.5-56: what is around the pod.
    async fn of_cluster(&self, pod: &Value, live: &[(Manifest, Value)], findings: &mut Findings) {
        let mut problems = Vec::new();
        for (wanted, found) in live {
            // What the Secret and the StatefulSet are is seen in the pod.
            let kinds = ["NetworkPolicy", "PodDisruptionBudget", "ServiceAccount"];
            let fields = ["spec", "automountServiceAccountToken"];
            let differs = fields.iter().any(|field| !holds(&found[*field], &wanted.value()[*field]));
            if kinds.contains(&wanted.kind()) && (found.is_null() || differs) {
                problems.push(format!("{} `{}` is not the generated one", wanted.kind(), wanted.name()));
            }
        }
        let spec = &pod["spec"];
        if spec["automountServiceAccountToken"] != false {
            problems.push("the pod has a token of its account".to_owned());
        }
        if spec["securityContext"]["fsGroup"] != json!(self.own.objects.uid) {
            problems.push(format!("fsGroup is {}", spec["securityContext"]["fsGroup"]));
        }
        problems.extend(open_certificates(pod));
        let expected = "default deny but for bibd to one port, no token, a budget, fsGroup, the key 0400";
        findings.none(CLOSED.0, CLOSED.1, problems, expected);
        self.of_network(pod, findings).await;
    }

    /// C.5-56: whether the network keeps the policy.
    async fn of_network(&self, pod: &Value, findings: &mut Findings) {
        let (item, title) = CLOSED;
        let (status, observed) = match self.enforcement(pod).await {
            Enforcement::Dropped => (Status::Pass, "the network drops what the policy forbids".to_owned()),
            Enforcement::Answered(how) => {
                (Status::Warn, format!("a port that the policy closes {how}: the network may not enforce policies"))
            }
            Enforcement::Unknown(why) => {
                (Status::Warn, format!("whether the network enforces the policy: not checked, {why}"))
            }
        };
        let expected = "the network drops what the policy forbids".to_owned();
        findings.0.push(Finding { item, title, status, observed, expected });
    }

    /// Whether the network keeps its policy: a port that it closes says nothing, not even that nobody listens.
    async fn enforcement(&self, pod: &Value) -> Enforcement {
        if !self.own.objects.outside.is_empty() {
            return Enforcement::Unknown("bibd is outside of the cluster");
        }
        let is_inside =
            matches!(self.own.access, Access::Given(_)) || std::env::var_os("KUBERNETES_SERVICE_HOST").is_some();
        let address = pod["status"]["podIP"].as_str().and_then(|text| text.parse().ok());
        match (is_inside, address) {
            (false, _) => Enforcement::Unknown("bibd is no pod"),
            (true, None) => Enforcement::Unknown("the pod has no address"),
            (true, Some(ip)) => probe(SocketAddr::new(ip, CLOSED_PORT)).await,
        }
    }
}

async fn probe(address: SocketAddr) -> Enforcement {
    match tokio::time::timeout(PROBE_DEADLINE, TcpStream::connect(address)).await {
        Err(_) => Enforcement::Dropped,
        Ok(Ok(_)) => Enforcement::Answered("takes connections".to_owned()),
        Ok(Err(error)) if error.kind() == std::io::ErrorKind::ConnectionRefused => {
            Enforcement::Answered("is refused by the pod itself".to_owned())
        }
        // Some networks say so instead of dropping it.
        Ok(Err(_)) => Enforcement::Dropped,
    }
}

#[derive(Default)]
struct Findings(Vec<Finding>);

impl Findings {
    fn none(&mut self, item: &'static str, title: &'static str, problems: Vec<String>, expected: &str) {
        let status = if problems.is_empty() { Status::Pass } else { Status::Fail };
        let observed = if problems.is_empty() { expected.to_owned() } else { problems.join("; ") };
        self.0.push(Finding { item, title, status, observed, expected: expected.to_owned() });
    }

    fn unseen(&mut self, item: &'static str, title: &'static str, reason: &'static str) {
        let status = Status::NotApplicable { reason };
        self.0.push(Finding { item, title, status, observed: String::new(), expected: String::new() });
    }
}

fn server(pod: &Value) -> &Value {
    let all = pod["spec"]["containers"].as_array().map(Vec::as_slice).unwrap_or_default();
    all.iter().find(|one| one["name"] == CONTAINER).unwrap_or(&Value::Null)
}

/// C.1-6: the files are the kubelet's, of a ConfigMap without secrets; what counts is that nobody in the pod writes them.
fn of_config(pod: &Value, findings: &mut Findings) {
    let mounts = server(pod)["volumeMounts"].as_array().cloned().unwrap_or_default();
    let open = |name: &str| mounts.iter().any(|mount| mount["name"] == name && mount["readOnly"] != true);
    let problems = ["config", "tls"].into_iter().filter(|name| open(name));
    let problems = problems.map(|name| format!("the volume `{name}` can be written")).collect();
    findings.none("C.1-6", "configuration private", problems, "mounted to be read, from objects of bibd's namespace");
}

/// What of the key others in the pod could open.
fn open_certificates(pod: &Value) -> Vec<String> {
    let volumes = pod["spec"]["volumes"].as_array().cloned().unwrap_or_default();
    let items = volumes.iter().filter_map(|volume| volume["secret"]["items"].as_array()).flatten();
    let open = items.filter(|item| item["mode"] != json!(0o400));
    open.map(|item| {
        format!("{} is {:04o}", item["path"].as_str().unwrap_or_default(), item["mode"].as_u64().unwrap_or_default())
    })
    .collect()
}

/// C.5-46 to 55: the pod as the cluster has it, which an admission of others may have changed. An operator's has no hook
/// before its end: its first process sees to that.
fn of_container(pod: &Value, has_hook: bool, findings: &mut Findings) {
    let (spec, one) = (&pod["spec"], server(pod));
    let (own, all) = (&one["securityContext"], &spec["securityContext"]);
    let mut check = |item, title, expected: &str, parts: &[(bool, String)]| {
        let problems = parts.iter().filter(|(good, _)| !good).map(|(_, problem)| problem.clone()).collect();
        findings.none(item, title, problems, expected);
    };
    let is = |name: &str, value: &Value| format!("{name} is {value}");
    let user = all["runAsUser"].as_u64().unwrap_or_default();
    check(
        "C.5-47",
        "not root",
        "runAsNonRoot and a user of its own",
        &[
            (all["runAsNonRoot"] == true || own["runAsNonRoot"] == true, is("runAsNonRoot", &all["runAsNonRoot"])),
            (user > 0 && own.get("runAsUser").is_none_or(|user| user != 0), is("runAsUser", &all["runAsUser"])),
        ],
    );
    let rights = &own["capabilities"];
    check(
        "C.5-48",
        "no capabilities",
        "drop ALL, add none",
        &[
            (rights["drop"] == json!(["ALL"]), is("drop", &rights["drop"])),
            (rights["add"].is_null(), is("add", &rights["add"])),
        ],
    );
    let escalation = &own["allowPrivilegeEscalation"];
    check(
        "C.5-49",
        "no new privileges",
        "allowPrivilegeEscalation false",
        &[
            (escalation == false, is("allowPrivilegeEscalation", escalation)),
            (own["privileged"].is_null() || own["privileged"] == false, is("privileged", &own["privileged"])),
        ],
    );
    let volumes = spec["volumes"].as_array().cloned().unwrap_or_default();
    let unbounded =
        volumes.iter().filter(|volume| volume.get("emptyDir").is_some_and(|dir| dir["sizeLimit"].is_null()));
    let unbounded: Vec<&str> = unbounded.filter_map(|volume| volume["name"].as_str()).collect();
    let hosts = volumes.iter().filter(|volume| !volume["hostPath"].is_null()).count();
    let root = &own["readOnlyRootFilesystem"];
    check(
        "C.5-50",
        "nothing of the image written",
        "a read-only root, memory with a size for the rest",
        &[
            (root == true, is("readOnlyRootFilesystem", root)),
            (unbounded.is_empty(), format!("without a size: {}", unbounded.join(", "))),
            (hosts == 0, format!("{hosts} directories of the node")),
        ],
    );
    let filter = if own["seccompProfile"].is_null() { &all["seccompProfile"] } else { &own["seccompProfile"] };
    check(
        "C.5-51",
        "system calls filtered",
        "seccompProfile RuntimeDefault",
        &[(filter["type"] == "RuntimeDefault", is("seccompProfile", filter))],
    );
    let limit = &one["resources"]["limits"]["memory"];
    check(
        "C.5-52",
        "limits",
        "memory limited; processes by the kubelet",
        &[(!limit.is_null(), is("the limit of memory", limit))],
    );
    let shared = ["hostNetwork", "hostPID", "hostIPC"].into_iter().filter(|name| spec[*name] == true);
    let shared: Vec<&str> = shared.collect();
    let ports = one["ports"].as_array().cloned().unwrap_or_default();
    let published = ports.iter().filter(|port| !port["hostPort"].is_null()).count();
    check(
        "C.5-53",
        "nothing shared with the node",
        "no network, processes or memory of the node, no port of it",
        &[
            (shared.is_empty(), format!("it has {}", shared.join(", "))),
            (published == 0, format!("{published} ports of the node")),
        ],
    );
    let grace = spec["terminationGracePeriodSeconds"].as_u64().unwrap_or_default();
    check(
        "C.5-55",
        "asked whether it is well, ended in order",
        if has_hook {
            "three probes, a hook before the end, 60 s or more"
        } else {
            "three probes, 60 s or more to end"
        },
        &[
            (
                ["startupProbe", "livenessProbe", "readinessProbe"].iter().all(|name| one[*name].is_object()),
                "a probe is missing".to_owned(),
            ),
            (!has_hook || one["lifecycle"]["preStop"].is_object(), "there is no hook before the end".to_owned()),
            (grace >= 60, format!("terminationGracePeriodSeconds is {grace}")),
        ],
    );
    let image = one["image"].as_str().unwrap_or_default().to_owned();
    let by_digest = image.contains("@sha256:");
    let (item, title) = ("C.5-46", "image by digest");
    let expected = "the image that the configured digest names".to_owned();
    let unset = format!("database.kubernetes.digest is not set: the name `{image}` decides");
    let (status, observed) = if by_digest { (Status::Pass, image) } else { (Status::Warn, unset) };
    findings.0.push(Finding { item, title, status, observed, expected });
}

/// Whether `is` has everything that `wanted` says; what a cluster adds by itself does not count.
fn holds(is: &Value, wanted: &Value) -> bool {
    match (is, wanted) {
        (Value::Object(is), Value::Object(wanted)) => {
            wanted.iter().all(|(name, value)| holds(is.get(name).unwrap_or(&Value::Null), value))
        }
        (Value::Array(is), Value::Array(wanted)) => {
            is.len() == wanted.len() && is.iter().zip(wanted).all(|(is, wanted)| holds(is, wanted))
        }
        // An empty list is left out by some, and so is a no.
        (Value::Null, Value::Array(wanted)) => wanted.is_empty(),
        (Value::Null, Value::Bool(wanted)) => !wanted,
        (is, wanted) => is == wanted,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_port_that_answers_is_not_kept_by_any_policy() {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let open = listener.local_addr().unwrap();
        assert_eq!(probe(open).await, Enforcement::Answered("takes connections".to_owned()));
        drop(listener);
        assert_eq!(probe(open).await, Enforcement::Answered("is refused by the pod itself".to_owned()));
    }

    #[test]
    fn what_a_cluster_adds_is_no_difference() {
        let wanted = json!({ "ports": [{ "port": 5432 }], "egress": [] });
        assert!(holds(&json!({ "ports": [{ "port": 5432, "protocol": "TCP" }] }), &wanted));
        assert!(!holds(&json!({ "ports": [{ "port": 5432 }, { "port": 1 }] }), &wanted));
        assert!(!holds(&json!({ "ports": [{ "port": 5433 }] }), &wanted));
        assert!(!holds(&Value::Null, &wanted));
        let role = json!({ "name": "bibd_owner", "login": false });
        assert!(holds(&json!({ "name": "bibd_owner", "ensure": "present" }), &role));
        assert!(!holds(&json!({ "name": "bibd_owner", "login": true }), &role));
    }
}
