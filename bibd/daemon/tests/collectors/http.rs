//! Elasticsearch's `_bulk` and Splunk's HTTP Event Collector, as far as a sender can tell.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use axum::Router;
use axum::body::Bytes;
use axum::extract::State;
use axum::http::{HeaderMap, StatusCode, Uri};
use axum::response::{IntoResponse, Response};
use axum::routing::post;
use hyper::server::conn::http1;
use hyper_util::rt::TokioIo;
use hyper_util::service::TowerToHyperService;
use serde_json::{Value, json};
use tokio::io::AsyncReadExt as _;
use tokio::net::TcpListener;
use tokio::task::{AbortHandle, JoinSet};
use tokio_rustls::TlsAcceptor;

use super::{Authority, Taken};

/// What the server does with the next requests.
#[derive(Debug, Clone, PartialEq)]
pub enum Mood {
    Good,
    /// This status, with `Retry-After` if there is one.
    Status(u16, Option<u64>),
    /// Takes the entries and answers 500: the sender cannot know.
    TakesAndFails,
    /// Takes half of a `_bulk` and rejects the rest for now.
    TakesHalf,
    /// Refuses a document for good.
    Refuses,
    /// Resets connections in the middle of a request.
    Resets,
    /// Answers after so long.
    Slow(Duration),
}

#[derive(Clone)]
pub struct Collector {
    pub taken: Taken,
    /// The `Authorization` of the last request.
    pub authorization: Arc<Mutex<Option<String>>>,
    mood: Arc<Mutex<Mood>>,
    /// Ids of documents that are in the index.
    ids: Arc<Mutex<BTreeSet<String>>>,
    pub requests: Arc<Mutex<Vec<u16>>>,
    server: Arc<Mutex<Option<AbortHandle>>>,
    /// What it speaks TLS with, and the authority's file.
    tls: Option<(TlsAcceptor, PathBuf)>,
    pub address: SocketAddr,
}

impl Collector {
    pub async fn start() -> Self {
        Self::start_with(None).await
    }

    /// The same behind TLS.
    pub async fn start_tls(authority: &Authority) -> Self {
        Self::start_with(Some((TlsAcceptor::from(authority.server()), authority.ca_file.clone()))).await
    }

    async fn start_with(tls: Option<(TlsAcceptor, PathBuf)>) -> Self {
        let inner = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let collector = Self {
            taken: Taken::default(),
            authorization: Arc::default(),
            mood: Arc::new(Mutex::new(Mood::Good)),
            ids: Arc::default(),
            requests: Arc::default(),
            server: Arc::default(),
            tls,
            address: inner.local_addr().unwrap(),
        };
        collector.serve(inner);
        collector
    }

    /// Its address and how it is known, as the configuration says that.
    pub fn place(&self) -> String {
        match &self.tls {
            None => format!("url: 'http://{}'", self.address),
            Some((_, ca_file)) => {
                let port = self.address.port();
                format!("url: 'https://localhost:{port}', tls: {{ca_file: '{}'}}", ca_file.display())
            }
        }
    }

    fn serve(&self, inner: TcpListener) {
        let router = Router::new()
            .route("/{index}/_bulk", post(bulk))
            .route("/services/collector/event", post(event))
            .layer(axum::extract::DefaultBodyLimit::max(64 << 20))
            .with_state(self.clone());
        let (mood, tls) = (Arc::clone(&self.mood), self.tls.as_ref().map(|(tls, _)| tls.clone()));
        let task = tokio::spawn(async move {
            // Dropped with the task: then connections end too.
            let mut connections = JoinSet::new();
            loop {
                let Ok((mut stream, _)) = inner.accept().await else { continue };
                if *mood.lock().unwrap() == Mood::Resets {
                    // A part of the request is read, then the connection is reset.
                    let _ = stream.read(&mut [0; 300]).await;
                    stream.set_zero_linger().unwrap();
                    continue;
                }
                let service = TowerToHyperService::new(router.clone());
                let tls = tls.clone();
                connections.spawn(async move {
                    let http = http1::Builder::new();
                    match tls {
                        None => drop(http.serve_connection(TokioIo::new(stream), service).await),
                        Some(tls) => {
                            let Ok(stream) = tls.accept(stream).await else { return };
                            drop(http.serve_connection(TokioIo::new(stream), service).await);
                        }
                    }
                });
            }
        });
        *self.server.lock().unwrap() = Some(task.abort_handle());
    }

