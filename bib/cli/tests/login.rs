//! Trust, log-in, certificates and grants over TLS, with a real node.

#![allow(clippy::unwrap_used)]

mod support;

use std::path::PathBuf;

use bib_core::Timestamp;
use bib_identity::ca::{CLIENT_VALIDITY, CertificateAuthority, ClientSubject};
use bib_identity::request::CertificateRequest;
use bib_identity::token_file::TokenFile;
use bib_identity::{NodeKey, SealedDir};
use secrecy::SecretString;
use support::{Bib, Node, wait_for, write};

#[test]
fn a_person_logs_in_publishes_and_sees_only_what_was_granted() {
    let Some(node) = Node::start() else { return };
    let admin = node.person();
    let ada = node.stranger();
    assert_eq!(ada.fails(4, &["whoami"])["code"], "BIB0100");
    assert_eq!(ada.json(&["status"])["topics"], serde_json::Value::Null);
    assert_eq!(ada.fails(4, &["login"])["code"], "BIB0503");
    let key = ada.make_key();
    assert_eq!(ada.fails(4, &["login"])["kind"], "denied");
    admin.ok(&["user", "add", "ada", "--public-key", &key]);
    assert_eq!(ada.json(&["login"])["user"], "ada");
    assert_eq!(ada.json(&["whoami"])["via"], "tls");

    write(&ada.path("data"), "a.txt", "ada's");
    let line = ["dataset", "publish", "data", "ada/d", "-m", "x", "--yes", "--license", "CC0-1.0"];
    assert_eq!(ada.json(&line)["created"], true);
    ada.ok(&["dataset", "download", "ada/d", "back"]);

    let bob = node.stranger();
    admin.ok(&["user", "add", "bob", "--role", "reader", "--public-key", &bob.make_key()]);
    bob.ok(&["login"]);
    // What is private is not there, and what may not be done is denied.
    bob.fails(3, &["dataset", "download", "ada/d"]);
    assert_eq!(bob.json(&["topic", "list"]), serde_json::json!([]));
    bob.fails(4, &["topic", "create", "bobs"]);
    bob.fails(4, &["user", "list"]);
    ada.ok(&["topic", "grant", "ada", "bob", "read", "--expires", "1d"]);
    bob.ok(&["dataset", "download", "ada/d"]);
    write(&bob.path("data"), "b.txt", "bob's");
    bob.fails(4, &["dataset", "publish", "data", "ada/d", "-m", "x"]);

    // A token narrows: it reads and does not publish.
    ada.ok(&["token", "create", "--name", "reader", "--scope", "read"]);
    let script = ["--token-file", "reader.token"];
    ada.ok(&[&["dataset", "show", "ada/d"][..], &script].concat());
    write(&ada.path("data"), "a.txt", "changed");
    ada.fails(4, &[&line[..], &script].concat());
    assert_eq!(ada.fails(6, &["token", "create", "--name", "reader", "--scope", "read"])["kind"], "conflict");

    ada.ok(&["topic", "revoke", "ada", "bob", "--yes"]);
    bob.fails(3, &["dataset", "download", "ada/d", "again"]);

    ada.ok(&["logout"]);
    ada.fails(4, &["whoami"]);
}

