//! A pod's containers, run by Docker as a kubelet would run them: what the objects say of user, mounts, walls, probes and
//! the stop is read out of them and done.
//!
//! What a kubelet does to volumes is done by hand: the claim is root's and writable by the pod's group, files of Secrets
//! are root's and readable by it.
#![allow(dead_code, unreachable_pub, reason = "each test binary uses its own part")]

use std::os::unix::fs::{PermissionsExt as _, chown};
use std::path::PathBuf;
use std::process::Command;
use std::time::{Duration, Instant};

use base64::Engine as _;
use serde_json::Value;
use tempfile::TempDir;

/// Containers of one pod. Removed when dropped.
pub struct Kubelet {
    home: TempDir,
    name: String,
    /// The port of this machine that leads to the server; any that is free when 0.
    pub port: u16,
}

impl Drop for Kubelet {
    fn drop(&mut self) {
        for container in ["initdb", "postgres"] {
            docker(&["rm", "--force", &self.called(container)]);
        }
    }
}

impl Kubelet {
    pub fn new() -> Self {
        let home = tempfile::Builder::new().prefix("kubelet").tempdir_in("/tmp").unwrap();
        std::fs::set_permissions(home.path(), std::fs::Permissions::from_mode(0o755)).unwrap();
        let name = home.path().file_name().unwrap().to_string_lossy().to_ascii_lowercase();
        Self { home, name, port: 0 }
    }

    pub fn called(&self, container: &str) -> String {
        format!("{}-{container}", self.name)
    }

    /// The directories of the pod's volumes, with what the objects put into them.
    pub fn mount(&self, all: &[Value], pod: &Value) {
        let group = u32::try_from(pod["securityContext"]["fsGroup"].as_u64().unwrap()).unwrap();
        let find = |kind: &str, name: &Value| {
            all.iter().find(|one| one["kind"] == kind && one["metadata"]["name"] == *name).unwrap()
        };
        let write = |volume: &Value, key: &str, bytes: &[u8], mode: u32| {
            let directory = self.volume(volume["name"].as_str().unwrap());
            std::fs::create_dir_all(&directory).unwrap();
            let path = directory.join(key);
            // A container that runs sees the one or the other, whole.
            let next = directory.join(format!(".{key}.next"));
            std::fs::write(&next, bytes).unwrap();
            chown(&next, Some(0), Some(group)).unwrap();
            std::fs::set_permissions(&next, std::fs::Permissions::from_mode(mode)).unwrap();
            std::fs::rename(&next, &path).unwrap();
        };
        for volume in pod["volumes"].as_array().unwrap() {
            if let Some(source) = volume.get("configMap") {
                let mode = u32::try_from(source["defaultMode"].as_u64().unwrap()).unwrap();
                for (key, text) in find("ConfigMap", &source["name"])["data"].as_object().unwrap() {
                    write(volume, key, text.as_str().unwrap().as_bytes(), mode);
                }
            }
            if let Some(source) = volume.get("secret") {
                let data = &find("Secret", &source["secretName"])["data"];
                let directory = self.volume(volume["name"].as_str().unwrap());
                std::fs::create_dir_all(&directory).unwrap();
                for item in source["items"].as_array().unwrap() {
                    let Some(text) = data[item["key"].as_str().unwrap()].as_str() else {
                        assert_eq!(source["optional"], true, "{item}");
                        let _ = std::fs::remove_file(directory.join(item["path"].as_str().unwrap()));
                        continue;
                    };
                    let bytes = base64::engine::general_purpose::STANDARD.decode(text).unwrap();
                    // Readable by the pod's group whatever the mode says: that is what `fsGroup` does.
                    let mode = u32::try_from(item["mode"].as_u64().unwrap()).unwrap() | 0o440;
                    write(volume, item["path"].as_str().unwrap(), &bytes, mode);
                }
            }
        }
        let claim = self.volume("data");
        if !claim.exists() {
            std::fs::create_dir(&claim).unwrap();
            chown(&claim, Some(0), Some(group)).unwrap();
            std::fs::set_permissions(&claim, std::fs::Permissions::from_mode(0o2775)).unwrap();
        }
    }

