//! Datasets as people look after them: create, find, list, change defaults, tag, withdraw, delete. Publishing and
//! reading bytes are in their own files.

use bib_core::access::{Embargo, Standing, Verb};
use bib_core::metadata::{Metadata, license};
use bib_core::name::{DatasetName, TagName};
use bib_core::record::{
    Body, Dataset as DatasetRecord, Kind, Life, Revision, Tag as TagRecord, Withdrawal, WithdrawalSubject,
};
use bib_core::statement::Statement;
use bib_core::{DatasetId, Hash};
use bibd_catalog::datasets::{self, Dataset, DatasetFilter, Latest, SeenDataset};
use bibd_catalog::versions::{self, Tag, Version, VersionState};
use bibd_catalog::{Session, Tx, leases, pages, records, topics};
use serde_json::json;

use super::base::{About, Base, allow_node, allow_topic};
use super::error::ServiceError;
use super::journal::Act;
use super::reference;
use super::topic::TopicUseCases;
use super::updates::Update;
use crate::actor::Call;
use crate::errors::ErrorCode;

/// The use cases of datasets.
#[derive(Debug, Clone)]
pub struct DatasetUseCases {
    base: Base,
    topics: TopicUseCases,
}

/// What a new dataset begins with.
#[derive(Debug, Clone, Default)]
pub struct NewDataset {
    /// For people.
    pub title: String,
    /// For people.
    pub description: String,
    /// SPDX expression, or empty.
    pub license: String,
    /// Also make the missing topic.
    pub create_topic: bool,
}

impl DatasetUseCases {
    /// Over the node.
    #[must_use]
    pub fn new(base: Base, topics: TopicUseCases) -> Self {
        Self { base, topics }
    }

    /// Makes an empty dataset.
    ///
    /// # Errors
    /// When the name is taken, the topic is missing, or the caller may not publish there.
    pub async fn create(&self, call: &Call, name: &DatasetName, new: NewDataset) -> Result<SeenDataset, ServiceError> {
        let mut tx = self.base.begin(call, "dataset").await?;
        let (id, made) = self.create_in(&mut tx, call, name, &new).await?;
        let act = Act::new("dataset.create", format!("dataset:{id}"), json!({"name": name.to_string()}));
        self.base.journal.commit(tx, call, act).await?;
        self.topics.tell_made(&made);
        let seen = self.get(call, &id.to_string()).await?;
        self.tell("dataset.created", &seen, "");
        Ok(seen)
    }

    /// As [`DatasetUseCases::create`], in a transaction that the caller commits with its own entry. Answers the topics
    /// that were made on the way; their entries are in the transaction.
    ///
    /// # Errors
    /// As [`DatasetUseCases::create`].
    pub async fn create_in(
        &self,
        tx: &mut Tx,
        call: &Call,
        name: &DatasetName,
        new: &NewDataset,
    ) -> Result<(DatasetId, Vec<topics::Topic>), ServiceError> {
        check(&new.title, &new.description, &new.license)?;
        let mut made = Vec::new();
        let topic = if new.create_topic {
            let topic = self.topics.ensure_in(tx, call, &name.topic, &mut made).await?;
            for new_topic in &made {
                let details = json!({"name": new_topic.name, "visibility": new_topic.visibility});
                let act = Act::new("topic.create", format!("topic:{}", new_topic.id), details);
                self.base.journal.add(tx, call, act).await?;
            }
            topic
        } else {
            self.topics.load(tx, call, name.topic.as_str(), Verb::TopicRead).await?
        };
        self.topics.allow(call, &topic, Verb::DatasetPublish)?;
        let (nonce, now) = (self.base.ids.nonce(), self.base.now());
        let dataset = Dataset {
            id: DatasetId::derive(&self.base.peer, &nonce),
            topic: topic.topic.id,
            name: name.to_string(),
            owner: self.base.peer,
            origin: self.base.peer,
            nonce,
            title: new.title.clone(),
            description: new.description.clone(),
            license: new.license.clone(),
            metadata: json!({}),
            latest: None,
            versions: 0,
            last_n: 0,
            files: 0,
            size_bytes: 0,
            created_by: Some(call.actor.user),
            created_at: now,
            updated_at: now,
        };
        let body = record(&dataset, Revision::first(self.base.epoch), name.clone(), None, Life::Live);
        let signed = self.base.sign(&Body::Dataset(body))?;
        match datasets::insert(tx, &dataset, &signed).await {
            Err(error) if error.is_conflict_on("names_pkey") => {
                Err(ServiceError::already_exists("topic or dataset", &dataset.name))
            }
            Err(error) => Err(error.into()),
            Ok(()) => Ok((dataset.id, made)),
        }
    }

