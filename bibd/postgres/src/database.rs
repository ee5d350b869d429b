//! The database `bib` on a managed server: its roles, their logins, and the door for migrations.
//!
//! Owns the roles and their passwords. Does not own the tables: migrations make them, as [`MIGRATE`] with
//! `SET ROLE bibd_owner`, and grant on them. Start reading at [`Database::ensure_roles`].

use std::future::Future;
use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use futures::FutureExt as _;
use secrecy::ExposeSecret as _;
use sqlx::postgres::PgConnectOptions;
use tokio::sync::Mutex;
use tokio::time::Instant;

use crate::error::Error;
use crate::failpoints::Failpoints;
use crate::provisioner::ManagedPostgres;
use crate::random::Randomness;
use crate::role::{DATABASE, GroupRole, Login, MIGRATE};
use crate::secrets::{DbSecrets, SecretStore};
use crate::superuser::{Act, PrivilegedObserver, Superuser, silent};
use crate::{ensure, scram};

/// The database of a running [`ManagedPostgres`].
#[derive(Clone)]
pub struct Database {
    pub(crate) server: Arc<dyn ManagedPostgres>,
    pub(crate) secrets: Arc<dyn SecretStore>,
    pub(crate) superuser: Superuser,
    pub(crate) random: Randomness,
    /// Whoever changes the document reads it, changes it and writes it: one at a time, the lock held while they wait.
    pub(crate) changing: Arc<Mutex<()>>,
    pub(crate) failpoints: Failpoints,
    /// Whether the server has read its certificates since this process began.
    has_reloaded: Arc<AtomicBool>,
}

impl Database {
    /// The database on `server`, with passwords from `secrets`. Connects to nothing yet.
    pub fn new(
        server: Arc<dyn ManagedPostgres>,
        secrets: Arc<dyn SecretStore>,
        observer: Arc<dyn PrivilegedObserver>,
        random: Randomness,
    ) -> Self {
        let superuser = Superuser::new(server.clone(), secrets.clone(), observer);
        let (changing, failpoints, has_reloaded) = (Arc::default(), Failpoints::default(), Arc::default());
        Self { server, secrets, superuser, random, changing, failpoints, has_reloaded }
    }

    /// With a hook between the steps of a rotation, for tests.
    #[must_use]
    pub fn with_failpoints(self, failpoints: Failpoints) -> Self {
        Self { failpoints, ..self }
    }

    /// Creates or repairs the database, the roles, their logins, settings, limits and memberships, and takes from
    /// PUBLIC what it should not have. Idempotent; also closes a migration's login that a crash left open, and finishes a
    /// rotation that was interrupted. For the start of a daemon: sessions of logins that are not in use are ended.
    /// At most ten seconds of superuser for each of the two databases it touches.
    ///
    /// # Errors
    /// [`Error::SecretsMissing`], [`Error::OtherCluster`], [`Error::Sql`] and others.
    pub async fn ensure_roles(&self) -> Result<(), Error> {
        let version = self.server.version().await?;
        let _one_at_a_time = self.changing.lock().await;
        let mut secrets = DbSecrets::read(self.secrets.as_ref())?.ok_or(Error::SecretsMissing)?;
        // Durable before the server hears of it, so that a crash in between loses no password.
        if secrets.complete(&self.random) | secrets.promote() {
            secrets.write(self.secrets.as_ref())?;
        }
        let random = self.random.clone();
        let logins = ensure::LoginPlan::new(&secrets)?;
        let admin_next = match secrets.admin_next() {
            Some(next) if self.server.give_superuser(next).await? => None,
            next => next.cloned(),
        };
        self.superuser
            .act(Act::EnsureRoles, "postgres", move |connection| {
                async move { ensure::cluster(connection, version, &logins, admin_next.as_ref(), &random).await }.boxed()
            })
            .await?;
        // The other way round: the former password works until the server has taken the next one.
        if secrets.promote_admin() {
            secrets.write(self.secrets.as_ref())?;
        }
        self.superuser.act(Act::EnsureRoles, DATABASE, move |connection| ensure::database(connection).boxed()).await
    }

    /// The login in use of `group`, its password unsealed now.
    ///
    /// # Errors
    /// [`Error::SecretsMissing`], [`Error::SecretStore`] and others of the document.
    pub fn login(&self, group: GroupRole) -> Result<Login, Error> {
        let secrets = DbSecrets::read(self.secrets.as_ref())?.ok_or(Error::SecretsMissing)?;
        login_of(&secrets, group)
    }

    /// Connection options of [`login`](Self::login). They print the password under `Debug`: never print them.
    ///
    /// # Errors
    /// As [`login`](Self::login).
    pub fn connect_options(&self, group: GroupRole) -> Result<PgConnectOptions, Error> {
        Ok(self.server.connect_options(&self.login(group)?))
    }

