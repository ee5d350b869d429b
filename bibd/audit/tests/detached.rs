//! Months that left the log: what the node signed to be gone is no tamper, and nothing else is excused by it; alike for
//! the Rust and the Python verifier.
#![allow(clippy::unwrap_used)]

mod log;

use bib_core::signature::{Purpose, signed_bytes};
use bibd_audit::detach::{Detachment, Run, Runs};
use bibd_audit::{ChainState, Verdict, action, chain};
use ed25519_dalek::{Signer as _, SigningKey};
use log::{Log, summary};
use serde_json::{Value, json};

/// Takes the entries of these numbers out, behind a signed entry that names all that is gone.
fn detach(log: &mut Log, month: &str, gone: &[(u64, u64, u64)], ends: &[String], key: &SigningKey) {
    let mut runs = Runs::default();
    for (epoch, first, last) in gone {
        runs.add(Run { epoch: *epoch, first: *first, last: *last });
        let inside = |seq: u64| (*first..=*last).contains(&seq);
        for row in log.rows.iter_mut().filter(|row| row.seal.epoch == *epoch && inside(row.seal.seq)) {
            (row.entry, row.detail) = (None, None);
        }
    }
    let said = Detachment { month: month.to_owned(), runs, ends: ends.iter().cloned().collect() };
    let target = said.target(|body| key.sign(&signed_bytes(Purpose::Detach, body)).to_bytes()).unwrap();
    log.act(action::DETACH, &target);
    log.checkpoint();
}

/// Both verifiers' verdict.
fn verdict(log: &Log) -> Value {
    let rust = summary(&log.verify());
    assert_eq!(log.verify_in_python(Some(log.public_key()), true), rust);
    rust
}

fn tampered(epoch: u64, seq: u64, class: &str) -> Value {
    json!({"verdict": "TAMPERED", "first_bad": [epoch, seq], "class": class})
}

/// The golden log, whose first nine entries and then the rest of the first epoch left with two months.
fn two_months() -> Log {
    let mut log = Log::golden();
    let key = log.key.clone();
    detach(&mut log, "2026-05", &[(1, 1, 9)], &[], &key);
    log.acts(3);
    detach(&mut log, "2026-06", &[(1, 1, 12), (2, 2, 2)], &[], &key);
    log
}

#[test]
fn what_is_gone_by_the_nodes_signature_is_ok_and_named() {
    let log = two_months();
    let Verdict::Ok(ok) = log.verify() else { panic!("{:?}", log.verify()) };
    let gone = [Run { epoch: 1, first: 1, last: 12 }, Run { epoch: 2, first: 2, last: 2 }];
    assert_eq!((ok.entries, ok.detached.as_slice()), (25, &gone[..]));
    assert_eq!(verdict(&log)["verdict"], "OK");
    // The erasure of 1/4, whose details left with it, is no trouble; nor is an entry that is still there after all.
    let mut kept = Log::golden();
    let row = kept.rows[4].clone();
    let key = kept.key.clone();
    detach(&mut kept, "2026-05", &[(1, 1, 9)], &[], &key);
    kept.rows[4] = row;
    assert_eq!(verdict(&kept)["verdict"], "OK");
}

#[test]
fn an_entry_more_that_is_gone_is_found() {
    let mut log = two_months();
    (log.rows[12 + 3].entry, log.rows[12 + 3].detail) = (None, None);
    assert_eq!(verdict(&log), tampered(2, 4, "entry-missing"));
    for row in &mut log.rows[12 + 3..12 + 6] {
        (row.entry, row.detail) = (None, None);
    }
    assert_eq!(verdict(&log), tampered(2, 4, "partition-missing"));
}

#[test]
fn nobody_elses_signature_excuses_anything() {
    let mut log = Log::golden();
    detach(&mut log, "2026-05", &[(1, 3, 3)], &[], &SigningKey::from_bytes(&[9; 32]));
    assert_eq!(verdict(&log), tampered(1, 3, "entry-missing"));
    // Nor does the node's own word when it is changed.
    let mut log = Log::golden();
    let mut runs = Runs::default();
    runs.add(Run { epoch: 1, first: 3, last: 3 });
    let said = Detachment { month: "2026-05".to_owned(), runs, ends: Default::default() };
    let key = log.key.clone();
    let target = said.target(|body| key.sign(&signed_bytes(Purpose::Detach, body)).to_bytes()).unwrap();
    for row in &mut log.rows[2..4] {
        (row.entry, row.detail) = (None, None);
    }
    log.act(action::DETACH, &target.replace("1/3-3", "1/3-4"));
    log.checkpoint();
    assert_eq!(verdict(&log), tampered(1, 3, "partition-missing"));
}

#[test]
fn the_word_of_the_newest_month_is_enough_and_without_any_nothing_is_excused() {
    let mut log = two_months();
    // The entry about the first month has left as well, by the word of a third.
    let key = log.key.clone();
    detach(&mut log, "2026-07", &[(1, 1, 12), (2, 2, 13)], &[], &key);
    assert_eq!(verdict(&log)["verdict"], "OK");
    let last = log.rows.len() - 1;
    (log.rows[last].entry, log.rows[last].detail) = (None, None);
    assert_eq!(verdict(&log), tampered(1, 1, "partition-missing"));
}

#[test]
fn an_epochs_beginning_leaves_only_with_its_end_before_it_signed() {
    let golden = Log::golden();
    let key = golden.key.clone();
    let head = bib_core::Hash::try_from(golden.rows[11].seal.head.as_slice()).unwrap();
    let end = chain::epoch_target(&ChainState { epoch: 1, seq: 12, head, ..golden.state.clone() });
    let gone = [(1, 1, 12), (2, 1, 3)];
    let mut log = golden.clone();
    detach(&mut log, "2026-05", &gone, &[], &key);
    assert_eq!(verdict(&log), tampered(2, 1, "epoch-link-broken"));
    let mut log = golden.clone();
    detach(&mut log, "2026-05", &gone, std::slice::from_ref(&end), &key);
    assert_eq!(verdict(&log)["verdict"], "OK");
    // An epoch cut short is not the one that was named.
    log.rows.remove(11);
    assert_eq!(verdict(&log)["verdict"], "TAMPERED");
}

#[test]
fn what_no_checkpoint_outside_covers_is_not_excused() {
    let mut log = Log::golden();
    let key = log.key.clone();
    log.acts(2);
    detach(&mut log, "2026-05", &[(2, 9, 10)], &[], &key);
    assert_eq!(verdict(&log)["verdict"], "OK");
    // The checkpoints after it are lost: nobody vouches for what the entries said.
    log.external.pop();
    log.table.pop();
    assert_eq!(verdict(&log), tampered(2, 9, "partition-missing"));
    log.external.clear();
    assert_eq!(summary(&log.verify_with(Some(log.public_key()), false))["verdict"], "UNVERIFIED");
    assert_eq!(summary(&log.verify_with(None, true))["verdict"], "UNVERIFIED");
    assert_eq!(log.verify_in_python(None, true)["verdict"], "UNVERIFIED");
}

#[test]
fn a_wrong_seal_among_what_is_gone_breaks_the_chain() {
    let mut log = two_months();
    log.rows[4].seal.digest[0] ^= 1;
    assert_eq!(verdict(&log), tampered(1, 5, "chain-broken"));
    let mut log = two_months();
    log.rows[4].seal.head[0] ^= 1;
    assert_eq!(verdict(&log)["first_bad"], json!([1, 5]));
}
