//! Sessions, certificates and tokens: what lets a connection speak. Secrets are here as hashes alone.

use bib_core::{Hash, SessionId, Timestamp, UserId};
use sqlx::FromRow;
use time::OffsetDateTime;
use uuid::Uuid;

use crate::row::hash;
use crate::statement::{Class, Statement};
use crate::{Result, Session, Tx};

/// A client certificate that this node's CA issued.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Certificate {
    /// Lower-case hex.
    pub serial: String,
    /// Whose it is.
    pub user: UserId,
    /// For people.
    pub name: String,
    /// The SSH key that it was asked for with; empty over the socket.
    pub key_fingerprint: String,
    /// SHA-256 of the DER.
    pub fingerprint: Hash,
    /// SHA-256 of its public key info: what a token is bound to.
    pub spki: Hash,
    /// Valid from.
    pub not_before: Timestamp,
    /// Valid until.
    pub not_after: Timestamp,
    /// When it was revoked.
    pub revoked_at: Option<Timestamp>,
}

/// A log-in.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LogIn {
    /// Its id.
    pub id: SessionId,
    /// Whose it is.
    pub user: UserId,
    /// SHA-256 of its token.
    pub token: Hash,
    /// The SSH key it was opened with.
    pub key_fingerprint: String,
    /// The certificate that must come with the token.
    pub serial: String,
    /// Where from.
    pub peer_address: String,
    /// When.
    pub created_at: Timestamp,
    /// Last use, to about a minute.
    pub last_seen_at: Timestamp,
    /// Until when.
    pub expires_at: Timestamp,
}

/// A token for a script.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Token {
    /// Its id.
    pub id: Uuid,
    /// Whose it is.
    pub user: UserId,
    /// For people.
    pub name: String,
    /// SHA-256 of the token.
    pub token: Hash,
    /// What it may do at most.
    pub scopes: Vec<String>,
    /// The certificate that must come with it.
    pub serial: String,
    /// When.
    pub created_at: Timestamp,
    /// Until when.
    pub expires_at: Timestamp,
    /// Last use, to about a minute.
    pub last_used_at: Option<Timestamp>,
    /// When it was revoked.
    pub revoked_at: Option<Timestamp>,
}

/// What a bearer token stands for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Bearer {
    /// The session, or the token's id in the place of one.
    pub session: SessionId,
    /// Whose it is.
    pub user: UserId,
    /// The certificate that must come with it.
    pub serial: String,
    /// The SSH key behind it.
    pub key_fingerprint: String,
    /// Scopes of a script's token; empty for a log-in.
    pub scopes: Vec<String>,
    /// Last use: write again when it is more than a minute old.
    pub last_seen_at: Option<Timestamp>,
    /// A script's token rather than a log-in.
    pub is_token: bool,
}

static INSERT_CERTIFICATE: Statement = Statement::new(
    Class::Insert,
    "certificates",
    "INSERT INTO bib.certificates (serial, user_id, name, key_fingerprint, fingerprint, spki_sha256,
                                   not_before, not_after, created_at)
     VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9)",
);

macro_rules! select_certificate {
    ($($rest:literal)*) => {
        concat!(
            "SELECT serial, user_id, name, key_fingerprint, fingerprint, spki_sha256, not_before, not_after, revoked_at
             FROM bib.certificates ",
            $($rest),*
        )
    };
}

static FIND_CERTIFICATE: Statement = Statement::new(
    Class::Select,
    "certificates",
    select_certificate!("WHERE serial = $1 OR encode(fingerprint, 'hex') = $1"),
);

static LIST_CERTIFICATES: Statement = Statement::new(
    Class::Select,
    "certificates",
    select_certificate!("WHERE ($1::uuid IS NULL OR user_id = $1) AND serial > $2 ORDER BY serial LIMIT $3"),
);

// The sessions and tokens that came with the certificate end with it.
static REVOKE_CERTIFICATE: Statement = Statement::new(
    Class::Update,
    "certificates",
    "WITH ended AS (
         UPDATE bib.sessions SET ended_at = $2, ended_reason = 'certificate revoked'
         WHERE certificate_serial = $1 AND ended_at IS NULL
     ), stopped AS (
         UPDATE bib.tokens SET revoked_at = $2 WHERE certificate_serial = $1 AND revoked_at IS NULL
     )
     UPDATE bib.certificates SET revoked_at = $2, revoked_reason = $3 WHERE serial = $1 AND revoked_at IS NULL",
);

