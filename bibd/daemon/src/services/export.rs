//! Sealed entries to log collectors: in order, at least once, from where each sink stands.
//!
//! The log in PostgreSQL is the spool: a sink is a position in it, moved on in the database only once the sink has taken
//! everything before it. So an act never waits for a sink, a process that dies sends again what was not confirmed, and a
//! sink that is away for a day finds everything. A task for each sink reads and encodes the next pages while the one
//! before is on its way.

use std::error::Error;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bibd_audit::event::DetailsForm;
use bibd_audit::siem::{Encoder, Wire};
use bibd_catalog::audit::{self, LoggedRow, Place};
use bytes::Bytes;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use super::audit_rows::as_row;
use super::base::Base;
use super::export_board::{ExportBoard, Failing, Meters};
use super::journal::Act;
use super::log_reader::{LogReader, place_of};
use crate::config::audit::{Details, Sink as Settings};
use crate::export::{self, Batch, SendError, Sent, Sink};
use crate::foundation::Foundation;
use crate::grpc::error::chain;
use crate::secrets::Secrets;
use crate::supervisor::{Policy, TaskKind, TaskResult};

/// Bodies and details of a page. Of one sink three pages are in memory at most: one on its way, one waiting, one being
/// read; encoded they are about twice as large.
const PAGE_BYTES: u64 = 4 << 20;
/// How often the log is looked at when nothing is heard of it.
const ROUND: Duration = Duration::from_secs(5);
/// How long entries may be on their way before the sink is asked whether they arrived.
const CONFIRM_EVERY: Duration = Duration::from_secs(5);
/// How many entries may be on their way.
const CONFIRM_ENTRIES: u64 = 100_000;
/// The first pause after a failure.
const FIRST_PAUSE: Duration = Duration::from_millis(250);
/// The smallest batch that is tried when a sink finds batches too large.
const SMALLEST_BATCH: usize = 16 << 10;
/// What a stop may take for asking a sink whether the last entries arrived.
const LAST_CONFIRM: Duration = Duration::from_secs(2);

/// Starts a task for each configured sink.
///
/// # Errors
/// When the metrics are registered twice, or the database is gone.
pub async fn start(foundation: &Foundation, base: &Base) -> Result<ExportBoard, Box<dyn Error + Send + Sync>> {
    let sinks = &foundation.config().audit.export;
    let meters = Meters::new(&foundation.metrics.registry)?;
    let board = ExportBoard::new(sinks, foundation.health.clone(), meters);
    let hostname: String =
        gethostname::gethostname().to_string_lossy().chars().filter(char::is_ascii_graphic).collect();
    let hostname = if hostname.is_empty() { "-".to_owned() } else { hostname };
    for settings in sinks {
        let shipper = Shipper {
            reader: LogReader::new(base.clone(), settings.name.clone(), "export"),
            base: base.clone(),
            wire: export::wire(settings, &hostname),
            settings: Arc::new(settings.clone()),
            secrets: foundation.secrets.clone(),
            board: board.clone(),
        };
        // Before the first call is answered: a sink that begins now has everything from then on.
        shipper.reader.begin(settings.start).await?;
        // A name for each sink, for as long as the process lives: their number is bounded by the configuration.
        let name: &'static str = format!("export-{}", settings.name).leak();
        foundation
            .supervisor
            .spawn(TaskKind::Background, Policy::RestartWithBackoff, name, move |stop| shipper.clone().run(stop));
    }
    Ok(board)
}

/// Takes the log to one sink. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Shipper {
    base: Base,
    reader: LogReader,
    settings: Arc<Settings>,
    wire: Wire,
    secrets: Secrets,
    board: ExportBoard,
}

/// Why shipping paused.
#[derive(Debug)]
enum Pause {
    Sink(SendError),
    Database(bibd_catalog::Error),
}

impl From<SendError> for Pause {
    fn from(error: SendError) -> Self {
        Self::Sink(error)
    }
}

impl From<bibd_catalog::Error> for Pause {
    fn from(error: bibd_catalog::Error) -> Self {
        Self::Database(error)
    }
}

/// How far a sink is: sent, and safe there.
struct Progress {
    safe: Place,
    sent: Place,
    /// Entries on their way, and since when.
    unconfirmed: Option<(u64, Instant)>,
    /// Something was taken since the last failure.
    moved: bool,
}

impl Shipper {
    async fn run(self, stop: CancellationToken) -> TaskResult {
        let name = &self.settings.name;
        let safe = self.reader.begin(self.settings.start).await?;
        let mut progress = Progress { safe, sent: safe, unconfirmed: None, moved: false };
        self.board.stands(name, progress.safe, &self.reader.heads().await?);
        let mut sink = export::open(&self.settings, &self.secrets);
        let mut batch_bytes = usize::try_from(self.settings.batch_bytes.0).unwrap_or(usize::MAX);
        let mut pause = FIRST_PAUSE;
        loop {
            let shipped =
                stop.run_until_cancelled(Box::pin(self.ship(sink.as_mut(), &mut progress, batch_bytes))).await;
            let Some(paused) = shipped else { break };
            if std::mem::take(&mut progress.moved) {
                pause = FIRST_PAUSE;
            }
            // What was not confirmed is sent again, on a connection of its own.
            sink.reset();
            (progress.sent, progress.unconfirmed) = (progress.safe, None);
            let error = match paused {
                Pause::Sink(error) if error.is_too_large && batch_bytes > SMALLEST_BATCH => {
                    batch_bytes = (batch_bytes / 2).max(SMALLEST_BATCH);
                    tracing::info!(sink = name, batch_bytes, "the sink finds batches too large");
                    continue;
                }
                Pause::Sink(error) => error,
                Pause::Database(error) => SendError::passing(chain(&error)),
            };
            let wait = self.jittered(pause.max(error.retry_after.unwrap_or_default()));
            pause = (pause * 2).min(self.settings.max_pause.0);
            tracing::warn!(sink = name, reason = %error, pause_ms = u64::try_from(wait.as_millis()).unwrap_or(u64::MAX),
                "a sink of the audit log does not take entries");
            self.board.failed(name, Failing::of(&error, self.base.now()));
            self.tell().await;
            if stop.run_until_cancelled(tokio::time::sleep(wait)).await.is_none() {
                break;
            }
        }
        if progress.unconfirmed.is_some()
            && let Ok(Ok(())) = tokio::time::timeout(LAST_CONFIRM, sink.confirm()).await
        {
            self.reader.save(progress.sent).await?;
        }
        Ok(())
    }

