//! Break-glass: the database is opened to a person for a while, and what the person does is recorded before it happens.
//!
//! What this owns: the grant from wish to report, the proxy that is the only way to the role of a grant, the recordings.
//! What it must never do: pass a statement on that is not on the disk and in the audit log, or leave a session beyond its
//! time.
//!
//! The parts, in the order in which a grant meets them:
//!
//! - [`challenge`] gives out what an admin must sign; `confirm` checks what came back.
//! - `grant` takes the steps of opening and ending. The row of a grant is there before its role and goes to `ended` after
//!   it, so that whoever died on the way is finished at the next start: a role is never left, a live session neither
//!   (`bibd_postgres` shuts the role at the start before anything is served, `keeper` drops it).
//! - `proxy` lets a person's program in; `session` reads both directions, asks `transcript` for lines, has `recorder` and
//!   the audit log take them, passes the bytes on. It ends with its stream, at a cut, and when it cannot record.
//! - `keeper` is the background task: expiry by two clocks, holders who are no admins any more, sessions that are not the
//!   proxy's, and whatever was not finished.
//! - `report` puts together what a grant came to.
//! - `notices` tell a webhook and a mail address that a grant was opened, used and ended.

pub mod challenge;
mod confirm;
mod grant;
mod keeper;
mod notices;
mod proxy;
mod recorder;
mod report;
mod session;
mod transcript;

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU32};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use bib_core::PeerId;
use bib_core::access::{GlassAccess, Verb};
use bib_core::glass::MAX_REASON_BYTES;
use bib_identity::ssh::{self, PublicKey};
use bibd_catalog::glass::{self, GlassGrant, GlassSession, Granted};
use bibd_postgres::glass::snapshot::Snapshot;
use bibd_postgres::glass::{BackendKey, Door, GlassName};
use serde_json::json;
use tokio::sync::watch;
use tokio_util::io::ReaderStream;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use uuid::Uuid;

use super::accounts::{id, line};
use super::base::{Base, allow_node};
use super::error::ServiceError;
use super::journal::Act;
use crate::actor::Call;
use crate::config::AuditLevel;
use crate::errors::ErrorCode;
use crate::foundation::Foundation;
use crate::supervisor::TaskKind;

use challenge::{Challenge, Challenges, Wish};
use notices::Notices;
use recorder::{Recorder, Shelf};

pub use proxy::Piped;
pub use recorder::Form;

/// The longest note of a review, in characters.
const MAX_REVIEW_CHARS: usize = 4_000;
/// A recording is sent in pieces of this many bytes.
const PIECE_BYTES: usize = 64 << 10;
/// The shortest grant.
const SHORTEST: Duration = Duration::from_secs(1);

/// A key that may confirm.
#[derive(Debug, Clone)]
pub struct AllowedKey {
    /// What the configuration calls it.
    pub name: String,
    /// The key.
    pub key: PublicKey,
}

/// What the configuration allows. There is none where break-glass is off.
#[derive(Debug, Clone)]
pub struct Settings {
    /// The longest grant.
    pub max_duration: Duration,
    /// The most that can be granted.
    pub access: GlassAccess,
    /// Who may confirm.
    pub keys: Vec<AllowedKey>,
    /// How much is recorded.
    pub audit_level: AuditLevel,
    /// How large the recording of a session may become.
    pub max_recording: u64,
    /// Whether an ended grant must be reviewed before the next one.
    pub require_review: bool,
}

/// What there is to know at one moment.
#[derive(Debug, Clone)]
pub struct Status {
    /// What the configuration allows.
    pub settings: Option<Settings>,
    /// The grant that has not ended.
    pub grant: Option<GlassGrant>,
    /// Ended grants that nobody has reviewed.
    pub unreviewed: Vec<Uuid>,
}

/// An answer to a challenge.
#[derive(Debug, Clone)]
pub struct Answer {
    /// As [`Challenge::id`].
    pub challenge_id: String,
    /// Canonical JSON of a [`bib_core::glass::GlassStatement`].
    pub statement: Vec<u8>,
    /// SSHSIG over it, PEM.
    pub signature: String,
}

/// Why sessions are cut, and the grant ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Cut {
    Disabled,
    Expired,
    Recorder,
    Stray,
    Holder,
    Stopping,
}

