//! Golden files, and the rows 51, 52, 53 and 55 of the fault list by name.
#![allow(clippy::unwrap_used)]

mod log;

use bib_core::{Hash, OperationId, PeerId, Timestamp};
use bibd_audit::entry::{MAX_ACTOR_BYTES, MAX_DETAILS_BYTES, MAX_TARGET_BYTES};
use bibd_audit::export::{Line, SealedLine};
use bibd_audit::merkle::ProofBuilder;
use bibd_audit::note::SignedNote;
use bibd_audit::proof::EntryProof;
use bibd_audit::verify::Doubt;
use bibd_audit::{Actor, ChainState, EntryDraft, EntryView, Outcome, StatementNote, Verdict, Via, body, chain, export};
use expect_test::expect_file;
use log::{Log, summary};
use serde_json::json;
use uuid::Uuid;

fn proof_of(log: &Log, index: usize) -> EntryProof {
    let (rows, row) = (&log.rows[..12], &log.rows[index]);
    let mut builder = ProofBuilder::inclusion(row.seal.seq - 1, 12).unwrap();
    rows.iter().for_each(|row| builder.push(&row.seal.digest));
    let body = String::from_utf8(row.entry.as_ref().unwrap().body.0.clone()).unwrap();
    let note: SignedNote = log.external[2].parse().unwrap();
    EntryProof::new(row.seal.seq, body, row.detail.clone(), builder.finish().unwrap(), &note)
}

#[test]
fn the_golden_log_is_ok_for_both_verifiers() {
    let log = Log::golden();
    expect_file!["../golden/log.jsonl"].assert_eq(&String::from_utf8(log.export()).unwrap());
    expect_file!["../golden/checkpoints.txt"].assert_eq(&log.checkpoint_file());
    expect_file!["../golden/public_key.hex"].assert_eq(&hex::encode(log.public_key()));
    let verdict = log.verify();
    assert!(matches!(&verdict, Verdict::Ok(ok) if (ok.entries, ok.erased, ok.after_checkpoint) == (20, 1, 0)));
    assert_eq!(log.verify_in_python(Some(log.public_key()), true), summary(&verdict));
    expect_file!["../golden/verdict.json"].assert_eq(&serde_json::to_string(&verdict).unwrap());
    let lines: Vec<Line> = export::read(log.export().as_slice()).map(Result::unwrap).collect();
    assert_eq!(lines.len(), 1 + 5 + 20);
}

#[test]
fn the_golden_proof_holds_for_both_verifiers_and_a_changed_one_for_none() {
    let log = Log::golden();
    let proof = proof_of(&log, 6);
    let bytes = proof.to_bytes().unwrap();
    expect_file!["../golden/proof.json"].assert_eq(std::str::from_utf8(&bytes).unwrap());
    let read = EntryProof::from_bytes(&bytes).unwrap();
    let proven = read.verify(&log.public_key()).unwrap();
    assert_eq!((proven.checkpoint.size, proven.entry.target.as_ref()), (12, "topic:climate"));
    let in_python = |proof: &EntryProof| {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), proof.to_bytes().unwrap()).unwrap();
        let key = hex::encode(log.public_key());
        let mut command = std::process::Command::new("python3");
        command.arg(log::script()).arg("--proof").arg(file.path()).arg(key).status().unwrap().success()
    };
    assert!(in_python(&proof));
    let changes: [fn(&mut EntryProof); 5] = [
        |p| p.body = p.body.replace("climate", "weather"),
        |p| p.seq = 8,
        |p| p.path.truncate(2),
        |p| p.detail.as_mut().unwrap().salt[0] ^= 1,
        |p| p.checkpoint = p.checkpoint.replace("\n12\n", "\n13\n"),
    ];
    for (number, change) in changes.into_iter().enumerate() {
        let mut changed = proof.clone();
        change(&mut changed);
        assert!(changed.verify(&log.public_key()).is_err(), "change {number}");
        assert!(!in_python(&changed), "change {number}");
    }
    assert!(proof.verify(&[1; 32]).is_err());
}

#[test]
fn b_aud_51_without_key_or_checkpoint_the_verdict_is_unverified() {
    let log = Log::golden();
    let key = Some(log.public_key());
    for (key, external, doubt) in
        [(None, true, Doubt::NoKey), (key, false, Doubt::NoCheckpoint), (None, false, Doubt::NoKey)]
    {
        let verdict = log.verify_with(key, external);
        assert_eq!(verdict, Verdict::Unverified { reason: doubt, entries: 20 });
        assert_eq!(log.verify_in_python(key, external), summary(&verdict));
    }
    let empty = Log::new();
    assert!(matches!(empty.verify(), Verdict::Unverified { entries: 0, .. }));
}

