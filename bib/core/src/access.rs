//! Who may do what: the policy, as one pure function.
//!
//! Nothing else in BIB decides about access. Callers look up the facts (role, grant, visibility) and ask [`decide`];
//! the whole table is walked by a test against `golden/policy.txt`.

use serde::{Deserialize, Serialize};

macro_rules! words {
    ($(#[$doc:meta])* $name:ident { $($(#[$vdoc:meta])* $variant:ident = $word:literal,)+ }) => {
        $(#[$doc])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        pub enum $name {
            $($(#[$vdoc])* #[serde(rename = $word)] $variant,)+
        }

        impl $name {
            /// Every value, in order.
            pub const ALL: &[Self] = &[$(Self::$variant),+];

            /// The word for it in records, tables and messages.
            #[must_use]
            pub const fn as_str(self) -> &'static str {
                match self { $(Self::$variant => $word),+ }
            }
        }

        impl std::fmt::Display for $name {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str(self.as_str())
            }
        }

        impl std::str::FromStr for $name {
            type Err = UnknownWord;

            fn from_str(text: &str) -> Result<Self, UnknownWord> {
                match text {
                    $($word => Ok(Self::$variant),)+
                    _ => Err(UnknownWord { word: text.chars().take(40).collect(), known: [$($word),+].join(", ") }),
                }
            }
        }
    };
}

/// The word is none of those that are known here.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{word}` is none of {known}")]
pub struct UnknownWord {
    /// What was given.
    pub word: String,
    /// What could have been given.
    pub known: String,
}

words! {
    /// What a user may do on a node.
    NodeRole {
        /// Reads what is open, and what a grant opens.
        Reader = "reader",
        /// May also create topics.
        Writer = "writer",
        /// Administers the node.
        Admin = "admin",
    }
}

words! {
    /// Who may find and read a topic without a grant.
    Visibility {
        /// Nobody.
        Private = "private",
        /// Users of this node and allow-listed peers.
        Network = "network",
        /// Anybody.
        Public = "public",
    }
}

words! {
    /// What a grant on a topic allows. Each level includes the ones before it.
    GrantLevel {
        /// Find the topic, read its data.
        Read = "read",
        /// Publish into it.
        Write = "write",
        /// Change, open, share and delete it.
        Admin = "admin",
    }
}

words! {
    /// What a break-glass grant lets a person do in the database.
    GlassAccess {
        /// Read every table.
        ReadOnly = "readonly",
        /// Also change rows, but those of the audit log and of break-glass itself.
        ReadWrite = "readwrite",
    }
}

words! {
    /// Every act that the policy knows.
    Verb {
        /// See the node's state and who is logged in as oneself.
        NodeRead = "node.read",
        /// Change one's own keys, certificates, tokens and sessions.
        SelfManage = "self.manage",
        /// Create a topic at the top of the tree.
        TopicCreate = "topic.create",
        /// Create a topic below this one.
        TopicCreateChild = "topic.create_child",
        /// Find the topic, see its record and its list of datasets.
        TopicRead = "topic.read",
        /// Change title, description, default licence.
        TopicUpdate = "topic.update",
        /// Change who can see it: private, network, public.
        TopicOpen = "topic.open",
        /// Delete the topic.
        TopicDelete = "topic.delete",
        /// List the grants on the topic.
        GrantRead = "grant.read",
        /// Give, renew and revoke grants.
        GrantChange = "grant.change",
        /// See a dataset's record, versions, statements and metadata.
        DatasetShow = "dataset.show",
        /// Read a dataset's bytes.
        DatasetRead = "dataset.read",
        /// Publish a version, making the dataset when it is missing.
        DatasetPublish = "dataset.publish",
        /// Set, move or remove a tag.
        Tag = "dataset.tag",
        /// Withdraw a version or dataset, leaving a tombstone.
        DatasetWithdraw = "dataset.withdraw",
        /// Delete a draft that no other node has.
        DatasetDelete = "dataset.delete",
        /// List users and their keys.
        UserRead = "user.read",
        /// Add, suspend and remove users, their roles and keys.
        UserManage = "user.manage",
        /// Read, verify, prove and export the audit log.
        AuditRead = "audit.read",
        /// Erase the details of an audit entry.
        AuditErase = "audit.erase",
        /// Read the effective configuration.
        ConfigRead = "config.read",
        /// Change the configuration.
        ConfigWrite = "config.write",
        /// Read logs.
        LogsRead = "logs.read",
        /// Read metrics.
        MetricsRead = "metrics.read",
        /// Run the database's checklist.
        DatabaseAudit = "database.audit",
        /// Rotate database credentials, collect garbage, scrub: maintenance.
        Maintain = "node.maintain",
        /// Open the database to a person for a while, and look at what was done.
        BreakGlass = "break_glass",
        /// Export the recovery sheet.
        RecoveryExport = "recovery.export",
        /// Stop the daemon.
        Shutdown = "node.shutdown",
    }
}

/// Who asks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Caller {
    /// A user of this node, authenticated and not suspended.
    User(NodeRole),
    /// A node on the allow list, authenticated by its key.
    Peer,
    /// Any other node.
    Stranger,
}

/// What the caller is to the topic.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Standing {
    /// Nothing in particular: only visibility and role count.
    None,
    /// Holds a grant that is neither expired nor revoked.
    Grantee(GrantLevel),
    /// Made the topic, which is worth an admin grant.
    Creator,
}

impl Standing {
    /// The standing of a caller by what the catalog says.
    #[must_use]
    pub const fn of(grant: Option<GrantLevel>, is_creator: bool) -> Self {
        match (is_creator, grant) {
            (true, _) => Self::Creator,
            (false, Some(level)) => Self::Grantee(level),
            (false, None) => Self::None,
        }
    }

