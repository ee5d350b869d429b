//! New passwords for the database's logins: on time, on demand, and to the end when something came between.
//!
//! `bibd-postgres` knows the steps, [`crate::pools`] moves whoever is connected; here is when, for whom, and the audit
//! log: an intent that is sealed before anything happens, and an outcome.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use bib_core::access::Verb;
use bibd_audit::Outcome;
use bibd_postgres::role::ADMIN;
use bibd_postgres::rotation::{Credentials, Which};
use bibd_postgres::{Contained, Database, Error, GroupRole, Letter};
use serde_json::json;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::base::{Base, allow_node};
use super::error::ServiceError;
use super::journal::Act;
use crate::actor::Call;
use crate::errors::ErrorCode;
use crate::foundation::Foundation;
use crate::grpc::error::chain;
use crate::supervisor::{TaskKind, TaskResult};

/// The superuser's name among the roles that can be asked for.
pub const SUPERUSER: &str = "superuser";

/// How often it is looked whether a password has come of age.
const LOOK: Duration = Duration::from_secs(1);
/// How often the certificates of a database that is reached over TCP are looked at: they count for months.
const LOOK_AT_CERTIFICATES: Duration = Duration::from_secs(3600);
/// How soon a rotation that failed is taken up again; doubles.
const FIRST_PAUSE: Duration = Duration::from_secs(2);
const LONGEST_PAUSE: Duration = Duration::from_secs(300);

/// The credentials of a role at one moment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RoleState {
    /// Its name without `bibd_`, or [`SUPERUSER`].
    pub role: &'static str,
    /// The login in use.
    pub login: String,
    /// How old its password is, by the node's clock.
    pub age: Duration,
    /// Sessions on either login of the role.
    pub connections: u64,
}

/// The database at one moment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DatabaseStatus {
    /// `process`, `container` or `kubernetes`.
    pub provisioner: &'static str,
    /// Of PostgreSQL.
    pub version: String,
    /// How long the server has been running.
    pub uptime: Duration,
    /// How old a password becomes.
    pub rotated_every: Duration,
    /// Every role.
    pub roles: Vec<RoleState>,
    /// The container; nothing when there is none, or its engine does not answer.
    pub container: Option<Contained>,
}

/// What a rotation did.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rotated {
    /// Roles with new passwords.
    pub roles: Vec<&'static str>,
    /// Roles that were at something that may take hours; they come later.
    pub left_out: Vec<&'static str>,
    /// How long it took.
    pub took: Duration,
}

/// When credentials come of age.
#[derive(Debug)]
struct Known {
    /// As they are; none until they were read.
    credentials: Vec<Credentials>,
    /// The last rotation of this process, or its start: a clock that stands still makes nobody's password eternal.
    since: Instant,
    /// A rotation was begun and not finished.
    is_unfinished: bool,
}

/// The use cases of rotation. Cheap to clone.
#[derive(Clone)]
pub struct Rotation {
    base: Base,
    foundation: Foundation,
    known: Arc<Mutex<Known>>,
    /// One at a time; the lock is meant to be held while it takes its time.
    turn: Arc<tokio::sync::Mutex<()>>,
    /// Rotations that somebody asked for. They go on when the caller goes away.
    asked: TaskTracker,
    stop: CancellationToken,
}

impl std::fmt::Debug for Rotation {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Rotation").field("known", &self.known).finish_non_exhaustive()
    }
}

impl Rotation {
    /// Over the node's database.
    #[must_use]
    pub fn new(foundation: &Foundation, base: Base) -> Self {
        let known = Known { credentials: Vec::new(), since: foundation.clock.monotonic(), is_unfinished: false };
        Self {
            base,
            known: Arc::new(Mutex::new(known)),
            turn: Arc::default(),
            asked: TaskTracker::new(),
            stop: foundation.supervisor.stop_token(TaskKind::Background),
            foundation: foundation.clone(),
        }
    }

