//! `bibd restore`: the command line of [`crate::backup::restore`].

use std::fmt::Write as _;
use std::path::{Path, PathBuf};

use bib_core::Timestamp;
use bib_identity::file;
use bibd_postgres::Failpoints;

use super::{Failure, Output};
use crate::backup::restore::{Choice, Restore, Restored};
use crate::backup::{BackupError, Made};
use crate::clock::{Clock as _, Entropy, SystemClock};
use crate::config::places::Home;
use crate::config::{Config, Places, StoreLocation};
use crate::data_dir;
use crate::s3::{AccessKey, KeyError, Keys, MAX_TEXT_BYTES};

/// What `bibd restore` is told.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// The store, as `backup.store` named it: a directory, or s3://bucket/prefix.
    #[arg(long, value_name = "STORE")]
    from: StoreLocation,
    /// A file 0600 with the credentials of an s3:// store, as in ~/.aws/credentials [default: those in the environment:
    /// AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY, AWS_SESSION_TOKEN].
    #[arg(long, value_name = "FILE")]
    s3_credentials: Option<PathBuf>,
    /// The URL of the API of an s3:// store [default: `backup.s3.endpoint` of the configuration, else AWS].
    #[arg(long, value_name = "URL")]
    s3_endpoint: Option<String>,
    /// The region of an s3:// store [default: `backup.s3.region` of the configuration].
    #[arg(long, value_name = "REGION")]
    s3_region: Option<String>,
    /// The data directory to make; it must not exist, or be empty.
    #[arg(long, value_name = "DIR")]
    to: PathBuf,
    /// The recovery sheet (as `bib admin recovery export --out` wrote it; `-` reads it from standard input), or the node's
    /// own identity/node_key.
    #[arg(long, value_name = "FILE")]
    identity: PathBuf,
    /// Restore to this moment, in RFC 3339, such as 2026-11-21T14:00:00Z [default: all that the store has].
    #[arg(long, value_name = "TIME", conflicts_with = "backup")]
    time: Option<Timestamp>,
    /// Restore this backup, as it was when it ended.
    #[arg(long, value_name = "ID")]
    backup: Option<String>,
    /// The node's identity is lost or stolen: go on as its successor, under a new identity and a new CA. The sheet signs
    /// that the successor owns all that the node owned, which cannot be taken back.
    #[arg(long)]
    new_identity: bool,
    /// Only say what would be restored.
    #[arg(long)]
    dry_run: bool,
    /// How to print.
    #[arg(long, value_enum, default_value_t = Output::Text)]
    output: Output,
}

impl Args {
    /// Restores, and says what.
    pub(super) async fn run(self, config: Config, home: &Home, failpoints: Failpoints) -> Result<String, Failure> {
        data_dir::harden_process().map_err(|source| Failure::Io { act: "forbid core dumps".to_owned(), source })?;
        let choice = match (self.time, self.backup) {
            (Some(time), _) => Choice::Time(time),
            (None, Some(id)) => Choice::Backup(id),
            (None, None) => Choice::Newest,
        };
        let absolute = |path: PathBuf| std::path::absolute(&path).unwrap_or(path);
        let keys = keys(&self.from, self.s3_credentials.as_deref(), config.backup.s3.credentials_file.as_deref())?;
        let from = match self.from {
            StoreLocation::Directory(path) => StoreLocation::Directory(absolute(path)),
            bucket => bucket,
        };
        let restore = Restore {
            from,
            keys,
            to: absolute(self.to),
            choice,
            identity: self.identity,
            new_identity: self.new_identity,
            own_data: Places::of(&config, home, None).data,
            dry_run: self.dry_run,
            config,
            is_root: home.is_root,
            entropy: Entropy::from_system(),
            now_s: SystemClock.now().as_seconds(),
            failpoints,
        };
        let restored = Box::pin(restore.run()).await?;
        Ok(if self.output == Output::Json { json(&restore, &restored) } else { text(&restore, &restored) })
    }
}

impl Args {
    /// What the command line says about the store, as values of the configuration.
    pub(super) fn flags(&self) -> Vec<(&'static str, String)> {
        let given = [("backup.s3.endpoint", &self.s3_endpoint), ("backup.s3.region", &self.s3_region)];
        given.into_iter().filter_map(|(key, value)| Some((key, value.clone()?))).collect()
    }
}

