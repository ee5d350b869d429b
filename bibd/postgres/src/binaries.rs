//! Finds PostgreSQL's programs on this machine, and says why each place was passed over.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::account::Account;
use crate::error::Error;
use crate::tool;
use crate::version::{NEWEST_MAJOR, OLDEST_MAJOR, Version};

/// One directory that has a `postgres` in it, or was configured.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Found {
    /// The directory.
    pub bin_dir: PathBuf,
    /// Its version, where it could be asked.
    pub version: Option<Version>,
    /// Why it cannot be used; `None` when it can.
    pub unusable: Option<String>,
}

/// What a directory needs to have.
const NEEDED: [&str; 2] = ["postgres", "initdb"];
/// A program that takes longer than this to say its version is not one to use.
const VERSION_DEADLINE: Duration = Duration::from_secs(10);

/// Every place with a PostgreSQL, usable or not, for `bibd doctor`. When `configured`, only that one.
pub async fn survey(configured: Option<&Path>, account: Account) -> Vec<Found> {
    let mut found = Vec::new();
    for directory in candidates(configured) {
        found.push(examine(directory, account).await);
    }
    found
}

/// The binaries to use: of `major` when given (the data directory decides), else the newest.
///
/// # Errors
/// [`Error::NoBinaries`] with all reasons; [`Error::WrongMajor`] when only another major version is there.
pub async fn choose(configured: Option<&Path>, major: Option<u32>, account: Account) -> Result<Found, Error> {
    let all = survey(configured, account).await;
    let usable = || all.iter().filter(|found| found.unusable.is_none());
    let best = usable()
        .filter(|found| major.is_none() || found.version.map(|version| version.major) == major)
        .max_by_key(|found| found.version);
    if let Some(best) = best {
        return Ok(best.clone());
    }
    match (major, usable().max_by_key(|found| found.version)) {
        (Some(data), Some(Found { bin_dir, version: Some(version), .. })) => {
            Err(Error::WrongMajor { data, found: *version, bin_dir: bin_dir.clone() })
        }
        _ => Err(Error::NoBinaries {
            looked: all
                .iter()
                .map(|found| {
                    format!("{}: {}", found.bin_dir.display(), found.unusable.as_deref().unwrap_or("not usable"))
                })
                .collect(),
        }),
    }
}

fn candidates(configured: Option<&Path>) -> Vec<PathBuf> {
    if let Some(directory) = configured {
        return vec![directory.to_path_buf()];
    }
    let mut all: Vec<PathBuf> = std::env::var_os("PATH").map_or_else(Vec::new, |path| {
        std::env::split_paths(&path).filter(|directory| directory.is_absolute()).collect()
    });
    // Debian and Ubuntu; Red Hat's and PostgreSQL's own RPMs; Homebrew on both architectures; from source.
    all.extend(children("/usr/lib/postgresql", "", "bin"));
    all.extend(children("/usr", "pgsql-", "bin"));
    all.extend(children("/opt/homebrew/opt", "postgresql@", "bin"));
    all.extend(children("/usr/local/opt", "postgresql@", "bin"));
    all.push(PathBuf::from("/usr/local/pgsql/bin"));
    let mut seen = BTreeSet::new();
    all.into_iter()
        .filter_map(|directory| real(&directory))
        .filter(|directory| seen.insert(directory.clone()))
        .collect()
}

/// Where the `postgres` of a directory really lies: a directory of links (`/usr/local/bin`) is that same place, and
/// may have only some of the links.
fn real(directory: &Path) -> Option<PathBuf> {
    let program = std::fs::canonicalize(directory.join("postgres")).ok()?;
    program.parent().map(Path::to_path_buf)
}

fn children(parent: &str, prefix: &str, inner: &str) -> Vec<PathBuf> {
    let Ok(entries) = std::fs::read_dir(parent) else { return Vec::new() };
    let mut all: Vec<PathBuf> = entries
        .filter_map(Result::ok)
        .filter(|entry| entry.file_name().to_string_lossy().starts_with(prefix))
        .map(|entry| entry.path().join(inner))
        .collect();
    all.sort();
    all
}

async fn examine(bin_dir: PathBuf, account: Account) -> Found {
    let unusable = |bin_dir, version, reason: String| Found { bin_dir, version, unusable: Some(reason) };
    if let Some(missing) = NEEDED.into_iter().find(|name| !bin_dir.join(name).exists()) {
        return unusable(bin_dir, None, format!("`{missing}` is missing"));
    }
    let banner = match tool::run(&bin_dir, "postgres", account, ["--version"], VERSION_DEADLINE).await {
        Ok(banner) => banner,
        Err(error) => return unusable(bin_dir, None, error.to_string()),
    };
    match Version::parse_banner(&banner) {
        None => unusable(bin_dir, None, format!("it says `{}`", banner.trim())),
        Some(version) if !version.is_managed() => unusable(
            bin_dir,
            Some(version),
            format!("version {version} is not one of {OLDEST_MAJOR} to {NEWEST_MAJOR}"),
        ),
        Some(version) => Found { bin_dir, version: Some(version), unusable: None },
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    fn fake(directory: &Path, banner: &str) {
        for name in NEEDED {
            let path = directory.join(name);
            std::fs::write(&path, format!("#!/bin/sh\necho '{banner}'\n")).unwrap();
            std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).unwrap();
        }
    }

    fn own() -> Account {
        Account { uid: rustix::process::geteuid().as_raw(), gid: rustix::process::getegid().as_raw(), switch: false }
    }

    #[tokio::test]
    async fn says_why_a_place_is_passed_over() {
        let here = tempfile::tempdir().unwrap();
        let reason = async || survey(Some(here.path()), own()).await[0].unusable.clone();
        assert_eq!(reason().await.as_deref(), Some("`postgres` is missing"));
        fake(here.path(), "postgres (PostgreSQL) 14.9");
        assert_eq!(reason().await.as_deref(), Some("version 14.9 is not one of 15 to 18"));
        fake(here.path(), "postgres (PostgreSQL) 17.12");
        assert_eq!(reason().await, None);
        let error = choose(Some(here.path()), Some(16), own()).await.unwrap_err();
        assert!(matches!(error, Error::WrongMajor { data: 16, .. }), "{error}");
    }
}
