//! DatasetService: publishing and downloading. The calls that move no bytes are in `dataset_catalog.rs`.

use bib_core::{Hash, SessionId};
use bib_proto::v1 as pb;
use bib_proto::v1::dataset_service_server::DatasetService;
use bibd_blobs::Encoding;
use bibd_catalog::pages::PageKind;
use bytes::Bytes;
use futures::stream::BoxStream;
use futures::{StreamExt as _, TryStreamExt as _, stream};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status, Streaming};

use super::dataset_catalog::{DatasetCatalog, dataset_name};
use super::page::Page;
use super::{call_of, metadata_of};
use crate::actor::Call;
use crate::services::ServiceError;
use crate::services::assemble::Piece;
use crate::services::commit::{CommitVersion, Committed};
use crate::services::data::DataUseCases;
use crate::services::in_place::{Extent, PlacedFile};
use crate::services::list_files::FileFilter;
use crate::services::prove::ProofPiece;
use crate::services::receive_pages::SentPage;
use crate::services::upload::BeginUpload;
use crate::services::verifier::Told;

/// The handler.
#[derive(Debug)]
pub struct DatasetHandler {
    catalog: DatasetCatalog,
    data: DataUseCases,
}

/// Answers that wait for the connection: words of progress, pieces of a bundle.
const ANSWERS: usize = 4;

impl DatasetHandler {
    /// Over the use cases.
    #[must_use]
    pub fn new(catalog: DatasetCatalog, data: DataUseCases) -> Self {
        Self { catalog, data }
    }

    /// The session that the first message of a stream names, and the stream with that message back in front.
    async fn open<T: Send + 'static>(
        request: Request<Streaming<T>>,
        session_of: impl Fn(&T) -> &str,
    ) -> Result<(Call, SessionId, BoxStream<'static, Result<T, ServiceError>>), Status> {
        let call = call_of(&request)?;
        let mut messages = request.into_inner();
        let first = messages.message().await?;
        let first = first.ok_or_else(|| ServiceError::invalid("session_id", "is in the first message"))?;
        let session = session_id(session_of(&first))?;
        let rest = messages.map_err(broken_stream);
        Ok((call, session, stream::once(async { Ok(first) }).chain(rest).boxed()))
    }
}

#[tonic::async_trait]
impl DatasetService for DatasetHandler {
    type PutChunksStream = BoxStream<'static, Result<pb::PutChunksResponse, Status>>;
    type GetPagesStream = BoxStream<'static, Result<pb::GetPagesResponse, Status>>;
    type GetChunksStream = BoxStream<'static, Result<pb::ChunkFrame, Status>>;
    type VerifyVersionStream = BoxStream<'static, Result<pb::VerifyVersionResponse, Status>>;
    type ProveVersionStream = BoxStream<'static, Result<pb::ProveVersionResponse, Status>>;

    async fn begin_upload(
        &self,
        request: Request<pb::BeginUploadRequest>,
    ) -> Result<Response<pb::BeginUploadResponse>, Status> {
        let call = call_of(&request)?;
        let wanted = request.into_inner();
        let optional = |text: &str| (!text.is_empty()).then(|| text.to_owned());
        let wanted = BeginUpload {
            dataset: dataset_name("dataset", &wanted.dataset)?,
            create: wanted.create,
            parent: optional(&wanted.parent).map(|text| text.parse()).transpose().map_err(invalid("parent"))?,
            session: optional(&wanted.session_id).map(|text| session_id(&text)).transpose()?,
        };
        let begun = self.data.uploads.begin(&call, &wanted).await?;
        let latest = match begun.latest {
            Some(latest) => Some(self.catalog.full_version(&begun.seen, latest).await?),
            None => None,
        };
        Ok(Response::new(pb::BeginUploadResponse {
            session_id: begun.upload.id.to_string(),
            dataset_id: begun.seen.dataset.id.to_string(),
            latest,
            default_license: match begun.seen.dataset.license.as_str() {
                "" => begun.seen.default_license.clone(),
                own => own.to_owned(),
            },
            expires_at: begun.upload.expires_at.to_string(),
            created_topic: begun.created_topic,
            created_dataset: begun.created_dataset,
            operation: Some(metadata_of(&call, self.data.node())),
            signing_keys: begun.signing_keys.iter().map(ToString::to_string).collect(),
        }))
    }

    async fn find_missing_chunks(
        &self,
        request: Request<pb::FindMissingChunksRequest>,
    ) -> Result<Response<pb::FindMissingChunksResponse>, Status> {
        let call = call_of(&request)?;
        let wanted = request.into_inner();
        let (session, chunks) = (session_id(&wanted.session_id)?, hashes("chunks", &wanted.chunks)?);
        let missing = self.data.uploads.missing_chunks(&call, session, &chunks).await?;
        Ok(Response::new(pb::FindMissingChunksResponse { missing }))
    }

