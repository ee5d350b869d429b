//! TopicService.

use bib_core::TopicId;
use bib_core::access::{GrantLevel, Standing, Visibility};
use bib_core::name::TopicName;
use bib_proto::v1::topic_service_server::TopicService;
use bib_proto::v1::{self as pb, TopicUpdate};
use bibd_catalog::grants::TopicGrant;
use bibd_catalog::topics::{SeenTopic, TopicChange};
use futures::StreamExt as _;
use futures::stream::{self, BoxStream};
use tokio::sync::broadcast;
use tonic::{Request, Response, Status};

use super::page::Page;
use super::{call_of, metadata_of};
use crate::actor::Call;
use crate::services::ServiceError;
use crate::services::grant::GrantUseCases;
use crate::services::topic::{NewTopic, TopicUseCases};
use crate::services::updates::{Update, Updates};

/// The handler.
#[derive(Debug)]
pub struct TopicHandler {
    topics: TopicUseCases,
    grants: GrantUseCases,
    updates: Updates,
    node: bib_core::PeerId,
}

impl TopicHandler {
    /// Over the use cases.
    #[must_use]
    pub fn new(topics: TopicUseCases, grants: GrantUseCases, updates: Updates, node: bib_core::PeerId) -> Self {
        Self { topics, grants, updates, node }
    }
}

#[tonic::async_trait]
impl TopicService for TopicHandler {
    async fn create_topic(
        &self,
        request: Request<pb::CreateTopicRequest>,
    ) -> Result<Response<pb::CreateTopicResponse>, Status> {
        let call = call_of(&request)?;
        let wanted = request.into_inner();
        let new = NewTopic {
            name: topic_name("name", &wanted.name)?,
            visibility: match wanted.visibility {
                0 => Visibility::Private,
                number => visibility(number)?,
            },
            title: wanted.title,
            description: wanted.description,
            default_license: wanted.default_license,
            parents: wanted.parents,
            idempotency_key: wanted.idempotency_key,
        };
        let seen = self.topics.create(&call, new).await?;
        let operation = Some(metadata_of(&call, &self.node));
        Ok(Response::new(pb::CreateTopicResponse { topic: Some(topic(seen)), operation }))
    }

    async fn get_topic(&self, request: Request<pb::GetTopicRequest>) -> Result<Response<pb::Topic>, Status> {
        let call = call_of(&request)?;
        let seen = self.topics.get(&call, &request.into_inner().topic).await?;
        Ok(Response::new(topic(seen)))
    }

    async fn list_topics(
        &self,
        request: Request<pb::ListTopicsRequest>,
    ) -> Result<Response<pb::ListTopicsResponse>, Status> {
        let call = call_of(&request)?;
        let wanted = request.into_inner();
        let page = Page::of(wanted.page)?;
        let list = self.topics.list(&call, &wanted.under, &page.after, page.limit).await?;
        let info = page.info(list.len(), list.last().map(|seen| seen.topic.name.clone()));
        let topics = list.into_iter().map(topic).collect();
        Ok(Response::new(pb::ListTopicsResponse { topics, page: Some(info) }))
    }

    async fn update_topic(&self, request: Request<pb::UpdateTopicRequest>) -> Result<Response<pb::Topic>, Status> {
        let call = call_of(&request)?;
        let wanted = request.into_inner();
        let change = TopicChange {
            title: wanted.title,
            description: wanted.description,
            visibility: wanted.visibility.map(visibility).transpose()?,
            default_license: wanted.default_license,
        };
        let seen = self.topics.update(&call, &wanted.topic, change).await?;
        Ok(Response::new(topic(seen)))
    }

    async fn delete_topic(
        &self,
        request: Request<pb::DeleteTopicRequest>,
    ) -> Result<Response<pb::DeleteTopicResponse>, Status> {
        let call = call_of(&request)?;
        self.topics.delete(&call, &request.into_inner().topic).await?;
        Ok(Response::new(pb::DeleteTopicResponse { operation: Some(metadata_of(&call, &self.node)) }))
    }

    async fn grant(&self, request: Request<pb::GrantRequest>) -> Result<Response<pb::TopicGrant>, Status> {
        let call = call_of(&request)?;
        let wanted = request.into_inner();
        let level = grant_level(wanted.level)?;
        let seconds = wanted.expires_in_seconds;
        let given = self.grants.grant(&call, &wanted.topic, &wanted.subject, level, seconds).await?;
        let seen = self.topics.get(&call, &given.topic.to_string()).await?;
        Ok(Response::new(grant(&seen, given)))
    }

    async fn revoke_grant(
        &self,
        request: Request<pb::RevokeGrantRequest>,
    ) -> Result<Response<pb::RevokeGrantResponse>, Status> {
        let call = call_of(&request)?;
        let wanted = request.into_inner();
        self.grants.revoke(&call, &wanted.topic, &wanted.subject).await?;
        Ok(Response::new(pb::RevokeGrantResponse {}))
    }

    async fn list_grants(
        &self,
        request: Request<pb::ListGrantsRequest>,
    ) -> Result<Response<pb::ListGrantsResponse>, Status> {
        let call = call_of(&request)?;
        let wanted = request.into_inner();
        let page = Page::of(wanted.page)?;
        let (seen, list) = self.grants.list(&call, &wanted.topic, &page.after, page.limit).await?;
        let info = page.info(list.len(), list.last().map(|grant| grant.subject.clone()));
        let grants = list.into_iter().map(|given| grant(&seen, given)).collect();
        Ok(Response::new(pb::ListGrantsResponse { grants, page: Some(info) }))
    }

