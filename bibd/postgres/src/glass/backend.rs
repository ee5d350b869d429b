//! What the server answers, cut into messages and otherwise left as it is. Long ones are passed on in parts, so that a row
//! of a gigabyte costs no memory here; but not notices, since one may tell of a statement that must be recorded.

use bytes::{Bytes, BytesMut};
use fallible_iterator::FallibleIterator as _;
use postgres_protocol::message::backend::Message;

use super::Malformed;
use super::frontend::{Frame, MAX_MESSAGE_BYTES, length_of};

/// Up to here a message is looked at as a whole.
const WHOLE_BYTES: usize = 1 << 20;
/// Up to here a notice is, and no longer one is passed on: like a statement that somebody says.
const NOTICE_BYTES: usize = MAX_MESSAGE_BYTES;

/// A message, or a part of one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Piece {
    /// A message.
    Whole(Frame),
    /// The next bytes of one that is longer than [`WHOLE_BYTES`].
    Part {
        /// Of which kind.
        tag: u8,
        /// Bytes as they came.
        raw: Bytes,
        /// Nothing of it is left.
        is_last: bool,
    },
}

/// Cuts what comes.
#[derive(Debug, Default)]
pub struct Cutter {
    buffer: BytesMut,
    /// Of a long message: its kind, and the bytes that have not come.
    passing: Option<(u8, usize)>,
}

impl Cutter {
    /// Begins with what was read already.
    #[must_use]
    pub fn new(buffer: BytesMut) -> Self {
        Self { buffer, passing: None }
    }

    /// Where to read into.
    pub fn buffer(&mut self) -> &mut BytesMut {
        &mut self.buffer
    }

    /// The next piece, if enough has come.
    ///
    /// # Errors
    /// [`Malformed`], also for a notice that is too long to be recorded.
    pub fn cut(&mut self) -> Result<Option<Piece>, Malformed> {
        if let Some((tag, left)) = self.passing {
            let part = left.min(self.buffer.len());
            if part == 0 {
                return Ok(None);
            }
            self.passing = (left > part).then_some((tag, left - part));
            return Ok(Some(Piece::Part { tag, raw: self.buffer.split_to(part).freeze(), is_last: left == part }));
        }
        let Some(length) = length_of(&self.buffer)? else { return Ok(None) };
        let is_notice = self.buffer[0] == b'N';
        if is_notice && length > NOTICE_BYTES {
            return Err(Malformed("a statement inside of another is longer than 16 MiB, and so cannot be recorded"));
        }
        if length > WHOLE_BYTES && !is_notice {
            self.passing = Some((self.buffer[0], length));
            return self.cut();
        }
        if self.buffer.len() < length {
            return Ok(None);
        }
        Ok(Some(Piece::Whole(Frame { raw: self.buffer.split_to(length).freeze() })))
    }
}

/// What an answer says, as far as it is of interest for the record.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Told {
    /// The names of the columns to come, and whether each is in binary form.
    Columns(Vec<(String, bool)>),
    /// A row; `None` is NULL.
    Row(Vec<Option<Bytes>>),
    /// A statement is done: `INSERT 0 1`.
    Done(String),
    /// A statement failed.
    Failed(Report),
    /// A word beside.
    Notice(Report),
    /// The text of a statement that ran inside another.
    Nested(String),
    /// The server wants the bytes of a COPY.
    CopyIn,
    /// Bytes of a COPY come.
    CopyOut,
    /// Bytes of a COPY.
    CopyData(Bytes),
    /// All of a COPY came.
    CopyDone,
    /// The answer of a function that was called by number.
    Returned(Option<Bytes>),
    /// The next statement may come: `I` idle, `T` in a transaction, `E` in one that failed.
    Ready(char),
    /// Nothing that is of interest.
    Other,
}

/// An error or a notice.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Report {
    /// `ERROR`, `FATAL`, `INFO` ..
    pub severity: String,
    /// SQLSTATE.
    pub code: String,
    /// What it says.
    pub message: String,
}

