//! The StatefulSet's own pod, run by Docker as a kubelet would run it: what the objects say of user, mounts, walls,
//! probes and the stop is read out of them and done. No cluster is needed to see PostgreSQL come up behind TLS on a
//! read-only root, and go down in order.
//!
//! What a kubelet does to volumes is done by hand: the claim is root's and writable by the pod's group, files of Secrets
//! are root's and readable by it.

use std::collections::BTreeMap;
use std::os::unix::fs::{PermissionsExt as _, chown};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use base64::Engine as _;
use bibd_postgres::kubernetes::manifests::database;
use bibd_postgres::kubernetes::names::VERIFIER;
use bibd_postgres::kubernetes::{Content, KubernetesSettings, Manifest};
use bibd_postgres::tcp::{Authority, Clock, Endpoint};
use bibd_postgres::{Limits, Login, Randomness, Wal};
use rand::SeedableRng as _;
use secrecy::{ExposeSecret as _, SecretString};
use serde_json::Value;
use sqlx::{ConnectOptions as _, Connection as _, PgConnection};
use tempfile::TempDir;

use crate::support::{Ground, MemoryStore, machine_has, test_image};

const PASSWORD: &str = "correct horse battery staple";

/// Containers of one pod. Removed when dropped.
struct Kubelet {
    home: TempDir,
    name: String,
}

impl Drop for Kubelet {
    fn drop(&mut self) {
        for container in ["initdb", "postgres"] {
            Ground::Docker.engine(&["rm", "--force", &self.called(container)]);
        }
    }
}

impl Kubelet {
    fn new() -> Self {
        let home = tempfile::Builder::new().prefix("kubelet").tempdir_in("/tmp").unwrap();
        std::fs::set_permissions(home.path(), std::fs::Permissions::from_mode(0o755)).unwrap();
        let name = home.path().file_name().unwrap().to_string_lossy().to_ascii_lowercase();
        Self { home, name }
    }

    fn called(&self, container: &str) -> String {
        format!("{}-{container}", self.name)
    }