    async fn put_chunks(
        &self,
        request: Request<Streaming<pb::PutChunksRequest>>,
    ) -> Result<Response<Self::PutChunksStream>, Status> {
        let (call, session, messages) = Self::open(request, |first: &pb::PutChunksRequest| &first.session_id).await?;
        let pieces = messages.try_filter_map(|message| async move { message.frame.map(piece).transpose() }).boxed();
        let durable = self.data.receive.clone().receive(call, session, pieces);
        let answers = durable.map(|batch| {
            let durable = batch?.iter().map(|hash| Bytes::copy_from_slice(hash.as_bytes())).collect();
            Ok(pb::PutChunksResponse { durable })
        });
        Ok(Response::new(answers.boxed()))
    }

    async fn put_in_place(
        &self,
        request: Request<Streaming<pb::PutInPlaceRequest>>,
    ) -> Result<Response<pb::PutInPlaceResponse>, Status> {
        let (call, session, messages) = Self::open(request, |first: &pb::PutInPlaceRequest| &first.session_id).await?;
        let files = messages.and_then(|message| async move { placed_file(message) }).boxed();
        let (files, chunks) = self.data.in_place.put(&call, session, files).await?;
        Ok(Response::new(pb::PutInPlaceResponse { files, chunks }))
    }

    async fn find_missing_pages(
        &self,
        request: Request<pb::FindMissingPagesRequest>,
    ) -> Result<Response<pb::FindMissingPagesResponse>, Status> {
        let call = call_of(&request)?;
        let wanted = request.into_inner();
        let (session, pages) = (session_id(&wanted.session_id)?, hashes("pages", &wanted.pages)?);
        let missing = self.data.uploads.missing_pages(&call, session, &pages).await?;
        Ok(Response::new(pb::FindMissingPagesResponse { missing }))
    }

    async fn put_pages(
        &self,
        request: Request<Streaming<pb::PutPagesRequest>>,
    ) -> Result<Response<pb::PutPagesResponse>, Status> {
        let (call, session, messages) = Self::open(request, |first: &pb::PutPagesRequest| &first.session_id).await?;
        let pages = messages.and_then(|message| async move { sent_page(message) }).boxed();
        let (pages, bytes) = self.data.uploads.put_pages(&call, session, pages).await?;
        Ok(Response::new(pb::PutPagesResponse { pages, bytes }))
    }

    async fn commit_version(
        &self,
        request: Request<pb::CommitVersionRequest>,
    ) -> Result<Response<pb::CommitVersionResponse>, Status> {
        let call = call_of(&request)?;
        let wanted = request.into_inner();
        let wanted = CommitVersion {
            session: session_id(&wanted.session_id)?,
            statement: wanted.statement,
            signature: wanted.signature,
            content_root: hash("content_root", &wanted.content_root)?,
            layout_root: hash("layout_root", &wanted.layout_root)?,
            idempotency_key: wanted.idempotency_key,
        };
        let operation = Some(metadata_of(&call, self.data.node()));
        let answer = match self.data.commits.commit(&call, wanted).await? {
            Committed::Version { seen, version, created } => {
                let version = Some(self.catalog.full_version(&seen, *version).await?);
                pb::CommitVersionResponse { version, created, resend: Vec::new(), operation }
            }
            Committed::Resend(chunks) => pb::CommitVersionResponse {
                version: None,
                created: false,
                resend: chunks.iter().map(|hash| Bytes::copy_from_slice(hash.as_bytes())).collect(),
                operation,
            },
        };
        Ok(Response::new(answer))
    }

    async fn abort_upload(
        &self,
        request: Request<pb::AbortUploadRequest>,
    ) -> Result<Response<pb::AbortUploadResponse>, Status> {
        let call = call_of(&request)?;
        self.data.uploads.abort(&call, session_id(&request.into_inner().session_id)?).await?;
        Ok(Response::new(pb::AbortUploadResponse {}))
    }

    async fn get_pages(&self, request: Request<pb::GetPagesRequest>) -> Result<Response<Self::GetPagesStream>, Status> {
        let call = call_of(&request)?;
        let wanted = request.into_inner();
        let pages = self.data.downloads.pages(&call, &wanted.reference, hashes("pages", &wanted.pages)?).await?;
        let answers = pages.map(|page| {
            let page = page?;
            Ok(pb::GetPagesResponse {
                kind: i32::from(page.kind as i16),
                page: Bytes::copy_from_slice(page.hash.as_bytes()),
                data: page.body.into(),
            })
        });
        Ok(Response::new(answers.boxed()))
    }

