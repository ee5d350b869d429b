//! How fast a log is verified: `cargo run --release -p bibd-audit --example verify_speed [ENTRIES]`.
//!
//! Makes a log of a million entries in memory, then feeds it from there, with a checkpoint every thousand entries.
#![allow(clippy::print_stdout, reason = "a program for a terminal")]

use std::time::Instant;

use bib_core::{OperationId, PeerId, Timestamp, UserId};
use bibd_audit::entry::Entry;
use bibd_audit::{
    Actor, ChainState, Checkpoint, DetailRow, EntryDraft, EntryRow, Outcome, Row, Seal, SealRow, StatementNote,
    TrustedInputs, Verdict, Verifier, Via,
};
use ed25519_dalek::{Signer as _, SigningKey};
use uuid::Uuid;

fn entry(node: PeerId, number: u64) -> Result<Entry, bibd_audit::entry::DraftError> {
    let id = Uuid::from_u128(u128::from(number) << 64 | 7 << 76);
    let statement = StatementNote {
        class: "insert".into(),
        table: "topics".into(),
        hash: bib_core::Hash::of(b"INSERT INTO topics"),
        rows: 1,
        us: 312,
    };
    EntryDraft {
        id,
        time: Timestamp::from_micros(1_763_665_260_000_000 + i64::try_from(number).unwrap_or(0)),
        node,
        actor: Actor::User { id: UserId::from_uuid(id), name: "ada".into() },
        via: Via::Socket,
        action: "topic.create".into(),
        target: format!("topic:climate-{number}"),
        result: Outcome::Ok,
        operation: OperationId::from_uuid(id),
        job: None,
        origin: None,
        statements: vec![statement.clone(), statement],
        details: serde_json::json!({ "name": format!("climate-{number}"), "visibility": "private" }),
        salt: [9; 32],
    }
    .build()
}

fn row<'a>(seal: &'a Seal, entry: &'a Entry) -> Row<'a> {
    let columns = &entry.columns;
    Row {
        seal: SealRow {
            epoch: seal.epoch,
            seq: seal.seq,
            entry: seal.entry,
            digest: seal.digest.as_bytes(),
            head: seal.head.as_bytes(),
        },
        entry: Some(EntryRow {
            id: entry.id,
            time: entry.time,
            node: &columns.node,
            actor: &columns.actor,
            via: columns.via,
            action: &columns.action,
            target: &columns.target,
            result: &columns.result,
            operation: columns.operation,
            job: columns.job,
            body: &entry.body,
        }),
        detail: Some(DetailRow { salt: &entry.detail.salt, details: &entry.detail.bytes }),
    }
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let count: u64 = std::env::args().nth(1).map_or(Ok(1_000_000), |text| text.parse())?;
    let key = SigningKey::from_bytes(&[7; 32]);
    let node = PeerId::from_public_key(key.verifying_key().to_bytes());
    let (mut state, mut log, mut notes) = (ChainState::new(1), Vec::new(), Vec::new());
    for number in 1..=count {
        let entry = entry(node, number)?;
        let seals = state.seal([(entry.id, entry.digest)]);
        log.extend(seals.into_iter().map(|seal| (seal, entry.clone())));
        if number % 1000 == 0 || number == count {
            notes.push(Checkpoint::of(node, &state).sign(&|bytes| key.sign(bytes).to_bytes()).to_string());
        }
    }
    let begin = Instant::now();
    let trusted = TrustedInputs {
        public_key: Some(*node.public_key()),
        external: notes.clone(),
        table: notes,
        ..TrustedInputs::default()
    };
    let mut verifier = Verifier::new(&trusted);
    log.iter().for_each(|(seal, entry)| verifier.feed(&row(seal, entry)));
    let verdict = verifier.finish();
    let seconds = begin.elapsed().as_secs_f64();
    let Verdict::Ok(verified) = verdict else { return Err(format!("{verdict:?}").into()) };
    println!("{} entries in {seconds:.2} s: {:.0} a second", verified.entries, verified.entries as f64 / seconds);
    Ok(())
}
