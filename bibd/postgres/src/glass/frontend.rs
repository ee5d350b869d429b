//! What a person's program sends: PostgreSQL's protocol, version 3 (`Frontend/Backend Protocol`, chapters 55.2 and 55.7 of
//! its manual). Bounded before anything is kept; unknown means refused.

use bytes::{Buf as _, BufMut as _, Bytes, BytesMut};

use super::{BackendKey, Malformed};

/// The longest opening message, as the server itself has it.
const MAX_OPENING_BYTES: usize = 10_000;
/// The longest message. A statement that is longer cannot be recorded in one piece, and so is refused.
pub const MAX_MESSAGE_BYTES: usize = 16 << 20;
/// Of an opening, a tag and its length.
const HEAD_BYTES: usize = 5;

/// The first message of a connection. It has no tag.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Opening {
    /// It asks for TLS.
    Tls,
    /// It asks for GSSAPI encryption.
    Gss,
    /// It asks to cancel what another connection does.
    Cancel(BackendKey),
    /// It begins a session.
    Start(Startup),
}

/// The beginning of a session.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Startup {
    /// The protocol is 3 and this.
    pub minor: u16,
    /// Names and values as they were sent.
    pub parameters: Vec<(String, String)>,
}

/// Takes the opening out of what has come so far.
///
/// # Errors
/// [`Malformed`].
pub fn opening(buffer: &mut BytesMut) -> Result<Option<Opening>, Malformed> {
    const CANCEL: u32 = (1234 << 16) | 5678;
    const TLS: u32 = (1234 << 16) | 5679;
    const GSS: u32 = (1234 << 16) | 5680;
    let Some(head) = buffer.first_chunk::<4>() else { return Ok(None) };
    let length = usize::try_from(u32::from_be_bytes(*head)).unwrap_or(usize::MAX);
    if !(8..=MAX_OPENING_BYTES).contains(&length) {
        return Err(Malformed("the first message has an impossible length"));
    }
    if buffer.len() < length {
        return Ok(None);
    }
    let mut body = Cut(buffer.split_to(length).freeze());
    body.u32()?;
    match body.u32()? {
        TLS => body.end().map(|()| Some(Opening::Tls)),
        GSS => body.end().map(|()| Some(Opening::Gss)),
        CANCEL => {
            let key = BackendKey { pid: body.u32()?.cast_signed(), secret: body.u32()?.cast_signed() };
            body.end().map(|()| Some(Opening::Cancel(key)))
        }
        version if version >> 16 == 3 => {
            let mut parameters = Vec::new();
            loop {
                let name = body.text()?;
                if name.is_empty() {
                    break;
                }
                parameters.push((utf8(&name)?, utf8(&body.text()?)?));
            }
            body.end()?;
            Ok(Some(Opening::Start(Startup { minor: u16::try_from(version & 0xffff).unwrap_or(0), parameters })))
        }
        _ => Err(Malformed("the protocol's version is not 3")),
    }
}

/// A message as it came.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Frame {
    /// Tag, length and body.
    pub raw: Bytes,
}

impl Frame {
    /// What kind of message.
    #[must_use]
    pub fn tag(&self) -> u8 {
        self.raw[0]
    }

    /// The message without tag and length.
    #[must_use]
    pub fn body(&self) -> Bytes {
        self.raw.slice(HEAD_BYTES..)
    }
}

/// Takes the next whole message out of what has come so far.
///
/// # Errors
/// [`Malformed`] for one that is too long.
pub fn frame(buffer: &mut BytesMut) -> Result<Option<Frame>, Malformed> {
    let Some(length) = length_of(buffer)? else { return Ok(None) };
    if length > MAX_MESSAGE_BYTES {
        return Err(Malformed("a message is longer than 16 MiB, and so cannot be recorded"));
    }
    if buffer.len() < length {
        buffer.reserve(length - buffer.len());
        return Ok(None);
    }
    Ok(Some(Frame { raw: buffer.split_to(length).freeze() }))
}

