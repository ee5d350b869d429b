//! The bootstrap superuser: one act, one connection, at most ten seconds, always recorded.
//!
//! Nothing else in BIB connects as `bibd_admin`. The secret is unsealed for the act alone. Acts are a closed list, so
//! that a reader sees all that the superuser is for.

use std::sync::Arc;
use std::time::{Duration, Instant};

use futures::future::BoxFuture;
use secrecy::SecretString;
use sqlx::postgres::{PgConnectOptions, PgConnection};
use sqlx::{ConnectOptions as _, Connection as _};

use crate::error::Error;
use crate::provisioner::ManagedPostgres;
use crate::role::{ADMIN, Login};
use crate::secrets::{DbSecrets, SecretStore};

/// How long a superuser's connection may live, opening included.
pub const SUPERUSER_LIMIT: Duration = Duration::from_secs(10);

/// What the superuser is used for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Act {
    /// Databases, roles, their settings and privileges, at start.
    EnsureRoles,
    /// Opens the migrations' login.
    OpenMigration,
    /// Closes the migrations' login.
    CloseMigration,
    /// Gives idle logins their next passwords, and the superuser its own.
    OpenRotation,
    /// Closes the logins that a rotation left, and ends their sessions.
    CloseRotation,
    /// Has the server read its renewed certificates.
    ReloadCertificates,
    /// Makes the role of a break-glass grant.
    OpenGlass,
    /// Ends the sessions of that role and drops it.
    CloseGlass,
    /// Asks the cluster of an upgrade, in which nothing is yet, what its programs have.
    TryUpgrade,
}

impl Act {
    /// The act's name in the audit log.
    pub fn name(self) -> &'static str {
        match self {
            Self::EnsureRoles => "database.roles.ensure",
            Self::OpenMigration => "database.migration.open",
            Self::CloseMigration => "database.migration.close",
            Self::OpenRotation => "database.rotation.open",
            Self::CloseRotation => "database.rotation.close",
            Self::ReloadCertificates => "database.certificates.reload",
            Self::OpenGlass => "database.glass.open",
            Self::CloseGlass => "database.glass.close",
            Self::TryUpgrade => "database.upgrade.try",
        }
    }
}

/// Told of every use of the superuser. The daemon writes it into the audit log.
///
/// At a first start the log does not exist yet: the daemon keeps what it is told until it does.
pub trait PrivilegedObserver: Send + Sync {
    /// Before the secret is unsealed. An error refuses the act: what cannot be recorded does not happen.
    ///
    /// # Errors
    /// When the use could not be recorded.
    fn opening(&self, act: Act) -> Result<(), Box<dyn std::error::Error + Send + Sync>>;

    /// After the connection is gone.
    fn closed(&self, act: Act, lived: Duration, succeeded: bool);
}

/// Opens superuser connections.
#[derive(Clone)]
pub(crate) struct Superuser {
    server: Arc<dyn ManagedPostgres>,
    secrets: Arc<dyn SecretStore>,
    observer: Arc<dyn PrivilegedObserver>,
}

impl Superuser {
    pub(crate) fn new(
        server: Arc<dyn ManagedPostgres>,
        secrets: Arc<dyn SecretStore>,
        observer: Arc<dyn PrivilegedObserver>,
    ) -> Self {
        Self { server, secrets, observer }
    }

    /// Runs `work` on one superuser connection to each of `databases`, in order, within [`SUPERUSER_LIMIT`] in all.
    ///
    /// # Errors
    /// [`Error::NotRecorded`], [`Error::SecretsMissing`], [`Error::Deadline`], or what `work` returns.
    pub(crate) async fn act<T: Send>(
        &self,
        act: Act,
        database: &str,
        work: impl for<'c> FnOnce(&'c mut PgConnection) -> BoxFuture<'c, Result<T, Error>> + Send,
    ) -> Result<T, Error> {
        self.observer.opening(act).map_err(|source| Error::NotRecorded { act: act.name(), source })?;
        let started = Instant::now();
        let result = tokio::time::timeout(SUPERUSER_LIMIT, async {
            let mut connection = self.connect(database).await?;
            let result = work(&mut connection).await;
            // The work is committed or not by now; a failure to say goodbye changes nothing.
            let _ = connection.close().await;
            result
        })
        .await
        .unwrap_or(Err(Error::Deadline { what: "the superuser's session", deadline: SUPERUSER_LIMIT }));
        self.observer.closed(act, started.elapsed(), result.is_ok());
        result
    }

    async fn connect(&self, database: &str) -> Result<PgConnection, Error> {
        const WHAT: &str = "log in as superuser";
        let (options, next) = {
            let secrets = DbSecrets::read(self.secrets.as_ref())?.ok_or(Error::SecretsMissing)?;
            let options = |password: &SecretString| {
                let (user, database) = (ADMIN.to_owned(), database.to_owned());
                silent(self.server.connect_options(&Login { user, database, password: password.clone() }))
            };
            (options(secrets.admin()), secrets.admin_next().map(options))
        };
        let mut connection = match (PgConnection::connect_with(&options).await, next) {
            // A rotation was interrupted after the server took the new password and before that was written down.
            (Err(error), Some(next)) if is_wrong_password(&error) => {
                PgConnection::connect_with(&next).await.map_err(Error::sql(WHAT))?
            }
            (connected, _) => connected.map_err(Error::sql(WHAT))?,
        };
        // Verifiers are no passwords, but they are nobody's business either: this session's statements stay out of
        // the server's log. A timeout on the server ends what our own deadline can only abandon.
        sqlx::raw_sql(
            "SET log_statement = 'none';
             SET log_min_duration_statement = -1;
             SET log_min_error_statement = 'panic';
             SET statement_timeout = '10s';
             SET lock_timeout = '5s';
             SET search_path = pg_catalog, pg_temp",
        )
        .execute(&mut connection)
        .await
        .map_err(Error::sql("prepare the superuser's session"))?;
        Ok(connection)
    }
}

fn is_wrong_password(error: &sqlx::Error) -> bool {
    const INVALID_PASSWORD: &str = "28P01";
    error.as_database_error().and_then(|error| error.code()).is_some_and(|code| code == INVALID_PASSWORD)
}

/// Options whose statements sqlx does not log either.
pub(crate) fn silent(options: PgConnectOptions) -> PgConnectOptions {
    options.disable_statement_logging()
}
