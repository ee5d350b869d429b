//! The streaming verifier: one pass over the rows in order, bounded memory, one verdict.
//!
//! It chains on what it computes from the bodies and compares that with what is stored, never the other way round. The
//! first break in the order of the log decides; rows after it only tell its class. Memory grows with the checkpoints
//! and with the entries whose details are gone (24 bytes each), not with the log.
//!
//! Without a public key and a checkpoint from outside the database the verdict is UNVERIFIED at best. What no checkpoint
//! covers yet (the newest minute) can be rewritten unseen by whoever owns the database: [`Verified::after_checkpoint`].

mod checkpoints;
mod columns;
mod diagnosis;
mod input;
mod tamper;

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};

use bib_core::Hash;
use uuid::Uuid;

pub use input::{DetailRow, EntryRow, Former, Row, SealRow, TrustedInputs};
pub use tamper::{Doubt, Lost, Position, Tamper, TamperClass, Verdict, Verified};

use crate::action::{DETACH, EPOCH, ERASE};
use crate::body::{BodyError, EntryView, details_hash, digest};
use crate::chain::{ChainState, HEAD_0, next_head, parse_epoch_target};
use crate::detach::{Detachment, Run, Runs};
use checkpoints::{Checkpoints, Reach};
use diagnosis::{Diagnosis, Link, Open, stored};

/// Verifies a log, row by row.
#[derive(Debug)]
pub struct Verifier {
    has_key: bool,
    checkpoints: Checkpoints,
    chain: Option<ChainState>,
    /// The head before the last one, to know an inserted row by.
    earlier_head: Hash,
    /// The highest sequence number of this epoch that a checkpoint vouches for.
    vouched: u64,
    ended: BTreeMap<u64, u64>,
    entries: u64,
    missing: HashMap<Uuid, Position>,
    erased: HashSet<Uuid>,
    /// Entries that are gone, and those that the node signed to be.
    absent: Runs,
    detached: Runs,
    /// Ends of epochs that an absent first entry named, and those that the node signed instead.
    unnamed_ends: Vec<(u64, String)>,
    signed_ends: BTreeSet<String>,
    trusted: TrustedInputs,
    waiting: u64,
    /// Tampers found beside the chain.
    beside: Vec<Tamper>,
    broken: Option<Diagnosis>,
    buffer: Vec<u8>,
}

impl Verifier {
    /// A verifier that compares with these.
    #[must_use]
    pub fn new(trusted: &TrustedInputs) -> Self {
        Self {
            has_key: trusted.public_key.is_some(),
            checkpoints: Checkpoints::open(trusted),
            chain: None,
            earlier_head: HEAD_0,
            vouched: 0,
            ended: BTreeMap::new(),
            entries: 0,
            missing: HashMap::new(),
            erased: HashSet::new(),
            absent: Runs::default(),
            detached: Runs::default(),
            unnamed_ends: Vec::new(),
            signed_ends: BTreeSet::new(),
            // The notes were opened above; the keys are needed on the way.
            trusted: TrustedInputs { external: Vec::new(), table: Vec::new(), ..trusted.clone() },
            waiting: 0,
            beside: Vec::new(),
            broken: None,
            buffer: Vec::new(),
        }
    }

    /// Takes the next row of `audit_seal` with what belongs to it. The whole log must be fed, also after a break.
    pub fn feed(&mut self, row: &Row<'_>) {
        if let Some(broken) = &mut self.broken {
            broken.observe(row);
        } else if let Err(broken) = self.check(row) {
            self.broken = Some(broken);
        }
    }

    /// Takes, after all sealed rows, an entry without a seal. `queued`: whether `audit_unsealed` names it.
    pub fn feed_unsealed(&mut self, entry: &EntryRow<'_>, queued: bool) {
        let class = if !queued {
            Some((TamperClass::EntryUnsealed, format!("the entry {} is neither sealed nor waiting", entry.id)))
        } else {
            match EntryView::parse_with(entry.body, &mut self.buffer) {
                Ok(view) => columns::first_difference(&view, entry)
                    .map(|name| (TamperClass::ColumnDiffers, format!("the column {name} of {} differs", entry.id))),
                Err(error) => Some((TamperClass::EntryMalformed, format!("the entry {} waits: {error}", entry.id))),
            }
        };
        self.waiting += 1;
        if let Some((class, explanation)) = class {
            self.beside.push(Tamper { first_bad: self.next_position(), class, explanation });
        }
    }

    /// Takes, after all sealed rows, an id in `audit_unsealed` whose entry is gone.
    pub fn feed_queued_without_entry(&mut self, id: Uuid) {
        let explanation = format!("the entry {id} waits for its seal and is gone");
        let first_bad = self.next_position();
        self.beside.push(Tamper { first_bad, class: TamperClass::QueuedEntryMissing, explanation });
    }

