//! The daemon's own log: lines for the operator, and the last of them in memory for `bib admin logs`.
//!
//! A line never contains a control character except its end, so that nobody's name can forge one. Fields with secrets
//! are never logged; nothing here could take them out again.

use std::collections::{BTreeMap, VecDeque};
use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt as _;
use std::sync::{Arc, Mutex, PoisonError};

use bib_core::Timestamp;
use tokio::sync::broadcast;
use tracing::field::{Field, Visit};
use tracing::{Event, Subscriber};
use tracing_subscriber::filter::LevelFilter;
use tracing_subscriber::fmt::MakeWriter;
use tracing_subscriber::fmt::format::Writer;
use tracing_subscriber::fmt::time::FormatTime;
use tracing_subscriber::layer::{Context, SubscriberExt as _};
use tracing_subscriber::registry::LookupSpan;
use tracing_subscriber::{Layer, Registry, reload};

use crate::clock::Clock;
use crate::config::{self, Level, LogFormat};

/// Lines that are kept in memory.
const KEPT: usize = 2_000;
/// Lines that a slow follower may be behind before it loses some.
const BEHIND: usize = 1_024;
/// The longest text of one field in memory, in bytes.
const MAX_FIELD_BYTES: usize = 4 * 1024;

/// One line of the log.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LogLine {
    /// When.
    pub time: Timestamp,
    /// How much it matters.
    pub level: Level,
    /// Which module says it.
    pub target: String,
    /// The sentence.
    pub message: String,
    /// The fields of the event and of the spans around it.
    pub fields: BTreeMap<String, String>,
}

/// The logs cannot be set up.
#[derive(Debug, thiserror::Error)]
#[error("open the log file `{path}`")]
pub struct LogError {
    path: std::path::PathBuf,
    #[source]
    source: io::Error,
}

type Reload = Arc<dyn Fn(Level) -> bool + Send + Sync>;

/// The log as the rest of the daemon sees it. Cheap to clone.
#[derive(Clone)]
pub struct Logs {
    memory: Arc<Memory>,
    reload: Reload,
}

impl std::fmt::Debug for Logs {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Logs")
    }
}

struct Memory {
    lines: Mutex<VecDeque<Arc<LogLine>>>,
    live: broadcast::Sender<Arc<LogLine>>,
}

impl Logs {
    /// The newest lines at `level` or above, oldest first, at most `count`, and every line after them.
    #[must_use]
    pub fn tail(&self, level: Level, count: usize) -> (Vec<Arc<LogLine>>, broadcast::Receiver<Arc<LogLine>>) {
        let lines = self.memory.lines.lock().unwrap_or_else(PoisonError::into_inner);
        let live = self.memory.live.subscribe();
        let mut found: Vec<_> =
            lines.iter().rev().filter(|line| matters(line.level, level)).take(count).cloned().collect();
        found.reverse();
        (found, live)
    }

    /// Changes how much is logged, from now on. False when this process's log was set up by somebody else.
    pub fn set_level(&self, level: Level) -> bool {
        (self.reload)(level)
    }
}

/// Does a line of this level belong to a log that is read at `wanted`?
#[must_use]
pub fn matters(level: Level, wanted: Level) -> bool {
    level as u8 <= wanted as u8
}

/// Sets up the log of this process. A second call in one process (two daemons in one test) gets a memory that stays
/// empty: the first one keeps the log.
///
/// # Errors
/// When the log file cannot be opened.
pub fn init(config: &config::Log, clock: Arc<dyn Clock>) -> Result<Logs, LogError> {
    let sink = match &config.file {
        None => Sink::Stderr,
        Some(path) => {
            let mut options = OpenOptions::new();
            options.append(true).create(true).mode(0o600);
            let file = options.open(path).map_err(|source| LogError { path: path.clone(), source })?;
            Sink::File(Arc::new(file))
        }
    };
    let memory = Arc::new(Memory { lines: Mutex::default(), live: broadcast::Sender::new(BEHIND) });
    let (filter, handle) = reload::Layer::new(filter(config.level));
    let format =
        tracing_subscriber::fmt::layer().with_ansi(false).with_timer(ClockTimer(Arc::clone(&clock))).with_writer(sink);
    let lines: Box<dyn Layer<_> + Send + Sync> = match config.format {
        LogFormat::Text => format.boxed(),
        LogFormat::Json => format.json().flatten_event(true).boxed(),
    };
    let ring = Ring { memory: Arc::clone(&memory), clock };
    let subscriber = Registry::default().with(filter).with(lines).with(ring);
    let is_ours = tracing::subscriber::set_global_default(subscriber).is_ok();
    if is_ours {
        log_panics();
    }
    let reload: Reload = Arc::new(move |level| is_ours && handle.reload(self::filter(level)).is_ok());
    Ok(Logs { memory, reload })
}

