//! Backups on the wire.

use bib_proto::v1::{self as pb, CreateBackupResponse};
use futures::StreamExt as _;
use futures::stream::BoxStream;
use tokio::sync::mpsc;
use tonic::Status;

use super::working::{Told, working};
use crate::actor::Call;
use crate::backup::Manifest;
use crate::backup::landing::Examined;
use crate::services::backup::{Accepted, BackupUseCases, Listed};

/// Progress, then the backup. Who goes away before the end ends the backup: nothing of it stays.
pub(super) fn create(backups: BackupUseCases, call: Call) -> BoxStream<'static, Result<CreateBackupResponse, Status>> {
    let (progress, reports) = mpsc::channel(4); // words about the same: the newest is enough
    let work = async move { backups.create(&call, progress).await };
    let told = |told| match told {
        Told::Report(bytes_done) => Ok(CreateBackupResponse { bytes_done, backup: None }),
        Told::End(Ok(manifest)) => {
            let manifest: Manifest = manifest;
            let bytes_done = manifest.base.plain_bytes + manifest.state.plain_bytes;
            let reachable = Some(manifest.created);
            let state = "complete".to_owned();
            let listed = Listed { id: manifest.id.clone(), manifest: Some(manifest), state, reachable, verified: None };
            Ok(CreateBackupResponse { bytes_done, backup: Some(backup(listed)) })
        }
        Told::End(Err(error)) => Err(Status::from(error)),
    };
    working(reports, Box::pin(work)).map(told).boxed()
}

/// A backup as it is listed.
pub(super) fn backup(listed: Listed) -> pb::Backup {
    let mut answer = pb::Backup { id: listed.id, state: listed.state, ..pb::Backup::default() };
    answer.reachable = listed.reachable.map(|time| time.to_string()).unwrap_or_default();
    answer.verified = listed.verified.map(|time| time.to_string()).unwrap_or_default();
    let Some(manifest) = listed.manifest else { return answer };
    answer.created = manifest.created.to_string();
    answer.finished = manifest.finished.to_string();
    answer.bytes = manifest.bytes();
    answer.plain_bytes = manifest.base.plain_bytes + manifest.state.plain_bytes;
    answer.epoch = manifest.epoch;
    answer.postgres = manifest.postgres;
    answer.system_identifier = manifest.system_identifier;
    answer.timeline = manifest.timeline;
    answer.start_lsn = manifest.start_lsn;
    answer.end_lsn = manifest.end_lsn;
    answer.audit = format!("{}/{}", manifest.audit.epoch, manifest.audit.seq);
    answer.audit_head = manifest.audit.head.to_string();
    answer.chunks = manifest.chunks.count;
    answer.chunk_bytes = manifest.chunks.bytes;
    answer.recipients = manifest.recipients;
    answer
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
