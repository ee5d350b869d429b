//! Holds the bytes of statements, records and log-in statements, and the policy table, against `golden/`.
//!
//! `UPDATE_GOLDEN=1` writes the files. Once two nodes exist, a change here needs an ADR.

#![allow(clippy::unwrap_used)]

use std::fmt::Write as _;
use std::path::Path;

use bib_core::access::{
    Caller, Decision, Embargo, GlassAccess, GrantLevel, Needs, NodeRole, Place, Standing, Verb, Visibility, decide,
};
use bib_core::canonical;
use bib_core::fields::Extra;
use bib_core::glass::GlassStatement;
use bib_core::grant::{Grant, GrantState, Subject};
use bib_core::metadata::{Creator, Funder, Metadata, Related};
use bib_core::record::{
    Body, Dataset, Kind, LastMark, Life, Node, Person, RecordError, Revision, Succession, Tag, Topic, Transfer,
    TransferSubject, Version, VersionSignature, Withdrawal, WithdrawalSubject,
};
use bib_core::signature::{LoginStatement, Purpose, signed_bytes};
use bib_core::statement::{Author, ServiceKind, Statement, StatementError};
use bib_core::{DatasetId, Hash, KeyFingerprint, Nonce, PeerId, Timestamp, TopicId};
use proptest::prelude::*;
use serde_json::{Value, json};

/// An Ed25519 public key of 32 bytes of value 1, as OpenSSH writes it.
const KEY: &str = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIAEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEB";

fn compare(name: &str, bytes: &[u8]) {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("golden").join(name);
    if std::env::var_os("UPDATE_GOLDEN").is_some_and(|value| value == "1") {
        std::fs::write(&path, bytes).unwrap();
    }
    let golden = std::fs::read(&path).unwrap_or_else(|e| panic!("{name}: {e}"));
    assert_eq!(String::from_utf8_lossy(bytes), String::from_utf8_lossy(&golden), "{name}");
}

fn node() -> PeerId {
    PeerId::from_public_key([7; 32])
}

fn other_node() -> PeerId {
    PeerId::from_public_key([8; 32])
}

fn topic_id() -> TopicId {
    TopicId::derive(&node(), &Nonce::from_bytes([1; 16]))
}

fn dataset_id() -> DatasetId {
    DatasetId::derive(&node(), &Nonce::from_bytes([2; 16]))
}

fn time() -> Timestamp {
    "2026-11-20T19:01:00.000007Z".parse().unwrap()
}

fn revision() -> Revision {
    Revision { tenure: 0, epoch: 1, n: 5 }
}

fn person() -> Person {
    Person {
        revision: revision(),
        time: time(),
        node: node(),
        key: KEY.into(),
        name: "Ada Lovelace".into(),
        orcid: Some("0000-0002-1825-0097".parse().unwrap()),
        valid_from: Revision::first(1),
        valid_until: None,
        extra: Extra::new(),
    }
}

fn fingerprint() -> KeyFingerprint {
    person().fingerprint().unwrap()
}

fn metadata() -> Metadata {
    let extra: Extra = serde_json::from_value(json!({"instrument": {"model": "T-1", "height_m": "1.50"}})).unwrap();
    Metadata {
        title: Some("Stündliches Wetter".into()),
        description: Some("Zwei\nZeilen.".into()),
        creators: vec![Creator {
            name: "Lovelace, Ada".into(),
            orcid: Some("0000-0002-1825-0097".parse().unwrap()),
            affiliation: Some("Analytical Society".into()),
            extra: Extra::new(),
        }],
        keywords: vec!["weather".into()],
        funders: vec![Funder { name: "ERC".into(), award: Some("123".into()), extra: Extra::new() }],
        related: vec![Related {
            relation: "IsSupplementTo".into(),
            identifier: "10.1000/x".into(),
            identifier_type: "DOI".into(),
            extra: Extra::new(),
        }],
        publisher: Some("University".into()),
        publication_year: Some(2026),
        language: Some("de".into()),
        identifier: Some("10.5281/zenodo.1234".into()),
        embargo: Some("2027-01-01T00:00:00Z".parse().unwrap()),
        extra,
    }
}