/// Bytes of the message that the buffer begins with, its tag included.
pub(super) fn length_of(buffer: &[u8]) -> Result<Option<usize>, Malformed> {
    let Some(head) = buffer.first_chunk::<HEAD_BYTES>() else { return Ok(None) };
    let length = u32::from_be_bytes([head[1], head[2], head[3], head[4]]);
    // The length counts itself and not the tag.
    if !(4..=i32::MAX.cast_unsigned()).contains(&length) {
        return Err(Malformed("a message has an impossible length"));
    }
    Ok(Some(1 + usize::try_from(length).unwrap_or(usize::MAX)))
}

/// A value of a parameter.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Value {
    /// Whether it is in the type's binary form.
    pub is_binary: bool,
    /// The bytes; `None` is NULL.
    pub bytes: Option<Bytes>,
}

/// What a message says, as far as it is of interest for the record.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Said {
    /// Statements to run at once.
    Query(Bytes),
    /// A statement to prepare.
    Parse {
        /// The name that it gets.
        name: Bytes,
        /// Its text.
        text: Bytes,
    },
    /// Values for a prepared statement.
    Bind {
        /// The name that the statement with its values gets.
        portal: Bytes,
        /// The statement.
        statement: Bytes,
        /// The values.
        values: Vec<Value>,
    },
    /// Runs a prepared statement with its values.
    Execute {
        /// Which.
        portal: Bytes,
        /// At most so many rows; 0 is all.
        rows: u32,
    },
    /// Calls a function by its number, past SQL.
    Call {
        /// The number.
        function: u32,
        /// Its arguments.
        values: Vec<Value>,
    },
    /// Bytes of a COPY.
    CopyData(Bytes),
    /// All of a COPY was sent.
    CopyDone,
    /// A COPY is given up.
    CopyFail(Bytes),
    /// Asks, forgets or waits: nothing that is run.
    Housekeeping,
    /// Says goodbye.
    Terminate,
}

/// Reads a message.
///
/// # Errors
/// [`Malformed`] for what is no message of a session, among them every message of an authentication: nobody authenticates
/// here.
pub fn read(frame: &Frame) -> Result<Said, Malformed> {
    let mut body = Cut(frame.body());
    let said = match frame.tag() {
        b'Q' => Said::Query(body.text()?),
        b'P' => {
            let (name, text) = (body.text()?, body.text()?);
            for _ in 0..body.u16()? {
                body.u32()?;
            }
            Said::Parse { name, text }
        }
        b'B' => {
            let (portal, statement) = (body.text()?, body.text()?);
            let values = body.values()?;
            for _ in 0..body.u16()? {
                body.u16()?;
            }
            Said::Bind { portal, statement, values }
        }
        b'E' => Said::Execute { portal: body.text()?, rows: body.u32()? },
        b'F' => {
            let function = body.u32()?;
            let values = body.values()?;
            body.u16()?;
            Said::Call { function, values }
        }
        b'd' => return Ok(Said::CopyData(body.0)),
        b'c' => Said::CopyDone,
        b'f' => Said::CopyFail(body.text()?),
        b'C' | b'D' => {
            body.u8()?;
            body.text()?;
            Said::Housekeeping
        }
        b'H' | b'S' => Said::Housekeeping,
        b'X' => Said::Terminate,
        _ => return Err(Malformed("a message of a kind that break-glass does not pass on")),
    };
    body.end().map(|()| said)
}

fn utf8(bytes: &[u8]) -> Result<String, Malformed> {
    String::from_utf8(bytes.to_vec()).map_err(|_| Malformed("a parameter of the session is not UTF-8"))
}

/// The rest of a message.
struct Cut(Bytes);

impl Cut {
    const SHORT: Malformed = Malformed("a message ends in the middle");

    fn need(&self, bytes: usize) -> Result<(), Malformed> {
        if self.0.len() < bytes { Err(Self::SHORT) } else { Ok(()) }
    }

    fn u8(&mut self) -> Result<u8, Malformed> {
        self.need(1).map(|()| self.0.get_u8())
    }

    fn u16(&mut self) -> Result<u16, Malformed> {
        self.need(2).map(|()| self.0.get_u16())
    }

    fn u32(&mut self) -> Result<u32, Malformed> {
        self.need(4).map(|()| self.0.get_u32())
    }

