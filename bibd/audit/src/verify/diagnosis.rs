//! After the first break: what the rest of the log tells about its kind.
//!
//! The place of the break never changes any more. Only its class gets more exact: a row that turns up later, or a chain
//! that goes on from a wrong head, tells a swap from an insertion from a changed value.

use bib_core::Hash;

use super::input::Row;
use super::tamper::{Position, Tamper, TamperClass};
use crate::body::digest;
use crate::chain::next_head;

/// A break and what would settle its class.
#[derive(Debug)]
pub(super) struct Diagnosis {
    pub(super) tamper: Tamper,
    pub(super) open: Open,
}

/// What is looked for in the rows that follow.
#[derive(Debug)]
pub(super) enum Open {
    /// Nothing: the class is known.
    Settled,
    /// The missing sequence number, further down.
    Gap(Position),
    /// An entry whose digest is the one stored at the break.
    Body(Hash),
    /// A row that follows from the head before the break; boxed because it is rarely there.
    Link(Box<Link>),
}

/// A head that does not follow.
#[derive(Debug)]
pub(super) struct Link {
    pub(super) before: Hash,
    pub(super) here: Option<(Hash, Hash)>,
    pub(super) next: Option<(Hash, Hash)>,
    pub(super) first: bool,
}

/// Digest and head of a row, when they have the length of hashes.
pub(super) fn stored(row: &Row<'_>) -> Option<(Hash, Hash)> {
    Some((Hash::try_from(row.seal.digest).ok()?, Hash::try_from(row.seal.head).ok()?))
}

fn follows(before: &Hash, row: Option<(Hash, Hash)>) -> bool {
    row.is_some_and(|(digest, head)| next_head(before, &digest) == head)
}

impl Diagnosis {
    pub(super) fn settled(first_bad: Position, class: TamperClass, explanation: String) -> Self {
        Self { tamper: Tamper { first_bad, class, explanation }, open: Open::Settled }
    }

    /// Takes a row after the break.
    pub(super) fn observe(&mut self, row: &Row<'_>) {
        let settled = match &mut self.open {
            Open::Settled => return,
            Open::Gap(at) if row.seal.epoch == at.epoch && row.seal.seq == at.seq => {
                Some((TamperClass::RowsSwapped, format!("the row {at} stands after later ones")))
            }
            Open::Body(wanted) if row.entry.is_some_and(|entry| digest(entry.body) == *wanted) => {
                let text = format!("the entry sealed here is the one that {}/{} names", row.seal.epoch, row.seal.seq);
                Some((TamperClass::RowsSwapped, text))
            }
            Open::Gap(_) | Open::Body(_) => None,
            Open::Link(link) => link.observe(row, &mut self.tamper),
        };
        if let Some((class, explanation)) = settled {
            self.tamper.class = class;
            self.tamper.explanation = explanation;
            self.open = Open::Settled;
        }
    }
}

impl Link {
    fn observe(&mut self, row: &Row<'_>, tamper: &mut Tamper) -> Option<(TamperClass, String)> {
        let now = stored(row);
        if self.first {
            self.first = false;
            self.next = now;
            if self.here.is_some_and(|(_, head)| follows(&head, now)) {
                tamper.class = TamperClass::ChainBroken;
                tamper.explanation = "the stored head does not follow from the one before, and the chain goes on from \
                                      it: rows before it are gone, or its entry was replaced"
                    .to_owned();
            }
        }
        if !follows(&self.before, now) {
            return None;
        }
        let (_, head) = now?;
        if follows(&head, self.next) || follows(&head, self.here) {
            let text = format!("the row that belongs here is numbered {}/{}", row.seal.epoch, row.seal.seq);
            Some((TamperClass::RowsSwapped, text))
        } else {
            let text = format!("what belongs here begins at {}/{} only", row.seal.epoch, row.seal.seq);
            Some((TamperClass::RowInserted, text))
        }
    }
}