    /// The background task: rotates what has come of age, and finishes what was interrupted.
    ///
    /// # Errors
    /// When the passwords' ages cannot be read; the supervisor makes another.
    pub async fn run(self, stop: CancellationToken) -> TaskResult {
        self.learn()?;
        let (mut pause, mut certificates) = (FIRST_PAUSE, None);
        while stop.run_until_cancelled(tokio::time::sleep(LOOK)).await.is_some() {
            // Cancelled anywhere it is finished by the next start.
            let Some(outcome) = stop.run_until_cancelled(self.look_at_all(&mut certificates)).await else { break };
            match outcome {
                Ok(()) => pause = FIRST_PAUSE,
                Err(error) => {
                    tracing::warn!(error = %error, retry_ms = millis(pause), "the rotation of passwords is tried again");
                    if stop.run_until_cancelled(tokio::time::sleep(pause)).await.is_none() {
                        break;
                    }
                    pause = (pause * 2).min(LONGEST_PAUSE);
                }
            }
        }
        self.asked.close();
        self.asked.wait().await;
        Ok(())
    }

    /// Rotates the passwords of these roles now; of all when none is named.
    ///
    /// # Errors
    /// When the caller may not, a role is unknown or busy, or the database or the secrets cannot be changed: then the
    /// former logins still work, and it is finished by itself.
    pub async fn rotate(&self, call: &Call, roles: &[String]) -> Result<Rotated, ServiceError> {
        allow_node(call, Verb::Maintain)?;
        let which = parse(roles)?;
        let (rotation, call) = (self.clone(), call.clone());
        let work = async move {
            let stop = rotation.stop.clone();
            let in_turn = async {
                let _turn = rotation.turn.lock().await;
                rotation.perform(&call, which, "asked").await
            };
            stop.run_until_cancelled(in_turn).await.unwrap_or_else(|| {
                let sentence = "the daemon stops; the rotation is finished at its next start";
                Err(ServiceError::unavailable(ErrorCode::SHUTTING_DOWN, sentence))
            })
        };
        self.asked.spawn(work).await.map_err(ServiceError::internal)?
    }

    /// What runs the database and how old its passwords are.
    ///
    /// # Errors
    /// When the caller may not, or the database does not answer.
    pub async fn status(&self, call: &Call) -> Result<DatabaseStatus, ServiceError> {
        allow_node(call, Verb::DatabaseAudit)?;
        let credentials = self.database().credentials().map_err(ServiceError::internal)?;
        let sessions = self.foundation.pools.sessions().await.map_err(failed)?;
        let uptime = self.foundation.pools.uptime().await.map_err(failed)?;
        let now_s = self.base.now().as_seconds();
        let state = |one: Credentials| RoleState {
            role: name(one.group),
            age: Duration::from_secs(u64::try_from(now_s - one.since_s.unwrap_or(now_s)).unwrap_or_default()),
            connections: logins(one.group).iter().filter_map(|login| sessions.get(login)).sum(),
            login: one.login,
        };
        Ok(DatabaseStatus {
            provisioner: self.foundation.postgres.choice().name(),
            version: self.foundation.postgres.version().await.map(|v| v.to_string()).unwrap_or_default(),
            uptime,
            rotated_every: self.every(),
            roles: credentials.into_iter().map(state).collect(),
            container: self.container().await,
        })
    }

    /// An engine that does not answer is no reason to say nothing of the database, which does.
    async fn container(&self) -> Option<Contained> {
        match self.foundation.postgres.container().await {
            Ok(found) => found,
            Err(error) => {
                tracing::warn!(error.cause = %error, "the container engine does not say what runs the database");
                None
            }
        }
    }

    /// Rotates what is due, and has the certificates renewed that are; `looked` is when those were looked at last.
    async fn look_at_all(&self, looked: &mut Option<Instant>) -> Result<(), ServiceError> {
        self.look().await?;
        let now = self.foundation.clock.monotonic();
        if looked.is_none_or(|at| now.saturating_duration_since(at) >= LOOK_AT_CERTIFICATES) {
            if self.database().renew_certificates().await.map_err(failed)? {
                tracing::info!("the database has read its certificates anew");
            }
            *looked = Some(now);
        }
        Ok(())
    }

