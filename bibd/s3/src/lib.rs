//! A part of a bucket of an S3-compatible store: for backups (`bibd`) and for chunks (`bibd-blobs`). The only room that
//! names `object_store`.
//!
//! Requests run on the runtime, and whoever asks waits for them on a thread that may block, as with files. Each is
//! tried again with back-off where that can help, none outlives the store's silence for long, and [`Bucket::close`] ends
//! all that wait. What a store says comes back as a [`Problem`]. Small objects can be awaited instead: [`mod@object`].
//!
//! It never knows what an object means, and decides nothing about keys but the prefix.

#![cfg_attr(test, allow(clippy::unwrap_used))]

mod credentials;
mod error;
mod http;
pub mod object;
mod reader;
mod upload;

use std::path::{Path as File, PathBuf};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, sync_channel};
use std::time::Duration;

use bytes::Bytes;
use futures::{StreamExt as _, TryStreamExt as _};
use object_store::aws::{AmazonS3, AmazonS3Builder, S3ConditionalPut};
use object_store::path::Path;
use object_store::{BackoffConfig, ObjectStore as _, ObjectStoreExt as _, PutMode, PutPayload, RetryConfig};
use rustls::RootCertStore;
use rustls_pki_types::CertificateDer;
use rustls_pki_types::pem::PemObject as _;
use tokio::runtime::Handle;
use tokio_util::sync::CancellationToken;

pub use credentials::{AccessKey, KeyError, Keys, MAX_TEXT_BYTES};
pub use error::{Problem, S3Error, causes};
pub use reader::Reader;
pub use upload::Upload;

/// How often a request is tried again.
const RETRIES: usize = 5;
/// The pauses between.
const FIRST_PAUSE: Duration = Duration::from_millis(200);
const LONGEST_PAUSE: Duration = Duration::from_secs(10);
/// A request for a small object may take so many times the store's silence.
const LONGEST_OF_SILENCE: u32 = 4;
/// Requests at once where many objects are meant.
const AT_ONCE: usize = 8;
/// Bodies go out in pieces of this size, so that a slow line is told from a silent store.
const PIECE_BYTES: usize = 64 * 1024;

/// How a store is reached. The daemon's configuration has refused what may not be.
#[derive(Debug, Clone)]
pub struct Settings {
    /// The URL of its API; `None` is AWS, by the region.
    pub endpoint: Option<String>,
    /// The region that requests are signed for.
    pub region: String,
    /// The bucket's name in the path and not in the host name; `None`: where there is an endpoint.
    pub path_style: Option<bool>,
    /// Authorities in PEM, instead of the machine's.
    pub ca_file: Option<PathBuf>,
    /// How long the store may be silent.
    pub timeout: Duration,
    /// The size of the pieces of a large object.
    pub part_bytes: usize,
}

/// Why a bucket cannot be spoken to at all.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// The file of authorities.
    #[error("read the authorities in `{path}`: {problem}")]
    Authorities {
        /// Which.
        path: PathBuf,
        /// What is wrong.
        problem: String,
    },
    /// The settings.
    #[error("the settings of the store cannot be used: {0}")]
    Settings(String),
}

/// A part of a bucket. Cheap to clone.
#[derive(Clone)]
pub struct Bucket {
    store: AmazonS3,
    runtime: Handle,
    closing: CancellationToken,
    part_bytes: usize,
    /// How long a request for a small object may take, with all its tries.
    longest: Duration,
    /// `s3://bucket`, for people.
    name: Arc<str>,
    /// What every key begins with, without a slash at its end.
    prefix: Arc<str>,
}

impl std::fmt::Debug for Bucket {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("Bucket").field(&self.location("")).finish()
    }
}

/// An answer that is awaited. Dropped, the request is given up.
struct Pending<T> {
    answer: Receiver<Option<object_store::Result<T>>>,
    task: tokio::task::AbortHandle,
    act: &'static str,
    object: String,
}

