//! Collection, scrubbing and object storage on the wire.

use bib_proto::v1::{self as pb, CollectGarbageResponse, ScrubResponse};
use futures::StreamExt as _;
use futures::stream::BoxStream;
use tokio::sync::mpsc;
use tonic::Status;

use super::working::{Told, working};
use crate::actor::Call;
use crate::services::ServiceError;
use crate::services::collector::Collected;
use crate::services::scrub::{ScrubUseCases, ScrubWord};
use crate::services::tier::TierUseCases;
use crate::services::tier::moving::{Direction, Moved, TierState};
use crate::services::tier::opening::Accepted;

/// What a collection did, or would do.
pub(super) fn collected(collected: Collected) -> CollectGarbageResponse {
    let garbage = collected.garbage.into_iter().map(|one| pb::Garbage {
        chunk: one.chunk.to_string(),
        bytes: one.bytes,
        reason: one.reason.to_owned(),
    });
    CollectGarbageResponse {
        garbage: garbage.collect(),
        chunks: collected.chunks,
        bytes: collected.bytes,
        pages: collected.pages,
        trash_emptied_bytes: collected.trash_emptied_bytes,
    }
}

/// Progress and findings, then a last word.
pub(super) fn scrub(
    scrub: ScrubUseCases,
    call: Call,
    objects: bool,
) -> BoxStream<'static, Result<ScrubResponse, Status>> {
    let (out, words) = mpsc::channel(16); // words of one step: the reader paces the walk
    let work = async move { scrub.scrub(&call, objects, out).await };
    let told = |told: Told<Result<ScrubWord, ServiceError>, Result<(), ServiceError>>| async move {
        match told {
            Told::Report(word) => Some(word.map(response).map_err(Status::from)),
            Told::End(Ok(())) => None,
            Told::End(Err(error)) => Some(Err(Status::from(error))),
        }
    };
    working(words, Box::pin(work)).filter_map(told).boxed()
}

/// Which way.
pub(super) fn direction(to: &str) -> Result<Direction, ServiceError> {
    match to {
        "objects" => Ok(Direction::Out),
        "disk" => Ok(Direction::Back),
        _ => Err(ServiceError::invalid("to", "must be `objects` or `disk`")),
    }
}

/// Chunks on their way: how far it is, then a last word. Who goes away ends it; what was moved stays moved.
pub(super) fn move_chunks(
    tier: TierUseCases,
    call: Call,
    direction: Direction,
    dry_run: bool,
) -> BoxStream<'static, Result<pb::MoveChunksResponse, Status>> {
    let (out, words) = mpsc::channel(4); // each has all of those before
    let work = async move { tier.move_chunks(&call, direction, dry_run, out).await };
    let told = |told: Told<Result<Moved, ServiceError>, Result<(), ServiceError>>| async move {
        let response = |moved: Moved| pb::MoveChunksResponse {
            chunks: moved.chunks,
            bytes: moved.bytes,
            skipped: moved.skipped,
            finished: moved.finished,
        };
        match told {
            Told::Report(word) => Some(word.map(response).map_err(Status::from)),
            Told::End(Ok(())) => None,
            Told::End(Err(error)) => Some(Err(Status::from(error))),
        }
    };
    working(words, Box::pin(work)).filter_map(told).boxed()
}

/// How object storage is.
pub(super) fn status(state: TierState) -> pb::GetStorageStatusResponse {
    let (problem, hint) = state.problem.unwrap_or_default();
    pb::GetStorageStatusResponse {
        place: state.place,
        sealed: state.is_sealed,
        after_days: state.after_days.unsigned_abs(),
        local_chunks: state.tiers.local_chunks,
        local_bytes: state.tiers.local_bytes,
        remote_chunks: state.tiers.remote_chunks,
        objects: state.tiers.objects,
        object_bytes: state.tiers.object_bytes,
        cold_chunks: state.cold.0,
        cold_bytes: state.cold.1,
        problem,
        hint,
    }
}

/// What became of credentials.
pub(super) fn accepted(accepted: Accepted) -> pb::SetStorageCredentialsResponse {
    let (problem, hint) = accepted.problem.unwrap_or_default();
    pb::SetStorageCredentialsResponse { access_key_id: accepted.access_key_id, problem, hint }
}

fn response(word: ScrubWord) -> ScrubResponse {
    let mut response = ScrubResponse {
        chunks_done: word.chunks,
        bytes_done: word.bytes,
        finished: word.finished,
        ..ScrubResponse::default()
    };
    if let Some(finding) = word.finding {
        response.kind = finding.kind.to_owned();
        response.chunk = finding.chunk.to_string();
        response.explanation = finding.explanation;
    }
    response
}
