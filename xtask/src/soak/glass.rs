//! A daemon that dies at a step of a break-glass grant: the next one leaves nothing of it.
//!
//! Half of the rounds have a session of the real `psql` in the middle of a statement, where the step allows one. After each,
//! within ten seconds, no role of break-glass is left and no session of one; the grant has ended, its report has what was
//! said, every pair of logins is whole (`bib admin db audit`) and the audit log verifies.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail, ensure};

use super::steps::Steps;
use crate::node::Node;
use crate::process::capture;

/// How long what is not promised may take.
const PATIENCE: Duration = Duration::from_secs(60);
/// What a session says.
const SAID: &str = "SELECT pg_sleep(3600)";

/// The configuration that allows it, with a key that is made in `home`.
pub(super) fn configuration(home: &Path) -> anyhow::Result<String> {
    let path = home.join("key");
    let mut make = Command::new("ssh-keygen");
    make.args(["-q", "-t", "ed25519", "-N", "", "-C", "soak", "-f"]).arg(&path);
    capture(&mut make)?;
    let key = fs::read_to_string(path.with_extension("pub")).context("read the key")?;
    Ok(format!(
        "database:\n  break_glass:\n    enabled: true\n    access: readwrite\n    require_review: false\n    \
         allowed_users:\n      - name: soak\n        public_key: \"{}\"\n",
        key.trim()
    ))
}

impl Steps {
    /// Neither the role nor a session of the grant is left, and its report has what was said.
    pub(super) fn glass(&mut self, point: &str, with_session: bool) -> anyhow::Result<()> {
        self.restart_to_die(point)?;
        let key = self.home.join("key").display().to_string();
        let enable = ["admin", "break-glass", "enable", "--reason", "soak", "--duration", "10m", "--key", &key];
        let is_before_open = matches!(point, "glass.intent" | "glass.opened" | "glass.open");
        let mut session = None;
        if is_before_open {
            self.ask_and_die(point, &enable)?;
        } else {
            self.node.ask(&enable)?;
            session = with_session.then(|| talk(&self.node)).transpose()?;
            self.ask_and_die(point, &["admin", "break-glass", "disable"])?;
        }
        if let Some(session) = &mut session {
            wait_for_end(session)?;
        }
        self.recover(|node| {
            let status = node.ask(&["admin", "break-glass", "status"])?;
            // The checklist fails on any role that is not BIB's own, and on logins that are not whole.
            Ok(status["state"] == "" && node.ask(&["admin", "db", "audit"]).is_ok() && leftovers(node)?.is_empty())
        })?;
        let report = self.node.ask(&["admin", "break-glass", "report"])?;
        let wanted = if point == "glass.ended" { "disabled" } else { "restart" };
        ensure!(report["end_reason"] == wanted, "the report says that it ended because of {}", report["end_reason"]);
        ensure!(session.is_none() || report.to_string().contains(SAID), "what was said is not in the report: {report}");
        self.check_log()
    }
}

/// `bib admin break-glass connect` with a statement that goes on; returns when it is recorded.
fn talk(node: &Node) -> anyhow::Result<Child> {
    let statement = format!("{SAID};");
    let mut connect = node.bib(["admin", "break-glass", "connect", "--", "-X", "-c", &statement]);
    let child =
        connect.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).spawn().context("start bib")?;
    let deadline = Instant::now() + PATIENCE;
    while !recorded(&node.data().join("glass"))? {
        ensure!(Instant::now() < deadline, "the session did not say anything");
        std::thread::sleep(Duration::from_millis(50));
    }
    Ok(child)
}

/// Whether the newest grant's recordings have what is said.
fn recorded(directory: &Path) -> anyhow::Result<bool> {
    let mut grants: Vec<PathBuf> = match fs::read_dir(directory) {
        Ok(entries) => entries.flatten().map(|entry| entry.path()).collect(),
        Err(_) => return Ok(false),
    };
    grants.sort();
    let Some(newest) = grants.pop() else { return Ok(false) };
    for entry in fs::read_dir(newest).context("read the recordings")?.flatten() {
        if fs::read_to_string(entry.path()).is_ok_and(|text| text.contains(SAID)) {
            return Ok(true);
        }
    }
    Ok(false)
}

/// Processes of the node's PostgreSQL that serve a role of break-glass.
fn leftovers(node: &Node) -> anyhow::Result<Vec<String>> {
    let text = capture(Command::new("ps").args(["-eo", "pid,args"]))?;
    let database = node.data().join("postgres/data");
    let is_ours = |pid: &str| fs::read_link(format!("/proc/{pid}/cwd")).is_ok_and(|cwd| cwd == database);
    let lines = text.lines().filter(|line| line.contains("postgres: bibd_glass_"));
    Ok(lines.filter(|line| line.split_whitespace().next().is_some_and(is_ours)).map(str::to_owned).collect())
}

fn wait_for_end(child: &mut Child) -> anyhow::Result<()> {
    let deadline = Instant::now() + PATIENCE;
    while child.try_wait().context("wait for a process")?.is_none() {
        if Instant::now() > deadline {
            child.kill().context("kill a process that hangs")?;
            bail!("a process hung for {} s", PATIENCE.as_secs());
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_recording_is_found_in_the_newest_grant_alone() {
        let here = tempfile::tempdir().unwrap();
        assert!(!recorded(&here.path().join("none")).unwrap());
        for (grant, text) in [("1", SAID), ("2", "SELECT 1")] {
            fs::create_dir(here.path().join(grant)).unwrap();
            fs::write(here.path().join(grant).join("s.jsonl"), text).unwrap();
        }
        assert!(!recorded(here.path()).unwrap());
        fs::write(here.path().join("2/t.jsonl"), SAID).unwrap();
        assert!(recorded(here.path()).unwrap());
    }
}
