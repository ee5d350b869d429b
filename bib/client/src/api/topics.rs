//! Topics: named lines of research, and who may see and write them.

use bib_proto::v1 as pb;
use futures::stream::BoxStream;
use pb::topic_service_client::TopicServiceClient;

use super::{call, rows, stream};
use crate::client::{Answers, Client};
use crate::error::Result;

/// Topics, and who may see and write them. A topic is named by its name or id.
#[derive(Debug, Clone)]
pub struct Topics {
    pub(super) client: Client,
}

impl Topics {
    /// Makes a topic; private unless the request says otherwise. Safe to repeat when it has an idempotency key.
    pub async fn create(&self, request: pb::CreateTopicRequest) -> Result<pb::CreateTopicResponse> {
        call!(self, No, TopicServiceClient, create_topic, request)
    }

    /// One topic.
    pub async fn get(&self, topic: &str) -> Result<pb::Topic> {
        call!(self, Yes, TopicServiceClient, get_topic, pb::GetTopicRequest { topic: topic.to_owned() })
    }

    /// The topics that the caller may see, in the order of their names; below `under` unless that is empty.
    #[must_use]
    pub fn list(&self, under: &str) -> BoxStream<'static, Result<pb::Topic>> {
        let under = under.to_owned();
        rows!(self, TopicServiceClient, list_topics, topics, |page| pb::ListTopicsRequest {
            page: Some(page),
            under: under.clone()
        })
    }

    /// One page of [`Topics::list`], for programs that keep cursors themselves.
    pub async fn list_page(&self, request: pb::ListTopicsRequest) -> Result<pb::ListTopicsResponse> {
        call!(self, Yes, TopicServiceClient, list_topics, request)
    }

    /// Changes what the request names.
    pub async fn update(&self, request: pb::UpdateTopicRequest) -> Result<pb::Topic> {
        call!(self, No, TopicServiceClient, update_topic, request)
    }

    /// Hides a topic that holds nothing and frees its name.
    pub async fn delete(&self, topic: &str) -> Result<pb::DeleteTopicResponse> {
        call!(self, No, TopicServiceClient, delete_topic, pb::DeleteTopicRequest { topic: topic.to_owned() })
    }

    /// Lets a user, key or node read, write or administer a topic.
    pub async fn grant(&self, request: pb::GrantRequest) -> Result<pb::TopicGrant> {
        call!(self, Yes, TopicServiceClient, grant, request)
    }

    /// Takes a grant back. Stops new bytes; what was copied stays where it is.
    pub async fn revoke(&self, topic: &str, subject: &str) -> Result<()> {
        let message = pb::RevokeGrantRequest { topic: topic.to_owned(), subject: subject.to_owned() };
        let answer: Result<pb::RevokeGrantResponse> = call!(self, No, TopicServiceClient, revoke_grant, message);
        answer.map(|_| ())
    }

    /// The grants of a topic.
    #[must_use]
    pub fn grants(&self, topic: &str) -> BoxStream<'static, Result<pb::TopicGrant>> {
        let topic = topic.to_owned();
        rows!(self, TopicServiceClient, list_grants, grants, |page| pb::ListGrantsRequest {
            page: Some(page),
            topic: topic.clone()
        })
    }

    /// Changes as they happen, in one topic or in all that the caller may read when `topic` is empty.
    pub async fn updates(&self, topic: &str) -> Result<Answers<pb::TopicUpdate>> {
        let message = pb::StreamTopicUpdatesRequest { topic: topic.to_owned() };
        stream!(self, TopicServiceClient, stream_topic_updates, message)
    }
}