    pub fn mood(&self, mood: Mood) {
        *self.mood.lock().unwrap() = mood;
    }

    /// Nobody listens any more, and connections are gone.
    pub fn goes_away(&self) {
        if let Some(server) = self.server.lock().unwrap().take() {
            server.abort();
        }
    }

    pub async fn comes_back(&self) {
        let inner = loop {
            match TcpListener::bind(self.address).await {
                Ok(inner) => break inner,
                Err(_) => tokio::time::sleep(Duration::from_millis(20)).await,
            }
        };
        self.serve(inner);
    }

    pub fn requests(&self) -> usize {
        self.requests.lock().unwrap().len()
    }

    /// Takes note of a request and does what the mood says before its body counts.
    async fn meet(&self, headers: &HeaderMap) -> Result<Mood, Response> {
        let authorization = headers.get("authorization").map(|value| value.to_str().unwrap().to_owned());
        *self.authorization.lock().unwrap() = authorization;
        let mood = self.mood.lock().unwrap().clone();
        if let Mood::Slow(pause) = mood {
            tokio::time::sleep(pause).await;
        }
        match mood {
            // Connections that are there already are of this mood too.
            Mood::Resets => Err(([("connection", "close")], StatusCode::BAD_GATEWAY).into_response()),
            Mood::Status(status, retry_after) => {
                self.requests.lock().unwrap().push(status);
                let mut answer = (StatusCode::from_u16(status).unwrap(), "said the server").into_response();
                if let Some(seconds) = retry_after {
                    answer.headers_mut().insert("retry-after", seconds.into());
                }
                Err(answer)
            }
            mood => {
                self.requests.lock().unwrap().push(200);
                Ok(mood)
            }
        }
    }
}

async fn bulk(State(collector): State<Collector>, uri: Uri, headers: HeaderMap, body: Bytes) -> Response {
    let mood = match collector.meet(&headers).await {
        Ok(mood) => mood,
        Err(answer) => return answer,
    };
    assert!(uri.path() == "/bib-audit/_bulk" && headers["content-type"] == "application/x-ndjson", "{uri}");
    let lines: Vec<Value> = body.split(|b| *b == b'\n').filter(|l| !l.is_empty()).map(json_of).collect();
    let mut items = Vec::new();
    let count = lines.len() / 2;
    for (at, pair) in lines.chunks(2).enumerate() {
        let id = pair[0]["create"]["_id"].as_str().unwrap().to_owned();
        let error = |kind: &str| json!({ "create": { "error": { "type": kind, "reason": "says the index" } } });
        let refused = match mood {
            Mood::TakesHalf if at >= count / 2 && count > 1 => Some("es_rejected_execution_exception"),
            Mood::Refuses => Some("document_parsing_exception"),
            _ if !collector.ids.lock().unwrap().insert(id) => Some("version_conflict_engine_exception"),
            _ => None,
        };
        match refused {
            Some(kind) => items.push(error(kind)),
            None => {
                assert!(pair[1]["@timestamp"].is_string());
                collector.taken.add([pair[1].clone()]);
                items.push(json!({ "create": {} }));
            }
        }
    }
    if mood == Mood::TakesAndFails {
        return StatusCode::INTERNAL_SERVER_ERROR.into_response();
    }
    let errors = items.iter().any(|item| item["create"].get("error").is_some());
    axum::body::Body::from(json!({ "errors": errors, "items": items }).to_string()).into_response()
}

async fn event(State(collector): State<Collector>, headers: HeaderMap, body: Bytes) -> Response {
    let mood = match collector.meet(&headers).await {
        Ok(mood) => mood,
        Err(answer) => return answer,
    };
    let events = serde_json::Deserializer::from_slice(&body).into_iter::<Value>();
    let events: Vec<Value> = events.map(|event| event.unwrap()["event"].take()).collect();
    collector.taken.add(events);
    if mood == Mood::TakesAndFails {
        return StatusCode::INTERNAL_SERVER_ERROR.into_response();
    }
    axum::body::Body::from(r#"{"text":"Success","code":0}"#).into_response()
}

fn json_of(line: &[u8]) -> Value {
    serde_json::from_slice(line).unwrap()
}
