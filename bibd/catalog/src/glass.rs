//! Break-glass: its grants, each open at most one at a time, and the sessions of each.

use bib_core::access::GlassAccess;
use bib_core::{Hash, Timestamp, UserId};
use sqlx::FromRow;
use time::OffsetDateTime;
use uuid::Uuid;

use crate::row::{hash, inconsistent, parsed, signed};
use crate::statement::{Class, Statement};
use crate::{Result, Session, Tx};

static INSERT: Statement = Statement::new(
    Class::Insert,
    "glass_grants",
    "INSERT INTO bib.glass_grants (id, user_id, user_name, reason, access, key_name, key_fingerprint, statement, signature,
                                   state, created_at, expires_at)
     VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, 'intended', $10, $11)",
);

static OPEN: Statement = Statement::new(
    Class::Update,
    "glass_grants",
    "UPDATE bib.glass_grants SET state = 'open' WHERE id = $1 AND state = 'intended'",
);

static END: Statement = Statement::new(
    Class::Update,
    "glass_grants",
    "UPDATE bib.glass_grants SET state = 'ended', ended_at = $2, end_reason = $3, report = $4
     WHERE id = $1 AND state <> 'ended'",
);

static REVIEW: Statement = Statement::new(
    Class::Update,
    "glass_grants",
    "UPDATE bib.glass_grants SET reviewed_at = $2, reviewed_by = $3, review = $4
     WHERE id = $1 AND state = 'ended' AND reviewed_at IS NULL",
);

static FIND: Statement = Statement::new(
    Class::Select,
    "glass_grants",
    "SELECT g.id, g.user_id, g.user_name, g.reason, g.access, g.key_name, g.key_fingerprint, g.statement, g.signature,
            g.state, g.created_at, g.expires_at, g.ended_at, g.end_reason, g.reviewed_at, g.reviewed_by, g.review,
            (SELECT count(*) FROM bib.glass_sessions s WHERE s.grant_id = g.id) AS sessions,
            (SELECT coalesce(sum(s.statements), 0)::bigint FROM bib.glass_sessions s WHERE s.grant_id = g.id) AS statements
     FROM bib.glass_grants g
     WHERE g.id = $1",
);

static NOT_ENDED: Statement =
    Statement::new(Class::Select, "glass_grants", "SELECT id FROM bib.glass_grants WHERE state <> 'ended' ORDER BY id");

static UNREVIEWED: Statement = Statement::new(
    Class::Select,
    "glass_grants",
    "SELECT id FROM bib.glass_grants WHERE state = 'ended' AND reviewed_at IS NULL ORDER BY id LIMIT $1",
);

static NEWEST_ENDED: Statement = Statement::new(
    Class::Select,
    "glass_grants",
    "SELECT id FROM bib.glass_grants WHERE state = 'ended' ORDER BY id DESC LIMIT 1",
);

static REPORT: Statement =
    Statement::new(Class::Select, "glass_grants", "SELECT report FROM bib.glass_grants WHERE id = $1");

static BEGIN_SESSION: Statement = Statement::new(
    Class::Insert,
    "glass_sessions",
    "INSERT INTO bib.glass_sessions (id, grant_id, application, started_at) VALUES ($1, $2, $3, $4)",
);

static END_SESSION: Statement = Statement::new(
    Class::Update,
    "glass_sessions",
    "UPDATE bib.glass_sessions
     SET ended_at = $2, end_reason = $3, statements = $4, bytes_in = $5, bytes_out = $6, recording = $7
     WHERE id = $1 AND ended_at IS NULL",
);

// Sessions whose daemon died: what their recordings say is in the report.
static LEAVE_SESSIONS: Statement = Statement::new(
    Class::Update,
    "glass_sessions",
    "UPDATE bib.glass_sessions SET ended_at = $2, end_reason = $3 WHERE grant_id = $1 AND ended_at IS NULL",
);