impl Bucket {
    /// The part of `bucket` below `prefix`. Nothing is asked yet. Within a runtime.
    ///
    /// # Errors
    /// When the authorities cannot be read, or the endpoint is no URL.
    pub fn open(bucket: &str, prefix: &str, settings: &Settings, keys: Keys) -> Result<Self, OpenError> {
        let refused = |problem: String| OpenError::Settings(problem);
        let authorities = authorities(settings.ca_file.as_deref())?;
        let transport =
            http::Transport::new(authorities, settings.timeout).map_err(|error| refused(error.to_string()))?;
        let retry = RetryConfig {
            backoff: BackoffConfig { init_backoff: FIRST_PAUSE, max_backoff: LONGEST_PAUSE, base: 2.0 },
            max_retries: RETRIES,
            // A store that is silent is asked twice and no more.
            retry_timeout: settings.timeout,
        };
        let path_style = settings.path_style.unwrap_or(settings.endpoint.is_some());
        let mut builder = AmazonS3Builder::new()
            .with_bucket_name(bucket)
            .with_region(&settings.region)
            .with_credentials(Arc::new(keys))
            .with_virtual_hosted_style_request(!path_style)
            // The configuration has refused what may not go in clear.
            .with_allow_http(true)
            .with_conditional_put(S3ConditionalPut::ETagMatch)
            // Not every store deletes in bulk.
            .with_disable_bulk_delete(true)
            .with_retry(retry)
            .with_http_connector(transport);
        if let Some(endpoint) = &settings.endpoint {
            let endpoint = endpoint.trim_end_matches('/');
            let of_bucket = endpoint.replacen("://", &format!("://{bucket}."), 1);
            builder = builder.with_endpoint(if path_style { endpoint.to_owned() } else { of_bucket });
        }
        Ok(Self {
            store: builder.build().map_err(|error| refused(error.to_string()))?,
            runtime: Handle::current(),
            closing: CancellationToken::new(),
            part_bytes: settings.part_bytes,
            longest: settings.timeout * LONGEST_OF_SILENCE,
            name: format!("s3://{bucket}").into(),
            prefix: prefix.into(),
        })
    }

    /// The part below this name.
    #[must_use]
    pub fn below(&self, name: &str) -> Self {
        Self { prefix: self.full(name).into(), ..self.clone() }
    }

    /// How people write where an object is.
    #[must_use]
    pub fn location(&self, key: &str) -> String {
        format!("{}/{}", self.name, self.full(key))
    }

    /// Ends every request that waits, and refuses others.
    pub fn close(&self) {
        self.closing.cancel();
    }

    fn full(&self, key: &str) -> String {
        match (&*self.prefix, key.trim_matches('/')) {
            ("", key) => key.to_owned(),
            (prefix, "") => prefix.to_owned(),
            (prefix, key) => format!("{prefix}/{key}"),
        }
    }

    /// Keys are ours: plain words with slashes between.
    fn path(&self, key: &str) -> Path {
        Path::from(self.full(key))
    }

