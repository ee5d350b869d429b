//! Who acted, by which door, with what outcome, and which acts cannot be undone.

use std::fmt;

use bib_core::UserId;

/// The action of the entry that erases another entry's details; its target is that entry's id.
pub const ERASE: &str = "audit.erase";

/// The action of an alert's entry; its target is the rule. Rules never look at these.
pub const ALERT: &str = "audit.alert";

/// The action of the entry that takes a month's entries out of the log.
pub const DETACH: &str = "audit.detach";

/// The action of an epoch's first entry; its target names the last head before it ([`crate::chain::epoch_target`]).
pub const EPOCH: &str = "audit.epoch";

/// Acts that cannot be undone, or that open a door wide. They wait for their seal, and a checkpoint is made at once.
///
/// An entry ending in `.` stands for every action that begins with it.
pub const SENSITIVE: &[&str] = &[
    "audit.detach",
    "audit.epoch",
    "audit.erase",
    "backup.credentials",
    "backup.delete",
    "break_glass.enable",
    "break_glass.end",
    "break_glass.review",
    "cert.revoke",
    "config.set",
    "database.move",
    "database.restore",
    "database.rotate",
    "database.upgrade",
    "dataset.delete",
    "dataset.withdraw",
    "grant.remove",
    "grant.set",
    "key.remove",
    "node.shutdown",
    "node.succeed",
    "recovery.",
    "superuser.",
    "token.revoke",
    "topic.delete",
    "topic.transfer",
    "topic.visibility",
    "trust.replace",
    "user.add",
    "user.remove",
    "user.role",
];

/// Whether `action` is one of [`SENSITIVE`].
#[must_use]
pub fn is_sensitive(action: &str) -> bool {
    SENSITIVE.iter().any(|known| if known.ends_with('.') { action.starts_with(known) } else { action == *known })
}

/// Whether `action` is spelled as actions are: dotted lower-case words, at most 64 bytes.
#[must_use]
pub fn is_action(action: &str) -> bool {
    let word = |w: &str| !w.is_empty() && w.bytes().all(|b| matches!(b, b'a'..=b'z' | b'0'..=b'9' | b'_' | b'-'));
    action.len() <= 64 && action.contains('.') && action.split('.').all(word)
}

/// Who performed an act.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Actor {
    /// A user of this node: `user:<uuid>:<name>`. The name is as it was then.
    User {
        /// The user's id.
        id: UserId,
        /// The user's name at the time of the act.
        name: String,
    },
    /// Somebody who has not proved who he is, as he calls himself: `anonymous:<claim>`.
    Anonymous(String),
    /// The node itself, asked by nobody: `node`.
    Node,
    /// A part of the node: `system:<component>`.
    System(String),
}

impl fmt::Display for Actor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::User { id, name } => write!(f, "user:{id}:{name}"),
            Self::Anonymous(claim) => write!(f, "anonymous:{claim}"),
            Self::Node => f.write_str("node"),
            Self::System(component) => write!(f, "system:{component}"),
        }
    }
}

/// The door by which an act came in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Via {
    /// The Unix socket.
    Socket,
    /// gRPC over TLS.
    Tls,
    /// The SSH server.
    Ssh,
    /// No door: the node's own doing.
    Internal,
}

impl Via {
    /// The word in the entry.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Socket => "socket",
            Self::Tls => "tls",
            Self::Ssh => "ssh",
            Self::Internal => "internal",
        }
    }
}

/// How an act ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    /// It was done: `ok`.
    Ok,
    /// It is about to be done; a second entry tells the outcome: `intent`.
    Intent,
    /// The policy refused it: `denied`.
    Denied,
    /// It failed: `failed:<code>`, a stable code such as `BIB0007`.
    Failed(String),
}

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Ok => f.write_str("ok"),
            Self::Intent => f.write_str("intent"),
            Self::Denied => f.write_str("denied"),
            Self::Failed(code) => write!(f, "failed:{code}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn acts_that_cannot_be_undone_are_sensitive() {
        for action in ["dataset.withdraw", "user.remove", "recovery.export", "superuser.open", "audit.erase"] {
            assert!(is_sensitive(action), "{action}");
        }
        for action in ["topic.create", "dataset.publish", "recovery", "audit.list", "user.removed"] {
            assert!(!is_sensitive(action), "{action}");
        }
        assert!(SENSITIVE.iter().all(|known| known.ends_with('.') || is_action(known)));
    }

    #[test]
    fn actions_are_dotted_lower_case_words() {
        assert!(is_action("topic.create") && is_action("postgres.role.rotate"));
        for action in ["", "topic", "Topic.create", "topic..create", "topic.create\n", ".a", "a."] {
            assert!(!is_action(action), "{action:?}");
        }
    }
}
