//! What is told of the backups in the store.

use bib_core::access::Verb;
use bib_core::{PeerId, Timestamp};

use super::BackupUseCases;
use crate::actor::Call;
use crate::backup::document::Verified;
use crate::backup::log::Chain;
use crate::backup::{BackupError, Kind, Made, Manifest, Store, blocking};
use crate::services::base::allow_node;
use crate::services::error::ServiceError;

/// A backup as it is listed.
#[derive(Debug, Clone)]
pub struct Listed {
    /// Its name.
    pub id: String,
    /// Which kind it is.
    pub kind: Kind,
    /// What it is; `None` when its manifest cannot be trusted.
    pub made: Option<Made>,
    /// `complete`, or what is wrong with it.
    pub state: String,
    /// The last moment that can be restored from it, when it is complete.
    pub reachable: Option<Timestamp>,
    /// When it was last restored beside the node and found to be whole.
    pub verified: Option<Timestamp>,
}

impl Listed {
    /// One that was made just now.
    #[must_use]
    pub fn fresh(made: Made) -> Self {
        let (id, kind, reachable) = (made.id().to_owned(), made.kind(), Some(made.created()));
        Self { id, kind, made: Some(made), state: "complete".to_owned(), reachable, verified: None }
    }

    /// The manifest of a physical one.
    #[must_use]
    pub fn manifest(&self) -> Option<&Manifest> {
        match &self.made {
            Some(Made::Base(manifest)) => Some(manifest),
            _ => None,
        }
    }
}

impl BackupUseCases {
    /// Every backup, newest first.
    ///
    /// # Errors
    /// When the caller may not, or the store cannot be read.
    pub async fn list(&self, call: &Call) -> Result<Vec<Listed>, ServiceError> {
        allow_node(call, Verb::Maintain)?;
        Ok(self.all().await?)
    }

    pub(super) async fn all(&self) -> Result<Vec<Listed>, BackupError> {
        let (store, peer) = (self.store()?.clone(), self.base.peer);
        let listed = blocking(move || {
            let mut all = Vec::new();
            for kind in Kind::ALL {
                let names = kind.names(&store)?.into_iter();
                all.extend(names.map(|(id, is_complete)| describe(&store, &peer, kind, id, is_complete)));
            }
            // Names begin with their time.
            all.sort_by(|one, other| other.id.cmp(&one.id));
            Ok(all)
        });
        listed.await
    }

    /// When the newest backup whose log leads on was begun: what of the node's files is older is in it.
    ///
    /// # Errors
    /// When the store cannot be read.
    pub async fn newest_begun(&self) -> Result<Option<Timestamp>, ServiceError> {
        let all = self.all().await?;
        let complete = all.iter().filter(|backup| backup.state == "complete");
        Ok(complete.filter_map(|backup| Some(backup.manifest()?.created)).max())
    }

    /// One backup.
    ///
    /// # Errors
    /// When the caller may not, or there is no such backup that can be trusted.
    pub async fn show(&self, call: &Call, id: &str) -> Result<Listed, ServiceError> {
        allow_node(call, Verb::Maintain)?;
        let (store, peer, id) = (self.store()?.clone(), self.base.peer, id.to_owned());
        let found = blocking(move || {
            let kind = Made::load(&store, &peer, &id)?.kind();
            Ok(describe(&store, &peer, kind, id, true))
        });
        Ok(found.await?)
    }
}

fn describe(store: &Store, peer: &PeerId, kind: Kind, id: String, is_complete: bool) -> Listed {
    let unusable = |id, state| Listed { id, kind, made: None, state, reachable: None, verified: None };
    if !is_complete {
        return unusable(id, "incomplete: it was cut off, or is being made".to_owned());
    }
    let made = match Made::load_of(store, peer, kind, &id) {
        Ok(made) => made,
        Err(error) => return unusable(id, error.to_string()),
    };
    let verified = Verified::load(store, peer, kind, &id).filter(|one| one.verdict == "OK").map(|one| one.time);
    let chain = match &made {
        Made::Base(manifest) => Chain::find(store, manifest).map(|chain| chain.reachable),
        Made::Dump(dump) => Ok(dump.created),
    };
    let (state, reachable) = match chain {
        Ok(reachable) => ("complete".to_owned(), reachable),
        Err(error) => (error.to_string(), made.created()),
    };
    Listed { id, kind, made: Some(made), state, reachable: Some(reachable), verified }
}
