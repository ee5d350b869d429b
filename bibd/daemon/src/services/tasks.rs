//! The background tasks of the services: reconcilers that read the state and do the difference, woken by a timer.

use std::error::Error;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bibd_audit::{CheckpointFile, Outcome};
use bibd_catalog::node;
use serde_json::json;

use super::base::Base;
use super::error::ServiceError;
use super::grant::GrantUseCases;
use super::journal::Act;
use super::sequencer::Sequencer;
use super::topic::TopicUseCases;
use crate::foundation::{Foundation, SuperuserUses};
use crate::supervisor::{Policy, TaskKind};

/// How often grants are looked at for renewal, and old answers forgotten.
const DAILY_ROUND: Duration = Duration::from_secs(60 * 60);

/// How soon a use of the superuser stands in the audit log.
const SUPERUSER_ROUND: Duration = Duration::from_secs(2);

/// First answers to repeated requests are kept for a day.
const ANSWER_SECONDS: i64 = 24 * 60 * 60;

/// Starts the tasks. What was committed and not sealed before the daemon stopped is sealed when this returns.
///
/// # Errors
/// When the audit log cannot be taken up.
pub async fn start(foundation: &Foundation, base: &Base) -> Result<(), Box<dyn Error + Send + Sync>> {
    sequencer(foundation, base).await?;
    write_migrations(foundation, base).await?;
    let (uses, for_uses) = (Arc::clone(&foundation.superuser_uses), base.clone());
    foundation.supervisor.spawn(TaskKind::Background, Policy::RestartWithBackoff, "superuser-uses", move |stop| {
        let (uses, base) = (Arc::clone(&uses), for_uses.clone());
        async move {
            loop {
                write_uses(&base, &uses).await?;
                if stop.run_until_cancelled(tokio::time::sleep(SUPERUSER_ROUND)).await.is_none() {
                    return Ok(write_uses(&base, &uses).await?);
                }
            }
        }
    });
    let for_rounds = base.clone();
    foundation.supervisor.spawn(TaskKind::Background, Policy::RestartWithBackoff, "housekeeping", move |stop| {
        let base = for_rounds.clone();
        async move {
            let grants = GrantUseCases::new(base.clone(), TopicUseCases::new(base.clone()));
            loop {
                grants.renew().await?;
                forget_answers(&base).await?;
                if stop.run_until_cancelled(tokio::time::sleep(DAILY_ROUND)).await.is_none() {
                    return Ok(());
                }
            }
        }
    });
    Ok(())
}

/// The first sequencer is started here, so that nothing is served before the log stands; later ones by the supervisor.
async fn sequencer(foundation: &Foundation, base: &Base) -> Result<(), Box<dyn Error + Send + Sync>> {
    let every = Duration::from_secs(u64::from(foundation.config().audit.checkpoint_seconds));
    let file = CheckpointFile::new(&foundation.places.checkpoints);
    let first = Arc::new(Mutex::new(Some(Sequencer::start(base.clone(), file.clone(), every).await?)));
    let base = base.clone();
    foundation.supervisor.spawn(TaskKind::Background, Policy::RestartWithBackoff, "sequencer", move |stop| {
        let ready = first.lock().unwrap_or_else(PoisonError::into_inner).take();
        let (base, file) = (base.clone(), file.clone());
        async move {
            let sequencer = match ready {
                Some(sequencer) => sequencer,
                None => Sequencer::start(base, file, every).await?,
            };
            sequencer.run(stop).await
        }
    });
    Ok(())
}

/// A change of the schema is an entry.
async fn write_migrations(foundation: &Foundation, base: &Base) -> Result<(), ServiceError> {
    let migrated = &foundation.migrated;
    let (Some(first), Some(last)) = (migrated.first(), migrated.last()) else { return Ok(()) };
    let call = base.internal_call("postgres");
    let names: Vec<&str> = migrated.iter().map(|applied| applied.name).collect();
    let details = json!({ "from": first.version - 1, "migrations": names });
    let act = Act::new("database.migrate", format!("schema:{}", last.version), details);
    base.journal.record(&base.db, &call, act, Outcome::Ok).await.map(|_| ())
}

/// Each use of the database's superuser is an entry.
async fn write_uses(base: &Base, uses: &SuperuserUses) -> Result<(), ServiceError> {
    for used in uses.take() {
        let call = base.internal_call("postgres");
        let details = json!({
            "act": used.act.name(),
            "lived_ms": u64::try_from(used.lived.as_millis()).unwrap_or(u64::MAX),
            "succeeded": used.succeeded,
        });
        let tx = base.begin(&call, "postgres").await?;
        base.journal.commit(tx, &call, Act::new("superuser.open", "database", details)).await?;
    }
    Ok(())
}

async fn forget_answers(base: &Base) -> Result<(), ServiceError> {
    let call = base.internal_call("housekeeping");
    let mut tx = base.begin(&call, "housekeeping").await?;
    node::forget_answers(&mut tx, base.now().plus_seconds(-ANSWER_SECONDS)).await?;
    Ok(tx.commit().await?)
}