#[test]
fn b_aud_52_chains_on_recomputed_hashes_not_on_stored_ones() {
    // Every stored digest and head agree with each other, and not with the bodies.
    let mut log = Log::golden();
    log.forge_body(6, "climate", "weather");
    assert_eq!(summary(&log.verify())["class"], "body-changed");
    // All stored values replaced by a chain over the stored digests: still not the bodies' digests.
    let mut head = chain::HEAD_0;
    for row in &mut log.rows[..12] {
        head = chain::next_head(&head, &Hash::try_from(row.seal.digest.as_slice()).unwrap());
        row.seal.head = head.as_bytes().to_vec();
    }
    assert_eq!(summary(&log.verify())["first_bad"], json!([1, 7]));
}

#[test]
fn b_aud_52_the_key_comes_from_the_verifier_and_not_from_the_log() {
    // A whole log of another node, perfectly signed with that node's key: only the trusted key counts.
    let log = Log::golden();
    let verdict = log.verify_with(Some([1; 32]), true);
    assert_eq!(summary(&verdict)["class"], "checkpoint-invalid");
}

#[test]
fn b_aud_52_rows_without_a_seal_are_refused_after_the_start() {
    let mut log = Log::golden();
    let row = log.rows.pop().unwrap();
    log.after.push(Line::Unsealed { entry: Box::new(row.entry.unwrap()), queued: false });
    log.external.truncate(4);
    log.table.truncate(4);
    assert_eq!(summary(&log.verify())["class"], "entry-unsealed");
}

#[test]
fn b_aud_53_numbers_are_given_at_sealing_so_that_aborted_acts_leave_no_gap() {
    let mut log = Log::new();
    // 200 writers prepare entries; every third rolls back; the queue returns the others in any order.
    let mut prepared: Vec<_> = (0..200).map(|_| log.entry("topic.create", "topic:climate")).collect();
    prepared.sort_by_key(|entry| entry.digest);
    let committed: Vec<_> = prepared.iter().enumerate().filter(|(i, _)| i % 3 != 0).map(|(_, e)| e).collect();
    let mut state = ChainState::new(1);
    let mut seals = Vec::new();
    for batch in committed.chunks(7) {
        seals.extend(state.seal(batch.iter().map(|entry| (entry.id, entry.digest))));
    }
    assert!(seals.iter().zip(1..).all(|(seal, seq)| seal.seq == seq));
    assert_eq!((state.seq, seals.len()), (133, 133));
    for (seal, entry) in seals.iter().zip(committed) {
        log.rows.push(SealedLine {
            seal: export::SealLine {
                epoch: seal.epoch,
                seq: seal.seq,
                entry: seal.entry,
                digest: seal.digest.as_bytes().to_vec(),
                head: seal.head.as_bytes().to_vec(),
            },
            entry: Some(log::entry_line(entry)),
            detail: Some(export::DetailLine {
                salt: entry.detail.salt.to_vec(),
                details: export::Bytes(entry.detail.bytes.clone()),
            }),
        });
    }
    log.state = state;
    log.checkpoint();
    assert!(matches!(log.verify(), Verdict::Ok(ok) if ok.entries == 133));
}

/// An act whose every text a hostile person chose.
fn hostile(text: &str) -> EntryDraft {
    EntryDraft {
        id: Uuid::from_u128(1),
        time: Timestamp::from_micros(0),
        node: PeerId::from_public_key([7; 32]),
        actor: Actor::Anonymous(text.into()),
        via: Via::Ssh,
        action: "auth.login".into(),
        target: text.into(),
        result: Outcome::Denied,
        operation: OperationId::from_uuid(Uuid::from_u128(2)),
        job: None,
        origin: None,
        statements: vec![],
        details: json!({ "said": text }),
        salt: [3; 32],
    }
}

