//! Everything that `bib` prints on standard output goes through here: tables for eyes, JSON, YAML and CSV for programs.
//!
//! A command hands over a [`Record`] (one thing) or many of them; which fields it has, in which order and of which
//! kind is said once, by the [`record!`](crate::output::record) that declares it, and documented in `docs/cli.md`.
//! What came from a node is never printed raw: tables, YAML and CSV show unsafe characters as `\u{1b}`, JSON escapes
//! them, so that nothing is lost to a program.

mod cell;
mod list;
mod record;

use std::io::{self, IsTerminal as _, Write};
use std::sync::{Mutex, MutexGuard, PoisonError};

use bib_core::text::{scrub, scrub_lines};
use serde_json::Value;

pub(crate) use list::List;
pub(crate) use record::{Field, Kind, Record, record};

use crate::errors::{Failure, Result};

/// What `-o` takes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Format {
    /// For eyes.
    Table,
    /// One JSON value.
    Json,
    /// The same as YAML.
    Yaml,
    /// A header and a row for each thing.
    Csv,
    /// A table in Markdown (`admin db audit`).
    Markdown,
    /// DataCite 4.5 (`dataset show`).
    Datacite,
    /// RO-Crate 1.1 (`dataset show`).
    RoCrate,
    /// Croissant 1.0 (`dataset show`).
    Croissant,
    /// schema.org (`dataset show`).
    #[value(name = "schema.org")]
    SchemaOrg,
}

impl Format {
    /// Whether every command knows it.
    pub(crate) const fn is_common(self) -> bool {
        matches!(self, Self::Table | Self::Json | Self::Yaml | Self::Csv)
    }
}

/// Whether colours are wanted: `NO_COLOR` and a terminal that is none are respected.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Colours {
    /// On standard output.
    pub(crate) stdout: bool,
    /// On standard error.
    pub(crate) stderr: bool,
}

impl Colours {
    /// Looks at the terminals; `NO_COLOR` is set to anything but nothing, or `TERM` is `dumb`: none.
    pub(crate) fn detect(variable: impl Fn(&str) -> Option<String>) -> Self {
        let refused = variable("NO_COLOR").is_some_and(|value| !value.is_empty())
            || variable("TERM").is_some_and(|value| value == "dumb");
        Self { stdout: !refused && io::stdout().is_terminal(), stderr: !refused && io::stderr().is_terminal() }
    }
}

/// Where results and remarks go.
pub(crate) struct Output {
    format: Format,
    colours: Colours,
    quiet: bool,
    exact_csv: bool,
    to: Mutex<Box<dyn Write + Send>>,
    terminal: bool,
}

/// How an [`Output`] prints.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Manner {
    /// The format.
    pub(crate) format: Format,
    /// Colours.
    pub(crate) colours: Colours,
    /// No remarks.
    pub(crate) quiet: bool,
    /// CSV as it is, not made safe for spreadsheets.
    pub(crate) exact_csv: bool,
}

impl Output {
    /// Standard output.
    pub(crate) fn stdout(manner: Manner) -> Self {
        let buffered = io::BufWriter::with_capacity(64 * 1024, io::stdout());
        Self::new(manner, Box::new(buffered), io::stdout().is_terminal())
    }

    /// Any other place.
    pub(crate) fn new(manner: Manner, to: Box<dyn Write + Send>, terminal: bool) -> Self {
        let Manner { format, colours, quiet, exact_csv } = manner;
        Self { format, colours, quiet, exact_csv, to: Mutex::new(to), terminal }
    }

    /// The format.
    pub(crate) fn format(&self) -> Format {
        self.format
    }

    /// Whether colours are wanted.
    pub(crate) fn colours(&self) -> Colours {
        self.colours
    }

    /// Whether remarks and progress are unwanted.
    pub(crate) fn is_quiet(&self) -> bool {
        self.quiet
    }

    /// Refuses to write bytes that are not for eyes to a terminal.
    ///
    /// # Errors
    /// Exit 2 on a terminal.
    pub(crate) fn refuse_terminal(&self, what: &str, instead: &str) -> Result<()> {
        if self.terminal {
            return Err(Failure::usage(format!("{what} is not for a terminal")).with_hint(instead));
        }
        Ok(())
    }

    /// One thing.
    pub(crate) fn one<R: Record>(&self, record: &R) -> Result<()> {
        let value = to_value(record)?;
        let mut to = self.lock();
        match self.format {
            Format::Json => write_json(&mut *to, record)?,
            Format::Yaml => write_yaml(&mut *to, record)?,
            Format::Csv => {
                let mut csv = csv_writer(&mut *to);
                cell::write_csv_header(&mut csv, R::FIELDS)?;
                cell::write_csv_row(&mut csv, R::FIELDS, &value, self.exact_csv)?;
                csv.flush()?;
            }
            _ => cell::write_details(&mut *to, R::FIELDS, &value, self.colours.stdout)?,
        }
        to.flush()?;
        Ok(())
    }

