//! Who calls, how they came, and the call itself: the first parameter of every use case.
//!
//! An [`Actor`] is made only by an `Authenticator` (or by the daemon for its own acts), so a use case that takes a
//! [`Call`] cannot be reached by somebody unknown. It never decides what an actor may do: `bib_core::access` does.

use std::fmt;
use std::str::FromStr;

use bib_core::access::NodeRole;
use bib_core::{KeyFingerprint, OperationId, SessionId, Timestamp, UserId};

/// How an actor reached the daemon.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Via {
    /// The Unix socket; the operating system vouches for the uid.
    Socket {
        /// The peer's uid, from `SO_PEERCRED`.
        uid: u32,
    },
    /// Mutual TLS after a log-in with an SSH key.
    Tls {
        /// The SSH key that the session was opened with.
        key: KeyFingerprint,
        /// The session whose token was sent.
        session: SessionId,
        /// Serial number of the client certificate, lower-case hex.
        serial: String,
    },
    /// The daemon itself.
    Internal {
        /// The part that acts, such as `scrubber`.
        component: &'static str,
    },
}

impl fmt::Display for Via {
    /// As it stands in the audit log: `socket:1000`, `tls:SHA256:..`, `internal:scrubber`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Socket { uid } => write!(f, "socket:{uid}"),
            Self::Tls { key, .. } => write!(f, "tls:{key}"),
            Self::Internal { component } => write!(f, "internal:{component}"),
        }
    }
}

/// What a token may do at most. It narrows what its user may do and never widens it.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Scope {
    /// Read whatever the user may read: `read`.
    Read,
    /// Read, and publish where the user may write: `publish`.
    Publish,
    /// Everything that the user may: `admin`.
    Admin,
    /// Read one topic and what is below it: `topic:<name>:read`.
    TopicRead(String),
    /// Read and write one topic and what is below it: `topic:<name>:write`.
    TopicWrite(String),
}

/// The text is not a scope.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is not a scope; scopes are read, publish, admin, topic:<name>:read and topic:<name>:write")]
pub struct ScopeError(String);

impl FromStr for Scope {
    type Err = ScopeError;

    fn from_str(text: &str) -> Result<Self, ScopeError> {
        let error = || ScopeError(text.chars().take(80).collect());
        match text {
            "read" => return Ok(Self::Read),
            "publish" => return Ok(Self::Publish),
            "admin" => return Ok(Self::Admin),
            _ => {}
        }
        let (name, level) = text.strip_prefix("topic:").and_then(|rest| rest.rsplit_once(':')).ok_or_else(error)?;
        if name.is_empty() || name.len() > 1_040 || name.contains(|c: char| c.is_control() || c == ':') {
            return Err(error());
        }
        match level {
            "read" => Ok(Self::TopicRead(name.to_owned())),
            "write" => Ok(Self::TopicWrite(name.to_owned())),
            _ => Err(error()),
        }
    }
}

impl fmt::Display for Scope {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Read => f.write_str("read"),
            Self::Publish => f.write_str("publish"),
            Self::Admin => f.write_str("admin"),
            Self::TopicRead(name) => write!(f, "topic:{name}:read"),
            Self::TopicWrite(name) => write!(f, "topic:{name}:write"),
        }
    }
}

/// All that a session may do at most.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub enum Scopes {
    /// No narrowing: whatever the user may.
    #[default]
    All,
    /// Only what one of these allows. An empty list allows nothing.
    Only(Vec<Scope>),
}

impl Scopes {
    /// The scopes of a token as they are stored and sent; an empty list means no narrowing.
    ///
    /// # Errors
    /// The first text that is not a scope.
    pub fn parse<T: AsRef<str>>(texts: &[T]) -> Result<Self, ScopeError> {
        if texts.is_empty() {
            return Ok(Self::All);
        }
        texts.iter().map(|text| text.as_ref().parse()).collect::<Result<_, _>>().map(Self::Only)
    }

    /// The scopes as text; empty without narrowing.
    #[must_use]
    pub fn to_strings(&self) -> Vec<String> {
        match self {
            Self::All => Vec::new(),
            Self::Only(scopes) => scopes.iter().map(ToString::to_string).collect(),
        }
    }

    /// May this session administer (users, grants, the node), as far as its user may?
    #[must_use]
    pub fn allow_admin(&self) -> bool {
        self.any(|scope| matches!(scope, Scope::Admin))
    }

    /// May this session read the topic of this full name, as far as its user may?
    #[must_use]
    pub fn allow_read(&self, topic: &str) -> bool {
        self.any(|scope| match scope {
            Scope::Read | Scope::Publish | Scope::Admin => true,
            Scope::TopicRead(name) | Scope::TopicWrite(name) => covers(name, topic),
        })
    }