    /// The dataset of this full name or id, as the caller sees it.
    ///
    /// # Errors
    /// When there is none that the caller may see.
    pub async fn get(&self, call: &Call, name: &str) -> Result<SeenDataset, ServiceError> {
        let mut session = self.base.db.read().await?;
        self.load(&mut session, call, name, Verb::DatasetShow).await
    }

    /// A page of the datasets that the caller may see, by name.
    ///
    /// # Errors
    /// When the database is gone.
    pub async fn list(
        &self,
        call: &Call,
        topic: &str,
        text: &str,
        after: &str,
        limit: u32,
    ) -> Result<Vec<SeenDataset>, ServiceError> {
        allow_node(call, Verb::NodeRead)?;
        let mut filter = DatasetFilter {
            all: call.actor.is_admin(),
            topic: topic.to_owned(),
            text: text.to_owned(),
            after: after.to_owned(),
            limit,
        };
        let mut session = self.base.db.read().await?;
        let mut seen = Vec::new();
        // As for topics: a narrowed token sees fewer, and a full page still means that there is more.
        loop {
            let page = datasets::list(&mut session, call.actor.user, self.base.now(), &filter).await?;
            let is_last = page.len() < limit as usize;
            filter.after = page.last().map(|seen| seen.dataset.name.clone()).unwrap_or_default();
            seen.extend(page.into_iter().filter(|seen| call.actor.scopes.allow_read(&seen.topic_name)));
            if is_last || seen.len() >= limit as usize {
                seen.truncate(limit as usize);
                return Ok(seen);
            }
        }
    }

    /// Changes what the next publish starts from.
    ///
    /// # Errors
    /// When the caller may not publish there, or a value is not acceptable.
    pub async fn update(
        &self,
        call: &Call,
        name: &str,
        title: Option<&str>,
        description: Option<&str>,
        license: Option<&str>,
    ) -> Result<SeenDataset, ServiceError> {
        check(title.unwrap_or_default(), description.unwrap_or_default(), license.unwrap_or_default())?;
        let mut tx = self.base.begin(call, "dataset").await?;
        let seen = self.load(&mut tx, call, name, Verb::DatasetPublish).await?;
        datasets::update(&mut tx, seen.dataset.id, title, description, license, self.base.now()).await?;
        let act = Act::new("dataset.update", format!("dataset:{}", seen.dataset.id), json!({}));
        self.base.journal.commit(tx, call, act).await?;
        self.get(call, &seen.dataset.id.to_string()).await
    }

    /// Deletes a draft: a dataset that no other node has. Its bytes go with the next collection.
    ///
    /// # Errors
    /// When the caller may not, or the topic is open to others, who may have it.
    pub async fn delete(&self, call: &Call, name: &str) -> Result<u64, ServiceError> {
        let mut tx = self.base.begin(call, "dataset").await?;
        let seen = self.load(&mut tx, call, name, Verb::DatasetDelete).await?;
        let id = seen.dataset.id;
        if seen.visibility != bib_core::access::Visibility::Private && seen.dataset.latest.is_some() {
            return Err(ServiceError::conflict(
                ErrorCode::UNMET_CONDITION,
                format!("`{}` lies in a {} topic, so others may have it", seen.dataset.name, seen.visibility),
                "withdraw its versions instead: `bib dataset withdraw`",
            ));
        }
        datasets::lock(&mut tx, id).await?.ok_or_else(|| ServiceError::not_found("dataset", name))?;
        self.sign_again(&mut tx, &seen.dataset, None, Life::Deleted).await?;
        leases::give_back(&mut tx, id, None, self.base.now()).await?;
        let versions = versions::delete_all(&mut tx, id, self.base.now()).await?;
        pages::drop_dead_spans(&mut tx, id).await?;
        datasets::delete(&mut tx, id, self.base.now()).await?;
        let details = json!({"name": seen.dataset.name, "versions": versions});
        self.base.journal.commit(tx, call, Act::new("dataset.delete", format!("dataset:{id}"), details)).await?;
        self.tell("dataset.deleted", &seen, "");
        Ok(versions)
    }

