//! Collection and scrubbing on the wire.

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
pub(super) fn scrub(scrub: ScrubUseCases, call: Call) -> BoxStream<'static, Result<ScrubResponse, Status>> {
    let (out, words) = mpsc::channel(16); // words of one step: the reader paces the walk
    let work = async move { scrub.scrub(&call, out).await };
    let told = |told: Told<Result<ScrubWord, ServiceError>, Result<(), ServiceError>>| async move {
        match told {
            Told::Report(word) => Some(word.map(response).map_err(Status::from)),
            Told::End(Ok(())) => None,
            Told::End(Err(error)) => Some(Err(Status::from(error))),
        }
    };
    working(words, Box::pin(work)).filter_map(told).boxed()
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
