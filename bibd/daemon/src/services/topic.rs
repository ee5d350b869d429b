//! Topics: create, find, list, change, delete. Grants are in `grant.rs`.

use bib_core::access::{Embargo, Standing, Verb, Visibility};
use bib_core::metadata::license;
use bib_core::name::TopicName;
use bib_core::record::{Body, Kind, Life, Revision, Topic as TopicRecord};
use bib_core::{KeyFingerprint, TopicId};
use bibd_catalog::topics::{SeenTopic, Topic, TopicChange, TopicFilter};
use bibd_catalog::{Session, Tx, grants, node, records, topics};
use serde_json::json;

use super::base::{About, Base, allow_node, allow_topic};
use super::error::ServiceError;
use super::journal::Act;
use super::updates::{Readers, Update};
use crate::actor::{Call, Via};
use crate::errors::ErrorCode;

/// First answers to repeated requests are kept for a day.
const ANSWER_SECONDS: i64 = 24 * 60 * 60;

/// What a new topic is to be.
#[derive(Debug, Clone)]
pub struct NewTopic {
    /// Full name.
    pub name: TopicName,
    /// For people.
    pub title: String,
    /// For people.
    pub description: String,
    /// Who may see it.
    pub visibility: Visibility,
    /// SPDX expression, or empty.
    pub default_license: String,
    /// Also make the missing topics above it, private and without a title.
    pub parents: bool,
    /// The first answer is given again for the same key; empty for none.
    pub idempotency_key: String,
}

impl NewTopic {
    /// A private topic with nothing but a name.
    #[must_use]
    pub fn named(name: TopicName) -> Self {
        Self {
            name,
            title: String::new(),
            description: String::new(),
            visibility: Visibility::Private,
            default_license: String::new(),
            parents: false,
            idempotency_key: String::new(),
        }
    }
}

/// The use cases of topics.
#[derive(Debug, Clone)]
pub struct TopicUseCases {
    base: Base,
}

impl TopicUseCases {
    /// Over the node.
    #[must_use]
    pub fn new(base: Base) -> Self {
        Self { base }
    }

    /// Makes a topic. Its maker has admin on it.
    ///
    /// # Errors
    /// When the name is taken, the topic above is missing, or the caller may not.
    pub async fn create(&self, call: &Call, new: NewTopic) -> Result<SeenTopic, ServiceError> {
        check(&new.title, &new.description, &new.default_license)?;
        let key = new.idempotency_key.clone();
        let mut tx = self.base.begin(call, "topic").await?;
        if let Some(topic) = self.earlier(&mut tx, call, &key).await? {
            tx.rollback().await?;
            return Ok(topic);
        }
        let mut made = Vec::new();
        let parent = match new.name.parent() {
            None => None,
            Some(above) if new.parents => Some(self.ensure_in(&mut tx, call, &above, &mut made).await?),
            Some(above) => match self.look_up_seen(&mut tx, call, above.as_str()).await? {
                Some(seen) => Some(seen),
                None => {
                    return Err(ServiceError::conflict(
                        ErrorCode::UNMET_CONDITION,
                        format!("there is no topic `{above}` to put `{}` into", new.name),
                        "`bib topic create --parents` makes it too",
                    ));
                }
            },
        };
        let topic = self.insert(&mut tx, call, &new, parent.as_ref()).await?;
        made.push(topic.clone());
        if !key.is_empty() {
            let answer = topic.id.to_string();
            let kept =
                node::keep_answer(&mut tx, call.actor.user, &key, "topic.create", answer.as_bytes(), self.base.now());
            kept.await?;
        }
        self.commit_made(tx, call, &made).await?;
        Ok(SeenTopic { topic, grant: None, is_creator: true, datasets: 0 })
    }

    /// The topic of this name, made (private, with what is above it) if it is missing. For a publish into a new topic;
    /// the entries about what was made are added to the transaction, which the caller commits and then tells with
    /// [`TopicUseCases::tell_made`].
    ///
    /// # Errors
    /// When it is missing and the caller may not make it.
    pub async fn ensure_in(
        &self,
        tx: &mut Tx,
        call: &Call,
        name: &TopicName,
        made: &mut Vec<Topic>,
    ) -> Result<SeenTopic, ServiceError> {
        let mut missing = Vec::new();
        let mut found = None;
        let mut at = Some(name.clone());
        while let Some(here) = at {
            if let Some(seen) = self.look_up_seen(tx, call, here.as_str()).await? {
                found = Some(seen);
                break;
            }
            at = here.parent();
            missing.push(here);
        }
        for here in missing.into_iter().rev() {
            let topic = self.insert(tx, call, &NewTopic::named(here), found.as_ref()).await?;
            made.push(topic.clone());
            found = Some(SeenTopic { topic, grant: None, is_creator: true, datasets: 0 });
        }
        found.ok_or_else(|| ServiceError::not_found("topic", name.as_str()))
    }

