//! The way in for tests that end this very program at a named step, as `kill -9` would.
//!
//! Whoever may set a variable of the daemon's environment may end the daemon anyway: nothing is given away by it.

use bibd_catalog::migrate;
use bibd_postgres::Failpoints;
use rustix::process::{Signal, getpid, kill_process};

/// The variable that names the step.
pub const VARIABLE: &str = "BIBD_DIE_AT";
/// The steps of a backup, in order: what is not the database is in the store; the database is; the manifest is, and
/// the audit log does not say so yet.
pub const BACKUP: [&str; 3] = ["backup.begun", "backup.streamed", "backup.manifest"];
/// The steps of a restore, in order: the target is marked; the files lie in it; the recovered server takes connections;
/// it was looked at and stopped; the new epoch is written and only the mark is left.
pub const RESTORE: [&str; 5] =
    ["restore.claimed", "restore.unpacked", "restore.recovered", "restore.examined", "restore.settled"];
/// The steps of a start that brings the schema up to date, in order: its login is open; the statements of a migration ran
/// and are not committed; they are; all of them are, and the login is still open.
pub const MIGRATION: [&str; 4] = ["migrate.opened", migrate::STEPS[0], migrate::STEPS[1], "migrate.done"];

/// The steps of a succession, in order: the store says who follows; the new identity lies beside the restored one; it is in
/// its place; the first start has it in the database and nowhere else.
pub const SUCCESSION: [&str; 4] = ["succession.claimed", "succession.made", "succession.swapped", "succession.carried"];

/// Every step, by the name of what it is a step of.
pub fn all() -> impl Iterator<Item = &'static str> {
    let database = Failpoints::ROTATION.into_iter().chain(MIGRATION).chain(Failpoints::MOVE).chain(Failpoints::UPGRADE);
    database.chain(BACKUP).chain(RESTORE).chain(SUCCESSION).chain(Failpoints::GLASS)
}

/// What the environment asks for: nothing, unless a test does.
///
/// # Errors
/// The name, when there is no such step: a test would wait for ever.
pub fn from_environment() -> Result<Failpoints, String> {
    let Some(name) = std::env::var_os(VARIABLE) else { return Ok(Failpoints::default()) };
    let Some(point) = all().find(|point| name == *point) else { return Err(name.to_string_lossy().into_owned()) };
    Ok(Failpoints::new(move |hit| {
        // Nothing is flushed, no destructor runs.
        if hit == point && kill_process(getpid(), Signal::KILL).is_err() {
            std::process::abort();
        }
    }))
}
