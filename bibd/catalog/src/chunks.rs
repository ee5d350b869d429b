//! Chunks: where each lies, who may know of it, and what keeps it alive. Those in object storage: [`objects`].

use bib_core::{DatasetId, Hash, SessionId, Timestamp, UserId};
use sqlx::FromRow;

use crate::objects::{self, ObjectRow};
use crate::row::{array, hash, inconsistent, signed};
use crate::statement::{Class, Statement};
use crate::{Result, Session, Tx};

/// A chunk in the store, as it was written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct StoredChunk {
    /// Its name.
    pub hash: Hash,
    /// Length before encoding, 1 to 4 MiB.
    pub raw_length: u32,
    /// Length on disk.
    pub stored_bytes: u32,
    /// zstd, or as it is.
    pub zstd: bool,
}

/// Where an in-place chunk lies, and the guard that its file must still match.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Place {
    /// Absolute path on this machine.
    pub path: String,
    /// Offset of the chunk in the file.
    pub byte_offset: u64,
    /// `st_dev`.
    pub device: u64,
    /// `st_ino`.
    pub inode: u64,
    /// `st_size`.
    pub file_size: u64,
    /// `st_mtim` in nanoseconds.
    pub mtime_ns: i64,
    /// `st_ctim` in nanoseconds.
    pub ctime_ns: i64,
}

/// A chunk as it can be read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Located {
    /// The chunk.
    pub chunk: StoredChunk,
    /// In place instead of in the store.
    pub place: Option<Place>,
    /// Its object, which may be there beside a file.
    pub object: Option<ObjectRow>,
    /// The object is all there is.
    pub is_moved_out: bool,
    /// The day of the last read that was noted, as [`objects::day`] counts.
    pub read_day: i32,
    /// A read found it damaged; it is quarantined.
    pub damaged: bool,
}

/// A chunk's name and size on disk: one that nothing keeps alive, or one that should be there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Named {
    /// Its name.
    pub hash: Hash,
    /// Its length on disk.
    pub stored_bytes: u32,
}

// A have is told only for chunks that this user's upload sessions hold, or of versions that the user may read
// ($2 user, $3 now; $4 the topics that a narrowed session reaches, NULL for all). Everything else is sent again and
// deduplicated behind the answer. Who reads by visibility alone is told of the latest versions only, and not of those
// under embargo: a have confirms bytes.
static KNOWN: Statement = Statement::new(
    Class::Select,
    "chunks",
    "SELECT c.hash FROM bib.chunks c
     WHERE c.hash = ANY($1) AND c.state = 0 AND (
         EXISTS (
             SELECT 1 FROM bib.lease_chunks lc JOIN bib.leases l ON l.id = lc.lease_id
             WHERE lc.chunk = c.hash AND l.kind = 'upload' AND l.user_id = $2 AND l.expires_at > $3)
         OR EXISTS (
             SELECT 1 FROM bib.page_chunks pc
             JOIN bib.page_spans s ON s.page = pc.page
             JOIN bib.datasets d ON d.id = s.dataset_id AND d.deleted_at IS NULL
             JOIN bib.topics t ON t.id = d.topic_id
             -- A chunk in a file of somebody's is asked for again: nobody else's version is to depend on that file.
             WHERE pc.chunk = c.hash AND c.location <> 2
               AND ($4::text[] IS NULL OR EXISTS (
                   SELECT 1 FROM unnest($4) AS a(name) WHERE t.name = a.name OR starts_with(t.name, a.name || '/')))
               AND (
                 t.created_by = $2
                 OR (t.visibility <> 'private' AND s.to_n IS NULL
                     AND coalesce((d.metadata ->> 'embargo')::timestamptz <= $3, true))
                 OR EXISTS (
                     SELECT 1 FROM bib.topic_grants g
                     JOIN bib.user_keys k ON k.fingerprint = g.subject AND k.removed_at IS NULL
                     WHERE g.topic_id = t.id AND g.expires_at > $3 AND k.user_id = $2))))",
);

