//! The tamper matrix (B-AUD): every tamper is found, with its class and its place, alike by the Rust and the Python
//! verifier.
#![allow(clippy::unwrap_used)]

mod log;

use std::collections::HashSet;

use bibd_audit::export::{Bytes, Line};
use bibd_audit::{TamperClass, Verdict, chain};
use ed25519_dalek::SigningKey;
use log::{Log, entry_line, summary};
use serde_json::json;

type Change = fn(&mut Log);

/// (what is done, by what, what must be found, where)
const TAMPERS: &[(&str, Change, TamperClass, (u64, u64))] = &[
    ("payload of the first row", |l| l.forge_body(0, "climate", "weather"), TamperClass::BodyChanged, (1, 1)),
    ("payload of a middle row", |l| l.forge_body(6, "climate", "weather"), TamperClass::BodyChanged, (1, 7)),
    ("payload of the last row", |l| l.forge_body(19, "climate", "weather"), TamperClass::BodyChanged, (2, 8)),
    ("body that is not text", |l| entry(l, 6).body = Bytes(vec![0xff, 0xfe]), TamperClass::BodyChanged, (1, 7)),
    ("actor column", |l| entry(l, 6).actor = "user:mallory".into(), TamperClass::ColumnDiffers, (1, 7)),
    ("time column", |l| entry(l, 6).time = entry(l, 7).time, TamperClass::ColumnDiffers, (1, 7)),
    ("result column", |l| entry(l, 6).result = "denied".into(), TamperClass::ColumnDiffers, (1, 7)),
    ("job column", |l| entry(l, 3).job = None, TamperClass::ColumnDiffers, (1, 4)),
    ("previous head", |l| l.rows[5].seal.head[3] ^= 1, TamperClass::HeadChanged, (1, 6)),
    ("last head", |l| l.rows[19].seal.head[3] ^= 1, TamperClass::HeadChanged, (2, 8)),
    ("head cut short", |l| l.rows[5].seal.head.truncate(31), TamperClass::HeadChanged, (1, 6)),
    ("digest", |l| l.rows[5].seal.digest[0] ^= 1, TamperClass::DigestChanged, (1, 6)),
    ("payload and digest", forge_with_digest, TamperClass::ChainBroken, (1, 7)),
    (
        "numbers with a gap",
        |l| l.rows[6..12].iter_mut().for_each(|r| r.seal.seq += 1),
        TamperClass::SequenceGap,
        (1, 7),
    ),
    ("duplicate row", |l| l.rows.insert(6, l.rows[5].clone()), TamperClass::SequenceDuplicate, (1, 6)),
    ("lines out of order", |l| l.rows.swap(5, 6), TamperClass::RowsSwapped, (1, 6)),
    ("neighbours swapped", |l| swap_numbers(l, 5, 6), TamperClass::RowsSwapped, (1, 6)),
    ("far rows swapped", |l| swap_numbers(l, 3, 9), TamperClass::RowsSwapped, (1, 4)),
    ("row swapped with the last", |l| swap_numbers(l, 15, 19), TamperClass::RowsSwapped, (2, 4)),
    ("entries of two seals swapped", swap_entries, TamperClass::RowsSwapped, (1, 3)),
    ("epochs out of order", |l| l.rows.swap(11, 12), TamperClass::RowsSwapped, (1, 12)),
    ("one row deleted", |l| drop(l.rows.remove(6)), TamperClass::SequenceGap, (1, 7)),
    ("first row deleted", |l| drop(l.rows.remove(0)), TamperClass::SequenceGap, (1, 1)),
    ("range deleted", |l| drop(l.rows.drain(3..8)), TamperClass::SequenceGap, (1, 4)),
    ("row deleted and closed up", delete_and_close, TamperClass::ChainBroken, (1, 7)),
    ("tail deleted", |l| l.rows.truncate(17), TamperClass::TailTruncated, (2, 6)),
    ("tail of an epoch that is not the last", |l| drop(l.rows.drain(10..12)), TamperClass::TailTruncated, (1, 11)),
    ("everything deleted", |l| l.rows.clear(), TamperClass::LogTruncated, (1, 1)),
    ("first epoch deleted", |l| drop(l.rows.drain(..12)), TamperClass::EpochMissing, (2, 1)),
    ("last epoch deleted", |l| l.rows.truncate(12), TamperClass::EpochMissing, (2, 1)),
    ("rolled back to a snapshot", roll_back, TamperClass::RolledBack, (2, 5)),
    ("forged row, linked to nothing", |l| insert_forged(l, false), TamperClass::RowInserted, (1, 7)),
    ("forged row, linked to its forerunner", |l| insert_forged(l, true), TamperClass::RowInserted, (1, 7)),
    ("re-chained without the key", rechain_without_key, TamperClass::Rechained, (1, 6)),
    ("re-chained with the key", rechain_with_key, TamperClass::Rechained, (1, 6)),
    ("re-chained last epoch", rechain_last_epoch, TamperClass::Rechained, (2, 5)),
    ("another end of the epoch named", rename_epoch_end, TamperClass::EpochLinkBroken, (2, 1)),
    ("checkpoint file of another key", replace_checkpoint_file, TamperClass::CheckpointInvalid, (1, 5)),
    ("checkpoint with another size", |l| edit_note(l, "\n9\n", "\n8\n"), TamperClass::CheckpointInvalid, (1, 8)),
    (
        "checkpoint that is rubbish",
        |l| l.external[1] = "rubbish\n\nrubbish\n".into(),
        TamperClass::CheckpointInvalid,
        (0, 0),
    ),
    ("checkpoints deleted in the table", |l| l.table.clear(), TamperClass::CheckpointMissing, (1, 5)),
    ("a checkpoint deleted in the file", |l| drop(l.external.remove(3)), TamperClass::CheckpointMissing, (2, 4)),
    ("partition of entries detached", detach_partition, TamperClass::PartitionMissing, (1, 3)),
    ("entry deleted", |l| l.rows[6].entry = None, TamperClass::EntryMissing, (1, 7)),
    ("details deleted", |l| l.rows[6].detail = None, TamperClass::DetailMissing, (1, 7)),
    ("details changed", |l| l.rows[6].detail.as_mut().unwrap().details.0[3] ^= 1, TamperClass::DetailChanged, (1, 7)),
    ("salt changed", |l| l.rows[6].detail.as_mut().unwrap().salt[3] ^= 1, TamperClass::DetailChanged, (1, 7)),
    ("hash algorithm id", |l| l.forge_body(6, "bib-audit/1", "bib-audit/0"), TamperClass::FormatUnknown, (1, 7)),
    ("old format, re-chained", old_format_rechained, TamperClass::FormatUnknown, (1, 7)),
    ("not an entry, re-chained", rubbish_rechained, TamperClass::EntryMalformed, (1, 7)),
    ("other spelling, re-chained", spelling_rechained, TamperClass::EntryMalformed, (1, 7)),
    ("row slipped in beside the queue", |l| slip_in(l, false), TamperClass::EntryUnsealed, (2, 9)),
    ("waiting entry deleted", delete_waiting, TamperClass::QueuedEntryMissing, (2, 9)),
];

