//! Entries that left the log for good, a month at a time: which they are, by the node's word.
//!
//! Their seals stay, so the chain and the tree go on through them and every checkpoint still fits; what is gone is what
//! they said. A missing entry is no tamper only when the node signed that it is gone: the entry `audit.detach` carries
//! that signature in its target. Each names all that is gone so far, since an earlier one leaves the log with its month.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bib_core::signature::{Purpose, signed_bytes};
use ed25519_dalek::{Signature, VerifyingKey};
use serde::Serialize;

use crate::chain::parse_epoch_target;
use crate::entry::MAX_TARGET_BYTES;

/// Entries of one epoch in a row.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub struct Run {
    /// The epoch.
    pub epoch: u64,
    /// The first number.
    pub first: u64,
    /// The last number.
    pub last: u64,
}

impl fmt::Display for Run {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}-{}", self.epoch, self.first, self.last)
    }
}

/// A set of entries, as runs.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Runs(BTreeMap<(u64, u64), u64>);

impl Runs {
    /// Adds entries; runs that touch or overlap become one.
    pub fn add(&mut self, run: Run) {
        let Run { epoch, mut first, mut last } = run;
        let touches =
            |(begin, end): (u64, u64)| begin <= run.last.saturating_add(1) && end.saturating_add(1) >= run.first;
        let near: Vec<(u64, u64)> = self
            .0
            .range((epoch, 0)..=(epoch, last.saturating_add(1)))
            .map(|((_, begin), end)| (*begin, *end))
            .collect();
        for (begin, end) in near.into_iter().filter(|near| touches(*near)) {
            self.0.remove(&(epoch, begin));
            (first, last) = (first.min(begin), last.max(end));
        }
        self.0.insert((epoch, first), last);
    }

    /// Whether there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// How many entries.
    #[must_use]
    pub fn count(&self) -> u64 {
        self.iter().map(|run| run.last - run.first + 1).sum()
    }

    /// In the order of the log.
    pub fn iter(&self) -> impl Iterator<Item = Run> + '_ {
        self.0.iter().map(|((epoch, first), last)| Run { epoch: *epoch, first: *first, last: *last })
    }

    /// The first entries of `self` that are not in `other`.
    #[must_use]
    pub fn first_beyond(&self, other: &Self) -> Option<Run> {
        self.iter().find_map(|run| {
            let mut next = run.first;
            for cover in other.iter().filter(|cover| cover.epoch == run.epoch) {
                if cover.first > next {
                    let last = run.last.min(cover.first - 1);
                    return (next <= run.last).then_some(Run { first: next, last, ..run });
                }
                next = next.max(cover.last.saturating_add(1));
            }
            (next <= run.last).then_some(Run { first: next, ..run })
        })
    }
}

/// What an entry `audit.detach` says.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Detachment {
    /// The month that goes with it: `2026-05`.
    pub month: String,
    /// All that is gone, this month and before.
    pub runs: Runs,
    /// The ends of epochs whose successors' first entries, which name them, are among what is gone: as
    /// [`crate::chain::epoch_target`] writes them.
    pub ends: BTreeSet<String>,
}

/// A detachment that does not fit into an entry: clocks jumped so much that a month is scattered over the log.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the month is scattered over more runs of the log than one entry can name")]
pub struct Scattered;

impl Detachment {
    /// The target of its entry, signed.
    ///
    /// # Errors
    /// When it does not fit.
    pub fn target(&self, sign: impl FnOnce(&[u8]) -> [u8; 64]) -> Result<String, Scattered> {
        let text = self.text();
        let target = format!("{text} sig {}", STANDARD.encode(sign(text.as_bytes())));
        if target.len() <= MAX_TARGET_BYTES { Ok(target) } else { Err(Scattered) }
    }

    /// Reads a target and checks the signature.
    #[must_use]
    pub fn open(target: &str, key: &[u8; 32]) -> Option<Self> {
        let (text, signature) = target.rsplit_once(" sig ")?;
        let signature = Signature::from_slice(&STANDARD.decode(signature).ok()?).ok()?;
        let key = VerifyingKey::from_bytes(key).ok()?;
        key.verify_strict(&signed_bytes(Purpose::Detach, text.as_bytes()), &signature).ok()?;
        Self::parse(text)
    }

    /// Reads a target without asking who signed it, for whoever wrote it.
    #[must_use]
    pub fn read(target: &str) -> Option<Self> {
        Self::parse(target.rsplit_once(" sig ")?.0)
    }

    fn text(&self) -> String {
        let mut text = self.month.clone();
        for run in self.runs.iter() {
            text.push_str(&format!(" {run}"));
        }
        for end in &self.ends {
            text.push_str(&format!(" end {end}"));
        }
        text
    }

