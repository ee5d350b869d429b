//! A reader of the audit log that remembers in the database how far it has come.

use bibd_catalog::audit::{self, LoggedRow, Place};
use bibd_catalog::{Context, Error};

use super::base::Base;
use crate::config::audit::Start;

/// One reader. Cheap to clone.
#[derive(Debug, Clone)]
pub(super) struct LogReader {
    base: Base,
    name: String,
    component: &'static str,
}

impl LogReader {
    /// Readers of one name are one reader.
    pub(super) fn new(base: Base, name: String, component: &'static str) -> Self {
        Self { base, name, component }
    }

    /// Where it stands; a new one where it is to begin, which is remembered.
    pub(super) async fn begin(&self, start: Start) -> Result<Place, Error> {
        let mut session = self.base.db.read_audit().await?;
        if let Some(place) = audit::find_reader(&mut session, &self.name).await? {
            return Ok(place);
        }
        drop(session);
        let place = match start {
            Start::Beginning => Place::default(),
            Start::Now => self.heads().await?.last().copied().unwrap_or_default(),
        };
        self.save(place).await?;
        Ok(place)
    }

    /// The last entry of each epoch.
    pub(super) async fn heads(&self) -> Result<Vec<Place>, Error> {
        let heads = audit::load_heads(&mut self.base.db.read_audit().await?).await?;
        Ok(heads.iter().map(|head| Place { epoch: head.epoch, seq: head.seq }).collect())
    }

    /// Remembers how far it has come.
    pub(super) async fn save(&self, place: Place) -> Result<(), Error> {
        let context = Context { operation: self.base.ids.operation(), user: None, component: self.component };
        let mut tx = self.base.db.begin(&context).await?;
        audit::save_reader(&mut tx, &self.name, place, self.base.now()).await?;
        tx.commit().await
    }
}

/// Where an entry stands.
pub(super) fn place_of(row: &LoggedRow) -> Place {
    Place { epoch: row.epoch.unsigned_abs(), seq: row.seq.unsigned_abs() }
}
