//! Real TLS handshakes, good and bad: B-NET 43 to 46.
#![allow(clippy::unwrap_used)]

mod support;

use std::sync::Arc;
use std::time::Duration;

use bib_core::PeerId;
use bib_identity::ca::{CA_VALIDITY, CLIENT_VALIDITY, ServerSubject};
use bib_identity::credentials::{ClientCredentials, Loaded};
use bib_identity::server_tls::{RevocationStatus, ServerChain, ServerTls};
use bib_identity::trust::{Expectation, FirstUse, How, ServerVerifier, TrustError};
use bib_identity::{CertificateAuthority, ServerCertificate};
use rcgen::{
    BasicConstraints, CertificateParams, ExtendedKeyUsagePurpose, GeneralSubtree, IsCa, Issuer, KeyPair,
    KeyUsagePurpose, NameConstraints, SanType,
};
use rustls::pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer};
use rustls::{AlertDescription, CertificateError, ServerConfig};
use support::*;

fn pinned(node: &Node) -> Arc<ServerVerifier> {
    ServerVerifier::new(Expectation::Pinned(Box::new(node.pin())))
}

fn refusal(outcome: &Outcome) -> TrustError {
    let error = outcome.client.as_ref().expect_err("the client believed the server");
    TrustError::find(error).unwrap_or_else(|| panic!("not ours: {error}")).clone()
}

#[test]
fn pinned_server_and_certified_client_know_each_other() {
    let node = Node::new(1);
    let (verifier, credentials) = (pinned(&node), node.client_credentials());
    let outcome = handshake(node.server(now()), client(Arc::clone(&verifier), Some(&credentials), now()));
    outcome.client.unwrap();
    let identity = outcome.server.unwrap().expect("a client certificate");
    assert_eq!((identity.user_id, identity.key), (user(), ssh_key()));
    assert_eq!(identity, *credentials.identity());
    assert_eq!(outcome.alpn.as_deref(), Some(&b"h2"[..]));
    assert_eq!(outcome.version, Some(rustls::ProtocolVersion::TLSv1_3));
    let presented = verifier.presented().unwrap();
    assert_eq!((presented.peer_id, presented.how), (peer(), How::Pinned));
    assert_eq!(presented.leaf_sha256, node.certificate.info().sha256);
}

#[test]
fn client_without_certificate_is_anonymous() {
    let node = Node::new(1);
    let outcome = handshake(node.server(now()), client(pinned(&node), None, now()));
    outcome.client.unwrap();
    assert_eq!(outcome.server.unwrap(), None);
}

#[test]
fn first_use_is_refused_with_what_was_shown_then_accepted_by_fingerprint() {
    let node = Node::new(1);
    let refuse = ServerVerifier::new(Expectation::FirstUse(FirstUse::Refuse));
    let TrustError::NotPinned(shown) = refusal(&handshake(node.server(now()), client(refuse, None, now()))) else {
        panic!("another error");
    };
    assert_eq!((shown.peer_id, shown.ca_spki_sha256), (peer(), node.authority.fingerprint()));
    assert_eq!(shown.ca_certificate_pem, node.authority.certificate_pem());

    let accept = ServerVerifier::new(Expectation::FirstUse(FirstUse::Accept { expected: Some(shown.ca_spki_sha256) }));
    handshake(node.server(now()), client(Arc::clone(&accept), None, now())).client.unwrap();
    assert_eq!(accept.presented().unwrap().how, How::FirstUse);

    let other = Node::new(2).authority.fingerprint();
    let wrong = ServerVerifier::new(Expectation::FirstUse(FirstUse::Accept { expected: Some(other) }));
    let error = refusal(&handshake(node.server(now()), client(wrong, None, now())));
    assert_eq!(error, TrustError::Unexpected { expected: other, found: node.authority.fingerprint() });
}

#[test]
fn changed_ca_is_a_hard_stop_with_both_fingerprints() {
    let (old, new) = (Node::new(1), Node::new(2));
    let error = refusal(&handshake(new.server(now()), client(pinned(&old), None, now())));
    let (old, new) = (old.authority.fingerprint(), new.authority.fingerprint());
    assert_eq!(error, TrustError::CaChanged { peer_id: peer(), old, new });
    assert!(error.to_string().contains(&old.to_string()) && error.to_string().contains(&new.to_string()));
}

