//! Whom this node follows: the successions that its database keeps, proved, and the one that its first start carries out.
//!
//! A restore that gives a node a new identity leaves [`DIRECTORY`] behind: the key that was made for it and the proof of the
//! succession ([`PROOF`]). The first start writes the proof into the database ([`crate::services::succession`]) and removes
//! the directory; from then on the records in the database are enough.

use std::path::{Path, PathBuf};

use bib_core::record::{Lineage, SignedRecord, StepProof};
use bib_core::{PeerId, signature::Purpose};
use bib_identity::file::{self, FileError};
use bib_identity::node_key;
use bibd_audit::{Former, export, succession};
use bibd_catalog::{Db, records};

/// What a restore leaves for the first start of a successor.
pub const DIRECTORY: &str = "successor";
/// The proof in it: one line as in an export of the audit log.
pub const PROOF: &str = "succession.json";
/// The sealed secret with the keys of the nodes that this one follows, as OpenSSH writes them, one after the other: they
/// open what was sealed to those nodes. A file of a key ends with [`KEY_END`] and a line feed.
pub const FORMER_KEYS: &str = "former_keys";
/// How a private key of OpenSSH ends.
pub const KEY_END: &str = "-----END OPENSSH PRIVATE KEY-----\n";
/// The longest proof, bytes: two records.
const MAX_PROOF_BYTES: u64 = 512 * 1024;

/// Why it is not known whom this node follows.
#[derive(Debug, thiserror::Error)]
pub enum InheritanceError {
    /// The database.
    #[error("read the successions")]
    Catalog(#[from] bibd_catalog::Error),
    /// The file that the restore left.
    #[error("read the proof of the succession")]
    File(#[from] FileError),
    /// The file does not hold what the restore wrote.
    #[error("`{path}` does not prove a succession")]
    Proof {
        /// The file.
        path: PathBuf,
    },
}

/// The successions that this node knows of. Made at the start; a node gets no successor while it runs.
#[derive(Debug, Clone, Default)]
pub struct Inheritance {
    lineage: Lineage,
    proofs: Vec<StepProof>,
    /// What the first start has yet to carry out.
    pub pending: Option<StepProof>,
}

impl Inheritance {
    /// From the database.
    ///
    /// # Errors
    /// When it does not answer. A record that proves nothing is left out, and the log says so.
    pub async fn load(db: &Db) -> Result<Self, bibd_catalog::Error> {
        let mut session = db.read().await?;
        let mut this = Self::default();
        for row in records::list(&mut session, "succession").await? {
            let succession = row.signed()?;
            let Some(from) = from_of(&succession) else { continue };
            let Some(node) = records::find(&mut session, "node", &from.to_string()).await? else { continue };
            this.add(StepProof { node: node.signed()?, succession });
        }
        Ok(this)
    }

    /// From the database and, before the first start carried it out, from what a restore left in the data directory
    /// `root`.
    ///
    /// # Errors
    /// [`InheritanceError`].
    pub async fn load_with(db: &Db, root: &Path) -> Result<Self, InheritanceError> {
        let mut this = Self::load(db).await?;
        let path = root.join(DIRECTORY).join(PROOF);
        if !path.exists() {
            return Ok(this);
        }
        let damaged = || InheritanceError::Proof { path: path.clone() };
        let bytes = file::read_private(&path, MAX_PROOF_BYTES)?;
        let line: export::Line = serde_json::from_slice(&bytes).map_err(|_| damaged())?;
        let proof = succession::proof_of(&line).ok_or_else(damaged)?;
        proof.open(&node_key::holds).map_err(|_| damaged())?;
        this.add(proof.clone());
        this.pending = Some(proof);
        Ok(this)
    }

    fn add(&mut self, proof: StepProof) {
        match proof.open(&node_key::holds) {
            Ok(step) => {
                self.lineage.add(step);
                self.proofs.push(proof);
            }
            Err(error) => tracing::warn!(error.cause = %error, "a record in the database proves no succession"),
        }
    }

    /// Who owns what.
    #[must_use]
    pub fn lineage(&self) -> &Lineage {
        &self.lineage
    }

    /// What proves it to a stranger: every step from `origin` on.
    #[must_use]
    pub fn proofs_from(&self, origin: &PeerId) -> Vec<StepProof> {
        let is_on_the_way = |proof: &&StepProof| {
            from_of(&proof.succession).is_some_and(|from| self.lineage.distance(origin, &from).is_some())
        };
        self.proofs.iter().filter(is_on_the_way).cloned().collect()
    }

    /// What proves it to who verifies the audit log: every step there is.
    #[must_use]
    pub fn proofs(&self) -> &[StepProof] {
        &self.proofs
    }

    /// Whose audit log `peer` goes on with.
    #[must_use]
    pub fn former(&self, peer: &PeerId) -> Vec<Former> {
        succession::former(peer, &self.lineage)
    }

    /// Who signs for an epoch of the audit log of `peer`.
    #[must_use]
    pub fn signer(&self, peer: &PeerId, epoch: u64) -> PeerId {
        let former = self.former(peer).into_iter().filter(|former| epoch < former.before);
        former.min_by_key(|former| former.before).map_or(*peer, |former| former.node)
    }
}

/// The node that a succession record is about; it says so in its id.
fn from_of(record: &SignedRecord) -> Option<PeerId> {
    match bib_core::record::Body::parse(&record.body).ok()? {
        bib_core::record::Body::Succession(body) if body.from != body.to => Some(body.from),
        _ => None,
    }
}

/// Signs that `key` accepts to follow, as a succession wants it.
#[must_use]
pub fn accept(key: &bib_identity::NodeKey, offer: &[u8]) -> [u8; 64] {
    key.sign(Purpose::Transfer, offer)
}
