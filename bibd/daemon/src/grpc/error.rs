//! The one place where a [`ServiceError`] becomes a gRPC status with `google.rpc` details.
//!
//! Every status carries `ErrorInfo{reason: "BIBnnnn", domain: "bib"}` and a `Help` link text with the hint. The inner
//! error of [`ServiceError::Internal`] is logged here, once, inside the call's span, and never sent.

use std::collections::HashMap;
use std::error::Error;
use std::time::Duration;

use tonic::{Code, Status};
use tonic_types::{ErrorDetails, StatusExt as _};

use crate::errors::ErrorCode;
use crate::services::ServiceError;

/// The `domain` of every `ErrorInfo` of ours.
pub const DOMAIN: &str = "bib";

/// Where the page of a code is, relative to the repository.
fn page(code: ErrorCode) -> String {
    format!("docs/errors/{code}.md")
}

/// A status with code, sentence and hint.
#[must_use]
pub fn status(grpc: Code, code: ErrorCode, sentence: &str, hint: &str) -> Status {
    Status::with_error_details(grpc, sentence, details(code, hint, HashMap::new()))
}

fn details(code: ErrorCode, hint: &str, metadata: HashMap<String, String>) -> ErrorDetails {
    let mut details = ErrorDetails::with_error_info(code.to_string(), DOMAIN, metadata);
    if !hint.is_empty() {
        details.add_help_link(hint, page(code));
    }
    details
}

impl From<ServiceError> for Status {
    fn from(error: ServiceError) -> Self {
        let (code, hint) = (error.code(), error.hint());
        let mut details = details(code, &hint, HashMap::new());
        let grpc = match &error {
            ServiceError::NotFound { what, name } => {
                details.set_resource_info(*what, name.as_str(), "", "");
                Code::NotFound
            }
            ServiceError::Denied { .. } => Code::PermissionDenied,
            ServiceError::Conflict { values, .. } => {
                let metadata: HashMap<String, String> =
                    values.iter().map(|(key, value)| ((*key).to_owned(), value.clone())).collect();
                details.set_error_info(code.to_string(), DOMAIN, metadata);
                match code {
                    ErrorCode::ALREADY_EXISTS => Code::AlreadyExists,
                    ErrorCode::CONFLICT | ErrorCode::LATEST_MOVED | ErrorCode::CHUNKS_MISSING => Code::Aborted,
                    _ => Code::FailedPrecondition,
                }
            }
            ServiceError::Invalid { field, reason } => {
                details.add_bad_request_violation(field, reason);
                Code::InvalidArgument
            }
            ServiceError::Unavailable { retry_after, .. } => {
                tracing::warn!(error.code = %code, "{error}");
                details.set_retry_info(Some(*retry_after));
                Code::Unavailable
            }
            ServiceError::Integrity { .. } => {
                tracing::error!(error.code = %code, "{error}");
                Code::DataLoss
            }
            ServiceError::Exhausted { retry_after, .. } => {
                if let Some(after) = retry_after {
                    details.set_retry_info(Some((*after).max(Duration::from_millis(1))));
                }
                Code::ResourceExhausted
            }
            ServiceError::Unauthenticated { .. } => Code::Unauthenticated,
            ServiceError::TimedOut { .. } => Code::DeadlineExceeded,
            ServiceError::Internal(source) => {
                tracing::error!(error.code = %code, error.cause = %chain(source.as_ref()), "a call failed inside the daemon");
                Code::Internal
            }
        };
        Self::with_error_details(grpc, error.to_string(), details)
    }
}

/// An error and its sources in one line.
pub(crate) fn chain(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(inner) = source {
        let cause = inner.to_string();
        // Some errors say their cause themselves.
        if !text.ends_with(&cause) {
            text.push_str(": ");
            text.push_str(&cause);
        }
        source = inner.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_kind_carries_its_code_and_hint() {
        let cases: Vec<(ServiceError, Code, &str)> = vec![
            (ServiceError::not_found("topic", "a/b"), Code::NotFound, "BIB0002"),
            (ServiceError::denied("ada may not write into a/b", "ask its owner"), Code::PermissionDenied, "BIB0110"),
            (ServiceError::already_exists("topic", "a"), Code::AlreadyExists, "BIB0009"),
            (ServiceError::conflict(ErrorCode::LATEST_MOVED, "latest moved", "--rebase"), Code::Aborted, "BIB0200"),
            (ServiceError::invalid("name", "is empty"), Code::InvalidArgument, "BIB0003"),
            (ServiceError::internal("boom"), Code::Internal, "BIB0001"),
        ];
        for (error, grpc, code) in cases {
            let hint = error.hint();
            let status = Status::from(error);
            assert_eq!(status.code(), grpc);
            let info = status.get_details_error_info().unwrap();
            assert_eq!((info.reason.as_str(), info.domain.as_str()), (code, DOMAIN));
            assert_eq!(status.get_details_help().unwrap().links[0].description, hint);
        }
    }

    #[test]
    fn what_broke_inside_is_not_sent() {
        let status = Status::from(ServiceError::internal("password=hunter2 at /var/lib/bibd"));
        let text = format!("{status:?}{}", String::from_utf8_lossy(status.details()));
        assert!(!text.contains("hunter2") && !text.contains("/var/lib"), "{text}");
    }

    #[test]
    fn an_exhausted_rate_says_when_to_try_again() {
        let status = Status::from(ServiceError::Exhausted {
            code: ErrorCode::RATE_LIMITED,
            sentence: "too many requests".to_owned(),
            hint: "wait".to_owned(),
            retry_after: Some(Duration::from_secs(3)),
        });
        assert_eq!(status.get_details_retry_info().unwrap().retry_delay, Some(Duration::from_secs(3)));
    }
}