impl Cut {
    /// The word in the catalog, the audit log and the report.
    const fn as_str(self) -> &'static str {
        match self {
            Self::Disabled => "disabled",
            Self::Expired => "expired",
            Self::Recorder => "recorder",
            Self::Stray => "stray",
            Self::Holder => "holder",
            Self::Stopping => "stopping",
        }
    }

    /// What the person is told.
    const fn sentence(self) -> &'static str {
        match self {
            Self::Disabled => "break-glass was disabled",
            Self::Expired => "the time of this break-glass grant is over",
            Self::Recorder => "the recording of this session cannot be written, so it ends here",
            Self::Stray => "a session that is not recorded was found, so all of them end here",
            Self::Holder => "the holder of this break-glass grant is no admin of the node any more",
            Self::Stopping => "the node is stopping",
        }
    }
}

/// A session of the open grant.
#[derive(Debug, Clone)]
struct Live {
    backend: BackendKey,
    recorder: Arc<Recorder>,
}

/// The grant that is open.
#[derive(Debug)]
struct Open {
    granted: Granted,
    name: GlassName,
    door: Door,
    before: Snapshot,
    shelf: Shelf,
    /// By the clock that nobody can set.
    deadline: Instant,
    /// Set once, when everything is to end.
    cut: watch::Sender<Option<Cut>>,
    /// By the number and the secret that the person's program was told.
    live: Mutex<HashMap<BackendKey, Live>>,
    /// Sessions that the server may have let in already and that are not in `live` yet.
    entering: AtomicU32,
    tasks: TaskTracker,
}

impl Open {
    /// Ends every session. The first reason counts.
    fn cut(&self, why: Cut) {
        self.cut.send_if_modified(|cut| {
            let is_first = cut.is_none();
            cut.get_or_insert(why);
            is_first
        });
    }

    fn live(&self) -> MutexGuard<'_, HashMap<BackendKey, Live>> {
        // Each use is one insert, remove or look: whole when a panic could strike.
        self.live.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The use cases of break-glass. Cheap to clone.
#[derive(Clone)]
pub struct BreakGlass(Arc<Inner>);

struct Inner {
    base: Base,
    foundation: Foundation,
    settings: Option<Settings>,
    root: PathBuf,
    challenges: Challenges,
    notices: Notices,
    /// Opening and ending, one at a time; meant to be held while the database works.
    turn: tokio::sync::Mutex<()>,
    open: Mutex<Option<Arc<Open>>>,
    /// Nothing of a former grant is left that is to be closed.
    is_settled: AtomicBool,
    /// What was begun for a caller and goes on when the caller goes away.
    asked: TaskTracker,
    /// The daemon begins to stop.
    stopping: CancellationToken,
}

impl std::fmt::Debug for BreakGlass {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("BreakGlass").field("settings", &self.0.settings).finish_non_exhaustive()
    }
}

impl BreakGlass {
    /// As the configuration says. Starts the background task.
    ///
    /// # Errors
    /// When a configured key cannot be read, which the configuration has checked.
    pub fn start(foundation: &Foundation, base: Base) -> Result<Self, Box<dyn std::error::Error + Send + Sync>> {
        let config = &foundation.config().database.break_glass;
        let key = |user: &crate::config::AllowedUser| {
            Ok::<_, ssh::SshError>(AllowedKey { name: user.name.clone(), key: user.public_key.parse()? })
        };
        let settings = Settings {
            max_duration: config.max_duration.0,
            access: config.access.into(),
            keys: config.allowed_users.iter().map(key).collect::<Result<_, _>>()?,
            audit_level: config.audit_level,
            max_recording: config.max_recording.0,
            require_review: config.require_review,
        };
        let glass = Self(Arc::new(Inner {
            challenges: Challenges::new(base.ids.clone()),
            notices: Notices::start(&base, &foundation.supervisor, &foundation.secrets, &config.notification),
            base,
            settings: config.enabled.then_some(settings),
            root: foundation.places.glass.clone(),
            turn: tokio::sync::Mutex::default(),
            open: Mutex::default(),
            is_settled: AtomicBool::new(false),
            asked: TaskTracker::new(),
            stopping: foundation.supervisor.stop_token(TaskKind::Edge),
            foundation: foundation.clone(),
        }));
        glass.keep();
        Ok(glass)
    }

