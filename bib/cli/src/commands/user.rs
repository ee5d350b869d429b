//! `bib user`: people and programs of the node. Changing others is for admins.

use std::path::Path;

use bib_client::pb;
use bib_identity::ssh::PublicKey;
use clap::{Args, Subcommand, ValueEnum};

use super::done::Done;
use super::login::role_name;
use crate::context::Context;
use crate::errors::{Failure, Result};
use crate::output::record;

/// People and programs of the node.
#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// The users, by name
    List {
        /// Only those whose name, ORCID or key comment contains this
        #[arg(long, value_name = "TEXT")]
        search: Option<String>,
    },
    /// Adds a user
    Add(Add),
    /// One user
    Show {
        /// Name, id or key fingerprint
        user: String,
    },
    /// Ends a user's sessions and refuses new ones until `resume`
    Suspend {
        /// Name, id or key fingerprint
        user: String,
        /// Why; stands in the audit log
        #[arg(long, default_value = "", hide_default_value = true)]
        reason: String,
    },
    /// Lets a suspended user in again
    Resume {
        /// Name, id or key fingerprint
        user: String,
    },
    /// Removes a user; past acts and versions stay
    Remove {
        /// Name, id or key fingerprint
        user: String,
    },
    /// A user's SSH keys
    #[command(subcommand)]
    Key(KeyCommand),
}

/// A user's SSH keys.
#[derive(Debug, Subcommand)]
pub(crate) enum KeyCommand {
    /// Gives a user one more key
    Add {
        /// Name, id or key fingerprint
        user: String,
        /// A `.pub` file, or the line in it
        public_key: String,
    },
    /// Takes a key from a user; versions signed with it stay valid
    Remove {
        /// Name, id or key fingerprint
        user: String,
        /// The key, as SHA256:...
        fingerprint: String,
    },
}

/// Adds a user.
#[derive(Debug, Args)]
pub(crate) struct Add {
    /// Lower-case letters, digits, `.`, `_` and `-`
    name: String,
    /// The name as people read it
    #[arg(long, value_name = "TEXT", default_value = "", hide_default_value = true)]
    display_name: String,
    /// The ORCID iD
    #[arg(long, default_value = "", hide_default_value = true)]
    orcid: String,
    /// What the user may do on the node as such
    #[arg(long, value_enum, default_value = "writer")]
    role: Role,
    /// A `.pub` file, or the line in it; may be given several times
    #[arg(long = "public-key", value_name = "FILE|LINE")]
    public_keys: Vec<String>,
    /// The operating system's uid that is this user on the Unix socket
    #[arg(long)]
    uid: Option<u32>,
}

/// Roles as people write them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Role {
    Reader,
    Writer,
    Admin,
}

record! {
    /// A user.
    UserRow {
        name: String = Text listed, display_name: String = Text listed, role: String = Text listed, state: String = Text listed,
        orcid: String = Text, user_id: String = Text, keys: Vec<String> = Many listed, uids: Vec<u32> = Many, created_at: String = Time,
    }
}

impl Command {
    /// Runs the command.
    pub(crate) async fn run(self, context: &Context) -> Result<()> {
        let users = context.client().await?.users();
        let user = match self {
            Self::List { search } => {
                let rows = search.map_or_else(|| users.list(), |text| users.search(&text));
                return context.output.list().drain(rows, UserRow::from, "no users").await.map(|_| ());
            }
            Self::Add(add) => {
                let user = users.create(add.request()?).await?;
                if user.keys.is_empty() && user.uids.is_empty() {
                    context
                        .output
                        .note(&format!("it cannot log in yet; next: bib user key add {} FILE.pub", user.name));
                }
                user
            }
            Self::Show { user } => users.get(&user).await?,
            Self::Suspend { user, reason } => {
                context.asker.confirm(&format!("suspend `{user}` and end all sessions?"))?;
                users.suspend(&user, &reason).await?
            }
            Self::Resume { user } => users.resume(&user).await?,
            Self::Remove { user } => {
                context.asker.confirm(&format!("remove `{user}`? this cannot be taken back"))?;
                users.remove(&user).await?;
                return context.output.one(&Done::new("removed", user));
            }
            Self::Key(KeyCommand::Add { user, public_key }) => users.add_key(&user, &key_line(&public_key)?).await?,
            Self::Key(KeyCommand::Remove { user, fingerprint }) => {
                context.asker.confirm(&format!("take the key {fingerprint} from `{user}`?"))?;
                users.remove_key(&user, &fingerprint).await?
            }
        };
        context.output.one(&UserRow::from(user))
    }
}

impl Add {
    fn request(self) -> Result<pb::CreateUserRequest> {
        let orcid = match self.orcid.as_str() {
            "" => String::new(),
            text => bib_core::metadata::Orcid::from_any(text)
                .map_err(|error| Failure::usage(error.to_string()))?
                .as_str()
                .to_owned(),
        };
        let role = match self.role {
            Role::Reader => pb::NodeRole::Reader,
            Role::Writer => pb::NodeRole::Writer,
            Role::Admin => pb::NodeRole::Admin,
        };
        Ok(pb::CreateUserRequest {
            name: self.name,
            display_name: self.display_name,
            orcid,
            role: role.into(),
            public_keys: self.public_keys.iter().map(|key| key_line(key)).collect::<Result<_>>()?,
            uid: self.uid,
        })
    }
}

/// The public key's line, from a file or as it was written; a private key is refused before anything is sent.
fn key_line(text: &str) -> Result<String> {
    let line = if text.contains(' ') {
        text.to_owned()
    } else {
        let bytes = bib_identity::file::read_public(Path::new(text), 32 * 1024)?;
        String::from_utf8(bytes).map_err(|_| Failure::usage(format!("`{text}` is no public key")))?
    };
    let line = line.trim();
    let key: PublicKey = line.parse().map_err(|error: bib_identity::ssh::SshError| {
        Failure::usage(format!("`{}` is no public key: {error}", text.chars().take(60).collect::<String>()))
            .with_hint("name the .pub file, not the private key")
    })?;
    Ok(if key.comment().is_empty() { key.to_line() } else { format!("{} {}", key.to_line(), key.comment()) })
}

impl From<pb::User> for UserRow {
    fn from(user: pb::User) -> Self {
        let state = match user.state() {
            pb::UserState::Active => "active",
            pb::UserState::Suspended => "suspended",
            pb::UserState::Removed => "removed",
            pb::UserState::Unspecified => "unknown",
        };
        Self {
            role: role_name(user.role()).to_owned(),
            state: state.to_owned(),
            name: user.name,
            display_name: user.display_name,
            orcid: user.orcid,
            user_id: user.user_id,
            keys: user.keys.into_iter().filter(|key| key.removed_at.is_none()).map(|key| key.fingerprint).collect(),
            uids: user.uids,
            created_at: user.created_at,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_private_key_never_leaves() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("id_ed25519");
        let key = bib_identity::ssh::generate(&path, "ada@lab", &mut rand::rngs::OsRng).unwrap();
        assert!(key_line(path.to_str().unwrap()).is_err());
        let line = key_line(path.with_extension("pub").to_str().unwrap()).unwrap();
        assert_eq!(line, format!("{} ada@lab", key.public().to_line()));
        assert_eq!(key_line(&line).unwrap(), line);
    }
}