    /// The topic of this name or id, as the caller sees it.
    ///
    /// # Errors
    /// When there is none that the caller may see.
    pub async fn get(&self, call: &Call, name: &str) -> Result<SeenTopic, ServiceError> {
        let mut session = self.base.db.read().await?;
        self.load(&mut session, call, name, Verb::TopicRead).await
    }

    /// A page of the topics that the caller may see, by name.
    ///
    /// # Errors
    /// When the database is gone.
    pub async fn list(
        &self,
        call: &Call,
        under: &str,
        after: &str,
        limit: u32,
    ) -> Result<Vec<SeenTopic>, ServiceError> {
        allow_node(call, Verb::NodeRead)?;
        let mut filter =
            TopicFilter { all: call.actor.is_admin(), under: under.to_owned(), after: after.to_owned(), limit };
        let mut session = self.base.db.read().await?;
        let mut seen = Vec::new();
        // A narrowed token sees fewer: pages are read until one is full, so that a full page still means that there is more.
        loop {
            let page = topics::list(&mut session, call.actor.user, self.base.now(), &filter).await?;
            let is_last = page.len() < limit as usize;
            filter.after = page.last().map(|seen| seen.topic.name.clone()).unwrap_or_default();
            seen.extend(page.into_iter().filter(|seen| call.actor.scopes.allow_read(&seen.topic.name)));
            if is_last || seen.len() >= limit as usize {
                seen.truncate(limit as usize);
                return Ok(seen);
            }
        }
    }

    /// Changes a topic. Going more open is an act of its own in the audit log.
    ///
    /// # Errors
    /// When the caller may not, or a value is not acceptable.
    pub async fn update(&self, call: &Call, name: &str, change: TopicChange) -> Result<SeenTopic, ServiceError> {
        let text = |field: &Option<String>| field.clone().unwrap_or_default();
        check(&text(&change.title), &text(&change.description), &text(&change.default_license))?;
        let mut tx = self.base.begin(call, "topic").await?;
        let seen = self.load(&mut tx, call, name, Verb::TopicUpdate).await?;
        let moved = change.visibility.filter(|visibility| *visibility != seen.topic.visibility);
        if moved.is_some() {
            self.allow(call, &seen, Verb::TopicOpen)?;
        }
        if !topics::lock(&mut tx, seen.topic.id).await? {
            return Err(ServiceError::not_found("topic", name));
        }
        topics::update(&mut tx, seen.topic.id, &change, self.base.now()).await?;
        let changed = self.load(&mut tx, call, &seen.topic.id.to_string(), Verb::TopicRead).await?;
        self.sign_again(&mut tx, &changed.topic, Life::Live).await?;
        let (action, details) = match moved {
            Some(to) => ("topic.visibility", json!({"from": seen.topic.visibility, "to": to})),
            None => ("topic.update", json!({})),
        };
        let act = Act::new(action, format!("topic:{}", changed.topic.id), details);
        self.base.journal.commit(tx, call, act).await?;
        self.tell("topic.updated", &changed.topic);
        Ok(changed)
    }

    /// Deletes an empty topic: its name is free again, its id is not.
    ///
    /// # Errors
    /// When it holds datasets or topics, or the caller may not.
    pub async fn delete(&self, call: &Call, name: &str) -> Result<(), ServiceError> {
        let mut tx = self.base.begin(call, "topic").await?;
        let seen = self.load(&mut tx, call, name, Verb::TopicDelete).await?;
        let id = seen.topic.id;
        if !topics::lock(&mut tx, id).await? {
            return Err(ServiceError::not_found("topic", name));
        }
        let (datasets, below) = topics::in_use(&mut tx, id).await?;
        if datasets + below > 0 {
            return Err(ServiceError::conflict(
                ErrorCode::UNMET_CONDITION,
                format!("the topic `{}` holds {datasets} datasets and {below} topics", seen.topic.name),
                "delete or move them first; `bib dataset list --topic` shows them",
            ));
        }
        self.sign_again(&mut tx, &seen.topic, Life::Deleted).await?;
        let mut users = grants::holders(&mut tx, id, self.base.now()).await?;
        users.extend(seen.topic.created_by);
        let readers = Readers { everybody: seen.topic.visibility != Visibility::Private, users };
        topics::delete(&mut tx, id, self.base.now()).await?;
        let act = Act::new("topic.delete", format!("topic:{id}"), json!({"name": seen.topic.name}));
        self.base.journal.commit(tx, call, act).await?;
        self.tell_gone("topic.deleted", &seen.topic, Some(readers));
        Ok(())
    }