    pub fn volume(&self, name: &str) -> PathBuf {
        self.home.path().join(name)
    }

    /// `docker run` for one container of the pod.
    fn arguments(&self, pod: &Value, container: &Value) -> Vec<String> {
        let text = |value: &Value| value.as_str().unwrap_or_else(|| panic!("{value} is no text")).to_owned();
        let (own, security) = (&pod["securityContext"], &container["securityContext"]);
        assert_eq!(security["capabilities"]["drop"], serde_json::json!(["ALL"]));
        assert_eq!(
            (&security["readOnlyRootFilesystem"], &security["allowPrivilegeEscalation"]),
            (&true.into(), &false.into())
        );
        let mut all: Vec<String> = ["run", "--detach", "--ulimit", "nofile=4096:4096"]
            .iter()
            .chain(&["--read-only", "--cap-drop", "ALL", "--security-opt", "no-new-privileges"])
            .map(|word| (*word).to_owned())
            .collect();
        let mut flag = |name: &str, value: String| all.extend([name.to_owned(), value]);
        let port = if self.port == 0 { String::new() } else { self.port.to_string() };
        flag("--publish", format!("127.0.0.1:{port}:5432"));
        flag("--name", self.called(&text(&container["name"])));
        let words = self.last_words(&text(&container["name"]));
        std::fs::write(&words, "").unwrap();
        std::fs::set_permissions(&words, std::fs::Permissions::from_mode(0o666)).unwrap();
        flag("--mount", format!("type=bind,source={},target=/dev/termination-log", words.display()));
        flag("--user", format!("{}:{}", own["runAsUser"], own["runAsGroup"]));
        flag("--group-add", own["fsGroup"].to_string());
        flag("--workdir", text(&container["workingDir"]));
        flag("--memory", text(&container["resources"]["limits"]["memory"]).replace("Gi", "g").replace("Mi", "m"));
        for variable in container["env"].as_array().unwrap() {
            flag("--env", format!("{}={}", text(&variable["name"]), text(&variable["value"])));
        }
        let volumes = pod["volumes"].as_array().unwrap();
        for mount in container["volumeMounts"].as_array().unwrap() {
            let (name, path) = (text(&mount["name"]), text(&mount["mountPath"]));
            let memory =
                volumes.iter().find(|volume| volume["name"] == name.as_str()).map(|volume| &volume["emptyDir"]);
            match memory.and_then(|volume| volume["sizeLimit"].as_str()) {
                Some(size) if path == "/dev/shm" => flag("--shm-size", size.replace("Mi", "m")),
                Some(size) => flag("--tmpfs", format!("{path}:rw,mode=1777,size={}", size.replace("Mi", "m"))),
                None => {
                    let source = match mount["subPath"].as_str() {
                        Some(key) => self.volume(&name).join(key),
                        None => self.volume(&name),
                    };
                    let read_only = if mount["readOnly"] == true { ",readonly" } else { "" };
                    flag("--mount", format!("type=bind,source={},target={path}{read_only}", source.display()));
                }
            }
        }
        let command: Vec<String> = container["command"].as_array().unwrap().iter().map(text).collect();
        flag("--entrypoint", command[0].clone());
        all.push(text(&container["image"]));
        all.extend_from_slice(&command[1..]);
        all
    }

    /// Where a container leaves its last words.
    pub fn last_words(&self, container: &str) -> PathBuf {
        self.home.path().join(format!("{container}.words"))
    }

    pub fn docker(&self, arguments: &[&str]) -> String {
        let (succeeded, said) = docker(arguments);
        assert!(succeeded, "docker {arguments:?}: {said}");
        said
    }