    /// Who this node is.
    #[must_use]
    pub fn peer(&self) -> PeerId {
        self.0.base.peer
    }

    /// What is allowed, and what is open.
    ///
    /// # Errors
    /// When the caller may not, or the database does not answer.
    pub async fn status(&self, call: &Call) -> Result<Status, ServiceError> {
        allow_node(call, Verb::BreakGlass)?;
        let mut session = self.0.base.db.read().await?;
        let grant = match glass::not_ended(&mut session).await?.first() {
            Some(id) => glass::find(&mut session, *id).await?,
            None => None,
        };
        let unreviewed = glass::unreviewed(&mut session, 100).await?;
        Ok(Status { settings: self.0.settings.clone(), grant, unreviewed })
    }

    /// Until the open grant ends; nothing when none is open.
    #[must_use]
    pub fn remaining(&self) -> Duration {
        let now = self.0.base.ids.clock().monotonic();
        self.open().map(|open| open.deadline.saturating_duration_since(now)).unwrap_or_default()
    }

    /// What an allowed key must sign for this wish, and the wish as the statement must say it.
    ///
    /// # Errors
    /// When break-glass is off, the caller may not, the wish goes beyond the configuration, a grant is open or waits for
    /// its review.
    pub async fn challenge(&self, call: &Call, wish: Wish) -> Result<(Challenge, Wish, Settings), ServiceError> {
        allow_node(call, Verb::BreakGlass)?;
        let settings = self.settings()?;
        let reason = line("reason", &wish.reason, MAX_REASON_BYTES)?;
        if reason.is_empty() || reason.len() > MAX_REASON_BYTES {
            return Err(ServiceError::invalid("reason", "a line of 1 to 1024 bytes is needed"));
        }
        let wish = Wish { reason, ..wish };
        self.within(settings, &wish)?;
        self.none_waits(settings).await?;
        Ok((self.0.challenges.give(call.actor.user, wish.clone()), wish, settings.clone()))
    }

    /// Trades a signed statement for a grant.
    ///
    /// # Errors
    /// [`ErrorCode::GLASS_CHALLENGE`], [`ErrorCode::GLASS_STATEMENT`], [`ErrorCode::GLASS_KEY`],
    /// [`ErrorCode::GLASS_SIGNATURE`] for what is wrong with the answer; as [`BreakGlass::challenge`]; when the role, the
    /// recording or the audit log cannot be had: then there is no grant.
    pub async fn enable(&self, call: &Call, answer: Answer) -> Result<GlassGrant, ServiceError> {
        allow_node(call, Verb::BreakGlass)?;
        let settings = self.settings()?;
        let granted = self.confirm(call, settings, answer)?;
        let (glass, call) = (self.clone(), call.clone());
        let work = async move {
            let _turn = glass.0.turn.lock().await;
            glass.grant(&call, granted).await
        };
        self.0.asked.spawn(work).await.map_err(ServiceError::internal)?
    }

    /// Ends the grant that is open and cuts its sessions.
    ///
    /// # Errors
    /// [`ErrorCode::GLASS_NOT_OPEN`]; when the caller may not; when the database does not answer: then the sessions are
    /// cut all the same, and the rest is done as soon as it does.
    pub async fn disable(&self, call: &Call, grant: &str) -> Result<GlassGrant, ServiceError> {
        allow_node(call, Verb::BreakGlass)?;
        let wanted = (!grant.is_empty()).then(|| id("grant_id", grant)).transpose()?;
        let open = self.open().filter(|open| wanted.is_none_or(|id| open.granted.id == id));
        let open = open.ok_or_else(not_open)?;
        let id = open.granted.id;
        open.cut(Cut::Disabled);
        let (glass, call) = (self.clone(), call.clone());
        let work = async move { glass.end(&open, &call).await };
        self.0.asked.spawn(work).await.map_err(ServiceError::internal)??;
        self.load(id).await
    }

