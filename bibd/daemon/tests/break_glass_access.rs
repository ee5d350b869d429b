//! Who may break glass, what becomes of a session whose holder may not any more, and that an interrupt reaches the
//! session that it is meant for.
#![allow(
    clippy::unwrap_used,
    clippy::print_stderr,
    clippy::disallowed_methods,
    reason = "tests say what they measured and spawn tasks"
)]

#[allow(dead_code, reason = "shared with the tests of whole sessions")]
#[path = "break_glass/node.rs"]
mod node;

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use bib_client::api::Wish;
use bib_client::{Client, Options, Target, pb};
use bib_core::access::GlassAccess::ReadOnly;
use bib_identity::request::CertificateRequest;
use bib_identity::ssh::UserKey;
use bib_identity::trust::FirstUse;
use futures::TryStreamExt as _;
use node::*;

/// How long a cut may take on a machine that does other things.
const CUT_WITHIN: Duration = Duration::from_secs(60);

fn again(place: &Place, name: &str) -> UserKey {
    UserKey::load(&place.path(name), &mut |_| None).unwrap()
}

fn wish() -> Wish {
    Wish { reason: "a test".to_owned(), duration: Duration::from_secs(600), access: ReadOnly }
}

/// A client over TLS that believes whoever answers first.
fn over_tls(node: &Node, home: &Path, key: UserKey) -> Client {
    let target = Target::parse(&node.daemon.ready().addresses[0].to_string(), &BTreeMap::new()).unwrap();
    let plain = client(target.clone(), home, Some(key));
    let options = Options { first_use: FirstUse::Accept { expected: None }, ..plain.options().clone() };
    Client::connect(target, options).unwrap()
}

