//! Chunks in object storage: which have an object, which are cold, and the steps of a move, each true whenever it commits.
//!
//! Out: [`record`] when the object was read back whole, then [`move_out`] in the transaction that sees the file into the
//! trash. Back: [`bring_back`] when the file is durable. An object is deleted while the chunk's row is locked.

use bib_core::{Hash, Timestamp};
use sqlx::FromRow;

use crate::chunks::StoredChunk;
use crate::row::{array, hash, signed};
use crate::statement::{Class, Statement};
use crate::{Result, Session, Tx};

const DAY_SECONDS: i64 = 86_400;

/// An object, as the catalog remembers it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ObjectRow {
    /// The last part of its key.
    pub name: Hash,
    /// Sealed, with a keyed name.
    pub sealed: bool,
    /// Its length.
    pub bytes: u64,
}

/// A chunk on disk that nobody has read for long.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Cold {
    /// The chunk.
    pub chunk: StoredChunk,
    /// When it was last read.
    pub day: i32,
    /// It has an object already.
    pub object: Option<ObjectRow>,
}

/// A chunk with an object.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Tiered {
    /// The chunk, as it was on disk.
    pub chunk: StoredChunk,
    /// Its object.
    pub object: ObjectRow,
    /// The object is all there is.
    pub is_only: bool,
}

/// What lies where.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Tiers {
    /// Chunks with a file.
    pub local_chunks: u64,
    /// Their bytes on disk.
    pub local_bytes: u64,
    /// Chunks that lie in object storage alone.
    pub remote_chunks: u64,
    /// Objects, of those and of others.
    pub objects: u64,
    /// Their bytes.
    pub object_bytes: u64,
}

/// The day of a moment, counted from 1970.
#[must_use]
pub fn day(time: Timestamp) -> i32 {
    i32::try_from(time.as_seconds().div_euclid(DAY_SECONDS)).unwrap_or(i32::MAX)
}

static COLD: Statement = Statement::new(
    Class::Select,
    "chunks",
    "SELECT c.hash, c.raw_length, c.stored_bytes, c.encoding, c.read_day, o.name, o.sealed, o.object_bytes
     FROM bib.chunks c LEFT JOIN bib.chunk_objects o ON o.chunk = c.hash
     WHERE c.location = 0 AND c.state = 0 AND c.read_day <= $1 AND (c.read_day, c.hash) > ($2, $3)
     ORDER BY c.read_day, c.hash LIMIT $4",
);

static COLD_TOTALS: Statement = Statement::new(
    Class::Select,
    "chunks",
    "SELECT count(*), coalesce(sum(stored_bytes), 0)::bigint FROM bib.chunks
     WHERE location = 0 AND state = 0 AND read_day <= $1",
);

static TIERED: Statement = Statement::new(
    Class::Select,
    "chunk_objects",
    "SELECT c.hash, c.raw_length, c.stored_bytes, c.encoding, c.location, o.name, o.sealed, o.object_bytes
     FROM bib.chunk_objects o JOIN bib.chunks c ON c.hash = o.chunk
     WHERE o.chunk > $1 AND c.state IN (0, 3) ORDER BY o.chunk LIMIT $2",
);

static OF_OTHER_KIND: Statement = Statement::new(
    Class::Select,
    "chunk_objects",
    "SELECT c.hash, c.raw_length, c.stored_bytes, c.encoding, c.location, o.name, o.sealed, o.object_bytes
     FROM bib.chunk_objects o JOIN bib.chunks c ON c.hash = o.chunk
     WHERE o.sealed = $1 AND o.name > $2 AND c.state = 0 ORDER BY o.name LIMIT $3",
);

static LONGEST_UNCHECKED: Statement = Statement::new(
    Class::Select,
    "chunk_objects",
    "SELECT c.hash, c.raw_length, c.stored_bytes, c.encoding, c.location, o.name, o.sealed, o.object_bytes
     FROM bib.chunk_objects o JOIN bib.chunks c ON c.hash = o.chunk
     WHERE o.checked_at < $1 AND c.state = 0 ORDER BY o.checked_at LIMIT $2",
);

