//! The calls of DatasetService that move no bytes: look after datasets, versions and tags. `dataset.rs` implements the
//! service and hands these over.

use bib_core::Hash;
use bib_core::access::Verb;
use bib_core::name::{DatasetName, TagName};
use bib_core::record::StepProof;
use bib_proto::v1 as pb;
use bibd_catalog::datasets::SeenDataset;
use bibd_catalog::versions::{self, Tag, Version};
use bibd_catalog::{records, users};
use tonic::{Request, Response, Status};

use super::page::Page;
use super::{call_of, metadata_of};
use crate::services::ServiceError;
use crate::services::base::Base;
use crate::services::dataset::{DatasetUseCases, NewDataset};
use crate::services::reference;

/// The handler.
#[derive(Debug, Clone)]
pub struct DatasetCatalog {
    base: Base,
    datasets: DatasetUseCases,
}

impl DatasetCatalog {
    /// Over the use cases.
    #[must_use]
    pub fn new(base: Base, datasets: DatasetUseCases) -> Self {
        Self { base, datasets }
    }

    pub(super) async fn create(
        &self,
        request: Request<pb::CreateDatasetRequest>,
    ) -> Result<Response<pb::Dataset>, Status> {
        let call = call_of(&request)?;
        let wanted = request.into_inner();
        let name = dataset_name("name", &wanted.name)?;
        let new = NewDataset {
            title: wanted.title,
            description: wanted.description,
            license: wanted.license,
            create_topic: wanted.create_topic,
        };
        let seen = self.datasets.create(&call, &name, new).await?;
        Ok(Response::new(dataset(seen, Vec::new())))
    }

    pub(super) async fn get(&self, request: Request<pb::GetDatasetRequest>) -> Result<Response<pb::Dataset>, Status> {
        let call = call_of(&request)?;
        let name = request.into_inner().dataset;
        let mut session = self.base.db.read().await.map_err(ServiceError::from)?;
        let seen = reference::dataset(&self.base, &call, &mut session, &name, Verb::DatasetShow).await?;
        let tags =
            versions::list_tags(&mut session, seen.dataset.id, "", MAX_TAGS).await.map_err(ServiceError::from)?;
        Ok(Response::new(dataset(seen, tags)))
    }

    pub(super) async fn list(
        &self,
        request: Request<pb::ListDatasetsRequest>,
    ) -> Result<Response<pb::ListDatasetsResponse>, Status> {
        let call = call_of(&request)?;
        let wanted = request.into_inner();
        let page = Page::of(wanted.page)?;
        let list = self.datasets.list(&call, &wanted.topic, &wanted.text, &page.after, page.limit).await?;
        let info = page.info(list.len(), list.last().map(|seen| seen.dataset.name.clone()));
        let datasets = list.into_iter().map(|seen| dataset(seen, Vec::new())).collect();
        Ok(Response::new(pb::ListDatasetsResponse { datasets, page: Some(info) }))
    }

    pub(super) async fn update(
        &self,
        request: Request<pb::UpdateDatasetRequest>,
    ) -> Result<Response<pb::Dataset>, Status> {
        let call = call_of(&request)?;
        let wanted = request.into_inner();
        let (title, description, license) =
            (wanted.title.as_deref(), wanted.description.as_deref(), wanted.license.as_deref());
        let seen = self.datasets.update(&call, &wanted.dataset, title, description, license).await?;
        Ok(Response::new(dataset(seen, Vec::new())))
    }

    pub(super) async fn delete(
        &self,
        request: Request<pb::DeleteDatasetRequest>,
    ) -> Result<Response<pb::DeleteDatasetResponse>, Status> {
        let call = call_of(&request)?;
        let versions = self.datasets.delete(&call, &request.into_inner().dataset).await?;
        let operation = Some(metadata_of(&call, &self.base.peer));
        Ok(Response::new(pb::DeleteDatasetResponse { operation, versions }))
    }

    pub(super) async fn get_version(
        &self,
        request: Request<pb::GetVersionRequest>,
    ) -> Result<Response<pb::Version>, Status> {
        let call = call_of(&request)?;
        let text = request.into_inner().reference;
        let mut session = self.base.db.read().await.map_err(ServiceError::from)?;
        let found = reference::version(&self.base, &call, &mut session, &text, Verb::DatasetShow).await?;
        drop(session);
        Ok(Response::new(self.full_version(&found.seen, found.version).await?))
    }