    async fn get_chunks(
        &self,
        request: Request<pb::GetChunksRequest>,
    ) -> Result<Response<Self::GetChunksStream>, Status> {
        let call = call_of(&request)?;
        let wanted = request.into_inner();
        let chunks = hashes("chunks", &wanted.chunks)?;
        let pieces = self.data.downloads.chunks(&call, &wanted.reference, chunks, wanted.accept_zstd).await?;
        Ok(Response::new(pieces.map(|piece| Ok(frame(piece?))).boxed()))
    }

    async fn list_files(
        &self,
        request: Request<pb::ListFilesRequest>,
    ) -> Result<Response<pb::ListFilesResponse>, Status> {
        let call = call_of(&request)?;
        let wanted = request.into_inner();
        let page = Page::of(wanted.page)?;
        let filter = FileFilter { prefix: wanted.prefix, after: page.after.clone(), limit: page.limit as usize };
        let (found, entries) = self.data.list_files(&call, &wanted.reference, &filter).await?;
        let info = page.info(entries.len(), entries.last().map(|entry| entry.path().to_string()));
        let files = entries.iter().map(file_entry).collect();
        Ok(Response::new(pb::ListFilesResponse { files, page: Some(info), version: found.version.hash.to_string() }))
    }

    async fn verify_version(
        &self,
        request: Request<pb::VerifyVersionRequest>,
    ) -> Result<Response<Self::VerifyVersionStream>, Status> {
        let call = call_of(&request)?;
        let reference = request.into_inner().reference;
        let (sender, told) = mpsc::channel(ANSWERS); // words of progress
        let verify = self.data.verify.clone();
        let work = async move { verify.verify(&call, &reference, sender).await };
        Ok(Response::new(beside(work, told, |told| told.map(verify_answer))))
    }

    async fn prove_version(
        &self,
        request: Request<pb::ProveVersionRequest>,
    ) -> Result<Response<Self::ProveVersionStream>, Status> {
        let call = call_of(&request)?;
        let reference = request.into_inner().reference;
        let (sender, pieces) = mpsc::channel(ANSWERS); // pieces of at most 1 MiB
        let prove = self.data.prove.clone();
        let work = async move { prove.prove(&call, &reference, sender).await };
        let answer = |piece: Result<ProofPiece, ServiceError>| {
            piece.map(|piece| pb::ProveVersionResponse { name: piece.name, data: piece.data, last: piece.last })
        };
        Ok(Response::new(beside(work, pieces, answer)))
    }

    async fn create_dataset(
        &self,
        request: Request<pb::CreateDatasetRequest>,
    ) -> Result<Response<pb::Dataset>, Status> {
        self.catalog.create(request).await
    }

    async fn get_dataset(&self, request: Request<pb::GetDatasetRequest>) -> Result<Response<pb::Dataset>, Status> {
        self.catalog.get(request).await
    }

    async fn list_datasets(
        &self,
        request: Request<pb::ListDatasetsRequest>,
    ) -> Result<Response<pb::ListDatasetsResponse>, Status> {
        self.catalog.list(request).await
    }

    async fn update_dataset(
        &self,
        request: Request<pb::UpdateDatasetRequest>,
    ) -> Result<Response<pb::Dataset>, Status> {
        self.catalog.update(request).await
    }

    async fn delete_dataset(
        &self,
        request: Request<pb::DeleteDatasetRequest>,
    ) -> Result<Response<pb::DeleteDatasetResponse>, Status> {
        self.catalog.delete(request).await
    }

    async fn get_version(&self, request: Request<pb::GetVersionRequest>) -> Result<Response<pb::Version>, Status> {
        self.catalog.get_version(request).await
    }

    async fn list_versions(
        &self,
        request: Request<pb::ListVersionsRequest>,
    ) -> Result<Response<pb::ListVersionsResponse>, Status> {
        self.catalog.list_versions(request).await
    }

    async fn set_tag(&self, request: Request<pb::SetTagRequest>) -> Result<Response<pb::Tag>, Status> {
        self.catalog.set_tag(request).await
    }

    async fn remove_tag(
        &self,
        request: Request<pb::RemoveTagRequest>,
    ) -> Result<Response<pb::RemoveTagResponse>, Status> {
        self.catalog.remove_tag(request).await
    }

    async fn list_tags(&self, request: Request<pb::ListTagsRequest>) -> Result<Response<pb::ListTagsResponse>, Status> {
        self.catalog.list_tags(request).await
    }