static EXPECTED: Statement = Statement::new(
    Class::Select,
    "chunk_objects",
    "SELECT c.hash, c.raw_length, c.stored_bytes, c.encoding, c.location, o.name, o.sealed, o.object_bytes
     FROM bib.chunk_objects o JOIN bib.chunks c ON c.hash = o.chunk
     WHERE o.sealed = $1 AND o.name > $2 AND ($3::bytea IS NULL OR o.name <= $3) AND c.state < 2
     ORDER BY o.name LIMIT $4",
);

static KNOWN_NAMES: Statement = Statement::new(
    Class::Select,
    "chunk_objects",
    "SELECT name FROM bib.chunk_objects WHERE sealed = $1 AND name = ANY($2)",
);

// The chunk's row is locked, so that a collection waits.
static RECORD: Statement = Statement::new(
    Class::Insert,
    "chunk_objects",
    "WITH kept AS (SELECT hash FROM bib.chunks WHERE hash = $1 AND state = 0 FOR UPDATE)
     INSERT INTO bib.chunk_objects (chunk, name, sealed, object_bytes, checked_at)
     SELECT hash, $2, $3, $4, $5 FROM kept
     ON CONFLICT (chunk) DO UPDATE
     SET name = excluded.name, sealed = excluded.sealed, object_bytes = excluded.object_bytes,
         checked_at = excluded.checked_at",
);

// The row stays locked while the file goes to the trash: an upload of the chunk waits, and then takes it back.
static MOVE_OUT: Statement = Statement::new(
    Class::Update,
    "chunks",
    "UPDATE bib.chunks c SET location = 1, changed_at = $2
     WHERE c.hash = $1 AND c.location = 0 AND c.state = 0 AND c.read_day <= $3
       AND EXISTS (SELECT 1 FROM bib.chunk_objects o WHERE o.chunk = c.hash)",
);

static BRING_BACK: Statement = Statement::new(
    Class::Update,
    "chunks",
    "UPDATE bib.chunks SET location = 0, stored_bytes = $2, encoding = $3, read_day = greatest(read_day, $4), changed_at = $5
     WHERE hash = $1 AND location = 1 AND state = 0",
);

static LOCK_MOVED_OUT: Statement =
    Statement::new(Class::Select, "chunks", "SELECT 1 FROM bib.chunks WHERE hash = $1 AND location = 1 FOR UPDATE");

static NOTE_READS: Statement = Statement::new(
    Class::Update,
    "chunks",
    "UPDATE bib.chunks SET read_day = $2
     WHERE hash IN (SELECT hash FROM bib.chunks WHERE hash = ANY($1) AND read_day < $2 ORDER BY hash FOR UPDATE)",
);

static TRASHED: Statement = Statement::new(
    Class::Select,
    "chunk_objects",
    "SELECT c.hash, o.name, o.sealed, o.object_bytes
     FROM bib.chunks c JOIN bib.chunk_objects o ON o.chunk = c.hash
     WHERE c.state = 2 AND c.changed_at < $1 ORDER BY c.changed_at LIMIT $2",
);

static OF: Statement = Statement::new(
    Class::Select,
    "chunk_objects",
    "SELECT chunk, name, sealed, object_bytes FROM bib.chunk_objects WHERE chunk = ANY($1)",
);

static FORGET: Statement =
    Statement::new(Class::Delete, "chunk_objects", "DELETE FROM bib.chunk_objects WHERE chunk = $1");

static SET_CHECKED: Statement =
    Statement::new(Class::Update, "chunk_objects", "UPDATE bib.chunk_objects SET checked_at = $2 WHERE chunk = $1");