/// How `auto_explain` begins: `duration: 0.004 ms  plan:`, then `Query Text: ..`, then the plan.
const NESTED_BEGIN: &str = "duration: ";
const NESTED_TEXT: &str = " ms  plan:\nQuery Text: ";

/// Reads an answer.
///
/// # Errors
/// [`Malformed`].
pub fn read(frame: &Frame) -> Result<Told, Malformed> {
    const UNREADABLE: Malformed = Malformed("an answer of the server cannot be read");
    match frame.tag() {
        b'T' | b'D' | b'C' | b'E' | b'N' | b'V' | b'Z' | b'd' => {}
        b'G' | b'W' => return Ok(Told::CopyIn),
        b'H' => return Ok(Told::CopyOut),
        b'c' => return Ok(Told::CopyDone),
        _ => return Ok(Told::Other),
    }
    if frame.tag() == b'V' {
        let body = frame.body();
        return Ok(Told::Returned(
            (body.first_chunk::<4>() != Some(&[0xff; 4])).then(|| body.slice(4.min(body.len())..)),
        ));
    }
    // The library takes bytes that it may take apart.
    let parsed = Message::parse(&mut BytesMut::from(frame.raw.as_ref())).ok().flatten().ok_or(UNREADABLE)?;
    Ok(match parsed {
        Message::RowDescription(body) => {
            let columns = body.fields().map(|field| Ok((field.name().to_owned(), field.format() == 1)));
            Told::Columns(columns.collect().map_err(|_| UNREADABLE)?)
        }
        Message::DataRow(body) => {
            let buffer = body.buffer_bytes().clone();
            let row = body.ranges().map(|range| Ok(range.map(|range| buffer.slice(range))));
            Told::Row(row.collect().map_err(|_| UNREADABLE)?)
        }
        Message::CommandComplete(body) => Told::Done(body.tag().map_err(|_| UNREADABLE)?.to_owned()),
        Message::ErrorResponse(body) => Told::Failed(report(body.fields())),
        Message::NoticeResponse(body) => {
            let report = report(body.fields());
            match nested(&report) {
                Some(text) => Told::Nested(text),
                None => Told::Notice(report),
            }
        }
        Message::CopyData(body) => Told::CopyData(body.into_bytes()),
        Message::ReadyForQuery(body) => Told::Ready(char::from(body.status())),
        _ => Told::Other,
    })
}

fn report(mut fields: postgres_protocol::message::backend::ErrorFields<'_>) -> Report {
    let mut report = Report::default();
    while let Ok(Some(field)) = fields.next() {
        let text = || String::from_utf8_lossy(field.value_bytes()).into_owned();
        match field.type_() {
            // Not translated, unlike `S`.
            b'V' => report.severity = text(),
            b'C' => report.code = text(),
            b'M' => report.message = text(),
            _ => {}
        }
    }
    report
}

/// The statement that `auto_explain` tells of. A person can make such a notice too, and then has it in the record.
fn nested(report: &Report) -> Option<String> {
    if report.severity != "INFO" || !report.message.starts_with(NESTED_BEGIN) {
        return None;
    }
    let (_, rest) = report.message.split_once(NESTED_TEXT)?;
    // The plan begins at the last line that is not indented and has its costs.
    // What looks like a plan before that is part of the statement, and must not hide the rest of it.
    let plan = rest.match_indices('\n').filter(|(at, _)| is_plan(&rest[at + 1..])).map(|(at, _)| at).next_back();
    Some(rest[..plan.unwrap_or(rest.len())].to_owned())
}

