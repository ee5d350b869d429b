//! What goes into the cache, checked, and what comes out, marked as somebody else's word.

use bib_core::record::{Body, Kind, Merge, Rank, Revision, SignedRecord, merge};
use bib_core::{Hash, PeerId, Timestamp};
use sqlx::SqlitePool;

use crate::error::Error;
use crate::store::{Cache, MAX_PAGE_BYTES};

/// What became of a record that came.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kept {
    /// It is kept from now on.
    Now,
    /// It was kept already; its time begins again.
    Again,
    /// A newer one is kept.
    Superseded,
}

/// A record of another node: never the authority, however fresh.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CachedRecord {
    /// As it was signed.
    pub record: SignedRecord,
    /// When it was fetched.
    pub kept_at: Timestamp,
}

/// One step of a listing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Listed {
    /// In the order of their ids.
    pub records: Vec<CachedRecord>,
    /// Where the next step begins; nothing when this was the last.
    pub next: Option<String>,
}

/// The most records that one step of a listing gives.
const MAX_LISTED: usize = 1_000;

type Row = (String, Vec<u8>, Vec<u8>, Vec<u8>, i64);

impl Cache {
    /// Keeps a record of another node, when it is signed and no newer one is kept.
    ///
    /// # Errors
    /// [`Error::Own`], [`Error::Signature`], [`Error::Record`]; [`Error::Damaged`], [`Error::Full`], [`Error::Sqlite`].
    pub async fn keep_record(&self, record: &SignedRecord, now: Timestamp) -> Result<Kept, Error> {
        if record.key == self.inner.node {
            return Err(Error::Own);
        }
        let body = Body::parse(&record.body)?;
        bib_identity::node_key::verify(&record.key, body.purpose(), &record.body, &record.sig)
            .map_err(|_| Error::Signature)?;
        self.run(async |pool| self.put(pool, record, &body, now).await).await
    }

    async fn put(
        &self,
        pool: &SqlitePool,
        record: &SignedRecord,
        body: &Body,
        now: Timestamp,
    ) -> Result<Kept, sqlx::Error> {
        const HELD: &str = "SELECT tenure, epoch, n, body FROM record WHERE kind = ?1 AND id = ?2";
        const PUT: &str = "INSERT INTO record (kind, id, tenure, epoch, n, signer, sig, body, kept_us) \
            VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9) \
            ON CONFLICT (kind, id) DO UPDATE SET tenure = excluded.tenure, epoch = excluded.epoch, n = excluded.n, \
            signer = excluded.signer, sig = excluded.sig, body = excluded.body, kept_us = excluded.kept_us";
        let (kind, id, revision) = (body.kind_word(), body.id(), body.revision());
        // IMMEDIATE: a transaction that begins by reading could not become a writer while another writes.
        let mut tx = pool.begin_with("BEGIN IMMEDIATE").await?;
        let held: Option<(i64, i64, i64, Vec<u8>)> =
            sqlx::query_as(HELD).bind(kind).bind(&id).fetch_optional(&mut *tx).await?;
        let verdict = held.map(|(tenure, epoch, n, held)| {
            let [tenure, epoch, n] = [tenure, epoch, n].map(i64::cast_unsigned);
            merge(&Rank::of(Revision { tenure, epoch, n }, &held), &Rank::of(revision, &record.body))
        });
        let kept = match verdict {
            None | Some(Merge::Replace | Merge::Equivocation { incoming_wins: true }) => Kept::Now,
            Some(Merge::Same) => Kept::Again,
            Some(Merge::Keep | Merge::Equivocation { incoming_wins: false }) => return Ok(Kept::Superseded),
        };
        sqlx::query(PUT)
            .bind(kind)
            .bind(&id)
            .bind(revision.tenure.cast_signed())
            .bind(revision.epoch.cast_signed())
            .bind(revision.n.cast_signed())
            .bind(record.key.public_key().as_slice())
            .bind(record.sig.as_slice())
            .bind(&record.body)
            .bind(now.as_micros())
            .execute(&mut *tx)
            .await?;
        self.evict(&mut tx).await?;
        tx.commit().await?;
        Ok(kept)
    }

    /// The record of this kind and id, when one is kept and not too old.
    ///
    /// # Errors
    /// [`Error::Damaged`], [`Error::Sqlite`].
    pub async fn record(&self, kind: Kind, id: &str, now: Timestamp) -> Result<Option<CachedRecord>, Error> {
        const GET: &str = "SELECT id, body, signer, sig, kept_us FROM record \
            WHERE kind = ?1 AND id = ?2 AND kept_us > ?3 AND kept_us <= ?4";
        let window = self.window(now);
        let get = async |pool: &SqlitePool| {
            let query = sqlx::query_as::<_, Row>(GET).bind(kind.as_str()).bind(id);
            query.bind(window.after).bind(window.until).fetch_optional(pool).await
        };
        self.run(get).await?.map(cached).transpose()
    }