    type StreamTopicUpdatesStream = BoxStream<'static, Result<TopicUpdate, Status>>;

    async fn stream_topic_updates(
        &self,
        request: Request<pb::StreamTopicUpdatesRequest>,
    ) -> Result<Response<Self::StreamTopicUpdatesStream>, Status> {
        let call = call_of(&request)?;
        let wanted = request.into_inner().topic;
        let only = match wanted.as_str() {
            "" => None,
            name => Some(self.topics.get(&call, name).await?.topic.id),
        };
        let listener = Listener { topics: self.topics.clone(), call, only, updates: self.updates.listen() };
        let stream = stream::unfold(listener, |mut listener| async { Some((Ok(listener.next().await?), listener)) });
        Ok(Response::new(stream.boxed()))
    }
}

/// Somebody who listens to changes.
struct Listener {
    topics: TopicUseCases,
    call: Call,
    only: Option<TopicId>,
    updates: broadcast::Receiver<Update>,
}

impl Listener {
    /// The next change that concerns the listener; `None` when the daemon stops.
    async fn next(&mut self) -> Option<TopicUpdate> {
        loop {
            match self.updates.recv().await {
                Ok(update) if self.only.is_some_and(|id| id != update.topic_id) => {}
                Ok(update) if self.topics.may_hear(&self.call, &update).await => return Some(told(update)),
                Ok(_) => {}
                Err(broadcast::error::RecvError::Lagged(missed)) => {
                    return Some(TopicUpdate { kind: "missed".to_owned(), missed, ..TopicUpdate::default() });
                }
                Err(broadcast::error::RecvError::Closed) => return None,
            }
        }
    }
}

fn told(update: Update) -> TopicUpdate {
    TopicUpdate {
        kind: update.kind.to_owned(),
        topic: update.topic,
        dataset: update.dataset,
        version: update.version,
        time: update.time.to_string(),
        missed: 0,
    }
}

/// A topic as the wire has it.
#[must_use]
pub fn topic(seen: SeenTopic) -> pb::Topic {
    let mine = match Standing::of(seen.grant, seen.is_creator) {
        Standing::Creator => Some(GrantLevel::Admin),
        Standing::Grantee(level) => Some(level),
        Standing::None => None,
    };
    let topic = seen.topic;
    pb::Topic {
        topic_id: topic.id.to_string(),
        name: topic.name,
        title: topic.title,
        description: topic.description,
        visibility: match topic.visibility {
            Visibility::Private => pb::Visibility::Private,
            Visibility::Network => pb::Visibility::Network,
            Visibility::Public => pb::Visibility::Public,
        }
        .into(),
        default_license: topic.default_license,
        created_at: topic.created_at.to_string(),
        updated_at: topic.updated_at.to_string(),
        datasets: seen.datasets,
        my_grant: mine.map_or(pb::GrantLevel::Unspecified, level).into(),
        owner: topic.owner.to_string(),
    }
}

fn grant(seen: &SeenTopic, grant: TopicGrant) -> pb::TopicGrant {
    pb::TopicGrant {
        topic_id: grant.topic.to_string(),
        topic: seen.topic.name.clone(),
        subject: grant.subject,
        user: grant.user,
        level: level(grant.level).into(),
        granted_by: grant.granted_by,
        created_at: grant.created_at.to_string(),
        expires_at: grant.expires_at.to_string(),
    }
}

fn level(level: GrantLevel) -> pb::GrantLevel {
    match level {
        GrantLevel::Read => pb::GrantLevel::Read,
        GrantLevel::Write => pb::GrantLevel::Write,
        GrantLevel::Admin => pb::GrantLevel::Admin,
    }
}

fn grant_level(number: i32) -> Result<GrantLevel, ServiceError> {
    match pb::GrantLevel::try_from(number) {
        Ok(pb::GrantLevel::Read) => Ok(GrantLevel::Read),
        Ok(pb::GrantLevel::Write) => Ok(GrantLevel::Write),
        Ok(pb::GrantLevel::Admin) => Ok(GrantLevel::Admin),
        Ok(pb::GrantLevel::Unspecified) | Err(_) => Err(ServiceError::invalid("level", "is read, write or admin")),
    }
}

fn visibility(number: i32) -> Result<Visibility, ServiceError> {
    match pb::Visibility::try_from(number) {
        Ok(pb::Visibility::Private) => Ok(Visibility::Private),
        Ok(pb::Visibility::Network) => Ok(Visibility::Network),
        Ok(pb::Visibility::Public) => Ok(Visibility::Public),
        Ok(pb::Visibility::Unspecified) | Err(_) => {
            Err(ServiceError::invalid("visibility", "is private, network or public"))
        }
    }
}

/// A topic's name from the wire.
///
/// # Errors
/// When it is not one.
pub fn topic_name(field: &str, text: &str) -> Result<TopicName, ServiceError> {
    TopicName::new(text).map_err(|e| ServiceError::invalid(field, e.to_string()))
}
