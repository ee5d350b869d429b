//! Who owns an id after successions, and which records of a former owner still count.
//!
//! A [`Step`] is a succession that was proved: by the former node's key, or by the recovery key that the former node's
//! own record names. A [`Lineage`] is all the steps that somebody knows; [`Lineage::judge`] says whether a record's
//! signer was the owner of that tenure. Nothing here checks a signature itself: whoever calls says how ([`Verify`]).

use std::collections::BTreeMap;

use super::{Body, Rank, RecordError, Revision, SignedRecord, Succession};
use crate::PeerId;
use crate::signature::Purpose;

/// Checks an Ed25519 signature of this key, made for this purpose over these bytes.
pub type Verify<'a> = &'a dyn Fn(&PeerId, Purpose, &[u8], &[u8; 64]) -> bool;

/// What proves a succession to a stranger: records alone.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StepProof {
    /// The former node's record of itself, which names its recovery key. Of several the first one counts.
    pub node: SignedRecord,
    /// The succession.
    pub succession: SignedRecord,
}

/// Who signed a succession. What the recovery key says stands above what the node key says: a node key can be stolen
/// with the node, and then names whom the thief likes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Authority {
    /// The former node's key.
    Node,
    /// The recovery key that the former node's record names.
    Recovery,
}

/// A succession that was proved.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Step {
    /// What it says.
    pub succession: Succession,
    /// Who signed it.
    pub authority: Authority,
    /// Decides between two of one former node and authority.
    pub rank: Rank,
    /// Whether the next node signed that it accepts: then the step also holds for who knows the next node alone.
    pub accepted: bool,
}

/// Why records prove no succession.
#[derive(Debug, thiserror::Error)]
pub enum SuccessionError {
    /// A body cannot be read.
    #[error(transparent)]
    Record(#[from] RecordError),
    /// A body is of another kind.
    #[error("a record of kind {found} stands where a {wanted} record is needed")]
    Kind {
        /// What it is.
        found: String,
        /// What it should be.
        wanted: &'static str,
    },
    /// A signature does not hold.
    #[error("the {0} record's signature is not that of its key")]
    Signature(&'static str),
    /// The node record is another node's, or not signed by the node itself.
    #[error("the node record is not that of {0}")]
    OtherNode(PeerId),
    /// Signed by neither of the two keys that may.
    #[error("the succession of {0} is signed neither by the node nor by the recovery key that its record names")]
    NotEntitled(PeerId),
    /// The acceptance is not the next node's.
    #[error("the acceptance is not signed by {0}")]
    Acceptance(PeerId),
}

impl StepProof {
    /// Checks the proof.
    ///
    /// # Errors
    /// [`SuccessionError`]: then it proves nothing.
    pub fn open(&self, verify: Verify<'_>) -> Result<Step, SuccessionError> {
        let succession = match open(&self.succession, "succession", verify)? {
            Body::Succession(body) => body,
            other => return Err(kind(&other, "succession")),
        };
        let node = match open(&self.node, "node", verify)? {
            Body::Node(body) => body,
            other => return Err(kind(&other, "node")),
        };
        if node.id != succession.from || self.node.key != succession.from {
            return Err(SuccessionError::OtherNode(succession.from));
        }
        let authority = if self.succession.key == succession.from {
            Authority::Node
        } else if node.recovery == Some(self.succession.key) {
            Authority::Recovery
        } else {
            return Err(SuccessionError::NotEntitled(succession.from));
        };
        let accepted = match &succession.acceptance {
            None => false,
            Some(signature) => {
                let offer = succession.offer_bytes().map_err(RecordError::Canonical)?;
                if !verify(&succession.to, Purpose::Transfer, &offer, signature) {
                    return Err(SuccessionError::Acceptance(succession.to));
                }
                true
            }
        };
        let rank = Rank::of(succession.revision, &self.succession.body);
        Ok(Step { succession, authority, rank, accepted })
    }
}

fn open(record: &SignedRecord, what: &'static str, verify: Verify<'_>) -> Result<Body, SuccessionError> {
    let body = Body::parse(&record.body)?;
    if verify(&record.key, body.purpose(), &record.body, &record.sig) {
        Ok(body)
    } else {
        Err(SuccessionError::Signature(what))
    }
}

fn kind(found: &Body, wanted: &'static str) -> SuccessionError {
    SuccessionError::Kind { found: found.kind_word().to_owned(), wanted }
}

/// Why a record does not count.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum NotOwner {
    /// The signer did not own the id in that tenure.
    #[error("{signer} is not the owner in tenure {tenure}")]
    Tenure {
        /// Who signed.
        signer: PeerId,
        /// The record's tenure.
        tenure: u64,
    },
    /// Signed after the last record of the former owner that counts.
    #[error("{signer} has a successor, and what it signed after its last record that counts is worth nothing")]
    TooLate {
        /// Who signed.
        signer: PeerId,
    },
}

/// The successions that somebody knows.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Lineage(BTreeMap<PeerId, Step>);

impl Lineage {
    /// Adds a step. False when one that stands above it is known already, or when it would make a circle.
    pub fn add(&mut self, step: Step) -> bool {
        let (from, to) = (step.succession.from, step.succession.to);
        if self.distance(&to, &from).is_some() {
            return false;
        }
        let stands_above = |known: &Step| {
            known.authority > step.authority
                || (known.authority == step.authority && !super::supersedes(&step.rank, &known.rank))
        };
        if self.0.get(&from).is_some_and(stands_above) {
            return false;
        }
        self.0.insert(from, step);
        true
    }

