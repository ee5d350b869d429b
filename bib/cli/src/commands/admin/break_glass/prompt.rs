//! The prompt for a machine without `psql`: statements that end with `;`, answers as tables, Ctrl-C cancels, `\q` leaves.

use std::io::{self, IsTerminal as _, Write as _};
use std::time::Duration;

use bib_client::api::BreakGlass;
use comfy_table::{Table, presets};
use tokio::io::DuplexStream;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::mpsc;
use tokio_postgres::{Client, Config, NoTls, SimpleQueryMessage};

use super::connect::pipe;
use crate::context::Context;
use crate::errors::{Exit, Failure, Result};

/// What lies between the two ends of a pipe.
const BUFFER_BYTES: usize = 64 << 10;
/// How long the node may take to hear that the person has left.
const GOODBYE: Duration = Duration::from_secs(2);

/// Runs the prompt until its input ends.
pub(super) async fn run(context: &Context, glass: &BreakGlass) -> Result<()> {
    let (near, far) = tokio::io::duplex(BUFFER_BYTES);
    let mut carried = Box::pin(pipe(glass.clone(), far));
    let mut config = Config::new();
    config.user("break-glass").dbname("bib").application_name("bib");
    let connecting = config.connect_raw(near, NoTls);
    let (client, connection) = tokio::select! {
        outcome = connecting => outcome.map_err(|error| database(&error))?,
        outcome = &mut carried => {
            outcome?;
            return Err(Failure::new(Exit::Unavailable, "the node ended the session before it began"));
        }
    };
    let wire = async { tokio::join!(connection, carried) };
    tokio::pin!(wire);
    let (talked, wired) = tokio::select! {
        biased;
        wired = &mut wire => (Ok(()), Some(wired)),
        // The prompt takes the client along, and so the connection says goodbye; the node hears it.
        talked = talk(context, glass, client) => (talked, tokio::time::timeout(GOODBYE, &mut wire).await.ok()),
    };
    let Some((spoken, carried)) = wired else { return talked };
    match spoken {
        // What the node said last tells more than a connection that is closed.
        Err(error) if error.as_db_error().is_some() || talked.is_ok() => Err(database(&error)),
        _ => talked.and(Ok(carried?)),
    }
}

/// Lines as they are typed. In a thread of its own: what waits for a keyboard must keep neither the prompt nor the end of the
/// program waiting.
fn typed() -> mpsc::Receiver<io::Result<String>> {
    let (send, lines) = mpsc::channel(1);
    std::thread::spawn(move || {
        loop {
            let mut line = String::new();
            let read = match io::stdin().read_line(&mut line) {
                // The end of the input is the end of the channel.
                Ok(0) => break,
                read => read.map(|_| line),
            };
            let is_last = read.is_err();
            if send.blocking_send(read).is_err() || is_last {
                break;
            }
        }
    });
    lines
}

async fn talk(context: &Context, glass: &BreakGlass, client: Client) -> Result<()> {
    let failed = |error: io::Error| Failure::failed(format!("watch for signals: {error}"));
    let mut interrupts = signal(SignalKind::interrupt()).map_err(failed)?;
    let is_terminal = io::stdin().is_terminal();
    let (mut lines, mut statement) = (typed(), String::new());
    loop {
        if is_terminal {
            let mut to = io::stdout().lock();
            // A prompt that cannot be shown is no reason to stop.
            let _ = write!(to, "{}", if statement.is_empty() { "bib=> " } else { "bib-> " });
            let _ = to.flush();
        }
        let line = tokio::select! {
            line = lines.recv() => line.transpose()?,
            _ = interrupts.recv() => {
                statement.clear();
                continue;
            }
        };
        let is_end = line.is_none();
        let line = line.unwrap_or_default();
        if statement.is_empty() && line.trim() == "\\q" {
            return Ok(());
        }
        statement.push_str(&line);
        if statement.trim_end().ends_with(';') || (is_end && !statement.trim().is_empty()) {
            ask(context, glass, &client, &std::mem::take(&mut statement), &mut interrupts).await?;
        }
        if is_end {
            return Ok(());
        }
    }
}

/// One statement. An error of the database is shown and no reason to leave.
async fn ask(
    context: &Context,
    glass: &BreakGlass,
    client: &Client,
    statement: &str,
    interrupts: &mut Signal,
) -> Result<()> {
    let answer = client.simple_query(statement);
    tokio::pin!(answer);
    let outcome = loop {
        tokio::select! {
            outcome = &mut answer => break outcome,
            _ = interrupts.recv() => cancel(glass, client).await?,
        }
    };
    match outcome {
        Ok(messages) => context.output.text(&shown(&messages)),
        Err(error) if error.is_closed() => Err(database(&error)),
        Err(error) => {
            context.output.say(&error.as_db_error().map_or_else(|| error.to_string(), |said| said.to_string()));
            Ok(())
        }
    }
}

/// Through a connection of its own, as the protocol wants it.
async fn cancel(glass: &BreakGlass, client: &Client) -> Result<()> {
    let (near, far): (DuplexStream, DuplexStream) = tokio::io::duplex(BUFFER_BYTES);
    let token = client.cancel_token();
    let (asked, carried) = tokio::join!(token.cancel_query_raw(near, NoTls), pipe(glass.clone(), far));
    asked.map_err(|error| database(&error))?;
    Ok(carried?)
}

fn shown(messages: &[SimpleQueryMessage]) -> String {
    let mut text = String::new();
    let mut table: Option<Table> = None;
    for message in messages {
        match message {
            SimpleQueryMessage::RowDescription(columns) => {
                let mut next = Table::new();
                next.load_preset(presets::NOTHING).set_header(columns.iter().map(|column| column.name().to_owned()));
                table = Some(next);
            }
            SimpleQueryMessage::Row(row) => {
                let cells = (0..row.len()).map(|at| row.get(at).unwrap_or_default().to_owned());
                table.get_or_insert_default().add_row(cells);
            }
            SimpleQueryMessage::CommandComplete(rows) => {
                if let Some(table) = table.take() {
                    text.push_str(&format!("{table}\n"));
                }
                text.push_str(&format!("({rows} {})\n", if *rows == 1 { "row" } else { "rows" }));
            }
            _ => {}
        }
    }
    text
}

fn database(error: &tokio_postgres::Error) -> Failure {
    let said = error.as_db_error().map_or_else(|| error.to_string(), |said| said.message().to_owned());
    Failure::new(Exit::Unavailable, format!("the session is over: {said}"))
}
