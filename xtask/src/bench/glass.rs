//! What the recording proxy of break-glass costs the person at `psql`.
//!
//! The same `psql` says the same to the same server, in turn: through `bib admin break-glass connect`, where every
//! statement is on the disk and in the audit log before it is passed on, and directly, by SCRAM on the server's own socket,
//! as a role of the same group that the bench makes for itself. `psql` itself measures (`\timing`).

use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail, ensure};
use serde_json::Value;

use super::login::Login;
use super::{Bench, median};
use crate::node::{Node, passable_directory};
use crate::process::{capture, cargo};
use crate::report::Bound;

/// What a person does in an emergency: looks around, asks, repairs. `\d` is several statements of `psql`'s own.
const EMERGENCY: &str = "\\d bib.topics
SELECT action, count(*), max(time) FROM bib.audit_entry GROUP BY action ORDER BY 2 DESC LIMIT 20;
SELECT date_trunc('hour', time), count(*), sum(length(body)) FROM bib.audit_entry GROUP BY 1 ORDER BY 1;
SELECT t.name, count(e.*) FROM bib.topics t LEFT JOIN bib.audit_entry e ON e.target = t.name GROUP BY 1 ORDER BY 2 DESC LIMIT 20;
BEGIN;
UPDATE bib.topics SET title = title || ' ' WHERE name LIKE 'bench-1%';
SELECT count(*) FROM bib.topics WHERE title LIKE '% ';
ROLLBACK;
";
/// A statement that costs the server next to nothing: what is left is the way.
const NOTHING: &str = "SELECT 1;\n";
/// Sessions each way.
const SESSIONS: usize = 15;
/// How often a session says [`NOTHING`].
const NOTHINGS: usize = 200;

/// Measures the same sessions directly and through the proxy.
pub(super) fn glass(bench: &mut Bench) -> anyhow::Result<()> {
    let directory = passable_directory(None)?;
    let mut node = configured(bench, directory.path())?;
    node.start()?;
    fill(bench, &node)?;
    let key = directory.path().join("key").display().to_string();
    let enable = ["admin", "break-glass", "enable", "--reason", "bench", "--duration", "1h", "--access", "readwrite"];
    node.ask(&[&enable[..], &["--key", &key]].concat())?;
    let login = make_login(bench, &node)?;

    let mut sums: [Vec<f64>; 4] = Default::default();
    for _ in 0..SESSIONS {
        // In turn, so that both meet the same moods of the machine.
        sums[0].push(timed(login.psql(bench), EMERGENCY)?.iter().sum());
        sums[1].push(timed(through(&node), EMERGENCY)?.iter().sum());
        sums[2].extend(timed(login.psql(bench), &NOTHING.repeat(NOTHINGS))?);
        sums[3].extend(timed(through(&node), &NOTHING.repeat(NOTHINGS))?);
    }
    let mut whole: [Vec<f64>; 2] = Default::default();
    for _ in 0..SESSIONS {
        whole[0].push(session_ms(login.psql(bench))?);
        whole[1].push(session_ms(through(&node))?);
    }
    let dead = cut_after_s(&node, "SELECT 1;", || remove_recordings(directory.path()))?;
    node.ask(&["admin", "break-glass", "disable"])?;
    node.ask(&["admin", "break-glass", "review", "--note", "bench"])?;
    let short = ["admin", "break-glass", "enable", "--reason", "bench", "--duration", "5s", "--access", "readwrite"];
    node.ask(&[&short[..], &["--key", &key]].concat())?;
    let opened = Instant::now();
    cut_after_s(&node, "BEGIN; SELECT pg_sleep(3600);", || Ok(()))?;
    let expired = opened.elapsed().as_secs_f64() - 5.0;
    let [emergency_direct, emergency, nothing_direct, nothing] = sums.map(median);
    let [whole_direct, whole] = whole.map(median);
    let verdict = node.ask(&["admin", "audit", "verify"])?;
    ensure!(verdict["verdict"] == "OK", "the audit log: {verdict}");
    node.stop()?;

    bench.figure("statements of an emergency, directly", emergency_direct, "ms", None);
    bench.figure("the same, recorded", emergency, "ms", None);
    bench.figure("recorded to direct", emergency / emergency_direct, "x", Some(Bound::AtMost(1.3)));
    bench.figure("`SELECT 1`, directly", nothing_direct, "ms", None);
    bench.figure("`SELECT 1`, recorded", nothing, "ms", None);
    bench.figure("a whole `psql` with one statement, directly", whole_direct, "ms", None);
    bench.figure("a whole `bib admin break-glass connect` with one statement", whole, "ms", None);
    bench.figure("a session whose recorder died is cut after", dead, "s", Some(Bound::AtMost(2.0)));
    bench.figure("a running statement is cut after the end of its grant by", expired, "s", Some(Bound::AtMost(5.0)));
    Ok(())
}

