//! What can go wrong, as one type that a program can match on and a person can read.
//!
//! This is the only file of the clients that looks into a [`tonic::Status`]. An error knows its [`ErrorKind`] (what a
//! program does about it, and the exit code of `bib`), a sentence, and where there is one the stable code `BIBnnnn`
//! and a hint. Errors of the daemon carry these as `google.rpc` details; errors of this crate carry them by themselves.

use std::collections::BTreeMap;
use std::error::Error as StdError;
use std::fmt;
use std::path::Path;
use std::time::Duration;

use tonic::{Code, Status};
use tonic_types::StatusExt as _;

/// The result of nearly everything here.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// The `domain` of the daemon's error details.
const DOMAIN: &str = "bib";
/// What tonic's own deadline says when it runs out.
const TIMEOUT_EXPIRED: &str = "Timeout expired";

/// Stable codes of errors that this crate finds by itself, with the title of each page in `docs/errors/`.
pub const CODES: &[(&str, &str)] = &[
    (code::NO_NODE, "no node was found on this machine"),
    (code::NOT_REACHED, "the node cannot be reached"),
    (code::UNTRUSTED, "the node is not the one that is trusted"),
    (code::NO_KEY, "there is no key to log in or to sign with"),
    (code::LOCAL_FILE, "a local file or folder cannot be used"),
    (code::UNNAMEABLE, "the folder holds names that a dataset cannot hold"),
    (code::CHANGED_WHILE_READ, "a file changed while it was read"),
    (code::DAMAGED, "what the node sent is not what was published"),
    (code::TARGET_IN_USE, "the target folder is not empty"),
    (code::TWINS, "this file system cannot hold two names of the dataset side by side"),
    (code::BAD_ANSWER, "the node's answer makes no sense"),
    (code::LICENSE_NEEDED, "a version needs a licence"),
];

/// The codes by name.
pub mod code {
    /// No node was found on this machine.
    pub const NO_NODE: &str = "BIB0500";
    /// The node cannot be reached.
    pub const NOT_REACHED: &str = "BIB0501";
    /// The node is not the one that is trusted.
    pub const UNTRUSTED: &str = "BIB0502";
    /// There is no key to log in or to sign with.
    pub const NO_KEY: &str = "BIB0503";
    /// A local file or folder cannot be used.
    pub const LOCAL_FILE: &str = "BIB0504";
    /// The folder holds names that a dataset cannot hold.
    pub const UNNAMEABLE: &str = "BIB0505";
    /// A file changed while it was read.
    pub const CHANGED_WHILE_READ: &str = "BIB0506";
    /// What the node sent is not what was published.
    pub const DAMAGED: &str = "BIB0507";
    /// The target folder is not empty.
    pub const TARGET_IN_USE: &str = "BIB0508";
    /// This file system cannot hold two names of the dataset side by side.
    pub const TWINS: &str = "BIB0509";
    /// The node's answer makes no sense.
    pub const BAD_ANSWER: &str = "BIB0510";
    /// A version needs a licence.
    pub const LICENSE_NEEDED: &str = "BIB0511";
    /// The daemon's code for "somebody published in between".
    pub const LATEST_MOVED: &str = "BIB0200";
    /// The daemon's code for "there is one of that name already".
    pub const ALREADY_THERE: &str = "BIB0009";
}

/// What a program can do about an error.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum ErrorKind {
    /// The request cannot be accepted as it is; asking again the same way is of no use.
    Invalid,
    /// There is no such thing, or the caller may not see it.
    NotFound,
    /// The caller may not do this.
    Denied,
    /// The caller is not logged in, or the log-in has ended.
    Unauthenticated,
    /// The node, or a part of it that is needed, does not answer at the moment.
    Unavailable,
    /// The call took longer than it may.
    TimedOut,
    /// A quota or a rate is used up.
    Exhausted,
    /// Somebody else changed the thing, or it exists already.
    Conflict,
    /// Bytes or signatures are not what they should be.
    Integrity,
    /// Whoever answers is not the node that is trusted.
    Untrusted,
    /// A local file, folder or system call failed.
    Local,
    /// The caller stopped it.
    Cancelled,
    /// The node does not know the call: it is older than this program.
    Unsupported,
    /// Something broke inside the daemon or here.
    Internal,
}

