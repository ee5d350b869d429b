//! PostgreSQL's part of a backup: `pg_basebackup` as a stream, `pg_verifybackup`, and a cluster put back in its place.
//!
//! Nothing here knows of keys, stores or manifests of ours; see `bibd/daemon/src/backup`.

use std::io::PipeReader;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use secrecy::ExposeSecret as _;
use sqlx::postgres::PgConnection;
use sqlx::{ConnectOptions as _, Connection as _};
use zeroize::Zeroizing;

use crate::account::Account;
use crate::cluster::Control;
use crate::error::Error;
use crate::file;
use crate::host::{Host, Piped, Tool};
use crate::managed::Managed;
use crate::provisioner::ManagedPostgres;
use crate::record::Record;
use crate::role::{ADMIN, Login};
use crate::scram;
use crate::secrets::DbSecrets;
use crate::settings::PORT;
use crate::tcp::ToolFiles;
use crate::version::Version;

const TOOL: &str = "pg_basebackup";
const VERIFY: &str = "pg_verifybackup";
const SINGLE: &str = "postgres";
/// One statement on a cluster that was shut down well.
const SINGLE_DEADLINE: Duration = Duration::from_secs(60);
/// What the server reads in single-user mode, for as long as that lasts.
const STATEMENT_FILE: &str = "statement.sql";
/// Reading every file of a large database once.
const VERIFY_DEADLINE: Duration = Duration::from_secs(6 * 60 * 60);
/// What recovery leaves in the data directory, and nobody needs any more.
const LEFT_BEHIND: [&str; 3] = ["backup_label.old", "tablespace_map.old", "backup_manifest"];
/// Tells the server that it is being restored.
const RECOVERY_SIGNAL: &str = "recovery.signal";

/// Which server a backup is of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Origin {
    /// PostgreSQL's name of the cluster.
    pub system_identifier: u64,
    /// The server's version.
    pub version: Version,
}

/// What the log says of a backup, as `pg_basebackup` tells it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Range {
    /// Where recovery begins, `H/L`.
    pub start_lsn: String,
    /// Where the backup is consistent.
    pub end_lsn: String,
    /// The timeline of both.
    pub timeline: u32,
}

/// A running `pg_basebackup`. Dropped, it is ended, and the server forgets it.
pub struct BaseBackup {
    end: Piped,
    /// Holds the log that the backup needs: the slot in it is gone with this connection, however that ends.
    slot: PgConnection,
    _way: Way,
}

/// The password where only the program and we can read it, as long as the program runs.
pub(crate) struct PasswordFile(PathBuf);

impl PasswordFile {
    /// In a private directory of the server's.
    pub(crate) fn make(path: &Path, login: &Login, account: Account) -> Result<Self, Error> {
        file::remove(path)?;
        // Generated passwords have nothing that this format would take for itself.
        let line = Zeroizing::new(format!("*:*:*:{}:{}\n", login.user, login.password.expose_secret()));
        file::write_new(path, line.as_bytes(), Some(account))?;
        Ok(Self(path.to_owned()))
    }

    pub(crate) fn path(&self) -> &Path {
        &self.0
    }
}

/// How a program that is read through a pipe reaches the server, and what it shows. One at a time.
pub(crate) enum Way {
    Socket(PasswordFile),
    Tcp(ToolFiles),
}

impl Way {
    pub(crate) fn password(&self) -> PathBuf {
        match self {
            Self::Socket(file) => file.0.clone(),
            Self::Tcp(files) => files.password(),
        }
    }

    /// To this server as `login`, with what the program is told about it: the server's address, and the database where
    /// one is named.
    pub(crate) fn to(
        postgres: &dyn ManagedPostgres,
        login: &Login,
        account: Account,
        database: Option<&str>,
    ) -> Result<(Self, Vec<String>), Error> {
        let layout = postgres.layout();
        if let Some(endpoint) = postgres.endpoint() {
            let files = ToolFiles::write(layout.socket_dir.join("backup"), endpoint, login, account)?;
            let database = database.map(|name| format!(" dbname='{name}'")).unwrap_or_default();
            let arguments = vec![format!("--dbname={}{database}", files.connection())];
            return Ok((Self::Tcp(files), arguments));
        }
        let password = PasswordFile::make(&layout.socket_dir.join("backup.pgpass"), login, account)?;
        let mut arguments = vec![
            format!("--host={}", layout.socket_dir.display()),
            format!("--port={PORT}"),
            format!("--username={}", login.user),
        ];
        arguments.extend(database.map(|name| format!("--dbname={name}")));
        Ok((Self::Socket(password), arguments))
    }
}