#[test]
fn new_ca_is_followed_with_a_cross_certificate_of_the_pinned_one_only() {
    let (old, new, stranger) = (Node::new(1), Node::new(2), Node::new(3));
    let cross = old.authority.cross_certify(&new.authority, now(), &mut rng(7)).unwrap();
    let forged = stranger.authority.cross_certify(&new.authority, now(), &mut rng(7)).unwrap();
    let for_another = old.authority.cross_certify(&stranger.authority, now(), &mut rng(7)).unwrap();

    let tls = ServerTls::new(ServerChain { cross: Some(&cross.der), ..new.chain() }).unwrap();
    let verifier = pinned(&old);
    handshake(tls.config(all_good(), clock(now())).unwrap(), client(Arc::clone(&verifier), None, now()))
        .client
        .unwrap();
    let presented = verifier.presented().unwrap();
    assert_eq!((presented.how, presented.ca_spki_sha256), (How::CrossCertified, new.authority.fingerprint()));
    // The client then replaces its pin by what was presented, and the cross-certificate is not needed again.
    handshake(new.server(now()), client(pinned(&new), None, now())).client.unwrap();

    for bad in [&forged.der, &for_another.der] {
        let tls = ServerTls::new(ServerChain { cross: Some(bad), ..new.chain() }).unwrap();
        let outcome = handshake(tls.config(all_good(), clock(now())).unwrap(), client(pinned(&old), None, now()));
        assert!(matches!(refusal(&outcome), TrustError::CaChanged { .. }));
    }
    // A pin made by hand has no CA certificate to follow from.
    let mut by_hand = old.pin();
    by_hand.ca_certificate_pem = None;
    let verifier = ServerVerifier::new(Expectation::Pinned(Box::new(by_hand)));
    let outcome = handshake(tls.config(all_good(), clock(now())).unwrap(), client(verifier, None, now()));
    assert!(matches!(refusal(&outcome), TrustError::CaChanged { .. }));
}

#[test]
fn after_a_change_of_ca_clients_of_the_old_one_are_still_taken() {
    let (old, new) = (Node::new(1), Node::new(2));
    let credentials = old.client_credentials();
    let chain = ServerChain { previous: Some(old.authority.certificate_der()), ..new.chain() };
    let server = ServerTls::new(chain).unwrap().config(all_good(), clock(now())).unwrap();
    let outcome = handshake(server, client(pinned(&new), Some(&credentials), now()));
    assert_eq!(outcome.server.unwrap().unwrap().user_id, user());

    let outcome = handshake(new.server(now()), client(pinned(&new), Some(&credentials), now()));
    assert!(outcome.server.is_err() && outcome.client.is_err());
}

#[test]
fn expired_and_not_yet_valid_servers_are_refused_with_dates() {
    let node = Node::new(1);
    let error = refusal(&handshake(node.server(now()), client(pinned(&node), None, days(366))));
    let TrustError::Expired { which: "server", not_after, now: at } = error else { panic!("{error}") };
    assert_eq!((not_after, at), (days(365), days(366)));
    let error = refusal(&handshake(node.server(now()), client(pinned(&node), None, days(-1))));
    assert!(matches!(error, TrustError::NotYetValid { .. }), "{error}");
    let error = refusal(&handshake(node.server(now()), client(pinned(&node), None, days(4000))));
    assert!(matches!(error, TrustError::Expired { which: "CA", .. }), "{error}");
}

#[test]
fn whoever_answers_is_believed_where_nothing_is_compared() {
    let node = Node::new(1);
    let verifier = ServerVerifier::new(Expectation::Nothing);
    handshake(node.server(now()), client(Arc::clone(&verifier), None, days(4000))).client.unwrap();
    let presented = verifier.presented().unwrap();
    assert_eq!((presented.peer_id, presented.how), (peer(), How::Unverified));
}