    pub(super) async fn list_versions(
        &self,
        request: Request<pb::ListVersionsRequest>,
    ) -> Result<Response<pb::ListVersionsResponse>, Status> {
        let call = call_of(&request)?;
        let wanted = request.into_inner();
        let page = Page::of(wanted.page)?;
        let before = page.after_as::<u64>()?.unwrap_or(0);
        let (seen, list) = self.datasets.versions(&call, &wanted.dataset, before, page.limit).await?;
        let info = page.info(list.len(), list.last().map(|version| version.n.to_string()));
        let hashes: Vec<Hash> = list.iter().map(|version| version.hash).collect();
        let mut session = self.base.db.read().await.map_err(ServiceError::from)?;
        let tags = versions::tags_of(&mut session, &hashes).await.map_err(ServiceError::from)?;
        let versions = list.into_iter().map(|v| version(&seen, v, &tags)).collect();
        Ok(Response::new(pb::ListVersionsResponse { versions, page: Some(info) }))
    }

    pub(super) async fn set_tag(&self, request: Request<pb::SetTagRequest>) -> Result<Response<pb::Tag>, Status> {
        let call = call_of(&request)?;
        let wanted = request.into_inner();
        let name = tag_name(&wanted.tag)?;
        let mut session = self.base.db.read().await.map_err(ServiceError::from)?;
        let found = reference::version(&self.base, &call, &mut session, &wanted.reference, Verb::Tag).await?;
        drop(session);
        let set = self.datasets.set_tag(&call, &found.seen, &found.version.hash, &name, wanted.replace).await?;
        Ok(Response::new(tag(&found.seen, set)))
    }

    pub(super) async fn remove_tag(
        &self,
        request: Request<pb::RemoveTagRequest>,
    ) -> Result<Response<pb::RemoveTagResponse>, Status> {
        let call = call_of(&request)?;
        let wanted = request.into_inner();
        self.datasets.remove_tag(&call, &wanted.dataset, &tag_name(&wanted.tag)?).await?;
        Ok(Response::new(pb::RemoveTagResponse {}))
    }

    pub(super) async fn list_tags(
        &self,
        request: Request<pb::ListTagsRequest>,
    ) -> Result<Response<pb::ListTagsResponse>, Status> {
        let call = call_of(&request)?;
        let wanted = request.into_inner();
        let page = Page::of(wanted.page)?;
        let (seen, list) = self.datasets.list_tags(&call, &wanted.dataset, &page.after, page.limit).await?;
        let info = page.info(list.len(), list.last().map(|set| set.tag.clone()));
        let tags = list.into_iter().map(|set| tag(&seen, set)).collect();
        Ok(Response::new(pb::ListTagsResponse { tags, page: Some(info) }))
    }

    pub(super) async fn withdraw(
        &self,
        request: Request<pb::WithdrawVersionRequest>,
    ) -> Result<Response<pb::Version>, Status> {
        let call = call_of(&request)?;
        let wanted = request.into_inner();
        let mut session = self.base.db.read().await.map_err(ServiceError::from)?;
        let found =
            reference::version(&self.base, &call, &mut session, &wanted.reference, Verb::DatasetWithdraw).await?;
        drop(session);
        self.datasets.withdraw(&call, &found.seen, &found.version, &wanted.reason).await?;
        let mut session = self.base.db.read().await.map_err(ServiceError::from)?;
        let hash = found.version.hash;
        let now = versions::find(&mut session, &hash).await.map_err(ServiceError::from)?;
        let now = now.ok_or_else(|| ServiceError::not_found("version", hash.to_string()))?;
        Ok(Response::new(version(&found.seen, now, &[])))
    }