impl ErrorKind {
    /// The exit code that `bib` documents for this kind: 1 failed, 2 usage, 3 not found, 4 denied, 5 unavailable,
    /// 6 conflict, 7 integrity.
    #[must_use]
    pub const fn exit_code(self) -> u8 {
        match self {
            Self::Invalid => 2,
            Self::NotFound => 3,
            Self::Denied | Self::Unauthenticated | Self::Untrusted => 4,
            Self::Unavailable | Self::TimedOut | Self::Exhausted => 5,
            Self::Conflict => 6,
            Self::Integrity => 7,
            Self::Local | Self::Cancelled | Self::Unsupported | Self::Internal => 1,
        }
    }
}

/// An error of this crate.
///
/// ```
/// use bib_client::{Error, ErrorKind};
///
/// let error = Error::new(ErrorKind::Conflict, "somebody published in between").with_hint("use `--rebase`");
/// assert_eq!(error.kind().exit_code(), 6);
/// assert_eq!(error.hint(), Some("use `--rebase`"));
/// ```
pub struct Error(Box<Inner>);

struct Inner {
    kind: ErrorKind,
    code: Option<String>,
    message: String,
    hint: Option<String>,
    details: BTreeMap<String, String>,
    request_id: Option<String>,
    retry_after: Option<Duration>,
    transport: bool,
    source: Option<Box<dyn StdError + Send + Sync>>,
}

impl Error {
    /// An error of this kind with a sentence: lower case, present tense, no full stop.
    pub fn new(kind: ErrorKind, message: impl Into<String>) -> Self {
        Self(Box::new(Inner {
            kind,
            code: None,
            message: message.into(),
            hint: None,
            details: BTreeMap::new(),
            request_id: None,
            retry_after: None,
            transport: false,
            source: None,
        }))
    }

    /// Adds the stable code.
    #[must_use]
    pub fn with_code(mut self, code: impl Into<String>) -> Self {
        self.0.code = Some(code.into());
        self
    }

    /// Adds what would help.
    #[must_use]
    pub fn with_hint(mut self, hint: impl Into<String>) -> Self {
        self.0.hint = Some(hint.into());
        self
    }

    /// Adds a named value, such as the version that is the latest now.
    #[must_use]
    pub fn with_detail(mut self, name: impl Into<String>, value: impl Into<String>) -> Self {
        self.0.details.insert(name.into(), value.into());
        self
    }

    /// Adds the cause.
    #[must_use]
    pub fn with_source(mut self, source: impl Into<Box<dyn StdError + Send + Sync>>) -> Self {
        self.0.source = Some(source.into());
        self
    }

    /// A local file or folder that cannot be used: "open `path`".
    pub(crate) fn local(action: &str, path: &Path, source: impl Into<std::io::Error>) -> Self {
        Self::new(ErrorKind::Local, format!("{action} `{}`", path.display()))
            .with_code(code::LOCAL_FILE)
            .with_source(source.into())
    }

    /// What the node sent cannot be right.
    pub(crate) fn bad_answer(message: impl Into<String>) -> Self {
        Self::new(ErrorKind::Internal, message)
            .with_code(code::BAD_ANSWER)
            .with_hint("compare the versions of `bib` and of the node: `bib version`")
    }

    /// Bytes that do not hash to what names them.
    pub(crate) fn damaged(message: impl Into<String>) -> Self {
        Self::new(ErrorKind::Integrity, message)
            .with_code(code::DAMAGED)
            .with_hint("ask the node's admin to run `bib admin storage scrub`; nothing wrong was kept here")
    }

