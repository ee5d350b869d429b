//! The script of `docs/verify.md`, run as a stranger would run it: with nothing on PATH but OpenSSH, coreutils and
//! Python.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;
use std::process::Command;

use anyhow::{Context as _, bail};

use crate::process::{find_program, root};

/// All that a stranger needs.
const PROGRAMS: [&str; 3] = ["ssh-keygen", "python3", "sha256sum"];

/// A directory with those programs, and the script.
pub struct Tools {
    here: tempfile::TempDir,
}

impl Tools {
    /// Finds the programs and takes the script out of the page.
    ///
    /// # Errors
    /// When a program is missing or the page has no script.
    pub fn new() -> anyhow::Result<Self> {
        let here = tempfile::tempdir().context("make a temporary directory")?;
        for name in PROGRAMS {
            let program = find_program(name).with_context(|| format!("`{name}` is missing"))?;
            // Version managers put a script of their own in the way; what it starts is asked of Python itself.
            let program = if name == "python3" { real_python(&program)? } else { program };
            symlink(&program, here.path().join(name)).with_context(|| format!("link `{name}`"))?;
        }
        let page = fs::read_to_string(root().join("docs/verify.md")).context("read docs/verify.md")?;
        fs::write(here.path().join("verify.py"), script(&page)?).context("write the script")?;
        Ok(Self { here })
    }

    /// Checks a bundle and a folder against a node's peer id; returns what the script said.
    ///
    /// # Errors
    /// When the script says that something does not hold: the message is what it said.
    pub fn verify(&self, bundle: &Path, folder: &Path, peer_id: &str) -> anyhow::Result<String> {
        let mut command = Command::new(self.here.path().join("python3"));
        command.env_clear().env("PATH", self.here.path()).env("LC_ALL", "C.UTF-8");
        let output = command.arg(self.here.path().join("verify.py")).args([bundle, folder]).arg(peer_id).output();
        let output = output.context("start the script")?;
        let said = String::from_utf8_lossy(&output.stdout).trim_end().to_owned();
        if !output.status.success() {
            bail!("{said}\n{}", String::from_utf8_lossy(&output.stderr).trim_end());
        }
        Ok(said)
    }
}

fn real_python(program: &Path) -> anyhow::Result<std::path::PathBuf> {
    let ask = ["-c", "import sys; print(sys.executable)"];
    Ok(crate::process::capture(Command::new(program).args(ask))?.trim_end().into())
}

/// The page's one Python block.
fn script(page: &str) -> anyhow::Result<&str> {
    let (_, rest) = page.split_once("```python\n").context("docs/verify.md has no Python")?;
    let (script, _) = rest.split_once("```").context("docs/verify.md's Python has no end")?;
    Ok(script)
}
