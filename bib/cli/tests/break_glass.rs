//! Break-glass as a person types it: the real `bib`, the real `bibd`, the real `psql`, and the prompt for who has none.

#![allow(clippy::unwrap_used, clippy::print_stderr)]

mod support;

use std::io::Write as _;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use bib_identity::ssh::generate;
use support::{Bib, Node, temporary, wait_for};

/// Whether there is a `psql`. Without one the tests that need it say so; in CI they fail.
fn has_psql() -> bool {
    let found = Command::new("psql").arg("--version").output().is_ok_and(|output| output.status.success());
    assert!(found || std::env::var("CI").as_deref() != Ok("true"), "NOT TESTED: there is no psql");
    if !found {
        eprintln!("NOT TESTED: there is no psql");
    }
    found
}

/// A node that may break glass, and who may confirm it with the key `~/.ssh/id_ed25519`.
fn node() -> Option<(Node, Bib)> {
    let keys = temporary();
    generate(&keys.path().join("id"), "test", &mut rand::rngs::OsRng).unwrap();
    let public = std::fs::read_to_string(keys.path().join("id.pub")).unwrap();
    let node = Node::start_with(&format!(
        "database:\n  break_glass:\n    enabled: true\n    access: readwrite\n    allowed_users:\n      - name: ops\n        \
         public_key: \"{}\"\n",
        public.trim()
    ))?;
    let person = node.person();
    std::fs::create_dir_all(person.path(".ssh")).unwrap();
    for name in ["id", "id.pub"] {
        let target = person.path(".ssh").join(name.replace("id", "id_ed25519"));
        std::fs::copy(keys.path().join(name), target).unwrap();
    }
    Some((node, person))
}

/// `bib` with a `psql` on its path, and things in its environment that would lead that elsewhere.
fn connect(person: &Bib, arguments: &[&str]) -> Command {
    let mut command = person.command(&[&["admin", "break-glass", "connect", "--quiet"], arguments].concat());
    std::fs::create_dir_all(person.path("tmp")).unwrap();
    command.env("PATH", std::env::var("PATH").unwrap()).env("TMPDIR", person.path("tmp"));
    command.env("PGHOST", "192.0.2.1").env("PGUSER", "nobody").env("PGPASSWORD", "x").env("PGOPTIONS", "-c jit=on");
    command.env("PGSERVICE", "none").env("PGSSLMODE", "verify-full");
    command
}

fn said(mut command: Command) -> (bool, String, String) {
    let output = command.output().unwrap();
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    (output.status.success(), text(&output.stdout), text(&output.stderr))
}

fn end_of(child: &mut Child) -> bool {
    let deadline = Instant::now() + Duration::from_secs(60);
    loop {
        match child.try_wait().unwrap() {
            Some(status) => return status.success(),
            None if Instant::now() > deadline => {
                child.kill().unwrap();
                panic!("it hangs");
            }
            None => std::thread::sleep(Duration::from_millis(10)),
        }
    }
}

const GLASS: [&str; 2] = ["admin", "break-glass"];

