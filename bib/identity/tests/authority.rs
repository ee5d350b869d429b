//! The certificate authority, the trust store and the token file on disk.
#![allow(clippy::unwrap_used)]

mod support;

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::time::Duration;

use bib_core::{PeerId, Timestamp};
use bib_identity::ca::{self, CLIENT_VALIDITY, CaError, ClientSubject, SERVER_VALIDITY, ServerSubject};
use bib_identity::certificate::{self, Fingerprint};
use bib_identity::credentials::{ClientCredentials, Loaded};
use bib_identity::pem;
use bib_identity::request::{CertificateRequest, RequestError};
use bib_identity::server_certificate::Renewal;
use bib_identity::token_file::{TokenFile, TokenFileError};
use bib_identity::trust::{StoreError, TrustStore};
use bib_identity::{CertificateAuthority, FileError, NodeKey, SanName, SealedDir, ServerCertificate};
use rcgen::{CertificateParams, KeyPair, PublicKeyData as _};
use secrecy::SecretString;
use support::*;

/// A node's directories with its key.
struct Home {
    dir: tempfile::TempDir,
    key: NodeKey,
}

impl Home {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let key = NodeKey::create(&dir.path().join("node_key"), &mut rng(1)).unwrap();
        fs::create_dir(dir.path().join("certs")).unwrap();
        Self { dir, key }
    }

    fn certs(&self) -> std::path::PathBuf {
        self.dir.path().join("certs")
    }

    fn sealed(&self) -> SealedDir<'_> {
        SealedDir::open(&self.dir.path().join("secrets"), &self.key, vec![]).unwrap()
    }

    fn authority(&self) -> Result<CertificateAuthority, CaError> {
        CertificateAuthority::ensure(&self.certs(), &self.sealed(), now(), &mut rng(2))
    }

    fn server(
        &self,
        authority: &CertificateAuthority,
        names: &[SanName],
        at: Timestamp,
    ) -> (ServerCertificate, Renewal) {
        let subject = ServerSubject { names, peer: self.key.peer_id(), validity: SERVER_VALIDITY };
        ServerCertificate::ensure(authority, &self.certs(), &self.sealed(), &subject, at, &mut rng(3)).unwrap()
    }
}

#[test]
fn authority_is_made_once_and_read_afterwards() {
    let home = Home::new();
    let made = home.authority().unwrap();
    let read = home.authority().unwrap();
    assert_eq!(made.certificate_der(), read.certificate_der());
    assert_eq!((made.info().not_after, made.info().is_ca), (days(3652), true));
    assert!(!fs::read(home.dir.path().join("secrets/ca.key.age")).unwrap().windows(7).any(|w| w == b"PRIVATE"));
}

#[test]
fn lost_certificate_is_issued_anew_under_the_same_key_and_pins_hold() {
    let home = Home::new();
    let before = home.authority().unwrap();
    fs::remove_file(home.certs().join("ca.crt")).unwrap();
    let after = home.authority().unwrap();
    assert_eq!((before.fingerprint(), &before.info().subject), (after.fingerprint(), &after.info().subject));
}

#[test]
fn lost_or_foreign_key_is_an_error_and_nothing_is_made_anew() {
    let home = Home::new();
    home.authority().unwrap();
    let before = fs::read(home.certs().join("ca.crt")).unwrap();
    let key = home.dir.path().join("secrets/ca.key.age");
    let kept = fs::read(&key).unwrap();
    fs::remove_file(&key).unwrap();
    assert!(matches!(home.authority(), Err(CaError::KeyMissing)));
    fs::write(&key, b"").unwrap();
    fs::set_permissions(&key, fs::Permissions::from_mode(0o600)).unwrap();
    assert!(matches!(home.authority(), Err(CaError::Sealed(_))));
    let other = Home::new();
    let foreign = other.authority().unwrap();
    home.sealed().write("ca.key", &foreign.key_der()).unwrap();
    assert!(matches!(home.authority(), Err(CaError::Mismatch)));
    assert_eq!(fs::read(home.certs().join("ca.crt")).unwrap(), before);
    fs::write(&key, kept).unwrap();
    home.authority().unwrap();
}

