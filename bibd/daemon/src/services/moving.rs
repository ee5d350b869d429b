//! The database handed to another provisioner: `bib admin db move`.
//!
//! Planned here, carried out before the next start ([`bibd_postgres::moving`]), and told here after it.

use std::sync::Arc;

use bib_core::access::Verb;
use bibd_audit::Outcome;
use bibd_postgres::moving::{self, Ended};
use bibd_postgres::{Choice, Error, Settings};
use serde_json::json;

use super::base::{Base, allow_node};
use super::error::ServiceError;
use super::journal::Act;
use crate::actor::Call;
use crate::config::Provisioner;
use crate::errors::ErrorCode;
use crate::foundation::{self, Foundation};

/// The use case. Cheap to clone.
#[derive(Clone)]
pub struct Moving {
    base: Base,
    foundation: Foundation,
    settings: Settings,
}

impl std::fmt::Debug for Moving {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Moving").finish_non_exhaustive()
    }
}

/// What was planned, or would be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Planned {
    /// Who runs the database now.
    pub from: Choice,
    /// Who is to run it.
    pub to: Choice,
    /// The version of PostgreSQL there.
    pub version: String,
    /// Whether `database.provisioner`, as this daemon knows it, lets the next start do it.
    pub is_allowed: bool,
}

impl Moving {
    /// Over the node's server. A move that ended with this start is told in the log now.
    ///
    /// # Errors
    /// When the log cannot be written.
    pub async fn start(foundation: &Foundation, base: Base) -> Result<Self, ServiceError> {
        let settings = foundation::postgres_settings(foundation.config(), &foundation.places, foundation.clock.clone());
        let this = Self { settings: settings.of_node(&base.peer.short()), base, foundation: foundation.clone() };
        this.tell().await?;
        Ok(this)
    }

    async fn tell(&self) -> Result<(), ServiceError> {
        let Some(planned) = moving::read(&self.settings).map_err(ServiceError::internal)? else { return Ok(()) };
        let details = json!({ "from": planned.from.name(), "to": planned.to.name() });
        let outcome = match &planned.ended {
            // Planned by a daemon that was not stopped since.
            None => return Ok(()),
            Some(Ended::Done) => Outcome::Ok,
            Some(Ended::GivenUp(_)) => Outcome::Failed(ErrorCode::POSTGRES_UNAVAILABLE.to_string()),
        };
        let act = Act::new("database.move", "postgres", details);
        self.base.journal.record(&self.base.db, &self.base.internal_call("move"), act, outcome).await?;
        moving::forget(&self.settings).map_err(ServiceError::internal)
    }

    /// Plans a move to `to` for the next start, or says what it would do.
    ///
    /// # Errors
    /// When the caller may not, the database is there already, or could not be run there.
    pub async fn plan(&self, call: &Call, to: &str, dry_run: bool) -> Result<Planned, ServiceError> {
        allow_node(call, Verb::Maintain)?;
        let to = Choice::find(to).ok_or_else(|| {
            let shown: String = to.chars().take(40).collect();
            ServiceError::invalid("to", format!("`{shown}` is no provisioner: there are `process` and `container`"))
        })?;
        let secrets = Arc::new(self.foundation.secrets.clone());
        let random = foundation::randomness(self.foundation.entropy());
        let prospect = moving::examine(to, &self.settings, secrets, random).await.map_err(refused)?;
        let configured = self.foundation.config().database.provisioner;
        let is_allowed = match configured {
            Provisioner::Auto => true,
            Provisioner::Process => to == Choice::Process,
            Provisioner::Container => to == Choice::Container,
            Provisioner::Kubernetes => false,
        };
        if !dry_run {
            let details = json!({ "from": prospect.from.name(), "to": to.name() });
            let act = Act::new("database.move", "postgres", details);
            self.base.journal.record(&self.base.db, call, act, Outcome::Intent).await?;
            moving::plan(prospect.from, to, &self.settings).map_err(ServiceError::internal)?;
        }
        Ok(Planned { from: prospect.from, to, version: prospect.version.to_string(), is_allowed })
    }
}

fn refused(error: Error) -> ServiceError {
    let hint = error.hint().unwrap_or_else(|| "`bibd doctor` on the node looks for the cause".to_owned());
    ServiceError::conflict(ErrorCode::UNMET_CONDITION, format!("the database cannot be moved: {error}"), hint)
}
