//! Users, their keys, their uids on the socket, and the persons they are as authors.

use bib_core::access::NodeRole;
use bib_core::{KeyFingerprint, Timestamp, UserId};
use serde_json::Value;
use sqlx::FromRow;
use time::OffsetDateTime;
use uuid::Uuid;

use crate::row::parsed;
use crate::statement::{Class, Statement};
use crate::{Result, Session, Tx};

/// Whether a user may log in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum UserState {
    /// May.
    Active,
    /// May not for now.
    Suspended,
    /// Never again; acts and versions stay.
    Removed,
}

impl UserState {
    /// The word in the table.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Active => "active",
            Self::Suspended => "suspended",
            Self::Removed => "removed",
        }
    }
}

impl std::str::FromStr for UserState {
    type Err = &'static str;

    fn from_str(text: &str) -> std::result::Result<Self, Self::Err> {
        [Self::Active, Self::Suspended, Self::Removed]
            .into_iter()
            .find(|state| state.as_str() == text)
            .ok_or("not a state")
    }
}

/// A user.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct User {
    /// UUIDv7.
    pub id: UserId,
    /// Unique among those who are not removed.
    pub name: String,
    /// For people.
    pub display_name: String,
    /// Or empty.
    pub orcid: String,
    /// What the user may do on the node as such.
    pub role: NodeRole,
    /// Whether the user may log in.
    pub state: UserState,
    /// When the user was added.
    pub created_at: Timestamp,
    /// Operating-system users that are this one on the socket.
    pub uids: Vec<u32>,
}

/// A key of a user.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UserKey {
    /// Its fingerprint.
    pub fingerprint: KeyFingerprint,
    /// Whose it is.
    pub user: UserId,
    /// One line as in `authorized_keys`.
    pub public_key: String,
    /// Its comment.
    pub comment: String,
    /// When it was added.
    pub added_at: Timestamp,
    /// When it was removed.
    pub removed_at: Option<Timestamp>,
}

/// Changes to a user; `None` leaves a field as it is.
#[derive(Debug, Clone, Default)]
pub struct UserChange {
    /// For people.
    pub display_name: Option<String>,
    /// Or empty for none.
    pub orcid: Option<String>,
    /// Role on the node.
    pub role: Option<NodeRole>,
    /// Whether the user may log in.
    pub state: Option<UserState>,
}

macro_rules! select_user {
    ($($rest:literal)*) => {
        concat!(
            "SELECT u.id, u.name, u.display_name, u.orcid, u.role, u.state, u.created_at,
                    ARRAY(SELECT o.uid FROM bib.user_uids o WHERE o.user_id = u.id ORDER BY o.uid) AS uids
             FROM bib.users u ",
            $($rest),*
        )
    };
}

static FIND: Statement = Statement::new(Class::Select, "users", select_user!("WHERE u.id = $1"));

static FIND_BY_NAME: Statement =
    Statement::new(Class::Select, "users", select_user!("WHERE u.name = $1 AND u.state <> 'removed'"));

static FIND_BY_KEY: Statement = Statement::new(
    Class::Select,
    "users",
    select_user!(
        "JOIN bib.user_keys k ON k.user_id = u.id WHERE k.fingerprint = $1 AND k.removed_at IS NULL AND u.state <> 'removed'"
    ),
);

static FIND_BY_UID: Statement = Statement::new(
    Class::Select,
    "users",
    select_user!("JOIN bib.user_uids o ON o.user_id = u.id WHERE o.uid = $1 AND u.state <> 'removed'"),
);

static LIST: Statement = Statement::new(
    Class::Select,
    "users",
    select_user!(
        "WHERE u.state <> 'removed' AND u.name > $1
           AND ($2 = '' OR u.name LIKE '%' || $2 || '%' OR u.display_name ILIKE '%' || $2 || '%' OR u.orcid LIKE '%' || $2 || '%'
                OR EXISTS (SELECT 1 FROM bib.user_keys k WHERE k.user_id = u.id AND k.comment ILIKE '%' || $2 || '%'))
         ORDER BY u.name
         LIMIT $3"
    ),
);

