//! Accounts end to end: a real daemon on a real PostgreSQL, called over its socket and over TLS.
#![allow(clippy::unwrap_used)]

#[path = "accounts/node.rs"]
mod node;

use std::sync::Arc;
use std::time::Duration;

use bib_core::Hash;
use bib_core::access::NodeRole;
use bib_proto::v1 as pb;
use bibd::errors::ErrorCode;
use bibd::grpc::Peer;
use bibd::services::accounts::Accounts;
use bibd::services::auth::authenticate::Authentication;
use bibd::services::base::Base;
use node::{Attempt, Credentials, Node, code, refused, wait_for};

const FIVE_SECONDS: Duration = Duration::from_secs(5);

fn named(user: &str) -> pb::GetUserRequest {
    pb::GetUserRequest { user: user.to_owned() }
}

fn suspend(user: &str) -> pb::SuspendUserRequest {
    pb::SuspendUserRequest { user: user.to_owned(), reason: "test".to_owned() }
}

fn role(user: &str, role: pb::NodeRole) -> pb::UpdateUserRequest {
    pb::UpdateUserRequest { user: user.to_owned(), role: Some(role.into()), ..Default::default() }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_owner_is_admin_on_the_socket_and_a_user_logs_in_with_an_ssh_key() {
    let Some(node) = Node::start().await else { return };
    let owner = node.owner().await;
    let me = owner.who().await.unwrap();
    assert_eq!((me.via.as_str(), me.uid), ("socket", Some(rustix::process::geteuid().as_raw())));
    assert_eq!(me.user.unwrap().role(), pb::NodeRole::Admin);

    let key = node.add("ada", pb::NodeRole::Writer).await;
    let ada = node.log_in(&key).await.unwrap();
    assert_eq!(ada.user.as_ref().unwrap().name, "ada");
    assert_eq!(ada.key(), key.public().fingerprint());
    let caller = node.over_tls(Some(ada.clone())).await.unwrap();
    let me = caller.who().await.unwrap();
    assert_eq!((me.via.as_str(), me.session_id.as_deref()), ("tls", Some(ada.id.as_str())));
    assert_eq!(me.key_fingerprint, Some(key.public().fingerprint().to_string()));
    assert_eq!(me.keys, [key.public().fingerprint().to_string()]);

    let sessions = caller.auth().list_my_sessions(pb::ListMySessionsRequest::default()).await.unwrap().into_inner();
    assert_eq!(sessions.sessions.len(), 1);
    assert!(sessions.sessions[0].current && sessions.sessions[0].peer_address == "127.0.0.1");

    // Without the token, or without the certificate, nobody is there.
    assert_eq!(refused(node.over_tls(None).await.unwrap().who().await), "BIB0100");
    let tokenless = node.over_tls_with(Some(&ada), Some("bib_nothing")).await.unwrap();
    assert_eq!(refused(tokenless.who().await), "BIB0102");
    let naked = node.over_tls_with(None, Some(&ada.token)).await.unwrap();
    assert_eq!(refused(naked.who().await), "BIB0100");

    caller.auth().logout(pb::LogoutRequest {}).await.unwrap();
    assert!(caller.who().await.is_err());
    wait_for("the certificate no longer counts", FIVE_SECONDS, async || match node.over_tls(Some(ada.clone())).await {
        Ok(caller) => refused(caller.who().await) != "BIB0102",
        Err(_) => true,
    })
    .await;

    let logins = node.entries("auth.").await;
    assert_eq!(logins.iter().map(|entry| entry[2].as_str()).collect::<Vec<_>>(), ["ok", "ok"]);
    assert!(logins[0][0].contains(":ada") && logins[0][3].contains(&key.public().fingerprint().to_string()));
    node.stop().await;
}

/// security.md, row 47.
#[tokio::test(flavor = "multi_thread")]
async fn every_bent_log_in_is_refused_alike_and_noted() {
    let Some(node) = Node::start().await else { return };
    let key = node.add("ada", pb::NodeRole::Writer).await;
    let stranger = node.key("stranger");
    let caller = node.over_tls(None).await.unwrap();
    let other = Hash::of(b"another");

    type Bend = fn(&mut Attempt, Hash);
    let bent: [(&str, Bend); 6] = [
        ("another challenge", |a, _| a.statement.challenge = [7; 32]),
        ("relayed: the certificate of a server in between", |a, other| a.statement.server_certificate = Some(other)),
        ("without a server certificate", |a, _| a.statement.server_certificate = None),
        ("another node", |a, _| {
            a.statement.node = "12D3KooWNnbFVSGRaQFbwtzFu4FCecQvmUjgqQq4MYYY9N3VJX6X".parse().unwrap();
        }),
        ("another request", |a, other| a.statement.csr = other),
        ("another namespace", |a, _| a.namespace = "bib-version-v1"),
    ];
    for (what, bend) in bent {
        let mut attempt = Attempt::begin(&caller, &key).await.unwrap();
        bend(&mut attempt, other);
        attempt.sign(&key);
        assert_eq!(refused(attempt.send(&caller).await), "BIB0104", "{what}");
    }

    // A request that was exchanged after signing, by who wants the certificate for a key of their own.
    let mut attempt = Attempt::begin(&caller, &key).await.unwrap();
    attempt.sign(&key);
    attempt.csr = Attempt::begin(&caller, &key).await.unwrap().csr;
    assert_eq!(refused(attempt.send(&caller).await), "BIB0104");

    // A challenge for one key, answered by another; a signature by another key; bytes changed after signing.
    let mut attempt = Attempt::begin(&caller, &key).await.unwrap();
    attempt.statement.key = stranger.public().fingerprint();
    attempt.sign(&stranger);
    assert_eq!(refused(attempt.send(&caller).await), "BIB0104");
    let mut attempt = Attempt::begin(&caller, &key).await.unwrap();
    attempt.sign(&stranger);
    assert_eq!(refused(attempt.send(&caller).await), "BIB0104");
    let mut attempt = Attempt::begin(&caller, &key).await.unwrap();
    attempt.sign(&key);
    attempt.bytes.push(b' ');
    assert_eq!(refused(attempt.send(&caller).await), "BIB0104");

    // Replayed: each challenge is answered once, also when the answer was wrong.
    let mut attempt = Attempt::begin(&caller, &key).await.unwrap();
    attempt.sign(&key);
    attempt.send(&caller).await.unwrap();
    assert_eq!(refused(attempt.send(&caller).await), "BIB0104");
    let mut attempt = Attempt::begin(&caller, &key).await.unwrap();
    attempt.sign(&stranger);
    attempt.send(&caller).await.err().unwrap();
    attempt.sign(&key);
    assert_eq!(refused(attempt.send(&caller).await), "BIB0104");

    // Too late.
    let mut attempt = Attempt::begin(&caller, &key).await.unwrap();
    attempt.sign(&key);
    node.clock.advance(Duration::from_secs(61));
    assert_eq!(refused(attempt.send(&caller).await), "BIB0104");

    // A key that nobody has gets a challenge like any other, and then the same answer, word for word.
    let caller = node.over_tls(None).await.unwrap();
    let mut attempt = Attempt::begin(&caller, &stranger).await.unwrap();
    attempt.sign(&stranger);
    let unknown = attempt.send(&caller).await.err().unwrap();
    let replayed = attempt.send(&caller).await.err().unwrap();
    assert_eq!(unknown.message(), replayed.message());
    assert_eq!(unknown.details(), replayed.details());

    // A key that was removed.
    node.add("bob", pb::NodeRole::Writer).await;
    let request = pb::AddUserKeyRequest { user: "bob".to_owned(), public_key: stranger.public().to_line() };
    node.owner().await.users().add_user_key(request).await.unwrap();
    let bob = node.log_in(&stranger).await.unwrap();
    let live = node.over_tls(Some(bob)).await.unwrap();
    live.who().await.unwrap();
    let request =
        pb::RemoveUserKeyRequest { user: "bob".to_owned(), fingerprint: stranger.public().fingerprint().to_string() };
    node.owner().await.users().remove_user_key(request).await.unwrap();
    assert_eq!(refused(node.log_in(&stranger).await), "BIB0104");
    assert!(live.who().await.is_err(), "what was opened with the key ended with it");

    wait_for("refused log-ins are in the log, and no more than ten of one address", FIVE_SECONDS, async || {
        let denied = node.entries("auth.login").await.into_iter().filter(|entry| entry[2] == "denied").count();
        assert!(denied <= 10);
        denied == 10
    })
    .await;
    // Each was refused for its own reason, which only the log tells.
    let print = key.public().fingerprint().to_string();
    let denied = node.entries("auth.login").await.into_iter().filter(|entry| entry[2] == "denied");
    let mut reasons: Vec<String> = denied
        .map(|[actor, target, _, details]| {
            assert!(actor.starts_with("anonymous:127.0.0.1:") && target == print, "{actor} {target}");
            serde_json::from_str::<serde_json::Value>(&details).unwrap()["reason"].as_str().unwrap().to_owned()
        })
        .collect();
    // In one moment of a clock that stands still the log has no order.
    reasons.sort_unstable();
    assert_eq!(
        reasons,
        [
            "the signature is not valid",
            "the signature is not valid",
            "the statement cannot be read",
            "the statement is about another certificate request",
            "the statement is about another certificate request",
            "the statement is about another challenge",
            "the statement is for another node",
            "the statement is for another server certificate",
            "the statement is for another server certificate",
            "the statement names another key",
        ]
    );
    node.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_revoked_certificate_is_cut_off_within_five_seconds_and_after_a_restart() {
    let Some(node) = Node::start().await else { return };
    let key = node.add("ada", pb::NodeRole::Writer).await;
    let (first, second) = (node.log_in(&key).await.unwrap(), node.log_in(&key).await.unwrap());
    let (lost, kept) =
        (node.over_tls(Some(first.clone())).await.unwrap(), node.over_tls(Some(second.clone())).await.unwrap());
    lost.who().await.unwrap();
    kept.who().await.unwrap();

    // A token counts only with its own certificate.
    let crossed = node.over_tls_with(Some(&first), Some(&second.token)).await.unwrap();
    assert_eq!(refused(crossed.who().await), "BIB0102");

    let request = pb::RevokeCertificateRequest { serial_or_fingerprint: first.serial(), reason: "stolen".to_owned() };
    let revoked = node.owner().await.auth().revoke_certificate(request.clone()).await.unwrap().into_inner();
    assert_eq!(revoked.certificate.unwrap().state, "revoked");
    assert!(lost.who().await.is_err());
    let again = node.over_tls(Some(first.clone())).await;
    assert!(again.is_err() || again.unwrap().who().await.is_err(), "the handshake refuses it");
    kept.who().await.unwrap();
    node.owner().await.auth().revoke_certificate(request).await.unwrap();
    assert_eq!(node.entries("cert.revoke").await.len(), 1, "the second time nothing was done");

    let node = node.restart().await;
    let again = node.over_tls(Some(first)).await;
    assert!(again.is_err() || again.unwrap().who().await.is_err(), "after a restart too");
    node.over_tls(Some(second.clone())).await.unwrap().who().await.unwrap();

    // An expired one is refused too.
    node.clock.advance(Duration::from_secs(91 * 86_400));
    let late = node.over_tls(Some(second)).await;
    assert!(late.is_err() || late.unwrap().who().await.is_err(), "expired");
    node.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_last_admin_stays_and_nobody_removes_themself() {
    let Some(node) = Node::start().await else { return };
    let owner = node.owner().await;
    let me = owner.who().await.unwrap().user.unwrap().name;
    assert_eq!(refused(owner.users().update_user(role(&me, pb::NodeRole::Reader)).await), "BIB0010");
    assert_eq!(refused(owner.users().suspend_user(suspend(&me)).await), "BIB0010");
    let remove = |user: &str| pb::RemoveUserRequest { user: user.to_owned() };
    assert_eq!(refused(owner.users().remove_user(remove(&me)).await), "BIB0010");

    let key = node.add("ada", pb::NodeRole::Admin).await;
    let credentials = node.log_in(&key).await.unwrap();
    let ada = node.over_tls(Some(credentials.clone())).await.unwrap();
    assert_eq!(refused(ada.users().remove_user(remove("ada")).await), "BIB0010", "not oneself");
    // Two admins who demote each other at the same time: one stays.
    let (mut first, mut second) = (owner.users(), ada.users());
    let (one, two) = tokio::join!(
        first.update_user(role("ada", pb::NodeRole::Writer)),
        second.update_user(role(&me, pb::NodeRole::Writer)),
    );
    assert!(one.is_ok() != two.is_ok(), "{one:?} {two:?}");
    // The connections of who may less are cut; both come again.
    let (owner, ada) = (node.owner().await, node.over_tls(Some(credentials)).await.unwrap());
    let (winner, loser) = if one.is_ok() { (&owner, &ada) } else { (&ada, &owner) };
    assert_eq!(refused(loser.users().list_users(pb::ListUsersRequest::default()).await), "BIB0110");
    let name = winner.who().await.unwrap().user.unwrap().name;
    assert_eq!(refused(winner.users().update_user(role(&name, pb::NodeRole::Reader)).await), "BIB0010");
    assert_eq!(node.entries("user.role").await.len(), 1);
    node.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_suspended_user_is_out_at_once_and_comes_back_by_logging_in() {
    let Some(node) = Node::start().await else { return };
    let key = node.add("ada", pb::NodeRole::Writer).await;
    let credentials = node.log_in(&key).await.unwrap();
    let ada = node.over_tls(Some(credentials.clone())).await.unwrap();
    ada.who().await.unwrap();
    node.owner().await.users().suspend_user(suspend("ada")).await.unwrap();
    assert!(ada.who().await.is_err());
    assert_eq!(refused(node.log_in(&key).await), "BIB0105");
    node.owner().await.users().resume_user(pb::ResumeUserRequest { user: "ada".to_owned() }).await.unwrap();
    let old = node.over_tls(Some(credentials)).await;
    assert!(old.is_err() || old.unwrap().who().await.is_err(), "what was ended stays ended");
    let ada = node.over_tls(Some(node.log_in(&key).await.unwrap())).await.unwrap();
    ada.who().await.unwrap();

    // A stream that was opened with rights that are gone ends.
    let mut stream = ada.health().watch(pb::HealthCheckRequest::default()).await.unwrap().into_inner();
    stream.message().await.unwrap();
    let removed = pb::RemoveUserRequest { user: "ada".to_owned() };
    node.owner().await.users().remove_user(removed).await.unwrap();
    let end = tokio::time::timeout(FIVE_SECONDS, async { while let Ok(Some(_)) = stream.message().await {} }).await;
    end.expect("the stream ends within five seconds");
    assert!(ada.who().await.is_err());
    assert_eq!(refused(node.log_in(&key).await), "BIB0104");
    assert_eq!(refused(node.owner().await.users().get_user(named("ada")).await), "BIB0002");
    // The name and the key are free again.
    node.owner()
        .await
        .users()
        .create_user(pb::CreateUserRequest {
            name: "ada".to_owned(),
            public_keys: vec![key.public().to_line()],
            ..Default::default()
        })
        .await
        .unwrap();
    node.log_in(&key).await.unwrap();
    node.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn tokens_are_narrower_than_their_maker_and_bound_to_their_certificate() {
    let Some(node) = Node::start().await else { return };
    let owner = node.owner().await;
    let publish = owner.make_token(&["publish", "topic:climate:write"], 3_600).await.unwrap();
    let script = node.over_tls(Some(publish.clone())).await.unwrap();
    let me = script.who().await.unwrap();
    assert_eq!(me.scopes, ["publish", "topic:climate:write"]);
    assert_eq!(me.key_fingerprint, None, "no SSH key vouched for it");

    // Never wider, never longer.
    for (scopes, wanted) in
        [(&["admin"][..], "BIB0111"), (&["read", "admin"], "BIB0111"), (&[], "BIB0003"), (&["everything"], "BIB0003")]
    {
        assert_eq!(refused(script.make_token(scopes, 60).await), wanted, "{scopes:?}");
    }
    assert_eq!(refused(script.make_token(&["read"], 7_200).await), "BIB0003", "it would outlive its maker");
    assert_eq!(refused(owner.make_token(&["read"], 0).await), "BIB0003");
    assert_eq!(refused(owner.make_token(&["read"], 90 * 86_400 + 1).await), "BIB0003");
    let narrower = script.make_token(&["topic:climate/stations:read"], 60).await.unwrap();
    node.over_tls(Some(narrower)).await.unwrap().who().await.unwrap();

    // A narrow token changes nothing about its user, and administers nothing although its user may.
    let key = node.key("smuggled");
    let add =
        pb::AddUserKeyRequest { user: me.user.as_ref().unwrap().name.clone(), public_key: key.public().to_line() };
    assert_eq!(refused(script.users().add_user_key(add).await), "BIB0111");
    assert_eq!(refused(script.users().list_users(pb::ListUsersRequest::default()).await), "BIB0111");
    let csr = bib_identity::request::CertificateRequest::generate().unwrap();
    let issue = pb::IssueCertificateRequest { csr: csr.der.clone().into(), name: "wide".to_owned() };
    assert_eq!(refused(script.auth().issue_certificate(issue).await), "BIB0111");

    // On the socket it narrows; somebody else's is nobody's.
    let narrowed = node.on_socket(Some(&publish.token)).await;
    assert_eq!(narrowed.who().await.unwrap().scopes, ["publish", "topic:climate:write"]);
    assert_eq!(refused(narrowed.users().list_users(pb::ListUsersRequest::default()).await), "BIB0111");
    let ada = node.log_in(&node.add("ada", pb::NodeRole::Reader).await).await.unwrap();
    assert_eq!(refused(node.on_socket(Some(&ada.token)).await.who().await), "BIB0102");
    let ada = node.over_tls(Some(ada)).await.unwrap();
    assert_eq!(refused(ada.make_token(&["admin"], 60).await), "BIB0110", "it would wake with a promotion");

    // Bound to its certificate.
    let other: Credentials = owner.make_token(&["read"], 60).await.unwrap();
    let crossed = node.over_tls_with(Some(&other), Some(&publish.token)).await.unwrap();
    assert_eq!(refused(crossed.who().await), "BIB0102");

    let tokens = owner.auth().list_tokens(pb::ListTokensRequest::default()).await.unwrap().into_inner().tokens;
    assert_eq!(tokens.len(), 3);
    let revoke = pb::RevokeTokenRequest { token_id: publish.id.clone() };
    assert_eq!(refused(ada.auth().revoke_token(revoke.clone()).await), "BIB0002", "not hers");
    owner.auth().revoke_token(revoke).await.unwrap();
    assert!(script.who().await.is_err());
    assert_eq!(refused(node.on_socket(Some(&publish.token)).await.who().await), "BIB0102");
    // Expired: token and certificate end together.
    node.clock.advance(Duration::from_secs(61));
    let late = node.over_tls(Some(other)).await;
    assert!(late.is_err() || late.unwrap().who().await.is_err());
    node.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn users_are_added_found_and_changed_by_who_may() {
    let Some(node) = Node::start().await else { return };
    let owner = node.owner().await;
    let mut users = owner.users();
    let new = |name: &str| pb::CreateUserRequest { name: name.to_owned(), ..Default::default() };
    for name in ["", "Ada", "../../etc", "a/b", "a\0b", "-ada", "ada'; --", &"a".repeat(4096), "a\u{202e}b"] {
        assert_eq!(refused(users.create_user(new(name)).await), "BIB0003", "{name:?}");
    }
    let bob = pb::CreateUserRequest {
        display_name: "Bob \u{1b}]52;c;ZXZpbA==\u{7}".to_owned(),
        orcid: "https://orcid.org/0000-0002-1825-0097".to_owned(),
        uid: Some(4_000_000),
        ..new("bob")
    };
    let made = users.create_user(bob.clone()).await.unwrap().into_inner();
    assert_eq!(
        (made.orcid.as_str(), made.role(), made.uids.as_slice()),
        ("0000-0002-1825-0097", pb::NodeRole::Reader, &[4_000_000][..])
    );
    assert!(made.display_name.chars().all(|c| !c.is_control()), "{:?}", made.display_name);
    assert_eq!(refused(users.create_user(bob.clone()).await), "BIB0009");
    let twin = pb::CreateUserRequest { name: "twin".to_owned(), orcid: String::new(), ..bob };
    assert_eq!(refused(users.create_user(twin).await), "BIB0009", "the uid is Bob's");
    let typo = pb::CreateUserRequest { orcid: "0000-0002-1825-0098".to_owned(), ..new("typo") };
    assert_eq!(refused(users.create_user(typo).await), "BIB0003");

    let key = node.add("ada", pb::NodeRole::Writer).await;
    let print = key.public().fingerprint().to_string();
    for name in ["ada", &print, &made.user_id, "bob"] {
        users.get_user(named(name)).await.unwrap();
    }
    let search = |text: &str| pb::SearchUsersRequest { text: text.to_owned(), page: None };
    let found = async |text: &str| {
        let list = owner.users().search_users(search(text)).await.unwrap().into_inner().users;
        list.into_iter().map(|user| user.name).collect::<Vec<_>>()
    };
    assert_eq!(found("1825").await, ["bob"]);
    assert_eq!(found("%").await, Vec::<String>::new());
    let page = |cursor: String| pb::ListUsersRequest { page: Some(pb::PageRequest { limit: 1, cursor }) };
    let (mut cursor, mut names) = (String::new(), Vec::new());
    loop {
        let list = users.list_users(page(cursor)).await.unwrap().into_inner();
        names.extend(list.users.into_iter().map(|user| user.name));
        cursor = list.page.unwrap().next_cursor;
        if cursor.is_empty() {
            break;
        }
    }
    assert_eq!(names.len(), 3);

    // Oneself without the role; nobody else.
    let ada = node.over_tls(Some(node.log_in(&key).await.unwrap())).await.unwrap();
    let change = pb::UpdateUserRequest {
        user: "ada".to_owned(),
        display_name: Some("Ada Lovelace".to_owned()),
        ..Default::default()
    };
    assert_eq!(ada.users().update_user(change).await.unwrap().into_inner().display_name, "Ada Lovelace");
    assert_eq!(refused(ada.users().update_user(role("ada", pb::NodeRole::Admin)).await), "BIB0110");
    for name in ["bob", "nobody"] {
        assert_eq!(refused(ada.users().get_user(named(name)).await), "BIB0110", "alike whether there or not");
    }
    assert_eq!(refused(ada.users().suspend_user(suspend("bob")).await), "BIB0110");
    assert_eq!(refused(ada.users().create_user(new("eve")).await), "BIB0110");
    let mine = pb::RegisterMyKeyRequest { public_key: node.key("second").public().to_line() };
    assert_eq!(refused(ada.auth().register_my_key(mine.clone()).await), "BIB0110", "over the socket alone");
    assert!(owner.auth().register_my_key(mine.clone()).await.unwrap().into_inner().added);
    assert!(!owner.auth().register_my_key(mine).await.unwrap().into_inner().added);
    let theirs = pb::RegisterMyKeyRequest { public_key: key.public().to_line() };
    assert_eq!(refused(owner.auth().register_my_key(theirs).await), "BIB0009");

    let dark = pb::Preferences { theme: "dark".to_owned(), locale: "pt-BR".to_owned() };
    let set = pb::SetPreferencesRequest { preferences: Some(dark.clone()) };
    ada.users().set_preferences(set).await.unwrap();
    assert_eq!(ada.users().get_preferences(pb::GetPreferencesRequest {}).await.unwrap().into_inner(), dark);

    wait_for("what was refused is in the audit log", FIVE_SECONDS, async || {
        node.entries("call.refused")
            .await
            .iter()
            .any(|entry| entry[0].ends_with(":ada") && entry[1] == "UserService/CreateUser" && entry[2] == "denied")
    })
    .await;
    node.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_socket_knows_users_by_uid_and_tells_strangers_what_to_do() {
    let Some(node) = Node::start().await else { return };
    let foundation = node.daemon.foundation();
    let recogniser = || {
        let accounts = Accounts::new(
            Base::of(foundation),
            Arc::clone(&foundation.certificates.authority),
            foundation.certificate_list.clone(),
            foundation.connections.clone(),
            Duration::from_secs(60),
        );
        Authentication::new(accounts)
    };
    let socket = |uid| Peer::Socket { uid, gid: 1, pid: None };
    let stranger = recogniser().recognise(&socket(4_000_001), None).await.unwrap_err();
    assert_eq!(stranger.code(), ErrorCode::UNKNOWN_SOCKET_USER);
    assert!(stranger.hint().contains("--uid 4000001"), "{}", stranger.hint());

    let bob = pb::CreateUserRequest { name: "bob".to_owned(), uid: Some(4_000_001), ..Default::default() };
    node.owner().await.users().create_user(bob).await.unwrap();
    let authentication = recogniser();
    let actor = authentication.recognise(&socket(4_000_001), None).await.unwrap();
    assert_eq!((actor.name.as_str(), actor.role), ("bob", NodeRole::Reader));

    // A busy caller does not read the database with each call: 20,000 calls are far below what a second allows.
    foundation.db.close().await;
    for _ in 0..20_000 {
        authentication.recognise(&socket(4_000_001), None).await.unwrap();
    }
    let gone = recogniser().recognise(&socket(4_000_001), None).await.unwrap_err();
    assert_eq!(gone.code(), ErrorCode::DATABASE_UNAVAILABLE, "what cannot be found out is not let in");
    node.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_first_start_makes_admins_and_the_next_ones_change_nothing() {
    let outside = tempfile::tempdir().unwrap();
    let mut entropy = bibd::clock::Entropy::from_system();
    let key = bib_identity::ssh::generate(&outside.path().join("id"), "ada@laptop", &mut entropy).unwrap();
    let Some(node) = Node::start_with(Some(format!("{} ada@laptop", key.public().to_line()))).await else { return };
    let added = node.entries("user.add").await;
    assert!(!added.is_empty() && added.iter().all(|entry| entry[0] == "system:bootstrap" && entry[2] == "ok"));
    assert_eq!(node.entries("key.add").await.len(), 1);
    let caller = node.over_tls(Some(node.log_in(&key).await.unwrap())).await.unwrap();
    assert_eq!(caller.who().await.unwrap().user.unwrap().role(), pb::NodeRole::Admin);
    drop(caller);
    let node = node.restart().await;
    assert_eq!(node.entries("user.add").await.len(), added.len());
    assert_eq!(node.entries("node.start").await.len(), 2);
    node.owner().await.who().await.unwrap();
    let status = node.owner().await.auth().logout(pb::LogoutRequest {}).await.err().unwrap();
    assert_eq!(code(&status), "BIB0010", "nobody logs out of the socket");
    node.stop().await;
}
