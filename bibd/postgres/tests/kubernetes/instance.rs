//! One instance of the operator's: its directories, its files, and its container in Docker.
#![allow(dead_code, unreachable_pub, reason = "each test binary uses its own part")]

use std::collections::BTreeMap;
use std::os::unix::fs::{PermissionsExt as _, chown};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use serde_json::Value;
use tempfile::TempDir;

use crate::kubelet::docker;

/// The user of the operator's images.
pub const UID: u32 = 26;
const BIN: &str = "/usr/lib/postgresql/15/bin";
pub const DATA: &str = "/var/lib/postgresql/data";

/// Removed, with its container, when dropped.
pub struct Instance {
    home: TempDir,
    pub container: String,
}

impl Drop for Instance {
    fn drop(&mut self) {
        self.remove();
    }
}

impl Instance {
    pub fn new() -> Self {
        let home = tempfile::Builder::new().prefix("operator").tempdir_in("/tmp").unwrap();
        std::fs::set_permissions(home.path(), std::fs::Permissions::from_mode(0o755)).unwrap();
        let container = home.path().file_name().unwrap().to_string_lossy().to_ascii_lowercase();
        Self { home, container }
    }

    pub fn path(&self, part: &str) -> PathBuf {
        self.home.path().join(part)
    }

    pub fn remove(&self) {
        docker(&["rm", "--force", &self.container]);
    }

    /// Its directories, and what `initdb` makes in them.
    pub fn initialise(&self, cluster: &Value) {
        for part in ["data", "run", "certificates", "log"] {
            let directory = self.path(part);
            std::fs::create_dir_all(&directory).unwrap();
            chown(&directory, Some(UID), Some(UID)).unwrap();
        }
        std::fs::write(self.path("passwd"), format!("postgres:x:{UID}:{UID}:P:/tmp:/bin/sh\n")).unwrap();
        let how = &cluster["spec"]["bootstrap"]["initdb"];
        let text = |key: &str| how[key].as_str().unwrap().to_owned();
        assert_eq!(how["dataChecksums"], true);
        let options =
            ["--username=postgres", "--data-checksums", "--no-instructions", "--auth-local=peer", "--auth-host=reject"];
        let more = [
            format!("--pgdata={DATA}/pgdata"),
            format!("--encoding={}", text("encoding")),
            format!("--lc-collate={}", text("localeCollate")),
            format!("--lc-ctype={}", text("localeCType")),
        ];
        let mut arguments = self.container_arguments(cluster, &["run", "--rm"]);
        arguments.push(format!("--entrypoint={BIN}/initdb"));
        arguments.push(image(cluster));
        arguments.extend(options.map(str::to_owned));
        arguments.extend(more);
        let (succeeded, said) = docker(&arguments.iter().map(String::as_str).collect::<Vec<_>>());
        assert!(succeeded, "docker {arguments:?}: {said}");
    }

    fn container_arguments(&self, cluster: &Value, verb: &[&str]) -> Vec<String> {
        let mut all: Vec<String> = verb.iter().map(|word| (*word).to_owned()).collect();
        let limits = &cluster["spec"]["ephemeralVolumesSizeLimit"];
        let shm = limits["shm"].as_str().unwrap().replace("Mi", "m");
        let user = format!("--user={UID}:{UID}");
        all.extend(["--read-only", "--cap-drop=ALL", "--security-opt=no-new-privileges", &user].map(str::to_owned));
        all.extend([format!("--shm-size={shm}"), "--tmpfs=/tmp:rw,mode=1777,size=64m".to_owned()]);
        let mount =
            |from: &str, to: &str| format!("--mount=type=bind,source={},target={to}", self.path(from).display());
        all.extend([mount("data", DATA), mount("passwd", "/etc/passwd")]);
        for part in ["run", "certificates", "log"] {
            all.push(mount(part, &format!("/controller/{part}")));
        }
        all
    }

    fn data(&self) -> PathBuf {
        self.path("data/pgdata")
    }