    /// Opens the migrations' login with a password made for this one time, runs `migrate` with its connection
    /// options, and closes it again: also when `migrate` fails or panics. Should the process die in between, the
    /// login expires within an hour and [`ensure_roles`](Self::ensure_roles) closes it at the next start; the same
    /// holds when this future is dropped.
    ///
    /// Migrations must `SET ROLE bibd_owner`: the login itself owns and may nothing.
    ///
    /// # Errors
    /// The outer error is ours, the inner one is `migrate`'s.
    pub async fn with_migration_login<T, E, F, Fut>(&self, migrate: F) -> Result<Result<T, E>, Error>
    where
        F: FnOnce(PgConnectOptions) -> Fut,
        Fut: Future<Output = Result<T, E>>,
    {
        self.with_owner_login(|login| migrate(silent(self.server.connect_options(&login)))).await
    }

    /// The same with the login itself, for programs that read or write everything there is.
    pub(crate) async fn with_owner_login<T, E, F, Fut>(&self, work: F) -> Result<Result<T, E>, Error>
    where
        F: FnOnce(Login) -> Fut,
        Fut: Future<Output = Result<T, E>>,
    {
        let password = self.random.password();
        let verifier = scram::verifier(&password, &self.random);
        let opened = self
            .superuser
            .act(Act::OpenMigration, DATABASE, move |connection| {
                async move { ensure::open_migration(connection, verifier.expose_secret()).await }.boxed()
            })
            .await;
        let outcome = match opened {
            Ok(()) => {
                let login = Login { user: MIGRATE.to_owned(), database: DATABASE.to_owned(), password };
                Ok(AssertUnwindSafe(work(login)).catch_unwind().await)
            }
            Err(error) => Err(error),
        };
        // Also after a failure to open: it may have been opened before the failure was seen.
        let closed = self
            .superuser
            .act(Act::CloseMigration, DATABASE, |connection| ensure::close_migration(connection).boxed())
            .await;
        match outcome? {
            Err(panic) => std::panic::resume_unwind(panic),
            Ok(result) => closed.map(|()| result),
        }
    }
}

/// How long the server may take to show its new certificate. Where its files come by way of a cluster that takes longer,
/// it is asked again with the next look.
const SHOWN_DEADLINE: Duration = Duration::from_secs(5);
const SHOWN_STEP: Duration = Duration::from_millis(50);

impl Database {
    /// Renews the certificates that are due and has the server read them, without a connection refused: what was shown
    /// before counts on, on both sides. Says whether the server read any. Nothing happens where there is no TLS.
    /// Idempotent; the first call of a process has them read in any case, since a former one may have died before that.
    ///
    /// Clients' certificates are not renewed here: each set of connection options has its own.
    ///
    /// # Errors
    /// [`Error::Deadline`] when the server still shows its former certificate: to be called again. [`Error::NotRecorded`],
    /// [`Error::SecretStore`], [`Error::Io`], [`Error::Sql`].
    pub async fn renew_certificates(&self) -> Result<bool, Error> {
        const WHAT: &str = "have the certificates read";
        let _one_at_a_time = self.changing.lock().await;
        let Some(endpoint) = self.server.endpoint() else { return Ok(false) };
        let is_written = self.server.renew_certificates().await?;
        if is_written {
            self.has_reloaded.store(false, Ordering::SeqCst);
        }
        if self.has_reloaded.load(Ordering::SeqCst) && endpoint.shows_its_own().await? {
            return Ok(false);
        }
        self.superuser
            .act(Act::ReloadCertificates, "postgres", move |connection| {
                async move {
                    sqlx::query("SELECT pg_catalog.pg_reload_conf()")
                        .execute(connection)
                        .await
                        .map(drop)
                        .map_err(Error::sql(WHAT))
                }
                .boxed()
            })
            .await?;
        let begun = Instant::now();
        while !endpoint.shows_its_own().await? {
            if begun.elapsed() >= SHOWN_DEADLINE {
                return Err(Error::Deadline { what: "the server's new certificate", deadline: SHOWN_DEADLINE });
            }
            tokio::time::sleep(SHOWN_STEP).await;
        }
        self.has_reloaded.store(true, Ordering::SeqCst);
        Ok(true)
    }
}

/// The login in use of `group`.
pub(crate) fn login_of(secrets: &DbSecrets, group: GroupRole) -> Result<Login, Error> {
    let secret = secrets.role(group)?;
    Ok(Login {
        user: group.login_name(secret.active),
        database: DATABASE.to_owned(),
        password: secret.secret.password.clone(),
    })
}
