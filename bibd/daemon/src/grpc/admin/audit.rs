//! The audit log on the wire: pages, the tail, verification and export.

use bib_core::Timestamp;
use bib_proto::v1::{self as pb, AuditEntry, VerifyAuditResponse};
use bibd_audit::Verdict;
use bibd_catalog::audit::{Filter, Listed, LoggedRow, Position};
use futures::StreamExt as _;
use futures::stream::{self, BoxStream};
use tokio::sync::{broadcast, mpsc};
use tonic::Status;
use uuid::Uuid;

use super::working::{Told, working};
use crate::actor::Call;
use crate::clock::Clock;
use crate::grpc::page::Page;
use crate::services::ServiceError;
use crate::services::audit::{AuditService, Verification};
use crate::services::export_board::SinkState;
use crate::services::journal::Sealed;

/// Entries from the past that a tail may begin with.
const MAX_TAIL: u32 = 1000;

/// Which entries a list asks for.
///
/// # Errors
/// When a filter or the cursor cannot be read.
pub(super) fn filter(wanted: &pb::ListAuditRequest, page: &Page) -> Result<Filter, ServiceError> {
    let time = |field: &str, text: &str| {
        text.parse::<Timestamp>().map_err(|error| ServiceError::invalid(field, error.to_string()))
    };
    let mut filter = Filter {
        actor: wanted.actor.clone(),
        action: wanted.action.clone(),
        target: wanted.target.clone(),
        descending: wanted.descending,
        limit: page.limit,
        after: page.after_as::<Cursor>()?.map(|cursor| cursor.0),
        ..Filter::default()
    };
    if !wanted.since.is_empty() {
        filter.since = time("since", &wanted.since)?;
    }
    if !wanted.until.is_empty() {
        filter.until = time("until", &wanted.until)?;
    }
    if !wanted.operation.is_empty() {
        let operation = wanted.operation.parse().map_err(|_| ServiceError::invalid("operation", "is not a UUID"))?;
        filter.operation = Some(operation);
    }
    Ok(filter)
}

/// Where a page ended, as its cursor says.
struct Cursor(Position);

impl std::str::FromStr for Cursor {
    type Err = ();

    fn from_str(text: &str) -> Result<Self, ()> {
        let (time, id) = text.split_once(' ').ok_or(())?;
        Ok(Self(Position { time: time.parse().map_err(|_| ())?, id: id.parse().map_err(|_| ())? }))
    }
}

/// The key of a listed entry, for the next page.
pub(super) fn key(entry: &Listed) -> String {
    format!("{} {}", Timestamp::from(entry.time), entry.id)
}

/// A listed entry on the wire.
pub(super) fn listed(entry: Listed) -> AuditEntry {
    AuditEntry {
        epoch: entry.epoch.unwrap_or_default().unsigned_abs(),
        seq: entry.seq.unwrap_or_default().unsigned_abs(),
        id: entry.id.to_string(),
        time: Timestamp::from(entry.time).to_string(),
        actor: entry.actor,
        via: entry.via,
        action: entry.action,
        target: entry.target,
        result: entry.result,
        operation: entry.operation.to_string(),
        job: entry.job.map(|job| job.to_string()).unwrap_or_default(),
        digest: entry.digest.map(hex::encode).unwrap_or_default(),
        head: entry.head.map(hex::encode).unwrap_or_default(),
        details_json: entry.details.map(text_of),
    }
}

fn logged(row: LoggedRow) -> AuditEntry {
    AuditEntry {
        epoch: row.epoch.unsigned_abs(),
        seq: row.seq.unsigned_abs(),
        id: row.entry_id.to_string(),
        time: row.time.map(|time| Timestamp::from(time).to_string()).unwrap_or_default(),
        actor: row.actor.unwrap_or_default(),
        via: row.via.unwrap_or_default(),
        action: row.action.unwrap_or_default(),
        target: row.target.unwrap_or_default(),
        result: row.result.unwrap_or_default(),
        operation: row.operation.as_ref().map(Uuid::to_string).unwrap_or_default(),
        job: row.job.as_ref().map(Uuid::to_string).unwrap_or_default(),
        digest: hex::encode(row.digest),
        head: hex::encode(row.head),
        details_json: row.details.map(text_of),
    }
}

/// Details are canonical JSON; what is not text any more was tampered with, and is shown as it can be.
fn text_of(bytes: Vec<u8>) -> String {
    String::from_utf8(bytes).unwrap_or_else(|error| String::from_utf8_lossy(error.as_bytes()).into_owned())
}

