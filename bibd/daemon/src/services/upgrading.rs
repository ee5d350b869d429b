//! The database carried over to a newer major version of PostgreSQL: `bib admin db upgrade`.
//!
//! Planned here, carried out before the next start ([`bibd_postgres::upgrading`]), and told here after it.

use std::sync::Arc;

use bib_core::PeerId;
use bib_core::access::Verb;
use bibd_audit::{CheckpointFile, Outcome};
use bibd_postgres::moving::Ended;
use bibd_postgres::upgrading::{Prospect, Upgrader};
use bibd_postgres::{Database, Error, Failpoints, OnNewDirectory};
use serde_json::json;
use tokio::sync::{Mutex, MutexGuard};

use super::audit::judge;
use super::base::{Base, allow_node};
use super::error::ServiceError;
use super::journal::Act;
use crate::actor::Call;
use crate::config::{Config, Places};
use crate::errors::ErrorCode;
use crate::foundation::{self, Foundation};
use crate::grpc::error::chain;
use crate::grpc::health::Condition;
use crate::inheritance::Inheritance;

/// The use cases. Cheap to clone.
#[derive(Clone)]
pub struct Upgrading {
    base: Base,
    upgrader: Upgrader,
    database: Arc<Database>,
    /// What stays free whatever is done.
    reserve_bytes: u64,
    one_at_a_time: Arc<Mutex<()>>,
}

impl std::fmt::Debug for Upgrading {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Upgrading").finish_non_exhaustive()
    }
}

/// Carries out what is planned, before PostgreSQL starts. The new database's audit log is read whole before it takes the
/// old one's place.
///
/// # Errors
/// [`Upgrader::carry_out`].
pub(crate) async fn carry_out(
    upgrader: Upgrader,
    failpoints: &Failpoints,
    config: &Config,
    peer: &PeerId,
    places: &Places,
) -> Result<(), Error> {
    let upgrader = upgrader.with_failpoints(failpoints.clone());
    upgrader.carry_out(|database| look(database, config, peer, places)).await
}

async fn look(database: Database, config: &Config, peer: &PeerId, places: &Places) -> Result<(), String> {
    let db = foundation::open_pools(config, &database).map_err(|error| chain(&error))?;
    let checkpoints = CheckpointFile::new(&places.checkpoints);
    // Whom the node follows, also when the database hears of it only at the end of this start.
    let judged = match Inheritance::load_with(&db, &places.data).await {
        Ok(inheritance) => judge(&db, peer, &inheritance, &checkpoints, |_, _| async { true }).await,
        Err(error) => Err(ServiceError::internal(error)),
    };
    db.close().await;
    // Also when this release expects other tables: a start of it on the old database brings them.
    let judged = judged.map_err(|error| format!("its audit log cannot be verified: {}", chain(&error)))?;
    match judged.words() {
        ("TAMPERED", why) => Err(format!("its audit log is TAMPERED: {why}")),
        (verdict, why) => {
            tracing::info!(verdict, "the audit log in the new database: {why}");
            Ok(())
        }
    }
}

impl Upgrading {
    /// Over the node's server. An upgrade that ended with this start is told in the log now.
    ///
    /// # Errors
    /// When the log cannot be written.
    pub async fn start(foundation: &Foundation, base: Base) -> Result<Self, ServiceError> {
        let config = foundation.config();
        let mut settings = foundation::postgres_settings(config, &foundation.places, foundation.clock.clone())
            .of_node(&base.peer.short());
        let at_rest = foundation.at_rest.clone();
        settings.on_new_directory = OnNewDirectory::new(move |path| at_rest.adopt(path));
        let random = foundation::randomness(foundation.entropy());
        let (secrets, observer) = (Arc::new(foundation.secrets.clone()), Arc::clone(&foundation.superuser_uses));
        let this = Self {
            base,
            upgrader: Upgrader::new(settings, secrets, observer, random),
            database: Arc::clone(&foundation.database),
            reserve_bytes: config.limits.min_free_bytes.0,
            one_at_a_time: Arc::default(),
        };
        this.tell(foundation).await?;
        Ok(this)
    }