    /// A page of a dataset's versions, newest first; `before` is the number of the last version of the page before.
    ///
    /// # Errors
    /// When there is no dataset that the caller may see.
    pub async fn versions(
        &self,
        call: &Call,
        name: &str,
        before: u64,
        limit: u32,
    ) -> Result<(SeenDataset, Vec<Version>), ServiceError> {
        let mut session = self.base.db.read().await?;
        let seen = self.load(&mut session, call, name, Verb::DatasetShow).await?;
        let list = versions::list(&mut session, seen.dataset.id, before, limit).await?;
        Ok((seen, list))
    }

    /// Names a version of a dataset that the caller has resolved.
    ///
    /// # Errors
    /// When the caller may not, or the tag names another version and `replace` is not given.
    pub async fn set_tag(
        &self,
        call: &Call,
        seen: &SeenDataset,
        version: &Hash,
        tag: &TagName,
        replace: bool,
    ) -> Result<Tag, ServiceError> {
        self.allow(call, seen, Verb::Tag)?;
        let (id, now) = (seen.dataset.id, self.base.now());
        let mut tx = self.base.begin(call, "dataset").await?;
        let set = Tag { tag: tag.to_string(), version: *version, set_at: now };
        if !versions::set_tag(&mut tx, id, &set, call.actor.user, replace).await? {
            return Err(ServiceError::conflict(
                ErrorCode::ALREADY_EXISTS,
                format!("the tag `{tag}` names another version of `{}`", seen.dataset.name),
                "`--replace` moves it",
            ));
        }
        self.sign_tag(&mut tx, &seen.dataset, tag, Some(*version)).await?;
        let details = json!({"tag": tag.as_str(), "version": version.to_string()});
        self.base.journal.commit(tx, call, Act::new("dataset.tag", format!("dataset:{id}"), details)).await?;
        self.tell("tag.set", seen, &version.to_string());
        Ok(set)
    }

    /// Removes a tag.
    ///
    /// # Errors
    /// When there is none, or the caller may not.
    pub async fn remove_tag(&self, call: &Call, name: &str, tag: &TagName) -> Result<(), ServiceError> {
        let mut tx = self.base.begin(call, "dataset").await?;
        let seen = self.load(&mut tx, call, name, Verb::Tag).await?;
        let id = seen.dataset.id;
        if !versions::remove_tag(&mut tx, id, tag.as_str()).await? {
            return Err(ServiceError::not_found("tag", tag.as_str()));
        }
        self.sign_tag(&mut tx, &seen.dataset, tag, None).await?;
        let act = Act::new("dataset.untag", format!("dataset:{id}"), json!({"tag": tag.as_str()}));
        self.base.journal.commit(tx, call, act).await?;
        Ok(())
    }

    /// A page of a dataset's tags, by name.
    ///
    /// # Errors
    /// When there is no dataset that the caller may see.
    pub async fn list_tags(
        &self,
        call: &Call,
        name: &str,
        after: &str,
        limit: u32,
    ) -> Result<(SeenDataset, Vec<Tag>), ServiceError> {
        let mut session = self.base.db.read().await?;
        let seen = self.load(&mut session, call, name, Verb::DatasetShow).await?;
        let tags = versions::list_tags(&mut session, seen.dataset.id, after, limit).await?;
        Ok((seen, tags))
    }

