//! BreakGlassService: opening the database to a person for a while. Each call asks the policy in its use case.

use std::time::Duration;

use bib_core::access::GlassAccess;
use bib_proto::v1::break_glass_service_server::BreakGlassService;
use bib_proto::v1::{self as pb, BreakGlassBytes, ShowBreakGlassSessionResponse};
use bibd_catalog::glass::{GlassGrant, GlassSession};
use futures::StreamExt as _;
use futures::stream::BoxStream;
use tonic::{Request, Response, Status};
use uuid::Uuid;

use super::call_of;
use super::page::Page;
use crate::services::ServiceError;
use crate::services::break_glass::challenge::Wish;
use crate::services::break_glass::{AllowedKey, Answer, BreakGlass, Form};

/// The handler.
#[derive(Debug)]
pub struct BreakGlassHandler {
    glass: BreakGlass,
}

impl BreakGlassHandler {
    /// Over the use cases.
    #[must_use]
    pub fn new(glass: BreakGlass) -> Self {
        Self { glass }
    }
}

type Streamed<T> = BoxStream<'static, Result<T, Status>>;

impl BreakGlassHandler {
    /// A grant that has not ended. A second that has begun counts: who has just asked for an hour has one.
    fn with_remaining(&self, found: GlassGrant) -> pb::BreakGlassGrant {
        let remaining_seconds = self.glass.remaining().as_millis().div_ceil(1_000).try_into().unwrap_or(u64::MAX);
        pb::BreakGlassGrant { remaining_seconds, ..grant(found) }
    }
}

#[tonic::async_trait]
impl BreakGlassService for BreakGlassHandler {
    async fn get_status(
        &self,
        request: Request<pb::GetBreakGlassStatusRequest>,
    ) -> Result<Response<pb::GetBreakGlassStatusResponse>, Status> {
        let call = call_of(&request)?;
        let status = self.glass.status(&call).await?;
        let mut answer = pb::GetBreakGlassStatusResponse {
            unreviewed: status.unreviewed.iter().map(Uuid::to_string).collect(),
            ..Default::default()
        };
        if let Some(settings) = status.settings {
            answer.enabled = true;
            answer.max_duration_seconds = settings.max_duration.as_secs();
            answer.access = settings.access.to_string();
            answer.audit_level = settings.audit_level.as_str().to_owned();
            answer.require_review = settings.require_review;
            answer.keys = settings.keys.iter().map(key).collect();
        }
        answer.grant = status.grant.map(|found| self.with_remaining(found));
        Ok(Response::new(answer))
    }

    async fn challenge(
        &self,
        request: Request<pb::BreakGlassChallengeRequest>,
    ) -> Result<Response<pb::BreakGlassChallengeResponse>, Status> {
        let call = call_of(&request)?;
        let asked = request.into_inner();
        let access = asked.access.parse::<GlassAccess>().map_err(|e| ServiceError::invalid("access", e.to_string()))?;
        let duration = Duration::from_secs(asked.duration_seconds);
        let (challenge, wish, settings) =
            self.glass.challenge(&call, Wish { reason: asked.reason, duration, access }).await?;
        Ok(Response::new(pb::BreakGlassChallengeResponse {
            challenge_id: challenge.id.to_string(),
            challenge: challenge.bytes.to_vec().into(),
            peer_id: self.glass.peer().to_string(),
            user: call.actor.name,
            expires_at: challenge.expires_at.to_string(),
            keys: settings.keys.iter().map(key).collect(),
            reason: wish.reason,
        }))
    }

    async fn enable(
        &self,
        request: Request<pb::EnableBreakGlassRequest>,
    ) -> Result<Response<pb::EnableBreakGlassResponse>, Status> {
        let call = call_of(&request)?;
        let asked = request.into_inner();
        let (challenge_id, signature) = (asked.challenge_id, asked.signature);
        let answer = Answer { challenge_id, statement: asked.statement.to_vec(), signature };
        let granted = self.glass.enable(&call, answer).await?;
        Ok(Response::new(pb::EnableBreakGlassResponse { grant: Some(self.with_remaining(granted)) }))
    }

    type OpenSessionStream = Streamed<BreakGlassBytes>;

    async fn open_session(
        &self,
        request: Request<tonic::Streaming<BreakGlassBytes>>,
    ) -> Result<Response<Self::OpenSessionStream>, Status> {
        let call = call_of(&request)?;
        // A stream that breaks ends like one that is over: nothing more comes from the person.
        let said = request.into_inner().take_while(|said| futures::future::ready(said.is_ok()));
        let said = said.filter_map(|said| futures::future::ready(said.ok().map(|bytes| bytes.data)));
        let answers = self.glass.connect(&call, said.boxed())?;
        Ok(Response::new(answers.map(|data| Ok(BreakGlassBytes { data })).boxed()))
    }

