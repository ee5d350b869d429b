//! Versions: immutable statements, their roots, tags.

use bib_core::{DatasetId, Hash, Timestamp, UserId};
use sqlx::FromRow;
use time::OffsetDateTime;
use uuid::Uuid;

use crate::row::{array, hash, inconsistent, parsed, signed};
use crate::statement::{Class, Statement};
use crate::{Result, Session, Tx};

/// What the node knows of a version's bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum VersionState {
    /// Every chunk is verified; the files are being hashed in the background.
    Pending,
    /// Every file was hashed.
    Verified,
    /// A file is not what the statement says.
    Damaged,
    /// Withdrawn: the bytes are gone, the statement stays.
    Withdrawn,
}

impl VersionState {
    /// The word in the table and on the wire.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Pending => "pending",
            Self::Verified => "verified",
            Self::Damaged => "damaged",
            Self::Withdrawn => "withdrawn",
        }
    }
}

impl std::str::FromStr for VersionState {
    type Err = &'static str;

    fn from_str(text: &str) -> std::result::Result<Self, Self::Err> {
        [Self::Pending, Self::Verified, Self::Damaged, Self::Withdrawn]
            .into_iter()
            .find(|state| state.as_str() == text)
            .ok_or("not a state")
    }
}

/// A version as it is kept.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Version {
    /// Hash of the statement.
    pub hash: Hash,
    /// Its dataset.
    pub dataset: DatasetId,
    /// Its number within the dataset.
    pub n: u64,
    /// Hash of the content root.
    pub content: Hash,
    /// Hash of the layout root.
    pub layout: Hash,
    /// The versions it builds upon.
    pub parents: Vec<Hash>,
    /// For people.
    pub label: String,
    /// For people.
    pub message: String,
    /// SPDX expression.
    pub license: String,
    /// `person` or `service`.
    pub author_kind: String,
    /// The author's key fingerprint (of a service: on whose behalf).
    pub author_key: String,
    /// The author's name.
    pub author_name: String,
    /// By the author's clock.
    pub time: Timestamp,
    /// Verbatim.
    pub statement: Vec<u8>,
    /// SSHSIG of a person; empty for a service.
    pub signature: String,
    /// Files.
    pub files: u64,
    /// Bytes.
    pub size_bytes: u64,
    /// What is known of the bytes.
    pub state: VersionState,
    /// Why it was withdrawn.
    pub withdrawal_reason: String,
    /// The user who published it here.
    pub published_by: Option<UserId>,
    /// When it was committed here.
    pub created_at: Timestamp,
}

/// A tag.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Tag {
    /// Its name.
    pub tag: String,
    /// The version it names.
    pub version: Hash,
    /// When it was set.
    pub set_at: Timestamp,
}

macro_rules! select_version {
    ($($rest:literal)*) => {
        concat!(
            "SELECT v.hash, v.dataset_id, v.n, v.content, r.layout_root, v.parents, v.label, v.message, v.license,
                    v.author_kind, v.author_key, v.author_name, v.time, v.statement, v.signature, v.files, v.size_bytes,
                    v.state, v.withdrawal_reason, v.published_by, v.created_at
             FROM bib.versions v
             JOIN bib.version_roots r ON r.version = v.hash ",
            $($rest),*
        )
    };
}

static FIND: Statement =
    Statement::new(Class::Select, "versions", select_version!("WHERE v.hash = $1 AND v.deleted_at IS NULL"));

// Two are enough to know that a prefix is ambiguous.
static FIND_PREFIX: Statement = Statement::new(
    Class::Select,
    "versions",
    select_version!(
        "WHERE v.dataset_id = $1 AND v.deleted_at IS NULL AND starts_with(encode(v.hash, 'hex'), $2) ORDER BY v.n LIMIT 2"
    ),
);

static FIND_TAG: Statement = Statement::new(
    Class::Select,
    "versions",
    select_version!(
        "JOIN bib.tags g ON g.version = v.hash WHERE g.dataset_id = $1 AND g.tag = $2 AND v.deleted_at IS NULL"
    ),
);