/// What kills a recorder without a word.
fn remove_recordings(home: &Path) -> anyhow::Result<()> {
    let mut removed = 0;
    for grant in fs::read_dir(home.join("data/glass")).context("read the recordings")?.flatten() {
        for entry in fs::read_dir(grant.path()).context("read the recordings")?.flatten() {
            if entry.path().extension().is_some_and(|extension| extension == "jsonl") {
                fs::remove_file(entry.path()).context("remove a recording")?;
                removed += 1;
            }
        }
    }
    ensure!(removed > 0, "there was no recording");
    Ok(())
}

/// Runs a session that says this and goes on, then `act`; returns how long after it the node has ended the session.
fn cut_after_s(node: &Node, said: &str, act: impl FnOnce() -> anyhow::Result<()>) -> anyhow::Result<f64> {
    let newest = || -> anyhow::Result<Value> { Ok(node.ask(&["admin", "break-glass", "sessions"])?[0].take()) };
    let before = newest()?["session"].take();
    let mut psql = through(node);
    let mut child =
        psql.stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::null()).spawn().context("start psql")?;
    let mut input = child.stdin.take().context("psql has no input")?;
    std::io::Write::write_all(&mut input, format!("{said}\n").as_bytes())?;
    let wait = |what: &str, is: &dyn Fn(&Value) -> bool| -> anyhow::Result<f64> {
        let began = Instant::now();
        while !is(&newest()?) {
            ensure!(began.elapsed() < Duration::from_secs(60), "not within a minute: {what}");
            std::thread::sleep(Duration::from_millis(20));
        }
        Ok(began.elapsed().as_secs_f64())
    };
    wait("the session is there", &|session| session["session"] != before)?;
    // It has been said, and the statement runs.
    std::thread::sleep(Duration::from_secs(1));
    act()?;
    let took = wait("it is cut", &|session| session["ended_at"].as_str().is_some_and(|at| !at.is_empty()))?;
    drop(input);
    child.wait().context("wait for psql")?;
    Ok(took)
}

fn configured(bench: &Bench, home: &Path) -> anyhow::Result<Node> {
    let mut make = Command::new("ssh-keygen");
    make.args(["-q", "-t", "ed25519", "-N", "", "-C", "bench", "-f"]).arg(home.join("key"));
    capture(&mut make)?;
    let key = fs::read_to_string(home.join("key.pub")).context("read the key")?;
    fs::create_dir_all(home.join("config")).context("make the directory of the configuration")?;
    let text = format!(
        "database:\n  break_glass:\n    enabled: true\n    access: readwrite\n    allowed_users:\n      - name: bench\n        \
         public_key: \"{}\"\n",
        key.trim()
    );
    fs::write(home.join("config/config.yaml"), text).context("write the configuration")?;
    Ok(bench.node(home))
}

/// Rows to ask about, made as anybody makes them.
fn fill(bench: &Bench, node: &Node) -> anyhow::Result<()> {
    let build = ["build", "--release", "--locked", "--package", "bib-client", "--example", "topic_storm"];
    crate::process::run(cargo().args(build))?;
    let storm = bench.programs.bib.with_file_name("examples").join("topic_storm");
    let socket = node.ready()?.socket.display().to_string();
    capture(Command::new(storm).args([&socket, "8", "10", "bench"])).map(drop)
}

/// Makes the role that goes past the daemon.
fn make_login(bench: &Bench, node: &Node) -> anyhow::Result<Login> {
    let superuser = Login::superuser(bench, node)?;
    let sql = "CREATE ROLE bench LOGIN PASSWORD 'bench'; ALTER ROLE bench SET search_path = bib, pg_catalog, pg_temp;
               GRANT bibd_glass_write TO bench";
    superuser.say(bench, sql)?;
    Ok(superuser.of("bench", "bench"))
}

fn through(node: &Node) -> Command {
    node.bib(["admin", "break-glass", "connect", "--quiet", "--", "-X"])
}

/// Runs a session and returns what `psql` measured for each statement, in milliseconds.
fn timed(mut psql: Command, script: &str) -> anyhow::Result<Vec<f64>> {
    psql.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = psql.spawn().context("start psql")?;
    let input = format!("\\set ON_ERROR_STOP 1\n\\timing on\n{script}");
    std::io::Write::write_all(&mut child.stdin.take().context("psql has no input")?, input.as_bytes())?;
    let output = child.wait_with_output().context("wait for psql")?;
    if !output.status.success() {
        bail!("psql failed: {}", String::from_utf8_lossy(&output.stderr));
    }
    let text = String::from_utf8_lossy(&output.stdout);
    let times: Vec<f64> =
        text.lines().filter_map(|line| line.strip_prefix("Time: ")?.split(' ').next()?.parse().ok()).collect();
    ensure!(!times.is_empty(), "psql measured nothing: {text}");
    Ok(times)
}

fn session_ms(mut psql: Command) -> anyhow::Result<f64> {
    let began = Instant::now();
    capture(psql.args(["-A", "-t", "-c", "SELECT count(*) FROM bib.topics"]))?;
    Ok(began.elapsed().as_secs_f64() * 1_000.0)
}
