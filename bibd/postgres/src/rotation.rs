//! Rotation: every login role and the superuser get new passwords while everybody goes on working.
//!
//! A group role has two logins. The idle one is given a password and opened, whoever uses the pair moves over, and the
//! former one is closed once nobody is in it. What is to come is sealed and synced before the server hears of it, so
//! that a process may die anywhere: the next start, or the next rotation, goes forward from there ([`Failpoints`] names
//! the places). The superuser has no pair; until its new password is settled, both are known and either is tried.
//!
//! Start reading at [`Database::rotate`].

use std::collections::BTreeMap;
use std::future::Future;
use std::time::Duration;

use futures::FutureExt as _;
use secrecy::SecretString;
use sqlx::postgres::{PgConnectOptions, PgConnection};
use sqlx::{Connection as _, Row as _};

use crate::database::{Database, login_of};
use crate::ensure::{self, LoginPlan};
use crate::error::Error;
use crate::role::{ADMIN, DATABASE, GroupRole};
use crate::scram;
use crate::secrets::DbSecrets;
use crate::superuser::{Act, silent};

#[cfg(doc)]
use crate::failpoints::Failpoints;

/// How long a new login may take to be let in.
const TRY_DEADLINE: Duration = Duration::from_secs(5);

/// Whose credentials.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Which {
    /// Group roles.
    pub groups: Vec<GroupRole>,
    /// The bootstrap superuser.
    pub superuser: bool,
}

impl Which {
    /// Everybody's.
    pub fn all() -> Self {
        Self { groups: GroupRole::ALL.to_vec(), superuser: true }
    }
}

/// A pair that is to be used by its other login from now on. Deliberately without `Debug`: the options print their
/// password.
pub struct Moved {
    /// The group role.
    pub group: GroupRole,
    /// The login that is closed when [`Database::rotate`]'s caller says that nobody uses it.
    pub former: String,
    /// How to connect from now on.
    pub options: PgConnectOptions,
}

/// The credentials of one role.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Credentials {
    /// The group role; `None` for the superuser.
    pub group: Option<GroupRole>,
    /// The login in use.
    pub login: String,
    /// When its password was made, in seconds since 1970; for a database of an older release when it was first seen.
    pub since_s: Option<i64>,
}

impl Database {
    /// Gives these roles new passwords, and those whose rotation was interrupted. `move_over` makes everybody use the
    /// new logins and returns when nobody is left in the former ones, or it is not worth waiting any longer: what is
    /// then left is ended. `now_s` is in seconds since 1970.
    ///
    /// Fails without harm: the former logins still work, or the new ones do already. Called again, also with nothing,
    /// it finishes what was begun; so does [`ensure_roles`](Self::ensure_roles).
    ///
    /// # Errors
    /// [`Error::SecretStore`], [`Error::NotRecorded`], [`Error::Sql`], [`Error::Deadline`].
    pub async fn rotate<F, Fut>(&self, which: &Which, now_s: i64, move_over: F) -> Result<Which, Error>
    where
        F: FnOnce(Vec<Moved>) -> Fut,
        Fut: Future<Output = ()>,
    {
        let _one_at_a_time = self.changing.lock().await;
        let mut secrets = self.intend(which, now_s).await?;
        let planned = secrets.planned();
        let done = Which {
            groups: planned.iter().map(|(group, _, _)| *group).collect(),
            superuser: secrets.admin_next().is_some(),
        };
        if done != Which::default() {
            let formers: Vec<String> = former_logins(&secrets, &done.groups)?;
            self.open(&secrets).await?;
            self.failpoints.hit("rotate.opened");
            secrets.promote();
            secrets.promote_admin();
            let moved = self.moved(&secrets, &done.groups, formers)?;
            for one in &moved {
                try_login(&one.options).await?;
            }
            secrets = self.sealed(secrets).await?;
            self.failpoints.hit("rotate.stored");
            move_over(moved).await;
            self.failpoints.hit("rotate.moved");
        }
        let idle = LoginPlan::new(&secrets)?.idle();
        drop(secrets);
        self.superuser
            .act(Act::CloseRotation, DATABASE, move |connection| {
                async move { ensure::close_logins(connection, &idle).await }.boxed()
            })
            .await?;
        self.failpoints.hit("rotate.closed");
        Ok(done)
    }

    /// Dates passwords whose age nobody knows, at the start of a daemon, so that they come of age.
    ///
    /// # Errors
    /// [`Error::SecretsMissing`], [`Error::SecretStore`].
    pub async fn date_passwords(&self, now_s: i64) -> Result<(), Error> {
        let _one_at_a_time = self.changing.lock().await;
        let mut secrets = self.read()?;
        if secrets.date(now_s) {
            self.sealed(secrets).await?;
        }
        Ok(())
    }

    /// The login in use of every role and how old its password is; the superuser last.
    ///
    /// # Errors
    /// [`Error::SecretsMissing`], [`Error::SecretStore`] and others of the document.
    pub fn credentials(&self) -> Result<Vec<Credentials>, Error> {
        let secrets = self.read()?;
        let mut all = Vec::new();
        for group in GroupRole::ALL {
            let role = secrets.role(group)?;
            let login = group.login_name(role.active);
            all.push(Credentials { group: Some(group), login, since_s: role.secret.since_s });
        }
        all.push(Credentials { group: None, login: ADMIN.to_owned(), since_s: secrets.admin_since_s() });
        Ok(all)
    }