#[test]
fn expired_client_certificate_is_left_out_by_the_client_and_refused_by_the_server() {
    let node = Node::new(1);
    let (file, _) = node.credentials(CLIENT_VALIDITY);
    let text = file.to_text().to_string();
    let reread = bib_identity::token_file::TokenFile::parse(text.as_bytes()).unwrap();
    let Loaded::Expired { not_after } = ClientCredentials::judge(reread, days(91)) else { panic!("not expired") };
    assert_eq!(not_after, days(90));
    // A client with a wrong clock shows it all the same.
    let outcome = handshake(node.server(days(91)), client(pinned(&node), Some(&valid(file)), now()));
    let error = outcome.server.unwrap_err();
    assert!(matches!(error, rustls::Error::InvalidCertificate(CertificateError::ExpiredContext { .. })), "{error}");
    assert_eq!(outcome.client.unwrap_err(), rustls::Error::AlertReceived(AlertDescription::CertificateExpired));
}

#[test]
fn client_certificate_that_is_not_yet_valid_is_refused() {
    let node = Node::new(1);
    let outcome = handshake(node.server(days(-1)), client(pinned(&node), Some(&node.client_credentials()), now()));
    let error = outcome.server.unwrap_err();
    assert!(matches!(error, rustls::Error::InvalidCertificate(CertificateError::NotValidYetContext { .. })), "{error}");
}

#[test]
fn client_certificate_of_another_ca_is_refused() {
    let (node, other) = (Node::new(1), Node::new(2));
    let outcome = handshake(node.server(now()), client(pinned(&node), Some(&other.client_credentials()), now()));
    assert!(matches!(outcome.server, Err(rustls::Error::InvalidCertificate(_))));
}

#[test]
fn revoked_and_unknown_serials_are_refused_at_the_handshake() {
    let node = Node::new(1);
    let (file, serial) = node.credentials(CLIENT_VALIDITY);
    let credentials = valid(file);
    let cases = [
        (RevocationStatus::Revoked, CertificateError::Revoked),
        (RevocationStatus::Unknown, CertificateError::UnknownRevocationStatus),
    ];
    for (status, expected) in cases {
        let asked = serial.clone();
        let check = move |s: &str| if s == asked { status } else { RevocationStatus::Good };
        let server = ServerTls::new(node.chain()).unwrap().config(Arc::new(check), clock(now())).unwrap();
        let outcome = handshake(Arc::clone(&server), client(pinned(&node), Some(&credentials), now()));
        assert_eq!(outcome.server.unwrap_err(), rustls::Error::InvalidCertificate(expected));
        // The others are served by the same configuration.
        let outcome = handshake(server, client(pinned(&node), Some(&node_with_other_serial(&node)), now()));
        outcome.server.unwrap().unwrap();
    }
}

fn node_with_other_serial(node: &Node) -> ClientCredentials {
    use bib_identity::ca::ClientSubject;
    let request = bib_identity::request::CertificateRequest::generate().unwrap();
    let subject = ClientSubject { user: user(), key: ssh_key(), validity: CLIENT_VALIDITY };
    let issued = node.authority.issue_client(&request.der, &subject, now(), &mut rng(77)).unwrap();
    let file = bib_identity::token_file::TokenFile::new(&request.key_pem, &issued.der, "t".to_owned().into()).unwrap();
    valid(file)
}

#[test]
fn another_node_under_the_same_ca_is_refused() {
    let node = Node::new(1);
    let found = PeerId::from_public_key([9; 32]);
    let pin = node.pin();
    let impostor = Node::of(node.authority, found);
    let verifier = ServerVerifier::new(Expectation::Pinned(Box::new(pin)));
    let error = refusal(&handshake(impostor.server(now()), client(verifier, None, now())));
    assert_eq!(error, TrustError::OtherNode { expected: peer(), found });
}

#[test]
fn renewed_certificate_is_shown_without_a_restart() {
    let node = Node::new(1);
    let tls = ServerTls::new(node.chain()).unwrap();
    let config = tls.config(all_good(), clock(days(340))).unwrap();
    let before = tls.leaf_sha256();
    let subject = ServerSubject { names: &names(), peer: peer(), validity: Duration::from_secs(365 * 86_400) };
    let renewed = ServerCertificate::issue(&node.authority, &subject, days(340), &mut rng(3)).unwrap();
    tls.replace(ServerChain { certificate: &renewed, ..node.chain() }).unwrap();
    let verifier = pinned(&node);
    handshake(config, client(Arc::clone(&verifier), None, days(400))).client.unwrap();
    assert_eq!(verifier.presented().unwrap().leaf_sha256, renewed.info().sha256);
    assert!(tls.is_our_leaf(&before) && tls.is_our_leaf(&renewed.info().sha256));
    assert!(!tls.is_our_leaf(&Node::new(2).certificate.info().sha256));
}