    /// Reads and sends until something is in the way.
    async fn ship(&self, sink: &mut dyn Sink, progress: &mut Progress, batch_bytes: usize) -> Pause {
        let (out, batches) = mpsc::channel(1); // a batch that waits while the one before is on its way
        let reading = self.read(progress.safe, batch_bytes, out);
        let sending = self.send(sink, progress, batches);
        let paused = tokio::select! {
            paused = reading => paused,
            paused = sending => paused,
        };
        match paused {
            Ok(paused) | Err(paused) => paused,
        }
    }

    async fn read(&self, mut after: Place, batch_bytes: usize, out: mpsc::Sender<Batch>) -> Result<Pause, Pause> {
        let form = match self.settings.details {
            Details::Text => DetailsForm::Text,
            Details::Object => DetailsForm::Object,
            Details::Omit => DetailsForm::Omit,
        };
        let mut encoder = Encoder::new(self.base.peer, self.wire.clone(), form);
        let mut newest = self.base.journal.newest();
        loop {
            let known = *newest.borrow_and_update();
            self.board.newest(known);
            let rows = audit::page(&mut self.base.db.read_audit().await?, after, PAGE_BYTES).await?;
            if rows.is_empty() {
                // The sequencer says when there is more; the clock makes good what it did not say.
                let _ = tokio::time::timeout(ROUND, newest.changed()).await;
                continue;
            }
            let work = tokio::task::spawn_blocking(move || (encode(&mut encoder, &rows, batch_bytes), encoder));
            let (batches, back) = work.await.map_err(|error| SendError::passing(format!("encode: {error}")))?;
            encoder = back;
            for batch in batches {
                after = batch.last;
                if out.send(batch).await.is_err() {
                    // The sender has ended, and says why.
                    return std::future::pending().await;
                }
            }
        }
    }

    async fn send(
        &self,
        sink: &mut dyn Sink,
        progress: &mut Progress,
        mut batches: mpsc::Receiver<Batch>,
    ) -> Result<Pause, Pause> {
        loop {
            let due = progress.unconfirmed.map(|(_, since)| since + CONFIRM_EVERY);
            let batch = tokio::select! {
                biased;
                () = until(due) => None,
                batch = batches.recv() => match batch {
                    Some(batch) => Some(batch),
                    // The reader has ended, and says why.
                    None => return std::future::pending().await,
                },
            };
            let mut must_confirm = batch.is_none();
            if let Some(batch) = batch {
                let sent = sink.send(&batch).await?;
                progress.sent = batch.last;
                let (entries, since) = progress.unconfirmed.unwrap_or_else(|| (0, self.base.ids.clock().monotonic()));
                let entries = entries + u64::from(batch.entries);
                progress.unconfirmed = Some((entries, since));
                must_confirm = entries >= CONFIRM_ENTRIES;
                if sent == Sent::OnItsWay && !must_confirm {
                    continue;
                }
            }
            if must_confirm {
                sink.confirm().await?;
            }
            let entries = progress.unconfirmed.take().map_or(0, |(entries, _)| entries);
            self.reader.save(progress.sent).await?;
            (progress.safe, progress.moved) = (progress.sent, true);
            self.board.took(&self.settings.name, progress.safe, entries);
            self.tell().await;
        }
    }

    /// Writes into the log that a sink has fallen behind or is well again, once for each time.
    async fn tell(&self) {
        let Some((action, details)) = self.board.change(&self.settings.name) else { return };
        let call = self.base.internal_call("export");
        let act = Act::new(action, self.settings.name.clone(), details);
        if let Err(error) = self.base.journal.record(&self.base.db, &call, act, bibd_audit::Outcome::Ok).await {
            tracing::warn!(
                sink = self.settings.name,
                error = &error as &dyn std::error::Error,
                "how a sink is cannot be written into the audit log"
            );
        }
    }

    fn jittered(&self, pause: Duration) -> Duration {
        let [byte] = self.base.ids.entropy().bytes::<1>();
        pause + pause.mul_f64(0.25 * f64::from(byte) / 255.0)
    }
}

async fn until(due: Option<Instant>) {
    match due {
        Some(due) => tokio::time::sleep_until(due.into()).await,
        None => std::future::pending().await,
    }
}

/// Batches of about so many bytes each.
fn encode(encoder: &mut Encoder, rows: &[LoggedRow], batch_bytes: usize) -> Vec<Batch> {
    let mut batches = Vec::new();
    let mut bytes = Vec::with_capacity(batch_bytes.min(1 << 20));
    let mut entries = 0;
    for (at, row) in rows.iter().enumerate() {
        encoder.encode(&as_row(row), &mut bytes);
        entries += 1;
        if bytes.len() >= batch_bytes || at + 1 == rows.len() {
            batches.push(Batch { bytes: Bytes::from(std::mem::take(&mut bytes)), last: place_of(row), entries });
            entries = 0;
        }
    }
    batches
}
