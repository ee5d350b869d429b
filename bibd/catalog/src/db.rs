//! The database as the daemon holds it: a pool per role, and the transaction as a value.

use std::sync::Arc;

use bib_core::OperationId;
use bibd_audit::entry::{Origin, StatementNote};
use sqlx::pool::PoolConnection;
use sqlx::{AssertSqlSafe, PgConnection, PgPool, Postgres, Transaction};
use uuid::Uuid;

use crate::{Error, Result, ledger};

/// On whose behalf statements run. It is set in the transaction, so that the server's own log and
/// `pg_stat_activity` can be joined with the audit log.
#[derive(Debug, Clone)]
pub struct Context {
    /// The call, from its first statement to its audit entry.
    pub operation: OperationId,
    /// The user, or `None` when the node itself acts.
    pub user: Option<Uuid>,
    /// Which part of the daemon: `grpc`, `sequencer`, `collector` ...
    pub component: &'static str,
}

/// Which group role a connection's log-in belongs to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    /// Use cases.
    Service,
    /// The sequencer.
    Seal,
    /// Readers of the log.
    Audit,
    /// The checklist and statistics.
    Monitor,
}

impl Role {
    /// Every role.
    pub const ALL: [Self; 4] = [Self::Service, Self::Seal, Self::Audit, Self::Monitor];

    /// Its name in the database.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Service => "bibd_service",
            Self::Seal => "bibd_seal",
            Self::Audit => "bibd_audit",
            Self::Monitor => "bibd_monitor",
        }
    }
}

/// One pool of connections per login role. Opened by the composition root with the least that each needs.
#[derive(Debug, Clone)]
pub struct Pools {
    /// `bibd_service`: use cases.
    pub service: PgPool,
    /// `bibd_seal`: the sequencer, two connections.
    pub seal: PgPool,
    /// `bibd_audit`: reads the log.
    pub audit: PgPool,
    /// `bibd_monitor`: the checklist.
    pub monitor: PgPool,
}

/// The catalog's database. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Db(Arc<Pools>);

impl Db {
    /// Over pools that are open already.
    #[must_use]
    pub fn new(pools: Pools) -> Self {
        Self(Arc::new(pools))
    }

    /// Begins a transaction of a use case (`bibd_service`).
    ///
    /// # Errors
    /// When no connection comes free in time.
    pub async fn begin(&self, context: &Context) -> Result<Tx> {
        begin(&self.0.service, Role::Service, context).await
    }

    /// As [`Db::begin`], for entries about what has not happened yet: the commit does not wait for the disk. The log is
    /// written in order, so that whatever is committed later, by anybody, is not durable without it.
    ///
    /// # Errors
    /// When no connection comes free in time.
    pub async fn begin_ahead(&self, context: &Context) -> Result<Tx> {
        begin_with(&self.0.service, Role::Service, context, "; SET LOCAL synchronous_commit = off").await
    }

    /// A connection for reading (`bibd_service`), outside a transaction: each statement sees what is committed.
    ///
    /// # Errors
    /// When no connection comes free in time.
    pub async fn read(&self) -> Result<Read> {
        read(&self.0.service, Role::Service).await
    }

    /// Begins a transaction of the sequencer (`bibd_seal`).
    ///
    /// # Errors
    /// When no connection comes free in time.
    pub async fn begin_seal(&self, context: &Context) -> Result<Tx> {
        begin(&self.0.seal, Role::Seal, context).await
    }

    /// A connection for reading the audit log (`bibd_audit`).
    ///
    /// # Errors
    /// When no connection comes free in time.
    pub async fn read_audit(&self) -> Result<Read> {
        read(&self.0.audit, Role::Audit).await
    }

    /// Begins a transaction that sees one moment of the audit log (`bibd_audit`), for verification and export.
    ///
    /// # Errors
    /// When no connection comes free in time.
    pub async fn snapshot_audit(&self) -> Result<Tx> {
        let inner = self
            .0
            .audit
            // The whole log is joined: with the usual 4 MiB the join of a million rows goes through temporary files.
            .begin_with("BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY; SET LOCAL work_mem = '128MB'")
            .await
            .map_err(|e| Error::from_sqlx("begin", e))?;
        Ok(Tx {
            inner,
            origin: Origin { component: "audit", role: Role::Audit.as_str() },
            role: Role::Audit,
            notes: Notes::default(),
        })
    }

    /// A connection for reading the server's statistics (`bibd_monitor`).
    ///
    /// # Errors
    /// When no connection comes free in time.
    pub async fn read_monitor(&self) -> Result<Read> {
        read(&self.0.monitor, Role::Monitor).await
    }

