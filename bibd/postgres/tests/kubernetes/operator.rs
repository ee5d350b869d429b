//! The operator CloudNativePG as its documentation describes it, behind the double of the API: out of a `Cluster` it makes
//! a volume, the database with its owner, a pod that Docker runs with the settings, rules and certificates that it was
//! given, the roles that it is to manage, and a status. Hibernated, the pod goes; with the object all of it does.
//! Not the operator: `docs/not-here.md`.
#![allow(dead_code, unreachable_pub, reason = "each test binary uses its own part")]

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use serde_json::{Value, json};

use crate::double::Double;
use crate::instance::{DATA, Instance, UID, wait};
use crate::kubelet::docker;

const STEP: Duration = Duration::from_millis(100);
/// How often roles, certificates and settings are looked at.
const LOOK_EVERY: Duration = Duration::from_millis(700);
const HEALTHY: &str = "Cluster in healthy state";

/// What a test has it do.
#[derive(Default)]
pub struct Orders {
    /// It does nothing.
    pub is_silent: AtomicBool,
    /// It makes no roles.
    pub makes_no_roles: AtomicBool,
    /// The pod that writes is lost, and another one does so.
    pub fails_over: AtomicBool,
}

pub struct Operator {
    stop: Arc<AtomicBool>,
    pub orders: Arc<Orders>,
    /// The server's container.
    pub container: String,
    thread: Option<JoinHandle<()>>,
}

impl Drop for Operator {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::SeqCst);
        if let Some(thread) = self.thread.take() {
            let ended = thread.join();
            assert!(ended.is_ok() || std::thread::panicking(), "the operator broke");
        }
    }
}

impl Operator {
    /// Watches over the `Cluster` `name` in the namespace `bib` of the double.
    pub fn behind(double: &Double, name: &str) -> Self {
        double.with_node();
        let instance = Instance::new();
        let container = instance.container.clone();
        let (stop, orders) = (Arc::new(AtomicBool::new(false)), Arc::new(Orders::default()));
        let mut runner = Runner {
            double: double.clone(),
            orders: orders.clone(),
            instance,
            name: name.to_owned(),
            looked: Instant::now(),
            roles: BTreeMap::new(),
        };
        let ends = stop.clone();
        let thread = std::thread::spawn(move || {
            while !ends.load(Ordering::SeqCst) {
                if !runner.orders.is_silent.load(Ordering::SeqCst) {
                    runner.step();
                }
                std::thread::sleep(STEP);
            }
        });
        Self { stop, orders, container, thread: Some(thread) }
    }
}

struct Runner {
    double: Double,
    orders: Arc<Orders>,
    instance: Instance,
    name: String,
    looked: Instant,
    /// By role: the version of its Secret, and the last transaction that changed it.
    roles: BTreeMap<String, (String, String)>,
}

impl Runner {
    fn path(&self, kind: &str, name: &str) -> String {
        format!("/api/v1/namespaces/bib/{kind}/{name}")
    }

    fn cluster(&self) -> String {
        format!("/apis/postgresql.cnpg.io/v1/namespaces/bib/clusters/{}", self.name)
    }

    fn status(&self, change: impl FnOnce(&mut Value)) {
        self.double.update(&self.cluster(), |cluster| change(&mut cluster["status"]));
    }

    fn named(&self, serial: u64) -> String {
        format!("{}-{serial}", self.name)
    }

    /// The pod that there is, with its path.
    fn pod(&self, cluster: &Value) -> Option<(String, Value)> {
        let name = cluster["status"]["currentPrimary"].as_str()?;
        let path = self.path("pods", name);
        self.double.get(&path).map(|pod| (path, pod))
    }

    fn step(&mut self) {
        let Some(cluster) = self.double.get(&self.cluster()) else { return self.collect() };
        let hibernated = cluster["metadata"]["annotations"]["cnpg.io/hibernation"] == "on";
        let healthy = cluster["status"]["phase"] == HEALTHY;
        match (hibernated, self.pod(&cluster)) {
            (true, _) if !healthy => {}
            (true, Some((path, _))) => {
                self.condition("cnpg.io/hibernation", Some(("False", "DeletingPods", "Hibernation is in progress")));
                self.end(&path);
            }
            (true, None) => {
                let done = ("True", "Hibernated", "Cluster has been hibernated");
                self.condition("cnpg.io/hibernation", Some(done));
            }
            (false, None) => self.begin(&cluster),
            (false, Some((path, _))) if self.orders.fails_over.swap(false, Ordering::SeqCst) => {
                self.fail_over(&cluster, &path);
            }
            (false, Some((path, pod))) => self.keep(&cluster, &path, pod),
        }
    }

