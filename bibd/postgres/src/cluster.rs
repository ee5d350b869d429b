//! A cluster's files: made by `initdb`, and what `pg_control` says about them.

use std::path::Path;
use std::time::Duration;

use secrecy::{ExposeSecret as _, SecretString};

use crate::account::Account;
use crate::config::Config;
use crate::error::Error;
use crate::file;
use crate::role::ADMIN;
use crate::settings::{Layout, OnNewDirectory};
use crate::tool;
use crate::version::Version;

/// `initdb` writes some 40 MB and syncs it; a disk that needs longer than this is not usable.
const INITDB_DEADLINE: Duration = Duration::from_secs(120);
const CONTROL_DEADLINE: Duration = Duration::from_secs(10);
/// Where `initdb` reads the superuser's verifier from: in the socket's directory, which is private and, where the
/// system has one, on tmpfs. Never a password.
pub(crate) const VERIFIER_FILE: &str = "initdb.verifier";

/// What `pg_control` says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Control {
    /// PostgreSQL's name of the cluster.
    pub(crate) system_identifier: u64,
    /// `shut down`, `in production`..
    pub(crate) state: String,
}

/// The state of a cluster that was stopped cleanly.
pub(crate) const SHUT_DOWN: &str = "shut down";

impl Control {
    /// Reads `pg_control` of `data`, running or not.
    ///
    /// # Errors
    /// [`Error::Tool`] when there is none or it is damaged.
    pub(crate) async fn read(bin_dir: &Path, data: &Path, account: Account) -> Result<Self, Error> {
        const TOOL: &str = "pg_controldata";
        let text = tool::run(bin_dir, TOOL, account, [data], CONTROL_DEADLINE).await?;
        let value = |name: &str| {
            text.lines().find_map(|line| line.strip_prefix(name)).map(|rest| rest.trim_start_matches(':').trim())
        };
        let identifier = value("Database system identifier").and_then(|value| value.parse().ok());
        let state = value("Database cluster state").map(str::to_owned);
        match (identifier, state) {
            (Some(system_identifier), Some(state)) => Ok(Self { system_identifier, state }),
            _ => Err(Error::Tool { tool: TOOL, status: "not understood".to_owned(), output: text }),
        }
    }
}

/// Makes a cluster in `layout.data_new`, complete with our configuration, durable, and not yet in its place.
/// What lies there from an interrupted attempt is removed.
///
/// # Errors
/// [`Error::Tool`] with what `initdb` said, [`Error::Io`].
pub(crate) async fn initialise(
    bin_dir: &Path,
    version: Version,
    layout: &Layout,
    account: Account,
    config: &Config,
    verifier: &SecretString,
    on_new_directory: &OnNewDirectory,
) -> Result<(), Error> {
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
    arguments.extend(locale(version).await);
    let outcome = tool::run(bin_dir, "initdb", account, &arguments, INITDB_DEADLINE).await;
    file::remove(&verifier_file)?;
    outcome?;

    config.write(&layout.data_new, account)?;
    // `initdb` has synced what it made, and `write` what it wrote; the directory itself is left.
    file::sync_dir(&layout.data_new)
}

/// Sorting by bytes, which no update of the system's locales can change under an index; upper and lower case by
/// Unicode where the server or the system can.
async fn locale(version: Version) -> Vec<String> {
    let text = |arguments: &[&str]| arguments.iter().map(|argument| (*argument).to_owned()).collect();
    if version.major >= 17 {
        return text(&["--locale-provider=builtin", "--builtin-locale=C.UTF-8", "--locale=C"]);
    }
    let mut ask = tokio::process::Command::new("locale");
    ask.arg("-a").stdin(std::process::Stdio::null()).kill_on_drop(true);
    let known = match tokio::time::timeout(Duration::from_secs(5), ask.output()).await {
        Ok(Ok(output)) => String::from_utf8_lossy(&output.stdout).to_ascii_lowercase(),
        // A system that cannot say has no Unicode locale that is worth relying on.
        _ => String::new(),
    };
    let ctype = if known.lines().any(|line| line == "c.utf8" || line == "c.utf-8") { "C.UTF-8" } else { "C" };
    let mut arguments: Vec<String> = text(&["--locale-provider=libc", "--locale=C"]);
    arguments.push(format!("--lc-ctype={ctype}"));
    arguments
}
