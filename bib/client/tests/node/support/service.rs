//! The service itself.

use std::collections::{BTreeMap, HashMap};
use std::path::PathBuf;
use std::pin::Pin;
use std::sync::{Arc, Mutex};

use bib_client::pb;
use bib_core::Hash;
use bib_core::content::{ContentRoot, Entry, Page};
use bib_core::layout::{LayoutPage, LayoutRoot};
use bib_core::statement::{Author, Statement};
use bib_identity::ssh::{self, PublicKey};
use bytes::Bytes;
use futures::{Stream, StreamExt as _, stream};
use pb::dataset_service_server::{DatasetService, DatasetServiceServer};
use tokio::net::UnixListener;
use tokio_stream::wrappers::UnixListenerStream;
use tonic::{Code, Request, Response, Status, Streaming};
use tonic_types::{ErrorDetails, StatusExt as _};

/// How the node misbehaves.
#[derive(Debug, Clone, Default)]
pub(crate) struct Twist {
    /// Breaks the upload stream after so many chunks, once.
    pub(crate) break_after_chunks: Option<u64>,
    /// Says at the first commit that the chunks are gone.
    pub(crate) lose_chunks_at_commit: bool,
    /// Flips a byte in this many chunks that are sent.
    pub(crate) corrupt_chunks: u64,
    /// Somebody else publishes before the first commit.
    pub(crate) move_latest_at_commit: bool,
}

/// What the node holds.
#[derive(Debug, Default)]
pub(crate) struct Store {
    pub(crate) chunks: HashMap<Hash, Bytes>,
    pub(crate) pages: HashMap<Hash, (i32, Bytes)>,
    pub(crate) versions: Vec<pb::Version>,
    pub(crate) roots: HashMap<String, (Hash, Hash)>,
    pub(crate) keys: Vec<String>,
    pub(crate) twist: Twist,
    /// The version that every question about a version is answered with.
    pub(crate) answer_with: Option<String>,
    /// Chunks that were received.
    pub(crate) chunks_received: u64,
    /// Pages that were received, by kind.
    pub(crate) pages_received: BTreeMap<i32, u64>,
    pub(crate) pages_asked: u64,
    pub(crate) sessions: u64,
}

/// A running node.
pub(crate) struct Node {
    pub(crate) socket: PathBuf,
    pub(crate) store: Arc<Mutex<Store>>,
    _dir: tempfile::TempDir,
    _task: tokio::task::JoinSet<()>,
}

impl Node {
    pub(crate) async fn start() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let socket = dir.path().join("s");
        let listener = UnixListener::bind(&socket).unwrap();
        let store = Arc::new(Mutex::new(Store::default()));
        let service = Service(Arc::clone(&store));
        let mut task = tokio::task::JoinSet::new();
        task.spawn(async move {
            tonic::transport::Server::builder()
                .add_service(DatasetServiceServer::new(service))
                .serve_with_incoming(UnixListenerStream::new(listener))
                .await
                .unwrap();
        });
        Self { socket, store, _dir: dir, _task: task }
    }

    pub(crate) fn twist(&self, twist: Twist) {
        self.store.lock().unwrap().twist = twist;
    }
}

impl Store {
    /// Puts a version there that nobody published: pages, roots, chunks and an unsigned service's statement.
    pub(crate) fn plant(&mut self, content: Hash, layout: Hash, statement: Vec<u8>) -> String {
        let version = Hash::of(&statement).to_string();
        self.roots.insert(version.clone(), (content, layout));
        self.versions.push(pb::Version {
            version: version.clone(),
            dataset: "climate/hourly".to_owned(),
            content: content.to_string(),
            statement: statement.into(),
            ..pb::Version::default()
        });
        version
    }

    pub(crate) fn put_page(&mut self, kind: pb::PageKind, bytes: &[u8]) -> Hash {
        let hash = Hash::of(bytes);
        self.pages.insert(hash, (kind.into(), Bytes::copy_from_slice(bytes)));
        hash
    }

    fn find(&self, reference: &str) -> Option<&pb::Version> {
        match reference.split_once('@') {
            Some((_, "latest")) => self.versions.last(),
            Some((_, hash)) => self.versions.iter().find(|version| version.version == hash),
            None => self.versions.iter().find(|v| v.version == reference).or(self.versions.last()),
        }
    }

