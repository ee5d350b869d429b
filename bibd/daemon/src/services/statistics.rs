//! What PostgreSQL says of itself, into the metrics, whenever somebody reads them.

use std::time::Duration;

use bibd_catalog::{Db, statistics};

use crate::metrics::Metrics;

/// The metrics do not wait longer for a database that does not answer.
const PATIENCE: Duration = Duration::from_secs(2);

/// The metrics in the Prometheus text format, with the database's own counters as they stand now. Those of a database
/// that does not answer stay as they were.
pub async fn render(db: &Db, metrics: &Metrics) -> String {
    let read = async { statistics::read(&mut db.read_monitor().await?).await };
    match tokio::time::timeout(PATIENCE, read).await {
        Ok(Ok(found)) => metrics.database.set(&found),
        Ok(Err(error)) => {
            tracing::warn!(error = &error as &dyn std::error::Error, "the database's statistics cannot be read");
        }
        Err(_) => tracing::warn!("the database's statistics cannot be read: it does not answer within 2 s"),
    }
    metrics.statements.set(&bibd_catalog::statement_counts());
    metrics.render()
}