    const fn level(self) -> Option<GrantLevel> {
        match self {
            Self::None => None,
            Self::Grantee(level) => Some(level),
            Self::Creator => Some(GrantLevel::Admin),
        }
    }
}

/// Whether an embargo is in force, by the owner's clock.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Embargo {
    /// None, or past.
    Over,
    /// Bytes are for grantees only.
    InForce,
}

/// What the act is on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Place {
    /// The node itself.
    Node,
    /// A topic, or a dataset in it.
    Topic {
        /// Who can see it.
        visibility: Visibility,
        /// What the caller is to it.
        standing: Standing,
        /// Of the dataset version that is read; [`Embargo::Over`] otherwise.
        embargo: Embargo,
    },
}

/// The policy's answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Decision {
    /// Go ahead.
    Allow,
    /// Answer exactly as if the thing did not exist.
    Hidden,
    /// Refuse, saying what is needed.
    Denied(Needs),
}

impl Decision {
    /// Whether the act may go ahead.
    #[must_use]
    pub const fn is_allowed(self) -> bool {
        matches!(self, Self::Allow)
    }
}

/// What would have allowed the act.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Needs {
    /// A role on the node.
    Role(NodeRole),
    /// A grant on the topic.
    Grant(GrantLevel),
    /// To be a user of this node: other nodes never may.
    User,
}

/// The rule behind a verb: what it stands on.
enum Rule {
    /// Any user of this node.
    AnyUser,
    /// A user with at least this role.
    Role(NodeRole),
    /// Whoever sees the topic.
    Seen,
    /// Whoever sees the topic, and while an embargo is in force only grantees.
    Bytes,
    /// A user with at least this grant; the role does not help.
    Grant(GrantLevel),
    /// A user with at least this grant, or an admin of the node.
    GrantOrAdmin(GrantLevel),
}

const fn rule(verb: Verb) -> Rule {
    match verb {
        Verb::NodeRead | Verb::SelfManage => Rule::AnyUser,
        Verb::TopicCreate => Rule::Role(NodeRole::Writer),
        Verb::TopicRead | Verb::DatasetShow => Rule::Seen,
        Verb::DatasetRead => Rule::Bytes,
        Verb::DatasetPublish | Verb::Tag => Rule::Grant(GrantLevel::Write),
        Verb::TopicCreateChild => Rule::Grant(GrantLevel::Admin),
        Verb::TopicUpdate
        | Verb::TopicOpen
        | Verb::TopicDelete
        | Verb::GrantRead
        | Verb::GrantChange
        | Verb::DatasetWithdraw
        | Verb::DatasetDelete => Rule::GrantOrAdmin(GrantLevel::Admin),
        Verb::UserRead
        | Verb::UserManage
        | Verb::AuditRead
        | Verb::AuditErase
        | Verb::ConfigRead
        | Verb::ConfigWrite
        | Verb::LogsRead
        | Verb::MetricsRead
        | Verb::DatabaseAudit
        | Verb::Maintain
        | Verb::BreakGlass
        | Verb::RecoveryExport
        | Verb::Shutdown => Rule::Role(NodeRole::Admin),
    }
}

/// Whether `caller` may do `verb` at `place`. The whole policy.
///
/// An admin of the node sees and administers every topic, and may give themself a grant (which the audit log shows),
/// but reads and writes the data of a topic only by grant or visibility. Other nodes only ever read. A topic verb
/// asked about the node is denied: what is unknown is refused.
#[must_use]
pub fn decide(verb: Verb, caller: Caller, place: Place) -> Decision {
    let (visibility, standing, embargo) = match (rule(verb), place) {
        (Rule::AnyUser, _) => return user_with(caller, NodeRole::Reader),
        (Rule::Role(role), _) => return user_with(caller, role),
        (Rule::Seen | Rule::Bytes | Rule::Grant(_) | Rule::GrantOrAdmin(_), Place::Node) => return Decision::Hidden,
        (_, Place::Topic { visibility, standing, embargo }) => (visibility, standing, embargo),
    };
    let is_admin = caller == Caller::User(NodeRole::Admin);
    let open = match (visibility, caller) {
        (Visibility::Public, _) | (Visibility::Network, Caller::User(_) | Caller::Peer) => true,
        (Visibility::Network, Caller::Stranger) | (Visibility::Private, _) => false,
    };
    let level = standing.level();
    if !(open || is_admin || level.is_some()) {
        return Decision::Hidden;
    }
    let granted = |least: GrantLevel| match caller {
        _ if level.is_some_and(|level| level >= least) && matches!(caller, Caller::User(_)) => Decision::Allow,
        Caller::User(_) => Decision::Denied(Needs::Grant(least)),
        Caller::Peer | Caller::Stranger => Decision::Denied(Needs::User),
    };
    match rule(verb) {
        Rule::AnyUser | Rule::Seen => Decision::Allow,
        Rule::Role(role) => user_with(caller, role),
        Rule::Bytes if level.is_some() || (open && embargo == Embargo::Over) => Decision::Allow,
        Rule::Bytes => Decision::Denied(Needs::Grant(GrantLevel::Read)),
        Rule::Grant(least) => granted(least),
        Rule::GrantOrAdmin(_) if is_admin => Decision::Allow,
        Rule::GrantOrAdmin(least) => granted(least),
    }
}

fn user_with(caller: Caller, least: NodeRole) -> Decision {
    match caller {
        Caller::User(role) if role >= least => Decision::Allow,
        Caller::User(_) => Decision::Denied(Needs::Role(least)),
        Caller::Peer | Caller::Stranger => Decision::Denied(Needs::User),
    }
}