static INSERT: Statement = Statement::new(
    Class::Insert,
    "users",
    "INSERT INTO bib.users (id, name, display_name, orcid, role, state, created_at, updated_at)
     VALUES ($1, $2, $3, $4, $5, $6, $7, $7)",
);

static UPDATE: Statement = Statement::new(
    Class::Update,
    "users",
    "UPDATE bib.users
     SET display_name = coalesce($2, display_name), orcid = coalesce($3, orcid), role = coalesce($4, role),
         state = coalesce($5, state), updated_at = $6
     WHERE id = $1 AND state <> 'removed'",
);

// Nobody may leave the node without an admin who can act: asked with the users locked.
static OTHER_ADMINS: Statement = Statement::new(
    Class::Select,
    "users",
    "SELECT id FROM bib.users WHERE role = 'admin' AND state = 'active' AND id <> $1 ORDER BY id FOR UPDATE",
);

// Who opens a session or is given a certificate: whoever suspends the user or removes the key at the same time waits,
// and then sees what was opened.
static LOCK_ACTIVE: Statement =
    Statement::new(Class::Select, "users", "SELECT id FROM bib.users WHERE id = $1 AND state = 'active' FOR SHARE");

static LOCK_KEY: Statement = Statement::new(
    Class::Select,
    "user_keys",
    "SELECT user_id FROM bib.user_keys WHERE user_id = $1 AND fingerprint = $2 AND removed_at IS NULL FOR SHARE",
);

static COUNT: Statement =
    Statement::new(Class::Select, "users", "SELECT count(*) FROM bib.users WHERE state <> 'removed'");

static ADD_UID: Statement = Statement::new(
    Class::Insert,
    "user_uids",
    "INSERT INTO bib.user_uids (uid, user_id, created_at) VALUES ($1, $2, $3)",
);

static REMOVE_UIDS: Statement =
    Statement::new(Class::Delete, "user_uids", "DELETE FROM bib.user_uids WHERE user_id = $1");

static ADD_KEY: Statement = Statement::new(
    Class::Insert,
    "user_keys",
    "INSERT INTO bib.user_keys (fingerprint, user_id, public_key, comment, added_at) VALUES ($1, $2, $3, $4, $5)",
);

static REMOVE_KEY: Statement = Statement::new(
    Class::Update,
    "user_keys",
    "UPDATE bib.user_keys SET removed_at = $3 WHERE user_id = $1 AND fingerprint = $2 AND removed_at IS NULL",
);

static REMOVE_KEYS: Statement = Statement::new(
    Class::Update,
    "user_keys",
    "UPDATE bib.user_keys SET removed_at = $2 WHERE user_id = $1 AND removed_at IS NULL",
);

static LIST_KEYS: Statement = Statement::new(
    Class::Select,
    "user_keys",
    "SELECT fingerprint, user_id, public_key, comment, added_at, removed_at
     FROM bib.user_keys WHERE user_id = ANY($1) AND ($2 OR removed_at IS NULL) ORDER BY id",
);

static FIND_KEY: Statement = Statement::new(
    Class::Select,
    "user_keys",
    "SELECT fingerprint, user_id, public_key, comment, added_at, removed_at
     FROM bib.user_keys WHERE fingerprint = $1 AND removed_at IS NULL",
);

static GET_PREFERENCES: Statement =
    Statement::new(Class::Select, "users", "SELECT preferences FROM bib.users WHERE id = $1");

static SET_PREFERENCES: Statement =
    Statement::new(Class::Update, "users", "UPDATE bib.users SET preferences = $2, updated_at = $3 WHERE id = $1");

