//! The calls that move pages and chunks. They have no public face: [`crate::Publish`] and [`crate::Download`] use them.

use bib_proto::v1 as pb;
use futures::Stream;
use pb::dataset_service_client::DatasetServiceClient;

use super::{Datasets, call, stream};
use crate::client::Answers;
use crate::error::{Error, Result};

impl Datasets {
    pub(crate) async fn begin_upload(&self, request: pb::BeginUploadRequest) -> Result<pb::BeginUploadResponse> {
        // A session that nobody hears of expires by itself.
        call!(self, Yes, DatasetServiceClient, begin_upload, request)
    }

    pub(crate) async fn find_missing_chunks(&self, request: pb::FindMissingChunksRequest) -> Result<Vec<u32>> {
        let answer: Result<pb::FindMissingChunksResponse> =
            call!(self, Yes, DatasetServiceClient, find_missing_chunks, request);
        Ok(answer?.missing)
    }

    pub(crate) async fn find_missing_pages(&self, request: pb::FindMissingPagesRequest) -> Result<Vec<u32>> {
        let answer: Result<pb::FindMissingPagesResponse> =
            call!(self, Yes, DatasetServiceClient, find_missing_pages, request);
        Ok(answer?.missing)
    }

    /// Frames in, acknowledgements out.
    pub(crate) async fn put_chunks(
        &self,
        frames: impl Stream<Item = pb::PutChunksRequest> + Send + 'static,
    ) -> Result<tonic::Streaming<pb::PutChunksResponse>> {
        let link = self.client.link();
        let request = link.request(frames, None);
        let answer = DatasetServiceClient::new(link.channel.clone()).put_chunks(request).await;
        answer.map(tonic::Response::into_inner).map_err(Error::from)
    }

    pub(crate) async fn put_pages(
        &self,
        pages: impl Stream<Item = pb::PutPagesRequest> + Send + 'static,
    ) -> Result<pb::PutPagesResponse> {
        let link = self.client.link();
        let request = link.request(pages, None);
        let answer = DatasetServiceClient::new(link.channel.clone()).put_pages(request).await;
        answer.map(tonic::Response::into_inner).map_err(Error::from)
    }

    pub(crate) async fn put_in_place(
        &self,
        files: impl Stream<Item = pb::PutInPlaceRequest> + Send + 'static,
    ) -> Result<pb::PutInPlaceResponse> {
        let link = self.client.link();
        let request = link.request(files, None);
        let answer = DatasetServiceClient::new(link.channel.clone()).put_in_place(request).await;
        answer.map(tonic::Response::into_inner).map_err(Error::from)
    }

    /// Safe to repeat: the idempotency key makes the second answer the first.
    pub(crate) async fn commit_version(&self, request: pb::CommitVersionRequest) -> Result<pb::CommitVersionResponse> {
        call!(self, Yes, DatasetServiceClient, commit_version, request)
    }

    /// Gives up an upload session: what was staged for it may go at once, instead of after 24 hours.
    pub async fn abort_upload(&self, session_id: &str) -> Result<()> {
        let message = pb::AbortUploadRequest { session_id: session_id.to_owned() };
        let answer: Result<pb::AbortUploadResponse> = call!(self, No, DatasetServiceClient, abort_upload, message);
        answer.map(|_| ())
    }

    pub(crate) async fn get_pages(&self, request: pb::GetPagesRequest) -> Result<Answers<pb::GetPagesResponse>> {
        stream!(self, DatasetServiceClient, get_pages, request)
    }

    pub(crate) async fn get_chunks(&self, request: pb::GetChunksRequest) -> Result<Answers<pb::ChunkFrame>> {
        stream!(self, DatasetServiceClient, get_chunks, request)
    }
}