    /// The verdict.
    #[must_use]
    pub fn finish(mut self) -> Verdict {
        if let Some(broken) = self.broken {
            return Verdict::Tampered(broken.tamper);
        }
        let reaches = self.reaches();
        let (judged, lost) = self.checkpoints.judge(&reaches);
        self.beside.extend(judged);
        let all_missing = self.missing.len() as u64;
        self.missing.retain(|id, _| !self.erased.contains(id));
        let erased = all_missing - self.missing.len() as u64;
        // A log whose end is gone has lost the erasures that stood there: then missing details tell nothing.
        if !self.beside.iter().any(|tamper| tamper.class.is_cut()) {
            self.beside.extend(self.missing.values().min().map(|first_bad| Tamper {
                first_bad: *first_bad,
                class: TamperClass::DetailMissing,
                explanation: format!("details are gone without a sealed erasure ({} entries)", self.missing.len()),
            }));
        }
        self.beside.extend(self.judge_absent(&reaches));
        if let Some(first) = self.beside.into_iter().min_by_key(|tamper| tamper.first_bad) {
            return Verdict::Tampered(first);
        }
        let checkpoint = match (self.has_key, self.checkpoints.newest_external(&reaches), &self.chain) {
            (true, Some(checkpoint), Some(chain)) => (checkpoint, chain),
            (true, ..) => return Verdict::Unverified { reason: Doubt::NoCheckpoint, entries: self.entries },
            (false, ..) => return Verdict::Unverified { reason: Doubt::NoKey, entries: self.entries },
        };
        let (checkpoint, chain) = checkpoint;
        let first = reaches.keys().next().copied().unwrap_or(checkpoint.epoch);
        let behind: u64 = reaches.range(..checkpoint.epoch).map(|(_, reach)| reach.seq).sum();
        Verdict::Ok(Verified {
            entries: self.entries,
            last: Position { epoch: chain.epoch, seq: chain.seq },
            head: chain.head,
            checkpoint,
            after_checkpoint: self.entries - behind - checkpoint.seq,
            erased,
            unsealed: self.waiting,
            lost,
            detached: self.absent.iter().collect(),
            former: self.trusted.former.into_iter().filter(|former| first < former.before).collect(),
        })
    }

    /// Entries that are gone without the node's signature, or that no checkpoint outside covers. Where a signature is
    /// beyond the end of what can be seen, it tells nothing: then the cut tail is the tamper.
    fn judge_absent(&self, reaches: &BTreeMap<u64, Reach>) -> Vec<Tamper> {
        let mut found = Vec::new();
        let mut allowed = Runs::default();
        let newest = self.checkpoints.newest_external(reaches);
        for run in self.detached.iter() {
            match newest {
                // Without a checkpoint the verdict is UNVERIFIED at best.
                None => allowed.add(run),
                Some(newest) if run.epoch < newest.epoch => allowed.add(run),
                Some(newest) if run.epoch == newest.epoch && run.first <= newest.seq => {
                    allowed.add(Run { last: run.last.min(newest.seq), ..run });
                }
                Some(_) => {}
            }
        }
        if let Some(run) = self.absent.first_beyond(&allowed) {
            let (class, text) = if run.first == run.last {
                (TamperClass::EntryMissing, "the entry of this seal is gone")
            } else {
                let text = "the entries of this and following seals are gone: deleted, or a partition detached";
                (TamperClass::PartitionMissing, text)
            };
            let first_bad = Position { epoch: run.epoch, seq: run.first };
            found.push(Tamper { first_bad, class, explanation: text.to_owned() });
        }
        let unnamed = self.unnamed_ends.iter().find(|(_, end)| !self.signed_ends.contains(end));
        // Without the key nobody's word can be checked.
        if let (Some((epoch, _)), true) = (unnamed, self.has_key) {
            let explanation = "the epoch's first entry is gone, and nothing signed names the end of the one before";
            let first_bad = Position { epoch: *epoch, seq: 1 };
            found.push(Tamper { first_bad, class: TamperClass::EpochLinkBroken, explanation: explanation.to_owned() });
        }
        found
    }