static PUT_PERSON: Statement = Statement::new(
    Class::Insert,
    "persons",
    "INSERT INTO bib.persons (fingerprint, public_key, name, orcid, user_id, created_at, updated_at)
     VALUES ($1, $2, $3, $4, $5, $6, $6)
     ON CONFLICT (fingerprint) DO UPDATE
     SET name = excluded.name, orcid = excluded.orcid, user_id = excluded.user_id, updated_at = excluded.updated_at
     WHERE (persons.name, persons.orcid) IS DISTINCT FROM (excluded.name, excluded.orcid)",
);

static FIND_PERSON: Statement = Statement::new(
    Class::Select,
    "persons",
    "SELECT fingerprint, public_key, name, orcid FROM bib.persons WHERE fingerprint = $1",
);

pub(crate) static STATEMENTS: &[&Statement] = &[
    &FIND,
    &FIND_BY_NAME,
    &FIND_BY_KEY,
    &FIND_BY_UID,
    &LIST,
    &INSERT,
    &UPDATE,
    &OTHER_ADMINS,
    &LOCK_ACTIVE,
    &LOCK_KEY,
    &COUNT,
    &ADD_UID,
    &REMOVE_UIDS,
    &ADD_KEY,
    &REMOVE_KEY,
    &REMOVE_KEYS,
    &LIST_KEYS,
    &FIND_KEY,
    &GET_PREFERENCES,
    &SET_PREFERENCES,
    &PUT_PERSON,
    &FIND_PERSON,
];

#[derive(FromRow)]
struct UserRow {
    id: Uuid,
    name: String,
    display_name: String,
    orcid: String,
    role: String,
    state: String,
    created_at: OffsetDateTime,
    uids: Vec<i64>,
}

impl UserRow {
    fn into_user(self) -> Result<User> {
        Ok(User {
            id: UserId::from_uuid(self.id),
            role: parsed("users", "role", self.id, &self.role)?,
            state: parsed("users", "state", self.id, &self.state)?,
            name: self.name,
            display_name: self.display_name,
            orcid: self.orcid,
            created_at: self.created_at.into(),
            // A check constraint holds uids to 32 bits.
            uids: self.uids.into_iter().filter_map(|uid| u32::try_from(uid).ok()).collect(),
        })
    }
}

#[derive(FromRow)]
struct KeyRow {
    fingerprint: String,
    user_id: Uuid,
    public_key: String,
    comment: String,
    added_at: OffsetDateTime,
    removed_at: Option<OffsetDateTime>,
}

impl KeyRow {
    fn into_key(self) -> Result<UserKey> {
        Ok(UserKey {
            fingerprint: parsed("user_keys", "fingerprint", self.user_id, &self.fingerprint)?,
            user: UserId::from_uuid(self.user_id),
            public_key: self.public_key,
            comment: self.comment,
            added_at: self.added_at.into(),
            removed_at: self.removed_at.map(Into::into),
        })
    }
}

/// The author of versions, as person records name them.
#[derive(Debug, Clone, PartialEq, Eq, FromRow)]
pub struct Person {
    /// Fingerprint of the key.
    pub fingerprint: String,
    /// The key, one line.
    pub public_key: String,
    /// The name.
    pub name: String,
    /// Or empty.
    pub orcid: String,
}

/// The user with this id, removed or not.
///
/// # Errors
/// When the database is gone or the row is nonsense.
pub async fn find(session: &mut impl Session, id: UserId) -> Result<Option<User>> {
    FIND.on(session).bind(id.as_uuid()).optional::<UserRow>().await?.map(UserRow::into_user).transpose()
}

/// The user of this name.
///
/// # Errors
/// As [`find`].
pub async fn find_by_name(session: &mut impl Session, name: &str) -> Result<Option<User>> {
    FIND_BY_NAME.on(session).bind(name).optional::<UserRow>().await?.map(UserRow::into_user).transpose()
}

