//! The pools of database connections, one per role, and how a pool moves to another login without a failed call.
//!
//! New connections use the new login from the moment it is set. Old ones are replaced by whoever moves the pool, one
//! after another: it stands in the queue for a connection as a call does, and what comes out is closed and made anew
//! before it goes back. So a call never waits for a connect of its own, and a pool never lacks more than one connection,
//! also on a machine whose processor has no time. Nobody is turned away: whoever is connecting at the moment of the change
//! is waited for.

use std::collections::BTreeMap;
use std::sync::{Arc, PoisonError, RwLock};
use std::time::{Duration, Instant};

use bibd_catalog::Pools;
use bibd_postgres::receive::{Retained, retained};
use bibd_postgres::rotation::{Moved, sessions, uptime};
use bibd_postgres::{Database, Error, GroupRole};
use sqlx::pool::PoolConnection;
use sqlx::postgres::{PgConnectOptions, PgPool, PgPoolOptions};
use sqlx::{Connection as _, Postgres};

/// How long a call waits for a database connection (security.md, B-STO 11).
const ACQUIRE_TIMEOUT: Duration = Duration::from_secs(5);
/// A connection that was idle for this long is tried before it is used.
const TEST_AFTER_IDLE: Duration = Duration::from_millis(500);
/// The sequencer works alone; the second connection is for its checkpoints.
const SEAL_CONNECTIONS: u32 = 2;
const AUDIT_CONNECTIONS: u32 = 4;
const MONITOR_CONNECTIONS: u32 = 2;

/// Between two looks at a pool that is moving: fine steps first, since usually it is a matter of milliseconds.
const STEP: Duration = Duration::from_millis(5);
const COARSE_STEP: Duration = Duration::from_millis(100);
/// When a connection was made is known to this much only.
const INEXACT: Duration = Duration::from_millis(100);
/// Who has read a login and connects without a pool is given this long to do so.
const GRACE: Duration = Duration::from_millis(250);
/// Sessions of a role without a limit of its own are waited for so long.
const LONGEST_WAIT: Duration = Duration::from_secs(3600);

tokio::task_local! {
    /// Set where a connection is taken out of a pool in order to replace it.
    static REPLACING: ();
}

/// Connections of a pool that were made up to a moment are to be replaced.
#[derive(Debug, Default)]
struct Retired(RwLock<Option<Instant>>);

impl Retired {
    fn up_to(&self, moment: Instant) {
        *self.0.write().unwrap_or_else(PoisonError::into_inner) = Some(moment);
    }

    fn covers(&self, age: Duration) -> bool {
        let retired = *self.0.read().unwrap_or_else(PoisonError::into_inner);
        match (retired, Instant::now().checked_sub(age)) {
            (Some(moment), Some(made)) => made <= moment,
            _ => false,
        }
    }

    /// Whether a connection of this age is to be replaced by who has just taken it.
    fn is_replaced(&self, age: Duration) -> bool {
        REPLACING.try_with(|()| ()).is_ok() && self.covers(age)
    }
}

#[derive(Debug)]
struct RolePool {
    group: GroupRole,
    pool: PgPool,
    retired: Arc<Retired>,
}

impl RolePool {
    fn open(group: GroupRole, size: u32, database: &Database) -> Result<Self, Error> {
        let retired = Arc::<Retired>::default();
        let retirement = Arc::clone(&retired);
        let builder = PgPoolOptions::new()
            .max_connections(size)
            .acquire_timeout(ACQUIRE_TIMEOUT)
            .test_before_acquire(false)
            // A busy pool pays nothing; after a crash of the server, which takes longer than this to recover from, the
            // dead connections are found and replaced before a call gets one.
            .before_acquire(move |connection, meta| {
                let is_replaced = retirement.is_replaced(meta.age);
                Box::pin(async move {
                    if !is_replaced && meta.idle_for >= TEST_AFTER_IDLE {
                        connection.ping().await?;
                    }
                    Ok(!is_replaced)
                })
            });
        let pool = builder.connect_lazy_with(prepared(database.connect_options(group)?));
        Ok(Self { group, pool, retired })
    }

    /// Takes as many connections out as there are, one after another, and lets them come back: one that is retired comes
    /// back as a new one. The pool hands out the one that waited longest, so that this meets each about once.
    async fn replace(&self) {
        for _ in 0..self.pool.size() {
            match REPLACING.scope((), self.pool.acquire()).await {
                Ok(connection) => drop(connection),
                Err(error) => return tracing::debug!(error.cause = %error, "no connection to replace"),
            }
        }
    }
}

/// Statements are few, prepared once for each connection, and all served by indexes: planning one of them anew for its
/// values costs more than running it.
fn prepared(options: PgConnectOptions) -> PgConnectOptions {
    options.options([("plan_cache_mode", "force_generic_plan")])
}

/// The pools of the daemon. Cheap to clone.
#[derive(Debug, Clone)]
pub struct RolePools(Arc<Vec<RolePool>>);