#[test]
fn a_revoked_certificate_is_refused_and_an_expired_one_is_renewed() {
    let Some(node) = Node::start() else { return };
    let (admin, ada) = (node.person(), node.stranger());
    let user = admin.json(&["user", "add", "ada", "--public-key", &ada.make_key()]);
    ada.ok(&["login"]);
    let serial = ada.json(&["cert", "list"])[0]["serial"].as_str().unwrap().to_owned();
    assert_eq!(ada.json(&["cert", "export", "--out", "me.pem"])["key"], serde_json::Value::Null);
    assert_eq!(ada.json(&["cert", "info", "me.pem"])["serial"], serial.as_str());
    assert!(ada.fails(2, &["cert", "export", "--format", "p12"])["hint"].as_str().unwrap().contains("openssl"));

    // An expired certificate is left out; the key that made the log-in makes another.
    let credentials = credentials(&ada, &node);
    let before = std::fs::read(&credentials).unwrap();
    let expired = expired_log_in(&node, user["user_id"].as_str().unwrap(), &ada);
    std::fs::write(&credentials, expired.to_text().as_bytes()).unwrap();
    assert_eq!(ada.json(&["whoami"])["user"], "ada");
    assert_ne!(std::fs::read(&credentials).unwrap(), before);
    expired.create(&ada.path("expired.token")).unwrap();
    assert_eq!(ada.fails(4, &["whoami", "--token-file", "expired.token"])["kind"], "denied");

    // A revoked one is refused, and a revoked person's key does not log in again.
    std::fs::write(&credentials, &before).unwrap();
    std::fs::rename(ada.path(".ssh/id_ed25519"), ada.path("kept")).unwrap();
    ada.ok(&["whoami"]);
    admin.ok(&["cert", "revoke", &serial, "--reason", "lost", "--yes"]);
    let run = ada.run(&["whoami"]);
    assert!(matches!(run.code, 4 | 5), "{run:?}");
    let certificates = admin.json(&["cert", "list", "--all"]);
    let revoked = certificates.as_array().unwrap().iter().find(|one| one["serial"] == serial.as_str()).unwrap();
    assert_eq!(revoked["state"], "revoked");
    // The refused certificate is not shown on the way to a new one.
    std::fs::rename(ada.path("kept"), ada.path(".ssh/id_ed25519")).unwrap();
    ada.ok(&["login"]);
    assert_eq!(ada.json(&["whoami"])["user"], "ada");
}

#[test]
fn a_node_that_is_another_than_the_trusted_one_is_a_hard_stop() {
    let Some(node) = Node::start() else { return };
    let unknown = Bib::alone();
    let error = unknown.fails(4, &["status", "--node", &node.address, "--yes"]);
    assert_eq!(
        (&error["code"], &error["details"]["ca_fingerprint"]),
        (&"BIB0502".into(), &node.fingerprint.as_str().into())
    );
    unknown.fails(4, &["connect", &node.address, "--fingerprint", &"ab".repeat(32)]);
    unknown.fails(4, &["trust", "add", &node.address, "--fingerprint", &"ab".repeat(32)]);
    assert_eq!(unknown.json(&["trust", "list"]), serde_json::json!([]));

    let ada = node.stranger();
    let (address, old, peer) = (node.address.clone(), node.fingerprint.clone(), node.peer_id.clone());
    node.stop();
    let Some(other) = Node::start_on(&address) else { return };
    let error = ada.fails(4, &["status"]);
    let message = error["message"].as_str().unwrap();
    assert!(message.contains(&old) && message.contains(&other.fingerprint), "{error}");
    assert!(error["hint"].as_str().unwrap().contains("bib trust replace"), "{error}");
    // Neither --yes nor first use is a way around.
    ada.fails(4, &["status", "--yes"]);
    ada.fails(4, &["connect", &address, "--accept-new"]);
    ada.fails(6, &["trust", "add", &address, "--accept-new"]);
    assert_eq!(ada.fails(2, &["trust", "replace", &address])["kind"], "usage");
    assert_eq!(ada.json(&["trust", "list"])[0]["node"], peer.as_str());
    ada.ok(&["trust", "replace", &address, "--yes"]);
    assert_eq!(ada.json(&["status"])["node"], other.peer_id.as_str());
}

