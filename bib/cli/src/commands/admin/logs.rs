//! `bib admin logs`: the node's log lines.

use std::collections::BTreeMap;

use bib_client::pb;
use clap::{Args, ValueEnum};
use futures::TryStreamExt as _;

use crate::context::Context;
use crate::errors::Result;
use crate::output::{Format, record};

/// Shows the node's log lines
#[derive(Debug, Args)]
pub(crate) struct Logs {
    /// Lines from the past to begin with, at most 1000
    #[arg(short = 'n', long, default_value_t = 100, value_parser = clap::value_parser!(u32).range(..=1000))]
    lines: u32,
    /// Go on with new lines until you stop it
    #[arg(short, long)]
    follow: bool,
    /// This level and worse
    #[arg(long, value_enum, default_value = "info")]
    level: Level,
}

/// Levels of the log.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Level {
    Error,
    Warn,
    Info,
    Debug,
    Trace,
}

record! {
    /// A log line.
    LogRow { time: String = Time listed, level: String = Text listed, target: String = Text listed, message: String = Text listed, fields: BTreeMap<String, String> = Text }
}

impl Logs {
    /// Runs the command.
    pub(crate) async fn run(self, context: &Context) -> Result<()> {
        let level = match self.level {
            Level::Error => "error",
            Level::Warn => "warn",
            Level::Info => "info",
            Level::Debug => "debug",
            Level::Trace => "trace",
        };
        let request = pb::StreamLogsRequest { level: level.to_owned(), tail: self.lines, follow: self.follow };
        let mut lines = context.client().await?.admin().logs(request).await?;
        if context.output.format() == Format::Table {
            while let Some(line) = lines.try_next().await? {
                context.output.text(&in_one_line(&line))?;
            }
            return Ok(());
        }
        let mut list = context.output.list();
        while let Some(line) = lines.try_next().await? {
            list.push(&LogRow::from(line))?;
            list.flush()?;
        }
        list.finish("no lines").map(|_| ())
    }
}

fn in_one_line(line: &pb::LogEntry) -> String {
    let mut fields: Vec<_> = line.fields.iter().map(|(name, value)| format!(" {name}={value}")).collect();
    fields.sort();
    let text =
        format!("{} {:5} {} {}{}", line.time, line.level.to_uppercase(), line.target, line.message, fields.concat());
    bib_core::text::scrub(&text).into_owned()
}

impl From<pb::LogEntry> for LogRow {
    fn from(line: pb::LogEntry) -> Self {
        Self {
            time: line.time,
            level: line.level,
            target: line.target,
            message: line.message,
            fields: line.fields.into_iter().collect(),
        }
    }
}