fn entry(log: &mut Log, index: usize) -> &mut bibd_audit::export::EntryLine {
    log.rows[index].entry.as_mut().unwrap()
}

fn forge_with_digest(log: &mut Log) {
    log.forge_body(6, "climate", "weather");
    let digest = bibd_audit::body::digest(&entry(log, 6).body.0);
    log.rows[6].seal.digest = digest.as_bytes().to_vec();
}

fn swap_numbers(log: &mut Log, a: usize, b: usize) {
    let (x, y) = (log.rows[a].seal.seq, log.rows[b].seal.seq);
    log.rows[a].seal.seq = y;
    log.rows[b].seal.seq = x;
    log.rows.sort_by_key(|row| (row.seal.epoch, row.seal.seq));
}

fn swap_entries(log: &mut Log) {
    let (a, b) = (log.rows[2].clone(), log.rows[7].clone());
    for (index, from) in [(2, b), (7, a)] {
        log.rows[index].seal.entry = from.seal.entry;
        log.rows[index].entry = from.entry;
        log.rows[index].detail = from.detail;
    }
}

fn delete_and_close(log: &mut Log) {
    log.rows.remove(6);
    log.renumber();
}

fn roll_back(log: &mut Log) {
    log.rows.truncate(16);
    log.table.truncate(4);
}

fn insert_forged(log: &mut Log, linked: bool) {
    let forged = log.entry("user.role", "user:mallory");
    let mut row = log.rows[6].clone();
    row.detail.as_mut().unwrap().salt = forged.detail.salt.to_vec();
    row.detail.as_mut().unwrap().details = Bytes(forged.detail.bytes.clone());
    row.seal.entry = forged.id;
    row.seal.digest = forged.digest.as_bytes().to_vec();
    row.seal.head = vec![5; 32];
    if linked {
        row.seal.head = chain::next_head(&log.head_before(6), &forged.digest).as_bytes().to_vec();
    }
    row.entry = Some(entry_line(&forged));
    log.rows.insert(6, row);
    log.renumber();
}

fn rechain_without_key(log: &mut Log) {
    log.forge_body(6, "climate", "weather");
    log.rechain(6);
    end_epoch_one_as_chained(log);
}

/// Makes epoch 2 follow from a re-chained epoch 1, as a thorough attacker does.
fn end_epoch_one_as_chained(log: &mut Log) {
    let (old, new) = (entry(log, 12).target.clone(), chain::epoch_target(&log.state));
    log.forge_body(12, &old, &new);
    log.rechain(12);
}

fn rechain_with_key(log: &mut Log) {
    rechain_without_key(log);
    log.table.clear();
    let rows = log.rows.clone();
    for size in [5, 9, 12] {
        log.rows.truncate(size);
        log.rechain(0);
        log.table.push(log.note(&log.key));
        log.rows = rows.clone();
    }
}

