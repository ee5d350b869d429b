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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::node::{Node, Profile, Programs, passable_directory};
    use crate::process::capture;

    /// The built programs on a node of their own. Where there are none the test says so and passes; in CI it fails.
    fn node(home: &Path) -> Option<Node> {
        let programs = Programs::built(Profile::Dev).unwrap();
        if !programs.bib.is_file() || !programs.bibd.is_file() || crate::postgres::find().is_none() {
            assert!(
                std::env::var("CI").as_deref() != Ok("true"),
                "CI must have built bib and bibd and have PostgreSQL"
            );
            eprintln!("==== SKIPPED, NOTHING TESTED: `cargo xtask test` builds the programs first");
            return None;
        }
        let mut node = Node::new(programs, home);
        node.start().unwrap();
        Some(node)
    }

    /// One flipped bit in the middle of a file.
    fn flip(path: &Path) {
        let mut bytes = fs::read(path).unwrap();
        let middle = bytes.len() / 2;
        bytes[middle] ^= 1;
        fs::write(path, bytes).unwrap();
    }

    #[test]
    fn a_stranger_checks_bundle_and_folder_and_is_told_the_file_with_a_flipped_byte() {
        let directory = passable_directory(None).unwrap();
        let home = directory.path();
        let Some(mut node) = node(home) else { return };
        let folder = home.join("folder");
        fs::create_dir_all(folder.join("empty")).unwrap();
        fs::create_dir_all(folder.join("inner")).unwrap();
        fs::write(folder.join("inner/größe.csv"), "a,b\n1,2\n").unwrap();
        fs::write(folder.join("plain"), "plain").unwrap();
        symlink("plain", folder.join("link")).unwrap();
        node.ask(&["dataset", "publish", "folder", "a/b", "-m", "m", "--license", "CC0-1.0", "--yes"]).unwrap();
        let bundle = home.join("bundle.tar");
        capture(node.bib(["dataset", "prove", "a/b", "--out"]).arg(&bundle)).unwrap();
        let peer = node.ready().unwrap().peer_id.clone();
        let tools = Tools::new().unwrap();

        let said = tools.verify(&bundle, &folder, &peer).unwrap();
        assert!(said.contains("the folder is the version, 4 files bit for bit"), "{said}");
        let other = tools.verify(&bundle, &folder, "12D3KooWOther").unwrap_err().to_string();
        assert!(other.contains("BAD  node"), "{other}");

        flip(&folder.join("inner/größe.csv"));
        let error = tools.verify(&bundle, &folder, &peer).unwrap_err().to_string();
        assert!(error.contains(r"BAD  differs: inner/gr\u00f6\u00dfe.csv"), "{error}");
        flip(&folder.join("inner/größe.csv"));
        fs::write(folder.join("extra"), "").unwrap();
        let error = tools.verify(&bundle, &folder, &peer).unwrap_err().to_string();
        assert!(error.contains("not in the version: ") && error.contains("extra"), "{error}");
        fs::remove_file(folder.join("extra")).unwrap();

        // Whatever byte of the proof is another one, it is not proven: one in each member of the tar file.
        let whole = fs::read(&bundle).unwrap();
        let mut checked = 0;
        for (at, header) in
            whole.chunks(512).enumerate().filter(|(_, block)| block.len() == 512 && &block[257..262] == b"ustar")
        {
            let name = String::from_utf8_lossy(&header[..100]).trim_end_matches('\0').to_owned();
            let size =
                usize::from_str_radix(String::from_utf8_lossy(&header[124..135]).trim_matches(['\0', ' ']), 8).unwrap();
            if name == "README.txt" || name == "allowed_signers" || size == 0 {
                continue;
            }
            let mut bent = whole.clone();
            // The last byte of a text may be a newline that says nothing; the one at a third is inside something.
            bent[(at + 1) * 512 + size / 3] ^= 1;
            let path = home.join("bent.tar");
            fs::write(&path, bent).unwrap();
            assert!(tools.verify(&path, &folder, &peer).is_err(), "a bent {name} was taken");
            checked += 1;
        }
        assert!(checked >= 9, "{checked} files of the bundle were bent");
        node.stop().unwrap();
    }
}