    fn latest(&self) -> String {
        self.versions.last().map(|version| version.version.clone()).unwrap_or_default()
    }

    /// What the daemon checks at commit: every chunk and page is here, layout and content are parallel and fit.
    fn check(&self, content: &Hash, layout: &Hash) -> (u64, u64) {
        let ContentRoot::Pages(pages) = ContentRoot::parse(&self.pages[content].1).unwrap() else {
            panic!("two levels")
        };
        let root = LayoutRoot::parse(&self.pages[layout].1).unwrap();
        root.check_parallel(&pages).unwrap();
        let (mut files, mut bytes) = (0, 0);
        for hash in pages {
            let page = Page::parse(&self.pages[&hash].1).unwrap();
            let layouts: Vec<LayoutPage> = root
                .pages_for(&hash)
                .unwrap()
                .iter()
                .map(|layout| LayoutPage::parse(&self.pages[layout].1).unwrap())
                .collect();
            for (entry, extents) in bib_core::layout::join(&page, &layouts).unwrap() {
                let Entry::File { sha256, size, .. } = entry else { continue };
                let mut whole = Vec::new();
                for extent in extents {
                    let chunk = &self.chunks[&extent.chunk];
                    whole.extend_from_slice(&chunk[extent.offset as usize..][..extent.length as usize]);
                }
                assert_eq!((Hash::of(&whole), whole.len() as u64), (*sha256, *size), "{}", entry.path());
                files += 1;
                bytes += size;
            }
        }
        (files, bytes)
    }
}

#[derive(Clone)]
struct Service(Arc<Mutex<Store>>);

type Answers<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

fn hashes(list: &[Bytes]) -> Vec<Hash> {
    list.iter().map(|hash| Hash::try_from(hash.as_ref()).unwrap()).collect()
}

fn conflict(store: &Store, parent: &str) -> Status {
    let values = HashMap::from([("latest".to_owned(), store.latest()), ("parent".to_owned(), parent.to_owned())]);
    let details = ErrorDetails::with_error_info("BIB0200", "bib", values);
    Status::with_error_details(Code::Aborted, "the latest version moved", details)
}

/// The name of the only dataset.
const DATASET: &str = "climate/hourly";

fn dataset_id() -> String {
    let node = bib_core::PeerId::from_public_key([7; 32]);
    bib_core::DatasetId::derive(&node, &bib_core::Nonce::from_bytes([1; 16])).to_string()
}

#[tonic::async_trait]
impl DatasetService for Service {
    type PutChunksStream = Answers<pb::PutChunksResponse>;
    type GetPagesStream = Answers<pb::GetPagesResponse>;
    type GetChunksStream = Answers<pb::ChunkFrame>;
    type VerifyVersionStream = Answers<pb::VerifyVersionResponse>;
    type ProveVersionStream = Answers<pb::ProveVersionResponse>;

    async fn get_dataset(&self, _: Request<pb::GetDatasetRequest>) -> Result<Response<pb::Dataset>, Status> {
        let latest = self.0.lock().unwrap().latest();
        Ok(Response::new(pb::Dataset { name: DATASET.to_owned(), latest, ..pb::Dataset::default() }))
    }

    async fn get_version(&self, request: Request<pb::GetVersionRequest>) -> Result<Response<pb::Version>, Status> {
        let store = self.0.lock().unwrap();
        let asked = request.into_inner().reference;
        let found = store.find(store.answer_with.as_ref().unwrap_or(&asked)).cloned();
        found.map(Response::new).ok_or_else(|| Status::not_found("no such version"))
    }

    async fn list_files(
        &self,
        request: Request<pb::ListFilesRequest>,
    ) -> Result<Response<pb::ListFilesResponse>, Status> {
        let request = request.into_inner();
        let store = self.0.lock().unwrap();
        let (content, _) = store.roots[&store.find(&request.reference).unwrap().version];
        let ContentRoot::Pages(pages) = ContentRoot::parse(&store.pages[&content].1).unwrap() else {
            panic!("two levels")
        };
        let entries = pages.iter().flat_map(|page| Page::parse(&store.pages[page].1).unwrap().entries);
        let wanted = entries.filter(|entry| entry.path().as_str().starts_with(&request.prefix));
        let files = wanted.map(|entry| pb::FileEntry {
            path: entry.path().as_str().to_owned(),
            kind: entry.kind().to_owned(),
            ..pb::FileEntry::default()
        });
        Ok(Response::new(pb::ListFilesResponse { files: files.collect(), ..pb::ListFilesResponse::default() }))
    }

