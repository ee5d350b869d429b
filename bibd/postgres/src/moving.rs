//! A database handed to another provisioner: `bib admin db move`.
//!
//! The files stay where they are: a container mounts the very directory that a process opens, as the same user. What
//! changes is who runs the server, which PROVISIONER says. It is planned while the server runs, in a file beside
//! PROVISIONER, and carried out before the next start; what cannot be carried out is given up, and the server starts
//! as it did before.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use tokio::time::Instant;

use crate::choose::{Wanted, under};
use crate::error::Error;
use crate::failpoints::Failpoints;
use crate::file;
use crate::host::Place;
use crate::kubernetes::Trouble;
use crate::postmaster;
use crate::provisioner::{ManagedPostgres, Stop};
use crate::random::Randomness;
use crate::record::{Choice, Record, RecordState};
use crate::secrets::SecretStore;
use crate::settings::Settings;
use crate::version::Version;

/// How long children may outlive a server that was stopped.
const STRAGGLERS: Duration = Duration::from_secs(5);
const LOOK_EVERY: Duration = Duration::from_millis(20);

/// A planned or ended move, as it is remembered until somebody was told how it ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Move {
    /// Who ran the server when it was planned.
    pub from: Choice,
    /// Who is to run it.
    pub to: Choice,
    /// How it ended; nothing while it is planned.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ended: Option<Ended>,
}

/// How a move ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Ended {
    /// The server runs there.
    Done,
    /// It runs where it ran, and why.
    GivenUp(String),
}

/// What a move would do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Prospect {
    /// Who runs the server now.
    pub from: Choice,
    /// The version of the programs there.
    pub version: Version,
}

fn path(settings: &Settings) -> PathBuf {
    Place::new(settings.clone()).layout.home.join("MOVE")
}

/// The move that is planned, or whose end nobody was told yet.
///
/// # Errors
/// [`Error::MoveDamaged`], [`Error::Io`].
pub fn read(settings: &Settings) -> Result<Option<Move>, Error> {
    let path = path(settings);
    match std::fs::read(&path) {
        Ok(bytes) => serde_json::from_slice(&bytes).map(Some).map_err(|_| Error::MoveDamaged { path }),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(Error::io("read", path)(error)),
    }
}

/// Forgets a move, planned or ended.
///
/// # Errors
/// [`Error::Io`].
pub fn forget(settings: &Settings) -> Result<(), Error> {
    file::remove(&path(settings))
}

fn write(settings: &Settings, planned: &Move) -> Result<(), Error> {
    let text = serde_json::to_vec(planned).expect("a move of words serialises");
    file::replace(&path(settings), &text, None)
}

/// Whether `to` could run this data: its programs are there, and are of the version that made it. An image may be
/// pulled for it.
///
/// # Errors
/// [`Error::AlreadyThere`], [`Error::WrongMajor`], and why there are no programs.
pub async fn examine(
    to: Choice,
    settings: &Settings,
    secrets: Arc<dyn SecretStore>,
    random: Randomness,
) -> Result<Prospect, Error> {
    let record = Record::read(&Place::new(settings.clone()).layout.provisioner)?.ok_or(Error::NotProvisioned)?;
    let from = known(&record)?;
    if from == to {
        return Err(Error::AlreadyThere { choice: to.name() });
    }
    refuse_kubernetes(from, to)?;
    let version = under(to, settings, &secrets, &random)?.version().await?;
    if version.major != record.major {
        return Err(Error::WrongMajor { data: record.major, found: version, bin_dir: PathBuf::from(to.name()) });
    }
    Ok(Prospect { from, version })
}

/// Plans a move for the next start.
///
/// # Errors
/// [`Error::Io`].
pub fn plan(from: Choice, to: Choice, settings: &Settings) -> Result<(), Error> {
    write(settings, &Move { from, to, ended: None })
}