static LIST: Statement = Statement::new(
    Class::Select,
    "versions",
    select_version!("WHERE v.dataset_id = $1 AND v.deleted_at IS NULL AND v.n < $2 ORDER BY v.n DESC LIMIT $3"),
);

static PENDING: Statement = Statement::new(
    Class::Select,
    "versions",
    select_version!("WHERE v.state = 'pending' AND v.deleted_at IS NULL ORDER BY v.created_at LIMIT $1"),
);

static INSERT: Statement = Statement::new(
    Class::Insert,
    "versions",
    "WITH made AS (
         INSERT INTO bib.versions (hash, dataset_id, n, content, parents, label, message, license, author_kind,
                                   author_key, author_name, time, statement, signature, files, size_bytes,
                                   published_by, created_at, charged_bytes)
         VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $15, $16, $17, $18, $20)
     )
     INSERT INTO bib.version_roots (version, content_root, layout_root) VALUES ($1, $4, $19)",
);

static SET_STATE: Statement = Statement::new(
    Class::Update,
    "versions",
    "UPDATE bib.versions SET state = $2 WHERE hash = $1 AND state <> 'withdrawn' AND deleted_at IS NULL",
);

static WITHDRAW: Statement = Statement::new(
    Class::Update,
    "versions",
    "UPDATE bib.versions SET state = 'withdrawn', withdrawal_reason = $2
     WHERE hash = $1 AND state <> 'withdrawn' AND deleted_at IS NULL",
);

static NEWEST_LIVE: Statement = Statement::new(
    Class::Select,
    "versions",
    "SELECT hash FROM bib.versions
     WHERE dataset_id = $1 AND state <> 'withdrawn' AND deleted_at IS NULL
     ORDER BY n DESC LIMIT 1",
);

static DELETE_ALL: Statement = Statement::new(
    Class::Update,
    "versions",
    "WITH untagged AS (
         DELETE FROM bib.tags WHERE dataset_id = $1
     )
     UPDATE bib.versions SET deleted_at = $2 WHERE dataset_id = $1 AND deleted_at IS NULL",
);

static SET_TAG: Statement = Statement::new(
    Class::Insert,
    "tags",
    "INSERT INTO bib.tags (dataset_id, tag, version, set_by, set_at)
     VALUES ($1, $2, $3, $4, $5)
     ON CONFLICT (dataset_id, tag) DO UPDATE
     SET version = excluded.version, set_by = excluded.set_by, set_at = excluded.set_at
     WHERE $6 OR tags.version = excluded.version",
);

static REMOVE_TAG: Statement =
    Statement::new(Class::Delete, "tags", "DELETE FROM bib.tags WHERE dataset_id = $1 AND tag = $2");

static LIST_TAGS: Statement = Statement::new(
    Class::Select,
    "tags",
    "SELECT tag, version, set_at FROM bib.tags WHERE dataset_id = $1 AND tag > $2 ORDER BY tag LIMIT $3",
);

static TAGS_OF: Statement = Statement::new(
    Class::Select,
    "tags",
    "SELECT tag, version, set_at FROM bib.tags WHERE version = ANY($1) ORDER BY tag",
);

pub(crate) static STATEMENTS: &[&Statement] = &[
    &FIND,
    &FIND_PREFIX,
    &FIND_TAG,
    &LIST,
    &PENDING,
    &INSERT,
    &SET_STATE,
    &WITHDRAW,
    &NEWEST_LIVE,
    &DELETE_ALL,
    &SET_TAG,
    &REMOVE_TAG,
    &LIST_TAGS,
    &TAGS_OF,
];

#[derive(FromRow)]
struct VersionRow {
    hash: Vec<u8>,
    dataset_id: Uuid,
    n: i64,
    content: Vec<u8>,
    layout_root: Vec<u8>,
    parents: Vec<Vec<u8>>,
    label: String,
    message: String,
    license: String,
    author_kind: String,
    author_key: String,
    author_name: String,
    time: OffsetDateTime,
    statement: Vec<u8>,
    signature: String,
    files: i64,
    size_bytes: i64,
    state: String,
    withdrawal_reason: String,
    published_by: Option<Uuid>,
    created_at: OffsetDateTime,
}