// An upload of a doomed or trashed chunk revives it. The row is locked whether or not it changes. What the store says of
// the file counts: a damaged copy may have been replaced by one in another encoding.
static PUT: Statement = Statement::new(
    Class::Insert,
    "chunks",
    "INSERT INTO bib.chunks (hash, raw_length, stored_bytes, encoding, location, state, created_at, changed_at, read_day)
     SELECT r.hash, r.raw_length, r.stored_bytes, r.encoding, 0, 0, $5, $5, $6
     FROM unnest($1::bytea[], $2::int[], $3::int[], $4::smallint[]) AS r(hash, raw_length, stored_bytes, encoding)
     ORDER BY r.hash
     ON CONFLICT (hash) DO UPDATE
     SET state = 0, location = 0, stored_bytes = excluded.stored_bytes, encoding = excluded.encoding,
         changed_at = excluded.changed_at, read_day = excluded.read_day
     WHERE chunks.state <> 0 OR chunks.location <> 0
        OR (chunks.stored_bytes, chunks.encoding) <> (excluded.stored_bytes, excluded.encoding)",
);

static PUT_IN_PLACE: Statement = Statement::new(
    Class::Insert,
    "chunks",
    "WITH made AS (
         INSERT INTO bib.chunks (hash, raw_length, stored_bytes, encoding, location, state, created_at, changed_at)
         VALUES ($1, $2, 0, 0, 2, 0, $3, $3)
         ON CONFLICT (hash) DO UPDATE SET state = 0, location = 2, stored_bytes = 0, encoding = 0, changed_at = $3
         WHERE chunks.state <> 0
     )
     INSERT INTO bib.chunk_places (chunk, path, byte_offset, device, inode, file_size, mtime_ns, ctime_ns)
     VALUES ($1, $4, $5, $6, $7, $8, $9, $10)
     ON CONFLICT (chunk) DO UPDATE
     SET path = excluded.path, byte_offset = excluded.byte_offset, device = excluded.device, inode = excluded.inode,
         file_size = excluded.file_size, mtime_ns = excluded.mtime_ns, ctime_ns = excluded.ctime_ns",
);

static LEASE: Statement = Statement::new(
    Class::Insert,
    "lease_chunks",
    "INSERT INTO bib.lease_chunks (lease_id, chunk)
     SELECT $1, chunk FROM unnest($2::bytea[]) AS r(chunk) ORDER BY chunk
     ON CONFLICT DO NOTHING",
);

// What the commit stands on: leased by this session, live, and locked against a collection until it has committed. A
// doomed chunk does not count: its file may be on its way to the trash. It is sent again, which revives it.
static LOCK_LEASED: Statement = Statement::new(
    Class::Select,
    "chunks",
    "SELECT c.hash FROM bib.chunks c
     JOIN bib.lease_chunks l ON l.chunk = c.hash AND l.lease_id = $1
     WHERE c.hash = ANY($2) AND c.state = 0
     ORDER BY c.hash
     FOR SHARE OF c",
);

static LOCATE: Statement = Statement::new(
    Class::Select,
    "chunks",
    "SELECT c.hash, c.raw_length, c.stored_bytes, c.encoding, c.location, c.state,
            p.path, p.byte_offset, p.device, p.inode, p.file_size, p.mtime_ns, p.ctime_ns,
            c.read_day, o.name, o.sealed, o.object_bytes
     FROM bib.chunks c
     LEFT JOIN bib.chunk_places p ON p.chunk = c.hash
     LEFT JOIN bib.chunk_objects o ON o.chunk = c.hash
     WHERE c.hash = ANY($1)",
);

// Not in the trash: who located a chunk just before it was collected finds no file, and nothing is wrong.
static SET_DAMAGED: Statement = Statement::new(
    Class::Update,
    "chunks",
    "UPDATE bib.chunks SET state = 3, changed_at = $2 WHERE hash = $1 AND state < 2",
);

// $1: after this hash; $2: rows; $3: older than this.
static DOOM: Statement = Statement::new(
    Class::Update,
    "chunks",
    "WITH slice AS (
         SELECT c.hash FROM bib.chunks c WHERE c.hash > $1 ORDER BY c.hash LIMIT $2
     ), dead AS (
         SELECT c.hash, c.stored_bytes FROM bib.chunks c JOIN slice USING (hash)
         WHERE c.state IN (0, 3) AND c.changed_at < $3
           AND NOT EXISTS (SELECT 1 FROM bib.page_chunks p WHERE p.chunk = c.hash)
           AND NOT EXISTS (SELECT 1 FROM bib.lease_chunks l WHERE l.chunk = c.hash)
         FOR UPDATE OF c SKIP LOCKED
     ), doomed AS (
         UPDATE bib.chunks SET state = 1, changed_at = $4 WHERE $5 AND hash IN (SELECT hash FROM dead)
     )
     SELECT (SELECT hash FROM slice ORDER BY hash DESC LIMIT 1) AS last, d.hash, d.stored_bytes
     FROM (SELECT 1) AS one LEFT JOIN dead d ON true",
);