    /// Goes on through a seal whose entry is gone: by its digest, which the chain and the checkpoints vouch for.
    fn pass_absent(&mut self, row: &Row<'_>, at: Position, before: Option<(u64, u64, Hash)>) -> Result<(), Diagnosis> {
        let chain = self.chain.get_or_insert_with(|| ChainState::new(row.seal.epoch));
        let head = chain.head;
        let here = stored(row);
        let Some((digest, _)) = here.filter(|(digest, after)| next_head(&head, digest) == *after) else {
            let link = Link { before: head, here, next: None, first: true };
            let tamper = broken(at, TamperClass::HeadChanged, "the stored head is not the one that follows");
            return Err(Diagnosis { open: Open::Link(Box::new(link)), ..tamper });
        };
        if let (1, Some((epoch, seq, head))) = (at.seq, before) {
            self.unnamed_ends.push((at.epoch, format!("{epoch}/{seq}/{head}")));
        }
        self.absent.add(Run { epoch: at.epoch, first: at.seq, last: at.seq });
        self.earlier_head = head;
        chain.seal_one(row.seal.entry, digest);
        self.entries += 1;
        self.compare_with_checkpoint(at)
    }

    /// The epochs seen. One is declared ended when a later epoch was vouched for by a checkpoint: its first entry,
    /// checked when it came, names the end.
    fn reaches(&self) -> BTreeMap<u64, Reach> {
        let mut reaches: BTreeMap<u64, Reach> =
            self.ended.iter().map(|(epoch, seq)| (*epoch, Reach { seq: *seq, declared: false })).collect();
        if let Some(chain) = &self.chain {
            reaches.insert(chain.epoch, Reach { seq: chain.seq, declared: false });
        }
        if let Some(newest) = self.checkpoints.newest_external(&reaches) {
            reaches.range_mut(..newest.epoch).for_each(|(_, reach)| reach.declared = true);
        }
        reaches
    }

    fn next_position(&self) -> Position {
        self.chain.as_ref().map_or(Position { epoch: 1, seq: 1 }, |c| Position { epoch: c.epoch, seq: c.seq + 1 })
    }

    fn check(&mut self, row: &Row<'_>) -> Result<(), Diagnosis> {
        let before = self.enter_epoch(row)?;
        let chain = self.chain.get_or_insert_with(|| ChainState::new(row.seal.epoch));
        let (at, head) = (Position { epoch: chain.epoch, seq: chain.seq + 1 }, chain.head);
        check_sequence(at, row)?;
        let Some(entry) = &row.entry else { return self.pass_absent(row, at, before) };
        let computed = digest(entry.body);
        let expected = next_head(&head, &computed);
        if row.seal.digest != computed.as_bytes() || row.seal.head != expected.as_bytes() {
            return Err(diagnose_link(at, row, entry, (&head, &self.earlier_head), (&computed, &expected)));
        }
        let view = EntryView::parse_with(entry.body, &mut self.buffer).map_err(|error| not_an_entry(at, &error))?;
        let differs = if entry.id == row.seal.entry { columns::first_difference(&view, entry) } else { Some("id") };
        if let Some(column) = differs {
            let text = format!("the column `{column}` says something else than the entry");
            return Err(broken(at, TamperClass::ColumnDiffers, &text));
        }
        match &row.detail {
            Some(detail) if !is_hex(&view.details, &details_hash(detail.salt, detail.details)) => {
                return Err(broken(at, TamperClass::DetailChanged, "the details are not those of the entry"));
            }
            Some(_) => {}
            None => {
                self.missing.insert(entry.id, at);
            }
        }
        check_epoch_link(at, &view, before)?;
        if view.action == ERASE
            && view.result == "ok"
            && let Ok(id) = Uuid::try_parse(&view.target)
        {
            self.erased.insert(id);
        }
        if view.action == DETACH
            && view.result == "ok"
            // Without a key the verdict is UNVERIFIED at best.
            && let Some(said) = match self.trusted.key_of(at.epoch) {
                Some(key) => Detachment::open(&view.target, &key),
                None => Detachment::read(&view.target),
            }
        {
            said.runs.iter().for_each(|run| self.detached.add(run));
            self.signed_ends.extend(said.ends);
        }
        self.earlier_head = head;
        chain.seal_one(entry.id, computed);
        self.entries += 1;
        self.compare_with_checkpoint(at)
    }

    /// Closes the epoch before when `row` begins a later one. Returns the end of the epoch before, if there is one.
    fn enter_epoch(&mut self, row: &Row<'_>) -> Result<Option<(u64, u64, Hash)>, Diagnosis> {
        let Some(chain) = &self.chain else { return Ok(None) };
        let end = (chain.epoch, chain.seq, chain.head);
        if row.seal.epoch < chain.epoch {
            let at = Position { epoch: row.seal.epoch, seq: row.seal.seq };
            return Err(broken(at, TamperClass::RowsSwapped, "a row of an earlier epoch stands after a later one"));
        }
        if row.seal.epoch > chain.epoch {
            self.ended.insert(chain.epoch, chain.seq);
            self.chain = None;
            self.earlier_head = HEAD_0;
            self.vouched = 0;
            return Ok(Some(end));
        }
        Ok(None)
    }

