//! The steps of a grant: intent, role, open; cut, closed, ended. Each is there before the next begins, so that a process
//! may die between any two: the next start finds the row, the role or both, and goes on to `ended`.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use bib_core::access::GlassAccess;
use bib_identity::file;
use bibd_audit::Outcome;
use bibd_catalog::glass::{self, GlassGrant, Granted};
use bibd_postgres::glass::snapshot::Snapshot;
use bibd_postgres::glass::{Access, GlassName, leftover};
use secrecy::SecretString;
use serde_json::{Value, json};
use tokio::sync::watch;
use tokio_util::task::TaskTracker;
use uuid::Uuid;

use super::recorder::{Shelf, blocking};
use super::{BreakGlass, Cut, Open, already_open, no_recorder, report};
use crate::actor::Call;
use crate::errors::ErrorCode;
use crate::services::ServiceError;
use crate::services::journal::Act;

/// How long sessions may take to write down that they were cut. What the server runs for them is ended after that in any
/// case.
const SESSIONS_DEADLINE: Duration = Duration::from_secs(3);
/// The largest snapshot that is read back.
const MAX_SNAPSHOT_BYTES: u64 = 64 << 20;

impl BreakGlass {
    /// Opens what was confirmed. In its turn.
    pub(super) async fn grant(&self, call: &Call, granted: Granted) -> Result<GlassGrant, ServiceError> {
        let (inner, id) = (&self.0, granted.id);
        let settings = self.settings()?;
        // Asked again: this is its turn, and the challenge was given before that.
        self.none_waits(settings).await?;
        let deadline = inner.base.ids.clock().monotonic()
            + Duration::from_secs(u64::try_from(seconds_of(&granted)).unwrap_or_default());
        let root = inner.root.clone();
        let shelf = blocking(move || Shelf::make(&root, id)).await.map_err(|error| no_recorder(&error))?;
        let opened = match self.make(call, &granted, &shelf).await {
            Ok(opened) => opened,
            Err(error) => {
                tracing::error!(grant = %id, %error, "a break-glass grant could not be opened");
                // Whatever was made goes; when even that fails, the keeper goes on.
                if let Err(error) = self.close(call, &granted, None, None, "failed").await {
                    tracing::warn!(grant = %id, %error, "what is left of it is closed later");
                    inner.is_settled.store(false, Ordering::SeqCst);
                }
                return Err(error);
            }
        };
        self.hit("glass.opened");
        let open = Open {
            name: name_of(id),
            door: opened.door,
            before: opened.before,
            shelf,
            deadline,
            cut: watch::Sender::new(None),
            live: std::sync::Mutex::default(),
            entering: AtomicU32::new(0),
            tasks: TaskTracker::new(),
            granted,
        };
        // From here on the keeper sees to its end.
        *self.current() = Some(Arc::new(open));
        let outcome = self.declare_open(call, id).await;
        if let (Err(_), Some(open)) = (&outcome, self.open()) {
            // What is not in the audit log did not happen.
            open.cut(Cut::Recorder);
        }
        outcome?;
        self.hit("glass.open");
        let grant = self.load(id).await?;
        let (user, reason) = (&grant.granted.user_name, &grant.granted.reason);
        tracing::warn!(grant = %id, user, reason, "break-glass is open");
        inner.notices.tell("enabled", &grant.granted, json!({}));
        Ok(grant)
    }

    async fn make(
        &self,
        call: &Call,
        granted: &Granted,
        shelf: &Shelf,
    ) -> Result<bibd_postgres::glass::Opened, ServiceError> {
        self.intend(call, granted).await?;
        self.hit("glass.intent");
        self.open_role(call, granted, shelf).await
    }

    async fn intend(&self, call: &Call, granted: &Granted) -> Result<(), ServiceError> {
        let base = &self.0.base;
        let mut tx = base.begin(call, "break-glass").await?;
        glass::insert(&mut tx, granted).await.map_err(|error| match error {
            bibd_catalog::Error::Conflict { .. } => already_open(granted.id, "intended"),
            other => other.into(),
        })?;
        let act = Act::new("break_glass.enable", granted.id.to_string(), details_of(granted));
        base.journal.commit_with(tx, call, act, Outcome::Intent).await.map(drop)
    }

    async fn open_role(
        &self,
        call: &Call,
        granted: &Granted,
        shelf: &Shelf,
    ) -> Result<bibd_postgres::glass::Opened, ServiceError> {
        let access = match granted.access {
            GlassAccess::ReadOnly => Access::Read,
            GlassAccess::ReadWrite => Access::Write,
        };
        let lifetime = Duration::from_secs(u64::try_from(seconds_of(granted)).unwrap_or_default());
        let opened = self.0.foundation.database.open_glass(&name_of(granted.id), access, lifetime).await;
        let opened = opened.map_err(ServiceError::internal)?;
        if !opened.tells_nested {
            tracing::warn!(
                "the server has no auto_explain: what DO and EXECUTE put together is recorded as it was sent"
            );
        }
        let text = serde_json::to_vec(&opened.before).map_err(ServiceError::internal)?;
        let path = shelf.before();
        blocking(move || file::replace_private(&path, &text)).await.map_err(|error| no_recorder(&error))?;
        tracing::debug!(operation = %call.operation, role = opened.door.role(), "the role of a break-glass grant is there");
        Ok(opened)
    }

    async fn declare_open(&self, call: &Call, id: Uuid) -> Result<(), ServiceError> {
        let base = &self.0.base;
        let mut tx = base.begin(call, "break-glass").await?;
        glass::open(&mut tx, id).await?;
        let details = json!({ "break_glass": true, "role": name_of(id).as_str() });
        base.journal.commit(tx, call, Act::new("break_glass.enable", id.to_string(), details)).await.map(drop)
    }

