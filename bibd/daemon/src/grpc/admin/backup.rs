//! Backups on the wire.

use bib_proto::v1::{self as pb, CreateBackupResponse};
use futures::StreamExt as _;
use futures::stream::BoxStream;
use tokio::sync::mpsc;
use tonic::Status;

use super::working::{Told, working};
use crate::actor::Call;
use crate::backup::landing::Examined;
use crate::backup::{Kind, Made};
use crate::services::backup::{Accepted, BackupUseCases, Listed};
use crate::services::error::ServiceError;

/// Progress, then the backup. Who goes away before the end ends the backup: nothing of it stays.
pub(super) fn create(
    backups: BackupUseCases,
    call: Call,
    kind: Kind,
) -> BoxStream<'static, Result<CreateBackupResponse, Status>> {
    let (progress, reports) = mpsc::channel(4); // words about the same: the newest is enough
    let work = async move { backups.create(&call, kind, progress).await };
    let told = |told| match told {
        Told::Report(bytes_done) => Ok(CreateBackupResponse { bytes_done, backup: None }),
        Told::End(Ok(made)) => {
            let made: Made = made;
            let bytes_done = made.plain_bytes();
            Ok(CreateBackupResponse { bytes_done, backup: Some(backup(Listed::fresh(made))) })
        }
        Told::End(Err(error)) => Err(Status::from(error)),
    };
    working(reports, Box::pin(work)).map(told).boxed()
}

/// A backup as it is listed.
pub(super) fn backup(listed: Listed) -> pb::Backup {
    let mut answer = pb::Backup { id: listed.id, state: listed.state, ..pb::Backup::default() };
    listed.kind.name().clone_into(&mut answer.kind);
    answer.reachable = listed.reachable.map(|time| time.to_string()).unwrap_or_default();
    answer.verified = listed.verified.map(|time| time.to_string()).unwrap_or_default();
    let Some(made) = listed.made else { return answer };
    answer.created = made.created().to_string();
    answer.finished = made.finished().to_string();
    answer.bytes = made.bytes();
    answer.plain_bytes = made.plain_bytes();
    answer.epoch = made.epoch();
    answer.postgres = made.postgres();
    made.system_identifier().clone_into(&mut answer.system_identifier);
    answer.audit = format!("{}/{}", made.audit().epoch, made.audit().seq);
    answer.audit_head = made.audit().head.to_string();
    answer.chunks = made.chunks().count;
    answer.chunk_bytes = made.chunks().bytes;
    answer.recipients = made.recipients().to_vec();
    match made {
        Made::Base(manifest) => {
            answer.timeline = manifest.timeline;
            answer.start_lsn = manifest.start_lsn;
            answer.end_lsn = manifest.end_lsn;
        }
        Made::Dump(dump) => answer.rows = Some(dump.rows()),
    }
    answer
}

/// The kind that a request names; an older client names none and means a physical one.
pub(super) fn kind(request: &pb::CreateBackupRequest) -> Result<Kind, ServiceError> {
    let named = Kind::ALL.into_iter().find(|kind| kind.name() == request.kind);
    let asked = if request.kind.is_empty() { Some(Kind::Physical) } else { named };
    asked.ok_or_else(|| ServiceError::invalid("kind", "must be physical or logical"))
}

/// What was in a backup.
pub(super) fn examined(examined: Examined) -> pb::VerifyBackupResponse {
    let count = |(what, rows): (&str, u64)| pb::RowCount { what: what.to_owned(), rows };
    pb::VerifyBackupResponse {
        counts: examined.rows.into_iter().map(count).collect(),
        verdict: examined.verdict.to_owned(),
        explanation: examined.explanation,
    }
}

/// What became of credentials.
pub(super) fn accepted(accepted: Accepted) -> pb::SetBackupCredentialsResponse {
    let (problem, hint) = accepted.problem.unwrap_or_default();
    pb::SetBackupCredentialsResponse { access_key_id: accepted.access_key_id, problem, hint }
}
