//! Break-glass: the role that a person may use for a while, and PostgreSQL's wire protocol as the recording proxy reads it.
//!
//! Doors of this module: [`Database::open_glass`] makes the role and returns a [`Door`] to it, [`Database::close_glass`]
//! shuts it, ends its sessions, looks at what changed ([`snapshot`]) and drops it. A [`Door`] logs in as that role with the
//! password that only it knows. [`frontend`] reads what a person's program sends, [`backend`] what the server answers; both
//! leave the bytes as they are, because what is recorded must be what is passed on. That is also why no proxy library is
//! used for reading: those at hand decode text lossily. SCRAM, the start-up and the fields of answers are
//! `postgres-protocol`'s.
//!
//! What it must never do: record, decide who may, or measure time. The daemon does (`bibd/daemon/src/services/break_glass`).
//!
//! The role: no superuser, nothing that makes roles or databases, no replication, a member of one group
//! ([`Access::group`]), which never writes the audit log. It has one property that no setting of its own can take away:
//! `auto_explain`, where the server has it, sends the text of every nested statement at the level INFO, which no
//! `client_min_messages` hides, so that what `DO` and `EXECUTE` ran can be recorded as it ran.

pub mod backend;
mod door;
pub mod frontend;
mod role;
pub mod snapshot;

pub use door::{BackendKey, Door, DoorError, Entered, Stream};
pub use role::{Closed, Opened, leftover, sessions_of};
pub(crate) use role::{create_groups, role_settings, shut_all};

use std::fmt;

#[cfg(doc)]
use crate::database::Database;

/// What every role of this kind is called, before eight hex digits.
const PREFIX: &str = "bibd_glass_";

/// Sessions of one role at once that the proxy lets in.
pub const MAX_SESSIONS: u32 = 4;
/// Its `CONNECTION LIMIT`: the sessions, and two for ending one of them.
pub(crate) const CONNECTIONS: u32 = MAX_SESSIONS + 2;

/// What a person may.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Access {
    /// Read every table of the catalog.
    Read,
    /// Also change rows, but those of the audit log and of break-glass itself.
    Write,
}

impl Access {
    /// Both.
    pub const ALL: [Self; 2] = [Self::Read, Self::Write];

    /// The group role (NOLOGIN) that carries the grants. Migrations grant to it.
    pub const fn group(self) -> &'static str {
        match self {
            Self::Read => "bibd_glass_read",
            Self::Write => "bibd_glass_write",
        }
    }
}

/// The name of a role of this kind: nothing that would have to be quoted.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct GlassName(String);

impl GlassName {
    /// The name for a grant with these random bits.
    pub fn new(bits: u32) -> Self {
        Self(format!("{PREFIX}{bits:08x}"))
    }

    /// The name that a role has, if it is of this kind.
    pub fn parse(role: &str) -> Option<Self> {
        let digits = role.strip_prefix(PREFIX)?;
        let is_ours = digits.len() == 8 && digits.bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b));
        is_ours.then(|| Self(role.to_owned()))
    }

    /// As it is.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for GlassName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Bytes that are not PostgreSQL's protocol, or not the part of it that can be recorded.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct Malformed(pub &'static str);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_other_role_is_taken_for_one_of_these() {
        let name = GlassName::new(0xa1);
        assert_eq!(name.as_str(), "bibd_glass_000000a1");
        assert_eq!(GlassName::parse(name.as_str()), Some(name));
        for other in
            ["bibd_glass_read", "bibd_glass_write", "bibd_glass_000000A1", "bibd_glass_000000a1x", "bibd_admin"]
        {
            assert_eq!(GlassName::parse(other), None, "{other}");
        }
    }
}