fn statement() -> Statement {
    Statement {
        dataset: dataset_id(),
        content: Hash::of(b"content"),
        parents: vec![Hash::of(b"parent")],
        label: Some("2026 release".into()),
        message: "First line \"quoted\".\nSecond line: größer.".into(),
        time: time(),
        license: "CC-BY-4.0".into(),
        metadata: metadata(),
        author: Author::Person { key: fingerprint(), name: Some("Ada Lovelace".into()) },
        provenance: None,
        author_extra: Extra::new(),
        extra: Extra::new(),
    }
}

fn service_statement() -> Statement {
    let provenance = json!({"expression": "dataset(\"a/b\")", "inputs": [Hash::of(b"input")]});
    Statement {
        parents: Vec::new(),
        label: None,
        metadata: Metadata::default(),
        author: Author::Service {
            node: node(),
            on_behalf_of: fingerprint(),
            kind: ServiceKind::Job,
            id: "01890a5d-ac96-774b-bcce-b302099a8057".parse().unwrap(),
        },
        provenance: Some(serde_json::from_value(provenance).unwrap()),
        ..statement()
    }
}

fn version(statement: &Statement, signature: VersionSignature) -> Version {
    Version {
        revision: revision(),
        time: time(),
        dataset: dataset_id(),
        statement: statement.to_bytes().unwrap(),
        signature,
        layout: Hash::of(b"layout"),
        files: 3,
        size_bytes: 1_234_567,
        extra: Extra::new(),
    }
}

fn sshsig() -> VersionSignature {
    VersionSignature::Person { sshsig: "-----BEGIN SSH SIGNATURE-----\nU1NIU0lH\n-----END SSH SIGNATURE-----\n".into() }
}

/// One body of each kind, with the name of its golden file.
fn bodies() -> Vec<(&'static str, Body)> {
    let (revision, time, extra) = (revision(), time(), Extra::new());
    let service = VersionSignature::Service { node: node(), signature: [9; 64] };
    vec![
        (
            "record-node.json",
            Node {
                revision,
                time,
                id: node(),
                name: Some("laboratory".into()),
                recovery: Some(PeerId::from_public_key([6; 32])),
                ca: Some(Hash::of(b"ca")),
                extra: extra.clone(),
            }
            .into(),
        ),
        ("record-person.json", person().into()),
        (
            "record-topic.json",
            Topic {
                revision,
                time,
                id: topic_id(),
                origin: node(),
                nonce: Nonce::from_bytes([1; 16]),
                name: "climate/stations".parse().unwrap(),
                parent: Some(TopicId::derive(&node(), &Nonce::from_bytes([3; 16]))),
                visibility: Visibility::Private,
                license: Some("CC0-1.0".into()),
                title: Some("Stations".into()),
                description: Some("All of\nthem.".into()),
                creator: Some(fingerprint()),
                life: Life::Live,
                extra: extra.clone(),
            }
            .into(),
        ),
        (
            "record-dataset.json",
            Dataset {
                revision,
                time,
                id: dataset_id(),
                origin: node(),
                nonce: Nonce::from_bytes([2; 16]),
                name: "climate/stations/hourly".parse().unwrap(),
                topic: topic_id(),
                latest: Some(statement().version().unwrap()),
                life: Life::Live,
                extra: extra.clone(),
            }
            .into(),
        ),
        ("record-version.json", version(&statement(), sshsig()).into()),
        ("record-version-service.json", version(&service_statement(), service).into()),
        (
            "record-tag.json",
            Tag {
                revision,
                time,
                dataset: dataset_id(),
                name: "v1".parse().unwrap(),
                version: Some(statement().version().unwrap()),
                extra: extra.clone(),
            }
            .into(),
        ),
        (
            "record-grant.json",
            Grant {
                revision,
                time,
                topic: topic_id(),
                subject: Subject::Node(other_node()),
                level: GrantLevel::Read,
                expires: time.plus_seconds(90 * 24 * 3600),
                state: GrantState::Active,
                extra: extra.clone(),
            }
            .into(),
        ),
        (
            "record-withdrawal.json",
            Withdrawal {
                revision,
                time,
                dataset: dataset_id(),
                subject: WithdrawalSubject::Version(statement().version().unwrap()),
                reason: "A sensor was broken.".into(),
                extra: extra.clone(),
            }
            .into(),
        ),
        (
            "record-transfer.json",
            Transfer {
                revision,
                time,
                subject: TransferSubject::Topic,
                id: topic_id().as_uuid(),
                from: node(),
                to: other_node(),
                last: revision,
                acceptance: Some([5; 64]),
                extra: extra.clone(),
            }
            .into(),
        ),
        (
            "record-succession.json",
            Succession {
                revision,
                time,
                from: node(),
                to: other_node(),
                last: LastMark { epoch: 1, n: 5 },
                acceptance: None,
                extra,
            }
            .into(),
        ),
    ]
}