/// What opens the store: the file on the command line, that of the configuration, the environment.
fn keys(from: &StoreLocation, given: Option<&Path>, configured: Option<&Path>) -> Result<Keys, BackupError> {
    if matches!(from, StoreLocation::Directory(_)) {
        return Ok(Keys::held(None));
    }
    let Some(path) = given.or(configured) else {
        return match AccessKey::from_environment() {
            Ok(key) => Ok(Keys::held(Some(key))),
            // The store is asked without any, and the error says how they are given.
            Err(KeyError::Missing(_)) => Ok(Keys::held(None)),
            Err(error) => Err(error.into()),
        };
    };
    let bytes = file::read_private(path, MAX_TEXT_BYTES).map_err(BackupError::CredentialsFile)?;
    Ok(Keys::held(Some(AccessKey::parse(&String::from_utf8_lossy(&bytes))?)))
}

fn text(restore: &Restore, restored: &Restored) -> String {
    let backup = &restored.backup;
    let mut out = String::new();
    let mut line = |name: &str, value: String| {
        // Writing to a string does not fail.
        let _ = writeln!(out, "{name:<12} {value}");
    };
    line("node", backup.node().to_string());
    line("backup", backup.id().to_owned());
    if let Made::Dump(dump) = backup {
        line("kind", format!("logical dump of PostgreSQL {}, {} rows", dump.postgres, dump.rows()));
    }
    line(
        "state of",
        match &restore.choice {
            Choice::Newest => restored.reachable.to_string(),
            Choice::Backup(_) => backup.moment().to_string(),
            Choice::Time(time) => time.to_string(),
        },
    );
    if let Some(examined) = &restored.examined {
        for (what, rows) in &examined.rows {
            line(what, rows.to_string());
        }
        line("audit log", format!("{}: {}", examined.verdict, examined.explanation));
    }
    let chunks = backup.chunks();
    line("chunks in", format!("{} chunks, {} bytes: not in the backup", chunks.count, chunks.bytes));
    let Some(epoch) = restored.epoch else {
        out.push_str("\nNothing was written: this was a dry run.\n");
        return out;
    };
    line("epoch", format!("{epoch}, raised from {}", backup.epoch()));
    line("data", restore.to.display().to_string());
    if let Some(next) = &restored.successor {
        line("new node", next.peer.to_string());
        line("new CA", next.ca.grouped().to_string());
        line(
            "counts up to",
            format!(
                "epoch {}, number {}: what the old key signs after that is worth nothing",
                next.last.0, next.last.1
            ),
        );
    }
    let config = restored.configuration.as_ref().map(|path| format!(" --config {}", path.display()));
    let _ = write!(
        out,
        "\nCopy the chunks into {}, then start it with\n  bibd --data-dir {}{} run\n",
        restore.to.join("blobs").display(),
        restore.to.display(),
        config.unwrap_or_default()
    );
    if restored.successor.is_some() {
        out.push_str(
            "\nIts sheet is used up but for old backups. Once it runs, make the new one, and the first backup:\n  \
             bib admin recovery export --out FILE\n  bib admin backup create\n\
             Whoever connects over the network trusts the new CA first, by its fingerprint above:\n  bib trust replace\n",
        );
    }
    out
}

fn json(restore: &Restore, restored: &Restored) -> String {
    let backup = &restored.backup;
    let rows = restored.examined.iter().flat_map(|examined| &examined.rows);
    let rows: serde_json::Map<_, _> = rows.map(|(what, rows)| (what.replace(' ', "_"), (*rows).into())).collect();
    let value = serde_json::json!({
        "node": backup.node(),
        "backup": backup.id(),
        "kind": backup.kind().name(),
        "reachable": restored.reachable,
        "epoch": restored.epoch,
        "from_epoch": backup.epoch(),
        "rows": rows,
        "verdict": restored.examined.as_ref().map(|examined| examined.verdict),
        "chunks": backup.chunks().count,
        "chunk_bytes": backup.chunks().bytes,
        "data_dir": restored.epoch.map(|_| &restore.to),
        "config": restored.configuration,
        "successor": restored.successor.as_ref().map(|next| serde_json::json!({
            "node": next.peer,
            "ca_fingerprint": next.ca.to_string(),
            "last": { "epoch": next.last.0, "n": next.last.1 },
        })),
    });
    format!("{value:#}\n")
}
