//! What a store may answer, in words that a person can do something with.

use std::error::Error as StdError;
use std::time::Duration;

use object_store::Error;

use super::credentials::Unusable;
use super::http::TransportError;

/// The longest text of a store's own that is passed on.
const MAX_WORDS: usize = 200;

/// A request that failed.
#[derive(Debug, Clone, thiserror::Error)]
#[error("{act} `{object}`")]
pub struct S3Error {
    /// What was tried.
    pub act: &'static str,
    /// On what.
    pub object: String,
    /// Why it failed.
    #[source]
    pub problem: Problem,
}

/// Why a request failed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Problem {
    /// There are no credentials, or they cannot be read.
    #[error("{0}")]
    NoCredentials(String),
    /// The store does not know them.
    #[error("the store does not accept the credentials ({0})")]
    Credentials(String),
    /// They are good for something else.
    #[error("the store does not allow it ({0})")]
    Forbidden(String),
    /// The clocks differ.
    #[error("the clocks of this machine and of the store are too far apart{}", .0.as_ref().map(|time| format!(": there it is {time}")).unwrap_or_default())]
    Skew(Option<String>),
    /// There is no such bucket.
    #[error("there is no such bucket")]
    NoBucket,
    /// The bucket is in another region, or at another address.
    #[error("the bucket is in another region ({0})")]
    Region(String),
    /// There is no such object.
    #[error("there is no such object")]
    NotFound,
    /// It is another one now.
    #[error("the object was changed meanwhile")]
    Changed,
    /// The store wants fewer requests.
    #[error("the store has too much to do ({0})")]
    Busy(String),
    /// The store broke.
    #[error("the store failed ({0})")]
    Server(String),
    /// It does not know the request.
    #[error("the store does not offer this ({0})")]
    NotOffered(String),
    /// It let two have one name.
    #[error("the store lets a name be taken twice")]
    NotExclusive,
    /// More parts than a store takes.
    #[error("it is larger than 10,000 parts")]
    TooLarge,
    /// Nothing came.
    #[error("the store said nothing for {0:?}")]
    Silent(Duration),
    /// It came too slowly.
    #[error("the store was not done after {0:?}")]
    Slow(Duration),
    /// Something else lies there.
    #[error("the object has {0} bytes, which none of ours has")]
    Oversized(u64),
    /// TLS.
    #[error("no trusted connection: {0}")]
    Tls(String),
    /// No connection.
    #[error("the store cannot be reached: {0}")]
    Unreachable(String),
    /// The connection ended.
    #[error("the connection broke: {0}")]
    Broken(String),
    /// The daemon stops.
    #[error("the daemon is stopping")]
    Stopping,
    /// Anything else.
    #[error("the store refused it ({0})")]
    Refused(String),
}