    /// As Kubernetes does with everything that belongs to an object that is gone.
    fn collect(&mut self) {
        let mine = [("pods", "-"), ("persistentvolumeclaims", "-"), ("secrets", "-app"), ("services", "-rw")];
        let all = self.double.all();
        for (kind, part) in mine {
            let prefix = self.path(kind, &format!("{}{part}", self.name));
            let own = |path: &&String| {
                path.starts_with(&prefix) && all[*path]["metadata"]["ownerReferences"][0]["kind"] == "Cluster"
            };
            for path in all.keys().filter(own) {
                self.instance.remove();
                self.double.remove(path);
            }
        }
        if !self.double.all().keys().any(|path| path.contains("/persistentvolumeclaims/")) {
            let _ = std::fs::remove_dir_all(self.instance.path("data"));
        }
    }

    fn owned(&self, kind: &str, name: &str, mut object: Value) {
        object["metadata"]["name"] = json!(name);
        object["metadata"]["namespace"] = json!("bib");
        object["metadata"]["labels"]["cnpg.io/cluster"] = json!(self.name);
        object["metadata"]["ownerReferences"] = json!([{ "kind": "Cluster", "name": self.name }]);
        self.double.put(&self.path(kind, name), object);
    }

    fn condition(&self, kind: &str, is: Option<(&str, &str, &str)>) {
        self.status(|status| {
            let mut all: Vec<Value> = status["conditions"].as_array().cloned().unwrap_or_default();
            let wanted = is.map(
                |(is, reason, message)| json!({ "type": kind, "status": is, "reason": reason, "message": message }),
            );
            all.retain(|one| one["type"] != kind);
            all.extend(wanted);
            all.sort_by_key(|one| one["type"].to_string());
            status["conditions"] = json!(all);
        });
    }

    fn phase(&self, phase: &str, reason: &str) {
        self.status(|status| {
            status["phase"] = json!(phase);
            status["phaseReason"] = json!(reason);
        });
    }

    /// The database where there is none yet, then its pod.
    fn begin(&mut self, cluster: &Value) {
        self.condition("cnpg.io/hibernation", None);
        let claims = self.double.all().keys().any(|path| path.contains("/persistentvolumeclaims/"));
        let serial = cluster["status"]["latestGeneratedNode"].as_u64().unwrap_or_default();
        if !claims && serial != 0 {
            let reason = "One or more instances were previously created, but no PersistentVolumeClaims (PVCs) exist.";
            return self.phase("Cluster is in an unrecoverable state, needs manual intervention", reason);
        }
        // What it is told of must be there; the port of the node comes last.
        let outside = self.path("services", &format!("{}-outside", self.name));
        let Some(port) = self.double.get(&outside).and_then(|one| one["spec"]["ports"][0]["nodePort"].as_u64()) else {
            return;
        };
        let name = self.named(serial.max(1));
        if !claims {
            self.phase("Setting up primary", &format!("Creating primary instance {name}"));
            self.initialise(cluster, &name);
        }
        self.instance.configure(cluster, &self.name);
        self.certificates(cluster);
        self.instance.run(cluster, port);
        let is_new = !claims;
        wait("the server answers", || self.instance.psql("SELECT 1").0);
        if is_new {
            self.make_database(cluster);
        }
        let identifier = self.instance.ask("SELECT system_identifier FROM pg_control_system()");
        self.make_pod(cluster, &name);
        self.double
            .update(&self.path("pods", &name), |pod| pod["status"]["containerStatuses"][0]["ready"] = json!(true));
        self.roles(cluster);
        self.status(|status| {
            status["currentPrimary"] = json!(name);
            status["targetPrimary"] = json!(name);
            status["latestGeneratedNode"] = json!(serial.max(1));
            status["instances"] = json!(1);
            status["readyInstances"] = json!(1);
            status["systemID"] = json!(identifier);
            status["writeService"] = json!(format!("{}-rw", self.name));
        });
        self.condition("Ready", Some(("True", "ClusterIsReady", "Cluster is Ready")));
        self.phase(HEALTHY, "");
    }