    /// A connection of the grant's holder to the recording proxy: what the person's program sends, for what it is to be
    /// sent.
    ///
    /// # Errors
    /// [`ErrorCode::GLASS_OFF`], [`ErrorCode::GLASS_NOT_OPEN`] when no grant is open or it is somebody else's; when the
    /// caller may not.
    pub fn connect(&self, call: &Call, said: Piped) -> Result<Piped, ServiceError> {
        allow_node(call, Verb::BreakGlass)?;
        self.settings()?;
        let open = self.open().filter(|open| open.granted.user == call.actor.user && open.cut.borrow().is_none());
        let open = open.ok_or_else(not_open)?;
        Ok(self.piped(open, call.clone(), said))
    }

    /// A page of sessions, newest first.
    ///
    /// # Errors
    /// When the caller may not, or the database does not answer.
    pub async fn sessions(
        &self,
        call: &Call,
        grant: &str,
        before: Option<Uuid>,
        limit: u32,
    ) -> Result<Vec<GlassSession>, ServiceError> {
        allow_node(call, Verb::BreakGlass)?;
        let grant = (!grant.is_empty()).then(|| id("grant_id", grant)).transpose()?;
        Ok(glass::sessions(&mut self.0.base.db.read().await?, grant, before, limit).await?)
    }

    /// The recording of a session as it is on the disk, in pieces. Looking is an act of its own.
    ///
    /// # Errors
    /// When the caller may not, there is no such session or its recording is gone.
    pub async fn show(
        &self,
        call: &Call,
        session: &str,
        form: Form,
    ) -> Result<ReaderStream<tokio::fs::File>, ServiceError> {
        allow_node(call, Verb::BreakGlass)?;
        let wanted = id("session_id", session)?;
        let base = &self.0.base;
        let found = glass::find_session(&mut base.db.read().await?, wanted).await?;
        let found = found.ok_or_else(|| ServiceError::not_found("session", session))?;
        let path = Shelf::of(&self.0.root, found.grant).recording(wanted, form);
        let file = tokio::fs::File::open(&path).await.map_err(|error| {
            tracing::error!(error.cause = %error, path = %path.display(), "a recording cannot be read");
            ServiceError::not_found("recording", session)
        })?;
        let details = json!({ "break_glass": true, "grant": found.grant.to_string() });
        let act = Act::new("break_glass.show", wanted.to_string(), details);
        base.journal.record(&base.db, call, act, bibd_audit::Outcome::Ok).await?;
        Ok(ReaderStream::with_capacity(file, PIECE_BYTES))
    }

    /// What a grant came to, as JSON; of the newest that has ended when none is named.
    ///
    /// # Errors
    /// When the caller may not, or there is none yet.
    pub async fn report(&self, call: &Call, grant: &str) -> Result<String, ServiceError> {
        allow_node(call, Verb::BreakGlass)?;
        let mut session = self.0.base.db.read().await?;
        let wanted =
            if grant.is_empty() { glass::newest_ended(&mut session).await? } else { Some(id("grant_id", grant)?) };
        let found = match wanted {
            Some(id) => glass::report(&mut session, id).await?,
            None => None,
        };
        let bytes = found.ok_or_else(|| ServiceError::not_found("report", grant))?;
        String::from_utf8(bytes).map_err(ServiceError::internal)
    }

    /// Somebody has looked at what was done; of the oldest grant that waits for it when none is named.
    ///
    /// # Errors
    /// When the caller may not, the grant has not ended or was reviewed before.
    pub async fn review(&self, call: &Call, grant: &str, note: &str) -> Result<GlassGrant, ServiceError> {
        allow_node(call, Verb::BreakGlass)?;
        let base = &self.0.base;
        let note = line("note", note, MAX_REVIEW_CHARS)?;
        if note.is_empty() {
            return Err(ServiceError::invalid("note", "say what you found"));
        }
        let mut tx = base.begin(call, "break-glass").await?;
        let wanted = match grant {
            "" => glass::unreviewed(&mut tx, 1).await?.first().copied(),
            named => Some(id("grant_id", named)?),
        };
        let nothing = || {
            let hint = "`bib admin break-glass status` names those that wait";
            ServiceError::conflict(ErrorCode::UNMET_CONDITION, "no ended grant waits for a review", hint)
        };
        let wanted = wanted.ok_or_else(nothing)?;
        let found = glass::find(&mut tx, wanted).await?;
        let found = found.ok_or_else(|| ServiceError::not_found("grant", wanted.to_string()))?;
        if !glass::review(&mut tx, wanted, base.now(), &call.actor.name, &note).await? {
            return Err(nothing());
        }
        // Nobody forbids it, where there is one admin; who reads the log sees it.
        let is_own = found.granted.user == call.actor.user;
        let details = json!({ "break_glass": true, "note": note, "own": is_own });
        base.journal.commit(tx, call, Act::new("break_glass.review", wanted.to_string(), details)).await?;
        self.load(wanted).await
    }