    fn read(&self) -> Result<DbSecrets, Error> {
        DbSecrets::read(self.secrets.as_ref())?.ok_or(Error::SecretsMissing)
    }

    /// Decides the passwords to come and makes them durable.
    async fn intend(&self, which: &Which, now_s: i64) -> Result<DbSecrets, Error> {
        let mut secrets = self.read()?;
        for group in &which.groups {
            secrets.plan(*group, &self.random, now_s);
        }
        if which.superuser {
            secrets.plan_admin(&self.random, now_s);
        }
        if *which == Which::default() {
            return Ok(secrets);
        }
        let secrets = self.sealed(secrets).await?;
        self.failpoints.hit("rotate.intent");
        Ok(secrets)
    }

    /// Tells the server.
    async fn open(&self, secrets: &DbSecrets) -> Result<(), Error> {
        let mut passwords: Vec<(String, SecretString)> = secrets
            .planned()
            .into_iter()
            .map(|(group, letter, password)| (group.login_name(letter), password))
            .collect();
        if let Some(next) = secrets.admin_next()
            && !self.server.give_superuser(next).await?
        {
            passwords.push((ADMIN.to_owned(), next.clone()));
        }
        let random = self.random.clone();
        // Tens of milliseconds of hashing.
        let verifiers: Vec<(String, SecretString)> = blocking(move || {
            passwords.into_iter().map(|(name, password)| (name, scram::verifier(&password, &random))).collect()
        })
        .await;
        self.superuser
            .act(Act::OpenRotation, DATABASE, move |connection| {
                async move { ensure::open_logins(connection, &verifiers).await }.boxed()
            })
            .await
    }

    fn moved(&self, secrets: &DbSecrets, groups: &[GroupRole], formers: Vec<String>) -> Result<Vec<Moved>, Error> {
        let one = |(group, former): (&GroupRole, String)| {
            let options = self.server.connect_options(&login_of(secrets, *group)?);
            Ok(Moved { group: *group, former, options })
        };
        groups.iter().zip(formers).map(one).collect()
    }

    /// Seals the document away from the asynchronous threads: it waits for the disk.
    async fn sealed(&self, secrets: DbSecrets) -> Result<DbSecrets, Error> {
        let store = self.secrets.clone();
        blocking(move || secrets.write(store.as_ref()).map(|()| secrets)).await
    }
}

fn former_logins(secrets: &DbSecrets, groups: &[GroupRole]) -> Result<Vec<String>, Error> {
    groups.iter().map(|group| Ok(group.login_name(secrets.role(*group)?.active))).collect()
}

/// Nobody is sent to a login before somebody was let in.
async fn try_login(options: &PgConnectOptions) -> Result<(), Error> {
    const WHAT: &str = "try a new login";
    let options = silent(options.clone());
    let connection = tokio::time::timeout(TRY_DEADLINE, PgConnection::connect_with(&options))
        .await
        .map_err(|_| Error::Deadline { what: WHAT, deadline: TRY_DEADLINE })?
        .map_err(Error::sql(WHAT))?;
    // It was let in: a failure to say goodbye changes nothing.
    let _ = connection.close().await;
    Ok(())
}

async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> T {
    match tokio::task::spawn_blocking(work).await {
        Ok(done) => done,
        Err(error) => match error.try_into_panic() {
            Ok(panic) => std::panic::resume_unwind(panic),
            // Cancelled before it began: the runtime ends, and this future with it.
            Err(_) => std::future::pending().await,
        },
    }
}

/// Sessions of every login that has one, asked as `bibd_monitor`. Those that receive the log do not count: nobody waits
/// for their end, and they come back by themselves.
///
/// # Errors
/// [`Error::Sql`].
pub async fn sessions(monitor: &mut PgConnection) -> Result<BTreeMap<String, u64>, Error> {
    let rows = sqlx::query(
        "SELECT usename::text, count(*)
         FROM pg_stat_activity
         WHERE usename IS NOT NULL
           AND application_name IS DISTINCT FROM $1
         GROUP BY usename",
    )
    .bind(crate::receive::APPLICATION)
    .fetch_all(monitor)
    .await
    .map_err(Error::sql("count the sessions"))?;
    Ok(rows.iter().map(|row| (row.get(0), u64::try_from(row.get::<i64, _>(1)).unwrap_or_default())).collect())
}

/// How long the server has been running, by its own clock, asked as `bibd_monitor`.
///
/// # Errors
/// [`Error::Sql`].
pub async fn uptime(monitor: &mut PgConnection) -> Result<Duration, Error> {
    let seconds: i64 =
        sqlx::query_scalar("SELECT extract(epoch FROM clock_timestamp() - pg_postmaster_start_time())::bigint")
            .fetch_one(monitor)
            .await
            .map_err(Error::sql("ask how long the server runs"))?;
    Ok(Duration::from_secs(u64::try_from(seconds).unwrap_or_default()))
}
