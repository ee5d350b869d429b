//! The node's own row, settings that are changed while it runs, and first answers kept for repeated requests.

use bib_core::{PeerId, Timestamp, UserId};
use serde_json::Value;

use crate::statement::{Class, Statement};
use crate::{Result, Session, Tx};

static PUT_SELF: Statement = Statement::new(
    Class::Insert,
    "nodes",
    "INSERT INTO bib.nodes (peer_id, is_self, version, created_at, updated_at)
     VALUES ($1, true, $2, $3, $3)
     ON CONFLICT (peer_id) DO UPDATE SET is_self = true, version = excluded.version, updated_at = excluded.updated_at",
);

static LIST_SETTINGS: Statement =
    Statement::new(Class::Select, "settings", "SELECT key, value FROM bib.settings ORDER BY key");

static SET_SETTING: Statement = Statement::new(
    Class::Insert,
    "settings",
    "INSERT INTO bib.settings (key, value, updated_by, updated_at) VALUES ($1, $2, $3, $4)
     ON CONFLICT (key) DO UPDATE
     SET value = excluded.value, updated_by = excluded.updated_by, updated_at = excluded.updated_at",
);

static FIND_ANSWER: Statement = Statement::new(
    Class::Select,
    "idempotency",
    "SELECT method, response FROM bib.idempotency WHERE user_id = $1 AND key = $2 AND created_at > $3",
);

static KEEP_ANSWER: Statement = Statement::new(
    Class::Insert,
    "idempotency",
    "INSERT INTO bib.idempotency (user_id, key, method, response, created_at) VALUES ($1, $2, $3, $4, $5)",
);

static FORGET_ANSWERS: Statement =
    Statement::new(Class::Delete, "idempotency", "DELETE FROM bib.idempotency WHERE created_at <= $1");

pub(crate) static STATEMENTS: &[&Statement] =
    &[&PUT_SELF, &LIST_SETTINGS, &SET_SETTING, &FIND_ANSWER, &KEEP_ANSWER, &FORGET_ANSWERS];

/// Enters this node, or its new version.
///
/// # Errors
/// `Conflict` on `nodes_one_self` when the database belongs to another node.
pub async fn put_self(tx: &mut Tx, peer: &PeerId, version: &str, now: Timestamp) -> Result<()> {
    PUT_SELF.on(tx).bind(peer.to_string()).bind(version).bind(now.to_offset()).execute_one().await
}

/// Every setting that was changed while the node ran.
///
/// # Errors
/// When the database is gone.
pub async fn settings(session: &mut impl Session) -> Result<Vec<(String, Value)>> {
    LIST_SETTINGS.on(session).all().await
}

/// Changes a setting.
///
/// # Errors
/// When the database refuses.
pub async fn set_setting(tx: &mut Tx, key: &str, value: &Value, user: Option<UserId>, now: Timestamp) -> Result<()> {
    let run = SET_SETTING.on(tx).bind(key).bind(value).bind(user.map(|user| user.as_uuid()));
    run.bind(now.to_offset()).execute_one().await
}

/// The first answer to a request with this key, if it came after `since`: its method, and its bytes.
///
/// # Errors
/// When the database is gone.
pub async fn find_answer(
    session: &mut impl Session,
    user: UserId,
    key: &str,
    since: Timestamp,
) -> Result<Option<(String, Vec<u8>)>> {
    FIND_ANSWER.on(session).bind(user.as_uuid()).bind(key).bind(since.to_offset()).optional().await
}

/// Keeps the first answer, in the transaction of the act that it answers.
///
/// # Errors
/// `Conflict` on `idempotency_pkey` when the same request is being answered at the same time.
pub async fn keep_answer(
    tx: &mut Tx,
    user: UserId,
    key: &str,
    method: &str,
    response: &[u8],
    now: Timestamp,
) -> Result<()> {
    let run = KEEP_ANSWER.on(tx).bind(user.as_uuid()).bind(key).bind(method).bind(response);
    run.bind(now.to_offset()).execute_one().await
}

/// Forgets answers from before `before`.
///
/// # Errors
/// When the database is gone.
pub async fn forget_answers(tx: &mut Tx, before: Timestamp) -> Result<u64> {
    FORGET_ANSWERS.on(tx).bind(before.to_offset()).execute().await
}
