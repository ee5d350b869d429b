//! HTTP collectors: one request at a time on one connection, so that the order stays.
//!
//! Environment variables for proxies are ignored and redirects are not followed: entries go where the configuration
//! says and nowhere else.

use std::fmt;
use std::pin::Pin;
use std::time::Duration;

use async_trait::async_trait;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use http::header::{AUTHORIZATION, CONTENT_TYPE, DATE, HOST, HeaderMap, HeaderValue, RETRY_AFTER, USER_AGENT};
use http::{Method, Request, StatusCode, Uri};
use http_body_util::{BodyExt as _, Full, Limited};
use hyper::client::conn::http1::{self, SendRequest};
use hyper_util::rt::TokioIo;
use secrecy::{ExposeSecret as _, SecretString};
use serde::Deserialize;

use super::credentials::Credentials;
use super::tls::{connect_tcp, connect_tls};
use super::{Batch, SendError, Sent, Sink};
use crate::config::alerts::Webhook;
use crate::config::audit::{ElasticTarget, HttpLogin, Secret, SplunkTarget, TlsTrust, check_url};

/// The longest answer that is read.
const MAX_ANSWER_BYTES: usize = 1 << 20;

/// How much of what a server says about a failure goes into a message.
const MAX_QUOTE_CHARS: usize = 160;

/// The longest pause that a server may ask for.
const MAX_RETRY_AFTER: Duration = Duration::from_secs(10 * 60);

/// Where requests go and what is made of the answers.
#[derive(Debug, Clone)]
pub struct Endpoint {
    address: Address,
    content_type: &'static str,
    login: Login,
    tls: TlsTrust,
    kind: Kind,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    /// Each document has its own outcome.
    Bulk,
    /// The status tells all.
    Plain,
}

#[derive(Debug, Clone)]
enum Address {
    /// In the open.
    Url(String),
    /// Known only to who may post there.
    Secret(Secret),
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            // Without the path: what matters is who does not answer.
            Self::Url(url) => f.write_str(url.splitn(4, '/').take(3).collect::<Vec<_>>().join("/").as_str()),
            Self::Secret(_) => f.write_str("the secret address"),
        }
    }
}

#[derive(Debug, Clone)]
enum Login {
    None,
    /// A word and the secret: `Splunk ...`.
    Word(&'static str, Secret),
    Basic(String, Secret),
}

impl Endpoint {
    /// `_bulk` of an index. Only what failed is told in the answer.
    #[must_use]
    pub fn elastic(target: &ElasticTarget) -> Self {
        let query = "filter_path=errors,items.*.error.type,items.*.error.reason";
        Self {
            address: Address::Url(format!("{}/{}/_bulk?{query}", target.url.trim_end_matches('/'), target.index)),
            content_type: "application/x-ndjson",
            login: match target.login.clone() {
                HttpLogin::None => Login::None,
                HttpLogin::ApiKey(secret) => Login::Word("ApiKey", secret),
                HttpLogin::Bearer(secret) => Login::Word("Bearer", secret),
                HttpLogin::Basic { user, password } => Login::Basic(user, password),
            },
            tls: target.tls.clone(),
            kind: Kind::Bulk,
        }
    }

    /// The event endpoint of a collector.
    #[must_use]
    pub fn splunk(target: &SplunkTarget) -> Self {
        Self {
            address: Address::Url(format!("{}/services/collector/event", target.url.trim_end_matches('/'))),
            content_type: "application/json",
            login: Login::Word("Splunk", target.token.clone()),
            tls: target.tls.clone(),
            kind: Kind::Plain,
        }
    }
}

impl Endpoint {
    /// Whatever takes JSON at `url`: of `http` or `https`, by a host of the list of this machine's authorities.
    #[must_use]
    pub fn json(url: &str) -> Self {
        Self {
            address: Address::Url(url.to_owned()),
            content_type: "application/json",
            login: Login::None,
            tls: TlsTrust::default(),
            kind: Kind::Plain,
        }
    }

