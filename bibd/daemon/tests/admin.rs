//! AdminService and NodeService end to end: a real daemon on a real PostgreSQL, called over its socket.
#![allow(clippy::unwrap_used)]

#[allow(dead_code, reason = "shared with the tests of accounts")]
#[path = "accounts/node.rs"]
mod node;

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

use bib_core::signature::Purpose;
use bib_identity::recovery::RecoverySheet;
use bib_proto::v1 as pb;
use bib_proto::v1::admin_service_client::AdminServiceClient;
use bib_proto::v1::node_service_client::NodeServiceClient;
use futures::StreamExt as _;
use hyper_util::rt::TokioIo;
use node::{Node, code, refused};
use secrecy::ExposeSecret as _;
use tokio::net::UnixStream;
use tonic::Streaming;
use tonic::transport::{Channel, Endpoint};

async fn connect(node: &Node) -> Channel {
    let path = node.daemon.ready().socket.clone();
    let connector = tower::service_fn(move |_| {
        let path: PathBuf = path.clone();
        async move { UnixStream::connect(path).await.map(TokioIo::new) }
    });
    Endpoint::from_static("http://node.bib.invalid").connect_with_connector(connector).await.unwrap()
}

async fn admin(node: &Node) -> AdminServiceClient<Channel> {
    AdminServiceClient::new(connect(node).await)
}

async fn all<T>(stream: Streaming<T>) -> Vec<T> {
    stream.map(Result::unwrap).collect().await
}

async fn verify(admin: &mut AdminServiceClient<Channel>) -> pb::VerifyAuditResponse {
    let answer = admin.verify_audit(pb::VerifyAuditRequest {}).await.unwrap().into_inner();
    all(answer).await.pop().unwrap()
}

/// What a line of an export is.
fn kind_of(line: &[u8]) -> String {
    let line: serde_json::Value = serde_json::from_slice(line).unwrap_or_default();
    line["kind"].as_str().unwrap_or_default().to_owned()
}

fn since_the_newest() -> pb::ListAuditRequest {
    pb::ListAuditRequest { descending: true, ..Default::default() }
}

fn set(key: &str, value: &str) -> pb::UpdateConfigRequest {
    pb::UpdateConfigRequest { key: key.to_owned(), value: value.to_owned() }
}