    /// Whether the caller may hear of a change. Asked anew for each: a grant may have been taken back meanwhile.
    pub async fn may_hear(&self, call: &Call, update: &Update) -> bool {
        match &update.gone {
            None => self.get(call, &update.topic_id.to_string()).await.is_ok(),
            Some(readers) => {
                let could = readers.everybody || call.actor.is_admin() || readers.users.contains(&call.actor.user);
                could && call.actor.scopes.allow_read(&update.topic)
            }
        }
    }

    /// The topic of this name or id, if the caller may do `verb` there. Also used by `grant.rs`.
    ///
    /// # Errors
    /// When there is none that the caller may see, or the caller may not.
    pub async fn load(
        &self,
        session: &mut impl Session,
        call: &Call,
        name: &str,
        verb: Verb,
    ) -> Result<SeenTopic, ServiceError> {
        let seen = match name.parse::<TopicId>() {
            Ok(id) => topics::find(session, call.actor.user, self.base.now(), id).await?,
            Err(_) => self.look_up(session, call, name).await?,
        };
        let seen = seen.ok_or_else(|| ServiceError::not_found("topic", name))?;
        // In the caller's words: who asks by id must not be told the name of what is hidden.
        allow(call, &seen, verb, name)?;
        Ok(seen)
    }

    /// Whether the caller may do `verb` at this topic.
    ///
    /// # Errors
    /// When not.
    pub fn allow(&self, call: &Call, seen: &SeenTopic, verb: Verb) -> Result<(), ServiceError> {
        allow(call, seen, verb, &seen.topic.name)
    }

    /// Tells listeners about topics that a transaction made.
    pub fn tell_made(&self, made: &[Topic]) {
        for topic in made {
            self.tell("topic.created", topic);
        }
    }

    async fn look_up(
        &self,
        session: &mut impl Session,
        call: &Call,
        name: &str,
    ) -> Result<Option<SeenTopic>, ServiceError> {
        Ok(topics::find_by_name(session, call.actor.user, self.base.now(), name, &self.base.peer).await?)
    }

    /// As `look_up`, but what the caller may not see is not there: whether a hidden topic exists must not show in the
    /// error of who wants to make something below it. (Who may make topics at the top learns that a name is taken.)
    async fn look_up_seen(
        &self,
        session: &mut impl Session,
        call: &Call,
        name: &str,
    ) -> Result<Option<SeenTopic>, ServiceError> {
        let found = self.look_up(session, call, name).await?;
        Ok(found.filter(|seen| self.allow(call, seen, Verb::TopicRead).is_ok()))
    }

    /// The answer that the same request got before.
    async fn earlier(&self, tx: &mut Tx, call: &Call, key: &str) -> Result<Option<SeenTopic>, ServiceError> {
        if key.is_empty() {
            return Ok(None);
        }
        if key.len() > 128 {
            return Err(ServiceError::invalid("idempotency_key", "at most 128 bytes"));
        }
        let since = self.base.now().plus_seconds(-ANSWER_SECONDS);
        let Some((method, answer)) = node::find_answer(tx, call.actor.user, key, since).await? else {
            return Ok(None);
        };
        let id = String::from_utf8(answer).ok().and_then(|text| text.parse::<TopicId>().ok());
        let (true, Some(id)) = (method == "topic.create", id) else {
            return Err(ServiceError::invalid("idempotency_key", "was used for another request"));
        };
        Ok(topics::find(tx, call.actor.user, self.base.now(), id).await?)
    }

