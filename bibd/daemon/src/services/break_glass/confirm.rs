//! Whether what was signed is what was asked for, by a key that may.

use bib_core::KeyFingerprint;
use bib_core::glass::{GLASS_NAMESPACE, GlassStatement};
use bib_identity::ssh;
use bibd_catalog::glass::Granted;
use subtle::ConstantTimeEq as _;
use uuid::Uuid;

use super::challenge::Waiting;
use super::{AllowedKey, Answer, BreakGlass, Settings, denied};
use crate::actor::Call;
use crate::errors::ErrorCode;
use crate::services::ServiceError;

impl BreakGlass {
    /// Everything that can be checked without the catalog.
    pub(super) fn confirm(&self, call: &Call, settings: &Settings, answer: Answer) -> Result<Granted, ServiceError> {
        let waiting = Uuid::try_parse(&answer.challenge_id).ok().and_then(|id| self.0.challenges.take(id));
        let waiting = waiting.filter(|waiting| waiting.user == call.actor.user).ok_or_else(|| {
            denied(
                ErrorCode::GLASS_CHALLENGE,
                "the challenge is unknown, expired or was answered before",
                "ask again: `bib admin break-glass enable`",
            )
        })?;
        let statement =
            GlassStatement::parse(&answer.statement).map_err(|error| statement_refused(&error.to_string()))?;
        if let Some(difference) = self.difference(call, &waiting, &statement) {
            return Err(statement_refused(difference));
        }
        let allowed = find_key(settings, &statement.key).ok_or_else(|| {
            denied(
                ErrorCode::GLASS_KEY,
                format!("the key {} may not confirm break-glass on this node", statement.key),
                "sign with a key of `database.break_glass.allowed_users`: `--key FILE`",
            )
        })?;
        ssh::verify(&allowed.key, GLASS_NAMESPACE, &answer.statement, &answer.signature).map_err(|error| {
            denied(ErrorCode::GLASS_SIGNATURE, error.to_string(), "sign again: `bib admin break-glass enable`")
        })?;
        let now = self.0.base.now();
        let seconds = i64::try_from(waiting.wish.duration.as_secs()).unwrap_or(i64::MAX);
        Ok(Granted {
            id: self.0.base.ids.uuid(),
            user: call.actor.user,
            user_name: call.actor.name.clone(),
            reason: waiting.wish.reason,
            access: waiting.wish.access,
            key_name: allowed.name.clone(),
            key_fingerprint: statement.key.to_string(),
            statement: answer.statement,
            signature: answer.signature,
            created_at: now,
            expires_at: now.plus_seconds(seconds),
        })
    }

    /// Where the statement is not about what was asked for.
    fn difference(&self, call: &Call, waiting: &Waiting, statement: &GlassStatement) -> Option<&'static str> {
        let wish = &waiting.wish;
        if !bool::from(waiting.bytes.ct_eq(&statement.challenge)) {
            return Some("it is about another challenge");
        }
        if statement.node != self.0.base.peer {
            return Some("it is for another node");
        }
        if statement.user != call.actor.name {
            return Some("it is for another user");
        }
        if statement.reason != wish.reason {
            return Some("it gives another reason");
        }
        if statement.duration_s != wish.duration.as_secs() {
            return Some("it is for another duration");
        }
        (statement.access != wish.access).then_some("it is for another access")
    }
}

fn find_key<'s>(settings: &'s Settings, key: &KeyFingerprint) -> Option<&'s AllowedKey> {
    settings.keys.iter().find(|allowed| allowed.key.fingerprint() == *key)
}

fn statement_refused(why: &str) -> ServiceError {
    denied(
        ErrorCode::GLASS_STATEMENT,
        format!("the signed statement is refused: {why}"),
        "sign again: `bib admin break-glass enable`",
    )
}