// As DOOM, for chunks that are known by name: those of a withdrawn version.
static DOOM_THESE: Statement = Statement::new(
    Class::Update,
    "chunks",
    "UPDATE bib.chunks c SET state = 1, changed_at = $2
     WHERE c.hash = ANY($1) AND c.state IN (0, 1, 3)
       AND NOT EXISTS (SELECT 1 FROM bib.page_chunks p WHERE p.chunk = c.hash)
       AND NOT EXISTS (SELECT 1 FROM bib.lease_chunks l WHERE l.chunk = c.hash)
     RETURNING c.hash, c.stored_bytes, c.location",
);

// Without what became wanted since: those stay doomed, and a slice full of them would hold up all others.
static DOOMED: Statement = Statement::new(
    Class::Select,
    "chunks",
    "SELECT hash, stored_bytes, location FROM bib.chunks c WHERE c.state = 1
       AND NOT EXISTS (SELECT 1 FROM bib.page_chunks p WHERE p.chunk = c.hash)
       AND NOT EXISTS (SELECT 1 FROM bib.lease_chunks l WHERE l.chunk = c.hash)
     ORDER BY c.changed_at LIMIT $1",
);

// The row is locked while the file moves: an upload of the same chunk waits, and then revives it.
static TRASH: Statement = Statement::new(
    Class::Update,
    "chunks",
    "UPDATE bib.chunks c SET state = 2, changed_at = $2
     WHERE c.hash = $1 AND c.state = 1
       AND NOT EXISTS (SELECT 1 FROM bib.page_chunks p WHERE p.chunk = c.hash)
       AND NOT EXISTS (SELECT 1 FROM bib.lease_chunks l WHERE l.chunk = c.hash)",
);

static TRASHED: Statement = Statement::new(
    Class::Select,
    "chunks",
    "SELECT hash, stored_bytes, location FROM bib.chunks c WHERE state = 2 AND changed_at < $1
       AND NOT EXISTS (SELECT 1 FROM bib.chunk_objects o WHERE o.chunk = c.hash)
     ORDER BY changed_at LIMIT $2",
);

static FORGET: Statement =
    Statement::new(Class::Delete, "chunks", "DELETE FROM bib.chunks WHERE hash = $1 AND state = 2 AND changed_at < $2");

// A row for a moment, in a transaction that is rolled back: an upload of the same chunk waits for its end.
static CLAIM_ORPHAN: Statement = Statement::new(
    Class::Insert,
    "chunks",
    "INSERT INTO bib.chunks (hash, raw_length, stored_bytes, encoding, location, state, created_at, changed_at)
     VALUES ($1, 1, 0, 0, 0, 2, $2, $2)
     ON CONFLICT (hash) DO NOTHING",
);

static EXISTING: Statement =
    Statement::new(Class::Select, "chunks", "SELECT hash FROM bib.chunks WHERE hash = ANY($1) AND state <> 2");

// The chunks that must have a file in the store, in hash order, for the comparison with what is there.
static EXPECTED: Statement = Statement::new(
    Class::Select,
    "chunks",
    "SELECT hash, stored_bytes FROM bib.chunks
     WHERE hash > $1 AND ($2::bytea IS NULL OR hash <= $2) AND location = 0 AND state = 0
     ORDER BY hash LIMIT $3",
);

static TOTALS: Statement = Statement::new(
    Class::Select,
    "chunks",
    "SELECT count(*), coalesce(sum(raw_length), 0)::bigint, coalesce(sum(stored_bytes), 0)::bigint
     FROM bib.chunks WHERE state IN (0, 1)",
);

static NAMED_BY: Statement = Statement::new(
    Class::Select,
    "page_chunks",
    "SELECT DISTINCT s.dataset_id FROM bib.page_chunks c JOIN bib.page_spans s ON s.page = c.page WHERE c.chunk = $1",
);

