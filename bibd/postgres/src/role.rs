//! The database's roles by name, and what each may cost: limits and timeouts. Data only, no SQL.

use std::fmt;

use secrecy::SecretString;
use serde::{Deserialize, Serialize};

/// The database that holds the catalog.
pub const DATABASE: &str = "bib";
/// The schema of the catalog's tables, owned by [`OWNER`].
pub const SCHEMA: &str = "bib";
/// The schema of this room's checking functions, owned by the superuser.
pub const CHECK_SCHEMA: &str = "bibd_check";
/// Owns every object of the catalog; nobody logs in as it.
pub const OWNER: &str = "bibd_owner";
/// The migrations' login: a member of [`OWNER`] that inherits nothing and must `SET ROLE`.
pub const MIGRATE: &str = "bibd_migrate";
/// The bootstrap superuser.
pub const ADMIN: &str = "bibd_admin";

/// The superuser of an operator that makes the server's pods: without a password, let in through the pod's own socket.
pub(crate) const OPERATOR: &str = "postgres";
/// The role with which such an operator's other servers follow the one that writes: let in by certificate.
pub(crate) const OPERATOR_REPLICA: &str = "streaming_replica";

/// A group role: carries grants, cannot log in, and has a pair of logins.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum GroupRole {
    /// The daemon's use cases.
    Service,
    /// The audit log's one sequencer.
    Seal,
    /// Reads the audit log.
    Audit,
    /// Takes backups; its logins carry REPLICATION.
    Backup,
    /// Watches the server and runs the checklist.
    Monitor,
    /// Jobs that scrape.
    Scrape,
    /// Jobs that query.
    Query,
    /// Jobs that transform.
    Transform,
    /// Jobs that administer.
    AdminJobs,
}

impl GroupRole {
    /// All group roles.
    pub const ALL: [Self; 9] = [
        Self::Service,
        Self::Seal,
        Self::Audit,
        Self::Backup,
        Self::Monitor,
        Self::Scrape,
        Self::Query,
        Self::Transform,
        Self::AdminJobs,
    ];

    /// The name without its prefix, as in configuration and in the sealed document.
    pub fn short(self) -> &'static str {
        &self.name()["bibd_".len()..]
    }

    /// The role's name in PostgreSQL.
    pub fn name(self) -> &'static str {
        match self {
            Self::Service => "bibd_service",
            Self::Seal => "bibd_seal",
            Self::Audit => "bibd_audit",
            Self::Backup => "bibd_backup",
            Self::Monitor => "bibd_monitor",
            Self::Scrape => "bibd_scrape",
            Self::Query => "bibd_query",
            Self::Transform => "bibd_transform",
            Self::AdminJobs => "bibd_admin_jobs",
        }
    }

    /// The role of a [`short`](Self::short) name.
    pub fn parse(short: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|role| role.short() == short)
    }

    /// The login of that letter.
    pub fn login_name(self, letter: Letter) -> String {
        format!("{}_{letter}", self.name())
    }

    /// What a login of this role may cost.
    pub fn limits(self) -> RoleLimits {
        // The connections of all roles and of the migrations sum up to `MAX_CONNECTIONS` less the superuser's share.
        let (connections, statement_s, lock_s, idle_in_transaction_s, transaction_s, temp_mb) = match self {
            Self::Service => (40, 60, 10, 60, 300, 1024),
            Self::Seal => (3, 30, 10, 30, 60, 64),
            Self::Audit => (8, 300, 10, 60, 600, 1024),
            Self::Backup => (4, 0, 60, 600, 0, 1024),
            Self::Monitor => (4, 30, 5, 30, 60, 256),
            Self::Scrape => (8, 60, 10, 60, 300, 1024),
            Self::Query => (16, 60, 5, 60, 300, 4096),
            Self::Transform => (8, 600, 10, 60, 1800, 4096),
            Self::AdminJobs => (4, 3600, 30, 60, 7200, 4096),
        };
        RoleLimits { connections, statement_s, lock_s, idle_in_transaction_s, transaction_s, temp_mb }
    }
}

impl fmt::Display for GroupRole {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// What a login may cost. Zero seconds means no limit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RoleLimits {
    /// Connections at once, per login (`CONNECTION LIMIT`).
    pub connections: u32,
    /// `statement_timeout`, seconds.
    pub statement_s: u32,
    /// `lock_timeout`, seconds.
    pub lock_s: u32,
    /// `idle_in_transaction_session_timeout`, seconds.
    pub idle_in_transaction_s: u32,
    /// `transaction_timeout`, seconds (PostgreSQL 17 and later).
    pub transaction_s: u32,
    /// `temp_file_limit`, mebibytes.
    pub temp_mb: u32,
}

/// Which login of a pair.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Letter {
    /// `.._a`.
    A,
    /// `.._b`.
    B,
}

impl Letter {
    /// Both.
    pub const ALL: [Self; 2] = [Self::A, Self::B];

    /// The other one of the pair.
    pub fn other(self) -> Self {
        match self {
            Self::A => Self::B,
            Self::B => Self::A,
        }
    }
}

impl fmt::Display for Letter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::A => "a",
            Self::B => "b",
        })
    }
}

/// Who logs in, where, with what. Printing it shows no password.
#[derive(Debug, Clone)]
pub struct Login {
    /// The login role.
    pub user: String,
    /// The database.
    pub database: String,
    /// The password.
    pub password: SecretString,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_and_short_names_are_inverse() {
        for role in GroupRole::ALL {
            assert_eq!(GroupRole::parse(role.short()), Some(role));
            assert!(role.name().starts_with("bibd_"));
        }
        assert_eq!(GroupRole::parse("admin"), None);
        assert_eq!(GroupRole::AdminJobs.login_name(Letter::B), "bibd_admin_jobs_b");
    }
}
