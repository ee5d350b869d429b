//! A logical dump's manifest, and what it has in common with a physical backup's.

use std::collections::BTreeMap;

use bib_core::{PeerId, Timestamp};
use serde::{Deserialize, Serialize};

use super::Kind;
use super::document::{self, AuditHead, Chunks, Described, Manifest, Object};
use super::error::BackupError;
use super::store::Store;

/// The format of a dump's manifest.
pub const DUMP_FORMAT: &str = "bib-dump/1";

/// What a logical dump is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Dump {
    /// [`DUMP_FORMAT`].
    pub format: String,
    /// Its name.
    pub id: String,
    /// The node.
    pub node: PeerId,
    /// The node's epoch.
    pub epoch: u64,
    /// When it was begun: what was committed before is in it. Its one moment lies between this and `finished`.
    pub created: Timestamp,
    /// When it was complete.
    pub finished: Timestamp,
    /// The release that made it.
    pub bibd: String,
    /// PostgreSQL's major version: this one and every later one read it.
    pub postgres: u32,
    /// PostgreSQL's name of the cluster that it is of; a string, because it is larger than JSON's safe integers.
    pub system_identifier: String,
    /// `state.tar.zst.age`.
    pub state: Object,
    /// `dump.zst.age`.
    pub dump: Object,
    /// The rows of every table in it; a partitioned table counts as one.
    pub rows: BTreeMap<String, u64>,
    /// The audit log.
    pub audit: AuditHead,
    /// The chunks.
    pub chunks: Chunks,
    /// Who can open it: peer ids and age recipients.
    pub recipients: Vec<String>,
}

impl Described for Dump {
    const KIND: Kind = Kind::Logical;
    const FORMAT: &'static str = DUMP_FORMAT;

    fn named(&self) -> (&str, &str, PeerId) {
        (&self.format, &self.id, self.node)
    }
}

impl Dump {
    /// Reads the manifest of `id`.
    ///
    /// # Errors
    /// [`BackupError::NotFound`], and as [`document::verify`].
    pub fn load(store: &Store, node: &PeerId, id: &str) -> Result<Self, BackupError> {
        document::load(store, node, id)
    }

    /// The sum of its rows.
    #[must_use]
    pub fn rows(&self) -> u64 {
        self.rows.values().sum()
    }
}

/// A complete backup of either kind.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Made {
    /// A physical one.
    Base(Box<Manifest>),
    /// A logical one.
    Dump(Box<Dump>),
}

/// The same member of either manifest.
macro_rules! either {
    ($this:expr, $member:ident) => {
        match $this {
            Made::Base(manifest) => &manifest.$member,
            Made::Dump(dump) => &dump.$member,
        }
    };
}

impl Made {
    /// Reads the manifest of `id`, of whichever kind it is.
    ///
    /// # Errors
    /// As [`Manifest::load`].
    pub fn load(store: &Store, node: &PeerId, id: &str) -> Result<Self, BackupError> {
        match Manifest::load(store, node, id) {
            Err(BackupError::NotFound(_)) => Self::load_of(store, node, Kind::Logical, id),
            other => other.map(|manifest| Self::Base(Box::new(manifest))),
        }
    }

    /// Reads the manifest of `id`, which is of this kind.
    ///
    /// # Errors
    /// As [`Manifest::load`].
    pub fn load_of(store: &Store, node: &PeerId, kind: Kind, id: &str) -> Result<Self, BackupError> {
        Ok(match kind {
            Kind::Physical => Self::Base(Box::new(Manifest::load(store, node, id)?)),
            Kind::Logical => Self::Dump(Box::new(Dump::load(store, node, id)?)),
        })
    }

    /// Which kind it is.
    #[must_use]
    pub fn kind(&self) -> Kind {
        match self {
            Self::Base(_) => Kind::Physical,
            Self::Dump(_) => Kind::Logical,
        }
    }

    /// Its name.
    #[must_use]
    pub fn id(&self) -> &str {
        either!(self, id)
    }

    /// The node.
    #[must_use]
    pub fn node(&self) -> PeerId {
        *either!(self, node)
    }

    /// The node's epoch.
    #[must_use]
    pub fn epoch(&self) -> u64 {
        *either!(self, epoch)
    }

    /// When it was begun.
    #[must_use]
    pub fn created(&self) -> Timestamp {
        *either!(self, created)
    }

    /// When it was complete.
    #[must_use]
    pub fn finished(&self) -> Timestamp {
        *either!(self, finished)
    }

    /// The moment that it has without any log: what was committed by then is surely in it.
    #[must_use]
    pub fn moment(&self) -> Timestamp {
        match self {
            Self::Base(manifest) => manifest.finished,
            Self::Dump(dump) => dump.created,
        }
    }

    /// PostgreSQL's major version.
    #[must_use]
    pub fn postgres(&self) -> u32 {
        *either!(self, postgres)
    }

    /// PostgreSQL's name of the cluster.
    #[must_use]
    pub fn system_identifier(&self) -> &str {
        either!(self, system_identifier)
    }

    /// What of the data directory is in it.
    #[must_use]
    pub fn state(&self) -> &Object {
        either!(self, state)
    }

    /// The database.
    #[must_use]
    pub fn database(&self) -> &Object {
        match self {
            Self::Base(manifest) => &manifest.base,
            Self::Dump(dump) => &dump.dump,
        }
    }

    /// Where the audit log stood when it was begun.
    #[must_use]
    pub fn audit(&self) -> &AuditHead {
        either!(self, audit)
    }

    /// The chunks.
    #[must_use]
    pub fn chunks(&self) -> &Chunks {
        either!(self, chunks)
    }

    /// Who can open it.
    #[must_use]
    pub fn recipients(&self) -> &[String] {
        either!(self, recipients)
    }

    /// The sum of its objects in the store, bytes.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.state().bytes + self.database().bytes
    }

    /// The sum of what is sealed in them, bytes.
    #[must_use]
    pub fn plain_bytes(&self) -> u64 {
        self.state().plain_bytes + self.database().plain_bytes
    }
}

#[cfg(test)]
impl Dump {
    /// A dump with nothing in it, for tests.
    pub(crate) fn sample(id: &str, epoch: u64, created: Timestamp) -> Self {
        let Manifest { node, bibd, postgres, system_identifier, state, base, audit, chunks, recipients, .. } =
            Manifest::sample(id, epoch, created);
        Self {
            format: DUMP_FORMAT.to_owned(),
            id: id.to_owned(),
            node,
            epoch,
            created,
            finished: created,
            bibd,
            postgres,
            system_identifier,
            state,
            dump: base,
            rows: BTreeMap::new(),
            audit,
            chunks,
            recipients,
        }
    }
}