impl Problem {
    /// What a person can do about it.
    #[must_use]
    pub fn hint(&self) -> &'static str {
        match self {
            Self::NoCredentials(_) => {
                "bib admin backup credentials set < FILE seals them; `bibd restore` takes --s3-credentials FILE or the \
                 variables AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"
            }
            Self::Credentials(_) => "set those of the store: bib admin backup credentials set < FILE",
            Self::Forbidden(_) => {
                "allow them s3:ListBucket on the bucket, and s3:GetObject, s3:PutObject, s3:DeleteObject and \
                 s3:AbortMultipartUpload below the prefix"
            }
            Self::Skew(_) => "set the clock of this machine by NTP",
            Self::NoBucket => "make it, or correct `backup.store`; a bucket is never made by bibd",
            Self::Region(_) => "set `backup.s3.region`, and `backup.s3.endpoint` where the store is not AWS",
            Self::NotFound | Self::Changed | Self::Oversized(_) => {
                "see that nothing but this node writes below the prefix"
            }
            Self::Busy(_) | Self::Server(_) | Self::Broken(_) => {
                "it was tried several times, and is tried again; the store's own log says more"
            }
            Self::NotOffered(_) | Self::NotExclusive => {
                "use a store with multipart uploads and conditional writes (If-None-Match), or a directory"
            }
            Self::TooLarge => "set `backup.s3.part_size` to twice its size",
            Self::Silent(_) | Self::Slow(_) | Self::Unreachable(_) => {
                "see that `backup.s3.endpoint` is right and not behind a firewall: curl -v ENDPOINT"
            }
            Self::Tls(_) => "name the authority of the store's certificate: backup.s3.ca_file",
            Self::Stopping => "it goes on with the next start",
            Self::Refused(_) => "the store's own log says more",
        }
    }

    /// [`Problem::hint`] for who is configured under `section` (`backup` there) and given credentials by `command`
    /// (`bib admin backup` there).
    #[must_use]
    pub fn hint_for(&self, section: &str, command: &str) -> String {
        let text = self.hint().replace("bib admin backup", command);
        let text = text.split("; `bibd restore`").next().unwrap_or_default().to_owned();
        text.replace("`backup.", &format!("`{section}.")).replace(": backup.", &format!(": {section}."))
    }

    /// Of an answer, or of none.
    pub(super) fn of(error: &Error) -> Self {
        if let Some(transport) = find::<TransportError>(error) {
            return match transport {
                TransportError::Silent(silence) => Self::Silent(*silence),
                TransportError::Tls(cause) => Self::Tls(cause.clone()),
                TransportError::Unreachable(cause) => Self::Unreachable(cause.clone()),
                TransportError::Broken(cause) => Self::Broken(cause.clone()),
            };
        }
        if let Error::Precondition { .. } = error {
            return Self::Changed;
        }
        if let Some(unusable) = find::<Unusable>(error) {
            return Self::NoCredentials(unusable.to_string());
        }
        // The library keeps status and body private, in the text of the error that has no further cause.
        let text = innermost(error).to_string();
        let code = element(&text, "Code");
        let status = text.split("status code: ").nth(1).and_then(|rest| rest.get(..3)).and_then(|s| s.parse().ok());
        let status: u16 = status.unwrap_or_default();
        let words = words(&text, status);
        match (code.as_deref().unwrap_or_default(), status) {
            ("RequestTimeTooSkewed", _) => Self::Skew(element(&text, "ServerTime")),
            (
                "InvalidAccessKeyId"
                | "SignatureDoesNotMatch"
                | "InvalidToken"
                | "ExpiredToken"
                | "NotSignedUp"
                | "TokenRefreshRequired"
                | "InvalidClientTokenId",
                _,
            )
            | (_, 401) => Self::Credentials(words),
            ("AuthorizationHeaderMalformed" | "PermanentRedirect" | "IllegalLocationConstraintException", _)
            | (_, 301 | 307) => Self::Region(words),
            ("NoSuchBucket", _) => Self::NoBucket,
            ("SlowDown" | "ServiceUnavailable" | "TooManyRequests", _) | (_, 429 | 503) => Self::Busy(words),
            ("NotImplemented", _) | (_, 501) => Self::NotOffered(words),
            (_, 403) => Self::Forbidden(words),
            (_, 404) => Self::NotFound,
            (_, 500..) => Self::Server(words),
            _ if text.contains("without LOCATION") => Self::Region("a redirect".to_owned()),
            _ => Self::Refused(words),
        }
    }
}

/// The store's own words, short: the code and the message of its answer, else the status, else the library's.
fn words(text: &str, status: u16) -> String {
    let said = match (element(text, "Code"), element(text, "Message")) {
        (Some(code), Some(message)) => format!("{code}: {message}"),
        (Some(code), None) => code,
        _ if status != 0 => format!("HTTP {status}"),
        _ => text.to_owned(),
    };
    // A text of somebody else's, for a terminal and a log.
    said.chars().map(|c| if c.is_control() { ' ' } else { c }).take(MAX_WORDS).collect()
}

/// What stands in an element of an answer.
fn element(text: &str, name: &str) -> Option<String> {
    let (_, rest) = text.split_once(&format!("<{name}>"))?;
    let (inner, _) = rest.split_once(&format!("</{name}>"))?;
    Some(inner.chars().take(MAX_WORDS).collect())
}

type Cause<'e> = &'e (dyn StdError + 'static);

/// An error and what it came from, also where an I/O error hides what it wraps from `source`.
pub fn causes<'e>(error: Cause<'e>) -> impl Iterator<Item = Cause<'e>> {
    std::iter::successors(Some(error), |error| {
        let wrapped = error.downcast_ref::<std::io::Error>().and_then(std::io::Error::get_ref);
        wrapped.map(|wrapped| wrapped as Cause<'e>).or_else(|| (**error).source())
    })
}

fn innermost<'e>(error: Cause<'e>) -> Cause<'e> {
    causes(error).last().unwrap_or(error)
}

fn find<'e, E: StdError + 'static>(error: Cause<'e>) -> Option<&'e E> {
    causes(error).find_map(|error| error.downcast_ref())
}