static TOTALS: Statement = Statement::new(
    Class::Select,
    "chunks",
    "SELECT count(*) FILTER (WHERE c.location = 0), coalesce(sum(c.stored_bytes) FILTER (WHERE c.location = 0), 0)::bigint,
            count(*) FILTER (WHERE c.location = 1), count(o.chunk), coalesce(sum(o.object_bytes), 0)::bigint
     FROM bib.chunks c LEFT JOIN bib.chunk_objects o ON o.chunk = c.hash
     WHERE c.state IN (0, 1)",
);

static ANY: Statement =
    Statement::new(Class::Select, "chunk_objects", "SELECT EXISTS (SELECT 1 FROM bib.chunk_objects)");

pub(crate) static STATEMENTS: &[&Statement] = &[
    &COLD,
    &COLD_TOTALS,
    &TIERED,
    &OF_OTHER_KIND,
    &LONGEST_UNCHECKED,
    &EXPECTED,
    &KNOWN_NAMES,
    &RECORD,
    &MOVE_OUT,
    &BRING_BACK,
    &LOCK_MOVED_OUT,
    &NOTE_READS,
    &TRASHED,
    &OF,
    &FORGET,
    &SET_CHECKED,
    &TOTALS,
    &ANY,
];

#[derive(FromRow)]
struct ColdRow {
    hash: Vec<u8>,
    raw_length: i32,
    stored_bytes: i32,
    encoding: i16,
    read_day: i32,
    name: Option<Vec<u8>>,
    sealed: Option<bool>,
    object_bytes: Option<i64>,
}

#[derive(FromRow)]
struct TieredRow {
    hash: Vec<u8>,
    raw_length: i32,
    stored_bytes: i32,
    encoding: i16,
    location: i16,
    name: Vec<u8>,
    sealed: bool,
    object_bytes: i64,
}

fn stored(name: &[u8], raw_length: i32, stored_bytes: i32, encoding: i16) -> Result<StoredChunk> {
    Ok(StoredChunk {
        hash: hash("chunks", "hash", "?", name)?,
        raw_length: raw_length.unsigned_abs(),
        stored_bytes: stored_bytes.unsigned_abs(),
        zstd: encoding == 1,
    })
}

/// The object of a row, when there is one.
pub(crate) fn object(name: Option<&[u8]>, sealed: Option<bool>, bytes: Option<i64>) -> Result<Option<ObjectRow>> {
    let (Some(name), Some(sealed), Some(bytes)) = (name, sealed, bytes) else { return Ok(None) };
    let name = hash("chunk_objects", "name", "?", name)?;
    Ok(Some(ObjectRow { name, sealed, bytes: bytes.unsigned_abs() }))
}

fn tiered(rows: Vec<TieredRow>) -> Result<Vec<Tiered>> {
    let one = |row: TieredRow| {
        Ok(Tiered {
            chunk: stored(&row.hash, row.raw_length, row.stored_bytes, row.encoding)?,
            object: ObjectRow {
                name: hash("chunk_objects", "name", "?", &row.name)?,
                sealed: row.sealed,
                bytes: row.object_bytes.unsigned_abs(),
            },
            is_only: row.location == 1,
        })
    };
    rows.into_iter().map(one).collect()
}

fn bytes_of(hash: Option<&Hash>) -> Vec<u8> {
    hash.map_or_else(Vec::new, |hash| hash.as_bytes().to_vec())
}

/// Chunks on disk that were last read on `day` or before, the coldest first, behind `after`.
///
/// # Errors
/// When the database is gone.
pub async fn cold(session: &mut impl Session, day: i32, after: Option<(i32, Hash)>, limit: u32) -> Result<Vec<Cold>> {
    let (after_day, after) = after.map_or((i32::MIN, Vec::new()), |(day, hash)| (day, hash.as_bytes().to_vec()));
    let rows: Vec<ColdRow> =
        COLD.on(session).bind(day).bind(after_day).bind(after).bind(i64::from(limit)).all().await?;
    let one = |row: ColdRow| {
        Ok(Cold {
            chunk: stored(&row.hash, row.raw_length, row.stored_bytes, row.encoding)?,
            day: row.read_day,
            object: object(row.name.as_deref(), row.sealed, row.object_bytes)?,
        })
    };
    rows.into_iter().map(one).collect()
}