    /// A webhook.
    #[must_use]
    pub fn webhook(target: &Webhook) -> Self {
        let plain = Self::json(target.url.as_deref().unwrap_or_default());
        Self {
            address: target.secret_url.clone().map_or(plain.address, Address::Secret),
            login: target.bearer.clone().map_or(Login::None, |secret| Login::Word("Bearer", secret)),
            tls: target.tls.clone(),
            ..plain
        }
    }
}

/// Posts JSON on a connection of its own, for what happens now and then. No redirect is followed and no proxy asked.
///
/// # Errors
/// When nobody answers within `timeout`, or with a status other than 2xx: without a secret in it.
pub async fn post_json(
    endpoint: &Endpoint,
    body: Bytes,
    credentials: &Credentials,
    timeout: Duration,
) -> Result<(), SendError> {
    HttpSink::new(endpoint.clone(), timeout, credentials.clone()).post(&body).await.map(drop)
}

type Driver = Pin<Box<dyn Future<Output = hyper::Result<()>> + Send>>;

/// A connection with what each request on it says.
struct Open {
    sender: SendRequest<Full<Bytes>>,
    /// Does the reading and writing; polled while a request is under way, so that it is nobody's task.
    driver: Driver,
    authorization: Option<HeaderValue>,
    used: bool,
}

/// Posts batches.
pub struct HttpSink {
    endpoint: Endpoint,
    timeout: Duration,
    credentials: Credentials,
    open: Option<Open>,
}

impl HttpSink {
    /// As configured. Nothing is opened yet.
    #[must_use]
    pub fn new(endpoint: Endpoint, timeout: Duration, credentials: Credentials) -> Self {
        Self { endpoint, timeout, credentials, open: None }
    }

    /// Posts a body and returns what was answered.
    ///
    /// # Errors
    /// When nobody answers in time, or with a status other than 2xx.
    async fn post(&mut self, body: &Bytes) -> Result<Bytes, SendError> {
        let uri = self.uri().await?;
        loop {
            let mut open = match self.open.take() {
                Some(open) => open,
                None => self.connect(&uri).await?,
            };
            let request = self.request(&uri, &open, body.clone())?;
            let (reused, timeout) = (std::mem::replace(&mut open.used, true), self.timeout);
            match tokio::time::timeout(timeout, exchange(&mut open, request)).await {
                Ok(Ok((status, headers, answer))) => {
                    if !open.sender.is_closed() {
                        self.open = Some(open);
                    }
                    return if status.is_success() { Ok(answer) } else { Err(refused(status, &headers, &answer)) };
                }
                // The server had ended an idle connection: that says nothing about the next one.
                Ok(Err(_)) if reused => {}
                Ok(Err(why)) => return Err(SendError::passing(format!("{}: {why}", self.endpoint.address))),
                Err(_) => {
                    let seconds = timeout.as_secs();
                    return Err(SendError::passing(format!("{}: no answer within {seconds} s", self.endpoint.address)));
                }
            }
        }
    }

    async fn uri(&mut self) -> Result<Uri, SendError> {
        let secret = match &self.endpoint.address {
            Address::Url(url) => SecretString::from(url.clone()),
            Address::Secret(secret) => self.credentials.read(secret).await?,
        };
        // One in the configuration was checked when that was loaded.
        match (check_url(secret.expose_secret()), secret.expose_secret().parse()) {
            (None, Ok(uri)) => Ok(uri),
            (Some((why, hint)), _) => Err(SendError::lasting(format!("{}: {why}", self.endpoint.address), hint)),
            _ => Err(SendError::lasting(format!("{}: it is no url", self.endpoint.address), "correct it")),
        }
    }

    async fn connect(&mut self, uri: &Uri) -> Result<Open, SendError> {
        let host = uri.host().unwrap_or_default();
        let is_tls = uri.scheme_str() == Some("https");
        let port = uri.port_u16().unwrap_or(if is_tls { 443 } else { 80 });
        let authorization = self.authorization().await?;
        let (sender, driver): (_, Driver) = if is_tls {
            let stream = connect_tls(host, port, &self.endpoint.tls, self.timeout).await?;
            let (sender, connection) = http1::handshake(TokioIo::new(stream)).await.map_err(|e| self.broken(&e))?;
            (sender, Box::pin(connection))
        } else {
            let stream = connect_tcp(host, port, self.timeout).await?;
            let (sender, connection) = http1::handshake(TokioIo::new(stream)).await.map_err(|e| self.broken(&e))?;
            (sender, Box::pin(connection))
        };
        Ok(Open { sender, driver, authorization, used: false })
    }

    fn broken(&self, error: &hyper::Error) -> SendError {
        SendError::passing(format!("{}: {}", self.endpoint.address, crate::grpc::error::chain(error)))
    }

