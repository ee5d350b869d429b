//! The PostgreSQL checklist: `bib admin db audit`.

use std::sync::Arc;

use bib_core::access::Verb;
use bibd_audit::Outcome;
use bibd_postgres::checklist::{self, Expected, Finding, Status};
use bibd_postgres::{Error, ManagedPostgres};
use serde_json::json;

use super::base::{Base, allow_node};
use super::error::ServiceError;
use super::journal::Act;
use crate::actor::Call;
use crate::errors::ErrorCode;
use crate::foundation::Foundation;

/// Every role against every table, as the migrations of this release make them.
const ROLES: &str = include_str!("../../../catalog/golden/roles.txt");

/// The use case. Cheap to clone.
#[derive(Clone)]
pub struct DatabaseAudit {
    base: Base,
    postgres: Arc<dyn ManagedPostgres>,
}

impl std::fmt::Debug for DatabaseAudit {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("DatabaseAudit").finish_non_exhaustive()
    }
}

impl DatabaseAudit {
    /// Over the node's server.
    #[must_use]
    pub fn new(foundation: &Foundation, base: Base) -> Self {
        Self { base, postgres: Arc::clone(&foundation.postgres) }
    }

    /// Asks the server every item of the checklist. What is wrong is a finding, not an error.
    ///
    /// # Errors
    /// When the caller may not, or a question cannot be asked: never taken for an answer.
    pub async fn run(&self, call: &Call) -> Result<Vec<Finding>, ServiceError> {
        allow_node(call, Verb::DatabaseAudit)?;
        let facts = self.postgres.facts().await.map_err(unanswered)?;
        let mut monitor = self.base.db.monitor().acquire().await.map_err(|error| {
            tracing::warn!(error.cause = %error, "the checklist found no connection");
            ServiceError::unavailable(ErrorCode::DATABASE_UNAVAILABLE, "the database does not answer at the moment")
        })?;
        let expected = Expected { matrix: Some(ROLES.to_owned()) };
        let findings = checklist::audit(&mut monitor, &facts, &expected).await.map_err(unanswered)?;
        drop(monitor);
        let failed: Vec<_> = findings.iter().filter(|f| f.status == Status::Fail).map(|f| f.item).collect();
        let details = json!({ "items": findings.len(), "failed": failed });
        let act = Act::new("database.audit", "postgres", details);
        self.base.journal.record(&self.base.db, call, act, Outcome::Ok).await?;
        Ok(findings)
    }
}

fn unanswered(error: Error) -> ServiceError {
    ServiceError::internal(error)
}