/// The user who has this key now.
///
/// # Errors
/// As [`find`].
pub async fn find_by_key(session: &mut impl Session, key: &KeyFingerprint) -> Result<Option<User>> {
    FIND_BY_KEY.on(session).bind(key.to_string()).optional::<UserRow>().await?.map(UserRow::into_user).transpose()
}

/// The user who is this operating-system user on the socket.
///
/// # Errors
/// As [`find`].
pub async fn find_by_uid(session: &mut impl Session, uid: u32) -> Result<Option<User>> {
    FIND_BY_UID.on(session).bind(i64::from(uid)).optional::<UserRow>().await?.map(UserRow::into_user).transpose()
}

/// A page of users by name; `text` must occur in name, display name, ORCID or a key's comment (empty: all).
///
/// # Errors
/// As [`find`].
pub async fn list(session: &mut impl Session, after: &str, text: &str, limit: u32) -> Result<Vec<User>> {
    // `%` and `_` of a person's search are letters, not patterns.
    let text = text.replace('\\', "\\\\").replace('%', "\\%").replace('_', "\\_");
    let rows: Vec<UserRow> = LIST.on(session).bind(after).bind(text).bind(i64::from(limit)).all().await?;
    rows.into_iter().map(UserRow::into_user).collect()
}

/// Adds a user (without keys and uids).
///
/// # Errors
/// `Conflict` on `users_name` when the name is taken.
pub async fn insert(tx: &mut Tx, user: &User) -> Result<()> {
    INSERT
        .on(tx)
        .bind(user.id.as_uuid())
        .bind(&user.name)
        .bind(&user.display_name)
        .bind(&user.orcid)
        .bind(user.role.as_str())
        .bind(user.state.as_str())
        .bind(user.created_at.to_offset())
        .execute_one()
        .await
}

/// Changes a user.
///
/// # Errors
/// When the user is removed.
pub async fn update(tx: &mut Tx, id: UserId, change: &UserChange, now: Timestamp) -> Result<()> {
    UPDATE
        .on(tx)
        .bind(id.as_uuid())
        .bind(&change.display_name)
        .bind(&change.orcid)
        .bind(change.role.map(|role| role.as_str()))
        .bind(change.state.map(UserState::as_str))
        .bind(now.to_offset())
        .execute_one()
        .await
}

/// How many other active admins there are; they are locked until the transaction ends.
///
/// # Errors
/// When the database is gone.
pub async fn lock_other_admins(tx: &mut Tx, id: UserId) -> Result<usize> {
    let rows: Vec<(Uuid,)> = OTHER_ADMINS.on(tx).bind(id.as_uuid()).all().await?;
    Ok(rows.len())
}

/// Whether the user is active; if so, stays so until the transaction ends.
///
/// # Errors
/// When the database is gone.
pub async fn lock_active(tx: &mut Tx, id: UserId) -> Result<bool> {
    Ok(LOCK_ACTIVE.on(tx).bind(id.as_uuid()).optional::<(Uuid,)>().await?.is_some())
}

/// Whether the user has this key; if so, keeps it until the transaction ends.
///
/// # Errors
/// When the database is gone.
pub async fn lock_key(tx: &mut Tx, id: UserId, key: &KeyFingerprint) -> Result<bool> {
    Ok(LOCK_KEY.on(tx).bind(id.as_uuid()).bind(key.to_string()).optional::<(Uuid,)>().await?.is_some())
}

/// Users who are not removed.
///
/// # Errors
/// When the database is gone.
pub async fn count(session: &mut impl Session) -> Result<u64> {
    let (count,): (i64,) = COUNT.on(session).one().await?;
    Ok(count.unsigned_abs())
}

/// Says that an operating-system user is this user.
///
/// # Errors
/// `Conflict` on `user_uids_pkey` when it is somebody's already.
pub async fn add_uid(tx: &mut Tx, id: UserId, uid: u32, now: Timestamp) -> Result<()> {
    ADD_UID.on(tx).bind(i64::from(uid)).bind(id.as_uuid()).bind(now.to_offset()).execute_one().await
}