    async fn authorization(&mut self) -> Result<Option<HeaderValue>, SendError> {
        let text = match &self.endpoint.login {
            Login::None => return Ok(None),
            Login::Word(word, secret) => {
                let secret = self.credentials.read(secret).await?;
                SecretString::from(format!("{word} {}", secret.expose_secret()))
            }
            Login::Basic(user, secret) => {
                let secret = self.credentials.read(secret).await?;
                let pair = SecretString::from(format!("{user}:{}", secret.expose_secret()));
                SecretString::from(format!("Basic {}", STANDARD.encode(pair.expose_secret())))
            }
        };
        let mut value = HeaderValue::from_str(text.expose_secret()).map_err(|_| {
            SendError::lasting("the secret is not printable ASCII", "put the secret alone into its place")
        })?;
        // `Debug` then shows nothing of it.
        value.set_sensitive(true);
        Ok(Some(value))
    }

    fn request(&self, uri: &Uri, open: &Open, body: Bytes) -> Result<Request<Full<Bytes>>, SendError> {
        let path = uri.path_and_query().map_or("/", |path| path.as_str());
        let mut request = Request::builder()
            .method(Method::POST)
            .uri(path)
            .header(HOST, uri.authority().map_or("", |authority| authority.as_str()))
            .header(USER_AGENT, concat!("bibd/", env!("CARGO_PKG_VERSION")))
            .header(CONTENT_TYPE, self.endpoint.content_type);
        if let Some(value) = &open.authorization {
            request = request.header(AUTHORIZATION, value);
        }
        request.body(Full::new(body)).map_err(|_| SendError::lasting("the url is not one", "correct it"))
    }
}

/// One request and its whole answer, with the connection's own work meanwhile.
async fn exchange(open: &mut Open, request: Request<Full<Bytes>>) -> Result<(StatusCode, HeaderMap, Bytes), String> {
    let Open { sender, driver, .. } = open;
    let asked = async {
        sender.ready().await.map_err(|error| crate::grpc::error::chain(&error))?;
        let answer = sender.send_request(request).await.map_err(|error| crate::grpc::error::chain(&error))?;
        let (head, body) = answer.into_parts();
        let body = Limited::new(body, MAX_ANSWER_BYTES).collect().await;
        let body = body.map_err(|error| crate::grpc::error::chain(error.as_ref()))?.to_bytes();
        Ok((head.status, head.headers, body))
    };
    let mut asked = std::pin::pin!(asked);
    tokio::select! {
        biased;
        answer = &mut asked => answer,
        // The connection's work ends before the answer was handed over only when it is closed: what came is there.
        _ = driver.as_mut() => asked.await,
    }
}

fn refused(status: StatusCode, headers: &HeaderMap, answer: &[u8]) -> SendError {
    let said = quote(&String::from_utf8_lossy(answer));
    let reason = if said.is_empty() { format!("answers {status}") } else { format!("answers {status}: {said}") };
    let hint = match status.as_u16() {
        408 | 425 | 429 | 500.. => None,
        413 => None,
        401 | 403 => Some("see whether token or password are still valid there"),
        404 | 405 => Some("see whether url and index are right"),
        300..400 => Some("redirects are not followed: name the place itself"),
        400 if said.to_ascii_lowercase().contains("channel is missing") => {
            Some("use a token without indexer acknowledgement")
        }
        _ => Some("see what the collector's own log says"),
    };
    SendError { reason, hint, retry_after: retry_after(headers), is_too_large: status == StatusCode::PAYLOAD_TOO_LARGE }
}

/// RFC 9110, 10.2.3: seconds, or a date, which is compared with the server's own clock.
fn retry_after(headers: &HeaderMap) -> Option<Duration> {
    let text = headers.get(RETRY_AFTER)?.to_str().ok()?.trim();
    let asked = match text.parse() {
        Ok(seconds) => Duration::from_secs(seconds),
        Err(_) => {
            let now = httpdate::parse_http_date(headers.get(DATE)?.to_str().ok()?).ok()?;
            httpdate::parse_http_date(text).ok()?.duration_since(now).unwrap_or_default()
        }
    };
    Some(asked.min(MAX_RETRY_AFTER))
}

/// The beginning of what a server said, on one line and without what a terminal would obey.
fn quote(text: &str) -> String {
    let words: Vec<&str> = text.split_whitespace().collect();
    words.join(" ").chars().filter(|c| c.is_ascii_graphic() || *c == ' ').take(MAX_QUOTE_CHARS).collect()
}

/// What `_bulk` answers, as far as it was asked for.
#[derive(Deserialize)]
struct BulkAnswer {
    errors: bool,
    #[serde(default)]
    items: Vec<std::collections::BTreeMap<String, BulkItem>>,
}

#[derive(Deserialize)]
struct BulkItem {
    error: Option<BulkError>,
}

#[derive(Deserialize)]
struct BulkError {
    #[serde(rename = "type")]
    kind: String,
    #[serde(default)]
    reason: String,
}

/// Whether every document is there. One that was there already is a conflict of versions.
fn judge_bulk(answer: &[u8]) -> Result<(), SendError> {
    let answer: BulkAnswer = serde_json::from_slice(answer).map_err(|_| {
        SendError::lasting("what answers is not Elasticsearch or OpenSearch", "see whether url and index are right")
    })?;
    if !answer.errors {
        return Ok(());
    }
    let failed: Vec<BulkError> =
        answer.items.into_iter().flat_map(std::collections::BTreeMap::into_values).filter_map(|i| i.error).collect();
    let is_there = |error: &BulkError| error.kind == "version_conflict_engine_exception";
    let Some(worst) = failed.iter().find(|error| !is_there(error)) else {
        return if failed.is_empty() {
            Err(SendError::passing("`_bulk` tells of errors and not of which"))
        } else {
            Ok(())
        };
    };
    let reason = format!("refuses an entry: {}: {}", quote(&worst.kind), quote(&worst.reason));
    let passes = ["rejected_execution", "circuit_breaking", "unavailable", "timeout", "cluster_block"];
    if passes.iter().any(|part| worst.kind.contains(part)) {
        Err(SendError::passing(reason))
    } else {
        Err(SendError::lasting(reason, "correct the mapping of the index (docs/audit.md has one), or name a new index"))
    }
}

#[async_trait]
impl Sink for HttpSink {
    async fn send(&mut self, batch: &Batch) -> Result<Sent, SendError> {
        let answer = self.post(&batch.bytes).await?;
        if self.endpoint.kind == Kind::Bulk {
            judge_bulk(&answer)?;
        }
        Ok(Sent::Safe)
    }