static REVOKE_ALL: Statement = Statement::new(
    Class::Update,
    "certificates",
    "WITH ended AS (
         UPDATE bib.sessions SET ended_at = $2, ended_reason = $3 WHERE user_id = $1 AND ended_at IS NULL
     ), stopped AS (
         UPDATE bib.tokens SET revoked_at = $2 WHERE user_id = $1 AND revoked_at IS NULL
     )
     UPDATE bib.certificates SET revoked_at = $2, revoked_reason = $3 WHERE user_id = $1 AND revoked_at IS NULL
     RETURNING serial",
);

static REVOKE_BY_KEY: Statement = Statement::new(
    Class::Update,
    "certificates",
    "WITH ended AS (
         UPDATE bib.sessions SET ended_at = $2, ended_reason = $3 WHERE key_fingerprint = $1 AND ended_at IS NULL
     ), stopped AS (
         UPDATE bib.tokens SET revoked_at = $2
         WHERE revoked_at IS NULL
           AND certificate_serial IN (SELECT serial FROM bib.certificates WHERE key_fingerprint = $1)
     )
     UPDATE bib.certificates SET revoked_at = $2, revoked_reason = $3 WHERE key_fingerprint = $1 AND revoked_at IS NULL
     RETURNING serial",
);

// What the handshake needs in memory: every revoked certificate that could still be shown.
static REVOKED: Statement = Statement::new(
    Class::Select,
    "certificates",
    "SELECT serial FROM bib.certificates WHERE revoked_at IS NOT NULL AND not_after > $1",
);

// What the handshake needs in memory at start: every certificate that could be shown, and whether it counts.
static STANDING: Statement = Statement::new(
    Class::Select,
    "certificates",
    "SELECT serial, revoked_at IS NULL FROM bib.certificates WHERE not_after > $1",
);

static INSERT_SESSION: Statement = Statement::new(
    Class::Insert,
    "sessions",
    "INSERT INTO bib.sessions (id, user_id, token_hash, key_fingerprint, certificate_serial, peer_address,
                               created_at, last_seen_at, expires_at)
     VALUES ($1, $2, $3, $4, $5, $6, $7, $7, $8)",
);

static LIST_SESSIONS: Statement = Statement::new(
    Class::Select,
    "sessions",
    "SELECT id, user_id, token_hash, key_fingerprint, certificate_serial, peer_address, created_at, last_seen_at, expires_at
     FROM bib.sessions WHERE user_id = $1 AND ended_at IS NULL AND expires_at > $2 AND id > $3 ORDER BY id LIMIT $4",
);

static FIND_SESSION: Statement = Statement::new(
    Class::Select,
    "sessions",
    "SELECT id, user_id, token_hash, key_fingerprint, certificate_serial, peer_address, created_at, last_seen_at, expires_at
     FROM bib.sessions WHERE id = $1 AND ended_at IS NULL AND expires_at > $2",
);

static END_SESSION: Statement = Statement::new(
    Class::Update,
    "sessions",
    "UPDATE bib.sessions SET ended_at = $3, ended_reason = $4
     WHERE id = $1 AND ($2::uuid IS NULL OR user_id = $2) AND ended_at IS NULL",
);

static FIND_BEARER: Statement = Statement::new(
    Class::Select,
    "sessions",
    "SELECT s.id, s.user_id, s.certificate_serial, s.key_fingerprint, '{}'::text[] AS scopes, s.last_seen_at,
            false AS is_token
     FROM bib.sessions s
     WHERE s.token_hash = $1 AND s.ended_at IS NULL AND s.expires_at > $2
     UNION ALL
     SELECT t.id, t.user_id, t.certificate_serial, c.key_fingerprint, t.scopes, t.last_used_at, true
     FROM bib.tokens t
     JOIN bib.certificates c ON c.serial = t.certificate_serial
     WHERE t.token_hash = $1 AND t.revoked_at IS NULL AND t.expires_at > $2",
);

static TOUCH_SESSION: Statement =
    Statement::new(Class::Update, "sessions", "UPDATE bib.sessions SET last_seen_at = $2 WHERE id = $1");

static TOUCH_TOKEN: Statement =
    Statement::new(Class::Update, "tokens", "UPDATE bib.tokens SET last_used_at = $2 WHERE id = $1");

