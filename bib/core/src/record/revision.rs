//! Which of two records about one id wins: the merge rule, the same on every node.

use serde::{Deserialize, Serialize};

use crate::Hash;

/// `n` grows by at most this at once, so that nobody can use up the numbers.
pub const MAX_STEP: u64 = 1 << 20;

/// Epochs and numbers stay below 2^53, which canonical JSON can say.
pub const MAX_NUMBER: u64 = (1 << 53) - 1;

/// A record's place among the records of its id. Compared by tenure, then epoch, then number; never by time.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Revision {
    /// Transfers and successions in the ownership of the id: 0 for the origin.
    pub tenure: u64,
    /// The signer's epoch, raised by every restore of its node.
    pub epoch: u64,
    /// Counts the signer's changes.
    pub n: u64,
}

/// A revision that may not follow the one before.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum StepError {
    /// Not higher than the revision before.
    #[error("the revision does not come after the one before")]
    NotHigher,
    /// `n` grew by more than [`MAX_STEP`].
    #[error("the revision's n grows by more than {MAX_STEP} at once")]
    TooFar,
    /// A number of 2^53 or more.
    #[error("the revision holds a number of 2^53 or more")]
    TooLarge,
}

impl Revision {
    /// The first revision that an origin signs in `epoch`.
    #[must_use]
    pub const fn first(epoch: u64) -> Self {
        Self { tenure: 0, epoch, n: 1 }
    }

    /// The next revision by a signer of `tenure` in `epoch`. `n` begins at 1 whenever tenure or epoch changed.
    ///
    /// # Errors
    /// When tenure and epoch lie before those of `self`, or the numbers are used up.
    pub fn next(self, tenure: u64, epoch: u64) -> Result<Self, StepError> {
        let n = if (self.tenure, self.epoch) == (tenure, epoch) { self.n.saturating_add(1) } else { 1 };
        let next = Self { tenure, epoch, n };
        next.check_after(Some(self))?;
        Ok(next)
    }

    pub(super) const fn check_range(self) -> Result<(), StepError> {
        if self.tenure > MAX_NUMBER || self.epoch > MAX_NUMBER || self.n > MAX_NUMBER {
            return Err(StepError::TooLarge);
        }
        Ok(())
    }

    /// Whether a record of this revision may be taken after one of revision `before` (of the same id).
    ///
    /// A new tenure or epoch counts from 0, so its first `n` is bounded as well.
    ///
    /// # Errors
    /// When it is not higher, steps too far, or holds a number of 2^53 or more.
    pub fn check_after(self, before: Option<Self>) -> Result<(), StepError> {
        self.check_range()?;
        let base = match before {
            Some(before) if self <= before => return Err(StepError::NotHigher),
            Some(before) if (before.tenure, before.epoch) == (self.tenure, self.epoch) => before.n,
            Some(_) | None => 0,
        };
        if self.n - base > MAX_STEP { Err(StepError::TooFar) } else { Ok(()) }
    }
}

/// What decides between two records of one kind and id: the revision, then the hash of the body.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Rank {
    /// The record's revision.
    pub revision: Revision,
    /// SHA-256 of the record's body, verbatim.
    pub body: Hash,
}

impl Rank {
    /// The rank of a record with this revision and body.
    #[must_use]
    pub fn of(revision: Revision, body: &[u8]) -> Self {
        Self { revision, body: Hash::of(body) }
    }
}

/// Whether `a` wins against `b`: the higher revision, and at equal revision the lower hash. False when they are equal.
#[must_use]
pub fn supersedes(a: &Rank, b: &Rank) -> bool {
    (a.revision, std::cmp::Reverse(a.body)) > (b.revision, std::cmp::Reverse(b.body))
}

/// What to do with an incoming record when one of the same kind and id is held.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Merge {
    /// It is the one that is held.
    Same,
    /// It is older: keep what is held.
    Keep,
    /// It is newer: it takes the place of what is held.
    Replace,
    /// Two bodies of one revision: the owner signed both. Keep both as evidence and flag the owner.
    Equivocation {
        /// Whether the incoming record is the one that counts from now on.
        incoming_wins: bool,
    },
}

/// Decides between the record that is `held` and one that is `incoming`.
#[must_use]
pub fn merge(held: &Rank, incoming: &Rank) -> Merge {
    if held == incoming {
        Merge::Same
    } else if held.revision == incoming.revision {
        Merge::Equivocation { incoming_wins: supersedes(incoming, held) }
    } else if supersedes(incoming, held) {
        Merge::Replace
    } else {
        Merge::Keep
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn winner(a: Rank, b: Rank) -> Rank {
        if supersedes(&a, &b) { a } else { b }
    }

    fn rank() -> impl Strategy<Value = Rank> {
        // Few values, so that ties in each place are common.
        (0..3_u64, 0..3_u64, 0..3_u64, 0..4_u8).prop_map(|(tenure, epoch, n, body)| Rank {
            revision: Revision { tenure, epoch, n },
            body: Hash::of(&[body]),
        })
    }

    proptest! {
        #[test]
        fn merging_is_commutative_associative_and_idempotent(a in rank(), b in rank(), c in rank()) {
            prop_assert_eq!(winner(a, b), winner(b, a));
            prop_assert_eq!(winner(a, winner(b, c)), winner(winner(a, b), c));
            prop_assert_eq!(winner(a, a), a);
        }

        #[test]
        fn the_order_of_arrival_does_not_matter(mut ranks in proptest::collection::vec(rank(), 1..8), seed in any::<u64>()) {
            let first = ranks.iter().copied().reduce(winner).unwrap();
            let turn = usize::try_from(seed % ranks.len() as u64).unwrap();
            ranks.rotate_left(turn);
            ranks.reverse();
            prop_assert_eq!(ranks.into_iter().reduce(winner).unwrap(), first);
        }

        #[test]
        fn merge_agrees_with_the_order(a in rank(), b in rank()) {
            let wins = match merge(&a, &b) {
                Merge::Same => { prop_assert_eq!(a, b); false }
                Merge::Keep => false,
                Merge::Replace => true,
                Merge::Equivocation { incoming_wins } => { prop_assert_eq!(a.revision, b.revision); incoming_wins }
            };
            prop_assert_eq!(wins, supersedes(&b, &a));
        }
    }

    #[test]
    fn compares_tenure_before_epoch_before_number() {
        let revision = |tenure, epoch, n| Revision { tenure, epoch, n };
        assert!(revision(1, 0, 1) > revision(0, 9, 9));
        assert!(revision(0, 1, 1) > revision(0, 0, 9));
    }

    #[test]
    fn refuses_steps_backwards_and_too_far() {
        let held = Revision::first(3);
        assert_eq!(held.check_after(Some(held)), Err(StepError::NotHigher));
        assert_eq!(Revision { n: 1 + MAX_STEP, ..held }.check_after(Some(held)), Ok(()));
        assert_eq!(Revision { n: 2 + MAX_STEP, ..held }.check_after(Some(held)), Err(StepError::TooFar));
        assert_eq!(Revision { epoch: 4, n: MAX_STEP + 1, ..held }.check_after(Some(held)), Err(StepError::TooFar));
        assert_eq!(Revision { epoch: 1 << 53, ..held }.check_after(None), Err(StepError::TooLarge));
        assert_eq!(held.next(0, 3), Ok(Revision { tenure: 0, epoch: 3, n: 2 }));
        assert_eq!(held.next(0, 4), Ok(Revision { tenure: 0, epoch: 4, n: 1 }));
        assert_eq!(held.next(0, 2), Err(StepError::NotHigher));
    }
}