    async fn insert(
        &self,
        tx: &mut Tx,
        call: &Call,
        new: &NewTopic,
        parent: Option<&SeenTopic>,
    ) -> Result<Topic, ServiceError> {
        match parent {
            None => allow_node(call, Verb::TopicCreate)?,
            Some(parent) => self.allow(call, parent, Verb::TopicCreateChild)?,
        }
        let (nonce, now) = (self.base.ids.nonce(), self.base.now());
        let topic = Topic {
            id: TopicId::derive(&self.base.peer, &nonce),
            name: new.name.to_string(),
            parent: parent.map(|parent| parent.topic.id),
            owner: self.base.peer,
            origin: self.base.peer,
            nonce,
            title: new.title.clone(),
            description: new.description.clone(),
            visibility: new.visibility,
            default_license: new.default_license.clone(),
            created_by: Some(call.actor.user),
            created_at: now,
            updated_at: now,
        };
        // On the socket no key is shown: then the record names none.
        let creator = match &call.actor.via {
            Via::Tls { key, .. } => Some(*key),
            Via::Socket { .. } | Via::Internal { .. } => None,
        };
        let body = record(&topic, Revision::first(self.base.epoch), Life::Live, creator, new.name.clone());
        let signed = self.base.sign(&Body::Topic(body))?;
        match topics::insert(tx, &topic, &signed).await {
            Err(error) if error.is_conflict_on("names_pkey") => {
                Err(ServiceError::already_exists("topic or dataset", new.name.as_str()))
            }
            Err(error) => Err(error.into()),
            Ok(()) => Ok(topic),
        }
    }

    /// Every topic that was made is an act of its own; the last one closes the transaction.
    async fn commit_made(&self, mut tx: Tx, call: &Call, made: &[Topic]) -> Result<(), ServiceError> {
        let act = |topic: &Topic| {
            let details = json!({"name": topic.name, "visibility": topic.visibility});
            Act::new("topic.create", format!("topic:{}", topic.id), details)
        };
        let Some((last, before)) = made.split_last() else { return Ok(tx.rollback().await?) };
        for topic in before {
            self.base.journal.add(&mut tx, call, act(topic)).await?;
        }
        self.base.journal.commit(tx, call, act(last)).await?;
        self.tell_made(made);
        Ok(())
    }

    async fn sign_again(&self, tx: &mut Tx, topic: &Topic, life: Life) -> Result<(), ServiceError> {
        let id = topic.id.to_string();
        let name = TopicName::new(&topic.name).map_err(ServiceError::internal)?;
        let before = records::find(tx, "topic", &id).await?;
        let creator = match before.map(|record| Body::parse(&record.body)).transpose() {
            Ok(Some(Body::Topic(before))) => before.creator,
            Ok(_) => None,
            Err(error) => return Err(ServiceError::internal(error)),
        };
        let make = |revision| Body::Topic(record(topic, revision, life, creator, name));
        let signed = self.base.sign_next(tx, About { kind: Kind::Topic, id: &id, origin: topic.origin }, make).await?;
        records::put(tx, "topic", &id, &signed, self.base.now()).await?;
        Ok(())
    }

    fn tell(&self, kind: &'static str, topic: &Topic) {
        self.tell_gone(kind, topic, None);
    }

    fn tell_gone(&self, kind: &'static str, topic: &Topic, gone: Option<Readers>) {
        self.base.updates.tell(Update {
            kind,
            topic_id: topic.id,
            topic: topic.name.clone(),
            dataset: String::new(),
            version: String::new(),
            time: self.base.now(),
            gone,
        });
    }
}

fn record(
    topic: &Topic,
    revision: Revision,
    life: Life,
    creator: Option<KeyFingerprint>,
    name: TopicName,
) -> TopicRecord {
    let some = |text: &str| (!text.is_empty()).then(|| text.to_owned());
    TopicRecord {
        revision,
        time: topic.updated_at,
        id: topic.id,
        origin: topic.origin,
        nonce: topic.nonce,
        name,
        parent: topic.parent,
        visibility: topic.visibility,
        license: some(&topic.default_license),
        title: some(&topic.title),
        description: some(&topic.description),
        creator,
        life,
        extra: Default::default(),
    }
}

fn allow(call: &Call, seen: &SeenTopic, verb: Verb, asked: &str) -> Result<(), ServiceError> {
    let standing = Standing::of(seen.grant, seen.is_creator);
    let (name, visibility) = (&seen.topic.name, seen.topic.visibility);
    allow_topic(call, verb, name, visibility, standing, Embargo::Over, ("topic", asked))
}

/// Titles are one line, descriptions are paragraphs.
///
/// # Errors
/// When they are not.
pub fn check_texts(title: &str, description: &str) -> Result<(), ServiceError> {
    if title.chars().any(char::is_control) {
        return Err(ServiceError::invalid("title", "one line without control characters"));
    }
    if description.chars().any(|c| c.is_control() && c != '\n' && c != '\t') {
        return Err(ServiceError::invalid("description", "no control characters but line ends and tabs"));
    }
    Ok(())
}

fn check(title: &str, description: &str, license_text: &str) -> Result<(), ServiceError> {
    check_texts(title, description)?;
    if license_text.is_empty() {
        return Ok(());
    }
    license::check(license_text).map_err(|e| ServiceError::invalid("default_license", e.to_string()))
}
