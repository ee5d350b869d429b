//! A log that goes on under another key: the former node's checkpoints count for its own epochs, where a succession proves
//! that the one follows the other, and nowhere else; alike for the Rust and the Python verifier.
#![allow(clippy::unwrap_used)]

mod log;

use bib_core::PeerId;
use bib_core::record::StepProof;
use ed25519_dalek::SigningKey;
use log::{Log, succession_proof, summary};
use serde_json::{Value, json};

fn key(n: u8) -> SigningKey {
    SigningKey::from_bytes(&[n; 32])
}

fn peer(n: u8) -> String {
    PeerId::from_public_key(key(n).verifying_key().to_bytes()).to_string()
}

/// Both verifiers' verdict.
fn verdict(log: &Log) -> Value {
    let rust = summary(&log.verify());
    assert_eq!(log.verify_in_python(Some(log.public_key()), true), rust);
    rust
}

/// Epoch 1 by node 7, from epoch 4 on by node 8: the recovery key 5 says so.
fn succeeded() -> (Log, StepProof) {
    let mut log = Log::new();
    log.acts(4);
    log.checkpoint();
    log.acts(2);
    let proof = log.succeed(&key(8), &key(5), 4);
    log.acts(3);
    log.checkpoint();
    (log, proof)
}

#[test]
fn a_log_goes_on_under_the_next_key_and_says_whose_it_was() {
    let (mut log, proof) = succeeded();
    log.successions = vec![proof];
    let told = verdict(&log);
    assert_eq!((&told["verdict"], &told["entries"]), (&"OK".into(), &10.into()), "{told}");
    assert_eq!(told["former"], json!([{"node": peer(7), "before": 4}]));
    // And once more: the third node's log has two former ones.
    let proof = log.succeed(&key(9), &key(5), 9);
    log.successions.push(proof);
    log.acts(1);
    log.checkpoint();
    let told = verdict(&log);
    assert_eq!(told["former"], json!([{"node": peer(8), "before": 9}, {"node": peer(7), "before": 4}]), "{told}");
}

#[test]
fn without_a_succession_that_holds_the_former_key_is_a_strangers() {
    let (log, proof) = succeeded();
    let stranger = json!({"verdict": "TAMPERED", "first_bad": [1, 4], "class": "checkpoint-invalid"});
    let changed = |change: &dyn Fn(&mut StepProof)| {
        let mut proof = proof.clone();
        change(&mut proof);
        vec![proof]
    };
    let cases = [
        ("none", vec![]),
        ("signed by another recovery key", vec![succession_proof(&key(7), &key(8), &key(6), 4)]),
        ("for another next node", vec![succession_proof(&key(7), &key(9), &key(5), 4)]),
        ("of another former node", vec![succession_proof(&key(6), &key(8), &key(5), 4)]),
        ("signed by the next node itself", vec![succession_proof(&key(7), &key(8), &key(8), 4)]),
        ("a broken signature", changed(&|proof| proof.succession.sig[5] ^= 1)),
        ("a broken node record", changed(&|proof| proof.node.sig[5] ^= 1)),
        (
            "another node's record",
            changed(&|proof| {
                proof.node = succession_proof(&key(6), &key(8), &key(5), 4).node;
            }),
        ),
        (
            "not accepted",
            changed(&|proof| {
                let body = String::from_utf8(proof.succession.body.clone()).unwrap();
                let (begin, rest) = body.split_once(r#""acceptance":""#).unwrap();
                let body = format!("{begin}{}", rest.split_once("\",").unwrap().1).into_bytes();
                let sign = bib_core::signature::signed_bytes(bib_core::signature::Purpose::Succession, &body);
                proof.succession.sig = ed25519_dalek::Signer::sign(&key(5), &sign).to_bytes();
                proof.succession.body = body;
            }),
        ),
        (
            "accepted by somebody else",
            changed(&|proof| {
                let body = String::from_utf8(proof.succession.body.clone()).unwrap();
                let (begin, rest) = body.split_once(r#""acceptance":""#).unwrap();
                let body = format!(r#"{begin}"acceptance":"{}{}"#, "00".repeat(8), &rest[16..]).into_bytes();
                let sign = bib_core::signature::signed_bytes(bib_core::signature::Purpose::Succession, &body);
                proof.succession.sig = ed25519_dalek::Signer::sign(&key(5), &sign).to_bytes();
                proof.succession.body = body;
            }),
        ),
    ];
    for (case, successions) in cases {
        let mut log = log.clone();
        log.successions = successions;
        assert_eq!(verdict(&log), stranger, "{case}");
    }
}

#[test]
fn the_former_key_signs_nothing_from_the_next_nodes_first_epoch_on() {
    let (mut log, proof) = succeeded();
    log.successions = vec![proof];
    // Whoever stole the former key signs on.
    let stolen = log.key.clone();
    log.key = key(7);
    let note = log.note(&key(7));
    log.key = stolen;
    log.external.push(note);
    let told = verdict(&log);
    assert_eq!((&told["class"], &told["first_bad"]), (&"checkpoint-invalid".into(), &json!([4, 4])), "{told}");
    // Nor does the next key for the epochs before.
    let mut log = Log::new();
    log.acts(4);
    log.key = key(8);
    log.checkpoint();
    log.key = key(7);
    let proof = log.succeed(&key(8), &key(5), 4);
    log.checkpoint();
    log.successions = vec![proof];
    assert_eq!(verdict(&log)["class"], "checkpoint-invalid");
}

#[test]
fn the_former_nodes_own_key_may_name_its_successor() {
    let mut log = Log::new();
    log.acts(2);
    log.checkpoint();
    let proof = log.succeed(&key(8), &key(7), 2);
    log.checkpoint();
    log.successions = vec![proof];
    assert_eq!(verdict(&log)["verdict"], "OK");
    // The recovery key's word stands above it, whatever the numbers: the thief's log is nobody's.
    log.successions.push(succession_proof(&key(7), &key(9), &key(5), 2));
    assert_eq!(verdict(&log)["class"], "checkpoint-invalid");
}