impl RolePools {
    /// Pools with the least that each needs, `connections` of them for use cases; connects when first used.
    ///
    /// # Errors
    /// When the logins cannot be read.
    pub fn open(database: &Database, connections: u32) -> Result<(Self, Pools), Error> {
        let service = RolePool::open(GroupRole::Service, connections, database)?;
        let seal = RolePool::open(GroupRole::Seal, SEAL_CONNECTIONS, database)?;
        let audit = RolePool::open(GroupRole::Audit, AUDIT_CONNECTIONS, database)?;
        let monitor = RolePool::open(GroupRole::Monitor, MONITOR_CONNECTIONS, database)?;
        let pools = Pools {
            service: service.pool.clone(),
            seal: seal.pool.clone(),
            audit: audit.pool.clone(),
            monitor: monitor.pool.clone(),
        };
        Ok((Self(Arc::new(vec![service, seal, audit, monitor])), pools))
    }

    /// Moves the pools to other logins. Returns when nobody is in a former one, or has been there for longer than a
    /// transaction of its role may last.
    pub async fn move_over(&self, moved: Vec<Moved>) {
        let begun = Instant::now();
        let mut moving = Vec::new();
        let mut formers = Vec::new();
        for one in moved {
            formers.push((one.former, patience(one.group)));
            if let Some(role) = self.0.iter().find(|role| role.group == one.group) {
                let before = role.pool.connect_options();
                role.pool.set_connect_options(prepared(one.options));
                moving.push((role, before));
            }
        }
        // Whoever is connecting with the former options holds them. A connect does not outlive the call's patience.
        let is_connecting = || moving.iter().any(|(_, before)| Arc::strong_count(before) > 1);
        while is_connecting() && begun.elapsed() < ACQUIRE_TIMEOUT {
            tokio::time::sleep(STEP).await;
        }
        let retired_at = retire(&moving);
        let mut is_retired_again = false;
        tokio::time::sleep(GRACE.saturating_sub(begun.elapsed())).await;
        loop {
            for (role, _) in &moving {
                role.replace().await;
            }
            let waited = begun.elapsed();
            // When the database does not say, they are taken to be there.
            let inside = self.sessions().await.ok();
            let is_waited_for = |(login, patience): &(String, Duration)| {
                inside.as_ref().is_none_or(|inside| inside.contains_key(login)) && waited < *patience
            };
            if !formers.iter().any(is_waited_for) {
                return;
            }
            // One that was made in the wrong moment, by a clock that is not exact.
            if !is_retired_again && retired_at.elapsed() > Duration::from_secs(1) {
                is_retired_again = true;
                retire(&moving);
            }
            tokio::time::sleep(if waited < Duration::from_secs(1) { STEP } else { COARSE_STEP }).await;
        }
    }

    /// Sessions of every login that has one.
    ///
    /// # Errors
    /// When the database does not answer.
    pub async fn sessions(&self) -> Result<BTreeMap<String, u64>, Error> {
        sessions(&mut *self.monitor().await?).await
    }

    /// How long the server has been running.
    ///
    /// # Errors
    /// When the database does not answer.
    pub async fn uptime(&self) -> Result<Duration, Error> {
        uptime(&mut *self.monitor().await?).await
    }

    /// What the database keeps of its log for who receives it; nothing where nobody does.
    ///
    /// # Errors
    /// When the database does not answer.
    pub async fn retained(&self) -> Result<Option<Retained>, Error> {
        retained(&mut *self.monitor().await?).await
    }

    async fn monitor(&self) -> Result<PoolConnection<Postgres>, Error> {
        let role = self.0.iter().find(|role| role.group == GroupRole::Monitor).expect("`open` makes this pool");
        role.pool.acquire().await.map_err(|source| Error::Sql { what: "find a connection", source })
    }
}

/// Every connection of these pools is to be replaced.
fn retire<T>(pools: &[(&RolePool, T)]) -> Instant {
    let now = Instant::now();
    pools.iter().for_each(|(role, _)| role.retired.up_to(now + INEXACT));
    now
}

/// How long a session may be in the middle of something.
fn patience(group: GroupRole) -> Duration {
    match group.limits().transaction_s {
        0 => LONGEST_WAIT,
        seconds => Duration::from_secs(u64::from(seconds)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_made_before_is_retired_and_what_comes_after_is_not() {
        let retired = Retired::default();
        assert!(!retired.covers(Duration::ZERO) && !retired.covers(Duration::from_secs(5)));
        retired.up_to(Instant::now() + INEXACT);
        assert!(retired.covers(Duration::ZERO) && retired.covers(Duration::from_secs(5)));
        retired.up_to(Instant::now().checked_sub(Duration::from_secs(10)).unwrap());
        assert!(!retired.covers(Duration::from_secs(5)) && retired.covers(Duration::from_secs(15)));
    }

    #[test]
    fn only_the_mover_replaces() {
        let retired = Retired::default();
        retired.up_to(Instant::now() + INEXACT);
        assert!(
            !retired.is_replaced(Duration::ZERO) && REPLACING.sync_scope((), || retired.is_replaced(Duration::ZERO))
        );
    }

    #[test]
    fn a_backup_is_waited_for_longest() {
        assert_eq!(patience(GroupRole::Backup), LONGEST_WAIT);
        assert!(GroupRole::ALL.into_iter().all(|group| patience(group) >= Duration::from_secs(60)));
    }
}
