//! PostgreSQL's part of a backup: `pg_basebackup` as a stream, `pg_verifybackup`, and a cluster put back in its place.
//!
//! Nothing here knows of keys, stores or manifests of ours; see `bibd/daemon/src/backup`.

use std::io::PipeReader;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use secrecy::ExposeSecret as _;
use sqlx::postgres::PgConnection;
use sqlx::{ConnectOptions as _, Connection as _};
use tokio::process::Child;

use crate::account::Account;
use crate::cluster::Control;
use crate::error::Error;
use crate::file;
use crate::process::ProcessPostgres;
use crate::provisioner::ManagedPostgres as _;
use crate::record::Record;
use crate::role::{ADMIN, Login};
use crate::scram;
use crate::secrets::DbSecrets;
use crate::settings::PORT;
use crate::tool;
use crate::version::Version;

const TOOL: &str = "pg_basebackup";
const VERIFY: &str = "pg_verifybackup";
const SINGLE: &str = "postgres";
/// One statement on a cluster that was shut down well.
const SINGLE_DEADLINE: Duration = Duration::from_secs(60);
/// Reading every file of a large database once.
const VERIFY_DEADLINE: Duration = Duration::from_secs(6 * 60 * 60);
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
    child: Child,
    /// Holds the log that the backup needs: the slot in it is gone with this connection, however that ends.
    slot: PgConnection,
    _password: PasswordFile,
}

/// The password where only the program and we can read it, as long as the program runs.
struct PasswordFile(PathBuf);

impl Drop for PasswordFile {
    fn drop(&mut self) {
        // The directory is the server's own and private; the next backup replaces what could not be removed.
        let _ = file::remove(&self.0);
    }
}

impl ProcessPostgres {
    /// Which server this is.
    ///
    /// # Errors
    /// When there is no cluster or it cannot be read.
    pub async fn origin(&self) -> Result<Origin, Error> {
        let tools = self.tools().await?;
        let control = Control::read(&tools.bin_dir, &self.layout().data, tools.account).await?;
        Ok(Origin { system_identifier: control.system_identifier, version: tools.version })
    }

    /// Begins a backup as `login` (of `bibd_backup`). The second value is read to its end: one tar file with the whole
    /// cluster, the log that makes it consistent, and PostgreSQL's own list of it. Then [`BaseBackup::finish`].
    ///
    /// # Errors
    /// When the server does not answer, or the program cannot be run.
    pub async fn base_backup(&self, login: &Login, label: &str) -> Result<(BaseBackup, PipeReader), Error> {
        let tools = self.tools().await?;
        let layout = self.layout();
        let slot = self.hold_log(login).await?;
        let path = layout.socket_dir.join("backup.pgpass");
        file::remove(&path)?;
        // Generated passwords have nothing that this format would take for itself.
        let line = format!("*:*:*:{}:{}\n", login.user, login.password.expose_secret());
        let line = zeroize::Zeroizing::new(line);
        file::write_new(&path, line.as_bytes(), Some(tools.account))?;
        let password = PasswordFile(path);
        let program = tools.bin_dir.join(TOOL);
        let mut command = tool::command(&program, tools.account);
        let (reader, writer) = std::io::pipe().map_err(Error::io("open a pipe to", &program))?;
        command
            .env("PGPASSFILE", &password.0)
            .arg("--host")
            .arg(&layout.socket_dir)
            .args(["--port", &PORT.to_string(), "--username", &login.user, "--no-password", "--verbose"])
            .args(["--pgdata=-", "--format=tar", "--wal-method=fetch", "--checkpoint=fast", "--label", label])
            .stdout(writer)
            .stderr(Stdio::piped())
            .kill_on_drop(true);
        let child = command.spawn().map_err(Error::io("run", &program))?;
        // The command holds the other end of the pipe: without this its reader would never see the end.
        drop(command);
        Ok((BaseBackup { child, slot, _password: password }, reader))
    }

