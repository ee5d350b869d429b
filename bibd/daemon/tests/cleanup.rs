//! `bibd cleanup`: everything of a node goes, and nothing before it was asked for.
#![allow(clippy::unwrap_used, clippy::print_stderr)]

use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use bibd::data_dir::DataDir;

/// A directory with a node in it.
struct Place {
    dir: tempfile::TempDir,
    database: Vec<(&'static str, String)>,
}

impl Place {
    fn new(database: Vec<(&'static str, String)>) -> Self {
        let dir = tempfile::tempdir().unwrap();
        // When root, PostgreSQL's user must pass through.
        std::fs::set_permissions(dir.path(), std::fs::Permissions::from_mode(0o711)).unwrap();
        Self { dir, database }
    }

    fn data(&self) -> PathBuf {
        self.dir.path().join("data")
    }

    fn command(&self, arguments: &[&str]) -> Command {
        self.command_on(&self.data(), arguments)
    }

    fn command_on(&self, data: &Path, arguments: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_bibd"));
        command.arg("--config-dir").arg(self.dir.path().join("config")).arg("--data-dir").arg(data);
        command.args(arguments).env_remove("BIBD_DATA_DIR").env_remove("BIBD_CONFIG_DIR").stdin(Stdio::null());
        command.envs(self.database.iter().map(|(name, value)| (name, value)));
        command
    }

    fn run(&self, arguments: &[&str]) -> (Option<i32>, String) {
        self.run_on(&self.data(), arguments)
    }

    fn run_on(&self, data: &Path, arguments: &[&str]) -> (Option<i32>, String) {
        let output = self.command_on(data, arguments).output().unwrap();
        let text = [output.stdout, output.stderr].concat();
        (output.status.code(), String::from_utf8(text).unwrap())
    }

    fn make(&self) {
        let (code, said) = self.run(&["init"]);
        assert_eq!(code, Some(0), "{said}");
    }

    /// Names in the data directory.
    fn names(&self) -> Vec<String> {
        let entries = std::fs::read_dir(self.data()).into_iter().flatten();
        let mut names: Vec<String> = entries.map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    }
}

fn process() -> Vec<(&'static str, String)> {
    vec![("BIBD__DATABASE__PROVISIONER", "process".to_owned())]
}

async fn machine_has_postgres() -> bool {
    let settings = bibd_postgres::Settings::new("/nonexistent", "/nonexistent");
    let Err(error) = bibd_postgres::choose::Survey::of(&settings, bibd_postgres::Wanted::Auto).await.process else {
        return true;
    };
    assert!(std::env::var("CI").as_deref() != Ok("true"), "CI must have PostgreSQL: {error}");
    eprintln!("\n==== SKIPPED, NOTHING TESTED: {error}\n");
    false
}

#[tokio::test]
async fn a_node_goes_when_it_is_asked_for_and_not_before() {
    if !machine_has_postgres().await {
        return;
    }
    let place = Place::new(process());
    // Not a node's: somebody's home, an empty place.
    for path in [place.dir.path().join("nothing"), place.dir.path().to_owned()] {
        let (code, said) = place.run_on(&path, &["cleanup", "--yes"]);
        assert_eq!(code, Some(1), "{said}");
        assert!(said.contains("is not the data directory of a node") && said.contains("hint:"), "{said}");
    }
    assert!(place.dir.path().is_dir() && !place.dir.path().join("nothing").exists());
    place.make();
    let before = place.names();
    let (code, said) = place.run(&["cleanup", "--dry-run"]);
    assert_eq!(code, Some(0), "{said}");
    for part in ["node         12D3", "database     process", "removes      secrets: ", "stays        ", "dry run"] {
        assert!(said.contains(part), "{part} in {said}");
    }
    let (code, said) = place.run(&["cleanup"]);
    assert!(
        code == Some(2) && said.contains("there is nobody to ask") && said.contains("nothing was removed"),
        "{said}"
    );
    assert_eq!(place.names(), before);
    {
        let _daemon = DataDir::open(&place.data(), false).unwrap();
        let (code, said) = place.run(&["cleanup", "--yes"]);
        assert!(code == Some(3) && said.contains("BIB0401"), "{said}");
        assert_eq!(place.names(), before);
    }
    let (code, said) = place.run(&["cleanup", "--yes"]);
    assert!(code == Some(0) && said.ends_with("It is removed.\n"), "{said}");
    assert!(!place.data().exists());
    assert!(place.dir.path().join("config/config.yaml").exists(), "the configuration stays");
    // A new node, as on the first day.
    place.make();
    assert_eq!(place.names(), before);
}

#[tokio::test]
async fn a_server_that_runs_is_ended_and_what_was_cut_off_goes_on() {
    if !machine_has_postgres().await {
        return;
    }
    let place = Place::new(process());
    let ready = place.dir.path().join("ready.json");
    let mut daemon = place.command(&["--listen", "127.0.0.1:0", "run", "--ready-file"]);
    let mut daemon = daemon.arg(&ready).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
    while !ready.exists() {
        assert!(daemon.try_wait().unwrap().is_none());
        std::thread::sleep(std::time::Duration::from_millis(20));
    }
    // The daemon is killed; its PostgreSQL lives on.
    daemon.kill().unwrap();
    daemon.wait().unwrap();
    let pid = std::fs::read_to_string(place.data().join("postgres/data/postmaster.pid")).unwrap();
    let process = Path::new("/proc").join(pid.lines().next().unwrap());
    assert!(process.exists());
    // Cut off before: no daemon starts on what is left.
    std::fs::write(place.data().join("REMOVING"), "").unwrap();
    let (code, said) = place.run(&["run"]);
    assert!(code == Some(1) && said.contains("is being removed") && said.contains("bibd cleanup"), "{said}");
    let (code, said) = place.run(&["cleanup", "--yes"]);
    assert_eq!(code, Some(0), "{said}");
    assert_eq!(place.names(), Vec::<String>::new(), "{said}");
    assert!(!place.data().exists());
    // Where nobody waits for orphans a dead one keeps its number, and nothing else.
    assert!(std::fs::read(process.join("cmdline")).is_ok_and(|line| line.is_empty()) || !process.exists());
}

#[tokio::test]
async fn the_container_goes_with_the_node_and_nothing_goes_without_its_engine() {
    for socket in ["/run/docker.sock", "/run/podman/podman.sock"] {
        let mut settings = bibd_postgres::Settings::new("/nonexistent", "/nonexistent");
        settings.container.socket = Some(PathBuf::from(socket));
        settings.container.image = std::env::var("BIB_TEST_IMAGE").unwrap_or_else(|_| "bibd-postgres:15".to_owned());
        if !bibd_postgres::container::look(&settings).await.is_ok_and(|look| look.has_image) {
            assert!(std::env::var("CI").as_deref() != Ok("true"), "CI must have {socket} with the image");
            eprintln!("\n==== SKIPPED, NOTHING TESTED: no image behind {socket}\n");
            continue;
        }
        let place = Place::new(vec![
            ("BIBD__DATABASE__PROVISIONER", "container".to_owned()),
            ("BIBD__DATABASE__CONTAINER__IMAGE", settings.container.image.clone()),
            ("BIBD__DATABASE__CONTAINER__SOCKET", socket.to_owned()),
        ]);
        let containers = || {
            let home = format!("label=bib.home={}", place.data().join("postgres").display());
            let mut list = Command::new("docker");
            list.args(["--host", &format!("unix://{socket}"), "ps", "--all", "--quiet", "--filter", &home]);
            String::from_utf8(list.output().unwrap().stdout).unwrap().lines().count()
        };
        place.make();
        assert_eq!(containers(), 1);
        let before = place.names();
        let gone = place.dir.path().join("gone.sock");
        let output = place.command(&["cleanup", "--yes"]).env("BIBD__DATABASE__CONTAINER__SOCKET", gone).output();
        let output = output.unwrap();
        let said = String::from_utf8(output.stderr).unwrap();
        assert!(output.status.code() == Some(5) && said.contains("no container engine"), "{said}");
        assert!(said.contains("hint:"), "{said}");
        assert_eq!((place.names(), containers()), (before, 1));
        let (code, said) = place.run(&["cleanup", "--yes"]);
        assert_eq!(code, Some(0), "{said}");
        assert_eq!((place.data().exists(), containers()), (false, 0));
    }
}