pub(crate) static STATEMENTS: &[&Statement] = &[
    &KNOWN,
    &PUT,
    &PUT_IN_PLACE,
    &LEASE,
    &LOCK_LEASED,
    &LOCATE,
    &SET_DAMAGED,
    &DOOM,
    &DOOM_THESE,
    &DOOMED,
    &TRASH,
    &TRASHED,
    &FORGET,
    &CLAIM_ORPHAN,
    &EXISTING,
    &EXPECTED,
    &TOTALS,
    &NAMED_BY,
];

#[derive(FromRow)]
struct LocatedRow {
    hash: Vec<u8>,
    raw_length: i32,
    stored_bytes: i32,
    encoding: i16,
    location: i16,
    state: i16,
    path: Option<String>,
    byte_offset: Option<i64>,
    device: Option<i64>,
    inode: Option<i64>,
    file_size: Option<i64>,
    mtime_ns: Option<i64>,
    ctime_ns: Option<i64>,
    read_day: i32,
    name: Option<Vec<u8>>,
    sealed: Option<bool>,
    object_bytes: Option<i64>,
}

impl LocatedRow {
    fn into_located(self) -> Result<Located> {
        let name = hash("chunks", "hash", "?", &self.hash)?;
        let place = match (self.location, self.path) {
            (2, Some(path)) => Some(Place {
                path,
                byte_offset: self.byte_offset.unwrap_or_default().unsigned_abs(),
                // Stored bit for bit: device and inode numbers use all 64 bits.
                device: self.device.unwrap_or_default().cast_unsigned(),
                inode: self.inode.unwrap_or_default().cast_unsigned(),
                file_size: self.file_size.unwrap_or_default().unsigned_abs(),
                mtime_ns: self.mtime_ns.unwrap_or_default(),
                ctime_ns: self.ctime_ns.unwrap_or_default(),
            }),
            (2, None) => return Err(inconsistent("chunk_places", "path", name, "an in-place chunk without a place")),
            _ => None,
        };
        Ok(Located {
            chunk: StoredChunk {
                hash: name,
                raw_length: self.raw_length.unsigned_abs(),
                stored_bytes: self.stored_bytes.unsigned_abs(),
                zstd: self.encoding == 1,
            },
            place,
            object: objects::object(self.name.as_deref(), self.sealed, self.object_bytes)?,
            is_moved_out: self.location == 1,
            read_day: self.read_day,
            damaged: self.state == 3,
        })
    }
}

/// The end of the slice stands in every row; the chunk is absent when the slice has no dead one.
#[derive(FromRow)]
struct DoomRow {
    last: Option<Vec<u8>>,
    hash: Option<Vec<u8>>,
    stored_bytes: Option<i32>,
}

fn hashes(table: &'static str, rows: Vec<(Vec<u8>,)>) -> Result<Vec<Hash>> {
    rows.into_iter().map(|(bytes,)| hash(table, "hash", "?", &bytes)).collect()
}

fn length(number: u32) -> i32 {
    // A check constraint holds lengths to 4 MiB.
    i32::try_from(number).unwrap_or(i32::MAX)
}

/// Which of these chunks the user may be told are here. `topics`: the topics, with what lies below them, that a
/// narrowed session reaches.
///
/// # Errors
/// When the database is gone.
pub async fn known(
    session: &mut impl Session,
    user: UserId,
    topics: Option<&[String]>,
    chunks: &[Hash],
    now: Timestamp,
) -> Result<Vec<Hash>> {
    let run = KNOWN.on(session).bind(array(chunks)).bind(user.as_uuid()).bind(now.to_offset());
    hashes("chunks", run.bind(topics.map(<[String]>::to_vec)).all().await?)
}

/// Enters chunks that are durable in the store, and leases them to the upload session.
///
/// # Errors
/// When the database refuses.
pub async fn put(tx: &mut Tx, lease: SessionId, chunks: &[StoredChunk], now: Timestamp) -> Result<()> {
    let names: Vec<Hash> = chunks.iter().map(|chunk| chunk.hash).collect();
    PUT.on(tx)
        .bind(array(&names))
        .bind(chunks.iter().map(|c| length(c.raw_length)).collect::<Vec<_>>())
        .bind(chunks.iter().map(|c| length(c.stored_bytes)).collect::<Vec<_>>())
        .bind(chunks.iter().map(|c| i16::from(c.zstd)).collect::<Vec<_>>())
        .bind(now.to_offset())
        .bind(objects::day(now))
        .execute()
        .await?;
    self::lease(tx, lease, &names).await
}

