//! Canonical JSON by hand, for the two places with a million lines: content and layout pages.
//!
//! The reader takes the one canonical spelling and nothing else, so what it took needs no second look. It must only be
//! used for members whose text holds no control characters, which is for the caller to check.

use std::borrow::Cow;

use crate::Hash;

/// Integers in canonical JSON are below this.
const INTEGER_LIMIT: u64 = 1 << 53;

/// Writes a string, quoted. The text must hold no control characters of ASCII.
pub(crate) fn put_string(text: &str, out: &mut Vec<u8>) {
    out.push(b'"');
    if text.bytes().any(|b| matches!(b, b'"' | b'\\')) {
        for b in text.bytes() {
            if matches!(b, b'"' | b'\\') {
                out.push(b'\\');
            }
            out.push(b);
        }
    } else {
        out.extend_from_slice(text.as_bytes());
    }
    out.push(b'"');
}

/// Writes a hash, quoted.
pub(crate) fn put_hash(hash: &Hash, out: &mut Vec<u8>) {
    const DIGITS: &[u8; 16] = b"0123456789abcdef";
    out.push(b'"');
    for byte in hash.as_bytes() {
        out.push(DIGITS[usize::from(byte >> 4)]);
        out.push(DIGITS[usize::from(byte & 15)]);
    }
    out.push(b'"');
}

/// Writes an integer.
pub(crate) fn put_integer(mut number: u64, out: &mut Vec<u8>) {
    let mut digits = [0; 20];
    let mut start = digits.len();
    loop {
        start -= 1;
        digits[start] = b'0' + u8::try_from(number % 10).expect("a digit is below ten");
        number /= 10;
        if number == 0 {
            break;
        }
    }
    out.extend_from_slice(&digits[start..]);
}

/// Writes an array of hashes.
pub(crate) fn put_hashes(hashes: &[Hash], out: &mut Vec<u8>) {
    out.push(b'[');
    for (i, hash) in hashes.iter().enumerate() {
        if i > 0 {
            out.push(b',');
        }
        put_hash(hash, out);
    }
    out.push(b']');
}

/// What was expected and not found; becomes part of the caller's error.
pub(crate) type Expected = &'static str;

/// Reads canonical JSON from the left.
#[derive(Debug, Clone)]
pub(crate) struct Cursor<'a> {
    rest: &'a str,
}

impl<'a> Cursor<'a> {
    pub(crate) const fn new(text: &'a str) -> Self {
        Self { rest: text }
    }

    /// Takes `literal` when it is next.
    pub(crate) fn take(&mut self, literal: &str) -> bool {
        match self.rest.strip_prefix(literal) {
            Some(rest) => {
                self.rest = rest;
                true
            }
            None => false,
        }
    }

    pub(crate) fn expect(&mut self, literal: Expected) -> Result<(), Expected> {
        if self.take(literal) { Ok(()) } else { Err(literal) }
    }

    /// A quoted string with no escapes but `\"` and `\\`.
    pub(crate) fn string(&mut self) -> Result<Cow<'a, str>, Expected> {
        self.expect("\"")?;
        let mut owned = String::new();
        loop {
            let end = self.rest.bytes().position(|b| matches!(b, b'"' | b'\\')).ok_or("the end of a string")?;
            let (piece, rest) = self.rest.split_at(end);
            if let Some(rest) = rest.strip_prefix('"') {
                self.rest = rest;
                return Ok(if owned.is_empty() { Cow::Borrowed(piece) } else { Cow::Owned(owned + piece) });
            }
            owned.push_str(piece);
            owned.push(match rest.as_bytes().get(1) {
                Some(b'"') => '"',
                Some(b'\\') => '\\',
                _ => return Err("`\\\"` or `\\\\`"),
            });
            self.rest = &rest[2..];
        }
    }

    /// A quoted hash.
    pub(crate) fn hash(&mut self) -> Result<Hash, Expected> {
        let digits = self.rest.get(1..65).ok_or("a hash")?;
        let hash = digits.parse().map_err(|_| "a hash of 64 lower-case hex digits")?;
        if !self.rest.starts_with('"') || self.rest.as_bytes().get(65) != Some(&b'"') {
            return Err("a quoted hash");
        }
        self.rest = &self.rest[66..];
        Ok(hash)
    }

    /// An integer from 0 to 2^53 - 1 without leading zeros.
    pub(crate) fn integer(&mut self) -> Result<u64, Expected> {
        let end = self.rest.bytes().position(|b| !b.is_ascii_digit()).unwrap_or(self.rest.len());
        let (digits, rest) = self.rest.split_at(end);
        if digits.starts_with('0') && digits.len() > 1 {
            return Err("an integer without leading zeros");
        }
        let number = digits.parse().ok().filter(|n| *n < INTEGER_LIMIT).ok_or("an integer below 2^53")?;
        self.rest = rest;
        Ok(number)
    }

    pub(crate) fn integer_u32(&mut self) -> Result<u32, Expected> {
        u32::try_from(self.integer()?).map_err(|_| "an integer below 2^32")
    }

    /// The items of an array, each read by `item`; at most `limit`.
    pub(crate) fn array<T>(
        &mut self,
        limit: usize,
        mut item: impl FnMut(&mut Self) -> Result<T, Expected>,
    ) -> Result<Vec<T>, Expected> {
        self.expect("[")?;
        let mut items = Vec::new();
        if self.take("]") {
            return Ok(items);
        }
        loop {
            if items.len() == limit {
                return Err("an array with fewer items");
            }
            items.push(item(self)?);
            if self.take("]") {
                return Ok(items);
            }
            self.expect(",")?;
        }
    }

    /// That nothing is left.
    pub(crate) fn end(&self) -> Result<(), Expected> {
        if self.rest.is_empty() { Ok(()) } else { Err("the end") }
    }
}