/// A CA made by hand, to sign what `CertificateAuthority` never would.
struct Forge {
    issuer: Issuer<'static, KeyPair>,
    der: Vec<u8>,
    pin: bib_identity::trust::Pin,
}

impl Forge {
    fn new(change: impl FnOnce(&mut CertificateParams)) -> Self {
        let key = KeyPair::generate().unwrap();
        let mut params = base();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
        change(&mut params);
        let der = params.self_signed(&key).unwrap().der().to_vec();
        let info = bib_identity::certificate::describe(&der).unwrap();
        let mut pin = Node::new(1).pin();
        pin.ca_spki_sha256 = info.spki_sha256;
        Self { issuer: Issuer::new(params, key), der, pin }
    }

    /// A handshake of our client with a server that shows a leaf of this making.
    fn shown_with(&self, sent: &[&[u8]], change: impl FnOnce(&mut CertificateParams)) -> Outcome {
        let key = KeyPair::generate().unwrap();
        let mut params = base();
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        params.subject_alt_names = vec![bib_uri(&peer().to_string())];
        change(&mut params);
        let leaf = params.signed_by(&key, &self.issuer).unwrap().der().to_vec();
        let chain = std::iter::once(leaf.as_slice()).chain(sent.iter().copied()).map(|d| d.to_vec().into()).collect();
        let key = PrivateKeyDer::from(PrivatePkcs8KeyDer::from(key.serialize_der()));
        let mut server = ServerConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
            .with_protocol_versions(&[&rustls::version::TLS13])
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(chain, key)
            .unwrap();
        server.alpn_protocols = vec![b"h2".to_vec()];
        let verifier = ServerVerifier::new(Expectation::Pinned(Box::new(self.pin.clone())));
        handshake(Arc::new(server), client(verifier, None, now()))
    }

    fn shown(&self, change: impl FnOnce(&mut CertificateParams)) -> Outcome {
        self.shown_with(&[&self.der], change)
    }
}

fn base() -> CertificateParams {
    let mut params = CertificateParams::default();
    params.not_before = days(-1).to_offset();
    params.not_after = days(300).to_offset();
    params
}

fn bib_uri(peer: &str) -> SanType {
    SanType::URI(format!("bib:{peer}").as_str().try_into().unwrap())
}

#[test]
fn forged_leaves_are_refused_one_by_one() {
    let forge = Forge::new(|_| {});
    // The forge makes good ones too: what follows fails for the named reason.
    forge.shown(|_| {}).client.unwrap();

    type Change = fn(&mut CertificateParams);
    let cases: [(&str, Change, &str); 9] = [
        ("no bib name", |p| p.subject_alt_names.clear(), "name one node"),
        (
            "two nodes",
            |p| p.subject_alt_names.push(bib_uri(&PeerId::from_public_key([9; 32]).to_string())),
            "name one node",
        ),
        ("not a peer id", |p| p.subject_alt_names = vec![bib_uri("QmFoo")], "name one node"),
        ("a CA", |p| p.is_ca = IsCa::Ca(BasicConstraints::Unconstrained), "is a CA"),
        ("for clients", |p| p.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth], "usage"),
        ("for both", |p| p.extended_key_usages.push(ExtendedKeyUsagePurpose::ClientAuth), "usage"),
        ("for anything", |p| p.extended_key_usages = vec![ExtendedKeyUsagePurpose::Any], "usage"),
        ("no usage", |p| p.extended_key_usages.clear(), "usage"),
        (
            "for a relay",
            |p| p.subject_alt_names = vec![bib_uri(&PeerId::from_public_key([9; 32]).to_string())],
            "not 12D3",
        ),
    ];
    for (name, change, reason) in cases {
        let error = refusal(&forge.shown(change));
        assert!(error.to_string().contains(reason), "{name}: {error}");
    }
}