impl Drop for PasswordFile {
    fn drop(&mut self) {
        // The directory is the server's own and private; the next backup replaces what could not be removed.
        let _ = file::remove(&self.0);
    }
}

/// Which server the one under `postgres` is.
pub(crate) async fn origin<H: Host>(postgres: &Managed<H>) -> Result<Origin, Error> {
    let version = postgres.host.tools().await?.version;
    Ok(Origin { system_identifier: Control::read(&postgres.layout().data)?.system_identifier, version })
}

/// See [`ManagedPostgres::base_backup`].
pub(crate) async fn begin<H: Host>(
    postgres: &dyn ManagedPostgres,
    host: &H,
    login: &Login,
    label: &str,
) -> Result<(BaseBackup, PipeReader), Error> {
    let tools = host.tools().await?;
    let slot = hold_log(postgres, login).await?;
    let (way, mut arguments) = Way::to(postgres, login, tools.account, None)?;
    arguments.extend([
        "--no-password".to_owned(),
        "--verbose".to_owned(),
        "--pgdata=-".to_owned(),
        "--format=tar".to_owned(),
        "--wal-method=fetch".to_owned(),
        "--checkpoint=fast".to_owned(),
        format!("--label={label}"),
    ]);
    let (end, reader) = host.pipe(tools, TOOL, &arguments, &way.password()).await?;
    Ok((BaseBackup { end, slot, _way: way }, reader))
}

/// A slot that lives as long as the connection and keeps the log from now on (`max_slot_wal_keep_size` at most).
async fn hold_log(postgres: &dyn ManagedPostgres, login: &Login) -> Result<PgConnection, Error> {
    let hold = Error::sql("hold the log for a backup");
    let options = postgres.connect_options(login).disable_statement_logging();
    let opened = async {
        let mut connection = PgConnection::connect_with(&options).await?;
        sqlx::raw_sql("SET idle_session_timeout = 0").execute(&mut connection).await?;
        sqlx::query(
            "SELECT pg_catalog.pg_create_physical_replication_slot('bibd_backup_' || pg_catalog.pg_backend_pid(), true, true)",
        )
        .execute(&mut connection)
        .await?;
        Ok(connection)
    };
    opened.await.map_err(hold)
}

/// See [`ManagedPostgres::verify_files`].
pub(crate) async fn verify_files<H: Host>(host: &H, data: &Path) -> Result<(), Error> {
    let arguments = ["--quiet".to_owned(), data.display().to_string()];
    let places = [data.to_owned()];
    let verify = Tool { name: VERIFY, arguments: &arguments, places: &places, input: None, deadline: VERIFY_DEADLINE };
    host.run(host.tools().await?, &verify).await
}

/// See [`ManagedPostgres::begin_restore`].
pub(crate) async fn begin_restore<H: Host>(postgres: &Managed<H>, major: u32) -> Result<(PathBuf, Account), Error> {
    let layout = postgres.layout();
    if file::exists(&layout.data)? {
        return Err(Error::DataUnknown { data: layout.data.clone(), provisioner: layout.provisioner.clone() });
    }
    let tools = postgres.host.tools().await?;
    if tools.version.major != major {
        return Err(Error::WrongMajor { data: major, found: tools.version, bin_dir: tools.bin_dir.clone() });
    }
    postgres.prepare_places(tools).await?;
    Record::initialising(H::CHOICE, major).write(&layout.provisioner)?;
    file::ensure_dir(&layout.data_new, tools.account.uid, tools.account.gid, 0o700)?;
    Ok((layout.data_new.clone(), tools.account))
}

/// See [`ManagedPostgres::finish_restore`].
pub(crate) async fn finish_restore<H: Host>(postgres: &Managed<H>, expected: u64) -> Result<(), Error> {
    let tools = postgres.host.tools().await?;
    let layout = postgres.layout();
    let found = Control::read(&layout.data_new)?.system_identifier;
    if found != expected {
        return Err(Error::OtherCluster { data: layout.data_new.clone(), expected, found });
    }
    file::replace(&layout.data_new.join(RECOVERY_SIGNAL), b"", Some(tools.account))?;
    std::fs::rename(&layout.data_new, &layout.data).map_err(Error::io("rename to", &layout.data))?;
    file::sync_dir(&layout.home)?;
    Record::ready(H::CHOICE, tools.version.major, found).write(&layout.provisioner)
}

