//! Sealing: the queue is emptied and the seals are written in one transaction, by one sequencer.

use bib_core::Timestamp;
use bibd_audit::chain::{ChainState, Seal};
use sqlx::FromRow;
use time::OffsetDateTime;
use uuid::Uuid;

use crate::row::{hash, signed};
use crate::statement::{Class, Statement};
use crate::{Error, Result, Session, Tx};

// Rows of transactions that are still open are not seen and stay for the next batch: the order of the queue is the
// order of the log, and nothing is inferred from ids or times.
static TAKE: Statement = Statement::new(
    Class::Delete,
    "audit_unsealed",
    "WITH taken AS (
         DELETE FROM bib.audit_unsealed
         WHERE n IN (SELECT n FROM bib.audit_unsealed ORDER BY n LIMIT $1)
         RETURNING n, id, time, digest
     )
     SELECT id, time, digest FROM taken ORDER BY n",
);

static INSERT: Statement = Statement::new(
    Class::Insert,
    "audit_seal",
    "INSERT INTO bib.audit_seal (epoch, seq, entry_id, entry_time, digest, head)
     SELECT $1, seq, entry_id, entry_time, digest, head
     FROM unnest($2::bigint[], $3::uuid[], $4::timestamptz[], $5::bytea[], $6::bytea[])
         AS row(seq, entry_id, entry_time, digest, head)",
);

static SAVE_HEAD: Statement = Statement::new(
    Class::Insert,
    "audit_head",
    "INSERT INTO bib.audit_head (epoch, state, updated_at)
     VALUES ($1, $2, $3)
     ON CONFLICT (epoch) DO UPDATE SET state = excluded.state, updated_at = excluded.updated_at",
);

static LOAD_HEADS: Statement =
    Statement::new(Class::Select, "audit_head", "SELECT epoch, state FROM bib.audit_head ORDER BY epoch");

static INSERT_CHECKPOINT: Statement = Statement::new(
    Class::Insert,
    "audit_checkpoint",
    "INSERT INTO bib.audit_checkpoint (epoch, size, note, created_at)
     VALUES ($1, $2, $3, $4)
     ON CONFLICT (epoch, size) DO NOTHING",
);

static MAKE_BLOCK: Statement = Statement::new(Class::Call, "audit_seal", "SELECT bib.audit_make_block($1, $2)");

pub(super) static STATEMENTS: &[&Statement] =
    &[&TAKE, &INSERT, &SAVE_HEAD, &LOAD_HEADS, &INSERT_CHECKPOINT, &MAKE_BLOCK];

#[derive(FromRow)]
struct QueuedRow {
    id: Uuid,
    time: OffsetDateTime,
    digest: Vec<u8>,
}

/// Seals the next `limit` entries of the queue and stores the chain's new state. An empty answer means that the queue
/// was empty. `state` is only advanced in memory when the caller's commit succeeds: pass a clone.
///
/// # Errors
/// When the database refuses; then the transaction must be rolled back and the state reloaded.
pub async fn seal_next(tx: &mut Tx, state: &mut ChainState, limit: i64, now: Timestamp) -> Result<Vec<Seal>> {
    let rows: Vec<QueuedRow> = TAKE.on(tx).bind(limit).all().await?;
    if rows.is_empty() {
        return Ok(Vec::new());
    }
    let times: Vec<OffsetDateTime> = rows.iter().map(|row| row.time).collect();
    let queued = rows.iter().map(|row| Ok((row.id, hash("audit_unsealed", "digest", row.id, &row.digest)?)));
    let seals = state.seal(queued.collect::<Result<Vec<_>>>()?);
    let epoch = signed(state.epoch)?;
    let seqs = seals.iter().map(|seal| signed(seal.seq)).collect::<Result<Vec<_>>>()?;
    INSERT
        .on(tx)
        .bind(epoch)
        .bind(&seqs)
        .bind(seals.iter().map(|seal| seal.entry).collect::<Vec<_>>())
        .bind(&times)
        .bind(seals.iter().map(|seal| seal.digest.as_bytes().to_vec()).collect::<Vec<_>>())
        .bind(seals.iter().map(|seal| seal.head.as_bytes().to_vec()).collect::<Vec<_>>())
        .execute()
        .await?;
    let bytes = state.to_bytes().map_err(|e| Error::Refused { constraint: e.to_string() })?;
    SAVE_HEAD.on(tx).bind(epoch).bind(bytes).bind(now.to_offset()).execute_one().await?;
    Ok(seals)
}

/// The stored states of the chain, oldest epoch first.
///
/// # Errors
/// When a state is not one, or the database is gone.
pub async fn load_heads(session: &mut impl Session) -> Result<Vec<ChainState>> {
    let rows: Vec<(i64, Vec<u8>)> = LOAD_HEADS.on(session).all().await?;
    rows.into_iter()
        .map(|(epoch, bytes)| {
            let inconsistent = |reason: String| Error::Inconsistent {
                table: "audit_head",
                column: "state",
                row: epoch.to_string(),
                reason: reason.into(),
            };
            let state = ChainState::from_bytes(&bytes).map_err(|e| inconsistent(e.to_string()))?;
            if signed(state.epoch)? == epoch { Ok(state) } else { Err(inconsistent("names another epoch".into())) }
        })
        .collect()
}

/// Makes the partition that seal number `seq` of `epoch` falls in. True when there was none.
///
/// # Errors
/// When the database refuses.
pub async fn make_block(tx: &mut Tx, epoch: u64, seq: u64) -> Result<bool> {
    let (made,): (bool,) = MAKE_BLOCK.on(tx).bind(signed(epoch)?).bind(signed(seq)?).one().await?;
    Ok(made)
}

/// Keeps a signed checkpoint in the table (its other copy is in a file on another path).
///
/// # Errors
/// When the database refuses.
pub async fn insert_checkpoint(tx: &mut Tx, epoch: u64, size: u64, note: &str, now: Timestamp) -> Result<()> {
    INSERT_CHECKPOINT
        .on(tx)
        .bind(signed(epoch)?)
        .bind(signed(size)?)
        .bind(note)
        .bind(now.to_offset())
        .execute()
        .await
        .map(|_| ())
}