    /// The volume, and `initdb` in the pod of a job.
    fn initialise(&mut self, cluster: &Value, name: &str) {
        let claim = json!({ "kind": "PersistentVolumeClaim", "apiVersion": "v1", "metadata": {},
            "spec": { "resources": { "requests": { "storage": cluster["spec"]["storage"]["size"] } } } });
        self.owned("persistentvolumeclaims", name, claim);
        let job = format!("{name}-initdb-x7k2p");
        let pod = json!({ "kind": "Pod", "apiVersion": "v1", "metadata": { "labels": { "cnpg.io/jobRole": "initdb" } },
            "spec": { "containers": [] }, "status": { "phase": "Pending" } });
        self.owned("pods", &job, pod);
        self.instance.initialise(cluster);
        self.double.update(&self.path("pods", &job), |pod| pod["status"]["phase"] = json!("Succeeded"));
    }

    fn secret(&self, name: &str) -> Value {
        let found = self.double.get(&self.path("secrets", name));
        found.unwrap_or_else(|| panic!("there is no Secret {name}"))
    }

    /// Those of the Secrets that the object names; whether any is another than before.
    fn certificates(&self, cluster: &Value) -> bool {
        let names = &cluster["spec"]["certificates"];
        // It refuses to be told of names beside a certificate that has them.
        assert!(names["serverAltDNSNames"].is_null(), "{names}");
        let mut changed = false;
        for (secret, key, file) in [
            ("serverTLSSecret", "tls.key", "server.key"),
            ("serverTLSSecret", "tls.crt", "server.crt"),
            ("serverCASecret", "ca.crt", "server-ca.crt"),
            ("clientCASecret", "ca.crt", "client-ca.crt"),
            ("replicationTLSSecret", "tls.key", "streaming_replica.key"),
            ("replicationTLSSecret", "tls.crt", "streaming_replica.crt"),
        ] {
            let found = self.secret(names[secret].as_str().unwrap());
            assert_eq!(found["metadata"]["labels"]["cnpg.io/reload"], "");
            let bytes = BASE64.decode(found["data"][key].as_str().unwrap()).unwrap();
            changed |= self.instance.write(&self.instance.path("certificates").join(file), &bytes);
        }
        changed
    }

    /// The owner with a login and a password of the operator's making, its database, and who follows.
    fn make_database(&self, cluster: &Value) {
        let how = &cluster["spec"]["bootstrap"]["initdb"];
        let (owner, database) = (how["owner"].as_str().unwrap(), how["database"].as_str().unwrap());
        let password = "made-by-the-operator";
        self.instance.ask("CREATE USER streaming_replica REPLICATION");
        self.instance
            .ask("GRANT EXECUTE ON FUNCTION pg_catalog.pg_ls_dir(text, boolean, boolean) TO streaming_replica");
        self.instance.ask(&format!("CREATE USER {owner}"));
        self.instance.ask(&format!("CREATE DATABASE {database} OWNER {owner}"));
        let set = format!("ALTER ROLE {owner} WITH PASSWORD '{password}'");
        assert!(self.instance.psql_each(&["SET log_statement = 'none'", &set]).0);
        let data = [("username", owner), ("password", password), ("dbname", database)];
        let data: BTreeMap<&str, String> = data.into_iter().map(|(key, text)| (key, BASE64.encode(text))).collect();
        let name = format!("{}-app", self.name);
        let kind = "kubernetes.io/basic-auth";
        self.owned("secrets", &name, json!({ "kind": "Secret", "metadata": {}, "type": kind, "data": data }));
        let service = json!({ "kind": "Service", "metadata": {}, "spec": { "ports": [{ "port": 5432 }] } });
        self.owned("services", &format!("{}-rw", self.name), service);
    }