    /// A slot that lives as long as the connection and keeps the log from now on (`max_slot_wal_keep_size` at most).
    async fn hold_log(&self, login: &Login) -> Result<PgConnection, Error> {
        let hold = Error::sql("hold the log for a backup");
        let options = self.connect_options(login).disable_statement_logging();
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

    /// Looks at the files of an unpacked backup as PostgreSQL itself does: each against its list, and the log.
    ///
    /// # Errors
    /// [`Error::Tool`] naming the first files that are not what they should be.
    pub async fn verify_files(&self, data: &Path) -> Result<(), Error> {
        let tools = self.tools().await?;
        tool::run(&tools.bin_dir, VERIFY, tools.account, [Path::new("--quiet"), data], VERIFY_DEADLINE).await.map(drop)
    }

    /// Prepares the place of a cluster that comes from a backup made by `major`: the first of two durable steps. The
    /// cluster is unpacked into the returned directory, for the returned user.
    ///
    /// # Errors
    /// When there is a cluster already, or no binaries of that version.
    pub async fn begin_restore(&self, major: u32) -> Result<(PathBuf, Account), Error> {
        let layout = self.layout();
        if file::exists(&layout.data)? {
            return Err(Error::DataUnknown { data: layout.data.clone(), provisioner: layout.provisioner.clone() });
        }
        // `postgres/` comes before what lies in it; its mode is set where the server's user is known.
        let (uid, gid) = (rustix::process::geteuid().as_raw(), rustix::process::getegid().as_raw());
        file::ensure_dir(&layout.home, uid, gid, 0o700)?;
        Record::initialising(major).write(&layout.provisioner)?;
        let tools = self.tools().await?;
        self.prepare_places(tools).await?;
        file::ensure_dir(&layout.data_new, tools.account.uid, tools.account.gid, 0o700)?;
        Ok((layout.data_new.clone(), tools.account))
    }

    /// Puts the unpacked cluster in its place, to be recovered by the next start: the second step.
    ///
    /// # Errors
    /// When it is another cluster than the backup said.
    pub async fn finish_restore(&self, expected: u64) -> Result<(), Error> {
        let tools = self.tools().await?;
        let layout = self.layout();
        let found = Control::read(&tools.bin_dir, &layout.data_new, tools.account).await?.system_identifier;
        if found != expected {
            return Err(Error::OtherCluster { data: layout.data_new.clone(), expected, found });
        }
        file::replace(&layout.data_new.join(RECOVERY_SIGNAL), b"", Some(tools.account))?;
        std::fs::rename(&layout.data_new, &layout.data).map_err(Error::io("rename to", &layout.data))?;
        file::sync_dir(&layout.home)?;
        Record::ready(tools.version.major, found).write(&layout.provisioner)
    }
}

impl ProcessPostgres {
    /// Gives the superuser of a stopped cluster a new password, past every login: recovery may have led beyond a rotation
    /// whose passwords the backup does not know. `now_s` is in seconds since 1970. The other logins get theirs by
    /// [`Database::rotate`](crate::Database::rotate) as soon as the server runs.
    ///
    /// # Errors
    /// [`Error::Tool`], [`Error::SecretsMissing`], [`Error::SecretStore`].
    pub async fn reset_superuser(&self, now_s: i64) -> Result<(), Error> {
        let tools = self.tools().await?;
        let mut secrets = DbSecrets::read(self.secrets.as_ref())?.ok_or(Error::SecretsMissing)?;
        secrets.plan_admin(&self.random, now_s);
        secrets.promote_admin();
        let verifier = scram::verifier(secrets.admin(), &self.random);
        secrets.write(self.secrets.as_ref())?;
        let statement =
            zeroize::Zeroizing::new(format!("ALTER ROLE {ADMIN} PASSWORD '{}';\n", verifier.expose_secret()));
        let data = self.layout().data.display().to_string();
        let mut arguments = vec!["--single", "-D", &data];
        // The verifier is nobody's business: not in a log, and not in what a failure says.
        for setting in [
            "logging_collector=off",
            "log_statement=none",
            "log_min_duration_statement=-1",
            "log_min_error_statement=panic",
        ] {
            arguments.extend(["-c", setting]);
        }
        arguments.push("postgres");
        let (bin_dir, account, input) = (&tools.bin_dir, tools.account, statement.as_bytes());
        tool::run_with_input(bin_dir, SINGLE, account, arguments, input, SINGLE_DEADLINE).await.map(drop)
    }
}

impl BaseBackup {
    /// Waits for the end of the program, whose output must have been read.
    ///
    /// # Errors
    /// [`Error::Tool`] with what it said; then nothing of what was read is worth anything.
    pub async fn finish(self) -> Result<Range, Error> {
        let output = self.child.wait_with_output().await.map_err(Error::io("wait for", TOOL))?;
        // The slot is gone in any case.
        let _ = self.slot.close().await;
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        let failed = |status: String| Error::Tool { tool: TOOL, status, output: said.trim().to_owned() };
        if !output.status.success() {
            return Err(failed(output.status.to_string()));
        }
        range(&said).ok_or_else(|| failed("not understood".to_owned()))
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