impl VersionRow {
    fn into_version(self) -> Result<Version> {
        let own = hash("versions", "hash", "?", &self.hash)?;
        // The statement is what was signed: a row whose statement was changed is caught here, not shown.
        if Hash::of(&self.statement) != own {
            return Err(inconsistent("versions", "statement", own, "does not hash to the version"));
        }
        Ok(Version {
            hash: own,
            dataset: DatasetId::from_uuid(self.dataset_id),
            n: self.n.unsigned_abs(),
            content: hash("versions", "content", own, &self.content)?,
            layout: hash("version_roots", "layout_root", own, &self.layout_root)?,
            parents: self.parents.iter().map(|p| hash("versions", "parents", own, p)).collect::<Result<_>>()?,
            label: self.label,
            message: self.message,
            license: self.license,
            author_kind: self.author_kind,
            author_key: self.author_key,
            author_name: self.author_name,
            time: self.time.into(),
            statement: self.statement,
            signature: self.signature,
            files: self.files.unsigned_abs(),
            size_bytes: self.size_bytes.unsigned_abs(),
            state: parsed("versions", "state", own, &self.state)?,
            withdrawal_reason: self.withdrawal_reason,
            published_by: self.published_by.map(UserId::from_uuid),
            created_at: self.created_at.into(),
        })
    }
}

/// The live version with this hash.
///
/// # Errors
/// When the database is gone or the row is nonsense.
pub async fn find(session: &mut impl Session, version: &Hash) -> Result<Option<Version>> {
    let row: Option<VersionRow> = FIND.on(session).bind(&version.as_bytes()[..]).optional().await?;
    row.map(VersionRow::into_version).transpose()
}

/// The versions of a dataset whose hash begins with these hex digits: none, one, or two for "more than one".
///
/// # Errors
/// When the database is gone or a row is nonsense.
pub async fn find_prefix(session: &mut impl Session, dataset: DatasetId, prefix: &str) -> Result<Vec<Version>> {
    let rows: Vec<VersionRow> = FIND_PREFIX.on(session).bind(dataset.as_uuid()).bind(prefix).all().await?;
    rows.into_iter().map(VersionRow::into_version).collect()
}

/// The version that a tag names.
///
/// # Errors
/// When the database is gone or the row is nonsense.
pub async fn find_tag(session: &mut impl Session, dataset: DatasetId, tag: &str) -> Result<Option<Version>> {
    let row: Option<VersionRow> = FIND_TAG.on(session).bind(dataset.as_uuid()).bind(tag).optional().await?;
    row.map(VersionRow::into_version).transpose()
}

/// A page of a dataset's versions, newest first, with numbers below `before` (0 for the first page).
///
/// # Errors
/// When the database is gone or a row is nonsense.
pub async fn list(session: &mut impl Session, dataset: DatasetId, before: u64, limit: u32) -> Result<Vec<Version>> {
    let before = if before == 0 { i64::MAX } else { signed(before)? };
    let rows: Vec<VersionRow> =
        LIST.on(session).bind(dataset.as_uuid()).bind(before).bind(i64::from(limit)).all().await?;
    rows.into_iter().map(VersionRow::into_version).collect()
}

/// Versions whose files are not hashed yet, oldest first.
///
/// # Errors
/// When the database is gone or a row is nonsense.
pub async fn pending(session: &mut impl Session, limit: u32) -> Result<Vec<Version>> {
    let rows: Vec<VersionRow> = PENDING.on(session).bind(i64::from(limit)).all().await?;
    rows.into_iter().map(VersionRow::into_version).collect()
}