static INSERT_TOKEN: Statement = Statement::new(
    Class::Insert,
    "tokens",
    "INSERT INTO bib.tokens (id, user_id, name, token_hash, scopes, certificate_serial, created_at, expires_at)
     VALUES ($1, $2, $3, $4, $5, $6, $7, $8)",
);

static LIST_TOKENS: Statement = Statement::new(
    Class::Select,
    "tokens",
    "SELECT id, user_id, name, token_hash, scopes, certificate_serial, created_at, expires_at, last_used_at, revoked_at
     FROM bib.tokens WHERE user_id = $1 AND id > $2 ORDER BY id LIMIT $3",
);

static FIND_TOKEN: Statement = Statement::new(
    Class::Select,
    "tokens",
    "SELECT id, user_id, name, token_hash, scopes, certificate_serial, created_at, expires_at, last_used_at, revoked_at
     FROM bib.tokens WHERE id = $1",
);

pub(crate) static STATEMENTS: &[&Statement] = &[
    &INSERT_CERTIFICATE,
    &FIND_CERTIFICATE,
    &LIST_CERTIFICATES,
    &REVOKE_CERTIFICATE,
    &REVOKE_ALL,
    &REVOKE_BY_KEY,
    &REVOKED,
    &STANDING,
    &INSERT_SESSION,
    &LIST_SESSIONS,
    &FIND_SESSION,
    &END_SESSION,
    &FIND_BEARER,
    &TOUCH_SESSION,
    &TOUCH_TOKEN,
    &INSERT_TOKEN,
    &LIST_TOKENS,
    &FIND_TOKEN,
];

#[derive(FromRow)]
struct CertificateRow {
    serial: String,
    user_id: Uuid,
    name: String,
    key_fingerprint: String,
    fingerprint: Vec<u8>,
    spki_sha256: Vec<u8>,
    not_before: OffsetDateTime,
    not_after: OffsetDateTime,
    revoked_at: Option<OffsetDateTime>,
}

impl CertificateRow {
    fn into_certificate(self) -> Result<Certificate> {
        Ok(Certificate {
            fingerprint: hash("certificates", "fingerprint", &self.serial, &self.fingerprint)?,
            spki: hash("certificates", "spki_sha256", &self.serial, &self.spki_sha256)?,
            serial: self.serial,
            user: UserId::from_uuid(self.user_id),
            name: self.name,
            key_fingerprint: self.key_fingerprint,
            not_before: self.not_before.into(),
            not_after: self.not_after.into(),
            revoked_at: self.revoked_at.map(Into::into),
        })
    }
}

#[derive(FromRow)]
struct SessionRow {
    id: Uuid,
    user_id: Uuid,
    token_hash: Vec<u8>,
    key_fingerprint: String,
    certificate_serial: String,
    peer_address: String,
    created_at: OffsetDateTime,
    last_seen_at: OffsetDateTime,
    expires_at: OffsetDateTime,
}

impl SessionRow {
    fn into_log_in(self) -> Result<LogIn> {
        Ok(LogIn {
            id: SessionId::from_uuid(self.id),
            user: UserId::from_uuid(self.user_id),
            token: hash("sessions", "token_hash", self.id, &self.token_hash)?,
            key_fingerprint: self.key_fingerprint,
            serial: self.certificate_serial,
            peer_address: self.peer_address,
            created_at: self.created_at.into(),
            last_seen_at: self.last_seen_at.into(),
            expires_at: self.expires_at.into(),
        })
    }
}

#[derive(FromRow)]
struct TokenRow {
    id: Uuid,
    user_id: Uuid,
    name: String,
    token_hash: Vec<u8>,
    scopes: Vec<String>,
    certificate_serial: String,
    created_at: OffsetDateTime,
    expires_at: OffsetDateTime,
    last_used_at: Option<OffsetDateTime>,
    revoked_at: Option<OffsetDateTime>,
}

impl TokenRow {
    fn into_token(self) -> Result<Token> {
        Ok(Token {
            id: self.id,
            user: UserId::from_uuid(self.user_id),
            name: self.name,
            token: hash("tokens", "token_hash", self.id, &self.token_hash)?,
            scopes: self.scopes,
            serial: self.certificate_serial,
            created_at: self.created_at.into(),
            expires_at: self.expires_at.into(),
            last_used_at: self.last_used_at.map(Into::into),
            revoked_at: self.revoked_at.map(Into::into),
        })
    }
}

