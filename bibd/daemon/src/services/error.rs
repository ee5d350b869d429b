//! What a use case can answer instead of a result. `grpc/error.rs` turns it into a gRPC status.

use std::error::Error;
use std::time::Duration;

use crate::errors::ErrorCode;

/// A refusal or failure: a kind, a stable code, a sentence and a hint.
///
/// The sentence and the hint go to the caller as they are, so they name operands and never inner errors, paths of the
/// node's disk or SQL. What is inside [`ServiceError::Internal`] is logged and never sent.
#[derive(Debug, thiserror::Error)]
pub enum ServiceError {
    /// There is no such thing, or the caller may not know of it.
    #[error("there is no {what} `{name}`")]
    NotFound {
        /// The noun, such as `topic`.
        what: &'static str,
        /// The name that was asked for.
        name: String,
    },
    /// The caller is known and may not do this.
    #[error("{sentence}")]
    Denied {
        /// [`ErrorCode::DENIED`] or a more exact one.
        code: ErrorCode,
        /// Who may not do what, as a sentence without a full stop.
        sentence: String,
        /// What would help.
        hint: String,
    },
    /// The state of the thing does not allow it: it exists already, changed in between, or is in another state.
    #[error("{sentence}")]
    Conflict {
        /// [`ErrorCode::CONFLICT`], [`ErrorCode::ALREADY_EXISTS`], [`ErrorCode::LATEST_MOVED`] or another.
        code: ErrorCode,
        /// What is in the way.
        sentence: String,
        /// What would help.
        hint: String,
        /// Values for programs, such as both versions; they become the metadata of `google.rpc.ErrorInfo`.
        values: Vec<(&'static str, String)>,
    },
    /// A field of the request cannot be accepted.
    #[error("{field}: {reason}")]
    Invalid {
        /// The field, as in the `.proto`.
        field: String,
        /// What is wrong with it and what would be right.
        reason: String,
    },
    /// A part that is needed does not work at the moment; trying again later may help.
    #[error("{sentence}")]
    Unavailable {
        /// [`ErrorCode::DATABASE_UNAVAILABLE`] or another of 03xx.
        code: ErrorCode,
        /// What does not work.
        sentence: String,
        /// When to try again.
        retry_after: Duration,
    },
    /// Bytes or signatures are not what they should be.
    #[error("{sentence}")]
    Integrity {
        /// [`ErrorCode::INTEGRITY`] or a more exact one.
        code: ErrorCode,
        /// What is damaged.
        sentence: String,
        /// What would help.
        hint: String,
    },
    /// A quota or rate is used up.
    #[error("{sentence}")]
    Exhausted {
        /// [`ErrorCode::RATE_LIMITED`], [`ErrorCode::QUOTA_EXCEEDED`] or another.
        code: ErrorCode,
        /// What is used up.
        sentence: String,
        /// What would help.
        hint: String,
        /// When there will be more, where time alone helps.
        retry_after: Option<Duration>,
    },
    /// The caller is not known.
    #[error("{sentence}")]
    Unauthenticated {
        /// [`ErrorCode::UNAUTHENTICATED`] or a more exact one.
        code: ErrorCode,
        /// Why the caller is not known; never says whether a user, key or token exists.
        sentence: String,
        /// What would help.
        hint: String,
    },
    /// The call took longer than it may.
    #[error("the call took longer than {limit:?}")]
    TimedOut {
        /// How long it may take.
        limit: Duration,
    },
    /// Something broke that the caller cannot do anything about.
    #[error("something broke inside the daemon")]
    Internal(#[source] Box<dyn Error + Send + Sync>),
}

impl ServiceError {
    /// There is no such thing.
    pub fn not_found(what: &'static str, name: impl Into<String>) -> Self {
        Self::NotFound { what, name: name.into() }
    }

    /// The caller may not do this.
    pub fn denied(sentence: impl Into<String>, hint: impl Into<String>) -> Self {
        Self::Denied { code: ErrorCode::DENIED, sentence: sentence.into(), hint: hint.into() }
    }

    /// There is one already.
    pub fn already_exists(what: &'static str, name: &str) -> Self {
        Self::Conflict {
            code: ErrorCode::ALREADY_EXISTS,
            sentence: format!("there is a {what} `{name}` already"),
            hint: "choose another name, or use the one that is there".to_owned(),
            values: Vec::new(),
        }
    }

    /// The state of the thing does not allow it.
    pub fn conflict(code: ErrorCode, sentence: impl Into<String>, hint: impl Into<String>) -> Self {
        Self::Conflict { code, sentence: sentence.into(), hint: hint.into(), values: Vec::new() }
    }

    /// A field cannot be accepted.
    pub fn invalid(field: impl Into<String>, reason: impl Into<String>) -> Self {
        Self::Invalid { field: field.into(), reason: reason.into() }
    }

    /// A part does not work at the moment; try again in two seconds.
    pub fn unavailable(code: ErrorCode, sentence: impl Into<String>) -> Self {
        Self::Unavailable { code, sentence: sentence.into(), retry_after: Duration::from_secs(2) }
    }

    /// The caller is not logged in.
    pub fn unauthenticated(code: ErrorCode, sentence: impl Into<String>, hint: impl Into<String>) -> Self {
        Self::Unauthenticated { code, sentence: sentence.into(), hint: hint.into() }
    }

    /// Something broke. The source is logged where it stops travelling and never sent.
    pub fn internal(source: impl Into<Box<dyn Error + Send + Sync>>) -> Self {
        Self::Internal(source.into())
    }

    /// The stable code.
    #[must_use]
    pub fn code(&self) -> ErrorCode {
        match self {
            Self::NotFound { .. } => ErrorCode::NOT_FOUND,
            Self::Invalid { .. } => ErrorCode::INVALID,
            Self::TimedOut { .. } => ErrorCode::TIMED_OUT,
            Self::Internal(_) => ErrorCode::INTERNAL,
            Self::Denied { code, .. }
            | Self::Conflict { code, .. }
            | Self::Unavailable { code, .. }
            | Self::Integrity { code, .. }
            | Self::Exhausted { code, .. }
            | Self::Unauthenticated { code, .. } => *code,
        }
    }

    /// What would help the caller.
    #[must_use]
    pub fn hint(&self) -> String {
        match self {
            Self::NotFound { what, .. } => format!("`bib {} list` shows what you may see", noun(what)),
            Self::Denied { hint, .. }
            | Self::Conflict { hint, .. }
            | Self::Integrity { hint, .. }
            | Self::Exhausted { hint, .. }
            | Self::Unauthenticated { hint, .. } => hint.clone(),
            Self::Invalid { .. } => "correct the value and try again".to_owned(),
            Self::Unavailable { code: ErrorCode::OBJECTS_UNAVAILABLE, .. } => {
                "try again in a moment; an admin sees the cause with `bib admin storage status`".to_owned()
            }
            Self::Unavailable { .. } => "try again in a moment; `bib status` shows how the node is".to_owned(),
            Self::TimedOut { .. } => "try again; a longer limit is set in `grpc.request_timeout`".to_owned(),
            Self::Internal(_) => "the node's log has the cause under the request id".to_owned(),
        }
    }
}

/// The noun of the command line that lists this kind of thing.
fn noun(what: &str) -> &str {
    match what {
        "version" | "tag" | "file" => "dataset",
        "grant" => "topic",
        "key" => "user",
        "certificate" => "cert",
        "backup" => "admin backup",
        other => other,
    }
}