    async fn begin_upload(
        &self,
        request: Request<pb::BeginUploadRequest>,
    ) -> Result<Response<pb::BeginUploadResponse>, Status> {
        let request = request.into_inner();
        let mut store = self.0.lock().unwrap();
        let session_id = if request.session_id.is_empty() {
            store.sessions += 1;
            format!("session-{}", store.sessions)
        } else {
            request.session_id
        };
        let fingerprint = |line: &String| line.parse::<PublicKey>().unwrap().fingerprint().to_string();
        Ok(Response::new(pb::BeginUploadResponse {
            session_id,
            dataset_id: dataset_id(),
            latest: store.versions.last().cloned(),
            signing_keys: store.keys.iter().map(fingerprint).collect(),
            ..pb::BeginUploadResponse::default()
        }))
    }

    async fn find_missing_chunks(
        &self,
        request: Request<pb::FindMissingChunksRequest>,
    ) -> Result<Response<pb::FindMissingChunksResponse>, Status> {
        let store = self.0.lock().unwrap();
        let asked = hashes(&request.into_inner().chunks);
        let missing = (0u32..).zip(&asked).filter(|(_, hash)| !store.chunks.contains_key(hash));
        Ok(Response::new(pb::FindMissingChunksResponse { missing: missing.map(|(at, _)| at).collect() }))
    }

    async fn put_chunks(
        &self,
        request: Request<Streaming<pb::PutChunksRequest>>,
    ) -> Result<Response<Self::PutChunksStream>, Status> {
        let store = Arc::clone(&self.0);
        let open: Vec<u8> = Vec::new();
        let answers = stream::unfold((request.into_inner(), open), move |(mut frames, mut open)| {
            let store = Arc::clone(&store);
            async move {
                loop {
                    let frame = match frames.next().await? {
                        Ok(message) => message.frame.unwrap(),
                        Err(status) => return Some((Err(status), (frames, open))),
                    };
                    assert!(frame.data.len() <= 1 << 20 && frame.offset as usize == open.len());
                    open.extend_from_slice(&frame.data);
                    if open.len() < frame.encoded_length as usize {
                        continue;
                    }
                    assert_eq!(frame.encoding(), pb::Encoding::Raw, "nothing is compressed on the socket");
                    let hash = Hash::of(&open);
                    assert_eq!(
                        (hash.as_bytes().as_slice(), open.len()),
                        (frame.chunk.as_ref(), frame.raw_length as usize)
                    );
                    let mut store = store.lock().unwrap();
                    store.chunks.insert(hash, Bytes::from(std::mem::take(&mut open)));
                    store.chunks_received += 1;
                    if store.twist.break_after_chunks == Some(store.chunks_received) {
                        store.twist.break_after_chunks = None;
                        // The chunk is kept and nobody hears of it.
                        return Some((Err(Status::unavailable("going down")), (frames, open)));
                    }
                    let durable = vec![frame.chunk];
                    drop(store);
                    return Some((Ok(pb::PutChunksResponse { durable }), (frames, open)));
                }
            }
        });
        Ok(Response::new(answers.boxed()))
    }

    async fn find_missing_pages(
        &self,
        request: Request<pb::FindMissingPagesRequest>,
    ) -> Result<Response<pb::FindMissingPagesResponse>, Status> {
        let mut store = self.0.lock().unwrap();
        let asked = hashes(&request.into_inner().pages);
        store.pages_asked += asked.len() as u64;
        let missing = (0u32..).zip(&asked).filter(|(_, hash)| !store.pages.contains_key(hash));
        Ok(Response::new(pb::FindMissingPagesResponse { missing: missing.map(|(at, _)| at).collect() }))
    }

