//! The checkpoints that a verification compares with.

use std::collections::{BTreeMap, BTreeSet};

use bib_core::Hash;

use super::input::TrustedInputs;
use super::tamper::{Lost, Position, Tamper, TamperClass};
use crate::checkpoint::{Checkpoint, CheckpointError, decimal};

type Place = BTreeMap<u64, BTreeSet<(u64, Hash, Hash)>>;

/// Valid checkpoints by place and epoch, and what is wrong with the others.
#[derive(Debug, Default)]
pub(super) struct Checkpoints {
    external: Place,
    table: Place,
    /// Every valid one, in the order of the log.
    ordered: Vec<(Position, Hash, Hash)>,
    next: usize,
    invalid: Vec<Tamper>,
}

/// How far an epoch of the log goes: its highest sequence number, and whether a later epoch names that as its end.
pub(super) struct Reach {
    pub(super) seq: u64,
    pub(super) declared: bool,
}

impl Checkpoints {
    /// Opens the notes. Without a key none can be believed, so none is used.
    pub(super) fn open(trusted: &TrustedInputs) -> Self {
        let mut all = Self::default();
        if trusted.public_key.is_none() {
            return all;
        }
        let mut opened: BTreeMap<&str, Option<Checkpoint>> = BTreeMap::new();
        for (notes, place) in [(&trusted.external, &mut all.external), (&trusted.table, &mut all.table)] {
            for note in notes {
                // The same note mostly stands in both places: its signature is checked once.
                let known = opened.entry(note).or_insert_with(|| match open(note, trusted) {
                    Ok(checkpoint) => Some(checkpoint),
                    Err(error) => {
                        let first_bad = claimed_position(note).unwrap_or(Position { epoch: 0, seq: 0 });
                        let explanation = format!("a checkpoint cannot be believed: {error}");
                        all.invalid.push(Tamper { first_bad, class: TamperClass::CheckpointInvalid, explanation });
                        None
                    }
                });
                if let Some(c) = known {
                    place.entry(c.origin.epoch).or_default().insert((c.size, c.root, c.chain));
                    all.ordered.push((position(c), c.root, c.chain));
                }
            }
        }
        all.ordered.sort_unstable();
        all.ordered.dedup();
        all
    }

    /// Whether a valid checkpoint stands at `at`; the place of those behind is passed by.
    pub(super) fn wants(&mut self, at: Position) -> bool {
        while self.ordered.get(self.next).is_some_and(|(place, ..)| *place < at) {
            self.next += 1;
        }
        self.ordered.get(self.next).is_some_and(|(place, ..)| *place == at)
    }

    /// Whether all checkpoints at `at` signed this root and head.
    pub(super) fn agree(&self, at: Position, root: &Hash, head: &Hash) -> bool {
        self.ordered[self.next..].iter().take_while(|(place, ..)| *place == at).all(|(_, r, c)| r == root && c == head)
    }

    /// The newest external checkpoint that lies within the log.
    pub(super) fn newest_external(&self, reaches: &BTreeMap<u64, Reach>) -> Option<Position> {
        let within = |(epoch, set): (&u64, &BTreeSet<(u64, Hash, Hash)>)| {
            let reach = reaches.get(epoch)?.seq;
            let seq = set.iter().rev().map(|(size, ..)| *size).find(|size| (1..=reach).contains(size))?;
            Some(Position { epoch: *epoch, seq })
        };
        self.external.iter().rev().find_map(within)
    }

    /// What the checkpoints tell once the log has ended: tampers, and losses that were declared.
    pub(super) fn judge(&mut self, reaches: &BTreeMap<u64, Reach>) -> (Vec<Tamper>, Vec<Lost>) {
        let mut found = std::mem::take(&mut self.invalid);
        let mut lost = Vec::new();
        let epochs: BTreeSet<u64> = self.external.keys().chain(self.table.keys()).copied().collect();
        for epoch in epochs {
            let Reach { seq, declared } = *reaches.get(&epoch).unwrap_or(&Reach { seq: 0, declared: false });
            let highest = |place: &Place| place.get(&epoch).and_then(|set| set.last()).map_or(0, |(size, ..)| *size);
            let (external, table) = (highest(&self.external), highest(&self.table));
            if external.max(table) > seq {
                let (first, last_seq) = (Position { epoch, seq: seq + 1 }, external.max(table));
                if declared {
                    lost.push(Lost { first, last_seq });
                } else {
                    found.push(cut_off(first, last_seq, reaches.is_empty(), table <= seq));
                }
            }
            // Without any external checkpoint the verdict is UNVERIFIED anyway: there is no second place.
            if !self.external.is_empty() {
                found.extend(one_sided(epoch, seq, &self.external, &self.table, "the table"));
                found.extend(one_sided(epoch, seq, &self.table, &self.external, "the external file"));
            }
        }
        (found, lost)
    }
}

/// Opens a note with the key of whoever signed for its epoch.
fn open(note: &str, trusted: &TrustedInputs) -> Result<Checkpoint, CheckpointError> {
    let epoch = claimed_position(note).map_or(u64::MAX, |position| position.epoch);
    let key = trusted.key_of(epoch).ok_or(CheckpointError::Malformed("there is no key to check it with"))?;
    Checkpoint::open(note, &key)
}

fn position(checkpoint: &Checkpoint) -> Position {
    Position { epoch: checkpoint.origin.epoch, seq: checkpoint.size }
}

/// Where a note that cannot be believed says it stands: from its first two lines alone.
fn claimed_position(note: &str) -> Option<Position> {
    let mut lines = note.split('\n');
    let epoch = decimal(lines.next()?.strip_prefix("bib/")?.split_once('/')?.1)?;
    Some(Position { epoch, seq: decimal(lines.next()?).filter(|_| lines.next().is_some())? })
}

fn cut_off(first_bad: Position, signed: u64, nothing_left: bool, table_agrees: bool) -> Tamper {
    let class = match (nothing_left, first_bad.seq == 1, table_agrees) {
        (true, ..) => TamperClass::LogTruncated,
        (_, true, _) => TamperClass::EpochMissing,
        (_, _, true) => TamperClass::RolledBack,
        _ => TamperClass::TailTruncated,
    };
    let explanation = format!("a checkpoint signed {signed} entries of epoch {}", first_bad.epoch);
    Tamper { first_bad, class, explanation }
}

/// The first checkpoint of an epoch that `has` holds and `lacks` does not. The newest one may be on its way.
fn one_sided(epoch: u64, reach: u64, has: &Place, lacks: &Place, place: &str) -> Option<Tamper> {
    let empty = BTreeSet::new();
    let (has, lacks) = (has.get(&epoch)?, lacks.get(&epoch).unwrap_or(&empty));
    let mut missing = has.difference(lacks).filter(|(size, ..)| *size <= reach);
    let first = missing.next()?;
    let on_its_way = missing.next().is_none() && lacks.last().is_none_or(|newest| newest < first);
    (!on_its_way).then(|| Tamper {
        first_bad: Position { epoch, seq: first.0 },
        class: TamperClass::CheckpointMissing,
        explanation: format!("the checkpoint of {} entries is missing in {place}", first.0),
    })
}