    /// Ends a grant whose sessions were told to. In its turn; nothing when somebody else did it.
    pub(super) async fn end(&self, open: &Arc<Open>, call: &Call) -> Result<(), ServiceError> {
        let _turn = self.0.turn.lock().await;
        if !self.open().is_some_and(|current| Arc::ptr_eq(&current, open)) {
            return Ok(());
        }
        let reason = (*open.cut.borrow()).unwrap_or(Cut::Disabled).as_str();
        open.tasks.close();
        if tokio::time::timeout(SESSIONS_DEADLINE, open.tasks.wait()).await.is_err() {
            tracing::warn!(grant = %open.granted.id, "a session of break-glass is still writing; its role is closed now");
        }
        let verifier = open.door.verifier().clone();
        self.close(call, &open.granted, Some(open.before.clone()), Some(verifier), reason).await?;
        *self.current() = None;
        Ok(())
    }

    /// Finishes what a daemon before this one left: grants that did not end, and roles without a grant.
    pub(super) async fn settle(&self) -> Result<(), ServiceError> {
        let inner = &self.0;
        let _turn = inner.turn.lock().await;
        let call = inner.base.internal_call("break-glass");
        if self.open().is_some() {
            return Ok(());
        }
        for id in glass::not_ended(&mut inner.base.db.read().await?).await? {
            let path = Shelf::of(&inner.root, id).before();
            let read = blocking(move || file::read_private(&path, MAX_SNAPSHOT_BYTES)).await;
            let before = read.ok().and_then(|bytes| serde_json::from_slice::<Snapshot>(&bytes).ok());
            let grant = self.load(id).await?;
            self.close(&call, &grant.granted, before, None, "restart").await?;
        }
        let mut monitor = inner.base.db.monitor().acquire().await.map_err(ServiceError::internal)?;
        let left = leftover(&mut monitor).await.map_err(ServiceError::internal)?;
        drop(monitor);
        for name in left {
            tracing::error!(role = name.as_str(), "a role of break-glass without a grant was found; it is dropped");
            inner.foundation.database.close_glass(&name, None).await.map_err(ServiceError::internal)?;
            let details = json!({ "break_glass": true, "role": name.as_str() });
            let act = Act::new("break_glass.end", name.as_str(), details);
            inner
                .base
                .journal
                .record(&inner.base.db, &call, act, Outcome::Failed(ErrorCode::INTERNAL.to_string()))
                .await?;
        }
        Ok(())
    }

    /// The role goes first: that does not depend on whether it can be written down. Idempotent.
    async fn close(
        &self,
        call: &Call,
        granted: &Granted,
        before: Option<Snapshot>,
        verifier: Option<SecretString>,
        reason: &'static str,
    ) -> Result<(), ServiceError> {
        let (inner, id) = (&self.0, granted.id);
        self.hit("glass.cut");
        let closed = inner.foundation.database.close_glass(&name_of(id), verifier.as_ref()).await;
        let closed = closed.map_err(ServiceError::internal)?;
        self.hit("glass.closed");
        let ended_at = inner.base.now();
        let sessions = glass::sessions(&mut inner.base.db.read().await?, Some(id), None, 1_000).await?;
        let evidence = report::Evidence {
            granted: granted.clone(),
            role: name_of(id).to_string(),
            node: inner.base.peer.to_string(),
            ended_at,
            reason,
            sessions,
            before,
            closed,
        };
        let shelf = Shelf::of(&inner.root, id);
        let text = blocking(move || report::make(&evidence, &shelf)).await.map_err(ServiceError::internal)?;
        let mut tx = inner.base.begin(call, "break-glass").await?;
        glass::leave_sessions(&mut tx, id, ended_at, reason).await?;
        if glass::end(&mut tx, id, ended_at, reason, text.bytes.as_bytes()).await? {
            let mut details = details_of(granted);
            details["end_reason"] = Value::from(reason);
            details["changes"] = Value::from(text.changes);
            details["statements"] = Value::from(text.statements);
            details["report_sha256"] = Value::from(text.hash.to_string());
            let act = Act::new("break_glass.end", id.to_string(), details);
            inner.base.journal.commit(tx, call, act).await?;
            tracing::warn!(grant = %id, reason, "break-glass has ended");
            let more = json!({ "end_reason": reason, "statements": text.statements, "changes": text.changes });
            inner.notices.tell("ended", granted, more);
        }
        self.hit("glass.ended");
        Ok(())
    }

    fn hit(&self, point: &'static str) {
        self.0.foundation.failpoints.hit(point);
    }
}

/// The role of a grant: found again from the grant alone.
fn name_of(grant: Uuid) -> GlassName {
    // The random end of a UUIDv7.
    let [.., a, b, c, d] = *grant.as_bytes();
    GlassName::new(u32::from_be_bytes([a, b, c, d]))
}

fn seconds_of(granted: &Granted) -> i64 {
    (granted.expires_at.as_micros() - granted.created_at.as_micros()) / 1_000_000
}

fn details_of(granted: &Granted) -> Value {
    json!({
        "break_glass": true,
        "user": granted.user_name,
        "reason": granted.reason,
        "access": granted.access.as_str(),
        "key_name": granted.key_name,
        "key": granted.key_fingerprint,
        "expires_at": granted.expires_at.to_string(),
        "statement_sha256": bib_core::Hash::of(&granted.statement).to_string(),
    })
}