static SESSIONS: Statement = Statement::new(
    Class::Select,
    "glass_sessions",
    "SELECT s.id, s.grant_id, g.user_name, s.application, s.started_at, s.ended_at, s.end_reason, s.statements,
            s.bytes_in, s.bytes_out, s.recording
     FROM bib.glass_sessions s
     JOIN bib.glass_grants g ON g.id = s.grant_id
     WHERE ($1::uuid IS NULL OR s.grant_id = $1) AND ($2::uuid IS NULL OR s.id < $2)
     ORDER BY s.id DESC
     LIMIT $3",
);

static FIND_SESSION: Statement = Statement::new(
    Class::Select,
    "glass_sessions",
    "SELECT s.id, s.grant_id, g.user_name, s.application, s.started_at, s.ended_at, s.end_reason, s.statements,
            s.bytes_in, s.bytes_out, s.recording
     FROM bib.glass_sessions s
     JOIN bib.glass_grants g ON g.id = s.grant_id
     WHERE s.id = $1",
);

pub(crate) static STATEMENTS: &[&Statement] = &[
    &INSERT,
    &OPEN,
    &END,
    &REVIEW,
    &FIND,
    &NOT_ENDED,
    &UNREVIEWED,
    &NEWEST_ENDED,
    &REPORT,
    &BEGIN_SESSION,
    &END_SESSION,
    &LEAVE_SESSIONS,
    &SESSIONS,
    &FIND_SESSION,
];

/// How far a grant is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum GrantState {
    /// It was decided; its role may exist.
    Intended,
    /// Its holder may connect.
    Open,
    /// Its role is gone.
    Ended,
}

impl GrantState {
    /// The word in the table and on the wire.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Intended => "intended",
            Self::Open => "open",
            Self::Ended => "ended",
        }
    }
}

/// What a grant is from its first moment on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Granted {
    /// UUIDv7.
    pub id: Uuid,
    /// Who holds it.
    pub user: UserId,
    /// The holder's name then.
    pub user_name: String,
    /// Why.
    pub reason: String,
    /// What for.
    pub access: GlassAccess,
    /// The configured name of the key that confirmed it.
    pub key_name: String,
    /// That key.
    pub key_fingerprint: String,
    /// What was signed.
    pub statement: Vec<u8>,
    /// SSHSIG over it, PEM.
    pub signature: String,
    /// When it was decided.
    pub created_at: Timestamp,
    /// When it ends at the latest.
    pub expires_at: Timestamp,
}

/// A grant as it stands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GlassGrant {
    /// What it is.
    pub granted: Granted,
    /// How far it is.
    pub state: GrantState,
    /// When it ended.
    pub ended_at: Option<Timestamp>,
    /// Why it ended.
    pub end_reason: String,
    /// When somebody looked at what was done.
    pub reviewed_at: Option<Timestamp>,
    /// The name of who did.
    pub reviewed_by: String,
    /// What they found.
    pub review: String,
    /// Sessions so far.
    pub sessions: u64,
    /// Statements of the sessions that have ended.
    pub statements: u64,
}

/// A session of a grant.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GlassSession {
    /// UUIDv7.
    pub id: Uuid,
    /// Of this grant.
    pub grant: Uuid,
    /// Who held it.
    pub user_name: String,
    /// What the person's program called itself.
    pub application: String,
    /// When it began.
    pub started_at: Timestamp,
    /// When it ended.
    pub ended_at: Option<Timestamp>,
    /// Why it ended.
    pub end_reason: String,
    /// What was counted.
    pub counts: SessionCounts,
    /// SHA-256 of its recording.
    pub recording: Option<Hash>,
}

/// What a session came to.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct SessionCounts {
    /// Statements that were passed on.
    pub statements: u64,
    /// Bytes that the person sent.
    pub bytes_in: u64,
    /// Bytes that the person was sent.
    pub bytes_out: u64,
}

#[derive(FromRow)]
struct GrantRow {
    id: Uuid,
    user_id: Uuid,
    user_name: String,
    reason: String,
    access: String,
    key_name: String,
    key_fingerprint: String,
    statement: Vec<u8>,
    signature: String,
    state: String,
    created_at: OffsetDateTime,
    expires_at: OffsetDateTime,
    ended_at: Option<OffsetDateTime>,
    end_reason: String,
    reviewed_at: Option<OffsetDateTime>,
    reviewed_by: String,
    review: String,
    sessions: i64,
    statements: i64,
}