    fn make_pod(&self, cluster: &Value, name: &str) {
        let spec = &cluster["spec"];
        let limits = &spec["ephemeralVolumesSizeLimit"];
        let probe = json!({ "httpGet": { "path": "/healthz", "port": 8000, "scheme": "HTTPS" } });
        let labels =
            json!({ "cnpg.io/podRole": "instance", "cnpg.io/instanceRole": "primary", "cnpg.io/instanceName": name });
        let pod = json!({ "kind": "Pod", "apiVersion": "v1", "metadata": { "labels": labels },
            "spec": {
                "containers": [{
                    "name": "postgres", "image": spec["imageName"], "command": ["/controller/manager", "instance", "run"],
                    "env": [{ "name": "PGDATA", "value": format!("{DATA}/pgdata") }],
                    "ports": [{ "containerPort": 5432, "name": "postgresql" }, { "containerPort": 8000, "name": "status" }],
                    "startupProbe": probe, "livenessProbe": probe, "readinessProbe": probe,
                    "resources": spec["resources"],
                    "securityContext": { "allowPrivilegeEscalation": false, "capabilities": { "drop": ["ALL"] },
                        "privileged": false, "readOnlyRootFilesystem": true, "runAsNonRoot": true,
                        "seccompProfile": spec["seccompProfile"] },
                    "volumeMounts": [{ "name": "pgdata", "mountPath": DATA }, { "name": "scratch-data", "mountPath": "/run" },
                        { "name": "scratch-data", "mountPath": "/controller" }, { "name": "shm", "mountPath": "/dev/shm" }] }],
                "securityContext": { "runAsNonRoot": true, "runAsUser": UID, "runAsGroup": UID, "fsGroup": UID,
                    "seccompProfile": spec["seccompProfile"] },
                "serviceAccountName": self.name, "terminationGracePeriodSeconds": spec["stopDelay"],
                "volumes": [{ "name": "pgdata", "persistentVolumeClaim": { "claimName": name } },
                    { "name": "scratch-data", "emptyDir": { "sizeLimit": limits["temporaryData"] } },
                    { "name": "shm", "emptyDir": { "medium": "Memory", "sizeLimit": limits["shm"] } }] },
            "status": { "phase": "Running", "podIP": "127.0.0.1", "containerStatuses": [{ "name": "postgres", "image": "i",
                "imageID": "sha256:of-the-operator", "ready": false, "restartCount": 0, "state": { "running": {} } }] } });
        self.owned("pods", name, pod);
    }

    /// Restarts, certificates, settings and roles.
    fn keep(&mut self, cluster: &Value, path: &str, pod: Value) {
        let (_, state) =
            docker(&["inspect", "--format", "{{.State.Running}} {{.State.ExitCode}}", &self.instance.container]);
        let (is_running, code) = state.split_once(' ').unwrap();
        if is_running == "false" {
            let end = json!({ "terminated": { "exitCode": code.parse::<i32>().unwrap(), "reason": "Error" } });
            let restarts = pod["status"]["containerStatuses"][0]["restartCount"].as_i64().unwrap() + 1;
            self.double.update(path, |pod| {
                let status = &mut pod["status"]["containerStatuses"][0];
                status["lastState"] = end;
                status["ready"] = json!(false);
                status["restartCount"] = json!(restarts);
            });
            self.status(|status| status["readyInstances"] = json!(0));
            self.run_again(cluster, path);
            return;
        }
        if self.looked.elapsed() < LOOK_EVERY {
            return;
        }
        self.looked = Instant::now();
        let log = std::fs::read_dir(self.instance.path("log")).unwrap();
        let log: Vec<u8> = log.flat_map(|entry| std::fs::read(entry.unwrap().path()).unwrap()).collect();
        self.double.log("postgres", &String::from_utf8_lossy(&log));
        let settings = self.instance.configure(cluster, &self.name);
        if self.certificates(cluster) | settings {
            docker(&["kill", "--signal=HUP", &self.instance.container]);
        }
        if settings && self.instance.psql("SELECT 1 FROM pg_settings WHERE pending_restart").1.contains('1') {
            self.phase("Upgrading cluster", "Restarting instances");
            self.instance.shut_down();
            self.run_again(cluster, path);
            self.phase(HEALTHY, "");
        }
        self.roles(cluster);
    }