#[test]
fn a_person_opens_the_glass_looks_around_and_is_reviewed() {
    let Some((node, person)) = node() else { return };
    if !has_psql() {
        return;
    }
    let status = person.json(&[&GLASS[..], &["status"]].concat());
    assert_eq!((status["enabled"].as_bool(), status["state"].as_str()), (Some(true), Some("")), "{status}");
    assert_eq!(person.fails(6, &[&GLASS[..], &["connect"]].concat())["code"], "BIB0608");
    let enable =
        |more: &[&'static str]| [&GLASS[..], &["enable", "--reason", "ticket 17", "--duration", "10m"], more].concat();
    let stranger = node.person();
    let error = stranger.fails(4, &enable(&[]));
    assert!(error["code"] == "BIB0503" && error["hint"].as_str().unwrap().contains("(ops)"), "{error}");
    let grant = person.json(&enable(&["--access", "readwrite"]));
    assert_eq!((grant["state"].as_str(), grant["key_name"].as_str()), (Some("open"), Some("ops")), "{grant}");

    assert!((1..=600_000).contains(&grant["remaining_ms"].as_u64().unwrap()), "{grant}");

    let (well, out, err) = said(connect(&person, &["--", "-X", "-A", "-t", "-c", "SELECT 6 * 7"]));
    assert!(well && (out.as_str(), err.as_str()) == ("42\n", ""), "{out} {err}");
    let (well, _, err) = said(connect(&person, &["--", "-X", "-c", "SELECT nothing"]));
    assert!(!well && err.contains("column \"nothing\" does not exist"), "{err}");
    let mut script = connect(&person, &["--", "-X", "-A", "-t"]);
    let mut script = script.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    script
        .stdin
        .take()
        .unwrap()
        .write_all(b"BEGIN;\nSELECT 'in a transaction';\n\\connect\nSELECT 'again';\n")
        .unwrap();
    let output = script.wait_with_output().unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    assert!(text.contains("in a transaction") && text.contains("again"), "{text}");

    // Ctrl-C, as a terminal sends it: to the whole group.
    let mut long = connect(&person, &["--", "-X", "-c", "SELECT pg_sleep(3600)"]);
    std::os::unix::process::CommandExt::process_group(&mut long, 0);
    let mut long = long.stdin(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
    wait_for("the statement", || recorded(&node.data(), "pg_sleep(3600)").then_some(()));
    // It is recorded before it runs, and only a statement that runs is cancelled.
    wait_for("its run", || runs_for_a_person(&node.data()).then_some(()));
    let group = rustix::process::Pid::from_raw(i32::try_from(long.id()).unwrap()).unwrap();
    rustix::process::kill_process_group(group, rustix::process::Signal::INT).unwrap();
    assert!(!end_of(&mut long));
    let mut err = String::new();
    std::io::Read::read_to_string(&mut long.stderr.take().unwrap(), &mut err).unwrap();
    assert!(err.contains("canceling statement due to user request"), "{err}");

    let ended = person.json(&[&GLASS[..], &["disable"]].concat());
    assert_eq!((ended["state"].as_str(), ended["end_reason"].as_str()), (Some("ended"), Some("disabled")), "{ended}");
    let sessions = person.json(&[&GLASS[..], &["sessions"]].concat());
    let sessions = sessions.as_array().unwrap();
    assert_eq!(sessions.len(), 5, "{sessions:?}");
    assert!(sessions.iter().all(|one| one["end_reason"] == "left" && one["application"] == "psql"), "{sessions:?}");
    let oldest = sessions.last().unwrap()["session"].as_str().unwrap();
    let lines = person.ok(&[&GLASS[..], &["show", oldest]].concat());
    assert!(lines.lines().any(|line| line.contains(r#""text":"SELECT 6 * 7""#)), "{lines}");
    let cast = person.ok(&[&GLASS[..], &["show", oldest, "--cast"]].concat());
    let head: serde_json::Value = serde_json::from_str(cast.lines().next().unwrap()).unwrap();
    assert!(head["version"] == 2 && cast.contains("SELECT 6 * 7") && cast.contains("42"), "{cast}");

    let report = person.json(&[&GLASS[..], &["report"]].concat());
    assert_eq!((report["reason"].as_str(), report["changes"].as_array().map(Vec::len)), (Some("ticket 17"), Some(0)));
    let page = person.ok(&[&GLASS[..], &["report", "-o", "markdown"]].concat());
    assert!(page.contains("| why | ticket 17 |") && page.contains("SELECT 6 \\* 7"), "{page}");
    assert_eq!(person.fails(6, &enable(&[]))["code"], "BIB0609");
    let reviewed = person.json(&[&GLASS[..], &["review", "--note", "fine"]].concat());
    assert_eq!(reviewed["review"], "fine");
    person.json(&enable(&[]));
    let acts = person.json(&["admin", "audit", "list", "--action", "break_glass."]);
    let acts: Vec<&str> = acts.as_array().unwrap().iter().map(|act| act["action"].as_str().unwrap()).collect();
    for action in ["enable", "connect", "statement", "leave", "end", "show", "review"] {
        assert!(acts.contains(&format!("break_glass.{action}").as_str()), "{action} in {acts:?}");
    }
    assert_eq!(std::fs::read_dir(person.path("tmp")).unwrap().count(), 0, "a directory of a socket was left");
    node.stop();
}

/// Whether the session of a person is in a statement: the processes of a PostgreSQL work in its directory, and say by
/// their names what they do.
fn runs_for_a_person(data: &Path) -> bool {
    let directory = data.join("postgres/data");
    let processes = std::fs::read_dir("/proc").unwrap().flatten().map(|process| process.path());
    let mut ours = processes.filter(|path| std::fs::read_link(path.join("cwd")).is_ok_and(|cwd| cwd == directory));
    ours.any(|path| {
        let name = std::fs::read(path.join("cmdline")).unwrap_or_default();
        let name = String::from_utf8_lossy(&name);
        name.starts_with("postgres: bibd_glass_") && name.trim_end_matches(['\0', ' ']).ends_with(" SELECT")
    })
}

/// Whether any recording of the node has this text.
fn recorded(data: &Path, text: &str) -> bool {
    let files = |path: &Path| std::fs::read_dir(path).into_iter().flatten().flatten().map(|entry| entry.path());
    let mut recordings = files(&data.join("glass")).flat_map(|grant| files(&grant).collect::<Vec<_>>());
    recordings.any(|path| std::fs::read_to_string(path).is_ok_and(|found| found.contains(text)))
}

#[test]
fn who_has_no_psql_has_a_prompt() {
    let Some((node, person)) = node() else { return };
    person.json(&[&GLASS[..], &["enable", "--reason", "no psql here", "--duration", "10m"]].concat());
    // `--builtin`, for the psql of a distribution is found wherever `PATH` leads.
    let mut prompt = person.command(&[&GLASS[..], &["connect", "--quiet", "--builtin"]].concat());
    let mut prompt = prompt.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let input = "SELECT 'one' AS a,\n  NULL AS b;\nSELECT nothing;\nSELECT 'still here';\n\\q\n";
    prompt.stdin.take().unwrap().write_all(input.as_bytes()).unwrap();
    let output = prompt.wait_with_output().unwrap();
    let (out, err) = (String::from_utf8(output.stdout).unwrap(), String::from_utf8(output.stderr).unwrap());
    assert!(output.status.success() && out.contains("one") && out.contains("still here"), "{out} {err}");
    assert!(out.contains("(1 row)") && err.contains("column \"nothing\" does not exist"), "{out} {err}");
    let sessions = person.json(&[&GLASS[..], &["sessions"]].concat());
    assert_eq!((sessions[0]["application"].as_str(), sessions[0]["statements"].as_u64()), (Some("bib"), Some(3)));

    // Cut at the end of its time, it says so.
    let mut prompt = person.command(&[&GLASS[..], &["connect", "--quiet", "--builtin"]].concat());
    let mut prompt = prompt.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let mut input = prompt.stdin.take().unwrap();
    input.write_all(b"SELECT 'before the end';\n").unwrap();
    wait_for("the statement", || recorded(&node.data(), "before the end").then_some(()));
    person.json(&[&GLASS[..], &["disable"]].concat());
    assert!(!end_of(&mut prompt));
    let mut err = String::new();
    std::io::Read::read_to_string(&mut prompt.stderr.take().unwrap(), &mut err).unwrap();
    assert!(err.contains("the session is over"), "{err}");
    drop(input);
    node.stop();
}
