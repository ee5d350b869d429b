//! A real S3-compatible server (s3s-fs) on loopback, which can be told to misbehave: to refuse, to say nothing, to cut a
//! connection half-way.
#![allow(unreachable_pub, reason = "a module of one test binary")]

use std::io;
use std::path::PathBuf;
use std::sync::{Arc, Mutex};

use bibd::config::{S3, StoreLocation};
use bibd::s3::{AccessKey, Keys};
use bytes::Bytes;
use futures::StreamExt as _;
use http::{Request, Response};
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt, Full, StreamBody};
use hyper::body::{Frame, Incoming};
use hyper_util::rt::{TokioExecutor, TokioIo};
use hyper_util::server::conn::auto;
use s3s::auth::SimpleAuth;
use s3s::service::{S3Service, S3ServiceBuilder};
use tokio::net::TcpListener;
use tokio_rustls::TlsAcceptor;

pub const BUCKET: &str = "lab-backups";
pub const ACCESS_KEY: &str = "AKIAIOSFODNN7EXAMPLE";
/// Looked for in every place where no secret may be.
pub const SECRET: &str = "wJalrXUtnFEMI/K7MDENG+bPxRfiCYEXAMPLEKEY";

/// What a server may do instead of what it should.
#[derive(Clone)]
pub enum Fault {
    /// Answers this status with this body.
    Answer(u16, String),
    /// Takes the request and never answers.
    Silence,
    /// Ends the connection while the request comes in.
    CutRequest,
    /// Does what was asked, and ends the connection in the middle of the answer.
    CutAnswer,
    /// Does what was asked, and ends the connection instead of answering.
    NoAnswer,
}

impl Fault {
    /// As S3 words it.
    pub fn error(status: u16, code: &str) -> Self {
        Self::Answer(status, format!("<Error><Code>{code}</Code><Message>as told by the test</Message></Error>"))
    }
}

struct Rule {
    /// Method and path that it is for begin and contain these.
    method: &'static str,
    part: String,
    left: usize,
    fault: Fault,
}

#[derive(Default)]
struct State {
    rules: Mutex<Vec<Rule>>,
    seen: Mutex<Vec<String>>,
}

pub struct S3Server {
    pub endpoint: String,
    /// The authority of its certificate, when it speaks TLS.
    pub authority: Option<PathBuf>,
    directory: tempfile::TempDir,
    state: Arc<State>,
    runtime: Option<tokio::runtime::Runtime>,
}

type Answer = Response<UnsyncBoxBody<Bytes, Box<dyn std::error::Error + Send + Sync>>>;

impl S3Server {
    pub fn start() -> Self {
        Self::started(false)
    }

    pub fn with_tls() -> Self {
        Self::started(true)
    }

    fn started(is_tls: bool) -> Self {
        let directory = tempfile::tempdir().unwrap();
        std::fs::create_dir(directory.path().join(BUCKET)).unwrap();
        let mut builder = S3ServiceBuilder::new(s3s_fs::FileSystem::new(directory.path()).unwrap());
        builder.set_auth(SimpleAuth::from_single(ACCESS_KEY, SECRET));
        let (service, state) = (builder.build(), Arc::new(State::default()));
        let (acceptor, authority) = if is_tls {
            let made = rcgen::generate_simple_self_signed(vec!["localhost".to_owned()]).unwrap();
            let path = directory.path().join("authority.pem");
            std::fs::write(&path, made.cert.pem()).unwrap();
            let key = made.signing_key.serialize_der().try_into().unwrap();
            let provider = Arc::new(rustls::crypto::ring::default_provider());
            let config = rustls::ServerConfig::builder_with_provider(provider)
                .with_safe_default_protocol_versions()
                .unwrap()
                .with_no_client_auth()
                .with_single_cert(vec![made.cert.der().clone()], key)
                .unwrap();
            (Some(TlsAcceptor::from(Arc::new(config))), Some(path))
        } else {
            (None, None)
        };
        // On threads of its own: what is tested may block those of the test.
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        listener.set_nonblocking(true).unwrap();
        let port = listener.local_addr().unwrap().port();
        let (handle, shared) = (runtime.handle().clone(), Arc::clone(&state));
        runtime.spawn(async move {
            let listener = TcpListener::from_std(listener).unwrap();
            loop {
                let Ok((socket, _)) = listener.accept().await else { return };
                let (service, state, acceptor) = (service.clone(), Arc::clone(&shared), acceptor.clone());
                handle.spawn(async move {
                    let answer = hyper::service::service_fn(move |request| {
                        let (service, state) = (service.clone(), Arc::clone(&state));
                        async move { answer(request, service, &state).await }
                    });
                    let builder = auto::Builder::new(TokioExecutor::new());
                    // A client that goes away is what tests are about.
                    let _ = match acceptor {
                        Some(acceptor) => {
                            let Ok(stream) = acceptor.accept(socket).await else { return };
                            builder.serve_connection(TokioIo::new(stream), answer).await
                        }
                        None => builder.serve_connection(TokioIo::new(socket), answer).await,
                    };
                });
            }
        });
        let endpoint = if is_tls { format!("https://localhost:{port}") } else { format!("http://127.0.0.1:{port}") };
        Self { endpoint, authority, directory, state, runtime: Some(runtime) }
    }