    async fn withdraw_version(
        &self,
        request: Request<pb::WithdrawVersionRequest>,
    ) -> Result<Response<pb::Version>, Status> {
        let call = call_of(&request)?;
        let reference = request.get_ref().reference.clone();
        let named = self.data.collector.named_chunks(&call, &reference).await?;
        let answer = self.catalog.withdraw(request).await?;
        // The bytes go now, not with the next round and not through the trash.
        self.data.collector.purge(&call, named).await?;
        Ok(answer)
    }
}

/// Answers from a channel while `work` fills it; the work ends with the stream, and its error is the last answer.
fn beside<T, A>(
    work: impl Future<Output = Result<(), ServiceError>> + Send + 'static,
    answers: mpsc::Receiver<Result<T, ServiceError>>,
    convert: impl Fn(Result<T, ServiceError>) -> Result<A, ServiceError> + Send + 'static,
) -> BoxStream<'static, Result<A, Status>>
where
    T: Send + 'static,
    A: Send + 'static,
{
    let ended = stream::once(work).filter_map(|end| async move { end.err().map(Err) });
    let both = stream::select(ReceiverStream::new(answers), ended);
    both.map(move |answer| convert(answer).map_err(Status::from)).boxed()
}

fn verify_answer(told: Told) -> pb::VerifyVersionResponse {
    pb::VerifyVersionResponse {
        bytes_done: told.done.bytes,
        bytes_total: told.total.bytes,
        files_done: told.done.files,
        files_total: told.total.files,
        damaged: told.damaged,
        finished: told.finished,
    }
}

fn piece(frame: pb::ChunkFrame) -> Result<Piece, ServiceError> {
    Ok(Piece {
        chunk: hash("frame.chunk", &frame.chunk)?,
        offset: frame.offset,
        encoding: match pb::Encoding::try_from(frame.encoding) {
            Ok(pb::Encoding::Raw) => Encoding::Raw,
            Ok(pb::Encoding::Zstd) => Encoding::Zstd,
            Err(_) => return Err(ServiceError::invalid("frame.encoding", "is none that this node knows")),
        },
        raw_length: frame.raw_length,
        encoded_length: frame.encoded_length,
        data: frame.data,
    })
}

fn frame(piece: Piece) -> pb::ChunkFrame {
    pb::ChunkFrame {
        chunk: Bytes::copy_from_slice(piece.chunk.as_bytes()),
        offset: piece.offset,
        encoding: match piece.encoding {
            Encoding::Raw => pb::Encoding::Raw.into(),
            Encoding::Zstd => pb::Encoding::Zstd.into(),
        },
        raw_length: piece.raw_length,
        encoded_length: piece.encoded_length,
        data: piece.data,
    }
}

fn sent_page(message: pb::PutPagesRequest) -> Result<SentPage, ServiceError> {
    let kind = i16::try_from(message.kind).ok().and_then(PageKind::from_number);
    let kind = kind.ok_or_else(|| ServiceError::invalid("kind", "is none that this node knows"))?;
    Ok(SentPage { kind, hash: hash("page", &message.page)?, body: message.data })
}

fn placed_file(message: pb::PutInPlaceRequest) -> Result<PlacedFile, ServiceError> {
    let extents = message.extents.iter().map(|extent| {
        Ok(Extent { chunk: hash("extents.chunk", &extent.chunk)?, offset: extent.offset, length: extent.length })
    });
    Ok(PlacedFile { extents: extents.collect::<Result<_, ServiceError>>()?, path: message.path.into() })
}

fn file_entry(entry: &bib_core::content::Entry) -> pb::FileEntry {
    use bib_core::content::Entry;
    let (size, sha256, target) = match entry {
        Entry::File { sha256, size, .. } => (*size, sha256.to_string(), String::new()),
        Entry::Dir { .. } => (0, String::new(), String::new()),
        Entry::Link { target, .. } => (0, String::new(), target.as_str().to_owned()),
    };
    pb::FileEntry { path: entry.path().to_string(), kind: entry.kind().to_owned(), size, sha256, target }
}

fn session_id(text: &str) -> Result<SessionId, ServiceError> {
    text.parse().map_err(|_| ServiceError::invalid("session_id", "is not the id of an upload session"))
}

fn hash(field: &str, bytes: &[u8]) -> Result<Hash, ServiceError> {
    Hash::try_from(bytes).map_err(|e| ServiceError::invalid(field, e.to_string()))
}

fn hashes(field: &str, list: &[Bytes]) -> Result<Vec<Hash>, ServiceError> {
    list.iter().map(|bytes| hash(field, bytes)).collect()
}

fn invalid<E: std::fmt::Display>(field: &'static str) -> impl Fn(E) -> ServiceError {
    move |error| ServiceError::invalid(field, error.to_string())
}

/// The client's side of a stream broke off, or sent what is no message.
fn broken_stream(status: Status) -> ServiceError {
    ServiceError::invalid("stream", status.message().to_owned())
}