    /// Up to `limit` (at most 1,000) records of a kind, from after the id `after`.
    ///
    /// # Errors
    /// [`Error::Damaged`], [`Error::Sqlite`].
    pub async fn records(&self, kind: Kind, after: &str, limit: usize, now: Timestamp) -> Result<Listed, Error> {
        const LIST: &str = "SELECT id, body, signer, sig, kept_us FROM record \
            WHERE kind = ?1 AND id > ?2 AND kept_us > ?3 AND kept_us <= ?4 ORDER BY id LIMIT ?5";
        let (window, limit) = (self.window(now), limit.clamp(1, MAX_LISTED));
        let list = async |pool: &SqlitePool| {
            let query = sqlx::query_as::<_, Row>(LIST).bind(kind.as_str()).bind(after);
            // One more than is given tells whether there is a next step.
            query.bind(window.after).bind(window.until).bind(limit as i64 + 1).fetch_all(pool).await
        };
        let mut rows = self.run(list).await?;
        let is_more = rows.len() > limit;
        rows.truncate(limit);
        let next = rows.last().filter(|_| is_more).map(|row| row.0.clone());
        Ok(Listed { records: rows.into_iter().map(cached).collect::<Result<_, _>>()?, next })
    }

    /// Keeps a page of content or layout, whose hash is its name.
    ///
    /// # Errors
    /// [`Error::Hash`], [`Error::TooLarge`]; [`Error::Damaged`], [`Error::Full`], [`Error::Sqlite`].
    pub async fn keep_page(&self, hash: &Hash, body: &[u8], now: Timestamp) -> Result<(), Error> {
        const PUT: &str = "INSERT INTO page (hash, body, kept_us) VALUES (?1, ?2, ?3) \
            ON CONFLICT (hash) DO UPDATE SET kept_us = excluded.kept_us";
        if body.len() > MAX_PAGE_BYTES {
            return Err(Error::TooLarge(body.len()));
        }
        if Hash::of(body) != *hash {
            return Err(Error::Hash);
        }
        self.run(async |pool| {
            let mut tx = pool.begin_with("BEGIN IMMEDIATE").await?;
            let put = sqlx::query(PUT).bind(hash.as_bytes().as_slice()).bind(body).bind(now.as_micros());
            put.execute(&mut *tx).await?;
            self.evict(&mut tx).await?;
            tx.commit().await
        })
        .await
    }

    /// The page with this hash, when it is kept and not too old. It was hashed again: a disk may lie without SQLite seeing it.
    ///
    /// # Errors
    /// [`Error::Damaged`], [`Error::Sqlite`]; [`Error::Hash`] when the disk changed it.
    pub async fn page(&self, hash: &Hash, now: Timestamp) -> Result<Option<Vec<u8>>, Error> {
        const GET: &str = "SELECT body FROM page WHERE hash = ?1 AND kept_us > ?2 AND kept_us <= ?3";
        let window = self.window(now);
        let get = async |pool: &SqlitePool| {
            let query = sqlx::query_scalar(GET).bind(hash.as_bytes().as_slice());
            query.bind(window.after).bind(window.until).fetch_optional(pool).await
        };
        let body: Option<Vec<u8>> = self.run(get).await?;
        match body {
            Some(body) if Hash::of(&body) != *hash => {
                let drop = async |pool: &SqlitePool| {
                    sqlx::query("DELETE FROM page WHERE hash = ?1").bind(hash.as_bytes().as_slice()).execute(pool).await
                };
                self.run(drop).await?;
                Err(Error::Hash)
            }
            body => Ok(body),
        }
    }
}

/// A row as it was put in. The lengths are the schema's to keep; a file that breaks them is damaged.
fn cached((_, body, signer, sig, kept_us): Row) -> Result<CachedRecord, Error> {
    let key = <[u8; 32]>::try_from(signer).map_err(|_| Error::Damaged)?;
    let sig = <[u8; 64]>::try_from(sig).map_err(|_| Error::Damaged)?;
    let record = SignedRecord { body, key: PeerId::from_public_key(key), sig };
    Ok(CachedRecord { record, kept_at: Timestamp::from_micros(kept_us) })
}
