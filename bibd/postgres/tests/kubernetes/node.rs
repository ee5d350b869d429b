//! What stands behind the double of the API: a controller that makes the StatefulSet's pod, and a kubelet that runs it by
//! Docker and writes down what becomes of it. Ended, with its containers, when dropped.
#![allow(dead_code, unreachable_pub, reason = "each test binary uses its own part")]

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::double::Double;
use crate::kubelet::{Kubelet, docker, template};

const STEP: Duration = Duration::from_millis(100);
/// How often the server is asked whether it is ready, once it was.
const PROBE_EVERY: Duration = Duration::from_secs(2);

pub struct Node {
    stop: Arc<AtomicBool>,
    /// The container of the server.
    pub container: String,
    /// Where the volume is, as long as there is a claim to it.
    pub volume: PathBuf,
    thread: Option<JoinHandle<()>>,
}

impl Drop for Node {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::SeqCst);
        if let Some(thread) = self.thread.take() {
            let ended = thread.join();
            assert!(ended.is_ok() || std::thread::panicking(), "the node broke");
        }
    }
}

impl Node {
    /// Serves the database `name` in `namespace` of the double.
    pub fn behind(double: &Double, namespace: &str, name: &str) -> Self {
        double.with_node();
        let kubelet = Kubelet::new();
        let (stop, container) = (Arc::new(AtomicBool::new(false)), kubelet.called("postgres"));
        let volume = kubelet.volume("data");
        let mut runner = Runner {
            double: double.clone(),
            kubelet,
            set: format!("/apis/apps/v1/namespaces/{namespace}/statefulsets/{name}"),
            pod: format!("/api/v1/namespaces/{namespace}/pods/{name}-0"),
            claim: format!("/api/v1/namespaces/{namespace}/persistentvolumeclaims/data-{name}-0"),
            outside: format!("/api/v1/namespaces/{namespace}/services/{name}-outside"),
            runs: false,
            probed: Instant::now(),
        };
        let ends = stop.clone();
        let thread = std::thread::spawn(move || {
            while !ends.load(Ordering::SeqCst) {
                runner.step();
                std::thread::sleep(STEP);
            }
        });
        Self { stop, container, volume, thread: Some(thread) }
    }
}

struct Runner {
    double: Double,
    kubelet: Kubelet,
    set: String,
    pod: String,
    claim: String,
    outside: String,
    runs: bool,
    probed: Instant,
}

impl Runner {
    fn step(&mut self) {
        let set = self.double.get(&self.set);
        let wanted = set.as_ref().is_some_and(|set| set["spec"]["replicas"] == 1);
        let pod = self.double.get(&self.pod);
        match pod {
            None if wanted => self.make(&set.unwrap()),
            None => {
                if self.double.get(&self.claim).is_none() {
                    let _ = std::fs::remove_dir_all(self.kubelet.volume("data"));
                }
            }
            Some(pod) if !wanted || !pod["metadata"]["deletionTimestamp"].is_null() => self.end(pod),
            Some(pod) if !self.runs => self.initialise(pod),
            Some(pod) => self.keep(pod),
        }
    }

    fn objects(&self) -> Vec<Value> {
        self.double.all().into_values().collect()
    }

    /// As the controller does.
    fn make(&mut self, set: &Value) {
        let template = &set["spec"]["template"];
        let name = self.pod.rsplit('/').next().unwrap();
        if self.double.get(&self.claim).is_none() {
            let claim = set["spec"]["volumeClaimTemplates"][0].clone();
            self.double.put(&self.claim, claim);
        }
        let mut metadata = template["metadata"].clone();
        metadata["name"] = json!(name);
        metadata["namespace"] = set["metadata"]["namespace"].clone();
        let pod = json!({ "kind": "Pod", "apiVersion": "v1", "metadata": metadata, "spec": template["spec"],
                          "status": { "phase": "Pending", "podIP": "127.0.0.1", "hostIP": "127.0.0.1" } });
        self.runs = false;
        self.double.put(&self.pod, pod);
    }