    /// Begins a request.
    fn begin<T: Send + 'static>(
        &self,
        act: &'static str,
        key: &str,
        request: impl Future<Output = object_store::Result<T>> + Send + 'static,
    ) -> Pending<T> {
        let (done, answer) = sync_channel(1);
        let closing = self.closing.clone();
        // No task of the daemon: it lives as long as somebody waits for it.
        let task = self.runtime.spawn(async move {
            let outcome = closing.run_until_cancelled(request).await;
            // Whoever waited may be gone.
            let _ = done.send(outcome);
        });
        Pending { answer, task: task.abort_handle(), act, object: self.location(key) }
    }

    /// Writes an object, over one that is there.
    ///
    /// # Errors
    /// When the store does not take it.
    pub fn put(&self, key: &str, bytes: &[u8]) -> Result<(), S3Error> {
        let (store, path, payload) = (self.store.clone(), self.path(key), payload(bytes));
        self.begin("write", key, async move { store.put(&path, payload).await }).wait().map(drop)
    }

    /// Takes a name that nobody had; whether it was free. `word` is what no other writes: by it the name is known for
    /// one's own when an answer was lost.
    ///
    /// # Errors
    /// When the store does not answer, or does not keep names apart: then nothing may rely on it.
    pub fn take(&self, key: &str, word: &[u8]) -> Result<bool, S3Error> {
        let mut tries = 0;
        let is_free = loop {
            match self.create(key, word) {
                Ok(true) => break true,
                Ok(false) => break self.read_all(key)?.is_some_and(|held| held == word),
                // The library asks no twice where the first may have been heard.
                Err(error) if tries < RETRIES && is_unclear(&error.problem) => {
                    tries += 1;
                    std::thread::sleep(FIRST_PAUSE);
                }
                Err(error) => return Err(error),
            }
        };
        // A store that ignores the condition says yes to everybody.
        if is_free && self.create(key, word)? {
            return Err(S3Error { act: "take", object: self.location(key), problem: Problem::NotExclusive });
        }
        Ok(is_free)
    }

    fn create(&self, key: &str, word: &[u8]) -> Result<bool, S3Error> {
        let (store, path, payload) = (self.store.clone(), self.path(key), payload(word));
        let request = async move {
            match store.put_opts(&path, payload, PutMode::Create.into()).await {
                Ok(_) => Ok(true),
                Err(object_store::Error::AlreadyExists { .. }) => Ok(false),
                Err(error) => Err(error),
            }
        };
        self.begin("take", key, request).wait()
    }

    /// Whether there is an object.
    ///
    /// # Errors
    /// When the store does not say.
    pub fn has(&self, key: &str) -> Result<bool, S3Error> {
        Ok(self.head(key)?.is_some())
    }

    fn head(&self, key: &str) -> Result<Option<object_store::ObjectMeta>, S3Error> {
        let (store, path) = (self.store.clone(), self.path(key));
        let found = self.begin("look at", key, async move { store.head(&path).await }).wait();
        found.map(Some).or_else(|error| if error.problem == Problem::NotFound { Ok(None) } else { Err(error) })
    }

    /// Opens an object; `None` when there is none.
    ///
    /// # Errors
    /// When the store does not say.
    pub fn read(&self, key: &str) -> Result<Option<Reader>, S3Error> {
        Ok(self.head(key)?.map(|meta| Reader::new(self.clone(), key, meta.size, meta.e_tag)))
    }

    fn read_all(&self, key: &str) -> Result<Option<Bytes>, S3Error> {
        let (store, path) = (self.store.clone(), self.path(key));
        let read = self.begin("read", key, async move { store.get(&path).await?.bytes().await }).wait();
        read.map(Some).or_else(|error| if error.problem == Problem::NotFound { Ok(None) } else { Err(error) })
    }

    /// The names right below `prefix`, in order.
    ///
    /// # Errors
    /// When the store does not say.
    pub fn list(&self, prefix: &str) -> Result<Vec<String>, S3Error> {
        let (store, path) = (self.store.clone(), self.path(prefix));
        let listed = self.begin("list", prefix, async move { store.list_with_delimiter(Some(&path)).await }).wait()?;
        let objects = listed.objects.into_iter().map(|meta| meta.location);
        let mut names: Vec<String> =
            objects.chain(listed.common_prefixes).filter_map(|path| path.filename().map(str::to_owned)).collect();
        names.sort();
        names.dedup();
        Ok(names)
    }

    /// Removes objects. One that is gone is fine.
    ///
    /// # Errors
    /// With the first that cannot be removed.
    pub fn delete(&self, keys: &[String]) -> Result<(), S3Error> {
        let paths: Vec<Path> = keys.iter().map(|key| self.path(key)).collect();
        let store = self.store.clone();
        let request = async move {
            let each = futures::stream::iter(paths).map(|path| {
                let store = store.clone();
                async move {
                    match store.delete(&path).await {
                        Err(object_store::Error::NotFound { .. }) | Ok(()) => Ok(()),
                        Err(error) => Err(error),
                    }
                }
            });
            each.buffer_unordered(AT_ONCE).try_collect::<()>().await
        };
        self.begin("remove", keys.first().map_or("", String::as_str), request).wait()
    }
}

impl<T> Pending<T> {
    fn wait(self) -> Result<T, S3Error> {
        let problem = match self.answer.recv() {
            Ok(Some(Ok(answer))) => return Ok(answer),
            Ok(Some(Err(error))) => {
                tracing::debug!(act = self.act, object = self.object, error.cause = %error, "a request failed");
                Problem::of(&error)
            }
            // Closed, or the runtime is gone.
            Ok(None) | Err(_) => Problem::Stopping,
        };
        Err(S3Error { act: self.act, object: self.object.clone(), problem })
    }
}

impl<T> Drop for Pending<T> {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// Whether the store may have done what it did not confirm, and may be asked again.
fn is_unclear(problem: &Problem) -> bool {
    matches!(problem, Problem::Silent(_) | Problem::Broken(_) | Problem::Server(_) | Problem::Busy(_))
}

fn payload(bytes: &[u8]) -> PutPayload {
    let bytes = Bytes::copy_from_slice(bytes);
    pieces(bytes)
}

fn pieces(bytes: Bytes) -> PutPayload {
    (0..bytes.len()).step_by(PIECE_BYTES).map(|at| bytes.slice(at..bytes.len().min(at + PIECE_BYTES))).collect()
}

/// Those of the file, else those of the machine.
fn authorities(file: Option<&File>) -> Result<RootCertStore, OpenError> {
    let mut roots = RootCertStore::empty();
    let Some(path) = file else {
        // One that cannot be read is as good as one that is missing: the handshake says so.
        roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
        return Ok(roots);
    };
    let refused = |problem: String| OpenError::Authorities { path: path.to_owned(), problem };
    for certificate in CertificateDer::pem_file_iter(path).map_err(|error| refused(error.to_string()))? {
        let certificate = certificate.map_err(|error| refused(error.to_string()))?;
        roots.add(certificate).map_err(|error| refused(error.to_string()))?;
    }
    if roots.is_empty() { Err(refused("no certificate is in it".to_owned())) } else { Ok(roots) }
}