#[test]
fn b_aud_55_hostile_text_stays_data_on_one_line_and_verifies() {
    let forged = "x\"}\n{\"kind\":\"entry\",\"seal\":{}}\r\n\0\u{1b}[2J\u{1b}]0;owned\u{7}\u{202e}\u{2028}end";
    let mut log = Log::new();
    let entry = hostile(forged).build().unwrap();
    let view = EntryView::parse(&entry.body).unwrap();
    assert_eq!(view.target, forged);
    assert!(!entry.columns.target.contains('\0') && entry.columns.target.contains('\u{2400}'));
    assert!(entry.body.iter().all(|byte| *byte >= 0x20), "control bytes are escaped");
    log.acts(1);
    let seal = log.state.seal([(entry.id, entry.digest)]).remove(0);
    let mut row = log.rows[0].clone();
    row.seal.seq = 2;
    row.seal.entry = entry.id;
    row.seal.digest = seal.digest.as_bytes().to_vec();
    row.seal.head = seal.head.as_bytes().to_vec();
    row.entry = Some(log::entry_line(&entry));
    row.detail =
        Some(export::DetailLine { salt: entry.detail.salt.to_vec(), details: export::Bytes(entry.detail.bytes) });
    log.rows.push(row);
    log.checkpoint();
    let lines = log.export().iter().filter(|byte| **byte == b'\n').count();
    assert_eq!(lines, 1 + 1 + 2, "one line a record");
    let verdict = log.verify();
    assert!(matches!(&verdict, Verdict::Ok(ok) if ok.entries == 2), "{verdict:?}");
    assert_eq!(log.verify_in_python(Some(log.public_key()), true), summary(&verdict));
}

#[test]
fn b_aud_55_a_field_of_a_mebibyte_is_cut_with_its_hash() {
    for character in ["a", "\0", "é", "\u{1f980}"] {
        let long = character.repeat((1 << 20) / character.len());
        let mut draft = hostile(&long);
        let note = StatementNote {
            class: "\0".repeat(99).into(),
            table: "\0".repeat(999).into(),
            hash: Hash::of(b""),
            rows: 1,
            us: 1,
        };
        draft.statements = (0..40_u8).map(|i| StatementNote { hash: Hash::of(&[i]), ..note.clone() }).collect();
        let entry = draft.build().unwrap();
        assert!(entry.body.len() <= bib_core::canonical::MAX_BODY_BYTES, "{}", entry.body.len());
        assert!(entry.detail.bytes.len() <= MAX_DETAILS_BYTES);
        let view = EntryView::parse(&entry.body).unwrap();
        assert!(view.actor.len() <= MAX_ACTOR_BYTES && view.target.len() <= MAX_TARGET_BYTES);
        assert!(view.target.ends_with(&format!("[{} bytes, sha256 {}]", long.len(), Hash::of(long.as_bytes()))));
        assert!(String::from_utf8_lossy(&entry.detail.bytes).contains("\"replaced\":\"too long\""));
        assert_eq!(body::details_hash(&entry.detail.salt, &entry.detail.bytes).to_string(), view.details);
    }
}

#[test]
fn statements_are_merged_then_summed_up() {
    let mut draft = hostile("x");
    let note = |i: u8| StatementNote {
        class: "insert".into(),
        table: "chunks".into(),
        hash: Hash::of(&[i]),
        rows: u64::MAX,
        us: 2,
    };
    draft.statements = (0..60).map(|i| note(i % 3)).collect();
    let merged = draft.clone().build().unwrap();
    let view = EntryView::parse(&merged.body).unwrap();
    assert_eq!(view.statements.iter().map(|s| s.us).collect::<Vec<_>>(), [40, 40, 40]);
    assert_eq!(view.statements[0].rows, (1 << 53) - 1);
    draft.statements = (0..60).map(note).collect();
    let cut = draft.build().unwrap();
    let view = EntryView::parse(&cut.body).unwrap();
    assert_eq!((view.statements.len(), view.statements[31].table.as_ref()), (32, "(29 more)"));
    assert_eq!(view.statements[31].us, 58);
}

#[test]
fn details_that_canonical_json_cannot_say_are_kept_as_text_or_hash() {
    let mut draft = hostile("x");
    draft.details = json!({"gone": null, "list": [null, 1.5], "big": u64::MAX, "ok": true});
    let entry = draft.clone().build().unwrap();
    assert_eq!(entry.detail.bytes, br#"{"big":"18446744073709551615","list":["null","1.5"],"ok":true}"#);
    draft.details = json!({"ä": 1});
    let entry = draft.clone().build().unwrap();
    assert!(entry.detail.bytes.starts_with(b"{\"bytes\":"));
    draft.action = "Topic Create".into();
    assert!(draft.build().is_err());
}