    fn settings(&self) -> Result<&Settings, ServiceError> {
        self.0.settings.as_ref().ok_or_else(|| {
            ServiceError::conflict(
                ErrorCode::GLASS_OFF,
                "break-glass is not enabled on this node",
                "who may change the configuration sets `database.break_glass` and starts bibd again",
            )
        })
    }

    fn open(&self) -> Option<Arc<Open>> {
        self.current().clone()
    }

    fn current(&self) -> MutexGuard<'_, Option<Arc<Open>>> {
        self.0.open.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn load(&self, id: Uuid) -> Result<GlassGrant, ServiceError> {
        let found = glass::find(&mut self.0.base.db.read().await?, id).await?;
        found.ok_or_else(|| ServiceError::not_found("grant", id.to_string()))
    }

    fn within(&self, settings: &Settings, wish: &Wish) -> Result<(), ServiceError> {
        if wish.duration < SHORTEST || wish.duration > settings.max_duration {
            let longest = crate::config::Span(settings.max_duration);
            return Err(denied(
                ErrorCode::GLASS_TOO_LONG,
                format!("a grant lasts 1s to {longest} on this node"),
                "ask for less, or have `database.break_glass.max_duration` changed",
            ));
        }
        if wish.access == GlassAccess::ReadWrite && settings.access == GlassAccess::ReadOnly {
            let hint = "ask for `readonly`, or have `database.break_glass.access` changed";
            return Err(denied(ErrorCode::GLASS_TOO_MUCH, "a grant only reads on this node", hint));
        }
        Ok(())
    }

    /// No grant is open, and none waits for its review.
    async fn none_waits(&self, settings: &Settings) -> Result<(), ServiceError> {
        let mut session = self.0.base.db.read().await?;
        if let Some(id) = glass::not_ended(&mut session).await?.first() {
            let state = glass::find(&mut session, *id).await?.map_or("intended", |grant| grant.state.as_str());
            return Err(already_open(*id, state));
        }
        if !settings.require_review {
            return Ok(());
        }
        match glass::unreviewed(&mut session, 1).await?.first() {
            None => Ok(()),
            Some(id) => Err(ServiceError::conflict(
                ErrorCode::GLASS_REVIEW,
                format!("the grant {id} has ended and was not reviewed"),
                format!("`bib admin break-glass report {id}` shows it, `bib admin break-glass review {id}` settles it"),
            )),
        }
    }
}

fn denied(code: ErrorCode, sentence: impl Into<String>, hint: impl Into<String>) -> ServiceError {
    ServiceError::Denied { code, sentence: sentence.into(), hint: hint.into() }
}

fn already_open(id: Uuid, state: &str) -> ServiceError {
    ServiceError::conflict(
        ErrorCode::GLASS_OPEN,
        format!("the grant {id} is {state}; there is one at a time"),
        "`bib admin break-glass status` shows it, `bib admin break-glass disable` ends it",
    )
}

fn not_open() -> ServiceError {
    ServiceError::conflict(
        ErrorCode::GLASS_NOT_OPEN,
        "no break-glass grant is open for you",
        "`bib admin break-glass status` shows what is open, `bib admin break-glass enable` asks for one",
    )
}

/// The recording cannot be written: nothing is granted, nothing is passed on.
fn no_recorder(error: &(dyn std::error::Error + 'static)) -> ServiceError {
    tracing::error!(error = error, "the recording of break-glass cannot be written");
    ServiceError::unavailable(ErrorCode::GLASS_RECORDER, "the recording of break-glass cannot be written")
}