/// Libraries say less than we do: HTTP/2 frames and SQL are of no use to an operator, and statements could carry data.
fn filter(level: Level) -> tracing_subscriber::filter::Targets {
    let ours = level_filter(level);
    let theirs = ours.min(if level == Level::Trace { LevelFilter::DEBUG } else { LevelFilter::INFO });
    tracing_subscriber::filter::Targets::new()
        .with_default(theirs)
        .with_target("bib", ours)
        .with_target("sqlx", theirs.min(LevelFilter::WARN))
        .with_target("h2", theirs.min(LevelFilter::INFO))
}

fn level_filter(level: Level) -> LevelFilter {
    match level {
        Level::Error => LevelFilter::ERROR,
        Level::Warn => LevelFilter::WARN,
        Level::Info => LevelFilter::INFO,
        Level::Debug => LevelFilter::DEBUG,
        Level::Trace => LevelFilter::TRACE,
    }
}

/// A panic becomes a log line with its place.
fn log_panics() {
    std::panic::set_hook(Box::new(|info| {
        let place = info.location().map(ToString::to_string).unwrap_or_default();
        let text = crate::supervisor::panic_text(info.payload());
        tracing::error!(panic.place = place, panic.message = text, "a thread panicked");
    }));
}

struct ClockTimer(Arc<dyn Clock>);

impl FormatTime for ClockTimer {
    fn format_time(&self, w: &mut Writer<'_>) -> std::fmt::Result {
        write!(w, "{}", self.0.now())
    }
}

#[derive(Clone)]
enum Sink {
    Stderr,
    File(Arc<File>),
}

/// Writes one event: the formatter hands over whole lines.
struct LineWriter(Sink);

impl<'a> MakeWriter<'a> for Sink {
    type Writer = LineWriter;

    fn make_writer(&'a self) -> LineWriter {
        LineWriter(self.clone())
    }
}

impl Write for LineWriter {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let text = String::from_utf8_lossy(bytes);
        let mut line = escape(text.strip_suffix('\n').unwrap_or(&text));
        line.push('\n');
        match &self.0 {
            Sink::Stderr => io::stderr().lock().write_all(line.as_bytes())?,
            Sink::File(file) => file.as_ref().write_all(line.as_bytes())?,
        }
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Control characters and what changes the direction of text, as `\u{..}`.
fn escape(text: &str) -> String {
    let hidden = |c: char| {
        c.is_control()
            || matches!(c, '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}' | '\u{feff}')
    };
    if !text.contains(hidden) {
        return text.to_owned();
    }
    text.chars().fold(String::with_capacity(text.len() + 16), |mut out, c| {
        if hidden(c) {
            out.extend(c.escape_unicode());
        } else {
            out.push(c);
        }
        out
    })
}

/// Keeps lines in memory.
struct Ring {
    memory: Arc<Memory>,
    clock: Arc<dyn Clock>,
}

/// The fields of a span, kept beside it.
struct SpanFields(BTreeMap<String, String>);

#[derive(Default)]
struct Collect {
    message: String,
    fields: BTreeMap<String, String>,
}

impl Collect {
    fn put(&mut self, field: &Field, text: &str) {
        let mut text = escape(text);
        if text.len() > MAX_FIELD_BYTES {
            let end = (0..=MAX_FIELD_BYTES).rev().find(|at| text.is_char_boundary(*at)).unwrap_or(0);
            text.truncate(end);
        }
        if field.name() == "message" {
            self.message = text;
        } else {
            self.fields.insert(field.name().to_owned(), text);
        }
    }
}

impl Visit for Collect {
    fn record_debug(&mut self, field: &Field, value: &dyn std::fmt::Debug) {
        self.put(field, &format!("{value:?}"));
    }

