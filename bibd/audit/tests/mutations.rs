//! Any single change of any valid log is found when key and external checkpoint are there; without them, what cannot be
//! found is stated here.
#![allow(clippy::unwrap_used)]

mod log;

use bibd_audit::Verdict;
use log::{Log, summary};
use proptest::prelude::*;

type Change = fn(&mut Log);

fn build(shape: &[(u8, bool)]) -> Log {
    let mut log = Log::new();
    for (number, (acts, erase)) in shape.iter().enumerate() {
        if number > 0 {
            log.next_epoch();
        }
        log.acts(u64::from(*acts));
        log.checkpoint();
        if *erase {
            let index = log.rows.len() / 2;
            log.erase(index);
            log.acts(1);
        }
        log.checkpoint();
    }
    log
}

fn flip(bytes: &mut [u8], at: usize, bit: u8) {
    let at = at % bytes.len();
    bytes[at] ^= 1 << (bit % 8);
}

/// Makes change number `kind` at `row`. False where there is nothing to change.
fn mutate(log: &mut Log, kind: u8, row: usize, at: usize, bit: u8) -> bool {
    let index = row % log.rows.len();
    let other = (index + 1 + at % (log.rows.len() - 1)) % log.rows.len();
    let target = &mut log.rows[index];
    let entry = target.entry.as_mut().unwrap();
    match kind {
        0 => flip(&mut entry.body.0, at, bit),
        1 => flip(&mut target.seal.digest, at, bit),
        2 => flip(&mut target.seal.head, at, bit),
        3 => entry.actor.push('x'),
        4 => entry.target.clear(),
        5 => entry.id = uuid::Uuid::from_u128(u128::from(bit)),
        6 => entry.operation = uuid::Uuid::nil(),
        7 => target.seal.entry = uuid::Uuid::nil(),
        8 => target.seal.seq += 1 + at as u64 % 7,
        9 => target.seal.epoch += 1,
        10 => target.entry = None,
        11 if target.detail.is_some() => target.detail = None,
        12 if target.detail.is_some() => flip(&mut target.detail.as_mut().unwrap().details.0, at, bit),
        13 if target.detail.is_some() => flip(&mut target.detail.as_mut().unwrap().salt, at, bit),
        14 => drop(log.rows.remove(index)),
        15 => log.rows.insert(other, log.rows[index].clone()),
        16 => log.rows.swap(index, other),
        17 => log.rows.truncate(index),
        18 => {
            log.forge_body(index, "\"ok\"", "\"no\"");
            log.rows[index].entry.as_mut().unwrap().result = "no".into();
            log.rechain(index);
        }
        19 => {
            let note = at % log.external.len();
            let mut bytes = log.external[note].clone().into_bytes();
            flip(&mut bytes, row, bit % 6);
            let Ok(text) = String::from_utf8(bytes) else { return false };
            log.external[note] = text;
        }
        _ => return false,
    }
    true
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 1500, ..ProptestConfig::default() })]

    #[test]
    fn any_single_change_is_found_with_key_and_checkpoint(
        shape in prop::collection::vec((1_u8..12, any::<bool>()), 1..4),
        kind in 0_u8..20, row: usize, at: usize, bit: u8,
    ) {
        let mut log = build(&shape);
        prop_assume!(log.rows.len() > 1);
        let before = log.verify();
        prop_assert!(matches!(before, Verdict::Ok(_)), "{:?}", before);
        prop_assume!(mutate(&mut log, kind, row, at, bit));
        let verdict = log.verify();
        prop_assert!(matches!(verdict, Verdict::Tampered(_)), "change {kind}: {:?}", verdict);
    }
}

#[test]
fn both_verifiers_agree_on_random_changes() {
    use proptest::strategy::ValueTree as _;
    let mut runner = proptest::test_runner::TestRunner::deterministic();
    let input = (0_u8..20, any::<usize>(), any::<usize>(), any::<u8>());
    for _ in 0..60 {
        let (kind, row, at, bit) = input.new_tree(&mut runner).unwrap().current();
        let mut log = build(&[(5, true), (4, false)]);
        mutate(&mut log, kind, row, at, bit);
        let key = Some(log.public_key());
        assert_eq!(log.verify_in_python(key, true), summary(&log.verify()), "{kind} {row} {at} {bit}");
    }
}

#[test]
fn not_detectable_without_an_external_checkpoint_and_so_never_ok() {
    let changes: [(&str, Change); 4] = [
        ("the tail cut", |l| l.rows.truncate(4)),
        ("re-chained", |l| {
            l.forge_body(2, "climate", "weather");
            l.rechain(2);
        }),
        ("rolled back, with the checkpoints of the table", |l| {
            l.rows.truncate(5);
            l.table.truncate(1);
        }),
        ("another log in its place", |l| {
            l.rows.clear();
            l.state = bibd_audit::ChainState::new(1);
            l.acts(3);
        }),
    ];
    for (name, change) in changes {
        let mut log = build(&[(5, false)]);
        log.acts(4);
        change(&mut log);
        log.table.clear();
        let verdict = log.verify_with(Some(log.public_key()), false);
        assert!(matches!(verdict, Verdict::Unverified { .. }), "{name}: {verdict:?}");
    }
}

#[test]
fn what_no_checkpoint_covers_yet_is_counted() {
    let mut log = build(&[(5, false)]);
    log.acts(3);
    assert!(
        matches!(log.verify(), Verdict::Ok(ok) if (ok.entries, ok.after_checkpoint, ok.checkpoint.seq) == (8, 3, 5))
    );
    // The window of at most a minute: a cut here is not seen, and the count tells how many entries lie in it.
    log.rows.pop();
    assert!(matches!(log.verify(), Verdict::Ok(ok) if ok.after_checkpoint == 2));
}