#[test]
fn forged_authorities_are_refused_one_by_one() {
    let not_ca = Forge::new(|p| p.is_ca = IsCa::ExplicitNoCa);
    assert!(matches!(refusal(&not_ca.shown(|_| {})), TrustError::Invalid { which: "CA", .. }));

    let no_signing = Forge::new(|p| p.key_usages = vec![KeyUsagePurpose::DigitalSignature]);
    assert!(no_signing.shown(|_| {}).client.is_err(), "a CA whose key may not sign certificates");

    let constrained = Forge::new(|p| {
        p.name_constraints = Some(NameConstraints {
            permitted_subtrees: vec![GeneralSubtree::DnsName("example.org".to_owned())],
            excluded_subtrees: Vec::new(),
        });
    });
    let error = refusal(&constrained.shown(|p| {
        p.subject_alt_names.push(SanType::DnsName("elsewhere.net".try_into().unwrap()));
    }));
    assert!(matches!(error, TrustError::Invalid { which: "server", .. }), "{error}");
}

#[test]
fn chains_that_do_not_hold_together_are_refused() {
    let (forge, other) = (Forge::new(|_| {}), Forge::new(|_| {}));
    assert_eq!(refusal(&forge.shown_with(&[], |_| {})), TrustError::Chain(1));
    assert_eq!(refusal(&forge.shown_with(&[&forge.der, &forge.der, &forge.der], |_| {})), TrustError::Chain(4));
    // The pinned CA is shown, but another has signed the leaf.
    let liar = Forge { issuer: other.issuer, der: forge.der.clone(), pin: forge.pin.clone() };
    assert!(matches!(refusal(&liar.shown(|_| {})), TrustError::Invalid { which: "server", .. }));
    // Bytes that are no certificate.
    assert!(matches!(refusal(&forge.shown_with(&[b"rubbish"], |_| {})), TrustError::Invalid { which: "CA", .. }));
}

#[test]
fn client_certificate_does_not_make_a_server() {
    // The thief has a good client certificate of the pinned CA and its key.
    let node = Node::new(1);
    let (file, _) = node.credentials(CLIENT_VALIDITY);
    let chain = vec![file.certificate_der().to_vec().into(), node.authority.certificate_der().to_vec().into()];
    let key = secrecy::ExposeSecret::expose_secret(file.key_der()).to_vec();
    let mut server = ServerConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
        .with_protocol_versions(&[&rustls::version::TLS13])
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(chain, PrivateKeyDer::from(PrivatePkcs8KeyDer::from(key)))
        .unwrap();
    server.alpn_protocols = vec![b"h2".to_vec()];
    let error = refusal(&handshake(Arc::new(server), client(pinned(&node), None, now())));
    assert!(error.to_string().contains("usage"), "{error}");
}

#[test]
fn server_certificate_does_not_make_a_client() {
    let node = Node::new(1);
    let key = KeyPair::generate().unwrap();
    let subject = ServerSubject { names: &[], peer: peer(), validity: Duration::from_secs(86_400) };
    let issued = node.authority.issue_server(&key, &subject, now(), &mut rng(4)).unwrap();
    let mut config = client(pinned(&node), None, now());
    let key = PrivateKeyDer::from(PrivatePkcs8KeyDer::from(key.serialize_der()));
    let key = rustls::crypto::ring::sign::any_supported_type(&key).unwrap();
    let certified = rustls::sign::CertifiedKey::new(vec![issued.der.into()], key);
    config.client_auth_cert_resolver = Arc::new(rustls::sign::SingleCertAndKey::from(certified));
    let outcome = handshake(node.server(now()), config);
    assert!(matches!(outcome.server, Err(rustls::Error::InvalidCertificate(_))));
}

#[test]
fn trust_error_is_found_inside_an_io_error() {
    let error = TrustError::Chain(1);
    let io = std::io::Error::new(std::io::ErrorKind::InvalidData, rustls::Error::from(error.clone()));
    assert_eq!(TrustError::find(&io), Some(&error));
    assert_eq!(TrustError::find(&std::io::Error::other("else")), None);
}

#[test]
fn authorities_of_different_keys_have_different_subjects() {
    let (a, b) = (Node::new(1).authority, Node::new(1).authority);
    assert_ne!(a.info().subject, b.info().subject);
    let short = CertificateAuthority::create(&mut rng(1), now(), CA_VALIDITY).unwrap();
    assert_eq!(short.info().not_after, days(3652));
}
