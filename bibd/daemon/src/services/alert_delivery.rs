//! Alerts to those who should know: a webhook, a program. Each place reads the alerts from the log by itself, in order,
//! at least once, from where it stands.

use std::sync::Arc;
use std::time::Duration;

use bibd_audit::alert::Severity;
use bibd_audit::event::{DetailsForm, EventWriter};
use bibd_catalog::Error as CatalogError;
use bibd_catalog::audit::{self, LoggedRow};
use bytes::Bytes;
use tokio_util::sync::CancellationToken;

use super::audit_rows::as_row;
use super::base::Base;
use super::log_reader::{LogReader, place_of};
use crate::config::alerts::{AlertSink, AlertTarget};
use crate::config::audit::Start;
use crate::export::{CommandSink, Credentials, Endpoint, SendError, post_json};
use crate::foundation::Foundation;
use crate::secrets::Secrets;
use crate::supervisor::{Policy, TaskKind, TaskResult};

/// How often the log is looked at when nothing is heard of it.
const ROUND: Duration = Duration::from_secs(5);
/// The first pause after a failure, and the longest.
const FIRST_PAUSE: Duration = Duration::from_secs(1);
const LONGEST_PAUSE: Duration = Duration::from_secs(60);
/// After so many attempts, about a quarter of an hour, an alert is passed over: newer ones must not wait for ever.
const ATTEMPTS: u32 = 20;

/// Starts a task for each place that alerts go to.
///
/// # Errors
/// When the database is gone.
pub async fn start(foundation: &Foundation, base: &Base) -> Result<(), CatalogError> {
    for sink in &foundation.config().audit.alerts.sinks {
        let delivery = Delivery {
            reader: LogReader::new(base.clone(), format!("alerts:to-{}", sink.name), "alerts"),
            base: base.clone(),
            sink: Arc::new(sink.clone()),
            secrets: foundation.secrets.clone(),
        };
        // Before the first call is answered, so that a new place is told of everything from then on.
        delivery.reader.begin(Start::Now).await?;
        // A name for each place, for as long as the process lives: their number is bounded by the configuration.
        let name: &'static str = format!("alert-{}", sink.name).leak();
        foundation
            .supervisor
            .spawn(TaskKind::Background, Policy::RestartWithBackoff, name, move |stop| delivery.clone().run(stop));
    }
    Ok(())
}

#[derive(Debug, Clone)]
struct Delivery {
    base: Base,
    reader: LogReader,
    sink: Arc<AlertSink>,
    secrets: Secrets,
}

enum Route {
    Webhook { endpoint: Box<Endpoint>, credentials: Credentials, timeout: Duration },
    Command(CommandSink),
}

impl Route {
    async fn deliver(&self, event: &Bytes) -> Result<(), SendError> {
        match self {
            Self::Webhook { endpoint, credentials, timeout } => {
                post_json(endpoint, event.clone(), credentials, *timeout).await
            }
            Self::Command(command) => command.run(event).await,
        }
    }
}

impl Delivery {
    async fn run(self, stop: CancellationToken) -> TaskResult {
        let timeout = self.sink.timeout.0;
        let route = match &self.sink.to {
            AlertTarget::Webhook(webhook) => Route::Webhook {
                endpoint: Box::new(Endpoint::webhook(webhook)),
                credentials: Credentials::new(self.secrets.clone()),
                timeout,
            },
            AlertTarget::Command(command) => Route::Command(CommandSink::new(command.argv.clone(), timeout)),
        };
        // A new place is told of what comes, not of the past.
        let mut place = self.reader.begin(Start::Now).await?;
        let mut newest = self.base.journal.newest();
        loop {
            newest.borrow_and_update();
            let rows = audit::alerts(&mut self.base.db.read_audit().await?, place).await?;
            if rows.is_empty() {
                tokio::select! {
                    () = stop.cancelled() => return Ok(()),
                    _ = tokio::time::timeout(ROUND, newest.changed()) => continue,
                }
            }
            for row in rows {
                if severity(&row) >= Severity::from(self.sink.at_least)
                    && stop.run_until_cancelled(self.insist(&route, &row)).await.is_none()
                {
                    return Ok(());
                }
                place = place_of(&row);
                self.reader.save(place).await?;
            }
        }
    }

    /// Delivers one alert, again and again within bounds.
    async fn insist(&self, route: &Route, row: &LoggedRow) {
        let mut event = Vec::new();
        EventWriter::new(DetailsForm::Object).write(&as_row(row), &mut event);
        event.push(b'\n');
        let event = Bytes::from(event);
        let mut pause = FIRST_PAUSE;
        for attempt in 1..=ATTEMPTS {
            let error = match route.deliver(&event).await {
                Ok(()) => return,
                Err(error) => error,
            };
            tracing::warn!(sink = self.sink.name, seq = row.seq, attempt, reason = %error, hint = error.hint,
                "an alert was not delivered");
            if attempt < ATTEMPTS {
                tokio::time::sleep(pause.max(error.retry_after.unwrap_or_default())).await;
                pause = (pause * 2).min(LONGEST_PAUSE);
            }
        }
        tracing::error!(sink = self.sink.name, seq = row.seq, "an alert is passed over: it could not be delivered");
    }
}

/// As its details say; an alert whose details were erased is as bad as can be.
fn severity(row: &LoggedRow) -> Severity {
    let details = row.details.as_deref().and_then(|d| serde_json::from_slice::<serde_json::Value>(d).ok());
    match details.as_ref().and_then(|details| details.get("severity")?.as_str()) {
        Some("low") => Severity::Low,
        Some("medium") => Severity::Medium,
        _ => Severity::High,
    }
}