    fn reset(&mut self) {
        self.open = None;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(pairs: &[(http::HeaderName, &str)]) -> HeaderMap {
        pairs.iter().map(|(name, value)| (name.clone(), HeaderValue::from_str(value).unwrap())).collect()
    }

    #[test]
    fn a_pause_is_told_in_seconds_or_as_a_date_by_the_servers_clock() {
        let date = "Fri, 01 Jan 2027 00:00:00 GMT";
        for (pairs, expected) in [
            (vec![(RETRY_AFTER, "7")], Some(7)),
            (vec![(RETRY_AFTER, "86400")], Some(600)),
            (vec![(RETRY_AFTER, "Fri, 01 Jan 2027 00:00:30 GMT"), (DATE, date)], Some(30)),
            (vec![(RETRY_AFTER, "Thu, 31 Dec 2026 00:00:30 GMT"), (DATE, date)], Some(0)),
            (vec![(RETRY_AFTER, "Fri, 01 Jan 2027 00:00:30 GMT")], None),
            (vec![(RETRY_AFTER, "soon")], None),
            (vec![], None),
        ] {
            assert_eq!(retry_after(&headers(&pairs)), expected.map(Duration::from_secs), "{pairs:?}");
        }
    }

    #[test]
    fn documents_that_are_there_already_are_no_failure_and_others_are() {
        let answer = |kinds: &[&str]| {
            let items: Vec<_> = kinds
                .iter()
                .map(|kind| serde_json::json!({ "create": { "error": { "type": kind, "reason": "x\u{1b}[31m" } } }))
                .collect();
            judge_bulk(serde_json::json!({ "errors": true, "items": items }).to_string().as_bytes())
        };
        assert_eq!(judge_bulk(br#"{"errors":false}"#), Ok(()));
        assert_eq!(answer(&["version_conflict_engine_exception"]), Ok(()));
        let busy = answer(&["version_conflict_engine_exception", "es_rejected_execution_exception"]).unwrap_err();
        assert_eq!((busy.hint, busy.is_too_large), (None, false));
        let mapping = answer(&["document_parsing_exception"]).unwrap_err();
        assert!(mapping.hint.is_some() && !mapping.reason.contains('\u{1b}'), "{mapping:?}");
        assert!(answer(&[]).is_err() && judge_bulk(b"<html>").is_err());
    }
}
