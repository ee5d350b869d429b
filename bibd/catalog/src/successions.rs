//! What a succession moves: this node takes over the rows of a former one.

use bib_core::PeerId;

use crate::statement::{Class, Statement};
use crate::{Result, Tx};

static RESIGN: Statement = Statement::new(
    Class::Update,
    "nodes",
    "UPDATE bib.nodes SET is_self = false, updated_at = $2 WHERE peer_id = $1 AND is_self",
);

static MOVE_TOPICS: Statement = Statement::new(
    Class::Update,
    "topics",
    "UPDATE bib.topics SET origin = coalesce(origin, owner), owner = $2 WHERE owner = $1",
);

static MOVE_DATASETS: Statement = Statement::new(
    Class::Update,
    "datasets",
    "UPDATE bib.datasets SET origin = coalesce(origin, owner), owner = $2 WHERE owner = $1",
);

static MOVE_NAMES: Statement =
    Statement::new(Class::Update, "names", "UPDATE bib.names SET owner = $2 WHERE owner = $1");

static FORGET_SETTING: Statement = Statement::new(Class::Delete, "settings", "DELETE FROM bib.settings WHERE key = $1");

pub(crate) static STATEMENTS: &[&Statement] = &[&RESIGN, &MOVE_TOPICS, &MOVE_DATASETS, &MOVE_NAMES, &FORGET_SETTING];

/// What went over.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Moved {
    /// Topics, deleted ones too.
    pub topics: u64,
    /// Datasets, deleted ones too.
    pub datasets: u64,
}

/// The database is no longer that of `from`: the next [`crate::node::put_self`] says whose it is.
///
/// # Errors
/// When the database is gone.
pub async fn resign(tx: &mut Tx, from: &PeerId, now: bib_core::Timestamp) -> Result<()> {
    RESIGN.on(tx).bind(from.to_string()).bind(now.to_offset()).execute().await?;
    Ok(())
}

/// Gives what `from` owns to `to`, which has its row in `nodes`.
///
/// # Errors
/// When the database is gone, or `to` owns something of the same name.
pub async fn carry_over(tx: &mut Tx, from: &PeerId, to: &PeerId) -> Result<Moved> {
    let (from, to) = (from.to_string(), to.to_string());
    let topics = MOVE_TOPICS.on(tx).bind(&from).bind(&to).execute().await?;
    let datasets = MOVE_DATASETS.on(tx).bind(&from).bind(&to).execute().await?;
    MOVE_NAMES.on(tx).bind(&from).bind(&to).execute().await?;
    Ok(Moved { topics, datasets })
}

/// Forgets a setting that was changed while the node ran. False when there was none.
///
/// # Errors
/// When the database is gone.
pub async fn forget_setting(tx: &mut Tx, key: &str) -> Result<bool> {
    Ok(FORGET_SETTING.on(tx).bind(key).execute().await? == 1)
}