    /// Up to a zero byte.
    fn text(&mut self) -> Result<Bytes, Malformed> {
        let end = self.0.iter().position(|byte| *byte == 0).ok_or(Self::SHORT)?;
        let text = self.0.split_to(end);
        self.0.advance(1);
        Ok(text)
    }

    /// Formats, then values: one format is for all, none is text.
    fn values(&mut self) -> Result<Vec<Value>, Malformed> {
        const TEXT: u16 = 0;
        const BINARY: u16 = 1;
        let mut formats = Vec::new();
        for _ in 0..self.u16()? {
            let format = self.u16()?;
            if format != TEXT && format != BINARY {
                return Err(Malformed("a value is in an unknown format"));
            }
            formats.push(format);
        }
        let count = usize::from(self.u16()?);
        if formats.len() > 1 && formats.len() != count {
            return Err(Malformed("there are more or fewer formats than values"));
        }
        let mut values = Vec::new();
        for at in 0..count {
            let format = *formats.get(at).or_else(|| formats.first()).unwrap_or(&TEXT);
            let bytes = match self.u32()? {
                u32::MAX => None,
                length => {
                    let length = usize::try_from(length).unwrap_or(usize::MAX);
                    self.need(length)?;
                    Some(self.0.split_to(length))
                }
            };
            values.push(Value { is_binary: format == BINARY, bytes });
        }
        Ok(values)
    }

    fn end(&self) -> Result<(), Malformed> {
        if self.0.is_empty() { Ok(()) } else { Err(Malformed("a message is longer than what it says")) }
    }
}

/// What the proxy says by itself to a person's program.
#[derive(Debug, Default)]
pub struct Answer(BytesMut);

impl Answer {
    /// Neither TLS nor GSSAPI: the connection is inside of one that is protected already.
    #[must_use]
    pub fn no_encryption() -> Bytes {
        Bytes::from_static(b"N")
    }

    /// The version that is spoken, and what of the opening was not understood.
    pub fn negotiate(&mut self, unknown: &[&str]) {
        let body: usize = 8 + unknown.iter().map(|name| name.len() + 1).sum::<usize>();
        self.head(b'v', body);
        self.0.put_u32(3 << 16);
        self.0.put_u32(u32::try_from(unknown.len()).unwrap_or(0));
        unknown.iter().for_each(|name| self.text(name));
    }

    /// Who the program is was settled elsewhere.
    pub fn authenticated(&mut self) {
        self.head(b'R', 4);
        self.0.put_u32(0);
    }

    /// A setting of the server.
    pub fn parameter(&mut self, name: &str, value: &str) {
        self.head(b'S', name.len() + value.len() + 2);
        self.text(name);
        self.text(value);
    }

    /// What a cancel request must know.
    pub fn key(&mut self, key: BackendKey) {
        self.head(b'K', 8);
        self.0.put_i32(key.pid);
        self.0.put_i32(key.secret);
    }

    /// The next statement may come; no transaction is open.
    pub fn ready(&mut self) {
        self.head(b'Z', 1);
        self.0.put_u8(b'I');
    }

    /// The session ends here. Zero bytes, which no text of ours has, would end the text early.
    pub fn fatal(&mut self, sqlstate: &str, message: &str, hint: &str) {
        let fields = [(b'S', "FATAL"), (b'V', "FATAL"), (b'C', sqlstate), (b'M', message), (b'H', hint)];
        let fields: Vec<_> = fields.into_iter().filter(|(_, text)| !text.is_empty()).collect();
        self.head(b'E', fields.iter().map(|(_, text)| text.len() + 2).sum::<usize>() + 1);
        for (kind, text) in fields {
            self.0.put_u8(kind);
            self.text(text);
        }
        self.0.put_u8(0);
    }

    /// The bytes.
    #[must_use]
    pub fn into_bytes(self) -> Bytes {
        self.0.freeze()
    }

    fn head(&mut self, tag: u8, body: usize) {
        self.0.put_u8(tag);
        self.0.put_u32(u32::try_from(body + 4).unwrap_or(u32::MAX));
    }

    fn text(&mut self, text: &str) {
        self.0.put_slice(text.as_bytes());
        self.0.put_u8(0);
    }
}

#[cfg(test)]
mod tests;
