//! From columns to types, once: what does not parse was not written by us and is an inconsistency.

use std::fmt::Display;
use std::str::FromStr;

use bib_core::access::GrantLevel;
use bib_core::{Hash, Nonce};

use crate::{Error, Result};

pub(crate) fn inconsistent(
    table: &'static str,
    column: &'static str,
    row: impl Display,
    reason: impl Display,
) -> Error {
    Error::Inconsistent { table, column, row: row.to_string(), reason: reason.to_string().into() }
}

pub(crate) fn parsed<T>(table: &'static str, column: &'static str, row: impl Display, text: &str) -> Result<T>
where
    T: FromStr,
    T::Err: Display,
{
    text.parse().map_err(|e: T::Err| inconsistent(table, column, row, e))
}

pub(crate) fn hash(table: &'static str, column: &'static str, row: impl Display, bytes: &[u8]) -> Result<Hash> {
    Hash::try_from(bytes).map_err(|e| inconsistent(table, column, row, e))
}

pub(crate) fn nonce(table: &'static str, row: impl Display, bytes: &[u8]) -> Result<Nonce> {
    let bytes = <[u8; 16]>::try_from(bytes).map_err(|_| inconsistent(table, "nonce", row, "not 16 bytes"))?;
    Ok(Nonce::from_bytes(bytes))
}

/// A rank computed by SQL: 1 read, 2 write, 3 admin.
pub(crate) fn level(rank: Option<i32>) -> Option<GrantLevel> {
    match rank {
        Some(3) => Some(GrantLevel::Admin),
        Some(2) => Some(GrantLevel::Write),
        Some(1) => Some(GrantLevel::Read),
        _ => None,
    }
}

/// Counts and sizes are stored as signed 64-bit numbers.
pub(crate) fn signed(number: u64) -> Result<i64> {
    i64::try_from(number).map_err(|_| Error::Refused { constraint: format!("{number} is beyond 2^63") })
}

/// Hashes as an array parameter.
pub(crate) fn array(hashes: &[Hash]) -> Vec<Vec<u8>> {
    hashes.iter().map(|hash| hash.as_bytes().to_vec()).collect()
}