#[derive(FromRow)]
struct BearerRow {
    id: Uuid,
    user_id: Uuid,
    certificate_serial: String,
    key_fingerprint: String,
    scopes: Vec<String>,
    last_seen_at: Option<OffsetDateTime>,
    is_token: bool,
}

/// Keeps a certificate that was issued.
///
/// # Errors
/// `Conflict` when serial or fingerprint is there already, which randomness rules out.
pub async fn insert_certificate(tx: &mut Tx, certificate: &Certificate, now: Timestamp) -> Result<()> {
    INSERT_CERTIFICATE
        .on(tx)
        .bind(&certificate.serial)
        .bind(certificate.user.as_uuid())
        .bind(&certificate.name)
        .bind(&certificate.key_fingerprint)
        .bind(&certificate.fingerprint.as_bytes()[..])
        .bind(&certificate.spki.as_bytes()[..])
        .bind(certificate.not_before.to_offset())
        .bind(certificate.not_after.to_offset())
        .bind(now.to_offset())
        .execute_one()
        .await
}

/// The certificate with this serial or SHA-256 fingerprint (lower-case hex).
///
/// # Errors
/// When the database is gone or the row is nonsense.
pub async fn find_certificate(session: &mut impl Session, name: &str) -> Result<Option<Certificate>> {
    let row: Option<CertificateRow> = FIND_CERTIFICATE.on(session).bind(name).optional().await?;
    row.map(CertificateRow::into_certificate).transpose()
}

/// A page of certificates by serial; of everybody when `user` is `None`.
///
/// # Errors
/// When the database is gone or a row is nonsense.
pub async fn list_certificates(
    session: &mut impl Session,
    user: Option<UserId>,
    after: &str,
    limit: u32,
) -> Result<Vec<Certificate>> {
    let run = LIST_CERTIFICATES.on(session).bind(user.map(|user| user.as_uuid())).bind(after);
    let rows: Vec<CertificateRow> = run.bind(i64::from(limit)).all().await?;
    rows.into_iter().map(CertificateRow::into_certificate).collect()
}

/// Revokes a certificate with the sessions and tokens that came with it. False when it was already.
///
/// # Errors
/// When the database is gone.
pub async fn revoke_certificate(tx: &mut Tx, serial: &str, reason: &str, now: Timestamp) -> Result<bool> {
    Ok(REVOKE_CERTIFICATE.on(tx).bind(serial).bind(now.to_offset()).bind(reason).execute().await? == 1)
}

/// Revokes every certificate, session and token of a user. Answers the serials, whose connections must be closed.
///
/// # Errors
/// When the database is gone.
pub async fn revoke_user(tx: &mut Tx, user: UserId, reason: &str, now: Timestamp) -> Result<Vec<String>> {
    let rows: Vec<(String,)> = REVOKE_ALL.on(tx).bind(user.as_uuid()).bind(now.to_offset()).bind(reason).all().await?;
    Ok(rows.into_iter().map(|(serial,)| serial).collect())
}

/// Revokes whatever was opened with an SSH key. Answers the serials.
///
/// # Errors
/// When the database is gone.
pub async fn revoke_key(tx: &mut Tx, fingerprint: &str, reason: &str, now: Timestamp) -> Result<Vec<String>> {
    let rows: Vec<(String,)> = REVOKE_BY_KEY.on(tx).bind(fingerprint).bind(now.to_offset()).bind(reason).all().await?;
    Ok(rows.into_iter().map(|(serial,)| serial).collect())
}

/// Serials that are revoked and not yet expired.
///
/// # Errors
/// When the database is gone.
pub async fn revoked(session: &mut impl Session, now: Timestamp) -> Result<Vec<String>> {
    let rows: Vec<(String,)> = REVOKED.on(session).bind(now.to_offset()).all().await?;
    Ok(rows.into_iter().map(|(serial,)| serial).collect())
}

/// Every certificate that has not expired, with whether it counts.
///
/// # Errors
/// When the database is gone.
pub async fn standing(session: &mut impl Session, now: Timestamp) -> Result<Vec<(String, bool)>> {
    STANDING.on(session).bind(now.to_offset()).all().await
}

/// Opens a session.
///
/// # Errors
/// When the database refuses.
pub async fn insert_session(tx: &mut Tx, session: &LogIn) -> Result<()> {
    INSERT_SESSION
        .on(tx)
        .bind(session.id.as_uuid())
        .bind(session.user.as_uuid())
        .bind(&session.token.as_bytes()[..])
        .bind(&session.key_fingerprint)
        .bind(&session.serial)
        .bind(&session.peer_address)
        .bind(session.created_at.to_offset())
        .bind(session.expires_at.to_offset())
        .execute_one()
        .await
}