    /// A version with everything that a stranger needs to check it: records, the author's key, tags.
    ///
    /// # Errors
    /// When the database is gone.
    pub async fn full_version(&self, seen: &SeenDataset, found: Version) -> Result<pb::Version, ServiceError> {
        let mut session = self.base.db.read().await?;
        let tags = versions::tags_of(&mut session, &[found.hash]).await?;
        let record = records::find(&mut session, "version", &found.hash.to_string()).await?;
        let person_record = records::find(&mut session, "person", &found.author_key).await?;
        let person = users::find_person(&mut session, &found.author_key).await?;
        let mut full = version(seen, found, &tags);
        full.record = record.map(|record| record.signed()).transpose()?.map(signed);
        full.person_record = person_record.map(|record| record.signed()).transpose()?.map(signed);
        let proofs = self.base.inheritance.proofs_from(&seen.dataset.origin);
        let proof = |proof: StepProof| pb::SuccessionProof {
            node: Some(signed(proof.node)),
            succession: Some(signed(proof.succession)),
        };
        full.successions = proofs.into_iter().map(proof).collect();
        full.author_public_key = person.map(|person| person.public_key).unwrap_or_default();
        Ok(full)
    }
}

/// Tags that a dataset is shown with; `dataset tag --list` has all.
const MAX_TAGS: u32 = 100;

/// A dataset as the wire has it.
#[must_use]
pub fn dataset(seen: SeenDataset, tags: Vec<Tag>) -> pb::Dataset {
    let dataset = seen.dataset;
    pb::Dataset {
        dataset_id: dataset.id.to_string(),
        topic: seen.topic_name,
        name: dataset.name,
        title: dataset.title,
        description: dataset.description,
        license: dataset.license,
        latest: dataset.latest.map(|hash| hash.to_string()).unwrap_or_default(),
        versions: dataset.versions,
        files: dataset.files,
        size_bytes: dataset.size_bytes,
        created_at: dataset.created_at.to_string(),
        updated_at: dataset.updated_at.to_string(),
        owner: dataset.owner.to_string(),
        metadata_json: dataset.metadata.to_string(),
        tags: tags.into_iter().map(|tag| tag.tag).collect(),
    }
}

/// A version as the wire has it, without its records.
#[must_use]
pub fn version(seen: &SeenDataset, version: Version, tags: &[Tag]) -> pb::Version {
    let tags = tags.iter().filter(|tag| tag.version == version.hash).map(|tag| tag.tag.clone()).collect();
    pb::Version {
        version: version.hash.to_string(),
        dataset_id: version.dataset.to_string(),
        dataset: seen.dataset.name.clone(),
        content: version.content.to_string(),
        parents: version.parents.iter().map(ToString::to_string).collect(),
        label: version.label,
        message: version.message,
        time: version.time.to_string(),
        license: version.license,
        files: version.files,
        size_bytes: version.size_bytes,
        statement: version.statement.into(),
        signature: version.signature,
        author_kind: version.author_kind,
        author_key: version.author_key,
        author_name: version.author_name,
        author_public_key: String::new(),
        layout_root: version.layout.to_string(),
        record: None,
        person_record: None,
        state: version.state.as_str().to_owned(),
        withdrawal_reason: version.withdrawal_reason,
        tags,
        owner: seen.dataset.owner.to_string(),
        origin: seen.dataset.origin.to_string(),
        nonce: seen.dataset.nonce.as_bytes().to_vec().into(),
        successions: Vec::new(),
    }
}

/// A signed record as the wire has it, byte for byte.
#[must_use]
pub fn signed(record: bib_core::record::SignedRecord) -> pb::SignedRecord {
    pb::SignedRecord {
        body: record.body.into(),
        key: record.key.to_multihash().to_vec().into(),
        sig: record.sig.to_vec().into(),
    }
}

fn tag(seen: &SeenDataset, tag: Tag) -> pb::Tag {
    pb::Tag {
        dataset: seen.dataset.name.clone(),
        tag: tag.tag,
        version: tag.version.to_string(),
        set_at: tag.set_at.to_string(),
    }
}

/// A dataset's full name from the wire.
///
/// # Errors
/// When it is not one.
pub fn dataset_name(field: &str, text: &str) -> Result<DatasetName, ServiceError> {
    text.parse().map_err(|e: bib_core::name::NameError| ServiceError::invalid(field, e.to_string()))
}

fn tag_name(text: &str) -> Result<TagName, ServiceError> {
    TagName::new(text).map_err(|e| ServiceError::invalid("tag", e.to_string()))
}