    /// Writes a file for the server; whether it said something else.
    pub fn write(&self, path: &Path, text: &[u8]) -> bool {
        if std::fs::read(path).is_ok_and(|is| is == text) {
            return false;
        }
        std::fs::write(path, text).unwrap();
        chown(path, Some(UID), Some(UID)).unwrap();
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o600)).unwrap();
        true
    }

    /// Its defaults, what the object says, and what it keeps for itself, in this order; and the rules around ours.
    pub fn configure(&self, cluster: &Value, name: &str) -> bool {
        let defaults = [
            ("archive_timeout", "5min"),
            ("dynamic_shared_memory_type", "posix"),
            ("full_page_writes", "on"),
            ("logging_collector", "on"),
            ("log_destination", "csvlog"),
            ("log_directory", "/controller/log"),
            ("log_filename", "postgres"),
            ("log_rotation_age", "0"),
            ("log_rotation_size", "0"),
            ("log_truncate_on_rotation", "false"),
            ("max_parallel_workers", "32"),
            ("max_worker_processes", "32"),
            ("max_replication_slots", "32"),
            ("shared_memory_type", "mmap"),
            ("ssl_max_protocol_version", "TLSv1.3"),
            ("ssl_min_protocol_version", "TLSv1.3"),
            ("wal_keep_size", "512MB"),
            ("wal_level", "logical"),
            ("wal_log_hints", "on"),
            ("wal_sender_timeout", "5s"),
            ("wal_receiver_timeout", "5s"),
            ("shared_preload_libraries", ""),
        ];
        let kept = [
            // There is no manager in this image; the operator's own says that all is well where nothing is archived.
            ("archive_command", "/bin/true"),
            ("archive_mode", "on"),
            ("cluster_name", name),
            ("hot_standby", "true"),
            ("listen_addresses", "*"),
            ("port", "5432"),
            ("restart_after_crash", "false"),
            ("ssl", "on"),
            ("ssl_cert_file", "/controller/certificates/server.crt"),
            ("ssl_key_file", "/controller/certificates/server.key"),
            ("ssl_ca_file", "/controller/certificates/client-ca.crt"),
            ("unix_socket_directories", "/controller/run"),
        ];
        let own = |all: &[(&str, &str)]| -> BTreeMap<String, String> {
            all.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect()
        };
        let mut all = own(&defaults);
        for (name, value) in cluster["spec"]["postgresql"]["parameters"].as_object().unwrap() {
            assert!(!kept.iter().any(|(kept, _)| kept == name), "the operator refuses to be told of {name}");
            all.insert(name.clone(), value.as_str().unwrap().to_owned());
        }
        all.extend(own(&kept));
        let text: String =
            all.iter().map(|(name, value)| format!("{name} = '{}'\n", value.replace('\'', "''"))).collect();
        let lines: Vec<&str> = cluster["spec"]["postgresql"]["pg_hba"]
            .as_array()
            .unwrap()
            .iter()
            .map(|line| line.as_str().unwrap())
            .collect();
        let hba = format!(
            "local all all peer map=local\n\
             hostssl postgres streaming_replica all cert map=cnpg_streaming_replica\n\
             hostssl replication streaming_replica all cert map=cnpg_streaming_replica\n\
             hostssl all cnpg_pooler_pgbouncer all cert map=cnpg_pooler_pgbouncer\n\
             {}\n\
             host all all all scram-sha-256\n",
            lines.join("\n")
        );
        let ident = "local postgres postgres\ncnpg_streaming_replica streaming_replica streaming_replica\n";
        let conf = self.data().join("postgresql.conf");
        let first = std::fs::read_to_string(&conf).unwrap();
        if !first.contains("custom.conf") {
            self.write(&conf, format!("{first}\nlisten_addresses = '*'\ninclude 'custom.conf'\n").as_bytes());
        }
        self.write(&self.data().join("custom.conf"), text.as_bytes())
            | self.write(&self.data().join("pg_hba.conf"), hba.as_bytes())
            | self.write(&self.data().join("pg_ident.conf"), ident.as_bytes())
    }

    pub fn run(&self, cluster: &Value, port: u64) {
        let mut arguments = self.container_arguments(cluster, &["run", "--detach"]);
        arguments.push(format!("--name={}", self.container));
        arguments.push(format!("--publish=127.0.0.1:{port}:5432"));
        arguments.push(format!("--entrypoint={BIN}/postgres"));
        arguments.extend([image(cluster), "-D".to_owned(), format!("{DATA}/pgdata")]);
        wait("the port is free again", || {
            docker(&["rm", "--force", &self.container]);
            let (succeeded, said) = docker(&arguments.iter().map(String::as_str).collect::<Vec<_>>());
            let is_taken = said.contains("already allocated") || said.contains("address already in use");
            assert!(succeeded || is_taken, "{arguments:?}: {said}");
            succeeded
        });
    }

    pub fn psql(&self, sql: &str) -> (bool, String) {
        self.psql_each(&[sql])
    }

    /// One statement after the other, in one session: as the operator keeps what it sets out of the log.
    pub fn psql_each(&self, all: &[&str]) -> (bool, String) {
        let psql = format!("{BIN}/psql");
        let mut words = vec!["exec", &self.container, &psql, "-XAtq", "-v", "ON_ERROR_STOP=1", "-h", "/controller/run"];
        words.extend(["-U", "postgres", "-d", "postgres"]);
        words.extend(all.iter().flat_map(|sql| ["-c", sql]));
        docker(&words)
    }

    pub fn ask(&self, sql: &str) -> String {
        let (succeeded, said) = self.psql(sql);
        assert!(succeeded, "{sql}: {said}");
        said
    }

    pub fn shut_down(&self) {
        docker(&["kill", "--signal=INT", &self.container]);
        assert_eq!(docker(&["wait", &self.container]).1, "0");
    }
}

fn image(cluster: &Value) -> String {
    cluster["spec"]["imageName"].as_str().unwrap().to_owned()
}

pub fn wait(what: &str, mut done: impl FnMut() -> bool) {
    let begun = Instant::now();
    while !done() {
        assert!(begun.elapsed() < Duration::from_secs(90), "{what}");
        std::thread::sleep(Duration::from_millis(200));
    }
}