/// Keeps a version (its `state`, `withdrawal_reason` are not looked at: it begins pending), whose publish was charged so
/// many bytes.
///
/// # Errors
/// `Conflict` on `versions_pkey` when it is there already.
pub async fn insert(tx: &mut Tx, version: &Version, charged_bytes: u64) -> Result<()> {
    INSERT
        .on(tx)
        .bind(&version.hash.as_bytes()[..])
        .bind(version.dataset.as_uuid())
        .bind(signed(version.n)?)
        .bind(&version.content.as_bytes()[..])
        .bind(array(&version.parents))
        .bind(&version.label)
        .bind(&version.message)
        .bind(&version.license)
        .bind(&version.author_kind)
        .bind(&version.author_key)
        .bind(&version.author_name)
        .bind(version.time.to_offset())
        .bind(&version.statement)
        .bind(&version.signature)
        .bind(signed(version.files)?)
        .bind(signed(version.size_bytes)?)
        .bind(version.published_by.map(|user| user.as_uuid()))
        .bind(version.created_at.to_offset())
        .bind(&version.layout.as_bytes()[..])
        .bind(signed(charged_bytes)?)
        .execute_one()
        .await
}

/// Says what is known of a version's bytes. False when it is withdrawn or gone.
///
/// # Errors
/// When the database is gone.
pub async fn set_state(tx: &mut Tx, version: &Hash, state: VersionState) -> Result<bool> {
    Ok(SET_STATE.on(tx).bind(&version.as_bytes()[..]).bind(state.as_str()).execute().await? == 1)
}

/// Withdraws a version. False when it was already.
///
/// # Errors
/// When the database is gone.
pub async fn withdraw(tx: &mut Tx, version: &Hash, reason: &str) -> Result<bool> {
    Ok(WITHDRAW.on(tx).bind(&version.as_bytes()[..]).bind(reason).execute().await? == 1)
}

/// The newest version that is not withdrawn.
///
/// # Errors
/// When the database is gone.
pub async fn newest_live(tx: &mut Tx, dataset: DatasetId) -> Result<Option<Hash>> {
    let row: Option<(Vec<u8>,)> = NEWEST_LIVE.on(tx).bind(dataset.as_uuid()).optional().await?;
    row.map(|(bytes,)| hash("versions", "hash", dataset, &bytes)).transpose()
}

/// Deletes every version and tag of a dataset; says how many versions.
///
/// # Errors
/// When the database is gone.
pub async fn delete_all(tx: &mut Tx, dataset: DatasetId, now: Timestamp) -> Result<u64> {
    DELETE_ALL.on(tx).bind(dataset.as_uuid()).bind(now.to_offset()).execute().await
}

/// Sets a tag. False when it names another version and `replace` is not given.
///
/// # Errors
/// When the database refuses.
pub async fn set_tag(tx: &mut Tx, dataset: DatasetId, tag: &Tag, set_by: UserId, replace: bool) -> Result<bool> {
    let run = SET_TAG.on(tx).bind(dataset.as_uuid()).bind(&tag.tag).bind(&tag.version.as_bytes()[..]);
    let rows = run.bind(set_by.as_uuid()).bind(tag.set_at.to_offset()).bind(replace).execute().await?;
    Ok(rows == 1)
}

/// Removes a tag. False when there was none.
///
/// # Errors
/// When the database is gone.
pub async fn remove_tag(tx: &mut Tx, dataset: DatasetId, tag: &str) -> Result<bool> {
    Ok(REMOVE_TAG.on(tx).bind(dataset.as_uuid()).bind(tag).execute().await? == 1)
}

/// A page of a dataset's tags, by name.
///
/// # Errors
/// When the database is gone.
pub async fn list_tags(session: &mut impl Session, dataset: DatasetId, after: &str, limit: u32) -> Result<Vec<Tag>> {
    let rows: Vec<(String, Vec<u8>, OffsetDateTime)> =
        LIST_TAGS.on(session).bind(dataset.as_uuid()).bind(after).bind(i64::from(limit)).all().await?;
    rows.into_iter().map(into_tag).collect()
}

/// The tags of these versions.
///
/// # Errors
/// When the database is gone.
pub async fn tags_of(session: &mut impl Session, versions: &[Hash]) -> Result<Vec<Tag>> {
    let rows: Vec<(String, Vec<u8>, OffsetDateTime)> = TAGS_OF.on(session).bind(array(versions)).all().await?;
    rows.into_iter().map(into_tag).collect()
}

fn into_tag((tag, version, set_at): (String, Vec<u8>, OffsetDateTime)) -> Result<Tag> {
    Ok(Tag { version: hash("tags", "version", &tag, &version)?, tag, set_at: set_at.into() })
}