    fn compare_with_checkpoint(&mut self, at: Position) -> Result<(), Diagnosis> {
        let Some(chain) = self.chain.as_ref().filter(|_| self.checkpoints.wants(at)) else { return Ok(()) };
        if !self.checkpoints.agree(at, &chain.compact.root(), &chain.head) {
            let first = Position { seq: self.vouched + 1, ..at };
            let text = format!(
                "the log up to {at} is not the one that a checkpoint signed; the change lies in {first} to {at}"
            );
            return Err(broken(first, TamperClass::Rechained, &text));
        }
        self.vouched = at.seq;
        Ok(())
    }
}

fn broken(at: Position, class: TamperClass, explanation: &str) -> Diagnosis {
    Diagnosis::settled(at, class, explanation.to_owned())
}

fn is_hex(text: &str, hash: &Hash) -> bool {
    let mut hex = [0; 64];
    hex::encode_to_slice(hash.as_bytes(), &mut hex).is_ok() && text.as_bytes() == hex
}

fn not_an_entry(at: Position, error: &BodyError) -> Diagnosis {
    let class = match error {
        BodyError::Format(_) => TamperClass::FormatUnknown,
        _ => TamperClass::EntryMalformed,
    };
    broken(at, class, &error.to_string())
}

fn check_sequence(at: Position, row: &Row<'_>) -> Result<(), Diagnosis> {
    let seq = row.seal.seq;
    if seq < at.seq {
        return Err(broken(Position { seq, ..at }, TamperClass::SequenceDuplicate, "the number stands twice"));
    }
    if seq > at.seq {
        let text = format!("the next number is {seq}: {} rows are gone", seq - at.seq);
        return Err(Diagnosis { open: Open::Gap(at), ..broken(at, TamperClass::SequenceGap, &text) });
    }
    Ok(())
}

/// The first entry of an epoch names the end of the epoch before; the log's very first names none.
fn check_epoch_link(at: Position, view: &EntryView<'_>, before: Option<(u64, u64, Hash)>) -> Result<(), Diagnosis> {
    if at.seq != 1 {
        return Ok(());
    }
    let named = if view.action == EPOCH { parse_epoch_target(&view.target) } else { None };
    match (before, named) {
        (Some(end), Some(named)) if end == named => Ok(()),
        (None, None) => Ok(()),
        (None, Some(_)) => Err(broken(at, TamperClass::EpochMissing, "this epoch names one before it, which is gone")),
        (Some((epoch, seq, _)), Some((named_epoch, named_seq, _))) if epoch == named_epoch && seq < named_seq => {
            let first = Position { epoch, seq: seq + 1 };
            let text = format!("epoch {} names {named_seq} entries of epoch {epoch}; {seq} are here", at.epoch);
            Err(Diagnosis { open: Open::Gap(first), ..broken(first, TamperClass::TailTruncated, &text) })
        }
        (Some(_), _) => {
            let text = "the epoch's first entry does not name the last head of the one before";
            Err(broken(at, TamperClass::EpochLinkBroken, text))
        }
    }
}

/// The class of a row whose digest or head is not what follows. `heads`: the one before, and the one before that.
fn diagnose_link(
    at: Position,
    row: &Row<'_>,
    entry: &EntryRow<'_>,
    heads: (&Hash, &Hash),
    computed: (&Hash, &Hash),
) -> Diagnosis {
    if let Err(error @ BodyError::Format(_)) = EntryView::parse(entry.body) {
        return not_an_entry(at, &error);
    }
    let here = stored(row);
    if row.seal.head == computed.1.as_bytes() {
        return broken(at, TamperClass::DigestChanged, "the stored digest is not the entry's; the head is right");
    }
    if let Some((digest, head)) = here {
        if digest != *computed.0 && next_head(heads.0, &digest) == head {
            let tamper = broken(at, TamperClass::BodyChanged, "the entry is not the one that was sealed");
            return Diagnosis { open: Open::Body(digest), ..tamper };
        }
        if at.seq > 1 && next_head(heads.1, &digest) == head {
            let first = Position { seq: at.seq - 1, ..at };
            let text = format!("{at} follows from the row before {first}");
            return broken(first, TamperClass::RowInserted, &text);
        }
    }
    let link = Link { before: *heads.0, here, next: None, first: true };
    let tamper = broken(at, TamperClass::HeadChanged, "the stored head is not the one that follows");
    Diagnosis { open: Open::Link(Box::new(link)), ..tamper }
}