fn login() -> LoginStatement {
    LoginStatement {
        challenge: [3; 32],
        node: node(),
        server_certificate: Some(Hash::of(b"leaf")),
        csr: Hash::of(b"csr"),
        key: fingerprint(),
        time: time(),
        extra: Extra::new(),
    }
}

#[test]
fn statements_keep_their_bytes() {
    for (name, statement) in [("statement.json", statement()), ("statement-service.json", service_statement())] {
        let bytes = statement.to_bytes().unwrap();
        compare(name, &bytes);
        assert_eq!(Statement::parse(&bytes).unwrap(), statement);
    }
    compare("statement.version", statement().version().unwrap().to_string().as_bytes());
}

#[test]
fn records_keep_their_bytes() {
    let bodies = bodies();
    for (name, body) in &bodies {
        let bytes = body.to_bytes().unwrap();
        compare(name, &bytes);
        assert_eq!(&Body::parse(&bytes).unwrap(), body);
    }
    for kind in Kind::ALL {
        assert!(bodies.iter().any(|(_, body)| body.kind() == Some(kind)), "{kind:?} has no golden file");
    }
}

#[test]
fn log_in_statements_keep_their_bytes() {
    let bytes = login().to_bytes().unwrap();
    compare("login.json", &bytes);
    assert_eq!(LoginStatement::parse(&bytes).unwrap(), login());
    let socket = LoginStatement { server_certificate: None, ..login() };
    compare("login-socket.json", &socket.to_bytes().unwrap());
}

fn glass() -> GlassStatement {
    GlassStatement {
        challenge: [3; 32],
        node: node(),
        user: "ada".to_owned(),
        reason: "ticket 17: größer".to_owned(),
        duration_s: 3_600,
        access: GlassAccess::ReadOnly,
        key: fingerprint(),
        time: time(),
        extra: Extra::new(),
    }
}

#[test]
fn break_glass_statements_keep_their_bytes() {
    let bytes = glass().to_bytes().unwrap();
    compare("break-glass.json", &bytes);
    assert_eq!(GlassStatement::parse(&bytes).unwrap(), glass());
    for wrong in [
        GlassStatement { reason: "two\nlines".to_owned(), ..glass() },
        GlassStatement { reason: String::new(), ..glass() },
        GlassStatement { reason: "x".repeat(1_025), ..glass() },
    ] {
        assert!(GlassStatement::parse(&wrong.to_bytes().unwrap()).is_err(), "{wrong:?}");
    }
    // No statement of one kind is one of the other.
    assert!(GlassStatement::parse(&login().to_bytes().unwrap()).is_err());
    assert!(LoginStatement::parse(&bytes).is_err());
}