    async fn tell(&self, foundation: &Foundation) -> Result<(), ServiceError> {
        let Some(upgrade) = self.upgrader.read().map_err(ServiceError::internal)? else { return Ok(()) };
        let outcome = match &upgrade.ended {
            // Planned by a daemon that was not stopped since.
            None => return Ok(()),
            Some(Ended::Done) => {
                if foundation.config().backup.store.is_some() {
                    // The log of the new cluster continues no backup of the old one.
                    let sentence = "PostgreSQL was upgraded: no backup leads beyond that until the next one is made";
                    foundation.health.set("backup", Condition::Degraded(sentence.to_owned()));
                }
                Outcome::Ok
            }
            Some(Ended::GivenUp(_)) => Outcome::Failed(ErrorCode::POSTGRES_UNAVAILABLE.to_string()),
        };
        let act = Act::new("database.upgrade", "postgres", json!({ "from": upgrade.from, "to": upgrade.to }));
        self.base.journal.record(&self.base.db, &self.base.internal_call("upgrade"), act, outcome).await?;
        self.upgrader.forget().map_err(ServiceError::internal)
    }

    fn alone(&self) -> Result<MutexGuard<'_, ()>, ServiceError> {
        self.one_at_a_time
            .try_lock()
            .map_err(|_| ServiceError::unavailable(ErrorCode::BUSY, "another upgrade is being planned"))
    }

    /// What an upgrade to `to`, or else to the newest version that is here, would do. The programs are tried.
    ///
    /// # Errors
    /// When the caller may not, or it could not be done: with the reason.
    pub async fn examine(&self, call: &Call, to: Option<u32>) -> Result<Prospect, ServiceError> {
        allow_node(call, Verb::Maintain)?;
        let _alone = self.alone()?;
        self.upgrader.examine(&self.database, to, self.reserve_bytes).await.map_err(refused)
    }

    /// Plans an upgrade for the next start.
    ///
    /// # Errors
    /// As [`examine`](Self::examine).
    pub async fn plan(&self, call: &Call, to: Option<u32>) -> Result<Prospect, ServiceError> {
        allow_node(call, Verb::Maintain)?;
        let _alone = self.alone()?;
        let prospect = self.upgrader.examine(&self.database, to, self.reserve_bytes).await.map_err(refused)?;
        let details = json!({ "from": prospect.from.major, "to": prospect.to.major });
        self.record(call, details, Outcome::Intent).await?;
        self.upgrader.plan(&prospect).map_err(ServiceError::internal)?;
        Ok(prospect)
    }

    /// Takes back what is planned.
    ///
    /// # Errors
    /// When the caller may not, or nothing is planned.
    pub async fn cancel(&self, call: &Call) -> Result<(), ServiceError> {
        allow_node(call, Verb::Maintain)?;
        let _alone = self.alone()?;
        let Some(upgrade) = self.upgrader.read().map_err(ServiceError::internal)? else {
            let hint = "`bib admin db upgrade` plans one";
            return Err(ServiceError::conflict(ErrorCode::UNMET_CONDITION, "no upgrade is planned", hint));
        };
        let details = json!({ "from": upgrade.from, "to": upgrade.to, "cancelled": true });
        self.record(call, details, Outcome::Ok).await?;
        self.upgrader.forget().map_err(ServiceError::internal)
    }

    /// Removes the database that the last upgrade replaced. Returns what it took, bytes.
    ///
    /// # Errors
    /// When the caller may not, there is none, or it cannot be removed.
    pub async fn remove_old(&self, call: &Call) -> Result<u64, ServiceError> {
        allow_node(call, Verb::Maintain)?;
        let _alone = self.alone()?;
        if self.upgrader.kept().map_err(ServiceError::internal)?.is_empty() {
            return Err(refused(Error::NothingKept));
        }
        self.record(call, json!({ "removed_old": true }), Outcome::Intent).await?;
        let upgrader = self.upgrader.clone();
        let removed = tokio::task::spawn_blocking(move || upgrader.remove_kept()).await;
        let removed = removed.map_err(ServiceError::internal)?;
        let outcome = match &removed {
            Ok(_) => Outcome::Ok,
            Err(_) => Outcome::Failed(ErrorCode::POSTGRES_UNAVAILABLE.to_string()),
        };
        self.record(call, json!({ "removed_old": true }), outcome).await?;
        removed.map_err(refused)
    }

    async fn record(&self, call: &Call, details: serde_json::Value, outcome: Outcome) -> Result<(), ServiceError> {
        let act = Act::new("database.upgrade", "postgres", details);
        self.base.journal.record(&self.base.db, call, act, outcome).await.map(drop)
    }
}

fn refused(error: Error) -> ServiceError {
    let hint = error.hint().unwrap_or_else(|| "`bibd doctor` on the node looks for the cause".to_owned());
    ServiceError::conflict(ErrorCode::UNMET_CONDITION, chain(&error), hint)
}
