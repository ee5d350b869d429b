//! The proof that one entry lies in the log: entry, inclusion path and signed checkpoint, for a stranger.

use bib_core::Hash;
use bib_core::canonical::{self, CanonicalError};
use serde::{Deserialize, Serialize};

use crate::body::{BodyError, EntryView, details_hash, digest};
use crate::checkpoint::{Checkpoint, CheckpointError};
use crate::export::DetailLine;
use crate::merkle::{leaf_hash, verify_inclusion};
use crate::note::SignedNote;

/// The `format` of a proof.
pub const FORMAT: &str = "bib-audit-proof/1";

/// The longest proof that is read, in bytes.
pub const MAX_PROOF_BYTES: usize = 1 << 20;

/// Why a proof proves nothing.
#[derive(Debug, thiserror::Error)]
pub enum EntryProofError {
    /// Not JSON of a proof.
    #[error("not a proof of an audit entry: {0}")]
    Malformed(String),
    /// The proof cannot be written.
    #[error(transparent)]
    Canonical(#[from] CanonicalError),
    /// The checkpoint cannot be believed.
    #[error(transparent)]
    Checkpoint(#[from] CheckpointError),
    /// The body is not an entry.
    #[error(transparent)]
    Body(#[from] BodyError),
    /// The path does not lead from the entry to the checkpoint's root.
    #[error("the entry is not number {seq} of the log that the checkpoint signed")]
    NotIncluded {
        /// The number claimed.
        seq: u64,
    },
    /// The details are not the entry's.
    #[error("the details are not those of the entry")]
    Details,
}

/// A proof as `bib admin audit prove` prints it: canonical JSON.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct EntryProof {
    /// [`FORMAT`].
    pub format: String,
    /// The entry's sequence number; its epoch stands in the checkpoint's origin.
    pub seq: u64,
    /// The entry's body, verbatim.
    pub body: String,
    /// The details, unless they were erased or are not to be shown.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub detail: Option<DetailLine>,
    /// The inclusion path of RFC 6962 from leaf `seq - 1` up.
    pub path: Vec<Hash>,
    /// The checkpoint as a note, cosignatures and all.
    pub checkpoint: String,
}

/// What a valid proof shows.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Proven<'a> {
    /// The checkpoint that vouches.
    pub checkpoint: Checkpoint,
    /// The entry.
    pub entry: EntryView<'a>,
}

impl EntryProof {
    /// A proof. The path comes from [`crate::merkle::ProofBuilder::inclusion`] of `seq - 1` in the checkpoint's size.
    #[must_use]
    pub fn new(seq: u64, body: String, detail: Option<DetailLine>, path: Vec<Hash>, checkpoint: &SignedNote) -> Self {
        Self { format: FORMAT.to_owned(), seq, body, detail, path, checkpoint: checkpoint.to_string() }
    }

    /// The canonical JSON.
    ///
    /// # Errors
    /// When the sequence number is 2^53 or more.
    pub fn to_bytes(&self) -> Result<Vec<u8>, EntryProofError> {
        Ok(canonical::to_vec(self)?)
    }

    /// Reads a proof, without believing it.
    ///
    /// # Errors
    /// When the bytes are not JSON of a proof of this format.
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, EntryProofError> {
        if bytes.len() > MAX_PROOF_BYTES {
            return Err(EntryProofError::Malformed("longer than 1 MiB".into()));
        }
        let proof: Self = serde_json::from_slice(bytes).map_err(|e| EntryProofError::Malformed(e.to_string()))?;
        if proof.format != FORMAT {
            return Err(EntryProofError::Malformed(format!("the format is not {FORMAT}")));
        }
        Ok(proof)
    }

    /// Checks the proof with the node's public key, which must come from elsewhere than the proof.
    ///
    /// # Errors
    /// When any part of it does not hold.
    pub fn verify(&self, public_key: &[u8; 32]) -> Result<Proven<'_>, EntryProofError> {
        let checkpoint = Checkpoint::open(&self.checkpoint, public_key)?;
        let entry = EntryView::parse(self.body.as_bytes())?;
        let leaf = leaf_hash(digest(self.body.as_bytes()).as_bytes());
        let included = self
            .seq
            .checked_sub(1)
            .is_some_and(|index| verify_inclusion(leaf, index, checkpoint.size, &checkpoint.root, &self.path));
        if !included {
            return Err(EntryProofError::NotIncluded { seq: self.seq });
        }
        if let Some(detail) = &self.detail
            && details_hash(&detail.salt, &detail.details.0).to_string() != entry.details
        {
            return Err(EntryProofError::Details);
        }
        Ok(Proven { checkpoint, entry })
    }
}