#[test]
fn files_stand_in_for_trust_and_log_in() {
    let Some(node) = Node::start() else { return };
    let ada = node.stranger();
    node.person().ok(&["user", "add", "ada", "--public-key", &ada.make_key()]);
    ada.ok(&["login"]);
    ada.ok(&["token", "create", "--name", "t", "--scope", "read"]);
    let ca = ada.ok(&["cert", "export", "--ca"]);

    // A machine that somebody else has set up: nothing is asked, and no one logs in.
    let machine = Bib::alone();
    machine.fails(4, &["status", "--node", &node.address]);
    write(&machine.path(""), "ca.pem", &ca);
    machine.ok(&["config", "set", "connection.tls.ca_file", "~/ca.pem"]);
    machine.ok(&["config", "set", "connection.default_node", &node.address]);
    assert_eq!(machine.json(&["status"])["node"], node.peer_id.as_str());
    machine.fails(4, &["whoami"]);
    let text = std::fs::read_to_string(ada.path("t.token")).unwrap();
    let at = text.find("-----BEGIN CERTIFICATE-----").unwrap();
    let end = at + text[at..].find("-----END CERTIFICATE-----\n").unwrap() + "-----END CERTIFICATE-----\n".len();
    write(&machine.path(""), "cert.pem", &text[at..end]);
    machine.ok(&["config", "set", "connection.tls.cert_file", "~/cert.pem"]);
    assert_eq!(machine.fails(2, &["whoami"])["kind"], "usage");
    machine.ok(&["config", "set", "connection.tls.key_file", "~/key.pem"]);
    let secret = format!("{}{}", &text[..at], &text[end..]);
    write(&machine.path(""), "key.pem", &secret);
    machine.fails(1, &["whoami"]); // open to others
    std::fs::set_permissions(machine.path("key.pem"), std::os::unix::fs::PermissionsExt::from_mode(0o600)).unwrap();
    assert_eq!(machine.json(&["whoami"])["user"], "ada");

    // Another CA than the file's, before anything is trusted: refused.
    let Some(other) = Node::start() else { return };
    machine.fails(4, &["status", "--node", &other.address]);
    write(&machine.path(""), "ca.pem", "no certificate");
    machine.fails(1, &["status", "--node", &other.address]);

    // Whoever answers is believed when a person insists; it is said each time, and nothing is remembered.
    let reckless = Bib::alone();
    reckless.ok(&["config", "set", "connection.tls.skip_verify", "true"]);
    let run = reckless.run(&["status", "--node", &other.address]);
    assert!(run.code == 0 && run.stderr.contains("skip_verify is on"), "{run:?}");
    assert_eq!(reckless.json(&["trust", "list"]), serde_json::json!([]));
    reckless.fails(2, &["config", "set", "connection.tls.skip_verify", "maybe"]);
}

#[test]
fn a_node_that_tells_of_itself_is_found_and_trusted_by_its_fingerprint_alone() {
    let Some(node) = Node::start_announced() else { return };
    let ada = Bib::alone();
    let found = wait_for("the node to be found", || {
        let found = ada.json(&["connect", "--discover"]);
        found.as_array().unwrap().iter().find(|row| row["node"] == node.peer_id.as_str()).cloned()
    });
    assert_eq!(
        (&found["address"], &found["ca_fingerprint"]),
        (&node.address.as_str().into(), &node.fingerprint.as_str().into())
    );

    node.person().ok(&["user", "add", "ada", "--public-key", &ada.make_key()]);
    // That it told of itself is no reason to trust it.
    ada.fails(4, &["connect", &node.address]);
    let set_up = ada.json(&["setup", "--fingerprint", &node.fingerprint]);
    assert_eq!((&set_up["node"], &set_up["user"]), (&node.peer_id.as_str().into(), &"ada".into()));
    assert_eq!(ada.json(&["whoami"])["via"], "tls");
    // Nobody has this one.
    Bib::alone().fails(5, &["setup", "--fingerprint", &"ab".repeat(32)]);
}

fn credentials(bib: &Bib, node: &Node) -> PathBuf {
    bib.path(".config/bib/credentials").join(format!("{}.pem", node.peer_id))
}

/// What a log-in a hundred days ago would have left, signed by the node's own authority.
fn expired_log_in(node: &Node, user_id: &str, bib: &Bib) -> TokenFile {
    let data = node.data();
    let key = NodeKey::load(&data.join("identity/node_key")).unwrap();
    let sealed = SealedDir::open(&data.join("secrets"), &key, Vec::new()).unwrap();
    let certificate = std::fs::read(data.join("certs/ca.crt")).unwrap();
    let authority = CertificateAuthority::from_parts(&certificate, &sealed.read("ca.key").unwrap()).unwrap();
    let line = std::fs::read_to_string(bib.path(".ssh/id_ed25519.pub")).unwrap();
    let public: bib_identity::ssh::PublicKey = line.trim().parse().unwrap();
    let request = CertificateRequest::generate().unwrap();
    let subject =
        ClientSubject { user: user_id.parse().unwrap(), key: public.fingerprint(), validity: CLIENT_VALIDITY };
    let now: Timestamp =
        time::OffsetDateTime::from(std::fs::metadata(data.join("certs/ca.crt")).unwrap().modified().unwrap()).into();
    let past = now.plus_seconds(-100 * 86_400);
    let issued = authority.issue_client(&request.der, &subject, past, &mut rand::rngs::OsRng).unwrap();
    TokenFile::new(&request.key_pem, &issued.der, SecretString::from("bib_0123456789abcdef0123456789abcdef")).unwrap()
}