#[test]
fn signed_bytes_begin_with_the_purpose() {
    assert_eq!(signed_bytes(Purpose::Record, b"{}"), b"bib-record-v1\0{}");
    assert_eq!(signed_bytes(Purpose::Version, b""), b"bib-version-v1\0");
}

#[test]
fn an_acceptance_covers_who_gives_what_to_whom() {
    let Some((_, Body::Transfer(transfer))) = bodies().into_iter().find(|(name, _)| *name == "record-transfer.json")
    else {
        panic!("no transfer")
    };
    let offer = transfer.offer_bytes().unwrap();
    compare("transfer-offer.json", &offer);
    let later = Transfer { revision: Revision { n: 6, ..revision() }, acceptance: None, ..transfer.clone() };
    assert_eq!(later.offer_bytes().unwrap(), offer);
    let elsewhere = Transfer { to: PeerId::from_public_key([9; 32]), ..transfer };
    assert_ne!(elsewhere.offer_bytes().unwrap(), offer);
}

/// The golden body `name` with its JSON changed.
fn changed(name: &str, change: impl FnOnce(&mut Value)) -> Result<Body, RecordError> {
    let (_, body) = bodies().into_iter().find(|(known, _)| *known == name).unwrap();
    let mut value = canonical::parse(&body.to_bytes().unwrap()).unwrap();
    change(&mut value);
    Body::parse(&canonical::to_vec(&value).unwrap())
}

fn refused_field(outcome: Result<Body, RecordError>) -> String {
    match outcome {
        Err(RecordError::Field(e)) => e.field,
        other => panic!("{other:?}"),
    }
}

#[test]
fn refuses_ids_that_belong_to_something_else() {
    let other_nonce = json!(Nonce::from_bytes([4; 16]));
    assert_eq!(refused_field(changed("record-topic.json", |v| v["nonce"] = other_nonce.clone())), "id");
    assert_eq!(refused_field(changed("record-dataset.json", |v| v["nonce"] = other_nonce.clone())), "id");
    assert_eq!(refused_field(changed("record-dataset.json", |v| v["origin"] = json!(other_node()))), "id");
    assert_eq!(refused_field(changed("record-tag.json", |v| v["name"] = json!("v2"))), "id");
    assert_eq!(refused_field(changed("record-version.json", |v| v["id"] = json!(Hash::of(b"x")))), "id");
    assert_eq!(
        refused_field(changed("record-person.json", |v| v["id"] = json!(KeyFingerprint::of_wire_key(b"")))),
        "id"
    );
    assert_eq!(refused_field(changed("record-grant.json", |v| v["subject"] = json!(node()))), "id");
}

#[test]
fn refuses_what_is_out_of_bounds() {
    let late = json!(time().plus_seconds(90 * 24 * 3600 + 1));
    assert_eq!(refused_field(changed("record-grant.json", |v| v["expires"] = late)), "expires");
    assert_eq!(refused_field(changed("record-version.json", |v| v["dataset"] = json!(topic_id()))), "dataset");
    let service = json!({"kind": "service", "node": node(), "signature": "00".repeat(64)});
    assert_eq!(refused_field(changed("record-version.json", |v| v["signature"] = service)), "signature");
    assert_eq!(refused_field(changed("record-withdrawal.json", |v| v["reason"] = json!("\u{1b}[2J"))), "reason");
    assert_eq!(refused_field(changed("record-person.json", |v| v["key"] = json!("ssh-rsa AAAA"))), "key");
    assert_eq!(refused_field(changed("record-transfer.json", |v| v["to"] = json!(node()))), "to");
    assert_eq!(refused_field(changed("record-topic.json", |v| v["name"] = json!("Climate"))), "name");
    let second_spelling = changed("record-topic.json", |v| v["time"] = json!("2026-11-20T20:01:00.000007+01:00"));
    assert!(matches!(second_spelling, Err(RecordError::Canonical(_))));
    let second_spelling = changed("record-topic.json", |v| v["parent"] = json!(topic_id().to_string().to_uppercase()));
    assert!(matches!(second_spelling, Err(RecordError::Canonical(_))));
}