impl GrantRow {
    fn into_grant(self) -> Result<GlassGrant> {
        let state = match self.state.as_str() {
            "intended" => GrantState::Intended,
            "open" => GrantState::Open,
            "ended" => GrantState::Ended,
            other => return Err(inconsistent("glass_grants", "state", self.id, format!("`{other}`"))),
        };
        Ok(GlassGrant {
            state,
            granted: Granted {
                access: parsed("glass_grants", "access", self.id, &self.access)?,
                id: self.id,
                user: UserId::from_uuid(self.user_id),
                user_name: self.user_name,
                reason: self.reason,
                key_name: self.key_name,
                key_fingerprint: self.key_fingerprint,
                statement: self.statement,
                signature: self.signature,
                created_at: self.created_at.into(),
                expires_at: self.expires_at.into(),
            },
            ended_at: self.ended_at.map(Timestamp::from),
            end_reason: self.end_reason,
            reviewed_at: self.reviewed_at.map(Timestamp::from),
            reviewed_by: self.reviewed_by,
            review: self.review,
            sessions: self.sessions.unsigned_abs(),
            statements: self.statements.unsigned_abs(),
        })
    }
}

#[derive(FromRow)]
struct SessionRow {
    id: Uuid,
    grant_id: Uuid,
    user_name: String,
    application: String,
    started_at: OffsetDateTime,
    ended_at: Option<OffsetDateTime>,
    end_reason: String,
    statements: i64,
    bytes_in: i64,
    bytes_out: i64,
    recording: Option<Vec<u8>>,
}

impl SessionRow {
    fn into_session(self) -> Result<GlassSession> {
        let bytes = |recording: Vec<u8>| hash("glass_sessions", "recording", self.id, &recording);
        Ok(GlassSession {
            recording: self.recording.map(bytes).transpose()?,
            id: self.id,
            grant: self.grant_id,
            user_name: self.user_name,
            application: self.application,
            started_at: self.started_at.into(),
            ended_at: self.ended_at.map(Timestamp::from),
            end_reason: self.end_reason,
            counts: SessionCounts {
                statements: self.statements.unsigned_abs(),
                bytes_in: self.bytes_in.unsigned_abs(),
                bytes_out: self.bytes_out.unsigned_abs(),
            },
        })
    }
}

/// Enters a grant that is about to be opened.
///
/// # Errors
/// `Conflict` on `glass_grants_one_open` while another has not ended.
pub async fn insert(tx: &mut Tx, granted: &Granted) -> Result<()> {
    INSERT
        .on(tx)
        .bind(granted.id)
        .bind(granted.user.as_uuid())
        .bind(&granted.user_name)
        .bind(&granted.reason)
        .bind(granted.access.as_str())
        .bind(&granted.key_name)
        .bind(&granted.key_fingerprint)
        .bind(&granted.statement)
        .bind(&granted.signature)
        .bind(granted.created_at.to_offset())
        .bind(granted.expires_at.to_offset())
        .execute_one()
        .await
}

/// Its role is there.
///
/// # Errors
/// `Affected` when it is not waiting for that.
pub async fn open(tx: &mut Tx, id: Uuid) -> Result<()> {
    OPEN.on(tx).bind(id).execute_one().await
}

/// Its role is gone. False when that was known.
///
/// # Errors
/// When the database refuses.
pub async fn end(tx: &mut Tx, id: Uuid, now: Timestamp, reason: &str, report: &[u8]) -> Result<bool> {
    Ok(END.on(tx).bind(id).bind(now.to_offset()).bind(reason).bind(report).execute().await? == 1)
}

