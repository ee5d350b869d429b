//! What a private topic keeps to itself: nobody learns that it, or what lies in it, is there, whatever they ask and
//! however narrow their token is.
#![allow(clippy::unwrap_used)]

#[path = "support/publish.rs"]
mod publish;
mod support;

use bib_core::access::{GrantLevel, NodeRole, Verb};
use bib_core::{DatasetId, Hash};
use bibd::actor::{Scope, Scopes};
use bibd::errors::ErrorCode;
use bibd::services::ServiceError;
use bibd::services::commit::Committed;
use bibd::services::dataset::NewDataset;
use bibd::services::grant::GrantUseCases;
use bibd::services::reference;
use bibd::services::topic::NewTopic;
use bibd::services::upload::BeginUpload;
use publish::{describe, folder};
use support::{Lab, Person};

/// What the caller is told, with the name that was asked for taken out.
fn told(error: ServiceError, asked: &str) -> (String, String) {
    (error.code().to_string(), error.to_string().replace(asked, "_"))
}

#[tokio::test(flavor = "multi_thread")]
async fn an_id_does_not_tell_a_hidden_name() {
    let Some(lab) = Lab::start().await else { return };
    let ada = lab.person("ada", NodeRole::Writer).await;
    let eve = lab.person("eve", NodeRole::Writer).await;
    lab.publish(&ada, "hidden/plans", &folder(&[("x", b"1")])).await.unwrap();
    let dataset = lab.datasets.get(&ada.call, "hidden/plans").await.unwrap().dataset;
    let (id, topic) = (dataset.id.to_string(), dataset.topic.to_string());
    let other = DatasetId::derive(&lab.base.peer, &lab.base.ids.nonce()).to_string();

    let hidden = lab.datasets.get(&eve.call, &id).await.unwrap_err();
    assert!(!hidden.to_string().contains("hidden"), "{hidden}");
    assert_eq!(told(hidden, &id), told(lab.datasets.get(&eve.call, &other).await.unwrap_err(), &other));
    let hidden = lab.topics.get(&eve.call, &topic).await.unwrap_err();
    assert!(!hidden.to_string().contains("hidden"), "{hidden}");
    assert_eq!(told(hidden, &topic), told(lab.topics.get(&eve.call, &other).await.unwrap_err(), &other));
    assert_eq!(
        told(lab.datasets.delete(&eve.call, &id).await.unwrap_err(), &id),
        told(lab.datasets.delete(&eve.call, &other).await.unwrap_err(), &other)
    );
    lab.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn making_something_below_a_hidden_topic_tells_nothing() {
    let Some(lab) = Lab::start().await else { return };
    let ada = lab.person("ada", NodeRole::Writer).await;
    let eve = lab.person("eve", NodeRole::Reader).await;
    lab.publish(&ada, "hidden/plans", &folder(&[("x", b"1")])).await.unwrap();

    let below = async |topic: &str, parents: bool| {
        let new = NewTopic { parents, ..NewTopic::named(format!("{topic}/below").parse().unwrap()) };
        told(lab.topics.create(&eve.call, new).await.unwrap_err(), topic)
    };
    let begin = async |name: &str, create: bool| {
        let wanted = BeginUpload { dataset: name.parse().unwrap(), create, parent: None, session: None };
        told(lab.data.uploads.begin(&eve.call, &wanted).await.map(drop).unwrap_err(), name)
    };
    let make = async |name: &str, create_topic: bool| {
        let new = NewDataset { create_topic, ..NewDataset::default() };
        let topic = name.split('/').next().unwrap();
        told(lab.datasets.create(&eve.call, &name.parse().unwrap(), new).await.unwrap_err(), topic)
    };
    for yes in [false, true] {
        assert_eq!(below("hidden", yes).await, below("absent", yes).await);
        assert_eq!(begin("hidden/plans", yes).await, begin("absent/plans", yes).await);
        assert_eq!(begin("hidden/other", yes).await, begin("absent/other", yes).await);
        assert_eq!(make("hidden/plans", yes).await, make("absent/plans", yes).await);
    }
    lab.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_narrow_token_does_not_learn_what_lies_outside_its_scope() {
    let Some(lab) = Lab::start().await else { return };
    let ada = lab.person("ada", NodeRole::Admin).await;
    lab.publish(&ada, "open/d", &folder(&[("x", b"1")])).await.unwrap();
    let version = lab.publish(&ada, "hidden/d", &folder(&[("x", b"2")])).await.unwrap().version().hash;
    for scopes in [Scope::TopicRead("open".to_owned()), Scope::TopicWrite("open".to_owned())] {
        let mut narrow = ada.call.clone();
        narrow.actor.scopes = Scopes::Only(vec![scopes]);
        let absent = Hash::of(b"absent").to_string();
        for verb in Verb::ALL.iter().copied().filter(|verb| verb.as_str().starts_with("dataset.")) {
            let mut session = lab.base.db.read().await.unwrap();
            let mut ask = async |text: &str| {
                let found = reference::version(&lab.base, &narrow, &mut session, text, verb).await;
                told(found.map(drop).unwrap_err(), text)
            };
            assert_eq!(ask(&version.to_string()).await, ask(&absent).await, "{verb}");
            assert_eq!(ask("hidden/d").await, ask("hidden/none").await, "{verb}");
        }
        for (hidden, absent) in [("hidden/d", "hidden/n"), ("hidden/d", "none/d")] {
            let delete = async |name: &str| told(lab.datasets.delete(&narrow, name).await.unwrap_err(), name);
            assert_eq!(delete(hidden).await, delete(absent).await);
        }
        // What its scope covers it is told the truth about.
        let error = lab.datasets.delete(&narrow, "open/d").await.unwrap_err();
        assert_eq!(error.code(), ErrorCode::SCOPE_TOO_NARROW);
    }
    lab.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_grant_that_was_taken_back_is_not_renewed() {
    let Some(lab) = Lab::start().await else { return };
    let ada = lab.person("ada", NodeRole::Writer).await;
    let ben = lab.person("ben", NodeRole::Reader).await;
    lab.publish(&ada, "t/d", &folder(&[("x", b"1")])).await.unwrap();
    let grants = GrantUseCases::new(lab.base.clone(), lab.topics.clone());
    let given = grants.grant(&ada.call, "t", "ben", GrantLevel::Write, 0).await.unwrap();
    assert_eq!(lab.download(&ben, "t/d").await.unwrap(), folder(&[("x", b"1")]));
    // As a round that has looked it up, and goes on after it was changed.
    let later = lab.base.now().plus_seconds(60);
    grants.grant(&ada.call, "t", "ben", GrantLevel::Read, 0).await.unwrap();
    let mut tx = lab.base.begin(&ada.call, "test").await.unwrap();
    let renewed = bibd_catalog::grants::renew(&mut tx, &given, later, later.plus_seconds(60)).await.unwrap();
    assert!(!renewed, "a lowered grant keeps its level");
    tx.rollback().await.unwrap();
    grants.revoke(&ada.call, "t", "ben").await.unwrap();
    let mut tx = lab.base.begin(&ada.call, "test").await.unwrap();
    assert!(!bibd_catalog::grants::renew(&mut tx, &given, later, later.plus_seconds(60)).await.unwrap());
    tx.commit().await.unwrap();
    assert_eq!(lab.download(&ben, "t/d").await.unwrap_err().code(), ErrorCode::NOT_FOUND);
    lab.stop().await;
}

async fn staged(lab: &Lab, who: &Person, dataset: &str, text: &[u8]) -> bibd::services::commit::CommitVersion {
    let described = describe(&folder(&[("x", text)]));
    let begun = lab.begin(who, dataset).await.unwrap();
    lab.stage(who, begun.upload.id, &described).await.unwrap();
    let statement = lab.statement(who, &begun, &described, begun.latest.iter().map(|version| version.hash).collect());
    lab.signed(who, begun.upload.id, &statement, described.layout_root.hash)
}

#[tokio::test(flavor = "multi_thread")]
async fn an_idempotency_key_is_for_one_dataset() {
    let Some(lab) = Lab::start().await else { return };
    let ada = lab.person("ada", NodeRole::Writer).await;
    let mut first = staged(&lab, &ada, "t/one", b"same").await;
    first.idempotency_key = "key".to_owned();
    assert!(matches!(
        lab.data.commits.commit(&ada.call, first).await.unwrap(),
        Committed::Version { created: true, .. }
    ));
    let mut second = staged(&lab, &ada, "t/two", b"same").await;
    second.idempotency_key = "key".to_owned();
    let error = lab.data.commits.commit(&ada.call, second).await.unwrap_err();
    assert_eq!(error.code(), ErrorCode::INVALID, "it was told that a version of t/one is the answer");
    lab.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_taken_back_during_an_upload_counts_at_the_commit() {
    let Some(lab) = Lab::start().await else { return };
    let ada = lab.person("ada", NodeRole::Writer).await;
    let ben = lab.person("ben", NodeRole::Reader).await;
    lab.publish(&ada, "t/d", &folder(&[("x", b"1")])).await.unwrap();
    let grants = GrantUseCases::new(lab.base.clone(), lab.topics.clone());
    grants.grant(&ada.call, "t", "ben", GrantLevel::Write, 0).await.unwrap();
    let wanted = staged(&lab, &ben, "t/d", b"2").await;
    grants.revoke(&ada.call, "t", "ben").await.unwrap();
    assert_eq!(lab.data.commits.commit(&ben.call, wanted.clone()).await.unwrap_err().code(), ErrorCode::NOT_FOUND);
    grants.grant(&ada.call, "t", "ben", GrantLevel::Read, 0).await.unwrap();
    assert_eq!(lab.data.commits.commit(&ben.call, wanted.clone()).await.unwrap_err().code(), ErrorCode::DENIED);
    grants.grant(&ada.call, "t", "ben", GrantLevel::Write, 0).await.unwrap();
    let key = ben.key.public().fingerprint().to_string();
    let removed = sqlx::query("UPDATE bib.user_keys SET removed_at = now() WHERE fingerprint = $1").bind(&key);
    removed.execute(&lab.sql).await.unwrap();
    assert!(lab.data.commits.commit(&ben.call, wanted.clone()).await.is_err(), "signed with a removed key");
    let back = sqlx::query("UPDATE bib.user_keys SET removed_at = NULL WHERE fingerprint = $1").bind(&key);
    back.execute(&lab.sql).await.unwrap();
    let committed = lab.data.commits.commit(&ben.call, wanted).await.unwrap();
    assert!(matches!(committed, Committed::Version { created: true, .. }));
    lab.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn who_could_see_a_topic_hears_that_it_is_gone() {
    let Some(lab) = Lab::start().await else { return };
    let ada = lab.person("ada", NodeRole::Writer).await;
    let ben = lab.person("ben", NodeRole::Writer).await;
    let eve = lab.person("eve", NodeRole::Writer).await;
    let admin = lab.person("root", NodeRole::Admin).await;
    let mut updates = lab.base.updates.listen();
    lab.topics.create(&ada.call, NewTopic::named("hidden".parse().unwrap())).await.unwrap();
    let grants = GrantUseCases::new(lab.base.clone(), lab.topics.clone());
    grants.grant(&ada.call, "hidden", "ben", GrantLevel::Read, 0).await.unwrap();
    lab.topics.delete(&ada.call, "hidden").await.unwrap();
    let made = updates.recv().await.unwrap();
    let gone = loop {
        let update = updates.recv().await.unwrap();
        if update.kind == "topic.deleted" {
            break update;
        }
    };
    assert_eq!((made.kind, gone.topic.as_str()), ("topic.created", "hidden"));
    for (who, hears) in [(&ada, true), (&ben, true), (&eve, false), (&admin, true)] {
        assert_eq!(lab.topics.may_hear(&who.call, &gone).await, hears, "{}", who.call.actor.name);
    }
    let mut narrow = ada.call.clone();
    narrow.actor.scopes = Scopes::Only(vec![Scope::TopicRead("other".to_owned())]);
    assert!(!lab.topics.may_hear(&narrow, &gone).await);
    lab.stop().await;
}