fn rechain_last_epoch(log: &mut Log) {
    log.forge_body(17, "climate", "weather");
    log.rechain(17);
}

fn rename_epoch_end(log: &mut Log) {
    let target = entry(log, 12).target.clone();
    log.forge_body(12, &target, &target.replace("1/12/", "1/11/"));
    log.rechain(12);
}

fn replace_checkpoint_file(log: &mut Log) {
    let other = SigningKey::from_bytes(&[9; 32]);
    let mut copy = Log::new();
    copy.acts(5);
    log.external = vec![copy.note(&other)];
}

fn edit_note(log: &mut Log, from: &str, to: &str) {
    log.external[1] = log.external[1].replace(from, to);
}

fn detach_partition(log: &mut Log) {
    for row in &mut log.rows[2..9] {
        row.entry = None;
        row.detail = None;
    }
}

fn old_format_rechained(log: &mut Log) {
    log.forge_body(6, "bib-audit/1", "bib-audit/0");
    log.rechain(6);
}

fn rubbish_rechained(log: &mut Log) {
    entry(log, 6).body = Bytes(b"{\"action\":1}".to_vec());
    log.rechain(6);
}

fn spelling_rechained(log: &mut Log) {
    log.forge_body(6, "\",\"actor\"", "\", \"actor\"");
    log.rechain(6);
}

fn slip_in(log: &mut Log, queued: bool) {
    let forged = log.entry("user.role", "user:mallory");
    log.after.push(Line::Unsealed { entry: Box::new(entry_line(&forged)), queued });
}

fn delete_waiting(log: &mut Log) {
    let id = log.entry("user.role", "user:mallory").id;
    log.after.push(Line::Queued { id });
}

#[test]
fn b_aud_50_every_tamper_is_found_with_class_and_place_by_both_verifiers() {
    let golden = Log::golden();
    let mut wrong = Vec::new();
    for (name, change, class, place) in TAMPERS {
        let mut log = golden.clone();
        change(&mut log);
        let expected = json!({"verdict": "TAMPERED", "first_bad": [place.0, place.1], "class": class});
        let rust = summary(&log.verify());
        let python = log.verify_in_python(Some(log.public_key()), true);
        if rust != expected || python != expected {
            wrong.push(format!("{name}\n  expected {expected}\n  rust     {rust}\n  python   {python}"));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    let tried: HashSet<_> = TAMPERS.iter().map(|(_, _, class, _)| *class).collect();
    let untried: Vec<_> = TamperClass::ALL.iter().filter(|class| !tried.contains(class)).collect();
    assert!(untried.is_empty(), "no tamper of class {untried:?} is tried");
}

#[test]
fn without_a_checkpoint_the_same_tampers_are_found_or_not_judged_and_never_ok() {
    for (name, change, class, place) in TAMPERS {
        let mut log = Log::golden();
        change(&mut log);
        log.table.clear();
        let verdict = summary(&log.verify_with(Some(log.public_key()), false));
        let needs_checkpoint = matches!(
            class,
            TamperClass::TailTruncated
                | TamperClass::LogTruncated
                | TamperClass::RolledBack
                | TamperClass::Rechained
                | TamperClass::CheckpointInvalid
                | TamperClass::CheckpointMissing
        ) && *name != "tail of an epoch that is not the last";
        if *name == "last epoch deleted" {
            // The erasure of 1/4 stood there: what is left shows details that are gone.
            assert_eq!(verdict["class"], "detail-missing");
        } else if needs_checkpoint {
            assert_eq!(verdict["verdict"], "UNVERIFIED", "{name}");
        } else {
            let expected = json!({"verdict": "TAMPERED", "first_bad": [place.0, place.1], "class": class});
            assert_eq!(verdict, expected, "{name}");
        }
    }
}

#[test]
fn an_entry_that_waits_for_its_seal_is_no_tamper() {
    let mut log = Log::golden();
    slip_in(&mut log, true);
    let Verdict::Ok(ok) = log.verify() else { panic!("{:?}", log.verify()) };
    assert_eq!((ok.entries, ok.unsealed), (20, 1));
    assert_eq!(log.verify_in_python(Some(log.public_key()), true)["verdict"], "OK");
}

#[test]
fn a_declared_restore_is_no_tamper_and_names_what_it_lost() {
    let mut log = Log::new();
    log.acts(5);
    log.checkpoint();
    let (rows, table, state) = (log.rows.clone(), log.table.clone(), log.state.clone());
    log.acts(4);
    log.checkpoint();
    (log.rows, log.table, log.state) = (rows, table, state);
    assert_eq!(summary(&log.verify())["class"], "rolled-back");
    log.next_epoch();
    assert_eq!(summary(&log.verify())["class"], "rolled-back", "not yet signed");
    log.checkpoint();
    let Verdict::Ok(ok) = log.verify() else { panic!("{:?}", log.verify()) };
    assert_eq!((ok.lost.len(), ok.lost[0].first.seq, ok.lost[0].last_seq), (1, 6, 9));
    assert_eq!(log.verify_in_python(Some(log.public_key()), true), summary(&log.verify()));
}