#[test]
fn keeps_what_it_does_not_know_and_refuses_other_majors() {
    let body = changed("record-topic.json", |v| v["later"] = json!({"a": [1]})).unwrap();
    let Body::Topic(topic) = &body else { panic!("{body:?}") };
    assert_eq!(topic.extra["later"], json!({"a": [1]}));
    assert_eq!(Body::parse(&body.to_bytes().unwrap()).unwrap(), body);

    let minor = changed("record-topic.json", |v| v["format"] = json!("bib-topic/1.1")).unwrap();
    assert!(matches!(&minor, Body::Unknown(unknown) if unknown.kind == "topic"));
    let kind = changed("record-topic.json", |v| {
        v["format"] = json!("bib-poem/1");
        v["kind"] = json!("poem");
    });
    let kind = kind.unwrap();
    assert_eq!((kind.kind(), kind.kind_word(), kind.revision()), (None, "poem", revision()));
    assert_eq!(Body::parse(&kind.to_bytes().unwrap()).unwrap(), kind);

    for format in ["bib-topic/2", "bib-topic/10", "bib-dataset/1", "topic/1", "bib-topic/1.", "bib-topic/1.x"] {
        let outcome = changed("record-topic.json", |v| v["format"] = json!(format));
        assert!(matches!(outcome, Err(RecordError::Format(_))), "{format}");
    }
}

#[test]
fn statements_keep_unknown_members_and_refuse_what_is_out_of_bounds() {
    let parse = |change: &dyn Fn(&mut Value)| {
        let mut value = canonical::parse(&statement().to_bytes().unwrap()).unwrap();
        change(&mut value);
        Statement::parse(&canonical::to_vec(&value).unwrap())
    };
    let kept = parse(&|v| {
        v["later"] = json!(1);
        v["author"]["later"] = json!(2);
        v["metadata"]["creators"][0]["later"] = json!(3);
    });
    let kept = kept.unwrap();
    assert_eq!((&kept.extra["later"], &kept.author_extra["later"]), (&json!(1), &json!(2)));
    assert_eq!(kept.version().unwrap(), Hash::of(&kept.to_bytes().unwrap()));

    let field = |change: &dyn Fn(&mut Value)| match parse(change) {
        Err(StatementError::Field(e)) => e.field,
        other => panic!("{other:?}"),
    };
    assert_eq!(field(&|v| v["message"] = json!("")), "message");
    assert_eq!(field(&|v| v["message"] = json!("a\rb")), "message");
    assert_eq!(field(&|v| v["label"] = json!("a\nb")), "label");
    assert_eq!(field(&|v| v["kind"] = json!("version")), "kind");
    assert_eq!(field(&|v| v["author"]["key"] = json!("x")), "author.key");
    assert_eq!(
        field(&|v| v["metadata"]["creators"][0]["orcid"] = json!("0000-0002-1825-0098")),
        "metadata.creators[0].orcid"
    );
    assert_eq!(field(&|v| v["parents"] = json!([Hash::of(b"a"), Hash::of(b"a")])), "parents[1]");
    assert!(matches!(parse(&|v| v["format"] = json!("bib-version/2")), Err(StatementError::Format(_))));
    assert!(matches!(parse(&|v| v["metadata"]["keywords"] = json!([])), Err(StatementError::Canonical(_))));
    assert!(matches!(parse(&|v| v["later"] = json!("x".repeat(33_000))), Err(StatementError::TooLong(_))));
}

fn needs(decision: Decision) -> String {
    match decision {
        Decision::Allow => "allow".into(),
        Decision::Hidden => "hidden".into(),
        Decision::Denied(Needs::Role(role)) => format!("role:{role}"),
        Decision::Denied(Needs::Grant(level)) => format!("grant:{level}"),
        Decision::Denied(Needs::User) => "user".into(),
    }
}

