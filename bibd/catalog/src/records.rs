//! Signed records, verbatim: the highest revision of each (kind, id).

use bib_core::record::{LastMark, Revision, SignedRecord};
use bib_core::{PeerId, Timestamp};
use sqlx::FromRow;

use crate::row::{inconsistent, signed};
use crate::statement::{Class, Statement};
use crate::{Result, Session, Tx};

static FIND: Statement = Statement::new(
    Class::Select,
    "records",
    "SELECT tenure, epoch, n, body, key, sig FROM bib.records WHERE kind = $1 AND id = $2",
);

static LIST: Statement = Statement::new(
    Class::Select,
    "records",
    "SELECT tenure, epoch, n, body, key, sig FROM bib.records WHERE kind = $1 ORDER BY id",
);

static LAST_OF: Statement = Statement::new(
    Class::Select,
    "records",
    "SELECT epoch, n FROM bib.records WHERE key = $1 ORDER BY epoch DESC, n DESC LIMIT 1",
);

// The highest revision wins; an equal one is never written by its owner twice.
static PUT: Statement = Statement::new(
    Class::Insert,
    "records",
    "INSERT INTO bib.records (kind, id, tenure, epoch, n, body, key, sig, created_at)
     VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9)
     ON CONFLICT (kind, id) DO UPDATE
     SET tenure = excluded.tenure, epoch = excluded.epoch, n = excluded.n, body = excluded.body, key = excluded.key,
         sig = excluded.sig, created_at = excluded.created_at
     WHERE (records.tenure, records.epoch, records.n) < (excluded.tenure, excluded.epoch, excluded.n)",
);

pub(crate) static STATEMENTS: &[&Statement] = &[&FIND, &LIST, &LAST_OF, &PUT];

/// A record as the table holds it.
#[derive(Debug, Clone, PartialEq, Eq, FromRow)]
pub struct StoredRecord {
    /// Number of transfers and successions before.
    pub tenure: i64,
    /// The signer's epoch.
    pub epoch: i64,
    /// The number within it.
    pub n: i64,
    /// Canonical JSON, verbatim.
    pub body: Vec<u8>,
    /// The signer, as multihash bytes.
    pub key: Vec<u8>,
    /// Ed25519, 64 bytes.
    pub sig: Vec<u8>,
}

impl StoredRecord {
    /// For storing.
    ///
    /// # Errors
    /// When a number of the revision is beyond 2^63, which no valid one is.
    pub fn new(record: &SignedRecord, revision: Revision) -> Result<Self> {
        Ok(Self {
            tenure: signed(revision.tenure)?,
            epoch: signed(revision.epoch)?,
            n: signed(revision.n)?,
            body: record.body.clone(),
            key: record.key.to_multihash().to_vec(),
            sig: record.sig.to_vec(),
        })
    }

    /// The revision.
    #[must_use]
    pub fn revision(&self) -> Revision {
        Revision { tenure: self.tenure.unsigned_abs(), epoch: self.epoch.unsigned_abs(), n: self.n.unsigned_abs() }
    }

    /// For forwarding, byte for byte.
    ///
    /// # Errors
    /// When the columns are nonsense.
    pub fn signed(&self) -> Result<SignedRecord> {
        let row = || String::from_utf8_lossy(&self.body).chars().take(80).collect::<String>();
        let key = self.key.get(6..).and_then(|key| <[u8; 32]>::try_from(key).ok());
        let key = key.ok_or_else(|| inconsistent("records", "key", row(), "not a peer id"))?;
        let sig = <[u8; 64]>::try_from(self.sig.as_slice())
            .map_err(|_| inconsistent("records", "sig", row(), "not 64 bytes"))?;
        Ok(SignedRecord { body: self.body.clone(), key: PeerId::from_public_key(key), sig })
    }
}

/// The newest record about (kind, id).
///
/// # Errors
/// When the database is gone.
pub async fn find(session: &mut impl Session, kind: &str, id: &str) -> Result<Option<StoredRecord>> {
    FIND.on(session).bind(kind).bind(id).optional().await
}

/// The newest record about each id of a kind. Only for kinds with few: nodes and successions.
///
/// # Errors
/// When the database is gone.
pub async fn list(session: &mut impl Session, kind: &str) -> Result<Vec<StoredRecord>> {
    LIST.on(session).bind(kind).all().await
}

/// The highest epoch, and the highest number in it, of what `signer` signed; zeros when it signed nothing.
///
/// # Errors
/// When the database is gone.
pub async fn last_of(session: &mut impl Session, signer: &PeerId) -> Result<LastMark> {
    let row: Option<(i64, i64)> = LAST_OF.on(session).bind(signer.to_multihash().to_vec()).optional().await?;
    let (epoch, n) = row.unwrap_or_default();
    Ok(LastMark { epoch: epoch.unsigned_abs(), n: n.unsigned_abs() })
}

/// Keeps a record. False when the one that is there is as new or newer.
///
/// # Errors
/// When the database refuses.
pub async fn put(tx: &mut Tx, kind: &str, id: &str, record: &StoredRecord, now: Timestamp) -> Result<bool> {
    let run = PUT.on(tx).bind(kind).bind(id).bind(record.tenure).bind(record.epoch).bind(record.n);
    let rows = run.bind(&record.body).bind(&record.key).bind(&record.sig).bind(now.to_offset()).execute().await?;
    Ok(rows == 1)
}
