//! Pages of content and layout, which chunks they name, and in which versions of a dataset they occur.

use bib_core::{DatasetId, Hash, SessionId, Timestamp};
use sqlx::FromRow;

use crate::row::{array, hash, inconsistent, signed};
use crate::statement::{Class, Statement};
use crate::{Result, Session, Tx};

/// What a page is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum PageKind {
    /// Root of a content tree.
    ContentRoot = 1,
    /// Index object of a content tree.
    ContentIndex = 2,
    /// Page of entries.
    ContentPage = 3,
    /// Root of a layout.
    LayoutRoot = 4,
    /// Index object of a layout.
    LayoutIndex = 5,
    /// Page of extents.
    LayoutPage = 6,
}

impl PageKind {
    /// From the number in the table and on the wire.
    #[must_use]
    pub fn from_number(number: i16) -> Option<Self> {
        use PageKind::{ContentIndex, ContentPage, ContentRoot, LayoutIndex, LayoutPage, LayoutRoot};
        [ContentRoot, ContentIndex, ContentPage, LayoutRoot, LayoutIndex, LayoutPage]
            .into_iter()
            .find(|kind| *kind as i16 == number)
    }
}

/// A page to keep. Its bytes were parsed and its hash was checked.
#[derive(Debug, Clone)]
pub struct NewPage {
    /// Hash of the body.
    pub hash: Hash,
    /// What it is.
    pub kind: PageKind,
    /// Verbatim.
    pub body: Vec<u8>,
    /// Of a content page: what the tree's rules need of it.
    pub summary: Option<Summary>,
    /// Of a layout page: the chunks it names, each once.
    pub chunks: Vec<Hash>,
}

/// What the rules of the content tree need of a page without reading it again.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Summary {
    /// Entries.
    pub entries: u32,
    /// Regular files among them.
    pub files: u64,
    /// Sum of the files' sizes.
    pub size_bytes: u64,
    /// Path of the first entry.
    pub first_path: String,
    /// Path of the last entry.
    pub last_path: String,
    /// Length of the body in bytes.
    pub body_bytes: u64,
}

/// A page as it is kept.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Page {
    /// Hash of the body.
    pub hash: Hash,
    /// What it is.
    pub kind: PageKind,
    /// Verbatim.
    pub body: Vec<u8>,
}

// The same page from two sessions is one row; both sessions lease it.
static INSERT: Statement = Statement::new(
    Class::Insert,
    "pages",
    "INSERT INTO bib.pages (hash, kind, body, entries, files, size_bytes, first_path, last_path, created_at)
     VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9)
     ON CONFLICT (hash) DO NOTHING",
);

static LEASE: Statement = Statement::new(
    Class::Insert,
    "lease_pages",
    "INSERT INTO bib.lease_pages (lease_id, page) SELECT $1, unnest($2::bytea[]) ON CONFLICT DO NOTHING",
);

static INSERT_CHUNKS: Statement = Statement::new(
    Class::Insert,
    "page_chunks",
    "INSERT INTO bib.page_chunks (page, chunk) SELECT $1, unnest($2::bytea[]) ON CONFLICT DO NOTHING",
);

// Only what this session sent, or what the dataset's newest version holds: a page must not tell what others have.
static KNOWN: Statement = Statement::new(
    Class::Select,
    "pages",
    "SELECT page FROM bib.lease_pages WHERE lease_id = $1 AND page = ANY($2)
     UNION
     SELECT page FROM bib.page_spans WHERE dataset_id = $3 AND to_n IS NULL AND page = ANY($2)",
);

static GET: Statement =
    Statement::new(Class::Select, "pages", "SELECT hash, kind, body FROM bib.pages WHERE hash = ANY($1)");

static SUMMARIES: Statement = Statement::new(
    Class::Select,
    "pages",
    "SELECT hash, entries, files, size_bytes, first_path, last_path, length(body) AS body_bytes
     FROM bib.pages WHERE hash = ANY($1) AND kind = 3",
);

static CLOSE_SPANS: Statement = Statement::new(
    Class::Update,
    "page_spans",
    "UPDATE bib.page_spans SET to_n = $3 - 1
     WHERE dataset_id = $1 AND to_n IS NULL
       AND NOT EXISTS (SELECT 1 FROM unnest($2::bytea[]) AS p(page) WHERE p.page = page_spans.page)",
);

static OPEN_SPANS: Statement = Statement::new(
    Class::Insert,
    "page_spans",
    "INSERT INTO bib.page_spans (dataset_id, page, from_n)
     SELECT $1, p.page, $3
     FROM unnest($2::bytea[]) AS p(page)
     WHERE NOT EXISTS (
         SELECT 1 FROM bib.page_spans s WHERE s.dataset_id = $1 AND s.page = p.page AND s.to_n IS NULL)",
);