    async fn put_pages(
        &self,
        request: Request<Streaming<pb::PutPagesRequest>>,
    ) -> Result<Response<pb::PutPagesResponse>, Status> {
        let mut pages = request.into_inner();
        let mut count = 0;
        while let Some(page) = pages.next().await {
            let page = page?;
            let hash = Hash::of(&page.data);
            assert_eq!(hash.as_bytes().as_slice(), page.page.as_ref());
            let mut store = self.0.lock().unwrap();
            *store.pages_received.entry(page.kind).or_default() += 1;
            store.pages.insert(hash, (page.kind, page.data));
            count += 1;
        }
        Ok(Response::new(pb::PutPagesResponse { pages: count, bytes: 0 }))
    }

    async fn commit_version(
        &self,
        request: Request<pb::CommitVersionRequest>,
    ) -> Result<Response<pb::CommitVersionResponse>, Status> {
        let request = request.into_inner();
        let mut store = self.0.lock().unwrap();
        let statement = Statement::parse(&request.statement).unwrap();
        if std::mem::take(&mut store.twist.move_latest_at_commit) {
            let mut other = store.versions.last().cloned().unwrap();
            let mut changed = Statement::parse(&other.statement).unwrap();
            changed.message = format!("somebody else's, {}", store.versions.len());
            other.statement = changed.to_bytes().unwrap().into();
            other.version = Hash::of(&other.statement).to_string();
            let roots = store.roots[&store.latest()];
            store.roots.insert(other.version.clone(), roots);
            store.versions.push(other);
        }
        let parent = statement.parents.first().map(ToString::to_string).unwrap_or_default();
        if parent != store.latest() {
            return Err(conflict(&store, &parent));
        }
        if std::mem::take(&mut store.twist.lose_chunks_at_commit) {
            let resend: Vec<Bytes> =
                store.chunks.drain().map(|(hash, _)| Bytes::copy_from_slice(hash.as_bytes())).collect();
            return Ok(Response::new(pb::CommitVersionResponse { resend, ..pb::CommitVersionResponse::default() }));
        }
        let root = |bytes: &Bytes| Hash::try_from(bytes.as_ref()).unwrap();
        let (content, layout) = (root(&request.content_root), root(&request.layout_root));
        assert_eq!(content, statement.content);
        let (files, size_bytes) = store.check(&content, &layout);
        let Author::Person { key, .. } = &statement.author else { panic!("a person publishes") };
        let lines = store.keys.iter().map(|line| line.parse::<PublicKey>().unwrap());
        let public = lines.into_iter().find(|line| line.fingerprint() == *key).expect("a registered key");
        ssh::verify(&public, bib_core::signature::VERSION_NAMESPACE, &request.statement, &request.signature).unwrap();
        if let Some(same) = store.versions.last().filter(|version| version.content == content.to_string()) {
            let version = Some(same.clone());
            return Ok(Response::new(pb::CommitVersionResponse {
                version,
                created: false,
                ..pb::CommitVersionResponse::default()
            }));
        }
        let version = pb::Version {
            version: Hash::of(&request.statement).to_string(),
            dataset_id: dataset_id(),
            dataset: DATASET.to_owned(),
            content: content.to_string(),
            statement: request.statement,
            signature: request.signature,
            author_public_key: public.to_line(),
            files,
            size_bytes,
            ..pb::Version::default()
        };
        store.roots.insert(version.version.clone(), (content, layout));
        store.versions.push(version.clone());
        Ok(Response::new(pb::CommitVersionResponse {
            version: Some(version),
            created: true,
            ..pb::CommitVersionResponse::default()
        }))
    }

    async fn get_pages(&self, request: Request<pb::GetPagesRequest>) -> Result<Response<Self::GetPagesStream>, Status> {
        let request = request.into_inner();
        let store = self.0.lock().unwrap();
        let version = store.find(&request.reference).ok_or_else(|| Status::not_found("no such version"))?;
        let wanted = if request.pages.is_empty() {
            let (content, layout) = store.roots[&version.version];
            vec![content, layout]
        } else {
            hashes(&request.pages)
        };
        let answers: Vec<_> = wanted
            .iter()
            .map(|hash| {
                let (kind, data) = store.pages.get(hash).cloned().unwrap_or_default();
                Ok(pb::GetPagesResponse { kind, page: Bytes::copy_from_slice(hash.as_bytes()), data })
            })
            .collect();
        Ok(Response::new(stream::iter(answers).boxed()))
    }