/// A page of a user's live sessions, oldest first.
///
/// # Errors
/// When the database is gone or a row is nonsense.
pub async fn list_sessions(
    session: &mut impl Session,
    user: UserId,
    now: Timestamp,
    after: SessionId,
    limit: u32,
) -> Result<Vec<LogIn>> {
    let run = LIST_SESSIONS.on(session).bind(user.as_uuid()).bind(now.to_offset()).bind(after.as_uuid());
    let rows: Vec<SessionRow> = run.bind(i64::from(limit)).all().await?;
    rows.into_iter().map(SessionRow::into_log_in).collect()
}

/// The live session with this id.
///
/// # Errors
/// When the database is gone or the row is nonsense.
pub async fn find_session(session: &mut impl Session, id: SessionId, now: Timestamp) -> Result<Option<LogIn>> {
    let row: Option<SessionRow> = FIND_SESSION.on(session).bind(id.as_uuid()).bind(now.to_offset()).optional().await?;
    row.map(SessionRow::into_log_in).transpose()
}

/// Ends a session, of `user` only if given. False when there was none.
///
/// # Errors
/// When the database is gone.
pub async fn end_session(
    tx: &mut Tx,
    id: SessionId,
    user: Option<UserId>,
    reason: &str,
    now: Timestamp,
) -> Result<bool> {
    let run = END_SESSION.on(tx).bind(id.as_uuid()).bind(user.map(|user| user.as_uuid()));
    Ok(run.bind(now.to_offset()).bind(reason).execute().await? == 1)
}

/// What the bearer token with this SHA-256 stands for, while it is valid.
///
/// # Errors
/// When the database is gone.
pub async fn find_bearer(session: &mut impl Session, token: &Hash, now: Timestamp) -> Result<Option<Bearer>> {
    let row: Option<BearerRow> =
        FIND_BEARER.on(session).bind(&token.as_bytes()[..]).bind(now.to_offset()).optional().await?;
    Ok(row.map(|row| Bearer {
        session: SessionId::from_uuid(row.id),
        user: UserId::from_uuid(row.user_id),
        serial: row.certificate_serial,
        key_fingerprint: row.key_fingerprint,
        scopes: row.scopes,
        last_seen_at: row.last_seen_at.map(Into::into),
        is_token: row.is_token,
    }))
}

/// Takes note that a bearer was used.
///
/// # Errors
/// When the database is gone.
pub async fn touch(session: &mut impl Session, bearer: &Bearer, now: Timestamp) -> Result<()> {
    let statement = if bearer.is_token { &TOUCH_TOKEN } else { &TOUCH_SESSION };
    statement.on(session).bind(bearer.session.as_uuid()).bind(now.to_offset()).execute().await.map(|_| ())
}

/// Keeps a script's token.
///
/// # Errors
/// When the database refuses.
pub async fn insert_token(tx: &mut Tx, token: &Token) -> Result<()> {
    INSERT_TOKEN
        .on(tx)
        .bind(token.id)
        .bind(token.user.as_uuid())
        .bind(&token.name)
        .bind(&token.token.as_bytes()[..])
        .bind(&token.scopes)
        .bind(&token.serial)
        .bind(token.created_at.to_offset())
        .bind(token.expires_at.to_offset())
        .execute_one()
        .await
}

/// A page of a user's tokens, oldest first.
///
/// # Errors
/// When the database is gone or a row is nonsense.
pub async fn list_tokens(session: &mut impl Session, user: UserId, after: Uuid, limit: u32) -> Result<Vec<Token>> {
    let rows: Vec<TokenRow> =
        LIST_TOKENS.on(session).bind(user.as_uuid()).bind(after).bind(i64::from(limit)).all().await?;
    rows.into_iter().map(TokenRow::into_token).collect()
}

/// The token with this id. It is revoked through its certificate.
///
/// # Errors
/// When the database is gone or the row is nonsense.
pub async fn find_token(session: &mut impl Session, id: Uuid) -> Result<Option<Token>> {
    FIND_TOKEN.on(session).bind(id).optional::<TokenRow>().await?.map(TokenRow::into_token).transpose()
}
