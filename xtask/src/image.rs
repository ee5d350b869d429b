//! `cargo xtask image`: PostgreSQL's image from the distribution's packages, for machines that cannot pull one. What
//! `deploy/postgres/Dockerfile` makes where they can.

use std::path::Path;
use std::process::Command;

use anyhow::{Context as _, bail};

use crate::engines::{self, Engine};
use crate::machine;
use crate::process::{capture, find_program, run};

/// The image's name; `bibd/postgres/tests/support` uses it.
pub const IMAGE: &str = "bibd-postgres:15";
/// The distribution, and what of it is in the image.
const SUITE: &str = "bookworm";
const PACKAGES: &str = "postgresql-15,postgresql-15-pgaudit";
/// `bibd` makes its own cluster; the package's would only lie there.
const NO_CLUSTER: &str = "mkdir -p \"$1/etc/postgresql-common\" && \
                          echo 'create_main_cluster = false' > \"$1/etc/postgresql-common/createcluster.conf\"";

/// Builds the image for every engine that is here.
///
/// # Errors
/// When a program is missing and cannot be installed, no engine answers, or a package cannot be had.
pub fn build() -> anyhow::Result<()> {
    let engines = engines::present();
    if engines.is_empty() {
        bail!("no container engine answers: install Docker or Podman and start it");
    }
    build_for(&engines)
}

/// Installs and starts every engine, and builds the image for those that have none.
///
/// # Errors
/// As [`build`]; also when an engine cannot be had.
pub fn ensure() -> anyhow::Result<()> {
    engines::ensure_all()?;
    build_missing(&Engine::ALL)
}

/// What the tests find: the engines of this machine, started, with the image.
///
/// # Errors
/// When the image is missing and cannot be built.
pub fn prepare() -> anyhow::Result<()> {
    let engines = engines::present();
    if engines.iter().any(|engine| !has(*engine)) && find_program("mmdebstrap").is_none() {
        println!("==== NO CONTAINER IS TESTED: there is no `{IMAGE}`; `cargo xtask image` builds it with mmdebstrap");
        return Ok(());
    }
    build_missing(&engines)
}

fn has(engine: Engine) -> bool {
    capture(engine.command().args(["image", "inspect", "--format", "{{.Id}}", IMAGE])).is_ok()
}

fn build_missing(engines: &[Engine]) -> anyhow::Result<()> {
    let missing: Vec<Engine> = engines.iter().copied().filter(|engine| !has(*engine)).collect();
    if missing.is_empty() { Ok(()) } else { build_for(&missing) }
}

fn build_for(engines: &[Engine]) -> anyhow::Result<()> {
    machine::ensure_container_parts()?;
    let place = tempfile::tempdir().context("make a temporary directory")?;
    let archive = place.path().join("image.tar");
    bootstrap(&archive)?;
    engines.iter().try_for_each(|engine| run(engine.command().arg("import").arg(&archive).arg(IMAGE)))
}

fn bootstrap(archive: &Path) -> anyhow::Result<()> {
    let include = format!("--include={PACKAGES}");
    // Manuals and translations are half of the files and nobody reads them in there.
    let leave_out = ["doc", "man", "info", "locale"].map(|name| format!("--dpkgopt=path-exclude=/usr/share/{name}/*"));
    let hook = format!("--essential-hook={NO_CLUSTER}");
    let mut pack = Command::new("mmdebstrap");
    run(pack.args(["--variant=minbase", &include, &hook]).args(leave_out).arg(SUITE).arg(archive))
}
