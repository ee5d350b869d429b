//! The daemon's log on the wire.

use std::sync::Arc;

use bib_proto::v1::LogEntry;
use futures::StreamExt as _;
use futures::stream::{self, BoxStream};
use tokio::sync::broadcast;
use tonic::Status;

use crate::config::Level;
use crate::logging::{LogLine, Logs, matters};
use crate::services::ServiceError;

/// Lines from the past that a stream may begin with.
const MAX_TAIL: usize = 1000;

/// The level that a request names.
///
/// # Errors
/// When it is none.
pub(super) fn level(word: &str) -> Result<Level, ServiceError> {
    const LEVELS: [Level; 5] = [Level::Error, Level::Warn, Level::Info, Level::Debug, Level::Trace];
    match word {
        "" => Ok(Level::Info),
        word => LEVELS
            .into_iter()
            .find(|level| level.as_str() == word)
            .ok_or_else(|| ServiceError::invalid("level", "is error, warn, info, debug or trace")),
    }
}

/// The newest lines and, when `follow`, each after them.
pub(super) fn lines(
    logs: &Logs,
    level: Level,
    tail: u32,
    follow: bool,
) -> BoxStream<'static, Result<LogEntry, Status>> {
    let count = usize::try_from(tail).unwrap_or(MAX_TAIL).min(MAX_TAIL);
    let (past, live) = logs.tail(level, count);
    let past = stream::iter(past.into_iter().map(|line| Ok(entry(&line))));
    if !follow {
        return past.boxed();
    }
    let live = stream::unfold(live, move |mut live| async move {
        let entry = next(&mut live, level).await?;
        Some((Ok(entry), live))
    });
    past.chain(live).boxed()
}

async fn next(live: &mut broadcast::Receiver<Arc<LogLine>>, level: Level) -> Option<LogEntry> {
    loop {
        match live.recv().await {
            Ok(line) if matters(line.level, level) => return Some(entry(&line)),
            Ok(_) => {}
            Err(broadcast::error::RecvError::Lagged(missed)) => {
                let message = format!("{missed} lines are missing here: they came faster than they were read");
                let level = Level::Warn.as_str().to_owned();
                return Some(LogEntry { level, target: "bibd".to_owned(), message, ..LogEntry::default() });
            }
            Err(broadcast::error::RecvError::Closed) => return None,
        }
    }
}

fn entry(line: &LogLine) -> LogEntry {
    LogEntry {
        time: line.time.to_string(),
        level: line.level.as_str().to_owned(),
        target: line.target.clone(),
        message: line.message.clone(),
        fields: line.fields.clone().into_iter().collect(),
    }
}