    fn parse(text: &str) -> Option<Self> {
        let mut words = text.split(' ');
        let mut found = Self { month: words.next()?.to_owned(), ..Self::default() };
        while let Some(word) = words.next() {
            if word == "end" {
                let end = words.next()?;
                parse_epoch_target(end)?;
                found.ends.insert(end.to_owned());
            } else {
                let (epoch, numbers) = word.split_once('/')?;
                let (first, last) = numbers.split_once('-')?;
                let run = Run { epoch: epoch.parse().ok()?, first: first.parse().ok()?, last: last.parse().ok()? };
                if run.first == 0 || run.first > run.last {
                    return None;
                }
                found.runs.add(run);
            }
        }
        // One spelling: runs in order and as long as they can be.
        (found.text() == text).then_some(found)
    }
}

#[cfg(test)]
mod tests {
    use ed25519_dalek::{Signer as _, SigningKey};
    use proptest::prelude::*;

    use super::*;

    fn runs(of: &[(u64, u64, u64)]) -> Runs {
        let mut runs = Runs::default();
        of.iter().for_each(|(epoch, first, last)| runs.add(Run { epoch: *epoch, first: *first, last: *last }));
        runs
    }

    #[test]
    fn what_is_signed_is_read_back_and_nothing_else() {
        let key = SigningKey::from_bytes(&[7; 32]);
        let public = key.verifying_key().to_bytes();
        let sign = |body: &[u8]| key.sign(&signed_bytes(Purpose::Detach, body)).to_bytes();
        let end = format!("1/20/{}", bib_core::Hash::of(b"x"));
        let said = Detachment {
            month: "2026-05".into(),
            runs: runs(&[(1, 1, 17), (1, 19, 20), (2, 1, 4)]),
            ends: BTreeSet::from([end.clone()]),
        };
        let target = said.target(sign).unwrap();
        assert!(target.starts_with(&format!("2026-05 1/1-17 1/19-20 2/1-4 end {end} sig ")), "{target}");
        assert_eq!(Detachment::open(&target, &public), Some(said.clone()));
        assert_eq!(Detachment::read(&target), Some(said.clone()));
        assert_eq!(Detachment::open(&target, &[9; 32]), None);
        assert_eq!(Detachment::open(&target.replace("1/1-17", "1/1-18"), &public), None);
        for text in [
            "2026-05 1/5-4",
            "2026-05 1/0-4",
            "2026-05 1/4-5 1/1-3",
            "2026-05 1/1-2 1/3-4",
            "2026-05 x",
            "2026-05 end 1",
        ] {
            let signed = format!("{text} sig {}", STANDARD.encode(sign(text.as_bytes())));
            assert_eq!(Detachment::open(&signed, &public), None, "{text}");
        }
        let many: Vec<(u64, u64, u64)> = (0..300).map(|n| (1, 2 * n + 1, 2 * n + 1)).collect();
        assert_eq!(Detachment { runs: runs(&many), ..said }.target(sign), Err(Scattered));
    }

    #[test]
    fn the_first_that_is_not_covered_is_found() {
        let covered = runs(&[(1, 1, 10), (1, 20, 30), (3, 1, 5)]);
        for (asked, beyond) in [
            ((1, 1, 10), None),
            ((1, 5, 22), Some((1, 11, 19))),
            ((1, 25, 40), Some((1, 31, 40))),
            ((2, 1, 1), Some((2, 1, 1))),
            ((3, 2, 5), None),
        ] {
            let found = runs(&[asked]).first_beyond(&covered).map(|run| (run.epoch, run.first, run.last));
            assert_eq!(found, beyond, "{asked:?}");
        }
    }

    proptest! {
        #[test]
        fn runs_are_the_set_that_was_added(added in prop::collection::vec((1..3_u64, 1..60_u64, 0..6_u64), 0..30)) {
            let mut model = BTreeSet::new();
            let mut set = Runs::default();
            for (epoch, first, more) in added {
                set.add(Run { epoch, first, last: first + more });
                model.extend((first..=first + more).map(|seq| (epoch, seq)));
            }
            let mut flat = Vec::new();
            let mut before: Option<Run> = None;
            for run in set.iter() {
                if let Some(before) = before {
                    prop_assert!(before.epoch < run.epoch || before.last + 1 < run.first);
                }
                before = Some(run);
                flat.extend((run.first..=run.last).map(|seq| (run.epoch, seq)));
            }
            prop_assert_eq!(set.count(), model.len() as u64);
            prop_assert_eq!(flat, model.into_iter().collect::<Vec<_>>());
        }
    }
}