    async fn disable(
        &self,
        request: Request<pb::DisableBreakGlassRequest>,
    ) -> Result<Response<pb::DisableBreakGlassResponse>, Status> {
        let call = call_of(&request)?;
        let ended = self.glass.disable(&call, &request.into_inner().grant_id).await?;
        Ok(Response::new(pb::DisableBreakGlassResponse { grant: Some(grant(ended)) }))
    }

    async fn list_sessions(
        &self,
        request: Request<pb::ListBreakGlassSessionsRequest>,
    ) -> Result<Response<pb::ListBreakGlassSessionsResponse>, Status> {
        let call = call_of(&request)?;
        let asked = request.into_inner();
        let page = Page::of(asked.page)?;
        let rows = self.glass.sessions(&call, &asked.grant_id, page.after_as()?, page.limit).await?;
        let info = page.info(rows.len(), rows.last().map(|row| row.id.to_string()));
        let sessions = rows.into_iter().map(session).collect();
        Ok(Response::new(pb::ListBreakGlassSessionsResponse { sessions, page: Some(info) }))
    }

    type ShowSessionStream = Streamed<ShowBreakGlassSessionResponse>;

    async fn show_session(
        &self,
        request: Request<pb::ShowBreakGlassSessionRequest>,
    ) -> Result<Response<Self::ShowSessionStream>, Status> {
        let call = call_of(&request)?;
        let asked = request.into_inner();
        let form = match asked.form.as_str() {
            "" | "jsonl" => Form::Lines,
            "cast" => Form::Cast,
            _ => return Err(ServiceError::invalid("form", "`jsonl` or `cast` is needed").into()),
        };
        let pieces = self.glass.show(&call, &asked.session_id, form).await?;
        let told = |piece: std::io::Result<bytes::Bytes>| match piece {
            Ok(data) => Ok(ShowBreakGlassSessionResponse { data }),
            Err(error) => Err(Status::from(ServiceError::internal(error))),
        };
        Ok(Response::new(pieces.map(told).boxed()))
    }

    async fn get_report(
        &self,
        request: Request<pb::GetBreakGlassReportRequest>,
    ) -> Result<Response<pb::GetBreakGlassReportResponse>, Status> {
        let call = call_of(&request)?;
        let report_json = self.glass.report(&call, &request.into_inner().grant_id).await?;
        Ok(Response::new(pb::GetBreakGlassReportResponse { report_json }))
    }

    async fn review(
        &self,
        request: Request<pb::ReviewBreakGlassRequest>,
    ) -> Result<Response<pb::ReviewBreakGlassResponse>, Status> {
        let call = call_of(&request)?;
        let asked = request.into_inner();
        let reviewed = self.glass.review(&call, &asked.grant_id, &asked.note).await?;
        Ok(Response::new(pb::ReviewBreakGlassResponse { grant: Some(grant(reviewed)) }))
    }
}

fn key(allowed: &AllowedKey) -> pb::BreakGlassKey {
    pb::BreakGlassKey { name: allowed.name.clone(), fingerprint: allowed.key.fingerprint().to_string() }
}

fn grant(grant: GlassGrant) -> pb::BreakGlassGrant {
    let granted = grant.granted;
    pb::BreakGlassGrant {
        grant_id: granted.id.to_string(),
        state: grant.state.as_str().to_owned(),
        user: granted.user_name,
        reason: granted.reason,
        access: granted.access.to_string(),
        key_name: granted.key_name,
        key_fingerprint: granted.key_fingerprint,
        created_at: granted.created_at.to_string(),
        expires_at: granted.expires_at.to_string(),
        ended_at: grant.ended_at.map(|at| at.to_string()).unwrap_or_default(),
        end_reason: grant.end_reason,
        sessions: u32::try_from(grant.sessions).unwrap_or(u32::MAX),
        statements: grant.statements,
        reviewed_at: grant.reviewed_at.map(|at| at.to_string()).unwrap_or_default(),
        reviewed_by: grant.reviewed_by,
        review: grant.review,
        remaining_seconds: 0,
    }
}

fn session(session: GlassSession) -> pb::BreakGlassSession {
    pb::BreakGlassSession {
        session_id: session.id.to_string(),
        grant_id: session.grant.to_string(),
        user: session.user_name,
        application: session.application,
        started_at: session.started_at.to_string(),
        ended_at: session.ended_at.map(|at| at.to_string()).unwrap_or_default(),
        end_reason: session.end_reason,
        statements: session.counts.statements,
        bytes_in: session.counts.bytes_in,
        bytes_out: session.counts.bytes_out,
        recording_sha256: session.recording.map(|hash| hash.to_string()).unwrap_or_default(),
    }
}