    /// Rotates what is due, if anything is.
    async fn look(&self) -> Result<(), ServiceError> {
        let _turn = self.turn.lock().await;
        let (which, reason) = self.due();
        if which == Which::default() && !self.known().is_unfinished {
            return Ok(());
        }
        let call = self.base.internal_call("rotation");
        self.perform(&call, which, reason).await.map(drop)
    }

    /// One rotation with its entries, in whose turn it is.
    async fn perform(&self, call: &Call, wanted: Which, reason: &'static str) -> Result<Rotated, ServiceError> {
        let begun = self.foundation.clock.monotonic();
        let (which, left_out) = self.leave_out_busy(wanted.clone()).await?;
        if which == Which::default() && wanted != which {
            return Err(ServiceError::conflict(
                ErrorCode::UNMET_CONDITION,
                format!("at work for longer than a rotation waits: {}", left_out.join(", ")),
                "try again when it is done; `bib admin db status` shows who is connected",
            ));
        }
        let journal = &self.base.journal;
        let details = json!({ "roles": names(&which), "left_out": left_out, "reason": reason });
        let act = Act::new("database.rotate", "postgres", details);
        journal.record(&self.base.db, call, act, Outcome::Intent).await?;
        self.known().is_unfinished = true;
        let (pools, now_s) = (&self.foundation.pools, self.base.now().as_seconds());
        let outcome = self.database().rotate(&which, now_s, |moved| pools.move_over(moved)).await;
        let took = self.foundation.clock.monotonic().saturating_duration_since(begun);
        let (result, result_word) = match outcome {
            Ok(done) => {
                let mut known = self.known();
                (known.is_unfinished, known.since) = (false, self.foundation.clock.monotonic());
                (Ok(Rotated { roles: names(&done), left_out, took }), Outcome::Ok)
            }
            Err(error) => {
                let error = failed(error);
                let word = Outcome::Failed(error.code().to_string());
                (Err(error), word)
            }
        };
        self.learn()?;
        let roles = result.as_ref().map(|done| done.roles.clone()).unwrap_or_else(|_| names(&which));
        tracing::info!(?roles, duration_ms = millis(took), result = %result_word, "passwords of the database were rotated");
        let details = json!({ "roles": roles, "reason": reason, "duration_ms": millis(took) });
        let act = Act::new("database.rotate", "postgres", details);
        journal.record(&self.base.db, call, act, result_word).await?;
        result
    }

    /// A role without a time limit is not made to wait for what may take hours, nor cut off: it comes later.
    async fn leave_out_busy(&self, wanted: Which) -> Result<(Which, Vec<&'static str>), ServiceError> {
        let endless = |group: &GroupRole| group.limits().transaction_s == 0;
        if !wanted.groups.iter().any(endless) {
            return Ok((wanted, Vec::new()));
        }
        let sessions = self.foundation.pools.sessions().await.map_err(failed)?;
        let is_busy =
            |group: &GroupRole| endless(group) && logins(Some(*group)).iter().any(|login| sessions.contains_key(login));
        let (busy, groups): (Vec<GroupRole>, Vec<GroupRole>) = wanted.groups.into_iter().partition(is_busy);
        let left_out = busy.into_iter().map(|group| name(Some(group))).collect();
        Ok((Which { groups, ..wanted }, left_out))
    }

    /// What has come of age.
    fn due(&self) -> (Which, &'static str) {
        let known = self.known();
        let clock = &self.foundation.clock;
        if clock.monotonic().saturating_duration_since(known.since) >= self.every() {
            return (Which::all(), "scheduled");
        }
        let every_s = i64::try_from(self.every().as_secs()).unwrap_or(i64::MAX);
        let due = due(&known.credentials, clock.now().as_seconds(), every_s);
        (due, if known.is_unfinished { "unfinished" } else { "scheduled" })
    }

    fn learn(&self) -> Result<(), ServiceError> {
        let credentials = self.database().credentials().map_err(ServiceError::internal)?;
        self.known().credentials = credentials;
        Ok(())
    }