#[test]
fn server_certificate_is_kept_until_it_is_due_or_lacks_something() {
    let home = Home::new();
    let authority = home.authority().unwrap();
    let (first, renewal) = home.server(&authority, &names(), now());
    assert_eq!(renewal, Renewal::Issued);
    let info = first.info();
    assert_eq!((info.server_auth, info.client_auth, info.is_ca), (true, false, false));
    assert_eq!(info.peer_id(), Some(home.key.peer_id()));
    for name in ["DNS:node.example.org", "IP:127.0.0.1", "IP:::1"] {
        assert!(info.names.iter().any(|n| n == name), "{name}");
    }
    let again = |at, names: &[SanName]| home.server(&authority, names, at).1;
    assert_eq!(again(days(1), &names()), Renewal::Kept);
    assert_eq!(again(days(334), &names()), Renewal::Kept);
    assert_eq!(again(days(1), &["other.example.org".parse().unwrap()]), Renewal::Issued);
    home.server(&authority, &names(), now());
    assert_eq!(again(days(335), &names()), Renewal::Issued);
    assert_eq!(again(days(336), &names()), Renewal::Kept);
    fs::write(home.certs().join("server.crt"), "damaged").unwrap();
    assert_eq!(again(days(336), &names()), Renewal::Issued);
    fs::remove_file(home.dir.path().join("secrets/server.key.age")).unwrap();
    assert_eq!(again(days(336), &names()), Renewal::Issued);
    let other = CertificateAuthority::create(&mut rng(9), now(), SERVER_VALIDITY).unwrap();
    assert_eq!(home.server(&other, &names(), days(1)).1, Renewal::Issued);
}

#[test]
fn renewal_begins_thirty_days_before_the_end_and_leaves_never_outlive_the_ca() {
    let node = Node::new(1);
    let der = node.certificate.certificate_der();
    assert!(!ca::needs_renewal(der, days(334)) && ca::needs_renewal(der, days(335)));
    assert!(ca::needs_renewal(b"rubbish", now()) && ca::needs_renewal(der, days(-2)));
    let short = CertificateAuthority::create(&mut rng(1), now(), Duration::from_secs(10 * 86_400)).unwrap();
    let key = KeyPair::generate().unwrap();
    let subject = ServerSubject { names: &[], peer: peer(), validity: SERVER_VALIDITY };
    assert_eq!(short.issue_server(&key, &subject, now(), &mut rng(2)).unwrap().not_after, days(10));
}

fn client_subject() -> ClientSubject {
    ClientSubject { user: user(), key: ssh_key(), validity: CLIENT_VALIDITY }
}

#[test]
fn client_certificate_takes_nothing_but_the_key_from_the_request() {
    let node = Node::new(1);
    let key = KeyPair::generate().unwrap();
    let mut greedy = CertificateParams::new(vec!["bank.example.org".to_owned()]).unwrap();
    greedy.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
    greedy.extended_key_usages = vec![rcgen::ExtendedKeyUsagePurpose::ServerAuth];
    greedy.distinguished_name.push(rcgen::DnType::CommonName, "root");
    let request = greedy.serialize_request(&key).unwrap();
    let issued = node.authority.issue_client(request.der(), &client_subject(), now(), &mut rng(6)).unwrap();
    let info = certificate::describe(&issued.der).unwrap();
    assert_eq!(info.subject, format!("CN={}", user()));
    assert_eq!((info.is_ca, info.server_auth, info.client_auth), (false, false, true));
    assert_eq!((info.user_id(), info.key(), info.names.len()), (Some(user()), Some(ssh_key()), 2));
    assert_eq!(info.spki_sha256, Fingerprint::of(&key.subject_public_key_info()));
    assert_eq!((issued.not_after, issued.serial.len()), (days(90), 32));
    assert_eq!(issued.serial, info.serial);
    assert!(issued.serial.parse::<u128>().is_err() || u128::from_str_radix(&issued.serial, 16).is_ok());
    let other = node.authority.issue_client(request.der(), &client_subject(), now(), &mut rng(7)).unwrap();
    assert_ne!(other.serial, issued.serial);
}

#[test]
fn bad_requests_are_refused() {
    let node = Node::new(1);
    let issue = |der: &[u8]| match node.authority.issue_client(der, &client_subject(), now(), &mut rng(6)) {
        Err(CaError::Request(error)) => error,
        other => panic!("{other:?}"),
    };
    let good = CertificateRequest::generate().unwrap();
    let mut forged = good.der.clone();
    *forged.last_mut().unwrap() ^= 1;
    assert!(matches!(issue(&forged), RequestError::Signature | RequestError::Malformed));
    let mut longer = good.der.clone();
    longer.push(0);
    assert!(matches!(issue(&longer), RequestError::Malformed));
    assert!(matches!(issue(&[good.der.as_slice(), &[0; 9000]].concat()), RequestError::Malformed));
    let ed = KeyPair::generate_for(&rcgen::PKCS_ED25519).unwrap();
    let p384 = KeyPair::generate_for(&rcgen::PKCS_ECDSA_P384_SHA384).unwrap();
    for key in [ed, p384] {
        let request = CertificateParams::default().serialize_request(&key).unwrap();
        assert!(matches!(issue(request.der()), RequestError::KeyType));
    }
    for position in 0..good.der.len() {
        let mut changed = good.der.clone();
        changed[position] ^= 0x55;
        // Outside the signed part the parser forgives a tag; the key is still the one that signed.
        if let Ok(issued) = node.authority.issue_client(&changed, &client_subject(), now(), &mut rng(6)) {
            assert_eq!(issued.spki_sha256, good.spki_sha256, "byte {position}");
            assert!(position > 100, "byte {position} is in the signed part");
        }
        issue(&good.der[..position]);
    }
}

