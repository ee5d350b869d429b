//! Datasets, their versions, files and tags. Publishing, downloading and verifying as a whole are [`crate::Publish`],
//! [`crate::Download`] and [`crate::Verify`].

use bib_core::Hash;
use bib_core::name::VersionSelector;
use bib_core::text::scrub;
use bib_proto::v1 as pb;
use futures::stream::BoxStream;
use pb::dataset_service_client::DatasetServiceClient;

use super::{call, rows, stream};
use crate::client::{Answers, Client};
use crate::error::{Error, Result};

/// Datasets, versions, files and tags. References are `topic/name[@VERSION]`.
#[derive(Debug, Clone)]
pub struct Datasets {
    pub(super) client: Client,
}

impl Datasets {
    /// Makes an empty dataset.
    pub async fn create(&self, request: pb::CreateDatasetRequest) -> Result<pb::Dataset> {
        call!(self, No, DatasetServiceClient, create_dataset, request)
    }

    /// One dataset, by reference or id.
    pub async fn get(&self, dataset: &str) -> Result<pb::Dataset> {
        call!(self, Yes, DatasetServiceClient, get_dataset, pb::GetDatasetRequest { dataset: dataset.to_owned() })
    }

    /// The datasets in `topic` and below that contain the words of `text`; empty means any. By name.
    #[must_use]
    pub fn list(&self, topic: &str, text: &str) -> BoxStream<'static, Result<pb::Dataset>> {
        let (topic, text) = (topic.to_owned(), text.to_owned());
        rows!(self, DatasetServiceClient, list_datasets, datasets, |page| pb::ListDatasetsRequest {
            page: Some(page),
            topic: topic.clone(),
            text: text.clone()
        })
    }

    /// Changes title, description or licence that the next publish starts from.
    pub async fn update(&self, request: pb::UpdateDatasetRequest) -> Result<pb::Dataset> {
        call!(self, No, DatasetServiceClient, update_dataset, request)
    }

    /// Deletes a draft and frees its name.
    pub async fn delete(&self, dataset: &str) -> Result<pb::DeleteDatasetResponse> {
        call!(self, No, DatasetServiceClient, delete_dataset, pb::DeleteDatasetRequest { dataset: dataset.to_owned() })
    }

    /// One version; the latest when the reference names none. One that was named by digits of its hash is that one, or
    /// an error: whoever wrote a hash down trusts it more than the node.
    pub async fn version(&self, reference: &str) -> Result<pb::Version> {
        let message = pb::GetVersionRequest { reference: reference.to_owned() };
        let version: pb::Version = call!(self, Yes, DatasetServiceClient, get_version, message)?;
        match digits_in(reference) {
            Some(digits) if !version.version.starts_with(&digits) => Err(Error::damaged(format!(
                "the node answers with version {}, which is not `{}`",
                scrub(&version.version),
                scrub(reference)
            ))),
            _ => Ok(version),
        }
    }

    /// The versions of a dataset, newest first.
    #[must_use]
    pub fn versions(&self, dataset: &str) -> BoxStream<'static, Result<pb::Version>> {
        let dataset = dataset.to_owned();
        rows!(self, DatasetServiceClient, list_versions, versions, |page| pb::ListVersionsRequest {
            page: Some(page),
            dataset: dataset.clone()
        })
    }

    /// The entries of a version whose path begins with `prefix`, in path order.
    #[must_use]
    pub fn files(&self, reference: &str, prefix: &str) -> BoxStream<'static, Result<pb::FileEntry>> {
        let (reference, prefix) = (reference.to_owned(), prefix.to_owned());
        rows!(self, DatasetServiceClient, list_files, files, |page| pb::ListFilesRequest {
            page: Some(page),
            reference: reference.clone(),
            prefix: prefix.clone()
        })
    }

    /// Names a version. Moves a tag that names another only when the request says so.
    pub async fn set_tag(&self, request: pb::SetTagRequest) -> Result<pb::Tag> {
        call!(self, Yes, DatasetServiceClient, set_tag, request)
    }

    /// Removes a tag.
    pub async fn remove_tag(&self, dataset: &str, tag: &str) -> Result<()> {
        let message = pb::RemoveTagRequest { dataset: dataset.to_owned(), tag: tag.to_owned() };
        let answer: Result<pb::RemoveTagResponse> = call!(self, No, DatasetServiceClient, remove_tag, message);
        answer.map(|_| ())
    }

    /// The tags of a dataset.
    #[must_use]
    pub fn tags(&self, dataset: &str) -> BoxStream<'static, Result<pb::Tag>> {
        let dataset = dataset.to_owned();
        rows!(self, DatasetServiceClient, list_tags, tags, |page| pb::ListTagsRequest {
            page: Some(page),
            dataset: dataset.clone()
        })
    }

    /// Takes a version's bytes back, with a reason that stays.
    pub async fn withdraw(&self, reference: &str, reason: &str) -> Result<pb::Version> {
        let message = pb::WithdrawVersionRequest { reference: reference.to_owned(), reason: reason.to_owned() };
        call!(self, No, DatasetServiceClient, withdraw_version, message)
    }

    /// Has the node read every chunk of a version again: progress, then a verdict.
    pub async fn verify_on_node(&self, reference: &str) -> Result<Answers<pb::VerifyVersionResponse>> {
        let message = pb::VerifyVersionRequest { reference: reference.to_owned() };
        stream!(self, DatasetServiceClient, verify_version, message)
    }

    /// The files of a version's proof, in pieces. [`crate::write_proof`] makes a tar file of them.
    pub async fn prove(&self, reference: &str) -> Result<Answers<pb::ProveVersionResponse>> {
        let message = pb::ProveVersionRequest { reference: reference.to_owned() };
        stream!(self, DatasetServiceClient, prove_version, message)
    }
}

/// The digits of the version's hash that a reference names it by.
fn digits_in(reference: &str) -> Option<String> {
    if let Ok(hash) = reference.parse::<Hash>() {
        return Some(hash.to_string());
    }
    let (_, selector) = reference.rsplit_once('@')?;
    match VersionSelector::new(selector) {
        Ok(VersionSelector::Prefix(prefix)) => Some(prefix.to_string()),
        Ok(VersionSelector::Latest | VersionSelector::Tag(_)) | Err(_) => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_digits_pin_a_version() {
        let hash = Hash::of(b"x").to_string();
        assert_eq!(digits_in(&hash), Some(hash.clone()));
        assert_eq!(digits_in("a/b@0123abcd"), Some("0123abcd".to_owned()));
        assert_eq!(digits_in(&format!("a/b@{hash}")), Some(hash));
        assert_eq!([digits_in("a/b"), digits_in("a/b@latest"), digits_in("a/b@v1")], [None, None, None]);
    }
}