    async fn get_chunks(
        &self,
        request: Request<pb::GetChunksRequest>,
    ) -> Result<Response<Self::GetChunksStream>, Status> {
        let mut store = self.0.lock().unwrap();
        let mut frames = Vec::new();
        for hash in hashes(&request.into_inner().chunks) {
            let mut bytes = store.chunks[&hash].to_vec();
            if store.twist.corrupt_chunks > 0 {
                store.twist.corrupt_chunks -= 1;
                bytes[0] ^= 1;
            }
            let bytes = Bytes::from(bytes);
            let length = u32::try_from(bytes.len()).unwrap();
            for start in (0..bytes.len()).step_by(1 << 20) {
                frames.push(Ok(pb::ChunkFrame {
                    chunk: Bytes::copy_from_slice(hash.as_bytes()),
                    offset: u32::try_from(start).unwrap(),
                    encoding: pb::Encoding::Raw.into(),
                    raw_length: length,
                    encoded_length: length,
                    data: bytes.slice(start..(start + (1 << 20)).min(bytes.len())),
                }));
            }
        }
        Ok(Response::new(stream::iter(frames).boxed()))
    }

    // Calls that these tests do not make.

    async fn create_dataset(&self, _: Request<pb::CreateDatasetRequest>) -> Result<Response<pb::Dataset>, Status> {
        Err(Status::unimplemented("create_dataset"))
    }

    async fn list_datasets(
        &self,
        _: Request<pb::ListDatasetsRequest>,
    ) -> Result<Response<pb::ListDatasetsResponse>, Status> {
        Err(Status::unimplemented("list_datasets"))
    }

    async fn update_dataset(&self, _: Request<pb::UpdateDatasetRequest>) -> Result<Response<pb::Dataset>, Status> {
        Err(Status::unimplemented("update_dataset"))
    }

    async fn delete_dataset(
        &self,
        _: Request<pb::DeleteDatasetRequest>,
    ) -> Result<Response<pb::DeleteDatasetResponse>, Status> {
        Err(Status::unimplemented("delete_dataset"))
    }

    async fn list_versions(
        &self,
        _: Request<pb::ListVersionsRequest>,
    ) -> Result<Response<pb::ListVersionsResponse>, Status> {
        Err(Status::unimplemented("list_versions"))
    }

    async fn set_tag(&self, _: Request<pb::SetTagRequest>) -> Result<Response<pb::Tag>, Status> {
        Err(Status::unimplemented("set_tag"))
    }

    async fn remove_tag(&self, _: Request<pb::RemoveTagRequest>) -> Result<Response<pb::RemoveTagResponse>, Status> {
        Err(Status::unimplemented("remove_tag"))
    }

    async fn list_tags(&self, _: Request<pb::ListTagsRequest>) -> Result<Response<pb::ListTagsResponse>, Status> {
        Err(Status::unimplemented("list_tags"))
    }

    async fn withdraw_version(&self, _: Request<pb::WithdrawVersionRequest>) -> Result<Response<pb::Version>, Status> {
        Err(Status::unimplemented("withdraw_version"))
    }

    async fn abort_upload(
        &self,
        _: Request<pb::AbortUploadRequest>,
    ) -> Result<Response<pb::AbortUploadResponse>, Status> {
        Err(Status::unimplemented("abort_upload"))
    }

    async fn verify_version(
        &self,
        _: Request<pb::VerifyVersionRequest>,
    ) -> Result<Response<Self::VerifyVersionStream>, Status> {
        Err(Status::unimplemented("verify_version"))
    }

    async fn prove_version(
        &self,
        _: Request<pb::ProveVersionRequest>,
    ) -> Result<Response<Self::ProveVersionStream>, Status> {
        Err(Status::unimplemented("prove_version"))
    }

    async fn put_in_place(
        &self,
        _: Request<Streaming<pb::PutInPlaceRequest>>,
    ) -> Result<Response<pb::PutInPlaceResponse>, Status> {
        Err(Status::unimplemented("put_in_place"))
    }
}