fn values(response: pb::GetConfigResponse) -> BTreeMap<String, (String, String)> {
    response.values.into_iter().map(|value| (value.key, (value.value, value.origin))).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn the_node_tells_what_it_is_and_its_settings_change_and_stay() {
    let Some(node) = Node::start().await else { return };
    let state = NodeServiceClient::new(connect(&node).await).get_self_node(pb::GetSelfNodeRequest {}).await;
    let state = state.unwrap().into_inner();
    assert_eq!(state.peer_id, node.daemon.ready().peer_id);
    assert_eq!(state.ca_fingerprint, node.daemon.ready().fingerprint);
    assert_eq!((state.epoch, state.mode.as_str(), state.topics), (1, "full", 0));
    assert_eq!(state.listen_addresses, [node.address().to_string()]);
    let (database, storage) = (state.database.unwrap(), state.storage.unwrap());
    assert!(database.healthy && !database.version.is_empty() && database.provisioner == "process");
    assert_eq!(database.schema, u32::try_from(bibd_catalog::migrate::newest()).unwrap());
    assert!(storage.disk_total_bytes >= storage.disk_free_bytes && storage.disk_free_bytes > 0);

    let mut calls = admin(&node).await;
    let before = values(calls.get_config(pb::GetConfigRequest {}).await.unwrap().into_inner());
    assert_eq!(before["grpc.rate_limit.burst"], ("1000".to_owned(), "default".to_owned()));
    let after = calls.update_config(set("grpc.rate_limit.burst", "500")).await.unwrap().into_inner();
    assert_eq!(values(after)["grpc.rate_limit.burst"], ("500".to_owned(), "setting".to_owned()));
    assert_eq!(node.daemon.foundation().limiter.limit().burst, 500);
    assert_eq!(refused(calls.update_config(set("grpc.rate_limit.burst", "1")).await), "BIB0003");
    assert_eq!(refused(calls.update_config(set("grpc.listen", "[]")).await), "BIB0003");
    assert_eq!(node.entries("config.set").await.len(), 1);
    assert!(
        calls.get_metrics(pb::GetMetricsRequest {}).await.unwrap().into_inner().text.contains("bibd_grpc_requests")
    );

    let node = node.restart().await;
    assert_eq!(node.daemon.foundation().limiter.limit().burst, 500);
    let again = admin(&node).await.get_config(pb::GetConfigRequest {}).await.unwrap().into_inner();
    assert_eq!(values(again)["grpc.rate_limit.burst"].1, "setting");
    node.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_log_is_listed_followed_verified_proved_exported_and_erased() {
    let Some(node) = Node::start().await else { return };
    let mut calls = admin(&node).await;
    let mut tail = calls.tail_audit(pb::TailAuditRequest { tail: 1 }).await.unwrap().into_inner();
    let first = tail.next().await.unwrap().unwrap();
    calls.update_config(set("grpc.rate_limit.burst", "600")).await.unwrap();
    // Every entry in between comes, in the order of the log.
    let mut seq = first.seq;
    let changed = loop {
        let entry = tokio::time::timeout(Duration::from_secs(5), tail.next()).await.unwrap().unwrap().unwrap();
        assert_eq!(entry.seq, seq + 1);
        seq = entry.seq;
        if entry.action == "config.set" {
            break entry;
        }
    };
    drop(tail);
    assert_eq!(changed.target, "grpc.rate_limit.burst");

    // Pages of one lead through the whole list.
    let whole = calls.list_audit(pb::ListAuditRequest::default()).await.unwrap().into_inner().entries;
    let (mut cursor, mut ids) = (String::new(), Vec::new());
    while ids.len() < whole.len() {
        let page = Some(pb::PageRequest { limit: 1, cursor: cursor.clone() });
        let answer = calls.list_audit(pb::ListAuditRequest { page, ..Default::default() }).await.unwrap().into_inner();
        ids.extend(answer.entries.into_iter().map(|entry| entry.id));
        cursor = answer.page.unwrap().next_cursor;
    }
    assert_eq!(ids, whole.iter().map(|entry| entry.id.clone()).collect::<Vec<_>>());
    let of = pb::ListAuditRequest { action: "config.".to_owned(), ..since_the_newest() };
    assert_eq!(calls.list_audit(of).await.unwrap().into_inner().entries.len(), 1);
    let wrong = pb::ListAuditRequest { since: "yesterday".to_owned(), ..Default::default() };
    assert_eq!(refused(calls.list_audit(wrong).await), "BIB0003");

    let verdict = verify(&mut calls).await;
    assert_eq!((verdict.verdict.as_str(), verdict.first_bad), ("OK", None), "{}", verdict.explanation);
    assert!(verdict.entries >= changed.seq && verdict.checkpoint.starts_with("bib/"));
    let proof = pb::ProveAuditRequest { epoch: 0, seq: changed.seq };
    let proof = calls.prove_audit(proof).await.unwrap().into_inner().proof_json;
    let proof = bibd_audit::proof::EntryProof::from_bytes(proof.as_bytes()).unwrap();
    let key = *node.daemon.foundation().peer_id.public_key();
    assert_eq!(proof.verify(&key).unwrap().entry.target, "grpc.rate_limit.burst");
    assert!(proof.verify(&[1; 32]).is_err());
    assert_eq!(refused(calls.prove_audit(pb::ProveAuditRequest { epoch: 0, seq: 999_999 }).await), "BIB0002");

    let erase = pb::EraseAuditRequest { entry_id: changed.id.clone(), reason: "asked to".to_owned() };
    calls.erase_audit(erase.clone()).await.unwrap();
    assert_eq!(refused(calls.erase_audit(erase).await), "BIB0002");
    let listed = calls.list_audit(pb::ListAuditRequest { action: "config.".to_owned(), ..since_the_newest() }).await;
    assert_eq!(listed.unwrap().into_inner().entries[0].details_json, None);
    assert_eq!(verify(&mut calls).await.verdict, "OK");

    let export = all(calls.export_audit(pb::ExportAuditRequest {}).await.unwrap().into_inner()).await;
    let lines: Vec<_> = export.iter().flat_map(|part| part.data.to_vec()).collect();
    let external = std::fs::read(&node.daemon.foundation().places.checkpoints).unwrap();
    let mut external = bibd_audit::checkpoint_file::split_records(&external).notes;
    // Some may have been signed since, for entries that the export has not.
    let exported = lines.split(|byte| *byte == b'\n').filter(|line| kind_of(line) == "entry").count();
    external.retain(|note| note.lines().nth(1).unwrap().parse::<usize>().unwrap() <= exported);
    assert!(!external.is_empty());
    let trusted = bibd_audit::TrustedInputs { public_key: Some(key), external, ..Default::default() };
    let judged = bibd_audit::export::verify(lines.as_slice(), trusted).unwrap();
    assert!(matches!(judged, bibd_audit::Verdict::Ok(_)), "{judged:?}");
    node.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_database_passes_its_checklist_and_the_store_is_scrubbed_and_collected() {
    let Some(node) = Node::start().await else { return };
    let mut calls = admin(&node).await;
    let audit = calls.audit_database(pb::AuditDatabaseRequest {}).await.unwrap().into_inner();
    let bad: Vec<_> = audit.findings.iter().filter(|finding| finding.status == "fail").collect();
    assert!(bad.is_empty(), "{bad:#?}");
    assert!(audit.passed > 35 && audit.failed == 0 && audit.not_applicable == 3, "{audit:#?}");
    let matrix = audit.findings.iter().find(|finding| finding.item == "C.3-24").unwrap();
    assert_eq!(matrix.status, "pass");
    let dry = calls.collect_garbage(pb::CollectGarbageRequest { dry_run: true }).await.unwrap().into_inner();
    assert_eq!((dry.chunks, dry.pages), (0, 0));
    calls.collect_garbage(pb::CollectGarbageRequest { dry_run: false }).await.unwrap();
    let words = all(calls.scrub(pb::ScrubRequest::default()).await.unwrap().into_inner()).await;
    assert!(words.last().unwrap().finished && words.iter().all(|word| word.kind.is_empty()));
    assert_eq!(node.entries("store.scrub").await.len(), 1);
    let logs = pb::StreamLogsRequest { level: "trace".to_owned(), tail: 1000, follow: false };
    let lines = all(calls.stream_logs(logs).await.unwrap().into_inner()).await;
    assert!(lines.len() <= 1000);
    let wrong = pb::StreamLogsRequest { level: "loud".to_owned(), tail: 0, follow: false };
    assert_eq!(refused(calls.stream_logs(wrong).await), "BIB0003");
    node.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_recovery_sheet_is_handed_out_once_and_opens_the_secrets() {
    let Some(node) = Node::start().await else { return };
    let mut calls = admin(&node).await;
    let export = |replace| pb::ExportRecoveryRequest { replace };
    let first = calls.export_recovery(export(false)).await.unwrap().into_inner();
    assert_eq!(refused(calls.export_recovery(export(false)).await), "BIB0009");
    let secrets = node.daemon.foundation().data.secrets();
    let opens = |sheet: &str| {
        let parsed = RecoverySheet::parse(sheet).unwrap();
        assert_eq!(parsed.peer_id, node.daemon.foundation().peer_id);
        let names: Vec<_> = std::fs::read_dir(&secrets).unwrap().map(|entry| entry.unwrap().path()).collect();
        assert!(names.len() >= 3, "{names:?}");
        let open = |path: &PathBuf| parsed.sheet.open(&std::fs::read(path).unwrap()).is_ok();
        names.iter().filter(|path| open(path)).count() == names.len()
    };
    assert!(opens(&first.sheet));
    let second = calls.export_recovery(export(true)).await.unwrap().into_inner();
    assert_ne!(first.age_recipient, second.age_recipient);
    assert!(opens(&second.sheet) && !opens(&first.sheet));
    assert_eq!(node.entries("recovery.export").await.len(), 2);

    // The sheet stands nowhere; the public halves stand in the node's signed record.
    let parsed = RecoverySheet::parse(&second.sheet).unwrap();
    let secret = second.sheet.lines().find_map(|line| line.strip_prefix("age-secret: ")).unwrap();
    let mut session = node.daemon.foundation().db.read().await.unwrap();
    let peer = node.daemon.foundation().peer_id.to_string();
    let record = bibd_catalog::records::find(&mut session, "node", &peer).await.unwrap().unwrap();
    let body = String::from_utf8(record.body).unwrap();
    assert!(body.contains(&format!("\"recovery\":\"{}\"", second.ed25519_fingerprint)), "{body}");
    assert_eq!(
        bib_core::PeerId::from_public_key(parsed.sheet.public().ed25519).to_string(),
        second.ed25519_fingerprint
    );
    let listed = calls.list_audit(pb::ListAuditRequest::default()).await.unwrap().into_inner();
    assert!(!format!("{listed:?}{body}").contains(secret));
    drop(session);

    // Its holder can show that it is the right one: once for each question, with both keys. The old sheet cannot.
    let old = RecoverySheet::parse(&first.sheet).unwrap().sheet;
    let answer = |opened: Vec<u8>, signature: [u8; 64]| pb::VerifyRecoveryRequest {
        opened: opened.into(),
        signature: signature.to_vec().into(),
    };
    let question = calls.challenge_recovery(pb::ChallengeRecoveryRequest {}).await.unwrap().into_inner();
    assert_eq!((&question.age_recipient, &question.peer_id), (&second.age_recipient, &peer));
    assert!(old.open(&question.sealed).is_err());
    let opened = parsed.sheet.open(&question.sealed).unwrap().expose_secret().to_vec();
    let right = answer(opened.clone(), parsed.sheet.sign(Purpose::Recovery, &opened));
    calls.verify_recovery(right.clone()).await.unwrap();
    assert_eq!(refused(calls.verify_recovery(right).await), "BIB0010");
    for wrong in [
        answer(vec![0; 32], parsed.sheet.sign(Purpose::Recovery, &[0; 32])),
        answer(opened.clone(), parsed.sheet.sign(Purpose::Succession, &opened)),
        answer(Vec::new(), [0; 64]),
    ] {
        let question = calls.challenge_recovery(pb::ChallengeRecoveryRequest {}).await.unwrap().into_inner();
        let mut wrong = wrong;
        if wrong.opened == opened {
            // The right bytes, signed for something else.
            wrong.opened = parsed.sheet.open(&question.sealed).unwrap().expose_secret().to_vec().into();
            wrong.signature = parsed.sheet.sign(Purpose::Succession, &wrong.opened).to_vec().into();
        }
        assert_eq!(refused(calls.verify_recovery(wrong).await), "BIB0010");
    }
    assert_eq!(node.entries("recovery.verify").await.len(), 4);

    // After a restart what is sealed is sealed to the recovery key still.
    let node = node.restart().await;
    let sealed = node.daemon.foundation().secrets.directory().unwrap();
    sealed.write("probe", &secrecy::SecretSlice::from(b"x".to_vec())).unwrap();
    let bytes = std::fs::read(node.daemon.foundation().data.secrets().join("probe.age")).unwrap();
    assert_eq!(parsed.sheet.open(&bytes).unwrap().expose_secret(), b"x");
    node.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn nobody_but_an_admin_gets_any_of_it_and_shutdown_stops_the_daemon() {
    let Some(node) = Node::start().await else { return };
    let owner = node.owner().await;
    let me = owner.who().await.unwrap().user.unwrap().name;
    node.add("boss", pb::NodeRole::Admin).await;
    let role =
        |role: pb::NodeRole| pb::UpdateUserRequest { user: me.clone(), role: Some(role.into()), ..Default::default() };
    owner.users().update_user(role(pb::NodeRole::Reader)).await.unwrap();
    let mut calls = admin(&node).await;
    let mut answers = Vec::new();
    macro_rules! refuse {
        ($($method:ident $request:expr;)*) => {
            $(answers.push((stringify!($method), calls.$method($request).await.map(drop)));)*
        };
    }
    refuse! {
        challenge_recovery pb::ChallengeRecoveryRequest {};
        verify_recovery pb::VerifyRecoveryRequest::default();
        get_config pb::GetConfigRequest {};
        update_config set("log.level", "debug");
        get_metrics pb::GetMetricsRequest {};
        stream_logs pb::StreamLogsRequest::default();
        list_audit pb::ListAuditRequest::default();
        tail_audit pb::TailAuditRequest::default();
        verify_audit pb::VerifyAuditRequest {};
        prove_audit pb::ProveAuditRequest { epoch: 1, seq: 1 };
        export_audit pb::ExportAuditRequest {};
        erase_audit pb::EraseAuditRequest { entry_id: uuid::Uuid::nil().to_string(), reason: "x".to_owned() };
        audit_database pb::AuditDatabaseRequest {};
        get_database_status pb::GetDatabaseStatusRequest {};
        rotate_database pb::RotateDatabaseRequest::default();
        move_database pb::MoveDatabaseRequest { to: "process".to_owned(), dry_run: true };
        export_recovery pb::ExportRecoveryRequest::default();
        collect_garbage pb::CollectGarbageRequest::default();
        scrub pb::ScrubRequest::default();
        get_storage_status pb::GetStorageStatusRequest {};
        move_chunks pb::MoveChunksRequest::default();
        set_storage_credentials pb::SetStorageCredentialsRequest::default();
        shutdown pb::ShutdownRequest::default();
    }
    for (method, answer) in answers {
        assert_eq!(answer.map_err(|status| code(&status)), Err("BIB0110".to_owned()), "{method}");
    }
    NodeServiceClient::new(connect(&node).await).get_self_node(pb::GetSelfNodeRequest {}).await.unwrap();
    assert!(node.entries("node.shutdown").await.is_empty());
    node.stop().await;

    let Some(node) = Node::start().await else { return };
    let mut calls = admin(&node).await;
    assert_eq!(refused(calls.shutdown(pb::ShutdownRequest { drain_seconds: 4_000 }).await), "BIB0003");
    calls.shutdown(pb::ShutdownRequest { drain_seconds: 3 }).await.unwrap();
    let drain = tokio::time::timeout(Duration::from_secs(5), node.daemon.ended()).await.unwrap();
    assert_eq!(drain, Ok(Duration::from_secs(3)));
    assert_eq!(node.entries("node.shutdown").await.len(), 1, "sealed before the daemon stops");
    node.stop().await;
}