/// The part of a certificate that is signed, as its bytes stand.
fn tbs(der: &[u8]) -> Vec<u8> {
    let (_, certificate) = x509_parser::parse_x509_certificate(der).unwrap();
    certificate.tbs_certificate.as_ref().to_vec()
}

#[test]
fn hostile_certificates_never_panic() {
    let node = Node::new(1);
    let der = node.certificate.certificate_der();
    for position in 0..der.len() {
        for value in [0, 0x7f, 0xff] {
            let mut changed = der.to_vec();
            changed[position] = value;
            if changed != der {
                // Nothing that is signed can change; a tag around the signature may.
                let signed = certificate::is_signed_by(&changed, node.authority.certificate_der());
                assert!(!signed || tbs(&changed) == tbs(der), "byte {position} = {value}");
            }
        }
        assert!(certificate::describe(&der[..position]).is_err());
    }
    assert!(certificate::describe(&[der, &[0]].concat()).is_err());
    assert!(certificate::ClientIdentity::from_der(der).is_err());
}

#[test]
fn fingerprints_read_back_in_every_form() {
    let print = Node::new(1).authority.fingerprint();
    let colons =
        print.to_string().as_bytes().chunks(2).map(|c| std::str::from_utf8(c).unwrap()).collect::<Vec<_>>().join(":");
    for text in [print.to_string(), print.grouped(), colons.to_uppercase(), format!("SHA256:{print}")] {
        assert_eq!(text.parse::<Fingerprint>().unwrap(), print, "{text}");
    }
    for text in ["", "sha256:", "abcd", &"g".repeat(64), &"0".repeat(300)] {
        assert!(text.parse::<Fingerprint>().is_err(), "{text}");
    }
}

#[test]
fn names_that_are_no_host_names_are_refused() {
    for text in ["", ".", "a..b", "-a", "a-", "a b", "*.example.org", "exämple", &"a".repeat(64), &"a.".repeat(130)] {
        assert!(text.parse::<SanName>().is_err(), "{text}");
    }
    assert_eq!("Node.Example.ORG".parse::<SanName>().unwrap(), SanName::Dns("node.example.org".to_owned()));
}

#[test]
fn trust_store_adds_finds_replaces_and_removes() {
    let dir = tempfile::tempdir().unwrap();
    let store = TrustStore::open(&dir.path().join("trusted_nodes")).unwrap();
    let mut pin = Node::new(1).pin();
    pin.alias = Some("lab".to_owned());
    store.add(&pin).unwrap();
    for name in ["lab", "node.example.org:7700", &peer().to_string()] {
        assert_eq!(store.find(name).unwrap().as_ref(), Some(&pin), "{name}");
    }
    assert_eq!(store.find("elsewhere").unwrap(), None);
    assert!(matches!(store.add(&pin), Err(StoreError::Pinned { .. })));

    let mut other = Node::new(2).pin();
    other.peer_id = PeerId::from_public_key([9; 32]);
    assert!(matches!(store.add(&other), Err(StoreError::NameTaken { .. })));
    assert!(matches!(store.replace(&other), Err(StoreError::NotFound(_))));
    other.addresses = vec!["b:1".to_owned()];
    store.add(&other).unwrap();
    assert_eq!(store.list().unwrap().len(), 2);

    pin.last_seen = Some(days(3));
    pin.ca_spki_sha256 = other.ca_spki_sha256;
    store.replace(&pin).unwrap();
    assert_eq!(TrustStore::open(&dir.path().join("trusted_nodes")).unwrap().find("lab").unwrap(), Some(pin.clone()));
    assert_eq!(store.remove("lab").unwrap(), pin);
    assert!(matches!(store.remove("lab"), Err(StoreError::NotFound(_))));
}