// Which of these pages does the version (number $2 of dataset $1) hold?
static IN_VERSION: Statement = Statement::new(
    Class::Select,
    "page_spans",
    "SELECT DISTINCT page FROM bib.page_spans
     WHERE dataset_id = $1 AND from_n <= $2 AND (to_n IS NULL OR to_n >= $2) AND page = ANY($3)",
);

// Which of these chunks do the layout pages of the version name?
static CHUNKS_IN_VERSION: Statement = Statement::new(
    Class::Select,
    "page_chunks",
    "SELECT DISTINCT c.chunk FROM bib.page_chunks c
     JOIN bib.page_spans s ON s.page = c.page
     WHERE s.dataset_id = $1 AND s.from_n <= $2 AND (s.to_n IS NULL OR s.to_n >= $2) AND c.chunk = ANY($3)",
);

// Spans in which no kept version lies any more, after versions were deleted or withdrawn.
static DROP_DEAD_SPANS: Statement = Statement::new(
    Class::Delete,
    "page_spans",
    "DELETE FROM bib.page_spans s
     WHERE s.dataset_id = $1 AND NOT EXISTS (
         SELECT 1 FROM bib.versions v
         WHERE v.dataset_id = $1 AND v.deleted_at IS NULL AND v.state <> 'withdrawn'
           AND v.n >= s.from_n AND (s.to_n IS NULL OR v.n <= s.to_n))",
);

// Pages that no span, lease or root keeps. Keyset by hash, so that a collection is incremental.
static COLLECT: Statement = Statement::new(
    Class::Delete,
    "pages",
    "WITH slice AS (
         SELECT p.hash FROM bib.pages p WHERE p.hash > $1 ORDER BY p.hash LIMIT $2
     ), dead AS (
         SELECT p.hash FROM bib.pages p JOIN slice USING (hash)
         WHERE p.created_at < $3
           AND NOT EXISTS (SELECT 1 FROM bib.page_spans s WHERE s.page = p.hash)
           AND NOT EXISTS (SELECT 1 FROM bib.lease_pages l WHERE l.page = p.hash)
           AND NOT EXISTS (SELECT 1 FROM bib.version_roots r WHERE r.content_root = p.hash OR r.layout_root = p.hash)
         FOR UPDATE OF p SKIP LOCKED
     ), gone AS (
         DELETE FROM bib.pages WHERE $4 AND hash IN (SELECT hash FROM dead)
     )
     SELECT (SELECT hash FROM slice ORDER BY hash DESC LIMIT 1), (SELECT count(*) FROM dead)",
);

pub(crate) static STATEMENTS: &[&Statement] = &[
    &INSERT,
    &LEASE,
    &INSERT_CHUNKS,
    &KNOWN,
    &GET,
    &SUMMARIES,
    &CLOSE_SPANS,
    &OPEN_SPANS,
    &IN_VERSION,
    &CHUNKS_IN_VERSION,
    &DROP_DEAD_SPANS,
    &COLLECT,
];

#[derive(FromRow)]
struct SummaryRow {
    hash: Vec<u8>,
    entries: i32,
    files: i64,
    size_bytes: i64,
    first_path: Option<String>,
    last_path: Option<String>,
    body_bytes: i32,
}

/// Keeps pages and leases them to the upload session.
///
/// # Errors
/// When the database refuses; the lease must be there.
pub async fn put(tx: &mut Tx, lease: SessionId, pages: &[NewPage], now: Timestamp) -> Result<()> {
    for page in pages {
        let summary = page.summary.as_ref();
        INSERT
            .on(tx)
            .bind(&page.hash.as_bytes()[..])
            .bind(page.kind as i16)
            .bind(&page.body)
            .bind(summary.map_or(0, |s| i32::try_from(s.entries).unwrap_or(i32::MAX)))
            .bind(signed(summary.map_or(0, |s| s.files))?)
            .bind(signed(summary.map_or(0, |s| s.size_bytes))?)
            .bind(summary.map(|s| &s.first_path))
            .bind(summary.map(|s| &s.last_path))
            .bind(now.to_offset())
            .execute()
            .await?;
        if !page.chunks.is_empty() {
            INSERT_CHUNKS.on(tx).bind(&page.hash.as_bytes()[..]).bind(array(&page.chunks)).execute().await?;
        }
    }
    let hashes: Vec<Hash> = pages.iter().map(|page| page.hash).collect();
    LEASE.on(tx).bind(lease.as_uuid()).bind(array(&hashes)).execute().await.map(|_| ())
}

/// Which of these pages the session need not send: it sent them, or the dataset's newest version holds them.
///
/// # Errors
/// When the database is gone.
pub async fn known(
    session: &mut impl Session,
    lease: SessionId,
    dataset: DatasetId,
    pages: &[Hash],
) -> Result<Vec<Hash>> {
    let rows: Vec<(Vec<u8>,)> =
        KNOWN.on(session).bind(lease.as_uuid()).bind(array(pages)).bind(dataset.as_uuid()).all().await?;
    rows.into_iter().map(|(bytes,)| hash("pages", "hash", "?", &bytes)).collect()
}