    /// Withdraws a version that the caller has resolved: its bytes go, a tombstone with the reason stays. `latest` moves
    /// to the newest version that is left.
    ///
    /// # Errors
    /// When the caller may not, gives no reason, or the version is withdrawn already.
    pub async fn withdraw(
        &self,
        call: &Call,
        seen: &SeenDataset,
        version: &Version,
        reason: &str,
    ) -> Result<(), ServiceError> {
        self.allow(call, seen, Verb::DatasetWithdraw)?;
        if reason.trim().is_empty() || reason.len() > bib_core::record::MAX_REASON_BYTES {
            return Err(ServiceError::invalid("reason", "say in 1 to 4096 bytes why the version is withdrawn"));
        }
        let (id, now) = (seen.dataset.id, self.base.now());
        let mut tx = self.base.begin(call, "dataset").await?;
        datasets::lock(&mut tx, id).await?.ok_or_else(|| ServiceError::not_found("dataset", &seen.dataset.name))?;
        if version.state == VersionState::Withdrawn || !versions::withdraw(&mut tx, &version.hash, reason).await? {
            return Err(ServiceError::conflict(
                ErrorCode::WITHDRAWN,
                format!("version {} is withdrawn already", version.hash),
                "`bib dataset show` has the reason",
            ));
        }
        let name = version.hash.to_string();
        let make = |revision| {
            Body::Withdrawal(Withdrawal {
                revision,
                time: now,
                dataset: id,
                subject: WithdrawalSubject::Version(version.hash),
                reason: reason.to_owned(),
                extra: Default::default(),
            })
        };
        let about = About { kind: Kind::Withdrawal, id: &name, origin: seen.dataset.origin };
        let signed = self.base.sign_next(&mut tx, about, make).await?;
        records::put(&mut tx, "withdrawal", &name, &signed, now).await?;
        let latest = versions::newest_live(&mut tx, id).await?;
        self.fall_back(&mut tx, seen, version, latest.as_ref()).await?;
        leases::give_back(&mut tx, id, Some(&version.hash), now).await?;
        self.sign_again(&mut tx, &seen.dataset, latest, Life::Live).await?;
        pages::drop_dead_spans(&mut tx, id).await?;
        let act = Act::new("dataset.withdraw", format!("version:{name}"), json!({"reason": reason}));
        self.base.journal.commit(tx, call, act).await?;
        self.tell("version.withdrawn", seen, &name);
        Ok(())
    }

    /// Describes the dataset by what is the latest version after `withdrawn`: nothing of what that said about itself stays,
    /// unless no other is left. Then title and description are the tombstone's.
    async fn fall_back(
        &self,
        tx: &mut Tx,
        seen: &SeenDataset,
        withdrawn: &Version,
        latest: Option<&Hash>,
    ) -> Result<(), ServiceError> {
        let (id, now) = (seen.dataset.id, self.base.now());
        let earlier = match latest {
            Some(latest) => versions::find(tx, latest).await?,
            None => None,
        };
        let Some(earlier) = earlier else { return Ok(datasets::clear_latest(tx, id, now).await?) };
        let said = Statement::parse(&withdrawn.statement).map_err(ServiceError::internal)?.metadata;
        // A version without a title took over the one before; if that is gone, so is what it said.
        let (title, description) = (&seen.dataset.title, &seen.dataset.description);
        let title = if said.title.as_ref() == Some(title) { "" } else { title };
        let description = if said.description.as_ref() == Some(description) { "" } else { description };
        let metadata = Statement::parse(&earlier.statement).map_err(ServiceError::internal)?.metadata;
        let latest = latest_of(&earlier, &metadata, (title, description))?;
        Ok(datasets::fall_back(tx, id, &latest, now).await?)
    }

    /// The dataset of this full name or id, if the caller may do `verb` with it.
    ///
    /// # Errors
    /// When there is none that the caller may see, or the caller may not.
    pub async fn load(
        &self,
        session: &mut impl Session,
        call: &Call,
        name: &str,
        verb: Verb,
    ) -> Result<SeenDataset, ServiceError> {
        let (user, now) = (call.actor.user, self.base.now());
        let seen = match name.parse::<DatasetId>() {
            Ok(id) => datasets::find(session, user, now, id).await?,
            Err(_) => datasets::find_by_name(session, user, now, name, &self.base.peer).await?,
        };
        let seen = seen.ok_or_else(|| ServiceError::not_found("dataset", name))?;
        // In the caller's words: who asks by id must not be told the name of what is hidden.
        reference::allow(call, &seen, verb, Embargo::Over, ("dataset", name))?;
        Ok(seen)
    }