    fn record_str(&mut self, field: &Field, value: &str) {
        self.put(field, value);
    }
}

impl<S: Subscriber + for<'a> LookupSpan<'a>> Layer<S> for Ring {
    fn on_new_span(&self, attributes: &tracing::span::Attributes<'_>, id: &tracing::span::Id, context: Context<'_, S>) {
        let mut collect = Collect::default();
        attributes.record(&mut collect);
        if let Some(span) = context.span(id) {
            span.extensions_mut().replace(SpanFields(collect.fields));
        }
    }

    fn on_record(&self, id: &tracing::span::Id, values: &tracing::span::Record<'_>, context: Context<'_, S>) {
        let mut collect = Collect::default();
        values.record(&mut collect);
        if let Some(span) = context.span(id)
            && let Some(SpanFields(fields)) = span.extensions_mut().get_mut()
        {
            fields.append(&mut collect.fields);
        }
    }

    fn on_event(&self, event: &Event<'_>, context: Context<'_, S>) {
        let mut collect = Collect::default();
        for span in context.event_scope(event).into_iter().flatten() {
            if let Some(SpanFields(fields)) = span.extensions().get() {
                collect.fields.extend(fields.iter().map(|(name, text)| (name.clone(), text.clone())));
            }
        }
        event.record(&mut collect);
        let level = match *event.metadata().level() {
            tracing::Level::ERROR => Level::Error,
            tracing::Level::WARN => Level::Warn,
            tracing::Level::INFO => Level::Info,
            tracing::Level::DEBUG => Level::Debug,
            tracing::Level::TRACE => Level::Trace,
        };
        let line = Arc::new(LogLine {
            time: self.clock.now(),
            level,
            target: event.metadata().target().to_owned(),
            message: collect.message,
            fields: collect.fields,
        });
        let mut lines = self.memory.lines.lock().unwrap_or_else(PoisonError::into_inner);
        if lines.len() == KEPT {
            lines.pop_front();
        }
        lines.push_back(Arc::clone(&line));
        // Under the lock, so that a tail neither misses a line nor sees one twice. Nobody following is no error.
        let _ = self.memory.live.send(line);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::SystemClock;

    #[test]
    fn lines_are_kept_escaped_and_one_to_a_line() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("bibd.log");
        let config = config::Log { file: Some(file.clone()), ..config::Log::default() };
        let logs = init(&config, Arc::new(SystemClock)).unwrap();
        let span = tracing::info_span!(target: "bibd", "call", request.id = "r1", actor = tracing::field::Empty);
        span.in_scope(|| {
            span.record("actor", "ada");
            tracing::info!(target: "bibd", topic = "a\nforged ERROR line\u{1b}[31m\u{202e}", "a topic was made");
        });
        tracing::debug!(target: "bibd", "not at this level");
        let (lines, _live) = logs.tail(Level::Info, 10);
        assert_eq!(lines.len(), 1);
        assert_eq!(lines[0].message, "a topic was made");
        assert_eq!((lines[0].fields["request.id"].as_str(), lines[0].fields["actor"].as_str()), ("r1", "ada"));
        let text = std::fs::read_to_string(&file).unwrap();
        assert_eq!(text.lines().count(), 1, "{text}");
        assert!(!text.contains('\u{1b}') && !text.contains('\u{202e}'), "{text:?}");
        assert!(logs.set_level(Level::Debug));
        tracing::debug!(target: "bibd", "now it is");
        assert_eq!(logs.tail(Level::Debug, 10).0.len(), 2);
        assert_eq!(logs.tail(Level::Warn, 10).0.len(), 0);
    }
}