/// Forgets the uids of a user.
///
/// # Errors
/// When the database is gone.
pub async fn remove_uids(tx: &mut Tx, id: UserId) -> Result<u64> {
    REMOVE_UIDS.on(tx).bind(id.as_uuid()).execute().await
}

/// Adds a key.
///
/// # Errors
/// `Conflict` on `user_keys_active` when it is somebody's already.
pub async fn add_key(tx: &mut Tx, key: &UserKey) -> Result<()> {
    ADD_KEY
        .on(tx)
        .bind(key.fingerprint.to_string())
        .bind(key.user.as_uuid())
        .bind(&key.public_key)
        .bind(&key.comment)
        .bind(key.added_at.to_offset())
        .execute_one()
        .await
}

/// Removes a key. False when the user did not have it.
///
/// # Errors
/// When the database is gone.
pub async fn remove_key(tx: &mut Tx, id: UserId, key: &KeyFingerprint, now: Timestamp) -> Result<bool> {
    Ok(REMOVE_KEY.on(tx).bind(id.as_uuid()).bind(key.to_string()).bind(now.to_offset()).execute().await? == 1)
}

/// Removes every key of a user.
///
/// # Errors
/// When the database is gone.
pub async fn remove_keys(tx: &mut Tx, id: UserId, now: Timestamp) -> Result<u64> {
    REMOVE_KEYS.on(tx).bind(id.as_uuid()).bind(now.to_offset()).execute().await
}

/// The keys of these users, oldest first; `removed` also those they had.
///
/// # Errors
/// When the database is gone or a row is nonsense.
pub async fn list_keys(session: &mut impl Session, users: &[UserId], removed: bool) -> Result<Vec<UserKey>> {
    let users: Vec<Uuid> = users.iter().map(UserId::as_uuid).collect();
    let rows: Vec<KeyRow> = LIST_KEYS.on(session).bind(users).bind(removed).all().await?;
    rows.into_iter().map(KeyRow::into_key).collect()
}

/// The key with this fingerprint that somebody has now.
///
/// # Errors
/// When the database is gone or the row is nonsense.
pub async fn find_key(session: &mut impl Session, key: &KeyFingerprint) -> Result<Option<UserKey>> {
    FIND_KEY.on(session).bind(key.to_string()).optional::<KeyRow>().await?.map(KeyRow::into_key).transpose()
}

/// The preferences of a user, an object.
///
/// # Errors
/// When the database is gone.
pub async fn preferences(session: &mut impl Session, id: UserId) -> Result<Value> {
    let row: Option<(Value,)> = GET_PREFERENCES.on(session).bind(id.as_uuid()).optional().await?;
    Ok(row.map_or_else(|| Value::Object(serde_json::Map::new()), |(value,)| value))
}

/// Sets the preferences of a user.
///
/// # Errors
/// When the user is gone.
pub async fn set_preferences(tx: &mut Tx, id: UserId, preferences: &Value, now: Timestamp) -> Result<()> {
    SET_PREFERENCES.on(tx).bind(id.as_uuid()).bind(preferences).bind(now.to_offset()).execute_one().await
}

/// Keeps an author. True when something about it is new: then its person record must be signed anew.
///
/// # Errors
/// When the database refuses.
pub async fn put_person(tx: &mut Tx, person: &Person, user: Option<UserId>, now: Timestamp) -> Result<bool> {
    let run = PUT_PERSON.on(tx).bind(&person.fingerprint).bind(&person.public_key).bind(&person.name);
    let run = run.bind(&person.orcid).bind(user.map(|user| user.as_uuid())).bind(now.to_offset());
    Ok(run.execute().await? == 1)
}

/// The author with this key.
///
/// # Errors
/// When the database is gone.
pub async fn find_person(session: &mut impl Session, fingerprint: &str) -> Result<Option<Person>> {
    FIND_PERSON.on(session).bind(fingerprint).optional().await
}