/// Carries out what is planned, before a start; nothing when nothing is.
///
/// # Errors
/// Only when what is planned cannot be read or its end cannot be written: what cannot be moved stays.
pub async fn carry_out(
    wanted: Wanted,
    settings: &Settings,
    secrets: Arc<dyn SecretStore>,
    random: Randomness,
    failpoints: &Failpoints,
) -> Result<(), Error> {
    let Some(planned) = read(settings)?.filter(|planned| planned.ended.is_none()) else { return Ok(()) };
    let (from, to) = (planned.from, planned.to);
    let outcome = match wanted {
        Wanted::Exactly(other) if other != to => {
            Err(Error::OtherProvisioner { chosen: to.name().to_owned(), wanted: other.name() })
        }
        _ => hand_over(from, to, settings, &secrets, &random, failpoints).await,
    };
    let ended = match outcome {
        Ok(()) => {
            tracing::info!(from = from.name(), to = to.name(), "the database has another provisioner");
            Ended::Done
        }
        Err(error) => {
            tracing::error!(%error, from = from.name(), to = to.name(), "the database cannot be moved, and stays");
            Ended::GivenUp(error.to_string())
        }
    };
    write(settings, &Move { from, to, ended: Some(ended) })?;
    failpoints.hit("move.ended");
    Ok(())
}

async fn hand_over(
    from: Choice,
    to: Choice,
    settings: &Settings,
    secrets: &Arc<dyn SecretStore>,
    random: &Randomness,
    failpoints: &Failpoints,
) -> Result<(), Error> {
    let layout = Place::new(settings.clone()).layout;
    let record = Record::read(&layout.provisioner)?.ok_or(Error::NotProvisioned)?;
    refuse_kubernetes(from, to)?;
    let source = under(from, settings, secrets, random)?;
    // Cut off after PROVISIONER was written: the rest is what is left to do.
    if known(&record)? != to {
        let (RecordState::Ready, Some(identifier)) = (record.state, record.system_identifier) else {
            return Err(Error::NotProvisioned);
        };
        let target = under(to, settings, secrets, random)?;
        let version = target.version().await?;
        if version.major != record.major {
            return Err(Error::WrongMajor { data: record.major, found: version, bin_dir: PathBuf::from(to.name()) });
        }
        source.stop(Stop::Clean).await?;
        wait_unused(&layout.data).await?;
        Record::ready(to, record.major, identifier).write(&layout.provisioner)?;
        failpoints.hit("move.recorded");
        if let Err(error) = target.start().await {
            // Back, before anybody saw it: whatever does not run there ran here.
            target.stop(Stop::Immediate).await?;
            record.write(&layout.provisioner)?;
            dismantle(target.as_ref()).await;
            return Err(error);
        }
        failpoints.hit("move.started");
    }
    dismantle(source.as_ref()).await;
    Ok(())
}

/// What lies in a volume is no directory that another provisioner could open.
fn refuse_kubernetes(from: Choice, to: Choice) -> Result<(), Error> {
    if [from, to].contains(&Choice::Kubernetes) {
        return Err(Error::Kubernetes(Box::new(Trouble::MoveElsewhere)));
    }
    Ok(())
}

/// The collector of the server's log ends a moment after the server, when nobody can write to it any more.
async fn wait_unused(data: &Path) -> Result<(), Error> {
    let deadline = Instant::now() + STRAGGLERS;
    while let Some(pid) = postmaster::in_use(data) {
        if Instant::now() >= deadline {
            return Err(Error::ForeignServer { pid, reason: "it works in the data directory".to_owned() });
        }
        tokio::time::sleep(LOOK_EVERY).await;
    }
    Ok(())
}

/// A container that nobody needs does no harm, where its engine does not answer.
async fn dismantle(postgres: &dyn ManagedPostgres) {
    if let Err(error) = postgres.dismantle().await {
        tracing::warn!(%error, "the container that ran the database is left over");
    }
}

fn known(record: &Record) -> Result<Choice, Error> {
    let unknown = || Error::OtherProvisioner { chosen: record.choice.clone(), wanted: "one that this release knows" };
    Choice::find(&record.choice).ok_or_else(unknown)
}