/// Enters a chunk that lies in a file of its owner's. A chunk that the store has stays there.
///
/// # Errors
/// When the database refuses.
pub async fn put_in_place(tx: &mut Tx, chunk: &Hash, raw_length: u32, place: &Place, now: Timestamp) -> Result<()> {
    PUT_IN_PLACE
        .on(tx)
        .bind(&chunk.as_bytes()[..])
        .bind(length(raw_length))
        .bind(now.to_offset())
        .bind(&place.path)
        .bind(signed(place.byte_offset)?)
        .bind(place.device.cast_signed())
        .bind(place.inode.cast_signed())
        .bind(signed(place.file_size)?)
        .bind(place.mtime_ns)
        .bind(place.ctime_ns)
        .execute()
        .await
        .map(|_| ())
}

/// Leases chunks to an upload session, so that they stay until its commit.
///
/// # Errors
/// When the session is gone.
pub async fn lease(tx: &mut Tx, lease: SessionId, chunks: &[Hash]) -> Result<()> {
    LEASE.on(tx).bind(lease.as_uuid()).bind(array(chunks)).execute().await.map(|_| ())
}

/// Locks those of these chunks that the session leases and that are here, until the transaction ends. What is missing
/// from the answer must be sent again.
///
/// # Errors
/// When the database is gone.
pub async fn lock_leased(tx: &mut Tx, lease: SessionId, chunks: &[Hash]) -> Result<Vec<Hash>> {
    hashes("chunks", LOCK_LEASED.on(tx).bind(lease.as_uuid()).bind(array(chunks)).all().await?)
}

/// Where these chunks lie, in any order; what is not here is left out.
///
/// # Errors
/// When the database is gone.
pub async fn locate(session: &mut impl Session, chunks: &[Hash]) -> Result<Vec<Located>> {
    let rows: Vec<LocatedRow> = LOCATE.on(session).bind(array(chunks)).all().await?;
    rows.into_iter().map(LocatedRow::into_located).collect()
}

/// Takes note that a read found a chunk damaged. False when that was known, or the chunk has been collected.
///
/// # Errors
/// When the database is gone.
pub async fn set_damaged(tx: &mut Tx, chunk: &Hash, now: Timestamp) -> Result<bool> {
    Ok(SET_DAMAGED.on(tx).bind(&chunk.as_bytes()[..]).bind(now.to_offset()).execute().await? == 1)
}

/// One slice of a collection: chunks after `after` that nothing keeps and that last changed before `before`.
/// Says where the slice ended (`None`: there are no more) and which are dead; `mark` dooms them.
///
/// # Errors
/// When the database is gone.
pub async fn doom(
    tx: &mut Tx,
    after: Option<&Hash>,
    limit: u32,
    before: Timestamp,
    now: Timestamp,
    mark: bool,
) -> Result<(Option<Hash>, Vec<Named>)> {
    let after = after.map_or_else(Vec::new, |hash| hash.as_bytes().to_vec());
    let run = DOOM.on(tx).bind(after).bind(i64::from(limit)).bind(before.to_offset()).bind(now.to_offset()).bind(mark);
    let rows: Vec<DoomRow> = run.all().await?;
    let last = rows.first().and_then(|row| row.last.as_deref());
    let last = last.map(|bytes| hash("chunks", "hash", "?", bytes)).transpose()?;
    let dead = rows.iter().filter_map(|row| Some((row.hash.as_deref()?, row.stored_bytes?)));
    let dead = dead
        .map(|(name, bytes)| Ok(Named { hash: hash("chunks", "hash", "?", name)?, stored_bytes: bytes.unsigned_abs() }))
        .collect::<Result<_>>()?;
    Ok((last, dead))
}

/// Dooms those of these chunks that nothing keeps; the flag says that the chunk lies in place.
///
/// # Errors
/// When the database is gone.
pub async fn doom_these(tx: &mut Tx, chunks: &[Hash], now: Timestamp) -> Result<Vec<(Named, bool)>> {
    dead(DOOM_THESE.on(tx).bind(array(chunks)).bind(now.to_offset()).all().await?)
}

/// Doomed chunks, oldest first; the flag says that the chunk lies in place and has no file of ours.
///
/// # Errors
/// When the database is gone.
pub async fn doomed(session: &mut impl Session, limit: u32) -> Result<Vec<(Named, bool)>> {
    dead(DOOMED.on(session).bind(i64::from(limit)).all().await?)
}