/// See [`ManagedPostgres::settle_restore`].
pub(crate) async fn settle_restore<H: Host>(postgres: &Managed<H>, now_s: i64) -> Result<(), Error> {
    let (tools, layout) = (postgres.host.tools().await?, postgres.layout());
    for name in LEFT_BEHIND {
        file::remove(&layout.data.join(name))?;
    }
    let mut secrets = DbSecrets::read(postgres.secrets.as_ref())?.ok_or(Error::SecretsMissing)?;
    secrets.plan_admin(&postgres.random, now_s);
    secrets.promote_admin();
    let verifier = scram::verifier(secrets.admin(), &postgres.random);
    secrets.write(postgres.secrets.as_ref())?;
    let statement = Zeroizing::new(format!("ALTER ROLE {ADMIN} PASSWORD '{}';\n", verifier.expose_secret()));
    let mut arguments = vec!["--single".to_owned(), "-D".to_owned(), layout.data.display().to_string()];
    // The verifier is nobody's business: not in a log, and not in what a failure says.
    for setting in [
        "logging_collector=off",
        "log_statement=none",
        "log_min_duration_statement=-1",
        "log_min_error_statement=panic",
    ] {
        arguments.extend(["-c".to_owned(), setting.to_owned()]);
    }
    arguments.push("postgres".to_owned());
    let input = layout.socket_dir.join(STATEMENT_FILE);
    file::remove(&input)?;
    file::write_new(&input, statement.as_bytes(), Some(tools.account))?;
    let places = [layout.data.clone(), layout.socket_dir.clone()];
    let single =
        Tool { name: SINGLE, arguments: &arguments, places: &places, input: Some(&input), deadline: SINGLE_DEADLINE };
    let outcome = postgres.host.run(tools, &single).await;
    file::remove(&input)?;
    outcome
}

impl BaseBackup {
    /// Waits for the end of the program, whose output must have been read.
    ///
    /// # Errors
    /// [`Error::Tool`] with what it said; then nothing of what was read is worth anything.
    pub async fn finish(self) -> Result<Range, Error> {
        let ended = self.end.await?;
        // The slot is gone in any case.
        let _ = self.slot.close().await;
        let failed = |status: String| Error::Tool { tool: TOOL, status, output: ended.said.trim().to_owned() };
        match ended.failure {
            Some(status) => Err(failed(status)),
            None => range(&ended.said).ok_or_else(|| failed("not understood".to_owned())),
        }
    }
}

/// Reads the two points out of the program's messages.
fn range(said: &str) -> Option<Range> {
    let after = |words: &str| said.lines().find_map(|line| line.split_once(words)).map(|(_, rest)| rest.trim());
    let (start, timeline) = after("write-ahead log start point: ")?.split_once(" on timeline ")?;
    let end = after("write-ahead log end point: ")?;
    let range = Range { start_lsn: start.to_owned(), end_lsn: end.to_owned(), timeline: timeline.parse().ok()? };
    let is_lsn = |text: &str| crate::wal::Segment::at(range.timeline, text).is_some();
    (is_lsn(start) && is_lsn(end)).then_some(range)
}

/// Gives what was unpacked to the server's user: files 0600, directories 0700, as `initdb` makes them.
///
/// # Errors
/// [`Error::Io`].
pub fn give_tree(path: &Path, account: Account) -> Result<(), Error> {
    let meta = std::fs::symlink_metadata(path).map_err(Error::io("look at", path))?;
    let mode = if meta.is_dir() { 0o700 } else { 0o600 };
    if meta.is_dir() {
        for entry in std::fs::read_dir(path).map_err(Error::io("list", path))? {
            give_tree(&entry.map_err(Error::io("list", path))?.path(), account)?;
        }
    }
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode)).map_err(Error::io("chmod", path))?;
    if account.switch {
        std::os::unix::fs::lchown(path, Some(account.uid), Some(account.gid)).map_err(Error::io("give away", path))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_points_are_read_out_of_what_the_program_says() {
        let said = "pg_basebackup: initiating base backup, waiting for checkpoint to complete\n\
                    pg_basebackup: checkpoint completed\n\
                    pg_basebackup: write-ahead log start point: 0/2000028 on timeline 1\n\
                    pg_basebackup: write-ahead log end point: 0/2000138\n\
                    pg_basebackup: base backup completed\n";
        let found = range(said).unwrap();
        assert_eq!((found.start_lsn.as_str(), found.end_lsn.as_str(), found.timeline), ("0/2000028", "0/2000138", 1));
        assert_eq!(range("pg_basebackup: base backup completed"), None);
    }
}