    /// Marks an error of the connection, not of the call.
    pub(crate) fn into_transport(mut self) -> Self {
        self.0.transport = true;
        self
    }

    /// A background task of this crate died: a bug, told as one.
    pub(crate) fn task(source: tokio::task::JoinError) -> Self {
        Self::new(ErrorKind::Internal, "a task of the client died").with_source(source)
    }

    /// What a program can do about it.
    #[must_use]
    pub fn kind(&self) -> ErrorKind {
        self.0.kind
    }

    /// The stable code, such as `BIB0200`; every one has a page in `docs/errors/`.
    #[must_use]
    pub fn code(&self) -> Option<&str> {
        self.0.code.as_deref()
    }

    /// The sentence, without its causes.
    #[must_use]
    pub fn message(&self) -> &str {
        &self.0.message
    }

    /// What would help.
    #[must_use]
    pub fn hint(&self) -> Option<&str> {
        self.0.hint.as_deref()
    }

    /// A named value that came with the error, such as `latest` and `parent` of a conflict.
    #[must_use]
    pub fn detail(&self, name: &str) -> Option<&str> {
        self.0.details.get(name).map(String::as_str)
    }

    /// All named values.
    #[must_use]
    pub fn details(&self) -> &BTreeMap<String, String> {
        &self.0.details
    }

    /// The request id under which the node's log has more.
    #[must_use]
    pub fn request_id(&self) -> Option<&str> {
        self.0.request_id.as_deref()
    }

    /// When trying again makes sense, where the node said so.
    #[must_use]
    pub fn retry_after(&self) -> Option<Duration> {
        self.0.retry_after
    }

    /// Whether the connection failed, not the call: nobody answered, or the connection broke.
    #[must_use]
    pub fn is_transport(&self) -> bool {
        self.0.transport
    }

    /// Whether the latest version moved while a publish was under way.
    #[must_use]
    pub fn is_latest_moved(&self) -> bool {
        self.code() == Some(code::LATEST_MOVED)
    }

    /// The sentence and its causes in one line.
    #[must_use]
    pub fn chain(&self) -> String {
        let mut text = self.0.message.clone();
        let mut source = self.source();
        while let Some(inner) = source {
            let part = inner.to_string();
            if !text.ends_with(&part) {
                text.push_str(": ");
                text.push_str(&part);
            }
            source = inner.source();
        }
        text
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0.message)
    }
}

impl fmt::Debug for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Error")
            .field("kind", &self.0.kind)
            .field("code", &self.0.code)
            .field("message", &self.chain())
            .field("hint", &self.0.hint)
            .field("details", &self.0.details)
            .finish_non_exhaustive()
    }
}