fn is_plan(text: &str) -> bool {
    let line = text.lines().next().unwrap_or_default();
    !line.starts_with(' ') && line.contains("  (cost=")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn message(tag: u8, body: &[u8]) -> Vec<u8> {
        let mut all = vec![tag];
        all.extend(u32::try_from(body.len() + 4).unwrap().to_be_bytes());
        all.extend(body);
        all
    }

    #[test]
    fn pieces_are_the_bytes_that_came_however_they_were_cut() {
        let mut all = message(b'Z', b"I");
        all.extend(message(b'D', &[vec![0, 1, 0, 0x20, 0, 0], vec![b'x'; 0x20_0000]].concat()));
        all.extend(message(b'C', b"SELECT 1\0"));
        for step in [1 << 22, 65_536, 999] {
            let (mut cutter, mut out, mut lasts) = (Cutter::default(), Vec::new(), 0);
            for part in all.chunks(step) {
                cutter.buffer().extend_from_slice(part);
                while let Some(piece) = cutter.cut().unwrap() {
                    match piece {
                        Piece::Whole(frame) => out.extend_from_slice(&frame.raw),
                        Piece::Part { tag, raw, is_last } => {
                            assert_eq!(tag, b'D');
                            lasts += u32::from(is_last);
                            out.extend_from_slice(&raw);
                        }
                    }
                }
                assert!(cutter.buffer().len() <= step.max(WHOLE_BYTES));
            }
            assert!(out == all && lasts == 1, "{step}");
        }
    }

    #[test]
    fn a_notice_is_whole_or_it_is_not_passed_on() {
        let whole = message(b'N', &vec![b'x'; WHOLE_BYTES + 9]);
        let mut cutter = Cutter::new(BytesMut::from(whole.as_slice()));
        assert_eq!(cutter.cut(), Ok(Some(Piece::Whole(Frame { raw: whole.into() }))));
        let head = [&b"N"[..], &u32::try_from(NOTICE_BYTES).unwrap().to_be_bytes()].concat();
        assert!(Cutter::new(BytesMut::from(head.as_slice())).cut().is_err());
    }

    #[test]
    fn reads_what_matters_and_nothing_else() {
        let told = |tag, body: &[u8]| read(&Frame { raw: message(tag, body).into() });
        assert_eq!(told(b'C', b"INSERT 0 1\0"), Ok(Told::Done("INSERT 0 1".to_owned())));
        assert_eq!(told(b'Z', b"T"), Ok(Told::Ready('T')));
        let row = [&[0, 2][..], &[0, 0, 0, 1, b'a'], &[0xff; 4]].concat();
        assert_eq!(told(b'D', &row), Ok(Told::Row(vec![Some(Bytes::from_static(b"a")), None])));
        assert!(told(b'D', &[0, 9]).is_err());
        let error = Report { severity: "ERROR".into(), code: "42501".into(), message: "no".into() };
        assert_eq!(told(b'E', b"SERROR\0VERROR\0C42501\0Mno\0\0"), Ok(Told::Failed(error)));
        assert_eq!(told(b'V', &[0xff; 4]), Ok(Told::Returned(None)));
        assert_eq!(told(b'S', b"a\0b\0"), Ok(Told::Other));
    }

    #[test]
    fn a_nested_statement_is_told_without_its_plan() {
        let info = |message: &str| Report { severity: "INFO".into(), code: "00000".into(), message: message.into() };
        let text = "duration: 0.004 ms  plan:\nQuery Text: SELECT 1\n  FROM t\nSeq Scan on t  (cost=0.00..1.00 rows=1 width=4)";
        assert_eq!(nested(&info(text)).as_deref(), Some("SELECT 1\n  FROM t"));
        let fake = format!(
            "{NESTED_BEGIN}1{NESTED_TEXT}SELECT 1 /*\nx  (cost=\n*/, 'rest'\nResult  (cost=0.00..0.01 rows=1 width=36)"
        );
        assert_eq!(nested(&info(&fake)).as_deref(), Some("SELECT 1 /*\nx  (cost=\n*/, 'rest'"));
        assert_eq!(nested(&info("duration: 1 ms  plan:\nQuery Text: SELECT 1")).as_deref(), Some("SELECT 1"));
        assert_eq!(nested(&Report { severity: "NOTICE".into(), ..info(text) }), None);
        assert_eq!(nested(&info("hello")), None);
    }
}