    /// Many things, as they come.
    pub(crate) fn list<R: Record>(&self) -> List<'_, R> {
        List::new(self)
    }

    /// A JSON document of somebody else's format, such as DataCite: always JSON, or YAML when that is asked for.
    pub(crate) fn document(&self, value: &Value) -> Result<()> {
        let mut to = self.lock();
        match self.format {
            Format::Yaml => write_yaml(&mut *to, value)?,
            _ => write_json(&mut *to, value)?,
        }
        to.flush()?;
        Ok(())
    }

    /// Text of several lines that is the result itself, such as a citation.
    pub(crate) fn text(&self, text: &str) -> Result<()> {
        let mut to = self.lock();
        to.write_all(scrub_lines(text).as_bytes())?;
        if !text.ends_with('\n') {
            to.write_all(b"\n")?;
        }
        to.flush()?;
        Ok(())
    }

    /// Bytes as they are, for a file or a pipe.
    pub(crate) fn bytes(&self, bytes: &[u8]) -> Result<()> {
        Ok(self.lock().write_all(bytes)?)
    }

    /// As [`Output::bytes`], for code that writes to a [`Write`].
    pub(crate) fn write_bytes(&self, bytes: &[u8]) -> io::Result<()> {
        self.lock().write_all(bytes)
    }

    /// Writes out what is buffered.
    pub(crate) fn flush(&self) -> Result<()> {
        Ok(self.lock().flush()?)
    }

    /// A remark for the person, on standard error; not with `--quiet`.
    pub(crate) fn note(&self, text: &str) {
        if !self.quiet {
            self.say(text);
        }
    }

    /// What must be said even with `--quiet`, on standard error.
    pub(crate) fn say(&self, text: &str) {
        // There is nobody to tell when standard error cannot be written.
        let _ = writeln!(io::stderr(), "{}", scrub_lines(text));
    }

    fn lock(&self) -> MutexGuard<'_, Box<dyn Write + Send>> {
        self.to.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn to_value<R: serde::Serialize>(record: &R) -> Result<Value> {
    serde_json::to_value(record).map_err(|error| Failure::failed(format!("the result has no JSON form: {error}")))
}

fn json_text<T: serde::Serialize>(value: &T) -> Result<String> {
    let text = serde_json::to_string_pretty(value);
    text.map(|text| escape_json(&text))
        .map_err(|error| Failure::failed(format!("the result has no JSON form: {error}")))
}

fn write_json<T: serde::Serialize>(to: &mut dyn Write, value: &T) -> Result<()> {
    writeln!(to, "{}", json_text(value)?)?;
    Ok(())
}

fn write_yaml<T: serde::Serialize>(to: &mut dyn Write, value: &T) -> Result<()> {
    let failed = |error| Failure::failed(format!("the result has no YAML form: {error}"));
    let mut value = serde_yaml_ng::to_value(value).map_err(failed)?;
    // Plain scalars have no escapes, so what is unsafe to print is shown, not encoded: JSON is for programs.
    scrub_yaml(&mut value);
    to.write_all(serde_yaml_ng::to_string(&value).map_err(failed)?.as_bytes())?;
    Ok(())
}

fn scrub_yaml(value: &mut serde_yaml_ng::Value) {
    use serde_yaml_ng::Value as Yaml;
    match value {
        Yaml::String(text) => *text = scrub_lines(text).into_owned(),
        Yaml::Sequence(items) => items.iter_mut().for_each(scrub_yaml),
        Yaml::Mapping(members) => {
            *members = std::mem::take(members)
                .into_iter()
                .map(|(mut name, mut value)| {
                    scrub_yaml(&mut name);
                    scrub_yaml(&mut value);
                    (name, value)
                })
                .collect();
        }
        _ => {}
    }
}

fn csv_writer<W: Write>(to: W) -> csv::Writer<W> {
    csv::WriterBuilder::new().has_headers(false).from_writer(to)
}

/// JSON text with every character that is unsafe to print as an escape: the same value, byte for byte, once parsed.
///
/// Outside of strings JSON is ASCII without control characters other than line ends, so only strings are changed.
pub(crate) fn escape_json(text: &str) -> String {
    if matches!(scrub_lines(text), std::borrow::Cow::Borrowed(_)) {
        return text.to_owned();
    }
    let mut out = String::with_capacity(text.len() + 32);
    let mut one = [0; 4];
    for c in text.chars() {
        let is_safe = c == '\n' || matches!(scrub(c.encode_utf8(&mut one)), std::borrow::Cow::Borrowed(_));
        if is_safe {
            out.push(c);
        } else {
            let mut units = [0; 2];
            for unit in c.encode_utf16(&mut units) {
                out.push_str(&format!("\\u{unit:04x}"));
            }
        }
    }
    out
}

#[cfg(test)]
mod tests;