/// How many chunks on disk were last read on `day` or before, and their bytes.
///
/// # Errors
/// When the database is gone.
pub async fn cold_totals(session: &mut impl Session, day: i32) -> Result<(u64, u64)> {
    let (chunks, bytes): (i64, i64) = COLD_TOTALS.on(session).bind(day).one().await?;
    Ok((chunks.unsigned_abs(), bytes.unsigned_abs()))
}

/// Chunks with an object that something keeps, behind `after`, in hash order.
///
/// # Errors
/// When the database is gone.
pub async fn list(session: &mut impl Session, after: Option<&Hash>, limit: u32) -> Result<Vec<Tiered>> {
    tiered(TIERED.on(session).bind(bytes_of(after)).bind(i64::from(limit)).all().await?)
}

/// Chunks whose object is sealed, or is not, behind the object name `after`.
///
/// # Errors
/// When the database is gone.
pub async fn of_kind(
    session: &mut impl Session,
    sealed: bool,
    after: Option<&Hash>,
    limit: u32,
) -> Result<Vec<Tiered>> {
    tiered(OF_OTHER_KIND.on(session).bind(sealed).bind(bytes_of(after)).bind(i64::from(limit)).all().await?)
}

/// Chunks whose object was not read since `before`, the longest first.
///
/// # Errors
/// When the database is gone.
pub async fn longest_unchecked(session: &mut impl Session, before: Timestamp, limit: u32) -> Result<Vec<Tiered>> {
    tiered(LONGEST_UNCHECKED.on(session).bind(before.to_offset()).bind(i64::from(limit)).all().await?)
}

/// The objects that a listing must show above `after` and up to `up_to` (`None`: to the end).
///
/// # Errors
/// When the database is gone.
pub async fn expected(
    session: &mut impl Session,
    sealed: bool,
    after: Option<&Hash>,
    up_to: Option<&Hash>,
    limit: u32,
) -> Result<Vec<Tiered>> {
    let up_to = up_to.map(|name| name.as_bytes().to_vec());
    let run = EXPECTED.on(session).bind(sealed).bind(bytes_of(after)).bind(up_to).bind(i64::from(limit));
    tiered(run.all().await?)
}

/// Which of these names are those of objects.
///
/// # Errors
/// When the database is gone.
pub async fn known_names(session: &mut impl Session, sealed: bool, names: &[Hash]) -> Result<Vec<Hash>> {
    let rows: Vec<(Vec<u8>,)> = KNOWN_NAMES.on(session).bind(sealed).bind(array(names)).all().await?;
    rows.into_iter().map(|(name,)| hash("chunk_objects", "name", "?", &name)).collect()
}

/// Enters a chunk's object, which was just read back whole. False when the chunk is not wanted any more.
///
/// # Errors
/// When the database refuses.
pub async fn record(tx: &mut Tx, chunk: &Hash, object: &ObjectRow, now: Timestamp) -> Result<bool> {
    let run = RECORD.on(tx).bind(&chunk.as_bytes()[..]).bind(&object.name.as_bytes()[..]).bind(object.sealed);
    Ok(run.bind(signed(object.bytes)?).bind(now.to_offset()).execute().await? == 1)
}

/// From now on the chunk lies in object storage alone; its row stays locked until the transaction ends: move the file
/// meanwhile. False when it was read, moved or given up since, or has no object.
///
/// # Errors
/// When the database is gone.
pub async fn move_out(tx: &mut Tx, chunk: &Hash, day: i32, now: Timestamp) -> Result<bool> {
    Ok(MOVE_OUT.on(tx).bind(&chunk.as_bytes()[..]).bind(now.to_offset()).bind(day).execute().await? == 1)
}