    /// Runs the container that comes first, to its end: its status and its last words.
    pub fn initialise(&self, all: &[Value]) -> (String, String) {
        let pod = &template(all)["spec"];
        self.mount(all, pod);
        let name = self.called("initdb");
        docker(&["rm", "--force", &name]);
        let arguments = self.arguments(pod, &pod["initContainers"][0]);
        self.docker(&arguments.iter().map(String::as_str).collect::<Vec<_>>());
        let status = self.docker(&["wait", &name]);
        (status, self.docker(&["logs", &name]).lines().last().unwrap_or_default().to_owned())
    }

    /// Runs the server, whose database is made.
    pub fn run(&self, all: &[Value]) {
        let pod = &template(all)["spec"];
        let name = self.called("postgres");
        let arguments = self.arguments(pod, &pod["containers"][0]);
        let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
        let begun = Instant::now();
        loop {
            docker(&["rm", "--force", &name]);
            let (succeeded, said) = docker(&arguments);
            if succeeded {
                return;
            }
            // A port is free again a moment after the one that had it.
            let is_taken = said.contains("already allocated") || said.contains("address already in use");
            assert!(is_taken && begun.elapsed() < Duration::from_secs(60), "docker {arguments:?}: {said}");
            std::thread::sleep(Duration::from_millis(200));
        }
    }

    /// Runs the server until its own probe says that it is ready; the port where it is reached.
    pub fn start(&self, all: &[Value]) -> u16 {
        assert_eq!(self.initialise(all).0, "0", "{}", self.docker(&["logs", &self.called("initdb")]));
        self.run(all);
        let (name, server) = (self.called("postgres"), &template(all)["spec"]["containers"][0]);
        let begun = Instant::now();
        while !self.exec(&server["readinessProbe"]).0 {
            assert!(begun.elapsed() < Duration::from_secs(90), "{}", self.docker(&["logs", &name]));
            std::thread::sleep(Duration::from_millis(200));
        }
        for probe in ["startupProbe", "livenessProbe"] {
            assert!(self.exec(&server[probe]).0, "{probe}");
        }
        let shown = self.docker(&["port", &name, "5432"]);
        shown.lines().next().unwrap().rsplit_once(':').unwrap().1.parse().unwrap()
    }

    /// Runs what a probe or a hook says inside of the server's container.
    pub fn exec(&self, handler: &Value) -> (bool, String) {
        let name = self.called("postgres");
        let command = handler["exec"]["command"].as_array().unwrap();
        let words = command.iter().map(|word| word.as_str().unwrap());
        docker(&["exec", &name].into_iter().chain(words).collect::<Vec<_>>())
    }

    /// As the kubelet does: the hook, then the signal. What the server printed.
    pub fn stop(&self, all: &[Value]) -> String {
        let pod = &template(all)["spec"];
        let name = self.called("postgres");
        self.exec(&pod["containers"][0]["lifecycle"]["preStop"]);
        let grace = pod["terminationGracePeriodSeconds"].to_string();
        self.docker(&["stop", "--time", &grace, &name]);
        assert_eq!(self.docker(&["wait", &name]), "0");
        self.docker(&["logs", &name])
    }
}

pub fn template(all: &[Value]) -> &Value {
    let set = all.iter().find(|one| one["kind"] == "StatefulSet").unwrap();
    &set["spec"]["template"]
}

/// The command line of Docker: whether it succeeded, and what it said.
pub fn docker(arguments: &[&str]) -> (bool, String) {
    let socket = std::env::var("BIB_TEST_DOCKER").unwrap_or_else(|_| "/run/docker.sock".to_owned());
    let output = Command::new("docker").args(["--host", &format!("unix://{socket}")]).args(arguments).output().unwrap();
    let text = [output.stdout, output.stderr].concat();
    (output.status.success(), String::from_utf8_lossy(&text).trim().to_owned())
}
