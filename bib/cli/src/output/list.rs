//! Many things, printed as they come: a million files need no more memory than a thousand.

use std::io::Write as _;
use std::marker::PhantomData;

use comfy_table::presets::NOTHING;
use comfy_table::{Cell, ContentArrangement, Table};
use futures::{Stream, TryStreamExt as _};
use serde_json::Value;

use super::{Field, Format, Output, Record, cell, csv_writer, json_text, to_value};
use crate::errors::{Failure, Result};

/// Rows of a table that are laid out together.
const ROWS_TOGETHER: usize = 1000;

/// A list under way. Nothing is complete before [`List::finish`].
pub(crate) struct List<'a, R> {
    output: &'a Output,
    rows: Vec<Value>,
    count: u64,
    has_header: bool,
    record: PhantomData<fn(R)>,
}

impl<'a, R: Record> List<'a, R> {
    pub(super) fn new(output: &'a Output) -> Self {
        Self { output, rows: Vec::new(), count: 0, has_header: false, record: PhantomData }
    }

    /// One more.
    pub(crate) fn push(&mut self, record: &R) -> Result<()> {
        match self.output.format() {
            Format::Json => {
                let text = json_text(record)?.replace('\n', "\n  ");
                let before = if self.count == 0 { "[\n  " } else { ",\n  " };
                write!(self.output.lock(), "{before}{text}")?;
            }
            Format::Yaml => super::write_yaml(&mut **self.output.lock(), &[record])?,
            Format::Csv => {
                let mut to = self.output.lock();
                let mut csv = csv_writer(&mut *to);
                if self.count == 0 {
                    cell::write_csv_header(&mut csv, R::FIELDS)?;
                }
                cell::write_csv_row(&mut csv, R::FIELDS, &to_value(record)?, self.output.exact_csv)?;
                csv.flush()?;
            }
            _ => {
                self.rows.push(to_value(record)?);
                if self.rows.len() == ROWS_TOGETHER {
                    self.write_rows()?;
                }
            }
        }
        self.count += 1;
        Ok(())
    }

    /// Prints what is laid out so far, for lists that go on for hours.
    pub(crate) fn flush(&mut self) -> Result<()> {
        self.write_rows()?;
        self.output.flush()
    }

    /// Ends the list. `none` is what a person is told when it is empty.
    pub(crate) fn finish(mut self, none: &str) -> Result<u64> {
        match (self.output.format(), self.count) {
            (Format::Json, 0) => self.output.bytes(b"[]\n")?,
            (Format::Json, _) => self.output.bytes(b"\n]\n")?,
            (Format::Yaml, 0) => self.output.bytes(b"[]\n")?,
            (Format::Csv, 0) => {
                let mut to = self.output.lock();
                let mut csv = csv_writer(&mut *to);
                cell::write_csv_header(&mut csv, R::FIELDS)?;
                csv.flush()?;
            }
            (Format::Yaml | Format::Csv, _) => {}
            (_, 0) => self.output.note(none),
            _ => self.write_rows()?,
        }
        self.output.flush()?;
        Ok(self.count)
    }

    /// All of a stream, then the end.
    ///
    /// # Errors
    /// What the stream fails with; the output is then incomplete.
    pub(crate) async fn drain<T, E: Into<Failure>>(
        mut self,
        stream: impl Stream<Item = Result<T, E>>,
        convert: impl Fn(T) -> R,
        none: &str,
    ) -> Result<u64> {
        let mut stream = std::pin::pin!(stream);
        while let Some(item) = stream.try_next().await.map_err(Into::into)? {
            self.push(&convert(item))?;
        }
        self.finish(none)
    }

    fn write_rows(&mut self) -> Result<()> {
        if self.rows.is_empty() {
            return Ok(());
        }
        let fields: Vec<&Field> = R::FIELDS.iter().filter(|field| field.listed).collect();
        let mut table = Table::new();
        table.load_preset(NOTHING).set_content_arrangement(ContentArrangement::Disabled);
        let with_header = !std::mem::replace(&mut self.has_header, true);
        if with_header {
            table.set_header(fields.iter().map(|field| Cell::new(cell::title(field).to_uppercase())));
        }
        for row in self.rows.drain(..) {
            table.add_row(fields.iter().map(|f| Cell::new(cell::in_table(f, row.get(f.name).unwrap_or(&Value::Null)))));
        }
        for column in table.column_iter_mut() {
            column.set_padding((0, 2));
        }
        let text = table.to_string();
        let bold = with_header && self.output.colours().stdout;
        let mut to = self.output.lock();
        for (number, line) in text.lines().enumerate() {
            let line = line.trim_end();
            if bold && number == 0 { writeln!(to, "\x1b[1m{line}\x1b[0m")? } else { writeln!(to, "{line}")? }
        }
        Ok(())
    }
}