/// Puts a doomed chunk's row into the trash, if nothing keeps it after all. Its row stays locked until the transaction
/// ends: move the file meanwhile. False when it was revived.
///
/// # Errors
/// When the database is gone.
pub async fn trash(tx: &mut Tx, chunk: &Hash, now: Timestamp) -> Result<bool> {
    Ok(TRASH.on(tx).bind(&chunk.as_bytes()[..]).bind(now.to_offset()).execute().await? == 1)
}

/// Chunks that have been in the trash since before `before` and have no object ([`objects::trashed`] has the others).
///
/// # Errors
/// When the database is gone.
pub async fn trashed(session: &mut impl Session, before: Timestamp, limit: u32) -> Result<Vec<(Named, bool)>> {
    dead(TRASHED.on(session).bind(before.to_offset()).bind(i64::from(limit)).all().await?)
}

/// Forgets a chunk that is still in the trash. False when it was revived.
///
/// # Errors
/// When the database is gone.
pub async fn forget(tx: &mut Tx, chunk: &Hash, before: Timestamp) -> Result<bool> {
    Ok(FORGET.on(tx).bind(&chunk.as_bytes()[..]).bind(before.to_offset()).execute().await? == 1)
}

/// Claims the name of a file that no row names, until the transaction is rolled back: until then nobody can enter the
/// chunk. False when there is a row.
///
/// # Errors
/// When the database is gone.
pub async fn claim_orphan(tx: &mut Tx, chunk: &Hash, now: Timestamp) -> Result<bool> {
    Ok(CLAIM_ORPHAN.on(tx).bind(&chunk.as_bytes()[..]).bind(now.to_offset()).execute().await? == 1)
}

/// Which of these names have a row that is not in the trash: a file without one is an orphan.
///
/// # Errors
/// When the database is gone.
pub async fn existing(session: &mut impl Session, chunks: &[Hash]) -> Result<Vec<Hash>> {
    hashes("chunks", EXISTING.on(session).bind(array(chunks)).all().await?)
}

/// A page of the live chunks that lie in the store, in hash order: after `after`, up to `up_to` (`None`: to the end).
///
/// # Errors
/// When the database is gone.
pub async fn expected(
    session: &mut impl Session,
    after: Option<&Hash>,
    up_to: Option<&Hash>,
    limit: u32,
) -> Result<Vec<Named>> {
    let bytes = |hash: Option<&Hash>| hash.map(|hash| hash.as_bytes().to_vec());
    let run = EXPECTED.on(session).bind(bytes(after).unwrap_or_default()).bind(bytes(up_to)).bind(i64::from(limit));
    let rows: Vec<(Vec<u8>, i32)> = run.all().await?;
    let expected = rows.into_iter().map(|(name, bytes)| {
        Ok(Named { hash: hash("chunks", "hash", "?", &name)?, stored_bytes: bytes.unsigned_abs() })
    });
    expected.collect()
}

/// Chunks, their bytes before encoding, and on disk.
///
/// # Errors
/// When the database is gone.
pub async fn totals(session: &mut impl Session) -> Result<(u64, u64, u64)> {
    let (chunks, raw, stored): (i64, i64, i64) = TOTALS.on(session).one().await?;
    Ok((chunks.unsigned_abs(), raw.unsigned_abs(), stored.unsigned_abs()))
}

/// The datasets whose pages name this chunk: what a damaged one touches.
///
/// # Errors
/// When the database is gone.
pub async fn named_by(session: &mut impl Session, chunk: &Hash) -> Result<Vec<DatasetId>> {
    let rows: Vec<(uuid::Uuid,)> = NAMED_BY.on(session).bind(&chunk.as_bytes()[..]).all().await?;
    Ok(rows.into_iter().map(|(id,)| DatasetId::from_uuid(id)).collect())
}

fn dead(rows: Vec<(Vec<u8>, i32, i16)>) -> Result<Vec<(Named, bool)>> {
    rows.into_iter()
        .map(|(name, bytes, location)| {
            let dead = Named { hash: hash("chunks", "hash", "?", &name)?, stored_bytes: bytes.unsigned_abs() };
            Ok((dead, location == 2))
        })
        .collect()
}