#[test]
fn damaged_open_and_renamed_pins_are_refused_not_skipped() {
    let dir = tempfile::tempdir().unwrap();
    let directory = dir.path().join("t");
    let store = TrustStore::open(&directory).unwrap();
    let pin = Node::new(1).pin();
    store.add(&pin).unwrap();
    let path = directory.join(format!("{}.json", peer()));
    let good = fs::read(&path).unwrap();
    let renamed = directory.join(format!("{}.json", PeerId::from_public_key([9; 32])));
    fs::copy(&path, &renamed).unwrap();
    assert!(matches!(store.list(), Err(StoreError::Damaged { .. })));
    fs::remove_file(&renamed).unwrap();
    fs::write(directory.join(".bib-left-over.json"), "half").unwrap();
    store.list().unwrap();
    for bad in [
        &good[..good.len() / 2],
        b"{}",
        b"[]",
        &String::from_utf8(good.clone()).unwrap().replace("bib-pin/1", "bib-pin/2").into_bytes(),
    ] {
        fs::write(&path, bad).unwrap();
        assert!(matches!(store.list(), Err(StoreError::Damaged { .. })));
    }
    fs::write(&path, &good).unwrap();
    fs::set_permissions(&path, fs::Permissions::from_mode(0o666)).unwrap();
    assert!(matches!(store.list(), Err(StoreError::File(FileError::TooOpen { .. }))));
    fs::set_permissions(&directory, fs::Permissions::from_mode(0o755)).unwrap();
    assert!(matches!(TrustStore::open(&directory), Err(StoreError::File(FileError::TooOpen { .. }))));
}

#[test]
fn token_file_is_private_and_reads_back() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("script.token");
    let (file, _) = Node::new(1).credentials(CLIENT_VALIDITY);
    file.create(&path).unwrap();
    assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o7777, 0o600);
    assert!(matches!(file.create(&path), Err(TokenFileError::File(FileError::Exists { .. }))));
    let read = TokenFile::load(&path).unwrap();
    assert_eq!(*read.to_text(), *file.to_text());
    assert_eq!(secrecy::ExposeSecret::expose_secret(read.token()), "bibt-abc");
    assert!(!format!("{read:?}").contains("bibt-abc"));
    fs::set_permissions(&path, fs::Permissions::from_mode(0o644)).unwrap();
    assert!(matches!(TokenFile::load(&path), Err(TokenFileError::File(FileError::TooOpen { .. }))));
}

#[test]
fn token_file_with_parts_of_two_or_without_a_part_is_refused() {
    let node = Node::new(1);
    let (a, b) = (node.credentials(CLIENT_VALIDITY).0, node.credentials(CLIENT_VALIDITY).0);
    let key = pem::encode(pem::PRIVATE_KEY, secrecy::ExposeSecret::expose_secret(a.key_der()));
    let mixed = TokenFile::new(&SecretString::from(key.as_str()), b.certificate_der(), "t".to_owned().into());
    assert!(matches!(mixed, Err(TokenFileError::Mismatch)));
    for token in ["", "two words", "ä", &"x".repeat(600)] {
        let file = TokenFile::new(&SecretString::from(key.as_str()), a.certificate_der(), token.to_owned().into());
        assert!(matches!(file, Err(TokenFileError::Token)), "{token}");
    }
    let server =
        TokenFile::new(&SecretString::from(key.as_str()), node.certificate.certificate_der(), "t".to_owned().into());
    assert!(matches!(server, Err(TokenFileError::Certificate(_))));
    let text = a.to_text();
    for label in ["PRIVATE KEY", "CERTIFICATE", "BIB TOKEN"] {
        let without = text.replace(&format!(" {label}-----"), " OTHER-----");
        assert!(matches!(TokenFile::parse(without.as_bytes()), Err(TokenFileError::Pem(_))), "{label}");
    }
    assert!(TokenFile::parse(format!("{}{}", *text, *text).as_bytes()).is_err());
    for end in 0..text.len() - 30 {
        assert!(TokenFile::parse(&text.as_bytes()[..end]).is_err());
    }
}

#[test]
fn credentials_say_absent_expired_early_or_valid() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("node.credentials");
    let load = |at: Timestamp| ClientCredentials::load(Path::new(&path), at).unwrap();
    assert!(matches!(load(now()), Loaded::Absent));
    let (file, _) = Node::new(1).credentials(CLIENT_VALIDITY);
    ClientCredentials::store(&path, &file).unwrap();
    assert!(matches!(load(now()), Loaded::Valid(c) if c.user_id() == user()));
    assert!(matches!(load(days(91)), Loaded::Expired { not_after } if not_after == days(90)));
    assert!(matches!(load(days(-1)), Loaded::NotYetValid { .. }));
    fs::write(&path, "damaged").unwrap();
    assert!(ClientCredentials::load(&path, now()).is_err());
}