    /// The pool of `bibd_monitor`, for the checklist of `bibd-postgres`.
    #[must_use]
    pub fn monitor(&self) -> &PgPool {
        &self.0.monitor
    }

    /// Whether the database answers as `bibd_service`.
    ///
    /// # Errors
    /// When it does not.
    pub async fn ping(&self) -> Result<()> {
        sqlx::query("SELECT 1").execute(&self.0.service).await.map(|_| ()).map_err(|e| Error::from_sqlx("ping", e))
    }

    /// Closes every pool, waiting for connections in use.
    pub async fn close(&self) {
        let Pools { service, seal, audit, monitor } = &*self.0;
        for pool in [service, seal, audit, monitor] {
            pool.close().await;
        }
    }
}

async fn begin(pool: &PgPool, role: Role, context: &Context) -> Result<Tx> {
    begin_with(pool, role, context, "").await
}

async fn begin_with(pool: &PgPool, role: Role, context: &Context, more: &'static str) -> Result<Tx> {
    // One round trip. This is the only place of the catalog where SQL is put together, from two UUIDs and a name
    // that is part of the program.
    let user = context.user.map_or_else(String::new, |user| user.to_string());
    let sql = format!(
        "BEGIN; SET LOCAL bib.operation = '{}'; SET LOCAL bib.actor = '{user}'; SET LOCAL bib.component = '{}'{more}",
        context.operation, context.component,
    );
    let inner = pool.begin_with(AssertSqlSafe(sql)).await.map_err(|e| Error::from_sqlx("begin", e))?;
    let origin = Origin { component: context.component, role: role.as_str() };
    Ok(Tx { inner, origin, role, notes: Notes::default() })
}

async fn read(pool: &PgPool, role: Role) -> Result<Read> {
    let inner = pool.acquire().await.map_err(|e| Error::from_sqlx("connect", e))?;
    Ok(Read { inner, role })
}

/// Something that statements run on.
pub trait Session: Send {
    /// The connection.
    fn connection(&mut self) -> &mut PgConnection;
    /// Takes note of a statement that ran.
    fn note(&mut self, note: StatementNote);
    /// As which role it runs.
    fn role(&self) -> Role;
}

/// Statements that no audit entry took yet. Those of a transaction that was not committed ran all the same: they are the
/// call's, whose next entry tells how it ended.
#[derive(Debug, Default)]
struct Notes(Vec<StatementNote>);

impl Drop for Notes {
    fn drop(&mut self) {
        if !self.0.is_empty() {
            ledger::extend(self.0.drain(..));
        }
    }
}

/// A transaction. Dropped without [`Tx::commit`], it is rolled back.
#[derive(Debug)]
pub struct Tx {
    inner: Transaction<'static, Postgres>,
    origin: Origin,
    role: Role,
    notes: Notes,
}

impl Tx {
    /// The statements that ran so far, those of the call before this transaction first, for the audit entry.
    pub fn take_notes(&mut self) -> Vec<StatementNote> {
        let mut notes = ledger::take();
        notes.append(&mut self.notes.0);
        notes
    }

    /// Which part of the daemon began it, and as which role.
    #[must_use]
    pub fn origin(&self) -> Origin {
        self.origin
    }

    /// Makes it durable.
    ///
    /// # Errors
    /// When the database refuses or is gone; then nothing was committed, unless the connection broke after the
    /// server had committed: idempotency keys and natural keys make a repeat safe.
    pub async fn commit(mut self) -> Result<()> {
        // What came after the entry was taken is the entry itself.
        self.notes.0.clear();
        self.inner.commit().await.map_err(|e| Error::from_sqlx("commit", e))
    }

    /// Undoes it.
    ///
    /// # Errors
    /// When the connection is gone, in which case the server undoes it by itself.
    pub async fn rollback(self) -> Result<()> {
        self.inner.rollback().await.map_err(|e| Error::from_sqlx("rollback", e))
    }
}

impl Session for Tx {
    fn connection(&mut self) -> &mut PgConnection {
        &mut self.inner
    }

    fn note(&mut self, note: StatementNote) {
        self.notes.0.push(note);
    }

    fn role(&self) -> Role {
        self.role
    }
}

/// A connection for reading.
#[derive(Debug)]
pub struct Read {
    inner: PoolConnection<Postgres>,
    role: Role,
}

impl Session for Read {
    fn connection(&mut self) -> &mut PgConnection {
        &mut self.inner
    }

    // Statements outside a call are counted, not chained.
    fn note(&mut self, note: StatementNote) {
        ledger::note(note);
    }

    fn role(&self) -> Role {
        self.role
    }
}