    /// May this session publish into the topic of this full name, as far as its user may?
    #[must_use]
    pub fn allow_write(&self, topic: &str) -> bool {
        self.any(|scope| match scope {
            Scope::Publish | Scope::Admin => true,
            Scope::TopicWrite(name) => covers(name, topic),
            Scope::Read | Scope::TopicRead(_) => false,
        })
    }

    /// Is everything that `other` allows allowed here too? A token may never be wider than the session that makes it.
    #[must_use]
    pub fn contain(&self, other: &Self) -> bool {
        match other {
            Self::All => self.allow_admin(),
            Self::Only(scopes) => scopes.iter().all(|scope| match scope {
                Scope::Admin => self.allow_admin(),
                Scope::Publish => self.any(|own| matches!(own, Scope::Publish | Scope::Admin)),
                Scope::Read => self.any(|own| matches!(own, Scope::Read | Scope::Publish | Scope::Admin)),
                Scope::TopicRead(name) => self.allow_read(name),
                Scope::TopicWrite(name) => self.allow_write(name),
            }),
        }
    }

    fn any(&self, allows: impl Fn(&Scope) -> bool) -> bool {
        match self {
            Self::All => true,
            Self::Only(scopes) => scopes.iter().any(allows),
        }
    }
}

/// Is `topic` the topic `name` or below it?
fn covers(name: &str, topic: &str) -> bool {
    topic.strip_prefix(name).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
}

/// Somebody who was recognised.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Actor {
    /// The user of this node.
    pub user: UserId,
    /// The user's name, for logs and the audit log.
    pub name: String,
    /// What the user may do on the node as such.
    pub role: NodeRole,
    /// How the user came.
    pub via: Via,
    /// What this session may do at most.
    pub scopes: Scopes,
}

impl Actor {
    /// The daemon acting for itself.
    #[must_use]
    pub fn internal(component: &'static str) -> Self {
        Self {
            user: UserId::from_uuid(uuid::Uuid::nil()),
            name: "bibd".to_owned(),
            role: NodeRole::Admin,
            via: Via::Internal { component },
            scopes: Scopes::All,
        }
    }

    /// An admin whose session was not narrowed below that.
    #[must_use]
    pub fn is_admin(&self) -> bool {
        self.role == NodeRole::Admin && self.scopes.allow_admin()
    }
}

/// One call by one actor: from its first statement to its audit entry.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Call {
    /// Stands in the audit log and in every log line of this call.
    pub operation: OperationId,
    /// What the client sent as `x-request-id`, or what the daemon made up. At most 64 characters.
    pub request_id: String,
    /// Who calls.
    pub actor: Actor,
    /// When the call arrived, by the daemon's clock.
    pub time: Timestamp,
}

impl Call {
    /// The context that the statements of this call run in. `component` names the part of the daemon.
    #[must_use]
    pub fn context(&self, component: &'static str) -> bibd_catalog::Context {
        let user = match self.actor.via {
            Via::Internal { .. } => None,
            Via::Socket { .. } | Via::Tls { .. } => Some(self.actor.user.as_uuid()),
        };
        bibd_catalog::Context { operation: self.operation, user, component }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn scopes_are_read_back_and_rubbish_is_refused() {
        for text in ["read", "publish", "admin", "topic:climate/stations:read", "topic:a:write"] {
            assert_eq!(text.parse::<Scope>().unwrap().to_string(), text);
        }
        for text in ["", "Read", "topic:", "topic::read", "topic:a", "topic:a:admin", "topic:a\n:read"] {
            assert!(text.parse::<Scope>().is_err(), "{text:?}");
        }
    }

    #[test]
    fn a_topic_scope_covers_the_topic_and_what_is_below_and_nothing_beside() {
        let scopes = Scopes::parse(&["topic:climate:write"]).unwrap();
        assert!(scopes.allow_write("climate") && scopes.allow_write("climate/stations"));
        assert!(!scopes.allow_write("climate2") && !scopes.allow_read("other") && !scopes.allow_admin());
    }

    #[test]
    fn a_narrow_session_cannot_make_a_wider_token() {
        let narrow = Scopes::parse(&["topic:a:read"]).unwrap();
        for wider in [&[][..], &["admin"], &["read"], &["publish"], &["topic:a:write"], &["topic:b:read"]] {
            assert!(!narrow.contain(&Scopes::parse(wider).unwrap()), "{wider:?}");
        }
        assert!(narrow.contain(&Scopes::parse(&["topic:a/b:read"]).unwrap()));
        assert!(Scopes::All.contain(&Scopes::All));
    }
}