/// These pages, in any order; what is not there is left out. Each body is hashed again: a page that rotted in the
/// database is an error, never an answer.
///
/// # Errors
/// When the database is gone or a body does not hash to its name.
pub async fn get(session: &mut impl Session, pages: &[Hash]) -> Result<Vec<Page>> {
    let rows: Vec<(Vec<u8>, i16, Vec<u8>)> = GET.on(session).bind(array(pages)).all().await?;
    rows.into_iter()
        .map(|(name, kind, body)| {
            let name = hash("pages", "hash", "?", &name)?;
            if Hash::of(&body) != name {
                return Err(inconsistent("pages", "body", name, "does not hash to its name"));
            }
            let kind = PageKind::from_number(kind).ok_or_else(|| inconsistent("pages", "kind", name, kind))?;
            Ok(Page { hash: name, kind, body })
        })
        .collect()
}

/// Summaries of these content pages, in any order.
///
/// # Errors
/// When the database is gone.
pub async fn summaries(session: &mut impl Session, pages: &[Hash]) -> Result<Vec<(Hash, Summary)>> {
    let rows: Vec<SummaryRow> = SUMMARIES.on(session).bind(array(pages)).all().await?;
    rows.into_iter()
        .map(|row| {
            let name = hash("pages", "hash", "?", &row.hash)?;
            let missing = |column| inconsistent("pages", column, name, "missing in a content page");
            let summary = Summary {
                entries: row.entries.unsigned_abs(),
                files: row.files.unsigned_abs(),
                size_bytes: row.size_bytes.unsigned_abs(),
                first_path: row.first_path.ok_or_else(|| missing("first_path"))?,
                last_path: row.last_path.ok_or_else(|| missing("last_path"))?,
                body_bytes: u64::from(row.body_bytes.unsigned_abs()),
            };
            Ok((name, summary))
        })
        .collect()
}

/// Says that version number `n` of the dataset, its newest, is made of exactly these pages (roots left out). Writes a
/// row per page that came or went.
///
/// # Errors
/// When the database refuses.
pub async fn set_spans(tx: &mut Tx, dataset: DatasetId, pages: &[Hash], n: u64) -> Result<()> {
    let (pages, n) = (array(pages), signed(n)?);
    CLOSE_SPANS.on(tx).bind(dataset.as_uuid()).bind(&pages).bind(n).execute().await?;
    OPEN_SPANS.on(tx).bind(dataset.as_uuid()).bind(&pages).bind(n).execute().await.map(|_| ())
}

/// Which of these pages the version with number `n` holds.
///
/// # Errors
/// When the database is gone.
pub async fn in_version(session: &mut impl Session, dataset: DatasetId, n: u64, pages: &[Hash]) -> Result<Vec<Hash>> {
    let rows: Vec<(Vec<u8>,)> =
        IN_VERSION.on(session).bind(dataset.as_uuid()).bind(signed(n)?).bind(array(pages)).all().await?;
    rows.into_iter().map(|(bytes,)| hash("page_spans", "page", dataset, &bytes)).collect()
}

/// Which of these chunks the version with number `n` names.
///
/// # Errors
/// When the database is gone.
pub async fn chunks_in_version(
    session: &mut impl Session,
    dataset: DatasetId,
    n: u64,
    chunks: &[Hash],
) -> Result<Vec<Hash>> {
    let rows: Vec<(Vec<u8>,)> =
        CHUNKS_IN_VERSION.on(session).bind(dataset.as_uuid()).bind(signed(n)?).bind(array(chunks)).all().await?;
    rows.into_iter().map(|(bytes,)| hash("page_chunks", "chunk", dataset, &bytes)).collect()
}

/// Forgets the spans of a dataset in which no kept version lies. Says how many.
///
/// # Errors
/// When the database is gone.
pub async fn drop_dead_spans(tx: &mut Tx, dataset: DatasetId) -> Result<u64> {
    DROP_DEAD_SPANS.on(tx).bind(dataset.as_uuid()).execute().await
}

/// One slice of a collection: pages after `after` that nothing keeps and that are older than `before`.
/// Says where the slice ended (`None`: there are no more pages) and how many were dead. `remove` takes them away.
///
/// # Errors
/// When the database is gone.
pub async fn collect(
    tx: &mut Tx,
    after: Option<&Hash>,
    limit: u32,
    before: Timestamp,
    remove: bool,
) -> Result<(Option<Hash>, u64)> {
    let after = after.map_or_else(Vec::new, |hash| hash.as_bytes().to_vec());
    let run = COLLECT.on(tx).bind(after).bind(i64::from(limit)).bind(before.to_offset()).bind(remove);
    let (last, dead): (Option<Vec<u8>>, i64) = run.one().await?;
    Ok((last.map(|bytes| hash("pages", "hash", "?", &bytes)).transpose()?, dead.unsigned_abs()))
}
