//! The objects for Kubernetes against the schemas that Kubernetes publishes: `kubernetes-validate` from the Python
//! package index carries them, so that no cluster and no network is asked.

use std::path::PathBuf;
use std::process::Command;

use anyhow::{Context as _, bail};

use crate::machine;
use crate::process::{capture, find_program, root, run};

/// The checker, and the release that these files were checked with.
const TOOL: &str = "kubernetes-validate";
const PACKAGE: &str = "kubernetes-validate==1.37.0";
/// The oldest release that our types know and the newest that the checker does.
const RELEASES: [&str; 2] = ["1.33", "1.37"];
/// Where the files lie.
const FOLDERS: [&str; 2] = ["bibd/postgres/golden/kubernetes", "deploy/kubernetes"];

/// Checks every file. Where the checker cannot be had that is said, loudly; under `CI=true` it is a failure.
///
/// # Errors
/// When an object does not follow its schema.
pub fn check() -> anyhow::Result<()> {
    let tool = match ensure() {
        Ok(tool) => tool,
        Err(error) if std::env::var_os("CI").is_none_or(|ci| ci != "true") => {
            println!("==== NOT CHECKED: `{TOOL}` is not here and cannot be installed");
            println!("{error:#}");
            return Ok(());
        }
        Err(error) => return Err(error),
    };
    let mut files = Vec::new();
    for folder in FOLDERS {
        let entries = std::fs::read_dir(root().join(folder)).with_context(|| format!("list `{folder}`"))?;
        for entry in entries {
            files.push(entry.with_context(|| format!("list `{folder}`"))?.path());
        }
    }
    files.retain(|path| path.extension().is_some_and(|extension| extension == "yaml"));
    files.sort();
    if files.is_empty() {
        bail!("there is no file to check in {}", FOLDERS.join(" and "));
    }
    for release in RELEASES {
        // A kind of an operator has no published schema and is passed over with a warning.
        let output = capture(Command::new(&tool).args(["--strict", "-k", release]).args(&files))?;
        let objects = output.lines().filter(|line| line.contains(" passed for resource ")).count();
        if objects == 0 {
            bail!("`{TOOL}` checked nothing:\n{output}");
        }
        println!("Kubernetes {release}: {objects} objects in {} files follow their schemas", files.len());
    }
    Ok(())
}

/// The checker: of this machine, or in an environment of its own below the build directory.
fn ensure() -> anyhow::Result<PathBuf> {
    if let Some(tool) = find_program(TOOL) {
        return Ok(tool);
    }
    let target = std::env::var_os("CARGO_TARGET_DIR").map_or_else(|| root().join("target"), PathBuf::from);
    let home = target.join("tools").join(TOOL);
    let tool = home.join("bin").join(TOOL);
    if tool.is_file() {
        return Ok(tool);
    }
    println!("installing {PACKAGE}");
    let python = find_program("python3").context("python3 is missing")?;
    // Debian splits this part of Python off.
    if capture(Command::new(&python).args(["-c", "import ensurepip"])).is_err() {
        machine::install("python3-venv", &["python3-venv"], &["python3"])?;
    }
    run(Command::new(&python).args(["-m", "venv"]).arg(&home))?;
    let pip = home.join("bin/pip");
    run(Command::new(pip).args(["install", "--quiet", "--disable-pip-version-check", PACKAGE]))?;
    Ok(tool)
}
