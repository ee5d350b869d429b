//! The registry of error codes: one stable code per thing that a person can look up in `docs/errors/`.
//!
//! A code is never reused. Codes are grouped: 00xx requests, 01xx who you are, 02xx publishing and data,
//! 03xx the node and its parts, 04xx starting `bibd`, 05xx the client (`bib_client::error::code`), 06xx break-glass. `cargo xtask tidy` checks that each has its page.

use std::fmt;

/// A stable error code such as `BIB0002`.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ErrorCode(u16);

impl ErrorCode {
    /// The title of the code's page.
    #[must_use]
    pub fn title(self) -> &'static str {
        REGISTRY.iter().find(|(code, _)| *code == self).map_or("unknown error", |(_, title)| title)
    }
}

impl fmt::Display for ErrorCode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "BIB{:04}", self.0)
    }
}

impl fmt::Debug for ErrorCode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

macro_rules! codes {
    ($($name:ident = $number:literal, $title:literal;)*) => {
        impl ErrorCode {
            $(
                #[doc = $title]
                pub const $name: Self = Self($number);
            )*
        }

        /// Every code with the title of its page, in order.
        pub const REGISTRY: &[(ErrorCode, &str)] = &[$((ErrorCode($number), $title),)*];
    };
}

codes! {
    INTERNAL = 1, "something broke inside the daemon";
    NOT_FOUND = 2, "there is nothing of that name, or you may not see it";
    INVALID = 3, "a value in the request is not acceptable";
    UNKNOWN_METHOD = 4, "the daemon does not know this call";
    RATE_LIMITED = 5, "too many requests in a short time";
    TOO_LARGE = 6, "a message is larger than the daemon accepts";
    TIMED_OUT = 7, "the call took longer than it may";
    CONFLICT = 8, "the thing changed in between";
    ALREADY_EXISTS = 9, "there is one of that name already";
    UNMET_CONDITION = 10, "the call does not fit the state of the thing";
    UNAUTHENTICATED = 100, "you are not logged in";
    UNKNOWN_SOCKET_USER = 101, "your operating system user is not known to this node";
    BAD_TOKEN = 102, "the token is unknown, expired or belongs to another key";
    CERTIFICATE_REVOKED = 103, "the certificate was revoked";
    LOGIN_REFUSED = 104, "the log-in was refused";
    USER_SUSPENDED = 105, "the user is suspended";
    DENIED = 110, "you may not do this";
    SCOPE_TOO_NARROW = 111, "the token does not allow this";
    LATEST_MOVED = 200, "somebody published in between";
    CHUNKS_MISSING = 201, "some chunks have to be sent again";
    STATEMENT_REFUSED = 202, "the version's statement or signature is not valid";
    INTEGRITY = 203, "stored bytes are damaged";
    QUOTA_EXCEEDED = 204, "the quota is used up";
    LICENSE_MISSING = 205, "a version needs a licence";
    WITHDRAWN = 206, "the version was withdrawn";
    UPLOAD_EXPIRED = 207, "the upload session has ended";
    BUSY = 300, "the daemon is busy";
    DATABASE_UNAVAILABLE = 301, "the database does not answer";
    STORE_UNAVAILABLE = 302, "the chunk store cannot be used";
    DISK_FULL = 303, "the disk is full";
    SHUTTING_DOWN = 304, "the daemon is stopping";
    AUDIT_UNAVAILABLE = 305, "the audit log cannot be written";
    BACKUP_FAILED = 306, "a backup cannot be made, read or restored";
    OBJECTS_UNAVAILABLE = 307, "object storage cannot be used";
    NOT_AUTHORITATIVE = 308, "this node is a cache and has nothing of its own";
    CONFIG_INVALID = 400, "the configuration is not valid";
    DATA_DIR_LOCKED = 401, "another daemon uses this data directory";
    DATA_DIR_UNUSABLE = 402, "the data directory cannot be used";
    ADDRESS_IN_USE = 403, "an address or socket is in use";
    IDENTITY_UNUSABLE = 404, "the node's key or a secret cannot be read";
    POSTGRES_UNAVAILABLE = 405, "PostgreSQL cannot be started";
    SCHEMA_NEWER = 406, "the data was written by a newer bibd";
    RESTORE_UNFINISHED = 407, "a restore into this data directory was not finished";
    GLASS_OFF = 600, "break-glass is not enabled on this node";
    GLASS_CHALLENGE = 601, "the challenge of a break-glass request is unknown, expired or was answered before";
    GLASS_STATEMENT = 602, "what was signed is not what was asked for";
    GLASS_KEY = 603, "the key may not confirm break-glass";
    GLASS_SIGNATURE = 604, "the signature of a break-glass request is not valid";
    GLASS_TOO_LONG = 605, "break-glass is not granted for that long";
    GLASS_TOO_MUCH = 606, "break-glass does not grant that much";
    GLASS_OPEN = 607, "a break-glass grant is open already";
    GLASS_NOT_OPEN = 608, "no break-glass grant is open for you";
    GLASS_REVIEW = 609, "an earlier break-glass grant waits for its review";
    GLASS_RECORDER = 610, "the recording of break-glass cannot be written";
    GLASS_NOTICE = 611, "a notice of break-glass was not delivered";
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn codes_are_unique_and_in_order() {
        for pair in REGISTRY.windows(2) {
            assert!(pair[0].0 < pair[1].0, "{} then {}", pair[0].0, pair[1].0);
        }
        assert_eq!(ErrorCode::NOT_FOUND.to_string(), "BIB0002");
        assert_eq!(ErrorCode::INTEGRITY.title(), "stored bytes are damaged");
    }
}