    fn run_again(&self, cluster: &Value, path: &str) {
        let outside = self.double.get(&self.path("services", &format!("{}-outside", self.name))).unwrap();
        self.instance.run(cluster, outside["spec"]["ports"][0]["nodePort"].as_u64().unwrap());
        wait("the server answers again", || self.instance.psql("SELECT 1").0);
        self.double.update(path, |pod| pod["status"]["containerStatuses"][0]["ready"] = json!(true));
        self.status(|status| status["readyInstances"] = json!(1));
    }

    /// Each role as the object has it; a password that somebody else set goes back to the Secret's.
    fn roles(&mut self, cluster: &Value) {
        if self.orders.makes_no_roles.load(Ordering::SeqCst) {
            return;
        }
        let mut passwords = json!({});
        for role in cluster["spec"]["managed"]["roles"].as_array().unwrap() {
            let name = role["name"].as_str().unwrap();
            let secret = role["passwordSecret"]["name"].as_str().map(|secret| self.secret(secret));
            let version =
                secret.as_ref().and_then(|one| one["metadata"]["resourceVersion"].as_str()).unwrap_or_default();
            let changed = |this: &Self| {
                let (succeeded, said) =
                    this.instance.psql(&format!("SELECT xmin FROM pg_authid WHERE rolname = '{name}'"));
                succeeded.then_some(said)
            };
            let Some(is) = changed(self) else { return };
            if self.roles.get(name) != Some(&(version.to_owned(), is.clone())) {
                let password = match &secret {
                    Some(secret) => {
                        let text = |key: &str| {
                            let bytes = BASE64.decode(secret["data"][key].as_str().unwrap()).unwrap();
                            String::from_utf8(bytes).unwrap()
                        };
                        assert_eq!(text("username"), name);
                        format!("PASSWORD '{}'", text("password"))
                    }
                    None if role["disablePassword"] == true => "PASSWORD NULL".to_owned(),
                    None => String::new(),
                };
                let is_set =
                    |key: &str, word: &str| if role[key] == true { word.to_owned() } else { format!("NO{word}") };
                let verb = if is.is_empty() { "CREATE" } else { "ALTER" };
                let sql = format!(
                    "{verb} ROLE {name} WITH {} {} NOBYPASSRLS NOCREATEDB NOCREATEROLE INHERIT NOREPLICATION
                         CONNECTION LIMIT -1 {password}",
                    is_set("login", "LOGIN"),
                    is_set("superuser", "SUPERUSER"),
                );
                let (succeeded, said) = self.instance.psql_each(&["SET log_statement = 'none'", &sql]);
                if !succeeded {
                    return self.status(|status| status["managedRolesStatus"]["cannotReconcile"][name] = json!([said]));
                }
                let Some(now) = changed(self) else { return };
                self.roles.insert(name.to_owned(), (version.to_owned(), now));
            }
            let known = &self.roles[name];
            passwords[name] = json!({ "resourceVersion": known.0, "transactionID": known.1.parse::<i64>().unwrap() });
        }
        self.status(|status| {
            status["managedRolesStatus"]["byStatus"]["reconciled"] = json!(["bibd_admin", "bibd_owner"]);
            status["managedRolesStatus"]["passwordStatus"] = passwords;
        });
    }

    fn end(&mut self, path: &str) {
        self.double.update(path, |pod| pod["metadata"]["deletionTimestamp"] = json!("2026-11-21T00:00:00Z"));
        self.instance.shut_down();
        self.instance.remove();
        self.double.remove(path);
        self.status(|status| status["readyInstances"] = json!(0));
    }

    /// The pod and its machine are lost; another one, which had everything, goes on.
    fn fail_over(&mut self, cluster: &Value, path: &str) {
        let serial = cluster["status"]["latestGeneratedNode"].as_u64().unwrap() + 1;
        let name = self.named(serial);
        docker(&["kill", &self.instance.container]);
        self.double.remove(path);
        self.status(|status| {
            status["readyInstances"] = json!(0);
            status["targetPrimary"] = json!(name);
            status["latestGeneratedNode"] = json!(serial);
        });
        self.phase("Failing over", &format!("Failing over to {name}"));
        self.owned("persistentvolumeclaims", &name, json!({ "kind": "PersistentVolumeClaim", "metadata": {} }));
        self.make_pod(cluster, &name);
        self.run_again(cluster, &self.path("pods", &name));
        self.status(|status| status["currentPrimary"] = json!(name));
        self.phase(HEALTHY, "");
    }
}