    /// Whether the caller may do `verb` with this dataset, as far as no bytes under embargo are read.
    ///
    /// # Errors
    /// When not.
    pub fn allow(&self, call: &Call, seen: &SeenDataset, verb: Verb) -> Result<(), ServiceError> {
        let standing = Standing::of(seen.grant, seen.is_creator);
        let what = ("dataset", seen.dataset.name.as_str());
        allow_topic(call, verb, &seen.topic_name, seen.visibility, standing, Embargo::Over, what)
    }

    /// Signs the dataset's record anew with this latest version.
    ///
    /// # Errors
    /// When the record cannot be signed or kept.
    pub async fn sign_again(
        &self,
        tx: &mut Tx,
        dataset: &Dataset,
        latest: Option<Hash>,
        life: Life,
    ) -> Result<(), ServiceError> {
        let id = dataset.id.to_string();
        let name: DatasetName = dataset.name.parse().map_err(ServiceError::internal)?;
        let make = |revision| {
            let mut body = record(dataset, revision, name, latest, life);
            body.time = self.base.now();
            Body::Dataset(body)
        };
        let signed =
            self.base.sign_next(tx, About { kind: Kind::Dataset, id: &id, origin: dataset.origin }, make).await?;
        records::put(tx, "dataset", &id, &signed, self.base.now()).await?;
        Ok(())
    }

    /// Tells listeners about a change of this dataset.
    pub fn tell(&self, kind: &'static str, seen: &SeenDataset, version: &str) {
        self.base.updates.tell(Update {
            kind,
            topic_id: seen.dataset.topic,
            topic: seen.topic_name.clone(),
            dataset: seen.dataset.name.clone(),
            version: version.to_owned(),
            time: self.base.now(),
            gone: None,
        });
    }

    async fn sign_tag(
        &self,
        tx: &mut Tx,
        dataset: &Dataset,
        tag: &TagName,
        version: Option<Hash>,
    ) -> Result<(), ServiceError> {
        let (id, now) = (format!("{}@{tag}", dataset.id), self.base.now());
        let name = tag.clone();
        let make = |revision| {
            Body::Tag(TagRecord { revision, time: now, dataset: dataset.id, name, version, extra: Default::default() })
        };
        let signed = self.base.sign_next(tx, About { kind: Kind::Tag, id: &id, origin: dataset.origin }, make).await?;
        records::put(tx, "tag", &id, &signed, now).await?;
        Ok(())
    }
}

/// How a dataset is described by its latest version; title and description, where it says none, are `unsaid`.
pub(super) fn latest_of(version: &Version, metadata: &Metadata, unsaid: (&str, &str)) -> Result<Latest, ServiceError> {
    Ok(Latest {
        version: version.hash,
        n: version.n,
        title: metadata.title.clone().unwrap_or_else(|| unsaid.0.to_owned()),
        description: metadata.description.clone().unwrap_or_else(|| unsaid.1.to_owned()),
        license: version.license.clone(),
        metadata: metadata.to_value().map_err(ServiceError::internal)?,
        files: version.files,
        size_bytes: version.size_bytes,
    })
}

fn record(dataset: &Dataset, revision: Revision, name: DatasetName, latest: Option<Hash>, life: Life) -> DatasetRecord {
    DatasetRecord {
        revision,
        time: dataset.updated_at,
        id: dataset.id,
        origin: dataset.origin,
        nonce: dataset.nonce,
        name,
        topic: dataset.topic,
        latest,
        life,
        extra: Default::default(),
    }
}

fn check(title: &str, description: &str, license_text: &str) -> Result<(), ServiceError> {
    super::topic::check_texts(title, description)?;
    if license_text.is_empty() {
        return Ok(());
    }
    license::check(license_text).map_err(|e| ServiceError::invalid("license", e.to_string()))
}
