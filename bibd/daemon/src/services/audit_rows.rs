//! Rows of the log from the catalog's types to those of `bibd-audit`: for the verifier, exports and sinks alike.

use bibd_audit::export::{Bytes, DetailLine, EntryLine, SealLine, SealedLine};
use bibd_audit::verify::{DetailRow, EntryRow, Row, SealRow};
use bibd_catalog::audit::{LoggedRow, UnsealedRow};

pub(super) fn as_row(row: &LoggedRow) -> Row<'_> {
    Row {
        seal: SealRow {
            epoch: row.epoch.unsigned_abs(),
            seq: row.seq.unsigned_abs(),
            entry: row.entry_id,
            digest: &row.digest,
            head: &row.head,
        },
        entry: as_entry(row),
        detail: row.salt.as_deref().zip(row.details.as_deref()).map(|(salt, details)| DetailRow { salt, details }),
    }
}

/// The columns of an entry are there together or not at all.
fn as_entry(row: &LoggedRow) -> Option<EntryRow<'_>> {
    Some(EntryRow {
        id: row.id?,
        time: row.time?.into(),
        node: row.node.as_deref()?,
        actor: row.actor.as_deref()?,
        via: row.via.as_deref()?,
        action: row.action.as_deref()?,
        target: row.target.as_deref()?,
        result: row.result.as_deref()?,
        operation: row.operation?,
        job: row.job,
        body: row.body.as_deref()?,
    })
}

pub(super) fn as_unsealed(row: &UnsealedRow) -> EntryRow<'_> {
    EntryRow {
        id: row.id,
        time: row.time.into(),
        node: &row.node,
        actor: &row.actor,
        via: &row.via,
        action: &row.action,
        target: &row.target,
        result: &row.result,
        operation: row.operation,
        job: row.job,
        body: &row.body,
    }
}

pub(super) fn owned(entry: &EntryRow<'_>) -> EntryLine {
    EntryLine {
        id: entry.id,
        time: entry.time,
        node: entry.node.to_owned(),
        actor: entry.actor.to_owned(),
        via: entry.via.to_owned(),
        action: entry.action.to_owned(),
        target: entry.target.to_owned(),
        result: entry.result.to_owned(),
        operation: entry.operation,
        job: entry.job,
        body: Bytes(entry.body.to_vec()),
    }
}

pub(super) fn as_sealed_line(row: LoggedRow) -> SealedLine {
    SealedLine {
        entry: as_entry(&row).as_ref().map(owned),
        seal: SealLine {
            epoch: row.epoch.unsigned_abs(),
            seq: row.seq.unsigned_abs(),
            entry: row.entry_id,
            digest: row.digest,
            head: row.head,
        },
        detail: row.salt.zip(row.details).map(|(salt, details)| DetailLine { salt, details: Bytes(details) }),
    }
}
