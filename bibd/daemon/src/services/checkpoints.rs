//! The node's word for how the log stands, kept in two places: the append-only file on another path, and the table.
//!
//! The file comes first. Between the two a process can die; `Checkpoints::settle` finishes that at the next start,
//! and nothing else: any other difference between the two places is for verification to name.

use std::collections::BTreeMap;
use std::error::Error;
use std::sync::{Mutex, PoisonError};

use bib_core::Hash;
use bibd_audit::note::SignedNote;
use bibd_audit::{ChainState, Checkpoint, CheckpointFile};
use bibd_catalog::{Context, audit};
use uuid::Uuid;

use super::base::Base;

/// Digests read at once to see whether an older checkpoint fits.
const SLICE: u64 = 65_536;

/// One writer at a time also when a sequencer was ended while its append was still under way: the append goes on in
/// its blocking thread, and the next sequencer's must come after it.
static APPENDING: Mutex<()> = Mutex::new(());

type Failure = Box<dyn Error + Send + Sync>;

/// Both places.
#[derive(Debug, Clone)]
pub(super) struct Checkpoints {
    base: Base,
    file: CheckpointFile,
}

/// Checkpoints of one epoch in one place, by size.
type Place = BTreeMap<u64, (Checkpoint, String)>;

impl Checkpoints {
    pub(super) fn new(base: Base, file: CheckpointFile) -> Self {
        Self { base, file }
    }

    /// Whether this node signs for the epoch: those before its first one are the former node's.
    pub(super) fn is_ours(&self, epoch: u64) -> bool {
        self.base.inheritance.signer(&self.base.peer, epoch) == self.base.peer
    }

    /// Signs how the log stands, into both places.
    pub(super) async fn sign(&self, state: &ChainState) -> Result<(), Failure> {
        let checkpoint = Checkpoint::of(self.base.peer, state);
        let signature = self.base.key.sign_checkpoint(checkpoint.text().as_bytes())?;
        let note = checkpoint.sign(&|_| signature);
        self.append(note.clone()).await?;
        self.insert(&checkpoint, &note.to_string()).await
    }

    /// Adds the newest checkpoint of the epoch of `state` to the place that it did not reach. True when both places
    /// have one for exactly this state.
    pub(super) async fn settle(&self, state: &ChainState) -> Result<bool, Failure> {
        let (mut file, mut table) = self.read(state.epoch).await?;
        if let Some((checkpoint, text)) = lone(&file, &table)
            && self.agrees(&checkpoint, state).await?
        {
            tracing::info!(epoch = state.epoch, seq = checkpoint.size, "a checkpoint is added to the table");
            self.insert(&checkpoint, &text).await?;
            table.insert(checkpoint.size, (checkpoint, text));
        }
        if let Some((checkpoint, text)) = lone(&table, &file)
            && self.agrees(&checkpoint, state).await?
        {
            tracing::info!(epoch = state.epoch, seq = checkpoint.size, "a checkpoint is added to the file");
            self.append(text.parse()?).await?;
            file.insert(checkpoint.size, (checkpoint, text));
        }
        Ok(file.contains_key(&state.seq) && table.contains_key(&state.seq))
    }

    async fn read(&self, epoch: u64) -> Result<(Place, Place), Failure> {
        let file = self.file.clone();
        let records = tokio::task::spawn_blocking(move || {
            let _alone = APPENDING.lock().unwrap_or_else(PoisonError::into_inner);
            file.read()
        });
        let notes = records.await??.notes;
        let mut session = self.base.db.read_audit().await?;
        let rows = audit::checkpoints(&mut session).await?;
        let signer = self.base.inheritance.signer(&self.base.peer, epoch);
        let ours = |notes: Vec<String>| {
            let opened = notes.into_iter().filter_map(|text| {
                let checkpoint = Checkpoint::open(&text, signer.public_key()).ok()?;
                (checkpoint.origin.epoch == epoch).then_some((checkpoint.size, (checkpoint, text)))
            });
            opened.collect::<Place>()
        };
        Ok((ours(notes), ours(rows)))
    }

    /// Whether the log is the one that was signed: a checkpoint that does not fit is evidence and stays where it is.
    async fn agrees(&self, checkpoint: &Checkpoint, state: &ChainState) -> Result<bool, Failure> {
        if checkpoint.size > state.seq {
            return Ok(false);
        }
        if checkpoint.size == state.seq {
            return Ok(*checkpoint == Checkpoint::of(checkpoint.origin.node, state));
        }
        let mut session = self.base.db.read_audit().await?;
        let mut then = ChainState::new(state.epoch);
        while then.seq < checkpoint.size {
            let upto = checkpoint.size.min(then.seq + SLICE);
            let digests: Vec<Hash> = audit::digests(&mut session, state.epoch, then.seq, upto).await?;
            if digests.is_empty() {
                return Ok(false);
            }
            then.seal(digests.into_iter().map(|digest| (Uuid::nil(), digest)));
        }
        Ok(*checkpoint == Checkpoint::of(checkpoint.origin.node, &then))
    }

    async fn append(&self, note: SignedNote) -> Result<(), Failure> {
        let file = self.file.clone();
        let append = tokio::task::spawn_blocking(move || {
            let _alone = APPENDING.lock().unwrap_or_else(PoisonError::into_inner);
            file.append(&[note])
        });
        Ok(append.await??)
    }

    async fn insert(&self, checkpoint: &Checkpoint, note: &str) -> Result<(), Failure> {
        let context = Context { operation: self.base.ids.operation(), user: None, component: "sequencer" };
        let mut tx = self.base.db.begin_seal(&context).await?;
        audit::insert_checkpoint(&mut tx, checkpoint.origin.epoch, checkpoint.size, note, self.base.now()).await?;
        Ok(tx.commit().await?)
    }
}

/// The newest checkpoint of `one` when it is the only one that `other` lacks, and newer than all there: what a process
/// that died between the two places leaves.
fn lone(one: &Place, other: &Place) -> Option<(Checkpoint, String)> {
    let mut missing = one.iter().filter(|(size, _)| !other.contains_key(size));
    let (size, found) = missing.next()?;
    let is_newest = other.keys().next_back().is_none_or(|newest| newest < size);
    (missing.next().is_none() && is_newest).then(|| found.clone())
}
