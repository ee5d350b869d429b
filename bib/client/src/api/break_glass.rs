//! Opening the node's database to a person for a while. For admins.

use std::time::Duration;

use bib_core::KeyFingerprint;
use bib_core::access::GlassAccess;
use bib_core::glass::{GLASS_NAMESPACE, GlassStatement};
use bib_proto::v1 as pb;
use bytes::Bytes;
use futures::stream::BoxStream;
use futures::{Stream, StreamExt as _};
use pb::break_glass_service_client::BreakGlassServiceClient;

use super::{call, rows, stream};
use crate::client::{Answers, Client};
use crate::error::{Error, ErrorKind, Result, code};
use crate::login::sign;

/// Opening the node's database to a person for a while. For admins.
#[derive(Debug, Clone)]
pub struct BreakGlass {
    pub(super) client: Client,
}

/// What is asked for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Wish {
    /// Why, in one line.
    pub reason: String,
    /// For how long.
    pub duration: Duration,
    /// What for.
    pub access: GlassAccess,
}

impl BreakGlass {
    /// What the configuration allows, and the grant that is open.
    pub async fn status(&self) -> Result<pb::GetBreakGlassStatusResponse> {
        call!(self, Yes, BreakGlassServiceClient, get_status, pb::GetBreakGlassStatusRequest {})
    }

    /// Asks for a grant and confirms it with a key that the node's configuration names, which the options' source must
    /// find.
    ///
    /// # Errors
    /// As the node says; [`code::NO_KEY`] when none of those keys is here; when the challenge is for another node.
    pub async fn enable(&self, wish: &Wish) -> Result<pb::BreakGlassGrant> {
        let message = pb::BreakGlassChallengeRequest {
            reason: wish.reason.clone(),
            duration_seconds: wish.duration.as_secs(),
            access: wish.access.to_string(),
        };
        let challenge: pb::BreakGlassChallengeResponse = call!(self, No, BreakGlassServiceClient, challenge, message)?;
        let node = challenge.peer_id.parse().map_err(|_| Error::bad_answer("the challenge names no node"))?;
        if self.client.presented().is_some_and(|presented| presented.peer_id != node) {
            return Err(Error::new(ErrorKind::Untrusted, format!("the challenge is for another node: {node}"))
                .with_code(code::UNTRUSTED)
                .with_hint("somebody may be in between: ask the node's administrator"));
        }
        let wanted: Vec<KeyFingerprint> =
            challenge.keys.iter().filter_map(|key| key.fingerprint.parse().ok()).collect();
        let key = self.client.find_key(&wanted).await?.ok_or_else(|| {
            let names: Vec<String> =
                challenge.keys.iter().map(|key| format!("{} ({})", key.fingerprint, key.name)).collect();
            Error::new(ErrorKind::Unauthenticated, "none of the keys that may confirm this is here")
                .with_code(code::NO_KEY)
                .with_hint(format!("name one with `--key`, or add it to your ssh-agent: {}", names.join(", ")))
        })?;
        let statement = GlassStatement {
            challenge: <[u8; 32]>::try_from(challenge.challenge.as_ref())
                .map_err(|_| Error::bad_answer("the challenge is not 32 bytes long"))?,
            node,
            user: challenge.user,
            reason: challenge.reason,
            duration_s: wish.duration.as_secs(),
            access: wish.access,
            key: key.public().fingerprint(),
            time: self.client.options().clock.now(),
            extra: Default::default(),
        };
        let statement = statement
            .to_bytes()
            .map_err(|error| Error::new(ErrorKind::Internal, "no statement can be made").with_source(error))?;
        let signature = sign(&key, GLASS_NAMESPACE, statement.clone()).await?;
        let message = pb::EnableBreakGlassRequest {
            challenge_id: challenge.challenge_id,
            statement: statement.into(),
            signature,
        };
        let answer: pb::EnableBreakGlassResponse = call!(self, No, BreakGlassServiceClient, enable, message)?;
        answer.grant.ok_or_else(|| Error::bad_answer("the node names no grant"))
    }

    /// One connection of PostgreSQL's protocol: what is said, for what is answered. Ends when either side does.
    pub async fn session(&self, said: impl Stream<Item = Bytes> + Send + 'static) -> Result<Answers<Bytes>> {
        let said = said.map(|data| pb::BreakGlassBytes { data });
        let open = |channel, request| async move { BreakGlassServiceClient::new(channel).open_session(request).await };
        let answers: Answers<pb::BreakGlassBytes> = self.client.both_ways(said, open).await?;
        Ok(answers.map(|answer| answer.map(|bytes| bytes.data)).boxed())
    }

    /// Ends the grant of this id, or the one that is open.
    pub async fn disable(&self, grant_id: &str) -> Result<pb::BreakGlassGrant> {
        let message = pb::DisableBreakGlassRequest { grant_id: grant_id.to_owned() };
        let answer: pb::DisableBreakGlassResponse = call!(self, No, BreakGlassServiceClient, disable, message)?;
        answer.grant.ok_or_else(|| Error::bad_answer("the node names no grant"))
    }

    /// Sessions, newest first; of one grant when it is named.
    #[must_use]
    pub fn sessions(&self, grant_id: &str) -> BoxStream<'static, Result<pb::BreakGlassSession>> {
        let grant_id = grant_id.to_owned();
        rows!(self, BreakGlassServiceClient, list_sessions, sessions, |page| pb::ListBreakGlassSessionsRequest {
            page: Some(page),
            grant_id: grant_id.clone(),
        })
    }

    /// The recording of a session, in pieces: `jsonl` or `cast`.
    pub async fn show(&self, session_id: &str, form: &str) -> Result<Answers<pb::ShowBreakGlassSessionResponse>> {
        let message = pb::ShowBreakGlassSessionRequest { session_id: session_id.to_owned(), form: form.to_owned() };
        stream!(self, BreakGlassServiceClient, show_session, message)
    }

    /// The report of a grant as JSON; of the newest that has ended when none is named.
    pub async fn report(&self, grant_id: &str) -> Result<String> {
        let message = pb::GetBreakGlassReportRequest { grant_id: grant_id.to_owned() };
        let answer: Result<pb::GetBreakGlassReportResponse> =
            call!(self, Yes, BreakGlassServiceClient, get_report, message);
        Ok(answer?.report_json)
    }

    /// Says what a review found; of the oldest grant that waits for one when none is named.
    pub async fn review(&self, grant_id: &str, note: &str) -> Result<pb::BreakGlassGrant> {
        let message = pb::ReviewBreakGlassRequest { grant_id: grant_id.to_owned(), note: note.to_owned() };
        let answer: pb::ReviewBreakGlassResponse = call!(self, No, BreakGlassServiceClient, review, message)?;
        answer.grant.ok_or_else(|| Error::bad_answer("the node names no grant"))
    }
}
