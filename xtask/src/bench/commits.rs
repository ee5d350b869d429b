//! Audited commits against what the same PostgreSQL does without an audit log, and how fast a log is verified.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::process::Command;

use anyhow::{Context as _, bail};
use serde_json::Value;

use super::Bench;
use crate::node::passable_directory;
use crate::process::{capture, cargo};
use crate::report::Bound;

/// Clients at once.
const CLIENTS: &str = "64";
/// How long each side is measured.
const SECONDS: &str = "15";

/// Rows as a topic's creation writes them, without chain, seal and checkpoint: the topic, its record, an audit entry and
/// its details, the queue's row.
const SCHEMA: &str = "\
CREATE TABLE topics (id uuid PRIMARY KEY, name text NOT NULL UNIQUE, body text NOT NULL);
CREATE TABLE records (kind text, id text, body bytea NOT NULL, sig bytea NOT NULL, PRIMARY KEY (kind, id));
CREATE TABLE entries (id uuid PRIMARY KEY, time timestamptz NOT NULL, body bytea NOT NULL);
CREATE TABLE details (id uuid PRIMARY KEY, salt bytea NOT NULL, details bytea NOT NULL);
CREATE TABLE queue (id uuid PRIMARY KEY, digest bytea NOT NULL);";

const SCRIPT: &str = "\
SELECT quote_literal(gen_random_uuid()) AS id \\gset
BEGIN;
INSERT INTO topics VALUES (:id, :id, repeat('t', 300));
INSERT INTO records VALUES ('topic', :id, convert_to(repeat('r', 500), 'UTF8'), convert_to(repeat('s', 64), 'UTF8'));
INSERT INTO entries VALUES (:id, now(), convert_to(repeat('e', 700), 'UTF8'));
INSERT INTO details VALUES (:id, convert_to(repeat('s', 32), 'UTF8'), convert_to(repeat('d', 200), 'UTF8'));
INSERT INTO queue VALUES (:id, convert_to(repeat('q', 32), 'UTF8'));
COMMIT;
";

/// 64 clients create topics over the socket; then pgbench commits the same rows.
pub(super) fn topics(bench: &mut Bench) -> anyhow::Result<()> {
    let build = ["build", "--release", "--locked", "--package", "bib-client", "--example", "topic_storm"];
    crate::process::run(cargo().args(build))?;
    let storm = bench.programs.bib.with_file_name("examples").join("topic_storm");
    let directory = passable_directory(None)?;
    let mut node = bench.node(directory.path());
    node.start()?;
    let socket = node.ready()?.socket.display().to_string();
    let said = capture(Command::new(storm).args([&socket, CLIENTS, SECONDS, "storm"]))?;
    let said: Value = serde_json::from_str(&said).context("read what topic_storm said")?;
    let rate = said["per_second"].as_f64().context("topic_storm says no `per_second`")?;
    node.stop()?;
    let plain = pgbench(&bench.postgres)?;
    bench.figure("topics created by 64 clients, audited", rate, "commits/s", Some(Bound::AtLeast(2_000.0)));
    bench.figure("pgbench, the same rows without chain", plain, "commits/s", None);
    bench.figure("audited, by pgbench", rate / plain, "x", Some(Bound::AtLeast(0.25)));
    Ok(())
}

/// Commits per second of pgbench on a server of its own, with the settings that matter as `bibd` sets them.
fn pgbench(postgres: &Path) -> anyhow::Result<f64> {
    let directory = passable_directory(None)?;
    // The server's user writes here; nothing secret lies here.
    fs::set_permissions(directory.path(), fs::Permissions::from_mode(0o777)).context("open the directory")?;
    let data = directory.path().join("data");
    let tool = |name: &str| as_server_user(&postgres.join(name), directory.path());
    fs::write(directory.path().join("schema.sql"), SCHEMA).context("write the schema")?;
    fs::write(directory.path().join("script.sql"), SCRIPT).context("write the script")?;
    capture(tool("initdb").args(["--auth=trust", "--data-checksums", "--username=bench", "--pgdata"]).arg(&data))?;
    let options = format!(
        "-c listen_addresses='' -c unix_socket_directories={} -c max_connections=100 -c synchronous_commit=on -c max_wal_size=1GB",
        directory.path().display()
    );
    let log = directory.path().join("log");
    let mut start = tool("pg_ctl");
    start.args(["start", "--wait", "--silent", "--options", &options]);
    capture(start.args(["--log".as_ref(), log.as_os_str(), "--pgdata".as_ref(), data.as_os_str()]))?;
    let host = directory.path().display().to_string();
    let measured = (|| {
        capture(tool("psql").args(["-q", "-h", &host, "-U", "bench", "-f", "schema.sql", "postgres"]))?;
        let flags =
            ["-n", "-h", &host, "-U", "bench", "-c", CLIENTS, "-j", "2", "-T", SECONDS, "-f", "script.sql", "postgres"];
        capture(tool("pgbench").args(flags))
    })();
    capture(tool("pg_ctl").args(["stop", "--silent", "--mode", "fast", "--pgdata"]).arg(&data))?;
    let said = measured?;
    let rate = said.lines().find_map(|line| line.strip_prefix("tps = ")).and_then(|rest| rest.split(' ').next());
    rate.and_then(|rate| rate.parse().ok()).with_context(|| format!("find `tps` in what pgbench said: {said}"))
}

/// PostgreSQL does not run as root.
fn as_server_user(program: &Path, directory: &Path) -> Command {
    let mut command = if rustix::process::geteuid().is_root() {
        let mut command = Command::new("runuser");
        command.args(["-u", "postgres", "--"]).arg(program);
        command
    } else {
        Command::new(program)
    };
    command.current_dir(directory);
    command
}

/// Verifies a log of a million entries.
pub(super) fn audit_verify(bench: &mut Bench) -> anyhow::Result<()> {
    let said = capture(cargo().args([
        "run",
        "--release",
        "--locked",
        "--quiet",
        "--package",
        "bibd-audit",
        "--example",
        "verify_speed",
        "--",
        "1000000",
    ]))?;
    // `1000000 entries in 1.23 s: 813008 a second`
    let Some(seconds) =
        said.split(" in ").nth(1).and_then(|rest| rest.split(' ').next()).and_then(|text| text.parse().ok())
    else {
        bail!("verify_speed said {said}");
    };
    bench.figure("verify 1,000,000 audit entries", seconds, "s", Some(Bound::AtMost(5.0)));
    Ok(())
}