    /// The directories of the pod's volumes, with what the objects put into them.
    fn mount(&self, all: &[Manifest], pod: &Value) {
        let group = u32::try_from(pod["securityContext"]["fsGroup"].as_u64().unwrap()).unwrap();
        let find = |kind: &str, name: &Value| {
            all.iter().find(|one| one.kind() == kind && name.as_str() == Some(one.name())).unwrap().value()
        };
        let write = |volume: &Value, key: &str, bytes: &[u8], mode: u32| {
            let directory = self.volume(volume["name"].as_str().unwrap());
            std::fs::create_dir_all(&directory).unwrap();
            let path = directory.join(key);
            let _ = std::fs::remove_file(&path);
            std::fs::write(&path, bytes).unwrap();
            chown(&path, Some(0), Some(group)).unwrap();
            std::fs::set_permissions(&path, std::fs::Permissions::from_mode(mode)).unwrap();
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
                let _ = std::fs::remove_dir_all(&directory);
                std::fs::create_dir_all(&directory).unwrap();
                for item in source["items"].as_array().unwrap() {
                    let Some(text) = data[item["key"].as_str().unwrap()].as_str() else {
                        assert_eq!(source["optional"], true, "{item}");
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

    fn volume(&self, name: &str) -> PathBuf {
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
        let mut all: Vec<String> = ["run", "--detach", "--publish", "127.0.0.1::5432", "--ulimit", "nofile=4096:4096"]
            .iter()
            .chain(&["--read-only", "--cap-drop", "ALL", "--security-opt", "no-new-privileges"])
            .map(|word| (*word).to_owned())
            .collect();
        let mut flag = |name: &str, value: String| all.extend([name.to_owned(), value]);
        flag("--name", self.called(&text(&container["name"])));
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

    fn docker(&self, arguments: &[&str]) -> String {
        let (succeeded, said) = Ground::Docker.engine(arguments);
        assert!(succeeded, "docker {arguments:?}: {said}");
        said
    }

    /// Runs the container that comes first, to its end: its status and its last words.
    fn initialise(&self, all: &[Manifest]) -> (String, String) {
        let pod = &template(all)["spec"];
        self.mount(all, pod);
        let name = self.called("initdb");
        Ground::Docker.engine(&["rm", "--force", &name]);
        let arguments = self.arguments(pod, &pod["initContainers"][0]);
        self.docker(&arguments.iter().map(String::as_str).collect::<Vec<_>>());
        let status = self.docker(&["wait", &name]);
        (status, self.docker(&["logs", &name]).lines().last().unwrap_or_default().to_owned())
    }

    /// Runs the server until its own probe says that it is ready; the port where it is reached.
    fn start(&self, all: &[Manifest]) -> u16 {
        assert_eq!(self.initialise(all).0, "0", "{}", self.docker(&["logs", &self.called("initdb")]));
        let pod = &template(all)["spec"];
        let (name, server) = (self.called("postgres"), &pod["containers"][0]);
        Ground::Docker.engine(&["rm", "--force", &name]);
        let arguments = self.arguments(pod, server);
        self.docker(&arguments.iter().map(String::as_str).collect::<Vec<_>>());
        let begun = Instant::now();
        while !self.exec(&server["readinessProbe"]).0 {
            assert!(begun.elapsed() < Duration::from_secs(60), "{}", self.docker(&["logs", &name]));
            std::thread::sleep(Duration::from_millis(200));
        }
        for probe in ["startupProbe", "livenessProbe"] {
            assert!(self.exec(&server[probe]).0, "{probe}");
        }
        let shown = self.docker(&["port", &name, "5432"]);
        shown.lines().next().unwrap().rsplit_once(':').unwrap().1.parse().unwrap()
    }

    /// Runs what a probe or a hook says inside of the server's container.
    fn exec(&self, handler: &Value) -> (bool, String) {
        let name = self.called("postgres");
        let command = handler["exec"]["command"].as_array().unwrap();
        let words = command.iter().map(|word| word.as_str().unwrap());
        Ground::Docker.engine(&["exec", &name].into_iter().chain(words).collect::<Vec<_>>())
    }

    /// As the kubelet does: the hook, then the signal. What the server printed.
    fn stop(&self, all: &[Manifest]) -> String {
        let pod = &template(all)["spec"];
        let name = self.called("postgres");
        self.exec(&pod["containers"][0]["lifecycle"]["preStop"]);
        let grace = pod["terminationGracePeriodSeconds"].to_string();
        self.docker(&["stop", "--time", &grace, &name]);
        assert_eq!(self.docker(&["wait", &name]), "0");
        self.docker(&["logs", &name])
    }
}

fn template(all: &[Manifest]) -> &Value {
    let set = all.iter().find(|one| one.kind() == "StatefulSet").unwrap();
    &set.value()["spec"]["template"]
}

fn login(user: &str, password: &str) -> Login {
    Login { user: user.to_owned(), database: "postgres".to_owned(), password: SecretString::from(password) }
}

async fn number(connection: &mut PgConnection, statement: &'static str) -> i64 {
    sqlx::query_scalar(statement).fetch_one(connection).await.unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pod_comes_up_behind_tls_and_goes_down_in_order() {
    if !machine_has(Ground::Docker).await {
        return;
    }
    assert!(
        rustix::process::geteuid().is_root() || std::env::var("CI").as_deref() != Ok("true"),
        "CI must run as root"
    );
    if !rustix::process::geteuid().is_root() {
        eprintln!("\n==== SKIPPED, NOTHING TESTED: only root can give files to the pod's group\n");
        return;
    }
    let settings = KubernetesSettings { image: test_image(), major: 15, ..KubernetesSettings::default() };
    let now = || i64::try_from(std::time::SystemTime::UNIX_EPOCH.elapsed().unwrap().as_secs()).unwrap();
    let random = Randomness::new(rand::rngs::StdRng::seed_from_u64(5));
    let authority = Authority::new(Arc::new(MemoryStore::default()), random, Clock::new(now));
    let files = authority.ensure(&[settings.host(), "127.0.0.1".to_owned()]).unwrap();
    let verifier = postgres_protocol::password::scram_sha_256(PASSWORD.as_bytes());
    let mut content = Content::new(&settings.config(&Limits::default(), &Wal::Recycle));
    content.secrets = BTreeMap::from([
        ("ca.crt".to_owned(), files.ca.into_bytes()),
        ("server.crt".to_owned(), files.certificate.into_bytes()),
        ("server.key".to_owned(), files.key.expose_secret().as_bytes().to_vec()),
        (VERIFIER.to_owned(), verifier.into_bytes()),
    ]);

    let kubelet = Kubelet::new();
    let all = database(&settings, &content);
    let endpoint = Endpoint::new("127.0.0.1", kubelet.start(&all), authority.clone());
    let admin = endpoint.options(&login("bibd_admin", PASSWORD));
    let mut connection = admin.connect().await.unwrap();
    assert_eq!(
        number(
            &mut connection,
            "select count(*) from pg_stat_ssl where pid = pg_backend_pid() and ssl and version = 'TLSv1.3'"
        )
        .await,
        1
    );
    let cluster = number(&mut connection, "select system_identifier from pg_control_system()").await;
    sqlx::query("create table kept (n int)").execute(&mut connection).await.unwrap();
    // The files in the pod are the server's effective settings, without an error and without one that waits.
    assert_eq!(number(&mut connection, "select count(*) from pg_file_settings where error is not null").await, 0);
    assert_eq!(number(&mut connection, "select count(*) from pg_hba_file_rules where error is not null").await, 0);
    connection.close().await.unwrap();

    // Either factor alone opens nothing, and a certificate of another role is none.
    let wrong = endpoint.options(&login("bibd_admin", "wrong")).connect().await.unwrap_err().to_string();
    assert!(wrong.contains("password authentication failed"), "{wrong}");
    let service = authority.client("bibd_service_a").unwrap();
    let others = admin
        .clone()
        .ssl_client_cert_from_pem(service.certificate)
        .ssl_client_key_from_pem(service.key.expose_secret());
    let refused = others.connect().await.unwrap_err().to_string();
    assert!(refused.contains("certificate") || refused.contains("authentication failed"), "{refused}");
    let plain = admin.clone().ssl_mode(sqlx::postgres::PgSslMode::Disable).connect().await.unwrap_err().to_string();
    assert!(plain.contains("pg_hba.conf rejects connection"), "{plain}");

    let said = kubelet.stop(&all);
    assert!(said.contains("fast shutdown request") && said.contains("database system is shut down"), "{said}");
    assert!(!said.contains(PASSWORD));

    // Once there is a cluster the verifier goes, and the pod must find that very cluster.
    content.secrets.remove(VERIFIER);
    content.cluster = u64::try_from(cluster).ok();
    let all = database(&settings, &content);
    let endpoint = Endpoint::new("127.0.0.1", kubelet.start(&all), authority);
    let mut connection = endpoint.options(&login("bibd_admin", PASSWORD)).connect().await.unwrap();
    assert_eq!(number(&mut connection, "select count(*) from kept").await, 0);
    connection.close().await.unwrap();
    kubelet.stop(&all);

    content.cluster = Some(5);
    let (status, reason) = kubelet.initialise(&database(&settings, &content));
    assert_eq!((status.as_str(), reason), ("1", format!("the volume holds cluster {cluster}, expected 5")));
}