/// Sealed entries in the order of the log: the newest of the past, and then each as it is sealed.
///
/// # Errors
/// When the caller may not read the log, or the database is gone.
pub(super) async fn tail(
    audit: AuditService,
    call: Call,
    follow: broadcast::Receiver<Sealed>,
    count: u32,
) -> Result<BoxStream<'static, Result<AuditEntry, Status>>, ServiceError> {
    // `follow` listens already, so nothing falls between the past and what comes.
    let limit = count.clamp(1, MAX_TAIL);
    let newest = Filter { descending: true, limit, ..Filter::default() };
    let mut past: Vec<_> = audit.list(&call, &newest).await?.into_iter().map(listed).filter(|e| e.seq > 0).collect();
    past.sort_by_key(|entry| (entry.epoch, entry.seq));
    let told = past.last().map(|entry| (entry.epoch, entry.seq));
    if count == 0 {
        past.clear();
    }
    let tail = Tail { audit, call, follow, told, upto: told.unwrap_or_default() };
    let live = stream::unfold(tail, |mut tail| async {
        let entry = tail.next().await?;
        Some((entry.map_err(Status::from), tail))
    });
    Ok(stream::iter(past.into_iter().map(Ok)).chain(live).boxed())
}

/// Follows the log by its numbers: a listener that was too slow reads on where it was.
struct Tail {
    audit: AuditService,
    call: Call,
    follow: broadcast::Receiver<Sealed>,
    /// The last entry that was told.
    told: Option<(u64, u64)>,
    /// The last entry that is known to be sealed.
    upto: (u64, u64),
}

impl Tail {
    async fn next(&mut self) -> Option<Result<AuditEntry, ServiceError>> {
        loop {
            if let Some((epoch, seq)) = self.due() {
                self.told = Some((epoch, seq));
                match self.audit.sealed(&self.call, epoch, seq).await {
                    Ok(Some(row)) => return Some(Ok(logged(row))),
                    // A hole in the log: for verification to name, not for the tail.
                    Ok(None) => continue,
                    Err(error) => return Some(Err(error)),
                }
            }
            match self.follow.recv().await {
                Ok(sealed) => self.upto = self.upto.max((sealed.epoch, sealed.seq)),
                // The next one says how far the log has come meanwhile.
                Err(broadcast::error::RecvError::Lagged(_)) => {}
                Err(broadcast::error::RecvError::Closed) => return None,
            }
        }
    }

    fn due(&self) -> Option<(u64, u64)> {
        let (epoch, seq) = self.upto;
        match self.told {
            _ if seq == 0 => None,
            None => Some((epoch, seq)),
            Some(told) if told >= self.upto => None,
            Some((told, after)) if told == epoch => Some((epoch, after + 1)),
            Some(_) => Some((epoch, 1)),
        }
    }
}

/// Progress, then the verdict.
pub(super) fn verify(
    audit: AuditService,
    call: Call,
    clock: std::sync::Arc<dyn Clock>,
) -> BoxStream<'static, Result<VerifyAuditResponse, Status>> {
    let (progress, reports) = mpsc::channel(4); // a few words of progress: the reader paces the verification
    let begun = clock.monotonic();
    let work = async move { audit.verify(&call, progress).await };
    let told = move |told| match told {
        Told::Report((entries, total)) => Ok(VerifyAuditResponse { entries, total, ..VerifyAuditResponse::default() }),
        Told::End(Ok(verification)) => {
            let duration = clock.monotonic().saturating_duration_since(begun);
            Ok(verdict(verification, u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)))
        }
        Told::End(Err(error)) => Err(Status::from(error)),
    };
    working(reports, Box::pin(work)).map(told).boxed()
}

fn verdict(verification: Verification, duration_ms: u64) -> VerifyAuditResponse {
    let entries = verification.entries;
    let mut answer = VerifyAuditResponse {
        entries,
        total: entries,
        checkpoint: verification.checkpoint.clone(),
        duration_ms,
        ..VerifyAuditResponse::default()
    };
    let (verdict, explanation) = verification.words();
    (answer.verdict, answer.explanation) = (verdict.to_owned(), explanation);
    if let Verdict::Tampered(tamper) = verification.verdict {
        answer.first_bad_epoch = Some(tamper.first_bad.epoch);
        answer.first_bad = Some(tamper.first_bad.seq);
        answer.tamper_class = tamper.class.to_string();
    }
    answer
}

/// How a sink is.
pub(super) fn sink(state: SinkState) -> pb::AuditSink {
    let trouble = state.trouble().unwrap_or_default();
    pb::AuditSink {
        epoch: state.place.epoch,
        seq: state.place.seq,
        behind: state.behind,
        sent: state.sent,
        errors: state.errors,
        hint: state.failing.and_then(|failing| failing.hint).unwrap_or_default().to_owned(),
        trouble,
        name: state.name,
        kind: state.kind.to_owned(),
        target: state.target,
    }
}

/// The whole log, a buffer at a time.
pub(super) fn export(audit: AuditService, call: Call) -> BoxStream<'static, Result<pb::ExportAuditResponse, Status>> {
    let (out, buffers) = mpsc::channel(2); // buffers of 200 KiB: one on its way, one being filled
    let work = async move { audit.export(&call, out).await };
    let told = |told: Told<Vec<u8>, Result<(), ServiceError>>| async move {
        match told {
            Told::Report(data) => Some(Ok(pb::ExportAuditResponse { data: Vec::into(data) })),
            Told::End(Ok(())) => None,
            Told::End(Err(error)) => Some(Err(Status::from(error))),
        }
    };
    working(buffers, Box::pin(work)).filter_map(told).boxed()
}