    /// Whether none is known.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The step by which `node` has a successor.
    #[must_use]
    pub fn step(&self, node: &PeerId) -> Option<&Step> {
        self.0.get(node)
    }

    /// Who comes one after the other from `node` on, itself first.
    fn line(&self, node: &PeerId) -> impl Iterator<Item = PeerId> + '_ {
        // `add` keeps circles out.
        std::iter::successors(Some(*node), |node| self.0.get(node).map(|step| step.succession.to))
    }

    /// Who owns in this tenure what began with `origin`.
    #[must_use]
    pub fn owner(&self, origin: &PeerId, tenure: u64) -> Option<PeerId> {
        self.line(origin).nth(usize::try_from(tenure).ok()?)
    }

    /// Who owns now what began with `origin`.
    #[must_use]
    pub fn present(&self, origin: &PeerId) -> PeerId {
        self.line(origin).last().unwrap_or(*origin)
    }

    /// How many successions lead from `from` to `to`; 0 for the same node, `None` when none do.
    #[must_use]
    pub fn distance(&self, from: &PeerId, to: &PeerId) -> Option<u64> {
        self.line(from).position(|node| node == *to).and_then(|steps| u64::try_from(steps).ok())
    }

    /// The former nodes whose audit log `node` goes on with, the last one first: each with the epoch from which on the
    /// next one signs. Only steps that the next node accepted, and whose epochs go back.
    #[must_use]
    pub fn former(&self, node: &PeerId) -> Vec<(PeerId, u64)> {
        let mut found: Vec<(PeerId, u64)> = Vec::new();
        let mut next = *node;
        loop {
            let limit = found.last().map_or(u64::MAX, |(_, before)| *before);
            let before = self.0.iter().filter(|(_, step)| step.succession.to == next && step.accepted);
            let before = before.map(|(from, step)| (*from, step.succession.revision.epoch));
            // A node that took over two goes on with the log of one: the last that it took over.
            let Some(step) = before.filter(|(_, epoch)| *epoch < limit).max_by_key(|(_, epoch)| *epoch) else {
                return found;
            };
            next = step.0;
            found.push(step);
        }
    }

    /// Whether a record about something that began with `origin` counts, by who signed it and at which revision.
    ///
    /// # Errors
    /// [`NotOwner`]: the record is to be dropped.
    pub fn judge(&self, origin: &PeerId, signer: &PeerId, revision: Revision) -> Result<(), NotOwner> {
        if self.owner(origin, revision.tenure) != Some(*signer) {
            return Err(NotOwner::Tenure { signer: *signer, tenure: revision.tenure });
        }
        self.within(signer, revision)
    }