impl StdError for Error {
    fn source(&self) -> Option<&(dyn StdError + 'static)> {
        self.0.source.as_ref().map(|source| &**source as &(dyn StdError + 'static))
    }
}

impl From<Status> for Error {
    fn from(status: Status) -> Self {
        let status = match connect_failure(status) {
            Ok(error) => return error,
            Err(status) => status,
        };
        let info = status.get_details_error_info().filter(|info| info.domain == DOMAIN);
        let code = info.as_ref().map(|info| info.reason.clone());
        // A status without our details that has a source was made on this side: the connection broke.
        let transport = info.is_none() && status.source().is_some();
        // tonic says so when its own deadline runs out, on some ways without a source.
        if info.is_none() && status.code() == Code::Cancelled && status.message() == TIMEOUT_EXPIRED {
            let error = Self::new(ErrorKind::TimedOut, "the node did not answer in the time that a call may take")
                .with_hint("allow more with `--timeout`; `bib status` shows whether the node is up");
            return if transport { error.into_transport() } else { error };
        }
        if transport && refuses_certificate(&status) {
            return Self::new(ErrorKind::Unauthenticated, "the node refuses the certificate of this log-in")
                .with_hint("it was revoked or has run out: log in again with `bib login`, or ask the node's admin");
        }
        let mut error = Self::new(kind_of(status.code(), transport), sentence(&status, transport));
        error.0.code = code;
        error.0.transport = transport;
        error.0.details = info.map(|info| info.metadata.into_iter().collect()).unwrap_or_default();
        error.0.hint = status
            .get_details_help()
            .and_then(|help| help.links.into_iter().next())
            .map(|link| link.description)
            .filter(|hint| !hint.is_empty());
        error.0.retry_after = status.get_details_retry_info().and_then(|info| info.retry_delay);
        error.0.request_id =
            status.metadata().get(crate::connect::REQUEST_ID).and_then(|id| id.to_str().ok()).map(str::to_owned);
        if error.0.kind == ErrorKind::Unsupported {
            error
                .0
                .hint
                .get_or_insert_with(|| "compare the versions of `bib` and of the node: `bib version`".to_owned());
        }
        if transport {
            error.0.hint.get_or_insert_with(|| "`bib status` shows whether the node is up".to_owned());
            error.0.source = root_cause(&status).map(Into::into);
        }
        error
    }
}

/// Whether the node ended the connection because of the certificate that was shown: in TLS 1.3 this comes after the
/// handshake. HTTP/2 keeps only the words of the alert, so the words are compared.
fn refuses_certificate(status: &Status) -> bool {
    use rustls::AlertDescription as Alert;
    let cause = root_cause(status).unwrap_or_default();
    [Alert::CertificateRevoked, Alert::CertificateExpired, Alert::CertificateUnknown, Alert::BadCertificate]
        .into_iter()
        .any(|alert| cause.contains(&rustls::Error::AlertReceived(alert).to_string()))
}

/// What is at the bottom: the layers above it only say that something is below.
fn root_cause(status: &Status) -> Option<String> {
    let mut cause = status.source()?;
    while let Some(below) = cause.source() {
        cause = below;
    }
    Some(cause.to_string())
}

/// The error that the connector made, when that is what stopped the call.
fn connect_failure(status: Status) -> Result<Error, Status> {
    let mut source = status.source();
    while let Some(inner) = source {
        if let Some(failure) = inner.downcast_ref::<crate::connect::ConnectFailure>() {
            return Ok(failure.to_error());
        }
        source = inner.source();
    }
    Err(status)
}

fn kind_of(code: Code, transport: bool) -> ErrorKind {
    match code {
        Code::NotFound => ErrorKind::NotFound,
        Code::PermissionDenied => ErrorKind::Denied,
        Code::Unauthenticated => ErrorKind::Unauthenticated,
        Code::Unavailable => ErrorKind::Unavailable,
        Code::DeadlineExceeded => ErrorKind::TimedOut,
        Code::ResourceExhausted => ErrorKind::Exhausted,
        Code::Aborted | Code::AlreadyExists | Code::FailedPrecondition => ErrorKind::Conflict,
        Code::DataLoss => ErrorKind::Integrity,
        Code::InvalidArgument | Code::OutOfRange => ErrorKind::Invalid,
        Code::Unimplemented => ErrorKind::Unsupported,
        // tonic says any of these when a connection breaks.
        Code::Ok | Code::Cancelled | Code::Unknown | Code::Internal if transport => ErrorKind::Unavailable,
        Code::Cancelled => ErrorKind::Cancelled,
        Code::Ok | Code::Unknown | Code::Internal => ErrorKind::Internal,
    }
}

fn sentence(status: &Status, transport: bool) -> String {
    if transport {
        return "the connection to the node broke".to_owned();
    }
    // Whatever the node says: it cannot know how new this program is.
    if status.code() == Code::Unimplemented {
        return "the node does not know this call; it is older than this program".to_owned();
    }
    match status.message() {
        "" => format!("the node answered: {}", status.code().description()),
        message => message.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use tonic_types::ErrorDetails;

    use super::*;

    #[test]
    fn reads_code_hint_and_values_of_the_daemon() {
        let metadata = HashMap::from([("latest".to_owned(), "ab".to_owned())]);
        let mut details = ErrorDetails::with_error_info("BIB0200", DOMAIN, metadata);
        details.add_help_link("use `--rebase`", "docs/errors/BIB0200.md");
        details.set_retry_info(Some(Duration::from_secs(2)));
        let error = Error::from(Status::with_error_details(Code::Aborted, "latest moved", details));
        assert_eq!(error.kind(), ErrorKind::Conflict);
        assert_eq!(error.code(), Some("BIB0200"));
        assert_eq!(error.hint(), Some("use `--rebase`"));
        assert_eq!(error.detail("latest"), Some("ab"));
        assert_eq!(error.retry_after(), Some(Duration::from_secs(2)));
        assert!(error.is_latest_moved() && !error.is_transport());
    }

    #[test]
    fn details_of_another_domain_are_not_ours() {
        let details = ErrorDetails::with_error_info("QUOTA", "example.org", HashMap::new());
        let error = Error::from(Status::with_error_details(Code::NotFound, "nothing here", details));
        assert_eq!((error.kind(), error.code()), (ErrorKind::NotFound, None));
    }

    #[test]
    fn every_status_has_an_exit_code() {
        let cases = [
            (Code::InvalidArgument, 2),
            (Code::NotFound, 3),
            (Code::PermissionDenied, 4),
            (Code::Unauthenticated, 4),
            (Code::Unavailable, 5),
            (Code::DeadlineExceeded, 5),
            (Code::Aborted, 6),
            (Code::AlreadyExists, 6),
            (Code::DataLoss, 7),
            (Code::Unimplemented, 1),
            (Code::Internal, 1),
        ];
        for (code, exit) in cases {
            assert_eq!(Error::from(Status::new(code, "x")).kind().exit_code(), exit, "{code:?}");
        }
    }

    #[test]
    fn a_call_that_the_node_does_not_know_says_that_it_is_older() {
        let error = Error::from(Status::unimplemented("/bib.v1.NewService/Call"));
        assert_eq!(error.kind(), ErrorKind::Unsupported);
        assert!(error.message().contains("older"), "{error}");
        assert!(error.hint().is_some_and(|hint| hint.contains("bib version")), "{error:?}");
    }

    #[test]
    fn a_refused_certificate_asks_for_a_log_in() {
        let alert = rustls::Error::AlertReceived(rustls::AlertDescription::CertificateRevoked);
        let error = Error::from(Status::from_error(Box::new(std::io::Error::other(alert))));
        assert_eq!(error.kind(), ErrorKind::Unauthenticated, "{error:?}");
        assert!(error.hint().is_some_and(|hint| hint.contains("bib login")), "{error:?}");
    }

    #[test]
    fn a_deadline_that_ran_out_is_told_in_words() {
        let near = Status::from_error(Box::new(tonic::TimeoutExpired(())));
        for status in [near, Status::cancelled("Timeout expired")] {
            let error = Error::from(status);
            assert_eq!(error.kind(), ErrorKind::TimedOut, "{error:?}");
            assert!(!error.chain().contains("Timeout expired"), "{}", error.chain());
            assert!(error.hint().is_some_and(|hint| hint.contains("--timeout")), "{error:?}");
        }
    }

    #[test]
    fn a_broken_connection_is_unavailable_and_says_so() {
        let broken = std::io::Error::from(std::io::ErrorKind::BrokenPipe);
        let error = Error::from(Status::from_error(Box::new(broken)));
        assert_eq!(error.kind(), ErrorKind::Unavailable);
        assert!(error.is_transport());
        assert!(error.chain().contains("broken pipe"), "{}", error.chain());
    }
}