/// Somebody who has logged in over TLS. The key also confirms, where the configuration names it.
async fn logged_in(node: &Node, place: &Place, name: &str, role: pb::NodeRole) -> Client {
    let key = again(place, name);
    let request = pb::CreateUserRequest {
        name: name.to_owned(),
        role: role.into(),
        public_keys: vec![key.public().to_line()],
        ..Default::default()
    };
    node.client().users().create(request).await.unwrap();
    let client = over_tls(node, &place.path(&format!("home-{name}")), again(place, name));
    client.login(Arc::new(key)).await.unwrap();
    client
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn only_an_admin_whose_session_is_not_narrowed_and_only_its_holder_uses_it() {
    let Some(place) = Place::new().await else { return };
    let names = ["ada", "wim", "eve"];
    names.iter().for_each(|name| drop(place.key(name)));
    let node = Node::start(&place, &place.allowing(&again(&place, "ada"))).await;
    let ada = logged_in(&node, &place, "ada", pb::NodeRole::Admin).await;
    let wim = logged_in(&node, &place, "wim", pb::NodeRole::Writer).await;
    let eve = logged_in(&node, &place, "eve", pb::NodeRole::Admin).await;

    // A writer may nothing of it, not even look.
    let glass = wim.break_glass();
    assert_eq!(refused(glass.status().await), "BIB0110");
    assert_eq!(refused(glass.enable(&wish()).await), "BIB0110");
    assert_eq!(refused(glass.disable("").await), "BIB0110");
    assert_eq!(refused(glass.report("").await), "BIB0110");
    assert_eq!(refused(glass.review("", "x").await), "BIB0110");
    assert_eq!(refused(glass.show(&uuid::Uuid::nil().to_string(), "jsonl").await), "BIB0110");
    assert_eq!(refused(glass.session(futures::stream::empty()).await), "BIB0110");

    // Nor does an admin's token that is for something else.
    let request = CertificateRequest::generate().unwrap();
    let token = pb::CreateTokenRequest {
        name: "script".to_owned(),
        scopes: vec!["publish".to_owned()],
        expires_in_seconds: 3_600,
        csr: request.der.clone().into(),
    };
    let token = ada.auth().create_token(token).await.unwrap();
    let der = bib_identity::pem::decode_one(token.certificate_pem.as_bytes(), bib_identity::pem::CERTIFICATE).unwrap();
    let file = bib_identity::token_file::TokenFile::new(&request.key_pem, &der, token.token.into()).unwrap();
    file.create(&place.path("token")).unwrap();
    let options = Options { token_file: Some(place.path("token")), ..ada.options().clone() };
    let script = Client::connect(ada.target().clone(), options).unwrap();
    assert_eq!(refused(script.break_glass().status().await), "BIB0111");
    assert_eq!(refused(script.break_glass().enable(&wish()).await), "BIB0111");
    assert_eq!(refused(script.break_glass().session(futures::stream::empty()).await), "BIB0111");

    // An admin whose key is not named is refused, and cannot ride on another one's grant.
    assert_eq!(refused(eve.break_glass().enable(&wish()).await), "BIB0603");
    assert_eq!(refused(ada.break_glass().session(futures::stream::empty()).await), "BIB0608");
    ada.break_glass().enable(&wish()).await.unwrap();
    assert_eq!(refused(eve.break_glass().session(futures::stream::empty()).await), "BIB0608");
    assert_eq!(Bridge::new(ada.clone()).run("SELECT 'in';").await.out, "in\n");
    // But may end it.
    assert_eq!(eve.break_glass().disable("").await.unwrap().end_reason, "disabled");
    let denied = async || node.entries("").await.into_iter().filter(|entry| entry.2 == "denied").count();
    wait_for("refusals in the log", Duration::from_secs(30), async || denied().await >= 8).await;
    node.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_revoked_certificate_and_a_suspended_holder_are_out() {
    let Some(place) = Place::new().await else { return };
    place.key("ada");
    let node = Node::start(&place, &place.allowing(&again(&place, "ada"))).await;
    let ada = logged_in(&node, &place, "ada", pb::NodeRole::Admin).await;
    ada.break_glass().enable(&wish()).await.unwrap();
    let mut superuser = node.superuser().await;
    let inside = "SELECT pid::text FROM pg_stat_activity WHERE usename ~ '^bibd_glass_'";

    let bridge = Bridge::new(ada.clone());
    let running = bridge.talk("SELECT pg_sleep(3600);").await;
    wait_for("the session", Duration::from_secs(30), async || texts(&mut superuser, inside).await.len() == 1).await;
    let serial = {
        use futures::TryStreamExt as _;
        let all: Vec<_> = ada.auth().certificates(bib_client::api::Whose::Mine).try_collect().await.unwrap();
        all.into_iter().find(|one| one.state == "valid").unwrap().serial
    };
    node.client().auth().revoke_certificate(&serial, "lost").await.unwrap();
    let took = wait_for("the cut", CUT_WITHIN, async || texts(&mut superuser, inside).await.is_empty()).await;
    eprintln!("a session was cut {took:?} after its certificate was revoked");
    assert_ne!(running.leave().await.err, "");
    assert_eq!(node.status().await.grant.unwrap().state, "open", "another log-in of the holder goes on with it");

    let ada = over_tls(&node, &place.path("home-again"), again(&place, "ada"));
    ada.login(Arc::new(again(&place, "ada"))).await.unwrap();
    let bridge = Bridge::new(ada.clone());
    let running = bridge.talk("SELECT pg_sleep(3600);").await;
    wait_for("the session", Duration::from_secs(30), async || texts(&mut superuser, inside).await.len() == 1).await;
    node.client().users().suspend("ada", "odd").await.unwrap();
    wait_for("the cut", CUT_WITHIN, async || left(&mut superuser).await.is_empty()).await;
    assert_ne!(running.leave().await.err, "");
    assert_eq!(node.ended().await, "holder");
    node.stop().await;
}

#[tokio::test]
async fn ctrl_c_reaches_the_right_session() {
    let Some(place) = Place::new().await else { return };
    interrupted(place).await;
}

#[tokio::test]
async fn ctrl_c_reaches_the_right_session_over_tcp() {
    let Some(place) = Place::over_tcp().await else { return };
    interrupted(place).await;
}

async fn interrupted(place: Place) {
    let key = place.key("key");
    let node = Node::start(&place, &place.allowing(&key)).await;
    node.open(key, ReadOnly, 600).await;
    let bridge = Bridge::new(node.client());
    let other = bridge.talk("SELECT pg_sleep(3600);").await;
    let one = bridge.talk("SELECT pg_sleep(3601);").await;
    let mut superuser = node.superuser().await;
    let running = "SELECT query FROM pg_stat_activity WHERE usename ~ '^bibd_glass_' AND state = 'active' ORDER BY 1";
    let queries = ["SELECT pg_sleep(3600);", "SELECT pg_sleep(3601);"];
    wait_for("both", Duration::from_secs(30), async || texts(&mut superuser, running).await == queries).await;
    one.interrupt();
    wait_for("one", Duration::from_secs(30), async || texts(&mut superuser, running).await == queries[..1]).await;
    let said = one.leave().await;
    // A `psql` that reads a script leaves then, by itself and with a word: its session was not cut.
    assert!(said.err.contains("canceling statement due to user request"), "{said:?}");
    let ends = async || {
        let sessions: Vec<_> = node.client().break_glass().sessions("").try_collect().await.unwrap();
        sessions.into_iter().map(|session| session.end_reason).filter(|end| !end.is_empty()).collect::<Vec<_>>()
    };
    wait_for("its end", Duration::from_secs(30), async || ends().await == ["left"]).await;
    assert!(node.recorded().await.iter().any(|line| line["kind"] == "cancel"));
    // Whose psql is killed leaves nothing running.
    drop(other);
    wait_for("nobody", CUT_WITHIN, async || texts(&mut superuser, running).await.is_empty()).await;
    assert_eq!(node.status().await.grant.unwrap().state, "open");
    node.stop().await;
}
