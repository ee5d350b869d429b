//! Finds PostgreSQL's programs, or installs them where it may.
//!
//! Looks where `bibd` looks; `BIB_PG_BIN` names a directory first. Nothing here starts a server: `bibd` does.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::bail;

use crate::machine;
use crate::process::capture;

/// The major versions that `bibd` manages.
const MAJORS: std::ops::RangeInclusive<u32> = 15..=18;

/// The directory of a usable PostgreSQL, installing one when there is none.
///
/// # Errors
/// When there is none and it cannot be installed: the message holds the one command to run.
pub fn ensure() -> anyhow::Result<PathBuf> {
    if let Some(found) = find() {
        return Ok(found);
    }
    machine::install("PostgreSQL 15 to 18", &["postgresql"], &["postgresql-server"])?;
    match find() {
        Some(found) => Ok(found),
        None => bail!("PostgreSQL was installed, but no version from {} to {} is there", MAJORS.start(), MAJORS.end()),
    }
}

/// The directory with the newest usable PostgreSQL; `BIB_PG_BIN` alone counts when it is set.
#[must_use]
pub fn find() -> Option<PathBuf> {
    let mut usable: Vec<(u32, PathBuf)> = candidates()
        .into_iter()
        // Where a link leads to, the other programs lie too: a directory of links may have some of them only.
        .filter_map(|directory| Some(directory.join("initdb").canonicalize().ok()?.parent()?.to_owned()))
        .filter_map(|directory| Some((major(&directory)?, directory)))
        .filter(|(major, _)| MAJORS.contains(major))
        .collect();
    usable.sort();
    usable.pop().map(|(_, directory)| directory)
}

fn candidates() -> Vec<PathBuf> {
    if let Some(named) = std::env::var_os("BIB_PG_BIN") {
        return vec![PathBuf::from(named)];
    }
    let path = std::env::var_os("PATH").unwrap_or_default();
    let mut all: Vec<PathBuf> = std::env::split_paths(&path).collect();
    all.extend(children(Path::new("/usr/lib/postgresql"), ""));
    all.extend(children(Path::new("/usr"), "pgsql-"));
    all.push(PathBuf::from("/usr/local/pgsql/bin"));
    all
}

/// `bin` in each directory of `parent` whose name begins with `prefix`.
fn children(parent: &Path, prefix: &str) -> Vec<PathBuf> {
    let Ok(entries) = std::fs::read_dir(parent) else { return Vec::new() };
    let names = entries.filter_map(Result::ok).filter(|entry| entry.file_name().to_string_lossy().starts_with(prefix));
    names.map(|entry| entry.path().join("bin")).collect()
}

/// The major version of the programs in a directory.
#[must_use]
pub fn major(directory: &Path) -> Option<u32> {
    parse_major(&capture(Command::new(directory.join("postgres")).arg("--version")).ok()?)
}

/// `postgres (PostgreSQL) 15.14 (Debian 15.14-0+deb12u1)` is 15.
fn parse_major(banner: &str) -> Option<u32> {
    let version = banner.split_once("(PostgreSQL)")?.1.trim_start();
    version.split(|c: char| !c.is_ascii_digit()).next()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_every_kind_of_banner() {
        assert_eq!(parse_major("postgres (PostgreSQL) 15.14 (Debian 15.14-0+deb12u1)\n"), Some(15));
        assert_eq!(parse_major("postgres (PostgreSQL) 18devel"), Some(18));
        assert_eq!(parse_major("something else 15"), None);
    }
}