/// From now on the chunk lies on disk, where its file is durable. False when it is not in object storage alone.
///
/// # Errors
/// When the database is gone.
pub async fn bring_back(tx: &mut Tx, chunk: &StoredChunk, now: Timestamp) -> Result<bool> {
    let run = BRING_BACK.on(tx).bind(&chunk.hash.as_bytes()[..]).bind(chunk.stored_bytes.cast_signed());
    Ok(run.bind(i16::from(chunk.zstd)).bind(day(now)).bind(now.to_offset()).execute().await? == 1)
}

/// Locks a chunk that lies in object storage alone, until the transaction ends. False when it does not.
///
/// # Errors
/// When the database is gone.
pub async fn lock_moved_out(tx: &mut Tx, chunk: &Hash) -> Result<bool> {
    let row: Option<(i32,)> = LOCK_MOVED_OUT.on(tx).bind(&chunk.as_bytes()[..]).optional().await?;
    Ok(row.is_some())
}

/// Takes note that these chunks were read on `day`.
///
/// # Errors
/// When the database is gone.
pub async fn note_reads(tx: &mut Tx, chunks: &[Hash], day: i32) -> Result<u64> {
    NOTE_READS.on(tx).bind(array(chunks)).bind(day).execute().await
}

/// Chunks that have been in the trash since before `before` and have an object.
///
/// # Errors
/// When the database is gone.
pub async fn trashed(session: &mut impl Session, before: Timestamp, limit: u32) -> Result<Vec<(Hash, ObjectRow)>> {
    objects(TRASHED.on(session).bind(before.to_offset()).bind(i64::from(limit)).all().await?)
}

/// The objects of these chunks; those without one are left out.
///
/// # Errors
/// When the database is gone.
pub async fn of(session: &mut impl Session, chunks: &[Hash]) -> Result<Vec<(Hash, ObjectRow)>> {
    objects(OF.on(session).bind(array(chunks)).all().await?)
}

/// The chunk has no object any more.
///
/// # Errors
/// When the database is gone.
pub async fn forget(tx: &mut Tx, chunk: &Hash) -> Result<bool> {
    Ok(FORGET.on(tx).bind(&chunk.as_bytes()[..]).execute().await? == 1)
}

/// The chunk's object was just read back whole.
///
/// # Errors
/// When the database is gone.
pub async fn set_checked(tx: &mut Tx, chunk: &Hash, now: Timestamp) -> Result<()> {
    SET_CHECKED.on(tx).bind(&chunk.as_bytes()[..]).bind(now.to_offset()).execute().await.map(|_| ())
}

/// What lies where, counted.
///
/// # Errors
/// When the database is gone.
pub async fn totals(session: &mut impl Session) -> Result<Tiers> {
    let (local, local_bytes, remote, objects, object_bytes): (i64, i64, i64, i64, i64) =
        TOTALS.on(session).one().await?;
    Ok(Tiers {
        local_chunks: local.unsigned_abs(),
        local_bytes: local_bytes.unsigned_abs(),
        remote_chunks: remote.unsigned_abs(),
        objects: objects.unsigned_abs(),
        object_bytes: object_bytes.unsigned_abs(),
    })
}

/// Whether there is any object.
///
/// # Errors
/// When the database is gone.
pub async fn any(session: &mut impl Session) -> Result<bool> {
    let (any,): (bool,) = ANY.on(session).one().await?;
    Ok(any)
}

fn objects(rows: Vec<(Vec<u8>, Vec<u8>, bool, i64)>) -> Result<Vec<(Hash, ObjectRow)>> {
    let one = |(chunk, name, sealed, bytes): (Vec<u8>, Vec<u8>, bool, i64)| {
        let name = hash("chunk_objects", "name", "?", &name)?;
        let object = ObjectRow { name, sealed, bytes: bytes.unsigned_abs() };
        Ok((hash("chunk_objects", "chunk", "?", &chunk)?, object))
    };
    rows.into_iter().map(one).collect()
}