    fn known(&self) -> MutexGuard<'_, Known> {
        // A panic while it is held leaves it whole: every use is a plain assignment.
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn every(&self) -> Duration {
        self.foundation.config().database.rotation.every.0
    }

    fn database(&self) -> &Database {
        &self.foundation.database
    }
}

/// A password is due when it is old enough, and when it was made so far in the future that the clock must have been
/// wrong: then it is made again once, and dated by the clock of now.
fn due(credentials: &[Credentials], now_s: i64, every_s: i64) -> Which {
    let is_due =
        |one: &&Credentials| one.since_s.is_none_or(|since_s| now_s.abs_diff(since_s) >= every_s.unsigned_abs());
    let mut which = Which::default();
    for one in credentials.iter().filter(is_due) {
        match one.group {
            Some(group) => which.groups.push(group),
            None => which.superuser = true,
        }
    }
    which
}

fn parse(roles: &[String]) -> Result<Which, ServiceError> {
    if roles.is_empty() {
        return Ok(Which::all());
    }
    let mut which = Which::default();
    for role in roles {
        match GroupRole::parse(role) {
            _ if role == SUPERUSER => which.superuser = true,
            Some(group) if which.groups.contains(&group) => {}
            Some(group) => which.groups.push(group),
            None => {
                let known = names(&Which::all()).join(", ");
                let role: String = role.chars().take(40).collect();
                return Err(ServiceError::invalid("roles", format!("`{role}` is none of {known}")));
            }
        }
    }
    Ok(which)
}

fn name(group: Option<GroupRole>) -> &'static str {
    group.map_or(SUPERUSER, GroupRole::short)
}

fn names(which: &Which) -> Vec<&'static str> {
    let superuser = which.superuser.then_some(SUPERUSER);
    which.groups.iter().map(|group| group.short()).chain(superuser).collect()
}

fn logins(group: Option<GroupRole>) -> Vec<String> {
    match group {
        Some(group) => Letter::ALL.map(|letter| group.login_name(letter)).into(),
        None => vec![ADMIN.to_owned()],
    }
}

fn failed(error: Error) -> ServiceError {
    match error {
        Error::Sql { .. } | Error::Deadline { .. } | Error::Tls(_) => {
            tracing::warn!(error.cause = %chain(&error), "the database's credentials could not be handled");
            ServiceError::unavailable(ErrorCode::DATABASE_UNAVAILABLE, "the database does not answer at the moment")
        }
        other => ServiceError::internal(other),
    }
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    const DAY: i64 = 86_400;

    fn aged(since_s: Option<i64>) -> Vec<Credentials> {
        let one = |group| Credentials { group, login: String::new(), since_s };
        vec![one(Some(GroupRole::Seal)), one(None)]
    }

    #[test]
    fn a_password_comes_of_age_once_whatever_the_clock_does() {
        let both = Which { groups: vec![GroupRole::Seal], superuser: true };
        let now = 20_000 * DAY;
        for (since, is_due) in [
            (Some(now), false),
            (Some(now - 7 * DAY + 1), false),
            (Some(now - 7 * DAY), true),
            (Some(now - 3_650 * DAY), true),
            // An hour back, a day back: not lost, only late. Ten years back: once, then dated anew.
            (Some(now + 3_600), false),
            (Some(now + DAY), false),
            (Some(now + 3_650 * DAY), true),
            (Some(i64::MAX), true),
            (None, true),
        ] {
            let expected = if is_due { both.clone() } else { Which::default() };
            assert_eq!(due(&aged(since), now, 7 * DAY), expected, "{since:?}");
        }
    }

    #[test]
    fn roles_are_named_as_they_are_shown() {
        assert_eq!(parse(&[]).unwrap(), Which::all());
        for name in names(&Which::all()) {
            assert_eq!(names(&parse(&[name.to_owned(), name.to_owned()]).unwrap()), [name]);
        }
        let error = parse(&["admin".to_owned()]).unwrap_err().to_string();
        assert!(error.contains("`admin` is none of service, seal, audit") && error.contains("superuser"), "{error}");
    }
}
