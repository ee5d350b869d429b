//! A cluster's files: made by `initdb`, and what `pg_control` says about them.

use std::path::Path;
use std::time::Duration;

use secrecy::{ExposeSecret as _, SecretString};

use crate::config::Config;
use crate::error::Error;
use crate::file;
use crate::host::{Host, Tool, Tools};
use crate::role::ADMIN;
use crate::settings::{Layout, OnNewDirectory};
use crate::version::Version;

/// `initdb` writes some 40 MB and syncs it; a disk that needs longer than this is not usable.
pub(crate) const INITDB_DEADLINE: Duration = Duration::from_secs(120);
/// Where `initdb` reads the superuser's verifier from: in the socket's directory, which is private and, where the
/// system has one, on tmpfs. Never a password.
pub(crate) const VERIFIER_FILE: &str = "initdb.verifier";

/// Formats of `pg_control` (`PG_CONTROL_VERSION`) that the managed versions write.
const CONTROL_FORMATS: std::ops::RangeInclusive<u32> = 1300..=1899;
/// `DBState`, in its order.
const STATES: [&str; 7] = [
    "starting up",
    SHUT_DOWN,
    "shut down in recovery",
    "shutting down",
    "in crash recovery",
    "in archive recovery",
    "in production",
];

/// What `pg_control` says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Control {
    /// PostgreSQL's name of the cluster.
    pub(crate) system_identifier: u64,
    /// `shut down`, `in production`..
    pub(crate) state: &'static str,
}

/// The state of a cluster that was stopped cleanly.
pub(crate) const SHUT_DOWN: &str = "shut down";

impl Control {
    /// Reads `pg_control` of `data`, running or not. Its first fields (`catalog/pg_control.h`: identifier, version of
    /// the format, version of the catalogs, state) have been the same since PostgreSQL 8.3; that the rest is whole is
    /// the server's own check.
    ///
    /// # Errors
    /// [`Error::ControlDamaged`], [`Error::Io`].
    pub(crate) fn read(data: &Path) -> Result<Self, Error> {
        let path = data.join("global/pg_control");
        let bytes = std::fs::read(&path).map_err(Error::io("read", &path))?;
        Self::parse(&bytes).ok_or(Error::ControlDamaged { path })
    }

    /// The bytes are the server's memory: this machine's byte order.
    fn parse(bytes: &[u8]) -> Option<Self> {
        let word = |at: usize| Some(u32::from_ne_bytes(bytes.get(at..at + 4)?.try_into().ok()?));
        let system_identifier = u64::from_ne_bytes(bytes.get(..8)?.try_into().ok()?);
        if !CONTROL_FORMATS.contains(&word(8)?) || system_identifier == 0 {
            return None;
        }
        let state = STATES.get(usize::try_from(word(16)?).ok()?)?;
        Some(Self { system_identifier, state })
    }
}

/// Makes a cluster in `layout.data_new`, complete with our configuration, durable, and not yet in its place.
/// What lies there from an interrupted attempt is removed.
///
/// # Errors
/// [`Error::Tool`] with what `initdb` said, [`Error::Io`].
pub(crate) async fn initialise<H: Host>(
    host: &H,
    tools: &Tools,
    layout: &Layout,
    config: &Config,
    verifier: &SecretString,
    on_new_directory: &OnNewDirectory,
) -> Result<(), Error> {
    let account = tools.account;
    match std::fs::remove_dir_all(&layout.data_new) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            return Err(Error::io("remove", &layout.data_new)(error));
        }
        _ => {}
    }
    file::ensure_dir(&layout.data_new, account.uid, account.gid, 0o700)?;
    on_new_directory.run(&layout.data_new)?;
    let verifier_file = layout.socket_dir.join(VERIFIER_FILE);
    file::remove(&verifier_file)?;
    file::write_new(&verifier_file, verifier.expose_secret().as_bytes(), Some(account))?;

    let mut arguments = vec![
        format!("--pgdata={}", layout.data_new.display()),
        format!("--username={ADMIN}"),
        format!("--pwfile={}", verifier_file.display()),
        "--auth=scram-sha-256".to_owned(),
        "--data-checksums".to_owned(),
        "--encoding=UTF8".to_owned(),
        "--no-instructions".to_owned(),
    ];
    let all_at_once = file::can_sync_everything();
    if all_at_once {
        arguments.push("--no-sync".to_owned());
    }
    arguments.extend(locale(tools.version, &host.locales().await));
    let places = [layout.data_new.clone(), layout.socket_dir.clone()];
    let initdb =
        Tool { name: "initdb", arguments: &arguments, places: &places, input: None, deadline: INITDB_DEADLINE };
    let outcome = host.run(tools, &initdb).await;
    file::remove(&verifier_file)?;
    outcome?;

    config.write(&layout.data_new, account)?;
    if all_at_once {
        return file::sync_everything(&layout.data_new);
    }
    // `initdb` has synced what it made, and `write` what it wrote; the directory itself is left.
    file::sync_dir(&layout.data_new)
}

/// Sorting by bytes, which no update of the system's locales can change under an index; upper and lower case by
/// Unicode where the server or one of the system's `locales` can.
fn locale(version: Version, locales: &str) -> Vec<String> {
    let text = |arguments: &[&str]| arguments.iter().map(|argument| (*argument).to_owned()).collect();
    if version.major >= 17 {
        return text(&["--locale-provider=builtin", "--builtin-locale=C.UTF-8", "--locale=C"]);
    }
    let known = locales.to_ascii_lowercase();
    let ctype = if known.lines().any(|line| line == "c.utf8" || line == "c.utf-8") { "C.UTF-8" } else { "C" };
    let mut arguments: Vec<String> = text(&["--locale-provider=libc", "--locale=C"]);
    arguments.push(format!("--lc-ctype={ctype}"));
    arguments
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_the_head_of_pg_control_and_no_nonsense() {
        let bytes = |identifier: u64, format: u32, state: u32| {
            let mut bytes = identifier.to_ne_bytes().to_vec();
            for word in [format, 202_209_061, state, 0] {
                bytes.extend(word.to_ne_bytes());
            }
            bytes
        };
        let control = Control { system_identifier: 7_300_000_000_000_000_001, state: SHUT_DOWN };
        assert_eq!(Control::parse(&bytes(7_300_000_000_000_000_001, 1300, 1)), Some(control));
        assert_eq!(Control::parse(&bytes(5, 1800, 6)).map(|control| control.state), Some("in production"));
        for nonsense in [bytes(5, 1300, 7), bytes(5, 1201, 1), bytes(0, 1300, 1), vec![0; 8192], vec![1; 10], vec![]] {
            assert_eq!(Control::parse(&nonsense), None);
        }
    }
}