    /// Whether what `signer` signed at `revision` lies before its end, if it has a successor.
    ///
    /// # Errors
    /// [`NotOwner::TooLate`].
    pub fn within(&self, signer: &PeerId, revision: Revision) -> Result<(), NotOwner> {
        match self.0.get(signer) {
            Some(step) if !step.succession.last.covers(revision) => Err(NotOwner::TooLate { signer: *signer }),
            Some(_) | None => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::record::LastMark;
    use crate::{Hash, Timestamp};

    fn peer(n: u8) -> PeerId {
        PeerId::from_public_key([n; 32])
    }

    fn revision(tenure: u64, epoch: u64, n: u64) -> Revision {
        Revision { tenure, epoch, n }
    }

    fn step(from: u8, to: u8, epoch: u64, authority: Authority) -> Step {
        let revision = revision(0, epoch, 1);
        let succession = Succession {
            revision,
            time: Timestamp::from_micros(0),
            from: peer(from),
            to: peer(to),
            last: LastMark { epoch: epoch - 1, n: 5 },
            acceptance: None,
            extra: Default::default(),
        };
        let rank = Rank { revision, body: Hash::of(&[from, to]) };
        Step { succession, authority, rank, accepted: true }
    }

    #[test]
    fn a_former_owner_counts_up_to_its_end_and_the_next_from_its_tenure_on() {
        let mut lineage = Lineage::default();
        assert!(lineage.add(step(1, 2, 3, Authority::Recovery)) && lineage.add(step(2, 3, 7, Authority::Recovery)));
        let judge = |signer: u8, revision| lineage.judge(&peer(1), &peer(signer), revision);
        assert_eq!(judge(1, revision(0, 2, 5)), Ok(()));
        assert_eq!(judge(1, revision(0, 2, 6)), Err(NotOwner::TooLate { signer: peer(1) }));
        assert_eq!(judge(1, revision(0, 3, 1)), Err(NotOwner::TooLate { signer: peer(1) }));
        assert_eq!(judge(1, revision(1, 2, 1)), Err(NotOwner::Tenure { signer: peer(1), tenure: 1 }));
        assert_eq!(judge(2, revision(1, 3, 9)), Ok(()));
        assert_eq!(judge(2, revision(0, 3, 1)), Err(NotOwner::Tenure { signer: peer(2), tenure: 0 }));
        assert_eq!(judge(3, revision(2, 7, 1)), Ok(()));
        assert_eq!(judge(4, revision(0, 1, 1)), Err(NotOwner::Tenure { signer: peer(4), tenure: 0 }));
        // What the second made itself begins with it.
        assert_eq!(lineage.judge(&peer(2), &peer(2), revision(0, 4, 1)), Ok(()));
        assert_eq!((lineage.distance(&peer(1), &peer(3)), lineage.distance(&peer(3), &peer(1))), (Some(2), None));
        assert_eq!(lineage.present(&peer(1)), peer(3));
        assert_eq!(lineage.former(&peer(3)), [(peer(2), 7), (peer(1), 3)]);
    }

    #[test]
    fn the_recovery_key_stands_above_the_node_key_and_circles_are_kept_out() {
        let mut lineage = Lineage::default();
        assert!(lineage.add(step(1, 9, 50, Authority::Node)), "nothing else is known yet");
        assert!(lineage.add(step(1, 2, 3, Authority::Recovery)), "the thief's is taken back");
        assert!(!lineage.add(step(1, 9, 60, Authority::Node)), "and stays so");
        assert!(!lineage.add(step(1, 4, 2, Authority::Recovery)), "an older one");
        assert!(lineage.add(step(1, 5, 4, Authority::Recovery)), "the successor was lost before it served anybody");
        assert!(!lineage.add(step(5, 1, 9, Authority::Recovery)));
        assert_eq!(lineage.present(&peer(1)), peer(5));
    }

    #[test]
    fn an_unaccepted_step_moves_ownership_and_no_audit_log() {
        let mut lineage = Lineage::default();
        lineage.add(Step { accepted: false, ..step(1, 2, 3, Authority::Recovery) });
        assert_eq!((lineage.present(&peer(1)), lineage.former(&peer(2))), (peer(2), vec![]));
    }
}