#[test]
fn the_policy_is_the_golden_table() {
    let callers: Vec<(&str, Caller)> = NodeRole::ALL
        .iter()
        .map(|role| (role.as_str(), Caller::User(*role)))
        .chain([("peer", Caller::Peer), ("stranger", Caller::Stranger)])
        .collect();
    let mut standings = vec![("none", Standing::None)];
    standings.extend(GrantLevel::ALL.iter().map(|level| (level.as_str(), Standing::Grantee(*level))));
    standings.push(("creator", Standing::Creator));

    let mut table = String::from("# verb place standing embargo:");
    for (name, _) in &callers {
        write!(table, " {name}").unwrap();
    }
    table.push('\n');
    for verb in Verb::ALL {
        let mut row = |place_text: &str, place: Place| {
            write!(table, "{verb} {place_text}:").unwrap();
            for (_, caller) in &callers {
                write!(table, " {}", needs(decide(*verb, *caller, place))).unwrap();
            }
            table.push('\n');
        };
        row("node - -", Place::Node);
        for visibility in Visibility::ALL {
            for (standing_text, standing) in &standings {
                for (embargo_text, embargo) in [("over", Embargo::Over), ("in-force", Embargo::InForce)] {
                    let place = Place::Topic { visibility: *visibility, standing: *standing, embargo };
                    row(&format!("{visibility} {standing_text} {embargo_text}"), place);
                }
            }
        }
    }
    compare("policy.txt", table.as_bytes());
}

#[test]
fn other_nodes_never_change_anything_and_private_topics_stay_hidden() {
    for verb in Verb::ALL {
        for caller in [Caller::Peer, Caller::Stranger] {
            for standing in [Standing::None, Standing::Grantee(GrantLevel::Admin), Standing::Creator] {
                for visibility in Visibility::ALL {
                    let place = Place::Topic { visibility: *visibility, standing, embargo: Embargo::Over };
                    let reads = matches!(verb, Verb::TopicRead | Verb::DatasetShow | Verb::DatasetRead);
                    assert!(reads || !decide(*verb, caller, place).is_allowed(), "{verb} {caller:?} {place:?}");
                }
            }
        }
    }
    let private = Place::Topic { visibility: Visibility::Private, standing: Standing::None, embargo: Embargo::Over };
    for caller in [Caller::User(NodeRole::Reader), Caller::User(NodeRole::Writer), Caller::Peer, Caller::Stranger] {
        assert_eq!(decide(Verb::TopicRead, caller, private), Decision::Hidden);
        assert_eq!(decide(Verb::DatasetPublish, caller, private), Decision::Hidden);
    }
    assert!(!decide(Verb::DatasetRead, Caller::User(NodeRole::Admin), private).is_allowed());
}

proptest! {
    #[test]
    fn no_parser_panics_on_arbitrary_bytes(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
        let _body = Body::parse(&bytes);
        let _statement = Statement::parse(&bytes);
        let _login = LoginStatement::parse(&bytes);
        let _glass = GlassStatement::parse(&bytes);
        let _metadata = Metadata::from_json(&bytes);
    }

    #[test]
    fn no_parser_takes_a_body_in_a_second_spelling(which in 0..11_usize, at in any::<prop::sample::Index>(), byte in any::<u8>()) {
        let (_, body) = bodies().swap_remove(which);
        let mut bytes = body.to_bytes().unwrap();
        let at = at.index(bytes.len());
        bytes[at] = byte;
        if let Ok(read) = Body::parse(&bytes) {
            prop_assert_eq!(read.to_bytes().unwrap(), bytes);
        }
    }

    #[test]
    fn no_statement_has_two_spellings(at in any::<prop::sample::Index>(), byte in any::<u8>()) {
        let mut bytes = statement().to_bytes().unwrap();
        let at = at.index(bytes.len());
        bytes[at] = byte;
        if let Ok(read) = Statement::parse(&bytes) {
            prop_assert_eq!(read.to_bytes().unwrap(), bytes);
        }
    }
}