    /// The next `times` requests of this method whose path has this part meet this fault.
    pub fn misbehave(&self, method: &'static str, part: &str, times: usize, fault: Fault) {
        self.state.rules.lock().unwrap().push(Rule { method, part: part.to_owned(), left: times, fault });
    }

    /// From now on it behaves.
    pub fn behave(&self) {
        self.state.rules.lock().unwrap().clear();
    }

    /// How many requests of this method with this part came so far.
    pub fn seen(&self, method: &str, part: &str) -> usize {
        let seen = self.state.seen.lock().unwrap();
        seen.iter().filter(|what| what.starts_with(method) && what.contains(part)).count()
    }

    pub fn location(&self) -> StoreLocation {
        format!("s3://{BUCKET}/bib/test").parse().unwrap()
    }

    pub fn settings(&self) -> S3 {
        S3 { endpoint: Some(self.endpoint.clone()), ca_file: self.authority.clone(), ..S3::default() }
    }

    pub fn key() -> AccessKey {
        AccessKey::parse(&Self::credentials()).unwrap()
    }

    pub fn keys() -> Keys {
        Keys::held(Some(Self::key()))
    }

    /// As they stand in a file.
    pub fn credentials() -> String {
        format!("aws_access_key_id = {ACCESS_KEY}\naws_secret_access_key = {SECRET}\n")
    }

    /// The directory of the bucket.
    pub fn bucket(&self) -> PathBuf {
        self.directory.path().join(BUCKET)
    }

    /// Objects below this place in the bucket.
    pub fn objects(&self, below: &str) -> Vec<PathBuf> {
        fn walk(directory: PathBuf, found: &mut Vec<PathBuf>) {
            for entry in std::fs::read_dir(directory).into_iter().flatten().flatten() {
                if entry.file_type().unwrap().is_dir() { walk(entry.path(), found) } else { found.push(entry.path()) }
            }
        }
        let mut found = Vec::new();
        walk(self.bucket().join(below), &mut found);
        found.sort();
        found
    }

    /// Uploads that were begun and neither completed nor given up, as the server keeps them.
    pub fn unfinished_uploads(&self) -> usize {
        let entries = std::fs::read_dir(self.directory.path()).unwrap().flatten();
        entries.filter(|entry| entry.file_name().to_string_lossy().starts_with(".upload")).count()
    }
}

impl Drop for S3Server {
    fn drop(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}

async fn answer(request: Request<Incoming>, service: S3Service, state: &State) -> Result<Answer, io::Error> {
    let path = request.uri().path_and_query().map(ToString::to_string).unwrap_or_default();
    let (method, what) = (request.method().to_string(), format!("{} {path}", request.method()));
    state.seen.lock().unwrap().push(what);
    let fault = {
        let mut rules = state.rules.lock().unwrap();
        let rule = rules.iter_mut().find(|rule| rule.left > 0 && method == rule.method && path.contains(&rule.part));
        rule.map(|rule| {
            rule.left -= 1;
            rule.fault.clone()
        })
    };
    let broken = || io::Error::other("cut by the test");
    match fault {
        None => {
            let answer = ask(service, request).await?;
            Ok(answer.map(|body| body.map_err(Into::into).boxed_unsync()))
        }
        Some(Fault::Answer(status, text)) => {
            // The whole request first, as a store does: else the client may only see a broken connection.
            let _ = request.into_body().collect().await;
            let body = Full::new(Bytes::from(text)).map_err(|never| match never {}).boxed_unsync();
            Ok(Response::builder().status(status).header("etag", "\"0\"").body(body).unwrap())
        }
        Some(Fault::Silence) => std::future::pending().await,
        Some(Fault::CutRequest) => {
            let _ = request.into_body().frame().await;
            Err(broken())
        }
        Some(Fault::NoAnswer) => ask(service, request).await.and_then(|_| Err(broken())),
        Some(Fault::CutAnswer) => {
            let (parts, body) = ask(service, request).await?.into_parts();
            let bytes = BodyExt::collect(body).await.map_err(io::Error::other)?.to_bytes();
            let half = Frame::data(bytes.slice(..bytes.len() / 2));
            let frames = futures::stream::iter([Ok(half), Err(broken().into())]);
            // The first half goes out before the end comes.
            let slowly = frames.then(|frame| async move {
                tokio::time::sleep(std::time::Duration::from_millis(20)).await;
                frame
            });
            Ok(Response::from_parts(parts, StreamBody::new(slowly).boxed_unsync()))
        }
    }
}

async fn ask(service: S3Service, request: Request<Incoming>) -> Result<Response<s3s::Body>, io::Error> {
    hyper::service::Service::call(&service, request).await.map_err(|error| io::Error::other(format!("{error:?}")))
}