    /// The first container, then the server.
    fn initialise(&mut self, mut pod: Value) {
        let mut all = self.objects();
        pin(&mut all, &pod);
        let port = self.double.get(&self.outside).and_then(|service| service["spec"]["ports"][0]["nodePort"].as_u64());
        self.kubelet.port = port.and_then(|port| u16::try_from(port).ok()).unwrap_or(0);
        let (code, last) = self.kubelet.initialise(&all);
        let words = std::fs::read_to_string(self.kubelet.last_words("initdb")).unwrap();
        let message = if words.is_empty() { last } else { words };
        let failed = code != "0";
        let end = json!({ "terminated": { "exitCode": code.parse::<i32>().unwrap(), "message": message,
                                          "reason": if failed { "Error" } else { "Completed" } } });
        let restarts = pod["status"]["initContainerStatuses"][0]["restartCount"].as_i64().unwrap_or(-1) + 1;
        pod["status"]["initContainerStatuses"] = json!([{ "name": "initdb", "image": "", "imageID": "", "ready": !failed, "restartCount": restarts, "state": end }]);
        self.double.log("initdb", &self.kubelet.docker(&["logs", &self.kubelet.called("initdb")]));
        if failed {
            self.put(pod);
            std::thread::sleep(Duration::from_secs(1));
            return;
        }
        self.kubelet.run(&all);
        pod["status"]["phase"] = json!("Running");
        pod["status"]["containerStatuses"] = json!([{ "name": "postgres", "image": "i", "imageID": "sha256:of-the-node",
            "ready": false, "restartCount": 0, "state": { "running": {} } }]);
        self.runs = true;
        self.probed = Instant::now() - PROBE_EVERY;
        self.put(pod);
    }

    /// The pod, unless somebody deleted it meanwhile: then what was written to it stays.
    fn put(&self, mut pod: Value) {
        let Some(is) = self.double.get(&self.pod) else { return };
        pod["metadata"] = is["metadata"].clone();
        self.double.put(&self.pod, pod);
    }

    /// Probes, restarts, and files that changed.
    fn keep(&mut self, mut pod: Value) {
        let mut all = self.objects();
        pin(&mut all, &pod);
        let spec = &template(&all)["spec"].clone();
        self.kubelet.mount(&all, spec);
        let name = self.kubelet.called("postgres");
        let (_, state) = docker(&["inspect", "--format", "{{.State.Running}} {{.State.ExitCode}}", &name]);
        let (is_running, code) = state.split_once(' ').unwrap();
        let status = &mut pod["status"]["containerStatuses"][0];
        if is_running == "false" {
            let end = json!({ "terminated": { "exitCode": code.parse::<i32>().unwrap(), "reason": "Error" } });
            self.double.log("postgres", &self.kubelet.docker(&["logs", &name]));
            status["lastState"] = end;
            status["ready"] = json!(false);
            status["restartCount"] = json!(status["restartCount"].as_i64().unwrap() + 1);
            self.probed = Instant::now() - PROBE_EVERY;
            self.put(pod);
            self.kubelet.run(&all);
            return;
        }
        let ready = status["ready"] == true;
        if !ready || self.probed.elapsed() >= PROBE_EVERY {
            self.probed = Instant::now();
            let is = self.kubelet.exec(&spec["containers"][0]["readinessProbe"]).0;
            if is != ready {
                self.double.log("postgres", &self.kubelet.docker(&["logs", &name]));
                status["ready"] = json!(is);
                self.put(pod);
            }
        }
    }

    /// The hook and the signal, or at once.
    fn end(&mut self, mut pod: Value) {
        if self.runs {
            let name = self.kubelet.called("postgres");
            let spec = pod["spec"].clone();
            if pod["metadata"]["deletionGracePeriodSeconds"] == 0 {
                docker(&["kill", &name]);
            } else {
                self.kubelet.exec(&spec["containers"][0]["lifecycle"]["preStop"]);
                docker(&["stop", "--time", &spec["terminationGracePeriodSeconds"].to_string(), &name]);
            }
            let code = self.kubelet.docker(&["wait", &name]);
            let end = json!({ "terminated": { "exitCode": code.parse::<i32>().unwrap(), "reason": "Completed" } });
            pod["status"]["containerStatuses"][0]["state"] = end;
            pod["status"]["containerStatuses"][0]["ready"] = json!(false);
            self.put(pod);
            // A kubelet tells how it ended before the object goes; whoever looks now and then has the time to see it.
            std::thread::sleep(Duration::from_millis(500));
            docker(&["rm", "--force", &name]);
        }
        self.runs = false;
        self.double.remove(&self.pod);
    }
}

/// The set as the pod was made from it.
fn pin(all: &mut [Value], pod: &Value) {
    for one in all.iter_mut().filter(|one| one["kind"] == "StatefulSet") {
        one["spec"]["template"]["spec"] = pod["spec"].clone();
    }
}