/// Somebody looked at what was done. False when it has not ended or was reviewed before.
///
/// # Errors
/// When the database refuses.
pub async fn review(tx: &mut Tx, id: Uuid, now: Timestamp, by: &str, note: &str) -> Result<bool> {
    Ok(REVIEW.on(tx).bind(id).bind(now.to_offset()).bind(by).bind(note).execute().await? == 1)
}

/// A grant.
///
/// # Errors
/// When the database is gone.
pub async fn find(session: &mut impl Session, id: Uuid) -> Result<Option<GlassGrant>> {
    FIND.on(session).bind(id).optional::<GrantRow>().await?.map(GrantRow::into_grant).transpose()
}

/// Grants that have not ended: at most one, but for what a daemon of another time left.
///
/// # Errors
/// When the database is gone.
pub async fn not_ended(session: &mut impl Session) -> Result<Vec<Uuid>> {
    Ok(NOT_ENDED.on(session).all::<(Uuid,)>().await?.into_iter().map(|row| row.0).collect())
}

/// Grants that ended and that nobody has reviewed, oldest first.
///
/// # Errors
/// When the database is gone.
pub async fn unreviewed(session: &mut impl Session, limit: u32) -> Result<Vec<Uuid>> {
    let rows = UNREVIEWED.on(session).bind(i64::from(limit)).all::<(Uuid,)>().await?;
    Ok(rows.into_iter().map(|row| row.0).collect())
}

/// The grant that ended last, by when it began.
///
/// # Errors
/// When the database is gone.
pub async fn newest_ended(session: &mut impl Session) -> Result<Option<Uuid>> {
    Ok(NEWEST_ENDED.on(session).optional::<(Uuid,)>().await?.map(|row| row.0))
}

/// The report of a grant that has ended.
///
/// # Errors
/// When the database is gone.
pub async fn report(session: &mut impl Session, id: Uuid) -> Result<Option<Vec<u8>>> {
    Ok(REPORT.on(session).bind(id).optional::<(Option<Vec<u8>>,)>().await?.and_then(|row| row.0))
}

/// Enters a session.
///
/// # Errors
/// When the database refuses.
pub async fn begin_session(tx: &mut Tx, id: Uuid, grant: Uuid, application: &str, now: Timestamp) -> Result<()> {
    BEGIN_SESSION.on(tx).bind(id).bind(grant).bind(application).bind(now.to_offset()).execute_one().await
}

/// A session has ended. False when that was known.
///
/// # Errors
/// When the database refuses.
pub async fn end_session(
    tx: &mut Tx,
    id: Uuid,
    now: Timestamp,
    reason: &str,
    counts: SessionCounts,
    recording: &Hash,
) -> Result<bool> {
    let run = END_SESSION.on(tx).bind(id).bind(now.to_offset()).bind(reason);
    let run = run.bind(signed(counts.statements)?).bind(signed(counts.bytes_in)?).bind(signed(counts.bytes_out)?);
    Ok(run.bind(recording.as_bytes().to_vec()).execute().await? == 1)
}

/// Every session of a grant that nobody ended has ended. Says how many.
///
/// # Errors
/// When the database refuses.
pub async fn leave_sessions(tx: &mut Tx, grant: Uuid, now: Timestamp, reason: &str) -> Result<u64> {
    LEAVE_SESSIONS.on(tx).bind(grant).bind(now.to_offset()).bind(reason).execute().await
}

/// A page of sessions before `before`, newest first.
///
/// # Errors
/// When the database is gone.
pub async fn sessions(
    session: &mut impl Session,
    grant: Option<Uuid>,
    before: Option<Uuid>,
    limit: u32,
) -> Result<Vec<GlassSession>> {
    let rows = SESSIONS.on(session).bind(grant).bind(before).bind(i64::from(limit)).all::<SessionRow>().await?;
    rows.into_iter().map(SessionRow::into_session).collect()
}

/// A session.
///
/// # Errors
/// When the database is gone.
pub async fn find_session(session: &mut impl Session, id: Uuid) -> Result<Option<GlassSession>> {
    FIND_SESSION.on(session).bind(id).optional::<SessionRow>().await?.map(SessionRow::into_session).transpose()
}
